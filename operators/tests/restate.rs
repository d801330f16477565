//! Report rows against the pure-differential form: whatever the order in which statements arrive,
//! what entered the windows adds up to the newest statement about each interval.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use omnify_operators::model::{
    Attribution, DAY_US, EntityId, EntityKey, Event, EventKind, HOUR_US, MINUTE_US, Registry,
    ReportKey, ReportRow, ReportVersion, Stats, Tick, tick_of_us,
};
use omnify_operators::reference::restated_totals;
use omnify_operators::spec::{FeatureSpec, PaneRows};
use proptest::prelude::*;
use support::{Inputs, Output, run};

const CREATIVES: usize = 4;
const START_US: i64 = 20_500 * DAY_US;

/// A statement about one of a few intervals: when it was made, and when it arrived.
#[derive(Clone, Debug)]
struct Statement {
    creative: usize,
    day: i64,
    as_of_hours: i64,
    sequence: u64,
    impressions: i64,
    cost_micros: i64,
    delay_minutes: i64,
}

fn statements() -> impl Strategy<Value = Vec<Statement>> {
    let statement =
        (0..CREATIVES, 0..2_i64, 1..60_i64, 0..3_u64, 0..4_i64, 0..3_i64, 0..40 * 60_i64).prop_map(
            |(creative, day, as_of_hours, sequence, impressions, cost, delay_minutes)| Statement {
                creative,
                day,
                // Few instants, so that many statements are of the same one.
                as_of_hours: as_of_hours.div_euclid(6) * 6 + 6,
                sequence,
                impressions: 1_000 * impressions,
                cost_micros: 1_000_000 * cost,
                delay_minutes,
            },
        );
    prop::collection::vec(statement, 1..60)
}

fn registry() -> (Arc<Registry>, Vec<EntityId>) {
    let registry = Arc::new(Registry::utc());
    let key = |n: usize| format!("t/p/a/c{n}/g/x").parse::<EntityKey>().unwrap();
    let ids = (0..CREATIVES).map(|n| registry.intern(&key(n))).collect();
    (registry, ids)
}

/// Rows by tick of arrival: the first whole minute after the statement plus its delay.
fn arrivals(statements: &[Statement], ids: &[EntityId]) -> BTreeMap<Tick, Inputs> {
    let mut inputs: BTreeMap<Tick, Inputs> = BTreeMap::new();
    for said in statements {
        let start = START_US + said.day * DAY_US;
        let as_of = start + said.as_of_hours * HOUR_US;
        let totals =
            Stats { impressions: said.impressions, cost_micros: said.cost_micros, ..Stats::ZERO };
        let (creative, attribution) = (ids[said.creative], Attribution::DEFAULT);
        let key = ReportKey { creative, start, end: start + DAY_US, attribution };
        let version = ReportVersion { as_of, sequence: said.sequence, totals };
        let tick = tick_of_us(as_of + said.delay_minutes * MINUTE_US);
        inputs.entry(tick).or_default().reports.push(ReportRow { key, version });
    }
    inputs
}

fn rows(inputs: &BTreeMap<Tick, Inputs>) -> Vec<(Tick, ReportRow)> {
    let each = |(tick, input): (&Tick, &Inputs)| {
        input.reports.iter().map(|row| (*tick, *row)).collect::<Vec<_>>()
    };
    inputs.iter().flat_map(each).collect()
}

/// The sum of the changes of each interval, up to a tick. Intervals of one creative do not touch,
/// and a change falls inside its interval.
fn changed(changes: &[(Tick, Event)], until: Tick) -> BTreeMap<(EntityId, i64), Stats> {
    let mut sums: BTreeMap<(EntityId, i64), Stats> = BTreeMap::new();
    for (_, event) in changes.iter().filter(|(tick, _)| *tick <= until) {
        let interval = (event.creative, event.time.div_euclid(DAY_US) * DAY_US);
        *sums.entry(interval).or_default() += event.delta;
    }
    sums
}

