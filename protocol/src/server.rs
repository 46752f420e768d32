//! The daemon's half of a connection: handshake, then requests one after the other until the client goes away.
//!
//! ```text
//! client  MAGIC              daemon  MAGIC VERSION         (before it knows the client's)
//! client  VERSION [CPU-FLAG [CPU]] [RESERVE-FLAG]
//! daemon  LAST | ERROR message status                       (the store cannot be opened: the connection ends)
//! client  OPERATION fields [archive]
//! daemon  { NEXT log | READ size | WRITE bytes }  LAST reply | ERROR message status
//! ```
//! An error while the fields or an archive are still being read leaves the stream out of step: it is reported and the
//! connection ends. An error of the work itself is reported and the connection goes on. So does guix-daemon.
//!
//! One task serves a connection. While a handler works, the task also reads ahead a little, to notice that the client
//! has gone (the handler's future is dropped then), and writes what [`Log`] and the tunnels have put into the outbox.
//! Handlers and the threads they start never touch the socket: they share two bounded buffers with the task.

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context as TaskContext, Poll, ready},
    time::Duration,
};

use bstr::BString;
use fruix_drv::StoreDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Sleep, sleep},
};

use crate::{
    nar,
    ops::{Operation, Reply, Request, Service, Stage, Stream, Who, dispatch},
    shared::Shared,
    wire::{self, Context, MAGIC_CLIENT, MAGIC_DAEMON, Room, STDERR_ERROR, STDERR_LAST, Source, Version},
};

pub use crate::shared::{Alive, BlockingBody, BlockingTunnelReader, BlockingTunnelWriter, Body, Log, TunnelReader, TunnelWriter};

/// Who is at the other end, as far as the table of operations cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Root or the daemon's own user.
    pub trusted: bool,
    /// On another machine.
    pub remote: bool,
}

impl Peer {
    /// Whether a rule for these concerns the peer.
    pub fn is(&self, who: Who) -> bool {
        match who {
            Who::Anyone => true,
            Who::Remote => self.remote,
            Who::Untrusted => !self.trusted,
        }
    }
}

/// What a client is told of an operation that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OpError {
    /// The message; clients show it and some look into it.
    pub message: BString,
    /// 1, or for builds a number that says how they failed; clients end with it.
    pub status: u32,
    /// End the connection after the message.
    pub close: bool,
}

impl OpError {
    /// An error of status 1 after which the connection goes on.
    pub fn new(message: impl Into<BString>) -> Self {
        OpError { message: message.into(), status: 1, close: false }
    }

    /// The same error with another status.
    #[must_use]
    pub fn with_status(mut self, status: u32) -> Self {
        self.status = status;
        self
    }

    /// The same error, after which the connection ends.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }
}

impl From<nar::Error> for OpError {
    fn from(error: nar::Error) -> Self {
        OpError::new(error.to_string())
    }
}

impl From<wire::Error> for OpError {
    fn from(error: wire::Error) -> Self {
        OpError::new(error.to_string()).closing()
    }
}

/// What is the same for all connections.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The store directory.
    pub store_dir: StoreDir,
    /// How long the handshake may take. `None`: for ever.
    pub handshake_timeout: Option<Duration>,
    /// How long a request's fields may take once its number has come; and how long the client may let pass without
    /// reading or writing a byte when an archive, a tunnel or a reply waits for it. `None`: for ever. A client that
    /// does not read the log of a build is never cut off for that.
    pub stall_timeout: Option<Duration>,
    /// How long what a client still sends is read and dropped after an error that ends the connection, so that it
    /// comes to read the error instead of dying of a broken pipe.
    pub linger: Duration,
    /// What this connection shares with others for its larger requests. `None`: as much as it likes.
    pub room: Option<Room>,
}

impl Settings {
    /// Settings without timeouts and room, with a linger of 5 seconds.
    pub fn new(store_dir: StoreDir) -> Self {
        Settings { store_dir, handshake_timeout: None, stall_timeout: None, linger: Duration::from_secs(5), room: None }
    }
}

/// What a client says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The client's version or the daemon's, whichever is lower.
    pub version: Version,
    /// The CPU that it wants to be served on; only a hint.
    pub cpu: Option<u32>,
    /// Whether disk space may be reserved for later collections of garbage.
    pub reserve_space: bool,
}

/// How a connection ended, when nobody was at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client closed it between two requests.
    Closed,
    /// The client closed it while a handler was working; that was cancelled.
    Disconnected,
    /// It was ended after an error that the client has been told.
    Refused,
}

/// How a connection ended, otherwise. Nothing is left to do but to log it.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The peer speaks something else; it was answered nothing.
    #[error("protocol mismatch")]
    Magic,
    /// The stream failed or ended within a message.
    #[error("connection lost while {what}")]
    Lost {
        /// What was going on.
        what: &'static str,
        /// What the stream said.
        source: io::Error,
    },
    /// The client took longer than [`Settings`] allow.
    #[error("client too slow while {what}")]
    Timeout {
        /// What was going on.
        what: &'static str,
    },
}

