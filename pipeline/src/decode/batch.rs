//! What a decoder hands on: accepted rows, refused rows, and the account of both.

use std::sync::Arc;

use omnify_operators::model::{Event, EventTime, ReportRow};
use omnify_sinks::history::DeadLetter;

use super::reason::Reject;

/// Some rows of a source, decoded. `rows` = `events` + `reports` + `dead` + `ignored`, always.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Accepted events, in the order of the source.
    pub events: Vec<Event>,
    /// Accepted report rows, in the order of the source.
    pub reports: Vec<ReportRow>,
    /// Refused rows. Their tick is 0: the ingest loop stamps it.
    pub dead: Vec<DeadLetter>,
    /// Rows read.
    pub rows: u64,
    /// Rows that the mapping says to ignore.
    pub ignored: u64,
    /// Earliest and latest time of `events` and `reports` (a report's is its `as_of`).
    pub span: Option<(EventTime, EventTime)>,
    /// Whether `events` are in order of event time.
    pub sorted: bool,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch { sorted: true, ..Batch::default() }
    }

    /// Takes an accepted event.
    #[inline]
    pub fn event(&mut self, event: Event) {
        self.sorted &= self.events.last().is_none_or(|last| last.time <= event.time);
        self.widen(event.time, event.time);
        self.events.push(event);
    }

    /// Takes an accepted report row.
    pub fn report(&mut self, report: ReportRow) {
        self.widen(report.version.as_of, report.version.as_of);
        self.reports.push(report);
    }

    /// Takes a refused row; `length` is the length of the original, of which `bytes` may be the
    /// beginning.
    pub fn refuse(&mut self, place: Place<'_>, reject: Reject, bytes: &[u8], length: u64) {
        let kept = &bytes[..bytes.len().min(place.bytes_max)];
        let code = reject.reason.code();
        let mut letter =
            DeadLetter::new(0, place.source.clone(), place.row, code, reject.detail, kept);
        letter.length = length;
        letter.tenant = place.tenant;
        self.dead.push(letter);
    }

    /// Makes `span` cover the times from `low` to `high`.
    #[inline]
    pub fn widen(&mut self, low: EventTime, high: EventTime) {
        self.span = Some(match self.span {
            Some((first, last)) => (first.min(low), last.max(high)),
            None => (low, high),
        });
    }

    /// Rows whose fate is known; equal to `rows` between two calls of a decoder.
    pub fn accounted(&self) -> u64 {
        (self.events.len() + self.reports.len() + self.dead.len()) as u64 + self.ignored
    }
}

/// Where a refused row stood.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// The file or endpoint.
    pub source: &'a Arc<str>,
    /// Number of the row in it: 1 for the first after the header.
    pub row: u64,
    /// Most original bytes that a dead letter keeps.
    pub bytes_max: usize,
    /// The tenant, where it could be told.
    pub tenant: Option<Arc<str>>,
}
