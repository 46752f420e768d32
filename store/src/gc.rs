//! Garbage collection, while others go on adding.
//!
//! # What is garbage
//! A valid path is *live* when it is a root, when a live path refers to it, and, as [`crate::Config`] says, when it is the deriver of a live
//! output (`gc_keep_derivations`) or an output of a live derivation (`gc_keep_outputs`). Roots are links in `STATE/gcroots` and
//! `STATE/profiles` ([`crate::roots`]), paths that running processes use, and temporary roots ([`crate::temproots`]). All other valid paths
//! are garbage, and so is whatever else is in the store directory, unless it is a temporary root, or `X.lock` or `X.chroot` of one.
//!
//! # How it is deleted
//! The graph is loaded from the database at one stroke, and marked in memory. Then, a chunk after the other, referrers before what they refer
//! to: the rows are deleted in one transaction, which is synced; the files are renamed into a directory that only the daemon sees. The space
//! is given back at the end, when nobody is kept from anything any more. Whenever this is interrupted, then, there is no valid path without
//! its files.
//!
//! # Why nothing is deleted that somebody counts on
//! Somebody counts on path X once [`crate::TempRoots::add`] of X has returned: from then on until his session ends, if X is valid it stays so,
//! with its closure. (Before that he has no right to anything.)
//!
//! *Within this process* the table of [`crate::temproots`] has one mutex. Under it a session adds X, and under it the collector takes a chunk
//! of paths for deletion. So, if X is added
//! - before the collection begins, or while it marks: X is in `needed`, all of which is marked before the first chunk is taken, whether or not the
//!   session has ended by then. (It may have made a permanent root of X where the search for roots had been already.)
//! - after marking, and X is not taken: X and its closure are marked, under the mutex, and what is marked is never taken. Nothing of the
//!   closure can have been taken earlier: a path is taken after all its referrers or together with them.
//! - after marking, and X is taken: `add` waits until the chunk's files are gone, which takes milliseconds. X is not valid then, and
//!   whoever needs it makes it anew.
//!
//! X may become valid only after the graph was loaded. Then the collector does not know it, and takes it for something else than a path: but it
//! is in `needed`, and looked up in the database once more. What X refers to may have been garbage when the graph was loaded. If the
//! database still has it when X is registered, then the foreign key of `Refs` keeps its row from being deleted from then on; the collector sees
//! that and keeps the files and, by the same rule, the closure. If not, registering X fails.
//!
//! *Other processes* do not know the table. As with guix-daemon, they are kept from adding roots while the dead are being determined and taken:
//! the collector has `gc.lock` for writing and a read lock on each file of temporary roots. It has them before it looks for permanent roots,
//! so that a root that moves from one place to the other is seen. A collector of another process is likewise kept out.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bstr::ByteSlice;
use fruix_drv::StorePath;
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction};

use crate::failpoints::{Moment, point, step};
use crate::fsutil::{self, kind, lstat_at, open_dir_at, permissions, remove_tree};
use crate::graph::{Edges, Names, Nodes};
use crate::locks::{self, FileLock, Kind, Life, READ, WRITE, Wait, set_record_lock, wait_record_lock};
use crate::roots::RuntimeRoots;
use crate::staging::{StagedDir, is_staging};
use crate::temproots::{Claim, CollectionGuard, bury};
use crate::{Error, Result, Store};

/// Paths that are taken at a time, and for which the disk is waited for once. Whoever wants one of them waits for all of them.
const CHUNK: usize = 512;

/// Paths whose rows are deleted in one transaction. Whoever adds something meanwhile waits for those.
const ROWS: usize = 64;

/// The suffixes of what lies beside a path while it is made.
const COMPANIONS: [&[u8]; 2] = [b".lock", b".chroot"];

/// How important a message is, with guix-daemon's numbers; a client gets those up to its verbosity (by default [`Verbosity::Info`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// 0: always shown.
    Error,
    /// 1: shown by default.
    Info,
    /// 2
    Talkative,
    /// 3
    Chatty,
    /// 4
    Debug,
    /// 5
    Vomit,
}

/// Where messages for the user go, one line each, without a newline.
pub type Report<'a> = dyn FnMut(Verbosity, &str) + 'a;

/// What a collection is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GcAction {
    /// List what is live.
    ReturnLive,
    /// List what is garbage.
    ReturnDead,
    /// Delete garbage.
    DeleteDead,
    /// Delete certain paths, and those that refer to them, if they are garbage.
    DeleteSpecific,
}

/// What to collect.
#[derive(Clone, Debug)]
pub struct GcOptions {
    /// What to do.
    pub action: GcAction,
    /// For [`GcAction::DeleteSpecific`]: whole file names directly in the store directory. Whether something has that name does not
    /// matter.
    pub paths_to_delete: Vec<Vec<u8>>,
    /// Stop when more than so many bytes are freed. 0 frees (and lists) nothing, `u64::MAX` all.
    pub max_freed: u64,
}

