//! Hash algorithms, hashes and the streaming hasher.

use std::{fmt, io, str::FromStr};

use bstr::{BString, ByteSlice};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use sha2::Digest;

use crate::base32;

/// A hash algorithm, under guix-daemon's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashAlgo {
    /// `md5`, 16 bytes.
    Md5,
    /// `sha1`, 20 bytes.
    Sha1,
    /// `sha256`, 32 bytes.
    Sha256,
    /// `sha512`, 64 bytes.
    Sha512,
    /// `sha3-256`, 32 bytes.
    Sha3_256,
    /// `sha3-512`, 64 bytes.
    Sha3_512,
    /// `blake2s-256`, 32 bytes.
    Blake2s256,
}

impl HashAlgo {
    /// All algorithms.
    pub const ALL: [Self; 7] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512, Self::Sha3_256, Self::Sha3_512, Self::Blake2s256];

    /// Its name in derivations, in the database and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Sha3_256 => "sha3-256",
            Self::Sha3_512 => "sha3-512",
            Self::Blake2s256 => "blake2s-256",
        }
    }

    /// The algorithm of that name, which is compared byte for byte.
    ///
    /// # Errors
    /// [`HashError::UnknownAlgorithm`].
    pub fn parse(name: impl AsRef<[u8]>) -> Result<Self, HashError> {
        let name = name.as_ref();
        Self::ALL.into_iter().find(|algo| algo.name().as_bytes() == name).ok_or_else(|| HashError::UnknownAlgorithm { algo: name.into() })
    }

    /// Length of its hashes in bytes; 64 at most.
    pub const fn size(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Sha3_256 | Self::Blake2s256 => 32,
            Self::Sha512 | Self::Sha3_512 => 64,
        }
    }

    /// libgcrypt's name, which guix-daemon uses in one message.
    const fn gcrypt_name(self) -> &'static str {
        match self {
            Self::Md5 => "MD5",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
            Self::Sha512 => "SHA512",
            Self::Sha3_256 => "SHA3-256",
            Self::Sha3_512 => "SHA3-512",
            Self::Blake2s256 => "BLAKE2S_256",
        }
    }
}

impl fmt::Display for HashAlgo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HashAlgo {
    type Err = HashError;

    fn from_str(name: &str) -> Result<Self, HashError> {
        Self::parse(name)
    }
}

/// Why a text is no hash. The texts are guix-daemon's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HashError {
    /// The algorithm is none of [`HashAlgo::ALL`]: nothing can be checked against such a hash.
    #[error("unknown hash algorithm `{algo}'")]
    UnknownAlgorithm {
        /// The name given, without `r:`.
        algo: BString,
    },
    /// A base 16 hash (as derivations have it) is too short or too long for its algorithm.
    #[error("invalid {} hash '{text}' ({} bytes but expected {})", .algo.gcrypt_name(), .text.len() / 2, .algo.size())]
    Base16Length {
        /// The algorithm it was given for.
        algo: HashAlgo,
        /// The text given.
        text: BString,
    },
    /// The length is neither that of base 16 nor that of base 32.
    #[error("hash `{text}' has wrong length for hash type `{algo}'")]
    Length {
        /// The algorithm it was given for.
        algo: HashAlgo,
        /// The text given.
        text: BString,
    },
    /// Something in it is no digit, or (base 32) sets bits beyond the hash's end.
    #[error("invalid hash `{text}'")]
    Digit {
        /// The text given.
        text: BString,
    },
    /// So many bytes are not a hash of that algorithm.
    #[error("a {algo} hash has {} bytes, not {len}", .algo.size())]
    Size {
        /// The algorithm it was given for.
        algo: HashAlgo,
        /// The number of bytes given.
        len: usize,
    },
    /// An `ALGORITHM:HASH` has no colon.
    #[error("hash `{text}' does not name its algorithm")]
    NoAlgorithm {
        /// The text given.
        text: BString,
    },
}

const MAX_SIZE: usize = 64;

/// A hash: an algorithm and [`HashAlgo::size`] bytes. Displayed as `ALGORITHM:BASE16`, the form of the database.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash {
    algo: HashAlgo,
    /// Zero beyond the algorithm's size, so that comparison can be derived.
    bytes: [u8; MAX_SIZE],
}

