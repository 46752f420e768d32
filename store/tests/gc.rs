//! Garbage collection, seen from outside the crate: against a naive reference, and against threads and processes that add meanwhile.
#![cfg_attr(not(target_os = "linux"), allow(unused_imports, dead_code))] // What looks into /proc is Linux's.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fruix_drv::{Hash, HashAlgo, StoreDir, StorePath};
use fruix_store::{Config, Error, GcAction, GcOptions, GcResults, ProcRoots, Result, RuntimeRoots, Store, Verbosity, cannot_repair};
use proptest::prelude::*;
use proptest::sample::Index;

static NEVER: AtomicBool = AtomicBool::new(false);

fn no_runtime_roots(_: &StoreDir) -> Result<BTreeSet<StorePath>> {
    Ok(BTreeSet::new())
}

fn config(root: &Path) -> Config {
    let store_dir = StoreDir::new(root.join("store").to_str().unwrap());
    Config { reserve_space: 0, durable: false, ..Config::new(store_dir, root.join("state")) }
}

struct TestStore {
    store: Store,
    root: PathBuf,
    _dir: tempfile::TempDir,
}

fn test_store(change: impl FnOnce(&mut Config)) -> TestStore {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let mut config = config(&root);
    change(&mut config);
    TestStore { store: Store::open(config).unwrap(), root, _dir: dir }
}

/// A store path that is not there.
fn make_path(what: &str) -> StorePath {
    StorePath::from_base_name(format!("{}-{what}", Hash::of(HashAlgo::Sha1, what).base32())).unwrap()
}

impl TestStore {
    fn collect(&self, action: GcAction, paths: &[&StorePath], max_freed: u64) -> (Result<GcResults>, Vec<String>) {
        let mut lines = Vec::new();
        let options =
            GcOptions { action, paths_to_delete: paths.iter().map(|path| self.store.print(path).into_bytes()).collect(), max_freed };
        let mut report = |level: Verbosity, line: &str| {
            if level <= Verbosity::Info {
                lines.push(line.to_owned());
            }
        };
        let result = self.store.collect_garbage(&options, &no_runtime_roots, &mut report, &NEVER);
        (result, lines)
    }

    fn names(&self, action: GcAction, max_freed: u64) -> BTreeSet<String> {
        self.base_names(self.collect(action, &[], max_freed).0.unwrap())
    }

    fn base_names(&self, results: GcResults) -> BTreeSet<String> {
        let prefix = format!("{}/", self.store.store_dir());
        assert!(results.paths.is_sorted());
        results.paths.into_iter().map(|path| String::from_utf8(path).unwrap().strip_prefix(&prefix).unwrap().to_owned()).collect()
    }

    /// What is in the store directory, but for what is not to be collected.
    fn on_disk(&self) -> BTreeSet<String> {
        let names = std::fs::read_dir(self.root.join("store")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != ".links" && name != self.store.staging_path().base_name()).collect()
    }

    fn text(&self, roots: &fruix_store::TempRoots, name: &str, contents: &str, references: &[&StorePath]) -> StorePath {
        let references = references.iter().map(|path| (*path).clone()).collect();
        self.store.add_text(roots, name, contents.as_bytes(), &references).unwrap()
    }

    fn database(&self) -> rusqlite::Connection {
        let db = rusqlite::Connection::open(self.root.join("state/db/db.sqlite")).unwrap();
        db.busy_timeout(Duration::from_secs(60)).unwrap();
        db.pragma_update(None, "foreign_keys", true).unwrap();
        db
    }
}

// ------------------------------------------------------------------------------------------------------------ the model

#[derive(Clone, Debug)]
struct Node {
    references: Vec<Index>,
    self_reference: bool,
    /// It is an output of this node, if that is a derivation.
    output_of: Option<Index>,
    /// And it says so itself.
    knows_deriver: bool,
    is_drv: bool,
    missing: bool,
    is_dir: bool,
    permanent: bool,
    temporary: bool,
    size: u16,
}

fn node() -> impl Strategy<Value = Node> {
    let odds = |percent: f64| prop::bool::weighted(percent);
    (
        (prop::collection::vec(any::<Index>(), 0..3), odds(0.2), prop::option::of(any::<Index>()), any::<bool>(), odds(0.4)),
        (odds(0.1), any::<bool>(), odds(0.1), odds(0.1), any::<u16>()),
    )
        .prop_map(|((references, self_reference, output_of, knows_deriver, is_drv), (missing, is_dir, permanent, temporary, size))| {
            Node { references, self_reference, output_of, knows_deriver, is_drv, missing, is_dir, permanent, temporary, size }
        })
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Live,
    Dead,
    Delete,
    DeleteSome(u64),
    Specific(Index),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Live),
        Just(Action::Dead),
        Just(Action::Delete),
        (0_u64..200_000).prop_map(Action::DeleteSome),
        any::<Index>().prop_map(Action::Specific),
    ]
}

/// What the database is to hold: a node's references, its deriver, and what it is an output of.
struct Model {
    names: Vec<String>,
    references: Vec<BTreeSet<usize>>,
    output_of: Vec<Option<usize>>,
    deriver: Vec<Option<usize>>,
}

