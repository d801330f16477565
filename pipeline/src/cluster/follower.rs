//! A follower's side: asks to be let in, then runs its workers and reads its share of the topics until
//! the leader ends it.

use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use omnify_config::Checked;
use omnify_operators::model::{Registry, RegistryView};
use omnify_sinks::serve::{AppState, Board, BoardConfig, Lent};
use omnify_sinks::telemetry;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;

use super::link::Link;
use super::secret::Failure;
use super::wire::{self, Lane, ToFollower, ToLeader, Welcome};
use super::{ClusterError, GREETING, JOIN, Members, OnLost, RETRY, Terms, mesh};
use crate::clock::{self, Clock};
use crate::decode::Door;
use crate::engine::{self, Watch};
use crate::kafka::{KafkaSource, SourceOptions};
use crate::live::{self, Signals};
use crate::setup::{self, Mode};

/// How long a worker waits for the name of an entity that it meets; names run ahead of rows.
const NAMES: Duration = Duration::from_secs(20);
/// Time that tasks of the runtime get to end.
const RUNTIME_GRACE: Duration = Duration::from_secs(1);

fn lost(error: &io::Error) -> ClusterError {
    use io::ErrorKind::{TimedOut, UnexpectedEof, WouldBlock};
    let what = match error.kind() {
        UnexpectedEof => "the leader closed its connection".to_owned(),
        TimedOut | WouldBlock => "the leader gave no sign of life".to_owned(),
        _ => error.to_string(),
    };
    ClusterError::Lost { process: 0, what }
}

/// Lends this process's workers to the leader; blocks until the leader has ended as it should.
/// `on_lost` is called, and must end the process, when the leader is lost.
pub fn follow(members: Members, config: &Arc<Checked>, on_lost: OnLost) -> anyhow::Result<()> {
    let terms = Terms::of(members, config)?;
    let (process, workers) = (terms.members.process, terms.hello.workers);
    let spec = Arc::new(setup::feature_spec(config, Mode::Live)?);
    let topics = SourceOptions::of(config)?.map(|options| options.of_process(process));
    let listener = mesh::listen(&terms.members.hosts[process])?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("http")
        .enable_all()
        .build()?;
    let (mut control, run) = greet(&terms, Lane::Control)?;
    let (mut parts, _) = greet(&terms, Lane::Parts)?;
    let (rows, _) = greet(&terms, Lane::Rows)?;
    // By now the leader has its address: on one machine the others' may be the same.
    let lent = Lent::default();
    let page = serve(config, &lent, &runtime)?;
    tracing::info!(process, "let in, waiting for the others");
    control.set_read_timeout(Some(JOIN))?;
    match wire::receive(&mut control, wire::CONTROL_BYTES_MAX) {
        Ok(ToFollower::Go { http_port }) => lent.is_lent_to(&terms.members.page(http_port)),
        Ok(_) => return Err(lost(&io::Error::other("it speaks out of turn")).into()),
        Err(error) => return Err(lost(&error).into()),
    }

    control.set_read_timeout(Some(terms.lost_after))?;
    control.set_write_timeout(Some(terms.lost_after))?;
    parts.set_write_timeout(None)?;
    let registry = Arc::new(setup::registry(config).following(NAMES));
    let (ended_in, ended) = bounded(1);
    let writer = Arc::new(Mutex::new(control.try_clone()?));
    let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
    let (copy, gone) = (registry.clone(), on_lost.clone());
    spawn("leader").spawn(move || listen_to(control, &copy, &ended_in, &gone))?;
    let watch = Watched::default();
    let (beating, watched, beat) = (writer.clone(), watch.clone(), terms.beat);
    spawn("beat").spawn(move || {
        while tell(&beating, &ToLeader::Beat(watched.problems())).is_ok() {
            std::thread::sleep(beat);
        }
    })?;
    heed_signals(&runtime, writer);

    let mesh = mesh::build(&terms, &listener, run)?;
    let view = RegistryView::new(registry);
    lent.is_ready();
    tracing::info!(process, workers, "workers are lent");
    let reading = match topics {
        Some(options) => {
            let reader = Reader { options, config: config.clone(), process, watch };
            Some(reader.start(rows, runtime.handle().clone(), on_lost.clone())?)
        }
        None => None,
    };
    engine::lend(spec, view, workers, config.engine.queue_frames, mesh, |complete| {
        if let Err(error) = wire::send(&mut parts, &complete) {
            // The leader's end of the control connection says it better, if it comes.
            let _: Result<(), _> = ended.recv_timeout(GREETING);
            on_lost(lost(&error));
        }
    })?;
    drop(parts);
    wait_for_end(&ended, &on_lost);
    if let Some(reading) = reading {
        reading.stop();
    }
    drop(page);
    runtime.shutdown_timeout(RUNTIME_GRACE);
    Ok(())
}

/// The listening thread ends the process when the leader is lost before it says so.
fn wait_for_end(ended: &Receiver<()>, on_lost: &OnLost) {
    if ended.recv().is_err() {
        on_lost(lost(&io::ErrorKind::UnexpectedEof.into()));
    }
}

