//! A package's archive: its manifest, and its files as a tree.
//!
//! A `.pkg` is a tar, compressed with zstd or xz or not at all: `+COMPACT_MANIFEST`, `+MANIFEST`, then files under absolute names. Every file
//! has its sum in the manifest, a symbolic link that of its target: see [`super::sum`]. Nothing in a manifest is run: scripts are told.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::PkgItem;
use super::sum::{self, Hasher, Sum};
use crate::system::base::{MANIFEST, TIME};
use crate::system::canon;
use crate::system::sets::{self, Owned};
use crate::tree::{Content, Entry, Node, Tree, normalise, parent, parse_flags, show};

/// The manifest's name in an archive, and in a store item.
pub const PKG_MANIFEST: &str = "+MANIFEST";
/// The file in a store item that tells what was not kept as files: scripts, owners, dependencies.
pub const METADATA: &str = "freebsd-pkg.scm";
/// What a profile has, besides links.
pub const PROFILE_METADATA: &str = "freebsd-profile.scm";

/// The longest manifest, in bytes.
const MAX_MANIFEST: u64 = 64 << 20;
/// The longest extension of an entry (a long name, pax records), in bytes.
const MAX_EXTENSION: u64 = 1 << 20;
/// The most entries of an archive.
const MAX_ENTRIES: usize = 1 << 21;
/// The most bytes that a package may have, whatever it says of itself.
const MAX_SIZE: u64 = 32 << 30;
/// How many bytes a package may have more than `flatsize` says.
const SLACK: u64 = 1 << 20;

/// Names that a store item has of its own.
const OWN: [&str; 4] = [MANIFEST, PKG_MANIFEST, METADATA, PROFILE_METADATA];

/// What to do about an archive that is not what its repository says.
pub const REMEDY: &str = "do not use it, and ask who made the repository";

/// Users and groups that every FreeBSD has under the same number (share of `etc/master.passwd` and `etc/group` that packages name).
const USERS: [(&str, u32); 9] =
    [("root", 0), ("daemon", 1), ("operator", 2), ("bin", 3), ("games", 7), ("man", 9), ("uucp", 66), ("www", 80), ("nobody", 65534)];
const GROUPS: [(&str, u32); 14] = [
    ("wheel", 0),
    ("daemon", 1),
    ("kmem", 2),
    ("sys", 3),
    ("tty", 4),
    ("operator", 5),
    ("mail", 6),
    ("bin", 7),
    ("man", 9),
    ("games", 13),
    ("uucp", 66),
    ("dialer", 68),
    ("www", 80),
    ("nobody", 65534),
];

/// What a manifest says of a file.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum FileLine {
    Sum(String),
    Attributes { sum: Option<String> },
}

/// The pairs of an object, in their order: a name that is there twice is noticed.
#[derive(Debug, Default)]
struct Pairs<V>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Collect<V> {
            type Value = Pairs<V>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<V>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Collect(std::marker::PhantomData))
    }
}

/// What is read of a `+MANIFEST`.
#[derive(Debug, Deserialize)]
struct Manifest {
    name: String,
    version: String,
    #[serde(default)]
    origin: String,
    #[serde(default)]
    abi: String,
    #[serde(default)]
    flatsize: u64,
    #[serde(default)]
    deps: BTreeMap<String, IgnoredAny>,
    #[serde(default = "no_pairs")]
    files: Pairs<FileLine>,
    #[serde(default = "no_pairs")]
    directories: Pairs<IgnoredAny>,
    #[serde(default)]
    scripts: BTreeMap<String, IgnoredAny>,
    #[serde(default)]
    lua_scripts: BTreeMap<String, IgnoredAny>,
    #[serde(default)]
    users: Vec<serde_json::Value>,
    #[serde(default)]
    groups: Vec<serde_json::Value>,
}

fn no_pairs<V>() -> Pairs<V> {
    Pairs(Vec::new())
}

/// A package that was unpacked.
#[derive(Debug)]
pub struct Package {
    /// Its files, without directories that it does not name itself. Further names of a file are symbolic links.
    pub tree: Tree,
    /// Users and groups of its files, by path.
    pub owners: BTreeMap<Vec<u8>, Owned>,
    /// Its manifest as it is.
    pub manifest: Vec<u8>,
    /// What to know of it.
    pub about: About,
}

