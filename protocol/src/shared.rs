//! What a session's task shares with handlers and their threads: the client's bytes that wait to be read, the bytes
//! that wait to be written, and whether the operation is still on.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    limits,
    ops::Stream,
    wire::{STDERR_NEXT, STDERR_READ, STDERR_WRITE, put_string},
};

/// Bytes between two ends; the memory is given back when asked and grows as it is used.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read filled all the room that there was: the next one gets more.
    hungry: bool,
}

impl Buffer {
    fn len(&self) -> usize {
        self.end - self.start
    }

    fn data(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start.saturating_add(count));
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room behind the data, such that no more than `limit` bytes are held.
    fn spare(&mut self, limit: usize) -> &mut [u8] {
        if self.start > 0 && self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let more = self.end == self.bytes.len() || std::mem::take(&mut self.hungry);
        if more && self.bytes.len() < limit {
            let size = (self.bytes.len() * 4).clamp(limits::IDLE_BUFFER, limit);
            self.bytes.resize(size, 0);
        }
        let room = limit.saturating_sub(self.len());
        let end = self.bytes.len().min(self.end.saturating_add(room));
        self.bytes.get_mut(self.end..end).unwrap_or_default()
    }

    fn take(&mut self, buf: &mut [u8]) -> usize {
        let data = self.data();
        let count = data.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..count), data.get(..count)) {
            to.copy_from_slice(from);
        }
        self.consume(count);
        count
    }

    fn release(&mut self) {
        if self.len() == 0 && self.bytes.len() > limits::IDLE_BUFFER {
            *self = Buffer::default();
        }
    }
}

/// Where the stream stands with regard to what is carried besides requests and replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Carrying {
    #[default]
    Nothing,
    /// An archive follows the fields and has not been read to its end.
    Archive,
    /// The client has been asked for bytes, and its answer has not been read to its end.
    Answer,
    /// Bytes may be asked for or sent.
    Tunnel,
}

#[derive(Default)]
struct State {
    input: Buffer,
    output: Buffer,
    /// The input buffer was full when the session last looked.
    full: bool,
    /// The client will send no more.
    eof: bool,
    /// The operation that is going on, if `working`.
    operation: u64,
    working: bool,
    carrying: Carrying,
    dropped_lines: u64,
    /// Threads that wait for a change.
    blocked: usize,
    /// Since when a handler has been waiting for the client, without a byte going either way.
    waiting_since: Option<Instant>,
    session: Option<Waker>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn is_on(&self, operation: u64) -> bool {
        self.working && self.operation == operation
    }

    fn input_limit(&self) -> usize {
        match self.carrying {
            Carrying::Nothing => limits::READ_AHEAD,
            _ => limits::BODY_BUFFER,
        }
    }

    fn push(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        let out = &mut self.output;
        out.bytes.truncate(out.end);
        if out.start > out.end / 2 {
            out.bytes.drain(..out.start);
            out.start = 0;
        }
        fill(&mut out.bytes);
        out.end = out.bytes.len();
    }

    fn push_notice(&mut self) {
        let lines = std::mem::take(&mut self.dropped_lines);
        if lines > 0 {
            let notice = format!("[{lines} lines of log dropped: the client does not read them]\n");
            self.push(|out| frame(out, STDERR_NEXT, notice.as_bytes()));
        }
    }

    fn wake_session(&mut self) {
        if let Some(waker) = &self.session {
            waker.wake_by_ref();
        }
    }

