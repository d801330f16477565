//! What enters and leaves the graph beside the data: announcements of ticks, and parts of output.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::intake::Refusal;
use crate::model::{Event, FeatureRow, PaneBatch, ReportRow, Tick};
use crate::rolling::TickRows;
use crate::state::StateItem;

/// The announcement of a tick. Those of one tick are merged, whoever sent them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// No tick follows.
    pub last: bool,
    /// The state right after this tick is to be exported, over the ticks that follow (at this very
    /// tick when it is the last). A mark during an export abandons it and begins anew, on every
    /// worker alike: wait for [`Part::state_done`] of all of them.
    pub snapshot: bool,
    /// The items on the restore input at this tick are the state right after it. It must be the
    /// first tick of the graph, and nothing else may enter at it.
    pub restored: bool,
    /// Events with an id that enter at this tick, on all workers.
    pub ids: u64,
    /// How far evaluations are put off because the engine is behind: 0 not at all, from 1 on those
    /// of creatives and ad groups, from 2 on those of entities that did not change, from 3 on those
    /// of campaigns that are not spending.
    pub calm: u8,
}

impl Mark {
    /// Both announcements of one tick as one.
    pub fn merge(self, other: Mark) -> Mark {
        Mark {
            last: self.last | other.last,
            snapshot: self.snapshot | other.snapshot,
            restored: self.restored | other.restored,
            ids: self.ids + other.ids,
            calm: self.calm.max(other.calm),
        }
    }
}

/// Everything one worker's graph put out at one tick.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Part {
    /// The tick.
    pub tick: Tick,
    /// Rows of evaluated entities, unordered.
    pub rows: Vec<FeatureRow>,
    /// Rows closed at pane ends (empty when the spec only counts them).
    pub panes: Vec<PaneBatch>,
    /// Number of rows closed.
    pub panes_closed: u64,
    /// Accepted events (empty unless the spec asks for them).
    pub events: Vec<Vec<Event>>,
    /// Events featured at this tick.
    pub featured: u64,
    /// Report rows taken at this tick; what they changed is among `events`.
    pub reports: u64,
    /// Those of `reports` that stated what was known, something older, or nothing that counts.
    pub reports_unchanged: u64,
    /// Events that report rows became; none of them is refused.
    pub restated: u64,
    /// Events refused at this tick.
    pub refused: Vec<(Event, Refusal)>,
    /// Report rows refused at this tick, which `reports` does not count.
    pub refused_reports: Vec<(ReportRow, Refusal)>,
    /// Events still held after this tick.
    pub held: u64,
    /// Event ids remembered after this tick.
    pub ids_remembered: u64,
    /// Exported state.
    pub state: Vec<StateItem>,
    /// The tick of the export under way, up to and with the part that completes it.
    pub state_of: Option<Tick>,
    /// The export of this worker is complete with this part.
    pub state_done: bool,
    /// No row of a pane end up to this tick is still to be closed.
    pub settled: bool,
    /// Why the state that was to be restored at this tick cannot be: nothing that the graph puts
    /// out from here on means anything.
    pub restore_failed: Option<String>,
    /// Operators whose export is complete.
    exported: u8,
}

/// Operators that export.
const EXPORTERS: u8 = 5;

impl Part {
    pub(crate) fn take_rows(&mut self, done: TickRows) {
        self.rows.extend(done.rows);
        self.panes_closed += done.panes_closed;
        if !done.panes.rows.is_empty() {
            self.panes.push(done.panes);
        }
    }

    /// Takes a chunk of the export of one operator.
    pub(crate) fn take_state(&mut self, items: Vec<StateItem>, done: bool) {
        self.state.extend(items);
        self.exported += u8::from(done);
    }

    /// True when every operator's export is complete.
    pub(crate) fn all_exported(&self) -> bool {
        self.exported == EXPORTERS
    }
}

/// Where a worker's graph leaves its output, by tick.
#[derive(Clone, Default)]
pub struct Outbox(Rc<RefCell<BTreeMap<Tick, Part>>>);

impl Outbox {
    pub(crate) fn with(&self, tick: Tick, f: impl FnOnce(&mut Part)) {
        let mut parts = self.0.borrow_mut();
        f(parts.entry(tick).or_insert_with(|| Part { tick, ..Part::default() }));
    }

    /// Takes the oldest part if `complete` says that its tick is complete.
    pub fn pop(&self, complete: impl FnOnce(Tick) -> bool) -> Option<Part> {
        let mut parts = self.0.borrow_mut();
        let oldest = parts.first_entry().filter(|entry| complete(*entry.key()))?;
        Some(oldest.remove())
    }
}
