//! From the decision thread to the platform and back, one action at a time per owner.
//!
//! One thread owns the [`Ledger`]. Each round it takes what ended and what may begin, writes both
//! as one batch (group commit: while the disk syncs, the next batch gathers), then lets the calls
//! go as tasks of the given runtime and hands out the outcomes.
//!
//! # Bounds
//! - `queue_max` actions wait; beyond it the oldest that is no pause gives way
//!   ([`Dispatcher::submit`] returns it).
//! - `in_flight_max` are being called. An action that stays unknown gives its place free but keeps
//!   its owner; there is at most one of those per owner.
//! - `outcomes_max` outcomes wait to be read; while more do, no new call begins.
//!
//! # When the disk fails
//! Nothing is called without a durable intent: the actions of that round end as
//! [`Outcome::Expired`], which tells the stage to decide anew.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use futures::FutureExt;
use omnify_decision::action::{Action, Id};
use omnify_decision::control::{Control, Outcome};
use omnify_operators::model::{EntityKey, Tick};
use serde::Serialize;

pub use super::backoff::Backoff;
use super::drive::{Driver, Entry, Interim, Surroundings};
use super::ledger::{Ledger, LedgerError, Seen};
use super::plan::{Plan, plan};
use super::queue::{Pushed, Queue};
use super::runtime::{Abort, Runtime};
use super::{ActionSink, Intent};
use crate::telemetry::events::{ActionsEnded, QueueFull, QueueSampled};

/// Tells the tick that it is now. The process has one clock; this crate has none.
pub type NowTick = Arc<dyn Fn() -> Tick + Send + Sync>;

/// Bounds and waits. See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Actions that may wait.
    pub queue_max: usize,
    /// Calls at once.
    pub in_flight_max: usize,
    /// Outcomes that may wait to be read.
    pub outcomes_max: usize,
    /// Waits between tries.
    pub backoff: Backoff,
    /// Actions of ticks up to this one may have been called although the ledger does not know them:
    /// it was restored from a copy that lagged behind. They are settled, not called. 0 is none.
    pub in_doubt_until: Tick,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            queue_max: 65_536,
            in_flight_max: 256,
            outcomes_max: 65_536,
            backoff: Backoff::default(),
            in_doubt_until: 0,
        }
    }
}

