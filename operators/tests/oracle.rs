//! The graph against the definition: every closed row equals a batch recomputation of the events
//! known at its tick, parents equal the sum of their children, and neither the number of workers
//! nor the order of arrival shows in anything that comes out.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use omnify_operators::model::{
    DAY_US, EntityId, EntityKey, Event, EventKind, HOUR_US, Level, MINUTE_US, NO_ID, NO_USER,
    Registry, RegistryView, Stats, Tick, WindowSpec, tick_of_us, us_of_tick,
};
use omnify_operators::reference;
use omnify_operators::spec::{Cadence, FeatureSpec, PaneRows};
use proptest::prelude::*;
use support::{Inputs, Output, run};

fn spec(windows: &[&str]) -> FeatureSpec {
    FeatureSpec {
        windows: windows.iter().map(|text| text.parse().unwrap()).collect(),
        pane_rows: PaneRows::Emit,
        emit_events: true,
        cadence: Some(Cadence { busy_ms: 30_000, idle_ms: 600_000 }),
        ..FeatureSpec::default()
    }
}

/// A registry of small families of creatives in two zones.
fn registry(creatives: usize) -> (Arc<Registry>, Vec<EntityId>) {
    let registry = Arc::new(Registry::new(Box::new(|key: &EntityKey| {
        let zone = if key.tenant() == "t1" { "America/New_York" } else { "Europe/Berlin" };
        Arc::new(jiff::tz::TimeZone::get(zone).unwrap())
    })));
    let key = |n: usize| {
        let path = format!("t{}/p/a{}/c{}/g{}/x{n}", n % 2, n % 3, n % 5, n % 7);
        path.parse::<EntityKey>().unwrap()
    };
    let ids = (0..creatives).map(|n| registry.intern(&key(n))).collect();
    (registry, ids)
}

/// Start of the streams: 90 minutes before midnight in New York on the day clocks change there.
const START_US: i64 = 1_772_953_200_000_000 - 90 * MINUTE_US;

#[derive(Clone, Debug)]
struct Arrival {
    /// Time to the arrival before, and how much older the event is than its arrival.
    gap_us: i64,
    age_us: i64,
    creative: usize,
    kind: u8,
    user: u64,
    amount: i64,
}

fn arrivals(
    gap: std::ops::Range<i64>,
    late: std::ops::Range<i64>,
) -> impl Strategy<Value = Vec<Arrival>> {
    let arrival = (
        gap,
        prop_oneof![9 => Just(0), 1 => late],
        0..9_usize,
        0..4_u8,
        1..40_u64,
        0..5_000_000_i64,
    )
        .prop_map(|(gap_us, age_us, creative, kind, user, amount)| Arrival {
            gap_us,
            age_us,
            creative,
            kind,
            user: user.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            amount,
        });
    prop::collection::vec(arrival, 1..120)
}

fn event(arrival: &Arrival, time: i64, ids: &[EntityId]) -> Event {
    let (kind, delta) = match arrival.kind {
        0 | 1 => (
            EventKind::Impression,
            Stats { impressions: 1, cost_micros: arrival.amount, ..Stats::ZERO },
        ),
        2 => (EventKind::Click, Stats { clicks: 1, ..Stats::ZERO }),
        _ => (
            EventKind::Report,
            Stats {
                impressions: 3 - arrival.amount % 7,
                conversions: -1,
                revenue_micros: -arrival.amount,
                ..Stats::ZERO
            },
        ),
    };
    Event {
        time: time - arrival.age_us,
        creative: ids[arrival.creative],
        kind,
        delta,
        user: if arrival.kind == 0 { arrival.user } else { NO_USER },
        id: NO_ID,
    }
}

