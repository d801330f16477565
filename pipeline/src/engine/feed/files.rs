//! Foreign files: ticks follow event time, rounded up to a grain.

use std::sync::Arc;
use std::sync::Mutex;

use jiff::tz::TimeZone;
use omnify_operators::graph::{Graph, Mark};
use omnify_operators::model::{Event, EventTime, ReportRow, Tick, tick_of_us};
use omnify_operators::spec::FeatureSpec;

use super::{Fed, Feed};
use crate::decode::Batch;
use crate::engine::note::{Note, Notes};
use crate::source::{Reorder, Source};

/// Shared by the feeds of one run: the last to finish announces the last tick.
pub struct Finish {
    state: Mutex<(usize, EventTime)>,
    grain_ms: u64,
    spec: Arc<FeatureSpec>,
    zones: Vec<Arc<TimeZone>>,
}

impl Finish {
    /// For `feeds` feeds whose ticks are multiples of `grain_ms`; `zones` are those of all accounts.
    pub fn new(
        feeds: usize,
        grain_ms: u64,
        spec: Arc<FeatureSpec>,
        zones: Vec<Arc<TimeZone>>,
    ) -> Arc<Finish> {
        Arc::new(Finish { state: Mutex::new((feeds, EventTime::MIN)), grain_ms, spec, zones })
    }

    /// One feed is done; `newest` is the greatest time it delivered. The last one gets the last
    /// tick: the first at which every window has closed a pane end after the newest event.
    fn done(&self, newest: EventTime) -> Option<Tick> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.0 -= 1;
        state.1 = state.1.max(newest);
        (state.0 == 0).then(|| {
            if state.1 == EventTime::MIN {
                return self.grain_ms;
            }
            self.tick_of(self.spec.all_closed_after(state.1, &self.zones))
        })
    }

    fn tick_of(&self, time: EventTime) -> Tick {
        tick_of_us(time).next_multiple_of(self.grain_ms).max(self.grain_ms)
    }
}

/// Reads a [`Source`] whose rows are in time order, apart from late ones.
pub struct FileFeed {
    source: Option<Box<dyn Source>>,
    /// Puts slightly disordered rows in order of time.
    events: Reorder<Event>,
    reports: Reorder<ReportRow>,
    finish: Arc<Finish>,
    /// The account of rows without a time that have not entered yet.
    loose: Note,
    now: Tick,
    newest: EventTime,
    progress: Box<dyn Fn((u64, u64)) + Send>,
}

impl FileFeed {
    /// Up to `reorder_rows` rows are held back to put them in order. `progress` is told (bytes
    /// done, bytes in all) after each batch. A feed without a source only takes part in the finish.
    pub fn new(
        source: Option<Box<dyn Source>>,
        reorder_rows: usize,
        finish: Arc<Finish>,
        progress: Box<dyn Fn((u64, u64)) + Send>,
    ) -> FileFeed {
        let (events, reports) = (Reorder::new(reorder_rows), Reorder::new(reorder_rows));
        FileFeed {
            source,
            events,
            reports,
            finish,
            loose: Note::default(),
            now: 0,
            newest: EventTime::MIN,
            progress,
        }
    }

    fn batch(&mut self, batch: Batch, graph: &mut Graph, notes: &mut Notes) {
        // Rows that carry no time of their own enter with the next that does.
        self.loose.merge(Note {
            rows: batch.ignored + batch.dead.len() as u64,
            ignored: batch.ignored,
            dead: batch.dead,
            ..Note::default()
        });
        let mut reports = batch.reports.into_iter().peekable();
        let events = batch.events;
        let mut at = 0;
        while at < events.len() || reports.peek().is_some() {
            let next = match (events.get(at), reports.peek()) {
                (Some(event), Some(row)) => event.time.min(row.version.as_of),
                (Some(event), None) => event.time,
                (None, Some(row)) => row.version.as_of,
                (None, None) => break,
            };
            self.now = self.now.max(self.finish.tick_of(next));
            let until = omnify_operators::model::us_of_tick(self.now);
            let rest = &events[at..];
            let end = at + rest.iter().position(|event| event.time > until).unwrap_or(rest.len());
            let due: Vec<ReportRow> =
                std::iter::from_fn(|| reports.next_if(|row| row.version.as_of <= until)).collect();
            let newest = events[at..end]
                .iter()
                .map(|event| event.time)
                .chain(due.iter().map(|row| row.version.as_of - 1))
                .max();
            self.newest = self.newest.max(newest.unwrap_or(EventTime::MIN));
            let rows = (end - at + due.len()) as u64;
            self.send(&events[at..end], due, graph);
            let note = notes.entry(self.now).or_default();
            note.merge(Note { rows, ..Note::default() });
            note.merge(stamped(&mut self.loose, self.now));
            at = end;
        }
    }

    fn send(&self, events: &[Event], reports: Vec<ReportRow>, graph: &mut Graph) {
        super::send(graph, self.now, events.to_vec(), Mark::default());
        for row in reports {
            graph.reports.send(row);
        }
    }
}

/// Takes the loose rows; their dead letters get the tick at which they enter.
fn stamped(loose: &mut Note, tick: Tick) -> Note {
    let mut note = std::mem::take(loose);
    note.dead.iter_mut().for_each(|letter| letter.tick = tick);
    note
}

impl Feed for FileFeed {
    fn feed(&mut self, graph: &mut Graph, notes: &mut Notes) -> anyhow::Result<Fed> {
        let next = match &mut self.source {
            Some(source) => {
                let next = source.next_batch();
                (self.progress)(source.progress());
                next
            }
            None => Ok(None),
        };
        let failed = match next {
            Ok(Some(mut batch)) => {
                batch.events = self.events.push(batch.events);
                batch.reports = self.reports.push(batch.reports);
                self.batch(batch, graph, notes);
                return Ok(Fed::Some);
            }
            Ok(None) => Ok(Fed::End),
            // What was read before the damage is kept and closed like a whole file.
            Err(error) => Err(error.into()),
        };
        let (events, reports) = (self.events.finish(), self.reports.finish());
        self.batch(Batch { events, reports, ..Batch::default() }, graph, notes);
        if self.loose.rows > 0 {
            // Not a single row after these had a time: they enter at the newest tick there is.
            self.now = self.now.max(self.finish.grain_ms);
            super::send(graph, self.now, Vec::new(), Mark::default());
            notes.entry(self.now).or_default().merge(stamped(&mut self.loose, self.now));
        }
        if let Some(last) = self.finish.done(self.newest) {
            let last = last.max(self.now);
            super::send(graph, last, Vec::new(), Mark { last: true, ..Mark::default() });
            notes.entry(last).or_default();
        }
        graph.advance_to(Tick::MAX);
        failed
    }
}
