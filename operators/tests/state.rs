//! State that leaves a running graph and enters another: whoever goes on from it puts out exactly
//! what the uninterrupted run puts out, on any number of workers, and exporting shows nowhere.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use omnify_operators::anomaly::AnomalySpec;
use omnify_operators::fatigue::FatigueSpec;
use omnify_operators::model::{
    Attribution, DAY_US, EntityId, EntityKey, Event, EventKind, HOUR_US, MINUTE_US, NO_ID, NO_USER,
    Registry, RegistryView, ReportKey, ReportRow, ReportVersion, Stats, Tick, tick_of_us,
};
use omnify_operators::spec::{Cadence, FeatureSpec, IntakeSpec, PaneRows};
use omnify_operators::state::StateItem;
use proptest::prelude::*;
use support::{Course, Inputs, Parts, gather, parts, run};

const CREATIVES: usize = 12;
const START_US: i64 = 20_500 * DAY_US - 90 * MINUTE_US;

/// Small bounds everywhere, so that short streams reach all of them.
fn spec(chunk: usize) -> FeatureSpec {
    FeatureSpec {
        windows: ["1h/1m", "3h/15m", "36h/6h", "day"].map(|text| text.parse().unwrap()).to_vec(),
        pane_rows: PaneRows::Emit,
        emit_events: true,
        cadence: Some(Cadence { busy_ms: 30_000, idle_ms: 1_800_000 }),
        reach_days: 2,
        fatigue: FatigueSpec {
            baseline_days: 1,
            baseline_clicks: 2,
            recent_days: 1,
            recent_clicks: 1,
            probability: 0.5,
            ..FatigueSpec::default()
        },
        anomaly: AnomalySpec { alarm_score: 2.0, warmup: 3, impressions_min: 1 },
        intake: IntakeSpec {
            future_skew_us: 2 * HOUR_US,
            entity_grace_us: 3 * HOUR_US,
            dedup_horizon_us: 9 * HOUR_US,
            dedup_ids_max: 24,
            restatement_horizon_us: 2 * DAY_US,
        },
        export_bytes_per_ms: chunk,
        ..FeatureSpec::default()
    }
}

fn registry() -> Arc<Registry> {
    Arc::new(Registry::new(Box::new(|key: &EntityKey| {
        let zone = if key.tenant() == "t1" { "America/New_York" } else { "Europe/Berlin" };
        Arc::new(jiff::tz::TimeZone::get(zone).unwrap())
    })))
}

fn ids(registry: &Arc<Registry>) -> Vec<EntityId> {
    let key = |n: usize| {
        let path = format!("t{}/p/a{}/c{}/g{}/x{n}", n % 2, n % 3, n % 5, n % 7);
        path.parse::<EntityKey>().unwrap()
    };
    (0..CREATIVES).map(|n| registry.intern(&key(n))).collect()
}

/// A registry with the same ids, as a snapshot restores it.
fn restored(from: &Arc<Registry>) -> Arc<Registry> {
    let fresh = registry();
    for info in RegistryView::new(from.clone()).all() {
        assert_eq!(fresh.intern(&info.key), info.id);
    }
    fresh
}

#[derive(Clone, Debug)]
struct Arrival {
    gap_us: i64,
    /// Above zero for late events, below for events of the future.
    age_us: i64,
    creative: usize,
    kind: u8,
    user: u64,
    id: u64,
    amount: i64,
    calm: u8,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let gap = prop_oneof![
        4 => 0..20_000_000_i64,
        3 => 0..20 * MINUTE_US,
        1 => 0..7 * HOUR_US,
    ];
    let age = prop_oneof![
        6 => Just(0),
        1 => 0..30 * HOUR_US,
        2 => -150 * MINUTE_US..0,
    ];
    let what = (0..CREATIVES, 0..7_u8, 1..40_u64, 0..30_u64, 0..5_000_000_i64, 0..8_u8);
    let arrival =
        (gap, age, what).prop_map(|(gap_us, age_us, (creative, kind, user, id, amount, calm))| {
            let user = user.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            // Calm at half of the ticks; few ids, so that many come again.
            let calm = calm.saturating_sub(4);
            Arrival { gap_us, age_us, creative, kind, user, id, amount, calm }
        });
    prop::collection::vec(arrival, 10..150)
}

