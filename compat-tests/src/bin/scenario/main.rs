//! `scenario NAME ...`: what `compat-tests/scenarios/run.sh` does with a daemon, once that runs.
//!
//! Each scenario ends with one line of figures, or with a line that begins with `FAILED` and status 1.
//!
//! Environment: `GUIX_DAEMON_SOCKET` and `NIX_STORE_DIR` say which daemon; `BASH_STATIC` and `BUSYBOX` name programs for builders;
//! `SCENARIO_SEED` is a number that random choices follow from.

mod common;
mod gc_soak;
mod hostile;
mod many_clients;
mod recipes;
mod takeover;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What a daemon must endure.
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// One turn with a store that daemons take over from each other: compare with what the last one said, add, build, collect.
    Takeover {
        /// What is handed on from turn to turn.
        #[arg(long)]
        state: PathBuf,
        /// The number of the turn, from 1.
        #[arg(long)]
        turn: u32,
    },
    /// Compare two dumps of `store-dump`: what is in both must be the same.
    CompareDumps {
        /// The dump made before.
        before: PathBuf,
        /// The dump made after.
        after: PathBuf,
        /// Everything must be the same, not only what is in both.
        #[arg(long)]
        all: bool,
    },
    /// Many clients that ask for overlapping derivations, some of which go.
    ManyClients {
        /// Those that wait for all that they asked for.
        #[arg(long, default_value_t = 50)]
        clients: usize,
        /// Derivations that they share.
        #[arg(long, default_value_t = 60)]
        derivations: usize,
        /// Those that go in the middle.
        #[arg(long, default_value_t = 10)]
        leavers: usize,
        /// Where build logs are.
        #[arg(long)]
        logs: PathBuf,
    },
    /// Clients that add and build while garbage is collected without pause.
    GcSoak {
        /// For how long.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        /// How many clients add.
        #[arg(long, default_value_t = 8)]
        clients: u64,
    },
    /// Clients that mean harm, while another measures how it is served.
    Hostile {
        /// The process id of the daemon.
        #[arg(long)]
        pid: u32,
        /// The user who attacks, and the user who is served meanwhile.
        #[arg(long, num_args = 2, value_names = ["ATTACKER", "OTHER"])]
        users: Vec<u32>,
        /// Wait for the longest timeouts, too: ten minutes.
        #[arg(long)]
        long: bool,
        /// These attacks only.
        attacks: Vec<String>,
    },
    /// A part of `hostile`: one attack, by whoever runs it.
    #[command(hide = true)]
    Attack {
        /// Which.
        name: String,
        /// As for `hostile`.
        #[arg(long)]
        long: bool,
    },
    /// A part of `hostile`: asks until its standard input ends, and prints how long the answers took.
    #[command(hide = true)]
    Ping,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 4)]
async fn main() -> ExitCode {
    let options = Options::parse();
    let result = match options.scenario {
        Scenario::Takeover { state, turn } => takeover::turn(&state, turn).await,
        Scenario::CompareDumps { before, after, all } => takeover::compare_dumps(&before, &after, all),
        Scenario::ManyClients { clients, derivations, leavers, logs } => many_clients::run(clients, derivations, leavers, &logs).await,
        Scenario::GcSoak { seconds, clients } => gc_soak::run(seconds, clients).await,
        Scenario::Hostile { pid, users, long, attacks } => hostile::run(pid, &users, long, &attacks).await,
        Scenario::Attack { name, long } => hostile::attack(&name, long).await,
        Scenario::Ping => hostile::ping().await,
    };
    match result {
        Ok(line) => {
            if !line.is_empty() {
                println!("{line}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}
