//! A store that guix-daemon and fruixd take over from each other.
//!
//! A turn compares all that can be asked of the daemon with what the one before it answered at its end, so every path, hash, reference, time, root,
//! failure and log must have come through; it uses what the other has made, adds and builds things of its own, and collects garbage. It leaves new
//! garbage to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fruix_drv::{Hash, HashAlgo, StorePath};
use fruix_protocol::kinds::{BuildMode, GcAction};
use fruix_protocol::ops::{
    AddIndirectRoot, ClearFailedPaths, FindRoots, OptimiseStore, QueryAllValidPaths, QueryDerivationOutputs, QueryFailedPaths,
    QueryPathInfo, QueryReferrers, VerifyStore,
};

use crate::common::{
    Connection, Daemon, Error, Log, Result, Tree, add_archive, add_archive_as, add_text, archive, build, build_in_mode, collect, fail,
    file_archive, refusal,
};
use crate::recipes::{Cook, Drv, Recipe, Tools};

/// What is known of the store, by kind and name.
type Facts = BTreeMap<String, BTreeMap<String, String>>;

/// One turn.
pub(crate) async fn turn(state: &Path, turn: u32) -> Result<String> {
    let daemon = Daemon::from_env()?;
    let var = PathBuf::from(std::env::var("GUIX_STATE_DIRECTORY").map_err(|_| Error::from("GUIX_STATE_DIRECTORY is not set"))?);
    let logs = var.join("log/drvs");
    if turn > 1 {
        let before: Facts = serde_json::from_slice(&fs::read(state)?)?;
        same(&before, &observe(&daemon, &logs).await?)?;
    }
    let made = work(&daemon, &var, turn).await?;
    let deleted = clean(&daemon, &made, turn).await?;
    leave(&daemon, turn).await?;
    let mut connection = daemon.connect().await?;
    let log = Log::of(&mut connection);
    if connection.verify_store(VerifyStore { check_contents: true, repair: false }).await? {
        fail!("the store does not verify: {}", log.text());
    }
    drop(connection);
    let facts = observe(&daemon, &logs).await?;
    fs::write(state, serde_json::to_vec(&facts)?)?;
    let count = |kind: &str| facts.get(kind).map_or(0, BTreeMap::len);
    Ok(format!(
        "turn {turn}: {deleted} deleted, {} valid ({} dead, left to the other), {} logs, {} roots",
        count("valid"),
        count("dead"),
        count("log"),
        count("root"),
    ))
}

/// Says what differs.
fn same(before: &Facts, after: &Facts) -> Result<()> {
    let mut differences = Vec::new();
    for (kind, old) in before {
        let empty = BTreeMap::new();
        let new = after.get(kind).unwrap_or(&empty);
        for name in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
            match (old.get(name), new.get(name)) {
                (Some(old), Some(new)) if old == new => {}
                (old, new) => differences.push(format!("{kind} {name}: {old:?} became {new:?}")),
            }
        }
    }
    if differences.is_empty() { Ok(()) } else { Err(format!("the other daemon said otherwise:\n{}", differences.join("\n")).into()) }
}

