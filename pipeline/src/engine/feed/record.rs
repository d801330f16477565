//! The engine's own record: the ticks, events and controls exactly as they were.

use omnify_operators::graph::Graph;
use omnify_operators::model::{Event, Tick};
use omnify_sinks::history::{Replay, TickRecord};

use super::{Fed, Feed};
use crate::engine::note::{Note, Notes};

/// Events sent in one go at most (a tick is never split).
const EVENTS_MAX: usize = 65_536;

/// Feeds one worker from a history; the others take part with `None`.
pub struct RecordFeed {
    replay: Option<Replay>,
    events: Vec<Event>,
    /// The tick read last, not sent yet: only its successor tells whether it is the last.
    pending: Option<(TickRecord, Vec<Event>)>,
}

impl RecordFeed {
    /// A feed of `replay`.
    pub fn new(replay: Option<Replay>) -> RecordFeed {
        RecordFeed { replay, events: Vec::new(), pending: None }
    }

    fn send(
        graph: &mut Graph,
        notes: &mut Notes,
        (record, events): (TickRecord, Vec<Event>),
        last: bool,
    ) -> usize {
        let rows = events.len();
        super::send(graph, record.tick, events, last);
        notes.entry(record.tick).or_default().merge(Note {
            rows: rows as u64,
            controls: record.controls,
            expected: Some(record.digest),
            ..Note::default()
        });
        rows
    }
}

impl Feed for RecordFeed {
    fn feed(&mut self, graph: &mut Graph, notes: &mut Notes) -> anyhow::Result<Fed> {
        let Some(replay) = &mut self.replay else {
            graph.advance_to(Tick::MAX);
            return Ok(Fed::End);
        };
        let mut sent = 0;
        while sent < EVENTS_MAX {
            let next = replay.next_into(&mut self.events)?;
            let next = next.map(|record| (record, std::mem::take(&mut self.events)));
            let ended = next.is_none();
            if let Some(pending) = std::mem::replace(&mut self.pending, next) {
                sent += Self::send(graph, notes, pending, ended) + 1;
            }
            if ended {
                graph.advance_to(Tick::MAX);
                return Ok(Fed::End);
            }
        }
        Ok(Fed::Some)
    }
}
