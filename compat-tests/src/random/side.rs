//! One daemon in namespaces of its own, and what it does with a case.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection as Database, OpenFlags};

use super::Result;
use super::case::{Case, Op};
use super::plan::{Damage, Plan, STORE, Step};
use super::wire::{Connection, Outcome, shown};

/// Among the flags of a case: every connection begins with options that ask for it, since the order of independent builds is not fixed without.
pub const KEEP_GOING: &str = "keep-going";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long the session of a client that has gone may take to go as well.
const FAREWELL: Duration = Duration::from_millis(60);

/// A daemon and its namespaces, which end with this.
#[derive(Debug)]
pub struct Side {
    name: String,
    holder: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// The root directory there, as seen from here.
    root: PathBuf,
    /// The process that has the namespaces.
    pid: u32,
    tools: Arc<Vec<u8>>,
    own: PathBuf,
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// What happened: a line for each operation, behind it what it said and answered; at the end what is on the disk.
pub type Transcript = Vec<String>;

/// Connects to a daemon. One that has just been started may not listen yet, while its predecessor's socket is still there.
///
/// # Errors
/// Nobody listens in time.
pub fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let begin = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused && begin.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

impl Side {
    /// Makes the namespaces for the daemon `name`, with the script `side.sh`, whose environment says the rest.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn new(name: &str, script: &Path, tools: Arc<Vec<u8>>) -> Result<Side> {
        let mut holder = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
            .arg(script)
            .env("SIDE", name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(commands), Some(answers)) = (holder.stdin.take(), holder.stdout.take()) else {
            return Err("no pipes".into());
        };
        let own = std::env::current_exe()?;
        let mut side =
            Side { name: name.to_owned(), commands, answers: BufReader::new(answers), root: PathBuf::new(), pid: 0, tools, own, holder };
        side.expect("ready")?;
        let unshare = side.holder.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
        side.pid = children.split_whitespace().next().ok_or("the namespaces are gone")?.parse()?;
        side.root = PathBuf::from(format!("/proc/{}/root", side.pid));
        Ok(side)
    }

