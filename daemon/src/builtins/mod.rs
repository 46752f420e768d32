//! Builders that the daemon has inside itself: `builtin:download`, `builtin:git-download`, and those of FreeBSD systems.
//!
//! They run as a build user in the sandbox of a fixed-output derivation: the spawner's child, once it is confined, calls the
//! function that [`lookup`] gives for the builder's name, with a [`BuiltinInput`] as JSON, and exits with its result. Nothing is
//! read but the input, the store files that the derivation names, the CA bundle and what the C library needs to resolve names
//! (`/etc/resolv.conf`, `/etc/hosts`). `docs/design/builtins.md` says what is as upstream and what is not.

pub mod ca;
pub mod download;
pub mod freebsd_image;
pub mod freebsd_pkg;
pub mod freebsd_source;
pub mod freebsd_system;
pub mod git_download;
mod http;
pub mod mirrors;
pub mod sexp;
pub mod url;

use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Exit status of a builder that did its work, and (as with guix-daemon) of one that found its file nowhere: the daemon then
/// reports that the output is missing.
pub const EXIT_DONE: i32 = 0;
/// Exit status of a builder that refuses its derivation or cannot write.
pub const EXIT_FAILED: i32 = 1;

/// All that a built-in builder is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltinInput {
    /// The derivation's file name, for messages.
    pub drv_path: String,
    /// The store directory, such as `/gnu/store`; files that the derivation names must lie in it.
    pub store_dir: String,
    /// The derivation's environment, with the values of its `impureEnvVars` filled in. Bytes that are not UTF-8 are to be replaced.
    pub env: Vec<(String, String)>,
    /// The derivation's outputs.
    pub outputs: Vec<BuiltinOutput>,
    /// File with the certificate authorities to trust, PEM; without one the list compiled in (Mozilla's) is used. See [`ca`].
    #[serde(default)]
    pub ca_bundle: Option<PathBuf>,
    /// The `git` program, where there is one.
    #[serde(default)]
    pub git: Option<PathBuf>,
    /// Whether the client asked for `print-extended-build-trace`: progress then comes as `@ download-…` lines.
    #[serde(default)]
    pub extended_trace: bool,
    /// Whether `file:` URLs may be read, with the builder's rights. Only for a builder with a user of its own: where builders run
    /// as the daemon's user, such a URL would read what is the daemon's alone, its signing key for one. Upstream reads none.
    #[serde(default)]
    pub allow_file: bool,
    /// How long to wait for servers.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// An output of the derivation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltinOutput {
    /// `out`, or another name.
    pub name: String,
    /// Its store path.
    pub path: String,
    /// Where to write it, if not at `path` (as when checking a build).
    #[serde(default)]
    pub write_to: Option<PathBuf>,
    /// Hash algorithm as in the derivation: `sha256`, `r:sha256`, …; empty if the output is not fixed.
    pub hash_algo: String,
    /// Expected hash, hexadecimal; empty if the output is not fixed.
    pub hash: String,
}

impl BuiltinOutput {
    fn target(&self) -> &Path {
        self.write_to.as_deref().unwrap_or(Path::new(&self.path))
    }
}

/// Patience with servers, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// For resolving a name.
    pub resolve: u64,
    /// For connecting, TLS included.
    pub connect: u64,
    /// For the headers of an answer.
    pub respond: u64,
    /// For the next bytes of a body. A slow download may take as long as the daemon's own timeouts let it.
    pub stall: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { resolve: 20_000, connect: 20_000, respond: 60_000, stall: 60_000 }
    }
}

impl Timeouts {
    fn duration(ms: u64) -> Option<Duration> {
        Some(Duration::from_millis(ms.max(1)))
    }
}

