//! The leader's side: lets the followers in, sends them the entities, takes their parts.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use omnify_config::Checked;
use omnify_operators::graph::Part;
use omnify_operators::model::{Registry, RegistryView};
use omnify_sinks::serve::Problem;
use tokio::sync::watch;

use super::calls::Calls;
use super::rows::{self, Readers};
use super::wire::{self, Hello, Lane, ToFollower, ToLeader, Welcome};
use super::{ClusterError, JOIN, Members, OnLost, Terms, mesh};
use crate::clock::{self, Clock};
use crate::decode::Door;
use crate::engine::{Completed, Note, Others, Watch};
use crate::kafka::{PROBLEMS, Positions};
use crate::live::Intake;

/// Entities in one message.
const ENTITIES: usize = 4096;
/// Problems that a follower tells at most.
const PROBLEMS_MAX: usize = 16;

/// A leader whose followers are still to come.
pub struct Leader {
    terms: Terms,
    mesh: TcpListener,
    control: TcpListener,
    on_lost: OnLost,
}

/// A leader with its followers.
pub struct Cluster {
    writers: Vec<Arc<Mutex<TcpStream>>>,
    readers: Vec<(usize, TcpStream)>,
    ending: Arc<AtomicBool>,
    stop_asked: watch::Receiver<bool>,
    problems: Told,
    on_lost: OnLost,
}

/// What the followers say that an operator should know, by process.
type Told = Arc<Mutex<BTreeMap<usize, Vec<(String, String)>>>>;

/// The connections of one follower.
#[derive(Default)]
struct Lanes {
    control: Option<TcpStream>,
    parts: Option<TcpStream>,
    rows: Option<TcpStream>,
}

impl Lanes {
    /// A connection more. One that was started again takes the place of the one before, and its
    /// control connection comes first.
    fn take(&mut self, lane: Lane, stream: TcpStream) {
        let stream = Some(stream);
        match lane {
            Lane::Control => *self = Lanes { control: stream, ..Lanes::default() },
            Lane::Parts if self.control.is_some() => self.parts = stream,
            Lane::Rows if self.control.is_some() => self.rows = stream,
            Lane::Parts | Lane::Rows | Lane::Mesh { .. } => {}
        }
    }

    fn complete(&self) -> bool {
        self.control.is_some() && self.parts.is_some() && self.rows.is_some()
    }
}

impl Leader {
    /// Opens the leader's ports.
    pub fn listen(members: Members, config: &Checked, on_lost: OnLost) -> anyhow::Result<Leader> {
        let terms = Terms::of(members, config)?;
        let mesh = mesh::listen(&terms.members.hosts[0])?;
        let control = mesh::listen(&terms.members.control)?;
        Ok(Leader { terms, mesh, control, on_lost })
    }

    /// Waits for the followers and connects the workers. From here on `registry` is sent to them,
    /// and a loss ends this process. Of each worker `queue_ticks` complete ticks may wait. The page,
    /// if there is one, is at `http_port`.
    pub(crate) fn join(
        self,
        registry: &Arc<Registry>,
        queue_ticks: usize,
        http_port: Option<u16>,
    ) -> anyhow::Result<(Others, Cluster)> {
        let run = Clock::System.now();
        let lanes = self.let_in(run)?;
        let ending = Arc::new(AtomicBool::new(false));
        let (ask_stop, stop_asked) = watch::channel(false);
        let ask_stop = Arc::new(ask_stop);
        let problems = Told::default();
        let (lost_after, beat) = (self.terms.lost_after, self.terms.beat);
        let (mut completed, mut writers, mut readers) = (Vec::new(), Vec::new(), Vec::new());
        for (at, lanes) in lanes.into_iter().enumerate() {
            let (process, workers) = (at + 1, self.terms.hello.workers);
            let Lanes { control: Some(mut control), parts: Some(parts), rows: Some(rows) } = lanes
            else {
                continue;
            };
            control.set_read_timeout(Some(lost_after))?;
            control.set_write_timeout(Some(lost_after))?;
            // How long these are silent says nothing: the control connection tells of a loss.
            for stream in [&parts, &rows] {
                stream.set_read_timeout(None)?;
                stream.set_write_timeout(None)?;
            }
            let lost = |error: std::io::Error| lost(process, &error, lost_after);
            wire::send(&mut control, &ToFollower::Go { http_port }).map_err(lost)?;
            let writer = Arc::new(Mutex::new(control.try_clone()?));
            let watching = Watching {
                process,
                lost_after,
                ending: ending.clone(),
                ask_stop: ask_stop.clone(),
                problems: problems.clone(),
                on_lost: self.on_lost.clone(),
            };
            let spawn = |name: String| std::thread::Builder::new().name(name);
            spawn(format!("watch-{process}")).spawn(move || watching.run(control))?;
            let (to, view) = (writer.clone(), RegistryView::new(registry.clone()));
            spawn(format!("entities-{process}")).spawn(move || send_entities(&to, view, beat))?;
            let (sender, receiver) = bounded(workers * queue_ticks.max(1));
            spawn(format!("parts-{process}")).spawn(move || take_parts(parts, &sender))?;
            writers.push(writer);
            readers.push((process, rows));
            // The parts of a tick come in order of the workers, so one queue serves them all.
            completed.extend(std::iter::repeat_n::<Receiver<Completed>>(receiver, workers));
        }
        let mesh = mesh::build(&self.terms, &self.mesh, run)?;
        tracing::info!(processes = self.terms.members.count(), "all processes are there");
        let others = Others { mesh, completed, ending: ending.clone() };
        let on_lost = self.on_lost;
        Ok((others, Cluster { writers, readers, ending, stop_asked, problems, on_lost }))
    }

