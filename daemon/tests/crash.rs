//! The daemon, killed and deprived: at every step that leaves something on the disk, at random moments, and on full disks.
//!
//! Each test runs in a mount namespace of its own, on a tmpfs, with build users of its own, and needs root. `FRUIXD_CRASH` is the number of random
//! kills of each kind (5 unless it says otherwise); when it is larger than that, every step fails in every way, and not only in the most telling.
//! `FRUIXD_CRASH_SEED` repeats a run.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "linux/namespace.rs"]
mod namespace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bstr::{BStr, BString};
use fruix_drv::path::{fixed_output_path, text_path};
use fruix_drv::{Hash, HashAlgo, StoreDir, StorePath};
use fruix_protocol::client::{Client, Error as ClientError};
use fruix_protocol::kinds::{BuildMode, GcAction};
use fruix_protocol::nar::Writer;
use fruix_protocol::ops;
use fruix_protocol::wire::Version;
use fruix_store::failpoints::{Kind, STEPS};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;

/// Build users, fruixcrash1 and on.
const USERS: u32 = 4;
/// How long a daemon may take to serve.
const AT_ONCE: Duration = Duration::from_secs(10);
/// How long what a dead daemon started may take to die.
const SOON: Duration = Duration::from_secs(10);
const KEEP: &str = "FRUIXD_CRASH_KEEP";

// ---- a world of its own -------------------------------------------------------------------------------------------------------------------

/// Runs `test` in a mount namespace of its own, as a process of its own. The first of its ids is that of the build users' group; those of the users
/// follow, and then that of a client. They are no other test's that runs at the same time, or these would kill each other's builders.
fn alone(name: &str, test: impl FnOnce(&World)) {
    namespace::alone(name, |gid| test(&World::new(gid)));
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn mount_tmpfs(options: &str, at: &Path) {
    fs::create_dir_all(at).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at));
    fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Where daemons of this test live.
struct World {
    gid: u32,
    /// A tmpfs.
    dir: tempfile::TempDir,
    /// On it: what a daemon has. Replaced as a whole.
    root: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-R", "-l"]).arg(self.dir.path()).status();
    }
}

impl World {
    fn new(gid: u32) -> World {
        let dir = tempfile::tempdir().unwrap();
        mount_tmpfs("size=512m", dir.path());
        let write = |name: &str, text: String| {
            let file = dir.path().join(name);
            let text = fs::read_to_string(Path::new("/etc").join(name)).unwrap() + &text;
            fs::write(&file, text).unwrap();
            run(Command::new("mount").arg("--bind").arg(&file).arg(Path::new("/etc").join(name)));
        };
        let client = gid + USERS + 1;
        let users = (1..=USERS).map(|i| (format!("fruixcrash{i}"), gid + i)).collect::<Vec<_>>();
        write(
            "passwd",
            users.iter().map(|(name, uid)| format!("{name}:x:{uid}:{gid}::/:/bin/false\n")).collect::<String>()
                + &format!("fruixcrashuser:x:{client}:{client}::/:/bin/sh\n"),
        );
        let members = users.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",");
        write("group", format!("fruixcrash:x:{gid}:{members}\nfruixcrashuser:x:{client}:\n"));
        let root = dir.path().join("w");
        World { gid, dir, root }
    }

    fn clear(&self) {
        if self.root.exists() {
            fs::remove_dir_all(&self.root).unwrap();
        }
        fs::create_dir_all(self.root.join("tmp")).unwrap();
    }

    fn template(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("template-{name}"))
    }

    /// Makes what there is now into a template.
    fn save(&self, name: &str) {
        run(Command::new("cp").arg("-a").arg(&self.root).arg(self.template(name)));
    }

    fn restore(&self, name: &str) {
        if self.root.exists() {
            fs::remove_dir_all(&self.root).unwrap();
        }
        run(Command::new("cp").arg("-a").arg(self.template(name)).arg(&self.root));
    }

    fn store_dir(&self) -> StoreDir {
        StoreDir::new(self.root.join("store").to_str().unwrap())
    }

    fn real(&self, path: &StorePath) -> PathBuf {
        self.root.join("store").join(path.base_name())
    }

    fn points_log(&self) -> PathBuf {
        self.root.join("points")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fruixd"));
        command
            .env("NIX_STORE_DIR", self.root.join("store"))
            .env("GUIX_STATE_DIRECTORY", self.root.join("state"))
            .env("GUIX_CONFIGURATION_DIRECTORY", self.root.join("etc"))
            .env("TMPDIR", self.root.join("tmp"))
            .env_remove("FRUIXD_FAILPOINTS");
        command
    }

    /// Starts a daemon that fails as `orders` say, from the time `from` on.
    fn spawn(&self, orders: &str, from: &str, flags: &[&str]) -> Daemon {
        let socket = self.root.join("socket");
        let child = self
            .command()
            .env("FRUIXD_FAILPOINTS", orders)
            .env("FRUIXD_FAILPOINTS_FROM", from)
            .env("FRUIXD_FAILPOINTS_LOG", self.points_log())
            .arg(format!("--listen={}", socket.display()))
            .args(["--build-users-group=fruixcrash", "--no-substitutes"])
            .args(["--chroot-directory=/bin=/usr/bin", "--chroot-directory=/lib=/usr/lib", "--chroot-directory=/lib64=/usr/lib64"])
            .args(flags)
            .stdin(Stdio::null())
            .stderr(File::create(self.root.join("stderr")).unwrap())
            .spawn()
            .unwrap();
        Daemon { child: Some(child), socket, dir: self.store_dir() }
    }

    /// Starts a daemon that must serve at once.
    fn start(&self, orders: &str) -> Daemon {
        let mut daemon = self.spawn(orders, "ready", &[]);
        assert!(daemon.serves(), "does not serve: {}", self.stderr());
        daemon
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.root.join("stderr")).unwrap_or_default()
    }

    /// How often each point was passed.
    fn passed(&self) -> BTreeMap<String, u64> {
        let mut passed = BTreeMap::new();
        for line in fs::read_to_string(self.points_log()).unwrap_or_default().lines() {
            *passed.entry(line.to_owned()).or_default() += 1;
        }
        passed
    }

    /// Nothing of a dead daemon may remain: processes, mounts, locks.
    fn assert_nothing_left(&self, what: &str) {
        let start = Instant::now();
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < SOON, "{what}: left behind: {left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let root = self.root.to_str().unwrap();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let path = process.path();
            if !process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let uid = fs::metadata(&path).map_or(0, |data| data.uid());
            let environ = fs::read(path.join("environ")).unwrap_or_default();
            if (self.gid..=self.gid + USERS).contains(&uid) || bstr::ByteSlice::contains_str(environ.as_slice(), root) {
                left.push(format!("process {path:?} {}", fs::read_to_string(path.join("comm")).unwrap_or_default()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(&format!("{root}/store/"))).map(|line| format!("mount {line}")));
        // Locks, of whatever kind, on whatever belongs to the store or its state.
        let mut inodes = BTreeSet::new();
        let mut look = |dir: PathBuf| {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                inodes.extend(fs::symlink_metadata(entry.path()).map(|data| data.ino()));
                inodes.extend(fs::symlink_metadata(entry.path().join("lock")).map(|data| data.ino()));
            }
        };
        for dir in ["store", "state", "state/db", "state/temproots", "state/userpool"] {
            look(self.root.join(dir));
        }
        let device = fs::metadata(&self.root).unwrap().dev();
        let device = format!("{:02x}:{:02x}:", nix::sys::stat::major(device), nix::sys::stat::minor(device));
        for line in fs::read_to_string("/proc/locks").unwrap().lines() {
            if let Some(rest) = line.split_whitespace().find_map(|word| word.strip_prefix(&device))
                && rest.parse().is_ok_and(|inode: u64| inodes.contains(&inode))
            {
                left.push(format!("lock {line}"));
            }
        }
        left
    }

    /// The checker finds no damage. Returns what is left over.
    fn check(&self, what: &str) -> usize {
        let output = self.command().arg("--verify-store=contents").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{what}: the checker found damage:\n{text}{}\nthe daemon said:\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.stderr()
        );
        let words: Vec<&str> = text.lines().last().unwrap().split([' ', ',']).collect();
        let at = words.iter().position(|word| *word == "left").unwrap();
        words[at - 1].parse().unwrap()
    }
}