impl Model {
    fn new(nodes: &[Node]) -> Model {
        let mut model = Model { names: Vec::new(), references: Vec::new(), output_of: Vec::new(), deriver: Vec::new() };
        for (number, node) in nodes.iter().enumerate() {
            let hash = Hash::of(HashAlgo::Sha1, number.to_string()).base32();
            // Some begin alike.
            let hash = if number % 3 == 0 { format!("00000000{}", &hash[8..]) } else { hash };
            model.names.push(format!("{hash}-{number}{}", if node.is_drv { ".drv" } else { "" }));
            // Earlier ones only: there are no cycles.
            let mut references: BTreeSet<usize> = node.references.iter().filter(|_| number > 0).map(|index| index.index(number)).collect();
            if node.self_reference {
                references.insert(number);
            }
            model.references.push(references);
            let drv = node.output_of.map(|index| index.index(nodes.len())).filter(|drv| nodes[*drv].is_drv && *drv != number);
            model.output_of.push(drv);
            model.deriver.push(drv.filter(|_| node.knows_deriver));
        }
        model
    }

    fn path(&self, number: usize) -> StorePath {
        StorePath::from_base_name(&self.names[number]).unwrap()
    }

    fn set_up(&self, test: &TestStore, nodes: &[Node]) {
        // As after many rows have gone, or none.
        let sparse = if nodes.len().is_multiple_of(2) { 1000 } else { 1 };
        let row = |number: usize| (number as i64 + 1) * sparse;
        let mut db = test.database();
        let db = db.transaction().unwrap();
        for (number, node) in nodes.iter().enumerate() {
            let print = |number: usize| test.store.print(&self.path(number));
            db.execute(
                "insert into ValidPaths (id, path, hash, registrationTime, deriver, narSize) values (?1, ?2, 'sha256:00', 1, ?3, ?4)",
                (row(number), print(number), self.deriver[number].map(print), node.size),
            )
            .unwrap();
            let file = test.root.join("store").join(&self.names[number]);
            if node.is_dir && !node.missing {
                std::fs::create_dir_all(file.join("sub")).unwrap();
                std::fs::write(file.join("sub/file"), "x").unwrap();
                std::fs::set_permissions(file.join("sub"), PermissionsExt::from_mode(0o555)).unwrap();
                std::fs::set_permissions(&file, PermissionsExt::from_mode(0o555)).unwrap();
            } else if !node.missing {
                std::fs::write(&file, "x".repeat(node.size.into())).unwrap();
            }
            if node.permanent {
                let link = test.root.join("state/gcroots").join(format!("root-{number}"));
                symlink(file.join("bin/x"), link).unwrap();
            }
        }
        for (number, references) in self.references.iter().enumerate() {
            for reference in references {
                db.execute("insert into Refs values (?1, ?2)", (row(number), row(*reference))).unwrap();
            }
            if let Some(drv) = self.output_of[number] {
                let output = (row(drv), format!("out{number}"), test.store.print(&self.path(number)));
                db.execute("insert into DerivationOutputs values (?1, ?2, ?3)", output).unwrap();
            }
        }
        db.commit().unwrap();
    }

    /// What is live, by repeating the rules until nothing changes.
    fn live(&self, nodes: &[Node], keep_outputs: bool, keep_derivations: bool) -> BTreeSet<usize> {
        let mut live: BTreeSet<usize> = (0..nodes.len()).filter(|number| nodes[*number].permanent || nodes[*number].temporary).collect();
        loop {
            let mut more = live.clone();
            for number in &live {
                more.extend(&self.references[*number]);
                if keep_derivations {
                    more.extend(self.deriver[*number]);
                }
                if keep_outputs {
                    more.extend((0..nodes.len()).filter(|output| self.output_of[*output] == Some(*number)));
                }
            }
            if more == live {
                return live;
            }
            live = more;
        }
    }

    /// `start` and all that refers to it.
    fn referrers(&self, start: usize) -> BTreeSet<usize> {
        let mut all = BTreeSet::from([start]);
        for number in 0..self.names.len() {
            // References go to smaller numbers, so that one pass is enough.
            if self.references[number].iter().any(|reference| all.contains(reference)) {
                all.insert(number);
            }
        }
        all
    }
}

