//! Open-loop latency of the live engine: from the *intended* arrival of an event to the moment its
//! action is handed to the executor.
//!
//! The generator owes the engine `rate` events a second on a fixed schedule and never waits for it:
//! when it falls behind, the events keep the times at which they should have come, so a stall
//! shows in full. Events enter through the same bounded intake as those of any live source, as
//! decoded rows. A decision is charged with the *oldest* event of its tick. Each millisecond's events
//! enter as one batch, charged with the first of them. What arrives in the warm-up is not measured;
//! without one, the cold start of all entities at once is part of the figures.

use std::sync::Arc;
use std::time::{Duration, Instant};

use omnify_config::Layers;
use omnify_operators::model::{EntityId, EntityKey, Event, EventKind, NO_ID, Stats};
use omnify_pipeline::clock::Clock;
use omnify_pipeline::decode::Batch;
use omnify_pipeline::live::{Arrival, HistoryAt, Live, Setup};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use serde_json::{Value, json};

use crate::generate;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Events a second.
    pub rate: u64,
    /// Length of the measurement.
    pub seconds: u64,
    /// Seconds before it, at the same rate: the start, in which every entity is new.
    pub warm_up: u64,
    /// Creatives, ten to a campaign.
    pub creatives: usize,
    /// Overrides of the configuration.
    pub sets: Vec<String>,
    /// Folder of a history, if one is to be written meanwhile.
    pub history: Option<std::path::PathBuf>,
    /// Folder of journal and snapshots, if they are to be kept.
    pub state: Option<std::path::PathBuf>,
}

/// Goals for everybody, short ticks, and each campaign decided on ten times a second. Limits that
/// would keep a new campaign untouched for days are lifted, so that there are actions to measure.
pub(crate) const CONFIG: &str = r#"
[engine]
tick = "2ms"
decide_every = "95ms"
queue_events = 400000
[history]
enabled = false
[http]
enabled = false
[telemetry]
log = "warn"
[controller]
period = "100ms"
horizon = "1m"
deadband = 0.0
[guardrails]
step_max = 0.5
change_24h_max = 10.0
change_7d_max = 10.0
events_min = 0
gain_probability_min = 0.001
cooldown = "100ms"
learning_events = 0
learning_time = "0s"
[[goals]]
name = "clicks"
applies_to = "*"
objective = "target_cpc"
target = "0.20"
daily_budget = "50000"
currency = "USD"
pricing = "cpm"
bid_floor = "0.01"
bid_cap = "100"
"#;

/// Runs the engine for a while and reports.
pub fn run(options: &Options) -> anyhow::Result<Value> {
    let mut layers = Layers::new().text("bench", CONFIG)?;
    if options.history.is_some() {
        layers = layers.set("history.enabled=true")?;
    }
    for set in &options.sets {
        layers = layers.set(set)?;
    }
    let config = Arc::new(layers.build()?.validate()?);
    let ledger = std::env::temp_dir().join(format!("omnify-bench-{}", std::process::id()));
    let live = Live::start(Setup {
        config,
        clock: Clock::System,
        speed: 1,
        listener: None,
        history: options.history.clone().map(HistoryAt::Folder),
        state: options.state.clone(),
        ledger: ledger.clone(),
        mirror: None,
        controls: Vec::new(),
    })?;
    let creatives: Vec<EntityId> = (0..options.creatives)
        .map(|n| {
            let (tenant, platform, campaign, creative) = generate::names(n);
            let key =
                EntityKey::new(&[&tenant, platform, platform, &campaign, &campaign, &creative])?;
            Ok(live.registry().intern(&key))
        })
        .collect::<anyhow::Result<_>>()?;
    let offered = offer(&live, options, &creatives);
    let summary = live.stop()?;
    let _ = std::fs::remove_dir_all(ledger);
    let counters = &summary.counters;
    let seconds = options.warm_up + options.seconds;
    let per_s = |count: u64| (count as f64 / seconds as f64).round();
    Ok(json!({
        "events_per_s": per_s(counters.events_in),
        "offered_per_s": options.rate,
        "behind_schedule_ms_max": offered.behind_max.as_secs_f64() * 1e3,
        "decisions_per_s": per_s(counters.decisions_total()),
        "actions_per_s": per_s(counters.actions_total()),
        "latency_ms": counters.latency_ms,
        "decision_latency_ms": summary.decision_latency_ms,
        "ticks": counters.ticks,
        "creatives": options.creatives,
        "events": counters.events_in,
        "conserved": counters.conservation().holds,
        "history": summary.history.map(|history| history.tables),
        "peak_mib": crate::peak_mib(),
    }))
}

struct Offered {
    behind_max: Duration,
}

fn offer(live: &Live, options: &Options, creatives: &[EntityId]) -> Offered {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
    let start = Instant::now();
    let mut behind_max = Duration::ZERO;
    for slot in 0..(options.warm_up + options.seconds) * 1_000 {
        let due = start + Duration::from_millis(slot);
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(early);
        }
        behind_max = behind_max.max(due.elapsed());
        let now_us = Clock::System.now() as i64 * 1_000;
        let count = (slot + 1) * options.rate / 1_000 - slot * options.rate / 1_000;
        let events = (0..count).map(|_| event(&mut rng, creatives, now_us));
        let mut batch = Batch { events: events.collect(), rows: count, ..Batch::new() };
        batch.span = Some((now_us, now_us));
        let arrived = (slot >= options.warm_up * 1_000).then_some(due);
        live.intake().send(Arrival { batch, arrived, ..Arrival::default() });
    }
    Offered { behind_max }
}

/// A click or an impression with cost, of any of `creatives`.
pub(crate) fn event(rng: &mut Xoshiro256PlusPlus, creatives: &[EntityId], time: i64) -> Event {
    let click = rng.gen_bool(0.02);
    let delta = if click {
        Stats { clicks: 1, ..Stats::ZERO }
    } else {
        Stats { impressions: 1, cost_micros: rng.gen_range(500..5_000), ..Stats::ZERO }
    };
    Event {
        time,
        creative: creatives[rng.gen_range(0..creatives.len())],
        kind: if click { EventKind::Click } else { EventKind::Impression },
        delta,
        user: rng.gen_range(1..1_000_000_u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        id: NO_ID,
    }
}
