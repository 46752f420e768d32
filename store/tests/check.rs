//! The checker finds what is broken, one thing at a time, and nothing in a sound store.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use bstr::BStr;
use fruix_drv::{HashAlgo, StoreDir};
use fruix_protocol::nar::Writer;
use fruix_store::{Checked, Config, Finding, Severity, Store, Watch, check_store};
use rusqlite::Connection;

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Watch for Findings {
    fn found(&mut self, finding: &Finding) {
        self.0.push(finding.clone());
    }
    fn progress(&mut self, _: &str, _: usize, _: usize) {}
}

struct Sample {
    root: PathBuf,
    config: Config,
    /// A file, a directory with a large file and a link in it, and a derivation: in this order.
    paths: Vec<PathBuf>,
    _dir: tempfile::TempDir,
}

impl Sample {
    fn new() -> Sample {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let store_dir = StoreDir::new(root.join("store").to_str().unwrap());
        let config = Config { reserve_space: 0, durable: false, ..Config::new(store_dir, root.join("state")) };
        let store = Store::open(config.clone()).unwrap();
        let roots = store.temp_roots();
        let text = store.add_text(&roots, "text", b"text", &BTreeSet::new()).unwrap();
        let mut writer = Writer::new(Vec::new());
        writer.directory().unwrap();
        writer.entry(BStr::new("large")).unwrap();
        writer.file(false, 10_000).unwrap();
        writer.data(&[7; 10_000]).unwrap();
        writer.entry(BStr::new("link")).unwrap();
        writer.symlink(BStr::new("large")).unwrap();
        writer.end_directory().unwrap();
        let archive = writer.finish().unwrap();
        let tree = store.add_from_nar(&roots, "tree", true, HashAlgo::Sha256, &mut &*archive).unwrap();
        let (drv_text, _) = derivation(&store, &text);
        let drv = store.add_text(&roots, "thing.drv", &drv_text, &BTreeSet::from([text.clone()])).unwrap();
        store.add_indirect_root(&root.join("result")).unwrap();
        let paths = [&text, &tree, &drv].map(|path| store.real_path(path)).to_vec();
        symlink(&paths[1], root.join("result")).unwrap();
        Sample { root, config, paths, _dir: dir }
    }

    fn check(&self, contents: bool) -> (Checked, Vec<Finding>) {
        let mut findings = Findings::default();
        let checked = check_store(&self.config, contents, &mut findings).unwrap();
        (checked, findings.0)
    }

    fn sql(&self, sql: &str) {
        let db = Connection::open(self.config.db_dir.join("db.sqlite")).unwrap();
        db.execute_batch(sql).unwrap();
    }
}

