//! What is asked of the system.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::{DeviceRule, Entry, Parameter};

/// A jail's number. The kernel gives it to another one only after all others.
pub type JailId = i32;

/// A mount's number: that of its file system, which no other has as long as it is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MountId(pub i32, pub i32);

/// A jail that was just made.
#[derive(Debug)]
pub struct Jail {
    /// Its number.
    pub id: JailId,
    /// Its owner: when the last copy is closed, the kernel removes the jail. FreeBSD 15 and later.
    pub owner: Option<OwnedFd>,
}

/// Something mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// Its number.
    pub id: MountId,
    /// Where.
    pub path: PathBuf,
    /// The type of the file system.
    pub kind: String,
}

/// How a source is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// No symbolic link may be on the way; a source that is one is reported as such.
    Strict,
    /// Links on the way are followed; a source that is one is reported as such.
    Link,
    /// All links are followed.
    Follow,
}

/// What a source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A directory.
    Dir(Source),
    /// A regular file.
    File(Source),
    /// A symbolic link, and what is in it.
    Link(PathBuf),
    /// Something else, such as a device.
    Other,
    /// Nothing.
    Missing,
}

/// A file as it was when it was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its path, without links where they were followed.
    pub path: PathBuf,
    /// Its inode number, which nullfs passes on.
    pub inode: u64,
}

/// A mount to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRequest {
    /// The type of the file system: `nullfs`, `devfs`, `fdescfs`.
    pub kind: &'static str,
    /// Where, on the host. It exists and has no symbolic link on the way.
    pub path: PathBuf,
    /// For nullfs: what shows there.
    pub from: Option<Source>,
    /// The file system's own options.
    pub options: Vec<(&'static str, String)>,
    /// Nothing can be written through it.
    pub read_only: bool,
}

/// What the running kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `kern.osreldate`: 1400097 is 14.0.
    pub release: u32,
    /// Network stacks of jails' own.
    pub vnet: bool,
    /// rctl works: the kernel has it and `kern.racct.enable` is 1.
    pub limits: bool,
    /// File systems that can be mounted, among nullfs, devfs and fdescfs.
    pub file_systems: Vec<String>,
    /// The parameters of jails, without `security.jail.param.`.
    pub parameters: Vec<String>,
}

impl Features {
    /// Whether a jail can have an owning descriptor.
    #[must_use]
    pub fn owners(&self) -> bool {
        self.release >= 1_500_000
    }

    /// Whether a file system can be mounted.
    #[must_use]
    pub fn has_file_system(&self, name: &str) -> bool {
        self.file_systems.iter().any(|known| known == name)
    }
}

/// The system's effects, each reported with the system's own error. Paths of entries are those that the jail sees, `root` is the jail's root on the
/// host. What returns `(io::Error, String)` adds the kernel's own words, or an empty string.
pub trait Kernel {
    /// Makes something in a root; directories above are made with mode 755. No symbolic link is followed.
    ///
    /// # Errors
    /// It is there already (but for a directory), or the system refuses.
    fn make(&mut self, root: &Path, entry: &Entry) -> io::Result<()>;

    /// Makes a place to mount on, if it is not there: a directory, or an empty file. No symbolic link is followed.
    ///
    /// # Errors
    /// Something else is there, or the system refuses.
    fn make_place(&mut self, root: &Path, path: &Path, dir: bool) -> io::Result<()>;

    /// Looks at the source of a mount.
    ///
    /// # Errors
    /// A link is on the way where none may be, or the system refuses.
    fn find(&mut self, path: &Path, lookup: Lookup) -> io::Result<Found>;

    /// Mounts. Nothing mounted here honours setuid bits.
    ///
    /// # Errors
    /// The system refuses.
    fn mount(&mut self, request: &MountRequest) -> Result<(), (io::Error, String)>;

    /// Whether a nullfs mount shows what was found before.
    ///
    /// # Errors
    /// The system refuses to tell.
    fn shows(&mut self, path: &Path, source: &Source) -> io::Result<bool>;

    /// What is mounted at and below a directory, oldest first.
    ///
    /// # Errors
    /// The system refuses to tell.
    fn mounts_below(&mut self, root: &Path) -> io::Result<Vec<MountPoint>>;

    /// Unmounts; by force: even if it is in use.
    ///
    /// # Errors
    /// It is in use, or not there.
    fn unmount(&mut self, id: MountId, force: bool) -> io::Result<()>;

    /// Makes a jail with these parameters; `owned`: with an owning descriptor.
    ///
    /// # Errors
    /// The system refuses.
    fn create_jail(&mut self, parameters: &[Parameter], owned: bool) -> Result<Jail, (io::Error, String)>;

    /// All jails, with their names.
    ///
    /// # Errors
    /// The system refuses.
    fn jails(&mut self) -> io::Result<Vec<(JailId, String)>>;

