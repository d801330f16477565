//! Two multipliers, one bid: the controller behind every policy.
//!
//! With `worth` the value of one bid unit, `price` what one unit of value may cost, μ the budget
//! dual and λ the KPI dual:
//!
//! ```text
//! b_budget = worth / μ          b_kpi = ((1 + λ) / λ) · price · worth          b = min of both
//! ```
//!
//! The lower bid wins ("min pacing": Balseiro et al., *A Field Guide for Pacing Budget and ROS
//! Constraints*, 2023, where shading one bid by the other in sequence is shown to violate
//! constraints). Multipliers are kept as logarithms of money per value.
//!
//! **Budget**, every control period, in the log domain (after Zhang et al., *Feedback Control of
//! Real-Time Display Advertising*, 2016):
//!
//! ```text
//! e = ln( planned spend over H / expected spend over H )      planned: the budget left, by the plan
//! I ← clip(I + e·Δt, ±I_max)      Δ ln(1/μ) = (kp·e + ki·I) / ε      ε = d ln spend / d ln bid
//! ```
//!
//! Spend not yet reported is predicted and counted as spent (Smith predictor). ε is learned by
//! recursive least squares with forgetting 0.97 from its own changes, prior 1, used within
//! [0.3, 3]. A change within the deadband, or within 1.64 standard errors, is not made.
//!
//! **KPI**, with the cost c and the expected value g of the last day (clicks times a
//! maturity-safe conversion rate, so that late conversions do not read as failure):
//!
//! ```text
//! Δ ln((1+λ)/λ) = gain · ln( price·(g + g₀) / (c + price·g₀) ) · Δt / window
//! ```
//!
//! g₀ is three events: with few clicks the error vanishes instead of shouting. Where conversions
//! are completed by a nowcast whose standard error is s, the step is cut to `e² / (e² + s²)` of it:
//! an error that may be the curve's is hardly acted on.
//!
//! **Anti-windup.** Brakes act from the bid in force; no multiplier strays further than `slack`
//! above it or [`BELOW_MAX`] below it; the integral stands still while a guardrail cuts.

use serde::{Deserialize, Serialize};

use crate::config::ControllerConfig;

/// Furthest below the bid in force a multiplier may wander, in ln.
const BELOW_MAX: f64 = 0.25;
/// Range of ln((1+λ)/λ). Below 0 the form leaves the theory; that happens where more is paid than
/// was bid (fees), and the loop still has to close.
const LN_KPI_MAX: f64 = 2.3;
const ELASTICITY_RANGE: (f64, f64) = (0.3, 3.0);
const FORGETTING: f64 = 0.97;
/// Variance of an observed Δ ln spend: 10 % noise.
const SPEND_NOISE: f64 = 0.01;
/// Below this elasticity, known to ±0.3, bids do not move spend.
const LIMITED_BELOW: f64 = 0.15;
const HOUR_US: f64 = 3.6e9;

/// Normal distribution function, by the logistic approximation (error below 0.01).
pub(crate) fn normal_cdf(z: f64) -> f64 {
    1.0 / (1.0 + (-1.702 * z).exp())
}

/// Learned d ln(spend) / d ln(bid): a scalar Kalman filter with forgetting.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Elasticity {
    mean: f64,
    variance: f64,
    pending: Option<Pending>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Pending {
    change: f64,
    rate: f64,
    at_us: i64,
}

impl Elasticity {
    const PRIOR: Elasticity = Elasticity { mean: 1.0, variance: 1.0, pending: None };

    /// The value to divide by.
    pub(crate) fn used(&self) -> f64 {
        self.mean.clamp(ELASTICITY_RANGE.0, ELASTICITY_RANGE.1)
    }

    /// Its standard error.
    pub(crate) fn error(&self) -> f64 {
        self.variance.sqrt()
    }

    fn limited(&self) -> bool {
        self.mean < LIMITED_BELOW && self.variance < 0.09
    }

    fn observe(&mut self, change: f64, effect: f64) {
        let variance = (self.variance / FORGETTING).min(1.0);
        let gain = variance * change / (SPEND_NOISE + change * change * variance);
        self.mean += gain * (effect - change * self.mean);
        self.variance = (1.0 - gain * change) * variance;
    }

    /// Takes up the effect of the last change once a whole window lies after it.
    fn settle(&mut self, now_us: i64, window_us: i64, rate: f64) {
        if let Some(pending) = self.pending
            && now_us - pending.at_us >= window_us
        {
            self.pending = None;
            if rate > 0.0 && pending.rate > 0.0 {
                self.observe(pending.change, (rate / pending.rate).ln().clamp(-2.0, 2.0));
            }
        }
    }
}

