//! From the checked configuration to what each part of the engine is told.

use std::sync::Arc;

use jiff::tz::TimeZone;
use omnify_config::{Autonomy, Checked, ExecutorKind, Objective as ConfigObjective};
use omnify_decision::goal::{Goal, Objective, Pricing};
use omnify_decision::stage::{
    Autonomy as StageAutonomy, ControllerConfig, ExecutorMode, GuardrailConfig, RotationConfig,
    StageConfig,
};
use omnify_operators::anomaly::AnomalySpec;
use omnify_operators::estimate::Prior;
use omnify_operators::fatigue::FatigueSpec;
use omnify_operators::maturity::MaturitySpec;
use omnify_operators::model::{
    AttributionRule, Currency, DAY_US, EntityKey, Level, Registry, Span, WindowSpec,
};
use omnify_operators::spec::{Cadence, FeatureSpec, IntakeSpec, PaneRows};
use omnify_sinks::history::{HistoryMeta, WriterOptions};

use crate::decode::{Limits, Projection};

/// Entities that do not change are evaluated this often: their windows shrink.
const IDLE_MS: u64 = 15 * 60_000;

/// How the engine is about to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// On a clock.
    Live,
    /// Over files of others: ticks are coarse and entities are evaluated at the controllers' pace.
    Files,
}

/// Key of [`HistoryMeta::versions`] that keeps the mode: a replay runs as the run did.
const INPUT: &str = "input";

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Mode::Live => "live",
            Mode::Files => "files",
        }
    }

    /// The mode of the run that wrote a history.
    pub fn of(meta: &HistoryMeta) -> Mode {
        let files = meta.versions.get(INPUT).is_some_and(|name| name == Mode::Files.name());
        if files { Mode::Files } else { Mode::Live }
    }
}

/// What the graph computes.
pub fn feature_spec(config: &Checked, mode: Mode) -> anyhow::Result<FeatureSpec> {
    let windows: Result<Vec<WindowSpec>, _> =
        config.features.windows.iter().map(|text| text.parse()).collect();
    let levels = Level::ALL
        .into_iter()
        .filter(|level| config.features.levels.iter().any(|name| name == level.name()));
    let busy = match mode {
        Mode::Live => config.engine.decide_every,
        Mode::Files => config.replay.decide_every,
    };
    let recorded = config.history.enabled;
    let spec = FeatureSpec {
        windows: windows?,
        levels: levels.collect(),
        cadence: config
            .decision
            .enabled
            .then(|| Cadence { busy_ms: ms(busy).max(1), idle_ms: IDLE_MS }),
        pane_rows: if recorded { PaneRows::Emit } else { PaneRows::Count },
        emit_events: recorded,
        reach_days: if config.features.reach { config.features.reach_days as i64 } else { 0 },
        ctr_prior: Prior {
            mean: config.features.prior_ctr,
            trials: config.features.prior_impressions,
        },
        cvr_prior: Prior { mean: config.features.prior_cvr, trials: config.features.prior_clicks },
        fatigue: FatigueSpec {
            onset_ratio: config.fatigue.onset_ratio,
            probability: config.fatigue.probability,
            baseline_days: i64::from(config.fatigue.baseline_days),
            baseline_clicks: config.fatigue.baseline_clicks,
            recent_days: i64::from(config.fatigue.recent_days),
            recent_clicks: config.fatigue.recent_clicks,
        },
        anomaly: AnomalySpec {
            alarm_score: config.anomaly.alarm_score,
            warmup: config.anomaly.warmup_hours,
            impressions_min: config.anomaly.impressions_min,
        },
        maturity: MaturitySpec {
            enabled: config.maturity.enabled,
            settle_days: config.maturity.settle.us() / DAY_US,
            prior_first_day: config.maturity.prior_first_day,
            prior_mean_days: config.maturity.prior_delay.us() as f64 / DAY_US as f64,
            memory_days: i64::from(config.maturity.memory_days),
            shrink_conversions: config.maturity.shrink_conversions,
            break_score: config.maturity.break_score,
        },
        attribution: attribution(config)?,
        intake: IntakeSpec {
            future_skew_us: config.validation.future_skew.us(),
            entity_grace_us: config.validation.entity_grace.us(),
            dedup_horizon_us: config.validation.dedup_horizon.us(),
            dedup_ids_max: config.validation.dedup_ids_max,
            restatement_horizon_us: config.validation.restatement_horizon.us(),
        },
        ..FeatureSpec::default()
    };
    spec.problem().map_or(Ok(spec), |problem| Err(anyhow::anyhow!(problem)))
}

fn attribution(config: &Checked) -> anyhow::Result<Vec<AttributionRule>> {
    let rule = |entry: &omnify_config::ReportAttribution| {
        Ok(AttributionRule { accounts: entry.accounts.clone(), window: entry.window.parse()? })
    };
    config.reports.attribution.iter().map(rule).collect()
}

