//! The sandbox of Linux; that of FreeBSD is `jails.rs`.

#[cfg(target_os = "linux")]
#[path = "linux/sandbox.rs"]
mod linux;

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {}
