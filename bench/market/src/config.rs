//! The size and the rules of a market, as plain data.

use omnify_operators::model::{DAY_US, EventTime, HOUR_US, MINUTE_US};
use serde::{Deserialize, Serialize};

/// How a platform's auctions are priced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuctionKind {
    /// The winner pays what the next best bid would have had to be.
    SecondPrice,
    /// The winner pays its bid.
    FirstPrice,
}

/// How a platform tells what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedKind {
    /// An event each, at once.
    Events,
    /// Totals so far per creative and hour, every `every_us` of market time.
    Reports {
        /// Market time between reports; a multiple of the step.
        every_us: i64,
    },
}

/// One ad platform's rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlatformConfig {
    /// Name, the platform segment of keys.
    pub name: String,
    /// Pricing.
    pub auction: AuctionKind,
    /// Feed.
    pub feed: FeedKind,
    /// Budget changes accepted per campaign and sliding hour; `None` for no limit.
    pub budget_changes_per_hour: Option<u32>,
    /// A budget must be at least this multiple of what the campaign spent today; 0 for no rule.
    pub budget_to_spend_min: f64,
}

/// The market: how large, how noisy, how late.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MarketConfig {
    /// Market time at which it starts.
    pub start_us: EventTime,
    /// Length of a step; divides an hour.
    pub step_us: i64,
    /// Number of tenants.
    pub tenants: u32,
    /// Campaigns of each tenant, dealt out to the platforms in turn.
    pub campaigns_per_tenant: u32,
    /// Creatives of each campaign, in ad groups of up to four. The last of an ad group of three or
    /// more is a paused spare, there to be rotated to.
    pub creatives_per_campaign: u32,
    /// Impressions per day of the whole market if every campaign bid its [target
    /// bid](crate::CampaignTruth::target_bid_micros) without a budget.
    pub impressions_per_day: u64,
    /// The platforms; every tenant has one account on each.
    pub platforms: Vec<PlatformConfig>,
    /// Days until a typical campaign's creatives reach onset at target bids: the median of a
    /// lognormal distribution over campaigns.
    pub wear_days_median: f64,
    /// Share of creatives that do not wear out.
    pub evergreen_share: f64,
    /// Multiples of the target bid at which campaigns start, in turn.
    pub bid_errors: Vec<f64>,
    /// Share of conversions with the short delay.
    pub delay_fast_share: f64,
    /// Mean of the short delay.
    pub delay_fast_us: i64,
    /// Mean of the long delay.
    pub delay_slow_us: i64,
    /// A conversion later than this after its click is not attributed.
    pub attribution_us: i64,
    /// Share of clicks that are invalid.
    pub invalid_share: f64,
    /// Time until an invalid click is found.
    pub invalid_after_us: i64,
}

impl Default for MarketConfig {
    /// The scenario of `omnify demo`: 3 tenants × 8 campaigns on four platforms, one million
    /// impressions a day.
    ///
    /// Campaigns were set up by people who did not know their true value per impression: of eight
    /// campaigns two start at a half to two thirds of the bid their target allows and do not spend
    /// their budget, three at 1.5 to 2.2 times and pay too much per conversion or run dry before
    /// the evening, three are within a fifth of it. A fifth of creatives never wears out; the rest
    /// reach onset after about six days in the median campaign, after one or two in a tenth of them.
    fn default() -> Self {
        MarketConfig {
            // Monday, 5 January 2026, 00:00 UTC.
            start_us: 1_767_571_200_000_000,
            step_us: MINUTE_US,
            tenants: 3,
            campaigns_per_tenant: 8,
            creatives_per_campaign: 4,
            impressions_per_day: 1_000_000,
            platforms: PlatformConfig::defaults(),
            wear_days_median: 6.0,
            evergreen_share: 0.2,
            bid_errors: vec![0.6, 1.9, 1.0, 1.5, 0.5, 1.2, 2.2, 0.85],
            delay_fast_share: 0.65,
            delay_fast_us: HOUR_US,
            delay_slow_us: 30 * HOUR_US,
            attribution_us: 7 * DAY_US,
            invalid_share: 0.02,
            invalid_after_us: 36 * HOUR_US,
        }
    }
}

