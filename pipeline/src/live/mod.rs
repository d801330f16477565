//! The live engine: sources at one end, the page, the platforms and the history at the other.
//!
//! ```text
//! POST /v1/events ─► Push ─┐
//! market poller ───────────┴► Intake ─► ingest loop ─► LiveQueue ─► engine (workers, decisions)
//! acknowledgements, models, kills ─────────┘ closes ticks                 │
//!        ▲                                                                ▼
//!        └──────────────── Dispatcher ◄─────────────────────── actions, board, history
//! ```
//!
//! | file | duty |
//! |---|---|
//! | `mod.rs` | starts everything, stops it in order |
//! | `intake` | the bounded door that every source sends its batches through |
//! | `entrance` | the way in, as an earlier process left it |
//! | `ingest` | the loop that closes ticks and keeps the account of rows |
//! | `push` | `POST /v1/events` |
//! | `orders` | what people tell the engine: approvals, kills |
//! | `batches` | the memory of idempotency keys |
//! | `observed` | which readings of settings are news |
//! | `overload` | what gives way when the engine cannot keep up |
//! | `past` | where an earlier process stood, and the history it wrote |
//! | `bidder` | `POST /v1/bids` |
//! | `executor` | from the configuration to a dispatcher |
//! | `access` | listening address, tokens, host names |
//! | `model_file` | watches `decision.model_file` |
//! | `stepped` | the same engine without threads, for simulations |
//! | `market` | reads the feed and the settings of the simulator's ad platform |
//!
//! # Contract
//! Everything a decision depends on enters as an input of a tick, in the order in which the history
//! records it: replaying the history gives the same decisions. When a queue is at its bound the
//! stage before it waits, up to the sources: a push is answered 429, a poller stops polling.
//!
//! With a state folder, what is acknowledged survives a crash (see [`crate::durable`]); without one
//! (`omnify demo`, tests) a push is acknowledged when its tick is closed.
//!
//! # When the disk is full
//! The journal and the history keep what they have and try again for `state.disk_patience`; meanwhile their
//! queues fill, the engine waits, pushes are answered 429 and `/readyz` says so. If there is still
//! no room the engine stops and the process ends with exit code 4; what was acknowledged is there.

mod access;
mod batches;
mod bidder;
mod entrance;
mod executor;
mod ingest;
mod intake;
pub mod market;
mod model_file;
mod observed;
mod orders;
mod overload;
mod past;
mod push;
mod stepped;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use omnify_config::{Checked, ExecutorKind};
use omnify_decision::control::Control;
use omnify_operators::model::{Registry, RegistryView, Tick};
use omnify_sinks::disk::{Disk, FileSystem};
use omnify_sinks::serve::{self, AppState, Board, BoardConfig, BuildInfo, Snapshot};
use omnify_sinks::telemetry;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};

use crate::clock::Clock;
use crate::cluster::{Cluster, Leader};
use crate::decode::Door;
use crate::durable::{
    self, Claimed, Journal, Mirror, MirrorOptions, Snapshots, Strict, Surroundings, in_doubt_until,
};
use crate::engine::{
    self, Decider, Progress, Recorder, Resume, RunSummary, SharedBook, Wakers, Watch, Watches,
};
use crate::kafka::{Outputs, Positions};
use crate::setup::{self, Mode};

use self::entrance::{Entrance, told};
use self::past::{Past, Place};

pub use access::{ListenError, listen};
pub(crate) use access::{hosts, tokens};
pub use intake::{Arrival, Intake};
#[cfg(test)]
pub(crate) use intake::{Arrivals, channel};
pub use past::{START, other_config};
pub use stepped::{Pushed, Stepped, SteppedSetup};

/// Closed ticks that may wait for the workers.
const QUEUE_TICKS: usize = 8;
/// Control inputs that may wait for the next tick.
const QUEUE_CONTROLS: usize = 65_536;
/// Least time between two publications to readers, in real time.
const PUBLISH_EVERY_MS: u64 = 100;
/// How often it is looked whether all is settled.
const SETTLE_EVERY: Duration = Duration::from_millis(5);
/// How often it is looked whether a source failed.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Time that tasks of the runtime get to end.
const RUNTIME_GRACE: Duration = Duration::from_secs(1);

