//! `builtin:git-download`: a checkout of one commit, made by the host's `git`, without its `.git`.

use super::sexp::{self, Datum};
use super::url::Url;
use super::{BuiltinError, BuiltinInput, say};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What git may speak. `ext`, `ssh` and `fd` run programs or need keys; `file` reads what is on this machine.
const PROTOCOLS: [&str; 3] = ["http", "https", "git"];

/// Where git's own scripts find a shell and its tools, as upstream has it.
const PATH: &str = "/run/current-system/profile/bin:/bin:/usr/bin";

/// Configuration for every git command: what a repository, a URL or a commit name could otherwise make git do.
const CONFIG: [(&str, &str); 13] = [
    ("advice.detachedHead", "false"),
    ("core.askPass", ""),
    ("core.attributesFile", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.hooksPath", "/dev/null"),
    ("credential.helper", ""),
    ("gc.auto", "0"),
    ("http.lowSpeedLimit", "1"),
    ("http.lowSpeedTime", "60"),
    ("init.defaultBranch", "main"),
    ("maintenance.auto", "false"),
    ("safe.directory", "*"),
    ("submodule.fetchJobs", "1"),
];

/// Checks out what the derivation says to its output, a directory. `Ok` without an output means that git failed; what it said is
/// in the log.
///
/// # Errors
/// The derivation is refused, there is no git, or the output cannot be written.
pub fn perform(input: &BuiltinInput, log: &mut dyn Write) -> Result<(), BuiltinError> {
    let output = input.fixed_output()?;
    let missing = |what| BuiltinError::Missing { drv: input.drv_path.clone(), what };
    let url = input.get("url").ok_or_else(|| missing("Git URL"))?;
    let commit = input.get("commit").ok_or_else(|| missing("Git commit"))?;
    let url = match input.datum("url", url)? {
        Datum::Str(url) => url,
        _ => {
            return Err(BuiltinError::Shape { drv: input.drv_path.clone(), name: "url", expected: "a string" });
        }
    };
    let recursive = match input.get("recursive?") {
        Some(text) => input.datum("recursive?", text)? != Datum::Bool(false),
        None => false,
    };
    let parsed = input.check_url(&url)?;
    let allowed = PROTOCOLS.contains(&parsed.scheme.as_str()) || parsed.scheme == "file";
    if !allowed {
        return Err(BuiltinError::GitScheme { url: parsed.to_string() });
    }
    if !commit_is_safe(commit) {
        return Err(BuiltinError::BadCommit { commit: sexp::quoted(commit) });
    }
    let program = input.git.as_deref().ok_or(BuiltinError::NoGit)?;

    if input.method_enabled("upstream")? {
        let git = Git { input, program, directory: output.target() };
        match git.fetch(&parsed, commit, recursive, log) {
            Ok(None) => return Ok(()),
            Ok(Some(failure)) => say(log, &format!("git-fetch: {failure}")),
            Err(error) => {
                let _ = remove_tree(output.target());
                return Err(error);
            }
        }
    }
    say(log, &format!("failed to download {} from {}", sexp::quoted(&output.path), sexp::quoted(&parsed.to_string())));
    remove_tree(output.target())
}

/// The most that is read of a list of references, in bytes.
const MAX_REFERENCES: u64 = 1 << 20;

/// Asks the repository at `url` for references whose names are, or end with, one of `patterns`: each with the object it leads to. `directory` is
/// empty and nobody else's; git runs there.
///
/// # Errors
/// The URL is none that git may use here, there is no git, or it fails; what it said is on standard error.
pub fn references(input: &BuiltinInput, directory: &Path, url: &str, patterns: &[String]) -> Result<Vec<(String, String)>, BuiltinError> {
    let parsed = input.check_url(url)?;
    if !PROTOCOLS.contains(&parsed.scheme.as_str()) && parsed.scheme != "file" {
        return Err(BuiltinError::GitScheme { url: parsed.to_string() });
    }
    let program = input.git.as_deref().ok_or(BuiltinError::NoGit)?;
    let git = Git { input, program, directory };
    let request = request(&parsed);
    let fixed = ["ls-remote", "--quiet", "--", &request];
    let args: Vec<&OsStr> = fixed.into_iter().chain(patterns.iter().map(String::as_str)).map(OsStr::new).collect();
    let started = git.command(&args).stdout(Stdio::piped()).spawn();
    let mut child = started.map_err(BuiltinError::io("running", program))?;
    let mut text = String::new();
    let read = child.stdout.take().map_or(Ok(0), |stdout| stdout.take(MAX_REFERENCES).read_to_string(&mut text));
    let status = child.wait().map_err(BuiltinError::io("running", program))?;
    read.map_err(BuiltinError::io("reading what it says:", program))?;
    if !status.success() {
        return Err(BuiltinError::Fetch { url: sexp::quoted(&parsed.to_string()), reason: format!("git ls-remote: {status}") });
    }
    Ok(text.lines().filter_map(|line| line.split_once('\t')).map(|(object, name)| (name.to_owned(), object.to_owned())).collect())
}

/// The URL as git is given it.
fn request(url: &Url) -> String {
    match url.scheme.as_str() {
        "file" => format!("file://{}", url.path),
        _ => {
            let user = url.userinfo.as_ref().map_or(String::new(), |u| format!("{u}@"));
            url.request_uri().replacen("://", &format!("://{user}"), 1)
        }
    }
}

/// Whether `commit` names a commit, tag or branch, and can be nothing else to git: no option, no `SOURCE:DESTINATION`, no
/// expression, no pattern.
fn commit_is_safe(commit: &str) -> bool {
    !commit.is_empty()
        && commit.len() <= 255
        && !commit.starts_with(['-', '+', '/'])
        && !commit.contains("..")
        && !commit.contains("@{")
        && !commit.contains(|c: char| c.is_control() || c.is_whitespace() || matches!(c, ':' | '^' | '~' | '?' | '*' | '[' | '\\'))
}

struct Git<'a> {
    input: &'a BuiltinInput,
    program: &'a Path,
    directory: &'a Path,
}

