//! A tree becomes a FAT32 file system, as firmware wants its system partition.
//!
//! Owners, modes and flags have no place in it; symbolic and hard links are refused. Names that are not of eight and three capital letters get long
//! names beside a short one of their own. Facts: Microsoft's "FAT32 File System Specification" 1.03, and what fsck.fat(8) asks for.

use std::collections::BTreeSet;

use super::{ImageError, Result, Seed, Sink, is_zero};
use crate::tree::{self, Content, Entry, Node, Time, Tree};

const SECTOR: u64 = 512;
/// Sectors before the first table: boot sector, information sector, and their copies at sector 6.
const RESERVED: u64 = 32;
/// A FAT with fewer clusters is read as FAT16 (the limit is 65525; some room, as the specification advises).
const LEAST_CLUSTERS: u64 = 65541;
const END: u32 = 0x0fff_ffff;
/// Of a directory entry.
const ENTRY: usize = 32;

/// What can be chosen about a file system.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its size in bytes: 34 MiB or more, below 2 TiB.
    pub size: u64,
    /// The label: at most 11 capital letters, digits, `-` and `_`.
    pub label: String,
    /// Where on the disk it begins, in sectors of 512 bytes (BIOS code asks).
    pub hidden_sectors: u32,
    /// The volume's number follows from it.
    pub seed: Seed,
}

struct Geometry {
    sectors: u64,
    per_cluster: u64,
    table: u64,
    clusters: u64,
}

impl Geometry {
    fn new(size: u64) -> Result<Geometry> {
        let sectors = size / SECTOR;
        if sectors > u64::from(u32::MAX) {
            return Err(ImageError::Option(format!("a FAT32 file system of {size} bytes: give less than 2 TiB")));
        }
        // The largest clusters, of 4096 bytes at first, of which there are enough.
        for per_cluster in [8, 4, 2, 1] {
            let left = sectors.saturating_sub(RESERVED);
            // Each cluster takes its sectors and two entries of four bytes.
            let clusters = left * SECTOR / (per_cluster * SECTOR + 8);
            let table = ((clusters + 2) * 4).div_ceil(SECTOR);
            let clusters = left.saturating_sub(2 * table) / per_cluster;
            if clusters >= LEAST_CLUSTERS {
                // With large disks, fewer and larger clusters; the table stays as large as it may have to be.
                let per_cluster = if clusters > 1 << 22 { 64 } else { per_cluster };
                let clusters = left.saturating_sub(2 * table) / per_cluster;
                return Ok(Geometry { sectors, per_cluster, table, clusters: clusters.min(table * SECTOR / 4 - 2) });
            }
        }
        let needed = (RESERVED + LEAST_CLUSTERS + 2 * ((LEAST_CLUSTERS + 2) * 4).div_ceil(SECTOR)) * SECTOR;
        Err(ImageError::Capacity { what: "a FAT32 file system".into(), needed, available: size })
    }

    fn cluster_bytes(&self) -> u64 {
        self.per_cluster * SECTOR
    }

    fn offset(&self, cluster: u32) -> u64 {
        (RESERVED + 2 * self.table + (u64::from(cluster) - 2) * self.per_cluster) * SECTOR
    }
}

struct Writer<'a> {
    geometry: Geometry,
    sink: &'a mut dyn Sink,
    /// The chains: what follows each cluster from the third entry on.
    next: Vec<u32>,
    needed: u64,
}

impl Writer<'_> {
    /// So many clusters in a row; the first one's number, or zero for none.
    fn take(&mut self, bytes: u64) -> Result<u32> {
        let count = bytes.div_ceil(self.geometry.cluster_bytes());
        let first = self.next.len() as u64 + 2;
        self.needed += count;
        if self.needed > self.geometry.clusters {
            let needed = (self.needed - self.geometry.clusters) * self.geometry.cluster_bytes() + self.geometry.sectors * SECTOR;
            return Err(ImageError::Capacity { what: "a FAT32 file system".into(), needed, available: self.geometry.sectors * SECTOR });
        }
        for cluster in first..first + count {
            let last = cluster + 1 == first + count;
            self.next.push(if last { END } else { u32::try_from(cluster + 1).unwrap_or(END) });
        }
        Ok(if count == 0 { 0 } else { u32::try_from(first).unwrap_or(END) })
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if is_zero(bytes) { Ok(()) } else { self.sink.write_at(offset, bytes).map_err(ImageError::io("writing", offset)) }
    }

    fn file(&mut self, content: &Content, size: u64) -> Result<u32> {
        let first = self.take(size)?;
        let mut reader = content.open(size)?;
        let mut buffer = vec![0; 1 << 20];
        let mut done = 0;
        while done < size {
            let part = usize::try_from((size - done).min(1 << 20)).unwrap_or(0);
            let part = buffer.get_mut(..part).unwrap_or_default();
            reader.fill(part)?;
            let offset = self.geometry.offset(first) + done;
            done += part.len() as u64;
            let part = part.to_vec();
            self.put(offset, &part)?;
        }
        Ok(first)
    }
}