/// What a package has that is not files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Where it was made from, such as `shells/bash`.
    pub origin: String,
    /// The system that it was made for.
    pub abi: String,
    /// The names of its scripts, none of which is run.
    pub scripts: Vec<String>,
    /// The users that it wants there.
    pub users: Vec<String>,
    /// The groups that it wants there.
    pub groups: Vec<String>,
    /// Users and groups of files of which no number is known: these files are root's. As `user:group`.
    pub unknown: BTreeSet<String>,
}

impl Package {
    /// Gives each file the number of its owner's name; one that is not known is root's, and is told.
    pub fn number_owners(&mut self) {
        let find = |table: &[(&str, u32)], name: &str| table.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
        for (path, owned) in &self.owners {
            let Some(entry) = self.tree.get_mut(path) else { continue };
            if owned.user.is_empty() && owned.group.is_empty() {
                continue;
            }
            let (uid, gid) = (find(&USERS, &owned.user), find(&GROUPS, &owned.group));
            if uid.is_none() || gid.is_none() {
                self.about.unknown.insert(format!("{}:{}", owned.user, owned.group));
            }
            (entry.uid, entry.gid) = (uid.unwrap_or(0), gid.unwrap_or(0));
        }
    }

    /// [`METADATA`]: what is known of it, and the store paths of what it depends on.
    #[must_use]
    pub fn metadata(&self, item: &PkgItem, depends: &BTreeMap<String, String>) -> String {
        let About { origin, abi, scripts, users, groups, unknown } = &self.about;
        let mut out = String::from("(");
        for (name, value) in [("name", &item.name), ("version", &item.version), ("origin", origin), ("abi", abi)] {
            let _ = write!(out, "({name} . {})\n ", canon::string(value));
        }
        let unknown: Vec<String> = unknown.iter().cloned().collect();
        for (name, values) in [("scripts-not-run", scripts), ("users", users), ("groups", groups), ("owners-not-known", &unknown)] {
            let values: String = values.iter().map(|value| format!(" {}", canon::string(value))).collect();
            let _ = write!(out, "({name}{values})\n ");
        }
        out.push_str("(depends");
        for (name, path) in depends {
            let _ = write!(out, "\n  ({} . {})", canon::string(name), canon::string(path));
        }
        out.push_str("))\n");
        out
    }
}

/// A header with what its extensions say.
struct Head {
    path: Vec<u8>,
    link: Vec<u8>,
    kind: tar::EntryType,
    mode: u16,
    owner: (u32, u32),
    names: Owned,
    flags: u32,
    size: u64,
}

/// Goes over the entries of a tar. Extensions are read here, and not by the library, which sets them no limit.
pub(super) fn each_entry(
    input: &mut dyn Read,
    mut take: impl FnMut(HeadRef<'_>, &mut dyn Read) -> Result<(), String>,
) -> Result<(), String> {
    let told = |error: io::Error| format!("cannot be unpacked: {error}");
    let mut archive = tar::Archive::new(input);
    let (mut long_name, mut long_link, mut pax) = (None, None, Vec::new());
    for (number, item) in archive.entries().map_err(told)?.raw(true).enumerate() {
        let mut item = item.map_err(told)?;
        if number >= MAX_ENTRIES {
            return Err(format!("has more than {MAX_ENTRIES} entries"));
        }
        let kind = item.header().entry_type();
        let extension = match kind {
            tar::EntryType::GNULongName => Some(&mut long_name),
            tar::EntryType::GNULongLink => Some(&mut long_link),
            _ => None,
        };
        if extension.is_some() || matches!(kind, tar::EntryType::XHeader | tar::EntryType::XGlobalHeader) {
            if item.size() > MAX_EXTENSION {
                return Err(format!("has an extension of {} bytes, and {MAX_EXTENSION} is the limit", item.size()));
            }
            let mut bytes = Vec::new();
            item.read_to_end(&mut bytes).map_err(told)?;
            match extension {
                Some(to) => *to = Some(bytes.strip_suffix(b"\0").unwrap_or(&bytes).to_vec()),
                None if kind == tar::EntryType::XHeader => pax = bytes,
                None => {}
            }
            continue;
        }
        let number_of = |number: io::Result<u64>| number.ok().and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        let named = |name: Option<&[u8]>| String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
        let header = item.header();
        let mut head = Head {
            path: long_name.take().unwrap_or_else(|| header.path_bytes().into_owned()),
            link: long_link.take().unwrap_or_else(|| header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default()),
            kind,
            mode: (header.mode().map_err(told)? & 0o7777) as u16,
            owner: (number_of(header.uid()), number_of(header.gid())),
            names: Owned { user: named(header.username_bytes()), group: named(header.groupname_bytes()) },
            flags: 0,
            size: item.size(),
        };
        for record in tar::PaxExtensions::new(&std::mem::take(&mut pax)) {
            let record = record.map_err(told)?;
            let value = record.value_bytes();
            let text = || String::from_utf8_lossy(value).into_owned();
            match record.key_bytes() {
                b"path" => head.path = value.to_vec(),
                b"linkpath" => head.link = value.to_vec(),
                b"uname" => head.names.user = text(),
                b"gname" => head.names.group = text(),
                b"size" if text() != head.size.to_string() => return Err(format!("`{}': is too large", show(&head.path))),
                b"SCHILY.fflags" => {
                    head.flags = parse_flags(&text()).map_err(|flag| format!("`{}': `{flag}' is no file flag", show(&head.path)))?;
                }
                _ => {}
            }
        }
        take(HeadRef(&head), &mut item)?;
    }
    Ok(())
}

/// What [`each_entry`] gives out.
pub(super) struct HeadRef<'a>(&'a Head);

