//! `builtin:freebsd-source`: the tree of a source of FreeBSD, normalised, with what was declared of it and what it is.
//! `builtin:freebsd-source-part`: what of such a tree one build reads, patched, and nothing else.
//!
//! What a tree comes to is said by `fruix_freebsd::system::source`; the derivation is that of `fruix_freebsd::system::derivations::plan_source`.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use bstr::ByteSlice;
use fruix_drv::{Hash, HashAlgo, Hasher};
use fruix_freebsd::system::base;
use fruix_freebsd::system::native::{self, SourcePart};
use fruix_freebsd::system::source::{self, Effective, FreebsdSource, METADATA, SRC_TXZ, TREE};
use fruix_freebsd::tree::{Node, Tree, TreeError};
use fruix_protocol::nar;

use super::{BuiltinError, BuiltinInput, say};

/// Makes the source of a tree or an archive in the store.
pub fn source(input: &BuiltinInput, log: &mut dyn Write) -> Result<(), BuiltinError> {
    input.check_version("builtin:freebsd-source")?;
    let declared: FreebsdSource = input.description("declared")?;
    if let Some(problem) = declared.problems("source").into_iter().next() {
        return Err(input.system_error(format!("{}: {}; {}", problem.field, problem.problem, problem.remedy)));
    }
    let out = input.out()?;
    let target = out.target();
    fs::create_dir(target).map_err(BuiltinError::io("creating", target))?;
    let scratch = PathBuf::from(input.required("NIX_BUILD_TOP")?).join("unpacked");
    let (tree, pin) = if declared.kind == SRC_TXZ {
        let archive = input.store_file("archive")?;
        say(log, &format!("unpacking {}", archive.display()));
        (source::from_archive(&archive, &scratch).map_err(|reason| input.system_error(reason))?, None)
    } else {
        let tree = input.store_file("tree")?;
        (source::from_directory(&tree).map_err(|error| input.system_error(error.to_string()))?, declared.sha256.as_ref())
    };
    let inner = target.join(TREE);
    base::write_files(&tree, &inner).map_err(|error| input.system_error(error.to_string()))?;
    // What is left is much, and the build directory may be kept.
    match fs::remove_dir_all(&scratch) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(BuiltinError::io("removing", &scratch)(error)),
        _ => {}
    }
    let (hash, size) = fruix_store::hash_path(&inner).map_err(|error| input.system_error(error.to_string()))?;
    let effective = Effective { sha256: hash.base16(), commit: declared.commit.clone() };
    if let Some(pin) = pin.filter(|pin| **pin != effective.sha256) {
        return Err(input.system_error(format!("the tree has the sha256 {}, and {pin} is declared", effective.sha256)));
    }
    let file = target.join(METADATA);
    fs::write(&file, source::metadata(&declared, &effective)).map_err(BuiltinError::io("writing", &file))?;
    say(log, &format!("{}: {} entries, {size} bytes as archive, sha256 {}", out.path, tree.len(), effective.sha256));
    Ok(())
}

/// Takes of a source what belongs to a part of it.
pub fn part(input: &BuiltinInput, log: &mut dyn Write) -> Result<(), BuiltinError> {
    input.check_version("builtin:freebsd-source-part")?;
    let wanted: SourcePart = input.description("part")?;
    let tell = |error: TreeError| input.system_error(error.to_string());
    let mut tree = source::from_directory(&input.store_file("source")?.join(TREE)).map_err(tell)?;
    for patch in input.required("patches")?.split_whitespace() {
        let file = input.in_store(patch)?;
        let applied = native::read_patch(&file).and_then(|patch| native::apply(&mut tree, &patch));
        applied.map_err(|reason| input.system_error(format!("{patch}: {reason}")))?;
    }
    let tree = native::part(&tree, &wanted).map_err(|error| input.system_error(format!("the part {}: {error}", wanted.name)))?;
    let out = input.fixed_output()?;
    base::write_files(&tree, out.target()).map_err(tell)?;
    say(log, &format!("{}: {} entries", out.path, tree.len()));
    Ok(())
}

/// Writes `tree`, which is normalised, as an archive of the store.
///
/// # Errors
/// When a file of it cannot be read, has changed, or the archive cannot be written.
pub fn dump<W: Write>(tree: &Tree, sink: W) -> Result<W, DumpError> {
    let mut writer = nar::Writer::new(sink);
    dump_node(tree, b"", &mut writer)?;
    Ok(writer.finish()?)
}

/// Why a tree is no archive.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// A file cannot be read, or has changed.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The archive cannot be written, or a name of the tree cannot be in one.
    #[error(transparent)]
    Archive(#[from] nar::Error),
}

fn dump_node<W: Write>(tree: &Tree, path: &[u8], writer: &mut nar::Writer<W>) -> Result<(), DumpError> {
    let Some(entry) = tree.get(path) else { return Ok(()) };
    match &entry.node {
        Node::Dir => {
            writer.directory()?;
            for (child, _) in tree.children_of(path) {
                writer.entry(child.get(if path.is_empty() { 0 } else { path.len() + 1 }..).unwrap_or_default().as_bstr())?;
                dump_node(tree, child, writer)?;
            }
            writer.end_directory()?;
        }
        Node::Symlink(target) => writer.symlink(target.as_bstr())?,
        Node::File(file) => {
            writer.file(entry.mode & 0o100 != 0, file.size)?;
            file.content
                .open(file.size)?
                .pieces(1 << 16, file.size, |piece| piece.bytes(|bytes| writer.data(bytes)).map_err(DumpError::from))?;
        }
        Node::HardLink(target) => dump_node(tree, target, writer)?,
    }
    Ok(())
}

/// The SHA-256 of a normalised tree as an archive of the store, in base 16.
///
/// # Errors
/// As [`dump`].
pub fn identity(tree: &Tree) -> Result<Hash, DumpError> {
    Ok(dump(tree, Hasher::new(HashAlgo::Sha256))?.finish())
}
