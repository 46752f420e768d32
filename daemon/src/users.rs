//! The users that builds run as: the members of one group, each used by one build at a time, in this process and in any other daemon.
//!
//! A user is taken by a POSIX lock on `STATE/userpool/UID`, as guix-daemon takes it, so that two daemons on one store never share one. Such locks
//! are the process's, not the descriptor's: a table above them keeps the builds of this process apart.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::{Group, Uid, User, getgrouplist};
use tokio::sync::Notify;
use tracing::warn;

use crate::sandbox::{SpawnerHandle, UserIds};

/// How long to wait before looking again whether another daemon has given a user back.
const POLL: Duration = Duration::from_millis(500);

/// Why there is no build user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The group does not exist: no build can run until it does.
    #[error("the group `{group}' specified in `build-users-group' does not exist")]
    NoGroup {
        /// Its name.
        group: String,
    },
    /// The group has no members: no build can run until it has.
    #[error("the build users group `{group}' has no members")]
    NoMembers {
        /// Its name.
        group: String,
    },
    /// The group is root's or has the number of root's: builds would run with its rights.
    #[error("the build users group `{group}' must not be root's")]
    RootGroup {
        /// Its name.
        group: String,
    },
    /// A member is no user: no build can run until it is, or until it is no member.
    #[error("the user `{user}' in the group `{group}' does not exist")]
    NoUser {
        /// Its name.
        user: String,
        /// The group's.
        group: String,
    },
    /// A member is root or the daemon's own user: builds would have its rights.
    #[error("the build user should not be a member of `{group}'")]
    Privileged {
        /// The group's name.
        group: String,
    },
    /// The system's databases of users and groups cannot be read.
    #[error("looking up `{name}': {source}")]
    LookUp {
        /// The user or group.
        name: String,
        /// The system's word.
        source: io::Error,
    },
    /// The lock on a user cannot be had for another reason than that it is taken: the build fails.
    #[error("opening user lock `{}': {source}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

/// The build users.
#[derive(Debug)]
pub struct UserPool {
    group: String,
    dir: PathBuf,
    spawner: SpawnerHandle,
    taken: Mutex<BTreeSet<u32>>,
    returned: Notify,
}

impl UserPool {
    /// The members of `group`, with their locks in `state_dir/userpool`. The group is looked up for each build, so that it may change.
    ///
    /// # Errors
    /// There is no such group, it is root's, or it has no members.
    pub fn new(group: &str, state_dir: &Path, spawner: SpawnerHandle) -> Result<Arc<UserPool>, Error> {
        let pool = UserPool {
            group: group.to_owned(),
            dir: state_dir.join("userpool"),
            spawner,
            taken: Mutex::default(),
            returned: Notify::new(),
        };
        pool.members()?;
        Ok(Arc::new(pool))
    }

