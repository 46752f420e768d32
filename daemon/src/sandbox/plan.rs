//! What a builder will see and be, as plain data: made by a pure function, printed by `fruixd --explain`, carried out by a backend.
//!
//! The facts are those measured with guix-daemon 1.5.0; `docs/design/sandbox.md` lists them and the few places where ours differ on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use bstr::{BStr, BString, ByteSlice as _};
use fruix_drv::{StoreDir, StorePath};
use serde::{Deserialize, Serialize};

use super::Error;

/// User and group of a builder that runs in a user namespace because there are no build users.
const NAMESPACE_IDS: (u32, u32) = (30001, 30000);
/// The host's files that a builder with a fixed output may read.
const NETWORK_FILES: [&str; 4] = ["/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/services"];
/// As above, on FreeBSD, where their builders use the host's network: also its certificates.
const FREEBSD_NETWORK_FILES: [&str; 6] =
    ["/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/services", "/etc/ssl", "/usr/share/certs"];
/// The services that builders in jails know by name without the host's file.
const SERVICES: &str = "ftp 21/tcp\nssh 22/tcp\nsmtp 25/tcp\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nhttps 443/tcp\n";

/// Everything that a plan follows from.
#[derive(Clone, Debug)]
pub struct BuildSpec {
    /// The derivation, as messages name it.
    pub drv_name: String,
    /// Whether the client reads traces, and so wants one when the machine is of the wrong kind.
    pub traced: bool,
    /// The store.
    pub store_dir: StoreDir,
    /// An empty directory that becomes the root of the builder; `None`: it sees the host's.
    pub root: Option<PathBuf>,
    /// The build directory on the host. It exists and belongs to the builder.
    pub build_dir: PathBuf,
    /// Where the builder sees it.
    pub build_dir_inside: PathBuf,
    /// The store paths that the builder may read.
    pub inputs: BTreeSet<StorePath>,
    /// The store paths that it is to make.
    pub outputs: Vec<StorePath>,
    /// What the site adds to the root: target and source on the host.
    pub extra_dirs: Vec<(PathBuf, PathBuf)>,
    /// What the derivation adds to the root (`builderRoot`): target, and source in one of its inputs.
    pub builder_root: Vec<(PathBuf, PathBuf)>,
    /// Files of the host that the builder may read where they are, provided that it could read them on the host; others are left out in silence.
    /// For the `file:` URLs and certificates of built-in builders.
    pub host_files: Vec<PathBuf>,
    /// What runs.
    pub program: Program,
    /// Its environment.
    pub env: BTreeMap<BString, BString>,
    /// Whether its output is known beforehand, so that it may use the network.
    pub fixed_output: bool,
    /// Whose rights it gets; `None`: none but the daemon's, in a user namespace where there is a root of its own.
    pub user: Option<UserIds>,
    /// The system that the derivation is for.
    pub platform: String,
    /// The system that this is.
    pub system: String,
    /// Whether the builder shall believe in Linux 2.6.
    pub impersonate_linux_26: bool,
    /// Whether builders of fixed outputs shall not reach the host's loopback.
    pub isolate_host_loopback: bool,
}

/// A build user's ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserIds {
    /// The user.
    pub uid: u32,
    /// The build group.
    pub gid: u32,
    /// All its groups, as upstream sets them: this includes its own.
    pub groups: Vec<u32>,
}

/// What the host has, as far as a plan depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// `/dev/kvm` is there.
    pub kvm: bool,
    /// New instances of the pseudo-terminal file system can be had.
    pub terminals: bool,
    /// Which of the files are there that tell programs about the network.
    pub network_files: BTreeSet<PathBuf>,
}

impl HostFacts {
    /// Looks at this machine.
    #[must_use]
    pub fn probe() -> HostFacts {
        HostFacts {
            kvm: Path::new("/dev/kvm").exists(),
            terminals: Path::new("/dev/pts/ptmx").exists(),
            network_files: if cfg!(target_os = "freebsd") { FREEBSD_NETWORK_FILES.as_slice() } else { NETWORK_FILES.as_slice() }
                .iter()
                .map(PathBuf::from)
                .filter(|file| file.exists())
                .collect(),
        }
    }
}