fn model_case(nodes: &[Node], keep_outputs: bool, keep_derivations: bool, action: Action) {
    let test = test_store(|config| {
        config.gc_keep_outputs = keep_outputs;
        config.gc_keep_derivations = keep_derivations;
    });
    let model = Model::new(nodes);
    model.set_up(&test, nodes);
    let roots = test.store.temp_roots();
    for (number, _) in nodes.iter().enumerate().filter(|(_, node)| node.temporary) {
        roots.add(&model.path(number)).unwrap();
    }
    let live = model.live(nodes, keep_outputs, keep_derivations);
    let all: BTreeSet<usize> = (0..nodes.len()).collect();
    let names = |numbers: &BTreeSet<usize>| numbers.iter().map(|number| model.names[*number].clone()).collect::<BTreeSet<String>>();
    let there = |numbers: &BTreeSet<usize>| names(&numbers.iter().copied().filter(|number| !nodes[*number].missing).collect());
    let dead: BTreeSet<usize> = all.difference(&live).copied().collect();

    let deleted = match action {
        Action::Live => {
            assert_eq!(test.names(GcAction::ReturnLive, u64::MAX), names(&live));
            BTreeSet::new()
        }
        Action::Dead => {
            assert_eq!(test.names(GcAction::ReturnDead, u64::MAX), names(&dead));
            BTreeSet::new()
        }
        Action::Delete => {
            assert_eq!(test.names(GcAction::DeleteDead, u64::MAX), there(&dead));
            dead
        }
        Action::Specific(index) => {
            let target = index.index(nodes.len());
            let (result, _) = test.collect(GcAction::DeleteSpecific, &[&model.path(target)], u64::MAX);
            if live.contains(&target) {
                assert!(matches!(result, Err(Error::StillAlive { .. })), "{result:?}");
                BTreeSet::new()
            } else {
                let referrers = model.referrers(target);
                assert_eq!(test.base_names(result.unwrap()), there(&referrers));
                referrers
            }
        }
        Action::DeleteSome(max) => {
            let got = test.names(GcAction::DeleteDead, max);
            let valid = test.store.all_valid().unwrap();
            let gone: BTreeSet<usize> = all.iter().copied().filter(|number| !valid.contains(&model.path(*number))).collect();
            assert!(gone.is_subset(&dead));
            assert_eq!(got, there(&gone));
            for number in &gone {
                assert!(model.referrers(*number).is_subset(&gone), "a referrer of {number} is still valid");
            }
            // Directories count as the database says, files as large as they are: here that is the same.
            let size = |number: &usize| u64::from(nodes[*number].size);
            let freed: Vec<u64> = gone.iter().filter(|number| !nodes[**number].missing).map(size).collect();
            let sum: u64 = freed.iter().sum();
            assert!(gone == dead || sum > max || max == 0, "stopped too early: {sum} of {max}");
            assert!(sum <= max.saturating_add(freed.iter().max().copied().unwrap_or(0)), "stopped too late: {sum} of {max}");
            gone
        }
    };
    let left: BTreeSet<usize> = all.difference(&deleted).copied().collect();
    let valid: BTreeSet<String> = test.store.all_valid().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(valid, names(&left));
    assert_eq!(test.on_disk(), there(&left));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_a_naive_reference(
        nodes in prop::collection::vec(node(), 1..14),
        keep_outputs: bool,
        keep_derivations: bool,
        action in action(),
    ) {
        model_case(&nodes, keep_outputs, keep_derivations, action);
    }
}

// --------------------------------------------------------------------------------------------------------------- stress

const ITEMS: usize = 40;

/// Adds item `number` and all that it refers to, and returns it.
fn add_item(store: &Store, roots: &fruix_store::TempRoots, number: usize, added: &mut BTreeMap<usize, StorePath>) -> StorePath {
    if let Some(path) = added.get(&number) {
        return path.clone();
    }
    let mut references = BTreeSet::new();
    if number > 0 {
        references.insert(add_item(store, roots, (number - 1) / 2, added));
        references.insert(add_item(store, roots, number / 3, added));
    }
    let path = store.add_text(roots, &format!("item-{number}"), format!("contents of {number}").as_bytes(), &references).unwrap();
    added.insert(number, path.clone());
    path
}

