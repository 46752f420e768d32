//! The threads that serve sessions.
//!
//! A session is a dialogue of small questions: what a client waits for is mostly that somebody wakes up. On a runtime of several threads a
//! request wakes one, which wakes another to wait in its place; on a machine with idle processors each of these takes longer than the answer. So
//! a session lives on one thread, with a runtime of its own, that waits for its sockets, answers, and waits again: a lane. What takes long goes
//! to the daemon's main runtime, with its threads for what blocks ([`crate::server::Shared::main`]), as do builds.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Lanes, the first of which accepts the clients as well.
#[derive(Debug)]
pub struct Lanes {
    lanes: Vec<Lane>,
}

#[derive(Debug)]
struct Lane {
    runtime: Handle,
    sessions: Arc<AtomicUsize>,
    /// Dropped to end it.
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// A place for a session on a lane, until this is dropped.
#[derive(Debug)]
pub struct Place {
    /// Where the session's task and its socket belong.
    pub runtime: Handle,
    /// Whether that is the lane that accepts.
    pub first: bool,
    sessions: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lanes {
    /// Starts `count` threads, at least one.
    ///
    /// # Errors
    /// The machine has no more threads or descriptors.
    pub fn start(count: usize) -> io::Result<Lanes> {
        let start = |number: usize| {
            let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(1).build()?;
            let handle = runtime.handle().clone();
            let (end, ended) = oneshot::channel::<()>();
            let serve = move || {
                let _ = runtime.block_on(ended);
                // With it its tasks, and what they hold.
                drop(runtime);
            };
            let thread = thread::Builder::new().name(format!("session-{number}")).spawn(serve)?;
            Ok(Lane { runtime: handle, sessions: Arc::default(), end, thread })
        };
        Ok(Lanes { lanes: (0..count.max(1)).map(start).collect::<io::Result<_>>()? })
    }

    /// Ends all sessions, and returns when they have given up what they held.
    pub fn stop(self) {
        let (ends, threads): (Vec<_>, Vec<_>) = self.lanes.into_iter().map(|lane| (lane.end, lane.thread)).unzip();
        drop(ends);
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// The lane that accepts clients.
    #[must_use]
    pub fn first(&self) -> Option<&Handle> {
        self.lanes.first().map(|lane| &lane.runtime)
    }

    /// A place on the lane with the fewest sessions, the first of these.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        let (index, lane) = self.lanes.iter().enumerate().min_by_key(|(_, lane)| lane.sessions.load(Ordering::Relaxed))?;
        lane.sessions.fetch_add(1, Ordering::Relaxed);
        Some(Place { runtime: lane.runtime.clone(), first: index == 0, sessions: Arc::clone(&lane.sessions) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_spread_and_the_first_lane_is_preferred() {
        let lanes = Lanes::start(3).unwrap();
        let places: Vec<Place> = (0..4).map(|_| lanes.place().unwrap()).collect();
        assert_eq!(places.iter().map(|place| place.first).collect::<Vec<_>>(), [true, false, false, true]);
        drop(places);
        let place = lanes.place().unwrap();
        assert!(place.first);
        let (sender, receiver) = std::sync::mpsc::channel();
        place.runtime.spawn(async move { sender.send(thread::current().name().map(str::to_owned)) });
        assert_eq!(receiver.recv().unwrap().as_deref(), Some("session-0"));
    }

    #[test]
    fn nothing_is_held_when_the_lanes_have_stopped() {
        let lanes = Lanes::start(2).unwrap();
        let held = Arc::new(());
        for _ in 0..2 {
            let (place, held) = (lanes.place().unwrap(), Arc::clone(&held));
            place.runtime.clone().spawn(async move {
                std::future::pending::<()>().await;
                drop((place, held));
            });
        }
        lanes.stop();
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
