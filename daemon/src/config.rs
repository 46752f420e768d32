//! Flags, environment and the settings that follow from them.
//!
//! The flags are guix-daemon's, with their meaning, so that `fruixd` can stand wherever a script starts `guix-daemon`; fruixd's own come last.
//! The environment variables are upstream's too. [`Flags`] is the one declaration: help, parsing and defaults follow from it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use fruix_drv::StoreDir;

use crate::error::Error;

/// The default store directory, when neither `NIX_STORE_DIR` nor `NIX_STORE` says otherwise.
pub const DEFAULT_STORE_DIR: &str = "/frx/store";
/// The default state directory of a store that is not one of the well-known ones.
pub const DEFAULT_STATE_DIR: &str = "/frx/var";
/// The default configuration directory.
pub const DEFAULT_CONFIG_DIR: &str = "/frx/etc";
/// The port of `--listen=HOST`.
pub const DEFAULT_PORT: u16 = 44146;
/// The longest line that a builder may write before it is passed on in pieces, in bytes.
pub const READ_CHUNK: usize = 64 * 1024;

/// How build logs are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogCompression {
    /// Plain text.
    None,
    /// gzip, the default.
    Gzip,
    /// bzip2.
    Bzip2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
enum YesNo {
    #[value(alias = "YES", alias = "Yes")]
    Yes,
    #[value(alias = "NO", alias = "No")]
    No,
}

/// The command line of `fruixd`.
#[derive(Debug, Parser)]
#[command(
    name = "fruixd",
    version,
    about = "Perform derivation builds and store accesses",
    long_about = "fruixd is a build daemon: it serves the requests of unmodified Guix clients on a Unix-domain socket, keeps the store, and \
runs builds in a sandbox.\n\nIt works on /frx/store unless NIX_STORE_DIR names another store; for /gnu/store the state directory is \
/var/guix as usual, so `NIX_STORE_DIR=/gnu/store fruixd --build-users-group=guixbuild` takes the place of guix-daemon.",
    after_help = "Environment: NIX_STORE_DIR, GUIX_STATE_DIRECTORY (or NIX_STATE_DIR), GUIX_LOG_DIRECTORY, GUIX_DATABASE_DIRECTORY, \
GUIX_CONFIGURATION_DIRECTORY, TMPDIR, LISTEN_FDS (socket activation), FRUIXD_LOG (tracing filter)."
)]
pub struct Flags {
    /// Assume SYSTEM as the current system type
    #[arg(long, value_name = "SYSTEM")]
    system: Option<String>,
    /// Use N CPU cores to build each derivation; 0 means as many as available
    #[arg(short = 'c', long, value_name = "N", default_value_t = 0)]
    cores: u64,
    /// Allow at most N build jobs at once for each user
    #[arg(short = 'M', long, value_name = "N", default_value_t = 1)]
    max_jobs: u64,
    /// Mark builds as failed after SECONDS of activity
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 3600)]
    timeout: u64,
    /// Mark builds as failed after SECONDS of silence
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    max_silent_time: u64,
    /// Disable chroot builds: builders see the whole machine
    #[arg(long)]
    disable_chroot: bool,
    /// Add DIR to the build chroot (DIR or TARGET=SOURCE); may be given several times
    #[arg(long, value_name = "DIR")]
    chroot_directory: Vec<String>,
    /// Perform builds as a user of GROUP
    #[arg(long, value_name = "GROUP")]
    build_users_group: Option<String>,
    /// Do not use substitutes
    #[arg(long)]
    no_substitutes: bool,
    /// Use URLS as the default list of substitute providers
    #[arg(long, value_name = "URLS")]
    substitute_urls: Option<String>,
    /// Do not attempt to offload builds
    #[arg(long, alias = "no-build-hook")]
    no_offload: bool,
    /// Cache build failures
    #[arg(long)]
    cache_failures: bool,
    /// Build each derivation N times in a row
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: u64,
    /// Do not keep build logs
    #[arg(long)]
    lose_logs: bool,
    /// Disable compression of the build logs
    #[arg(long, hide = true)]
    disable_log_compression: bool,
    /// Use the specified compression type for build logs
    #[arg(long, value_name = "TYPE", value_enum, default_value = "gzip")]
    log_compression: LogCompression,
    /// Use substitute servers discovered on the local network
    #[arg(long, value_name = "yes/no", num_args = 0..=1, require_equals = true, default_missing_value = "yes", ignore_case = true)]
    discover: Option<YesNo>,
    /// Disable automatic file "deduplication" in the store
    #[arg(long, alias = "disable-store-optimization")]
    disable_deduplication: bool,
    /// Impersonate Linux 2.6
    #[arg(long = "impersonate-linux-2.6")]
    impersonate_linux_26: bool,
    /// Tell whether the GC must keep outputs of live derivations
    #[arg(long, value_name = "yes/no", num_args = 0..=1, require_equals = true, default_missing_value = "yes", ignore_case = true)]
    gc_keep_outputs: Option<YesNo>,
    /// Tell whether the GC must keep derivations corresponding to live outputs
    #[arg(long, value_name = "yes/no", num_args = 0..=1, require_equals = true, default_missing_value = "yes", ignore_case = true)]
    gc_keep_derivations: Option<YesNo>,
    /// Have additions on the disk before they are acknowledged, not a second later
    #[arg(long)]
    sync_additions: bool,
    /// Listen for connections on SOCKET: a file name, HOST or HOST:PORT; may be given several times
    #[arg(long, value_name = "SOCKET")]
    listen: Vec<String>,
    #[command(flatten)]
    platform: crate::platform::Flags,
    /// Produce debugging output
    #[arg(long)]
    debug: bool,
    /// Do not allow fixed-output chroot builds to access the host loopback
    #[arg(long)]
    isolate_host_loopback: bool,
    /// Print what a build of DRV would see and do, and exit
    #[arg(long, value_name = "DRV")]
    pub explain: Option<String>,
    /// Look for damage in the store, the database, roots and logs, changing nothing, and exit
    #[arg(long, value_name = "DEPTH", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "structure")]
    pub verify_store: Option<crate::check::Depth>,
    /// Serve even if the store has items that the database does not know (they count as garbage)
    #[arg(long)]
    adopt_empty_database: bool,
}