/// How the engine's threads ended: totals, and the failure of a feed if there was one.
type EngineResult = anyhow::Result<(RunSummary, Option<anyhow::Error>)>;

/// How a live engine is set up.
pub struct Setup {
    /// Configuration.
    pub config: Arc<Checked>,
    /// The clock: the system's, or one that the source of arrivals moves.
    pub clock: Clock,
    /// Engine time that passes in one unit of real time; 1 on the system clock.
    pub speed: u64,
    /// Where the page and the API are served, if at all.
    pub listener: Option<TcpListener>,
    /// Where the history is written, if one is.
    pub history: Option<HistoryAt>,
    /// Folder of journal and snapshots; without it nothing survives the process but the history.
    pub state: Option<PathBuf>,
    /// Folder of the ledger of actions; `ledger` in the state folder where there is a copy.
    pub ledger: PathBuf,
    /// Where the state and the history are copied to, if they are.
    pub mirror: Option<MirrorOptions>,
    /// Control inputs of the first tick.
    pub controls: Vec<Control>,
}

/// Where a history is written.
#[derive(Clone, Debug)]
pub enum HistoryAt {
    /// A new one in this very folder.
    Folder(PathBuf),
    /// Below this folder: the one that the state folder was last written with, if it fits, otherwise
    /// a new one named by the time.
    Below(PathBuf),
}

/// A running live engine.
pub struct Live {
    intake: Intake,
    door: Arc<Door>,
    controls: Sender<Control>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    address: Option<SocketAddr>,
    decided: Arc<AtomicU64>,
    written: Option<Arc<Progress>>,
    ended: watch::Receiver<bool>,
    stop: Sender<()>,
    ingest: JoinHandle<()>,
    engine: JoinHandle<EngineResult>,
    journal: Option<Journal>,
    mirror: Option<Mirror>,
    stop_within: Duration,
    cluster: Option<Cluster>,
    history: Option<PathBuf>,
    positions: Positions,
    watches: Watches,
    http: Option<oneshot::Sender<()>>,
    runtime: Runtime,
}

impl Live {
    /// Starts the engine; returns when it stands where an earlier process left it. Everything that
    /// can be refused is refused here.
    pub fn start(setup: Setup) -> anyhow::Result<Live> {
        Live::start_with(setup, None)
    }

