//! The files of a machine, below its root: looked at, and changed so that a power cut leaves each as it was or as it is going to be.
//!
//! Directories are held and not named: nothing on the way may be a symbolic link, since users own some of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, fsync, symlinkat, unlinkat};

use super::change::{Act, Change, Look};
#[cfg(doc)]
use super::closure::CURRENT_SYSTEM;
use crate::tree::{self, Content, Entry, Node, TreeError, show};

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// What a name ends with while its file is written. One that is left over from a power cut is written anew.
const UNFINISHED: &str = ".fruix-unfinished";

/// A machine's root.
#[derive(Debug)]
pub struct Machine {
    root: OwnedFd,
    /// Its name: `/`, but for tests and for images that are mounted.
    place: PathBuf,
}

fn told(doing: &'static str, path: &Path) -> impl FnOnce(Errno) -> TreeError {
    move |errno| TreeError::Host { doing, path: path.to_owned(), source: errno.into() }
}

impl Machine {
    /// The machine whose root is the directory `place`.
    ///
    /// # Errors
    /// [`TreeError::Host`] when it cannot be opened.
    pub fn open(place: &Path) -> Result<Machine, TreeError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = openat(AT_FDCWD, place, flags, Mode::empty()).map_err(told("opening", place))?;
        Ok(Machine { root, place: place.to_owned() })
    }

    fn name(&self, path: &[u8]) -> PathBuf {
        self.place.join(OsStr::from_bytes(path))
    }

    /// The directory that `path` is in, and its name there; `None` when that directory is not there.
    fn parent<'p>(&self, path: &'p [u8]) -> Result<Option<(OwnedFd, &'p OsStr)>, TreeError> {
        let mut held = openat(&self.root, ".", DIRECTORY, Mode::empty()).map_err(told("opening", &self.place))?;
        let mut above = tree::parent(path).unwrap_or_default().split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        let mut walked = Vec::new();
        for name in above.by_ref() {
            walked.push(name);
            held = match openat(&held, OsStr::from_bytes(name), DIRECTORY, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::ENOENT) => return Ok(None),
                Err(Errno::ENOTDIR | Errno::ELOOP | Errno::EMLINK) => {
                    let why = format!(
                        "is behind `/{}', which is no directory here: make it one, or change it by hand",
                        show(&walked.join(&b'/'))
                    );
                    return Err(TreeError::Conflict { path: show(path), why });
                }
                Err(error) => return Err(told("opening", &self.name(path))(error)),
            };
        }
        Ok(Some((held, OsStr::from_bytes(tree::name(path)))))
    }

    /// Makes one change.
    ///
    /// # Errors
    /// [`TreeError`]: then the path is as it was.
    pub fn make(&self, change: &Change) -> Result<(), TreeError> {
        if change.act == Act::Leave {
            return Ok(());
        }
        let shown = self.name(&change.path);
        let Some((parent, name)) = self.parent(&change.path)? else {
            return match change.act {
                Act::Remove | Act::Clear | Act::Leave => Ok(()),
                _ => Err(TreeError::Conflict { path: show(&change.path), why: "is in a directory that is not there".into() }),
            };
        };
        let made = match &change.act {
            Act::Leave => return Ok(()),
            Act::Put(entry) | Act::Beside(entry) => {
                let unfinished = unfinished(&parent, name);
                tidy(&parent, &unfinished, put(&parent, name, &unfinished, entry, &shown))?
            }
            Act::Clear | Act::Remove => remove(&parent, name),
        };
        made.and_then(|()| fsync(&parent)).map_err(told("changing", &shown))
    }

    /// Replaces the link `name`, such as [`CURRENT_SYSTEM`], by one to `closure`, which is on the disk before this returns.
    ///
    /// # Errors
    /// [`TreeError`]: then it leads where it did.
    pub fn set_link(&self, name: &str, closure: &Path) -> Result<(), TreeError> {
        self.write(name, Entry::symlink(closure.as_os_str().as_bytes()))
    }

    /// Writes `entry` at `path`, whatever is there; a directory that it is in is made.
    ///
    /// # Errors
    /// [`TreeError`]: then the path is as it was.
    pub fn write(&self, path: &str, entry: Entry) -> Result<(), TreeError> {
        let path = path.trim_start_matches('/').as_bytes();
        let put = |path: &[u8], entry| self.make(&Change { path: path.to_vec(), act: Act::Put(entry), of_user: false });
        if let Some(above) = tree::parent(path)
            && self.parent(path)?.is_none()
        {
            put(above, Entry::dir(0o755))?;
        }
        put(path, entry)
    }

    /// Removes what is at `path`, if anything.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn remove(&self, path: &str) -> Result<(), TreeError> {
        self.make(&Change { path: path.trim_start_matches('/').as_bytes().to_vec(), act: Act::Remove, of_user: false })
    }

    /// The names in the directory `path`, as far as they are UTF-8; none when there is no such directory.
    ///
    /// # Errors
    /// [`TreeError::Host`] when it cannot be read.
    pub fn names(&self, path: &str) -> Result<Vec<String>, TreeError> {
        let inside = [path.trim_start_matches('/').as_bytes(), b"/."].concat();
        let Some((held, _)) = self.parent(&inside)? else { return Ok(Vec::new()) };
        let mut directory = Dir::from_fd(held).map_err(told("reading", &self.name(&inside)))?;
        let mut names = Vec::new();
        for entry in directory.iter() {
            let entry = entry.map_err(told("reading", &self.name(&inside)))?;
            names.extend(entry.file_name().to_str().map(str::to_owned).ok());
        }
        Ok(names)
    }

    /// Where the link `name`, such as [`CURRENT_SYSTEM`], leads; `None` when there is none.
    ///
    /// # Errors
    /// [`TreeError::Host`].
    pub fn link(&self, name: &str) -> Result<Option<PathBuf>, TreeError> {
        let path = name.trim_start_matches('/').as_bytes();
        let Some((parent, name)) = self.parent(path)? else { return Ok(None) };
        match readlinkat(&parent, name) {
            Ok(target) => Ok(Some(target.into())),
            Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
            Err(error) => Err(told("reading", &self.name(path))(error)),
        }
    }
}

