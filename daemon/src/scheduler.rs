//! What is to be built, and when: each derivation once, whoever asks.
//!
//! A *goal* is one derivation to be realised in one mode. It runs as a task of its own, is shared by everybody who asks while it runs, and ends
//! when the last of them has gone: the [`Goal`] that waiters hold aborts the task when it is dropped, which kills the builder and cleans up.
//! A goal knows its listeners, all the requesters that wait for it directly or through other goals; each line goes to each of them once.
//!
//! `max_jobs` bounds the builds that run at once for one user, however many connections he has; a client that asks for more than the daemon's
//! default is given it. Users do not wait for each other.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use fruix_drv::StorePath;
use fruix_drv::derivation::Derivation;
use fruix_store::{Store, TempRoots};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::debug;

use crate::build::{Builder, Job, Verdict};
use crate::error::Error;
use crate::options::Level;
use crate::requester::Requester;
use crate::roots::keep;

/// How long a build waits at the most for others of its request, that should go first, to find out that they can be started.
const SETTLE: Duration = Duration::from_millis(100);
/// How long the slot of a failed build stays taken, so that nothing is started that is given up on the failure's account.
const REACT: Duration = Duration::from_millis(50);
/// How long to wait before trying again for locks that another process holds.
const LOCK_POLL: Duration = Duration::from_millis(500);
/// Derivations of one request of which it is found out at once, on the thread of the session, whether there is anything to do.
const FEW: usize = 8;

/// Why a derivation is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BuildMode {
    /// To have its outputs.
    Normal,
    /// To replace outputs that are damaged.
    Repair,
    /// To see whether it gives the same again.
    Check,
}

impl BuildMode {
    /// The mode of upstream's number.
    #[must_use]
    pub fn from_wire(number: u64) -> Option<BuildMode> {
        [BuildMode::Normal, BuildMode::Repair, BuildMode::Check].get(usize::try_from(number).ok()?).copied()
    }
}

/// Which outputs of a derivation somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All.
    All,
    /// Those of the given names.
    Some(BTreeSet<String>),
}

impl Wanted {
    /// Those of these names; all when there are none, as upstream has it.
    pub fn of(names: impl IntoIterator<Item = String>) -> Wanted {
        let names: BTreeSet<String> = names.into_iter().collect();
        if names.is_empty() { Wanted::All } else { Wanted::Some(names) }
    }

    fn includes(&self, name: &str) -> bool {
        match self {
            Wanted::All => true,
            Wanted::Some(names) => names.contains(name),
        }
    }

    /// Adds `other`; tells whether that changed anything.
    fn extend(&mut self, other: &Wanted) -> bool {
        match (&mut *self, other) {
            (Wanted::All, _) => false,
            (Wanted::Some(_), Wanted::All) => {
                *self = Wanted::All;
                true
            }
            (Wanted::Some(names), Wanted::Some(more)) => {
                let before = names.len();
                names.extend(more.iter().cloned());
                names.len() != before
            }
        }
    }
}

/// What a client may ask to have built.
#[derive(Clone, Debug)]
pub enum Target {
    /// A derivation, and which of its outputs.
    Derivation(StorePath, Wanted),
    /// Any other path: it must be there, since nothing can make it.
    Path(StorePath),
}

/// Each derivation once, with all that is wanted of it: of two goals for it, the first may end, and say so, before the second is asked for.
fn together(targets: Vec<Target>) -> Vec<Target> {
    let mut together: Vec<Target> = Vec::with_capacity(targets.len());
    let mut places = HashMap::new();
    for target in targets {
        if let Target::Derivation(drv, wanted) = &target {
            let place = *places.entry(drv.clone()).or_insert(together.len());
            if let Some(Target::Derivation(_, all)) = together.get_mut(place) {
                all.extend(wanted);
                continue;
            }
        }
        together.push(target);
    }
    together
}

/// How a goal ended.
#[derive(Clone, Debug)]
struct GoalResult {
    outcome: Outcome,
    /// Whether it, or one that it waited for, ran out of time: the client is told status 101.
    timed_out: bool,
    /// Whether it, or one that it waited for, failed for good: status 100.
    permanent: bool,
}

#[derive(Clone, Debug)]
enum Outcome {
    Success,
    Failed,
    /// Ends the whole request with this message, as upstream's exceptions do.
    Fatal {
        message: String,
        status: u64,
    },
}

impl GoalResult {
    fn success() -> GoalResult {
        GoalResult { outcome: Outcome::Success, timed_out: false, permanent: false }
    }

    fn failed() -> GoalResult {
        GoalResult { outcome: Outcome::Failed, ..GoalResult::success() }
    }

    fn fatal(error: &Error) -> GoalResult {
        GoalResult { outcome: Outcome::Fatal { message: error.to_string(), status: error.status() }, ..GoalResult::success() }
    }
}

/// Locks a mutex whose holders never leave it in a bad state, even when they panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everybody who hears of a build.
pub struct Audience {
    state: Mutex<AudienceState>,
}

struct AudienceState {
    listeners: BTreeMap<u64, Weak<Requester>>,
    children: Vec<Arc<Goal>>,
    wanted: Wanted,
    /// Whether somebody wanted more outputs after the goal had looked.
    widened: bool,
    /// What a listener who comes late must hear first: which build the output belongs to.
    started: Option<Vec<u8>>,
    /// What is to be kept alive for all listeners, and for which of them it is already.
    keeps: Vec<StorePath>,
    rooted: BTreeSet<u64>,
    closed: bool,
}

