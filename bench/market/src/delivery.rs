//! One campaign through one step: opportunities, auctions, impressions, clicks, and what will
//! follow from them.
//!
//! The draws of opportunity `i` come from its own key and in a fixed order, so an opportunity that
//! is won in two markets of one seed shows the same user, who clicks and converts alike unless the
//! creative differs. Whether the auction is won is `u < P(price < bid)` for the uniform `u` that
//! also determines the price: a lost auction costs two draws and a comparison.

use omnify_operators::model::{DAY_US, EventKind, EventTime, HOUR_US, Stats};

use crate::action::Status;
use crate::config::{AuctionKind, MarketConfig};
use crate::feed::FeedEvent;
use crate::maths::{Draws, Purpose, key, mix, normal_cdf, normal_quantile};
use crate::rhythm::WeekTime;
use crate::totals::Booked;
use crate::truth::{ONSET, wear};
use crate::world::{Account, Campaign, Creative};

/// A click follows its impression within this, or within the step if that ends earlier.
const CLICK_AFTER_US: u64 = 30_000_000;
/// Standard deviation of the logarithm of an hour's demand.
const HOUR_NOISE: f64 = 0.15;
/// Opportunities of a campaign and step, at most: their number takes 22 bits of an event id.
const OPPORTUNITIES_MAX: u64 = 1 << 22;

/// What changes of a campaign.
#[derive(Clone, Debug)]
pub(crate) struct CampaignState {
    pub(crate) bid_micros: i64,
    pub(crate) budget_micros: i64,
    pub(crate) status: Status,
    /// Spent since the account-local day began.
    pub(crate) spent_today_micros: i64,
    /// Market times of budget changes within the quota window.
    pub(crate) budget_changes: std::collections::VecDeque<EventTime>,
    pub(crate) booked: Booked,
}

/// What changes of a creative.
#[derive(Clone, Debug)]
pub(crate) struct CreativeState {
    pub(crate) status: Status,
    pub(crate) impressions: u64,
    pub(crate) ctr: f64,
    pub(crate) onset_us: Option<EventTime>,
}

/// Something that will become known later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) event: FeedEvent,
    /// What it does to a report row of the click's hour (a removed click has no event of its own).
    pub(crate) restates: Stats,
}

/// A creative that can win in this step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Position among the campaign's creatives.
    position: usize,
    quality: f64,
    win_share: f64,
    ctr: f64,
    shown: Stats,
}

/// The step and the campaign.
pub(crate) struct Delivery<'a> {
    pub(crate) config: &'a MarketConfig,
    pub(crate) seed: u64,
    pub(crate) step: u64,
    pub(crate) start_us: EventTime,
    pub(crate) week: WeekTime,
    pub(crate) account: &'a Account,
    pub(crate) campaign: &'a Campaign,
    /// The campaign's creatives.
    pub(crate) creatives: &'a [Creative],
    /// Index of the campaign.
    pub(crate) index: u32,
}