struct Daemon {
    child: Option<Child>,
    socket: PathBuf,
    dir: StoreDir,
}

impl Daemon {
    /// Waits until it serves; `false` when it ends instead.
    fn serves(&mut self) -> bool {
        let start = Instant::now();
        loop {
            if std::os::unix::net::UnixStream::connect(&self.socket).is_ok() && self.client().is_ok() {
                return true;
            }
            if self.exited().is_some() {
                return false;
            }
            assert!(start.elapsed() < AT_ONCE, "neither serves nor ends");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().unwrap().try_wait().unwrap()
    }

    fn client(&self) -> Result<Session, String> {
        Session::connect(&self.socket, &self.dir)
    }

    fn kill(mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits for the end of one that was killed, or is about to be.
    fn wait(mut self) -> ExitStatus {
        self.child.take().unwrap().wait().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.as_ref().unwrap().id()).unwrap()), signal).unwrap();
    }

    fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let mut child = self.child.take().unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "stopped with {status}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

// ---- a client -----------------------------------------------------------------------------------------------------------------------------

struct Session {
    /// The end of what builders and the daemon said.
    log: Arc<Mutex<Vec<u8>>>,
    runtime: tokio::runtime::Runtime,
    client: Client<UnixStream>,
}

impl Session {
    fn connect(socket: &Path, dir: &StoreDir) -> Result<Session, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut client = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
            Client::connect(stream, dir.clone(), Version::GUIX_1_100).await.map_err(|error| error.to_string())
        })?;
        let sink = Arc::clone(&log);
        client.set_log(move |text| {
            let mut log = sink.lock().unwrap();
            log.extend_from_slice(text);
            let excess = log.len().saturating_sub(1000);
            log.drain(..excess);
        });
        Ok(Session { log, runtime, client })
    }

    fn text(&mut self, name: &str, text: &[u8], references: &[StorePath]) -> Result<StorePath, ClientError> {
        let request = ops::AddTextToStore { name: name.into(), text: text.into(), references: references.to_vec() };
        self.runtime.block_on(self.client.add_text_to_store(request))
    }

    fn archive(&mut self, name: &str, recursive: bool, archive: &[u8]) -> Result<StorePath, ClientError> {
        let request = ops::AddToStore { base_name: name.into(), fixed: !recursive, recursive, hash_algo: "sha256".into() };
        self.runtime.block_on(self.client.add_to_store(request, &mut &*archive))
    }

    fn build(&mut self, drv: &str, mode: BuildMode) -> Result<(), ClientError> {
        self.runtime.block_on(self.client.build_paths(ops::BuildPaths { paths: vec![drv.into()], mode }))
    }

    fn collect(&mut self) -> Result<u64, ClientError> {
        let request = ops::CollectGarbage {
            action: GcAction::DeleteDead,
            paths_to_delete: Vec::new(),
            ignore_liveness: false,
            max_freed: u64::MAX,
            obsolete1: 0,
            obsolete2: 0,
            obsolete3: 0,
        };
        self.runtime.block_on(self.client.collect_garbage(request)).map(|results| results.bytes_freed)
    }

    fn root(&mut self, link: &Path) -> Result<(), ClientError> {
        let path = BString::from(link.to_str().unwrap());
        self.runtime.block_on(self.client.add_indirect_root(ops::AddIndirectRoot { path }))
    }

    fn is_valid(&mut self, path: &StorePath) -> Result<bool, ClientError> {
        let path = self.client.store_dir().display(path).to_string().into();
        self.runtime.block_on(self.client.is_valid_path(ops::IsValidPath { path }))
    }

    fn keep_failed(&mut self) -> Result<(), ClientError> {
        let request = ops::SetOptions { keep_failed: true, print_build_trace: true, ..ops::SetOptions::default() };
        self.runtime.block_on(self.client.set_options(request))
    }
}

