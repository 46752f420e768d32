//! Roots of garbage collection that outlive sessions, and paths that running processes use.
//!
//! A root is, in `STATE/gcroots` and `STATE/profiles` at any depth (in real directories),
//!
//! - a symbolic link to something in the store;
//! - a symbolic link to a symbolic link elsewhere that points into the store (an *indirect* root, as those that
//!   [`Store::add_indirect_root`] makes in `STATE/gcroots/auto`);
//! - a file with a store path's name.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::AtomicBool;

use bstr::ByteSlice;
use fruix_drv::{Hash, HashAlgo, StoreDir, StorePath};

use crate::failpoints::step;
use crate::fsutil::make_dirs;
use crate::gc::{Report, Verbosity};
use crate::locks::{Kind, Wait};
use crate::{Error, Result, Store};

/// Directories within one another in which roots are looked for.
const MAX_DEPTH: usize = 256;

/// Between the name of an indirect root that is being made and whose it is.
const PASSING: &str = ".tmp-";
/// Making a root takes less.
const ABANDONED: std::time::Duration = std::time::Duration::from_secs(600);

/// Tells which paths running processes use: those are roots as well. Each operating system has a way of its own.
pub trait RuntimeRoots {
    /// The paths in `store_dir` that processes have open, run, are in, have mapped, or name in their environment. Too many are no harm.
    ///
    /// # Errors
    /// When that cannot be found out; then nothing is collected.
    fn runtime_roots(&self, store_dir: &StoreDir) -> Result<BTreeSet<StorePath>>;
}

impl<F: Fn(&StoreDir) -> Result<BTreeSet<StorePath>>> RuntimeRoots for F {
    fn runtime_roots(&self, store_dir: &StoreDir) -> Result<BTreeSet<StorePath>> {
        self(store_dir)
    }
}

/// [`RuntimeRoots`] by Linux's `/proc`: of each process the program, the current and the root directory, open files, mapped files, and
/// whatever in its environment looks like a store path. Only root sees other users' processes.
#[derive(Clone, Debug)]
pub struct ProcRoots {
    /// Where proc is mounted.
    pub proc: PathBuf,
}

impl Default for ProcRoots {
    fn default() -> ProcRoots {
        ProcRoots { proc: PathBuf::from("/proc") }
    }
}

/// Processes end while they are looked at, and those of others may not be looked at.
fn unless_out_of_reach<T: Default>(result: io::Result<T>, path: &Path) -> Result<T> {
    match result {
        Ok(value) => Ok(value),
        Err(error) => match error.raw_os_error() {
            Some(nix::libc::ENOENT | nix::libc::ESRCH | nix::libc::EACCES | nix::libc::EPERM | nix::libc::ENOTDIR) => Ok(T::default()),
            // Anybody can be where the name is longer than the system tells, which must not keep us from collecting. What is that deep in a store
            // stays as long as it is open.
            Some(nix::libc::ENAMETOOLONG) => Ok(T::default()),
            _ => Err(Error::io("reading", path)(error)),
        },
    }
}

impl RuntimeRoots for ProcRoots {
    fn runtime_roots(&self, store_dir: &StoreDir) -> Result<BTreeSet<StorePath>> {
        let mut roots = BTreeSet::new();
        let mut any = false;
        for entry in std::fs::read_dir(&self.proc).map_err(Error::io("reading directory", &self.proc))? {
            let entry = entry.map_err(Error::io("reading directory", &self.proc))?;
            if entry.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
                any = true;
                process_roots(&entry.path(), store_dir, &mut roots)?;
            }
        }
        if !any {
            // Not mounted. To take that for "no processes" would delete what they run.
            return Err(Error::io("finding processes in", &self.proc)(io::Error::from(io::ErrorKind::NotFound)));
        }
        Ok(roots)
    }
}

