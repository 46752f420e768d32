//! A tree of files as data: what a root file system, an image or a package is composed from.
//!
//! A [`Tree`] is a set of [`Entry`]s by path, sorted by the bytes of the path, with owners, modes, times and flags that the machine which
//! composes it need not be able to give to its own files. Contents stay where they are (a path on this machine) or are small bytes; a tree costs
//! memory for its entries, never for what is in the files.
//!
//! Trees come from code ([`Tree::insert`]), from a directory ([`Tree::from_directory`]), or from a manifest in the language of mtree(5)
//! ([`Tree::read_manifest`]), among them the `METALOG` that FreeBSD's `installworld -DNO_ROOT` writes. They are put together with
//! [`Tree::merge`] (nothing may differ), [`Tree::overlay`] (the later one counts) and [`Tree::graft`] (below a directory), looked over with
//! [`Tree::check`], and written down with [`Tree::write_manifest`].
//!
//! Facts: mtree(5), vis(3), chflags(1), `sys/stat.h`, `sys/syslimits.h` of FreeBSD 15.1.

use std::collections::btree_map;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// No more entries than this in a tree: a manifest without end does not fill the memory.
pub const MAX_ENTRIES: usize = 1 << 24;
/// The longest name in a directory, in bytes (`NAME_MAX`).
pub const MAX_NAME: usize = 255;
/// The longest path of an entry, in bytes.
pub const MAX_PATH: usize = 4095;
/// The longest target of a symbolic link, in bytes (`PATH_MAX` less its NUL).
pub const MAX_TARGET: usize = 1023;
/// The most bytes of a file whose content stands in the manifest itself.
pub const MAX_INLINE: usize = 1 << 20;
/// The longest line of a manifest: inline content with every byte escaped, and the rest.
const MAX_LINE: u64 = (MAX_INLINE as u64) * 4 + 65536;

/// What is wrong with a tree, a manifest or a directory. Nothing has been changed on the disk: trees are only read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A path cannot be an entry's: give another one.
    #[error("`{path}': {why}")]
    Path {
        /// The path, as far as it can be shown.
        path: String,
        /// What it breaks.
        why: &'static str,
    },
    /// Two trees say different things about one path, or a hard link, a parent or a target is not what it must be.
    #[error("`{path}': {why}")]
    Conflict {
        /// The path.
        path: String,
        /// The two sides.
        why: String,
    },
    /// Users and groups of a machine do not go together with those of a system: correct what is named. Nothing was changed.
    #[error("{why}")]
    Accounts {
        /// File, line, what is wrong and what to do.
        why: String,
    },
    /// A line of a manifest cannot be understood: nothing of the manifest is taken.
    #[error("{name}:{line}: {why}")]
    Manifest {
        /// The manifest, as the caller calls it.
        name: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// More entries than [`MAX_ENTRIES`].
    #[error("more than {MAX_ENTRIES} entries")]
    Entries,
    /// The host's files could not be read.
    #[error("{doing} `{}': {source}", path.display())]
    Host {
        /// What was being done.
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A file is no longer as long as it was when the tree was composed: somebody changes it. Compose the tree anew.
    #[error("`{}' changed while it was read: {found} bytes where there were {expected}", path.display())]
    Changed {
        /// The file on this machine.
        path: PathBuf,
        /// Its size when the tree was composed.
        expected: u64,
        /// Its size now.
        found: u64,
    },
}

/// A [`TreeError`], unless said otherwise.
pub type Result<T, E = TreeError> = std::result::Result<T, E>;

/// A point in time: seconds since 1970, and nanoseconds below 1,000,000,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Time {
    /// A whole second.
    #[must_use]
    pub const fn seconds(seconds: i64) -> Time {
        Time { seconds, nanoseconds: 0 }
    }
}

/// Where the bytes of a file are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In a file of this machine, which is opened when it is written; it must not change until then.
    Host(PathBuf),
    /// Here.
    Bytes(Arc<[u8]>),
}

/// A regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where its bytes are.
    pub content: Content,
    /// How many there are.
    pub size: u64,
    /// Whether blocks of zeros become holes (as they do unless said otherwise: the result depends on the bytes alone). False for a file that
    /// must own its blocks, such as one to swap to.
    pub sparse: bool,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Dir,
    /// A regular file.
    File(File),
    /// A symbolic link, with its target, 1 to [`MAX_TARGET`] bytes.
    Symlink(Vec<u8>),
    /// Another name of the regular file at that path of the same tree; the file's own entry has mode, owner and all.
    HardLink(Vec<u8>),
}

impl Node {
    /// Its name in a manifest (`type=`).
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Node::Dir => "dir",
            Node::File(_) => "file",
            Node::Symlink(_) => "link",
            Node::HardLink(_) => "hard",
        }
    }
}

/// One path's entry. Of a [`Node::HardLink`] only the node counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The permission bits with setuid, setgid and sticky: `0o7777` at most.
    pub mode: u16,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// When the content last changed; the other times of an image are this one, too.
    pub mtime: Time,
    /// File flags as in chflags(2): see [`FLAGS`].
    pub flags: u32,
    /// What it is.
    pub node: Node,
}

impl Entry {
    /// A node of root and wheel at the beginning of time; set the rest with [`owner`](Entry::owner), [`time`](Entry::time).
    #[must_use]
    pub fn new(mode: u16, node: Node) -> Entry {
        Entry { mode, uid: 0, gid: 0, mtime: Time::default(), flags: 0, node }
    }

    /// A directory.
    #[must_use]
    pub fn dir(mode: u16) -> Entry {
        Entry::new(mode, Node::Dir)
    }

    /// A file with these bytes.
    #[must_use]
    pub fn file(mode: u16, bytes: impl Into<Arc<[u8]>>) -> Entry {
        let bytes = bytes.into();
        Entry::new(mode, Node::File(File { size: bytes.len() as u64, content: Content::Bytes(bytes), sparse: true }))
    }

    /// A file with the bytes of a file of this machine, `size` of them.
    #[must_use]
    pub fn host_file(mode: u16, path: impl Into<PathBuf>, size: u64) -> Entry {
        Entry::new(mode, Node::File(File { content: Content::Host(path.into()), size, sparse: true }))
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(target: impl Into<Vec<u8>>) -> Entry {
        Entry::new(0o755, Node::Symlink(target.into()))
    }

    /// Another name of the file at `path` of the tree.
    #[must_use]
    pub fn hard_link(path: impl Into<Vec<u8>>) -> Entry {
        Entry::new(0, Node::HardLink(path.into()))
    }

    /// The same with another owner.
    #[must_use]
    pub fn owner(self, uid: u32, gid: u32) -> Entry {
        Entry { uid, gid, ..self }
    }

    /// The same with another time.
    #[must_use]
    pub fn time(self, mtime: Time) -> Entry {
        Entry { mtime, ..self }
    }
}

/// File flags: a name and its bit (`sys/stat.h`), the name that is printed first of its kind; `no` before a name takes the bit away.
pub const FLAGS: &[(&str, u32)] = &[
    ("nodump", 0x1),
    ("uchg", 0x2),
    ("uchange", 0x2),
    ("uimmutable", 0x2),
    ("uappnd", 0x4),
    ("uappend", 0x4),
    ("opaque", 0x8),
    ("uunlnk", 0x10),
    ("uunlink", 0x10),
    ("usystem", 0x80),
    ("system", 0x80),
    ("usparse", 0x100),
    ("sparse", 0x100),
    ("uoffline", 0x200),
    ("offline", 0x200),
    ("ureparse", 0x400),
    ("reparse", 0x400),
    ("uarch", 0x800),
    ("uarchive", 0x800),
    ("urdonly", 0x1000),
    ("rdonly", 0x1000),
    ("readonly", 0x1000),
    ("uhidden", 0x8000),
    ("hidden", 0x8000),
    ("arch", 0x1_0000),
    ("archived", 0x1_0000),
    ("schg", 0x2_0000),
    ("schange", 0x2_0000),
    ("simmutable", 0x2_0000),
    ("sappnd", 0x4_0000),
    ("sappend", 0x4_0000),
    ("sunlnk", 0x10_0000),
    ("sunlink", 0x10_0000),
];

/// Who the names of owners are: numbers by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owners {
    users: HashMap<String, u32>,
    groups: HashMap<String, u32>,
}

