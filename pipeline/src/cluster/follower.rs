//! A follower's side: asks to be let in, then runs its workers until the leader ends them.

use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use omnify_config::Checked;
use omnify_operators::model::{Registry, RegistryView};

use super::wire::{self, Hello, Lane, ToFollower, ToLeader, Welcome};
use super::{BEAT, ClusterError, GREETING, JOIN, Members, OnLost, RETRY, SILENCE, mesh};
use crate::clock;
use crate::engine;
use crate::live::Signals;
use crate::setup::{self, Mode};

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
pub fn follow(members: &Members, config: &Arc<Checked>, on_lost: OnLost) -> anyhow::Result<()> {
    let hello = super::hello(members, config);
    let spec = Arc::new(setup::feature_spec(config, Mode::Live)?);
    let listener = mesh::listen(&members.hosts[members.process])?;
    let (mut control, run) = greet(members, &hello)?;
    let parts = Hello { lane: Lane::Parts, ..hello.clone() };
    let (mut parts, _) = greet(members, &parts)?;
    tracing::info!(process = members.process, "let in, waiting for the others");
    control.set_read_timeout(Some(JOIN))?;
    match wire::receive(&mut control, wire::CONTROL_BYTES_MAX) {
        Ok(ToFollower::Go) => {}
        Ok(_) => return Err(lost(&io::Error::other("it speaks out of turn")).into()),
        Err(error) => return Err(lost(&error).into()),
    }

    control.set_read_timeout(Some(SILENCE))?;
    control.set_write_timeout(Some(SILENCE))?;
    let registry = Arc::new(setup::registry(config).following(SILENCE));
    let (ended_in, ended) = bounded(1);
    let writer = Arc::new(Mutex::new(control.try_clone()?));
    let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
    let (copy, gone) = (registry.clone(), on_lost.clone());
    spawn("leader").spawn(move || listen_to(control, &copy, &ended_in, &gone))?;
    let beating = writer.clone();
    spawn("beat").spawn(move || {
        while tell(&beating, &ToLeader::Beat).is_ok() {
            std::thread::sleep(BEAT);
        }
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (heeded_in, heeded) = bounded(1);
    spawn("signals").spawn(move || {
        runtime.block_on(async {
            let mut signals = Signals::heed();
            let _ = heeded_in.send(());
            signals.next().await;
            tracing::info!("asking the leader to stop; a second signal ends at once");
            // When the leader is gone this process is about to end anyway.
            let _ = tell(&writer, &ToLeader::Stop);
            signals.next().await;
            std::process::exit(130);
        });
    })?;
    let _ = heeded.recv();

    let mesh = mesh::build(members, &listener, run)?;
    let view = RegistryView::new(registry);
    tracing::info!(process = members.process, workers = hello.workers, "workers are lent");
    let queue = config.engine.queue_frames;
    engine::lend(spec, view, hello.workers, queue, mesh, |complete| {
        if let Err(error) = wire::send(&mut parts, &complete) {
            // The leader's end of the control connection says it better, if it comes.
            let _: Result<(), _> = ended.recv_timeout(GREETING);
            on_lost(lost(&error));
        }
    })?;
    drop(parts);
    wait_for_end(&ended, &on_lost);
    Ok(())
}

/// The listening thread ends the process when the leader is lost before it says so.
fn wait_for_end(ended: &Receiver<()>, on_lost: &OnLost) {
    if ended.recv().is_err() {
        on_lost(lost(&io::ErrorKind::UnexpectedEof.into()));
    }
}

/// A connection to the leader, who is waited for, and the number of its run.
fn greet(members: &Members, hello: &Hello) -> Result<(TcpStream, u64), ClusterError> {
    let started = clock::instant();
    let lost = |error: io::Error| lost(&error);
    let mut stream = loop {
        match mesh::connect(&members.control) {
            Ok(stream) => break stream,
            Err(error) if started.elapsed() > JOIN => return Err(lost(error)),
            Err(_) => std::thread::sleep(RETRY),
        }
    };
    // The leader answers once it has worked through what it must do first.
    stream.set_read_timeout(Some(JOIN)).map_err(lost)?;
    wire::send(&mut stream, hello).map_err(lost)?;
    match wire::receive(&mut stream, wire::GREETING_BYTES_MAX).map_err(lost)? {
        Welcome::Taken(run) => Ok((stream, run)),
        Welcome::Refused(why) => Err(ClusterError::Refused { process: members.process, why }),
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
            Ok(ToFollower::Go) => {}
            Err(error) => return on_lost(lost(&error)),
        }
    }
}
