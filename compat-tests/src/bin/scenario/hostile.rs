//! Clients that mean harm, while another user is served.
//!
//! Each attack is a process of its own, run by a user whom the daemon does not trust, and another process of another user asks small things
//! all the while. The daemon must answer that one soon, must not grow, and must have given back everything when the attacker has gone.

use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use fruix_drv::StorePath;
use fruix_protocol::limits;
use fruix_protocol::ops::{IsValidPath, TABLE};
use fruix_protocol::sample::Samples;
use fruix_protocol::wire::{Context, MAGIC_CLIENT, STDERR_ERROR, STDERR_LAST, STDERR_NEXT, Sink, Version, put_string};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::common::{Connection, Daemon, Error, Result, Tree, add_text, archive, build, fail, file_archive, options, seed};
use crate::recipes::{Cook, Recipe, Tools};

/// What an idle connection may cost, in KiB.
const IDLE_KIB: u64 = 64;
/// What one attack may make the daemon grow by, in KiB; all together, twice as much. What was freed is not given back at once: eight times the
/// same attack by thousands of connections left between 18 and 80 MiB, and no more after the eighth than after the second.
const GROWTH_KIB: u64 = 64 * 1024;
/// As many descriptors more: connections to the database, of which the daemon keeps up to 16, have two each.
const KEPT_DESCRIPTORS: usize = 32;
/// How long somebody else may wait for an answer.
const SERVED: Duration = Duration::from_secs(5);
/// How long the daemon may take to answer an attack or to close its connection.
const ANSWER: Duration = Duration::from_secs(30);

/// In this order; `slow` goes on beside all others.
const ATTACKS: &[&str] =
    &["idle", "lengths", "counts", "archives", "derivations", "texts", "deaf", "half-closed", "cut", "random", "connections"];

/// What the daemon takes.
#[derive(Clone, Copy, Debug)]
struct Usage {
    memory: u64,
    descriptors: usize,
    threads: u64,
}

fn usage(pid: u32) -> Result<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_| "the daemon has died")?;
    let field = |name: &str| -> u64 {
        status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok(Usage { memory: field("VmRSS:"), descriptors, threads: field("Threads:") })
}

/// A process of this program, run by another user.
struct Other {
    process: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(uid: u32, arguments: &[&str]) -> Result<Other> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(arguments).uid(uid).gid(33000).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = Command::from(command).kill_on_drop(true).spawn()?;
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().ok_or("no output")?).lines();
        Ok(Other { process, input, output })
    }

    /// Its last line, when it has ended well.
    async fn end(mut self) -> Result<String> {
        drop(self.input.take());
        let mut last = String::new();
        while let Some(line) = self.output.next_line().await? {
            last = line;
        }
        if self.process.wait().await?.success() { Ok(last) } else { Err(last.into()) }
    }
}

