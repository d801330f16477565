//! What only the market knows.

use omnify_operators::model::{EntityKey, EventTime};
use serde::Serialize;

use crate::action::Status;
use crate::delivery::converting_share;
use crate::market::Market;
use crate::totals::{CampaignTotals, Totals};
use crate::world::win_curve;

/// The truth about a campaign. Amounts are in the account's currency.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CampaignTruth {
    /// The campaign.
    pub campaign: EntityKey,
    /// Conversions per valid click.
    pub cvr: f64,
    /// Mean value of a conversion.
    pub value_mean_micros: f64,
    /// Users it can reach.
    pub audience: u64,
    /// What a thousand impressions are worth now, as the mean of the creatives that deliver; 0 when
    /// none does.
    pub worth_cpm_micros: f64,
    /// CPM bid at which a fresh impression costs at most its worth times the goal's margin: what a
    /// second-price bidder who knew everything would have bid on the first day.
    pub target_bid_micros: i64,
    /// Share of opportunities won at the present bid, without the day's rhythm.
    pub win_share: f64,
}

/// The truth about a creative.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CreativeTruth {
    /// The creative.
    pub creative: EntityKey,
    /// CTR before anybody had seen it.
    pub ctr_fresh: f64,
    /// CTR now.
    pub ctr: f64,
    /// Speed of wear-out; 0 for an evergreen.
    pub gamma: f64,
    /// Impressions so far.
    pub impressions: u64,
    /// Expected distinct users so far.
    pub reach: f64,
    /// Impressions per reached user; 1 before the first.
    pub frequency: f64,
    /// When it had lost a fifth of its fresh CTR, if it has.
    pub onset_us: Option<EventTime>,
    /// Impressions at which that happens; `None` for a creative for which it never will.
    pub onset_impressions: Option<u64>,
}

/// The truth about everything, in market order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Truth {
    /// Campaigns.
    pub campaigns: Vec<CampaignTruth>,
    /// Creatives.
    pub creatives: Vec<CreativeTruth>,
}

/// Share of the fresh CTR left at onset.
pub(crate) const ONSET: f64 = 0.8;

/// Impressions per reached user after `exposure` impressions per user of the audience.
pub(crate) fn frequency(exposure: f64) -> f64 {
    if exposure < 1e-6 { 1.0 + 0.5 * exposure } else { exposure / -(-exposure).exp_m1() }
}

/// Share of the fresh CTR left.
pub(crate) fn wear(exposure: f64, gamma: f64) -> f64 {
    ((1.0 + frequency(exposure)) * 0.5).powf(-gamma)
}

/// Exposure at which `wear` reaches [`ONSET`], by bisection.
pub(crate) fn onset_exposure(gamma: f64) -> Option<f64> {
    const FAR: f64 = 1e6;
    if wear(FAR, gamma) > ONSET {
        return None;
    }
    let (mut low, mut high) = (0.0, FAR);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if wear(middle, gamma) > ONSET { low = middle } else { high = middle }
    }
    Some(high)
}

impl Market {
    /// Totals since the start.
    pub fn totals(&self) -> Totals {
        let campaigns = self.world.campaigns.iter().zip(&self.campaigns);
        let campaigns = campaigns.map(|(campaign, state)| {
            let account = &self.world.accounts[campaign.account as usize];
            CampaignTotals {
                campaign: campaign.key.clone(),
                currency: account.currency,
                usd_per_unit: account.usd_per_unit,
                stats: state.booked.stats,
                expected_conversions_micros: state.booked.expected_conversions_micros,
                expected_value_micros: state.booked.expected_value_micros,
            }
        });
        Totals { until_us: self.now_us(), campaigns: campaigns.collect() }
    }

    /// The truth now.
    pub fn truth(&self) -> Truth {
        let campaigns = (0..self.campaigns.len()).map(|index| self.campaign_truth(index));
        let creatives = (0..self.creatives.len()).map(|index| self.creative_truth(index));
        Truth { campaigns: campaigns.collect(), creatives: creatives.collect() }
    }

    fn campaign_truth(&self, index: usize) -> CampaignTruth {
        let campaign = &self.world.campaigns[index];
        let hidden = &campaign.truth;
        let range = campaign.creatives.start as usize..campaign.creatives.end as usize;
        let live: Vec<f64> = range
            .filter(|creative| {
                let group = self.world.creatives[*creative].ad_group as usize;
                self.creatives[*creative].status == Status::Enabled
                    && self.ad_groups[group] == Status::Enabled
            })
            .map(|creative| self.creatives[creative].ctr)
            .collect();
        let ctr = live.iter().sum::<f64>() / live.len().max(1) as f64;
        let bid = self.campaigns[index].bid_micros as f64;
        CampaignTruth {
            campaign: campaign.key.clone(),
            cvr: hidden.cvr,
            value_mean_micros: hidden.value_mean_micros,
            audience: hidden.audience,
            worth_cpm_micros: ctr
                * hidden.cvr
                * converting_share(&self.config)
                * hidden.value_mean_micros
                * 1e3,
            target_bid_micros: hidden.target_bid_micros.round() as i64,
            win_share: win_curve(bid, hidden.price_log_mean, hidden.price_log_sd).0,
        }
    }

    fn creative_truth(&self, index: usize) -> CreativeTruth {
        let creative = &self.world.creatives[index];
        let state = &self.creatives[index];
        let audience = self.world.campaigns[creative.campaign as usize].truth.audience as f64;
        let exposure = state.impressions as f64 / audience;
        CreativeTruth {
            creative: creative.key.clone(),
            ctr_fresh: creative.truth.ctr_fresh,
            ctr: state.ctr,
            gamma: creative.truth.gamma,
            impressions: state.impressions,
            reach: state.impressions as f64 / frequency(exposure),
            frequency: frequency(exposure),
            onset_us: state.onset_us,
            onset_impressions: onset_exposure(creative.truth.gamma)
                .map(|exposure| (exposure * audience).ceil() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wear_follows_the_power_law() {
        assert_eq!(wear(3.0, 0.0), 1.0);
        assert!((wear(0.0, 0.43) - 1.0).abs() < 1e-12);
        let exposure = onset_exposure(0.43).unwrap();
        assert!((exposure - 2.06).abs() < 0.01, "{exposure}");
        assert!((wear(exposure, 0.43) - ONSET).abs() < 1e-9);
        assert!(onset_exposure(0.0).is_none());
        assert!((frequency(1e-6) - frequency(1.01e-6)).abs() < 1e-7);
    }
}