/// A file, as an archive.
fn file_archive(contents: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    writer.file(false, contents.len() as u64).unwrap();
    writer.data(contents).unwrap();
    writer.finish().unwrap()
}

/// A directory with a directory, a symbolic link, small files, and a large one that deduplication takes.
fn tree_archive(small: &str, large: &[u8], files: usize) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    let file = |writer: &mut Writer<Vec<u8>>, contents: &[u8]| {
        writer.file(true, contents.len() as u64).unwrap();
        writer.data(contents).unwrap();
    };
    writer.directory().unwrap();
    writer.entry(BStr::new("dir")).unwrap();
    writer.directory().unwrap();
    for number in 0..files {
        writer.entry(BStr::new(&format!("file-{number:05}"))).unwrap();
        file(&mut writer, format!("{small} {number}").as_bytes());
    }
    writer.end_directory().unwrap();
    writer.entry(BStr::new("large")).unwrap();
    file(&mut writer, large);
    writer.entry(BStr::new("link")).unwrap();
    writer.symlink(BStr::new("dir/file-00000")).unwrap();
    writer.end_directory().unwrap();
    writer.finish().unwrap()
}

/// A builder: it must be in the store, and what it runs is in the sandbox.
fn shell_archive() -> Vec<u8> {
    let script = b"#!/bin/sh\nexec /bin/sh \"$@\"\n";
    let mut writer = Writer::new(Vec::new());
    writer.file(true, script.len() as u64).unwrap();
    writer.data(script).unwrap();
    writer.finish().unwrap()
}

/// A derivation with one output that `script` makes, printed, and its output.
fn derivation(dir: &StoreDir, name: &str, script: &str, sources: &[StorePath]) -> (String, StorePath) {
    let shell = fixed_output_path(dir, true, &Hash::of(HashAlgo::Sha256, shell_archive()), "shell").unwrap();
    let sources: BTreeSet<String> = sources.iter().chain([&shell]).map(|path| format!("\"{}\"", dir.display(path))).collect();
    let sources = sources.into_iter().collect::<Vec<_>>().join(",");
    let print = |out: &str| {
        format!(
            r#"Derive([("out","{out}","","")],[],[{sources}],"{}","{}",["-c","{script}"],[("PATH","/bin"),("exportReferencesGraph","graph {}"),("out","{out}")])"#,
            fruixd::config::this_system(),
            dir.display(&shell),
            dir.display(&shell)
        )
    };
    let dummy = dir.display(&StorePath::from_base_name(format!("{}-x", "0".repeat(32))).unwrap()).to_string();
    let drv = fruix_drv::aterm::parse(dir, print(&dummy).as_bytes()).unwrap();
    let outputs = fruix_drv::modulo::compute_output_paths::<std::convert::Infallible>(dir, name, &drv, &mut |_| unreachable!()).unwrap();
    (print(&dir.display(&outputs["out"]).to_string()), outputs["out"].clone())
}

/// Something that a client does, and what came of it.
struct Attempt<'w> {
    world: &'w World,
    session: Option<Session>,
    socket: PathBuf,
    /// What the daemon said is valid, and must stay so.
    acknowledged: BTreeSet<StorePath>,
    errors: Vec<String>,
}