/// What was collected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcResults {
    /// What was listed, or deleted: whole file names, sorted.
    pub paths: Vec<Vec<u8>>,
    /// Bytes given back. Counted as guix-daemon counts: a file that was known to deduplication, and nowhere else used, counts when its
    /// path goes and when its link in `STORE/.links` goes.
    pub bytes_freed: u64,
}

/// `bytes` as guix-daemon shows them: two decimals in the largest unit of which there is more than one.
pub fn show_bytes(bytes: i64) -> String {
    const UNITS: [(u32, &str); 6] = [(60, "EiB"), (50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (power, unit) in UNITS {
        if bytes > 1 << power {
            return format!("{:7.2} {unit}", bytes as f64 / (1_i64 << power) as f64);
        }
    }
    format!("{bytes:4}  bytes")
}

/// The valid paths, by number in order of name, and what keeps what alive.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    names: Names,
    ids: Vec<i64>,
    sizes: Vec<u64>,
    references: Edges,
    /// Derivations and outputs, as far as they keep each other alive.
    kept: Edges,
}

/// The rows of valid paths, as they are stored.
#[derive(Default)]
struct Found {
    rows: Vec<FoundRow>,
    text: Vec<u8>,
}

struct FoundRow {
    id: i64,
    /// Where in the text its name is, and that of its deriver.
    name: Range<usize>,
    deriver: Option<Range<usize>>,
    size: u64,
}

impl Found {
    fn push(&mut self, id: i64, name: &[u8], deriver: Option<&[u8]>, size: u64) {
        let name = self.note(name);
        let deriver = deriver.map(|deriver| self.note(deriver));
        self.rows.push(FoundRow { id, name, deriver, size });
    }

    fn note(&mut self, name: &[u8]) -> Range<usize> {
        let start = self.text.len();
        self.text.extend_from_slice(name);
        start..self.text.len()
    }

    fn text(&self, range: &Range<usize>) -> &[u8] {
        self.text.get(range.clone()).unwrap_or_default()
    }

    /// What was found, by name, without the rows.
    fn sorted(&mut self) -> Vec<FoundRow> {
        let mut rows = std::mem::take(&mut self.rows);
        rows.sort_unstable_by(|one, other| self.text(&one.name).cmp(self.text(&other.name)));
        rows
    }
}

impl Graph {
    /// Loads all valid paths beneath `prefix`, which ends in a slash, from one state of the database.
    fn load(db: &Connection, prefix: &[u8], keep_outputs: bool, keep_derivations: bool) -> Result<Graph> {
        let transaction = db.unchecked_transaction()?;
        let mut graph = Graph::default();
        let mut found = Found::default();
        // In the order in which they are stored: by path, each row would be on another page.
        let mut paths = transaction.prepare("select id, path, narSize, deriver from ValidPaths not indexed")?;
        let mut rows = paths.query([])?;
        while let Some(row) = rows.next()? {
            let Some(name) = row.get_ref(1)?.as_bytes().ok().and_then(|path| path.strip_prefix(prefix)) else { continue };
            if name.is_empty() || name.contains(&b'/') {
                continue;
            }
            let size = row.get::<_, Option<i64>>(2)?.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
            let deriver = if keep_derivations { row.get_ref(3)?.as_bytes_or_null().ok().flatten() } else { None };
            found.push(row.get(0)?, name, deriver.and_then(|path| path.strip_prefix(prefix)), size);
        }
        drop(rows);
        drop(paths);
        let mut derivers = Vec::new();
        for row in found.sorted() {
            graph.ids.push(row.id);
            graph.names.push(found.text(&row.name));
            graph.sizes.push(row.size);
            derivers.push(row.deriver);
        }
        let by_id = Nodes::new(&graph.ids);
        let nodes = graph.ids.len();
        let mut pairs = Vec::new();
        let mut references = transaction.prepare("select referrer, reference from Refs")?;
        let mut rows = references.query([])?;
        while let Some(row) = rows.next()? {
            if let (Some(from), Some(to)) = (by_id.get(row.get(0)?), by_id.get(row.get(1)?))
                && from != to
            {
                pairs.push((from, to));
            }
        }
        drop(rows);
        drop(references);
        graph.references = Edges::new(nodes, &pairs);
        pairs.clear();
        if keep_outputs || keep_derivations {
            let mut outputs = transaction.prepare("select drv, path from DerivationOutputs")?;
            let mut rows = outputs.query([])?;
            while let Some(row) = rows.next()? {
                let output = row.get_ref(1)?.as_bytes().ok().and_then(|path| path.strip_prefix(prefix)).and_then(|name| graph.find(name));
                let (Some(drv), Some(output)) = (by_id.get(row.get(0)?), output) else { continue };
                if keep_outputs {
                    pairs.push((drv, output));
                }
                let deriver = derivers.get(output as usize).and_then(Option::as_ref).map(|deriver| found.text(deriver));
                if keep_derivations && deriver == Some(graph.name(drv)) && graph.name(drv).ends_with(b".drv") {
                    pairs.push((output, drv));
                }
            }
        }
        graph.kept = Edges::new(nodes, &pairs);
        Ok(graph)
    }

    fn len(&self) -> usize {
        self.ids.len()
    }

    fn nodes(&self) -> std::ops::Range<u32> {
        0..self.ids.len() as u32
    }

    fn name(&self, node: u32) -> &[u8] {
        self.names.get(node)
    }

    fn find(&self, name: &[u8]) -> Option<u32> {
        self.names.find(name)
    }

    /// The garbage among `starts`, with all that refers to it, in an order in which it can be deleted: referrers first.
    fn deletion_order(&self, sweep: &Sweep, starts: &[u32]) -> Vec<u32> {
        let dead = |node: &u32| sweep.is_dead(*node);
        let mut pairs = Vec::new();
        for from in self.nodes().filter(dead) {
            pairs.extend(self.references.of(from).iter().filter(|to| dead(to)).map(|to| (*to, from)));
        }
        let referrers = Edges::new(self.len(), &pairs);
        let mut seen = vec![false; self.len()];
        let mut order = Vec::new();
        let mut stack: Vec<(u32, usize)> = Vec::new();
        for start in starts.iter().filter(|node| dead(node)) {
            let enter = |node: u32, seen: &mut Vec<bool>| seen.get_mut(node as usize).is_some_and(|seen| !std::mem::replace(seen, true));
            if enter(*start, &mut seen) {
                stack.push((*start, 0));
            }
            while let Some((node, next)) = stack.last_mut() {
                if let Some(referrer) = referrers.of(*node).get(*next) {
                    *next += 1;
                    if enter(*referrer, &mut seen) {
                        stack.push((*referrer, 0));
                    }
                } else {
                    order.push(*node);
                    stack.pop();
                }
            }
        }
        order
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Dead,
    Live,
    /// Being deleted, or deleted.
    Taken,
}

/// What came of taking something for deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Take {
    Now,
    /// It was taken earlier.
    Before,
    /// Somebody needs it.
    Needed,
}

/// The graph, and what is known to be live.
#[derive(Debug)]
pub(crate) struct Sweep {
    graph: Arc<Graph>,
    marks: Vec<Mark>,
    /// The names of what is being deleted right now.
    going: HashSet<Box<[u8]>>,
}

impl Sweep {
    fn new(graph: Arc<Graph>) -> Sweep {
        let marks = vec![Mark::Dead; graph.len()];
        Sweep { graph, marks, going: HashSet::new() }
    }

    /// Keeps a path and what it keeps alive, as far as it is not being deleted already.
    pub(crate) fn keep(&mut self, path: &StorePath) {
        self.keep_name(path.base_name().as_bytes());
    }

    fn keep_name(&mut self, name: &[u8]) {
        if let Some(node) = self.graph.find(name) {
            self.keep_node(node);
        }
    }

    fn keep_node(&mut self, node: u32) {
        let mut stack = vec![node];
        while let Some(node) = stack.pop() {
            match self.marks.get_mut(node as usize) {
                Some(mark) if *mark == Mark::Dead => *mark = Mark::Live,
                _ => continue,
            }
            stack.extend(self.graph.references.of(node));
            stack.extend(self.graph.kept.of(node));
        }
    }

    fn is_dead(&self, node: u32) -> bool {
        self.marks.get(node as usize) == Some(&Mark::Dead)
    }

    fn is_live(&self, node: u32) -> bool {
        self.marks.get(node as usize) == Some(&Mark::Live)
    }

    /// Whether `path` is being deleted right now.
    pub(crate) fn is_going(&self, path: &StorePath) -> bool {
        self.going.contains(path.base_name().as_bytes())
    }

    /// Takes something for deletion, unless somebody needs it by now.
    fn take(&mut self, item: &Item, needed: &HashSet<StorePath>) -> Take {
        let name = item.name.as_bytes();
        let is_root = |name: &[u8]| StorePath::from_base_name(name).is_ok_and(|path| needed.contains(&path));
        match item.node {
            Some(node) => match self.marks.get_mut(node as usize) {
                Some(mark) if *mark == Mark::Dead => *mark = Mark::Taken,
                Some(mark) if *mark == Mark::Taken => return Take::Before,
                _ => return Take::Needed,
            },
            None if is_needed(name, is_root) => return Take::Needed,
            None => {
                // Who makes a path waits for what lay beside it to go.
                for suffix in COMPANIONS {
                    self.going.extend(name.strip_suffix(suffix).map(Into::into));
                }
            }
        }
        self.going.insert(name.into());
        Take::Now
    }

    /// Gives up deleting something that was taken, since something refers to it.
    fn give_back(&mut self, item: &Item) {
        if let Some(node) = item.node
            && let Some(mark) = self.marks.get_mut(node as usize)
        {
            *mark = Mark::Dead;
            self.keep_node(node);
        }
    }

    /// What was being deleted is gone.
    fn gone(&mut self) {
        self.going.clear();
    }
}

/// Whether something that is no valid path must stay, `is_root` being whether a name is that of a temporary root.
fn is_needed(name: &[u8], is_root: impl Fn(&[u8]) -> bool) -> bool {
    is_root(name) || COMPANIONS.iter().any(|suffix| name.strip_suffix(*suffix).is_some_and(&is_root))
}

/// Something to be deleted.
#[derive(Debug)]
struct Item {
    name: OsString,
    /// Its number, if it was valid when the collection began.
    node: Option<u32>,
}

/// Temporary roots of other processes, which cannot add any as long as this lives.
#[derive(Debug, Default)]
struct ForeignRoots {
    names: HashSet<Vec<u8>>,
    // Closed, and so unlocked, before the claims are given up.
    _files: Vec<File>,
    _claims: Vec<Claim>,
}

impl ForeignRoots {
    /// Locks and reads the files of temporary roots of all other processes, and removes those of dead ones.
    fn read(store: &Store, report: &mut Report<'_>, cancel: &AtomicBool) -> Result<ForeignRoots> {
        let dir = store.state_dir().canonicalize().unwrap_or_else(|_| store.state_dir().to_owned()).join("temproots");
        let prefix = format!("{}/", store.store_dir());
        let mut roots = ForeignRoots::default();
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(roots),
            Err(error) => return Err(Error::io("reading directory", &dir)(error)),
        };
        for entry in entries {
            let path = entry.map_err(Error::io("reading directory", &dir))?.path();
            let Some(claim) = Claim::take(&path) else { continue };
            let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
            let mut file = match File::options().read(true).write(true).custom_flags(flags.bits()).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("opening temporary roots file", &path)(error)),
            };
            if set_record_lock(&file, WRITE).map_err(Error::io("locking", &path))? {
                report(Verbosity::Error, &format!("removing stale temporary roots file `{}'", path.display()));
                bury(&file, &path);
                continue;
            }
            wait_record_lock(&file, READ, Wait::Until(cancel), &path)?;
            let mut text = Vec::new();
            file.read_to_end(&mut text).map_err(Error::io("reading temporary roots file", &path))?;
            for root in text.split(|byte| *byte == 0) {
                roots.names.extend(root.strip_prefix(prefix.as_bytes()).map(<[u8]>::to_vec));
            }
            roots._files.push(file);
            roots._claims.push(claim);
        }
        Ok(roots)
    }

    /// Whether something that is no valid path is needed by another process.
    fn need(&self, name: &[u8]) -> bool {
        is_needed(name, |name| self.names.contains(name))
    }
}

