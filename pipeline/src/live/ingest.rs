//! The loop that closes ticks: what arrived since the last one enters at the next.
//!
//! A tick is closed every `engine.tick` of real time while there is anything, and at least every
//! 100 ms on the system clock, so that windows and timers move on. Its number is the clock's, or one
//! more than the last where the clock has not moved (or was set back). In simulated time the arrivals
//! move the clock, so a tick is never before the events in it.
//!
//! A closed tick goes to the workers and to the journal at the same time; the order of ticks is the
//! order of everything. When the workers, the journal or its copy are behind, nothing more is taken from
//! the sources until they have caught up.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select};
use omnify_decision::control::Control;
use omnify_operators::graph::Mark;
use omnify_operators::model::{EntityKey, Event, NO_ID, ReportRow, Tick};
use omnify_sinks::journal::{BatchKey, Position, TickEntry};
use omnify_sinks::telemetry::events;

use super::batches::Batches;
use super::intake::{Arrival, Arrivals};
use super::overload::Overload;
use crate::clock::{self, Clock};
use crate::decode::Door;
use crate::durable::{Copy, Inputs, JournalTick, Positions, Receipt};
use crate::engine::Note;
use crate::engine::feed::{LiveQueue, TickBatch};

/// Longest time without a tick, on the system clock.
const IDLE: Duration = Duration::from_millis(100);
/// Report rows that a tick takes, if no single arrival brings more: each may touch weeks of an
/// entity's windows, and a tick that takes long is latency for everybody.
const REPORTS_PER_TICK: usize = 2_048;
/// How often room is looked for while the workers are behind.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Ticks between two samples of the queues.
const SAMPLE_TICKS: u64 = 100;

/// The loop's ends.
pub(super) struct Ingest {
    /// From the sources.
    pub(super) arrivals: Arrivals,
    /// From the dispatcher.
    pub(super) outcomes: Receiver<Control>,
    /// From everybody else: displaced actions, models, people.
    pub(super) inputs: Receiver<Control>,
    /// Says that the next tick is the last.
    pub(super) stopped: Receiver<()>,
    /// To the workers.
    pub(super) queue: LiveQueue,
    /// Time.
    pub(super) clock: Clock,
    /// Length of a tick in real time.
    pub(super) tick_every: Duration,
    /// The last tick decided upon.
    pub(super) decided: Arc<AtomicU64>,
    /// What survives a crash, if anything does.
    pub(super) durable: Option<DurableEnds>,
    /// The last tick of an earlier process.
    pub(super) last: Tick,
    /// The overload level.
    pub(super) level: u8,
}

/// The loop's ends of journal and snapshots.
pub(super) struct DurableEnds {
    /// To the journal.
    pub(super) journal: Sender<JournalTick>,
    /// True while a snapshot is asked for and not done.
    pub(super) snapshot_busy: Arc<AtomicBool>,
    /// Time between two snapshots.
    pub(super) snapshot_every: Duration,
    /// Longest time that a stop waits for the last one.
    pub(super) stop_within: Duration,
    /// Where sources are to be read on, as of the last closed tick.
    pub(super) positions: Positions,
    /// Idempotency keys.
    pub(super) batches: Batches,
    /// Numbers report rows.
    pub(super) door: Arc<Door>,
    /// The copy elsewhere.
    pub(super) copy: Option<Copy>,
}

/// What enters at the next tick.
#[derive(Default)]
struct Pending {
    events: Vec<Vec<Event>>,
    reports: Vec<ReportRow>,
    note: Note,
    positions: Vec<Position>,
    batches: Vec<BatchKey>,
    receipts: Vec<Receipt>,
    any: bool,
}

/// What is special about a tick.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Close {
    Usual,
    Snapshot,
    Last,
}

/// When settings were last learned from an acknowledgement, by owner.
type Acknowledged = HashMap<EntityKey, Instant>;

