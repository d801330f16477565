//! What a closed tick holds.

use std::sync::Arc;

use omnify_decision::control::Control;
use omnify_operators::model::{Event, ReportRow, Tick};
use serde::{Deserialize, Serialize};

use crate::history::DeadLetter;
use crate::serve::Watermarks;

/// Everything that entered the engine at one tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TickEntry {
    /// The tick.
    pub tick: Tick,
    /// The last tick of a run that was stopped in order.
    pub mark_last: bool,
    /// A snapshot is taken at this tick.
    pub mark_snapshot: bool,
    /// How far the engine was degraded when it closed the tick; 0 is not at all.
    pub calm: u8,
    /// Its events, in the order in which they came.
    pub events: Vec<Event>,
    /// Its report rows.
    pub reports: Vec<ReportRow>,
    /// Controls that take effect.
    pub controls: Vec<Control>,
    /// Rows that were refused. Their tick is this tick.
    pub dead: Vec<DeadLetter>,
    /// Rows read, dead letters and ignored rows included.
    pub rows: u64,
    /// Rows that the mapping leaves out.
    pub ignored: u64,
    /// Up to when the sources say that their numbers are complete.
    pub watermarks: Option<Watermarks>,
    /// Where every source that brought something stands after this tick.
    pub positions: Vec<Position>,
    /// Idempotency keys that this tick used up, with what was answered.
    pub batches: Vec<BatchKey>,
}

/// Where a source stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The source's name; of a Kafka source the name and the topic.
    pub source: Arc<str>,
    /// The partition; 0 where there is only one.
    pub partition: i32,
    /// The next offset or cursor to read.
    pub next: i64,
}

/// An idempotency key that was used, and the answer that its repetition gets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BatchKey {
    /// Whose key it is.
    pub tenant: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    /// Rows accepted.
    pub accepted: u64,
    /// Rows refused.
    pub dead_letters: u64,
    /// Rows left out by the mapping.
    pub ignored: u64,
}

/// A process that started to write: what made the ticks behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRecord {
    /// Version of the program.
    pub version: String,
    /// BLAKE3 of the resolved configuration, hex.
    pub config_blake3: String,
    /// The clock when it started, as a tick.
    pub wall_tick: Tick,
    /// The resolved configuration: what the ticks behind it must be made under again.
    #[serde(default)]
    pub config_toml: String,
    /// Name of the folder of the history that the ticks behind it went to, if one was written.
    #[serde(default)]
    pub history: Option<String>,
}
