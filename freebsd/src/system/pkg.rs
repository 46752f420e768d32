//! Repositories of FreeBSD's packages: what a file declares of one, what its catalogue says, and which packages follow. `docs/design/pkg.md` says why it
//! is so.
//!
//! Facts: pkg-repository(5), pkg.conf(5), and the sources of pkg 2.7 (`libpkg/pkg_repo.c`, `pkg_repo_create.c`, `pkg_manifest.c`, `pkg_checksum.c`). A
//! catalogue (`packagesite.yaml`) has one compact JSON object a line; a manifest (`+MANIFEST`) is one.

pub mod archive;
pub mod signature;
pub mod sum;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::{BufRead, Read as _};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::fields::{Check, Missing, parts};
use super::model::{Problem, item};
use sum::Sum;

/// The longest `meta.conf`, in bytes.
pub const MAX_META: u64 = 1 << 20;
/// The longest catalogue, unpacked, in bytes. That of all of FreeBSD's ports has some 60 million.
pub const MAX_CATALOGUE: u64 = 1 << 30;
/// The longest line of one, in bytes.
const MAX_LINE: u64 = 8 << 20;
/// The most packages in one.
const MAX_PACKAGES: usize = 1 << 20;

parts! {
    /// A repository of FreeBSD's packages, and what is taken from it.
    pub struct PkgRepository = "pkg-repository" {
        /// What to call it.
        pub name = "name": String, Missing::Text("FreeBSD"), Check::Word;
        /// Where it is: the directory that has meta.conf.
        pub url = "url": String, Missing::Required, Check::Url;
        /// The SHA-256 of each public key whose signature counts, as /usr/share/keys/pkg/trusted has them.
        pub fingerprints = "fingerprints": Vec<String>, Missing::Empty, Check::Sha256;
        /// Or the file with the public key itself (PEM), relative to the file.
        pub pubkey = "pubkey": Option<String>, Missing::Absent, Check::LocalPath;
        /// The packages wanted, by name or by origin. What they depend on comes with them.
        pub packages = "packages": Vec<String>, Missing::Required, Check::PkgName;
        /// The pin: the SHA-256 of the catalogue (packagesite.pkg). `fruix pkg update` writes it.
        pub sha256 = "sha256": Option<String>, Missing::Absent, Check::Sha256;
        /// The packages that follow from that, each with version, SHA-256, place and dependencies. `fruix pkg update` writes them.
        pub locked = "locked": Vec<String>, Missing::Empty, Check::Line;
    }

    /// A file with a repository alone.
    pub struct RepositoryFields = "repository-file" {
        /// The repository.
        pub repository = "repository": PkgRepository, Missing::Required, Check::Any;
    }

    /// What a package's archive must be: what `builtin:freebsd-pkg` and `builtin:freebsd-base` are told of it.
    pub struct PkgItem = "pkg" {
        /// Its name.
        pub name = "name": String, Missing::Required, Check::PkgName;
        /// Its version.
        pub version = "version": String, Missing::Required, Check::Token;
        /// The names of what it depends on, sorted.
        pub depends = "depends": Vec<String>, Missing::Empty, Check::PkgName;
    }

    /// The packages that a base is made of.
    pub struct PkgItems = "pkgs" {
        /// The packages, in the order of their archives.
        pub packages = "packages": Vec<PkgItem>, Missing::Required, Check::Any;
    }
}

/// Whether dependencies may lead in a circle: they may among the packages of a base, which become one tree, and not among items of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circles {
    /// They may.
    Allowed,
    /// They may not.
    Refused,
}

const UPDATE: &str = "run `fruix pkg update' on this file, which writes it";