impl Store {
    /// Collects garbage, or lists it: see [`GcAction`]. `runtime` tells what running processes use. `report` gets guix-daemon's messages.
    ///
    /// This waits while another process collects, and takes as long as it takes; sessions of this process are not stopped by it, but for
    /// moments. Setting `cancel` ends it as soon as nothing is half done.
    ///
    /// # Errors
    /// [`Error::NotInStore`] and [`Error::StillAlive`] for [`GcOptions::paths_to_delete`]: then those before it in the order of names are
    /// deleted. [`Error::Interrupted`]. [`Error::Io`] and [`Error::Database`]; what cannot be deleted does not keep the rest from being
    /// deleted.
    pub fn collect_garbage(
        &self,
        options: &GcOptions,
        runtime: &dyn RuntimeRoots,
        report: &mut Report<'_>,
        cancel: &AtomicBool,
    ) -> Result<GcResults> {
        let mut wanted = BTreeSet::new();
        for path in &options.paths_to_delete {
            wanted.insert(self.entry_name(path)?);
        }
        let session = self.temp_roots();
        let gc_lock = self.lock_gc(Kind::Exclusive, Wait::Until(cancel), report)?;
        report(Verbosity::Error, "finding garbage collector roots...");
        let guard = session.table().begin();
        let foreign = ForeignRoots::read(self, report, cancel)?;
        let mut roots: BTreeSet<StorePath> = self.find_roots(report)?.into_iter().map(|(_, path)| path).collect();
        roots.extend(runtime.runtime_roots(self.store_dir())?);
        check(cancel)?;

        let prefix = format!("{}/", self.store_dir());
        let config = self.config();
        let graph = self.db().read("loading the graph of the store", |db| {
            Graph::load(db, prefix.as_bytes(), config.gc_keep_outputs, config.gc_keep_derivations)
        })?;
        let graph = Arc::new(graph);
        // After the database, or something could become valid in between and look like garbage.
        let names = fsutil::names(self.dir()).map_err(Error::io("reading directory", config.store_dir.as_str()))?;
        let mut sweep = Sweep::new(Arc::clone(&graph));
        let needed = guard.needed();
        for path in roots.iter().chain(&needed) {
            sweep.keep(path);
        }
        for name in &foreign.names {
            sweep.keep_name(name);
        }
        for node in graph.nodes() {
            // Nobody could ever name such a path, neither as a root nor to delete it.
            if StorePath::from_base_name(graph.name(node)).is_err() {
                sweep.keep_node(node);
            }
        }
        let is_root =
            |name: &[u8]| foreign.names.contains(name) || StorePath::from_base_name(name).is_ok_and(|path| needed.contains(&path));
        // Temporary root or not, as long as we use it.
        let staging = OsStr::new(self.staging_path().base_name());
        let mut collector = Collector {
            store: self,
            report,
            cancel,
            max_freed: options.max_freed,
            threshold: if config.deduplicate { 2 } else { 1 },
            trash: None,
            names: BTreeSet::new(),
            bytes_freed: 0,
            bytes_invalidated: 0,
            failure: None,
            gave_reserve: false,
        };
        let leftovers = |names: Vec<OsString>| {
            names.into_iter().filter(|name| {
                let bytes = name.as_bytes();
                graph.find(bytes).is_none() && bytes != b".links" && name.as_os_str() != staging
            })
        };
        let listed = |names: &mut dyn Iterator<Item = Vec<u8>>| {
            let names: BTreeSet<Vec<u8>> = names.collect();
            GcResults { paths: names.iter().map(|name| [prefix.as_bytes(), name].concat()).collect(), bytes_freed: 0 }
        };
        let swept = match options.action {
            GcAction::ReturnLive | GcAction::ReturnDead if options.max_freed == 0 => return Ok(GcResults::default()),
            GcAction::ReturnLive => {
                collector.say(Verbosity::Error, "determining live/dead paths...");
                let names = leftovers(names).filter(|name| is_root(name.as_bytes()) && !is_staging(name.as_bytes()));
                let paths = graph.nodes().filter(|node| sweep.is_live(*node)).map(|node| graph.name(node).to_vec());
                return Ok(listed(&mut paths.chain(names.map(OsString::into_vec))));
            }
            GcAction::ReturnDead => {
                collector.say(Verbosity::Error, "determining live/dead paths...");
                let names = leftovers(names)
                    .filter(|name| name != "trash" && !is_root(name.as_bytes()) && !self.is_active(name, &foreign, &needed));
                let paths = graph.nodes().filter(|node| sweep.is_dead(*node)).map(|node| graph.name(node).to_vec());
                return Ok(listed(&mut paths.chain(names.map(OsString::into_vec))));
            }
            GcAction::DeleteDead => {
                collector.open_trash();
                if options.max_freed == 0 {
                    Ok(())
                } else {
                    collector.say(Verbosity::Error, "deleting garbage...");
                    let leftovers: Vec<Item> = leftovers(names)
                        .filter(|name| !is_root(name.as_bytes()) && !self.is_active(name, &foreign, &needed))
                        .map(|name| Item { name, node: None })
                        .collect();
                    let mut starts: Vec<u32> = graph.nodes().filter(|node| sweep.is_dead(*node)).collect();
                    shuffle(&mut starts);
                    let order = graph.deletion_order(&sweep, &starts);
                    guard.sweep(sweep);
                    let valid = order.into_iter().map(|node| collector_item(&graph, node));
                    collector.delete(&guard, &graph, leftovers.into_iter().chain(valid)).map(drop)
                }
            }
            GcAction::DeleteSpecific => {
                collector.open_trash();
                collector.max_freed = options.max_freed;
                let orders: Vec<(Vec<u8>, Option<Vec<Item>>)> = wanted
                    .into_iter()
                    .map(|name| {
                        let items = match graph.find(&name) {
                            Some(node) if sweep.is_dead(node) => {
                                let order = graph.deletion_order(&sweep, &[node]);
                                Some(order.into_iter().map(|node| collector_item(&graph, node)).collect())
                            }
                            Some(_) => None,
                            None => {
                                let os = OsStr::from_bytes(&name);
                                let alive = name == b".links"
                                    || name == b"trash"
                                    || os == staging
                                    || is_root(&name)
                                    || self.is_active(os, &foreign, &needed);
                                (!alive).then(|| vec![Item { name: os.to_owned(), node: None }])
                            }
                        };
                        (name, items)
                    })
                    .collect();
                guard.sweep(sweep);
                let mut result = Ok(());
                for (name, items) in orders {
                    // A session may have come to need it since.
                    let deleted = match items {
                        Some(items) => match collector.delete(&guard, &graph, items.into_iter()) {
                            Ok(kept) => !kept.contains(&name),
                            Err(error) => {
                                result = Err(error);
                                break;
                            }
                        },
                        None => false,
                    };
                    if !deleted {
                        result = Err(Error::StillAlive { path: format!("{prefix}{}", name.as_bstr()) });
                        break;
                    }
                }
                result
            }
        };
        // From here on others may do what they like.
        drop(guard);
        drop(foreign);
        drop(gc_lock);
        drop(session);
        let finished = collector.finish(&prefix, swept.is_err());
        swept?;
        finished
    }

