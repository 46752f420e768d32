//! The root file system of a closure.
//!
//! Programs, libraries and data are in the store; the directories where everybody looks for them are links to the profile of
//! `/run/current-system`. `/etc` and `/boot` are directories of links, since a running system adds files of its own there; what it changes, and
//! what not everybody may read, is a copy. So is what boots before there are links: the loader of a BIOS.

use std::path::Path;

use super::base::TIME;
use super::closure::{BOOT_SYSTEM, CURRENT_SYSTEM, Closure, PRIVILEGED, PROFILE_DIRECTORIES, in_profile, is_privileged};
use super::model::OperatingSystem;
use crate::tree::{Content, Entry, Node, Tree, TreeError};

/// Files of /etc that programs of a running system change, with their modes.
pub(super) const MUTABLE: [(&str, u16); 6] = [
    ("etc/group", 0o644),
    ("etc/login.conf.db", 0o644),
    ("etc/master.passwd", 0o600),
    ("etc/passwd", 0o644),
    ("etc/pwd.db", 0o644),
    ("etc/spwd.db", 0o600),
];

/// Files of /etc that libc reads only when they are regular files of root's.
const REGULAR: [&str; 1] = ["etc/login.conf"];

/// Directories that every system has, with their modes.
const DIRECTORIES: [(&str, u16); 22] = [
    ("dev", 0o555),
    ("etc", 0o755),
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o755),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/local", 0o755),
    ("usr/local/bin", 0o755),
    ("usr/local/etc", 0o755),
    ("usr/local/etc/rc.d", 0o755),
    ("usr/local/lib", 0o755),
    ("usr/local/sbin", 0o755),
    ("var", 0o755),
    ("var/db", 0o755),
    ("var/empty", 0o555),
    ("var/log", 0o755),
    ("var/run", 0o755),
    ("var/tmp", 0o1777),
];

/// What a root file system is made of.
#[derive(Debug)]
pub struct Ingredients<'a> {
    /// The description.
    pub system: &'a OperatingSystem,
    /// The closure.
    pub closure: &'a Closure,
    /// Its store path.
    pub path: &'a str,
    /// All store paths that it leads to, with their files.
    pub items: Vec<(String, Tree)>,
    /// The store's directory, and its state's.
    pub store: &'a str,
    /// Where the daemon keeps its state.
    pub state: &'a str,
    /// The database in which the items are registered, and its size in bytes.
    pub database: (&'a Path, u64),
}

/// The files of a store path, as a store has them: mode 0444 or 0555, root's, time 1.
///
/// # Errors
/// [`TreeError`] when it cannot be read.
pub fn read_item(path: &Path) -> Result<Tree, TreeError> {
    use crate::tree::{DirectoryOptions, File};
    let metadata =
        std::fs::symlink_metadata(path).map_err(|source| TreeError::Host { doing: "looking at", path: path.to_owned(), source })?;
    let mut tree = Tree::new();
    if metadata.is_dir() {
        tree = super::base::without_hard_links(
            path,
            Tree::from_directory(path, DirectoryOptions { owner: Some((0, 0)), time: Some(TIME), without: None })?,
        );
    } else if metadata.is_symlink() {
        let target = std::fs::read_link(path).map_err(|source| TreeError::Host { doing: "reading", path: path.to_owned(), source })?;
        tree.insert("", Entry::symlink(target.into_os_string().into_encoded_bytes()).time(TIME))?;
    } else {
        let executable = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o111 != 0;
        let file = File { content: Content::Host(path.to_owned()), size: metadata.len(), sparse: true };
        tree.insert("", Entry::new(if executable { 0o555 } else { 0o444 }, Node::File(file)).time(TIME))?;
    }
    for (_, entry) in tree.iter_mut() {
        entry.flags = 0;
        entry.mode = match &entry.node {
            Node::File(_) if entry.mode & 0o111 == 0 => 0o444,
            Node::Symlink(_) => 0o755,
            _ => 0o555,
        };
    }
    Ok(tree)
}

/// Composes a root file system.
///
/// # Errors
/// What is wrong, in words for the user.
pub fn compose(ingredients: Ingredients<'_>) -> Result<Tree, String> {
    let Ingredients { system, closure, path, items, store, state, database } = ingredients;
    let tell = |error: TreeError| error.to_string();
    let plain = |entry: Entry| entry.time(TIME);
    let mut root = outside(system, closure)?;

    // The store, and what knows of it.
    root.insert("run/current-system", plain(Entry::symlink(BOOT_SYSTEM))).map_err(tell)?;
    root.insert(BOOT_SYSTEM, plain(Entry::symlink(path))).map_err(tell)?;
    root.insert(store, plain(Entry::dir(0o755))).map_err(tell)?;
    for (item, tree) in items {
        root.graft(&item, tree).map_err(tell)?;
    }
    root.insert(format!("{state}/db/db.sqlite"), plain(Entry::host_file(0o644, database.0, database.1))).map_err(tell)?;
    root.insert(format!("{state}/db/schema"), plain(Entry::file(0o644, b"7".to_vec()))).map_err(tell)?;
    root.insert(format!("{state}/gcroots/current-system"), plain(Entry::symlink(CURRENT_SYSTEM))).map_err(tell)?;
    root.insert(format!("{state}/gcroots/boot-system"), plain(Entry::symlink(BOOT_SYSTEM))).map_err(tell)?;
    root.complete(&plain(Entry::dir(0o755)));
    root.check().map_err(tell)?;
    Ok(root)
}

