//! Clients that add and build while garbage is collected without pause.
//!
//! What a client was told is in the store must stay there for as long as its connection lives. All clients add from one small set of things, so
//! that one is often collected in the moment in which somebody adds it again.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fruix_drv::StorePath;
use fruix_protocol::kinds::GcAction;
use fruix_protocol::ops::{OptimiseStore, QueryPathInfo, QueryReferences, QueryValidPaths, VerifyStore};
use fruix_protocol::sample::Samples;
use tokio::task::JoinSet;

use crate::common::{Connection, Daemon, Error, Log, Result, Tree, add_archive, add_text, archive, build, collect, fail, seed};
use crate::recipes::{Cook, Recipe, Tools};

/// What was done, by all.
#[derive(Debug, Default)]
struct Counts {
    sessions: AtomicU64,
    texts: AtomicU64,
    trees: AtomicU64,
    builds: AtomicU64,
    checked: AtomicU64,
    hashed: AtomicU64,
    collections: AtomicU64,
    deleted: AtomicU64,
}

fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

/// Runs the scenario.
pub(crate) async fn run(seconds: u64, clients: u64) -> Result<String> {
    let daemon = Daemon::from_env()?;
    let until = Instant::now() + Duration::from_secs(seconds);
    let counts = Arc::new(Counts::default());
    let stop = Arc::new(AtomicBool::new(false));
    let mut keeper = daemon.connect().await?;
    let tools = Tools::add(&mut keeper).await?;

    let collector = tokio::spawn(collector(daemon.clone(), Arc::clone(&stop), Arc::clone(&counts)));
    let mut adders = JoinSet::new();
    for client in 0..clients {
        let (daemon, tools, stop, counts) = (daemon.clone(), tools.clone(), Arc::clone(&stop), Arc::clone(&counts));
        adders.spawn(async move {
            let samples = Samples::new(seed().wrapping_mul(1000).wrapping_add(client), daemon.dir.clone());
            let result = adder(&daemon, &tools, samples, until, &stop, &counts).await;
            result.map_err(|error| Error::from(format!("client {client}: {error}")))
        });
    }
    let mut result = Ok(());
    while let Some(ended) = adders.join_next().await {
        let ended = ended?;
        if ended.is_err() && result.is_ok() {
            result = ended;
            stop.store(true, Ordering::Relaxed);
        }
    }
    stop.store(true, Ordering::Relaxed);
    collector.await??;
    result?;

    let mut connection = daemon.connect().await?;
    let log = Log::of(&mut connection);
    if connection.verify_store(VerifyStore { check_contents: true, repair: false }).await? {
        fail!("the store does not verify: {}", log.text());
    }
    let left = collect(&mut connection, GcAction::DeleteDead).await?.paths.len();
    if connection.verify_store(VerifyStore { check_contents: true, repair: false }).await? {
        fail!("the store does not verify after the last collection: {}", log.text());
    }
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    if of(&counts.collections) < 5 || of(&counts.deleted) < 20 || of(&counts.builds) < 5 {
        fail!("too little happened to show anything: {counts:?}");
    }
    Ok(format!(
        "gc-soak: in {seconds} s {clients} clients added {} texts and {} trees and had {} builds in {} sessions, none of {} paths lost ({} hashed); \
         {} collections deleted {} paths, {left} left to the last; seed {}",
        of(&counts.texts),
        of(&counts.trees),
        of(&counts.builds),
        of(&counts.sessions),
        of(&counts.checked),
        of(&counts.hashed),
        of(&counts.collections),
        of(&counts.deleted),
        seed(),
    ))
}

/// Collects without pause, and now and then does what else goes through the whole store.
async fn collector(daemon: Daemon, stop: Arc<AtomicBool>, counts: Arc<Counts>) -> Result<()> {
    let mut connection = daemon.connect().await?;
    let log = Log::of(&mut connection);
    for turn in 1_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let deleted = collect(&mut connection, GcAction::DeleteDead).await.map_err(|error| format!("collecting: {error}"))?.paths;
        count(&counts.collections, 1);
        count(&counts.deleted, deleted.len());
        if turn.is_multiple_of(20) {
            connection.optimise_store(OptimiseStore {}).await.map_err(|error| format!("optimising: {error}"))?;
        }
        if turn.is_multiple_of(50) && connection.verify_store(VerifyStore { check_contents: false, repair: false }).await? {
            fail!("the store does not verify in between: {}", log.text());
        }
    }
    Ok(())
}

