//! Report rows state totals so far; only what they change enters the windows.
//!
//! # What a row states
//! A row is about a creative, an interval and an attribution window. It states two facts:
//!
//! - **delivery** (impressions, clicks, cost), which is the same whatever the attribution window, so
//!   that the newest row of any window tells it. A row with conversions or revenue and no delivery at
//!   all is one of those into which a platform splits the conversions of an interval: it says
//!   nothing about delivery;
//! - **outcome** (conversions, revenue), which counts if the row is of the one window that feeds the
//!   features of its account ([`AttributionRule`]). Windows overlap, so outcomes of others are never
//!   added; they change nothing.
//!
//! Newest is the greatest (time of the statement, order of arrival). A statement is of the tick that
//! brings it at the latest: a platform whose clock runs ahead, or that names no time (then it is the
//! end of the interval, which may be to come), states what it knows now. A row that states what is
//! known changes nothing, however often it comes: whoever reads the last 28 days again and again
//! pays a lookup for what is as it was.
//!
//! When another window is configured for an account, an interval keeps the outcome it has until the
//! platform states it under the new window, which the next re-read does.
//!
//! # What enters
//! Intervals of different grain are reconciled by the rule in [`forest`]; what an interval adds by
//! itself is its own. The difference that the rows of a tick make to it becomes an [`Event`] of kind
//! `report`, placed at the last microsecond its newest statement is about: `min(as_of, interval end)
//! − 1 µs`. So totals that grow during a day fall where they were observed, a correction after the
//! day falls into the day, and what an hour row takes out of its day's own is taken from where the
//! day's newest statement had put it. An interval that has left every window changes nothing there.
//!
//! # What is refused
//! - Intervals that overlap in part: an hour that is half in one day and half in the next cannot be
//!   told apart, and whatever were assumed, something would be counted twice or not at all. The
//!   interval that was known first stands.
//! - Intervals that begin beyond the horizon, or lie in one that does: what was known of them is
//!   forgotten. So nothing is ever counted twice.
//! - More than [`INTERVALS_MAX`] intervals of one creative. With that, and [`known`] taking some
//!   twenty bytes for each, the state is bounded by what is reported within the horizon.

mod forest;
mod known;

use std::cmp::Reverse;
use std::collections::BTreeSet;

use indexmap::IndexMap;

use self::forest::{Fact, Node, Share, shares};
use self::known::Known;
use crate::intake::Refusal;
use crate::model::{
    Attribution, AttributionRule, DAY_US, EntityId, Event, EventKind, EventTime, NO_ID, NO_USER,
    RegistryView, ReportRow, ReportVersion, Stats, Tick, us_of_tick,
};
use crate::spec::FeatureSpec;
use crate::state::{Outgoing, StateError, StateItem, StatePart, Stateful};

/// Intervals known of one creative: more than a year and a half by the hour.
const INTERVALS_MAX: usize = 16_384;

/// Creatives whose old intervals are looked for in one tick.
const FORGET_CREATIVES: usize = 256;

/// The newest statements about every interval of one worker's creatives.
pub(crate) struct Restate {
    horizon_us: i64,
    widest_us: i64,
    rules: Vec<AttributionRule>,
    view: RegistryView,
    /// The tick before: windows that end after it may still be changed.
    before: Option<Tick>,
    /// In the order of first arrival, which never shows.
    known: IndexMap<EntityId, Known>,
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
    /// Rows taken that stated what was known, something older, or nothing that counts.
    pub(crate) unchanged: u64,
    /// Ascending.
    pub(crate) refused: Vec<(ReportRow, Refusal)>,
}

/// The times that bound what a tick's rows may do.
#[derive(Clone, Copy)]
struct Times {
    now: EventTime,
    /// Rows about anything that begins before this are refused.
    oldest: EventTime,
    /// Before this, nothing is in a window any more.
    past: EventTime,
}

impl Restate {
    pub(crate) fn new(spec: &FeatureSpec, view: RegistryView) -> Restate {
        Restate {
            horizon_us: spec.intake.restatement_horizon_us,
            widest_us: spec.widest_us(),
            rules: spec.attribution.clone(),
            view,
            before: None,
            known: IndexMap::new(),
            day: i64::MIN,
            forget: 0,
            export: None,
        }
    }

