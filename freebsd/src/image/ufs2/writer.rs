//! A tree becomes a UFS2 file system: inodes are numbered in the order of the tree, blocks are given out from the front, and everything is written
//! as it comes; the maps of the groups last.

use std::collections::HashMap;

use super::format::{self, Inode, Recovery, Superblock, check_hash_without, count};
use super::geometry::Geometry;
use super::maps;
use crate::image::{ImageError, Result, Seed, Sink, is_zero};
use crate::tree::{self, Entry, Node, Piece, Time, Tree};

/// What can be chosen about a file system.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its size in bytes; what is over whole blocks stays unused. See [`needed`].
    pub size: u64,
    /// Bytes of a block: a power of two from 4096 to 65536.
    pub block: u64,
    /// Bytes of a fragment: an eighth of a block up to all of it.
    pub fragment: u64,
    /// An inode for so many bytes, or more inodes if the tree needs them.
    pub density: u64,
    /// Percent that only root may fill, below 100.
    pub min_free: u8,
    /// The label (`/dev/ufs/LABEL`), at most 31 bytes of letters, digits, `-`, `_` and `.`; may be empty.
    pub label: String,
    /// Whether the kernel is to write with soft updates.
    pub soft_updates: bool,
    /// When it was made.
    pub time: Time,
    /// Identifiers and generations follow from it.
    pub seed: Seed,
}

impl Options {
    /// The sizes that newfs(8) takes by itself, an inode for 16 KiB, soft updates, no label, the beginning of time.
    #[must_use]
    pub fn new(size: u64, seed: Seed) -> Options {
        Options {
            size,
            block: 32768,
            fragment: 4096,
            density: 16384,
            min_free: 8,
            label: String::new(),
            soft_updates: true,
            time: Time::default(),
            seed,
        }
    }
}

/// What a file system came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of blocks and fragments in use by files and directories.
    pub used: u64,
    /// Bytes of free blocks and fragments.
    pub free: u64,
    /// Directories.
    pub directories: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Inodes that are free.
    pub free_inodes: u64,
    /// Its identifier.
    pub id: [u32; 2],
}

/// Collects bytes that follow each other, so that they are written at once, and leaves out blocks of zeros.
struct Output<'a> {
    sink: &'a mut dyn Sink,
    pending: Vec<u8>,
    start: u64,
}

/// How much is collected.
const PENDING: usize = 1 << 20;

impl Output<'_> {
    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if is_zero(bytes) {
            return Ok(());
        }
        if self.start + self.pending.len() as u64 != offset || self.pending.len() + bytes.len() > PENDING {
            self.flush()?;
            self.start = offset;
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.pending.is_empty() {
            self.sink.write_at(self.start, &self.pending).map_err(ImageError::io("writing", self.start))?;
            self.pending.clear();
        }
        Ok(())
    }
}

/// What is free: everything beyond a place that only goes forward, and the ends of blocks of which fragments were taken.
struct Space<'g> {
    geometry: &'g Geometry,
    /// The free maps of the groups that something was taken of.
    touched: Vec<Option<Vec<u8>>>,
    group: u64,
    area: usize,
    next: u64,
    /// By length: the free ends of blocks.
    ends: [Vec<u64>; 8],
    used: u64,
}