impl<'w> Attempt<'w> {
    fn new(world: &'w World) -> Attempt<'w> {
        Attempt { world, session: None, socket: world.root.join("socket"), acknowledged: BTreeSet::new(), errors: Vec::new() }
    }

    /// Asks for something; after an error that ends the connection, the next request begins another.
    fn ask<T>(&mut self, what: &str, ask: impl FnOnce(&mut Session) -> Result<T, ClientError>) -> Option<T> {
        if self.session.is_none() {
            match Session::connect(&self.socket, &self.world.store_dir()) {
                Ok(session) => self.session = Some(session),
                Err(error) => {
                    self.errors.push(format!("{what}: {error}"));
                    return None;
                }
            }
        }
        let session = self.session.as_mut().unwrap();
        match ask(session) {
            Ok(value) => Some(value),
            Err(error) => {
                let log = std::mem::take(&mut *session.log.lock().unwrap());
                if !matches!(error, ClientError::Remote { .. }) {
                    self.session = None;
                }
                self.errors.push(format!("{what}: {error}; {}", String::from_utf8_lossy(&log)));
                None
            }
        }
    }

    fn text(&mut self, name: &str, text: &str, references: &[StorePath]) -> Option<StorePath> {
        let path = self.ask(name, |session| session.text(name, text.as_bytes(), references))?;
        let expected = text_path(&self.world.store_dir(), name, text.as_bytes(), &references.iter().cloned().collect()).unwrap();
        assert_eq!(path, expected);
        self.acknowledged.insert(path.clone());
        Some(path)
    }

    fn archive(&mut self, name: &str, archive: &[u8]) -> Option<StorePath> {
        let path = self.ask(name, |session| session.archive(name, true, archive))?;
        assert_eq!(path, fixed_output_path(&self.world.store_dir(), true, &Hash::of(HashAlgo::Sha256, archive), name).unwrap());
        self.acknowledged.insert(path.clone());
        Some(path)
    }

    fn flat(&mut self, name: &str, contents: &[u8]) -> Option<StorePath> {
        let path = self.ask(name, |session| session.archive(name, false, &file_archive(contents)))?;
        assert_eq!(path, fixed_output_path(&self.world.store_dir(), false, &Hash::of(HashAlgo::Sha256, contents), name).unwrap());
        self.acknowledged.insert(path.clone());
        Some(path)
    }

    /// Adds a derivation. Returns it and its output.
    fn derivation(&mut self, name: &str, script: &str, sources: &[StorePath]) -> Option<(StorePath, StorePath)> {
        let (text, out) = derivation(&self.world.store_dir(), name, script, sources);
        let mut sources = sources.to_vec();
        sources.push(self.archive("shell", &shell_archive())?);
        Some((self.text(&format!("{name}.drv"), &text, &sources)?, out))
    }

    /// Adds a derivation and builds it.
    fn build(&mut self, name: &str, script: &str, sources: &[StorePath]) -> Option<StorePath> {
        let (drv, out) = self.derivation(name, script, sources)?;
        let printed = self.world.store_dir().display(&drv).to_string();
        self.ask(name, |session| session.build(&printed, BuildMode::Normal))?;
        self.acknowledged.insert(out.clone());
        Some(out)
    }

    fn root(&mut self, name: &str, target: &StorePath) -> Option<()> {
        let link = self.world.root.join(name);
        let _ = fs::remove_file(&link);
        symlink(self.world.real(target), &link).unwrap();
        self.ask("root", |session| session.root(&link))?;
        assert_eq!(fs::read_link(self.auto(&link)).unwrap(), link);
        Some(())
    }

    fn auto(&self, link: &Path) -> PathBuf {
        self.world.root.join("state/gcroots/auto").join(Hash::of(HashAlgo::Sha1, link.to_str().unwrap()).base32())
    }

    /// Everything that was acknowledged is valid and there.
    fn assert_kept(&self, what: &str) {
        let mut session = Session::connect(&self.socket, &self.world.store_dir()).unwrap_or_else(|error| panic!("{what}: {error}"));
        for path in &self.acknowledged {
            assert!(session.is_valid(path).unwrap(), "{what}: {path} was acknowledged, and is lost");
            assert!(self.world.real(path).symlink_metadata().is_ok(), "{what}: {path} is valid, and is not there");
        }
    }
}

// ---- what is done, and where it can fail --------------------------------------------------------------------------------------------------

/// Something to do, and the steps that fail in it.
struct Scenario {
    name: &'static str,
    /// Done beforehand by a daemon that does not fail; what the store holds at the beginning.
    prepare: fn(&mut Attempt<'_>),
    /// Changes that no daemon makes.
    tamper: fn(&World),
    act: fn(&mut Attempt<'_>),
    flags: &'static [&'static str],
    /// Points that always fail, so that others are reached.
    orders: &'static str,
    from: &'static str,
    steps: &'static [&'static str],
}

const BASE: Scenario =
    Scenario { name: "", prepare: |_| {}, tamper: |_| {}, act: |_| {}, flags: &[], orders: "", from: "ready", steps: &[] };

fn large(byte: u8) -> Vec<u8> {
    vec![byte; 20_000]
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "start",
        act: |attempt| {
            attempt.text("text", "text", &[]);
        },
        from: "start",
        steps: &[
            "dirs::make",
            "staging::make",
            "staging::lock",
            "db::schema",
            "schema::write",
            "schema::sync",
            "schema::rename",
            "reserve::write",
            "temproots::create",
            "temproots::unlink",
        ],
        ..BASE
    },
    Scenario {
        name: "add",
        tamper: |world| fs::remove_dir_all(world.root.join("state/profiles/per-user/root")).unwrap(),
        act: |attempt| {
            let text = attempt.text("text", "text", &[]);
            attempt.text("more", "more", text.as_slice());
            attempt.flat("flat", b"flat");
            attempt.archive("tree", &tree_archive("a", &large(1), 20));
            attempt.archive("spooled", &tree_archive("b", &[2; 400_000], 2));
            attempt.flat("big", &[3; 700_000]);
            // Its large file is known by now.
            attempt.archive("again", &tree_archive("c", &large(1), 1));
        },
        steps: &[
            "file::create",
            "file::write",
            "file::finish",
            "file::symlink",
            "file::mkdir",
            "file::seal",
            "staging::spool",
            "add::spool",
            "install::rename",
            "db::commit",
            "links::link",
            "links::stage",
            "links::replace",
            "temproots::write",
            "profile::make",
            "profile::chown",
            "reply::send",
        ],
        ..BASE
    },
    Scenario {
        name: "build",
        act: |attempt| {
            let source = attempt.text("source", "source", &[]);
            let Some(source) = source else { return };
            // Before a build is registered, all that was added is synced: more than is synced one by one.
            attempt.archive("tree", &tree_archive("a", &large(1), 20));
            let script = "seq 1 20000; mkdir -p $out/dir; seq 1 9000 > $out/large; echo done > $out/dir/small; ln -s dir $out/link";
            attempt.build("thing", script, std::slice::from_ref(&source));
            attempt.build("small", "echo hello; echo small > $out", &[source]);
        },
        steps: &[
            "sync::file",
            "sync::filesystem",
            "sync::names",
            "locks::open",
            "locks::unlink",
            "locks::mark",
            "staging::dir",
            "build-dir::make",
            "build-dir::lock",
            "build-dir::write",
            "outputs::stage",
            "outputs::register",
            "log::create",
            "log::write",
            "log::finish",
            "remove::unlink",
            "remove::rmdir",
        ],
        flags: &[],
        ..BASE
    },
    Scenario {
        name: "repair",
        prepare: |attempt| {
            attempt.build("damaged", "mkdir $out; echo right > $out/file", &[]).unwrap();
        },
        tamper: |world| {
            let (_, out) = derivation(&world.store_dir(), "damaged", "mkdir $out; echo right > $out/file", &[]);
            let file = world.real(&out).join("file");
            fs::write(&file, "wrong").unwrap();
            assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o444);
        },
        act: |attempt| {
            let Some((drv, out)) = attempt.derivation("damaged", "mkdir $out; echo right > $out/file", &[]) else { return };
            let printed = attempt.world.store_dir().display(&drv).to_string();
            if attempt.ask("repair", |session| session.build(&printed, BuildMode::Repair)).is_some() {
                assert_eq!(fs::read_to_string(attempt.world.real(&out).join("file")).unwrap(), "right\n");
            }
            // At every moment one of the two is there.
            assert!(attempt.world.real(&out).join("file").exists());
        },
        steps: &["replace::exchange"],
        ..BASE
    },
    Scenario {
        name: "keep",
        prepare: |attempt| {
            attempt.derivation("kept", "echo kept > file; exit 1", &[]).unwrap();
        },
        act: |attempt| {
            let Some((drv, _)) = attempt.derivation("kept", "echo kept > file; exit 1", &[]) else { return };
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "keeper", "--nocapture"])
                .env(
                    KEEP,
                    format!("{}\n{}\n{}", attempt.socket.display(), attempt.world.store_dir(), attempt.world.store_dir().display(&drv)),
                )
                .uid(attempt.world.gid + USERS + 1)
                .gid(attempt.world.gid + USERS + 1)
                .output()
                .unwrap();
            if !output.status.success() {
                attempt.errors.push(format!("the build did not just fail: {}", String::from_utf8_lossy(&output.stderr)));
            }
        },
        steps: &["build-dir::keep"],
        ..BASE
    },
    Scenario {
        name: "collect",
        prepare: |attempt| {
            let kept = attempt.archive("kept", &tree_archive("a", &large(1), 3)).unwrap();
            attempt.root("kept", &kept).unwrap();
            attempt.root("stale", &kept).unwrap();
            attempt.archive("dead", &tree_archive("b", &large(2), 3)).unwrap();
            attempt.flat("dead-file", b"dead").unwrap();
            attempt.acknowledged = BTreeSet::from([kept]);
        },
        tamper: |world| {
            fs::remove_file(world.root.join("stale")).unwrap();
            fs::write(world.root.join("state/temproots/999999"), "x").unwrap();
            fs::write(world.root.join(format!("store/{}-x.lock", "0".repeat(32))), "").unwrap();
        },
        act: |attempt| {
            attempt.ask("collect", Session::collect);
        },
        steps: &["gc::commit", "gc::trash", "links::unlink", "roots::unlink", "temproots::bury"],
        ..BASE
    },
    Scenario {
        name: "collect-full",
        prepare: |attempt| {
            attempt.archive("dead", &tree_archive("b", &large(2), 3)).unwrap();
            attempt.acknowledged.clear();
        },
        act: |attempt| {
            attempt.ask("collect", Session::collect);
        },
        orders: "gc::commit:before=enospc;",
        steps: &["reserve::unlink"],
        ..BASE
    },
    Scenario {
        name: "optimise",
        flags: &["--disable-deduplication"],
        prepare: |attempt| {
            for name in ["one", "two", "three"] {
                attempt.archive(name, &tree_archive(name, &large(1), 2)).unwrap();
            }
        },
        tamper: |world| {
            // A link that is not what it says.
            let hash = Hash::of(HashAlgo::Sha256, &{
                let mut writer = Writer::new(Vec::new());
                writer.file(true, 20_000).unwrap();
                writer.data(&large(1)).unwrap();
                writer.finish().unwrap()
            });
            let link = world.root.join("store/.links").join(hash.base32());
            fs::write(&link, large(9)).unwrap();
            fs::set_permissions(&link, fs::Permissions::from_mode(0o555)).unwrap();
            run(Command::new("touch").args(["-d", "@1"]).arg(&link));
        },
        act: |attempt| {
            attempt.ask("optimise", |session| session.runtime.block_on(session.client.optimise_store(ops::OptimiseStore {})));
        },
        steps: &["links::restore", "links::drop"],
        ..BASE
    },
    Scenario {
        name: "root",
        prepare: |attempt| {
            attempt.text("kept", "kept", &[]).unwrap();
        },
        act: |attempt| {
            if let Some(path) = attempt.text("kept", "kept", &[]) {
                attempt.root("root", &path);
            }
        },
        steps: &["roots::link", "roots::rename"],
        ..BASE
    },
];

