//! The steps that leave something on the disk, or tell somebody of it; and, in builds for tests, failures at will before and after each.
//!
//! Whatever writes, syncs, renames, links, unlinks, commits or replies does so in a [`step`] (or through [`Writes`]), which tries again when a
//! signal came in between. [`STEPS`] has them all. In builds with debug assertions, or with the feature `failpoints`, a step has two points,
//! `NAME:before` and `NAME:after`, at which environment variables make it fail; in others a step is a call and nothing more.
//!
//! `FRUIXD_FAILPOINTS` is a list, separated by semicolons, of `NAME:MOMENT=ACTION` or `NAME:MOMENT=ACTION#N`: the N-th time (the first, without)
//! that this process comes by, once.
//!
//! | action | before | after |
//! |---|---|---|
//! | `kill` | SIGKILL to the own process | the same, with the step done |
//! | `eio`, `enospc` | the step is not done, and fails | it is done, and is said to have failed |
//! | `eintr` | it fails as if a signal had come, and is tried again | |
//! | `short` | the first write of it takes half of what it was given | |
//!
//! With `FRUIXD_FAILPOINTS_FROM=ready` it all begins when [`ready`] is called, which a daemon does once it serves. Each time a point is passed
//! then, a line `NAME:MOMENT` is appended to the file `FRUIXD_FAILPOINTS_LOG`, and `NAME:MOMENT=ACTION` when it fails.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name, `WHERE::WHAT`.
    pub name: &'static str,
    /// What it does.
    pub doc: &'static str,
    /// How it can fail.
    pub kind: Kind,
}

/// How a step can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As a call of the system does, and it may be interrupted.
    Call,
    /// As a call that writes bytes does: fewer may be written.
    Write,
    /// It cannot be interrupted.
    Whole,
}

const fn step_of(name: &'static str, kind: Kind, doc: &'static str) -> Step {
    Step { name, doc, kind }
}

/// All steps.
pub const STEPS: &[Step] = &[
    step_of("dirs::make", Kind::Call, "a directory of the state is made"),
    step_of("file::create", Kind::Call, "a file of a new item is made"),
    step_of("file::write", Kind::Write, "a file of a new item is written"),
    step_of("file::finish", Kind::Call, "a file of a new item gets its time"),
    step_of("file::symlink", Kind::Call, "a symbolic link of a new item is made"),
    step_of("file::mkdir", Kind::Call, "a directory of a new item is made"),
    step_of("file::seal", Kind::Call, "a directory of a new item gets its mode"),
    step_of("remove::unlink", Kind::Call, "a file or symbolic link is removed"),
    step_of("remove::rmdir", Kind::Call, "a directory, empty by now, is removed"),
    step_of("staging::make", Kind::Call, "the staging directory is made"),
    step_of("staging::lock", Kind::Call, "the staging directory's lock file is made"),
    step_of("staging::dir", Kind::Call, "a directory is made in the staging directory"),
    step_of("staging::spool", Kind::Call, "a file is made for an archive too large for memory"),
    step_of("add::spool", Kind::Write, "an archive too large for memory is written to that file"),
    step_of("install::rename", Kind::Call, "a new item gets its name in the store"),
    step_of("sync::file", Kind::Call, "a file or directory of a new item is synced"),
    step_of("sync::filesystem", Kind::Call, "the file system of a new item with many files is synced"),
    step_of("sync::names", Kind::Call, "the store directory is synced"),
    step_of("replace::exchange", Kind::Call, "a damaged item and a sound one exchange names"),
    step_of("db::schema", Kind::Whole, "the tables of the database are made"),
    step_of("db::commit", Kind::Whole, "a change of the database is committed"),
    step_of("links::link", Kind::Call, "a file is made known to deduplication"),
    step_of("links::stage", Kind::Call, "a link to a known file is made in the staging directory"),
    step_of("links::replace", Kind::Call, "that link takes the place of a file"),
    step_of("links::restore", Kind::Call, "the directory of that file gets its time back"),
    step_of("links::drop", Kind::Call, "a damaged link is removed"),
    step_of("links::unlink", Kind::Call, "a link that nothing else uses is removed"),
    step_of("gc::commit", Kind::Whole, "paths are made invalid for their deletion"),
    step_of("gc::trash", Kind::Call, "a dead directory is moved out of the store"),
    step_of("roots::link", Kind::Call, "an indirect root is made under a passing name"),
    step_of("roots::rename", Kind::Call, "an indirect root gets its name"),
    step_of("roots::unlink", Kind::Call, "a stale indirect root is removed"),
    step_of("temproots::create", Kind::Call, "the file of temporary roots is made"),
    step_of("temproots::write", Kind::Write, "temporary roots are written to it"),
    step_of("temproots::unlink", Kind::Call, "it is removed with the last session"),
    step_of("temproots::bury", Kind::Call, "that of a dead process is removed"),
    step_of("locks::open", Kind::Call, "a lock file is opened, and made if it is missing"),
    step_of("locks::unlink", Kind::Call, "a lock file is removed"),
    step_of("locks::mark", Kind::Call, "a lock file that was removed is marked"),
    step_of("schema::write", Kind::Write, "the number of the schema is written, for a new database"),
    step_of("schema::sync", Kind::Call, "it is synced"),
    step_of("schema::rename", Kind::Call, "it gets its name"),
    step_of("reserve::write", Kind::Write, "space is reserved for a full disk"),
    step_of("reserve::unlink", Kind::Call, "that space is given back"),
    step_of("profile::make", Kind::Call, "the directory for a user's profiles is made"),
    step_of("profile::chown", Kind::Call, "it is given to him"),
    step_of("build-dir::make", Kind::Call, "the directory of a build is made"),
    step_of("build-dir::lock", Kind::Call, "its lock file is made"),
    step_of("build-dir::write", Kind::Write, "a file is put there for the builder"),
    step_of("build-dir::keep", Kind::Call, "the directory of a failed build is kept"),
    step_of("outputs::stage", Kind::Call, "an output is moved out of the builder's reach"),
    step_of("outputs::register", Kind::Whole, "all outputs are in place, and are about to be registered"),
    step_of("log::create", Kind::Call, "the log of a build is made"),
    step_of("log::write", Kind::Write, "the log of a build is written"),
    step_of("log::finish", Kind::Whole, "the log of a build is completed"),
    step_of("reply::send", Kind::Whole, "what a client asked for is done, and it is told"),
];