/// Date and time of an entry: years from 1980 to 2107, seconds by two.
fn date_time(time: Time) -> (u16, u16) {
    let days = time.seconds.div_euclid(86400);
    let seconds = time.seconds.rem_euclid(86400);
    // Howard Hinnant's `civil_from_days`.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let number = |value: i64| u16::try_from(value).unwrap_or(0);
    if year < 1980 {
        return (0x21, 0);
    }
    if year > 2107 {
        return (0xff9f, 0xbf7d);
    }
    (
        number(year - 1980) << 9 | number(month) << 5 | number(day),
        number(seconds / 3600) << 11 | number(seconds / 60 % 60) << 5 | number(seconds % 60 / 2),
    )
}

/// The name as eight and three bytes, if it is one of those.
fn plain(name: &str) -> Option<[u8; 11]> {
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let good =
        |part: &str| part.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"_-~!#$%&'()@^`{}".contains(&byte));
    if stem.is_empty() || stem.len() > 8 || extension.len() > 3 || !good(stem) || !good(extension) || name.ends_with('.') {
        return None;
    }
    let mut short = [b' '; 11];
    for (place, byte) in short.iter_mut().zip(stem.bytes()) {
        *place = byte;
    }
    for (place, byte) in short.iter_mut().skip(8).zip(extension.bytes()) {
        *place = byte;
    }
    Some(short)
}

/// A short name of its own for a long one: the first letters, `~` and a number.
fn shortened(name: &str, taken: &BTreeSet<[u8; 11]>) -> [u8; 11] {
    let letters = |part: &str, most: usize| -> Vec<u8> {
        part.bytes().filter(u8::is_ascii_alphanumeric).map(|byte| byte.to_ascii_uppercase()).take(most).collect()
    };
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let (stem, extension) = (letters(stem, 6), letters(extension, 3));
    let mut number = 1u32;
    loop {
        let tail = format!("~{number}");
        let mut short = [b' '; 11];
        let stem = stem.iter().take(8 - tail.len().min(8)).copied();
        for (place, byte) in short.iter_mut().take(8).zip(stem.chain(tail.bytes())) {
            *place = byte;
        }
        for (place, byte) in short.iter_mut().skip(8).zip(&extension) {
            *place = *byte;
        }
        if !taken.contains(&short) || number > 999_999 {
            return short;
        }
        number += 1;
    }
}

fn entry(short: [u8; 11], attributes: u8, first: u32, size: u64, time: Time) -> [u8; ENTRY] {
    let (date, clock) = date_time(time);
    let mut bytes = [0; ENTRY];
    let parts: [(usize, &[u8]); 9] = [
        (0, &short),
        (11, &[attributes]),
        (14, &clock.to_le_bytes()),
        (16, &date.to_le_bytes()),
        (18, &date.to_le_bytes()),
        (20, &((first >> 16) as u16).to_le_bytes()),
        (22, &clock.to_le_bytes()),
        (24, &date.to_le_bytes()),
        (26, &(first as u16).to_le_bytes()),
    ];
    for (at, part) in parts {
        bytes[at..at + part.len()].copy_from_slice(part);
    }
    bytes[28..].copy_from_slice(&u32::try_from(size).unwrap_or(0).to_le_bytes());
    bytes
}

const DIRECTORY: u8 = 0x10;
const ARCHIVE: u8 = 0x20;
const LABEL: u8 = 0x08;
const LONG: u8 = 0x0f;

/// The entries of a long name, the last part first, as they precede their short one.
fn long_entries(name: &str, short: &[u8; 11]) -> Vec<[u8; ENTRY]> {
    let sum = short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let mut units: Vec<u16> = name.encode_utf16().collect();
    if !units.len().is_multiple_of(13) {
        units.push(0);
        units.resize(units.len().next_multiple_of(13), 0xffff);
    }
    let count = units.len() / 13;
    let parts = units.chunks(13).enumerate().map(|(index, part)| {
        let mut bytes = [0; ENTRY];
        let number = u8::try_from(index + 1).unwrap_or(u8::MAX);
        bytes[0] = if index + 1 == count { number | 0x40 } else { number };
        bytes[11] = LONG;
        bytes[13] = sum;
        for (unit, at) in part.iter().zip((1..11).step_by(2).chain((14..26).step_by(2)).chain([28, 30])) {
            bytes[at..at + 2].copy_from_slice(&unit.to_le_bytes());
        }
        bytes
    });
    let mut parts: Vec<_> = parts.collect();
    parts.reverse();
    parts
}