/// Runs the scenario.
pub(crate) async fn run(pid: u32, users: &[u32], long: bool, attacks: &[String]) -> Result<String> {
    let &[attacker, other] = users else { fail!("two users are needed") };
    let daemon = Daemon::from_env()?;
    // What it keeps for ever after the first uses, such as threads and statements.
    Other::start(attacker, &["attack", "warm-up"])?.end().await?;
    sleep(Duration::from_secs(2)).await;
    let begun = Instant::now();
    let start = usage(pid)?;
    let mut most = start;
    let mut problems = Vec::new();
    let (mut asked, mut slowest, mut idle) = (0, 0.0_f64, 0.0);

    let long_flag: &[&str] = if long { &["--long"] } else { &[] };
    let mut slow = if attacks.is_empty() { Some(Other::start(attacker, &[&["attack", "slow"], long_flag].concat())?) } else { None };
    if let Some(slow) = &mut slow {
        // It says when all its connections are there.
        slow.output.next_line().await?;
    }
    let names: Vec<&str> = if attacks.is_empty() { ATTACKS.to_vec() } else { attacks.iter().map(String::as_str).collect() };
    for name in names {
        let before = usage(pid)?;
        let mut peak = before;
        let attack_begun = Instant::now();
        let ping = Other::start(other, &["ping"])?;
        let mut attack = Other::start(attacker, &[&["attack", name], long_flag].concat())?;
        let mut report = String::new();
        let mut tick = tokio::time::interval(Duration::from_millis(25));
        loop {
            tokio::select! {
                line = attack.output.next_line() => {
                    let Some(line) = line? else { break };
                    // It holds as many connections as it says, for us to look at.
                    if let Some(held) = line.strip_prefix("ready ") {
                        sleep(Duration::from_millis(500)).await;
                        let now = usage(pid)?;
                        let each = now.memory.saturating_sub(before.memory) as f64 / held.parse::<f64>()?;
                        report = format!("{held} connections, {each:.1} KiB each, {} threads more; ", now.threads.saturating_sub(before.threads));
                        if name == "idle" {
                            idle = each;
                        }
                        if let Some(input) = &mut attack.input {
                            input.write_all(b"\n").await?;
                        }
                    } else {
                        report += &line;
                    }
                }
                _ = tick.tick() => {
                    let now = usage(pid)?;
                    peak.memory = peak.memory.max(now.memory);
                    peak.threads = peak.threads.max(now.threads);
                }
            }
        }
        if !attack.process.wait().await?.success() {
            problems.push(format!("{name}: {report}"));
        }
        // What it had is given back soon.
        let gone = Instant::now();
        while usage(pid)?.descriptors > before.descriptors + KEPT_DESCRIPTORS {
            if gone.elapsed() > Duration::from_secs(10) {
                problems.push(format!("{name}: {} descriptors are still open, of {} before", usage(pid)?.descriptors, before.descriptors));
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        let served = match ping.end().await {
            Ok(line) => line,
            Err(error) => {
                problems.push(format!("{name}: another user was not served: {error}"));
                String::new()
            }
        };
        let numbers: Vec<f64> = served.split(' ').filter_map(|word| word.parse().ok()).collect();
        if let &[count, half, most_of_them, longest] = numbers.as_slice() {
            asked += count as u64;
            slowest = slowest.max(most_of_them);
            report += &format!("; another user's {count} requests took {half:.1} ms, p99 {most_of_them:.1} ms, at most {longest:.0} ms");
        }
        let after = usage(pid)?;
        report += &format!("; memory {} KiB, at most {}, after {}", before.memory, peak.memory, after.memory);
        most.memory = most.memory.max(peak.memory);
        most.threads = most.threads.max(peak.threads);
        // The largest derivation there may be is held as it came, taken apart, and written anew for its hash: one at a time.
        let growth = if name == "derivations" { GROWTH_KIB * 2 } else { GROWTH_KIB };
        if peak.memory > before.memory + growth || peak.memory > start.memory + GROWTH_KIB * 2 {
            problems.push(format!("{name}: the daemon grew from {}, {} at first, to {} KiB", before.memory, start.memory, peak.memory));
        }
        println!("  {name} ({:.1} s): {report}", attack_begun.elapsed().as_secs_f64());
    }
    let slow = match slow {
        Some(slow) => slow.end().await.unwrap_or_else(|error| {
            problems.push(format!("slow: {error}"));
            String::new()
        }),
        None => String::new(),
    };
    if idle > IDLE_KIB as f64 {
        problems.push(format!("an idle connection takes {idle:.1} KiB"));
    }
    // It still works, and nothing is left.
    let mut connection = daemon.connect().await?;
    add_text(&mut connection, "still-here", b"", &[]).await?;
    drop(connection);
    sleep(Duration::from_secs(1)).await;
    let end = usage(pid)?;
    if end.descriptors > start.descriptors + KEPT_DESCRIPTORS {
        problems.push(format!("{} descriptors are open at the end, of {} at the beginning", end.descriptors, start.descriptors));
    }
    if !problems.is_empty() {
        fail!("{}", problems.join("\n"));
    }
    Ok(format!(
        "hostile: {:.0} s; {slow}; memory {} KiB at first, at most {}, {} at last; {idle:.1} KiB for an idle connection; at most {} threads; \
         another user's {asked} requests were all answered, p99 at worst {slowest:.0} ms; seed {}",
        begun.elapsed().as_secs_f64(),
        start.memory,
        most.memory,
        end.memory,
        most.threads,
        seed(),
    ))
}

/// Asks small things until standard input ends; prints how many, and the median, the 99th percentile and the maximum in milliseconds.
pub(crate) async fn ping() -> Result<String> {
    let daemon = Daemon::from_env()?;
    let mut times = Vec::new();
    let mut byte = [0];
    let mut input = tokio::io::stdin();
    let end = input.read(&mut byte);
    tokio::pin!(end);
    let path = "/frx/store/00000000000000000000000000000000-nothing";
    loop {
        let begun = Instant::now();
        let request = async {
            let mut connection = daemon.connect().await?;
            connection.is_valid_path(IsValidPath { path: path.into() }).await?;
            // Something that writes, too, though not so often that the disk is all that is measured.
            if times.len() % 10 == 0 {
                add_text(&mut connection, "ping", format!("{} {}", times.len(), std::process::id()).as_bytes(), &[]).await?;
            }
            Ok::<(), Error>(())
        };
        match timeout(SERVED, request).await {
            Ok(result) => result?,
            Err(_) => fail!("no answer within {SERVED:?}"),
        }
        times.push(begun.elapsed());
        tokio::select! {
            _ = &mut end => break,
            () = sleep(Duration::from_millis(10)) => {}
        }
    }
    times.sort();
    let at = |part: usize| times.get((times.len() * part / 1000).min(times.len() - 1)).copied().unwrap_or_default().as_secs_f64() * 1000.0;
    Ok(format!("{} {:.2} {:.2} {:.2}", times.len(), at(500), at(990), at(1000)))
}

/// A connection without a client's manners.
struct Raw {
    stream: UnixStream,
}

/// How the daemon took it.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// It answered.
    Last,
    /// It refused.
    Refused(String),
    /// It closed the connection.
    Closed,
}

fn greeting() -> Vec<u8> {
    let version = u64::from(Version::GUIX_1_100.0);
    [MAGIC_CLIENT, version, 0, 1].iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_string(&mut out, bytes);
    out
}

impl Raw {
    /// Connected only.
    async fn silent(daemon: &Daemon) -> Result<Raw> {
        Ok(Raw { stream: UnixStream::connect(&daemon.socket).await? })
    }

    /// After the greeting.
    async fn greeted(daemon: &Daemon) -> Result<Raw> {
        let mut raw = Raw::silent(daemon).await?;
        raw.stream.write_all(&greeting()).await?;
        raw.stream.read_exact(&mut [0; 16]).await?;
        match raw.answer().await? {
            Answer::Last => Ok(raw),
            answer => Err(format!("greeted with {answer:?}").into()),
        }
    }

    /// Sends as much as is taken. That it closes the connection meanwhile is no error.
    async fn send(&mut self, bytes: &[u8]) {
        let _ = timeout(ANSWER, self.stream.write_all(bytes)).await;
    }

    async fn word(&mut self) -> Option<u64> {
        let mut word = [0; 8];
        self.stream.read_exact(&mut word).await.ok()?;
        Some(u64::from_le_bytes(word))
    }

    async fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.word().await?).ok()?.min(1 << 20);
        let mut bytes = vec![0; length.next_multiple_of(8)];
        self.stream.read_exact(&mut bytes).await.ok()?;
        Some(String::from_utf8_lossy(bytes.get(..length)?).into_owned())
    }

    /// Waits for the end of an operation.
    async fn answer(&mut self) -> Result<Answer> {
        let answer = async {
            loop {
                match self.word().await {
                    None => return Ok(Answer::Closed),
                    Some(STDERR_NEXT) => drop(self.text().await),
                    Some(STDERR_LAST) => return Ok(Answer::Last),
                    Some(STDERR_ERROR) => return Ok(Answer::Refused(self.text().await.unwrap_or_default())),
                    // The reply of an operation before.
                    Some(_) => {}
                }
            }
        };
        timeout(ANSWER, answer).await.unwrap_or_else(|_| Err("neither an answer nor an end".into()))
    }

    /// Waits until the daemon closes the connection, whatever it says before.
    async fn closed(&mut self, limit: Duration) -> Result<()> {
        let mut buffer = vec![0; 65536];
        let drained = async { while self.stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {} };
        timeout(limit, drained).await.map_err(|_| format!("the connection is still open after {limit:?}").into())
    }
}

