//! Completeness: learned curves against a recomputation from everything that was said, against the
//! truth of a simulator, and in the graph on any number of workers.

mod maturity_support;
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use maturity_support::{Account, Delays, READ_AT_US, Random, Statement, curves};
use omnify_operators::estimate::Prior;
use omnify_operators::maturity::{AGES, Learner, MaturitySpec, Sayings, Weighed, nowcast};
use omnify_operators::model::{
    Attribution, DAY_US, EntityId, EntityKey, Event, EventKind, HOUR_US, Level, Maturity, NO_ID,
    NO_USER, Registry, RegistryView, ReportKey, ReportRow, ReportVersion, Stats, Tick, tick_of_us,
    us_of_tick,
};
use omnify_operators::spec::{Cadence, FeatureSpec, PaneRows};
use proptest::prelude::*;
use support::{Course, Inputs, gather, parts, run};

/// Accounts: two of a platform, one of another, and one of the same name in another tenant.
const ACCOUNTS: [&str; 4] = ["t/p/a", "t/p/b", "t/q/a", "u/p/a"];

fn registry() -> (Arc<Registry>, Vec<EntityId>) {
    let registry = Arc::new(Registry::utc());
    let id = |key: &&str| registry.intern(&key.parse::<EntityKey>().unwrap());
    let ids = ACCOUNTS.iter().map(id).collect();
    (registry, ids)
}

fn learner(spec: &MaturitySpec) -> (Learner, Vec<EntityId>) {
    let (registry, ids) = registry();
    (Learner::new(spec.clone(), RegistryView::new(registry)), ids)
}

/// What one row says of its interval, and when it arrives.
#[derive(Clone, Debug)]
struct Told {
    key: u32,
    day: i64,
    age_quarters: i64,
    conversions: i64,
    delay_quarters: u64,
}

fn told() -> impl Strategy<Value = Vec<Told>> {
    let age = prop_oneof![4 => 0..10_i64, 2 => 8..30_i64];
    let delay = prop_oneof![6 => Just(0_u64), 2 => 0..20_u64];
    let one = (0..6_u32, 0..22_i64, age, 0..40_i64, delay).prop_map(
        |(key, day, age_quarters, conversions, delay_quarters)| Told {
            key,
            day,
            age_quarters,
            conversions,
            delay_quarters,
        },
    );
    prop::collection::vec(one, 1..260)
}

/// The statements that newest versions make, in the order of arrival.
fn statements(told: &[Told], accounts: &[EntityId]) -> Vec<Statement> {
    let mut arriving: Vec<(Tick, usize)> = Vec::new();
    let as_of = |told: &Told| told.day * DAY_US + (told.age_quarters + 1) * DAY_US / 4;
    for (at, told) in told.iter().enumerate() {
        let quarter_ms = (DAY_US / 4_000) as u64;
        arriving.push((tick_of_us(as_of(told)) + told.delay_quarters * quarter_ms, at));
    }
    arriving.sort_unstable();
    let mut known: BTreeMap<(u32, i64), (i64, i64)> = BTreeMap::new();
    let mut statements = Vec::new();
    for (tick, at) in arriving {
        let said = &told[at];
        let (key, version) = ((said.key, said.day), (as_of(said), said.conversions));
        let before = known.get(&key).copied();
        if before.is_some_and(|before| before >= version) {
            continue;
        }
        known.insert(key, version);
        statements.push(Statement {
            tick,
            account: accounts[said.key as usize % ACCOUNTS.len()],
            day: said.day,
            first: before.is_none(),
            conversions: said.conversions - before.map_or(0, |(_, conversions)| conversions),
        });
    }
    statements
}