/// File flags of words such as `schg,nodump`.
///
/// # Errors
/// The word that is none.
pub fn parse_flags(words: &str) -> std::result::Result<u32, String> {
    manifest::parse_flags(words)
}

impl Owners {
    /// The number of a user.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<u32> {
        self.users.get(name).copied()
    }

    /// The number of a group.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups.get(name).copied()
    }

    /// From the texts of `master.passwd` (or `passwd`) and `group`. Lines without a name and a number are passed over.
    #[must_use]
    pub fn parse(passwd: &str, group: &str) -> Owners {
        let numbers = |text: &str| {
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(|line| {
                    let mut fields = line.split(':');
                    let name = fields.next()?;
                    Some((name.to_owned(), fields.nth(1)?.parse().ok()?))
                })
                .collect()
        };
        Owners { users: numbers(passwd), groups: numbers(group) }
    }

    /// From `master.passwd` and `group` in a directory, as makefs(8) has it with `-N`.
    ///
    /// # Errors
    /// [`TreeError::Host`] when a file cannot be read.
    pub fn from_directory(etc: &Path) -> Result<Owners> {
        let read = |name| {
            let path = etc.join(name);
            fs::read_to_string(&path).map_err(host("reading", &path))
        };
        Ok(Owners::parse(&read("master.passwd")?, &read("group")?))
    }
}

/// How [`Tree::read_manifest`] reads.
#[derive(Debug, Clone)]
pub struct ManifestOptions<'a> {
    /// What the manifest is called in errors.
    pub name: &'a str,
    /// The directory with the files that the manifest lists, where a line has no `contents=` or `data=` of its own. Without one, every file
    /// needs one of those.
    pub root: Option<&'a Path>,
    /// Who names of owners are.
    pub owners: &'a Owners,
    /// The time of what has no `time=`.
    pub time: Time,
}

/// How [`Tree::from_directory`] reads.
#[derive(Debug, Clone, Copy, Default)]
pub struct DirectoryOptions {
    /// Owner and group of everything; without them, those of the files.
    pub owner: Option<(u32, u32)>,
    /// The time of everything; without it, those of the files.
    pub time: Option<Time>,
    /// The name of what is passed over, wherever it is.
    pub without: Option<&'static [u8]>,
}

/// Entries by path. Paths are bytes without a slash at either end; the root's is empty. The order is that of the paths' bytes, so a directory
/// always comes before what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<Vec<u8>, Entry>,
}