/// Asserts that `path` is valid and readable, with its closure.
fn check_closure(store: &Store, path: &StorePath) {
    let mut seen = BTreeSet::new();
    let mut todo = vec![path.clone()];
    while let Some(path) = todo.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        assert!(store.is_valid(&path).unwrap(), "{path} has become invalid");
        let contents = std::fs::read_to_string(store.real_path(&path)).unwrap_or_else(|error| panic!("{path} is valid, but {error}"));
        assert!(contents.starts_with("contents of "));
        todo.extend(store.references(&path).unwrap());
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

#[derive(Default)]
struct Counts {
    sessions: AtomicU64,
    found: AtomicU64,
    not_found: AtomicU64,
    slowest: AtomicU64,
}

/// What a client does, again and again: makes things in a session, or looks for things that may be there, and uses them.
fn adder(store: &Store, seed: u64, until: Instant, counts: &Counts) {
    let mut random = Random(seed);
    let paths: Vec<StorePath> = {
        let mut added = BTreeMap::new();
        let roots = store.temp_roots();
        (0..ITEMS).map(|number| add_item(store, &roots, number, &mut added)).collect()
    };
    while Instant::now() < until {
        let roots = store.temp_roots();
        let mut held = Vec::new();
        for _ in 0..=random.below(4) {
            let number = random.below(ITEMS);
            if random.below(3) == 0 {
                held.push(add_item(store, &roots, number, &mut BTreeMap::new()));
                continue;
            }
            let started = Instant::now();
            roots.add(&paths[number]).unwrap();
            counts.slowest.fetch_max(started.elapsed().as_micros() as u64, Ordering::Relaxed);
            if store.is_valid(&paths[number]).unwrap() {
                counts.found.fetch_add(1, Ordering::Relaxed);
                held.push(paths[number].clone());
            } else {
                counts.not_found.fetch_add(1, Ordering::Relaxed);
            }
        }
        for _ in 0..random.below(3) {
            for path in &held {
                check_closure(store, path);
            }
            std::thread::sleep(Duration::from_micros(random.below(2000) as u64));
        }
        for path in &held {
            check_closure(store, path);
        }
        counts.sessions.fetch_add(1, Ordering::Relaxed);
    }
}

fn collect_until(store: &Store, until: Instant) -> (u64, u64) {
    let (mut collections, mut deleted) = (0, 0);
    while Instant::now() < until {
        let options = GcOptions { action: GcAction::DeleteDead, paths_to_delete: Vec::new(), max_freed: u64::MAX };
        let results = store.collect_garbage(&options, &no_runtime_roots, &mut |_, _| {}, &NEVER).unwrap();
        collections += 1;
        deleted += results.paths.len() as u64;
    }
    (collections, deleted)
}

#[test]
fn d3_adders_keep_what_they_were_promised() {
    let test = test_store(|_| {});
    let until = Instant::now() + Duration::from_secs(4);
    let counts = Counts::default();
    let (collections, deleted) = std::thread::scope(|scope| {
        for seed in 0..8 {
            let (store, counts) = (&test.store, &counts);
            scope.spawn(move || adder(store, seed, until, counts));
        }
        collect_until(&test.store, until)
    });
    let [sessions, found, not_found, slowest] =
        [&counts.sessions, &counts.found, &counts.not_found, &counts.slowest].map(|count| count.load(Ordering::Relaxed));
    eprintln!("{collections} collections deleted {deleted}; {sessions} sessions, {found} found, {not_found} not; slowest add {slowest} µs");
    // Or nothing was tested.
    assert!(collections > 3 && deleted > 50 && sessions > 50 && found > 20 && not_found > 20);
    let store = Store::open(config(&test.root)).unwrap();
    assert!(!store.verify_store(true, None, &mut |_, _| {}, &NEVER).unwrap());
    assert_eq!(std::fs::read_dir(test.root.join("state/temproots")).unwrap().count(), 1);
}

const CHILD: &str = "FRUIX_TEST_GC_CHILD";

/// What another process does for [`other_processes_add_and_collect`].
#[test]
fn child() {
    let Some(root) = std::env::var_os(CHILD) else { return };
    let store = Store::open(config(Path::new(&root))).unwrap();
    let until = Instant::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        for seed in 100..102 {
            let store = &store;
            scope.spawn(move || adder(store, seed, until, &Counts::default()));
        }
        println!("\nstarted");
        let (collections, deleted) = collect_until(&store, until);
        println!("\n{collections} collections deleted {deleted}");
    });
    println!("\nfinished");
}

fn start_child(root: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn other_processes_add_and_collect() {
    let test = test_store(|_| {});
    let mut child = start_child(&test.root);
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while line != "started\n" {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0);
    }
    let until = Instant::now() + Duration::from_secs(3);
    let counts = Counts::default();
    let (collections, deleted) = std::thread::scope(|scope| {
        for seed in 0..2 {
            let (store, counts) = (&test.store, &counts);
            scope.spawn(move || adder(store, seed, until, counts));
        }
        collect_until(&test.store, until)
    });
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    eprintln!("{collections} collections deleted {deleted} here; there:{rest}");
    assert!(rest.contains("\nfinished\n"), "{rest}");
    assert!(child.wait().unwrap().success());
    assert!(collections > 0 && deleted > 0);
}

#[test]
fn killed_processes_leave_nothing_valid_without_its_files() {
    let test = test_store(|_| {});
    for round in 0..6 {
        let mut child = start_child(&test.root);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line != "started\n" {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0);
        }
        std::thread::sleep(Duration::from_millis(100 + 37 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut lines = Vec::new();
        let mut report = |level: Verbosity, line: &str| {
            if level == Verbosity::Error {
                lines.push(line.to_owned());
            }
        };
        assert!(!test.store.verify_store(true, None, &mut report, &NEVER).unwrap());
        assert_eq!(lines, ["reading the store..."]);
    }
    test.collect(GcAction::DeleteDead, &[], u64::MAX).0.unwrap();
    assert_eq!(test.on_disk(), BTreeSet::new());
}

// -------------------------------------------------------------------------------------------------------- in particular

#[test]
fn leftovers_go_and_what_is_in_use_stays() {
    let test = test_store(|_| {});
    let roots = test.store.temp_roots();
    let session = test.store.temp_roots();
    let live = test.text(&roots, "live", "live", &[]);
    let garbage = test.text(&session, "garbage", &"x".repeat(10_000), &[&live]);
    drop(session);
    let [being_made, other, locked] = ["being-made", "other", "locked"].map(make_path);
    roots.add(&being_made).unwrap();
    let store = test.root.join("store");
    let locks = test.store.lock_paths(std::slice::from_ref(&being_made), false).unwrap().unwrap();
    let unrooted = test.store.lock_paths(std::slice::from_ref(&locked), false).unwrap().unwrap();
    std::fs::write(store.join(format!("{other}.lock")), "").unwrap();
    for name in [format!("{being_made}.chroot"), being_made.to_string(), format!("{other}.chroot"), other.to_string(), "trash".to_owned()] {
        std::fs::create_dir_all(store.join(&name).join("a/b")).unwrap();
        std::fs::write(store.join(&name).join("a/b/c"), "12345").unwrap();
        std::fs::set_permissions(store.join(&name).join("a"), PermissionsExt::from_mode(0o500)).unwrap();
    }
    std::fs::write(store.join("junk"), "123").unwrap();
    symlink("/nowhere", store.join(".junk-link")).unwrap();

    let expected: BTreeSet<String> = [
        garbage.to_string(),
        format!("{other}.lock"),
        format!("{other}.chroot"),
        other.to_string(),
        "junk".to_owned(),
        ".junk-link".to_owned(),
    ]
    .into();
    assert_eq!(test.names(GcAction::ReturnDead, u64::MAX), expected);
    assert_eq!(test.names(GcAction::ReturnLive, u64::MAX), [live.to_string(), being_made.to_string()].into());
    for action in [GcAction::ReturnDead, GcAction::ReturnLive, GcAction::DeleteDead] {
        // But `trash` goes in any case.
        assert_eq!(test.names(action, 0), BTreeSet::new());
    }
    let (result, lines) = test.collect(GcAction::DeleteDead, &[], u64::MAX);
    let result = result.unwrap();
    // Two small files of the leftovers, one in `trash`, junk and a link's eight bytes; the garbage twice, since it had a link.
    assert_eq!(result.bytes_freed, 5 * 3 + 3 + 8 + 2 * 10_000);
    assert_eq!(test.base_names(result), expected);
    assert_eq!(lines[0], "finding garbage collector roots...");
    assert_eq!(lines[1], "deleting garbage...");
    assert!(lines.iter().any(|line| line.ends_with(&format!("] deleting '{}'", test.store.print(&garbage)))), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.starts_with('[')).count(), expected.len());
    assert!(lines[lines.len() - 1].starts_with("note: currently hard linking saves "), "{lines:?}");

    drop((locks, unrooted));
    let left = [live.to_string(), being_made.to_string(), format!("{being_made}.chroot"), format!("{being_made}.lock")];
    let left: BTreeSet<String> = left.into_iter().chain([format!("{locked}.lock")]).collect();
    assert_eq!(test.on_disk(), left);
    drop(roots);
    test.collect(GcAction::DeleteDead, &[], u64::MAX).0.unwrap();
    assert_eq!(test.on_disk(), BTreeSet::new());
}