    /// The same, with workers in further processes, which are waited for.
    pub fn start_with(setup: Setup, leader: Option<Leader>) -> anyhow::Result<Live> {
        let Setup { config, clock, speed, listener, history, state, ledger, mirror, mut controls } =
            setup;
        let speed = speed.max(1);
        let registry = Arc::new(setup::registry(&config));
        let view = RegistryView::new(registry.clone());
        let spec = Arc::new(setup::feature_spec(&config, Mode::Live)?);
        let tokens = access::tokens(&config)?;
        let metrics = telemetry::install()?;
        let door = Arc::new(Door::new(registry.clone(), setup::limits(&config)));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("http")
            .enable_all()
            .build()?;
        if config.guardrails.kill {
            controls.push(Control::Kill { tenant: None });
        }
        let (positions, outputs) = (Positions::default(), Outputs::start(&config, &spec.windows)?);
        let mut told = told(positions.clone(), outputs.as_ref());
        let claimed = match (mirror, &state) {
            (Some(options), Some(state)) => Some(Claimed::take(options, state, runtime.handle())?),
            _ => None,
        };
        let copy = claimed.as_ref().map(Claimed::copy);
        let (mut strict, mut acknowledged) = (Strict::default(), None);
        if claimed.as_ref().is_some_and(Claimed::is_strict) {
            let (deferred, now, reached) = Strict::between(told);
            (strict, told, acknowledged) = (deferred, now, Some(reached));
        }
        let disk: Arc<dyn Disk> = Arc::new(FileSystem);
        let claim = claimed.as_ref();
        let place = Place { disk: &disk, state: state.as_deref(), history, claimed: claim };
        let past = Past::open(place, &config, &registry, &spec, &clock, told)?;
        let Past { stage, writer, history, journal, snapshots_dir, restore, tail, engine, last } =
            past;
        let start = |(mut journal, writing): (Journal, durable::Writing)| {
            journal.start(writing).map(|()| journal)
        };
        let journal = journal.map(start).transpose()?;
        let until = tail.as_ref().map(|tail| tail.last);
        let in_doubt = state.as_deref().map_or(Ok(0), |state| in_doubt_until(state, last))?;
        let copied = (copy.clone(), in_doubt);
        let (inputs, inputs_out) = bounded(QUEUE_CONTROLS);
        let (execution, outcomes) =
            match executor::start(&config, &ledger, &clock, runtime.handle(), &inputs, copied)? {
                Some((execution, outcomes)) => (Some(execution), outcomes),
                None => (None, crossbeam_channel::never()),
            };
        let durable = journal.as_ref().map(|journal| journal.durable().clone());
        let recorder = match writer {
            Some(writer) => {
                let file_time = Some(config.history.file_time.duration());
                let (rows, journal) = (config.engine.queue_history, durable.clone());
                let patience = config.state.disk_patience.duration();
                Some(Recorder::start(writer, view.clone(), rows, patience, file_time, journal)?)
            }
            None => None,
        };
        let snapshots = match (&journal, snapshots_dir) {
            (Some(journal), Some(dir)) => Some(Snapshots::start(Surroundings {
                disk,
                dir,
                keep: config.state.snapshots_kept,
                view: view.clone(),
                config_toml: config.outcome_toml(),
                history: recorder.as_ref().map(|recorder| recorder.committed.clone()),
                journal: journal.durable().clone(),
                journal_from: journal.keep_from(),
                copy: copy.clone(),
            })?),
            _ => None,
        };
        let written = recorder.as_ref().map(|recorder| recorder.progress.clone());
        let board = Board::new(board_config(&config, &spec.windows, speed));
        let published = board.subscribe();
        let book = SharedBook::new(RwLock::default());
        let wakers = Wakers::default();
        let shared = (&door, &positions, &wakers);
        let recovering = until.is_some() || leader.is_some();
        let Entrance { intake, arrivals, batches, queue, feeds } =
            Entrance::new(&config, shared, &engine.inputs, (restore, tail), recovering);

        let decided = Arc::<AtomicU64>::default();
        let watches = Watches::default();
        let mirror = match (claimed, state) {
            (Some(claimed), Some(state)) => {
                let folders = durable::Folders { state, history: history.clone() };
                Some(claimed.start(folders, strict)?)
            }
            _ => None,
        };
        if let Some(copy) = copy.clone() {
            let watch: Watch = Arc::new(move || copy.problems());
            watches.lock().unwrap_or_else(PoisonError::into_inner).push(watch);
        }
        let snapshot_busy = snapshots.as_ref().map(Snapshots::busy);
        let decider = Decider {
            stage,
            view: view.clone(),
            windows: spec.windows.len(),
            recorder,
            execution,
            board: Some(board),
            book: book.clone(),
            decided: decided.clone(),
            clock: clock.clone(),
            durable: durable.into_iter().chain(acknowledged).collect(),
            snapshots,
            outputs,
            watches: watches.clone(),
            resume: journal.is_some().then_some(Resume { state: engine, until: last }),
        };

        let (address, http) = match listener {
            Some(listener) => {
                let address = listener.local_addr()?;
                let lag_clock = clock.clone();
                let push = push::HttpPush::new(door.clone(), intake.clone(), batches.clone());
                let state = AppState {
                    metrics: Some(metrics),
                    ingest: Some(Arc::new(push)),
                    bidder: Some(Arc::new(bidder::BookBidder::new(book))),
                    orders: Some(Arc::new(orders::HttpOrders::new(intake.clone()))),
                    hosts: access::hosts(&address, &tokens),
                    tokens,
                    present: Some(Arc::new(move || lag_clock.now())),
                    limits: limits(&config, speed),
                    build: BuildInfo { boot: Clock::System.now(), ..BuildInfo::default() },
                    ..AppState::new(published.clone())
                };
                (Some(address), Some(serve_on(&runtime, listener, state)?))
            }
            None => (None, None),
        };

        let (stop, stopped) = bounded(1);
        let (ending, ended) = watch::channel(false);
        let queue_frames = config.engine.queue_frames;
        let http_port = address.map(|address| address.port());
        let joined = leader.map(|leader| leader.join(&registry, queue_frames, http_port));
        let (others, mut cluster) = joined.transpose()?.unzip();
        let ended_by_itself = stop.clone();
        let engine = std::thread::Builder::new().name("decide".into()).spawn(move || {
            let result = engine::run(spec, view, feeds, queue_frames, wakers, decider, others);
            ending.send_replace(true);
            // The ingest loop, which may be waiting for room, must not wait for ever.
            let _ = ended_by_itself.try_send(());
            result
        })?;
        if let Some(until) = until {
            tracing::info!(until, "working through the journal");
            while decided.load(Ordering::Acquire) < until && !*ended.borrow() {
                std::thread::sleep(SETTLE_EVERY);
            }
        }
        intake.recover(false);
        if let Some(cluster) = &mut cluster {
            cluster.take_rows(config.engine.queue_events, &door, &intake, &positions)?;
            watches.lock().unwrap_or_else(PoisonError::into_inner).push(cluster.problems());
        }
        model_file::watch(&config, &inputs, intake.clone())?;
        let durable = journal.as_ref().zip(snapshot_busy).map(|(journal, snapshot_busy)| {
            ingest::DurableEnds {
                journal: journal.sender(),
                snapshot_busy,
                snapshot_every: config.state.snapshot_every.duration(),
                stop_within: config.state.stop_within.duration(),
                positions: durable::Positions::from(positions.all()),
                batches,
                door: door.clone(),
                copy,
            }
        });
        let ends = ingest::Ends {
            arrivals,
            outcomes,
            inputs: inputs_out,
            stopped,
            queue,
            clock,
            tick_every: config.engine.tick.duration(),
            decided: decided.clone(),
            durable,
            last,
            level: 0,
        };
        let ingest = std::thread::Builder::new()
            .name("ingest".into())
            .spawn(move || ingest::Ingest::new(ends, controls).run())?;
        telemetry::events::Started { version: env!("CARGO_PKG_VERSION") }.emit();
        Ok(Live {
            intake,
            door,
            controls: inputs,
            snapshots: published,
            address,
            decided,
            written,
            ended,
            stop,
            ingest,
            engine,
            journal,
            mirror,
            stop_within: config.state.stop_within.duration(),
            cluster,
            history,
            positions,
            watches,
            http,
            runtime,
        })
    }