impl<'g> Space<'g> {
    fn new(geometry: &'g Geometry) -> Space<'g> {
        let mut space = Space {
            geometry,
            touched: vec![None; usize::try_from(geometry.ncg).unwrap_or(0)],
            group: 0,
            area: 0,
            next: 0,
            ends: Default::default(),
            used: 0,
        };
        let [_, data] = geometry.data_areas(0);
        space.keep_end(data.start, (data.start.next_multiple_of(geometry.frag)).min(data.end) - data.start);
        space
    }

    fn keep_end(&mut self, start: u64, length: u64) {
        if length > 0
            && let Some(ends) = usize::try_from(length).ok().and_then(|length| self.ends.get_mut(length))
        {
            ends.push(start);
        }
    }

    fn take(&mut self, start: u64, length: u64) {
        let group = start / self.geometry.fpg;
        let geometry = self.geometry;
        self.used += length;
        let Some(map) = usize::try_from(group).ok().and_then(|group| self.touched.get_mut(group)) else { return };
        let map = map.get_or_insert_with(|| maps::empty(geometry, group));
        for at in start..start + length {
            maps::set(map, at % geometry.fpg, false);
        }
    }

    /// The next free block, not yet taken.
    fn find(&mut self) -> Option<u64> {
        while self.group < self.geometry.ncg {
            if let Some(area) = self.geometry.data_areas(self.group).get(self.area) {
                let start = self.next.max(area.start).next_multiple_of(self.geometry.frag);
                if start + self.geometry.frag <= area.end {
                    self.next = start + self.geometry.frag;
                    return Some(self.geometry.group_start(self.group) + start);
                }
                self.area += 1;
            } else {
                self.group += 1;
                (self.area, self.next) = (0, 0);
            }
        }
        None
    }

    fn block(&mut self) -> Option<u64> {
        let block = self.find()?;
        self.take(block, self.geometry.frag);
        Some(block)
    }

    /// So many fragments, fewer than a block has, of one block.
    fn fragments(&mut self, length: u64) -> Option<u64> {
        let fitting =
            self.ends.iter_mut().enumerate().skip(usize::try_from(length).ok()?).find_map(|(room, ends)| Some((room as u64, ends.pop()?)));
        let (room, start) = match fitting {
            Some(end) => end,
            None => (self.geometry.frag, self.find()?),
        };
        self.take(start, length);
        self.keep_end(start + length, room - length);
        Some(start)
    }
}

/// Where a file's bytes went.
#[derive(Default)]
struct Placed {
    direct: [i64; 12],
    indirect: [i64; 3],
    fragments: u64,
}

/// One indirect block that is being filled.
struct Table {
    /// Which one of its depth and level it is.
    index: u64,
    place: u64,
    bytes: Vec<u8>,
}

struct Writer<'a> {
    geometry: &'a Geometry,
    space: Space<'a>,
    output: Output<'a>,
    block: Vec<u8>,
    /// The block of inodes that is being filled.
    inodes: Vec<u8>,
    generation: u64,
    time: Time,
}

/// There is no block left; the caller knows what that means.
struct Full;

enum Failure {
    Full,
    Other(ImageError),
}

impl From<Full> for Failure {
    fn from(Full: Full) -> Failure {
        Failure::Full
    }
}

impl<E: Into<ImageError>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Other(error.into())
    }
}

fn address(place: u64) -> i64 {
    i64::try_from(place).unwrap_or(i64::MAX)
}

