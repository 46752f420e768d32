//! FreeBSD built from its sources: what a file says of it, which part of the source each build reads, and how patches change a source.
//! `docs/design/native-builds.md` says why it is so.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use diffy::patch_set::{FileMode, FileOperation, ParseOptions, PatchKind, PatchSet};

use super::base::TIME;
use super::canon::push_string;
use super::fields::{Check, Missing, parts};
use super::model::{FreebsdBase, Problem};
use super::packages::{NAMES, matches};
use super::source::normalise;
use crate::tree::{Content, Entry, Node, Tree, TreeError, show};

/// The kind of a base that is built.
pub const SOURCE: &str = "source";
/// All modules of a kernel.
pub const ALL: &str = "all";
/// The file in each output that tells from what it was made.
pub const INFO: &str = ".freebsd-native-build-info.scm";
/// The largest patch, in bytes.
pub const MAX_PATCH: u64 = 64 << 20;

parts! {
    /// How a base is built from its source.
    pub struct FreebsdBuild = "freebsd-build" {
        /// What the builders' programs are: a store item, or a directory relative to the file, with bin, lib, usr and the like, which become the root of the builders.
        pub toolchain = "toolchain": String, Missing::Required, Check::LocalPath;
        /// The system that the toolchain's programs run on.
        pub toolchain_system = "toolchain-system": String, Missing::Text("x86_64-linux"), Check::OneOf(&["x86_64-linux", "x86_64-freebsd"]);
        /// The kernel's configuration: a name in sys/amd64/conf of the source, or, with a slash, a file relative to this one.
        pub kernel_config = "kernel-config": String, Missing::Text("GENERIC"), Check::LocalPath;
        /// The kernel's modules: their names, as directories of sys/modules, or `all`.
        pub kernel_modules = "kernel-modules": Vec<String>, Missing::Texts(&[ALL]), Check::LocalPath;
        /// Options of src.conf(5), WITH_ or WITHOUT_ something.
        pub options = "options": Vec<String>, Missing::Empty, Check::BuildOption;
        /// Files with changes to the source as `diff -u` or git writes them, relative to this one, in the order in which they are made.
        pub patches = "patches": Vec<String>, Missing::Empty, Check::LocalPath;
    }

    /// What of a source belongs to a part of it.
    pub struct SourcePart = "freebsd-source-part" {
        /// Its name.
        pub name = "name": String, Missing::Required, Check::Word;
        /// Patterns of paths, with `!` in front for what does not belong to it. The first that matches counts.
        pub patterns = "patterns": Vec<String>, Missing::Required, Check::Any;
    }
}

/// A build: its name, what of the source it reads, its script, and the packages of a base that come from it.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// The name of the part and of the build.
    pub name: &'static str,
    list: &'static str,
    script: &'static str,
    packages: fn(&str) -> bool,
}

/// What all scripts begin with.
const COMMON: &str = include_str!("native/common.sh");
/// What those go on with that install something.
const STAGED: &str = include_str!("native/staged.sh");

macro_rules! build {
    ($name:literal, $packages:expr) => {
        Build {
            name: $name,
            list: include_str!(concat!("native/", $name, ".list")),
            script: include_str!(concat!("native/", $name, ".sh")),
            packages: $packages,
        }
    };
}

/// The tools that the other builds run.
pub const TOOLS: Build = build!("tools", |_| false);
/// The kernel with its modules.
pub const KERNEL: Build = build!("kernel", |package| package == "kernel");
/// The boot programs.
pub const LOADER: Build = build!("loader", |package| package == "bootloader");
/// All else.
pub const RUNTIME: Build = build!("runtime", |package| !matches!(package, "kernel" | "bootloader"));
/// All builds, in an order in which they may be made.
pub const BUILDS: [Build; 4] = [TOOLS, KERNEL, LOADER, RUNTIME];

impl Build {
    /// Which part of a source it reads.
    #[must_use]
    pub fn part(&self) -> SourcePart {
        let lines = self.list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        SourcePart { name: self.name.to_owned(), patterns: lines.map(str::to_owned).collect() }
    }

    /// Its script for sh(1).
    #[must_use]
    pub fn script(&self) -> String {
        let staged = if self.packages().is_empty() { "" } else { STAGED };
        format!("{COMMON}{staged}{}", self.script)
    }

    /// The packages that are cut from what it makes.
    #[must_use]
    pub fn packages(&self) -> Vec<&'static str> {
        NAMES.iter().copied().filter(|name| (self.packages)(name)).collect()
    }
}

