//! `hash-derivation-modulo`: a derivation's hash with each input derivation replaced by its own such hash, and each
//! fixed-output derivation by what it declares, so that how a fixed output is fetched changes no other path.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bstr::BStr;

use crate::{Derivation, Hash, HashError, StoreDir, StorePath, StorePathError, aterm, path};

/// The hash modulo of a derivation. `input` gives that of each input derivation, such as from a [`ModuloCache`].
///
/// # Errors
/// The first error that `input` returns; there are no others.
pub fn hash_derivation_modulo<E>(
    dir: &StoreDir,
    drv: &Derivation,
    input: &mut dyn FnMut(&StorePath) -> Result<Hash, E>,
) -> Result<Hash, E> {
    if let Some(output) = drv.fixed() {
        // As written, not as parsed: upper-case digits count.
        let path = dir.display(&output.path);
        return Ok(Hash::sha256(format!("fixed:out:{}:{}:{path}", output.hash_algo, output.hash)));
    }
    hash_printed(dir, drv, input, false)
}

fn hash_printed<E>(
    dir: &StoreDir,
    drv: &Derivation,
    input: &mut dyn FnMut(&StorePath) -> Result<Hash, E>,
    masked: bool,
) -> Result<Hash, E> {
    // Of two inputs with the same hash the last in order of path counts, with the outputs asked of it: upstream's map.
    let mut inputs: BTreeMap<String, &BTreeSet<String>> = BTreeMap::new();
    for (path, outputs) in &drv.input_drvs {
        inputs.insert(input(path)?.base16(), outputs);
    }
    Ok(Hash::sha256(aterm::print_with(dir, drv, inputs.into_iter(), masked)))
}

/// Why the hash modulo of a derivation in the store could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModuloError<E> {
    /// A derivation could not be loaded: nothing that depends on it can be checked or built.
    #[error("loading derivation `{path}'")]
    Load {
        /// The derivation.
        path: StorePath,
        /// What the loader said.
        source: E,
    },
    /// A derivation is among its own inputs. No store that names texts by their hashes can contain such.
    #[error("derivation `{path}' depends on itself")]
    Cycle {
        /// A derivation of the circle.
        path: StorePath,
    },
}

/// Remembers hashes modulo of derivations by path. Entries stay true as long as the path means the same derivation,
/// which in a store is for ever; an entry takes about 200 bytes.
#[derive(Clone, Debug, Default)]
pub struct ModuloCache {
    hashes: HashMap<StorePath, Hash>,
}

/// A derivation whose inputs are being hashed, and those that are not yet.
struct Pending {
    path: StorePath,
    /// Gone once the graph got too deep for keeping it.
    drv: Option<Derivation>,
    inputs: Vec<StorePath>,
}

/// How many derivations are kept in memory while their inputs are hashed; those above are loaded again. Real graphs are
/// not as deep, but a client can make one whose derivations together are larger than the memory.
const KEPT: usize = 256;

impl ModuloCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// The hash modulo of the derivation at `path`. `load` reads a derivation from the store; it is called once for each
    /// derivation that is not known yet, inputs after what needs them, and a second time for some when the graph is more
    /// than 256 deep. However deep it is, the stack is not, and at most 256 derivations are in memory.
    ///
    /// # Errors
    /// [`ModuloError`]; what was computed until then stays known.
    pub fn hash<E>(
        &mut self,
        dir: &StoreDir,
        path: &StorePath,
        load: &mut dyn FnMut(&StorePath) -> Result<Derivation, E>,
    ) -> Result<Hash, ModuloError<E>> {
        if let Some(hash) = self.hashes.get(path) {
            return Ok(*hash);
        }
        let mut begun = HashSet::from([path.clone()]);
        let mut stack = vec![Self::begin(path.clone(), load)?];
        // The first is finished last, so its hash is the answer.
        let mut last = None;
        while let Some(top) = stack.last_mut() {
            match top.inputs.pop() {
                Some(input) if self.hashes.contains_key(&input) => {}
                Some(input) => {
                    if !begun.insert(input.clone()) {
                        return Err(ModuloError::Cycle { path: input });
                    }
                    let next = Self::begin(input, load)?;
                    stack.push(next);
                    if let Some(i) = stack.len().checked_sub(KEPT + 1)
                        && let Some(high) = stack.get_mut(i)
                    {
                        high.drv = None;
                    }
                }
                None => {
                    let drv = match top.drv.take() {
                        Some(drv) => drv,
                        None => Self::load(&top.path, load)?,
                    };
                    let hash = hash_derivation_modulo(dir, &drv, &mut |input| {
                        self.hashes.get(input).copied().ok_or_else(|| ModuloError::Cycle { path: input.clone() })
                    })?;
                    begun.remove(&top.path);
                    self.hashes.insert(top.path.clone(), hash);
                    last = Some(hash);
                    stack.pop();
                }
            }
        }
        last.ok_or_else(|| ModuloError::Cycle { path: path.clone() })
    }

    fn begin<E>(path: StorePath, load: &mut dyn FnMut(&StorePath) -> Result<Derivation, E>) -> Result<Pending, ModuloError<E>> {
        let drv = Self::load(&path, load)?;
        // A fixed-output derivation's hash does not depend on its inputs, which need not even be there.
        let inputs = if drv.is_fixed_output() { Vec::new() } else { drv.input_drvs.keys().rev().cloned().collect() };
        Ok(Pending { path, drv: Some(drv), inputs })
    }

    fn load<E>(path: &StorePath, load: &mut dyn FnMut(&StorePath) -> Result<Derivation, E>) -> Result<Derivation, ModuloError<E>> {
        load(path).map_err(|source| ModuloError::Load { path: path.clone(), source })
    }

    /// The hash of `path`, if it is known.
    pub fn get(&self, path: &StorePath) -> Option<Hash> {
        self.hashes.get(path).copied()
    }

    /// Forgets `path`, such as when it is deleted.
    pub fn forget(&mut self, path: &StorePath) {
        self.hashes.remove(path);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.hashes.clear();
    }

    /// How many hashes it knows.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }
}

