//! What leaves the store: a root file system as files, an image as a copy.

use std::io::{self, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use fruix_drv::{Hash, HashAlgo, Hasher};
use fruix_freebsd::system::base::TIME;
use fruix_freebsd::tree::{Content, ManifestOptions, Node, Owners, Piece, Tree};

use super::Failure;

/// The tree of a root file system's manifest.
pub(super) fn read(manifest: &Path) -> Result<Tree, Failure> {
    let file = BufReader::new(std::fs::File::open(manifest)?);
    let options = ManifestOptions { name: &manifest.to_string_lossy(), root: None, owners: &Owners::default(), time: TIME };
    Ok(Tree::read_manifest(file, &options)?)
}

/// Writes the tree of a manifest to the new directory `target`. Owners are given where the user is root; file flags are not.
pub(super) fn write(manifest: &Path, target: &Path) -> Result<(), Failure> {
    let tree = read(manifest)?;
    // Nothing is written below a symbolic link, wherever that leads.
    tree.check()?;
    let root = nix::unistd::geteuid().is_root();
    // Modes of directories come last: one that nobody may write must be filled first.
    let mut directories = Vec::new();
    for (path, entry) in tree.iter() {
        let to = if path.is_empty() { target.to_owned() } else { target.join(std::ffi::OsStr::from_bytes(path)) };
        let told = |error: io::Error| format!("`{}': {error}", to.display());
        match &entry.node {
            Node::Dir => {
                std::fs::create_dir(&to).map_err(told)?;
                directories.push((to.clone(), entry.mode));
            }
            Node::Symlink(link) => std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(link), &to).map_err(told)?,
            Node::HardLink(link) => std::fs::hard_link(target.join(std::ffi::OsStr::from_bytes(link)), &to).map_err(told)?,
            Node::File(file) => {
                let mut out = std::fs::File::create_new(&to).map_err(told)?;
                match &file.content {
                    Content::Bytes(bytes) => out.write_all(bytes).map_err(told)?,
                    Content::Host(from) => drop(io::copy(&mut std::fs::File::open(from).map_err(told)?, &mut out).map_err(told)?),
                }
            }
        }
        if matches!(entry.node, Node::HardLink(_)) {
            continue;
        }
        if root {
            std::os::unix::fs::lchown(&to, Some(entry.uid), Some(entry.gid)).map_err(told)?;
        }
        if matches!(entry.node, Node::File(_)) {
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(u32::from(entry.mode))).map_err(told)?;
        }
    }
    for (path, mode) in directories.into_iter().rev() {
        let permissions = std::fs::Permissions::from_mode(u32::from(mode));
        std::fs::set_permissions(&path, permissions).map_err(|error| format!("`{}': {error}", path.display()))?;
    }
    Ok(())
}

/// Gives the bytes of the regular file `from` to `take`, in order. What the file system does not keep of it is not read. Returns how many there are.
fn pieces(from: &Path, take: impl FnMut(Piece<'_>) -> Result<(), Failure>) -> Result<u64, Failure> {
    let size = std::fs::symlink_metadata(from)?.len();
    Content::Host(from.to_owned()).open(size)?.pieces(1 << 16, size, take)?;
    Ok(size)
}

/// Copies a file; blocks of zeros become holes.
pub(super) fn copy_sparse(from: &Path, to: &Path) -> Result<(), Failure> {
    let told = |error: io::Error| format!("copying to `{}': {error}", to.display());
    let mut out = std::fs::File::create(to).map_err(told)?;
    let length = pieces(from, |piece| match piece {
        Piece::Zeros(count) => Ok(out.seek(SeekFrom::Current(i64::try_from(count)?)).map(drop)?),
        Piece::Data(bytes) => Ok(out.write_all(bytes)?),
    })
    .map_err(|error| format!("copying to `{}': {error}", to.display()))?;
    out.set_len(length).map_err(told)?;
    Ok(())
}

/// The SHA-256 of a file's bytes.
pub(crate) fn hash(file: &Path) -> Result<Hash, Failure> {
    let mut hasher = Hasher::new(HashAlgo::Sha256);
    pieces(file, |piece| {
        piece.bytes(|bytes| {
            hasher.update(bytes);
            Ok(())
        })
    })?;
    Ok(hasher.finish())
}
