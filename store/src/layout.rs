//! Opening a store: its directories, their owners and modes, the database's files.
//!
//! ```text
//! STORE/             1775 root:BUILD-GROUP (0755 without build users)
//! STORE/.links/      one hard link for each file that deduplication knows
//! STATE/gcroots/     with `profiles`, a symbolic link to STATE/profiles
//! STATE/profiles/per-user/NAME
//! STATE/temproots/PID
//! STATE/daemon-socket
//! DB/db.sqlite, DB/schema ("7"), DB/reserved, DB/big-lock
//! ```

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use fruix_drv::StorePath;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstat};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Gid, Uid, fchown, geteuid};

use crate::big_lock::BigLock;
use crate::db::{Db, SCHEMA};
use crate::failpoints::{Writes, step};
use crate::fsutil::{self, kind, lstat_at, make_dirs, permissions};
use crate::register::Registrations;
use crate::staging::{Staging, is_staging};
use crate::sync::FileSystemSync;
use crate::temproots::Table;
use crate::unsynced::Syncer;
use crate::{Config, Error, Inner, Result, Store, TempRoots};

/// Items beside an empty database that may be what a crash left of the very first additions.
const LEFTOVERS: usize = 64;

/// Makes the store directory writable for this process, when it is a read-only mount (as on Guix System), by leaving the mount
/// namespace for one of its own.
///
/// To be called while the process has a single thread, and before the processes are started that are to write there as well.
///
/// # Errors
/// [`Error::ReadOnlyStore`] when it is read-only and this is not root, or the platform cannot do it.
pub fn ensure_store_writable(config: &Config) -> Result<()> {
    let path = Path::new(config.store_dir.as_str());
    make_dirs(path, 0o755)?;
    let flags = statvfs(path).map_err(Error::io("getting info about the store mount point", path))?.flags();
    if !flags.contains(FsFlags::ST_RDONLY) {
        return Ok(());
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if geteuid().is_root() {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(Error::io("setting up a private mount namespace for", path))?;
        let remount = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
        mount(None::<&str>, path, Some("none"), remount, None::<&str>).map_err(Error::io("remounting writable", path))?;
        return Ok(());
    }
    Err(Error::ReadOnlyStore { path: path.to_owned() })
}

impl Store {
    /// Opens a store, and makes whatever of it is missing.
    ///
    /// # Errors
    /// [`Error::UnknownItems`] when the store directory is in use with another database, [`Error::SymlinkedStore`],
    /// [`Error::SchemaTooNew`], [`Error::OpenDatabase`], [`Error::BuildGroup`], and [`Error::Io`].
    pub fn open(config: Config) -> Result<Store> {
        match Self::open_once(config.clone()) {
            // What is reserved is enough to open it, and to collect garbage, which gives more back.
            Err(error) if error.is_full() && std::fs::remove_file(config.db_dir.join("reserved")).is_ok() => {
                tracing::warn!(%error, "opening the store on a full disk, with the reserved space");
                Self::open_once(Config { reserve_space: 0, ..config })
            }
            other => other,
        }
    }

    fn open_once(config: Config) -> Result<Store> {
        let store = Path::new(config.store_dir.as_str());
        make_dirs(store, 0o755)?;
        if !config.allow_symlinked_store {
            refuse_symlinks(store)?;
        }
        let dir = fsutil::open_dir(store).map_err(Error::io("opening", store))?;
        let fresh = check_database(&config, dir.as_fd())?;

        make_state_dirs(&config)?;
        own_store_dir(&config, dir.as_fd())?;
        make_dirs(&store.join(".links"), 0o755)?;
        reserve(&config);

        let big_lock = BigLock::share(&config.db_dir.join("big-lock"))?;
        let schema = config.db_dir.join("schema");
        match read_schema(&schema)? {
            None => {}
            Some(found) if found > SCHEMA => {
                return Err(Error::SchemaTooNew { found, supported: SCHEMA });
            }
            Some(found) if found < SCHEMA => return Err(Error::SchemaTooOld { found }),
            Some(_) => {}
        }
        let db = Db::open(&config.db_dir.join("db.sqlite"), config.durable)?;
        if fresh {
            write_schema(&schema)?;
        }

        let temp_roots = Table::of(&config.state_dir, &config.store_dir);
        let staging = Staging::open(dir.as_fd(), &config.store_dir, TempRoots::new(&temp_roots))?;
        let inner = Inner {
            config,
            dir,
            db,
            drv_hashes: Mutex::default(),
            staging,
            registrations: Registrations::default(),
            file_system_sync: FileSystemSync::default(),
            syncer: Syncer::default(),
            big_lock,
            temp_roots,
        };
        let store = Store { inner: Arc::new(inner) };
        store.take_over_unsynced()?;
        store.start_syncer()?;
        Ok(store)
    }

    /// Gives back the space held in `DB/reserved`, so that a collection can work on a full disk.
    pub fn release_reserve(&self) {
        let path = self.config().db_dir.join("reserved");
        if let Err(error) = step("reserve::unlink", || std::fs::remove_file(&path))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot give back the reserved space");
        }
    }

    /// Takes the space of [`Config::reserve_space`] again, if there is enough.
    pub fn take_reserve(&self) {
        reserve(self.config());
    }
}

