//! Looks over a whole UFS2 file system as fsck_ffs(8) does, and says what is wrong without changing anything.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use super::format::{self, CylinderGroup, Inode, Recovery, Superblock, count};
use super::geometry::Geometry;
use super::maps;
use super::reader::{self, Ufs, hash_holds, load_superblock};
use crate::image::{ImageError, Result, Source, is_zero};
use crate::tree::{self, Content, Entry, Node, Tree};

/// No more findings than this are kept; one damage can have many.
const MAX_FINDINGS: usize = 1000;

/// The largest file system that is checked: a map of 1 GiB, for 32 TiB with the usual fragments.
const MAX_FRAGMENTS: u64 = 1 << 33;

/// Kinds of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The superblock cannot be used; nothing else was looked at.
    Superblock,
    /// The superblock's check hash is not that of its bytes.
    SuperblockHash,
    /// The file system was not unmounted.
    Unclean,
    /// A copy of the superblock cannot be used, or says another thing.
    SuperblockCopy,
    /// The record at the end of the boot area leads to no copies of the superblock.
    Recovery,
    /// A group's head is not what it must be.
    Group,
    /// A group's check hash is not that of its bytes.
    GroupHash,
    /// A group's map of inodes is not what the inodes say.
    InodeMap,
    /// A group's map of free fragments is not what the inodes say.
    BlockMap,
    /// A group's map or counts of free clusters are not what its free blocks come to.
    Clusters,
    /// A group's counts are not what its maps come to.
    Counts,
    /// The summary of the groups is not what the groups say.
    Summary,
    /// The superblock's totals are not the sums of the groups'.
    Totals,
    /// An inode's check hash is not that of its bytes.
    InodeHash,
    /// An inode has a type, size or attribute that cannot be.
    Inode,
    /// A free inode is not empty.
    FreeInode,
    /// A block lies outside of the file system, or across two blocks.
    BlockOutside,
    /// A block belongs to two files, or to a file and the file system itself.
    BlockTwice,
    /// A file has blocks beyond its end.
    BlockBeyond,
    /// An inode's count of its blocks is not right.
    BlockCount,
    /// A file ends in a hole.
    HoleAtEnd,
    /// A directory's bytes are no entries.
    Directory,
    /// `.` or `..` is missing or leads elsewhere.
    Dots,
    /// Two entries of a directory have one name.
    NameTwice,
    /// An entry leads to an inode that is not in use.
    EntryUnused,
    /// An entry says another type than the inode.
    EntryType,
    /// A directory is in two places.
    DirectoryTwice,
    /// A directory says another depth than it has.
    Depth,
    /// An inode in use is in no directory.
    Orphan,
    /// An inode's count of its names is not right.
    LinkCount,
    /// Compared to a tree: something is missing, too many or different.
    Different,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub fault: Fault,
    /// Where, and how it is.
    pub place: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.fault, self.place)
    }
}

