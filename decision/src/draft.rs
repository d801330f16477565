//! From what a policy drafted to a decision, and to an action if there is one: the only place that
//! makes either, so that no draft can pass by the guardrails.

use std::sync::Arc;

use omnify_operators::model::{EntityInfo, EntityKey, FeatureRow, Tick, us_of_tick};

use crate::action::{Action, Decision, Id, Prediction, Setting, Verdict};
use crate::approvals::Proposal as Waiting;
use crate::autonomy::{Complexity, waits};
use crate::codes::{guardrail, reason};
use crate::config::{ExecutorMode, StageConfig};
use crate::control::Outcome;
use crate::guardrail::{Driver, Facts, Proposal, crossed, judge};
use crate::ids::{action_id, decision_id};
use crate::ledger::Owner;

/// A decision before the guardrails have spoken.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) entity: Arc<EntityInfo>,
    pub(crate) tick: Tick,
    pub(crate) goal: Arc<str>,
    pub(crate) policy: &'static str,
    pub(crate) model_version: u64,
    pub(crate) reasons: Vec<&'static str>,
    pub(crate) predicted: Prediction,
    pub(crate) propensity: f64,
    pub(crate) pacing_error: f64,
    pub(crate) row: FeatureRow,
    /// The proposal that was answered.
    pub(crate) approved: Option<Id>,
}

/// A decision with what follows from it.
#[derive(Clone, Debug)]
pub(crate) struct Outcomes {
    pub(crate) decision: Decision,
    pub(crate) action: Option<Action>,
    /// Invariants found crossed (and the action withheld); 0 unless the engine is wrong.
    pub(crate) violations: u64,
    /// What waits for a person from now on.
    pub(crate) proposal: Option<Box<Waiting>>,
}

impl Draft {
    /// A draft that says nothing yet.
    pub(crate) fn new(
        entity: &Arc<EntityInfo>,
        tick: Tick,
        goal: &Arc<str>,
        policy: &'static str,
        row: &FeatureRow,
    ) -> Draft {
        Draft {
            entity: entity.clone(),
            tick,
            goal: goal.clone(),
            policy,
            model_version: 0,
            reasons: Vec::new(),
            predicted: Prediction::default(),
            propensity: 1.0,
            pacing_error: 0.0,
            row: *row,
            approved: None,
        }
    }

    /// Nothing to change.
    pub(crate) fn hold(self, why: &'static str) -> Outcomes {
        let mut decision = self.decided(Verdict::Hold);
        decision.reasons.insert(0, why);
        Outcomes { decision, action: None, violations: 0, proposal: None }
    }

    /// Runs the guardrails and the autonomy gate over a proposal. What is let through goes into
    /// the owner's ledger before anybody else hears of it; an alert has no owner to block.
    pub(crate) fn ruled(
        self,
        config: &StageConfig,
        facts: &Facts,
        complexity: Option<&Complexity>,
        proposal: Proposal,
        owner_key: &EntityKey,
        mut owner: Option<&mut Owner>,
    ) -> Outcomes {
        let mut ruling = judge(&config.guardrails, facts, &proposal);
        let mut violations = 0;
        if let Some(granted) = &ruling.granted
            && let Some(limit) = crossed(&config.guardrails, facts, &proposal, granted)
        {
            violations += 1;
            ruling.verdict = Verdict::Blocked;
            ruling.hits.push(limit);
        }
        let gated = complexity.is_some_and(|parts| waits(config.autonomy, parts.tier()));
        if ruling.verdict == Verdict::Act && gated {
            ruling.verdict = Verdict::Propose;
            ruling.hits.push(guardrail::AUTONOMY);
        }
        let refused = owner.as_ref().is_some_and(|owner| owner.rejected == ruling.granted);
        if ruling.verdict == Verdict::Act && refused {
            let mut held = self.hold(reason::REJECTED);
            held.decision.proposed = Some(proposal.setting);
            held.decision.guardrails = ruling.hits;
            return held;
        }
        let mut wanted = None;
        if ruling.verdict == Verdict::Propose
            && let Some(owner) = owner.as_deref()
        {
            let agreed = Facts { approved: true, ..facts.clone() };
            let granted = ruling.granted.clone();
            wanted = granted.or_else(|| judge(&config.guardrails, &agreed, &proposal).granted);
            let waits = wanted.is_some() && owner.proposed == wanted;
            let declined = wanted.as_ref().is_some_and(|desired| {
                let of_kind = owner.declined.filter(|(kind, _)| *kind == desired.kind());
                of_kind.is_some_and(|(_, until)| self.tick < until)
            });
            if waits || declined {
                let why = if waits { reason::AWAITING } else { reason::DECLINED };
                let mut held = self.hold(why);
                held.decision.proposed = Some(proposal.setting);
                held.decision.guardrails = ruling.hits;
                return held;
            }
        }
        let approved = self.approved;
        let mut decision = self.decided(ruling.verdict);
        decision.guardrails = ruling.hits;
        decision.proposed = Some(proposal.setting.clone());
        decision.granted = ruling.granted;
        let mut action = None;
        if decision.verdict == Verdict::Act
            && let Some(desired) = decision.granted.clone()
        {
            let made = act(&decision, config, owner_key, owner.as_deref(), (approved, desired));
            if begin(config, owner.as_deref_mut(), &made, proposal.driver) {
                decision.action = Some(made.id);
                action = Some(made);
            } else {
                // Invariant 6: callers hold while an action is in flight.
                violations += 1;
                decision.verdict = Verdict::Blocked;
                decision.reasons.insert(0, reason::IN_FLIGHT);
            }
        }
        let proposal = wanted.map(|desired| {
            let before = owner.and_then(|owner| owner.before(&desired));
            let complexity = complexity.copied().unwrap_or_default();
            Box::new(waiting(
                &decision,
                config,
                owner_key,
                (before, desired),
                complexity,
                &proposal,
            ))
        });
        Outcomes { decision, action, violations, proposal }
    }

