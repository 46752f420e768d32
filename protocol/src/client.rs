//! The client's half of a connection: one method for each operation of the table.

use std::io;

use bstr::{BStr, BString};
use fruix_drv::StoreDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    limits,
    ops::{Call, Operation},
    wire::{
        self, Codec, Context, MAGIC_CLIENT, MAGIC_DAEMON, STDERR_ERROR, STDERR_LAST, STDERR_NEXT, STDERR_READ, STDERR_WRITE, Sink, Source,
        Version, put_string,
    },
};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon says so. Unless it has closed the connection as well, that goes on.
    #[error("{message}")]
    Remote {
        /// The daemon's message.
        message: BString,
        /// The daemon's status.
        status: u64,
    },
    /// The connection failed, and is of no use any more.
    #[error("connection to the daemon lost while {what}")]
    Io {
        /// What was going on.
        what: &'static str,
        /// What the stream said.
        source: io::Error,
    },
    /// The daemon's bytes are not what was due: it is broken or no daemon. The connection is of no use any more.
    #[error("unexpected answer from the daemon")]
    Wire(#[from] wire::Error),
    /// It answered the greeting with another magic number: no daemon listens there.
    #[error("protocol mismatch: {0:#x} instead of the daemon's magic number")]
    Magic(u64),
    /// A frame that does not exist, or not for this operation.
    #[error("invalid frame {frame:#x} from the daemon")]
    Frame {
        /// The frame's number.
        frame: u64,
    },
    /// The daemon is too old for the operation; nothing was sent.
    #[error("daemon's protocol version {version} does not have {}", operation.info().name)]
    TooOld {
        /// The operation.
        operation: Operation,
        /// The version agreed on.
        version: Version,
    },
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { what, source }
}

type LogSink = Box<dyn FnMut(&BStr) + Send>;

/// A connection to a daemon.
pub struct Client<S> {
    stream: S,
    context: Context,
    log: LogSink,
}

impl<S> std::fmt::Debug for Client<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("context", &self.context).finish_non_exhaustive()
    }
}