/// Builds something that fails, as somebody else than root, who has its directory kept.
#[test]
fn keeper() {
    let Ok(text) = std::env::var(KEEP) else { return };
    let [socket, dir, drv] = text.lines().collect::<Vec<_>>().try_into().unwrap();
    let mut session = Session::connect(Path::new(socket), &StoreDir::new(dir)).unwrap();
    session.keep_failed().unwrap();
    let error = session.build(drv, BuildMode::Normal).unwrap_err();
    let log = String::from_utf8_lossy(&session.log.lock().unwrap()).into_owned();
    assert!(log.contains("failed with exit code 1") && log.contains("keeping build directory"), "{error}: {log}");
    let kept = log.lines().find_map(|line| line.strip_prefix("note: keeping build directory `")).unwrap().trim_end_matches('\'');
    assert_eq!(fs::read_to_string(Path::new(kept).join("file")).unwrap(), "kept\n");
}

/// Whether to do it all.
fn thorough() -> bool {
    kills() > 5
}

/// How often to kill at random.
fn kills() -> u32 {
    std::env::var("FRUIXD_CRASH").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

/// The step that only comes when the daemon stops.
const AT_STOP: &str = "temproots::unlink";

fn home(step: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.steps.contains(&step))
}

#[test]
fn every_step_has_a_scenario() {
    for step in STEPS {
        assert!(home(step.name).is_some(), "no scenario says that it passes {}", step.name);
    }
    for name in SCENARIOS.iter().flat_map(|scenario| scenario.steps) {
        assert!(STEPS.iter().any(|step| step.name == *name), "{name} is no step");
    }
}

fn prepare(world: &World, scenario: &Scenario) -> BTreeSet<StorePath> {
    world.clear();
    let mut acknowledged = BTreeSet::new();
    if scenario.from == "ready" {
        let mut daemon = world.spawn("", "ready", scenario.flags);
        assert!(daemon.serves(), "{}", world.stderr());
        let mut attempt = Attempt::new(world);
        (scenario.prepare)(&mut attempt);
        assert!(attempt.errors.is_empty(), "{:?}", attempt.errors);
        acknowledged = attempt.acknowledged;
        drop(attempt.session);
        daemon.stop();
        (scenario.tamper)(world);
        let _ = fs::remove_file(world.points_log());
    }
    world.save(scenario.name);
    acknowledged
}

