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

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select};
use omnify_decision::control::Control;
use omnify_operators::graph::Mark;
use omnify_operators::model::{Event, NO_ID, ReportRow, Tick};
use omnify_sinks::journal::{BatchKey, Position, TickEntry};
use omnify_sinks::telemetry::events;

use super::batches::Batches;
use super::intake::{Arrival, Arrivals};
use super::observed::Observed;
use super::overload::Overload;
use crate::clock::{self, Clock};
use crate::decode::Door;
use crate::durable::{Copy, Inputs, JournalTick, Positions, Receipt};
use crate::engine::Note;
use crate::engine::feed::{LiveQueue, TickBatch};

/// Longest time without a tick, on the system clock.
const IDLE: Duration = Duration::from_millis(100);
/// Report rows that a tick takes from their lane, if no single arrival brings more: each may touch
/// weeks of an entity's windows, and a tick that takes long is latency for everybody. The next are
/// taken when that tick is decided upon, so that such ticks do not pile up.
const REPORTS_PER_TICK: usize = 2_048;
/// How often room is looked for while the workers are behind.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Ticks between two samples of the queues.
const SAMPLE_TICKS: u64 = 100;

/// The loop's ends.
pub(super) struct Ends {
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

/// The loop, between two ticks.
pub(super) struct Ingest {
    ends: Ends,
    pending: Pending,
    observed: Observed,
    overload: Overload,
    /// When a tick was closed last.
    closed: Instant,
    /// When a snapshot was asked for last.
    snapshot: Instant,
    ticks: u64,
    /// The last tick that took from the lane of report rows.
    reported: Tick,
    /// Once the loop has been told to end: since when, and whether the last snapshot is under way.
    ending: Option<(Instant, bool)>,
}

impl Ingest {
    /// `controls` enter at the first tick.
    pub(super) fn new(ends: Ends, mut controls: Vec<Control>) -> Ingest {
        if ends.durable.is_some() {
            // An earlier process may have ended behind.
            controls.push(Control::Calm { level: 0 });
        }
        let mut pending = Pending { any: true, ..Pending::default() };
        pending.note.controls = controls;
        ends.arrivals.closed(ends.last);
        let now = clock::instant();
        Ingest {
            ends,
            pending,
            observed: Observed::default(),
            overload: Overload::new(now),
            closed: now,
            snapshot: now,
            ticks: 0,
            reported: 0,
            ending: None,
        }
    }

    /// Runs until stopped, or until the engine is gone.
    pub(super) fn run(mut self) {
        let (no_arrivals, no_controls) = (never(), never());
        loop {
            let room = self.ends.has_room();
            // What is not copied yet must not grow further; time and outcomes go on.
            let taking = room && !self.is_full();
            let arrivals = if taking { &self.ends.arrivals.usual } else { &no_arrivals };
            let taking = room && self.takes_reports();
            let reports = if taking { &self.ends.arrivals.reports } else { &no_arrivals };
            let (outcomes, inputs) = match room {
                true => (&self.ends.outcomes, &self.ends.inputs),
                false => (&no_controls, &no_controls),
            };
            let held_back = self.holds_reports_back() && !self.ends.arrivals.reports.is_empty();
            let wait = match room && !held_back {
                true => self.every().saturating_sub(clock::since(self.closed)),
                false => LOOK_AGAIN,
            };
            select! {
                recv(arrivals) -> arrival => if let Ok(arrival) = arrival {
                    self.take(arrival);
                },
                recv(reports) -> arrival => if let Ok(arrival) = arrival {
                    self.take(arrival);
                },
                recv(outcomes) -> control => match control {
                    Ok(control) => self.note(control),
                    // The dispatcher is gone; the engine follows.
                    Err(_) => self.ends.outcomes = never(),
                },
                recv(inputs) -> control => if let Ok(control) = control {
                    self.note(control);
                },
                recv(self.ends.stopped) -> _ => {
                    while self.end() {
                        clock::sleep(self.ends.tick_every);
                    }
                    return;
                }
                default(wait) => {}
            }
            if !self.close_if_due() {
                return;
            }
        }
    }

    /// The last closed tick.
    pub(super) fn last(&self) -> Tick {
        self.ends.last
    }

    /// Where the sources stood when the last tick of an earlier process was closed.
    pub(super) fn recovered(&mut self, positions: &[Position]) {
        if let Some(durable) = &mut self.ends.durable {
            durable.positions.advance(positions);
        }
    }

    /// Takes what waits, and closes the tick if it is time; false when the engine is gone.
    pub(super) fn step(&mut self) -> bool {
        if self.ends.has_room() {
            while !self.is_full()
                && let Ok(arrival) = self.ends.arrivals.usual.try_recv()
            {
                self.take(arrival);
            }
            while self.takes_reports()
                && let Ok(arrival) = self.ends.arrivals.reports.try_recv()
            {
                self.take(arrival);
            }
            self.take_controls();
        }
        self.close_if_due()
    }

    /// One tick takes no more.
    fn is_full(&self) -> bool {
        let copy = self.ends.durable.as_ref().and_then(|durable| durable.copy.as_ref());
        self.pending.note.rows >= self.ends.arrivals.rows_max() as u64
            || copy.is_some_and(Copy::is_full)
    }

