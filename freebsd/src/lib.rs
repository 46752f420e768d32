//! FreeBSD as a build daemon needs it: jails, mounts, device rulesets, resource limits, user databases.
//!
//! [`Kernel`] is all that is asked of the system, one method an effect. `Host` is the real one (on FreeBSD only), [`Recorder`] one that is only
//! data, for tests anywhere. [`Cell`] describes a jail with its root; [`set_up`] and [`tear_down`] are its life. Nothing here knows of stores or
//! builds. All `unsafe` and all of the system's numbers are in `sys`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod cell;
mod devices;
mod error;
pub mod image;
mod kernel;
mod parameters;
mod recorder;
#[cfg(any(target_os = "freebsd", test))]
mod root;
mod sys;
pub mod system;
pub mod tree;

pub use cell::{Cell, Entry, Limit, Mounted, User, set_up, tear_down};
pub use devices::{DeviceRule, FIRST_RULESET, builder_devices, provide_ruleset};
pub use error::{Error, Result};
#[cfg(target_os = "freebsd")]
pub use kernel::Host;
pub use kernel::{Features, Found, Jail, JailId, Kernel, Lookup, MountId, MountPoint, MountRequest, Source};
pub use parameters::{Network, Parameter, Rights, Value, parameters};
pub use recorder::Recorder;
#[cfg(target_os = "freebsd")]
pub use sys::{
    Forked, attach_jail, become_reaper, close_all_but, close_from, fix_addresses, for_each_process, forbid_tracing, fork, loopback_up,
    no_new_privileges, set_death_signal, set_title, signal_descendants, sysctl_number,
};
