//! The goals that stand: those of the configuration, and what inputs made of them since.
//!
//! # Contract
//! - A goal is known by its name. Sent again it replaces the one before and keeps its place among
//!   goals equally specific; a name taken by another tenant is refused.
//! - The later word wins: a goal that came as an input outlives a restart, until the configuration
//!   of a later start says something else about that name than it said when the input came.
//! - Goals of the configuration come first, in its order; then those added, in their order.

use std::sync::Arc;

use omnify_operators::model::EntityKey;
use serde::{Deserialize, Serialize};

use crate::config::{ConfigErrors, StageConfig};
use crate::goal::Goal;
use crate::policy::Policy;
use crate::wire::SavedGoal;

/// A goal ready for use.
pub(crate) struct Objective {
    /// Place among the goals; never reused.
    pub(crate) position: u64,
    pub(crate) goal: Goal,
    pub(crate) name: Arc<str>,
    pub(crate) policy: Box<dyn Policy>,
}

impl Objective {
    fn new(position: u64, goal: Goal) -> Arc<Objective> {
        let (name, policy) =
            (goal.name.as_str().into(), crate::policy::for_objective(&goal.objective));
        Arc::new(Objective { position, goal, name, policy })
    }

    /// Whether the goal's dates hold the instant.
    pub(crate) fn active(&self, now_us: i64) -> bool {
        self.goal.start.is_none_or(|start| start <= now_us)
            && self.goal.end.is_none_or(|end| now_us < end)
    }

    /// The most specific first, then by place.
    fn rank(&self) -> (std::cmp::Reverse<usize>, u64) {
        (std::cmp::Reverse(self.goal.named()), self.position)
    }
}

/// The first of the covering goals whose dates hold the instant.
pub(crate) fn active(covering: &[Arc<Objective>], now_us: i64) -> Option<&Arc<Objective>> {
    covering.iter().find(|objective| objective.active(now_us))
}

/// Why a goal was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GoalError {
    #[error("the goal is refused: {0}")]
    Invalid(ConfigErrors),
    #[error("the goal `{0}` is refused: another tenant has a goal of this name; choose another")]
    Taken(String),
    #[error("there is no goal `{0}` to drop, or it is not the sender's")]
    Unknown(String),
    #[error("the goal `{name}` is refused: {max} goals stand already (goals_max); drop one first")]
    TooMany { name: String, max: usize },
}

/// What an input made of a name.
#[derive(Clone, Serialize, Deserialize)]
struct Override {
    name: String,
    /// What the configuration said of it then.
    base: Option<SavedGoal>,
    /// What stands since; `None` once dropped.
    goal: Option<SavedGoal>,
}

/// A goal before and after an input.
pub(crate) struct Change {
    pub(crate) before: Option<Arc<Objective>>,
    pub(crate) after: Option<Arc<Objective>>,
}

impl Change {
    /// Whether it concerns an entity.
    pub(crate) fn concerns(&self, key: &EntityKey) -> bool {
        [&self.before, &self.after].into_iter().flatten().any(|one| one.goal.covers(key))
    }

    /// Brings a list of covering goals up to date.
    pub(crate) fn apply(&self, key: &EntityKey, covering: &mut Vec<Arc<Objective>>) {
        let name = [&self.before, &self.after].into_iter().flatten().map(|one| &one.name).next();
        covering.retain(|one| Some(&one.name) != name);
        if let Some(after) = self.after.as_ref().filter(|after| after.goal.covers(key)) {
            let at = covering.partition_point(|one| one.rank() < after.rank());
            covering.insert(at, after.clone());
        }
    }
}

/// All goals that stand.
#[derive(Clone)]
pub(crate) struct Goals {
    config: Arc<StageConfig>,
    overrides: Vec<Override>,
    /// By position.
    objectives: Vec<Arc<Objective>>,
    next: u64,
}

impl Goals {
    /// The goals of the configuration.
    pub(crate) fn new(config: &Arc<StageConfig>) -> Goals {
        let objectives =
            (0..).zip(&config.goals).map(|(at, goal)| Objective::new(at, goal.clone()));
        Goals {
            overrides: Vec::new(),
            objectives: objectives.collect(),
            next: config.goals.len() as u64,
            config: config.clone(),
        }
    }

