//! The packages that a base is cut into, by lists that a person can read: `packages/NAME.list`.
//!
//! A line is a pattern of paths without a slash at either end: `*` stands for any characters of a name, `**` for any characters at all. A path belongs
//! to the first package, in the order of [`NAMES`], with a pattern that matches it.

use super::fields::{Check, Missing, parts};

macro_rules! packages {
    ($($name:literal),+) => {
        /// The packages, in the order in which their lists are asked.
        pub const NAMES: &[&str] = &[$($name),+];
        /// Their lists.
        const LISTS: &[&str] = &[$(include_str!(concat!("packages/", $name, ".list"))),+];
    };
}
packages!("kernel", "bootloader", "headers", "toolchain", "openssl", "zlib", "sh", "bash", "libc", "rc-scripts", "userland", "runtime");

parts! {
    /// What `builtin:freebsd-base` makes: the packages of a base.
    pub struct Cut = "freebsd-cut" {
        /// The version.
        pub version = "version": String, Missing::Required, Check::Word;
        /// The name of the file with owners, modes and flags, in a tree of files.
        pub manifest = "manifest": String, Missing::Required, Check::LocalPath;
        /// The packages in their order.
        pub packages = "packages": Vec<PackageList>, Missing::Required, Check::Any;
    }

    /// A package, and what belongs to it.
    pub struct PackageList = "package" {
        /// Its name.
        pub name = "name": String, Missing::Required, Check::Word;
        /// The patterns of its paths.
        pub patterns = "patterns": Vec<String>, Missing::Required, Check::Any;
    }
}

/// The packages with their patterns.
#[must_use]
pub fn lists() -> Vec<PackageList> {
    let patterns =
        |list: &str| list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect();
    NAMES.iter().zip(LISTS).map(|(name, list)| PackageList { name: (*name).to_owned(), patterns: patterns(list) }).collect()
}

/// Whether `path` is what `pattern` stands for.
#[must_use]
pub fn matches(pattern: &[u8], path: &[u8]) -> bool {
    // Where to go on when what follows the last star does not fit: the pattern after it, and the path from where it may take one more.
    let (mut pattern_at, mut path_at) = (0, 0);
    let mut retry: Option<(usize, usize, bool)> = None;
    loop {
        let rest = pattern.get(pattern_at..).unwrap_or_default();
        if rest.starts_with(b"**") {
            pattern_at += 2;
            retry = Some((pattern_at, path_at, true));
            continue;
        }
        if rest.first() == Some(&b'*') {
            pattern_at += 1;
            retry = Some((pattern_at, path_at, false));
            continue;
        }
        match (rest.first(), path.get(path_at)) {
            (None, None) => return true,
            (Some(expected), Some(found)) if expected == found => {
                pattern_at += 1;
                path_at += 1;
            }
            _ => match retry {
                Some((after, at, slashes)) if path.get(at).is_some_and(|byte| slashes || *byte != b'/') => {
                    retry = Some((after, at + 1, slashes));
                    (pattern_at, path_at) = (after, at + 1);
                }
                _ => return false,
            },
        }
    }
}
