//! FreeBSD: what a [`Plan`] is as a jail. The process that carries it out is in `keeper`.
//!
//! This is compiled everywhere, so that the jails of plans can be looked at and tested on any machine. See `docs/design/jails.md`.

use std::path::Path;

use fruix_freebsd::{Cell, Entry as CellEntry, Limit, Lookup as CellLookup, Mounted, Network as CellNetwork, Rights, User};

use super::plan::{Entry, Identity, Lookup, Mount, Network, Root};
use super::{Error, Plan};

/// The jail of a plan.
///
/// # Errors
/// The plan is not one for a jail.
pub fn cell(plan: &Plan, name: &str, ruleset: u16) -> Result<Cell, Error> {
    let refuse = |reason: &str| Error::Plan { name: plan.name.clone(), reason: reason.to_owned() };
    let Root::Private { dir } = &plan.root else { return Err(refuse("it has no root of its own")) };
    if !matches!(plan.identity, Identity::User(_)) {
        return Err(refuse("builders in jails need build users: see `--build-users-group'"));
    }
    let mounts: Option<Vec<Mounted>> = plan.mounts.iter().map(mounted).collect();
    Ok(Cell {
        name: name.to_owned(),
        root: dir.clone(),
        entries: plan.entries.iter().map(entry).collect(),
        mounts: mounts.ok_or_else(|| refuse("it has mounts that FreeBSD does not know"))?,
        rights: Rights {
            host_name: plan.host_name.clone(),
            network: if plan.network == Network::Host { CellNetwork::Host } else { CellNetwork::None },
            ruleset,
        },
        limits: plan
            .limits
            .iter()
            .map(|limit| Limit { resource: limit.resource.clone(), action: limit.action.clone(), amount: limit.amount })
            .collect(),
    })
}

fn entry(entry: &Entry) -> CellEntry {
    match entry.clone() {
        Entry::Dir { path, mode, gid } => CellEntry::Dir { path, mode, gid },
        Entry::File { path, contents } => CellEntry::File { path, contents: contents.into_bytes() },
        Entry::Link { path, target } => CellEntry::Link { path, target },
        Entry::Users { path, uid, gid } => CellEntry::Users {
            path,
            users: [("nixbld", uid, gid, "Nix build user"), ("nobody", 65534, 65534, "Nobody")]
                .map(|(name, uid, gid, comment)| User {
                    name: name.to_owned(),
                    uid,
                    gid,
                    comment: comment.to_owned(),
                    home: "/".to_owned(),
                    shell: "/noshell".to_owned(),
                })
                .to_vec(),
        },
    }
}

/// `None`: there is no such thing here.
pub(super) fn mounted(mount: &Mount) -> Option<Mounted> {
    match mount.clone() {
        Mount::Bind { source, target, read_only, lookup } => {
            let (lookup, optional) = match lookup {
                Lookup::Strict => (CellLookup::Strict, false),
                Lookup::Link => (CellLookup::Link, false),
                Lookup::Follow => (CellLookup::Follow, true),
                // The keeper has found it with the builder's rights, and left out what the builder may not read. What its name leads to by now may
                // be another file, which only root could find.
                Lookup::AsBuilder => (CellLookup::Strict, true),
            };
            Some(Mounted::Host { source, target, read_only, lookup, optional })
        }
        Mount::Devices { target } => Some(Mounted::Devices { target }),
        Mount::Descriptors { target } => Some(Mounted::Descriptors { target }),
        Mount::Processes { .. } | Mount::Memory { .. } | Mount::Terminals { .. } => None,
    }
}

/// How the names of all jails begin that belong to a state directory, which device and inode number tell from all others of a running system.
#[must_use]
pub fn prefix(device: u64, inode: u64) -> String {
    format!("fruixd-{device:x}_{inode:x}-")
}

/// The root of a builder and the name of its jail, as a file tells the next daemon.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
pub(crate) struct State {
    pub(crate) jail: String,
    #[serde(with = "super::plan::text")]
    pub(crate) root: std::path::PathBuf,
}

/// The directory that a root is the only thing in, if it looks like one of ours.
#[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
pub(crate) fn outer(root: &Path) -> Option<&Path> {
    root.parent().filter(|outer| outer.extension().is_some_and(|extension| extension == "chroot"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_builds_are_removed() {
        assert_eq!(outer(Path::new("/gnu/store/x.drv.chroot/top")), Some(Path::new("/gnu/store/x.drv.chroot")));
        assert_eq!(outer(Path::new("/gnu/store/x")), None);
        assert_eq!(outer(Path::new("/")), None);
    }

    #[test]
    fn state_survives_any_path() {
        use std::os::unix::ffi::OsStringExt as _;
        let root = std::ffi::OsString::from_vec(b"/a\xff\\\n/top".to_vec()).into();
        let state = State { jail: "fruixd-1_2-3-4".to_owned(), root };
        assert_eq!(serde_json::from_slice::<State>(&serde_json::to_vec(&state).unwrap()).unwrap(), state);
    }
}
