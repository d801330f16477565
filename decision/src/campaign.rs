//! One campaign under a goal: what it remembers, and how it decides.
//!
//! The order of questions is fixed, and the first that has an answer decides, so that an owner is
//! changed at most once a tick: is something in flight · did somebody else change it · is it
//! stopped · is the day's budget spent · is the budget right · is there a bid · is an update due.

use std::sync::Arc;

use omnify_operators::model::{DAY_US, EntityInfo, FeatureRow, HOUR_US, Tick, us_of_tick};
use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::action::{Setting, Status, Verdict};
use crate::allocate::Response;
use crate::approvals::Proposal as Waiting;
use crate::bid::Quote;
use crate::codes::reason;
use crate::config::StageConfig;
use crate::day::LocalDay;
use crate::draft::{Draft, Outcomes};
use crate::dual::{Binding, Duals, Pace};
use crate::goal::{Goal, Pricing};
use crate::goals::{Objective, active};
use crate::guardrail::{Driver, Facts, Proposal, judge};
use crate::ledger::{Owner, Purse, is_paused};
use crate::model::{ClickModel, Context, Rates};
use crate::portfolio::Allotment;
use crate::stage::outdated;
use crate::steer::{Watched, complexity, explain, explore, kpi, ms_to_us, pacing, predict};
use crate::view::{Basis, Unit, View, Windows};

/// What every decision of a tick has in common.
pub(crate) struct Scene<'a> {
    pub(crate) config: &'a StageConfig,
    pub(crate) windows: &'a Windows,
    pub(crate) model: Option<&'a ClickModel>,
    pub(crate) killed_global: bool,
    pub(crate) killed_tenant: bool,
    pub(crate) tick: Tick,
    pub(crate) now_us: i64,
    /// Most a campaign's budget may be, given what the rest of its portfolio has.
    pub(crate) room_micros: i64,
}

/// What is known when the bid is decided.
struct Moment {
    draft: Draft,
    facts: Facts,
    view: View,
    unit: Unit,
    pace: Pace,
    /// Share of the account's spend that the campaign is; 1 while unknown.
    blast_radius: f64,
}

/// One campaign: who it is, which goals cover it, and what is remembered of it.
#[derive(Clone)]
pub(crate) struct Campaign {
    pub(crate) info: Arc<EntityInfo>,
    /// The goals that cover it, the most specific first.
    pub(crate) covering: Vec<Arc<Objective>>,
    pub(crate) memory: Memory,
}

/// Everything about a campaign that a restart must bring back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Position of its owner in the ledger.
    pub(crate) owner: usize,
    /// The last row seen.
    pub(crate) row: FeatureRow,
    /// Its part of a portfolio.
    pub(crate) allotment: Option<Allotment>,
    /// The goal whose portfolio counts it, and with how much.
    pub(crate) counted: Option<(Arc<str>, i64)>,
    /// Learned response, for the portfolio.
    pub(crate) response: Option<Response>,
    /// Whether a row came since the response was last updated.
    new_for_response: bool,
    /// When it was last decided on; 0 asks for a decision at the next wake.
    pub(crate) looked: Tick,
    /// Reviews since the last row.
    pub(crate) reviews: u32,
    /// The tick at which it wants to be looked at again, if it is in the stage's queue.
    pub(crate) wake: Option<Tick>,
    /// The day that was stopped because its budget was spent.
    stopped_day: Option<LocalDay>,
    first_seen_us: i64,
    gap_us: i64,
    /// Start of the day of the last row, and what was spent then.
    noted: (i64, i64),
    /// Bid at the first row of that day.
    bid_of_day: Option<i64>,
    purse: Purse,
    duals: Option<Duals>,
    unit: Option<Unit>,
    worth: f64,
    model_version: u64,
    model_rates: Option<(u64, i64, Rates)>,
}

impl Memory {
    /// When delivery resumes after a spent day.
    pub(crate) fn resumes_us(&self) -> Option<i64> {
        self.stopped_day.map(|day| day.end_us)
    }
}

impl Campaign {
    /// A campaign first met with `row`.
    pub(crate) fn new(
        info: &Arc<EntityInfo>,
        owner: usize,
        covering: Vec<Arc<Objective>>,
        row: &FeatureRow,
    ) -> Campaign {
        let memory = Memory {
            owner,
            row: *row,
            allotment: None,
            counted: None,
            response: None,
            new_for_response: false,
            looked: row.tick,
            reviews: 0,
            wake: None,
            stopped_day: None,
            first_seen_us: us_of_tick(row.tick),
            gap_us: 0,
            noted: (i64::MIN, 0),
            bid_of_day: None,
            purse: Purse::default(),
            duals: None,
            unit: None,
            worth: 0.0,
            model_version: 0,
            model_rates: None,
        };
        Campaign { info: info.clone(), covering, memory }
    }

