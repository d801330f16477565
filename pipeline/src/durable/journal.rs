//! The thread that writes closed ticks to the journal, in groups.
//!
//! While the disk syncs, the next ticks gather: one sync for all of them. So the cost of a sync is
//! shared by whatever came meanwhile, and nobody waits for a timer.
//!
//! # Bounds
//! At most `queue` closed ticks wait; at the bound the ingest loop stops taking from its sources.
//! When the disk refuses, the thread says so and tries again for `patience`; then it gives up, and the
//! engine with it: nothing that is not on disk is ever acknowledged or acted on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use omnify_operators::model::Tick;
use omnify_sinks::journal::{JournalError, JournalWriter, Position, Retention, TickEntry};
use omnify_sinks::telemetry::events;
use tokio::sync::oneshot;

use super::{Copy, Reached};
use crate::clock::{self, Clock};

/// Told when the rows of an arrival are on disk; dropped untold when they will not be.
pub type Receipt = oneshot::Sender<()>;

/// A closed tick on its way to the disk.
pub struct JournalTick {
    /// What entered.
    pub entry: TickEntry,
    /// Who is told.
    pub receipts: Vec<Receipt>,
}

/// A group of ticks that is on disk.
pub struct Durable {
    /// The last of them.
    pub tick: Tick,
    /// Where their sources are to be read on.
    pub positions: Vec<Position>,
    /// Who is told that their rows are taken.
    pub receipts: Vec<Receipt>,
    /// The segment that holds them, and its bytes.
    pub extent: (String, u64),
}

/// Told of every group that is on disk.
pub type OnDurable = Box<dyn FnMut(Durable) + Send>;

/// Ticks of one group at most: bounds the memory of a group and the time until its sync.
const GROUP_TICKS: usize = 256;
/// Wait between two tries at a disk that refuses.
const RETRY: Duration = Duration::from_millis(200);

/// The handle of the thread.
pub struct Journal {
    queue: Option<Sender<JournalTick>>,
    durable: Arc<Reached>,
    keep_from: Arc<AtomicU64>,
    stalled: Arc<AtomicU64>,
    error: Arc<Mutex<Option<JournalError>>>,
    thread: Option<JoinHandle<()>>,
}

impl Journal {
    /// A journal that stands where `writer` says, and what writes it: for [`Journal::start`], or to
    /// be stepped. `limits` bound what is kept beyond [`Journal::keep_from`]; a disk that refuses for
    /// `patience` ends it; a `copy` elsewhere hears what is durable, and says what it needs.
    pub fn new(
        writer: JournalWriter,
        limits: Retention,
        patience: Duration,
        queue_ticks: usize,
        clock: Clock,
        told: OnDurable,
        copy: Option<Copy>,
    ) -> anyhow::Result<(Journal, Writing)> {
        if let Some(copy) = &copy {
            let extents = writer.opened_extents()?;
            extents.iter().for_each(|(segment, bytes)| copy.journal(segment, *bytes));
        }
        let (queue, receiver) = bounded(queue_ticks.max(1));
        let durable = Arc::new(Reached::at(writer.last_tick()));
        let keep_from = Arc::new(AtomicU64::new(0));
        let stalled = Arc::new(AtomicU64::new(0));
        let error = Arc::new(Mutex::new(None));
        let writing = Writing {
            queue: receiver,
            writer,
            limits,
            patience,
            durable: durable.clone(),
            keep_from: keep_from.clone(),
            kept_from: 0,
            stalled: stalled.clone(),
            clock,
            told,
            copy,
        };
        let queue = Some(queue);
        Ok((Journal { queue, durable, keep_from, stalled, error, thread: None }, writing))
    }

    /// Starts the thread.
    pub fn start(&mut self, mut writing: Writing) -> std::io::Result<()> {
        let failed = self.error.clone();
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || {
            if let Err(error) = writing.run() {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
            writing.durable.end();
        })?;
        self.thread = Some(thread);
        Ok(())
    }

    /// How far the journal is on disk.
    pub fn durable(&self) -> &Arc<Reached> {
        &self.durable
    }

    /// The end for the ingest loop.
    pub fn sender(&self) -> Sender<JournalTick> {
        // Present until `finish`, which consumes the journal.
        self.queue.clone().unwrap_or_else(|| bounded(0).0)
    }