/// What the daemon does unless a client asks otherwise; made once, at start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The store directory.
    pub store_dir: StoreDir,
    /// The state directory (`/frx/var`, `/var/guix`).
    pub state_dir: PathBuf,
    /// The directory above `drvs`, where build logs go.
    pub log_dir: PathBuf,
    /// The directory of `db.sqlite`.
    pub db_dir: PathBuf,
    /// The configuration directory.
    pub config_dir: PathBuf,
    /// The system type of this machine, such as `x86_64-linux`.
    pub system: String,
    /// Cores a build may use; 0: all.
    pub cores: u64,
    /// Builds at once.
    pub max_jobs: u64,
    /// Seconds a build may take; 0: no limit.
    pub timeout: u64,
    /// Seconds a build may be silent; 0: no limit.
    pub max_silent_time: u64,
    /// Rounds of each build, at least 1.
    pub rounds: u64,
    /// Whether builds run in a sandbox.
    pub use_chroot: bool,
    /// What the site adds to the sandbox: target and source.
    pub chroot_dirs: Vec<(PathBuf, PathBuf)>,
    /// The group whose members run builds.
    pub build_users_group: Option<String>,
    /// Whether failures are remembered.
    pub cache_failures: bool,
    /// Whether logs are kept, and how.
    pub log_compression: Option<LogCompression>,
    /// Whether files in the store are shared by hard links.
    pub deduplicate: bool,
    /// Whether builders see a Linux 2.6.
    pub impersonate_linux_26: bool,
    /// Whether the collector keeps outputs of live derivations.
    pub gc_keep_outputs: bool,
    /// Whether the collector keeps derivers of live outputs.
    pub gc_keep_derivations: bool,
    /// Whether additions are on the disk before they are acknowledged.
    pub sync_additions: bool,
    /// Whether fixed-output builds are kept from the host's loopback.
    pub isolate_host_loopback: bool,
    /// What every builder may use at most, where the platform can limit that.
    pub limits: Vec<crate::sandbox::plan::Limit>,
    /// Builds must not run where it cannot.
    pub require_limits: bool,
    /// Where to listen, unless a supervisor passed sockets.
    pub listen: Vec<Listen>,
    /// Whether to say what is done in detail.
    pub debug: bool,
    /// Whether to serve a store that the database does not know.
    pub adopt_empty_database: bool,
    /// Whether the store directory's name may lead through a symbolic link (`NIX_IGNORE_SYMLINK_STORE=1`).
    pub allow_symlinked_store: bool,
    /// Where build directories are made.
    pub tmp_dir: PathBuf,
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A Unix-domain socket.
    Unix(PathBuf),
    /// A host and a port.
    Tcp(String, u16),
}

impl Listen {
    fn parse(text: &str) -> Result<Listen, Error> {
        if text.starts_with('/') {
            return Ok(Listen::Unix(PathBuf::from(text)));
        }
        match text.rsplit_once(':') {
            None => Ok(Listen::Tcp(text.to_owned(), DEFAULT_PORT)),
            Some((host, port)) => {
                let port = port.parse().map_err(|_| Error::Usage(format!("`--listen={text}': `{port}' is not a port number")))?;
                Ok(Listen::Tcp(host.trim_matches(['[', ']']).to_owned(), port))
            }
        }
    }
}

