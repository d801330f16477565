//! Writes a small history whose features are computed in the slowest and plainest way, for trying
//! the SQL of `HISTORY.md`.
//!
//! `cargo run --release -p omnify-sinks --example history_sample -- FOLDER`
//!
//! Two and a half days of three tenants (one whose name is a number, one in Berlin time, one with
//! odd characters), ticks of 20 s, one event in eight late by up to four hours, and restatements
//! (negative deltas).

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use jiff::tz::TimeZone;
use omnify_operators::model::{
    DAY_US, EntityId, EntityKey, Event, EventKind, Level, PaneBatch, PaneRow, Registry,
    RegistryView, Stats, Tick, WindowSpec, us_of_tick,
};
use omnify_sinks::history::{DeadLetter, HistoryMeta, HistoryWriter, WriterOptions};

/// 2024-10-26 10:00 UTC: the Sunday has 25 hours in Berlin.
const START: Tick = 1_729_936_800_000;
const TICK_MS: Tick = 20_000;
const TICKS: u64 = 60 * 60 * 60_000 / TICK_MS;

/// A generator with a fixed seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

fn event(random: &mut Random, creatives: &[EntityId], tick: Tick) -> Event {
    let late = if random.below(8) == 0 { 4 * 3_600_000_000 } else { TICK_MS * 1_000 };
    let kind = EventKind::ALL[random.below(5) as usize];
    let money = random.below(2_000_000) as i64;
    let delta = match kind {
        EventKind::Impression => Stats { impressions: 1, cost_micros: money, ..Stats::ZERO },
        EventKind::Click => Stats { clicks: 1, ..Stats::ZERO },
        EventKind::Conversion => Stats { conversions: 1, revenue_micros: money, ..Stats::ZERO },
        EventKind::Cost => Stats { cost_micros: -money / 10, ..Stats::ZERO },
        EventKind::Report => Stats { impressions: 7 - money % 10, clicks: 1, ..Stats::ZERO },
    };
    Event {
        time: us_of_tick(tick) - 1 - random.below(late) as i64,
        creative: creatives[random.below(creatives.len() as u64) as usize],
        kind,
        delta,
        user: random.below(50),
        id: 0,
    }
}

/// Start of the window that ends at `end`, or `None` when no pane of it ends there.
fn start_of(window: WindowSpec, end: i64, zone: &TimeZone) -> Option<i64> {
    match window {
        WindowSpec::Hop { width, pane } => (end % pane.us() == 0).then(|| end - width.us()),
        WindowSpec::Day => {
            let local =
                |us| jiff::Timestamp::from_microsecond(us).ok().map(|t| t.to_zoned(zone.clone()));
            let midnight = |us| Some(local(us)?.start_of_day().ok()?.timestamp().as_microsecond());
            (midnight(end)? == end).then(|| midnight(end - 1)).flatten()
        }
    }
}

/// Every window of every entity that ends at `end`, from all events known at `tick`.
fn close(
    events: &[Event],
    windows: &[WindowSpec],
    view: &mut RegistryView,
    end: i64,
    tick: Tick,
) -> PaneBatch {
    let mut batch = PaneBatch::default();
    for (at, window) in windows.iter().enumerate() {
        let mut sums: BTreeMap<EntityId, Stats> = BTreeMap::new();
        let mut starts = BTreeMap::new();
        for event in events {
            let ancestors = view.info(event.creative).ancestors;
            let tenant = view.info(ancestors[0]).clone();
            let start = *starts
                .entry(ancestors[0])
                .or_insert_with(|| start_of(*window, end, &tenant.time_zone));
            if start.is_some_and(|start| (start..end).contains(&event.time)) {
                ancestors
                    .iter()
                    .for_each(|entity| *sums.entry(*entity).or_default() += event.delta);
            }
        }
        let rows = sums.into_iter().filter(|(_, sums)| !sums.is_empty());
        batch.rows.extend(rows.map(|(entity, sums)| PaneRow {
            entity,
            window: at as u8,
            window_end: end,
            sums,
            tick,
        }));
    }
    batch
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = std::env::args().nth(1).ok_or("usage: history_sample FOLDER")?;
    let berlin = Arc::new(TimeZone::get("Europe/Berlin")?);
    let utc = Arc::new(TimeZone::UTC);
    let zone_of =
        move |key: &EntityKey| if key.tenant() == "42" { berlin.clone() } else { utc.clone() };
    let registry = Arc::new(Registry::new(Box::new(zone_of)));
    let mut creatives = Vec::new();
    for (tenant, count) in [("acme", 4), ("42", 3), ("_o/é %", 2)] {
        let tenant = tenant.replace('/', "-");
        for n in 0..count {
            let (campaign, creative) = (format!("c{}", n / 2), format!("x{n}"));
            let key = EntityKey::new(&[&tenant, "meta", "1001", &campaign, "g", &creative])?;
            creatives.push(registry.intern(&key));
        }
    }
    let windows = ["1h/1m", "24h/15m", "7d/2h", "28d/6h", "day"].map(str::parse::<WindowSpec>);
    let windows = windows.into_iter().collect::<Result<Vec<_>, _>>()?;
    let meta = HistoryMeta {
        windows: windows.clone(),
        levels: Level::ALL.to_vec(),
        versions: BTreeMap::new(),
        config_toml: "# none\n".to_owned(),
    };
    let mut view = RegistryView::new(registry.clone());
    let options = WriterOptions { rows_per_file: 20_000, durable: false, ..Default::default() };
    let mut writer = HistoryWriter::create(&root, meta, view.clone(), options)?;
    let mut random = Random(11);
    let mut all = Vec::new();
    for n in 1..=TICKS {
        let tick = START + n * TICK_MS;
        let events: Vec<Event> =
            (0..random.below(4)).map(|_| event(&mut random, &creatives, tick)).collect();
        all.extend_from_slice(&events);
        writer.events(tick, &events)?;
        // The pane ends since the last tick; the finest pane is a minute.
        let now = us_of_tick(tick);
        let end = now - now % 60_000_000;
        if end > now - (TICK_MS * 1_000) as i64 {
            writer.panes(&close(&all, &windows, &mut view, end, tick))?;
        }
        if n % 1_000 == 0 {
            let letter =
                DeadLetter::new(tick, "in.csv".into(), n, "bad_number", "x".into(), b"x,y");
            writer.dead_letters(&[letter])?;
        }
        writer.tick(tick, &[])?;
    }
    let summary = writer.finish()?;
    println!("{} events over {} days", all.len(), TICKS * TICK_MS * 1_000 / DAY_US as u64);
    for (table, totals) in &summary.tables {
        println!("{table}: {} rows in {} files", totals.rows, totals.files);
    }
    Ok(())
}