impl PkgRepository {
    /// What does not hold among the fields; `prefix` is where the part stands, such as `base.repository`. What was locked is not looked at.
    #[must_use]
    pub fn problems(&self, prefix: &str) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut say = |field: &str, problem: String, remedy: &str| {
            found.push(Problem::new(format!("{prefix}.{field}"), problem, remedy));
        };
        match (self.fingerprints.is_empty(), &self.pubkey) {
            (true, None) => say(
                "fingerprints",
                "is missing, and so is pubkey: nothing says whose signature counts".into(),
                "write what /usr/share/keys/pkg/trusted of a FreeBSD has, or pubkey = \"FILE\"",
            ),
            (false, Some(_)) => say("pubkey", "is there besides fingerprints".into(), "give one of the two"),
            _ => {}
        }
        let host = self.url.split_once("://").and_then(|(_, rest)| rest.split(['/', '?', '#']).next());
        if host.is_some_and(|host| host.contains('@')) {
            say("url", "has a user or password, which everybody may read in a store".into(), "leave it out");
        }
        if self.url.contains(['?', '#', '$']) {
            say(
                "url",
                "has `?', `#' or `$' in it".into(),
                "write a directory's, ${ABI} spelt out, such as https://pkg.FreeBSD.org/FreeBSD:15:amd64/latest",
            );
        }
        if self.packages.is_empty() {
            say("packages", "is empty".into(), "name packages, such as \"bash\" or \"shells/bash\"");
        }
        let mut seen = BTreeSet::new();
        for (index, name) in self.packages.iter().enumerate() {
            if !seen.insert(name) {
                say(&item("packages", index), format!("`{name}' is there twice"), "leave one out");
            }
        }
        found
    }

    /// The packages that are locked, what each depends on before it.
    ///
    /// # Errors
    /// The first that does not hold among them, or that nothing is locked.
    pub fn locked(&self, prefix: &str, circles: Circles) -> Result<Vec<Locked>, Problem> {
        let problem = |field: &str, problem: String| Problem::new(format!("{prefix}.{field}"), problem, UPDATE);
        if self.sha256.is_none() {
            return Err(problem("sha256", "is missing: nothing says which catalogue is meant".into()));
        }
        if self.locked.is_empty() {
            return Err(problem("locked", "is missing: nothing says which packages are meant".into()));
        }
        let mut packages = Vec::new();
        for (index, line) in self.locked.iter().enumerate() {
            let locked = Locked::parse(line).map_err(|why| problem(&item("locked", index), why))?;
            packages.push(locked);
        }
        let all: BTreeSet<&str> = packages.iter().map(|locked| locked.name.as_str()).collect();
        let mut before = BTreeSet::new();
        for (index, locked) in packages.iter().enumerate() {
            let wrong = |why: String| Err(problem(&item("locked", index), why));
            for name in &locked.depends {
                let there = if circles == Circles::Allowed { &all } else { &before };
                if !there.contains(name.as_str()) {
                    let before = if circles == Circles::Allowed { "" } else { " before it" };
                    return wrong(format!("`{}' depends on `{name}', which is not there{before}", locked.name));
                }
            }
            if !before.insert(locked.name.as_str()) {
                return wrong(format!("`{}' is there twice", locked.name));
            }
        }
        for (index, name) in self.packages.iter().enumerate().filter(|(_, name)| !name.contains('/')) {
            if !all.contains(name.as_str()) {
                return Err(problem(&item("packages", index), format!("`{name}' is not among what is locked")));
            }
        }
        Ok(packages)
    }

    /// The URL of a file of the repository.
    #[must_use]
    pub fn url_of(&self, path: &str) -> String {
        format!("{}/{path}", self.url.trim_end_matches('/'))
    }
}

/// A package that was chosen: a line of `locked`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locked {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The SHA-256 of its archive, in base 16.
    pub sha256: String,
    /// Where the archive is in the repository.
    pub path: String,
    /// The names of what it depends on, sorted.
    pub depends: Vec<String>,
}

impl Locked {
    /// Reads a line: `NAME VERSION SHA256 PATH [NAME ...]`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &str) -> Result<Locked, String> {
        let mut words = line.split(' ');
        let (Some(name), Some(version), Some(sha256), Some(path)) = (words.next(), words.next(), words.next(), words.next()) else {
            return Err("is not NAME VERSION SHA256 PATH [NAME ...]".into());
        };
        let locked = Locked {
            name: name.to_owned(),
            version: version.to_owned(),
            sha256: sha256.to_owned(),
            path: path.to_owned(),
            depends: words.map(str::to_owned).collect(),
        };
        match locked.problem() {
            Some((what, why)) => Err(format!("the {what} {why}")),
            None => Ok(locked),
        }
    }

    /// What cannot be, and why.
    fn problem(&self) -> Option<(&'static str, String)> {
        let checked = |what, check: Check, text: &str| check.problem(text).map(|(problem, _)| (what, problem));
        let plain = |what, name: &str| {
            if name.contains('/') { Some((what, format!("`{name}' is an origin's"))) } else { checked(what, Check::PkgName, name) }
        };
        plain("name", &self.name)
            .or_else(|| checked("version", Check::PkgVersion, &self.version))
            .or_else(|| checked("sha256", Check::Sha256, &self.sha256))
            .or_else(|| checked("path", Check::PkgPath, &self.path))
            .or_else(|| self.depends.iter().find_map(|name| plain("dependency", name)))
    }

    /// What its archive must be.
    #[must_use]
    pub fn item(&self) -> PkgItem {
        PkgItem { name: self.name.clone(), version: self.version.clone(), depends: self.depends.clone() }
    }

    /// Name and version as a name for the store, which has fewer characters.
    #[must_use]
    pub fn store_name(&self) -> String {
        let good = |c: char| if c.is_ascii_alphanumeric() || "+-._".contains(c) { c } else { '_' };
        format!("{}-{}", self.name, self.version).chars().map(good).collect()
    }
}

