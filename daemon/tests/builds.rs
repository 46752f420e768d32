//! Derivations built through the daemon's socket, by the real `fruixd` and the real `fruix`, with build users and a root of its own for each build:
//! in namespaces on Linux, in jails on FreeBSD. On both, the same derivations must have the same names, outputs and failures: one golden file says which.
//!
//! Needs root. On Linux each test has a mount namespace with users and a tmpfs of its own. On FreeBSD the users `fruixtest1` ... are added and stay, and one test
//! runs at a time. `FRUIX_TEST_ACCEPT=1` writes the golden file anew, `FRUIX_BINARIES` is where `fruixd` and `fruix` are and `FRUIX_GOLDEN` the
//! golden file, if not where they were made, `FRUIX_PACKAGES` are sources of packages to build as well, `FRUIX_BUILDS` and `FRUIX_KILLS` are how many
//! of these `killed_daemons_leave_nothing` has.
#![cfg(any(target_os = "linux", target_os = "freebsd"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[cfg(target_os = "linux")]
#[path = "linux/namespace.rs"]
mod namespace;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bstr::BString;
use fruix_drv::derivation::{Derivation, DerivationOutput};
use fruix_drv::modulo::{compute_output_paths, hash_derivation_modulo};
use fruix_drv::path::text_path;
use fruix_drv::{Hash, HashAlgo, StoreDir, StorePath, aterm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The world's place: golden outputs have their hashes from it.
const DIR: &str = "/var/tmp/fruix-builds";
/// As many builds can run at once.
const USERS: u32 = 8;
/// How long a daemon may take to serve or to end, and what it started to be gone: test machines may be emulated.
const PATIENCE: Duration = Duration::from_secs(90);
/// The system of all derivations, whatever the machine is.
const SYSTEM: &str = "x86_64-freebsd";
const GROUP: &str = "fruixtest";

#[cfg(target_os = "linux")]
mod host {
    use super::*;

    /// The base system, as builders see it. Compilers and the like are below /etc/alternatives.
    pub(super) const BASE: [&str; 5] = ["/bin=/usr/bin", "/lib=/usr/lib", "/lib64=/usr/lib64", "/usr", "/etc/alternatives"];

    fn first_user() -> u32 {
        namespace::first_id().unwrap() + 1
    }

    /// Runs `test` in a mount namespace of its own, as a process of its own.
    pub(super) fn alone(name: &str, test: impl FnOnce()) {
        namespace::alone(name, |gid| {
            let users = (1..=USERS).map(|n| (format!("{GROUP}{n}"), gid + n)).collect::<Vec<_>>();
            let names = users.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",");
            mount_tmpfs("size=512m");
            let passwd: String = users.iter().map(|(name, uid)| format!("{name}:x:{uid}:{gid}::/:/bin/false\n")).collect();
            for (file, text) in [("passwd", passwd), ("group", format!("{GROUP}:x:{gid}:{names}\n"))] {
                let (ours, theirs) = (Path::new(DIR).join(file), Path::new("/etc").join(file));
                fs::write(&ours, fs::read_to_string(&theirs).unwrap() + &text).unwrap();
                run(Command::new("mount").arg("--bind").args([&ours, &theirs]));
            }
            test();
        });
    }

    pub(super) fn mount_tmpfs(options: &str) {
        fs::create_dir_all(DIR).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs", DIR]));
    }

    /// Mounts and processes that belong to builds.
    pub(super) fn left() -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut left: Vec<String> = mounts.lines().filter(|line| line.contains(&format!("{DIR}/store/"))).map(str::to_owned).collect();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let uid = fs::metadata(process.path()).map_or(0, |data| std::os::unix::fs::MetadataExt::uid(&data));
            if (first_user()..first_user() + USERS).contains(&uid) && process.file_name().to_string_lossy().parse::<u32>().is_ok() {
                left.push(format!("process {:?}", process.file_name()));
            }
        }
        left
    }
}

#[cfg(target_os = "freebsd")]
mod host {
    use fruix_freebsd::{Host, Kernel as _};

    use super::*;

    pub(super) const FIRST_USER: u32 = 36001;
    const GID: u32 = 36000;
    pub(super) const BASE: [&str; 5] = ["/bin", "/lib", "/libexec", "/sbin", "/usr"];
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

