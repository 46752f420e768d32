//! The sandbox and the spawner, for real. A program of its own without libtest, whose threads would keep the spawner from being forked.
//!
//! Builders are functions of this program (`builtin`), so nothing need be installed. As root everything runs; without root, what needs it is
//! skipped, and says so.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bstr::BString;
use fruix_drv::{StoreDir, StorePath};
use fruixd::sandbox::plan::{Identity, Network, Root};
use fruixd::sandbox::spawner::Isolation;
use fruixd::sandbox::{
    BuildSpec, Builtin, Error, ExitStatus, HostFacts, LinuxNamespaces, Plan, Program, Running, Sandbox as _, SpawnerHandle, Unconfined,
    UserIds,
};
use fruixd::users::UserPool;

const UID: u32 = 54_321;
const GID: u32 = 54_320;
const PATIENCE: Duration = Duration::from_secs(20);

// ---- builders -----------------------------------------------------------------------------------------------------------------------------

fn builtins(name: &str) -> Option<Builtin> {
    Some(match name {
        "look" => look,
        "cannot" => cannot,
        "nasty" => nasty,
        "internet" => internet,
        "abstract" => reach_abstract,
        "reads" => reads,
        "panics" => |_| panic!("as asked"),
        "seven" => |_| 7,
        _ => return None,
    })
}

/// Prints all that there is, but for the kernel's own file systems.
fn look(_: &[u8]) -> i32 {
    fn walk(dir: &Path) {
        let mut entries: Vec<_> = fs::read_dir(dir).map(|entries| entries.flatten().collect()).unwrap_or_default();
        entries.sort_by_key(std::fs::DirEntry::path);
        for entry in entries {
            let path = entry.path();
            let file = fs::symlink_metadata(&path).unwrap();
            let kind = if file.is_dir() {
                "dir"
            } else if file.is_symlink() {
                "link"
            } else if file.is_file() {
                "file"
            } else {
                "device"
            };
            println!("{kind} {:o} {}:{} {}", file.mode() & 0o7777, file.uid(), file.gid(), path.display());
            if file.is_dir() && path != Path::new("/proc") && path != Path::new("/dev/pts") {
                walk(&path);
            }
        }
    }
    walk(Path::new("/"));
    let processes: Vec<_> =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).collect();
    println!("processes {processes:?}");
    let files: BTreeSet<i32> =
        fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    println!("files {:?}", files.iter().filter(|fd| fs::read_link(format!("/proc/self/fd/{fd}")).is_ok()).collect::<Vec<_>>());
    println!(
        "cwd {} umask {:03o}",
        std::env::current_dir().unwrap().display(),
        fs::read_to_string("/proc/self/status").map(umask).unwrap()
    );
    println!("host {}", fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
    println!("personality {:?}", nix::sys::personality::get().unwrap());
    println!("oom {}", fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim());
    let mut interfaces: Vec<_> = fs::read_to_string("/proc/net/dev")
        .unwrap()
        .lines()
        .skip(2)
        .map(|line| line.split(':').next().unwrap().trim().to_owned())
        .collect();
    interfaces.sort();
    println!("interfaces {interfaces:?}");
    let status = fs::read_to_string("/proc/self/status").unwrap();
    for line in status.lines().filter(|line| {
        ["Uid", "Gid", "Groups", "SigBlk", "SigIgn", "CapEff", "Seccomp", "NoNewPrivs"].contains(&line.split(':').next().unwrap())
    }) {
        println!("{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    0
}

fn umask(status: String) -> u32 {
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
    u32::from_str_radix(line.trim(), 8).unwrap()
}

/// Tries what must not work; prints what does.
fn cannot(input: &[u8]) -> i32 {
    let file = PathBuf::from(String::from_utf8_lossy(input).into_owned());
    let mut bad = Vec::new();
    let mut must_fail = |what: &'static str, result: std::io::Result<()>| {
        if result.is_ok() {
            bad.push(what);
        }
    };
    must_fail("write an input", fs::write(&file, "x"));
    must_fail("remove an input", fs::remove_file(&file));
    must_fail("chmod an input", fs::set_permissions(&file, fs::Permissions::from_mode(0o777)));
    must_fail("write in /", fs::write("/x", "x"));
    must_fail(
        "a mount",
        nix::mount::mount(Some("none"), "/tmp", Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).map_err(Into::into),
    );
    must_fail("a chroot", nix::unistd::chroot("/tmp").map_err(Into::into));
    must_fail("to become root", nix::unistd::setuid(nix::unistd::Uid::from_raw(0)).map_err(Into::into));
    must_fail("to unmount", nix::mount::umount(&file).map_err(Into::into));
    // In a user namespace of its own it is root, and still may not take the mounts apart.
    let own = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER | nix::sched::CloneFlags::CLONE_NEWNS);
    if own.is_ok() {
        must_fail("to unmount as a root of its own", nix::mount::umount(&file).map_err(Into::into));
        let flags = nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_BIND;
        must_fail(
            "to remount as a root of its own",
            nix::mount::mount(None::<&str>, &file, None::<&str>, flags, None::<&str>).map_err(Into::into),
        );
    }
    println!("{bad:?}");
    i32::from(!bad.is_empty())
}

