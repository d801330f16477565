//! The operator alone: what it tells, refuses, forgets and exports.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::model::{EntityKey, HOUR_US, MINUTE_US, Registry, ReportKey, tick_of_us};
use crate::reference::reported;
use crate::spec::IntakeSpec;

const NOW: Tick = 500 * 86_400_000;

fn spec(horizon_days: i64) -> FeatureSpec {
    let intake =
        IntakeSpec { restatement_horizon_us: horizon_days * DAY_US, ..IntakeSpec::default() };
    let rule = |accounts: &str, window: &str| AttributionRule {
        accounts: accounts.to_owned(),
        window: window.parse().unwrap(),
    };
    FeatureSpec { intake, attribution: vec![rule("t/meta", "7d_click")], ..FeatureSpec::default() }
}

/// Creatives 0, 1, 2 are fed by the default window, 3 by `7d_click`; 4 and later are any.
fn restate(horizon_days: i64) -> (Restate, Vec<EntityId>) {
    let registry = Arc::new(Registry::utc());
    let id = |n: usize| {
        let platform = if n == 3 { "meta" } else { "p" };
        registry.intern(&format!("t/{platform}/a/c{n}/g/x").parse::<EntityKey>().unwrap())
    };
    let ids: Vec<EntityId> = (0..80).map(id).collect();
    // Ids of creatives come between those of the entities above them.
    (Restate::new(&spec(horizon_days), RegistryView::new(registry)), ids)
}

/// A day that ended `days_ago`.
fn row(creative: EntityId, days_ago: i64, as_of_days_ago: i64, clicks: i64) -> ReportRow {
    let end = us_of_tick(NOW) - days_ago * DAY_US;
    let attribution = Attribution::DEFAULT;
    ReportRow {
        key: ReportKey { creative, start: end - DAY_US, end, attribution },
        version: ReportVersion {
            as_of: us_of_tick(NOW) - as_of_days_ago * DAY_US,
            sequence: 0,
            totals: Stats { clicks, ..Stats::ZERO },
        },
    }
}

#[test]
fn a_statement_counts_once_however_often_it_comes() {
    let (mut restate, ids) = restate(400);
    let mut take = |row: ReportRow, sequence| {
        let version = ReportVersion { sequence, ..row.version };
        let out = restate.apply(NOW, vec![ReportRow { version, ..row }]);
        assert_eq!(out.refused, []);
        (out.events.iter().map(|event| event.delta.clicks).collect::<Vec<_>>(), out.unchanged)
    };
    assert_eq!(take(row(ids[0], 2, 1, 5), 1), (vec![5], 0));
    assert_eq!(take(row(ids[0], 2, 1, 5), 1), (vec![], 1));
    assert_eq!(take(row(ids[0], 2, 1, 5), 2), (vec![], 1));
    assert_eq!(take(row(ids[0], 2, 0, 5), 3), (vec![], 1), "said again later");
    assert_eq!(take(row(ids[0], 2, 0, 6), 4), (vec![1], 0));
    assert_eq!(take(row(ids[0], 2, 0, 5), 5), (vec![-1], 0), "a correction taken back");
    assert_eq!(take(row(ids[0], 2, 1, 9), 6), (vec![], 1), "older than what is known");
    assert_eq!(take(row(ids[0], 3, 1, 0), 7), (vec![0], 0), "the first of its interval");
}

#[test]
fn statements_of_the_platforms_future_keep_their_order() {
    let (mut restate, ids) = restate(400);
    let mut take = |ahead_us: i64, clicks| {
        let mut row = row(ids[0], 1, 0, clicks);
        row.version.as_of = us_of_tick(NOW) + ahead_us;
        row.version.sequence = u64::from(ahead_us == 1);
        let out = restate.apply(NOW, vec![row]);
        out.events.iter().map(|event| event.delta.clicks).sum::<i64>()
    };
    // Our clock was set back meanwhile; the older statement arrives last.
    assert_eq!(take(2, 5), 5);
    assert_eq!(take(1, 9), 0);
    assert_eq!(take(3, 7), 2);
}