/// Says how many connections there are, and waits until somebody has looked.
async fn hold(held: usize) -> Result<()> {
    println!("ready {held}");
    tokio::io::stdin().read_exact(&mut [0]).await?;
    Ok(())
}

/// Bytes of a request with these fields.
fn request(code: u64, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = words(&[code]);
    for field in fields {
        bytes.extend_from_slice(field);
    }
    bytes
}

/// A request that is refused, or ends its connection, and neither takes long.
async fn refused(daemon: &Daemon, what: &str, bytes: &[u8]) -> Result<()> {
    let mut raw = Raw::greeted(daemon).await?;
    raw.send(bytes).await;
    match raw.answer().await.map_err(|error| format!("{what}: {error}"))? {
        Answer::Last => Err(format!("{what} was accepted").into()),
        Answer::Refused(_) | Answer::Closed => Ok(()),
    }
}

/// One attack.
pub(crate) async fn attack(name: &str, long: bool) -> Result<String> {
    let daemon = Daemon::from_env()?;
    match name {
        "warm-up" => warm_up(&daemon).await,
        "idle" => idle(&daemon).await,
        "lengths" => lengths(&daemon).await,
        "counts" => counts(&daemon).await,
        "archives" => archives(&daemon).await,
        "derivations" => derivations(&daemon, long).await,
        "texts" => texts(&daemon).await,
        "deaf" => deaf(&daemon).await,
        "half-closed" => half_closed(&daemon).await,
        "cut" => cut(&daemon).await,
        "random" => random(&daemon, if long { 400 } else { 30 }).await,
        "connections" => connections(&daemon).await,
        "slow" => slow(&daemon, long).await,
        _ => Err(format!("there is no attack {name}").into()),
    }
}

async fn warm_up(daemon: &Daemon) -> Result<String> {
    let mut connections = Vec::new();
    for number in 0..50 {
        let mut connection = daemon.connect().await?;
        add_text(&mut connection, &format!("warm-{number}"), b"", &[]).await?;
        connections.push(connection);
    }
    let mut connection = daemon.connect().await?;
    let tools = Tools::add(&mut connection).await?;
    let mut cook = Cook::new(daemon.dir.clone(), tools);
    let drv = cook.make(&mut connection, Recipe::new("warm", "echo > $out")).await?;
    build(&mut connection, &[&drv.path]).await?;
    Ok(String::new())
}