/// Leaves processes behind that do all they can to stay.
fn nasty(input: &[u8]) -> i32 {
    let forks = || unsafe_fork();
    for _ in 0..2 {
        if forks() {
            let _ = nix::unistd::setsid();
            if forks() {
                let _ = nix::sys::prctl::set_pdeathsig(None);
                for signal in nix::sys::signal::Signal::iterator() {
                    ignore(signal as i32);
                }
                println!("ready");
                let _ = std::io::stdout().flush();
                loop {
                    std::thread::sleep(Duration::from_secs(3600));
                }
            }
            std::process::exit(0);
        }
    }
    if input == b"stay" {
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    0
}

#[allow(unsafe_code)]
fn unsafe_fork() -> bool {
    // SAFETY: a builder has one thread.
    unsafe { nix::unistd::fork() }.unwrap().is_child()
}

#[allow(unsafe_code)]
fn ignore(signal: i32) {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Connects to a port of the host; then tries every way to a socket that is none of the Internet.
fn internet(port: &[u8]) -> i32 {
    let port: u16 = String::from_utf8_lossy(port).parse().unwrap();
    println!("connect {:?}", TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| error.kind()));
    println!("unix {:?}", UnixStream::pair().map(drop).map_err(|error| error.raw_os_error() == Some(libc::EAFNOSUPPORT)));
    println!(
        "datagram {:?}",
        std::os::unix::net::UnixDatagram::unbound().map(drop).map_err(|error| error.raw_os_error() == Some(libc::EAFNOSUPPORT))
    );
    0
}

fn reach_abstract(name: &[u8]) -> i32 {
    let address = SocketAddr::from_abstract_name(name).unwrap();
    println!("connect {:?}", UnixStream::connect_addr(&address).map(drop).map_err(|error| error.kind()));
    0
}

fn reads(files: &[u8]) -> i32 {
    for file in String::from_utf8_lossy(files).lines() {
        println!("{file}: {:?}", fs::read_to_string(file).map_err(|error| error.kind()));
    }
    0
}

// ---- the tests' own tools -----------------------------------------------------------------------------------------------------------------

struct World {
    spawner: SpawnerHandle,
    runtime: tokio::runtime::Runtime,
    dir: PathBuf,
    root: bool,
}

/// A store with inputs, a build directory, an empty root.
struct Site {
    _dir: tempfile::TempDir,
    dir: PathBuf,
    spec: BuildSpec,
}

fn store_path(number: usize, name: &str) -> StorePath {
    let digits: String = format!("{number:032}").chars().collect();
    StorePath::from_base_name(format!("{digits}-{name}")).unwrap()
}

impl World {
    fn site(&self) -> Site {
        let temporary = tempfile::Builder::new().prefix("site").tempdir_in(&self.dir).unwrap();
        let dir = temporary.path().canonicalize().unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["store", "root", "build"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        fs::set_permissions(dir.join("root"), fs::Permissions::from_mode(0o750)).unwrap();
        let user = self.root.then(|| UserIds { uid: UID, gid: GID, groups: vec![GID] });
        if self.root {
            std::os::unix::fs::chown(dir.join("build"), Some(UID), Some(GID)).unwrap();
            std::os::unix::fs::chown(dir.join("root"), None, Some(GID)).unwrap();
        }
        let spec = BuildSpec {
            drv_name: "test.drv".to_owned(),
            traced: true,
            store_dir: StoreDir::new(dir.join("store").to_str().unwrap()),
            root: Some(dir.join("root")),
            build_dir: dir.join("build"),
            build_dir_inside: "/tmp/guix-build-test.drv-0".into(),
            inputs: BTreeSet::new(),
            outputs: vec![store_path(0, "out")],
            extra_dirs: Vec::new(),
            builder_root: Vec::new(),
            host_files: Vec::new(),
            program: Program::Builtin { name: "look".to_owned(), network: true, input: Vec::new() },
            env: BTreeMap::from([("NAME".into(), "value".into())]),
            fixed_output: false,
            user,
            platform: "x86_64-linux".to_owned(),
            system: "x86_64-linux".to_owned(),
            impersonate_linux_26: false,
            isolate_host_loopback: false,
        };
        Site { _dir: temporary, dir, spec }
    }

    fn confined(&self) -> LinuxNamespaces {
        LinuxNamespaces::new(self.spawner.clone(), HostFacts::probe())
    }

    /// Runs a plan to its end.
    fn run(&self, plan: &Plan) -> (Result<ExitStatus, Error>, String) {
        let (mut reader, writer) = pipe();
        let status = self.runtime.block_on(async {
            let mut running = self.confined().start(plan, writer).await?;
            tokio::time::timeout(PATIENCE, running.wait()).await.expect("the builder does not end")
        });
        let mut output = String::new();
        reader.read_to_string(&mut output).unwrap();
        (status, output)
    }

    fn run_spec(&self, spec: &BuildSpec) -> (Result<ExitStatus, Error>, String) {
        self.run(&self.confined().plan(spec).unwrap())
    }
}

impl Site {
    fn builtin(&mut self, name: &str, input: &[u8]) {
        self.spec.program = Program::Builtin { name: name.to_owned(), network: true, input: input.to_vec() };
    }

    fn input(&mut self, number: usize, name: &str) -> PathBuf {
        let path = store_path(number, name);
        self.spec.inputs.insert(path.clone());
        PathBuf::from(self.spec.store_dir.display(&path))
    }
}

fn pipe() -> (fs::File, OwnedFd) {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (reader.into(), writer)
}

/// Waits until everybody who could write to a pipe is gone.
fn wait_for_eof(reader: fs::File) -> String {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = reader;
        let mut text = String::new();
        let _ = reader.read_to_string(&mut text);
        let _ = sender.send(text);
    });
    receiver.recv_timeout(PATIENCE).expect("somebody still holds the pipe")
}

