//! One connection, in bytes: what is sent need not be what a client would send.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// Writes a word.
pub fn put_word(out: &mut Vec<u8>, word: u64) {
    out.extend_from_slice(&word.to_le_bytes());
}

/// Writes a string.
pub fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    put_word(out, text.len() as u64);
    out.extend_from_slice(text);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// Writes a list of strings.
pub fn put_strings<S: AsRef<[u8]>>(out: &mut Vec<u8>, texts: &[S]) {
    put_word(out, texts.len() as u64);
    for text in texts {
        put_string(out, text.as_ref());
    }
}

/// What a reply consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Nothing.
    Nothing,
    /// A word.
    Word,
    /// A string.
    Text,
    /// Strings.
    Texts,
    /// Pairs of strings.
    Pairs,
    /// Deriver, hash, references, time and size.
    Info,
    /// Paths, bytes and a word.
    Collected,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The reply, in words.
    Reply(String),
    /// An error, with its status, if there was one.
    Error(String, Option<u64>),
    /// The connection was closed.
    Gone,
    /// Nothing came in time.
    Late,
    /// What came is not the protocol.
    Garbage(String),
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: io::BufReader<UnixStream>,
    now: u64,
}

const LONGEST: u64 = 1 << 24;

fn failure(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Outcome::Late,
        io::ErrorKind::InvalidData => Outcome::Garbage(error.to_string()),
        _ => Outcome::Gone,
    }
}

impl Connection {
    /// Greets a daemon. `now` is the time that registrations are compared with, in seconds since 1970.
    ///
    /// # Errors
    /// What came instead of the daemon's greeting.
    pub fn open(stream: UnixStream, now: u64) -> Result<Connection, Outcome> {
        let mut connection = Connection { stream: io::BufReader::new(stream), now };
        let mut hello = Vec::new();
        put_word(&mut hello, 0x6e69_7863);
        // Version 1.100, no affinity, space may be reserved.
        put_word(&mut hello, 0x164);
        put_word(&mut hello, 0);
        put_word(&mut hello, 1);
        connection.write(&hello).map_err(|error| failure(&error))?;
        let mut greet = || -> io::Result<Outcome> {
            connection.word()?;
            connection.word()?;
            connection.frames(Shape::Nothing, &mut Vec::new())
        };
        match greet() {
            Ok(Outcome::Reply(_)) => Ok(connection),
            Ok(outcome) => Err(outcome),
            Err(error) => Err(failure(&error)),
        }
    }

    /// Sends a request and waits for what comes; `log` gets what the daemon says meanwhile.
    pub fn call(&mut self, request: &[u8], shape: Shape, log: &mut Vec<u8>) -> Outcome {
        // Who does not read the whole request may have said why.
        let _ = self.write(request);
        self.frames(shape, log).unwrap_or_else(|error| failure(&error))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    fn word(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.stream.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let length = self.word()?;
        if length > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a string of {length} bytes")));
        }
        let length = usize::try_from(length).unwrap_or(0);
        let mut bytes = vec![0; length.next_multiple_of(8)];
        self.stream.read_exact(&mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    fn text(&mut self) -> io::Result<String> {
        Ok(shown(&self.bytes()?))
    }

    fn texts(&mut self) -> io::Result<Vec<String>> {
        let count = self.word()?;
        if count > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a list of {count}")));
        }
        (0..count).map(|_| self.text()).collect()
    }

    fn frames(&mut self, shape: Shape, log: &mut Vec<u8>) -> io::Result<Outcome> {
        loop {
            match self.word()? {
                0x616c_7473 => return Ok(Outcome::Reply(self.reply(shape)?)),
                0x6f6c_6d67 => log.extend(self.bytes()?),
                0x6378_7470 => {
                    let message = self.text()?;
                    return Ok(Outcome::Error(message, self.word().ok()));
                }
                frame => return Ok(Outcome::Garbage(format!("frame {frame:#x}"))),
            }
        }
    }

    fn reply(&mut self, shape: Shape) -> io::Result<String> {
        Ok(match shape {
            Shape::Nothing => "done".to_owned(),
            Shape::Word => self.word()?.to_string(),
            Shape::Text => self.text()?,
            Shape::Texts => self.texts()?.join(" "),
            Shape::Pairs => {
                let count = self.word()?.min(LONGEST);
                let mut pairs = (0..count).map(|_| Ok(format!("{} -> {}", self.text()?, self.text()?))).collect::<io::Result<Vec<_>>>()?;
                pairs.sort();
                pairs.join("; ")
            }
            Shape::Info => {
                let (deriver, hash, references, time) = (self.text()?, self.text()?, self.texts()?, self.word()?);
                let time = if time.abs_diff(self.now) < 3600 { "now".to_owned() } else { time.to_string() };
                format!("deriver {deriver:?} hash {hash} size {} registered {time} references {}", self.word()?, references.join(" "))
            }
            Shape::Collected => {
                // guix-daemon lists what it deletes in the order in which it does.
                let mut paths = self.texts()?;
                paths.sort();
                format!("{} bytes ({}) of {}", self.word()?, self.word()?, paths.join(" "))
            }
        })
    }
}

/// Bytes so that they are one line.
pub fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(|c: char| c.is_control()) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}
