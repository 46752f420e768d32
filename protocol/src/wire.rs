//! What messages are made of: 64-bit little-endian words, byte strings (length, bytes, zeros up to a multiple of
//! eight), collections (count, items).
//!
//! A [`Codec`] is a *kind* of field: how it is written, what bounds it has, and which Rust type holds it. Decoding reads
//! from any `AsyncRead` through a [`Source`], which enforces the bounds of [`crate::limits`]; encoding appends to a
//! vector through a [`Sink`]. [`encode`] and [`decode`] are the same over plain memory.

use std::{
    fmt,
    future::Future,
    io,
    pin::pin,
    sync::Arc,
    task::{Context as TaskContext, Poll, Waker},
};

use bstr::{BString, ByteSlice};
use fruix_drv::{StoreDir, StorePath};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{limits, nar::padding_of, sample::Samples};

/// First word of a connection, from the client.
pub const MAGIC_CLIENT: u64 = 0x6e69_7863;
/// The daemon's answer to it.
pub const MAGIC_DAEMON: u64 = 0x6478_696f;

/// Frame: a piece of the log follows, a string.
pub const STDERR_NEXT: u64 = 0x6f6c_6d67;
/// Frame: the daemon wants bytes, at most as many as the word that follows says; the client answers with a string.
pub const STDERR_READ: u64 = 0x6461_7461;
/// Frame: bytes for the client's sink follow, a string.
pub const STDERR_WRITE: u64 = 0x6461_7416;
/// Frame: the work is done, the reply follows.
pub const STDERR_LAST: u64 = 0x616c_7473;
/// Frame: the work has failed; a string and a status follow.
pub const STDERR_ERROR: u64 = 0x6378_7470;

/// A version of the protocol: major in the high byte, minor in the low one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32);

impl Version {
    /// The oldest client of Guix's dialect that is served, of 2016. Its newer sibling 0x163 is what Guix 1.0 to 1.3
    /// speak.
    pub const GUIX_MIN: Version = Version(0x160);
    /// Guix 1.2.0.
    pub const GUIX_1_99: Version = Version(0x163);
    /// Guix 1.5.0: `SubstituteURLs` exists.
    pub const GUIX_1_100: Version = Version(0x164);

    /// The minor number, which is what fields depend on.
    pub const fn minor(self) -> u32 {
        self.0 & 0xff
    }

    /// The major number.
    pub const fn major(self) -> u32 {
        self.0 >> 8
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What reading and writing a message depends on besides its bytes.
#[derive(Debug, Clone)]
pub struct Context {
    /// The directory that store paths lie in.
    pub store_dir: StoreDir,
    /// The version that both ends have agreed on.
    pub version: Version,
}

/// Why bytes from a peer are not the message that was due. The stream is out of step afterwards, and is closed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream failed.
    #[error("cannot read {what}")]
    Io {
        /// What was being read.
        what: &'static str,
        /// What the stream said.
        source: io::Error,
    },
    /// The stream ended inside the message.
    #[error("unexpected end-of-file")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// A string declares more bytes than its kind allows; nothing of it was read.
    #[error("{what} is too long: {length} bytes, of {limit} allowed")]
    TooLong {
        /// What was being read.
        what: &'static str,
        /// Its declared length.
        length: u64,
        /// The longest allowed.
        limit: usize,
    },
    /// A collection declares more items than any may have; none of them was read.
    #[error("too many {what}: {count}, of {limit} allowed")]
    TooMany {
        /// What was being read.
        what: &'static str,
        /// The declared count.
        count: u64,
        /// The most allowed.
        limit: u64,
    },
    /// The message as a whole has more bytes than any may have.
    #[error("message is too long")]
    Budget,
    /// Bytes between a string's end and the next multiple of eight are not zero.
    #[error("non-zero padding")]
    Padding,
    /// A word that must fit in 32 bits does not.
    #[error("implementation cannot deal with > 32-bit integers")]
    WideInteger,
    /// A path is not directly beneath the store directory.
    #[error("path `{path}' is not in the store")]
    NotInStore {
        /// The path.
        path: BString,
    },
    /// A value is none of those that its kind has.
    #[error("invalid {what} `{value}'")]
    Invalid {
        /// What was being read.
        what: &'static str,
        /// The value.
        value: BString,
    },
}

/// A kind of field.
pub trait Codec {
    /// What holds it in Rust.
    type Value: Clone + fmt::Debug + PartialEq + Send + Sync + 'static;

