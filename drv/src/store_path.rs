//! Store directories and the paths directly beneath them.

use std::{fmt, sync::Arc};

use bstr::{BString, ByteSlice};

use crate::base32;

/// Number of digits in a store path's hash part: 160 bits in [`base32`].
pub const HASH_PART_LEN: usize = 32;

/// Longest name, in bytes. File systems take 255 for `HASH-NAME`, and beside each path there is a `HASH-NAME.lock`.
pub const MAX_NAME_LEN: usize = 255 - HASH_PART_LEN - "-".len() - ".lock".len();

/// What a derivation's file name ends in.
pub const DRV_EXTENSION: &str = ".drv";

/// Why something is no store path. The texts are guix-daemon's where it has the same check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StorePathError {
    /// The path does not lie in the store directory, or lies deeper than directly beneath it.
    #[error("path `{path}' is not in the store")]
    NotInStore {
        /// The path given.
        path: BString,
    },
    /// It lies in the store directory, but does not begin with 32 digits of base 32 and a dash.
    #[error("path `{base_name}' is not a store path: it does not begin with a hash")]
    BadHashPart {
        /// The last component.
        base_name: BString,
    },
    /// The name begins with a dot.
    #[error("invalid name: `{name}' (can't begin with dot)")]
    LeadingDot {
        /// The name given.
        name: BString,
    },
    /// The name is empty. (guix-daemon makes such paths; nobody can want them.)
    #[error("invalid name: `' (can't be empty)")]
    EmptyName,
    /// The name is longer than [`MAX_NAME_LEN`]: the file system or its lock file would refuse it later.
    #[error("invalid name: `{name}' (longer than {MAX_NAME_LEN} bytes)")]
    NameTooLong {
        /// The name given.
        name: BString,
    },
    /// The name has a byte that is none of `A-Z a-z 0-9 + - . _ ? =`.
    #[error("invalid character `{}' in name `{name}'", [*.byte].as_bstr())]
    BadCharacter {
        /// The first such byte.
        byte: u8,
        /// The name given.
        name: BString,
    },
    /// A store directory was asked for that is relative, the root, or has an odd byte.
    #[error("`{path}' cannot be a store directory")]
    BadStoreDir {
        /// The directory given.
        path: BString,
    },
}

/// Checks the name part of a store path: 1 to [`MAX_NAME_LEN`] bytes out of `A-Z a-z 0-9 + - . _ ? =`, not beginning
/// with a dot.
///
/// # Errors
/// One of [`StorePathError`]'s variants on names.
pub fn check_name(name: impl AsRef<[u8]>) -> Result<(), StorePathError> {
    let name = name.as_ref();
    if name.is_empty() {
        return Err(StorePathError::EmptyName);
    }
    if name.starts_with(b".") {
        return Err(StorePathError::LeadingDot { name: name.into() });
    }
    if let Some(byte) = name.iter().copied().find(|byte| !is_name_byte(*byte)) {
        return Err(StorePathError::BadCharacter { byte, name: name.into() });
    }
    if name.len() > MAX_NAME_LEN {
        return Err(StorePathError::NameTooLong { name: name.into() });
    }
    Ok(())
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_' | b'?' | b'=')
}

/// A store directory, such as `/frx/store`: absolute, without trailing or double slashes. Cheap to clone.
///
/// It is part of the hash in each path's name, so paths of two directories have nothing to do with each other.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreDir(Arc<str>);

impl StoreDir {
    /// A store directory from text that the program or its administrator wrote. Repeated and trailing slashes and `.`
    /// components go. It is not checked otherwise: see [`StoreDir::checked`].
    pub fn new(dir: &str) -> Self {
        let mut clean = String::with_capacity(dir.len());
        for component in dir.split('/').filter(|component| !component.is_empty() && *component != ".") {
            clean.push('/');
            clean.push_str(component);
        }
        if !dir.starts_with('/') && !clean.is_empty() {
            clean.remove(0);
        }
        Self(clean.into())
    }

    /// Like [`StoreDir::new`], but checked.
    ///
    /// # Errors
    /// [`StorePathError::BadStoreDir`] when it is relative, the root, goes up (`..`), or has a control character,
    /// a colon, a quote or a backslash (which would be ambiguous in hashed texts and in derivations).
    pub fn checked(dir: &str) -> Result<Self, StorePathError> {
        let clean = Self::new(dir);
        let odd = |c: char| c.is_control() || matches!(c, ':' | '"' | '\\');
        if !clean.0.starts_with('/') || clean.0.contains(odd) || clean.0.split('/').any(|component| component == "..") {
            return Err(StorePathError::BadStoreDir { path: dir.into() });
        }
        Ok(clean)
    }

