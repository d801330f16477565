//! Slow and obvious forms of what the operators compute, for tests and for measuring against.
//!
//! [`window_sums`] is the definition itself: a batch recomputation from a list of events.
//! [`differential`] is the pure-differential form of the rolling sums: each delta is inserted at
//! its tick and retracted one width after its pane, and `count_total` keeps the sums.
//! [`restated_totals`] says what report rows of one grain and window amount to, by a `reduce` that
//! keeps the greatest version of every interval; [`reported`] says it of rows of any grain and window,
//! by working out the rule for every interval anew.
//!
//! Nothing here is used by the engine itself.

use std::collections::BTreeMap;

use differential_dataflow::AsCollection;
use differential_dataflow::input::InputSession;
use differential_dataflow::operators::CountTotal;
use timely::dataflow::operators::vec::Map;

use crate::model::{
    Attribution, EntityId, Event, EventTime, ReportKey, ReportRow, ReportVersion, Span, Stats, Tick,
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

/// An interval of a creative.
pub type Interval = (EntityId, EventTime, EventTime);

/// What each interval amounts to with everything inside it, delivery and outcome, recomputed from
/// all report rows (ascending by tick; within a tick in the order of key and version): the newest
/// statements, and the rule of the module `restate` applied to each of them. `feeds` says which
/// window's outcome counts for a creative. A row that overlaps an interval in part is left out, as
/// are outcomes that nobody stated. No row may be beyond the horizon.
pub fn reported(
    rows: &[(Tick, ReportRow)],
    feeds: impl Fn(EntityId) -> Attribution,
) -> BTreeMap<Interval, [Option<Stats>; 2]> {
    let mut newest: BTreeMap<Interval, [Option<ReportVersion>; 2]> = BTreeMap::new();
    for (_, row) in rows {
        let ReportKey { creative, start, end, attribution } = row.key;
        let cut = |(of, from, to): &Interval| {
            let meet = *of == creative && *from < end && start < *to;
            let within = (start <= *from && *to <= end) || (*from <= start && end <= *to);
            meet && !within
        };
        if newest.keys().any(cut) {
            continue;
        }
        let Stats { impressions, clicks, conversions, cost_micros, revenue_micros } =
            row.version.totals;
        let delivery = Stats { impressions, clicks, cost_micros, ..Stats::ZERO };
        let outcome = Stats { conversions, revenue_micros, ..Stats::ZERO };
        let as_of = row.version.as_of;
        let said = [
            (!delivery.is_empty() || outcome.is_empty()).then_some(delivery),
            (attribution == feeds(creative)).then_some(outcome),
        ];
        let said =
            said.map(|totals| totals.map(|totals| ReportVersion { as_of, totals, ..row.version }));
        if said != [None; 2] {
            let known = newest.entry((creative, start, end)).or_default();
            *known = [known[0].max(said[0]), known[1].max(said[1])];
        }
    }
    let whole = |interval: &Interval, fact: usize| whole(&newest, interval, fact);
    newest.keys().map(|at| (*at, [0, 1].map(|fact| whole(at, fact).map(|(sum, _)| sum)))).collect()
}

/// The totals of an interval in one fact, and the time of the newest statement in it.
fn whole(
    newest: &BTreeMap<Interval, [Option<ReportVersion>; 2]>,
    interval: &Interval,
    fact: usize,
) -> Option<(Stats, EventTime)> {
    let said = newest[interval][fact]?;
    let inside = |outer: &Interval, inner: &Interval| {
        outer.0 == inner.0 && outer != inner && outer.1 <= inner.1 && inner.2 <= outer.2
    };
    let stated = || newest.iter().filter(|(_, said)| said[fact].is_some()).map(|(at, _)| at);
    let (mut seen, mut later) = (Stats::ZERO, Stats::ZERO);
    let (mut newer, mut as_of) = (false, said.as_of);
    for child in stated().filter(|at| inside(interval, at)) {
        // Only those directly inside.
        if stated().any(|between| inside(interval, between) && inside(between, child)) {
            continue;
        }
        let Some((sum, child_as_of)) = whole(newest, child, fact) else { continue };
        as_of = as_of.max(child_as_of);
        if child.1 < said.as_of {
            seen += sum;
            newer |= child_as_of > said.as_of;
        } else {
            later += sum;
        }
    }
    let runs = said.as_of < interval.2;
    let most = |a: i64, b: i64| if runs && newer { a.max(b) } else { a };
    let known = said.totals;
    let sum = Stats {
        impressions: most(known.impressions, seen.impressions),
        clicks: most(known.clicks, seen.clicks),
        conversions: most(known.conversions, seen.conversions),
        cost_micros: most(known.cost_micros, seen.cost_micros),
        revenue_micros: most(known.revenue_micros, seen.revenue_micros),
    };
    Some((sum + later, as_of))
}
