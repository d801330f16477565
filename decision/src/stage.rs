//! The stage: ticks, controls and complete frames in; decisions and actions out.
//!
//! # Order within a tick
//! 1. portfolios, once per UTC day (before the first row of the day);
//! 2. controls, in their order;
//! 3. the rows of the frame, in their order (new campaigns join their portfolios first);
//! 4. wakes that are due, where no row came: campaigns nobody sent a row about (paused for a spent
//!    day, or without traffic) are decided on their last row.
//!
//! Every decision is dated by the tick at which it is made, so the ticks are an input like any
//! other: a replay must run exactly the ticks of the record.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use omnify_operators::model::{
    DAY_US, EntityId, EntityInfo, FeatureRow, Frame, Level, Tick, tick_of_us, us_of_tick,
};
use serde::Serialize;

use crate::account::Account;
use crate::action::{Action, Decision, Setting, Verdict};
use crate::bid::BidBook;
use crate::campaign::{Campaign, Objective, Scene};
pub use crate::config::{
    Autonomy, ConfigErrors, ConfigIssue, ControllerConfig, ExecutorMode, GuardrailConfig,
    RotationConfig, StageConfig,
};
use crate::control::{Control, Outcome};
pub use crate::digest::Digest;
use crate::draft::Outcomes;
use crate::ledger::{Ledger, Owner};
use crate::model::ClickModel;
use crate::portfolio::Portfolios;
use crate::steer::ms_to_us;
use crate::view::{View, Windows};
use crate::wear::{GoalOf, Wear};

/// Why a stage cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// The configuration cannot work.
    #[error("the decision stage cannot start: {0}")]
    Config(ConfigErrors),
}

/// What came out of one call, ordered by (tick, [`EntityInfo::order`], key, policy).
#[derive(Clone, Debug, Default)]
pub struct TickOutput {
    /// Every decision, no-ops included.
    pub decisions: Vec<Decision>,
    /// Differences to be executed.
    pub actions: Vec<Action>,
}

/// What the stage counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
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
    /// Crossed invariants; anything but 0 is a defect of the engine.
    pub invariant_violations: u64,
}

/// Most reviews of a campaign in a row without a new row.
const REVIEWS_MAX: u32 = 24;

/// The pure state machine. See the crate's documentation.
pub struct Stage {
    config: Arc<StageConfig>,
    windows: Windows,
    objectives: Arc<[Objective]>,
    no_goal: Arc<str>,
    counters: Counters,
    book: BidBook,
    killed: BTreeSet<Option<String>>,
    model: Option<Arc<ClickModel>>,
    ledger: Ledger,
    campaigns: Vec<Campaign>,
    campaign_at: HashMap<EntityId, usize>,
    accounts: HashMap<EntityId, Account>,
    wear: Wear,
    wakes: BTreeSet<(Tick, u64, usize)>,
    allocated_day: i64,
    /// Budgets given out by goal and tenant, for goals with a portfolio.
    shared: HashMap<(usize, EntityId), i64>,
}