    /// What `docs/protocol.md` calls it.
    fn name() -> String;

    /// Appends the value.
    fn encode(value: &Self::Value, sink: &mut Sink<'_>);

    /// Reads a value.
    ///
    /// # Errors
    /// [`Error`]; the stream is then out of step.
    fn decode(source: &mut Source<'_>) -> impl Future<Output = Result<Self::Value, Error>> + Send;

    /// Some value, for tests, fuzzers and sweeps.
    fn sample(samples: &mut Samples) -> Self::Value;
}

/// Where values are written to.
#[derive(Debug)]
pub struct Sink<'a> {
    out: &'a mut Vec<u8>,
    context: &'a Context,
}

impl<'a> Sink<'a> {
    /// A sink that appends to `out`.
    pub fn new(out: &'a mut Vec<u8>, context: &'a Context) -> Self {
        Sink { out, context }
    }

    /// What the encoding depends on.
    pub fn context(&self) -> &Context {
        self.context
    }

    /// A word.
    pub fn word(&mut self, word: u64) {
        self.out.extend_from_slice(&word.to_le_bytes());
    }

    /// A string.
    pub fn bytes(&mut self, bytes: &[u8]) {
        put_string(self.out, bytes);
    }

    /// A store path, whole, as a string.
    pub fn store_path(&mut self, path: &StorePath) {
        let (dir, name) = (self.context.store_dir.as_str(), path.base_name());
        let length = dir.len() as u64 + 1 + name.len() as u64;
        self.word(length);
        self.out.extend_from_slice(dir.as_bytes());
        self.out.push(b'/');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice([0; 8].get(..padding_of(length)).unwrap_or_default());
    }

    /// How many items follow.
    pub fn count(&mut self, count: usize) {
        self.word(count as u64);
    }
}

/// Appends a string's length, bytes and padding.
pub fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = bytes.len() as u64;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice([0; 8].get(..padding_of(length)).unwrap_or_default());
}

/// Memory for requests that are larger than most, shared by several connections: all those of one user.
///
/// The fields of a request may come as slowly as the client likes, and one that is nearly complete takes as much memory as a
/// complete one. So a client waits before it is read on, until others of the same room are done. Nobody waits for a
/// smaller part while he holds a larger one, so somebody can always go on.
#[derive(Debug, Clone)]
pub struct Room {
    medium: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl Room {
    /// Room for [`limits::MEDIUM_REQUESTS`] and [`limits::LARGE_REQUESTS`].
    pub fn new() -> Self {
        Room { medium: Arc::new(Semaphore::new(limits::MEDIUM_REQUESTS)), large: Arc::new(Semaphore::new(limits::LARGE_REQUESTS)) }
    }
}

impl Room {
    /// Waits for a part as large as a request of [`limits::MEDIUM_REQUEST`] takes.
    pub(crate) async fn medium(self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        self.medium.acquire_owned().await.ok()
    }
}

impl Default for Room {
    fn default() -> Self {
        Room::new()
    }
}

/// The part of a [`Room`] that a request takes, until it is dropped.
#[derive(Debug, Default)]
pub struct Held {
    medium: Option<OwnedSemaphorePermit>,
    large: Option<OwnedSemaphorePermit>,
}

/// Where values are read from: a stream, seen through the bounds of one message.
pub struct Source<'a> {
    reader: &'a mut (dyn AsyncRead + Unpin + Send),
    context: &'a Context,
    max_items: u64,
    budget: u64,
    impossible: Option<BString>,
    room: Option<&'a Room>,
    held: Held,
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("budget", &self.budget).field("impossible", &self.impossible).finish_non_exhaustive()
    }
}

impl<'a> Source<'a> {
    /// Reads one request from a client that nobody trusts with memory.
    pub fn request(reader: &'a mut (dyn AsyncRead + Unpin + Send), context: &'a Context) -> Self {
        let (max_items, budget) = (limits::REQUEST_ITEMS, limits::REQUEST_BYTES);
        Source { reader, context, max_items, budget, impossible: None, room: None, held: Held::default() }
    }