/// A derivation that has `source` among its inputs, printed, and its output.
fn derivation(store: &Store, source: &fruix_drv::StorePath) -> (Vec<u8>, fruix_drv::StorePath) {
    let dir = store.store_dir();
    let print = |output: &str| {
        let source = dir.display(source);
        format!(r#"Derive([("out","{output}","","")],[],["{source}"],"x86_64-linux","/bin/sh",[],[("out","{output}")])"#)
    };
    let placeholder = dir.display(source).to_string();
    let drv = fruix_drv::aterm::parse(dir, print(&placeholder).as_bytes()).unwrap();
    let outputs = fruix_drv::modulo::compute_output_paths::<std::convert::Infallible>(dir, "thing", &drv, &mut |_| unreachable!()).unwrap();
    let out = outputs.get("out").unwrap().clone();
    (print(&dir.display(&out).to_string()).into_bytes(), out)
}

fn writable(path: &Path) {
    let mode = fs::symlink_metadata(path).unwrap().permissions().mode();
    fs::set_permissions(path, Permissions::from_mode(mode | 0o200)).unwrap();
}

#[test]
fn a_sound_store_is_found_sound() {
    let sample = Sample::new();
    for contents in [false, true] {
        let (checked, findings) = sample.check(contents);
        assert!(findings.is_empty(), "{findings:?}");
        assert_eq!((checked.paths, checked.links, checked.roots, checked.processes), (3, 1, 2, 0));
    }
}

#[test]
fn whatever_is_broken_is_found() {
    use Severity::{Damage, Leftover, Note};
    type Break = fn(&Sample);
    // Whether it takes reading all contents, what is broken, how bad that is, and where it is found and as what.
    let table: &[(bool, Break, Severity, &str, &str)] = &[
        (false, |s| fs::remove_file(&s.paths[0]).unwrap(), Damage, "-text", "valid, but not there"),
        (
            true,
            |s| {
                writable(&s.paths[0]);
                fs::write(&s.paths[0], "TEXT").unwrap();
            },
            Damage,
            "-text",
            "was modified",
        ),
        (false, |s| writable(&s.paths[0]), Damage, "-text", "has mode 644"),
        (false, |s| writable(&s.paths[1]), Note, "-tree", "has mode 755"),
        (
            true,
            |s| {
                writable(&s.paths[1]);
                symlink("x", s.paths[1].join("new")).unwrap();
            },
            Damage,
            "-tree/new",
            "modification time",
        ),
        (false, |s| s.sql("update ValidPaths set narSize = -1"), Damage, "-text", "negative size"),
        (false, |s| s.sql("update ValidPaths set hash = 'md5:0' where path like '%-text'"), Damage, "-text", "a hash that is none"),
        (true, |s| s.sql("update ValidPaths set narSize = 8 where path like '%-text'"), Damage, "-text", "registered are 8"),
        (false, |s| s.sql("pragma foreign_keys = 0; delete from ValidPaths where path like '%-text'"), Damage, "db.sqlite", "not there"),
        (
            false,
            |s| {
                s.sql(
                    "insert into Refs select a.id, b.id from ValidPaths a, ValidPaths b where a.path like '%-text' and b.path like '%.drv'",
                )
            },
            Damage,
            "",
            "refers to itself by way of others",
        ),
        (false, |s| s.sql("update DerivationOutputs set id = 'doc'"), Damage, "-thing.drv", "registered are"),
        (false, |s| s.sql("delete from DerivationOutputs"), Damage, "-thing.drv", "registered are"),
        (
            false,
            |s| s.sql("insert into DerivationOutputs select id, 'out', path from ValidPaths where path like '%-text'"),
            Damage,
            "-text",
            "no derivation",
        ),
        (
            false,
            |s| s.sql("insert into ValidPaths (path, hash, registrationTime) select '/elsewhere', hash, 1 from ValidPaths limit 1"),
            Damage,
            "/elsewhere",
            "no store path",
        ),
        (
            false,
            |s| {
                writable(&s.paths[2]);
                fs::write(&s.paths[2], "Derive(").unwrap();
            },
            Damage,
            "-thing.drv",
            "is no derivation",
        ),
        (
            false,
            |s| {
                let text = fs::read_to_string(&s.paths[2]).unwrap().replace("/bin/sh", "/bin/ls");
                writable(&s.paths[2]);
                fs::write(&s.paths[2], text).unwrap();
            },
            Damage,
            "-thing.drv",
            "incorrect output",
        ),
        (false, |s| fs::write(s.config.db_dir.join("schema"), "8").unwrap(), Damage, "schema", "instead of 7"),
        (
            false,
            |s| fs::set_permissions(s.root.join("state/gcroots"), Permissions::from_mode(0o777)).unwrap(),
            Damage,
            "gcroots",
            "others can write",
        ),
        (
            false,
            |s| fs::set_permissions(s.root.join("store"), Permissions::from_mode(0o777)).unwrap(),
            Damage,
            "store",
            "others can change",
        ),
        (false, |s| fs::remove_dir_all(s.root.join("state/temproots")).unwrap(), Damage, "temproots", "is missing"),
        (false, |s| fs::write(s.root.join("state/temproots/1"), "x").unwrap(), Leftover, "temproots/1", "dead process"),
        (false, |s| fs::create_dir(s.root.join("store/junk")).unwrap(), Leftover, "junk", "no store item"),
        (false, |s| fs::write(s.root.join("store").join(format!("{}-x", "0".repeat(32))), "").unwrap(), Leftover, "-x", "not registered"),
        (false, |s| fs::write(s.paths[0].with_extension("lock"), "").unwrap(), Leftover, "-text.lock", "nobody holds"),
        (
            false,
            |s| {
                let staging = s.root.join("store").join(format!("{}-fruixd-staging", "0".repeat(32)));
                fs::create_dir(&staging).unwrap();
                fs::write(staging.join("lock"), "").unwrap();
            },
            Leftover,
            "-fruixd-staging",
            "dead daemon",
        ),
        (false, |s| fs::remove_file(s.root.join("result")).unwrap(), Leftover, "gcroots/auto/", "stale root"),
        (false, |s| s.sql("delete from ValidPaths where path like '%-tree'"), Note, "gcroots/auto/", "is not valid"),
        (false, |s| symlink("/x", s.root.join("state/gcroots/auto/x.tmp-1-2")).unwrap(), Leftover, "x.tmp-1-2", "unfinished root"),
        (
            false,
            |s| {
                writable(&s.paths[1]);
                fs::remove_file(s.paths[1].join("large")).unwrap();
            },
            Leftover,
            ".links",
            "nothing else uses",
        ),
        (
            true,
            |s| {
                let large = s.paths[1].join("large");
                writable(&large);
                fs::write(&large, [8; 10_000]).unwrap();
            },
            Damage,
            ".links/",
            "not what its name says",
        ),
        (false, |s| writable(&s.paths[1].join("large")), Damage, ".links/", "has mode 644"),
        (false, |s| fs::write(s.root.join("store/.links/x"), "").unwrap(), Damage, ".links/x", "not named by a hash"),
        (
            false,
            // Before a power cut, that is: nobody knows of what boot.
            |s| {
                s.sql("insert into FruixUnsynced (daemon, first, boot) select 'x', id, '' from ValidPaths where path like '%-text'");
                fs::remove_file(&s.paths[0]).unwrap();
            },
            Note,
            "-text",
            "valid, but not there",
        ),
    ];
    for (number, (contents, break_it, severity, place, what)) in table.iter().enumerate() {
        let sample = Sample::new();
        break_it(&sample);
        let (_, findings) = sample.check(*contents);
        let found = findings
            .iter()
            .any(|finding| finding.severity == *severity && finding.path.to_string_lossy().contains(place) && finding.what.contains(what));
        assert!(found, "{number}: no {severity} {what:?} in {findings:#?}");
        let damaged = findings.iter().any(|finding| finding.severity == Damage);
        assert_eq!(damaged, *severity == Damage, "{number}: {findings:#?}");
    }
}

/// Beside a daemon: what it makes, and what it needs, is nobody's leftover.
#[test]
fn what_is_in_flight_is_no_finding() {
    const ROOT: &str = "FRUIX_TEST_CHECK_ROOT";
    if let Some(root) = std::env::var_os(ROOT) {
        let store_dir = StoreDir::new(Path::new(&root).join("store").to_str().unwrap());
        let config = Config { reserve_space: 0, durable: false, ..Config::new(store_dir, Path::new(&root).join("state")) };
        let store = Store::open(config).unwrap();
        let roots = store.temp_roots();
        let path = fruix_drv::StorePath::from_base_name(format!("{}-x", "0".repeat(32))).unwrap();
        roots.add(&path).unwrap();
        let _lock = store.lock_paths(std::slice::from_ref(&path), true).unwrap().unwrap();
        fs::write(store.real_path(&path), "half").unwrap();
        println!("\nready");
        std::io::Read::read(&mut std::io::stdin(), &mut [0]).unwrap();
        return;
    }
    let sample = Sample::new();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_is_in_flight_is_no_finding", "--nocapture"])
        .env(ROOT, &sample.root)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap())).map(Result::unwrap);
    assert!(lines.any(|line| line == "ready"));
    let (checked, findings) = sample.check(true);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(checked.processes, 1);
    // And when it is dead: its path, its lock, its staging directory, its temporary roots.
    let (checked, findings) = sample.check(true);
    assert_eq!((checked.damage, checked.leftovers, checked.notes), (0, 4, 0), "{findings:?}");
}
