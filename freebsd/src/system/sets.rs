//! FreeBSD's archives, `base.txz` and the like: a tar, plain or compressed with xz or zstd.
//!
//! A release is built without root, and its archives are made of a `METALOG`: they have the names of owners, with the numbers zero, and file flags as
//! `SCHILY.fflags`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use super::base::{LEFT_OUT, TIME};
use crate::tree::{Content, Entry, Node, Owners, Tree, normalise, parent, parse_flags, show};

/// What an xz file begins with.
const XZ: &[u8] = b"\xFD7zXZ\0";
/// What a zstd file begins with.
const ZSTD: &[u8] = b"\x28\xB5\x2F\xFD";
/// The most memory that an archive may ask for to be unpacked, in KiB.
const MEMORY: u32 = 512 * 1024;

/// What becomes of another name of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    /// A symbolic link to the first.
    Symbolic,
    /// A file with the same bytes.
    Files,
}

/// The names of the user and the group that a file belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// The user's.
    pub user: String,
    /// The group's.
    pub group: String,
}

/// Archives that are unpacked over each other.
#[derive(Debug, Default)]
pub struct Sets {
    tree: Tree,
    /// The names of users and groups, by path.
    owners: BTreeMap<Vec<u8>, Owned>,
}

impl Sets {
    /// Unpacks one more archive: its files go to the new directory `directory` under numbers, and the tree refers to them. Another name of a file
    /// becomes a symbolic link to the first, since a store does not keep hard links.
    ///
    /// # Errors
    /// What is wrong with the archive or the directory, in words.
    pub fn add(&mut self, archive: &Path, directory: &Path) -> Result<(), String> {
        let tree = unpack(archive, directory, &mut self.owners, Links::Symbolic)?;
        self.tree.overlay(tree).map_err(|error| error.to_string())
    }

    /// Adds files that were unpacked already, of which none is there yet but directories; `name` is whose they are.
    ///
    /// # Errors
    /// Which file is there twice, in words.
    pub fn add_files(&mut self, name: &str, tree: Tree, owners: BTreeMap<Vec<u8>, Owned>) -> Result<(), String> {
        for (path, entry) in tree.iter() {
            match self.tree.get(path) {
                Some(there) if there.node == Node::Dir && entry.node == Node::Dir => continue,
                Some(_) => return Err(format!("`{}' is in package {name} and in another; leave one of them out", show(path))),
                None => self.tree.replace_unlinked(path, entry.clone()).map_err(|error| error.to_string())?,
            }
        }
        self.owners.extend(owners);
        Ok(())
    }

    /// The files of all, without what a system makes for itself. A name of an owner goes before its number, where `etc/master.passwd` and `etc/group`
    /// of the archives have it.
    ///
    /// # Errors
    /// Which of these two cannot be read, in words.
    pub fn finish(mut self) -> Result<Tree, String> {
        let text = |path: &str| match self.tree.get(path).map(|entry| &entry.node) {
            Some(Node::File(file)) => match &file.content {
                Content::Host(from) => fs::read_to_string(from).map_err(|error| format!("`{path}': {error}")),
                Content::Bytes(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
            },
            _ => Ok(String::new()),
        };
        let known = Owners::parse(&text("etc/master.passwd")?, &text("etc/group")?);
        for (path, Owned { user, group }) in &self.owners {
            if let Some(entry) = self.tree.get_mut(path) {
                entry.uid = known.user(user).unwrap_or(entry.uid);
                entry.gid = known.group(group).unwrap_or(entry.gid);
            }
        }
        for path in LEFT_OUT {
            self.tree.remove(path);
        }
        self.tree.complete(&Entry::dir(0o755).time(TIME));
        Ok(self.tree)
    }
}

/// Opens an archive: what it holds unpacked, whichever way it is compressed.
///
/// # Errors
/// When it cannot be read, or begins as zstd and is something else.
pub(super) fn open(archive: &Path) -> io::Result<Box<dyn Read>> {
    let mut file = fs::File::open(archive)?;
    let mut magic = Vec::new();
    (&mut file).take(6).read_to_end(&mut magic)?;
    file.rewind()?;
    let file = BufReader::new(file);
    Ok(if magic == XZ {
        Box::new(lzma_rust2::XzReader::new_mem_limit(file, true, MEMORY))
    } else if magic.starts_with(ZSTD) {
        Box::new(Zstd(Some(ruzstd::decoding::StreamingDecoder::new(file).map_err(io::Error::other)?)))
    } else {
        Box::new(file)
    })
}

/// All frames of a zstd file; `None` after the last. The window of a frame has at most 128 MiB.
struct Zstd<R: Read>(Option<ruzstd::decoding::StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>);

impl<R: io::BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(frame) = &mut self.0 {
            let count = frame.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            if frame.get_mut().fill_buf()?.is_empty() {
                self.0 = None;
            } else if let Some(frame) = self.0.take() {
                self.0 = Some(ruzstd::decoding::StreamingDecoder::new(frame.into_inner()).map_err(io::Error::other)?);
            }
        }
        Ok(0)
    }
}