impl Flags {
    /// Those of this platform.
    #[must_use]
    pub fn platform(&self) -> &crate::platform::Flags {
        &self.platform
    }
}

/// Where things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The store directory.
    pub store_dir: StoreDir,
    /// The state directory.
    pub state_dir: PathBuf,
    /// Where the logs of builds are.
    pub log_dir: PathBuf,
    /// Where the database is.
    pub db_dir: PathBuf,
    /// Where the configuration is.
    pub config_dir: PathBuf,
}

impl Places {
    /// What the environment, looked up through `env`, says, and what follows from that.
    pub fn new(env: impl Fn(&str) -> Option<String>) -> Result<Places, Error> {
        let get = |names: &[&str]| names.iter().find_map(|name| env(name).filter(|value| !value.is_empty()));
        let store = get(&["NIX_STORE_DIR", "NIX_STORE"]).unwrap_or_else(|| DEFAULT_STORE_DIR.to_owned());
        let store = store.trim_end_matches('/');
        let store_dir = StoreDir::checked(store).map_err(|error| Error::Usage(format!("store directory `{store}': {error}")))?;
        // A store has its usual state directory, so that naming the store is enough to stand in for another daemon.
        let (state, log, config) = match store {
            "/gnu/store" => ("/var/guix", Some("/var/log/guix"), "/etc/guix"),
            "/nix/store" => ("/nix/var/nix", Some("/nix/var/log/nix"), "/etc/nix"),
            _ => (DEFAULT_STATE_DIR, None, DEFAULT_CONFIG_DIR),
        };
        let given_state = get(&["GUIX_STATE_DIRECTORY", "NIX_STATE_DIR"]);
        let state_dir = PathBuf::from(given_state.as_deref().unwrap_or(state));
        let log_dir = get(&["GUIX_LOG_DIRECTORY", "NIX_LOG_DIR"])
            .map(PathBuf::from)
            .or_else(|| log.filter(|_| given_state.is_none()).map(PathBuf::from))
            .unwrap_or_else(|| state_dir.join("log"));
        let db_dir = get(&["GUIX_DATABASE_DIRECTORY", "NIX_DB_DIR"]).map_or_else(|| state_dir.join("db"), PathBuf::from);
        let config_dir = get(&["GUIX_CONFIGURATION_DIRECTORY", "NIX_CONF_DIR"]).map_or_else(|| PathBuf::from(config), PathBuf::from);
        for dir in [&state_dir, &log_dir, &db_dir, &config_dir] {
            if !dir.is_absolute() {
                return Err(Error::Usage(format!("`{}' is not an absolute directory name", dir.display())));
            }
        }
        Ok(Places { store_dir, state_dir, log_dir, db_dir, config_dir })
    }
}

impl Settings {
    /// The settings that `flags` and the environment, looked up through `env`, give.
    pub fn new(flags: &Flags, env: impl Fn(&str) -> Option<String>) -> Result<Settings, Error> {
        let Places { store_dir, state_dir, log_dir, db_dir, config_dir } = Places::new(&env)?;
        let mut seen = BTreeSet::new();
        let mut chroot_dirs = Vec::new();
        for dir in &flags.chroot_directory {
            let (target, source) = dir.split_once('=').unwrap_or((dir, dir));
            if !target.starts_with('/') || !source.starts_with('/') {
                return Err(Error::Usage(format!("`--chroot-directory={dir}': both sides must be absolute file names")));
            }
            if seen.insert(target.to_owned()) {
                chroot_dirs.push((PathBuf::from(target), PathBuf::from(source)));
            }
        }
        let mut listen = flags.listen.iter().map(|text| Listen::parse(text)).collect::<Result<Vec<_>, _>>()?;
        if listen.is_empty() {
            listen.push(Listen::Unix(state_dir.join("daemon-socket/socket")));
        }
        Ok(Settings {
            store_dir,
            log_dir,
            db_dir,
            config_dir,
            system: flags.system.clone().unwrap_or_else(|| this_system().to_owned()),
            cores: flags.cores,
            max_jobs: flags.max_jobs,
            timeout: flags.timeout,
            max_silent_time: flags.max_silent_time,
            rounds: flags.rounds.max(1),
            use_chroot: !flags.disable_chroot,
            chroot_dirs,
            build_users_group: flags.build_users_group.clone().filter(|group| !group.is_empty()),
            cache_failures: flags.cache_failures,
            log_compression: match (flags.lose_logs, flags.disable_log_compression) {
                (true, _) => None,
                (false, true) => Some(LogCompression::None),
                (false, false) => Some(flags.log_compression),
            },
            deduplicate: !flags.disable_deduplication,
            impersonate_linux_26: flags.impersonate_linux_26,
            gc_keep_outputs: flags.gc_keep_outputs == Some(YesNo::Yes),
            gc_keep_derivations: flags.gc_keep_derivations != Some(YesNo::No),
            sync_additions: flags.sync_additions,
            isolate_host_loopback: flags.isolate_host_loopback,
            limits: flags.platform.limits().map_err(Error::request)?,
            require_limits: flags.platform.require_limits(),
            listen,
            debug: flags.debug,
            adopt_empty_database: flags.adopt_empty_database,
            allow_symlinked_store: env("NIX_IGNORE_SYMLINK_STORE").is_some_and(|value| value == "1"),
            tmp_dir: env("TMPDIR").filter(|value| !value.is_empty()).map_or_else(|| PathBuf::from("/tmp"), PathBuf::from),
            state_dir,
        })
    }

