//! The first stage of the graph: what counts, what waits, what is refused.
//!
//! Every event that reaches the graph ends in exactly one of three places (invariant 1): it is
//! *featured* (handed on to the windows, at once or when its time comes), *held* (its time has not
//! come, or its creative has not been seen yet), or *refused* with a reason. Refused events become
//! dead letters.
//!
//! The outcome of a tick does not depend on the order in which its events arrive.

mod export;

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use self::export::Export;
use crate::dedup::Seen;
use crate::graph::Mark;
use crate::model::{
    EntityId, Event, EventKind, EventTime, NO_ID, RegistryView, Tick, tick_of_us, us_of_tick,
};
use crate::spec::IntakeSpec;

/// Why an event is refused by the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// An event of this creative with this id was accepted before.
    Duplicate,
    /// A click or conversion whose creative never delivered within the grace.
    UnknownEntity,
    /// Further ahead of the engine's time than the skew allows.
    Future,
    /// Older than any window still to be closed: it can change no feature any more. Of a report
    /// row: its interval, or one around it, begins longer ago than restatements are taken.
    TooLate,
    /// It would have to wait, and too many are waiting.
    HeldFull,
    /// The interval of a report row overlaps in part with one that is known.
    OverlappingInterval,
    /// A report row about one more interval of a creative than are remembered.
    TooManyIntervals,
}

impl Refusal {
    /// The reason code of dead letters.
    pub const fn code(self) -> &'static str {
        match self {
            Refusal::Duplicate => "duplicate",
            Refusal::UnknownEntity => "unknown_entity",
            Refusal::Future => "future",
            Refusal::TooLate => "too_late",
            Refusal::HeldFull => "held_full",
            Refusal::OverlappingInterval => "overlapping_interval",
            Refusal::TooManyIntervals => "too_many_intervals",
        }
    }
}

/// Events that may wait on one worker. A million is 80 MB and far above any honest skew.
const HELD_MAX: usize = 1_000_000;

/// State of intake on one worker.
pub(crate) struct Intake {
    spec: IntakeSpec,
    widest_us: i64,
    view: RegistryView,
    /// The tick before: pane ends after it are still to be closed.
    before: Option<Tick>,
    /// Creatives that have delivered, by entity id. A creative stays known for good, at a byte each,
    /// though its features be dropped: its late conversions would be refused otherwise.
    known: Vec<bool>,
    /// The same creatives in the order in which they became known.
    delivered: Vec<EntityId>,
    /// Accepted events of the near future by the tick that releases them, each with the tick at
    /// which it came.
    future: BTreeMap<Tick, Vec<(Tick, Event)>>,
    /// Clicks and conversions of creatives not seen yet, each with the tick that refuses it.
    waiting: HashMap<EntityId, Vec<(Tick, Event)>>,
    deadlines: BTreeMap<Tick, Vec<EntityId>>,
    held: usize,
    seen: Seen,
    export: Option<Export>,
}

/// What became of one tick's events.
#[derive(Debug, Default)]
pub(crate) struct Admitted {
    pub(crate) batches: Vec<Vec<Event>>,
    /// Ascending.
    pub(crate) refused: Vec<(Event, Refusal)>,
    pub(crate) featured: u64,
}

impl Intake {
    pub(crate) fn new(spec: IntakeSpec, widest_us: i64, view: RegistryView) -> Intake {
        Intake {
            spec,
            widest_us,
            view,
            before: None,
            known: Vec::new(),
            delivered: Vec::new(),
            future: BTreeMap::new(),
            waiting: HashMap::new(),
            deadlines: BTreeMap::new(),
            held: 0,
            seen: Seen::new(&spec),
            export: None,
        }
    }

    /// Events waiting.
    pub(crate) fn held(&self) -> u64 {
        self.held as u64
    }

    /// Event ids remembered.
    pub(crate) fn ids_remembered(&self) -> u64 {
        self.seen.len() as u64
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        let held = size_of::<(Tick, Event)>() + size_of::<(Tick, EntityId)>();
        self.known.capacity()
            + self.delivered.capacity() * size_of::<EntityId>()
            + self.held * held
            + self.seen.heap_bytes()
    }

