//! Restatement of a large account while the engine serves: how long until the last corrected number
//! is in the published features, and what that does to the latency of everything else.
//!
//! An account's last `days` of hour rows, and its day rows, are loaded. Then events of other accounts
//! come on a fixed schedule, open loop as in [`crate::latency`], and in the middle of it a poller
//! sends the account again: a burst that states other totals for a share of the hours and their
//! days, page after page without a pause. The same run without the burst tells what it costs.
//!
//! Afterwards the published features are compared with sums over the Parquet history, window by
//! window and entity by entity, and the history is replayed with `--verify`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use omnify_config::Layers;
use omnify_operators::model::{
    Attribution, DAY_US, EntityId, EntityKey, EventTime, HOUR_US, Registry, RegistryView,
    ReportKey, ReportRow, ReportVersion, Stats, Tick, WindowSpec, us_of_tick,
};
use omnify_pipeline::cli::Common;
use omnify_pipeline::clock::Clock;
use omnify_pipeline::commands::replay::{self, ReplayArgs};
use omnify_pipeline::decode::Batch;
use omnify_pipeline::live::{Arrival, HistoryAt, Intake, Live, Setup};
use omnify_sinks::history::HistoryReader;
use omnify_sinks::serve::Snapshot;
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;
use serde_json::{Value, json};

use crate::latency;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Creatives of the large account, ten to a campaign.
    pub creatives: usize,
    /// Days of its hour and day rows.
    pub days: i64,
    /// Percent of its hours that the burst states anew.
    pub percent: u64,
    /// Events a second of other accounts, on 1,000 creatives of 100 campaigns, each decided on ten
    /// times a second.
    pub rate: u64,
    /// Events come for this long before the burst, and for this long after all of it is visible.
    pub around: Duration,
    /// The new folder of the histories; one of its own, removed at the end, if none is named.
    pub dir: Option<PathBuf>,
}

/// Creatives of the accounts that events are of.
const SERVED: usize = 1_000;
/// Rows of one page of the poller.
const PAGE: usize = 1_000;
/// The account that is restated, and the tenant that it is the only account of.
const ACCOUNT: &str = "big/meta/act_1";
/// Longest wait for features to show what is expected.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often the published features are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Window of the features that is watched: it holds every hour that is stated.
const WATCHED: &str = "28d/6h";

/// Runs with the burst and without, and reports.
pub fn run(options: &Options) -> anyhow::Result<Value> {
    let usual = std::env::temp_dir().join(format!("omnify-bench-restate-{}", std::process::id()));
    let dir = options.dir.as_ref().unwrap_or(&usual);
    std::fs::create_dir(dir).with_context(|| format!("{} must be new", dir.display()))?;
    let calm = pass(options, &dir.join("calm"), false)?;
    let burst = pass(options, &dir.join("burst"), true)?;
    let (rows, differing) = recompute(&burst.history, &burst.last)?;
    let verified = verify(&burst.history)?;
    if options.dir.is_none() {
        std::fs::remove_dir_all(dir)?;
    }
    Ok(json!({
        "creatives": options.creatives,
        "report_rows_loaded": burst.loaded_rows,
        "load_s": burst.load_s,
        "report_rows_restated": burst.burst_rows,
        "visible_s": burst.visible_s,
        "events_per_s": options.rate,
        "latency_ms_without": calm.latency_ms,
        "latency_ms_with": burst.latency_ms,
        "actions_without": calm.actions,
        "actions_with": burst.actions,
        "conserved": calm.conserved && burst.conserved,
        "rows_compared": rows,
        "rows_differing": differing,
        "replay_identical": verified,
        "peak_mib": crate::peak_mib(),
    }))
}

/// What a pass came to.
struct Pass {
    loaded_rows: u64,
    load_s: f64,
    burst_rows: u64,
    visible_s: f64,
    latency_ms: Value,
    actions: u64,
    conserved: bool,
    last: Arc<Snapshot>,
    history: PathBuf,
}

