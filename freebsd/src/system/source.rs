//! FreeBSD's sources: what a file declares, and the tree that it comes to. `docs/design/sources.md` says why it is so.

use std::collections::BTreeMap;
use std::path::Path;

use super::base::{TIME, without_hard_links};
use super::canon::string;
use super::fields::{Check, Missing, parts};
use super::model::Problem;
use super::sets::{self, Links};
use crate::tree::{DirectoryOptions, Entry, Node, Tree, TreeError};

/// A directory of this machine.
pub const LOCAL_TREE: &str = "local-tree";
/// A commit of a repository.
pub const GIT: &str = "git";
/// An archive such as a release's.
pub const SRC_TXZ: &str = "src-txz";

/// The directory with the tree in a materialised source.
pub const TREE: &str = "src";
/// The file in it that tells both identities.
pub const METADATA: &str = "freebsd-source.scm";
/// Where everything is in an archive of a release.
const ARCHIVE_PREFIX: &[u8] = b"usr/src/";
/// What is never part of a source.
const REPOSITORY: &[u8] = b".git";

parts! {
    /// A source of FreeBSD.
    pub struct FreebsdSource = "freebsd-source" {
        /// What to call it; several may be in the store side by side.
        pub name = "name": String, Missing::Text("freebsd"), Check::Word;
        /// `local-tree`: a directory. `git`: a commit of a repository. `src-txz`: an archive such as a release's src.txz.
        pub kind = "kind": String, Missing::Required, Check::OneOf(&[LOCAL_TREE, GIT, SRC_TXZ]);
        /// Where the repository of git is, or the archive of src-txz.
        pub url = "url": Option<String>, Missing::Absent, Check::Url;
        /// The directory of a local-tree, or the archive of src-txz, relative to the file.
        pub path = "path": Option<String>, Missing::Absent, Check::LocalPath;
        /// A branch or tag of git. It may move: what is taken is the commit.
        pub reference = "ref": Option<String>, Missing::Absent, Check::GitRef;
        /// The commit of git. `fruix source update` writes it.
        pub commit = "commit": Option<String>, Missing::Absent, Check::Commit;
        /// The pin: of src-txz the SHA-256 of the archive, otherwise that of the tree (see docs/sources.md). `fruix source update` writes it.
        pub sha256 = "sha256": Option<String>, Missing::Absent, Check::Sha256;
    }

    /// A file with a source alone.
    pub struct SourceFields = "source-file" {
        /// The source.
        pub source = "source": FreebsdSource, Missing::Required, Check::Any;
    }
}

impl FreebsdSource {
    /// What does not hold among the fields; `prefix` is where the part stands, such as `base.source`.
    #[must_use]
    pub fn problems(&self, prefix: &str) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut say = |field: &str, problem: &str, remedy: &str| {
            found.push(Problem::new(format!("{prefix}.{field}"), problem, remedy));
        };
        let kind = self.kind.as_str();
        let given = [("url", &self.url), ("path", &self.path), ("ref", &self.reference), ("commit", &self.commit)];
        for (field, _) in given.into_iter().filter(|(_, value)| value.is_some()) {
            let sensible: &[&str] = match field {
                "url" => &[GIT, SRC_TXZ],
                "path" => &[LOCAL_TREE, SRC_TXZ],
                _ => &[GIT],
            };
            if !sensible.contains(&kind) {
                let kinds = sensible.join("\" or \"");
                say(field, &format!("makes no sense for {kind}"), &format!("leave it out, or write kind = \"{kinds}\""));
            }
        }
        match kind {
            LOCAL_TREE if self.path.is_none() => say("path", "is missing for a local-tree", "name the directory with the sources"),
            GIT if self.url.is_none() => {
                say("url", "is missing for git", "name the repository, such as https://git.FreeBSD.org/src.git");
            }
            GIT if self.reference.is_none() && self.commit.is_none() => {
                say("ref", "is missing for git, and so is commit", "name a branch or tag, such as releng/15.1, or write commit");
            }
            GIT if self.sha256.is_some() && self.commit.is_none() => {
                say("commit", "is missing, and sha256 is of one commit", "write it, or take sha256 away and run `fruix source update'");
            }
            SRC_TXZ if self.url.is_none() && self.path.is_none() => {
                say("url", "is missing for src-txz, and so is path", "write where to download the archive, or path for a file");
            }
            SRC_TXZ if self.url.is_some() && self.path.is_some() => say("path", "is there besides url", "give one of the two"),
            _ => {}
        }
        let host = self.url.as_deref().and_then(|url| url.split_once("://")).and_then(|(_, rest)| rest.split(['/', '?', '#']).next());
        if host.is_some_and(|host| host.contains('@')) {
            say("url", "has a user or password, which everybody may read in a store", "leave it out");
        }
        found
    }

    /// What is missing for the source to be one tree and no other.
    #[must_use]
    pub fn unpinned(&self, prefix: &str) -> Option<Problem> {
        let field = match self.kind.as_str() {
            GIT if self.commit.is_none() => "commit",
            GIT | SRC_TXZ if self.sha256.is_none() => "sha256",
            _ => return None,
        };
        let remedy = "run `fruix source update' on this file, which writes it";
        Some(Problem::new(format!("{prefix}.{field}"), "is missing: nothing says which tree is meant", remedy))
    }

    /// The declaration as Scheme data: names with their values. What is absent is `#f`.
    #[must_use]
    pub fn declared(&self) -> String {
        let text = |value: &Option<String>| value.as_deref().map_or("#f".to_owned(), string);
        format!(
            "((name . {})\n  (kind . {})\n  (url . {})\n  (path . {})\n  (ref . {})\n  (commit . {})\n  (sha256 . {}))",
            string(&self.name),
            self.kind,
            text(&self.url),
            text(&self.path),
            text(&self.reference),
            text(&self.commit),
            text(&self.sha256),
        )
    }
}

