//! Transcripts of connections between a client and a daemon, and the proxy that makes them. Nothing here knows the
//! protocol: a transcript is the bytes of both directions in the order in which they passed.
//!
//! A file is a line `fruix transcript 1`, then for each connection a line `connection` and its pieces: a line
//! `client LENGTH` or `daemon LENGTH`, that many bytes, and a newline.

use std::{
    io::{self, Write},
    path::Path,
    pin::pin,
};

use bstr::ByteSlice;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

const HEAD: &[u8] = b"fruix transcript 1\n";

/// Who sent a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that connected.
    Client,
    /// The one that listened.
    Daemon,
}

/// One connection: pieces in the order in which they passed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connection {
    pieces: Vec<(Side, Vec<u8>)>,
}

impl Connection {
    /// Adds bytes behind what is there.
    pub fn push(&mut self, side: Side, bytes: &[u8]) {
        match self.pieces.last_mut() {
            Some((last, piece)) if *last == side => piece.extend_from_slice(bytes),
            _ => self.pieces.push((side, bytes.to_vec())),
        }
    }

    /// All that one side has sent.
    pub fn sent_by(&self, side: Side) -> Vec<u8> {
        self.pieces.iter().filter(|(from, _)| *from == side).flat_map(|(_, piece)| piece).copied().collect()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"connection\n");
        for (side, piece) in &self.pieces {
            let side = match side {
                Side::Client => "client",
                Side::Daemon => "daemon",
            };
            out.extend_from_slice(format!("{side} {}\n", piece.len()).as_bytes());
            out.extend_from_slice(piece);
            out.push(b'\n');
        }
    }
}

/// Reads a transcript.
///
/// # Errors
/// When the file cannot be read, or is no transcript.
pub fn read(path: &Path) -> io::Result<Vec<Connection>> {
    let bytes = std::fs::read(path)?;
    parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{} is no transcript", path.display())))
}

fn parse(bytes: &[u8]) -> Option<Vec<Connection>> {
    let mut rest = bytes.strip_prefix(HEAD)?;
    let mut connections = Vec::new();
    while !rest.is_empty() {
        let (line, after) = rest.split_once_str("\n")?;
        rest = after;
        if line == b"connection" {
            connections.push(Connection::default());
            continue;
        }
        let (side, length) = line.split_once_str(" ")?;
        let side = match side {
            b"client" => Side::Client,
            b"daemon" => Side::Daemon,
            _ => return None,
        };
        let (piece, after) = rest.split_at_checked(length.to_str().ok()?.parse().ok()?)?;
        connections.last_mut()?.push(side, piece);
        rest = after.strip_prefix(b"\n")?;
    }
    Some(connections)
}

/// Forwards connections to the socket of a daemon, and adds each to the transcript when it is over. Accepts none any
/// more when `stop` is done, and returns when all are over.
///
/// # Errors
/// When a socket or the file fails.
pub async fn record(listen: &Path, forward: &Path, output: &Path, stop: impl Future<Output = ()>) -> io::Result<()> {
    std::fs::write(output, HEAD)?;
    let listener = UnixListener::bind(listen)?;
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    let mut stopped = false;
    loop {
        tokio::select! {
            accepted = listener.accept(), if !stopped => {
                let daemon = UnixStream::connect(forward).await?;
                connections.spawn(carry(accepted?.0, daemon));
            }
            Some(connection) = connections.join_next() => {
                let mut out = Vec::new();
                connection.map_err(io::Error::other)?.write(&mut out);
                std::fs::OpenOptions::new().append(true).open(output)?.write_all(&out)?;
            }
            () = &mut stop, if !stopped => stopped = true,
            else => return Ok(()),
        }
    }
}

/// Carries bytes both ways until both sides are done.
async fn carry<A, B>(client: A, daemon: B) -> Connection
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = Connection::default();
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_daemon, mut to_daemon) = tokio::io::split(daemon);
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let (mut client_done, mut daemon_done) = (false, false);
    while !(client_done && daemon_done) {
        tokio::select! {
            read = from_client.read(&mut up), if !client_done => match read {
                Ok(count @ 1..) => {
                    let piece = up.get(..count).unwrap_or_default();
                    connection.push(Side::Client, piece);
                    client_done = to_daemon.write_all(piece).await.is_err();
                }
                _ => {
                    client_done = true;
                    let _ = to_daemon.shutdown().await;
                }
            },
            read = from_daemon.read(&mut down), if !daemon_done => match read {
                Ok(count @ 1..) => {
                    let piece = down.get(..count).unwrap_or_default();
                    connection.push(Side::Daemon, piece);
                    daemon_done = to_client.write_all(piece).await.is_err();
                }
                _ => {
                    daemon_done = true;
                    client_done = true;
                    let _ = to_client.shutdown().await;
                }
            },
        }
    }
    connection
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transcripts_are_read_as_written() {
        let mut connection = Connection::default();
        for (side, piece) in [(Side::Client, "client 3\n"), (Side::Client, "x"), (Side::Daemon, ""), (Side::Daemon, "\n")] {
            connection.push(side, piece.as_bytes());
        }
        assert_eq!(connection.sent_by(Side::Client), b"client 3\nx");
        let mut bytes = HEAD.to_vec();
        connection.write(&mut bytes);
        Connection::default().write(&mut bytes);
        assert_eq!(parse(&bytes).unwrap(), [connection, Connection::default()]);
        assert_eq!(parse(&bytes[..bytes.len() - 15]), None);
    }
}
