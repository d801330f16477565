//! Worn-out creatives and unusual delivery: rotation where a fresh sibling can take over, a message
//! to people everywhere else.
//!
//! | row | worn out | anomalous |
//! |---|---|---|
//! | creative, under a goal, with a fresh sibling | rotation to the best sibling | – |
//! | creative otherwise | alert | – |
//! | ad group | alert | – |
//! | campaign, account, tenant | alert | alert |
//!
//! Of an account people are also told that its completeness curve is broken.
//!
//! The best sibling has the highest posterior mean of clicks times conversions per click among
//! those that are fresh by their own baseline, deliver, and have enough clicks.
//!
//! One episode makes one decision: it opens with the state, and closes when the state is gone. An
//! attempt that a guardrail blocked is repeated after `rotation.retry_ms`, and a new episode of the
//! same entity is not told about sooner than that either, so that flapping does not shout.

use std::collections::HashMap;
use std::sync::Arc;

use omnify_operators::model::{
    EntityId, EntityInfo, EntityKey, FatigueState, FeatureRow, Level, Tick, us_of_tick,
};

use crate::action::{Setting, Verdict};
use crate::approvals::Proposal as Waiting;
use crate::autonomy::Complexity;
use crate::bid::BidBook;
use crate::campaign::Scene;
use crate::codes::{alert, policy, reason};
use crate::draft::{Draft, Outcomes};
use crate::goals::{Change, Goals, Objective, active};
use crate::guardrail::{Driver, Facts, Proposal, judge};
use crate::ledger::{Ledger, Owner, is_paused};
use crate::model::Rates;
use crate::pages::Pages;
use crate::stage::{StageError, outdated};
use crate::steer::{complexity, ms_to_us};
use crate::wire::{Entities, Reader, Writer, unreadable};
use serde::{Deserialize, Serialize};

/// Rates are published to the bid book when they moved by more than this.
const PUBLISH_ABOVE: f64 = 0.05;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
enum Trouble {
    Wear,
    Anomaly,
    Completeness,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Episode {
    /// Decided; nothing more to do until it is over.
    open: bool,
    /// When the last decision was made about it.
    told_us: Option<i64>,
}

#[derive(Clone)]
struct Creative {
    info: Arc<EntityInfo>,
    seen: Seen,
}

/// What is remembered of a creative.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Seen {
    /// Tick of the last row.
    heard: Tick,
    rates: Rates,
    /// As the bid book has them, if it has them.
    published: Option<Rates>,
    clicks: i64,
    state: FatigueState,
    /// Moved away from by a rotation of ours.
    retired: bool,
}

#[derive(Clone, Serialize, Deserialize)]
struct Group {
    key: EntityKey,
    /// Position of its owner in the ledger.
    owner: usize,
    /// The goals that cover it, the most specific first.
    #[serde(skip)]
    covering: Vec<Arc<Objective>>,
    /// Positions in `creatives`, by order of outputs.
    creatives: Vec<usize>,
}

/// What is remembered of creatives, their ad groups, and open episodes.
#[derive(Clone, Default)]
pub(crate) struct Wear {
    creatives: Pages<Creative>,
    creative_at: Arc<HashMap<EntityId, usize>>,
    groups: Pages<Group>,
    group_at: Arc<HashMap<EntityId, usize>>,
    episodes: HashMap<(EntityId, Trouble), Episode>,
}

/// The goals that stand, and the empty name.
pub(crate) type GoalsAndNone<'a> = (&'a Goals, &'a Arc<str>);

