//! The writer side: the decision thread tells the board what happened, the board publishes
//! snapshots.
//!
//! # Contract
//! [`Board::publish`] is called once per tick, after everything of that tick was told, idle ticks
//! included. It publishes at most every [`BoardConfig::publish_every_ms`] of ticks, so its cost does not grow
//! with the tick rate. Everything kept is bounded by the configuration and the number of entities:
//! creatives and ad groups whose windows have been empty for a day, and campaigns after a month, are
//! forgotten until they deliver again.
//!
//! It reads no clock, does no IO and never waits for a reader.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use omnify_decision::action::{Action, Decision, Id, Setting, Status};
use omnify_decision::approvals::Proposal;
use omnify_decision::control::{Actual, Outcome};
use omnify_decision::goal::Goal;
use omnify_operators::model::{
    Currency, EntityInfo, EntityKey, FeatureRow, Frame, Level, Stats, Tick, WindowSpec,
};
use tokio::sync::watch;

use super::cache::AnswerCache;
use super::counters::{Counters, Watermarks};
use super::feed::{ActionLog, ActionState, DecisionFeed};
use super::rows::Rows;
use super::snapshot::{LazyIndex, Pacing, PulsePoint, Row, Setup, Snapshot, Spark, SparkPoint};

/// Points of a sparkline.
const SPARK_POINTS: usize = 60;
/// A sparkline thins itself out until it covers a day, then slides.
const SPARK_EVERY_MS_MAX: u64 = 24 * 60 * 1_000;
/// Points of the engine's pulse, one a second.
const PULSE_POINTS: usize = 180;
const PULSE_EVERY_MS: u64 = 1_000;

/// Entities whose settings are remembered before their first row; those of more are reported again.
const EARLY_MAX: usize = 65_536;

/// Rows looked at for forgetting at one publication.
const FORGET_ROWS: u32 = 4_096;
const HOUR_MS: u64 = 3_600_000;
/// A row whose windows are empty is kept this long after its last evaluation.
const KEEP_MS: u64 = 24 * HOUR_MS;
/// The same of a campaign: longer than the stage remembers it.
const KEEP_CAMPAIGN_MS: u64 = 31 * 24 * HOUR_MS;

/// Says the currency of an entity's amounts.
pub type CurrencyOf = dyn Fn(&EntityKey) -> Option<Currency> + Send + Sync;

/// How a board is set up.
#[derive(Clone)]
pub struct BoardConfig {
    /// Windows in the order of the configuration.
    pub windows: Vec<WindowSpec>,
    /// Goals, for budgets and names.
    pub goals: Vec<Goal>,
    /// Currency of an entity's amounts.
    pub currency_of: Arc<CurrencyOf>,
    /// Name of the executor.
    pub executor: String,
    /// True when no action is sent.
    pub dry_run: bool,
    /// Engine time that passes in one unit of real time: 1, unless time is simulated.
    pub speed: u64,
    /// Least distance of two publications.
    pub publish_every_ms: u64,
    /// First distance of sparkline points; it doubles whenever a sparkline is full.
    pub spark_every_ms: u64,
    /// Decisions kept of each verdict.
    pub decisions_kept: usize,
    /// Actions kept.
    pub actions_kept: usize,
}

impl Default for BoardConfig {
    fn default() -> BoardConfig {
        BoardConfig {
            windows: Vec::new(),
            goals: Vec::new(),
            currency_of: Arc::new(|_| None),
            executor: "dry_run".to_owned(),
            dry_run: true,
            speed: 1,
            publish_every_ms: 100,
            spark_every_ms: 1_000,
            decisions_kept: 500,
            actions_kept: 1_000,
        }
    }
}

/// Keeps the present state and publishes it. Owned by the decision thread.
pub struct Board {
    config: BoardConfig,
    setup: Arc<Setup>,
    specs: Arc<[WindowSpec]>,
    day: Option<usize>,
    rows: Rows,
    index: Arc<LazyIndex>,
    added: Vec<(EntityKey, u32)>,
    /// Ids of rows forgotten since the last publication.
    removed: HashSet<u32>,
    /// The hour of the last look for rows to forget, and the id up to which it has come.
    hour: u64,
    looked: u32,
    ids: HashMap<EntityKey, u32>,
    /// Settings reported of entities that have no row yet.
    early: HashMap<EntityKey, Actual>,
    decisions: DecisionFeed,
    actions: ActionLog,
    proposals: Arc<[Arc<Proposal>]>,
    accounts: Arc<BTreeMap<EntityKey, Watermarks>>,
    pulse: VecDeque<PulsePoint>,
    sequence: u64,
    published: Option<Tick>,
    publisher: watch::Sender<Arc<Snapshot>>,
}

