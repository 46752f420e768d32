//! The derivation: a recipe, as plain data.

use std::collections::{BTreeMap, BTreeSet};

use bstr::{BStr, BString, ByteSlice};

use crate::{Hash, HashAlgo, HashError, StorePath};

/// What a builder's name begins with when the daemon itself does the work.
pub const BUILTIN_PREFIX: &str = "builtin:";

/// One output of a derivation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DerivationOutput {
    /// Where it goes.
    pub path: StorePath,
    /// For a fixed output the hash algorithm, with `r:` before it when the NAR is hashed, as written; else empty.
    pub hash_algo: String,
    /// For a fixed output the hash in base 16, as written; else empty.
    pub hash: String,
}

impl DerivationOutput {
    /// Whether the NAR is hashed, and the hash, of an output that declares one.
    ///
    /// # Errors
    /// [`HashError`] when the algorithm is unknown or the hash is not base 16 of the right length.
    pub fn parse_hash(&self) -> Result<(bool, Hash), HashError> {
        let (recursive, algo) = match self.hash_algo.strip_prefix("r:") {
            Some(algo) => (true, algo),
            None => (false, self.hash_algo.as_str()),
        };
        Ok((recursive, Hash::parse_base16(HashAlgo::parse(algo)?, &self.hash)?))
    }
}

/// A derivation: what is built, from what, by which program. The bytes of its file are in [`crate::aterm`].
///
/// Nothing here says that the output paths are right; [`crate::verify_output_paths`] does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Derivation {
    /// The outputs by name; the main one is called `out`.
    pub outputs: BTreeMap<String, DerivationOutput>,
    /// The derivations whose outputs it needs, and which of their outputs.
    pub input_drvs: BTreeMap<StorePath, BTreeSet<String>>,
    /// The store paths that it needs as they are.
    pub input_srcs: BTreeSet<StorePath>,
    /// The system type it is to be built on, such as `x86_64-linux`.
    pub platform: BString,
    /// The program, or `builtin:NAME`.
    pub builder: BString,
    /// The program's arguments, without its name.
    pub args: Vec<BString>,
    /// Its environment.
    pub env: BTreeMap<BString, BString>,
}

impl Derivation {
    /// Whether its one output is called `out` and declares its hash.
    pub fn is_fixed_output(&self) -> bool {
        self.fixed().is_some()
    }

    /// For a fixed-output derivation whether the NAR is hashed, and the hash; `None` for another.
    ///
    /// # Errors
    /// [`HashError`] when what is declared is no hash.
    pub fn fixed_output(&self) -> Result<Option<(bool, Hash)>, HashError> {
        self.fixed().map(DerivationOutput::parse_hash).transpose()
    }

    pub(crate) fn fixed(&self) -> Option<&DerivationOutput> {
        let output = self.outputs.get("out")?;
        (self.outputs.len() == 1 && !output.hash.is_empty()).then_some(output)
    }

    /// Whether the daemon itself does the work.
    pub fn is_builtin(&self) -> bool {
        self.builder.starts_with_str(BUILTIN_PREFIX)
    }

    /// What follows `builtin:` in such a builder's name.
    pub fn builtin(&self) -> Option<&BStr> {
        self.builder.strip_prefix(BUILTIN_PREFIX.as_bytes()).map(BStr::new)
    }

    /// The name of a derivation in the file `path`: its name without `.drv`, or `None` when it does not end so.
    pub fn name_from_path(path: &StorePath) -> Option<&str> {
        path.derivation_name()
    }

    /// The name of the output at `path`, and the output.
    pub fn find_output(&self, path: &StorePath) -> Option<(&str, &DerivationOutput)> {
        self.outputs.iter().find(|(_, output)| output.path == *path).map(|(name, output)| (name.as_str(), output))
    }

    /// The paths of all outputs.
    pub fn output_paths(&self) -> impl Iterator<Item = &StorePath> {
        self.outputs.values().map(|output| &output.path)
    }

    /// The value of an environment variable.
    pub fn env_var(&self, name: impl AsRef<[u8]>) -> Option<&BStr> {
        self.env.get(BStr::new(name.as_ref())).map(|value| value.as_bstr())
    }

    /// What its file in the store refers to: input derivations and input sources, not its outputs.
    pub fn references(&self) -> BTreeSet<StorePath> {
        self.input_drvs.keys().chain(&self.input_srcs).cloned().collect()
    }
}