    pub(super) fn alone(name: &str, test: impl FnOnce()) {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("{name}: skipped, since it takes root");
            return;
        }
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if nix::unistd::Group::from_name(GROUP).unwrap().is_none() {
            run(Command::new("pw").args(["groupadd", GROUP, "-g", &GID.to_string()]));
            for n in 1..=USERS {
                run(Command::new("pw").args(["useradd", &format!("{GROUP}{n}"), "-u", &(GID + n).to_string(), "-g", GROUP, "-G", GROUP]));
            }
        }
        clear();
        fs::create_dir(DIR).unwrap();
        let since = Instant::now();
        test();
        clear();
        println!("{name}: {} ms", since.elapsed().as_millis());
    }

    fn clear() {
        for mount in Host.mounts_below(Path::new(DIR)).unwrap().into_iter().rev() {
            Host.unmount(mount.id, true).unwrap();
        }
        if Path::new(DIR).exists() {
            run(Command::new("chflags").args(["-R", "0", DIR]));
            run(Command::new("rm").args(["-rf", DIR]));
        }
    }

    pub(super) fn mount_tmpfs(options: &str) {
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs", DIR]));
    }

    pub(super) fn jails() -> Vec<String> {
        Host.jails().unwrap().into_iter().map(|(_, name)| name).filter(|name| name.starts_with("fruixd-")).collect()
    }

    /// Jails, limits, mounts and processes that belong to builds.
    pub(super) fn left() -> Vec<String> {
        let mut left = jails();
        left.extend(Host.mounts_below(&Path::new(DIR).join("store")).unwrap().into_iter().map(|mount| mount.path.display().to_string()));
        left.extend(sh("rctl 2>/dev/null | grep fruixd-").lines().map(str::to_owned));
        let ours = |line: &&str| {
            line.split_whitespace().next().is_some_and(|uid| uid.parse().is_ok_and(|uid: u32| uid > GID && uid <= GID + USERS))
        };
        left.extend(sh("ps -axo uid=,pid=,command=").lines().filter(ours).map(str::to_owned));
        left
    }
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[cfg(target_os = "freebsd")]
fn sh(command: &str) -> String {
    let output = Command::new("/bin/sh").args(["-c", command]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn binary(name: &str, made: &str) -> PathBuf {
    std::env::var_os("FRUIX_BINARIES").map_or_else(|| PathBuf::from(made), |dir| PathBuf::from(dir).join(name))
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < PATIENCE, "it does not come: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

// ---- a world ------------------------------------------------------------------------------------------------------------------------------

/// A derivation, and what it takes to refer to it.
#[derive(Clone)]
struct Made {
    path: StorePath,
    file: PathBuf,
    outputs: BTreeMap<String, StorePath>,
    modulo: Hash,
}

impl Made {
    fn out(&self) -> &StorePath {
        &self.outputs["out"]
    }
}

/// What to make a derivation of.
#[derive(Clone, Default)]
struct Recipe {
    name: String,
    outputs: Vec<&'static str>,
    inputs: Vec<Made>,
    sources: Vec<StorePath>,
    env: Vec<(String, String)>,
    fixed: Option<(&'static str, Hash)>,
    builder: Option<String>,
    platform: Option<&'static str>,
}

fn recipe(name: &str, script: &str) -> Recipe {
    Recipe { name: name.to_owned(), outputs: vec!["out"], env: vec![("script".to_owned(), script.to_owned())], ..Recipe::default() }
}

impl Recipe {
    fn outputs(self, outputs: &[&'static str]) -> Recipe {
        Recipe { outputs: outputs.to_vec(), ..self }
    }

    fn input(mut self, name: &str, made: &Made, dir: &StoreDir) -> Recipe {
        for (output, path) in &made.outputs {
            let name = if output == "out" { name.to_owned() } else { format!("{name}_{output}") };
            self.env.push((name, dir.display(path)));
        }
        self.inputs.push(made.clone());
        self
    }

    fn source(mut self, name: &str, path: &StorePath, dir: &StoreDir) -> Recipe {
        self.env.push((name.to_owned(), dir.display(path)));
        self.sources.push(path.clone());
        self
    }

    fn env(mut self, name: &str, value: &str) -> Recipe {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn fixed(self, how: &'static str, hash: Hash) -> Recipe {
        Recipe { fixed: Some((how, hash)), ..self }
    }

    fn builder(self, builder: &str) -> Recipe {
        Recipe { builder: Some(builder.to_owned()), ..self }
    }
}

struct World {
    store_dir: StoreDir,
    flags: Vec<String>,
    daemon: Option<Child>,
    /// The script that all builders are: it runs what is in the variable `script`.
    runner: StorePath,
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

impl World {
    /// Directories, and a daemon with these flags.
    fn new(flags: &[&str]) -> World {
        let dir = Path::new(DIR);
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["state", "log", "tmp", "drvs"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        let script = dir.join("runner");
        fs::write(&script, "#!/bin/sh\nset -e\neval \"$script\"\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let store_dir = StoreDir::new(&format!("{DIR}/store"));
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let runner = StorePath::from_base_name(format!("{}-none", "0".repeat(32))).unwrap();
        let mut world = World { store_dir, flags, daemon: None, runner };
        world.start();
        world.runner = world.add(&script);
        world
    }

    fn with_env(&self, mut command: Command) -> Command {
        command
            .env("NIX_STORE_DIR", self.store_dir.as_str())
            .env("GUIX_STATE_DIRECTORY", format!("{DIR}/state"))
            .env("GUIX_LOG_DIRECTORY", format!("{DIR}/log"))
            .env("GUIX_CONFIGURATION_DIRECTORY", format!("{DIR}/etc"))
            .env("TMPDIR", format!("{DIR}/tmp"))
            .env_remove("GUIX_DAEMON_SOCKET")
            .stdin(Stdio::null());
        command
    }

    fn fruixd(&self) -> Command {
        self.with_env(Command::new(binary("fruixd", env!("CARGO_BIN_EXE_fruixd"))))
    }

    fn start(&mut self) {
        let log = fs::File::options().append(true).create(true).open(format!("{DIR}/stderr")).unwrap();
        let mut command = self.fruixd();
        command.arg(format!("--system={SYSTEM}")).arg(format!("--build-users-group={GROUP}")).arg("--no-substitutes");
        command.args(host::BASE.map(|dir| format!("--chroot-directory={dir}"))).args(&self.flags);
        self.daemon = Some(command.stderr(log).spawn().unwrap());
        let since = Instant::now();
        while std::os::unix::net::UnixStream::connect(format!("{DIR}/state/daemon-socket/socket")).is_err() {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && since.elapsed() < PATIENCE, "it does not serve: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(format!("{DIR}/stderr")).unwrap_or_default()
    }

    fn stop(&mut self, signal: Signal) {
        let mut child = self.daemon.take().unwrap();
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        child.wait().unwrap();
    }

    fn client(&self, arguments: &[&str]) -> Command {
        let mut command = self.with_env(Command::new(binary("fruix", env!("CARGO_BIN_EXE_fruix"))));
        command.args(arguments);
        command
    }

    fn fruix(&self, arguments: &[&str]) -> Output {
        self.client(arguments).output().unwrap()
    }

    /// What a command that must succeed prints.
    fn tell(&self, arguments: &[&str]) -> String {
        let output = self.fruix(arguments);
        assert!(output.status.success(), "fruix {arguments:?}: {}\n{}", String::from_utf8_lossy(&output.stderr), self.said());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn add(&self, file: &Path) -> StorePath {
        self.store_dir.parse(self.tell(&["add", file.to_str().unwrap()]).trim()).unwrap()
    }

    /// Adds a file of this name.
    fn add_text(&self, name: &str, text: &str) -> StorePath {
        let file = Path::new(DIR).join("drvs").join(name);
        fs::write(&file, text).unwrap();
        self.add(&file)
    }

    /// Computes a derivation and writes it to a file.
    fn make(&self, recipe: Recipe) -> Made {
        let Recipe { name, outputs, inputs, sources, env, fixed, builder, platform } = recipe;
        let dir = &self.store_dir;
        let modulos: HashMap<StorePath, Hash> = inputs.iter().map(|made| (made.path.clone(), made.modulo)).collect();
        let mut hash_of = |path: &StorePath| Ok::<_, Infallible>(modulos[path]);
        let (algo, hash) = fixed.map_or_else(Default::default, |(how, hash)| (format!("{how}sha256"), hash.base16()));
        let output = |_: &&str| DerivationOutput { path: self.runner.clone(), hash_algo: algo.clone(), hash: hash.clone() };
        let mut variables: BTreeMap<BString, BString> = env.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        variables.insert("name".into(), name.clone().into());
        variables.insert("PATH".into(), "/bin:/usr/bin:/sbin:/usr/sbin".into());
        variables.extend(outputs.iter().map(|output| ((*output).into(), "".into())));
        let mut drv = Derivation {
            outputs: outputs.iter().map(|name| ((*name).to_owned(), output(name))).collect(),
            input_drvs: inputs.iter().map(|made| (made.path.clone(), made.outputs.keys().cloned().collect())).collect(),
            input_srcs: sources.into_iter().chain([self.runner.clone()]).collect(),
            platform: platform.unwrap_or(SYSTEM).into(),
            builder: builder.unwrap_or_else(|| dir.display(&self.runner)).into(),
            args: Vec::new(),
            env: variables,
        };
        let paths = compute_output_paths(dir, &name, &drv, &mut hash_of).unwrap();
        for (name, path) in &paths {
            drv.outputs.get_mut(name).unwrap().path = path.clone();
            drv.env.insert(name.as_str().into(), dir.display(path).into());
        }
        let text = aterm::print(dir, &drv);
        let references: BTreeSet<StorePath> = drv.references();
        let path = text_path(dir, &format!("{name}.drv"), &text, &references).unwrap();
        let modulo = hash_derivation_modulo(dir, &drv, &mut hash_of).unwrap();
        let file = Path::new(DIR).join("drvs").join(format!("{name}.drv"));
        fs::write(&file, text).unwrap();
        Made { path, file, outputs: paths, modulo }
    }

    /// Builds a derivation and says how that went, in words that do not depend on the machine.
    fn build(&self, made: &Made, flags: &[&str]) -> (bool, String) {
        let mut arguments = vec!["build", "--cores=2", "--max-jobs=8"];
        arguments.extend(flags);
        arguments.push(made.file.to_str().unwrap());
        let output = self.fruix(&arguments);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Builds a script that must succeed, and returns its log.
    #[cfg(target_os = "freebsd")]
    fn script(&self, recipe: Recipe, flags: &[&str]) -> String {
        let made = self.make(recipe);
        let (built, log) = self.build(&made, flags);
        assert!(built, "{log}\n{}", self.said());
        log
    }

    /// What is registered of an output, without its time.
    fn info(&self, path: &StorePath) -> String {
        let text = self.tell(&["path-info", &self.store_dir.display(path)]);
        text.lines().filter(|line| !line.is_empty() && !line.starts_with("registered:")).map(|line| format!("  {line}\n")).collect()
    }

    /// Nothing of any build may be there, but for what is valid.
    fn assert_clean(&self) {
        let since = Instant::now();
        loop {
            let left = host::left();
            if left.is_empty() {
                break;
            }
            assert!(since.elapsed() < PATIENCE, "left of builds: {left:?}\n{}", self.said());
            std::thread::sleep(Duration::from_millis(100));
        }
        let names = |dir: &str| -> Vec<String> {
            fs::read_dir(format!("{DIR}/{dir}")).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
        };
        let dirs = || names("store").iter().any(|name| name.ends_with(".chroot")) || names("tmp").iter().any(|name| name.contains("build"));
        wait_until("the end of directories of builds", || !dirs());
    }

    fn verify(&self) {
        let output = self.fruixd().arg("--verify-store=contents").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}\n{}", self.said());
    }
}

/// The archive of a regular file.
fn archive(contents: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in ["nix-archive-1", "(", "type", "regular", "contents", contents, ")"] {
        bytes.extend((word.len() as u64).to_le_bytes());
        bytes.extend(word.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

// ---- the same on any machine --------------------------------------------------------------------------------------------------------------

/// A C program, compiled by whatever there is, in a script.
fn c(source: &str, then: &str) -> String {
    format!("cc=$(command -v gcc || command -v cc)\ncat >main.c <<'END'\n{source}\nEND\n$cc -o main main.c\n{then}")
}

const PROGRAM: &str = r#"#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int by_text(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }
int main(int argc, char **argv) {
  char *words[] = { "pear", "apple", "fig", "quince" };
  qsort(words, 4, sizeof words[0], by_text);
  for (int i = 0; i < 4; i++) printf("%s %d\n", words[i], (int)strlen(words[i]));
  printf("%.6f %x %lld\n", 22.0 / 7, 48879, 1LL << 40);
  return argc - 1;
}"#;

/// All that is built: derivations in the order in which they are built, each with flags for `fruix build`.
fn everything(world: &World) -> Vec<(Made, Vec<&'static str>)> {
    let dir = &world.store_dir;
    let mut all = Vec::new();
    let mut add = |recipe: Recipe, flags: &[&'static str]| {
        let made = world.make(recipe);
        all.push((made.clone(), flags.to_vec()));
        made
    };
    // Shapes of outputs.
    let text = add(recipe("text", "echo hello >$out"), &[]);
    add(recipe("empty", ": >$out"), &[]);
    add(recipe("link", "ln -s /some/where $out"), &[]);
    let tree = "mkdir -p $out/bin $out/a/b/c; echo x >$out/bin/tool; chmod 700 $out/bin/tool; ln -s ../bin/tool $out/a/link; : >$out/a/b/c/.hidden; mkdir $out/void";
    let tree = add(recipe("tree", tree), &[]);
    add(recipe("many", "mkdir $out; for i in $(seq 1 200); do echo $i >$out/$i; done"), &[]);
    add(recipe("large", "head -c 3000000 /dev/zero | tr '\\0' x >$out"), &[]);
    add(
        recipe("names", "mkdir $out; cd $out; : >'a b'; : >'-n'; : >'\u{e4}\u{f6}'; : >\"$(printf 'new\\nline')\"; : >'*'; : >A; : >a"),
        &[],
    );
    add(recipe("modes", "mkdir $out; for m in 000 111 222 444 600 644 700 755 2755 4755; do : >$out/$m; chmod $m $out/$m; done"), &[]);
    add(recipe("hard-links", "mkdir $out; echo x >$out/a; ln $out/a $out/b; mkdir $out/c; ln $out/a $out/c/d"), &[]);
    // References.
    add(recipe("self", "mkdir $out; echo $out >$out/me"), &[]);
    let chain = add(
        recipe("chain", "mkdir $out; ln -s $text $out/text; cp $tree/bin/tool $out/tool")
            .input("text", &text, dir)
            .input("tree", &tree, dir),
        &[],
    );
    add(recipe("chain-2", "cat $chain/text $chain/tool >$out; echo $chain >>$out").input("chain", &chain, dir), &[]);
    let two = add(recipe("two", "mkdir $out $lib; echo $lib >$out/uses; echo code >$lib/code").outputs(&["out", "lib"]), &[]);
    add(recipe("uses-two", "cat $two_lib/code $two/uses >$out").input("two", &two, dir), &[]);
    add(recipe("three", "echo $doc >$out; echo $lib >$doc; echo end >$lib").outputs(&["out", "lib", "doc"]), &[]);
    add(recipe("circle", "echo $lib >$out; echo $out >$lib").outputs(&["out", "lib"]), &[]);
    let graph = recipe("graph", "cat $TMPDIR/closure >$out").input("chain", &chain, dir);
    add(graph.env("exportReferencesGraph", &format!("closure {}", dir.display(chain.out()))), &[]);
    let allowed = recipe("allowed", "echo $text >$out").input("text", &text, dir);
    add(allowed.env("allowedReferences", &dir.display(text.out())), &[]);
    add(recipe("not-allowed", "echo $text >$out").input("text", &text, dir).env("allowedReferences", ""), &[]);
    let source = world.add_text("source.txt", "a source\n");
    add(recipe("source", "cat $source >$out").source("source", &source, dir), &[]);
    // What a builder is and sees.
    let variables = "env | grep -v -e '^script=' -e '^PWD=' -e '^OLDPWD=' -e '^_=' -e '^SHLVL=' | sort >$out";
    add(recipe("variables", variables).env("given", "a b\tc"), &[]);
    add(recipe("place", "pwd >$out; umask >>$out; ls -A >>$out; ls -A /tmp >>$out; uname -n >>$out; ls -A $NIX_STORE | sort >>$out"), &[]);
    let devices = "{ head -c 4 /dev/zero | od -An -tx1 | tr -d ' \\n'; wc -c </dev/null | tr -d ' '; head -c 9 /dev/urandom | wc -c | tr -d ' '; \
        echo x 2>/dev/null >/dev/full || echo full; echo fd | cat /dev/fd/0; cat /etc/hosts; } >$out";
    add(recipe("devices", devices), &[]);
    let refused = "exec 2>/dev/null; for f in $tree/new $tree/bin/tool /new /etc/passwd $NIX_STORE/../new; do (echo x >$f) && echo wrote $f || echo refused $f; done >$out; \
        mkdir $NIX_STORE/own && echo made >>$out; rmdir $tree/void || echo kept >>$out";
    add(recipe("refused", refused).input("tree", &tree, dir), &[]);
    add(recipe("orphans", "for i in 1 2 3; do (sleep 1000 & ) ; done; echo done >$out"), &[]);
    add(recipe("talkative", "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done >&2; echo x >$out"), &["--quiet"]);
    // Programs.
    add(recipe("program", &c(PROGRAM, "./main >$out")), &[]);
    let two_files = "cc=$(command -v gcc || command -v cc); echo 'int twice(int n) { return 2 * n; }' >a.c\n\
        printf '#include <stdio.h>\\nint twice(int);\\nint main(void) { printf(\"%%d\\\\n\", twice(21)); return 0; }\\n' >b.c\n\
        $cc -c a.c; $cc -c b.c; ar rc liba.a a.o; $cc -o main b.o liba.a; ./main >$out";
    add(recipe("library", two_files), &[]);
    add(recipe("wrong-program", &c("int main(void) { return 7; }", "./main; echo x >$out")), &[]);
    add(recipe("segmentation", &c("int main(void) { return *(volatile int *)0; }", "exec ./main")), &[]);
    add(recipe("abort", &c("#include <stdlib.h>\nint main(void) { abort(); }", "exec 2>/dev/null; ./main || exit $?")), &[]);
    // Failures.
    add(recipe("fails", "echo before; echo x >$out; exit 3"), &[]);
    add(recipe("nothing", "exit 0"), &[]);
    add(recipe("half", "echo x >$out").outputs(&["out", "lib"]), &[]);
    // Not the first process of the build, which on Linux is one that most signals do not reach.
    add(recipe("killed", "exec 2>/dev/null; sh -c 'kill -TERM $$; sleep 100' || exit $?"), &[]);
    add(recipe("killed-9", "exec 2>/dev/null; sh -c 'kill -9 $$; sleep 100' || exit $?"), &[]);
    add(recipe("silent", "echo going; sleep 1000; echo x >$out"), &["--max-silent-time=4"]);
    add(recipe("endless", "trap '' TERM INT HUP; while :; do echo on; sleep 1; done"), &["--timeout=6", "--quiet"]);
    add(recipe("closed", "exec >/dev/null 2>&1; sleep 1000"), &["--timeout=4"]);
    add(recipe("world-writable", "mkdir $out; chmod 777 $out"), &[]);
    add(recipe("fifo", "mkdir $out; mkfifo $out/fifo"), &[]);
    let failing = add(recipe("first", "exit 1"), &[]);
    add(recipe("second", "echo $first >$out").input("first", &failing, dir), &[]);
    add(recipe("outside", "").builder("/bin/ls"), &[]);
    add(recipe("no-builder", "").builder(&format!("{}/none", dir.display(&world.runner))), &[]);
    add(recipe("no-builtin", "").builder("builtin:none"), &[]);
    add(Recipe { platform: Some("x86_64-plan9"), ..recipe("elsewhere", "echo x >$out") }, &[]);
    // Outputs that are known beforehand.
    let (right, wrong) = (Hash::sha256("fixed\n"), Hash::sha256("other\n"));
    add(recipe("fixed", "echo fixed >$out").fixed("", right), &[]);
    add(recipe("fixed-wrong", "echo fixed >$out").fixed("", wrong), &[]);
    add(recipe("fixed-program", "echo fixed >$out; chmod +x $out").fixed("", right), &[]);
    add(recipe("fixed-archive", "echo fixed >$out").fixed("r:", Hash::of(HashAlgo::Sha256, archive("fixed\n"))), &[]);
    add(recipe("fixed-archive-wrong", "echo other >$out").fixed("r:", right), &[]);
    let fixed_input = world.make(recipe("fixed", "echo fixed >$out").fixed("", right));
    add(recipe("uses-fixed", "cat $fixed >$out; echo $fixed >>$out").input("fixed", &fixed_input, dir), &[]);
    let download = recipe("download", "").builder("builtin:download").fixed("", right).env("url", &format!("\"file://{DIR}/to-download\""));
    fs::write(format!("{DIR}/to-download"), "fixed\n").unwrap();
    add(download, &[]);
    all
}

#[test]
fn derivations_give_the_same_everywhere() {
    host::alone("derivations_give_the_same_everywhere", || {
        let world = World::new(&[]);
        let mut text = String::new();
        let mut made = BTreeMap::new();
        for (drv, flags) in everything(&world) {
            let since = Instant::now();
            let (built, log) = world.build(&drv, &flags);
            println!("{}: {} ms", drv.path.name(), since.elapsed().as_millis());
            let _ = writeln!(text, "== {} {}", drv.path.base_name(), if built { "built" } else { "failed" });
            for line in log.lines() {
                let _ = writeln!(text, "  | {line}");
            }
            if built {
                drv.outputs.values().for_each(|path| text += &world.info(path));
            }
            made.insert(drv.path.name().to_owned(), drv);
        }
        commands(&world, &made, &mut text);
        world.assert_clean();
        world.verify();
        let golden = std::env::var_os("FRUIX_GOLDEN")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/builds"), PathBuf::from);
        if std::env::var_os("FRUIX_TEST_ACCEPT").is_some() {
            fs::write(golden, &text).unwrap();
            return;
        }
        let expected = fs::read_to_string(golden).unwrap();
        let mut lines = expected.lines().zip(text.lines()).enumerate();
        if let Some((number, (expected, found))) = lines.find(|(_, (expected, found))| expected != found) {
            panic!("line {}: expected {expected}\nfound {found}\nin\n{text}", number + 1);
        }
        assert_eq!(expected.lines().count(), text.lines().count(), "{text}");
    });
}

/// What else `fruix` can do, with what was built.
fn commands(world: &World, made: &BTreeMap<String, Made>, text: &mut String) {
    let show = |path: &StorePath| world.store_dir.display(path);
    let drv = |name: &str| &made[&format!("{name}.drv")];
    // Logs, by derivation and by output.
    let _ = write!(text, "== log\n{}", world.tell(&["log", &show(&drv("fails").path)]));
    let by_output = world.tell(&["log", &show(drv("talkative").out())]);
    let _ = writeln!(text, "{} lines, the last one: {}", by_output.lines().count(), by_output.lines().last().unwrap_or_default());
    // Building again what is there, and what is damaged.
    let says = |(built, log): (bool, String)| format!("{built}\n{log}");
    let random = world.make(recipe("random", "head -c 16 /dev/urandom >$out"));
    assert!(world.build(&random, &[]).0);
    let _ = write!(text, "== check same {}", says(world.build(drv("tree"), &["--check"])));
    let _ = write!(text, "== check other {}", says(world.build(&random, &["--check"])));
    let damaged = PathBuf::from(show(drv("text").out()));
    fs::set_permissions(&damaged, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&damaged, "damage").unwrap();
    let found = world.fruix(&["gc", "--verify=contents"]);
    let _ = writeln!(text, "== damage is {}", if found.status.success() { "not found" } else { "found" });
    let _ = write!(text, "== repair {}", says(world.build(drv("text"), &["--repair"])));
    assert_eq!(fs::read_to_string(&damaged).unwrap(), "hello\n");
    // Additions, roots, collection.
    fs::create_dir_all(format!("{DIR}/drvs/added/dir")).unwrap();
    fs::write(format!("{DIR}/drvs/added/dir/file"), "content").unwrap();
    let added = world.add(Path::new(&format!("{DIR}/drvs/added")));
    let _ = write!(text, "== add\n{}", world.info(&added));
    let link = format!("{DIR}/root");
    let _ = write!(text, "== root\n{}", world.tell(&["build", "--root", &link, drv("chain").file.to_str().unwrap()]));
    let roots = world.tell(&["roots"]);
    assert!(roots.contains(&format!("{link} -> {}", show(drv("chain").out()))), "{roots}");
    let dead = world.tell(&["gc", "--list-dead"]);
    let is_dead = |path: &StorePath| dead.lines().any(|line| line == show(path));
    assert!(is_dead(&added) && is_dead(drv("many").out()), "{dead}");
    let live = world.tell(&["gc", "--list-live"]);
    for name in ["text", "chain"] {
        assert!(live.lines().any(|line| line == show(drv(name).out())), "{name} is not alive: {live}");
    }
    world.tell(&["gc", "--delete", &show(&added)]);
    assert!(!Path::new(&show(&added)).exists());
    world.tell(&["gc"]);
    let mut left: Vec<String> =
        fs::read_dir(world.store_dir.as_str()).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    // The daemon's own directories are there as long as it runs.
    let own = |name: &str| name == ".links" || name.ends_with("-fruixd-staging");
    left.retain(|name| !own(name));
    left.sort();
    let _ = writeln!(text, "== left after collection\n{}", left.join("\n"));
    fs::remove_file(&link).unwrap();
    world.tell(&["gc"]);
    let rest: Vec<_> = fs::read_dir(world.store_dir.as_str()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(rest.iter().all(|name| own(&name.to_string_lossy())), "{rest:?}");
    let unknown = world.fruix(&["path-info", &show(&added)]);
    let _ = writeln!(text, "== {}", String::from_utf8_lossy(&unknown.stderr));
}

// ---- packages -----------------------------------------------------------------------------------------------------------------------------

/// Packages, each unpacked, configured, made, checked and installed by one build, with the host's compiler and `make`; `FRUIX_PACKAGES` are their
/// sources, archives with `:` between them. All are tried, whatever fails.
#[test]
fn packages_are_built_and_checked() {
    let Some(sources) = std::env::var_os("FRUIX_PACKAGES") else {
        println!("packages_are_built_and_checked: skipped, since FRUIX_PACKAGES does not name their sources");
        return;
    };
    host::alone("packages_are_built_and_checked", || {
        let world = World::new(&[]);
        let script = "mkdir source; tar xf $source -C source; cd source/*/
            step() { n=$1; shift; t=$(date +%s); \"$@\" >../$n.log 2>&1 || { echo failed: $n; tail -n 60 ../$n.log; exit 1; }; echo $n: $(($(date +%s) - t)) s; }
            export CONFIG_SHELL=/bin/sh
            step configure /bin/sh ./configure --prefix=$out --disable-dependency-tracking CC=cc
            step make make
            step check make check
            grep -E '^# [A-Z]+:' ../check.log || true
            step install make install
            for program in $out/bin/*; do [ ! -f $program ] || $program --version | head -n 1; done";
        let mut failed = Vec::new();
        for source in std::env::split_paths(&sources) {
            let since = Instant::now();
            let file = source.file_name().unwrap().to_str().unwrap();
            let name = file.split(".tar").next().unwrap().replace('+', "-");
            let source = world.add(&source);
            let made = world.make(recipe(&name, script).source("source", &source, &world.store_dir));
            let (built, log) = world.build(&made, &[]);
            println!("{log}{name}: {} s", since.elapsed().as_secs());
            if built {
                println!("{}", world.info(made.out()));
            } else {
                failed.push(name);
                continue;
            }
            if name.starts_with("hello-") {
                let greeting = run(&mut Command::new(format!("{}/bin/hello", world.store_dir.display(made.out()))));
                assert_eq!(greeting, "Hello, world!\n");
            }
        }
        world.assert_clean();
        world.verify();
        assert!(failed.is_empty(), "not built: {failed:?}");
    });
}

// ---- daemons that are killed --------------------------------------------------------------------------------------------------------------

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn killed_daemons_leave_nothing() {
    host::alone("killed_daemons_leave_nothing", || {
        let mut world = World::new(&[]);
        let (builds, kills) = (number("FRUIX_BUILDS", 60), number("FRUIX_KILLS", 4));
        let source = world.add_text("input", "an input\n");
        // Jails are slow to make where the machine is emulated; several should be there at a time all the same.
        let pause = if cfg!(target_os = "freebsd") { "sleep 4" } else { "sleep 0.3" };
        let script = format!("cp $input $out; (sleep 1000 &); chmod 700 .; echo x >$TMPDIR/x; {pause}");
        let all: Vec<Made> = (0..builds)
            .map(|n| world.make(recipe(&format!("build-{n}"), &script).source("input", &source, &world.store_dir).env("n", &n.to_string())))
            .collect();
        let mut arguments = vec!["build", "--keep-going", "--max-jobs=8", "--quiet"];
        arguments.extend(all.iter().map(|made| made.file.to_str().unwrap()));
        let valid = |world: &World| all.iter().filter(|made| Path::new(&world.store_dir.display(made.out())).exists()).count();
        #[cfg(target_os = "freebsd")]
        let mut most_jails = 0;
        for round in 0..kills {
            let before = valid(&world);
            let mut client = world.client(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            // In the middle of something: when it has got on, but not with all.
            wait_until("builds", || valid(&world) > before || valid(&world) == builds || client.try_wait().unwrap().is_some());
            std::thread::sleep(Duration::from_millis(37 * round as u64));
            #[cfg(target_os = "freebsd")]
            {
                most_jails = most_jails.max(host::jails().len());
            }
            world.stop(Signal::SIGKILL);
            let _ = client.kill();
            client.wait().unwrap();
            world.start();
        }
        let output = world.fruix(&arguments);
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), world.said());
        assert_eq!(valid(&world), builds);
        world.assert_clean();
        world.verify();
        world.stop(Signal::SIGTERM);
        world.assert_clean();
        #[cfg(target_os = "freebsd")]
        {
            let left: Vec<_> = fs::read_dir(format!("{DIR}/state/jails")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["lock"]);
            println!("{builds} builds, {kills} kills, up to {most_jails} jails at a kill");
            assert!(most_jails > 1, "no daemon was killed with several builds in jails");
        }
    });
}

// ---- attackers in jails -------------------------------------------------------------------------------------------------------------------

/// What an attacker tries from a build through the daemon, and must not get. What of it is the jail's affair alone is also in `jails.rs`.
#[cfg(target_os = "freebsd")]
mod attacks {
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// `try NAME COMMAND...` in a script.
    const TRY: &str = "try() { n=$1; shift; if \"$@\" 2>/dev/null; then echo \"BAD $n\"; else echo \"refused $n\"; fi; }; set +e\n";

    fn attempts(name: &str, script: &str) -> Recipe {
        recipe(name, &format!("{TRY}{script}\nexec 2>/dev/null; [ -e $out ] || echo x >$out; true"))
    }

    fn assert_refused(log: &str, attempts: usize) {
        assert!(!log.contains("BAD"), "{log}");
        assert_eq!(log.lines().filter(|line| line.starts_with("refused ")).count(), attempts, "{log}");
    }

    /// A build that runs until it is dropped.
    struct Other {
        client: Child,
    }

    impl Other {
        /// Starts it, and waits until it says `ready`.
        fn start(world: &World, recipe: Recipe) -> Other {
            let made = world.make(recipe);
            let mut client = world
                .client(&["build", "--max-jobs=8", made.file.to_str().unwrap()])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut log = BufReader::new(client.stderr.take().unwrap());
            let mut line = String::new();
            while line.trim() != "ready" {
                line.clear();
                assert!(log.read_line(&mut line).unwrap() > 0, "it ended: {}", world.said());
                if line.starts_with("BAD") || line.contains("rror:") {
                    let mut rest = String::new();
                    log.read_to_string(&mut rest).unwrap();
                    panic!("{line}{rest}");
                }
            }
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
            Other { client }
        }
    }

    impl Drop for Other {
        fn drop(&mut self) {
            let _ = self.client.kill();
            let _ = self.client.wait();
        }
    }

    /// A19: root's rights, by what is set-user-id, by devices, by the kernel.
    #[test]
    fn root_is_not_regained() {
        host::alone("root_is_not_regained", || {
            let world = World::new(&[]);
            let script = "cp /bin/sh s; chmod 6755 s
                try setuid-copy sh -c './s -p -c \"exit \\$(id -u)\"; [ $? = 0 ]'
                try su su root -c true
                try chown chown 0 s
                try mknod mknod n c 1 3
                try mount mount -t tmpfs tmpfs .
                try mount-null mount -t nullfs / .
                try unmount umount /bin
                try module kldload tmpfs
                try jail jail -c path=/ command=true
                try chroot chroot / true
                try memory-device mdconfig -a -t swap -s 1m
                try schg chflags schg s
                try system-attribute setextattr system a b s
                try securelevel sysctl kern.securelevel=-1
                try limits rctl -a user:$(id -u):maxproc:deny=5
                try date date 200001010000
                try trace sh -c 'truss -o /dev/null true'";
            assert_refused(&world.script(attempts("root", script), &[]), 17);
            world.assert_clean();
        });
    }

    /// A5, A6, A19: the store, inputs, another build's directories, the host.
    #[test]
    fn nothing_of_others_is_written() {
        host::alone("nothing_of_others_is_written", || {
            let world = World::new(&["--max-jobs=4"]);
            let input = world.make(recipe("input", "mkdir $out; echo secret >$out/file"));
            assert!(world.build(&input, &[]).0);
            let file = format!("{}/file", world.store_dir.display(input.out()));
            let before = fs::metadata(&file).unwrap().ino();
            let other = Other::start(&world, recipe("other", "echo mine >own; echo mine >$out; echo ready; sleep 1000"));
            let script = format!(
                "try write-input sh -c 'echo x >$input/file'
                try append-input sh -c 'echo x >>$input/file'
                try add-to-input sh -c 'echo x >$input/new'
                try chmod-input chmod 777 $input
                try flag-input chflags uchg $input/file
                try attribute-input setextattr user a b $input/file
                try touch-input touch $input/file
                try remove-input rm -f $input/file
                try move-input mv $input $NIX_STORE/moved
                try link-input ln $input/file $out
                try other-build-dir ls {DIR}/tmp/guix-build-other.drv-0
                try other-chroot ls $NIX_STORE/*other.drv.chroot
                try other-own sh -c 'cat /tmp/guix-build-other*/own'
                try write-store-of-host sh -c 'echo x >{DIR}/store/../evil'
                try host-state ls {DIR}/state
                try etc sh -c 'echo x >>/etc/passwd'
                try root sh -c 'echo x >/new'
                try base sh -c 'echo x >/bin/new'
                try dots ls /../../../{DIR}/state
                echo own >$NIX_STORE/made-up"
            );
            assert_refused(&world.script(attempts("writer", &script).input("input", &input, &world.store_dir), &[]), 19);
            assert_eq!(fs::read_to_string(&file).unwrap(), "secret\n");
            assert_eq!((fs::metadata(&file).unwrap().ino(), fs::metadata(&file).unwrap().nlink() <= 2), (before, true));
            // What it made up in its own store is nobody else's.
            assert!(!Path::new(DIR).join("store/made-up").exists() && !Path::new(DIR).join("evil").exists());
            drop(other);
            world.assert_clean();
            world.verify();
        });
    }

    /// A3: processes of other builds and of the host.
    #[test]
    fn nobody_else_is_seen_or_signalled() {
        host::alone("nobody_else_is_seen_or_signalled", || {
            let world = World::new(&["--max-jobs=4"]);
            let mut canary = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
            // Even with the number of a build user.
            let mut same = Command::new("/bin/sleep");
            let mut same = std::os::unix::process::CommandExt::uid(&mut same, host::FIRST_USER + 7).arg("1000").spawn().unwrap();
            let other = Other::start(&world, recipe("other", "sleep 1001 & echo ready; sleep 1000"));
            let theirs = sh("pgrep -f 'sleep 1001'");
            let theirs = theirs.trim();
            let script = format!(
                "try see-host ps -p {0}
                try see-other ps -p {theirs}
                try list sh -c 'ps -ax -o command= | grep \"[s]leep 100\"'
                try signal-host kill -9 {0}
                try signal-other kill -9 {theirs}
                try signal-daemon kill -9 {1}
                try signal-init kill -1 1
                try trace-host procstat -f {0}
                try debug ktrace -p {theirs}
                kill -9 -1",
                canary.id(),
                world.daemon.as_ref().unwrap().id(),
            );
            let made = world.make(attempts("hunter", &script));
            // The last attempt ends the attacker, and nobody else.
            let (built, log) = world.build(&made, &[]);
            assert_refused(&log, 9);
            assert!(!built || !log.is_empty());
            assert!(canary.try_wait().unwrap().is_none() && same.try_wait().unwrap().is_none());
            assert_eq!(sh("pgrep -f 'sleep 1001'").trim(), theirs);
            for child in [&mut canary, &mut same] {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            drop(other);
            world.assert_clean();
        });
    }

    /// A12: the network, the daemon's socket, what the host keeps for itself.
    #[test]
    fn nothing_of_the_host_is_reached() {
        host::alone("nothing_of_the_host_is_reached", || {
            let world = World::new(&[]);
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
            let script = format!(
                "try host-port nc -z -w 2 127.0.0.1 {port}
                try host-port-6 nc -z -w 2 ::1 {port}
                try outside ping -c 1 -t 1 192.0.2.1
                try raw ping -c 1 -t 1 127.0.0.1
                try interface ifconfig lo0 inet 10.9.9.9/32 alias
                try new-interface ifconfig epair create
                try route route add default 127.0.0.1
                try socket sh -c 'nc -N -U {DIR}/state/daemon-socket/socket </dev/null'
                try syslog sh -c 'nc -N -U /var/run/log </dev/null'
                try shadow cat /etc/master.passwd
                try host-users grep -q root /etc/passwd
                try boot ls /boot
                try home ls /root
                try memory cat /dev/mem
                try disk sh -c 'ls /dev/ada* /dev/vtbd* /dev/gpt'
                try messages dmesg
                try devices sh -c 'ls /dev | grep -v -x -E \"fd|full|null|pts|random|stderr|stdin|stdout|urandom|zero\"'
                try hostname hostname other"
            );
            assert_refused(&world.script(attempts("reacher", &script), &[]), 18);
            drop(listener);
            world.assert_clean();
        });
    }

    /// A19: a link among inputs or outputs is a link, wherever it leads.
    #[test]
    fn no_link_leads_out_at_mount_time() {
        host::alone("no_link_leads_out_at_mount_time", || {
            let world = World::new(&[]);
            let out = world.make(recipe("out", "ln -s /etc $out"));
            let tree = world.make(recipe("tree", "mkdir $out; ln -s ../../../../../../etc $out/etc; ln -s / $out/root"));
            for made in [&out, &tree] {
                assert!(world.build(made, &[]).0);
            }
            // The build directory, too, is only what it was when it was made.
            let swap = world.make(recipe("swap", "cd /; rm -rf $TMPDIR || true; ln -s /etc $TMPDIR || true; echo x >$out"));
            assert!(world.build(&swap, &[]).0);
            let script = "try through-link cat $out_link/master.passwd
                try through-tree cat $tree/etc/master.passwd
                try to-root ls $tree/root/boot
                [ \"$(readlink $out_link)\" = /etc ] || echo BAD no link
                rm -rf $TMPDIR/x; ln -s /etc $TMPDIR/x; ln -s $tree $out";
            let recipe = attempts("follower", script).input("out_link", &out, &world.store_dir).input("tree", &tree, &world.store_dir);
            assert_refused(&world.script(recipe, &[]), 3);
            assert!(Path::new("/etc/master.passwd").exists());
            world.assert_clean();
        });
    }

    /// A19, A20: what a build leaves on its files: set-user-id bits, flags, attributes, names elsewhere; also where the build fails, and is kept.
    #[test]
    fn files_are_left_plain() {
        host::alone("files_are_left_plain", || {
            let world = World::new(&[]);
            let mark = "cp /bin/sh $D/s; chmod 6755 $D/s; echo x >$D/f; echo x >$D/g; chflags uchg $D/f; chflags uappnd,nodump $D/g;
                setextattr user a b $D/s; mkdir $D/d; echo x >$D/d/f; ln -s x $D/l; chflags -h uchg $D/l; chflags uchg $D/d/f; chflags uappnd $D/d; chflags uchg $D";
            let good = world
                .make(recipe("good", &format!("D=$out; mkdir $D; {mark}; mkdir $TMPDIR/d /tmp/d; D=$TMPDIR/d; {mark}; D=/tmp/d; {mark}")));
            let (built, log) = world.build(&good, &[]);
            assert!(built, "{log}\n{}", world.said());
            world.assert_clean();
            let out = PathBuf::from(world.store_dir.display(good.out()));
            for (name, mode) in [("", 0o555), ("s", 0o555), ("f", 0o444), ("g", 0o444), ("d", 0o555), ("d/f", 0o444)] {
                let file = out.join(name);
                let data = fs::symlink_metadata(&file).unwrap();
                assert_eq!((data.mode() & 0o7777, data.uid(), data.gid()), (mode, 0, 0), "{name}");
            }
            assert_eq!(sh(&format!("find {} -flags +uchg,uappnd,nodump; lsextattr -q user {0}/s", out.display())).trim(), "", "{log}");
            // A failure, kept or not, leaves nothing that cannot be removed.
            let bad = world.make(recipe("bad", &format!("D=$out; mkdir $D; {mark}; D=$TMPDIR/d; mkdir $D; {mark}; exit 1")));
            assert!(!world.build(&bad, &[]).0);
            world.assert_clean();
            // An output that has a name elsewhere is refused, or the other name is gone.
            let linked = world.make(recipe("linked", "echo x >$out; ln $out $NIX_STORE/elsewhere; ln $out $TMPDIR/x"));
            let (built, log) = world.build(&linked, &[]);
            assert!(!built || fs::metadata(world.store_dir.display(linked.out())).unwrap().nlink() <= 2, "{log}");
            world.assert_clean();
            // It can be collected as anything else.
            world.tell(&["gc"]);
            assert!(!out.exists());
            world.verify();
        });
    }

    /// A20: with an access control list, others write to a file that is root's and that nobody may write to by its mode. ZFS has those of NFSv4 always,
    /// UFS has either kind where it is told to.
    #[test]
    fn access_lists_are_taken_away() {
        use std::os::unix::process::CommandExt as _;

        const NOBODY: u32 = 65534;
        host::alone("access_lists_are_taken_away", || {
            for (flag, file, dir) in [
                ("-N", "-m u:65534:full_set::allow", "-m u:65534:full_set:fd:allow"),
                ("-a", "-m u:65534:rwx,m::rwx", "-d -m u::rwx,g::rwx,o::rwx,u:65534:rwx,m::rwx"),
            ] {
                let disk = run(Command::new("mdconfig").args(["-a", "-t", "swap", "-s", "96m"]));
                let device = format!("/dev/{}", disk.trim());
                run(Command::new("newfs").args(["-U", &device]));
                run(Command::new("tunefs").args([flag, "enable", &device]));
                run(Command::new("mount").args([&device, DIR]));
                {
                    let world = World::new(&[]);
                    // Modes are already what they are to be, so that nobody needs to change them.
                    let tree = format!(
                        "mkdir -p $out/d; echo x >$out/f; echo x >$out/d/f; ln -s f $out/l; ln -P $out/l $out/d/l; chmod 444 $out/f $out/d/f
                        chmod 555 $out/d $out; setfacl {file} $out/f $out/d/f; setfacl {dir} $out/d $out
                        ls -ld $out $out/d $out/f | grep -c '^[^ ]*+'"
                    );
                    let tree = world.make(recipe("tree", &tree));
                    let link = world.make(recipe("link", "ln -s /none $out"));
                    let links = "l=$out/l; mkdir $out; ln -s x $l; setfacl -h -m u:65534:full_set::allow $l; ln -P $l $out/m; ls -ld $l | grep '^[^ ]*+'";
                    let nfs4 = (flag == "-N").then(|| {
                        let top = "ln -s x $out; setfacl -h -m u:65534:full_set::allow $out; ls -ld $out | grep '^[^ ]*+'";
                        [world.make(recipe("links", links)), world.make(recipe("top", top))]
                    });
                    let mut outputs = Vec::new();
                    for made in [tree, link].iter().chain(nfs4.iter().flatten()) {
                        let (built, log) = world.build(made, &[]);
                        assert!(built, "{log}\n{}", world.said());
                        outputs.push(world.store_dir.display(made.out()));
                    }
                    let found = sh(&format!("find {} -acl", outputs.join(" ")));
                    let [tree, ..] = outputs.as_slice() else { panic!() };
                    let harm = format!(
                        "cd {DIR}/store && echo evil >{tree}/f; echo evil >{tree}/d/f; touch {tree}/new; rm -f {tree}/l {}; chmod 777 {tree}/d",
                        outputs.join(" ")
                    );
                    let harmed = Command::new("/bin/sh").args(["-c", &harm]).gid(NOBODY).uid(NOBODY).output().unwrap();
                    let text = String::from_utf8_lossy(&harmed.stderr);
                    assert!(text.matches("denied").count() >= 4, "{text}");
                    world.assert_clean();
                    world.verify();
                    assert_eq!(found, "");
                }
                run(Command::new("umount").arg(DIR));
                run(Command::new("mdconfig").args(["-d", "-u", disk.trim()]));
            }
        });
    }

    /// A1, A2, A5, A6, A7, A12: whose the files of a build are while it runs and when it has ended, and who is no client.
    #[test]
    fn files_of_a_build_are_nobody_elses() {
        use std::os::unix::process::CommandExt as _;

        const NOBODY: u32 = 65534;
        host::alone("files_of_a_build_are_nobody_elses", || {
            let world = World::new(&["--max-jobs=4"]);
            let victim = Path::new(DIR).join("victim");
            fs::write(&victim, "untouched").unwrap();
            // What is known beforehand is copied to where nobody else can go: a descriptor of the builder's own file is worth nothing.
            let copied =
                recipe("copied", &format!("echo fixed >$out; ln -s {DIR}/victim $NIX_STORE/copied; echo inode $(stat -f %i $out)"));
            let copied = world.make(copied.fixed("", Hash::sha256("fixed\n")));
            let (built, log) = world.build(&copied, &[]);
            assert!(built, "{log}\n{}", world.said());
            let inode = log.lines().find_map(|line| line.strip_prefix("inode ")).unwrap().parse::<u64>().unwrap();
            assert_ne!(fs::metadata(world.store_dir.display(copied.out())).unwrap().ino(), inode);
            for entry in fs::read_dir(world.store_dir.as_str()).unwrap().map(Result::unwrap) {
                let staging = entry.file_name().to_string_lossy().ends_with("-fruixd-staging");
                assert!(!staging || entry.metadata().unwrap().mode() & 0o77 == 0, "{entry:?}");
            }
            // Whatever mode a builder gives its directory, nobody gets there from outside.
            let other = Other::start(&world, recipe("open", "cp /bin/sh s; chmod 6755 s; chmod 777 .; echo ready; sleep 1000"));
            let found = sh(&format!("find {DIR}/tmp -name s"));
            let lists = |uid| Command::new("/bin/ls").arg(found.trim()).gid(uid).uid(uid).output().unwrap().status.success();
            assert!(found.trim().ends_with("/s") && lists(0) && !lists(NOBODY), "{found}");
            drop(other);
            world.assert_clean();
            // A build user is no client; anybody else is.
            let program = Path::new(DIR).join("client");
            fs::copy(binary("fruix", env!("CARGO_BIN_EXE_fruix")), &program).unwrap();
            let client =
                |uid, arguments: &[&str]| world.with_env(Command::new(&program)).args(arguments).gid(uid).uid(uid).output().unwrap();
            let refused = client(host::FIRST_USER, &["roots"]);
            assert!(!refused.status.success(), "{}", String::from_utf8_lossy(&refused.stdout));
            let served = client(NOBODY, &["roots"]);
            assert!(served.status.success(), "{}", String::from_utf8_lossy(&served.stderr));
            // What is kept of a failure is the client's, and nothing that it leads to.
            let kept = world.make(recipe("kept", &format!("ln -s {DIR}/victim link; ln -s /etc dir; echo x >own; exit 1")));
            let failed = client(NOBODY, &["build", "--keep-failed", kept.file.to_str().unwrap()]);
            assert!(!failed.status.success());
            let own = sh(&format!("find {DIR}/tmp -name own"));
            let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
            assert_eq!(owner(Path::new(own.trim())), NOBODY, "{own}\n{}", String::from_utf8_lossy(&failed.stderr));
            assert_eq!((owner(&victim), owner(Path::new("/etc")), owner(Path::new("/etc/passwd"))), (0, 0, 0));
            assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
            sh(&format!("rm -rf {DIR}/tmp/*"));
            world.assert_clean();
            world.verify();
        });
    }

    /// A4, D9: a process that is left, however it hides, also one that would lead the removal of its files elsewhere.
    #[test]
    fn no_process_is_left() {
        host::alone("no_process_is_left", || {
            let world = World::new(&[]);
            let script = "for n in 1 2 3; do (trap '' HUP TERM INT; setsid sleep 1000 || nohup sleep 1000) >/dev/null 2>&1 & done
                daemon sleep 1000; daemon -f -r sleep 1000
                (while :; do sleep 0.05 & wait; done) >/dev/null 2>&1 &
                echo x >$out";
            world.script(recipe("leaver", script), &[]);
            assert_eq!(host::left(), Vec::<String>::new());
            let canary = Path::new(DIR).join("canary");
            fs::create_dir(&canary).unwrap();
            fs::write(canary.join("file"), "x").unwrap();
            // A directory becomes a link, and a directory again, while the builder ends and all is removed.
            let swap = format!("while :; do mv swap x; ln -s {} swap; rm swap; mv x swap; done", canary.display());
            let script = format!(
                "for d in $TMPDIR $NIX_STORE; do cd $d; mkdir swap; for i in 1 2 3 4 5; do : >swap/$i; done; ({swap}) >/dev/null 2>&1 & done; sleep 0.$n; echo x >$out"
            );
            for n in 1..=4 {
                world.script(recipe(&format!("swapper-{n}"), &script).env("n", &n.to_string()), &[]);
                world.assert_clean();
                assert!(canary.join("file").exists());
            }
            world.assert_clean();
        });
    }

    /// A disk that a build fills is that build's misfortune, and free afterwards.
    #[test]
    fn a_full_disk_fails_one_build() {
        host::alone("a_full_disk_fails_one_build", || {
            host::mount_tmpfs("size=96m");
            let mut world = World::new(&[]);
            let before = sh(&format!("df -k {DIR} | awk 'NR==2 {{ print $4 }}'")).trim().parse::<u64>().unwrap();
            for (name, script) in
                [("fills", "dd if=/dev/zero of=big bs=1m; exit 1"), ("fills-out", "mkdir $out; dd if=/dev/zero of=$out/big bs=1m; exit 1")]
            {
                let made = world.make(recipe(name, script));
                let (built, log) = world.build(&made, &[]);
                assert!(!built && log.contains("No space left"), "{log}");
                world.assert_clean();
            }
            // What a failed build made of its outputs is left to be looked at, as garbage, which can be collected although the disk is full.
            world.tell(&["gc"]);
            world.runner = world.add(&Path::new(DIR).join("runner"));
            let after = sh(&format!("df -k {DIR} | awk 'NR==2 {{ print $4 }}'")).trim().parse::<u64>().unwrap();
            assert!(after + 4096 > before, "{before} KiB were free, now {after}");
            world.script(recipe("after", "echo x >$out"), &[]);
            world.verify();
        });
    }

    fn has_limits() -> bool {
        use fruix_freebsd::Kernel as _;
        let limits = fruix_freebsd::Host.features().unwrap().limits;
        if !limits {
            println!("skipped: kern.racct.enable is 0");
        }
        limits
    }

    /// Forks without end, in one build of two: the other one goes on, and nothing is left.
    #[test]
    fn a_fork_bomb_is_stopped() {
        host::alone("a_fork_bomb_is_stopped", || {
            if !has_limits() {
                return;
            }
            let world = World::new(&["--limit=processes=40", "--max-jobs=4"]);
            let other = Other::start(&world, recipe("other", "echo ready; sleep 1000"));
            let bomb = world.make(recipe("bomb", "bomb() { bomb & bomb & wait; }; exec 2>/dev/null; bomb; sleep 1000"));
            let since = Instant::now();
            let (built, log) = world.build(&bomb, &["--timeout=10", "--quiet"]);
            assert!(!built, "{log}");
            assert!(since.elapsed() < PATIENCE, "{:?}", since.elapsed());
            // The other build lives, and a third one can be made beside it.
            assert_eq!(host::jails().len(), 1);
            world.script(recipe("third", "(:); echo x >$out"), &[]);
            drop(other);
            world.assert_clean();
        });
    }

    /// Memory without end ends with the build.
    #[test]
    fn memory_is_limited() {
        host::alone("memory_is_limited", || {
            if !has_limits() {
                return;
            }
            let world = World::new(&["--limit=memory=64m"]);
            let made = world
                .make(recipe("glutton", "awk 'BEGIN { s = \"x\"; while (length(s) < 400000000) s = s s; print \"BAD\" }' && echo x >$out"));
            let (built, log) = world.build(&made, &["--timeout=120"]);
            assert!(!built && !log.contains("BAD"), "{log}");
            world.assert_clean();
            world.script(recipe("after", "echo x >$out"), &[]);
        });
    }

    /// A1, A3: every way by which two builds at the same time, both with the host's network, could hand each other a descriptor.
    #[test]
    fn no_descriptor_reaches_another_build() {
        host::alone("no_descriptor_reaches_another_build", || {
            let world = World::new(&["--max-jobs=4"]);
            let program = r#"#include <sys/types.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/msg.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void is(const char *what, int there) { printf("%s %s\n", there ? "BAD" : "refused", what); }
int main(int argc, char **argv) {
  int make = argc > 1, flags = make ? IPC_CREAT | 0666 : 0;
  umask(0);
  struct sockaddr_un a; memset(&a, 0, sizeof a); a.sun_family = AF_UNIX; a.sun_len = sizeof a; strcpy(a.sun_path, "/tmp/meet");
  int s = socket(AF_UNIX, SOCK_STREAM, 0), r;
  int shm = shm_open("/fruix-meet", make ? O_CREAT | O_RDWR : O_RDWR, 0666);
  int sysv = shmget(4711, 4096, flags), sem = semget(4711, 1, flags), msg = msgget(4711, flags);
  int fifo = make ? mkfifo("/tmp/fifo", 0666) : open("/tmp/fifo", O_RDWR | O_NONBLOCK);
  int pty = make ? posix_openpt(O_RDWR | O_NOCTTY) : -1;
  if (make) {
    grantpt(pty); unlockpt(pty); chmod(ptsname(pty), 0666);
    r = bind(s, (struct sockaddr *)&a, sizeof a) || listen(s, 1);
    if (r || shm < 0 || sysv < 0 || sem < 0 || msg < 0 || fifo < 0 || pty < 0) { printf("BAD cannot make: %d %d %d %d %d %d %d\n", r, shm, sysv, sem, msg, fifo, pty); return 1; }
    printf("ready\n"); fflush(stdout); sleep(1000); return 0;
  }
  is("socket", connect(s, (struct sockaddr *)&a, sizeof a) == 0);
  is("posix-memory", shm >= 0); is("sysv-memory", sysv >= 0); is("sysv-semaphore", sem >= 0); is("sysv-queue", msg >= 0); is("fifo", fifo >= 0);
  int terminals = 0; for (int n = 0; n < 8; n++) { char t[32]; sprintf(t, "/dev/pts/%d", n); terminals += open(t, O_RDWR | O_NOCTTY | O_NONBLOCK) >= 0; }
  is("terminal", terminals);
  int kept = 0; for (int n = 3; n < 64; n++) kept += fcntl(n, F_GETFD) >= 0 && n != s && n != shm;
  is("inherited", kept);
  return 0;
}"#;
            let hash = Hash::sha256("x\n");
            let one = recipe("one", &c(program, "./main make")).fixed("", Hash::sha256("never\n"));
            let other = Other::start(&world, one);
            let two = recipe("two", &c(program, "./main; echo x >$out")).fixed("", hash);
            assert_refused(&world.script(two, &[]), 8);
            drop(other);
            world.assert_clean();
        });
    }
}