impl Hash {
    /// A hash from its bytes.
    ///
    /// # Errors
    /// [`HashError::Size`] when there are more or fewer than [`HashAlgo::size`].
    pub fn from_bytes(algo: HashAlgo, bytes: &[u8]) -> Result<Self, HashError> {
        if bytes.len() != algo.size() {
            return Err(HashError::Size { algo, len: bytes.len() });
        }
        let mut padded = [0; MAX_SIZE];
        for (to, from) in padded.iter_mut().zip(bytes) {
            *to = *from;
        }
        Ok(Self { algo, bytes: padded })
    }

    /// The hash of `data`.
    pub fn of(algo: HashAlgo, data: impl AsRef<[u8]>) -> Self {
        let mut hasher = Hasher::new(algo);
        hasher.update(data.as_ref());
        hasher.finish()
    }

    /// The SHA-256 of `data`.
    pub fn sha256(data: impl AsRef<[u8]>) -> Self {
        Self::of(HashAlgo::Sha256, data)
    }

    /// Its algorithm.
    pub const fn algo(&self) -> HashAlgo {
        self.algo
    }

    /// Its bytes, [`HashAlgo::size`] of them.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.algo.size()).unwrap_or(&self.bytes)
    }

    /// Base 16 in lower case, without the algorithm.
    pub fn base16(&self) -> String {
        HEXLOWER.encode(self.as_bytes())
    }

    /// Nix's base 32, without the algorithm.
    pub fn base32(&self) -> String {
        base32::encode(self.as_bytes())
    }

    /// Reads base 16 of either case, the form that derivations have.
    ///
    /// # Errors
    /// [`HashError::Base16Length`], [`HashError::Digit`].
    pub fn parse_base16(algo: HashAlgo, text: impl AsRef<[u8]>) -> Result<Self, HashError> {
        let text = text.as_ref();
        if text.len() != algo.size() * 2 {
            return Err(HashError::Base16Length { algo, text: text.into() });
        }
        let bytes = HEXLOWER_PERMISSIVE.decode(text).map_err(|_| HashError::Digit { text: text.into() })?;
        Self::from_bytes(algo, &bytes)
    }

    /// Reads base 16 or nix's base 32, told apart by length.
    ///
    /// # Errors
    /// [`HashError::Length`], [`HashError::Digit`].
    pub fn parse(algo: HashAlgo, text: impl AsRef<[u8]>) -> Result<Self, HashError> {
        let text = text.as_ref();
        if text.len() == algo.size() * 2 {
            Self::parse_base16(algo, text)
        } else if text.len() == base32::encoded_len(algo.size()) {
            let bytes = base32::decode(text).ok_or_else(|| HashError::Digit { text: text.into() })?;
            Self::from_bytes(algo, &bytes)
        } else {
            Err(HashError::Length { algo, text: text.into() })
        }
    }

    /// Reads `ALGORITHM:HASH`, the hash as in [`Hash::parse`].
    ///
    /// # Errors
    /// [`HashError::NoAlgorithm`], [`HashError::UnknownAlgorithm`], and those of [`Hash::parse`].
    pub fn parse_prefixed(text: impl AsRef<[u8]>) -> Result<Self, HashError> {
        let text = text.as_ref();
        let (algo, hash) = text.split_once_str(":").ok_or_else(|| HashError::NoAlgorithm { text: text.into() })?;
        Self::parse(HashAlgo::parse(algo)?, hash)
    }

    /// The hash folded to `size` bytes: byte `i` is XORed onto byte `i mod size`. Empty when `size` is 0.
    pub fn compress(&self, size: usize) -> Vec<u8> {
        let mut folded = vec![0; size];
        if size > 0 {
            for chunk in self.as_bytes().chunks(size) {
                for (to, from) in folded.iter_mut().zip(chunk) {
                    *to ^= *from;
                }
            }
        }
        folded
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algo, self.base16())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        Self::parse_prefixed(text)
    }
}

#[derive(Clone)]
enum State {
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
    Sha3_256(sha3::Sha3_256),
    Sha3_512(sha3::Sha3_512),
    Blake2s256(blake2::Blake2s256),
}

/// Hashes a stream piece by piece; also an [`io::Write`] that never fails. A clone goes on from the same point.
#[derive(Clone)]
pub struct Hasher {
    state: State,
    count: u64,
}

