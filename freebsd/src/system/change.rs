//! What a machine must change outside the store when it goes from one system to another.
//!
//! Both systems say what a machine has that was just made of them ([`super::installed::Installed::outside`]), and the machine says what it has. What the
//! two systems have in common is left alone, whatever became of it. What the new one has otherwise is written, and what only the old one has is
//! taken away, unless somebody has changed it meanwhile: then it stays, and a new file goes beside it. Users and groups are merged by line and field.
//!
//! Nothing here touches a disk.

use super::accounts::Accounts;
use super::rootfs::MUTABLE;
use crate::tree::{Content, Entry, Node, Tree, TreeError, parent, show};

/// What the name of a file that could not take its place ends with, but for a number.
pub const BESIDE: &str = ".fruixnew";

/// The longest file of users or groups that is read, in bytes.
const MAX_ACCOUNTS: u64 = 16 << 20;

/// What is done with a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// It is made, or takes the place of what is there.
    Put(Entry),
    /// It is made beside what is there, which somebody has changed: the path ends with [`BESIDE`], and a number where that is taken.
    Beside(Entry),
    /// It is taken away, so that something of another kind can take its place; a directory only when it is empty.
    Clear,
    /// It is taken away; a directory only when it is empty.
    Remove,
    /// It stays though the new system does not have it, or as it is though the new system has it: somebody has changed it.
    Leave,
}

impl Act {
    /// What it is, for users.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Act::Put(_) => "write",
            Act::Beside(_) => "write beside",
            Act::Clear | Act::Remove => "remove",
            Act::Leave => "leave",
        }
    }

    /// Whether it waits until the new system is the current one: what only the old one has.
    #[must_use]
    pub fn comes_last(&self) -> bool {
        matches!(self, Act::Remove | Act::Leave)
    }
}

/// A path, relative to the root, and what is done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The path.
    pub path: Vec<u8>,
    /// What is done.
    pub act: Act,
    /// Whether it is in a directory of a user's, who can hinder it: then that is told, and the rest is done.
    pub of_user: bool,
}

/// What is at a path of a machine: type, owner, mode and content; no times, no flags.
pub trait Look {
    /// The entry at `path`; `None` when there is nothing.
    ///
    /// # Errors
    /// It cannot be looked at, or is behind a symbolic link.
    fn look(&mut self, path: &[u8]) -> Result<Option<Entry>, TreeError>;
}

/// What a system has outside the store, and its users and groups.
pub type Side<'a> = (&'a Tree, &'a Accounts);

