//! What a process does that is about to become a builder, on any platform: steps with names, and the builder itself.

use std::ffi::CString;
use std::io::{self, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use bstr::BString;
use nix::errno::Errno;

use super::{Builtins, Plan};
use crate::sys;

/// Exit code of a builder that could not be run.
pub(super) const CANNOT_RUN: i32 = 1;
/// Exit code of a builtin that panicked.
const PANICKED: i32 = 101;
/// How many symbolic links are followed on the way to a builder.
const MAX_LINKS: u32 = 1024;

/// A step that failed.
pub(super) struct Step {
    pub(super) what: &'static str,
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
}

pub(super) type Done<T = ()> = Result<T, Step>;

/// Puts a name on what fails.
pub(super) fn step<T, E: Into<io::Error>>(what: &'static str, path: impl AsRef<Path>, result: Result<T, E>) -> Done<T> {
    result.map_err(|error| Step { what, path: path.as_ref().to_owned(), source: error.into() })
}

/// Writes to standard error, which is the build's log.
pub(super) fn say(message: &[u8]) {
    let _ = io::stderr().write_all(message);
}

pub(super) fn run_builtin(name: &str, input: &[u8], builtins: Builtins) -> i32 {
    let Some(builtin) = builtins(name) else {
        let name = name.strip_prefix("builtin:").unwrap_or(name);
        say(format!("error: unsupported builtin function '{name}'\n").as_bytes());
        return CANNOT_RUN;
    };
    let status = std::panic::catch_unwind(AssertUnwindSafe(|| builtin(input))).unwrap_or(PANICKED);
    let _ = io::stdout().flush();
    status
}

/// Becomes the program; returns why not, in upstream's words.
pub(super) fn exec(plan: &Plan, path: &BString, args: &[BString]) -> Vec<u8> {
    let program = match canonical(path) {
        Ok(program) => program,
        Err(why) => return why,
    };
    if let Some(store) = &plan.store_dir
        && !(program.starts_with(store) && program.as_os_str().len() > store.as_os_str().len())
    {
        // Something like /proc/self/exe would let the builder write to the daemon's own program.
        return [b"derivation builder `", program.as_os_str().as_bytes(), b"' is outside the store"].concat();
    }
    let strings = |parts: &mut dyn Iterator<Item = Vec<u8>>| parts.map(|part| sys::c_string(&part)).collect::<io::Result<Vec<CString>>>();
    let env = strings(&mut plan.env.iter().map(|(name, value)| [name.as_slice(), b"=", value].concat()));
    let args = strings(&mut args.iter().map(|arg| arg.to_vec()));
    let error = match (sys::c_string(program.as_os_str().as_bytes()), args, env) {
        // A program for another kernel may look like one for this.
        (Ok(_), Ok(_), Ok(_)) if kernel(&plan.platform) != kernel(&plan.system) => Errno::ENOEXEC,
        (Ok(program), Ok(args), Ok(env)) => match nix::unistd::execve(&program, &args, &env) {
            Err(errno) => errno,
        },
        _ => Errno::EINVAL,
    };
    if error == Errno::ENOEXEC && plan.platform != plan.system && !plan.personality.bits_32 {
        if plan.traced {
            say(format!("@ unsupported-platform {} {}\n", plan.name, plan.platform).as_bytes());
        }
        return format!("a `{}' is required to build `{}', but I am a `{}'", plan.platform, plan.name, plan.system).into_bytes();
    }
    [b"executing `", path.as_slice(), b"': ", error.desc().as_bytes()].concat()
}

/// What follows the machine in the name of a system.
fn kernel(system: &str) -> &str {
    system.split_once('-').map_or("", |(_, kernel)| kernel)
}

/// A file name without symbolic links. The error is upstream's text.
fn canonical(path: &BString) -> Result<PathBuf, Vec<u8>> {
    if path.first() != Some(&b'/') {
        return Err([b"not an absolute path: `", path.as_slice(), b"'"].concat());
    }
    let mut todo: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).rev().collect();
    let (mut done, mut links) = (PathBuf::from("/"), 0);
    while let Some(part) = todo.pop() {
        match part.as_slice() {
            b"" | b"." => continue,
            b".." => {
                done.pop();
                continue;
            }
            _ => {}
        }
        let next = done.join(std::ffi::OsString::from_vec(part));
        let file = std::fs::symlink_metadata(&next).map_err(|error| {
            let reason = Errno::from_raw(error.raw_os_error().unwrap_or(0)).desc();
            [b"getting status of `", next.as_os_str().as_bytes(), b"': ", reason.as_bytes()].concat()
        })?;
        if !file.file_type().is_symlink() {
            done = next;
            continue;
        }
        links += 1;
        let target = match std::fs::read_link(&next) {
            Ok(target) if links < MAX_LINKS => target.into_os_string().into_vec(),
            _ => return Err([b"infinite symlink recursion in path `", path.as_slice(), b"'"].concat()),
        };
        if target.first() == Some(&b'/') {
            done = PathBuf::from("/");
        }
        todo.extend(target.split(|byte| *byte == b'/').map(<[u8]>::to_vec).rev());
    }
    Ok(done)
}
