//! `builtin:freebsd-base`, `builtin:freebsd-system` and `builtin:freebsd-rootfs`: the packages, the closure and the root file system of a FreeBSD system.
//!
//! What they make is composed by `fruix_freebsd::system`; here is only where it comes from and where it goes. Their derivations are those of
//! `fruix_freebsd::system::derivations`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use fruix_drv::{StoreDir, StorePath};
use fruix_freebsd::system::closure::{self, Closure};
use fruix_freebsd::system::derivations::{VERSION, version};
use fruix_freebsd::system::model::OperatingSystem;
use fruix_freebsd::system::pkg::{self, PkgItems, archive::Package};
use fruix_freebsd::system::{base, canon, fields::PartType, packages::Cut, rootfs, sets::Sets};
use fruix_freebsd::tree::Tree;
use fruix_store::PathInfo;

use super::{BuiltinError, BuiltinInput, say};

/// The manifest in a root file system's store item.
pub const ROOT_MANIFEST: &str = "root.mtree";
/// The database in it.
pub const DATABASE: &str = "db.sqlite";

impl BuiltinInput {
    pub(super) fn system_error(&self, reason: impl Into<String>) -> BuiltinError {
        BuiltinError::System { drv: self.drv_path.clone(), reason: reason.into() }
    }

    /// A variable that must be there.
    pub(super) fn required(&self, name: &str) -> Result<&str, BuiltinError> {
        self.get(name).ok_or_else(|| self.system_error(format!("the variable `{name}' is missing")))
    }

    /// Refuses a derivation for another version of `builder` than this one.
    pub(super) fn check_version(&self, builder: &str) -> Result<(), BuiltinError> {
        let wanted = self.required(VERSION)?;
        match version(builder) {
            Some(own) if own.to_string() == wanted => Ok(()),
            own => Err(self.system_error(format!(
                "it is for version {wanted} of {builder}, and this fruixd has version {}: use a fruix and a fruixd of one release",
                own.unwrap_or_default()
            ))),
        }
    }

    /// A variable with a file of the store.
    pub(super) fn store_file(&self, name: &str) -> Result<PathBuf, BuiltinError> {
        self.in_store(self.required(name)?)
    }

    pub(super) fn in_store(&self, path: &str) -> Result<PathBuf, BuiltinError> {
        match StoreDir::checked(&self.store_dir).ok().and_then(|dir| dir.parse(path).ok()) {
            Some(_) => Ok(PathBuf::from(path)),
            None => Err(BuiltinError::NotInStore { path: super::sexp::quoted(path) }),
        }
    }

    /// The canonical text in the file that a variable names.
    pub(super) fn description<P: PartType>(&self, name: &str) -> Result<P, BuiltinError> {
        let file = self.store_file(name)?;
        let text = fs::read_to_string(&file).map_err(BuiltinError::io("reading", &file))?;
        canon::parse(&text).map_err(|reason| self.system_error(format!("`{}' {reason}", file.display())))
    }

    pub(super) fn out(&self) -> Result<&super::BuiltinOutput, BuiltinError> {
        self.outputs.iter().find(|output| output.name == "out").ok_or_else(|| self.system_error("there is no output `out'"))
    }
}

