//! Canonical metadata: what tells two trees with the same archive apart is taken away.
//!
//! Every file gets mode 0444 or 0555, modification time 1 and the daemon as its owner; extended attributes go, and access control
//! lists with them. It is done through descriptors of the very files that were looked at, and before anyone else can reach them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use fruix_protocol::limits::NAR_DEPTH;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown, fchownat, getegid, geteuid};

use crate::fsutil::{
    Place, STORE_MTIME, kind, links, lstat_at, make_accessible, names, open_dir_at, open_file_at, permissions, same_file, set_store_mtime,
    set_store_mtime_at,
};
use crate::{Error, Result};

/// Attributes that are not the file's own but its label under the system's security policy; they cannot be removed.
#[cfg(any(target_os = "linux", target_os = "android"))]
const KEPT_ATTRIBUTES: [&[u8]; 3] = [b"security.csm", b"security.selinux", b"system.nfs4_acl"];

/// The files with several links that were met while the outputs of one build were canonicalised, so that hard links among them are
/// told from hard links to something else.
#[derive(Debug, Default)]
pub struct InodesSeen {
    files: HashMap<(u64, u64), Seen>,
}

#[derive(Debug)]
struct Seen {
    links: u64,
    met: u64,
    path: PathBuf,
}

impl InodesSeen {
    /// No files.
    pub fn new() -> InodesSeen {
        InodesSeen::default()
    }

    // Device and inode numbers have different types on different platforms.
    #[allow(clippy::unnecessary_cast)]
    fn key(stat: &FileStat) -> (u64, u64) {
        (stat.st_dev as u64, stat.st_ino as u64)
    }

    /// Counts a file that has several links. Returns whether it was met before.
    fn meet(&mut self, stat: &FileStat, path: &Path) -> bool {
        if links(stat) < 2 {
            return false;
        }
        let seen = self.files.entry(Self::key(stat)).or_insert_with(|| Seen { links: links(stat), met: 0, path: path.to_owned() });
        seen.met += 1;
        seen.met > 1
    }

    fn contains(&self, stat: &FileStat) -> bool {
        self.files.contains_key(&Self::key(stat))
    }

    /// Refuses when a file has a link that was not met: whoever has it sees, and perhaps changes, what is to be an output. To be called
    /// when all outputs of the build are canonical, and what was built in is removed.
    ///
    /// # Errors
    /// [`Error::Suspicious`].
    pub fn refuse_outside_links(&self) -> Result<()> {
        match self.files.values().find(|seen| seen.met < seen.links) {
            Some(seen) => Err(Error::Suspicious { path: seen.path.clone() }),
            None => Ok(()),
        }
    }
}

/// Refuses an output that others than the build user `uid` may write to or own. Only the output's top is looked at: what is beneath is
/// [`canonicalise`]'s affair.
///
/// # Errors
/// [`Error::Suspicious`], [`Error::Io`].
pub fn check_output(place: &Place<'_>, uid: Option<u32>) -> Result<()> {
    let stat = lstat_at(place.dir, &place.name).map_err(Error::io("getting attributes of path", &place.shown))?;
    let others_write = kind(&stat) != SFlag::S_IFLNK && permissions(&stat).intersects(Mode::S_IWGRP | Mode::S_IWOTH);
    if others_write || uid.is_some_and(|uid| stat.st_uid != uid) {
        return Err(Error::Suspicious { path: place.shown.clone() });
    }
    // It is moved before anything else, which a flag may forbid.
    #[cfg(target_os = "freebsd")]
    if crate::sys::has_flags(&stat) {
        crate::sys::clear_flags(place.dir, &place.name).map_err(Error::io("clearing flags of", &place.shown))?;
    }
    Ok(())
}

/// Gives the tree at `place` canonical metadata.
///
/// With `from`, each file must belong to that user, or have been met before under another name: everything else is a hard link to
/// someone else's file, which must not be touched. Without, owners are not looked at.
///
/// # Errors
/// [`Error::UnsupportedType`], [`Error::InvalidOwnership`], [`Error::TooDeep`], [`Error::Changed`] when someone still works on the tree,
/// [`Error::Io`]. Part of the tree may be canonical then.
pub fn canonicalise(place: &Place<'_>, from: Option<u32>, seen: &mut InodesSeen) -> Result<()> {
    let mut walk = Walk { from, seen, uid: geteuid(), gid: getegid() };
    walk.node(place, 0)
}

struct Walk<'s> {
    from: Option<u32>,
    seen: &'s mut InodesSeen,
    uid: Uid,
    gid: Gid,
}