    /// The first of the covering goals whose dates hold the instant.
    pub(crate) fn objective(&self, now_us: i64) -> Option<&Arc<Objective>> {
        active(&self.covering, now_us)
    }

    /// Name of its goal, if that is a portfolio.
    pub(crate) fn portfolio(&self, now_us: i64) -> Option<Arc<str>> {
        let objective = self.objective(now_us)?;
        objective.goal.portfolio_budget_micros.map(|_| objective.name.clone())
    }

    /// Takes in a new row and teaches the account's plan what was spent since the last: not as it
    /// was, but as it would have been at one bid all day, or the plan would learn its own steering.
    pub(crate) fn meet(
        &mut self,
        row: &FeatureRow,
        windows: &Windows,
        account: &mut Account,
        owner: &Owner,
    ) {
        let row_us = us_of_tick(row.tick);
        self.memory.gap_us = row_us - us_of_tick(self.memory.row.tick);
        self.memory.row = *row;
        self.memory.reviews = 0;
        self.memory.new_for_response = true;
        let spent = View::at(windows, row, row_us, account.day.start_us).today.cost_micros;
        let (noted_day_us, noted) = self.memory.noted;
        let before = if noted_day_us == account.day.start_us { noted } else { 0 };
        if noted_day_us != account.day.start_us {
            self.memory.bid_of_day = owner.actual.bid_micros;
        }
        if noted_day_us != i64::MIN && spent != before {
            let position = account.day.position(row_us);
            account.plan.note(position, (spent - before) as f64 * self.at_bid_of_day(owner));
        }
        self.memory.noted = (account.day.start_us, spent);
    }

    /// Invariant 8, as of the last decision.
    pub(crate) fn books_balance(&self) -> bool {
        self.memory.purse.balances()
    }

    /// What the portfolio of `goal` counts this campaign with.
    pub(crate) fn counted_by(&self, goal: &Arc<str>) -> i64 {
        self.memory.counted.as_ref().filter(|(by, _)| by == goal).map_or(0, |(_, micros)| *micros)
    }

    /// What spend would have been at the bid of the day's first row, over what it was.
    fn at_bid_of_day(&self, owner: &Owner) -> f64 {
        let elasticity = self.memory.duals.map_or(1.0, |duals| duals.elasticity().used());
        match (self.memory.bid_of_day, owner.actual.bid_micros) {
            (Some(first), Some(now)) if first > 0 && now > 0 => {
                (first as f64 / now as f64).powf(elasticity)
            }
            _ => 1.0,
        }
    }

