//! `fruix system` where the base is built from its source: what its derivations need to know, and what of that goes to the store.

use std::path::PathBuf;

use fruix_drv::StorePath;
use fruix_freebsd::system::derivations::{NativeSources, Plan, SourcePlan, Text, names};
use fruix_freebsd::system::model::{Problem, item};
use fruix_freebsd::system::native::{self, BUILDS, FreebsdBuild};
use fruix_freebsd::system::toml::{SourceFile, SystemFile};
use fruixd::builtins::freebsd_source::identity;

use super::{Connection, Failure, Local, Report, Site, add_local, local_path, refuse};
use crate::source;

/// What a base is built from.
pub(super) struct Native {
    pub(super) sources: NativeSources,
    /// The derivations of the source.
    pub(super) texts: Vec<Text>,
}

fn wrong(file: &SystemFile, field: &str, problem: String, remedy: &str) -> Failure {
    refuse(&[file.origin.locate(Problem { field: format!("base.build.{field}"), problem, remedy: remedy.to_owned() })])
}

/// The store path of what a field names, which is added to the store when there is a client; what is an item of the store is taken as it is.
async fn given(site: &Site, local: Local, client: Option<&mut Connection>) -> Result<StorePath, Failure> {
    let path = match local.path.strip_prefix(site.store_dir.as_str()) {
        Ok(name) if name.components().count() == 1 => site.store_dir.parse(local.path.as_os_str().as_encoded_bytes())?,
        _ => local_path(&site.store_dir, &local)?,
    };
    if let Some(client) = client {
        add_local(client, &local, &path).await?;
    }
    Ok(path)
}

/// Looks at all that a base is built from: brings its source into the store, if there is a client, changes it as the patches say, and hashes the parts
/// that the builds read. `None` for a base that is not built.
pub(super) async fn prepare(
    site: &Site,
    file: &SystemFile,
    source_file: Option<SourceFile>,
    mut client: Option<&mut Connection>,
) -> Result<Option<Native>, Failure> {
    let base = &file.system.base;
    let (Some(build), Some(source_file), true) = (&base.build, source_file, base.kind == native::SOURCE) else { return Ok(None) };
    let local = |field: &str, name: &str, what: &str, directory| -> Result<Local, Failure> {
        let path = file.origin.resolve(name);
        let path = path.canonicalize().unwrap_or(path);
        let shown = path.display();
        let remedy = format!("name a {} that is there; it is relative to the system file", if directory { "directory" } else { "file" });
        match std::fs::metadata(&path) {
            Err(error) => Err(wrong(file, field, format!("`{shown}': {error}"), &remedy)),
            Ok(metadata) if metadata.is_dir() != directory => Err(wrong(file, field, format!("`{shown}' is no such thing"), &remedy)),
            Ok(_) => Ok(Local { field: format!("base.build.{field}"), path, name: what.to_owned(), flat: None, directory }),
        }
    };
    let toolchain = local("toolchain", &build.toolchain, names::TOOLCHAIN, true)?;
    if std::fs::symlink_metadata(toolchain.path.join("bin/sh")).is_err() {
        let problem = format!("`{}' has no bin/sh", toolchain.path.display());
        return Err(wrong(file, "toolchain", problem, "name a toolchain (docs/systems.md says what it has and how to make one)"));
    }
    let patches = patches(file, build)?;
    let kernel = build.kernel_file().map(|name| local("kernel-config", name, names::KERNEL_CONFIG, false)).transpose()?;

    let (SourcePlan { texts, source, .. }, mut tree) = source::tree(site, &source_file, client.as_deref_mut()).await?;
    for (index, (path, patch)) in patches.iter().enumerate() {
        native::apply(&mut tree, patch).map_err(|reason| {
            let problem = format!("`{}' does not apply: {reason}", path.display());
            wrong(file, &item("patches", index), problem, "make it for this source, or leave it out")
        })?;
    }
    if build.kernel_file().is_none() && tree.get(format!("sys/amd64/conf/{}", build.kernel_name())).is_none() {
        let problem = format!("the source has no sys/amd64/conf/{}", build.kernel_name());
        return Err(wrong(file, "kernel-config", problem, "name one that is there, or a file with a slash in front, such as ./MYKERNEL"));
    }
    let hash = |name: &'static str, part| -> Result<(&'static str, String), Failure> {
        let problem = |error: &dyn std::fmt::Display| {
            let problem = format!("nothing of it is for `{name}': {error}");
            refuse(&[file.origin.locate(Problem { field: "base.source".into(), problem, remedy: "name a source of FreeBSD".into() })])
        };
        let part = native::part(&tree, &part).map_err(|error| problem(&error))?;
        Ok((name, identity(&part).map_err(|error| problem(&error))?.base16()))
    };
    let parts = BUILDS.iter().map(|build| hash(build.name, build.part())).collect::<Result<_, Failure>>()?;

    let mut added = Vec::new();
    for (path, _) in patches {
        let local = Local { field: "base.build.patches".into(), path, name: names::PATCH.into(), flat: None, directory: false };
        added.push(given(site, local, client.as_deref_mut()).await?);
    }
    let kernel_config = match kernel {
        Some(local) => Some(given(site, local, client.as_deref_mut()).await?),
        None => None,
    };
    let toolchain = given(site, toolchain, client).await?;
    Ok(Some(Native { sources: NativeSources { source, parts, toolchain, patches: added, kernel_config }, texts }))
}

/// The patches with their texts.
fn patches(file: &SystemFile, build: &FreebsdBuild) -> Result<Vec<(PathBuf, Vec<u8>)>, Failure> {
    let read = |(index, name): (usize, &String)| {
        let path = file.origin.resolve(name);
        let path = path.canonicalize().unwrap_or(path);
        let text = native::read_patch(&path).map_err(|error| {
            let problem = format!("`{}': {error}", path.display());
            wrong(file, &item("patches", index), problem, "name a file that is there; it is relative to the system file")
        })?;
        Ok((path, text))
    };
    build.patches.iter().enumerate().map(read).collect()
}

/// What is known of the builds before they are made.
pub(super) fn describe(report: &mut Report, site: &Site, plan: &Plan, native: &Native) {
    let dir = &site.store_dir;
    let show = |path: Option<&StorePath>| path.map(|path| dir.display(path)).unwrap_or_default();
    report.say("native_source_store", show(native.sources.source.outputs.get("out")));
    report.say("native_toolchain_store", show(Some(&native.sources.toolchain)));
    let keys = [
        ("tools", "native_tools_source", "native_tools_derivation", "native_tools_store"),
        ("kernel", "native_kernel_source", "native_kernel_derivation", "native_kernel_store"),
        ("loader", "native_bootloader_source", "native_bootloader_derivation", "native_bootloader_store"),
        ("runtime", "native_runtime_source", "native_runtime_derivation", "native_runtime_store"),
    ];
    for (name, source, derivation, store) in keys {
        report.say(source, show(plan.native.parts.get(name).and_then(|part| part.outputs.get("out"))));
        let build = plan.native.builds.get(name);
        report.say(derivation, show(build.map(|build| &build.path)));
        report.say(store, show(build.and_then(|build| build.outputs.get("out"))));
    }
}
