//! The archive format: a tree of files, directories and symbolic links as one string of bytes, the same for the same
//! tree wherever it is made.
//!
//! ```text
//! archive   = "nix-archive-1" node
//! node      = "(" "type" ( regular | symlink | directory ) ")"
//! regular   = "regular" [ "executable" "" ] "contents" SIZE BYTES PADDING
//! symlink   = "symlink" "target" TARGET
//! directory = "directory" { "entry" "(" "name" NAME "node" node ")" }
//! ```
//!
//! Each token is a length (64 bits, little endian), that many bytes, and zeros up to a multiple of eight. Names are
//! strictly ascending as bytes. [`Reader`] and [`Writer`] hold both sides to the same rules, those in
//! [`crate::limits`], and touch no file system; memory does not depend on the size of the tree.

use std::io::{self, Read, Write};

use bstr::{BStr, BString, ByteSlice};

use crate::limits;

/// First token of every archive.
pub const MAGIC: &[u8] = b"nix-archive-1";

/// Why an archive cannot be read or written. Positions are bytes from the archive's first.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other end of the stream failed; the archive itself may be good.
    #[error("cannot read the archive after byte {position}")]
    Read {
        /// Bytes read before the failure.
        position: u64,
        /// What the stream said.
        source: io::Error,
    },
    /// The destination refused bytes; what was written so far is not an archive.
    #[error("cannot write the archive after byte {position}")]
    Write {
        /// Bytes written before the failure.
        position: u64,
        /// What the destination said.
        source: io::Error,
    },
    /// The stream ended inside the archive; nothing that came from it may be kept.
    #[error("bad archive: ends early, after byte {position}")]
    Truncated {
        /// Where the stream ended.
        position: u64,
    },
    /// The first token is another one: these bytes are no archive.
    #[error("bad archive: input doesn't look like a normalized archive")]
    Magic {
        /// Position of the token.
        position: u64,
    },
    /// The grammar asks for another token here.
    #[error("bad archive: expected {expected} instead of `{found}' at byte {position}")]
    Token {
        /// Position of the token.
        position: u64,
        /// What the grammar allows.
        expected: &'static str,
        /// What is there, cut to a token's length.
        found: BString,
    },
    /// A string declares more bytes than its place allows.
    #[error("bad archive: {what} of {length} bytes at byte {position} is longer than {limit}")]
    TooLong {
        /// Position of the declared length.
        position: u64,
        /// What the string is.
        what: &'static str,
        /// Its declared length.
        length: u64,
        /// The longest allowed.
        limit: usize,
    },
    /// Bytes between the end of a string and the next multiple of eight are not zero.
    #[error("bad archive: non-zero padding at byte {position}")]
    Padding {
        /// Position of the padding.
        position: u64,
    },
    /// A directory entry's name is empty, `.`, `..`, too long, or contains `/` or a zero byte.
    #[error("NAR contains invalid file name `{name}' at byte {position}")]
    Name {
        /// Position of the name.
        position: u64,
        /// The name, cut to 255 bytes.
        name: BString,
    },
    /// A name does not come after its predecessor: the directory is unsorted, or has the name twice.
    #[error("NAR directory is not sorted: `{name}' at byte {position}")]
    Order {
        /// Position of the name.
        position: u64,
        /// The name.
        name: BString,
    },
    /// A symbolic link's target is empty, too long, or contains a zero byte.
    #[error("bad archive: invalid symlink target at byte {position}")]
    Target {
        /// Position of the target.
        position: u64,
    },
    /// Nodes are nested deeper than [`limits::NAR_DEPTH`].
    #[error("NAR directory nesting exceeds maximum depth of {limit} at byte {position}", limit = limits::NAR_DEPTH)]
    Depth {
        /// Position of the node.
        position: u64,
    },
    /// The calls to [`Writer`] do not make an archive: the caller is wrong, not its data.
    #[error("archive written out of order at byte {position}: {what}")]
    Misuse {
        /// Bytes written so far.
        position: u64,
        /// The call that does not belong here.
        what: &'static str,
    },
}