    /// Admits the events of `tick`. The last tick refuses what still waits for its creative, as
    /// nothing can come any more; events whose time has not come stay held.
    pub(crate) fn admit(
        &mut self,
        tick: Tick,
        mut batches: Vec<Vec<Event>>,
        mark: Mark,
    ) -> Admitted {
        let now = us_of_tick(tick);
        let mut out = Admitted::default();
        // The oldest event that any row still to be closed, or any window from now on, can hold.
        let oldest =
            self.before.map_or(EventTime::MIN, |before| us_of_tick(before) - self.widest_us);
        self.before = Some(tick);
        // Events held for the future passed every check but one when they came.
        let mut due = Vec::new();
        while let Some(entry) = self.future.first_entry().filter(|entry| *entry.key() <= tick) {
            let (release, events) = entry.remove_entry();
            if let Some(export) = &mut self.export {
                export.released(release, &events);
            }
            due.extend(events.into_iter().map(|(_, event)| event));
        }
        self.held -= due.len();
        self.seen.announce(tick, mark.ids);

        let mut released = Vec::new();
        let mut with_ids = false;
        for event in batches.iter().flatten().chain(&due) {
            with_ids |= event.id != NO_ID;
            if event.time <= now && !needs_entity(event) {
                self.know(event.creative, &mut released);
            }
        }
        if with_ids {
            // Which of two events with one id counts must not depend on arrival.
            let mut all = batches.concat();
            all.sort_unstable();
            batches = vec![all];
        }
        for batch in &mut batches {
            batch.retain(|event| self.judge(event, tick, oldest, &mut out.refused));
        }
        due.retain(|event| self.has_entity_or_waits(event, tick, &mut out.refused));
        batches.push(due);
        batches.push(released);
        self.refuse_overdue(if mark.last { Tick::MAX } else { tick }, &mut out.refused);

        batches.retain(|batch| !batch.is_empty());
        out.featured = batches.iter().map(|batch| batch.len() as u64).sum();
        out.batches = batches;
        out.refused.sort_unstable();
        out
    }

    /// Marks a creative as delivering and releases what waited for it.
    #[inline]
    fn know(&mut self, creative: EntityId, released: &mut Vec<Event>) {
        match self.known.get_mut(creative.index()) {
            Some(true) => return,
            Some(known) => *known = true,
            None => {
                self.known.resize(creative.index() + 1, false);
                self.known[creative.index()] = true;
            }
        }
        self.delivered.push(creative);
        if let Some(waiting) = self.waiting.remove(&creative) {
            if let Some(export) = &mut self.export {
                export.no_longer_waiting(&waiting);
            }
            self.held -= waiting.len();
            released.extend(waiting.into_iter().map(|(_, event)| event));
        }
    }

    /// True when the event is featured now; otherwise it has been held or refused.
    #[inline]
    fn judge(
        &mut self,
        event: &Event,
        tick: Tick,
        oldest: EventTime,
        refused: &mut Vec<(Event, Refusal)>,
    ) -> bool {
        let now = us_of_tick(tick);
        let refusal = if event.time > now.saturating_add(self.spec.future_skew_us) {
            Refusal::Future
        } else if event.time < oldest {
            Refusal::TooLate
        } else if event.id != NO_ID && !self.seen.insert(event) {
            Refusal::Duplicate
        } else if event.time <= now {
            return self.has_entity_or_waits(event, tick, refused);
        } else if self.held >= HELD_MAX {
            Refusal::HeldFull
        } else {
            self.held += 1;
            self.future.entry(tick_of_us(event.time)).or_default().push((tick, *event));
            return false;
        };
        refused.push((*event, refusal));
        false
    }

    #[inline]
    fn has_entity_or_waits(
        &mut self,
        event: &Event,
        tick: Tick,
        refused: &mut Vec<(Event, Refusal)>,
    ) -> bool {
        let creative = event.creative;
        if !needs_entity(event) || self.known.get(creative.index()) == Some(&true) {
            return true;
        }
        if self.held >= HELD_MAX {
            refused.push((*event, Refusal::HeldFull));
            return false;
        }
        let deadline = tick.saturating_add(tick_of_us(self.spec.entity_grace_us));
        self.held += 1;
        self.waiting.entry(creative).or_default().push((deadline, *event));
        self.deadlines.entry(deadline).or_default().push(creative);
        false
    }