/// An error that a point can make.
pub trait Failure: Sized {
    /// The error that the system tells by a number.
    fn of(errno: Errno) -> Self;
    /// Whether it says that a signal came.
    fn is_interruption(&self) -> bool;
}

impl Failure for Errno {
    fn of(errno: Errno) -> Self {
        errno
    }
    fn is_interruption(&self) -> bool {
        *self == Errno::EINTR
    }
}

impl Failure for io::Error {
    fn of(errno: Errno) -> Self {
        errno.into()
    }
    fn is_interruption(&self) -> bool {
        self.kind() == io::ErrorKind::Interrupted
    }
}

impl Failure for rustix::io::Errno {
    fn of(errno: Errno) -> Self {
        rustix::io::Errno::from_raw_os_error(errno as i32)
    }
    fn is_interruption(&self) -> bool {
        *self == rustix::io::Errno::INTR
    }
}

impl Failure for rusqlite::Error {
    fn of(errno: Errno) -> Self {
        let code = match errno {
            Errno::ENOSPC => rusqlite::ffi::SQLITE_FULL,
            _ => rusqlite::ffi::SQLITE_IOERR,
        };
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some(errno.desc().to_owned()))
    }
    fn is_interruption(&self) -> bool {
        false
    }
}

/// Before or after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nothing is done yet.
    Before,
    /// It is done.
    After,
}

/// Does the step `name` of [`STEPS`], again whenever a signal came in between.
///
/// # Errors
/// Those of `act`, and of points.
#[inline]
pub fn step<T, E: Failure>(name: &'static str, mut act: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    loop {
        let done = point(name, Moment::Before).and_then(|()| act());
        match done {
            Err(error) if error.is_interruption() => {}
            Ok(value) => return point(name, Moment::After).map(|()| value),
            error => return error,
        }
    }
}

/// A point, for steps that cannot be a [`step`].
///
/// # Errors
/// What was asked for.
#[inline]
pub fn point<E: Failure>(name: &'static str, moment: Moment) -> Result<(), E> {
    #[cfg(any(debug_assertions, feature = "failpoints"))]
    if let Some(errno) = armed::pass(name, moment) {
        return Err(E::of(errno));
    }
    let _ = (name, moment);
    Ok(())
}

/// From here on points fail, when they were to wait for it.
pub fn ready() {
    #[cfg(any(debug_assertions, feature = "failpoints"))]
    armed::ready();
}

/// A writer, each of whose writes is a step, done again whenever a signal came in between. (Not everybody who writes sees to that.)
#[derive(Debug)]
pub struct Writes<W> {
    inner: W,
    name: &'static str,
}

impl<W> Writes<W> {
    /// Writes to `inner`, as the step `name` of [`STEPS`].
    pub fn new(name: &'static str, inner: W) -> Writes<W> {
        Writes { inner, name }
    }

    /// The writer itself.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// The writer itself.
    pub fn into_inner(self) -> W {
        self.inner
    }
}

