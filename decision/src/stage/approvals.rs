//! What becomes of proposals: queued, superseded, expired, approved, rejected.

use std::sync::Arc;

use omnify_operators::model::{EntityId, EntityInfo, Level, Tick};

use super::{Stage, scene};
use crate::action::{Id, Setting};
use crate::approvals::Proposal;
use crate::codes::{policy, reason};
use crate::draft::{Draft, Outcomes};

impl Stage {
    /// The proposals that wait for a person, the oldest first.
    pub fn proposals(&self) -> impl Iterator<Item = &Arc<Proposal>> {
        self.approvals.iter()
    }

    /// Ends the proposals that are due, then queues those made at this tick.
    pub(super) fn queue_proposals(&mut self, tick: Tick, made: &mut Vec<Outcomes>) {
        while let Some(due) = self.approvals.take_due(tick) {
            made.extend(self.expired(tick, &due));
        }
        for at in 0..made.len() {
            let Some(proposal) = made[at].proposal.take() else { continue };
            if let Some(older) = self.approvals.take_of(&proposal.owner) {
                made.extend(self.record(tick, &older, reason::SUPERSEDED));
            }
            let owner = self.ledger.position(&proposal.owner);
            self.ledger.at(owner).proposed = Some(proposal.desired.clone());
            let tenant = proposal.owner.tenant().to_owned();
            self.approvals.add(*proposal);
            let max = self.config.approvals_max;
            while let Some(oldest) = self.approvals.take_excess(&tenant, max) {
                made.extend(self.expired(tick, &oldest));
            }
        }
    }

    /// A person said no: the same kind of change is not proposed again for as long as proposals
    /// wait.
    pub(super) fn reject(
        &mut self,
        tick: Tick,
        id: Id,
        made: &mut Vec<Outcomes>,
    ) -> Result<(), String> {
        let proposal = self.taken(id)?;
        self.forget(&proposal);
        let owner = self.ledger.position(&proposal.owner);
        let until = tick.saturating_add(self.config.approval_ttl_ms);
        self.ledger.at(owner).declined = Some((proposal.desired.kind(), until));
        made.extend(self.record(tick, &proposal, reason::DECLINED));
        Ok(())
    }

    /// A person said yes: the proposal is judged anew and carried out, or dropped.
    pub(super) fn approve(
        &mut self,
        tick: Tick,
        id: Id,
        made: &mut Vec<Outcomes>,
    ) -> Result<(), String> {
        let proposal = self.taken(id)?;
        self.forget(&proposal);
        let Some(info) = self.named(proposal.row.entity) else { return Ok(()) };
        let draft = draft(&info, tick, &proposal);
        let Stage {
            config,
            windows,
            killed,
            model,
            ledger,
            campaigns,
            campaign_at,
            accounts,
            shared,
            wear,
            book,
            ..
        } = self;
        let mut scene = scene(config, windows, model.as_deref(), killed, tick, &info);
        let out = if let Setting::Rotate { .. } = proposal.desired {
            wear.approve(&scene, draft, &proposal, ledger)
        } else {
            let campaign = campaign_at.get(&info.id).map(|at| &mut campaigns[*at]);
            let objective = campaign.as_ref().and_then(|one| one.objective(scene.now_us).cloned());
            let account = accounts.get(&info.ancestors[Level::Account as usize]);
            match (campaign, objective, account) {
                (Some(campaign), Some(objective), Some(account))
                    if objective.name == proposal.goal =>
                {
                    let owner = ledger.at(campaign.memory.owner);
                    if let Some(budget_micros) = objective.goal.portfolio_budget_micros {
                        let now = Some((&objective.name, owner.budget_at_most()));
                        let total = super::count(shared, campaign, now);
                        scene.room_micros =
                            budget_micros - (total - campaign.counted_by(&objective.name));
                    }
                    let out =
                        campaign.approve(&scene, &objective, account, owner, (draft, &proposal));
                    if objective.goal.portfolio_budget_micros.is_some() {
                        let now = Some((&objective.name, owner.budget_at_most()));
                        super::count(shared, campaign, now);
                    }
                    book.set_quote(&info.key, campaign.quote(&objective, owner));
                    out
                }
                _ => draft.hold(reason::GOAL_ENDED),
            }
        };
        if out.action.is_none() && matches!(proposal.desired, Setting::Rotate { .. }) {
            self.wear.undo_rotation(proposal.row.entity);
        }
        made.push(out);
        Ok(())
    }

    fn taken(&mut self, id: Id) -> Result<Arc<Proposal>, String> {
        self.approvals.take(id).ok_or_else(|| {
            self.counters.approvals_unmatched += 1;
            format!("no proposal {id} is open: it was answered, superseded or expired before")
        })
    }

    fn forget(&mut self, proposal: &Proposal) {
        let owner = self.ledger.position(&proposal.owner);
        self.ledger.at(owner).proposed = None;
    }

    fn expired(&mut self, tick: Tick, proposal: &Proposal) -> Option<Outcomes> {
        self.forget(proposal);
        if matches!(proposal.desired, Setting::Rotate { .. }) {
            self.wear.undo_rotation(proposal.row.entity);
        }
        self.record(tick, proposal, reason::EXPIRED)
    }

    /// The decision that says how a proposal ended without an action.
    fn record(&self, tick: Tick, proposal: &Proposal, why: &'static str) -> Option<Outcomes> {
        let info = self.named(proposal.row.entity)?;
        let mut out = draft(&info, tick, proposal).hold(why);
        out.decision.proposed = Some(proposal.desired.clone());
        Some(out)
    }

    fn named(&self, id: EntityId) -> Option<Arc<EntityInfo>> {
        let campaign = self.campaign_at.get(&id).map(|at| self.campaigns[*at].info.clone());
        campaign.or_else(|| self.wear.info(id))
    }
}

fn draft(info: &Arc<EntityInfo>, tick: Tick, proposal: &Proposal) -> Draft {
    let mut draft = Draft::new(info, tick, &proposal.goal, policy::APPROVAL, &proposal.row);
    draft.model_version = proposal.model_version;
    draft.reasons.clone_from(&proposal.reasons);
    draft.predicted = proposal.predicted;
    draft.propensity = proposal.propensity;
    draft.pacing_error = proposal.pacing_error;
    draft.approved = Some(proposal.id);
    draft
}

/// Whether the setting is still as it was proposed upon: the reason to drop the proposal if not.
pub(crate) fn outdated(
    proposal: &Proposal,
    owner: &crate::ledger::Owner,
    step_max: f64,
) -> Option<&'static str> {
    if let Some(flight) = &owner.in_flight {
        return Some(if flight.unknown { reason::UNSETTLED } else { reason::IN_FLIGHT });
    }
    let now = owner.before(&proposal.desired);
    if now.as_ref() == Some(&proposal.desired) {
        return Some(reason::ALREADY_SO);
    }
    let moved = match (&proposal.before, &now) {
        (Some(before), Some(now)) => match (before.micros(), now.micros()) {
            (Some(before), Some(now)) if before > 0 && now > 0 => {
                (now as f64 / before as f64).ln().abs() > (1.0 + step_max).ln()
            }
            _ => before != now,
        },
        (before, now) => before != now,
    };
    moved.then_some(reason::STALE)
}
