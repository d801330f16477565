//! Report rows of several grains and attribution windows, against the recomputation of everything at
//! every tick, and against a market whose truth is known.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use omnify_operators::model::{
    Attribution, AttributionRule, DAY_US, EntityId, EntityKey, Event, HOUR_US, MINUTE_US, Registry,
    RegistryView, ReportKey, ReportRow, ReportVersion, Stats, Tick, tick_of_us, us_of_tick,
};
use omnify_operators::reference::{Interval, reported};
use omnify_operators::spec::{FeatureSpec, PaneRows};
use proptest::prelude::*;
use support::{Course, Inputs, gather, parts, run};

const CREATIVES: usize = 3;
const DAYS: i64 = 3;
const START_US: i64 = 20_500 * DAY_US;
const WINDOWS: [&str; 3] = ["default", "7d_click", "1d_view"];

/// The platform `q` is fed by a window of its own.
fn rules() -> Vec<AttributionRule> {
    vec![AttributionRule { accounts: "*/q".to_owned(), window: WINDOWS[1].parse().unwrap() }]
}

fn registry() -> (Arc<Registry>, Vec<EntityId>) {
    let registry = Arc::new(Registry::utc());
    let key = |n: usize| {
        let path = format!("t/{}/a/c{n}/g/x", if n == 0 { "p" } else { "q" });
        path.parse::<EntityKey>().unwrap()
    };
    let ids = (0..CREATIVES).map(|n| registry.intern(&key(n))).collect();
    (registry, ids)
}

fn feeds(registry: &Arc<Registry>) -> impl Fn(EntityId) -> Attribution {
    let (rules, mut view) = (rules(), RegistryView::new(registry.clone()));
    let infos = view.all().to_vec();
    move |id| AttributionRule::window_of(&rules, &infos[id.index()].key)
}

fn spec() -> FeatureSpec {
    FeatureSpec {
        windows: vec!["28d/6h".parse().unwrap()],
        pane_rows: PaneRows::Emit,
        emit_events: true,
        cadence: None,
        attribution: rules(),
        export_bytes_per_ms: 0,
        ..FeatureSpec::default()
    }
}

/// An interval: an hour, a quarter of a day, a day, two days, or one that cuts others.
fn interval() -> impl Strategy<Value = (i64, i64)> {
    prop_oneof![
        5 => (0..24 * DAYS).prop_map(|hour| (hour, hour + 1)),
        2 => (0..4 * DAYS).prop_map(|quarter| (6 * quarter, 6 * quarter + 6)),
        4 => (0..DAYS).prop_map(|day| (24 * day, 24 * day + 24)),
        1 => Just((0, 48)),
        1 => (0..24 * DAYS, 1..30_i64).prop_map(|(hour, length)| (hour, hour + length)),
    ]
    .prop_map(|(start, end)| (START_US + start * HOUR_US, START_US + end * HOUR_US))
}

/// When a row was stated, in minutes after its interval began, and how long it took to arrive. Few
/// instants, so that many statements are of the same one.
fn moment() -> impl Strategy<Value = (i64, i64)> {
    (
        prop_oneof![(0..10_i64).prop_map(|n| 20 * n), (0..30_i64).prop_map(|n| 180 * n)],
        prop_oneof![Just(0), Just(7), 0..2_000_i64],
    )
}

#[derive(Clone, Debug)]
struct Statement {
    creative: usize,
    interval: (i64, i64),
    window: usize,
    moment: (i64, i64),
    sequence: u64,
    totals: Stats,
}

impl Statement {
    fn row(&self, ids: &[EntityId]) -> (Tick, ReportRow) {
        let (start, end) = self.interval;
        let as_of = start + self.moment.0 * MINUTE_US;
        let attribution = WINDOWS[self.window].parse().unwrap();
        let key = ReportKey { creative: ids[self.creative], start, end, attribution };
        let version = ReportVersion { as_of, sequence: self.sequence, totals: self.totals };
        // A few come before they were stated, by a clock that runs ahead.
        let arrives = as_of + (self.moment.1 - 5) * MINUTE_US;
        (tick_of_us(arrives.max(start + MINUTE_US)), ReportRow { key, version })
    }
}