impl Audience {
    /// An audience that nobody is in.
    pub(crate) fn nobody() -> Arc<Audience> {
        Audience::wanting(&Wanted::All)
    }

    fn wanting(wanted: &Wanted) -> Arc<Audience> {
        Arc::new(Audience {
            state: Mutex::new(AudienceState {
                listeners: BTreeMap::new(),
                children: Vec::new(),
                wanted: wanted.clone(),
                widened: false,
                started: None,
                keeps: Vec::new(),
                rooted: BTreeSet::new(),
                closed: false,
            }),
        })
    }

    /// The requesters that still wait, in the order in which they came.
    #[must_use]
    pub fn listeners(&self) -> Vec<Arc<Requester>> {
        lock(&self.state).listeners.values().filter_map(Weak::upgrade).collect()
    }

    /// Sends a message to all.
    pub fn message(&self, level: Level, line: &str) {
        for requester in self.listeners() {
            requester.message(level, line.as_bytes());
        }
    }

    /// Sends a trace to all who read traces.
    pub fn trace(&self, line: &str) {
        for requester in self.listeners() {
            requester.trace(line.as_bytes());
        }
    }

    /// Tells all that a build has begun, and whoever comes later too.
    pub fn started(&self, line: String) {
        // Whoever is a listener by now is told here, whoever is not when he joins.
        let mut state = lock(&self.state);
        state.started = Some(line.clone().into_bytes());
        let listeners: Vec<_> = state.listeners.values().filter_map(Weak::upgrade).collect();
        for requester in &listeners {
            requester.trace(line.as_bytes());
        }
        drop(state);
    }

    /// Forgets the build that [`Audience::started`] told of.
    pub fn stopped(&self) {
        lock(&self.state).started = None;
    }

    /// Sends the output of the builder with process id `pid` to all.
    pub fn builder_output(&self, pid: i32, bytes: &[u8]) {
        for requester in self.listeners() {
            requester.builder_output(pid, bytes);
        }
    }

    /// Adds a listener to this goal and to all that it waits for.
    fn add_listener(self: &Arc<Audience>, requester: &Arc<Requester>) {
        let mut todo = vec![Arc::clone(self)];
        while let Some(audience) = todo.pop() {
            let mut state = lock(&audience.state);
            let before = state.listeners.insert(requester.id, Arc::downgrade(requester));
            if before.is_none_or(|weak| weak.strong_count() == 0) {
                if let Some(line) = &state.started {
                    requester.trace(line);
                }
                todo.extend(state.children.iter().map(|child| Arc::clone(&child.audience)));
            }
        }
    }

    /// Makes `child` one of those that this goal waits for, and its listeners the child's.
    fn adopt(self: &Arc<Audience>, child: Arc<Goal>) {
        let audience = Arc::clone(&child.audience);
        // Once the child is in the list, whoever joins us is passed on to it; whoever joined before is in `listeners` now.
        lock(&self.state).children.push(child);
        for requester in self.listeners() {
            audience.add_listener(&requester);
        }
    }

    /// Says what the goal needs and makes, to be kept alive for as long as any listener's session lives.
    fn keeps(&self, paths: Vec<StorePath>) {
        let mut state = lock(&self.state);
        if state.keeps != paths {
            state.keeps = paths;
            state.rooted.clear();
        }
    }

    /// Keeps that alive for all who listen by now.
    async fn root_for_all(&self) -> Result<(), Error> {
        let paths = lock(&self.state).keeps.clone();
        for requester in self.listeners() {
            if let Some(roots) = requester.roots()
                && !lock(&self.state).rooted.contains(&requester.id)
            {
                keep(&Handle::current(), roots, &paths).await?;
                lock(&self.state).rooted.insert(requester.id);
            }
        }
        Ok(())
    }

    fn keep_going(&self) -> bool {
        self.listeners().iter().any(|requester| requester.options.keep_going)
    }

    fn max_jobs(&self) -> u64 {
        self.listeners().iter().map(|requester| requester.options.max_jobs).max().unwrap_or(1)
    }

    /// On whose account the build may run, at least `floor` builds being anybody's right.
    fn claims(&self, floor: u64) -> Claims {
        let claims = self.listeners().into_iter().map(|requester| (requester.uid, requester.options.max_jobs.max(floor)));
        claims.collect()
    }
}

/// A derivation being realised; dropping the last one stops it.
struct Goal {
    audience: Arc<Audience>,
    result: watch::Receiver<Option<GoalResult>>,
    task: AbortHandle,
    /// How many goals have yet to take note of the result.
    interested: watch::Sender<usize>,
}

impl Drop for Goal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Goal {
    async fn wait(&self) -> GoalResult {
        let mut result = self.result.clone();
        match result.wait_for(Option::is_some).await {
            Ok(value) => value.clone().unwrap_or_else(GoalResult::failed),
            // The task panicked: our bug, which must not hang the client.
            Err(_) => GoalResult::fatal(&Error::request("internal error: a build task ended without a result")),
        }
    }
}

/// A goal waits for another; dropped when it has taken note of how that ended.
struct Interest(watch::Sender<usize>);

impl Interest {
    fn new(count: &watch::Sender<usize>) -> Interest {
        count.send_modify(|count| *count += 1);
        Interest(count.clone())
    }

