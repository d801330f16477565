//! The world a market plays in, built once from config and seed: who advertises, to whom, against
//! whom, and the truth about every creative.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use jiff::tz::TimeZone;
use omnify_operators::model::{Currency, EntityKey, MICROS_PER_UNIT};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::action::Status;
use crate::config::{AuctionKind, ConfigError, MarketConfig, PlatformConfig};
use crate::maths::{normal_cdf, normal_quantile};

/// Share of a conversion's value that an advertiser is ready to pay for the dearest one: a bid of
/// worth × margin is the target bid.
const MARGIN: f64 = 0.7;
/// A goal's target over the average cost of bidding the target bid for fresh creatives.
const SLACK: f64 = 1.1;
/// Ad groups hold at most this many creatives.
const AD_GROUP_SIZE: u32 = 4;
/// Impressions per user at which a creative with γ = 0.43 has lost a fifth of its CTR.
const ONSET_EXPOSURE: f64 = 2.06;

const TENANTS: [&str; 6] = ["acme", "borealis", "corvid", "dune", "ember", "fjord"];
const CAMPAIGNS: [&str; 8] = [
    "brand",
    "prospecting",
    "retargeting",
    "spring_sale",
    "lookalike",
    "new_markets",
    "app_install",
    "loyalty",
];
const CREATIVES: [&str; 6] = ["video_a", "image_a", "carousel_a", "story_a", "video_b", "image_b"];
/// Currency, its value in US dollars (fixed for the scenario), smallest bid quantum, time zone.
const HOMES: [(&str, f64, i64, &str); 4] = [
    ("USD", 1.0, 10_000, "America/New_York"),
    ("EUR", 1.1, 10_000, "Europe/Berlin"),
    ("GBP", 1.25, 10_000, "Europe/London"),
    ("JPY", 0.0065, MICROS_PER_UNIT, "Asia/Tokyo"),
];

/// An account of a tenant on a platform.
#[derive(Clone, Debug)]
pub struct Account {
    /// `tenant/platform/account`.
    pub key: EntityKey,
    /// Currency of all its amounts.
    pub currency: Currency,
    /// US dollars per unit of the currency, fixed for the scenario.
    pub usd_per_unit: f64,
    /// Its time zone.
    pub time_zone: Arc<TimeZone>,
    /// The rules of its platform.
    pub platform: Arc<PlatformConfig>,
    /// Bids and budgets are rounded down to a multiple of this.
    pub quantum_micros: i64,
    /// Lowest bid accepted.
    pub bid_min_micros: i64,
    /// Highest bid accepted.
    pub bid_max_micros: i64,
    /// Lowest daily budget accepted.
    pub budget_min_micros: i64,
    /// Highest daily budget accepted.
    pub budget_max_micros: i64,
}

/// A campaign: its place and where it starts. What is true of it is in [`crate::CampaignTruth`].
#[derive(Clone, Debug)]
pub struct Campaign {
    /// `tenant/platform/account/campaign`.
    pub key: EntityKey,
    /// Index of its account.
    pub account: u32,
    /// Indices of its ad groups.
    pub ad_groups: Range<u32>,
    /// Indices of its creatives.
    pub creatives: Range<u32>,
    /// CPM bid at the start.
    pub start_bid_micros: i64,
    /// Daily budget at the start.
    pub start_budget_micros: i64,
    /// What its owner wants of it.
    pub goal: ScenarioGoal,
    pub(crate) truth: CampaignWorld,
}

/// An ad group.
#[derive(Clone, Debug)]
pub struct AdGroup {
    /// `tenant/platform/account/campaign/ad_group`.
    pub key: EntityKey,
    /// Index of its campaign.
    pub campaign: u32,
}

/// A creative.
#[derive(Clone, Debug)]
pub struct Creative {
    /// `tenant/platform/account/campaign/ad_group/creative`.
    pub key: EntityKey,
    /// Index of its account.
    pub account: u32,
    /// Index of its campaign.
    pub campaign: u32,
    /// Index of its ad group.
    pub ad_group: u32,
    /// Status at the start.
    pub start_status: Status,
    pub(crate) truth: CreativeWorld,
}