/// The changes, in an order in which they can be made: what is written, directories before what is in them; then what is removed, the other way round.
/// There is one old system, or several when the machine has something of each, as after a power cut.
///
/// # Errors
/// Something cannot be read, or a machine's own things are where the new system needs others.
pub fn changes(old: &[Side<'_>], new: Side<'_>, machine: &mut dyn Look) -> Result<Vec<Change>, TreeError> {
    let mut found = accounts(old, new.1, machine)?;
    let merged = |path: &[u8]| file_of(new.1, path).is_some();
    let new = new.0;
    let of_user = |path: &[u8]| parent(path).is_some_and(|above| new.get(above).is_some_and(|above| above.uid != 0));
    // What was one kind of thing and becomes another: nothing that is below it counts any more.
    let mut turned: Vec<Vec<u8>> = Vec::new();
    let below = |turned: &[Vec<u8>], path: &[u8]| {
        turned.iter().any(|above| path.strip_prefix(above.as_slice()).is_some_and(|rest| rest.starts_with(b"/")))
    };
    for (path, entry) in new.iter().filter(|(path, _)| !path.is_empty() && !merged(path)) {
        // What all old systems have alike is left alone, whatever became of it.
        let mut alike = old.iter().map(|(tree, _)| tree.get(path)).map(|before| before.map_or(Ok(false), |before| same(before, entry)));
        if alike.try_fold(true, |all, one| one.map(|one| all && one))? && !below(&turned, path) {
            continue;
        }
        let mut change = |path: &[u8], act| found.push(Change { path: path.to_vec(), act, of_user: of_user(path) });
        let there = match machine.look(path) {
            _ if below(&turned, path) => None,
            // In his own directory a user may have what he likes.
            Err(TreeError::Conflict { .. }) if of_user(path) => {
                change(path, Act::Leave);
                continue;
            }
            there => there?,
        };
        let Some(there) = there else {
            change(path, Act::Put(entry.clone()));
            continue;
        };
        if same(&there, entry)? {
            continue;
        }
        let is_old = is_of(old, path, &there)?;
        match (&there.node, &entry.node) {
            // The mode of a directory may be somebody's wish.
            (Node::Dir, Node::Dir) => {}
            (Node::Dir, _) if is_old => {
                let prefix = [path, b"/"].concat();
                let mut inside: Vec<&[u8]> =
                    old.iter().flat_map(|(tree, _)| tree.iter().map(|(path, _)| path)).filter(|path| path.starts_with(&prefix)).collect();
                inside.sort_unstable();
                inside.dedup();
                for inner in inside.into_iter().rev() {
                    let Some(there) = machine.look(inner)? else { continue };
                    if is_of(old, inner, &there)? {
                        change(inner, Act::Clear);
                    }
                }
                change(path, Act::Clear);
                change(path, Act::Put(entry.clone()));
            }
            (_, Node::Dir) if is_old => {
                change(path, Act::Clear);
                change(path, Act::Put(entry.clone()));
                turned.push(path.to_vec());
            }
            (_, Node::Dir) if of_user(path) => change(path, Act::Leave),
            (_, Node::Dir) => {
                let why = format!("is a {} on this machine and a directory of the new system: move it away", there.node.kind());
                return Err(TreeError::Conflict { path: show(path), why });
            }
            _ if is_old => change(path, Act::Put(entry.clone())),
            _ => {
                if let Some(beside) = beside(path, entry, machine)? {
                    change(&beside, Act::Beside(entry.clone()));
                }
            }
        }
    }
    let mut gone: Vec<&[u8]> = old.iter().flat_map(|(tree, _)| tree.iter().map(|(path, _)| path)).collect();
    gone.retain(|path| !path.is_empty() && !merged(path) && new.get(path).is_none());
    gone.sort_unstable();
    gone.dedup();
    for path in gone.into_iter().rev() {
        let no_directory = |above: &&[u8]| new.get(above).is_some_and(|above| above.node != Node::Dir);
        if std::iter::successors(parent(path), |path| parent(path)).any(|above| no_directory(&above)) {
            // Something of another kind is in the place of what it was in.
            continue;
        }
        if found.iter().any(|change| change.act == Act::Clear && change.path == path) {
            continue;
        }
        let mut change = |act| found.push(Change { path: path.to_vec(), act, of_user: of_user(path) });
        let there = match machine.look(path) {
            // Somebody has put something else in the way.
            Err(TreeError::Conflict { .. }) => {
                change(Act::Leave);
                continue;
            }
            other => other?,
        };
        let Some(there) = there else { continue };
        change(if is_of(old, path, &there)? { Act::Remove } else { Act::Leave });
    }
    Ok(found)
}

/// Whether what is at `path` is what one of the systems has there. A directory is one, whatever its mode.
fn is_of(old: &[Side<'_>], path: &[u8], there: &Entry) -> Result<bool, TreeError> {
    for before in old.iter().filter_map(|(tree, _)| tree.get(path)) {
        if there.node == Node::Dir && before.node == Node::Dir || same(there, before)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Where `entry` goes that cannot take its place at `path`; `None` when it is there already. What is there of earlier deployments stays.
fn beside(path: &[u8], entry: &Entry, machine: &mut dyn Look) -> Result<Option<Vec<u8>>, TreeError> {
    const MOST: u32 = 100;
    let mut name = [path, BESIDE.as_bytes()].concat();
    for number in 1..=MOST {
        match machine.look(&name)? {
            None => return Ok(Some(name)),
            Some(there) if same(&there, entry)? => return Ok(None),
            Some(_) => name = [path, format!("{BESIDE}.{number}").as_bytes()].concat(),
        }
    }
    let why = format!("has {MOST} files beside it that end with {BESIDE}: remove those that are not needed");
    Err(TreeError::Conflict { path: show(path), why })
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

fn accounts(old: &[Side<'_>], new: &Accounts, machine: &mut dyn Look) -> Result<Vec<Change>, TreeError> {
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
    let Some((_, first)) = old.first() else { return Ok(Vec::new()) };
    let (master, group) = (text("etc/master.passwd", &first.master)?, text("etc/group", &first.group)?);
    let mut all = Accounts::merge(first, new, (&master, &group)).map_err(|why| TreeError::Accounts { why })?;
    for (_, other) in old.iter().skip(1) {
        all = Accounts::merge(other, new, (&all.master, &all.group)).map_err(|why| TreeError::Accounts { why })?;
    }
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
            found.push(Change { path: path.as_bytes().to_vec(), act: Act::Put(entry), of_user: false });
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