    /// The connections of processes 1 and up.
    fn let_in(&self, run: u64) -> anyhow::Result<Vec<Lanes>> {
        let count = self.terms.members.count();
        let mut followers: Vec<Lanes> = (1..count).map(|_| Lanes::default()).collect();
        let (started, calls) = (clock::instant(), Calls::on(&self.control, &self.terms.key)?);
        tracing::info!(at = self.terms.members.control, "waiting for the other processes");
        while let Some(missing) = followers.iter().position(|lanes| !lanes.complete()) {
            if started.elapsed() > JOIN {
                let what = format!("it did not come within {} minutes", JOIN.as_secs() / 60);
                return Err(ClusterError::Lost { process: missing + 1, what }.into());
            }
            let Some((mut stream, hello)) = calls.next()? else { continue };
            let Hello { process, lane, .. } = hello;
            if let Some(why) = hello.problem(&self.terms.hello) {
                tracing::error!(process, why, "a process was refused");
                let _ = wire::send(&mut stream, &Welcome::Refused(why));
                continue;
            }
            if wire::send(&mut stream, &Welcome::Taken(run)).is_ok() {
                followers[process - 1].take(lane, stream);
            }
        }
        Ok(followers)
    }
}

impl Cluster {
    /// Turns true when a follower was asked to end.
    pub(crate) fn stop_asked(&self) -> watch::Receiver<bool> {
        self.stop_asked.clone()
    }

    /// From here on followers may read: the engine stands where it was, and takes `room` of each.
    pub(crate) fn take_rows(
        &mut self,
        room: usize,
        door: &Arc<Door>,
        intake: &Intake,
        positions: &Positions,
    ) -> std::io::Result<()> {
        let (door, intake, positions) = (door.clone(), intake.clone(), positions.clone());
        let readers = Readers { room: room as u64, door, intake, positions };
        for (process, stream) in self.readers.drain(..) {
            let (readers, on_lost) = (readers.clone(), self.on_lost.clone());
            let take = move || {
                if let Err(what) = rows::take(stream, &readers) {
                    on_lost(ClusterError::Lost { process, what });
                }
            };
            std::thread::Builder::new().name(format!("rows-{process}")).spawn(take)?;
        }
        Ok(())
    }

    /// Tells the followers' problems at any time, for `/v1/status`.
    pub(crate) fn problems(&self) -> Watch {
        let told = self.problems.clone();
        Arc::new(move || {
            let told = told.lock().unwrap_or_else(PoisonError::into_inner);
            let each = told.iter().flat_map(|(process, problems)| {
                problems.iter().filter_map(move |(code, text)| {
                    let code = PROBLEMS.into_iter().find(|known| known == code)?;
                    Some(Problem { code, text: format!("Process {process}: {text}") })
                })
            });
            each.collect()
        })
    }

    /// Tells the followers that the engine has ended as it should.
    pub(crate) fn end(self) {
        self.ending.store(true, Ordering::Release);
        for writer in self.writers {
            let mut stream = writer.lock().unwrap_or_else(PoisonError::into_inner);
            // One that is gone needs no telling.
            let _ = wire::send(&mut *stream, &ToFollower::End);
        }
    }
}

fn lost(process: usize, error: &std::io::Error, lost_after: Duration) -> ClusterError {
    use std::io::ErrorKind::{TimedOut, UnexpectedEof, WouldBlock};
    let what = match error.kind() {
        UnexpectedEof => "it closed its connection".to_owned(),
        TimedOut | WouldBlock => format!("no sign of life for {} s", lost_after.as_secs_f64()),
        _ => error.to_string(),
    };
    ClusterError::Lost { process, what }
}

/// Listens to one follower.
struct Watching {
    process: usize,
    lost_after: Duration,
    ending: Arc<AtomicBool>,
    ask_stop: Arc<watch::Sender<bool>>,
    problems: Told,
    on_lost: OnLost,
}

impl Watching {
    fn run(self, mut control: TcpStream) {
        loop {
            match wire::receive(&mut control, wire::CONTROL_BYTES_MAX) {
                Ok(ToLeader::Beat(mut problems)) => {
                    problems.truncate(PROBLEMS_MAX);
                    let mut told = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
                    told.insert(self.process, problems);
                }
                Ok(ToLeader::Stop) => {
                    tracing::info!(process = self.process, "asked to stop by a follower");
                    self.ask_stop.send_replace(true);
                }
                Err(_) if self.ending.load(Ordering::Acquire) => return,
                Err(error) => {
                    return (self.on_lost)(lost(self.process, &error, self.lost_after));
                }
            }
        }
    }
}

/// Sends the entities that are known and those that come, and signs of life; ends with the
/// connection, whose loss the listening side reports.
fn send_entities(to: &Mutex<TcpStream>, mut view: RegistryView, beat: Duration) {
    let mut sent = 0;
    loop {
        view.registry().clone().wait_beyond(sent, beat);
        let new = view.all()[sent..].iter().take(ENTITIES);
        let keys: Vec<_> = new.map(|info| info.key.clone()).collect();
        sent += keys.len();
        let mut stream = to.lock().unwrap_or_else(PoisonError::into_inner);
        if wire::send(&mut *stream, &ToFollower::Entities(keys)).is_err() {
            return;
        }
    }
}

/// Hands on what one follower's workers put out; ends with the connection, whose loss the control
/// connection reports.
fn take_parts(mut from: TcpStream, to: &Sender<Completed>) {
    while let Ok(parts) = wire::receive::<Vec<Part>>(&mut from, wire::DATA_BYTES_MAX) {
        for part in parts {
            if to.send(Completed { part, note: Note::default() }).is_err() {
                return;
            }
        }
    }
}
