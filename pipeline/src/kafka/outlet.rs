//! Where a desk hands over what it read: the engine's own intake, or another process that has one.

use std::sync::Arc;
use std::time::Instant;

use omnify_decision::control::Control;
use omnify_operators::model::Tick;
use omnify_sinks::journal::Position;
use omnify_sinks::telemetry::events::KafkaFenced;

use super::positions::{Claim, Entered, Positions};
use crate::decode::Batch;
use crate::live::{Arrival, Intake};

/// What was read of one partition.
pub(crate) struct Rows {
    /// Number of the claim that the partition was read under.
    pub(crate) claim: u64,
    /// Where the partition is to be read on.
    pub(crate) position: Position,
    /// Messages.
    pub(crate) messages: u64,
    /// Decoded rows; their entities are those of the desk's own door.
    pub(crate) batch: Batch,
    /// Goals and approvals.
    pub(crate) controls: Vec<Control>,
    /// When the first of the messages was read.
    pub(crate) arrived: Option<Instant>,
}

/// See the module. Rows of one desk enter in the order in which they are put.
pub(crate) trait Outlet: Send + Sync {
    /// True while nothing more should be read.
    fn is_full(&self) -> bool;

    /// True when nothing is taken in any more.
    fn is_closed(&self) -> bool;

    /// The last closed tick, where it is known; 0 elsewhere.
    fn tick(&self) -> Tick;

    /// Begins to read a partition. `None` when the engine has ended.
    fn claim(&self, source: &Arc<str>, partition: i32) -> Option<Claim>;

    /// Hands rows over; false when nothing is taken in any more. Rows under a claim that has ended
    /// are dropped: whoever holds the next one reads them again.
    fn put(&self, rows: Rows) -> bool;

    /// How far every partition is on disk, where this is known.
    fn durable(&self) -> Vec<Position>;
}

/// The intake of this process.
pub(super) struct Here {
    pub(super) intake: Intake,
    pub(super) positions: Positions,
}

impl Outlet for Here {
    fn is_full(&self) -> bool {
        self.intake.is_full()
    }

    fn is_closed(&self) -> bool {
        self.intake.is_closed()
    }

    fn tick(&self) -> Tick {
        self.intake.tick()
    }

    fn claim(&self, source: &Arc<str>, partition: i32) -> Option<Claim> {
        Some(self.positions.claim(source, partition))
    }

    fn put(&self, rows: Rows) -> bool {
        enter(&self.intake, &self.positions, rows)
    }

    fn durable(&self) -> Vec<Position> {
        self.positions.all_durable()
    }
}

/// Lets rows into the engine; false when it takes nothing in any more.
pub(crate) fn enter(intake: &Intake, positions: &Positions, rows: Rows) -> bool {
    let Rows { claim, position, messages, batch, controls, arrived } = rows;
    let arrival = Arrival {
        batch,
        controls,
        arrived,
        positions: vec![position.clone()],
        ..Arrival::default()
    };
    match positions.enter(claim, &position, || intake.put(arrival)) {
        Entered::Taken => true,
        Entered::Stale => {
            KafkaFenced { source: &position.source, partition: position.partition, messages }
                .emit();
            true
        }
        Entered::Closed => false,
    }
}
