//! Report rows state totals so far; only what they change enters the windows.
//!
//! For each (creative, interval) the greatest version (`as_of`, then order of arrival) wins. Its
//! difference to the version before becomes an [`Event`] of kind `report`, placed at the last
//! microsecond the statement is about: `min(as_of, interval end) − 1 µs`. So totals that grow
//! during a day fall where they were observed, and a correction after the day falls into the day.
//! The sum over the interval is always the newest total.

use std::collections::HashMap;

use crate::model::{Event, EventKind, NO_ID, NO_USER, ReportKey, ReportRow, ReportVersion, Stats};

/// The newest version of every interval of one worker.
#[derive(Default)]
pub(crate) struct Restate {
    known: HashMap<ReportKey, ReportVersion>,
}

impl Restate {
    /// Applies the report rows of one tick, in any order, and returns the changes, ascending.
    pub(crate) fn apply(&mut self, mut rows: Vec<ReportRow>) -> Vec<Event> {
        rows.sort_unstable_by_key(|row| (row.key, row.version));
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            let before = self.known.get(&row.key).copied();
            if before.is_some_and(|known| known >= row.version) {
                continue;
            }
            self.known.insert(row.key, row.version);
            let delta = row.version.totals - before.map_or(Stats::ZERO, |known| known.totals);
            // The first statement about an interval is an event even when it states nothing: it
            // makes the creative known.
            if before.is_none() || !delta.is_empty() {
                events.push(Event {
                    time: row.version.as_of.min(row.key.end) - 1,
                    creative: row.key.creative,
                    kind: EventKind::Report,
                    delta,
                    user: NO_USER,
                    id: NO_ID,
                });
            }
        }
        events.sort_unstable();
        events
    }
}
