//! `bench`: how fast guix-daemon and fruixd are, side by side. Run by `compat-tests/bench/run.sh`, which says how and where.

mod daemon;
mod graph;
mod report;
mod storm;
mod wire;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;

use crate::daemon::Side;
use crate::report::Table;
use crate::workloads::{Bench, Sizes, Turn};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Compares daemons in turns: each side once, then each side once again, and so on.
#[derive(Parser)]
struct Arguments {
    /// How often each side has its turn.
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Only these workloads: B1 to B6, B8.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Small sizes, to see that it works; its figures say little.
    #[arg(long)]
    quick: bool,
    /// Leave out the turns in which the calls that wait for the disk are counted.
    #[arg(long)]
    no_trace: bool,
    /// An empty directory, for all stores.
    #[arg(long)]
    root: PathBuf,
    /// Where the tables go, besides standard output.
    #[arg(long)]
    out: PathBuf,
    /// NAME=COMMAND: a side; the first is what the others are compared with. Spaces separate the command's words.
    #[arg(long = "side", required = true)]
    sides: Vec<String>,
    /// The same for a side that takes part only in the workloads that add: B2, B5, B6.
    #[arg(long = "adding-side")]
    adding_sides: Vec<String>,
}

/// Turns of a workload on all sides; what the turns of a side share is made by `prepare` before the first.
fn run<P>(
    arguments: &Arguments,
    bench: &mut Bench,
    sides: &[Side],
    title: &str,
    mut prepare: impl FnMut(&mut Bench, &Side) -> Result<P>,
    mut turn: impl FnMut(&mut Bench, &Side, &P, bool) -> Result<Turn>,
) -> Result<String> {
    let mut table = Table::default();
    let begin = Instant::now();
    let prepared: Result<Vec<P>> = sides.iter().map(|side| prepare(bench, side)).collect();
    let prepared = prepared?;
    for number in 0..arguments.turns {
        // Who begins changes, so that what comes before whom evens out.
        for position in 0..sides.len() {
            let i = (position + number) % sides.len();
            daemon::settle()?;
            let (figures, _) =
                turn(bench, &sides[i], &prepared[i], false).map_err(|error| format!("{title}, {}: {error}", sides[i].name))?;
            table.add(i, figures);
        }
        eprintln!("bench: {title}: turn {} of {} done after {:.0} s", number + 1, arguments.turns, begin.elapsed().as_secs_f64());
    }
    if !arguments.no_trace {
        for (i, side) in sides.iter().enumerate() {
            let (_, counts) = turn(bench, side, &prepared[i], true).map_err(|error| format!("{title}, {} traced: {error}", side.name))?;
            table.add_syncs(i, counts);
        }
    }
    for side in sides {
        side.wipe()?;
    }
    let names: Vec<String> = sides.iter().map(|side| side.name.clone()).collect();
    Ok(table.show(title, &names))
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let known = ["B1", "B2", "B4", "B5", "B6", "B8"];
    let mut only: BTreeSet<String> =
        arguments.only.iter().map(|name| if name == "B3" { "B2".to_owned() } else { name.to_uppercase() }).collect();
    if only.is_empty() {
        only = known.iter().map(ToString::to_string).collect();
    }
    if let Some(name) = only.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("there is no workload {name}").into());
    }
    let mut sides = Vec::new();
    for (i, side) in arguments.sides.iter().chain(&arguments.adding_sides).enumerate() {
        let (name, command) = side.split_once('=').ok_or("a side is NAME=COMMAND")?;
        sides.push(Side {
            name: name.to_owned(),
            command: command.split_whitespace().map(str::to_owned).collect(),
            root: arguments.root.join(i.to_string()),
            pipelines: !name.starts_with("guix-daemon"),
        });
    }
    let sizes = if arguments.quick { Sizes::quick() } else { Sizes::full() };
    let mut bench = Bench { sizes, big: None, trees: BTreeMap::new(), storms: BTreeMap::new() };
    let mut out = fs::File::create(&arguments.out)?;
    let nothing = |_: &mut Bench, _: &Side| Ok(());
    for name in known.iter().filter(|name| only.contains(**name)) {
        let mut tables = Vec::new();
        let sides = if ["B2", "B5", "B6"].contains(name) { &sides } else { &sides[..arguments.sides.len()] };
        match *name {
            "B1" => {
                tables.push(run(&arguments, &mut bench, sides, "B1 connections", nothing, |bench, side, (), trace| {
                    workloads::connections(bench, side, trace)
                })?);
            }
            "B2" => {
                tables.push(run(&arguments, &mut bench, sides, "B2, B3 storm of derivations", nothing, |bench, side, (), trace| {
                    workloads::storm_of_one(bench, side, trace)
                })?);
                tables.push(run(&arguments, &mut bench, sides, "B2 storm by many", nothing, |bench, side, (), trace| {
                    workloads::storm_of_many(bench, side, trace)
                })?);
            }
            "B4" => {
                tables.push(run(
                    &arguments,
                    &mut bench,
                    sides,
                    "B4 queries",
                    |bench, side| workloads::prepare_queries(bench, side),
                    |bench, side, graph, trace| workloads::queries(bench, side, graph, trace),
                )?);
                tables.push(run(
                    &arguments,
                    &mut bench,
                    sides,
                    "B4 builds of what is built",
                    workloads::prepare_plan,
                    |_, side, derivations, trace| workloads::plan(side, derivations, trace),
                )?);
            }
            "B5" => {
                tables.push(run(&arguments, &mut bench, sides, "B5 one big file", nothing, |bench, side, (), trace| {
                    workloads::big_file(bench, side, trace)
                })?);
                bench.big = None;
            }
            "B6" => {
                tables.push(run(&arguments, &mut bench, sides, "B6 small files", nothing, |bench, side, (), trace| {
                    workloads::small_files(bench, side, trace)
                })?);
                bench.trees.clear();
            }
            _ => {
                tables.push(run(
                    &arguments,
                    &mut bench,
                    sides,
                    "B8 garbage",
                    |bench, side| workloads::prepare_rubbish(bench, side),
                    |_, side, rubbish, trace| workloads::collect(side, rubbish, trace),
                )?);
            }
        }
        for table in tables {
            print!("{table}");
            out.write_all(table.as_bytes())?;
        }
    }
    Ok(())
}
