//! Derivations whose builders are shell scripts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::path::PathBuf;

use bstr::BString;
use fruix_drv::modulo::compute_output_paths;
use fruix_drv::{Derivation, DerivationOutput, Hash, StoreDir, StorePath, aterm, hash_derivation_modulo};

use crate::common::{Connection, Error, Result, Tree, add_archive, add_text, archive, fail};

/// The programs that builders are made of, in the store.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    bash: StorePath,
    busybox: StorePath,
}

impl Tools {
    /// Adds them.
    pub(crate) async fn add(connection: &mut Connection) -> Result<Tools> {
        let read = |name: &str| -> Result<Vec<u8>> {
            let file = PathBuf::from(std::env::var(name).map_err(|_| Error::from(format!("{name} is not set")))?);
            std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()).into())
        };
        let bash = archive(&Tree::File(read("BASH_STATIC")?, true))?;
        // A directory, since the program looks at the name that it was started with.
        let busybox = archive(&Tree::Directory(vec![("busybox".into(), Tree::File(read("BUSYBOX")?, true))]))?;
        Ok(Tools {
            bash: add_archive(connection, "bash-static", &bash).await?,
            busybox: add_archive(connection, "busybox", &busybox).await?,
        })
    }
}

/// A derivation to be.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// Its name.
    pub(crate) name: String,
    /// What `bash -e` does; `$bb` is busybox, `$out` and so on the outputs.
    pub(crate) script: String,
    /// The names of its outputs.
    pub(crate) outputs: Vec<&'static str>,
    /// Derivations that it needs, with the outputs of each.
    pub(crate) inputs: BTreeMap<StorePath, BTreeSet<String>>,
    /// Other things in the store that it needs.
    pub(crate) sources: BTreeSet<StorePath>,
    /// Algorithm and hash in base 16, of a fixed output.
    pub(crate) fixed: Option<(&'static str, String)>,
}

impl Recipe {
    /// With one output and without inputs.
    pub(crate) fn new(name: impl Into<String>, script: impl Into<String>) -> Recipe {
        Recipe {
            name: name.into(),
            script: script.into(),
            outputs: vec!["out"],
            inputs: BTreeMap::new(),
            sources: BTreeSet::new(),
            fixed: None,
        }
    }

    /// Needs all outputs of another.
    pub(crate) fn needs(mut self, drv: &Drv) -> Recipe {
        self.inputs.insert(drv.path.clone(), drv.outputs.keys().cloned().collect());
        self
    }
}

/// A derivation in the store.
#[derive(Clone, Debug)]
pub(crate) struct Drv {
    /// Its own path.
    pub(crate) path: StorePath,
    /// Those of its outputs.
    pub(crate) outputs: BTreeMap<String, StorePath>,
}

impl Drv {
    /// The path of `out`.
    pub(crate) fn out(&self) -> Result<&StorePath> {
        self.output("out")
    }

    /// The path of an output.
    pub(crate) fn output(&self, name: &str) -> Result<&StorePath> {
        self.outputs.get(name).ok_or_else(|| format!("{} has no output {name}", self.path).into())
    }
}

/// Makes derivations, and remembers what their names follow from.
#[derive(Debug)]
pub(crate) struct Cook {
    dir: StoreDir,
    tools: Tools,
    hashes: HashMap<StorePath, Hash>,
}

impl Cook {
    /// A cook with tools that are in the store.
    pub(crate) fn new(dir: StoreDir, tools: Tools) -> Cook {
        Cook { dir, tools, hashes: HashMap::new() }
    }

    /// What to add to the store for a recipe, the derivation's text included.
    pub(crate) fn derivation(&mut self, recipe: Recipe) -> Result<(Derivation, BTreeMap<String, StorePath>)> {
        let placeholder = self.tools.bash.clone();
        let (hash_algo, hash) = recipe.fixed.map(|(algo, hash)| (algo.to_owned(), hash)).unwrap_or_default();
        let output = DerivationOutput { path: placeholder, hash_algo, hash };
        let mut sources = recipe.sources;
        sources.extend([self.tools.bash.clone(), self.tools.busybox.clone()]);
        let mut drv = Derivation {
            outputs: recipe.outputs.iter().map(|name| ((*name).to_owned(), output.clone())).collect(),
            input_drvs: recipe.inputs,
            input_srcs: sources,
            platform: format!("{}-linux", std::env::consts::ARCH).into(),
            builder: self.dir.display(&self.tools.bash).into(),
            args: ["-e", "-c", &recipe.script].map(BString::from).to_vec(),
            env: BTreeMap::from([("bb".into(), format!("{}/busybox", self.dir.display(&self.tools.busybox)).into())]),
        };
        drv.env.extend(recipe.outputs.iter().map(|name| ((*name).into(), BString::default())));
        for input in drv.input_drvs.keys() {
            if !self.hashes.contains_key(input) {
                fail!("{input} is no derivation of this cook's");
            }
        }
        let mut known = |input: &StorePath| Ok::<Hash, Infallible>(self.hashes.get(input).copied().unwrap_or_else(|| Hash::sha256("")));
        let outputs = compute_output_paths(&self.dir, &recipe.name, &drv, &mut known)?;
        for (name, path) in &outputs {
            drv.env.insert(name.as_str().into(), self.dir.display(path).into());
            if let Some(output) = drv.outputs.get_mut(name) {
                output.path = path.clone();
            }
        }
        Ok((drv, outputs))
    }

    /// Adds the derivation of a recipe to the store.
    pub(crate) async fn make(&mut self, connection: &mut Connection, recipe: Recipe) -> Result<Drv> {
        let name = format!("{}.drv", recipe.name);
        let (drv, outputs) = self.derivation(recipe)?;
        let references: Vec<StorePath> = drv.references().into_iter().collect();
        let path = add_text(connection, &name, &aterm::print(&self.dir, &drv), &references).await?;
        let mut known = |input: &StorePath| Ok::<Hash, Infallible>(self.hashes.get(input).copied().unwrap_or_else(|| Hash::sha256("")));
        let Ok(hash) = hash_derivation_modulo(&self.dir, &drv, &mut known);
        self.hashes.insert(path.clone(), hash);
        Ok(Drv { path, outputs })
    }
}