    /// The name in the store directory of a whole file name.
    fn entry_name(&self, path: &[u8]) -> Result<Vec<u8>> {
        let name = path.strip_prefix(self.store_dir().as_str().as_bytes()).and_then(|rest| rest.strip_prefix(b"/"));
        match name {
            Some(name) if !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0) => {
                Ok(name.to_vec())
            }
            _ => Err(Error::NotInStore { path: path.as_bstr().to_string() }),
        }
    }

    /// Takes `gc.lock`, and says so when that takes waiting.
    pub(crate) fn lock_gc(&self, kind: Kind, wait: Wait<'_>, report: &mut Report<'_>) -> Result<FileLock> {
        let waiting = || report(Verbosity::Error, "waiting for the big garbage collector lock...");
        FileLock::acquire(&self.gc_lock_file(), kind, Life::Lasting, wait, waiting)?.ok_or(Error::Interrupted)
    }

    /// Whether something that is no valid path belongs to somebody who is at work.
    fn is_active(&self, name: &OsStr, foreign: &ForeignRoots, needed: &HashSet<StorePath>) -> bool {
        foreign.need(name.as_bytes())
            || is_needed(name.as_bytes(), |name| StorePath::from_base_name(name).is_ok_and(|path| needed.contains(&path)))
            || locks::is_held(&Path::new(self.store_dir().as_str()).join(name))
    }
}