    fn expect(&mut self, word: &str) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            if self.answers.read_until(b'\n', &mut line)? == 0 {
                return Err(format!("{}: the namespaces ended: {}", self.name, lines.join(" ")).into());
            }
            let line = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
            if line == word {
                return Ok(lines);
            }
            lines.push(line);
        }
    }

    fn command(&mut self, command: &str, answer: &str) -> Result<Vec<String>> {
        writeln!(self.commands, "{command}")?;
        self.commands.flush()?;
        self.expect(answer)
    }

    fn connect(&self, client: &str) -> Result<Connection> {
        let socket = Path::new("/frx/var/daemon-socket/socket");
        let stream = if client == "u" {
            let (ours, theirs) = UnixStream::pair()?;
            let theirs = OwnedFd::from(theirs);
            Command::new("nsenter")
                .args([
                    "--mount",
                    "--target",
                    &self.pid.to_string(),
                    "--",
                    "setpriv",
                    "--reuid=31001",
                    "--regid=31000",
                    "--clear-groups",
                    "--",
                ])
                .arg(&self.own)
                .arg("pipe")
                .arg(socket)
                .stdin(Stdio::from(theirs.try_clone()?))
                .stdout(Stdio::from(theirs))
                .spawn()?;
            ours
        } else {
            connect(&self.root.join("frx/var/daemon-socket/socket"))?
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Connection::open(stream, now).map_err(|outcome| format!("{}: no greeting: {outcome:?}", self.name).into())
    }

    /// A connection, with options that ask to keep going.
    fn open(&self, client: &str, plan: &mut Plan, keep_going: bool) -> Result<Connection> {
        let mut connection = self.connect(client)?;
        let options = Op { id: String::new(), client: String::new(), verb: "options".to_owned(), args: Vec::new() };
        if keep_going && let Some(Step::Call { request, shape, .. }) = plan.step(&options) {
            connection.call(&request, shape, &mut Vec::new());
        }
        Ok(connection)
    }

    /// Removes what nobody registered, such as what a refused request left in the store: that differs on purpose (docs/differences.md), and would
    /// show in every collection after it.
    fn sweep(&mut self) -> Result<()> {
        self.command("sweep", "swept").map(drop)
    }

    /// Runs `case` on an empty store.
    ///
    /// # Errors
    /// What is not an answer of the daemon's: that it does not start, that files cannot be written.
    pub fn run(&mut self, case: &Case) -> Result<Transcript> {
        let flags: Vec<&str> = case.flags.iter().map(String::as_str).filter(|flag| *flag != KEEP_GOING).collect();
        let keep_going = flags.len() < case.flags.len();
        self.command(&format!("fresh {}", flags.join(" ")), "started")?;
        let mut plan = Plan::new(Arc::clone(&self.tools));
        let mut transcript = Transcript::new();
        let mut clients: BTreeMap<String, Connection> = BTreeMap::new();
        // guix-daemon makes its directories when the first client comes.
        clients.insert("a".to_owned(), self.open("a", &mut plan, keep_going)?);
        for op in &case.ops {
            transcript.push(shown(op.to_string().as_bytes()));
            let Some(step) = plan.step(op) else {
                transcript.push("  nothing to do".to_owned());
                continue;
            };
            match step {
                Step::Call { request, shape, sorted, last } => {
                    // guix-daemon's sessions take for good what they have built or looked at themselves.
                    let stays = op.args.iter().any(|arg| arg.as_word() == "stay");
                    let repairs = op.args.iter().any(|arg| arg.as_word() == "repair");
                    if repairs && !stays && clients.remove(&op.client).is_some() {
                        std::thread::sleep(FAREWELL);
                    }
                    let mut connection = match clients.remove(&op.client) {
                        Some(connection) => connection,
                        None => match self.open(&op.client, &mut plan, keep_going) {
                            Ok(connection) => connection,
                            Err(error) => {
                                transcript.push(format!("  {error}"));
                                continue;
                            }
                        },
                    };
                    let mut log = Vec::new();
                    let outcome = connection.call(&request, shape, &mut log);
                    let log = String::from_utf8_lossy(&log).into_owned();
                    let mut lines: Vec<_> = log.split('\n').map(|line| format!("  | {}", shown(line.as_bytes()))).collect();
                    if log.is_empty() || log.ends_with('\n') {
                        lines.pop();
                    }
                    if sorted || (keep_going && op.verb == "build") {
                        lines.iter_mut().for_each(|line| {
                            // How far it is depends on the order.
                            if let Some((_, deleting)) = line.split_once("] deleting ") {
                                *line = format!("  | deleting {deleting}");
                            }
                        });
                        // Of a failure that is remembered: which of the outputs is named, and whether two who ask at once both hear of it.
                        lines.sort();
                        let mut cached = BTreeSet::new();
                        lines.retain(|line| match line.strip_suffix(" failed previously (cached)") {
                            Some(_) => cached.insert(String::new()),
                            None => !line.ends_with(" - cached") || cached.insert(line.clone()),
                        });
                        lines
                            .iter_mut()
                            .filter(|line| line.ends_with("(cached)"))
                            .for_each(|line| "  | failed previously (cached)".clone_into(line));
                    }
                    transcript.extend(lines);
                    if !matches!(outcome, Outcome::Reply(_))
                        && ["add", "add-text", "drv", "tools", "build", "verify", "gc"].contains(&op.verb.as_str())
                    {
                        self.sweep()?;
                    }
                    // guix-daemon's sessions are of no use after a collection: others do not see their temporary roots any more. What they have
                    // looked at for sharing files, they keep; what was only ensured, they do not.
                    let collected = ["gc", "optimise", "verify", "ensure"].contains(&op.verb.as_str()) && !stays;
                    let keeps = matches!(outcome, Outcome::Reply(_) | Outcome::Error(..)) && !last && !collected;
                    transcript.push(match outcome {
                        Outcome::Reply(reply) => format!("  => {reply}"),
                        Outcome::Error(message, status) => {
                            format!("  error ({}): {message}", status.map_or("no status".to_owned(), |status| status.to_string()))
                        }
                        Outcome::Gone => "  the connection is gone".to_owned(),
                        Outcome::Late => "  no answer".to_owned(),
                        Outcome::Garbage(what) => format!("  garbage: {what}"),
                    });
                    if keeps {
                        clients.insert(op.client.clone(), connection);
                    } else {
                        drop(connection);
                        std::thread::sleep(FAREWELL);
                    }
                }
                Step::Close => {
                    if clients.remove(&op.client).is_some() {
                        std::thread::sleep(FAREWELL);
                    }
                }
                Step::Restart => {
                    clients.clear();
                    std::thread::sleep(FAREWELL);
                    self.command("stop", "stopped")?;
                    self.command("start", "started")?;
                }
                Step::Link(name, target) => {
                    let link = self.root.join("frx").join(Path::new(&name));
                    let _ = fs::remove_file(&link);
                    let made = target.map(|target| symlink(OsStr::from_bytes(&target), &link).is_ok());
                    transcript.push(format!("  {}", if made == Some(false) { "cannot be made" } else { "done" }));
                }
                Step::Damage(path, damage) => {
                    let file = self.root.join("frx/store").join(OsStr::from_bytes(&path));
                    transcript.push(format!("  {}", if harm(&file, damage).is_ok() { "done" } else { "cannot be done" }));
                }
            }
        }
        clients.clear();
        std::thread::sleep(FAREWELL);
        self.command("stop", "stopped")?;
        transcript.push("at the end".to_owned());
        transcript.extend(self.command("dump", "dumped")?);
        Ok(transcript)
    }
}

