//! Files in a root that is being made, and the sources of mounts: one component at a time, following no link but where it is allowed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat, lstat, mkdirat};
use nix::unistd::{Gid, fchownat, symlinkat};

use crate::{Entry, Found, Lookup, Source};

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The bits that [`Mode`] knows.
fn mode(bits: u32) -> Mode {
    #[allow(clippy::unnecessary_cast, clippy::cast_possible_truncation)] // The type differs between platforms; permission bits fit all.
    Mode::from_bits_truncate((bits & 0o7777) as nix::libc::mode_t)
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// The components of an absolute path.
fn parts(path: &Path) -> io::Result<Vec<&OsStr>> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => parts.push(name),
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::EINVAL.into()),
        }
    }
    if path.is_absolute() { Ok(parts) } else { Err(Errno::EINVAL.into()) }
}

/// Opens `path` below `root`, making directories that are not there.
fn enter(root: &Path, path: &[&OsStr]) -> io::Result<OwnedFd> {
    let mut dir = openat(AT_FDCWD, root, DIRECTORY, Mode::empty())?;
    for name in path {
        dir = match openat(&dir, *name, DIRECTORY, Mode::empty()) {
            Err(Errno::ENOENT) => {
                mkdirat(&dir, *name, mode(0o755))?;
                // Whatever mask the caller has.
                fchmodat(&dir, *name, mode(0o755), FchmodatFlags::FollowSymlink)?;
                openat(&dir, *name, DIRECTORY, Mode::empty())?
            }
            other => other?,
        };
    }
    Ok(dir)
}

/// The opened directory that `path` is in, and its name there.
fn split<'a>(root: &Path, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
    let parts = parts(path)?;
    let (name, above) = parts.split_last().ok_or(Errno::EINVAL)?;
    Ok((enter(root, above)?, *name))
}

fn create(root: &Path, path: &Path, contents: &[u8]) -> io::Result<()> {
    let (dir, name) = split(root, path)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(&dir, name, flags, mode(0o600))?);
    file.write_all(contents)?;
    Ok(fchmod(&file, mode(0o644))?)
}

/// See [`Kernel::make`](crate::Kernel::make).
pub(crate) fn make(root: &Path, entry: &Entry) -> io::Result<()> {
    match entry {
        Entry::Dir { path, mode: bits, gid } => {
            let parts = parts(path)?;
            let dir = enter(root, &parts)?;
            // Through its own `.`, since the root has no name below itself.
            if let Some(gid) = gid {
                fchownat(&dir, ".", None, Some(Gid::from_raw(*gid)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            }
            Ok(fchmodat(&dir, ".", mode(*bits), FchmodatFlags::FollowSymlink)?)
        }
        Entry::File { path, contents } => create(root, path, contents),
        Entry::Link { path, target } => {
            let (dir, name) = split(root, path)?;
            Ok(symlinkat(target, &dir, name)?)
        }
        Entry::Users { path, users } => {
            // The C library makes it by name. What is on the way has just been looked at, and nobody else can change the root.
            let _dir = split(root, path)?;
            crate::sys::write_user_database(&root.join(path.strip_prefix("/").unwrap_or(path)), users)
        }
    }
}

/// See [`Kernel::make_place`](crate::Kernel::make_place).
pub(crate) fn make_place(root: &Path, path: &Path, is_dir: bool) -> io::Result<()> {
    if is_dir {
        return enter(root, &parts(path)?).map(drop);
    }
    match create(root, path, b"") {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let (dir, name) = split(root, path)?;
            let there = fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            if kind(&there) == SFlag::S_IFREG { Ok(()) } else { Err(error) }
        }
        other => other,
    }
}

/// See [`Kernel::find`](crate::Kernel::find).
pub(crate) fn find(path: &Path, lookup: Lookup) -> io::Result<Found> {
    let strict;
    let path = match lookup {
        Lookup::Strict => path,
        Lookup::Link => match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                strict = match parent.canonicalize() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
                    parent => parent?.join(name),
                };
                &strict
            }
            _ => path,
        },
        Lookup::Follow => {
            strict = match path.canonicalize() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
                path => path?,
            };
            &strict
        }
    };
    let parts = parts(path)?;
    let mut dir = openat(AT_FDCWD, "/", DIRECTORY, Mode::empty())?;
    let Some((name, above)) = parts.split_last() else {
        return Ok(Found::Dir(Source { path: path.to_owned(), inode: fstat(&dir)?.st_ino }));
    };
    for part in above {
        dir = match openat(&dir, *part, DIRECTORY, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(Found::Missing),
            other => other?,
        };
    }
    let file = match openat(&dir, *name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(Found::Missing),
        other => other?,
    };
    let stat = fstat(&file)?;
    let source = Source { path: path.to_owned(), inode: stat.st_ino };
    Ok(match kind(&stat) {
        SFlag::S_IFDIR => Found::Dir(source),
        SFlag::S_IFREG => Found::File(source),
        SFlag::S_IFLNK => Found::Link(readlinkat(&dir, *name)?.into()),
        _ => Found::Other,
    })
}

