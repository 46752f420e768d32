//! `fruix system deploy` and its kin: a running machine goes to another system, and back.
//!
//! A generation is a link `STATE/profiles/system-N-link` to a closure, which it keeps from being collected. Which one is current is said by
//! `/run/current-system` alone. What is written for a new system comes before the one link that makes it current, what is removed after it, so a
//! machine that loses power has the old system or the new one.

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
use fruix_freebsd::system::fields::{Data, PartType as _};
use fruix_freebsd::system::installed::Installed;
use fruix_freebsd::system::machine::Machine;
use fruix_freebsd::tree::{Entry, Node, TreeError, show};

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
    /// `STATE/profiles`, below the root.
    profiles: PathBuf,
    /// The closures, by number.
    all: BTreeMap<u64, PathBuf>,
    /// The closure that is current.
    current: PathBuf,
    /// Held as long as somebody changes something.
    _lock: Option<File>,
}

/// The file that says from which closure to which one the machine is going, as long as it is.
const MOVE: &str = "system.move";

/// The name of a generation's link.
fn link(number: u64) -> String {
    format!("system-{number}-link")
}

fn told(what: &str, path: &Path) -> impl FnOnce(io::Error) -> String {
    let what = format!("{what} `{}'", path.display());
    move |error| format!("{what}: {error}")
}

impl Generations {
    fn open(site: &Site, place: &Place, change: bool) -> Result<Generations, Failure> {
        let machine = Machine::open(&place.root)?;
        let none = || format!("`{}' has no system of fruix: there is no /run/current-system", place.root.display());
        let current = machine.current()?.ok_or_else(none)?;
        let profiles = place.root.join(site.state_dir.strip_prefix("/").unwrap_or(&site.state_dir)).join("profiles");
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
        let mut generations = Generations { machine, root: place.root.clone(), profiles, all: BTreeMap::new(), current, _lock: lock };
        generations.read()?;
        if change && !place.dry_run {
            generations.finish()?;
            if generations.number(&generations.current).is_none() {
                // The system that the image came with.
                generations.add(&generations.current.clone())?;
            }
        }
        Ok(generations)
    }

    /// Changes one name among the generations; it is on the disk before this returns.
    fn record(&self, name: &str, act: Act) -> Result<(), Failure> {
        Ok(Machine::open(&self.profiles)?.make(&Change { path: name.into(), act })?)
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

    /// Ends what was cut off: whatever is half done is done.
    fn finish(&mut self) -> Result<(), Failure> {
        let file = self.profiles.join(MOVE);
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(told("reading", &file)(error).into()),
        };
        let mut lines = text.lines().map(Path::new);
        let (Some(from), Some(to)) = (lines.next(), lines.next()) else {
            return Err(format!("`{}' does not say what was being done; remove it", file.display()).into());
        };
        eprintln!("fruix: a change of this machine to {} was cut off; ending it (services: restart them, or the machine)", to.display());
        let (old, new) = (Installed::read(from)?, Installed::read(to)?);
        let planned = self.plan(&old, &new)?;
        self.apply_or_go_back(&planned, &old, &new)
    }

    /// Goes from `old` to `new`. When that cannot be done, a full disk for one, back to `old`, with an error all the same.
    fn apply_or_go_back(&mut self, planned: &[Change], old: &Installed, new: &Installed) -> Result<(), Failure> {
        let Err(error) = self.apply(planned, &new.path) else { return self.end() };
        match self.plan(new, old).and_then(|back| self.apply(&back, &old.path)) {
            Ok(()) => {
                self.end()?;
                Err(format!("{error}; the machine has gone back to {}", old.path.display()).into())
            }
            Err(worse) => Err(format!("{error}; going back failed, too ({worse}); mend that, and run the command again").into()),
        }
    }

    fn plan(&mut self, old: &Installed, new: &Installed) -> Result<Vec<Change>, Failure> {
        let (before, after) = (old.outside()?, new.outside()?);
        Ok(changes((&before, &old.closure.accounts), (&after, &new.closure.accounts), &mut self.machine)?)
    }

