//! A live engine that goes on where an earlier process stood: first the state, then the ticks that
//! came after it, then what comes now.

use omnify_operators::graph::{Graph, Mark};
use omnify_operators::model::Tick;
use omnify_operators::state::StateItem;
use omnify_sinks::journal::TickEntry;

use super::live::{LiveFeed, TickBatch};
use super::{Fed, Feed};
use crate::durable::Tail;
use crate::engine::note::{Note, Notes};

/// Events sent in one go at most (a tick is never split).
const EVENTS_MAX: usize = 65_536;

/// Told of every tick that is made once more.
pub type OnEntry = Box<dyn FnMut(&TickEntry) + Send>;

/// The feed of worker 0.
pub struct ResumeFeed {
    restore: Option<(Tick, Vec<StateItem>)>,
    tail: Option<Tail>,
    on_entry: OnEntry,
    live: LiveFeed,
}

impl ResumeFeed {
    /// Feeds the state as of a tick, then `tail`, then `live`.
    pub fn new(
        restore: Option<(Tick, Vec<StateItem>)>,
        tail: Option<Tail>,
        on_entry: OnEntry,
        live: LiveFeed,
    ) -> ResumeFeed {
        ResumeFeed { restore, tail, on_entry, live }
    }

    /// Sends some ticks of the tail; true while there are more.
    fn again(&mut self, graph: &mut Graph, notes: &mut Notes) -> anyhow::Result<bool> {
        let Some(tail) = &mut self.tail else { return Ok(false) };
        let mut sent = 0;
        while sent < EVENTS_MAX {
            let Some(entry) = tail.entries.next().transpose()? else { return Ok(false) };
            (self.on_entry)(&entry);
            sent += entry.events.len() + 1;
            self.live.lead.reach(entry.tick + 1);
            batch_of(entry).send(graph, notes);
        }
        Ok(true)
    }
}

/// The tick as it was closed; a snapshot that was taken of it is not taken again.
fn batch_of(entry: TickEntry) -> TickBatch {
    let ids = super::ids(&entry.events);
    TickBatch {
        tick: entry.tick,
        mark: Mark { ids, calm: entry.calm, last: entry.mark_last, ..Mark::default() },
        events: vec![entry.events],
        reports: entry.reports,
        note: Note {
            rows: entry.rows,
            ignored: entry.ignored,
            dead: entry.dead,
            controls: entry.controls,
            watermarks: entry.watermarks,
            ..Note::default()
        },
    }
}

impl Feed for ResumeFeed {
    fn feed(&mut self, graph: &mut Graph, notes: &mut Notes) -> anyhow::Result<Fed> {
        if let Some((tick, items)) = self.restore.take() {
            self.live.lead.reach(tick + 1);
            super::restore(graph, notes, tick, items);
            self.live.wakers.wake();
            return Ok(Fed::Some);
        }
        if self.tail.is_some() {
            let more = self.again(graph, notes)?;
            if !more {
                self.tail = None;
            }
            self.live.wakers.wake();
            return Ok(Fed::Some);
        }
        self.live.feed(graph, notes)
    }
}