/// The queue's name in telemetry.
const QUEUE: &str = "actions";
/// How often outcomes that found no room are offered again.
const OFFER_AGAIN: Duration = Duration::from_millis(5);

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What the dispatcher did since its start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Counts { $($(#[$doc])* pub $name: u64,)* }

        #[derive(Default)]
        pub(super) struct Counters { $(pub(super) $name: AtomicU64,)* }

        impl Counters {
            fn read(&self) -> Counts {
                Counts { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counts! {
    /// Actions submitted.
    submitted,
    /// Replaced by a newer wish while waiting.
    superseded,
    /// Ended because the queue was full or closed.
    overflowed,
    /// Submitted again with an id already seen.
    duplicates,
    /// Calls made, retries included.
    calls,
    /// Calls that repeat an earlier one.
    retries,
    /// Read-backs made.
    read_backs,
    /// Ended: the platform holds the desired value.
    applied,
    /// Ended: it was true already.
    no_change,
    /// Ended: refused.
    rejected,
    /// Ended: not executed in time.
    expired,
    /// Reported as unknown (may still end otherwise).
    unknown,
    /// Commits of the ledger that failed.
    ledger_failures,
}

enum News {
    Ended {
        intent: Intent,
        outcome: Outcome,
    },
    Observed {
        entity: EntityKey,
        actual: omnify_decision::control::Actual,
    },
    Parked {
        id: Id,
        owner: EntityKey,
    },
    /// Submitted again after it had ended.
    Known {
        id: Id,
        owner: EntityKey,
        outcome: Outcome,
    },
}

/// Ended actions by kind and outcome.
type Tally = BTreeMap<(&'static str, &'static str), u64>;

fn count(tally: &mut Tally, intent: &Intent, outcome: &Outcome) {
    *tally.entry((intent.desired.kind().name(), outcome_name(outcome))).or_default() += 1;
}

const fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Applied { .. } => "applied",
        Outcome::NoChange => "no_change",
        Outcome::Rejected { .. } => "rejected",
        Outcome::Expired => "expired",
        Outcome::Unknown => "unknown",
    }
}

struct State {
    queue: Queue,
    news: Vec<News>,
    /// What ended since the last round, for telemetry.
    ended: Tally,
    /// Of these, what a full queue ended.
    displaced: u64,
    /// Actions of an earlier process that are being settled: submitted again they change nothing.
    resumed: HashSet<Id>,
    /// Actions of an earlier process that have ended. Submitted again they are answered as they ended,
    /// and never wait in the queue, where a newer wish would end them otherwise.
    settled: HashMap<Id, Outcome>,
    /// No more submissions; the thread ends when nothing is left.
    closing: bool,
    /// The thread ends now.
    abandoned: bool,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    counters: Arc<Counters>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements; a panic elsewhere changes nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, news: News) {
        self.lock().news.push(news);
        self.wake.notify_one();
    }
}

impl Surroundings for Shared {
    fn overtaken(&self, intent: &Intent) -> bool {
        let state = self.lock();
        state.abandoned || state.queue.has_newer(intent)
    }

    fn report(&self, intent: &Intent, interim: Interim) {
        self.tell(match interim {
            Interim::Observed(entity, actual) => News::Observed { entity, actual },
            Interim::Parked => News::Parked { id: intent.id, owner: intent.owner.clone() },
        });
    }
}

/// See the module.
pub struct Dispatcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    ended: Receiver<()>,
}

impl Dispatcher {
    /// Starts executing. Actions that the ledger lists as unfinished are settled first; their
    /// owners take nothing new until then. Outcomes and read-backs come out of the receiver.
    pub fn start(
        sink: Arc<dyn ActionSink>,
        ledger: Ledger,
        options: Options,
        now: NowTick,
        runtime: Arc<dyn Runtime>,
    ) -> Result<(Dispatcher, Receiver<Control>), LedgerError> {
        let (mut dispatcher, outcomes, dispatching, ending) =
            Dispatcher::assemble(sink, ledger, options, now, runtime);
        let thread = std::thread::Builder::new()
            .name("actions".into())
            .spawn(move || {
                dispatching.run();
                drop(ending);
            })
            .map_err(|source| LedgerError::Io {
                what: "start the thread of",
                path: "actions".into(),
                source,
            })?;
        dispatcher.thread = Some(thread);
        Ok((dispatcher, outcomes))
    }

    /// The same without a thread: what it would do is to be stepped.
    pub fn stepped(
        sink: Arc<dyn ActionSink>,
        ledger: Ledger,
        options: Options,
        now: NowTick,
        runtime: Arc<dyn Runtime>,
    ) -> (Dispatcher, Receiver<Control>, Dispatching) {
        let (dispatcher, outcomes, dispatching, _) =
            Dispatcher::assemble(sink, ledger, options, now, runtime);
        (dispatcher, outcomes, dispatching)
    }

    fn assemble(
        sink: Arc<dyn ActionSink>,
        ledger: Ledger,
        options: Options,
        now: NowTick,
        runtime: Arc<dyn Runtime>,
    ) -> (Dispatcher, Receiver<Control>, Dispatching, Sender<()>) {
        let counters = Arc::new(Counters::default());
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: Queue::new(options.queue_max),
                news: Vec::new(),
                ended: Tally::new(),
                displaced: 0,
                resumed: HashSet::new(),
                settled: ledger.ended().collect(),
                closing: false,
                abandoned: false,
            }),
            wake: Condvar::new(),
            counters: counters.clone(),
        });
        let (outcomes, receiver) = crossbeam_channel::bounded(options.outcomes_max);
        let (ending, ended) = crossbeam_channel::bounded(1);
        let capabilities = sink.capabilities();
        let backoff = options.backoff;
        let runs = runtime.clone();
        let mut dispatching = Dispatching {
            driver: Arc::new(Driver { sink, capabilities, backoff, now, runtime: runs, counters }),
            shared: shared.clone(),
            ledger,
            options,
            runtime,
            outcomes,
            waiting: VecDeque::new(),
            tasks: HashMap::new(),
            parked: HashMap::new(),
        };
        // Before anything can be submitted: the owners of unfinished actions are busy.
        dispatching.resume();
        (Dispatcher { shared, thread: None, ended }, receiver, dispatching, ending)
    }

    /// Takes an action without waiting for anything. One that an earlier process left unfinished is
    /// being settled already and will be answered then; one that it ended is answered as it ended.
    /// What comes back ended right here, without a call, and belongs among the caller's next inputs:
    /// the older wish that this one replaces, or what had to give way because the queue is full (this
    /// one itself, if only pauses wait).
    #[must_use = "the acknowledgement that comes back is an input of the stage"]
    pub fn submit(&self, action: Action) -> Option<Control> {
        let counters = &self.shared.counters;
        counters.submitted.fetch_add(1, Relaxed);
        let mut state = self.shared.lock();
        if state.resumed.contains(&action.id) {
            drop(state);
            counters.duplicates.fetch_add(1, Relaxed);
            return None;
        }
        if let Some(outcome) = state.settled.get(&action.id).cloned() {
            let Action { id, owner, .. } = action;
            state.news.push(News::Known { id, owner, outcome });
            drop(state);
            counters.duplicates.fetch_add(1, Relaxed);
            self.shared.wake.notify_one();
            return None;
        }
        let pushed = if state.closing {
            Pushed::Displaced(action.into())
        } else {
            state.queue.push(action.into())
        };
        let (counter, ended) = match pushed {
            Pushed::Queued => {
                drop(state);
                self.shared.wake.notify_one();
                return None;
            }
            Pushed::Superseded(older) => (&counters.superseded, older),
            Pushed::Displaced(intent) => {
                state.displaced += 1;
                (&counters.overflowed, intent)
            }
        };
        count(&mut state.ended, &ended, &Outcome::Expired);
        drop(state);
        counter.fetch_add(1, Relaxed);
        counters.expired.fetch_add(1, Relaxed);
        self.shared.wake.notify_one();
        Some(acknowledge(ended.id, ended.owner, Outcome::Expired))
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.shared.counters.read()
    }

    /// Actions that wait for their owner or for a free call.
    pub fn queued(&self) -> usize {
        self.shared.lock().queue.len()
    }

    /// Takes nothing more, finishes what waits and what is in flight for at most `grace`, then
    /// stops. True when all of it ended; what did not is settled at the next start.
    pub fn stop(mut self, grace: Duration) -> bool {
        self.shared.lock().closing = true;
        self.shared.wake.notify_one();
        let drained =
            self.ended.recv_timeout(grace) != Err(crossbeam_channel::RecvTimeoutError::Timeout);
        self.abandon();
        drained
    }

    fn abandon(&mut self) {
        self.shared.lock().abandoned = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the action thread panicked; the ledger settles it at the next start");
        }
    }
}