#[test]
fn conversions_of_one_window_count_and_delivery_of_any() {
    let (mut restate, ids) = restate(400);
    let mut take = |window: &str, as_of_hours: i64, impressions, conversions| {
        let mut row = row(ids[3], 1, 1, 0);
        row.key.attribution = window.parse().unwrap();
        row.version.as_of += as_of_hours * HOUR_US;
        row.version.totals = Stats { impressions, conversions, ..Stats::ZERO };
        let out = restate.apply(NOW, vec![row]);
        let delta = out.events.iter().fold(Stats::ZERO, |sum, event| sum + event.delta);
        (delta.impressions, delta.conversions)
    };
    assert_eq!(take("1d_click", 1, 100, 3), (100, 0), "delivery of any window");
    assert_eq!(take("7d_click", 1, 100, 5), (0, 5), "the same delivery is not added");
    assert_eq!(take("default", 2, 130, 4), (30, 0), "newer delivery");
    assert_eq!(take("7d_click", 1, 100, 6), (0, 1), "newer by order of arrival, of outcome only");
    assert_eq!(take("1d_view", 3, 0, 2), (0, 0), "a split by window says nothing of delivery");
    assert_eq!(take("7d_click", 4, 0, 7), (0, 1), "nor does one of the window that counts");
    assert_eq!(take("7d_click", 5, 0, 0), (-130, -7), "nothing at all is a statement");
}

#[test]
fn what_overlaps_in_part_is_refused() {
    let (mut restate, ids) = restate(400);
    let mut take = |start_h: i64, end_h: i64| {
        let mut row = row(ids[0], 2, 0, 1);
        let day = row.key.start;
        (row.key.start, row.key.end) = (day + start_h * HOUR_US, day + end_h * HOUR_US);
        restate.apply(NOW, vec![row]).refused.first().map(|(_, why)| *why)
    };
    let refused = Some(Refusal::OverlappingInterval);
    assert_eq!(take(0, 24), None);
    assert_eq!(take(23, 25), refused, "over the end");
    assert_eq!(take(-1, 1), refused, "over the start");
    assert_eq!(take(3, 5), None);
    assert_eq!(take(4, 6), refused);
    assert_eq!(take(2, 4), refused);
    assert_eq!(take(2, 6), None, "between the day and the two hours");
    assert_eq!(take(24, 25), None);
    assert_eq!(take(-24, 48), None, "around everything");
    assert_eq!(take(0, 36), None, "around the day");
    assert_eq!(take(12, 36), refused, "it cuts the day in it");
}

#[test]
fn what_begins_beyond_the_horizon_is_refused_and_forgotten() {
    let (mut restate, ids) = restate(10);
    let early = row(ids[2], 10, 2, 5);
    let out = restate.apply(NOW, vec![row(ids[0], 3, 2, 5), early, row(ids[2], 9, 2, 5)]);
    assert_eq!(out.events.len(), 2);
    assert_eq!(out.refused, [(early, Refusal::TooLate)]);
    let day = 86_400_000;
    // The day begins beyond the horizon now; an hour inside it does not, and is refused with it.
    let mut hour = row(ids[2], 9, 0, 1);
    hour.key.start = hour.key.end - HOUR_US;
    let out = restate.apply(NOW + day / 2, vec![hour]);
    assert_eq!(out.refused, [(hour, Refusal::TooLate)]);
    restate.apply(NOW + day, Vec::new());
    assert_eq!(restate.known.len(), 2);
    restate.apply(NOW + 2 * day, Vec::new());
    assert_eq!(restate.known.len(), 1, "the interval of creative 2 is forgotten");
    restate.apply(NOW + 8 * day, Vec::new());
    assert!(restate.known.is_empty() && restate.known.capacity() > 0);
}

#[test]
fn what_has_left_every_window_is_known_and_changes_nothing_there() {
    let (mut restate, ids) = restate(400);
    restate.apply(NOW - 1, Vec::new());
    let out = restate.apply(NOW, vec![row(ids[0], 29, 2, 5), row(ids[0], 27, 2, 5)]);
    assert_eq!((out.events.len(), out.refused.len()), (1, 0));
    // A long interval with an old statement: what enters falls where a window holds it.
    let mut long = row(ids[1], 0, 30, 7);
    long.key.start -= 40 * DAY_US;
    let out = restate.apply(NOW + 1, vec![long]);
    assert_eq!(out.events[0].time, us_of_tick(NOW) - 28 * DAY_US);
}

#[test]
fn intervals_of_one_creative_are_bounded() {
    let (mut restate, ids) = restate(400);
    let minute = |at: usize| {
        let mut row = row(ids[0], 300, 0, 1);
        row.key.start += at as i64 * 60_000_000;
        row.key.end = row.key.start + 60_000_000;
        row
    };
    let out = restate.apply(NOW, (0..INTERVALS_MAX + 2).map(minute).collect());
    assert_eq!(out.refused.len(), 2);
    assert!(out.refused.iter().all(|(_, why)| *why == Refusal::TooManyIntervals));
    let out = restate.apply(NOW, vec![minute(7), row(ids[1], 2, 0, 1)]);
    assert_eq!((out.refused.len(), out.unchanged), (0, 1), "what is known is still taken");
}

