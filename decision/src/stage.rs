//! The stage: ticks, controls and complete frames in; decisions and actions out.
//!
//! # Order within a tick
//! 1. once per UTC day, before the first row of the day: what has long been silent is let go, and
//!    portfolios are shared out;
//! 2. controls, in their order;
//! 3. the rows of the frame, in their order (new campaigns join their portfolios first);
//! 4. wakes that are due, where no row came: campaigns nobody sent a row about (paused for a spent
//!    day, or without traffic) are decided on their last row.
//!
//! Every decision is dated by the tick at which it is made, so the ticks are an input like any
//! other: a replay must run exactly the ticks of the record.

mod approvals;
mod controls;
mod saved;
mod silence;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use omnify_operators::model::{
    DAY_US, EntityId, EntityInfo, EntityKey, FeatureRow, Frame, Level, Tick, tick_of_us, us_of_tick,
};
use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::action::{Action, Decision, Verdict};
use crate::approvals::Approvals;
use crate::bid::BidBook;
use crate::campaign::{Campaign, Scene};
pub use crate::config::{
    Autonomy, ConfigErrors, ConfigIssue, ControllerConfig, ExecutorMode, GuardrailConfig,
    RotationConfig, StageConfig,
};
use crate::control::Control;
use crate::draft::Outcomes;
use crate::goal::Goal;
use crate::goals::Goals;
use crate::ledger::{InFlight, Ledger, Owner};
use crate::model::ClickModel;
use crate::pages::Pages;
use crate::portfolio::Portfolios;
use crate::steer::ms_to_us;
use crate::view::{View, Windows};
use crate::wear::Wear;

/// Why a stage cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// The configuration cannot work.
    #[error("the decision stage cannot start: {0}")]
    Config(ConfigErrors),
    /// Saved state is damaged, or of another format.
    #[error(
        "the saved state of the decision stage cannot be read at {what}: {problem}; load an older \
         snapshot, or replay the journal from its beginning"
    )]
    Unreadable {
        /// The part of the state.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Saved state is sound and does not fit this configuration.
    #[error("the saved state of the decision stage does not fit the configuration: {0}")]
    Shape(String),
}

/// A control that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Which of the tick's controls, from 0.
    pub control: usize,
    /// Why, and what to do.
    pub why: String,
}

/// What came out of one call, ordered by (tick, [`EntityInfo::order`], key, policy).
#[derive(Clone, Debug, Default)]
pub struct TickOutput {
    /// Every decision, no-ops included.
    pub decisions: Vec<Decision>,
    /// Differences to be executed.
    pub actions: Vec<Action>,
    /// Controls that were not taken.
    pub refused: Vec<Refused>,
}

/// What the stage counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Calls of `on_tick`.
    pub ticks: u64,
    /// Feature rows seen.
    pub rows: u64,
    /// Decisions made.
    pub decisions: u64,
    /// Decisions that acted.
    pub act: u64,
    /// Decisions that held.
    pub hold: u64,
    /// Decisions that a guardrail blocked.
    pub blocked: u64,
    /// Decisions that wait for a person.
    pub propose: u64,
    /// Settings found changed by somebody else.
    pub drifts: u64,
    /// Acknowledgements of actions that were not in flight (alerts never are).
    pub acknowledgements_unmatched: u64,
    /// Models refused because they could not be read; the one before stays.
    pub models_refused: u64,
    /// Goals that were not set or not dropped; the ones before stay.
    pub goals_refused: u64,
    /// Answers to proposals that were not open any more.
    pub approvals_unmatched: u64,
    /// Crossed invariants; anything but 0 is a defect of the engine.
    pub invariant_violations: u64,
}

/// Most reviews of a campaign in a row without a new row.
const REVIEWS_MAX: u32 = 24;

/// The pure state machine. See the crate's documentation.
///
/// A clone shares everything that does not change and is taken in a fraction of a millisecond; it
/// exists to be saved ([`Stage::save`]) while the stage goes on.
#[derive(Clone)]
pub struct Stage {
    config: Arc<StageConfig>,
    windows: Windows,
    goals: Goals,
    approvals: Approvals,
    no_goal: Arc<str>,
    counters: Counters,
    book: BidBook,
    killed: BTreeSet<Option<String>>,
    model: Option<Arc<ClickModel>>,
    ledger: Ledger,
    campaigns: Pages<Campaign>,
    campaign_at: Arc<HashMap<EntityId, usize>>,
    accounts: HashMap<EntityId, Arc<Account>>,
    wear: Wear,
    wakes: BTreeSet<(Tick, u64, usize)>,
    allocated_day: i64,
    /// Budgets given out by goal and tenant, for goals with a portfolio.
    shared: HashMap<(Arc<str>, EntityId), i64>,
}

