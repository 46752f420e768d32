//! Who waits for a build: a session's options and the way its lines go.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use fruix_drv::StorePath;
use fruix_store::TempRoots;

use crate::options::{ClientOptions, Level};

/// Where lines for one client go; never blocks. The session's log handle is one, a test's vector another.
pub trait LineSink: Send + Sync {
    /// Takes bytes, usually whole lines.
    fn send(&self, bytes: &[u8]);
}

/// A client that waits for builds, for as long as it waits.
pub struct Requester {
    /// Distinguishes requesters; a build sends each line once to each.
    pub id: u64,
    /// What the client asked for.
    pub options: ClientOptions,
    /// The user at the other end, where known.
    pub uid: Option<u32>,
    /// The user's group.
    pub gid: Option<u32>,
    sink: Box<dyn LineSink>,
    roots: Option<Arc<TempRoots>>,
    /// Damaged paths that it has been told of.
    damaged: Mutex<BTreeSet<StorePath>>,
}

impl Requester {
    /// A requester of `id`, whose lines go to `sink`; what is built for it is kept alive by `roots`, its session's.
    pub fn new(
        id: u64,
        options: ClientOptions,
        credentials: Option<(u32, u32)>,
        sink: Box<dyn LineSink>,
        roots: Option<Arc<TempRoots>>,
    ) -> Arc<Requester> {
        Arc::new(Requester {
            id,
            options,
            uid: credentials.map(|c| c.0),
            gid: credentials.map(|c| c.1),
            sink,
            roots,
            damaged: Mutex::default(),
        })
    }

    /// The temporary roots of the session, where there is one.
    #[must_use]
    pub fn roots(&self) -> Option<&Arc<TempRoots>> {
        self.roots.as_ref()
    }

    /// Sends `line` if the client's verbosity reaches `level`.
    pub fn message(&self, level: Level, line: &[u8]) {
        if self.options.wants(level) {
            let mut bytes = Vec::with_capacity(line.len() + 1);
            bytes.extend_from_slice(line);
            bytes.push(b'\n');
            self.sink.send(&bytes);
        }
    }

    /// Whether to tell that `path` is damaged: once in a request.
    #[must_use]
    pub fn hears_of_damage(&self, path: &StorePath) -> bool {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone())
    }

    /// Sends a trace, if the client reads traces.
    pub fn trace(&self, line: &[u8]) {
        if self.options.print_build_trace {
            self.message(Level::Error, line);
        }
    }

    /// Sends what the builder with process id `pid` wrote.
    pub fn builder_output(&self, pid: i32, bytes: &[u8]) {
        if self.options.verbosity < self.options.build_verbosity {
            return;
        }
        if self.options.multiplexed {
            let mut framed = format!("@ build-log {pid} {}\n", bytes.len()).into_bytes();
            framed.extend_from_slice(bytes);
            self.sink.send(&framed);
        } else {
            self.sink.send(bytes);
        }
    }
}