fn process_roots(process: &Path, store_dir: &StoreDir, roots: &mut BTreeSet<StorePath>) -> Result<()> {
    let mut add = |target: &[u8]| roots.extend(store_dir.to_store_path(target));
    for link in ["exe", "cwd", "root"] {
        let link = process.join(link);
        add(unless_out_of_reach(std::fs::read_link(&link), &link)?.as_os_str().as_bytes());
    }
    let fds = process.join("fd");
    if let Some(entries) = unless_out_of_reach(std::fs::read_dir(&fds).map(Some), &fds)? {
        for entry in entries {
            let Some(link) = unless_out_of_reach(entry.map(|entry| Some(entry.path())), &fds)? else { continue };
            add(unless_out_of_reach(std::fs::read_link(&link), &link)?.as_os_str().as_bytes());
        }
    }
    // ADDRESS PERMISSIONS OFFSET DEVICE INODE   FILE
    let maps = process.join("maps");
    for line in unless_out_of_reach(read_file(&maps), &maps)?.split(|byte| *byte == b'\n') {
        if let Some(start) = line.find_byte(b'/') {
            add(line.get(start..).unwrap_or_default());
        }
    }
    let environ = process.join("environ");
    find_store_paths(&unless_out_of_reach(read_file(&environ), &environ)?, store_dir, &mut add);
    Ok(())
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Calls `add` with whatever in `text` looks like a file name in the store.
fn find_store_paths(text: &[u8], store_dir: &StoreDir, add: &mut impl FnMut(&[u8])) {
    let dir = store_dir.as_str().as_bytes();
    for start in text.find_iter(dir) {
        let rest = text.get(start..).unwrap_or_default();
        let name = rest.get(dir.len() + 1..).unwrap_or_default();
        let end = name.find_not_byteset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._+-").unwrap_or(name.len());
        add(rest.get(..dir.len() + 1 + end).unwrap_or_default());
    }
}

/// `path`, without empty, `.` and `..` components, by its text only; a relative one is beneath `base`.
fn absolute(path: &Path, base: &Path) -> PathBuf {
    let mut result = PathBuf::from("/");
    for component in base.join(path).components() {
        match component {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => {
                result.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    result
}

/// Whether a link in `STATE/gcroots/auto` has had its passing name for so long that whoever was making it must be dead.
fn is_abandoned(link: &Path) -> bool {
    let passing = link.file_name().is_some_and(|name| name.as_bytes().contains_str(PASSING));
    let age = || link.symlink_metadata()?.modified()?.elapsed().map_err(io::Error::other);
    passing && age().is_ok_and(|age| age > ABANDONED)
}

/// A search for roots.
struct Search<'a, 'r> {
    store: &'a Store,
    auto: PathBuf,
    report: &'a mut Report<'r>,
    found: std::collections::BTreeMap<Vec<u8>, StorePath>,
}

impl Search<'_, '_> {
    fn look(&mut self, path: &Path, depth: usize) -> Result<()> {
        match self.look_at(path, depth) {
            Err(Error::Io { source, .. })
                if matches!(source.raw_os_error(), Some(nix::libc::EACCES | nix::libc::ENOENT | nix::libc::ENOTDIR)) =>
            {
                let reason = nix::errno::Errno::from_raw(source.raw_os_error().unwrap_or(0)).desc();
                (self.report)(Verbosity::Info, &format!("cannot read potential root '{}': {reason}", path.display()));
                Ok(())
            }
            other => other,
        }
    }

    fn look_at(&mut self, path: &Path, depth: usize) -> Result<()> {
        let kind = path.symlink_metadata().map_err(Error::io("getting attributes of path", path))?.file_type();
        if kind.is_dir() {
            if depth >= MAX_DEPTH {
                return Err(Error::TooDeep { path: path.to_owned() });
            }
            for entry in std::fs::read_dir(path).map_err(Error::io("reading directory", path))? {
                self.look(&entry.map_err(Error::io("reading directory", path))?.path(), depth + 1)?;
            }
        } else if kind.is_symlink() && path.parent() == Some(self.auto.as_path()) && is_abandoned(path) {
            let _ = step("roots::unlink", || std::fs::remove_file(path));
        } else if kind.is_symlink() {
            let target = std::fs::read_link(path).map_err(Error::io("reading link", path))?;
            if self.store.store_dir().contains(target.as_os_str().as_bytes()) {
                return self.root(path, &target);
            }
            let target = absolute(&target, path.parent().unwrap_or(Path::new("/")));
            match target.symlink_metadata() {
                Ok(data) if data.file_type().is_symlink() => {
                    let second = std::fs::read_link(&target).map_err(Error::io("reading link", &target))?;
                    if self.store.store_dir().contains(second.as_os_str().as_bytes()) {
                        self.root(&target, &second)?;
                    }
                }
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENOTDIR)) => {
                    if path.starts_with(&self.auto) {
                        let text = format!("removing stale link from `{}' to `{}'", path.display(), target.display());
                        (self.report)(Verbosity::Info, &text);
                        // Whoever has removed it before us is right.
                        let _ = step("roots::unlink", || std::fs::remove_file(path));
                    }
                }
                Err(error) => return Err(Error::io("getting status of", &target)(error)),
            }
        } else if kind.is_file()
            && let Some(name) = path.file_name()
            && let Ok(target) = StorePath::from_base_name(name.as_bytes())
            && self.store.is_valid(&target)?
        {
            self.found.insert(path.as_os_str().as_bytes().to_vec(), target);
        }
        Ok(())
    }

    fn root(&mut self, link: &Path, target: &Path) -> Result<()> {
        let path = self.store.store_dir().to_store_path(target.as_os_str().as_bytes());
        match path {
            Ok(path) if self.store.is_valid(&path)? => {
                self.found.insert(link.as_os_str().as_bytes().to_vec(), path);
            }
            _ => {
                let dir = self.store.store_dir().as_str();
                let inside = target.strip_prefix(dir).ok().and_then(|inside| inside.components().next());
                let item = Path::new(dir).join(inside.map_or(Path::new(""), |first| Path::new(first.as_os_str())));
                let text = format!("skipping invalid root from `{}' to `{}'", link.display(), item.display());
                (self.report)(Verbosity::Info, &text);
            }
        }
        Ok(())
    }
}

impl Store {
    /// All roots but temporary ones, each a link (or file) and the valid path that it keeps alive, in the order of links. Indirect roots
    /// whose link is gone are removed.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Database`]. What is not there or may not be read is passed over, with a message.
    pub fn find_roots(&self, report: &mut Report<'_>) -> Result<Vec<(Vec<u8>, StorePath)>> {
        let state = self.state_dir();
        let mut search = Search { store: self, auto: state.join("gcroots/auto"), report, found: std::collections::BTreeMap::new() };
        search.look(&state.join("gcroots"), 0)?;
        let manifests = state.join("manifests");
        if manifests.symlink_metadata().is_ok() {
            search.look(&manifests, 0)?;
        }
        search.look(&state.join("profiles"), 0)?;
        Ok(search.found.into_iter().collect())
    }

    /// Has the collector look at `path`, a symbolic link into the store that the user has made or will make wherever he likes, by a link
    /// `STATE/gcroots/auto/HASH`. A relative `path` is taken to be beneath `/`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add_indirect_root(&self, path: &Path) -> Result<()> {
        let path = absolute(path, Path::new("/"));
        let auto = self.state_dir().join("gcroots/auto");
        make_dirs(&auto, 0o755)?;
        let name = Hash::of(HashAlgo::Sha1, path.as_os_str().as_bytes()).base32();
        let link = auto.join(&name);
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let temporary = auto.join(format!("{name}{PASSING}{}-{number}", std::process::id()));
            match step("roots::link", || std::os::unix::fs::symlink(&path, &temporary)) {
                Ok(()) => {}
                // Left by a dead process of our number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(Error::io("creating symlink", &temporary)(error)),
            }
            return step("roots::rename", || std::fs::rename(&temporary, &link)).map_err(|error| {
                let _ = std::fs::remove_file(&temporary);
                Error::io("cannot rename to", &link)(error)
            });
        }
    }

    /// Returns when no collection is deciding what is garbage, in this process or in another. A root made before this is seen by every
    /// collection that deletes something after it.
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::Io`].
    pub fn sync_with_gc(&self, report: &mut Report<'_>, cancel: &AtomicBool) -> Result<()> {
        self.lock_gc(Kind::Shared, Wait::Until(cancel), report).map(drop)
    }
}