/// How one builder runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The derivation's file name without its hash.
    pub name: String,
    /// The root that it sees.
    pub root: Root,
    /// What is made in a private root, in this order.
    pub entries: Vec<Entry>,
    /// What is mounted in a private root, in this order, after the entries are made.
    pub mounts: Vec<Mount>,
    /// Who it is.
    pub identity: Identity,
    /// What it reaches.
    pub network: Network,
    /// Names of the machine and of its domain, in a private root.
    pub host_name: String,
    /// See `host_name`.
    pub domain_name: String,
    /// What runs.
    pub program: Program,
    /// Its environment, in this order.
    #[serde(with = "text::pairs")]
    pub env: Vec<(BString, BString)>,
    /// Its working directory.
    #[serde(with = "text")]
    pub cwd: PathBuf,
    /// Its file mode creation mask.
    pub umask: u32,
    /// How the kernel shows itself.
    pub personality: Personality,
    /// How much it is preferred when memory runs out and something has to be killed, 0 to 1000.
    pub oom_score: i32,
    /// The store: a program outside of it is not run. `None`: any program is.
    #[serde(with = "text::option")]
    pub store_dir: Option<PathBuf>,
    /// The system that the derivation is for, and the one that this is; for the message when the program cannot be run here.
    pub platform: String,
    /// See `platform`.
    pub system: String,
    /// See [`BuildSpec::traced`].
    pub traced: bool,
    /// Where its outputs appear, as it names them.
    #[serde(with = "text::list")]
    pub outputs: Vec<PathBuf>,
    /// What all its processes together may use, where the platform can limit that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
}

/// A limit on what a builder uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// What is limited, in the platform's words.
    pub resource: String,
    /// What happens when it is reached, in the platform's words.
    pub action: String,
    /// In bytes, seconds, percents of a processor, or pieces.
    pub amount: u64,
}

/// The root directory of a builder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// The host's. Nothing is hidden, and nothing is isolated but processes.
    Host,
    /// One of its own, with processes, interprocess communication and network of its own.
    Private {
        /// The directory that becomes the root; it is empty.
        #[serde(with = "text")]
        dir: PathBuf,
    },
}

/// Something in a private root. Paths are those that the builder sees; directories above are made with mode 755.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A directory.
    Dir {
        /// Where.
        #[serde(with = "text")]
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its group, if not the daemon's.
        gid: Option<u32>,
    },
    /// A file of mode 644.
    File {
        /// Where.
        #[serde(with = "text")]
        path: PathBuf,
        /// What is in it.
        contents: String,
    },
    /// A symbolic link.
    Link {
        /// Where.
        #[serde(with = "text")]
        path: PathBuf,
        /// To what.
        #[serde(with = "text")]
        target: PathBuf,
    },
    /// The database of users that FreeBSD's programs read: the build user `nixbld` and `nobody`.
    Users {
        /// Where.
        #[serde(with = "text")]
        path: PathBuf,
        /// The user's number.
        uid: u32,
        /// The group's number.
        gid: u32,
    },
}

impl Entry {
    /// Where the builder sees it.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Entry::Dir { path, .. } | Entry::File { path, .. } | Entry::Link { path, .. } | Entry::Users { path, .. } => path,
        }
    }
}

/// Something mounted in a private root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mount {
    /// A file or directory of the host.
    Bind {
        /// On the host.
        #[serde(with = "text")]
        source: PathBuf,
        /// For the builder.
        #[serde(with = "text")]
        target: PathBuf,
        /// Whether the builder cannot write there.
        read_only: bool,
        /// How the source is found.
        lookup: Lookup,
    },
    /// A view of the builder's own processes.
    Processes {
        /// For the builder.
        #[serde(with = "text")]
        target: PathBuf,
    },
    /// An empty file system in memory.
    Memory {
        /// For the builder.
        #[serde(with = "text")]
        target: PathBuf,
    },
    /// Pseudo-terminals of its own.
    Terminals {
        /// For the builder; the multiplexer is linked beside it.
        #[serde(with = "text")]
        target: PathBuf,
    },
    /// FreeBSD: devices, as a ruleset of ours shows them.
    Devices {
        /// For the builder.
        #[serde(with = "text")]
        target: PathBuf,
    },
    /// FreeBSD: the open files of the process that looks.
    Descriptors {
        /// For the builder.
        #[serde(with = "text")]
        target: PathBuf,
    },
}

impl Mount {
    /// Where the builder sees it.
    #[must_use]
    pub fn target(&self) -> &Path {
        match self {
            Mount::Bind { target, .. }
            | Mount::Processes { target }
            | Mount::Memory { target }
            | Mount::Terminals { target }
            | Mount::Devices { target }
            | Mount::Descriptors { target } => target,
        }
    }
}

/// What to do about symbolic links when a source is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lookup {
    /// None may be on the way. Where the source itself is one, an equal link is made instead of a mount.
    Strict,
    /// They are followed on the way. Where the source itself is one, an equal link is made instead of a mount.
    Link,
    /// They are followed. What is not there is left out.
    Follow,
    /// They are followed, with the rights of the builder. What is not there, what is no regular file and what it may not read is left out.
    AsBuilder,
}