impl Ingest {
    /// Runs until stopped, or until the engine is gone. `controls` enter at the first tick.
    pub(super) fn run(mut self, controls: Vec<Control>) {
        let mut pending = Pending { any: true, ..Pending::default() };
        pending.note.controls = controls;
        let mut acknowledged = Acknowledged::new();
        let mut overload = Overload::new(clock::instant());
        self.arrivals.closed(self.last);
        if self.durable.is_some() {
            // An earlier process may have ended behind.
            pending.note.controls.push(Control::Calm { level: 0 });
        }
        let (mut closed, mut snapshot, mut ticks) = (clock::instant(), clock::instant(), 0_u64);
        let (no_arrivals, no_controls) = (never(), never());
        loop {
            let room = self.has_room();
            // What is not copied yet must not grow further; time and outcomes go on.
            let full = pending.note.rows >= self.arrivals.rows_max() as u64 || self.copy_is_full();
            let arrivals = if room && !full { &self.arrivals.usual } else { &no_arrivals };
            let full = full || pending.reports.len() >= REPORTS_PER_TICK;
            let reports = if room && !full { &self.arrivals.reports } else { &no_arrivals };
            let (outcomes, inputs) =
                if room { (&self.outcomes, &self.inputs) } else { (&no_controls, &no_controls) };
            let tick_every = overload.stretch(self.tick_every);
            let every = if pending.any { tick_every } else { IDLE.max(tick_every) };
            let wait = match room {
                true => every.saturating_sub(closed.elapsed()),
                false => LOOK_AGAIN,
            };
            select! {
                recv(arrivals) -> arrival => if let Ok(arrival) = arrival {
                    self.take(arrival, &mut pending, &acknowledged);
                },
                recv(reports) -> arrival => if let Ok(arrival) = arrival {
                    self.take(arrival, &mut pending, &acknowledged);
                },
                recv(outcomes) -> control => match control {
                    Ok(control) => note(control, &mut pending, &mut acknowledged),
                    // The dispatcher is gone; the engine follows.
                    Err(_) => self.outcomes = never(),
                },
                recv(inputs) -> control => if let Ok(control) = control {
                    note(control, &mut pending, &mut acknowledged);
                },
                recv(self.stopped) -> _ => {
                    // Closed to the sources by now: what is in the queues is all there is.
                    self.drain(&mut pending, &mut acknowledged);
                    self.finish(pending);
                    return;
                }
                default(wait) => {}
            }
            let idle = !pending.any && matches!(self.clock, Clock::Manual(_));
            let every = if pending.any { tick_every } else { IDLE.max(tick_every) };
            if idle || closed.elapsed() < every || !self.has_room() {
                continue;
            }
            closed = clock::instant();
            let kind = match self.snapshot_due(snapshot) {
                true => Close::Snapshot,
                false => Close::Usual,
            };
            if kind == Close::Snapshot {
                snapshot = closed;
            }
            let Some(tick) = self.close(std::mem::take(&mut pending), kind) else { return };
            self.watch(&mut overload, tick, closed, &mut pending);
            ticks += 1;
            if ticks % SAMPLE_TICKS == 0 {
                self.sample();
            }
        }
    }

    fn has_room(&self) -> bool {
        let journal = self.durable.as_ref().is_none_or(|durable| !durable.journal.is_full());
        journal && self.queue.has_room()
    }

    fn copy_is_full(&self) -> bool {
        let copy = self.durable.as_ref().and_then(|durable| durable.copy.as_ref());
        copy.is_some_and(Copy::is_full)
    }

    fn snapshot_due(&self, last: Instant) -> bool {
        self.durable.as_ref().is_some_and(|durable| {
            last.elapsed() >= durable.snapshot_every
                && !durable.snapshot_busy.load(Ordering::Acquire)
        })
    }

    /// On the system clock; in simulated time whoever moves the clock waits for the engine.
    fn watch(&mut self, overload: &mut Overload, tick: Tick, now: Instant, next: &mut Pending) {
        if matches!(self.clock, Clock::Manual(_)) {
            return;
        }
        let decided = self.decided.load(Ordering::Acquire);
        if let Some(lag) = overload.closed(tick, decided, now) {
            self.level = overload.level();
            events::OverloadChanged { level: self.level, lag }.emit();
            next.note.controls.push(Control::Calm { level: self.level });
            next.any = true;
        }
    }

    fn sample(&self) {
        let depth = self.queue.depth();
        events::QueueSampled { queue: "ticks", depth }.emit();
        let depth = self.arrivals.usual.len() + self.arrivals.reports.len();
        events::QueueSampled { queue: "arrivals", depth }.emit();
        if let Some(durable) = &self.durable {
            events::QueueSampled { queue: "journal", depth: durable.journal.len() }.emit();
        }
    }