/// Cuts a tree of files, or what archives hold, into packages.
pub fn base(input: &BuiltinInput, log: &mut dyn Write) -> Result<(), BuiltinError> {
    input.check_version("builtin:freebsd-base")?;
    let cut: Cut = input.description("cut")?;
    let tell = |error: fruix_freebsd::tree::TreeError| input.system_error(error.to_string());
    let hash =
        |path: &Path| fruix_store::hash_path(path).map(|(hash, _)| hash.base16()).map_err(|error| input.system_error(error.to_string()));
    let mut hashes = Vec::new();
    let scratch = || Ok::<_, BuiltinError>(PathBuf::from(input.required("NIX_BUILD_TOP")?).join("unpacked"));
    let (tree, scratch) = match (input.get("tree"), input.get("sets"), input.get("pkgs")) {
        (Some(tree), None, None) => {
            let tree = input.in_store(tree)?;
            hashes.push(hash(&tree)?);
            (base::read(&tree, &cut.manifest).map_err(tell)?, None)
        }
        (None, None, Some(list)) => {
            let scratch = scratch()?;
            let items: PkgItems = input.description("items")?;
            let archives: Vec<&str> = list.split_whitespace().collect();
            if archives.len() != items.packages.len() {
                return Err(input.system_error("`pkgs' and `items' are not as many"));
            }
            let mut sets = Sets::default();
            for (index, (archive, item)) in archives.into_iter().zip(&items.packages).enumerate() {
                let archive = input.in_store(archive)?;
                hashes.push(hash(&archive)?);
                say(log, &format!("unpacking {}", archive.display()));
                let package = pkg::archive::unpack(&archive, &scratch.join(index.to_string()), item);
                let Package { tree, owners, about, .. } = package.map_err(|reason| input.system_error(reason))?;
                if !about.scripts.is_empty() {
                    say(log, &format!("{}: its scripts are not run: {}", item.name, about.scripts.join(", ")));
                }
                sets.add_files(&item.name, tree, owners).map_err(|reason| input.system_error(reason))?;
            }
            (sets.finish().map_err(|reason| input.system_error(reason))?, Some(scratch))
        }
        (None, Some(list), None) => {
            let scratch = scratch()?;
            let mut sets = Sets::default();
            for (index, archive) in list.split_whitespace().enumerate() {
                let archive = input.in_store(archive)?;
                hashes.push(hash(&archive)?);
                say(log, &format!("unpacking {}", archive.display()));
                sets.add(&archive, &scratch.join(index.to_string())).map_err(|reason| input.system_error(reason))?;
            }
            (sets.finish().map_err(|reason| input.system_error(reason))?, Some(scratch))
        }
        _ => return Err(input.system_error("there must be one of `tree', `sets' and `pkgs'")),
    };
    let packages = base::cut(&tree, &cut.packages).map_err(tell)?;
    for output in &input.outputs {
        let package = packages.get(&output.name).ok_or_else(|| input.system_error(format!("there is no package `{}'", output.name)))?;
        say(log, &format!("{}: {} entries", output.name, package.len()));
        base::write(package, output.target(), Path::new(&output.path), &hashes.join(" ")).map_err(tell)?;
    }
    // What is left is much, and the build directory may be kept.
    if let Some(scratch) = scratch {
        fs::remove_dir_all(&scratch).map_err(BuiltinError::io("removing", &scratch))?;
    }
    Ok(())
}

type Packages = BTreeMap<String, (String, Tree)>;

fn packages(input: &BuiltinInput) -> Result<(Packages, String), BuiltinError> {
    let (mut packages, mut sources) = (Packages::new(), Vec::<String>::new());
    for word in input.required("packages")?.split_whitespace() {
        let (name, path) = word.split_once('=').ok_or_else(|| input.system_error(format!("packages: `{word}' is no NAME=PATH")))?;
        let (files, made_from) = base::read_package(&input.in_store(path)?).map_err(|error| input.system_error(error.to_string()))?;
        // A profile was made from packages that say so themselves.
        if !made_from.is_empty() && !sources.contains(&made_from) {
            sources.push(made_from);
        }
        packages.insert(name.to_owned(), (path.to_owned(), files));
    }
    Ok((packages, sources.join(" ")))
}

fn composed(input: &BuiltinInput, system: &OperatingSystem, path: &str) -> Result<Closure, BuiltinError> {
    let elsewhere = ["base.path", "base.sets", "base.repository"];
    if let Some(problem) = system.problems().into_iter().find(|problem| !elsewhere.iter().any(|field| problem.field.starts_with(field))) {
        let reason = format!("{}: {}; {}", problem.field, problem.problem, problem.remedy);
        return Err(input.system_error(reason));
    }
    let (packages, source) = packages(input)?;
    closure::compose(&closure::Ingredients { system, packages: &packages, path, store: &input.store_dir, source: &source })
        .map_err(|reason| input.system_error(reason))
}

