//! Memory of the live engine while entities come and go: new creatives (with their ad groups and
//! campaigns) appear every simulated day, live for some days, and fall silent for good.
//!
//! The engine's clock is simulated, so that a long past, beyond everything that is remembered of a
//! silent entity, fits into the time of the run; the load in real time is steady. Journal and
//! snapshots are kept, as a team would run it. What is told is the resident memory over time, and
//! what it grew by for each entity that came in the later half, when as many are forgotten as come.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use omnify_config::Layers;
use omnify_operators::model::{DAY_US, EntityId, EntityKey, Event, HOUR_US, tick_of_us};
use omnify_pipeline::clock::Clock;
use omnify_pipeline::decode::Batch;
use omnify_pipeline::live::{Arrival, Live, Setup};
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;
use serde_json::{Value, json};

use crate::latency;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Real time of the run.
    pub time: Duration,
    /// Simulated days.
    pub days: u32,
    /// Creatives that appear every day, ten to a campaign.
    pub born_per_day: usize,
    /// Days that each of them delivers.
    pub life_days: u32,
    /// Events of one creative on one day.
    pub events_per_day: u64,
    /// The new folder of journal and snapshots.
    pub dir: PathBuf,
    /// Overrides of the configuration.
    pub sets: Vec<String>,
}

/// Simulated time of one arrival.
const STEP_US: i64 = HOUR_US;
const STEPS_PER_DAY: u64 = (DAY_US / STEP_US) as u64;
/// 2026-01-05 00:00 UTC.
const START_US: i64 = 1_767_571_200_000_000;
/// Creatives of one campaign.
const PER_CAMPAIGN: usize = 10;

const CONFIG: &str = r#"
[history]
enabled = false
[http]
enabled = false
[telemetry]
log = "warn"
[state]
snapshot_every = "20s"
[[goals]]
name = "clicks"
applies_to = "*"
objective = "target_cpc"
target = "0.20"
daily_budget = "500"
currency = "USD"
pricing = "cpm"
bid_floor = "0.01"
bid_cap = "100"
"#;

/// Runs the engine through the days and reports.
pub fn run(options: &Options) -> anyhow::Result<Value> {
    ensure!(options.days >= 2 && options.life_days >= 1, "two days and a life of one at least");
    let mut layers = Layers::new().text("bench", CONFIG)?;
    for set in &options.sets {
        layers = layers.set(set)?;
    }
    std::fs::create_dir(&options.dir)?;
    let live = Live::start(Setup {
        config: Arc::new(layers.build()?.validate()?),
        clock: Clock::manual(tick_of_us(START_US)),
        speed: 1,
        listener: None,
        history: None,
        state: Some(options.dir.join("state")),
        ledger: options.dir.join("ledger"),
        mirror: None,
        controls: Vec::new(),
    })?;
    let mut population = Population::default();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
    let started = Instant::now();
    let steps = u64::from(options.days) * STEPS_PER_DAY;
    let mut samples = Vec::new();
    for step in 0..steps {
        let due = started + options.time.mul_f64(step as f64 / steps as f64);
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(early);
        }
        if step % STEPS_PER_DAY == 0 {
            population.next_day(&live, options)?;
        }
        let now_us = START_US + (step as i64 + 1) * STEP_US;
        let known_until = Some(tick_of_us(now_us));
        let batch = population.deliver(&mut rng, options.events_per_day, now_us - 1);
        live.intake().send(Arrival { batch, known_until, ..Arrival::default() });
        if (step + 1) % STEPS_PER_DAY == 0 {
            live.settle(tick_of_us(now_us));
            samples.push(Sample {
                day: (step + 1) / STEPS_PER_DAY,
                entities: live.registry().len(),
                resident_kib: crate::resident_kib().unwrap_or(0),
                disk_mib: crate::folder_bytes(&options.dir) >> 20,
            });
        }
    }
    let run_s = started.elapsed().as_secs_f64();
    let counters = live.stop()?.counters;
    let later = &samples[samples.len() / 2..];
    let last = samples[samples.len() - 1];
    let range = later.iter().map(|sample| sample.resident_kib >> 10);
    let shown = samples.iter().step_by((samples.len() / 12).max(1));
    Ok(json!({
        "run_s": run_s.round(),
        "days": options.days,
        "creatives_alive": options.born_per_day * options.life_days as usize,
        "born_per_day": options.born_per_day,
        "events": counters.events_in,
        "events_per_s": (counters.events_in as f64 / run_s).round(),
        "conserved": counters.conservation().holds,
        "entities_ever": last.entities,
        "resident_mib_later_half": [range.clone().min(), range.max()],
        "grown_bytes_per_entity": grown_bytes_per_entity(later).map(f64::round),
        "peak_mib": crate::peak_mib(),
        "samples": shown.map(|sample| json!({
            "day": sample.day,
            "entities": sample.entities,
            "resident_mib": sample.resident_kib >> 10,
            "disk_mib": sample.disk_mib,
        })).collect::<Vec<_>>(),
    }))
}

#[derive(Clone, Copy)]
struct Sample {
    day: u64,
    entities: usize,
    resident_kib: u64,
    disk_mib: u64,
}

/// Slope of the resident memory over the entities ever known, by least squares: a snapshot that is
/// under way when a sample is taken says little.
fn grown_bytes_per_entity(samples: &[Sample]) -> Option<f64> {
    let points = || samples.iter().map(|at| (at.entities as f64, at.resident_kib as f64 * 1024.0));
    let count = samples.len() as f64;
    let sum = points().fold((0.0, 0.0), |sum, (x, y)| (sum.0 + x, sum.1 + y));
    let from_mean = move |(x, y): (f64, f64)| (x - sum.0 / count, y - sum.1 / count);
    let spread: f64 = points().map(from_mean).map(|(x, _)| x * x).sum();
    let both: f64 = points().map(from_mean).map(|(x, y)| x * y).sum();
    (spread > 0.0).then(|| both / spread)
}

/// Creatives that deliver, the youngest last; those of one day appear and leave together.
#[derive(Default)]
struct Population {
    days: u32,
    born: usize,
    alive: std::collections::VecDeque<Vec<EntityId>>,
}

impl Population {
    fn next_day(&mut self, live: &Live, options: &Options) -> anyhow::Result<()> {
        self.days += 1;
        let first = self.born;
        self.born += options.born_per_day;
        let young = (first..self.born).map(|n| {
            let campaign = format!("campaign{}", n / PER_CAMPAIGN);
            let creative = format!("creative{n}");
            let path = ["tenant0", "meta", "act_1", &campaign, &campaign, &creative];
            Ok(live.registry().intern(&EntityKey::new(&path)?))
        });
        self.alive.push_back(young.collect::<anyhow::Result<_>>()?);
        if self.alive.len() > options.life_days as usize {
            self.alive.pop_front();
        }
        Ok(())
    }

    /// A step's share of the day's events, all at `time_us`.
    fn deliver(&self, rng: &mut Xoshiro256PlusPlus, per_day: u64, time_us: i64) -> Batch {
        let creatives: Vec<EntityId> = self.alive.iter().flatten().copied().collect();
        let count = (creatives.len() as u64 * per_day).div_ceil(STEPS_PER_DAY);
        let events: Vec<Event> =
            (0..count).map(|_| latency::event(rng, &creatives, time_us)).collect();
        Batch { events, rows: count, span: Some((time_us, time_us)), ..Batch::new() }
    }
}
