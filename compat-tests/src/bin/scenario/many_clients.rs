//! Many clients that ask for overlapping derivations at the same time.
//!
//! Every builder writes a random number into its output and its log. So a derivation was built once if all clients, the log file and the output
//! have the same number, and the logs show one start.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fruix_drv::{StoreDir, StorePath};
use fruix_protocol::ops::{IsValidPath, SetOptions};
use fruix_protocol::sample::Samples;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::common::{Daemon, Error, Log, Result, build, fail, seed};
use crate::recipes::{Cook, Drv, Recipe, Tools};

/// Builds at a time, in which all clients have to agree.
const JOBS: &str = "14";
/// How long a builder that nobody waits for may take to end.
const END: Duration = Duration::from_secs(3);

/// A derivation that the clients share.
struct Node {
    drv: Drv,
    lines: u64,
    /// All that it needs, itself included.
    closure: BTreeSet<usize>,
}

/// The builder's script: numbered lines with pauses between them, `seconds` altogether.
fn script(name: &str, lines: u64, milliseconds: u64) -> String {
    let pause = milliseconds / 4;
    format!(
        ": marker-{name}-marker\nnonce=$SRANDOM-$SRANDOM-$SRANDOM\necho {name} is $nonce\nfor ((n = 0; n < {lines}; n++)); do\n\
         echo {name} says line $n, which is long enough to fill a pipe when there are many\n\
         ((n % {quarter})) || $bb usleep {pause}000\ndone\necho {name} ends\necho $nonce > $out",
        quarter = (lines / 4).max(1),
    )
}

/// What that writes.
fn expected(name: &str, lines: u64, nonce: &str) -> String {
    let mut text = format!("{name} is {nonce}\n");
    for n in 0..lines {
        text += &format!("{name} says line {n}, which is long enough to fill a pipe when there are many\n");
    }
    text + &format!("{name} ends\n")
}

/// What a client heard of one derivation.
#[derive(Debug, Default)]
struct Heard {
    started: u32,
    succeeded: u32,
    log: Vec<u8>,
}

/// Takes a client's log apart.
fn heard(log: &[u8]) -> Result<BTreeMap<String, Heard>> {
    let mut known: BTreeMap<String, Heard> = BTreeMap::new();
    let mut builders: BTreeMap<String, String> = BTreeMap::new();
    let mut rest = log;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        let line = String::from_utf8_lossy(line).into_owned();
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["@", "build-started", drv, _, _, _, pid] => {
                builders.insert((*pid).into(), (*drv).into());
                known.entry((*drv).into()).or_default().started += 1;
            }
            ["@", "build-succeeded", drv, ..] => known.entry((*drv).into()).or_default().succeeded += 1,
            ["@", "build-log", pid, length] => {
                let length: usize = length.parse()?;
                let (Some(piece), Some(after)) = (rest.get(..length), rest.get(length..)) else { fail!("the log ends within a piece") };
                let Some(drv) = builders.get(*pid) else { fail!("output of an unknown builder {pid}: {}", String::from_utf8_lossy(piece)) };
                known.entry(drv.clone()).or_default().log.extend_from_slice(piece);
                rest = after;
            }
            _ => {}
        }
    }
    Ok(known)
}

/// Compares what a client heard of a derivation with what it should have.
fn complete(who: &str, heard: Option<&Heard>, name: &str, text: &str) -> Result<()> {
    let Some(heard) = heard else { fail!("{who} heard nothing of {name}") };
    if (heard.started, heard.succeeded) != (1, 1) {
        fail!("{who} heard {name} start {} times and succeed {} times", heard.started, heard.succeeded);
    }
    if heard.log != text.as_bytes() {
        let heard = String::from_utf8_lossy(&heard.log);
        let line =
            heard.lines().zip(text.lines()).position(|(a, b)| a != b).unwrap_or_else(|| heard.lines().count().min(text.lines().count()));
        fail!(
            "{who} heard {} lines of {name} instead of {}; line {line} is the first that differs: {:?} instead of {:?}",
            heard.lines().count(),
            text.lines().count(),
            heard.lines().nth(line),
            text.lines().nth(line)
        );
    }
    Ok(())
}

/// The number that a builder wrote into its output.
fn nonce(dir: &StoreDir, drv: &Drv) -> Result<String> {
    let file = dir.display(drv.out()?);
    Ok(std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?.trim().to_owned())
}

/// The log file of a derivation.
fn log_file(logs: &Path, drv: &StorePath) -> Result<String> {
    let (start, rest) = drv.base_name().split_at(2);
    let file = logs.join(start).join(format!("{rest}.gz"));
    let mut text = String::new();
    let bytes = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(text)
}