/// The one place that spells out the algorithms' states.
macro_rules! each_state {
    ($state:expr, $inner:ident => $body:expr) => {
        match $state {
            State::Md5($inner) => $body,
            State::Sha1($inner) => $body,
            State::Sha256($inner) => $body,
            State::Sha512($inner) => $body,
            State::Sha3_256($inner) => $body,
            State::Sha3_512($inner) => $body,
            State::Blake2s256($inner) => $body,
        }
    };
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new(algo: HashAlgo) -> Self {
        let state = match algo {
            HashAlgo::Md5 => State::Md5(md5::Md5::new()),
            HashAlgo::Sha1 => State::Sha1(sha1::Sha1::new()),
            HashAlgo::Sha256 => State::Sha256(sha2::Sha256::new()),
            HashAlgo::Sha512 => State::Sha512(sha2::Sha512::new()),
            HashAlgo::Sha3_256 => State::Sha3_256(sha3::Sha3_256::new()),
            HashAlgo::Sha3_512 => State::Sha3_512(sha3::Sha3_512::new()),
            HashAlgo::Blake2s256 => State::Blake2s256(blake2::Blake2s256::new()),
        };
        Self { state, count: 0 }
    }

    /// Its algorithm.
    pub const fn algo(&self) -> HashAlgo {
        match self.state {
            State::Md5(_) => HashAlgo::Md5,
            State::Sha1(_) => HashAlgo::Sha1,
            State::Sha256(_) => HashAlgo::Sha256,
            State::Sha512(_) => HashAlgo::Sha512,
            State::Sha3_256(_) => HashAlgo::Sha3_256,
            State::Sha3_512(_) => HashAlgo::Sha3_512,
            State::Blake2s256(_) => HashAlgo::Blake2s256,
        }
    }

    /// Takes more bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.count = self.count.saturating_add(data.len() as u64);
        each_state!(&mut self.state, inner => inner.update(data));
    }

    /// How many bytes it has seen.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The hash of all that it has seen.
    pub fn finish(self) -> Hash {
        let algo = self.algo();
        let mut bytes = [0; MAX_SIZE];
        each_state!(self.state, inner => {
            for (to, from) in bytes.iter_mut().zip(inner.finalize().iter()) {
                *to = *from;
            }
        });
        Hash { algo, bytes }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").field("algo", &self.algo()).field("count", &self.count).finish_non_exhaustive()
    }
}

impl io::Write for Hasher {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refusals() {
        let parse = |text: &str| Hash::parse(HashAlgo::Sha1, text).unwrap_err().to_string();
        assert_eq!(parse("x"), "hash `x' has wrong length for hash type `sha1'");
        let odd = "g".repeat(40);
        assert_eq!(parse(&odd), format!("invalid hash `{odd}'"));
        let odd = "e".repeat(32);
        assert_eq!(parse(&odd), format!("invalid hash `{odd}'"));
        assert_eq!("sha257:".parse::<Hash>().unwrap_err().to_string(), "unknown hash algorithm `sha257'");
        assert_eq!("sha256".parse::<Hash>().unwrap_err().to_string(), "hash `sha256' does not name its algorithm");
        assert!(Hash::from_bytes(HashAlgo::Md5, &[0; 15]).is_err());
    }

    #[test]
    fn folding() {
        let hash = Hash::from_bytes(HashAlgo::Sha256, &(1..=32).collect::<Vec<u8>>()).unwrap();
        let folded: Vec<u8> = (1..=20).map(|i| if i <= 12 { i ^ (i + 20) } else { i }).collect();
        assert_eq!(hash.compress(20), folded);
        assert_eq!(hash.compress(0), []);
        assert_eq!(hash.compress(40), [hash.as_bytes(), &[0; 8]].concat());
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(data in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
            for algo in HashAlgo::ALL {
                let (one, two) = data.split_at(at.index(data.len() + 1));
                let mut hasher = Hasher::new(algo);
                hasher.write_all(one).unwrap();
                let fork = hasher.clone();
                hasher.update(two);
                prop_assert_eq!((hasher.count(), hasher.algo()), (data.len() as u64, algo));
                prop_assert_eq!(hasher.finish(), Hash::of(algo, &data));
                prop_assert_eq!(fork.finish(), Hash::of(algo, one));
            }
        }

        #[test]
        fn any_text(text in ".{0,130}") {
            for algo in HashAlgo::ALL {
                let _ = Hash::parse(algo, &text);
            }
            let _ = Hash::parse_prefixed(&text);
        }
    }
}
