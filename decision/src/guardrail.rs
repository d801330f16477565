//! The limits no action may cross: one function, run last, that every proposal passes.
//!
//! [`judge`] takes what a policy wants and the facts about its owner, and says what is left of it.
//! The order is the order of severity: kill switches stop everything, the data-integrity interlock
//! and missing evidence stop what is driven by numbers, and only then are amounts cut to size.
//! [`crossed`] checks the result independently; anything it finds is a defect (invariant 5).
//!
//! Two freedoms are deliberate. Moves that can only lower spend to a stated limit (a bid down to
//! the cap, a budget down to the goal's, the stop of a day whose budget is spent) skip step,
//! cooldown and learning phase. Alerts change nothing and are stopped by kill switches alone.

use serde::{Deserialize, Serialize};

use crate::action::{Setting, Verdict};
use crate::codes::guardrail as code;
use crate::config::GuardrailConfig;

/// What a proposal is driven by: it decides which limits apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// Value against its price.
    Kpi,
    /// Spend against plan.
    Pacing,
    /// Nothing is known at the platform; a first value is set.
    Establish,
    /// The goal's budget, as the tenant wrote it.
    Wish,
    /// Shares of a portfolio.
    Reallocation,
    /// The day's budget is spent.
    Stop,
    /// A new day begins.
    Resume,
    /// A creative is worn out.
    Rotation,
    /// People are told.
    Alert,
}

/// A change a policy wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The setting.
    pub setting: Setting,
    /// Why.
    pub driver: Driver,
    /// Probability that it goes the right way.
    pub certainty: f64,
}

/// Everything the limits depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The global kill switch.
    pub killed_global: bool,
    /// The tenant's kill switch.
    pub killed_tenant: bool,
    /// The account was silent for too long.
    pub feed_late: bool,
    /// Delivery is anomalous.
    pub anomaly: bool,
    /// Share of the conversions behind the numbers that is reported; 1 where it does not matter.
    pub maturity: f64,
    /// Conversions come in otherwise than the account's completeness curve says.
    pub curve_broken: bool,
    /// Events behind the KPI or, for pacing, priced events behind the spend rate.
    pub events: i64,
    /// Matured events, which end the learning phase.
    pub matured_events: i64,
    /// Time since the campaign was first seen.
    pub age_us: i64,
    /// Time since the owner's last change; `None` if there was none.
    pub since_change_us: Option<i64>,
    /// Sum of |Δ ln| of the last 24 hours.
    pub moved_24h: f64,
    /// Sum of |Δ ln| of the last 7 days.
    pub moved_7d: f64,
    /// Conversions in the longest window of what would be paused.
    pub conversions: i64,
    /// Whether the day's budget covers more delivery.
    pub budget_left: bool,
    /// Actual value of the setting.
    pub before_micros: Option<i64>,
    /// Lowest bid.
    pub floor_micros: i64,
    /// Highest bid.
    pub cap_micros: i64,
    /// Highest daily budget.
    pub daily_budget_micros: i64,
    /// A person approved exactly this, which settles what asks for a person and nothing else.
    pub approved: bool,
}

/// What is left of a proposal.
#[derive(Clone, Debug, PartialEq)]
pub struct Ruling {
    /// `Act`, `Blocked` or `Propose`.
    pub verdict: Verdict,
    /// What was let through.
    pub granted: Option<Setting>,
    /// Guardrails that changed or stopped it.
    pub hits: Vec<&'static str>,
}

impl Ruling {
    fn stop(verdict: Verdict, mut hits: Vec<&'static str>, hit: &'static str) -> Ruling {
        hits.push(hit);
        Ruling { verdict, granted: None, hits }
    }
}

