//! Hashing an archive and finding references in it, in one pass.
//!
//! A path refers to another if the other's hash part, 32 digits of base 32, occurs anywhere in its archive: in contents, file names or
//! targets of symbolic links, and across the borders between them.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};
use std::path::Path;

use fruix_drv::store_path::HASH_PART_LEN;
use fruix_drv::{Hash, HashAlgo, Hasher, StorePath, base32};

use crate::fsutil::{Place, with_place};
use crate::{Error, Result, nar_fs};

type HashPart = [u8; HASH_PART_LEN];

/// What one pass over a path found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// SHA-256 of the archive.
    pub nar_hash: Hash,
    /// Bytes of the archive.
    pub nar_size: u64,
    /// Those of the candidates whose hash part occurs in it.
    pub references: BTreeSet<StorePath>,
}

/// Hashes the archive of `path` and looks for references to `candidates` in it.
///
/// # Errors
/// Those of [`crate::dump_nar`], and [`Error::BadReference`] when two candidates have the same hash part.
pub fn scan(path: &Path, candidates: &BTreeSet<StorePath>) -> Result<Scanned> {
    with_place(path, |place| scan_at(place, candidates))
}

/// Like [`scan`], for something in an open directory.
///
/// # Errors
/// Those of [`scan`].
pub fn scan_at(place: &Place<'_>, candidates: &BTreeSet<StorePath>) -> Result<Scanned> {
    let mut scanner = Scanner::new(candidates)?;
    nar_fs::dump_at(place, &mut scanner)?;
    Ok(scanner.finish())
}

/// The SHA-256 of the archive of `path`, and its size in bytes.
///
/// # Errors
/// Those of [`crate::dump_nar`].
pub fn hash_path(path: &Path) -> Result<(Hash, u64)> {
    with_place(path, |place| hash_at(place, HashAlgo::Sha256))
}

/// The hash of the archive of something in an open directory, and its size in bytes.
///
/// # Errors
/// Those of [`crate::dump_nar`].
pub fn hash_at(place: &Place<'_>, algo: HashAlgo) -> Result<(Hash, u64)> {
    let mut hasher = Hasher::new(algo);
    nar_fs::dump_at(place, &mut hasher)?;
    let size = hasher.count();
    Ok((hasher.finish(), size))
}

/// Takes the bytes of an archive, in pieces of any size.
pub struct Scanner {
    hasher: Hasher,
    search: Search,
}

impl Scanner {
    /// Looks for `candidates`.
    ///
    /// # Errors
    /// [`Error::BadReference`] when two of them have the same hash part.
    pub fn new(candidates: &BTreeSet<StorePath>) -> Result<Scanner> {
        Ok(Scanner { hasher: Hasher::new(HashAlgo::Sha256), search: Search::new(candidates)? })
    }

    /// What was found in the bytes written.
    pub fn finish(self) -> Scanned {
        let nar_size = self.hasher.count();
        Scanned { nar_hash: self.hasher.finish(), nar_size, references: self.search.found }
    }
}

impl Write for Scanner {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.search.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Search {
    missing: HashMap<HashPart, StorePath>,
    found: BTreeSet<StorePath>,
    /// The last bytes of what came before, one less than a hash part has.
    tail: Vec<u8>,
}

const TAIL: usize = HASH_PART_LEN - 1;

const IS_DIGIT: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        // The loop stays below 256.
        table[byte] = base32::is_digit(byte as u8);
        byte += 1;
    }
    table
};

fn is_digit(byte: u8) -> bool {
    IS_DIGIT.get(usize::from(byte)).copied().unwrap_or(false)
}

impl Search {
    fn new(candidates: &BTreeSet<StorePath>) -> Result<Search> {
        let mut missing = HashMap::with_capacity(candidates.len());
        for path in candidates {
            let bad = || Error::BadReference { path: path.base_name().to_owned() };
            let part = HashPart::try_from(path.hash_part().as_bytes()).map_err(|_| bad())?;
            if missing.insert(part, path.clone()).is_some() {
                return Err(bad());
            }
        }
        Ok(Search { missing, found: BTreeSet::new(), tail: Vec::with_capacity(2 * TAIL) })
    }