/// What a campaign's owner wants; plain data, to be turned into a goal of the engine.
///
/// Targets (cost per conversion, revenue per cost, cost per click) are what bidding the target bid
/// comes to on average over a week of fresh creatives, with a tenth of slack. So a campaign that
/// started too low has room to grow within its target, and one that started too high misses it.
#[derive(Clone, Debug, PartialEq)]
pub struct ScenarioGoal {
    /// Key of the campaign.
    pub applies_to: EntityKey,
    /// What to optimise.
    pub kind: GoalKind,
    /// Daily budget in micros.
    pub daily_budget_micros: i64,
    /// Lowest CPM bid.
    pub bid_floor_micros: i64,
    /// Highest CPM bid.
    pub bid_cap_micros: i64,
}

/// What a goal optimises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GoalKind {
    /// Conversions at a cost at or below this.
    TargetCpa {
        /// Cost per conversion in micros.
        cpa_micros: i64,
    },
    /// Revenue at a revenue per cost at or above this.
    TargetRoas {
        /// Revenue per cost.
        roas: f64,
    },
    /// Clicks at a cost at or below this.
    TargetCpc {
        /// Cost per click in micros.
        cpc_micros: i64,
    },
    /// As many conversions as the budget buys.
    Maximise,
}

/// The hidden side of a campaign. Prices per thousand, in micros of the account's currency.
#[derive(Clone, Debug)]
pub(crate) struct CampaignWorld {
    pub(crate) opportunities_per_day: f64,
    pub(crate) price_log_mean: f64,
    pub(crate) price_log_sd: f64,
    pub(crate) demand_peak_hour: f64,
    pub(crate) price_peak_hour: f64,
    pub(crate) weekend: f64,
    pub(crate) cvr: f64,
    pub(crate) value_mean_micros: f64,
    pub(crate) value_log_sd: f64,
    pub(crate) audience: u64,
    pub(crate) target_bid_micros: f64,
}

/// The hidden side of a creative.
#[derive(Clone, Debug)]
pub(crate) struct CreativeWorld {
    pub(crate) ctr_fresh: f64,
    pub(crate) gamma: f64,
    pub(crate) quality: f64,
}

/// Where an entity with settings is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Campaign(u32),
    AdGroup(u32),
    Creative(u32),
}

/// Everything that never changes.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) accounts: Vec<Account>,
    pub(crate) campaigns: Vec<Campaign>,
    pub(crate) ad_groups: Vec<AdGroup>,
    pub(crate) creatives: Vec<Creative>,
    pub(crate) places: BTreeMap<EntityKey, Place>,
}

/// Share of auctions won at effective price `bid`, and the mean price of those won.
pub(crate) fn win_curve(bid: f64, log_mean: f64, log_sd: f64) -> (f64, f64) {
    let z = (bid.ln() - log_mean) / log_sd;
    let share = normal_cdf(z).max(1e-9);
    let paid = (log_mean + 0.5 * log_sd * log_sd).exp() * normal_cdf(z - log_sd);
    (share, (paid / share).min(bid))
}

/// A name from a list, numbered once the list is used up.
fn name(list: &[&str], index: u32) -> String {
    let length = list.len() as u32;
    let base = list[(index % length) as usize];
    match index / length {
        0 => base.to_owned(),
        round => format!("{base}_{}", round + 1),
    }
}

fn child(parent: &EntityKey, name: &str) -> Result<EntityKey, ConfigError> {
    let segments: Vec<&str> = parent.as_str().split('/').chain([name]).collect();
    Ok(EntityKey::new(&segments)?)
}

/// Rounds to two significant digits: people type round numbers.
fn rounded(micros: f64, quantum: i64) -> i64 {
    let scale = 10_f64.powf(micros.max(1.0).log10().floor() - 1.0);
    let value = (micros / scale).round() * scale;
    ((value / quantum as f64).round().max(1.0) as i64) * quantum
}

struct Builder<'a> {
    config: &'a MarketConfig,
    rng: Xoshiro256PlusPlus,
    world: World,
}