impl Wear {
    /// Takes in a row of any level; decides if it opens an episode.
    pub(crate) fn meet(
        &mut self,
        scene: &Scene<'_>,
        info: &Arc<EntityInfo>,
        row: &FeatureRow,
        ledger: &mut Ledger,
        book: &mut BidBook,
        goals: GoalsAndNone<'_>,
    ) -> [Option<Outcomes>; 3] {
        let mut out = [const { None }; 3];
        if info.level == Level::Creative {
            self.note_creative(info, row, ledger, book, goals);
        }
        let worn = row.fatigue.state == FatigueState::WearingOut;
        let well = row.fatigue.state == FatigueState::Fresh;
        if self.due(scene, info, Trouble::Wear, worn, well) {
            let made = match info.level {
                Level::Creative => self.rotate(scene, info, row, ledger, goals),
                _ => tell(scene, info, row, goals.1, Trouble::Wear, None),
            };
            self.decided(scene, info, Trouble::Wear, &made);
            out[0] = Some(made);
        }
        let watched = info.level <= Level::Campaign;
        if watched && self.due(scene, info, Trouble::Anomaly, row.anomaly.alarm, !row.anomaly.alarm)
        {
            let made = tell(scene, info, row, goals.1, Trouble::Anomaly, None);
            self.decided(scene, info, Trouble::Anomaly, &made);
            out[1] = Some(made);
        }
        let broken = row.maturity.is_some_and(|maturity| maturity.broken);
        if info.level == Level::Account
            && self.due(scene, info, Trouble::Completeness, broken, !broken)
        {
            let made = tell(scene, info, row, goals.1, Trouble::Completeness, None);
            self.decided(scene, info, Trouble::Completeness, &made);
            out[2] = Some(made);
        }
        out
    }

    /// Whether trouble is there and not dealt with; closes the episode when it is over.
    fn due(
        &mut self,
        scene: &Scene<'_>,
        info: &EntityInfo,
        trouble: Trouble,
        there: bool,
        over: bool,
    ) -> bool {
        if !there {
            if over && let Some(episode) = self.episodes.get_mut(&(info.id, trouble)) {
                episode.open = false;
            }
            return false;
        }
        let episode = self.episodes.entry((info.id, trouble)).or_default();
        let retry_us = ms_to_us(scene.config.rotation.retry_ms);
        !episode.open && episode.told_us.is_none_or(|told| scene.now_us - told >= retry_us)
    }

    fn decided(&mut self, scene: &Scene<'_>, info: &EntityInfo, trouble: Trouble, made: &Outcomes) {
        let settled = matches!(made.decision.verdict, Verdict::Act | Verdict::Propose);
        let episode = Episode { open: settled, told_us: Some(scene.now_us) };
        self.episodes.insert((info.id, trouble), episode);
    }

    fn note_creative(
        &mut self,
        info: &Arc<EntityInfo>,
        row: &FeatureRow,
        ledger: &mut Ledger,
        book: &mut BidBook,
        goals: GoalsAndNone<'_>,
    ) {
        let rates = Rates { click: row.ctr.mean, conversion: row.cvr.mean };
        let at = match self.creative_at.get(&info.id) {
            Some(at) => *at,
            None => self.add_creative(info, ledger, goals),
        };
        let creative = &mut self.creatives[at].seen;
        creative.heard = row.tick;
        creative.rates = rates;
        creative.clicks = row.ctr.successes;
        if creative.state != FatigueState::Fresh && row.fatigue.state == FatigueState::Fresh {
            creative.retired = false;
        }
        creative.state = row.fatigue.state;
        let moved = |new: f64, old: f64| (new - old).abs() > PUBLISH_ABOVE * old;
        let published = creative.published.unwrap_or(Rates { click: 0.0, conversion: 0.0 });
        if moved(rates.click, published.click) || moved(rates.conversion, published.conversion) {
            creative.published = Some(rates);
            book.set_creative(&info.key, rates);
        }
    }

    fn add_creative(
        &mut self,
        info: &Arc<EntityInfo>,
        ledger: &mut Ledger,
        goals: GoalsAndNone<'_>,
    ) -> usize {
        let seen = Seen {
            heard: 0,
            rates: Rates { click: 0.0, conversion: 0.0 },
            published: None,
            clicks: 0,
            state: FatigueState::Insufficient,
            retired: false,
        };
        let at = self.creatives.insert(Creative { info: info.clone(), seen });
        Arc::make_mut(&mut self.creative_at).insert(info.id, at);
        let group_id = info.ancestors[Level::AdGroup as usize];
        let group = match (self.group_at.get(&group_id), info.key.parent()) {
            (Some(group), _) => *group,
            (None, Some(key)) => {
                let (owner, covering) = (ledger.position(&key), goals.0.covering(&key));
                let group = Group { key, owner, covering, creatives: Vec::new() };
                let group = self.groups.insert(group);
                Arc::make_mut(&mut self.group_at).insert(group_id, group);
                group
            }
            // A creative's key always has a parent.
            (None, None) => return at,
        };
        let creatives = &self.creatives;
        let order = |at: &usize| (creatives[*at].info.order, &creatives[*at].info.key);
        let siblings = &mut self.groups[group].creatives;
        let place = siblings.partition_point(|sibling| order(sibling) < order(&at));
        siblings.insert(place, at);
        at
    }

