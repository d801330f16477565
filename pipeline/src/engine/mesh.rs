//! The connections over which timely workers of several processes work together.

use std::net::TcpStream;
use std::time::Duration;

use crossbeam_channel::bounded;
use timely::communication::allocator::ProcessBuilder;
use timely::communication::allocator::zero_copy::initialize::{
    CommsGuard, initialize_networking_from_sockets,
};
use timely::communication::{AllocatorBuilder, Hooks};

/// How long the last messages may take to leave, and the other processes to close their ends.
const FLUSH: Duration = Duration::from_secs(5);

/// This process among others; all have the same number of workers.
#[derive(Debug)]
pub struct Mesh {
    /// Which process this is.
    pub process: usize,
    /// A connection to each process, `None` at the own place.
    pub sockets: Vec<Option<TcpStream>>,
}

/// The threads that send and receive.
pub(super) struct Comms(CommsGuard);

impl Comms {
    /// Waits until everything has left. A process that is gone keeps nobody waiting for long.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        let (done, finished) = bounded::<()>(0);
        std::thread::Builder::new().name("comms-end".into()).spawn(move || {
            drop(self.0);
            drop(done);
        })?;
        let _ = finished.recv_timeout(FLUSH);
        Ok(())
    }
}

/// What `workers` workers of this process talk through.
pub(super) fn build(
    workers: usize,
    mesh: Option<Mesh>,
) -> anyhow::Result<(Vec<AllocatorBuilder>, Option<Comms>)> {
    use timely::CommunicationConfig::{Process, Thread};
    let failed = |what: String| anyhow::anyhow!("the workers cannot be started: {what}");
    let Some(Mesh { process, sockets }) = mesh else {
        let alone = if workers == 1 { Thread } else { Process(workers) };
        let (builders, _nothing) = alone.try_build().map_err(failed)?;
        return Ok((builders, None));
    };
    let hooks = Hooks::default();
    let local =
        ProcessBuilder::new_typed_vector(workers, hooks.refill.clone(), hooks.spill.clone());
    let (builders, guard) =
        initialize_networking_from_sockets(local, sockets, process, workers, hooks)?;
    Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Some(Comms(guard))))
}