impl Board {
    /// An empty board; its first snapshot has sequence 0 and no rows.
    pub fn new(config: BoardConfig) -> Board {
        let setup = Arc::new(Setup {
            windows: config.windows.iter().map(ToString::to_string).collect(),
            executor: config.executor.clone(),
            dry_run: config.dry_run,
            speed: config.speed,
        });
        let specs: Arc<[WindowSpec]> = config.windows.clone().into();
        let decisions = DecisionFeed::new(config.decisions_kept);
        let actions = ActionLog::new(config.actions_kept);
        let index = Arc::<LazyIndex>::default();
        let proposals: Arc<[Arc<Proposal>]> = Arc::default();
        let accounts = Arc::<BTreeMap<EntityKey, Watermarks>>::default();
        let (publisher, _) = watch::channel(Arc::new(Snapshot {
            sequence: 0,
            tick: 0,
            counters: Counters::default(),
            setup: setup.clone(),
            decisions: decisions.clone(),
            actions: actions.feed.clone(),
            proposals: proposals.clone(),
            pulse: VecDeque::new(),
            specs: specs.clone(),
            accounts: accounts.clone(),
            rows: Rows::default(),
            index: index.clone(),
            cache: AnswerCache::default(),
        }));
        Board {
            day: config.windows.iter().position(|window| *window == WindowSpec::Day),
            config,
            setup,
            specs,
            rows: Rows::default(),
            index,
            added: Vec::new(),
            removed: HashSet::new(),
            hour: 0,
            looked: 0,
            ids: HashMap::new(),
            early: HashMap::new(),
            decisions,
            actions,
            proposals,
            accounts,
            pulse: VecDeque::new(),
            sequence: 0,
            published: None,
            publisher,
        }
    }