/// What a system has outside the store, but for the link that leads to it.
///
/// # Errors
/// What is wrong, in words for the user.
pub fn outside(system: &OperatingSystem, closure: &Closure) -> Result<Tree, String> {
    let tell = |error: TreeError| error.to_string();
    let mut root = Tree::new();
    let plain = |entry: Entry| entry.time(TIME);
    root.insert("", plain(Entry::dir(0o755))).map_err(tell)?;
    for (name, mode) in DIRECTORIES {
        root.insert(name, plain(Entry::dir(mode))).map_err(tell)?;
    }

    // The base: what is not in the profile, /etc or /boot is there as it is.
    for (name, entry) in closure.base.iter() {
        let linked = name.starts_with(b"etc/") || name.starts_with(b"boot/");
        if in_profile(name) {
            if is_privileged(entry) {
                // Another system must be able to replace it.
                root.insert([PRIVILEGED.as_bytes(), b"/", name].concat(), Entry { flags: 0, ..entry.clone() }).map_err(tell)?;
            }
        } else if !linked || entry.node == Node::Dir {
            root.replace(name, entry.clone()).map_err(tell)?;
        }
    }
    for name in PROFILE_DIRECTORIES {
        if closure.tree.get(format!("profile/{name}")).is_some() {
            root.replace(name, plain(Entry::symlink(format!("{CURRENT_SYSTEM}/profile/{name}")))).map_err(tell)?;
        }
    }

    // What the closure has for /etc, /boot and /usr/local.
    for (name, entry) in closure.tree.iter() {
        if !(name.starts_with(b"etc/") || name.starts_with(b"boot/") || name.starts_with(b"usr/local/")) {
            continue;
        }
        let of_base = closure.base.get(name);
        let link = || plain(Entry::symlink([CURRENT_SYSTEM.as_bytes(), b"/", name].concat()));
        let entry = match (&entry.node, MUTABLE.iter().find(|(mutable, _)| mutable.as_bytes() == name)) {
            (Node::Dir, _) => match root.get(name) {
                Some(_) => continue,
                None => plain(Entry::dir(0o755)),
            },
            (Node::File(_), Some((_, mode))) => plain(Entry { mode: *mode, ..entry.clone() }),
            // What was made counts, and not what the base has of that name.
            (Node::File(_), None) => link(),
            // To programs of their own, which change with the system.
            (Node::Symlink(_), _) if name.starts_with(b"usr/local/") => link(),
            (Node::Symlink(target), _) => match of_base {
                // The first loader of a BIOS follows no links.
                Some(base)
                    if matches!(base.node, Node::File(_))
                        && (is_privileged(base) || name == b"boot/loader" || REGULAR.iter().any(|regular| regular.as_bytes() == name)) =>
                {
                    Entry { flags: 0, ..base.clone() }
                }
                Some(base) if matches!(base.node, Node::File(_)) => link(),
                _ => plain(Entry::symlink(target.clone())),
            },
            (Node::HardLink(_), _) => continue,
        };
        root.replace(name, entry).map_err(tell)?;
    }

    // Files and homes.
    for file in &system.files {
        let mode = u16::from_str_radix(&file.mode, 8).map_err(|error| format!("files: `{}': {error}", file.mode))?;
        let (uid, gid) = (closure.accounts.uid(&file.user), closure.accounts.gid(&file.group));
        let (Some(uid), Some(gid)) = (uid, gid) else {
            return Err(format!("files: `{}': there is no user `{}' or group `{}'", file.path, file.user, file.group));
        };
        root.replace(&file.path, plain(Entry::file(mode, file.text.clone().into_bytes())).owner(uid, gid)).map_err(tell)?;
    }
    for user in &system.users {
        let (Some(uid), Some(gid)) = (closure.accounts.uid(&user.name), closure.accounts.gid_of_user(&user.name)) else { continue };
        if user.home != "/nonexistent" && user.home != "/" && root.get(&user.home).is_none() {
            root.insert(&user.home, plain(Entry::dir(0o755)).owner(uid, gid)).map_err(tell)?;
        }
        if !user.ssh_keys.is_empty() {
            let directory = format!("{}/.ssh", user.home);
            let keys = user.ssh_keys.join("\n") + "\n";
            root.replace(&directory, plain(Entry::dir(0o700)).owner(uid, gid)).map_err(tell)?;
            root.replace(format!("{directory}/authorized_keys"), plain(Entry::file(0o600, keys.into_bytes())).owner(uid, gid))
                .map_err(tell)?;
        }
    }
    if system.image.grow {
        // rc(8) starts growfs when this is there, and removes it.
        root.replace("firstboot", plain(Entry::file(0o644, Vec::new()))).map_err(tell)?;
    }
    root.complete(&plain(Entry::dir(0o755)));
    Ok(root)
}
