//! A jail with its root: how it comes into being, and how nothing of it stays.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Features, Found, Jail, Kernel, Lookup, MountRequest, Result, Rights, parameters};

/// Something in a root. Paths are those that the jail sees; directories above are made with mode 755.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory; one that is there gets mode and group.
    Dir {
        /// Where.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its group, if not the daemon's.
        gid: Option<u32>,
    },
    /// A file of mode 644.
    File {
        /// Where.
        path: PathBuf,
        /// What is in it.
        contents: Vec<u8>,
    },
    /// A symbolic link.
    Link {
        /// Where.
        path: PathBuf,
        /// To what.
        target: PathBuf,
    },
    /// The database of users that the C library reads (`/etc/pwd.db`), of mode 644.
    Users {
        /// Where.
        path: PathBuf,
        /// Who is in it.
        users: Vec<User>,
    },
}

/// A user in a database of a jail's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its group's number.
    pub gid: u32,
    /// What it is called in full.
    pub comment: String,
    /// Its home.
    pub home: String,
    /// Its shell.
    pub shell: String,
}

/// Something mounted in a root. Paths are those that the jail sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mounted {
    /// A file or directory of the host; an equal link is made of one that is a symbolic link.
    Host {
        /// On the host.
        source: PathBuf,
        /// For the jail.
        target: PathBuf,
        /// Nothing can be written there.
        read_only: bool,
        /// How the source is found.
        lookup: Lookup,
        /// It is left out if it is not there, or neither a file nor a directory.
        optional: bool,
    },
    /// Devices, as the jail's ruleset shows them.
    Devices {
        /// For the jail.
        target: PathBuf,
    },
    /// The descriptors of the process that looks; left out where the kernel has no fdescfs.
    Descriptors {
        /// For the jail.
        target: PathBuf,
    },
}

/// A limit on all processes of a jail together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is limited, in the words of `rctl`.
    pub resource: String,
    /// What happens: `deny`, `sigkill`.
    pub action: String,
    /// From where on.
    pub amount: u64,
}

/// A jail, all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Its name: letters, digits, `_` and `-`, at most 200, not all of them digits.
    pub name: String,
    /// Its root on the host: an empty directory, reached by no symbolic link, that only the caller can change.
    pub root: PathBuf,
    /// What is made in the root, in this order.
    pub entries: Vec<Entry>,
    /// What is mounted, in this order, after that.
    pub mounts: Vec<Mounted>,
    /// What it may.
    pub rights: Rights,
    /// What it may use. Left out where the kernel has no limits.
    pub limits: Vec<Limit>,
}

/// Makes a jail that has no process yet. On failure all that was made is undone, but for files and directories in the root; if undoing fails too,
/// that error is the second.
///
/// # Errors
/// A step failed.
pub fn set_up(kernel: &mut impl Kernel, cell: &Cell, features: &Features) -> Result<Jail, Box<(Error, Option<Error>)>> {
    match build_up(kernel, cell, features) {
        Ok(jail) => Ok(jail),
        Err(error) => {
            let undoing = tear_down(kernel, &cell.name, &cell.root, false).err();
            Err(Box::new((error, undoing)))
        }
    }
}

fn build_up(kernel: &mut impl Kernel, cell: &Cell, features: &Features) -> Result<Jail> {
    // The kernel lists mounts by their real paths: under another name they would not be found again.
    let failed = Error::file("looking up", &cell.root);
    match kernel.find(&cell.root, Lookup::Strict) {
        Ok(Found::Dir(_)) => {}
        Ok(Found::Missing) => return Err(failed(io::ErrorKind::NotFound.into())),
        Ok(_) => return Err(failed(io::ErrorKind::NotADirectory.into())),
        Err(error) => return Err(failed(error)),
    }
    for entry in &cell.entries {
        kernel.make(&cell.root, entry).map_err(Error::file("making", entry.path()))?;
    }
    let mut covered = BTreeSet::new();
    let mut mounts = Vec::new();
    for mounted in &cell.mounts {
        mounts.extend(prepare(kernel, cell, mounted, features, &covered)?);
        covered.insert(mounted.target());
    }
    for mount in &mounts {
        self::mount(kernel, cell, mount)?;
    }
    // Nothing may be added beside what is there.
    let root = Entry::Dir { path: "/".into(), mode: 0o555, gid: None };
    kernel.make(&cell.root, &root).map_err(Error::file("setting permissions on", Path::new("/")))?;
    if features.limits {
        for limit in &cell.limits {
            let rule = format!("jail:{}:{}:{}={}", cell.name, limit.resource, limit.action, limit.amount);
            kernel.add_limit(&rule).map_err(|source| Error::Limit { doing: "adding", rule, source })?;
        }
    }
    let parameters = parameters(&cell.name, &cell.root, &cell.rights, features);
    kernel.create_jail(&parameters, features.owners()).map_err(|(source, message)| Error::Jail {
        doing: "making",
        name: cell.name.clone(),
        message,
        source,
    })
}

