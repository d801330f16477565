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
//! | `ingest` | the loop that closes ticks and keeps the account of rows |
//! | `push` | `POST /v1/events` |
//! | `bidder` | `POST /v1/bids` |
//! | `executor` | from the configuration to a dispatcher |
//! | `access` | listening address, tokens, host names |
//! | `model_file` | watches `decision.model_file` |
//! | `market` | reads the feed and the settings of the simulator's ad platform |
//!
//! # Contract
//! Everything a decision depends on enters as an input of a tick, in the order in which the history
//! records it: replaying the history gives the same decisions. When a queue is at its bound the
//! stage before it waits, up to the sources: a push is answered 429, a poller stops polling.
//!
//! A push is acknowledged when the ingest queue has taken it. There is no journal on disk yet: what
//! was acknowledged within `history.file_time` before a crash of the process is lost.
//!
//! # When the disk is full
//! The history writer keeps what it has and tries again for a minute; meanwhile its queue fills,
//! the engine waits, pushes are answered 429 and `/readyz` says so. If there is still no room the
//! engine stops and the process ends with exit code 4; the history holds whole ticks up to there.

mod access;
mod bidder;
mod executor;
mod ingest;
mod intake;
pub mod market;
mod model_file;
mod push;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use omnify_config::{Checked, ExecutorKind};
use omnify_decision::control::Control;
use omnify_decision::stage::Stage;
use omnify_operators::model::{Registry, RegistryView, Tick};
use omnify_sinks::history::HistoryWriter;
use omnify_sinks::serve::{self, AppState, Board, BoardConfig, BuildInfo, Snapshot};
use omnify_sinks::telemetry;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};

use crate::clock::Clock;
use crate::decode::Door;
use crate::engine::feed::LiveQueue;
use crate::engine::{self, BoxedFeed, Decider, Progress, Recorder, RunSummary, SharedBook, Wakers};
use crate::setup::{self, Mode};

pub use access::{ListenError, listen};
pub use intake::{Arrival, Intake};
#[cfg(test)]
pub(crate) use intake::{Arrivals, channel};

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
    /// Folder of the (new) history, if one is written.
    pub history: Option<PathBuf>,
    /// Folder of the ledger of actions.
    pub ledger: PathBuf,
    /// Control inputs of the first tick.
    pub controls: Vec<Control>,
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
    engine: JoinHandle<anyhow::Result<(RunSummary, Option<anyhow::Error>)>>,
    http: Option<oneshot::Sender<()>>,
    runtime: Runtime,
}

impl Live {
    /// Starts the engine. Everything that can be refused is refused here.
    pub fn start(setup: Setup) -> anyhow::Result<Live> {
        let Setup { config, clock, speed, listener, history, ledger, mut controls } = setup;
        let speed = speed.max(1);
        let registry = setup::registry(&config);
        let view = RegistryView::new(registry.clone());
        let spec = Arc::new(setup::feature_spec(&config, Mode::Live)?);
        let stage = setup::stage_config(&config).map(Stage::new).transpose()?;
        let tokens = access::tokens(&config)?;
        let metrics = telemetry::install()?;
        let door = Arc::new(Door::new(registry, setup::limits(&config)));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("http")
            .enable_all()
            .build()?;
        if config.guardrails.kill {
            controls.push(Control::Kill { tenant: None });
        }
        let (inputs, inputs_out) = bounded(QUEUE_CONTROLS);
        let (execution, outcomes) =
            match executor::start(&config, &ledger, &clock, runtime.handle(), &inputs)? {
                Some((execution, outcomes)) => (Some(execution), outcomes),
                None => (None, crossbeam_channel::never()),
            };
        let recorder = match &history {
            Some(dir) => {
                let meta = setup::history_meta(&config, &spec, Mode::Live);
                let options = setup::writer_options(&config);
                let of = config.clone();
                let writer = HistoryWriter::create(dir, meta, view.clone(), options)?
                    .with_currencies(Box::new(move |key| setup::currency_of(&of, key)));
                let file_time = Some(config.history.file_time.duration());
                let queue = config.engine.queue_history;
                Some(Recorder::start(writer, view.clone(), queue, file_time)?)
            }
            None => None,
        };
        let written = recorder.as_ref().map(|recorder| recorder.progress.clone());
        let board = Board::new(board_config(&config, &spec.windows, speed));
        let snapshots = board.subscribe();
        let book = SharedBook::new(RwLock::default());
        let (intake, arrivals) = intake::channel(config.engine.queue_events);

        let decided = Arc::<AtomicU64>::default();
        let wakers = Wakers::default();
        let workers = setup::workers(&config);
        let (queue, feeds) = LiveQueue::new(workers, QUEUE_TICKS, wakers.clone());
        let feeds = feeds.into_iter().map(|feed| Box::new(feed) as BoxedFeed).collect();
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
        };

