//! Counter-based random draws and the few distributions the market needs.
//!
//! A draw is a function of its key alone: nothing here has state that outlives one opportunity.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of splitmix64: a bijection of 64-bit words that scatters them.
#[inline]
pub(crate) const fn mix(word: u64) -> u64 {
    let z = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What a stream of draws is for; keeps streams with equal counters apart.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(crate) enum Purpose {
    /// The opportunities of a campaign and step.
    Opportunity = 1,
    /// How many of them there are.
    Arrivals = 2,
    /// The noise of an hour.
    Hour = 3,
    /// Faults of the HTTP platform.
    Fault = 4,
}

/// The key of a stream.
#[inline]
pub(crate) const fn key(seed: u64, purpose: Purpose, a: u64, b: u64) -> u64 {
    let word = mix(seed.wrapping_add(GOLDEN)) ^ purpose as u64;
    let word = mix(word.wrapping_add(GOLDEN)) ^ a;
    mix(mix(word.wrapping_add(GOLDEN)) ^ b)
}

/// The draws of one key, in a fixed order.
pub(crate) struct Draws(u64);

impl Draws {
    /// The draws of member `index` of stream `key`.
    #[inline]
    pub(crate) const fn new(key: u64, index: u64) -> Draws {
        Draws(mix(key.wrapping_add(index.wrapping_mul(0xd134_2543_de82_ef95))))
    }

    /// 64 random bits.
    #[inline]
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// Uniform in `[0, 1)`.
    #[inline]
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Uniform in `0..bound`; 0 for a bound of 0.
    #[inline]
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// Standard normal.
    pub(crate) fn normal(&mut self) -> f64 {
        normal_quantile(self.unit())
    }

    /// Exponential with the given mean.
    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Poisson. Above 30 the normal approximation is used, whose error no test here can see.
    pub(crate) fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 30.0 {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0) as u64;
        }
        let uniform = self.unit();
        let mut probability = (-mean).exp();
        let (mut below, mut count) = (probability, 0_u64);
        while uniform > below && count < 200 {
            count += 1;
            probability *= mean / count as f64;
            below += probability;
        }
        count
    }
}

/// Φ, the distribution function of the standard normal (Abramowitz and Stegun 26.2.17, error below
/// 10⁻⁷).
pub(crate) fn normal_cdf(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let poly = t
        * (0.319_381_530
            + t * (-0.356_563_782
                + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let tail = (-0.5 * x * x).exp() * 0.398_942_280_401_432_7 * poly;
    if x >= 0.0 { 1.0 - tail } else { tail }
}

/// Φ⁻¹ (Acklam's rational approximation, relative error below 1.2 × 10⁻⁹); the argument is kept
/// 10⁻¹² inside `(0, 1)`.
pub(crate) fn normal_quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    const B: [f64; 5] = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
    ];
    const C: [f64; 6] = [
        -7.784_894_002_430_293e-3,
        -3.223_964_580_411_365e-1,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 4] = [
        7.784_695_709_041_462e-3,
        3.224_671_290_700_398e-1,
        2.445_134_137_142_996,
        3.754_408_661_907_416,
    ];
    let horner = |coefficients: &[f64], x: f64| coefficients.iter().fold(0.0, |sum, c| sum * x + c);
    let tail = |q: f64| horner(&C, q) / (horner(&D, q) * q + 1.0);
    let p = p.clamp(1e-12, 1.0 - 1e-12);
    if p < 0.02425 {
        tail((-2.0 * p.ln()).sqrt())
    } else if p > 1.0 - 0.02425 {
        -tail((-2.0 * (1.0 - p).ln()).sqrt())
    } else {
        let q = p - 0.5;
        let r = q * q;
        horner(&A, r) * q / (horner(&B, r) * r + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_inverts_the_distribution_function() {
        for i in 1..200 {
            let p = f64::from(i) / 200.0;
            assert!((normal_cdf(normal_quantile(p)) - p).abs() < 2e-7, "{p}");
        }
        assert!((normal_quantile(0.975) - 1.959_964).abs() < 1e-5);
        assert!(normal_quantile(0.0).is_finite() && normal_quantile(1.0).is_finite());
    }

    #[test]
    fn draws_have_their_moments() {
        let draws = |f: &dyn Fn(&mut Draws) -> f64| {
            let n = 40_000;
            let values: Vec<f64> = (0..n).map(|i| f(&mut Draws::new(9, i))).collect();
            let mean = values.iter().sum::<f64>() / n as f64;
            (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64)
        };
        let near = |(mean, variance): (f64, f64), want_mean: f64, want_variance: f64| {
            assert!((mean - want_mean).abs() < 0.03 * (1.0 + want_mean), "mean {mean}");
            assert!((variance - want_variance).abs() < 0.06 * (1.0 + want_variance), "{variance}");
        };
        near(draws(&|d| d.unit()), 0.5, 1.0 / 12.0);
        near(draws(&|d| d.normal()), 0.0, 1.0);
        near(draws(&|d| d.exponential(2.0)), 2.0, 4.0);
        near(draws(&|d| d.poisson(3.0) as f64), 3.0, 3.0);
        near(draws(&|d| d.poisson(80.0) as f64), 80.0, 80.0);
        near(draws(&|d| d.below(10) as f64), 4.5, 8.25);
    }
}
