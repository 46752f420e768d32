//! Reads a UFS2 file system: what the superblock says is looked over first, and nothing that is read is believed to be in bounds.

use std::collections::HashMap;
use std::sync::Arc;

use super::format::{self, Inode, Superblock};
use super::geometry::Geometry;
use super::writer::first_of_depth;
use crate::image::{ImageError, Result, Source};
use crate::tree::{self, Content, Entry, File, Node, Time, Tree};

/// No directory is larger than this many bytes: a damaged size does not fill the memory.
const MAX_DIRECTORY: u64 = 1 << 28;

/// Says for a path, a number and an inode of a file what stands for its bytes.
type Contents<'a> = dyn FnMut(&[u8], u32, &Inode) -> Result<Content> + 'a;

/// A file system that is read.
#[derive(Debug)]
pub struct Ufs<S> {
    source: S,
    superblock: Superblock,
    geometry: Geometry,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The inode's number.
    pub inode: u32,
    /// The type that the directory tells (`DT_DIR` 4, `DT_REG` 8, `DT_LNK` 10).
    pub kind: u8,
    /// The name; `.` and `..` are among them.
    pub name: Vec<u8>,
}

/// What is wrong with a superblock's fields, as the kernel sees it (`validate_sblock` of `ffs_subr.c`).
pub(crate) fn superblock_fault(superblock: &Superblock) -> Option<String> {
    let Superblock { bsize, fsize, frag, .. } = *superblock;
    if superblock.magic != format::MAGIC {
        return Some("no UFS2 superblock is there".into());
    }
    let power = |value: i32| u32::try_from(value).is_ok_and(u32::is_power_of_two);
    let must: [(&str, bool); 10] = [
        ("fs_bsize", power(bsize) && (4096..=65536).contains(&bsize)),
        ("fs_fsize", power(fsize) && (512..=65536).contains(&fsize)),
        ("fs_frag", (1..=8).contains(&frag) && fsize.checked_mul(frag) == Some(bsize)),
        ("fs_fpg", superblock.fpg >= frag.saturating_mul(3)),
        ("fs_ncg", (1..1 << 31).contains(&superblock.ncg)),
        ("fs_inopb", i64::from(superblock.inopb) == i64::from(bsize) / 256),
        ("fs_ipg", superblock.ipg >= superblock.inopb && superblock.inopb > 0 && superblock.ipg.checked_rem(superblock.inopb) == Some(0)),
        ("fs_ipg", u64::from(superblock.ipg) * u64::from(superblock.ncg) <= (1 << 32) - u64::from(superblock.inopb)),
        ("fs_contigsumsize", (0..=format::MAX_CONTIG).contains(&superblock.contigsumsize)),
        ("fs_sbsize", (1376..=8192).contains(&superblock.sbsize)),
    ];
    if let Some((name, _)) = must.iter().find(|(_, holds)| !holds) {
        return Some(format!("{name} is not right"));
    }
    let groups = i64::from(superblock.ncg);
    if superblock.size < i64::from(frag) * 8
        || superblock.size > groups * i64::from(superblock.fpg)
        || superblock.size <= (groups - 1) * i64::from(superblock.fpg)
        || superblock.size.checked_mul(i64::from(fsize)).is_none()
    {
        return Some("fs_size does not go with fs_ncg and fs_fpg".into());
    }
    // What follows from these must be so.
    let found = Geometry::of(superblock)?;
    let up = |bytes: u64| bytes.div_ceil(found.fragment).next_multiple_of(found.frag);
    let sblkno = up(format::SUPERBLOCK_OFFSET + format::SUPERBLOCK_ROOM as u64);
    let cblkno = sblkno + up(format::SUPERBLOCK_ROOM as u64);
    let dblkno = cblkno + found.frag + found.ipg / found.inodes_per_block() * found.frag;
    let expected = Geometry {
        sblkno,
        cblkno,
        iblkno: cblkno + found.frag,
        dblkno,
        cssize: (found.ncg * 16).next_multiple_of(found.fragment),
        ..found.clone()
    };
    if found != expected || dblkno > found.fpg {
        return Some("the places in a group do not go with the sizes".into());
    }
    if found.cgsize > found.block || found.cgsize < found.fragment || u64::from(found.group(0).nextfreeoff) > found.cgsize {
        return Some("fs_cgsize is not right".into());
    }
    let derived = expected.superblock();
    type Same = fn(&Superblock, &Superblock) -> bool;
    let same: [(&str, Same); 16] = [
        ("fs_bmask", |a, b| a.bmask == b.bmask),
        ("fs_fmask", |a, b| a.fmask == b.fmask),
        ("fs_qbmask", |a, b| a.qbmask == b.qbmask),
        ("fs_qfmask", |a, b| a.qfmask == b.qfmask),
        ("fs_bshift", |a, b| a.bshift == b.bshift),
        ("fs_fshift", |a, b| a.fshift == b.fshift),
        ("fs_fragshift", |a, b| a.fragshift == b.fragshift),
        ("fs_fsbtodb", |a, b| a.fsbtodb == b.fsbtodb),
        ("fs_nindir", |a, b| a.nindir == b.nindir),
        ("fs_sblockloc", |a, b| a.sblockloc == b.sblockloc),
        ("fs_maxsymlinklen", |a, b| a.maxsymlinklen == b.maxsymlinklen),
        ("fs_maxfilesize", |a, b| a.maxfilesize <= b.maxfilesize),
        ("fs_csaddr", |a, b| a.csaddr >= i64::from(b.dblkno) && a.csaddr < b.size),
        ("fs_sbsize", |a, _| a.sbsize % 512 == 0),
        ("fs_minfree", |a, _| (0..=99).contains(&a.minfree)),
        ("fs_metaspace", |a, _| (0..=i64::from(a.fpg) / 2).contains(&a.metaspace)),
    ];
    same.iter().find(|(_, same)| !same(superblock, &derived)).map(|(name, _)| format!("{name} is not right"))
}

