//! A feature row as a policy reads it: which window answers which question, and rates that do not
//! fall with conversions that are merely late.
//!
//! | question | window | without it |
//! |---|---|---|
//! | how fast is it spending now | the shortest | – |
//! | what did the last day bring | the one nearest to 24 h | – |
//! | what is mature | the longest, its clicks weighted by completeness; without a curve the longest minus the one nearest to 24 h | the longest, marked young |
//! | what was spent today | `day` | the 24 h one, which overstates: spend stops early |
//!
//! A conversion is counted at the time it is reported for, and reports of the freshest days are
//! incomplete. Where the row knows how incomplete ([`Maturity`]), its clicks count for as much as
//! they have brought by now, so nothing has to be left out. Elsewhere the longest window minus the
//! freshest day is the *maturity-safe* part.
//!
//! A row may be older than now (a campaign under review). A window that has slid past all of the
//! row is empty then; a window it still touches is read as it stood.

use omnify_operators::model::{DAY_US, FeatureRow, Maturity, Stats, WindowSpec, us_of_tick};
use serde::{Deserialize, Serialize};

use crate::goal::Pricing;
use crate::model::Rates;

/// Which configured window answers which question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    short: (usize, i64),
    recent: (usize, i64),
    long: (usize, i64),
    day: Option<usize>,
}

impl Windows {
    /// Picks the windows; `specs` is not empty.
    pub(crate) fn choose(specs: &[WindowSpec]) -> Windows {
        let width = |at: usize| specs.get(at).map_or(DAY_US, WindowSpec::width_us);
        let day = specs.iter().position(|spec| *spec == WindowSpec::Day);
        let hops = || (0..specs.len()).filter(|at| Some(*at) != day);
        let only = day.unwrap_or(0);
        let short = hops().min_by_key(|at| width(*at)).unwrap_or(only);
        let long = hops().max_by_key(|at| width(*at)).unwrap_or(only);
        let distance = |at: usize| {
            let (narrow, wide) = (width(at).min(DAY_US), width(at).max(DAY_US));
            // Compares width ratios without floats: wide/narrow in millionths.
            i128::from(wide) * 1_000_000 / i128::from(narrow.max(1))
        };
        let recent = hops().min_by_key(|at| distance(*at)).unwrap_or(only);
        let with_width = |at| (at, width(at));
        Windows {
            short: with_width(short),
            recent: with_width(recent),
            long: with_width(long),
            day,
        }
    }
}

/// The numbers of one row, as of `now`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct View {
    /// Shortest window.
    pub(crate) short: Stats,
    /// Its width.
    pub(crate) short_us: i64,
    /// The last day.
    pub(crate) recent: Stats,
    /// Its width.
    pub(crate) recent_us: i64,
    /// Longest window.
    pub(crate) long: Stats,
    /// Maturity-safe part of the longest window: conversions with the clicks that brought them.
    pub(crate) mature: Stats,
    /// How complete the longest window is, where conversions are reported late.
    pub(crate) maturity: Option<Maturity>,
    /// The account-local day so far.
    pub(crate) today: Stats,
    /// True when there is no maturity-safe part, so `mature` is `long`.
    pub(crate) young: bool,
}

impl View {
    /// Reads `row` as of `now_us`, in an account-local day that began at `day_start_us`.
    pub(crate) fn at(windows: &Windows, row: &FeatureRow, now_us: i64, day_start_us: i64) -> View {
        let row_us = us_of_tick(row.tick);
        let read = |(at, width_us): (usize, i64)| {
            if now_us - row_us >= width_us { Stats::ZERO } else { row.windows[at] }
        };
        let (recent, long) = (read(windows.recent), read(windows.long));
        let today = match windows.day {
            Some(at) if row_us >= day_start_us => row.windows[at],
            Some(_) => Stats::ZERO,
            None => recent,
        };
        let old = long - recent;
        let (mature, young) = match row.maturity {
            Some(maturity) => (weighted(long, maturity.share), false),
            None if windows.recent.0 == windows.long.0 => (long, true),
            None if old.clicks <= 0 || old.cost_micros < 0 => (long, true),
            None => (old, false),
        };
        View {
            short: read(windows.short),
            short_us: windows.short.1,
            recent,
            recent_us: windows.recent.1,
            long,
            mature,
            maturity: row.maturity,
            today,
            young,
        }
    }
}

/// `sums` with as many clicks as, all complete, would have brought the conversions reported.
fn weighted(sums: Stats, share: f64) -> Stats {
    Stats { clicks: (sums.clicks as f64 * share).round() as i64, ..sums }
}

/// What value is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    /// Clicks.
    Clicks,
    /// Conversions.
    Conversions,
    /// Micros of revenue.
    Revenue,
}

/// Expected rates of a campaign and how its bids are priced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Basis {
    /// Probabilities of a click and of a conversion given a click.
    pub(crate) rates: Rates,
    /// Revenue of one conversion.
    pub(crate) revenue_micros: f64,
    /// Unit of bids.
    pub(crate) pricing: Pricing,
}

/// Conversions that the row's own estimate weighs against the matured counts.
const PRIOR_CONVERSIONS: f64 = 1.0;