/// What a handler is given besides the request: the way back to the client while the work is going on.
#[derive(Debug)]
pub struct Work {
    shared: Arc<Shared>,
    operation: u64,
    context: Arc<Context>,
    peer: Peer,
}

impl Work {
    /// A handle that sends lines of log to the client; to be cloned and given to others at will.
    pub fn log(&self) -> Log {
        Log::new(self.shared.clone(), self.operation)
    }

    /// Tells whether the client still waits; for threads that work long without reading or writing.
    pub fn alive(&self) -> Alive {
        Alive::new(self.shared.clone(), self.operation)
    }

    /// The client's bytes behind the fields, for operations with [`Stream::Archive`].
    ///
    /// The stream does not say where they end. Whoever has read one whole archive calls `finish` on the body; without
    /// that the connection ends after the answer, since it is out of step.
    pub fn body(&mut self) -> Body {
        Body::new(self.shared.clone(), self.operation)
    }

    /// Bytes that the client is asked for, for operations with [`Stream::TunnelIn`].
    pub fn tunnel_reader(&mut self) -> TunnelReader {
        TunnelReader::new(self.shared.clone(), self.operation)
    }

    /// Bytes for the client's sink, for operations with [`Stream::TunnelOut`].
    pub fn tunnel_writer(&mut self) -> TunnelWriter {
        TunnelWriter::new(self.shared.clone(), self.operation)
    }

    /// Who asks.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The version agreed on.
    pub fn version(&self) -> Version {
        self.context.version
    }

    /// The store directory.
    pub fn store_dir(&self) -> &StoreDir {
        &self.context.store_dir
    }
}

/// Serves one connection to its end. `open` makes the service once the client's version is known; its error is told
/// to the client and ends the connection.
///
/// # Errors
/// [`SessionError`] says why it ended, when that was not in order.
pub async fn serve<T, S, F>(stream: T, peer: Peer, settings: &Settings, open: impl FnOnce(Hello) -> F) -> Result<End, SessionError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send,
    S: Service,
    F: Future<Output = Result<S, OpError>> + Send,
{
    let mut session = Session {
        stream,
        shared: Arc::new(Shared::default()),
        peer,
        stall: settings.stall_timeout,
        linger: settings.linger,
        room: settings.room.clone(),
    };
    let hello = within(settings.handshake_timeout, "shaking hands", session.handshake()).await?;
    let context = Arc::new(Context { store_dir: settings.store_dir.clone(), version: hello.version });
    let opened = if hello.version < Version::GUIX_MIN {
        Err(OpError::new(format!("client's protocol version {} is not supported", hello.version)))
    } else {
        let opening = Box::pin(open(hello));
        match session.drive(opening).await? {
            Some(opened) => opened,
            None => return Ok(End::Disconnected),
        }
    };
    match opened {
        Ok(service) => {
            session.send(|out| out.extend_from_slice(&STDERR_LAST.to_le_bytes())).await?;
            session.requests(service, &context).await
        }
        Err(error) => {
            session.fail(&error).await?;
            session.close().await;
            Ok(End::Refused)
        }
    }
}

async fn within<T>(
    timeout: Option<Duration>,
    what: &'static str,
    work: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    match timeout {
        None => work.await,
        Some(timeout) => tokio::time::timeout(timeout, work).await.unwrap_or(Err(SessionError::Timeout { what })),
    }
}

struct Session<T> {
    stream: T,
    shared: Arc<Shared>,
    peer: Peer,
    stall: Option<Duration>,
    linger: Duration,
    room: Option<Room>,
}

impl<T> fmt::Debug for Session<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl<T> Drop for Session<T> {
    fn drop(&mut self) {
        self.shared.end();
    }
}

/// The client's bytes, while nobody but the session reads them.
struct Feed<'a, T> {
    stream: &'a mut T,
    shared: &'a Shared,
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Feed<'_, T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.shared.take(buf) {
            // Answers that have been waiting for another one: the client may wait for them.
            while let Poll::Ready(true) = this.shared.poll_write_once(&mut *this.stream, cx)? {}
            ready!(this.shared.poll_fill_once(&mut *this.stream, cx))?;
            this.shared.take(buf);
        }
        Poll::Ready(Ok(()))
    }
}

