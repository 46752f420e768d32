//! This crate against what guix-daemon 1.5.0 and its client said; `golden/README.md` describes the files.

#![allow(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use bstr::{BString, ByteSlice, ByteVec};
use fruix_drv::{
    Derivation, Hash, HashAlgo, ModuloCache, StoreDir, StorePath,
    aterm::{self, Reason},
    modulo::{VerifyError, verify_output_paths},
    path,
};

/// Where guix-daemon's parser takes what this crate's refuses, on purpose; `aterm::parse` documents each.
const STRICTER: [&str; 6] =
    ["NUL", "escaped NUL", "path elsewhere", "source elsewhere", "output beyond ASCII", "input output beyond ASCII"];

struct Golden {
    dir: StoreDir,
    files: PathBuf,
}

fn golden() -> [Golden; 2] {
    [("/frx/store", "frx"), ("/gnu/store", "gnu")].map(|(dir, files)| Golden {
        dir: StoreDir::new(dir),
        files: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(files),
    })
}

impl Golden {
    fn rows(&self, file: &str, kind: Option<&str>) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.files.join(file)).unwrap();
        let rows = text.lines().map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>());
        match kind {
            Some(kind) => rows.filter(|row| row[0] == kind).map(|row| row[1..].to_vec()).collect(),
            None => rows.collect(),
        }
    }

    fn references(&self, column: &str) -> BTreeSet<StorePath> {
        column.split(' ').filter(|path| *path != "-").map(|path| self.dir.parse(path).unwrap()).collect()
    }

    fn drv_bytes(&self, path: &StorePath) -> Vec<u8> {
        fs::read(self.files.join("drvs").join(path.base_name())).unwrap()
    }

    fn load(&self, path: &StorePath) -> Result<Derivation, aterm::ParseError> {
        aterm::parse(&self.dir, &self.drv_bytes(path))
    }
}

fn unescape(column: &str) -> BString {
    Vec::unescape_bytes(column).into()
}

#[test]
fn hashes() {
    for golden in golden() {
        let rows = golden.rows("paths.tsv", Some("hash"));
        assert_eq!(rows.len(), 3 * HashAlgo::ALL.len());
        for row in rows {
            let [algo, contents, base16, base32] = row.try_into().unwrap();
            let algo: HashAlgo = algo.parse().unwrap();
            let hash = Hash::of(algo, unescape(&contents));
            assert_eq!((hash.base16(), hash.base32()), (base16.clone(), base32.clone()));
            assert_eq!(Hash::parse(algo, &base16).unwrap(), hash);
            assert_eq!(Hash::parse(algo, &base32).unwrap(), hash);
            assert_eq!(hash.to_string().parse::<Hash>().unwrap(), hash);
        }
    }
}

#[test]
fn text_paths() {
    for golden in golden() {
        let rows = golden.rows("paths.tsv", Some("text"));
        assert_eq!(rows.len(), 4);
        for row in rows {
            let [name, references, contents, expected] = row.try_into().unwrap();
            let path = path::text_path(&golden.dir, &name, &unescape(&contents), &golden.references(&references)).unwrap();
            assert_eq!(golden.dir.display(&path), expected);
        }
    }
}

#[test]
fn fixed_output_paths() {
    for golden in golden() {
        let rows = golden.rows("paths.tsv", Some("fixed"));
        assert_eq!(rows.len(), 3 * HashAlgo::ALL.len());
        for row in rows {
            let [how, algo, hash, name, expected] = row.try_into().unwrap();
            let hash = Hash::parse_base16(algo.parse().unwrap(), &hash).unwrap();
            let path = path::fixed_output_path(&golden.dir, how == "recursive", &hash, &name).unwrap();
            assert_eq!(golden.dir.display(&path), expected);
        }
    }
}

#[test]
fn derivations() {
    for golden in golden() {
        let rows = golden.rows("paths.tsv", Some("modulo"));
        assert_eq!(rows.len(), fs::read_dir(golden.files.join("drvs")).unwrap().count());
        let mut cache = ModuloCache::new();
        // The last first: all others are its inputs.
        for row in rows.into_iter().rev() {
            let [drv_path, expected] = row.try_into().unwrap();
            let drv_path = golden.dir.parse(&drv_path).unwrap();
            let bytes = golden.drv_bytes(&drv_path);
            let drv = aterm::parse(&golden.dir, &bytes).unwrap();
            assert_eq!(aterm::print(&golden.dir, &drv).as_bstr(), bytes.as_bstr());
            let own = path::text_path(&golden.dir, drv_path.name(), &bytes, &drv.references()).unwrap();
            assert_eq!(own, drv_path);

            let hash = cache.hash(&golden.dir, &drv_path, &mut |path| golden.load(path)).unwrap();
            assert_eq!(hash.base16(), expected, "{drv_path}");

            let name = drv_path.derivation_name().unwrap();
            let mut input = |path: &StorePath| cache.hash(&golden.dir, path, &mut |path| golden.load(path));
            verify_output_paths(&golden.dir, name, &drv, &mut input).unwrap();
            // Under any other name, the same derivation has wrong outputs.
            let wrong = verify_output_paths(&golden.dir, "other", &drv, &mut input).unwrap_err();
            assert!(matches!(wrong, VerifyError::IncorrectOutput { .. }), "{wrong}");
        }
    }
}