/// All that can be asked.
async fn observe(daemon: &Daemon, logs: &Path) -> Result<Facts> {
    // Sessions that have just ended may still have temporary roots.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut facts = Facts::new();
    let mut note = |kind: &str, name: String, value: String| drop(facts.entry(kind.into()).or_default().insert(name, value));
    let mut connection = daemon.connect().await?;
    for path in connection.query_all_valid_paths(QueryAllValidPaths {}).await? {
        let info = connection.query_path_info(QueryPathInfo { path: path.clone() }).await?;
        note(
            "valid",
            path.to_string(),
            format!("{} {} {:?} {:?} {}", info.hash.base16(), info.nar_size, info.deriver, info.references, info.registration_time),
        );
        let referrers = connection.query_referrers(QueryReferrers { path: path.clone() }).await?;
        note("referrers", path.to_string(), format!("{referrers:?}"));
        if path.is_derivation() {
            let outputs = connection.query_derivation_outputs(QueryDerivationOutputs { path: path.clone() }).await?;
            note("outputs", path.to_string(), format!("{outputs:?}"));
        }
    }
    for path in connection.query_failed_paths(QueryFailedPaths {}).await? {
        note("failed", path.to_string(), String::new());
    }
    for (link, path) in connection.find_roots(FindRoots {}).await? {
        // Those of running processes come and go.
        if !link.starts_with(b"/proc/") && !link.starts_with(b"{") {
            note("root", link.to_string(), path.to_string());
        }
    }
    for (kind, action) in [("dead", GcAction::ReturnDead), ("live", GcAction::ReturnLive)] {
        for path in collect(&mut connection, action).await?.paths {
            // Where fruixd works is garbage as soon as it has gone.
            if !path.ends_with(b"-fruixd-staging") {
                note(kind, path.to_string(), String::new());
            }
        }
    }
    for directory in fs::read_dir(logs)? {
        for file in fs::read_dir(directory?.path())? {
            let path = file?.path();
            note("log", path.display().to_string(), Hash::sha256(fs::read(&path)?).base16());
        }
    }
    Ok(facts)
}

/// The main derivation of a turn. It uses what the one before it made, which the other daemon has built.
async fn chain(cook: &mut Cook, connection: &mut Connection, turn: u32) -> Result<Drv> {
    let mut last: Option<Drv> = None;
    for number in 1..=turn {
        let script = format!(
            "echo building chain {number}\n$bb mkdir -p $out/bin $lib $doc\nread before < {}\necho \"chain {number} after $before\" > $lib/text\n\
             echo \"chain {number} after $before\" > $out/text\necho \"#! $lib\" > $out/bin/run\n$bb chmod +x $out/bin/run\n\
             $bb ln -s ../text $out/bin/link\necho the same in every turn, and long enough to be linked > $doc/common\n\
             echo the same in every turn, and long enough to be linked > $out/common\n",
            match &last {
                Some(drv) => format!("{}/text", connection.store_dir().display(drv.out()?)),
                None => "<(echo nothing)".into(),
            }
        );
        let mut recipe = Recipe::new(format!("chain-{number}"), script);
        recipe.outputs = vec!["out", "lib", "doc"];
        if let Some(drv) = &last {
            recipe = recipe.needs(drv);
        }
        last = Some(cook.make(connection, recipe).await?);
    }
    last.ok_or_else(|| "there is no turn 0".into())
}

/// What a turn makes.
struct Made {
    /// What must survive.
    kept: Vec<StorePath>,
    /// What must not.
    garbage: Vec<StorePath>,
}

