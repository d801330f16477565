//! Rows, decisions and actions as JSON. Numbers that are not defined are `null`.

use omnify_decision::action::{ActionKind, Prediction, Setting, Status};
use omnify_decision::approvals::Proposal;
use omnify_decision::autonomy::Required;
use omnify_operators::model::{
    Currency, Estimate, EventTime, Expected, FatigueState, Level, Stats, Tick, WindowSpec,
    us_of_tick,
};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::counters::Watermarks;
use super::feed::{KeptAction, KeptDecision};
use super::snapshot::{Pacing, Row, Snapshot, Spark};

/// What the reader must know about numbers that are not final.
pub(super) const MATURITY: &str = "Impressions, clicks and cost are complete up to fresh_until_us; \
    conversions and revenue are final up to settled_until_us and may still rise or be corrected \
    after it; where reports bring conversions late, completeness says how much of them is in and what \
    to expect. A null watermark means: not known, treat as not final.";

#[derive(Serialize)]
pub(super) struct RowView<'a> {
    entity: &'a str,
    level: Level,
    tenant: &'a str,
    platform: Option<&'a str>,
    account: Option<&'a str>,
    campaign: Option<&'a str>,
    ad_group: Option<&'a str>,
    creative: Option<&'a str>,
    currency: Option<Currency>,
    as_of_tick: Tick,
    changed_tick: Tick,
    #[serde(flatten)]
    watermarks: Watermarks,
    windows: WindowsView<'a>,
    ctr: Option<Estimate>,
    cvr: Option<Estimate>,
    reach: Option<ReachView>,
    fatigue: FatigueView,
    anomaly: AnomalyView,
    completeness: Option<CompletenessView<'a>>,
    pacing: Option<&'a Pacing>,
    settings: SettingsView,
    decision: Option<LastDecision<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spark: Option<SparkView<'a>>,
}

impl<'a> RowView<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, row: &'a Row, spark: bool) -> RowView<'a> {
        let (key, features) = (&row.info.key, &row.features);
        let mut watermarks = snapshot.watermarks(key);
        if let Some(maturity) = &features.maturity {
            // What an account's own reports showed is better than what holds for all.
            watermarks.fresh_until_us = Some(maturity.fresh_us);
            watermarks.settled_until_us = Some(maturity.settled_us);
        }
        let fatigue = &features.fatigue;
        let known = fatigue.state != FatigueState::Insufficient;
        RowView {
            entity: key.as_str(),
            level: row.info.level,
            tenant: key.tenant(),
            platform: key.segment(1),
            account: key.segment(2),
            campaign: key.segment(3),
            ad_group: key.segment(4),
            creative: key.segment(5),
            currency: row.currency,
            as_of_tick: snapshot.tick,
            changed_tick: features.tick,
            watermarks,
            windows: WindowsView {
                names: &snapshot.setup.windows,
                specs: snapshot.windows(),
                sums: &features.windows,
                end: us_of_tick(snapshot.tick),
                settled: watermarks.settled_until_us,
            },
            ctr: (features.ctr.trials > 0).then_some(features.ctr),
            cvr: (features.cvr.trials > 0).then_some(features.cvr),
            reach: (features.reach.users > 0.0).then_some(ReachView {
                users: features.reach.users,
                frequency: (features.reach.frequency > 0.0).then_some(features.reach.frequency),
            }),
            fatigue: FatigueView {
                state: fatigue.state,
                baseline_ctr: (fatigue.baseline_ctr > 0.0).then_some(fatigue.baseline_ctr),
                ratio: known.then_some(fatigue.ratio),
                probability: known.then_some(fatigue.probability),
                slope_per_day: known.then_some(fatigue.slope_per_day),
                days_to_onset: fatigue.days_to_onset,
            },
            anomaly: AnomalyView { score: features.anomaly.score, alarm: features.anomaly.alarm },
            completeness: features.maturity.as_ref().map(|maturity| CompletenessView {
                window: &snapshot.setup.windows[widest(snapshot.windows())],
                share: maturity.share,
                error: maturity.error,
                conversions: maturity.conversions,
                revenue_micros: maturity.revenue_micros,
                residual: maturity.residual,
                broken: maturity.broken,
            }),
            pacing: row.pacing.as_ref(),
            settings: SettingsView {
                bid_micros: row.settings.bid_micros,
                budget_micros: row.settings.budget_micros,
                status: row.settings.status,
            },
            decision: row.decision.as_deref().map(LastDecision::new),
            spark: row.spark.as_deref().filter(|_| spark).map(SparkView),
        }
    }
}