fn read_lines(reader: &mut BufReader<fs::File>, count: usize, wanted: &str) {
    for _ in 0..count {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), wanted);
    }
}

// ---- the tests ----------------------------------------------------------------------------------------------------------------------------

fn the_kernel_holds_the_builders(world: &World) {
    let expected = if world.root { Isolation::Kernel } else { Isolation::KernelUnprivileged };
    assert_eq!(world.spawner.isolation(), expected);
}

fn a_builder_sees_what_the_plan_says_and_nothing_else(world: &World) {
    let mut site = world.site();
    let file = site.input(1, "file");
    fs::write(&file, "input").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    let link = site.input(2, "link");
    symlink("/nowhere", &link).unwrap();
    let hidden = site.dir.join("store").join(store_path(3, "hidden").base_name());
    fs::write(&hidden, "not an input").unwrap();
    // With its own network, as an ordinary builder has it.
    let mut plan = world.confined().plan(&site.spec).unwrap();
    plan.network = Network::Private { loopback: true };
    let (status, output) = world.run(&plan);
    assert_eq!(status.unwrap(), ExitStatus::Code(0), "{output}");
    let (uid, gid) = if world.root { (UID, GID) } else { (30001, 30000) };
    let (owner, owner_gid) = if world.root { (0, 0) } else { (30001, 30000) };
    let store = site.spec.store_dir.as_str();
    let lines: Vec<&str> = output.lines().filter(|line| !line.starts_with("device") && !line.ends_with("/dev/pts")).collect();
    let mut expected = vec![
        format!("dir 755 {owner}:{owner_gid} /dev"),
        format!("link 777 {owner}:{owner_gid} /dev/fd"),
        format!("link 777 {owner}:{owner_gid} /dev/ptmx"),
        format!("dir 1777 {owner}:{owner_gid} /dev/shm"),
        format!("link 777 {owner}:{owner_gid} /dev/stderr"),
        format!("link 777 {owner}:{owner_gid} /dev/stdin"),
        format!("link 777 {owner}:{owner_gid} /dev/stdout"),
        format!("dir 755 {owner}:{owner_gid} /etc"),
        format!("file 644 {owner}:{owner_gid} /etc/group"),
        format!("file 644 {owner}:{owner_gid} /etc/hosts"),
        format!("file 644 {owner}:{owner_gid} /etc/passwd"),
        "dir 555 65534:65534 /proc".to_owned(),
        format!("dir 1777 {owner}:{owner_gid} /tmp"),
        format!("dir 755 {uid}:{gid} /tmp/guix-build-test.drv-0"),
    ];
    if world.root {
        let proc = expected.iter_mut().find(|line| line.ends_with("/proc")).unwrap();
        *proc = "dir 555 0:0 /proc".to_owned();
    }
    // The store's parents, and in it the inputs only.
    for parent in Path::new(store).ancestors().skip(1).filter(|dir| *dir != Path::new("/") && *dir != Path::new("/tmp")) {
        expected.push(format!("dir 755 {owner}:{owner_gid} {}", parent.display()));
    }
    expected.push(format!("dir 1775 {owner}:{} {store}", if world.root { GID } else { owner_gid }));
    expected.push(format!("file 444 {owner}:{owner_gid} {}", file.display()));
    expected.push(format!("link 777 {owner}:{owner_gid} {}", link.display()));
    let (mut seen, rest): (Vec<&str>, Vec<&str>) = lines.iter().partition(|line| line.contains(" /") && !line.starts_with("cwd"));
    let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    seen.sort_unstable();
    expected.sort_unstable();
    assert_eq!(seen, expected);
    let groups =
        if world.root { format!("Groups: {GID}") } else { rest.iter().find(|line| line.starts_with("Groups")).unwrap().to_string() };
    let status = [
        format!("Uid: {uid} {uid} {uid} {uid}"),
        format!("Gid: {gid} {gid} {gid} {gid}"),
        groups,
        "SigBlk: 0000000000000000".to_owned(),
        "SigIgn: 0000000000000000".to_owned(),
        "CapEff: 0000000000000000".to_owned(),
        "NoNewPrivs: 0".to_owned(),
        "Seccomp: 0".to_owned(),
    ];
    let mut facts = vec![
        "processes [1]",
        "files [0, 1, 2]",
        "cwd /tmp/guix-build-test.drv-0 umask 022",
        "host localhost",
        "personality Persona(ADDR_NO_RANDOMIZE)",
        "oom 1000",
        "interfaces [\"lo\"]",
    ];
    facts.extend(status.iter().map(String::as_str));
    assert_eq!(rest, facts);
}