/// What a check came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong: nothing, for a good file system. At most 1000 findings are kept.
    pub findings: Vec<Finding>,
    /// Inodes in use that were looked at.
    pub inodes: u64,
    /// Fragments in use by them.
    pub fragments: u64,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    fn add(&mut self, fault: Fault, place: impl Into<String>) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { fault, place: place.into() });
        }
    }

    /// Takes damage as a finding; only errors of the machine stay errors.
    fn found<T>(&mut self, fault: Fault, place: &str, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(ImageError::Damaged { what, why }) => {
                self.add(fault, format!("{place}: {what}: {why}"));
                Ok(None)
            }
            // A place beyond the end of what there is to read.
            Err(ImageError::Io { source, offset, .. }) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
                self.add(fault, format!("{place}: byte {offset} is beyond the end"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// What is known of an inode in use.
struct Known {
    inode: Inode,
    names: u32,
}

struct Checker<S> {
    ufs: Ufs<S>,
    report: Report,
    /// A bit for each fragment in use.
    used: Vec<u8>,
    inodes: BTreeMap<u32, Known>,
}

/// Looks over a file system. Memory: a bit for each fragment, and some for each inode in use.
///
/// # Errors
/// [`ImageError::Io`] when it cannot be read; all that is wrong with what is read is in the report.
pub fn check<S: Source>(source: S) -> Result<Report> {
    let mut report = Report::default();
    let Some((superblock, bytes)) = report.found(Fault::Superblock, "superblock", load_superblock(&source, format::SUPERBLOCK_OFFSET))?
    else {
        return Ok(report);
    };
    if let Some(why) = reader::superblock_fault(&superblock) {
        report.add(Fault::Superblock, why);
        return Ok(report);
    }
    if hashes(&superblock, 1) && !hash_holds(&superblock, &bytes) {
        report.add(Fault::SuperblockHash, "superblock");
        return Ok(report);
    }
    if superblock.clean != 1 {
        report.add(Fault::Unclean, format!("fs_clean is {}", superblock.clean));
    }
    let ufs = match report.found(Fault::Superblock, "superblock", Ufs::open(source))? {
        Some(ufs) => ufs,
        None => return Ok(report),
    };
    // A damaged size must not cost what is not there: the end must be readable, and the map of what is in use must fit in memory.
    let size = ufs.geometry().size;
    if size > MAX_FRAGMENTS {
        report.add(Fault::Superblock, format!("{size} fragments are more than can be checked"));
        return Ok(report);
    }
    let end = ufs.read("reading the end", size * ufs.geometry().fragment - 1, &mut [0]);
    if report.found(Fault::Superblock, "end of the file system", end)?.is_none() {
        return Ok(report);
    }
    let used = vec![0; maps::bytes(size)];
    let mut checker = Checker { ufs, report, used, inodes: BTreeMap::new() };
    checker.copies()?;
    let heads = checker.heads()?;
    checker.structures();
    for (group, head) in (0..).zip(&heads) {
        checker.group_inodes(group, head.as_deref())?;
    }
    checker.directories()?;
    checker.links();
    checker.groups(&heads)?;
    Ok(checker.report)
}

fn hashes(superblock: &Superblock, kind: u32) -> bool {
    superblock.flags & format::FLAG_CHECK_HASHES != 0 && superblock.metackhash & kind != 0
}

impl<S: Source> Checker<S> {
    fn geometry(&self) -> Geometry {
        self.ufs.geometry().clone()
    }

    fn copies(&mut self) -> Result<()> {
        let geometry = self.geometry();
        let mut bytes = [0; Recovery::SIZE];
        self.ufs.read("reading the boot area", format::SUPERBLOCK_OFFSET - Recovery::SIZE as u64, &mut bytes)?;
        let superblock = self.ufs.superblock().clone();
        let Superblock { magic, fsbtodb, sblkno, fpg, ncg, .. } = superblock;
        if !is_zero(&bytes) && Recovery::load(&bytes) != (Recovery { magic, fsbtodb, sblkno, fpg, ncg }) {
            self.report.add(Fault::Recovery, "boot area");
        }
        for group in 0..geometry.ncg {
            let place = format!("copy of the superblock in group {group}");
            let offset = (geometry.group_start(group) + geometry.sblkno) * geometry.fragment;
            let mut bytes = vec![0; format::SUPERBLOCK_ROOM];
            let read = self.ufs.read("reading a superblock", offset, &mut bytes);
            if self.report.found(Fault::SuperblockCopy, &place, read)?.is_none() {
                continue;
            }
            let copy = bytes.first_chunk().map_or_else(Superblock::zero, Superblock::load);
            if let Some(why) = reader::superblock_fault(&copy) {
                self.report.add(Fault::SuperblockCopy, format!("{place}: {why}"));
            } else if hashes(&superblock, 1) && (!hashes(&copy, 1) || !hash_holds(&copy, &bytes)) {
                self.report.add(Fault::SuperblockCopy, format!("{place}: its check hash is not right"));
            } else if Geometry::of(&copy).as_ref() != Some(&geometry) {
                self.report.add(Fault::SuperblockCopy, format!("{place}: it tells of another file system"));
            }
        }
        Ok(())
    }

    /// The heads and maps of the groups, as far as they can be used.
    fn heads(&mut self) -> Result<Vec<Option<Vec<u8>>>> {
        let geometry = self.geometry();
        let mut heads = Vec::new();
        for group in 0..geometry.ncg {
            let place = format!("group {group}");
            let mut bytes = vec![0; usize::try_from(geometry.cgsize).unwrap_or(0)];
            let read = self.ufs.read("reading a group", (geometry.group_start(group) + geometry.cblkno) * geometry.fragment, &mut bytes);
            let read = self.report.found(Fault::Group, &place, read)?;
            let head = load_head(&bytes);
            let expected = geometry.group(group);
            let same = CylinderGroup {
                cs: head.cs,
                rotor: head.rotor,
                frotor: head.frotor,
                irotor: head.irotor,
                frsum: head.frsum,
                initediblk: head.initediblk,
                unrefs: head.unrefs,
                ckhash: head.ckhash,
                time: head.time,
                ..expected
            };
            let rotors = head.rotor < head.ndblk.max(1) && head.frotor < head.ndblk.max(1) && head.irotor < head.niblk.max(1);
            let good = same == head && rotors && u64::from(head.initediblk) <= geometry.ipg;
            if read.is_some() && !good {
                self.report.add(Fault::Group, format!("{place}: its head is not right"));
            }
            if read.is_some() && hashes(self.ufs.superblock(), 2) && format::check_hash_without(&bytes, format::CG_HASH) != head.ckhash {
                self.report.add(Fault::GroupHash, place);
            }
            heads.push((read.is_some() && good).then_some(bytes));
        }
        Ok(heads)
    }

    /// Marks what the file system itself uses.
    fn structures(&mut self) {
        let geometry = self.geometry();
        for group in 0..geometry.ncg {
            let start = geometry.group_start(group);
            let from = if group == 0 { 0 } else { geometry.sblkno };
            for at in from..geometry.dblkno.min(geometry.group_fragments(group)) {
                maps::set(&mut self.used, start + at, true);
            }
        }
        let summary = u64::try_from(self.ufs.superblock().csaddr).unwrap_or(0);
        for at in summary..summary.saturating_add(geometry.summary_fragments()) {
            maps::set(&mut self.used, at, true);
        }
    }

    /// Marks fragments as a file's, and says what is wrong with them.
    fn take(&mut self, number: u32, place: i64, fragments: u64) {
        let geometry = self.ufs.geometry();
        let start = u64::try_from(place).ok().filter(|start| start.checked_add(fragments).is_some_and(|end| end <= geometry.size));
        let Some(start) = start.filter(|start| start % geometry.frag + fragments <= geometry.frag) else {
            self.report.add(Fault::BlockOutside, format!("inode {number}: {fragments} fragments at {place}"));
            return;
        };
        let mut twice = false;
        for at in start..start + fragments {
            twice |= maps::bit(&self.used, at);
            maps::set(&mut self.used, at, true);
        }
        if twice {
            self.report.add(Fault::BlockTwice, format!("inode {number}: {fragments} fragments at {place}"));
        }
        self.report.fragments += fragments;
    }

    fn group_inodes(&mut self, group: u64, head: Option<&[u8]>) -> Result<()> {
        let geometry = self.geometry();
        let initialised = head.map_or(geometry.ipg, |bytes| u64::from(load_head(bytes).initediblk));
        let mut block = vec![0; usize::try_from(geometry.block).unwrap_or(0)];
        let hashed = hashes(self.ufs.superblock(), 4);
        let mut index = 0;
        while index < initialised {
            let first = group * geometry.ipg + index;
            let read = self.ufs.read("reading inodes", geometry.inode_offset(first), &mut block);
            if self.report.found(Fault::Inode, &format!("inodes from {first}"), read)?.is_some() {
                for (number, bytes) in (first..)
                    .zip(block.as_chunks::<{ Inode::SIZE }>().0)
                    .take_while(|(number, _)| *number < group * geometry.ipg + initialised)
                {
                    self.one_inode(u32::try_from(number).unwrap_or(u32::MAX), bytes, hashed)?;
                }
            }
            index += geometry.inodes_per_block();
        }
        Ok(())
    }

    fn one_inode(&mut self, number: u32, bytes: &[u8; Inode::SIZE], hashed: bool) -> Result<()> {
        let geometry = self.geometry();
        let inode = Inode::load(bytes);
        if inode.mode == 0 {
            let empty = Inode { generation: inode.generation, ..Inode::zero() };
            if inode != empty {
                self.report.add(Fault::FreeInode, format!("inode {number}"));
            }
            return Ok(());
        }
        self.report.inodes += 1;
        if hashed && format::check_hash_without(bytes, format::INODE_HASH) != inode.ckhash {
            self.report.add(Fault::InodeHash, format!("inode {number}"));
        }
        let kind = inode.mode & format::FORMAT;
        let inline = kind == format::SYMLINK && inode.size < format::INLINE_LINK as u64;
        let why = match kind {
            _ if number < format::ROOT => Some("is kept by the file system"),
            _ if number == format::ROOT && kind != format::DIRECTORY => Some("the root is no directory"),
            format::DIRECTORY if inode.size == 0 || !inode.size.is_multiple_of(format::DIRECTORY_BLOCK as u64) => {
                Some("a directory of that size")
            }
            format::SYMLINK if inode.size == 0 || inode.size > tree::MAX_TARGET as u64 => Some("a symbolic link of that size"),
            format::DIRECTORY | format::REGULAR | format::SYMLINK if inode.size > geometry.max_file() => Some("too large"),
            format::DIRECTORY | format::REGULAR | format::SYMLINK => None,
            // Pipe, character and block device, socket.
            0o010_000 | 0o020_000 | 0o060_000 | 0o140_000 if inode.size == 0 => None,
            _ => Some("its type and size"),
        };
        let times = [inode.mtimensec, inode.atimensec, inode.ctimensec, inode.birthnsec];
        if let Some(why) = why.or_else(|| times.iter().any(|part| *part >= 1_000_000_000).then_some("its times")) {
            self.report.add(Fault::Inode, format!("inode {number}: {why}"));
        }
        let device = matches!(kind, 0o020_000 | 0o060_000);
        if why.is_none() && !inline && !device {
            self.inode_blocks(number, &inode)?;
        } else if inline {
            let length = 112 + usize::try_from(inode.size).unwrap_or(0);
            if bytes.get(length..232).is_some_and(|rest| !is_zero(rest)) {
                self.report.add(Fault::BlockBeyond, format!("inode {number}: after its target"));
            }
            if inode.blocks != 0 {
                self.report.add(Fault::BlockCount, format!("inode {number}: {} where there are none", inode.blocks));
            }
        }
        if number >= format::ROOT {
            self.inodes.insert(number, Known { inode, names: 0 });
        }
        Ok(())
    }

    fn inode_blocks(&mut self, number: u32, inode: &Inode) -> Result<()> {
        let geometry = self.geometry();
        let blocks = inode.size.div_ceil(geometry.block);
        let mut found = Vec::new();
        let mut beyond = false;
        let mut last = None;
        let mut present = 0u64;
        // Damaged indirect blocks can lead anywhere, also to each other: no more than the file system has.
        let mut left = geometry.size;
        let walked = self.ufs.blocks(inode, &mut |block, place| {
            left = left.checked_sub(1).ok_or_else(|| ImageError::damaged(format!("inode {number}"), "more blocks than there are"))?;
            match block {
                Some(block) if block >= blocks => {
                    beyond = true;
                    found.push((place, geometry.frag));
                }
                Some(block) => {
                    last = last.max(Some(block));
                    present += 1;
                    found.push((place, geometry.block_bytes(inode.size, block) / geometry.fragment));
                }
                None => found.push((place, geometry.frag)),
            }
            Ok(())
        });
        self.report.found(Fault::BlockOutside, &format!("inode {number}"), walked)?;
        let extended = u64::from(inode.extsize);
        for (block, place) in (0u64..).zip(inode.extb).filter(|(_, place)| *place != 0) {
            let bytes = geometry.block.min(extended.saturating_sub(block * geometry.block));
            found.push((place, bytes.next_multiple_of(geometry.fragment).max(geometry.fragment) / geometry.fragment));
        }
        let fragments: u64 = found.iter().map(|(_, fragments)| fragments).sum();
        for (place, fragments) in found {
            self.take(number, place, fragments);
        }
        // Indirect blocks that lead to nothing within the file.
        let reach = [0, 1, 2].map(|depth| format::DIRECT + super::writer::first_of_depth(&geometry, depth));
        if beyond || inode.indirect.iter().zip(reach).any(|(place, first)| *place != 0 && first >= blocks) {
            self.report.add(Fault::BlockBeyond, format!("inode {number}"));
        }
        if blocks > 0 && last != Some(blocks - 1) {
            self.report.add(Fault::HoleAtEnd, format!("inode {number}"));
        }
        if inode.mode & format::FORMAT == format::DIRECTORY && present != blocks {
            self.report.add(Fault::Directory, format!("inode {number}: holes"));
        }
        let sectors = fragments * (geometry.fragment / format::SECTOR);
        if inode.blocks != sectors {
            self.report.add(Fault::BlockCount, format!("inode {number}: {} where there are {sectors}", inode.blocks));
        }
        Ok(())
    }

    fn directories(&mut self) -> Result<()> {
        let is_directory = |known: &Known| known.inode.mode & format::FORMAT == format::DIRECTORY;
        // A system before FreeBSD 15 wrote no depths at all.
        let tracked = self.inodes.values().any(|known| is_directory(known) && known.inode.dirdepth != 0);
        let mut seen = HashSet::from([format::ROOT]);
        let mut pending = vec![(format::ROOT, format::ROOT, 0u32)];
        while let Some((number, parent, depth)) = pending.pop() {
            let Some(known) = self.inodes.get(&number) else {
                self.report.add(Fault::Inode, format!("directory {number}: not in use"));
                continue;
            };
            let place = format!("directory {number}");
            if tracked && known.inode.dirdepth != depth {
                self.report.add(Fault::Depth, format!("{place}: {} where it is {depth}", known.inode.dirdepth));
            }
            let bytes = self.ufs.directory_bytes(&known.inode);
            let Some(bytes) = self.report.found(Fault::Directory, &place, bytes)? else { continue };
            let entries = match reader::entries(&bytes) {
                Ok(entries) => entries,
                Err(why) => {
                    self.report.add(Fault::Directory, format!("{place}: {why}"));
                    continue;
                }
            };
            let dots = entries.iter().take(2).map(|entry| (entry.inode, entry.name.as_slice()));
            if !dots.eq([(number, &b"."[..]), (parent, &b".."[..])]) {
                self.report.add(Fault::Dots, place.clone());
            }
            let mut names = HashSet::new();
            for (index, entry) in entries.iter().enumerate() {
                let shown = || format!("{place}: `{}'", String::from_utf8_lossy(&entry.name));
                if !names.insert(entry.name.as_slice()) {
                    self.report.add(Fault::NameTwice, shown());
                }
                let Some(target) = self.inodes.get_mut(&entry.inode) else {
                    self.report.add(Fault::EntryUnused, shown());
                    continue;
                };
                target.names += 1;
                if entry.kind != format::entry_type(target.inode.mode) {
                    self.report.add(Fault::EntryType, shown());
                }
                if index < 2 || !is_directory(target) {
                    continue;
                }
                if seen.insert(entry.inode) {
                    pending.push((entry.inode, number, depth + 1));
                } else {
                    self.report.add(Fault::DirectoryTwice, shown());
                }
            }
        }
        Ok(())
    }

    fn links(&mut self) {
        for (number, known) in &self.inodes {
            if known.names == 0 {
                self.report.add(Fault::Orphan, format!("inode {number}"));
            } else if known.names != u32::from(known.inode.nlink) {
                self.report.add(Fault::LinkCount, format!("inode {number}: {} where there are {}", known.inode.nlink, known.names));
            }
        }
    }

    fn groups(&mut self, heads: &[Option<Vec<u8>>]) -> Result<()> {
        let geometry = self.geometry();
        let mut total = [0i64; 5];
        let summary = u64::try_from(self.ufs.superblock().csaddr).unwrap_or(0) * geometry.fragment;
        for (group, bytes) in (0u64..).zip(heads) {
            let mut free = vec![0; maps::bytes(geometry.fpg)];
            let start = geometry.group_start(group);
            for at in 0..geometry.group_fragments(group) {
                maps::set(&mut free, at, !maps::bit(&self.used, start + at));
            }
            let first = u32::try_from(group * geometry.ipg).unwrap_or(u32::MAX);
            let past = u32::try_from((group + 1) * geometry.ipg).unwrap_or(u32::MAX);
            let mut used = vec![0; maps::bytes(geometry.ipg)];
            let (mut count_used, mut count_directories) = (0, 0);
            for (number, known) in self.inodes.range(first..past) {
                maps::set(&mut used, u64::from(*number) % geometry.ipg, true);
                count_used += 1;
                count_directories += i32::from(known.inode.mode & format::FORMAT == format::DIRECTORY);
            }
            if group == 0 {
                maps::set(&mut used, 0, true);
                maps::set(&mut used, 1, true);
                count_used += 2;
            }
            let counted = maps::counted(&geometry, group, &free);
            let mut cs = counted.summary;
            cs[count::DIRECTORIES] = count_directories;
            cs[count::INODES] = i32::try_from(geometry.ipg).unwrap_or(i32::MAX) - count_used;
            for (sum, count) in total.iter_mut().zip(cs) {
                *sum += i64::from(count);
            }
            let place = format!("group {group}");
            let mut stored = [0; 16];
            let read = self.ufs.read("reading the summary", summary + group * 16, &mut stored);
            if self.report.found(Fault::Summary, &place, read)?.is_some() && <[i32; 4] as format::Field>::load(&stored) != cs {
                self.report.add(Fault::Summary, place.clone());
            }
            let Some(bytes) = bytes else { continue };
            let head = load_head(bytes);
            let part = |at: u32, length: usize| bytes.get(at as usize..).and_then(|rest| rest.get(..length)).unwrap_or_default();
            if part(head.iusedoff, used.len()) != used {
                self.report.add(Fault::InodeMap, place.clone());
            }
            if part(head.freeoff, free.len()) != free {
                self.report.add(Fault::BlockMap, place.clone());
            }
            if head.cs != cs || head.frsum != counted.runs {
                self.report.add(Fault::Counts, place.clone());
            }
            let sums: Vec<u8> = counted.cluster_sums.iter().skip(1).flat_map(|sum| sum.to_le_bytes()).collect();
            let clusters =
                part(head.clusteroff, counted.clusters.len()) == counted.clusters && part(head.clustersumoff + 4, sums.len()) == sums;
            if geometry.contigsumsize > 0 && !clusters {
                self.report.add(Fault::Clusters, place);
            }
        }
        if self.ufs.superblock().total != total {
            self.report.add(Fault::Totals, format!("{:?} where there are {total:?}", self.ufs.superblock().total));
        }
        Ok(())
    }
}

fn load_head(bytes: &[u8]) -> CylinderGroup {
    bytes.first_chunk().map_or_else(CylinderGroup::zero, CylinderGroup::load)
}

/// Compares a file system with the tree that it was made of: names, attributes, links and every byte of every file.
///
/// # Errors
/// [`ImageError::Io`], [`ImageError::Tree`] when a file of the tree cannot be read, [`ImageError::Damaged`] when the superblock is not one.
pub fn compare<S: Source>(source: S, expected: &Tree) -> Result<Report> {
    let mut report = Report::default();
    let ufs = Ufs::open(source)?;
    let mut ordered = expected.clone();
    ordered.order_links();
    let mut differing = Vec::new();
    let resolve = |path: &[u8]| match ordered.get(path) {
        Some(Entry { node: Node::HardLink(target), .. }) => ordered.get(target),
        other => other,
    };
    let walked = ufs.walk(&mut |path, _, inode| {
        if let Some(Entry { node: Node::File(file), .. }) = resolve(path)
            && file.size == inode.size
        {
            let mut reader = file.content.open(file.size)?;
            let mut buffer = Vec::new();
            let (mut same, mut length) = (true, 0);
            ufs.content(inode, &mut |part| {
                length += part.len() as u64;
                buffer.resize(part.len(), 0);
                reader.fill(&mut buffer)?;
                same &= buffer == part;
                Ok(())
            })?;
            if !same || length != file.size {
                differing.push(path.to_vec());
            }
        }
        // The bytes have been seen; nothing of them is kept.
        Ok(Content::Host(std::path::PathBuf::new()))
    });
    let Some(found) = report.found(Fault::Different, "tree", walked)? else { return Ok(report) };
    for path in differing {
        report.add(Fault::Different, format!("`{}': content", tree::show(&path)));
    }
    let mut left: HashMap<&[u8], &Entry> = found.iter().collect();
    for (path, entry) in ordered.iter() {
        report.inodes += 1;
        match left.remove(path) {
            None => report.add(Fault::Different, format!("`{}': missing", tree::show(path))),
            Some(there) if !alike(there, entry) => report.add(Fault::Different, format!("`{}': attributes", tree::show(path))),
            Some(_) => {}
        }
    }
    let mut more: Vec<_> = left.into_keys().collect();
    more.sort_unstable();
    for path in more {
        report.add(Fault::Different, format!("`{}': not in the tree", tree::show(path)));
    }
    Ok(report)
}

/// Whether two entries are the same but for the bytes of files.
fn alike(one: &Entry, other: &Entry) -> bool {
    let nodes = match (&one.node, &other.node) {
        (Node::File(one), Node::File(other)) => one.size == other.size,
        (one, other) => one == other,
    };
    let attributes = |entry: &Entry| (entry.mode, entry.uid, entry.gid, entry.mtime, entry.flags);
    nodes && (matches!(one.node, Node::HardLink(_)) || attributes(one) == attributes(other))
}