    fn decided(self, verdict: Verdict) -> Decision {
        Decision {
            id: match self.approved {
                // Several proposals about one entity may end at one tick.
                Some(id) => {
                    decision_id(&self.entity.key, self.tick, &format!("{}/{id}", self.policy))
                }
                None => decision_id(&self.entity.key, self.tick, self.policy),
            },
            tick: self.tick,
            entity: self.entity,
            goal: self.goal,
            policy: self.policy,
            model_version: self.model_version,
            verdict,
            proposed: None,
            granted: None,
            action: None,
            reasons: self.reasons,
            guardrails: Vec::new(),
            predicted: self.predicted,
            propensity: self.propensity,
            pacing_error: self.pacing_error,
            row: self.row,
        }
    }
}

fn act(
    decision: &Decision,
    config: &StageConfig,
    owner_key: &EntityKey,
    owner: Option<&Owner>,
    (approved, desired): (Option<Id>, Setting),
) -> Action {
    Action {
        // An approved action has the id under which it was proposed.
        id: approved.unwrap_or_else(|| action_id(owner_key, decision.tick, &desired)),
        decision: decision.id,
        tick: decision.tick,
        expires: decision.tick.saturating_add(config.action_ttl_ms),
        owner: owner_key.clone(),
        before: owner.and_then(|owner| owner.before(&desired)),
        desired,
        reasons: decision.reasons.clone(),
    }
}

/// A decision that waits for a person.
fn waiting(
    decision: &Decision,
    config: &StageConfig,
    owner: &EntityKey,
    (before, desired): (Option<Setting>, Setting),
    complexity: Complexity,
    proposal: &Proposal,
) -> Waiting {
    Waiting {
        id: action_id(owner, decision.tick, &desired),
        decision: decision.id,
        tick: decision.tick,
        expires: decision.tick.saturating_add(config.approval_ttl_ms),
        owner: owner.clone(),
        entity: decision.entity.key.clone(),
        goal: decision.goal.clone(),
        policy: decision.policy,
        model_version: decision.model_version,
        before,
        desired,
        predicted: decision.predicted,
        propensity: decision.propensity,
        pacing_error: decision.pacing_error,
        reasons: decision.reasons.clone(),
        guardrails: decision.guardrails.clone(),
        complexity,
        row: decision.row,
        driver: proposal.driver,
        certainty: proposal.certainty,
    }
}

fn begin(config: &StageConfig, owner: Option<&mut Owner>, action: &Action, driver: Driver) -> bool {
    let Some(owner) = owner.filter(|_| driver != Driver::Alert) else {
        return true;
    };
    if !owner.begin(action, us_of_tick(action.tick)) {
        return false;
    }
    if config.executor == ExecutorMode::DryRun {
        let effective = action.desired.clone();
        owner.acknowledge(action.id, &Outcome::Applied { effective });
    }
    true
}