/// Rounds arrivals up to ticks of `quantum_ms` and ends with a tick an hour after the last.
fn inputs(arrivals: &[Arrival], quantum_ms: u64, ids: &[EntityId]) -> BTreeMap<Tick, Inputs> {
    let mut inputs: BTreeMap<Tick, Inputs> = BTreeMap::new();
    let mut now = START_US;
    // Everybody is known from the start, so that clicks are not held.
    for id in ids {
        let known = Event {
            time: now,
            creative: *id,
            kind: EventKind::Cost,
            delta: Stats::ZERO,
            user: NO_USER,
            id: NO_ID,
        };
        inputs.entry(tick_of_us(now).next_multiple_of(quantum_ms)).or_default().events.push(known);
    }
    for arrival in arrivals {
        now += arrival.gap_us;
        let tick = tick_of_us(now).next_multiple_of(quantum_ms);
        inputs.entry(tick).or_default().events.push(event(arrival, now, ids));
    }
    inputs.entry((tick_of_us(now) + 3_600_000).next_multiple_of(quantum_ms)).or_default();
    inputs
}

/// Pane ends of a window in `(from, until]`.
fn pane_ends(
    window: &WindowSpec,
    zone: &jiff::tz::TimeZone,
    from: i64,
    until: i64,
) -> Vec<(i64, i64)> {
    match window {
        WindowSpec::Hop { width, pane } => {
            let first = from.div_euclid(pane.us()) + 1;
            let last = until.div_euclid(pane.us());
            (first..=last).map(|p| (p * pane.us() - width.us(), p * pane.us())).collect()
        }
        WindowSpec::Day => {
            let at =
                |us: i64| jiff::Timestamp::from_microsecond(us).unwrap().to_zoned(zone.clone());
            let mut day = at(from - DAY_US).date();
            let mut ends = Vec::new();
            loop {
                let midnight = |date: jiff::civil::Date| {
                    date.to_zoned(zone.clone()).unwrap().timestamp().as_microsecond()
                };
                let (start, end) = (midnight(day), midnight(day.tomorrow().unwrap()));
                if end > until {
                    return ends;
                }
                if end > from {
                    ends.push((start, end));
                }
                day = day.tomorrow().unwrap();
            }
        }
    }
}

/// Every row the definition asks for.
fn expected(
    spec: &FeatureSpec,
    registry: &Arc<Registry>,
    inputs: &BTreeMap<Tick, Inputs>,
) -> support::PaneRows {
    let mut view = RegistryView::new(registry.clone());
    let events: Vec<(Tick, Event)> = inputs
        .iter()
        .flat_map(|(tick, input)| input.events.iter().map(|event| (*tick, *event)))
        .collect();
    let ticks: Vec<Tick> = inputs.keys().copied().collect();
    // Pane ends before the first tick are passed by it, with whatever late events it brings.
    let oldest = events.iter().map(|(_, event)| event.time).min().unwrap() - 1;
    let last = us_of_tick(ticks[ticks.len() - 1]);
    let mut rows = BTreeMap::new();
    for info in view.all().to_vec() {
        for (at, window) in spec.windows.iter().enumerate() {
            for (start, end) in pane_ends(window, &info.time_zone, oldest, last) {
                // The row is known at the first tick at or after its pane end.
                let known_at = ticks[ticks.partition_point(|tick| us_of_tick(*tick) < end)];
                let entities = |creative: EntityId| {
                    let registered = view.clone();
                    let mut registered = registered;
                    let ancestors = registered.info(creative).ancestors;
                    ancestors.into_iter().filter(|id| *id == info.id).take(1).collect()
                };
                let sums = reference::window_sums(&events, known_at, start..end, entities);
                if let Some(stats) = sums.get(&info.id) {
                    rows.insert((at as u8, end, info.key.clone()), (*stats, known_at));
                }
            }
        }
    }
    rows
}

fn assert_same_rows(
    got: &support::PaneRows,
    want: &support::PaneRows,
) -> Result<(), TestCaseError> {
    for (key, row) in want {
        prop_assert_eq!(got.get(key), Some(row), "row {:?}", key);
    }
    for key in got.keys() {
        prop_assert!(want.contains_key(key), "row too many: {:?} {:?}", key, got[key]);
    }
    Ok(())
}

