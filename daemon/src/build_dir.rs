//! The directories of one build: the build directory under `$TMPDIR`, and the root of the sandbox in the store directory.
//!
//! Both have a top that only the daemon can enter, so that nothing a builder does to what is below, such as making it writable for all or leaving
//! a setuid program, is of use to anybody outside. They are reached and removed by descriptor, never by a name that a builder could have swapped.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use fruix_store::failpoints::{Writes, step};
use fruix_store::fsutil;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, geteuid, unlinkat};

use crate::error::Error;

/// How the names of build directories begin, as upstream's.
pub const PREFIX: &str = "guix-build-";
/// The file beside `top` that is locked as long as the directory is in use. It tells a directory of ours from those of other daemons, and one that
/// a killed daemon left from one in use.
const LOCK: &str = "fruixd-lock";
/// The directory inside, which the builder gets.
const TOP: &str = "top";
/// How deep a kept build directory is followed when it is given to a user; what is deeper stays with the build user.
const MAX_DEPTH: usize = 256;
/// How many names are tried for a build directory.
const MAX_NAMES: u32 = 10_000;

fn dir_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

/// Whether the builder's directory is inside one that only the daemon can enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `NAME` is the daemon's, `NAME/top` the builder's: for sandboxes.
    Nested,
    /// `NAME` is the builder's: for builders that have to reach it by its full name.
    Flat,
}

/// The directory of a build. Removed when dropped, unless kept.
#[derive(Debug)]
pub struct BuildDir {
    shape: Shape,
    parent: OwnedFd,
    name: String,
    path: PathBuf,
    outer: OwnedFd,
    top: OwnedFd,
    /// Locked; only a nested directory has one.
    lock: Option<File>,
    kept: bool,
}

impl BuildDir {
    /// Makes `PARENT/BASE-N` for the first free N, as upstream names build directories.
    pub fn numbered(parent: &Path, base: &str, shape: Shape) -> Result<BuildDir, Error> {
        let dir = open_dir(parent)?;
        for number in 0..MAX_NAMES {
            let name = format!("{base}-{number}");
            match step("build-dir::make", || mkdirat(&dir, name.as_str(), Mode::S_IRWXU)) {
                Ok(()) => return BuildDir::enter(dir, parent, name, shape),
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(Error::io("creating build directory", &parent.join(name), errno.into())),
            }
        }
        Err(Error::io("creating build directory", &parent.join(base), io::ErrorKind::AlreadyExists.into()))
    }

    /// Makes `PARENT/NAME`, after removing what an earlier daemon left there.
    pub fn named(parent: &Path, name: String) -> Result<BuildDir, Error> {
        let dir = open_dir(parent)?;
        let path = parent.join(&name);
        remove(&dir, &name, &path)?;
        step("build-dir::make", || mkdirat(&dir, name.as_str(), Mode::S_IRWXU))
            .map_err(|errno| Error::io("creating directory", &path, errno.into()))?;
        BuildDir::enter(dir, parent, name, Shape::Nested)
    }

    fn enter(parent: OwnedFd, parent_path: &Path, name: String, shape: Shape) -> Result<BuildDir, Error> {
        let path = parent_path.join(&name);
        let failed = |errno: Errno| Error::io("creating directory", &path, errno.into());
        let outer = openat(&parent, name.as_str(), dir_flags(), Mode::empty()).map_err(failed)?;
        let failed_io = |source: io::Error| Error::io("creating directory", &path, source);
        let (top, lock) = match shape {
            Shape::Nested => {
                let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let open = || openat(&outer, LOCK, flags, Mode::S_IRUSR | Mode::S_IWUSR);
                let lock = File::from(step("build-dir::lock", open).map_err(failed)?);
                lock.lock().map_err(failed_io)?;
                mkdirat(&outer, TOP, Mode::S_IRWXU).map_err(failed)?;
                (openat(&outer, TOP, dir_flags(), Mode::empty()).map_err(failed)?, Some(lock))
            }
            Shape::Flat => (outer.try_clone().map_err(failed_io)?, None),
        };
        Ok(BuildDir { shape, parent, name, path, outer, top, lock, kept: false })
    }

    /// The outer directory's name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The builder's directory.
    #[must_use]
    pub fn top_path(&self) -> PathBuf {
        match self.shape {
            Shape::Nested => self.path.join(TOP),
            Shape::Flat => self.path.clone(),
        }
    }

    /// The builder's directory, held.
    #[must_use]
    pub fn top(&self) -> &OwnedFd {
        &self.top
    }

