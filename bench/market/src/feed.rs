//! What the market tells: events and report rows, compact for the in-process reader, and as NDJSON.

use omnify_operators::model::{EntityKey, EventKind, EventTime, Stats};
use serde::Serialize;

/// One event of an account with an event feed. Entities are indices into
/// [`crate::Market::creatives`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedEvent {
    /// When it happened.
    pub time_us: EventTime,
    /// When the click happened that it is attributed to; `time_us` itself for impressions and
    /// clicks.
    pub click_us: EventTime,
    /// Index of the creative.
    pub creative: u32,
    /// Impression, click, conversion, or cost (a refund, negative).
    pub kind: EventKind,
    /// The user, unique in the market; 0 for refunds.
    pub user: u64,
    /// Unique and never 0.
    pub event_id: u64,
    /// Cost in micros of the account's currency.
    pub cost_micros: i64,
    /// Revenue in micros of the account's currency.
    pub revenue_micros: i64,
}

impl FeedEvent {
    /// The change of the creative's metrics.
    pub fn stats(&self) -> Stats {
        let one = |kind| i64::from(self.kind == kind);
        Stats {
            impressions: one(EventKind::Impression),
            clicks: one(EventKind::Click),
            conversions: one(EventKind::Conversion),
            cost_micros: self.cost_micros,
            revenue_micros: self.revenue_micros,
        }
    }
}

/// One row of an account with a report feed: what the platform says at `as_of_us` of an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedReport {
    /// Index of the creative.
    pub creative: u32,
    /// Start of the interval, inclusive.
    pub start_us: EventTime,
    /// End of the interval, exclusive.
    pub end_us: EventTime,
    /// When it was said. Everything attributed to the interval and known by then is in the totals.
    pub as_of_us: EventTime,
    /// Totals of the interval so far. Conversions and removed clicks count in the hour of the click.
    pub totals: Stats,
}

/// One item of the feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedItem {
    /// Something happened.
    Event(FeedEvent),
    /// A platform reported totals.
    Report(FeedReport),
}

impl FeedItem {
    /// The time at which it became known; the feed is in this order.
    pub fn known_us(&self) -> EventTime {
        match self {
            FeedItem::Event(event) => event.time_us,
            FeedItem::Report(report) => report.as_of_us,
        }
    }

    /// Index of the creative it is about.
    pub fn creative(&self) -> u32 {
        match self {
            FeedItem::Event(event) => event.creative,
            FeedItem::Report(report) => report.creative,
        }
    }

    /// Appends the item as one line of NDJSON; `key` is its creative's.
    pub fn write_ndjson(&self, key: &EntityKey, out: &mut Vec<u8>) {
        let mut path = key.as_str().split('/');
        let mut segment = || path.next().unwrap_or_default();
        let entity = Path {
            tenant: segment(),
            platform: segment(),
            account: segment(),
            campaign: segment(),
            ad_group: segment(),
            creative: segment(),
        };
        let (user, event_id);
        let line = match self {
            FeedItem::Event(event) => {
                (user, event_id) =
                    (format!("{:x}", event.user), format!("{:016x}", event.event_id));
                Line::Event {
                    ts_us: event.time_us,
                    entity,
                    kind: event.kind.name(),
                    user: (event.user != 0).then_some(&user),
                    event_id: &event_id,
                    click_us: (event.kind == EventKind::Conversion).then_some(event.click_us),
                    cost_micros: event.cost_micros,
                    revenue_micros: event.revenue_micros,
                }
            }
            FeedItem::Report(report) => Line::Report {
                entity,
                start_us: report.start_us,
                end_us: report.end_us,
                as_of_us: report.as_of_us,
                totals: report.totals,
            },
        };
        // Writing plain structs into memory cannot fail.
        if serde_json::to_writer(&mut *out, &line).is_ok() {
            out.push(b'\n');
        }
    }
}

#[derive(Serialize)]
struct Path<'a> {
    tenant: &'a str,
    platform: &'a str,
    account: &'a str,
    campaign: &'a str,
    ad_group: &'a str,
    creative: &'a str,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Event {
        ts_us: i64,
        #[serde(flatten)]
        entity: Path<'a>,
        kind: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<&'a String>,
        event_id: &'a str,
        /// Conversions only: the click they are attributed to.
        #[serde(skip_serializing_if = "Option::is_none")]
        click_us: Option<i64>,
        cost_micros: i64,
        revenue_micros: i64,
    },
    Report {
        #[serde(flatten)]
        entity: Path<'a>,
        start_us: i64,
        end_us: i64,
        as_of_us: i64,
        #[serde(flatten)]
        totals: Stats,
    },
}
