//! `fruixd --verify-store`: the store, its state and the build logs, looked at without changing them.
//!
//! See [`fruix_store::check_store`] for what is looked at, and how that goes beside a daemon at work.

use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use fruix_drv::StorePath;
use fruix_store::{Finding, Severity, Watch, check_store};

use crate::config::Settings;
use crate::error::Error;
use crate::server::store_config;

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Depth {
    /// What is there, and what the database says.
    Structure,
    /// Also what is in each file.
    Contents,
}

/// After this time there is word of how far it is.
const QUIET: Duration = Duration::from_secs(2);
/// And again this often, where the word stays: not on a terminal.
const AGAIN: Duration = Duration::from_secs(10);

/// What the program ends with when damage was found.
const DAMAGED: u8 = 1;
/// What the program ends with when it could not look.
pub const CANNOT_LOOK: u8 = 2;

/// Prints a line for each finding, to standard output, and how far it is, to standard error.
struct Printer {
    terminal: bool,
    next: Instant,
    /// A line on the terminal that is to be written over.
    dirty: bool,
    damage: usize,
    leftovers: usize,
    notes: usize,
}

impl Printer {
    fn new() -> Printer {
        let terminal = io::stderr().is_terminal();
        Printer { terminal, next: Instant::now() + QUIET, dirty: false, damage: 0, leftovers: 0, notes: 0 }
    }

    fn clean(&mut self) {
        if std::mem::take(&mut self.dirty) {
            eprint!("\r\x1b[K");
        }
    }
}

impl Watch for Printer {
    fn found(&mut self, finding: &Finding) {
        self.clean();
        match finding.severity {
            Severity::Damage => self.damage += 1,
            Severity::Leftover => self.leftovers += 1,
            Severity::Note => self.notes += 1,
        }
        // Who closes the pipe has seen enough; the number at the end still counts.
        let _ = writeln!(io::stdout(), "{finding}");
    }

    fn progress(&mut self, what: &str, done: usize, total: usize) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        let far = if total == 0 { String::new() } else { format!(": {done} of {total}") };
        if self.terminal {
            self.next = now + Duration::from_millis(100);
            self.dirty = true;
            eprint!("\r{what}{far}\x1b[K");
        } else {
            self.next = now + AGAIN;
            eprintln!("{what}{far}");
        }
    }
}

/// Checks the store that `settings` name, and says what it found. The exit code is 0 when nothing is damaged.
pub fn run(settings: &Settings, depth: Depth) -> Result<ExitCode, Error> {
    let mut printer = Printer::new();
    let checked = check_store(&store_config(settings, None), depth == Depth::Contents, &mut printer)?;
    let logs = check_logs(&settings.log_dir, &mut printer)?;
    printer.clean();
    let (damage, leftovers, notes) = (printer.damage, printer.leftovers, printer.notes);
    let (paths, links, roots, processes) = (checked.paths, checked.links, checked.roots, checked.processes);
    println!(
        "{paths} valid paths, {links} links, {roots} roots, {logs} logs, {processes} processes with temporary roots: \
         {damage} damaged, {leftovers} left over, {notes} notes"
    );
    Ok(if damage == 0 { ExitCode::SUCCESS } else { ExitCode::from(DAMAGED) })
}

/// Reads every build log. Returns how many there are.
fn check_logs(log_dir: &Path, watch: &mut dyn Watch) -> Result<usize, Error> {
    let drvs = log_dir.join("drvs");
    let mut count = 0;
    let list = |dir: &Path| match fs::read_dir(dir) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let failed = |source| Error::io("reading directory", &drvs, source);
    for dir in list(&drvs).map_err(failed)? {
        if !dir.file_type().map_err(failed)?.is_dir() {
            watch.found(&Finding { severity: Severity::Note, path: dir.path(), what: "is no directory of logs".into(), remedy: "" });
            continue;
        }
        for entry in list(&dir.path()).map_err(failed)? {
            watch.progress("checking logs", count, 0);
            count += 1;
            if let Some((severity, what, remedy)) = check_log(&dir.file_name().to_string_lossy(), &entry.path()) {
                watch.found(&Finding { severity, path: entry.path(), what, remedy });
            }
        }
    }
    Ok(count)
}

type Verdict = (Severity, String, &'static str);

/// Looks at one log, in the directory called `start`.
fn check_log(start: &str, path: &Path) -> Option<Verdict> {
    const REMOVE: &str = "remove it; the next build of the derivation writes it anew";
    let name = path.file_name()?.to_string_lossy();
    let base = name.trim_end_matches(".gz").trim_end_matches(".bz2");
    if !StorePath::from_base_name(format!("{start}{base}")).is_ok_and(|path| path.is_derivation()) {
        return Some((Severity::Note, "is not named after a derivation".to_owned(), ""));
    }
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let file = match File::options().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some((Severity::Damage, format!("cannot be opened: {error}"), REMOVE)),
    };
    let metadata = match file.metadata() {
        Ok(metadata) if metadata.is_file() => metadata,
        _ => return Some((Severity::Damage, "is no file".to_owned(), REMOVE)),
    };
    if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o022 != 0 {
        return Some((Severity::Damage, "can be written to by others".to_owned(), "chmod 644"));
    }
    let read = |mut reader: Box<dyn Read>| io::copy(&mut reader, &mut io::sink());
    let result = if name.ends_with(".gz") {
        read(Box::new(flate2::read::MultiGzDecoder::new(file)))
    } else if name.ends_with(".bz2") {
        read(Box::new(bzip2::read::MultiBzDecoder::new(file)))
    } else {
        read(Box::new(file))
    };
    match result {
        Ok(_) => None,
        // A build is at work, was killed with its daemon, or had no room on the disk: all that it wrote can be read.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Some((Severity::Note, "ends early: its build is running, or was cut off".to_owned(), ""))
        }
        Err(error) => Some((Severity::Damage, format!("cannot be read: {error}"), REMOVE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_read_to_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = |name: &str, contents: &[u8]| {
            let path = dir.path().join(format!("{}-x.drv{name}", "0".repeat(30)));
            fs::write(&path, contents).unwrap();
            check_log("00", &path).map(|(severity, ..)| severity)
        };
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&b"line\n".repeat(10_000)).unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(log("", b"plain"), None);
        assert_eq!(log(".gz", &gzip), None);
        assert_eq!(log(".gz", gzip.get(..gzip.len() / 2).unwrap()), Some(Severity::Note));
        assert_eq!(log(".gz", b""), Some(Severity::Note));
        assert_eq!(log(".gz", b"plain text, not compressed"), Some(Severity::Damage));
        let mut changed = gzip;
        let middle = changed.len() - 6;
        changed[middle] ^= 1;
        assert_eq!(log(".gz", &changed), Some(Severity::Damage));
        assert_eq!(log(".bz2", b"plain text, not compressed"), Some(Severity::Damage));
        fs::write(dir.path().join("other"), "").unwrap();
        assert_eq!(check_log("00", &dir.path().join("other")).unwrap().0, Severity::Note);
    }
}
