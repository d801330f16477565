//! What a tenant wants of a campaign.

use omnify_operators::model::{EntityKey, EventTime};
use serde::{Deserialize, Serialize};

use crate::config::{ConfigErrors, check_one_goal};

/// What a goal optimises.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Objective {
    /// Conversions at a cost per conversion at or below the target.
    TargetCpa {
        /// Cost per conversion, in micros.
        cpa_micros: i64,
    },
    /// Revenue at a revenue per cost at or above the target.
    TargetRoas {
        /// Revenue per cost, for example 2.5.
        roas: f64,
    },
    /// Clicks at a cost per click at or below the target.
    TargetCpc {
        /// Cost per click, in micros.
        cpc_micros: i64,
    },
    /// As many conversions (clicks where conversions are rare) as the budget buys.
    Maximise,
}

/// How bids of the goal's campaigns are priced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pricing {
    /// Bids are per thousand impressions.
    #[default]
    Cpm,
    /// Bids are per click.
    Cpc,
}

/// A goal. Checked with the configuration, and again when it comes as an input
/// ([`Control::Goal`](crate::control::Control::Goal)); amounts are in micros, instants in µs:
///
/// ```json
/// {
///   "name": "brand", "applies_to": "acme/meta/*",
///   "objective": { "kind": "target_cpa", "cpa_micros": 2500000 },
///   "daily_budget_micros": 100000000, "pricing": "cpm",
///   "start": null, "end": null,
///   "bid_floor_micros": 10000, "bid_cap_micros": 50000000,
///   "portfolio_budget_micros": null
/// }
/// ```
///
/// `pricing`, `start`, `end`, `bid_floor_micros` and `portfolio_budget_micros` may be left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    /// Unique name.
    pub name: String,
    /// Campaigns it covers: an entity key whose segments may be `*`, with trailing segments left
    /// out meaning all below, for example `acme/meta/*` or `acme/*/*/brand`.
    pub applies_to: String,
    /// What to optimise.
    pub objective: Objective,
    /// Daily budget of each covered campaign in micros.
    pub daily_budget_micros: i64,
    /// How bids are priced.
    #[serde(default)]
    pub pricing: Pricing,
    /// First instant, inclusive; `None` for no start.
    pub start: Option<EventTime>,
    /// Last instant, exclusive; `None` for no end.
    pub end: Option<EventTime>,
    /// Lowest bid ever set, in micros.
    #[serde(default)]
    pub bid_floor_micros: i64,
    /// Highest bid ever set, in micros.
    pub bid_cap_micros: i64,
    /// Budget per day that all covered campaigns of one tenant share, in micros. With it, budgets
    /// are moved between them daily by equal marginal return, each at most `daily_budget_micros`.
    #[serde(default)]
    pub portfolio_budget_micros: Option<i64>,
}

impl Goal {
    /// The tenant whose campaigns it covers; `None` when it reaches into several. Who speaks for
    /// one tenant may only send goals of that tenant.
    pub fn tenant(&self) -> Option<&str> {
        self.applies_to.split('/').next().filter(|tenant| *tenant != "*")
    }

    /// Checks a goal that stands alone.
    pub fn validate(&self) -> Result<(), ConfigErrors> {
        check_one_goal(self)
    }

    /// Whether the goal covers `campaign`.
    pub fn covers(&self, campaign: &EntityKey) -> bool {
        campaign.is_covered_by(&self.applies_to)
    }

    /// Number of segments that are named: the more, the more specific.
    pub(crate) fn named(&self) -> usize {
        self.applies_to.split('/').filter(|segment| *segment != "*").count()
    }
}
