//! What arrives: single events, and report rows with totals so far.

use serde::{Deserialize, Serialize};

use super::{Attribution, EntityId, EventTime, Stats};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum EventKind {
    /// An ad was shown; may carry cost (CPM buying) and the user (for reach).
    Impression,
    /// An ad was clicked; may carry cost (CPC buying).
    Click,
    /// A conversion was attributed; may carry revenue.
    Conversion,
    /// Money moved with no impression, click or conversion (fees, credits when negative).
    Cost,
    /// The change that a report row made to the totals already known for its interval.
    Report,
}

impl EventKind {
    /// All kinds; the position is `kind as usize`.
    pub const ALL: [EventKind; 5] = [
        EventKind::Impression,
        EventKind::Click,
        EventKind::Conversion,
        EventKind::Cost,
        EventKind::Report,
    ];

    /// The name used in mappings, API and history.
    pub const fn name(self) -> &'static str {
        match self {
            EventKind::Impression => "impression",
            EventKind::Click => "click",
            EventKind::Conversion => "conversion",
            EventKind::Cost => "cost",
            EventKind::Report => "report",
        }
    }
}

/// [`Event::user`] when the event names no user.
pub const NO_USER: u64 = 0;
/// [`Event::id`] when the event has no id of its own: it is never treated as a duplicate.
pub const NO_ID: u64 = 0;

/// One accepted event: a delta of a creative's metrics at an event time.
///
/// The hot record of the engine, 80 bytes, `Copy`, already interned and validated. The textual
/// user and event id arrive as stable 64-bit hashes ([`NO_USER`], [`NO_ID`] when absent).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Event {
    /// When it happened.
    pub time: EventTime,
    /// The creative it belongs to.
    pub creative: EntityId,
    /// What happened.
    pub kind: EventKind,
    /// The change; for [`EventKind::Report`] fields may be negative.
    pub delta: Stats,
    /// Hash of the user, for reach; [`NO_USER`] without one.
    pub user: u64,
    /// Hash of the event id, for deduplication; [`NO_ID`] without one.
    pub id: u64,
}

/// What a report row is about: totals of one creative over one interval, whose conversions and
/// revenue are those of one attribution window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReportKey {
    /// The creative.
    pub creative: EntityId,
    /// Start of the interval, inclusive.
    pub start: EventTime,
    /// End of the interval, exclusive.
    pub end: EventTime,
    /// Window in which the conversions were attributed.
    pub attribution: Attribution,
}

/// One statement of a platform about an interval. The greatest (`as_of`, `sequence`) wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReportVersion {
    /// When the platform said so.
    pub as_of: EventTime,
    /// Order of arrival among statements of the same `as_of`.
    pub sequence: u64,
    /// Totals of the interval so far.
    pub totals: Stats,
}

/// One accepted report row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReportRow {
    /// Creative, interval and attribution window.
    pub key: ReportKey,
    /// What was said, and when.
    pub version: ReportVersion,
}
