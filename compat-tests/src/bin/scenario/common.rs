//! What all scenarios need: connections, options, archives.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bstr::{BStr, BString};
use fruix_drv::{StoreDir, StorePath};
use fruix_protocol::client::{Client, Error as ClientError};
use fruix_protocol::kinds::{BuildMode, GcAction};
use fruix_protocol::nar;
use fruix_protocol::ops::{AddTextToStore, AddToStore, BuildPaths, CollectGarbage, GcResults, SetOptions};

use fruix_protocol::wire::Version;
use tokio::io::BufStream;
use tokio::net::UnixStream;

/// Why a scenario failed.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
/// What a step of a scenario gives.
pub(crate) type Result<T> = std::result::Result<T, Error>;
/// A connection.
pub(crate) type Connection = Client<BufStream<UnixStream>>;

/// An error with this message.
macro_rules! fail {
    ($($arg:tt)*) => { return Err(format!($($arg)*).into()) };
}
pub(crate) use fail;

/// Which daemon.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    /// Where it listens.
    pub(crate) socket: PathBuf,
    /// Its store directory.
    pub(crate) dir: StoreDir,
}

impl Daemon {
    /// The one that the environment names.
    pub(crate) fn from_env() -> Result<Daemon> {
        let var = |name: &str| std::env::var(name).map_err(|_| Error::from(format!("{name} is not set")));
        Ok(Daemon { socket: var("GUIX_DAEMON_SOCKET")?.into(), dir: StoreDir::new(&var("NIX_STORE_DIR")?) })
    }

    /// A connection with options as most clients set them.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        self.connect_with(|_| {}).await
    }

    /// A connection with options that differ from most clients'.
    pub(crate) async fn connect_with(&self, change: impl FnOnce(&mut SetOptions)) -> Result<Connection> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| format!("cannot connect: {error}"))?;
        let mut connection = Client::connect(BufStream::new(stream), self.dir.clone(), Version::GUIX_1_100).await?;
        let mut options = options();
        change(&mut options);
        connection.set_options(options).await?;
        Ok(connection)
    }
}

/// Options as most clients set them.
pub(crate) fn options() -> SetOptions {
    SetOptions {
        print_build_trace: true,
        settings: [("build-max-jobs", "8"), ("build-cores", "1"), ("multiplexed-build-output", "true")]
            .map(|(name, value)| (name.into(), value.into()))
            .to_vec(),
        ..SetOptions::default()
    }
}

/// What a client was told, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// The log of a connection from now on.
    pub(crate) fn of(connection: &mut Connection) -> Log {
        let log = Log::default();
        let kept = log.clone();
        connection.set_log(move |piece: &BStr| kept.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(piece));
        log
    }

    /// All of it so far.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

/// What the daemon answered, when it refused; other errors mean that it did not answer at all.
pub(crate) fn refusal<T: std::fmt::Debug>(result: std::result::Result<T, ClientError>) -> Result<(String, u64)> {
    match result {
        Err(ClientError::Remote { message, status }) => Ok((message.to_string(), status)),
        Err(error) => Err(error.into()),
        Ok(value) => fail!("was not refused but answered with {value:?}"),
    }
}

/// Adds a text.
pub(crate) async fn add_text(connection: &mut Connection, name: &str, text: &[u8], references: &[StorePath]) -> Result<StorePath> {
    Ok(connection.add_text_to_store(AddTextToStore { name: name.into(), text: text.into(), references: references.to_vec() }).await?)
}

/// Adds an archive, named by its hash.
pub(crate) async fn add_archive(connection: &mut Connection, name: &str, archive: &[u8]) -> Result<StorePath> {
    add_archive_as(connection, name, archive, true, "sha256").await
}

/// The same, with all that a client may choose.
pub(crate) async fn add_archive_as(
    connection: &mut Connection,
    name: &str,
    mut archive: &[u8],
    recursive: bool,
    algorithm: &str,
) -> Result<StorePath> {
    let request =
        AddToStore { base_name: name.into(), fixed: !(recursive && algorithm == "sha256"), recursive, hash_algo: algorithm.into() };
    Ok(connection.add_to_store(request, &mut archive).await?)
}

/// Builds derivations.
pub(crate) async fn build(connection: &mut Connection, drvs: &[&StorePath]) -> std::result::Result<(), ClientError> {
    build_in_mode(connection, drvs, BuildMode::Normal).await
}

/// The same, to check or to repair.
pub(crate) async fn build_in_mode(
    connection: &mut Connection,
    drvs: &[&StorePath],
    mode: BuildMode,
) -> std::result::Result<(), ClientError> {
    let paths = drvs.iter().map(|drv| BString::from(connection.store_dir().display(drv))).collect();
    connection.build_paths(BuildPaths { paths, mode }).await
}

/// Lists or deletes.
pub(crate) async fn collect(connection: &mut Connection, action: GcAction) -> std::result::Result<GcResults, ClientError> {
    let request = CollectGarbage {
        action,
        paths_to_delete: Vec::new(),
        ignore_liveness: false,
        max_freed: u64::MAX,
        obsolete1: 0,
        obsolete2: 0,
        obsolete3: 0,
    };
    connection.collect_garbage(request).await
}

/// A file, directory or link, to be put into an archive.
#[derive(Clone, Debug)]
pub(crate) enum Tree {
    /// A file and whether it may be executed.
    File(Vec<u8>, bool),
    /// Names in order, each with what it is.
    Directory(Vec<(String, Tree)>),
    /// A symbolic link.
    Link(String),
}

/// Its archive.
pub(crate) fn archive(tree: &Tree) -> Result<Vec<u8>> {
    fn node(writer: &mut nar::Writer<Vec<u8>>, tree: &Tree) -> Result<()> {
        match tree {
            Tree::File(bytes, executable) => {
                writer.file(*executable, bytes.len() as u64)?;
                writer.data(bytes)?;
            }
            Tree::Link(target) => writer.symlink(target.as_str().into())?,
            Tree::Directory(entries) => {
                writer.directory()?;
                for (name, tree) in entries {
                    writer.entry(name.as_str().into())?;
                    node(writer, tree)?;
                }
                writer.end_directory()?;
            }
        }
        Ok(())
    }
    let mut writer = nar::Writer::new(Vec::new());
    node(&mut writer, tree)?;
    Ok(writer.finish()?)
}

/// The archive of one file.
pub(crate) fn file_archive(bytes: &[u8]) -> Result<Vec<u8>> {
    archive(&Tree::File(bytes.to_vec(), false))
}

/// The number that random choices follow from; printed, so that a run can be repeated.
pub(crate) fn seed() -> u64 {
    std::env::var("SCENARIO_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}