/// One client after the other, until the time is over.
async fn adder(daemon: &Daemon, tools: &Tools, mut samples: Samples, until: Instant, stop: &AtomicBool, counts: &Counts) -> Result<()> {
    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
        let mut connection = daemon.connect().await?;
        let mut kept: BTreeSet<StorePath> = BTreeSet::new();
        let mut cook = Cook::new(daemon.dir.clone(), tools.clone());
        for _ in 0..5 + samples.below(25) {
            match samples.below(10) {
                // A chain of texts that others have, too.
                0..=3 => {
                    let number = samples.below(30);
                    let mut references = Vec::new();
                    for level in 0..=samples.below(3) {
                        let path = add_text(&mut connection, &format!("text-{number}-{level}"), b"shared", &references).await?;
                        kept.insert(path.clone());
                        references = vec![path];
                        count(&counts.texts, 1);
                    }
                }
                // A text of one's own, which refers to what one has.
                4..=5 => {
                    let references: Vec<StorePath> = kept.iter().filter(|_| samples.below(8) == 0).cloned().collect();
                    let text = format!("{}", samples.word());
                    kept.insert(add_text(&mut connection, "own", text.as_bytes(), &references).await?);
                    count(&counts.texts, 1);
                }
                6..=7 => {
                    let number = samples.below(12);
                    let file =
                        |n: u64| (format!("{n:02}"), Tree::File(format!("{} ", n * number).repeat(400).into_bytes(), n.is_multiple_of(3)));
                    let tree = Tree::Directory((0..number).map(file).collect());
                    kept.insert(add_archive(&mut connection, &format!("tree-{number}"), &archive(&tree)?).await?);
                    count(&counts.trees, 1);
                }
                // Two derivations, of which the second needs the first and its output refers to that of the first.
                _ => {
                    let number = samples.below(12);
                    let source = add_text(&mut connection, &format!("source-{number}"), b"source", &[]).await?;
                    let mut first = Recipe::new(format!("first-{number}"), format!("echo {} > $out", daemon.dir.display(&source)));
                    first.sources.insert(source);
                    let first = cook.make(&mut connection, first).await?;
                    let script = format!("echo {} > $out", daemon.dir.display(first.out()?));
                    let second = cook.make(&mut connection, Recipe::new(format!("second-{number}"), script).needs(&first)).await?;
                    build(&mut connection, &[&second.path]).await.map_err(|error| format!("building second-{number}: {error}"))?;
                    kept.extend([second.path.clone(), second.out()?.clone(), first.path.clone()]);
                    count(&counts.builds, 1);
                }
            }
            if samples.below(8) == 0 {
                check(daemon, &mut connection, &kept, counts, &mut samples).await?;
            }
        }
        check(daemon, &mut connection, &kept, counts, &mut samples).await?;
        count(&counts.sessions, 1);
    }
    Ok(())
}

/// Whether all that was acknowledged is there, with all that it refers to.
async fn check(
    daemon: &Daemon,
    connection: &mut Connection,
    kept: &BTreeSet<StorePath>,
    counts: &Counts,
    samples: &mut Samples,
) -> Result<()> {
    let mut all = kept.clone();
    let mut todo: Vec<StorePath> = kept.iter().cloned().collect();
    while let Some(path) = todo.pop() {
        let references =
            connection.query_references(QueryReferences { path: path.clone() }).await.map_err(|error| format!("{path}: {error}"))?;
        todo.extend(references.into_iter().filter(|reference| all.insert(reference.clone())));
    }
    let valid = connection.query_valid_paths(QueryValidPaths { paths: all.iter().cloned().collect() }).await?;
    if let Some(lost) = all.difference(&valid).next() {
        fail!("{lost} was acknowledged, or is referred to, and is not valid any more");
    }
    count(&counts.checked, all.len());
    for path in &all {
        let file = daemon.dir.display(path);
        if std::fs::symlink_metadata(&file).is_err() {
            fail!("{path} is valid, but not on the disk");
        }
        // The tools are large, and nobody touches them.
        if samples.below(6) == 0 && kept.contains(path) {
            let info = connection.query_path_info(QueryPathInfo { path: path.clone() }).await?;
            let found = fruix_store::hash_path(Path::new(&file)).map_err(|error| format!("{path}: {error}"))?;
            if found != (info.hash, info.nar_size) {
                fail!("{path} is on the disk, but not as it was registered");
            }
            count(&counts.hashed, 1);
        }
    }
    Ok(())
}
