//! Sharing one budget among campaigns by equal marginal return.
//!
//! Each campaign's daily value is a power of its daily spend, `y = A·x^b` with `0 < b < 1`.
//! `(ln A, b)` are learned by recursive Bayes with forgetting φ on `u = (1, ln x)`:
//!
//! ```text
//! P ← P/φ;  k = P u / (s² + uᵀ P u);  w ← w + k (ln y − uᵀ w);  P ← (I − k uᵀ) P
//! ```
//!
//! The best split makes the marginal value of the last micro, `A b x^(b−1) = λ`, the same for all
//! campaigns inside their limits (the KKT condition of a strictly convex problem):
//!
//! ```text
//! x_i(λ) = clip((A_i b_i / λ)^(1/(1−b_i)), lo_i, hi_i)        Σ x_i(λ) = B   by bisection on ln λ
//! ```
//!
//! Spend follows demand, so a fit without planned perturbation overstates b; the prior holds it.

use serde::{Deserialize, Serialize};

/// Prior of b, and its standard deviation.
const POWER_PRIOR: (f64, f64) = (0.6, 0.15);
/// Prior standard deviation of ln A around the first observation.
const SCALE_SD: f64 = 1.0;
const POWER_RANGE: (f64, f64) = (0.1, 0.95);
const FORGETTING: f64 = 0.97;
/// Variance of ln of a day's value beside its counting noise.
const DAY_NOISE: f64 = 0.04;
/// Halvings of ln λ: far beyond the precision of a micro.
const BISECTIONS: usize = 80;

/// Learned response of a campaign.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    ln_scale: f64,
    power: f64,
    /// Covariance: (var ln A, cov, var b).
    covariance: (f64, f64, f64),
}

impl Response {
    /// The prior through one observed day of `spend` and `value`.
    pub fn through(spend: f64, value: f64) -> Option<Response> {
        let usable = spend > 0.0 && value > 0.0 && spend.is_finite() && value.is_finite();
        usable.then(|| Response {
            ln_scale: value.ln() - POWER_PRIOR.0 * spend.ln(),
            power: POWER_PRIOR.0,
            covariance: (SCALE_SD * SCALE_SD, 0.0, POWER_PRIOR.1 * POWER_PRIOR.1),
        })
    }

    /// A response that stands for none.
    fn flat() -> Response {
        Response { ln_scale: 0.0, power: POWER_PRIOR.0, covariance: (0.0, 0.0, 0.0) }
    }

    /// Takes up another day; `events` are behind its value.
    pub fn learn(&mut self, spend: f64, value: f64, events: f64) {
        if !(spend > 0.0 && value > 0.0 && spend.is_finite() && value.is_finite()) {
            return;
        }
        let x = spend.ln();
        let (aa, ab, bb) = self.covariance;
        let (aa, ab, bb) = (aa / FORGETTING, ab / FORGETTING, bb / FORGETTING);
        let (pa, pb) = (aa + ab * x, ab + bb * x);
        let scale = DAY_NOISE + 1.0 / events.max(1.0) + pa + pb * x;
        let (ka, kb) = (pa / scale, pb / scale);
        let error = value.ln() - self.ln_scale - self.power * x;
        self.ln_scale += ka * error;
        self.power += kb * error;
        let bound = |variance: f64, most: f64| variance.clamp(0.0, most);
        self.covariance = (
            bound(aa - ka * pa, 400.0),
            ab - ka * pb,
            bound(bb - kb * pb, POWER_PRIOR.1 * POWER_PRIOR.1),
        );
    }

    /// The power used: within the range where the problem stays convex.
    fn power(&self) -> f64 {
        self.power.clamp(POWER_RANGE.0, POWER_RANGE.1)
    }

    /// ln of the marginal value of spend at `spend`.
    pub fn ln_marginal(&self, spend: f64) -> f64 {
        let power = self.power();
        self.ln_scale + power.ln() + (power - 1.0) * spend.max(1.0).ln()
    }

    /// The spend at which the marginal value is `exp(ln_lambda)`.
    fn spend_at(&self, ln_lambda: f64) -> f64 {
        let power = self.power();
        ((self.ln_scale + power.ln() - ln_lambda) / (1.0 - power)).exp()
    }
}

/// One campaign's part in an allocation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Its response.
    pub response: Response,
    /// Least it may get.
    pub low_micros: i64,
    /// Most it may get.
    pub high_micros: i64,
}

/// Shares `budget_micros` out; the answer has the order of `shares` and never sums to more than
/// the budget unless the lower limits alone do.
pub fn allocate(shares: &[Share], budget_micros: i64) -> Vec<i64> {
    let amount = |share: &Share, ln_lambda: f64| {
        let (low, high) = (share.low_micros, share.high_micros.max(share.low_micros));
        // Rounded down: a micro too little is spent by nobody.
        (share.response.spend_at(ln_lambda).min(9e18) as i64).clamp(low, high)
    };
    let total = |ln_lambda: f64| -> i128 {
        shares.iter().map(|share| i128::from(amount(share, ln_lambda))).sum()
    };
    // The marginal value at both limits of every campaign brackets λ.
    let (mut low, mut high) = shares.iter().fold((0.0f64, 0.0f64), |(low, high), share| {
        let least = share.response.ln_marginal(share.high_micros as f64);
        let most = share.response.ln_marginal(share.low_micros as f64);
        (low.min(least - 1.0), high.max(most + 1.0))
    });
    if total(low) <= i128::from(budget_micros) {
        return shares.iter().map(|share| amount(share, low)).collect();
    }
    for _ in 0..BISECTIONS {
        let middle = 0.5 * (low + high);
        if total(middle) > i128::from(budget_micros) {
            low = middle;
        } else {
            high = middle;
        }
    }
    shares.iter().map(|share| amount(share, high)).collect()
}