    /// All that stand, by position.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Objective>> {
        self.objectives.iter()
    }

    /// The goals that cover an entity, the most specific first.
    pub(crate) fn covering(&self, key: &EntityKey) -> Vec<Arc<Objective>> {
        let covers = self.objectives.iter().filter(|one| one.goal.covers(key));
        let mut covering: Vec<_> = covers.cloned().collect();
        covering.sort_by_key(|one| one.rank());
        covering
    }

    /// Sets a goal, by its name.
    pub(crate) fn upsert(&mut self, goal: &Goal) -> Result<Change, GoalError> {
        goal.validate().map_err(GoalError::Invalid)?;
        let configured = self.configured(&goal.name);
        let before = self.objectives.iter().find(|one| one.goal.name == goal.name).cloned();
        let owner = before.as_ref().map(|one| &one.goal).or(configured.map(|(_, base)| base));
        if owner.is_some_and(|owner| owner.tenant() != goal.tenant()) {
            return Err(GoalError::Taken(goal.name.clone()));
        }
        let max = self.config.goals_max;
        let of_tenant = || self.objectives.iter().filter(|one| one.goal.tenant() == goal.tenant());
        if before.is_none() && of_tenant().count() >= max {
            return Err(GoalError::TooMany { name: goal.name.clone(), max });
        }
        let position = match (&before, configured) {
            (Some(before), _) => before.position,
            (None, Some((at, _))) => at,
            (None, None) => {
                self.next += 1;
                self.next - 1
            }
        };
        self.note(&goal.name, Some(SavedGoal(goal.clone())));
        Ok(self.stand(Objective::new(position, goal.clone())))
    }

    /// Drops a goal; `tenant` is whom the sender speaks for, `None` for the operator.
    pub(crate) fn drop(&mut self, name: &str, tenant: Option<&str>) -> Result<Change, GoalError> {
        let at = self.objectives.iter().position(|one| {
            one.goal.name == name && (tenant.is_none() || one.goal.tenant() == tenant)
        });
        let Some(at) = at else { return Err(GoalError::Unknown(name.to_owned())) };
        match self.configured(name) {
            Some(_) => self.note(name, None),
            None => self.overrides.retain(|known| known.name != name),
        }
        Ok(Change { before: Some(self.objectives.remove(at)), after: None })
    }

    fn configured(&self, name: &str) -> Option<(u64, &Goal)> {
        (0..).zip(&self.config.goals).find(|(_, goal)| goal.name == name)
    }

    fn note(&mut self, name: &str, goal: Option<SavedGoal>) {
        match self.overrides.iter_mut().find(|known| known.name == name) {
            Some(known) => known.goal = goal,
            None => {
                let base = self.configured(name).map(|(_, goal)| SavedGoal(goal.clone()));
                self.overrides.push(Override { name: name.to_owned(), base, goal });
            }
        }
    }

    fn stand(&mut self, after: Arc<Objective>) -> Change {
        let at = self.objectives.partition_point(|one| one.position < after.position);
        let known = self.objectives.get(at).is_some_and(|one| one.position == after.position);
        let before = known.then(|| self.objectives.remove(at));
        self.objectives.insert(at, after.clone());
        Change { before, after: Some(after) }
    }

    /// What inputs made of the goals, and the goals as they stand.
    pub(crate) fn saved(&self) -> impl Serialize + '_ {
        let standing: Vec<_> = self.iter().map(|one| SavedGoal(one.goal.clone())).collect();
        (&self.overrides, standing)
    }

    /// What inputs made of goals, taken over into this configuration; true when the same goals
    /// stand as when it was saved.
    pub(crate) fn restore(&mut self, saved: SavedGoals) -> bool {
        let (overrides, standing) = saved;
        for known in overrides.0 {
            let unchanged = self.configured(&known.name).map(|(_, goal)| goal)
                == known.base.as_ref().map(|base| &base.0);
            if !unchanged {
                continue;
            }
            match (&known.goal, self.configured(&known.name).map(|(at, _)| at)) {
                (Some(goal), at) => {
                    let position = at.unwrap_or(self.next);
                    self.next += u64::from(at.is_none());
                    self.stand(Objective::new(position, goal.0.clone()));
                }
                (None, _) => self.objectives.retain(|one| one.goal.name != known.name),
            }
            self.overrides.push(known);
        }
        self.iter().map(|one| &one.goal).eq(standing.iter().map(|saved| &saved.0))
    }
}

