//! Free maps and what is counted from them: by the writer to write it, by the checker to compare.

use super::format::count;
use super::geometry::Geometry;

/// What the free map of a group comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Free blocks and free fragments (in blocks that are not wholly free), at their places in a summary; the rest is zero.
    pub(crate) summary: [i32; 4],
    /// How many runs of free fragments of each length there are.
    pub(crate) runs: [u32; 8],
    /// Which blocks are wholly free, a bit each.
    pub(crate) clusters: Vec<u8>,
    /// How many runs of free blocks of each length there are, from none to the longest that is counted.
    pub(crate) cluster_sums: Vec<u32>,
}

pub(crate) fn bit(map: &[u8], at: u64) -> bool {
    usize::try_from(at / 8).ok().and_then(|byte| map.get(byte)).is_some_and(|byte| byte >> (at % 8) & 1 != 0)
}

pub(crate) fn set(map: &mut [u8], at: u64, value: bool) {
    if let Some(byte) = usize::try_from(at / 8).ok().and_then(|byte| map.get_mut(byte)) {
        *byte = *byte & !(1 << (at % 8)) | u8::from(value) << (at % 8);
    }
}

/// Bytes of a map of so many bits. Groups are bounded by a block's size, so this fits.
pub(crate) fn bytes(bits: u64) -> usize {
    usize::try_from(bits.div_ceil(8)).unwrap_or(usize::MAX)
}

/// The map of a group in which nothing but the file system's own structures is used.
pub(crate) fn empty(geometry: &Geometry, group: u64) -> Vec<u8> {
    let mut map = vec![0; bytes(geometry.fpg)];
    for area in geometry.data_areas(group) {
        for at in area {
            set(&mut map, at, true);
        }
    }
    map
}

pub(crate) fn counted(geometry: &Geometry, group: u64, map: &[u8]) -> Counted {
    let fragments = geometry.group_fragments(group);
    let longest = geometry.contigsumsize;
    let mut counted = Counted {
        summary: [0; 4],
        runs: [0; 8],
        clusters: vec![0; bytes(geometry.fpg / geometry.frag)],
        cluster_sums: vec![0; usize::try_from(longest + 1).unwrap_or(1)],
    };
    let mut cluster = 0u64;
    let mut end_cluster = |cluster: &mut u64| {
        let length = usize::try_from((*cluster).min(longest)).unwrap_or(0);
        if length > 0
            && let Some(sum) = counted.cluster_sums.get_mut(length)
        {
            *sum += 1;
        }
        *cluster = 0;
    };
    let (mut blocks, mut free) = (0, 0);
    for block in 0..fragments.div_ceil(geometry.frag) {
        let start = block * geometry.frag;
        let here = geometry.frag.min(fragments - start);
        // With eight fragments a block, as usual, a block is a byte of the map.
        let byte = usize::try_from(block).ok().and_then(|block| map.get(block)).copied().filter(|_| geometry.frag == 8 && here == 8);
        if byte == Some(0) {
            end_cluster(&mut cluster);
            continue;
        }
        let all = byte == Some(0xff) || here == geometry.frag && (0..here).all(|at| bit(map, start + at));
        if all {
            blocks += 1;
            cluster += 1;
            set(&mut counted.clusters, block, true);
            continue;
        }
        end_cluster(&mut cluster);
        let mut run = 0usize;
        for at in 0..=here {
            if at < here && bit(map, start + at) {
                run += 1;
                free += 1;
            } else if run > 0 {
                if let Some(runs) = counted.runs.get_mut(run) {
                    *runs += 1;
                }
                run = 0;
            }
        }
    }
    end_cluster(&mut cluster);
    counted.summary[count::BLOCKS] = blocks;
    counted.summary[count::FRAGMENTS] = free;
    counted
}
