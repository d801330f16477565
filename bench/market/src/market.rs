//! The market itself: state and steps. Pure; see the crate documentation. Actions are in
//! `settings`, what only the market knows in `truth`.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use jiff::civil::Time;
use omnify_operators::model::{EventTime, HOUR_US, Stats};

use crate::action::Status;
use crate::config::{ConfigError, FeedKind, MarketConfig};
use crate::delivery::{CampaignState, CreativeState, Delivery, Pending, Slot};
use crate::feed::{FeedEvent, FeedItem};
use crate::report::ReportBook;
use crate::rhythm::WeekTime;
use crate::totals::Booked;
use crate::world::{Account, AdGroup, Campaign, Creative, World};

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
    pub(crate) config: MarketConfig,
    seed: u64,
    pub(crate) world: World,
    accounts: Vec<AccountState>,
    pub(crate) campaigns: Vec<CampaignState>,
    pub(crate) ad_groups: Vec<Status>,
    pub(crate) creatives: Vec<CreativeState>,
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
