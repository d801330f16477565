//! Writes and reads back a history of synthetic rows on one thread and prints rows per second.
//!
//! `cargo run --release -p omnify-sinks --example history_speed -- FOLDER [EVENTS] [FEATURE_ROWS]`
//!
//! The rows have the shape of a day of a large account: 10 000 creatives in 6 path columns, ticks
//! of 10 ms, mostly impressions, costs that hardly repeat. The clock is read here only.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use omnify_operators::model::{
    EntityId, EntityKey, Event, EventKind, Level, PaneBatch, PaneRow, Registry, RegistryView, Stats,
};
use omnify_sinks::history::{HistoryMeta, HistoryReader, HistoryWriter, WriterOptions};

const CREATIVES: usize = 10_000;
const START_MS: u64 = 1_767_225_600_000;

/// A generator with a fixed seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

fn creatives(registry: &Registry) -> Result<Vec<EntityId>, Box<dyn Error>> {
    let mut ids = Vec::with_capacity(CREATIVES);
    for n in 0..CREATIVES {
        let (campaign, group) = (n / 100, n / 10);
        let key = EntityKey::new(&[
            "acme",
            "meta",
            &format!("act_{}", n / 2_000),
            &format!("campaign-{campaign:05}"),
            &format!("adgroup-{group:06}"),
            &format!("creative-{n:08}"),
        ])?;
        ids.push(registry.intern(&key));
    }
    Ok(ids)
}

fn event(random: &mut Random, creatives: &[EntityId], tick: u64) -> Event {
    let draw = random.next();
    // Squaring skews the draw toward few creatives, as delivery does.
    let share = (draw >> 40) as f64 / f64::from(1 << 24);
    let creative = creatives[((share * share) * creatives.len() as f64) as usize];
    let kind = match draw & 0xFFF {
        0..=80 => EventKind::Click,
        81..=84 => EventKind::Conversion,
        _ => EventKind::Impression,
    };
    let cost_micros = (random.next() % 20_000) as i64;
    let delta = match kind {
        EventKind::Click => Stats { clicks: 1, ..Stats::ZERO },
        EventKind::Conversion => {
            Stats { conversions: 1, revenue_micros: 25_000_000, ..Stats::ZERO }
        }
        _ => Stats { impressions: 1, cost_micros, ..Stats::ZERO },
    };
    let time = (tick * 1_000 - random.next() % 2_000_000) as i64;
    Event { time, creative, kind, delta, user: random.next() | 1, id: random.next() | 1 }
}

fn panes(random: &mut Random, entities: &[EntityId], end_ms: u64) -> PaneBatch {
    let rows = entities.iter().map(|entity| {
        let draw = random.next();
        let impressions = (draw % 5_000) as i64 + 1;
        let clicks = impressions * ((draw >> 16) % 30) as i64 / 1_000;
        let sums = Stats {
            impressions,
            clicks,
            conversions: clicks / 20,
            cost_micros: impressions * (1_000 + ((draw >> 32) % 4_000) as i64),
            revenue_micros: clicks / 20 * 25_000_000,
        };
        let window_end = (end_ms * 1_000) as i64;
        PaneRow { entity: *entity, window: 0, window_end, sums, tick: end_ms }
    });
    PaneBatch { rows: rows.collect(), features: Vec::new() }
}

/// Wall time, and the time this thread was on a core: the machine may be busy with other things.
struct Watch {
    wall: Instant,
    cpu: Option<f64>,
}

fn cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split(' ').next()?.parse::<f64>().ok()? / 1e9)
}

impl Watch {
    fn start() -> Watch {
        Watch { wall: Instant::now(), cpu: cpu_seconds() }
    }

    fn rate(&self, rows: u64) -> String {
        let wall = self.wall.elapsed().as_secs_f64();
        let cpu = cpu_seconds().zip(self.cpu).map_or(wall, |(now, then)| now - then);
        format!(
            "{:.2} M rows/s of core time, {:.2} M rows/s of wall time ({rows} rows)",
            rows as f64 / cpu / 1e6,
            rows as f64 / wall / 1e6
        )
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let root = args.next().ok_or("usage: history_speed FOLDER [EVENTS] [FEATURE_ROWS]")?;
    let events: u64 = args.next().as_deref().unwrap_or("4000000").parse()?;
    let features: u64 = args.next().as_deref().unwrap_or("4000000").parse()?;
    let registry = Arc::new(Registry::utc());
    let creatives = creatives(&registry)?;
    let meta = HistoryMeta {
        windows: vec!["1h/1m".parse()?],
        levels: Level::ALL.to_vec(),
        versions: Default::default(),
        config_toml: String::new(),
    };
    let view = RegistryView::new(registry.clone());
    let mut writer = HistoryWriter::create(&root, meta, view, WriterOptions::default())?;
    let mut random = Random(7);

    // Rows are made before the clock starts: only writing is measured.
    let per_tick = 1_000;
    let ticks: Vec<(u64, Vec<Event>)> = (0..events / per_tick)
        .map(|n| {
            let tick = START_MS + 10 * n;
            (tick, (0..per_tick).map(|_| event(&mut random, &creatives, tick)).collect())
        })
        .collect();
    let start = Watch::start();
    for (tick, events) in &ticks {
        writer.events(*tick, events)?;
        writer.tick(*tick, &[])?;
    }
    writer.flush()?;
    println!("events written:   {}", start.rate(events));

    let mut entities: Vec<EntityId> =
        RegistryView::new(registry.clone()).all().iter().map(|info| info.id).collect();
    let orders = RegistryView::new(registry.clone());
    let order = |view: &mut RegistryView, id: EntityId| view.info(id).order;
    let mut view = orders;
    entities.sort_by_key(|id| order(&mut view, *id));
    let batches: Vec<PaneBatch> = (1..=features.div_ceil(entities.len() as u64))
        .map(|n| panes(&mut random, &entities, START_MS + 60_000 * n))
        .collect();
    let last = START_MS + 60_000 * 1_000_000;
    let start = Watch::start();
    for batch in &batches {
        writer.panes(batch)?;
    }
    writer.tick(last, &[])?;
    let summary = writer.finish()?;
    println!("features written: {}", start.rate((batches.len() * entities.len()) as u64));
    for (table, totals) in &summary.tables {
        let per_row = totals.bytes as f64 / totals.rows.max(1) as f64;
        println!("  {table}: {} files, {} rows, {per_row:.1} bytes/row", totals.files, totals.rows);
    }

    let reader = HistoryReader::open(&root)?;
    let start = Watch::start();
    let mut replay = reader.replay(Arc::new(Registry::utc()));
    let (mut tick_events, mut rows) = (Vec::new(), 0);
    while replay.next_into(&mut tick_events)?.is_some() {
        rows += tick_events.len() as u64;
    }
    println!("events replayed:  {}", start.rate(rows));
    Ok(())
}
