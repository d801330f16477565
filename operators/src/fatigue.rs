//! Creative fatigue: response (CTR) against the entity's own mature baseline.
//!
//! The baseline is the first days in which the entity gathered enough clicks; it freezes when it
//! is mature. Recent response is compared with it on the log scale: `ln r = ln(k₁/n₁) − ln(k₀/n₀)`
//! with variance `1/k₁ + 1/k₀` (Poisson clicks) plus the day-to-day variance the entity really
//! shows, so that a large account is not flagged for ordinary weather. An entity is *wearing out*
//! when P(r < onset) is high over the recent days, and it stays so until neither the recent days
//! nor the whole memory say that response is down: a brief recovery clears nothing.
//!
//! The forecast extrapolates the recent slope of ln CTR, shrunk toward what exposure alone would
//! do: click likelihood falls about as `(1 + F)^−γ` with frequency F, γ ≈ 0.43.

use serde::{Deserialize, Serialize};

use crate::model::{Fatigue, FatigueState};

/// How fatigue is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FatigueSpec {
    /// The ratio to baseline below which response counts as worn out.
    pub onset_ratio: f64,
    /// Posterior probability required to say so (and, as 1 − p, to take it back).
    pub probability: f64,
    /// Days the baseline covers at least.
    pub baseline_days: i64,
    /// Clicks the baseline needs: 428 tell −20 % from nothing at 95 %/90 %.
    pub baseline_clicks: i64,
    /// Days that count as recent.
    pub recent_days: i64,
    /// Clicks the recent days need.
    pub recent_clicks: i64,
}

impl Default for FatigueSpec {
    fn default() -> Self {
        FatigueSpec {
            onset_ratio: 0.8,
            probability: 0.9,
            baseline_days: 7,
            baseline_clicks: 428,
            recent_days: 7,
            recent_clicks: 100,
        }
    }
}

/// Days remembered.
pub(crate) const MEMORY_DAYS: i64 = 28;
/// Days the slope is fitted over.
const SLOPE_DAYS: i64 = 14;
/// A fall too slow to matter within a year is no forecast but the noise of the slope.
const FORECAST_DAYS_MAX: f64 = 365.0;
/// Exponent of wear-out with frequency, and its spread: the prior of the slope.
const GAMMA: f64 = 0.43;
const GAMMA_SD: f64 = 0.2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DayCount {
    day: i64,
    impressions: i64,
    clicks: i64,
}

/// Days for which room is made at once.
const DAYS_MORE: usize = 4;

/// What is remembered of one entity: at most 28 days of counts and the baseline.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FatigueTracker {
    /// The newest day; almost every change is of it.
    newest: Option<DayCount>,
    /// The days before, ascending.
    days: Vec<DayCount>,
    baseline: (i64, i64),
    /// First day after the baseline, once it is mature.
    frozen: Option<i64>,
    first_day: Option<i64>,
    wearing_out: bool,
}

impl FatigueTracker {
    /// Adds a change of `day`'s counts. Restatements of baseline days reach the baseline too.
    pub(crate) fn add(&mut self, spec: &FatigueSpec, day: i64, impressions: i64, clicks: i64) {
        let first = *self.first_day.get_or_insert(day);
        let newest = self.newest.map_or(day, |newest| newest.day.max(day));
        let mature =
            newest - first >= spec.baseline_days && self.baseline.1 >= spec.baseline_clicks;
        if self.frozen.is_none() && mature {
            self.frozen = Some(newest);
        }
        if self.frozen.is_none_or(|until| day < until) {
            self.baseline.0 += impressions;
            self.baseline.1 += clicks;
        }
        let count = match &mut self.newest {
            Some(have) if have.day == day => have,
            Some(have) if have.day > day => self.older(day),
            other => {
                let fresh = DayCount { day, impressions: 0, clicks: 0 };
                if self.days.len() == self.days.capacity() {
                    // There are at most `MEMORY_DAYS` of them, of every entity.
                    self.days.reserve_exact(DAYS_MORE);
                }
                self.days.extend(other.replace(fresh));
                self.newest.get_or_insert(fresh)
            }
        };
        count.impressions += impressions;
        count.clicks += clicks;
        let keep_from = newest - MEMORY_DAYS;
        if self.days.first().is_some_and(|oldest| oldest.day <= keep_from) {
            self.days.retain(|have| have.day > keep_from);
        }
    }

    fn older(&mut self, day: i64) -> &mut DayCount {
        let at = self.days.partition_point(|have| have.day < day);
        if self.days.get(at).is_none_or(|have| have.day != day) {
            self.days.insert(at, DayCount { day, impressions: 0, clicks: 0 });
        }
        &mut self.days[at]
    }

    /// The day of its first count, for tests.
    #[cfg(test)]
    pub(crate) fn first_day(&self) -> Option<i64> {
        self.first_day
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.days.capacity() * size_of::<DayCount>()
    }

    fn all(&self) -> impl Iterator<Item = &DayCount> {
        self.days.iter().chain(&self.newest)
    }

