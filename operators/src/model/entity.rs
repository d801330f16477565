//! The entity hierarchy: tenant › platform account › campaign › ad group › creative.
//!
//! An entity is named by its [`EntityKey`], the path from the tenant down. At the door a
//! [`Registry`] gives every key a dense [`EntityId`], so that hot state lives in flat arrays. Ids
//! are an accident of arrival order: they never reach an output, where entities are ordered by
//! [`EntityInfo::order`] (a stable hash of the key) and written by key.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Depth in the hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Level {
    /// A customer of the engine; the unit of isolation.
    Tenant,
    /// An account on an ad platform.
    Account,
    /// A campaign.
    Campaign,
    /// An ad group (ad set).
    AdGroup,
    /// A creative (ad).
    Creative,
}

impl Level {
    /// All levels from the top down; the position is `level as usize`.
    pub const ALL: [Level; 5] =
        [Level::Tenant, Level::Account, Level::Campaign, Level::AdGroup, Level::Creative];

    /// The name used in config, API and history.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Tenant => "tenant",
            Level::Account => "account",
            Level::Campaign => "campaign",
            Level::AdGroup => "ad_group",
            Level::Creative => "creative",
        }
    }

    /// Number of path segments of a key at this level (an account has two beside the tenant:
    /// platform and account).
    const fn segments(self) -> usize {
        match self {
            Level::Tenant => 1,
            Level::Account => 3,
            Level::Campaign => 4,
            Level::AdGroup => 5,
            Level::Creative => 6,
        }
    }

    /// The level above.
    pub const fn parent(self) -> Option<Level> {
        match self {
            Level::Tenant => None,
            Level::Account => Some(Level::Tenant),
            Level::Campaign => Some(Level::Account),
            Level::AdGroup => Some(Level::Campaign),
            Level::Creative => Some(Level::AdGroup),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that is not an entity key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Wrong number of segments.
    #[error(
        "`{0}` is not an entity: write tenant, or tenant/platform/account[/campaign[/ad_group[/creative]]]"
    )]
    Segments(String),
    /// A segment is empty, too long, or holds a `/` or a control character.
    #[error("`{0}` cannot name an entity: 1 to 200 bytes, no `/`, no control characters")]
    Segment(String),
}

/// The longest segment accepted, in bytes: the longest platform id seen is far below.
const SEGMENT_BYTES_MAX: usize = 200;

/// The path of an entity, `tenant/platform/account/campaign/ad_group/creative` cut at its level.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntityKey(Arc<str>);

impl EntityKey {
    /// A key from its segments: 1 (tenant), 3 (account), 4, 5 or 6 (creative) of them.
    pub fn new(segments: &[&str]) -> Result<EntityKey, KeyError> {
        for segment in segments {
            let bad = segment.is_empty()
                || segment.len() > SEGMENT_BYTES_MAX
                || segment.chars().any(|c| c == '/' || c.is_control());
            if bad {
                return Err(KeyError::Segment(segment.chars().take(80).collect()));
            }
        }
        if segments.is_empty() || segments.len() == 2 || segments.len() > 6 {
            return Err(KeyError::Segments(segments.join("/")));
        }
        Ok(EntityKey(segments.join("/").into()))
    }

    /// The whole path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The level, told by the number of segments.
    pub fn level(&self) -> Level {
        match self.0.bytes().filter(|b| *b == b'/').count() {
            0 => Level::Tenant,
            2 => Level::Account,
            3 => Level::Campaign,
            4 => Level::AdGroup,
            _ => Level::Creative,
        }
    }

    /// The key of the entity above, `None` for a tenant.
    pub fn parent(&self) -> Option<EntityKey> {
        self.level().parent().and_then(|level| self.ancestor(level))
    }

    /// The key cut at `level`; `None` when it does not reach that deep.
    pub fn ancestor(&self, level: Level) -> Option<EntityKey> {
        let mut ends = self.0.match_indices('/').map(|(at, _)| at).chain([self.0.len()]);
        let end = ends.nth(level.segments() - 1)?;
        Some(EntityKey(self.0[..end].into()))
    }

    /// Path segment `index` (0 tenant, 1 platform, 2 account, 3 campaign, 4 ad group, 5 creative).
    pub fn segment(&self, index: usize) -> Option<&str> {
        self.0.split('/').nth(index)
    }

    /// Whether `pattern` covers this key: a path with `*` for any segment, where what is left out
    /// means everything below.
    pub fn is_covered_by(&self, pattern: &str) -> bool {
        let mut segments = self.as_str().split('/');
        pattern
            .split('/')
            .all(|want| segments.next().is_some_and(|have| want == "*" || want == have))
    }

    /// The tenant's name.
    pub fn tenant(&self) -> &str {
        self.segment(0).unwrap_or_default()
    }

