//! Report rows state totals so far; only what they change enters the windows.
//!
//! For each (creative, interval) the greatest version (`as_of`, then order of arrival) wins. Its
//! difference to the version before becomes an [`Event`] of kind `report`, placed at the last
//! microsecond the statement is about: `min(as_of, interval end) − 1 µs`. So totals that grow
//! during a day fall where they were observed, and a correction after the day falls into the day.
//! Nothing is placed after the tick that brought it: a platform whose clock runs ahead, or one that
//! states no `as_of` (then it is the end of the interval, which may be to come), would otherwise
//! have its change refused as an event of the future, and the next difference would not make up
//! for it. The sum over the interval is always the newest total.
//!
//! The state is one version per interval ever reported, and is never swept: a correction may come
//! at any age, and forgetting the total before it would count the whole interval twice.

use std::collections::HashMap;

use crate::model::{
    Event, EventKind, NO_ID, NO_USER, ReportKey, ReportRow, ReportVersion, Stats, Tick, us_of_tick,
};

/// The newest version of every interval of one worker.
#[derive(Default)]
pub(crate) struct Restate {
    known: HashMap<ReportKey, ReportVersion>,
}

impl Restate {
    /// Applies the report rows of `tick`, in any order, and returns the changes, ascending.
    pub(crate) fn apply(&mut self, tick: Tick, mut rows: Vec<ReportRow>) -> Vec<Event> {
        let now = us_of_tick(tick);
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
                    time: row.version.as_of.min(row.key.end).min(now) - 1,
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