impl Drop for Dispatcher {
    /// Stops at once; unfinished actions are settled at the next start.
    fn drop(&mut self) {
        self.abandon();
    }
}

fn acknowledge(action: Id, owner: EntityKey, outcome: Outcome) -> Control {
    Control::Acknowledge { action, owner, outcome }
}

/// The work of the thread.
pub struct Dispatching {
    driver: Arc<Driver>,
    shared: Arc<Shared>,
    ledger: Ledger,
    options: Options,
    runtime: Arc<dyn Runtime>,
    outcomes: Sender<Control>,
    /// Outcomes that found no room; at most a few per action in flight.
    waiting: VecDeque<Control>,
    tasks: HashMap<Id, Abort>,
    parked: HashMap<Id, EntityKey>,
}

/// What a round begins with.
struct Round {
    news: Vec<News>,
    starts: Vec<Intent>,
}

impl Dispatching {
    fn run(mut self) {
        self.hand_out();
        while let Some(round) = self.wait() {
            self.work(round);
        }
        for abort in self.tasks.into_values() {
            abort();
        }
    }

    /// Does what there is to do; false when there is nothing.
    pub fn step(&mut self) -> bool {
        self.hand_out();
        let shared = self.shared.clone();
        let round = self.round(&mut shared.lock());
        round.map(|round| self.work(round)).is_some()
    }