    /// The directory, without a trailing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads the whole path of something directly beneath the directory.
    ///
    /// # Errors
    /// [`StorePathError::NotInStore`] when it is elsewhere or deeper; else as [`StorePath::from_base_name`].
    pub fn parse(&self, path: impl AsRef<[u8]>) -> Result<StorePath, StorePathError> {
        let path = path.as_ref();
        match self.inside(path) {
            Some(inside) if !inside.contains(&b'/') => StorePath::from_base_name(inside),
            _ => Err(StorePathError::NotInStore { path: path.into() }),
        }
    }

    /// The whole path, as [`StoreDir::parse`] reads it.
    pub fn display(&self, path: &StorePath) -> String {
        let mut whole = String::with_capacity(self.0.len() + 1 + path.0.len());
        whole.push_str(&self.0);
        whole.push('/');
        whole.push_str(&path.0);
        whole
    }

    /// Whether a path lies beneath the directory, at whatever depth. Only the text is looked at; a path whose first
    /// component beneath the directory is empty, `.` or `..` does not.
    pub fn contains(&self, path: impl AsRef<[u8]>) -> bool {
        self.inside(path.as_ref())
            .and_then(|inside| inside.split(|byte| *byte == b'/').next())
            .is_some_and(|first| !matches!(first, b"" | b"." | b".."))
    }

    /// The store path that a path beneath it begins with: `DIR/HASH-NAME/bin/x` gives `HASH-NAME`. Only the text is
    /// looked at.
    ///
    /// # Errors
    /// [`StorePathError::NotInStore`] when it is elsewhere; else as [`StorePath::from_base_name`].
    pub fn to_store_path(&self, path: impl AsRef<[u8]>) -> Result<StorePath, StorePathError> {
        let path = path.as_ref();
        let inside = self.inside(path).ok_or_else(|| StorePathError::NotInStore { path: path.into() })?;
        StorePath::from_base_name(inside.split(|byte| *byte == b'/').next().unwrap_or_default())
    }