/// Who a builder is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    /// A build user.
    User(UserIds),
    /// The daemon's user, under other ids in a user namespace.
    Namespace {
        /// The user inside.
        uid: u32,
        /// The group inside.
        gid: u32,
    },
    /// The daemon's user.
    Daemon,
}

/// What a builder reaches over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Nothing; not even itself unless it has a loopback interface.
    Private {
        /// Whether that interface is up.
        loopback: bool,
    },
    /// What the host reaches. In a private root its sockets are for the Internet only, so that no descriptor leaves the root.
    Host,
}

/// How the kernel shows itself to a builder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Personality {
    /// As one for the 32-bit variant of the machine.
    pub bits_32: bool,
    /// As Linux 2.6.
    pub linux_26: bool,
    /// Programs find their memory at the same addresses each time.
    pub fixed_addresses: bool,
}

/// What runs in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// A program of the store.
    Exec {
        /// Its file.
        #[serde(with = "text")]
        path: BString,
        /// Its arguments, from its own name on.
        #[serde(with = "text::list")]
        args: Vec<BString>,
    },
    /// A builder inside the daemon.
    Builtin {
        /// Its name.
        name: String,
        /// Whether it needs the host's network.
        network: bool,
        /// What it is told.
        #[serde(with = "text")]
        input: Vec<u8>,
    },
}

impl Program {
    /// Whether it is a builder of our own that needs the host's network.
    fn uses_network(&self) -> bool {
        matches!(self, Program::Builtin { network: true, .. })
    }
}

impl Plan {
    /// The plan for a builder with a root of its own.
    ///
    /// # Errors
    /// A directory that the site adds is not an absolute path without `..`, or there is no root.
    pub fn confined(spec: &BuildSpec, host: &HostFacts) -> Result<Plan, Error> {
        let Some(dir) = spec.root.clone() else { return Plan::unconfined(spec) };
        let identity = match &spec.user {
            Some(user) => Identity::User(user.clone()),
            None => Identity::Namespace { uid: NAMESPACE_IDS.0, gid: NAMESPACE_IDS.1 },
        };
        let network = if spec.program.uses_network() {
            Network::Host
        } else {
            // Without a user-mode network stack, upstream leaves builders of fixed outputs with an interface that is down.
            Network::Private { loopback: !spec.fixed_output || spec.isolate_host_loopback }
        };
        let mut plan = Plan {
            identity,
            network,
            root: Root::Private { dir },
            host_name: "localhost".to_owned(),
            domain_name: "(none)".to_owned(),
            ..Plan::unconfined(spec)?
        };
        let binds = plan.binds(spec, host)?;
        plan.make_entries(spec, &binds);
        let devices = !binds.contains_key(b"/dev".as_slice());
        let terminals = host.terminals && devices && !binds.contains_key(b"/dev/pts".as_slice());
        plan.mounts = binds.into_values().collect();
        plan.mounts.push(Mount::Processes { target: "/proc".into() });
        plan.mounts.push(Mount::Memory { target: "/dev/shm".into() });
        if terminals {
            plan.mounts.push(Mount::Terminals { target: "/dev/pts".into() });
        }
        Ok(plan)
    }

    /// The plan for a builder in a jail of FreeBSD.
    ///
    /// # Errors
    /// As for [`confined`](Self::confined).
    pub fn jailed(spec: &BuildSpec, host: &HostFacts, limits: &[Limit]) -> Result<Plan, Error> {
        let Some(dir) = spec.root.clone() else { return Plan::unconfined(spec) };
        let open = spec.fixed_output || spec.program.uses_network();
        let mut plan = Plan {
            root: Root::Private { dir },
            network: if open { Network::Host } else { Network::Private { loopback: true } },
            host_name: "localhost".to_owned(),
            limits: limits.to_vec(),
            ..Plan::unconfined(spec)?
        };
        // One number that will stand for a user that is taken only when something is built.
        let (uid, gid) = spec.user.as_ref().map_or((0, 0), |user| (user.uid, user.gid));
        let mut binds = plan.binds(spec, host)?;
        binds.retain(|target, _| !target.starts_with(b"/dev/"));
        for (target, source) in &spec.extra_dirs {
            if let Some(Mount::Bind { source: from, read_only, .. }) = binds.get_mut(target.as_os_str().as_bytes())
                && from == source
            {
                *read_only = true;
            }
        }
        plan.make_entries(spec, &binds);
        // The devices are a file system of their own.
        plan.entries.retain(|entry| !entry.path().starts_with("/dev"));
        plan.entries.push(Entry::Users { path: "/etc/pwd.db".into(), uid, gid });
        if !spec.fixed_output {
            plan.entries.push(Entry::File { path: "/etc/services".into(), contents: SERVICES.to_owned() });
        }
        plan.mounts = binds.into_values().collect();
        plan.mounts.push(Mount::Devices { target: "/dev".into() });
        plan.mounts.push(Mount::Descriptors { target: "/dev/fd".into() });
        Ok(plan)
    }