/// What [`Goals::saved`] wrote.
pub(crate) type SavedGoals = (Overrides, Vec<SavedGoal>);

/// See [`SavedGoals`].
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct Overrides(Vec<Override>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Control;
    use crate::goal::{Objective as Aim, Pricing};

    fn goal(name: &str, applies_to: &str) -> Goal {
        Goal {
            name: name.into(),
            applies_to: applies_to.into(),
            objective: Aim::TargetRoas { roas: 0.1 + 0.2 },
            daily_budget_micros: 1,
            pricing: Pricing::Cpc,
            start: None,
            end: Some(7),
            bid_floor_micros: 0,
            bid_cap_micros: 1,
            portfolio_budget_micros: None,
        }
    }

    fn goals(goals_max: usize) -> Goals {
        let goals = vec![goal("all", "*"), goal("a", "acme")];
        Goals::new(&Arc::new(StageConfig { goals, goals_max, ..StageConfig::default() }))
    }

    fn covering(goals: &Goals) -> Vec<String> {
        let key = "acme/meta/1/c".parse().unwrap();
        goals.covering(&key).iter().map(|one| one.goal.name.clone()).collect()
    }

    #[test]
    fn a_change_moves_a_list_as_working_it_out_anew_does() {
        let mut goals = goals(9);
        let key: EntityKey = "acme/meta/1/c".parse().unwrap();
        let mut list = goals.covering(&key);
        let steps = [("b", "acme/*/1"), ("c", "acme"), ("b", "acme/x"), ("a", "acme/meta/1/c")];
        for (name, applies_to) in steps {
            goals.upsert(&goal(name, applies_to)).unwrap().apply(&key, &mut list);
            let names: Vec<_> = list.iter().map(|one| one.goal.name.clone()).collect();
            assert_eq!(names, covering(&goals), "{name}");
        }
        goals.drop("a", Some("acme")).unwrap().apply(&key, &mut list);
        assert_eq!(covering(&goals), ["c", "all"]);
        assert_eq!(list.len(), 2);
    }

    #[test]
    fn no_tenant_touches_the_goal_of_another() {
        let mut goals = goals(2);
        assert_eq!(goal("a", "acme/x").tenant(), Some("acme"));
        assert_eq!(goal("a", "*/x").tenant(), None);
        let taken = |result: Result<Change, GoalError>| matches!(result, Err(GoalError::Taken(_)));
        assert!(taken(goals.upsert(&goal("a", "other"))));
        assert!(taken(goals.upsert(&goal("all", "acme"))));
        let unknown = GoalError::Unknown("a".into());
        assert_eq!(goals.drop("a", Some("other")).err(), Some(unknown));
        goals.drop("a", Some("acme")).unwrap();
        assert!(taken(goals.upsert(&goal("a", "other"))), "configured names stay reserved");
        goals.upsert(&goal("b", "acme")).unwrap();
        goals.upsert(&goal("c", "acme")).unwrap();
        assert!(matches!(goals.upsert(&goal("d", "acme")), Err(GoalError::TooMany { .. })));
        let bad = Goal { daily_budget_micros: 0, ..goal("e", "new") };
        let why = goals.upsert(&bad).err().unwrap().to_string();
        assert!(why.contains("goal.daily_budget_micros"), "{why}");
    }

    #[test]
    fn goals_keep_their_json_form() {
        let control = Control::Goal { goal: goal("a", "acme/*") };
        let json = serde_json::json!({
            "control": "goal",
            "goal": {
                "name": "a", "applies_to": "acme/*",
                "objective": { "kind": "target_roas", "roas": 0.1 + 0.2 },
                "daily_budget_micros": 1, "pricing": "cpc", "start": null, "end": 7,
                "bid_floor_micros": 0, "bid_cap_micros": 1, "portfolio_budget_micros": null
            }
        });
        assert_eq!(serde_json::to_value(&control).unwrap(), json);
        assert_eq!(serde_json::from_value::<Control>(json).unwrap(), control);
        let short = serde_json::json!({
            "name": "a", "applies_to": "acme", "objective": { "kind": "maximise" },
            "daily_budget_micros": 5, "bid_cap_micros": 9
        });
        serde_json::from_value::<Goal>(short.clone()).unwrap().validate().unwrap();
        let mut typo = short;
        typo["portfolio_budget"] = 3.into();
        assert!(serde_json::from_value::<Goal>(typo).is_err());
    }
}
