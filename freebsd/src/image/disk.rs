//! A disk from a plan: partitions one after the other, each with its content, and the table.

use std::fmt;

use super::gpt::{self, Kind};
use super::{ImageError, Result, Seed, Sink, Window, fat, ufs2};
use crate::tree::Tree;

/// Partitions begin at multiples of this many bytes.
pub const ALIGNMENT: u64 = 1 << 20;
/// The largest `freebsd-boot`: the code in the first sector loads no more (545 KiB).
const MAX_BOOT: u64 = 545 << 10;
/// A system partition that is given no size.
const EFI_SIZE: u64 = 64 << 20;

/// What is in a partition.
#[derive(Debug, Clone)]
pub enum Content {
    /// Nothing: zeros.
    Empty,
    /// These bytes at its beginning.
    Bytes(Vec<u8>),
    /// FAT32 with this tree, and its label.
    Fat(Tree, String),
    /// UFS2 with this tree. The options' size and seed are the partition's own.
    Ufs(Tree, ufs2::Options),
}

/// A partition to be made.
#[derive(Debug, Clone)]
pub struct Partition {
    /// What it is for.
    pub kind: Kind,
    /// Its name, which must be the only one of this kind: identifiers follow from it.
    pub label: String,
    /// How many bytes it has. Without a size, UFS2 takes what is left of the disk, or as much as it needs and `free`; FAT 64 MiB; bytes as many
    /// as they are.
    pub size: Option<u64>,
    /// Of UFS2 without a size on a disk without one: how many bytes stay free.
    pub free: u64,
    /// What is in it.
    pub content: Content,
}

/// A disk to be made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many bytes it has; without, as many as its partitions need.
    pub size: Option<u64>,
    /// Identifiers follow from it.
    pub seed: Seed,
    /// What a BIOS runs first: FreeBSD's `pmbr`.
    pub boot_code: Option<Vec<u8>>,
    /// In their order on the disk.
    pub partitions: Vec<Partition>,
}

/// What was made of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Its place and names.
    pub partition: gpt::Partition,
    /// What its file system came to, if it is UFS2.
    pub ufs: Option<ufs2::Summary>,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Bytes of the disk.
    pub size: u64,
    /// The disk's GUID, as it lies on it.
    pub guid: [u8; 16],
    /// Its partitions, in order.
    pub partitions: Vec<Made>,
}