/// Refuses a store directory with a symbolic link in its name: what a builder writes there would have two names.
fn refuse_symlinks(store: &Path) -> Result<()> {
    for path in store.ancestors() {
        let stat = nix::sys::stat::lstat(path).map_err(Error::io("getting status of", path))?;
        if kind(&stat) == SFlag::S_IFLNK {
            return Err(Error::SymlinkedStore { path: path.to_owned() });
        }
    }
    Ok(())
}

/// Whether the database is yet to be made. Refuses when the store directory has items that it will not or does not know.
fn check_database(config: &Config, dir: BorrowedFd<'_>) -> Result<bool> {
    let schema = config.db_dir.join("schema");
    let file = config.db_dir.join("db.sqlite");
    let fresh = read_schema(&schema)?.is_none() || !file.exists();
    if !fresh && Db::has_paths(&file)? {
        return Ok(false);
    }
    if config.adopt_items {
        return Ok(fresh);
    }
    let born = if fresh {
        None
    } else {
        let stat = nix::sys::stat::stat(&schema).map_err(Error::io("getting status of", &schema))?;
        Some((stat.st_mtime, stat.st_mtime_nsec))
    };
    let shown = Path::new(config.store_dir.as_str());
    let mut listing = Dir::openat(dir, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(Error::io("opening", shown))?;
    let mut items = 0;
    let mut older = false;
    for entry in listing.iter() {
        let entry = entry.map_err(Error::io("reading directory", shown))?;
        let name = entry.file_name().to_bytes();
        if StorePath::from_base_name(name).is_err() || is_staging(name) || name.ends_with(b".lock") || name.ends_with(b".chroot") {
            continue;
        }
        items += 1;
        // Whatever the first additions to a new store left when they were killed is younger than the database.
        older = older
            || match (born, lstat_at(dir, std::ffi::OsStr::from_bytes(name))) {
                (Some(born), Ok(stat)) => (stat.st_ctime, stat.st_ctime_nsec) < born,
                (None, _) => true,
                (_, Err(_)) => false,
            };
        if items > LEFTOVERS {
            break;
        }
    }
    if items > LEFTOVERS || older {
        return Err(Error::UnknownItems { store: shown.to_owned(), database: config.db_dir.clone(), items });
    }
    Ok(fresh)
}

fn make_state_dirs(config: &Config) -> Result<()> {
    let state = &config.state_dir;
    let profiles = state.join("profiles");
    make_dirs(&profiles, 0o755)?;
    make_dirs(&state.join("temproots"), 0o755)?;
    make_dirs(&config.db_dir, 0o755)?;
    make_dirs(&config.log_dir, 0o755)?;
    make_dirs(&state.join("daemon-socket"), 0o755)?;
    let gcroots = state.join("gcroots");
    if make_dirs(&gcroots, 0o755)? {
        let link = gcroots.join("profiles");
        match nix::unistd::symlinkat(&profiles, AT_FDCWD, &link) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(Error::io("creating symlink", &link)(error)),
        }
    }
    let per_user = profiles.join("per-user");
    make_dirs(&per_user, 0o755)?;
    if geteuid().is_root() && config.build_users_gid.is_some() {
        // Once, this directory was open to everyone, who could then make another's profile directory.
        fchmodat(AT_FDCWD, &per_user, Mode::from_bits_truncate(0o755), FchmodatFlags::FollowSymlink)
            .map_err(Error::io("could not set permissions to 755 on", &per_user))?;
    }
    Ok(())
}

