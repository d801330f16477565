//! What each control does to the stage.

use std::collections::BTreeSet;
use std::sync::Arc;

use omnify_operators::model::{Tick, us_of_tick};

use super::{Refused, Stage};
use crate::action::{Id, Setting};
use crate::control::{Control, Outcome};
use crate::draft::Outcomes;
use crate::goals::{Change, GoalError};
use crate::model::ClickModel;
use omnify_operators::model::EntityKey;

impl Stage {
    /// Applies the controls in their order; returns those that were not taken.
    pub(super) fn apply(
        &mut self,
        tick: Tick,
        controls: &[Control],
        made: &mut Vec<Outcomes>,
    ) -> Vec<Refused> {
        let mut refused = Vec::new();
        for (at, control) in controls.iter().enumerate() {
            if let Err(why) = self.apply_one(tick, control, made) {
                refused.push(Refused { control: at, why });
            }
        }
        refused
    }

    fn apply_one(
        &mut self,
        tick: Tick,
        control: &Control,
        made: &mut Vec<Outcomes>,
    ) -> Result<(), String> {
        match control {
            Control::Kill { tenant } => {
                self.killed.insert(tenant.clone());
            }
            Control::Resume { tenant } => {
                self.killed.remove(tenant);
            }
            // The graph has heeded it; the stage decides on whatever rows come.
            Control::Calm { .. } => {}
            Control::Model { model, .. } => match ClickModel::from_json(model) {
                Ok(model) => {
                    let model = Arc::new(model);
                    self.book.set_model(Some(model.clone()));
                    self.model = Some(model);
                }
                Err(why) => {
                    self.counters.models_refused += 1;
                    return Err(format!("the model is refused: {why}"));
                }
            },
            Control::Observe { entity, actual } => {
                let at = self.ledger.position(entity);
                let owner = self.ledger.at(at);
                let edited = owner.foreign_edit_us;
                owner.observe(actual, tick, us_of_tick(tick));
                self.counters.drifts += u64::from(owner.foreign_edit_us != edited);
            }
            Control::Acknowledge { action, owner, outcome } => {
                return self.acknowledge(*action, owner, outcome);
            }
            Control::Approve { proposal, .. } => return self.approve(tick, *proposal, made),
            Control::Reject { proposal, .. } => return self.reject(tick, *proposal, made),
            Control::Goal { goal } => {
                let change = self.goals.upsert(goal);
                return self.change_goal(tick, change);
            }
            Control::DropGoal { name, tenant } => {
                let change = self.goals.drop(name, tenant.as_deref());
                return self.change_goal(tick, change);
            }
        }
        Ok(())
    }

    fn acknowledge(
        &mut self,
        action: Id,
        key: &EntityKey,
        outcome: &Outcome,
    ) -> Result<(), String> {
        let at = self.ledger.position(key);
        let owner = self.ledger.at(at);
        let desired = owner.in_flight.as_ref().map(|flight| flight.action.desired.clone());
        if !owner.acknowledge(action, outcome) {
            self.counters.acknowledgements_unmatched += 1;
            return Ok(()); // alerts are acknowledged, and never in flight
        }
        let failed = matches!(outcome, Outcome::Rejected { .. } | Outcome::Expired);
        if let (true, Some(Setting::Rotate { from, .. })) = (failed, desired)
            && let Some(creative) = self.wear.creative_named(key, &from)
        {
            self.wear.undo_rotation(creative);
        }
        Ok(())
    }

    /// Works out anew what a changed goal covers. Campaigns whose goal it is or was are decided on
    /// at this tick, and the portfolios they join or leave are shared out anew.
    fn change_goal(&mut self, tick: Tick, change: Result<Change, GoalError>) -> Result<(), String> {
        let change = change.map_err(|why| {
            self.counters.goals_refused += 1;
            why.to_string()
        })?;
        let now_us = us_of_tick(tick);
        let mut touched: BTreeSet<(Arc<str>, String)> = BTreeSet::new();
        for at in self.campaigns.positions(|campaign| change.concerns(&campaign.info.key)) {
            let campaign = &mut self.campaigns[at];
            let info = campaign.info.clone();
            let tenant = || info.key.tenant().to_owned();
            touched.extend(campaign.portfolio(now_us).map(|goal| (goal, tenant())));
            change.apply(&info.key, &mut campaign.covering);
            touched.extend(campaign.portfolio(now_us).map(|goal| (goal, tenant())));
            campaign.memory.looked = 0;
            if let Some(queued) = campaign.memory.wake.replace(tick) {
                self.wakes.remove(&(queued, info.order, at));
            }
            self.wakes.insert((tick, info.order, at));
        }
        self.wear.regroup(&change);
        if !touched.is_empty() {
            self.share(now_us, |goal, tenant| {
                touched.iter().any(|(name, of)| **name == *goal && of == tenant)
            });
        }
        Ok(())
    }
}