    /// Gives the builder's directory an owner and a mode.
    pub fn hand_over(&self, owner: Option<(u32, u32)>, mode: u32) -> Result<(), Error> {
        let failed = |errno: Errno| Error::io("cannot change ownership of", &self.path, errno.into());
        if let Some((uid, gid)) = owner {
            fchown(&self.top, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(failed)?;
        }
        fchmod(&self.top, Mode::from_bits_truncate(mode as nix::libc::mode_t)).map_err(failed)
    }

    /// Writes a file for the builder to read, in the place of an earlier one of that name. The builder must not run yet.
    pub fn write_file(&self, name: &str, contents: &[u8], owner: Option<(u32, u32)>) -> Result<(), Error> {
        use std::io::Write as _;
        let path = self.top_path().join(name);
        match unlinkat(&self.top, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(Error::io("removing file", &path, errno.into())),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&self.top, name, flags, Mode::from_bits_truncate(0o644))
            .map_err(|errno| Error::io("creating file", &path, errno.into()))?;
        let mut file = File::from(file);
        Writes::new("build-dir::write", &mut file).write_all(contents).map_err(|source| Error::io("writing file", &path, source))?;
        if let Some((uid, gid)) = owner {
            fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|errno| Error::io("cannot change ownership of", &path, errno.into()))?;
        }
        Ok(())
    }

    /// Keeps the directory for its user to look at: for root as it is, in a directory that only root can enter; for others, `NAME/top` becomes
    /// `NAME`, readable and theirs. Nothing may run any more that could change it. A file with several names stays as it is, since another name
    /// may be elsewhere. When that cannot be done, the directory goes.
    pub fn keep(mut self, user: Option<(u32, u32)>) -> Result<PathBuf, Error> {
        self.give_away(user)?;
        self.kept = true;
        Ok(self.path.clone())
    }

    fn give_away(&mut self, user: Option<(u32, u32)>) -> Result<(), Error> {
        let failed = |errno: Errno| Error::io("keeping build directory", &self.path, errno.into());
        // Held to the end: without its lock file it is nothing that a daemon sweeps away, should we be killed.
        let lock = self.lock.take();
        let forget = || if lock.is_some() { unlinkat(&self.outer, LOCK, UnlinkatFlags::NoRemoveDir).map_err(failed) } else { Ok(()) };
        fchmod(&self.top, Mode::from_bits_truncate(0o755)).map_err(failed)?;
        let Some((uid, gid)) = user.filter(|(uid, _)| *uid != 0).map(|(uid, gid)| (uid, (gid != 0).then_some(gid))) else {
            return forget();
        };
        let mut met = HashMap::new();
        count_names(&self.top, &mut met, 0).map_err(failed)?;
        secure(&self.top, (uid, gid), &met, 0).map_err(failed)?;
        fchown(&self.top, Some(Uid::from_raw(uid)), gid.map(Gid::from_raw)).map_err(failed)?;
        if self.shape == Shape::Flat {
            return Ok(());
        }
        let pivot = format!("{}.pivot", self.name);
        renameat(&self.parent, self.name.as_str(), &self.parent, pivot.as_str()).map_err(failed)?;
        if let Err(errno) = step("build-dir::keep", || renameat(&self.outer, TOP, &self.parent, self.name.as_str())) {
            // Back to where it is found and removed; or away, if what was to have the name has it.
            if renameat(&self.parent, pivot.as_str(), &self.parent, self.name.as_str()).is_err() {
                remove(&self.parent, &pivot, &self.path)?;
            }
            return Err(failed(errno));
        }
        forget()?;
        unlinkat(&self.parent, pivot.as_str(), UnlinkatFlags::RemoveDir).map_err(failed)
    }

    /// Removes the directory and all in it.
    pub fn remove(mut self) -> Result<(), Error> {
        self.kept = true;
        remove(&self.parent, &self.name, &self.path)
    }
}

impl Drop for BuildDir {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = remove(&self.parent, &self.name, &self.path)
        {
            tracing::warn!(%error, "a build directory is left behind");
        }
    }
}

/// Removes the build directories in `parent` that a killed daemon of ours left. Those in use, those that were kept for somebody, and those of other
/// daemons stay. What cannot be removed is logged.
pub fn sweep(parent: &Path) {
    let Ok(dir) = open_dir(parent) else { return };
    for name in fsutil::names(&dir).unwrap_or_default() {
        let Some(text) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        let ours = openat(&dir, text, dir_flags(), Mode::empty()).ok().filter(|outer| {
            let private = |stat: FileStat| stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o077 == 0;
            fstat(outer).is_ok_and(private)
        });
        let Some(outer) = ours else { continue };
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(lock) = openat(&outer, LOCK, flags, Mode::empty()).map(File::from) else { continue };
        if lock.try_lock().is_ok() {
            let path = parent.join(text);
            match remove(&dir, text, &path) {
                Ok(()) => tracing::info!("removed `{}', which an earlier daemon left", path.display()),
                Err(error) => tracing::warn!(%error, "a build directory is left behind"),
            }
        }
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty()).map_err(|errno| Error::io("opening directory", path, errno.into()))
}