fn collector_item(graph: &Graph, node: u32) -> Item {
    Item { name: OsString::from_vec(graph.name(node).to_vec()), node: Some(node) }
}

fn check(cancel: &AtomicBool) -> Result<()> {
    if cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// Puts items into some order. Without that, a collection that stops early would always take those with the same names.
fn shuffle(items: &mut [u32]) {
    let mut state = RandomState::new().build_hasher().finish();
    for last in (1..items.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let other = ((state >> 33) % (last as u64 + 1)) as usize;
        items.swap(last, other);
    }
}

/// How deleting the row of an item went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    /// It is not valid any more.
    Deleted,
    /// Something refers to it, or it has become valid.
    Kept,
}

/// A collection that deletes.
struct Collector<'a, 'r> {
    store: &'a Store,
    report: &'a mut Report<'r>,
    cancel: &'a AtomicBool,
    max_freed: u64,
    threshold: u64,
    /// Where directories go first; `None` when it cannot be made.
    trash: Option<StagedDir>,
    names: BTreeSet<Vec<u8>>,
    bytes_freed: u64,
    bytes_invalidated: u64,
    /// The first thing that could not be deleted.
    failure: Option<Error>,
    gave_reserve: bool,
}

impl Collector<'_, '_> {
    fn say(&mut self, level: Verbosity, text: &str) {
        (self.report)(level, text);
    }