impl HeadRef<'_> {
    /// The name as it stands there.
    pub(super) fn path(&self) -> &[u8] {
        &self.0.path
    }

    /// How many bytes follow.
    pub(super) fn size(&self) -> u64 {
        self.0.size
    }

    /// Whether it is a regular file.
    pub(super) fn is_file(&self) -> bool {
        self.0.kind.is_file()
    }
}

/// What somebody wrote with `%` and two digits for bytes that are not ASCII.
fn decoded(name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        rest = after;
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                rest = after.get(2..).unwrap_or_default();
            }
            _ => out.push(byte),
        }
    }
    out
}

/// The paths of a manifest, with what sum each has.
struct Listed {
    files: BTreeMap<Vec<u8>, Option<Sum>>,
    directories: BTreeSet<Vec<u8>>,
}

impl Listed {
    fn of(manifest: &Manifest) -> Result<Listed, String> {
        let mut listed = Listed { files: BTreeMap::new(), directories: BTreeSet::new() };
        for (name, line) in &manifest.files.0 {
            let path = normalise(&decoded(name)).map_err(|error| format!("the manifest's file {error}"))?;
            let sum = match line {
                FileLine::Sum(sum) => Some(sum),
                FileLine::Attributes { sum } => sum.as_ref(),
            };
            let shown = show(&path);
            let sum = match sum.map(String::as_str) {
                None | Some("-" | "") => None,
                Some(sum) => Some(Sum::parse(sum).map_err(|why| format!("the manifest's file `{shown}' {why}"))?),
            };
            if listed.files.insert(path, sum).is_some() {
                return Err(format!("the manifest names `{shown}' twice"));
            }
        }
        for (name, _) in &manifest.directories.0 {
            listed.directories.insert(normalise(&decoded(name)).map_err(|error| format!("the manifest's directory {error}"))?);
        }
        Ok(listed)
    }
}

/// Unpacks a package: its files go to the new directory `directory` under numbers, and the tree refers to them.
///
/// # Errors
/// What is wrong with it, in words that begin with its name.
pub fn unpack(archive: &Path, directory: &Path, item: &PkgItem) -> Result<Package, String> {
    unpack_as(archive, directory, item).map_err(|why| format!("package {}-{}: {why}; {REMEDY}", item.name, item.version))
}

