//! What readers see: everything as of one tick, immutable.
//!
//! Rows live in copy-on-write pieces, so publishing copies pointers and only what changes after it
//! is copied. A reader that holds a snapshot sees that one tick for as long as it
//! likes and never makes the writer wait.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, OnceLock};

use omnify_decision::approvals::Proposal;
use omnify_decision::control::Actual;
use omnify_decision::goal::{Objective, Pricing};
use omnify_operators::model::{
    Currency, EntityInfo, EntityKey, FeatureRow, MAX_WINDOWS, Tick, WindowSpec,
};
use serde::Serialize;

use super::cache::AnswerCache;
use super::counters::{Counters, Watermarks};
use super::feed::{ActionFeed, DecisionFeed, KeptDecision};
use super::rows::Rows;

/// Spend of an account-local day against its plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pacing {
    /// The goal it serves.
    pub goal: Arc<str>,
    /// What the goal optimises.
    pub objective: Objective,
    /// How its bids are priced.
    pub pricing: Pricing,
    /// Spent so far today; `None` when no `day` window is configured.
    pub spent_micros: Option<i64>,
    /// What the spend plan wanted by now; `None` when spend is not known.
    pub planned_micros: Option<i64>,
    /// Budget of the day.
    pub budget_micros: i64,
    /// (spent − planned) / budget.
    pub error: f64,
}

/// One point of an entity's recent past.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparkPoint {
    /// When.
    pub tick: Tick,
    /// CTR of the shortest window; `None` without impressions.
    pub ctr: Option<f32>,
    /// Cost of the shortest window.
    pub cost_micros: i64,
}

/// The recent past of an entity, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Spark {
    /// The points.
    pub points: VecDeque<SparkPoint>,
    /// Least distance between points.
    pub every_ms: u64,
}

/// One entity as of the snapshot's tick.
#[derive(Clone, Debug)]
pub struct Row {
    /// The entity.
    pub info: Arc<EntityInfo>,
    /// Currency of its amounts; `None` where none is configured (or several meet, at a tenant).
    pub currency: Option<Currency>,
    /// Its features; they last changed at `features.tick`.
    pub features: FeatureRow,
    /// Settings as last reported or acknowledged.
    pub settings: Actual,
    /// Its latest decision.
    pub decision: Option<Arc<KeptDecision>>,
    /// Spend against plan, of entities with a goal.
    pub pacing: Option<Pacing>,
    /// Recent past, of campaigns and creatives.
    pub spark: Option<Arc<Spark>>,
}

/// One sample of the engine's own pulse.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PulsePoint {
    /// When.
    pub tick: Tick,
    /// Events accepted so far.
    pub events_in: u64,
    /// Decisions so far.
    pub decisions: u64,
    /// Actions so far.
    pub actions: u64,
    /// p99 latency at that time.
    pub p99_ms: Option<f64>,
}

/// How the engine is set up, for people.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// Names of the windows, in the order of the configuration.
    pub windows: Vec<String>,
    /// The executor's name.
    pub executor: String,
    /// True when actions are computed and recorded but never sent.
    pub dry_run: bool,
    /// Engine time that passes in one unit of real time: 1, unless time is simulated.
    pub speed: u64,
}

/// Everything as of one tick.
pub struct Snapshot {
    /// Number of the publication; 0 before the first tick.
    pub sequence: u64,
    /// The tick.
    pub tick: Tick,
    /// Totals as of the tick.
    pub counters: Counters,
    /// How the engine is set up.
    pub setup: Arc<Setup>,
    /// The newest decisions.
    pub decisions: DecisionFeed,
    /// The newest actions.
    pub actions: ActionFeed,
    /// Changes that wait for a person, the oldest first.
    pub proposals: Arc<[Arc<Proposal>]>,
    /// The engine's recent pulse, oldest first.
    pub pulse: VecDeque<PulsePoint>,
    pub(super) specs: Arc<[WindowSpec]>,
    pub(super) accounts: Arc<BTreeMap<EntityKey, Watermarks>>,
    pub(super) rows: Rows,
    pub(super) index: Arc<LazyIndex>,
    pub(super) cache: AnswerCache,
}

impl Snapshot {
    /// The row of `entity`.
    pub fn row(&self, entity: &EntityKey) -> Option<&Row> {
        let keys = self.index.get();
        let at =
            keys.binary_search_by(|entry| tree_order(entry.0.as_str(), entity.as_str())).ok()?;
        self.rows.get(keys[at].1)
    }

