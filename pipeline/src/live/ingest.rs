//! The loop that closes ticks: what arrived since the last one enters at the next.
//!
//! A tick is closed every `engine.tick` of real time while there is anything, and at least every
//! 100 ms on the system clock, so that windows and timers move on. Its number is the clock's, or one
//! more than the last where the clock has not moved. In simulated time the arrivals move the clock,
//! so a tick is never before the events in it.
//!
//! When the workers are behind, nothing more is taken from the sources until they have caught up.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};
use omnify_decision::control::Control;
use omnify_operators::model::{EntityKey, Event, ReportRow, Tick};
use omnify_sinks::telemetry::events;

use super::intake::{Arrival, Arrivals};
use crate::clock::{self, Clock};
use crate::engine::Note;
use crate::engine::feed::{LiveQueue, TickBatch};

/// Longest time without a tick, on the system clock.
const IDLE: Duration = Duration::from_millis(100);
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
}

/// What enters at the next tick.
#[derive(Default)]
struct Pending {
    events: Vec<Vec<Event>>,
    reports: Vec<ReportRow>,
    note: Note,
    any: bool,
}

impl Ingest {
    /// Runs until stopped, or until the engine is gone. `controls` enter at the first tick.
    pub(super) fn run(mut self, controls: Vec<Control>) {
        let mut pending = Pending { any: true, ..Pending::default() };
        pending.note.controls = controls;
        let mut acknowledged = HashMap::new();
        let (mut last, mut closed, mut ticks) = (0, clock::instant(), 0_u64);
        let (no_arrivals, no_controls) = (never(), never());
        loop {
            let room = self.queue.has_room();
            let full = pending.note.rows >= self.arrivals.rows_max() as u64;
            let taking = room && !full;
            let arrivals = if taking { &self.arrivals.queue } else { &no_arrivals };
            let (outcomes, inputs) =
                if room { (&self.outcomes, &self.inputs) } else { (&no_controls, &no_controls) };
            let every = if pending.any { self.tick_every } else { IDLE };
            let wait = match room {
                true => every.saturating_sub(closed.elapsed()),
                false => LOOK_AGAIN,
            };
            select! {
                recv(arrivals) -> arrival => if let Ok(arrival) = arrival {
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
                    self.close(pending, last, true);
                    return;
                }
                default(wait) => {}
            }
            let idle = !pending.any && matches!(self.clock, Clock::Manual(_));
            let every = if pending.any { self.tick_every } else { IDLE };
            if idle || closed.elapsed() < every || !self.queue.has_room() {
                continue;
            }
            closed = clock::instant();
            match self.close(std::mem::take(&mut pending), last, false) {
                Some(tick) => last = tick,
                None => return,
            }
            ticks += 1;
            if ticks % SAMPLE_TICKS == 0 {
                let depth = self.queue.depth();
                events::QueueSampled { queue: "ticks", depth }.emit();
                let depth = self.arrivals.queue.len();
                events::QueueSampled { queue: "arrivals", depth }.emit();
            }
        }
    }

    fn take(
        &self,
        arrival: Arrival,
        pending: &mut Pending,
        acknowledged: &HashMap<EntityKey, Instant>,
    ) {
        self.arrivals.took(&arrival);
        let Arrival { batch, controls, arrived, observed, watermarks, known_until, .. } = arrival;
        if let Some(tick) = known_until {
            self.clock.advance(tick);
        }
        pending.any = true;
        if !batch.events.is_empty() {
            pending.events.push(batch.events);
        }
        pending.reports.extend(batch.reports);
        let fresh = controls.into_iter().filter(|control| match (control, observed) {
            (Control::Observe { entity, .. }, Some(observed)) => {
                acknowledged.get(entity).is_none_or(|at| *at < observed)
            }
            _ => true,
        });
        pending.note.merge(Note {
            rows: batch.rows,
            ignored: batch.ignored,
            dead: batch.dead,
            controls: fresh.collect(),
            watermarks,
            arrived,
            expected: None,
        });
    }

    fn drain(&self, pending: &mut Pending, acknowledged: &mut HashMap<EntityKey, Instant>) {
        while let Ok(arrival) = self.arrivals.queue.try_recv() {
            self.take(arrival, pending, acknowledged);
        }
        for control in self.outcomes.try_iter().chain(self.inputs.try_iter()) {
            note(control, pending, acknowledged);
        }
    }

    /// Hands over the tick; `None` when the engine is gone.
    fn close(&self, pending: Pending, last_tick: Tick, last: bool) -> Option<Tick> {
        let tick = self.clock.now().max(last_tick + 1);
        let Pending { events, reports, mut note, .. } = pending;
        note.dead.iter_mut().for_each(|letter| letter.tick = tick);
        self.queue.close(TickBatch { tick, events, reports, note, last }).then_some(tick)
    }
}

/// Takes a control; remembers when an owner's action ended.
fn note(control: Control, pending: &mut Pending, acknowledged: &mut HashMap<EntityKey, Instant>) {
    if let Control::Acknowledge { owner, .. } = &control {
        acknowledged.insert(owner.clone(), clock::instant());
    }
    pending.any = true;
    pending.note.controls.push(control);
}