/// A thousand connections that have been used once and then do nothing.
async fn idle(daemon: &Daemon) -> Result<String> {
    let mut held = Vec::new();
    for _ in 0..1000 {
        let mut connection = daemon.connect().await?;
        connection.is_valid_path(IsValidPath { path: "/frx/store/00000000000000000000000000000000-nothing".into() }).await?;
        held.push(connection);
    }
    hold(held.len()).await?;
    let last = held.last_mut().ok_or("no connection")?;
    last.set_options(options()).await?;
    Ok("the last is still served".into())
}

/// The first field of each operation is longer than anything.
async fn lengths(daemon: &Daemon) -> Result<String> {
    let mut tried = 0;
    let filler = vec![0; 64 * 1024];
    let codes: Vec<u64> = TABLE.iter().map(|info| info.code).chain([0, 2, 999, 1 << 31, 1 << 63, u64::MAX]).collect();
    for code in codes {
        for length in [1 << 31, 1 << 32, 1 << 40, 1 << 63, u64::MAX - 7, u64::MAX] {
            let mut raw = Raw::greeted(daemon).await?;
            raw.send(&request(code, &[&words(&[length]), &filler])).await;
            raw.answer().await.map_err(|error| format!("operation {code}, length {length}: {error}"))?;
            tried += 1;
        }
    }
    let archive = [string(b"nix-archive-1"), string(b"("), string(b"type"), string(b"regular"), string(b"contents")].concat();
    for length in [1_u64 << 40, 1 << 63, u64::MAX - 7, u64::MAX] {
        let fields: [&[u8]; 6] = [&string(b"huge"), &words(&[1, 1]), &string(b"sha256"), &archive, &words(&[length]), &filler];
        let mut raw = Raw::greeted(daemon).await?;
        raw.send(&request(7, &fields)).await;
        drop(raw);
        tried += 1;
    }
    Ok(format!("{tried} lengths"))
}

/// Collections of more items than anything has.
async fn counts(daemon: &Daemon) -> Result<String> {
    let mut tried = 0;
    let filler = vec![0; 64 * 1024];
    let settings = words(&[0; 9]);
    let heads: [(u64, Vec<u8>); 8] = [
        (8, [string(b"x"), string(b"y")].concat()),
        (9, vec![]),
        (19, settings),
        (20, words(&[3])),
        (25, vec![]),
        (30, vec![]),
        (31, vec![]),
        (32, vec![]),
    ];
    for (code, head) in &heads {
        for count in [limits::REQUEST_ITEMS + 1, 1 << 32, 1 << 40, 1 << 63, u64::MAX] {
            refused(daemon, &format!("operation {code} with {count} items"), &request(*code, &[head, &words(&[count]), &filler])).await?;
            tried += 1;
        }
    }
    // As many as are allowed, each as long as is allowed: together they are too many bytes.
    let path = string(format!("/frx/store/{}", "x".repeat(4000)).as_bytes());
    let mut many = words(&[31, limits::REQUEST_ITEMS]);
    while many.len() < 64 << 20 {
        many.extend_from_slice(&path);
    }
    refused(daemon, "a list of 64 MiB", &many).await?;
    Ok(format!("{} counts", tried + 1))
}