    /// The plan for a builder that sees the host.
    ///
    /// # Errors
    /// None today; a signature for both.
    pub fn unconfined(spec: &BuildSpec) -> Result<Plan, Error> {
        let store = spec.store_dir.as_str();
        Ok(Plan {
            name: spec.drv_name.clone(),
            root: Root::Host,
            entries: Vec::new(),
            mounts: Vec::new(),
            identity: spec.user.clone().map_or(Identity::Daemon, Identity::User),
            network: Network::Host,
            host_name: String::new(),
            domain_name: String::new(),
            program: spec.program.clone(),
            env: spec.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            cwd: spec.build_dir_inside.clone(),
            umask: 0o022,
            personality: Personality {
                bits_32: runs_as_32_bits(&spec.platform, &spec.system),
                linux_26: spec.impersonate_linux_26 && ["i686-linux", "x86_64-linux"].contains(&spec.platform.as_str()),
                fixed_addresses: true,
            },
            oom_score: 1000,
            store_dir: Some(store.into()),
            platform: spec.platform.clone(),
            system: spec.system.clone(),
            traced: spec.traced,
            outputs: spec.outputs.iter().map(|path| spec.store_dir.display(path).into()).collect(),
            limits: Vec::new(),
        })
    }

    /// What of the host shows in the private root, by target: mounts are made in the order of the bytes of their targets.
    fn binds(&self, spec: &BuildSpec, host: &HostFacts) -> Result<BTreeMap<Vec<u8>, Mount>, Error> {
        let store = Path::new(spec.store_dir.as_str());
        let mut binds = BTreeMap::new();
        let mut bind = |target: &Path, source: &Path, read_only: bool, lookup: Lookup| {
            let mount = Mount::Bind { source: source.to_owned(), target: target.to_owned(), read_only, lookup };
            binds.insert(target.as_os_str().as_bytes().to_owned(), mount);
        };
        if spec.fixed_output {
            for file in &host.network_files {
                // Where the network is the host's, a link into /run has to work; else what upstream shows is good enough.
                let lookup = if self.network == Network::Host { Lookup::Follow } else { Lookup::Link };
                bind(file, file, true, lookup);
            }
        }
        for (target, source) in &spec.extra_dirs {
            for path in [target, source] {
                if !path.is_absolute()
                    || path.components().any(|part| part == Component::ParentDir)
                    || path.as_os_str().as_bytes().contains(&0)
                {
                    return Err(Error::Directory { path: path.clone() });
                }
            }
            bind(target, source, source.starts_with(store), Lookup::Link);
        }
        for (target, source) in &spec.builder_root {
            // A link on the way could lead out of the store.
            bind(target, source, true, Lookup::Strict);
        }
        for file in &spec.host_files {
            if file.is_absolute()
                && !file.components().any(|part| part == Component::ParentDir)
                && !file.as_os_str().as_bytes().contains(&0)
            {
                bind(file, file, true, Lookup::AsBuilder);
            }
        }
        bind(&spec.build_dir_inside, &spec.build_dir, false, Lookup::Link);
        for input in &spec.inputs {
            let path = PathBuf::from(spec.store_dir.display(input));
            bind(&path, &path, true, Lookup::Strict);
        }
        for output in &spec.outputs {
            binds.remove(spec.store_dir.display(output).as_bytes());
        }
        if !binds.contains_key(b"/dev".as_slice()) {
            let kvm = host.kvm.then_some("kvm");
            for device in ["full", "null", "random", "tty", "urandom", "zero"].into_iter().chain(kvm) {
                let path = Path::new("/dev").join(device);
                let mount = Mount::Bind { source: path.clone(), target: path.clone(), read_only: false, lookup: Lookup::Link };
                binds.insert(path.as_os_str().as_bytes().to_owned(), mount);
            }
        }
        Ok(binds)
    }