    fn work(&mut self, round: Round) {
        let now = (self.driver.now)();
        let mut answers = Vec::new();
        for news in round.news {
            self.take_news(news, now, &mut answers);
        }
        // An owner released above may begin in the same round.
        let starts: Vec<_> =
            round.starts.into_iter().filter_map(|i| self.admit(i, now, &mut answers)).collect();
        if let Err(error) = self.ledger.commit(now) {
            self.shared.counters.ledger_failures.fetch_add(1, Relaxed);
            tracing::error!(%error, source = ?std::error::Error::source(&error),
                    held_back = starts.len(), "no action leaves while the ledger cannot be written");
            for intent in starts {
                self.answer(&intent, Outcome::Expired, &mut answers);
                self.shared.lock().queue.release(&intent.owner);
            }
        } else {
            for intent in starts {
                let doubt = intent.tick <= self.options.in_doubt_until;
                self.spawn(intent, if doubt { Entry::Settle } else { Entry::Call });
            }
        }
        self.waiting.extend(answers);
        self.hand_out();
        self.tell_telemetry();
    }

    /// Settles what an earlier process left.
    fn resume(&mut self) {
        let mut newest: BTreeMap<EntityKey, Intent> = BTreeMap::new();
        for intent in self.ledger.unfinished() {
            // One action in flight per owner (invariant 6), so there is one; were there more, the
            // newest says what is to be true.
            if let Some(older) = newest.insert(intent.owner.clone(), intent) {
                tracing::warn!(action = %older.id, owner = %older.owner, "two unfinished actions");
                self.ledger.end(older.id, (self.driver.now)(), &Outcome::Unknown);
                self.waiting.push_back(acknowledge(older.id, older.owner, Outcome::Unknown));
            }
        }
        for intent in newest.into_values() {
            let mut state = self.shared.lock();
            state.queue.make_busy(&intent.owner);
            state.resumed.insert(intent.id);
            drop(state);
            self.spawn(intent, Entry::Settle);
        }
    }