fn spec() -> FeatureSpec {
    FeatureSpec {
        windows: vec!["28d/6h".parse().unwrap()],
        pane_rows: PaneRows::Emit,
        emit_events: true,
        cadence: None,
        ..FeatureSpec::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn changes_add_up_to_the_newest_statement(statements in statements()) {
        let (registry, ids) = registry();
        let mut inputs = arrivals(&statements, &ids);
        let last = *inputs.keys().next_back().unwrap();
        // Two more panes end after the last row.
        inputs.insert(last + 12 * 3_600_000, Inputs::default());
        let out = run(&spec(), &registry, &inputs, 1);
        let rows = rows(&inputs);

        // At every tick the changes so far are the totals so far.
        for tick in inputs.keys() {
            let known = rows.partition_point(|(at, _)| at <= tick);
            let want: BTreeMap<_, _> = restated_totals(&rows[..known])
                .into_iter()
                .map(|(key, totals)| ((key.creative, key.start), totals))
                .collect();
            prop_assert_eq!(changed(&out.changes, *tick), want, "at tick {}", tick);
        }

        // A change falls where its statement was made, inside the interval.
        for (tick, event) in &out.changes {
            prop_assert_eq!(event.kind, EventKind::Report);
            let stated = rows.iter().any(|(at, row)| {
                at == tick
                    && row.key.creative == event.creative
                    && row.version.as_of.min(row.key.end) - 1 == event.time
                    && row.key.start <= event.time
            });
            prop_assert!(stated, "no row at {} says {:?}", tick, event);
        }

        // Only differences enter.
        let mut versions: Vec<_> = rows.iter().map(|(_, row)| *row).collect();
        versions.sort_unstable();
        versions.dedup();
        prop_assert!(out.changes.len() <= versions.len());
        let empty = out.changes.iter().filter(|(_, event)| event.delta.is_empty()).count();
        prop_assert!(empty <= restated_totals(&rows).len(), "only a first statement may be empty");
        prop_assert_eq!((out.featured, out.refused, out.held), (out.changes.len() as u64, 0, 0));

        // What the windows hold in the end is the newest totals.
        for (creative, totals) in restated_totals(&rows).iter().fold(
            BTreeMap::<EntityId, Stats>::new(),
            |mut sums, (key, totals)| {
                *sums.entry(key.creative).or_default() += *totals;
                sums
            },
        ) {
            let newest = out.panes.iter().rev().find(|((_, _, key), _)| {
                registry.lookup(key) == Some(creative)
            });
            let held = newest.map_or(Stats::ZERO, |(_, (sums, _))| *sums);
            // Rows close only while they hold something.
            prop_assert!(held == totals || totals.is_empty(), "{:?} {:?}", held, totals);
        }
    }

    #[test]
    fn order_workers_and_repetition_do_not_show(statements in statements()) {
        let (registry, ids) = registry();
        let mut inputs = arrivals(&statements, &ids);
        let last = *inputs.keys().next_back().unwrap();
        inputs.insert(last + 60_000, Inputs::default());
        let one = run(&spec(), &registry, &inputs, 1);
        let mut shuffled = inputs.clone();
        shuffled.values_mut().for_each(|input| input.reports.reverse());
        for workers in [1, 2, 3] {
            prop_assert_eq!(&run(&spec(), &registry, &shuffled, workers), &one);
        }

        // Every row again, twice at its own tick and once at the end.
        let mut repeated = inputs.clone();
        repeated.values_mut().for_each(|input| input.reports.extend(input.reports.clone()));
        let again = rows(&inputs).into_iter().map(|(_, row)| row);
        repeated.entry(last + 60_000).or_default().reports.extend(again);
        let again = run(&spec(), &registry, &repeated, 2);
        prop_assert_eq!(again.reports, 3 * rows(&inputs).len() as u64);
        // Repetitions are counted, and nothing else shows.
        let again = Output { reports: one.reports, ..again };
        prop_assert_eq!(&again, &one);
    }
}
