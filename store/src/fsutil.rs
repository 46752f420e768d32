//! File system calls beneath held directory descriptors.
//!
//! Nothing here follows a symbolic link below the directory it is given, so that no one who can write there can lead a
//! daemon that runs as root elsewhere.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::failpoints::step;
use crate::{Error, Result};

/// The modification time of everything in a store, in seconds.
pub const STORE_MTIME: i64 = 1;

/// Directories that are open at once while a tree is removed. Deeper ones are moved up first.
const REMOVE_DEPTH: usize = 32;

/// Names that are read from a directory before they are removed.
const REMOVE_BATCH: usize = 4096;

/// The kind of file that `stat` tells of.
pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// The permission bits that `stat` tells of.
pub(crate) fn permissions(stat: &FileStat) -> Mode {
    Mode::from_bits_truncate(stat.st_mode & !SFlag::S_IFMT.bits())
}

/// Whether two `stat`s are of one file.
pub(crate) fn same_file(a: &FileStat, b: &FileStat) -> bool {
    a.st_dev == b.st_dev && a.st_ino == b.st_ino
}

/// How many names the file has that `stat` tells of.
// The type differs between platforms.
#[allow(clippy::unnecessary_cast)]
pub(crate) fn links(stat: &FileStat) -> u64 {
    stat.st_nlink as u64
}

/// A name in an open directory.
#[derive(Clone, Debug)]
pub struct Place<'d> {
    /// The directory.
    pub dir: BorrowedFd<'d>,
    /// The name in it; no slashes.
    pub name: OsString,
    /// The whole file name, for messages only.
    pub shown: PathBuf,
}

impl<'d> Place<'d> {
    /// `name` in `dir`, whose own file name is `shown_dir`.
    pub fn new(dir: BorrowedFd<'d>, name: impl Into<OsString>, shown_dir: &Path) -> Place<'d> {
        let name = name.into();
        Place { dir, shown: shown_dir.join(&name), name }
    }
}

/// Calls `act` with the last component of `path` in its parent directory, which is opened.
///
/// # Errors
/// [`Error::Io`] when the parent cannot be opened or there is none, and those of `act`.
pub fn with_place<T>(path: &Path, act: impl FnOnce(&Place<'_>) -> Result<T>) -> Result<T> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::io("opening", path)(Errno::EINVAL));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let dir = open_dir(parent).map_err(Error::io("opening", parent))?;
    act(&Place { dir: dir.as_fd(), name: name.to_owned(), shown: path.to_owned() })
}

/// Opens the directory `path` for reading; its last component may be a symbolic link.
///
/// # Errors
/// Whatever the system says.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(AT_FDCWD, path, flags, Mode::empty())?)
}

/// Opens the directory `name` in `dir` for reading; a symbolic link is not followed.
///
/// # Errors
/// Whatever the system says; `ENOTDIR` or `ELOOP` when it is a symbolic link.
pub fn open_dir_at(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(dir.as_fd(), name, flags, Mode::empty())?)
}

/// Opens the file `name` in `dir` for reading; neither a symbolic link is followed nor a FIFO waited for.
///
/// # Errors
/// Whatever the system says; `ELOOP` when it is a symbolic link.
pub fn open_file_at(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    Ok(openat(dir.as_fd(), name, flags, Mode::empty())?)
}