impl BuiltinInput {
    fn get(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The output `out`, which must be fixed.
    fn fixed_output(&self) -> Result<&BuiltinOutput, BuiltinError> {
        self.outputs
            .iter()
            .find(|o| o.name == "out" && !o.hash.is_empty() && !o.hash_algo.is_empty())
            .ok_or_else(|| BuiltinError::NotFixed { drv: self.drv_path.clone() })
    }

    /// Whether the derivation's `download-methods`, if it has any, names `method`.
    fn method_enabled(&self, method: &str) -> Result<bool, BuiltinError> {
        let Some(text) = self.get("download-methods") else {
            return Ok(true);
        };
        Ok(match self.datum("download-methods", text)? {
            sexp::Datum::Bool(false) => true,
            datum => datum.as_list().unwrap_or(&[]).iter().any(|d| d.as_atom() == Some(method)),
        })
    }

    fn datum(&self, name: &'static str, text: &str) -> Result<sexp::Datum, BuiltinError> {
        sexp::read(text).map_err(|source| BuiltinError::Datum { drv: self.drv_path.clone(), name, source })
    }

    /// Refuses what no builder here may fetch: texts that are no URL, and (unless allowed) local files.
    fn check_url(&self, text: &str) -> Result<url::Url, BuiltinError> {
        let url = url::Url::parse(text).ok_or_else(|| BuiltinError::BadUrl { url: sexp::quoted(text) })?;
        if url.scheme == "file" && !self.allow_file {
            return Err(BuiltinError::LocalUrl { url: sexp::quoted(text) });
        }
        Ok(url)
    }
}

/// Why a built-in builder gives up. The wording of the first seven is guix-daemon's.
#[derive(Debug, thiserror::Error)]
pub enum BuiltinError {
    /// The output has no hash, so nothing says what should be downloaded: the derivation must be changed.
    #[error("{drv} is not a fixed-output derivation")]
    NotFixed {
        /// The derivation.
        drv: String,
    },
    /// The environment lacks a variable without which there is nothing to do.
    #[error("{drv}: missing {what}")]
    Missing {
        /// The derivation.
        drv: String,
        /// `URL`, `Git URL` or `Git commit`.
        what: &'static str,
    },
    /// The text is no URL that could be requested.
    #[error("URL {url} can't be decoded")]
    BadUrl {
        /// The text as a Scheme string.
        url: String,
    },
    /// A `file:` URL where local files must not be read.
    #[error("URL {url} is for a local file")]
    LocalUrl {
        /// The URL as a Scheme string.
        url: String,
    },
    /// The derivation names a file outside the store.
    #[error("{path} is not in the store")]
    NotInStore {
        /// Its name, resolved, as a Scheme string.
        path: String,
    },
    /// No entry for this name in the mirror list.
    #[error("unsupported URL mirror kind {kind} in {url}")]
    UnknownMirror {
        /// The name.
        kind: String,
        /// The URL.
        url: String,
    },
    /// Run as root, which would read and write files that are not the client's to see.
    #[error("refusing to run with elevated privileges (UID 0)")]
    Privileged,
    /// A variable or file of the derivation is not the Scheme datum it should be.
    #[error("{drv}: {name}: {source}")]
    Datum {
        /// The derivation.
        drv: String,
        /// The variable.
        name: &'static str,
        /// What is wrong.
        source: sexp::SexpError,
    },
    /// A variable is a datum of the wrong kind.
    #[error("{drv}: {name}: expected {expected}")]
    Shape {
        /// The derivation.
        drv: String,
        /// The variable.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// The commit could be taken for an option or a reference specification by git.
    #[error("{commit} is not a Git commit, tag or branch")]
    BadCommit {
        /// The text as a Scheme string.
        commit: String,
    },
    /// A scheme that git is not allowed to use here.
    #[error("cannot clone {url}: only http, https and git URLs are supported")]
    GitScheme {
        /// The URL.
        url: String,
    },
    /// The host has no git: it must be installed there, or the derivation built elsewhere.
    #[error("this build daemon has no `git' program, which `builtin:git-download' needs")]
    NoGit,
    /// The output or a file of the derivation could not be read or written.
    #[error("{action} `{path}': {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The spawner passed something that is no [`BuiltinInput`].
    #[error("reading the request: {source}")]
    Input {
        /// Why it failed.
        source: serde_json::Error,
    },
    /// A server did not give the file. The next URL is tried.
    #[error("download failed {url} {reason}")]
    Fetch {
        /// The URL as a Scheme string.
        url: String,
        /// Status or reason.
        reason: String,
    },
    /// A system cannot be made as its derivation asks.
    #[error("{drv}: {reason}")]
    System {
        /// The derivation.
        drv: String,
        /// Why, in words for the user.
        reason: String,
    },
    /// The CA bundle is missing or holds no certificate: no server can be authenticated.
    #[error("CA certificates in `{path}': {reason}")]
    CaBundle {
        /// The file.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
}

impl BuiltinError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BuiltinError {
        let path = path.to_owned();
        move |source| BuiltinError::Io { action, path, source }
    }
}

type Builtin = fn(&BuiltinInput, &mut dyn Write) -> Result<(), BuiltinError>;

/// What a built-in builder reaches beyond its sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Nothing: what it makes depends on its inputs alone.
    Inputs,
    /// The network.
    Network,
    /// The network, and the files that `file:` URLs name.
    Files,
}

/// The built-in builders: those of guix-daemon 1.5.0, and ours for FreeBSD systems.
const BUILTINS: [(&str, Reach, Builtin); 10] = [
    ("download", Reach::Files, download::perform),
    ("freebsd-base", Reach::Inputs, freebsd_system::base),
    ("freebsd-image", Reach::Inputs, freebsd_image::image),
    ("freebsd-pkg", Reach::Inputs, freebsd_pkg::package),
    ("freebsd-profile", Reach::Inputs, freebsd_pkg::profile),
    ("freebsd-rootfs", Reach::Inputs, freebsd_system::rootfs),
    ("freebsd-source", Reach::Inputs, freebsd_source::source),
    ("freebsd-source-part", Reach::Inputs, freebsd_source::part),
    ("freebsd-system", Reach::Inputs, freebsd_system::system),
    ("git-download", Reach::Network, git_download::perform),
];

fn reach(name: &str) -> Reach {
    find(name).map_or(Reach::Inputs, |(_, reach, _)| reach)
}

/// Whether the builder `name` (with or without `builtin:`) needs the host's network.
pub fn uses_network(name: &str) -> bool {
    reach(name) != Reach::Inputs
}

/// Whether the builder `name` (with or without `builtin:`) reads files of the host that a URL names.
pub fn reads_files(name: &str) -> bool {
    reach(name) == Reach::Files
}

/// The names of the built-in builders, as the operation `BuiltinBuilders` answers them.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILTINS.iter().map(|(name, ..)| *name)
}

