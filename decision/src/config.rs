//! What the stage is told once: goals, limits and gains, as plain checked data.
//!
//! Every field has a default with its reason beside it; [`StageConfig::validate`] names the key and
//! the remedy for each thing that cannot work. Nothing here is read from a file: the binary maps
//! its configuration onto this.

use std::collections::HashSet;
use std::fmt;

use omnify_operators::model::{MAX_WINDOWS, WindowSpec};
use serde::{Deserialize, Serialize};

use crate::goal::{Goal, Objective};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Who carries actions out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecutorMode {
    /// Nobody: the stage acknowledges each action itself, as applied, in the tick that emits it.
    #[default]
    DryRun,
    /// An executor outside, which answers with `Control::Acknowledge`.
    Live,
}

/// Limits no action may cross (`decisioning.md` section 7.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuardrailConfig {
    /// Largest relative change of a bid or budget at once (0.10 = ±10 %).
    pub step_max: f64,
    /// Largest sum of |Δ ln| over 24 hours, written as the change it allows (0.20 = ±20 %).
    pub change_24h_max: f64,
    /// The same over 7 days (0.50 = ±50 %).
    pub change_7d_max: f64,
    /// Events (conversions, or clicks where the goal counts clicks) a KPI-driven change needs.
    pub events_min: i64,
    /// Probability that a KPI-driven or pacing change goes the right way.
    pub gain_probability_min: f64,
    /// Share of the conversions behind it that must be reported before a KPI-driven change or a
    /// shift within a portfolio, where they are reported late; 0 goes by the nowcast.
    pub maturity_min: f64,
    /// Shortest time between two changes of one owner.
    pub cooldown_ms: u64,
    /// Matured events that end the learning phase.
    pub learning_events: i64,
    /// Time since the campaign was first seen that ends the learning phase all the same.
    pub learning_ms: u64,
    /// Conversions in the longest window from which pausing an entity needs a person.
    pub winner_conversions: i64,
    /// An account silent for longer counts as a late feed: no change driven by its numbers.
    pub feed_late_ms: u64,
}

impl Default for GuardrailConfig {
    fn default() -> Self {
        GuardrailConfig {
            step_max: 0.10,
            change_24h_max: 0.20,
            change_7d_max: 0.50,
            events_min: 30,
            gain_probability_min: 0.9,
            maturity_min: 0.0,
            cooldown_ms: 15 * MINUTE_MS,
            learning_events: 50,
            learning_ms: 7 * DAY_MS,
            winner_conversions: 50,
            feed_late_ms: 2 * HOUR_MS,
        }
    }
}

/// Gains and cadence of the controllers (`decisioning.md` sections 1.1 and 1.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControllerConfig {
    /// A campaign's multipliers move at most this often; rows in between are decisions to hold.
    pub period_ms: u64,
    /// How far ahead the spend plan is aimed at (H).
    pub horizon_ms: u64,
    /// How late the platform reports spend (L of the Smith predictor).
    pub reporting_lag_ms: u64,
    /// Proportional gain on ln(planned/expected spend).
    pub kp: f64,
    /// Integral gain per hour.
    pub ki: f64,
    /// Bound of the integral.
    pub integral_max: f64,
    /// Bound of one error, in natural log units.
    pub error_max: f64,
    /// Smallest |Δ ln bid| worth sending.
    pub deadband: f64,
    /// Gain of the KPI multiplier: share of ln(target/KPI) corrected within one KPI window.
    pub kpi_gain: f64,
    /// Most by which the multiplier that does not bind may exceed the one that does.
    pub slack: f64,
    /// A campaign without a new row is looked at again after this long, at most 24 times in a row.
    pub review_ms: u64,
    /// Standard deviation of the seeded log-normal jitter of bids; 0 switches exploration off.
    pub exploration_sd: f64,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        ControllerConfig {
            period_ms: 15 * MINUTE_MS,
            horizon_ms: HOUR_MS,
            reporting_lag_ms: 0,
            kp: 0.5,
            ki: 0.1,
            integral_max: 1.0,
            error_max: 1.0,
            deadband: 0.02,
            kpi_gain: 1.0,
            slack: 1.5,
            review_ms: HOUR_MS,
            exploration_sd: 0.0,
        }
    }
}

