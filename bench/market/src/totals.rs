//! Totals per campaign, and what one run won against another of the same seed.

use omnify_operators::model::{Currency, EntityKey, EventTime, Stats};
use serde::Serialize;

use crate::config::{ConfigError, MarketConfig};
use crate::market::Market;

/// What a campaign's state keeps: integers, so that totals of a period are exact differences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Booked {
    pub(crate) stats: Stats,
    /// Millionths of a conversion.
    pub(crate) expected_conversions_micros: i64,
    pub(crate) expected_value_micros: i64,
}

impl Booked {
    pub(crate) fn add(&mut self, shown: Stats, conversions: f64, value_micros: f64) {
        self.stats += shown;
        self.expected_conversions_micros += (conversions * 1e6).round() as i64;
        self.expected_value_micros += value_micros.round() as i64;
    }
}

/// What a campaign did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CampaignTotals {
    /// The campaign.
    pub campaign: EntityKey,
    /// Currency of the amounts.
    pub currency: Currency,
    /// US dollars per unit of it.
    pub usd_per_unit: f64,
    /// What happened and was known by then: refunds taken off, late conversions not yet in.
    pub stats: Stats,
    /// Conversions to be expected of the impressions shown, from their true CTR and CVR, in
    /// millionths: what the conversions come to, without their luck and delay.
    pub expected_conversions_micros: i64,
    /// The value of those conversions: the *true value* of what was bought.
    pub expected_value_micros: i64,
}

/// Totals of every campaign, in market order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Totals {
    /// Market time up to which they count.
    pub until_us: EventTime,
    /// Per campaign.
    pub campaigns: Vec<CampaignTotals>,
}

/// Totals over campaigns of several currencies, in US dollars at the scenario's fixed rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SumUsd {
    /// Impressions.
    pub impressions: i64,
    /// Clicks.
    pub clicks: i64,
    /// Conversions known.
    pub conversions: i64,
    /// Cost.
    pub cost: f64,
    /// Revenue known.
    pub revenue: f64,
    /// Expected conversions.
    pub expected_conversions: f64,
    /// True value.
    pub value: f64,
}

impl SumUsd {
    /// True value per cost; `None` without cost.
    pub fn value_per_cost(&self) -> Option<f64> {
        (self.cost > 0.0).then(|| self.value / self.cost)
    }

    /// Cost per expected conversion; `None` without any.
    pub fn cost_per_conversion(&self) -> Option<f64> {
        (self.expected_conversions > 0.0).then(|| self.cost / self.expected_conversions)
    }

    /// True value minus cost.
    pub fn surplus(&self) -> f64 {
        self.value - self.cost
    }
}

impl Totals {
    /// The totals of the time since `earlier`, which must come from the same market.
    pub fn since(&self, earlier: &Totals) -> Totals {
        let campaigns = self.campaigns.iter().zip(&earlier.campaigns).map(|(now, then)| {
            let expected_conversions_micros =
                now.expected_conversions_micros - then.expected_conversions_micros;
            CampaignTotals {
                stats: now.stats - then.stats,
                expected_conversions_micros,
                expected_value_micros: now.expected_value_micros - then.expected_value_micros,
                ..now.clone()
            }
        });
        Totals { until_us: self.until_us, campaigns: campaigns.collect() }
    }

    /// The sum over all campaigns.
    pub fn sum(&self) -> SumUsd {
        sum(&self.campaigns)
    }

    /// Names of the tenants, in market order.
    pub fn tenants(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.campaigns.iter().map(|c| c.campaign.tenant()).collect();
        names.dedup();
        names
    }

    /// The sum over a tenant's campaigns.
    pub fn tenant(&self, tenant: &str) -> SumUsd {
        sum(self.campaigns.iter().filter(|c| c.campaign.tenant() == tenant))
    }
}

fn sum<'a>(campaigns: impl IntoIterator<Item = &'a CampaignTotals>) -> SumUsd {
    let mut sum = SumUsd::default();
    for campaign in campaigns {
        let usd = |micros: i64| micros as f64 / 1e6 * campaign.usd_per_unit;
        let stats = campaign.stats;
        sum.impressions += stats.impressions;
        sum.clicks += stats.clicks;
        sum.conversions += stats.conversions;
        sum.cost += usd(stats.cost_micros);
        sum.revenue += usd(stats.revenue_micros);
        sum.expected_conversions += campaign.expected_conversions_micros as f64 / 1e6;
        sum.value += usd(campaign.expected_value_micros);
    }
    sum
}

/// The totals of `[from, to)` with every setting left as it was at the start.
pub fn run_baseline(
    config: &MarketConfig,
    seed: u64,
    from: EventTime,
    to: EventTime,
) -> Result<Totals, ConfigError> {
    let mut market = Market::new(config.clone(), seed)?;
    market.advance_discarding(from);
    let before = market.totals();
    market.advance_discarding(to);
    Ok(market.totals().since(&before))
}

/// One comparison: two runs of one seed over the same time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Uplift {
    /// `all`, or a tenant.
    pub scope: String,
    /// With the engine.
    pub with: SumUsd,
    /// Settings left alone.
    pub without: SumUsd,
    /// Relative change of true value: `with.value / without.value − 1`.
    pub value_gain: Option<f64>,
    /// Relative change of cost.
    pub cost_gain: Option<f64>,
    /// Relative change of true value per cost.
    pub value_per_cost_gain: Option<f64>,
    /// Change of (true value − cost), in US dollars.
    pub surplus_gain_usd: f64,
}

/// What the engine won. *True value* is the expected value of the conversions of the impressions
/// bought, so neither luck nor late conversions enter; amounts are in US dollars at the scenario's
/// fixed rates.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UpliftReport {
    /// Over everything.
    pub all: Uplift,
    /// By tenant.
    pub tenants: Vec<Uplift>,
}

/// Compares two runs of one seed over the same time.
pub fn uplift(with: &Totals, without: &Totals) -> UpliftReport {
    let compare = |scope: &str, with: SumUsd, without: SumUsd| {
        let gain = |a: f64, b: f64| (b > 0.0).then(|| a / b - 1.0);
        Uplift {
            scope: scope.to_owned(),
            value_gain: gain(with.value, without.value),
            cost_gain: gain(with.cost, without.cost),
            value_per_cost_gain: with
                .value_per_cost()
                .zip(without.value_per_cost())
                .and_then(|(a, b)| gain(a, b)),
            surplus_gain_usd: with.surplus() - without.surplus(),
            with,
            without,
        }
    };
    UpliftReport {
        all: compare("all", with.sum(), without.sum()),
        tenants: with
            .tenants()
            .into_iter()
            .map(|tenant| compare(tenant, with.tenant(tenant), without.tenant(tenant)))
            .collect(),
    }
}