    /// A reader's end: always holds the newest snapshot. It closes when the board is dropped.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.publisher.subscribe()
    }

    /// The newest row of every entity, by dense id.
    pub fn features(&self) -> impl Iterator<Item = &FeatureRow> {
        self.rows.iter().map(|row| &row.features)
    }

    /// Takes over the rows of a complete frame.
    pub fn update(&mut self, frame: &Frame) {
        for (info, features) in &frame.rows {
            self.upsert(info, features);
        }
    }

    /// Takes over a decision. Its entity's row becomes the one the decision was made on if the
    /// board has none yet.
    pub fn decision(&mut self, decision: &Decision) {
        let id = decision.entity.id.0;
        if self.row_mut(id).is_none() {
            self.upsert(&decision.entity, &decision.row);
        }
        let pacing = self.pacing(decision);
        let before = self.row_mut(id).and_then(|row| {
            decision.proposed.as_ref().and_then(|wanted| current(&row.settings, wanted))
        });
        let kept = self.decisions.push(before, decision.clone());
        if let Some(row) = self.row_mut(id) {
            row.decision = Some(kept);
            row.pacing = pacing.or_else(|| row.pacing.take());
        }
    }

    /// Takes over an action, or moves a known one to `state`.
    pub fn action(&mut self, action: &Action, state: ActionState) {
        self.actions.put(action, state, action.tick);
        if let Some(before) = &action.before {
            self.settle(&action.owner, before, false);
        }
    }

    /// Takes over how an action ended; one that is no longer kept is left alone.
    pub fn outcome(&mut self, action: Id, outcome: &Outcome, tick: Tick) {
        if let Some((action, Some(now))) = self.actions.outcome(action, outcome, tick) {
            self.settle(&action.owner, &now, true);
        }
    }

    /// Takes over an entity's settings as its platform reports them; what comes before the entity's
    /// first row waits for it.
    pub fn observe(&mut self, entity: &EntityKey, actual: &Actual) {
        let known = self.ids.get(entity).copied();
        let room = self.early.len() < EARLY_MAX || self.early.contains_key(entity);
        let early = &mut self.early;
        let settings = match known.and_then(|id| self.rows.get_mut(id)) {
            Some(row) => &mut row.settings,
            None if room => early.entry(entity.clone()).or_default(),
            None => return,
        };
        settings.bid_micros = actual.bid_micros.or(settings.bid_micros);
        settings.budget_micros = actual.budget_micros.or(settings.budget_micros);
        settings.status = actual.status.or(settings.status);
    }

    /// Takes over the changes that wait for a person, the oldest first.
    pub fn proposals(&mut self, open: impl Iterator<Item = Arc<Proposal>>) {
        self.proposals = open.collect();
    }

    /// Sets the watermarks of an account that has its own.
    pub fn watermarks(&mut self, account: EntityKey, watermarks: Watermarks) {
        Arc::make_mut(&mut self.accounts).insert(account, watermarks);
    }

    /// Whether [`Board::publish`] at `tick` would publish: counters need not be gathered otherwise.
    pub fn due(&self, tick: Tick) -> bool {
        self.published.is_none_or(|last| tick.saturating_sub(last) >= self.config.publish_every_ms)
    }

    /// The next tick is published, however close to the last: there is news that does not wait for the
    /// ticks to get on, which they hardly do while a clock that was set back catches up.
    pub fn hurry(&mut self) {
        self.published = None;
    }

    /// Closes a tick: publishes everything told so far, unless the last publication is less than
    /// [`BoardConfig::publish_every_ms`] ago.
    pub fn publish(&mut self, tick: Tick, counters: Counters) {
        if self.due(tick) {
            self.publish_now(tick, counters);
        }
    }

    /// Closes a tick and publishes in any case; for the last tick and for tests.
    pub fn publish_now(&mut self, tick: Tick, counters: Counters) {
        self.published = Some(tick);
        self.sequence += 1;
        self.beat(tick, &counters);
        self.forget(tick);
        if !self.added.is_empty() || !self.removed.is_empty() {
            let added = std::mem::take(&mut self.added);
            self.index = LazyIndex::change(&self.index, &self.removed, added);
            self.removed.clear();
        }
        self.publisher.send_replace(Arc::new(Snapshot {
            sequence: self.sequence,
            tick,
            counters,
            setup: self.setup.clone(),
            decisions: self.decisions.clone(),
            actions: self.actions.feed.clone(),
            proposals: self.proposals.clone(),
            pulse: self.pulse.clone(),
            specs: self.specs.clone(),
            accounts: self.accounts.clone(),
            rows: self.rows.clone(),
            index: self.index.clone(),
            cache: AnswerCache::default(),
        }));
    }

    fn beat(&mut self, tick: Tick, counters: &Counters) {
        let due = self.pulse.back().is_none_or(|last| tick >= last.tick + PULSE_EVERY_MS);
        if !due {
            return;
        }
        if self.pulse.len() == PULSE_POINTS {
            self.pulse.pop_front();
        }
        self.pulse.push_back(PulsePoint {
            tick,
            events_in: counters.events_in,
            decisions: counters.decisions_total(),
            actions: counters.actions_total(),
            p99_ms: counters.latency_ms.map(|latency| latency.p99),
        });
    }

    /// At most once an hour every row is looked at, some at each publication; those that have long
    /// been silent go. Accounts and tenants stay.
    fn forget(&mut self, tick: Tick) {
        let hour = tick / HOUR_MS;
        if hour > self.hour && self.looked >= self.rows.bound() {
            (self.hour, self.looked) = (hour, 0);
        }
        let end = self.rows.bound().min(self.looked.saturating_add(FORGET_ROWS));
        for id in std::mem::replace(&mut self.looked, end)..end {
            let gone = self.rows.get(id).filter(|row| is_gone(row, tick));
            if let Some(key) = gone.map(|row| row.info.key.clone()) {
                self.rows.remove(id);
                self.ids.remove(&key);
                self.removed.insert(id);
            }
        }
    }

    fn row_mut(&mut self, id: u32) -> Option<&mut Row> {
        self.rows.get_mut(id)
    }

    fn upsert(&mut self, info: &Arc<EntityInfo>, features: &FeatureRow) {
        let day = self.day;
        let slot = self.rows.slot(info.id.0);
        let row = match slot {
            Some(row) => {
                row.features = *features;
                row
            }
            None => {
                self.added.push((info.key.clone(), info.id.0));
                self.ids.insert(info.key.clone(), info.id.0);
                slot.insert(Row {
                    info: info.clone(),
                    currency: (self.config.currency_of)(&info.key),
                    features: *features,
                    settings: self.early.remove(&info.key).unwrap_or_default(),
                    decision: None,
                    pacing: None,
                    spark: None,
                })
            }
        };
        if let (Some(pacing), Some(day)) = (&mut row.pacing, day) {
            pacing.spent_micros = Some(features.windows[day].cost_micros);
        }
        if matches!(info.level, Level::Campaign | Level::Creative)
            && !self.config.windows.is_empty()
        {
            let every_ms = self.config.spark_every_ms;
            let spark = row
                .spark
                .get_or_insert_with(|| Arc::new(Spark { points: VecDeque::new(), every_ms }));
            sample(spark, features);
        }
    }

    /// A setting became known: `now` is true (or, when not `sure`, only fills a gap).
    fn settle(&mut self, owner: &EntityKey, now: &Setting, sure: bool) {
        if let Setting::Rotate { from, to } = now {
            if sure {
                let (from, to) = (from.clone(), to.clone());
                self.settle(&from, &Setting::Status { status: Status::Paused }, true);
                self.settle(&to, &Setting::Status { status: Status::Enabled }, true);
            }
            return;
        }
        let Some(row) = self.ids.get(owner).copied().and_then(|id| self.row_mut(id)) else {
            return;
        };
        let settings = &mut row.settings;
        match now {
            Setting::Bid { bid_micros } if sure || settings.bid_micros.is_none() => {
                settings.bid_micros = Some(*bid_micros);
            }
            Setting::Budget { budget_micros } if sure || settings.budget_micros.is_none() => {
                settings.budget_micros = Some(*budget_micros);
            }
            Setting::Status { status } if sure || settings.status.is_none() => {
                settings.status = Some(*status);
            }
            _ => {}
        }
    }

    fn pacing(&self, decision: &Decision) -> Option<Pacing> {
        let goal = self.config.goals.iter().find(|goal| goal.name == *decision.goal)?;
        if decision.entity.level != Level::Campaign || goal.daily_budget_micros <= 0 {
            return None;
        }
        let spent_micros = self.day.map(|day| decision.row.windows[day].cost_micros);
        // The decision states (spent − planned) / budget: the plan follows from it.
        let ahead = (decision.pacing_error * goal.daily_budget_micros as f64) as i64;
        Some(Pacing {
            goal: decision.goal.clone(),
            objective: goal.objective,
            pricing: goal.pricing,
            spent_micros,
            planned_micros: spent_micros.map(|spent| spent.saturating_sub(ahead)),
            budget_micros: goal.daily_budget_micros,
            error: decision.pacing_error,
        })
    }
}