impl Walk<'_> {
    fn node(&mut self, place: &Place<'_>, depth: usize) -> Result<()> {
        let shown = &place.shown;
        if depth >= NAR_DEPTH {
            return Err(Error::TooDeep { path: shown.clone() });
        }
        let stat = lstat_at(place.dir, &place.name).map_err(Error::io("getting attributes of path", shown))?;
        let what = kind(&stat);
        if !matches!(what, SFlag::S_IFREG | SFlag::S_IFDIR | SFlag::S_IFLNK) {
            return Err(Error::UnsupportedType { path: shown.clone() });
        }
        if self.from.is_some_and(|from| stat.st_uid != from) {
            if what == SFlag::S_IFDIR || !self.seen.contains(&stat) {
                return Err(Error::InvalidOwnership { path: shown.clone() });
            }
            self.seen.meet(&stat, shown);
            return Ok(());
        }
        #[cfg(target_os = "freebsd")]
        if crate::sys::has_flags(&stat) {
            crate::sys::clear_flags(place.dir, &place.name).map_err(Error::io("clearing flags of", shown))?;
        }
        // Before its names are counted: each gets a file of its own.
        #[cfg(target_os = "freebsd")]
        let stat = if what == SFlag::S_IFLNK { plain_link(place, stat)? } else { stat };
        if what != SFlag::S_IFDIR && self.seen.meet(&stat, shown) {
            return Ok(());
        }
        if what == SFlag::S_IFLNK {
            if self.chown_needed(&stat) {
                fchownat(place.dir, place.name.as_os_str(), Some(self.uid), Some(self.gid), AtFlags::AT_SYMLINK_NOFOLLOW)
                    .map_err(Error::io("changing owner of", shown))?;
            }
            if !has_store_mtime(&stat) {
                set_store_mtime_at(place.dir, &place.name).map_err(Error::io("changing modification time of", shown))?;
            }
            return Ok(());
        }
        let fd = open_any(place, what == SFlag::S_IFDIR).map_err(Error::io("opening", shown))?;
        let opened = fstat(&fd).map_err(Error::io("getting attributes of path", shown))?;
        if !same_file(&stat, &opened) || kind(&opened) != what {
            return Err(Error::Changed { path: shown.clone() });
        }
        self.file(&fd, &opened, shown)?;
        if what == SFlag::S_IFDIR {
            for name in names(&fd).map_err(Error::io("reading directory", shown))? {
                let shown = shown.join(&name);
                self.node(&Place { dir: fd.as_fd(), name, shown }, depth + 1)?;
            }
        }
        if !has_store_mtime(&opened) {
            set_store_mtime(&fd).map_err(Error::io("changing modification time of", shown))?;
        }
        Ok(())
    }

    /// Owner, attributes and mode of a file or directory.
    fn file(&self, fd: &OwnedFd, stat: &FileStat, shown: &Path) -> Result<()> {
        if self.chown_needed(stat) {
            fchown(fd, Some(self.uid), Some(self.gid)).map_err(Error::io("changing owner of", shown))?;
        }
        strip_attributes(fd).map_err(Error::io("removing extended attributes of", shown))?;
        // An access control list that was removed may have changed the mode.
        let stat = fstat(fd).map_err(Error::io("getting attributes of path", shown))?;
        let mode = canonical_mode(&stat);
        if permissions(&stat) != mode {
            fchmod(fd, mode).map_err(Error::io("changing mode of", shown))?;
        }
        Ok(())
    }

    /// Whether the owner is another. The group matters on systems where it comes from the directory.
    fn chown_needed(&self, stat: &FileStat) -> bool {
        stat.st_uid != self.uid.as_raw() || (self.uid.is_root() && stat.st_gid != self.gid.as_raw())
    }
}

/// 0555 for directories and for files that their owner may execute, else 0444.
fn canonical_mode(stat: &FileStat) -> Mode {
    let all_read = Mode::S_IRUSR | Mode::S_IRGRP | Mode::S_IROTH;
    let all_execute = Mode::S_IXUSR | Mode::S_IXGRP | Mode::S_IXOTH;
    if kind(stat) == SFlag::S_IFDIR || permissions(stat).contains(Mode::S_IXUSR) { all_read | all_execute } else { all_read }
}

fn has_store_mtime(stat: &FileStat) -> bool {
    stat.st_mtime == STORE_MTIME && stat.st_mtime_nsec == 0
}

fn open_any(place: &Place<'_>, directory: bool) -> io::Result<OwnedFd> {
    let open = |name: &OsStr| if directory { open_dir_at(place.dir, name) } else { open_file_at(place.dir, name) };
    match open(&place.name) {
        Err(error) if error.raw_os_error() == Some(Errno::EACCES as i32) => {
            make_accessible(place.dir, &place.name)?;
            open(&place.name)
        }
        result => result,
    }
}