fn pass(options: &Options, dir: &Path, burst: bool) -> anyhow::Result<Pass> {
    // Only those who are served have goals: the large account is watched, not steered.
    let served = latency::CONFIG.replace("applies_to = \"*\"", "applies_to = \"served\"");
    let config = Layers::new().text("bench", &served)?.set("history.enabled=true")?;
    let history = dir.join("history");
    let live = Live::start(Setup {
        config: Arc::new(config.build()?.validate()?),
        clock: Clock::System,
        speed: 1,
        listener: None,
        history: Some(HistoryAt::Folder(history.clone())),
        state: None,
        ledger: dir.join("ledger"),
        mirror: None,
        controls: Vec::new(),
    })?;
    let account = Account::new(&live, options)?;
    let served: Vec<EntityId> = (0..SERVED)
        .map(|n| {
            let key = format!("served/p/a/c{}/g{}/x{n}", n / 10, n / 10);
            Ok(live.registry().intern(&key.parse::<EntityKey>()?))
        })
        .collect::<anyhow::Result<_>>()?;

    let started = Instant::now();
    let rows = account.rows(0);
    let loaded_rows = rows.len() as u64;
    send(live.intake(), &rows);
    wait(&live, |snapshot| account.is_shown(snapshot, 0))?;
    let load_s = started.elapsed().as_secs_f64();

    let (done, intake) = (AtomicBool::new(false), live.intake().clone());
    let (burst_rows, visible_s) = std::thread::scope(|scope| {
        let offering = scope.spawn(|| offer(&intake, options.rate, &served, &done));
        std::thread::sleep(options.around);
        let rows = if burst { account.rows(1) } else { Vec::new() };
        let (count, sent) = (rows.len() as u64, Instant::now());
        send(live.intake(), &rows);
        let shown = wait(&live, |snapshot| account.is_shown(snapshot, usize::from(burst)));
        let visible_s = sent.elapsed().as_secs_f64();
        std::thread::sleep(options.around);
        done.store(true, Ordering::Relaxed);
        offering.join().map_err(|_| anyhow::anyhow!("the generator panicked"))?;
        shown.map(|()| (count, visible_s))
    })?;
    let snapshots = live.snapshots();
    let summary = live.stop()?;
    let last = snapshots.borrow().clone();
    Ok(Pass {
        loaded_rows,
        load_s,
        burst_rows,
        visible_s,
        latency_ms: json!(summary.counters.latency_ms),
        actions: summary.counters.actions_total(),
        conserved: summary.counters.conservation().holds,
        last,
        history,
    })
}

/// The large account: what its platform states of each hour, before and after.
struct Account {
    key: EntityKey,
    ids: Vec<EntityId>,
    /// The first hour, and how many there are.
    first: EventTime,
    hours: i64,
    /// Percent of its hours that are stated anew.
    percent: u64,
    /// Order of arrival of the next row.
    sequence: AtomicU64,
    /// Impressions of each hour, at first and after the burst.
    by_hour: [Vec<i64>; 2],
}

/// Different for every creative and hour, the same in every run.
fn mixed(creative: usize, hour: i64) -> u64 {
    let mixed = (creative as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ hour.cast_unsigned()).wrapping_mul(0xff51_afd7_ed55_8ccd) >> 33
}

impl Account {
    fn new(live: &Live, options: &Options) -> anyhow::Result<Account> {
        let ids = (0..options.creatives)
            .map(|n| {
                let key = format!("{ACCOUNT}/c{}/g{}/x{n}", n / 10, n / 10);
                Ok(live.registry().intern(&key.parse::<EntityKey>()?))
            })
            .collect::<anyhow::Result<_>>()?;
        let hours = options.days * 24;
        let now = us_of_tick(Clock::System.now());
        let mut account = Account {
            key: ACCOUNT.parse()?,
            ids,
            first: (now.div_euclid(HOUR_US) - hours) * HOUR_US,
            hours,
            percent: options.percent,
            sequence: AtomicU64::new(0),
            by_hour: [Vec::new(), Vec::new()],
        };
        account.by_hour = [0, 1].map(|version| {
            let sum = |hour| {
                let creatives = 0..options.creatives;
                creatives.map(|creative| account.stated(creative, hour, version).impressions).sum()
            };
            (0..hours).map(sum).collect()
        });
        Ok(account)
    }

    fn is_restated(&self, creative: usize, hour: i64) -> bool {
        mixed(creative, hour) % 100 < self.percent
    }

    /// Totals of an hour, at first (0) or after the burst (1).
    fn stated(&self, creative: usize, hour: i64, version: u64) -> Stats {
        let mixed = mixed(creative, hour).cast_signed() >> 7;
        let more = if version > 0 && self.is_restated(creative, hour) { 7 } else { 0 };
        let impressions = 100 + mixed % 900 + more;
        Stats {
            impressions,
            clicks: impressions / 50,
            cost_micros: impressions * 4_321,
            ..Stats::ZERO
        }
    }

    /// Its report rows: hours, and the days that hold them, whose conversions no hour tells. Of the
    /// second version only what is not as it was.
    fn rows(&self, version: u64) -> Vec<ReportRow> {
        let as_of = us_of_tick(Clock::System.now());
        let days = self.first.div_euclid(DAY_US)
            ..=(self.first + self.hours * HOUR_US - 1).div_euclid(DAY_US);
        let mut rows = Vec::new();
        for (creative, id) in self.ids.iter().enumerate() {
            let row = |start: EventTime, length: i64, totals: Stats| {
                let attribution = Attribution::DEFAULT;
                let key = ReportKey { creative: *id, start, end: start + length, attribution };
                let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
                ReportRow { key, version: ReportVersion { as_of, sequence, totals } }
            };
            for day in days.clone() {
                let (mut totals, mut changed) = (Stats::ZERO, false);
                for hour in 0..24 {
                    let start = day * DAY_US + hour * HOUR_US;
                    let hour = (start - self.first).div_euclid(HOUR_US);
                    if !(0..self.hours).contains(&hour) {
                        continue;
                    }
                    let stated = self.stated(creative, hour, version);
                    totals += stated;
                    if version == 0 || self.is_restated(creative, hour) {
                        changed = true;
                        rows.push(row(start, HOUR_US, stated));
                    }
                }
                totals.conversions = totals.clicks / 20;
                totals.revenue_micros = totals.conversions * 31_000_000;
                if changed {
                    rows.push(row(day * DAY_US, DAY_US, totals));
                }
            }
        }
        rows
    }

