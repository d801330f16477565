//! The worker loop: feed a bounded amount, step, hand complete ticks on; park only when idle.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use omnify_operators::graph;
use omnify_operators::model::{RegistryView, Tick};
use omnify_operators::spec::FeatureSpec;

use super::feed::{Fed, Feed};
use super::mesh::{self, Comms, Mesh};
use super::note::{Completed, Notes};
use super::wake::Wakers;

/// Complete ticks a worker keeps for the decision thread before it stops feeding.
const BACKLOG_MAX: usize = 64;
/// Longest sleep of an idle worker: a lost wake-up costs at most this.
const PARK: Duration = Duration::from_millis(5);
/// Longest sleep of a worker that is fed by others only, whose news wake it.
const PARK_FED: Duration = Duration::from_millis(1);
/// How long a worker that panicked keeps the others waiting, so that a lost process is reported as
/// the cause.
const PANICKED: Duration = Duration::from_secs(3);

/// The running workers.
pub(crate) struct Workers {
    guards: timely::communication::WorkerGuards<()>,
    comms: Option<Comms>,
    /// Complete ticks, one queue for each worker.
    pub(crate) completed: Vec<Receiver<Completed>>,
    /// The first error a feed met, if any.
    pub(crate) failure: Failure,
}

/// The first error of a feed, shared by all workers.
#[derive(Clone, Default)]
pub(crate) struct Failure(Arc<Mutex<Option<anyhow::Error>>>);

impl Failure {
    fn set(&self, error: anyhow::Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Takes the error.
    pub(crate) fn take(&self) -> Option<anyhow::Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A feed to be run on a worker's thread.
pub type BoxedFeed = Box<dyn Feed + Send>;

/// Ends the process when a worker panics that other processes work with: they, and the other
/// workers here, would wait for it for ever.
struct Panicked(bool);

impl Drop for Panicked {
    fn drop(&mut self) {
        if self.0 && std::thread::panicking() {
            std::thread::sleep(PANICKED);
            std::process::exit(5);
        }
    }
}

/// Starts one worker for each feed. Complete ticks wait in queues of `queue_ticks`. With a `mesh`
/// they work together with those of other processes.
pub(crate) fn start(
    spec: Arc<FeatureSpec>,
    view: RegistryView,
    feeds: Vec<BoxedFeed>,
    queue_ticks: usize,
    wakers: Wakers,
    mesh: Option<Mesh>,
) -> anyhow::Result<Workers> {
    let (workers, together) = (feeds.len(), mesh.is_some());
    let (senders, completed): (Vec<_>, Vec<_>) =
        (0..workers).map(|_| bounded(queue_ticks.max(1))).unzip();
    let resources: Vec<_> = feeds.into_iter().zip(senders).map(Some).collect();
    let resources = Mutex::new(resources);
    let failure = Failure::default();
    let failed = failure.clone();
    let aborted = Arc::new(AtomicBool::new(false));
    let (builders, comms) = mesh::build(workers, mesh)?;
    let config = timely::WorkerConfig::default();
    let guards = timely::execute::execute_from(builders, Box::new(()), config, move |worker| {
        let mut resources = resources.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((feed, sender)) = resources[worker.index() % workers].take() else { return };
        drop(resources);
        wakers.register();
        let _panicked = Panicked(together);
        run(worker, &spec, &view, feed, &sender, &failed, &aborted);
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
    })
    .map_err(|reason| anyhow::anyhow!("the workers cannot be started: {reason}"))?;
    Ok(Workers { guards, comms, completed, failure })
}

fn run(
    worker: &mut timely::worker::Worker,
    spec: &Arc<FeatureSpec>,
    view: &RegistryView,
    mut feed: BoxedFeed,
    sender: &Sender<Completed>,
    failure: &Failure,
    aborted: &AtomicBool,
) {
    let mut graph = worker.dataflow_named("omnify", |scope| graph::build(scope, spec, view));
    let mut notes = Notes::new();
    let mut backlog: VecDeque<Completed> = VecDeque::new();
    let mut sent: VecDeque<Tick> = VecDeque::new();
    let mut state = Fed::Some;
    while !aborted.load(Ordering::Relaxed) {
        if state != Fed::End && backlog.len() < BACKLOG_MAX && may_feed(&graph, &mut sent) {
            state = feed.feed(&mut graph, &mut notes).unwrap_or_else(|error| {
                failure.set(error);
                graph.advance_to(Tick::MAX);
                Fed::End
            });
            if state == Fed::Some {
                sent.push_back(*graph.ticks.time());
            }
        }
        // Parking with a tick under way would delay it: its progress may need further steps.
        let under_way = graph.probe.less_than(graph.ticks.time());
        if state == Fed::Idle && backlog.is_empty() && !under_way {
            worker.step_or_park(Some(PARK));
        } else if state == Fed::End && backlog.is_empty() {
            worker.step_or_park(Some(PARK_FED));
        } else {
            worker.step();
        }
        while let Some(part) = graph.outbox.pop(|tick| !graph.probe.less_than(&(tick + 1))) {
            let mut note = super::note::Note::default();
            while let Some(entry) = notes.first_entry().filter(|entry| *entry.key() <= part.tick) {
                note.merge(entry.remove());
            }
            backlog.push_back(Completed { part, note });
        }
        while let Some(completed) = backlog.pop_front() {
            match sender.try_send(completed) {
                Ok(()) => {}
                Err(TrySendError::Full(completed)) => {
                    backlog.push_front(completed);
                    // The decision thread is behind: let it run.
                    std::thread::sleep(Duration::from_micros(50));
                    break;
                }
                // The decision thread is gone; nobody wants the rest.
                Err(TrySendError::Disconnected(_)) => aborted.store(true, Ordering::Relaxed),
            }
        }
        let done = !graph.probe.less_than(&Tick::MAX);
        if state == Fed::End && backlog.is_empty() && done {
            return;
        }
    }
}

/// Batches a worker may be ahead of what is complete.
const AHEAD_MAX: usize = 4;

/// A worker that is ahead of the others stops feeding; the one that everybody waits for never does.
fn may_feed(graph: &graph::Graph, sent: &mut VecDeque<Tick>) -> bool {
    while sent.front().is_some_and(|tick| !graph.probe.less_than(tick)) {
        sent.pop_front();
    }
    sent.len() < AHEAD_MAX
}

impl Workers {
    /// Waits for all workers; reports the first that panicked.
    pub(crate) fn join(self) -> anyhow::Result<()> {
        // Workers that still have something to hand on learn that nobody takes it.
        drop(self.completed);
        for (index, result) in self.guards.join().into_iter().enumerate() {
            result.map_err(|what| anyhow::anyhow!("worker {index} failed: {what}"))?;
        }
        self.comms.map_or(Ok(()), Comms::finish)
    }
}