impl Error {
    /// Whether only a link's target is wrong: the grammar holds, and the rest of the archive can be read. guix-daemon finds out about such
    /// links when it makes them, with the whole archive read.
    pub fn goes_on(&self) -> bool {
        matches!(self, Error::Target { .. })
    }
}

/// One step of a walk through an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The current node is a directory. Its entries follow, then [`Event::EndDirectory`].
    Directory,
    /// The next node is the entry of this name in the innermost open directory.
    Entry(BString),
    /// The innermost open directory is complete.
    EndDirectory,
    /// The current node is a symbolic link.
    Symlink {
        /// What it points to: 1 to 4095 bytes without a zero byte.
        target: BString,
    },
    /// The current node is a file. [`Reader::read_data`] gives its bytes; what is not read is skipped.
    File {
        /// Whether it may be executed.
        executable: bool,
        /// Its size in bytes.
        size: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Node,
    Directory,
    Data {
        left: u64,
        padding: usize,
    },
    NodeEnd,
    /// Behind a target that was refused.
    LinkEnd,
    Done,
    Failed,
}

/// Reads an archive from a stream, event by event.
///
/// It takes from the stream the bytes of the archive and not one more, in small reads: wrap nothing that must not be
/// over-read, and buffer what is slow.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    position: u64,
    state: State,
    /// The last name of each open directory.
    open: Vec<BString>,
}

impl<R: Read> Reader<R> {
    /// Starts at the archive's first byte.
    pub fn new(inner: R) -> Self {
        Reader { inner, position: 0, state: State::Start, open: Vec::new() }
    }

    /// Bytes of the archive read so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Gives the stream back. After [`Reader::next`] has returned `None`, it stands right behind the archive.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next event, or `None` when the archive is complete and its last byte has been read.
    ///
    /// # Errors
    /// Whatever breaks the format or its limits, with the position; afterwards every call fails, unless the archive goes on
    /// ([`Error::goes_on`]).
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Event>, Error> {
        let state = std::mem::replace(&mut self.state, State::Failed);
        match self.step(state) {
            Ok((event, state)) => {
                self.state = state;
                Ok(event)
            }
            Err(error) => {
                if error.goes_on() {
                    self.state = State::LinkEnd;
                }
                Err(error)
            }
        }
    }

