//! What a machine must change outside the store when it goes from one system to another.
//!
//! Both systems say what a machine has that was just made of them ([`super::installed::Installed::outside`]), and the machine says what it has. What the
//! two systems have in common is left alone, whatever became of it. What the new one has otherwise is written, and what only the old one has is
//! taken away, unless somebody has changed it meanwhile: then it stays, and a new file goes beside it. Users and groups are merged by line and field.
//!
//! Nothing here touches a disk.

use super::accounts::Accounts;
use super::rootfs::MUTABLE;
use crate::tree::{Content, Entry, Node, Tree, TreeError, show};

/// What the name of a file that could not take its place ends with.
pub const BESIDE: &str = ".fruixnew";

/// The longest file of users or groups that is read, in bytes.
const MAX_ACCOUNTS: u64 = 16 << 20;

/// What is done with a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// It is made, or takes the place of what is there.
    Put(Entry),
    /// It is made with [`BESIDE`] after its name: somebody has changed what is there.
    Beside(Entry),
    /// It is taken away; a directory only when it is empty.
    Remove,
    /// It stays though the new system does not have it: somebody has changed it.
    Leave,
}

impl Act {
    /// What it is, for users.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Act::Put(_) => "write",
            Act::Beside(_) => "write beside",
            Act::Remove => "remove",
            Act::Leave => "leave",
        }
    }
}

/// A path, relative to the root, and what is done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The path.
    pub path: Vec<u8>,
    /// What is done.
    pub act: Act,
}

/// What is at a path of a machine: type, owner, mode and content; no times, no flags.
pub trait Look {
    /// The entry at `path`; `None` when there is nothing.
    ///
    /// # Errors
    /// It cannot be looked at, or is behind a symbolic link.
    fn look(&mut self, path: &[u8]) -> Result<Option<Entry>, TreeError>;
}

/// The changes, in an order in which they can be made: what is written, directories before what is in them; then what is removed, the other way round.
///
/// # Errors
/// Something cannot be read.
pub fn changes(old: (&Tree, &Accounts), new: (&Tree, &Accounts), machine: &mut dyn Look) -> Result<Vec<Change>, TreeError> {
    let mut found = accounts(old.1, new.1, machine)?;
    let merged = |path: &[u8]| file_of(new.1, path).is_some();
    let (old, new) = (old.0, new.0);
    for (path, entry) in new.iter().filter(|(path, _)| !path.is_empty() && !merged(path)) {
        let before = old.get(path);
        if let Some(before) = before
            && same(before, entry)?
        {
            continue;
        }
        let act = match (machine.look(path)?, &entry.node) {
            (None, _) => Act::Put(entry.clone()),
            (Some(there), _) if same(&there, entry)? => continue,
            // The mode of a directory may be somebody's wish.
            (Some(Entry { node: Node::Dir, .. }), Node::Dir) => continue,
            (Some(there), node) => match before {
                Some(before) if same(&there, before)? => Act::Put(entry.clone()),
                _ if *node == Node::Dir => {
                    let why = format!("is a {} on this machine and a directory of the new system: move it away", there.node.kind());
                    return Err(TreeError::Conflict { path: show(path), why });
                }
                _ => Act::Beside(entry.clone()),
            },
        };
        found.push(Change { path: path.to_vec(), act });
    }
    let gone: Vec<_> = old.iter().filter(|(path, _)| !path.is_empty() && !merged(path) && new.get(path).is_none()).collect();
    for (path, entry) in gone.into_iter().rev() {
        let there = match machine.look(path) {
            // Somebody has put something else in the way.
            Err(TreeError::Conflict { .. }) => {
                found.push(Change { path: path.to_vec(), act: Act::Leave });
                continue;
            }
            other => other?,
        };
        let act = match there {
            None => continue,
            Some(Entry { node: Node::Dir, .. }) if entry.node == Node::Dir => Act::Remove,
            Some(there) if same(&there, entry)? => Act::Remove,
            Some(_) => Act::Leave,
        };
        found.push(Change { path: path.to_vec(), act });
    }
    Ok(found)
}