impl<W: AsFd> AsFd for Writes<W> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// How much of what it is given a write is to take.
#[inline]
fn taken(name: &'static str, bytes: &[u8]) -> usize {
    #[cfg(any(debug_assertions, feature = "failpoints"))]
    if armed::is_short(name) {
        return bytes.len().div_ceil(2);
    }
    let _ = name;
    bytes.len()
}

impl<W: Write> Write for Writes<W> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        step(self.name, || self.inner.write(bytes.get(..taken(self.name, bytes)).unwrap_or(bytes)))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(any(debug_assertions, feature = "failpoints"))]
mod armed {
    use std::collections::HashMap;
    use std::fs::File;
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{LazyLock, Mutex, PoisonError};

    use nix::errno::Errno;

    use super::{Moment, STEPS};

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Action {
        Kill,
        Fail(Errno),
        Short,
    }

    struct Order {
        point: String,
        action: Action,
        /// At which passing.
        at: u64,
    }

    struct Orders {
        orders: Vec<Order>,
        log: Option<File>,
        passed: HashMap<String, u64>,
    }

    static READY: AtomicBool = AtomicBool::new(false);

    static ORDERS: LazyLock<Option<Mutex<Orders>>> = LazyLock::new(|| {
        let get = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (orders, log) = (get("FRUIXD_FAILPOINTS"), get("FRUIXD_FAILPOINTS_LOG"));
        if orders.is_none() && log.is_none() {
            return None;
        }
        if get("FRUIXD_FAILPOINTS_FROM").as_deref() != Some("ready") {
            READY.store(true, Ordering::Relaxed);
        }
        let orders = orders.iter().flat_map(|text| text.split(';')).filter_map(|text| {
            let order = parse(text);
            if order.is_none() {
                eprintln!("warning: FRUIXD_FAILPOINTS: {text:?} is no order");
            }
            order
        });
        let log = log.and_then(|path| File::options().append(true).create(true).open(path).ok());
        Some(Mutex::new(Orders { orders: orders.collect(), log, passed: HashMap::new() }))
    });

    fn parse(text: &str) -> Option<Order> {
        let (point, action) = text.split_once('=')?;
        let (action, at) = action.split_once('#').map_or(Some((action, 1)), |(action, at)| Some((action, at.parse().ok()?)))?;
        let (name, moment) = point.rsplit_once(':')?;
        if !STEPS.iter().any(|step| step.name == name) || !matches!(moment, "before" | "after") {
            return None;
        }
        let action = match action {
            "kill" => Action::Kill,
            "eio" => Action::Fail(Errno::EIO),
            "enospc" => Action::Fail(Errno::ENOSPC),
            "eintr" => Action::Fail(Errno::EINTR),
            "short" => Action::Short,
            _ => return None,
        };
        Some(Order { point: point.to_owned(), action, at })
    }

    pub(super) fn ready() {
        READY.store(true, Ordering::Relaxed);
    }

    /// Passes a point, which fails if that was ordered.
    pub(super) fn pass(name: &'static str, moment: Moment) -> Option<Errno> {
        debug_assert!(STEPS.iter().any(|step| step.name == name), "{name} is not among the steps");
        let Some(orders) = &*ORDERS else { return None };
        if !READY.load(Ordering::Relaxed) {
            return None;
        }
        let mut orders = orders.lock().unwrap_or_else(PoisonError::into_inner);
        let point = format!("{name}:{}", if moment == Moment::Before { "before" } else { "after" });
        let count = orders.passed.entry(point.clone()).or_default();
        *count += 1;
        let count = *count;
        orders.say(&point);
        let order = orders.orders.iter().find(|order| order.point == point && order.at == count && order.action != Action::Short)?;
        let action = order.action;
        orders.say(&format!("{point}={action:?}"));
        match action {
            Action::Fail(errno) => Some(errno),
            _ => {
                let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
                loop {
                    std::thread::park();
                }
            }
        }
    }

    /// Whether the write that has just passed its first point is to be a short one.
    pub(super) fn is_short(name: &'static str) -> bool {
        let Some(orders) = &*ORDERS else { return false };
        let mut orders = orders.lock().unwrap_or_else(PoisonError::into_inner);
        let point = format!("{name}:before");
        let count = orders.passed.get(&point).copied().unwrap_or(0);
        let short = orders.orders.iter().any(|order| order.point == point && order.at == count && order.action == Action::Short);
        if short {
            orders.say(&format!("{point}=Short"));
        }
        short
    }

    impl Orders {
        fn say(&mut self, line: &str) {
            if let Some(log) = &mut self.log {
                // One write each, so that lines of several processes do not mix.
                let _ = log.write_all(format!("{line}\n").as_bytes());
            }
        }
    }
}