    /// Rotation to the best sibling, or an alert when there is none or no goal.
    fn rotate(
        &mut self,
        scene: &Scene<'_>,
        info: &Arc<EntityInfo>,
        row: &FeatureRow,
        ledger: &mut Ledger,
        goals: GoalsAndNone<'_>,
    ) -> Outcomes {
        let group_id = info.ancestors[Level::AdGroup as usize];
        let Some(group) = self.group_at.get(&group_id).map(|at| &self.groups[*at]) else {
            return tell(scene, info, row, goals.1, Trouble::Wear, Some(reason::NO_SIBLING));
        };
        let goal = active(&group.covering, scene.now_us).map(|objective| objective.name.clone());
        let Some(goal) = goal else {
            return tell(scene, info, row, goals.1, Trouble::Wear, Some(reason::NO_GOAL));
        };
        let Some(best) = self.best_sibling(scene, group, info, ledger) else {
            return tell(scene, info, row, &goal, Trouble::Wear, Some(reason::NO_SIBLING));
        };
        let (to, owner) = (self.creatives[best].info.key.clone(), group.owner);
        let mut draft = Draft::new(info, scene.tick, &goal, policy::FATIGUE, row);
        draft.reasons.push(reason::WEARING_OUT);
        let owner = ledger.at(owner);
        if owner.in_flight.is_some() {
            return draft.hold(reason::IN_FLIGHT);
        }
        let proposal = Proposal {
            setting: Setting::Rotate { from: info.key.clone(), to },
            driver: Driver::Rotation,
            certainty: row.fatigue.probability,
        };
        let facts = facts(scene, row);
        // It pauses a creative, which resets what the platform learned.
        let parts = Complexity {
            irreversibility: 1.0,
            ..complexity(&draft.predicted, owner, 0.0, (0, scene.now_us))
        };
        let config = scene.config;
        let made = draft.ruled(config, &facts, Some(&parts), proposal, &group.key, Some(owner));
        if made.action.is_some()
            && let Some(at) = self.creative_at.get(&info.id)
        {
            self.creatives[*at].seen.retired = true;
            self.creatives[best].seen.retired = false;
        }
        made
    }

    /// Judges an approved rotation on the state as it is now, and carries it out or drops it.
    pub(crate) fn approve(
        &mut self,
        scene: &Scene<'_>,
        mut draft: Draft,
        proposal: &Waiting,
        ledger: &mut Ledger,
    ) -> Outcomes {
        let row = &proposal.row;
        let Setting::Rotate { to, .. } = &proposal.desired else {
            return draft.hold(reason::STALE);
        };
        let from = self.creative_at.get(&row.entity).copied();
        let to = self.creative_named(&proposal.owner, to);
        let to = to.and_then(|id| self.creative_at.get(&id).copied());
        let (Some(from), Some(to)) = (from, to) else { return draft.hold(reason::STALE) };
        let paused = |at: usize| {
            let owner = ledger.get(&self.creatives[at].info.key);
            owner.is_some_and(|owner| is_paused(&owner.actual))
        };
        let (worn, fresh) = (self.creatives[from].seen, self.creatives[to].seen);
        let holds = worn.state == FatigueState::WearingOut
            && fresh.state == FatigueState::Fresh
            && !(worn.retired || fresh.retired || paused(to));
        let owner = ledger.position(&proposal.owner);
        let owner = ledger.at(owner);
        let why = outdated(proposal, owner, scene.config.guardrails.step_max);
        if let Some(why) = why.or((!holds).then_some(reason::STALE)) {
            let mut out = draft.hold(why);
            out.decision.proposed = Some(proposal.desired.clone());
            return out;
        }
        let facts = Facts { approved: true, ..facts(scene, row) };
        let setting = proposal.desired.clone();
        let again = Proposal { setting, driver: proposal.driver, certainty: proposal.certainty };
        let acts = judge(&scene.config.guardrails, &facts, &again).verdict == Verdict::Act;
        draft.reasons.insert(0, if acts { reason::APPROVED } else { reason::STALE });
        let out = draft.ruled(scene.config, &facts, None, again, &proposal.owner, Some(owner));
        if out.action.is_some() {
            self.creatives[from].seen.retired = true;
            self.creatives[to].seen.retired = false;
        }
        out
    }