    /// Decides under `objective` on the last row.
    pub(crate) fn decide(
        &mut self,
        scene: &Scene<'_>,
        objective: &Objective,
        account: &mut Account,
        owner: &mut Owner,
    ) -> Outcomes {
        let (config, goal, now_us) = (scene.config, &objective.goal, scene.now_us);
        let info = self.info.clone();
        let mut draft = Draft::new(
            &info,
            scene.tick,
            &objective.name,
            objective.policy.code(),
            &self.memory.row,
        );
        draft.model_version = scene.model.map_or(0, ClickModel::version);
        if us_of_tick(self.memory.row.tick) < now_us {
            draft.reasons.push(reason::REVIEW);
        }
        let view = View::at(scene.windows, &self.memory.row, now_us, account.day.start_us);
        let allotment =
            self.memory.allotment.as_ref().filter(|allotment| allotment.goal == objective.name);
        let wished =
            allotment.map_or(goal.daily_budget_micros, |allotment| allotment.budget_micros);
        let actual = owner.actual.budget_micros;
        // A part may rise only into room that others have already left.
        let budget = wished.min(scene.room_micros.max(actual.unwrap_or(0)));
        if budget <= 0 {
            return draft.hold(reason::PORTFOLIO_FULL);
        }
        // The platform stops at its own budget, whatever is wished.
        let in_force = actual.map_or(budget, |actual| actual.min(budget));
        let (first_seen_us, gap_us) = (self.memory.first_seen_us, self.memory.gap_us);
        let watched = Watched { now_us, first_seen_us, gap_us };
        let gains = &config.controller;
        let pacing = pacing(gains, account, &view, goal.pricing, in_force, &watched);
        draft.pacing_error = pacing.error;
        self.memory.purse = Purse::open(in_force);
        let until_next = pacing.until_next_micros;
        let committed = self.memory.purse.commit(pacing.spent_micros, until_next);
        let out_of_budget = self.memory.purse.left_micros() == 0 || committed < until_next;

        if let Some(flight) = &owner.in_flight {
            return draft.hold(if flight.unknown { reason::UNSETTLED } else { reason::IN_FLIGHT });
        }
        if owner.take_drift() {
            self.memory.duals = None;
            return draft.hold(reason::DRIFT);
        }
        let events_min = config.guardrails.events_min;
        let unit = objective.policy.unit(&view, self.memory.unit, events_min);
        let mut facts = self.facts(scene, goal, account, owner, (&view, unit));
        facts.budget_left = !out_of_budget;
        if is_paused(&owner.actual) {
            let setting = Setting::Status { status: Status::Enabled };
            return match self.memory.stopped_day {
                None => draft.hold(reason::PAUSED),
                Some(day) if day == account.day || out_of_budget => {
                    draft.hold(reason::BUDGET_SPENT)
                }
                Some(_) => {
                    draft.reasons.insert(0, reason::NEW_DAY);
                    let resume = Proposal { setting, driver: Driver::Resume, certainty: 1.0 };
                    draft.ruled(config, &facts, None, resume, &info.key, Some(owner))
                }
            };
        }
        self.memory.stopped_day = None; // it delivers, whoever switched it on
        if out_of_budget {
            draft.reasons.insert(0, reason::BUDGET_SPENT);
            let setting = Setting::Status { status: Status::Paused };
            let stop = Proposal { setting, driver: Driver::Stop, certainty: 1.0 };
            let out = draft.ruled(config, &facts, None, stop, &info.key, Some(owner));
            if out.action.is_some() {
                self.memory.stopped_day = Some(account.day);
                account.plan.interrupt(account.day.position(now_us));
            }
            return out;
        }
        if let Some((driver, why)) = budget_change(owner, budget, allotment, now_us)
            && owner.rejected != Some(Setting::Budget { budget_micros: budget })
        {
            facts.before_micros = owner.actual.budget_micros;
            let setting = Setting::Budget { budget_micros: budget };
            let wish = Proposal { setting, driver, certainty: 1.0 };
            let mut attempt = draft.clone();
            attempt.reasons.insert(0, why);
            let parts = complexity(&draft.predicted, owner, 0.0, (budget, now_us));
            let out = attempt.ruled(config, &facts, Some(&parts), wish, &info.key, Some(owner));
            // A budget that may not move now does not keep the bid from moving.
            let waits = out.decision.verdict == Verdict::Propose
                || out.decision.reasons.first() == Some(&reason::AWAITING);
            if waits || out.action.is_some() || scene.killed_global || scene.killed_tenant {
                return out;
            }
        }
        let blast_radius = match account.recent_micros {
            all if all > 0 => view.recent.cost_micros as f64 / all as f64,
            _ => 1.0,
        };
        let moment = Moment { draft, facts, view, unit, pace: pacing.pace, blast_radius };
        self.decide_bid(scene, objective, owner, moment)
    }