/// Opens `name` in `dir`, which may be a symbolic link, to ask what it is and what it has; it cannot be read.
///
/// # Errors
/// Whatever the system says.
pub fn open_link_at(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(openat(dir.as_fd(), name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// What `name` in `dir` is, without following a symbolic link.
///
/// # Errors
/// Whatever the system says.
pub fn lstat_at(dir: impl AsFd, name: &OsStr) -> io::Result<FileStat> {
    Ok(fstatat(dir.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

/// Whether `dir` has an entry `name`, of whatever kind.
///
/// # Errors
/// Whatever the system says, but for the entry not being there.
pub fn exists_at(dir: impl AsFd, name: &OsStr) -> io::Result<bool> {
    match lstat_at(dir, name) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The names in a directory, without `.` and `..`, as the system orders them.
///
/// # Errors
/// Whatever the system says.
pub fn names(dir: impl AsFd) -> io::Result<Vec<OsString>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    // A descriptor of its own, since reading moves the position that duplicates share.
    let mut dir = Dir::from_fd(openat(dir.as_fd(), ".", flags, Mode::empty())?)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Makes `path` and whatever is missing above it, each with the mode `mode` whatever the umask. Returns whether it was
/// missing.
///
/// # Errors
/// [`Error::Io`] with the directory that could not be made.
pub fn make_dirs(path: &Path, mode: u32) -> Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    if let Some(parent) = path.parent()
        && !parent.as_os_str().is_empty()
    {
        make_dirs(parent, mode)?;
    }
    let mode = Mode::from_bits_truncate(mode as nix::libc::mode_t);
    match step("dirs::make", || mkdirat(AT_FDCWD, path, mode)) {
        Ok(()) => {
            fchmodat(AT_FDCWD, path, mode, FchmodatFlags::FollowSymlink).map_err(Error::io("changing mode of", path))?;
            Ok(true)
        }
        Err(Errno::EEXIST) if path.is_dir() => Ok(false),
        Err(error) => Err(Error::io("creating directory", path)(error)),
    }
}

/// Sets the modification time of an open file to [`STORE_MTIME`], and leaves the access time.
pub(crate) fn set_store_mtime(fd: impl AsFd) -> io::Result<()> {
    Ok(nix::sys::stat::futimens(fd.as_fd(), &TimeSpec::UTIME_OMIT, &TimeSpec::new(STORE_MTIME, 0))?)
}

/// Like [`set_store_mtime`], for `name` in `dir` itself, symbolic link or not.
pub(crate) fn set_store_mtime_at(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    let flag = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    Ok(nix::sys::stat::utimensat(dir.as_fd(), name, &TimeSpec::UTIME_OMIT, &TimeSpec::new(STORE_MTIME, 0), flag)?)
}

/// What [`remove_tree`] has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Bytes of the files that had so few links that they are gone now.
    pub bytes: u64,
    /// Files, directories and symbolic links.
    pub entries: u64,
}

impl Removed {
    fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.entries = self.entries.saturating_add(1);
    }
}

/// Removes `name` from `dir`, with all that is beneath it. That it is not there is no error.
///
/// Neither the depth nor the size of the tree matters, and whoever moves things about in it meanwhile only makes the
/// removal fail: nothing outside is ever touched. `shown` is the file name for errors. A file counts in
/// [`Removed::bytes`] when it had at most `link_threshold` links: 1, or 2 where one link is that of deduplication.
///
/// # Errors
/// [`Error::Io`]; part of the tree may be gone.
pub fn remove_tree(dir: impl AsFd, name: &OsStr, shown: &Path, link_threshold: u64) -> Result<Removed> {
    let mut removed = Removed::default();
    // Deep subtrees that were moved up beside the top: removed one after the other.
    let mut moved_up = 0_u64;
    let dir = dir.as_fd();
    let Some(top) = enter(dir, name, shown, link_threshold, &mut removed)? else {
        return Ok(removed);
    };
    let mut stack = vec![top];
    let mut shown = shown.to_owned();
    while let Some(level) = stack.last_mut() {
        if level.pending.is_empty() && !level.fill().map_err(Error::io("reading directory", &shown))? {
            let name = std::mem::take(&mut level.name);
            stack.pop();
            let parent = stack.last().map_or(dir, |parent| parent.dir.as_fd());
            match step("remove::rmdir", || unlink(parent, &name, UnlinkatFlags::RemoveDir)) {
                Ok(()) | Err(Errno::ENOENT) => removed.add(0),
                Err(error) => return Err(Error::io("cannot unlink", &shown)(error)),
            }
            if !stack.is_empty() {
                shown.pop();
            }
            continue;
        }
        let Some((child, likely_dir)) = level.pending.pop() else {
            continue;
        };
        shown.push(&child);
        if !likely_dir && link_threshold == 0 {
            match step("remove::unlink", || unlinkat(level.dir.as_fd(), child.as_os_str(), UnlinkatFlags::NoRemoveDir)) {
                Ok(()) | Err(Errno::ENOENT) => {
                    removed.add(0);
                    shown.pop();
                    continue;
                }
                // A directory after all.
                Err(Errno::EISDIR | Errno::EPERM) => {}
                Err(error) => return Err(Error::io("cannot unlink", &shown)(error)),
            }
        }
        if stack.len() < REMOVE_DEPTH {
            let Some(level) = stack.last() else { continue };
            match enter(level.dir.as_fd(), &child, &shown, link_threshold, &mut removed)? {
                Some(level) => stack.push(level),
                None => {
                    shown.pop();
                }
            }
        } else if let (Some(level), Some(top)) = (stack.last(), stack.first()) {
            let stat = match lstat_at(&level.dir, &child) {
                Ok(stat) => stat,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    shown.pop();
                    continue;
                }
                Err(error) => return Err(Error::io("getting status of", &shown)(error)),
            };
            if kind(&stat) == SFlag::S_IFDIR {
                // Moving a directory needs write permission on itself, for its `..`.
                drop(open_writable(level.dir.as_fd(), &child, &shown)?);
                let place = OsString::from(format!(".fruixd-removing-{moved_up}"));
                moved_up += 1;
                nix::fcntl::renameat(level.dir.as_fd(), child.as_os_str(), top.dir.as_fd(), place.as_os_str())
                    .map_err(Error::io("moving", &shown))?;
            } else {
                remove_file(level.dir.as_fd(), &child, &shown, &stat, link_threshold, &mut removed)?;
            }
            shown.pop();
        }
    }
    Ok(removed)
}

/// A directory that is being emptied.
struct Level {
    dir: Dir,
    name: OsString,
    /// Names and whether they are, as far as known, directories.
    pending: Vec<(OsString, bool)>,
}

impl Level {
    /// Reads names from the start; those read before are gone by now. Returns whether there are any.
    fn fill(&mut self) -> io::Result<bool> {
        for entry in self.dir.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let likely_dir = matches!(entry.file_type(), Some(Type::Directory) | None);
            self.pending.push((OsStr::from_bytes(name).to_owned(), likely_dir));
            if self.pending.len() >= REMOVE_BATCH {
                break;
            }
        }
        Ok(!self.pending.is_empty())
    }
}

/// Removes `name` if it is no directory; else opens it so that it can be emptied.
fn enter(dir: BorrowedFd<'_>, name: &OsStr, shown: &Path, link_threshold: u64, removed: &mut Removed) -> Result<Option<Level>> {
    let stat = match lstat_at(dir, name) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("getting status of", shown)(error)),
    };
    if kind(&stat) != SFlag::S_IFDIR {
        remove_file(dir, name, shown, &stat, link_threshold, removed)?;
        return Ok(None);
    }
    let fd = open_writable(dir, name, shown)?;
    let dir = Dir::from_fd(fd).map_err(Error::io("opening", shown))?;
    Ok(Some(Level { dir, name: name.to_owned(), pending: Vec::new() }))
}

