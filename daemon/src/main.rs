//! The `fruixd` program: reads the command line, starts the spawner while the process has one thread and no files, and serves.

use std::process::ExitCode;

use clap::Parser;
use fruixd::config::{Flags, Settings};
use fruixd::error::Error;
use fruixd::sandbox::SpawnerHandle;
use fruixd::{builtins, check, explain, listen, server};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let flags = Flags::parse();
    if let Some(depth) = flags.verify_store {
        return Settings::new(&flags, |name| std::env::var(name).ok()).and_then(|settings| check::run(&settings, depth)).unwrap_or_else(
            |error| {
                eprintln!("error: {error}");
                ExitCode::from(check::CANNOT_LOOK)
            },
        );
    }
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<(), Error> {
    let settings = Settings::new(flags, |name| std::env::var(name).ok())?;
    // No file of ours is to be writable for a group or for all, whatever the caller's mask.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    if let Some(drv) = &flags.explain {
        return explain::print(&settings, drv);
    }
    // Where the store is mounted read-only for everybody, we see it otherwise; and so will all whom we start.
    fruix_store::ensure_store_writable(&server::store_config(&settings, None))?;
    // Before anything else is opened or started: the helper that starts builders is a copy of this process as it is now.
    let spawner = SpawnerHandle::start(builtins::lookup)?;
    let level = if settings.debug { "debug" } else { "info" };
    let filter = EnvFilter::try_from_env("FRUIXD_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    for remark in Settings::remarks(flags) {
        tracing::info!("{remark}");
    }
    if nix::unistd::geteuid().is_root() && settings.build_users_group.is_none() {
        tracing::warn!("daemon is running as root, so using `--build-users-group' is highly recommended");
    }
    let sockets = listen::open(&settings)?;
    server::run(settings, spawner, sockets)
}
