//! `random-diff`: random sequences of operations against guix-daemon and fruixd, until they disagree.
//!
//! ```text
//! random-diff run [--seed=N] [--time=SECONDS] [--stop=N] [--no-shrink] [--found=DIR]
//! random-diff replay FILE...       each as its `.diff' expects, with what happened on standard output
//! random-diff accept FILE...       writes the `.diff' anew
//! random-diff shrink FILE          a case that disagrees, made smaller
//! random-diff show --seed=N        the case of a seed
//! random-diff pipe SOCKET          standard input and output to a socket
//! random-diff sweep FRX            within the namespaces: removes what a refused request left
//! ```
//!
//! Started by `compat-tests/random/run.sh`, which says in the environment where what it needs is.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use fruix_compat_tests::random::case::Case;
use fruix_compat_tests::random::side::{Side, Transcript};
use fruix_compat_tests::random::{Result, generate, plan, shrink, side};

#[derive(Parser)]
#[command(args_override_self = true)]
struct Options {
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    Run(Run),
    Replay {
        /// Cases.
        files: Vec<PathBuf>,
        /// Say what each side did.
        #[arg(long)]
        all: bool,
    },
    Accept {
        files: Vec<PathBuf>,
    },
    Shrink {
        file: PathBuf,
        #[arg(long, default_value_t = 600)]
        shrink_time: u64,
    },
    Show {
        #[arg(long)]
        seed: u64,
    },
    Pipe {
        socket: PathBuf,
    },
    Sweep {
        frx: PathBuf,
    },
}

#[derive(Args)]
#[command(args_override_self = true)]
struct Run {
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds after which no new case is begun.
    #[arg(long, default_value_t = 60)]
    time: u64,
    /// Stop after so many disagreements.
    #[arg(long, default_value_t = 1)]
    stop: usize,
    #[arg(long)]
    no_shrink: bool,
    /// Seconds for making a case smaller.
    #[arg(long, default_value_t = 180)]
    shrink_time: u64,
    /// Where the cases that disagree are written.
    #[arg(long, default_value = ".")]
    found: PathBuf,
}