fn assert_parents_equal_children(output: &Output) -> Result<(), TestCaseError> {
    let mut sums: BTreeMap<(u8, i64, EntityKey), Stats> = BTreeMap::new();
    for ((window, end, key), (stats, _)) in &output.panes {
        if let Some(parent) = key.parent() {
            *sums.entry((*window, *end, parent)).or_default() += *stats;
        }
    }
    for (key, (stats, _)) in &output.panes {
        // Local days of a tenant and its accounts may end at different instants.
        if key.2.level() != Level::Creative && key.0 != 4 {
            prop_assert_eq!(sums.get(key).copied().unwrap_or_default(), *stats, "{:?}", key);
        }
    }
    Ok(())
}

const WINDOWS: [&str; 5] = ["1h/1m", "3h/15m", "6h/2h", "36h/6h", "day"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn dense_streams_equal_the_batch_on_any_number_of_workers(
        arrivals in arrivals(0..90_000_000, 0..3 * HOUR_US),
        quantum in prop_oneof![Just(500_u64), Just(60_000), Just(420_000)],
    ) {
        let (registry, ids) = registry(9);
        let (spec, inputs) = (spec(&WINDOWS), inputs(&arrivals, quantum, &ids));
        let one = run(&spec, &registry, &inputs, 1);
        assert_same_rows(&one.panes, &expected(&spec, &registry, &inputs))?;
        assert_parents_equal_children(&one)?;
        let all: u64 = inputs.values().map(|input| input.events.len() as u64).sum();
        prop_assert_eq!(one.featured + one.refused + one.held, all);
        for workers in [2, 3] {
            prop_assert_eq!(&run(&spec, &registry, &inputs, workers), &one);
        }
        // Whether rows are written or only counted changes nothing that is decided on.
        let counted = FeatureSpec { pane_rows: PaneRows::Count, emit_events: false, ..spec.clone() };
        prop_assert_eq!(&run(&counted, &registry, &inputs, 1).frames, &one.frames);
        let mut shuffled = inputs.clone();
        shuffled.values_mut().for_each(|input| input.events.reverse());
        prop_assert_eq!(&run(&spec, &registry, &shuffled, 2), &one);
    }

    #[test]
    fn sparse_streams_equal_the_batch(
        arrivals in arrivals(0..5 * HOUR_US, 0..40 * HOUR_US),
        quantum in prop_oneof![Just(1_000_u64), Just(3_600_000)],
    ) {
        let (registry, ids) = registry(9);
        let (spec, inputs) = (spec(&WINDOWS[2..]), inputs(&arrivals[..arrivals.len().min(40)], quantum, &ids));
        let one = run(&spec, &registry, &inputs, 1);
        assert_same_rows(&one.panes, &expected(&spec, &registry, &inputs))?;
        prop_assert_eq!(&run(&spec, &registry, &inputs, 2), &one);
    }

    #[test]
    fn the_fast_operator_equals_the_differential_form(
        arrivals in arrivals(0..200_000_000, 0..2 * HOUR_US),
    ) {
        let (registry, ids) = registry(9);
        let (spec, inputs) = (spec(&["1h/1m"]), inputs(&arrivals, 60_000, &ids));
        let fast = run(&spec, &registry, &inputs, 1);
        let events: Vec<(Tick, Event)> = inputs
            .iter()
            .flat_map(|(tick, input)| input.events.iter().map(|event| (*tick, *event)))
            .collect();
        // Evaluated rows of creatives hold what differential holds at the same tick.
        let at: Vec<Tick> = inputs.keys().copied().collect();
        let span = |text: &str| text.parse().unwrap();
        let slow = reference::differential(&events, span("1h"), span("1m"), &at);
        for ((tick, rows), sums) in fast.frames.iter().zip(slow) {
            for (key, row) in rows.iter().filter(|(key, _)| key.level() == Level::Creative) {
                let id = registry.lookup(key).unwrap();
                let want = sums.get(&id).copied().unwrap_or_default();
                prop_assert_eq!(row.windows[0], want, "{} at {}", key, tick);
            }
        }
    }
}
