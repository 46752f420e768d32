//! A sink that makes a qcow2 file (version 3): only clusters that were written take room.
//!
//! Facts: "Qcow2 Image File Format" of QEMU's documentation.

use std::collections::BTreeMap;

use super::{ImageError, Result, Sink};

/// 2^16 bytes, as QEMU's tools choose by themselves.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of eight bytes in a cluster.
const ENTRIES: u64 = CLUSTER / 8;
/// Reference counts of two bytes in a cluster.
const COUNTS: u64 = CLUSTER / 2;
/// In a table: the cluster belongs to this entry alone.
const COPIED: u64 = 1 << 63;

/// Writes a disk into a qcow2 file. [`finish`](Qcow2::finish) writes the tables: without it there is no image.
#[derive(Debug)]
pub struct Qcow2<S> {
    inner: S,
    size: u64,
    /// By the disk's cluster: the file's.
    clusters: BTreeMap<u64, u64>,
    next: u64,
}

impl<S: Sink> Qcow2<S> {
    /// A disk of `size` bytes into a new, empty file.
    pub fn new(inner: S, size: u64) -> Qcow2<S> {
        // The first cluster is the header's.
        Qcow2 { inner, size, clusters: BTreeMap::new(), next: 1 }
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.inner.write_at(offset, bytes).map_err(ImageError::io("writing", offset))
    }

    /// Writes tables and header, and returns how long the file is.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn finish(mut self) -> Result<u64> {
        let tables = self.size.div_ceil(CLUSTER).div_ceil(ENTRIES).max(1);
        let mut first = vec![0u64; usize::try_from(tables).map_err(|_| ImageError::Option("a disk too large for this machine".into()))?];
        let clusters = std::mem::take(&mut self.clusters);
        let mut left = clusters.iter().peekable();
        let big = |numbers: &[u64]| -> Vec<u8> { numbers.iter().flat_map(|number| number.to_be_bytes()).collect() };
        while let Some((cluster, _)) = left.peek() {
            let index = **cluster / ENTRIES;
            let mut table = vec![0u64; ENTRIES as usize];
            while let Some((cluster, place)) = left.next_if(|(cluster, _)| **cluster / ENTRIES == index) {
                if let Some(slot) = usize::try_from(cluster % ENTRIES).ok().and_then(|at| table.get_mut(at)) {
                    *slot = (place * CLUSTER) | COPIED;
                }
            }
            if let Some(slot) = usize::try_from(index).ok().and_then(|at| first.get_mut(at)) {
                *slot = (self.next * CLUSTER) | COPIED;
            }
            self.put(self.next * CLUSTER, &big(&table))?;
            self.next += 1;
        }
        let first_place = self.next;
        self.put(first_place * CLUSTER, &big(&first))?;
        self.next += (tables * 8).div_ceil(CLUSTER);
        // Counts for everything, also for themselves and their table.
        let counts_table = self.next;
        let (mut blocks, mut table_clusters) = (0, 0);
        loop {
            let all = counts_table + table_clusters + blocks;
            let (more_blocks, more_table) = (all.div_ceil(COUNTS), (all.div_ceil(COUNTS) * 8).div_ceil(CLUSTER));
            if (more_blocks, more_table) == (blocks, table_clusters) {
                break;
            }
            (blocks, table_clusters) = (more_blocks, more_table);
        }
        let first_block = counts_table + table_clusters;
        let places: Vec<u64> = (first_block..first_block + blocks).map(|block| block * CLUSTER).collect();
        self.put(counts_table * CLUSTER, &big(&places))?;
        let end = first_block + blocks;
        for (index, place) in (0u64..).zip(places) {
            let here = (end - index * COUNTS).min(COUNTS);
            let mut counts: Vec<u8> = (0..here).flat_map(|_| 1u16.to_be_bytes()).collect();
            counts.resize(CLUSTER as usize, 0);
            self.put(place, &counts)?;
        }
        let mut header = Vec::with_capacity(112);
        header.extend(b"QFI\xfb");
        header.extend(3u32.to_be_bytes());
        header.extend([0; 12]); // No backing file.
        header.extend(CLUSTER_BITS.to_be_bytes());
        header.extend(self.size.to_be_bytes());
        header.extend([0; 4]); // Not encrypted.
        header.extend(u32::try_from(tables).unwrap_or(u32::MAX).to_be_bytes());
        header.extend((first_place * CLUSTER).to_be_bytes());
        header.extend((counts_table * CLUSTER).to_be_bytes());
        header.extend(u32::try_from(table_clusters).unwrap_or(u32::MAX).to_be_bytes());
        header.extend([0; 12]); // No snapshots.
        header.extend([0; 24]); // No features.
        header.extend(4u32.to_be_bytes()); // Counts of 2^4 bits.
        header.extend(104u32.to_be_bytes()); // The header's length; eight zeros end its extensions.
        header.extend([0; 8]);
        self.put(0, &header)?;
        Ok(end * CLUSTER)
    }
}

impl<S: Sink> Sink for Qcow2<S> {
    fn write_at(&mut self, mut offset: u64, mut bytes: &[u8]) -> std::io::Result<()> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.size) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        while !bytes.is_empty() {
            let within = offset % CLUSTER;
            let length = usize::try_from(CLUSTER - within).unwrap_or(usize::MAX).min(bytes.len());
            let (now, rest) = bytes.split_at(length);
            let next = self.next;
            let place = *self.clusters.entry(offset / CLUSTER).or_insert(next);
            if place == next {
                self.next += 1;
            }
            self.inner.write_at(place * CLUSTER + within, now)?;
            offset += length as u64;
            bytes = rest;
        }
        Ok(())
    }
}