impl Tree {
    /// An empty tree, without even a root.
    #[must_use]
    pub fn new() -> Tree {
        Tree::default()
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry at a path, which may be written with a slash or `./` before it.
    #[must_use]
    pub fn get(&self, path: impl AsRef<[u8]>) -> Option<&Entry> {
        self.entries.get(&normalise(path.as_ref()).ok()?)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, path: impl AsRef<[u8]>) -> Option<&mut Entry> {
        self.entries.get_mut(&normalise(path.as_ref()).ok()?)
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_slice(), entry))
    }

    /// All entries in order, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&[u8], &mut Entry)> {
        self.entries.iter_mut().map(|(path, entry)| (path.as_slice(), entry))
    }

    /// Adds an entry. Parents need not be there yet: see [`Tree::complete`].
    ///
    /// # Errors
    /// [`TreeError::Path`] for a path that cannot be, [`TreeError::Conflict`] when the path is taken (whatever by), [`TreeError::Entries`].
    pub fn insert(&mut self, path: impl AsRef<[u8]>, entry: Entry) -> Result<()> {
        let (path, entry) = checked(path.as_ref(), entry)?;
        if let Some(there) = self.entries.get(&path) {
            return Err(conflict(&path, format!("is already there as a {}", there.node.kind())));
        }
        self.put(path, entry)
    }

    /// Adds an entry, or puts it in the place of the one that is there. Should that one be a file with other names, the first of these becomes
    /// the file's own.
    ///
    /// # Errors
    /// As [`Tree::insert`]; [`TreeError::Conflict`] when it would replace a directory that is not empty with something else.
    pub fn replace(&mut self, path: impl AsRef<[u8]>, entry: Entry) -> Result<()> {
        let (path, entry) = checked(path.as_ref(), entry)?;
        let targets = self.link_targets();
        self.replace_checked(path, entry, &targets)
    }

    /// [`Tree::replace`] for a tree without hard links: it need not look at all entries for other names of what it replaces.
    pub(crate) fn replace_unlinked(&mut self, path: &[u8], entry: Entry) -> Result<()> {
        let (path, entry) = checked(path, entry)?;
        self.replace_checked(path, entry, &BTreeSet::new())
    }

    fn replace_checked(&mut self, path: Vec<u8>, entry: Entry, targets: &BTreeSet<Vec<u8>>) -> Result<()> {
        if matches!(self.entries.get(&path), Some(Entry { node: Node::Dir, .. })) && entry.node != Node::Dir && self.has_children(&path) {
            return Err(conflict(&path, format!("a {} cannot take the place of a directory that is not empty", entry.node.kind())));
        }
        if targets.contains(&path) && !matches!(&entry.node, Node::HardLink(_)) {
            self.hand_over(&path);
        }
        self.put(path, entry)
    }

    fn put(&mut self, path: Vec<u8>, entry: Entry) -> Result<()> {
        self.entries.insert(path, entry);
        if self.entries.len() > MAX_ENTRIES { Err(TreeError::Entries) } else { Ok(()) }
    }

    fn link_targets(&self) -> BTreeSet<Vec<u8>> {
        let target = |entry: &Entry| if let Node::HardLink(target) = &entry.node { Some(target.clone()) } else { None };
        self.entries.values().filter_map(target).collect()
    }

    /// Makes the first other name of a file the file's own.
    fn hand_over(&mut self, path: &[u8]) {
        let mut names = self.entries.iter_mut().filter(|(_, entry)| matches!(&entry.node, Node::HardLink(target) if target == path));
        let Some((first, _)) = names.next() else { return };
        let first = first.clone();
        for (_, entry) in names {
            entry.node = Node::HardLink(first.clone());
        }
        if let Some(file) = self.entries.remove(path) {
            self.entries.insert(first, file);
        }
    }

    /// The entries of a directory, in order of their names; not those further below.
    pub fn children_of<'a>(&'a self, path: &[u8]) -> impl Iterator<Item = (&'a [u8], &'a Entry)> + use<'a> {
        let start = if path.is_empty() { 0 } else { path.len() + 1 };
        let within = self.children(path).map(|(path, entry)| (path.as_slice(), entry));
        within.filter(move |(path, _)| !path.get(start..).unwrap_or_default().contains(&b'/'))
    }

    fn has_children(&self, path: &[u8]) -> bool {
        self.children(path).next().is_some()
    }

    /// Everything strictly below a directory.
    fn children<'a>(&'a self, path: &[u8]) -> btree_map::Range<'a, Vec<u8>, Entry> {
        use std::ops::Bound::{Excluded, Unbounded};
        if path.is_empty() {
            return self.entries.range::<Vec<u8>, _>((Excluded(Vec::new()), Unbounded));
        }
        // `/` is followed by `0`.
        let (mut from, mut to) = (path.to_vec(), path.to_vec());
        from.push(b'/');
        to.push(b'0');
        self.entries.range(from..to)
    }

    /// Takes an entry away with all that is below it. A file with other names that stay lives on under the first of those.
    pub fn remove(&mut self, path: impl AsRef<[u8]>) {
        let Ok(path) = normalise(path.as_ref()) else { return };
        let mut doomed: Vec<_> = self.children(&path).map(|(path, _)| path.clone()).collect();
        doomed.push(path);
        // Names before files: a file that is handed over goes to a name that stays.
        let (names, others): (Vec<_>, Vec<_>) =
            doomed.into_iter().partition(|path| matches!(self.entries.get(path), Some(Entry { node: Node::HardLink(_), .. })));
        for path in names {
            self.entries.remove(&path);
        }
        let targets = self.link_targets();
        for path in others {
            if targets.contains(&path) {
                self.hand_over(&path);
            }
            self.entries.remove(&path);
        }
    }

    /// Adds another tree; where both have a path, both must say the same of it.
    ///
    /// # Errors
    /// [`TreeError::Conflict`] names the first path of which they do not, and how they differ. The tree is then half merged: drop it.
    pub fn merge(&mut self, other: Tree) -> Result<()> {
        for (path, entry) in other.entries {
            match self.entries.get(&path) {
                Some(there) if *there == entry => {}
                Some(there) => return Err(conflict(&path, difference(there, &entry))),
                None => self.put(path, entry)?,
            }
        }
        Ok(())
    }

    /// Adds another tree; where both have a path, the other one counts.
    ///
    /// # Errors
    /// [`TreeError::Conflict`] when a directory that is not empty would become something else.
    pub fn overlay(&mut self, other: Tree) -> Result<()> {
        let targets = self.link_targets();
        for (path, entry) in other.entries {
            self.replace_checked(path, entry, &targets)?;
        }
        Ok(())
    }

    /// Adds another tree below a directory, as [`Tree::merge`] does; hard links are moved along. The other tree's root becomes the entry at
    /// `path` itself.
    ///
    /// # Errors
    /// As [`Tree::merge`]; [`TreeError::Path`] when a path becomes too long.
    pub fn graft(&mut self, path: impl AsRef<[u8]>, other: Tree) -> Result<()> {
        let base = normalise(path.as_ref())?;
        let moved = |path: &[u8]| {
            let mut moved = base.clone();
            if !moved.is_empty() && !path.is_empty() {
                moved.push(b'/');
            }
            moved.extend_from_slice(path);
            normalise(&moved)
        };
        let mut tree = Tree::new();
        for (path, mut entry) in other.entries {
            if let Node::HardLink(target) = &mut entry.node {
                *target = moved(target)?;
            }
            tree.entries.insert(moved(&path)?, entry);
        }
        self.merge(tree)
    }

    /// Adds the directories that are missing above entries, and the root, each like `directory` (its node is taken to be a directory).
    pub fn complete(&mut self, directory: &Entry) {
        let directory = Entry { node: Node::Dir, ..directory.clone() };
        let mut missing = BTreeSet::new();
        missing.insert(Vec::new());
        for path in self.entries.keys() {
            let mut at = parent(path);
            while let Some(path) = at {
                if self.entries.contains_key(path) || !missing.insert(path.to_vec()) {
                    break;
                }
                at = parent(path);
            }
        }
        for path in missing {
            self.entries.entry(path).or_insert_with(|| directory.clone());
        }
    }

    /// Refuses a tree whose bytes are anywhere but below the directory `dir`, links followed: what a manifest that somebody else wrote may name.
    ///
    /// # Errors
    /// [`TreeError::Conflict`] with the first path that is not right, [`TreeError::Host`].
    pub fn confine(&self, dir: &Path) -> Result<()> {
        let dir = dir.canonicalize().map_err(host("looking at", dir))?;
        for (path, entry) in &self.entries {
            if let Node::File(File { content: Content::Host(source), .. }) = &entry.node
                && !source.canonicalize().map_err(host("looking at", source))?.starts_with(&dir)
            {
                return Err(conflict(
                    path,
                    format!("its bytes are to come from `{}', which is not below `{}'", source.display(), dir.display()),
                ));
            }
        }
        Ok(())
    }

    /// Whether all that must hold does: there is a root, every parent is a directory, and every hard link names a regular file's own entry.
    ///
    /// # Errors
    /// [`TreeError::Conflict`] with the first path that is not right.
    pub fn check(&self) -> Result<()> {
        if !self.entries.contains_key(&[][..]) {
            return Err(conflict(b"", "there is no root".into()));
        }
        for (path, entry) in &self.entries {
            if let Some(above) = parent(path) {
                match self.entries.get(above) {
                    Some(Entry { node: Node::Dir, .. }) => {}
                    Some(other) => return Err(conflict(path, format!("is below a {}", other.node.kind()))),
                    None => return Err(conflict(path, "its directory is not in the tree".into())),
                }
            } else if entry.node != Node::Dir {
                return Err(conflict(path, "the root is no directory".into()));
            }
            if let Node::HardLink(target) = &entry.node {
                match self.entries.get(target) {
                    Some(Entry { node: Node::File(_), .. }) => {}
                    Some(other) => return Err(conflict(path, format!("is a hard link to a {}, `{}'", other.node.kind(), show(target)))),
                    None => return Err(conflict(path, format!("is a hard link to `{}', which is not there", show(target)))),
                }
            }
        }
        Ok(())
    }

    /// Makes the first name in order of each file with several its own, so that equal trees are equal.
    pub fn order_links(&mut self) {
        let mut files: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
        for (path, entry) in &self.entries {
            if let Node::HardLink(target) = &entry.node {
                files.entry(target.clone()).or_default().push(path.clone());
            }
        }
        for (own, mut names) in files {
            let Some(first) = names.first().filter(|first| **first < own).cloned() else { continue };
            let Some(file) = self.entries.remove(&own) else { continue };
            names.push(own);
            for name in names {
                self.entries.insert(name, Entry::hard_link(first.clone()));
            }
            self.entries.insert(first, file);
        }
    }

    /// Reads a directory of this machine: everything below it, with hard links found by their inode numbers, without following symbolic
    /// links. File flags are not read (Linux has none of these), so that both systems give the same tree.
    ///
    /// # Errors
    /// [`TreeError::Host`] when something cannot be read, [`TreeError::Conflict`] for what is neither file, directory nor symbolic link.
    pub fn from_directory(root: &Path, options: DirectoryOptions) -> Result<Tree> {
        let mut tree = Tree::new();
        let mut inodes = BTreeMap::new();
        let mut pending = vec![Vec::new()];
        while let Some(path) = pending.pop() {
            let at = below(root, &path);
            let metadata = fs::symlink_metadata(&at).map_err(host("looking at", &at))?;
            let kind = metadata.file_type();
            let node = if kind.is_dir() {
                for found in fs::read_dir(&at).map_err(host("reading", &at))? {
                    let found = found.map_err(host("reading", &at))?;
                    if options.without.is_some_and(|name| name == found.file_name().as_bytes()) {
                        continue;
                    }
                    let mut child = path.clone();
                    if !child.is_empty() {
                        child.push(b'/');
                    }
                    child.extend_from_slice(found.file_name().as_bytes());
                    pending.push(child);
                }
                Node::Dir
            } else if kind.is_file() {
                if metadata.nlink() > 1 {
                    inodes.insert(path.clone(), (metadata.dev(), metadata.ino()));
                }
                Node::File(File { size: metadata.len(), content: Content::Host(at.clone()), sparse: true })
            } else if kind.is_symlink() {
                Node::Symlink(fs::read_link(&at).map_err(host("reading", &at))?.into_os_string().as_bytes().to_vec())
            } else {
                return Err(conflict(
                    &path,
                    "is a device, a socket or a pipe, which neither images nor sources have: devfs and programs make them".into(),
                ));
            };
            let (uid, gid) = options.owner.unwrap_or((metadata.uid(), metadata.gid()));
            let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
            let mtime = options.time.unwrap_or(Time { seconds: metadata.mtime(), nanoseconds });
            #[allow(clippy::cast_possible_truncation)] // Masked.
            let mode = (metadata.mode() & 0o7777) as u16;
            tree.insert(&path, Entry { mode, uid, gid, mtime, flags: 0, node })?;
        }
        tree.link(inodes);
        Ok(tree)
    }

    /// Makes hard links of files that are one inode; the first path is the file's own.
    fn link(&mut self, inodes: BTreeMap<Vec<u8>, (u64, u64)>) {
        let mut first: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
        for (path, inode) in inodes {
            if let Some(target) = first.get(&inode) {
                self.entries.insert(path, Entry::hard_link(target.clone()));
            } else {
                first.insert(inode, path);
            }
        }
    }

    /// Reads a manifest as mtree(5) describes it: `/set` and `/unset`, paths relative to the last directory (`..` leaves it) or with a slash
    /// in them, continued lines, comments, names escaped as vis(3) does. Known keywords are `type` (`dir`, `file`, `link`, and `hard` for a hard
    /// link), `mode` (octal), `uid`, `gid`, `uname`, `gname`, `time`, `flags`, `link`, `contents` (the file with the bytes), `data` (the bytes
    /// themselves, escaped) and `tags`, of which only `dense` counts (the file gets no holes). Others, `size` and digests among them, are
    /// passed over. The last line about a path counts. Files of `root` that are one inode become hard links.
    ///
    /// # Errors
    /// [`TreeError::Manifest`] with the line; [`TreeError::Host`] when a listed file cannot be looked at.
    pub fn read_manifest(input: impl BufRead, options: &ManifestOptions<'_>) -> Result<Tree> {
        manifest::read(input, options, false)
    }

    /// Reads a manifest only for what its entries are like: of files the kind, mode, owner and flags count, which need not be there. They are said to
    /// have no bytes.
    ///
    /// # Errors
    /// [`TreeError::Manifest`] with the line.
    pub fn read_attributes(input: impl BufRead, options: &ManifestOptions<'_>) -> Result<Tree> {
        manifest::read(input, options, true)
    }

    /// Writes the manifest of the tree, one line an entry, which [`Tree::read_manifest`] reads back to an equal tree.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write_manifest(&self, output: &mut impl Write) -> io::Result<()> {
        manifest::write(self, output)
    }
}