/// Lets through as much of a proposal as the limits allow.
pub fn judge(limits: &GuardrailConfig, facts: &Facts, proposal: &Proposal) -> Ruling {
    if let Some(hit) = stopped_by(limits, facts, proposal) {
        return Ruling::stop(Verdict::Blocked, Vec::new(), hit);
    }
    let pauses_winner = matches!(proposal.driver, Driver::Rotation)
        && facts.conversions >= limits.winner_conversions;
    if pauses_winner && !facts.approved {
        return Ruling::stop(Verdict::Propose, Vec::new(), code::WINNER);
    }
    match proposal.setting {
        Setting::Bid { bid_micros } => sized(
            limits,
            facts,
            bid_micros,
            (facts.floor_micros.max(1), code::FLOOR),
            (facts.cap_micros, code::CAP),
            |bid_micros| Setting::Bid { bid_micros },
        ),
        Setting::Budget { budget_micros } => {
            if proposal.driver == Driver::Wish
                && facts.before_micros.is_some_and(|before| budget_micros <= before)
            {
                let budget_micros = budget_micros.clamp(1, facts.daily_budget_micros.max(1));
                let granted = Some(Setting::Budget { budget_micros });
                return Ruling { verdict: Verdict::Act, granted, hits: Vec::new() };
            }
            sized(
                limits,
                facts,
                budget_micros,
                (1, code::FLOOR),
                (facts.daily_budget_micros, code::BUDGET_CAP),
                |budget_micros| Setting::Budget { budget_micros },
            )
        }
        _ => Ruling {
            verdict: Verdict::Act,
            granted: Some(proposal.setting.clone()),
            hits: Vec::new(),
        },
    }
}

/// The first limit that stops the proposal whole.
fn stopped_by(
    limits: &GuardrailConfig,
    facts: &Facts,
    proposal: &Proposal,
) -> Option<&'static str> {
    use Driver::{Alert, Establish, Kpi, Pacing, Reallocation, Resume, Rotation, Stop, Wish};
    if facts.killed_global {
        return Some(code::KILL_GLOBAL);
    }
    if facts.killed_tenant {
        return Some(code::KILL_TENANT);
    }
    let raises = proposal.setting.micros() > facts.before_micros;
    let steered = matches!(proposal.driver, Kpi | Pacing);
    let by_numbers = steered || matches!(proposal.driver, Establish | Reallocation | Rotation);
    match proposal.driver {
        Alert | Stop | Resume => return None,
        Wish if facts.before_micros.is_none() || !raises => return None,
        _ => {}
    }
    // A bid above the cap comes down to it whatever the numbers say.
    let above_cap = matches!(proposal.setting, Setting::Bid { .. })
        && facts.before_micros.is_some_and(|before| before > facts.cap_micros);
    if above_cap {
        return None;
    }
    if by_numbers && facts.feed_late {
        return Some(code::LATE_FEED);
    }
    if by_numbers && facts.anomaly {
        return Some(code::ANOMALY_HOLD);
    }
    if matches!(proposal.driver, Kpi | Reallocation) && facts.maturity < limits.maturity_min {
        return Some(code::IMMATURE);
    }
    if by_numbers && raises && facts.curve_broken {
        return Some(code::COMPLETENESS_HOLD);
    }
    let certain = proposal.certainty >= limits.gain_probability_min;
    if steered && !(certain && facts.events >= limits.events_min) {
        return Some(code::MINIMUM_EVIDENCE);
    }
    let learning =
        facts.matured_events < limits.learning_events && facts.age_us < us(limits.learning_ms);
    if (steered || proposal.driver == Reallocation) && learning {
        return Some(code::LEARNING_PHASE);
    }
    let cooling = facts.since_change_us.is_some_and(|since| since < us(limits.cooldown_ms));
    if proposal.driver != Establish && cooling {
        return Some(code::COOLDOWN);
    }
    let bid = matches!(proposal.setting, Setting::Bid { .. });
    if bid && raises && !facts.budget_left {
        return Some(code::SPEND_STOP);
    }
    None
}

fn us(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX / 1_000).saturating_mul(1_000)
}

/// A change cut to less than this is not worth a write and the cooldown it starts.
const CUT_MIN: f64 = 0.005;