/// Where spend stands against plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pace {
    /// Spend planned over the horizon: the budget left times its share of the plan left.
    pub(crate) planned_micros: f64,
    /// Spend expected over the horizon with the bid as it is.
    pub(crate) expected_micros: f64,
    /// Spend per µs now, over the plan's density: what elasticity is learned from.
    pub(crate) rate: f64,
    /// Width of the window the rate was measured in.
    pub(crate) window_us: i64,
    /// Priced events (impressions or clicks) in that window.
    pub(crate) events: i64,
}

/// Where value stands against its price.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Kpi {
    /// What one unit of value may cost.
    pub(crate) price_micros: f64,
    /// Cost of the last day.
    pub(crate) cost_micros: f64,
    /// Expected value of the last day.
    pub(crate) value: f64,
    /// Value of one event.
    pub(crate) one: f64,
    /// Squared standard error of ln value.
    pub(crate) variance: f64,
    /// The part of it that comes from conversions not reported yet.
    pub(crate) nowcast_variance: f64,
    /// Length of the window.
    pub(crate) window_us: i64,
    /// False while there is too little evidence: the multiplier stands still.
    pub(crate) usable: bool,
}

const PRIOR_EVENTS: f64 = 3.0;

impl Kpi {
    /// ln(allowed cost / cost), shrunk by the prior: above 0 when value is cheaper than allowed.
    pub(crate) fn error(&self) -> f64 {
        let prior = self.price_micros * self.one * PRIOR_EVENTS;
        let allowed = self.price_micros * self.value + prior;
        let paid = self.cost_micros.max(0.0) + prior;
        if allowed > 0.0 && paid > 0.0 { (allowed / paid).ln() } else { 0.0 }
    }

    /// Share of a step that is made.
    fn trust(&self, error: f64) -> f64 {
        let signal = error * error;
        if self.nowcast_variance > 0.0 { signal / (signal + self.nowcast_variance) } else { 1.0 }
    }
}

/// Which multiplier gives the lower bid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    Budget,
    Kpi,
}

/// What one update came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Step {
    /// Wanted change of the bid in ln; 0 within the deadband.
    pub(crate) change: f64,
    /// Which multiplier decides.
    pub(crate) binding: Binding,
    /// The error that multiplier acts on.
    pub(crate) error: f64,
    /// Probability that the error has this sign.
    pub(crate) certainty: f64,
    /// Raising is pointless: spend does not answer.
    pub(crate) limited: bool,
}

/// State of the controller of one campaign.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Duals {
    /// ln(1/μ): money per value at the margin.
    ln_budget: f64,
    /// ln((1+λ)/λ).
    ln_kpi: f64,
    integral: f64,
    updated_us: i64,
    elasticity: Elasticity,
}

impl Duals {
    /// Both multipliers at the bid in force: the first update starts without a bump.
    pub(crate) fn at_bid(bid: f64, worth: f64, price: Option<f64>, now_us: i64) -> Duals {
        let ln_budget = (bid / worth).ln();
        Duals {
            ln_budget,
            ln_kpi: price
                .map_or(0.0, |price| (ln_budget - price.ln()).clamp(-LN_KPI_MAX, LN_KPI_MAX)),
            integral: 0.0,
            updated_us: now_us,
            elasticity: Elasticity::PRIOR,
        }
    }

    /// Budget dual μ.
    pub(crate) fn mu(&self) -> f64 {
        (-self.ln_budget).exp()
    }

    /// KPI dual λ, at most 1000.
    pub(crate) fn lambda(&self) -> f64 {
        1.0 / (self.ln_kpi.exp() - 1.0).max(1e-3)
    }

    /// Learned elasticity of spend.
    pub(crate) fn elasticity(&self) -> &Elasticity {
        &self.elasticity
    }

    /// When the multipliers were last updated.
    pub(crate) fn updated_us(&self) -> i64 {
        self.updated_us
    }

    /// Keeps the bid the same when the unit or the estimate of worth is replaced by another.
    pub(crate) fn rebase(&mut self, worth_before: f64, worth: f64) {
        if worth_before > 0.0 && worth > 0.0 {
            self.ln_budget += (worth_before / worth).ln();
        }
    }