/// All steps of the scenario, each failing in each way.
fn trials(world: &World, name: &str) {
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap();
    let acknowledged = prepare(world, scenario);
    // Where it comes by when nothing fails.
    let mut daemon = world.spawn(scenario.orders, scenario.from, scenario.flags);
    assert!(daemon.serves(), "{}", world.stderr());
    let mut attempt = Attempt::new(world);
    (scenario.act)(&mut attempt);
    assert!(attempt.errors.is_empty(), "{name}: {:?}\n{}", attempt.errors, world.stderr());
    drop(attempt);
    let before = world.passed();
    daemon.stop();
    let mut passed = world.passed();
    // When it stops it does as much again or not, depending on what it was at.
    passed.retain(|point, times| {
        *times = before.get(point).copied().unwrap_or(if point.starts_with(AT_STOP) { *times } else { 0 });
        true
    });
    let mut count = 0;
    for step in scenario.steps {
        let kind = STEPS.iter().find(|known| known.name == *step).unwrap().kind;
        for moment in ["before", "after"] {
            let point = format!("{step}:{moment}");
            let times = passed.get(&point).copied().unwrap_or(0);
            assert!(times > 0, "{name} never passes {point}");
            let mut turns = BTreeSet::from([1]);
            if *step == "reply::send" {
                // The first are greetings.
                turns = BTreeSet::from([times / 2, times]);
            }
            if thorough() {
                turns.extend([times / 2, times].into_iter().filter(|turn| *turn > 0));
            }
            for action in ["kill", "eio", "enospc", "eintr", "short"] {
                let sensible = match (action, moment) {
                    ("eintr", "before") => kind != Kind::Whole,
                    ("short", "before") => kind == Kind::Write,
                    ("eintr" | "short", _) => false,
                    ("eio", "before") | ("kill", _) => true,
                    _ => thorough(),
                };
                for turn in turns.iter().filter(|_| sensible) {
                    trial(world, scenario, &acknowledged, &point, action, *turn);
                    count += 1;
                }
            }
        }
    }
    eprintln!("{name}: {count} failures of {} steps", scenario.steps.len());
}

fn trial(world: &World, scenario: &Scenario, acknowledged: &BTreeSet<StorePath>, point: &str, action: &str, turn: u64) {
    let what = format!("{}, {point}={action}#{turn}", scenario.name);
    world.restore(scenario.name);
    let mut daemon = world.spawn(&format!("{}{point}={action}#{turn}", scenario.orders), scenario.from, scenario.flags);
    let mut attempt = Attempt::new(world);
    attempt.acknowledged.clone_from(acknowledged);
    if daemon.serves() {
        (scenario.act)(&mut attempt);
        // What a session leaves, it may leave a moment later.
        attempt.session = None;
    } else {
        attempt.errors.push("did not start".to_owned());
    }
    let fired = || {
        let fired = format!("{point}=");
        fs::read_to_string(world.points_log()).unwrap_or_default().lines().any(|line| line.starts_with(&fired))
    };
    let at_stop = point.starts_with(AT_STOP);
    if at_stop && daemon.exited().is_none() {
        daemon.signal(Signal::SIGTERM);
    }
    let start = Instant::now();
    while !fired() {
        if turn > 1 && start.elapsed() > Duration::from_secs(2) {
            // How often it comes by a place depends on what else is going on.
            eprintln!("{what}: did not come by so often");
            // What is about to happen must not happen to what comes afterwards.
            assert!(attempt.errors.is_empty(), "{what}: {:?}", attempt.errors);
            attempt.assert_kept(&what);
            daemon.stop();
            world.assert_nothing_left(&what);
            world.check(&what);
            return;
        }
        assert!(start.elapsed() < SOON, "{what}: did not come by");
        std::thread::sleep(Duration::from_millis(10));
    }
    if matches!(action, "eintr" | "short") {
        assert!(attempt.errors.is_empty(), "{what}: {:?}", attempt.errors);
    }
    let errors = std::mem::take(&mut attempt.errors);
    if action == "kill" && fired() {
        let status = daemon.wait();
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{what}: {status}");
        world.assert_nothing_left(&what);
        if world.root.join("state/db/schema").exists() && scenario.name != "repair" && scenario.name != "optimise" {
            world.check(&what);
        }
        daemon = world.spawn("", "ready", scenario.flags);
        assert!(daemon.serves(), "{what}: does not serve afterwards: {}", world.stderr());
    } else if at_stop {
        daemon.wait();
        world.assert_nothing_left(&what);
        daemon = world.start("");
    } else if daemon.exited().is_some() {
        // An error at start may end it, with a word.
        assert_eq!(scenario.name, "start", "{what}: ended: {}", world.stderr());
        assert!(world.stderr().contains("error"), "{what}: ended without a word: {}", world.stderr());
        drop(daemon);
        daemon = world.spawn("", "ready", scenario.flags);
        assert!(daemon.serves(), "{what}: does not serve afterwards: {}", world.stderr());
    }
    attempt.assert_kept(&what);
    // The same again, and nothing fails.
    (scenario.act)(&mut attempt);
    assert!(attempt.errors.is_empty(), "{what}: afterwards: {:?}, before that: {errors:?}\n{}", attempt.errors, world.stderr());
    attempt.assert_kept(&what);
    attempt.session = None;
    daemon.stop();
    world.assert_nothing_left(&what);
    world.check(&what);
    // What was left over goes with a collection, or is too young.
    for link in fs::read_dir(world.root.join("state/gcroots/auto")).into_iter().flatten().flatten() {
        run(Command::new("touch").args(["--no-dereference", "--date=@1"]).arg(link.path()));
    }
    let mut daemon = world.spawn("", "ready", scenario.flags);
    assert!(daemon.serves(), "{what}: {}", world.stderr());
    let mut session = daemon.client().unwrap();
    session.collect().unwrap_or_else(|error| panic!("{what}: {error}"));
    drop(session);
    daemon.stop();
    let leftovers = world.check(&what);
    assert_eq!(leftovers, 0, "{what}: left over after a collection:\n{}", {
        let output = world.command().arg("--verify-store").output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
}

macro_rules! trials {
    ($($test:ident $name:literal;)*) => { $(
        #[test]
        fn $test() {
            alone(stringify!($test), |world| trials(world, $name));
        }
    )* };
}

trials! {
    steps_of_a_start "start";
    steps_of_an_addition "add";
    steps_of_a_build "build";
    steps_of_a_repair "repair";
    steps_of_keeping_a_build "keep";
    steps_of_a_collection "collect";
    steps_of_a_collection_on_a_full_disk "collect-full";
    steps_of_an_optimisation "optimise";
    steps_of_a_root "root";
}

// ---- random moments -----------------------------------------------------------------------------------------------------------------------

/// Numbers that repeat with their seed.
struct Random(u64);

impl Random {
    fn new(salt: u64) -> Random {
        let seed = std::env::var("FRUIXD_CRASH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            let mut bytes = [0; 4];
            File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
            u64::from(u32::from_ne_bytes(bytes))
        });
        eprintln!("FRUIXD_CRASH_SEED={seed}");
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt.wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Kills the daemon at random moments of `work`, which goes on until the connection fails. Its argument is the number of the turn.
fn random_kills(world: &World, salt: u64, longest: Duration, work: fn(&mut Attempt<'_>, u32), keeps: bool) {
    let mut random = Random::new(salt);
    let mut acknowledged = BTreeSet::new();
    let turns = kills();
    for turn in 0..turns {
        let what = format!("turn {turn}");
        if turn % 25 == 0 {
            // To check ever more takes ever longer.
            world.clear();
            acknowledged.clear();
        }
        let daemon = world.start("");
        let wait = Duration::from_micros(random.below(u64::try_from(longest.as_micros()).unwrap()));
        let done = std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let mut attempt = Attempt::new(world);
                work(&mut attempt, turn);
                attempt
            });
            std::thread::sleep(wait);
            daemon.kill();
            worker.join().unwrap().acknowledged
        });
        if keeps {
            acknowledged.extend(done);
        } else {
            acknowledged = done;
        }
        world.assert_nothing_left(&what);
        world.check(&what);
        let mut daemon = world.spawn("", "ready", &[]);
        let start = Instant::now();
        assert!(daemon.serves(), "{what}: does not serve afterwards: {}", world.stderr());
        assert!(start.elapsed() < AT_ONCE);
        let mut attempt = Attempt::new(world);
        attempt.acknowledged.clone_from(&acknowledged);
        attempt.assert_kept(&what);
        if turn % 10 == 9 || turn + 1 == turns {
            // It is not only there, but works.
            attempt.build("after", &format!("echo {turn} > $out"), &[]).unwrap_or_else(|| panic!("{what}: {:?}", attempt.errors));
            attempt.session = None;
            drop(attempt);
            daemon.stop();
            world.check(&what);
        } else {
            attempt.session = None;
            daemon.kill();
            world.assert_nothing_left(&what);
        }
    }
    eprintln!("{turns} kills, {} acknowledged paths at the end", acknowledged.len());
}