    /// Gives up the interest, and waits until everybody else has, which takes moments: all of them are to say that they cannot go on, before the first
    /// makes the whole request fail.
    async fn last(self) {
        let mut count = self.0.subscribe();
        drop(self);
        let _ = tokio::time::timeout(SETTLE, count.wait_for(|count| *count == 0)).await;
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// Bounds the builds that run at once, and says which is next: upstream's order, so that a failure finds the same things built.
///
/// Upstream goes through all goals in rounds. What a client names is found ready first, its inputs a round later, and so on; those that come too
/// late for a slot are taken by name from then on.
#[derive(Default)]
struct Slots {
    state: Mutex<SlotState>,
    changed: Notify,
}

#[derive(Default)]
struct SlotState {
    /// Builds that run, by the user on whose account they do. None is 0.
    running: HashMap<User, u64>,
    /// Goals that neither wait for their inputs nor are here: one of them may be next.
    under_way: u64,
    /// Whether somebody has had to wait for a slot since there was nothing to do.
    contended: bool,
    next: u64,
    /// Who waits, with how many may run for this one to start.
    waiting: BTreeMap<Turn, Claims>,
}

/// A client's user; all clients from elsewhere are one.
type User = Option<u32>;
/// Users that want a build, each with how many builds may run for him.
type Claims = Vec<(User, u64)>;

/// Whose turn it is: the smallest, by name first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    name: String,
    path: StorePath,
    arrival: u64,
    depth: u32,
}

impl SlotState {
    /// The first user who may have one build more.
    fn account(&self, claims: &Claims) -> Option<User> {
        claims.iter().find(|(user, allowed)| self.running.get(user).copied().unwrap_or(0) < *allowed).map(|(user, _)| *user)
    }

    fn first(&self) -> Option<&Turn> {
        let mut ready = self.waiting.iter().filter(|(_, claims)| self.account(claims).is_some()).map(|(turn, _)| turn);
        if self.contended { ready.next() } else { ready.min_by_key(|turn| turn.depth) }
    }
}

/// Says that a goal is under way.
struct UnderWay {
    slots: Arc<Slots>,
    counted: bool,
}

impl UnderWay {
    fn new(slots: &Arc<Slots>) -> UnderWay {
        let mut new = UnderWay { slots: Arc::clone(slots), counted: false };
        new.go();
        new
    }

    fn go(&mut self) {
        if !std::mem::replace(&mut self.counted, true) {
            lock(&self.slots.state).under_way += 1;
        }
    }

    fn pause(&mut self) {
        if std::mem::replace(&mut self.counted, false) {
            let mut state = lock(&self.slots.state);
            state.under_way = state.under_way.saturating_sub(1);
            let settled = state.under_way == 0;
            drop(state);
            if settled {
                self.slots.changed.notify_waiters();
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.pause();
    }
}

/// Leave for one build, on a user's account.
struct Slot {
    slots: Arc<Slots>,
    user: User,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = lock(&self.slots.state);
        if let Entry::Occupied(mut running) = state.running.entry(self.user) {
            *running.get_mut() = running.get().saturating_sub(1);
            if *running.get() == 0 {
                running.remove();
            }
        }
        state.contended &= !state.running.is_empty() || !state.waiting.is_empty();
        drop(state);
        self.slots.changed.notify_waiters();
    }
}

struct Waiting<'a> {
    slots: &'a Slots,
    turn: Turn,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.slots.state).waiting.remove(&self.turn);
        self.slots.changed.notify_waiters();
    }
}

impl Slots {
    /// Waits until one of the users of `claims()` may have one build more and nobody could start before us.
    async fn acquire(self: &Arc<Slots>, path: &StorePath, way: &mut UnderWay, depth: u32, claims: impl Fn() -> Claims) -> Slot {
        let turn = {
            let mut state = lock(&self.state);
            state.next += 1;
            let turn = Turn { name: path.name().to_owned(), path: path.clone(), arrival: state.next, depth };
            state.waiting.insert(turn.clone(), claims());
            turn
        };
        let waiting = Waiting { slots: self, turn };
        way.pause();
        let settled = tokio::time::sleep(SETTLE);
        tokio::pin!(settled);
        let slot = loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = lock(&self.state);
                state.waiting.insert(waiting.turn.clone(), claims());
                if (state.under_way == 0 || settled.is_elapsed())
                    && state.first() == Some(&waiting.turn)
                    && let Some(user) = state.waiting.get(&waiting.turn).and_then(|claims| state.account(claims))
                {
                    *state.running.entry(user).or_default() += 1;
                    state.waiting.remove(&waiting.turn);
                    state.contended |= state.waiting.values().any(|claims| state.account(claims).is_none());
                    break Slot { slots: Arc::clone(self), user };
                }
            }
            tokio::select! {
                () = changed => {}
                () = &mut settled, if !settled.is_elapsed() => {}
            }
        };
        drop(waiting);
        slot
    }
}

/// The one scheduler of a daemon.
#[derive(Clone)]
pub struct Scheduler(Arc<Inner>);

struct Inner {
    store: Store,
    cache_failures: bool,
    builder: Builder,
    goals: Mutex<HashMap<(StorePath, BuildMode), Weak<Goal>>>,
    slots: Arc<Slots>,
    /// Where all but short questions run.
    runtime: Handle,
}

impl Scheduler {
    /// A scheduler that builds with `builder` into `store`, on the runtime of the caller.
    #[must_use]
    pub fn new(store: Store, builder: Builder, cache_failures: bool) -> Scheduler {
        let (goals, slots) = (Mutex::new(HashMap::new()), Arc::new(Slots::default()));
        Scheduler(Arc::new(Inner { store, cache_failures, builder, goals, slots, runtime: Handle::current() }))
    }