#[test]
fn specific_paths() {
    let test = test_store(|_| {});
    let session = test.store.temp_roots();
    let base = test.text(&session, "base", "base", &[]);
    let user = test.text(&session, "user", "user", &[&base]);
    let second = test.text(&session, "second", "second", &[&user]);
    let other = test.text(&session, "other", "other", &[&base]);
    let error = test.collect(GcAction::DeleteSpecific, &[&second], u64::MAX).0.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot delete path `{}' since it is still alive", test.store.print(&second)));
    drop(session);
    let roots = test.store.temp_roots();
    roots.add(&other).unwrap();
    assert!(matches!(test.collect(GcAction::DeleteSpecific, &[&base], u64::MAX).0, Err(Error::StillAlive { .. })));
    // Named twice over: by itself and by what it refers to.
    let (result, _) = test.collect(GcAction::DeleteSpecific, &[&user, &second], u64::MAX);
    assert_eq!(test.base_names(result.unwrap()), [user.to_string(), second.to_string()].into());
    assert_eq!(test.store.all_valid().unwrap(), [base, other].into());
    // What is not there is deleted easily.
    let (result, _) = test.collect(GcAction::DeleteSpecific, &[&user], u64::MAX);
    assert_eq!(test.base_names(result.unwrap()), BTreeSet::new());
    for (path, shown) in
        [(".links", "still alive"), ("trash", "still alive"), ("a/b", "is not in the store"), ("..", "is not in the store")]
    {
        let path = format!("{}/{path}", test.store.store_dir()).into_bytes();
        let options = GcOptions { action: GcAction::DeleteSpecific, paths_to_delete: vec![path], max_freed: u64::MAX };
        let error = test.store.collect_garbage(&options, &no_runtime_roots, &mut |_, _| {}, &NEVER).unwrap_err();
        assert!(error.to_string().contains(shown), "{error}");
    }
}

#[test]
fn roots_of_all_kinds() {
    let test = test_store(|_| {});
    let session = test.store.temp_roots();
    let path = |name: &str| test.text(&session, name, name, &[]);
    let [direct, indirect, profile, file, busy] = ["direct", "indirect", "profile", "file", "busy"].map(path);
    let real = |path: &StorePath| test.store.real_path(path);
    let state = test.root.join("state");
    let home = test.root.join("home");
    std::fs::create_dir_all(&home).unwrap();
    std::fs::create_dir_all(state.join("gcroots/deep/er")).unwrap();
    symlink(real(&direct).join("bin/sh"), state.join("gcroots/deep/er/direct")).unwrap();
    symlink(real(&indirect), home.join("result")).unwrap();
    test.store.add_indirect_root(&home.join("./x/../result")).unwrap();
    test.store.add_indirect_root(&home.join("gone")).unwrap();
    let auto = |path: &Path| state.join("gcroots/auto").join(Hash::of(HashAlgo::Sha1, path.to_str().unwrap()).base32());
    assert_eq!(std::fs::read_link(auto(&home.join("result"))).unwrap(), home.join("result"));
    symlink("../../home/gone", state.join("gcroots/stays")).unwrap();
    symlink("p-1-link", state.join("profiles/per-user/p")).unwrap();
    symlink(real(&profile), state.join("profiles/per-user/p-1-link")).unwrap();
    std::fs::write(state.join("gcroots").join(file.base_name()), "").unwrap();
    let nothing = make_path("nothing");
    symlink(real(&nothing).join("x"), state.join("gcroots/invalid")).unwrap();
    drop(session);

    let mut lines = Vec::new();
    let found = test.store.find_roots(&mut |_, line| lines.push(line.to_owned())).unwrap();
    assert!(found.is_sorted());
    let found: BTreeMap<PathBuf, StorePath> =
        found.into_iter().map(|(link, path)| (PathBuf::from(String::from_utf8(link).unwrap()), path)).collect();
    // `p` itself is none: what it points to is.
    let expected: BTreeMap<PathBuf, StorePath> = [
        (state.join("gcroots/deep/er/direct"), direct.clone()),
        (home.join("result"), indirect.clone()),
        (state.join("profiles/per-user/p-1-link"), profile.clone()),
        (state.join("gcroots").join(file.base_name()), file.clone()),
    ]
    .into();
    assert_eq!(found, expected);
    lines.sort();
    assert_eq!(
        lines,
        [
            format!("removing stale link from `{}' to `{}'", auto(&home.join("gone")).display(), home.join("gone").display()),
            format!("skipping invalid root from `{}' to `{}'", state.join("gcroots/invalid").display(), real(&nothing).display()),
        ]
    );
    assert!(auto(&home.join("gone")).symlink_metadata().is_err());
    assert!(state.join("gcroots/stays").symlink_metadata().is_ok());

    let runtime = |_: &StoreDir| -> Result<BTreeSet<StorePath>> { Ok([busy.clone()].into()) };
    let options = GcOptions { action: GcAction::ReturnLive, paths_to_delete: Vec::new(), max_freed: u64::MAX };
    let live = test.store.collect_garbage(&options, &runtime, &mut |_, _| {}, &NEVER).unwrap();
    let all: BTreeSet<String> = [direct, indirect, profile, file, busy].iter().map(ToString::to_string).collect();
    assert_eq!(test.base_names(live), all);
}

