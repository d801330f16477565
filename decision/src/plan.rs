//! The spend plan: which share of a day's budget belongs to which hour.
//!
//! An account starts with a flat day and learns its shape from what its own campaigns spent: each
//! complete day adds one sample to the profile of all days and one to that of its weekday. The
//! share of an hour is the weekday's profile shrunk to the all-days profile, itself shrunk to flat,
//! each with the weight of [`PRIOR_DAYS`] days. One sample per slot already gives near-optimal
//! pacing under change (Balseiro, Kumar, Mirrokni, Sivan, Wang 2023, *Robust Budget Pacing with a
//! Single Sample*), so the memory is short: [`DAYS_MAX`] and [`WEEKS_MAX`].
//!
//! What was spent was steered by the plan itself, so what is learned is spend restated to one bid
//! for the whole day ([`SpendPlan::note`]): the shape a constant bid would give, which is also the
//! best one, as equal bids mean equal marginal value. A day on which a campaign was stopped early
//! teaches nothing.

use serde::{Deserialize, Serialize};

use crate::day::LocalDay;

const HOURS: usize = 24;
/// Days of evidence the shape beneath is worth.
const PRIOR_DAYS: f64 = 2.0;
/// Memory of the all-days profile.
const DAYS_MAX: f64 = 14.0;
/// Memory of a weekday's profile.
const WEEKS_MAX: f64 = 4.0;
/// A day counts as complete when it was watched from before this hour on.
const COMPLETE_FROM_HOUR: f64 = 1.0;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Profile {
    shares: [f64; HOURS],
    samples: f64,
}

impl Profile {
    const NONE: Profile = Profile { shares: [0.0; HOURS], samples: 0.0 };

    fn learn(&mut self, shares: &[f64; HOURS], samples_max: f64) {
        let weight = 1.0 / (self.samples + 1.0);
        for (known, new) in self.shares.iter_mut().zip(shares) {
            *known += weight * (new - *known);
        }
        self.samples = (self.samples + 1.0).min(samples_max - 1.0);
    }

    fn shrunk_to(&self, prior: &[f64; HOURS]) -> [f64; HOURS] {
        let own = self.samples / (self.samples + PRIOR_DAYS);
        std::array::from_fn(|hour| own * self.shares[hour] + (1.0 - own) * prior[hour])
    }
}

/// The plan of one account.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SpendPlan {
    all_days: Profile,
    weekdays: [Profile; 7],
    /// Share of the current day's budget due by each full hour; the first is 0, the last 1.
    cumulative: [f64; HOURS + 1],
    /// Spend seen per hour of the current day.
    today_micros: [f64; HOURS],
    watched_from_hour: f64,
}

impl SpendPlan {
    /// A flat plan, beginning at `position` of the day.
    pub(crate) fn new(position: f64) -> SpendPlan {
        SpendPlan {
            all_days: Profile::NONE,
            weekdays: [Profile::NONE; 7],
            cumulative: std::array::from_fn(|hour| hour as f64 / HOURS as f64),
            today_micros: [0.0; HOURS],
            watched_from_hour: position,
        }
    }

    /// Notes spend at a position of the current day, restated to the day's first bid; a correction
    /// may be negative.
    pub(crate) fn note(&mut self, position: f64, cost_micros: f64) {
        self.today_micros[(position as usize).min(HOURS - 1)] += cost_micros;
    }

    /// A campaign was stopped at a position of the current day: early, it spoils the day's shape.
    pub(crate) fn interrupt(&mut self, position: f64) {
        if position < HOURS as f64 - COMPLETE_FROM_HOUR {
            self.watched_from_hour = HOURS as f64;
        }
    }

    /// Ends `before` and begins `next`: learns from the day if it was watched whole.
    pub(crate) fn roll(&mut self, before: &LocalDay, next: &LocalDay) {
        let total: f64 = self.today_micros.iter().map(|cost| cost.max(0.0)).sum();
        if total > 0.0 && self.watched_from_hour <= COMPLETE_FROM_HOUR {
            let shares = self.today_micros.map(|cost| cost.max(0.0) / total);
            self.all_days.learn(&shares, DAYS_MAX);
            self.weekdays[before.weekday].learn(&shares, WEEKS_MAX);
        }
        self.today_micros = [0.0; HOURS];
        self.watched_from_hour = 0.0;
        let every_day = self.all_days.shrunk_to(&[1.0 / HOURS as f64; HOURS]);
        let shares = self.weekdays[next.weekday].shrunk_to(&every_day);
        let mut sum = 0.0;
        for (hour, share) in shares.iter().enumerate() {
            sum += share;
            self.cumulative[hour + 1] = sum;
        }
        // Shares are convex mixtures of distributions; this only removes rounding.
        self.cumulative.iter_mut().for_each(|share| *share /= sum);
    }

    /// Share of the day's budget due by `position`, linear within the hour.
    pub(crate) fn due(&self, position: f64) -> f64 {
        let position = position.clamp(0.0, HOURS as f64);
        let hour = (position as usize).min(HOURS - 1);
        let (low, high) = (self.cumulative[hour], self.cumulative[hour + 1]);
        low + (high - low) * (position - hour as f64)
    }

    /// Mean density of spend between two positions against a flat day: 1 is usual.
    pub(crate) fn density(&self, from: f64, to: f64) -> f64 {
        let length = to - from;
        if length <= 0.0 {
            return 1.0;
        }
        ((self.due(to) - self.due(from)) / length * HOURS as f64).max(0.05)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(weekday: usize) -> LocalDay {
        LocalDay { start_us: 0, end_us: 24, weekday }
    }

    #[test]
    fn starts_flat_and_learns_the_shape_of_whole_days() {
        let mut plan = SpendPlan::new(12.0);
        assert_eq!(plan.due(6.0), 0.25);
        plan.note(13.0, 1_000.0);
        plan.roll(&day(0), &day(1));
        assert!((plan.due(6.0) - 0.25).abs() < 1e-12, "half a day teaches nothing");
        for weekday in [1, 2, 3, 4, 5, 6, 0, 1] {
            plan.note(20.5, 3_000.0);
            plan.note(8.0, 1_000.0);
            plan.roll(&day(weekday), &day((weekday + 1) % 7));
        }
        assert!(plan.due(21.0) - plan.due(20.0) > 0.5);
        assert!((plan.due(24.0) - 1.0).abs() < 1e-12);
        assert_eq!(plan.due(0.0), 0.0);
        assert!(plan.density(20.0, 21.0) > 10.0 && plan.density(2.0, 3.0) < 0.5);
    }

    #[test]
    fn the_plan_never_falls() {
        let mut plan = SpendPlan::new(0.0);
        plan.note(3.0, -500.0);
        plan.note(4.0, 100.0);
        plan.roll(&day(0), &day(0));
        let dues: Vec<f64> = (0..=240).map(|tenth| plan.due(f64::from(tenth) / 10.0)).collect();
        assert!(dues.windows(2).all(|pair| pair[0] <= pair[1]));
    }
}