    /// Realises `targets` for `requester`. The error's text and status are what the client is told; dropping the future gives up, and stops
    /// what nobody else waits for.
    pub async fn build(&self, requester: &Arc<Requester>, targets: Vec<Target>, mode: BuildMode) -> Result<(), Error> {
        let mut targets = together(targets);
        let few = targets.len() <= FEW;
        if few {
            targets = self.missing(requester, targets, mode).await?;
            if targets.is_empty() {
                return Ok(());
            }
        }
        let (this, requester) = (self.clone(), Arc::clone(requester));
        // A set, since what is in it ends when it is dropped.
        let mut task = JoinSet::new();
        task.spawn_on(
            async move {
                let targets = if few { targets } else { this.missing(&requester, targets, mode).await? };
                this.realise(&requester, targets, mode).await
            },
            &self.0.runtime,
        );
        match task.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(error)) => Err(Error::request(format!("internal error: {error}"))),
            None => Ok(()),
        }
    }

    /// Those of `targets` that are no derivations for which there is nothing to do.
    async fn missing(&self, requester: &Requester, targets: Vec<Target>, mode: BuildMode) -> Result<Vec<Target>, Error> {
        let mut missing = Vec::new();
        for target in targets {
            if let Target::Derivation(drv, wanted) = &target
                && mode == BuildMode::Normal
                && self.0.is_built(requester, drv, wanted).await?
            {
                continue;
            }
            missing.push(target);
        }
        Ok(missing)
    }

    async fn realise(&self, requester: &Arc<Requester>, targets: Vec<Target>, mode: BuildMode) -> Result<(), Error> {
        let mut failed = BTreeSet::new();
        let (mut timed_out, mut permanent) = (false, false);
        let mut goals = Vec::new();
        for target in targets {
            match target {
                Target::Derivation(drv, wanted) => {
                    let goal = self.0.join(&drv, mode, &wanted, 0, std::slice::from_ref(requester));
                    goals.push((drv, goal));
                }
                Target::Path(path) => {
                    if let Some(roots) = requester.roots() {
                        keep(&self.0.runtime, roots, [&path]).await?;
                    }
                    // Without substituters upstream lets such a goal end quietly: a path that is not there is found out by whoever uses it.
                    if !self.0.store.is_valid(&path)? {
                        debug!(path = %path, "not valid, and there is no substituter that can build it");
                    }
                }
            }
        }
        let mut waiting: JoinSet<(usize, GoalResult)> = JoinSet::new();
        for (index, (_, goal)) in goals.iter().enumerate() {
            let goal = Arc::clone(goal);
            waiting.spawn(async move { (index, goal.wait().await) });
        }
        while let Some(done) = waiting.join_next().await {
            let Ok((index, result)) = done else { continue };
            timed_out |= result.timed_out;
            permanent |= result.permanent;
            match result.outcome {
                Outcome::Success => {}
                Outcome::Fatal { message, status } => return Err(Error::Request { message, status }),
                Outcome::Failed => {
                    if let Some((drv, _)) = goals.get(index) {
                        failed.insert(drv.clone());
                    }
                    if !requester.options.keep_going {
                        break;
                    }
                }
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        let paths = show_paths(&self.0.store, &failed);
        let status = if timed_out {
            101
        } else if permanent {
            100
        } else {
            1
        };
        Err(Error::NotBuilt { message: format!("build of {paths} failed"), status })
    }
}

impl Scheduler {
    /// Makes `path`, which is damaged or gone, anew.
    ///
    /// # Errors
    /// [`fruix_store::Error::CannotRepair`] when nobody knows how, or when it could not be built; else what went wrong.
    pub async fn repair(&self, requester: &Arc<Requester>, path: &StorePath) -> Result<(), Error> {
        let store = &self.0.store;
        let deriver = store.deriver(path)?;
        let built = match deriver {
            Some(deriver) if store.is_valid(&deriver)? => {
                self.build(requester, vec![Target::Derivation(deriver, Wanted::All)], BuildMode::Repair).await
            }
            _ => return Err(fruix_store::Error::CannotRepair { path: store.print(path) }.into()),
        };
        built.map_err(|error| match error {
            Error::NotBuilt { .. } => fruix_store::Error::CannotRepair { path: store.print(path) }.into(),
            error => error,
        })
    }
}

/// Paths as upstream lists them in messages: `` `a', `b' ``.
#[must_use]
pub fn show_paths<'a>(store: &Store, paths: impl IntoIterator<Item = &'a StorePath>) -> String {
    let quoted: Vec<_> = paths.into_iter().map(|path| format!("`{}'", store.store_dir().display(path))).collect();
    quoted.join(", ")
}

