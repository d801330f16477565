//! Slow and obvious forms of what the operators compute, for tests and for measuring against.
//!
//! [`window_sums`] is the definition itself: a batch recomputation from a list of events.
//! [`differential`] is the pure-differential form of the rolling sums: each delta is inserted at
//! its tick and retracted one width after its pane, and `count_total` keeps the sums.
//! [`restated_totals`] says what report rows amount to, by a `reduce` that keeps the greatest
//! version of every interval.
//!
//! Nothing here is used by the engine itself.

use std::collections::BTreeMap;

use differential_dataflow::AsCollection;
use differential_dataflow::input::InputSession;
use differential_dataflow::operators::CountTotal;
use timely::dataflow::operators::vec::Map;

use crate::model::{
    EntityId, Event, EventTime, ReportKey, ReportRow, ReportVersion, Span, Stats, Tick,
};

/// Sums of `events` in `[end − width, end)` per entity, where `entities` lists the entities an
/// event counts for (its creative and everything above it). Only events of ticks up to `known_at`
/// count. Empty sums are left out.
pub fn window_sums(
    events: &[(Tick, Event)],
    known_at: Tick,
    range: std::ops::Range<EventTime>,
    entities: impl Fn(EntityId) -> Vec<EntityId>,
) -> BTreeMap<EntityId, Stats> {
    let mut sums: BTreeMap<EntityId, Stats> = BTreeMap::new();
    for (tick, event) in events {
        if *tick <= known_at && range.contains(&event.time) {
            for entity in entities(event.creative) {
                *sums.entry(entity).or_default() += event.delta;
            }
        }
    }
    sums.retain(|_, stats| !stats.is_empty());
    sums
}

/// Rolling sums of `events` (ascending by tick) over a window of `width` and `pane`, computed by
/// differential dataflow on one thread: the accumulated sums of every creative as of each tick of
/// `at` (ascending, after the last event of interest; ticks at pane ends show whole windows).
pub fn differential(
    events: &[(Tick, Event)],
    width: Span,
    pane: Span,
    at: &[Tick],
) -> Vec<BTreeMap<EntityId, Stats>> {
    let (width, pane) = (width.us(), pane.us());
    let events = events.to_vec();
    let at = at.to_vec();
    timely::execute_directly(move |worker| {
        let changes = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let seen = changes.clone();
        let mut input = timely::dataflow::InputHandle::new();
        let probe = worker.dataflow::<Tick, _, _>(|scope| {
            let deltas = input.to_stream(scope).flat_map(
                move |(creative, time, tick, delta): (EntityId, EventTime, Tick, Stats)| {
                    // The pane that holds the event leaves when the window's newest pane is
                    // `width / pane` panes later.
                    let leaves = (time.div_euclid(pane) * pane + width).max(0) as u64 / 1_000;
                    let stays = leaves > tick;
                    stays
                        .then_some([(creative, tick, delta), (creative, leaves, -delta)])
                        .into_iter()
                        .flatten()
                },
            );
            deltas
                .as_collection()
                .count_total()
                .inspect(move |((creative, sums), tick, diff)| {
                    seen.borrow_mut().push((*tick, *creative, *sums, *diff));
                })
                .probe()
                .0
        });
        for (tick, event) in &events {
            input.advance_to(*tick);
            input.send((event.creative, event.time, *tick, event.delta));
        }
        let until = at.last().map_or(0, |last| last + 1);
        input.advance_to(until);
        worker.step_while(|| probe.less_than(&until));
        let mut results = Vec::new();
        for tick in at {
            let mut state: BTreeMap<(EntityId, Stats), isize> = BTreeMap::new();
            for (when, creative, sums, diff) in changes.borrow().iter() {
                if *when <= tick {
                    *state.entry((*creative, *sums)).or_default() += *diff;
                }
            }
            let live = state.into_iter().filter(|(_, count)| *count != 0);
            results.push(live.map(|((creative, sums), _)| (creative, sums)).collect());
        }
        results
    })
}

/// The totals that report rows (ascending by tick) amount to in the end, computed by differential
/// dataflow on one thread: of every interval the greatest version.
pub fn restated_totals(rows: &[(Tick, ReportRow)]) -> BTreeMap<ReportKey, Stats> {
    let rows = rows.to_vec();
    timely::execute_directly(move |worker| {
        let current = std::rc::Rc::new(std::cell::RefCell::new(BTreeMap::new()));
        let seen = current.clone();
        let mut input = InputSession::<Tick, (ReportKey, ReportVersion), isize>::new();
        let probe = worker.dataflow::<Tick, _, _>(|scope| {
            input
                .to_collection(scope)
                .reduce(|_key, versions, output| {
                    // Versions come in ascending order.
                    let (greatest, _count) = versions[versions.len() - 1];
                    output.push((greatest.totals, 1));
                })
                .inspect(move |((key, totals), _tick, diff)| {
                    *seen.borrow_mut().entry((*key, *totals)).or_insert(0) += *diff;
                })
                .probe()
                .0
        });
        for (tick, row) in &rows {
            input.advance_to(*tick);
            input.insert((row.key, row.version));
        }
        let until = rows.last().map_or(0, |(tick, _)| tick + 1);
        input.advance_to(until);
        input.flush();
        worker.step_while(|| probe.less_than(&until));
        let current = current.take();
        current.into_iter().filter(|(_, count)| *count != 0).map(|(pair, _)| pair).collect()
    })
}
