//! How a file system of a size is divided: what newfs(8) computes (`sbin/newfs/mkfs.c` of FreeBSD 15.1), and where things then lie.

use super::format::{CylinderGroup, Inode, MAX_CONTIG, SECTOR, SUPERBLOCK_OFFSET, SUPERBLOCK_ROOM, Superblock};
use crate::image::{ImageError, Result};

/// The largest extent that the kernel asks a device for (`MAXPHYS` of FreeBSD 13 and later), in bytes.
const MAX_PHYS: u64 = 1 << 20;
/// What newfs leaves free in the block of a cylinder group.
const SLACK: u64 = 8;

/// The division of a file system. All lengths and places are in fragments, as everywhere in UFS, unless they are said to be in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a block.
    pub block: u64,
    /// Bytes of a fragment.
    pub fragment: u64,
    /// Fragments of a block.
    pub frag: u64,
    /// Fragments of the file system.
    pub size: u64,
    /// Fragments of a cylinder group (the last one may have less).
    pub fpg: u64,
    /// Inodes of a cylinder group.
    pub ipg: u64,
    /// Cylinder groups.
    pub ncg: u64,
    /// Where in a group the copy of the superblock is.
    pub sblkno: u64,
    /// Where its head and maps are.
    pub cblkno: u64,
    /// Where its inodes are.
    pub iblkno: u64,
    /// Where its data begin.
    pub dblkno: u64,
    /// Bytes of a group's head and maps, in whole fragments.
    pub cgsize: u64,
    /// Bytes of the summary of all groups, in whole fragments.
    pub cssize: u64,
    /// How many sizes of clusters are counted.
    pub contigsumsize: u64,
}

/// Bytes of a group's head and maps (`CGSIZE`).
fn group_size(frag: u64, fpg: u64, ipg: u64, contigsumsize: u64) -> u64 {
    CylinderGroup::SIZE as u64 + ipg.div_ceil(8) + fpg.div_ceil(8) + 4 + contigsumsize * 4 + (fpg / frag).div_ceil(8)
}

impl Geometry {
    /// Divides `bytes` into groups with `inodes` inodes or more, and at least one inode for `density` bytes.
    ///
    /// # Errors
    /// [`ImageError::Option`] for sizes that UFS2 does not have, [`ImageError::Capacity`] when there is no room even for the structures.
    pub fn new(bytes: u64, block: u64, fragment: u64, density: u64, inodes: u64) -> Result<Geometry> {
        let frag = block.checked_div(fragment).unwrap_or(0);
        if !block.is_power_of_two() || !(4096..=65536).contains(&block) {
            return Err(ImageError::Option(format!("a block of {block} bytes: give a power of two from 4096 to 65536")));
        }
        if !fragment.is_power_of_two() || !matches!(frag, 1 | 2 | 4 | 8) || fragment < SECTOR {
            return Err(ImageError::Option(format!(
                "a fragment of {fragment} bytes: give an eighth, a quarter, a half or all of a block, and 512 or more"
            )));
        }
        if bytes > 1 << 50 {
            return Err(ImageError::Option(format!("a file system of {bytes} bytes: give 1 PiB at most")));
        }
        let inopb = block / Inode::SIZE as u64;
        let up = |bytes: u64| bytes.div_ceil(fragment).next_multiple_of(frag);
        let sblkno = up(SUPERBLOCK_OFFSET + SUPERBLOCK_ROOM as u64);
        let cblkno = sblkno + up(SUPERBLOCK_ROOM as u64);
        let iblkno = cblkno + frag;
        let contigsumsize = (MAX_PHYS / block).min(MAX_CONTIG as u64);
        let contigsumsize = if contigsumsize > 1 { contigsumsize } else { 0 };
        let size = bytes / block * frag;
        let short = |needed: u64| ImageError::Capacity { what: "a UFS2 file system".into(), needed: needed * fragment, available: bytes };
        if size < 8 * frag {
            return Err(short(8 * frag));
        }
        // Fragments an inode: few enough that there are as many inodes as asked for.
        let per_inode = (density / fragment).min(size / inodes.max(1)).max(1);
        let of_groups = |fpg: u64| fpg.div_ceil(per_inode).next_multiple_of(inopb);
        let head = |ipg: u64| iblkno + ipg / inopb * frag;
        let fits = |fpg: u64| group_size(frag, fpg, of_groups(fpg), contigsumsize) <= block - SLACK && of_groups(fpg) <= 1 << 24;
        // The largest groups whose maps fit in a block, but four of them or more where there is room.
        let least = (head(inopb) + frag).next_multiple_of(frag);
        let (mut low, mut high) = (least / frag, size / frag);
        if !fits(low * frag) {
            return Err(ImageError::Option("blocks too small for the maps of a cylinder group".into()));
        }
        while low < high {
            let middle = (low + high).div_ceil(2);
            if fits(middle * frag) { low = middle } else { high = middle - 1 }
        }
        let mut fpg = (low * frag).min((size / frag).div_ceil(4).max(least / frag) * frag);
        let too_small = |fpg: u64| head(of_groups(fpg)) + frag > fpg;
        if too_small(fpg) {
            fpg = (low * frag).min(size);
            if too_small(fpg) {
                return Err(short(head(of_groups(fpg)) + frag));
            }
        }
        // The last group must hold its own structures.
        let (mut ncg, mut ipg);
        loop {
            ncg = size.div_ceil(fpg);
            ipg = of_groups(fpg);
            if size.is_multiple_of(fpg) || size % fpg >= head(ipg) + frag || ncg == 1 {
                break;
            }
            if fpg <= least || too_small(fpg - frag) {
                // What is left over stays outside.
                return Geometry::new(size / fpg * fpg * fragment, block, fragment, density, inodes);
            }
            fpg -= frag;
        }
        if ncg == 1 && size < head(ipg) + 2 * frag {
            return Err(short(head(ipg) + 2 * frag));
        }
        if ncg > u64::from(u32::MAX) || ipg * ncg > (1 << 32) - inopb || fpg > i32::MAX as u64 {
            return Err(ImageError::Option(format!("{ncg} groups of {ipg} inodes are more than UFS2 has numbers for: give fewer inodes")));
        }
        let cgsize = group_size(frag, fpg, ipg, contigsumsize).next_multiple_of(fragment);
        let cssize = (ncg * 16).next_multiple_of(fragment);
        let geometry = Geometry {
            block,
            fragment,
            frag,
            size,
            fpg,
            ipg,
            ncg,
            sblkno,
            cblkno,
            iblkno,
            dblkno: head(ipg),
            cgsize,
            cssize,
            contigsumsize,
        };
        if geometry.dblkno + geometry.summary_fragments() > geometry.group_fragments(0) {
            return Err(short(geometry.dblkno + geometry.summary_fragments()));
        }
        Ok(geometry)
    }