impl Inner {
    /// The goal for `drv`, running, with `listeners` in its audience; one that is there is shared. `depth` is how far it is from what a client named.
    fn join(self: &Arc<Inner>, drv: &StorePath, mode: BuildMode, wanted: &Wanted, depth: u32, listeners: &[Arc<Requester>]) -> Arc<Goal> {
        let key = (drv.clone(), mode);
        let mut goals = lock(&self.goals);
        if let Some(goal) = goals.get(&key).and_then(Weak::upgrade) {
            let mut state = lock(&goal.audience.state);
            if !state.closed {
                state.widened |= state.wanted.extend(wanted);
                drop(state);
                drop(goals);
                for requester in listeners {
                    goal.audience.add_listener(requester);
                }
                return goal;
            }
        }
        let audience = Audience::wanting(wanted);
        // Before it runs: it may have something to say at once.
        for requester in listeners {
            audience.add_listener(requester);
        }
        let (sender, receiver) = watch::channel(None);
        let task = self
            .runtime
            .spawn({
                let (inner, audience, key) = (Arc::clone(self), Arc::clone(&audience), key.clone());
                let mut way = UnderWay::new(&self.slots);
                async move {
                    let (result, slot) = inner.run(&key.0, key.1, &audience, &mut way, depth).await;
                    let children = inner.close(&key, &audience);
                    drop(children);
                    let failed = !matches!(result.outcome, Outcome::Success);
                    let _ = sender.send(Some(result));
                    if failed && slot.is_some() {
                        tokio::time::sleep(REACT).await;
                    } else {
                        // Whoever waited for this is under way before it is not.
                        tokio::task::yield_now().await;
                    }
                    drop((way, slot));
                }
            })
            .abort_handle();
        let goal = Arc::new(Goal { audience, result: receiver, task, interested: watch::Sender::new(0) });
        goals.insert(key, Arc::downgrade(&goal));
        goal
    }

    /// Takes a goal that has its result from the table, and returns what it held. Whoever still holds it has the result; whoever comes next starts
    /// anew, and looks at the database first.
    fn close(&self, key: &(StorePath, BuildMode), audience: &Arc<Audience>) -> Vec<Arc<Goal>> {
        let mut goals = lock(&self.goals);
        let mut state = lock(&audience.state);
        state.closed = true;
        if goals.get(key).and_then(Weak::upgrade).is_none_or(|goal| Arc::ptr_eq(&goal.audience, audience)) {
            goals.remove(key);
        }
        std::mem::take(&mut state.children)
    }

    /// Whether there is nothing to do for a derivation, as is most often the case. What is there is kept for `requester`.
    async fn is_built(&self, requester: &Requester, drv: &StorePath, wanted: &Wanted) -> Result<bool, Error> {
        let Some(roots) = requester.roots() else { return Ok(false) };
        // What it says is what the file says, whether or not it is collected just now; that is found out below.
        let Ok(outputs) = self.store.derivation_outputs(drv) else { return Ok(false) };
        let asked: Vec<StorePath> = outputs.iter().filter(|(name, _)| wanted.includes(name)).map(|(_, output)| output.clone()).collect();
        if asked.is_empty() {
            return Ok(false);
        }
        let kept: Vec<StorePath> = std::iter::once(drv).chain(outputs.values()).cloned().collect();
        keep(&self.runtime, roots, &kept).await?;
        Ok(self.store.are_valid(std::iter::once(drv).chain(&asked))?)
    }

