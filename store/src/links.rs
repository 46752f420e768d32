//! Deduplication: equal files become hard links of one another.
//!
//! `STORE/.links` has one hard link for each file that is known, by the name of the SHA-256 hash of its archive (which includes the
//! executable bit), in base 32. Files of less than 8 KiB, symbolic links and directories take no part. A link that nothing else uses is
//! removed by the collector, at whatever moment: nobody relies on it.
//!
//! A link is used only when it is what its name says: of the right size, mode and owner, and equal byte by byte to the file that is to be
//! replaced by it. Otherwise one damaged file would spread.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use fruix_drv::{Hash, HashAlgo};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use crate::failpoints::step;
use crate::fsutil::{Place, STORE_MTIME, kind, links, lstat_at, open_dir_at, open_file_at, permissions, same_file, set_store_mtime};
use crate::gc::{Report, Verbosity, show_bytes};
use crate::{Error, Result, Store};

/// Files with fewer bytes stay as they are: they would make `.links` large and save little.
pub(crate) const MIN_SIZE: u64 = 8192;

/// Directories within one another beyond which files stay as they are. No archive is that deep.
const MAX_DEPTH: usize = 128;

/// How often to look again after something has changed under us.
const ATTEMPTS: usize = 10;

/// What deduplication has saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OptimiseStats {
    /// Files that became links.
    pub files_linked: u64,
    /// The sum of their sizes in bytes.
    pub bytes_freed: u64,
    /// The blocks of 512 bytes that they had.
    pub blocks_freed: u64,
}

/// Deduplicates trees.
pub(crate) struct Deduplicator<'a, 'r> {
    store: &'a Store,
    links: OwnedFd,
    shown: PathBuf,
    /// Inodes that are known to have a link.
    known: HashSet<u64>,
    pub(crate) stats: OptimiseStats,
    report: &'a mut Report<'r>,
}

/// Whether the file system cannot do what deduplication needs, so that files stay as they are.
fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::EPERM | Errno::EXDEV | Errno::EOPNOTSUPP | Errno::EMLINK | Errno::ENOSPC)
}

impl<'a, 'r> Deduplicator<'a, 'r> {
    pub(crate) fn new(store: &'a Store, report: &'a mut Report<'r>) -> Result<Self> {
        let shown = Path::new(store.store_dir().as_str()).join(".links");
        let links = open_dir_at(store.dir(), OsStr::new(".links")).map_err(Error::io("opening directory", &shown))?;
        Ok(Deduplicator { store, links, shown, known: HashSet::new(), stats: OptimiseStats::default(), report })
    }

    /// Learns all inodes that have a link, so that their files need not be looked at.
    pub(crate) fn load(&mut self) -> Result<()> {
        let reading = "reading directory";
        let mut dir = open_again(&self.links).map_err(Error::io(reading, &self.shown))?;
        for entry in dir.iter() {
            self.known.insert(entry.map_err(Error::io(reading, &self.shown))?.ino());
        }
        Ok(())
    }

    /// Deduplicates what is at `place`, whatever that is. `hash` is the SHA-256 of its archive, if that is known.
    pub(crate) fn tree(&mut self, place: &Place<'_>, hash: Option<Hash>, cancel: &AtomicBool) -> Result<()> {
        let stat = lstat_at(place.dir, &place.name).map_err(Error::io("getting attributes of path", &place.shown))?;
        match kind(&stat) {
            SFlag::S_IFDIR => self.directory(place, 0, cancel),
            SFlag::S_IFREG => self.file(place, None, hash),
            _ => Ok(()),
        }
    }