    /// One update with `bid` in force. The caller sends the change or not and then calls
    /// [`Duals::settle`].
    pub(crate) fn update(
        &mut self,
        gains: &ControllerConfig,
        now_us: i64,
        (bid, worth): (f64, f64),
        pace: &Pace,
        kpi: Option<&Kpi>,
    ) -> Step {
        let elapsed_us = (now_us - self.updated_us).max(0) as f64;
        self.updated_us = now_us;
        self.elasticity.settle(now_us, pace.window_us, pace.rate);
        let in_force = (bid / worth).ln();

        let error = pace_error(pace, gains.error_max);
        let noise = 1.0 / (pace.events.max(4) as f64).sqrt();
        self.integral = (self.integral + error * (elapsed_us / HOUR_US).min(1.0))
            .clamp(-gains.integral_max, gains.integral_max);
        let elasticity = self.elasticity.used();
        let wanted = (gains.kp * error + gains.ki * self.integral) / elasticity;
        let least = gains.deadband.max(1.64 * noise * gains.kp / elasticity);
        let limited = error > 0.0 && self.elasticity.limited();
        if wanted.abs() > least && !limited {
            let from = if wanted < 0.0 { self.ln_budget.min(in_force) } else { self.ln_budget };
            self.ln_budget = from + wanted;
        }

        let mut kpi_error = 0.0;
        let mut kpi_in_force = f64::INFINITY;
        if let Some(kpi) = kpi {
            kpi_in_force = in_force - kpi.price_micros.ln();
            kpi_error = kpi.error();
            if kpi.usable {
                let share = (elapsed_us / kpi.window_us.max(1) as f64).min(1.0);
                let wanted = gains.kpi_gain * kpi_error * share * kpi.trust(kpi_error);
                let from = if wanted < 0.0 { self.ln_kpi.min(kpi_in_force) } else { self.ln_kpi };
                self.ln_kpi = from + wanted;
            }
        }
        self.keep_near(in_force, kpi_in_force, gains.slack);

        let budget_change = self.ln_budget - in_force;
        let kpi_change = if kpi.is_some() { self.ln_kpi - kpi_in_force } else { f64::INFINITY };
        let (binding, change, error, deviation) = if kpi_change < budget_change {
            let deviation = kpi.map_or(1.0, |kpi| kpi.variance.sqrt());
            (Binding::Kpi, kpi_change, kpi_error, deviation)
        } else {
            (Binding::Budget, budget_change, error, noise)
        };
        let certainty = normal_cdf(error.abs() / deviation.max(1e-9));
        let change = if change.abs() > gains.deadband { change } else { 0.0 };
        Step { change, binding, error, certainty, limited }
    }

    /// Notes what became of an update: `bid` is in force now, `cut` says that a guardrail let less
    /// through than was wanted. A change made becomes an experiment for elasticity.
    pub(crate) fn settle(
        &mut self,
        gains: &ControllerConfig,
        (bid_before, bid, worth): (f64, f64, f64),
        price: Option<f64>,
        cut: bool,
        pace: &Pace,
    ) {
        let in_force = (bid / worth).ln();
        if cut {
            self.integral *= 0.5;
            self.ln_budget = self.ln_budget.max(in_force);
            if let Some(price) = price {
                self.ln_kpi = self.ln_kpi.max(in_force - price.ln());
            }
        }
        let kpi_in_force = price.map_or(f64::INFINITY, |price| in_force - price.ln());
        self.keep_near(in_force, kpi_in_force, gains.slack);
        let change = (bid / bid_before).ln();
        if change.abs() >= 0.01 {
            let at_us = self.updated_us;
            self.elasticity.pending = Some(Pending { change, rate: pace.rate, at_us });
        }
    }

    fn keep_near(&mut self, in_force: f64, kpi_in_force: f64, slack: f64) {
        let above = slack.ln();
        self.ln_budget = self.ln_budget.clamp(in_force - BELOW_MAX, in_force + above);
        if kpi_in_force.is_finite() {
            self.ln_kpi = self
                .ln_kpi
                .clamp(kpi_in_force - BELOW_MAX, kpi_in_force + above)
                .clamp(-LN_KPI_MAX, LN_KPI_MAX);
        }
    }
}