impl Writer<'_> {
    /// Writes the bytes of a file and returns where they are.
    fn file(&mut self, mut reader: tree::Reader<'_>, size: u64, sparse: bool) -> Result<Placed, Failure> {
        let geometry = self.geometry;
        let blocks = size.div_ceil(geometry.block);
        let mut placed = Placed::default();
        let mut tables: [Option<Table>; 3] = Default::default();
        let mut depth = 0;
        let mut number = 0;
        let mut hole = true;
        let mut buffer = std::mem::take(&mut self.block);
        while number < blocks {
            let last = number + 1 == blocks;
            if sparse && hole && !last {
                number += reader.skip_hole(geometry.block, (blocks - 1 - number) * geometry.block)? / geometry.block;
            }
            let length = geometry.block_bytes(size, number);
            let content = geometry.block.min(size - number * geometry.block);
            buffer.clear();
            buffer.resize(usize::try_from(length).unwrap_or(0), 0);
            reader.fill(buffer.get_mut(..usize::try_from(content).unwrap_or(0)).unwrap_or_default())?;
            // The last block is always there: the kernel and fsck want it.
            hole = sparse && number + 1 < blocks && is_zero(&buffer);
            if !hole {
                let fragments = length / geometry.fragment;
                if number >= format::DIRECT {
                    self.reach(&mut placed, &mut tables, &mut depth, number - format::DIRECT)?;
                }
                let place = if fragments == geometry.frag { self.space.block() } else { self.space.fragments(fragments) }.ok_or(Full)?;
                placed.fragments += fragments;
                if let Some(direct) = usize::try_from(number).ok().and_then(|number| placed.direct.get_mut(number)) {
                    *direct = address(place);
                } else if let Some(Some(table)) = tables.first_mut() {
                    set_address(
                        table,
                        (number - format::DIRECT).wrapping_sub(first_of_depth(geometry, depth)) % geometry.addresses(),
                        place,
                    );
                }
                self.output.put(place * geometry.fragment, &buffer)?;
            }
            number += 1;
        }
        for table in tables.iter_mut().filter_map(Option::take) {
            self.output.put(table.place * geometry.fragment, &table.bytes)?;
        }
        self.block = buffer;
        Ok(placed)
    }

    /// Opens the indirect blocks that lead to a block (counted from the first that needs one), and writes those that are done with.
    fn reach(&mut self, placed: &mut Placed, tables: &mut [Option<Table>; 3], depth: &mut usize, block: u64) -> Result<(), Failure> {
        let geometry = self.geometry;
        let addresses = geometry.addresses();
        let mut now = 0;
        while now < 2 && block >= first_of_depth(geometry, now + 1) {
            now += 1;
        }
        let within = block - first_of_depth(geometry, now);
        let mut above: Option<u64> = None;
        for level in (0..=now).rev() {
            let index = within / addresses.pow(u32::try_from(level).unwrap_or(0) + 1);
            let open = tables.get(level).and_then(Option::as_ref).is_some_and(|table| now == *depth && table.index == index);
            if !open {
                let place = self.space.block().ok_or(Full)?;
                placed.fragments += geometry.frag;
                let fresh = Table { index, place, bytes: vec![0; usize::try_from(geometry.block).unwrap_or(0)] };
                if let Some(done) = tables.get_mut(level).and_then(|slot| slot.replace(fresh)) {
                    self.output.put(done.place * geometry.fragment, &done.bytes)?;
                }
                match above.and_then(|_| tables.get_mut(level + 1)) {
                    Some(Some(table)) => set_address(table, index % addresses, place),
                    _ => {
                        if let Some(indirect) = placed.indirect.get_mut(now) {
                            *indirect = address(place);
                        }
                    }
                }
            }
            above = Some(index);
        }
        *depth = now;
        Ok(())
    }

    /// Writes the inode of a number; numbers come in order, from [`format::ROOT`].
    fn inode(&mut self, number: u64, inode: Inode, link: Option<&[u8]>) -> Result<()> {
        let per_block = self.geometry.inodes_per_block();
        let mut bytes = [0; Inode::SIZE];
        // A number of its own for each inode, never zero (splitmix64).
        let mut mixed = self.generation.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Inode { generation: ((mixed ^ mixed >> 31) as u32).max(1), ..inode }.store(&mut bytes);
        if let Some(place) = link.and_then(|link| bytes.get_mut(112..112 + link.len())) {
            place.copy_from_slice(link.unwrap_or_default());
        }
        let hash = format::check_hash(&bytes);
        format::Field::store(hash, &mut bytes[format::INODE_HASH..]);
        let at = usize::try_from(number % per_block * Inode::SIZE as u64).unwrap_or(0);
        if let Some(place) = self.inodes.get_mut(at..at + Inode::SIZE) {
            place.copy_from_slice(&bytes);
        }
        if (number + 1).is_multiple_of(per_block) { self.flush_inodes(number) } else { Ok(()) }
    }

    /// Writes the block of inodes with this one.
    fn flush_inodes(&mut self, number: u64) -> Result<()> {
        let first = number / self.geometry.inodes_per_block() * self.geometry.inodes_per_block();
        // Not through the collected bytes, which would be interrupted each time.
        if !is_zero(&self.inodes) {
            let offset = self.geometry.inode_offset(first);
            self.output.sink.write_at(offset, &self.inodes).map_err(ImageError::io("writing inodes", offset))?;
        }
        self.inodes.fill(0);
        Ok(())
    }
}

fn set_address(table: &mut Table, index: u64, place: u64) {
    if let Some(bytes) = usize::try_from(index * 8).ok().and_then(|at| table.bytes.get_mut(at..)) {
        format::Field::store(address(place), bytes);
    }
}