#[cfg(target_os = "linux")]
#[test]
fn running_processes_keep_what_they_use() {
    let test = test_store(|_| {});
    let roots = test.store.temp_roots();
    let path = |name: &str| test.text(&roots, name, name, &[]);
    let [open, environment, directory, unused] = ["open", "environment", "directory", "unused"].map(path);
    let dir = test.store.real_path(&directory);
    std::fs::remove_file(&dir).unwrap();
    std::fs::create_dir_all(dir.join("sub")).unwrap();
    let mut child = Command::new("sleep")
        .arg("60")
        .env("A", format!("x:{}/bin:y", test.store.print(&environment)))
        .current_dir(dir.join("sub"))
        .stdin(std::fs::File::open(test.store.real_path(&open)).unwrap())
        .spawn()
        .unwrap();
    let found = ProcRoots::default().runtime_roots(test.store.store_dir());
    child.kill().unwrap();
    child.wait().unwrap();
    let mut found = found.unwrap();
    // This process has it open.
    found.remove(test.store.staging_path());
    assert_eq!(found, [open, environment, directory].into());
    assert!(!ProcRoots::default().runtime_roots(test.store.store_dir()).unwrap().contains(&unused));
    // Without /proc nothing is known, which is not the same as nothing.
    assert!(ProcRoots { proc: test.root.clone() }.runtime_roots(test.store.store_dir()).is_err());
}

/// What other programs see of temporary roots.
#[test]
fn files_of_temporary_roots() {
    let test = test_store(|_| {});
    let dir = test.root.join("state/temproots");
    let file = dir.join(std::process::id().to_string());
    let read = || -> BTreeSet<String> {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.ends_with('\0'));
        text.split_terminator('\0').map(str::to_owned).collect()
    };
    let base = read();
    assert_eq!(base, [test.store.print(test.store.staging_path())].into());
    let [a, b, c, d, e] = ["a", "b", "c", "d", "e"].map(make_path);
    let print = |path: &StorePath| test.store.print(path);
    let one = test.store.temp_roots();
    one.add(&a).unwrap();
    one.add(&a).unwrap();
    assert!(one.try_add_all(std::slice::from_ref(&b)).unwrap());
    let two = test.store.temp_roots();
    two.add_all(&[b.clone(), c, d]).unwrap();
    assert_eq!(read().len(), base.len() + 4);
    drop(two);
    assert!(read().is_superset(&[print(&a), print(&b)].into()));
    // Somebody takes the directory away: everything is there again.
    std::fs::remove_dir_all(&dir).unwrap();
    one.add(&e).unwrap();
    assert_eq!(read(), base.union(&[print(&a), print(&b), print(&e)].into()).cloned().collect());
    drop(one);
    assert_eq!(read(), base);
    drop(test.store);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn files_of_dead_processes_are_removed() {
    let test = test_store(|_| {});
    let session = test.store.temp_roots();
    let path = test.text(&session, "x", "x", &[]);
    drop(session);
    let stale = test.root.join("state/temproots/999999999");
    std::fs::write(&stale, format!("{}\0", test.store.print(&path))).unwrap();
    let (results, lines) = test.collect(GcAction::DeleteDead, &[], u64::MAX);
    assert_eq!(test.base_names(results.unwrap()), [path.to_string()].into());
    assert!(lines.contains(&format!("removing stale temporary roots file `{}'", stale.display())), "{lines:?}");
    assert!(!stale.exists());
}