    /// A hash of the path that is the same in every process and version: the order of outputs,
    /// the shard, the phase of timers and the seed of exploration are taken from it.
    pub fn stable_hash(&self) -> u64 {
        xxh3_64(self.0.as_bytes())
    }
}

impl fmt::Display for EntityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for EntityKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        EntityKey::new(&text.split('/').collect::<Vec<_>>())
    }
}

impl TryFrom<String> for EntityKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EntityKey> for String {
    fn from(key: EntityKey) -> String {
        key.as_str().to_owned()
    }
}

/// Dense id of an entity in this process. Never written anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntityId(pub u32);

impl EntityId {
    /// As an index of a flat array.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What the registry knows of an entity.
#[derive(Clone, Debug)]
pub struct EntityInfo {
    /// The dense id.
    pub id: EntityId,
    /// The path.
    pub key: EntityKey,
    /// The level.
    pub level: Level,
    /// [`EntityKey::stable_hash`]: the order of outputs.
    pub order: u64,
    /// `ancestors[level as usize]` for the entity and everything above it; its own id below.
    pub ancestors: [EntityId; 5],
    /// Decides the worker: the stable hash of the campaign (or of the entity itself above it), so
    /// that a campaign and everything below it live on one worker.
    pub shard: u64,
    /// Time zone of the account (of the tenant above accounts), as configured.
    pub time_zone: Arc<jiff::tz::TimeZone>,
}

#[derive(Default)]
struct Entries {
    infos: Vec<Arc<EntityInfo>>,
    ids: HashMap<EntityKey, EntityId>,
}

/// Finds the time zone of an account or tenant.
pub type ZoneOf = dyn Fn(&EntityKey) -> Arc<jiff::tz::TimeZone> + Send + Sync;

/// Gives entity keys dense ids. Append-only and shared by all threads of the process; readers keep
/// a [`RegistryView`] and touch the lock only when they meet an id they have not seen.
pub struct Registry {
    entries: RwLock<Entries>,
    zone_of: Box<ZoneOf>,
    /// Number of entities, for whoever waits for more.
    count: Mutex<usize>,
    grown: Condvar,
    patience: Option<Duration>,
}

impl Registry {
    /// An empty registry; `zone_of` says the time zone of a tenant or account key.
    pub fn new(zone_of: Box<ZoneOf>) -> Registry {
        let (count, grown) = (Mutex::new(0), Condvar::new());
        Registry { entries: RwLock::default(), zone_of, count, grown, patience: None }
    }

    /// The same, as a copy of one in another process that gives out the ids: a reader that meets an
    /// id which is not here yet waits for it up to `patience`.
    pub fn following(self, patience: Duration) -> Registry {
        Registry { patience: Some(patience), ..self }
    }

    /// An empty registry in which every account lives in UTC.
    pub fn utc() -> Registry {
        let utc = Arc::new(jiff::tz::TimeZone::UTC);
        Registry::new(Box::new(move |_| utc.clone()))
    }

    /// The id of `key`, given now if it is new. Its ancestors get theirs first, so a parent's id
    /// is always known when a child is met.
    ///
    /// # Panics
    /// When more than 2³² entities are registered, or a thread panicked inside the registry.
    pub fn intern(&self, key: &EntityKey) -> EntityId {
        if let Some(id) = self.lookup(key) {
            return id;
        }
        let mut entries = self.entries.write().expect("registry lock");
        let id = self.insert(&mut entries, key);
        let now = entries.infos.len();
        drop(entries);
        let mut count = self.count.lock().expect("registry lock");
        *count = now.max(*count);
        self.grown.notify_all();
        id
    }

    /// Waits until more than `known` entities are registered, up to `patience`; says whether there
    /// are.
    ///
    /// # Panics
    /// When a thread panicked inside the registry.
    pub fn wait_beyond(&self, known: usize, patience: Duration) -> bool {
        let count = self.count.lock().expect("registry lock");
        let waited = self.grown.wait_timeout_while(count, patience, |count| *count <= known);
        *waited.expect("registry lock").0 > known
    }

    /// The id of `key` if it was interned.
    pub fn lookup(&self, key: &EntityKey) -> Option<EntityId> {
        self.entries.read().expect("registry lock").ids.get(key).copied()
    }

    fn insert(&self, entries: &mut Entries, key: &EntityKey) -> EntityId {
        if let Some(id) = entries.ids.get(key) {
            return *id;
        }
        let level = key.level();
        let parent = key.parent().map(|parent| self.insert(entries, &parent));
        let id = EntityId(u32::try_from(entries.infos.len()).expect("fewer than 2^32 entities"));
        let order = key.stable_hash();
        let mut ancestors = [id; 5];
        let (mut shard, mut time_zone) = (order, None);
        if let Some(parent) = parent {
            let parent = &entries.infos[parent.index()];
            ancestors[..level as usize].copy_from_slice(&parent.ancestors[..level as usize]);
            if level > Level::Campaign {
                shard = parent.shard;
            }
            if level > Level::Account {
                time_zone = Some(parent.time_zone.clone());
            }
        }
        let time_zone = time_zone.unwrap_or_else(|| (self.zone_of)(key));
        let key = key.clone();
        entries.ids.insert(key.clone(), id);
        entries.infos.push(Arc::new(EntityInfo {
            id,
            key,
            level,
            order,
            ancestors,
            shard,
            time_zone,
        }));
        id
    }