/// When a worn-out creative hands over to a sibling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RotationConfig {
    /// Clicks a sibling needs before it may take over.
    pub clicks_min: i64,
    /// A blocked rotation or alert is tried again after this long.
    pub retry_ms: u64,
}

impl Default for RotationConfig {
    fn default() -> Self {
        RotationConfig { clicks_min: 30, retry_ms: HOUR_MS }
    }
}

/// How much the engine may do alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Autonomy {
    /// Acts, except where the complexity score says `block`.
    #[default]
    Autonomous,
    /// Acts up to the tier `notify`; proposes above.
    Guided,
    /// Proposes every change of a platform.
    HumanLed,
}

/// Everything the stage is told once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StageConfig {
    /// Goals; where several cover a campaign at once, the most specific wins, then the first.
    pub goals: Vec<Goal>,
    /// Windows of the feature rows, in their order.
    pub windows: Vec<WindowSpec>,
    /// Limits.
    pub guardrails: GuardrailConfig,
    /// Controllers.
    pub controller: ControllerConfig,
    /// Rotation.
    pub rotation: RotationConfig,
    /// Autonomy.
    pub autonomy: Autonomy,
    /// Who executes.
    pub executor: ExecutorMode,
    /// Seed of exploration.
    pub seed: u64,
    /// An action not executed this long after its tick expires.
    pub action_ttl_ms: u64,
    /// Most goals of one tenant (of the operator, for goals over several tenants) that stand at
    /// once when more are sent as inputs.
    pub goals_max: usize,
    /// Proposals of one tenant that wait at most; at the bound the oldest expires.
    pub approvals_max: usize,
    /// A proposal nobody answered within this time expires.
    pub approval_ttl_ms: u64,
}

impl Default for StageConfig {
    fn default() -> Self {
        StageConfig {
            goals: Vec::new(),
            windows: ["1h/1m", "24h/15m", "7d/2h", "28d/6h", "day"]
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect(),
            guardrails: GuardrailConfig::default(),
            controller: ControllerConfig::default(),
            rotation: RotationConfig::default(),
            autonomy: Autonomy::default(),
            executor: ExecutorMode::default(),
            seed: 0,
            action_ttl_ms: 5 * MINUTE_MS,
            goals_max: 1_000,
            approvals_max: 500,
            approval_ttl_ms: 4 * HOUR_MS,
        }
    }
}

/// One thing that cannot work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigIssue {
    /// The key, for example `goals[2].end`.
    pub key: String,
    /// What is wrong and what to do.
    pub problem: String,
}

impl fmt::Display for ConfigIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

/// All things that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigIssue>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, issue) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{issue}")?;
        }
        Ok(())
    }
}

impl StageConfig {
    /// Checks every value; all problems are reported together.
    pub fn validate(&self) -> Result<(), ConfigErrors> {
        let mut issues = Issues(Vec::new());
        let mut names = HashSet::new();
        for (at, goal) in self.goals.iter().enumerate() {
            check_goal(&mut issues, &format!("goals[{at}]"), goal);
            issues.unless(names.insert(&goal.name), &format!("goals[{at}].name"), || {
                format!("`{}` is the name of an earlier goal: give each goal its own", goal.name)
            });
        }
        issues.unless(!self.windows.is_empty(), "windows", || {
            "empty: decisions need at least one window, for example 24h/15m".to_owned()
        });
        issues.unless(self.windows.len() <= MAX_WINDOWS, "windows", || {
            format!("{} given: at most {MAX_WINDOWS} fit a feature row", self.windows.len())
        });
        issues.unless(self.action_ttl_ms > 0, "action_ttl_ms", || {
            "0 expires every action at once: give it at least one second".to_owned()
        });
        issues.unless(self.approvals_max > 0, "approvals_max", || {
            "0 lets no proposal wait: give it at least 1".to_owned()
        });
        issues.unless(self.approval_ttl_ms > 0, "approval_ttl_ms", || {
            "0 expires every proposal at once: give people time, for example 4 h".to_owned()
        });
        check_limits(&mut issues, &self.guardrails, &self.controller);
        if issues.0.is_empty() { Ok(()) } else { Err(ConfigErrors(issues.0)) }
    }
}