/// Removes all extended attributes, and so access control lists, of an open file.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn strip_attributes(fd: impl AsFd) -> io::Result<()> {
    use rustix::fs::{flistxattr, fremovexattr};
    use rustix::io::Errno;

    let fd = fd.as_fd();
    let mut buffer = [0_u8; 1024];
    let list = match flistxattr(fd, &mut buffer[..]) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        Ok(size) => buffer.get(..size).unwrap_or_default().to_vec(),
        Err(Errno::RANGE) => {
            let mut list = vec![0; 65536];
            let size = flistxattr(fd, &mut list[..])?;
            list.truncate(size);
            list
        }
        Err(error) => return Err(error.into()),
    };
    let mut writable = geteuid().is_root();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !KEPT_ATTRIBUTES.contains(name)) {
        if !writable {
            let stat = fstat(fd)?;
            fchmod(fd, permissions(&stat) | Mode::S_IWUSR)?;
            writable = true;
        }
        match fremovexattr(fd, name) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes the extended attributes that users may set of an open file, and its access control lists: with those of NFSv4, as ZFS has them, somebody
/// else could still write to a file of root's that nobody may write to by its mode.
#[cfg(target_os = "freebsd")]
pub(crate) fn strip_attributes(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd();
    crate::sys::strip_access_lists(fd)?;
    crate::sys::attributes(fd)?.iter().try_for_each(|name| crate::sys::remove_attribute(fd, name))
}

/// A symbolic link without extended attributes and access control lists. A list can let others remove it, whatever the directory says. Lists of links
/// are changed by name only, so that it is made anew.
#[cfg(target_os = "freebsd")]
fn plain_link(place: &Place<'_>, stat: FileStat) -> Result<FileStat> {
    let Place { dir, name, shown } = place;
    let remake = || {
        let link = crate::fsutil::open_link_at(dir, name)?;
        if foreign_attributes(&link)?.is_empty() {
            return Ok(stat);
        }
        let target = nix::fcntl::readlinkat(dir, name.as_os_str())?;
        nix::unistd::unlinkat(dir, name.as_os_str(), nix::unistd::UnlinkatFlags::NoRemoveDir)?;
        nix::unistd::symlinkat(target.as_os_str(), dir, name.as_os_str())?;
        lstat_at(dir, name)
    };
    remake().map_err(Error::io("removing extended attributes of", shown))
}

/// The extended attributes of an open file that [`strip_attributes`] would remove.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn foreign_attributes(fd: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0; 65536];
    let size = match rustix::fs::flistxattr(fd.as_fd(), &mut list[..]) {
        Err(rustix::io::Errno::NOTSUP) => 0,
        other => other?,
    };
    list.truncate(size);
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !KEPT_ATTRIBUTES.contains(name));
    Ok(names.map(<[u8]>::to_vec).collect())
}

/// The extended attributes of an open file that [`strip_attributes`] would remove.
#[cfg(target_os = "freebsd")]
pub(crate) fn foreign_attributes(fd: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let mut found = crate::sys::attributes(fd.as_fd())?;
    found.extend(crate::sys::access_lists(fd.as_fd())?.into_iter().map(|(_, name)| name.as_bytes().to_vec()));
    Ok(found)
}

/// Whether an open file has a flag that keeps even root from removing it.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn frozen(fd: impl AsFd) -> bool {
    use rustix::fs::{IFlags, ioctl_getflags};
    ioctl_getflags(fd.as_fd()).is_ok_and(|flags| flags.intersects(IFlags::IMMUTABLE | IFlags::APPEND))
}