fn remove(parent: &OwnedFd, name: &str, path: &Path) -> Result<(), Error> {
    fsutil::remove_tree(parent, OsStr::new(name), path, 0)?;
    Ok(())
}

/// Calls `act` for each entry of `dir`, with its name and what it is.
fn each_entry(dir: &impl AsFd, mut act: impl FnMut(&CStr, &FileStat) -> nix::Result<()>) -> nix::Result<()> {
    let copy = openat(dir, ".", dir_flags(), Mode::empty())?;
    let mut entries = Dir::from_fd(copy)?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if ![&b"."[..], b".."].contains(&name.to_bytes()) {
            act(name, &fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)?;
        }
    }
    Ok(())
}

fn is_dir(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

/// A file, whatever its names.
fn identity(stat: &FileStat) -> (nix::libc::dev_t, nix::libc::ino_t) {
    (stat.st_dev, stat.st_ino)
}

/// How many names it has.
#[allow(clippy::unnecessary_cast)] // The types differ between platforms.
fn names(stat: &FileStat) -> u64 {
    stat.st_nlink as u64
}

/// Counts the names below `dir` of each file with several.
fn count_names(dir: &impl AsFd, met: &mut HashMap<(nix::libc::dev_t, nix::libc::ino_t), u64>, depth: usize) -> nix::Result<()> {
    each_entry(dir, |name, stat| {
        if is_dir(stat) {
            if depth < MAX_DEPTH { count_names(&openat(dir, name, dir_flags(), Mode::empty())?, met, depth + 1) } else { Ok(()) }
        } else {
            if names(stat) > 1 {
                *met.entry(identity(stat)).or_default() += 1;
            }
            Ok(())
        }
    })
}

/// Takes setuid, setgid and world-write bits off everything below `dir`, and gives it to `owner`; not what has a name elsewhere, or is too deep.
fn secure(
    dir: &impl AsFd,
    owner: (u32, Option<u32>),
    met: &HashMap<(nix::libc::dev_t, nix::libc::ino_t), u64>,
    depth: usize,
) -> nix::Result<()> {
    each_entry(dir, |name, stat| {
        let link = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK;
        if is_dir(stat) {
            if depth >= MAX_DEPTH {
                return Ok(());
            }
            secure(&openat(dir, name, dir_flags(), Mode::empty())?, owner, met, depth + 1)?;
        } else if names(stat) > 1 && met.get(&identity(stat)).copied().unwrap_or_default() < names(stat) {
            return Ok(());
        }
        if !link {
            fchmodat(dir, name, Mode::from_bits_truncate(stat.st_mode & 0o1775), FchmodatFlags::FollowSymlink)?;
        }
        let (uid, gid) = owner;
        fchownat(dir, name, Some(Uid::from_raw(uid)), gid.map(Gid::from_raw), AtFlags::AT_SYMLINK_NOFOLLOW)
    })
}

/// The number of bytes free for ordinary use where `file` is; the largest number where that cannot be told.
#[must_use]
#[allow(clippy::unnecessary_cast)] // The types differ between platforms.
pub fn free_bytes(file: impl AsFd) -> u64 {
    nix::sys::statvfs::fstatvfs(file).map_or(u64::MAX, |stat| (stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_dead_daemon_left_is_swept_away() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str| BuildDir::numbered(parent.path(), &format!("{PREFIX}{name}"), Shape::Nested).unwrap();
        let (alive, mut dead, kept) = (make("alive"), make("dead"), make("kept"));
        std::fs::write(dead.top_path().join("file"), "x").unwrap();
        // As if the process had been killed: the lock goes, the directory stays.
        dead.kept = true;
        let dead_path = dead.path().to_owned();
        drop(dead);
        let kept = kept.keep(None).unwrap();
        let foreign = parent.path().join(format!("{PREFIX}foreign-0"));
        std::fs::create_dir_all(foreign.join("top")).unwrap();
        sweep(parent.path());
        assert!(alive.path().exists() && kept.exists() && foreign.exists());
        assert!(!dead_path.exists());
    }
}
