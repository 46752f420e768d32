//! `fruix system deploy` and its kin: a running machine goes to another system, and back.
//!
//! A generation is a link `STATE/profiles/system-N-link` to a closure, which it keeps from being collected. `STATE/profiles/system` says of which one
//! the machine's files are, `/boot/system` which one the loader starts, and `/run/current-system`, in memory, which one runs. One that was deployed is on
//! trial until it has been up: the loader starts it once, and the one before it again if that fails. What is written for a new system comes before the
//! links that make it count, what is removed after it has been up, so a machine that loses power has the old system or the new one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use fruix_drv::StoreDir;
use fruix_freebsd::system::canon::push_data;
use fruix_freebsd::system::change::{Act, Change, Look, changes, same};
use fruix_freebsd::system::closure::{BOOT_SYSTEM, BOOTED_SYSTEM, CURRENT_SYSTEM};
use fruix_freebsd::system::fields::{Data, PartType as _};
use fruix_freebsd::system::generation::{self, CHOICES, NEXT_BOOT};
use fruix_freebsd::system::installed::Installed;
use fruix_freebsd::system::machine::Machine;
use fruix_freebsd::tree::{Entry, Node, Tree, TreeError, show};

use super::{Failure, Report, Site};

/// Which machine.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Place {
    /// The machine whose root directory is DIR, and whose store has the closures, too
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Say what would change, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Place {
    pub(super) fn new(root: PathBuf, dry_run: bool, json: bool) -> Place {
        Place { root, dry_run, json }
    }
}

/// A machine and its generations.
struct Generations {
    machine: Machine,
    root: PathBuf,
    /// `STATE`, below the root.
    state: PathBuf,
    /// `STATE/profiles`, below the root.
    profiles: PathBuf,
    store_dir: StoreDir,
    /// The closures, by number.
    all: BTreeMap<u64, PathBuf>,
    /// The closure that the machine's files are of.
    current: PathBuf,
    /// The closure that the loader starts when no other is on trial.
    good: PathBuf,
    /// Whether the machine runs, and this is not only its disk.
    runs: bool,
    /// Held as long as somebody changes something.
    _lock: Option<File>,
}

/// The file that says from which closure to which one the machine is going, as long as it is.
const MOVE: &str = "system.move";

/// The name of a generation's link.
fn link(number: u64) -> String {
    format!("system-{number}-link")
}

/// What the loader is told when the machine's files are changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loader {
    /// To start that system: on trial, if that can be.
    Start,
    /// Nothing: it has started that system.
    Started,
}

/// The number of a generation whose link has this name.
fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("system-")?.strip_suffix("-link")?.parse().ok()
}

fn told(what: &str, path: &Path) -> impl FnOnce(io::Error) -> String {
    let what = format!("{what} `{}'", path.display());
    move |error| format!("{what}: {error}")
}

impl Generations {
    fn open(site: &Site, place: &Place, change: bool) -> Result<Generations, Failure> {
        let mut generations = Generations::locked(site, place, change)?;
        if change && !place.dry_run {
            generations.finish()?;
            if generations.number(&generations.current).is_none() {
                // The system that the image came with.
                generations.add(&generations.current.clone())?;
            }
        }
        Ok(generations)
    }