#[test]
fn an_export_holds_what_was_known_when_it_began() {
    let (mut restate, ids) = restate(400);
    restate.apply(NOW, ids[..50].iter().map(|id| row(*id, 2, 1, 5)).collect());
    restate.begin_export(NOW);
    let (mut items, _) = restate.export(100);
    let later = [0, 49, 77].map(|at| row(ids[at], 2, 0, 9));
    restate.apply(NOW + 1, later.to_vec());
    loop {
        let (more, done) = restate.export(1_000);
        items.extend(more);
        if done {
            break;
        }
    }
    items.sort();
    assert_eq!(items.len(), 50);
    let mut loaded = Restate::new(&spec(400), restate.view.clone());
    loaded.restore(NOW, &items).unwrap();
    let out = loaded.apply(NOW + 1, later.to_vec());
    let deltas: Vec<i64> = out.events.iter().map(|event| event.delta.clicks).collect();
    assert_eq!(deltas, [4, 4, 9], "what came after the export began is not in it");
    assert_eq!(restate.apply(NOW + 2, later.to_vec()).unchanged, 3);
}

/// A row of one of few intervals, of one or another window, stated a while before it comes.
fn said() -> impl Strategy<Value = (usize, (i64, i64), usize, i64, [i64; 3])> {
    let interval = prop_oneof![
        4 => (0..24_i64).prop_map(|hour| (hour, hour + 1)),
        2 => (0..4_i64).prop_map(|quarter| (6 * quarter, 6 * quarter + 6)),
        3 => Just((0, 24)),
        1 => (0..24_i64, 1..30_i64).prop_map(|(hour, length)| (hour, hour + length)),
    ];
    let creative = prop_oneof![Just(0_usize), Just(3)];
    (creative, interval, 0..3_usize, 0..600_i64, prop::array::uniform3(0..4_i64))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What the changes of a creative come to is what the recomputation says of its widest intervals;
    /// also where a restored operator goes on.
    #[test]
    fn changes_follow_the_newest_statements(
        rows in prop::collection::vec((1..90_i64, said()), 1..50),
        restart in 0..50_usize,
    ) {
        let (mut restate, ids) = restate(400);
        let feeds = |id| if id == ids[3] { "7d_click" } else { "default" }.parse().unwrap();
        let start = 499 * DAY_US;
        let mut now = start;
        let mut taken: Vec<(Tick, ReportRow)> = Vec::new();
        let mut told: BTreeMap<EntityId, Stats> = BTreeMap::new();
        for (at, (minutes, (creative, (from, to), window, age, [shown, clicks, sold]))) in
            rows.into_iter().enumerate()
        {
            now += minutes * MINUTE_US;
            let key = ReportKey {
                creative: ids[creative],
                start: start + from * HOUR_US,
                end: start + to * HOUR_US,
                attribution: ["default", "7d_click", "1d_view"][window].parse().unwrap(),
            };
            let totals =
                Stats { impressions: shown, clicks, conversions: sold, ..Stats::ZERO };
            let as_of = (now - age * MINUTE_US).max(key.start + 1);
            let version = ReportVersion { as_of, sequence: at as u64, totals };
            let (tick, row) = (tick_of_us(now), ReportRow { key, version });
            taken.push((tick, row));
            for event in restate.apply(tick, vec![row]).events {
                *told.entry(event.creative).or_default() += event.delta;
            }
            let said = reported(&taken, feeds);
            let mut want: BTreeMap<EntityId, Stats> = BTreeMap::new();
            for ((creative, start, end), facts) in &said {
                let sum = want.entry(*creative).or_default();
                for (fact, stated) in facts.iter().enumerate() {
                    let around = |(other, facts): &(&(EntityId, i64, i64), &[Option<Stats>; 2])| {
                        let holds = other.1 <= *start && *end <= other.2;
                        other.0 == *creative && holds && facts[fact].is_some()
                    };
                    if let Some(stated) = stated && said.iter().filter(around).count() == 1 {
                        *sum += *stated;
                    }
                }
            }
            prop_assert_eq!(&told, &want);
            if at == restart {
                restate.begin_export(tick);
                let (items, done) = restate.export(usize::MAX);
                prop_assert!(done);
                restate = Restate::new(&spec(400), restate.view.clone());
                restate.restore(tick, &items).unwrap();
            }
        }
    }
}