impl FreebsdBuild {
    /// The file of the kernel's configuration, when it is not one of the source's.
    #[must_use]
    pub fn kernel_file(&self) -> Option<&str> {
        Some(self.kernel_config.as_str()).filter(|name| name.contains('/'))
    }

    /// The name of the kernel's configuration.
    #[must_use]
    pub fn kernel_name(&self) -> &str {
        self.kernel_config.rsplit('/').next().unwrap_or_default()
    }

    /// The text of src.conf(5).
    #[must_use]
    pub fn src_conf(&self) -> String {
        self.options.iter().map(|option| format!("{option}=\n")).collect()
    }

    /// The beginning of what [`INFO`] says of the build `name`, which reads a part of the source with this SHA-256: lines of an association list. The
    /// script closes it, with the store items that only the builder knows.
    #[must_use]
    pub fn info(&self, base: &FreebsdBase, name: &str, sha256: &str) -> String {
        let text = |text: &str| {
            let mut out = String::new();
            push_string(&mut out, text);
            out
        };
        let list = |texts: &[String]| texts.iter().map(|item| format!(" {}", text(item))).collect::<String>();
        let mut out = format!(
            "((output . {name})\n (declared-base .\n  ((name . {})\n   (version . {})))\n (declared-source .\n  ((kind . source-part)\n   (part . {name})\n   (sha256 . {})))\n",
            text(&base.name),
            text(&base.version),
            text(sha256),
        );
        if name == KERNEL.name {
            out.push_str(&format!(" (kernel-config . {})\n (kernel-modules{})\n", text(self.kernel_name()), list(&self.kernel_modules)));
        }
        out.push_str(&format!(" (options{})\n (toolchain-system . {})\n", list(&self.options), text(&self.toolchain_system)));
        out
    }
}

/// What does not hold of a base that is, or is not, built.
pub(super) fn problems(base: &FreebsdBase, found: &mut Vec<Problem>) {
    let mut say = |field: String, problem: String, remedy: &str| found.push(Problem::new(field, problem, remedy));
    if base.kind != SOURCE {
        if base.build.is_some() {
            let remedy = "leave it out, or write kind = \"source\"";
            say("base.build".into(), format!("makes no sense for {}", base.kind), remedy);
        }
        return;
    }
    for (field, there) in [("path", base.path.is_some()), ("sets", !base.sets.is_empty())] {
        if there {
            say(format!("base.{field}"), "makes no sense for a source".into(), "leave it out; where the source is stands in [base.source]");
        }
    }
    if base.source.is_none() {
        say("base.source".into(), "is missing for a base that is built".into(), "write a table [base.source] (see docs/sources.md)");
    }
    let Some(build) = &base.build else {
        say("base.build".into(), "is missing for a base that is built".into(), "write a table [base.build] with toolchain = \"...\"");
        return;
    };
    let name = build.kernel_name();
    if Check::Word.problem(name).is_some() {
        say("base.build.kernel-config".into(), format!("`{name}' is no name"), "write one of letters, digits, `.', `_', `-'");
    }
    for (index, module) in build.kernel_modules.iter().enumerate() {
        let field = format!("base.build.kernel-modules[{}]", index.saturating_add(1));
        if module == ALL && build.kernel_modules.len() > 1 {
            say(field, "is all of them, and there are others".into(), "write kernel-modules = [\"all\"], or names only");
        } else if module.split('/').any(|name| Check::Word.problem(name).is_some()) {
            say(field, format!("`{module}' is no name"), "write the name of a directory in sys/modules, such as if_bridge");
        }
    }
    let mut said: BTreeMap<&str, &str> = BTreeMap::new();
    for (index, option) in build.options.iter().enumerate() {
        let Some((_, what)) = option.split_once('_') else { continue };
        match said.insert(what, option) {
            Some(other) if other == option => {
                let field = format!("base.build.options[{}]", index.saturating_add(1));
                say(field, format!("`{option}' is there twice"), "leave one out");
            }
            Some(other) => {
                let field = format!("base.build.options[{}]", index.saturating_add(1));
                say(field, format!("is {option}, and {other} is there too"), "leave one out");
            }
            None => {}
        }
    }
}