    /// From a superblock that has been looked over.
    pub(crate) fn of(superblock: &Superblock) -> Option<Geometry> {
        let number = |value: i32| u64::try_from(value).ok();
        Some(Geometry {
            block: number(superblock.bsize)?,
            fragment: number(superblock.fsize)?,
            frag: number(superblock.frag)?,
            size: u64::try_from(superblock.size).ok()?,
            fpg: number(superblock.fpg)?,
            ipg: u64::from(superblock.ipg),
            ncg: u64::from(superblock.ncg),
            sblkno: number(superblock.sblkno)?,
            cblkno: number(superblock.cblkno)?,
            iblkno: number(superblock.iblkno)?,
            dblkno: number(superblock.dblkno)?,
            cgsize: number(superblock.cgsize)?,
            cssize: number(superblock.cssize)?,
            contigsumsize: number(superblock.contigsumsize)?,
        })
    }

    /// Inodes of a block.
    #[must_use]
    pub fn inodes_per_block(&self) -> u64 {
        self.block / Inode::SIZE as u64
    }

    /// Addresses in an indirect block.
    #[must_use]
    pub fn addresses(&self) -> u64 {
        self.block / 8
    }

    /// Fragments of the summary of all groups.
    #[must_use]
    pub fn summary_fragments(&self) -> u64 {
        self.cssize / self.fragment
    }

    /// Where a group begins.
    #[must_use]
    pub fn group_start(&self, group: u64) -> u64 {
        self.fpg * group
    }

    /// How many fragments a group has.
    #[must_use]
    pub fn group_fragments(&self, group: u64) -> u64 {
        self.fpg.min(self.size.saturating_sub(self.group_start(group)))
    }

    /// The places in a group that files can have: two ranges, from the group's start.
    pub(crate) fn data_areas(&self, group: u64) -> [std::ops::Range<u64>; 2] {
        let end = self.group_fragments(group);
        if group == 0 {
            [0..0, (self.dblkno + self.summary_fragments()).min(end)..end]
        } else {
            [0..self.sblkno.min(end), self.dblkno.min(end)..end]
        }
    }