    /// What is known of a creative's name and place.
    pub(crate) fn info(&self, id: EntityId) -> Option<Arc<EntityInfo>> {
        self.creative_at.get(&id).map(|at| self.creatives[*at].info.clone())
    }

    fn best_sibling(
        &self,
        scene: &Scene<'_>,
        group: &Group,
        worn: &EntityInfo,
        ledger: &Ledger,
    ) -> Option<usize> {
        let enough = scene.config.rotation.clicks_min;
        let can_take_over = |creative: &Creative| {
            let paused =
                ledger.get(&creative.info.key).is_some_and(|owner| is_paused(&owner.actual));
            creative.info.id != worn.id
                && creative.seen.state == FatigueState::Fresh
                && creative.seen.clicks >= enough
                && !creative.seen.retired
                && !paused
        };
        // Without any conversion estimate all products are 0 and clicks decide.
        let worth = |creative: &Creative| {
            (creative.seen.rates.conversion_per_impression(), creative.seen.rates.click)
        };
        let fit = group.creatives.iter().copied().filter(|at| can_take_over(&self.creatives[*at]));
        fit.fold(None, |best: Option<usize>, at| match best {
            Some(known) if worth(&self.creatives[known]) >= worth(&self.creatives[at]) => best,
            _ => Some(at),
        })
    }

    /// A rotation was refused or never happened: the creative may be rotated away from again.
    pub(crate) fn undo_rotation(&mut self, from: EntityId) {
        if let Some(at) = self.creative_at.get(&from) {
            self.creatives[*at].seen.retired = false;
        }
        self.episodes.remove(&(from, Trouble::Wear));
    }

    /// Id of the creative with this key.
    pub(crate) fn creative_named(&self, group: &EntityKey, key: &EntityKey) -> Option<EntityId> {
        let (_, group) = self.groups.iter().find(|(_, known)| known.key == *group)?;
        let infos = group.creatives.iter().map(|at| &self.creatives[*at].info);
        infos.filter(|info| info.key == *key).map(|info| info.id).next()
    }

    /// Forgets creatives without a row since `before`, and ad groups without creatives.
    pub(crate) fn let_go(&mut self, before: Tick, ledger: &mut Ledger, book: &mut BidBook) {
        for at in self.creatives.positions(|creative| creative.seen.heard < before) {
            let info = self.creatives[at].info.clone();
            let group_id = info.ancestors[Level::AdGroup as usize];
            let group_at = self.group_at.get(&group_id).copied();
            let group_owner = group_at.map(|group| self.groups[group].owner);
            // A rotation is the group's; its creatives stay with it.
            let busy = ledger.get(&info.key).is_some_and(Owner::is_busy)
                || group_owner.is_some_and(|owner| ledger.read(owner).is_busy());
            if busy {
                continue;
            }
            if let (Some(group), Some(owner)) = (group_at, group_owner) {
                self.groups[group].creatives.retain(|creative| *creative != at);
                if self.groups[group].creatives.is_empty() {
                    ledger.remove(owner);
                    self.groups.remove(group);
                    Arc::make_mut(&mut self.group_at).remove(&group_id);
                    self.forget_episodes(group_id);
                }
            }
            ledger.remove_of(&info.key);
            book.remove_creative(&info.key);
            self.forget_episodes(info.id);
            Arc::make_mut(&mut self.creative_at).remove(&info.id);
            self.creatives.remove(at);
        }
    }

    /// Forgets what was told of an entity.
    pub(crate) fn forget_episodes(&mut self, id: EntityId) {
        for trouble in [Trouble::Wear, Trouble::Anomaly, Trouble::Completeness] {
            self.episodes.remove(&(id, trouble));
        }
    }

    /// A goal changed.
    pub(crate) fn regroup(&mut self, change: &Change) {
        for at in self.groups.positions(|group| change.concerns(&group.key)) {
            let group = &mut self.groups[at];
            change.apply(&group.key, &mut group.covering);
        }
    }