/// What a file of users and groups says.
fn file_of<'a>(accounts: &'a Accounts, path: &[u8]) -> Option<&'a [u8]> {
    Some(match path {
        b"etc/group" => accounts.group.as_bytes(),
        b"etc/master.passwd" => accounts.master.as_bytes(),
        b"etc/passwd" => accounts.passwd.as_bytes(),
        b"etc/pwd.db" => &accounts.database,
        b"etc/spwd.db" => &accounts.secure_database,
        _ => return None,
    })
}

fn accounts(old: &Accounts, new: &Accounts, machine: &mut dyn Look) -> Result<Vec<Change>, TreeError> {
    let mut text = |path: &str, otherwise: &str| -> Result<String, TreeError> {
        match machine.look(path.as_bytes())?.map(|entry| entry.node) {
            Some(Node::File(file)) if file.size <= MAX_ACCOUNTS => {
                let mut bytes = vec![0; usize::try_from(file.size).unwrap_or(0)];
                file.content.open(file.size)?.fill(&mut bytes)?;
                let why = |_| TreeError::Accounts { why: format!("/{path}: is no UTF-8; make it so") };
                String::from_utf8(bytes).map_err(why)
            }
            Some(_) => Err(TreeError::Conflict { path: path.to_owned(), why: "is no file of users or groups: put one back".to_owned() }),
            None => Ok(otherwise.to_owned()),
        }
    };
    let (master, group) = (text("etc/master.passwd", &old.master)?, text("etc/group", &old.group)?);
    let all = Accounts::merge(old, new, (&master, &group)).map_err(|why| TreeError::Accounts { why })?;
    let mut found = Vec::new();
    for (path, mode) in MUTABLE {
        let Some(bytes) = file_of(&all, path.as_bytes()) else { continue };
        let entry = Entry::file(mode, bytes.to_vec());
        let there = machine.look(path.as_bytes())?;
        let is = match &there {
            Some(there) => same(there, &entry)?,
            None => false,
        };
        if !is {
            found.push(Change { path: path.as_bytes().to_vec(), act: Act::Put(entry) });
        }
    }
    // Databases of the same users may be written otherwise by the machine's own programs. They come first: as long as a text is not written, all is not.
    found.sort_by_key(|change: &Change| !change.path.ends_with(b".db"));
    let texts = found.iter().any(|change| !change.path.ends_with(b".db"));
    Ok(if texts { found } else { Vec::new() })
}

/// Whether two entries are alike in type, owner, mode and content.
///
/// # Errors
/// A content cannot be read.
pub fn same(one: &Entry, other: &Entry) -> Result<bool, TreeError> {
    let alike = (one.uid, one.gid) == (other.uid, other.gid);
    Ok(match (&one.node, &other.node) {
        (Node::Symlink(one), Node::Symlink(other)) => one == other,
        (Node::Dir, Node::Dir) => alike && one.mode == other.mode,
        (Node::File(first), Node::File(second)) => {
            let size = first.size;
            if !alike || one.mode != other.mode || size != second.size {
                return Ok(false);
            }
            if let (Content::Host(first), Content::Host(second)) = (&first.content, &second.content)
                && first == second
            {
                return Ok(true);
            }
            let (mut first, mut second) = (first.content.open(size)?, second.content.open(size)?);
            let (mut left, mut buffers) = (size, (vec![0; 1 << 16], vec![0; 1 << 16]));
            while left > 0 {
                let now = usize::try_from(left.min(1 << 16)).unwrap_or(1 << 16);
                let (Some(one), Some(other)) = (buffers.0.get_mut(..now), buffers.1.get_mut(..now)) else { return Ok(false) };
                first.fill(one)?;
                second.fill(other)?;
                if one != other {
                    return Ok(false);
                }
                left -= now as u64;
            }
            true
        }
        _ => false,
    })
}
