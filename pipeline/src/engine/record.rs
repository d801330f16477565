//! The history writer's thread: takes complete ticks from the decision thread, in order.
//!
//! The queue is bounded in rows, so that a moment of writing does not stop an engine of short ticks
//! and long ticks do not fill the memory; at the bound the decision thread waits, and with it the whole engine, up
//! to the sources: nothing is dropped. When the disk refuses, the thread says so, keeps what it
//! has and tries again; when it was told to stop it gives up after a last try.
//!
//! # With a journal
//! The history is what the journal became on its way through the engine, and is committed only
//! where a restart can go on exactly: at ticks that the journal holds, and at which no worker had
//! closed rows still to hand over ([`TickData::settled`]). After a restart the engine makes the last
//! ticks once more; those that the history holds are left out here, row by row: a closed row
//! belongs to the tick it carries, whichever tick handed it over.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use omnify_decision::action::{Action, Decision};
use omnify_decision::control::Control;
use omnify_operators::model::{Event, PaneBatch, RegistryView, Tick};
use omnify_sinks::history::{
    BackgroundMerge, DeadLetter, HistoryError, HistoryWriter, MergeStep, Summary,
};
use omnify_sinks::priority;
use omnify_sinks::telemetry::events;

use crate::clock;
use crate::durable::Reached;

/// Everything that happened at one tick.
#[derive(Debug, Default)]
pub struct TickData {
    /// The tick.
    pub tick: Tick,
    /// Accepted events.
    pub events: Vec<Vec<Event>>,
    /// Rows closed at pane ends.
    pub panes: Vec<PaneBatch>,
    /// Decisions, in order.
    pub decisions: Vec<Decision>,
    /// Actions, in order.
    pub actions: Vec<Action>,
    /// Control inputs.
    pub controls: Vec<Control>,
    /// Refused rows.
    pub dead: Vec<DeadLetter>,
    /// Whether every row closed up to this tick has been handed over.
    pub settled: bool,
    /// Whether the history is to be committed with this tick (which is settled then).
    pub commit: bool,
}

impl TickData {
    /// Rows of the history that the tick makes, its own included.
    fn rows(&self) -> u64 {
        let events = self.events.iter().map(Vec::len).sum::<usize>();
        let panes = self.panes.iter().map(|batch| batch.rows.len()).sum::<usize>();
        let rest = self.decisions.len() + self.actions.len() + self.controls.len();
        (events + panes + rest + self.dead.len() + 1) as u64
    }
}

/// What the recorder shows while it runs.
#[derive(Default)]
pub struct Progress {
    rows: AtomicU64,
    waiting: Mutex<u64>,
    room: Condvar,
    stalled: AtomicU64,
}

impl Progress {
    /// Rows taken so far.
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Rows that wait for the writer.
    pub fn waiting(&self) -> u64 {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries in a row that the disk has refused; 0 when all is well.
    pub fn stalled(&self) -> u64 {
        self.stalled.load(Ordering::Relaxed)
    }
}

/// The handle of the thread.
pub struct Recorder {
    queue: Option<Sender<TickData>>,
    rows_max: u64,
    thread: Option<JoinHandle<Result<Summary, HistoryError>>>,
    /// What it shows.
    pub progress: Arc<Progress>,
    /// Up to where the history is committed.
    pub committed: Arc<Reached>,
}

/// Ticks that may wait, however few rows they have.
const TICKS_MAX: usize = 65_536;
/// How often a waiting caller looks whether the thread still lives.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Wait between two tries at a disk that refuses.
const RETRY: Duration = Duration::from_millis(500);

impl Recorder {
    /// Starts the thread.
    pub fn start(
        writer: HistoryWriter,
        view: RegistryView,
        rows_max: usize,
        patience: Duration,
        file_time: Option<Duration>,
        journal: Option<Arc<Reached>>,
    ) -> std::io::Result<Recorder> {
        let (mut recorder, mut recording) =
            Recorder::new(writer, view, rows_max, patience, file_time, journal);
        let thread = std::thread::Builder::new().name("history".into()).spawn(move || {
            priority::lower(priority::LATER);
            let result = recording.run();
            recording.committed.end();
            result
        })?;
        recorder.thread = Some(thread);
        Ok(recorder)
    }

    /// The handle, and what writes: for a thread, or to be stepped. Up to `rows_max` rows may wait,
    /// or one tick of more. A full disk is tried again for `patience`. Files are closed at least every
    /// `file_time`, if given. With a `journal`, nothing is committed that it does not hold.
    pub fn new(
        writer: HistoryWriter,
        view: RegistryView,
        rows_max: usize,
        patience: Duration,
        file_time: Option<Duration>,
        journal: Option<Arc<Reached>>,
    ) -> (Recorder, Recording) {
        let (queue, receiver) = bounded(TICKS_MAX);
        let progress = Arc::new(Progress::default());
        let committed = Arc::new(Reached::at(writer.last_tick()));
        let recording = Recording {
            queue: receiver,
            file_time,
            flushed: clock::instant(),
            owed: false,
            held: writer.last_tick(),
            newest: writer.last_tick(),
            settled: true,
            merge: file_time.map(|_| BackgroundMerge::default()),
            writer,
            view,
            patience,
            progress: progress.clone(),
            journal,
            committed: committed.clone(),
        };
        let (queue, rows_max) = (Some(queue), rows_max as u64);
        (Recorder { queue, rows_max, thread: None, progress, committed }, recording)
    }

