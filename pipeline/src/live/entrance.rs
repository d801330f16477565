//! The way in, put back to where an earlier process left it: intake, idempotency keys, positions of
//! sources, and what feeds the workers.

use std::sync::Arc;

use omnify_config::Checked;
use omnify_operators::model::Tick;
use omnify_operators::state::StateItem;

use super::QUEUE_TICKS;
use super::batches::Batches;
use super::intake::{self, Arrivals, Intake};
use crate::decode::Door;
use crate::durable::{Inputs, OnDurable, Tail};
use crate::engine::feed::{LiveQueue, OnEntry, ResumeFeed};
use crate::engine::{BoxedFeed, Wakers};
use crate::kafka::{Outputs, Positions};
use crate::setup;

/// See the module.
pub(super) struct Entrance {
    pub(super) intake: Intake,
    pub(super) arrivals: Arrivals,
    pub(super) batches: Batches,
    /// Closed ticks go in here.
    pub(super) queue: LiveQueue,
    /// What the workers take from: the state, the ticks to be made once more, then the queue.
    pub(super) feeds: Vec<BoxedFeed>,
}

impl Entrance {
    /// The way in after `inputs`, which stood when the state to `restore` was taken, and before the
    /// journal's `tail` behind it. Nothing is taken in while the engine is `recovering`.
    pub(super) fn new(
        config: &Checked,
        (door, positions, wakers): (&Arc<Door>, &Positions, &Wakers),
        inputs: &Inputs,
        (restore, tail): (Option<(Tick, Vec<StateItem>)>, Option<Tail>),
        recovering: bool,
    ) -> Entrance {
        let (intake, arrivals) = intake::channel(config.engine.queue_events);
        let batches = Batches::default();
        batches.restore(inputs.batches.clone());
        door.resume_sequence(inputs.sequence);
        inputs.positions.iter().for_each(|position| positions.durable(position));
        intake.recover(recovering);
        let workers = setup::workers(config);
        let (queue, feed, others) = LiveQueue::new(workers, QUEUE_TICKS, wakers.clone());
        let on_entry = again(positions.clone(), batches.clone(), door.clone());
        let feed = ResumeFeed::new(restore, tail, on_entry, feed);
        let others = others.into_iter().map(|feed| Box::new(feed) as BoxedFeed);
        let feeds = std::iter::once(Box::new(feed) as BoxedFeed).chain(others).collect();
        Entrance { intake, arrivals, batches, queue, feeds }
    }
}

/// Hears what becomes durable: the sources, and what is sent only then.
pub(super) fn told(positions: Positions, outputs: Option<&Outputs>) -> OnDurable {
    let sender = outputs.map(|outputs| outputs.sender.clone());
    Box::new(move |group| {
        group.positions.iter().for_each(|position| positions.durable(position));
        if let Some(sender) = &sender {
            sender.durable(group.tick);
        }
        for receipt in group.receipts {
            // Whoever does not wait any more does not mind.
            let _ = receipt.send(());
        }
    })
}

/// What sources must know of the ticks that are made once more.
fn again(positions: Positions, batches: Batches, door: Arc<Door>) -> OnEntry {
    Box::new(move |entry| {
        entry.positions.iter().for_each(|position| positions.durable(position));
        batches.restore(entry.batches.iter().map(|key| (entry.tick, key.clone())).collect());
        let newest = entry.reports.iter().map(|row| row.version.sequence + 1).max();
        door.resume_sequence(newest.unwrap_or(0));
    })
}