/// The path of an entry from what somebody wrote: without `.` and empty parts.
///
/// # Errors
/// [`TreeError::Path`] for `..`, NUL, and what is too long.
pub fn normalise(path: &[u8]) -> Result<Vec<u8>> {
    let wrong = |why| Err(TreeError::Path { path: show(path), why });
    let mut result = Vec::with_capacity(path.len());
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return wrong("`..' leads out of the tree"),
            _ if part.len() > MAX_NAME => return wrong("a name has more than 255 bytes"),
            _ if part.contains(&0) => return wrong("a name has a NUL in it"),
            _ => {}
        }
        if !result.is_empty() {
            result.push(b'/');
        }
        result.extend_from_slice(part);
    }
    if result.len() > MAX_PATH { wrong("more than 4095 bytes") } else { Ok(result) }
}

/// The path of the directory that an entry is in; the root is in none.
#[must_use]
pub fn parent(path: &[u8]) -> Option<&[u8]> {
    if path.is_empty() {
        return None;
    }
    Some(path.iter().rposition(|&byte| byte == b'/').and_then(|slash| path.get(..slash)).unwrap_or(&[]))
}

/// The last part of a path: the entry's name in its directory.
#[must_use]
pub fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}

impl Content {
    /// The bytes, from the first.
    ///
    /// # Errors
    /// [`TreeError::Host`] when a file cannot be opened, [`TreeError::Changed`] when it has not `size` bytes.
    pub fn open(&self, size: u64) -> Result<Reader<'_>> {
        match self {
            Content::Bytes(bytes) => Ok(Reader::Bytes(bytes)),
            Content::Host(path) => {
                let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path).map_err(host("opening", path))?;
                let found = file.metadata().map_err(host("looking at", path))?.len();
                if found != size {
                    return Err(TreeError::Changed { path: path.clone(), expected: size, found });
                }
                Ok(Reader::File { file, path, position: 0, size })
            }
        }
    }
}

/// The bytes of a file while they are read.
#[derive(Debug)]
pub enum Reader<'a> {
    /// What is left of bytes in memory.
    Bytes(&'a [u8]),
    /// A file of this machine.
    File {
        /// The file.
        file: fs::File,
        /// Its path, for errors.
        path: &'a Path,
        /// How much has been read.
        position: u64,
        /// How many bytes it had when it was opened.
        size: u64,
    },
}