    /// The byte where an inode lies.
    #[must_use]
    pub fn inode_offset(&self, inode: u64) -> u64 {
        let (group, index) = (inode / self.ipg, inode % self.ipg);
        (self.group_start(group) + self.iblkno) * self.fragment + index * Inode::SIZE as u64
    }

    /// The largest file, in bytes.
    #[must_use]
    pub fn max_file(&self) -> u64 {
        let addresses = self.addresses();
        (12 + addresses + addresses * addresses + addresses * addresses * addresses) * self.block - 1
    }

    /// Bytes of a file's block: whole blocks but for the last of a file without indirect blocks, which has whole fragments.
    pub(crate) fn block_bytes(&self, size: u64, block: u64) -> u64 {
        if block >= super::format::DIRECT || size >= (block + 1) * self.block {
            self.block
        } else {
            (size % self.block).next_multiple_of(self.fragment)
        }
    }

    /// The superblock's fields that follow from the division.
    pub(crate) fn superblock(&self) -> Superblock {
        // All of these are below 2^31: the constructor has looked.
        let small = |value: u64| i32::try_from(value).unwrap_or(i32::MAX);
        let long = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let maxcontig = (MAX_PHYS / self.block).max(1);
        Superblock {
            sblkno: small(self.sblkno),
            cblkno: small(self.cblkno),
            iblkno: small(self.iblkno),
            dblkno: small(self.dblkno),
            ncg: u32::try_from(self.ncg).unwrap_or(u32::MAX),
            bsize: small(self.block),
            fsize: small(self.fragment),
            frag: small(self.frag),
            bmask: -small(self.block),
            fmask: -small(self.fragment),
            qbmask: long(self.block - 1),
            qfmask: long(self.fragment - 1),
            bshift: small(u64::from(self.block.ilog2())),
            fshift: small(u64::from(self.fragment.ilog2())),
            fragshift: small(u64::from(self.frag.ilog2())),
            fsbtodb: small(u64::from((self.fragment / SECTOR).ilog2())),
            maxcontig: small(maxcontig),
            maxbpg: small(self.addresses()),
            maxbsize: small(self.block),
            sbsize: small((Superblock::SIZE as u64).next_multiple_of(self.fragment).min(SUPERBLOCK_ROOM as u64)),
            nindir: small(self.addresses()),
            inopb: u32::try_from(self.inodes_per_block()).unwrap_or(u32::MAX),
            cssize: small(self.cssize),
            cgsize: small(self.cgsize),
            ipg: u32::try_from(self.ipg).unwrap_or(u32::MAX),
            fpg: small(self.fpg),
            sblockloc: long(SUPERBLOCK_OFFSET),
            sblockactualloc: long(SUPERBLOCK_OFFSET),
            size: long(self.size),
            // Of a damaged one this may be less than nothing.
            dsize: long(self.size.saturating_sub(self.sblkno + self.ncg * (self.dblkno - self.sblkno) + self.summary_fragments())),
            csaddr: long(self.dblkno),
            contigsumsize: small(self.contigsumsize),
            maxsymlinklen: 120,
            maxfilesize: self.max_file(),
            avgfilesize: 16384,
            avgfpdir: 64,
            magic: super::format::MAGIC,
            ..Superblock::zero()
        }
    }

    /// A group's head, with the places of its maps; counts are zero.
    pub(crate) fn group(&self, group: u64) -> CylinderGroup {
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let iusedoff = CylinderGroup::SIZE as u64;
        let freeoff = iusedoff + self.ipg.div_ceil(8);
        let mut next = freeoff + self.fpg.div_ceil(8);
        let (mut clustersumoff, mut clusteroff, mut nclusterblks) = (0, 0, 0);
        if self.contigsumsize > 0 {
            clustersumoff = next.next_multiple_of(4) - 4;
            clusteroff = clustersumoff + (self.contigsumsize + 1) * 4;
            next = clusteroff + (self.fpg / self.frag).div_ceil(8);
            nclusterblks = self.group_fragments(group) / self.frag;
        }
        CylinderGroup {
            magic: super::format::CG_MAGIC,
            cgx: small(group),
            ndblk: small(self.group_fragments(group)),
            iusedoff: small(iusedoff),
            freeoff: small(freeoff),
            nextfreeoff: small(next),
            clustersumoff: small(clustersumoff),
            clusteroff: small(clusteroff),
            nclusterblks: small(nclusterblks),
            niblk: small(self.ipg),
            ..CylinderGroup::zero()
        }
    }
}