/// What of `tree` belongs to `part`, normalised.
///
/// # Errors
/// [`TreeError::Conflict`] when that is nothing.
pub fn part(tree: &Tree, part: &SourcePart) -> Result<Tree, TreeError> {
    let mut kept = Tree::new();
    let patterns: Vec<(bool, &[u8])> = part
        .patterns
        .iter()
        .map(|pattern| pattern.strip_prefix('!').map_or((true, pattern.as_bytes()), |rest| (false, rest.as_bytes())))
        .collect();
    for (path, entry) in tree.iter().filter(|(_, entry)| entry.node != Node::Dir) {
        if patterns.iter().find(|(_, pattern)| matches(pattern, path)).is_some_and(|(belongs, _)| *belongs) {
            kept.insert(path, entry.clone())?;
        }
    }
    normalise(kept)
}

/// Changes `tree`, a normalised source, as a patch says. The first component of its names (`a/`, `b/`) is left out, as `patch -p1` does.
///
/// # Errors
/// Which file cannot be changed so, in words.
pub fn apply(tree: &mut Tree, patch: &[u8]) -> Result<(), String> {
    let git = patch.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"diff --git "));
    let options = if git { ParseOptions::gitdiff() } else { ParseOptions::unidiff() };
    let mut any = false;
    for file in PatchSet::parse_bytes(patch, options) {
        let file = file.map_err(|error| format!("is no patch: {error}"))?;
        any = true;
        let (from, to) = match file.operation().strip_prefix(1) {
            FileOperation::Create(to) => (None, Some(to.into_owned())),
            FileOperation::Delete(from) => (Some(from.into_owned()), None),
            FileOperation::Modify { original, modified } if original == modified || !git => {
                // Of a plain diff the second name counts: the first may be that of a copy which was kept.
                let name = modified.into_owned();
                (Some(name.clone()), Some(name))
            }
            FileOperation::Modify { original, .. }
            | FileOperation::Rename { from: original, .. }
            | FileOperation::Copy { from: original, .. } => {
                return Err(format!("`{}' is renamed or copied; make it with `git diff --no-renames'", show(&original)));
            }
        };
        let name = show(to.as_ref().or(from.as_ref()).map_or(&[][..], Vec::as_slice));
        let PatchKind::Text(change) = file.patch() else {
            return Err(format!("`{name}' is no text"));
        };
        if let Some(mode @ (FileMode::Symlink | FileMode::Gitlink)) = file.new_mode() {
            return Err(format!("`{name}' would be {}", if *mode == FileMode::Symlink { "a symbolic link" } else { "a submodule" }));
        }
        let (old, old_mode) = match &from {
            None => (Vec::new(), 0o644),
            Some(path) => {
                let entry = tree.get(path).ok_or_else(|| format!("`{name}' is not in the source"))?;
                (bytes(entry).map_err(|why| format!("`{name}' {why}"))?, entry.mode)
            }
        };
        let new = diffy::apply_bytes(&old, change).map_err(|error| format!("`{name}': {error}"))?;
        let mode = match file.new_mode() {
            Some(FileMode::Executable) => 0o755,
            Some(_) => 0o644,
            None => old_mode,
        };
        match (from, to) {
            (Some(path), None) if new.is_empty() => tree.remove(&path),
            (Some(_), None) => return Err(format!("`{name}' has more in it than is deleted")),
            (None, Some(path)) if tree.get(&path).is_some() => return Err(format!("`{}' is already in the source", show(&path))),
            (_, Some(path)) => {
                tree.replace(&path, Entry::file(mode, Arc::<[u8]>::from(new)).time(TIME)).map_err(|error| error.to_string())?;
            }
            (None, None) => {}
        }
    }
    if any { Ok(()) } else { Err("is no patch: it changes no file".to_owned()) }
}

/// The bytes of a file of a tree.
fn bytes(entry: &Entry) -> Result<Vec<u8>, String> {
    let Node::File(file) = &entry.node else { return Err("is no file".to_owned()) };
    match &file.content {
        Content::Bytes(bytes) => Ok(bytes.to_vec()),
        Content::Host(_) if file.size > MAX_PATCH => Err(format!("has more than {MAX_PATCH} bytes")),
        Content::Host(path) => std::fs::read(path).map_err(|error| format!("cannot be read: {error}")),
    }
}

/// Reads a patch.
///
/// # Errors
/// Why it cannot be read, in words.
pub fn read_patch(path: &Path) -> Result<Vec<u8>, String> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_PATCH => Err(format!("has more than {MAX_PATCH} bytes")),
        Ok(_) => std::fs::read(path).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