/// The first block (of those that need an indirect one) that is reached through so many more levels than one.
pub(crate) fn first_of_depth(geometry: &Geometry, depth: usize) -> u64 {
    let addresses = geometry.addresses();
    match depth {
        0 => 0,
        1 => addresses,
        _ => addresses + addresses * addresses,
    }
}

/// An entry of the tree with what is known of it before anything is written.
struct Planned<'t> {
    path: &'t [u8],
    entry: &'t Entry,
    /// The index of the directory that it is in.
    parent: u32,
    /// Its inode's number; a hard link has that of its file.
    number: u32,
    links: u32,
    depth: u32,
}

fn plan(tree: &Tree) -> Result<Vec<Planned<'_>>> {
    tree.check()?;
    let mut planned: Vec<Planned<'_>> = Vec::with_capacity(tree.len());
    let mut known: HashMap<&[u8], u32> = HashMap::new();
    let mut links = Vec::new();
    let mut number = format::ROOT;
    for (path, entry) in tree.iter() {
        let index = u32::try_from(planned.len()).map_err(|_| ImageError::Option("more entries than UFS2 has inodes".into()))?;
        let parent = tree::parent(path).and_then(|parent| known.get(parent)).copied().unwrap_or(0);
        let depth = planned.get(parent as usize).map_or(0, |parent| parent.depth + 1);
        if entry.flags & 0x0020_0000 != 0 {
            return Err(ImageError::Entry { path: tree::show(path), why: "only the kernel makes snapshots".into() });
        }
        let mut own = 0;
        match &entry.node {
            Node::HardLink(target) => links.push((index, target)),
            node => {
                own = number;
                number += 1;
                if matches!(node, Node::Dir | Node::File(_)) {
                    known.insert(path, index);
                }
                if *node == Node::Dir
                    && index > 0
                    && let Some(parent) = planned.get_mut(parent as usize)
                {
                    parent.links += 1;
                }
            }
        }
        let links = if entry.node == Node::Dir { 2 } else { 1 };
        planned.push(Planned { path, entry, parent, number: own, links, depth });
    }
    for (index, target) in links {
        // The tree has been looked over: the file is there.
        let Some(file) = known.get(target.as_slice()).and_then(|at| planned.get_mut(*at as usize)) else { continue };
        file.links += 1;
        let number = file.number;
        if let Some(link) = planned.get_mut(index as usize) {
            link.number = number;
        }
    }
    if let Some(many) = planned.iter().find(|planned| planned.links > format::MAX_LINKS) {
        return Err(ImageError::Entry {
            path: tree::show(many.path),
            why: format!("{} links are more than the {} of UFS2", many.links, format::MAX_LINKS),
        });
    }
    Ok(planned)
}

/// For each directory its entries' indexes in order: where they begin in the second list.
fn children(planned: &[Planned<'_>]) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0u32; planned.len() + 1];
    for entry in planned.iter().skip(1) {
        if let Some(start) = starts.get_mut(entry.parent as usize + 1) {
            *start += 1;
        }
    }
    let mut sum = 0;
    for start in &mut starts {
        sum += *start;
        *start = sum;
    }
    let mut next = starts.clone();
    let mut list = vec![0u32; planned.len().saturating_sub(1)];
    for (index, entry) in (0u32..).zip(planned).skip(1) {
        if let Some(place) = next.get_mut(entry.parent as usize) {
            if let Some(slot) = list.get_mut(*place as usize) {
                *slot = index;
            }
            *place += 1;
        }
    }
    (starts, list)
}

/// The bytes of a directory: entries in blocks of 512 bytes that none of them crosses.
fn directory<'t>(own: u32, parent: u32, entries: impl Iterator<Item = (u32, u8, &'t [u8])>) -> Vec<u8> {
    let kind = format::entry_type(format::DIRECTORY);
    let mut bytes: Vec<u8> = Vec::with_capacity(format::DIRECTORY_BLOCK);
    // Where the last entry began: it owns what is left of its block.
    let mut last = 0;
    let mut end = 0;
    for (number, kind, name) in [(own, kind, &b"."[..]), (parent, kind, &b".."[..])].into_iter().chain(entries) {
        let length = format::entry_length(name.len());
        if end + length > bytes.len() {
            widen(&mut bytes, last, end);
            end = bytes.len();
            bytes.resize(end + format::DIRECTORY_BLOCK, 0);
        }
        if let Some(place) = bytes.get_mut(end..end + length) {
            format::Field::store(number, place);
            format::Field::store(length as u16, place.get_mut(4..).unwrap_or_default());
            if let [_, _, _, _, _, _, type_place, length_place, rest @ ..] = place {
                *type_place = kind;
                // A tree has no longer names than 255 bytes.
                *length_place = name.len() as u8;
                rest.get_mut(..name.len()).unwrap_or_default().copy_from_slice(name);
            }
        }
        last = end;
        end += length;
    }
    widen(&mut bytes, last, end);
    bytes
}