    fn shown(&self, name: &OsStr) -> PathBuf {
        Path::new(self.store.store_dir().as_str()).join(name)
    }

    fn open_trash(&mut self) {
        match self.store.stage_dir("trash") {
            Ok(trash) => self.trash = Some(trash),
            Err(error) => self.say(Verbosity::Info, &format!("note: can't create trash directory: {error}")),
        }
    }

    fn freed(&self) -> u64 {
        self.bytes_freed.saturating_add(self.bytes_invalidated)
    }

    /// What deleting an item will count as at first.
    fn credit(&self, item: &Item, graph: &Graph, stat: &FileStat) -> u64 {
        if kind(stat) == SFlag::S_IFDIR {
            item.node.and_then(|node| graph.sizes.get(node as usize)).copied().unwrap_or(0)
        } else if fsutil::links(stat) <= self.threshold {
            u64::try_from(stat.st_size).unwrap_or(0)
        } else {
            0
        }
    }

    /// Deletes items, which come in an order in which that is possible, until the limit is reached. Returns the names of those that turned
    /// out to be needed.
    fn delete(&mut self, guard: &CollectionGuard, graph: &Graph, items: impl Iterator<Item = Item>) -> Result<HashSet<Vec<u8>>> {
        let mut items = items.peekable();
        let mut kept = HashSet::new();
        while items.peek().is_some() {
            check(self.cancel)?;
            let mut chunk = Vec::new();
            let mut expected = self.freed();
            while chunk.len() < CHUNK && expected <= self.max_freed {
                let Some(item) = items.next() else { break };
                let stat = lstat_at(self.store.dir(), &item.name).ok();
                expected = expected.saturating_add(stat.map_or(0, |stat| self.credit(&item, graph, &stat)));
                chunk.push(item);
            }
            let taken = guard.with(|sweep, needed| {
                chunk.retain(|item| match sweep.take(item, needed) {
                    Take::Now => true,
                    Take::Before => false,
                    Take::Needed => {
                        kept.insert(item.name.as_bytes().to_vec());
                        false
                    }
                });
            });
            if taken.is_none() {
                break;
            }
            let rows = self.delete_rows(&chunk, graph);
            let rows = match rows {
                Ok(rows) => rows,
                Err(error) => {
                    guard.with(|sweep, _| {
                        chunk.iter().for_each(|item| sweep.give_back(item));
                        sweep.gone();
                    });
                    return Err(error);
                }
            };
            let mut back = Vec::new();
            for (item, row) in chunk.into_iter().zip(rows) {
                match row {
                    Row::Deleted => self.delete_files(&item, graph),
                    Row::Kept => {
                        kept.insert(item.name.as_bytes().to_vec());
                        back.push(item);
                    }
                }
            }
            guard.with(|sweep, _| {
                back.iter().for_each(|item| sweep.give_back(item));
                sweep.gone();
            });
            if self.freed() > self.max_freed {
                let text = format!("deleted or invalidated more than {} bytes; stopping", self.max_freed);
                self.say(Verbosity::Info, &text);
                break;
            }
        }
        Ok(kept)
    }

