//! What comes out: the features of an entity as of a tick, gathered into complete frames.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{EntityId, EntityInfo, EventTime, Stats, Tick};

/// Most rolling windows a configuration may have.
pub const MAX_WINDOWS: usize = 8;

/// An empirical-Bayes shrunk rate with its 90 % credible interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Posterior mean.
    pub mean: f64,
    /// 5 % quantile of the posterior.
    pub low: f64,
    /// 95 % quantile of the posterior.
    pub high: f64,
    /// Successes behind it (clicks for CTR, conversions for CVR).
    pub successes: i64,
    /// Trials behind it (impressions for CTR, clicks for CVR).
    pub trials: i64,
}

/// Unique users and how often each saw the entity, over the configured number of days.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reach {
    /// Estimated unique users (HyperLogLog).
    pub users: f64,
    /// Impressions with a known user, per unique user; 0 without any.
    pub frequency: f64,
}

/// How worn out an entity is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FatigueState {
    /// Too few clicks for a baseline or for a comparison with it.
    #[default]
    Insufficient,
    /// Response is within its baseline.
    Fresh,
    /// Response fell below the onset ratio with the required probability and has not recovered.
    WearingOut,
}

impl FatigueState {
    /// The name used in API and history.
    pub const fn name(self) -> &'static str {
        match self {
            FatigueState::Insufficient => "insufficient",
            FatigueState::Fresh => "fresh",
            FatigueState::WearingOut => "wearing_out",
        }
    }
}

/// Response (CTR) against the entity's own mature baseline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fatigue {
    /// Verdict with hysteresis.
    pub state: FatigueState,
    /// Baseline CTR; 0 until it is mature.
    pub baseline_ctr: f64,
    /// Recent CTR over baseline CTR; 1 while unknown.
    pub ratio: f64,
    /// Posterior probability that the true ratio is below the onset ratio (0.8).
    pub probability: f64,
    /// Change of ln CTR per day over the recent days.
    pub slope_per_day: f64,
    /// Predicted days until the ratio falls below the onset ratio: 0 once it has, `None` when the
    /// response does not fall within a year or there is no baseline.
    pub days_to_onset: Option<f64>,
}

/// How unusual the newest closed pane of delivery is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Anomaly {
    /// Robust score, in scale units of the tail; 0 is usual.
    pub score: f64,
    /// True while the score exceeds the alarm threshold.
    pub alarm: bool,
}

/// An amount that is not known yet, with its 90 % interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// Mean.
    pub mean: f64,
    /// 5 % quantile.
    pub low: f64,
    /// 95 % quantile.
    pub high: f64,
}

/// How much of what the clicks of the longest window bring is reported already, and what it will
/// come to ([`crate::maturity`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Maturity {
    /// Share of the final conversions that is reported, by the account's curve and the age of the
    /// clicks; 1 when nothing is to come.
    pub share: f64,
    /// Standard error of `share`, relative to it.
    pub error: f64,
    /// Conversions of the window in the end.
    pub conversions: Expected,
    /// Revenue of the window in the end, in micros.
    pub revenue_micros: Expected,
    /// When the account's reports last said something new.
    pub fresh_us: EventTime,
    /// Clicks up to then have brought what they will bring.
    pub settled_us: EventTime,
    /// Late conversions of the account's newest whole day against what its curve predicted, in
    /// standard deviations.
    pub residual: f64,
    /// The residual is beyond chance: the curve does not hold at the moment.
    pub broken: bool,
}

impl Maturity {
    /// Its fractions, in the order of the columns of the history.
    pub fn fractions(&self) -> [f64; 9] {
        let Maturity { share, error, conversions, revenue_micros, residual, .. } = *self;
        let [a, b] = [conversions, revenue_micros].map(|of| [of.mean, of.low, of.high]);
        [share, error, a[0], a[1], a[2], b[0], b[1], b[2], residual]
    }
}

/// All features of one entity as of one tick.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeatureRow {
    /// The entity.
    pub entity: EntityId,
    /// As of when.
    pub tick: Tick,
    /// Sums per configured window, in the order of the configuration.
    pub windows: [Stats; MAX_WINDOWS],
    /// Shrunk click-through rate over the longest window.
    pub ctr: Estimate,
    /// Shrunk conversion rate over the longest window. Where there is a `maturity`, its trials are
    /// clicks weighted by completeness.
    pub cvr: Estimate,
    /// Reach and frequency.
    pub reach: Reach,
    /// Creative fatigue.
    pub fatigue: Fatigue,
    /// Anomaly of delivery.
    pub anomaly: Anomaly,
    /// Where conversions are reported late: how late, and what to expect. `None` where they count
    /// as they are, and for tenants, whose accounts each have a curve of their own.
    pub maturity: Option<Maturity>,
}

/// The final sums of one window at one pane end: a row of the `features` history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaneRow {
    /// The entity.
    pub entity: EntityId,
    /// Position of the window in the configuration.
    pub window: u8,
    /// The pane end `e`; the window covers `[e − width, e)`.
    pub window_end: EventTime,
    /// Sums over the window, never all zero.
    pub sums: Stats,
    /// Tick at which the row was closed: deltas of later ticks are not in it.
    pub tick: Tick,
}

/// Rows closed together, for the `features` history.
///
/// Rows of slow windows (panes of two hours and more, and `day`) carry the entity's whole feature
/// row besides the sums; rows of fast windows do not, as the derived features move slowly.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PaneBatch {
    /// The closed rows.
    pub rows: Vec<PaneRow>,
    /// Position in `rows`, ascending, and the feature row that goes with it.
    pub features: Vec<(u32, FeatureRow)>,
}

/// Every row that changed at one tick, complete: the dataflow has passed the tick.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// The tick.
    pub tick: Tick,
    /// Rows in the order of [`EntityInfo::order`] (then key), at most one for each entity.
    pub rows: Vec<(Arc<EntityInfo>, FeatureRow)>,
}
