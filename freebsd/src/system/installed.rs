//! A system that is in a store, read back from its closure: what a machine that runs it has outside the store follows from that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::canon::{self, Datum};
use super::closure::{self, Closure, Ingredients};
use super::model::OperatingSystem;
use super::{base, rootfs};
use crate::tree::{Tree, TreeError};

/// The longest file of a closure that is read, in bytes.
const MAX_FILE: u64 = canon::MAX_TEXT as u64;

/// A system in a store.
#[derive(Clone, Debug)]
pub struct Installed {
    /// Its closure.
    pub path: PathBuf,
    /// Its description.
    pub system: OperatingSystem,
    /// The store paths of its packages, by name.
    pub packages: BTreeMap<String, String>,
    /// The hash of what its base was made from.
    pub source: String,
    /// What it is composed of.
    pub closure: Closure,
}

impl Installed {
    /// Reads the system whose closure is at `path`, an item of a store.
    ///
    /// # Errors
    /// `path` is no closure of a system, or one of another version of fruix, or the store is damaged; in words that name the file.
    pub fn read(path: &Path) -> Result<Installed, String> {
        Installed::read_with(path, base::read_package)
    }

    /// As [`Installed::read`], of a system that a machine is to leave: its packages may lack files.
    ///
    /// # Errors
    /// As [`Installed::read`], but for files of packages.
    pub fn read_damaged(path: &Path) -> Result<Installed, String> {
        Installed::read_with(path, base::read_damaged_package)
    }

    fn read_with(path: &Path, package: fn(&Path) -> Result<(Tree, String), TreeError>) -> Result<Installed, String> {
        let text = |name: &str| {
            let file = path.join(name);
            let told = |error: std::io::Error| format!("`{}' is no system: {}: {error}", path.display(), file.display());
            match std::fs::metadata(&file).map_err(told)?.len() {
                0..=MAX_FILE => std::fs::read_to_string(&file).map_err(told),
                size => Err(format!("`{}' has {size} bytes, which is too much", file.display())),
            }
        };
        let wrong =
            |name: &str, why: &str| format!("`{}/{name}' cannot be understood: {why}; was it made by another version?", path.display());
        let system: OperatingSystem = canon::parse(&text("parameters.scm")?).map_err(|why| wrong("parameters.scm", &why))?;
        const LAYOUT: &str = "metadata/store-layout.scm";
        let layout = canon::read(&text(LAYOUT)?).map_err(|why| wrong(LAYOUT, &why))?;
        let (store, paths) = layout_of(&layout).ok_or_else(|| wrong(LAYOUT, "it does not say what is where"))?;
        let (mut packages, mut source) = (BTreeMap::new(), String::new());
        for (name, path) in &paths {
            if Path::new(path).parent() != Some(Path::new(&store)) {
                return Err(wrong(LAYOUT, &format!("`{path}' is not in the store")));
            }
            let (files, made_from) = package(Path::new(path)).map_err(|error| error.to_string())?;
            // A profile was made from packages that say so themselves.
            if !made_from.is_empty() {
                source = made_from;
            }
            packages.insert(name.clone(), (path.clone(), files));
        }
        let shown = path.to_str().ok_or_else(|| wrong(LAYOUT, "the path is no UTF-8"))?;
        let ingredients = Ingredients { system: &system, packages: &packages, path: shown, store: &store, source: &source };
        let closure = closure::compose(&ingredients)?;
        Ok(Installed { path: path.to_owned(), system, packages: paths, source, closure })
    }

    /// What it has outside the store, without the file that only a first boot needs.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn outside(&self) -> Result<Tree, String> {
        let mut tree = rootfs::outside(&self.system, &self.closure)?;
        tree.remove("firstboot");
        Ok(tree)
    }
}

/// The store directory and the packages that `store-layout.scm` names.
fn layout_of(layout: &Datum) -> Option<(String, BTreeMap<String, String>)> {
    let Datum::List(items) = layout else { return None };
    let (mut store, mut packages) = (None, None);
    for item in items {
        let Datum::List(item) = item else { continue };
        match item.as_slice() {
            [Datum::Symbol(name), Datum::Symbol(_), Datum::Text(text)] if name == "store" => store = Some(text.clone()),
            [Datum::Symbol(name), Datum::Symbol(_), rest @ ..] if name == "packages" => {
                let pairs = rest.iter().map(|pair| match pair {
                    Datum::List(pair) => match pair.as_slice() {
                        [Datum::Symbol(name), Datum::Symbol(_), Datum::Text(path)] => Some((name.clone(), path.clone())),
                        _ => None,
                    },
                    _ => None,
                });
                packages = pairs.collect::<Option<_>>();
            }
            _ => {}
        }
    }
    Some((store?, packages?))
}