/// Largest part of its budget a campaign gains or loses in one allocation (the box of Meridian).
const BOX: f64 = 0.3;

/// Shares a portfolio out among `(learned response, budget now)`, each moved by at most 30 % and
/// never above `each_max_micros`. A campaign of which nothing is known keeps what it has.
///
/// The budgets of now are scaled to the portfolio first, so that a changed portfolio is followed
/// although every part is boxed.
pub(crate) fn portfolio(
    parts: &[(Option<Response>, i64)],
    budget_micros: i64,
    each_max_micros: i64,
) -> Vec<i64> {
    let now: i128 = parts.iter().map(|(_, amount)| i128::from(*amount)).sum();
    let scale = (budget_micros as f64 / now.max(1) as f64).min(1.0);
    let shares = parts.iter().map(|(response, amount)| {
        let amount = *amount as f64 * scale;
        let most = each_max_micros.min(budget_micros).max(1);
        let within = |amount: f64| (amount as i64).clamp(1, most);
        let (low, high) = match response {
            Some(_) => (within(amount * (1.0 - BOX)), within(amount * (1.0 + BOX))),
            None => (within(amount), within(amount)),
        };
        // With equal limits the response does not matter.
        let response = response.unwrap_or(Response::flat());
        Share { response, low_micros: low, high_micros: high }
    });
    allocate(&shares.collect::<Vec<_>>(), budget_micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(scale: f64, power: f64, low_micros: i64, high_micros: i64) -> Share {
        let response = Response { ln_scale: scale.ln(), power, covariance: (1.0, 0.0, 0.01) };
        Share { response, low_micros, high_micros }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// The KKT conditions: equal marginals inside the limits; at a lower limit the marginal is
        /// not above, at an upper limit not below the common one; the budget is used up.
        #[test]
        fn marginals_are_equal_inside_the_limits(
            parts in prop::collection::vec(
                (0.01f64..100.0, 0.2f64..0.9, 1_000i64..1_000_000, 1i64..100_000_000), 2..12),
            part in 0.05f64..0.95,
        ) {
            let shares: Vec<Share> =
                parts.iter().map(|&(a, b, low, width)| share(a, b, low, low + width)).collect();
            let least: i64 = shares.iter().map(|share| share.low_micros).sum();
            let most: i64 = shares.iter().map(|share| share.high_micros).sum();
            let budget = least + ((most - least) as f64 * part) as i64;
            let amounts = allocate(&shares, budget);
            let total: i64 = amounts.iter().sum();
            prop_assert!(total <= budget);
            prop_assert!(budget - total <= 1 + shares.len() as i64 + budget / 100_000_000);
            let marginal = |at: usize| shares[at].response.ln_marginal(amounts[at] as f64);
            let inside: Vec<f64> = (0..shares.len())
                .filter(|&at| {
                    amounts[at] > shares[at].low_micros && amounts[at] < shares[at].high_micros
                })
                .map(marginal)
                .collect();
            if let Some(&common) = inside.first() {
                prop_assert!(inside.iter().all(|value| (value - common).abs() < 0.01));
                for at in 0..shares.len() {
                    if amounts[at] == shares[at].low_micros {
                        prop_assert!(marginal(at) < common + 0.01);
                    } else if amounts[at] == shares[at].high_micros {
                        prop_assert!(marginal(at) > common - 0.01);
                    }
                }
            }
        }
    }

    #[test]
    fn money_goes_where_the_next_micro_returns_more() {
        let shares = [share(1.0, 0.5, 1_000, 1_000_000), share(2.0, 0.5, 1_000, 1_000_000)];
        let amounts = allocate(&shares, 500_000);
        // With b = 1/2 spend goes as A².
        assert!((amounts[1] as f64 / amounts[0] as f64 - 4.0).abs() < 0.001, "{amounts:?}");
        assert_eq!(allocate(&shares, 5_000_000), [1_000_000, 1_000_000]);
        assert_eq!(allocate(&shares, 10), [1_000, 1_000], "lower limits hold");
        assert!(allocate(&[], 10).is_empty());
    }

    #[test]
    fn a_portfolio_moves_in_boxes_and_never_exceeds_its_budget() {
        let response = |value| Response::through(1e6, value);
        let parts = [(response(10.0), 1_000_000), (response(40.0), 1_000_000), (None, 500_000)];
        let amounts = portfolio(&parts, 2_500_000, 10_000_000);
        assert_eq!(amounts[2], 500_000);
        assert!(amounts[1] > 1_200_000 && amounts[1] <= 1_300_000, "{amounts:?}");
        assert!(amounts.iter().sum::<i64>() <= 2_500_000);
        let halved = portfolio(&parts, 1_250_000, 10_000_000);
        assert!(halved.iter().sum::<i64>() <= 1_250_000, "{halved:?}");
        assert!(portfolio(&parts, 2_500_000, 900_000).iter().all(|amount| *amount <= 900_000));
    }

    #[test]
    fn the_response_is_learned() {
        let truth = |spend: f64| 0.01 * spend.powf(0.7);
        let mut response = Response::through(1e6, truth(1e6)).unwrap();
        for day in 0..200 {
            let spend = 1e6 * (1.0 + f64::from(day % 10));
            response.learn(spend, truth(spend), 1_000.0);
        }
        assert!((response.power - 0.7).abs() < 0.03, "{response:?}");
        assert!(Response::through(0.0, 1.0).is_none());
    }
}