    /// Number of entities with a row.
    pub fn len(&self) -> usize {
        self.index.get().len()
    }

    /// True when no entity has a row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows in tree order (a parent right before its children), of `root` and everything below it,
    /// or of all when `None`; only those after `after` in that order.
    pub fn rows<'a>(
        &'a self,
        root: Option<&str>,
        after: Option<&str>,
    ) -> impl Iterator<Item = &'a Row> {
        let keys = self.index.get();
        let below = |entry: &Entry, key: &str, yes: &[Ordering]| {
            yes.contains(&tree_order(entry.0.as_str(), key))
        };
        let (mut start, mut end) = (0, keys.len());
        if let Some(root) = root {
            start = keys.partition_point(|entry| below(entry, root, &[Ordering::Less]));
            let inside = |entry: &Entry| is_under(entry.0.as_str(), root);
            end = start + keys[start..].partition_point(inside);
        }
        if let Some(after) = after {
            let past = [Ordering::Less, Ordering::Equal];
            start = start.max(keys.partition_point(|entry| below(entry, after, &past)));
        }
        keys[start.min(end)..end].iter().filter_map(|entry| self.rows.get(entry.1))
    }

    /// Watermarks that apply to `entity`: its account's own, else the general ones.
    pub fn watermarks(&self, entity: &EntityKey) -> Watermarks {
        if self.accounts.is_empty() {
            return self.counters.watermarks;
        }
        entity
            .ancestor(omnify_operators::model::Level::Account)
            .and_then(|account| self.accounts.get(&account).copied())
            .unwrap_or(self.counters.watermarks)
    }

    /// The configured windows; the position is the index into [`FeatureRow::windows`].
    pub fn windows(&self) -> &[WindowSpec] {
        &self.specs[..self.specs.len().min(MAX_WINDOWS)]
    }
}

/// Whether `key` is `root` or lies below it.
pub(super) fn is_under(key: &str, root: &str) -> bool {
    key.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Keys in the order of the tree: by segment, so that everything below an entity follows it
/// without gaps (plain text order would put `acme-2` between `acme` and `acme/meta`).
pub(super) fn tree_order(a: &str, b: &str) -> Ordering {
    let rank = |byte: u8| if byte == b'/' { 0 } else { byte };
    match a.bytes().zip(b.bytes()).find(|(a, b)| a != b) {
        Some((a, b)) => rank(a).cmp(&rank(b)),
        None => a.len().cmp(&b.len()),
    }
}

type Entry = (EntityKey, u32);

/// The keys of a snapshot in tree order, sorted by the first reader that needs it and shared by
/// all snapshots with the same entities. New entities are merged into the last sorted state.
#[derive(Default)]
pub(super) struct LazyIndex {
    base: Arc<Vec<Entry>>,
    added: Vec<Entry>,
    sorted: OnceLock<Arc<Vec<Entry>>>,
}

impl LazyIndex {
    /// An index of the entities of `previous` without those `removed`, and those `added`.
    pub(super) fn change(
        previous: &LazyIndex,
        removed: &HashSet<u32>,
        mut added: Vec<Entry>,
    ) -> Arc<LazyIndex> {
        let stays = |entry: &&Entry| !removed.contains(&entry.1);
        let mut base = if let Some(sorted) = previous.sorted.get() {
            sorted.clone()
        } else {
            let mut all: Vec<Entry> = previous.added.iter().filter(stays).cloned().collect();
            all.append(&mut added);
            added = all;
            previous.base.clone()
        };
        if !removed.is_empty() {
            base = Arc::new(base.iter().filter(stays).cloned().collect());
        }
        Arc::new(LazyIndex { base, added, sorted: OnceLock::new() })
    }

    fn get(&self) -> &[Entry] {
        self.sorted.get_or_init(|| {
            if self.added.is_empty() {
                return self.base.clone();
            }
            let mut all = Vec::with_capacity(self.base.len() + self.added.len());
            all.extend_from_slice(&self.base);
            all.extend_from_slice(&self.added);
            // The stable sort finds the sorted run of the base and merges the new keys into it.
            all.sort_by(|a, b| tree_order(a.0.as_str(), b.0.as_str()));
            Arc::new(all)
        })
    }
}