    /// The group's number; files that builders may add to are this group's.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn gid(&self) -> Result<u32, Error> {
        Ok(self.members()?.gid.as_raw())
    }

    /// The user numbers of all members. Connections from them are not to be served.
    ///
    /// # Errors
    /// As for [`new`](Self::new), or a member does not exist.
    pub fn uids(&self) -> Result<BTreeSet<u32>, Error> {
        self.members()?.mem.iter().map(|name| Ok(self.user(name)?.uid.as_raw())).collect()
    }

    /// Takes a user that no other build has; waits while all are taken.
    ///
    /// # Errors
    /// The group or a member does not exist or is privileged, or the locks do not work.
    pub async fn acquire(pool: &Arc<UserPool>) -> Result<BuildUser, Error> {
        loop {
            let returned = pool.returned.notified();
            if let Some(user) = UserPool::try_acquire(pool)? {
                return Ok(user);
            }
            // Users of this process are announced, those of another are not.
            let _ = tokio::time::timeout(POLL, returned).await;
        }
    }

    /// Takes a user that no other build has, if there is one.
    ///
    /// # Errors
    /// As for [`acquire`](Self::acquire).
    pub fn try_acquire(pool: &Arc<UserPool>) -> Result<Option<BuildUser>, Error> {
        let group = pool.members()?;
        for name in &group.mem {
            let user = pool.user(name)?;
            let uid = user.uid.as_raw();
            // Opening and closing the file of a user that this process has would give up its lock.
            if !pool.table().insert(uid) {
                continue;
            }
            let mut taken = Taken { pool: Arc::clone(pool), uid, announce: false };
            let Some(lock) = pool.lock(uid)? else { continue };
            if user.uid.is_root() || user.uid == Uid::current() || user.uid == Uid::effective() {
                return Err(Error::Privileged { group: pool.group.clone() });
            }
            let look_up = |source: io::Error| Error::LookUp { name: name.clone(), source };
            let c_name = std::ffi::CString::new(name.as_str()).map_err(|error| look_up(error.into()))?;
            let groups = getgrouplist(&c_name, user.gid).map_err(|errno| look_up(errno.into()))?;
            // Some C libraries name the primary group twice, when the group's own list of members has the user as well.
            let mut groups: Vec<u32> = groups.into_iter().map(|gid| gid.as_raw()).collect();
            let mut seen = BTreeSet::new();
            groups.retain(|gid| seen.insert(*gid));
            let ids = UserIds { uid, gid: group.gid.as_raw(), groups };
            taken.announce = true;
            return Ok(Some(BuildUser { ids, name: name.clone(), _lock: lock, taken }));
        }
        Ok(None)
    }

    fn members(&self) -> Result<Group, Error> {
        let name = || self.group.clone();
        let group = Group::from_name(&self.group)
            .map_err(|errno| Error::LookUp { name: name(), source: errno.into() })?
            .ok_or_else(|| Error::NoGroup { group: name() })?;
        if group.gid.as_raw() == 0 {
            return Err(Error::RootGroup { group: name() });
        }
        if group.mem.is_empty() {
            return Err(Error::NoMembers { group: name() });
        }
        Ok(group)
    }

    fn user(&self, name: &str) -> Result<User, Error> {
        User::from_name(name)
            .map_err(|errno| Error::LookUp { name: name.to_owned(), source: errno.into() })?
            .ok_or_else(|| Error::NoUser { user: name.to_owned(), group: self.group.clone() })
    }

    fn table(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock on a user, if no other process has it.
    fn lock(&self, uid: u32) -> Result<Option<File>, Error> {
        let path = self.dir.join(uid.to_string());
        let failed = |source: io::Error| Error::Lock { path: path.clone(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.dir).map_err(failed)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed)?;
        let whole = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
            #[cfg(target_os = "freebsd")]
            l_sysid: 0,
        };
        match fcntl(&file, FcntlArg::F_SETLK(&whole)) {
            Ok(_) => Ok(Some(file)),
            Err(Errno::EACCES | Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(failed(errno.into())),
        }
    }
}

/// A user that one build has until this is dropped.
#[derive(Debug)]
pub struct BuildUser {
    ids: UserIds,
    name: String,
    // Dropped, and with it unlocked, before the table says that the user is free.
    _lock: File,
    taken: Taken,
}

impl BuildUser {
    /// Its number.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.ids.uid
    }

    /// The build group's number.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.ids.gid
    }

    /// Its numbers and those of its groups.
    #[must_use]
    pub fn ids(&self) -> UserIds {
        self.ids.clone()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Kills all its processes, wherever they come from: before a build, those that an earlier daemon left; after it, those that the builder did.
    /// It blocks, though not for long. A failure is logged.
    pub fn kill_processes(&self) {
        if let Err(error) = self.taken.pool.spawner.kill_user(self.ids.uid) {
            warn!(user = %self.name, %error, "cannot kill the processes of a build user");
        }
    }
}

/// An entry of the table of users that this process has.
#[derive(Debug)]
struct Taken {
    pool: Arc<UserPool>,
    uid: u32,
    /// Whether somebody may be waiting for its return; nobody waits for one that was only tried.
    announce: bool,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.pool.table().remove(&self.uid);
        if self.announce {
            self.pool.returned.notify_waiters();
        }
    }
}