    /// Reads bytes of the current file, at most `buf.len()`; 0 means that the file is complete (or that the last
    /// event was no file).
    ///
    /// # Errors
    /// [`Error::Read`] or [`Error::Truncated`].
    pub fn read_data(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        let State::Data { left, padding } = self.state else {
            return Ok(0);
        };
        let want = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let Some(buf) = buf.get_mut(..want) else {
            return Ok(0);
        };
        if buf.is_empty() {
            return Ok(0);
        }
        let got = loop {
            match self.inner.read(buf) {
                Ok(0) => {
                    self.state = State::Failed;
                    return Err(Error::Truncated { position: self.position });
                }
                Ok(got) => break got as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    self.state = State::Failed;
                    return Err(Error::Read { position: self.position, source });
                }
            }
        };
        self.position = self.position.saturating_add(got);
        self.state = State::Data { left: left.saturating_sub(got), padding };
        Ok(usize::try_from(got).unwrap_or(want))
    }

    /// Reads the archive to its end, checking all of it and keeping nothing.
    ///
    /// # Errors
    /// As [`Reader::next`]. After one that the archive goes on behind ([`Error::goes_on`]), it has been read to its end.
    pub fn skip_to_end(&mut self) -> Result<(), Error> {
        let mut first = None;
        loop {
            match self.next() {
                Ok(Some(_)) => {}
                Ok(None) => return first.map_or(Ok(()), Err),
                Err(error) if error.goes_on() => {
                    first.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn step(&mut self, state: State) -> Result<(Option<Event>, State), Error> {
        match state {
            State::Start => {
                let position = self.position;
                match self.token("the magic") {
                    Ok(token) if token == MAGIC => self.node(),
                    Ok(_) | Err(Error::TooLong { .. } | Error::Padding { .. }) => Err(Error::Magic { position }),
                    Err(error) => Err(error),
                }
            }
            State::Node => self.node(),
            State::Data { left, padding } => {
                self.skip(left)?;
                self.padding(padding)?;
                self.expect(b")", "`)'")?;
                self.after_node()
            }
            State::NodeEnd => self.after_node(),
            State::LinkEnd => {
                self.expect(b")", "`)'")?;
                self.after_node()
            }
            State::Directory => self.entry(),
            State::Done => Ok((None, State::Done)),
            State::Failed => Err(Error::Misuse { position: self.position, what: "the archive has been given up after an error" }),
        }
    }

    fn node(&mut self) -> Result<(Option<Event>, State), Error> {
        if self.open.len() >= limits::NAR_DEPTH {
            return Err(Error::Depth { position: self.position });
        }
        self.expect(b"(", "`('")?;
        self.expect(b"type", "`type'")?;
        let position = self.position;
        let kind = self.token("a file type")?;
        match kind.as_slice() {
            b"regular" => {
                let position = self.position;
                let mut token = self.token("a field")?;
                let executable = token == "executable";
                if executable {
                    self.expect(b"", "an empty string")?;
                    token = self.token("a field")?;
                }
                if token != "contents" {
                    return Err(Error::Token { position, expected: "`contents'", found: token });
                }
                let size = self.length()?;
                Ok((Some(Event::File { executable, size }), State::Data { left: size, padding: padding_of(size) }))
            }
            b"symlink" => {
                self.expect(b"target", "`target'")?;
                let position = self.position;
                let target = self.string("a symlink target", limits::NAR_TARGET)?;
                if !valid_target(&target) {
                    return Err(Error::Target { position });
                }
                self.expect(b")", "`)'")?;
                Ok((Some(Event::Symlink { target }), State::NodeEnd))
            }
            b"directory" => {
                self.open.push(BString::default());
                Ok((Some(Event::Directory), State::Directory))
            }
            _ => Err(Error::Token { position, expected: "a file type", found: kind }),
        }
    }

    fn entry(&mut self) -> Result<(Option<Event>, State), Error> {
        let position = self.position;
        let token = self.token("an entry")?;
        match token.as_slice() {
            b"entry" => {
                self.expect(b"(", "`('")?;
                self.expect(b"name", "`name'")?;
                let position = self.position;
                let name = self.string("a file name", limits::NAR_NAME)?;
                if !valid_name(&name) {
                    return Err(Error::Name { position, name });
                }
                if let Some(last) = self.open.last_mut() {
                    if name <= *last {
                        return Err(Error::Order { position, name });
                    }
                    last.clone_from(&name);
                }
                self.expect(b"node", "`node'")?;
                Ok((Some(Event::Entry(name)), State::Node))
            }
            b")" => {
                self.open.pop();
                Ok((Some(Event::EndDirectory), State::NodeEnd))
            }
            _ => Err(Error::Token { position, expected: "`entry' or `)'", found: token }),
        }
    }

    /// A node is complete: either the archive is, or the entry that the node belongs to.
    fn after_node(&mut self) -> Result<(Option<Event>, State), Error> {
        if self.open.is_empty() {
            return Ok((None, State::Done));
        }
        self.expect(b")", "`)'")?;
        self.entry()
    }

    fn expect(&mut self, token: &[u8], expected: &'static str) -> Result<(), Error> {
        let position = self.position;
        let found = self.token(expected)?;
        if found == token { Ok(()) } else { Err(Error::Token { position, expected, found }) }
    }

    fn token(&mut self, what: &'static str) -> Result<BString, Error> {
        self.string(what, limits::NAR_TOKEN)
    }

    fn string(&mut self, what: &'static str, limit: usize) -> Result<BString, Error> {
        let position = self.position;
        let length = self.length()?;
        let size = match usize::try_from(length) {
            Ok(size) if size <= limit => size,
            _ => {
                return Err(Error::TooLong { position, what, length, limit });
            }
        };
        let mut bytes = vec![0; size];
        self.fill(&mut bytes)?;
        self.padding(padding_of(length))?;
        Ok(bytes.into())
    }

    fn length(&mut self) -> Result<u64, Error> {
        let mut word = [0; 8];
        self.fill(&mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    fn padding(&mut self, size: usize) -> Result<(), Error> {
        let position = self.position;
        let mut zeros = [0; 8];
        let zeros = zeros.get_mut(..size).unwrap_or_default();
        self.fill(zeros)?;
        if zeros.iter().any(|&byte| byte != 0) {
            return Err(Error::Padding { position });
        }
        Ok(())
    }

    fn skip(&mut self, mut left: u64) -> Result<(), Error> {
        let mut scratch = [0; 8192];
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(scratch.len());
            self.fill(scratch.get_mut(..step).unwrap_or_default())?;
            left = left.saturating_sub(step as u64);
        }
        Ok(())
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), Error> {
        let size = buf.len() as u64;
        self.inner.read_exact(buf).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated { position: self.position },
            _ => Error::Read { position: self.position, source },
        })?;
        self.position = self.position.saturating_add(size);
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Root,
    Node,
    EntryOrEnd,
    Data { left: u64, padding: usize },
    Finished,
}

/// Writes an archive to a stream, call by call, in the order of the grammar.
///
/// ```
/// # use fruix_protocol::nar::{Error, Writer};
/// let mut archive = Writer::new(Vec::new());
/// archive.directory()?;
/// archive.entry(b"bin".into())?;
/// archive.symlink(b"usr/bin".into())?;
/// archive.entry(b"hello".into())?;
/// archive.file(true, 3)?;
/// archive.data(b"hi\n")?;
/// archive.end_directory()?;
/// let bytes = archive.finish()?;
/// # assert_eq!(bytes.len() % 8, 0);
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
    position: u64,
    expect: Expect,
    open: Vec<BString>,
}

impl<W: Write> Writer<W> {
    /// Starts an archive; nothing is written before the first node.
    pub fn new(inner: W) -> Self {
        Writer { inner, position: 0, expect: Expect::Root, open: Vec::new() }
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The current node is a directory; its entries follow, then [`Writer::end_directory`].
    ///
    /// # Errors
    /// [`Error::Depth`], [`Error::Misuse`] where no node is due, [`Error::Write`].
    pub fn directory(&mut self) -> Result<(), Error> {
        self.begin_node("directory")?;
        self.tokens(&[b"directory"])?;
        self.open.push(BString::default());
        self.expect = Expect::EntryOrEnd;
        Ok(())
    }

    /// The next node is the entry `name` of the innermost open directory.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Order`], [`Error::Misuse`] outside of a directory, [`Error::Write`].
    pub fn entry(&mut self, name: &BStr) -> Result<(), Error> {
        self.end_data()?;
        if self.expect != Expect::EntryOrEnd {
            return Err(Error::Misuse { position: self.position, what: "entry" });
        }
        if !valid_name(name) {
            let name = name.get(..limits::NAR_NAME).unwrap_or(name).into();
            return Err(Error::Name { position: self.position, name });
        }
        if let Some(last) = self.open.last_mut() {
            if name <= last.as_bstr() {
                return Err(Error::Order { position: self.position, name: name.to_owned() });
            }
            *last = name.to_owned();
        }
        self.tokens(&[b"entry", b"(", b"name", name, b"node"])?;
        self.expect = Expect::Node;
        Ok(())
    }

    /// The innermost open directory is complete.
    ///
    /// # Errors
    /// [`Error::Misuse`] outside of a directory, [`Error::Write`].
    pub fn end_directory(&mut self) -> Result<(), Error> {
        self.end_data()?;
        if self.expect != Expect::EntryOrEnd || self.open.pop().is_none() {
            return Err(Error::Misuse { position: self.position, what: "end of directory" });
        }
        self.end_node()
    }

    /// The current node is a symbolic link.
    ///
    /// # Errors
    /// [`Error::Target`], [`Error::Misuse`] where no node is due, [`Error::Write`].
    pub fn symlink(&mut self, target: &BStr) -> Result<(), Error> {
        if !valid_target(target) {
            return Err(Error::Target { position: self.position });
        }
        self.begin_node("symlink")?;
        self.tokens(&[b"symlink", b"target", target])?;
        self.end_node()
    }

    /// The current node is a file of `size` bytes, which [`Writer::data`] must then be given.
    ///
    /// # Errors
    /// [`Error::Misuse`] where no node is due, [`Error::Write`].
    pub fn file(&mut self, executable: bool, size: u64) -> Result<(), Error> {
        self.begin_node("file")?;
        self.tokens(&[b"regular"])?;
        if executable {
            self.tokens(&[b"executable", b""])?;
        }
        self.tokens(&[b"contents"])?;
        self.put(&size.to_le_bytes())?;
        self.expect = Expect::Data { left: size, padding: padding_of(size) };
        Ok(())
    }

    /// Bytes of the current file.
    ///
    /// # Errors
    /// [`Error::Misuse`] when they are more than the file's size says, [`Error::Write`].
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        let Expect::Data { left, padding } = self.expect else {
            return Err(Error::Misuse { position: self.position, what: "data" });
        };
        let Some(left) = left.checked_sub(bytes.len() as u64) else {
            return Err(Error::Misuse { position: self.position, what: "more data than the size says" });
        };
        self.put(bytes)?;
        self.expect = Expect::Data { left, padding };
        Ok(())
    }

    /// Ends the archive, flushes the stream and gives it back.
    ///
    /// # Errors
    /// [`Error::Misuse`] when the archive is not complete, [`Error::Write`].
    pub fn finish(mut self) -> Result<W, Error> {
        self.end_data()?;
        if self.expect != Expect::Finished {
            return Err(Error::Misuse { position: self.position, what: "end of the archive" });
        }
        self.inner.flush().map_err(|source| Error::Write { position: self.position, source })?;
        Ok(self.inner)
    }

    fn begin_node(&mut self, what: &'static str) -> Result<(), Error> {
        let root = match self.expect {
            Expect::Root => true,
            Expect::Node => false,
            _ => {
                return Err(Error::Misuse { position: self.position, what });
            }
        };
        if self.open.len() >= limits::NAR_DEPTH {
            return Err(Error::Depth { position: self.position });
        }
        if root {
            self.tokens(&[MAGIC])?;
        }
        self.tokens(&[b"(", b"type"])
    }

    fn end_node(&mut self) -> Result<(), Error> {
        if self.open.is_empty() {
            self.tokens(&[b")"])?;
            self.expect = Expect::Finished;
        } else {
            self.tokens(&[b")", b")"])?;
            self.expect = Expect::EntryOrEnd;
        }
        Ok(())
    }

    /// Closes the current file, if there is one.
    fn end_data(&mut self) -> Result<(), Error> {
        let Expect::Data { left, padding } = self.expect else {
            return Ok(());
        };
        if left > 0 {
            return Err(Error::Misuse { position: self.position, what: "less data than the size says" });
        }
        self.put([0; 8].get(..padding).unwrap_or_default())?;
        self.end_node()
    }

    fn tokens(&mut self, tokens: &[&[u8]]) -> Result<(), Error> {
        for token in tokens {
            let size = token.len() as u64;
            self.put(&size.to_le_bytes())?;
            self.put(token)?;
            self.put([0; 8].get(..padding_of(size)).unwrap_or_default())?;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.inner.write_all(bytes).map_err(|source| Error::Write { position: self.position, source })?;
        self.position = self.position.saturating_add(bytes.len() as u64);
        Ok(())
    }
}

/// Zeros between `size` and the next multiple of eight.
pub(crate) fn padding_of(size: u64) -> usize {
    ((8 - size % 8) % 8) as usize
}

/// Whether an archive may contain an entry of this name.
pub fn valid_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= limits::NAR_NAME
        && name != b"."
        && name != b".."
        && !name.iter().any(|&byte| byte == b'/' || byte == 0)
}

/// Whether an archive may contain a symbolic link to this target.
pub fn valid_target(target: &[u8]) -> bool {
    !target.is_empty() && target.len() <= limits::NAR_TARGET && !target.contains(&0)
}
