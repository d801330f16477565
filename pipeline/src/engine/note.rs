//! What travels beside the events: the account of rows, dead letters and control inputs of a tick.

use std::time::Instant;

use omnify_decision::control::Control;
use omnify_operators::graph::Part;
use omnify_operators::model::Tick;
use omnify_sinks::history::DeadLetter;
use omnify_sinks::serve::Watermarks;

use crate::durable::Inputs;

/// The account of one tick at one worker.
#[derive(Debug, Default)]
pub struct Note {
    /// Rows read that enter at this tick, dead letters and ignored rows included.
    pub rows: u64,
    /// Rows that the mapping leaves out.
    pub ignored: u64,
    /// Rows that were refused before the graph.
    pub dead: Vec<DeadLetter>,
    /// Control inputs that take effect at this tick.
    pub controls: Vec<Control>,
    /// Up to when a source says that its numbers are complete, if it does.
    pub watermarks: Option<Watermarks>,
    /// Intended arrival of the oldest event of the tick, where latency is measured.
    pub arrived: Option<Instant>,
    /// Digest of decisions up to this tick, in a replay of a record.
    pub expected: Option<[u8; 32]>,
    /// The state of an earlier process entered at this tick, and nothing else.
    pub restored: bool,
    /// A snapshot is taken of this tick; what the ingest loop knows as of it.
    pub snapshot: Option<Box<Inputs>>,
}

impl Note {
    /// Adds what another batch of the same tick brought.
    pub fn merge(&mut self, other: Note) {
        self.rows += other.rows;
        self.ignored += other.ignored;
        self.dead.extend(other.dead);
        self.controls.extend(other.controls);
        self.arrived = match (self.arrived, other.arrived) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.watermarks = other.watermarks.or(self.watermarks);
        self.expected = other.expected.or(self.expected);
        self.restored |= other.restored;
        self.snapshot = other.snapshot.or(self.snapshot.take());
    }
}

/// A worker's complete tick on its way to the decision thread.
#[derive(Debug)]
pub struct Completed {
    /// What the graph put out.
    pub part: Part,
    /// The account.
    pub note: Note,
}

/// Notes by tick, ascending.
pub type Notes = std::collections::BTreeMap<Tick, Note>;
