//! The names of store paths; the table is in the [crate's documentation](crate).

use std::collections::BTreeSet;

use crate::{Hash, HashAlgo, StoreDir, StorePath, StorePathError, base32, check_name};

/// The store path of something of type `kind` (such as `source` or `output:out`), whose contents or recipe `hash`
/// stands for. The hash is always labelled `sha256`, as upstream does, which gives no other.
///
/// # Errors
/// What [`check_name`] says of `name`.
pub fn make_store_path(dir: &StoreDir, kind: &str, hash: &Hash, name: &str) -> Result<StorePath, StorePathError> {
    check_name(name)?;
    let fingerprint = Hash::sha256(format!("{kind}:sha256:{}:{dir}:{name}", hash.base16()));
    StorePath::from_base_name(format!("{}-{name}", base32::encode(&fingerprint.compress(20))))
}

/// The store path of a text file with these contents, which refers to these paths. Derivations are such texts.
///
/// # Errors
/// What [`check_name`] says of `name`.
pub fn text_path(dir: &StoreDir, name: &str, contents: &[u8], references: &BTreeSet<StorePath>) -> Result<StorePath, StorePathError> {
    text_path_of_hash(dir, name, &Hash::sha256(contents), references)
}

/// Like [`text_path`], given the SHA-256 of the contents.
///
/// # Errors
/// What [`check_name`] says of `name`.
pub fn text_path_of_hash(dir: &StoreDir, name: &str, hash: &Hash, references: &BTreeSet<StorePath>) -> Result<StorePath, StorePathError> {
    let mut kind = String::from("text");
    for reference in references {
        kind.push(':');
        kind.push_str(&dir.display(reference));
    }
    make_store_path(dir, &kind, hash, name)
}

/// The store path of a file or tree that is named after its contents: added to the store, or the output of a
/// fixed-output derivation. `hash` is that of the file's bytes, or with `recursive` that of its NAR.
///
/// # Errors
/// What [`check_name`] says of `name`.
pub fn fixed_output_path(dir: &StoreDir, recursive: bool, hash: &Hash, name: &str) -> Result<StorePath, StorePathError> {
    if recursive && hash.algo() == HashAlgo::Sha256 {
        make_store_path(dir, "source", hash, name)
    } else {
        let how = if recursive { "r:" } else { "" };
        let inner = Hash::sha256(format!("fixed:out:{how}{hash}:"));
        make_store_path(dir, "output:out", &inner, name)
    }
}

/// The store path of output `output` of the derivation called `drv_name` (without `.drv`), whose hash modulo with its
/// outputs blanked is `hash`.
///
/// # Errors
/// What [`check_name`] says of the path's name, [`output_name`].
pub fn output_path(dir: &StoreDir, output: &str, hash: &Hash, drv_name: &str) -> Result<StorePath, StorePathError> {
    make_store_path(dir, &format!("output:{output}"), hash, &output_name(drv_name, output))
}

/// The name part of an output's store path: the derivation's name, followed by `-OUTPUT` unless that is `out`.
pub fn output_name(drv_name: &str, output: &str) -> String {
    if output == "out" { drv_name.to_owned() } else { format!("{drv_name}-{output}") }
}
