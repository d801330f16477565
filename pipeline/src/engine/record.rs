//! The history writer's thread: takes complete ticks from the decision thread, in order.
//!
//! The queue is bounded in rows, so that a moment of writing does not stop an engine of short ticks
//! and long ticks do not fill the memory; at the bound the decision thread waits, and with it the whole engine, up
//! to the sources: nothing is dropped. When the disk refuses, the thread says so, keeps what it
//! has and tries again; when it was told to stop it gives up after a last try.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use omnify_decision::action::{Action, Decision};
use omnify_decision::control::Control;
use omnify_operators::model::{Event, PaneBatch, RegistryView, Tick};
use omnify_sinks::history::{DeadLetter, HistoryError, HistoryWriter, Summary};

use crate::clock;

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
    thread: JoinHandle<Result<Summary, HistoryError>>,
    /// What it shows.
    pub progress: Arc<Progress>,
}

/// Ticks that may wait, however few rows they have.
const TICKS_MAX: usize = 65_536;
/// How often a waiting caller looks whether the thread still lives.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Wait between two tries at a disk that refuses.
const RETRY: Duration = Duration::from_millis(500);
/// A recorder gives up when the disk has refused for this long. The bound is time, not tries: a try
/// encodes a whole part again.
const REFUSED_MAX: Duration = Duration::from_secs(60);

impl Recorder {
    /// Starts the thread. Up to `rows_max` rows may wait, or one tick of more. Files are closed at
    /// least every `file_time`, if given.
    pub fn start(
        writer: HistoryWriter,
        view: RegistryView,
        rows_max: usize,
        file_time: Option<Duration>,
    ) -> std::io::Result<Recorder> {
        let (queue, receiver) = bounded(TICKS_MAX);
        let progress = Arc::new(Progress::default());
        let shown = progress.clone();
        let thread = std::thread::Builder::new().name("history".into()).spawn(move || {
            let mut recording = Recording { writer, view, progress: shown };
            recording.run(&receiver, file_time)
        })?;
        Ok(Recorder { queue: Some(queue), rows_max: rows_max as u64, thread, progress })
    }

    /// Hands over a tick, and waits for room if need be; false when the thread has given up.
    pub fn record(&self, data: TickData) -> bool {
        let rows = data.rows();
        let mut waiting = self.progress.lock();
        while *waiting > 0 && *waiting + rows > self.rows_max {
            if self.thread.is_finished() {
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
        let result = self.thread.join();
        Ok(result.map_err(|_| anyhow::anyhow!("the history thread panicked"))??)
    }
}

struct Recording {
    writer: HistoryWriter,
    view: RegistryView,
    progress: Arc<Progress>,
}

impl Recording {
    fn run(
        &mut self,
        queue: &Receiver<TickData>,
        file_time: Option<Duration>,
    ) -> Result<Summary, HistoryError> {
        let mut flushed = clock::instant();
        loop {
            let next = match file_time {
                Some(every) => queue.recv_timeout(every),
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(data) => {
                    let rows = data.rows();
                    self.tick(data)?;
                    *self.progress.lock() -= rows;
                    self.progress.room.notify_all();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return self.persist(HistoryWriter::finish);
                }
            }
            if file_time.is_some_and(|every| flushed.elapsed() >= every) {
                self.persist(HistoryWriter::flush)?;
                flushed = clock::instant();
            }
        }
    }

    fn tick(&mut self, mut data: TickData) -> Result<(), HistoryError> {
        let (tick, rows) = (data.tick, data.rows());
        let events = self.in_order(std::mem::take(&mut data.events));
        self.persist(|writer| writer.events(tick, &events))?;
        for batch in &data.panes {
            self.persist(|writer| writer.panes(batch))?;
        }
        self.persist(|writer| writer.decisions(&data.decisions))?;
        self.persist(|writer| writer.actions(&data.actions))?;
        self.persist(|writer| writer.outcomes(tick, &data.controls))?;
        self.persist(|writer| writer.dead_letters(&data.dead))?;
        self.persist(|writer| writer.tick(tick, &data.controls))?;
        self.progress.rows.fetch_add(rows, Ordering::Relaxed);
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
                        omnify_sinks::telemetry::events::HistoryFailed {
                            table: "all",
                            error: &error,
                        }
                        .emit();
                    }
                    let since = refused.get_or_insert_with(clock::instant);
                    if !error.is_disk_full() || since.elapsed() >= REFUSED_MAX {
                        return Err(error);
                    }
                    std::thread::sleep(RETRY);
                }
            }
        }
    }
}