fn short() -> MaturitySpec {
    MaturitySpec { settle_days: 4, shrink_conversions: 20, memory_days: 5, ..Default::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn curves_are_those_of_everything_that_was_said(told in told(), split in any::<u64>()) {
        let spec = MaturitySpec { break_score: 1.5, ..short() };
        let (mut learner, accounts) = learner(&spec);
        let statements = statements(&told, &accounts);
        let platform = |account: EntityId| {
            accounts.iter().position(|known| *known == account).unwrap().saturating_sub(1) as u32
        };
        let want = curves(&spec, &statements, platform);
        let mut random = Random(split);
        for (tick, want) in &want {
            // As several workers would say it, in any order.
            let mut said: [Sayings; 3] = Default::default();
            for one in statements.iter().filter(|said| said.tick == *tick) {
                let clicks = if one.first { 5 } else { 0 };
                let change = Stats { clicks, conversions: one.conversions, ..Stats::ZERO };
                let part = &mut said[random.next() as usize % 3];
                part.note(one.account, (us_of_tick(*tick), 0), one.day, &change);
            }
            let mut said: Vec<_> = said.into_iter().flat_map(Sayings::into_said).collect();
            said.reverse();
            learner.take(said);
            for account in &accounts {
                let got = learner.curve(*account).map(|curve| {
                    let shares: Vec<i64> = (0..AGES).map(|age| curve.share_ppm(age)).collect();
                    (shares, curve.residual, curve.broken)
                });
                prop_assert_eq!(got.as_ref(), want.get(account), "{:?} at {}", account, tick);
            }
        }
    }
}

const DELAYS: Delays = Delays { at_once: 0.45, mean_days: 5.0 };

/// Feeds `days` days of an account into a learner.
fn learn(learner: &mut Learner, id: EntityId, account: &mut Account, days: usize) {
    for _ in 0..days {
        account.day();
        learner.take(account.read(id, account.days.len()));
    }
}

fn furthest(learner: &Learner, account: EntityId, delays: Delays, spec: &MaturitySpec) -> f64 {
    let curve = learner.curve(account).expect("a curve");
    let miss = |age: i64| {
        let truth = delays.completeness(age, spec.settle_days);
        (curve.share_ppm(age as usize) as f64 / 1e6 - truth).abs()
    };
    (0..spec.settle_days).map(miss).fold(0.0, f64::max)
}

#[test]
fn the_curve_converges_to_the_truth() {
    let spec = MaturitySpec::default();
    let (mut learner, ids) = learner(&spec);
    let mut account = Account::new(1, 2_000, 0.05, DELAYS);
    learn(&mut learner, ids[0], &mut account, 3);
    let prior = furthest(&learner, ids[0], DELAYS, &spec);
    learn(&mut learner, ids[0], &mut account, 117);
    let learned = furthest(&learner, ids[0], DELAYS, &spec);
    assert!(prior > 0.1, "the prior must be wrong for this test to mean anything: {prior}");
    assert!(learned < 0.02, "{learned}");

    // A small account of the platform has no days of its own to go by, and shares the curve.
    let mut small = Account::new(2, 20, 0.05, DELAYS);
    small.days = vec![vec![0; 200]; account.days.len()];
    learn(&mut learner, ids[1], &mut small, 2);
    let shared = furthest(&learner, ids[1], DELAYS, &spec);
    assert!(shared < 0.03, "{shared}");
    assert!(learner.curve(ids[2]).is_none() && learner.curve(ids[3]).is_none());

    // The truth changes, and the curve follows.
    let slower = Delays { at_once: 0.25, mean_days: 6.0 };
    account.delays = slower;
    let before = furthest(&learner, ids[0], slower, &spec);
    learn(&mut learner, ids[0], &mut account, 28 + 3 * 28);
    let after = furthest(&learner, ids[0], slower, &spec);
    assert!(before > 0.12 && after < 0.04, "{before} then {after}");
}

/// The nowcast of the last `window` days of an account.
fn look(learner: &Learner, id: EntityId, account: &Account, window: usize) -> Maturity {
    let today = account.days.len();
    let curve = learner.curve(id).expect("a curve");
    let (mut weighed, mut sums) = (Weighed::default(), Stats::ZERO);
    for day in today - window..today {
        weighed.add(curve, day as i64, account.clicks);
        sums.clicks += account.clicks;
        sums.conversions += account.known(day, today);
    }
    nowcast(curve, Prior { mean: 0.02, trials: 50.0 }, &sums, &weighed)
}

#[test]
fn nine_in_ten_intervals_hold_what_came_in_the_end() {
    let spec = MaturitySpec::default();
    for (clicks, rate, window) in
        [(2_000, 0.05, 28), (2_000, 0.05, 3), (60, 0.04, 7), (20, 0.02, 2)]
    {
        let (mut held, mut all, mut below) = (0, 0, 0);
        for seed in 0..12 {
            let (mut learner, ids) = learner(&spec);
            let mut account = Account::new(100 + seed, clicks, rate, DELAYS);
            let mut looks = Vec::new();
            learn(&mut learner, ids[0], &mut account, 100);
            for _ in 0..20 {
                // Windows that share few days, so that they are nearly independent.
                learn(&mut learner, ids[0], &mut account, window.min(7));
                let days = account.days.len() - window..account.days.len();
                looks.push((days, look(&learner, ids[0], &account, window)));
            }
            for (days, maturity) in looks {
                let came: i64 = days.map(|day| account.settled(day, spec.settle_days)).sum();
                let (came, expected) = (came as f64, maturity.conversions);
                held += usize::from(expected.low <= came && came <= expected.high);
                below += usize::from(came < expected.mean);
                all += 1;
            }
        }
        let share = f64::from(held as u32) / f64::from(all as u32);
        // Rounding outward to whole conversions makes small intervals too wide, never too narrow.
        let most = if clicks * window as i64 > 1_000 { 0.97 } else { 1.0 };
        let centred = f64::from(below as u32) / f64::from(all as u32);
        assert!(share > 0.86 && share <= most, "{clicks} clicks, {window} days: {share}");
        assert!((0.35..0.65).contains(&centred) || window == 2, "{clicks}, {window}: {centred}");
    }
}

#[test]
fn most_of_the_gap_to_hindsight_is_closed() {
    let spec = MaturitySpec::default();
    let (mut raw, mut nowcasted, mut hindsight) = (0.0, 0.0, 0.0);
    for seed in 0..10 {
        let (mut learner, ids) = learner(&spec);
        let mut account = Account::new(500 + seed, 800, 0.05, DELAYS);
        learn(&mut learner, ids[0], &mut account, 100);
        for _ in 0..15 {
            learn(&mut learner, ids[0], &mut account, 7);
        }
        for end in (100..=205 - 30).step_by(7) {
            // Looked at again with what was known then; the curve is of the end, which matters little.
            let days = end - 7..end;
            let clicks = (7 * account.clicks) as f64;
            let known: i64 = days.clone().map(|day| account.known(day, end)).sum();
            let settled: i64 = days.clone().map(|day| account.settled(day, 28)).sum();
            let curve = learner.curve(ids[0]).unwrap();
            let effective: f64 = days
                .map(|day| curve.share_ppm(end - day - 1) as f64 / 1e6 * account.clicks as f64)
                .sum();
            let error = |rate: f64| (rate / account.rate - 1.0).abs();
            raw += error(known as f64 / clicks);
            nowcasted += error(known as f64 / effective);
            hindsight += error(settled as f64 / clicks);
        }
    }
    let closed = (raw - nowcasted) / (raw - hindsight);
    assert!(closed >= 0.9, "{closed}: raw {raw}, nowcast {nowcasted}, hindsight {hindsight}");
}

#[test]
fn an_outage_breaks_the_curve_and_chance_does_not() {
    let spec = MaturitySpec::default();
    let mut alarms = 0;
    for seed in 0..10 {
        let (mut learner, ids) = learner(&spec);
        let mut account = Account::new(900 + seed, 3_000, 0.04, DELAYS);
        learn(&mut learner, ids[0], &mut account, 60);
        for _ in 0..60 {
            learn(&mut learner, ids[0], &mut account, 1);
            alarms += usize::from(learner.curve(ids[0]).unwrap().broken);
        }
        // Nothing is reported for two days, whenever it was clicked.
        let (today, dead) = (account.days.len(), 2);
        for (day, by_age) in account.days.iter_mut().enumerate() {
            (0..dead).for_each(|later| by_age[today + later - day] = 0);
        }
        let mut broken = Vec::new();
        for _ in 0..dead + 1 {
            learn(&mut learner, ids[0], &mut account, 1);
            let curve = learner.curve(ids[0]).unwrap();
            broken.push((curve.broken, curve.residual < 0.0));
        }
        // What a day brought is judged when the next is read.
        assert!(broken[1..].iter().all(|(broken, fewer)| *broken && *fewer), "{seed}: {broken:?}");
        learn(&mut learner, ids[0], &mut account, 2);
        assert!(!learner.curve(ids[0]).unwrap().broken, "{seed}: it is over");
    }
    assert!(alarms <= 1, "{alarms} alarms in 600 days without an outage");
}

#[test]
fn what_a_feed_never_shows_is_not_learned() {
    let spec = MaturitySpec::default();
    let (mut learner, ids) = learner(&spec);
    let mut say = |today: i64, about: &[(i64, i64, i64)]| {
        let (mut said, now) = (Sayings::default(), today * DAY_US + HOUR_US);
        for (day, clicks, conversions) in about {
            let change = Stats { clicks: *clicks, conversions: *conversions, ..Stats::ZERO };
            said.note(ids[0], (now, 0), *day, &change);
        }
        learner.take(said.into_said().collect());
        learner.curve(ids[0]).map(|curve| curve.share_ppm(0))
    };
    // Days stated once, in time, are complete; so no curve is needed.
    for day in 100..150 {
        assert_eq!(say(day, &[(day - 1, 900, 40)]), None);
    }
    // A past that is imported says nothing of when it was known.
    let import: Vec<_> = (60..145).map(|day| (day, 90, 7)).collect();
    assert_eq!(say(150, &import), None);
    // The first correction shows that conversions come late; 21 settled days said they do not.
    let share = say(151, &[(148, 0, 4)]).expect("a curve");
    assert!((970_000..1_000_000).contains(&share), "{share}");
}

/// Rows of five creatives in two accounts, read every morning, over sixty days.
fn reports(registry: &Registry) -> BTreeMap<Tick, Inputs> {
    let mut inputs: BTreeMap<Tick, Inputs> = BTreeMap::new();
    for n in 0..5_u64 {
        let key = format!("t/p/{}/c{n}/g/x", if n < 3 { "a" } else { "b" });
        let creative = registry.intern(&key.parse::<EntityKey>().unwrap());
        let mut account = Account::new(n, 400, 0.05, DELAYS);
        for today in 1..=60_usize {
            account.day();
            let as_of = today as i64 * DAY_US + READ_AT_US;
            let tick = tick_of_us(as_of) + n * 60_000;
            for day in today.saturating_sub(30)..today {
                let (start, conversions) = (day as i64 * DAY_US, account.known(day, today));
                let totals = Stats {
                    impressions: 40_000,
                    clicks: 400,
                    conversions,
                    cost_micros: 1_000_000,
                    revenue_micros: conversions * 3_000_000,
                };
                let key = report_key(creative, start);
                let sequence = today as u64;
                let version = ReportVersion { as_of, sequence, totals };
                inputs.entry(tick).or_default().reports.push(ReportRow { key, version });
            }
        }
    }
    // A pane end of every window lies behind the last row.
    inputs.insert(tick_of_us(61 * DAY_US + 12 * HOUR_US), Inputs::default());
    inputs
}

fn report_key(creative: EntityId, start: i64) -> ReportKey {
    let attribution = Attribution::DEFAULT;
    ReportKey { creative, start, end: start + DAY_US, attribution }
}

fn spec() -> FeatureSpec {
    FeatureSpec {
        windows: ["24h/15m", "28d/6h", "day"].map(|text| text.parse().unwrap()).to_vec(),
        pane_rows: PaneRows::Emit,
        emit_events: true,
        cadence: Some(Cadence { busy_ms: 1_000, idle_ms: 6 * 3_600_000 }),
        export_bytes_per_ms: 16,
        maturity: MaturitySpec { settle_days: 14, ..MaturitySpec::default() },
        ..FeatureSpec::default()
    }
}

#[test]
fn rows_carry_the_nowcast_on_any_number_of_workers_and_across_a_restart() {
    let registry = Arc::new(Registry::utc());
    let (inputs, spec) = (reports(&registry), spec());
    let one = run(&spec, &registry, &inputs, 1);
    for workers in [2, 4] {
        assert!(run(&spec, &registry, &inputs, workers) == one, "{workers} workers differ");
    }
    let (_, last) = one.frames.iter().rev().find(|(_, rows)| rows.len() > 3).unwrap();
    let mut seen = 0;
    for (key, row) in last {
        let Some(maturity) = row.maturity else {
            assert_eq!(key.level(), Level::Tenant, "{key}");
            continue;
        };
        seen += 1;
        let sums = row.windows[1];
        assert!((0.8..0.97).contains(&maturity.share), "{key}: {maturity:?}");
        let effective = sums.clicks as f64 * maturity.share;
        assert_eq!(row.cvr.trials, effective.round() as i64, "{key}");
        assert_eq!(row.cvr.successes, sums.conversions, "{key}");
        assert!((row.cvr.mean - 0.05).abs() < 0.01, "{key}: {:?}", row.cvr);
        assert!(maturity.conversions.mean > sums.conversions as f64, "{key}");
        let worth = maturity.revenue_micros.mean / maturity.conversions.mean;
        assert!((worth - 3e6).abs() < 1.0, "{key}: {worth}");
        let settled_days = (maturity.fresh_us - maturity.settled_us) / DAY_US;
        assert!((8..=14).contains(&settled_days), "{key}: {settled_days}");
    }
    assert!(seen > 3);
    assert!(one.features.values().any(|row| row.contains("maturity: Some")), "closed rows too");

    // A record has the differences and not the rows: a replay must come to the same.
    let mut record: BTreeMap<Tick, Inputs> =
        inputs.keys().map(|tick| (*tick, Inputs::default())).collect();
    for (tick, change) in &one.changes {
        record.entry(*tick).or_default().events.push(*change);
    }
    let replayed = run(&spec, &registry, &record, 2);
    assert!(replayed.frames == one.frames && replayed.panes == one.panes);
    assert!(replayed.features == one.features);

    let ticks: Vec<Tick> = inputs.keys().copied().collect();
    let tick = ticks[ticks.len() * 3 / 4];
    let rest = gather(parts(&spec, &registry, &inputs, 1, &Course::default()), &registry, tick);
    for (exporting, loading) in [(1, 2), (2, 1), (3, 4)] {
        let course = Course { snapshot: Some(tick), ..Course::default() };
        let run = parts(&spec, &registry, &inputs, exporting, &course);
        let items: Vec<_> =
            run.values().flatten().flat_map(|part| part.state.iter().cloned()).collect();
        assert!(gather(run, &registry, 0) == one, "exporting shows");
        let course = Course { restore: Some((tick, items)), snapshot: None };
        let run = parts(&spec, &registry, &inputs, loading, &course);
        assert!(gather(run, &registry, tick) == rest, "{exporting} to {loading} workers");
    }
}

#[test]
fn switched_off_conversions_count_as_they_are() {
    let registry = Arc::new(Registry::utc());
    let inputs = reports(&registry);
    let off = MaturitySpec { enabled: false, ..MaturitySpec::default() };
    let out = run(&FeatureSpec { maturity: off, ..spec() }, &registry, &inputs, 1);
    let rows: Vec<_> = out.frames.iter().flat_map(|(_, rows)| rows).collect();
    assert!(rows.iter().all(|(_, row)| row.maturity.is_none()));
    assert!(rows.iter().all(|(_, row)| row.cvr.trials == row.windows[1].clicks));
}

#[test]
fn days_are_those_of_the_account() {
    let zones = [("t/p/a", "America/Los_Angeles"), ("t/p/b", "Asia/Tokyo")];
    let registry = Arc::new(Registry::new(Box::new(move |key: &EntityKey| {
        let zone = zones.iter().find(|(account, _)| key.as_str() == *account);
        Arc::new(jiff::tz::TimeZone::get(zone.map_or("UTC", |(_, zone)| zone)).unwrap())
    })));
    for (account, zone) in zones {
        let zone = jiff::tz::TimeZone::get(zone).unwrap();
        let creative = registry.intern(&format!("{account}/c/g/x").parse::<EntityKey>().unwrap());
        let id = registry.intern(&account.parse::<EntityKey>().unwrap());
        let mut view = RegistryView::new(registry.clone());
        let mut learner = Learner::new(MaturitySpec::default(), view.clone());
        // A local day across the change of clocks, whose correction is placed at its last instant.
        let date = jiff::civil::date(2026, 3, 8);
        let end = date.tomorrow().unwrap().to_zoned(zone).unwrap().timestamp().as_microsecond();
        let change = |clicks, conversions| Event {
            time: end - 1,
            creative,
            kind: EventKind::Report,
            delta: Stats { clicks, conversions, ..Stats::ZERO },
            user: NO_USER,
            id: NO_ID,
        };
        for (hours, change) in [(2, change(100, 10)), (49, change(0, 3))] {
            let mut said = Sayings::default();
            said.hear(view.info(creative), end + hours * HOUR_US, &change);
            learner.take(said.into_said().collect());
        }
        let curve = learner.curve(id).expect("a conversion came late");
        let day = curve.day_of(end - 1);
        assert_eq!((curve.day_of(end), curve.day_of(curve.fresh_us)), (day + 1, day + 3));
        assert_eq!(curve.of_day(day), curve.of_day(curve.day_of(end - 20 * HOUR_US)));
        assert_eq!(curve.of_day(day).0, curve.share_ppm(2), "{account}");
        assert_eq!((end - curve.settled_us).rem_euclid(DAY_US), 0, "settled at a local midnight");
    }
}