fn statements() -> impl Strategy<Value = Vec<Statement>> {
    let totals = (0..5_i64, 0..3_i64, 0..4_i64, 0..3_i64).prop_map(
        |(impressions, clicks, conversions, cost)| Stats {
            impressions: 100 * impressions,
            clicks,
            conversions,
            cost_micros: 1_000_000 * cost,
            revenue_micros: 10_000_000 * conversions,
        },
    );
    let statement = (0..CREATIVES, interval(), 0..WINDOWS.len(), moment(), 0..3_u64, totals)
        .prop_map(|(creative, interval, window, moment, sequence, totals)| Statement {
            creative,
            interval,
            window,
            moment,
            sequence,
            totals,
        });
    prop::collection::vec(statement, 1..70)
}

fn arrivals(rows: impl IntoIterator<Item = (Tick, ReportRow)>) -> BTreeMap<Tick, Inputs> {
    let mut inputs: BTreeMap<Tick, Inputs> = BTreeMap::new();
    for (tick, row) in rows {
        inputs.entry(tick).or_default().reports.push(row);
    }
    inputs
}

/// All rows up to a tick, in the order in which they are taken.
fn known(inputs: &BTreeMap<Tick, Inputs>, until: Tick) -> Vec<(Tick, ReportRow)> {
    let mut rows: Vec<(Tick, ReportRow)> = inputs
        .range(..=until)
        .flat_map(|(tick, input)| input.reports.iter().map(|row| (*tick, *row)))
        .collect();
    rows.sort_by_key(|(tick, row)| (*tick, row.key, row.version));
    rows
}

/// Those intervals that lie in no other, with what is in them: of each fact, the intervals that lie
/// in no other of which it is stated.
fn widest(all: &BTreeMap<Interval, [Option<Stats>; 2]>) -> BTreeMap<Interval, Stats> {
    let holds = |a: &Interval, b: &Interval| a.0 == b.0 && a.1 <= b.1 && b.2 <= a.2;
    let alone = |of: &BTreeMap<Interval, Stats>| -> BTreeMap<Interval, Stats> {
        let inside = |at| of.keys().any(|other| other != at && holds(other, at));
        of.iter().filter(|(at, _)| !inside(at)).map(|(at, sum)| (*at, *sum)).collect()
    };
    let mut sums = alone(&all.keys().map(|at| (*at, Stats::ZERO)).collect());
    for fact in 0..2 {
        let stated = all.iter().filter_map(|(at, whole)| Some((*at, whole[fact]?))).collect();
        for (at, whole) in alone(&stated) {
            let (_, sum) = sums.iter_mut().find(|(widest, _)| holds(widest, &at)).unwrap();
            *sum += whole;
        }
    }
    sums
}