fn lost(what: &'static str) -> impl FnOnce(io::Error) -> SessionError {
    move |source| SessionError::Lost { what, source }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Session<T> {
    fn feed(&mut self) -> Feed<'_, T> {
        Feed { stream: &mut self.stream, shared: &self.shared }
    }

    async fn handshake(&mut self) -> Result<Hello, SessionError> {
        const WHAT: &str = "shaking hands";
        if self.feed().read_u64_le().await.map_err(lost(WHAT))? != MAGIC_CLIENT {
            return Err(SessionError::Magic);
        }
        // guix-daemon says its version before it hears the client's, and clients depend on that.
        self.send(|out| {
            out.extend_from_slice(&MAGIC_DAEMON.to_le_bytes());
            out.extend_from_slice(&u64::from(Version::GUIX_1_100.0).to_le_bytes());
        })
        .await?;
        let mut int = async || -> Result<u32, SessionError> {
            let word = self.feed().read_u64_le().await.map_err(lost(WHAT))?;
            u32::try_from(word).map_err(|_| SessionError::Magic)
        };
        let version = Version(int().await?);
        let cpu = if version.minor() >= 14 && int().await? != 0 { Some(int().await?) } else { None };
        let reserve_space = version.minor() < 11 || int().await? != 0;
        Ok(Hello { version: version.min(Version::GUIX_1_100), cpu, reserve_space })
    }

    async fn requests<S: Service>(&mut self, mut service: S, context: &Arc<Context>) -> Result<End, SessionError> {
        loop {
            self.shared.release();
            let Some(code) = self.operation().await? else {
                // It may still read.
                self.send(|_| {}).await?;
                return Ok(End::Closed);
            };
            // Boxed, so that a connection that waits for its next request costs none of what serving one does.
            let step = Box::pin(self.request(code, &mut service, context)).await?;
            match step {
                Step::Next => {}
                Step::Gone => return Ok(End::Disconnected),
                Step::Close => {
                    // What the session holds for its client ends now, not when the client has noticed.
                    drop(service);
                    self.close().await;
                    return Ok(End::Refused);
                }
            }
        }
    }

    /// The number of the next operation, or `None` when the client is done.
    async fn operation(&mut self) -> Result<Option<u64>, SessionError> {
        const WHAT: &str = "reading an operation";
        let mut word = [0; 8];
        let mut feed = self.feed();
        match feed.read(word.get_mut(..1).unwrap_or_default()).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(source) => return Err(SessionError::Lost { what: WHAT, source }),
        }
        let stall = self.stall;
        within(stall, WHAT, async {
            self.feed().read_exact(word.get_mut(1..).unwrap_or_default()).await.map_err(lost(WHAT))?;
            Ok(Some(u64::from_le_bytes(word)))
        })
        .await
    }

    async fn request<S: Service>(&mut self, code: u64, service: &mut S, context: &Arc<Context>) -> Result<Step, SessionError> {
        let operation = match u32::try_from(code) {
            Err(_) => return self.refuse(wire::Error::WideInteger.into()).await,
            Ok(_) => match Operation::try_from(code) {
                Err(unknown) => return self.refuse(OpError::new(unknown.to_string())).await,
                Ok(operation) => operation,
            },
        };
        let info = operation.info();
        let unread = info.denials.iter().find(|denial| denial.stage == Stage::Unread && self.peer.is(denial.who));
        if let Some(denial) = unread {
            return self.refuse(OpError::new(denial.message)).await;
        }

        let (stall, room) = (self.stall, self.room.clone());
        let decoded = within(stall, "reading a request", async {
            let mut feed = self.feed();
            let mut source = Source::request(&mut feed, context).in_room(room.as_ref());
            let request = Request::decode(operation, &mut source).await;
            Ok(request.map(|request| (request, source.take_impossible(), source.take_held())))
        })
        .await?;
        let (request, impossible, held) = match decoded {
            Ok(decoded) => decoded,
            Err(wire::Error::Io { what, source }) => return Err(SessionError::Lost { what, source }),
            Err(wire::Error::Truncated { what }) => return Err(lost(what)(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => return self.refuse(error.into()).await,
        };
        if let Some(denial) = request.denial(&self.peer) {
            let error = OpError::new(denial.message);
            // Behind the fields of a refused request its archive would follow.
            return match (denial.stage, info.stream) {
                (Stage::Keeping, Stream::Plain) => self.answer(Err(error), context).await,
                _ => self.refuse(error).await,
            };
        }
        if let Some(path) = impossible {
            return self.answer(operation.impossible(&path), context).await;
        }

        // Its answer is as long as the store is large, and waits for a client that may not read it.
        let listing = match &self.room {
            Some(room) if operation.lists_the_store() => {
                let turn = Box::pin(room.clone().medium());
                let Some(turn) = self.drive(turn).await? else { return Ok(Step::Gone) };
                turn
            }
            _ => None,
        };
        // A build may take for ever.
        let _held = (operation != Operation::BuildPaths).then_some(held);
        let number = self.shared.start(info.stream);
        let mut work = Work { shared: self.shared.clone(), operation: number, context: context.clone(), peer: self.peer };
        let handler = dispatch(service, request, &mut work);
        let result = self.drive(handler).await?;
        let in_step = self.shared.stop();
        let Some(result) = result else { return Ok(Step::Gone) };
        let step = self.answer(result, context).await?;
        if listing.is_some() {
            // It may have been put aside for the next answer; the room is taken until it is out.
            self.send(|_| {}).await?;
        }
        Ok(if in_step { step } else { Step::Close })
    }

    async fn answer(&mut self, result: Result<Reply, OpError>, context: &Context) -> Result<Step, SessionError> {
        match result {
            Ok(reply) => {
                let fill = |out: &mut Vec<u8>| {
                    out.extend_from_slice(&STDERR_LAST.to_le_bytes());
                    reply.encode(&mut wire::Sink::new(out, context));
                };
                if self.shared.may_wait() {
                    self.shared.put(fill);
                } else {
                    self.send(fill).await?;
                }
                Ok(Step::Next)
            }
            Err(error) => {
                self.fail(&error).await?;
                Ok(if error.close { Step::Close } else { Step::Next })
            }
        }
    }

    async fn refuse(&mut self, error: OpError) -> Result<Step, SessionError> {
        self.fail(&error).await?;
        Ok(Step::Close)
    }

    async fn fail(&mut self, error: &OpError) -> Result<(), SessionError> {
        self.send(|out| {
            out.extend_from_slice(&STDERR_ERROR.to_le_bytes());
            wire::put_string(out, &error.message);
            // 0 is no status: guix-daemon would leave the word out, and clients would wait for it.
            out.extend_from_slice(&u64::from(error.status.max(1)).to_le_bytes());
        })
        .await
    }

    /// Appends to the outbox and writes all of it.
    async fn send(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> Result<(), SessionError> {
        const WHAT: &str = "writing to the client";
        self.shared.put(fill);
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        let (stream, shared, stall) = (&mut self.stream, &self.shared, self.stall);
        poll_fn(|cx| {
            loop {
                match shared.poll_write_once(&mut *stream, cx) {
                    Poll::Ready(Ok(true)) => timer = None,
                    Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(source)) => return Poll::Ready(Err(SessionError::Lost { what: WHAT, source })),
                    Poll::Pending => break,
                }
            }
            if let Some(stall) = stall {
                let timer = timer.get_or_insert_with(|| Box::pin(sleep(stall)));
                ready!(timer.as_mut().poll(cx));
                return Poll::Ready(Err(SessionError::Timeout { what: WHAT }));
            }
            Poll::Pending
        })
        .await?;
        self.stream.flush().await.map_err(lost(WHAT))
    }

    /// Runs work on behalf of the client while carrying bytes both ways. `None` when the client has gone.
    async fn drive<R>(&mut self, work: impl Future<Output = R> + Send) -> Result<Option<R>, SessionError> {
        let mut work = pin!(work);
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        let (stream, shared, stall) = (&mut self.stream, &self.shared, self.stall);
        poll_fn(|cx| {
            shared.set_session_waker(cx.waker());
            if let Poll::Ready(result) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(Some(result)));
            }
            loop {
                match shared.poll_fill_once(&mut *stream, cx) {
                    Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return Poll::Ready(Ok(None)),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => break,
                }
            }
            let mut wrote = false;
            loop {
                match shared.poll_write_once(&mut *stream, cx) {
                    Poll::Ready(Ok(true)) => wrote = true,
                    Poll::Ready(Ok(false)) => break,
                    Poll::Ready(Err(_)) => return Poll::Ready(Ok(None)),
                    Poll::Pending => break,
                }
            }
            if wrote && let Poll::Ready(Err(_)) = Pin::new(&mut *stream).poll_flush(cx) {
                return Poll::Ready(Ok(None));
            }
            if let Some(stall) = stall
                && let Some(since) = shared.waiting()
            {
                let timer = timer.get_or_insert_with(|| Box::pin(sleep(stall)));
                let mut since = since;
                while timer.as_mut().poll(cx).is_ready() {
                    if since.take().is_some_and(|since| since.elapsed() >= stall) {
                        return Poll::Ready(Err(SessionError::Timeout { what: "waiting for the client" }));
                    }
                    timer.set(sleep(stall));
                }
            } else {
                timer = None;
            }
            Poll::Pending
        })
        .await
    }

    /// Ends the connection so that the client gets to read what it has been sent, even if it is still sending.
    async fn close(&mut self) {
        let linger = self.linger;
        let _ = tokio::time::timeout(linger, async {
            if self.stream.shutdown().await.is_err() {
                return;
            }
            self.shared.release();
            let mut scratch = [0; 4096];
            while !matches!(self.stream.read(&mut scratch).await, Ok(0) | Err(_)) {}
        })
        .await;
    }
}

enum Step {
    Next,
    Gone,
    Close,
}