/// What the decision stage is told; `None` when deciding is off.
pub fn stage_config(config: &Checked) -> Option<StageConfig> {
    config.decision.enabled.then_some(())?;
    let (controller, guardrails) = (&config.controller, &config.guardrails);
    Some(StageConfig {
        goals: goals(config),
        windows: config.features.windows.iter().filter_map(|text| text.parse().ok()).collect(),
        guardrails: GuardrailConfig {
            step_max: guardrails.step_max,
            change_24h_max: guardrails.change_24h_max,
            change_7d_max: guardrails.change_7d_max,
            events_min: guardrails.events_min,
            gain_probability_min: guardrails.gain_probability_min,
            maturity_min: guardrails.maturity_min,
            cooldown_ms: ms(guardrails.cooldown),
            learning_events: guardrails.learning_events,
            learning_ms: ms(guardrails.learning_time),
            winner_conversions: guardrails.winner_conversions,
            feed_late_ms: ms(guardrails.feed_late),
        },
        controller: ControllerConfig {
            period_ms: ms(controller.period),
            horizon_ms: ms(controller.horizon),
            reporting_lag_ms: ms(controller.reporting_lag),
            kp: controller.kp,
            ki: controller.ki,
            integral_max: controller.integral_max,
            error_max: controller.error_max,
            deadband: controller.deadband,
            kpi_gain: controller.kpi_gain,
            slack: controller.slack,
            review_ms: ms(controller.review),
            exploration_sd: controller.exploration_sd,
        },
        rotation: RotationConfig {
            clicks_min: config.rotation.clicks_min,
            retry_ms: ms(config.rotation.retry),
        },
        autonomy: match config.decision.autonomy {
            Autonomy::Autonomous => StageAutonomy::Autonomous,
            Autonomy::Guided => StageAutonomy::Guided,
            Autonomy::HumanLed => StageAutonomy::HumanLed,
        },
        executor: match config.executor.kind {
            ExecutorKind::DryRun => ExecutorMode::DryRun,
            ExecutorKind::Market | ExecutorKind::Kafka => ExecutorMode::Live,
        },
        seed: config.engine.seed,
        action_ttl_ms: ms(config.decision.action_ttl),
        goals_max: config.decision.goals_max,
        approvals_max: config.decision.approvals_max,
        approval_ttl_ms: ms(config.decision.approval_ttl),
    })
}

/// The goals of the configuration.
pub fn goals(config: &Checked) -> Vec<Goal> {
    let goal = |checked: &omnify_config::CheckedGoal| Goal {
        name: checked.goal.name.clone(),
        applies_to: checked.goal.applies_to.clone(),
        objective: match checked.goal.objective {
            ConfigObjective::TargetCpa => {
                Objective::TargetCpa { cpa_micros: checked.target_micros }
            }
            ConfigObjective::TargetRoas => {
                Objective::TargetRoas { roas: checked.target_micros as f64 / 1e6 }
            }
            ConfigObjective::TargetCpc => {
                Objective::TargetCpc { cpc_micros: checked.target_micros }
            }
            ConfigObjective::Maximise => Objective::Maximise,
        },
        daily_budget_micros: checked.daily_budget_micros,
        portfolio_budget_micros: None,
        pricing: match checked.goal.pricing {
            omnify_config::Pricing::Cpm => Pricing::Cpm,
            omnify_config::Pricing::Cpc => Pricing::Cpc,
        },
        start: checked.start_us,
        end: checked.end_us,
        bid_floor_micros: checked.bid_floor_micros,
        bid_cap_micros: checked.bid_cap_micros,
    };
    config.goals().iter().map(goal).collect()
}

/// A registry that knows the accounts' time zones.
pub fn registry(config: &Arc<Checked>) -> Registry {
    let config = config.clone();
    Registry::new(Box::new(move |key: &EntityKey| zone(config.account(key.as_str()).time_zone)))
}

/// Time zones of all accounts, listed or not.
pub fn zones(config: &Checked) -> Vec<Arc<TimeZone>> {
    let listed = config.accounts.iter().map(|account| zone(&account.time_zone));
    listed.chain([zone(&config.account_defaults.time_zone)]).collect()
}

fn zone(name: &str) -> Arc<TimeZone> {
    // `config` has checked the name.
    Arc::new(TimeZone::get(name).unwrap_or(TimeZone::UTC))
}

/// The currency of an entity's account; a tenant has none of its own.
pub fn currency_of(config: &Checked, key: &EntityKey) -> Option<Currency> {
    let account = key.ancestor(Level::Account)?;
    config.account(account.as_str()).currency.parse().ok()
}

/// Limits at the door.
pub fn limits(config: &Checked) -> Limits {
    let validation = &config.validation;
    Limits {
        tenants: validation.tenants.iter().cloned().collect(),
        line_bytes_max: validation.line_bytes_max.bytes(),
        dead_bytes_max: validation.dead_letter_bytes_max.bytes(),
    }
}

/// The costly columns that somebody needs.
pub fn projection(config: &Checked) -> Projection {
    Projection { users: config.features.reach || config.history.enabled, ids: true }
}

/// What the history says about the run.
pub fn history_meta(config: &Checked, spec: &FeatureSpec, mode: Mode) -> HistoryMeta {
    let versions = [("engine", env!("CARGO_PKG_VERSION")), (INPUT, mode.name())];
    HistoryMeta {
        windows: spec.windows.clone(),
        levels: spec.levels.clone(),
        versions: versions.map(|(name, version)| (name.to_owned(), version.to_owned())).into(),
        config_toml: config.outcome_toml(),
    }
}

/// Sizes of history files.
pub fn writer_options(config: &Checked) -> WriterOptions {
    WriterOptions {
        rows_per_file: config.history.rows_per_file,
        row_group_rows: config.history.row_group_rows,
        zstd_level: config.history.zstd_level,
        ..WriterOptions::default()
    }
}

/// Worker threads: as configured, or one for each core.
pub fn workers(config: &Checked) -> usize {
    match config.engine.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        given => given,
    }
}

/// Milliseconds of a span of the configuration.
pub fn ms(span: omnify_config::Span) -> u64 {
    Span::from_us(span.us()).ms()
}