#[test]
fn cancelling() {
    let test = test_store(|_| {});
    let cancel = AtomicBool::new(true);
    let options = GcOptions { action: GcAction::DeleteDead, paths_to_delete: Vec::new(), max_freed: u64::MAX };
    let session = test.store.temp_roots();
    let path = test.text(&session, "x", "x", &[]);
    drop(session);
    let result = test.store.collect_garbage(&options, &no_runtime_roots, &mut |_, _| {}, &cancel);
    assert!(matches!(result, Err(Error::Interrupted)));
    assert!(test.store.is_valid(&path).unwrap());
    test.collect(GcAction::DeleteDead, &[], u64::MAX).0.unwrap();
    assert!(!test.store.is_valid(&path).unwrap());
}

const FULL_CHILD: &str = "FRUIX_TEST_FULL_CHILD";

/// Fills a small file system with a store, and collects; then with nobody having opened it before.
#[cfg(target_os = "linux")]
#[test]
fn full_disk_child() {
    use std::io::Write;
    let Some(root) = std::env::var_os(FULL_CHILD) else { return };
    let root = Path::new(&root);
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=12m", "tmpfs"]).arg(root).stderr(Stdio::null()).status();
    if !mount.is_ok_and(|status| status.success()) {
        println!("\ncannot mount");
        return;
    }
    let config = || Config { reserve_space: 4 << 20, durable: true, ..config(root) };
    let fill = |store: &Store| {
        let roots = store.temp_roots();
        let add = |number: u32| store.add_text(&roots, &format!("t{number}"), "x".repeat(3000).as_bytes(), &BTreeSet::new());
        let added = (0..).find(|number| add(*number).is_err()).unwrap();
        let mut file = std::fs::File::create(root.join("fill")).unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
        added as usize
    };
    let collect = |store: &Store| {
        let options = GcOptions { action: GcAction::DeleteDead, paths_to_delete: Vec::new(), max_freed: u64::MAX };
        let deleted = store.collect_garbage(&options, &no_runtime_roots, &mut |_, _| {}, &NEVER).unwrap().paths.len();
        assert!(store.all_valid().unwrap().is_empty());
        std::fs::remove_file(root.join("fill")).unwrap();
        deleted
    };
    let store = Store::open(config()).unwrap();
    let added = fill(&store);
    assert!(added > 50 && collect(&store) >= added);
    let added = fill(&store);
    drop(store);
    let store = Store::open(config()).unwrap();
    assert!(added > 50 && collect(&store) >= added);
    assert!(!store.verify_store(true, None, &mut |_, _| {}, &NEVER).unwrap());
    println!("\nfinished");
}

#[cfg(target_os = "linux")]
#[test]
fn d5_a_full_disk_can_be_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "full_disk_child", "--nocapture"])
        .env(FULL_CHILD, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if text.contains("unshare failed") || text.contains("cannot mount") {
        eprintln!("skipped: no right to mount");
        return;
    }
    assert!(output.status.success() && text.contains("\nfinished\n"), "{text}");
}

// ------------------------------------------------------------------------------------------------------- deduplication

/// Makes a canonical item with files in it, and registers it. Files that are to be writable are so afterwards.
fn make_tree(test: &TestStore, name: &str, files: &[(&str, &[u8], u32)]) -> StorePath {
    let path = make_path(name);
    let dir = test.store.real_path(&path);
    for (file, contents, mode) in files {
        let file = dir.join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, contents).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(*mode)).unwrap();
    }
    fruix_store::canonicalise(&test.store.place(&path), None, &mut fruix_store::InodesSeen::new()).unwrap();
    for (file, ..) in files.iter().filter(|(_, _, mode)| mode & 0o200 != 0) {
        std::fs::set_permissions(dir.join(file), PermissionsExt::from_mode(0o644)).unwrap();
    }
    let (nar_hash, nar_size) = fruix_store::hash_path(&dir).unwrap();
    let info =
        fruix_store::PathInfo { path: path.clone(), nar_hash, references: BTreeSet::new(), deriver: None, registration_time: 0, nar_size };
    test.store.register(&[info]).unwrap();
    path
}