impl Stage {
    /// A stage that has seen nothing yet.
    pub fn new(config: StageConfig) -> Result<Stage, StageError> {
        config.validate().map_err(StageError::Config)?;
        let objectives = config.goals.iter().enumerate().map(|(at, goal)| Objective {
            at,
            goal: goal.clone(),
            name: goal.name.as_str().into(),
            policy: crate::policy::for_objective(&goal.objective),
        });
        Ok(Stage {
            windows: Windows::choose(&config.windows),
            objectives: objectives.collect(),
            no_goal: "".into(),
            config: Arc::new(config),
            counters: Counters::default(),
            book: BidBook::default(),
            killed: BTreeSet::new(),
            model: None,
            ledger: Ledger::default(),
            campaigns: Vec::new(),
            campaign_at: HashMap::new(),
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
    pub fn owner(&self, key: &omnify_operators::model::EntityKey) -> Option<&Owner> {
        self.ledger.get(key)
    }

    /// Applies `controls`, then decides on every row of `frame`; see the module for the order.
    /// Ticks never fall.
    pub fn on_tick(&mut self, tick: Tick, controls: &[Control], frame: &Frame) -> TickOutput {
        self.counters.ticks += 1;
        self.counters.rows += frame.rows.len() as u64;
        let mut made = Vec::with_capacity(frame.rows.len());
        self.share_portfolios(tick);
        for control in controls {
            self.apply(tick, control);
        }
        self.register(tick, frame);
        for (info, row) in &frame.rows {
            self.meet(tick, info, row, &mut made);
        }
        self.run_wakes(tick, &mut made);
        self.book.set_tick(tick);
        self.output(made)
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
        for Outcomes { decision, action, violations } in made {
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

    fn apply(&mut self, tick: Tick, control: &Control) {
        match control {
            Control::Kill { tenant } => {
                self.killed.insert(tenant.clone());
            }
            Control::Resume { tenant } => {
                self.killed.remove(tenant);
            }
            // The graph has heeded it; the stage decides on whatever rows come.
            Control::Calm { .. } => {}
            Control::Model { model, .. } => match ClickModel::from_json(model) {
                Ok(model) => {
                    let model = Arc::new(model);
                    self.book.set_model(Some(model.clone()));
                    self.model = Some(model);
                }
                Err(_) => self.counters.models_refused += 1,
            },
            Control::Observe { entity, actual } => {
                let at = self.ledger.position(entity);
                let owner = self.ledger.at(at);
                let edited = owner.foreign_edit_us;
                owner.observe(actual, tick, us_of_tick(tick));
                self.counters.drifts += u64::from(owner.foreign_edit_us != edited);
            }
            Control::Acknowledge { action, owner: key, outcome } => {
                let at = self.ledger.position(key);
                let owner = self.ledger.at(at);
                let desired = owner.in_flight.as_ref().map(|flight| flight.desired.clone());
                if !owner.acknowledge(*action, outcome) {
                    self.counters.acknowledgements_unmatched += 1;
                    return;
                }
                let failed = matches!(outcome, Outcome::Rejected { .. } | Outcome::Expired);
                if let (true, Some(Setting::Rotate { from, .. })) = (failed, desired)
                    && let Some(creative) = self.wear.creative_named(key, &from)
                {
                    self.wear.undo_rotation(creative);
                }
            }
        }
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
            let account =
                self.accounts.entry(id).or_insert_with(|| Account::new(&info.time_zone, now_us));
            account.advance(&info.time_zone, now_us);
            account.heard_us = now_us;
        }
        self.meet_wear(tick, info, row, made);
        match info.level {
            Level::Account => {
                let day = View::at(&self.windows, row, now_us, i64::MIN);
                if let Some(account) = self.accounts.get_mut(&info.id) {
                    account.recent_micros = day.recent.cost_micros;
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
        let Stage {
            config, windows, objectives, no_goal, killed, model, ledger, wear, book, ..
        } = self;
        let scene = scene(config, windows, model.as_deref(), killed, tick, info);
        let covering = |info: &EntityInfo| covering(objectives, info);
        let active = |at: &[usize]| active(objectives, at, scene.now_us).map(|o| o.name.clone());
        let goals = GoalOf { covering: &covering, active: &active, none: no_goal };
        made.extend(wear.meet(&scene, info, row, ledger, book, &goals).into_iter().flatten());
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
            let owner = self.ledger.at(campaign.owner);
            campaign.meet(row, &self.windows, account, owner);
        }
        self.decide(tick, at, made);
    }

    /// Decides on a campaign's last row, publishes its quote and sets its next wake.
    fn decide(&mut self, tick: Tick, at: usize, made: &mut Vec<Outcomes>) {
        let Stage {
            config,
            windows,
            objectives,
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
        let Some(objective) = active(objectives, &campaign.covering, scene.now_us) else {
            book.remove(&info.key);
            return;
        };
        let Some(account) = accounts.get_mut(&info.ancestors[Level::Account as usize]) else {
            return;
        };
        account.advance(&info.time_zone, scene.now_us);
        let owner = ledger.at(campaign.owner);
        let mut total = objective.goal.portfolio_budget_micros.map(|budget_micros| {
            let tenant = info.ancestors[Level::Tenant as usize];
            (budget_micros, shared.entry((objective.at, tenant)).or_default())
        });
        if let Some((budget_micros, total)) = &mut total {
            campaign.count(owner, total);
            scene.room_micros = *budget_micros - (**total - campaign.counted_micros);
        }
        let mut out = campaign.decide(&scene, objective, account, owner);
        out.violations += u64::from(!campaign.books_balance());
        if let Some((_, total)) = total {
            campaign.count(owner, total);
        }
        let held = out.decision.reasons.first() == Some(&crate::codes::reason::BETWEEN_UPDATES);
        if !held || book.quote(&info.key).is_none() {
            book.set_quote(&info.key, campaign.quote(objective, owner));
        }
        made.push(out);
        campaign.looked = tick;
        let review = us_of_tick(tick).saturating_add(ms_to_us(config.controller.review_ms));
        let resumes = campaign.resumes_us();
        // Where resuming is due and was blocked, it is tried again at the pace of reviews.
        let later = resumes.filter(|resumes| *resumes > us_of_tick(tick)).unwrap_or(review);
        let wake = tick_of_us(later).max(tick + 1);
        let reviews_left = resumes.is_some() || campaign.reviews < REVIEWS_MAX;
        // One entry in the queue per campaign; a later wish is honoured when the entry fires.
        if reviews_left && campaign.wake.is_none_or(|queued| wake < queued) {
            if let Some(queued) = campaign.wake.replace(wake) {
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
            campaign.wake = None;
            let id = campaign.info.ancestors[Level::Account as usize];
            let Some(account) = self.accounts.get(&id) else { continue };
            let wanted_us = match campaign.resumes_us() {
                // A row of this very tick was decided on already.
                _ if campaign.looked == tick => us_of_tick(tick).saturating_add(review_us),
                Some(resumes_us) => resumes_us,
                None if us_of_tick(tick) - account.heard_us > late_us => continue,
                None => us_of_tick(campaign.looked).saturating_add(review_us),
            };
            let wanted = tick_of_us(wanted_us);
            if wanted > tick {
                campaign.wake = Some(wanted);
                self.wakes.insert((wanted, order, at));
                continue;
            }
            campaign.reviews += 1;
            self.decide(tick, at, made);
        }
    }

    /// Once per UTC day: what the campaigns of each portfolio are given, from the state as it is.
    fn share_portfolios(&mut self, tick: Tick) {
        let day = us_of_tick(tick).div_euclid(DAY_US);
        if day > self.allocated_day {
            self.allocated_day = day;
            let all = Portfolios::of(&self.objectives, &self.campaigns, day * DAY_US, |_, _| true);
            all.share(&self.objectives, &self.windows, &mut self.campaigns, &mut self.ledger);
        }
    }

    /// Takes in the campaigns of a frame that are new; the portfolios they join are shared out
    /// anew before anything is decided, so that they never sum to more than there is.
    fn register(&mut self, tick: Tick, frame: &Frame) {
        let now_us = us_of_tick(tick);
        let mut joined: BTreeSet<(usize, &str)> = BTreeSet::new();
        for (info, row) in &frame.rows {
            if info.level != Level::Campaign || self.campaign_at.contains_key(&info.id) {
                continue;
            }
            let covering = covering(&self.objectives, info);
            let goal = active_at(&self.objectives, &covering, now_us);
            let shared = |at: &usize| self.objectives[*at].goal.portfolio_budget_micros.is_some();
            joined.extend(goal.filter(shared).map(|goal| (goal, info.key.tenant())));
            let owner = self.ledger.position(&info.key);
            self.campaigns.push(Campaign::new(info, owner, covering, row));
            self.campaign_at.insert(info.id, self.campaigns.len() - 1);
        }
        if !joined.is_empty() {
            let grown = |goal, tenant: &str| joined.contains(&(goal, tenant));
            let grown = Portfolios::of(&self.objectives, &self.campaigns, now_us, grown);
            grown.share(&self.objectives, &self.windows, &mut self.campaigns, &mut self.ledger);
        }
    }
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

/// Goals that cover the campaign of an entity: the one with most named segments first, then by
/// position.
fn covering(objectives: &[Objective], info: &EntityInfo) -> Vec<usize> {
    let mut covering: Vec<usize> =
        (0..objectives.len()).filter(|at| objectives[*at].goal.covers(&info.key)).collect();
    let named = |at: &usize| {
        objectives[*at].goal.applies_to.split('/').filter(|segment| *segment != "*").count()
    };
    covering.sort_by_key(|at| std::cmp::Reverse(named(at)));
    covering
}

/// The first of the covering goals whose dates hold the instant.
pub(crate) fn active_at(
    objectives: &[Objective],
    covering: &[usize],
    now_us: i64,
) -> Option<usize> {
    covering.iter().copied().find(|at| objectives[*at].active(now_us))
}

fn active<'a>(
    objectives: &'a [Objective],
    covering: &[usize],
    now_us: i64,
) -> Option<&'a Objective> {
    active_at(objectives, covering, now_us).map(|at| &objectives[at])
}

#[cfg(test)]
#[path = "stage_tests.rs"]
mod tests;
