//! The `fruixd` program: reads the command line, starts the spawner while the process has one thread and no files, and serves.

use std::process::ExitCode;

use clap::Parser;
use fruixd::config::{Flags, Settings};
use fruixd::error::Error;
use fruixd::sandbox::SpawnerHandle;
use fruixd::{builtins, check, explain, listen, server};
use tracing_subscriber::EnvFilter;

/// musl's own has one lock for all threads, and maps and unmaps what is a little larger.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    #[cfg(target_os = "freebsd")]
    if flags.platform().check_host() {
        return check_host(&settings);
    }
    // Where the store is mounted read-only for everybody, we see it otherwise; and so will all whom we start.
    fruix_store::ensure_store_writable(&server::store_config(&settings, None))?;
    // Before anything else is opened or started: the helper that starts builders is a copy of this process as it is now.
    let spawner = start_spawner(&settings)?;
    // The allocator touches a little of each of many large pages, each of which the kernel would have to clear first. Builders are not concerned.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_thp_disable(true);
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

#[cfg(not(target_os = "freebsd"))]
fn start_spawner(_settings: &Settings) -> Result<SpawnerHandle, Error> {
    Ok(SpawnerHandle::start(builtins::lookup)?)
}

/// With jails, if they are wanted and can be had.
#[cfg(target_os = "freebsd")]
fn start_spawner(settings: &Settings) -> Result<SpawnerHandle, Error> {
    use fruixd::sandbox::spawner::Jailer;
    if !settings.use_chroot || !nix::unistd::geteuid().is_root() {
        if settings.require_limits {
            return Err(Error::request("there are no limits without jails, and `--require-limits' wants them"));
        }
        return Ok(SpawnerHandle::start(builtins::lookup)?);
    }
    let failed = |source| Error::io("preparing for jails in", &settings.state_dir, source);
    std::fs::create_dir_all(&settings.state_dir).map_err(failed)?;
    let jailer = Jailer::prepare(&settings.state_dir).map_err(failed)?;
    if !jailer.features().limits {
        if settings.require_limits {
            return Err(Error::request("the kernel has no resource limits: set kern.racct.enable=1 in /boot/loader.conf, and start anew"));
        }
        eprintln!("warning: builds have no limits: kern.racct.enable is not 1 (see `fruixd --check-host')");
    }
    Ok(SpawnerHandle::start_with_jails(builtins::lookup, jailer)?)
}

/// Prints what the host has and lacks.
#[cfg(target_os = "freebsd")]
fn check_host(settings: &Settings) -> Result<(), Error> {
    let checks = fruixd::platform::check_host(settings);
    for check in &checks {
        match &check.missing {
            None => println!("ok       {}", check.what),
            Some(hint) => println!("{} {}\n         {hint}", if check.needed { "MISSING " } else { "missing " }, check.what),
        }
    }
    if checks.iter().any(|check| check.needed && check.missing.is_some()) {
        return Err(Error::request("builds in jails are not possible here"));
    }
    Ok(())
}
