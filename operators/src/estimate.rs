//! Shrunk rates: a Beta posterior whose prior is learned from the entity's siblings.
//!
//! Sparse entities borrow strength from their campaign: the prior mean is the campaign's pooled
//! rate, and the prior weight comes from how much its children really differ (method of moments
//! for the Beta-Binomial, J. C. Kleinman, JASA 1973).

use serde::{Deserialize, Serialize};

use crate::model::Estimate;

/// A Beta prior, as pseudo-counts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prior {
    /// Mean rate.
    pub mean: f64,
    /// Weight in trials.
    pub trials: f64,
}

impl Prior {
    /// The posterior after `successes` in `trials`. Counts that restatements made inconsistent
    /// (negative, or more successes than trials) are clamped.
    pub fn posterior(&self, successes: i64, trials: i64) -> Estimate {
        let n = trials.max(0) as f64;
        let k = (successes.max(0) as f64).min(n);
        let a = self.mean * self.trials + k;
        let b = (1.0 - self.mean) * self.trials + n - k;
        let (low, high) = (beta_quantile(a, b, -Z_90), beta_quantile(a, b, Z_90));
        Estimate { mean: a / (a + b), low, high, successes, trials }
    }

    /// Learns a prior from siblings' (successes, trials). `fallback` is used without evidence and
    /// lends its weight where the siblings do not differ measurably.
    pub fn learn(siblings: impl Iterator<Item = (i64, i64)> + Clone, fallback: Prior) -> Prior {
        let usable = siblings.filter(|(k, n)| *n > 0 && *k >= 0 && k <= n);
        let (mut m, mut k_sum, mut n_sum, mut n_square) = (0.0, 0.0, 0.0, 0.0);
        for (k, n) in usable.clone() {
            let n = n as f64;
            m += 1.0;
            k_sum += k as f64;
            n_sum += n;
            n_square += n * n;
        }
        if n_sum <= 0.0 {
            return fallback;
        }
        // Half a success keeps the mean inside (0, 1).
        let mean = (k_sum + fallback.mean * fallback.trials) / (n_sum + fallback.trials);
        if m < 3.0 {
            return Prior { mean, trials: fallback.trials };
        }
        let spread: f64 = usable
            .map(|(k, n)| {
                let n = n as f64;
                n * (k as f64 / n - mean).powi(2)
            })
            .sum();
        let noise = mean * (1.0 - mean);
        let between = (spread - (m - 1.0) * noise) / (n_sum - n_square / n_sum).max(1.0);
        if between <= noise / WEIGHT_MAX {
            return Prior { mean, trials: WEIGHT_MAX.min(n_sum / m).max(fallback.trials) };
        }
        Prior { mean, trials: (noise / between - 1.0).clamp(1.0, WEIGHT_MAX) }
    }
}

/// Largest weight of a learned prior, in trials: an entity with a million trials of its own is
/// always heard.
const WEIGHT_MAX: f64 = 1e6;
/// Normal quantile of 95 %: intervals are 90 %, two-sided.
pub(crate) const Z_90: f64 = 1.644_853_626_951_472_2;

/// Quantile of Beta(a, b) at normal score `z`, by Paulson's cube-root normal approximation of the
/// F distribution (E. Paulson, 1942), which is closed-form and good to a few per cent of the
/// interval width from about one expected success on.
fn beta_quantile(a: f64, b: f64, z: f64) -> f64 {
    // A quantile of Beta(a, b) from below is one minus a quantile of Beta(b, a) from above; the
    // approximation of F with dof (2a, 2b) is best solved for the cube root w of F.
    let (ca, cb) = (1.0 / (9.0 * a), 1.0 / (9.0 * b));
    let (ma, mb) = (1.0 - ca, 1.0 - cb);
    // ((1−cb) w − (1−ca))² = z² (cb w² + ca)
    let quadratic = mb * mb - z * z * cb;
    if quadratic <= 0.0 {
        return if z < 0.0 { 0.0 } else { 1.0 };
    }
    let constant = ma * ma - z * z * ca;
    let discriminant = (ma * mb).powi(2) - quadratic * constant;
    let root = (ma * mb + z.signum() * discriminant.max(0.0).sqrt()) / quadratic;
    if root <= 0.0 {
        return 0.0;
    }
    let f = root.powi(3);
    (a * f / (b + a * f)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Share of Beta(a, b) below `x`, by the trapezoid rule on the logit scale.
    fn beta_share_below(a: f64, b: f64, x: f64) -> f64 {
        let density = |t: f64| {
            let p = 1.0 / (1.0 + (-t).exp());
            (a * p.ln() + b * (1.0 - p).ln() - (a * (a / (a + b)).ln() + b * (b / (a + b)).ln()))
                .exp()
        };
        let cut = (x / (1.0 - x)).ln();
        let (mut below, mut all) = (0.0, 0.0);
        let mut t = -40.0;
        while t < 40.0 {
            let d = density(t);
            all += d;
            below += if t < cut { d } else { 0.0 };
            t += 0.001;
        }
        below / all
    }

    #[test]
    fn intervals_hold_ninety_percent() {
        for (a, b) in [(2.0, 100.0), (5.0, 5.0), (20.0, 1_000.0), (300.0, 20_000.0), (50.0, 3.0)] {
            let (low, high) = (beta_quantile(a, b, -Z_90), beta_quantile(a, b, Z_90));
            let share = beta_share_below(a, b, high) - beta_share_below(a, b, low);
            assert!((share - 0.9).abs() < 0.01, "Beta({a}, {b}): {share}");
        }
    }

    #[test]
    fn sparse_entities_shrink_and_rich_ones_do_not() {
        let prior = Prior { mean: 0.02, trials: 500.0 };
        let sparse = prior.posterior(1, 5);
        assert!((sparse.mean - 0.0218).abs() < 0.001, "{sparse:?}");
        let rich = prior.posterior(50_000, 1_000_000);
        assert!((rich.mean - 0.05).abs() < 0.0005, "{rich:?}");
        assert!(rich.low < rich.mean && rich.mean < rich.high);
        let broken = prior.posterior(-3, -10);
        assert!((0.0..=1.0).contains(&broken.mean) && broken.low <= broken.high);
    }

    #[test]
    fn the_prior_weight_tells_real_differences_from_noise() {
        let fallback = Prior { mean: 0.01, trials: 100.0 };
        let alike = [(100, 10_000), (101, 10_000), (99, 10_000), (100, 10_000)];
        let apart = [(10, 10_000), (300, 10_000), (60, 10_000), (150, 10_000)];
        let alike = Prior::learn(alike.into_iter(), fallback);
        let apart = Prior::learn(apart.into_iter(), fallback);
        assert!(alike.trials > 5_000.0 && apart.trials < 500.0, "{alike:?} {apart:?}");
        assert_eq!(Prior::learn([].into_iter(), fallback), fallback);
    }
}