async fn work(daemon: &Daemon, var: &Path, turn: u32) -> Result<Made> {
    let mut connection = daemon.connect().await?;
    let log = Log::of(&mut connection);
    let tools = Tools::add(&mut connection).await?;
    let mut cook = Cook::new(daemon.dir.clone(), tools);

    // What the other has built: the same comes out here, and what failed there has failed.
    if turn > 1 {
        let before = chain(&mut cook, &mut connection, turn - 1).await?;
        build_in_mode(&mut connection, &[&before.path], BuildMode::Check)
            .await
            .map_err(|error| format!("checking the other's build: {error}"))?;
        let failed = cook.make(&mut connection, failing(turn - 1)).await?;
        let seen = log.bytes().len();
        refusal(build(&mut connection, &[&failed.path]).await)?;
        let told = log.text().split_off(seen);
        if told.contains("@ build-started") || !told.contains("cached") {
            fail!("the other's failed build was not remembered: {told}");
        }
        let shown = daemon.dir.display(failed.out()?).into();
        connection.clear_failed_paths(ClearFailedPaths { paths: vec![shown] }).await?;
        let seen = log.bytes().len();
        refusal(build(&mut connection, &[&failed.path]).await)?;
        if !log.text().split_off(seen).contains("@ build-started") {
            fail!("a failure that was to be forgotten was not");
        }
    }

    // Builds.
    let main = chain(&mut cook, &mut connection, turn).await?;
    let text = format!("fixed in turn {turn}\n");
    let fixed = |name: &str, algo, hash: Hash| {
        let mut recipe = Recipe::new(format!("{name}-{turn}"), format!("echo fixed in turn {turn} > $out"));
        recipe.fixed = Some((algo, hash.base16()));
        recipe
    };
    let flat = cook.make(&mut connection, fixed("flat", "sha1", Hash::of(HashAlgo::Sha1, &text))).await?;
    let whole = cook.make(&mut connection, fixed("whole", "r:sha256", Hash::sha256(file_archive(text.as_bytes())?))).await?;
    let lying = cook.make(&mut connection, fixed("lying", "sha256", Hash::sha256("something else"))).await?;
    let other = cook.make(&mut connection, Recipe::new(format!("garbage-{turn}"), "echo garbage > $out").needs(&main)).await?;
    build(&mut connection, &[&main.path, &flat.path, &whole.path, &other.path])
        .await
        .map_err(|error| format!("building: {error}; {}", log.text()))?;
    let failed = cook.make(&mut connection, failing(turn)).await?;
    // A wrong hash is no permanent failure.
    for (bad, expected) in [(&failed, 100), (&lying, 1)] {
        let (message, status) = refusal(build(&mut connection, &[&bad.path]).await)?;
        if status != expected {
            fail!("a failed build gave status {status}: {message}");
        }
    }

    // Additions.
    let bytes: Vec<u8> = (0..20_000_u32).map(|n| n.wrapping_mul(turn).to_le_bytes()[1]).collect();
    let tree = Tree::Directory(vec![
        ("a".into(), Tree::File(bytes.clone(), false)),
        (
            "b".into(),
            Tree::Directory((0..40).map(|n| (format!("{n:02}"), Tree::File(format!("file {}", n % 7).into(), n % 2 == 0))).collect()),
        ),
        ("c".into(), Tree::File(bytes.clone(), false)),
        ("d".into(), Tree::Link("b/00".into())),
    ]);
    let tree = add_archive(&mut connection, &format!("tree-{turn}"), &archive(&tree)?).await?;
    let flat_file = add_archive_as(&mut connection, &format!("file-{turn}"), &file_archive(&bytes)?, false, "sha256").await?;
    let sha1 = add_archive_as(&mut connection, &format!("sha1-{turn}"), &file_archive(&bytes)?, true, "sha1").await?;
    let top = [main.out()?.clone(), tree.clone(), flat_file.clone()];
    let text = add_text(&mut connection, &format!("text-{turn}"), format!("{top:?}").as_bytes(), &top).await?;

    // Roots of three sorts; those of two turns before are given up.
    let roots = var.parent().unwrap_or(var).join("roots");
    fs::create_dir_all(&roots)?;
    let link = |name: &str, turn: u32| {
        let file = format!("{name}-{turn}");
        if name == "indirect" { roots.join(file) } else { var.join(name).join(file) }
    };
    let whole = whole.out()?.clone();
    for (name, path) in [("indirect", &text), ("profiles", main.output("doc")?), ("gcroots", &whole)] {
        let _ = fs::remove_file(link(name, turn));
        if let Some(directory) = link(name, turn).parent() {
            fs::create_dir_all(directory)?;
        }
        symlink(daemon.dir.display(path), link(name, turn))?;
        if let Some(old) = turn.checked_sub(2).filter(|old| *old > 0) {
            fs::remove_file(link(name, old))?;
        }
    }
    connection.add_indirect_root(AddIndirectRoot { path: link("indirect", turn).into_os_string().into_encoded_bytes().into() }).await?;
    if turn % 2 == 1 {
        connection.optimise_store(OptimiseStore {}).await?;
    }
    let kept = top.into_iter().chain([text, main.output("lib")?.clone(), main.output("doc")?.clone(), whole]).collect();
    Ok(Made { kept, garbage: vec![sha1, other.out()?.clone(), flat.out()?.clone()] })
}

fn failing(turn: u32) -> Recipe {
    Recipe::new(format!("failing-{turn}"), format!("echo before the failure {turn}; echo half > $out; exit 3"))
}