    /// Applies the report rows of `tick`, in any order. Every tick must be told, rows or not.
    pub(crate) fn apply(&mut self, tick: Tick, mut rows: Vec<ReportRow>) -> Restated {
        let now = us_of_tick(tick);
        let before = self.before.replace(tick);
        let times = Times {
            now,
            oldest: now.saturating_sub(self.horizon_us),
            past: before.map_or(EventTime::MIN, |before| us_of_tick(before) - self.widest_us),
        };
        let mut out = Restated::default();
        rows.sort_unstable_by_key(|row| (row.key, row.version));
        for same in rows.chunk_by(|a, b| a.key.creative == b.key.creative) {
            self.creative(same, times, &mut out);
        }
        out.events.sort_unstable();
        out.refused.sort_unstable();
        self.forget(now);
        out
    }

    /// Applies rows of one creative, which are not none.
    fn creative(&mut self, rows: &[ReportRow], times: Times, out: &mut Restated) {
        let creative = rows[0].key.creative;
        let key = &self.view.info(creative).key;
        let feeds = AttributionRule::window_of(&self.rules, key);
        let known = self.known(creative);
        let longest = rows.iter().map(|row| row.key.end - row.key.start).max().unwrap_or(0);
        let (first, last) = (rows[0].key.start, rows[rows.len() - 1].key.start);
        let mut trees = Trees { before: None, nodes: known.around(first, last, longest), times };
        let (room, mut days) = (INTERVALS_MAX.saturating_sub(known.len()), BTreeSet::new());
        let most = trees.nodes.len() + room;
        for row in rows {
            match trees.take(row, feeds, most) {
                Ok(Taken::Nothing) => out.unchanged += 1,
                Ok(taken) => {
                    days.insert(row.key.start.div_euclid(DAY_US));
                    out.unchanged += u64::from(taken == Taken::Confirmed);
                }
                Err(refusal) => out.refused.push((*row, refusal)),
            }
        }
        if !days.is_empty() {
            known.put(&trees.nodes, days);
        }
        trees.tell(creative, out);
    }

    /// What is known of a creative, about to be changed.
    fn known(&mut self, creative: EntityId) -> &mut Known {
        let entry = self.known.entry(creative);
        let at = entry.index();
        let known = entry.or_default();
        if let Some(export) = &mut self.export
            && export.claim(at)
        {
            export.push(item(creative, known));
        }
        known
    }

    /// Once a day every creative is visited, a few in each tick, and what is beyond the horizon
    /// forgotten; rows about it are refused whether it has been forgotten or not.
    fn forget(&mut self, now: EventTime) {
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
            let Some((_, known)) = self.known.get_index_mut(self.forget) else { continue };
            if !known.forget(oldest) {
                self.known.swap_remove_index(self.forget);
            }
        }
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.known.capacity() * (size_of::<(EntityId, Known)>() + 2 * size_of::<usize>())
            + self.known.values().map(Known::heap_bytes).sum::<usize>()
    }
}

/// What a row did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// Nothing.
    Nothing,
    /// It stated once more what was known.
    Confirmed,
    /// It stated other totals, or was the first about its interval.
    Changed,
}

/// The trees of one creative that a tick's rows touch.
struct Trees {
    times: Times,
    /// The intervals before the first row that changed what they amount to.
    before: Option<Vec<Node>>,
    /// By [`Node::order`].
    nodes: Vec<Node>,
}

