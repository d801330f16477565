//! The running engine: workers, the decision thread and the history thread.
//!
//! ```text
//! feed ─► worker 0 (timely graph) ─┐
//! feed ─► worker 1 ────────────────┴─► decision thread ─► history thread
//!                                            ├─► dispatcher ─► ad platforms
//!                                            └─► board ─► HTTP
//! ```
//!
//! Every arrow is a bounded queue. At a bound the stage before waits, up to the feeds, which then
//! stop reading their sources. The same engine runs live, over foreign files and over its own
//! record; only the feeds differ.

mod decide;
pub mod feed;
mod mesh;
mod note;
mod record;
mod wake;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Receiver;
use omnify_operators::graph::Part;
use omnify_operators::model::RegistryView;
use omnify_operators::spec::FeatureSpec;

pub use decide::{
    Decider, Deciding, Execution, Made, Resume, RunSummary, SharedBook, Watch, Watches, latency_ms,
};
pub use mesh::Mesh;
pub use note::{Completed, Note, Notes};
pub use record::{Progress, Recorder, Recording};
pub use wake::Wakers;
pub use worker::BoxedFeed;
pub(crate) use worker::{Workers, start as start_workers};

/// Workers in other processes that take part in the graph (see [`crate::cluster`]).
pub struct Others {
    /// The way to them.
    pub mesh: Mesh,
    /// For each of them, where its complete ticks come in.
    pub completed: Vec<Receiver<Completed>>,
    /// Set when no more ticks are decided upon.
    pub ending: Arc<AtomicBool>,
}

/// Runs the engine until its feeds end; blocks. `wakers` wake the workers when a feed has news.
///
/// When a feed fails, what it delivered before is closed and recorded like a whole input; then the
/// failure is returned beside the summary.
pub fn run(
    spec: Arc<FeatureSpec>,
    view: RegistryView,
    feeds: Vec<BoxedFeed>,
    queue_ticks: usize,
    wakers: Wakers,
    decider: Decider,
    others: Option<Others>,
) -> anyhow::Result<(RunSummary, Option<anyhow::Error>)> {
    let (mesh, elsewhere, ending) = match others {
        Some(Others { mesh, completed, ending }) => (Some(mesh), completed, ending),
        None => (None, Vec::new(), Arc::default()),
    };
    let workers = worker::start(spec, view, feeds, queue_ticks, wakers, mesh)?;
    let completed: Vec<_> = workers.completed.iter().cloned().chain(elsewhere).collect();
    let summary = decider.run(&completed);
    ending.store(true, Ordering::Release);
    drop(completed);
    let failure = workers.failure.take();
    let joined = workers.join();
    match (summary, joined) {
        // A panic of a worker explains whatever else went wrong.
        (_, Err(error)) => Err(error),
        (Err(error), _) => Err(error),
        (Ok(summary), Ok(())) => Ok((summary, failure)),
    }
}

/// Runs `workers` workers for the engine in another process until that ends them; blocks. `give`
/// takes what they put out: their parts of one tick, in order of the workers.
pub fn lend(
    spec: Arc<FeatureSpec>,
    view: RegistryView,
    workers: usize,
    queue_ticks: usize,
    mesh: Mesh,
    mut give: impl FnMut(Vec<Part>),
) -> anyhow::Result<()> {
    let feeds = (0..workers).map(|_| Box::new(feed::Idle) as BoxedFeed).collect();
    let wakers = Wakers::default();
    let workers = worker::start(spec, view, feeds, queue_ticks, wakers, Some(mesh))?;
    'ticks: loop {
        let mut parts = Vec::with_capacity(workers.completed.len());
        for worker in &workers.completed {
            let Ok(complete) = worker.recv() else { break 'ticks };
            parts.push(complete.part);
        }
        give(parts);
    }
    workers.join()
}