    /// One tick takes little of the reports' lane.
    fn takes_reports(&self) -> bool {
        !self.is_full()
            && !self.holds_reports_back()
            && self.pending.reports.len() < REPORTS_PER_TICK
    }

    /// The last tick that took from the lane of report rows is not decided upon yet.
    fn holds_reports_back(&self) -> bool {
        self.ends.decided.load(Ordering::Acquire) < self.reported
    }

    /// Time from one tick to the next.
    fn every(&self) -> Duration {
        let tick_every = self.overload.stretch(self.ends.tick_every);
        if self.pending.any { tick_every } else { IDLE.max(tick_every) }
    }

    fn close_if_due(&mut self) -> bool {
        let idle = !self.pending.any && matches!(self.ends.clock, Clock::Manual(_));
        if idle || clock::since(self.closed) < self.every() || !self.ends.has_room() {
            return true;
        }
        self.closed = clock::instant();
        let kind = match self.snapshot_due() {
            true => Close::Snapshot,
            false => Close::Usual,
        };
        if kind == Close::Snapshot {
            self.snapshot = self.closed;
        }
        let reports = !self.pending.reports.is_empty();
        let Some(tick) = self.ends.close(std::mem::take(&mut self.pending), kind) else {
            return false;
        };
        if reports {
            self.reported = tick;
        }
        self.watch(tick);
        self.ticks += 1;
        if self.ticks.is_multiple_of(SAMPLE_TICKS) {
            self.ends.sample();
        }
        true
    }

    fn snapshot_due(&self) -> bool {
        self.ends.durable.as_ref().is_some_and(|durable| {
            clock::since(self.snapshot) >= durable.snapshot_every
                && !durable.snapshot_busy.load(Ordering::Acquire)
        })
    }

    /// On the system clock; in simulated time whoever moves the clock waits for the engine.
    fn watch(&mut self, tick: Tick) {
        if matches!(self.ends.clock, Clock::Manual(_)) {
            return;
        }
        let decided = self.ends.decided.load(Ordering::Acquire);
        if let Some(lag) = self.overload.closed(tick, decided, self.closed) {
            self.ends.level = self.overload.level();
            events::OverloadChanged { level: self.ends.level, lag }.emit();
            self.pending.note.controls.push(Control::Calm { level: self.ends.level });
            self.pending.any = true;
        }
    }

    fn take(&mut self, arrival: Arrival) {
        self.ends.arrivals.took(&arrival);
        if let Some(tick) = arrival.known_until {
            self.ends.clock.advance(tick);
        }
        let pending = &mut self.pending;
        pending.any = true;
        let (begun, observed) = (arrival.observed, &mut self.observed);
        let fresh = arrival.controls.into_iter().filter(|control| match (control, begun) {
            (Control::Observe { entity, actual }, Some(begun)) => {
                observed.is_news(entity, actual, begun)
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

    /// Takes a control; remembers when an owner's action ended.
    fn note(&mut self, control: Control) {
        if let Control::Acknowledge { owner, outcome, .. } = &control {
            self.observed.ended(owner, outcome, clock::instant());
        }
        self.pending.any = true;
        self.pending.note.controls.push(control);
    }

    fn take_controls(&mut self) {
        while let Ok(control) = self.ends.outcomes.try_recv() {
            self.note(control);
        }
        while let Ok(control) = self.ends.inputs.try_recv() {
            self.note(control);
        }
    }

    /// Closes what is pending, a tick at a call; false when that was all. With a journal the engine
    /// will go on from here another time, so a last snapshot is taken; without one this is the end,
    /// and nothing stays open.
    pub(super) fn end(&mut self) -> bool {
        let (started, asked) = match self.ending {
            Some(ending) => ending,
            None => {
                // Closed to the sources by now: what is in the queues is all there is.
                while let Ok(arrival) = self.ends.arrivals.usual.try_recv() {
                    self.take(arrival);
                }
                while let Ok(arrival) = self.ends.arrivals.reports.try_recv() {
                    self.take(arrival);
                }
                self.take_controls();
                (clock::instant(), false)
            }
        };
        let pending = std::mem::take(&mut self.pending);
        let Some(durable) = &self.ends.durable else {
            self.ends.close(pending, Close::Last);
            return false;
        };
        let free = !durable.snapshot_busy.load(Ordering::Acquire);
        if asked && free {
            return false;
        }
        if clock::since(started) >= durable.stop_within {
            tracing::warn!(
                last_tick = self.ends.last,
                decided = self.ends.decided.load(Ordering::Acquire),
                "no last snapshot within state.stop_within: the next start replays more of the \
                 journal, which is complete",
            );
            return false;
        }
        let kind = if !asked && free { Close::Snapshot } else { Close::Usual };
        self.ending = Some((started, asked || kind == Close::Snapshot));
        self.ends.close(pending, kind).is_some()
    }
}

impl Ends {
    fn has_room(&self) -> bool {
        let journal = self.durable.as_ref().is_none_or(|durable| !durable.journal.is_full());
        journal && self.queue.has_room()
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
