//! Time from the start of a killed engine to the moment it goes on: how long a restart takes with a
//! day of journal on disk.
//!
//! A process of its own takes in the events as fast as it can, waits for a snapshot, takes in the
//! last `tail` events behind it, and is killed. Then the engine is started on the same folder here,
//! and the clock runs until it stands where the journal ends.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use omnify_config::{Checked, Layers};
use omnify_operators::model::{EntityId, EntityKey, Event};
use omnify_pipeline::clock::Clock;
use omnify_pipeline::decode::Batch;
use omnify_pipeline::live::{Arrival, Live, Setup};
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;
use serde_json::{Value, json};

use crate::{folder_bytes, generate, latency};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Events in the journal.
    pub events: u64,
    /// Of these, behind the last snapshot.
    pub tail: u64,
    /// Creatives, ten to a campaign.
    pub creatives: usize,
    /// The new folder of the state.
    pub dir: PathBuf,
}

/// Events of one arrival.
const BATCH: u64 = 10_000;
/// What the feeding process says when it may be killed.
const READY: &str = "ready";

/// Snapshots are taken by the clock, so the feeding process waits for one.
const CONFIG: &str = r#"
[state]
journal_bytes_max = "64GiB"
[history]
enabled = false
[http]
enabled = false
[telemetry]
log = "warn"
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

/// Without a part before the snapshot there is to be no snapshot.
fn config(options: &Options) -> anyhow::Result<Arc<Checked>> {
    let every = if options.tail < options.events { "2s" } else { "1h" };
    let layers = Layers::new().text("bench", CONFIG)?;
    Ok(Arc::new(layers.set(&format!("state.snapshot_every={every}"))?.build()?.validate()?))
}

fn start(options: &Options) -> anyhow::Result<Live> {
    let dir = &options.dir;
    Live::start(Setup {
        config: config(options)?,
        clock: Clock::System,
        speed: 1,
        listener: None,
        history: None,
        state: Some(dir.join("state")),
        ledger: dir.join("ledger"),
        mirror: None,
        controls: Vec::new(),
    })
}

/// The feeding process: never returns by itself once it is ready.
pub fn feed(options: &Options) -> anyhow::Result<Value> {
    let live = start(options)?;
    let creatives: Vec<EntityId> = (0..options.creatives)
        .map(|n| {
            let (tenant, platform, campaign, creative) = generate::names(n);
            let key =
                EntityKey::new(&[&tenant, platform, platform, &campaign, &campaign, &creative])?;
            Ok(live.registry().intern(&key))
        })
        .collect::<anyhow::Result<_>>()?;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
    let mut send = |count: u64| {
        let now_us = Clock::System.now() as i64 * 1_000;
        let events: Vec<Event> =
            (0..count).map(|_| latency::event(&mut rng, &creatives, now_us)).collect();
        let batch = Batch { events, rows: count, ..Batch::new() };
        live.intake().send(Arrival { batch, ..Arrival::default() })
    };
    let snapshots = options.dir.join("state/snapshots");
    let newest = || -> Option<String> {
        let names = std::fs::read_dir(&snapshots).ok()?.filter_map(|entry| {
            let path = entry.ok()?.path();
            path.join("manifest.json").exists().then(|| path.display().to_string())
        });
        names.max()
    };
    for _ in 0..(options.events - options.tail) / BATCH {
        send(BATCH);
    }
    // What is published as taken in is durable soon; a tick later it is.
    let settle = |events: u64| {
        while live.snapshots().borrow().counters.events_in < events {
            std::thread::sleep(Duration::from_millis(20));
        }
        live.settle(Clock::System.now());
    };
    settle(options.events - options.tail);
    if options.events > options.tail {
        let before = newest();
        while newest() == before {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    for _ in 0..options.tail / BATCH {
        send(BATCH);
    }
    settle(options.events);
    println!("{READY}");
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Feeds, kills, starts and measures.
pub fn run(options: &Options) -> anyhow::Result<Value> {
    std::fs::create_dir(&options.dir)
        .with_context(|| format!("{} must be new", options.dir.display()))?;
    let fed = Instant::now();
    let mut child = Command::new(std::env::current_exe()?)
        .arg("restart-feed")
        .args(["--events", &options.events.to_string(), "--tail", &options.tail.to_string()])
        .args(["--creatives", &options.creatives.to_string(), "--dir"])
        .arg(&options.dir)
        .stdout(Stdio::piped())
        .spawn()?;
    let out = child.stdout.take().context("its output")?;
    let ready = BufReader::new(out).lines().map_while(Result::ok).any(|line| line == READY);
    let fed_s = fed.elapsed().as_secs_f64();
    child.kill()?;
    child.wait()?;
    ensure!(ready, "the feeding process ended by itself");
    let state = options.dir.join("state");
    let (journal_bytes, snapshot_bytes) =
        (folder_bytes(&state.join("journal")), folder_bytes(&state.join("snapshots")));
    let started = Instant::now();
    let live = start(options)?;
    let restart_s = started.elapsed().as_secs_f64();
    let summary = live.stop()?;
    let counters = &summary.counters;
    Ok(json!({
        "events": options.events,
        "events_in": counters.events_in,
        "tail_events_at_least": options.tail,
        "creatives": options.creatives,
        "fed_per_s": (options.events as f64 / fed_s).round(),
        "journal_mib": journal_bytes >> 20,
        "snapshots_mib": snapshot_bytes >> 20,
        "restart_s": restart_s,
        "conserved": counters.conservation().holds,
        "peak_mib": crate::peak_mib(),
    }))
}