    /// Waits for something to do; `None` when it is time to end.
    fn wait(&mut self) -> Option<Round> {
        let shared = self.shared.clone();
        let mut state = shared.lock();
        loop {
            if state.abandoned {
                return None;
            }
            if let Some(round) = self.round(&mut state) {
                return Some(round);
            }
            let idle = self.tasks.is_empty() && self.waiting.is_empty() && state.queue.len() == 0;
            if state.closing && idle {
                return None;
            }
            state = if self.waiting.is_empty() {
                shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner)
            } else {
                drop(state);
                self.hand_out();
                let state = shared.lock();
                match self.waiting.is_empty() {
                    true => state,
                    false => {
                        let waited = shared.wake.wait_timeout(state, OFFER_AGAIN);
                        waited.unwrap_or_else(PoisonError::into_inner).0
                    }
                }
            };
        }
    }

    fn round(&self, state: &mut State) -> Option<Round> {
        let running = self.tasks.len() - self.parked.len();
        let room = match self.waiting.is_empty() {
            true => self.options.in_flight_max.saturating_sub(running),
            false => 0,
        };
        let news = std::mem::take(&mut state.news);
        for news in &news {
            if let News::Ended { intent, .. } = news {
                state.queue.release(&intent.owner);
            }
        }
        let starts: Vec<_> = std::iter::from_fn(|| state.queue.pop()).take(room).collect();
        (!news.is_empty() || !starts.is_empty()).then_some(Round { news, starts })
    }

    fn take_news(&mut self, news: News, now: Tick, answers: &mut Vec<Control>) {
        match news {
            News::Observed { entity, actual } => {
                answers.push(Control::Observe { entity, actual });
            }
            News::Parked { id, owner } => {
                self.shared.counters.unknown.fetch_add(1, Relaxed);
                self.parked.insert(id, owner.clone());
                answers.push(acknowledge(id, owner, Outcome::Unknown));
            }
            News::Known { id, owner, outcome } => answers.push(acknowledge(id, owner, outcome)),
            News::Ended { intent, outcome } => {
                self.tasks.remove(&intent.id);
                self.parked.remove(&intent.id);
                let mut state = self.shared.lock();
                if state.resumed.remove(&intent.id) {
                    state.settled.insert(intent.id, outcome.clone());
                }
                drop(state);
                self.ledger.end(intent.id, now, &outcome);
                self.answer(&intent, outcome, answers);
            }
        }
    }

    /// Decides whether an action begins, and enters it in the ledger if so. What needs no call
    /// ends here.
    fn admit(
        &mut self,
        mut intent: Intent,
        now: Tick,
        answers: &mut Vec<Control>,
    ) -> Option<Intent> {
        let ended = match self.ledger.seen(intent.id) {
            Some(Seen::Unfinished) => {
                // It is in flight already, under the same owner, and will be answered then.
                debug_assert!(false, "invariant 6: {} was handed out while in flight", intent.id);
                None
            }
            Some(Seen::Ended(outcome)) => {
                self.shared.counters.duplicates.fetch_add(1, Relaxed);
                answers.push(acknowledge(intent.id, intent.owner.clone(), outcome));
                None
            }
            None if now > intent.expires => Some(Outcome::Expired),
            None => {
                let capabilities = &self.driver.capabilities;
                match plan(capabilities, &intent.desired, intent.before.as_ref()) {
                    Plan::Send(setting) => {
                        intent.desired = setting;
                        self.ledger.intend(&intent);
                        return Some(intent);
                    }
                    Plan::NoChange => Some(Outcome::NoChange),
                    Plan::Refuse(error) => Some(Outcome::Rejected {
                        class: error.class.name().to_owned(),
                        message: error.message,
                    }),
                }
            }
        };
        if let Some(outcome) = ended {
            self.answer(&intent, outcome, answers);
        }
        self.shared.lock().queue.release(&intent.owner);
        None
    }

    fn answer(&self, intent: &Intent, outcome: Outcome, answers: &mut Vec<Control>) {
        let counters = &self.shared.counters;
        let counter = match &outcome {
            Outcome::Applied { .. } => &counters.applied,
            Outcome::NoChange => &counters.no_change,
            Outcome::Rejected { .. } => &counters.rejected,
            Outcome::Expired => &counters.expired,
            Outcome::Unknown => &counters.unknown,
        };
        counter.fetch_add(1, Relaxed);
        count(&mut self.shared.lock().ended, intent, &outcome);
        answers.push(acknowledge(intent.id, intent.owner.clone(), outcome));
    }

    fn spawn(&mut self, intent: Intent, entry: Entry) {
        let (driver, shared, id) = (self.driver.clone(), self.shared.clone(), intent.id);
        let task = Box::pin(async move {
            let run = AssertUnwindSafe(driver.run(&intent, entry, &*shared)).catch_unwind();
            let outcome = run.await.unwrap_or_else(|_| {
                tracing::error!(action = %intent.id, "the sink panicked; what it did is unknown");
                Outcome::Unknown
            });
            shared.tell(News::Ended { intent, outcome });
        });
        self.tasks.insert(id, self.runtime.spawn(task));
    }

    fn tell_telemetry(&self) {
        let mut state = self.shared.lock();
        let (ended, displaced) =
            (std::mem::take(&mut state.ended), std::mem::take(&mut state.displaced));
        let depth = state.queue.len();
        drop(state);
        for ((kind, outcome), count) in ended {
            ActionsEnded { kind, outcome, count }.emit();
        }
        if displaced > 0 {
            QueueFull { queue: QUEUE, count: displaced }.emit();
        }
        QueueSampled { queue: QUEUE, depth }.emit();
    }

    fn hand_out(&mut self) {
        while let Some(control) = self.waiting.pop_front() {
            match self.outcomes.try_send(control) {
                Ok(()) => {}
                Err(crossbeam_channel::TrySendError::Full(control)) => {
                    self.waiting.push_front(control);
                    return;
                }
                // Nobody listens any more; the ledger has them.
                Err(crossbeam_channel::TrySendError::Disconnected(_)) => self.waiting.clear(),
            }
        }
    }
}