impl World {
    /// The world of a checked config and a seed.
    pub(crate) fn new(config: &MarketConfig, seed: u64) -> Result<World, ConfigError> {
        let world = World {
            accounts: Vec::new(),
            campaigns: Vec::new(),
            ad_groups: Vec::new(),
            creatives: Vec::new(),
            places: BTreeMap::new(),
        };
        let mut builder = Builder { config, rng: Xoshiro256PlusPlus::seed_from_u64(seed), world };
        for tenant in 0..config.tenants {
            builder.tenant(tenant)?;
        }
        Ok(builder.world)
    }
}

impl Builder<'_> {
    fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.rng.r#gen::<f64>()
    }

    fn normal(&mut self) -> f64 {
        normal_quantile(self.rng.r#gen::<f64>())
    }

    fn tenant(&mut self, index: u32) -> Result<(), ConfigError> {
        let tenant = name(&TENANTS, index);
        let (currency, usd_per_unit, quantum_micros, zone) = HOMES[index as usize % HOMES.len()];
        let currency = currency.parse().unwrap_or(Currency::USD);
        let zone = Arc::new(TimeZone::get(zone).unwrap_or(TimeZone::UTC));
        let first = self.world.accounts.len() as u32;
        for platform in &self.config.platforms {
            let micros =
                |usd: f64| rounded(usd / usd_per_unit * MICROS_PER_UNIT as f64, quantum_micros);
            self.world.accounts.push(Account {
                key: EntityKey::new(&[&tenant, &platform.name, &format!("{tenant}-1")])?,
                currency,
                usd_per_unit,
                time_zone: zone.clone(),
                platform: Arc::new(platform.clone()),
                quantum_micros,
                bid_min_micros: micros(0.01),
                bid_max_micros: micros(1_000.0),
                budget_min_micros: micros(1.0),
                budget_max_micros: micros(1_000_000.0),
            });
        }
        for index in 0..self.config.campaigns_per_tenant {
            self.campaign(first + index % self.config.platforms.len() as u32, index)?;
        }
        Ok(())
    }

    fn campaign(&mut self, account: u32, index_in_tenant: u32) -> Result<(), ConfigError> {
        let index = self.world.campaigns.len() as u32;
        let home = self.world.accounts[account as usize].clone();
        let key = child(&home.key, &name(&CAMPAIGNS, index_in_tenant))?;
        let micros_per_usd = MICROS_PER_UNIT as f64 / home.usd_per_unit;

        let ctr = self.uniform(0.008_f64.ln(), 0.02_f64.ln()).exp();
        let cvr = self.uniform(0.02_f64.ln(), 0.06_f64.ln()).exp();
        let value_mean_micros = self.uniform(20_f64.ln(), 70_f64.ln()).exp() * micros_per_usd;
        let worth = ctr * cvr * value_mean_micros * 1e3;
        let target = worth * MARGIN;
        let price_log_sd = self.uniform(0.5, 0.8);
        let price_log_mean = (target * self.uniform(0.55, 0.95)).ln();
        let (share, price) = win_curve(target, price_log_mean, price_log_sd);
        let price = match home.platform.auction {
            AuctionKind::SecondPrice => price,
            AuctionKind::FirstPrice => target,
        };
        let campaigns =
            f64::from(self.config.tenants) * f64::from(self.config.campaigns_per_tenant);
        let impressions =
            self.config.impressions_per_day as f64 / campaigns * self.uniform(0.5, 1.5);

        let wear_days = self.config.wear_days_median * (self.normal() * 1.1).exp();
        let count = self.config.creatives_per_campaign;
        let creatives = self.creatives(index, account, &key, count, ctr)?;
        let live = self.world.creatives[creatives.start as usize..creatives.end as usize]
            .iter()
            .filter(|creative| creative.start_status == Status::Enabled)
            .count() as f64;
        let audience = impressions / live * wear_days / ONSET_EXPOSURE;

        let errors = &self.config.bid_errors;
        // Shifted per tenant, so that errors and platforms do not go together.
        let shift = 3 * (index / self.config.campaigns_per_tenant);
        let error = errors[(index_in_tenant + shift) as usize % errors.len()];
        let clamp = |micros: i64| micros.clamp(home.bid_min_micros, home.bid_max_micros);
        let start_bid_micros = clamp(rounded(target * error, home.quantum_micros));
        let spend = impressions * price / 1e3 * self.uniform(0.7, 1.4);
        let start_budget_micros = rounded(spend, home.quantum_micros)
            .clamp(home.budget_min_micros, home.budget_max_micros);
        let cpc_micros = price * SLACK / (ctr * 1e3);
        let allowed = |micros: f64| rounded(micros, home.quantum_micros);
        let kind = match index % 5 {
            0 | 2 => GoalKind::TargetCpa { cpa_micros: allowed(cpc_micros / cvr) },
            1 => {
                let roas = value_mean_micros * cvr / cpc_micros;
                GoalKind::TargetRoas { roas: (roas * 10.0).round() / 10.0 }
            }
            3 => GoalKind::TargetCpc { cpc_micros: allowed(cpc_micros) },
            _ => GoalKind::Maximise,
        };
        let goal = ScenarioGoal {
            applies_to: key.clone(),
            kind,
            daily_budget_micros: start_budget_micros,
            bid_floor_micros: clamp(rounded(target * 0.1, home.quantum_micros)),
            bid_cap_micros: clamp(rounded(target * 4.0, home.quantum_micros)),
        };
        let truth = CampaignWorld {
            opportunities_per_day: impressions / share,
            price_log_mean,
            price_log_sd,
            demand_peak_hour: self.uniform(17.0, 21.0),
            price_peak_hour: self.uniform(18.0, 22.0),
            weekend: self.uniform(0.6, 1.2),
            cvr,
            value_mean_micros,
            value_log_sd: 0.5,
            audience: (audience as u64).max(100),
            target_bid_micros: target,
        };
        let ad_groups = self.world.creatives[creatives.start as usize].ad_group
            ..self.world.ad_groups.len() as u32;
        self.world.places.insert(key.clone(), Place::Campaign(index));
        self.world.campaigns.push(Campaign {
            key,
            account,
            ad_groups,
            creatives,
            start_bid_micros,
            start_budget_micros,
            goal,
            truth,
        });
        Ok(())
    }

    fn creatives(
        &mut self,
        campaign: u32,
        account: u32,
        key: &EntityKey,
        count: u32,
        ctr: f64,
    ) -> Result<Range<u32>, ConfigError> {
        let first = self.world.creatives.len() as u32;
        let mut group_key = key.clone();
        for index in 0..count {
            let in_group = index % AD_GROUP_SIZE;
            if in_group == 0 {
                group_key = child(key, &format!("group_{}", index / AD_GROUP_SIZE + 1))?;
                let place = Place::AdGroup(self.world.ad_groups.len() as u32);
                self.world.places.insert(group_key.clone(), place);
                self.world.ad_groups.push(AdGroup { key: group_key.clone(), campaign });
            }
            let group_size = (count - (index - in_group)).min(AD_GROUP_SIZE);
            let spare = group_size >= 3 && in_group + 1 == group_size;
            let evergreen = self.uniform(0.0, 1.0) < self.config.evergreen_share;
            let gamma = (0.43 + 0.2 * self.normal()).clamp(0.05, 1.2);
            let truth = CreativeWorld {
                ctr_fresh: ctr * (0.2 * self.normal()).exp(),
                gamma: if evergreen { 0.0 } else { gamma },
                quality: self.uniform(0.85, 1.15),
            };
            let creative_key = child(&group_key, &name(&CREATIVES, index))?;
            let place = Place::Creative(self.world.creatives.len() as u32);
            self.world.places.insert(creative_key.clone(), place);
            self.world.creatives.push(Creative {
                key: creative_key,
                account,
                campaign,
                ad_group: self.world.ad_groups.len() as u32 - 1,
                start_status: if spare { Status::Paused } else { Status::Enabled },
                truth,
            });
        }
        Ok(first..self.world.creatives.len() as u32)
    }
}
