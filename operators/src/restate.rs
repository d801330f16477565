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
//! A row that repeats the known version exactly (same `as_of`, same totals) is refused as a
//! duplicate. A row about an interval that ended longer ago than the horizon is refused as too
//! late, and what was known of such intervals is forgotten: so nothing is ever counted twice, and
//! the state is bounded by what is reported within the horizon.

use std::collections::BTreeMap;

use indexmap::IndexMap;

use crate::intake::Refusal;
use crate::model::{
    DAY_US, EntityId, Event, EventKind, EventTime, NO_ID, NO_USER, ReportRow, ReportVersion, Stats,
    Tick, us_of_tick,
};
use crate::state::{Outgoing, StateError, StateItem, StatePart, Stateful};

/// The newest version of every interval (start, end) of one creative.
type Intervals = BTreeMap<(EventTime, EventTime), ReportVersion>;

/// Creatives whose old intervals are looked for in one tick.
const FORGET_CREATIVES: usize = 256;

/// The newest version of every interval of one worker.
pub(crate) struct Restate {
    horizon_us: i64,
    /// In the order of first arrival, which never shows.
    known: IndexMap<EntityId, Intervals>,
    /// The day on which forgetting was begun last, and how many creatives it has still to visit.
    day: i64,
    forget: usize,
    export: Option<Outgoing>,
}

/// What became of one tick's report rows.
#[derive(Debug, Default)]
pub(crate) struct Restated {
    /// The changes, ascending.
    pub(crate) events: Vec<Event>,
    /// Ascending.
    pub(crate) refused: Vec<(ReportRow, Refusal)>,
}

impl Restate {
    /// Remembers intervals until `horizon_us` after their end.
    pub(crate) fn new(horizon_us: i64) -> Restate {
        let known = IndexMap::new();
        Restate { horizon_us, known, day: i64::MIN, forget: 0, export: None }
    }

    /// Applies the report rows of `tick`, in any order.
    pub(crate) fn apply(&mut self, tick: Tick, mut rows: Vec<ReportRow>) -> Restated {
        let now = us_of_tick(tick);
        let oldest = now.saturating_sub(self.horizon_us);
        let mut out = Restated::default();
        rows.sort_unstable_by_key(|row| (row.key, row.version));
        for same in rows.chunk_by(|a, b| a.key.creative == b.key.creative) {
            let intervals = self.intervals(same[0].key.creative);
            for row in same {
                match restate(intervals, row, now, oldest) {
                    Ok(change) => out.events.extend(change),
                    Err(refusal) => out.refused.push((*row, refusal)),
                }
            }
        }
        out.events.sort_unstable();
        out.refused.sort_unstable();
        self.forget(now);
        out
    }

    /// What is known of a creative, about to be changed.
    fn intervals(&mut self, creative: EntityId) -> &mut Intervals {
        let entry = self.known.entry(creative);
        let at = entry.index();
        let intervals = entry.or_default();
        if let Some(export) = &mut self.export
            && export.claim(at)
        {
            export.push(item(creative, intervals));
        }
        intervals
    }

    /// Once a day every creative is visited, a few in each tick, and what is beyond the horizon
    /// forgotten; rows about it are refused whether it has been forgotten or not.
    pub(crate) fn forget(&mut self, now: EventTime) {
        if self.export.is_some() {
            // Forgetting renumbers what the export counts on.
            return;
        }
        let day = now.div_euclid(DAY_US);
        if day > self.day {
            (self.day, self.forget) = (day, self.known.len());
        }
        let oldest = now.saturating_sub(self.horizon_us);
        for _ in 0..self.forget.min(FORGET_CREATIVES) {
            self.forget -= 1;
            let Some((_, intervals)) = self.known.get_index_mut(self.forget) else { continue };
            intervals.retain(|(_, end), _| *end >= oldest);
            if intervals.is_empty() {
                self.known.swap_remove_index(self.forget);
            }
        }
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        let interval = size_of::<(EventTime, EventTime)>() + size_of::<ReportVersion>();
        let intervals: usize = self.known.values().map(BTreeMap::len).sum();
        self.known.capacity() * (size_of::<(EntityId, Intervals)>() + 2 * size_of::<usize>())
            // Nodes of a B-tree are two thirds full on average.
            + intervals * interval * 3 / 2
    }
}

/// The change that `row` makes to what is known, if any.
fn restate(
    intervals: &mut Intervals,
    row: &ReportRow,
    now: EventTime,
    oldest: EventTime,
) -> Result<Option<Event>, Refusal> {
    if row.key.end < oldest {
        return Err(Refusal::TooLate);
    }
    let (said, interval) = (row.version, (row.key.start, row.key.end));
    let before = intervals.get(&interval).copied();
    if before.is_some_and(|known| (known.as_of, known.totals) == (said.as_of, said.totals)) {
        return Err(Refusal::Duplicate);
    }
    if before.is_some_and(|known| known >= said) {
        return Ok(None);
    }
    intervals.insert(interval, said);
    let delta = said.totals - before.map_or(Stats::ZERO, |known| known.totals);
    // The first statement about an interval is an event even when it states nothing: it makes the
    // creative known.
    let changes = before.is_none() || !delta.is_empty();
    Ok(changes.then(|| Event {
        time: said.as_of.min(row.key.end).min(now) - 1,
        creative: row.key.creative,
        kind: EventKind::Report,
        delta,
        user: NO_USER,
        id: NO_ID,
    }))
}