    /// The jail of this name.
    ///
    /// # Errors
    /// The system refuses.
    fn find_jail(&mut self, name: &str) -> io::Result<Option<JailId>>;

    /// Removes a jail: all its processes are killed. One that is gone already is no error.
    ///
    /// # Errors
    /// The system refuses.
    fn remove_jail(&mut self, jail: JailId) -> io::Result<()>;

    /// Kills what descends from this process, and waits until it has no children. As the reaper of a jail's processes it then knows that none is left.
    ///
    /// # Errors
    /// The system refuses.
    fn wait_for_children(&mut self) -> io::Result<()>;

    /// Adds a resource limit.
    ///
    /// # Errors
    /// The system refuses, or has no limits.
    fn add_limit(&mut self, rule: &str) -> io::Result<()>;

    /// Takes away all limits that match. That there is none is no error.
    ///
    /// # Errors
    /// The system refuses.
    fn remove_limits(&mut self, filter: &str) -> io::Result<()>;

    /// The rules of a device ruleset, in order; empty where it does not exist.
    ///
    /// # Errors
    /// The system refuses.
    fn device_rules(&mut self, ruleset: u16) -> io::Result<Vec<DeviceRule>>;

    /// Adds a rule to a device ruleset, at `number`.
    ///
    /// # Errors
    /// There is one of that number, or the system refuses.
    fn add_device_rule(&mut self, ruleset: u16, number: u16, rule: &DeviceRule) -> io::Result<()>;

    /// What this kernel has.
    ///
    /// # Errors
    /// The system refuses.
    fn features(&mut self) -> io::Result<Features>;
}

/// The machine itself.
#[cfg(target_os = "freebsd")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Host;

#[cfg(target_os = "freebsd")]
impl Kernel for Host {
    fn make(&mut self, root: &Path, entry: &Entry) -> io::Result<()> {
        crate::root::make(root, entry)
    }

    fn make_place(&mut self, root: &Path, path: &Path, dir: bool) -> io::Result<()> {
        crate::root::make_place(root, path, dir)
    }

    fn find(&mut self, path: &Path, lookup: Lookup) -> io::Result<Found> {
        crate::root::find(path, lookup)
    }

    fn mount(&mut self, request: &MountRequest) -> Result<(), (io::Error, String)> {
        crate::sys::mount(request)
    }

    fn shows(&mut self, path: &Path, source: &Source) -> io::Result<bool> {
        crate::root::inode(path).map(|inode| inode == source.inode)
    }

    fn mounts_below(&mut self, root: &Path) -> io::Result<Vec<MountPoint>> {
        let mut mounts = crate::sys::mounts()?;
        mounts.retain(|mount| mount.path.starts_with(root));
        Ok(mounts)
    }

    fn unmount(&mut self, id: MountId, force: bool) -> io::Result<()> {
        crate::sys::unmount(id, force)
    }

    fn create_jail(&mut self, parameters: &[Parameter], owned: bool) -> Result<Jail, (io::Error, String)> {
        crate::sys::create_jail(parameters, owned)
    }

    fn jails(&mut self) -> io::Result<Vec<(JailId, String)>> {
        crate::sys::jails()
    }

    fn find_jail(&mut self, name: &str) -> io::Result<Option<JailId>> {
        crate::sys::find_jail(name)
    }

    fn remove_jail(&mut self, jail: JailId) -> io::Result<()> {
        crate::sys::remove_jail(jail)
    }

    fn wait_for_children(&mut self) -> io::Result<()> {
        use nix::errno::Errno;
        use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

        loop {
            // A process that was just being forked when its jail was removed is not in it any more, and nobody has killed it.
            crate::signal_descendants(libc::SIGKILL)?;
            // Then all that have ended: to look at each of those that are left once for each of them would take long where they are many.
            let mut flags = None;
            loop {
                match waitpid(None, flags) {
                    Ok(WaitStatus::StillAlive) => break,
                    Ok(_) => flags = Some(WaitPidFlag::WNOHANG),
                    Err(Errno::EINTR) => {}
                    Err(Errno::ECHILD) => return Ok(()),
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
    }

    fn add_limit(&mut self, rule: &str) -> io::Result<()> {
        crate::sys::add_limit(rule)
    }

    fn remove_limits(&mut self, filter: &str) -> io::Result<()> {
        crate::sys::remove_limits(filter)
    }

    fn device_rules(&mut self, ruleset: u16) -> io::Result<Vec<DeviceRule>> {
        crate::sys::device_rules(ruleset)
    }

    fn add_device_rule(&mut self, ruleset: u16, number: u16, rule: &DeviceRule) -> io::Result<()> {
        crate::sys::add_device_rule(ruleset, number, rule)
    }

    fn features(&mut self) -> io::Result<Features> {
        crate::sys::features()
    }
}