    /// Judges an approved proposal on the state as it is now, and carries it out or drops it.
    pub(crate) fn approve(
        &mut self,
        scene: &Scene<'_>,
        objective: &Objective,
        account: &Account,
        owner: &mut Owner,
        (mut draft, proposal): (Draft, &Waiting),
    ) -> Outcomes {
        let (config, goal, memory) = (scene.config, &objective.goal, &self.memory);
        let dropped = |draft: Draft, why, hits| {
            let mut out = draft.hold(why);
            out.decision.proposed = Some(proposal.desired.clone());
            out.decision.guardrails = hits;
            out
        };
        if let Some(why) = outdated(proposal, owner, config.guardrails.step_max) {
            return dropped(draft, why, Vec::new());
        }
        let status = matches!(proposal.desired, Setting::Status { .. });
        if is_paused(&owner.actual) && !status {
            return dropped(draft, reason::PAUSED, Vec::new());
        }
        let view = View::at(scene.windows, &memory.row, scene.now_us, account.day.start_us);
        let unit = memory.unit.unwrap_or(Unit::Clicks);
        let mut facts = self.facts(scene, goal, account, owner, (&view, unit));
        facts.approved = true;
        facts.matured_events = unit.events(&view.mature);
        facts.budget_left = memory.purse.left_micros() > 0;
        facts.events = match (proposal.driver, goal.pricing) {
            (Driver::Pacing, _) if proposal.reasons.contains(&reason::NO_TRAFFIC) => i64::MAX,
            (Driver::Pacing, Pricing::Cpm) => view.short.impressions,
            (Driver::Pacing, Pricing::Cpc) => view.short.clicks,
            _ => unit.events(&view.mature),
        };
        if let Setting::Budget { budget_micros } = proposal.desired {
            facts.before_micros = owner.actual.budget_micros;
            if budget_micros > scene.room_micros.max(facts.before_micros.unwrap_or(0)) {
                return dropped(draft, reason::PORTFOLIO_FULL, Vec::new());
            }
        }
        let setting = proposal.desired.clone();
        let again = Proposal { setting, driver: proposal.driver, certainty: proposal.certainty };
        let ruling = judge(&config.guardrails, &facts, &again);
        if ruling.verdict == Verdict::Act && ruling.granted.as_ref() != Some(&proposal.desired) {
            return dropped(draft, reason::STALE, ruling.hits);
        }
        let why = if ruling.verdict == Verdict::Act { reason::APPROVED } else { reason::STALE };
        draft.reasons.insert(0, why);
        draft.ruled(config, &facts, None, again, &proposal.owner, Some(owner))
    }

    fn decide_bid(
        &mut self,
        scene: &Scene<'_>,
        objective: &Objective,
        owner: &mut Owner,
        moment: Moment,
    ) -> Outcomes {
        let Moment { mut draft, mut facts, view, unit, pace, blast_radius } = moment;
        let (config, goal) = (scene.config, &objective.goal);
        facts.before_micros = owner.actual.bid_micros;
        let due = self.memory.duals.is_none_or(|duals| {
            scene.now_us - duals.updated_us() >= ms_to_us(config.controller.period_ms)
        });
        if !due {
            return draft.hold(reason::BETWEEN_UPDATES);
        }
        let Some(basis) = self.basis(scene, goal.pricing, &view) else {
            return draft.hold(reason::NO_ESTIMATE);
        };
        let worth = basis.worth(unit);
        if !(worth > 0.0 && worth.is_finite()) {
            return draft.hold(reason::NO_ESTIMATE);
        }
        self.keep_bid_through_change_of_basis(unit, worth, draft.model_version);
        draft.reasons.extend(draft.model_version.gt(&0).then_some(reason::MODEL));
        draft.reasons.extend(view.young.then_some(reason::YOUNG_KPI));
        let nowcast = scene.model.is_none() && unit.maturity(&view).is_some();
        draft.reasons.extend(nowcast.then_some(reason::NOWCAST));
        let rare =
            unit == Unit::Clicks && objective.policy.code() == crate::codes::policy::MAXIMISE;
        draft.reasons.extend(rare.then_some(reason::CLICK_VALUE));
        facts.matured_events = unit.events(&view.mature);

        let price = objective.policy.price_micros();
        let Some(bid_micros) = owner.actual.bid_micros.filter(|bid| *bid > 0) else {
            return self.establish(
                scene,
                &basis,
                (unit, worth, price),
                owner,
                (draft, facts, view),
            );
        };
        let bid = bid_micros as f64;
        let now_us = scene.now_us;
        let duals =
            self.memory.duals.get_or_insert_with(|| Duals::at_bid(bid, worth, price, now_us));
        let fresh = us_of_tick(self.memory.row.tick) >= now_us;
        let events_min = config.guardrails.events_min;
        let kpi = price.map(|price| kpi(&view, &basis, (unit, price), events_min, fresh));
        let step = duals.update(&config.controller, now_us, (bid, worth), &pace, kpi.as_ref());
        explain(&mut draft.reasons, &step);
        let outside = bid_micros > goal.bid_cap_micros || bid_micros < goal.bid_floor_micros;
        if step.change == 0.0 && !outside {
            duals.settle(&config.controller, (bid, bid, worth), price, false, &pace);
            return draft.hold(if step.limited {
                reason::DELIVERY_LIMITED
            } else {
                reason::DEADBAND
            });
        }
        let (jitter, density) = explore(config, &draft);
        if jitter != 0.0 {
            draft.reasons.push(reason::EXPLORATION);
            draft.propensity = density;
        }
        draft.predicted = predict(&view, &basis, unit, duals, step.change + jitter);
        let driver = match step.binding {
            Binding::Kpi => {
                facts.events = unit.events(&view.mature);
                Driver::Kpi
            }
            Binding::Budget => {
                facts.events = pace.events;
                if view.short.impressions == 0 && facts.age_us >= view.short_us {
                    // A whole window of nothing, while the account is heard, is certain.
                    draft.reasons.push(reason::NO_TRAFFIC);
                    facts.events = i64::MAX;
                }
                Driver::Pacing
            }
        };
        let wanted = (bid * (step.change + jitter).exp()).round().clamp(1.0, 9e18) as i64;
        let setting = Setting::Bid { bid_micros: wanted };
        let proposal = Proposal { setting, driver, certainty: step.certainty };
        let stakes = (facts.daily_budget_micros, now_us);
        let complexity = complexity(&draft.predicted, owner, blast_radius, stakes);
        let key = self.info.key.clone();
        let out = draft.ruled(config, &facts, Some(&complexity), proposal, &key, Some(owner));
        let granted = out.action.as_ref().and_then(|action| action.desired.micros());
        let cut = granted != Some(wanted);
        let in_force = granted.unwrap_or(bid_micros) as f64;
        duals.settle(&config.controller, (bid, in_force, worth), price, cut, &pace);
        out
    }