#[test]
fn killed_while_adding() {
    fn work(attempt: &mut Attempt<'_>, turn: u32) {
        for i in 0.. {
            let name = format!("{turn}-{i}");
            let text = attempt.text(&name, &name, &[]);
            attempt.text(&name, &format!("{name} refers"), text.as_slice());
            attempt.archive(&name, &tree_archive(&name, &large(u8::try_from(i % 7).unwrap()), 12));
            attempt.flat(&name, &name.repeat(30_000).into_bytes());
            if !attempt.errors.is_empty() {
                return;
            }
        }
    }
    alone("killed_while_adding", |world| random_kills(world, 1, Duration::from_millis(250), work, true));
}

#[test]
fn killed_while_building() {
    fn work(attempt: &mut Attempt<'_>, turn: u32) {
        for i in 0.. {
            let script = format!("echo {turn} {i}; mkdir $out; seq 1 9000 > $out/seq; seq 1 2000; echo {turn}-{i} > $out/small");
            attempt.build(&format!("{turn}-{i}"), &script, &[]);
            if !attempt.errors.is_empty() {
                return;
            }
        }
    }
    alone("killed_while_building", |world| random_kills(world, 2, Duration::from_millis(600), work, true));
}

#[test]
fn killed_while_collecting() {
    fn work(attempt: &mut Attempt<'_>, turn: u32) {
        let Some(kept) = attempt.archive("kept", &tree_archive("kept", &large(1), 5)) else { return };
        if attempt.root("kept", &kept).is_none() {
            return;
        }
        let kept = attempt.acknowledged.clone();
        for i in 0.. {
            for dead in 0..5 {
                let name = format!("dead-{turn}-{i}-{dead}");
                let text = attempt.text(&name, &name, &[]);
                attempt.text(&name, &format!("{name} refers"), text.as_slice());
                attempt.archive(&name, &tree_archive(&name, &large(u8::try_from(dead).unwrap()), 12));
            }
            // From here on they may go.
            attempt.acknowledged.clone_from(&kept);
            attempt.ask("collect", Session::collect);
            if !attempt.errors.is_empty() {
                return;
            }
        }
    }
    alone("killed_while_collecting", |world| {
        random_kills(world, 3, Duration::from_millis(400), work, false);
    });
}