impl Git<'_> {
    /// A git command in the output directory, with nothing in its environment but what is set here.
    fn command(&self, args: &[&OsStr]) -> Command {
        let mut protocols = PROTOCOLS.join(":");
        if self.input.allow_file {
            protocols.push_str(":file");
        }
        let mut command = Command::new(self.program);
        command
            .args(args)
            .current_dir(self.directory)
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C.UTF-8")
            .env("GIT_ALLOW_PROTOCOL", protocols)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CEILING_DIRECTORIES", self.directory)
            .stdin(Stdio::null());
        for name in ["http_proxy", "https_proxy"] {
            if let Some(value) = self.input.get(name).filter(|v| !v.is_empty()) {
                command.env(name, value);
            }
        }
        let mut config: Vec<(&str, &OsStr)> = CONFIG.iter().map(|(key, value)| (*key, OsStr::new(value))).collect();
        if let Some(bundle) = &self.input.ca_bundle {
            config.push(("http.sslCAInfo", bundle.as_os_str()));
        }
        command.env("GIT_CONFIG_COUNT", config.len().to_string());
        for (n, (key, value)) in config.into_iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{n}"), key);
            command.env(format!("GIT_CONFIG_VALUE_{n}"), value);
        }
        command
    }

    /// Runs git and says how it failed, if it did.
    fn run(&self, args: &[&str], log: &mut dyn Write) -> Result<Option<String>, BuiltinError> {
        let _ = log.flush();
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        let status = self.command(&args).status().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => BuiltinError::NoGit,
            _ => BuiltinError::io("running", self.program)(e),
        })?;
        Ok((!status.success()).then(|| {
            let words: Vec<_> = args.iter().map(|a| a.to_string_lossy()).collect();
            format!("'{} {}' failed: {status}", self.program.display(), words.join(" "))
        }))
    }

    /// Makes the output: the checkout without what git keeps about it. `Some` tells which command failed.
    fn fetch(&self, url: &Url, commit: &str, recursive: bool, log: &mut dyn Write) -> Result<Option<String>, BuiltinError> {
        remove_tree(self.directory)?;
        fs::create_dir(self.directory).map_err(BuiltinError::io("creating", self.directory))?;
        let failure = self.checkout(url, commit, recursive, log)?;
        if failure.is_none() && recursive {
            remove_metadata(self.directory)?;
        } else if failure.is_none() {
            remove_tree(&self.directory.join(".git"))?;
        }
        Ok(failure)
    }

    /// Makes the checkout.
    fn checkout(&self, url: &Url, commit: &str, recursive: bool, log: &mut dyn Write) -> Result<Option<String>, BuiltinError> {
        let request = request(url);
        let first: [&[&str]; 2] =
            [&["init", "--quiet", "--template=", "--initial-branch=main"], &["remote", "add", "--", "origin", &request]];
        for args in first {
            if let Some(failure) = self.run(args, log)? {
                return Ok(Some(failure));
            }
        }
        let shallow = ["fetch", "--depth", "1", "--", "origin", commit];
        let rest: &[&[&str]] = if self.run(&shallow, log)?.is_none() {
            &[&["checkout", "--quiet", "FETCH_HEAD"]]
        } else {
            say(log, "Failed to do a shallow fetch; retrying a full fetch...");
            &[&["fetch", "--", "origin"], &["checkout", "--quiet", commit, "--"]]
        };
        for args in rest {
            if let Some(failure) = self.run(args, log)? {
                return Ok(Some(failure));
            }
        }
        if recursive {
            return self.run(&["submodule", "update", "--init", "--recursive"], log);
        }
        Ok(None)
    }
}

