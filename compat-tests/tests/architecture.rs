//! The arrows of `docs/architecture.md`, held against manifests and sources.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which of our crates each crate may depend on.
const ARROWS: [(&str, &[&str]); 5] = [
    ("drv", &[]),
    ("protocol", &["fruix-drv"]),
    ("store", &["fruix-drv", "fruix-protocol"]),
    ("freebsd", &["fruix-drv", "fruix-store"]),
    ("daemon", &["fruix-drv", "fruix-freebsd", "fruix-protocol", "fruix-store"]),
];

/// What must not stand in the sources of a crate, and why.
const FORBIDDEN: [(&str, &[(&str, &str)]); 4] = [
    (
        "drv",
        &[
            ("std::fs", "formats do no I/O"),
            ("std::net", "formats do no I/O"),
            ("std::process", "formats do no I/O"),
            ("std::env", "formats do no I/O"),
            ("tokio", "formats are not asynchronous"),
            ("/gnu/store\"", "store directories are data"),
        ],
    ),
    (
        "protocol",
        &[
            ("std::fs", "the protocol does no I/O of its own"),
            ("std::net", "the protocol does no I/O of its own"),
            ("std::process", "the protocol does no I/O of its own"),
            ("std::env", "the protocol does no I/O of its own"),
            ("tokio::net", "the protocol works over any stream"),
            ("tokio::fs", "the protocol does no I/O of its own"),
        ],
    ),
    (
        "store",
        &[
            ("tokio", "the store is synchronous"),
            ("fruix_protocol::ops", "the store knows no client"),
            ("fruix_protocol::server", "the store knows no client"),
        ],
    ),
    (
        "freebsd",
        &[
            ("tokio", "the platform is synchronous"),
            ("fruixd::", "the platform knows no daemon but by the names that it is given"),
            ("/gnu/store", "store directories are data"),
        ],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The names below `[dependencies]` (not those for tests only).
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut inside = false;
    let mut names = BTreeSet::new();
    for line in manifest.lines() {
        let line = line.trim();
        if line.starts_with('[') {
            inside = line == "[dependencies]" || line.starts_with("[target.") && line.ends_with(".dependencies]");
        } else if inside && let Some((name, _)) = line.split_once(['.', '=', ' ']) {
            names.insert(name.trim().to_owned());
        }
    }
    names
}

fn sources(dir: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.insert(path.clone(), fs::read_to_string(&path).unwrap());
        }
    }
}

/// A source without comments and without what is compiled for tests only.
fn shipped(source: &str) -> impl Iterator<Item = &str> {
    let source = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    source.lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn arrows_go_one_way() {
    for (name, allowed) in ARROWS {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        let ours: BTreeSet<_> = dependencies(&manifest).into_iter().filter(|name| name.starts_with("fruix")).collect();
        let allowed: BTreeSet<_> = allowed.iter().map(|name| (*name).to_owned()).collect();
        assert!(ours.is_subset(&allowed), "`{name}' depends on {ours:?}, but may only on {allowed:?}");
    }
}

#[test]
fn rooms_have_one_job() {
    for (name, forbidden) in FORBIDDEN {
        let mut files = BTreeMap::new();
        sources(&root().join(name).join("src"), &mut files);
        assert!(!files.is_empty());
        for (path, source) in files {
            for line in shipped(&source) {
                for (text, why) in forbidden {
                    assert!(!line.contains(text), "{}: `{}': {why}", path.display(), line.trim());
                }
            }
        }
    }
}

#[test]
fn unsafe_is_in_one_room() {
    for crate_name in ["drv", "protocol", "store", "freebsd", "daemon", "compat-tests"] {
        let mut files = BTreeMap::new();
        sources(&root().join(crate_name).join("src"), &mut files);
        for (path, source) in files {
            if path.components().any(|part| part.as_os_str() == "sys") {
                continue;
            }
            for line in shipped(&source) {
                let code = line.split("//").next().unwrap_or_default();
                assert!(!code.contains("unsafe ") && !code.contains("allow(unsafe_code)"), "{}: `{}'", path.display(), line.trim());
            }
        }
    }
}

#[test]
fn a_turned_arrow_is_seen() {
    let manifest = "[dependencies]\nfruix-store.workspace = true\nnom = \"8\"\n[dev-dependencies]\nfruixd = { path = \"x\" }\n";
    assert_eq!(dependencies(manifest), BTreeSet::from(["fruix-store".to_owned(), "nom".to_owned()]));
    assert_eq!(shipped("use std::fs;\n// use std::net\n#[cfg(test)]\nmod tests { use std::env; }").collect::<Vec<_>>(), ["use std::fs;"]);
}