impl Basis {
    /// Rates from the shrunk estimates of the row, the conversion rate corrected for maturity:
    /// `(matured conversions + 1) / (matured clicks + 1/mean)`. `None` without any estimate.
    pub(crate) fn of(row: &FeatureRow, view: &View, pricing: Pricing) -> Option<Basis> {
        let or_raw = |mean: f64, raw: Option<f64>| {
            if mean > 0.0 && mean.is_finite() { Some(mean) } else { raw }
        };
        let click = or_raw(row.ctr.mean, view.long.ctr())?;
        let mean = or_raw(row.cvr.mean, view.long.cvr()).unwrap_or(0.0);
        let conversion = if view.young || mean <= 0.0 {
            mean
        } else {
            let clicks = view.mature.clicks as f64 + PRIOR_CONVERSIONS / mean;
            (view.mature.conversions.max(0) as f64 + PRIOR_CONVERSIONS) / clicks
        };
        let sold = if view.mature.conversions > 0 { view.mature } else { view.long };
        let revenue_micros = match sold.conversions {
            count if count > 0 => sold.revenue_micros.max(0) as f64 / count as f64,
            _ => 0.0,
        };
        let rates = Rates { click: click.min(1.0), conversion: conversion.min(1.0) };
        Some(Basis { rates, revenue_micros, pricing })
    }

    /// Value of one bid unit: a thousand impressions (CPM) or one click (CPC).
    pub(crate) fn worth(&self, unit: Unit) -> f64 {
        let clicks = match self.pricing {
            Pricing::Cpm => 1_000.0 * self.rates.click,
            Pricing::Cpc => 1.0,
        };
        clicks * self.per_click(unit)
    }

    /// Value that `stats` are expected to have brought once all conversions are known.
    pub(crate) fn realised(&self, unit: Unit, stats: &Stats) -> f64 {
        stats.clicks.max(0) as f64 * self.per_click(unit)
    }

    fn per_click(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Clicks => 1.0,
            Unit::Conversions => self.rates.conversion,
            Unit::Revenue => self.rates.conversion * self.revenue_micros,
        }
    }
}

impl Unit {
    /// The maturity that values in this unit need: clicks are complete as soon as they are fresh.
    pub(crate) fn maturity(self, view: &View) -> Option<Maturity> {
        view.maturity.filter(|_| self != Unit::Clicks)
    }

    /// Events behind a value in this unit.
    pub(crate) fn events(self, stats: &Stats) -> i64 {
        match self {
            Unit::Clicks => stats.clicks,
            Unit::Conversions | Unit::Revenue => stats.conversions,
        }
    }

    /// One event, in this unit.
    pub(crate) fn one(self, basis: &Basis) -> f64 {
        if self == Unit::Revenue { basis.revenue_micros } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnify_operators::model::{EntityId, HOUR_US};

    fn specs(texts: &[&str]) -> Vec<WindowSpec> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn row(windows: &[Stats]) -> FeatureRow {
        let mut row = FeatureRow {
            entity: EntityId(0),
            tick: 1_000_000_000,
            windows: Default::default(),
            ctr: Default::default(),
            cvr: Default::default(),
            reach: Default::default(),
            fatigue: Default::default(),
            anomaly: Default::default(),
            maturity: None,
        };
        row.windows[..windows.len()].copy_from_slice(windows);
        row
    }

    fn stats(clicks: i64, conversions: i64) -> Stats {
        Stats { impressions: clicks * 100, clicks, conversions, cost_micros: 1, revenue_micros: 0 }
    }

    #[test]
    fn windows_answer_by_width_and_degrade() {
        let full = Windows::choose(&specs(&["28d/6h", "day", "1h/1m", "7d/2h", "24h/15m"]));
        assert_eq!((full.short.0, full.recent.0, full.long.0, full.day), (2, 4, 0, Some(1)));
        let one = Windows::choose(&specs(&["1h/1m"]));
        assert_eq!((one.short.0, one.recent.0, one.long.0, one.day), (0, 0, 0, None));
        let day = Windows::choose(&specs(&["day"]));
        assert_eq!((day.short, day.day), ((0, DAY_US), Some(0)));
    }

    #[test]
    fn maturity_leaves_the_freshest_day_out() {
        let windows = Windows::choose(&specs(&["24h/15m", "28d/6h"]));
        let mut row = row(&[stats(500, 5), stats(1_500, 105)]);
        row.ctr.mean = 0.01;
        row.cvr.mean = 0.07;
        let view = View::at(&windows, &row, us_of_tick(row.tick), 0);
        assert_eq!((view.mature.clicks, view.young), (1_000, false));
        let basis = Basis::of(&row, &view, Pricing::Cpm).unwrap();
        assert!((basis.rates.conversion - 0.1).abs() < 0.001, "{basis:?}");
        assert!((basis.worth(Unit::Conversions) - 1.0).abs() < 0.01);
    }

    #[test]
    fn a_curve_leaves_nothing_out() {
        let windows = Windows::choose(&specs(&["24h/15m", "28d/6h"]));
        let mut row = row(&[stats(500, 5), stats(1_500, 105)]);
        (row.ctr.mean, row.cvr.mean) = (0.01, 0.1);
        row.maturity = Some(Maturity { share: 0.7, ..Maturity::default() });
        let view = View::at(&windows, &row, us_of_tick(row.tick), 0);
        assert_eq!((view.mature.clicks, view.mature.conversions, view.young), (1_050, 105, false));
        let basis = Basis::of(&row, &view, Pricing::Cpm).unwrap();
        assert!((basis.rates.conversion - 0.1).abs() < 1e-9, "{basis:?}");
        assert!(Unit::Clicks.maturity(&view).is_none());
        assert_eq!(Unit::Revenue.maturity(&view), row.maturity);
    }

    #[test]
    fn old_rows_fade() {
        let windows = Windows::choose(&specs(&["1h/1m", "24h/15m", "day"]));
        let row = row(&[stats(1, 0), stats(2, 0), stats(3, 0)]);
        let row_us = us_of_tick(row.tick);
        let view = View::at(&windows, &row, row_us + HOUR_US, row_us + 1);
        assert_eq!((view.short.clicks, view.recent.clicks, view.today.clicks), (0, 2, 0));
    }
}