    /// As [`Generations::open`], with what was cut off as it is.
    fn locked(site: &Site, place: &Place, change: bool) -> Result<Generations, Failure> {
        let machine = Machine::open(&place.root)?;
        let none = || format!("`{}' has no system of fruix: there is no {BOOT_SYSTEM}", place.root.display());
        let good = machine.link(BOOT_SYSTEM)?.ok_or_else(none)?;
        let running = machine.link(CURRENT_SYSTEM)?.filter(|link| link != Path::new(BOOT_SYSTEM));
        let state = place.root.join(site.state_dir.strip_prefix("/").unwrap_or(&site.state_dir));
        let profiles = state.join("profiles");
        let lock = if change {
            std::fs::create_dir_all(&profiles).map_err(told("making", &profiles))?;
            let path = profiles.join("system.lock");
            let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(told("opening", &path))?;
            if file.try_lock().is_err() {
                return Err("another `fruix system' is changing this machine; wait until it has ended".into());
            }
            Some(file)
        } else {
            None
        };
        let mut generations = Generations {
            machine,
            root: place.root.clone(),
            state,
            profiles,
            store_dir: site.store_dir.clone(),
            all: BTreeMap::new(),
            current: running.clone().unwrap_or_else(|| good.clone()),
            good,
            runs: running.is_some(),
            _lock: lock,
        };
        generations.read()?;
        let recorded = std::fs::read_link(generations.profiles.join("system")).ok();
        if let Some(closure) = recorded.and_then(|link| generations.all.get(&number_of(link.to_str()?)?).cloned()) {
            generations.current = closure;
        }
        Ok(generations)
    }

    /// Changes one name among the generations; it is on the disk before this returns.
    fn record(&self, name: &str, act: Act) -> Result<(), Failure> {
        Ok(Machine::open(&self.profiles)?.make(&Change { path: name.into(), act, of_user: false })?)
    }

    fn set_link(&self, name: &str, target: &Path) -> Result<(), Failure> {
        self.record(name, Act::Put(Entry::symlink(target.as_os_str().as_bytes())))
    }

    fn begin(&self, from: &Path, to: &Path) -> Result<(), Failure> {
        let text = format!("{}\n{}\n", from.display(), to.display());
        self.record(MOVE, Act::Put(Entry::file(0o644, text.into_bytes())))
    }

    fn end(&self) -> Result<(), Failure> {
        self.record(MOVE, Act::Remove)
    }