fn a_builder_cannot(world: &World) {
    let mut site = world.site();
    let file = site.input(1, "file");
    fs::write(&file, "input").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    site.builtin("cannot", file.to_str().unwrap().as_bytes());
    let (status, output) = world.run_spec(&site.spec);
    assert_eq!((status.unwrap(), output.as_str()), (ExitStatus::Code(0), "[]\n"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "input");
}

fn links_on_the_way_to_an_input_are_refused(world: &World) {
    let mut site = world.site();
    fs::rename(site.dir.join("store"), site.dir.join("elsewhere")).unwrap();
    symlink("elsewhere", site.dir.join("store")).unwrap();
    let file = site.input(1, "file");
    fs::write(&file, "input").unwrap();
    let (status, output) = world.run_spec(&site.spec);
    match status {
        Err(Error::Setup { path, source, .. }) => assert_eq!((path, source.raw_os_error()), (file, Some(libc::ELOOP))),
        other => panic!("{other:?} {output}"),
    }
    assert_eq!(output, "");
}

fn programs_run_and_their_end_is_told(world: &World) {
    let mut site = world.site();
    for dir in ["/bin", "/lib", "/lib64", "/usr"] {
        if Path::new(dir).exists() {
            site.spec.extra_dirs.push((dir.into(), dir.into()));
        }
    }
    let exec = |script: &str| Program::Exec { path: "/bin/sh".into(), args: ["sh", "-c", script].map(BString::from).to_vec() };
    for (script, expected, text) in [
        ("echo $NAME; echo error >&2; exit 3", ExitStatus::Code(3), "value\nerror\n"),
        ("kill -SEGV $$; sleep 1; exit 0", ExitStatus::Code(0), ""), // process 1 gets no signals that it does not want
        ("kill -9 $(sh -c 'echo $PPID') ; exit 4", ExitStatus::Code(4), ""),
        ("read x < /dev/stdin; echo $?; id -u", ExitStatus::Code(0), if world.root { "1\n54321\n" } else { "1\n30001\n" }),
        ("grep CapEff /proc/self/status", ExitStatus::Code(0), "CapEff:\t0000000000000000\n"),
    ] {
        let mut plan = Plan::confined(&site.spec, &HostFacts::probe()).unwrap();
        plan.program = exec(script);
        plan.network = Network::Private { loopback: true };
        plan.store_dir = None;
        let root = site.dir.join(format!("root{}", script.len()));
        fs::create_dir(&root).unwrap();
        plan.root = Root::Private { dir: root };
        let (status, output) = world.run(&plan);
        assert_eq!((status.unwrap(), output.as_str()), (expected, text), "{script}");
    }
    // The program has to be in the store.
    let mut plan = Plan::confined(&site.spec, &HostFacts::probe()).unwrap();
    plan.program = exec("exit 0");
    let (status, output) = world.run(&plan);
    assert_eq!(status.unwrap(), ExitStatus::Code(1));
    assert!(output.starts_with("while setting up the child process: in phase exec: derivation builder `"), "{output}");
    assert!(output.ends_with("' is outside the store\n"), "{output}");
}

fn builtins_end_as_they_say(world: &World) {
    for (name, expected, text) in
        [("seven", 7, ""), ("panics", 101, "as asked"), ("builtin:none", 1, "error: unsupported builtin function 'none'\n")]
    {
        let mut site = world.site();
        site.builtin(name, b"");
        let (status, output) = world.run_spec(&site.spec);
        assert_eq!(status.unwrap(), ExitStatus::Code(expected), "{name}");
        assert!(output.contains(text), "{output}");
    }
}

fn a_thousand_inputs(world: &World) {
    let mut site = world.site();
    for number in 1..=1000 {
        fs::create_dir(site.input(number, "input")).unwrap();
    }
    site.builtin("seven", b"");
    let begun = Instant::now();
    let (status, _) = world.run_spec(&site.spec);
    assert_eq!(status.unwrap(), ExitStatus::Code(7));
    println!("  {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

fn no_descriptor_can_leave_by_a_socket(world: &World) {
    let name = format!("fruixd-test-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    // An ordinary builder does not find it: it has a network of its own.
    let mut site = world.site();
    site.builtin("abstract", name.as_bytes());
    let mut plan = world.confined().plan(&site.spec).unwrap();
    plan.network = Network::Private { loopback: true };
    let (status, output) = world.run(&plan);
    assert_eq!((status.unwrap(), output.as_str()), (ExitStatus::Code(0), "connect Err(ConnectionRefused)\n"));
    // One with the host's network has no such sockets at all.
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut site = world.site();
    site.builtin("internet", port.local_addr().unwrap().port().to_string().as_bytes());
    let (status, output) = world.run_spec(&site.spec);
    assert_eq!((status.unwrap(), output.as_str()), (ExitStatus::Code(0), "connect Ok(())\nunix Err(true)\ndatagram Err(true)\n"));
}

fn files_of_the_host_are_read_with_the_builders_rights(world: &World) {
    let mut site = world.site();
    let open = site.dir.join("open");
    let secret = site.dir.join("secret");
    let closed = site.dir.join("closed");
    let link = site.dir.join("to-open");
    fs::write(&open, "open").unwrap();
    fs::write(&secret, "secret").unwrap();
    fs::create_dir(&closed).unwrap();
    fs::write(closed.join("file"), "closed").unwrap();
    symlink("open", &link).unwrap();
    for (path, mode) in [(&open, 0o644), (&secret, 0o600), (&closed.join("file"), 0o644), (&closed, 0o700)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let files = vec![open, secret, closed.join("file"), link, "/proc/self/environ".into(), site.dir.join("missing"), "relative".into()];
    let names = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join("\n");
    site.spec.host_files = files;
    site.builtin("reads", names.as_bytes());
    let (status, output) = world.run_spec(&site.spec);
    assert_eq!(status.unwrap(), ExitStatus::Code(0));
    let answers: Vec<&str> = output.lines().map(|line| line.split_once(": ").unwrap().1).collect();
    let (ok, gone) = (|text: &str| format!("Ok({text:?})"), "Err(NotFound)".to_owned());
    // Without root, the builder is the one whose files these are.
    let (secret, closed) = if world.root { (gone.clone(), gone.clone()) } else { (ok("secret"), ok("closed")) };
    assert_eq!(answers[..4], [ok("open"), secret, closed, ok("open")]);
    assert!(!answers[4].contains("PATH="), "{}", answers[4]);
    assert_eq!(answers[5..], [gone.clone(), gone]);
}

fn nothing_outlives_a_builder(world: &World) {
    for (input, expected) in [(b"stay".as_slice(), ExitStatus::Signal(9)), (b"go", ExitStatus::Code(0))] {
        for confined in [true, false] {
            let mut site = world.site();
            site.builtin("nasty", input);
            if !confined {
                site.spec.root = None;
                site.spec.build_dir_inside = site.spec.build_dir.clone();
            }
            let plan = world.confined().plan(&site.spec).unwrap();
            let (reader, writer) = pipe();
            let mut reader = BufReader::new(reader);
            let status = world.runtime.block_on(async {
                let mut running = Unconfined::new(world.spawner.clone()).start(&plan, writer).await.unwrap();
                assert!(Path::new(&format!("/proc/{}", running.pid())).exists() || input == b"go");
                read_lines(&mut reader, 2, "ready");
                if input == b"stay" {
                    running.kill();
                }
                tokio::time::timeout(PATIENCE, running.wait()).await.expect("it does not end").unwrap()
            });
            assert_eq!(status, expected, "confined: {confined}");
            assert_eq!(wait_for_eof(reader.into_inner()), "");
        }
    }
}

fn dropping_kills(world: &World) {
    let mut site = world.site();
    site.builtin("nasty", b"stay");
    let plan = world.confined().plan(&site.spec).unwrap();
    let (reader, writer) = pipe();
    let mut reader = BufReader::new(reader);
    let running: Running = world.runtime.block_on(world.confined().start(&plan, writer)).unwrap();
    read_lines(&mut reader, 2, "ready");
    drop(running);
    wait_for_eof(reader.into_inner());
    // A start that nobody waits for.
    let mut site = world.site();
    site.builtin("nasty", b"stay");
    let plan = world.confined().plan(&site.spec).unwrap();
    let (reader, writer) = pipe();
    let sandbox = world.confined();
    let starting = sandbox.start(&plan, writer);
    drop(starting);
    wait_for_eof(reader);
}

fn builds_at_once(world: &World) {
    let sites: Vec<Site> = (0..20).map(|_| world.site()).collect();
    world.runtime.block_on(async {
        let mut tasks = Vec::new();
        for site in &sites {
            let mut spec = site.spec.clone();
            spec.program = Program::Builtin { name: "seven".to_owned(), network: false, input: Vec::new() };
            let sandbox = world.confined();
            tasks.push(tokio::spawn(async move {
                let (_reader, writer) = pipe();
                let plan = sandbox.plan(&spec).unwrap();
                let mut running = sandbox.start(&plan, writer).await.unwrap();
                running.wait().await.unwrap()
            }));
        }
        for task in tasks {
            assert_eq!(tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap(), ExitStatus::Code(7));
        }
    });
}

fn an_unconfined_builder_is_its_user(world: &World) {
    let mut site = world.site();
    site.spec.root = None;
    site.spec.build_dir_inside = site.spec.build_dir.clone();
    site.spec.program = Program::Exec {
        path: "/bin/sh".into(),
        args: ["sh", "-c", "id -u; pwd; readlink /proc/$$/cwd; echo $NAME"].map(BString::from).to_vec(),
    };
    let mut plan = world.confined().plan(&site.spec).unwrap();
    assert_eq!(plan.root, Root::Host);
    assert_eq!(plan.identity == Identity::Daemon, !world.root);
    plan.store_dir = None;
    let (status, output) = world.run(&plan);
    let build = site.spec.build_dir.display();
    let uid = if world.root { UID } else { nix::unistd::getuid().as_raw() };
    assert_eq!((status.unwrap(), output), (ExitStatus::Code(0), format!("{uid}\n{build}\n{build}\nvalue\n")));
}

fn all_processes_of_a_user_are_killed(world: &World) {
    if !world.root {
        assert!(world.spawner.kill_user(UID).is_err());
        println!("  skipped: needs root");
        return;
    }
    let mut theirs: Vec<_> = (0..3).map(|_| Command::new("sleep").arg("1000").uid(UID).spawn().unwrap()).collect();
    let mut others = Command::new("sleep").arg("1000").uid(UID + 1).spawn().unwrap();
    world.spawner.kill_user(UID).unwrap();
    for child in &mut theirs {
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
    assert!(others.try_wait().unwrap().is_none());
    others.kill().unwrap();
    others.wait().unwrap();
    world.spawner.kill_user(UID).unwrap();
    assert!(world.spawner.kill_user(0).is_err());
}

fn build_users_are_shared_by_nobody(world: &World) {
    if !world.root {
        println!("  skipped: needs root, to have users of its own");
        return;
    }
    let state = tempfile::tempdir_in(&world.dir).unwrap();
    let pool = UserPool::new("fruixtest", state.path(), world.spawner.clone()).unwrap();
    let another = UserPool::new("fruixtest", state.path(), world.spawner.clone()).unwrap();
    assert_eq!(pool.gid().unwrap(), GID);
    assert_eq!(pool.uids().unwrap(), BTreeSet::from([UID, UID + 1]));
    let first = UserPool::try_acquire(&pool).unwrap().unwrap();
    assert_eq!(first.ids(), UserIds { uid: UID, gid: GID, groups: vec![GID, GID + 7] });
    let lock = state.path().join("userpool").join(UID.to_string());
    assert_eq!(fs::metadata(&lock).unwrap().mode() & 0o7777, 0o600);
    // Another process sees the lock.
    let program = std::env::current_exe().unwrap();
    let other = |role: &str| Command::new(&program).env("ROLE", role).arg(&lock).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&other("lock").stdout), "taken\n");
    let second = UserPool::try_acquire(&pool).unwrap().unwrap();
    assert_eq!(second.uid(), UID + 1);
    assert!(UserPool::try_acquire(&pool).unwrap().is_none());
    // Trying must not have given up the locks.
    assert_eq!(String::from_utf8_lossy(&other("lock").stdout), "taken\n");
    drop(first);
    assert_eq!(String::from_utf8_lossy(&other("lock").stdout), "free\n");
    drop(another);
    // The one that waits gets the one that is returned.
    let third = UserPool::try_acquire(&pool).unwrap().unwrap();
    assert_eq!(third.uid(), UID);
    let waiting = world.runtime.spawn({
        let pool = Arc::clone(&pool);
        async move { UserPool::acquire(&pool).await.unwrap().uid() }
    });
    std::thread::sleep(Duration::from_millis(50));
    drop(second);
    assert_eq!(world.runtime.block_on(async { tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap() }), UID + 1);
    assert!(matches!(UserPool::new("no-such-group", state.path(), world.spawner.clone()), Err(fruixd::users::Error::NoGroup { .. })));
    assert!(matches!(UserPool::new("root", state.path(), world.spawner.clone()), Err(fruixd::users::Error::RootGroup { .. })));
}

/// Starts a daemon of its own whose builders' output is the returned file, kills it or its spawner, and waits until all are gone.
fn no_builder_survives(world: &World, role: &str) {
    let program = std::env::current_exe().unwrap();
    for confined in ["confined", "unconfined"] {
        let mut daemon = Command::new(&program)
            .env("ROLE", role)
            .arg(confined)
            .arg(&world.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output: OwnedFd = daemon.stdout.take().unwrap().into();
        let mut reader = BufReader::new(fs::File::from(output));
        read_lines(&mut reader, 2, "ready");
        if role == "daemon" {
            daemon.kill().unwrap();
            wait_for_eof(reader.into_inner());
            daemon.wait().unwrap();
        } else {
            // It kills its spawner when told to.
            drop(daemon.stdin.take());
            assert_eq!(wait_for_eof(reader.into_inner()), "");
            assert!(daemon.wait().unwrap().success(), "{confined}");
        }
    }
}

/// Where there is no PID namespace to be had, orphans are still found.
fn no_builder_survives_without_namespaces(world: &World) {
    let program = std::env::current_exe().unwrap();
    for kill_daemon in [true, false] {
        let mut daemon = Command::new(&program)
            .env("ROLE", "no-namespaces")
            .arg("unconfined")
            .arg(&world.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output: OwnedFd = daemon.stdout.take().unwrap().into();
        let mut reader = BufReader::new(fs::File::from(output));
        read_lines(&mut reader, 2, "ready");
        if kill_daemon {
            daemon.kill().unwrap();
        } else {
            drop(daemon.stdin.take());
        }
        assert_eq!(wait_for_eof(reader.into_inner()), "");
        assert_eq!(daemon.wait().unwrap().success(), !kill_daemon);
    }
}

fn no_builder_survives_the_daemon(world: &World) {
    no_builder_survives(world, "daemon");
}

fn no_builder_survives_the_spawner(world: &World) {
    no_builder_survives(world, "spawner");
}

fn the_end_of_the_last_handle_is_the_end_of_the_spawner(world: &World) {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program).env("ROLE", "drop").arg("confined").arg(&world.dir).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success());
}

// ---- other roles of this program ----------------------------------------------------------------------------------------------------------

fn play(role: &str) -> i32 {
    let args: Vec<String> = std::env::args().collect();
    if role == "lock" {
        let file = fs::File::options().read(true).write(true).open(&args[1]).unwrap();
        let whole = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
        println!("{}", if nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETLK(&whole)).is_ok() { "free" } else { "taken" });
        return 0;
    }
    if role == "no-namespaces" {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).unwrap();
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")).unwrap();
        fs::write("/proc/self/setgroups", "deny").unwrap();
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")).unwrap();
        for kind in ["pid", "user", "mnt"] {
            fs::write(format!("/proc/sys/user/max_{kind}_namespaces"), "0").unwrap();
        }
    }
    let spawner = SpawnerHandle::start(builtins).unwrap();
    let pid = spawner.pid();
    if role == "no-namespaces" {
        assert_eq!(spawner.isolation(), Isolation::BestEffort);
    }
    let world = World {
        spawner,
        runtime: tokio::runtime::Runtime::new().unwrap(),
        dir: PathBuf::from(&args[2]),
        root: nix::unistd::geteuid().is_root() && role != "no-namespaces",
    };
    if role == "drop" {
        drop(world);
        return i32::from(Path::new(&format!("/proc/{pid}")).exists());
    }
    let mut site = world.site();
    site.builtin("nasty", b"stay");
    if role == "no-namespaces" {
        site.spec.user = None;
    }
    if args[1] == "unconfined" {
        site.spec.root = None;
        site.spec.build_dir_inside = site.spec.build_dir.clone();
    }
    let plan = world.confined().plan(&site.spec).unwrap();
    let output = nix::unistd::dup(std::io::stdout()).unwrap();
    let mut running = world.runtime.block_on(world.confined().start(&plan, output)).unwrap();
    // Only the builders hold it now.
    nix::unistd::dup2_stdout(fs::File::open("/dev/null").unwrap()).unwrap();
    let _ = std::io::stdin().read(&mut [0]);
    if role == "no-namespaces" {
        running.kill();
        let ended = world.runtime.block_on(async { tokio::time::timeout(PATIENCE, running.wait()).await.unwrap() });
        return i32::from(!matches!(ended, Ok(ExitStatus::Signal(9))));
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let ended = world.runtime.block_on(async { tokio::time::timeout(PATIENCE, running.wait()).await.unwrap() });
    let again = world.runtime.block_on(world.confined().start(&plan, fs::File::open("/dev/null").unwrap().into()));
    i32::from(!(matches!(ended, Err(Error::Gone)) && matches!(again, Err(Error::Gone))))
}

/// Gives this program users of its own, in a mount namespace of its own.
fn make_users(dir: &Path) {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let users = format!("fruixa:x:{UID}:{GID}::/:/noshell\nfruixb:x:{}:{GID}::/:/noshell\n", UID + 1);
    let groups = format!("fruixtest:x:{GID}:fruixa,fruixb\nextra:x:{}:fruixa\n", GID + 7);
    for (file, text) in [("/etc/passwd", users), ("/etc/group", groups)] {
        let ours = dir.join(file.trim_start_matches("/etc/"));
        fs::write(&ours, fs::read_to_string(file).unwrap() + &text).unwrap();
        mount(Some(&ours), file, none, MsFlags::MS_BIND, none).unwrap();
    }
}

pub(super) fn main() {
    if let Ok(role) = std::env::var("ROLE") {
        std::process::exit(play(&role));
    }
    let root = nix::unistd::geteuid().is_root();
    let dir = tempfile::Builder::new().prefix("fruixd-sandbox").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    if root {
        make_users(dir.path());
    }
    let spawner = SpawnerHandle::start(builtins).unwrap();
    if spawner.isolation() == Isolation::BestEffort && !root {
        println!("skipped: this user may not make namespaces");
        return;
    }
    let world = World { spawner, runtime: tokio::runtime::Runtime::new().unwrap(), dir: dir.path().to_owned(), root };
    type Test = fn(&World);
    let tests: &[(&str, Test)] = &[
        ("the_kernel_holds_the_builders", the_kernel_holds_the_builders),
        ("a_builder_sees_what_the_plan_says_and_nothing_else", a_builder_sees_what_the_plan_says_and_nothing_else),
        ("a_builder_cannot", a_builder_cannot),
        ("links_on_the_way_to_an_input_are_refused", links_on_the_way_to_an_input_are_refused),
        ("programs_run_and_their_end_is_told", programs_run_and_their_end_is_told),
        ("builtins_end_as_they_say", builtins_end_as_they_say),
        ("a_thousand_inputs", a_thousand_inputs),
        ("no_descriptor_can_leave_by_a_socket", no_descriptor_can_leave_by_a_socket),
        ("files_of_the_host_are_read_with_the_builders_rights", files_of_the_host_are_read_with_the_builders_rights),
        ("nothing_outlives_a_builder", nothing_outlives_a_builder),
        ("dropping_kills", dropping_kills),
        ("builds_at_once", builds_at_once),
        ("an_unconfined_builder_is_its_user", an_unconfined_builder_is_its_user),
        ("all_processes_of_a_user_are_killed", all_processes_of_a_user_are_killed),
        ("build_users_are_shared_by_nobody", build_users_are_shared_by_nobody),
        ("no_builder_survives_without_namespaces", no_builder_survives_without_namespaces),
        ("no_builder_survives_the_daemon", no_builder_survives_the_daemon),
        ("no_builder_survives_the_spawner", no_builder_survives_the_spawner),
        ("the_end_of_the_last_handle_is_the_end_of_the_spawner", the_end_of_the_last_handle_is_the_end_of_the_spawner),
    ];
    let filter: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let mut failed = 0;
    for (name, test) in tests.iter().filter(|(name, _)| filter.is_empty() || filter.iter().any(|part| name.contains(part.as_str()))) {
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&world))) {
            Ok(()) => println!("test {name} ... ok"),
            Err(_) => {
                println!("test {name} ... FAILED");
                failed += 1;
            }
        }
    }
    drop(world);
    drop(dir);
    std::process::exit(i32::from(failed > 0));
}