/// What [`Side`] has done within its namespaces after a refused request: removes all from the store that is not registered.
///
/// # Errors
/// When the database cannot be read or the store not be changed.
pub fn sweep(frx: &Path) -> Result<()> {
    let database = Database::open_with_flags(frx.join("var/db/db.sqlite"), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let valid: BTreeSet<String> =
        database.prepare("SELECT path FROM ValidPaths")?.query_map([], |row| row.get(0))?.collect::<std::result::Result<_, _>>()?;
    for entry in fs::read_dir(frx.join("store"))? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let text = name.to_string_lossy();
        let stays = text.starts_with('.') || text.ends_with("-fruixd-staging");
        if stays || valid.contains(&format!("{STORE}/{text}")) {
            continue;
        }
        // A lock may go by itself meanwhile.
        let removed = if path.is_symlink() || !path.is_dir() { fs::remove_file(&path) } else { fs::remove_dir_all(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    // Files that only what is gone had.
    for entry in fs::read_dir(frx.join("store/.links"))? {
        let path = entry?.path();
        if fs::symlink_metadata(&path)?.nlink() == 1 {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn harm(file: &Path, damage: Damage) -> std::io::Result<()> {
    // A link leads out of the store, to the directories of this machine.
    if file.parent().is_some_and(Path::is_symlink) {
        return Err(std::io::ErrorKind::NotADirectory.into());
    }
    // Their times as they were: fruixd puts those of directories right where it looks for files to share.
    let directories = [Some(file), file.parent()].into_iter().flatten();
    let times: Vec<_> = directories
        .filter_map(|directory| {
            let metadata = fs::symlink_metadata(directory).ok()?;
            metadata.is_dir().then(|| metadata.modified().ok()).flatten().map(|time| (directory, time))
        })
        .collect();
    let done = harm_file(file, damage);
    if damage == Damage::Age {
        return done;
    }
    for (directory, time) in times {
        let _ = OpenOptions::new().read(true).open(directory).and_then(|directory| directory.set_modified(time));
    }
    done
}

fn harm_file(file: &Path, damage: Damage) -> std::io::Result<()> {
    let kind = fs::symlink_metadata(file).map(|metadata| metadata.file_type());
    if damage == Damage::Junk {
        return match kind {
            Ok(_) => Err(std::io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::write(file, "junk\n"),
        };
    }
    let kind = kind?;
    match damage {
        Damage::Append if kind.is_dir() => fs::write(file.join("more"), "more\n"),
        Damage::Append if kind.is_symlink() => {
            fs::remove_file(file)?;
            symlink("elsewhere", file)
        }
        // Not the file that others may share: a new one.
        Damage::Append => {
            let mut contents = fs::read(file)?;
            contents.push(b'!');
            let mode = fs::metadata(file)?.permissions();
            fs::remove_file(file)?;
            fs::write(file, contents)?;
            fs::set_permissions(file, mode)
        }
        Damage::Delete if kind.is_dir() => fs::remove_dir_all(file),
        Damage::Delete => fs::remove_file(file),
        _ if kind.is_symlink() => Err(std::io::ErrorKind::Unsupported.into()),
        Damage::Chmod => fs::set_permissions(file, Permissions::from_mode(0o755)),
        Damage::Touch if kind.is_dir() => Err(std::io::ErrorKind::Unsupported.into()),
        Damage::Age | Damage::Touch => OpenOptions::new().read(true).open(file)?.set_modified(SystemTime::now()),
        Damage::Junk => Ok(()),
    }
}