/// A connection to the leader, who is waited for, and the number of its run.
fn greet(terms: &Terms, lane: Lane) -> Result<(TcpStream, u64), ClusterError> {
    let started = clock::instant();
    let lost = |error: io::Error| lost(&error);
    let address = &terms.members.control;
    let mut stream = loop {
        match mesh::connect(address) {
            Ok(stream) => break stream,
            Err(error) if started.elapsed() > JOIN => return Err(lost(error)),
            Err(_) => std::thread::sleep(RETRY),
        }
    };
    // The leader answers once it has worked through what it must do first.
    terms.key.call(&stream, &terms.hello(lane), JOIN).map_err(|failure| match failure {
        Failure::Io(error) => lost(error),
        Failure::Unproven => ClusterError::Unproven { address: address.clone() },
    })?;
    stream.set_read_timeout(Some(GREETING)).map_err(lost)?;
    match wire::receive(&mut stream, wire::GREETING_BYTES_MAX).map_err(lost)? {
        Welcome::Taken(run) => Ok((stream, run)),
        Welcome::Refused(why) => Err(ClusterError::Refused { process: terms.members.process, why }),
    }
}

fn tell(to: &Mutex<TcpStream>, message: &ToLeader) -> io::Result<()> {
    wire::send(&mut *to.lock().unwrap_or_else(PoisonError::into_inner), message)
}

/// Takes in the entities in the order of their ids, until the leader ends or is lost.
fn listen_to(mut from: TcpStream, registry: &Registry, ended: &Sender<()>, on_lost: &OnLost) {
    loop {
        match wire::receive(&mut from, wire::CONTROL_BYTES_MAX) {
            Ok(ToFollower::Entities(keys)) => {
                for key in keys {
                    let next = registry.len();
                    if registry.intern(&key).index() != next {
                        let what = format!("its entity `{key}` came out of order");
                        return on_lost(ClusterError::Lost { process: 0, what });
                    }
                }
            }
            Ok(ToFollower::End) => {
                let _ = ended.send(());
                return;
            }
            Ok(ToFollower::Go { .. }) => {}
            Err(error) => return on_lost(lost(&error)),
        }
    }
}

/// Whoever asks this process to end asks the leader; a second time, it ends at once.
fn heed_signals(runtime: &Runtime, leader: Arc<Mutex<TcpStream>>) {
    let _inside = runtime.enter();
    let mut signals = Signals::heed();
    runtime.spawn(async move {
        signals.next().await;
        tracing::info!("asking the leader to stop; a second signal ends at once");
        // When the leader is gone this process is about to end anyway.
        let _ = tell(&leader, &ToLeader::Stop);
        signals.next().await;
        std::process::exit(130);
    });
}

/// Serves what a process without an engine has to say, until what comes back is dropped.
fn serve(
    config: &Checked,
    lent: &Lent,
    runtime: &Runtime,
) -> anyhow::Result<Option<oneshot::Sender<()>>> {
    let listener = match live::listen(config) {
        Ok(Some(listener)) => listener,
        Ok(None) => return Ok(None),
        Err(error) if error.in_use() => {
            tracing::warn!(%error, "this process tells nobody how it is; its work does not depend on it");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let (address, tokens) = (listener.local_addr()?, live::tokens(config)?);
    let nothing = Board::new(BoardConfig::default());
    let state = AppState {
        metrics: Some(telemetry::install()?),
        hosts: live::hosts(&address, &tokens),
        tokens,
        limits: live::limits(config, 1),
        lent: Some(lent.clone()),
        ..AppState::new(nothing.subscribe())
    };
    let page = live::serve_on(runtime, listener, state)?;
    tracing::info!("this process says at http://{address}/readyz and /metrics how it is");
    Ok(Some(page))
}

/// What the source says that an operator should know, once there is one.
#[derive(Clone, Default)]
struct Watched(Arc<RwLock<Option<Watch>>>);

impl Watched {
    fn problems(&self) -> Vec<(String, String)> {
        let watch = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let problems = watch.map(|watch| watch()).unwrap_or_default();
        problems.into_iter().map(|problem| (problem.code.to_owned(), problem.text)).collect()
    }
}

/// Reads this process's share of the topics.
struct Reader {
    options: SourceOptions,
    config: Arc<Checked>,
    process: usize,
    watch: Watched,
}

/// A reader at work.
struct Reading {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Reader {
    /// Reads on a thread of its own, from when the leader is ready.
    fn start(self, rows: TcpStream, runtime: Handle, on_lost: OnLost) -> io::Result<Reading> {
        let (stop, stopped) = bounded(0);
        let read = move || {
            let process = self.process;
            if let Err(error) = self.read(rows, &runtime, &stopped) {
                let what = format!("it cannot read its topics: {error:#}");
                on_lost(ClusterError::Lost { process, what });
            }
        };
        let thread = std::thread::Builder::new().name("reading".into()).spawn(read)?;
        Ok(Reading { stop, thread })
    }

    fn read(self, rows: TcpStream, runtime: &Handle, stopped: &Receiver<()>) -> anyhow::Result<()> {
        // Entities of rows are numbered here, and get the leader's ids there; zones are its affair.
        let door = Arc::new(Door::new(Arc::new(Registry::utc()), setup::limits(&self.config)));
        let Some(link) = Link::open(rows, &door)? else { return Ok(()) };
        let link = Arc::new(link);
        let source = KafkaSource::start(&self.options, &door, link, Clock::System, runtime)?;
        *self.watch.0.write().unwrap_or_else(PoisonError::into_inner) = Some(source.problems());
        let _: Result<(), _> = stopped.recv();
        source.stop();
        Ok(())
    }
}

impl Reading {
    fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the reading thread panicked");
        }
    }
}
