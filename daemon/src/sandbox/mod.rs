//! Builders and what they may see, be and do.
//!
//! [`BuildSpec`] says what is to be built, a [`Sandbox`] makes a [`Plan`] of it, which is plain data, and starts the builder as the plan says. All
//! processes are started by the [`spawner`]. See `docs/design/sandbox.md`.

mod child;
pub mod jails;
#[cfg(target_os = "freebsd")]
mod keeper;
#[cfg(target_os = "linux")]
mod linux;
mod none;
pub mod plan;
pub mod spawner;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;

use serde::{Deserialize, Serialize};

#[cfg(target_os = "linux")]
pub use linux::LinuxNamespaces;
pub use none::Unconfined;
pub use plan::{BuildSpec, HostFacts, Plan, Program, UserIds};
pub use spawner::{Running, SpawnerHandle};

/// What a platform that gives builders a root of their own knows of the site.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// What every builder may use at most. Where the platform cannot limit that, this has no effect.
    pub limits: Vec<plan::Limit>,
}

/// The way of this platform to give builders a root of their own.
#[must_use]
pub fn confining(spawner: SpawnerHandle, site: Site) -> std::sync::Arc<dyn Sandbox> {
    #[cfg(target_os = "linux")]
    return std::sync::Arc::new({
        let Site { limits: _ } = site;
        LinuxNamespaces::new(spawner, HostFacts::probe())
    });
    #[cfg(target_os = "freebsd")]
    return std::sync::Arc::new(FreebsdJails { spawner, host: HostFacts::probe(), site });
}

/// The plan that [`confining`] would make, for a look at it.
///
/// # Errors
/// What is asked for cannot be had.
pub fn confined_plan(spec: &BuildSpec, site: &Site) -> Result<Plan, Error> {
    let host = HostFacts::probe();
    if cfg!(target_os = "freebsd") { Plan::jailed(spec, &host, &site.limits) } else { Plan::confined(spec, &host) }
}

/// Runs builders in jails.
#[cfg(target_os = "freebsd")]
#[derive(Clone, Debug)]
struct FreebsdJails {
    spawner: SpawnerHandle,
    host: HostFacts,
    site: Site,
}

#[cfg(target_os = "freebsd")]
impl Sandbox for FreebsdJails {
    fn name(&self) -> &'static str {
        "jails"
    }

    fn plan(&self, spec: &BuildSpec) -> Result<Plan, Error> {
        Plan::jailed(spec, &self.host, &self.site.limits)
    }

    fn start<'a>(&'a self, plan: &'a Plan, output: OwnedFd) -> Starting<'a> {
        Box::pin(self.spawner.start_builder(plan, output))
    }
}

/// A builder inside the daemon: takes its input, returns its exit status. It runs in a process of its own, confined like any builder.
pub type Builtin = fn(&[u8]) -> i32;
/// Finds a [`Builtin`] by its name, with or without `builtin:`.
pub type Builtins = fn(&str) -> Option<Builtin>;

/// What can go wrong before a builder runs. None of these leaves a process or a mount behind.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory that the site wants in all sandboxes is not an absolute path without `..`: builds fail until the daemon's flag is corrected.
    #[error("cannot show `{}' in the sandbox: not an absolute file name without `..'", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// The builder's surroundings could not be made: the build fails, its program did not run.
    #[error("while setting up the child process: {step}{}: {source}", shown(path))]
    Setup {
        /// What was being done.
        step: String,
        /// To which path; empty where there is none.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The builder ended before it had its surroundings, without saying why; it may have been killed.
    #[error("while setting up the child process: it ended, {status}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
    },
    /// The spawner could not be started, or not be told: nothing can be built.
    #[error("{doing}: {source}")]
    Spawner {
        /// What was being done.
        doing: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// The spawner is gone, and with it all builders: nothing can be built any more, and the daemon has to be started anew.
    #[error("the process that starts builders is gone")]
    Gone,
    /// The plan and this platform do not go together.
    #[error("cannot run `{name}': {reason}")]
    Plan {
        /// The derivation.
        name: String,
        /// Why not.
        reason: String,
    },
}

fn shown(path: &std::path::Path) -> String {
    if path.as_os_str().is_empty() { String::new() } else { format!(" `{}'", path.display()) }
}

/// How a builder ended. Displayed in upstream's words: "failed with exit code 1".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl ExitStatus {
    /// Whether it exited with code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == ExitStatus::Code(0)
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ExitStatus::Code(0) => f.write_str("succeeded"),
            ExitStatus::Code(code) => write!(f, "failed with exit code {code}"),
            ExitStatus::Signal(signal) => match signal_description(signal) {
                Some(description) => write!(f, "failed due to signal {signal} ({description})"),
                None => write!(f, "failed due to signal {signal} (Unknown signal {signal})"),
            },
        }
    }
}

/// What the GNU C library calls a signal.
fn signal_description(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGHUP => "Hangup",
        libc::SIGINT => "Interrupt",
        libc::SIGQUIT => "Quit",
        libc::SIGILL => "Illegal instruction",
        libc::SIGTRAP => "Trace/breakpoint trap",
        libc::SIGABRT => "Aborted",
        libc::SIGBUS => "Bus error",
        libc::SIGFPE => "Floating point exception",
        libc::SIGKILL => "Killed",
        libc::SIGUSR1 => "User defined signal 1",
        libc::SIGSEGV => "Segmentation fault",
        libc::SIGUSR2 => "User defined signal 2",
        libc::SIGPIPE => "Broken pipe",
        libc::SIGALRM => "Alarm clock",
        libc::SIGTERM => "Terminated",
        libc::SIGXCPU => "CPU time limit exceeded",
        libc::SIGXFSZ => "File size limit exceeded",
        libc::SIGVTALRM => "Virtual timer expired",
        libc::SIGPROF => "Profiling timer expired",
        libc::SIGIO => "I/O possible",
        libc::SIGSYS => "Bad system call",
        _ => return None,
    })
}

/// A future that can be a trait's method.
pub type Starting<'a> = Pin<Box<dyn Future<Output = Result<Running, Error>> + Send + 'a>>;

/// A way of running builders.
pub trait Sandbox: Send + Sync {
    /// Its name, for messages.
    fn name(&self) -> &'static str;

    /// How a builder will run. Nothing is touched yet.
    ///
    /// # Errors
    /// What is asked for cannot be had.
    fn plan(&self, spec: &BuildSpec) -> Result<Plan, Error>;

    /// Starts a builder. Its standard output and error go to `output`. When the result is dropped, as when the future is, the builder and all
    /// its processes are killed.
    ///
    /// # Errors
    /// Its surroundings could not be made.
    fn start<'a>(&'a self, plan: &'a Plan, output: OwnedFd) -> Starting<'a>;
}