/// Writes a file system with the tree. The sink must be new: what is not written must read as zeros.
///
/// # Errors
/// [`ImageError::Capacity`] when it does not fit, [`ImageError::Entry`] for what FAT cannot have, [`ImageError::Option`], [`ImageError::Tree`],
/// [`ImageError::Io`].
pub fn write(tree: &Tree, options: &Options, sink: &mut dyn Sink) -> Result<()> {
    let label = options.label.as_bytes();
    if label.is_empty()
        || label.len() > 11
        || !label.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"-_".contains(byte))
    {
        return Err(ImageError::Option(format!("`{}' is no label: give 1 to 11 capital letters, digits, `-' and `_'", options.label)));
    }
    tree.check()?;
    let mut padded = [b' '; 11];
    for (place, byte) in padded.iter_mut().zip(label) {
        *place = *byte;
    }
    let mut writer = Writer { geometry: Geometry::new(options.size)?, sink, next: Vec::new(), needed: 0 };
    let root_time = tree.get("").map(|root| root.mtime).unwrap_or_default();
    // The root first: its cluster is the second, as everywhere.
    let root = directory(&mut writer, tree, b"", None, Some(entry(padded, LABEL, 0, 0, root_time)))?;

    let Geometry { sectors, per_cluster, table, clusters } = writer.geometry;
    let mut boot = vec![0; SECTOR as usize];
    let serial = options.seed.derive("volume").number();
    let parts: [(usize, &[u8]); 17] = [
        // A jump over the fields, to a halt.
        (0, &[0xeb, 0x58, 0x90]),
        (3, b"FRUIX1.0"),
        (11, &(SECTOR as u16).to_le_bytes()),
        (13, &[u8::try_from(per_cluster).unwrap_or(0)]),
        (14, &(RESERVED as u16).to_le_bytes()),
        (16, &[2]),
        (21, &[0xf8]),
        // Sectors of a track and heads, of which only old BIOS code wants to know.
        (24, &[63, 0, 255, 0]),
        (28, &options.hidden_sectors.to_le_bytes()),
        (32, &u32::try_from(sectors).unwrap_or(0).to_le_bytes()),
        (36, &u32::try_from(table).unwrap_or(0).to_le_bytes()),
        (44, &root.to_le_bytes()),
        (48, &[1, 0, 6, 0]),
        (64, &[0x80, 0, 0x29]),
        (67, &serial.to_le_bytes()),
        (71, &padded),
        (82, b"FAT32   \xf4\xeb\xfd"),
    ];
    for (at, part) in parts {
        boot.get_mut(at..at + part.len()).unwrap_or_default().copy_from_slice(part);
    }
    boot.get_mut(510..).unwrap_or_default().copy_from_slice(&[0x55, 0xaa]);
    let used = writer.next.len() as u64;
    let mut information = vec![0; SECTOR as usize];
    let parts: [(usize, &[u8]); 5] = [
        (0, b"RRaA"),
        (484, b"rrAa"),
        (488, &u32::try_from(clusters - used).unwrap_or(0).to_le_bytes()),
        (492, &u32::try_from(used + 2).unwrap_or(0).to_le_bytes()),
        (508, &[0, 0, 0x55, 0xaa]),
    ];
    for (at, part) in parts {
        information.get_mut(at..at + part.len()).unwrap_or_default().copy_from_slice(part);
    }
    for copy in [0, 6] {
        writer.put(copy * SECTOR, &boot)?;
        writer.put((copy + 1) * SECTOR, &information)?;
        // The third sector of boot code: a signature only.
        writer.put((copy + 2) * SECTOR + 510, &[0x55, 0xaa])?;
    }
    let mut bytes: Vec<u8> = [0x0fff_fff8u32, END].iter().flat_map(|entry| entry.to_le_bytes()).collect();
    bytes.extend(writer.next.iter().flat_map(|entry| entry.to_le_bytes()));
    for copy in 0..2 {
        writer.put((RESERVED + copy * table) * SECTOR, &bytes)?;
    }
    Ok(())
}