/// Archives that are none.
async fn archives(daemon: &Daemon) -> Result<String> {
    let tokens = |tokens: &[&[u8]]| tokens.iter().flat_map(|token| string(token)).collect::<Vec<u8>>();
    let file = tokens(&[b"(", b"type", b"regular", b"contents", b"x", b")"]);
    let entry = |name: &[u8], node: &[u8]| [tokens(&[b"entry", b"(", b"name", name, b"node"]), node.to_vec(), tokens(&[b")"])].concat();
    let directory = |entries: &[Vec<u8>]| [tokens(&[b"(", b"type", b"directory"]), entries.concat(), tokens(&[b")"])].concat();
    let link = |target: &[u8]| tokens(&[b"(", b"type", b"symlink", b"target", target, b")"]);
    let deep = |depth: usize| {
        let down = tokens(&[b"(", b"type", b"directory", b"entry", b"(", b"name", b"d", b"node"]);
        [down.repeat(depth), file.clone(), tokens(&[b")", b")"]).repeat(depth)].concat()
    };
    let long_name = vec![b'n'; 256];
    let long_target = vec![b't'; 4096];
    let mut bad: Vec<(String, Vec<u8>)> = vec![
        ("unsorted".into(), directory(&[entry(b"b", &file), entry(b"a", &file)])),
        ("twice the same name".into(), directory(&[entry(b"a", &link(b"/tmp")), entry(b"a", &directory(&[entry(b"x", &file)]))])),
        ("an empty target".into(), link(b"")),
        ("a target with a NUL".into(), link(b"a\0b")),
        ("a long target".into(), link(&long_target)),
        ("65 directories deep".into(), deep(65)),
        ("100,000 directories deep".into(), deep(100_000)),
        ("no type".into(), tokens(&[b"(", b")"])),
        ("an unknown type".into(), tokens(&[b"(", b"type", b"socket", b")"])),
        ("two types".into(), tokens(&[b"(", b"type", b"regular", b"type", b"directory", b")"])),
        ("contents of a directory".into(), tokens(&[b"(", b"type", b"directory", b"contents", b"x", b")"])),
        ("a long token".into(), tokens(&[b"(", &vec![b'x'; 1 << 20]])),
        ("an entry without a node".into(), tokens(&[b"(", b"type", b"directory", b"entry", b"(", b"name", b"a", b")", b")"])),
        ("executable with a value".into(), tokens(&[b"(", b"type", b"regular", b"executable", b"yes", b"contents", b"x", b")"])),
    ];
    for name in [b"".as_slice(), b".", b"..", b"a/b", b"/etc", b"a\0b", &long_name] {
        bad.push((format!("an entry called {:?}", String::from_utf8_lossy(name)), directory(&[entry(name, &file)])));
    }
    let head = request(7, &[&string(b"bad"), &words(&[1, 1]), &string(b"sha256")]);
    let magic = string(b"nix-archive-1");
    for (what, node) in &bad {
        refused(daemon, what, &[head.clone(), magic.clone(), node.clone()].concat()).await?;
    }
    refused(daemon, "another magic", &[head.clone(), string(b"nix-archive-2"), file.clone()].concat()).await?;
    let mut padding = file.clone();
    if let Some(byte) = padding.iter_mut().rev().nth(18) {
        *byte = 1;
    }
    refused(daemon, "padding that is not zero", &[head, magic.clone(), padding].concat()).await?;
    let flat = request(7, &[&string(b"bad"), &words(&[1, 0]), &string(b"sha256")]);
    refused(daemon, "a directory as a flat file", &[flat, magic.clone(), directory(&[])].concat()).await?;
    let odd = request(7, &[&string(b"bad"), &words(&[1, 1]), &string(b"sha257")]);
    refused(daemon, "an unknown hash", &[odd, magic.clone(), file.clone()].concat()).await?;
    for name in ["", ".hidden", "a/b", "..", "a\nb", "a b", &"x".repeat(230)] {
        let head = request(7, &[&string(name.as_bytes()), &words(&[1, 1]), &string(b"sha256")]);
        refused(daemon, &format!("the name {name:?}"), &[head, magic.clone(), file.clone()].concat()).await?;
    }
    Ok(format!("{} archives", bad.len() + 11))
}

/// Derivations that are none, or too much.
async fn derivations(daemon: &Daemon, long: bool) -> Result<String> {
    let store = daemon.dir.as_str();
    let path = |n: usize, end: &str| format!("{store}/{n:032}-x{end}");
    let mut texts: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("its beginning", b"Derive(".to_vec()),
        ("a million brackets", [b"Derive(".to_vec(), vec![b'['; 1_000_000]].concat()),
        ("a million parentheses", [b"Derive([".to_vec(), vec![b'('; 1_000_000]].concat()),
        ("30 MiB of one letter", vec![b'A'; 30 << 20]),
        ("a string without an end", [b"Derive([(\"".to_vec(), vec![b'a'; 20 << 20]].concat()),
        ("a string of escapes", [b"Derive([(\"".to_vec(), b"\\n".repeat(10 << 20), b"\"".to_vec()].concat()),
        ("a backslash at the end", b"Derive([(\"\\".to_vec()),
        ("an output outside", b"Derive([(\"out\",\"/etc/passwd\",\"\",\"\")],[],[],\"x\",\"y\",[],[])".to_vec()),
        ("an output above", format!("Derive([(\"out\",\"{store}/../x\",\"\",\"\")],[],[],\"x\",\"y\",[],[])").into_bytes()),
    ];
    let outputs: Vec<String> = (0..20_000).map(|n| format!("(\"o{n:05}\",\"{}\",\"\",\"\")", path(n, ""))).collect();
    texts.push(("20,000 outputs", format!("Derive([{}],[],[],\"x86_64-linux\",\"/bin/sh\",[],[])", outputs.join(",")).into_bytes()));
    let inputs: Vec<String> = (0..100_000).map(|n| format!("(\"{}\",[\"out\"])", path(n, ".drv"))).collect();
    let out = path(0, "");
    texts.push((
        "100,000 inputs that do not exist",
        format!("Derive([(\"out\",\"{out}\",\"\",\"\")],[{}],[],\"x86_64-linux\",\"/bin/sh\",[],[])", inputs.join(",")).into_bytes(),
    ));
    let sources: Vec<String> = (0..100_000).map(|n| format!("\"{}\"", path(n, ""))).collect();
    texts.push((
        "100,000 sources that do not exist",
        format!("Derive([(\"out\",\"{out}\",\"\",\"\")],[],[{}],\"x86_64-linux\",\"/bin/sh\",[],[])", sources.join(",")).into_bytes(),
    ));
    for (what, text) in &texts {
        // As a text, and as a file, which nobody looks into before it is to be built.
        let mut connection = daemon.connect().await?;
        let added = add_text(&mut connection, "bad.drv", text, &[]).await;
        must_not_build(&mut connection, what, added).await?;
        let mut connection = daemon.connect().await?;
        let request = crate::common::add_archive_as(&mut connection, "worse.drv", &file_archive(text)?, false, "sha256").await;
        must_not_build(&mut connection, what, request).await?;
    }
    // A chain, each of which needs the one before; the client goes while the first is built.
    let depth = if long { 3000 } else { 500 };
    let mut connection = daemon.connect().await?;
    let tools = Tools::add(&mut connection).await?;
    let mut cook = Cook::new(daemon.dir.clone(), tools);
    let mut last = cook.make(&mut connection, Recipe::new("chain-0", "$bb sleep 600")).await?;
    for number in 1..depth {
        last = cook.make(&mut connection, Recipe::new(format!("chain-{number}"), "echo > $out").needs(&last)).await?;
    }
    if timeout(Duration::from_secs(2), build(&mut connection, &[&last.path])).await.is_ok() {
        fail!("a chain of {depth} derivations ended in no time");
    }
    Ok(format!("{} derivations, and a chain of {depth}", 2 * texts.len()))
}

