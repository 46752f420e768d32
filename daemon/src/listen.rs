//! The sockets that clients connect to.

use std::fs;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::config::{Listen, Settings};
use crate::error::Error;

/// A socket that listens.
#[derive(Debug)]
pub enum Socket {
    /// On this machine.
    Unix(StdUnixListener),
    /// On the network.
    Tcp(StdTcpListener),
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// User and group, for a client on this machine.
    pub credentials: Option<(u32, u32)>,
    /// The name of that user, if it has one.
    pub user: Option<String>,
    /// Its process, where known.
    pub pid: Option<i32>,
    /// How to call it in the daemon's own log.
    pub name: String,
    /// Whether it came over the network.
    pub remote: bool,
}

/// Both directions of a connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens what a supervisor passed, or else what the settings say. Called before the process has threads, since a socket's name is at most about
/// a hundred bytes and a longer one takes a change of directory.
pub fn open(settings: &Settings) -> Result<Vec<Socket>, Error> {
    let passed = passed_sockets()?;
    if !passed.is_empty() {
        return Ok(passed);
    }
    settings
        .listen
        .iter()
        .map(|listen| match listen {
            Listen::Unix(path) => open_unix(path).map(Socket::Unix),
            Listen::Tcp(host, port) => StdTcpListener::bind((host.as_str(), *port))
                .and_then(|socket| socket.set_nonblocking(true).map(|()| Socket::Tcp(socket)))
                .map_err(|source| Error::io("cannot listen on", Path::new(&format!("{host}:{port}")), source)),
        })
        .collect()
}

fn open_unix(path: &Path) -> Result<StdUnixListener, Error> {
    let failed = |doing| move |source: io::Error| Error::io(doing, path, source);
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::Usage(format!("`{}' is not a file name for a socket", path.display())));
    };
    fs::create_dir_all(dir).map_err(failed("creating the directory of socket"))?;
    std::env::set_current_dir(dir).map_err(failed("entering the directory of socket"))?;
    let relative = Path::new(".").join(name);
    let result = bind(&relative, path);
    std::env::set_current_dir("/").map_err(failed("leaving the directory of socket"))?;
    result
}

fn bind(relative: &Path, path: &Path) -> Result<StdUnixListener, Error> {
    let failed = |doing| move |source: io::Error| Error::io(doing, path, source);
    if let Ok(metadata) = fs::symlink_metadata(relative) {
        if !metadata.file_type().is_socket() {
            return Err(failed("will not replace, since it is not a socket,")(io::ErrorKind::AlreadyExists.into()));
        }
        if StdUnixStream::connect(relative).is_ok() {
            return Err(Error::Usage(format!(
                "another daemon is listening on `{}'; stop it first, or give another socket with `--listen'",
                path.display()
            )));
        }
        fs::remove_file(relative).map_err(failed("removing stale socket"))?;
    }
    let socket = StdUnixListener::bind(relative).map_err(failed("cannot bind to socket"))?;
    // Everybody may connect who may enter the directory: that is how access is granted.
    fs::set_permissions(relative, fs::Permissions::from_mode(0o666)).map_err(failed("setting permissions of socket"))?;
    socket.set_nonblocking(true).map_err(failed("cannot listen on socket"))?;
    Ok(socket)
}

/// The sockets of systemd's protocol (`LISTEN_PID`, `LISTEN_FDS`).
fn passed_sockets() -> Result<Vec<Socket>, Error> {
    let failed = |source| Error::io("taking over sockets of", Path::new("LISTEN_FDS"), source);
    sd_notify::listen_fds().map_err(failed)?.map(|fd| adopt(fd).map_err(failed)).collect()
}

fn adopt(fd: RawFd) -> io::Result<Socket> {
    let owned = crate::sys::adopt_fd(fd);
    use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
    use std::os::fd::AsRawFd as _;
    let family = getsockname::<SockaddrStorage>(owned.as_raw_fd())?.family();
    if family == Some(AddressFamily::Unix) {
        let socket = StdUnixListener::from(owned);
        socket.set_nonblocking(true)?;
        Ok(Socket::Unix(socket))
    } else {
        let socket = StdTcpListener::from(owned);
        socket.set_nonblocking(true)?;
        Ok(Socket::Tcp(socket))
    }
}

/// A client's connection, in the hands of the runtime that accepted it.
#[derive(Debug)]
pub enum Connection {
    /// On this machine.
    Unix(UnixStream),
    /// Over the network.
    Tcp(TcpStream),
}

impl Connection {
    /// Hands it to the runtime of the caller.
    pub fn adopt(self) -> io::Result<Connection> {
        Ok(match self {
            Connection::Unix(stream) => Connection::Unix(UnixStream::from_std(stream.into_std()?)?),
            Connection::Tcp(stream) => Connection::Tcp(TcpStream::from_std(stream.into_std()?)?),
        })
    }
}

/// A listening socket in the runtime's hands.
pub enum Acceptor {
    /// On this machine.
    Unix(UnixListener),
    /// On the network.
    Tcp(TcpListener),
}

impl Acceptor {
    /// Hands `socket` to the runtime.
    pub fn new(socket: Socket) -> io::Result<Acceptor> {
        Ok(match socket {
            Socket::Unix(socket) => Acceptor::Unix(UnixListener::from_std(socket)?),
            Socket::Tcp(socket) => Acceptor::Tcp(TcpListener::from_std(socket)?),
        })
    }

    /// Waits for the next client.
    pub async fn accept(&self) -> io::Result<(Connection, Peer)> {
        match self {
            Acceptor::Unix(socket) => {
                let (stream, _) = socket.accept().await?;
                let credentials = stream.peer_cred()?;
                let (uid, gid, pid) = (credentials.uid(), credentials.gid(), credentials.pid());
                let user = user_name(uid);
                let name = format!("pid {}, user {}", pid.unwrap_or(-1), user.clone().unwrap_or_else(|| uid.to_string()));
                Ok((Connection::Unix(stream), Peer { credentials: Some((uid, gid)), user, pid, name, remote: false }))
            }
            Acceptor::Tcp(socket) => {
                let (stream, address) = socket.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Connection::Tcp(stream), Peer { credentials: None, user: None, pid: None, name: address.to_string(), remote: true }))
            }
        }
    }
}

/// How long a user is taken to have the name that he had.
const NAMED: Duration = Duration::from_secs(1);

/// The name of the user with number `uid`, if there is one; or was a moment ago, since clients come in numbers.
#[must_use]
pub fn user_name(uid: u32) -> Option<String> {
    static LAST: Mutex<Option<(Instant, u32, Option<String>)>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((when, who, name)) = &*last
        && *who == uid
        && when.elapsed() < NAMED
    {
        return name.clone();
    }
    let name = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
    *last = Some((Instant::now(), uid, name.clone()));
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_daemon_is_not_pushed_aside_and_a_dead_ones_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = bind(&path, &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        assert!(matches!(bind(&path, &path), Err(Error::Usage(_))));
        drop(first);
        bind(&path, &path).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "mine").unwrap();
        assert!(bind(&file, &file).is_err());
        assert_eq!(fs::read(&file).unwrap(), b"mine");
    }
}