    /// Deletes the rows of a chunk, for good. On a full disk it makes room first, then tries smaller steps.
    fn delete_rows(&mut self, chunk: &[Item], graph: &Graph) -> Result<Vec<Row>> {
        match self.transaction(chunk, graph) {
            Err(error) if error.is_full() => {}
            other => return other,
        }
        if !std::mem::replace(&mut self.gave_reserve, true) {
            self.store.release_reserve();
        }
        self.empty_trash();
        self.truncate_log();
        match self.transaction(chunk, graph) {
            Err(error) if error.is_full() && chunk.len() > 1 => {}
            other => return other,
        }
        // Row by row, each time giving back the log's space. When one fails, those before it are leftovers, and go next time.
        let mut rows = Vec::with_capacity(chunk.len());
        for item in chunk {
            self.truncate_log();
            match self.transaction(std::slice::from_ref(item), graph) {
                Ok(row) => rows.extend(row),
                Err(error) if rows.is_empty() => return Err(error),
                Err(_) => rows.push(Row::Kept),
            }
        }
        Ok(rows)
    }

    fn truncate_log(&mut self) {
        self.store.db().truncate_log();
    }

    /// Deletes the rows of a chunk. They are gone from the disk when this returns, and so stay gone whatever happens to the machine.
    fn transaction(&mut self, chunk: &[Item], graph: &Graph) -> Result<Vec<Row>> {
        let prefix = format!("{}/", self.store.store_dir());
        let mut rows = Vec::with_capacity(chunk.len());
        for part in chunk.chunks(ROWS) {
            rows.extend(self.store.db().write("deleting valid paths", |db| delete_rows(db, &prefix, part, graph))?);
            point::<rusqlite::Error>("gc::commit", Moment::After)?;
            self.store.db().give_turn();
        }
        if self.store.config().durable {
            self.store.db().sync_log()?;
        }
        Ok(rows)
    }

    /// Deletes what is there of an item whose row is gone.
    fn delete_files(&mut self, item: &Item, graph: &Graph) {
        let shown = self.shown(&item.name);
        let stat = match lstat_at(self.store.dir(), &item.name) {
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.fail(Error::io("getting status of", &shown)(error)),
        };
        let is_dir = kind(&stat) == SFlag::S_IFDIR;
        // What lies in the trash directory of a guix-daemon that was stopped has been counted by him.
        let counted = item.name == "trash";
        if !counted {
            let freed = self.freed();
            let text = if self.max_freed == u64::MAX {
                format!("[{}] deleting '{}'", show_bytes(i64::try_from(freed).unwrap_or(i64::MAX)), shown.display())
            } else {
                let fraction = (freed as f64 / self.max_freed as f64).min(1.0);
                format!("[{}%] deleting '{}'", (fraction * 100.0) as u32, shown.display())
            };
            self.say(Verbosity::Info, &text);
        }
        if is_dir && self.trash.is_some() {
            match self.move_to_trash(&item.name, &stat) {
                Ok(()) => {
                    self.bytes_invalidated = self.bytes_invalidated.saturating_add(self.credit(item, graph, &stat));
                    if !counted {
                        self.names.insert(item.name.as_bytes().to_vec());
                    }
                    return;
                }
                Err(error) => self.say(Verbosity::Info, &format!("note: can't move `{}': {error}", shown.display())),
            }
        }
        let removed = if kind(&stat) == SFlag::S_IFREG && stat.st_size == 0 && item.name.as_bytes().ends_with(b".lock") {
            // Somebody may be about to take it.
            match locks::delete_stale(&shown) {
                Ok(true) => Ok(0),
                Ok(false) => return,
                Err(error) => Err(error),
            }
        } else {
            remove_tree(self.store.dir(), &item.name, &shown, self.threshold).map(|removed| removed.bytes)
        };
        match removed {
            Ok(bytes) => {
                self.bytes_freed = self.bytes_freed.saturating_add(bytes);
                if !counted {
                    self.names.insert(item.name.as_bytes().to_vec());
                }
            }
            Err(error) => self.fail(error),
        }
    }

