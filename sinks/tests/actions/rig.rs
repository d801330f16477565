//! A dispatcher with its ledger, a fake platform and a clock that stands still until moved.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use crossbeam_channel::Receiver;
use futures::future::{BoxFuture, FutureExt};
use omnify_decision::action::{Action, Id, Setting, Status};
use omnify_decision::control::{Actual, Control, Outcome};
use omnify_operators::model::{EntityKey, Tick};
use omnify_sinks::action::dispatcher::Backoff;
use omnify_sinks::action::{
    ActionSink, Capabilities, Dispatcher, ExecError, ExecOutcome, Intent, Ledger, Market,
    MarketOptions, NowTick, Options,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::platform::Platform;

/// Now, unless a test moves it.
pub(crate) const NOW: Tick = 1_000_000;
/// When actions expire, unless a test says otherwise.
pub(crate) const EXPIRES: Tick = NOW + 3_600_000;
/// Long enough that only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Rig {
    pub(crate) dispatcher: Option<Dispatcher>,
    pub(crate) outcomes: Receiver<Control>,
    pub(crate) platform: Platform,
    pub(crate) dir: TempDir,
    clock: Arc<AtomicU64>,
    options: Options,
    sink: Arc<dyn ActionSink>,
    runtime: Runtime,
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub(crate) fn quick() -> Options {
    let base = Duration::from_millis(1);
    let backoff = Backoff { base, cap: 4 * base, attempts_max: 6 };
    Options { backoff, ..Options::default() }
}

/// A client of `platform` that waits for `call_timeout`.
pub(crate) fn market(platform: &Platform, call_timeout: Duration) -> Market {
    let mut options = MarketOptions::at(&platform.base);
    options.call_timeout = call_timeout;
    Market::new(options).unwrap()
}

/// Tells the platform which calls are under way.
struct Watched(Arc<dyn ActionSink>, Platform);

impl ActionSink for Watched {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn execute<'a>(&'a self, intent: &'a Intent) -> BoxFuture<'a, ExecOutcome> {
        let (call, outcome) = (self.1.enter(&intent.owner), self.0.execute(intent));
        async move {
            let _call = call;
            outcome.await
        }
        .boxed()
    }

    fn read_back<'a>(&'a self, entity: &'a EntityKey) -> BoxFuture<'a, Result<Actual, ExecError>> {
        self.0.read_back(entity)
    }
}

impl Rig {
    /// With calls that are waited for as long as it takes.
    pub(crate) fn new() -> Rig {
        Rig::with(quick(), |platform| Arc::new(market(platform, PATIENCE)))
    }

    /// With calls that are given up quickly, for tests of silence.
    pub(crate) fn impatient() -> Rig {
        Rig::with(quick(), |platform| Arc::new(market(platform, Duration::from_millis(200))))
    }

    pub(crate) fn with(
        options: Options,
        sink: impl FnOnce(&Platform) -> Arc<dyn ActionSink>,
    ) -> Rig {
        let mut rig = Rig::stopped(options, sink);
        rig.start();
        rig
    }

    /// Without a dispatcher yet, so that a test can write the ledger first.
    pub(crate) fn stopped(
        options: Options,
        sink: impl FnOnce(&Platform) -> Arc<dyn ActionSink>,
    ) -> Rig {
        let runtime = runtime();
        let platform = Platform::start(runtime.handle());
        Rig {
            dispatcher: None,
            outcomes: crossbeam_channel::never(),
            sink: Arc::new(Watched(sink(&platform), platform.clone())),
            platform,
            dir: tempfile::tempdir().unwrap(),
            clock: Arc::new(AtomicU64::new(NOW)),
            options,
            runtime,
        }
    }

    pub(crate) fn start(&mut self) {
        let clock = self.clock.clone();
        let now: NowTick = Arc::new(move || clock.load(SeqCst));
        let ledger = Ledger::open(self.dir.path()).unwrap();
        let handle = self.runtime.handle().clone();
        let (dispatcher, outcomes) =
            Dispatcher::start(self.sink.clone(), ledger, self.options, now, Arc::new(handle))
                .unwrap();
        (self.dispatcher, self.outcomes) = (Some(dispatcher), outcomes);
    }

    /// As `kill -9` would: nothing is finished, nothing is said.
    pub(crate) fn crash(&mut self) {
        self.dispatcher = None;
        self.outcomes = crossbeam_channel::never();
        self.platform.until_left();
    }

    pub(crate) fn dispatcher(&self) -> &Dispatcher {
        self.dispatcher.as_ref().unwrap()
    }

    pub(crate) fn submit(&self, action: Action) {
        assert_eq!(self.dispatcher().submit(action), None);
    }

    pub(crate) fn set_clock(&self, tick: Tick) {
        self.clock.store(tick, SeqCst);
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The next control.
    pub(crate) fn next(&self) -> Control {
        self.outcomes.recv_timeout(PATIENCE).expect("an outcome, before patience ends")
    }

    /// The next acknowledgement, read-backs skipped.
    pub(crate) fn ack(&self) -> (Id, Outcome) {
        loop {
            if let Control::Acknowledge { action, outcome, .. } = self.next() {
                return (action, outcome);
            }
        }
    }

    /// Submits and waits for the outcome.
    pub(crate) fn run(&self, action: Action) -> Outcome {
        let id = action.id;
        self.submit(action);
        let (acked, outcome) = self.ack();
        assert_eq!(acked, id);
        outcome
    }
}

pub(crate) fn owner(n: u32) -> EntityKey {
    format!("acme/meta/act 1/c{n}").parse().unwrap()
}

pub(crate) fn id(n: u32) -> Id {
    let mut id = [0; 16];
    id[12..].copy_from_slice(&n.to_be_bytes());
    Id(id)
}

pub(crate) fn action(n: u32, owner: EntityKey, desired: Setting) -> Action {
    Action {
        id: id(n),
        decision: id(0),
        tick: NOW,
        expires: EXPIRES,
        owner,
        desired,
        before: None,
        reasons: vec!["pacing"],
    }
}

pub(crate) fn bid(bid_micros: i64) -> Setting {
    Setting::Bid { bid_micros }
}

pub(crate) fn pause() -> Setting {
    Setting::Status { status: Status::Paused }
}

pub(crate) fn applied(effective: Setting) -> Outcome {
    Outcome::Applied { effective }
}

/// An entity with a bid, a budget and a status.
pub(crate) fn actual(bid_micros: i64) -> Actual {
    Actual {
        bid_micros: Some(bid_micros),
        budget_micros: Some(9_000_000),
        status: Some(Status::Enabled),
    }
}