    /// Bytes of the client's; `None` when there are none yet.
    fn try_take(&mut self, operation: u64, buf: &mut [u8]) -> Option<io::Result<usize>> {
        if !self.is_on(operation) {
            return Some(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if buf.is_empty() {
            return Some(Ok(0));
        }
        let count = self.input.take(buf);
        if count > 0 {
            if self.full && self.input.len() <= self.input_limit() / 2 {
                self.full = false;
                self.wake_session();
            }
            return Some(Ok(count));
        }
        if self.eof {
            return Some(Ok(0));
        }
        self.waiting_since.get_or_insert_with(Instant::now);
        None
    }

    /// Queues one frame for the client's sink; `None` when too much waits already.
    fn try_tunnel(&mut self, operation: u64, bytes: &[u8]) -> Option<io::Result<()>> {
        if !self.is_on(operation) {
            return Some(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.output.len() >= limits::BODY_BUFFER {
            self.waiting_since.get_or_insert_with(Instant::now);
            return None;
        }
        self.push(|out| frame(out, STDERR_WRITE, bytes));
        self.wake_session();
        Some(Ok(()))
    }
}

fn frame(out: &mut Vec<u8>, kind: u64, bytes: &[u8]) {
    out.extend_from_slice(&kind.to_le_bytes());
    put_string(out, bytes);
}

#[derive(Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.blocked += 1;
        let mut state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.blocked = state.blocked.saturating_sub(1);
        state
    }

    /// Wakes the threads that wait, without asking the system when there is none.
    fn wake(&self, state: MutexGuard<'_, State>) {
        let anybody = state.blocked > 0;
        drop(state);
        if anybody {
            self.changed.notify_all();
        }
    }

    /// An operation starts; handles of earlier ones are dead.
    pub(crate) fn start(&self, stream: Stream) -> u64 {
        let mut state = self.lock();
        state.operation = state.operation.wrapping_add(1);
        state.working = true;
        state.dropped_lines = 0;
        state.carrying = match stream {
            Stream::Plain => Carrying::Nothing,
            Stream::Archive => Carrying::Archive,
            Stream::TunnelIn | Stream::TunnelOut => Carrying::Tunnel,
        };
        state.operation
    }

    /// The operation is over. Returns whether the stream is in step.
    pub(crate) fn stop(&self) -> bool {
        let mut state = self.lock();
        let in_step = matches!(state.carrying, Carrying::Nothing | Carrying::Tunnel);
        state.push_notice();
        self.finish(state);
        in_step
    }

    /// The connection is over.
    pub(crate) fn end(&self) {
        self.finish(self.lock());
    }

    fn finish(&self, mut state: MutexGuard<'_, State>) {
        state.working = false;
        state.waiting_since = None;
        state.carrying = Carrying::Nothing;
        let wakers = [state.reader.take(), state.writer.take()];
        state.session = None;
        self.wake(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Gives back what an idle connection does not need.
    pub(crate) fn release(&self) {
        let mut state = self.lock();
        state.input.release();
        state.output.release();
    }

    pub(crate) fn set_session_waker(&self, waker: &Waker) {
        let mut state = self.lock();
        match &mut state.session {
            Some(current) => current.clone_from(waker),
            None => state.session = Some(waker.clone()),
        }
    }

    /// Since when a handler has been waiting for the client, `Some(None)` when it is not; `None` when it never does.
    pub(crate) fn waiting(&self) -> Option<Option<Instant>> {
        let state = self.lock();
        (state.carrying != Carrying::Nothing).then_some(state.waiting_since)
    }

    /// Moves what has been read ahead; false when there is nothing.
    pub(crate) fn take(&self, buf: &mut ReadBuf<'_>) -> bool {
        let mut state = self.lock();
        let count = state.input.len().min(buf.remaining());
        buf.put_slice(state.input.data().get(..count).unwrap_or_default());
        state.input.consume(count);
        count > 0
    }

    /// Whether an answer may wait for the next one, since the client has already sent what follows.
    pub(crate) fn may_wait(&self) -> bool {
        let state = self.lock();
        state.input.len() > 0 && state.output.len() < limits::IDLE_BUFFER * 4
    }

    /// Reads from the client into the buffer: how much, 0 at the end. Pending also when the buffer is full.
    pub(crate) fn poll_fill_once<T: AsyncRead + Unpin>(&self, stream: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        let limit = state.input_limit();
        let spare = state.input.spare(limit);
        if spare.is_empty() {
            state.full = true;
            return Poll::Pending;
        }
        let mut buf = ReadBuf::new(spare);
        ready!(Pin::new(stream).poll_read(cx, &mut buf))?;
        let count = buf.filled().len();
        let hungry = buf.remaining() == 0;
        state.input.end = state.input.end.saturating_add(count);
        state.input.hungry = hungry;
        state.eof |= count == 0;
        state.full = false;
        state.waiting_since = None;
        let waker = state.reader.take();
        self.wake(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Poll::Ready(Ok(count))
    }

    /// Appends to what is to be written.
    pub(crate) fn put(&self, fill: impl FnOnce(&mut Vec<u8>)) {
        self.lock().push(fill);
    }

    /// Writes to the client: true when some bytes were written, false when none are left.
    pub(crate) fn poll_write_once<T: AsyncWrite + Unpin>(&self, stream: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut state = self.lock();
        if state.output.len() == 0 {
            return Poll::Ready(Ok(false));
        }
        let count = ready!(Pin::new(stream).poll_write(cx, state.output.data()))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        state.output.consume(count);
        state.waiting_since = None;
        let waker = state.writer.take();
        self.wake(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Poll::Ready(Ok(true))
    }
}

/// Sends pieces of log to the client of one operation, from any thread, without ever waiting.
///
/// When [`limits::LOG_BACKLOG`] bytes wait for a client that does not read, what comes is dropped; once there is room
/// a line says how many lines were. When the operation is over, what comes is dropped silently.
#[derive(Debug, Clone)]
pub struct Log {
    shared: Arc<Shared>,
    operation: u64,
}

impl Log {
    pub(crate) fn new(shared: Arc<Shared>, operation: u64) -> Self {
        Log { shared, operation }
    }

    /// Sends bytes as they are; a line ends with a newline.
    pub fn write(&self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        if bytes.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        if !state.is_on(self.operation) {
            return;
        }
        if state.output.len().saturating_add(bytes.len()) > limits::LOG_BACKLOG {
            let lines = bytes.iter().filter(|&&byte| byte == b'\n').count().max(1);
            state.dropped_lines = state.dropped_lines.saturating_add(lines as u64);
            return;
        }
        state.push_notice();
        state.push(|out| frame(out, STDERR_NEXT, bytes));
        state.wake_session();
    }

    /// Sends a line; the newline is added.
    pub fn line(&self, text: impl AsRef<[u8]>) {
        let mut line = text.as_ref().to_vec();
        line.push(b'\n');
        self.write(line);
    }
}

/// Tells whether the client of one operation still waits for it.
#[derive(Debug, Clone)]
pub struct Alive {
    shared: Arc<Shared>,
    operation: u64,
}

impl Alive {
    pub(crate) fn new(shared: Arc<Shared>, operation: u64) -> Self {
        Alive { shared, operation }
    }

    /// False once the client has gone or the operation has ended.
    pub fn is_alive(&self) -> bool {
        self.shared.lock().is_on(self.operation)
    }
}

/// The client's bytes behind the fields of a request.
#[derive(Debug)]
pub struct Body {
    shared: Arc<Shared>,
    operation: u64,
}

impl Body {
    pub(crate) fn new(shared: Arc<Shared>, operation: u64) -> Self {
        Body { shared, operation }
    }

    /// One whole archive has been read: the next byte is the next request's.
    pub fn finish(self) {
        finish_archive(&self.shared, self.operation);
    }

    /// The same, for a thread that may block.
    pub fn into_blocking(self) -> BlockingBody {
        BlockingBody { body: self }
    }
}

fn finish_archive(shared: &Shared, operation: u64) {
    let mut state = shared.lock();
    if state.is_on(operation) && state.carrying == Carrying::Archive {
        state.carrying = Carrying::Nothing;
    }
}

impl AsyncRead for Body {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        match state.try_take(self.operation, buf.initialize_unfilled()) {
            Some(result) => {
                buf.advance(result?);
                Poll::Ready(Ok(()))
            }
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// [`Body`], for a thread that may block. Fails once the client has gone or the operation has ended.
#[derive(Debug)]
pub struct BlockingBody {
    body: Body,
}

impl BlockingBody {
    /// One whole archive has been read: the next byte is the next request's.
    pub fn finish(self) {
        self.body.finish();
    }
}

impl io::Read for BlockingBody {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        blocking_take(&self.body.shared, self.body.operation, buf)
    }
}

fn blocking_take(shared: &Shared, operation: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut state = shared.lock();
    loop {
        if let Some(result) = state.try_take(operation, buf) {
            return result;
        }
        state = shared.wait(state);
    }
}

/// Bytes that the client is asked for, frame by frame.
#[derive(Debug)]
pub struct TunnelReader {
    shared: Arc<Shared>,
    operation: u64,
    /// The current answer: the bytes that have arrived, and how many of them have been read.
    answer: Vec<u8>,
    read: usize,
    /// Length of the answer once known, header and padding included.
    whole: Option<usize>,
    length: usize,
    asking: bool,
}

const HEADER: usize = 8;

impl TunnelReader {
    pub(crate) fn new(shared: Arc<Shared>, operation: u64) -> Self {
        TunnelReader { shared, operation, answer: Vec::new(), read: 0, whole: None, length: 0, asking: false }
    }

    /// The same, for a thread that may block.
    pub fn into_blocking(self) -> BlockingTunnelReader {
        BlockingTunnelReader { reader: self }
    }

    /// Copies what is there; `None` when the client has to be waited for.
    fn try_read(&mut self, state: &mut State, buf: &mut [u8]) -> Option<io::Result<usize>> {
        if buf.is_empty() {
            return Some(Ok(0));
        }
        if !state.is_on(self.operation) {
            return Some(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if !self.asking && self.read == self.length {
            let want = limits::TUNNEL_FRAME as u64;
            state.push(|out| {
                out.extend_from_slice(&STDERR_READ.to_le_bytes());
                out.extend_from_slice(&want.to_le_bytes());
            });
            state.carrying = Carrying::Answer;
            state.wake_session();
            self.answer.clear();
            (self.read, self.length, self.whole, self.asking) = (0, 0, None, true);
        }
        while self.asking {
            let due = self.whole.unwrap_or(HEADER);
            let have = self.answer.len();
            if have < due {
                self.answer.resize(due, 0);
                let taken = state.try_take(self.operation, self.answer.get_mut(have..).unwrap_or_default());
                self.answer.truncate(have.saturating_add(match &taken {
                    Some(Ok(count)) => *count,
                    _ => 0,
                }));
                match taken? {
                    Err(error) => return Some(Err(error)),
                    Ok(0) => return Some(Err(io::ErrorKind::UnexpectedEof.into())),
                    Ok(_) => continue,
                }
            }
            if self.whole.is_none() {
                let length = self.answer.first_chunk::<HEADER>().map_or(0, |word| u64::from_le_bytes(*word));
                match usize::try_from(length) {
                    Ok(size) if size <= limits::TUNNEL_FRAME => {
                        self.length = size;
                        self.whole = Some(size.div_ceil(8) * 8);
                    }
                    _ => return Some(Err(io::Error::new(io::ErrorKind::InvalidData, "string is too long"))),
                }
                self.answer.clear();
                continue;
            }
            if self.answer.get(self.length..).unwrap_or_default().iter().any(|&byte| byte != 0) {
                return Some(Err(io::Error::new(io::ErrorKind::InvalidData, "non-zero padding")));
            }
            self.asking = false;
            state.carrying = Carrying::Tunnel;
        }
        let data = self.answer.get(self.read..self.length).unwrap_or_default();
        let count = data.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..count), data.get(..count)) {
            to.copy_from_slice(from);
        }
        self.read = self.read.saturating_add(count);
        Some(Ok(count))
    }
}

impl AsyncRead for TunnelReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shared = this.shared.clone();
        let mut state = shared.lock();
        match this.try_read(&mut state, buf.initialize_unfilled()) {
            Some(result) => {
                buf.advance(result?);
                Poll::Ready(Ok(()))
            }
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// [`TunnelReader`], for a thread that may block. Fails once the client has gone or the operation has ended.
#[derive(Debug)]
pub struct BlockingTunnelReader {
    reader: TunnelReader,
}

impl io::Read for BlockingTunnelReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let shared = self.reader.shared.clone();
        let mut state = shared.lock();
        loop {
            if let Some(result) = self.reader.try_read(&mut state, buf) {
                return result;
            }
            state = shared.wait(state);
        }
    }
}

/// Bytes for the client's sink. What has not been flushed when it is dropped is lost.
#[derive(Debug)]
pub struct TunnelWriter {
    shared: Arc<Shared>,
    operation: u64,
    buffer: Vec<u8>,
}

impl TunnelWriter {
    pub(crate) fn new(shared: Arc<Shared>, operation: u64) -> Self {
        TunnelWriter { shared, operation, buffer: Vec::new() }
    }

    /// The same, for a thread that may block.
    pub fn into_blocking(self) -> BlockingTunnelWriter {
        BlockingTunnelWriter { writer: self }
    }

    /// Queues the buffer if it has as many bytes as given; `None` when the client has to be waited for.
    fn try_flush(&mut self, state: &mut State, from: usize) -> Option<io::Result<()>> {
        if self.buffer.is_empty() || self.buffer.len() < from {
            return Some(Ok(()));
        }
        let result = state.try_tunnel(self.operation, &self.buffer)?;
        self.buffer.clear();
        Some(result)
    }

    fn fill(&mut self, bytes: &[u8]) -> usize {
        let room = limits::TUNNEL_FRAME.saturating_sub(self.buffer.len());
        let bytes = bytes.get(..room).unwrap_or(bytes);
        self.buffer.extend_from_slice(bytes);
        bytes.len()
    }

    fn poll_flush_from(&mut self, cx: &mut Context<'_>, from: usize) -> Poll<io::Result<()>> {
        let shared = self.shared.clone();
        let mut state = shared.lock();
        match self.try_flush(&mut state, from) {
            Some(result) => Poll::Ready(result),
            None => {
                state.writer = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for TunnelWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush_from(cx, limits::TUNNEL_FRAME))?;
        Poll::Ready(Ok(self.fill(bytes)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush_from(cx, 0)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// [`TunnelWriter`], for a thread that may block. Fails once the client has gone or the operation has ended.
#[derive(Debug)]
pub struct BlockingTunnelWriter {
    writer: TunnelWriter,
}

impl BlockingTunnelWriter {
    fn flush_from(&mut self, from: usize) -> io::Result<()> {
        let shared = self.writer.shared.clone();
        let mut state = shared.lock();
        loop {
            if let Some(result) = self.writer.try_flush(&mut state, from) {
                return result;
            }
            state = shared.wait(state);
        }
    }
}

impl io::Write for BlockingTunnelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush_from(limits::TUNNEL_FRAME)?;
        Ok(self.writer.fill(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_from(0)
    }
}