/// Checks a goal by itself.
pub(crate) fn check_one_goal(goal: &Goal) -> Result<(), ConfigErrors> {
    let mut issues = Issues(Vec::new());
    check_goal(&mut issues, "goal", goal);
    if issues.0.is_empty() { Ok(()) } else { Err(ConfigErrors(issues.0)) }
}

struct Issues(Vec<ConfigIssue>);

impl Issues {
    fn unless(&mut self, holds: bool, key: &str, problem: impl FnOnce() -> String) {
        if !holds {
            self.0.push(ConfigIssue { key: key.to_owned(), problem: problem() });
        }
    }
}

fn check_goal(issues: &mut Issues, at: &str, goal: &Goal) {
    issues.unless(!goal.name.is_empty(), &format!("{at}.name"), || {
        "empty: name the goal, decisions are listed under it".to_owned()
    });
    let segments: Vec<&str> = goal.applies_to.split('/').collect();
    let well_formed = segments.len() <= 4 && segments.iter().all(|s| !s.is_empty());
    issues.unless(well_formed, &format!("{at}.applies_to"), || {
        format!(
            "`{}` does not name campaigns: write tenant[/platform[/account[/campaign]]], `*` for any",
            goal.applies_to
        )
    });
    let (key, positive) = match goal.objective {
        Objective::TargetCpa { cpa_micros } => ("cpa_micros", cpa_micros > 0),
        Objective::TargetCpc { cpc_micros } => ("cpc_micros", cpc_micros > 0),
        Objective::TargetRoas { roas } => ("roas", roas.is_finite() && roas > 0.0),
        Objective::Maximise => ("", true),
    };
    issues.unless(positive, &format!("{at}.objective.{key}"), || {
        "no bid meets a target of zero or less: give a target above 0".to_owned()
    });
    issues.unless(goal.daily_budget_micros > 0, &format!("{at}.daily_budget_micros"), || {
        format!("{} buys nothing: give a budget above 0, or end the goal", goal.daily_budget_micros)
    });
    issues.unless(goal.bid_floor_micros >= 0, &format!("{at}.bid_floor_micros"), || {
        format!("{} is below 0: use 0 for no floor", goal.bid_floor_micros)
    });
    let cap_above = goal.bid_cap_micros > 0 && goal.bid_cap_micros >= goal.bid_floor_micros;
    issues.unless(cap_above, &format!("{at}.bid_cap_micros"), || {
        format!(
            "the cap {} must be above 0 and not below the floor {}: raise the cap or lower the floor",
            goal.bid_cap_micros, goal.bid_floor_micros
        )
    });
    if let (Some(start), Some(end)) = (goal.start, goal.end) {
        issues.unless(start < end, &format!("{at}.end"), || {
            "not after the start, so the goal is never active: move the end or drop it".to_owned()
        });
    }
    if let Some(portfolio) = goal.portfolio_budget_micros {
        issues.unless(portfolio > 0, &format!("{at}.portfolio_budget_micros"), || {
            format!("{portfolio} shares out nothing: give an amount above 0, or leave it out")
        });
    }
}