    /// Reads one reply of a daemon, which may list a whole store.
    pub fn reply(reader: &'a mut (dyn AsyncRead + Unpin + Send), context: &'a Context) -> Self {
        let (max_items, budget) = (limits::REPLY_ITEMS, limits::REPLY_BYTES);
        Source { reader, context, max_items, budget, impossible: None, room: None, held: Held::default() }
    }

    /// The same for a request whose memory is taken from `room`.
    pub fn in_room(mut self, room: Option<&'a Room>) -> Self {
        self.room = room;
        self
    }

    /// What was taken of the room so far.
    pub fn take_held(&mut self) -> Held {
        std::mem::take(&mut self.held)
    }

    /// What the decoding depends on.
    pub fn context(&self) -> &'a Context {
        self.context
    }

    /// A word.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Truncated`].
    pub async fn word(&mut self, what: &'static str) -> Result<u64, Error> {
        let mut word = [0; 8];
        self.fill(&mut word, what).await?;
        Ok(u64::from_le_bytes(word))
    }

    /// A word that fits in 32 bits.
    ///
    /// # Errors
    /// As [`Source::word`], and [`Error::WideInteger`].
    pub async fn int(&mut self, what: &'static str) -> Result<u32, Error> {
        u32::try_from(self.word(what).await?).map_err(|_| Error::WideInteger)
    }

    /// A string of at most `limit` bytes. Memory grows with what arrives.
    ///
    /// # Errors
    /// As [`Source::word`], and [`Error::TooLong`], [`Error::Budget`], [`Error::Padding`].
    pub async fn bytes(&mut self, limit: usize, what: &'static str) -> Result<BString, Error> {
        let length = self.word(what).await?;
        self.bytes_of(length, limit, what).await
    }

    /// A string that fits into `buffer` with its padding, or how long it is.
    ///
    /// # Errors
    /// As [`Source::bytes`].
    pub async fn short_bytes<'b>(&mut self, buffer: &'b mut [u8], what: &'static str) -> Result<Result<&'b [u8], u64>, Error> {
        let length = self.word(what).await?;
        let padding = padding_of(length);
        let Some(size) = usize::try_from(length).ok().filter(|size| size.checked_add(padding).is_some_and(|whole| whole <= buffer.len()))
        else {
            return Ok(Err(length));
        };
        self.charge(length)?;
        self.make_room().await;
        self.fill(buffer.get_mut(..size + padding).unwrap_or_default(), what).await?;
        let (bytes, rest) = buffer.split_at_checked(size).unwrap_or_default();
        if rest.iter().take(padding).any(|&byte| byte != 0) {
            return Err(Error::Padding);
        }
        Ok(Ok(bytes))
    }

    /// The rest of a string of which the length has been read.
    ///
    /// # Errors
    /// As [`Source::bytes`].
    pub async fn bytes_of(&mut self, length: u64, limit: usize, what: &'static str) -> Result<BString, Error> {
        let size = match usize::try_from(length) {
            Ok(size) if size <= limit => size,
            _ => return Err(Error::TooLong { what, length, limit }),
        };
        self.charge(length)?;
        self.make_room().await;
        let mut bytes = Vec::new();
        while bytes.len() < size {
            let have = bytes.len();
            let step = (size - have).min(have.max(limits::GROWTH_STEP));
            // Once so much has come, room for all: it takes no memory before it is filled, and what is there need not be copied again.
            bytes.reserve_exact(if have >= limits::GROWTH_END { size - have } else { step });
            bytes.resize(have + step, 0);
            self.fill(bytes.get_mut(have..).unwrap_or_default(), what).await?;
        }
        let mut zeros = [0; 8];
        let zeros = zeros.get_mut(..padding_of(length)).unwrap_or_default();
        self.fill(zeros, what).await?;
        if zeros.iter().any(|&byte| byte != 0) {
            return Err(Error::Padding);
        }
        Ok(bytes.into())
    }

    /// How many items follow. Nothing may be allocated for them before they arrive.
    ///
    /// # Errors
    /// As [`Source::word`], and [`Error::TooMany`].
    pub async fn count(&mut self, what: &'static str) -> Result<u64, Error> {
        let count = self.word(what).await?;
        if count > self.max_items {
            return Err(Error::TooMany { what, count, limit: self.max_items });
        }
        Ok(count)
    }

    /// Notes a path that lies where store paths lie but cannot be one. The message is read on; what is to be answered
    /// is [`Operation::impossible`](crate::ops::Operation::impossible). The first such path counts.
    pub fn note_impossible(&mut self, path: BString) {
        self.impossible.get_or_insert(path);
    }

    /// What [`Source::note_impossible`] was told.
    pub fn take_impossible(&mut self) -> Option<BString> {
        self.impossible.take()
    }

    fn charge(&mut self, length: u64) -> Result<(), Error> {
        let cost = length.checked_add(16).ok_or(Error::Budget)?;
        self.budget = self.budget.checked_sub(cost).ok_or(Error::Budget)?;
        Ok(())
    }

    /// Waits until the room has a part for what was charged.
    async fn make_room(&mut self) {
        let Some(room) = self.room else { return };
        let charged = limits::REQUEST_BYTES.saturating_sub(self.budget);
        // The semaphores are never closed.
        if charged > limits::SMALL_REQUEST && self.held.medium.is_none() {
            self.held.medium = Arc::clone(&room.medium).acquire_owned().await.ok();
        }
        if charged > limits::MEDIUM_REQUEST && self.held.large.is_none() {
            self.held.large = Arc::clone(&room.large).acquire_owned().await.ok();
        }
    }

    async fn fill(&mut self, buf: &mut [u8], what: &'static str) -> Result<(), Error> {
        if buf.is_empty() {
            return Ok(());
        }
        match self.reader.read_exact(buf).await {
            Ok(_) => Ok(()),
            Err(source) if source.kind() == io::ErrorKind::UnexpectedEof => Err(Error::Truncated { what }),
            Err(source) => Err(Error::Io { what, source }),
        }
    }
}