    /// Where sources send what they read.
    pub fn intake(&self) -> &Intake {
        &self.intake
    }

    /// What decoders of further sources share.
    pub fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// Entities.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.door.registry
    }

    /// Takes control inputs; each takes effect at the next tick.
    pub fn controls(&self) -> &Sender<Control> {
        &self.controls
    }

    /// What readers see.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Address of the page and the API.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Where the partitions of sources are to be read on.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Takes a watch whose problems are shown as the engine's own.
    pub fn watch(&self, watch: Watch) {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner).push(watch);
    }

    /// Folder of the history, if one is written.
    pub fn history(&self) -> Option<&Path> {
        self.history.as_deref()
    }

    /// The runtime of HTTP and executors.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Turns true when the engine has ended, by itself or because it was stopped.
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.ended.clone()
    }

    /// Waits until the process, or a follower, is told to stop (ctrl-c or SIGTERM), the engine ended by itself or its
    /// source failed, or `time` has passed; says `ready` when signals are heeded. A second signal ends
    /// the process at once, with exit code 130.
    pub fn wait(&self, time: Option<Duration>, ready: impl FnOnce()) {
        let mut ended = self.ended.clone();
        self.runtime.block_on(async {
            let mut signals = Signals::heed();
            ready();
            let timer = async {
                match time {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            };
            let failed = async {
                while !self.intake.is_closed() {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            };
            let mut stop_asked = self.cluster.as_ref().map(Cluster::stop_asked);
            let asked = async {
                let asked = match &mut stop_asked {
                    Some(asked) => asked.wait_for(|asked| *asked).await.is_ok(),
                    None => false,
                };
                if !asked {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = timer => {}
                () = asked => {}
                () = failed => {}
                () = signals.next() => tracing::info!("stopping; a second signal ends at once"),
                _ = ended.wait_for(|ended| *ended) => {}
            }
            tokio::spawn(async move {
                signals.next().await;
                std::process::exit(130);
            });
        });
    }

    /// Waits until everything up to `tick` is decided upon and on its way to the disk, or the engine
    /// has ended. Some tick at or after it must have been closed, or be about to be.
    pub fn settle(&self, tick: Tick) {
        let done = || {
            let decided = self.decided.load(Ordering::Acquire) >= tick;
            decided && self.written.as_ref().is_none_or(|written| written.waiting() == 0)
        };
        while !done() && !*self.ended.borrow() {
            std::thread::sleep(SETTLE_EVERY);
        }
    }

    /// Stops in order: sources, the last ticks and the last snapshot, decisions and actions, the
    /// history, the journal, their copy, HTTP.
    pub fn stop(self) -> anyhow::Result<RunSummary> {
        self.intake.close();
        if let Some(mirror) = &self.mirror {
            mirror.stopping(self.stop_within);
        }
        let _ = self.stop.send(());
        let panicked = |what: &str| anyhow::anyhow!("the {what} thread panicked");
        self.ingest.join().map_err(|_| panicked("ingest"))?;
        let result = self.engine.join().map_err(|_| panicked("decision"))?;
        let journal = self.journal.map_or(Ok(()), Journal::finish);
        let mirror = self.mirror.map_or(Ok(()), Mirror::finish);
        drop(self.http);
        self.runtime.shutdown_timeout(RUNTIME_GRACE);
        // Where the copy or the journal failed, everything else followed.
        mirror?;
        journal?;
        let (summary, failure) = result?;
        if let (Some(cluster), None) = (self.cluster, &failure) {
            cluster.end();
        }
        failure.map_or(Ok(summary), Err)
    }
}

/// Requests to end the process.
pub(crate) struct Signals {
    #[cfg(unix)]
    terminate: Option<tokio::signal::unix::Signal>,
    #[cfg(unix)]
    interrupt: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    /// From here on they do not end it by themselves.
    #[cfg(unix)]
    pub(crate) fn heed() -> Signals {
        use tokio::signal::unix::{SignalKind, signal};
        let of = |kind| signal(kind).inspect_err(|error| tracing::warn!(%error, "no signals")).ok();
        Signals { terminate: of(SignalKind::terminate()), interrupt: of(SignalKind::interrupt()) }
    }

    #[cfg(not(unix))]
    pub(crate) fn heed() -> Signals {
        Signals {}
    }

    /// Resolves at the next one.
    #[cfg(unix)]
    pub(crate) async fn next(&mut self) {
        async fn of(signal: &mut Option<tokio::signal::unix::Signal>) {
            match signal {
                Some(signal) => {
                    signal.recv().await;
                }
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = of(&mut self.terminate) => {}
            () = of(&mut self.interrupt) => {}
        }
    }

    #[cfg(not(unix))]
    pub(crate) async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}

pub(crate) fn serve_on(
    runtime: &Runtime,
    listener: TcpListener,
    state: AppState,
) -> anyhow::Result<oneshot::Sender<()>> {
    listener.set_nonblocking(true)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    runtime.spawn(async move {
        // Dropping the sender stops the server as well.
        let until = async move {
            let _ = stopped.await;
        };
        if let Err(error) = serve::serve(listener, state, until).await {
            tracing::error!(%error, "the page and the API are not served any more");
        }
    });
    Ok(stop)
}

pub(crate) fn limits(config: &Checked, speed: u64) -> serve::Limits {
    let usual = serve::Limits::default();
    serve::Limits {
        body_bytes_max: config.validation.request_bytes_max.bytes(),
        connections_max: config.http.concurrency,
        lag_ms_max: usual.lag_ms_max.saturating_mul(speed),
        ..usual
    }
}

fn board_config(
    config: &Arc<Checked>,
    windows: &[omnify_operators::model::WindowSpec],
    speed: u64,
) -> BoardConfig {
    let of = config.clone();
    BoardConfig {
        windows: windows.to_vec(),
        goals: setup::goals(config),
        currency_of: Arc::new(move |key| setup::currency_of(&of, key)),
        executor: executor::name(config.executor.kind).to_owned(),
        dry_run: config.executor.kind == ExecutorKind::DryRun,
        speed,
        publish_every_ms: PUBLISH_EVERY_MS.saturating_mul(speed),
        spark_every_ms: BoardConfig::default().spark_every_ms.saturating_mul(speed),
        decisions_kept: config.http.recent,
        actions_kept: config.http.recent,
    }
}