/// Why a derivation's output paths are not the right ones; such a derivation must not be registered or built, since its
/// builder could then write where another derivation's output belongs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError<E> {
    /// An output has another path than it must have, or the variable named after it has another value.
    #[error("derivation `{drv_name}' has incorrect output `{found}', should be `{expected}'")]
    IncorrectOutput {
        /// The derivation's name, without `.drv`.
        drv_name: String,
        /// The output's name.
        output: String,
        /// The path it has.
        found: StorePath,
        /// The path it must have, in `outputs` and in the environment.
        expected: StorePath,
    },
    /// The hash that a fixed output declares is none.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// The output's path would have a name that is not allowed.
    #[error(transparent)]
    Name(#[from] StorePathError),
    /// The hash of an input derivation could not be had.
    #[error("hashing the inputs of derivation `{drv_name}'")]
    Input {
        /// The derivation's name, without `.drv`.
        drv_name: String,
        /// What the closure said.
        source: E,
    },
}

/// The paths that the outputs of a derivation called `drv_name` (without `.drv`) must have, by output name. The paths
/// that it has, and the variables named after its outputs, do not matter. `input` is as for [`hash_derivation_modulo`].
///
/// # Errors
/// All of [`VerifyError`] but [`VerifyError::IncorrectOutput`].
pub fn compute_output_paths<E>(
    dir: &StoreDir,
    drv_name: &str,
    drv: &Derivation,
    input: &mut dyn FnMut(&StorePath) -> Result<Hash, E>,
) -> Result<BTreeMap<String, StorePath>, VerifyError<E>> {
    if let Some((recursive, hash)) = drv.fixed_output()? {
        let path = path::fixed_output_path(dir, recursive, &hash, drv_name)?;
        return Ok(BTreeMap::from([("out".to_owned(), path)]));
    }
    let hash = hash_printed(dir, drv, input, true).map_err(|source| VerifyError::Input { drv_name: drv_name.to_owned(), source })?;
    let path = |output: &String| Ok((output.clone(), path::output_path(dir, output, &hash, drv_name)?));
    drv.outputs.keys().map(path).collect()
}