fn unpack_as(archive: &Path, directory: &Path, item: &PkgItem) -> Result<Package, String> {
    fs::create_dir_all(directory).map_err(|error| format!("`{}': {error}", directory.display()))?;
    let mut input = sets::open(archive).map_err(|error| format!("cannot be opened: {error}"))?;
    let mut state: Option<(Manifest, Listed, Vec<u8>)> = None;
    let (mut tree, mut owners) = (Tree::new(), BTreeMap::new());
    let (mut number, mut left) = (0_u64, 0_u64);
    let mut sums: BTreeMap<Vec<u8>, Sum> = BTreeMap::new();
    each_entry(&mut input, |head, body| {
        let head = head.0;
        // What is about the package has no directory.
        if head.path.starts_with(b"+") && !head.path.contains(&b'/') {
            if head.size > MAX_MANIFEST {
                return Err(format!("`{}' has {} bytes, and {MAX_MANIFEST} is the limit", show(&head.path), head.size));
            }
            if head.path == PKG_MANIFEST.as_bytes() {
                if state.is_some() {
                    return Err("has two manifests".into());
                }
                let mut bytes = Vec::new();
                body.read_to_end(&mut bytes).map_err(|error| format!("the manifest: {error}"))?;
                let manifest: Manifest =
                    serde_json::from_slice(&bytes).map_err(|error| format!("the manifest is not understood: {error}"))?;
                same(item, &manifest)?;
                if manifest.flatsize > MAX_SIZE {
                    return Err(format!("says that it has {} bytes, and {MAX_SIZE} is the limit", manifest.flatsize));
                }
                left = manifest.flatsize.saturating_add(SLACK);
                let listed = Listed::of(&manifest)?;
                state = Some((Manifest { files: no_pairs(), directories: no_pairs(), ..manifest }, listed, bytes));
            }
            return Ok(());
        }
        let Some((manifest, listed, _)) = &state else {
            return Err(format!("`{}' is before the manifest, which must come first", show(&head.path)));
        };
        let path = normalise(&head.path).map_err(|error| error.to_string())?;
        let name = show(&path);
        let wrong = |why: &dyn std::fmt::Display| format!("`{name}': {why}");
        left = left.checked_sub(head.size).ok_or_else(|| {
            wrong(&format!("unpacked, it is more than the {} bytes that its manifest says (flatsize)", manifest.flatsize))
        })?;
        if path.is_empty() {
            return Ok(());
        }
        if OWN.iter().any(|own| own.as_bytes() == path) {
            return Err(wrong(&"is a name that the store item needs itself"));
        }
        let mut above = parent(&path);
        while let Some(directory) = above {
            if tree.get(directory).is_some_and(|entry| entry.node != Node::Dir) {
                return Err(wrong(&format!("is to be written through `{}', which is no directory", show(directory))));
            }
            above = parent(directory);
        }
        let expected = match listed.files.get(&path) {
            Some(sum) => sum.as_ref(),
            None if head.kind == tar::EntryType::Directory && listed.directories.contains(&path) => None,
            None => return Err(wrong(&"is in the archive, and not in the manifest")),
        };
        let (node, sum) = match head.kind {
            tar::EntryType::Directory => (Node::Dir, None),
            tar::EntryType::Symlink => (Node::Symlink(head.link.clone()), expected.map(|sum| sum::of_link(sum.kind, &head.link))),
            tar::EntryType::Link => {
                let target = normalise(&head.link).map_err(|error| wrong(&error))?;
                match tree.get(&target).map(|entry| &entry.node) {
                    Some(Node::File(_)) => {}
                    Some(_) => return Err(wrong(&format!("is another name of `{}', which is no file", show(&target)))),
                    None => return Err(wrong(&format!("is another name of `{}', which is not there", show(&target)))),
                }
                (Node::Symlink(sets::relative(&path, &target)), sums.get(&target).cloned())
            }
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let Some(expected) = expected else { return Err(wrong(&"has no sum in the manifest")) };
                number += 1;
                let to = directory.join(number.to_string());
                let sum = copy(body, &to, Hasher::new(expected.kind)).map_err(|error| wrong(&error))?;
                (Entry::host_file(0, to, head.size).node, Some(sum))
            }
            other => return Err(wrong(&format!("is {}, which no package has", kind_name(other)))),
        };
        if let (Some(sum), Some(expected)) = (&sum, expected)
            && sum != expected
        {
            return Err(wrong(&format!("has the sum {sum}, and its manifest says {expected}")));
        }
        let mode = if matches!(node, Node::Symlink(_)) { 0o755 } else { head.mode };
        let entry = Entry { flags: head.flags, ..Entry::new(mode, node).owner(head.owner.0, head.owner.1).time(TIME) };
        tree.insert(&path, entry).map_err(|error| error.to_string())?;
        sums.extend(sum.map(|sum| (path.clone(), sum)));
        owners.insert(path, head.names.clone());
        Ok(())
    })?;
    let Some((manifest, listed, bytes)) = state else { return Err("has no manifest".into()) };
    if let Some(path) = listed.files.keys().find(|path| tree.get(path).is_none()) {
        return Err(format!("`{}' is in the manifest, and not in the archive", show(path)));
    }
    // A link that came after what is below it.
    let mut whole = tree.clone();
    whole.complete(&Entry::dir(0o755));
    whole.check().map_err(|error| error.to_string())?;
    let text = |values: &[serde_json::Value]| {
        values
            .iter()
            .map(|value| match value {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            })
            .collect()
    };
    let about = About {
        origin: manifest.origin,
        abi: manifest.abi,
        scripts: manifest.scripts.into_keys().chain(manifest.lua_scripts.into_keys().map(|name| format!("{name} (lua)"))).collect(),
        users: text(&manifest.users),
        groups: text(&manifest.groups),
        unknown: BTreeSet::new(),
    };
    Ok(Package { tree, owners, manifest: bytes, about })
}