    /// Segments entirely before this tick may be deleted; share it with the snapshot thread.
    pub fn keep_from(&self) -> Arc<AtomicU64> {
        self.keep_from.clone()
    }

    /// Tries in a row that the disk has refused; 0 when all is well.
    pub fn stalled(&self) -> Arc<AtomicU64> {
        self.stalled.clone()
    }

    /// Writes what is left. The senders must be gone.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.queue = None;
        let ended = self.thread.map_or(Ok(()), JoinHandle::join);
        ended.map_err(|_| anyhow::anyhow!("the journal thread panicked"))?;
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        error.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// The work of the thread.
pub struct Writing {
    queue: Receiver<JournalTick>,
    writer: JournalWriter,
    limits: Retention,
    patience: Duration,
    durable: Arc<Reached>,
    keep_from: Arc<AtomicU64>,
    kept_from: Tick,
    stalled: Arc<AtomicU64>,
    clock: Clock,
    told: OnDurable,
    copy: Option<Copy>,
}

impl Writing {
    fn run(&mut self) -> Result<(), JournalError> {
        while let Ok(first) = self.queue.recv() {
            if !self.group(first)? {
                break;
            }
        }
        Ok(())
    }

    /// Writes what waits, as one group; false when nothing does.
    pub fn step(&mut self) -> Result<bool, JournalError> {
        self.queue.try_recv().map_or(Ok(false), |first| self.group(first))
    }

    /// False when nothing more may count.
    fn group(&mut self, first: JournalTick) -> Result<bool, JournalError> {
        let (mut receipts, mut positions, mut ticks) = (Vec::new(), Vec::new(), 0);
        for JournalTick { entry, receipts: of } in
            std::iter::once(first).chain(self.queue.try_iter()).take(GROUP_TICKS)
        {
            self.writer.append(&entry)?;
            positions.extend(entry.positions);
            receipts.extend(of);
            ticks += 1;
        }
        let started = clock::instant();
        if self.copy.as_ref().is_some_and(Copy::is_lost) {
            // Another engine goes on from the copy: what comes now must not count here.
            return Ok(false);
        }
        if let (Some(tick), Some(extent)) = (self.persist()?, self.writer.extent()) {
            (self.told)(Durable { tick, positions, receipts, extent: extent.clone() });
            // Whoever acts on a durable tick can rely on its copy being under way.
            if let Some(copy) = &self.copy {
                copy.journal(&extent.0, extent.1);
            }
            self.durable.reach(tick);
        }
        events::JournalCommitted { ticks, took: clock::since(started) }.emit();
        self.retain();
        Ok(true)
    }

    /// Commits, again and again while the disk is full.
    fn persist(&mut self) -> Result<Option<Tick>, JournalError> {
        let mut refused: Option<Instant> = None;
        loop {
            match self.writer.commit() {
                Ok(durable) => {
                    self.stalled.store(0, Ordering::Relaxed);
                    return Ok(durable);
                }
                Err(error) => {
                    let tries = self.stalled.fetch_add(1, Ordering::Relaxed) + 1;
                    if tries == 1 || tries.is_multiple_of(50) {
                        events::JournalFailed { error: &error }.emit();
                    }
                    let since = refused.get_or_insert_with(clock::instant);
                    if clock::since(*since) >= self.patience {
                        return Err(error);
                    }
                    clock::sleep(RETRY);
                }
            }
        }
    }

    /// Deletes what nobody needs any more, once after each snapshot.
    fn retain(&mut self) {
        let copied = self.copy.as_ref().map_or(Tick::MAX, Copy::keep_from);
        let keep_from = self.keep_from.load(Ordering::Acquire).min(copied);
        if keep_from <= self.kept_from {
            return;
        }
        self.kept_from = keep_from;
        let limits = Retention { keep_from, ..self.limits };
        match self.writer.retain(&limits, self.clock.now()) {
            Ok(removed) if removed.segments.is_empty() => {}
            Ok(removed) => {
                tracing::debug!(segments = removed.segments.len(), "journal shortened");
            }
            // It is tried again after the next snapshot.
            Err(error) => tracing::warn!(%error, "old journal segments cannot be deleted"),
        }
    }
}