    /// Whether the published features of the account are those of `version`.
    fn is_shown(&self, snapshot: &Snapshot, version: usize) -> bool {
        let Some(row) = snapshot.row(&self.key) else { return false };
        let window = snapshot.windows().iter().position(|window| window.to_string() == WATCHED);
        let Some(at) = window else { return false };
        let from = window_start(&snapshot.windows()[at], row.features.tick);
        let outside = (from - self.first).div_euclid(HOUR_US).clamp(0, self.hours) as usize;
        let expected: i64 = self.by_hour[version][outside..].iter().sum();
        row.features.windows[at].impressions == expected
    }
}

/// Where a window begins as of a tick.
fn window_start(window: &WindowSpec, tick: Tick) -> EventTime {
    let (width, pane) = match window {
        WindowSpec::Hop { width, pane } => (width.us(), pane.us()),
        WindowSpec::Day => (DAY_US, DAY_US),
    };
    (us_of_tick(tick) - 1).div_euclid(pane) * pane + pane - width
}

/// Sends rows page after page.
fn send(intake: &Intake, rows: &[ReportRow]) {
    for page in rows.chunks(PAGE) {
        let batch = Batch { reports: page.to_vec(), rows: page.len() as u64, ..Batch::new() };
        intake.send(Arrival { batch, ..Arrival::default() });
    }
}

/// Waits until what is published is as expected.
fn wait(live: &Live, expected: impl Fn(&Snapshot) -> bool) -> anyhow::Result<()> {
    let (snapshots, started) = (live.snapshots(), Instant::now());
    while !expected(&snapshots.borrow()) {
        ensure!(started.elapsed() < PATIENCE, "the features do not show what was stated");
        ensure!(!live.intake().is_closed(), "the engine ended by itself");
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Events of the creatives served, owed at `rate` a second, until `done`.
fn offer(intake: &Intake, rate: u64, creatives: &[EntityId], done: &AtomicBool) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
    let start = Instant::now();
    for slot in 0.. {
        if done.load(Ordering::Relaxed) {
            return;
        }
        let due = start + Duration::from_millis(slot);
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(early);
        }
        let now_us = us_of_tick(Clock::System.now());
        let count = (slot + 1) * rate / 1_000 - slot * rate / 1_000;
        let events = (0..count).map(|_| latency::event(&mut rng, creatives, now_us)).collect();
        let batch = Batch { events, rows: count, ..Batch::new() };
        intake.send(Arrival { batch, arrived: Some(due), ..Arrival::default() });
    }
}

/// Compares every window of every published row with the sum of the history's events; returns how
/// many were compared and how many differ.
fn recompute(history: &Path, last: &Snapshot) -> anyhow::Result<(u64, u64)> {
    let registry = Arc::new(Registry::utc());
    let reader = HistoryReader::open(history)?;
    let mut events: BTreeMap<EntityId, Vec<(Tick, EventTime, Stats)>> = BTreeMap::new();
    for rows in reader.scan_events(registry.clone(), i64::MIN, i64::MAX) {
        for (tick, event) in rows? {
            events.entry(event.creative).or_default().push((tick, event.time, event.delta));
        }
    }
    // Every creative's events, by the keys of the entities that they count for.
    let mut view = RegistryView::new(registry);
    let mut below: BTreeMap<EntityKey, Vec<EntityId>> = BTreeMap::new();
    for creative in events.keys() {
        let mut key = Some(view.info(*creative).key.clone());
        while let Some(entity) = key {
            key = entity.parent();
            below.entry(entity).or_default().push(*creative);
        }
    }
    let (mut compared, mut differing) = (0, 0);
    for row in last.rows(None, None) {
        let tick = row.features.tick;
        let starts: Vec<EventTime> =
            last.windows().iter().map(|window| window_start(window, tick)).collect();
        let mut sums = vec![Stats::ZERO; starts.len()];
        let known = below.get(&row.info.key).into_iter().flatten().flat_map(|id| &events[id]);
        for (_, time, delta) in known.filter(|(at, ..)| *at <= tick) {
            for (sum, start) in sums.iter_mut().zip(&starts) {
                if time >= start {
                    *sum += *delta;
                }
            }
        }
        compared += sums.len() as u64;
        let pairs = sums.iter().zip(&row.features.windows);
        differing += pairs.filter(|(sum, shown)| sum != shown).count() as u64;
    }
    Ok((compared, differing))
}

/// Replays the history: true when it decides the same again.
fn verify(history: &Path) -> anyhow::Result<bool> {
    let common = Common { config: None, sets: Vec::new(), json: true, quiet: true };
    let args = ReplayArgs {
        history: Some(history.to_owned()),
        verify: true,
        workers: Some(2),
        ..ReplayArgs::default()
    };
    Ok(replay::execute(&common, &args)?.answer["identical"] == true)
}