    fn update(&mut self, bytes: &[u8]) {
        if self.missing.is_empty() {
            return;
        }
        // A hash part may lie across the border.
        let mut border = std::mem::take(&mut self.tail);
        let kept = border.len();
        border.extend_from_slice(bytes.get(..TAIL).unwrap_or(bytes));
        if kept > 0 {
            self.search(&border);
        }
        self.search(bytes);
        if bytes.len() >= TAIL {
            border.clear();
            border.extend_from_slice(bytes.get(bytes.len() - TAIL..).unwrap_or_default());
        } else {
            border.drain(..border.len().saturating_sub(TAIL));
        }
        self.tail = border;
    }

    fn search(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while let Some(window) = bytes.get(at..at + HASH_PART_LEN) {
            // From the end, since a byte that is no digit rules out all places before it.
            match window.iter().rposition(|byte| !is_digit(*byte)) {
                Some(odd) => at += odd + 1,
                None => at = self.search_digits(bytes, at),
            }
        }
    }

    /// Goes on from `at`, where a hash part could be, as long as digits follow. Returns where the next could begin.
    fn search_digits(&mut self, bytes: &[u8], mut at: usize) -> usize {
        while let Some(window) = bytes.get(at..at + HASH_PART_LEN) {
            if let Some(path) = self.missing.remove(window) {
                self.found.insert(path);
            }
            match bytes.get(at + HASH_PART_LEN) {
                Some(next) if is_digit(*next) => at += 1,
                _ => return at + HASH_PART_LEN + 1,
            }
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(part: &str) -> StorePath {
        StorePath::from_base_name(format!("{part}-x")).unwrap()
    }

    fn found(candidates: &BTreeSet<StorePath>, bytes: &[u8], cuts: &[usize]) -> BTreeSet<StorePath> {
        let mut scanner = Scanner::new(candidates).unwrap();
        let mut rest = bytes;
        for cut in cuts {
            let (piece, after) = rest.split_at(rest.len().min(*cut));
            scanner.write_all(piece).unwrap();
            rest = after;
        }
        scanner.write_all(rest).unwrap();
        let scanned = scanner.finish();
        assert_eq!((scanned.nar_hash, scanned.nar_size), (Hash::sha256(bytes), bytes.len() as u64));
        scanned.references
    }

    /// Few digits, so that parts overlap, and bytes that are none.
    fn digits() -> impl Strategy<Value = String> {
        proptest::string::string_regex("[01]{32}").unwrap()
    }

    proptest! {
        #[test]
        fn finds_what_is_there(
            parts in proptest::collection::btree_set(digits(), 1..6),
            text in proptest::collection::vec(prop_oneof![3 => Just(None), 2 => Just(Some(0_usize)), 1 => (0..6_usize).prop_map(Some)], 0..8),
            noise in proptest::string::string_regex("[01e ]{0,40}").unwrap(),
            cuts in proptest::collection::vec(0..70_usize, 0..20),
        ) {
            let parts: Vec<String> = parts.into_iter().collect();
            let mut bytes = Vec::new();
            for piece in text {
                match piece.and_then(|index| parts.get(index)) {
                    Some(part) => bytes.extend_from_slice(part.as_bytes()),
                    None => bytes.extend_from_slice(noise.as_bytes()),
                }
            }
            let candidates: BTreeSet<StorePath> = parts.iter().map(|part| candidate(part)).collect();
            let expected: BTreeSet<StorePath> = candidates
                .iter()
                .filter(|path| bytes.windows(32).any(|window| window == path.hash_part().as_bytes()))
                .cloned()
                .collect();
            prop_assert_eq!(found(&candidates, &bytes, &cuts), expected);
        }
    }

    #[test]
    fn byte_by_byte() {
        let part = "0123456789abcdfghijklmnpqrsvwxyz";
        let candidates = BTreeSet::from([candidate(part)]);
        let text = format!("zz{part}yy");
        assert_eq!(found(&candidates, text.as_bytes(), &[1; 40]), candidates);
        assert!(found(&candidates, text.replace('m', "e").as_bytes(), &[1; 40]).is_empty());
    }
}