/// Gives the entry at `last`, which ends at `end`, the rest of its block.
fn widen(bytes: &mut [u8], last: usize, end: usize) {
    let length = end.next_multiple_of(format::DIRECTORY_BLOCK) - last;
    if end > last
        && let Some(place) = bytes.get_mut(last + 4..)
    {
        format::Field::store(length as u16, place);
    }
}

/// Files with more bytes than this are read to know how much room they need.
const LARGE: u64 = 64 << 20;

/// How many blocks of a file become holes: the bytes decide, not where the host has holes.
fn holes(file: &tree::File, geometry: &Geometry) -> Result<u64> {
    // The last block is always there.
    let others = file.size.div_ceil(geometry.block).saturating_sub(1) * geometry.block;
    let mut zeros = 0;
    file.content.open(file.size)?.pieces(geometry.block, others, |piece| -> Result<()> {
        zeros += if let Piece::Zeros(count) = piece { count } else { 0 };
        Ok(())
    })?;
    Ok(zeros / geometry.block)
}

/// Bytes in files and directories' blocks that the tree needs at most, and inodes.
fn content(planned: &[Planned<'_>], geometry: &Geometry) -> Result<u64> {
    let (starts, list) = children(planned);
    let mut total = 0u64;
    let of_size = |size: u64, holes: u64| {
        let blocks = size.div_ceil(geometry.block) - holes;
        let tail = if size.div_ceil(geometry.block) <= format::DIRECT { size % geometry.block } else { 0 };
        let addresses = geometry.addresses();
        let beyond = size.div_ceil(geometry.block).saturating_sub(format::DIRECT).min(blocks.saturating_mul(3));
        let tables = if beyond == 0 { 0 } else { beyond.div_ceil(addresses) + beyond.div_ceil(addresses * addresses) + 2 };
        if tail > 0 {
            ((blocks - 1).saturating_add(tables)).saturating_mul(geometry.block).saturating_add(tail.next_multiple_of(geometry.fragment))
        } else {
            (blocks.saturating_add(tables)).saturating_mul(geometry.block)
        }
    };
    for (index, planned_entry) in planned.iter().enumerate() {
        let here = match &planned_entry.entry.node {
            Node::Dir => {
                let range = starts.get(index).copied().unwrap_or(0) as usize..starts.get(index + 1).copied().unwrap_or(0) as usize;
                let names = list.get(range).unwrap_or_default().iter().filter_map(|child| planned.get(*child as usize));
                let size = names.map(|child| format::entry_length(tree::name(child.path).len()) as u64).sum::<u64>();
                // Blocks of 512 bytes are filled to a half at least.
                of_size((size * 2 + 512).next_multiple_of(512), 0)
            }
            Node::File(file) => {
                // Only what is large is worth a look.
                let holes = if file.sparse && file.size > LARGE { holes(file, geometry)? } else { 0 };
                of_size(file.size, holes)
            }
            Node::Symlink(target) if target.len() >= format::INLINE_LINK => of_size(target.len() as u64, 0),
            Node::Symlink(_) | Node::HardLink(_) => 0,
        };
        total = total.saturating_add(here);
    }
    Ok(total)
}

/// How large a file system with this tree must be at least: [`Options::size`] of a later [`write()`]. `free` bytes more are for files to come.
/// Of a file larger than 64 MiB, blocks of zeros need none: it is read to find them.
///
/// # Errors
/// As [`write()`].
pub fn needed(tree: &Tree, options: &Options, free: u64) -> Result<u64> {
    let planned = plan(tree)?;
    let inodes = inodes(&planned);
    // For the structures' sizes alone.
    let probe = Geometry::new(1 << 30, options.block, options.fragment, options.density, 0)?;
    let content = content(&planned, &probe)?.saturating_add(free);
    let wanted = u128::from(content) * 100 / u128::from(100 - u64::from(options.min_free.min(90)));
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
    let mut size = wanted.max(16 * options.block);
    for _ in 0..4096 {
        let room = Geometry::new(size, options.block, options.fragment, options.density, inodes).map(|geometry| {
            let data = |group| geometry.data_areas(group).iter().map(|area| area.end - area.start).sum::<u64>();
            (0..geometry.ncg).map(data).sum::<u64>() * geometry.fragment
        });
        match room {
            Ok(room) if room >= wanted => return Ok(size.next_multiple_of(1 << 20)),
            Ok(room) => size += (wanted - room).max(options.block),
            Err(ImageError::Capacity { needed, .. }) => size = needed.max(size + 16 * options.block),
            Err(error) => return Err(error),
        }
        size = size.next_multiple_of(options.block);
    }
    Err(ImageError::Option("no size was found that holds the tree".into()))
}

/// As many inodes as a tree needs, and some for the system to live.
fn inodes(planned: &[Planned<'_>]) -> u64 {
    let own = planned.iter().filter(|planned| !matches!(planned.entry.node, Node::HardLink(_))).count() as u64;
    own + own / 4 + 64
}

/// Writes a file system with the tree. The sink must be new: what is not written must read as zeros.
///
/// # Errors
/// [`ImageError::Capacity`] when it does not fit; [`ImageError::Option`] and [`ImageError::Entry`] for what UFS2 cannot have;
/// [`ImageError::Tree`] when the tree is not whole or a file changed; [`ImageError::Io`].
pub fn write(tree: &Tree, options: &Options, sink: &mut dyn Sink) -> Result<Summary> {
    let label = options.label.as_bytes();
    if label.len() > 31 || !label.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte)) {
        return Err(ImageError::Option(format!("`{}' is no label: give at most 31 letters, digits, `-', `_' and `.'", options.label)));
    }
    if options.min_free > 90 {
        return Err(ImageError::Option(format!("{} % kept free: give at most 90", options.min_free)));
    }
    let planned = plan(tree)?;
    let geometry = Geometry::new(options.size, options.block, options.fragment, options.density, inodes(&planned))?;
    let mut writer = Writer {
        geometry: &geometry,
        space: Space::new(&geometry),
        output: Output { sink, pending: Vec::with_capacity(PENDING), start: 0 },
        block: Vec::new(),
        inodes: vec![0; usize::try_from(geometry.block).unwrap_or(0)],
        generation: options.seed.derive("generations").long(),
        time: options.time,
    };
    match writer.files(&planned) {
        Ok(()) => writer.finish(&planned, options),
        Err(Failure::Other(error)) => Err(error),
        Err(Failure::Full) => {
            let needed = needed(tree, options, 0)?.max(options.size + options.block);
            Err(ImageError::Capacity { what: "a UFS2 file system".into(), needed, available: options.size })
        }
    }
}