/// One line a thing: `disk size=… guid=…`, `partition N type=… label=… start=… size=… guid=…`.
impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "disk size={} guid={}", self.size, gpt::show_guid(self.guid))?;
        for (number, made) in (1..).zip(&self.partitions) {
            let gpt::Partition { kind, label, start, size, guid } = &made.partition;
            write!(f, "partition {number} type={} label={label} start={start} size={size} guid={}", kind.name(), gpt::show_guid(*guid))?;
            if let Some(ufs) = &made.ufs {
                write!(f, " ufs-id={:08x}{:08x} inodes={} used={} free={}", ufs.id[0], ufs.id[1], ufs.inodes, ufs.used, ufs.free)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Where each partition begins and how large it is, and the disk's size.
fn places(plan: &Plan) -> Result<(Vec<(u64, u64)>, u64)> {
    let up = |bytes: u64| bytes.div_ceil(ALIGNMENT).saturating_mul(ALIGNMENT);
    let tail = gpt::TAIL * gpt::SECTOR;
    let mut sizes = Vec::new();
    for partition in &plan.partitions {
        sizes.push(match (&partition.content, partition.size) {
            (_, Some(0)) => return Err(ImageError::Option(format!("partition `{}' of no bytes", partition.label))),
            (_, Some(size)) => Some(size),
            (Content::Empty, None) => return Err(ImageError::Option(format!("partition `{}' needs a size", partition.label))),
            (Content::Bytes(bytes), None) => Some((bytes.len() as u64).max(1)),
            (Content::Fat(..), None) => Some(EFI_SIZE),
            (Content::Ufs(..), None) if plan.size.is_some() => None,
            (Content::Ufs(tree, options), None) => Some(ufs2::needed(tree, options, partition.free)?),
        });
    }
    let fixed = sizes.iter().flatten().try_fold(ALIGNMENT + up(tail), |sum, size| sum.checked_add(up(*size)));
    let fixed = fixed.ok_or_else(|| ImageError::Option("partitions larger than any disk".into()))?;
    let size = plan.size.unwrap_or(fixed) / gpt::SECTOR * gpt::SECTOR;
    let open = sizes.iter().filter(|size| size.is_none()).count();
    if open > 1 {
        return Err(ImageError::Option("two partitions without a size: only one can take what is left".into()));
    }
    // What is left, for the one that takes it; the table's copy at the end has its own room.
    let taken = fixed - up(tail) + tail;
    let rest = size.saturating_sub(taken) / ALIGNMENT * ALIGNMENT;
    let short = size < taken || open == 1 && rest == 0;
    let mut start = ALIGNMENT;
    let mut places = Vec::new();
    for (partition, size) in plan.partitions.iter().zip(sizes) {
        let size = size.unwrap_or(rest);
        let sectors = size.div_ceil(gpt::SECTOR) * gpt::SECTOR;
        if let Content::Bytes(bytes) = &partition.content
            && bytes.len() as u64 > sectors
        {
            return Err(ImageError::Capacity {
                what: format!("partition `{}'", partition.label),
                needed: bytes.len() as u64,
                available: sectors,
            });
        }
        if partition.kind == Kind::FreebsdBoot && sectors > MAX_BOOT {
            return Err(ImageError::Option(format!(
                "partition `{}' has {sectors} bytes: a BIOS loads at most {MAX_BOOT}",
                partition.label
            )));
        }
        places.push((start, sectors));
        start = start.saturating_add(up(size));
    }
    if short {
        let mut needed = taken;
        for partition in plan.partitions.iter().filter(|partition| partition.size.is_none()) {
            if let Content::Ufs(tree, options) = &partition.content {
                needed = needed.saturating_add(ufs2::needed(tree, options, partition.free)?);
            }
        }
        return Err(ImageError::Capacity { what: "the disk".into(), needed, available: size });
    }
    Ok((places, size))
}

/// Writes the disk. The sink must be new: what is not written must read as zeros.
///
/// # Errors
/// [`ImageError::Capacity`] names what does not fit, the disk or a partition, and how much it needs; [`ImageError::Option`] for a plan that cannot
/// be; and what the file systems say.
pub fn write(plan: &Plan, sink: &mut dyn Sink) -> Result<Manifest> {
    for (index, partition) in plan.partitions.iter().enumerate() {
        if plan.partitions.iter().skip(index + 1).any(|other| other.label == partition.label) {
            return Err(ImageError::Option(format!("two partitions are called `{}'", partition.label)));
        }
    }
    let (places, size) = places(plan)?;
    let mut made = Vec::new();
    for (partition, (start, size)) in plan.partitions.iter().zip(places) {
        let seed = plan.seed.derive(&format!("partition {}", partition.label));
        let mut window = Window::new(&mut *sink, start, size);
        let named = |error| match error {
            ImageError::Capacity { what, needed, available } => {
                ImageError::Capacity { what: format!("partition `{}' ({what})", partition.label), needed, available }
            }
            other => other,
        };
        let mut ufs = None;
        match &partition.content {
            Content::Empty => {}
            Content::Bytes(bytes) => window.write_at(0, bytes).map_err(ImageError::io("writing", start))?,
            Content::Fat(tree, label) => {
                let hidden_sectors = u32::try_from(start / gpt::SECTOR).unwrap_or(0);
                fat::write(tree, &fat::Options { size, label: label.clone(), hidden_sectors, seed: seed.clone() }, &mut window)
                    .map_err(named)?;
            }
            Content::Ufs(tree, options) => {
                let options = ufs2::Options { size, seed: seed.clone(), ..options.clone() };
                ufs = Some(ufs2::write(tree, &options, &mut window).map_err(named)?);
            }
        }
        let Partition { kind, label, .. } = partition;
        made.push(Made { partition: gpt::Partition { kind: *kind, label: label.clone(), start, size, guid: seed.guid() }, ufs });
    }
    let table: Vec<_> = made.iter().map(|made| made.partition.clone()).collect();
    let guid = gpt::write(&table, size, plan.boot_code.as_deref(), &plan.seed, sink)?;
    Ok(Manifest { size, guid, partitions: made })
}
