//! The input of an exact replay: every tick with its events and controls.

use std::sync::Arc;

use omnify_operators::model::{Event, Registry};

use super::super::{Difference, HistoryError, TickRecord};
use super::HistoryReader;
use super::events::EventRows;
use super::merge::Merge;
use super::ticks::Ticks;

/// Yields ticks in order, each with its events in the order in which they entered the graph. Every
/// row, count and sum is checked on the way; the first that differs ends the replay with
/// [`HistoryError::Difference`].
pub struct Replay {
    ticks: Ticks,
    events: Merge<EventRows>,
    failed: bool,
}

impl Replay {
    pub(crate) fn new(reader: &HistoryReader, registry: Arc<Registry>) -> Replay {
        let events = Merge::new(reader, EventRows::new(registry));
        Replay { ticks: reader.ticks(), events, failed: false }
    }

    /// The next tick; `events` is replaced by its events. `None` at the end.
    pub fn next_into(
        &mut self,
        events: &mut Vec<Event>,
    ) -> Result<Option<TickRecord>, HistoryError> {
        events.clear();
        let record = self.ticks.next().transpose()?;
        let head = self.events.peek();
        let Some(record) = record else {
            return match head {
                None => Ok(None),
                Some(tick) => Err(spurious(tick).into()),
            };
        };
        let mut sum = 0;
        match head {
            Some(head) if head < record.tick => return Err(spurious(head).into()),
            Some(head) if head == record.tick => sum = self.events.take(head, events)?,
            _ => {}
        }
        if (events.len() as u64, sum) != (record.events, record.events_check) {
            let what = format!(
                "{} events with check sum {sum:016x}, the tick closed with {} events and {:016x}",
                events.len(),
                record.events,
                record.events_check
            );
            return Err(difference(record.tick, what).into());
        }
        Ok(Some(record))
    }
}

fn spurious(tick: u64) -> Difference {
    difference(tick, "events of a tick that was never closed".to_owned())
}

fn difference(tick: u64, what: String) -> Difference {
    Difference { tick: Some(tick), entity: None, file: "table=events".to_owned(), what }
}

impl Iterator for Replay {
    type Item = Result<(TickRecord, Vec<Event>), HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let mut events = Vec::new();
        let item = self.next_into(&mut events).map(|record| record.map(|record| (record, events)));
        self.failed = item.is_err();
        item.transpose()
    }
}