fn inputs(arrivals: &[Arrival], quantum_ms: u64, ids: &[EntityId]) -> BTreeMap<Tick, Inputs> {
    let mut inputs: BTreeMap<Tick, Inputs> = BTreeMap::new();
    let mut now = START_US;
    for (sequence, arrival) in arrivals.iter().enumerate() {
        now += arrival.gap_us;
        let input = inputs.entry(tick_of_us(now).next_multiple_of(quantum_ms)).or_default();
        input.calm = arrival.calm;
        let creative = ids[arrival.creative];
        let one = |kind, delta| Event {
            time: now - arrival.age_us,
            creative,
            kind,
            delta,
            user: if kind == EventKind::Impression { arrival.user } else { NO_USER },
            id: if arrival.id > 20 { NO_ID } else { arrival.id },
        };
        let cost = Stats { impressions: 1, cost_micros: arrival.amount, ..Stats::ZERO };
        let sold = Stats { conversions: 1, revenue_micros: arrival.amount, ..Stats::ZERO };
        match arrival.kind {
            0..=2 => input.events.push(one(EventKind::Impression, cost)),
            3 | 4 => {
                let click = Stats { clicks: 1, ..Stats::ZERO };
                input.events.push(one(EventKind::Click, click));
            }
            5 => input.events.push(one(EventKind::Conversion, sold)),
            _ => {
                let start = (now - arrival.age_us.max(0)).div_euclid(DAY_US) * DAY_US;
                let as_of = now.div_euclid(HOUR_US) * HOUR_US;
                let totals = Stats { impressions: arrival.amount / 1_000_000, ..Stats::ZERO };
                let version = ReportVersion { as_of, sequence: sequence as u64, totals };
                let attribution = Attribution::DEFAULT;
                let key = ReportKey { creative, start, end: start + DAY_US, attribution };
                input.reports.push(ReportRow { key, version });
            }
        }
    }
    // What is held is released, what waits overdue, every window empty in the end.
    for hours in [1, 4, 30, 80] {
        let tick = (tick_of_us(now) + hours * 3_600_000).next_multiple_of(quantum_ms);
        inputs.entry(tick).or_default();
    }
    inputs
}

