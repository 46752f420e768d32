//! Nix's base 32: the digits `0123456789abcdfghijklmnpqrsvwxyz` (without e, o, u, t), least significant bit first, and
//! the whole text reversed. `n` bytes are `ceil(8n / 5)` digits; there is no padding.

use std::sync::LazyLock;

use data_encoding::{BitOrder, Encoding, Specification};

/// The 32 digits, in order of value.
pub const ALPHABET: &str = "0123456789abcdfghijklmnpqrsvwxyz";

/// The same digits in the same bit order, but not reversed: what `data-encoding` can express.
static UNREVERSED: LazyLock<Encoding> = LazyLock::new(|| {
    let mut spec = Specification::new();
    spec.symbols.push_str(ALPHABET);
    spec.bit_order = BitOrder::LeastSignificantFirst;
    spec.encoding().expect("a constant of 32 distinct ASCII symbols")
});

/// Number of digits that `bytes` bytes take.
pub const fn encoded_len(bytes: usize) -> usize {
    bytes / 5 * 8 + (bytes % 5 * 8).div_ceil(5)
}

/// Writes `bytes` in nix's base 32.
pub fn encode(bytes: &[u8]) -> String {
    let text = UNREVERSED.encode(bytes);
    // All digits are ASCII, so reversing characters reverses bytes.
    text.chars().rev().collect()
}

/// Reads nix's base 32. `None` when a byte is no digit, when no number of bytes has that many digits, or when bits
/// beyond the last byte are set (so that each value has exactly one spelling; guix-daemon ignores those bits).
pub fn decode(text: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    let mut digits = text.as_ref().to_vec();
    digits.reverse();
    UNREVERSED.decode(&digits).ok()
}

/// Whether `byte` is a digit of the alphabet.
pub const fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'd' | b'f'..=b'n' | b'p'..=b's' | b'v'..=b'z')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn digits_are_the_alphabet() {
        for byte in 0..=255u8 {
            assert_eq!(is_digit(byte), ALPHABET.as_bytes().contains(&byte), "{byte}");
        }
    }

    #[test]
    fn known_values() {
        // `guix hash` of GNU hello 2.12.3's tarball, in both spellings.
        let hex = "0d5f60154382fee10b114a1c34e785d8b1f492073ae2d3a6f7b147687b366aa0";
        let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
        assert_eq!(encode(&bytes), "183a6rxnhixiyykd7qis0y9g9cfqhpkk872a245y3zl28can0pqd");
        assert_eq!(encode(&[]), "");
        assert_eq!(encode(&[1]), "01");
        assert_eq!(encode(&[0xff]), "7z");
    }

    #[test]
    fn refuses_other_spellings() {
        for bad in ["0", "000", "0e", "0E", "0A", "0 ", "0\u{e9}", "80", "zz"] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let text = encode(&bytes);
            prop_assert_eq!(text.len(), encoded_len(bytes.len()));
            prop_assert_eq!(decode(&text), Some(bytes));
        }

        #[test]
        fn one_spelling_each(text in "[0-9a-df-np-sv-z]{0,70}") {
            if let Some(bytes) = decode(&text) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