fn own_store_dir(config: &Config, dir: BorrowedFd<'_>) -> Result<()> {
    let Some(gid) = config.build_users_gid else {
        return Ok(());
    };
    if gid == 0 {
        return Err(Error::BuildGroup);
    }
    if !geteuid().is_root() {
        return Ok(());
    }
    let shown = Path::new(config.store_dir.as_str());
    let stat = fstat(dir).map_err(Error::io("getting attributes of path", shown))?;
    let mode = Mode::from_bits_truncate(0o1775);
    if stat.st_uid != 0 || stat.st_gid != gid || permissions(&stat) != mode {
        fchown(dir, Some(Uid::from_raw(0)), Some(Gid::from_raw(gid))).map_err(Error::io("changing ownership of path", shown))?;
        fchmod(dir, mode).map_err(Error::io("changing permissions on path", shown))?;
    }
    Ok(())
}

/// Makes `DB/reserved` as large as it should be. Failing is no error: there is just nothing to give back later.
fn reserve(config: &Config) {
    let path = config.db_dir.join("reserved");
    if config.reserve_space == 0 {
        let _ = std::fs::remove_file(&path);
        return;
    }
    if std::fs::metadata(&path).is_ok_and(|data| data.len() == config.reserve_space) {
        return;
    }
    if let Err(error) = fill_reserve(&path, config.reserve_space) {
        tracing::debug!(path = %path.display(), %error, "cannot reserve space");
    }
}