impl Reader<'_> {
    /// Fills the buffer with the next bytes.
    ///
    /// # Errors
    /// [`TreeError::Host`], and [`TreeError::Changed`] when there are fewer.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        match self {
            Reader::Bytes(bytes) => {
                let taken = bytes.split_off(..buffer.len()).unwrap_or_default();
                buffer.get_mut(..taken.len()).unwrap_or_default().copy_from_slice(taken);
                Ok(())
            }
            Reader::File { file, path, position, size } => match file.read_exact(buffer) {
                Ok(()) => {
                    *position += buffer.len() as u64;
                    Ok(())
                }
                Err(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                    let found = file.metadata().map_or(0, |metadata| metadata.len());
                    Err(TreeError::Changed { path: path.to_path_buf(), expected: *size, found })
                }
                Err(source) => Err(TreeError::Host { doing: "reading", path: path.to_path_buf(), source }),
            },
        }
    }

    /// Goes over zeros that need not be read since the host's file has a hole there: a multiple of `unit` bytes, at most `limit` (a multiple,
    /// too). Returns how many.
    ///
    /// # Errors
    /// [`TreeError::Host`].
    pub fn skip_hole(&mut self, unit: u64, limit: u64) -> Result<u64> {
        use nix::unistd::{Whence, lseek};
        let Reader::File { file, path, position, size } = self else { return Ok(0) };
        let seek = |to: u64, whence| lseek(&*file, i64::try_from(to).unwrap_or(i64::MAX), whence);
        let end = match seek(*position, Whence::SeekData) {
            Ok(end) => u64::try_from(end).unwrap_or(*position),
            Err(nix::errno::Errno::ENXIO) => *size,
            // A file system that does not know its holes has none.
            Err(_) => *position,
        };
        let skipped = (end.saturating_sub(*position) / unit.max(1) * unit).min(limit);
        *position += skipped;
        seek(*position, Whence::SeekSet).map_err(|source| TreeError::Host {
            doing: "reading",
            path: path.to_path_buf(),
            source: source.into(),
        })?;
        Ok(skipped)
    }

    /// Gives the next `total` bytes to `take`, in order, in pieces of at most `unit` bytes, but for zeros of which the host's file has a hole: these are
    /// not read.
    ///
    /// # Errors
    /// [`TreeError::Host`], [`TreeError::Changed`], and what `take` says.
    pub fn pieces<E: From<TreeError>>(
        &mut self,
        unit: u64,
        total: u64,
        mut take: impl FnMut(Piece<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let unit = unit.max(1);
        let mut block = vec![0; usize::try_from(unit).unwrap_or(0)];
        let (mut left, mut zeros) = (total, true);
        while left > 0 {
            if zeros {
                let skipped = self.skip_hole(unit, left / unit * unit)?;
                if skipped > 0 {
                    take(Piece::Zeros(skipped))?;
                }
                left -= skipped;
            }
            let data = block.get_mut(..usize::try_from(left.min(unit)).unwrap_or(0)).unwrap_or_default();
            if !data.is_empty() {
                self.fill(data)?;
                left -= data.len() as u64;
                zeros = is_zero(data);
                take(if zeros { Piece::Zeros(data.len() as u64) } else { Piece::Data(data) })?;
            }
        }
        Ok(())
    }
}

/// Whether there are only zeros.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| chunk == &[0; 64]) && rest.iter().all(|&byte| byte == 0)
}

/// What [`Reader::pieces`] gives out.
#[derive(Debug)]
pub enum Piece<'b> {
    /// So many zeros.
    Zeros(u64),
    /// These bytes, not all of them zero.
    Data(&'b [u8]),
}

impl Piece<'_> {
    /// Gives its bytes to `take`, zeros too, of which there may be more than fit in memory: for what cannot skip any.
    ///
    /// # Errors
    /// What `take` says.
    pub fn bytes<E>(&self, mut take: impl FnMut(&[u8]) -> std::result::Result<(), E>) -> std::result::Result<(), E> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let mut left = match self {
            Piece::Data(bytes) => return take(bytes),
            Piece::Zeros(count) => *count,
        };
        while left > 0 {
            let zeros = ZEROS.get(..usize::try_from(left).unwrap_or(ZEROS.len())).unwrap_or(&ZEROS);
            take(zeros)?;
            left -= zeros.len() as u64;
        }
        Ok(())
    }
}

fn checked(path: &[u8], mut entry: Entry) -> Result<(Vec<u8>, Entry)> {
    let wrong = |why| Err(TreeError::Path { path: show(path), why });
    if entry.mode & !0o7777 != 0 {
        return wrong("the mode has more than permission bits");
    }
    if entry.mtime.nanoseconds >= 1_000_000_000 {
        return wrong("the time has more than 999,999,999 nanoseconds");
    }
    match &mut entry.node {
        Node::Symlink(target) if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) => {
            return wrong("the target of the symbolic link is empty, has more than 1023 bytes, or a NUL in it");
        }
        Node::File(File { content: Content::Bytes(bytes), size, .. }) if bytes.len() as u64 != *size => {
            return wrong("the size is not that of the content");
        }
        // All else is the file's.
        Node::HardLink(target) => entry = Entry::hard_link(normalise(target)?),
        _ => {}
    }
    Ok((normalise(path)?, entry))
}

fn difference(one: &Entry, other: &Entry) -> String {
    if one.node.kind() != other.node.kind() {
        return format!("a {} in one tree, a {} in another", one.node.kind(), other.node.kind());
    }
    let mut words = Vec::new();
    if one.mode != other.mode {
        words.push(format!("mode {:04o} and {:04o}", one.mode, other.mode));
    }
    if (one.uid, one.gid) != (other.uid, other.gid) {
        words.push(format!("owner {}:{} and {}:{}", one.uid, one.gid, other.uid, other.gid));
    }
    if one.mtime != other.mtime {
        words.push(format!("time {} and {}", one.mtime.seconds, other.mtime.seconds));
    }
    if one.flags != other.flags {
        words.push(format!("flags {:#x} and {:#x}", one.flags, other.flags));
    }
    if one.node != other.node {
        words.push("content".to_owned());
    }
    format!("trees differ in {}", words.join(", "))
}

/// A path for people: what is not UTF-8 is shown as well as can be.
pub fn show(path: &[u8]) -> String {
    if path.is_empty() { "/".to_owned() } else { String::from_utf8_lossy(path).into_owned() }
}

fn conflict(path: &[u8], why: String) -> TreeError {
    TreeError::Conflict { path: show(path), why }
}

fn host(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    move |source| TreeError::Host { doing, path: path.to_owned(), source }
}

fn below(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() { root.to_owned() } else { root.join(OsStr::from_bytes(path)) }
}

mod manifest {
    //! The text form.

    use super::*;

    /// What a line, or `/set`, says.
    type Keywords = BTreeMap<String, Vec<u8>>;

