//! How many events per second the graph takes in memory, by configuration.
//!
//! One worker, a synthetic day of events over 10 000 creatives, 1 000 ad groups and 500 campaigns
//! in one tick a minute; closed rows are counted, not kept. Generating events is not timed. Where
//! the system tells it (Linux), time is that of the processor, so that other programs do not show.
//!
//! ```text
//! cargo run --release -p omnify-operators --example rolling_speed -- [CASE] [EVENTS] [even|skewed]
//! ```
//!
//! `CASE` is `a` (one window, creatives), `b` (one window, all levels), `c` (the default windows,
//! all levels, frames every 15 minutes) or `all`.

use std::sync::Arc;
use std::time::Instant;

use omnify_operators::graph::{self, Mark};
use omnify_operators::model::{
    DAY_US, EntityId, EntityKey, Event, EventKind, Level, MINUTE_US, NO_ID, NO_USER, Registry,
    RegistryView, Stats, tick_of_us,
};
use omnify_operators::spec::{Cadence, FeatureSpec};

const CREATIVES: u64 = 10_000;
const AD_GROUPS: u64 = 1_000;
const CAMPAIGNS: u64 = 500;
const START_US: i64 = 20_000 * DAY_US;

fn spec(case: &str) -> FeatureSpec {
    let defaults = FeatureSpec { cadence: None, ..FeatureSpec::default() };
    let one_hour = vec!["1h/1m".parse().expect("a window")];
    match case {
        "a" => FeatureSpec { windows: one_hour, levels: vec![Level::Creative], ..defaults },
        "b" => FeatureSpec { windows: one_hour, ..defaults },
        _ => FeatureSpec {
            cadence: Some(Cadence { busy_ms: 15 * 60_000, idle_ms: 60 * 60_000 }),
            ..defaults
        },
    }
}

/// A sequence of well-mixed numbers (SplitMix64).
struct Mix(u64);

impl Mix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn events(count: u64, skewed: bool, ids: &[EntityId]) -> Vec<Vec<Event>> {
    let mut mix = Mix(1);
    let minutes = (DAY_US / MINUTE_US) as u64;
    (0..minutes)
        .map(|minute| {
            let here = count * (minute + 1) / minutes - count * minute / minutes;
            let from = START_US + minute as i64 * MINUTE_US;
            (0..here)
                .map(|n| {
                    // Cubing puts half of all events on an eighth of the creatives.
                    let u = mix.unit();
                    let share = if skewed { u * u * u } else { u };
                    let click = mix.next().is_multiple_of(100);
                    Event {
                        time: from + (n * MINUTE_US as u64 / here) as i64,
                        creative: ids[(share * ids.len() as f64) as usize],
                        kind: if click { EventKind::Click } else { EventKind::Impression },
                        delta: Stats {
                            impressions: i64::from(!click),
                            clicks: i64::from(click),
                            cost_micros: (mix.next() % 5_000) as i64,
                            ..Stats::ZERO
                        },
                        user: NO_USER,
                        id: NO_ID,
                    }
                })
                .collect()
        })
        .collect()
}

/// Seconds this thread has run; `None` where the system does not tell.
fn thread_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanos: f64 = text.split_whitespace().next()?.parse().ok()?;
    Some(nanos / 1e9)
}

fn run(case: &'static str, batches: Vec<Vec<Event>>, registry: &Arc<Registry>) {
    let (spec, view) = (Arc::new(spec(case)), RegistryView::new(registry.clone()));
    let count: usize = batches.iter().map(Vec::len).sum();
    timely::execute_directly(move |worker| {
        let mut graph = worker.dataflow(|scope| graph::build(scope, &spec, &view));
        let (mut rows, mut panes) = (0, 0);
        let (started, ran) = (Instant::now(), thread_seconds());
        let last = batches.len() - 1;
        for (at, mut batch) in batches.into_iter().enumerate() {
            let tick = tick_of_us(START_US + (at as i64 + 1) * MINUTE_US);
            graph.advance_to(tick);
            graph.ticks.send(Mark { last: at == last, ..Mark::default() });
            graph.events.send_batch(&mut batch);
            graph.advance_to(tick + 1);
            worker.step_while(|| graph.probe.less_equal(&tick));
            while let Some(part) = graph.outbox.pop(|_| true) {
                rows += part.rows.len();
                panes += part.panes_closed;
            }
        }
        let wall = started.elapsed().as_secs_f64();
        let seconds = ran.zip(thread_seconds()).map_or(wall, |(from, until)| until - from);
        println!(
            "{case}: {:.2} M events/s ({count} events in {seconds:.2} s, {panes} rows closed, \
             {rows} evaluated, {} bytes of state)",
            count as f64 / seconds / 1e6,
            graph.heap_bytes(),
        );
    });
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let case = arguments.next().unwrap_or_else(|| "all".to_owned());
    let count = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(10_000_000);
    let skewed = arguments.next().is_none_or(|text| text != "even");
    let registry = Arc::new(Registry::utc());
    let key = |n: u64| {
        let (group, campaign) = (n % AD_GROUPS, n % CAMPAIGNS);
        let path = format!("t{}/p/a{}/c{campaign}/g{group}/x{n}", campaign % 5, campaign % 50);
        path.parse::<EntityKey>().expect("a key")
    };
    let ids: Vec<EntityId> = (0..CREATIVES).map(|n| registry.intern(&key(n))).collect();
    for one in ["a", "b", "c"] {
        if case == "all" || case == one {
            run(one, events(count, skewed, &ids), &registry);
        }
    }
}
