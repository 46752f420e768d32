//! The client's half of the protocol for tight loops: prepared bytes out, blocking reads in, nothing decoded that is not looked at.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::Result;

/// What the client of Guix 1.5.0 says it speaks.
pub(crate) const VERSION: u64 = 0x163;
const MAGIC_CLIENT: u64 = 0x6e69_7863;
pub(crate) const MAGIC_DAEMON: u64 = 0x6478_696f;
const NEXT: u64 = 0x6f6c_6d67;
pub(crate) const LAST: u64 = 0x616c_7473;
const ERROR: u64 = 0x6378_7470;

/// A request's bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request(pub(crate) Vec<u8>);

impl Request {
    pub(crate) fn new(operation: u64) -> Self {
        Self::default().word(operation)
    }

    pub(crate) fn word(mut self, word: u64) -> Self {
        self.0.extend_from_slice(&word.to_le_bytes());
        self
    }

    pub(crate) fn string(mut self, bytes: impl AsRef<[u8]>) -> Self {
        put_string(&mut self.0, bytes.as_ref());
        self
    }

    pub(crate) fn strings<S: AsRef<[u8]>>(self, strings: &[S]) -> Self {
        strings.iter().fold(self.word(strings.len() as u64), |request, string| request.string(string))
    }
}

/// Length, bytes, zeros up to a multiple of eight.
pub(crate) fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// A greeted connection.
pub(crate) struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Connection {
    pub(crate) fn open(socket: &Path) -> Result<Self> {
        let mut this = Self::begin(socket)?;
        this.greet()?;
        this.done()?;
        Ok(this)
    }

    /// Connects and says the first word; then comes [`Connection::greet`], then [`Connection::done`].
    pub(crate) fn begin(socket: &Path) -> Result<Self> {
        let mut this = Self { stream: UnixStream::connect(socket)?, buffer: vec![0; 1 << 14], begin: 0, end: 0 };
        this.send(&MAGIC_CLIENT.to_le_bytes())?;
        Ok(this)
    }

    /// Hears the daemon's greeting and says the rest of ours.
    pub(crate) fn greet(&mut self) -> Result<()> {
        if self.word()? != MAGIC_DAEMON {
            return Err("this is no daemon".into());
        }
        self.word()?;
        self.send(&Request::new(VERSION).word(0).word(0).0)
    }

    /// A second handle for writing while this one reads.
    pub(crate) fn writer(&self) -> Result<UnixStream> {
        Ok(self.stream.try_clone()?)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    fn fill(&mut self) -> Result<()> {
        self.begin = 0;
        self.end = self.stream.read(&mut self.buffer)?;
        if self.end == 0 { Err("the daemon closed the connection".into()) } else { Ok(()) }
    }

    fn take(&mut self, out: &mut [u8]) -> Result<()> {
        let mut at = 0;
        while at < out.len() {
            if self.begin == self.end {
                self.fill()?;
            }
            let count = (self.end - self.begin).min(out.len() - at);
            out[at..at + count].copy_from_slice(&self.buffer[self.begin..self.begin + count]);
            self.begin += count;
            at += count;
        }
        Ok(())
    }

    pub(crate) fn word(&mut self) -> Result<u64> {
        let mut word = [0; 8];
        self.take(&mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    pub(crate) fn string(&mut self) -> Result<Vec<u8>> {
        let length = usize::try_from(self.word()?)?;
        let mut bytes = vec![0; length.next_multiple_of(8)];
        self.take(&mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Reads a list of strings and says how many they are.
    pub(crate) fn strings(&mut self) -> Result<u64> {
        let count = self.word()?;
        for _ in 0..count {
            self.string()?;
        }
        Ok(count)
    }

    pub(crate) fn skip_words(&mut self, count: usize) -> Result<()> {
        (0..count).try_for_each(|_| self.word().map(drop))
    }

    /// Reads frames until the work is done.
    pub(crate) fn done(&mut self) -> Result<()> {
        loop {
            match self.word()? {
                LAST => return Ok(()),
                NEXT => drop(self.string()?),
                ERROR => return Err(format!("the daemon says: {}", String::from_utf8_lossy(&self.string()?)).into()),
                other => return Err(format!("unexpected frame {other:#x}").into()),
            }
        }
    }

    /// Reads a reply: `w` is a word, `s` a string, `l` a list of strings.
    pub(crate) fn skip(&mut self, shape: &str) -> Result<()> {
        self.done()?;
        for kind in shape.bytes() {
            match kind {
                b'w' => drop(self.word()?),
                b's' => drop(self.string()?),
                _ => drop(self.strings()?),
            }
        }
        Ok(())
    }

    /// Sends a request and waits for its reply.
    pub(crate) fn call(&mut self, request: &Request, shape: &str) -> Result<()> {
        self.send(&request.0)?;
        self.skip(shape)
    }
}

/// What each client of Guix says first.
pub(crate) fn set_options() -> Request {
    // keep-failed, keep-going, fallback, verbosity, build hook, build verbosity, log type, traces, substitutes, settings.
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0].iter().fold(Request::new(19), |request, word| request.word(*word))
}