    /// What follows `DIR/`, if that is not empty.
    fn inside<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        if !self.0.starts_with('/') {
            return None;
        }
        let rest = path.strip_prefix(self.0.as_bytes())?.strip_prefix(b"/")?;
        (!rest.is_empty()).then_some(rest)
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl AsRef<str> for StoreDir {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The `HASH-NAME` of a store path, whatever the store directory: 32 digits of [`base32`], a dash and a name that
/// passes [`check_name`]; ASCII throughout. Cheap to clone; ordered by bytes, as the whole paths are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(Arc<str>);

impl StorePath {
    /// Reads `HASH-NAME`.
    ///
    /// # Errors
    /// [`StorePathError::BadHashPart`], or what [`check_name`] says of the name.
    pub fn from_base_name(base_name: impl AsRef<[u8]>) -> Result<Self, StorePathError> {
        let bytes = base_name.as_ref();
        let bad = || StorePathError::BadHashPart { base_name: bytes.into() };
        let (hash, rest) = bytes.split_at_checked(HASH_PART_LEN).ok_or_else(bad)?;
        let name = rest.strip_prefix(b"-").ok_or_else(bad)?;
        if !hash.iter().all(|byte| base32::is_digit(*byte)) {
            return Err(bad());
        }
        check_name(name)?;
        // Both parts are ASCII by now.
        let text = str::from_utf8(bytes).map_err(|_| bad())?;
        Ok(Self(text.into()))
    }

    /// `HASH-NAME`.
    pub fn base_name(&self) -> &str {
        &self.0
    }

    /// `HASH`, 32 digits.
    pub fn hash_part(&self) -> &str {
        self.0.get(..HASH_PART_LEN).unwrap_or_default()
    }

    /// `NAME`.
    pub fn name(&self) -> &str {
        self.0.get(HASH_PART_LEN + 1..).unwrap_or_default()
    }

    /// Whether the name ends in `.drv`.
    pub fn is_derivation(&self) -> bool {
        self.0.ends_with(DRV_EXTENSION)
    }

    /// The name without `.drv`: what a derivation in such a file is called. `None` when this is no derivation.
    pub fn derivation_name(&self) -> Option<&str> {
        self.name().strip_suffix(DRV_EXTENSION)
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl AsRef<str> for StorePath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: &str = "0123456789abcdfghijklmnpqrsvwxyz-hello-2.12.3";

    #[test]
    fn names() {
        let name = |len| "x".repeat(len);
        for good in ["x", "+-._?=", "A.Z", "-", "a..", &name(MAX_NAME_LEN)] {
            assert_eq!(check_name(good), Ok(()), "{good:?}");
        }
        for (bad, text) in [
            ("", "invalid name: `' (can't be empty)"),
            (".", "invalid name: `.' (can't begin with dot)"),
            ("..", "invalid name: `..' (can't begin with dot)"),
            (".x", "invalid name: `.x' (can't begin with dot)"),
            ("a/b", "invalid character `/' in name `a/b'"),
            ("a b", "invalid character ` ' in name `a b'"),
            ("a\0", "invalid character `\0' in name `a\0'"),
            ("a\n", "invalid character `\n' in name `a\n'"),
            ("a!out", "invalid character `!' in name `a!out'"),
        ] {
            assert_eq!(check_name(bad).unwrap_err().to_string(), text);
        }
        assert!(check_name(b"\xe9").is_err() && check_name("é").is_err());
        assert!(matches!(check_name(name(MAX_NAME_LEN + 1)), Err(StorePathError::NameTooLong { .. })));
    }

    #[test]
    fn parts() {
        let path = StorePath::from_base_name(BASE).unwrap();
        assert_eq!((path.base_name(), path.to_string().as_str()), (BASE, BASE));
        assert_eq!((path.hash_part(), path.name()), ("0123456789abcdfghijklmnpqrsvwxyz", "hello-2.12.3"));
        assert_eq!((path.is_derivation(), path.derivation_name()), (false, None));
        let drv = StorePath::from_base_name(format!("{BASE}.drv.drv")).unwrap();
        assert_eq!((drv.is_derivation(), drv.derivation_name()), (true, Some("hello-2.12.3.drv")));
        for bad in ["", "x", &BASE[..32], &BASE[..33], &BASE[1..], &BASE.replace('0', "e"), &BASE.replace('a', "A"), ".links"] {
            assert!(StorePath::from_base_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn directory() {
        let dir = StoreDir::new("/frx//./store/");
        assert_eq!((dir.as_str(), &dir), ("/frx/store", &StoreDir::checked("/frx/store").unwrap()));
        let path = dir.parse(format!("/frx/store/{BASE}")).unwrap();
        assert_eq!((path.base_name(), dir.display(&path)), (BASE, format!("/frx/store/{BASE}")));
        for beneath in ["", "/", "/bin/hello", "/../x"] {
            assert_eq!(dir.to_store_path(format!("/frx/store/{BASE}{beneath}")), Ok(path.clone()));
            assert!(dir.contains(format!("/frx/store/{BASE}{beneath}")));
        }
        for not in [
            "",
            "/",
            "/frx",
            "/frx/store",
            "/frx/store/",
            "/frx/stores",
            "/frx/storex/y",
            "frx/store/x",
            "/gnu/store/x",
            "//frx/store/x",
            "/frx/store//x",
            "/frx/store/./x",
            "/frx/store/../x",
        ] {
            assert!(!dir.contains(not) && dir.to_store_path(not).is_err() && dir.parse(not).is_err(), "{not}");
        }
        assert!(dir.contains("/frx/store/.links/x") && dir.to_store_path("/frx/store/.links/x").is_err());
        for deeper in ["/", "/bin"] {
            let error = dir.parse(format!("/frx/store/{BASE}{deeper}")).unwrap_err();
            assert_eq!(error.to_string(), format!("path `/frx/store/{BASE}{deeper}' is not in the store"));
        }
        for bad in ["", "/", "relative", "/a/../b", "/a:b", "/a\nb", "/a\"b"] {
            assert!(StoreDir::checked(bad).is_err(), "{bad}");
        }
        assert!(!StoreDir::new("relative").contains("relative/x") && !StoreDir::new("").contains("/x"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let dir = StoreDir::new("/s");
            let _ = check_name(&bytes);
            let whole = [b"/s/0123456789abcdfghijklmnpqrsvwxyz-", &bytes[..]].concat();
            match dir.parse(&whole) {
                Ok(path) => prop_assert_eq!(dir.display(&path).into_bytes(), whole),
                Err(_) => prop_assert!(check_name(&bytes).is_err() || bytes.contains(&b'/')),
            }
        }
    }
}
