//! The market itself: state, steps and actions. Pure; see the crate documentation.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use jiff::civil::Time;
use omnify_operators::model::{EntityKey, EventTime, HOUR_US, Level, Stats};

use crate::action::{
    ActionError, Applied, EntitySettings, QUOTA_WINDOW_US, Setting, Status, amount,
};
use crate::config::{ConfigError, FeedKind, MarketConfig};
use crate::delivery::{CampaignState, CreativeState, Delivery, Pending, Slot, converting_share};
use crate::feed::{FeedEvent, FeedItem};
use crate::report::ReportBook;
use crate::rhythm::WeekTime;
use crate::totals::{Booked, CampaignTotals, Totals};
use crate::truth::{CampaignTruth, CreativeTruth, Truth, frequency, onset_exposure};
use crate::world::{Account, AdGroup, Campaign, Creative, Place, World, win_curve};

/// Local clocks are looked up again at every quarter hour: no zone changes in between.
const CLOCK_GRAIN_US: i64 = HOUR_US / 4;

/// What changes of an account.
#[derive(Debug)]
struct AccountState {
    /// Local time ahead of UTC.
    offset_us: i64,
    /// Start of the local day after the present one.
    day_end_us: EventTime,
    /// Present with a report feed.
    book: Option<ReportBook>,
}

/// A market at a market time.
#[derive(Debug)]
pub struct Market {
    config: MarketConfig,
    seed: u64,
    world: World,
    accounts: Vec<AccountState>,
    campaigns: Vec<CampaignState>,
    ad_groups: Vec<Status>,
    creatives: Vec<CreativeState>,
    /// Number of the next step.
    step: u64,
    /// What becomes known later, by the step in which it does. Bounded by the clicks of the longer
    /// of the attribution window and the time to find invalid clicks.
    pending: BTreeMap<u64, Vec<Pending>>,
    scratch: Scratch,
}

/// Buffers used again in every step.
#[derive(Debug, Default)]
struct Scratch {
    slots: Vec<Slot>,
    pending: Vec<Pending>,
    events: Vec<FeedEvent>,
    told: Vec<FeedEvent>,
}

impl Market {
    /// A market at its start.
    pub fn new(config: MarketConfig, seed: u64) -> Result<Market, ConfigError> {
        config.check()?;
        let world = World::new(&config, seed)?;
        let horizon_us = config.attribution_us.max(config.invalid_after_us);
        let accounts = world.accounts.iter().map(|account| AccountState {
            offset_us: 0,
            day_end_us: config.start_us,
            book: match account.platform.feed {
                FeedKind::Events => None,
                FeedKind::Reports { every_us } => {
                    Some(ReportBook::new(every_us, horizon_us + every_us))
                }
            },
        });
        let campaigns = world.campaigns.iter().map(|campaign| CampaignState {
            bid_micros: campaign.start_bid_micros,
            budget_micros: campaign.start_budget_micros,
            status: Status::Enabled,
            spent_today_micros: 0,
            budget_changes: VecDeque::new(),
            booked: Booked::default(),
        });
        let creatives = world.creatives.iter().map(|creative| CreativeState {
            status: creative.start_status,
            impressions: 0,
            ctr: creative.truth.ctr_fresh,
            onset_us: None,
        });
        Ok(Market {
            accounts: accounts.collect(),
            campaigns: campaigns.collect(),
            ad_groups: vec![Status::Enabled; world.ad_groups.len()],
            creatives: creatives.collect(),
            step: 0,
            pending: BTreeMap::new(),
            scratch: Scratch::default(),
            world,
            seed,
            config,
        })
    }