/// Collects garbage, and looks at what is left.
async fn clean(daemon: &Daemon, made: &Made, turn: u32) -> Result<usize> {
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut connection = daemon.connect().await?;
    let dead = collect(&mut connection, GcAction::ReturnDead).await?.paths;
    let deleted = collect(&mut connection, GcAction::DeleteDead).await?.paths;
    if let Some(path) = dead.symmetric_difference(&deleted).find(|path| !path.ends_with(b".lock")) {
        fail!("{path} was listed as dead, or deleted, but not both");
    }
    let valid = connection.query_all_valid_paths(QueryAllValidPaths {}).await?;
    for path in &made.kept {
        let info = connection.query_path_info(QueryPathInfo { path: path.clone() }).await.map_err(|error| format!("{path}: {error}"))?;
        let (hash, size) = fruix_store::hash_path(Path::new(&daemon.dir.display(path)))?;
        if (hash, size) != (info.hash, info.nar_size) {
            fail!("{path} is not what was registered");
        }
    }
    for path in &made.garbage {
        if valid.contains(path) || Path::new(&daemon.dir.display(path)).exists() {
            fail!("{path} was not collected in turn {turn}");
        }
    }
    for path in &valid {
        for reference in connection.query_path_info(QueryPathInfo { path: path.clone() }).await?.references {
            if !valid.contains(&reference) {
                fail!("{path} lost {reference}");
            }
        }
    }
    Ok(deleted.len())
}

/// Makes garbage for the next daemon to collect.
async fn leave(daemon: &Daemon, turn: u32) -> Result<()> {
    let mut connection = daemon.connect().await?;
    let tools = Tools::add(&mut connection).await?;
    let mut cook = Cook::new(daemon.dir.clone(), tools);
    let drv = cook.make(&mut connection, Recipe::new(format!("left-{turn}"), "echo left > $out")).await?;
    build(&mut connection, &[&drv.path]).await?;
    let text = add_text(&mut connection, &format!("left-text-{turn}"), b"left", &[drv.out()?.clone()]).await?;
    add_text(&mut connection, &format!("left-again-{turn}"), b"left", &[text]).await?;
    Ok(())
}

/// Compares two dumps: lines about what is in both must be the same.
pub(crate) fn compare_dumps(before: &Path, after: &Path, all: bool) -> Result<String> {
    let (before, after) = (read_dump(before)?, read_dump(after)?);
    let mut differences = Vec::new();
    for (key, old) in &before {
        match after.get(key) {
            Some(new) if new == old => {}
            Some(new) => differences.push(format!("{key}:\n- {old:?}\n+ {new:?}")),
            None if all => differences.push(format!("{key} is gone")),
            None => {}
        }
    }
    if all {
        differences.extend(after.keys().filter(|key| !before.contains_key(*key)).map(|key| format!("{key} is new")));
    }
    if !differences.is_empty() {
        fail!("the dumps differ:\n{}", differences.join("\n"));
    }
    Ok(format!("{} rows and files, the same where both have them", before.len()))
}

/// The lines of a dump by what they are about, without what may change: numbers of links, and what belongs to a daemon and not to the store.
fn read_dump(file: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let mut known: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&fs::read(file)?).lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let key = match words.as_slice() {
            ["db", kind @ ("valid" | "refs" | "outputs" | "failed"), path, ..] => format!("{kind} {path}"),
            ["db", "integrity", ..] => "integrity".into(),
            ["db", path, "the", "disk", ..] => format!("damaged {path}"),
            ["disk", file, ..] if file.contains("-fruixd-staging") || *file == "store" || file.ends_with(".lock") => continue,
            ["disk", file, ..] if ["store/", "var/log/drvs/", "var/profiles/", "var/gcroots/"].iter().any(|dir| file.starts_with(dir)) => {
                if *file == "store/.links" || *file == "var/gcroots/profiles" || file.starts_with("store/.links/") {
                    continue;
                }
                format!("file {file}")
            }
            ["log", file, ..] if *file != "|" => format!("log {file}"),
            _ => continue,
        };
        let line: Vec<&str> = words.into_iter().filter(|word| !word.starts_with("links=")).collect();
        known.entry(key).or_default().push(line.join(" "));
    }
    Ok(known)
}
