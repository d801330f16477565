//! Which campaigns share a budget, and what each of them is given.
//!
//! A goal with `portfolio_budget_micros` is one portfolio for each tenant it covers: its campaigns
//! share that budget, each at most the goal's daily budget. Shares are worked out once per UTC day,
//! and when a campaign joins, never on every tick: budgets that move reset learning. Amounts of one
//! portfolio are in one currency; a goal over accounts of several currencies has no portfolio.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::allocate::portfolio;
use crate::campaign::Campaign;
use crate::goals::Objective;
use crate::ledger::Ledger;
use crate::pages::Pages;
use crate::view::Windows;

/// A campaign's part of a portfolio.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Allotment {
    /// Name of the goal.
    pub(crate) goal: Arc<str>,
    /// Its budget per day.
    pub(crate) budget_micros: i64,
    /// The parts as they are exceed the portfolio: lowering them is not optional.
    pub(crate) over: bool,
}

/// Members of portfolios, by goal and tenant, each in the order of outputs.
pub(crate) struct Portfolios {
    members: Vec<(Arc<Objective>, Vec<usize>)>,
}

impl Portfolios {
    /// The portfolios active at `now_us` that `wanted(goal, tenant)` picks.
    pub(crate) fn of(
        campaigns: &Pages<Campaign>,
        now_us: i64,
        wanted: impl Fn(&str, &str) -> bool,
    ) -> Portfolios {
        type Members<'a> = (&'a Arc<Objective>, Vec<usize>);
        let mut portfolios: BTreeMap<(u64, &str), Members<'_>> = BTreeMap::new();
        for (at, campaign) in campaigns.iter() {
            let tenant = campaign.info.key.tenant();
            let objective = campaign
                .objective(now_us)
                .filter(|objective| objective.goal.portfolio_budget_micros.is_some())
                .filter(|objective| wanted(&objective.name, tenant));
            if let Some(objective) = objective {
                let place = portfolios.entry((objective.position, tenant));
                place.or_insert_with(|| (objective, Vec::new())).1.push(at);
            }
        }
        let order = |at: &usize| (campaigns[*at].info.order, campaigns[*at].info.key.clone());
        let sorted = portfolios.into_values().map(|(objective, mut members)| {
            members.sort_by_key(order);
            (objective.clone(), members)
        });
        Portfolios { members: sorted.collect() }
    }

    /// Shares each portfolio out among its members.
    pub(crate) fn share(
        &self,
        windows: &Windows,
        campaigns: &mut Pages<Campaign>,
        ledger: &Ledger,
    ) {
        for (objective, members) in &self.members {
            let Some(budget_micros) = objective.goal.portfolio_budget_micros else { continue };
            // A campaign that just joined has an even part to begin with.
            let even = budget_micros / members.len().max(1) as i64;
            let mut parts = Vec::with_capacity(members.len());
            for &at in members {
                let campaign = &mut campaigns[at];
                campaign.learn_response(objective, windows);
                let actual = ledger.read(campaign.memory.owner).actual.budget_micros;
                parts.push((campaign.memory.response, actual.unwrap_or(even)));
            }
            let now: i128 = parts.iter().map(|(_, amount)| i128::from(*amount)).sum();
            let over = now > i128::from(budget_micros);
            let amounts = portfolio(&parts, budget_micros, objective.goal.daily_budget_micros);
            for (&at, budget_micros) in members.iter().zip(amounts) {
                let goal = objective.name.clone();
                campaigns[at].memory.allotment = Some(Allotment { goal, budget_micros, over });
            }
        }
    }
}