#[derive(Serialize)]
struct ReachView {
    users: f64,
    frequency: Option<f64>,
}

#[derive(Serialize)]
struct FatigueView {
    state: FatigueState,
    baseline_ctr: Option<f64>,
    ratio: Option<f64>,
    probability: Option<f64>,
    slope_per_day: Option<f64>,
    days_to_onset: Option<f64>,
}

#[derive(Serialize)]
struct AnomalyView {
    score: f64,
    alarm: bool,
}

/// Position of the window that conversion rates and their maturity are formed over.
fn widest(windows: &[WindowSpec]) -> usize {
    let width = windows.iter().map(WindowSpec::width_us).max();
    windows.iter().position(|window| Some(window.width_us()) == width).unwrap_or(0)
}

#[derive(Serialize)]
struct CompletenessView<'a> {
    window: &'a str,
    share: f64,
    error: f64,
    conversions: Expected,
    revenue_micros: Expected,
    residual: f64,
    broken: bool,
}

#[derive(Serialize)]
struct SettingsView {
    bid_micros: Option<i64>,
    budget_micros: Option<i64>,
    status: Option<Status>,
}

/// The latest decision of a row, in short.
#[derive(Serialize)]
struct LastDecision<'a> {
    id: String,
    tick: Tick,
    verdict: &'static str,
    reasons: &'a [&'static str],
}

impl<'a> LastDecision<'a> {
    fn new(kept: &'a KeptDecision) -> LastDecision<'a> {
        let decision = &kept.decision;
        LastDecision {
            id: decision.id.to_string(),
            tick: decision.tick,
            verdict: decision.verdict.name(),
            reasons: &decision.reasons,
        }
    }
}

/// Sums and ratios of every configured window, by the window's name.
struct WindowsView<'a> {
    names: &'a [String],
    specs: &'a [WindowSpec],
    sums: &'a [Stats],
    end: EventTime,
    settled: Option<EventTime>,
}

impl Serialize for WindowsView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.specs.len()))?;
        for ((name, spec), sums) in self.names.iter().zip(self.specs).zip(self.sums) {
            let width = spec.width_us();
            let share = |settled: i64| {
                let inside = settled.saturating_sub(self.end.saturating_sub(width));
                (inside as f64 / width as f64).clamp(0.0, 1.0)
            };
            // How much of a local day lies behind is not told by its nominal width.
            let hop = matches!(spec, WindowSpec::Hop { .. });
            let view = WindowView {
                sums: *sums,
                ctr: sums.ctr(),
                cvr: sums.cvr(),
                cpc: sums.cpc(),
                cpm: sums.cpm(),
                cpa: sums.cpa(),
                roas: sums.roas(),
                settled_share: self.settled.filter(|_| hop).map(share),
            };
            map.serialize_entry(name, &view)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct WindowView {
    #[serde(flatten)]
    sums: Stats,
    ctr: Option<f64>,
    cvr: Option<f64>,
    cpc: Option<f64>,
    cpm: Option<f64>,
    cpa: Option<f64>,
    roas: Option<f64>,
    settled_share: Option<f64>,
}

/// `{tick: [...], ctr: [...], cost_micros: [...]}`, columns as charts want them.
struct SparkView<'a>(&'a Spark);

impl Serialize for SparkView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let points = &self.0.points;
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("tick", &Column(|| points.iter().map(|point| point.tick)))?;
        map.serialize_entry("ctr", &Column(|| points.iter().map(|point| point.ctr)))?;
        map.serialize_entry("cost_micros", &Column(|| points.iter().map(|p| p.cost_micros)))?;
        map.end()
    }
}

/// Serialises what an iterator yields, without collecting it.
struct Column<F>(F);

impl<T: Serialize, I: Iterator<Item = T>, F: Fn() -> I> Serialize for Column<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let items = (self.0)();
        let mut seq = serializer.serialize_seq(None)?;
        for item in items {
            seq.serialize_element(&item)?;
        }
        seq.end()
    }
}