impl Writer<'_> {
    fn files(&mut self, planned: &[Planned<'_>]) -> Result<(), Failure> {
        let (starts, list) = children(planned);
        let mut last = 0;
        for (index, this) in planned.iter().enumerate() {
            let entry = this.entry;
            let (kind, size, placed, link) = match &entry.node {
                Node::HardLink(_) => continue,
                Node::Dir => {
                    let range = starts.get(index).copied().unwrap_or(0) as usize..starts.get(index + 1).copied().unwrap_or(0) as usize;
                    let names = list.get(range).unwrap_or_default().iter().filter_map(|child| {
                        let child = planned.get(*child as usize)?;
                        let mode = match &child.entry.node {
                            Node::Dir => format::DIRECTORY,
                            Node::File(_) | Node::HardLink(_) => format::REGULAR,
                            Node::Symlink(_) => format::SYMLINK,
                        };
                        Some((child.number, format::entry_type(mode), tree::name(child.path)))
                    });
                    let parent = planned.get(this.parent as usize).map_or(format::ROOT, |parent| parent.number);
                    let bytes = directory(this.number, parent, names);
                    let placed = self.file(tree::Reader::Bytes(&bytes), bytes.len() as u64, false)?;
                    (format::DIRECTORY, bytes.len() as u64, placed, None)
                }
                Node::File(file) => {
                    if file.size > self.geometry.max_file() {
                        let why = format!("{} bytes are more than the {} of a file in UFS2", file.size, self.geometry.max_file());
                        return Err(ImageError::Entry { path: tree::show(this.path), why }.into());
                    }
                    let placed = self.file(file.content.open(file.size)?, file.size, file.sparse)?;
                    (format::REGULAR, file.size, placed, None)
                }
                Node::Symlink(target) if target.len() < format::INLINE_LINK => {
                    (format::SYMLINK, target.len() as u64, Placed::default(), Some(target.as_slice()))
                }
                Node::Symlink(target) => {
                    let placed = self.file(tree::Reader::Bytes(target), target.len() as u64, false)?;
                    (format::SYMLINK, target.len() as u64, placed, None)
                }
            };
            let Time { seconds, nanoseconds } = entry.mtime;
            let inode = Inode {
                mode: kind | entry.mode,
                nlink: u16::try_from(this.links).unwrap_or(u16::MAX),
                uid: entry.uid,
                gid: entry.gid,
                size,
                blocks: placed.fragments * (self.geometry.fragment / format::SECTOR),
                atime: seconds,
                mtime: seconds,
                ctime: seconds,
                birthtime: seconds,
                mtimensec: nanoseconds,
                atimensec: nanoseconds,
                ctimensec: nanoseconds,
                birthnsec: nanoseconds,
                flags: entry.flags,
                direct: placed.direct,
                indirect: placed.indirect,
                dirdepth: if kind == format::DIRECTORY { this.depth } else { 0 },
                ..Inode::zero()
            };
            last = u64::from(this.number);
            self.inode(last, inode, link)?;
        }
        self.flush_inodes(last)?;
        Ok(())
    }

    /// Writes the groups' heads and maps, the summaries and the superblocks.
    fn finish(mut self, planned: &[Planned<'_>], options: &Options) -> Result<Summary> {
        let geometry = self.geometry;
        let own: Vec<(u64, bool)> = planned
            .iter()
            .filter(|planned| !matches!(planned.entry.node, Node::HardLink(_)))
            .map(|planned| (u64::from(planned.number), planned.entry.node == Node::Dir))
            .collect();
        let mut own = own.into_iter().peekable();
        let mut total = [0i64; 5];
        let mut summaries = Vec::with_capacity(usize::try_from(geometry.cssize).unwrap_or(0));
        let mut directories = 0;
        for group in 0..geometry.ncg {
            let free = usize::try_from(group).ok().and_then(|group| self.space.touched.get_mut(group)).and_then(Option::take);
            let free = free.unwrap_or_else(|| maps::empty(geometry, group));
            let mut used = vec![0; maps::bytes(geometry.ipg)];
            let (mut count_used, mut count_directories, mut highest) = (0, 0, 0);
            let reserved = (group == 0).then_some([(0, false), (1, false)]).into_iter().flatten();
            let here = std::iter::from_fn(|| own.next_if(|(number, _)| number / geometry.ipg == group));
            for (number, is_directory) in reserved.chain(here) {
                highest = number % geometry.ipg + 1;
                maps::set(&mut used, number % geometry.ipg, true);
                count_used += 1;
                count_directories += i32::from(is_directory);
            }
            directories += u64::from(count_directories.unsigned_abs());
            let counted = maps::counted(geometry, group, &free);
            let mut cs = counted.summary;
            cs[count::DIRECTORIES] = count_directories;
            cs[count::INODES] = i32::try_from(geometry.ipg).unwrap_or(i32::MAX) - count_used;
            let per_block = geometry.inodes_per_block();
            let head = format::CylinderGroup {
                cs,
                frsum: counted.runs,
                initediblk: u32::try_from(highest.next_multiple_of(per_block).max(2 * per_block).min(geometry.ipg)).unwrap_or(u32::MAX),
                time: self.time.seconds,
                ..geometry.group(group)
            };
            let bytes = group_bytes(geometry, &head, &used, &free, &counted);
            self.output.put((geometry.group_start(group) + geometry.cblkno) * geometry.fragment, &bytes)?;
            for (sum, count) in total.iter_mut().zip(cs) {
                *sum += i64::from(count);
            }
            summaries.extend(cs.iter().flat_map(|count| count.to_le_bytes()));
        }
        summaries.resize(usize::try_from(geometry.cssize).unwrap_or(0), 0);
        self.output.put(geometry.dblkno * geometry.fragment, &summaries)?;

        let id = [options.seed.derive("identifier").number(), options.seed.derive("identifier, second half").number()];
        let mut volname = [0; 32];
        for (place, byte) in volname.iter_mut().zip(options.label.bytes()) {
            *place = byte;
        }
        let superblock = Superblock {
            minfree: i32::from(options.min_free),
            // Half of what is kept free is kept for directories and indirect blocks.
            metaspace: address(geometry.fpg * u64::from(options.min_free) / 200 / geometry.frag * geometry.frag),
            clean: 1,
            old_flags: format::OLD_FLAGS_MOVED,
            id,
            volname,
            providersize: address(options.size / geometry.fragment),
            total,
            time: self.time.seconds,
            metackhash: format::ALL_HASHES,
            flags: format::FLAG_CHECK_HASHES | if options.soft_updates { format::FLAG_SOFT_UPDATES } else { 0 },
            ..geometry.superblock()
        };
        for group in 0..geometry.ncg {
            let place = (geometry.group_start(group) + geometry.sblkno) * geometry.fragment;
            let bytes = superblock_bytes(&Superblock { sblockactualloc: address(place), ..superblock.clone() });
            self.output.put(place, &bytes)?;
        }
        let mut recovery = [0; Recovery::SIZE];
        Recovery {
            magic: superblock.magic,
            fsbtodb: superblock.fsbtodb,
            sblkno: superblock.sblkno,
            fpg: superblock.fpg,
            ncg: superblock.ncg,
        }
        .store(&mut recovery);
        self.output.put(format::SUPERBLOCK_OFFSET - Recovery::SIZE as u64, &recovery)?;
        self.output.put(format::SUPERBLOCK_OFFSET, &superblock_bytes(&superblock))?;
        self.output.flush()?;
        let [_, blocks, inodes, fragments, _] = total.map(i64::unsigned_abs);
        Ok(Summary {
            size: geometry.size * geometry.fragment,
            used: self.space.used * geometry.fragment,
            free: (blocks * geometry.frag + fragments) * geometry.fragment,
            directories,
            inodes: geometry.ipg * geometry.ncg - inodes - 2,
            free_inodes: inodes,
            id,
        })
    }
}

fn superblock_bytes(superblock: &Superblock) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(superblock.sbsize).unwrap_or(0)];
    superblock.store(&mut bytes);
    let hash = check_hash_without(&bytes, format::SUPERBLOCK_HASH);
    format::Field::store(hash, bytes.get_mut(format::SUPERBLOCK_HASH..).unwrap_or_default());
    bytes
}

fn group_bytes(geometry: &Geometry, head: &format::CylinderGroup, used: &[u8], free: &[u8], counted: &maps::Counted) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(geometry.cgsize).unwrap_or(0)];
    head.store(&mut bytes);
    let sums: Vec<u8> = counted.cluster_sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
    let mut put = |at: u32, part: &[u8]| {
        if let Some(place) = bytes.get_mut(at as usize..).and_then(|place| place.get_mut(..part.len())) {
            place.copy_from_slice(part);
        }
    };
    put(head.iusedoff, used);
    if geometry.contigsumsize > 0 {
        // The number of runs of length zero shares its place with the end of the free map: the map is written over it.
        put(head.clustersumoff, &sums);
        put(head.clusteroff, &counted.clusters);
    }
    put(head.freeoff, free);
    let hash = check_hash_without(&bytes, format::CG_HASH);
    format::Field::store(hash, bytes.get_mut(format::CG_HASH..).unwrap_or_default());
    bytes
}
