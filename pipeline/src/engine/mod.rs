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
mod note;
mod record;
mod wake;
mod worker;

use std::sync::Arc;

use omnify_operators::model::RegistryView;
use omnify_operators::spec::FeatureSpec;

pub use decide::{Decider, Execution, Resume, RunSummary, SharedBook, Watch, Watches, latency_ms};
pub use note::{Note, Notes};
pub use record::{Progress, Recorder};
pub use wake::Wakers;
pub use worker::BoxedFeed;

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
) -> anyhow::Result<(RunSummary, Option<anyhow::Error>)> {
    let workers = worker::start(spec, view, feeds, queue_ticks, wakers)?;
    let summary = decider.run(&workers.completed);
    let failure = workers.failure.take();
    let joined = workers.join();
    match (summary, joined) {
        // A panic of a worker explains whatever else went wrong.
        (_, Err(error)) => Err(error),
        (Err(error), _) => Err(error),
        (Ok(summary), Ok(())) => Ok((summary, failure)),
    }
}
