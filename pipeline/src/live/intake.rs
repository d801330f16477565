//! The bounded door of a live engine: sources put batches in, the ingest loop takes them out.
//!
//! There are two lanes. Report rows come in floods, when weeks are read again, and each may touch
//! weeks of windows; so that events do not wait behind them, what brings report rows has a lane of
//! its own, of which a tick takes little. What must keep its order with the rest of its source (it
//! says where to read on, or moves the clock) stays in the usual lane all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use omnify_decision::control::Control;
use omnify_operators::model::Tick;
use omnify_sinks::journal::{BatchKey, Position};
use omnify_sinks::serve::Watermarks;

use crate::decode::Batch;
use crate::durable::Receipt;

/// Batches that may wait, whatever their size.
const BATCHES_MAX: usize = 1_024;
/// How often a source that waits for room looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What a source read, to enter at the next tick.
#[derive(Debug, Default)]
pub struct Arrival {
    /// Decoded rows.
    pub batch: Batch,
    /// Settings that a platform reported, and the like.
    pub controls: Vec<Control>,
    /// When the rows arrived, where latency is measured.
    pub arrived: Option<Instant>,
    /// When the reading of `controls` began: an acknowledgement that came after it knows better. What
    /// is known already is left out, so a reader tells everything.
    pub observed: Option<Instant>,
    /// Up to when the source's numbers are complete, if it knows.
    pub watermarks: Option<Watermarks>,
    /// Where the partitions that were read are to be read on.
    pub positions: Vec<Position>,
    /// The sender's name for the rows, if they have one.
    pub key: Option<BatchKey>,
    /// Told when the rows are on disk.
    pub receipt: Option<Receipt>,
    /// Simulated time: nothing before this tick is outstanding, so the clock moves there.
    pub known_until: Option<Tick>,
}

impl Arrival {
    /// Its lane.
    fn lane(&self) -> usize {
        let in_order = !self.positions.is_empty() || self.known_until.is_some();
        if self.batch.reports.is_empty() || in_order { USUAL } else { REPORTS }
    }
}

const USUAL: usize = 0;
const REPORTS: usize = 1;

/// The sources' end. Clones share the bound.
#[derive(Clone)]
pub struct Intake {
    lanes: [Sender<Arrival>; 2],
    shared: Arc<Shared>,
}

struct Shared {
    /// Rows that wait in each lane.
    rows: [AtomicUsize; 2],
    rows_max: usize,
    /// What an earlier process left is still being worked through.
    recovering: AtomicBool,
    closed: AtomicBool,
    /// The last closed tick.
    tick: AtomicU64,
}

/// The ingest loop's end.
pub(crate) struct Arrivals {
    pub(crate) usual: Receiver<Arrival>,
    pub(crate) reports: Receiver<Arrival>,
    shared: Arc<Shared>,
}

/// A door for about `rows_max` rows in each lane: it is shut while that many wait, so that at most one
/// batch of each source goes beyond.
pub(crate) fn channel(rows_max: usize) -> (Intake, Arrivals) {
    let [(to_usual, usual), (to_reports, reports)] = [(); 2].map(|()| bounded(BATCHES_MAX));
    let (rows, closed) = (Default::default(), AtomicBool::new(false));
    let (recovering, tick) = (AtomicBool::new(false), AtomicU64::new(0));
    let shared = Arc::new(Shared { rows, rows_max, recovering, closed, tick });
    let intake = Intake { lanes: [to_usual, to_reports], shared: shared.clone() };
    (intake, Arrivals { usual, reports, shared })
}

impl Intake {
    /// True while nothing more should be read: the engine is behind, or not yet where it was.
    pub fn is_full(&self) -> bool {
        self.is_lane_full(USUAL)
    }

    /// True while `arrival` had better wait.
    pub fn is_full_for(&self, arrival: &Arrival) -> bool {
        self.is_lane_full(arrival.lane())
    }

    fn is_lane_full(&self, lane: usize) -> bool {
        self.lanes[lane].is_full()
            || self.is_recovering()
            || self.shared.rows[lane].load(Ordering::Acquire) >= self.shared.rows_max
    }

    /// True while what an earlier process took in is not known entirely.
    pub(super) fn is_recovering(&self) -> bool {
        self.shared.recovering.load(Ordering::Acquire)
    }

    /// True when nothing is taken in any more.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    /// Rows that wait.
    pub fn rows(&self) -> usize {
        self.shared.rows.iter().map(|rows| rows.load(Ordering::Acquire)).sum()
    }

    /// The last closed tick. Where the wall clock was set back it is the engine's time.
    pub fn tick(&self) -> Tick {
        self.shared.tick.load(Ordering::Acquire)
    }

    /// Rows from which on nothing more should be read.
    pub fn rows_max(&self) -> usize {
        self.shared.rows_max
    }

    /// Waits for room, then hands over. False, and nothing taken, when the engine is closed.
    pub fn send(&self, arrival: Arrival) -> bool {
        while self.is_full_for(&arrival) && !self.is_closed() {
            std::thread::sleep(LOOK_AGAIN);
        }
        self.put(arrival)
    }

    /// Hands over what was read while there was room. False, and nothing taken, when the engine is
    /// closed.
    pub(crate) fn put(&self, arrival: Arrival) -> bool {
        if self.is_closed() {
            return false;
        }
        let rows = usize::try_from(arrival.batch.rows).unwrap_or(usize::MAX);
        let lane = arrival.lane();
        self.shared.rows[lane].fetch_add(rows, Ordering::AcqRel);
        self.lanes[lane].send(arrival).is_ok()
    }

    /// Takes nothing in while `recovering`.
    pub(super) fn recover(&self, recovering: bool) {
        self.shared.recovering.store(recovering, Ordering::Release);
    }

    /// A source broke and nothing more will come of it: takes nothing in any more.
    pub fn fail(&self) {
        self.close();
    }

    /// Takes nothing in any more.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
    }
}

impl Arrivals {
    /// Rows of `arrival` wait no longer.
    pub(crate) fn took(&self, arrival: &Arrival) {
        let rows = usize::try_from(arrival.batch.rows).unwrap_or(usize::MAX);
        self.shared.rows[arrival.lane()].fetch_sub(rows, Ordering::AcqRel);
    }

    /// The tick is closed.
    pub(crate) fn closed(&self, tick: Tick) {
        self.shared.tick.store(tick, Ordering::Release);
    }

    /// Rows that one tick takes at most; a larger batch is a tick of its own.
    pub(super) fn rows_max(&self) -> usize {
        self.shared.rows_max
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
    }
}