/// The inode number of what is at a path.
#[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
pub(crate) fn inode(path: &Path) -> io::Result<u64> {
    Ok(lstat(path)?.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn mode_of(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn entries_are_made_as_they_are_described() {
        let root = tempfile::tempdir().unwrap();
        let dir = |path: &str, mode| Entry::Dir { path: path.into(), mode, gid: None };
        make(root.path(), &dir("/tmp", 0o1777)).unwrap();
        make(root.path(), &dir("/a/b", 0o700)).unwrap();
        make(root.path(), &Entry::File { path: "/etc/group".into(), contents: b"x".to_vec() }).unwrap();
        make(root.path(), &Entry::Link { path: "/a/b/link".into(), target: "/etc".into() }).unwrap();
        make_place(root.path(), Path::new("/a/place"), false).unwrap();
        make_place(root.path(), Path::new("/a/place"), false).unwrap();
        make(root.path(), &dir("/", 0o555)).unwrap();
        let modes = ["", "tmp", "a", "a/b", "etc", "etc/group", "a/place"].map(|path| mode_of(&root.path().join(path)));
        assert_eq!(modes, [0o555, 0o1777, 0o755, 0o700, 0o755, 0o644, 0o644]);
        assert_eq!(std::fs::read(root.path().join("etc/group")).unwrap(), b"x");
        // Nothing is overwritten, and no link is followed, neither on the way nor at its end.
        assert!(make(root.path(), &Entry::File { path: "/etc/group".into(), contents: Vec::new() }).is_err());
        for path in ["/a/b/link/new", "/a/b/link"] {
            assert!(make(root.path(), &Entry::File { path: path.into(), contents: Vec::new() }).is_err(), "{path}");
            assert!(make_place(root.path(), Path::new(path), true).is_err(), "{path}");
        }
        assert!(make_place(root.path(), Path::new("/a/../b"), true).is_err());
    }

    #[test]
    fn sources_with_links_on_the_way_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        std::fs::create_dir(dir.join("real")).unwrap();
        std::fs::write(dir.join("real/file"), "").unwrap();
        symlink("real", dir.join("link")).unwrap();
        let find = |path: &str, lookup| super::find(&dir.join(path), lookup);
        assert!(matches!(find("real/file", Lookup::Strict), Ok(Found::File(_))));
        assert!(matches!(find("real", Lookup::Strict), Ok(Found::Dir(_))));
        assert_eq!(find("link", Lookup::Strict).unwrap(), Found::Link("real".into()));
        assert!(find("link/file", Lookup::Strict).is_err());
        let Ok(Found::File(source)) = find("link/file", Lookup::Link) else { panic!() };
        assert_eq!(source.path, dir.join("real/file"));
        assert!(matches!(find("link", Lookup::Follow), Ok(Found::Dir(_))));
        assert_eq!(find("none/file", Lookup::Strict).unwrap(), Found::Missing);
        assert_eq!(find("none/file", Lookup::Follow).unwrap(), Found::Missing);
    }
}