/// Cuts an amount to step, cumulative allowance, floor and cap.
fn sized(
    limits: &GuardrailConfig,
    facts: &Facts,
    wanted: i64,
    (floor, floor_code): (i64, &'static str),
    (cap, cap_code): (i64, &'static str),
    setting: impl Fn(i64) -> Setting,
) -> Ruling {
    let mut hits = Vec::new();
    let known = facts.before_micros.filter(|before| *before > 0);
    let mut amount = wanted;
    if let Some(before) = known {
        let (reach, reach_code) = reach(limits, facts);
        let (low, high) = around(before, reach);
        // From above the cap the way to the cap is free, and no further.
        let low = low.min(cap);
        if amount < low || amount > high {
            amount = amount.clamp(low, high);
            hits.push(reach_code);
        }
        if high < floor && facts.approved {
            // The way to the goal's own floor, which a person has seen.
            let granted = Some(setting(floor.min(cap)));
            return Ruling { verdict: Verdict::Act, granted, hits: Vec::new() };
        }
        if high < floor {
            return Ruling::stop(Verdict::Propose, hits, code::TOO_LARGE);
        }
    }
    if amount < floor {
        amount = floor;
        hits.push(floor_code);
    }
    if amount > cap {
        amount = cap;
        hits.push(cap_code);
    }
    let rest = known.map_or(1.0, |before| (amount as f64 / before as f64 - 1.0).abs());
    if rest == 0.0 || (rest < CUT_MIN && amount != wanted) {
        // Cut down to nothing worth a write.
        return Ruling { verdict: Verdict::Blocked, granted: None, hits };
    }
    Ruling { verdict: Verdict::Act, granted: Some(setting(amount)), hits }
}

/// The largest |Δ ln| allowed now, and the limit it comes from.
fn reach(limits: &GuardrailConfig, facts: &Facts) -> (f64, &'static str) {
    let allowances = [
        ((1.0 + limits.step_max).ln(), code::STEP),
        ((1.0 + limits.change_24h_max).ln() - facts.moved_24h, code::CUMULATIVE_24H),
        ((1.0 + limits.change_7d_max).ln() - facts.moved_7d, code::CUMULATIVE_7D),
    ];
    let tightest = |best: (f64, &'static str), next: (f64, &'static str)| {
        if next.0 < best.0 { next } else { best }
    };
    let (reach, code) = allowances.into_iter().fold((f64::INFINITY, code::STEP), tightest);
    (reach.max(0.0), code)
}

/// Whole amounts within |Δ ln| ≤ `reach` of `before`, rounded towards it.
fn around(before: i64, reach: f64) -> (i64, i64) {
    // The last digit of exp() must not push an amount over the edge.
    let shy = (reach - 1e-12).max(0.0);
    let low = (before as f64 * (-shy).exp()).ceil() as i64;
    let high = (before as f64 * shy.exp()).floor() as i64;
    (low.min(before), high.max(before))
}

/// The limit that a granted setting crosses, if any; written apart from [`judge`] on purpose.
pub fn crossed(
    limits: &GuardrailConfig,
    facts: &Facts,
    proposal: &Proposal,
    granted: &Setting,
) -> Option<&'static str> {
    if facts.killed_global {
        return Some(code::KILL_GLOBAL);
    }
    if facts.killed_tenant {
        return Some(code::KILL_TENANT);
    }
    let (amount, cap, cap_code) = match *granted {
        Setting::Bid { bid_micros } => (bid_micros, facts.cap_micros, code::CAP),
        Setting::Budget { budget_micros } => {
            (budget_micros, facts.daily_budget_micros, code::BUDGET_CAP)
        }
        _ => return None,
    };
    if amount > cap {
        return Some(cap_code);
    }
    if matches!(granted, Setting::Bid { .. }) && amount < facts.floor_micros {
        return Some(code::FLOOR);
    }
    let before = facts.before_micros.filter(|before| *before > 0)?;
    let raised_to_floor =
        facts.approved && before < facts.floor_micros && amount == facts.floor_micros.max(1);
    let lowers_to_limit = raised_to_floor
        || (before > cap && amount == cap)
        || (amount < before && proposal.driver == Driver::Wish);
    if lowers_to_limit {
        return None;
    }
    let change = (amount as f64 / before as f64).ln().abs();
    if change > (1.0 + limits.step_max).ln() + 1e-9 {
        return Some(code::STEP);
    }
    if facts.moved_24h + change > (1.0 + limits.change_24h_max).ln() + 1e-9 {
        return Some(code::CUMULATIVE_24H);
    }
    if facts.moved_7d + change > (1.0 + limits.change_7d_max).ln() + 1e-9 {
        return Some(code::CUMULATIVE_7D);
    }
    None
}

#[cfg(test)]
#[path = "guardrail_tests.rs"]
mod tests;
