//! What running processes use, by each platform's way: it is not garbage.

#[cfg(any(target_os = "freebsd", test))]
use std::collections::BTreeSet;

use fruix_store::RuntimeRoots;
#[cfg(any(target_os = "freebsd", test))]
use {
    bstr::ByteSlice as _,
    fruix_drv::{StoreDir, StorePath},
};

/// This platform's way.
#[cfg(not(target_os = "freebsd"))]
pub(crate) fn runtime_roots() -> impl RuntimeRoots {
    fruix_store::ProcRoots::default()
}

/// This platform's way.
#[cfg(target_os = "freebsd")]
pub(crate) fn runtime_roots() -> impl RuntimeRoots {
    |store_dir: &StoreDir| {
        let mut roots = BTreeSet::new();
        fruix_freebsd::for_each_process(|bytes| find(store_dir, bytes, &mut roots)).map_err(|source| fruix_store::Error::Io {
            action: "finding processes in",
            path: "kern.proc".into(),
            source,
        })?;
        Ok(roots)
    }
}

/// Adds all store paths that stand in some bytes, wherever they begin.
#[cfg(any(target_os = "freebsd", test))]
fn find(store_dir: &StoreDir, bytes: &[u8], roots: &mut BTreeSet<StorePath>) {
    let start = format!("{}/", store_dir.as_str());
    for place in bytes.find_iter(start.as_bytes()) {
        let rest = bytes.get(place + start.len()..).unwrap_or_default();
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte);
        let end = rest.iter().position(|byte| !is_name(*byte)).unwrap_or(rest.len());
        roots.extend(StorePath::from_base_name(rest.get(..end).unwrap_or_default()).ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_in_records() {
        let name = |digit: &str, rest: &str| format!("{}-{rest}", digit.repeat(32));
        let (one, two) = (name("1", "a.b"), name("2", "c"));
        let bytes = format!("\0\x01/s/{one}/bin/x\0PATH=/s/{two}:/s/short:/t/s/{}\0/s/", name("3", "jailed"));
        let mut found = BTreeSet::new();
        find(&StoreDir::new("/s"), bytes.as_bytes(), &mut found);
        let expected = [one, two, name("3", "jailed")].map(|name| StorePath::from_base_name(name).unwrap());
        assert_eq!(found, BTreeSet::from(expected));
    }
}