/// Whether a row says nothing any more: nothing in any window for a while, and not expected again
/// by the stage, which knows campaigns for longer and what is above them for ever.
fn is_gone(row: &Row, tick: Tick) -> bool {
    let keep_ms = match row.info.level {
        Level::Tenant | Level::Account => return false,
        Level::Campaign => KEEP_CAMPAIGN_MS,
        Level::AdGroup | Level::Creative => KEEP_MS,
    };
    tick.saturating_sub(row.features.tick) > keep_ms
        && row.features.windows.iter().all(Stats::is_empty)
}

/// The setting of the same kind as `wanted` that is true now, if known.
fn current(settings: &Actual, wanted: &Setting) -> Option<Setting> {
    match wanted {
        Setting::Bid { .. } => settings.bid_micros.map(|bid_micros| Setting::Bid { bid_micros }),
        Setting::Budget { .. } => {
            settings.budget_micros.map(|budget_micros| Setting::Budget { budget_micros })
        }
        Setting::Status { .. } => settings.status.map(|status| Setting::Status { status }),
        Setting::Rotate { .. } | Setting::Alert { .. } => None,
    }
}

/// Adds a point when one is due. A full sparkline drops every second point and doubles its
/// distance, so that it always shows the whole past up to a day.
fn sample(spark: &mut Arc<Spark>, features: &FeatureRow) {
    let due = spark.points.back().is_none_or(|last| features.tick >= last.tick + spark.every_ms);
    if !due {
        return;
    }
    let spark = Arc::make_mut(spark);
    if spark.points.len() == SPARK_POINTS {
        if spark.every_ms < SPARK_EVERY_MS_MAX {
            spark.every_ms *= 2;
            let mut keep = false;
            spark.points.retain(|_| {
                keep = !keep;
                keep
            });
        } else {
            spark.points.pop_front();
        }
    }
    let shortest = &features.windows[0];
    spark.points.push_back(SparkPoint {
        tick: features.tick,
        ctr: shortest.ctr().map(|ctr| ctr as f32),
        cost_micros: shortest.cost_micros,
    });
}