fn item(creative: EntityId, intervals: &Intervals) -> StateItem {
    StateItem::new(StatePart::Restate, creative, intervals)
}

impl Stateful for Restate {
    fn begin_export(&mut self, _tick: Tick) {
        self.export = Some(Outgoing::new(self.known.len()));
    }

    fn export(&mut self, bytes: usize) -> (Vec<StateItem>, bool) {
        let Some(export) = &mut self.export else { return (Vec::new(), true) };
        while let Some(at) = export.next(bytes) {
            if let Some((creative, intervals)) = self.known.get_index(at) {
                export.push(item(*creative, intervals));
            }
        }
        let (items, done) = (export.take(), export.is_through());
        if done {
            self.export = None;
        }
        (items, done)
    }

    fn restore(&mut self, _tick: Tick, items: &[StateItem]) -> Result<(), StateError> {
        for item in items {
            self.known.insert(item.entity, item.read()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ReportKey;

    const NOW: Tick = 500 * 86_400_000;

    fn row(creative: u32, days_ago: i64, as_of_days_ago: i64, clicks: i64) -> ReportRow {
        let end = us_of_tick(NOW) - days_ago * DAY_US;
        ReportRow {
            key: ReportKey { creative: EntityId(creative), start: end - DAY_US, end },
            version: ReportVersion {
                as_of: us_of_tick(NOW) - as_of_days_ago * DAY_US,
                sequence: 0,
                totals: Stats { clicks, ..Stats::ZERO },
            },
        }
    }

    #[test]
    fn only_exact_repetitions_of_the_newest_version_are_duplicates() {
        let mut restate = Restate::new(400 * DAY_US);
        let mut take = |row: ReportRow, sequence| {
            let version = ReportVersion { sequence, ..row.version };
            let out = restate.apply(NOW, vec![ReportRow { version, ..row }]);
            (out.events.len(), out.refused.first().map(|(_, why)| *why))
        };
        assert_eq!(take(row(1, 2, 1, 5), 1), (1, None));
        assert_eq!(take(row(1, 2, 1, 5), 2), (0, Some(Refusal::Duplicate)));
        assert_eq!(take(row(1, 2, 0, 5), 3), (0, None), "said again later: a version, no change");
        assert_eq!(take(row(1, 2, 0, 6), 4), (1, None));
        assert_eq!(take(row(1, 2, 0, 5), 5), (1, None), "a correction taken back");
        assert_eq!(take(row(1, 2, 1, 5), 6), (0, None), "older than what is known");
        assert_eq!(take(row(1, 2, 0, 5), 7), (0, Some(Refusal::Duplicate)));
    }

    #[test]
    fn what_is_beyond_the_horizon_is_refused_and_forgotten() {
        let mut restate = Restate::new(10 * DAY_US);
        let out = restate.apply(NOW, vec![row(1, 3, 2, 5), row(2, 11, 2, 5), row(2, 10, 2, 5)]);
        assert_eq!(out.events.len(), 2);
        assert_eq!(out.refused, [(row(2, 11, 2, 5), Refusal::TooLate)]);
        for day in 1..=7 {
            restate.forget(us_of_tick(NOW) + day * DAY_US);
        }
        assert_eq!(restate.known.len(), 1, "the interval of creative 2 is forgotten");
        restate.forget(us_of_tick(NOW) + 8 * DAY_US);
        assert!(restate.known.is_empty() && restate.known.capacity() > 0);
    }

    #[test]
    fn an_export_holds_what_was_known_when_it_began() {
        let mut restate = Restate::new(400 * DAY_US);
        let rows = (0..50).map(|creative| row(creative, 2, 1, 5)).collect();
        restate.apply(NOW, rows);
        restate.begin_export(NOW);
        let (mut items, _) = restate.export(100);
        restate.apply(NOW + 1, vec![row(0, 2, 0, 9), row(49, 2, 0, 9), row(77, 2, 0, 9)]);
        loop {
            let (more, done) = restate.export(1_000);
            items.extend(more);
            if done {
                break;
            }
        }
        items.sort();
        let mut loaded = Restate::new(400 * DAY_US);
        loaded.restore(NOW, &items).unwrap();
        assert_eq!(items.len(), 50);
        assert!(loaded.known.values().flatten().all(|(_, known)| known.totals.clicks == 5));
        assert_eq!(restate.known[&EntityId(49)].values().next().unwrap().totals.clicks, 9);
    }
}