/// Beside a daemon at work the checker takes nothing for damage that is merely in flight; and what a living daemon has is seen.
#[test]
fn checked_while_at_work() {
    alone("checked_while_at_work", |world| {
        world.clear();
        let daemon = world.start("");
        let left = world.left();
        assert!(["process", "lock"].iter().all(|what| left.iter().any(|line| line.starts_with(what))), "{left:?}");
        let end = Instant::now() + Duration::from_secs(if thorough() { 60 } else { 5 });
        let errors = std::thread::scope(|scope| {
            let adder = |salt: u32, collects: bool| {
                scope.spawn(move || {
                    let mut attempt = Attempt::new(world);
                    for i in 0.. {
                        let name = format!("{salt}-{i}");
                        let text = attempt.text(&name, &name, &[]);
                        attempt.archive(&name, &tree_archive(&name, &large(u8::try_from(i % 3).unwrap()), 12));
                        attempt.build(&name, &format!("mkdir $out; seq 1 9000 > $out/seq; echo {name} > $out/small"), text.as_slice());
                        if collects {
                            attempt
                                .ask("optimise", |session| session.runtime.block_on(session.client.optimise_store(ops::OptimiseStore {})));
                            attempt.ask("collect", Session::collect);
                        }
                        if !attempt.errors.is_empty() || Instant::now() > end {
                            break;
                        }
                    }
                    attempt.errors
                })
            };
            let workers = [adder(1, false), adder(2, true)];
            let mut count = 0;
            while workers.iter().any(|worker| !worker.is_finished()) {
                world.check("at work");
                count += 1;
            }
            eprintln!("checked {count} times");
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(errors.is_empty(), "{errors:?}");
        daemon.stop();
        world.assert_nothing_left("at the end");
        world.check("at the end");
    });
}

// ---- full disks ---------------------------------------------------------------------------------------------------------------------------

/// Fills the disk with additions, until one fails for lack of room. Returns what was added.
fn fill(attempt: &mut Attempt<'_>, add: impl Fn(&mut Attempt<'_>, usize) -> Option<StorePath>) -> Vec<StorePath> {
    let mut paths = Vec::new();
    for number in 0..10_000 {
        match add(attempt, number) {
            Some(path) => paths.push(path),
            None => {
                assert!(attempt.errors.iter().all(|error| says_full(error)), "{:?}", attempt.errors);
                attempt.errors.clear();
                return paths;
            }
        }
    }
    panic!("the disk is never full");
}

fn says_full(error: &str) -> bool {
    error.contains("No space left on device") || error.contains("full")
}

/// On a disk of some size everything that cannot be done fails with a clear word, and a collection helps.
fn full_disk(world: &World, options: &str, add: fn(&mut Attempt<'_>, usize) -> Option<StorePath>) {
    fs::create_dir_all(&world.root).unwrap();
    mount_tmpfs(options, &world.root);
    fs::create_dir_all(world.root.join("tmp")).unwrap();
    let daemon = world.start("");
    let mut attempt = Attempt::new(world);
    let kept = attempt.archive("kept", &tree_archive("kept", &large(1), 3)).unwrap();
    attempt.root("kept", &kept).unwrap();
    let paths = fill(&mut attempt, add);
    assert!(paths.len() > 3, "{}", paths.len());
    // To the last byte, or inode.
    for number in 0..10_000 {
        if fs::write(world.root.join(format!("filler-{number}")), [0; 1000]).is_err() {
            break;
        }
    }
    // It serves, and says why it cannot do more.
    attempt.assert_kept("on a full disk");
    for number in 0..3 {
        let failed = attempt.build(&format!("on-full-{number}"), "echo log; mkdir $out; seq 1 90000 > $out/seq", &[]);
        assert!(failed.is_none());
        assert!(attempt.errors.iter().all(|error| says_full(error)), "{:?}", attempt.errors);
        attempt.errors.clear();
    }
    attempt.assert_kept("after failures on a full disk");
    // Collections free space, on the very disk that has none.
    attempt.acknowledged = BTreeSet::from([kept.clone()]);
    let freed = attempt.ask("collect", Session::collect);
    assert!(freed.is_some_and(|freed| freed > 0), "freed {freed:?}: {:?}\n{}", attempt.errors, world.stderr());
    attempt.assert_kept("after a collection");
    let mut session = daemon.client().unwrap();
    for path in paths.iter().filter(|path| **path != kept) {
        assert!(!session.is_valid(path).unwrap(), "{path} was not collected");
    }
    drop(session);
    attempt.build("after", "echo after > $out", &[]).unwrap_or_else(|| panic!("{:?}", attempt.errors));
    drop(attempt.session.take());
    daemon.stop();
    world.assert_nothing_left("a full disk");
    world.check("a full disk");
    // And when the daemon is killed with the disk full.
    let daemon = world.start("");
    fill(&mut attempt, add);
    daemon.kill();
    attempt.session = None;
    world.assert_nothing_left("killed on a full disk");
    world.check("killed on a full disk");
    let daemon = world.start("");
    attempt.assert_kept("killed on a full disk");
    attempt.ask("collect", Session::collect).unwrap_or_else(|| panic!("{:?}", attempt.errors));
    drop(attempt.session.take());
    daemon.stop();
    world.check("killed on a full disk, and collected");
    run(Command::new("umount").arg(&world.root));
}

#[test]
fn d5_no_space() {
    fn add(attempt: &mut Attempt<'_>, number: usize) -> Option<StorePath> {
        attempt.flat(&format!("big-{number}"), &format!("{number:010}").repeat(60_000).into_bytes())
    }
    alone("d5_no_space", |world| full_disk(world, "size=24m", add));
}

#[test]
fn d5_no_inodes() {
    fn add(attempt: &mut Attempt<'_>, number: usize) -> Option<StorePath> {
        attempt.archive(&format!("tree-{number}"), &tree_archive(&number.to_string(), b"small", 20))
    }
    alone("d5_no_inodes", |world| full_disk(world, "size=200m,nr_inodes=400", add));
}

/// The disk of the build logs is full: that is said, and nothing else suffers.
#[test]
fn no_space_for_logs() {
    alone("no_space_for_logs", |world| {
        world.clear();
        mount_tmpfs("size=64k", &world.root.join("state/log"));
        let daemon = world.start("");
        let mut attempt = Attempt::new(world);
        // Not to be compressed away.
        let script = "head -c 400000 /dev/urandom | base64; echo done > $out";
        let built = attempt.build("talks", script, &[]);
        assert!(built.is_some() || attempt.errors.iter().all(|error| says_full(error)), "{:?}", attempt.errors);
        attempt.errors.clear();
        attempt.text("text", "text", &[]).unwrap();
        attempt.assert_kept("without room for logs");
        drop(attempt.session.take());
        daemon.stop();
        world.assert_nothing_left("without room for logs");
        world.check("without room for logs");
        run(Command::new("umount").arg(world.root.join("state/log")));
    });
}
