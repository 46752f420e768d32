//! The system calls that no crate wraps, and the few that cannot be called safely: the only module with `unsafe`.
//!
//! One file a platform. Everything here does one thing, reports the system's own error, and knows nothing of builds.
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;
