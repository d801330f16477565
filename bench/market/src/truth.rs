//! What only the market knows.

use omnify_operators::model::{EntityKey, EventTime};
use serde::Serialize;

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