fn fill_reserve(path: &Path, size: u64) -> io::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = std::fs::File::from(openat(AT_FDCWD, path, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    // Bytes, since allocating without writing is not everywhere to be had, nor everywhere kept.
    io::copy(&mut io::repeat(b'X').take(size), &mut Writes::new("reserve::write", &mut file))?;
    file.set_len(size)
}

fn read_schema(path: &Path) -> Result<Option<i64>> {
    let mut text = String::new();
    match std::fs::File::open(path).and_then(|file| file.take(64).read_to_string(&mut text)) {
        Ok(_) => match text.trim_end().parse() {
            // Upstream takes 0 for a database that is yet to be made.
            Ok(0) => Ok(None),
            Ok(version) => Ok(Some(version)),
            Err(_) => Err(Error::CorruptSchema { path: path.to_owned() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("reading", path)(error)),
    }
}

/// Writes `DB/schema`, last of all, so that its presence and age tell of a complete database.
fn write_schema(path: &Path) -> Result<()> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        Writes::new("schema::write", &mut file).write_all(SCHEMA.to_string().as_bytes())?;
        step("schema::sync", || file.sync_all())?;
        step("schema::rename", || std::fs::rename(&temporary, path))
    };
    match write() {
        // Somebody who started at the same time was faster, and removed ours as below.
        Err(_) if read_schema(path).is_ok_and(|found| found == Some(SCHEMA)) => {}
        other => other.map_err(Error::io("writing", path))?,
    }
    // Those of daemons that were killed here.
    for entry in path.parent().and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(b"schema.tmp-") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::testing::{config, temp_dir, test_store};

    const ITEM: &str = "0123456789abcdfghijklmnpqrsvwxyz-item";

    #[test]
    fn everything_is_where_upstream_has_it() {
        let test = test_store();
        let state = test.root.join("state");
        for name in ["gcroots", "profiles/per-user", "temproots", "daemon-socket", "db"] {
            assert!(state.join(name).is_dir(), "{name}");
        }
        assert_eq!(std::fs::read_link(state.join("gcroots/profiles")).unwrap(), state.join("profiles"));
        assert_eq!(std::fs::read_to_string(state.join("db/schema")).unwrap(), "7");
        assert_eq!(std::fs::metadata(state.join("db/reserved")).unwrap().len(), 4096);
        assert!(test.root.join("store/.links").is_dir());
        test.store.release_reserve();
        assert!(!state.join("db/reserved").exists());
        test.store.take_reserve();
        assert!(state.join("db/reserved").exists());
    }

    #[test]
    fn d2_items_unknown_to_a_new_database_are_not_adopted() {
        let (_dir, root) = temp_dir();
        std::fs::create_dir_all(root.join("store").join(ITEM)).unwrap();
        let error = Store::open(config(&root)).unwrap_err();
        assert!(matches!(error, Error::UnknownItems { items: 1, .. }), "{error}");
        assert!(!root.join("state").exists(), "nothing was made");
        let store = Store::open(Config { adopt_items: true, ..config(&root) }).unwrap();
        assert!(store.all_valid().unwrap().is_empty());
        // A database that is there but empty, and is younger than the item.
        drop(store);
        let error = Store::open(config(&root)).unwrap_err();
        assert!(matches!(error, Error::UnknownItems { .. }), "{error}");
    }

    #[test]
    fn leftovers_of_the_first_additions_are_no_obstacle() {
        let (_dir, root) = temp_dir();
        drop(Store::open(config(&root)).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::create_dir_all(root.join("store").join(ITEM)).unwrap();
        drop(Store::open(config(&root)).unwrap());
        // But not if they are many.
        for i in 0..=LEFTOVERS {
            std::fs::create_dir_all(root.join("store").join(format!("{ITEM}{i}"))).unwrap();
        }
        let error = Store::open(config(&root)).unwrap_err();
        assert!(matches!(error, Error::UnknownItems { .. }), "{error}");
    }

    #[test]
    fn later_schemas_and_links_are_refused() {
        let (_dir, root) = temp_dir();
        drop(Store::open(config(&root)).unwrap());
        let schema = root.join("state/db/schema");
        for (text, expected) in [
            ("8", "current store schema is version 8, but I only support 7"),
            ("6", "Your store database uses an implausibly old schema, version 6."),
            ("x", &*format!("`{}' is corrupt", schema.display())),
        ] {
            std::fs::write(&schema, text).unwrap();
            assert_eq!(Store::open(config(&root)).unwrap_err().to_string(), expected);
        }
        std::fs::write(&schema, "7").unwrap();
        std::fs::rename(root.join("store"), root.join("real")).unwrap();
        std::os::unix::fs::symlink("real", root.join("store")).unwrap();
        assert!(matches!(Store::open(config(&root)), Err(Error::SymlinkedStore { .. })));
        Store::open(Config { allow_symlinked_store: true, ..config(&root) }).unwrap();
    }

    #[test]
    fn staging_is_private_exclusive_and_cleaned() {
        let test = test_store();
        let staging = test.store.real_path(test.store.staging_path());
        assert_eq!(std::fs::metadata(&staging).unwrap().mode() & 0o7777, 0o700);
        let staged = test.store.stage_dir("build").unwrap();
        std::fs::write(staged.path().join("x"), "").unwrap();
        // Another daemon on the same store takes another directory, and leaves this alone.
        let other = Store::open(config(&test.root)).unwrap();
        assert_ne!(other.staging_path(), test.store.staging_path());
        assert!(staged.path().join("x").exists());
        let other_staging = other.real_path(other.staging_path());
        drop(other);
        assert!(!other_staging.exists());
        // What a daemon left that was killed goes with the next.
        std::fs::create_dir_all(other_staging.join("0-left")).unwrap();
        let other = Store::open(config(&test.root)).unwrap();
        assert_eq!(other.real_path(other.staging_path()), other_staging);
        assert!(!other_staging.join("0-left").exists());
        let path = staged.path();
        drop(staged);
        assert!(!path.exists());
    }

    #[test]
    fn users_get_their_directory() {
        let test = test_store();
        let uid = geteuid().as_raw();
        for _ in 0..2 {
            test.store.create_user("alice", uid).unwrap();
        }
        let data = std::fs::metadata(test.root.join("state/profiles/per-user/alice")).unwrap();
        assert_eq!((data.mode() & 0o7777, data.uid()), (0o755, uid));
        for name in ["", ".", "..", "a/b", ".hidden"] {
            assert!(matches!(test.store.create_user(name, uid), Err(Error::UserName { .. })), "{name}");
        }
    }

    #[test]
    fn failures_are_remembered() {
        let test = test_store();
        let path = |i: u32| StorePath::from_base_name(format!("{ITEM}{i}")).unwrap();
        let both = BTreeSet::from([path(1), path(2)]);
        test.store.register_failed(&both).unwrap();
        assert!(test.store.has_failed(&path(1)).unwrap() && !test.store.has_failed(&path(3)).unwrap());
        assert_eq!(test.store.failed_paths().unwrap(), both);
        test.store.clear_failed(Some(&BTreeSet::from([path(1)]))).unwrap();
        assert_eq!(test.store.failed_paths().unwrap(), BTreeSet::from([path(2)]));
        test.store.clear_failed(None).unwrap();
        assert!(test.store.failed_paths().unwrap().is_empty());
    }
}