/// The function of the builder `name` (with or without `builtin:`). It takes a [`BuiltinInput`] as JSON and returns the exit
/// status for the process that runs it.
pub fn lookup(name: &str) -> Option<fn(&[u8]) -> i32> {
    Some(match find(name)?.0 {
        "download" => |input| run("download", input),
        "freebsd-base" => |input| run("freebsd-base", input),
        "freebsd-image" => |input| run("freebsd-image", input),
        "freebsd-pkg" => |input| run("freebsd-pkg", input),
        "freebsd-profile" => |input| run("freebsd-profile", input),
        "freebsd-rootfs" => |input| run("freebsd-rootfs", input),
        "freebsd-source" => |input| run("freebsd-source", input),
        "freebsd-source-part" => |input| run("freebsd-source-part", input),
        "freebsd-system" => |input| run("freebsd-system", input),
        _ => |input| run("git-download", input),
    })
}

fn find(name: &str) -> Option<(&'static str, Reach, Builtin)> {
    let name = name.strip_prefix("builtin:").unwrap_or(name);
    BUILTINS.into_iter().find(|(known, ..)| *known == name)
}

/// Runs the builder `name` with `input`, a [`BuiltinInput`] as JSON, and returns the exit status. Messages go to standard error.
/// It refuses to run as root, as upstream does; inside a user namespace it is the mapped user that counts.
pub fn run(name: &str, input: &[u8]) -> i32 {
    let mut log = std::io::stderr();
    let input = match serde_json::from_slice::<BuiltinInput>(input) {
        Ok(input) if !nix::unistd::geteuid().is_root() && !nix::unistd::getuid().is_root() => input,
        Ok(_) => return report(name, &BuiltinError::Privileged, &mut log),
        Err(source) => return report(name, &BuiltinError::Input { source }, &mut log),
    };
    perform(name, &input, &mut log)
}

/// [`run`] with its input decoded, whoever the user is. Messages go to `log`.
pub fn perform(name: &str, input: &BuiltinInput, log: &mut dyn Write) -> i32 {
    let Some((.., builtin)) = find(name) else {
        say(log, &format!("error: unsupported builtin function '{name}'"));
        return EXIT_FAILED;
    };
    let result = builtin(input, log);
    match result {
        Ok(()) => EXIT_DONE,
        Err(error) => report(name, &error, log),
    }
}

fn report(name: &str, error: &BuiltinError, log: &mut dyn Write) -> i32 {
    say(log, &format!("{name}: error: {error}"));
    EXIT_FAILED
}

/// Writes one line, in one call so that nothing comes between its parts. A log that cannot be written to is no reason to fail.
fn say(log: &mut dyn Write, line: &str) {
    let _ = log.write_all(format!("{line}\n").as_bytes());
    let _ = log.flush();
}
