//! The disk of a system: which partitions, and what is in them.

use super::base::TIME;
use super::fields::size;
use super::model::{Image, Problem};
use crate::image::disk::{ALIGNMENT, Content, Partition, Plan};
use crate::image::gpt::Kind;
use crate::image::{Seed, ufs2};
use crate::tree::{self, Entry, Node, Tree, parent};

/// The partition labels, below /dev/gpt in the running system.
pub const ROOT_LABEL: &str = "rootfs";
/// The swap's.
pub const SWAP_LABEL: &str = "swap";
/// The EFI system partition's.
pub const ESP_LABEL: &str = "efi";
/// That of a BIOS's loader.
pub const BOOT_LABEL: &str = "boot";
/// The least that stays free in the root file system, in bytes.
const FREE: u64 = 64 << 20;
/// Links that may lead to a file.
const LINKS: usize = 32;

/// Where a path leads in a tree, over symbolic links.
fn resolve<'t>(tree: &'t Tree, path: &str) -> Option<&'t Entry> {
    let mut left: Vec<Vec<u8>> = path.rsplit('/').filter(|name| !name.is_empty()).map(|name| name.as_bytes().to_vec()).collect();
    let mut at: Vec<u8> = Vec::new();
    let mut links = 0;
    while let Some(name) = left.pop() {
        match name.as_slice() {
            b"." => continue,
            b".." => {
                at = parent(&at).unwrap_or_default().to_vec();
                continue;
            }
            _ => {}
        }
        let next = if at.is_empty() { name } else { [at.as_slice(), b"/", &name].concat() };
        match &tree.get(&next)?.node {
            Node::Symlink(target) => {
                links += 1;
                if links > LINKS {
                    return None;
                }
                if target.starts_with(b"/") {
                    at.clear();
                }
                left.extend(target.rsplit(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec));
            }
            Node::HardLink(target) => at.clone_from(target),
            _ => at = next,
        }
    }
    tree.get(&at)
}

fn bytes(tree: &Tree, path: &str) -> Result<Vec<u8>, String> {
    let missing = || format!("the base has no /{path}, which this firmware needs: add it to the base, or choose another firmware");
    let Node::File(file) = &resolve(tree, path).ok_or_else(missing)?.node else { return Err(missing()) };
    match &file.content {
        tree::Content::Bytes(bytes) => Ok(bytes.to_vec()),
        tree::Content::Host(path) => std::fs::read(path).map_err(|error| format!("`{}': {error}", path.display())),
    }
}

/// Bytes of the disk that are not the root file system's.
fn fixed(image: &Image) -> Option<u64> {
    Some(size(&image.esp)?.saturating_add(size(&image.swap)?).saturating_add(2 * ALIGNMENT))
}

/// A capacity that cannot hold the bytes of `part`, files of the root file system: said before anything is made of them.
#[must_use]
pub fn too_small_for(image: &Image, part: &Tree) -> Option<Problem> {
    let room = size(&image.capacity)?.saturating_sub(fixed(image)?);
    let files = || part.iter().filter_map(|(_, entry)| if let Node::File(file) = &entry.node { Some(file) } else { None });
    if files().map(|file| file.size).sum::<u64>() <= room {
        return None;
    }
    // Zeros take no room, so it must be looked for them.
    let mut bytes = 0_u64;
    for file in files() {
        let count = |piece: tree::Piece<'_>| {
            if let tree::Piece::Data(data) = piece {
                bytes = bytes.saturating_add(data.len() as u64);
            }
            Ok::<(), tree::TreeError>(())
        };
        file.content.open(file.size).and_then(|mut content| content.pieces(1 << 15, file.size, count)).ok()?;
    }
    let problem = || format!("`{}' does not hold the ESP, the swap and {} MiB of the base", image.capacity, bytes >> 20);
    (bytes > room).then(|| Problem::new("image.capacity", problem(), "write more, or \"auto\""))
}

/// A capacity that is less than a disk with this root file system should have.
#[must_use]
pub fn too_small(image: &Image, root: &Tree) -> Option<Problem> {
    let capacity = size(&image.capacity)?;
    let options = ufs2::Options { label: "root".to_owned(), time: TIME, ..ufs2::Options::new(0, Seed::new(b"")) };
    let needed = ufs2::needed(root, &options, 0).ok()?.saturating_add(fixed(image)?);
    let problem = || format!("`{}' is too little for {} MiB", image.capacity, needed.div_ceil(1 << 20));
    (capacity < needed).then(|| Problem::new("image.capacity", problem(), "write more, or \"auto\""))
}

/// The plan of the disk with the root file system `root`. Identifiers follow from `seed`.
///
/// # Errors
/// What is missing, or does not fit, in words for the user.
pub fn plan(image: &Image, root: Tree, seed: &[u8]) -> Result<Plan, String> {
    let number = |text: &str| size(text).ok_or_else(|| format!("`{text}' is no size"));
    let seed = Seed::new(seed);
    let mut loaders = Tree::new();
    let mut partitions = Vec::new();
    let loader = resolve(&root, "boot/loader.efi").filter(|entry| matches!(entry.node, Node::File(_)));
    let loader = loader.cloned().ok_or("the base has no /boot/loader.efi, which UEFI needs: add it to the base")?;
    let plain = |entry: Entry| entry.time(TIME);
    for (path, entry) in [
        ("", Entry::dir(0o755)),
        ("EFI", Entry::dir(0o755)),
        ("EFI/BOOT", Entry::dir(0o755)),
        ("EFI/BOOT/BOOTX64.EFI", Entry { uid: 0, gid: 0, flags: 0, mode: 0o644, ..loader }),
    ] {
        loaders.insert(path, plain(entry)).map_err(|error| error.to_string())?;
    }
    let mut add = |kind, label: &str, size, content| partitions.push(Partition { kind, label: label.to_owned(), size, free: 0, content });
    add(Kind::Efi, ESP_LABEL, Some(number(&image.esp)?), Content::Fat(loaders, "EFISYS".to_owned()));
    let mut boot_code = None;
    if image.firmware == "uefi+bios" {
        boot_code = Some(bytes(&root, "boot/pmbr")?);
        add(Kind::FreebsdBoot, BOOT_LABEL, None, Content::Bytes(bytes(&root, "boot/gptboot")?));
    }
    let swap = number(&image.swap)?;
    if swap > 0 {
        add(Kind::FreebsdSwap, SWAP_LABEL, Some(swap), Content::Empty);
    }
    let content: u64 = root.iter().map(|(_, entry)| if let Node::File(file) = &entry.node { file.size } else { 0 }).sum();
    let options = ufs2::Options { label: "root".to_owned(), time: TIME, ..ufs2::Options::new(0, seed.clone()) };
    let needed = ufs2::needed(&root, &options, (content / 4).max(FREE)).map_err(|error| error.to_string())?;
    add(Kind::FreebsdUfs, ROOT_LABEL, None, Content::Ufs(root, options));
    let capacity = match image.capacity.as_str() {
        "auto" => {
            let up = |bytes: u64| bytes.div_ceil(ALIGNMENT).saturating_mul(ALIGNMENT);
            let fixed = partitions.iter().map(|partition| match &partition.content {
                Content::Bytes(bytes) => up(bytes.len() as u64),
                Content::Ufs(..) => up(needed),
                _ => up(partition.size.unwrap_or(0)),
            });
            // The tables at both ends have a unit each.
            fixed.sum::<u64>().saturating_add(2 * ALIGNMENT)
        }
        text => number(text)?,
    };
    Ok(Plan { size: Some(capacity), seed, boot_code, partitions })
}