#[derive(Serialize)]
pub(super) struct DecisionView<'a> {
    pub(super) sequence: u64,
    id: String,
    tick: Tick,
    entity: &'a str,
    level: Level,
    currency: Option<Currency>,
    goal: &'a str,
    policy: &'static str,
    model_version: u64,
    verdict: &'static str,
    kind: Option<ActionKind>,
    before: Option<&'a Setting>,
    proposed: Option<&'a Setting>,
    granted: Option<&'a Setting>,
    action: Option<String>,
    reasons: &'a [&'static str],
    guardrails: &'a [&'static str],
    predicted: Prediction,
    propensity: f64,
    pacing_error: f64,
}

impl<'a> DecisionView<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, kept: &'a KeptDecision) -> DecisionView<'a> {
        let decision = &kept.decision;
        DecisionView {
            sequence: kept.sequence,
            id: decision.id.to_string(),
            tick: decision.tick,
            entity: decision.entity.key.as_str(),
            level: decision.entity.level,
            currency: snapshot.row(&decision.entity.key).and_then(|row| row.currency),
            goal: &decision.goal,
            policy: decision.policy,
            model_version: decision.model_version,
            verdict: decision.verdict.name(),
            kind: decision.granted.as_ref().or(decision.proposed.as_ref()).map(Setting::kind),
            before: kept.before.as_ref(),
            proposed: decision.proposed.as_ref(),
            granted: decision.granted.as_ref(),
            action: decision.action.map(|id| id.to_string()),
            reasons: &decision.reasons,
            guardrails: &decision.guardrails,
            predicted: decision.predicted,
            propensity: decision.propensity,
            pacing_error: decision.pacing_error,
        }
    }
}

/// A change that waits for a person.
#[derive(Serialize)]
pub(super) struct ProposalView<'a> {
    id: String,
    decision: String,
    tick: Tick,
    expires_tick: Tick,
    owner: &'a str,
    entity: &'a str,
    currency: Option<Currency>,
    goal: &'a str,
    policy: &'static str,
    model_version: u64,
    kind: ActionKind,
    before: Option<&'a Setting>,
    proposed: &'a Setting,
    reasons: &'a [&'static str],
    guardrails: &'a [&'static str],
    predicted: Prediction,
    propensity: f64,
    pacing_error: f64,
    required: Required,
    complexity: f64,
}

impl<'a> ProposalView<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, open: &'a Proposal) -> ProposalView<'a> {
        ProposalView {
            id: open.id.to_string(),
            decision: open.decision.to_string(),
            tick: open.tick,
            expires_tick: open.expires,
            owner: open.owner.as_str(),
            entity: open.entity.as_str(),
            currency: snapshot.row(&open.owner).and_then(|row| row.currency),
            goal: &open.goal,
            policy: open.policy,
            model_version: open.model_version,
            kind: open.desired.kind(),
            before: open.before.as_ref(),
            proposed: &open.desired,
            reasons: &open.reasons,
            guardrails: &open.guardrails,
            predicted: open.predicted,
            propensity: open.propensity,
            pacing_error: open.pacing_error,
            required: open.required(),
            complexity: open.complexity.score(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct ActionView<'a> {
    sequence: u64,
    revision: u64,
    id: String,
    decision: String,
    tick: Tick,
    expires_tick: Tick,
    changed_tick: Tick,
    entity: &'a str,
    currency: Option<Currency>,
    kind: ActionKind,
    state: &'static str,
    before: Option<&'a Setting>,
    desired: &'a Setting,
    effective: Option<&'a Setting>,
    reasons: &'a [&'static str],
    detail: Option<&'a str>,
}

impl<'a> ActionView<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, kept: &'a KeptAction) -> ActionView<'a> {
        let action = &kept.action;
        ActionView {
            sequence: kept.sequence,
            revision: kept.revision,
            id: action.id.to_string(),
            decision: action.decision.to_string(),
            tick: action.tick,
            expires_tick: action.expires,
            changed_tick: kept.changed,
            entity: action.owner.as_str(),
            currency: snapshot.row(&action.owner).and_then(|row| row.currency),
            kind: action.desired.kind(),
            state: kept.state.name(),
            before: action.before.as_ref(),
            desired: &action.desired,
            effective: kept.effective.as_ref(),
            reasons: &action.reasons,
            detail: kept.detail.as_deref(),
        }
    }
}
