//! Values for tests, fuzzers and sweeps over the table of operations: deterministic, from a seed.

use bstr::BString;
use fruix_drv::{StoreDir, StorePath};

/// A source of values. The same seed gives the same values.
#[derive(Debug, Clone)]
pub struct Samples {
    state: u64,
    store_dir: StoreDir,
}

impl Samples {
    /// Values for a seed; paths that are kept whole lie in `store_dir`.
    pub fn new(seed: u64, store_dir: StoreDir) -> Self {
        Samples { state: seed, store_dir }
    }

    /// The store directory of the values.
    pub fn store_dir(&self) -> &StoreDir {
        &self.store_dir
    }

    /// 64 bits (SplitMix64).
    pub fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.word().checked_rem(bound).unwrap_or(0)
    }

    /// One in two.
    pub fn coin(&mut self) -> bool {
        self.word() & 1 == 1
    }

    /// Up to `max` bytes of any value.
    pub fn bytes(&mut self, max: u64) -> BString {
        let length = self.below(max.saturating_add(1));
        (0..length).map(|_| self.word().to_le_bytes()[0]).collect::<Vec<u8>>().into()
    }

    /// Up to `max` bytes of what names are made of.
    pub fn name(&mut self, max: u64) -> String {
        const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789-+_?=";
        let length = self.below(max).saturating_add(1);
        (0..length).map(|_| char::from(self.pick(LETTERS).copied().unwrap_or(b'x'))).collect()
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        usize::try_from(self.below(items.len() as u64)).ok().and_then(|index| items.get(index))
    }

    /// A store path.
    pub fn store_path(&mut self) -> StorePath {
        const DIGITS: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";
        loop {
            let hash: String = (0..32).map(|_| char::from(self.pick(DIGITS).copied().unwrap_or(b'0'))).collect();
            let end = if self.below(3) == 0 { ".drv" } else { "" };
            if let Ok(path) = StorePath::from_base_name(format!("{hash}-{}{end}", self.name(20))) {
                return path;
            }
        }
    }
}
