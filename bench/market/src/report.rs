//! The books of an account with a report feed: totals per creative and hour, and which of them
//! changed since they were last told.

use std::collections::{BTreeMap, BTreeSet};

use omnify_operators::model::{EventTime, HOUR_US, Stats};

use crate::feed::{FeedItem, FeedReport};

/// (hour, creative), in the order of report rows.
type Cell = (EventTime, u32);

/// Totals by hour that may still change, and the changed ones.
#[derive(Debug)]
pub(crate) struct ReportBook {
    every_us: i64,
    /// An hour older than this is final: nothing is attributed to it any more.
    horizon_us: i64,
    cells: BTreeMap<Cell, Stats>,
    changed: BTreeSet<Cell>,
}

impl ReportBook {
    pub(crate) fn new(every_us: i64, horizon_us: i64) -> ReportBook {
        ReportBook { every_us, horizon_us, cells: BTreeMap::new(), changed: BTreeSet::new() }
    }

    /// Books `delta` on the hour of `time`.
    pub(crate) fn add(&mut self, time: EventTime, creative: u32, delta: Stats) {
        let cell = (time - time.rem_euclid(HOUR_US), creative);
        *self.cells.entry(cell).or_default() += delta;
        self.changed.insert(cell);
    }

    /// Tells every changed row if a report is due at `now`, and forgets final hours.
    pub(crate) fn report(&mut self, now: EventTime, out: &mut Vec<FeedItem>) {
        if now % self.every_us != 0 {
            return;
        }
        for cell in std::mem::take(&mut self.changed) {
            let (start_us, creative) = cell;
            let totals = self.cells.get(&cell).copied().unwrap_or_default();
            let end_us = start_us + HOUR_US;
            let row = FeedReport { creative, start_us, end_us, as_of_us: now, totals };
            out.push(FeedItem::Report(row));
        }
        self.cells = self.cells.split_off(&(now - HOUR_US - self.horizon_us, 0));
    }
}