    /// Notes that something cannot be deleted, and goes on.
    fn fail(&mut self, error: Error) {
        self.say(Verbosity::Error, &format!("error: {error}"));
        self.failure.get_or_insert(error);
    }

    fn move_to_trash(&self, name: &OsStr, stat: &FileStat) -> io::Result<()> {
        let Some(trash) = &self.trash else { return Err(io::Error::from(Errno::ENOENT)) };
        let dir = self.store.dir();
        // Moving a directory needs write permission on itself, for its `..`.
        if !permissions(stat).contains(Mode::S_IWUSR) {
            match open_dir_at(dir, name) {
                Ok(own) => fchmod(&own, permissions(stat) | Mode::S_IWUSR)?,
                Err(error) => tracing::debug!(%error, "cannot make a directory writable"),
            }
        }
        Ok(step("gc::trash", || renameat(dir, name, trash.dir(), name))?)
    }

    /// Gives back the space of what was moved away.
    fn empty_trash(&mut self) {
        let Some(trash) = &self.trash else { return };
        let shown = trash.path();
        let names = match fsutil::names(trash.dir()) {
            Ok(names) => names,
            Err(error) => return self.fail(Error::io("reading directory", &shown)(error)),
        };
        let mut failures = Vec::new();
        for name in names {
            match remove_tree(trash.dir().as_fd(), &name, &shown.join(&name), self.threshold) {
                Ok(removed) => self.bytes_freed = self.bytes_freed.saturating_add(removed.bytes),
                Err(error) => failures.push(error),
            }
        }
        // What it was expected to be is known now.
        self.bytes_invalidated = 0;
        for error in failures {
            self.fail(error);
        }
    }

    /// Empties the trash and drops links that are unused now; without a word after a failure, which is all that a client is to hear of.
    fn finish(mut self, prefix: &str, quiet: bool) -> Result<GcResults> {
        if self.trash.is_some() && !quiet {
            // Under upstream's name, whatever ours is.
            let text = format!("deleting `{prefix}trash'");
            self.say(Verbosity::Info, &text);
        }
        self.empty_trash();
        self.trash = None;
        if !quiet {
            self.say(Verbosity::Error, "deleting unused links...");
        }
        let mut nothing = |_: Verbosity, _: &str| {};
        let report: &mut Report<'_> = if quiet { &mut nothing } else { self.report };
        match self.store.remove_unused_links(report, self.cancel) {
            Ok(bytes) => self.bytes_freed = self.bytes_freed.saturating_add(bytes),
            Err(error) => self.fail(error),
        }
        if self.gave_reserve {
            self.truncate_log();
            self.store.take_reserve();
        }
        match self.failure {
            Some(error) => Err(error),
            None => Ok(GcResults {
                paths: self.names.iter().map(|name| [prefix.as_bytes(), name].concat()).collect(),
                bytes_freed: self.bytes_freed,
            }),
        }
    }
}

/// Deletes rows of `chunk`, unless something has come to refer to them.
fn delete_rows(db: &Transaction<'_>, prefix: &str, chunk: &[Item], graph: &Graph) -> Result<Vec<Row>> {
    let mut rows = Vec::with_capacity(chunk.len());
    let mut delete = db.prepare_cached("delete from ValidPaths where id = ?1")?;
    let mut find = db.prepare_cached("select 1 from ValidPaths where path = ?1")?;
    for item in chunk {
        let deleted = match item.node.and_then(|node| graph.ids.get(node as usize)) {
            Some(id) => match delete.execute([id]) {
                Ok(0) => false,
                Ok(_) => true,
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                    rows.push(Row::Kept);
                    continue;
                }
                Err(error) => return Err(error.into()),
            },
            None => false,
        };
        let valid = match (deleted, item.name.to_str()) {
            (false, Some(name)) => find.query_row([format!("{prefix}{name}")], |_| Ok(())).optional()?.is_some(),
            _ => false,
        };
        rows.push(if valid { Row::Kept } else { Row::Deleted });
    }
    point::<rusqlite::Error>("gc::commit", Moment::Before)?;
    Ok(rows)
}