        let (address, http) = match listener {
            Some(listener) => {
                let address = listener.local_addr()?;
                let lag_clock = clock.clone();
                let state = AppState {
                    metrics: Some(metrics),
                    ingest: Some(Arc::new(push::HttpPush::new(door.clone(), intake.clone()))),
                    bidder: Some(Arc::new(bidder::BookBidder::new(book))),
                    hosts: access::hosts(&address, &tokens),
                    tokens,
                    present: Some(Arc::new(move || lag_clock.now())),
                    limits: limits(&config, speed),
                    build: BuildInfo { boot: Clock::System.now(), ..BuildInfo::default() },
                    ..AppState::new(snapshots.clone())
                };
                (Some(address), Some(serve_on(&runtime, listener, state)?))
            }
            None => (None, None),
        };

        model_file::watch(&config, &inputs, intake.clone())?;
        let (stop, stopped) = bounded(1);
        let ingest = ingest::Ingest {
            arrivals,
            outcomes,
            inputs: inputs_out,
            stopped,
            queue,
            clock,
            tick_every: config.engine.tick.duration(),
        };
        let ingest = std::thread::Builder::new()
            .name("ingest".into())
            .spawn(move || ingest.run(controls))?;
        let (ending, ended) = watch::channel(false);
        let queue_frames = config.engine.queue_frames;
        let ended_by_itself = stop.clone();
        let engine = std::thread::Builder::new().name("decide".into()).spawn(move || {
            let result = engine::run(spec, view, feeds, queue_frames, wakers, decider);
            ending.send_replace(true);
            // The ingest loop, which may be waiting for room, must not wait for ever.
            let _ = ended_by_itself.try_send(());
            result
        })?;
        telemetry::events::Started { version: env!("CARGO_PKG_VERSION") }.emit();
        Ok(Live {
            intake,
            door,
            controls: inputs,
            snapshots,
            address,
            decided,
            written,
            ended,
            stop,
            ingest,
            engine,
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

    /// The runtime of HTTP and executors.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Turns true when the engine has ended, by itself or because it was stopped.
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.ended.clone()
    }

    /// Waits until the process is told to stop (ctrl-c or SIGTERM), the engine ended by itself or its
    /// source failed, or `time` has passed. A second signal ends the process at once, with exit code 130.
    pub fn wait(&self, time: Option<Duration>) {
        let mut ended = self.ended.clone();
        self.runtime.block_on(async {
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
            tokio::select! {
                () = timer => {}
                () = failed => {}
                () = stop_signal() => tracing::info!("stopping; a second signal ends at once"),
                _ = ended.wait_for(|ended| *ended) => {}
            }
        });
        self.runtime.spawn(async {
            stop_signal().await;
            std::process::exit(130);
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

    /// Stops in order: sources, the last tick, decisions and actions, the history, HTTP.
    pub fn stop(self) -> anyhow::Result<RunSummary> {
        self.intake.close();
        let _ = self.stop.send(());
        let panicked = |what: &str| anyhow::anyhow!("the {what} thread panicked");
        self.ingest.join().map_err(|_| panicked("ingest"))?;
        let result = self.engine.join().map_err(|_| panicked("decision"))?;
        drop(self.http);
        self.runtime.shutdown_timeout(RUNTIME_GRACE);
        let (summary, failure) = result?;
        failure.map_or(Ok(summary), Err)
    }
}

/// Resolves when the process is asked to end.
async fn stop_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

fn serve_on(
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

fn limits(config: &Checked, speed: u64) -> serve::Limits {
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
