//! How much memory the state of a creative takes after four weeks, with the default windows, all levels and
//! reach: cells of ad groups, campaigns, accounts and tenants are shared out among their creatives.
//!
//! One worker; every creative has the same number of events a day, evenly over the day, each of another
//! user; one in a hundred is a click. What is told are bytes asked for, apart from what the allocator adds.
//!
//! ```text
//! cargo run --release -p omnify-operators --example state_size -- [CREATIVES] [EVENTS_PER_DAY]
//! ```

use std::sync::Arc;

use omnify_operators::graph::{self, Mark};
use omnify_operators::model::{
    DAY_US, EntityId, Event, EventKind, HOUR_US, NO_ID, Registry, RegistryView, Stats, tick_of_us,
};
use omnify_operators::spec::FeatureSpec;

const START_US: i64 = 20_000 * DAY_US;
const HOURS: i64 = 28 * 24;
const PER_AD_GROUP: u64 = 10;
const PER_CAMPAIGN: u64 = 20;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u32>().expect("a number"));
    let creatives = u64::from(arguments.next().unwrap_or(1_000));
    let per_day = i64::from(arguments.next().unwrap_or(96));
    let registry = Arc::new(Registry::utc());
    let ids: Vec<EntityId> = (0..creatives)
        .map(|n| {
            let (group, campaign) = (n / PER_AD_GROUP, n / PER_CAMPAIGN);
            let path = format!("t/p/a{}/c{campaign}/g{group}/x{n}", campaign % 5);
            registry.intern(&path.parse().expect("a key"))
        })
        .collect();
    let (spec, view) = (Arc::new(FeatureSpec::default()), RegistryView::new(registry));
    timely::execute_directly(move |worker| {
        let mut graph = worker.dataflow(|scope| graph::build(scope, &spec, &view));
        let mut sent: i64 = 0;
        for hour in 0..HOURS {
            let from = START_US + hour * HOUR_US;
            let until = (hour + 1) * per_day / 24;
            let here = until - sent;
            let mut batch: Vec<Event> = (0..here)
                .flat_map(|n| ids.iter().map(move |id| (n, *id)))
                .map(|(n, creative)| event(from + n * HOUR_US / here, sent + n, creative))
                .collect();
            sent = until;
            let tick = tick_of_us(from + HOUR_US);
            graph.advance_to(tick);
            graph.ticks.send(Mark { last: hour + 1 == HOURS, ..Mark::default() });
            graph.events.send_batch(&mut batch);
            graph.advance_to(tick + 1);
            worker.step_while(|| graph.probe.less_equal(&tick));
            while graph.outbox.pop(|_| true).is_some() {}
        }
        let bytes = graph.heap_bytes();
        println!(
            "{per_day} events a day: {} bytes for each of {creatives} creatives ({} cells, {} bytes)",
            bytes as u64 / creatives,
            graph.cells(),
            bytes,
        );
    });
}

fn event(time: i64, number: i64, creative: EntityId) -> Event {
    let is_click = number % 100 == 99;
    // Mixed, as hashes of users are.
    let user = (number as u64 ^ u64::from(creative.0) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Event {
        time,
        creative,
        kind: if is_click { EventKind::Click } else { EventKind::Impression },
        delta: Stats {
            impressions: i64::from(!is_click),
            clicks: i64::from(is_click),
            cost_micros: 1_000 + number * 7 % 4_000,
            ..Stats::ZERO
        },
        user: user ^ user >> 29,
        id: NO_ID,
    }
}
