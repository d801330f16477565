//! From numbers to the controller's inputs, and from its step to reasons and predictions.

use omnify_operators::model::DAY_US;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::account::Account;
use crate::action::Prediction;
use crate::autonomy::Complexity;
use crate::codes::reason;
use crate::config::{ControllerConfig, StageConfig};
use crate::draft::Draft;
use crate::dual::{Binding, Duals, Kpi, Pace, Step};
use crate::goal::Pricing;
use crate::ledger::Owner;
use crate::view::{Basis, Unit, View};

/// Spend of a day against plan.
pub(crate) struct Pacing {
    /// For the controller.
    pub(crate) pace: Pace,
    /// Reported plus predicted spend of the day.
    pub(crate) spent_micros: i64,
    /// Spend expected until the next row.
    pub(crate) until_next_micros: i64,
    /// (spent − due by the plan) / budget.
    pub(crate) error: f64,
}

/// Since when, and how often, a campaign is seen.
pub(crate) struct Watched {
    /// Now.
    pub(crate) now_us: i64,
    /// When its first row came.
    pub(crate) first_seen_us: i64,
    /// Time between its last two rows.
    pub(crate) gap_us: i64,
}

/// Where spend stands, and what it would be over the horizon with the bid as it is.
pub(crate) fn pacing(
    gains: &ControllerConfig,
    account: &Account,
    view: &View,
    pricing: Pricing,
    budget_micros: i64,
    watched: &Watched,
) -> Pacing {
    let (day, plan, now_us) = (&account.day, &account.plan, watched.now_us);
    let position = day.position(now_us);
    let horizon = ms_to_us(gains.horizon_ms) as f64 / day.hour_us();
    let until = (position + horizon).min(24.0);
    // A campaign younger than the window fills only part of it, unless its data reach further back.
    let older = view.long.impressions > view.short.impressions;
    let age_us = if older { view.short_us } else { now_us - watched.first_seen_us };
    let width_us = age_us.clamp(view.short_us / 60, view.short_us).max(1);
    let rate = view.short.cost_micros.max(0) as f64 / width_us as f64;
    let measured_from = (position - width_us as f64 / day.hour_us()).max(0.0);
    let density_now = plan.density(measured_from, position);
    let lag_micros = rate * ms_to_us(gains.reporting_lag_ms) as f64;
    let spent = view.today.cost_micros.max(0) as f64 + lag_micros;
    let budget = budget_micros as f64;
    let due = plan.due(position);
    let share_next = (plan.due(until) - due) / (1.0 - due).max(1e-9);
    let expected =
        rate * (until - position) * day.hour_us() * plan.density(position, until) / density_now;
    let mut planned = (budget - spent).max(0.0) * share_next.clamp(0.0, 1.0);
    if until - position < horizon / 4.0 {
        // The day is over too soon for a raise to be felt; tomorrow it would be too high.
        planned = planned.min(expected);
    }
    let gap_us = watched.gap_us.clamp(0, ms_to_us(gains.horizon_ms)) as f64;
    Pacing {
        pace: Pace {
            planned_micros: planned,
            expected_micros: expected,
            rate: rate / density_now,
            window_us: view.short_us,
            events: match pricing {
                Pricing::Cpm => view.short.impressions,
                Pricing::Cpc => view.short.clicks,
            },
        },
        spent_micros: spent as i64,
        until_next_micros: (rate * gap_us) as i64,
        error: (spent - budget * due) / budget.max(1.0),
    }
}

/// Milliseconds as microseconds, at most `i64::MAX`.
pub(crate) fn ms_to_us(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1_000)
}

/// Value of the last day against its price; numbers that are not fresh were acted on before.
pub(crate) fn kpi(
    view: &View,
    basis: &Basis,
    (unit, price_micros): (Unit, f64),
    events_min: i64,
    fresh: bool,
) -> Kpi {
    let events = unit.events(&view.mature).max(0);
    let clicks = view.recent.clicks.max(0);
    let per_event = if unit == Unit::Clicks { 0.0 } else { 1.0 / events.max(1) as f64 };
    let nowcast_variance =
        unit.maturity(view).map_or(0.0, |maturity| maturity.error * maturity.error);
    Kpi {
        price_micros,
        cost_micros: view.recent.cost_micros as f64,
        value: basis.realised(unit, &view.recent),
        one: unit.one(basis),
        variance: per_event + 1.0 / clicks.max(1) as f64 + nowcast_variance,
        nowcast_variance,
        window_us: view.recent_us,
        usable: fresh && events >= events_min && clicks > 0,
    }
}