/// The export of the snapshot at `tick`; every worker says once that it is done.
fn exported(parts: &Parts, tick: Tick, workers: usize) -> Vec<StateItem> {
    let all = || parts.values().flatten();
    assert!(all().filter(|part| part.tick <= tick).all(|part| part.state.is_empty()));
    assert!(all().all(|part| part.state.is_empty() || part.state_of == Some(tick)));
    assert_eq!(all().filter(|part| part.state_done).count(), workers);
    all().flat_map(|part| part.state.iter().cloned()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_run_goes_on_from_a_snapshot_as_if_nothing_had_happened(
        arrivals in arrivals(),
        quantum in prop_oneof![Just(1_000_u64), Just(60_000), Just(420_000)],
        at in 0.0..1.0_f64,
        exporting in 1..4_usize,
        chunk in prop_oneof![Just(0_usize), 1..4_usize, Just(1 << 16)],
    ) {
        let registry = registry();
        let ids = ids(&registry);
        let (spec, inputs) = (spec(chunk), inputs(&arrivals, quantum, &ids));
        let ticks: Vec<Tick> = inputs.keys().copied().collect();
        let tick = ticks[(at * (ticks.len() - 1) as f64) as usize];
        let whole = run(&spec, &registry, &inputs, 1);

        let course = Course { snapshot: Some(tick), ..Course::default() };
        let run = parts(&spec, &registry, &inputs, exporting, &course);
        let items = exported(&run, tick, exporting);
        prop_assert_eq!(&gather(run, &registry, 0), &whole, "exporting shows");

        let rest = gather(parts(&spec, &registry, &inputs, 1, &Course::default()), &registry, tick);
        for workers in [1, 2, 4] {
            let registry = restored(&registry);
            let course = Course { restore: Some((tick, items.clone())), snapshot: None };
            let run = parts(&spec, &registry, &inputs, workers, &course);
            let first = &run[&tick];
            prop_assert!(first.iter().all(|part| part.rows.is_empty() && part.panes.is_empty()));
            prop_assert_eq!(&gather(run, &registry, tick), &rest, "on {} workers", workers);
        }
    }

    #[test]
    fn calm_changes_when_entities_are_evaluated_and_nothing_else(arrivals in arrivals()) {
        let registry = registry();
        let ids = ids(&registry);
        let (spec, busy) = (spec(0), inputs(&arrivals, 1_000, &ids));
        let mut calm = busy.clone();
        calm.values_mut().for_each(|input| input.calm = 0);
        let (busy, calm) = (run(&spec, &registry, &busy, 1), run(&spec, &registry, &calm, 2));
        prop_assert_eq!(&busy.panes, &calm.panes);
        prop_assert_eq!(&busy.changes, &calm.changes);
        prop_assert_eq!(&busy.refusals, &calm.refusals);
        prop_assert!(busy.frames.iter().map(|(_, rows)| rows.len()).sum::<usize>()
            <= calm.frames.iter().map(|(_, rows)| rows.len()).sum::<usize>());
    }
}

/// Impressions of one creative every second, half of the time at a level of calm.
fn under_calm(level: u8, cost_micros: i64) -> support::Output {
    let registry = Arc::new(Registry::utc());
    let creative = registry.intern(&"t/p/a/c/g/x".parse().unwrap());
    let quiet = registry.intern(&"t/p/a/c2/g/x".parse().unwrap());
    let spec = FeatureSpec {
        cadence: Some(Cadence { busy_ms: 1_000, idle_ms: 60_000 }),
        ..FeatureSpec::default()
    };
    let event = |creative, second: i64, cost_micros| Event {
        time: START_US + second * 1_000_000,
        creative,
        kind: EventKind::Impression,
        delta: Stats { impressions: 1, cost_micros, ..Stats::ZERO },
        user: NO_USER,
        id: NO_ID,
    };
    let mut inputs: BTreeMap<Tick, Inputs> = BTreeMap::new();
    for second in 0..400 {
        let mut events = vec![event(quiet, 0, 0)];
        events.truncate(usize::from(second == 0));
        if second < 200 {
            events.push(event(creative, second, cost_micros));
        }
        let calm = if second < 200 { level } else { 0 };
        let tick = tick_of_us(START_US + second * 1_000_000);
        inputs.insert(tick, Inputs { events, calm, ..Inputs::default() });
    }
    run(&spec, &registry, &inputs, 1)
}

/// Evaluations of an entity in the first and in the second half.
fn evaluations(output: &support::Output, key: &str) -> (usize, usize) {
    let half = tick_of_us(START_US + 200_000_000);
    let count = |late: bool| {
        let frames = output.frames.iter().filter(|(tick, _)| (*tick >= half) == late);
        frames.flat_map(|(_, rows)| rows).filter(|(have, _)| have.as_str() == key).count()
    };
    (count(false), count(true))
}

#[test]
fn overload_puts_evaluations_off_and_loses_none() {
    let (creative, group, campaign, account) = ("t/p/a/c/g/x", "t/p/a/c/g", "t/p/a/c", "t/p/a");
    let normal = under_calm(0, 1_000);
    assert_eq!(evaluations(&normal, creative).0, 200);
    let one = under_calm(1, 1_000);
    // Once in each longer period, of which the first is cut short by its phase.
    let rare = 25..=26;
    assert!(rare.contains(&evaluations(&one, creative).0));
    assert!(rare.contains(&evaluations(&one, group).0));
    assert_eq!(evaluations(&one, campaign).0, 200);
    // What is not spending is calm at level 3, what spends never, and nothing above campaigns.
    assert_eq!(evaluations(&under_calm(3, 1_000), campaign).0, 200);
    let three = under_calm(3, 0);
    assert!(rare.contains(&evaluations(&three, campaign).0));
    assert_eq!(evaluations(&three, account).0, 200);
    // Idle entities wait for the overload to end.
    let idle = "t/p/a/c2";
    assert!(evaluations(&normal, idle).0 >= 4 && evaluations(&one, idle).0 >= 4);
    assert_eq!(evaluations(&under_calm(2, 1_000), idle).0, 1, "only its change");
    for level in 0..4 {
        let output = under_calm(level, 1_000);
        assert!(evaluations(&output, idle).1 >= 3, "level {level}");
        // The newest evaluation of everybody knows everything.
        for key in [creative, group, campaign, account] {
            let rows = output.frames.iter().rev().flat_map(|(_, rows)| rows);
            let newest = rows.filter(|(have, _)| have.as_str() == key).map(|(_, row)| row).next();
            assert!(newest.unwrap().windows[0].impressions >= 200, "{key} at level {level}");
        }
    }
}

#[test]
fn state_of_other_windows_or_damaged_state_is_refused() {
    let registry = registry();
    let ids = ids(&registry);
    let event = Event {
        time: START_US,
        creative: ids[0],
        kind: EventKind::Impression,
        delta: Stats { impressions: 1, ..Stats::ZERO },
        user: NO_USER,
        id: 7,
    };
    let tick = tick_of_us(START_US);
    let mut inputs = BTreeMap::from([(tick, Inputs::default()), (tick + 9_000, Inputs::default())]);
    inputs.get_mut(&tick).unwrap().events.push(event);
    let spec = spec(1 << 16);
    let course = Course { snapshot: Some(tick), ..Course::default() };
    let items = exported(&parts(&spec, &registry, &inputs, 1, &course), tick, 1);
    let failure = |spec: &FeatureSpec, registry: &Arc<Registry>, items: Vec<StateItem>| {
        let course = Course { restore: Some((tick, items)), ..Course::default() };
        let run = parts(spec, registry, &inputs, 2, &course);
        run[&tick].iter().find_map(|part| part.restore_failed.clone())
    };
    assert_eq!(failure(&spec, &restored(&registry), items.clone()), None);
    let other = FeatureSpec { windows: spec.windows[1..].to_vec(), ..spec.clone() };
    assert!(failure(&other, &registry, items.clone()).unwrap().contains("1h/1m"));
    let empty = self::registry();
    assert!(failure(&spec, &empty, items.clone()).unwrap().contains("registry"));
    let mut cut = items;
    cut.iter_mut().for_each(|item| item.bytes.truncate(item.bytes.len() / 2));
    assert!(failure(&spec, &registry, cut).unwrap().contains("cannot be read"));
}

/// A snapshot at the last tick leaves with that tick.
#[test]
fn the_last_tick_exports_everything_at_once() {
    let registry = registry();
    let ids = ids(&registry);
    let last = tick_of_us(START_US) + 1;
    let known = |creative: &EntityId| Event {
        time: START_US,
        creative: *creative,
        kind: EventKind::Cost,
        delta: Stats { cost_micros: 5, ..Stats::ZERO },
        user: NO_USER,
        id: NO_ID,
    };
    let events = ids.iter().map(known).collect();
    let inputs = BTreeMap::from([(last, Inputs { events, ..Inputs::default() })]);
    let course = Course { snapshot: Some(last), ..Course::default() };
    let run = parts(&spec(0), &registry, &inputs, 2, &course);
    assert!(run[&last].iter().all(|part| part.state_done && part.settled));
    let entities: std::collections::BTreeSet<EntityId> =
        run[&last].iter().flat_map(|part| part.state.iter().map(|item| item.entity)).collect();
    assert!(ids.iter().all(|id| entities.contains(id)));
}
