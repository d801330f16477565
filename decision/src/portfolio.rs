//! Which campaigns share a budget, and what each of them is given.
//!
//! A goal with `portfolio_budget_micros` is one portfolio for each tenant it covers: its campaigns
//! share that budget, each at most the goal's daily budget. Shares are worked out once per UTC day,
//! and when a campaign joins, never on every tick: budgets that move reset learning. Amounts of one
//! portfolio are in one currency; a goal over accounts of several currencies has no portfolio.

use std::collections::BTreeMap;

use crate::allocate::portfolio;
use crate::campaign::{Campaign, Objective};
use crate::ledger::Ledger;
use crate::stage::active_at;
use crate::view::Windows;

/// A campaign's part of a portfolio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allotment {
    /// Position of the goal.
    pub(crate) goal: usize,
    /// Its budget per day.
    pub(crate) budget_micros: i64,
    /// The parts as they are exceed the portfolio: lowering them is not optional.
    pub(crate) over: bool,
}

/// Members of portfolios, by goal and in the order of outputs.
pub(crate) struct Portfolios {
    members: Vec<(usize, Vec<usize>)>,
}

impl Portfolios {
    /// The portfolios active at `now_us` that `wanted(goal, tenant)` picks.
    pub(crate) fn of(
        objectives: &[Objective],
        campaigns: &[Campaign],
        now_us: i64,
        wanted: impl Fn(usize, &str) -> bool,
    ) -> Portfolios {
        let mut portfolios: BTreeMap<(usize, &str), Vec<usize>> = BTreeMap::new();
        for (at, campaign) in campaigns.iter().enumerate() {
            let tenant = campaign.info.key.tenant();
            let goal = active_at(objectives, &campaign.covering, now_us)
                .filter(|goal| objectives[*goal].goal.portfolio_budget_micros.is_some())
                .filter(|goal| wanted(*goal, tenant));
            if let Some(goal) = goal {
                portfolios.entry((goal, tenant)).or_default().push(at);
            }
        }
        let order = |at: &usize| (campaigns[*at].info.order, campaigns[*at].info.key.clone());
        let sorted = portfolios.into_iter().map(|((goal, _), mut members)| {
            members.sort_by_key(order);
            (goal, members)
        });
        Portfolios { members: sorted.collect() }
    }

    /// Gives every member its part.
    pub(crate) fn share(
        &self,
        objectives: &[Objective],
        windows: &Windows,
        campaigns: &mut [Campaign],
        ledger: &mut Ledger,
    ) {
        for (goal, members) in &self.members {
            let objective = &objectives[*goal];
            let Some(budget_micros) = objective.goal.portfolio_budget_micros else { continue };
            // A campaign that just joined has an even part to begin with.
            let even = budget_micros / members.len().max(1) as i64;
            let mut parts = Vec::with_capacity(members.len());
            for &at in members {
                let campaign = &mut campaigns[at];
                campaign.learn_response(objective, windows);
                let actual = ledger.at(campaign.owner).actual.budget_micros;
                parts.push((campaign.response, actual.unwrap_or(even)));
            }
            let now: i128 = parts.iter().map(|(_, amount)| i128::from(*amount)).sum();
            let over = now > i128::from(budget_micros);
            let amounts = portfolio(&parts, budget_micros, objective.goal.daily_budget_micros);
            for (&at, budget_micros) in members.iter().zip(amounts) {
                campaigns[at].allotment = Some(Allotment { goal: *goal, budget_micros, over });
            }
        }
    }
}