    fn make_entries(&mut self, spec: &BuildSpec, binds: &BTreeMap<Vec<u8>, Mount>) {
        let (uid, gid) = match &self.identity {
            Identity::User(user) => (user.uid, user.gid),
            Identity::Namespace { uid, gid } => (*uid, *gid),
            Identity::Daemon => (0, 0),
        };
        let group = matches!(self.identity, Identity::User(_)).then_some(gid);
        let dir = |path: &str, mode, gid| Entry::Dir { path: path.into(), mode, gid };
        let file = |path: &str, contents: String| Entry::File { path: path.into(), contents };
        let link = |path: &str, target: &str| Entry::Link { path: path.into(), target: target.into() };
        self.entries = vec![
            dir("/tmp", 0o1777, None),
            dir("/etc", 0o755, None),
            file("/etc/passwd", format!("nixbld:x:{uid}:{gid}:Nix build user:/:/noshell\nnobody:x:65534:65534:Nobody:/:/noshell\n")),
            file("/etc/group", format!("nixbld:!:{gid}:\n")),
        ];
        if !spec.fixed_output {
            self.entries.push(file("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n".to_owned()));
        }
        // Only the builder's group may add to the store.
        self.entries.push(dir(spec.store_dir.as_str(), 0o1775, group));
        if !binds.contains_key(b"/dev".as_slice()) {
            self.entries.extend([
                dir("/dev/shm", 0o755, None),
                dir("/dev/pts", 0o755, None),
                link("/dev/fd", "/proc/self/fd"),
                link("/dev/stdin", "/proc/self/fd/0"),
                link("/dev/stdout", "/proc/self/fd/1"),
                link("/dev/stderr", "/proc/self/fd/2"),
            ]);
        }
    }
}

/// Whether a build for `platform` is one for the smaller brother of this machine.
fn runs_as_32_bits(platform: &str, system: &str) -> bool {
    let machine = |name| system == name || cfg!(target_os = "linux") && name == format!("{}-linux", std::env::consts::ARCH);
    platform == "i686-linux" && machine("x86_64-linux") || platform == "armhf-linux" && machine("aarch64-linux")
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "builder of {}", self.name)?;
        match &self.program {
            Program::Exec { path, args } => {
                writeln!(f, "  runs {path}")?;
                for (number, arg) in args.iter().enumerate() {
                    writeln!(f, "    argument {number}: {}", quoted(arg.as_bstr()))?;
                }
            }
            Program::Builtin { name, input, .. } => writeln!(f, "  runs the daemon's own {name}, told {} bytes", input.len())?,
        }
        match &self.identity {
            Identity::User(user) => writeln!(f, "  as user {}, group {}, groups {:?}", user.uid, user.gid, user.groups)?,
            Identity::Namespace { uid, gid } => writeln!(f, "  as the daemon's user, seen as {uid}:{gid}")?,
            Identity::Daemon => writeln!(f, "  as the daemon's user")?,
        }
        writeln!(f, "  in {}", self.cwd.display())?;
        let mut traits = vec![format!("umask {:03o}", self.umask), format!("out-of-memory score {}", self.oom_score)];
        let Personality { bits_32, linux_26, fixed_addresses } = self.personality;
        for (is, what) in [(bits_32, "32 bits"), (linux_26, "Linux 2.6"), (fixed_addresses, "fixed addresses")] {
            if is {
                traits.push(what.to_owned());
            }
        }
        writeln!(f, "  with {}", traits.join(", "))?;
        writeln!(f, "environment")?;
        for (name, value) in &self.env {
            writeln!(f, "  {name}={}", quoted(value.as_bstr()))?;
        }
        writeln!(
            f,
            "network: {}",
            match self.network {
                Network::Private { loopback: true } => "its own, loopback only",
                Network::Private { loopback: false } => "its own, nothing up",
                Network::Host => "the host's",
            }
        )?;
        match &self.root {
            Root::Host => writeln!(f, "root: the host's")?,
            Root::Private { dir } => {
                writeln!(f, "root: {}, seen as /, on {} ({})", dir.display(), self.host_name, self.domain_name)?;
                for entry in &self.entries {
                    match entry {
                        Entry::Dir { path, mode, gid } => {
                            let group = gid.map(|gid| format!(", group {gid}")).unwrap_or_default();
                            writeln!(f, "  {}/ (mode {mode:o}{group})", path.display())?;
                        }
                        Entry::File { path, contents } => writeln!(f, "  {}: {contents:?}", path.display())?,
                        Entry::Link { path, target } => writeln!(f, "  {} -> {}", path.display(), target.display())?,
                        Entry::Users { path, uid, gid } => writeln!(f, "  {}: nixbld {uid}:{gid}, nobody", path.display())?,
                    }
                }
                writeln!(f, "mounts")?;
                for mount in &self.mounts {
                    let target = mount.target().display();
                    match mount {
                        Mount::Bind { source, target: to, read_only, lookup } => {
                            let access = if *read_only { "read-only" } else { "read-write" };
                            let from = if source == to { String::new() } else { format!(" from {}", source.display()) };
                            let rights = if *lookup == Lookup::AsBuilder { ", if the builder may read it" } else { "" };
                            writeln!(f, "  {target} {access}{from}{rights}")?;
                        }
                        Mount::Processes { .. } => writeln!(f, "  {target} its own processes")?,
                        Mount::Memory { .. } => writeln!(f, "  {target} in memory")?,
                        Mount::Terminals { .. } => writeln!(f, "  {target} its own terminals")?,
                        Mount::Devices { .. } => writeln!(f, "  {target} a few devices")?,
                        Mount::Descriptors { .. } => writeln!(f, "  {target} its own descriptors")?,
                    }
                }
            }
        }
        for Limit { resource, action, amount } in &self.limits {
            writeln!(f, "limit: {resource} {amount}, then {action}")?;
        }
        writeln!(f, "outputs")?;
        for output in &self.outputs {
            writeln!(f, "  {}", output.display())?;
        }
        Ok(())
    }
}