/// Makes the closure of a system.
pub fn system(input: &BuiltinInput, log: &mut dyn Write) -> Result<(), BuiltinError> {
    input.check_version("builtin:freebsd-system")?;
    let system: OperatingSystem = input.description("configuration")?;
    let out = input.out()?;
    let closure = composed(input, &system, &out.path)?;
    base::write_files(&closure.tree, out.target()).map_err(|error| input.system_error(error.to_string()))?;
    say(log, &format!("{}: {} entries", out.path, closure.tree.len()));
    Ok(())
}

/// What `exportReferencesGraph` wrote: each path with its deriver, the number of its references, and these.
fn graph(input: &BuiltinInput) -> Result<Vec<PathInfo>, BuiltinError> {
    let file = PathBuf::from(input.required("NIX_BUILD_TOP")?).join("graph");
    let text = fs::read_to_string(&file).map_err(BuiltinError::io("reading", &file))?;
    let wrong = || input.system_error(format!("`{}' is no graph of references", file.display()));
    let dir = StoreDir::checked(&input.store_dir).map_err(|error| input.system_error(error.to_string()))?;
    let mut lines = text.lines();
    let mut infos = Vec::new();
    while let Some(line) = lines.next() {
        let path = dir.parse(line).map_err(|_| wrong())?;
        // The deriver differs between those who built it and those who fetched it.
        lines.next().ok_or_else(wrong)?;
        let count: usize = lines.next().and_then(|line| line.parse().ok()).ok_or_else(wrong)?;
        let mut references = BTreeSet::new();
        for _ in 0..count {
            references.insert(lines.next().and_then(|line| dir.parse(line).ok()).ok_or_else(wrong)?);
        }
        let (nar_hash, nar_size) =
            fruix_store::hash_path(Path::new(&dir.display(&path).to_string())).map_err(|error| input.system_error(error.to_string()))?;
        infos.push(PathInfo { path, nar_hash, references, deriver: None, registration_time: 1, nar_size });
    }
    infos.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(infos)
}

/// Where a daemon with a store of this name keeps its state.
#[must_use]
pub fn state_directory(store: &str) -> String {
    match store {
        "/gnu/store" => "/var/guix".to_owned(),
        store => format!("{}/var", store.rsplit_once('/').map_or("", |(parent, _)| parent)),
    }
}

/// Makes the manifest of a root file system, and the database of its store.
pub fn rootfs(input: &BuiltinInput, log: &mut dyn Write) -> Result<(), BuiltinError> {
    input.check_version("builtin:freebsd-rootfs")?;
    let system: OperatingSystem = input.description("configuration")?;
    let path = input.required("closure")?;
    let closure = composed(input, &system, path)?;
    let out = input.out()?;
    let target = out.target();
    fs::create_dir(target).map_err(BuiltinError::io("creating", target))?;
    let infos = graph(input)?;
    let dir = StoreDir::checked(&input.store_dir).map_err(|error| input.system_error(error.to_string()))?;
    let database = target.join(DATABASE);
    fruix_store::write_database(&database, &dir, &infos).map_err(|error| input.system_error(error.to_string()))?;
    let size = fs::metadata(&database).map_err(BuiltinError::io("looking at", &database))?.len();
    let show = |path: &StorePath| dir.display(path).to_string();
    let mut items = Vec::new();
    for info in &infos {
        let path = show(&info.path);
        items.push((path.clone(), rootfs::read_item(Path::new(&path)).map_err(|error| input.system_error(error.to_string()))?));
    }
    let final_database = PathBuf::from(&out.path).join(DATABASE);
    let ingredients = rootfs::Ingredients {
        system: &system,
        closure: &closure,
        path,
        items,
        store: &input.store_dir,
        state: &state_directory(&input.store_dir),
        database: (&final_database, size),
    };
    let tree = rootfs::compose(ingredients).map_err(|reason| input.system_error(reason))?;
    let manifest = target.join(ROOT_MANIFEST);
    let mut file = std::io::BufWriter::new(fs::File::create_new(&manifest).map_err(BuiltinError::io("creating", &manifest))?);
    tree.write_manifest(&mut file).and_then(|()| file.flush()).map_err(BuiltinError::io("writing", &manifest))?;
    say(log, &format!("{}: {} entries, {} store items", out.path, tree.len(), infos.len()));
    Ok(())
}