    /// The verdict as of `today`. `frequency` is impressions per user, 0 when unknown. The verdict
    /// starts from the one before, so whoever asks decides with [`FatigueTracker::settle`] whether
    /// it counts: looking on must not change what is seen later.
    pub(crate) fn assess(&self, spec: &FatigueSpec, today: i64, frequency: f64) -> Fatigue {
        let unknown = Fatigue { ratio: 1.0, ..Fatigue::default() };
        let Some(baseline_until) = self.frozen.filter(|_| self.baseline.1 > 0) else {
            return unknown;
        };
        let baseline = Counts { impressions: self.baseline.0, clicks: self.baseline.1, days: 1 };
        let recent = self.counts(today - spec.recent_days, today);
        let memory = self.counts(today - MEMORY_DAYS, today).after(baseline_until, self);
        if recent.clicks < spec.recent_clicks || baseline.impressions <= 0 {
            let state = if self.wearing_out { FatigueState::WearingOut } else { unknown.state };
            return Fatigue { state, baseline_ctr: baseline.ctr(), ..unknown };
        }
        let weather = self.day_to_day_variance(today);
        let probability = |counts: &Counts| counts.below(&baseline, spec.onset_ratio, weather);
        let (now, lasting) = (probability(&recent), probability(&memory));
        let worn = if now >= spec.probability {
            true
        } else if now.max(lasting) <= 1.0 - spec.probability {
            false
        } else {
            self.wearing_out
        };
        let ratio = recent.ctr() / baseline.ctr();
        let slope = self.slope(today, frequency, today - baseline_until + spec.baseline_days);
        Fatigue {
            state: if worn { FatigueState::WearingOut } else { FatigueState::Fresh },
            baseline_ctr: baseline.ctr(),
            ratio,
            probability: now,
            slope_per_day: slope,
            days_to_onset: if ratio <= spec.onset_ratio {
                Some(0.0)
            } else {
                let days = (spec.onset_ratio / ratio).ln() / slope;
                (slope < 0.0 && days <= FORECAST_DAYS_MAX).then_some(days)
            },
        }
    }

    /// Makes a verdict the one that later verdicts start from.
    pub(crate) fn settle(&mut self, verdict: &Fatigue) {
        self.wearing_out = verdict.state == FatigueState::WearingOut;
    }

    /// Counts of the days in `(from, until]`.
    fn counts(&self, from: i64, until: i64) -> Counts {
        let days = self.all().filter(|have| have.day > from && have.day <= until);
        days.fold(Counts::default(), |sum, have| Counts {
            impressions: sum.impressions + have.impressions,
            clicks: sum.clicks + have.clicks,
            days: sum.days + 1,
        })
    }