impl Stage {
    /// A stage that has seen nothing yet.
    pub fn new(config: StageConfig) -> Result<Stage, StageError> {
        config.validate().map_err(StageError::Config)?;
        let config = Arc::new(config);
        Ok(Stage {
            windows: Windows::choose(&config.windows),
            goals: Goals::new(&config),
            approvals: Approvals::default(),
            no_goal: "".into(),
            config,
            counters: Counters::default(),
            book: BidBook::default(),
            killed: BTreeSet::new(),
            model: None,
            ledger: Ledger::default(),
            campaigns: Pages::default(),
            campaign_at: Arc::default(),
            accounts: HashMap::new(),
            wear: Wear::default(),
            wakes: BTreeSet::new(),
            allocated_day: i64::MIN,
            shared: HashMap::new(),
        })
    }

    /// What the stage was told.
    pub fn config(&self) -> &StageConfig {
        &self.config
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The state for `POST /v1/bids`: a copy that shares everything unchanged.
    pub fn bid_book(&self) -> Arc<BidBook> {
        Arc::new(self.book.clone())
    }

    /// Desired, actual and in-flight state of an owner, with the pre-images for undo.
    pub fn owner(&self, key: &EntityKey) -> Option<&Owner> {
        self.ledger.get(key)
    }

    /// What the stage believes is on its way, by position of their owners.
    pub fn in_flight(&self) -> impl Iterator<Item = &InFlight> {
        self.ledger.iter().filter_map(|(_, owner)| owner.in_flight.as_ref())
    }

    /// The goals that stand: the configuration's, and what inputs made of them.
    pub fn goals(&self) -> impl Iterator<Item = &Goal> {
        self.goals.iter().map(|objective| &objective.goal)
    }

    /// Applies `controls`, then decides on every row of `frame`; see the module for the order.
    /// Ticks never fall.
    pub fn on_tick(&mut self, tick: Tick, controls: &[Control], frame: &Frame) -> TickOutput {
        self.counters.ticks += 1;
        self.counters.rows += frame.rows.len() as u64;
        let mut made = Vec::with_capacity(frame.rows.len());
        self.begin_day(tick);
        let refused = self.apply(tick, controls, &mut made);
        self.register(tick, frame);
        for (info, row) in &frame.rows {
            self.meet(tick, info, row, &mut made);
        }
        self.run_wakes(tick, &mut made);
        self.queue_proposals(tick, &mut made);
        self.book.set_tick(tick);
        TickOutput { refused, ..self.output(made) }
    }

    fn output(&mut self, mut made: Vec<Outcomes>) -> TickOutput {
        made.sort_by(|a, b| {
            let key = |out: &Outcomes| (out.decision.tick, out.decision.entity.order);
            key(a).cmp(&key(b)).then_with(|| {
                let (a, b) = (&a.decision, &b.decision);
                a.entity.key.cmp(&b.entity.key).then(a.policy.cmp(b.policy))
            })
        });
        let mut output = TickOutput::default();
        for Outcomes { decision, action, violations, .. } in made {
            self.counters.decisions += 1;
            self.counters.invariant_violations += violations;
            *match decision.verdict {
                Verdict::Act => &mut self.counters.act,
                Verdict::Hold => &mut self.counters.hold,
                Verdict::Blocked => &mut self.counters.blocked,
                Verdict::Propose => &mut self.counters.propose,
            } += 1;
            output.decisions.push(decision);
            output.actions.extend(action);
        }
        output
    }

    fn meet(
        &mut self,
        tick: Tick,
        info: &Arc<EntityInfo>,
        row: &FeatureRow,
        made: &mut Vec<Outcomes>,
    ) {
        let now_us = us_of_tick(tick);
        if info.level >= Level::Account {
            let id = info.ancestors[Level::Account as usize];
            let account = self.accounts.entry(id);
            let account =
                account.or_insert_with(|| Arc::new(Account::new(&info.time_zone, now_us)));
            let account = Arc::make_mut(account);
            account.advance(&info.time_zone, now_us);
            account.heard_us = now_us;
        }
        self.meet_wear(tick, info, row, made);
        match info.level {
            Level::Account => {
                let day = View::at(&self.windows, row, now_us, i64::MIN);
                if let Some(account) = self.accounts.get_mut(&info.id) {
                    Arc::make_mut(account).recent_micros = day.recent.cost_micros;
                }
            }
            Level::Campaign => self.meet_campaign(tick, info, row, made),
            _ => {}
        }
    }

    fn meet_wear(
        &mut self,
        tick: Tick,
        info: &Arc<EntityInfo>,
        row: &FeatureRow,
        made: &mut Vec<Outcomes>,
    ) {
        let Stage { config, windows, goals, no_goal, killed, model, ledger, wear, book, .. } = self;
        let scene = scene(config, windows, model.as_deref(), killed, tick, info);
        made.extend(
            wear.meet(&scene, info, row, ledger, book, (goals, no_goal)).into_iter().flatten(),
        );
    }

    fn meet_campaign(
        &mut self,
        tick: Tick,
        info: &Arc<EntityInfo>,
        row: &FeatureRow,
        made: &mut Vec<Outcomes>,
    ) {
        let Some(&at) = self.campaign_at.get(&info.id) else { return };
        let id = info.ancestors[Level::Account as usize];
        if let Some(account) = self.accounts.get_mut(&id) {
            let campaign = &mut self.campaigns[at];
            let owner = self.ledger.read(campaign.memory.owner);
            campaign.meet(row, &self.windows, Arc::make_mut(account), owner);
        }
        self.decide(tick, at, made);
    }

    /// Decides on a campaign's last row, publishes its quote and sets its next wake.
    fn decide(&mut self, tick: Tick, at: usize, made: &mut Vec<Outcomes>) {
        let Stage {
            config,
            windows,
            killed,
            model,
            ledger,
            campaigns,
            accounts,
            book,
            wakes,
            shared,
            ..
        } = self;
        let campaign = &mut campaigns[at];
        let info = campaign.info.clone();
        let mut scene = scene(config, windows, model.as_deref(), killed, tick, &info);
        let Some(objective) = campaign.objective(scene.now_us).cloned() else {
            book.remove(&info.key);
            count(shared, campaign, None);
            return;
        };
        let Some(account) = accounts.get_mut(&info.ancestors[Level::Account as usize]) else {
            return;
        };
        let account = Arc::make_mut(account);
        account.advance(&info.time_zone, scene.now_us);
        let owner = ledger.at(campaign.memory.owner);
        let portfolio = objective.goal.portfolio_budget_micros.map(|_| &objective.name);
        let total = count(shared, campaign, portfolio.map(|name| (name, owner.budget_at_most())));
        if let (Some(budget_micros), Some(name)) =
            (objective.goal.portfolio_budget_micros, portfolio)
        {
            scene.room_micros = budget_micros - (total - campaign.counted_by(name));
        }
        let mut out = campaign.decide(&scene, &objective, account, owner);
        out.violations += u64::from(!campaign.books_balance());
        count(shared, campaign, portfolio.map(|name| (name, owner.budget_at_most())));
        let held = out.decision.reasons.first() == Some(&crate::codes::reason::BETWEEN_UPDATES);
        if !held || book.quote(&info.key).is_none() {
            book.set_quote(&info.key, campaign.quote(&objective, owner));
        }
        made.push(out);
        let memory = &mut campaign.memory;
        memory.looked = tick;
        let review = us_of_tick(tick).saturating_add(ms_to_us(config.controller.review_ms));
        let resumes = memory.resumes_us();
        // Where resuming is due and was blocked, it is tried again at the pace of reviews.
        let later = resumes.filter(|resumes| *resumes > us_of_tick(tick)).unwrap_or(review);
        let wake = tick_of_us(later).max(tick + 1);
        let reviews_left = resumes.is_some() || memory.reviews < REVIEWS_MAX;
        // One entry in the queue per campaign; a later wish is honoured when the entry fires.
        if reviews_left && memory.wake.is_none_or(|queued| wake < queued) {
            if let Some(queued) = memory.wake.replace(wake) {
                wakes.remove(&(queued, info.order, at));
            }
            wakes.insert((wake, info.order, at));
        }
    }

    /// Runs the wakes that are due. One that came too early is put off; one of an account that is
    /// silent itself is dropped, as nothing may be changed before it is heard again.
    fn run_wakes(&mut self, tick: Tick, made: &mut Vec<Outcomes>) {
        let review_us = ms_to_us(self.config.controller.review_ms);
        let late_us = ms_to_us(self.config.guardrails.feed_late_ms);
        while let Some(&(due, order, at)) = self.wakes.first().filter(|wake| wake.0 <= tick) {
            self.wakes.remove(&(due, order, at));
            let campaign = &mut self.campaigns[at];
            campaign.memory.wake = None;
            let id = campaign.info.ancestors[Level::Account as usize];
            let Some(account) = self.accounts.get(&id) else { continue };
            let wanted_us = match campaign.memory.resumes_us() {
                // A row of this very tick was decided on already.
                _ if campaign.memory.looked == tick => us_of_tick(tick).saturating_add(review_us),
                Some(resumes_us) => resumes_us,
                None if us_of_tick(tick) - account.heard_us > late_us => continue,
                None => us_of_tick(campaign.memory.looked).saturating_add(review_us),
            };
            let wanted = tick_of_us(wanted_us);
            if wanted > tick {
                campaign.memory.wake = Some(wanted);
                self.wakes.insert((wanted, order, at));
                continue;
            }
            campaign.memory.reviews += 1;
            self.decide(tick, at, made);
        }
    }

    /// Once per UTC day: what is silent goes, then what the campaigns of each portfolio are given, from
    /// the state as it is.
    fn begin_day(&mut self, tick: Tick) {
        let day = us_of_tick(tick).div_euclid(DAY_US);
        if day > self.allocated_day {
            self.allocated_day = day;
            self.let_go(tick);
            self.share(day * DAY_US, |_, _| true);
        }
    }

    /// Shares the portfolios out that `wanted(goal, tenant)` picks.
    fn share(&mut self, now_us: i64, wanted: impl Fn(&str, &str) -> bool) {
        let all = Portfolios::of(&self.campaigns, now_us, wanted);
        all.share(&self.windows, &mut self.campaigns, &self.ledger);
    }

    /// Takes in the campaigns of a frame that are new; the portfolios they join are shared out
    /// anew before anything is decided, so that they never sum to more than there is.
    fn register(&mut self, tick: Tick, frame: &Frame) {
        let now_us = us_of_tick(tick);
        let mut joined: BTreeSet<(Arc<str>, &str)> = BTreeSet::new();
        for (info, row) in &frame.rows {
            if info.level != Level::Campaign || self.campaign_at.contains_key(&info.id) {
                continue;
            }
            let owner = self.ledger.position(&info.key);
            let campaign = Campaign::new(info, owner, self.goals.covering(&info.key), row);
            joined.extend(campaign.portfolio(now_us).map(|goal| (goal, info.key.tenant())));
            let at = self.campaigns.insert(campaign);
            Arc::make_mut(&mut self.campaign_at).insert(info.id, at);
        }
        if !joined.is_empty() {
            self.share(now_us, |goal, tenant| {
                joined.iter().any(|(name, of)| **name == *goal && *of == tenant)
            });
        }
    }
}

/// Counts a campaign into the portfolio given with the budget its owner may hold, and out of any
/// other; returns the portfolio's total.
fn count(
    shared: &mut HashMap<(Arc<str>, EntityId), i64>,
    campaign: &mut Campaign,
    portfolio: Option<(&Arc<str>, i64)>,
) -> i64 {
    let tenant = campaign.info.ancestors[Level::Tenant as usize];
    if let Some((goal, micros)) = campaign.memory.counted.take() {
        *shared.entry((goal, tenant)).or_default() -= micros;
    }
    let Some((goal, micros)) = portfolio else { return 0 };
    campaign.memory.counted = Some((goal.clone(), micros));
    let total = shared.entry((goal.clone(), tenant)).or_default();
    *total += micros;
    *total
}

fn scene<'a>(
    config: &'a StageConfig,
    windows: &'a Windows,
    model: Option<&'a ClickModel>,
    killed: &BTreeSet<Option<String>>,
    tick: Tick,
    info: &EntityInfo,
) -> Scene<'a> {
    let mut killed_tenant = false;
    if !killed.is_empty() {
        killed_tenant = killed.iter().flatten().any(|tenant| tenant == info.key.tenant());
    }
    Scene {
        config,
        windows,
        model,
        killed_global: killed.contains(&None),
        killed_tenant,
        tick,
        now_us: us_of_tick(tick),
        room_micros: i64::MAX,
    }
}

pub(crate) use approvals::outdated;

#[cfg(test)]
#[path = "stage_tests.rs"]
mod tests;