    /// The config.
    pub fn config(&self) -> &MarketConfig {
        &self.config
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Market time: the end of the last step played.
    pub fn now_us(&self) -> EventTime {
        self.config.start_us + self.config.step_us * self.step as i64
    }

    /// Accounts, by index.
    pub fn accounts(&self) -> &[Account] {
        &self.world.accounts
    }

    /// Campaigns, by index.
    pub fn campaigns(&self) -> &[Campaign] {
        &self.world.campaigns
    }

    /// Ad groups, by index.
    pub fn ad_groups(&self) -> &[AdGroup] {
        &self.world.ad_groups
    }

    /// Creatives, by the index that feed items carry.
    pub fn creatives(&self) -> &[Creative] {
        &self.world.creatives
    }

    /// Plays every step that ends at or before `time` and appends what became known, in order.
    pub fn advance_to(&mut self, time: EventTime, out: &mut Vec<FeedItem>) {
        while self.now_us().saturating_add(self.config.step_us) <= time {
            self.play(out);
        }
    }

    /// [`Market::advance_to`] for those who only want totals.
    pub fn advance_discarding(&mut self, time: EventTime) {
        let mut out = Vec::new();
        while self.now_us().saturating_add(self.config.step_us) <= time {
            out.clear();
            self.play(&mut out);
        }
    }

    /// Plays one step.
    fn play(&mut self, out: &mut Vec<FeedItem>) {
        let mut told = std::mem::take(&mut self.scratch.told);
        told.clear();
        self.turn_clocks();
        self.settle(&mut told);
        for index in 0..self.campaigns.len() {
            self.deliver(index, &mut told);
        }
        // Runs of one campaign are nearly sorted, which the stable sort makes use of; equal times
        // stay in campaign order.
        told.sort_by_key(|event| event.time_us);
        out.extend(told.iter().copied().map(FeedItem::Event));
        self.scratch.told = told;
        self.step += 1;
        let now = self.now_us();
        for book in self.accounts.iter_mut().filter_map(|account| account.book.as_mut()) {
            book.report(now, out);
        }
    }

    /// Follows local clocks; a new local day has a fresh budget.
    fn turn_clocks(&mut self) {
        let now = self.now_us();
        if now % CLOCK_GRAIN_US != 0 {
            return;
        }
        let mut new_day = vec![false; self.accounts.len()];
        for (index, account) in self.accounts.iter_mut().enumerate() {
            let zone = &self.world.accounts[index].time_zone;
            let local = Timestamp::from_microsecond(now).unwrap_or_default();
            account.offset_us = i64::from(zone.to_offset(local).seconds()) * 1_000_000;
            if now >= account.day_end_us {
                new_day[index] = true;
                let next = local.to_zoned((**zone).clone()).datetime().date().tomorrow();
                let midnight = next
                    .and_then(|day| day.to_datetime(Time::midnight()).to_zoned((**zone).clone()));
                account.day_end_us = midnight
                    .map_or(EventTime::MAX, |midnight| midnight.timestamp().as_microsecond());
            }
        }
        for (state, campaign) in self.campaigns.iter_mut().zip(&self.world.campaigns) {
            if new_day[campaign.account as usize] {
                state.spent_today_micros = 0;
            }
        }
    }

    /// Tells what becomes known in this step of earlier clicks.
    fn settle(&mut self, told: &mut Vec<FeedEvent>) {
        for later in self.pending.remove(&self.step).unwrap_or_default() {
            let creative = &self.world.creatives[later.event.creative as usize];
            let booked = &mut self.campaigns[creative.campaign as usize].booked;
            match &mut self.accounts[creative.account as usize].book {
                None => {
                    booked.stats += later.event.stats();
                    told.push(later.event);
                }
                Some(book) => {
                    booked.stats += later.restates;
                    book.add(later.event.click_us, later.event.creative, later.restates);
                }
            }
        }
    }

    /// Plays the step of one campaign.
    fn deliver(&mut self, index: usize, told: &mut Vec<FeedEvent>) {
        let start_us = self.now_us();
        let campaign = &self.world.campaigns[index];
        let account = &mut self.accounts[campaign.account as usize];
        let range = campaign.creatives.start as usize..campaign.creatives.end as usize;
        let infos = &self.world.creatives[range.clone()];
        let ad_groups = &self.ad_groups;
        let delivery = Delivery {
            config: &self.config,
            seed: self.seed,
            step: self.step,
            start_us,
            week: WeekTime::at(start_us, account.offset_us),
            account: &self.world.accounts[campaign.account as usize],
            campaign,
            creatives: infos,
            index: index as u32,
        };
        let Scratch { slots, pending, events, .. } = &mut self.scratch;
        events.clear();
        let out = if account.book.is_some() { &mut *events } else { told };
        delivery.run(
            &mut self.campaigns[index],
            &mut self.creatives[range],
            |position, creative| {
                creative.status == Status::Enabled
                    && ad_groups[infos[position].ad_group as usize] == Status::Enabled
            },
            slots,
            pending,
            out,
        );
        if let Some(book) = &mut account.book {
            // A step lies within one hour, and so do its clicks.
            events.sort_unstable_by_key(|event| event.creative);
            for shown in events.chunk_by(|a, b| a.creative == b.creative) {
                let mut delta = Stats::ZERO;
                shown.iter().for_each(|event| delta += event.stats());
                book.add(start_us, shown[0].creative, delta);
            }
        }
        for later in pending.drain(..) {
            let after_us = later.event.time_us - self.config.start_us;
            // What would be known within this step still is told in the next.
            let step = ((after_us / self.config.step_us) as u64).max(self.step + 1);
            self.pending.entry(step).or_default().push(later);
        }
    }
}

/// Settings and actions.
impl Market {
    fn place(&self, key: &EntityKey) -> Result<Place, ActionError> {
        let unknown = || ActionError::UnknownEntity(key.clone());
        self.world.places.get(key).copied().ok_or_else(unknown)
    }