impl Look for Machine {
    fn look(&mut self, path: &[u8]) -> Result<Option<Entry>, TreeError> {
        let shown = self.name(path);
        let Some((parent, name)) = self.parent(path)? else { return Ok(None) };
        let stat = match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(told("looking at", &shown)(error)),
        };
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let node = if kind == SFlag::S_IFDIR {
            Node::Dir
        } else if kind == SFlag::S_IFLNK {
            Node::Symlink(readlinkat(&parent, name).map_err(told("reading", &shown))?.as_bytes().to_vec())
        } else if kind == SFlag::S_IFREG {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            Node::File(tree::File { content: Content::Host(shown), size, sparse: true })
        } else {
            let why = "is neither file, directory nor link on this machine: move it away".to_owned();
            return Err(TreeError::Conflict { path: show(path), why });
        };
        #[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast)] // Masked; the type differs between platforms.
        let mode = (stat.st_mode as u32 & 0o7777) as u16;
        Ok(Some(Entry::new(mode, node).owner(stat.st_uid, stat.st_gid)))
    }
}

fn permissions(entry: &Entry) -> Mode {
    #[allow(clippy::useless_conversion)] // The type differs between platforms.
    Mode::from_bits_truncate(entry.mode.into())
}

/// Removes what is there; a directory stays that is not empty.
fn remove(parent: &OwnedFd, name: &OsStr) -> nix::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// The name of a file while it is written. One that is left over from a power cut is written anew; where a user has put something else, another is taken,
/// which he cannot know.
fn unfinished(parent: &OwnedFd, name: &OsStr) -> OsString {
    let mut unfinished = name.to_owned();
    unfinished.push(UNFINISHED);
    let taken = match remove(parent, &unfinished) {
        Ok(()) => fstatat(parent, unfinished.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok(),
        Err(_) => true,
    };
    if taken {
        use std::hash::{BuildHasher as _, RandomState};
        unfinished.push(format!("-{:016x}", RandomState::new().hash_one(std::process::id())));
    }
    unfinished
}

/// Leaves nothing unfinished behind a failure.
fn tidy(parent: &OwnedFd, unfinished: &OsStr, made: Result<nix::Result<()>, TreeError>) -> Result<nix::Result<()>, TreeError> {
    if !matches!(made, Ok(Ok(()))) {
        let _ = remove(parent, unfinished);
    }
    made
}

fn put(parent: &OwnedFd, name: &OsStr, unfinished: &OsStr, entry: &Entry, shown: &Path) -> Result<nix::Result<()>, TreeError> {
    let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
    let finish = || renameat(parent, unfinished, parent, name);
    Ok(match &entry.node {
        Node::Dir => mkdirat(parent, name, Mode::S_IRWXU)
            .and_then(|()| openat(parent, name, DIRECTORY, Mode::empty()))
            .and_then(|held| fchown(&held, uid, gid).and_then(|()| fchmod(&held, permissions(entry))).and_then(|()| fsync(&held))),
        Node::Symlink(target) => symlinkat(OsStr::from_bytes(target), parent, unfinished)
            .and_then(|()| fchownat(parent, unfinished, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW))
            .and_then(|()| finish()),
        Node::File(file) => {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut out = match openat(parent, unfinished, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
                Ok(held) => File::from(held),
                Err(error) => return Ok(Err(error)),
            };
            let write = |source: io::Error| TreeError::Host { doing: "writing", path: shown.to_owned(), source };
            file.content.open(file.size)?.pieces(1 << 16, file.size, |piece| piece.bytes(|bytes| out.write_all(bytes)).map_err(write))?;
            fchown(&out, uid, gid).and_then(|()| fchmod(&out, permissions(entry))).and_then(|()| fsync(&out)).and_then(|()| finish())
        }
        Node::HardLink(_) => Err(Errno::ENOTSUP),
    })
}