    /// A first bid where none is known: what the value is worth at the goal's price, or at the
    /// price paid so far where the goal has none.
    fn establish(
        &mut self,
        scene: &Scene<'_>,
        basis: &Basis,
        (unit, worth, price): (Unit, f64, Option<f64>),
        owner: &mut Owner,
        (mut draft, facts, view): (Draft, Facts, View),
    ) -> Outcomes {
        let paid = || {
            let value = basis.realised(unit, &view.long);
            (value > 0.0 && view.long.cost_micros > 0).then(|| view.long.cost_micros as f64 / value)
        };
        let price_of_goal = price;
        let Some(price) = price.or_else(paid) else {
            return draft.hold(reason::NO_ESTIMATE);
        };
        draft.reasons.insert(0, reason::ESTABLISH_BID);
        let bid_micros = (worth * price).round().clamp(1.0, 9e18) as i64;
        let setting = Setting::Bid { bid_micros };
        let start = Proposal { setting, driver: Driver::Establish, certainty: 1.0 };
        let key = self.info.key.clone();
        let stakes = (facts.daily_budget_micros, scene.now_us);
        let parts = complexity(&draft.predicted, owner, 0.0, stakes);
        let out = draft.ruled(scene.config, &facts, Some(&parts), start, &key, Some(owner));
        if let Some(bid_micros) = out.action.as_ref().and_then(|action| action.desired.micros()) {
            self.memory.duals =
                Some(Duals::at_bid(bid_micros as f64, worth, price_of_goal, scene.now_us));
        }
        out
    }

    /// A change of unit or model must not move the bid by itself; only the multiplier is restated.
    fn keep_bid_through_change_of_basis(&mut self, unit: Unit, worth: f64, model_version: u64) {
        let changed = self.memory.unit.is_some_and(|before| before != unit)
            || self.memory.model_version != model_version;
        if let Some(duals) = self.memory.duals.as_mut().filter(|_| changed) {
            duals.rebase(self.memory.worth, worth);
        }
        self.memory.unit = Some(unit);
        self.memory.worth = worth;
        self.memory.model_version = model_version;
    }

    /// Rates from the model, averaged over the hours of the UTC day so that a bid does not follow
    /// the clock, else from the row.
    fn basis(&mut self, scene: &Scene<'_>, pricing: Pricing, view: &View) -> Option<Basis> {
        let Some(model) = scene.model else {
            return Basis::of(&self.memory.row, view, pricing);
        };
        let (version, day) = (model.version(), scene.now_us.div_euclid(DAY_US));
        let cached = self.memory.model_rates.filter(|known| (known.0, known.1) == (version, day));
        let rates = cached.map_or_else(
            || {
                let mut mean = Rates { click: 0.0, conversion: 0.0 };
                for hour in 0..24 {
                    let time = day * DAY_US + hour * HOUR_US;
                    let rates = model.predict(&Context::at(&self.info.key, time, None));
                    mean.click += rates.click / 24.0;
                    mean.conversion += rates.conversion / 24.0;
                }
                mean
            },
            |known| known.2,
        );
        self.memory.model_rates = Some((version, day, rates));
        let revenue_micros =
            Basis::of(&self.memory.row, view, pricing).map_or(0.0, |basis| basis.revenue_micros);
        Some(Basis { rates, revenue_micros, pricing })
    }