impl fmt::Display for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.name, self.version, self.sha256, self.path)?;
        self.depends.iter().try_for_each(|name| write!(f, " {name}"))
    }
}

/// A package that a catalogue was found to have. The SHA-256 of `locked` is empty where the catalogue has a sum of another kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The package.
    pub locked: Locked,
    /// The sum of its archive.
    pub sum: Sum,
}

/// What `meta.conf` says: what the files of a repository are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The archive that it is in, without its ending.
    pub archive: String,
    /// The ending of that, where it is not `pkg`.
    pub packing: String,
}

impl Default for Meta {
    fn default() -> Meta {
        Meta { archive: "packagesite".into(), packing: "tzst".into() }
    }
}

impl Meta {
    /// Reads `meta.conf`, which is written in UCL: one `NAME = VALUE;` a line, or a JSON object.
    ///
    /// # Errors
    /// What is wrong with it. What it does not say is as usual.
    pub fn parse(text: &str) -> Result<Meta, String> {
        let mut values: HashMap<String, String> = HashMap::new();
        if text.trim_start().starts_with('{') {
            let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}"))?;
            values.extend(object.into_iter().map(|(name, value)| match value {
                serde_json::Value::String(text) => (name, text),
                other => (name, other.to_string()),
            }));
        } else {
            // Values of several lines, such as a key, are nothing that is looked for.
            for line in text.lines() {
                let Some((name, value)) = line.split_once('=') else { continue };
                let value = value.trim().trim_end_matches(';').trim_end().trim_matches('"');
                values.insert(name.trim().trim_matches('"').to_owned(), value.to_owned());
            }
        }
        match values.get("version").map(String::as_str) {
            Some("1" | "2") => {}
            Some(other) => return Err(format!("is of version `{other}', and 1 and 2 are known")),
            None => return Err("has no version".into()),
        }
        let mut meta = Meta::default();
        for (field, name) in [(&mut meta.archive, "manifests_archive"), (&mut meta.packing, "packing_format")] {
            if let Some(value) = values.remove(name) {
                if let Some((problem, _)) = Check::Word.problem(&value) {
                    return Err(format!("{name}: {problem}"));
                }
                *field = value;
            }
        }
        Ok(meta)
    }

    /// The names that the catalogue may have, the usual one first.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for ending in ["pkg", self.packing.as_str(), "tzst", "txz"] {
            let name = format!("{}.{ending}", self.archive);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

/// A line of a catalogue.
#[derive(Clone, Debug, Deserialize)]
struct CatalogueLine {
    name: String,
    version: String,
    #[serde(default)]
    origin: String,
    #[serde(default)]
    abi: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    repopath: Option<String>,
    sum: String,
    #[serde(default)]
    deps: BTreeMap<String, IgnoredAny>,
}

/// What a repository has.
#[derive(Debug, Default)]
pub struct Catalogue {
    packages: Vec<CatalogueLine>,
    names: HashMap<String, Vec<usize>>,
    origins: HashMap<String, Vec<usize>>,
}

impl Catalogue {
    /// Reads `packagesite.yaml`.
    ///
    /// # Errors
    /// Which line is wrong, and why.
    pub fn read(mut input: impl BufRead) -> Result<Catalogue, String> {
        let mut catalogue = Catalogue::default();
        let mut line = Vec::new();
        for number in 1_usize.. {
            line.clear();
            let read = (&mut input).take(MAX_LINE).read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
            if read == 0 {
                break;
            }
            if read as u64 == MAX_LINE {
                return Err(format!("line {number} has more than {MAX_LINE} bytes"));
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let package: CatalogueLine = serde_json::from_slice(&line).map_err(|error| format!("line {number}: {error}"))?;
            let at = catalogue.packages.len();
            if at >= MAX_PACKAGES {
                return Err(format!("has more than {MAX_PACKAGES} packages"));
            }
            catalogue.names.entry(package.name.clone()).or_default().push(at);
            catalogue.origins.entry(package.origin.clone()).or_default().push(at);
            catalogue.packages.push(package);
        }
        Ok(catalogue)
    }

    /// How many packages there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packages.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packages.is_empty()
    }

    /// The only package of a name.
    fn named(&self, name: &str) -> Result<Option<usize>, String> {
        match self.names.get(name).map(Vec::as_slice) {
            None | Some([]) => Ok(None),
            Some([one]) => Ok(Some(*one)),
            Some(several) => {
                let versions: Vec<&str> = several.iter().filter_map(|at| Some(self.packages.get(*at)?.version.as_str())).collect();
                Err(format!("the catalogue has `{name}' {} times ({})", several.len(), versions.join(", ")))
            }
        }
    }