/// What carries bytes besides the log while an operation goes on.
enum Carry<'a> {
    Nothing,
    In(&'a mut (dyn AsyncRead + Unpin + Send)),
    Out(&'a mut (dyn AsyncWrite + Unpin + Send)),
}

impl<S> Client<S> {
    /// The version agreed on.
    pub fn version(&self) -> Version {
        self.context.version
    }

    /// The store directory.
    pub fn store_dir(&self) -> &StoreDir {
        &self.context.store_dir
    }

    /// Where pieces of log go from now on. They go nowhere at first.
    pub fn set_log(&mut self, log: impl FnMut(&BStr) + Send + 'static) {
        self.log = Box::new(log);
    }

    /// Gives the stream back.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Client<S> {
    /// Greets a daemon as a client of `version`; the daemon's own may lower it.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Remote`] when the daemon cannot open its store. `stream` is buffered here neither way: wrap it
    /// in a `BufStream` where many small messages matter.
    pub async fn connect(mut stream: S, store_dir: StoreDir, version: Version) -> Result<Self, Error> {
        const WHAT: &str = "shaking hands";
        stream.write_all(&MAGIC_CLIENT.to_le_bytes()).await.map_err(io_error(WHAT))?;
        stream.flush().await.map_err(io_error(WHAT))?;
        let magic = stream.read_u64_le().await.map_err(io_error(WHAT))?;
        if magic != MAGIC_DAEMON {
            return Err(Error::Magic(magic));
        }
        let theirs = stream.read_u64_le().await.map_err(io_error(WHAT))?;
        let theirs = Version(u32::try_from(theirs).map_err(|_| Error::Magic(theirs))?);
        let context = Context { store_dir, version: version.min(theirs) };
        let mut out = Vec::new();
        out.extend_from_slice(&u64::from(version.0).to_le_bytes());
        // No CPU affinity; space may be reserved.
        out.extend_from_slice(&0_u64.to_le_bytes());
        out.extend_from_slice(&1_u64.to_le_bytes());
        stream.write_all(&out).await.map_err(io_error(WHAT))?;
        stream.flush().await.map_err(io_error(WHAT))?;
        let mut client = Client { stream, context, log: Box::new(|_| {}) };
        client.frames(Carry::Nothing).await?;
        Ok(client)
    }

    /// Sends a request that carries nothing and waits for its reply.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn call<C: Call>(&mut self, request: &C) -> Result<<C::Reply as Codec>::Value, Error> {
        self.send(request).await?;
        self.flush().await?;
        self.frames(Carry::Nothing).await?;
        self.reply::<C>().await
    }

    /// The same for [`crate::ops::Stream::Archive`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn call_with_archive<C: Call>(
        &mut self,
        request: &C,
        archive: &mut (dyn AsyncRead + Unpin + Send),
    ) -> Result<<C::Reply as Codec>::Value, Error> {
        const WHAT: &str = "sending an archive";
        self.send(request).await?;
        let mut buf = vec![0; limits::GROWTH_STEP];
        loop {
            let count = archive.read(&mut buf).await.map_err(io_error("reading an archive"))?;
            if count == 0 {
                break;
            }
            if let Err(source) = self.stream.write_all(buf.get(..count).unwrap_or_default()).await {
                // The daemon has given up; it may have said why.
                return match self.frames(Carry::Nothing).await {
                    Err(error @ Error::Remote { .. }) => Err(error),
                    _ => Err(Error::Io { what: WHAT, source }),
                };
            }
        }
        self.flush().await?;
        self.frames(Carry::Nothing).await?;
        self.reply::<C>().await
    }

    /// The same for [`crate::ops::Stream::TunnelIn`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn call_with_input<C: Call>(
        &mut self,
        request: &C,
        input: &mut (dyn AsyncRead + Unpin + Send),
    ) -> Result<<C::Reply as Codec>::Value, Error> {
        self.send(request).await?;
        self.flush().await?;
        self.frames(Carry::In(input)).await?;
        self.reply::<C>().await
    }

    /// The same for [`crate::ops::Stream::TunnelOut`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn call_with_output<C: Call>(
        &mut self,
        request: &C,
        output: &mut (dyn AsyncWrite + Unpin + Send),
    ) -> Result<<C::Reply as Codec>::Value, Error> {
        self.send(request).await?;
        self.flush().await?;
        self.frames(Carry::Out(output)).await?;
        self.reply::<C>().await
    }

    async fn send<C: Call>(&mut self, request: &C) -> Result<(), Error> {
        let info = C::OPERATION.info();
        if info.since > self.context.version {
            return Err(Error::TooOld { operation: C::OPERATION, version: self.context.version });
        }
        let mut out = Vec::new();
        let mut sink = Sink::new(&mut out, &self.context);
        sink.word(info.code);
        C::encode(request, &mut sink);
        self.stream.write_all(&out).await.map_err(io_error("sending a request"))
    }

    async fn flush(&mut self) -> Result<(), Error> {
        self.stream.flush().await.map_err(io_error("sending a request"))
    }

    async fn reply<C: Call>(&mut self) -> Result<<C::Reply as Codec>::Value, Error> {
        let mut source = Source::reply(&mut self.stream, &self.context);
        let reply = C::Reply::decode(&mut source).await?;
        match source.take_impossible() {
            None => Ok(reply),
            Some(value) => Err(wire::Error::Invalid { what: "reply", value }.into()),
        }
    }

    /// Handles frames until the work is done.
    async fn frames(&mut self, mut carry: Carry<'_>) -> Result<(), Error> {
        const WHAT: &str = "waiting for the daemon";
        loop {
            let mut source = Source::reply(&mut self.stream, &self.context);
            let frame = source.word("a frame").await?;
            match (frame, &mut carry) {
                (STDERR_LAST, _) => return Ok(()),
                (STDERR_NEXT, _) => {
                    let piece = source.bytes(limits::MESSAGE, "a piece of log").await?;
                    (self.log)(piece.as_ref());
                }
                (STDERR_ERROR, _) => {
                    let message = source.bytes(limits::MESSAGE, "an error").await?;
                    // guix-daemon leaves the status of some early errors out and closes the connection.
                    let status = match source.word("a status").await {
                        Err(wire::Error::Truncated { .. }) => 1,
                        status => status?,
                    };
                    return Err(Error::Remote { message, status });
                }
                (STDERR_READ, Carry::In(input)) => {
                    let want = source.word("a size").await?;
                    let want = usize::try_from(want).unwrap_or(usize::MAX).min(limits::GROWTH_STEP);
                    let mut piece = vec![0; want];
                    let count = input.read(&mut piece).await.map_err(io_error("reading what is to be sent"))?;
                    let mut out = Vec::new();
                    put_string(&mut out, piece.get(..count).unwrap_or_default());
                    self.stream.write_all(&out).await.map_err(io_error(WHAT))?;
                    self.flush().await?;
                }
                (STDERR_WRITE, Carry::Out(output)) => {
                    let piece = source.bytes(limits::MESSAGE, "a piece of data").await?;
                    output.write_all(&piece).await.map_err(io_error("writing what was received"))?;
                }
                _ => return Err(Error::Frame { frame }),
            }
        }
    }
}