#[test]
fn equal_files_become_links() {
    let test = test_store(|_| {});
    let roots = test.store.temp_roots();
    let (big, small) = (vec![b'x'; 8192], vec![b'y'; 8191]);
    let files: &[(&str, &[u8], u32)] =
        &[("big", &big, 0o444), ("d/big", &big, 0o444), ("d/program", &big, 0o555), ("d/small", &small, 0o444), ("writable", &big, 0o644)];
    let [one, two] = ["one", "two"].map(|name| make_tree(&test, name, files));
    for path in [&one, &two] {
        roots.add(path).unwrap();
    }
    let of = |path: &StorePath, file: &str| test.store.real_path(path).join(file).metadata().unwrap();
    let mut lines = Vec::new();
    let stats = test.store.optimise_store(&mut |level, line| lines.push((level, line.to_owned())), &NEVER).unwrap();
    assert_eq!((stats.files_linked, stats.bytes_freed), (4, 4 * 8192));
    assert_eq!(lines.last().unwrap(), &(Verbosity::Error, "  32.00 KiB freed by hard-linking 4 files".to_owned()));
    assert_eq!(lines.iter().filter(|(_, line)| line.starts_with("skipping suspicious writable file `")).count(), 2);
    assert_eq!(of(&one, "big").nlink(), 5);
    assert_eq!(of(&two, "d/program").nlink(), 3);
    assert_eq!((of(&one, "d/small").nlink(), of(&one, "writable").nlink()), (1, 1));
    for path in [&one, &two] {
        for dir in ["", "d"] {
            assert_eq!((of(path, dir).mode() & 0o7777, of(path, dir).mtime(), of(path, dir).mtime_nsec()), (0o555, 1, 0));
        }
    }
    let links = test.root.join("store/.links");
    let hash = fruix_store::hash_path(&test.store.real_path(&one).join("big")).unwrap().0;
    let link = links.join(hash.base32());
    assert_eq!(link.metadata().unwrap().ino(), of(&one, "big").ino());
    assert_eq!(std::fs::read_dir(&links).unwrap().count(), 2);
    // Nothing but the lock.
    assert_eq!(std::fs::read_dir(test.store.real_path(test.store.staging_path())).unwrap().count(), 1);

    // D4: a link that is not what its name says spreads no further.
    std::fs::remove_file(&link).unwrap();
    std::fs::write(&link, vec![b'z'; 8192]).unwrap();
    std::fs::set_permissions(&link, PermissionsExt::from_mode(0o444)).unwrap();
    let three = make_tree(&test, "three", &[("big", &big, 0o444)]);
    roots.add(&three).unwrap();
    test.store.optimise_path(&three).unwrap();
    assert_eq!(std::fs::read(test.store.real_path(&three).join("big")).unwrap(), big);
    assert_eq!(link.metadata().unwrap().ino(), of(&three, "big").ino());
    assert!(!test.store.verify_store(true, None, &mut |_, _| {}, &NEVER).unwrap());

    drop(roots);
    test.collect(GcAction::DeleteDead, &[], u64::MAX).0.unwrap();
    assert_eq!(std::fs::read_dir(&links).unwrap().count(), 0);
}

#[test]
fn verification() {
    let test = test_store(|_| {});
    let roots = test.store.temp_roots();
    let kept = test.text(&roots, "kept", "kept", &[]);
    let base = test.text(&roots, "base", "base", &[]);
    let user = test.text(&roots, "user", "user", &[&base]);
    let gone = test.text(&roots, "gone", "gone", &[]);
    let gone_user = test.text(&roots, "gone-user", "gone-user", &[&gone]);
    let print = |path: &StorePath| test.store.print(path);
    let verify = |repair: bool| {
        let mut lines = Vec::new();
        let mut cannot = cannot_repair(&test.store);
        let repair: Option<&mut fruix_store::Repair<'_>> = if repair { Some(&mut cannot) } else { None };
        let mut report = |level: Verbosity, line: &str| {
            if level <= Verbosity::Info {
                lines.push(line.to_owned());
            }
        };
        (test.store.verify_store(true, repair, &mut report, &NEVER).unwrap(), lines)
    };
    let calm = ["reading the store...", "checking path existence...", "checking hashes..."].map(str::to_owned);
    assert_eq!(verify(false), (false, calm.to_vec()));

    for path in [&base, &gone, &gone_user] {
        std::fs::remove_file(test.store.real_path(path)).unwrap();
    }
    let changed = test.store.real_path(&kept);
    std::fs::set_permissions(&changed, PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::write(&changed, "other").unwrap();
    let size = test.store.path_info(&user).unwrap().nar_size;
    test.database().execute("update ValidPaths set narSize = null where path = ?1", [print(&user)]).unwrap();
    let (errors, mut lines) = verify(false);
    assert!(errors);
    let position = |line: &str| lines.iter().position(|other| other.contains(line)).unwrap();
    assert!(position(gone_user.base_name()) < position(gone.base_name()));
    let expected = test.store.path_info(&kept).unwrap().nar_hash.base16();
    let got = fruix_store::hash_path(&changed).unwrap().0.base16();
    let mut expected_lines = vec![
        format!("path `{}' disappeared, but it still has valid referrers!", print(&base)),
        format!("path `{}' disappeared, removing from database...", print(&gone_user)),
        format!("path `{}' disappeared, removing from database...", print(&gone)),
        format!("path `{}' was modified! expected hash `{expected}', got `{got}'", print(&kept)),
        format!("updating size field on `{}' to {size}", print(&user)),
    ];
    expected_lines.extend(calm);
    expected_lines.sort();
    lines.sort();
    assert_eq!(lines, expected_lines);
    assert_eq!(test.store.all_valid().unwrap(), [kept.clone(), base.clone(), user.clone()].into());
    assert_eq!(test.store.path_info(&user).unwrap().nar_size, size);

    let (errors, lines) = verify(true);
    assert!(errors);
    assert!(lines.contains(&format!("warning: cannot repair path `{}'", print(&base))), "{lines:?}");
    assert!(lines.contains(&format!("error: cannot repair path `{}'", print(&kept))), "{lines:?}");
}