async fn must_not_build(connection: &mut Connection, what: &str, added: Result<StorePath>) -> Result<()> {
    if let Ok(path) = added {
        match timeout(ANSWER, build(connection, &[&path])).await {
            Ok(Ok(())) => fail!("a derivation of {what} was built"),
            Ok(Err(_)) => {}
            Err(_) => fail!("a derivation of {what}: neither an answer nor an end"),
        }
    }
    Ok(())
}

/// Long texts, of which the last byte never comes.
async fn texts(daemon: &Daemon) -> Result<String> {
    let size: usize = 30 << 20;
    let head = request(8, &[&string(b"text"), &words(&[size as u64])]);
    let piece = vec![b'x'; 1 << 20];
    let mut held = Vec::new();
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        let mut raw = Raw::greeted(daemon).await?;
        let (head, piece) = (head.clone(), piece.clone());
        tasks.spawn(async move {
            raw.send(&head).await;
            // It may well not be taken.
            let all = async {
                for _ in 0..29 {
                    raw.stream.write_all(&piece).await?;
                }
                Ok::<(), std::io::Error>(())
            };
            let _ = timeout(Duration::from_secs(3), all).await;
            raw
        });
    }
    while let Some(raw) = tasks.join_next().await {
        held.push(raw?);
    }
    hold(held.len()).await?;
    Ok(format!("{} texts of 30 MiB", held.len()))
}