    /// Writes everything that a restart must bring back.
    pub(crate) fn save(&self, out: &mut Writer) {
        let saved = |creative: &Creative| (creative.info.id, creative.seen);
        out.list(self.creatives.end(), self.creatives.slots().map(|slot| slot.map(saved)));
        out.list(self.groups.end(), self.groups.slots());
        let mut episodes: Vec<_> = self.episodes.iter().collect();
        episodes.sort_unstable_by_key(|(about, _)| **about);
        out.list(episodes.len(), episodes.into_iter());
    }

    /// Reads what [`Wear::save`] wrote and publishes the rates of creatives.
    pub(crate) fn load(
        input: &mut Reader<'_>,
        entities: &mut Entities<'_>,
        goals: &Goals,
        ledger: &Ledger,
        book: &mut BidBook,
    ) -> Result<Wear, StageError> {
        const WHAT: &str = "creatives";
        let mut wear = Wear::default();
        let (mut creative_at, mut group_at) = (HashMap::new(), HashMap::new());
        let mut creatives = Vec::new();
        for (at, saved) in input.list::<Option<(EntityId, Seen)>>(WHAT)?.into_iter().enumerate() {
            let Some((id, seen)) = saved else {
                creatives.push(None);
                continue;
            };
            let info = entities.info(id, WHAT)?;
            if let Some(rates) = seen.published {
                book.set_creative(&info.key, rates);
            }
            creative_at.insert(id, at);
            creatives.push(Some(Creative { info, seen }));
        }
        wear.creatives = creatives.into_iter().collect();
        let mut groups = input.list::<Option<Group>>("ad groups")?;
        for (at, group) in groups.iter_mut().enumerate() {
            let Some(group) = group else { continue };
            let inside = group.creatives.iter().all(|at| wear.creatives.get(*at).is_some());
            let sound = inside && ledger.has(group.owner);
            let Some(&first) = group.creatives.first().filter(|_| sound) else {
                return Err(unreadable("ad groups", "a position outside of its list"));
            };
            let id = wear.creatives[first].info.ancestors[Level::AdGroup as usize];
            group.covering = goals.covering(&group.key);
            group_at.insert(id, at);
        }
        wear.groups = groups.into_iter().collect();
        wear.episodes = input.list("episodes")?.into_iter().collect();
        (wear.creative_at, wear.group_at) = (Arc::new(creative_at), Arc::new(group_at));
        Ok(wear)
    }
}

fn facts(scene: &Scene<'_>, row: &FeatureRow) -> Facts {
    let conversions = row.windows.iter().map(|sums| sums.conversions).max().unwrap_or(0);
    Facts {
        killed_global: scene.killed_global,
        killed_tenant: scene.killed_tenant,
        feed_late: false, // the row that says so arrived this tick
        anomaly: row.anomaly.alarm,
        maturity: 1.0,
        curve_broken: false,
        events: row.ctr.successes,
        matured_events: row.ctr.successes,
        age_us: us_of_tick(row.tick),
        since_change_us: None,
        moved_24h: 0.0,
        moved_7d: 0.0,
        conversions,
        budget_left: true,
        before_micros: None,
        floor_micros: 0,
        cap_micros: 0,
        daily_budget_micros: 0,
        approved: false,
    }
}

fn tell(
    scene: &Scene<'_>,
    info: &Arc<EntityInfo>,
    row: &FeatureRow,
    goal: &Arc<str>,
    trouble: Trouble,
    why_not: Option<&'static str>,
) -> Outcomes {
    let (policy, reason, code) = match trouble {
        Trouble::Wear => (policy::FATIGUE, reason::WEARING_OUT, alert::WEARING_OUT),
        Trouble::Anomaly => (policy::ANOMALY, reason::ANOMALY, alert::ANOMALY),
        Trouble::Completeness => {
            (policy::MATURITY, reason::COMPLETENESS_BREAK, alert::COMPLETENESS_BREAK)
        }
    };
    let mut draft = Draft::new(info, scene.tick, goal, policy, row);
    draft.reasons.push(reason);
    draft.reasons.extend(why_not);
    let setting = Setting::Alert { code: code.to_owned() };
    let proposal = Proposal { setting, driver: Driver::Alert, certainty: 1.0 };
    draft.ruled(scene.config, &facts(scene, row), None, proposal, &info.key, None)
}
