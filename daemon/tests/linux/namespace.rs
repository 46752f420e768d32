//! A test in a mount namespace of its own.

use std::process::Command;

/// Set in the process that the test runs in: the first of the ids that are its own.
const FIRST_ID: &str = "FRUIX_TEST_FIRST_ID";

/// The first of the ids of this test, once it is inside.
pub(crate) fn first_id() -> Option<u32> {
    std::env::var(FIRST_ID).ok().map(|id| id.parse().unwrap())
}

/// Runs `test`, the test called `name`, in a mount namespace of its own, as a process of its own, with the first of 16 ids that no other test has:
/// one for each process number, from `ids` on.
pub(crate) fn alone(name: &str, ids: u32, test: impl FnOnce(u32)) {
    if let Some(first) = first_id() {
        test(first);
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("{name}: skipped, since it takes root");
        return;
    }
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(FIRST_ID, (ids + std::process::id() * 16).to_string())
        .status()
        .unwrap();
    assert!(status.success(), "{name}: {status}");
}