/// Removes a name, whatever flags file or directory have that forbid it.
fn unlink(dir: BorrowedFd<'_>, name: &OsStr, flags: UnlinkatFlags) -> nix::Result<()> {
    let result = unlinkat(dir, name, flags);
    #[cfg(target_os = "freebsd")]
    if result == Err(Errno::EPERM) && [name, OsStr::new(".")].iter().all(|name| crate::sys::clear_flags(dir, name).is_ok()) {
        return unlinkat(dir, name, flags);
    }
    result
}

fn remove_file(dir: BorrowedFd<'_>, name: &OsStr, shown: &Path, stat: &FileStat, link_threshold: u64, removed: &mut Removed) -> Result<()> {
    match step("remove::unlink", || unlink(dir, name, UnlinkatFlags::NoRemoveDir)) {
        Ok(()) => {
            let gone = links(stat) <= link_threshold;
            removed.add(if gone { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 });
            Ok(())
        }
        Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(Error::io("cannot unlink", shown)(error)),
    }
}

/// Opens the directory `name` in `dir` and makes sure that this process may change what is in it.
fn open_writable(dir: BorrowedFd<'_>, name: &OsStr, shown: &Path) -> Result<OwnedFd> {
    let fd = match open_dir_at(dir, name) {
        Ok(fd) => fd,
        Err(error) if error.raw_os_error() == Some(Errno::EACCES as i32) => {
            make_accessible(dir, name).map_err(Error::io("changing mode of", shown))?;
            open_dir_at(dir, name).map_err(Error::io("opening", shown))?
        }
        Err(error) => return Err(Error::io("opening", shown)(error)),
    };
    let stat = fstat(&fd).map_err(Error::io("getting status of", shown))?;
    // Root needs no permission, and leaves foreign directories as they are.
    if !permissions(&stat).contains(Mode::S_IRWXU) && !nix::unistd::geteuid().is_root() {
        fchmod(&fd, Mode::S_IRWXU).map_err(Error::io("changing mode of", shown))?;
    }
    Ok(fd)
}

