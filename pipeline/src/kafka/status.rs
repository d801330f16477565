//! What the source says about itself, for `/v1/status` and for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use omnify_sinks::serve::Problem;

/// A partition: its topic and its number.
pub(super) type Partition = (Arc<str>, i32);

/// Codes of the problems that a source tells.
pub(crate) const PROBLEMS: [&str; 3] = ["kafka_failed", "kafka_registry", "kafka_lost"];

/// A moment of the source.
#[derive(Clone, Debug, Default)]
pub struct KafkaStatus {
    /// Partitions that this process reads, in order.
    pub assigned: BTreeSet<(Arc<str>, i32)>,
    /// Messages behind the end of each partition, where the brokers have told.
    pub lag: BTreeMap<(Arc<str>, i32), i64>,
    /// True while nothing is read because the engine is behind.
    pub paused: bool,
    /// Partitions that wait for the schema registry.
    pub waiting: BTreeSet<(Arc<str>, i32)>,
    /// Messages taken in.
    pub messages: u64,
    /// Messages below their partition's position, passed over.
    pub skipped: u64,
    /// Messages that were gone before they could be read.
    pub lost: u64,
    /// Messages with at least one refused row.
    pub refused: u64,
    /// Errors of the brokers.
    pub errors: u64,
    /// The last of them.
    pub last_error: Option<String>,
    /// Why the group refused this member for good, until another one in its place has partitions.
    pub refused_by_group: Option<String>,
}

impl KafkaStatus {
    /// Messages behind, over all partitions.
    pub fn lag_total(&self) -> i64 {
        self.lag.values().sum()
    }

    /// What an operator should know, as `/v1/status` shows it.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut add = |code, text| problems.push(Problem { code, text });
        if let Some(why) = &self.refused_by_group {
            let text = format!(
                "The consumer group refused this process and it joins again; nothing is lost. If this \
                 keeps coming back, another process uses the same kafka.instance. The brokers said: {why}"
            );
            add("kafka_failed", text);
        }
        if !self.waiting.is_empty() {
            let names: Vec<String> = self.waiting.iter().map(|(t, p)| format!("{t}/{p}")).collect();
            let text = format!(
                "The schema registry does not answer; {} wait for it. Nothing is lost.",
                names.join(", ")
            );
            add("kafka_registry", text);
        }
        if self.lost > 0 {
            let text = format!(
                "{} messages were deleted by the brokers before they could be read: the topics' \
                 retention is shorter than the engine was away.",
                self.lost
            );
            add("kafka_lost", text);
        }
        problems
    }
}

/// Written by the consumer's thread and its callbacks, read by anybody.
#[derive(Clone, Default)]
pub(super) struct Shown(Arc<Mutex<KafkaStatus>>);

impl Shown {
    pub(super) fn lock(&self) -> MutexGuard<'_, KafkaStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
