//! The daemon as a whole: the store, the scheduler, and a session for each client.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fruix_store::Store;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::build::Builder;
use crate::config::Settings;
use crate::error::Error;
use crate::lanes::{Lanes, Place};
use crate::listen::{Acceptor, Connection, Peer, Socket, Stream};
use crate::sandbox::SpawnerHandle;
use crate::scheduler::Scheduler;
use crate::session;
use crate::share::{self, Shares};
use crate::users::UserPool;

/// Threads for what blocks, at the most; they end when there is nothing to do.
const BLOCKING_THREADS: usize = 2048;
/// Small additions at a time, on the threads of the sessions, of which there are so many more than processors.
const SMALL_ADDITIONS: usize = 8;
/// For how long the build users are taken to be those who they were.
const BUILDERS: Duration = Duration::from_secs(1);
/// How long builds may take to end when the daemon is told to stop.
const CLEAN_UP: Duration = Duration::from_secs(20);

/// What all sessions share.
pub struct Shared {
    /// The store.
    pub store: Store,
    /// The daemon's settings.
    pub settings: Arc<Settings>,
    /// Who builds.
    pub scheduler: Scheduler,
    users: Option<Arc<UserPool>>,
    shares: Shares,
    builders: Mutex<Option<(Instant, Arc<[u32]>)>>,
    /// Turns at adding something small on a thread of the sessions. There are more of those than turns.
    pub small_additions: Semaphore,
    /// The runtime that builds, with the threads for what blocks. Sessions have lanes of their own.
    pub main: Handle,
    next: AtomicU64,
}

impl Shared {
    /// A number that no other session has.
    pub fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether a user may do what changes the store beyond adding to it: root, or who runs the daemon.
    #[must_use]
    pub fn trusts(&self, peer: &Peer) -> bool {
        peer.credentials.is_some_and(|(uid, _)| uid == 0 || uid == nix::unistd::getuid().as_raw())
    }

    /// The part of `peer`'s user in what all share.
    fn share(&self, peer: &Peer) -> Result<share::Session, share::Refused> {
        if self.trusts(peer) { Ok(share::Session::uncounted()) } else { self.shares.join(peer.credentials.map(|(uid, _)| uid)) }
    }

    /// The uids of the build users, as they were a moment ago at the most: clients come in numbers, and where users are kept may be far.
    fn builders(&self, users: &UserPool) -> Arc<[u32]> {
        let mut last = self.builders.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((when, uids)) if when.elapsed() < BUILDERS => Arc::clone(uids),
            _ => {
                let uids: Arc<[u32]> = users.uids().unwrap_or_default().into_iter().collect();
                *last = Some((Instant::now(), Arc::clone(&uids)));
                uids
            }
        }
    }

    /// Whether `peer` is a builder, which has no business here: outside a sandbox it could otherwise ask for what it is kept from.
    fn is_builder(&self, peer: &Peer) -> bool {
        match (&self.users, peer.credentials) {
            (Some(users), Some((uid, _))) => uid != 0 && self.builders(users).contains(&uid),
            _ => false,
        }
    }
}

/// How the store that `settings` name is opened.
#[must_use]
pub fn store_config(settings: &Settings, build_users_gid: Option<u32>) -> fruix_store::Config {
    let mut config = fruix_store::Config::new(settings.store_dir.clone(), settings.state_dir.clone());
    config.log_dir.clone_from(&settings.log_dir);
    config.db_dir.clone_from(&settings.db_dir);
    config.build_users_gid = build_users_gid;
    config.deduplicate = settings.deduplicate;
    config.gc_keep_outputs = settings.gc_keep_outputs;
    config.gc_keep_derivations = settings.gc_keep_derivations;
    config.sync_additions = settings.sync_additions;
    config.adopt_items = settings.adopt_empty_database;
    config.allow_symlinked_store = settings.allow_symlinked_store;
    config
}

/// Opens the store that `settings` name.
pub fn open_store(settings: &Settings, build_users_gid: Option<u32>) -> Result<Store, Error> {
    Ok(Store::open(store_config(settings, build_users_gid))?)
}

/// Serves until told to stop.
pub fn run(settings: Settings, spawner: SpawnerHandle, sockets: Vec<Socket>) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // A slow upload holds one; a slow client must not keep others from theirs.
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|source| Error::io("starting the runtime of", std::path::Path::new("fruixd"), source))?;
    let users = match &settings.build_users_group {
        Some(group) => Some(UserPool::new(group, &settings.state_dir, spawner.clone())?),
        None => None,
    };
    let gid = users.as_ref().map(|users| users.gid()).transpose()?;
    let store = open_store(&settings, gid)?;
    store.warm_up()?;
    crate::build_dir::sweep(&settings.tmp_dir);
    runtime.block_on(serve(settings, store, users, spawner, sockets))
}

