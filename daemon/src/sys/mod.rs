//! The system calls that no crate wraps, and the few that cannot be called safely: the only module with `unsafe`.
//!
//! One file a platform, and one for all; FreeBSD's own are in the crate `fruix-freebsd`. Everything here does one thing, reports the system's own
//! error, and knows nothing of builds.
#![allow(unsafe_code)]

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;
mod unix;

#[cfg(target_os = "freebsd")]
pub(crate) use freebsd::*;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;
pub(crate) use unix::*;