#[test]
fn odd_derivation_is_read_right() {
    let [golden, _] = golden();
    let multi = golden.rows("paths.tsv", Some("modulo")).into_iter().find(|row| row[0].ends_with("-multi.drv"));
    let drv = golden.load(&golden.dir.parse(&multi.unwrap()[0]).unwrap()).unwrap();
    assert_eq!(drv.args, ["-c".into(), "".into(), "a\nb\tc\rd\"e\\f".into(), BString::from(b"\xe9"), "-c".into()]);
    assert_eq!(drv.env_var("lines").unwrap(), "\n\r\t\"\\");
    assert_eq!(drv.env_var("a\"b\\c\nd").unwrap(), "odd name");
    assert_eq!(drv.env_var("").unwrap(), "no name");
    assert_eq!(drv.env_var("latin1").unwrap(), b"\xe9\xff".as_bstr());
    assert_eq!(drv.outputs.keys().collect::<Vec<_>>(), ["a.b", "dev", "doc", "out"]);
    assert_eq!(drv.env_var("a.b").unwrap(), golden.dir.display(&drv.outputs["a.b"].path).as_str());
    assert_eq!((drv.input_drvs.len(), drv.input_srcs.len()), (14, 3));
    assert!(!drv.is_fixed_output() && !drv.is_builtin());
}

/// What guix-daemon answers to a derivation that is added as a text, out of this crate's parts.
fn answer(golden: &Golden, name: &str, references: &BTreeSet<StorePath>, bytes: &[u8]) -> Result<String, (String, Option<Reason>)> {
    let dir = &golden.dir;
    let path = path::text_path(dir, name, bytes, references).unwrap();
    let drv = aterm::parse(dir, bytes).map_err(|error| {
        assert!(error.offset <= bytes.len());
        let text = format!("error parsing derivation `{}': {}", dir.display(&path), error.reason);
        (text, Some(error.reason))
    })?;
    let mut cache = ModuloCache::new();
    let mut input = |path: &StorePath| cache.hash(dir, path, &mut |path| golden.load(path));
    verify_output_paths(dir, path.derivation_name().unwrap(), &drv, &mut input).map_err(|error| {
        let text = match error {
            VerifyError::IncorrectOutput { found, expected, .. } => format!(
                "derivation `{}' has incorrect output `{}', should be `{}'",
                dir.display(&path),
                dir.display(&found),
                dir.display(&expected)
            ),
            other => other.to_string(),
        };
        (text, None)
    })?;
    Ok(format!("accepted {}", dir.display(&path)))
}

#[test]
fn same_answers_as_the_daemon() {
    let [golden, _] = golden();
    let rows = golden.rows("cases.tsv", None);
    let mut seen: HashMap<String, usize> = HashMap::new();
    for row in rows {
        let [label, name, references, bytes, theirs] = row.try_into().unwrap();
        let ours = answer(&golden, &name, &golden.references(&references), &unescape(&bytes));
        if STRICTER.contains(&label.as_str()) {
            let Err((_, Some(reason))) = &ours else {
                continue;
            };
            let on_purpose = matches!(reason, Reason::Nul | Reason::NotStorePath(_) | Reason::NotText(_));
            assert!(on_purpose, "{label}: {ours:?}");
            *seen.entry(label).or_default() += 1;
            continue;
        }
        let ours = ours.unwrap_or_else(|(text, _)| text);
        assert_eq!(ours, unescape(&theirs), "{label}: {bytes}");
        *seen.entry(theirs.split(' ').next().unwrap().to_owned()).or_default() += 1;
    }
    for kind in ["accepted", "derivation", "error", "unknown", "invalid"].iter().chain(&STRICTER) {
        assert!(seen.contains_key(*kind), "no case was `{kind}'");
    }
    assert_eq!((seen["accepted"], seen["derivation"], seen["error"]), (33, 38, 79), "{seen:?}");
}
