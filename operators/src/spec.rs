//! What the graph computes, as plain checked data. `pipeline` fills it from the configuration.

use std::sync::Arc;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::anomaly::AnomalySpec;
use crate::estimate::Prior;
use crate::fatigue::FatigueSpec;
use crate::maturity::MaturitySpec;
use crate::model::{AttributionRule, DAY_US, EventTime, HOUR_US, Level, MAX_WINDOWS, WindowSpec};
use crate::rolling::calendar::Panes;

/// What becomes of the rows that close at pane ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PaneRows {
    /// They are only counted.
    #[default]
    Count,
    /// They leave the graph, for the `features` history.
    Emit,
}

/// When entities are evaluated, that is: when their feature row enters a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cadence {
    /// Length of an entity's periods, which begin at a phase of its own. A changed entity is evaluated
    /// at the tick of the change if it was not yet in this period, otherwise when the next begins.
    pub busy_ms: u64,
    /// An entity that does not change is evaluated this often, at a phase of its own.
    pub idle_ms: u64,
}

/// The graph's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeatureSpec {
    /// Rolling windows, at most [`MAX_WINDOWS`].
    pub windows: Vec<WindowSpec>,
    /// Levels to keep features of.
    pub levels: Vec<Level>,
    /// Frames for the decision stage; `None` for none (features history only).
    pub cadence: Option<Cadence>,
    /// Rows that close at pane ends.
    pub pane_rows: PaneRows,
    /// Whether accepted events leave the graph, for the `events` history.
    pub emit_events: bool,
    /// Days of reach and frequency; 0 keeps no sketches.
    pub reach_days: i64,
    /// Prior of the click-through rate where siblings tell nothing.
    pub ctr_prior: Prior,
    /// Prior of the conversion rate where siblings tell nothing.
    pub cvr_prior: Prior,
    /// Fatigue.
    pub fatigue: FatigueSpec,
    /// Anomaly.
    pub anomaly: AnomalySpec,
    /// Completeness of reported conversions.
    pub maturity: MaturitySpec,
    /// Intake.
    pub intake: IntakeSpec,
    /// Which attribution window's conversions feed the features; the platform's own without a rule.
    pub attribution: Vec<AttributionRule>,
    /// Bytes of state that may leave each operator for every millisecond between ticks, while the
    /// state is exported.
    pub export_bytes_per_ms: usize,
}

/// What is held and what is refused at intake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntakeSpec {
    /// Events up to this far ahead of the tick are held until their time comes; beyond it refused.
    pub future_skew_us: i64,
    /// A click or conversion of a creative never seen delivering waits this long for it.
    pub entity_grace_us: i64,
    /// Event ids are remembered at least this long and at most twice as long, unless there are too
    /// many of them. An id that comes again after it was forgotten is accepted as new.
    pub dedup_horizon_us: i64,
    /// Event ids remembered on all workers together; the oldest are forgotten before their time.
    pub dedup_ids_max: u64,
    /// Report rows about intervals that began longer ago than this are refused.
    pub restatement_horizon_us: i64,
}

impl Default for IntakeSpec {
    fn default() -> Self {
        IntakeSpec {
            future_skew_us: 5 * 60_000_000,
            entity_grace_us: 10 * 60_000_000,
            dedup_horizon_us: 24 * HOUR_US,
            dedup_ids_max: 20_000_000,
            restatement_horizon_us: 100 * DAY_US,
        }
    }
}

impl Default for FeatureSpec {
    fn default() -> Self {
        let hop = |text: &str| text.parse().unwrap_or(WindowSpec::Day);
        FeatureSpec {
            windows: vec![
                hop("1h/1m"),
                hop("24h/15m"),
                hop("7d/2h"),
                hop("28d/6h"),
                WindowSpec::Day,
            ],
            levels: Level::ALL.to_vec(),
            cadence: Some(Cadence { busy_ms: 1_000, idle_ms: 15 * 60_000 }),
            pane_rows: PaneRows::Count,
            emit_events: false,
            reach_days: 7,
            ctr_prior: Prior { mean: 0.01, trials: 200.0 },
            cvr_prior: Prior { mean: 0.03, trials: 30.0 },
            fatigue: FatigueSpec::default(),
            anomaly: AnomalySpec::default(),
            maturity: MaturitySpec::default(),
            intake: IntakeSpec::default(),
            attribution: Vec::new(),
            export_bytes_per_ms: 64 << 10,
        }
    }
}

/// Windows whose panes are at least this long carry the whole feature row (see
/// [`crate::model::PaneBatch`]).
const SLOW_PANE_US: i64 = 2 * HOUR_US;

impl FeatureSpec {
    /// The problem with this specification, if there is one.
    pub fn problem(&self) -> Option<String> {
        if self.windows.is_empty() || self.windows.len() > MAX_WINDOWS {
            return Some(format!(
                "features.windows has {} windows: give 1 to {MAX_WINDOWS}",
                self.windows.len()
            ));
        }
        if self.levels.is_empty() {
            return Some("features.levels is empty: give at least one level".to_owned());
        }
        let duplicate =
            (1..self.windows.len()).find(|at| self.windows[..*at].contains(&self.windows[*at]));
        duplicate.map(|at| format!("features.windows has `{}` twice", self.windows[at]))
    }

    /// The grain in which deltas are gathered before they enter any window: it divides every pane
    /// and every possible local midnight.
    pub fn base_pane_us(&self) -> i64 {
        self.windows.iter().map(grain_us).fold(0, gcd)
    }

    /// The grain in which deltas are gathered for the windows whose panes are longer than the base
    /// pane (those `true` in the list), as a number of base panes.
    pub(crate) fn coarse_grain(&self) -> (i64, Vec<bool>) {
        let base = self.base_pane_us();
        let coarse = |window: &WindowSpec| grain_us(window) > base;
        let grain = self.windows.iter().filter(|window| coarse(window)).map(grain_us).fold(0, gcd);
        (grain / base.max(1), self.windows.iter().map(coarse).collect())
    }

    /// The earliest instant by which every window has closed a pane end after `time`, in each of
    /// the time zones.
    pub fn all_closed_after(&self, time: EventTime, zones: &[Arc<TimeZone>]) -> EventTime {
        let utc = [Arc::new(TimeZone::UTC)];
        let zones = if zones.is_empty() { &utc } else { zones };
        let ends = self.windows.iter().flat_map(|window| {
            zones.iter().map(move |zone| {
                let mut panes = Panes::new(window, zone);
                let pane = panes.of(time);
                panes.start(pane + 1)
            })
        });
        ends.max().unwrap_or(time)
    }

    /// Width of the widest window in µs.
    pub fn widest_us(&self) -> i64 {
        self.windows.iter().map(WindowSpec::width_us).max().unwrap_or(0)
    }

    /// Position of the widest window: shrunk rates are formed over it.
    pub fn widest(&self) -> usize {
        let widest = self.widest_us();
        self.windows.iter().position(|window| window.width_us() == widest).unwrap_or(0)
    }

    pub(crate) fn is_slow(&self, window: usize) -> bool {
        match self.windows[window] {
            WindowSpec::Hop { pane, .. } => pane.us() >= SLOW_PANE_US,
            WindowSpec::Day => true,
        }
    }

    pub(crate) fn keeps(&self, level: Level) -> bool {
        self.levels.contains(&level)
    }
}

/// What divides every pane end of a window.
fn grain_us(window: &WindowSpec) -> i64 {
    match window {
        WindowSpec::Hop { pane, .. } => pane.us(),
        WindowSpec::Day => HOUR_US / 4,
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