    /// What was asked for that this build of fruixd does without: said once, at start.
    pub fn remarks(flags: &Flags) -> Vec<String> {
        let mut remarks = Vec::new();
        if !flags.no_substitutes {
            remarks.push("substitutes are off: everything is built here".to_owned());
        }
        if flags.discover == Some(YesNo::Yes) {
            remarks.push("`--discover' has no effect while substitutes are off".to_owned());
        }
        remarks
    }
}

/// The system type this program was compiled for, in Guix's words.
#[must_use]
pub fn this_system() -> &'static str {
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        "x86_64-linux"
    } else if cfg!(all(target_os = "linux", target_arch = "aarch64")) {
        "aarch64-linux"
    } else if cfg!(all(target_os = "freebsd", target_arch = "x86_64")) {
        "x86_64-freebsd"
    } else if cfg!(all(target_os = "freebsd", target_arch = "aarch64")) {
        "aarch64-freebsd"
    } else {
        "unknown"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(args: &[&str], env: &[(&str, &str)]) -> Result<Settings, Error> {
        let flags = Flags::try_parse_from(std::iter::once(&"fruixd").chain(args)).unwrap();
        Settings::new(&flags, |name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn every_flag_of_guix_daemon_is_taken() {
        let all = [
            "--system=x86_64-linux",
            "--cores=2",
            "-c",
            "3",
            "--max-jobs=2",
            "-M4",
            "--timeout=5",
            "--max-silent-time=6",
            "--disable-chroot",
            "--chroot-directory=/a",
            "--chroot-directory=/b=/c",
            "--build-users-group=guixbuild",
            "--no-substitutes",
            "--substitute-urls=x y",
            "--no-offload",
            "--cache-failures",
            "--rounds=3",
            "--lose-logs",
            "--disable-log-compression",
            "--log-compression=bzip2",
            "--discover",
            "--discover=no",
            "--disable-deduplication",
            "--impersonate-linux-2.6",
            "--gc-keep-outputs",
            "--gc-keep-derivations=no",
            "--listen=/x",
            "--listen=localhost",
            "--listen=[::1]:4",
            "--debug",
            "--isolate-host-loopback",
        ];
        for arg in all.iter().filter(|arg| !["-c", "3"].contains(*arg)) {
            assert!(Flags::try_parse_from(["fruixd", arg]).is_ok(), "{arg}");
        }
        for alias in ["--no-build-hook", "--disable-store-optimization", "--discover=YES"] {
            assert!(Flags::try_parse_from(["fruixd", alias]).is_ok(), "{alias}");
        }
        let got =
            settings(&["--listen=/x", "--listen=h", "--listen=[::1]:4", "--gc-keep-outputs", "--chroot-directory=/b=/c"], &[]).unwrap();
        assert_eq!(got.listen, [Listen::Unix("/x".into()), Listen::Tcp("h".into(), 44146), Listen::Tcp("::1".into(), 4)]);
        assert!(got.gc_keep_outputs && got.gc_keep_derivations);
        assert_eq!(got.chroot_dirs, [(PathBuf::from("/b"), PathBuf::from("/c"))]);
    }

    #[test]
    fn a_store_has_its_usual_state() {
        let ours = settings(&[], &[]).unwrap();
        assert_eq!((ours.store_dir.as_str(), ours.state_dir.to_str()), ("/frx/store", Some("/frx/var")));
        assert_eq!(ours.log_dir, PathBuf::from("/frx/var/log"));
        let guix = settings(&[], &[("NIX_STORE_DIR", "/gnu/store/")]).unwrap();
        assert_eq!(guix.state_dir, PathBuf::from("/var/guix"));
        assert_eq!(guix.log_dir, PathBuf::from("/var/log/guix"));
        assert_eq!(guix.listen, [Listen::Unix("/var/guix/daemon-socket/socket".into())]);
        assert!(settings(&[], &[("GUIX_STATE_DIRECTORY", "relative")]).is_err());
        assert!(settings(&["--listen=host:port"], &[]).is_err());
    }
}