/// The sum of what entered the windows until a tick, of each of the intervals and of everything else.
fn entered(
    changes: &[(Tick, Event)],
    until: Tick,
    intervals: impl Iterator<Item = Interval>,
) -> (BTreeMap<Interval, Stats>, Stats) {
    let mut sums: BTreeMap<Interval, Stats> = intervals.map(|at| (at, Stats::ZERO)).collect();
    let mut elsewhere = Stats::ZERO;
    for (_, event) in changes.iter().filter(|(tick, _)| *tick <= until) {
        let holds = |at: &&Interval| at.0 == event.creative && (at.1..at.2).contains(&event.time);
        match sums.keys().find(holds).copied() {
            Some(at) => *sums.get_mut(&at).unwrap() += event.delta,
            None => elsewhere += event.delta,
        }
    }
    (sums, elsewhere)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_enters_is_what_the_newest_statements_amount_to(statements in statements()) {
        let (registry, ids) = registry();
        let inputs = arrivals(statements.iter().map(|said| said.row(&ids)));
        let out = run(&spec(), &registry, &inputs, 1);
        for tick in inputs.keys() {
            let want = widest(&reported(&known(&inputs, *tick), feeds(&registry)));
            let (sums, elsewhere) = entered(&out.changes, *tick, want.keys().copied());
            prop_assert_eq!(&sums, &want, "at {}", tick);
            // An interval may have been the widest and lie in a wider one now, never the reverse.
            prop_assert_eq!(elsewhere, Stats::ZERO, "at {}", tick);
        }
        // Every row is accounted for, and nothing that it became is refused.
        let rows = statements.len() as u64;
        prop_assert_eq!(out.reports + out.refused_reports.len() as u64, rows);
        prop_assert_eq!((out.featured, out.refused, out.held), (out.restated, 0, 0));
    }

    #[test]
    fn order_workers_repetition_and_restarts_do_not_show(
        statements in statements(),
        at in 0.0..1.0_f64,
    ) {
        let (registry, ids) = registry();
        let mut inputs = arrivals(statements.iter().map(|said| said.row(&ids)));
        let last = *inputs.keys().next_back().unwrap();
        inputs.insert(last + 60_000, Inputs::default());
        let one = run(&spec(), &registry, &inputs, 1);
        let mut shuffled = inputs.clone();
        shuffled.values_mut().for_each(|input| input.reports.reverse());
        for workers in [1, 2, 4] {
            prop_assert_eq!(&run(&spec(), &registry, &shuffled, workers), &one);
        }
        let mut repeated = inputs.clone();
        repeated.values_mut().for_each(|input| input.reports.extend(input.reports.clone()));
        let again = run(&spec(), &registry, &repeated, 2);
        prop_assert_eq!(&again.changes, &one.changes);

        // From a snapshot in the middle, whose export goes on while rows come.
        let ticks: Vec<Tick> = inputs.keys().copied().collect();
        let tick = ticks[(at * (ticks.len() - 1) as f64) as usize];
        let course = Course { snapshot: Some(tick), ..Course::default() };
        let exporting = parts(&spec(), &registry, &inputs, 2, &course);
        let items = exporting.values().flatten().flat_map(|part| part.state.clone()).collect();
        if inputs.range(tick + 1..).next().is_some() {
            let course = Course { restore: Some((tick, items)), ..Course::default() };
            let rest = gather(parts(&spec(), &registry, &inputs, 4, &course), &registry, tick);
            let later: Vec<_> = one.changes.iter().filter(|(at, _)| *at > tick).copied().collect();
            prop_assert_eq!(rest.changes, later);
        }
    }

    /// A platform that tells the truth, interval by interval, up to the moment of each statement:
    /// what entered is never more than what happened, and in the end exactly that.
    #[test]
    fn a_truthful_platform_is_never_counted_twice(
        truth in prop::collection::vec(0..9_i64, 3 * 24 * DAYS as usize),
        polls in prop::collection::vec((interval(), moment()), 1..60),
    ) {
        const SLOT_US: i64 = 20 * MINUTE_US;
        let happened = |from: i64, until: i64| -> i64 {
            let slot = |at: i64| ((at - START_US) / SLOT_US).clamp(0, truth.len() as i64) as usize;
            truth[slot(from)..slot(until).max(slot(from))].iter().sum()
        };
        let (registry, ids) = registry();
        let row = |(start, end): (i64, i64), as_of: i64, tick: Tick| {
            let impressions = happened(start, as_of.min(end));
            let totals = Stats { impressions, ..Stats::ZERO };
            let key =
                ReportKey { creative: ids[0], start, end, attribution: Attribution::DEFAULT };
            let version = ReportVersion { as_of, sequence: tick, totals };
            (tick, ReportRow { key, version })
        };
        let mut inputs = arrivals(polls.iter().map(|(interval, (age, delay))| {
            let as_of = interval.0 + age * MINUTE_US;
            row(*interval, as_of, tick_of_us(as_of + (delay + 1) * MINUTE_US))
        }));
        let last = *inputs.keys().next_back().unwrap() + 60_000;
        let end = START_US + DAYS * DAY_US;
        let everything = (START_US, end);
        if us_of_tick(last) > end {
            inputs.entry(last).or_default().reports.push(row(everything, us_of_tick(last), last).1);
        }
        let out = run(&spec(), &registry, &inputs, 1);
        for tick in inputs.keys() {
            let (_, sum) = entered(&out.changes, *tick, std::iter::empty());
            let most = happened(START_US, us_of_tick(*tick));
            prop_assert!(sum.impressions <= most, "{} of {most} at {tick}", sum.impressions);
        }
        // A row about the whole time is refused where it cuts an interval that reaches beyond it.
        if us_of_tick(last) > end && out.refused_reports.iter().all(|(tick, ..)| *tick != last) {
            let (_, sum) = entered(&out.changes, last, std::iter::empty());
            prop_assert_eq!(sum.impressions, truth.iter().sum::<i64>());
        }
    }
}
