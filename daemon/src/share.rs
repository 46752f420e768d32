//! What one user may take of what all users share: connections, threads that block, and memory for requests.
//!
//! A client that sends an archive a byte at a time holds a thread for as long as it likes, and an idle one a descriptor. No user gets so many of
//! either that others are left without. Whoever is trusted is not counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use fruix_protocol::wire::Room;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of one user at once, at the most: a quarter of the daemon's descriptors if that is less.
const SESSIONS: usize = 4096;
/// Threads that one user's requests may block at once. Further requests wait for one of their own user's to end.
pub const THREADS: usize = 128;

/// One user's part.
#[derive(Debug)]
pub struct Share {
    sessions: Arc<Semaphore>,
    threads: Arc<Semaphore>,
    room: Room,
}

/// The parts of all users with connections.
#[derive(Debug)]
pub struct Shares {
    sessions: usize,
    users: Mutex<HashMap<Option<u32>, Weak<Share>>>,
}

impl Shares {
    /// For a process that may have `descriptors` open.
    #[must_use]
    pub fn new(descriptors: u64) -> Shares {
        let quarter = usize::try_from(descriptors / 4).unwrap_or(SESSIONS);
        Shares { sessions: quarter.clamp(1, SESSIONS), users: Mutex::default() }
    }

    /// The part of the user `uid`; all clients of other machines have one together, as `None`. `Err` when he has as many connections as he may.
    pub fn join(&self, uid: Option<u32>) -> Result<Session, Refused> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let share = match users.get(&uid).and_then(Weak::upgrade) {
            Some(share) => share,
            None => {
                users.retain(|_, share| share.strong_count() > 0);
                let share = Share {
                    sessions: Arc::new(Semaphore::new(self.sessions)),
                    threads: Arc::new(Semaphore::new(THREADS)),
                    room: Room::new(),
                };
                let share = Arc::new(share);
                users.insert(uid, Arc::downgrade(&share));
                share
            }
        };
        let session = Arc::clone(&share.sessions).try_acquire_owned().map_err(|_| Refused)?;
        Ok(Session { share: Some(share), _session: Some(session) })
    }
}

/// A user has as many connections as one may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many connections of one user")]
pub struct Refused;

/// A connection that counts until it is dropped.
#[derive(Debug)]
pub struct Session {
    share: Option<Arc<Share>>,
    _session: Option<OwnedSemaphorePermit>,
}

impl Session {
    /// A connection that does not count.
    #[must_use]
    pub fn uncounted() -> Session {
        Session { share: None, _session: None }
    }

    /// Memory for larger requests, shared with the user's other connections; `None` for as much as it likes.
    #[must_use]
    pub fn room(&self) -> Option<Room> {
        self.share.as_ref().map(|share| share.room.clone())
    }

    /// Waits for leave to block a thread; to be held until the thread is done, whoever still waits for it.
    pub async fn thread(&self) -> Option<OwnedSemaphorePermit> {
        match &self.share {
            // The semaphore is never closed.
            Some(share) => Arc::clone(&share.threads).acquire_owned().await.ok(),
            None => None,
        }
    }
}

/// Lets the process have as many descriptors open as the system allows it, and says how many.
pub fn raise_descriptors() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let got = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    // The type is signed on some platforms.
    #[allow(clippy::useless_conversion)]
    u64::try_from(got).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_user_leaves_some_for_others() {
        let shares = Shares::new(40);
        let mut held: Vec<_> = (0..10).map(|_| shares.join(Some(1)).unwrap()).collect();
        assert_eq!(shares.join(Some(1)).unwrap_err(), Refused);
        let other = shares.join(Some(2)).unwrap();
        held.pop();
        let again = shares.join(Some(1)).unwrap();

        let mut threads = Vec::new();
        for _ in 0..THREADS {
            threads.push(again.thread().await.unwrap());
        }
        let another = held.pop().unwrap();
        let waiting = tokio::spawn(async move { another.thread().await.is_some() });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert!(other.thread().await.is_some());
        threads.pop();
        assert!(waiting.await.unwrap());
        assert!(Session::uncounted().thread().await.is_none());

        drop((held, other, again, threads));
        drop(shares.join(Some(3)));
        assert_eq!(shares.users.lock().unwrap().len(), 1);
    }
}
