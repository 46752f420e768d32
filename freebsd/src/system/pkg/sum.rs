//! The sums of catalogues and manifests: `KIND$SUM`, or 64 digits for a SHA-256 (`pkg_checksum.c`). Up to pkg 2.7 they are SHA-256, from 2.8 on BLAKE2b.

use std::fmt;

use blake2::{Blake2b512, Blake2s256};
use sha2::{Digest as _, Sha256};

/// How a sum is made and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SHA-256 in base 16.
    Sha256,
    /// SHA-256 in base 32.
    Sha256Base32,
    /// BLAKE2b, 64 bytes, in base 32.
    Blake2b,
    /// BLAKE2s, 32 bytes, in base 32.
    Blake2s,
}

/// Each kind with its number.
const KINDS: [(&str, Kind); 4] = [("0", Kind::Sha256Base32), ("1", Kind::Sha256), ("2", Kind::Blake2b), ("5", Kind::Blake2s)];

/// A sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// What it is.
    pub kind: Kind,
    text: String,
}

impl Sum {
    /// Reads a sum.
    ///
    /// # Errors
    /// That its kind is not known, or that it is not as long as one.
    pub fn parse(text: &str) -> Result<Sum, String> {
        let (number, sum) = text.split_once('$').unwrap_or(("1", text));
        let Some((_, kind)) = KINDS.into_iter().find(|(known, _)| *known == number) else {
            let number: String = number.chars().take(8).filter(char::is_ascii_alphanumeric).collect();
            return Err(format!("has a sum of kind `{number}', and 0, 1, 2 and 5 are known"));
        };
        let text = if kind == Kind::Sha256 { sum.to_ascii_lowercase() } else { sum.to_owned() };
        if text.len() != Hasher::new(kind).finish().text.len() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err("has a sum that is too short, too long or no text".into());
        }
        Ok(Sum { kind, text })
    }

    /// Its digits, of a SHA-256 in base 16.
    #[must_use]
    pub fn sha256(&self) -> Option<&str> {
        (self.kind == Kind::Sha256).then_some(self.text.as_str())
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match KINDS.iter().find(|(_, kind)| *kind == self.kind) {
            Some((number, kind)) if *kind != Kind::Sha256 => write!(f, "{number}${}", self.text),
            _ => f.write_str(&self.text),
        }
    }
}

/// Makes a sum.
#[derive(Clone, Debug)]
pub struct Hasher {
    kind: Kind,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Sha256(Sha256),
    Blake2b(Box<Blake2b512>),
    Blake2s(Blake2s256),
}

impl Hasher {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(kind: Kind) -> Hasher {
        let state = match kind {
            Kind::Sha256 | Kind::Sha256Base32 => State::Sha256(Sha256::new()),
            Kind::Blake2b => State::Blake2b(Box::default()),
            Kind::Blake2s => State::Blake2s(Blake2s256::new()),
        };
        Hasher { kind, state }
    }

    /// More bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(hash) => hash.update(bytes),
            State::Blake2b(hash) => hash.update(bytes),
            State::Blake2s(hash) => hash.update(bytes),
        }
    }

    /// The sum.
    #[must_use]
    pub fn finish(self) -> Sum {
        let bytes = match self.state {
            State::Sha256(hash) => hash.finalize().to_vec(),
            State::Blake2b(hash) => hash.finalize().to_vec(),
            State::Blake2s(hash) => hash.finalize().to_vec(),
        };
        let text = if self.kind == Kind::Sha256 { hex(&bytes) } else { base32(&bytes) };
        Sum { kind: self.kind, text }
    }
}

/// The sum that a symbolic link has: that of its target; of an absolute one without the slash, and with a NUL at the end.
#[must_use]
pub fn of_link(kind: Kind, target: &[u8]) -> Sum {
    let mut hash = Hasher::new(kind);
    match target.strip_prefix(b"/") {
        Some(rest) => {
            hash.update(rest);
            hash.update(b"\0");
        }
        None => hash.update(target),
    }
    hash.finish()
}

/// Bytes in base 16.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// Bytes in pkg's base 32: the lowest bits first, z-base-32's letters. Of the last group, as many letters as have bits.
fn base32(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";
    let letter = |bits: u32| char::from(LETTERS.get((bits & 31) as usize).copied().unwrap_or(b'y'));
    let (mut text, mut bits, mut count) = (String::new(), 0_u32, 0);
    for byte in bytes {
        bits |= u32::from(*byte) << count;
        count += 8;
        while count >= 5 {
            text.push(letter(bits));
            bits >>= 5;
            count -= 5;
        }
    }
    if count > 0 {
        text.push(letter(bits));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums as pkg 2.8.99 wrote them of a script `#!/bin/sh`, of a link to `hello` and of one to `/usr/local/bin/hello`.
    #[test]
    fn sums_are_those_of_pkg() {
        let mut hash = Hasher::new(Kind::Blake2b);
        hash.update(b"#!/bin/sh\n");
        assert_eq!(
            hash.finish().to_string(),
            "2$g96bccogdnmip7a3w8wwy84wzurzapfmujhdd9ouj1sp8nwbip1eotzo1xy61pijs9s8rryow8kywqnfja1w1nqj8gp9tizo1x3fp8d"
        );
        for (target, sum) in [
            ("hello", "2$r9u8kps8ztxdun51jy4xom6y3w1pkfgd9ikmtjhmsywkeozdb1jzioghtithk5szyorjmx1ibbuyb6h3d7emskqj5p39n4jwuiaaykn"),
            (
                "/usr/local/bin/hello",
                "2$pzpba3zxd319jfcy8uegwx7kjoueu6eezdntfsd9c9ym5ri5o9njuiqs4ba8imqueeyohxeuz6wrnzmxxamk74aoas9piykbppz546d",
            ),
        ] {
            let sum = Sum::parse(sum).unwrap();
            assert_eq!(of_link(sum.kind, target.as_bytes()), sum);
        }
        assert!(Sum::parse("9$abc").unwrap_err().contains("kind `9'"));
        assert!(Sum::parse("abc").unwrap_err().contains("too short"));
    }
}