/// Checks that each output of a derivation called `drv_name` (without `.drv`) has the path that follows from the rest of
/// it, and that the environment variable named after the output has that path too. `input` is as for
/// [`hash_derivation_modulo`].
///
/// # Errors
/// [`VerifyError`], the first output in order when several are wrong.
pub fn verify_output_paths<E>(
    dir: &StoreDir,
    drv_name: &str,
    drv: &Derivation,
    input: &mut dyn FnMut(&StorePath) -> Result<Hash, E>,
) -> Result<(), VerifyError<E>> {
    for (output, expected) in compute_output_paths(dir, drv_name, drv, input)? {
        let Some(found) = drv.outputs.get(&output) else {
            continue;
        };
        let in_env = drv.env.get(BStr::new(&output));
        if found.path != expected || in_env.is_none_or(|value| *value != dir.display(&expected)) {
            return Err(VerifyError::IncorrectOutput { drv_name: drv_name.to_owned(), output, found: found.path.clone(), expected });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::{DerivationOutput, base32};

    fn dir() -> StoreDir {
        StoreDir::new("/some/store")
    }

    fn drv_path(n: u32) -> StorePath {
        let hash = base32::encode(&Hash::sha256(n.to_le_bytes()).compress(20));
        StorePath::from_base_name(format!("{hash}-n{n}.drv")).unwrap()
    }

    fn drv(inputs: impl IntoIterator<Item = u32>, hash: &str) -> Derivation {
        let path = StorePath::from_base_name("00000000000000000000000000000000-out").unwrap();
        let output = DerivationOutput { path, hash_algo: String::new(), hash: hash.to_owned() };
        Derivation {
            outputs: BTreeMap::from([("out".to_owned(), output)]),
            input_drvs: inputs.into_iter().map(|n| (drv_path(n), BTreeSet::from(["out".to_owned()]))).collect(),
            input_srcs: BTreeSet::new(),
            platform: "p".into(),
            builder: "b".into(),
            args: Vec::new(),
            env: BTreeMap::new(),
        }
    }

    /// The number in a path that [`drv_path`] made.
    fn number(path: &StorePath) -> u32 {
        path.derivation_name().unwrap()[1..].parse().unwrap()
    }

    #[test]
    fn deep_chain_needs_no_stack() {
        const DEPTH: u32 = 100_000;
        // Under 100 bytes a level.
        let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(|| {
            let mut loaded = 0;
            let mut cache = ModuloCache::new();
            let mut load = |path: &StorePath| {
                loaded += 1;
                let n = number(path);
                Ok::<_, Infallible>(drv((n < DEPTH).then_some(n + 1), ""))
            };
            let hash = cache.hash(&dir(), &drv_path(0), &mut load).unwrap();
            assert_eq!(cache.hash(&dir(), &drv_path(0), &mut load).unwrap(), hash);
            // Once each, and again those of which the derivation was let go.
            assert_eq!(loaded as usize, 2 * (DEPTH as usize + 1) - KEPT);
            assert_eq!(cache.len(), DEPTH as usize + 1);
            // The definition, one level of it.
            let below = cache.get(&drv_path(1)).unwrap();
            let plain = hash_derivation_modulo(&dir(), &drv([1], ""), &mut |_| Ok::<_, Infallible>(below)).unwrap();
            assert_eq!(plain, hash);
        });
        thread.unwrap().join().unwrap();
    }

    #[test]
    fn each_is_loaded_once() {
        // Layers of two that need both of the layer below: 2^30 ways down.
        let mut loaded = Vec::new();
        let mut load = |path: &StorePath| {
            let n = number(path);
            loaded.push(n);
            let below = n / 2 * 2 + 2;
            Ok::<_, Infallible>(drv(if n < 60 { vec![below, below + 1] } else { vec![] }, ""))
        };
        ModuloCache::new().hash(&dir(), &drv_path(0), &mut load).unwrap();
        loaded.sort_unstable();
        assert_eq!(loaded, std::iter::once(0).chain(2..62).collect::<Vec<_>>());
    }

    #[test]
    fn circles_and_failures_are_reported() {
        let mut cache = ModuloCache::new();
        let round = |path: &StorePath| Ok::<_, Infallible>(drv([(number(path) + 1) % 3], ""));
        let error = cache.hash(&dir(), &drv_path(0), &mut { round }).unwrap_err();
        assert!(matches!(error, ModuloError::Cycle { path } if path == drv_path(0)));
        let own = cache.hash(&dir(), &drv_path(7), &mut |_| Ok::<_, Infallible>(drv([7], ""))).unwrap_err();
        assert!(matches!(own, ModuloError::Cycle { path } if path == drv_path(7)));
        let fail = |path: &StorePath| {
            if number(path) == 0 { Ok(drv([1], "")) } else { Err("gone") }
        };
        let error = cache.hash(&dir(), &drv_path(0), &mut { fail }).unwrap_err();
        assert!(matches!(error, ModuloError::Load { path, source: "gone" } if path == drv_path(1)));
        assert!(cache.is_empty());
    }

    #[test]
    fn fixed_outputs_hide_their_inputs() {
        let load = |inputs: Option<u32>| move |_: &StorePath| Ok::<_, Infallible>(drv(inputs, "ab"));
        let one = ModuloCache::new().hash(&dir(), &drv_path(0), &mut load(None)).unwrap();
        let other = ModuloCache::new().hash(&dir(), &drv_path(0), &mut load(Some(0))).unwrap();
        assert_eq!(one, other);
    }
}
