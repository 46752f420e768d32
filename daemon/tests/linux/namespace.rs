//! A test in a mount namespace of its own.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Set in the process that the test runs in: the first of the ids that are its own.
const FIRST_ID: &str = "FRUIX_TEST_FIRST_ID";

/// The first of the ids of this test, once it is inside.
pub(crate) fn first_id() -> Option<u32> {
    std::env::var(FIRST_ID).ok().map(|id| id.parse().unwrap())
}

/// How many tests this process has started: `cargo test` runs them all in one.
static STARTED: AtomicU32 = AtomicU32::new(0);
/// Process numbers are less than this (`PID_MAX_LIMIT`).
const PROCESSES: u32 = 1 << 22;
/// As many times that number are ids; so many tests of a process never run at once.
const TURNS: u32 = 60;

/// Runs `test`, the test called `name`, in a mount namespace of its own, as a process of its own, with the first of 16 ids that no other test has:
/// those of a test of this process, whose number no other has.
pub(crate) fn alone(name: &str, test: impl FnOnce(u32)) {
    if let Some(first) = first_id() {
        test(first);
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("{name}: skipped, since it takes root");
        return;
    }
    let one = STARTED.fetch_add(1, Ordering::Relaxed) % TURNS * PROCESSES + std::process::id();
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(FIRST_ID, (100_000_000 + one * 16).to_string())
        .status()
        .unwrap();
    assert!(status.success(), "{name}: {status}");
}