/// The tree in an archive; see [`Sets::add`]. `owners` are given the names of users and groups.
pub(super) fn unpack(archive: &Path, directory: &Path, owners: &mut BTreeMap<Vec<u8>, Owned>, links: Links) -> Result<Tree, String> {
    let told = |error: io::Error| format!("`{}': {error}", archive.display());
    let input = open(archive).map_err(told)?;
    fs::create_dir_all(directory).map_err(|error| format!("`{}': {error}", directory.display()))?;
    let mut tree = Tree::new();
    let mut archive_reader = tar::Archive::new(input);
    for (number, item) in archive_reader.entries().map_err(told)?.enumerate() {
        let mut item = item.map_err(told)?;
        let wrong = |what: &str, why: &dyn std::fmt::Display| format!("`{}': `{}': {why}", archive.display(), what);
        // What git archives begin with: the commit, and no entry.
        if item.header().entry_type() == tar::EntryType::XGlobalHeader {
            continue;
        }
        let path = normalise(&item.path_bytes()).map_err(|error| error.to_string())?;
        let name = show(&path);
        let number_of = |number: io::Result<u64>| number.ok().and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        let (uid, gid) = (number_of(item.header().uid()), number_of(item.header().gid()));
        let mode = (item.header().mode().map_err(told)? & 0o7777) as u16;
        let link = item.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default();
        let kind = item.header().entry_type();
        let named = |name: Option<&[u8]>| String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
        owners.insert(path.clone(), Owned { user: named(item.header().username_bytes()), group: named(item.header().groupname_bytes()) });
        let mut flags = 0;
        for extension in item.pax_extensions().map_err(told)?.into_iter().flatten() {
            let extension = extension.map_err(told)?;
            if extension.key_bytes() == b"SCHILY.fflags" {
                let words = String::from_utf8_lossy(extension.value_bytes());
                flags = parse_flags(&words).map_err(|flag| wrong(&name, &format!("`{flag}' is no file flag")))?;
            }
        }
        let entry = match kind {
            tar::EntryType::Directory => Entry::dir(mode),
            tar::EntryType::Symlink => Entry::symlink(link),
            tar::EntryType::Link => {
                let target = normalise(&link).map_err(|error| wrong(&name, &error))?;
                match (tree.get(&target), links) {
                    (None, _) => return Err(wrong(&name, &"is another name of what is not there")),
                    (Some(_), Links::Symbolic) => Entry::symlink(relative(&path, &target)),
                    (Some(first), Links::Files) if first.node != Node::Dir => first.clone(),
                    (Some(_), Links::Files) => return Err(wrong(&name, &"is another name of a directory")),
                }
            }
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let to = directory.join(number.to_string());
                let mut out = fs::File::create_new(&to).map_err(|error| wrong(&name, &error))?;
                let size = io::copy(&mut item, &mut out).map_err(|error| wrong(&name, &error))?;
                Entry::host_file(mode, to, size)
            }
            other => return Err(wrong(&name, &format!("entries of type {other:?} are not known"))),
        };
        tree.replace_unlinked(&path, Entry { flags, ..entry.owner(uid, gid).time(TIME) }).map_err(|error| error.to_string())?;
    }
    Ok(tree)
}

/// The symbolic link that leads from the entry `from` to `to`.
pub(super) fn relative(from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut above: Vec<u8> = parent(from).unwrap_or_default().to_vec();
    let mut link = Vec::new();
    while !above.is_empty() && !to.strip_prefix(above.as_slice()).is_some_and(|rest| rest.starts_with(b"/")) {
        above = parent(&above).unwrap_or_default().to_vec();
        link.extend_from_slice(b"../");
    }
    let rest = if above.is_empty() { to } else { to.get(above.len() + 1..).unwrap_or_default() };
    link.extend_from_slice(rest);
    link
}
