//! Hashing beside reading and writing.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use fruix_drv::{Hash, HashAlgo, Hasher};

/// Bytes that are handed over at once.
const PIECE: usize = 256 * 1024;

/// Pieces that may wait for the thread. With those in both hands this bounds the memory: two megabytes.
const WAITING: usize = 4;

/// Bytes that are hashed before a thread is worth its while.
const WORTH: u64 = 4 * 1024 * 1024;

/// Hashes with several algorithms. What is large is hashed by a thread of its own, while its owner reads and writes.
pub(crate) struct Hashers {
    state: State,
    pending: Vec<u8>,
    count: u64,
}

enum State {
    Here(Vec<Hasher>),
    There(Thread),
    /// The thread has failed, which only a bug can bring about.
    Lost,
}

struct Thread {
    pieces: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    handle: JoinHandle<Vec<Hasher>>,
}

fn run(mut hashers: Vec<Hasher>, pieces: &Receiver<Vec<u8>>, empty: &Sender<Vec<u8>>) -> Vec<Hasher> {
    for mut piece in pieces {
        for hasher in &mut hashers {
            hasher.update(&piece);
        }
        piece.clear();
        // The other end may have no use for it any more.
        let _ = empty.send(piece);
    }
    hashers
}

impl Hashers {
    /// For each of `algos`, once.
    pub(crate) fn new(algos: &[HashAlgo]) -> Hashers {
        let mut hashers: Vec<Hasher> = Vec::new();
        for algo in algos {
            if hashers.iter().all(|hasher| hasher.algo() != *algo) {
                hashers.push(Hasher::new(*algo));
            }
        }
        Hashers { state: State::Here(hashers), pending: Vec::new(), count: 0 }
    }

    /// Whether it hashes at all.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(&self.state, State::Here(hashers) if hashers.is_empty())
    }

    /// Goes on with `bytes`. Short pieces are collected: hashing tokens of a few bytes one by one is slow.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.count = self.count.saturating_add(bytes.len() as u64);
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE.saturating_sub(self.pending.len())));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() >= PIECE {
                self.pass_on();
            }
        }
    }

    fn pass_on(&mut self) {
        if self.count >= WORTH && matches!(self.state, State::Here(_)) {
            self.start();
        }
        match &mut self.state {
            State::Here(hashers) => {
                for hasher in hashers {
                    hasher.update(&self.pending);
                }
                self.pending.clear();
            }
            State::There(thread) => {
                let next = thread.empty.try_recv().unwrap_or_default();
                if thread.pieces.send(std::mem::replace(&mut self.pending, next)).is_err() {
                    self.state = State::Lost;
                }
            }
            State::Lost => self.pending.clear(),
        }
    }

    /// Starts the thread. If the system has none to give, it goes on without.
    fn start(&mut self) {
        let State::Here(hashers) = std::mem::replace(&mut self.state, State::Lost) else { return };
        let (give, hashers_there) = sync_channel::<Vec<Hasher>>(1);
        let (pieces, full) = sync_channel(WAITING);
        let (back, empty) = channel();
        let work = move || hashers_there.recv().map_or_else(|_| Vec::new(), |hashers| run(hashers, &full, &back));
        self.state = match std::thread::Builder::new().name("hash".to_owned()).spawn(work) {
            Ok(handle) => match give.send(hashers) {
                Ok(()) => State::There(Thread { pieces, empty, handle }),
                Err(error) => State::Here(error.0),
            },
            Err(_) => State::Here(hashers),
        };
    }

    /// Bytes hashed so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The hashes, in the order in which they were asked for.
    pub(crate) fn finish(mut self) -> io::Result<Vec<Hash>> {
        if !self.pending.is_empty() {
            self.pass_on();
        }
        let hashers = match self.state {
            State::Here(hashers) => Some(hashers),
            State::There(Thread { pieces, handle, .. }) => {
                drop(pieces);
                handle.join().ok()
            }
            State::Lost => None,
        };
        let hashers = hashers.ok_or_else(|| io::Error::other("the thread that hashes has failed"))?;
        Ok(hashers.into_iter().map(Hasher::finish).collect())
    }
}

impl Hashers {
    /// The one hash that was asked for.
    pub(crate) fn finish_one(self) -> io::Result<Hash> {
        self.finish()?.first().copied().ok_or_else(|| io::Error::other("no hash was asked for"))
    }
}

/// So that an archive can be written to it.
impl io::Write for Hashers {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_with_and_without_a_thread() {
        let bytes: Vec<u8> = (0..WORTH * 3 + 12345).map(|n| (n % 251) as u8).collect();
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, WORTH as usize, WORTH as usize + PIECE, bytes.len()] {
            for step in [7 * PIECE / 3, 100_000] {
                let mut hashers = Hashers::new(&[HashAlgo::Sha256, HashAlgo::Sha1, HashAlgo::Sha256]);
                bytes[..size].chunks(step).for_each(|piece| hashers.update(piece));
                assert_eq!(hashers.count(), size as u64);
                let expected = [HashAlgo::Sha256, HashAlgo::Sha1].map(|algo| Hash::of(algo, &bytes[..size]));
                assert_eq!(hashers.finish().unwrap(), expected, "{size} in steps of {step}");
            }
        }
    }
}
