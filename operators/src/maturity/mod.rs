//! How complete reported conversions are, and what they will come to.
//!
//! Platforms count a conversion on the day of its click and go on doing so for weeks, so the newest
//! days of a report always look worse than they are. For each account this learns a *completeness
//! curve* `C(a)`: the share of a click day's final conversions that is reported by age `a`, in whole
//! days since the end of the day. With it, the clicks of a window are weighted by `C` of their day
//! ([`Weighed`]), which makes conversion rates comparable, and the rest is predicted ([`nowcast`]).
//!
//! ```text
//! differences of reports ─► Said (per account: day, age, conversions) ─broadcast─► Learner ─► Curve
//!                                                 open click days ─ settle ─► learned sums
//! ```
//!
//! # What teaches it
//! Restated reports only: an event carries no time of its click, and a conversion event is complete
//! the moment it happens. What is learned from are the differences that restatements make, not the
//! rows, because differences are what a record keeps: a replay learns the same. So the age of a
//! conversion is that at which *the engine* came to know it, reading delays included.
//!
//! An account that sends events has no curve, and its conversions count as they are. An account that
//! sends reports has none either until a conversion of an earlier day comes late, on it or on
//! another account of its platform and tenant: many report feeds never restate. From then on its
//! curve is what its settled click days showed, shrunk toward what those of its platform did, and
//! that toward the configured prior. Tenants do not learn from one another.
//!
//! # Contract
//! - Sums are integers and add up in any order, so it makes no difference on which workers rows
//!   arrive; a curve is a function of what was said at the ticks before.
//! - Age is counted up to the newest report of the account, never by a clock: an account that falls
//!   silent does not mature.
//! - Days are those of the account's time zone. `C(a)` is what was known in the whole of the
//!   (a+1)-th day after: within a day it is up to one day's growth too high, which over a window of
//!   weeks is a per cent or two.
//! - What comes after a day has left the widest window counts nowhere, and is not waited for.
//! - A curve whose newest residual is far from what it predicts is *broken* (a tracking outage, an
//!   import, another attribution window): it is still used, and says so.
//! - State is bounded: [`AGES`] numbers and at most as many open days for each account.

mod learn;
mod nowcast;

use serde::{Deserialize, Serialize};

pub use self::learn::{Learner, Said, Sayings};
pub use self::nowcast::{Weighed, nowcast};
use crate::model::{DAY_US, EventTime};

/// Ages that are told apart, in days; everything older is final.
pub const AGES: usize = 36;

/// One, in the unit of shares.
pub(crate) const ONE_PPM: i64 = 1_000_000;

/// A click day counts as final from the age at which this much of it is reported.
const FINAL_PPM: i64 = 990_000;

/// How completeness is learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaturitySpec {
    /// Off: reported conversions count as they are.
    pub enabled: bool,
    /// Age at which a click day is final, in days, below [`AGES`].
    pub settle_days: i64,
    /// Prior: share of the conversions that is reported within a day of the click day's end.
    pub prior_first_day: f64,
    /// Prior: mean delay of the others, in days.
    pub prior_mean_days: f64,
    /// Settled click days that an account's curve is the average of, the newest weighing most.
    pub memory_days: i64,
    /// Conversions that the platform's curve weighs against the account's own, and the prior
    /// against the platform's.
    pub shrink_conversions: i64,
    /// Residual, in standard deviations, from which a curve is broken.
    pub break_score: f64,
}

impl Default for MaturitySpec {
    fn default() -> Self {
        MaturitySpec {
            enabled: true,
            settle_days: 28,
            prior_first_day: 0.7,
            prior_mean_days: 3.0,
            memory_days: 28,
            shrink_conversions: 50,
            break_score: 4.0,
        }
    }
}

impl MaturitySpec {
    /// The prior curve, by age.
    fn prior(&self) -> [i64; AGES] {
        std::array::from_fn(|age| {
            let late = (1.0 - self.prior_first_day) * (-(age as f64) / self.prior_mean_days).exp();
            let settled = age as i64 >= self.settle_days;
            if settled { ONE_PPM } else { ((1.0 - late) * ONE_PPM as f64).round() as i64 }
        })
    }
}

/// The completeness curve of one account as of a tick.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// When the account's reports last said something new.
    pub fresh_us: EventTime,
    /// Click days that ended by then are final.
    pub settled_us: EventTime,
    /// The local day of `fresh_us`, and what was added to UTC for it.
    day: i64,
    offset_us: i64,
    /// Share of the final conversions that is reported, and its standard error, by age.
    by_age: [(i64, i64); AGES],
    /// How far the late conversions of the newest whole day were from what was predicted, in
    /// standard deviations; below 0 when fewer came.
    pub residual: f64,
    /// The residual is beyond what can be chance.
    pub broken: bool,
}

impl Curve {
    fn new(
        (fresh_us, day, offset_us): (EventTime, i64, i64),
        by_age: [(i64, i64); AGES],
        (residual, broken): (f64, bool),
    ) -> Curve {
        let open = by_age.iter().rposition(|(share, _)| *share < FINAL_PPM);
        let settled_day = day - open.map_or(0, |age| age as i64 + 1);
        let settled_us = settled_day * DAY_US - offset_us;
        Curve { fresh_us, settled_us, day, offset_us, by_age, residual, broken }
    }

    /// The local day that holds an instant, but for the hour by which clocks may have changed since.
    pub fn day_of(&self, time: EventTime) -> i64 {
        (time + self.offset_us).div_euclid(DAY_US)
    }

    /// Share of the final conversions of click day `day` that is reported, and its standard error,
    /// in millionths.
    pub fn of_day(&self, day: i64) -> (i64, i64) {
        self.by_age[age_of(day, self.day).clamp(0, AGES as i64 - 1) as usize]
    }

    /// Share of the final conversions that is reported at an age, in millionths.
    pub fn share_ppm(&self, age: usize) -> i64 {
        self.by_age[age.min(AGES - 1)].0
    }
}

/// Whole days from the end of day `day` to day `today`; below 0 while the day goes on.
fn age_of(day: i64, today: i64) -> i64 {
    today - day - 1
}
