//! The step in which a client is told: [`fruix_store::failpoints`]. Without points it is the stream itself.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use fruix_store::failpoints::{Moment, point};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const STEP: &str = "reply::send";

/// A connection, each write to which is a step.
pub(crate) struct Replies<S>(pub(crate) S);

impl<S: AsyncRead + Unpin> AsyncRead for Replies<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replies<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        point::<io::Error>(STEP, Moment::Before)?;
        let written = ready!(Pin::new(&mut self.0).poll_write(cx, bytes))?;
        point::<io::Error>(STEP, Moment::After)?;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
