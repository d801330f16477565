//! The leader's side: lets the followers in, sends them the entities, takes their parts.

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use omnify_config::Checked;
use omnify_operators::graph::Part;
use omnify_operators::model::{Registry, RegistryView};
use tokio::sync::watch;

use super::wire::{self, Hello, Lane, ToFollower, ToLeader, Welcome};
use super::{BEAT, ClusterError, JOIN, Members, OnLost, SILENCE, mesh};
use crate::clock::{self, Clock};
use crate::engine::{Completed, Note, Others};

/// Entities in one message.
const ENTITIES: usize = 4096;

/// A leader whose followers are still to come.
pub struct Leader {
    members: Members,
    hello: Hello,
    mesh: TcpListener,
    control: TcpListener,
    on_lost: OnLost,
}

/// A leader with its followers.
pub struct Cluster {
    writers: Vec<Arc<Mutex<TcpStream>>>,
    ending: Arc<AtomicBool>,
    stop_asked: watch::Receiver<bool>,
}

/// The connections of one follower.
#[derive(Default)]
struct Lanes {
    control: Option<TcpStream>,
    parts: Option<TcpStream>,
}

impl Leader {
    /// Opens the leader's ports.
    pub fn listen(
        members: Members,
        config: &Checked,
        on_lost: OnLost,
    ) -> Result<Leader, ClusterError> {
        let hello = super::hello(&members, config);
        let mesh = mesh::listen(&members.hosts[0])?;
        let control = mesh::listen(&members.control)?;
        Ok(Leader { members, hello, mesh, control, on_lost })
    }

    /// Waits for the followers and connects the workers. From here on `registry` is sent to them,
    /// and a loss ends this process. Of each worker `queue_ticks` complete ticks may wait.
    pub(crate) fn join(
        self,
        registry: &Arc<Registry>,
        queue_ticks: usize,
    ) -> anyhow::Result<(Others, Cluster)> {
        let run = Clock::System.now();
        let lanes = self.let_in(run)?;
        let ending = Arc::new(AtomicBool::new(false));
        let (ask_stop, stop_asked) = watch::channel(false);
        let ask_stop = Arc::new(ask_stop);
        let (mut completed, mut writers) = (Vec::new(), Vec::new());
        for (at, lanes) in lanes.into_iter().enumerate() {
            let (process, workers) = (at + 1, self.hello.workers);
            let Lanes { control: Some(mut control), parts: Some(parts) } = lanes else { continue };
            control.set_read_timeout(Some(SILENCE))?;
            control.set_write_timeout(Some(SILENCE))?;
            parts.set_read_timeout(None)?;
            let lost = |error: std::io::Error| lost(process, &error);
            wire::send(&mut control, &ToFollower::Go).map_err(lost)?;
            let writer = Arc::new(Mutex::new(control.try_clone()?));
            let watching = Watching {
                process,
                ending: ending.clone(),
                ask_stop: ask_stop.clone(),
                on_lost: self.on_lost.clone(),
            };
            let spawn = |name: String| std::thread::Builder::new().name(name);
            spawn(format!("watch-{process}")).spawn(move || watching.run(control))?;
            let (to, view) = (writer.clone(), RegistryView::new(registry.clone()));
            spawn(format!("entities-{process}")).spawn(move || send_entities(&to, view))?;
            let (sender, receiver) = bounded(workers * queue_ticks.max(1));
            spawn(format!("parts-{process}")).spawn(move || take_parts(parts, &sender))?;
            writers.push(writer);
            // The parts of a tick come in order of the workers, so one queue serves them all.
            completed.extend(std::iter::repeat_n::<Receiver<Completed>>(receiver, workers));
        }
        let mesh = mesh::build(&self.members, &self.mesh, run)?;
        tracing::info!(processes = self.members.count(), "all processes are there");
        let others = Others { mesh, completed, ending: ending.clone() };
        Ok((others, Cluster { writers, ending, stop_asked }))
    }

    /// The connections of processes 1 and up.
    fn let_in(&self, run: u64) -> anyhow::Result<Vec<Lanes>> {
        let mut followers: Vec<Lanes> =
            (1..self.members.count()).map(|_| Lanes::default()).collect();
        let started = clock::instant();
        tracing::info!(at = self.members.control, "waiting for the other processes");
        while let Some(missing) = followers.iter().position(|lanes| lanes.parts.is_none()) {
            if started.elapsed() > JOIN {
                let what = format!("it did not come within {} minutes", JOIN.as_secs() / 60);
                return Err(ClusterError::Lost { process: missing + 1, what }.into());
            }
            let Some(mut stream) = mesh::accept(&self.control)? else { continue };
            let hello: Hello = match wire::receive(&mut stream, wire::GREETING_BYTES_MAX) {
                Ok(hello) => hello,
                Err(error) => {
                    tracing::warn!(%error, "somebody who is no follower of this version called");
                    continue;
                }
            };
            let process = hello.process;
            if let Some(why) = hello.problem(&self.hello) {
                tracing::error!(process, why, "a process was refused");
                let _ = wire::send(&mut stream, &Welcome::Refused(why));
                continue;
            }
            if wire::send(&mut stream, &Welcome::Taken(run)).is_err() {
                continue;
            }
            let lanes = &mut followers[process - 1];
            match hello.lane {
                // One that was started again takes the place of the one before.
                Lane::Control => *lanes = Lanes { control: Some(stream), parts: None },
                Lane::Parts if lanes.control.is_some() => lanes.parts = Some(stream),
                Lane::Parts => {}
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

fn lost(process: usize, error: &std::io::Error) -> ClusterError {
    use std::io::ErrorKind::{TimedOut, UnexpectedEof, WouldBlock};
    let what = match error.kind() {
        UnexpectedEof => "it closed its connection".to_owned(),
        TimedOut | WouldBlock => format!("no sign of life for {} s", SILENCE.as_secs()),
        _ => error.to_string(),
    };
    ClusterError::Lost { process, what }
}

/// Listens to one follower.
struct Watching {
    process: usize,
    ending: Arc<AtomicBool>,
    ask_stop: Arc<watch::Sender<bool>>,
    on_lost: OnLost,
}

impl Watching {
    fn run(self, mut control: TcpStream) {
        loop {
            match wire::receive(&mut control, wire::CONTROL_BYTES_MAX) {
                Ok(ToLeader::Beat) => {}
                Ok(ToLeader::Stop) => {
                    tracing::info!(process = self.process, "asked to stop by a follower");
                    self.ask_stop.send_replace(true);
                }
                Err(_) if self.ending.load(Ordering::Acquire) => return,
                Err(error) => return (self.on_lost)(lost(self.process, &error)),
            }
        }
    }
}

/// Sends the entities that are known and those that come, and signs of life; ends with the
/// connection, whose loss the listening side reports.
fn send_entities(to: &Mutex<TcpStream>, mut view: RegistryView) {
    let mut sent = 0;
    loop {
        view.registry().clone().wait_beyond(sent, BEAT);
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
    while let Ok(parts) = wire::receive::<Vec<Part>>(&mut from, wire::PARTS_BYTES_MAX) {
        for part in parts {
            if to.send(Completed { part, note: Note::default() }).is_err() {
                return;
            }
        }
    }
}