/// Text as it is, if it is plain; in quotes, with escapes, otherwise.
fn quoted(text: &BStr) -> String {
    let plain = !text.is_empty() && text.iter().all(|byte| byte.is_ascii_graphic());
    if plain { text.to_string() } else { format!("{text:?}") }
}

/// Bytes as JSON strings: UTF-8 stays readable, a backslash and any other byte become `\xHH`.
pub(super) mod text {
    use super::{BString, PathBuf};
    use serde::de::{Deserialize as _, Deserializer};
    use serde::ser::{Serialize as _, Serializer};
    use std::ffi::OsString;
    use std::fmt::Write as _;
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

    pub(in super::super) trait Text {
        fn bytes(&self) -> &[u8];
        fn of(bytes: Vec<u8>) -> Self;
    }

    impl Text for BString {
        fn bytes(&self) -> &[u8] {
            self
        }
        fn of(bytes: Vec<u8>) -> Self {
            bytes.into()
        }
    }

    impl Text for Vec<u8> {
        fn bytes(&self) -> &[u8] {
            self
        }
        fn of(bytes: Vec<u8>) -> Self {
            bytes
        }
    }

    impl Text for PathBuf {
        fn bytes(&self) -> &[u8] {
            self.as_os_str().as_bytes()
        }
        fn of(bytes: Vec<u8>) -> Self {
            OsString::from_vec(bytes).into()
        }
    }

    fn escape(bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len());
        for chunk in bytes.utf8_chunks() {
            for char in chunk.valid().chars() {
                match char {
                    '\\' => text.push_str("\\x5c"),
                    char => text.push(char),
                }
            }
            for byte in chunk.invalid() {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
        text
    }

    fn unescape(text: &str) -> Option<Vec<u8>> {
        let mut parts = text.split('\\');
        let mut bytes = parts.next()?.as_bytes().to_owned();
        for part in parts {
            let digits = part.strip_prefix('x')?;
            bytes.push(u8::from_str_radix(digits.get(..2)?, 16).ok()?);
            bytes.extend_from_slice(digits.get(2..)?.as_bytes());
        }
        Some(bytes)
    }

    fn read<E: serde::de::Error, T: Text>(text: &str) -> Result<T, E> {
        unescape(text).map(T::of).ok_or_else(|| E::custom("a backslash without its byte"))
    }

    pub(in super::super) fn serialize<T: Text, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        escape(value.bytes()).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, T: Text, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        read(&String::deserialize(deserializer)?)
    }

    pub(super) mod option {
        use super::*;

        pub(in super::super) fn serialize<T: Text, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
            value.as_ref().map(|value| escape(value.bytes())).serialize(serializer)
        }