fn kind_name(kind: tar::EntryType) -> &'static str {
    match kind {
        tar::EntryType::Char | tar::EntryType::Block => "a device",
        tar::EntryType::Fifo => "a pipe",
        _ => "neither file, directory nor link",
    }
}

/// Whether a manifest is that of the package which the catalogue means.
fn same(item: &PkgItem, manifest: &Manifest) -> Result<(), String> {
    for (what, found, expected) in [("name", &manifest.name, &item.name), ("version", &manifest.version, &item.version)] {
        if found != expected {
            let shown: String = found.chars().filter(|c| !c.is_control()).take(80).collect();
            return Err(format!("the {what} in its manifest is `{shown}', and the catalogue says `{expected}'"));
        }
    }
    let found: Vec<&String> = manifest.deps.keys().collect();
    if found != item.depends.iter().collect::<Vec<_>>() {
        let shown = |names: &[&String]| match names {
            [] => "nothing".to_owned(),
            names => names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", "),
        };
        let expected: Vec<&String> = item.depends.iter().collect();
        return Err(format!("its manifest depends on {}, and the catalogue says {}", shown(&found), shown(&expected)));
    }
    Ok(())
}

/// Writes a new file; its sum.
fn copy(body: &mut dyn Read, to: &Path, mut hash: Hasher) -> io::Result<Sum> {
    let mut out = fs::File::create_new(to)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let bytes = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(bytes);
        out.write_all(bytes)?;
    }
    Ok(hash.finish())
}

/// Puts packages together: by path, what they have, with bytes where they are in the store. `packages` are the name of each, its store path, and its
/// tree as its `METALOG` has it.
///
/// # Errors
/// Which path is in two packages, and which two these are.
pub fn union(packages: &[(String, String, Tree)]) -> Result<Tree, String> {
    let mut all = Tree::new();
    let mut whose: BTreeMap<Vec<u8>, &str> = BTreeMap::new();
    for (name, _, tree) in packages {
        for (path, entry) in tree.iter().filter(|(path, _)| !path.is_empty()) {
            match (all.get(path), whose.get(path)) {
                (Some(there), Some(_)) if there.node == Node::Dir && entry.node == Node::Dir => continue,
                (Some(_), Some(other)) => {
                    return Err(format!("`{}' is in the packages {other} and {name}; leave one of them out of `packages'", show(path)));
                }
                _ => {}
            }
            all.insert(path, entry.clone()).map_err(|error| error.to_string())?;
            whose.insert(path.to_vec(), name);
        }
    }
    Ok(all)
}

/// The links of a profile: what [`union`] came to, each file and link as a link to the package that has it.
///
/// # Errors
/// What is below something else than a directory.
pub fn links(packages: &[(String, String, Tree)]) -> Result<Tree, String> {
    let mut links = Tree::new();
    for (_, at, tree) in packages {
        for (path, entry) in tree.iter().filter(|(path, _)| !path.is_empty()) {
            let link = match &entry.node {
                Node::Dir => Entry::dir(0o755).time(TIME),
                _ => Entry::symlink(Path::new(at).join(OsStr::from_bytes(path)).into_os_string().into_encoded_bytes()).time(TIME),
            };
            if link.node != Node::Dir || links.get(path).is_none() {
                links.insert(path, link).map_err(|error| error.to_string())?;
            }
        }
    }
    links.complete(&Entry::dir(0o755).time(TIME));
    links.check().map_err(|error| error.to_string())?;
    Ok(links)
}

/// Whether the bytes of all files are below `directory`: of a package's tree that was read from its `METALOG`.
#[must_use]
pub fn is_within(tree: &Tree, directory: &Path) -> bool {
    tree.iter().all(|(_, entry)| match &entry.node {
        Node::File(file) => {
            let plain = |path: &Path| !path.components().any(|part| part == std::path::Component::ParentDir);
            matches!(&file.content, Content::Host(path) if path.starts_with(directory) && plain(path))
        }
        _ => true,
    })
}