    /// The package that somebody wants by name or origin.
    fn wanted(&self, name: &str) -> Result<usize, (String, String)> {
        let two = "ask who made the repository: it must have one";
        if let Some(found) = self.named(name).map_err(|why| (why, two.to_owned()))? {
            return Ok(found);
        }
        match self.origins.get(name).map(Vec::as_slice) {
            Some([one]) if name.contains('/') => Ok(*one),
            Some(several) if name.contains('/') => {
                let names: Vec<String> =
                    several.iter().take(8).filter_map(|at| Some(format!("\"{}\"", self.packages.get(*at)?.name))).collect();
                Err((format!("`{name}' are {} packages", several.len()), format!("write one of {}", names.join(", "))))
            }
            _ => {
                Err((format!("the catalogue has no `{name}'"), "name a package or an origin that it has (pkg-search(8) finds them)".into()))
            }
        }
    }

    /// The packages that a declaration comes to, what each depends on before it; `prefix` is where it stands.
    ///
    /// # Errors
    /// The first package that is not there, twice there, for another machine, or depends on itself.
    pub fn resolve(&self, repository: &PkgRepository, prefix: &str, circles: Circles) -> Result<Vec<Chosen>, Problem> {
        let mut found = Vec::new();
        // What is done, and what is being done: a package with the dependencies that are still to be looked at.
        let mut done = BTreeSet::new();
        for (index, name) in repository.packages.iter().enumerate() {
            let problem =
                |(problem, remedy): (String, String)| Problem::new(format!("{prefix}.{}", item("packages", index)), problem, remedy);
            let mut path: Vec<(usize, Vec<usize>)> = Vec::new();
            let first = self.wanted(name).map_err(problem)?;
            if !done.contains(&first) {
                path.push((first, self.dependencies(first).map_err(problem)?));
            }
            while let Some((at, pending)) = path.last_mut() {
                let at = *at;
                let Some(next) = pending.pop() else {
                    path.pop();
                    if done.insert(at) {
                        found.push(self.chosen(at).map_err(problem)?);
                    }
                    continue;
                };
                if done.contains(&next) {
                    continue;
                }
                if let Some(start) = path.iter().position(|(other, _)| *other == next) {
                    if circles == Circles::Allowed {
                        continue;
                    }
                    let name = |at: usize| self.packages.get(at).map_or("", |package| package.name.as_str());
                    let circle: Vec<&str> =
                        path.iter().skip(start).map(|(at, _)| name(*at)).chain([name(next)]).map(|name| name as &str).collect();
                    let remedy = "ask who made the repository: what needs each other cannot be items of a store";
                    return Err(problem((format!("dependencies lead in a circle: {}", circle.join(" -> ")), remedy.into())));
                }
                let dependencies = self.dependencies(next).map_err(problem)?;
                path.push((next, dependencies));
            }
        }
        Ok(found)
    }

    fn dependencies(&self, at: usize) -> Result<Vec<usize>, (String, String)> {
        let remedy = || "ask who made the repository: the catalogue must have it once".to_owned();
        let Some(package) = self.packages.get(at) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for name in package.deps.keys().rev() {
            match self.named(name) {
                Ok(Some(at)) => found.push(at),
                Ok(None) => return Err((format!("`{}' depends on `{name}', which the catalogue does not have", package.name), remedy())),
                Err(why) => return Err((format!("`{}' depends on `{name}': {why}", package.name), remedy())),
            }
        }
        Ok(found)
    }

    fn chosen(&self, at: usize) -> Result<Chosen, (String, String)> {
        let remedy = || "ask who made the repository".to_owned();
        let package = self.packages.get(at).ok_or_else(|| ("a package is gone".to_owned(), remedy()))?;
        if let Some(abi) = &package.abi
            && !matches!(abi.split(':').nth(2), Some("amd64" | "x86" | "*"))
            && abi != "*"
        {
            let shown: String = abi.chars().filter(|c| !c.is_control()).take(40).collect();
            let problem = format!("`{}' is for {shown}, and systems are made for amd64", package.name);
            return Err((problem, "name the repository of FreeBSD:15:amd64 or the like".into()));
        }
        let locked = Locked {
            name: package.name.clone(),
            version: package.version.clone(),
            sha256: "0".repeat(64),
            path: package.path.clone().or_else(|| package.repopath.clone()).unwrap_or_default(),
            depends: package.deps.keys().cloned().collect(),
        };
        match locked.problem() {
            Some((what, why)) => Err((format!("the {what} of `{}' in the catalogue {why}", locked.name), remedy())),
            None => {
                let sum = Sum::parse(&package.sum).map_err(|why| (format!("`{}' in the catalogue {why}", locked.name), remedy()))?;
                let sha256 = sum.sha256().unwrap_or_default().to_owned();
                Ok(Chosen { locked: Locked { sha256, ..locked }, sum })
            }
        }
    }
}