/// Removes a directory tree, or whatever else stands there; links are not followed.
fn remove_tree(path: &Path) -> Result<(), BuiltinError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(BuiltinError::io("removing", path)(e)),
        _ => Ok(()),
    }
}

/// Removes every entry named `.git`: those of submodules are files.
fn remove_metadata(root: &Path) -> Result<(), BuiltinError> {
    let mut directories: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory).map_err(BuiltinError::io("reading", &directory))?;
        for entry in entries {
            let entry = entry.map_err(BuiltinError::io("reading", &directory))?;
            let path = entry.path();
            if entry.file_name() == ".git" {
                remove_tree(&path)?;
            } else if entry.file_type().map_err(BuiltinError::io("reading", &path))?.is_dir() {
                directories.push(path);
            }
        }
    }
    Ok(())
}

/// The `git` program of this host: the first in `path`, a list as in `$PATH`, or in the usual places.
pub fn find_git(path: Option<&OsStr>) -> Option<PathBuf> {
    let usual = ["/usr/bin", "/bin", "/usr/local/bin", "/run/current-system/profile/bin"];
    path.map(std::env::split_paths)
        .into_iter()
        .flatten()
        .chain(usual.iter().map(PathBuf::from))
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join("git"))
        .find(|file| fs::metadata(file).is_ok_and(|m| m.is_file()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn commits_are_names_only() {
        for good in ["v1.0", "0d5f60154382fee10b114a1c34e785d8b1f49207", "refs/tags/a+b#1", "2.0/é", "a@b"] {
            assert!(commit_is_safe(good), "{good}");
        }
        for bad in ["", "-x", "--upload-pack=id", "+a", "a:b", "a b", "a\nb", "HEAD~1", "a^", "a..b", "@{u}", "*", "[a", "\\", "/x"] {
            assert!(!commit_is_safe(bad), "{bad}");
        }
    }
}