    /// Realises a derivation. With the result comes the slot that it took.
    async fn run(
        self: &Arc<Inner>,
        drv_path: &StorePath,
        mode: BuildMode,
        audience: &Arc<Audience>,
        way: &mut UnderWay,
        depth: u32,
    ) -> (GoalResult, Option<Slot>) {
        // Roots of its own keep what the goal works on, whoever leaves meanwhile.
        let roots = Arc::new(self.store.temp_roots());
        loop {
            way.go();
            let mut slot = None;
            match self.attempt(drv_path, mode, audience, &roots, way, depth, &mut slot).await {
                Ok(result) => {
                    let success = matches!(result.outcome, Outcome::Success);
                    {
                        let mut state = lock(&audience.state);
                        if std::mem::take(&mut state.widened) && success {
                            continue;
                        }
                        state.closed = true;
                    }
                    // Nobody joins any more. Those who have since the work began count on the outputs as the others do, also when our roots are gone.
                    if success && let Err(error) = audience.root_for_all().await {
                        return (GoalResult::fatal(&error), slot);
                    }
                    return (result, slot);
                }
                Err(error) => return (GoalResult::fatal(&error), slot),
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn attempt(
        self: &Arc<Inner>,
        drv_path: &StorePath,
        mode: BuildMode,
        audience: &Arc<Audience>,
        roots: &Arc<TempRoots>,
        way: &mut UnderWay,
        depth: u32,
        slot: &mut Option<Slot>,
    ) -> Result<GoalResult, Error> {
        let shown = self.store.store_dir().display(drv_path);
        keep(&self.runtime, roots, [drv_path]).await?;
        if !self.store.is_valid(drv_path)? {
            // A root all the same, as with guix-daemon: who asked for it may be about to add it.
            audience.keeps(vec![drv_path.clone()]);
            audience.root_for_all().await?;
            audience.message(Level::Error, &format!("cannot build missing derivation `{shown}'"));
            return Ok(GoalResult::failed());
        }
        let drv = Arc::new(self.read_derivation(drv_path).await?);
        let kept: Vec<StorePath> = std::iter::once(drv_path).chain(drv.output_paths()).cloned().collect();
        keep(&self.runtime, roots, &kept).await?;
        audience.keeps(kept);
        audience.root_for_all().await?;
        let wanted = {
            let mut state = lock(&audience.state);
            state.widened = false;
            state.wanted.clone()
        };
        let mut invalid = BTreeSet::new();
        for (_, output) in drv.outputs.iter().filter(|(name, _)| wanted.includes(name)) {
            if !self.output_good(&output.path, mode, Some(audience)).await? {
                invalid.insert(output.path.clone());
            }
        }
        if let Some(result) = self.failed_before(&invalid, &shown, audience)? {
            return Ok(result);
        }
        match mode {
            BuildMode::Normal if invalid.is_empty() => return Ok(GoalResult::success()),
            BuildMode::Repair if invalid.is_empty() => return self.repair_closure(drv_path, &drv, &wanted, audience, way, depth).await,
            BuildMode::Check if !invalid.is_empty() => {
                return Err(Error::request(format!("`{shown}' is missing outputs; build it normally before using `--check'")));
            }
            _ => {}
        }
        // What it needs as it is, too: a derivation may leave that out of its references.
        audience.keeps(std::iter::once(drv_path).chain(drv.output_paths()).chain(&drv.input_srcs).cloned().collect());
        audience.root_for_all().await?;
        if let Some(result) = self.realise_inputs(&drv, mode, &shown, audience, way, depth).await? {
            return Ok(result);
        }
        let inputs = self.input_closure(drv_path, &drv).await?;
        self.build(drv_path, &drv, mode, inputs, audience, way, depth, slot).await
    }

    /// Waits for slot and locks, looks again, and builds.
    #[allow(clippy::too_many_arguments)]
    async fn build(
        self: &Arc<Inner>,
        drv_path: &StorePath,
        drv: &Arc<Derivation>,
        mode: BuildMode,
        inputs: BTreeSet<StorePath>,
        audience: &Arc<Audience>,
        way: &mut UnderWay,
        depth: u32,
        kept_slot: &mut Option<Slot>,
    ) -> Result<GoalResult, Error> {
        let shown = self.store.store_dir().display(drv_path);
        let outputs: Vec<StorePath> = drv.outputs.values().map(|output| output.path.clone()).collect();
        // What can be done here only is done here, even by who wants nothing built here.
        let prefer_local = mode != BuildMode::Normal || drv.env.get(&b"preferLocalBuild"[..]).is_some_and(|value| value == "1");
        if audience.max_jobs() == 0 && !prefer_local {
            return Err(Error::request("unable to start any build; either increase `--max-jobs' or enable distributed builds"));
        }
        let mut said = false;
        let (slot, locks) = loop {
            let slot = self.slots.acquire(drv_path, way, depth, || audience.claims(u64::from(prefer_local))).await;
            let (store, paths) = (self.store.clone(), outputs.clone());
            if let Some(locks) = blocking(move || Ok(store.lock_paths(&paths, false)?)).await? {
                break (slot, Arc::new(Mutex::new(locks)));
            }
            drop(slot);
            if !std::mem::replace(&mut said, true) {
                audience.message(Level::Error, "waiting for locks or build slots...");
            }
            tokio::time::sleep(LOCK_POLL).await;
        };
        // Another process may have built it before we had the locks.
        let mut missing = BTreeSet::new();
        for path in &outputs {
            if mode == BuildMode::Check || !self.output_good(path, mode, None).await? {
                missing.insert(path.clone());
            }
        }
        if missing.is_empty() {
            lock(&locks).set_deletion(true);
            return Ok(GoalResult::success());
        }
        if let Some(result) = self.failed_before(&missing, &shown, audience)? {
            return Ok(result);
        }
        let job = Job { drv_path: drv_path.clone(), drv: Arc::clone(drv), mode, inputs, missing, audience: Arc::clone(audience), locks };
        let verdict = self.builder.build(job).await;
        *kept_slot = Some(slot);
        audience.stopped();
        match verdict {
            Ok(Verdict::Built) => Ok(GoalResult::success()),
            Ok(Verdict::Failed { permanent, timed_out, cacheable }) => {
                if cacheable && self.cache_failures {
                    self.store.register_failed(&outputs.into_iter().collect())?;
                }
                Ok(GoalResult { outcome: Outcome::Failed, timed_out, permanent })
            }
            Err(error) => Err(error),
        }
    }

    async fn read_derivation(&self, path: &StorePath) -> Result<Derivation, Error> {
        let (store, path) = (self.store.clone(), path.clone());
        blocking(move || Ok(store.read_derivation(&path)?)).await
    }

    /// Whether `path` is valid and, where damage is looked for, undamaged; `audience` hears of damage.
    async fn output_good(&self, path: &StorePath, mode: BuildMode, audience: Option<&Audience>) -> Result<bool, Error> {
        let Some(info) = self.store.query_path_info(path)? else { return Ok(false) };
        if mode != BuildMode::Repair {
            return Ok(true);
        }
        let (store, real) = (self.store.clone(), self.store.real_path(path));
        let good = blocking(move || {
            // Held, so that it is not replaced meanwhile.
            let _store = store;
            Ok(fruix_store::hash_path(&real).is_ok_and(|(hash, _)| hash == info.nar_hash))
        })
        .await?;
        if !good && let Some(audience) = audience {
            for requester in audience.listeners().iter().filter(|requester| requester.hears_of_damage(path)) {
                requester.message(Level::Error, format!("path `{}' is corrupted or missing!", self.store.print(path)).as_bytes());
            }
        }
        Ok(good)
    }

    /// Repairs what the outputs of `drv`, which are good themselves, refer to.
    async fn repair_closure(
        self: &Arc<Inner>,
        drv_path: &StorePath,
        drv: &Arc<Derivation>,
        wanted: &Wanted,
        audience: &Arc<Audience>,
        way: &mut UnderWay,
        depth: u32,
    ) -> Result<GoalResult, Error> {
        let shown = self.store.print(drv_path);
        let starts: Vec<_> = drv.outputs.iter().filter(|(name, _)| wanted.includes(name)).map(|(_, output)| output.path.clone()).collect();
        let own: BTreeSet<_> = drv.output_paths().cloned().collect();
        let (store, drv_path) = (self.store.clone(), drv_path.clone());
        let (outputs, makers) = blocking(move || {
            let mut outputs = closure(&store, starts)?;
            outputs.retain(|path| !own.contains(path));
            let mut makers = HashMap::new();
            for path in closure(&store, [drv_path])?.into_iter().filter(StorePath::is_derivation) {
                for output in store.read_derivation(&path)?.outputs.into_values() {
                    makers.insert(output.path, path.clone());
                }
            }
            Ok((outputs, makers))
        })
        .await?;
        let not_repaired = || Error::request(format!("some paths in the output closure of derivation `{shown}' could not be repaired"));
        let mut waiting = JoinSet::new();
        let mut lost = false;
        for path in outputs {
            if self.output_good(&path, BuildMode::Repair, Some(audience)).await? {
                continue;
            }
            let path_shown = self.store.print(&path);
            audience.message(Level::Error, &format!("found corrupted or missing path `{path_shown}' in the output closure of `{shown}'"));
            let Some(maker) = makers.get(&path) else {
                lost = true;
                continue;
            };
            let child = self.join(maker, BuildMode::Repair, &Wanted::All, depth.saturating_add(1), &audience.listeners());
            audience.adopt(Arc::clone(&child));
            waiting.spawn(async move { child.wait().await });
        }
        way.pause();
        while let Some(done) = waiting.join_next().await {
            let Ok(child) = done else { continue };
            match child.outcome {
                Outcome::Success => {}
                Outcome::Fatal { .. } => return Ok(child),
                Outcome::Failed => lost = true,
            }
        }
        if lost { Err(not_repaired()) } else { Ok(GoalResult::success()) }
    }

    fn failed_before(&self, paths: &BTreeSet<StorePath>, shown: &str, audience: &Audience) -> Result<Option<GoalResult>, Error> {
        if !self.cache_failures {
            return Ok(None);
        }
        for path in paths {
            if self.store.has_failed(path)? {
                let path = self.store.store_dir().display(path);
                audience.message(Level::Error, &format!("builder for `{path}' failed previously (cached)"));
                audience.trace(&format!("@ build-failed {shown} - cached"));
                return Ok(Some(GoalResult { permanent: true, ..GoalResult::failed() }));
            }
        }
        Ok(None)
    }

    /// Has all inputs realised; `Some` is the end of the goal.
    async fn realise_inputs(
        self: &Arc<Inner>,
        drv: &Derivation,
        mode: BuildMode,
        shown: &str,
        audience: &Arc<Audience>,
        way: &mut UnderWay,
        depth: u32,
    ) -> Result<Option<GoalResult>, Error> {
        let mode = if mode == BuildMode::Repair { BuildMode::Repair } else { BuildMode::Normal };
        let mut result = GoalResult::success();
        let mut failed = 0_usize;
        for path in &drv.input_srcs {
            if !self.store.is_valid(path)? {
                failed += 1;
            }
        }
        let mut waiting = JoinSet::new();
        let mut interests = Vec::new();
        for (index, (input, outputs)) in drv.input_drvs.iter().enumerate() {
            let child = self.join(input, mode, &Wanted::of(outputs.iter().cloned()), depth.saturating_add(1), &audience.listeners());
            audience.adopt(Arc::clone(&child));
            interests.push(Some(Interest::new(&child.interested)));
            waiting.spawn(async move { (index, child.wait().await) });
        }
        let mut given_up_for = None;
        loop {
            way.pause();
            let done = waiting.join_next().await;
            way.go();
            let Some(done) = done else { break };
            let Ok((index, child)) = done else { continue };
            let interest = interests.get_mut(index).and_then(Option::take);
            result.timed_out |= child.timed_out;
            result.permanent |= child.permanent;
            match child.outcome {
                Outcome::Success => {}
                Outcome::Fatal { .. } => return Ok(Some(child)),
                Outcome::Failed => {
                    failed += 1;
                    if !audience.keep_going() {
                        given_up_for = interest;
                        break;
                    }
                }
            }
        }
        // Children that failed or were given up are let go, so that what nobody else wants stops now.
        drop(waiting);
        if failed == 0 {
            return Ok(None);
        }
        lock(&audience.state).children.clear();
        drop(interests);
        audience.message(Level::Error, &format!("cannot build derivation `{shown}': {failed} dependencies couldn't be built"));
        if let Some(interest) = given_up_for {
            interest.last().await;
        }
        result.outcome = Outcome::Failed;
        Ok(Some(result))
    }

    /// Everything that the builder may see: the closures of the inputs that the derivation names.
    async fn input_closure(self: &Arc<Inner>, drv_path: &StorePath, drv: &Arc<Derivation>) -> Result<BTreeSet<StorePath>, Error> {
        let (store, drv_path, drv) = (self.store.clone(), drv_path.clone(), Arc::clone(drv));
        blocking(move || {
            let mut starts: BTreeSet<StorePath> = drv.input_srcs.clone();
            for (input, names) in &drv.input_drvs {
                let outputs = store.read_derivation(input)?.outputs;
                for name in names {
                    match outputs.get(name) {
                        Some(output) => drop(starts.insert(output.path.clone())),
                        None => {
                            let dir = store.store_dir();
                            return Err(Error::request(format!(
                                "derivation `{}' requires non-existent output `{name}' from input derivation `{}'",
                                dir.display(&drv_path),
                                dir.display(input)
                            )));
                        }
                    }
                }
            }
            closure(&store, starts)
        })
        .await
    }
}

/// All that `paths` refer to, themselves included.
pub fn closure(store: &Store, paths: impl IntoIterator<Item = StorePath>) -> Result<BTreeSet<StorePath>, Error> {
    let mut todo: Vec<StorePath> = paths.into_iter().collect();
    let mut seen: BTreeSet<StorePath> = todo.iter().cloned().collect();
    while let Some(path) = todo.pop() {
        for reference in store.references(&path)? {
            if seen.insert(reference.clone()) {
                todo.push(reference);
            }
        }
    }
    Ok(seen)
}

/// Runs `work`, which may block, where that harms nobody.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    blocking_on(&Handle::current(), work).await
}

/// [`blocking`], on a thread of `runtime`.
pub async fn blocking_on<T: Send + 'static>(
    runtime: &Handle,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match runtime.spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::request(format!("internal error: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::from_base_name(format!("0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c-{name}.drv")).unwrap()
    }

    async fn soon(slots: &Arc<Slots>, name: &str, claims: Claims) -> Option<Slot> {
        let mut way = UnderWay::new(slots);
        let path = path(name);
        let acquire = slots.acquire(&path, &mut way, 0, || claims.clone());
        tokio::time::timeout(Duration::from_millis(300) + SETTLE, acquire).await.ok()
    }

    #[tokio::test]
    async fn a_user_waits_for_his_own_builds_and_for_nobody_elses() {
        let slots = Arc::new(Slots::default());
        let first = soon(&slots, "a", vec![(Some(1), 1)]).await.unwrap();
        assert!(soon(&slots, "b", vec![(Some(1), 1)]).await.is_none());
        // Somebody else, or the same one with a larger limit, or a build that somebody else waits for, too.
        let other = soon(&slots, "c", vec![(Some(2), 1)]).await.unwrap();
        let larger = soon(&slots, "d", vec![(Some(1), 2)]).await.unwrap();
        let shared = soon(&slots, "e", vec![(Some(1), 1), (Some(3), 1)]).await.unwrap();
        assert_eq!((first.user, other.user, larger.user, shared.user), (Some(1), Some(2), Some(1), Some(3)));
        drop((first, larger));
        assert!(soon(&slots, "b", vec![(Some(1), 1)]).await.is_some());
        drop((other, shared));
        assert!(lock(&slots.state).running.is_empty());
    }

    struct Nowhere;

    impl crate::requester::LineSink for Nowhere {
        fn send(&self, _: &[u8]) {}
    }

    #[test]
    fn a_derivation_that_is_named_twice_is_one_target() {
        let some = |names: &[&str]| Wanted::of(names.iter().map(|name| (*name).to_owned()));
        let drv = |name: &str, wanted| Target::Derivation(path(name), wanted);
        let targets = vec![
            drv("a", some(&["out"])),
            Target::Path(path("a")),
            drv("b", Wanted::All),
            drv("a", some(&["lib"])),
            drv("b", some(&["out"])),
        ];
        let shown: Vec<_> = together(targets).iter().map(|target| format!("{target:?}")).collect();
        let expected = [drv("a", some(&["lib", "out"])), Target::Path(path("a")), drv("b", Wanted::All)];
        assert_eq!(shown, expected.iter().map(|target| format!("{target:?}")).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_is_built_is_kept_for_those_who_came_later_too() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let store_dir = fruix_drv::StoreDir::new(root.join("store").to_str().unwrap());
        let store = Store::open(fruix_store::Config::new(store_dir, root.join("var"))).unwrap();
        let client = |id| {
            let options = crate::options::ClientOptions {
                keep_failed: false,
                keep_going: false,
                verbosity: 0,
                build_verbosity: 0,
                print_build_trace: false,
                multiplexed: false,
                extended_trace: false,
                max_jobs: 1,
                cores: 1,
                max_silent_time: 0,
                timeout: 0,
                rounds: 1,
                max_log_size: 0,
            };
            Requester::new(id, options, None, Box::new(Nowhere), Some(Arc::new(store.temp_roots())))
        };
        let (first, second) = (client(1), client(2));
        let built = store.add_text(first.roots().unwrap(), "built", b"built", &BTreeSet::new()).unwrap();
        let audience = Audience::nobody();
        audience.add_listener(&first);
        audience.keeps(vec![built.clone()]);
        audience.root_for_all().await.unwrap();
        audience.add_listener(&second);
        audience.root_for_all().await.unwrap();
        let collect = || {
            let options =
                fruix_store::GcOptions { action: fruix_store::GcAction::DeleteDead, paths_to_delete: Vec::new(), max_freed: u64::MAX };
            let roots = crate::runtime_roots::runtime_roots();
            store.collect_garbage(&options, &roots, &mut |_, _| {}, &std::sync::atomic::AtomicBool::new(false)).unwrap();
            store.is_valid(&built).unwrap()
        };
        drop(first);
        assert!(collect());
        drop(second);
        assert!(!collect());
    }

    #[tokio::test]
    async fn smaller_names_go_first_once_somebody_waits() {
        let slots = Arc::new(Slots::default());
        let held = soon(&slots, "m", vec![(None, 1)]).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        for name in ["z", "b", "k"] {
            let (slots, order) = (Arc::clone(&slots), Arc::clone(&order));
            tasks.spawn(async move {
                let mut way = UnderWay::new(&slots);
                let slot = slots.acquire(&path(name), &mut way, 0, || vec![(None, 1)]).await;
                lock(&order).push(name);
                drop(slot);
            });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(held);
        while tasks.join_next().await.is_some() {}
        assert_eq!(*lock(&order), ["b", "k", "z"]);
    }
}