/// Whether a builder with this marker runs.
fn runs(name: &str) -> Result<bool> {
    let marker = format!(": marker-{name}-marker");
    for entry in std::fs::read_dir("/proc")? {
        let Ok(command) = std::fs::read(entry?.path().join("cmdline")) else { continue };
        if String::from_utf8_lossy(&command).contains(&marker) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How long until that is no longer, or is, so.
async fn until_runs(name: &str, wanted: bool, limit: Duration) -> Result<Duration> {
    let begun = Instant::now();
    while runs(name)? != wanted {
        if begun.elapsed() > limit {
            fail!("the builder of {name} {} after {limit:?}", if wanted { "does not run" } else { "still runs" });
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(begun.elapsed())
}

fn jobs(options: &mut SetOptions) {
    for (name, value) in &mut options.settings {
        if *name == "build-max-jobs" {
            *value = JOBS.into();
        }
    }
}

/// Runs the scenario.
pub(crate) async fn run(clients: usize, derivations: usize, leavers: usize, logs: &Path) -> Result<String> {
    let daemon = Daemon::from_env()?;
    let mut samples = Samples::new(seed(), daemon.dir.clone());
    let mut keeper = daemon.connect_with(jobs).await?;
    let tools = Tools::add(&mut keeper).await?;
    let mut cook = Cook::new(daemon.dir.clone(), tools);

    // Nothing else starts before this has ended, and everybody has asked until then.
    let gate = cook.make(&mut keeper, Recipe::new("gate", script("gate", 4, 4000))).await?;
    let mut nodes: Vec<Node> = Vec::new();
    for number in 0..derivations {
        let name = format!("node-{number}");
        let lines = 20 + samples.below(200);
        let mut recipe = Recipe::new(&name, script(&name, lines, samples.below(400))).needs(&gate);
        let mut closure = BTreeSet::from([number]);
        if number >= derivations / 6 {
            for _ in 0..=samples.below(3) {
                let input = usize::try_from(samples.below(number as u64))?;
                if let Some(node) = nodes.get(input) {
                    recipe = recipe.needs(&node.drv);
                    closure.extend(&node.closure);
                }
            }
        }
        let drv = cook.make(&mut keeper, recipe).await?;
        nodes.push(Node { drv, lines, closure });
    }
    let mut private = Vec::new();
    for number in 0..leavers {
        let name = format!("private-{number}");
        private.push(cook.make(&mut keeper, Recipe::new(&name, script(&name, 40, 5000)).needs(&gate)).await?);
    }

    let nodes = Arc::new(nodes);
    let others = private.iter().step_by(2).count();
    let barrier = Arc::new(Barrier::new(clients + leavers + others));
    let begun = Instant::now();

    // Those who wait for all that they asked for.
    let mut waiting = JoinSet::new();
    for client in 0..clients {
        let wanted: BTreeSet<usize> =
            (0..=samples.below(6)).map(|_| usize::try_from(samples.below(derivations as u64))).collect::<std::result::Result<_, _>>()?;
        let (daemon, nodes, barrier) = (daemon.clone(), Arc::clone(&nodes), Arc::clone(&barrier));
        waiting.spawn(async move {
            let mut connection = daemon.connect_with(jobs).await?;
            let log = Log::of(&mut connection);
            barrier.wait().await;
            let drvs: Vec<&StorePath> = wanted.iter().filter_map(|number| nodes.get(*number)).map(|node| &node.drv.path).collect();
            build(&mut connection, &drvs).await.map_err(|error| format!("client {client}: {error}"))?;
            Ok::<_, Error>((client, wanted, log.bytes()))
        });
    }
    // Those who go in the middle; the builds of every second one are also waited for by somebody else.
    let mut leaving = JoinSet::new();
    let mut staying = JoinSet::new();
    for (number, drv) in private.iter().enumerate() {
        let shared = number % 2 == 0;
        let pause = Duration::from_millis(samples.below(1500));
        let also = nodes.get(number % nodes.len().max(1)).map(|node| node.drv.path.clone());
        let (daemon, barrier, path) = (daemon.clone(), Arc::clone(&barrier), drv.path.clone());
        if shared {
            let (daemon, barrier, path) = (daemon.clone(), Arc::clone(&barrier), path.clone());
            staying.spawn(async move {
                let mut connection = daemon.connect_with(jobs).await?;
                let log = Log::of(&mut connection);
                barrier.wait().await;
                build(&mut connection, &[&path]).await.map_err(|error| format!("the one who stays with private-{number}: {error}"))?;
                Ok::<_, Error>((number, log.bytes()))
            });
        }
        leaving.spawn(async move {
            let name = format!("private-{number}");
            let mut connection = daemon.connect_with(jobs).await?;
            barrier.wait().await;
            let wanted: Vec<&StorePath> = also.iter().chain([&path]).collect();
            let asked = async {
                let _ = build(&mut connection, &wanted).await;
                Err::<(), Error>(format!("{name} ended before its client had gone").into())
            };
            let running = async {
                until_runs(&name, true, Duration::from_secs(100)).await?;
                sleep(pause).await;
                Ok::<(), Error>(())
            };
            tokio::select! { ended = asked => ended?, running = running => running? };
            drop(connection);
            if shared {
                sleep(Duration::from_millis(700)).await;
                if !runs(&name)? {
                    fail!("the builder of {name} ended with a client, though another waits for it");
                }
                return Ok(Duration::ZERO);
            }
            until_runs(&name, false, END).await
        });
    }

    let mut gone = Duration::ZERO;
    while let Some(left) = leaving.join_next().await {
        gone = gone.max(left??);
    }
    let mut answers = Vec::new();
    while let Some(answer) = waiting.join_next().await {
        answers.push(answer??);
    }
    let took = begun.elapsed();

    let mut texts = BTreeMap::new();
    let mut asked = BTreeSet::new();
    let (mut late, mut lines) = (0, 0);
    let gate_path = daemon.dir.display(&gate.path);
    for (client, wanted, log) in &answers {
        let who = format!("client {client}");
        let heard = heard(log).map_err(|error| format!("{who}: {error}"))?;
        if !heard.contains_key(&gate_path) {
            late += 1;
            continue;
        }
        let closure: BTreeSet<usize> =
            wanted.iter().filter_map(|number| nodes.get(*number)).flat_map(|node| node.closure.clone()).collect();
        for number in &closure {
            let Some(node) = nodes.get(*number) else { continue };
            let name = format!("node-{number}");
            let text = match texts.get(number) {
                Some(text) => text,
                None => texts.entry(*number).or_insert(expected(&name, node.lines, &nonce(&daemon.dir, &node.drv)?)),
            };
            complete(&who, heard.get(&daemon.dir.display(&node.drv.path)), &name, text)?;
            lines += text.lines().count();
        }
        if heard.len() != closure.len() + 1 {
            fail!("{who} heard of {} builds, but asked for {}", heard.len() - 1, closure.len());
        }
        asked.extend(closure);
    }
    if late > clients / 10 {
        fail!("{late} clients came too late to hear everything: the machine is too busy for this scenario");
    }
    for (number, text) in &texts {
        let Some(node) = nodes.get(*number) else { continue };
        if log_file(logs, &node.drv.path)? != *text {
            fail!("the log file of node-{number} is not what its builder wrote");
        }
    }
    while let Some(stayed) = staying.join_next().await {
        let (number, log) = stayed??;
        let (name, drv) = (format!("private-{number}"), private.get(number).ok_or("no such derivation")?);
        let text = expected(&name, 40, &nonce(&daemon.dir, drv)?);
        complete(&format!("the one who stays with {name}"), heard(&log)?.get(&daemon.dir.display(&drv.path)), &name, &text)?;
    }

    // What was given up can be built by somebody else.
    let mut again: JoinSet<Result<()>> = JoinSet::new();
    for (number, drv) in private.iter().enumerate().filter(|(number, _)| number % 2 == 1) {
        let (daemon, drv) = (daemon.clone(), drv.clone());
        let logs = logs.to_owned();
        again.spawn(async move {
            let name = format!("private-{number}");
            let mut connection = daemon.connect_with(jobs).await?;
            let out = daemon.dir.display(drv.out()?);
            if connection.is_valid_path(IsValidPath { path: out.into() }).await? {
                fail!("{name} was built though nobody waited for it");
            }
            let log = Log::of(&mut connection);
            build(&mut connection, &[&drv.path]).await.map_err(|error| format!("{name}, again: {error}"))?;
            let text = expected(&name, 40, &nonce(&daemon.dir, &drv)?);
            complete("the next client", heard(&log.bytes())?.get(&daemon.dir.display(&drv.path)), &name, &text)?;
            if log_file(&logs, &drv.path)? != text {
                fail!("the log file of {name} is not what its second builder wrote");
            }
            Ok(())
        });
    }
    while let Some(built) = again.join_next().await {
        built??;
    }
    Ok(format!(
        "many-clients: {clients} clients asked for {} derivations, each built once, all answered in {:.1} s; {lines} lines of log, all there; \
         {leavers} clients went, what only they waited for ended within {} ms, the rest did not; seed {}{}",
        asked.len(),
        took.as_secs_f64(),
        gone.as_millis(),
        seed(),
        if late > 0 { format!("; {late} clients were late") } else { String::new() },
    ))
}