    /// The settings of a campaign, ad group or creative.
    pub fn settings(&self, key: &EntityKey) -> Option<EntitySettings> {
        self.world.places.get(key).map(|place| self.settings_at(key, *place))
    }

    /// Settings of the entities after the first `skip`, in key order, at most `limit`.
    pub fn settings_page(&self, skip: usize, limit: usize) -> Vec<EntitySettings> {
        let places = self.world.places.iter().skip(skip).take(limit);
        places.map(|(key, place)| self.settings_at(key, *place)).collect()
    }

    fn settings_at(&self, key: &EntityKey, place: Place) -> EntitySettings {
        let campaign = self.campaign_of(place);
        let state = &self.campaigns[campaign as usize];
        let account = self.account_of(campaign);
        let (level, status) = match place {
            Place::Campaign(_) => (Level::Campaign, state.status),
            Place::AdGroup(index) => (Level::AdGroup, self.ad_groups[index as usize]),
            Place::Creative(index) => (Level::Creative, self.creatives[index as usize].status),
        };
        let owned = |micros| (level == Level::Campaign).then_some(micros);
        EntitySettings {
            entity: key.clone(),
            level,
            bid_micros: owned(state.bid_micros),
            daily_budget_micros: owned(state.budget_micros),
            spent_today_micros: owned(state.spent_today_micros),
            status,
            currency: account.currency,
            time_zone: account.time_zone.iana_name().unwrap_or("UTC").to_owned(),
        }
    }

    fn campaign_of(&self, place: Place) -> u32 {
        match place {
            Place::Campaign(index) => index,
            Place::AdGroup(index) => self.world.ad_groups[index as usize].campaign,
            Place::Creative(index) => self.world.creatives[index as usize].campaign,
        }
    }

    fn account_of(&self, campaign: u32) -> &Account {
        &self.world.accounts[self.world.campaigns[campaign as usize].account as usize]
    }

    /// Sets an absolute value, from the next step on. What is true already changes nothing. With
    /// `before`, only if that is what holds.
    pub fn apply(
        &mut self,
        owner: &EntityKey,
        desired: &Setting,
        before: Option<&Setting>,
    ) -> Result<Applied, ActionError> {
        let place = self.place(owner)?;
        let current = self.current(owner, place, desired)?;
        if let Some(before) = before
            && *before != current
        {
            return Err(ActionError::Conflict { current });
        }
        let effective = self.checked(place, desired)?;
        if effective == current {
            return Ok(Applied { applied: false, effective });
        }
        if let Setting::Budget { budget_micros } = effective {
            self.check_budget_change(owner, place, budget_micros)?;
        }
        self.set(place, &effective);
        Ok(Applied { applied: true, effective })
    }

    /// What holds of the kind of setting that is `desired`.
    fn current(
        &self,
        owner: &EntityKey,
        place: Place,
        desired: &Setting,
    ) -> Result<Setting, ActionError> {
        let misplaced = || {
            let message = format!("a {} does not own this setting", owner.level());
            Err(ActionError::invalid("setting", message))
        };
        let state = match place {
            Place::Campaign(index) => Some(&self.campaigns[index as usize]),
            _ => None,
        };
        match (desired, state) {
            (Setting::Bid { .. }, Some(state)) => Ok(Setting::Bid { bid_micros: state.bid_micros }),
            (Setting::Budget { .. }, Some(state)) => {
                Ok(Setting::Budget { budget_micros: state.budget_micros })
            }
            (Setting::Bid { .. } | Setting::Budget { .. }, None) => misplaced(),
            (Setting::Status { .. }, _) => {
                Ok(Setting::Status { status: self.settings_at(owner, place).status })
            }
            (Setting::Rotate { from, to }, _) => {
                if matches!(place, Place::Creative(_)) {
                    return misplaced();
                }
                let from_status = self.creative_below(owner, from, "from")?.1;
                let to_status = self.creative_below(owner, to, "to")?.1;
                if from == to {
                    return Err(ActionError::invalid("to", "must differ from `from`"));
                }
                // Rotated already when `from` rests and `to` delivers; the other way round is
                // "not yet", written as the rotation that would undo this one.
                let done = from_status == Status::Paused && to_status == Status::Enabled;
                let (from, to) = if done { (from, to) } else { (to, from) };
                Ok(Setting::Rotate { from: from.clone(), to: to.clone() })
            }
        }
    }