impl PlatformConfig {
    /// Four platforms after the public contracts of their namesakes, simplified: Google second
    /// price; Meta second price with four budget changes per hour; TikTok first price, with budgets
    /// of at least 105 % of today's spend; LinkedIn second price with hourly reports only.
    pub fn defaults() -> Vec<PlatformConfig> {
        let google = PlatformConfig {
            name: "google".to_owned(),
            auction: AuctionKind::SecondPrice,
            feed: FeedKind::Events,
            budget_changes_per_hour: None,
            budget_to_spend_min: 0.0,
        };
        vec![
            PlatformConfig {
                name: "meta".to_owned(),
                budget_changes_per_hour: Some(4),
                ..google.clone()
            },
            PlatformConfig {
                name: "tiktok".to_owned(),
                auction: AuctionKind::FirstPrice,
                budget_to_spend_min: 1.05,
                ..google.clone()
            },
            PlatformConfig {
                name: "linkedin".to_owned(),
                feed: FeedKind::Reports { every_us: HOUR_US },
                ..google.clone()
            },
            google,
        ]
    }
}

/// A market that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A field is outside its range.
    #[error("market config `{field}`: {expected}")]
    Range {
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A platform's name cannot be a key segment.
    #[error("market config `platforms`: {0}")]
    Name(#[from] omnify_operators::model::KeyError),
}

/// Campaigns of a market: their index takes 18 bits of an event id.
const CAMPAIGNS_MAX: u64 = 1 << 18;
/// Creatives of a market: a bound on memory.
const CREATIVES_MAX: u64 = 1 << 22;
/// Impressions per day of a market: opportunities of a campaign and step take 22 bits of an event
/// id, see [`crate::delivery`].
const IMPRESSIONS_MAX: u64 = 200_000_000;

impl MarketConfig {
    /// Checks every field.
    pub fn check(&self) -> Result<(), ConfigError> {
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let campaigns = u64::from(self.tenants) * u64::from(self.campaigns_per_tenant);
        let creatives = campaigns.saturating_mul(u64::from(self.creatives_per_campaign));
        let factor = |value: f64| (0.01..=100.0).contains(&value);
        let spans =
            [self.delay_fast_us, self.delay_slow_us, self.attribution_us, self.invalid_after_us];
        let checks = [
            (
                (0..=4_000_000_000_000_000).contains(&self.start_us)
                    && self.start_us % HOUR_US == 0,
                "start_us",
                "a whole hour from 1970 to 2096",
            ),
            (
                self.step_us >= 1_000_000 && HOUR_US % self.step_us == 0,
                "step_us",
                "at least a second, and a divisor of an hour",
            ),
            (
                (1..CAMPAIGNS_MAX).contains(&campaigns),
                "campaigns_per_tenant",
                "1 to 2^18 campaigns in all",
            ),
            (
                (campaigns..=CREATIVES_MAX).contains(&creatives),
                "creatives_per_campaign",
                "at least 1, and at most 2^22 in all",
            ),
            (
                (1..=IMPRESSIONS_MAX).contains(&self.impressions_per_day),
                "impressions_per_day",
                "1 to 200 million",
            ),
            (!self.platforms.is_empty(), "platforms", "at least one"),
            (factor(self.wear_days_median), "wear_days_median", "0.01 to 100"),
            (
                !self.bid_errors.is_empty() && self.bid_errors.iter().all(|e| factor(*e)),
                "bid_errors",
                "at least one, each 0.01 to 100",
            ),
            (share(self.evergreen_share), "evergreen_share", "0 to 1"),
            (share(self.delay_fast_share), "delay_fast_share", "0 to 1"),
            (share(self.invalid_share), "invalid_share", "0 to 1"),
            (
                spans.iter().all(|us| (1..=60 * DAY_US).contains(us)),
                "delay_*_us, attribution_us, invalid_after_us",
                "above zero and at most 60 days",
            ),
        ];
        for (ok, field, expected) in checks {
            if !ok {
                return Err(ConfigError::Range { field, expected });
            }
        }
        for platform in &self.platforms {
            omnify_operators::model::EntityKey::new(&["t", &platform.name, "a"])?;
            if let FeedKind::Reports { every_us } = platform.feed
                && (every_us <= 0 || every_us % self.step_us != 0)
            {
                return Err(ConfigError::Range {
                    field: "platforms.feed.every_us",
                    expected: "above zero and a multiple of step_us",
                });
            }
            if !(0.0..=10.0).contains(&platform.budget_to_spend_min) {
                return Err(ConfigError::Range {
                    field: "platforms.budget_to_spend_min",
                    expected: "0 to 10",
                });
            }
        }
        Ok(())
    }
}
