//! What is found in the database at one stroke, in memory: names in order, the nodes, the rows they stand for, and what leads from one to another.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

/// An edge list by source.
#[derive(Debug, Default)]
pub(crate) struct Edges {
    /// Where the targets of each node begin; one more than there are nodes.
    starts: Vec<usize>,
    targets: Vec<u32>,
}

impl Edges {
    pub(crate) fn new(nodes: usize, pairs: &[(u32, u32)]) -> Edges {
        let mut starts = vec![0_usize; nodes + 1];
        for (from, _) in pairs {
            if let Some(count) = starts.get_mut(*from as usize + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        let mut next = starts.clone();
        let mut targets = vec![0; pairs.len()];
        for (from, to) in pairs {
            if let Some(place) = next.get_mut(*from as usize) {
                if let Some(target) = targets.get_mut(*place) {
                    *target = *to;
                }
                *place += 1;
            }
        }
        Edges { starts, targets }
    }

    /// Where the edges of `node` lead.
    pub(crate) fn of(&self, node: u32) -> &[u32] {
        let range = self.starts.get(node as usize).zip(self.starts.get(node as usize + 1));
        range.and_then(|(start, end)| self.targets.get(*start..*end)).unwrap_or_default()
    }
}

/// For numbers that nobody can choose many of to his liking: those of rows, and hash parts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowHasher(u64);

impl Hasher for RowHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_i64(i64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }

    fn write_i64(&mut self, row: i64) {
        self.write_u64(row as u64);
    }
}

impl BuildHasher for RowHasher {
    type Hasher = RowHasher;

    fn build_hasher(&self) -> RowHasher {
        RowHasher(0)
    }
}

/// The first bytes of a name, a quarter of the hash part of a store path.
fn beginning(name: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
    u64::from_ne_bytes(bytes)
}

/// The nodes by the numbers of their rows.
#[derive(Debug)]
pub(crate) enum Nodes {
    /// By the number itself; [`Nodes::NONE`] where there is none.
    Dense(Vec<u32>),
    /// After many rows have gone.
    Sparse(HashMap<i64, u32, RowHasher>),
}

impl Nodes {
    const NONE: u32 = u32::MAX;

    /// The nodes are numbered as `rows` are, none of which is there twice.
    pub(crate) fn new(rows: &[i64]) -> Nodes {
        let end = rows.iter().map(|row| usize::try_from(*row).unwrap_or(usize::MAX)).max().map_or(0, |last| last.saturating_add(1));
        if end > rows.len().saturating_mul(8) {
            return Nodes::Sparse(rows.iter().copied().zip(0..).collect());
        }
        let mut nodes = vec![Nodes::NONE; end];
        for (row, node) in rows.iter().zip(0..) {
            if let Some(place) = usize::try_from(*row).ok().and_then(|row| nodes.get_mut(row)) {
                *place = node;
            }
        }
        Nodes::Dense(nodes)
    }

    pub(crate) fn get(&self, row: i64) -> Option<u32> {
        match self {
            Nodes::Dense(nodes) => usize::try_from(row).ok().and_then(|row| nodes.get(row)).copied().filter(|node| *node != Nodes::NONE),
            Nodes::Sparse(nodes) => nodes.get(&row).copied(),
        }
    }
}

/// The names of nodes, in order.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// All of them, and where each ends.
    text: Vec<u8>,
    ends: Vec<usize>,
    /// A node by the beginning of its name; of several with the same beginning, one.
    by_beginning: HashMap<u64, u32, RowHasher>,
}

impl Names {
    /// The name of the next node, which comes after all others in order.
    pub(crate) fn push(&mut self, name: &[u8]) {
        self.by_beginning.insert(beginning(name), self.ends.len() as u32);
        self.text.extend_from_slice(name);
        self.ends.push(self.text.len());
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn get(&self, node: u32) -> &[u8] {
        let node = node as usize;
        let start = node.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(node).and_then(|end| self.text.get(start..*end)).unwrap_or_default()
    }

    /// The node of that name.
    pub(crate) fn find(&self, name: &[u8]) -> Option<u32> {
        let node = *self.by_beginning.get(&beginning(name))?;
        if self.get(node) == name {
            return Some(node);
        }
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(middle as u32).cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(middle as u32),
            }
        }
        None
    }
}