    fn facts(
        &self,
        scene: &Scene<'_>,
        goal: &Goal,
        account: &Account,
        owner: &Owner,
        (view, unit): (&View, Unit),
    ) -> Facts {
        let maturity = unit.maturity(view);
        let limits = &scene.config.guardrails;
        let now_us = scene.now_us;
        Facts {
            killed_global: scene.killed_global,
            killed_tenant: scene.killed_tenant,
            feed_late: now_us - account.heard_us > ms_to_us(limits.feed_late_ms),
            anomaly: self.memory.row.anomaly.alarm,
            maturity: maturity.map_or(1.0, |maturity| maturity.share),
            curve_broken: maturity.is_some_and(|maturity| maturity.broken),
            events: view.long.conversions,
            matured_events: view.mature.conversions,
            age_us: now_us - self.memory.first_seen_us,
            since_change_us: owner.changed_us.map(|changed| now_us - changed),
            moved_24h: owner.moved(now_us, DAY_US),
            moved_7d: owner.moved(now_us, 7 * DAY_US),
            conversions: view.long.conversions,
            budget_left: true,
            before_micros: owner.actual.bid_micros,
            floor_micros: goal.bid_floor_micros,
            cap_micros: goal.bid_cap_micros,
            daily_budget_micros: goal.daily_budget_micros,
            approved: false,
        }
    }

    /// What the bid book publishes of it.
    pub(crate) fn quote(&self, objective: &Objective, owner: &Owner) -> Quote {
        let goal = &objective.goal;
        let stopped = match (is_paused(&owner.actual), self.memory.stopped_day) {
            (true, Some(_)) => Some(reason::BUDGET_SPENT),
            (true, None) => Some(reason::PAUSED),
            (false, _) => None,
        };
        let estimate =
            Rates { click: self.memory.row.ctr.mean, conversion: self.memory.row.cvr.mean };
        Quote {
            goal: objective.name.clone(),
            bid_micros: owner.actual.bid_micros.filter(|_| stopped.is_none()),
            stopped,
            mu: self.memory.duals.map_or(0.0, |duals| duals.mu()),
            lambda: match objective.policy.price_micros() {
                Some(_) => self.memory.duals.map_or(0.0, |duals| duals.lambda()),
                None => 0.0,
            },
            rates: self.memory.model_rates.map_or(estimate, |known| known.2),
            counts_clicks: self.memory.unit == Some(Unit::Clicks),
            pricing: goal.pricing,
            floor_micros: goal.bid_floor_micros,
            cap_micros: goal.bid_cap_micros,
        }
    }

    /// Takes the last day into the learned response, if a row came since.
    pub(crate) fn learn_response(&mut self, objective: &Objective, windows: &Windows) {
        if !std::mem::take(&mut self.memory.new_for_response) {
            return;
        }
        let view = View::at(windows, &self.memory.row, us_of_tick(self.memory.row.tick), i64::MIN);
        let Some(basis) = Basis::of(&self.memory.row, &view, objective.goal.pricing) else {
            return;
        };
        let unit = self.memory.unit.unwrap_or(Unit::Clicks);
        let (spend, value) = (view.recent.cost_micros as f64, basis.realised(unit, &view.recent));
        match &mut self.memory.response {
            Some(response) => {
                let complete = unit.maturity(&view).map_or(1.0, |maturity| maturity.share);
                response.learn(spend, value, view.recent.clicks as f64 * complete);
            }
            None => self.memory.response = Response::through(spend, value),
        }
    }
}

/// Why the budget at the platform should be another, if it should.
fn budget_change(
    owner: &Owner,
    budget: i64,
    allotment: Option<&Allotment>,
    now_us: i64,
) -> Option<(Driver, &'static str)> {
    let edited = owner.foreign_edit_us.is_some_and(|edited| now_us - edited < 3 * DAY_US);
    match owner.actual.budget_micros {
        None => Some((Driver::Wish, reason::ESTABLISH_BUDGET)),
        Some(actual) if actual == budget => None,
        // Somebody lowered it on purpose: that is respected for three days.
        Some(actual) if edited && actual < budget => None,
        // Shares within 1 % of each other are not worth a write.
        Some(actual) if allotment.is_some() && (actual - budget).abs() <= budget / 100 => None,
        Some(actual) if allotment.is_some_and(|allotment| !allotment.over || actual < budget) => {
            Some((Driver::Reallocation, reason::REALLOCATED))
        }
        Some(_) => Some((Driver::Wish, reason::BUDGET_CHANGED)),
    }
}
