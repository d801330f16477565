//! Totals since the process started, published together with the rows they describe.

use std::collections::BTreeMap;

use omnify_operators::model::EventTime;
use serde::Serialize;

/// How far an account's numbers can be trusted (DESIGN section 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Watermarks {
    /// Delivery (impressions, clicks, cost) before this event time is complete; `None` while unknown.
    pub fresh_until_us: Option<EventTime>,
    /// Conversions and revenue before this event time are final; `None` while unknown.
    pub settled_until_us: Option<EventTime>,
}

/// Time from an event's arrival to its action being handed to the executor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LatencyMs {
    /// Median.
    pub p50: f64,
    /// 99 % of events are at or below.
    pub p99: f64,
    /// 99.9 % of events are at or below.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

/// Something an operator should look at; makes `/readyz` answer 503 while it is reported, unless
/// nothing is held up by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Stable code, for example `history_writer_stalled`.
    pub code: &'static str,
    /// What is wrong and what to do.
    pub text: String,
}

impl Problem {
    /// The copy on the object store is behind, and nobody waits for it.
    pub const MIRROR_BEHIND: &'static str = "mirror_behind";

    /// What goes out to Kafka is not taken there; the answers here are as good as ever.
    pub const KAFKA_OUTPUTS: [&'static str; 3] =
        ["kafka_outputs_failed", "kafka_outputs_waiting", "kafka_outputs_refused"];

    /// Whether events are held up, or must not come here.
    pub fn holds_up(&self) -> bool {
        self.code != Problem::MIRROR_BEHIND && !Problem::KAFKA_OUTPUTS.contains(&self.code)
    }
}

/// Everything the process counts. Taken at a tick boundary, so that the conservation identity
/// holds exactly. Maps are keyed by stable codes of a bounded set.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counters {
    /// Rows read from sources.
    pub rows_read: u64,
    /// Rows that the mapping leaves out on purpose.
    pub ignored: u64,
    /// Rows that became events.
    pub events_in: u64,
    /// Events that are in the features.
    pub featured: u64,
    /// Events held back (not due yet).
    pub held: u64,
    /// Events set aside as dead letters, by reason code.
    pub dead_letters: BTreeMap<&'static str, u64>,
    /// Report rows that are in the features, by effect: `changed` totals, or left them `unchanged`.
    pub report_rows: BTreeMap<&'static str, u64>,
    /// Ticks closed.
    pub ticks: u64,
    /// Decisions by verdict.
    pub decisions: BTreeMap<&'static str, u64>,
    /// Actions by kind.
    pub actions: BTreeMap<&'static str, u64>,
    /// Ended actions by result.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Invariant violations by invariant code; empty when all hold.
    pub violations: BTreeMap<&'static str, u64>,
    /// Rows written to history.
    pub history_rows: u64,
    /// Bytes written to history.
    pub history_bytes: u64,
    /// Latency so far; `None` before the first measured event.
    pub latency_ms: Option<LatencyMs>,
    /// Version of the model in use; 0 without one.
    pub model_version: u64,
    /// Watermarks of accounts that have none of their own.
    pub watermarks: Watermarks,
    /// What is wrong now; empty when all is well.
    pub problems: Vec<Problem>,
}

/// The conservation identity (invariant 1) with both of its sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Conservation {
    /// Events accepted.
    pub events_in: u64,
    /// In features.
    pub featured: u64,
    /// Held back.
    pub held: u64,
    /// Set aside with a reason.
    pub dead_letters: u64,
    /// `events_in − featured − held − dead_letters`: zero, or something is broken.
    pub difference: i64,
    /// Whether the identity holds.
    pub holds: bool,
}

impl Counters {
    /// Dead letters of all reasons.
    pub fn dead_letters_total(&self) -> u64 {
        self.dead_letters.values().sum()
    }

    /// Decisions of all verdicts.
    pub fn decisions_total(&self) -> u64 {
        self.decisions.values().sum()
    }

    /// Actions of all kinds.
    pub fn actions_total(&self) -> u64 {
        self.actions.values().sum()
    }

    /// Both sides of `events_in = featured + held + dead_letters`.
    pub fn conservation(&self) -> Conservation {
        let dead_letters = self.dead_letters_total();
        let out = i128::from(self.featured) + i128::from(self.held) + i128::from(dead_letters);
        let difference = i128::from(self.events_in) - out;
        let difference = i64::try_from(difference).unwrap_or(i64::MAX);
        Conservation {
            events_in: self.events_in,
            featured: self.featured,
            held: self.held,
            dead_letters,
            difference,
            holds: difference == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conservation_shows_what_is_missing() {
        let mut counters = Counters { events_in: 10, featured: 7, held: 1, ..Counters::default() };
        counters.dead_letters.insert("future", 2);
        assert!(counters.conservation().holds);
        counters.featured = 6;
        let broken = counters.conservation();
        assert_eq!((broken.holds, broken.difference), (false, 1));
        counters.featured = 9;
        assert_eq!(counters.conservation().difference, -2);
    }
}