    /// Number of entities.
    pub fn len(&self) -> usize {
        self.entries.read().expect("registry lock").infos.len()
    }

    /// True when no entity is registered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A reader's copy of the registry that refreshes itself when it meets an unknown id.
#[derive(Clone)]
pub struct RegistryView {
    registry: Arc<Registry>,
    infos: Vec<Arc<EntityInfo>>,
}

impl RegistryView {
    /// A view of `registry`.
    pub fn new(registry: Arc<Registry>) -> RegistryView {
        RegistryView { registry, infos: Vec::new() }
    }

    /// What is known of `id`, which must have been handed out by this registry.
    ///
    /// # Panics
    /// When it was not; in a copy of a registry, when it did not arrive in time.
    #[inline]
    pub fn info(&mut self, id: EntityId) -> &Arc<EntityInfo> {
        assert!(self.knows(id), "entity {} is not in the registry", id.0);
        &self.infos[id.index()]
    }

    /// True when `id` was handed out; a copy of a registry waits for it first.
    #[inline]
    pub fn knows(&mut self, id: EntityId) -> bool {
        id.index() < self.infos.len() || self.learn(id)
    }

    /// Every entity known now, in id order.
    pub fn all(&mut self) -> &[Arc<EntityInfo>] {
        self.refresh();
        &self.infos
    }

    /// The id of `key` if it is registered.
    pub fn lookup(&self, key: &EntityKey) -> Option<EntityId> {
        self.registry.lookup(key)
    }

    /// The registry behind this view.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    #[cold]
    fn learn(&mut self, id: EntityId) -> bool {
        self.refresh();
        if let Some(patience) = self.registry.patience
            && id.index() >= self.infos.len()
        {
            self.registry.wait_beyond(id.index(), patience);
            self.refresh();
        }
        id.index() < self.infos.len()
    }

    fn refresh(&mut self) {
        let entries = self.registry.entries.read().expect("registry lock");
        let known = self.infos.len();
        self.infos.extend(entries.infos[known..].iter().cloned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> EntityKey {
        text.parse().unwrap()
    }

    #[test]
    fn keys_know_their_place() {
        let creative = key("acme/meta/act_1/c1/g1/x");
        assert_eq!(creative.level(), Level::Creative);
        assert_eq!(creative.ancestor(Level::Account), Some(key("acme/meta/act_1")));
        assert_eq!(key("acme/meta/act_1").parent(), Some(key("acme")));
        assert_eq!(key("acme").ancestor(Level::Campaign), None);
        assert_eq!(key("acme").parent(), None);
        assert_eq!(creative.segment(1), Some("meta"));
        assert!("acme/meta".parse::<EntityKey>().is_err());
        assert!("acme//x".parse::<EntityKey>().is_err());
        assert!("a/b/c/d/e/f/g".parse::<EntityKey>().is_err());
        assert!(EntityKey::new(&["a\n"]).is_err());
    }

    #[test]
    fn parents_come_before_children_and_shard_by_campaign() {
        let registry = Arc::new(Registry::utc());
        let creative = registry.intern(&key("t/p/a/c/g/x"));
        assert_eq!(registry.len(), 5);
        assert_eq!(registry.intern(&key("t/p/a/c/g/x")), creative);
        let mut view = RegistryView::new(registry.clone());
        let info = view.info(creative).clone();
        let campaign = registry.lookup(&key("t/p/a/c")).unwrap();
        assert_eq!(info.ancestors[Level::Campaign as usize], campaign);
        assert_eq!(info.ancestors[Level::Creative as usize], creative);
        assert_eq!(info.shard, view.info(campaign).shard);
        assert_ne!(info.shard, view.info(info.ancestors[1]).shard);
        let later = registry.intern(&key("t2"));
        assert_eq!(view.info(later).level, Level::Tenant);
    }

    #[test]
    fn a_copy_waits_for_what_is_on_its_way() {
        let copy = Arc::new(Registry::utc().following(Duration::from_secs(60)));
        let mut view = RegistryView::new(copy.clone());
        let reader = std::thread::spawn(move || view.info(EntityId(1)).key.clone());
        copy.intern(&key("t1"));
        copy.intern(&key("t2"));
        assert_eq!(reader.join().unwrap(), key("t2"));
        assert!(!copy.wait_beyond(2, Duration::ZERO));
        let hasty = Arc::new(Registry::utc().following(Duration::ZERO));
        assert!(!RegistryView::new(hasty).knows(EntityId(0)));
    }
}