/// What a source turned out to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective {
    /// The SHA-256 of the normalised tree as an archive of the store, in base 16.
    pub sha256: String,
    /// The commit of git.
    pub commit: Option<String>,
}

/// What [`METADATA`] says: the declaration and what it turned out to be.
#[must_use]
pub fn metadata(source: &FreebsdSource, effective: &Effective) -> String {
    let commit = effective.commit.as_deref().map_or("#f".to_owned(), string);
    format!(
        "((declared .\n  {})\n (effective .\n  ((sha256 . {})\n  (commit . {commit}))))\n",
        source.declared(),
        string(&effective.sha256)
    )
}

/// What [`metadata`] wrote of the effective identity; `None` when it is something else.
#[must_use]
pub fn effective(metadata: &str) -> Option<Effective> {
    let (_, text) = metadata.rsplit_once("(effective .")?;
    let value = |field: &str| {
        let (_, rest) = text.split_once(&format!("({field} . "))?;
        Some(rest.split_once(')')?.0.trim_matches('"').to_owned())
    };
    let sha256 = value("sha256").filter(|sum| Check::Sha256.problem(sum).is_none())?;
    Some(Effective { sha256, commit: value("commit").filter(|commit| commit != "#f") })
}

/// The tree in a directory, normalised. Its bytes stay where they are.
///
/// # Errors
/// [`TreeError`] when something cannot be read, or is no file, directory or link; or there is nothing.
pub fn from_directory(directory: &Path) -> Result<Tree, TreeError> {
    let options = DirectoryOptions { owner: Some((0, 0)), time: Some(TIME), without: Some(REPOSITORY) };
    normalise(without_hard_links(directory, Tree::from_directory(directory, options)?))
}

/// The tree in an archive, normalised. Its bytes go to the new directory `scratch`.
///
/// # Errors
/// What is wrong with the archive or the directory, in words.
pub fn from_archive(archive: &Path, scratch: &Path) -> Result<Tree, String> {
    let tree = sets::unpack(archive, scratch, &mut BTreeMap::new(), Links::Files)?;
    let content = || tree.iter().filter(|(_, entry)| entry.node != Node::Dir);
    let tell = |error: TreeError| error.to_string();
    if !content().all(|(path, _)| path.starts_with(ARCHIVE_PREFIX)) {
        return normalise(tree).map_err(tell);
    }
    let mut inner = Tree::new();
    for (path, entry) in content() {
        inner.insert(path.strip_prefix(ARCHIVE_PREFIX).unwrap_or(path), entry.clone()).map_err(tell)?;
    }
    normalise(inner).map_err(tell)
}

/// Leaves of a tree what git can hold.
///
/// # Errors
/// [`TreeError::Conflict`] for a tree without files, and for what is below something else than a directory.
pub fn normalise(tree: Tree) -> Result<Tree, TreeError> {
    let mut kept = Tree::new();
    for (path, entry) in tree.iter() {
        let mode = match &entry.node {
            Node::Dir => continue,
            Node::File(_) if entry.mode & 0o100 == 0 => 0o644,
            _ => 0o755,
        };
        if !path.split(|byte| *byte == b'/').any(|name| name == REPOSITORY) {
            kept.insert(path, Entry::new(mode, entry.node.clone()).time(TIME))?;
        }
    }
    if kept.is_empty() {
        return Err(TreeError::Conflict { path: ".".into(), why: "holds no files".into() });
    }
    kept.complete(&Entry::dir(0o755).time(TIME));
    kept.check()?;
    Ok(kept)
}