    fn directory(&mut self, place: &Place<'_>, depth: usize, cancel: &AtomicBool) -> Result<()> {
        if depth > MAX_DEPTH {
            return Ok(());
        }
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let dir = open_dir_at(place.dir, &place.name).map_err(Error::io("opening", &place.shown))?;
        settle(&dir).map_err(Error::io("restoring metadata of", &place.shown))?;
        let mut children: Vec<(OsString, Option<Type>)> = Vec::new();
        for entry in open_again(&dir).map_err(Error::io("opening", &place.shown))?.iter() {
            let entry = entry.map_err(Error::io("reading directory", &place.shown))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." && !self.known.contains(&entry.ino()) {
                children.push((OsStr::from_bytes(name).to_owned(), entry.file_type()));
            }
        }
        for (name, child) in children {
            let child_place = Place::new(dir.as_fd(), name, &place.shown);
            match child {
                Some(Type::Directory) => self.directory(&child_place, depth + 1, cancel)?,
                Some(Type::File) => self.file(&child_place, Some(dir.as_fd()), None)?,
                Some(_) => {}
                None => {
                    let stat =
                        lstat_at(dir.as_fd(), &child_place.name).map_err(Error::io("getting attributes of path", &child_place.shown))?;
                    match kind(&stat) {
                        SFlag::S_IFDIR => self.directory(&child_place, depth + 1, cancel)?,
                        SFlag::S_IFREG => self.file(&child_place, Some(dir.as_fd()), None)?,
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn say(&mut self, level: Verbosity, text: &str) {
        (self.report)(level, text);
    }

    /// Deduplicates a file. `parent` is its directory when that is part of the item, and thus read-only and of a certain time.
    fn file(&mut self, place: &Place<'_>, parent: Option<BorrowedFd<'_>>, hash: Option<Hash>) -> Result<()> {
        let shown = &place.shown;
        let stat = lstat_at(place.dir, &place.name).map_err(Error::io("getting attributes of path", shown))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if kind(&stat) != SFlag::S_IFREG || size < MIN_SIZE {
            return Ok(());
        }
        if permissions(&stat).contains(Mode::S_IWUSR) {
            self.say(Verbosity::Error, &format!("skipping suspicious writable file `{}'", shown.display()));
            return Ok(());
        }
        if links(&stat) > 1 && self.known.contains(&stat.st_ino) {
            return Ok(());
        }
        let hash = match hash {
            Some(hash) => hash,
            None => crate::scan::hash_at(place, HashAlgo::Sha256)?.0,
        };
        // By read(2): pages that are mapped can be other than the file, with a debugger at work.
        let link = OsString::from(hash.base32());
        let shown_link = self.shown.join(&link);
        for _ in 0..ATTEMPTS {
            let link_stat = match lstat_at(&self.links, &link) {
                Ok(link_stat) => link_stat,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let know = || linkat(place.dir, place.name.as_os_str(), &self.links, link.as_os_str(), AtFlags::empty());
                    match step("links::link", know) {
                        Ok(()) => {
                            self.known.insert(stat.st_ino);
                            return Ok(());
                        }
                        // Somebody was faster; his will do.
                        Err(Errno::EEXIST) => continue,
                        // On ext4, ENOSPC may mean that the directory's index is full.
                        Err(error) if is_unsupported(error) => {
                            let text = format!("cannot link `{}' to `{}': {}", shown_link.display(), shown.display(), error.desc());
                            self.say(Verbosity::Info, &text);
                            return Ok(());
                        }
                        Err(error) => return Err(Error::io("cannot link to", &shown_link)(error)),
                    }
                }
                Err(error) => return Err(Error::io("getting attributes of path", &shown_link)(error)),
            };
            if same_file(&link_stat, &stat) {
                self.known.insert(stat.st_ino);
                return Ok(());
            }
            if !self.is_good(&link, &link_stat, place, &stat, hash)? {
                self.say(Verbosity::Error, &format!("removing corrupted link `{}'", shown_link.display()));
                match step("links::drop", || unlinkat(&self.links, link.as_os_str(), UnlinkatFlags::NoRemoveDir)) {
                    Ok(()) | Err(Errno::ENOENT) => continue,
                    Err(error) => return Err(Error::io("deleting", &shown_link)(error)),
                }
            }
            self.say(Verbosity::Talkative, &format!("linking `{}' to `{}'", shown.display(), shown_link.display()));
            match self.replace(place, parent, &link, &link_stat) {
                Ok(true) => {
                    self.stats.files_linked += 1;
                    self.stats.bytes_freed = self.stats.bytes_freed.saturating_add(size);
                    let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
                    self.stats.blocks_freed = self.stats.blocks_freed.saturating_add(blocks);
                    return Ok(());
                }
                // A collector has removed the link.
                Ok(false) | Err(Errno::ENOENT) => {}
                Err(Errno::EMLINK) => {
                    self.say(Verbosity::Info, &format!("`{}' has maximum number of links", shown_link.display()));
                    return Ok(());
                }
                Err(error) if is_unsupported(error) => {
                    self.say(
                        Verbosity::Info,
                        &format!("cannot link `{}' to `{}': {}", shown.display(), shown_link.display(), error.desc()),
                    );
                    return Ok(());
                }
                Err(error) => return Err(Error::io("cannot replace by a link", shown)(error)),
            }
        }
        Ok(())
    }

    /// Whether a link is as its name says, and nobody but this daemon can change that.
    fn is_good(&self, link: &OsStr, link_stat: &FileStat, place: &Place<'_>, stat: &FileStat, hash: Hash) -> Result<bool> {
        if kind(link_stat) != SFlag::S_IFREG
            || link_stat.st_size != stat.st_size
            || link_stat.st_uid != stat.st_uid
            || permissions(link_stat) != permissions(stat)
        {
            return Ok(false);
        }
        let (ours, theirs) = match (open_file_at(place.dir, &place.name), open_file_at(&self.links, link)) {
            (Ok(ours), Ok(theirs)) => (File::from(ours), File::from(theirs)),
            // Gone meanwhile: that is found when it is used.
            (Ok(_), Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            (Err(error), _) => return Err(Error::io("opening", &place.shown)(error)),
            (_, Err(error)) => return Err(Error::io("opening", self.shown.join(link))(error)),
        };
        let equal = equal_contents(ours, theirs).map_err(Error::io("comparing", &place.shown))?;
        // The one that is not what its name says is the damaged one: unless it is ours, which then changed after it was hashed.
        if !equal && crate::scan::hash_at(place, HashAlgo::Sha256)?.0 != hash {
            return Err(Error::Changed { path: place.shown.clone() });
        }
        Ok(equal)
    }

    /// Puts a link in the place of a file, at one stroke. `false`: it is another link by now.
    fn replace(&self, place: &Place<'_>, parent: Option<BorrowedFd<'_>>, link: &OsStr, link_stat: &FileStat) -> Result<bool, Errno> {
        // In the staging directory, where no collector looks; what is left there goes with this.
        let staged = self.store.inner.staging.reserve("link");
        step("links::stage", || linkat(&self.links, link, staged.dir(), staged.name(), AtFlags::empty()))?;
        if !lstat_at(staged.dir(), staged.name()).is_ok_and(|staged| same_file(&staged, link_stat)) {
            return Ok(false);
        }
        let rename = || step("links::replace", || renameat(staged.dir(), staged.name(), place.dir, place.name.as_os_str()));
        let Some(parent) = parent else {
            rename()?;
            return Ok(true);
        };
        let before = fstat(parent)?;
        let writable = permissions(&before).contains(Mode::S_IWUSR);
        if !writable {
            fchmod(parent, permissions(&before) | Mode::S_IWUSR)?;
        }
        let renamed = rename();
        let mode = if writable { Ok(()) } else { fchmod(parent, permissions(&before)) };
        let time = TimeSpec::new(before.st_mtime, before.st_mtime_nsec);
        let time = step("links::restore", || futimens(parent, &TimeSpec::UTIME_OMIT, &time));
        renamed.and(mode).and(time).map(|()| true)
    }
}

/// Restores the mode and time of an item's directory, where whoever was killed in [`Deduplicator::replace`] left others.
fn settle(dir: &OwnedFd) -> io::Result<()> {
    let stat = fstat(dir)?;
    if stat.st_mtime == STORE_MTIME && stat.st_mtime_nsec == 0 {
        return Ok(());
    }
    fchmod(dir, permissions(&stat) - Mode::S_IWUSR)?;
    set_store_mtime(dir)
}

/// A stream of a directory's entries, with a position of its own.
fn open_again(dir: &OwnedFd) -> io::Result<Dir> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(Dir::from_fd(openat(dir, ".", flags, Mode::empty())?)?)
}

fn equal_contents(mut a: File, mut b: File) -> io::Result<bool> {
    let mut buffers = [vec![0; 128 * 1024], vec![0; 128 * 1024]];
    let [in_a, in_b] = &mut buffers;
    loop {
        let got_a = fill(&mut a, in_a)?;
        let got_b = fill(&mut b, in_b)?;
        if in_a.get(..got_a) != in_b.get(..got_b) {
            return Ok(false);
        }
        if got_a == 0 {
            return Ok(true);
        }
    }
}

/// Reads until `buffer` is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl Store {
    /// Removes links that nothing uses, and those that are not worth it. Returns the sum of their sizes, in bytes.
    pub(crate) fn remove_unused_links(&self, report: &mut Report<'_>, cancel: &AtomicBool) -> Result<u64> {
        let shown = Path::new(self.store_dir().as_str()).join(".links");
        let dir = match open_dir_at(self.dir(), OsStr::new(".links")) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(Error::io("opening directory", &shown)(error)),
        };
        let (mut actual, mut unshared, mut freed) = (0_u64, 0_u64, 0_u64);
        for entry in open_again(&dir).map_err(Error::io("opening directory", &shown))?.iter() {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let entry = entry.map_err(Error::io("reading directory", &shown))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let stat = match lstat_at(&dir, name) {
                Ok(stat) => stat,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("statting", shown.join(name))(error)),
            };
            if kind(&stat) == SFlag::S_IFDIR {
                continue;
            }
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            if links(&stat) != 1 && size >= MIN_SIZE {
                actual = actual.saturating_add(size);
                unshared = unshared.saturating_add((links(&stat) - 1).saturating_mul(size));
                continue;
            }
            // When a file is linked to it just now, it only loses a chance: the file itself stays.
            report(Verbosity::Talkative, &format!("deleting unused link `{}'", shown.join(name).display()));
            match step("links::unlink", || unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir)) {
                Ok(()) => freed = freed.saturating_add(size),
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(Error::io("deleting", shown.join(name))(error)),
            }
        }
        let overhead = fstat(&dir).map_err(Error::io("statting", &shown))?.st_size;
        let saved = i128::from(unshared) - i128::from(actual) - i128::from(overhead);
        let saved = i64::try_from(saved).unwrap_or(i64::MAX);
        report(Verbosity::Info, &format!("note: currently hard linking saves {}", show_bytes(saved)));
        Ok(freed)
    }
}