    fn refuse_overdue(&mut self, until: Tick, refused: &mut Vec<(Event, Refusal)>) {
        while let Some(entry) = self.deadlines.first_entry().filter(|entry| *entry.key() <= until) {
            for creative in entry.remove() {
                let Some(waiting) = self.waiting.get_mut(&creative) else { continue };
                let overdue: Vec<(Tick, Event)> =
                    waiting.extract_if(.., |(deadline, _)| *deadline <= until).collect();
                if let Some(export) = &mut self.export {
                    export.no_longer_waiting(&overdue);
                }
                self.held -= overdue.len();
                let overdue = overdue.into_iter();
                refused.extend(overdue.map(|(_, event)| (event, Refusal::UnknownEntity)));
                if waiting.is_empty() {
                    self.waiting.remove(&creative);
                }
            }
        }
    }
}

/// Clicks and conversions belong to a creative that must have delivered.
fn needs_entity(event: &Event) -> bool {
    matches!(event.kind, EventKind::Click | EventKind::Conversion)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NO_USER, Stats};

    fn event(creative: u32, kind: EventKind, time_s: i64, id: u64) -> Event {
        Event {
            time: time_s * 1_000_000,
            creative: EntityId(creative),
            kind,
            delta: Stats { impressions: 1, ..Stats::ZERO },
            user: NO_USER,
            id,
        }
    }

    fn intake() -> Intake {
        let view = RegistryView::new(std::sync::Arc::new(crate::model::Registry::utc()));
        Intake::new(IntakeSpec::default(), 28 * crate::model::DAY_US, view)
    }

    fn reasons(admitted: &Admitted) -> Vec<Refusal> {
        admitted.refused.iter().map(|(_, refusal)| *refusal).collect()
    }

    #[test]
    fn duplicates_are_refused_within_and_across_ticks() {
        let mut intake = intake();
        let seen = event(1, EventKind::Impression, 10, 77);
        let other_creative = event(2, EventKind::Impression, 10, 77);
        let first = intake.admit(20_000, vec![vec![seen, seen, other_creative]], Mark::default());
        assert_eq!((first.featured, reasons(&first)), (2, vec![Refusal::Duplicate]));
        let again = intake.admit(21_000, vec![vec![seen]], Mark::default());
        assert_eq!((again.featured, reasons(&again)), (0, vec![Refusal::Duplicate]));
        // Two horizons later the id is forgotten.
        let later = 2 * 86_400 + 100;
        let reused = event(1, EventKind::Impression, later, 77);
        assert_eq!(
            intake.admit(later as u64 * 1_000, vec![vec![reused]], Mark::default()).featured,
            1
        );
    }

    #[test]
    fn a_click_waits_for_its_creative_and_is_refused_when_none_comes() {
        let mut intake = intake();
        let click = event(3, EventKind::Click, 10, 0);
        let lost = event(4, EventKind::Click, 10, 0);
        let waiting = intake.admit(10_000, vec![vec![click, lost]], Mark::default());
        assert_eq!((waiting.featured, intake.held()), (0, 2));
        let shown = event(3, EventKind::Impression, 12, 0);
        let released = intake.admit(12_000, vec![vec![shown]], Mark::default());
        assert_eq!((released.featured, intake.held()), (2, 1));
        let overdue = intake.admit(10_000 + 600_000, vec![], Mark::default());
        assert_eq!((intake.held(), reasons(&overdue)), (0, vec![Refusal::UnknownEntity]));
    }

    #[test]
    fn the_near_future_waits_and_the_far_future_and_past_are_refused() {
        let mut intake = intake();
        let now = 40 * 86_400;
        intake.admit((now as u64 - 1) * 1_000, vec![], Mark::default());
        let batch = vec![
            event(1, EventKind::Impression, now + 60, 0),
            event(1, EventKind::Impression, now + 3_600, 0),
            event(1, EventKind::Impression, now - 29 * 86_400, 0),
        ];
        let first = intake.admit(now as u64 * 1_000, vec![batch], Mark::default());
        assert_eq!((first.featured, intake.held()), (0, 1));
        assert_eq!(reasons(&first), vec![Refusal::TooLate, Refusal::Future]);
        let due =
            intake.admit((now as u64 + 60) * 1_000, vec![], Mark { last: true, ..Mark::default() });
        assert_eq!((due.featured, intake.held()), (1, 0));
    }

    #[test]
    fn the_last_tick_refuses_what_still_waits_for_its_creative() {
        let mut intake = intake();
        let out = intake.admit(
            10_000,
            vec![vec![event(3, EventKind::Conversion, 5, 0)]],
            Mark { last: true, ..Mark::default() },
        );
        assert_eq!((intake.held(), reasons(&out)), (0, vec![Refusal::UnknownEntity]));
    }
}
