//! `builtin:freebsd-pkg` and `builtin:freebsd-profile`: a package of FreeBSD's as a store item, and several as one directory of links.
//!
//! What an archive may be is said by `fruix_freebsd::system::pkg::archive`; the derivations are those of
//! `fruix_freebsd::system::derivations::plan_packages`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use fruix_freebsd::system::base;
use fruix_freebsd::system::canon;
use fruix_freebsd::system::pkg::PkgItem;
use fruix_freebsd::system::pkg::archive::{self, METADATA, PKG_MANIFEST, PROFILE_METADATA};
use fruix_freebsd::tree::Tree;

use super::{BuiltinError, BuiltinInput, say};

impl BuiltinInput {
    /// A variable of words `NAME=PATH`, each a path of the store.
    fn named_paths(&self, variable: &str) -> Result<Vec<(String, PathBuf)>, BuiltinError> {
        let words = self.required(variable)?.split_whitespace();
        words
            .map(|word| {
                let (name, path) =
                    word.split_once('=').ok_or_else(|| self.system_error(format!("{variable}: `{word}' is no NAME=PATH")))?;
                Ok((name.to_owned(), self.in_store(path)?))
            })
            .collect()
    }
}

/// Unpacks a package: its files, its manifest, `METALOG`, and what is known of it with the store paths of what it depends on.
pub fn package(input: &BuiltinInput, log: &mut dyn Write) -> Result<(), BuiltinError> {
    input.check_version("builtin:freebsd-pkg")?;
    let item: PkgItem = input.description("item")?;
    let archive = input.store_file("archive")?;
    let depends: BTreeMap<String, String> =
        input.named_paths("depends")?.into_iter().map(|(name, path)| (name, path.display().to_string())).collect();
    if !depends.keys().eq(item.depends.iter()) {
        return Err(input.system_error("the variable `depends' names other packages than the package's item"));
    }
    let out = input.out()?;
    let target = out.target();
    let scratch = PathBuf::from(input.required("NIX_BUILD_TOP")?).join("unpacked");
    say(log, &format!("unpacking {}", archive.display()));
    let mut package = archive::unpack(&archive, &scratch, &item).map_err(|reason| input.system_error(reason))?;
    package.number_owners();
    let (hash, _) = fruix_store::hash_path(&archive).map_err(|error| input.system_error(error.to_string()))?;
    base::write(&package.tree, target, Path::new(&out.path), &hash.base16()).map_err(|error| input.system_error(error.to_string()))?;
    for (name, bytes) in [(PKG_MANIFEST, package.manifest.as_slice()), (METADATA, package.metadata(&item, &depends).as_bytes())] {
        let file = target.join(name);
        fs::write(&file, bytes).map_err(BuiltinError::io("writing", &file))?;
    }
    // What is left is much, and the build directory may be kept.
    fs::remove_dir_all(&scratch).map_err(BuiltinError::io("removing", &scratch))?;
    let about = &package.about;
    if !about.scripts.is_empty() {
        say(log, &format!("{}: its scripts are not run: {}", item.name, about.scripts.join(", ")));
    }
    if !about.unknown.is_empty() {
        let owners: Vec<&str> = about.unknown.iter().map(String::as_str).collect();
        say(log, &format!("{}: root has the files of: {}", item.name, owners.join(", ")));
    }
    say(log, &format!("{}: {} entries", out.path, package.tree.len()));
    Ok(())
}

/// Puts packages together: a directory of links, and a `METALOG` that says where the bytes are.
pub fn profile(input: &BuiltinInput, log: &mut dyn Write) -> Result<(), BuiltinError> {
    input.check_version("builtin:freebsd-profile")?;
    let mut packages: Vec<(String, String, Tree)> = Vec::new();
    let mut metadata = String::from("((packages");
    for (name, path) in input.named_paths("packages")? {
        let (tree, _) = base::read_package(&path).map_err(|error| input.system_error(error.to_string()))?;
        // Whoever sends a derivation may have written the item.
        if !archive::is_within(&tree, &path) {
            return Err(input.system_error(format!("`{}' names files that are not its own", path.display())));
        }
        let shown = path.display().to_string();
        let _ = write!(metadata, "\n  ({} . {})", canon::string(&name), canon::string(&shown));
        packages.push((name, shown, tree));
    }
    metadata.push_str("))\n");
    let out = input.out()?;
    let target = out.target();
    let wrong = |reason: String| input.system_error(reason);
    let all = archive::union(&packages).map_err(wrong)?;
    let links = archive::links(&packages).map_err(wrong)?;
    base::write_files(&links, target).map_err(|error| input.system_error(error.to_string()))?;
    base::write_list(&all, target, "").map_err(|error| input.system_error(error.to_string()))?;
    let file = target.join(PROFILE_METADATA);
    fs::write(&file, metadata).map_err(BuiltinError::io("writing", &file))?;
    say(log, &format!("{}: {} entries of {} packages", out.path, all.len(), packages.len()));
    Ok(())
}