    fn creative_below(
        &self,
        owner: &EntityKey,
        key: &EntityKey,
        field: &'static str,
    ) -> Result<(usize, Status), ActionError> {
        match self.world.places.get(key) {
            Some(Place::Creative(index)) if key.ancestor(owner.level()).as_ref() == Some(owner) => {
                let index = *index as usize;
                Ok((index, self.creatives[index].status))
            }
            _ => {
                let message = format!("`{key}` is not a creative of `{owner}`");
                Err(ActionError::invalid(field, message))
            }
        }
    }

    /// The setting as the platform would hold it.
    fn checked(&self, place: Place, desired: &Setting) -> Result<Setting, ActionError> {
        let account = self.account_of(self.campaign_of(place));
        let quantum = account.quantum_micros;
        Ok(match desired {
            Setting::Bid { bid_micros } => {
                let limits = (account.bid_min_micros, account.bid_max_micros);
                let bid_micros = amount("bid_micros", *bid_micros, quantum, limits)?;
                Setting::Bid { bid_micros }
            }
            Setting::Budget { budget_micros } => {
                let limits = (account.budget_min_micros, account.budget_max_micros);
                let budget_micros = amount("budget_micros", *budget_micros, quantum, limits)?;
                Setting::Budget { budget_micros }
            }
            other => other.clone(),
        })
    }

    /// The platform's rules on budget changes; counts the change when they allow it.
    fn check_budget_change(
        &mut self,
        owner: &EntityKey,
        place: Place,
        budget_micros: i64,
    ) -> Result<(), ActionError> {
        let now = self.now_us();
        let campaign = self.campaign_of(place);
        let platform = self.account_of(campaign).platform.clone();
        let state = &mut self.campaigns[campaign as usize];
        let floor = (state.spent_today_micros as f64 * platform.budget_to_spend_min) as i64;
        if budget_micros < floor {
            let message = format!("{budget_micros} is below {floor}, what today's spend requires");
            return Err(ActionError::invalid("budget_micros", message));
        }
        if let Some(limit) = platform.budget_changes_per_hour {
            let changes = &mut state.budget_changes;
            while changes.front().is_some_and(|change| *change + QUOTA_WINDOW_US <= now) {
                changes.pop_front();
            }
            if changes.len() >= limit as usize {
                let free_us = changes.front().map_or(now, |change| change + QUOTA_WINDOW_US);
                let retry_after_s = (free_us - now + 999_999) / 1_000_000;
                return Err(ActionError::Quota { owner: owner.clone(), limit, retry_after_s });
            }
            changes.push_back(now);
        }
        Ok(())
    }

    fn set(&mut self, place: Place, setting: &Setting) {
        let campaign = self.campaign_of(place) as usize;
        match (setting, place) {
            (Setting::Bid { bid_micros }, _) => self.campaigns[campaign].bid_micros = *bid_micros,
            (Setting::Budget { budget_micros }, _) => {
                self.campaigns[campaign].budget_micros = *budget_micros;
            }
            (Setting::Status { status }, Place::Campaign(index)) => {
                self.campaigns[index as usize].status = *status;
            }
            (Setting::Status { status }, Place::AdGroup(index)) => {
                self.ad_groups[index as usize] = *status;
            }
            (Setting::Status { status }, Place::Creative(index)) => {
                self.creatives[index as usize].status = *status;
            }
            (Setting::Rotate { from, to }, _) => {
                for (key, status) in [(from, Status::Paused), (to, Status::Enabled)] {
                    if let Some(Place::Creative(index)) = self.world.places.get(key) {
                        self.creatives[*index as usize].status = status;
                    }
                }
            }
        }
    }
}

/// What only the market knows, and what it adds up to.
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