/// The bytes of a value.
pub fn encode<C: Codec>(value: &C::Value, context: &Context) -> Vec<u8> {
    let mut out = Vec::new();
    C::encode(value, &mut Sink::new(&mut out, context));
    out
}

/// Reads a value from memory, under the bounds of a request. Returns it with the bytes that follow it.
///
/// # Errors
/// [`Error`]; what [`Source::note_impossible`] would have noted is [`Error::Invalid`] here.
pub fn decode<'b, C: Codec>(mut bytes: &'b [u8], context: &Context) -> Result<(C::Value, &'b [u8]), Error> {
    let value = now(async {
        let mut source = Source::request(&mut bytes, context);
        let value = C::decode(&mut source).await?;
        match source.take_impossible() {
            None => Ok(value),
            Some(value) => Err(Error::Invalid { what: "value", value }),
        }
    })?;
    Ok((value, bytes))
}

/// Runs a future that reads from memory and therefore never waits.
///
/// # Errors
/// Those of the future; [`Error::Truncated`] should it wait after all.
pub fn now<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(Error::Truncated { what: "memory" }),
    }
}

/// Whether a path lies directly beneath the store directory: what guix-daemon calls a store path.
pub fn is_in_store(path: &[u8], store_dir: &StoreDir) -> bool {
    path.strip_prefix(store_dir.as_str().as_bytes())
        .and_then(|rest| rest.strip_prefix(b"/"))
        .is_some_and(|name| !name.is_empty() && name.find_byte(b'/').is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_requests_of_one_room_wait_for_each_other() {
        let (room, context) = (Room::new(), Context { store_dir: StoreDir::new("/s"), version: Version::GUIX_1_100 });
        let (mut large, mut small) = (Vec::new(), Vec::new());
        put_string(&mut large, &vec![b'x'; 2 << 20]);
        put_string(&mut small, &vec![b'x'; 60_000]);
        let read = async |bytes: &[u8]| {
            let mut bytes = bytes;
            let mut source = Source::request(&mut bytes, &context).in_room(Some(&room));
            let read = source.bytes(limits::TEXT, "a text");
            tokio::time::timeout(std::time::Duration::from_millis(100), read).await.ok()?.ok()?;
            Some(source.take_held())
        };
        let first = read(&large).await.unwrap();
        assert!(read(&large).await.is_none());
        assert!(read(&small).await.is_some());
        drop(first);
        assert!(read(&large).await.is_some());
    }
}
