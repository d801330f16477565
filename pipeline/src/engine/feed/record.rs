//! The engine's own record: the ticks, events and controls exactly as they were.

use omnify_decision::control::Control;
use omnify_operators::graph::{Graph, Mark};
use omnify_operators::model::{Event, Tick};
use omnify_operators::state::StateItem;
use omnify_sinks::history::{Replay, TickRecord};

use super::{Fed, Feed};
use crate::engine::note::{Note, Notes};

/// Events sent in one go at most (a tick is never split).
const EVENTS_MAX: usize = 65_536;

/// Feeds worker 0 from a history; the others are [`Idle`](super::Idle).
pub struct RecordFeed {
    replay: Replay,
    /// The state that the history begins with.
    state: Option<(Tick, Vec<StateItem>)>,
    events: Vec<Event>,
    /// The tick read last, not sent yet: only its successor tells whether it is the last.
    pending: Option<(TickRecord, Vec<Event>)>,
    /// The overload level.
    calm: u8,
}

impl RecordFeed {
    /// A feed of `replay`, after the `state` of the tick before it, if there is one.
    pub fn new(replay: Replay, state: Option<(Tick, Vec<StateItem>)>) -> RecordFeed {
        RecordFeed { replay, state, events: Vec::new(), pending: None, calm: 0 }
    }

    fn send(
        &mut self,
        graph: &mut Graph,
        notes: &mut Notes,
        (record, events): (TickRecord, Vec<Event>),
        last: bool,
    ) -> usize {
        let rows = events.len();
        for control in &record.controls {
            if let Control::Calm { level } = control {
                self.calm = *level;
            }
        }
        super::send(graph, record.tick, events, Mark { last, calm: self.calm, ..Mark::default() });
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
        if let Some((tick, items)) = self.state.take() {
            super::restore(graph, notes, tick, items);
            return Ok(Fed::Some);
        }
        let mut sent = 0;
        while sent < EVENTS_MAX {
            let next = self.replay.next_into(&mut self.events)?;
            let next = next.map(|record| (record, std::mem::take(&mut self.events)));
            let ended = next.is_none();
            if let Some(pending) = std::mem::replace(&mut self.pending, next) {
                sent += self.send(graph, notes, pending, ended) + 1;
            }
            if ended {
                graph.advance_to(Tick::MAX);
                return Ok(Fed::End);
            }
        }
        Ok(Fed::Some)
    }
}