fn check_limits(issues: &mut Issues, limits: &GuardrailConfig, gains: &ControllerConfig) {
    for (key, value) in [
        ("step_max", limits.step_max),
        ("change_24h_max", limits.change_24h_max),
        ("change_7d_max", limits.change_7d_max),
    ] {
        issues.unless(value > 0.0 && value <= 10.0, &format!("guardrails.{key}"), || {
            format!("{value} is not a relative change: write 0.10 for ±10 % (above 0, at most 10)")
        });
    }
    let maturity = limits.maturity_min;
    issues.unless((0.0..=1.0).contains(&maturity), "guardrails.maturity_min", || {
        format!("{maturity} is not a share: write 0 to go by the nowcast, or for example 0.9")
    });
    let probability = limits.gain_probability_min;
    issues.unless((0.0..1.0).contains(&probability), "guardrails.gain_probability_min", || {
        format!("{probability} is not a probability below 1: write for example 0.9")
    });
    for (key, value) in [
        ("kp", gains.kp),
        ("ki", gains.ki),
        ("integral_max", gains.integral_max),
        ("deadband", gains.deadband),
        ("kpi_gain", gains.kpi_gain),
        ("exploration_sd", gains.exploration_sd),
    ] {
        issues.unless(value.is_finite() && value >= 0.0, &format!("controller.{key}"), || {
            format!("{value} must be a finite number, 0 or above")
        });
    }
    for (key, value, least) in [("error_max", gains.error_max, 0.0), ("slack", gains.slack, 1.0)] {
        issues.unless(value.is_finite() && value > least, &format!("controller.{key}"), || {
            format!("{value} must be a finite number above {least}")
        });
    }
    for (key, value) in [("horizon_ms", gains.horizon_ms), ("review_ms", gains.review_ms)] {
        issues.unless(value >= 1_000, &format!("controller.{key}"), || {
            format!("{value} is below one second: give at least 1000")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goal::Pricing;

    fn goal() -> Goal {
        Goal {
            name: "g".into(),
            applies_to: "acme/*".into(),
            objective: Objective::TargetCpa { cpa_micros: 1 },
            daily_budget_micros: 1,
            pricing: Pricing::Cpm,
            start: None,
            end: None,
            bid_floor_micros: 0,
            bid_cap_micros: 1,
            portfolio_budget_micros: None,
        }
    }

    fn keys(goals: Vec<Goal>) -> Vec<String> {
        let config = StageConfig { goals, ..StageConfig::default() };
        let errors = config.validate().expect_err("must be refused");
        errors.0.into_iter().map(|issue| issue.key).collect()
    }

    #[test]
    fn defaults_are_valid() {
        StageConfig { goals: vec![goal()], ..StageConfig::default() }.validate().unwrap();
        assert_eq!(StageConfig::default().windows.len(), 5);
    }

    #[test]
    fn impossible_goals_are_named() {
        assert_eq!(keys(vec![goal(), goal()]), ["goals[1].name"]);
        assert_eq!(keys(vec![Goal { start: Some(2), end: Some(2), ..goal() }]), ["goals[0].end"]);
        let floor = Goal { bid_floor_micros: 2, ..goal() };
        assert_eq!(keys(vec![floor]), ["goals[0].bid_cap_micros"]);
        let target = Goal { objective: Objective::TargetRoas { roas: f64::NAN }, ..goal() };
        assert_eq!(keys(vec![target]), ["goals[0].objective.roas"]);
        let budget = Goal { daily_budget_micros: 0, ..goal() };
        assert_eq!(keys(vec![budget]), ["goals[0].daily_budget_micros"]);
        let path = Goal { applies_to: "a//b".into(), ..goal() };
        assert_eq!(keys(vec![path]), ["goals[0].applies_to"]);
    }

    #[test]
    fn impossible_limits_are_named() {
        let mut config = StageConfig { windows: Vec::new(), ..StageConfig::default() };
        config.guardrails.step_max = 0.0;
        config.controller.slack = 1.0;
        let text = config.validate().expect_err("must be refused").to_string();
        for key in ["windows: ", "guardrails.step_max: ", "controller.slack: "] {
            assert!(text.contains(key), "{key} missing in {text}");
        }
    }
}