fn main() -> ExitCode {
    match run(Options::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("random-diff: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(what: What) -> Result<bool> {
    match what {
        What::Run(options) => search(&options),
        What::Replay { files, all } => replay(&files, all),
        What::Accept { files } => accept(&files),
        What::Shrink { file, shrink_time } => {
            let case = Case::parse(&fs::read_to_string(file)?)?;
            let (case, lines) = smaller(&mut Pair::new()?, case, Duration::from_secs(shrink_time))?;
            print!("{}{case}", comment(&lines));
            Ok(lines.is_empty())
        }
        What::Show { seed } => {
            print!("{}", generate::case(seed));
            Ok(true)
        }
        What::Pipe { socket } => pipe(&socket),
        What::Sweep { frx } => side::sweep(&frx).map(|()| true),
    }
}

/// Both daemons.
struct Pair {
    sides: [Side; 2],
    normalise: Vec<PathBuf>,
}

fn variable(name: &str) -> Result<PathBuf> {
    Ok(std::env::var_os(name).ok_or_else(|| format!("{name} is not set; run.sh starts this"))?.into())
}

impl Pair {
    fn new() -> Result<Pair> {
        let checkout = variable("CHECKOUT")?;
        let tests = checkout.join("compat-tests");
        let script = tests.join("random/side.sh");
        let tools = plan::tools(&fs::read(variable("BUSYBOX")?)?);
        Ok(Pair {
            sides: [Side::new("guix-daemon", &script, Arc::clone(&tools))?, Side::new("fruixd", &script, tools)?],
            normalise: vec![tests.join("differential/normalise.sed"), tests.join("random/normalise.sed")],
        })
    }

    /// What both do, made alike.
    fn run(&mut self, case: &Case) -> Result<[Transcript; 2]> {
        let [one, other] = &mut self.sides;
        let (one, other) = std::thread::scope(|scope| {
            let one = scope.spawn(|| one.run(case));
            let other = other.run(case);
            (one.join(), other)
        });
        let one = one.map_err(|_| "a thread ended")??;
        Ok([self.normalised(&one)?, self.normalised(&other?)?])
    }

    fn normalised(&self, transcript: &Transcript) -> Result<Transcript> {
        let mut command = Command::new("sed");
        command.arg("-E").stdin(Stdio::piped()).stdout(Stdio::piped());
        for file in &self.normalise {
            command.arg("-f").arg(file);
        }
        let mut sed = command.spawn()?;
        let mut text = transcript.join("\n");
        text.push('\n');
        let mut input = sed.stdin.take().ok_or("no pipe")?;
        let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
        let output = sed.wait_with_output()?;
        writer.join().map_err(|_| "a thread ended")??;
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }
}

/// The operation that a line belongs to.
fn head(transcript: &Transcript, at: usize) -> &str {
    transcript.iter().take(at + 1).rev().find(|line| !line.starts_with(' ')).map_or("", String::as_str)
}

struct Disagreement {
    /// The verb of the first operation that differs, or `end`.
    verb: String,
    /// That, and what differs about it, without names and numbers.
    kind: String,
    /// How many operations there are up to it.
    length: usize,
    /// Lines with `-` and `+`, each behind the operation that it belongs to.
    lines: Vec<String>,
}

/// Operation by operation, the lines that only one side has.
fn disagreement(case: &Case, [one, other]: &[Transcript; 2]) -> Option<Disagreement> {
    let first = (0..one.len().max(other.len())).find(|n| one.get(*n) != other.get(*n))?;
    let at = if head(one, first) == head(other, first) || first >= one.len() { head(other, first) } else { head(one, first) };
    let mut length = 0;
    for (n, op) in case.ops.iter().enumerate() {
        if at.starts_with(&format!("{} ", op.id)) {
            length = n + 1;
        }
    }
    let ended = !at.is_empty() && length == 0;
    let verb = if ended { "end".to_owned() } else { at.split(' ').nth(2).unwrap_or("end").to_owned() };
    let lines = difference(one, other);
    let kind = lines.iter().skip(1).take(2).fold(verb.clone(), |kind, line| format!("{kind}\n{}", outline(line)));
    Some(Disagreement { verb, kind, length: if ended { case.ops.len() } else { length }, lines })
}

/// A line without what is the case's own: paths and numbers.
fn outline(line: &str) -> String {
    let words = line.split_inclusive(' ').map(|word| if word.contains("store/") { "PATH " } else { word });
    let text: String = words.map(|word| word.replace(|c: char| c.is_ascii_digit(), "0")).collect();
    // How many paths there are in a list does not matter.
    let mut text = text.replace("PATH PATH ", "PATH ");
    while text.contains("PATH PATH ") {
        text = text.replace("PATH PATH ", "PATH ");
    }
    text
}

fn sections(transcript: &Transcript) -> Vec<(String, Vec<&str>)> {
    let mut sections: Vec<(String, Vec<&str>)> = Vec::new();
    let mut end = false;
    for line in transcript {
        if !end && !line.starts_with(' ') {
            end = line == "at the end";
            sections.push((line.clone(), Vec::new()));
        } else if let Some((_, lines)) = sections.last_mut() {
            lines.push(line);
        }
    }
    sections
}

fn difference(one: &Transcript, other: &Transcript) -> Vec<String> {
    let mut lines = Vec::new();
    for ((head, one), (_, other)) in sections(one).into_iter().zip(sections(other)) {
        if one == other {
            continue;
        }
        lines.push(head);
        let mut rest: BTreeMap<&str, i32> = BTreeMap::new();
        other.iter().for_each(|line| *rest.entry(line).or_default() += 1);
        let mut only = 0;
        for line in &one {
            match rest.get_mut(line) {
                Some(count) if *count > 0 => *count -= 1,
                _ => {
                    only += 1;
                    lines.push(format!("-{line}"));
                }
            }
        }
        for line in other.iter() {
            if let Some(count) = rest.get_mut(line)
                && *count > 0
            {
                *count -= 1;
                only += 1;
                lines.push(format!("+{line}"));
            }
        }
        if only == 0 {
            lines.push("the same in another order".to_owned());
        }
    }
    lines
}

/// The case made smaller, and the lines that still differ.
fn smaller(pair: &mut Pair, case: Case, limit: Duration) -> Result<(Case, Vec<String>)> {
    let Some(first) = disagreement(&case, &pair.run(&case)?) else { return Ok((case, Vec::new())) };
    let mut shows = |case: &Case| Ok(disagreement(case, &pair.run(case)?).is_some_and(|found| found.kind == first.kind));
    let mut shortened = case.clone();
    shortened.ops.truncate(first.length);
    let start = if shows(&shortened)? { shortened } else { case };
    let case = shrink::shrink(start, limit, &mut shows)?;
    let lines = disagreement(&case, &pair.run(&case)?).map_or(first.lines, |found| found.lines);
    Ok((case, lines))
}

fn comment(lines: &[String]) -> String {
    lines.iter().take(200).map(|line| format!("# {line}\n")).collect()
}

fn search(options: &Run) -> Result<bool> {
    let mut pair = Pair::new()?;
    let start = Instant::now();
    let (mut cases, mut operations, mut found) = (0_u64, 0, 0);
    let mut outcomes: BTreeMap<(String, &str), u64> = BTreeMap::new();
    let mut seed = options.seed;
    while start.elapsed() < Duration::from_secs(options.time) && found < options.stop {
        let case = generate::case(seed);
        let transcripts = match pair.run(&case) {
            Ok(transcripts) => transcripts,
            Err(error) => {
                // A daemon that cannot be run is not what was asked for either.
                found += 1;
                eprintln!("random-diff: seed {seed}: {error}");
                pair = Pair::new()?;
                seed += 1;
                continue;
            }
        };
        cases += 1;
        operations += case.ops.len();
        for (head, lines) in sections(&transcripts[1]) {
            let (Some(verb), Some(last)) = (head.split(' ').nth(2), lines.last()) else { continue };
            let outcome = if last.starts_with("  =>") || *last == "  done" {
                "done"
            } else if last.starts_with("  error") {
                "refused"
            } else {
                "other"
            };
            *outcomes.entry((verb.to_owned(), outcome)).or_default() += 1;
        }
        if let Some(first) = disagreement(&case, &transcripts) {
            found += 1;
            eprintln!("random-diff: seed {seed}: disagreement about {}", first.verb);
            let (shown, lines) = if options.no_shrink {
                (case, Vec::new())
            } else {
                smaller(&mut pair, case.clone(), Duration::from_secs(options.shrink_time)).or_else(|error| {
                    eprintln!("random-diff: seed {seed}: {error}");
                    pair = Pair::new()?;
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>((case, Vec::new()))
                })?
            };
            // None when it was not seen again: a matter of time.
            let lines = if lines.is_empty() { first.lines } else { lines };
            let file = options.found.join(format!("seed-{seed}.case"));
            let text = format!("# seed {seed}\n{}{shown}", comment(&lines));
            fs::write(&file, &text)?;
            if options.no_shrink {
                lines.iter().take(4).for_each(|line| eprintln!("  {}", line.chars().take(300).collect::<String>()));
            } else {
                eprintln!("{}\n{text}", file.display());
            }
        }
        seed += 1;
    }
    for ((verb, outcome), count) in &outcomes {
        eprint!("{verb} {outcome} {count}; ");
    }
    eprintln!(
        "\nrandom-diff: seeds {} to {}: {cases} cases, {operations} operations in {} s, {found} disagreements",
        options.seed,
        seed - 1,
        start.elapsed().as_secs()
    );
    Ok(found == 0)
}

/// The lines of the `.diff` beside a case; none without one.
fn expected(file: &Path) -> Vec<String> {
    fs::read_to_string(file.with_extension("diff")).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn replay(files: &[PathBuf], all: bool) -> Result<bool> {
    let mut pair = Pair::new()?;
    let mut good = true;
    for file in files {
        let case = Case::parse(&fs::read_to_string(file)?)?;
        let transcripts = pair.run(&case)?;
        if all {
            for (name, transcript) in ["guix-daemon", "fruixd"].iter().zip(&transcripts) {
                println!("== {name}");
                transcript.iter().for_each(|line| println!("{line}"));
            }
        }
        let lines = disagreement(&case, &transcripts).map(|disagreement| disagreement.lines).unwrap_or_default();
        if lines != expected(file) {
            good = false;
            println!("DISAGREE {}", file.display());
            lines.iter().for_each(|line| println!("{line}"));
        }
    }
    eprintln!("random-diff: {} cases replayed{}", files.len(), if good { ", all as expected" } else { "" });
    Ok(good)
}

fn accept(files: &[PathBuf]) -> Result<bool> {
    let mut pair = Pair::new()?;
    for file in files {
        let case = Case::parse(&fs::read_to_string(file)?)?;
        let diff = file.with_extension("diff");
        match disagreement(&case, &pair.run(&case)?) {
            Some(found) => fs::write(diff, found.lines.join("\n") + "\n")?,
            None if diff.exists() => fs::remove_file(diff)?,
            None => {}
        }
    }
    Ok(true)
}

fn pipe(socket: &Path) -> Result<bool> {
    let mut incoming = side::connect(socket)?;
    let mut outgoing = incoming.try_clone()?;
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut outgoing);
        std::process::exit(0);
    });
    let mut stdout = io::stdout().lock();
    let mut buffer = [0; 65536];
    loop {
        let count = io::Read::read(&mut incoming, &mut buffer).unwrap_or(0);
        if count == 0 {
            std::process::exit(0);
        }
        stdout.write_all(buffer.get(..count).unwrap_or_default())?;
        stdout.flush()?;
    }
}
