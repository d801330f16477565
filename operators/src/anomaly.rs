//! Robust anomaly score of one series in constant memory.
//!
//! Three residuals of each value (against a slow mean, of a fast mean against the slow one, against
//! the previous value) see spikes, level shifts and jumps. Each residual tracks its own 98 %
//! quantile by stochastic approximation and the mean excess above it, so a score is how many mean
//! excesses a residual lies beyond its usual range (an exponential tail: peaks over threshold with
//! shape 0). One episode raises one alarm: after a score, only a higher one counts until it fades.

use serde::{Deserialize, Serialize};

use crate::model::Anomaly;

/// How anomalies are judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnomalySpec {
    /// Score at which an alarm is raised.
    pub alarm_score: f64,
    /// Values of a series to see before any is scored.
    pub warmup: u32,
    /// Impressions an hour needs for its ratios to be scored.
    pub impressions_min: i64,
}

impl Default for AnomalySpec {
    fn default() -> Self {
        AnomalySpec { alarm_score: 12.0, warmup: 48, impressions_min: 100 }
    }
}

const QUANTILE: f64 = 0.98;
const SLOW: f64 = 0.01;
const FAST: f64 = 0.2;
const FADE: f64 = 0.995;
/// An excess counts at most this many mean excesses when the scale is updated.
const EXCESS_CAP: f64 = 6.0;

/// The mean excess is at least this share of the mean residual, or a few lucky quiet values would
/// make the scale vanish.
const EXCESS_FLOOR: f64 = 0.05;

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Tail {
    threshold: f64,
    excess: f64,
    mean: f64,
}

impl Tail {
    /// Score of residual `r`, then learn from it; `t` counts values seen.
    fn score(&mut self, r: f64, t: f64) -> f64 {
        let rate = (1.0 / t).max(0.02);
        self.mean += rate * (r - self.mean);
        if t < 3.0 {
            self.threshold = self.threshold.max(r);
            self.excess = self.excess.max(r * 0.5);
            return 0.0;
        }
        let over = r - self.threshold;
        let score = if over > 0.0 && self.excess > 0.0 { over / self.excess } else { 0.0 };
        let below = if over < 0.0 { 1.0 } else { 0.0 };
        self.threshold += rate * self.mean * (QUANTILE - below);
        if over > 0.0 {
            let capped = over.min(EXCESS_CAP * self.excess.max(1e-12));
            self.excess += rate.max(0.05) * (capped - self.excess);
        }
        self.excess = self.excess.max(EXCESS_FLOOR * self.mean);
        score
    }
}

/// State of one series.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Detector {
    seen: u32,
    slow: f64,
    fast: f64,
    previous: f64,
    tails: [Tail; 3],
    peak: f64,
}

impl Detector {
    /// Scores `value` (0 is usual) and learns from it. Values that are not finite are ignored.
    pub fn score(&mut self, value: f64, spec: &AnomalySpec) -> f64 {
        if !value.is_finite() {
            return 0.0;
        }
        self.seen = self.seen.saturating_add(1);
        let t = f64::from(self.seen);
        if self.seen == 1 {
            (self.slow, self.fast, self.previous) = (value, value, value);
        }
        // A jump back toward the usual ends an episode; it is not the onset of another.
        let away = (value - self.slow).abs() > (self.previous - self.slow).abs();
        let jump = if away { value - self.previous } else { 0.0 };
        let residuals = [value - self.slow, self.fast - self.slow, jump].map(f64::abs);
        // One wild value must not linger in the fast mean; a lasting shift still moves it.
        let usual = match self.seen <= spec.warmup {
            true => f64::INFINITY,
            false => self.tails[0].threshold + EXCESS_CAP * self.tails[0].excess,
        };
        let score: f64 =
            self.tails.iter_mut().zip(residuals).map(|(tail, r)| tail.score(r, t)).sum();
        self.slow += (1.0 / t).max(SLOW) * (value - self.slow);
        self.fast += FAST * (value.clamp(self.slow - usual, self.slow + usual) - self.fast);
        self.previous = value;
        let onset = self.seen > spec.warmup && score > self.peak;
        self.peak = if self.seen > spec.warmup { score.max(FADE * self.peak) } else { 0.0 };
        if onset { score } else { 0.0 }
    }
}

