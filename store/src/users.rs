//! Directories for users' profiles.

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, fchmod, lstat, mkdirat};
use nix::unistd::{Uid, UnlinkatFlags, fchown, unlinkat};
use std::ffi::OsStr;

use crate::failpoints::step;
use crate::fsutil::{kind, open_dir, open_dir_at};
use crate::{Error, Result, Store};

impl Store {
    /// Makes `STATE/profiles/per-user/NAME`, mode 0755 and owned by `uid`, unless it is there. The collector finds the profiles in it
    /// through `STATE/gcroots/profiles`.
    ///
    /// `name` and `uid` are those of the peer as the kernel knows it, never what it says of itself. That the owner cannot be changed,
    /// because the daemon is not root, is only logged.
    ///
    /// # Errors
    /// [`Error::UserName`], [`Error::Io`].
    pub fn create_user(&self, name: &str, uid: u32) -> Result<()> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(Error::UserName { name: name.to_owned() });
        }
        let parent = self.state_dir().join("profiles/per-user");
        let shown = parent.join(name);
        // As it is with each connection but the first.
        if lstat(&shown).is_ok_and(|stat| kind(&stat) == SFlag::S_IFDIR) {
            return Ok(());
        }
        let parent_dir = open_dir(&parent).map_err(Error::io("opening", &parent))?;
        match step("profile::make", || mkdirat(&parent_dir, name, Mode::S_IRWXU)) {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Ok(()),
            Err(error) => return Err(Error::io("creating directory", &shown)(error)),
        }
        let dir = open_dir_at(&parent_dir, OsStr::new(name)).map_err(Error::io("opening", &shown))?;
        fchmod(&dir, Mode::from_bits_truncate(0o755)).map_err(Error::io("changing permissions of directory", &shown))?;
        if let Err(error) = step("profile::chown", || fchown(&dir, Some(Uid::from_raw(uid)), None)) {
            // Better none than one that its user cannot use.
            let _ = unlinkat(&parent_dir, name, UnlinkatFlags::RemoveDir);
            tracing::info!("failed to change owner of directory '{}' to {uid}: {error}", shown.display());
        }
        Ok(())
    }
}