    /// Between which closures the machine was when it was cut off. A file that says something else is told of and counts for nothing.
    fn cut_off(&self) -> Result<Option<(PathBuf, PathBuf)>, Failure> {
        let file = self.profiles.join(MOVE);
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(told("reading", &file)(error).into()),
        };
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        let closure = |line: &str| {
            self.store_dir.parse(line).is_ok().then(|| PathBuf::from(line)).filter(|path| path.join("parameters.scm").exists())
        };
        match (lines.next().and_then(closure), lines.next().and_then(closure)) {
            (Some(from), Some(to)) => Ok(Some((from, to))),
            _ => {
                eprintln!("fruix: warning: `{}' does not say between which systems the machine was, and is removed", file.display());
                self.end()?;
                Ok(None)
            }
        }
    }

    /// Ends what was cut off: whatever is half done is done.
    fn finish(&mut self) -> Result<(), Failure> {
        let Some((from, to)) = self.cut_off()? else { return Ok(()) };
        eprintln!("fruix: a change of this machine to {} was cut off; ending it (services: restart them, or the machine)", to.display());
        let (old, new) = (Installed::read_damaged(&from)?, Installed::read(&to)?);
        self.add_known(&to)?;
        self.apply_or_go_back(&old, &new).map(drop)
    }

    /// Goes from `old` to `new`. When that cannot be done, a full disk for one, back to `old`, with an error all the same.
    fn apply_or_go_back(&mut self, old: &Installed, new: &Installed) -> Result<(), Failure> {
        let Err(error) = self.apply(&[old], new, Loader::Start) else { return self.end() };
        match self.apply(&[new, old], old, Loader::Start) {
            Ok(()) => {
                self.end()?;
                Err(format!("{error}; the machine has gone back to {}", old.path.display()).into())
            }
            Err(worse) => Err(format!("{error}; going back failed, too ({worse}); mend that, and run the command again").into()),
        }
    }

    fn plan(&mut self, old: &[&Installed], new: &Installed) -> Result<Vec<Change>, Failure> {
        let before = old.iter().map(|old| Ok((old.outside()?, &old.closure.accounts))).collect::<Result<Vec<_>, String>>()?;
        let before: Vec<_> = before.iter().map(|(tree, accounts)| (tree, *accounts)).collect();
        Ok(changes(&before, (&new.outside()?, &new.closure.accounts), &mut self.machine)?)
    }

    /// Whether the loader can start `new` on trial: then the system that it starts if the trial fails.
    fn trial(&self, old: &[&Installed], new: &Installed) -> Result<Option<Installed>, Failure> {
        if new.path == self.good {
            return Ok(None);
        }
        let good = match old.iter().find(|old| old.path == self.good) {
            Some(old) => (*old).clone(),
            None => Installed::read(&self.good)?,
        };
        let can = generation::can_be_tried(&good, &good.outside()?, new);
        Ok(can.then_some(good))
    }

    /// Has the machine's files be those of `new`, where they are of one of `old`, or of several.
    fn apply(&mut self, old: &[&Installed], new: &Installed, loader: Loader) -> Result<(), Failure> {
        let planned = self.plan(old, new)?;
        let trial = self.trial(old, new)?;
        self.keep(new)?;
        for change in planned.iter().filter(|change| !change.act.comes_last()) {
            self.make(change)?;
        }
        let number = self.number(&new.path);
        if let Some(number) = number {
            self.set_link("system", Path::new(&link(number)))?;
        }
        self.current.clone_from(&new.path);
        if loader == Loader::Start || new.path == self.good {
            match &trial {
                Some(good) => {
                    let text = generation::trial(new, good, number.unwrap_or(0));
                    self.machine.write(NEXT_BOOT, Entry::file(0o644, text.into_bytes()))?;
                }
                None => {
                    self.lasts(&new.path)?;
                }
            }
        }
        if self.runs {
            self.machine.set_link(CURRENT_SYSTEM, &new.path)?;
        }
        // What the system has that is started when this one fails stays until this one has been up.
        let kept = match &trial {
            Some(good) => good.outside()?,
            None => Tree::new(),
        };
        for change in planned.iter().filter(|change| change.act.comes_last() && kept.get(&change.path).is_none()) {
            self.make(change)?;
        }
        Ok(())
    }

    fn make(&self, change: &Change) -> Result<(), Failure> {
        match self.machine.make(change) {
            Err(error) if change.of_user => eprintln!("fruix: warning: passed over, since it is in a user's directory: {error}"),
            other => other?,
        }
        Ok(())
    }

    /// Has the loader start `closure` from now on.
    fn lasts(&mut self, closure: &Path) -> Result<(), Failure> {
        if self.good != closure {
            self.machine.set_link(BOOT_SYSTEM, closure)?;
            self.good = closure.to_owned();
        }
        Ok(self.machine.remove(NEXT_BOOT)?)
    }

    /// Has all that `system` needs of the store be on the disk, which a daemon does not wait for when it has built something.
    fn keep(&self, system: &Installed) -> Result<(), Failure> {
        fn sync(path: &Path) -> Result<(), String> {
            let kind = std::fs::symlink_metadata(path).map_err(told("looking at", path))?.file_type();
            if kind.is_symlink() {
                return Ok(());
            }
            if kind.is_dir() {
                for entry in std::fs::read_dir(path).map_err(told("reading", path))? {
                    sync(&entry.map_err(told("reading", path))?.path())?;
                }
            }
            File::open(path).and_then(|file| file.sync_all()).map_err(told("syncing", path))
        }
        let services = &system.system.services;
        let programs = services.fruixd.iter().flat_map(|fruixd| std::iter::once(&fruixd.program).chain(&fruixd.client));
        let needed = system.packages.values().chain(programs).chain(services.shepherd.iter().map(|shepherd| &shepherd.path)).map(Path::new);
        let store = Path::new(self.store_dir.as_str());
        for path in needed.chain([system.path.as_path(), store]) {
            let there = self.root.join(path.strip_prefix("/").unwrap_or(path));
            // Of the store the names alone.
            if path == store {
                File::open(&there).and_then(|file| file.sync_all()).map_err(told("syncing", &there))?
            } else {
                sync(&there)?
            }
        }
        for name in ["db/db.sqlite", "db/db.sqlite-wal", "db"] {
            match File::open(self.state.join(name)).and_then(|file| file.sync_all()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(told("syncing", &self.state.join(name))(error).into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets a user of the loader choose each generation, and none that is not there any more.
    fn choices(&self) -> Result<(), Failure> {
        if self.machine.names("boot/lua")?.iter().all(|name| name != "local.lua") {
            return Ok(());
        }
        let there = self.machine.names(CHOICES)?;
        for (number, closure) in &self.all {
            let file = generation::choice_file(*number);
            if there.iter().any(|name| file.ends_with(&format!("/{name}"))) {
                continue;
            }
            if let Ok(system) = Installed::read(closure) {
                self.machine.write(&file, Entry::file(0o644, generation::choice(&system).into_bytes()))?;
            }
        }
        for name in there {
            let number = name.strip_suffix(".conf").and_then(|number| number.parse().ok());
            if number.is_some_and(|number| !self.all.contains_key(&number)) {
                self.machine.remove(&format!("{CHOICES}/{name}"))?;
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), Failure> {
        let directory = match std::fs::read_dir(&self.profiles) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(told("reading", &self.profiles)(error).into()),
        };
        for entry in directory {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(number_of);
            if let (Some(number), Ok(target)) = (number, std::fs::read_link(entry.path())) {
                self.all.insert(number, target);
            }
        }
        Ok(())
    }

    fn number(&self, closure: &Path) -> Option<u64> {
        // The last of several that are the same.
        self.all.iter().rev().find(|(_, path)| *path == closure).map(|(number, _)| *number)
    }

    /// A generation for `closure`; the number that it has, if it is the last one.
    fn add(&mut self, closure: &Path) -> Result<u64, Failure> {
        let last = self.all.last_key_value().map(|(number, path)| (*number, path.clone()));
        if let Some((number, path)) = &last
            && path == closure
        {
            return Ok(*number);
        }
        let number = last.map_or(0, |(number, _)| number).saturating_add(1);
        self.set_link(&link(number), closure)?;
        self.all.insert(number, closure.to_owned());
        Ok(number)
    }

    /// The number of `closure`, which is given one if it has none.
    fn add_known(&mut self, closure: &Path) -> Result<u64, Failure> {
        match self.number(closure) {
            Some(number) => Ok(number),
            None => self.add(closure),
        }
    }

    /// The closure that is meant by a number, by `+N` or `-N` from the current one, or by its path.
    fn find(&self, dir: &StoreDir, word: &str) -> Result<PathBuf, Failure> {
        if word.starts_with('/') {
            let path = Path::new(word).canonicalize().map_err(|error| format!("`{word}': {error}"))?;
            return match dir.parse(path.to_string_lossy().as_ref()) {
                Ok(_) => Ok(path),
                Err(_) => Err(format!("`{word}' is no item of the store {}", dir.as_str()).into()),
            };
        }
        let known = || self.all.keys().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let at = self.number(&self.current).unwrap_or(0);
        let number = match word.split_at_checked(1) {
            Some(("+", steps)) => steps.parse().ok().and_then(|steps: u64| at.checked_add(steps)),
            Some(("-", steps)) => steps.parse().ok().and_then(|steps: u64| at.checked_sub(steps)),
            _ => word.parse().ok(),
        };
        let found = number.and_then(|number| self.all.get(&number).cloned());
        found.ok_or_else(|| format!("there is no generation `{word}'; there are {}", known()).into())
    }

    /// Goes to `closure`, which `report` names already: as to a generation of its own, or the one that there is. `strict`: only if the machine can leave it by itself.
    fn go(&mut self, closure: &Path, (new_one, strict): (bool, bool), place: &Place, mut report: Report) -> Result<(), Failure> {
        let theirs = self.root.join(closure.strip_prefix("/").unwrap_or(closure));
        if !theirs.exists() {
            let (root, closure) = (self.root.display(), closure.display());
            return Err(format!("the store of the machine at `{root}' does not have {closure}; copy it and all it needs there first, or run this on the machine").into());
        }
        let (old, new) = (Installed::read_damaged(&self.current)?, Installed::read(closure)?);
        let planned = self.plan(&[&old], &new)?;
        let services = services(&old, &new);
        let good = self.good == *closure;
        let fallback = good || self.trial(&[&old], &new)?.is_some();
        if strict && !fallback {
            let lacking = "its services.fruixd has no client, or its base no loader in Lua";
            return Err(format!("this machine could not leave {} by itself: {lacking}; deploy it if that may be", closure.display()).into());
        }
        if !place.dry_run {
            // Who goes to a generation does not make one.
            let number = if new_one { self.add(closure)? } else { self.add_known(closure)? };
            self.choices()?;
            report.say("generation", number.to_string());
        }
        report.say("previous_closure", self.current.display().to_string());
        let told = |change: &Change| format!("{} /{}", change.act.name(), show(&change.path));
        report.say("changed_files", planned.len().to_string());
        if place.dry_run {
            report.say("dry_run", "yes");
        }
        for change in &planned {
            eprintln!("{}{}", if place.dry_run { "would " } else { "" }, told(change));
        }
        for (service, what) in &services {
            eprintln!("{}{what} service {service}", if place.dry_run { "would " } else { "" });
        }
        let reboot = boots_otherwise(&old, &new)?
            || old.system.loader != new.system.loader
            || old.system.init_mode != new.system.init_mode
            || old.system.file_systems != new.system.file_systems;
        if !place.dry_run {
            let here = self.root == Path::new("/") && cfg!(target_os = "freebsd");
            let run = |wanted: &str| {
                for (service, what) in services.iter().filter(|(_, what)| here && *what == wanted) {
                    let ended = Command::new("/usr/sbin/service").args([service, what]).status();
                    if !ended.as_ref().is_ok_and(std::process::ExitStatus::success) {
                        eprintln!("fruix: warning: `service {service} {what}' failed; see its log");
                    }
                }
            };
            // With the script that started it.
            run("stop");
            self.begin(&old.path, closure)?;
            if let Err(error) = self.apply_or_go_back(&old, &new) {
                for (service, _) in services.iter().filter(|(_, what)| here && *what == "stop") {
                    let _ = Command::new("/usr/sbin/service").args([service, "start"]).status();
                }
                return Err(error);
            }
            run("start");
            run("restart");
        }
        report.say("services", services.iter().map(|(service, what)| format!("{service}:{what}")).collect::<Vec<_>>().join(","));
        report.say("reboot_needed", if reboot { "yes" } else { "no" });
        report.say("fallback", if fallback { "yes" } else { "no" });
        report.print(place.json)
    }
}

/// Whether the base has another kernel, module or loader.
fn boots_otherwise(old: &Installed, new: &Installed) -> Result<bool, Failure> {
    let (old, new) = (&old.closure.base, &new.closure.base);
    for (path, entry) in new.iter().filter(|(path, entry)| path.starts_with(b"boot/") && entry.node != Node::Dir) {
        match old.get(path) {
            Some(there) if same(there, entry)? => {}
            _ => return Ok(true),
        }
    }
    Ok(old.iter().any(|(path, _)| path.starts_with(b"boot/") && new.get(path).is_none()))
}

/// What is done with services: each with `start`, `stop` or `restart`.
fn services(old: &Installed, new: &Installed) -> Vec<(&'static str, &'static str)> {
    let (old, new) = (&old.system.services, &new.system.services);
    fn what<T: PartialEq>(old: &Option<T>, new: &Option<T>) -> Option<&'static str> {
        match (old, new) {
            (None, Some(_)) => Some("start"),
            (Some(_), None) => Some("stop"),
            (Some(old), Some(new)) if old != new => Some("restart"),
            _ => None,
        }
    }
    let some = |jails: &Vec<_>| (!jails.is_empty()).then(|| jails.clone());
    let found = [
        ("syslogd", what(&old.syslogd, &new.syslogd)),
        ("ntpd", what(&old.ntpd, &new.ntpd)),
        ("sshd", what(&old.sshd, &new.sshd)),
        ("cron", what(&old.cron, &new.cron)),
        ("jail", what(&some(&old.jails), &some(&new.jails))),
        ("fruixd", what(&old.fruixd, &new.fruixd)),
    ];
    found.into_iter().filter_map(|(service, what)| Some((service, what?))).collect()
}

/// Says whether there is a machine that could be deployed to.
pub(super) fn check(site: &Site, place: &Place) -> Result<(), Failure> {
    Generations::open(site, place, false).map(drop)
}

/// Makes the system at `closure` current.
pub(super) fn deploy(site: &Site, place: &Place, closure: &Path, strict: bool, report: Report) -> Result<(), Failure> {
    Generations::open(site, place, true)?.go(closure, (true, strict), place, report)
}

/// Brings together the system that the machine was started with and the machine's files: rc(8) runs this, at the beginning of a start, and with `ready` when
/// the machine is up. The beginning: after a trial that failed, after a power cut in a deployment, or when somebody chose a generation at the loader, the
/// files are of another system. The end: the system has been up, so it is the one that is started from now on, and what only the former had goes.
pub(super) fn settle(site: &Site, place: &Place, ready: bool) -> Result<(), Failure> {
    let mut generations = Generations::locked(site, place, true)?;
    let Some(booted) = generations.machine.link(BOOTED_SYSTEM)? else { return Ok(()) };
    if !ready {
        let cut_off = generations.cut_off()?;
        if booted == generations.current && cut_off.is_none() {
            return Ok(());
        }
        let (from, to) = cut_off.map_or((None, None), |(from, to)| (Some(from), Some(to)));
        let mut others: Vec<PathBuf> =
            [Some(generations.current.clone()), from, to].into_iter().flatten().filter(|path| *path != booted).collect();
        others.sort();
        others.dedup();
        let new = Installed::read(&booted)?;
        let read = |path: &PathBuf| Installed::read_damaged(path).inspect_err(|error| eprintln!("fruix: warning: {error}")).ok();
        let old: Vec<Installed> = others.iter().filter_map(read).collect();
        let number = generations.add_known(&booted)?;
        let was = generations.number(&generations.current).unwrap_or(0);
        eprintln!("fruix: this is generation {number}, and the files are of generation {was}: they are changed");
        generations.begin(&generations.current, &booted)?;
        generations.apply(&old.iter().collect::<Vec<_>>(), &new, Loader::Started)?;
        return generations.end();
    }
    if booted == generations.good {
        return Ok(generations.machine.remove(NEXT_BOOT)?);
    }
    let former = generations.good.clone();
    let number = generations.add_known(&booted)?;
    if generations.current != booted {
        // Somebody has deployed another one meanwhile.
        return Ok(generations.machine.set_link(BOOT_SYSTEM, &booted)?);
    }
    generations.begin(&former, &booted)?;
    generations.lasts(&booted)?;
    eprintln!("fruix: generation {number} is up, and is started from now on");
    let (old, new) = (Installed::read_damaged(&former)?, Installed::read(&booted)?);
    for change in generations.plan(&[&old], &new)?.iter().filter(|change| change.act.comes_last()) {
        generations.make(change)?;
    }
    generations.end()
}

/// A report about going to `closure`.
fn to(closure: &Path) -> Report {
    let mut report = Report::default();
    report.say("closure_path", closure.display().to_string());
    report
}

/// Goes to the generation that `word` means.
pub(super) fn switch(site: &Site, place: &Place, word: &str) -> Result<(), Failure> {
    let mut generations = Generations::open(site, place, true)?;
    let closure = generations.find(&site.store_dir, word)?;
    generations.go(&closure, (false, false), place, to(&closure))
}

/// Goes to the generation before the current one.
pub(super) fn rollback(site: &Site, place: &Place) -> Result<(), Failure> {
    let mut generations = Generations::open(site, place, true)?;
    let at = generations.number(&generations.current).unwrap_or(0);
    let before = generations.all.range(..at).next_back().map(|(_, path)| path.clone());
    let closure = before.ok_or("there is no generation before the current one")?;
    generations.go(&closure, (false, false), place, to(&closure))
}

/// Lists the generations.
pub(super) fn list(site: &Site, place: &Place) -> Result<(), Failure> {
    let generations = Generations::open(site, place, false)?;
    let current = generations.number(&generations.current);
    let mut rows = Vec::new();
    for (number, closure) in &generations.all {
        let made = std::fs::symlink_metadata(generations.profiles.join(link(*number))).and_then(|link| link.modified());
        let made = made.ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |time| time.as_secs());
        let (host, base) = match Installed::read(closure) {
            Ok(system) => (system.system.host_name, format!("{}-{}", system.system.base.name, system.system.base.version)),
            Err(error) => (String::new(), format!("damaged: {error}")),
        };
        rows.push((*number, Some(*number) == current, *closure == generations.good, made, host, base, closure.display().to_string()));
    }
    if place.json {
        let rows: Vec<serde_json::Value> = rows
            .into_iter()
            .map(|(generation, current, lasts, made, host_name, base, closure_path)| {
                serde_json::json!({ "generation": generation, "current": current, "lasts": lasts, "made": made, "host_name": host_name, "base": base, "closure_path": closure_path })
            })
            .collect();
        return super::print_all([serde_json::Value::Array(rows)].iter());
    }
    let word = |yes| if yes { "yes" } else { "no" };
    super::print_all(rows.into_iter().map(|(number, current, lasts, made, host, base, closure)| {
        let (current, lasts) = (word(current), word(lasts));
        format!("generation={number} current={current} lasts={lasts} made={made} host_name={host} base={base} closure_path={closure}")
    }))
}

/// The numbers that a word such as `3`, `2..5`, `..4`, `3..` or `1,4` means.
fn numbers(word: &str, all: &BTreeMap<u64, PathBuf>) -> Result<Vec<u64>, Failure> {
    let wrong = || format!("`{word}' names no generations; write 3, 2..5, ..4, 3.. or 1,4");
    let mut found = Vec::new();
    for part in word.split(',') {
        if let Some((first, last)) = part.split_once("..") {
            let bound = |text: &str, otherwise| if text.is_empty() { Ok(otherwise) } else { text.parse().map_err(|_| wrong()) };
            let (first, last) = (bound(first, 0)?, bound(last, u64::MAX)?);
            found.extend(all.keys().filter(|number| (first..=last).contains(*number)));
        } else {
            let number = part.parse().map_err(|_| wrong())?;
            if !all.contains_key(&number) {
                return Err(format!("there is no generation {number}").into());
            }
            found.push(number);
        }
    }
    Ok(found)
}

/// Deletes generations: those that `words` mean, or all but the current one.
pub(super) fn delete(site: &Site, place: &Place, words: &[String]) -> Result<(), Failure> {
    let mut generations = Generations::open(site, place, true)?;
    let current = generations.number(&generations.current);
    let booted = generations.machine.link(BOOTED_SYSTEM)?;
    let needed: Vec<u64> = [Some(generations.current.clone()), Some(generations.good.clone()), booted]
        .into_iter()
        .filter_map(|closure| generations.number(&closure?))
        .collect();
    let chosen: Vec<u64> = if words.is_empty() {
        generations.all.keys().copied().filter(|number| !needed.contains(number)).collect()
    } else {
        let mut chosen = Vec::new();
        for word in words {
            chosen.extend(numbers(word, &generations.all)?);
        }
        chosen
    };
    // Whatever else is asked for: nothing is deleted when one of them cannot be.
    if let Some(number) = current.filter(|number| chosen.contains(number)) {
        return Err(format!("generation {number} is the current one; switch to another first").into());
    }
    if let Some(number) = needed.iter().find(|number| chosen.contains(number)) {
        return Err(format!(
            "generation {number} is the one that runs, or that is started when the current one fails; restart the machine first"
        )
        .into());
    }
    for number in chosen {
        if !place.dry_run {
            generations.record(&link(number), Act::Remove)?;
            generations.all.remove(&number);
        }
        eprintln!("{} generation {number}", if place.dry_run { "would delete" } else { "deleted" });
    }
    if !place.dry_run {
        generations.choices()?;
    }
    Ok(())
}

/// A machine that has just what a system says.
struct AsMade<'t>(&'t Tree);

impl Look for AsMade<'_> {
    fn look(&mut self, path: &[u8]) -> Result<Option<Entry>, TreeError> {
        Ok(self.0.get(path).cloned())
    }
}