    /// Hands over a tick, and waits for room if need be; false when the thread has given up.
    pub fn record(&self, data: TickData) -> bool {
        let rows = data.rows();
        let mut waiting = self.progress.lock();
        while *waiting > 0 && *waiting + rows > self.rows_max {
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                return false;
            }
            let waited = self.progress.room.wait_timeout(waiting, LOOK_AGAIN);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *waiting += rows;
        drop(waiting);
        self.queue.as_ref().is_some_and(|queue| queue.send(data).is_ok())
    }

    /// Ticks waiting.
    pub fn depth(&self) -> usize {
        self.queue.as_ref().map_or(0, Sender::len)
    }

    /// Writes what is left and says what the history holds.
    pub fn finish(mut self) -> anyhow::Result<Summary> {
        self.queue = None;
        let thread = self.thread.ok_or_else(|| anyhow::anyhow!("there is no history thread"))?;
        Ok(thread.join().map_err(|_| anyhow::anyhow!("the history thread panicked"))??)
    }
}

/// The work of the thread.
pub struct Recording {
    queue: Receiver<TickData>,
    file_time: Option<Duration>,
    /// When it was committed last.
    flushed: Instant,
    /// A commit is due.
    owed: bool,
    writer: HistoryWriter,
    view: RegistryView,
    /// The bound is time, not tries: a try encodes a whole part again.
    patience: Duration,
    progress: Arc<Progress>,
    journal: Option<Arc<Reached>>,
    committed: Arc<Reached>,
    /// The history held this tick and everything before it when the thread started.
    held: Option<Tick>,
    /// The newest tick written.
    newest: Option<Tick>,
    /// Whether that tick was settled.
    settled: bool,
    /// Merges small files meanwhile, where files are closed by time.
    merge: Option<BackgroundMerge>,
}

impl Recording {
    fn run(&mut self) -> Result<Summary, HistoryError> {
        loop {
            let next = match self.file_time {
                Some(every) => self.queue.recv_timeout(every),
                None => self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let due = match next {
                Ok(data) => self.take(data)?,
                Err(RecvTimeoutError::Timeout) => self.is_due(),
                Err(RecvTimeoutError::Disconnected) => return self.finish(),
            };
            if due {
                self.commit()?;
                self.flushed = clock::instant();
            }
            self.merge(due);
        }
    }

    /// From now on small files are merged on the caller's thread.
    pub fn merge_inline(&mut self) {
        self.merge = self.merge.as_ref().map(|_| BackgroundMerge::inline());
    }

    /// Takes the next tick, or commits what is due; false when there is nothing to do, or when the
    /// journal would have to be waited for.
    pub fn step(&mut self) -> Result<bool, HistoryError> {
        if !self.owed {
            self.owed = match self.queue.try_recv() {
                Ok(data) => self.take(data)?,
                Err(_) if self.is_due() => true,
                Err(_) => return Ok(false),
            };
            return Ok(true);
        }
        let journal = self.journal.as_ref();
        if journal.is_some_and(|of| self.settled && of.tick() < self.newest && !of.has_ended()) {
            return Ok(false);
        }
        self.commit()?;
        (self.owed, self.flushed) = (false, clock::instant());
        self.merge(true);
        self.merge(false);
        Ok(true)
    }

    /// Writes a tick; true when a commit is due.
    fn take(&mut self, data: TickData) -> Result<bool, HistoryError> {
        let (rows, commit) = (data.rows(), data.commit);
        self.tick(data)?;
        *self.progress.lock() -= rows;
        self.progress.room.notify_all();
        Ok(commit || self.is_due())
    }

    fn is_due(&self) -> bool {
        self.file_time.is_some_and(|every| clock::since(self.flushed) >= every)
    }

    /// After a commit a merge may begin; one that runs is looked after all the time.
    fn merge(&mut self, committed: bool) {
        let Some(merge) = self.merge.as_mut().filter(|merge| committed || merge.is_busy()) else {
            return;
        };
        match merge.step(&mut self.writer) {
            Ok(MergeStep::Adopted { table, parts, rows, .. }) => {
                events::HistoryMerged { table: table.name(), parts, rows }.emit();
            }
            Ok(MergeStep::Nothing | MergeStep::Started) => {}
            // Only merging is concerned; the history is as it was.
            Err(error) => tracing::warn!(%error, "small files of the history are not merged"),
        }
    }

    /// Nothing more comes. Without a journal everything is committed; with one, what it cannot make
    /// again.
    pub fn finish(&mut self) -> Result<Summary, HistoryError> {
        match self.journal {
            None => self.persist(HistoryWriter::finish),
            Some(_) => {
                self.commit()?;
                Ok(self.writer.summary())
            }
        }
    }

    /// Commits, where it is allowed to.
    fn commit(&mut self) -> Result<(), HistoryError> {
        let Some(newest) = self.newest else { return Ok(()) };
        if let Some(journal) = &self.journal
            && !(self.settled && journal.wait(newest))
        {
            return Ok(());
        }
        self.persist(HistoryWriter::flush)?;
        self.committed.reach(newest);
        Ok(())
    }

    fn tick(&mut self, mut data: TickData) -> Result<(), HistoryError> {
        if Some(data.tick) <= self.held {
            return Ok(());
        }
        let (tick, rows) = (data.tick, data.rows());
        let events = self.in_order(std::mem::take(&mut data.events));
        self.persist(|writer| writer.events(tick, &events))?;
        for batch in &mut data.panes {
            if let Some(held) = self.held {
                leave_out(batch, held);
            }
            self.persist(|writer| writer.panes(batch))?;
        }
        self.persist(|writer| writer.decisions(&data.decisions))?;
        self.persist(|writer| writer.actions(&data.actions))?;
        self.persist(|writer| writer.outcomes(tick, &data.controls))?;
        self.persist(|writer| writer.dead_letters(&data.dead))?;
        self.persist(|writer| writer.tick(tick, &data.controls))?;
        self.progress.rows.fetch_add(rows, Ordering::Relaxed);
        (self.newest, self.settled) = (Some(tick), data.settled);
        Ok(())
    }

    /// The order of events within a tick is theirs, not that of workers or arrival.
    fn in_order(&mut self, mut batches: Vec<Vec<Event>>) -> Vec<Event> {
        let mut events = match batches.len() {
            1 => batches.swap_remove(0),
            _ => batches.concat(),
        };
        let view = &mut self.view;
        events.sort_by(|a, b| {
            a.time.cmp(&b.time).then_with(|| {
                let order = |event: &Event, view: &mut RegistryView| {
                    (view.info(event.creative).order, event.kind, event.user, event.id, event.delta)
                };
                let (left, right) = (order(a, view), order(b, view));
                left.cmp(&right)
            })
        });
        events
    }

    /// Does `step`, again and again while the disk refuses; writes are retried from where the
    /// writer stands, so nothing is lost or doubled.
    fn persist<T>(
        &mut self,
        mut step: impl FnMut(&mut HistoryWriter) -> Result<T, HistoryError>,
    ) -> Result<T, HistoryError> {
        let mut refused: Option<Instant> = None;
        loop {
            match step(&mut self.writer) {
                Ok(done) => {
                    self.progress.stalled.store(0, Ordering::Relaxed);
                    return Ok(done);
                }
                Err(error) => {
                    let tries = self.progress.stalled.fetch_add(1, Ordering::Relaxed) + 1;
                    if tries == 1 || tries.is_multiple_of(20) {
                        events::HistoryFailed { table: "all", error: &error }.emit();
                    }
                    let since = refused.get_or_insert_with(clock::instant);
                    if !error.is_disk_full() || clock::since(*since) >= self.patience {
                        return Err(error);
                    }
                    clock::sleep(RETRY);
                }
            }
        }
    }
}

/// Removes the rows that belong to a tick up to `held`.
fn leave_out(batch: &mut PaneBatch, held: Tick) {
    if batch.rows.iter().all(|row| row.tick > held) {
        return;
    }
    let mut features = std::mem::take(&mut batch.features).into_iter().peekable();
    let mut kept = PaneBatch::default();
    for (at, row) in batch.rows.iter().enumerate() {
        let feature = features.next_if(|(of, _)| *of as usize == at);
        if row.tick > held {
            kept.features.extend(feature.map(|(_, feature)| (kept.rows.len() as u32, feature)));
            kept.rows.push(*row);
        }
    }
    *batch = kept;
}

#[cfg(test)]
mod tests {
    use omnify_operators::model::{
        Anomaly, EntityId, Estimate, Fatigue, FeatureRow, MAX_WINDOWS, PaneRow, Reach, Stats,
    };

    use super::*;

    #[test]
    fn rows_of_ticks_that_are_held_are_left_out_with_their_features() {
        let row = |tick| PaneRow {
            entity: EntityId(0),
            window: 0,
            window_end: 0,
            sums: Stats::ZERO,
            tick,
        };
        let feature = |tick| FeatureRow {
            entity: EntityId(0),
            tick,
            windows: [Stats::ZERO; MAX_WINDOWS],
            ctr: Estimate::default(),
            cvr: Estimate::default(),
            reach: Reach::default(),
            fatigue: Fatigue::default(),
            anomaly: Anomaly::default(),
            maturity: None,
        };
        let rows = vec![row(5), row(6), row(5), row(7)];
        let features = vec![(0, feature(50)), (1, feature(60)), (3, feature(70))];
        let mut batch = PaneBatch { rows, features };
        leave_out(&mut batch, 4);
        assert_eq!(batch.rows.len(), 4);
        leave_out(&mut batch, 5);
        assert_eq!(batch.rows.iter().map(|row| row.tick).collect::<Vec<_>>(), [6, 7]);
        assert_eq!(batch.features, [(0, feature(60)), (1, feature(70))]);
    }
}