    /// Days with enough clicks for a logarithm to mean something: (day, ln CTR, its variance).
    fn points(&self, from: i64, until: i64) -> impl Iterator<Item = (f64, f64, f64)> + '_ {
        let usable = move |have: &&DayCount| {
            have.day > from && have.day <= until && have.clicks >= 5 && have.impressions > 0
        };
        self.all().filter(usable).map(|have| {
            let clicks = have.clicks as f64;
            (have.day as f64, (clicks / have.impressions as f64).ln(), 1.0 / clicks)
        })
    }

    /// Variance of ln CTR between neighbouring days beyond Poisson noise (half the mean squared
    /// successive difference, which a slow trend does not inflate).
    fn day_to_day_variance(&self, today: i64) -> f64 {
        let mut previous: Option<(f64, f64)> = None;
        let (mut sum, mut pairs) = (0.0, 0.0);
        for (_, value, noise) in self.points(today - MEMORY_DAYS, today) {
            if let Some((before, before_noise)) = previous {
                sum += ((value - before).powi(2) - noise - before_noise) / 2.0;
                pairs += 1.0;
            }
            previous = Some((value, noise));
        }
        if pairs > 0.0 { (sum / pairs).max(0.0) } else { 0.0 }
    }

    /// Slope of ln CTR per day: weighted least squares over the recent days, combined by precision
    /// with the slope that growing frequency implies.
    fn slope(&self, today: i64, frequency: f64, age_days: i64) -> f64 {
        let weather = self.day_to_day_variance(today);
        let (mut w, mut wx, mut wy, mut wxx, mut wxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (day, value, noise) in self.points(today - SLOPE_DAYS, today) {
            let (x, weight) = (day - today as f64, 1.0 / (noise + weather));
            w += weight;
            wx += weight * x;
            wy += weight * value;
            wxx += weight * x * x;
            wxy += weight * x * value;
        }
        // Frequency grows about evenly over the entity's age: d ln(1+F)^−γ / dt.
        let growth = frequency / age_days.max(1) as f64 / (1.0 + frequency);
        let (prior, prior_sd) = (-GAMMA * growth, GAMMA_SD * growth + 0.01);
        let spread = wxx - if w > 0.0 { wx * wx / w } else { 0.0 };
        if spread <= 1e-9 {
            return prior;
        }
        let fitted = (wxy - wx * wy / w) / spread;
        let precision = 1.0 / prior_sd.powi(2);
        (fitted * spread + prior * precision) / (spread + precision)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    impressions: i64,
    clicks: i64,
    days: i64,
}

impl Counts {
    fn ctr(&self) -> f64 {
        if self.impressions > 0 { self.clicks as f64 / self.impressions as f64 } else { 0.0 }
    }

    /// The part of the memory after the baseline.
    fn after(self, baseline_until: i64, tracker: &FatigueTracker) -> Counts {
        let before = tracker.counts(i64::MIN, baseline_until - 1);
        Counts {
            impressions: self.impressions - before.impressions,
            clicks: self.clicks - before.clicks,
            days: self.days - before.days,
        }
    }

    /// P(true ratio to `baseline` < `onset`).
    fn below(&self, baseline: &Counts, onset: f64, weather: f64) -> f64 {
        if self.clicks <= 0 || self.impressions <= 0 {
            return 0.0;
        }
        let ln_ratio = (self.ctr() / baseline.ctr()).ln();
        let variance = 1.0 / self.clicks as f64
            + 1.0 / baseline.clicks as f64
            + weather / self.days.max(1) as f64;
        normal_cdf((onset.ln() - ln_ratio) / variance.sqrt())
    }
}

/// Standard normal distribution function (Abramowitz & Stegun 7.1.26, error below 1.5e-7).
fn normal_cdf(x: f64) -> f64 {
    let z = x.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = ((((1.061_405_429 * t - 1.453_152_027) * t + 1.421_413_741) * t - 0.284_496_736)
        * t
        + 0.254_829_592)
        * t;
    let erf = 1.0 - poly * (-z * z).exp();
    if x < 0.0 { 0.5 * (1.0 - erf) } else { 0.5 * (1.0 + erf) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `ctr(day)` on `impressions` a day and returns the verdict at the end of each day.
    fn run(days: i64, impressions: i64, ctr: impl Fn(i64) -> f64) -> Vec<Fatigue> {
        let (spec, mut tracker) = (FatigueSpec::default(), FatigueTracker::default());
        let verdict = |day| {
            let clicks = (impressions as f64 * ctr(day)).round() as i64;
            tracker.add(&spec, day, impressions, clicks);
            let verdict = tracker.assess(&spec, day, 0.0);
            tracker.settle(&verdict);
            verdict
        };
        (100..100 + days).map(verdict).collect()
    }

    fn wobble(day: i64) -> f64 {
        1.0 + 0.05 * f64::from((day * 7 % 5) as i32 - 2)
    }

    #[test]
    fn a_steady_creative_stays_fresh() {
        let verdicts = run(60, 50_000, |day| 0.01 * wobble(day));
        assert!(verdicts[..7].iter().all(|f| f.state == FatigueState::Insufficient));
        assert!(verdicts[8..].iter().all(|f| f.state == FatigueState::Fresh));
        // Days that are all alike forecast nothing.
        assert!(run(60, 50_000, |_| 0.01).iter().all(|f| f.days_to_onset.is_none()));
    }

    #[test]
    fn decline_is_seen_coming_flagged_and_remembered() {
        let fall =
            |day: i64| if day < 115 { 0.01 } else { 0.01 * 0.97_f64.powi((day - 115) as i32) };
        let verdicts = run(45, 50_000, |day| fall(day) * wobble(day));
        let flagged = verdicts.iter().position(|f| f.state == FatigueState::WearingOut).unwrap();
        assert!((20..35).contains(&flagged), "flagged on day {flagged}");
        let ahead = verdicts[flagged - 5].days_to_onset.unwrap();
        assert!((0.5..15.0).contains(&ahead), "five days before: {ahead}");
        // A three-day rebound does not clear the flag.
        let rebound = run(45, 50_000, |day| if day < 140 { fall(day) } else { 0.0105 });
        assert_eq!(rebound.last().unwrap().state, FatigueState::WearingOut);
        // A lasting one does.
        let recovered = run(90, 50_000, |day| if day < 140 { fall(day) } else { 0.0105 });
        assert_eq!(recovered.last().unwrap().state, FatigueState::Fresh);
    }

    #[test]
    fn sparse_creatives_are_not_judged() {
        let verdicts = run(40, 100, |day| if day < 120 { 0.02 } else { 0.0 });
        assert!(verdicts.iter().all(|f| f.state == FatigueState::Insufficient));
    }

    #[test]
    fn a_restated_baseline_day_counts_as_if_it_had_been_right() {
        let spec = FatigueSpec::default();
        let (mut restated, mut right) = (FatigueTracker::default(), FatigueTracker::default());
        for day in 0..20 {
            right.add(&spec, day, 10_000, 200);
            restated.add(&spec, day, 10_000, if day == 3 { 150 } else { 200 });
        }
        restated.add(&spec, 3, 0, 50);
        assert_eq!(restated.assess(&spec, 19, 1.0), right.assess(&spec, 19, 1.0));
    }

    #[test]
    fn the_normal_distribution_is_known() {
        for (x, want) in [(0.0, 0.5), (1.0, 0.841_344_7), (-1.96, 0.024_997_9), (6.0, 1.0)] {
            assert!((normal_cdf(x) - want).abs() < 1e-6);
        }
    }
}
