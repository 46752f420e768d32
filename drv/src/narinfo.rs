//! What is known of a path outside its store: the text that binary caches have beside each archive (`HASH.narinfo`).
//!
//! Lines of `Name: value`; the names are those of Nix's and Guix's caches, from files that `guix publish` serves. Fields that are not known are
//! passed over, as there.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::store_path::{StoreDir, StorePath};
use crate::{Hash, HashAlgo};

/// The longest text, in bytes.
pub const MAX_NARINFO: usize = 1 << 20;

/// The archive is as it is, not compressed.
pub const UNCOMPRESSED: &str = "none";

/// What is known of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NarInfo {
    /// The path.
    pub path: StorePath,
    /// Where the archive is, relative to the text.
    pub url: String,
    /// How it is compressed; [`UNCOMPRESSED`] when it is not.
    pub compression: String,
    /// SHA-256 of the archive when it is not compressed.
    pub nar_hash: Hash,
    /// Its bytes then.
    pub nar_size: u64,
    /// The paths that occur in it, possibly itself.
    pub references: BTreeSet<StorePath>,
    /// The derivation that it was built by.
    pub deriver: Option<StorePath>,
}

/// Why a text is no [`NarInfo`]: the other store has been damaged, or is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    /// It is longer than [`MAX_NARINFO`].
    #[error("it is longer than {MAX_NARINFO} bytes")]
    TooLong,
    /// A line has no colon and space.
    #[error("line {0} is no `Name: value'")]
    Line(usize),
    /// A field that must be there is not.
    #[error("`{0}' is missing")]
    Missing(&'static str),
    /// A field is there twice.
    #[error("`{0}' is there twice")]
    Twice(&'static str),
    /// A field has a value that it cannot have.
    #[error("`{field}' is wrong: {value:?}")]
    Wrong {
        /// Its name.
        field: &'static str,
        /// Its value.
        value: String,
    },
}

/// The fields, in the order in which they are written.
const FIELDS: [&str; 7] = ["StorePath", "URL", "Compression", "NarHash", "NarSize", "References", "Deriver"];

impl NarInfo {
    /// The name of the text: `HASH.narinfo`.
    #[must_use]
    pub fn file_name(path: &StorePath) -> String {
        format!("{}.narinfo", path.hash_part())
    }

    /// The text.
    #[must_use]
    pub fn to_text(&self, store_dir: &StoreDir) -> String {
        let references: Vec<&str> = self.references.iter().map(StorePath::base_name).collect();
        let values = [
            Some(store_dir.display(&self.path).to_string()),
            Some(self.url.clone()),
            Some(self.compression.clone()),
            Some(format!("sha256:{}", self.nar_hash.base32())),
            Some(self.nar_size.to_string()),
            Some(references.join(" ")),
            self.deriver.as_ref().map(|deriver| deriver.base_name().to_owned()),
        ];
        let mut text = String::new();
        for (name, value) in FIELDS.iter().zip(values) {
            if let Some(value) = value {
                let _ = writeln!(text, "{name}: {value}");
            }
        }
        text
    }

    /// Reads the text.
    ///
    /// # Errors
    /// [`NarInfoError`].
    pub fn parse(store_dir: &StoreDir, text: &str) -> Result<NarInfo, NarInfoError> {
        if text.len() > MAX_NARINFO {
            return Err(NarInfoError::TooLong);
        }
        let mut values: [Option<&str>; FIELDS.len()] = [None; FIELDS.len()];
        for (number, line) in (1..).zip(text.lines()) {
            let (name, value) = match line.split_once(": ") {
                Some(pair) => pair,
                // A field without a value, such as no references.
                None => (line.strip_suffix(':').ok_or(NarInfoError::Line(number))?, ""),
            };
            let place = FIELDS.iter().zip(&mut values).find(|(field, _)| **field == name);
            if let Some((field, place)) = place
                && place.replace(value).is_some()
            {
                return Err(NarInfoError::Twice(field));
            }
        }
        let [path, url, compression, hash, size, references, deriver] = values;
        let [path_field, url_field, _, hash_field, size_field, references_field, deriver_field] = FIELDS;
        let wrong = |field, value: &str| NarInfoError::Wrong { field, value: value.chars().take(200).collect() };
        let path = path.ok_or(NarInfoError::Missing(path_field))?;
        let hash = hash.ok_or(NarInfoError::Missing(hash_field))?;
        let size = size.ok_or(NarInfoError::Missing(size_field))?;
        let named = |field, name: &str| StorePath::from_base_name(name).map_err(|_| wrong(field, name));
        Ok(NarInfo {
            path: store_dir.parse(path).map_err(|_| wrong(path_field, path))?,
            url: url.ok_or(NarInfoError::Missing(url_field))?.to_owned(),
            compression: compression.unwrap_or(UNCOMPRESSED).to_owned(),
            nar_hash: Hash::parse_prefixed(hash)
                .ok()
                .filter(|hash| hash.algo() == HashAlgo::Sha256)
                .ok_or_else(|| wrong(hash_field, hash))?,
            nar_size: size.parse().map_err(|_| wrong(size_field, size))?,
            references: references
                .unwrap_or_default()
                .split(' ')
                .filter(|name| !name.is_empty())
                .map(|name| named(references_field, name))
                .collect::<Result<_, _>>()?,
            deriver: match deriver {
                None | Some("" | "unknown-deriver") => None,
                Some(name) => Some(named(deriver_field, name)?),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: &str = "/frx/store";

    fn example() -> NarInfo {
        let name = |letter: &str, name: &str| StorePath::from_base_name(format!("{}-{name}", letter.repeat(32))).unwrap();
        NarInfo {
            path: name("a", "x"),
            url: "nar/x.nar".into(),
            compression: UNCOMPRESSED.into(),
            nar_hash: Hash::sha256("x"),
            nar_size: 120,
            references: [name("a", "x"), name("b", "y")].into(),
            deriver: Some(name("c", "x.drv")),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let store = StoreDir::new(DIR);
        for info in [example(), NarInfo { references: BTreeSet::new(), deriver: None, ..example() }] {
            assert_eq!(NarInfo::parse(&store, &info.to_text(&store)), Ok(info));
        }
    }

    /// The form that `guix publish` gives out, with what this does not need.
    #[test]
    fn what_others_write_is_read() {
        let store = StoreDir::new(DIR);
        let text = example().to_text(&store) + "System: x86_64-linux\nSignature: 1;x;y\n";
        assert_eq!(NarInfo::parse(&store, &text), Ok(example()));
        assert_eq!(NarInfo::file_name(&example().path), format!("{}.narinfo", "a".repeat(32)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let store = StoreDir::new(DIR);
        let text = example().to_text(&store);
        for field in ["StorePath", "URL", "NarHash", "NarSize"] {
            let without: String = text.lines().filter(|line| !line.starts_with(field)).map(|line| format!("{line}\n")).collect();
            assert_eq!(NarInfo::parse(&store, &without), Err(NarInfoError::Missing(field)));
        }
        for (from, to) in
            [("NarSize: 120", "NarSize: -1"), ("sha256:", "sha1:"), (DIR, "/gnu/store"), ("References: ", "References: ../x ")]
        {
            assert!(matches!(NarInfo::parse(&store, &text.replace(from, to)), Err(NarInfoError::Wrong { .. })), "{to}");
        }
        assert_eq!(NarInfo::parse(&store, &format!("{text}{text}")), Err(NarInfoError::Twice("StorePath")));
        assert_eq!(NarInfo::parse(&store, "x\n"), Err(NarInfoError::Line(1)));
        assert_eq!(NarInfo::parse(&store, &"x".repeat(MAX_NARINFO + 1)), Err(NarInfoError::TooLong));
    }
}