/// Puts the reasons of a step first.
pub(crate) fn explain(reasons: &mut Vec<&'static str>, step: &Step) {
    let (binds, direction) = match (step.binding, step.error > 0.0) {
        (Binding::Budget, true) => (reason::BUDGET_BINDS, reason::BEHIND_PLAN),
        (Binding::Budget, false) => (reason::BUDGET_BINDS, reason::AHEAD_OF_PLAN),
        (Binding::Kpi, true) => (reason::KPI_BINDS, reason::BELOW_TARGET),
        (Binding::Kpi, false) => (reason::KPI_BINDS, reason::ABOVE_TARGET),
    };
    reasons.insert(0, direction);
    reasons.insert(0, binds);
}

/// A seeded normal perturbation of ln bid, with its density; (0, 1) without exploration.
pub(crate) fn explore(config: &StageConfig, draft: &Draft) -> (f64, f64) {
    let sd = config.controller.exploration_sd;
    if sd <= 0.0 {
        return (0.0, 1.0);
    }
    let key = &draft.entity.key;
    let seed = crate::ids::exploration_seed(config.seed, key, draft.tick, draft.policy);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let (u, v): (f64, f64) = (rng.r#gen(), rng.r#gen());
    let z = (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    let density = (-0.5 * z * z).exp() / (sd * std::f64::consts::TAU.sqrt());
    (sd * z, density)
}

/// Power of value in spend when nothing is learned: returns diminish.
const VALUE_POWER: f64 = 0.6;
/// 90 % quantile of the standard normal.
const Z90: f64 = 1.2816;

/// Expected effect of a change of ln bid, per day.
pub(crate) fn predict(
    view: &View,
    basis: &Basis,
    unit: Unit,
    duals: &Duals,
    change: f64,
) -> Prediction {
    let days = view.recent_us as f64 / DAY_US as f64;
    let spend = view.recent.cost_micros.max(0) as f64 / days;
    let value = basis.realised(unit, &view.recent) / days;
    let elasticity = duals.elasticity();
    let gain = |elasticity: f64| value * ((VALUE_POWER * elasticity * change).exp() - 1.0);
    let expected = gain(elasticity.used());
    let by_elasticity = value * VALUE_POWER * elasticity.error() * change;
    let by_chance = 2.0 * value * unit.one(basis);
    let by_curve = unit.maturity(view).map_or(0.0, |maturity| expected * maturity.error);
    let known = by_elasticity * by_elasticity + by_curve * by_curve;
    let half = Z90 * (known + by_chance).max(0.0).sqrt();
    let amount =
        |micros_or_value: f64| if micros_or_value.is_finite() { micros_or_value } else { 0.0 };
    Prediction {
        spend_micros: amount(spend * ((elasticity.used() * change).exp() - 1.0)),
        value: amount(expected),
        value_low: amount(expected - half),
        value_high: amount(expected + half),
    }
}

/// How complex a bid change is; `blast_radius` is the campaign's share of the account's spend.
pub(crate) fn complexity(
    predicted: &Prediction,
    owner: &Owner,
    blast_radius: f64,
    (daily_budget_micros, now_us): (i64, i64),
) -> Complexity {
    let width = predicted.value_high - predicted.value_low;
    Complexity {
        impact: predicted.spend_micros.abs() / (0.2 * daily_budget_micros.max(1) as f64),
        uncertainty: if width > 0.0 { width / predicted.value.abs() } else { 0.0 },
        novelty: 1.0 / (1.0 + owner.pre_images.len() as f64),
        blast_radius,
        irreversibility: 0.0,
        conflict: match owner.foreign_edit_us {
            Some(edited) if now_us - edited < 3 * DAY_US => 1.0,
            _ => 0.0,
        },
    }
}