async fn serve(
    settings: Settings,
    store: Store,
    users: Option<Arc<UserPool>>,
    spawner: SpawnerHandle,
    sockets: Vec<Socket>,
) -> Result<(), Error> {
    let settings = Arc::new(settings);
    let builder = Builder::new(store.clone(), Arc::clone(&settings), spawner, users.clone());
    let scheduler = Scheduler::new(store.clone(), builder.clone(), settings.cache_failures);
    let shared = Arc::new(Shared {
        store: store.clone(),
        settings,
        scheduler,
        users,
        shares: Shares::new(share::raise_descriptors()),
        builders: Mutex::default(),
        small_additions: Semaphore::new(SMALL_ADDITIONS),
        main: Handle::current(),
        next: AtomicU64::new(1),
    });
    let failed = |source| Error::io("taking over", std::path::Path::new("socket"), source);
    // Before anybody is served: what a session has begun is to be ended in order.
    let mut signals = JoinSet::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let mut signal = signal(kind).map_err(failed)?;
        signals.spawn(async move { signal.recv().await });
    }
    fruix_store::failpoints::ready();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let starting = |source| Error::io("starting the threads of", std::path::Path::new("fruixd"), source);
    let lanes = Arc::new(Lanes::start(processors.saturating_add(SMALL_ADDITIONS)).map_err(starting)?);
    let mut acceptors = JoinSet::new();
    if let Some(first) = lanes.first() {
        for socket in sockets {
            let acceptor = {
                let _entered = first.enter();
                Acceptor::new(socket).map_err(failed)?
            };
            acceptors.spawn_on(accept(acceptor, Arc::clone(&lanes), Arc::clone(&shared)), first);
        }
    }
    info!(store = shared.settings.store_dir.as_str(), "ready");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        debug!(%error, "no service manager was told");
    }
    signals.join_next().await;
    info!("stopping");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    // Sessions end with their tasks, and builds with the sessions that wait for them; the runtime waits for their clean-up.
    acceptors.shutdown().await;
    if let Some(lanes) = Arc::into_inner(lanes) {
        let stopped = tokio::task::spawn_blocking(move || lanes.stop());
        if tokio::time::timeout(CLEAN_UP, stopped).await.is_err() {
            warn!("sessions did not end in time");
        }
    }
    tokio::task::yield_now().await;
    if tokio::time::timeout(CLEAN_UP, builder.settle()).await.is_err() {
        warn!("builds did not end in time; what they leave is removed later");
    }
    // The next daemon then need not look at what was added last.
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.flush()).await {
        warn!(%error, "what was added last may not be on the disk");
    }
    Ok(())
}

async fn accept(acceptor: Acceptor, lanes: Arc<Lanes>, shared: Arc<Shared>) {
    let mut sessions = JoinSet::new();
    loop {
        while sessions.try_join_next().is_some() {}
        match acceptor.accept().await {
            Ok((connection, peer)) => {
                if shared.is_builder(&peer) {
                    warn!("refused connection from {}: builders are not clients", peer.name);
                    continue;
                }
                let session = match shared.share(&peer) {
                    Ok(session) => session,
                    Err(error) => {
                        debug!("refused connection from {}: {error}", peer.name);
                        continue;
                    }
                };
                debug!("accepted connection from {}", peer.name);
                let Some(place) = lanes.place() else { return };
                let lane = place.runtime.clone();
                sessions.spawn_on(client(connection, peer, session, place, Arc::clone(&shared)), &lane);
            }
            Err(error) => {
                // Out of descriptors, most likely: sessions that end make room.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn client(connection: Connection, peer: Peer, session: share::Session, place: Place, shared: Arc<Shared>) {
    let stream: Box<dyn Stream> = match if place.first { Ok(connection) } else { connection.adopt() } {
        Ok(Connection::Unix(stream)) => Box::new(stream),
        Ok(Connection::Tcp(stream)) => Box::new(stream),
        Err(error) => {
            warn!(%error, "cannot serve {}", peer.name);
            return;
        }
    };
    if let Some((uid, _)) = peer.credentials {
        match &peer.user {
            Some(name) => {
                if let Err(error) = shared.store.create_user(name, uid) {
                    warn!(%error, "cannot create the profile directory of user {name}");
                }
            }
            None => info!("user with UID {uid} not found"),
        }
    }
    let name = peer.name.clone();
    if let Err(error) = session::serve(stream, peer, session, shared).await {
        debug!(%error, "connection with {name} ended");
    }
}