/// Clients that ask for much and read nothing.
async fn deaf(daemon: &Daemon) -> Result<String> {
    // A build with 50 MB of output goes on without its client's reading.
    let mut other = daemon.connect().await?;
    let tools = Tools::add(&mut other).await?;
    let mut cook = Cook::new(daemon.dir.clone(), tools);
    let script = "$bb yes 'a line that nobody reads, though it is there to be read' | $bb head -c 50000000\necho > $out";
    let drv = cook.make(&mut other, Recipe::new("noisy", script)).await?;
    let out = daemon.dir.display(drv.out()?);
    let mut reader = Raw::greeted(daemon).await?;
    let options = fruix_protocol::wire::encode::<fruix_protocol::ops::SetOptions>(
        &options(),
        &Context { store_dir: daemon.dir.clone(), version: Version::GUIX_1_100 },
    );
    let path = string(daemon.dir.display(&drv.path).as_bytes());
    reader.send(&[request(19, &[&options]), request(9, &[&words(&[1]), &path, &words(&[0])])].concat()).await;
    let begun = Instant::now();
    // Connections that ask for all valid paths again and again.
    let mut held = vec![];
    for _ in 0..100 {
        let mut raw = Raw::greeted(daemon).await?;
        let _ = timeout(Duration::from_millis(20), raw.stream.write_all(&words(&[23]).repeat(100_000))).await;
        held.push(raw);
    }
    hold(held.len() + 1).await?;
    while !other.is_valid_path(IsValidPath { path: out.clone().into() }).await? {
        if begun.elapsed() > Duration::from_secs(60) {
            fail!("a build waits for a client that does not read");
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(format!("a build with 50 MB of output took {:.1} s for a client that never reads", begun.elapsed().as_secs_f64()))
}

/// Connections that say nothing more, and still listen.
async fn half_closed(daemon: &Daemon) -> Result<String> {
    let valid = request(1, &[&string(b"/frx/store/00000000000000000000000000000000-nothing")]);
    let mut connection = daemon.connect().await?;
    let tools = Tools::add(&mut connection).await?;
    let mut cook = Cook::new(daemon.dir.clone(), tools);
    let drv = cook.make(&mut connection, Recipe::new("half-closed", "$bb sleep 100; echo > $out")).await?;
    let path = string(daemon.dir.display(&drv.path).as_bytes());
    let half = valid.get(..20).unwrap_or_default().to_vec();
    let archive = request(7, &[&string(b"half"), &words(&[1, 1]), &string(b"sha256"), &string(b"nix-archive-1")]);
    let cases: [(&str, Vec<u8>); 6] = [
        ("nothing", vec![]),
        ("half an operation", vec![1, 0]),
        ("half a request", half),
        ("a request", valid),
        ("half an archive", archive),
        ("a build", request(9, &[&words(&[1]), &path, &words(&[0])])),
    ];
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    for (what, bytes) in cases {
        for _ in 0..30 {
            let (daemon, bytes) = (daemon.clone(), bytes.clone());
            tasks.spawn(async move {
                let mut raw = Raw::greeted(&daemon).await?;
                raw.send(&bytes).await;
                raw.stream.shutdown().await?;
                raw.closed(Duration::from_secs(15)).await.map_err(|error| format!("half-closed after {what}: {error}").into())
            });
        }
    }
    for what in ["nothing at all", "half a greeting"] {
        for _ in 0..30 {
            let daemon = daemon.clone();
            tasks.spawn(async move {
                let mut raw = Raw::silent(&daemon).await?;
                if what == "half a greeting" {
                    raw.send(greeting().get(..11).unwrap_or_default()).await;
                }
                raw.stream.shutdown().await?;
                raw.closed(Duration::from_secs(15)).await.map_err(|error| format!("half-closed after {what}: {error}").into())
            });
        }
    }
    let all = tasks.len();
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    Ok(format!("{all} half-closed connections, all ended by the daemon"))
}

/// A session with a bit of everything, as bytes.
fn session(daemon: &Daemon, drv: &StorePath, number: usize) -> Result<Vec<u8>> {
    let context = Context { store_dir: daemon.dir.clone(), version: Version::GUIX_1_100 };
    let tree = Tree::Directory(vec![
        ("a".into(), Tree::File(format!("file {:05}", number / 16).into_bytes(), true)),
        ("b".into(), Tree::Link("a".into())),
    ]);
    let drv = string(daemon.dir.display(drv).as_bytes());
    Ok([
        greeting(),
        request(19, &[&fruix_protocol::wire::encode::<fruix_protocol::ops::SetOptions>(&options(), &context)]),
        request(8, &[&string(b"cut"), &string(format!("text {:05}", number / 16).as_bytes()), &words(&[1]), &drv]),
        request(7, &[&string(b"cut-tree"), &words(&[1, 1]), &string(b"sha256"), &archive(&tree)?]),
        request(9, &[&words(&[1]), &drv, &words(&[0])]),
        request(26, &[&drv]),
        request(31, &[&words(&[2]), &drv, &drv]),
        request(20, &[&words(&[1, 0, 0, u64::MAX, 0, 0, 0])]),
    ]
    .concat())
}

/// A session that ends after each of its bytes, by closing or half-closing.
async fn cut(daemon: &Daemon) -> Result<String> {
    let mut connection = daemon.connect().await?;
    let tools = Tools::add(&mut connection).await?;
    let mut cook = Cook::new(daemon.dir.clone(), tools);
    let drv = cook.make(&mut connection, Recipe::new("cut", "echo > $out")).await?;
    let length = session(daemon, &drv.path, 0)?.len();
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    for end in 0..=length {
        if tasks.len() >= 8
            && let Some(result) = tasks.join_next().await
        {
            result??;
        }
        let (daemon, drv) = (daemon.clone(), drv.path.clone());
        tasks.spawn(async move {
            let bytes = session(&daemon, &drv, end)?;
            let mut raw = Raw::silent(&daemon).await?;
            raw.send(bytes.get(..end).unwrap_or_default()).await;
            if end % 2 == 0 {
                raw.stream.shutdown().await?;
                raw.closed(ANSWER).await.map_err(|error| format!("cut after byte {end}: {error}"))?;
            }
            Ok(())
        });
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    Ok(format!("cut after each of {length} bytes"))
}

/// Requests with bytes changed, left out or added, and bytes without any sense.
async fn random(daemon: &Daemon, rounds: u64) -> Result<String> {
    let mut samples = Samples::new(seed(), daemon.dir.clone());
    let context = Context { store_dir: daemon.dir.clone(), version: Version::GUIX_1_100 };
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    let mut tried = 0;
    for _ in 0..rounds {
        for info in TABLE {
            let mut bytes = words(&[info.code]);
            match samples.below(4) {
                0 => bytes.extend_from_slice(&samples.bytes(400)),
                1 => (0..samples.below(40)).for_each(|_| bytes.extend_from_slice(&samples.below(64).to_le_bytes())),
                _ => {
                    info.operation.sample_request(&mut samples).encode(&mut Sink::new(&mut bytes, &context));
                    if info.code == 7 {
                        bytes.extend_from_slice(&file_archive(b"random")?);
                    }
                    for _ in 0..samples.below(4) {
                        let at = usize::try_from(samples.below(bytes.len() as u64))?;
                        match samples.below(3) {
                            0 => bytes.truncate(at.max(8)),
                            1 => bytes.insert(at.max(8).min(bytes.len()), 0xff),
                            _ => {
                                let flip = 1 << samples.below(8);
                                if let Some(byte) = bytes.get_mut(at.max(8)) {
                                    *byte ^= flip;
                                }
                            }
                        }
                    }
                }
            }
            if tasks.len() >= 8
                && let Some(result) = tasks.join_next().await
            {
                result??;
            }
            let (daemon, what) = (daemon.clone(), format!("{} {bytes:?}", info.name));
            tasks.spawn(async move {
                let mut raw = Raw::greeted(&daemon).await?;
                raw.send(&bytes).await;
                raw.stream.shutdown().await?;
                raw.closed(ANSWER).await.map_err(|error| format!("{what}: {error}").into())
            });
            tried += 1;
        }
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    Ok(format!("{tried} random requests"))
}

/// As many connections as one user can have, and more.
async fn connections(daemon: &Daemon) -> Result<String> {
    let mut held = Vec::new();
    let mut turned_away = 0;
    for _ in 0..6000 {
        match UnixStream::connect(&daemon.socket).await {
            Ok(stream) => held.push(stream),
            Err(_) => turned_away += 1,
        }
    }
    hold(held.len()).await?;
    let mut closed = 0;
    for stream in &mut held {
        let mut byte = [0; 17];
        if matches!(timeout(Duration::from_millis(1), stream.read(&mut byte)).await, Ok(Ok(0) | Err(_))) {
            closed += 1;
        }
    }
    Ok(format!("{closed} of {} were closed at once, {turned_away} not made", held.len()))
}

/// A byte a second, at every place where the daemon waits for bytes; it must lose its patience in time.
async fn slow(daemon: &Daemon, long: bool) -> Result<String> {
    let patience = Duration::from_secs(if long { 640 } else { 75 });
    let request = request(8, &[&string(b"slow-text"), &string(&[b'x'; 2000]), &words(&[0])]);
    let upload = self::request(7, &[&string(b"slow"), &words(&[1, 1]), &string(b"sha256"), &file_archive(&[b'x'; 4000])?]);
    let mut tasks: JoinSet<Result<(&str, Option<Duration>)>> = JoinSet::new();
    for (what, greeted, bytes) in
        [("greeting", false, greeting()), ("nothing", false, vec![]), ("request", true, request), ("upload", true, upload)]
    {
        for _ in 0..40 {
            let (daemon, bytes) = (daemon.clone(), bytes.clone());
            tasks.spawn(async move {
                let mut raw = if greeted { Raw::greeted(&daemon).await? } else { Raw::silent(&daemon).await? };
                let begun = Instant::now();
                let mut buffer = [0; 4096];
                // The greeting's last words never come.
                for byte in bytes.iter().take(if greeted { bytes.len() - 1 } else { 20 }).map(Some).chain(std::iter::repeat(None)) {
                    if byte.is_some_and(|byte| raw.stream.try_write(&[*byte]).is_err()) {
                        return Ok((what, Some(begun.elapsed())));
                    }
                    // What it says first, and its end.
                    let pause = tokio::time::sleep(Duration::from_secs(1));
                    tokio::pin!(pause);
                    loop {
                        tokio::select! {
                            () = &mut pause => break,
                            read = raw.stream.read(&mut buffer) => if matches!(read, Ok(0) | Err(_)) {
                                return Ok((what, Some(begun.elapsed())));
                            },
                        }
                    }
                    if begun.elapsed() > patience {
                        break;
                    }
                }
                Ok((what, None))
            });
        }
    }
    sleep(Duration::from_secs(2)).await;
    println!("begun");
    let mut ended: std::collections::BTreeMap<&str, (usize, Duration)> = std::collections::BTreeMap::new();
    while let Some(result) = tasks.join_next().await {
        if let (what, Some(time)) = result?? {
            let (count, longest) = ended.entry(what).or_default();
            *count += 1;
            *longest = time.max(*longest);
        }
    }
    // Uploads may be slow for as long as something comes.
    let due: &[&str] = if long { &["greeting", "nothing", "request"] } else { &["greeting", "nothing"] };
    for what in due {
        if ended.get(what).is_none_or(|(count, _)| *count < 40) {
            fail!("slow connections ({what}) were not ended within {patience:?}: {ended:?}");
        }
    }
    let shown: Vec<String> =
        ended.iter().map(|(what, (count, longest))| format!("{count} {what} {:.0} s", longest.as_secs_f64())).collect();
    Ok(format!("of a byte a second ended: {}", shown.join(", ")))
}