    pub(super) fn read(mut input: impl BufRead, options: &ManifestOptions<'_>, attributes: bool) -> Result<Tree> {
        let mut tree = Tree::new();
        let mut inodes = BTreeMap::new();
        let mut defaults = Keywords::new();
        let mut directory: Vec<u8> = Vec::new();
        let mut number = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            let wrong = |line: usize, why: String| TreeError::Manifest { name: options.name.to_owned(), line, why };
            let first = number + 1;
            loop {
                let before = line.len();
                let read = (&mut input).take(MAX_LINE).read_until(b'\n', &mut line).map_err(host("reading", Path::new(options.name)))?;
                number += 1;
                if read == 0 {
                    break;
                }
                if line.last() == Some(&b'\n') {
                    line.pop();
                } else if read as u64 == MAX_LINE {
                    return Err(wrong(number, "the line is too long".into()));
                }
                if line.len() > before && line.last() == Some(&b'\\') {
                    line.pop();
                    line.push(b' ');
                    if line.len() as u64 > MAX_LINE {
                        return Err(wrong(number, "the line is too long".into()));
                    }
                    continue;
                }
                break;
            }
            if line.is_empty() && input.fill_buf().map_err(host("reading", Path::new(options.name)))?.is_empty() {
                break;
            }
            let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
            let Some(head) = words.next() else { continue };
            if head.starts_with(b"#") {
                continue;
            }
            let wrong = |why: String| wrong(first, why);
            let keywords = words.map(|word| keyword(word).map_err(&wrong)).collect::<Result<Vec<_>>>()?;
            match head {
                b"/set" => {
                    defaults.extend(keywords);
                    continue;
                }
                b"/unset" => {
                    for (key, _) in keywords {
                        if key == "all" {
                            defaults.clear();
                        }
                        defaults.remove(&key);
                    }
                    continue;
                }
                b".." => {
                    directory = parent(&directory).ok_or_else(|| wrong("`..' above the root".into()))?.to_vec();
                    continue;
                }
                _ => {}
            }
            let mut words = defaults.clone();
            words.extend(keywords);
            let written = unvis(head).map_err(&wrong)?;
            let full = head.contains(&b'/') || head == b".";
            let path = if full || directory.is_empty() { written } else { [&directory, &b"/"[..], &written].concat() };
            let path = normalise(&path).map_err(|error| wrong(error.to_string()))?;
            let (entry, inode) = entry(&path, &words, options, attributes, &wrong)?;
            if entry.node == Node::Dir && !full {
                directory.clone_from(&path);
            }
            let (path, entry) = checked(&path, entry).map_err(|error| wrong(error.to_string()))?;
            inodes.remove(&path);
            if let Some(inode) = inode {
                inodes.insert(path.clone(), inode);
            }
            tree.put(path, entry)?;
        }
        tree.link(inodes);
        Ok(tree)
    }

    fn keyword(word: &[u8]) -> Result<(String, Vec<u8>), String> {
        let equals = word.iter().position(|&byte| byte == b'=');
        let (key, value) = match equals {
            Some(at) => (word.get(..at).unwrap_or_default(), word.get(at + 1..).unwrap_or_default()),
            None => (word, &[][..]),
        };
        let key = std::str::from_utf8(key).map_err(|_| "a keyword is no text".to_owned())?;
        Ok((key.to_owned(), value.to_vec()))
    }

    fn entry(
        path: &[u8],
        words: &Keywords,
        options: &ManifestOptions<'_>,
        attributes: bool,
        wrong: &impl Fn(String) -> TreeError,
    ) -> Result<(Entry, Option<(u64, u64)>)> {
        let text = |key: &str| {
            let Some(value) = words.get(key) else { return Ok(None) };
            std::str::from_utf8(value).map(Some).map_err(|_| wrong(format!("`{key}' is no text")))
        };
        let owner = |number: &str, name: &str, table: &HashMap<String, u32>| -> Result<u32> {
            if let Some(value) = text(number)? {
                return value.parse().map_err(|_| wrong(format!("`{number}={value}' is no number")));
            }
            let Some(value) = text(name)? else { return Ok(0) };
            table
                .get(value)
                .copied()
                .ok_or_else(|| wrong(format!("nobody knows `{name}={value}': give its number, or the databases that have it")))
        };
        let time = match text("time")? {
            Some(value) => parse_time(value).ok_or_else(|| wrong(format!("`time={value}' is no time")))?,
            None => options.time,
        };
        let flags = match text("flags")? {
            Some(value) => parse_flags(value).map_err(|flag| wrong(format!("`{flag}' is no file flag")))?,
            None => 0,
        };
        let link = |what: &str| -> Result<Vec<u8>> {
            let value = words.get("link").ok_or_else(|| wrong(format!("a {what} without `link='")))?;
            unvis(value).map_err(wrong)
        };
        let mut inode = None;
        let (usual, node) = match text("type")?.ok_or_else(|| wrong("no `type='".into()))? {
            "dir" => (0o755, Node::Dir),
            "link" => (0o755, Node::Symlink(link("symbolic link")?)),
            "hard" => (0, Node::HardLink(normalise(&link("hard link")?).map_err(|error| wrong(error.to_string()))?)),
            "file" if attributes => (0o644, Entry::file(0, Vec::new()).node),
            "file" => {
                let sparse = !text("tags")?.unwrap_or_default().split(',').any(|tag| tag == "dense");
                let content = if let Some(data) = words.get("data") {
                    let bytes = unvis(data).map_err(wrong)?;
                    if bytes.len() > MAX_INLINE {
                        return Err(wrong(format!("more than {MAX_INLINE} bytes of `data='")));
                    }
                    Content::Bytes(bytes.into())
                } else if let Some(contents) = words.get("contents") {
                    let contents = unvis(contents).map_err(wrong)?;
                    let contents = PathBuf::from(OsStr::from_bytes(&contents));
                    Content::Host(options.root.map_or(contents.clone(), |root| root.join(contents)))
                } else {
                    let root = options.root.ok_or_else(|| wrong("a file without `contents=' or `data='".into()))?;
                    Content::Host(below(root, path))
                };
                let size = match &content {
                    Content::Bytes(bytes) => bytes.len() as u64,
                    Content::Host(path) => {
                        let metadata = fs::symlink_metadata(path).map_err(host("looking at", path))?;
                        if !metadata.is_file() {
                            return Err(wrong(format!("`{}' is no regular file", path.display())));
                        }
                        if metadata.nlink() > 1 && !words.contains_key("contents") {
                            inode = Some((metadata.dev(), metadata.ino()));
                        }
                        metadata.len()
                    }
                };
                (0o644, Node::File(File { content, size, sparse }))
            }
            other => return Err(wrong(format!("`type={other}' is not one of dir, file, link, hard"))),
        };
        let mode = match text("mode")? {
            Some(value) => u16::from_str_radix(value, 8)
                .ok()
                .filter(|mode| mode & !0o7777 == 0)
                .ok_or_else(|| wrong(format!("`mode={value}' is no octal mode of at most 7777")))?,
            None => usual,
        };
        if let Node::HardLink(target) = node {
            return Ok((Entry::hard_link(target), None));
        }
        let uid = owner("uid", "uname", &options.owners.users)?;
        let gid = owner("gid", "gname", &options.owners.groups)?;
        Ok((Entry { mode, uid, gid, mtime: time, flags, node }, inode))
    }

    fn parse_time(value: &str) -> Option<Time> {
        let (seconds, fraction) = value.split_once('.').unwrap_or((value, "0"));
        // As mtree(8) writes and reads it, the part after the point is a number of nanoseconds, not a decimal fraction.
        let nanoseconds = fraction.parse().ok().filter(|&nanoseconds: &u32| nanoseconds < 1_000_000_000)?;
        Some(Time { seconds: seconds.parse().ok()?, nanoseconds })
    }

    pub(super) fn parse_flags(value: &str) -> Result<u32, String> {
        let mut flags = 0;
        for word in value.split(',').filter(|word| !word.is_empty() && *word != "none" && *word != "0") {
            let known = |name: &str| FLAGS.iter().find(|(known, _)| *known == name).map(|(_, bit)| *bit);
            if let Some(bit) = known(word) {
                flags |= bit;
            } else if let Some(bit) = word.strip_prefix("no").and_then(known) {
                flags &= !bit;
            } else if word == "dump" {
                flags &= !1;
            } else {
                return Err(word.to_owned());
            }
        }
        Ok(flags)
    }

    pub(super) fn write(tree: &Tree, output: &mut impl Write) -> io::Result<()> {
        writeln!(output, "#mtree 2.0")?;
        let mut line = Vec::new();
        for (path, entry) in tree.iter() {
            line.clear();
            line.extend_from_slice(b".");
            if !path.is_empty() {
                line.push(b'/');
                vis(path, &mut line);
            }
            write!(line, " type={}", entry.node.kind())?;
            if let Node::HardLink(target) = &entry.node {
                line.extend_from_slice(b" link=");
                vis(target, &mut line);
            } else {
                write!(
                    line,
                    " uid={} gid={} mode={:04o} time={}.{}",
                    entry.uid, entry.gid, entry.mode, entry.mtime.seconds, entry.mtime.nanoseconds
                )?;
                let mut left = entry.flags;
                let mut before = " flags=";
                for (name, bit) in FLAGS {
                    if left & bit != 0 {
                        write!(line, "{before}{name}")?;
                        left &= !bit;
                        before = ",";
                    }
                }
            }
            match &entry.node {
                Node::Dir | Node::HardLink(_) => {}
                Node::Symlink(target) => {
                    line.extend_from_slice(b" link=");
                    vis(target, &mut line);
                }
                Node::File(file) => {
                    write!(line, " size={}", file.size)?;
                    match &file.content {
                        Content::Host(path) => {
                            line.extend_from_slice(b" contents=");
                            vis(path.as_os_str().as_bytes(), &mut line);
                        }
                        Content::Bytes(bytes) => {
                            line.extend_from_slice(b" data=");
                            vis(bytes, &mut line);
                        }
                    }
                    if !file.sparse {
                        line.extend_from_slice(b" tags=dense");
                    }
                }
            }
            line.push(b'\n');
            output.write_all(&line)?;
        }
        Ok(())
    }

    /// Escapes what is not plain, as vis(3) does with `VIS_OCTAL`.
    pub(super) fn vis(bytes: &[u8], output: &mut Vec<u8>) {
        for &byte in bytes {
            if byte.is_ascii_graphic() && !b"\\#*?[=\"'".contains(&byte) {
                output.push(byte);
            } else {
                output.extend_from_slice(&[b'\\', b'0' + (byte >> 6), b'0' + (byte >> 3 & 7), b'0' + (byte & 7)]);
            }
        }
    }

    /// What was escaped by vis(3) in any of its styles but the HTTP and MIME ones.
    pub(super) fn unvis(text: &[u8]) -> Result<Vec<u8>, String> {
        const C_STYLE: &[(u8, u8)] =
            &[(b'n', b'\n'), (b'r', b'\r'), (b'b', 8), (b'a', 7), (b'v', 11), (b't', b'\t'), (b'f', 12), (b's', b' '), (b'E', 27)];
        let mut result = Vec::with_capacity(text.len());
        let mut bytes = text.iter().copied().peekable();
        let control = |byte: u8| if byte == b'?' { 127 } else { byte & 31 };
        while let Some(byte) = bytes.next() {
            if byte != b'\\' {
                result.push(byte);
                continue;
            }
            let escaped = bytes.next().ok_or_else(|| "a backslash at the end of a word".to_owned())?;
            if (b'0'..=b'7').contains(&escaped) {
                let mut value = u32::from(escaped - b'0');
                for _ in 0..2 {
                    let Some(digit) = bytes.next_if(|byte| (b'0'..=b'7').contains(byte)) else { break };
                    value = value * 8 + u32::from(digit - b'0');
                }
                result.push(u8::try_from(value).map_err(|_| format!("`\\{value:o}' is no byte"))?);
            } else if escaped == b'^' {
                result.push(control(bytes.next().ok_or_else(|| "`\\^' at the end of a word".to_owned())?));
            } else if escaped == b'M' {
                let style = bytes.next();
                let byte = bytes.next().ok_or_else(|| "`\\M' at the end of a word".to_owned())?;
                match style {
                    Some(b'-') => result.push(byte | 128),
                    Some(b'^') => result.push(control(byte) | 128),
                    _ => return Err("`\\M' without `-' or `^'".to_owned()),
                }
            } else if let Some((_, byte)) = C_STYLE.iter().find(|(letter, _)| *letter == escaped) {
                result.push(*byte);
            } else if escaped != b'$' {
                result.push(escaped);
            }
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, root: Option<&Path>) -> Result<Tree> {
        let owners = Owners::parse("root:*:0:0::0:0:Charlie:/root:/bin/sh\n# no\nsshd:*:22:22::", "wheel:*:0:root\nmail:*:6:\n");
        Tree::read_manifest(text.as_bytes(), &ManifestOptions { name: "METALOG", root, owners: &owners, time: Time::seconds(7) })
    }

    fn lines(tree: &Tree) -> Vec<String> {
        let mut out = Vec::new();
        tree.write_manifest(&mut out).unwrap();
        String::from_utf8(out).unwrap().lines().skip(1).map(str::to_owned).collect()
    }

    #[test]
    fn a_manifest_of_installworld_is_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("bin")).unwrap();
        fs::write(dir.path().join("bin/[ a"), b"12345").unwrap();
        fs::hard_link(dir.path().join("bin/[ a"), dir.path().join("bin/test")).unwrap();
        let text = "#mtree 2.0\n. type=dir uname=root gname=wheel mode=0755\n\
            ./bin type=dir uname=root gname=wheel mode=0700 tags=package=runtime\n\
            ./bin type=dir uname=root gname=wheel mode=0755 tags=package=runtime\n\
            ./bin/test type=file uname=root gname=mail mode=06555 size=9 flags=schg,uarch tags=package=runtime\n\
            ./bin/\\133\\sa type=file uname=sshd gname=mail mode=4555 time=5.6 tags=package=a,dense\n\
            ./lib\\^A type=link uname=root gname=wheel mode=0755 link=../a\\040b\n";
        let tree = read(text, Some(dir.path())).unwrap();
        let contents = dir.path().display();
        assert_eq!(
            lines(&tree),
            [
                ". type=dir uid=0 gid=0 mode=0755 time=7.0".to_owned(),
                "./bin type=dir uid=0 gid=0 mode=0755 time=7.0".to_owned(),
                format!(
                    "./bin/\\133\\040a type=file uid=22 gid=6 mode=4555 time=5.6 size=5 contents={contents}/bin/\\133\\040a tags=dense"
                ),
                "./bin/test type=hard link=bin/\\133\\040a".to_owned(),
                "./lib\\001 type=link uid=0 gid=0 mode=0755 time=7.0 link=../a\\040b".to_owned(),
            ]
        );
        tree.check().unwrap();
    }

    #[test]
    fn the_older_form_is_read() {
        let text = "/set type=file uid=1 gid=2 mode=0600\n. type=dir mode=0700\n    a type=dir \\\n  mode=0711\n        b data=x\\ny\n    ..\n\
            /unset uid\n    c data=\n    d type=hard link=./c\n";
        let tree = read(text, None).unwrap();
        assert_eq!(
            lines(&tree),
            [
                ". type=dir uid=1 gid=2 mode=0700 time=7.0",
                "./a type=dir uid=1 gid=2 mode=0711 time=7.0",
                "./a/b type=file uid=1 gid=2 mode=0600 time=7.0 size=3 data=x\\012y",
                "./c type=file uid=0 gid=2 mode=0600 time=7.0 size=0 data=",
                "./d type=hard link=c",
            ]
        );
        assert_eq!(read(&format!("{}\n", lines(&tree).join("\n")), None).unwrap(), tree);
    }

    #[test]
    fn wrong_manifests_name_their_line() {
        for (line, why) in [
            ("./a type=dir uname=nobody", "METALOG:2: nobody knows `uname=nobody': give its number, or the databases that have it"),
            ("./a mode=0755", "METALOG:2: no `type='"),
            ("./a type=dir mode=99", "METALOG:2: `mode=99' is no octal mode of at most 7777"),
            ("./a type=dir mode=10755", "METALOG:2: `mode=10755' is no octal mode of at most 7777"),
            ("./a type=char", "METALOG:2: `type=char' is not one of dir, file, link, hard"),
            ("./a type=link", "METALOG:2: a symbolic link without `link='"),
            ("./a type=link link=", "METALOG:2: `a': the target of the symbolic link is empty, has more than 1023 bytes, or a NUL in it"),
            ("./a type=file", "METALOG:2: a file without `contents=' or `data='"),
            ("./../a type=dir", "METALOG:2: `./../a': `..' leads out of the tree"),
            ("./a type=dir flags=schg,odd", "METALOG:2: `odd' is no file flag"),
            ("./a type=dir time=1.1000000000", "METALOG:2: `time=1.1000000000' is no time"),
            ("./a\\ type=dir", "METALOG:2: a backslash at the end of a word"),
            ("..", "METALOG:2: `..' above the root"),
        ] {
            assert_eq!(read(&format!("# a comment\n{line}\n"), None).unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn trees_are_put_together() {
        let mut base = Tree::new();
        base.insert("/a/f", Entry::file(0o644, *b"1")).unwrap();
        base.insert("a/g", Entry::hard_link("a/f")).unwrap();
        base.insert("a/h", Entry::hard_link("./a/f")).unwrap();
        assert_eq!(base.check().unwrap_err().to_string(), "`/': there is no root");
        base.complete(&Entry::dir(0o755));
        base.check().unwrap();

        let mut merged = base.clone();
        merged.merge(base.clone()).unwrap();
        assert_eq!(merged, base);
        let mut other = Tree::new();
        other.insert("a/f", Entry::file(0o600, *b"2").owner(1, 2)).unwrap();
        assert_eq!(
            merged.merge(other.clone()).unwrap_err().to_string(),
            "`a/f': trees differ in mode 0644 and 0600, owner 0:0 and 1:2, content"
        );

        // The other names keep the content that they had.
        merged.overlay(other).unwrap();
        assert_eq!(merged.get("a/g"), base.get("a/f"));
        assert_eq!(merged.get("a/h"), Some(&Entry::hard_link("a/g")));
        merged.check().unwrap();
        merged.remove("a/g");
        assert_eq!(merged.get("a/h"), base.get("a/f"));

        let mut wrong = Tree::new();
        wrong.insert("a", Entry::symlink("b")).unwrap();
        assert!(merged.overlay(wrong.clone()).unwrap_err().to_string().contains("not empty"));
        assert_eq!(merged.merge(wrong).unwrap_err().to_string(), "`a': a dir in one tree, a link in another");
        assert_eq!(merged.insert("a/./f", Entry::dir(0o755)).unwrap_err().to_string(), "`a/f': is already there as a file");

        let mut all = Tree::new();
        all.graft("gnu/x", base.clone()).unwrap();
        assert_eq!(all.get("gnu/x/a/g"), Some(&Entry::hard_link("gnu/x/a/f")));
        all.complete(&Entry::dir(0o755));
        all.check().unwrap();
        all.remove("gnu/x/a");
        assert_eq!(all.len(), 3);

        for (path, why) in [("b", "is a hard link to a dir, `a'"), ("a/f/c", "is below a file")] {
            let mut wrong = base.clone();
            wrong.insert(path, Entry::hard_link("a")).unwrap();
            assert!(wrong.check().unwrap_err().to_string().contains(why));
        }
    }

    #[test]
    fn a_manifest_may_not_reach_out() {
        let dir = tempfile::tempdir().unwrap();
        let (store, outside) = (dir.path().join("store"), dir.path().join("secret"));
        std::fs::create_dir_all(store.join("item")).unwrap();
        std::fs::write(&outside, "x").unwrap();
        std::fs::write(store.join("item/own"), "x").unwrap();
        std::os::unix::fs::symlink("../../secret", store.join("item/link")).unwrap();
        std::os::unix::fs::symlink("../..", store.join("item/up")).unwrap();
        for (name, good) in [("item/own", true), ("item/../item/own", true), ("../secret", false), ("item/up/secret", false)] {
            let text = format!("./a type=file contents={}\n", store.join(name).display());
            let options = ManifestOptions { name: "m", root: None, owners: &Owners::default(), time: Time::seconds(1) };
            let tree = Tree::read_manifest(text.as_bytes(), &options).unwrap();
            assert_eq!(tree.confine(&store).is_ok(), good, "{name}");
        }
    }

    #[test]
    fn a_directory_is_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/two"), b"xyz").unwrap();
        fs::hard_link(dir.path().join("d/two"), dir.path().join("d/one")).unwrap();
        std::os::unix::fs::symlink("d/one", dir.path().join("s")).unwrap();
        let tree = Tree::from_directory(dir.path(), DirectoryOptions { owner: Some((3, 4)), time: Some(Time::seconds(9)), without: None })
            .unwrap();
        tree.check().unwrap();
        assert_eq!(tree.len(), 5);
        assert_eq!(tree.get("d/two"), Some(&Entry::hard_link("d/one")));
        let Some(Entry { uid: 3, gid: 4, node: Node::File(file), .. }) = tree.get("d/one") else { panic!("no file") };
        fs::write(dir.path().join("d/two"), b"xyzzy").unwrap();
        assert!(matches!(file.content.open(file.size), Err(TreeError::Changed { expected: 3, found: 5, .. })));
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        assert!(Tree::from_directory(dir.path(), DirectoryOptions::default()).unwrap_err().to_string().contains("`socket': is a device"));
    }
}