/// Hourly anomaly watch of one entity: spend and cost per click.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct AnomalyWatch {
    hour: Option<i64>,
    cost_micros: i64,
    clicks: i64,
    impressions: i64,
    cost: Detector,
    cpc: Detector,
    latest: Anomaly,
}

/// After this many empty hours in a row a series is not fed zeros any more: the entity is off.
const IDLE_HOURS_MAX: i64 = 24;

impl AnomalyWatch {
    /// Adds delivery of `hour`; hours already scored are left as they were.
    pub(crate) fn add(&mut self, hour: i64, delta: &crate::model::Stats, spec: &AnomalySpec) {
        self.close(hour, spec);
        if self.hour == Some(hour) {
            self.cost_micros += delta.cost_micros;
            self.clicks += delta.clicks;
            self.impressions += delta.impressions;
        }
    }

    /// Scores every hour before `hour` and returns the newest verdict.
    pub(crate) fn close(&mut self, hour: i64, spec: &AnomalySpec) -> Anomaly {
        let Some(open) = self.hour else {
            self.hour = Some(hour);
            return self.latest;
        };
        for step in 0..(hour - open).clamp(0, IDLE_HOURS_MAX) {
            let spend = (self.cost_micros.max(0) as f64).ln_1p();
            let mut score = self.cost.score(spend, spec);
            if step == 0 && self.clicks > 0 && self.impressions >= spec.impressions_min {
                let cpc = self.cost_micros.max(0) as f64 / self.clicks as f64;
                score = score.max(self.cpc.score(cpc.ln_1p(), spec));
            }
            self.latest = Anomaly { score, alarm: score >= spec.alarm_score };
            (self.cost_micros, self.clicks, self.impressions) = (0, 0, 0);
        }
        self.hour = Some(open.max(hour));
        self.latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: u64) -> f64 {
        let hash = xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes());
        (hash >> 11) as f64 / (1_u64 << 53) as f64 - 0.5
    }

    #[test]
    fn ordinary_noise_is_quiet_and_a_spike_is_loud() {
        let spec = AnomalySpec::default();
        let mut detector = Detector::default();
        let scores: Vec<f64> = (0..2_000).map(|n| detector.score(10.0 + noise(n), &spec)).collect();
        assert!(scores.iter().filter(|s| **s >= spec.alarm_score).count() <= 2);
        assert!(detector.score(14.0, &spec) >= spec.alarm_score);
        assert!(detector.score(f64::NAN, &spec) == 0.0);
    }

    #[test]
    fn one_episode_raises_one_alarm() {
        let spec = AnomalySpec::default();
        let mut detector = Detector::default();
        for n in 0..500 {
            detector.score(noise(n), &spec);
        }
        let alarms =
            (0..20).filter(|n| detector.score(8.0 + noise(*n), &spec) >= spec.alarm_score).count();
        assert!((1..=3).contains(&alarms), "{alarms}");
        // A single spike alarms once, and not again when it is over.
        let mut spike = Detector::default();
        for n in 0..500 {
            spike.score(noise(n), &spec);
        }
        assert!(spike.score(8.0, &spec) >= spec.alarm_score);
        assert!((0..10).all(|n| spike.score(noise(n), &spec) < spec.alarm_score));
    }

    #[test]
    fn hours_are_scored_once_whenever_they_are_asked_for() {
        let spec = AnomalySpec::default();
        let stats = |cost_micros| crate::model::Stats {
            impressions: 500,
            clicks: 10,
            cost_micros,
            ..crate::model::Stats::ZERO
        };
        let (mut eager, mut lazy) = (AnomalyWatch::default(), AnomalyWatch::default());
        for hour in 0..300 {
            let cost = 1_000_000 + (noise(hour as u64) * 1e5) as i64;
            eager.add(hour, &stats(cost), &spec);
            eager.close(hour, &spec);
            lazy.add(hour, &stats(cost), &spec);
        }
        assert_eq!(eager.close(300, &spec), lazy.close(300, &spec));
    }
}