/// Whether an open file has a flag, which may keep even root from removing it.
#[cfg(target_os = "freebsd")]
pub(crate) fn frozen(fd: impl AsFd) -> bool {
    fstat(fd).is_ok_and(|stat| crate::sys::has_flags(&stat))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::fsutil::with_place;
    use crate::testing::temp_dir;

    fn run(path: &Path, from: Option<u32>, seen: &mut InodesSeen) -> Result<()> {
        with_place(path, |place| canonicalise(place, from, seen))
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn me() -> u32 {
        geteuid().as_raw()
    }

    #[test]
    fn everything_becomes_canonical() {
        let (_dir, root) = temp_dir();
        let out = root.join("out");
        fs::create_dir_all(out.join("sub/locked")).unwrap();
        for (name, mode) in [("setuid", 0o4755), ("secret", 0o000), ("shared", 0o666), ("group-x", 0o654), ("own-x", 0o700)] {
            fs::write(out.join(name), name).unwrap();
            set_mode(&out.join(name), mode);
        }
        symlink("/etc/passwd", out.join("link")).unwrap();
        fs::write(out.join("sub/locked/file"), "").unwrap();
        fs::hard_link(out.join("shared"), out.join("sub/same")).unwrap();
        set_mode(&out.join("sub/locked"), 0o000);
        let before = fs::metadata("/etc/passwd").unwrap().mtime();
        let mut seen = InodesSeen::new();
        run(&out, Some(me()), &mut seen).unwrap();
        seen.refuse_outside_links().unwrap();
        let expected = [
            ("", 0o555),
            ("setuid", 0o555),
            ("secret", 0o444),
            ("shared", 0o444),
            ("group-x", 0o444),
            ("own-x", 0o555),
            ("sub", 0o555),
            ("sub/locked", 0o555),
            ("sub/locked/file", 0o444),
            ("sub/same", 0o444),
        ];
        for (name, expected) in expected {
            assert_eq!(mode(&out.join(name)), expected, "{name}");
            assert_eq!(fs::metadata(out.join(name)).unwrap().mtime(), 1, "{name}");
        }
        assert_eq!(fs::symlink_metadata(out.join("link")).unwrap().mtime(), 1);
        assert_eq!(fs::metadata("/etc/passwd").unwrap().mtime(), before);
        // So that the directory can be removed by an ordinary user.
        for name in ["", "sub", "sub/locked"] {
            set_mode(&out.join(name), 0o755);
        }
    }

    #[test]
    fn unsupported_types_are_refused() {
        let (_dir, root) = temp_dir();
        let out = root.join("out");
        fs::create_dir(&out).unwrap();
        nix::unistd::mkfifo(&out.join("pipe"), Mode::S_IRWXU).unwrap();
        let error = run(&out, None, &mut InodesSeen::new()).unwrap_err();
        assert_eq!(error.to_string(), format!("file `{}' has an unsupported type", out.join("pipe").display()));
        set_mode(&out, 0o755);
    }

    #[test]
    fn foreign_files_are_refused_untouched() {
        let (_dir, root) = temp_dir();
        let file = root.join("file");
        fs::write(&file, "mine").unwrap();
        set_mode(&file, 0o640);
        let error = run(&file, Some(me() + 1), &mut InodesSeen::new()).unwrap_err();
        assert_eq!(error.to_string(), format!("invalid ownership on file `{}'", file.display()));
        assert_eq!(mode(&file), 0o640);
    }

    #[test]
    fn links_to_outside_are_refused() {
        let (_dir, root) = temp_dir();
        let out = root.join("out");
        fs::create_dir(&out).unwrap();
        fs::write(root.join("outside"), "").unwrap();
        fs::hard_link(root.join("outside"), out.join("inside")).unwrap();
        let mut seen = InodesSeen::new();
        run(&out, Some(me()), &mut seen).unwrap();
        let error = seen.refuse_outside_links().unwrap_err();
        let path = out.join("inside");
        assert_eq!(error.to_string(), format!("suspicious ownership or permission on `{}'; rejecting this build output", path.display()));
        // With the other link among the outputs it is none of that.
        run(&root.join("outside"), Some(me()), &mut seen).unwrap();
        seen.refuse_outside_links().unwrap();
        set_mode(&out, 0o755);
    }

    #[test]
    fn outputs_that_others_may_write_are_refused() {
        let (_dir, root) = temp_dir();
        let out = root.join("out");
        fs::create_dir(&out).unwrap();
        for (mode, uid, good) in
            [(0o755, None, true), (0o775, None, false), (0o757, None, false), (0o700, Some(me()), true), (0o700, Some(me() + 1), false)]
        {
            set_mode(&out, mode);
            assert_eq!(with_place(&out, |place| check_output(place, uid)).is_ok(), good, "{mode:o}");
        }
        symlink("x", root.join("link")).unwrap();
        with_place(&root.join("link"), |place| check_output(place, Some(me()))).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn attributes_go() {
        let (_dir, root) = temp_dir();
        let file = root.join("file");
        fs::write(&file, "").unwrap();
        set_mode(&file, 0o444);
        set_mode(&file, 0o644);
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(&file, "user.test", b"x", flags).is_err() {
            return;
        }
        run(&file, None, &mut InodesSeen::new()).unwrap();
        let mut list = [0_u8; 256];
        assert_eq!(rustix::fs::listxattr(&file, &mut list[..]), Ok(0));
        assert_eq!(mode(&file), 0o444);
    }
}