/// Says how two systems differ: in what is declared, in packages, in the source, in files.
pub(super) fn diff(site: &Site, place: &Place, one: Option<&str>, other: Option<&str>) -> Result<(), Failure> {
    let generations = Generations::open(site, place, false)?;
    let old = match one {
        Some(word) => generations.find(&site.store_dir, word)?,
        None => generations.find(&site.store_dir, "-1")?,
    };
    let new = match other {
        Some(word) => generations.find(&site.store_dir, word)?,
        None => generations.current.clone(),
    };
    let (old, new) = (Installed::read(&old)?, Installed::read(&new)?);
    let mut lines = vec![format!("--- {}", old.path.display()), format!("+++ {}", new.path.display())];
    let mut differ = |name: &str, one: Option<String>, other: Option<String>| {
        if one != other {
            lines.extend(one.map(|text| format!("-{name} {text}")));
            lines.extend(other.map(|text| format!("+{name} {text}")));
        }
    };
    let text = |data: &Data| {
        let mut text = String::new();
        push_data(&mut text, data);
        Some(text)
    };
    for ((name, one), (_, other)) in old.system.fields().iter().zip(&new.system.fields()) {
        match (one, other) {
            (Data::Part(one), Data::Part(other)) => {
                for ((field, one), (_, other)) in one.iter().zip(other) {
                    differ(&format!("{name}.{field}"), text(one), text(other));
                }
            }
            _ => differ(name, text(one), text(other)),
        }
    }
    let names: std::collections::BTreeSet<&String> = old.packages.keys().chain(new.packages.keys()).collect();
    for name in names {
        differ(&format!("package {name}"), old.packages.get(name).cloned(), new.packages.get(name).cloned());
    }
    differ("source", Some(old.source.clone()), Some(new.source.clone()));
    let (before, after) = (old.outside()?, new.outside()?);
    for change in changes(&[(&before, &old.closure.accounts)], (&after, &new.closure.accounts), &mut AsMade(&before))? {
        let sign = match (&change.act, before.get(&change.path)) {
            (Act::Clear | Act::Remove | Act::Leave, _) => '-',
            (_, None) => '+',
            _ => '!',
        };
        lines.push(format!("{sign}file /{}", show(&change.path)));
    }
    // What is only in the closure: the links of /etc lead there.
    for (path, entry) in new.closure.tree.iter().filter(|(path, _)| !path.starts_with(b"profile/")) {
        let alike = match old.closure.tree.get(path) {
            Some(there) => same(there, entry)?,
            None => false,
        };
        if !alike {
            lines.push(format!("{}closure {}", if old.closure.tree.get(path).is_some() { '!' } else { '+' }, show(path)));
        }
    }
    let gone = old.closure.tree.iter().filter(|(path, _)| !path.starts_with(b"profile/") && new.closure.tree.get(path).is_none());
    lines.extend(gone.map(|(path, _)| format!("-closure {}", show(path))));
    super::print_all(lines.into_iter())
}
