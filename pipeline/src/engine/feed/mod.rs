//! Where a worker's input comes from.
//!
//! A feed runs on the worker's thread: it sends events and report rows into the graph at their
//! tick, announces ticks, and advances the worker's frontier. Three feeds: files of others
//! ([`FileFeed`], ticks from event time), the engine's own record ([`RecordFeed`], ticks as they
//! were), and a live queue ([`LiveFeed`]).

mod files;
mod live;
mod record;

pub use files::{FileFeed, Finish};
pub use live::{LiveFeed, LiveQueue, TickBatch};
pub use record::RecordFeed;

use omnify_operators::graph::{Graph, Mark};
use omnify_operators::model::{Event, NO_ID, Tick};

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
fn send(graph: &mut Graph, tick: Tick, mut events: Vec<Event>, last: bool) {
    graph.advance_to(tick);
    graph.ticks.send(Mark { last, ids: ids(&events), ..Mark::default() });
    graph.events.send_batch(&mut events);
}

/// Number of events with an id.
fn ids(events: &[Event]) -> u64 {
    events.iter().filter(|event| event.id != NO_ID).count() as u64
}
