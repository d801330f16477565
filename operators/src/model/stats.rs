//! The additive metrics of advertising as one signed quantity.
//!
//! [`Stats`] is an Abelian group under addition: a delta, a pane, a window and a restatement are
//! all values of this one type, and every sum is exact because every field is an integer.

use differential_dataflow::difference::{Abelian, IsZero, Monoid, Multiply, Semigroup};
use serde::{Deserialize, Serialize};

/// Impressions, clicks, conversions and money; a difference when its fields may be negative.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Stats {
    /// Ads shown.
    pub impressions: i64,
    /// Clicks on them.
    pub clicks: i64,
    /// Conversions attributed to them.
    pub conversions: i64,
    /// Spend, in millionths of the account's currency.
    pub cost_micros: i64,
    /// Revenue attributed to them, in millionths of the account's currency.
    pub revenue_micros: i64,
}

impl Stats {
    /// The neutral element.
    pub const ZERO: Stats =
        Stats { impressions: 0, clicks: 0, conversions: 0, cost_micros: 0, revenue_micros: 0 };

    /// True when every field is zero.
    pub fn is_empty(&self) -> bool {
        *self == Stats::ZERO
    }

    /// Clicks per impression; `None` without impressions.
    pub fn ctr(&self) -> Option<f64> {
        ratio(self.clicks, self.impressions)
    }

    /// Conversions per click; `None` without clicks.
    pub fn cvr(&self) -> Option<f64> {
        ratio(self.conversions, self.clicks)
    }

    /// Cost per click in currency units; `None` without clicks.
    pub fn cpc(&self) -> Option<f64> {
        ratio(self.cost_micros, self.clicks).map(|micros| micros / 1e6)
    }

    /// Cost per thousand impressions in currency units; `None` without impressions.
    pub fn cpm(&self) -> Option<f64> {
        ratio(self.cost_micros, self.impressions).map(|micros| micros / 1e3)
    }

    /// Cost per conversion in currency units; `None` without conversions.
    pub fn cpa(&self) -> Option<f64> {
        ratio(self.cost_micros, self.conversions).map(|micros| micros / 1e6)
    }

    /// Revenue per cost; `None` without cost.
    pub fn roas(&self) -> Option<f64> {
        ratio(self.revenue_micros, self.cost_micros)
    }
}

fn ratio(numerator: i64, denominator: i64) -> Option<f64> {
    (denominator > 0).then(|| numerator as f64 / denominator as f64)
}

impl std::ops::AddAssign for Stats {
    #[inline]
    fn add_assign(&mut self, rhs: Stats) {
        self.impressions += rhs.impressions;
        self.clicks += rhs.clicks;
        self.conversions += rhs.conversions;
        self.cost_micros += rhs.cost_micros;
        self.revenue_micros += rhs.revenue_micros;
    }
}

impl std::ops::SubAssign for Stats {
    #[inline]
    fn sub_assign(&mut self, rhs: Stats) {
        self.impressions -= rhs.impressions;
        self.clicks -= rhs.clicks;
        self.conversions -= rhs.conversions;
        self.cost_micros -= rhs.cost_micros;
        self.revenue_micros -= rhs.revenue_micros;
    }
}

impl std::ops::Add for Stats {
    type Output = Stats;

    #[inline]
    fn add(mut self, rhs: Stats) -> Stats {
        self += rhs;
        self
    }
}

impl std::ops::Sub for Stats {
    type Output = Stats;

    #[inline]
    fn sub(mut self, rhs: Stats) -> Stats {
        self -= rhs;
        self
    }
}

impl std::ops::Neg for Stats {
    type Output = Stats;

    fn neg(self) -> Stats {
        Stats::ZERO - self
    }
}

impl IsZero for Stats {
    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

impl Semigroup for Stats {
    fn plus_equals(&mut self, rhs: &Self) {
        *self += *rhs;
    }
}

impl Monoid for Stats {
    fn zero() -> Self {
        Stats::ZERO
    }
}

impl Abelian for Stats {
    fn negate(&mut self) {
        *self = -*self;
    }
}

/// A delta that counts `times` times: what a join with a collection of plain records makes of it.
impl Multiply<isize> for Stats {
    type Output = Stats;

    fn multiply(self, times: &isize) -> Stats {
        let times = *times as i64;
        Stats {
            impressions: self.impressions * times,
            clicks: self.clicks * times,
            conversions: self.conversions * times,
            cost_micros: self.cost_micros * times,
            revenue_micros: self.revenue_micros * times,
        }
    }
}