impl Trees {
    /// Takes a row; `most` intervals may be known.
    fn take(&mut self, row: &ReportRow, feeds: Attribution, most: usize) -> Result<Taken, Refusal> {
        let (start, end) = (row.key.start, row.key.end);
        let order = (start, Reverse(end));
        let found = self.nodes.binary_search_by_key(&order, Node::order);
        let at = found.unwrap_or_else(|at| at);
        // The intervals that hold its start, the narrowest first.
        let around = || self.nodes[..at].iter().rev().filter(|node| node.end > start);
        let reaches_back = self.nodes.first().is_some_and(|node| node.start < self.times.oldest);
        if start < self.times.oldest
            || reaches_back && around().any(|node| node.start < self.times.oldest)
        {
            return Err(Refusal::TooLate);
        }
        // Also where its time is ahead of ours, after a wall clock was set back: it is the platform's,
        // and orders what the platform stated.
        let said = row.version;
        let [delivery, outcome] = Fact::ALL.map(|fact| fact.of(&said.totals));
        let states = [!delivery.is_empty() || outcome.is_empty(), row.key.attribution == feeds];
        let mut node = match found {
            Ok(at) => self.nodes[at],
            Err(at) => {
                let inside = self.nodes[at..].iter().take_while(|node| node.start < end);
                if around().next().is_some_and(|node| node.end < end)
                    || inside.into_iter().any(|node| node.end > end)
                {
                    return Err(Refusal::OverlappingInterval);
                }
                Node { start, end, said: [None; 2] }
            }
        };
        let before = node;
        for (fact, totals) in Fact::ALL.into_iter().zip([delivery, outcome]) {
            let said = ReportVersion { totals, ..said };
            let newest = &mut node.said[fact as usize];
            if states[fact as usize] && newest.is_none_or(|newest| newest < said) {
                *newest = Some(said);
            }
        }
        if node == before {
            return Ok(Taken::Nothing);
        }
        if found.is_err() && self.nodes.len() >= most {
            return Err(Refusal::TooManyIntervals);
        }
        let totals = |node: &Node| node.said.map(|said| said.map(|said| said.totals));
        let as_of = |node: &Node| node.said.map(|said| said.map(|said| said.as_of));
        let changed = totals(&node) != totals(&before);
        if changed || as_of(&node) != as_of(&before) {
            self.before.get_or_insert_with(|| self.nodes.clone());
        }
        match found {
            Ok(at) => self.nodes[at] = node,
            Err(at) => self.nodes.insert(at, node),
        }
        Ok(if changed { Taken::Changed } else { Taken::Confirmed })
    }

    /// Tells what the rows changed.
    fn tell(&self, creative: EntityId, out: &mut Restated) {
        let Some(before) = &self.before else { return };
        let (old, new) = (Shares::of(before), Shares::of(&self.nodes));
        // The first statement about an interval is an event even when it states nothing: it makes
        // the creative known.
        let mut changes: Vec<(EventTime, bool, Stats)> = Vec::new();
        let mut at_old = 0;
        for (at, node) in self.nodes.iter().enumerate() {
            let known = before.get(at_old).is_some_and(|node_old| node_old.order() == node.order());
            let known = known.then_some(at_old);
            at_old += usize::from(known.is_some());
            for fact in Fact::ALL {
                let Some(said) = &node.said[fact as usize] else { continue };
                let share = new.0[fact as usize][at];
                let share_old = known.map_or(Share::default(), |at| old.0[fact as usize][at]);
                let delta = share.own - share_old.own;
                if node.end > self.times.past {
                    changes.push((self.place(node, said.as_of), known.is_none(), delta));
                }
            }
        }
        changes.retain(|(_, first, delta)| *first || !delta.is_empty());
        changes.sort_unstable();
        for same in changes.chunk_by(|a, b| a.0 == b.0) {
            let delta = same.iter().fold(Stats::ZERO, |sum, (.., delta)| sum + *delta);
            if !delta.is_empty() || same.iter().any(|(_, first, _)| *first) {
                let (time, kind) = (same[0].0, EventKind::Report);
                out.events.push(Event { time, creative, kind, delta, user: NO_USER, id: NO_ID });
            }
        }
    }

    /// Where a change of the interval's own falls: inside it, not after now, and where a window
    /// holds it.
    fn place(&self, node: &Node, as_of: EventTime) -> EventTime {
        let Times { now, past, .. } = self.times;
        as_of.min(node.end).max(node.start.max(past) + 1).min(now) - 1
    }
}

/// The shares of intervals in each fact.
struct Shares([Vec<Share>; 2]);

impl Shares {
    fn of(nodes: &[Node]) -> Shares {
        Shares(Fact::ALL.map(|fact| shares(nodes, fact)))
    }
}

fn item(creative: EntityId, known: &Known) -> StateItem {
    StateItem::new(StatePart::Restate, creative, known)
}

impl Stateful for Restate {
    fn begin_export(&mut self, _tick: Tick) {
        self.export = Some(Outgoing::new(self.known.len()));
    }

    fn export(&mut self, bytes: usize) -> (Vec<StateItem>, bool) {
        let Some(export) = &mut self.export else { return (Vec::new(), true) };
        while let Some(at) = export.next(bytes) {
            if let Some((creative, known)) = self.known.get_index(at) {
                export.push(item(*creative, known));
            }
        }
        let (items, done) = (export.take(), export.is_through());
        if done {
            self.export = None;
        }
        (items, done)
    }

    fn restore(&mut self, tick: Tick, items: &[StateItem]) -> Result<(), StateError> {
        self.before = Some(tick);
        for item in items {
            self.known.insert(item.entity, item.read()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
