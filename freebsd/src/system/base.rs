//! A base as a tree of files, and the packages that it is cut into.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::native::INFO;
use super::packages::{PackageList, matches};
use crate::tree::{Content, DirectoryOptions, Entry, ManifestOptions, Node, Owners, Time, Tree, TreeError};

/// The file in each package that has the owners, modes and flags of its files.
pub const MANIFEST: &str = "METALOG";
/// What a manifest begins with, before the hash of the source.
const SOURCE: &str = "# made from ";
/// The time of everything, as in a store.
pub const TIME: Time = Time::seconds(1);
/// What a base may have, and a system makes for itself; a list of files, which each package has of its own; and what tells how it was built, which would
/// keep the toolchain.
pub(super) const LEFT_OUT: [&[u8]; 6] =
    [MANIFEST.as_bytes(), INFO.as_bytes(), b"etc/pwd.db", b"etc/spwd.db", b"etc/login.conf.db", b"var/db/services.db"];

fn host(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    move |source| TreeError::Host { doing, path: path.to_owned(), source }
}

/// Reads the tree of built files at `directory`. `manifest` is the mtree in it (or beside it) with owners, modes and flags; where there is none, and for
/// files that it does not list, everything is root's, mode 0755 or 0644. What it lists and is not there is passed over.
///
/// Files with several names become several files: a store may give equal files one inode, or not, and the result must be the same.
///
/// # Errors
/// [`TreeError`] when something cannot be read or the manifest is no mtree.
pub fn read(directory: &Path, manifest: &str) -> Result<Tree, TreeError> {
    let file = directory.join(manifest);
    let mut tree = without_hard_links(
        directory,
        Tree::from_directory(directory, DirectoryOptions { owner: Some((0, 0)), time: Some(TIME), without: None })?,
    );
    for (_, entry) in tree.iter_mut() {
        entry.mode = match &entry.node {
            Node::File(_) if entry.mode & 0o111 == 0 => 0o644,
            _ => 0o755,
        };
        entry.flags = 0;
    }
    tree.remove(manifest);
    match fs::read(&file) {
        Ok(text) => {
            let owners = Owners::from_directory(&directory.join("etc")).unwrap_or_default();
            let options = ManifestOptions { name: manifest, root: None, owners: &owners, time: TIME };
            for (path, entry) in Tree::read_attributes(text.as_slice(), &options)?.iter() {
                // What is there counts, the list says what it is like.
                match tree.get_mut(path) {
                    Some(there) if there.node.kind() == entry.node.kind() => {
                        (there.mode, there.uid, there.gid, there.flags) = (entry.mode, entry.uid, entry.gid, entry.flags);
                    }
                    None if entry.node == Node::Dir => tree.insert(path, entry.clone())?,
                    _ => {}
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(host("reading", &file)(error)),
    }
    for path in LEFT_OUT {
        tree.remove(path);
    }
    tree.complete(&Entry::dir(0o755).time(TIME));
    Ok(tree)
}

/// Makes a file of its own of each further name that a file of `directory` has.
#[must_use]
pub fn without_hard_links(directory: &Path, mut tree: Tree) -> Tree {
    let linked: Vec<(Vec<u8>, Vec<u8>)> = tree
        .iter()
        .filter_map(|(path, entry)| match &entry.node {
            Node::HardLink(target) => Some((path.to_vec(), target.clone())),
            _ => None,
        })
        .collect();
    for (path, target) in linked {
        let Some(mut entry) = tree.get(&target).cloned() else { continue };
        if let Node::File(file) = &mut entry.node {
            file.content = Content::Host(directory.join(std::ffi::OsStr::from_bytes(&path)));
        }
        if let Some(there) = tree.get_mut(&path) {
            *there = entry;
        }
    }
    tree
}

/// The packages of a base. What belongs to none is in none.
///
/// # Errors
/// [`TreeError`] when there is too much of it.
pub fn cut(base: &Tree, lists: &[PackageList]) -> Result<BTreeMap<String, Tree>, TreeError> {
    let mut packages: BTreeMap<String, Tree> = lists.iter().map(|list| (list.name.clone(), Tree::new())).collect();
    for (path, entry) in base.iter().filter(|(path, _)| !path.is_empty()) {
        let owner = lists.iter().find(|list| list.patterns.iter().any(|pattern| matches(pattern.as_bytes(), path)));
        if let Some(package) = owner.and_then(|list| packages.get_mut(&list.name)) {
            package.insert(path, entry.clone())?;
        }
    }
    Ok(packages)
}

/// Writes the files of `tree` to the new directory `target`, and its manifest, which names them as files of `path`: what the directory is
/// going to be called. A file that anybody may execute is executable. `source` is the hash of what the base was made from.
///
/// # Errors
/// Those of [`write_files`].
pub fn write(tree: &Tree, target: &Path, path: &Path, source: &str) -> Result<(), TreeError> {
    let mut listed = tree.clone();
    write_files(tree, target)?;
    for (name, entry) in listed.iter_mut() {
        if let Node::File(file) = &mut entry.node {
            file.content = Content::Host(path.join(std::ffi::OsStr::from_bytes(name)));
        }
    }
    write_list(&listed, target, source)
}

/// Writes the manifest of `tree` to the directory `target`. `source` is the hash of what it was made from, or nothing.
///
/// # Errors
/// [`TreeError::Host`] when it is there or cannot be written.
pub fn write_list(tree: &Tree, target: &Path, source: &str) -> Result<(), TreeError> {
    let manifest = target.join(MANIFEST);
    let mut out = io::BufWriter::new(fs::File::create_new(&manifest).map_err(host("creating", &manifest))?);
    let first = if source.is_empty() { String::new() } else { format!("{SOURCE}{source}\n") };
    let written = out.write_all(first.as_bytes()).and_then(|()| tree.write_manifest(&mut out)).and_then(|()| out.flush());
    written.map_err(host("writing", &manifest))
}

/// Writes directories, files and symbolic links to the new directory `target`, without owners, flags and times.
///
/// # Errors
/// [`TreeError::Host`] when something cannot be read or written, [`TreeError::Conflict`] for what is below something else than a directory.
pub fn write_files(tree: &Tree, target: &Path) -> Result<(), TreeError> {
    let mut tree = tree.clone();
    tree.complete(&Entry::dir(0o755));
    // What is below a symbolic link would be written to where that leads.
    tree.check()?;
    for (name, entry) in tree.iter() {
        let to = if name.is_empty() { target.to_owned() } else { target.join(std::ffi::OsStr::from_bytes(name)) };
        match &entry.node {
            Node::Dir => fs::create_dir(&to).map_err(host("creating", &to))?,
            Node::Symlink(link) => symlink(std::ffi::OsStr::from_bytes(link), &to).map_err(host("creating", &to))?,
            Node::File(file) => {
                let mode = if entry.mode & 0o111 == 0 { 0o644 } else { 0o755 };
                let mut out = fs::File::options().write(true).create_new(true).mode(mode).open(&to).map_err(host("creating", &to))?;
                match &file.content {
                    Content::Bytes(bytes) => out.write_all(bytes).map_err(host("writing", &to))?,
                    Content::Host(from) => {
                        let mut input = fs::File::open(from).map_err(host("opening", from))?;
                        let copied = io::copy(&mut input, &mut out).map_err(host("writing", &to))?;
                        if copied != file.size {
                            return Err(TreeError::Changed { path: from.clone(), expected: file.size, found: copied });
                        }
                    }
                }
                out.set_permissions(fs::Permissions::from_mode(mode)).map_err(host("changing", &to))?;
            }
            Node::HardLink(link) => {
                let from = target.join(std::ffi::OsStr::from_bytes(link));
                fs::hard_link(&from, &to).map_err(host("linking", &to))?;
            }
        }
    }
    Ok(())
}

/// Reads a package: its manifest, as [`write`](fn@write) wrote it, and the hash of what the base was made from.
///
/// # Errors
/// [`TreeError`] when it cannot be read.
pub fn read_package(path: &Path) -> Result<(Tree, String), TreeError> {
    let manifest: PathBuf = path.join(MANIFEST);
    let text = fs::read(&manifest).map_err(host("reading", &manifest))?;
    parse_package(path, &manifest, &text)
}

/// As [`read_package`], of a package that may lack files: what it should have is known, and that is all that is needed to take it away. Its manifest
/// stands for the bytes that are missing.
///
/// # Errors
/// [`TreeError`] when the manifest cannot be read.
pub fn read_damaged_package(path: &Path) -> Result<(Tree, String), TreeError> {
    const CONTENTS: &[u8] = b" contents=";
    let manifest: PathBuf = path.join(MANIFEST);
    let text = fs::read(&manifest).map_err(host("reading", &manifest))?;
    let mut whole = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let value = line.windows(CONTENTS.len()).position(|window| window == CONTENTS).map(|at| at.saturating_add(CONTENTS.len()));
        let (head, rest) = line.split_at(value.unwrap_or(line.len()));
        let (value, tail) = rest.split_at(rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len()));
        whole.extend_from_slice(head);
        // Names with escapes are no system's: those are left as they are.
        let is_missing = !value.is_empty() && !value.contains(&b'\\') && fs::symlink_metadata(OsStr::from_bytes(value)).is_err();
        whole.extend_from_slice(if is_missing { manifest.as_os_str().as_bytes() } else { value });
        whole.extend_from_slice(tail);
    }
    parse_package(path, &manifest, &whole)
}

fn parse_package(path: &Path, manifest: &Path, text: &[u8]) -> Result<(Tree, String), TreeError> {
    let name = manifest.to_string_lossy();
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let source = first.strip_prefix(SOURCE.as_bytes()).map(|source| String::from_utf8_lossy(source).into_owned()).unwrap_or_default();
    let options = ManifestOptions { name: &name, root: None, owners: &Owners::default(), time: TIME };
    let tree = Tree::read_manifest(text, &options)?;
    // Whoever sends a derivation may have written it.
    tree.confine(path.parent().unwrap_or(path))?;
    Ok((tree, source))
}