/// Writes what is below a directory and the directory itself, and returns its first cluster.
fn directory(writer: &mut Writer<'_>, tree: &Tree, path: &[u8], above: Option<u32>, label: Option<[u8; ENTRY]>) -> Result<u32> {
    let wrong = |path: &[u8], why: &str| ImageError::Entry { path: tree::show(path), why: why.into() };
    let time = tree.get(path).map(|entry| entry.mtime).unwrap_or_default();
    let children: Vec<(&[u8], &Entry)> = tree.children_of(path).collect();
    // Short names first, so that the directory's size is known before anything below it is written.
    let mut taken = BTreeSet::new();
    let mut folded = BTreeSet::new();
    let mut names = Vec::new();
    for (path, _) in &children {
        let name = std::str::from_utf8(tree::name(path)).map_err(|_| wrong(path, "a name in FAT is text"))?;
        if name.bytes().any(|byte| byte < 32 || b"\"*/:<>?\\|".contains(&byte))
            || name.ends_with(['.', ' '])
            || name.encode_utf16().count() > 255
        {
            return Err(wrong(path, "a name that FAT does not have"));
        }
        if !folded.insert(name.to_uppercase()) {
            return Err(wrong(path, "a name that differs from another one only in capital letters"));
        }
        if let Some(short) = plain(name) {
            taken.insert(short);
        }
        names.push(name);
    }
    let shorts: Vec<_> = names
        .iter()
        .map(|name| {
            plain(name).map_or_else(
                || {
                    let short = shortened(name, &taken);
                    taken.insert(short);
                    (short, long_entries(name, &short))
                },
                |short| (short, Vec::new()),
            )
        })
        .collect();
    let count = shorts.iter().map(|(_, long)| long.len() + 1).sum::<usize>() + if above.is_some() { 2 } else { 1 };
    if count > 65535 {
        return Err(wrong(path, "more entries than a directory of FAT has"));
    }
    let own = writer.take((count * ENTRY) as u64)?;
    let mut bytes = Vec::with_capacity(count * ENTRY);
    if let Some(above) = above {
        bytes.extend(entry(*b".          ", DIRECTORY, own, 0, time));
        bytes.extend(entry(*b"..         ", DIRECTORY, above, 0, time));
    }
    bytes.extend(label.into_iter().flatten());
    for ((path, child), (short, long)) in children.into_iter().zip(shorts) {
        let (attributes, first, size) = match &child.node {
            // The root is zero to those below it.
            Node::Dir => (DIRECTORY, directory(writer, tree, path, Some(if above.is_some() { own } else { 0 }), None)?, 0),
            Node::File(file) if file.size > u64::from(u32::MAX) => return Err(wrong(path, "4 GiB or more are too large for FAT")),
            Node::File(file) => (ARCHIVE, writer.file(&file.content, file.size)?, file.size),
            Node::Symlink(_) | Node::HardLink(_) => return Err(wrong(path, "FAT has no links")),
        };
        bytes.extend(long.iter().flatten());
        bytes.extend(entry(short, attributes, first, size, child.mtime));
    }
    let offset = writer.geometry.offset(own);
    writer.put(offset, &bytes)?;
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_range() {
        assert_eq!(date_time(Time::seconds(0)), (0x21, 0));
        // 2026-11-21 17:13:04
        assert_eq!(date_time(Time::seconds(1_795_281_184)), (46 << 9 | 11 << 5 | 21, 17 << 11 | 13 << 5 | 2));
        assert_eq!(date_time(Time::seconds(i64::MAX / 2)), (0xff9f, 0xbf7d));
    }

    #[test]
    fn names_are_shortened() {
        assert_eq!(plain("BOOTX64.EFI"), Some(*b"BOOTX64 EFI"));
        assert_eq!(plain("loader.efi"), None);
        let mut taken = BTreeSet::from([*b"LOADER~1EFI"]);
        let short = shortened("loader of something.efi", &taken);
        assert_eq!(&short, b"LOADER~2EFI");
        taken.insert(short);
        assert_eq!(long_entries("loader of something.efi", &short).len(), 2);
        assert_eq!(long_entries("thirteen.char", &short).len(), 1);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let options = Options { size: 40 << 20, label: "EFI".into(), hidden_sectors: 0, seed: Seed::new(b"x") };
        let mut tree = Tree::new();
        tree.insert("", Entry::dir(0o755)).unwrap();
        let mut image = Vec::new();
        write(&tree, &options, &mut image).unwrap();
        let small = write(&tree, &Options { size: 1 << 20, ..options.clone() }, &mut image).unwrap_err();
        assert!(matches!(small, ImageError::Capacity { needed, .. } if needed > 32 << 20 && needed < 34 << 20), "{small}");
        let mut cases = vec![("a", Entry::symlink("b"), "no links"), ("a:b", Entry::dir(0o755), "does not have")];
        cases.push(("big", Entry::host_file(0o644, "/nowhere", 50 << 20), "nowhere"));
        cases.push(("huge", Entry::host_file(0o644, "/nowhere", 5 << 30), "too large"));
        for (path, entry, why) in cases {
            let mut tree = tree.clone();
            tree.insert(path, entry).unwrap();
            let error = write(&tree, &options, &mut Vec::new()).unwrap_err();
            assert!(error.to_string().contains(why) || matches!(error, ImageError::Capacity { .. }), "{error}");
        }
        tree.insert("A", Entry::dir(0o755)).unwrap();
        tree.insert("a", Entry::dir(0o755)).unwrap();
        assert!(write(&tree, &options, &mut Vec::new()).unwrap_err().to_string().contains("capital"));
    }
}