impl<S: Source> Ufs<S> {
    /// Reads and looks over the superblock, its check hash included.
    ///
    /// # Errors
    /// [`ImageError::Damaged`], [`ImageError::Io`].
    pub fn open(source: S) -> Result<Ufs<S>> {
        let (superblock, bytes) = load_superblock(&source, format::SUPERBLOCK_OFFSET)?;
        let damaged = |why: String| ImageError::damaged("the superblock", why);
        if let Some(why) = superblock_fault(&superblock) {
            return Err(damaged(why));
        }
        if superblock.metackhash & 1 != 0 && superblock.flags & format::FLAG_CHECK_HASHES != 0 && !hash_holds(&superblock, &bytes) {
            return Err(damaged("its check hash is not right".into()));
        }
        let geometry = Geometry::of(&superblock).ok_or_else(|| damaged("a length below zero".into()))?;
        Ok(Ufs { source, superblock, geometry })
    }

    /// The superblock.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The division into groups.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(crate) fn read(&self, doing: &'static str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.source.read_at(offset, buffer).map_err(ImageError::io(doing, offset))
    }

    /// The bytes of an inode.
    pub(crate) fn inode_bytes(&self, number: u32) -> Result<[u8; Inode::SIZE]> {
        if u64::from(number) >= self.geometry.ipg * self.geometry.ncg {
            return Err(ImageError::damaged(format!("inode {number}"), "there are not so many"));
        }
        let mut bytes = [0; Inode::SIZE];
        self.read("reading an inode", self.geometry.inode_offset(u64::from(number)), &mut bytes)?;
        Ok(bytes)
    }

    /// An inode by its number; the root's is [`format::ROOT`](super::ROOT).
    ///
    /// # Errors
    /// [`ImageError::Damaged`] for a number that there is not, [`ImageError::Io`].
    pub fn inode(&self, number: u32) -> Result<Inode> {
        Ok(Inode::load(&self.inode_bytes(number)?))
    }

    /// Calls `visit` with each block and indirect block of an inode: `(None, place)` for an indirect one, before what it leads to, `(Some(n), place)`
    /// for block number `n`; holes are left out. Places are fragments, as they stand there; what lies outside is visited but not followed.
    pub(crate) fn blocks(&self, inode: &Inode, visit: &mut dyn FnMut(Option<u64>, i64) -> Result<()>) -> Result<()> {
        let blocks = inode.size.div_ceil(self.geometry.block);
        for (number, place) in (0..).zip(inode.direct) {
            if place != 0 {
                visit(Some(number), place)?;
            }
        }
        for (depth, place) in inode.indirect.into_iter().enumerate() {
            if place != 0 {
                let first = format::DIRECT + first_of_depth(&self.geometry, depth);
                self.indirect(place, depth, first, blocks, visit)?;
            }
        }
        Ok(())
    }

    fn indirect(
        &self,
        place: i64,
        depth: usize,
        first: u64,
        blocks: u64,
        visit: &mut dyn FnMut(Option<u64>, i64) -> Result<()>,
    ) -> Result<()> {
        visit(None, place)?;
        let Some(offset) = self.place(place, self.geometry.frag) else { return Ok(()) };
        let mut bytes = vec![0; usize::try_from(self.geometry.block).unwrap_or(0)];
        self.read("reading an indirect block", offset, &mut bytes)?;
        let span = self.geometry.addresses().pow(u32::try_from(depth).unwrap_or(0));
        for (index, place) in (0u64..).zip(bytes.as_chunks::<8>().0) {
            let place = i64::from_le_bytes(*place);
            let number = first + index * span;
            // Beyond the end there is nothing; what stands there is for the checker.
            if place == 0 {
                continue;
            }
            if depth == 0 {
                visit(Some(number), place)?;
            } else if number < blocks {
                self.indirect(place, depth - 1, number, blocks, visit)?;
            } else {
                visit(None, place)?;
            }
        }
        Ok(())
    }

    /// The byte where fragments lie that are all in the file system.
    fn place(&self, place: i64, fragments: u64) -> Option<u64> {
        let place = u64::try_from(place).ok()?;
        let end = place.checked_add(fragments)?;
        (end <= self.geometry.size).then(|| place * self.geometry.fragment)
    }

    /// Reads a file, directory or long symbolic link from its first byte to its last: `sink` gets a buffer for each block, and zeros for holes.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] when a block lies outside, [`ImageError::Io`], and what `sink` says.
    pub fn content(&self, inode: &Inode, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let geometry = &self.geometry;
        if inode.size > geometry.max_file() {
            return Err(ImageError::damaged("an inode", "a file larger than can be"));
        }
        let block_size = usize::try_from(geometry.block).unwrap_or(0);
        let (mut buffer, zeros) = (vec![0; block_size], vec![0; block_size]);
        let mut next = 0;
        let blocks = inode.size.div_ceil(geometry.block);
        let length = |number: u64| usize::try_from(geometry.block.min(inode.size - number * geometry.block)).unwrap_or(0);
        self.blocks(inode, &mut |number, place| {
            let Some(number) = number.filter(|number| *number < blocks) else { return Ok(()) };
            while next < number {
                sink(zeros.get(..length(next)).unwrap_or_default())?;
                next += 1;
            }
            next += 1;
            let fragments = geometry.block_bytes(inode.size, number) / geometry.fragment;
            let offset =
                self.place(place, fragments).ok_or_else(|| ImageError::damaged("an inode", "a block outside of the file system"))?;
            let buffer = buffer.get_mut(..length(number)).unwrap_or_default();
            self.read("reading a file", offset, buffer)?;
            sink(buffer)
        })?;
        while next < blocks {
            sink(zeros.get(..length(next)).unwrap_or_default())?;
            next += 1;
        }
        Ok(())
    }

    fn bytes(&self, inode: &Inode, most: u64, what: &str) -> Result<Vec<u8>> {
        if inode.size > most {
            return Err(ImageError::damaged(what, format!("{} bytes are more than {most}", inode.size)));
        }
        let mut bytes = Vec::new();
        self.content(inode, &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// The bytes of a directory as they lie there.
    pub(crate) fn directory_bytes(&self, inode: &Inode) -> Result<Vec<u8>> {
        self.bytes(inode, MAX_DIRECTORY, "a directory")
    }

    /// The names in a directory, in their order.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] when its entries do not follow each other as they must, [`ImageError::Io`].
    pub fn directory(&self, inode: &Inode) -> Result<Vec<DirectoryEntry>> {
        if inode.mode & format::FORMAT != format::DIRECTORY {
            return Err(ImageError::damaged("an inode", "it is no directory"));
        }
        entries(&self.directory_bytes(inode)?).map_err(|why| ImageError::damaged("a directory", why))
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] when it has none, [`ImageError::Io`].
    pub fn link(&self, number: u32) -> Result<Vec<u8>> {
        let bytes = self.inode_bytes(number)?;
        let inode = Inode::load(&bytes);
        if inode.mode & format::FORMAT != format::SYMLINK {
            return Err(ImageError::damaged(format!("inode {number}"), "it is no symbolic link"));
        }
        match usize::try_from(inode.size) {
            Ok(length) if length < format::INLINE_LINK => Ok(bytes.get(112..112 + length).unwrap_or_default().to_vec()),
            _ => self.bytes(&inode, tree::MAX_TARGET as u64, "a symbolic link"),
        }
    }

    /// The whole tree, with every file's bytes in memory, in all at most `limit`; the first name in order of a file with several is its own.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] for what is no tree, [`ImageError::Capacity`] above the limit, [`ImageError::Io`].
    pub fn tree(&self, limit: u64) -> Result<Tree> {
        let mut left = limit;
        self.walk(&mut |_, number, inode| {
            if inode.size > left {
                return Err(ImageError::Capacity { what: "a tree in memory".into(), needed: inode.size, available: left });
            }
            left -= inode.size;
            Ok(Content::Bytes(Arc::from(self.bytes(inode, limit, &format!("inode {number}"))?)))
        })
    }

    /// The whole tree, with contents of the caller's.
    pub(crate) fn walk(&self, content: &mut Contents<'_>) -> Result<Tree> {
        let mut tree = Tree::new();
        let mut names: HashMap<u32, Vec<u8>> = HashMap::new();
        let mut directories = std::collections::HashSet::from([format::ROOT]);
        let mut pending = vec![(Vec::new(), format::ROOT)];
        while let Some((path, number)) = pending.pop() {
            let inode = self.inode(number)?;
            let node = match inode.mode & format::FORMAT {
                format::DIRECTORY => {
                    for entry in self.directory(&inode)? {
                        if entry.name == b"." || entry.name == b".." {
                            continue;
                        }
                        let mut below = path.clone();
                        if !below.is_empty() {
                            below.push(b'/');
                        }
                        below.extend_from_slice(&entry.name);
                        if entry.kind == format::entry_type(format::DIRECTORY) && !directories.insert(entry.inode) {
                            return Err(ImageError::damaged(format!("`{}'", tree::show(&below)), "a directory with two names"));
                        }
                        pending.push((below, entry.inode));
                    }
                    Node::Dir
                }
                format::SYMLINK => Node::Symlink(self.link(number)?),
                format::REGULAR => {
                    if inode.nlink > 1 {
                        if let Some(own) = names.get(&number) {
                            tree.insert(&path, Entry::hard_link(own.clone()))?;
                            continue;
                        }
                        names.insert(number, path.clone());
                    }
                    Node::File(File { content: content(&path, number, &inode)?, size: inode.size, sparse: true })
                }
                other => return Err(ImageError::damaged(format!("inode {number}"), format!("type {other:#o} is not one of a tree"))),
            };
            let mtime = Time { seconds: inode.mtime, nanoseconds: inode.mtimensec };
            let entry = Entry { mode: inode.mode & 0o7777, uid: inode.uid, gid: inode.gid, mtime, flags: inode.flags, node };
            tree.insert(&path, entry)?;
        }
        tree.order_links();
        Ok(tree)
    }
}

pub(crate) fn load_superblock(source: &impl Source, offset: u64) -> Result<(Superblock, Vec<u8>)> {
    let mut bytes = vec![0; format::SUPERBLOCK_ROOM];
    source.read_at(offset, &mut bytes).map_err(ImageError::io("reading a superblock", offset))?;
    let superblock = bytes.first_chunk().map_or_else(Superblock::zero, Superblock::load);
    Ok((superblock, bytes))
}

pub(crate) fn hash_holds(superblock: &Superblock, bytes: &[u8]) -> bool {
    let covered = usize::try_from(superblock.sbsize).ok().and_then(|size| bytes.get(..size)).unwrap_or_default();
    format::check_hash_without(covered, format::SUPERBLOCK_HASH) == superblock.ckhash
}

/// The entries in a directory's bytes.
pub(crate) fn entries(bytes: &[u8]) -> Result<Vec<DirectoryEntry>, String> {
    let mut found = Vec::new();
    let (blocks, rest) = bytes.as_chunks::<{ format::DIRECTORY_BLOCK }>();
    if !rest.is_empty() {
        return Err("its size is not a multiple of 512".into());
    }
    for block in blocks {
        let mut at = 0;
        while at < block.len() {
            let Some(&[i0, i1, i2, i3, l0, l1, kind, name_length]) = block.get(at..).and_then(<[u8]>::first_chunk) else {
                return Err("an entry crosses the end of its block".into());
            };
            let (inode, length) = (u32::from_le_bytes([i0, i1, i2, i3]), usize::from(u16::from_le_bytes([l0, l1])));
            let name = block.get(at + format::ENTRY_HEAD..).and_then(|rest| rest.get(..usize::from(name_length)));
            if block.get(at + format::ENTRY_HEAD + usize::from(name_length)).is_some_and(|end| *end != 0) && inode != 0 {
                return Err("a name without its end".into());
            }
            if length % 4 != 0 || length < format::entry_length(usize::from(name_length)) || at + length > block.len() {
                return Err(format!("an entry of {length} bytes, with a name of {name_length}, at {at} of its block"));
            }
            if let Some(name) = name.filter(|_| inode != 0) {
                if name.is_empty() || name.contains(&0) || name.contains(&b'/') {
                    return Err("a name that cannot be".into());
                }
                found.push(DirectoryEntry { inode, kind, name: name.to_vec() });
            }
            at += length;
        }
    }
    Ok(found)
}