/// Gives the owner all permissions on `name` in `dir`, which he may not even read, without following a symbolic link.
pub(crate) fn make_accessible(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let held = openat(dir.as_fd(), name, flags, Mode::empty())?;
        let stat = fstat(&held)?;
        if kind(&stat) == SFlag::S_IFLNK {
            return Err(Errno::ELOOP.into());
        }
        let mode = permissions(&stat)
            | Mode::S_IRUSR
            | Mode::S_IWUSR
            | (if kind(&stat) == SFlag::S_IFDIR { Mode::S_IXUSR } else { Mode::empty() });
        use std::os::fd::AsRawFd;
        // The only way to change the mode of a file that can only be opened with O_PATH.
        let through = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
        fchmodat(AT_FDCWD, &through, mode, FchmodatFlags::FollowSymlink)?;
        Ok(())
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let stat = lstat_at(&dir, name)?;
        let mode = permissions(&stat)
            | Mode::S_IRUSR
            | Mode::S_IWUSR
            | (if kind(&stat) == SFlag::S_IFDIR { Mode::S_IXUSR } else { Mode::empty() });
        fchmodat(dir.as_fd(), name, mode, FchmodatFlags::NoFollowSymlink)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::testing::temp_dir;

    #[test]
    fn deep_and_locked_trees_go_and_nothing_else() {
        let (_dir, root) = temp_dir();
        let canary = root.join("canary");
        std::fs::create_dir(&canary).unwrap();
        std::fs::write(canary.join("file"), "alive").unwrap();
        std::fs::create_dir(root.join("top")).unwrap();
        // Deeper than a file name can say and than descriptors would last.
        let mut dir = open_dir(&root.join("top")).unwrap();
        for depth in 0..3000 {
            if depth % 500 == 0 {
                nix::unistd::symlinkat(&canary, &dir, "link").unwrap();
                drop(openat(&dir, "file", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRUSR).unwrap());
            }
            mkdirat(&dir, "d", Mode::S_IRWXU).unwrap();
            dir = open_dir_at(&dir, OsStr::new("d")).unwrap();
        }
        let locked = root.join("top/locked");
        std::fs::create_dir(&locked).unwrap();
        std::fs::write(locked.join("file"), "").unwrap();
        symlink(&canary, locked.join("link")).unwrap();
        std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o0)).unwrap();
        let parent = open_dir(&root).unwrap();
        let removed = remove_tree(&parent, OsStr::new("top"), &root.join("top"), 1).unwrap();
        assert_eq!(removed.entries, 1 + 3000 + 2 * 6 + 3);
        assert_eq!(names(&parent).unwrap(), [OsString::from("canary")]);
        assert_eq!(std::fs::read_to_string(canary.join("file")).unwrap(), "alive");
        // It is gone, which is what was wanted.
        assert_eq!(remove_tree(&parent, OsStr::new("top"), &root.join("top"), 1).unwrap(), Removed::default());
    }

    #[test]
    fn bytes_count_when_the_last_link_goes() {
        let (_dir, root) = temp_dir();
        std::fs::create_dir(root.join("a")).unwrap();
        std::fs::write(root.join("a/own"), [0; 100]).unwrap();
        std::fs::write(root.join("kept"), [0; 1000]).unwrap();
        std::fs::hard_link(root.join("kept"), root.join("a/shared")).unwrap();
        let dir = open_dir(&root).unwrap();
        let remove = |threshold| remove_tree(&dir, OsStr::new("a"), &root.join("a"), threshold).unwrap();
        assert_eq!(remove(1), Removed { bytes: 100, entries: 3 });
        std::fs::create_dir(root.join("a")).unwrap();
        std::fs::hard_link(root.join("kept"), root.join("a/shared")).unwrap();
        assert_eq!(remove(2), Removed { bytes: 1000, entries: 2 });
    }

    #[test]
    fn swapping_directories_for_links_leads_nowhere() {
        let (_dir, root) = temp_dir();
        let canary = root.join("canary");
        std::fs::create_dir(&canary).unwrap();
        for i in 0..50 {
            std::fs::write(canary.join(i.to_string()), "alive").unwrap();
        }
        let parent = open_dir(&root).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (a, b) = (root.join("top/dir"), root.join("swap"));
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = symlink(&canary, &b);
                    #[cfg(target_os = "linux")]
                    let _ = rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, rustix::fs::RenameFlags::EXCHANGE);
                    #[cfg(not(target_os = "linux"))]
                    let _ = std::fs::rename(&b, &a);
                    let _ = std::fs::remove_file(&b);
                }
            });
            for _ in 0..300 {
                let _ = std::fs::create_dir_all(root.join("top/dir"));
                for i in 0..20 {
                    let _ = std::fs::write(root.join(format!("top/dir/new{i}")), "");
                }
                // It may fail; it must not touch the canary.
                let _ = remove_tree(&parent, OsStr::new("top"), &root.join("top"), 0);
                for i in 0..20 {
                    let _ = std::fs::remove_file(canary.join(format!("new{i}")));
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        for i in 0..50 {
            assert!(canary.join(i.to_string()).exists(), "{i}");
        }
    }
}
