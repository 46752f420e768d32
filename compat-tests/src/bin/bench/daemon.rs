//! Starting, watching and stopping the daemons.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fruix_drv::StoreDir;

use crate::Result;
use crate::wire::Connection;

/// One of those that are compared.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    /// What the tables call it.
    pub(crate) name: String,
    /// The command and its first arguments.
    pub(crate) command: Vec<String>,
    /// Its store is ROOT/store, its state ROOT/var.
    pub(crate) root: PathBuf,
    /// Whether requests may be sent before the replies to earlier ones are there.
    pub(crate) pipelines: bool,
}

/// How the calls that wait for the disk are counted: outside of the turns that are timed.
const SYNCS: &str = "fsync,fdatasync,syncfs,sync_file_range,sync";

/// Bytes that are to be free for a turn.
const SPACE: u64 = 8 << 30;

impl Side {
    pub(crate) fn store(&self) -> StoreDir {
        StoreDir::new(&self.root.join("store").to_string_lossy())
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("var/db/db.sqlite")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root.join("var/socket")
    }

    /// Makes store and state anew. What was there is moved out of the way and removed only when the disk gets full: creating files where
    /// others have been removed a moment ago is slow. What was written until then is on the disk afterwards, so that the next turn does not pay for it.
    pub(crate) fn wipe(&self) -> Result<()> {
        let aside = self.root.with_file_name("aside");
        if self.root.exists() {
            fs::create_dir_all(&aside)?;
            fs::rename(&self.root, aside.join(fs::read_dir(&aside)?.count().to_string()))?;
        }
        let disk = nix::sys::statvfs::statvfs(self.root.parent().unwrap_or(&self.root))?;
        if disk.blocks_available().saturating_mul(disk.fragment_size()) < SPACE {
            fs::remove_dir_all(&aside)?;
        }
        for directory in ["store", "var/log", "etc"] {
            fs::create_dir_all(self.root.join(directory))?;
        }
        settle()
    }

    /// Starts it and waits until it answers. With `trace` the calls that wait for the disk are counted.
    pub(crate) fn start(&self, trace: bool) -> Result<Daemon> {
        let _ = fs::remove_file(self.socket());
        let counts = trace.then(|| self.root.with_extension("syncs"));
        let mut words: Vec<String> = Vec::new();
        if let Some(counts) = &counts {
            words.extend(["strace", "-f", "--seccomp-bpf", "-qq", "-e", "signal=none", "-e"].map(String::from));
            words.push(format!("trace={SYNCS}"));
            words.push("-o".into());
            words.push(counts.to_string_lossy().into_owned());
        }
        words.extend(self.command.iter().cloned());
        words.push("--no-substitutes".into());
        words.push(format!("--listen={}", self.socket().display()));
        let var = self.root.join("var");
        let (program, arguments) = words.split_first().ok_or("no command")?;
        let log = fs::File::create(self.root.with_extension("log"))?;
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C.UTF-8"), ("HOME", "/root"), ("GUILE_AUTO_COMPILE", "0")])
            .env("NIX_STORE_DIR", self.root.join("store"))
            .env("GUIX_STATE_DIRECTORY", &var)
            .env("NIX_STATE_DIR", &var)
            .env("NIX_LOCALSTATE_DIR", &var)
            .env("GUIX_DATABASE_DIRECTORY", var.join("db"))
            .env("GUIX_LOG_DIRECTORY", var.join("log"))
            .env("GUIX_CONFIGURATION_DIRECTORY", self.root.join("etc"))
            .env("GUIX_DAEMON_SOCKET", self.socket())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut daemon = Daemon { child, socket: self.socket(), counts, stopped: false };
        let begin = Instant::now();
        while UnixStream::connect(&daemon.socket).is_err() {
            if begin.elapsed() > Duration::from_secs(60) || daemon.child.try_wait()?.is_some() {
                return Err(format!("{} does not start: {}", self.name, fs::read_to_string(self.root.with_extension("log"))?).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // guix-daemon's processes get in each other's way when several open a new store at once.
        Connection::open(&daemon.socket)?;
        // What these connections started may still be going down.
        std::thread::sleep(Duration::from_millis(200));
        Ok(daemon)
    }
}

/// Lets nothing of one turn be written during the next.
pub(crate) fn settle() -> Result<()> {
    Command::new("sync").status()?;
    Ok(())
}

/// A daemon that runs.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) socket: PathBuf,
    counts: Option<PathBuf>,
    stopped: bool,
}

fn field(pid: u32, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

impl Daemon {
    /// Its processes, the first one first: all that descend from what was started, but for tracers.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            if let Some(parent) = field(pid, "status", "PPid:") {
                children.entry(u32::try_from(parent).unwrap_or(0)).or_default().push(pid);
            }
        }
        let mut found = Vec::new();
        let mut todo = vec![self.child.id()];
        while let Some(pid) = todo.pop() {
            todo.extend(children.get(&pid).into_iter().flatten());
            found.push(pid);
        }
        let of_others = |pid: u32| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            ["strace", "perf"].contains(&comm.trim_end())
        };
        found.retain(|pid| !of_others(*pid));
        found
    }

    /// The most that its processes had in memory, in KiB: the sum of each one's own peak. Pages that are shared count for each.
    pub(crate) fn peak(&self) -> u64 {
        self.processes().iter().filter_map(|pid| field(*pid, "status", "VmHWM:")).sum()
    }

    /// What its processes have in memory now, in KiB; a page that several share counts once.
    pub(crate) fn memory(&self) -> u64 {
        self.processes().iter().filter_map(|pid| field(*pid, "smaps_rollup", "Pss:")).sum()
    }

    /// Ends it, and says how often it waited for the disk, by call, if that was asked for.
    pub(crate) fn stop(mut self) -> Result<BTreeMap<String, u64>> {
        self.end()?;
        let mut counts = BTreeMap::new();
        if let Some(path) = &self.counts {
            for line in fs::read_to_string(path)?.lines() {
                // PID CALL(...) = 0; the second half of one that was interrupted begins with `<...'.
                let Some(call) = line.split_whitespace().nth(1).and_then(|word| word.split('(').next()) else { continue };
                if SYNCS.split(',').any(|name| name == call) {
                    *counts.entry(call.to_owned()).or_insert(0) += 1;
                }
            }
            fs::remove_file(path)?;
        }
        Ok(counts)
    }

    fn end(&mut self) -> Result<()> {
        self.stopped = true;
        // A tracer ends with what it traces.
        let processes = self.processes();
        if let Some(main) = processes.first() {
            Command::new("kill").arg(main.to_string()).status()?;
        }
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begin.elapsed() > Duration::from_secs(60) {
                return Err("a daemon does not stop".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // Children of guix-daemon end when they see that their client has gone.
        for _ in 0..500 {
            if !processes.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.stopped {
            let _ = self.end();
        }
    }
}
