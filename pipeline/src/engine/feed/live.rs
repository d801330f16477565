//! A live engine: closed ticks come through a bounded queue.

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use omnify_operators::graph::{Graph, Mark};
use omnify_operators::model::{Event, ReportRow, Tick};

use super::{Fed, Feed};
use crate::engine::note::{Note, Notes};
use crate::engine::wake::Wakers;

/// One closed tick.
#[derive(Debug, Default)]
pub struct TickBatch {
    /// The tick.
    pub tick: Tick,
    /// Its events, in batches as they came.
    pub events: Vec<Vec<Event>>,
    /// Its report rows.
    pub reports: Vec<ReportRow>,
    /// The account, with the controls that take effect.
    pub note: Note,
    /// The last tick ever.
    pub last: bool,
}

/// What worker 0 and the others get.
enum Message {
    Batch(Box<TickBatch>),
    Advance(Tick),
}

/// The sending end: hands each closed tick to the workers.
pub struct LiveQueue {
    senders: Vec<Sender<Message>>,
    wakers: Wakers,
}

impl LiveQueue {
    /// A queue of at most `ticks` closed ticks, and one feed for each worker.
    pub fn new(workers: usize, ticks: usize, wakers: Wakers) -> (LiveQueue, Vec<LiveFeed>) {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..workers).map(|_| bounded(ticks.max(1))).unzip();
        let feeds = receivers.into_iter().map(|receiver| LiveFeed { receiver }).collect();
        (LiveQueue { senders, wakers }, feeds)
    }

    /// True while a closed tick would find room: at the bound sources are not read any more.
    pub fn has_room(&self) -> bool {
        !self.senders[0].is_full()
    }

    /// Closed ticks waiting.
    pub fn depth(&self) -> usize {
        self.senders[0].len()
    }

    /// Hands over a closed tick; waits while the queue is full. False when the engine is gone.
    pub fn close(&self, batch: TickBatch) -> bool {
        let tick = batch.tick;
        for sender in &self.senders[1..] {
            // A worker that has not read an older promise yet is content with this one later:
            // ticks only move forward, and the next one says more.
            match sender.try_send(Message::Advance(tick)) {
                Ok(()) => {}
                Err(TrySendError::Full(message)) => {
                    if sender.send(message).is_err() {
                        return false;
                    }
                }
                Err(TrySendError::Disconnected(_)) => return false,
            }
        }
        let sent = self.senders[0].send(Message::Batch(Box::new(batch))).is_ok();
        self.wakers.wake();
        sent
    }
}

impl Drop for LiveQueue {
    fn drop(&mut self) {
        self.senders.clear();
        self.wakers.wake();
    }
}

/// The receiving end at one worker.
pub struct LiveFeed {
    receiver: Receiver<Message>,
}

impl Feed for LiveFeed {
    fn feed(&mut self, graph: &mut Graph, notes: &mut Notes) -> anyhow::Result<Fed> {
        match self.receiver.try_recv() {
            Ok(Message::Batch(batch)) => {
                let TickBatch { tick, events, reports, note, last } = *batch;
                graph.advance_to(tick);
                let ids = events.iter().map(|batch| super::ids(batch)).sum();
                graph.ticks.send(Mark { last, ids, ..Mark::default() });
                for mut events in events {
                    graph.events.send_batch(&mut events);
                }
                for row in reports {
                    graph.reports.send(row);
                }
                notes.entry(tick).or_default().merge(note);
                // Nothing more comes at this tick: it completes at once.
                graph.advance_to(tick + 1);
                Ok(Fed::Some)
            }
            Ok(Message::Advance(tick)) => {
                graph.advance_to(tick + 1);
                Ok(Fed::Some)
            }
            Err(TryRecvError::Empty) => Ok(Fed::Idle),
            Err(TryRecvError::Disconnected) => {
                graph.advance_to(Tick::MAX);
                Ok(Fed::End)
            }
        }
    }
}