        pub(in super::super) fn deserialize<'de, T: Text, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
            Option::<String>::deserialize(deserializer)?.as_deref().map(read).transpose()
        }
    }

    pub(super) mod list {
        use super::*;

        pub(in super::super) fn serialize<T: Text, S: Serializer>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(values.iter().map(|value| escape(value.bytes())))
        }

        pub(in super::super) fn deserialize<'de, T: Text, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
            Vec::<String>::deserialize(deserializer)?.iter().map(|text| read(text)).collect()
        }
    }

    pub(super) mod pairs {
        use super::*;

        pub(in super::super) fn serialize<T: Text, S: Serializer>(values: &[(T, T)], serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(values.iter().map(|(name, value)| (escape(name.bytes()), escape(value.bytes()))))
        }

        pub(in super::super) fn deserialize<'de, T: Text, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(T, T)>, D::Error> {
            let pairs = Vec::<(String, String)>::deserialize(deserializer)?;
            pairs.iter().map(|(name, value)| Ok((read::<D::Error, T>(name)?, read::<D::Error, T>(value)?))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(digit: char, name: &str) -> StorePath {
        StorePath::from_base_name(format!("{}-{name}", digit.to_string().repeat(32))).unwrap()
    }

    fn spec() -> BuildSpec {
        BuildSpec {
            drv_name: "hello.drv".to_owned(),
            traced: true,
            store_dir: StoreDir::new("/frx/store"),
            root: Some("/frx/store/x.drv.chroot/top".into()),
            build_dir: "/tmp/guix-build-hello.drv-3/top".into(),
            build_dir_inside: "/tmp/guix-build-hello.drv-0".into(),
            inputs: BTreeSet::from([path('1', "bash"), path('2', "source")]),
            outputs: vec![path('0', "hello")],
            extra_dirs: vec![("/opt".into(), "/frx/store/kept".into()), ("/bin/sh".into(), "/bin/dash".into())],
            builder_root: Vec::new(),
            host_files: Vec::new(),
            program: Program::Exec { path: "/frx/store/bash".into(), args: vec!["bash".into(), "-c".into(), "exit 1".into()] },
            env: BTreeMap::from([("out".into(), "/frx/store/hello".into()), ("EMPTY".into(), "".into()), ("b".into(), "\n".into())]),
            fixed_output: false,
            user: Some(UserIds { uid: 1000, gid: 999, groups: vec![999, 36] }),
            platform: "i686-linux".to_owned(),
            system: "x86_64-linux".to_owned(),
            impersonate_linux_26: true,
            isolate_host_loopback: false,
        }
    }

    fn host() -> HostFacts {
        HostFacts { kvm: true, terminals: true, network_files: BTreeSet::from(["/etc/hosts".into(), "/etc/resolv.conf".into()]) }
    }

    /// As measured with guix-daemon 1.5.0, in the order of its mounts.
    #[test]
    fn an_ordinary_builder() {
        let plan = Plan::confined(&spec(), &host()).unwrap();
        let expected = "\
builder of hello.drv
  runs /frx/store/bash
    argument 0: bash
    argument 1: -c
    argument 2: \"exit 1\"
  as user 1000, group 999, groups [999, 36]
  in /tmp/guix-build-hello.drv-0
  with umask 022, out-of-memory score 1000, 32 bits, Linux 2.6, fixed addresses
environment
  EMPTY=\"\"
  b=\"\\n\"
  out=/frx/store/hello
network: its own, loopback only
root: /frx/store/x.drv.chroot/top, seen as /, on localhost ((none))
  /tmp/ (mode 1777)
  /etc/ (mode 755)
  /etc/passwd: \"nixbld:x:1000:999:Nix build user:/:/noshell\\nnobody:x:65534:65534:Nobody:/:/noshell\\n\"
  /etc/group: \"nixbld:!:999:\\n\"
  /etc/hosts: \"127.0.0.1 localhost\\n::1 localhost\\n\"
  /frx/store/ (mode 1775, group 999)
  /dev/shm/ (mode 755)
  /dev/pts/ (mode 755)
  /dev/fd -> /proc/self/fd
  /dev/stdin -> /proc/self/fd/0
  /dev/stdout -> /proc/self/fd/1
  /dev/stderr -> /proc/self/fd/2
mounts
  /bin/sh read-write from /bin/dash
  /dev/full read-write
  /dev/kvm read-write
  /dev/null read-write
  /dev/random read-write
  /dev/tty read-write
  /dev/urandom read-write
  /dev/zero read-write
  /frx/store/11111111111111111111111111111111-bash read-only
  /frx/store/22222222222222222222222222222222-source read-only
  /opt read-only from /frx/store/kept
  /tmp/guix-build-hello.drv-0 read-write from /tmp/guix-build-hello.drv-3/top
  /proc its own processes
  /dev/shm in memory
  /dev/pts its own terminals
outputs
  /frx/store/00000000000000000000000000000000-hello
";
        assert_eq!(plan.to_string(), expected);
        let inputs = plan.mounts.iter().filter(|mount| mount.target().starts_with("/frx/store"));
        assert!(inputs.clone().all(|mount| matches!(mount, Mount::Bind { lookup: Lookup::Strict, read_only: true, .. })));
        assert_eq!(inputs.count(), 2);
    }

    #[test]
    fn a_fixed_output() {
        let fixed = BuildSpec { fixed_output: true, user: None, ..spec() };
        let plan = Plan::confined(&fixed, &host()).unwrap();
        assert_eq!(plan.network, Network::Private { loopback: false });
        assert_eq!(plan.identity, Identity::Namespace { uid: 30001, gid: 30000 });
        let bind = |target: &str| plan.mounts.iter().find(|mount| mount.target() == Path::new(target));
        assert!(matches!(bind("/etc/hosts"), Some(Mount::Bind { read_only: true, lookup: Lookup::Link, .. })));
        assert!(bind("/etc/services").is_none(), "the host has none");
        assert!(!plan.entries.iter().any(|entry| matches!(entry, Entry::File { path, .. } if path == Path::new("/etc/hosts"))));
        assert!(plan.entries.iter().all(|entry| !matches!(entry, Entry::Dir { gid: Some(_), .. })));
        let isolated = Plan::confined(&BuildSpec { isolate_host_loopback: true, ..fixed.clone() }, &host()).unwrap();
        assert_eq!(isolated.network, Network::Private { loopback: true });
        // A builder inside the daemon has the host's network, and files with the builder's rights only.
        let program = Program::Builtin { name: "download".to_owned(), network: true, input: b"{}".to_vec() };
        let files = vec!["/srv/a".into(), "/srv/../b".into(), "c".into()];
        let builtin = Plan::confined(&BuildSpec { program, host_files: files, ..fixed }, &host()).unwrap();
        assert_eq!(builtin.network, Network::Host);
        let read: Vec<_> = builtin.mounts.iter().filter(|mount| matches!(mount, Mount::Bind { lookup: Lookup::AsBuilder, .. })).collect();
        assert_eq!(read.iter().map(|mount| mount.target()).collect::<Vec<_>>(), [Path::new("/srv/a")]);
    }

    /// A link on the way to what is shown could lead anywhere, so none is followed.
    #[test]
    fn what_a_derivation_adds() {
        let source = PathBuf::from("/frx/store/11111111111111111111111111111111-bash/usr");
        let spec = BuildSpec { builder_root: vec![("/usr".into(), source.clone())], ..spec() };
        for plan in [Plan::confined(&spec, &host()).unwrap(), Plan::jailed(&spec, &host(), &[]).unwrap()] {
            let expected = Mount::Bind { source: source.clone(), target: "/usr".into(), read_only: true, lookup: Lookup::Strict };
            assert!(plan.mounts.contains(&expected), "{plan}");
        }
    }

    #[test]
    fn what_the_site_adds() {
        for bad in ["relative", "/a/../../etc"] {
            let spec = BuildSpec { extra_dirs: vec![(bad.into(), "/srv".into())], ..spec() };
            assert!(matches!(Plan::confined(&spec, &host()), Err(Error::Directory { .. })), "{bad}");
        }
        // With the host's devices there are none of ours.
        let devices = BuildSpec { extra_dirs: vec![("/dev".into(), "/dev".into())], ..spec() };
        let plan = Plan::confined(&devices, &host()).unwrap();
        assert!(!plan.entries.iter().any(|entry| matches!(entry, Entry::Link { .. })));
        assert!(!plan.mounts.iter().any(|mount| matches!(mount, Mount::Terminals { .. }) || mount.target() == Path::new("/dev/null")));
        // What is to be built is not shown, even if the site adds it.
        let output = PathBuf::from("/frx/store/00000000000000000000000000000000-hello");
        let spec = BuildSpec { extra_dirs: vec![(output.clone(), output.clone())], ..spec() };
        assert!(!Plan::confined(&spec, &host()).unwrap().mounts.iter().any(|mount| mount.target() == output));
    }

    #[test]
    fn no_sandbox() {
        let spec = BuildSpec { root: None, user: None, ..spec() };
        let plan = Plan::confined(&spec, &host()).unwrap();
        assert_eq!(plan, Plan::unconfined(&spec).unwrap());
        assert_eq!((&plan.root, &plan.identity, plan.network), (&Root::Host, &Identity::Daemon, Network::Host));
        assert!(plan.mounts.is_empty() && plan.entries.is_empty());
    }

    proptest! {
        /// The spawner gets what the daemon planned, whatever bytes are in it.
        #[test]
        fn plans_arrive_as_they_are(name in prop::collection::vec(any::<u8>(), 0..20), value in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut plan = Plan::confined(&spec(), &host()).unwrap();
            plan.env.push((name.clone().into(), value.clone().into()));
            plan.program = Program::Exec { path: value.clone().into(), args: vec![name.clone().into(), "\\x5c\\".into()] };
            let sent = serde_json::to_vec(&plan).unwrap();
            prop_assert_eq!(&serde_json::from_slice::<Plan>(&sent).unwrap(), &plan);
            plan.program = Program::Builtin { name: "x".to_owned(), network: false, input: value };
            let sent = serde_json::to_vec(&plan).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Plan>(&sent).unwrap(), plan);
        }
    }
}