impl Delivery<'_> {
    /// Expected opportunities of the step.
    fn demand(&self) -> f64 {
        let truth = &self.campaign.truth;
        let hour = self.start_us.div_euclid(HOUR_US) as u64;
        let noise =
            Draws::new(key(self.seed, Purpose::Hour, u64::from(self.index), hour), 0).normal();
        let noise = (HOUR_NOISE * noise - 0.5 * HOUR_NOISE * HOUR_NOISE).exp();
        let share_of_day = self.config.step_us as f64 / DAY_US as f64;
        truth.opportunities_per_day
            * share_of_day
            * self.week.demand(truth.demand_peak_hour, truth.weekend)
            * noise
    }

    /// Id of an event: a scrambled, so unique, (campaign, step, opportunity, kind).
    fn id(&self, opportunity: u64, kind: EventKind) -> u64 {
        let place = u64::from(self.index) << 46 | (self.step & 0x3f_ffff) << 24 | opportunity << 2;
        mix((place | kind as u64 & 3).wrapping_add(1))
    }

    /// Plays the step. Events go to `out`, later ones to `pending`; totals into the states.
    /// `slots` is scratch space. `enabled` says whether a creative (by its position) may deliver.
    pub(crate) fn run(
        &self,
        state: &mut CampaignState,
        creatives: &mut [CreativeState],
        enabled: impl Fn(usize, &CreativeState) -> bool,
        slots: &mut Vec<Slot>,
        pending: &mut Vec<Pending>,
        out: &mut Vec<FeedEvent>,
    ) {
        let campaign = u64::from(self.index);
        let arrivals = key(self.seed, Purpose::Arrivals, campaign, self.step);
        let count = Draws::new(arrivals, 0).poisson(self.demand()).min(OPPORTUNITIES_MAX);
        if count == 0 || state.status == Status::Paused {
            return;
        }
        let truth = &self.campaign.truth;
        let log_mean = truth.price_log_mean + self.week.log_price(truth.price_peak_hour);
        let first_creative = self.campaign.creatives.start;
        slots.clear();
        for (position, creative) in creatives.iter().enumerate() {
            if enabled(position, creative) {
                let quality = self.creatives[position].truth.quality;
                let reach = (state.bid_micros as f64 * quality).ln() - log_mean;
                let win_share = normal_cdf(reach / truth.price_log_sd);
                let (ctr, shown) = (creative.ctr, Stats::ZERO);
                slots.push(Slot { position, quality, win_share, ctr, shown });
            }
        }
        if slots.is_empty() {
            return;
        }
        let stream = key(self.seed, Purpose::Opportunity, campaign, self.step);
        let dearest = (state.bid_micros + 999) / 1_000;
        let first_price = self.account.platform.auction == AuctionKind::FirstPrice;
        let step_us = self.config.step_us as u64;
        for opportunity in 0..count {
            if state.spent_today_micros + dearest > state.budget_micros {
                break;
            }
            let mut draws = Draws::new(stream, opportunity);
            let pick = draws.below(slots.len() as u64) as usize;
            let slot = &mut slots[pick];
            let price = draws.unit();
            if price >= slot.win_share {
                continue;
            }
            let paid = if first_price {
                state.bid_micros as f64
            } else {
                let rival = (log_mean + truth.price_log_sd * normal_quantile(price)).exp();
                (rival / slot.quality).min(state.bid_micros as f64)
            };
            let cost_micros = ((paid / 1e3).round() as i64).min(dearest);
            state.spent_today_micros += cost_micros;
            let user = draws.below(truth.audience);
            let jitter = draws.below((step_us / count).max(1));
            let impression = FeedEvent {
                time_us: self.start_us + (opportunity * step_us / count + jitter) as i64,
                click_us: 0,
                creative: first_creative + slot.position as u32,
                kind: EventKind::Impression,
                user: mix((campaign << 40 | user) + 1),
                event_id: self.id(opportunity, EventKind::Impression),
                cost_micros,
                revenue_micros: 0,
            };
            let impression = FeedEvent { click_us: impression.time_us, ..impression };
            out.push(impression);
            slot.shown.impressions += 1;
            slot.shown.cost_micros += cost_micros;
            if draws.unit() < slot.ctr {
                slot.shown.clicks += 1;
                out.push(self.click(opportunity, impression, &mut draws, pending));
            }
        }
        self.book(state, creatives, slots);
    }

    /// The click on `impression`; what follows from it goes to `pending`.
    fn click(
        &self,
        opportunity: u64,
        impression: FeedEvent,
        draws: &mut Draws,
        pending: &mut Vec<Pending>,
    ) -> FeedEvent {
        let truth = &self.campaign.truth;
        let config = self.config;
        let last_us = self.start_us + config.step_us - 1;
        let time_us = (impression.time_us + 1 + draws.below(CLICK_AFTER_US) as i64).min(last_us);
        let click = FeedEvent {
            time_us,
            click_us: time_us,
            kind: EventKind::Click,
            event_id: self.id(opportunity, EventKind::Click),
            cost_micros: 0,
            ..impression
        };
        if draws.unit() < config.invalid_share {
            let refund = FeedEvent {
                time_us: time_us + config.invalid_after_us,
                kind: EventKind::Cost,
                user: 0,
                event_id: self.id(opportunity, EventKind::Cost),
                cost_micros: -impression.cost_micros,
                ..click
            };
            let restates = Stats { clicks: -1, cost_micros: refund.cost_micros, ..Stats::ZERO };
            pending.push(Pending { event: refund, restates });
        } else if draws.unit() < truth.cvr {
            let spread = truth.value_log_sd;
            let value =
                truth.value_mean_micros * (spread * draws.normal() - 0.5 * spread * spread).exp();
            let fast = draws.unit() < config.delay_fast_share;
            let mean = if fast { config.delay_fast_us } else { config.delay_slow_us };
            let delay_us = draws.exponential(mean as f64) as i64 + 1;
            if delay_us <= config.attribution_us {
                let conversion = FeedEvent {
                    time_us: time_us + delay_us,
                    kind: EventKind::Conversion,
                    event_id: self.id(opportunity, EventKind::Conversion),
                    revenue_micros: value.round() as i64,
                    ..click
                };
                pending.push(Pending { event: conversion, restates: conversion.stats() });
            }
        }
        click
    }

    /// Adds the step to the totals and lets creatives wear.
    fn book(&self, state: &mut CampaignState, creatives: &mut [CreativeState], slots: &[Slot]) {
        let truth = &self.campaign.truth;
        for slot in slots.iter().filter(|slot| slot.shown.impressions > 0) {
            let shown = slot.shown;
            let conversions =
                shown.impressions as f64 * slot.ctr * truth.cvr * converting_share(self.config);
            state.booked.add(shown, conversions, conversions * truth.value_mean_micros);
            let creative = &mut creatives[slot.position];
            creative.impressions += shown.impressions.unsigned_abs();
            let hidden = &self.creatives[slot.position].truth;
            let left = wear(creative.impressions as f64 / truth.audience as f64, hidden.gamma);
            creative.ctr = hidden.ctr_fresh * left;
            if left < ONSET && creative.onset_us.is_none() {
                creative.onset_us = Some(self.start_us + self.config.step_us);
            }
        }
    }
}

/// Share of clicks that can still convert in time: valid ones, whose delay is within attribution.
pub(crate) fn converting_share(config: &MarketConfig) -> f64 {
    let late = |mean: i64| (-(config.attribution_us as f64) / mean as f64).exp();
    let fast = config.delay_fast_share;
    let late = fast * late(config.delay_fast_us) + (1.0 - fast) * late(config.delay_slow_us);
    (1.0 - config.invalid_share) * (1.0 - late)
}