    fn take(&self, arrival: Arrival, pending: &mut Pending, acknowledged: &Acknowledged) {
        self.arrivals.took(&arrival);
        if let Some(tick) = arrival.known_until {
            self.clock.advance(tick);
        }
        pending.any = true;
        let observed = arrival.observed;
        let fresh = arrival.controls.into_iter().filter(|control| match (control, observed) {
            (Control::Observe { entity, .. }, Some(observed)) => {
                acknowledged.get(entity).is_none_or(|at| *at < observed)
            }
            _ => true,
        });
        let batch = arrival.batch;
        if !batch.events.is_empty() {
            pending.events.push(batch.events);
        }
        pending.reports.extend(batch.reports);
        pending.positions.extend(arrival.positions);
        pending.batches.extend(arrival.key);
        pending.receipts.extend(arrival.receipt);
        pending.note.merge(Note {
            rows: batch.rows,
            ignored: batch.ignored,
            dead: batch.dead,
            controls: fresh.collect(),
            watermarks: arrival.watermarks,
            arrived: arrival.arrived,
            ..Note::default()
        });
    }

    fn drain(&self, pending: &mut Pending, acknowledged: &mut Acknowledged) {
        for arrival in self.arrivals.usual.try_iter().chain(self.arrivals.reports.try_iter()) {
            self.take(arrival, pending, acknowledged);
        }
        for control in self.outcomes.try_iter().chain(self.inputs.try_iter()) {
            note(control, pending, acknowledged);
        }
    }

    /// Closes what is pending. With a journal the engine will go on from here another time, so a
    /// last snapshot is taken; without one this is the end, and nothing stays open.
    fn finish(&mut self, mut pending: Pending) {
        let Some(durable) = &self.durable else {
            self.close(pending, Close::Last);
            return;
        };
        let (busy, within) = (durable.snapshot_busy.clone(), durable.stop_within);
        let (started, mut asked) = (clock::instant(), false);
        loop {
            let free = !busy.load(Ordering::Acquire);
            if asked && free {
                return;
            }
            if started.elapsed() >= within {
                tracing::warn!(
                    last_tick = self.last,
                    decided = self.decided.load(Ordering::Acquire),
                    "no last snapshot within state.stop_within: the next start replays more of the \
                     journal, which is complete",
                );
                return;
            }
            let kind = if !asked && free { Close::Snapshot } else { Close::Usual };
            asked |= kind == Close::Snapshot;
            if self.close(std::mem::take(&mut pending), kind).is_none() {
                return;
            }
            std::thread::sleep(self.tick_every);
        }
    }

    /// Hands over the tick; `None` when the engine is gone.
    fn close(&mut self, pending: Pending, kind: Close) -> Option<Tick> {
        let tick = self.clock.now().max(self.last + 1);
        self.last = tick;
        self.arrivals.closed(tick);
        let Pending { events, reports, mut note, positions, batches, receipts, .. } = pending;
        note.dead.iter_mut().for_each(|letter| letter.tick = tick);
        let ids = events.iter().flatten().filter(|event| event.id != NO_ID).count() as u64;
        let mark = Mark {
            last: kind == Close::Last,
            snapshot: kind == Close::Snapshot,
            ids,
            calm: self.level,
            ..Mark::default()
        };
        let Some(durable) = &mut self.durable else {
            // There is no disk to wait for.
            for receipt in receipts {
                let _ = receipt.send(());
            }
            return self
                .queue
                .close(TickBatch { tick, mark, events, reports, note })
                .then_some(tick);
        };
        durable.positions.advance(&positions);
        durable.batches.closed(tick, &batches);
        if kind == Close::Snapshot {
            durable.snapshot_busy.store(true, Ordering::Release);
            note.snapshot = Some(Box::new(Inputs {
                positions: durable.positions.list(),
                batches: durable.batches.list(),
                sequence: durable.door.sequence(),
            }));
        }
        let entry = TickEntry {
            tick,
            mark_last: false,
            mark_snapshot: kind == Close::Snapshot,
            calm: self.level,
            events: events.concat(),
            reports: reports.clone(),
            controls: note.controls.clone(),
            dead: note.dead.clone(),
            rows: note.rows,
            ignored: note.ignored,
            watermarks: note.watermarks,
            positions,
            batches,
        };
        if durable.journal.send(JournalTick { entry, receipts }).is_err() {
            return None;
        }
        self.queue.close(TickBatch { tick, mark, events, reports, note }).then_some(tick)
    }
}

/// Takes a control; remembers when an owner's action ended.
fn note(control: Control, pending: &mut Pending, acknowledged: &mut Acknowledged) {
    if let Control::Acknowledge { owner, .. } = &control {
        acknowledged.insert(owner.clone(), clock::instant());
    }
    pending.any = true;
    pending.note.controls.push(control);
}