fn pace_error(pace: &Pace, error_max: f64) -> f64 {
    if pace.planned_micros <= 0.0 {
        -error_max
    } else if pace.expected_micros <= 0.0 {
        error_max
    } else {
        (pace.planned_micros / pace.expected_micros).ln().clamp(-error_max, error_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUARTER_US: i64 = 900_000_000;

    fn pace(planned: f64, expected: f64) -> Pace {
        Pace {
            planned_micros: planned,
            expected_micros: expected,
            rate: expected,
            window_us: QUARTER_US,
            events: 100_000,
        }
    }

    fn kpi(cost: f64, value: f64) -> Kpi {
        Kpi {
            price_micros: 100.0,
            cost_micros: cost,
            value,
            one: 1.0,
            variance: 0.0025,
            nowcast_variance: 0.0,
            window_us: 96 * QUARTER_US,
            usable: true,
        }
    }

    #[test]
    fn underspend_raises_and_overspend_lowers() {
        let gains = ControllerConfig::default();
        let start = Duals::at_bid(10.0, 0.1, None, 0);
        let mut duals = start;
        let up = duals.update(&gains, QUARTER_US, (10.0, 0.1), &pace(200.0, 100.0), None);
        assert!(up.change > 0.2 && up.certainty > 0.99, "{up:?}");
        let mut duals = start;
        let down = duals.update(&gains, QUARTER_US, (10.0, 0.1), &pace(0.0, 100.0), None);
        assert!(down.change < -0.2, "{down:?}");
        let mut duals = start;
        let hold = duals.update(&gains, QUARTER_US, (10.0, 0.1), &pace(101.0, 100.0), None);
        assert_eq!(hold.change, 0.0);
    }

    #[test]
    fn the_lower_bid_wins() {
        let gains = ControllerConfig::default();
        let mut duals = Duals::at_bid(10.0, 0.1, Some(100.0), 0);
        let mut bid: f64 = 10.0;
        let mut last = None;
        for quarter in 1..=8 {
            let step = duals.update(
                &gains,
                quarter * QUARTER_US,
                (bid, 0.1),
                &pace(200.0, 100.0),
                Some(&kpi(100_000.0, 500.0)),
            );
            let before = bid;
            bid *= step.change.exp();
            duals.settle(&gains, (before, bid, 0.1), Some(100.0), false, &pace(200.0, 100.0));
            last = Some(step.binding);
        }
        assert_eq!(last, Some(Binding::Kpi));
        assert!(bid < 10.0, "the KPI is missed, so spending less than planned is right: {bid}");
    }

    #[test]
    fn multipliers_do_not_wind_up_while_blocked() {
        let gains = ControllerConfig::default();
        let mut duals = Duals::at_bid(10.0, 0.1, Some(100.0), 0);
        for quarter in 1..=1_000 {
            let now = pace(500.0, 100.0);
            duals.update(&gains, quarter * QUARTER_US, (10.0, 0.1), &now, Some(&kpi(9e5, 100.0)));
            duals.settle(&gains, (10.0, 10.0, 0.1), Some(100.0), true, &now);
        }
        let budget_bid = 0.1 / duals.mu();
        assert!((9.9..=10.0 * gains.slack + 0.1).contains(&budget_bid), "{budget_bid}");
        let step = duals.update(&gains, 0, (10.0, 0.1), &pace(50.0, 100.0), None);
        assert!(step.change < 0.0, "brakes act at once: {step:?}");
    }

    #[test]
    fn elasticity_is_learned_and_its_absence_noticed() {
        let learn = |truth: f64| {
            let mut elasticity = Elasticity::PRIOR;
            for round in 0..40 {
                let change = if round % 2 == 0 { 0.1 } else { -0.08 };
                elasticity.observe(change, truth * change);
            }
            elasticity
        };
        assert!((learn(2.0).mean - 2.0).abs() < 0.1);
        assert!(learn(0.0).limited() && !learn(1.0).limited() && !Elasticity::PRIOR.limited());
        assert_eq!(learn(0.0).used(), ELASTICITY_RANGE.0);
    }

    #[test]
    fn what_may_be_the_curves_error_is_hardly_acted_on() {
        let change = |nowcast_variance| {
            let gains = ControllerConfig { deadband: 0.0, ..ControllerConfig::default() };
            let mut duals = Duals::at_bid(10.0, 0.1, Some(100.0), 0);
            let dear = Kpi { nowcast_variance, ..kpi(120_000.0, 1_000.0) };
            let day = 96 * QUARTER_US;
            duals.update(&gains, day, (10.0, 0.1), &pace(100.0, 100.0), Some(&dear)).change
        };
        let error = kpi(120_000.0, 1_000.0).error();
        assert!((change(0.0) - error).abs() < 1e-9, "{}", change(0.0));
        assert!((change(error * error) / change(0.0) - 0.5).abs() < 1e-9);
        assert!(change(1.0).abs() < 0.05 * change(0.0).abs());
    }

    #[test]
    fn few_events_give_a_small_kpi_error() {
        let few = Kpi { value: 0.0, ..kpi(100.0, 0.0) };
        let many = Kpi { value: 50.0, ..kpi(10_000.0, 50.0) };
        assert!(few.error() > -0.3 && few.error() < 0.0);
        assert!(many.error() < -0.6);
    }
}