/// What is to be mounted for an item of a cell, once its source has been looked at; `None` where there is nothing to mount. All places are made before
/// anything is mounted: the kernel writes the directory that it mounts on to the disk first, and several that were made together cost one write.
fn prepare<'a>(
    kernel: &mut impl Kernel,
    cell: &'a Cell,
    mounted: &'a Mounted,
    features: &Features,
    covered: &BTreeSet<&'a Path>,
) -> Result<Option<Prepared<'a>>> {
    let mut prepared = match mounted {
        Mounted::Host { source, target, read_only, lookup, optional } => {
            let found = kernel.find(source, *lookup).map_err(Error::file("looking up", source))?;
            let (dir, from) = match found {
                Found::Dir(from) => (true, from),
                Found::File(from) => (false, from),
                Found::Link(to) => {
                    let link = Entry::Link { path: target.clone(), target: to };
                    return kernel.make(&cell.root, &link).map_err(Error::file("making", target)).map(|()| None);
                }
                Found::Other | Found::Missing if *optional => return Ok(None),
                Found::Other => return Err(Error::file("looking up", source)(io::ErrorKind::InvalidInput.into())),
                Found::Missing => return Err(Error::file("looking up", source)(io::ErrorKind::NotFound.into())),
            };
            let path = below(&cell.root, target);
            let request = MountRequest { kind: "nullfs", path, from: Some(from), options: Vec::new(), read_only: *read_only };
            Prepared { target, request, place: Some(dir), optional: *optional }
        }
        Mounted::Devices { target } => {
            let options = vec![("ruleset", cell.rights.ruleset.to_string())];
            let request = MountRequest { kind: "devfs", path: below(&cell.root, target), from: None, options, read_only: false };
            Prepared { target, request, place: Some(true), optional: false }
        }
        Mounted::Descriptors { .. } if !features.has_file_system("fdescfs") => return Ok(None),
        Mounted::Descriptors { target } => {
            let request =
                MountRequest { kind: "fdescfs", path: below(&cell.root, target), from: None, options: Vec::new(), read_only: false };
            // The devices bring it along.
            Prepared { target, request, place: None, optional: false }
        }
    };
    let target = prepared.target;
    // What is below another mount has its place there, and not before that is mounted.
    if !target.ancestors().skip(1).any(|above| covered.contains(above))
        && let Some(dir) = prepared.place.take()
    {
        kernel.make_place(&cell.root, target, dir).map_err(Error::file("making", target))?;
    }
    Ok(Some(prepared))
}

/// A mount, ready to be made.
struct Prepared<'a> {
    target: &'a Path,
    request: MountRequest,
    /// A place that still has to be made: whether it is a directory.
    place: Option<bool>,
    optional: bool,
}

fn mount(kernel: &mut impl Kernel, cell: &Cell, prepared: &Prepared<'_>) -> Result<()> {
    let Prepared { target, request, place, optional } = prepared;
    if let Some(dir) = place {
        kernel.make_place(&cell.root, target, *dir).map_err(Error::file("making", target))?;
    }
    if let Err((source, message)) = kernel.mount(request) {
        // It is there already, below something larger.
        let there = source.raw_os_error() == Some(libc::EDEADLK) && *optional;
        return if there { Ok(()) } else { Err(Error::Mount { path: target.to_path_buf(), message, source }) };
    }
    if let Some(source) = &request.from
        && !kernel.shows(&request.path, source).map_err(Error::file("looking at", target))?
    {
        return Err(Error::Replaced { path: source.path.clone() });
    }
    Ok(())
}

/// Removes what there is of a jail: the jail of this name with all its processes, its limits, and all mounts at and below `root`, newest first. The files and
/// directories of the root are the caller's. `force`: somebody else than this process started the jail's processes, so that their end cannot be
/// waited for, and mounts are taken away under them.
///
/// All is tried, whatever fails.
///
/// # Errors
/// The first failure. What it names is still there.
pub fn tear_down(kernel: &mut impl Kernel, name: &str, root: &Path, force: bool) -> Result<()> {
    let mut first = Ok(());
    let jail_failed = |doing| move |source| Error::Jail { doing, name: name.to_owned(), message: String::new(), source };
    let mut note = |result: Result<()>| {
        if first.is_ok() {
            first = result;
        }
    };
    match kernel.find_jail(name).map_err(jail_failed("looking for")) {
        Ok(Some(jail)) => note(kernel.remove_jail(jail).map_err(jail_failed("removing"))),
        Ok(None) => {}
        Err(error) => note(Err(error)),
    }
    if !force {
        note(kernel.wait_for_children().map_err(jail_failed("waiting for the processes of")));
    }
    let filter = format!("jail:{name}");
    note(kernel.remove_limits(&filter).map_err(|source| Error::Limit { doing: "removing", rule: filter, source }));
    match kernel.mounts_below(root).map_err(Error::file("listing mounts below", root)) {
        Ok(mounts) => {
            for mount in mounts.into_iter().rev() {
                let mut result = kernel.unmount(mount.id, force);
                if !force && result.is_err() {
                    // None of the jail's own processes is left: whoever is inside came by himself.
                    result = kernel.unmount(mount.id, true);
                }
                note(result.map_err(|source| Error::Unmount { path: mount.path, source }));
            }
        }
        Err(error) => note(Err(error)),
    }
    first
}

/// A path of the jail, as the host sees it.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

impl Entry {
    /// Where it is, for the jail.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Entry::Dir { path, .. } | Entry::File { path, .. } | Entry::Link { path, .. } | Entry::Users { path, .. } => path,
        }
    }
}

impl Mounted {
    /// Where it is, for the jail.
    #[must_use]
    pub fn target(&self) -> &Path {
        match self {
            Mounted::Host { target, .. } | Mounted::Devices { target } | Mounted::Descriptors { target } => target,
        }
    }
}
