//! What the tests share. Each test file uses a part of it.
#![allow(dead_code, unreachable_pub, missing_docs)]

use omnify_market::{FeedItem, FeedKind, Market, MarketConfig};
use omnify_operators::model::{EventTime, HOUR_US};

/// Two tenants, eight campaigns, quick to play.
pub fn small() -> MarketConfig {
    MarketConfig {
        tenants: 2,
        campaigns_per_tenant: 4,
        impressions_per_day: 120_000,
        ..MarketConfig::default()
    }
}

/// [`small`] with event feeds only.
pub fn small_events() -> MarketConfig {
    let mut config = small();
    config.platforms.iter_mut().for_each(|platform| platform.feed = FeedKind::Events);
    config
}

pub fn market(config: MarketConfig, seed: u64) -> Market {
    Market::new(config, seed).expect("a valid config")
}

pub fn hours(market: &Market, hours: i64) -> EventTime {
    market.config().start_us + hours * HOUR_US
}

pub fn play(market: &mut Market, until_hour: i64) -> Vec<FeedItem> {
    let mut out = Vec::new();
    market.advance_to(hours(market, until_hour), &mut out);
    out
}

pub fn ndjson(market: &Market, items: &[FeedItem]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for item in items {
        item.write_ndjson(&market.creatives()[item.creative() as usize].key, &mut bytes);
    }
    bytes
}