    /// Makes the changes, and `closure` the current one in their midst.
    fn apply(&mut self, planned: &[Change], closure: &Path) -> Result<(), Failure> {
        let removes = |change: &&Change| matches!(change.act, Act::Remove | Act::Leave);
        for change in planned.iter().filter(|change| !removes(change)) {
            self.machine.make(change)?;
        }
        self.machine.switch(closure)?;
        self.current = closure.to_owned();
        if let Some(number) = self.number(closure) {
            self.set_link("system", Path::new(&link(number)))?;
        }
        for change in planned.iter().filter(removes) {
            self.machine.make(change)?;
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
            let number = name.to_str().and_then(|name| name.strip_prefix("system-")?.strip_suffix("-link")?.parse().ok());
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

    /// Goes to `closure`, which `report` names already.
    fn go(&mut self, closure: &Path, new_one: bool, place: &Place, mut report: Report) -> Result<(), Failure> {
        let theirs = self.root.join(closure.strip_prefix("/").unwrap_or(closure));
        if !theirs.exists() {
            let (root, closure) = (self.root.display(), closure.display());
            return Err(format!("the store of the machine at `{root}' does not have {closure}; copy it and all it needs there first, or run this on the machine").into());
        }
        let (old, new) = (Installed::read(&self.current)?, Installed::read(closure)?);
        let planned = self.plan(&old, &new)?;
        let services = services(&old, &new);
        if !place.dry_run {
            // Who goes to a generation does not make one.
            let number = match self.number(closure) {
                Some(number) if !new_one => number,
                _ => self.add(closure)?,
            };
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
            if let Err(error) = self.apply_or_go_back(&planned, &old, &new) {
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
pub(super) fn deploy(site: &Site, place: &Place, closure: &Path, report: Report) -> Result<(), Failure> {
    Generations::open(site, place, true)?.go(closure, true, place, report)
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
    generations.go(&closure, false, place, to(&closure))
}

/// Goes to the generation before the current one.
pub(super) fn rollback(site: &Site, place: &Place) -> Result<(), Failure> {
    let mut generations = Generations::open(site, place, true)?;
    let at = generations.number(&generations.current).unwrap_or(0);
    let before = generations.all.range(..at).next_back().map(|(_, path)| path.clone());
    let closure = before.ok_or("there is no generation before the current one")?;
    generations.go(&closure, false, place, to(&closure))
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
        rows.push((*number, Some(*number) == current, made, host, base, closure.display().to_string()));
    }
    if place.json {
        let rows: Vec<serde_json::Value> = rows
            .into_iter()
            .map(|(generation, current, made, host_name, base, closure_path)| {
                serde_json::json!({ "generation": generation, "current": current, "made": made, "host_name": host_name, "base": base, "closure_path": closure_path })
            })
            .collect();
        return super::print_all([serde_json::Value::Array(rows)].iter());
    }
    super::print_all(rows.into_iter().map(|(number, current, made, host, base, closure)| {
        format!(
            "generation={number} current={} made={made} host_name={host} base={base} closure_path={closure}",
            if current { "yes" } else { "no" }
        )
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
    let generations = Generations::open(site, place, true)?;
    let current = generations.number(&generations.current);
    let chosen = if words.is_empty() {
        generations.all.keys().copied().filter(|number| Some(*number) != current).collect()
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
    for number in chosen {
        if !place.dry_run {
            generations.record(&link(number), Act::Remove)?;
        }
        eprintln!("{} generation {number}", if place.dry_run { "would delete" } else { "deleted" });
    }
    Ok(())
}

/// A machine that has just what a system says.
struct AsMade<'t>(&'t fruix_freebsd::tree::Tree);

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
    for change in changes((&before, &old.closure.accounts), (&after, &new.closure.accounts), &mut AsMade(&before))? {
        let sign = match (&change.act, before.get(&change.path)) {
            (Act::Remove | Act::Leave, _) => '-',
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
