//! A live engine: closed ticks come through a bounded queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
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
    /// Its announcement.
    pub mark: Mark,
    /// Its events, in batches as they came.
    pub events: Vec<Vec<Event>>,
    /// Its report rows.
    pub reports: Vec<ReportRow>,
    /// The account, with the controls that take effect.
    pub note: Note,
}

impl TickBatch {
    /// Sends it into the graph. Nothing more may come at its tick, so it completes at once.
    pub(super) fn send(self, graph: &mut Graph, notes: &mut Notes) {
        let TickBatch { tick, mark, events, reports, note } = self;
        graph.advance_to(tick);
        graph.ticks.send(mark);
        for mut events in events {
            graph.events.send_batch(&mut events);
        }
        for row in reports {
            graph.reports.send(row);
        }
        notes.entry(tick).or_default().merge(note);
        graph.advance_to(tick + 1);
    }
}

/// How far worker 0 has come with what only it is fed: the others promise the same.
#[derive(Default)]
pub(super) struct Lead {
    next: AtomicU64,
    ended: AtomicBool,
}

impl Lead {
    /// Nothing before `next` will be sent.
    pub(super) fn reach(&self, next: Tick) {
        self.next.fetch_max(next, Ordering::Release);
    }
}

/// The sending end: hands each closed tick to the workers.
pub struct LiveQueue {
    sender: Option<Sender<Box<TickBatch>>>,
    lead: Arc<Lead>,
    wakers: Wakers,
}

impl LiveQueue {
    /// A queue of at most `ticks` closed ticks, the feed of worker 0, and those of the others.
    pub fn new(workers: usize, ticks: usize, wakers: Wakers) -> (LiveQueue, LiveFeed, Vec<Follow>) {
        let (sender, receiver) = bounded(ticks.max(1));
        let lead = Arc::<Lead>::default();
        let others = (1..workers).map(|_| Follow { lead: lead.clone(), next: 0 }).collect();
        let feed = LiveFeed { receiver, lead: lead.clone(), wakers: wakers.clone() };
        (LiveQueue { sender: Some(sender), lead, wakers }, feed, others)
    }

    /// True while a closed tick would find room: at the bound sources are not read any more.
    pub fn has_room(&self) -> bool {
        self.sender.as_ref().is_some_and(|sender| !sender.is_full())
    }

    /// Closed ticks waiting.
    pub fn depth(&self) -> usize {
        self.sender.as_ref().map_or(0, Sender::len)
    }

    /// Hands over a closed tick; waits while the queue is full. False when the engine is gone.
    pub fn close(&self, batch: TickBatch) -> bool {
        let sent = self.sender.as_ref().is_some_and(|sender| sender.send(Box::new(batch)).is_ok());
        self.wakers.wake();
        sent
    }
}

impl Drop for LiveQueue {
    fn drop(&mut self) {
        self.sender = None;
        self.lead.ended.store(true, Ordering::Release);
        self.wakers.wake();
    }
}

/// The receiving end, at worker 0.
pub struct LiveFeed {
    receiver: Receiver<Box<TickBatch>>,
    pub(super) lead: Arc<Lead>,
    pub(super) wakers: Wakers,
}

impl Feed for LiveFeed {
    fn feed(&mut self, graph: &mut Graph, notes: &mut Notes) -> anyhow::Result<Fed> {
        match self.receiver.try_recv() {
            Ok(batch) => {
                // The others first: they promise while this one sends.
                self.lead.reach(batch.tick + 1);
                batch.send(graph, notes);
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

/// The feed of the other workers, who are sent everything by worker 0.
pub struct Follow {
    lead: Arc<Lead>,
    next: Tick,
}

impl Feed for Follow {
    fn feed(&mut self, graph: &mut Graph, _notes: &mut Notes) -> anyhow::Result<Fed> {
        let ended = self.lead.ended.load(Ordering::Acquire);
        let next = self.lead.next.load(Ordering::Acquire);
        if next > self.next {
            self.next = next;
            graph.advance_to(next);
            return Ok(Fed::Some);
        }
        if ended {
            graph.advance_to(Tick::MAX);
            return Ok(Fed::End);
        }
        Ok(Fed::Idle)
    }
}
