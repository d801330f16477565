//! Where a worker's input comes from.
//!
//! A feed runs on the worker's thread: it sends events and report rows into the graph at their
//! tick, announces ticks, and advances the worker's frontier. Three feeds: files of others
//! ([`FileFeed`], ticks from event time), the engine's own record ([`RecordFeed`], ticks as they
//! were), and a live queue ([`LiveFeed`]), which a [`ResumeFeed`] precedes by what an earlier process
//! left.

mod files;
mod live;
mod record;
mod resume;

pub use files::{FileFeed, Finish};
pub use live::{Follow, LiveFeed, LiveQueue, TickBatch};
pub use record::RecordFeed;
pub use resume::{OnEntry, ResumeFeed};

use omnify_operators::graph::{Graph, Mark};
use omnify_operators::model::{Event, NO_ID, Tick};
use omnify_operators::state::StateItem;

use super::note::Notes;

/// What a feed did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    /// It sent something.
    Some,
    /// There is nothing to send now.
    Idle,
    /// There will be nothing more, and the frontier has been advanced past everything.
    End,
}

/// A source of one worker's input.
pub trait Feed {
    /// Sends a bounded amount of input, and accounts for it in `notes`.
    fn feed(&mut self, graph: &mut Graph, notes: &mut Notes) -> anyhow::Result<Fed>;
}

/// Sends `events`, announced, at `tick`. The batch travels as one container, uncopied.
fn send(graph: &mut Graph, tick: Tick, mut events: Vec<Event>, mark: Mark) {
    graph.advance_to(tick);
    graph.ticks.send(Mark { ids: ids(&events), ..mark });
    graph.events.send_batch(&mut events);
}

/// Sends the state as of `tick`, which must be the first tick.
fn restore(graph: &mut Graph, notes: &mut Notes, tick: Tick, items: Vec<StateItem>) {
    graph.advance_to(tick);
    graph.ticks.send(Mark { restored: true, ..Mark::default() });
    for item in items {
        graph.restore.send(item);
    }
    notes.entry(tick).or_default().restored = true;
    graph.advance_to(tick + 1);
}

/// The feed of a worker that is sent everything by another.
pub struct Idle;

impl Feed for Idle {
    fn feed(&mut self, graph: &mut Graph, _notes: &mut Notes) -> anyhow::Result<Fed> {
        graph.advance_to(Tick::MAX);
        Ok(Fed::End)
    }
}

/// Number of events with an id.
fn ids(events: &[Event]) -> u64 {
    events.iter().filter(|event| event.id != NO_ID).count() as u64
}
