//! A queue of panes in a few bytes each.
//!
//! Most panes of most entities hold a handful of impressions and cents, and most panes of quiet
//! entities hold nothing. A [`PaneLog`] keeps only the panes that are not empty, each as one byte
//! that says how far the pane before is (in three bits) and which metrics are not zero (in five),
//! and those metrics as zigzag varints: about 5 bytes where a plain array spends 40. Panes enter at
//! the back and leave at the front in O(1); changing one in the middle (late or restated data)
//! rewrites the log, which is at most one window long, once for all that change together.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::Stats;
use crate::varint::{get, put, unzigzag, zigzag};

/// What most panes fit into.
const PANE_BYTES: usize = 16;

/// Panes in ascending order of their number, without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PaneLog {
    bytes: Vec<u8>,
    /// Offset of the first live byte; the dead prefix is dropped when room is needed, or when it
    /// outgrows the rest.
    start: usize,
    /// Number of the first pane, so that asking for it need not touch the bytes; meaningless while
    /// the log is empty, as is `last`.
    first: i64,
    /// Number of the last pane.
    last: i64,
}

/// Only what is live is written.
impl Serialize for PaneLog {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.bytes[self.start..], self.first, self.last).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PaneLog {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PaneLog, D::Error> {
        let (bytes, first, last) = Deserialize::deserialize(deserializer)?;
        Ok(PaneLog { bytes, start: 0, first, last })
    }
}

impl PaneLog {
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Appends a pane; `pane` must be greater than every pane in the log.
    pub(crate) fn push(&mut self, pane: i64, stats: &Stats) {
        if self.is_empty() {
            self.bytes.clear();
            self.start = 0;
            self.first = pane;
            self.last = pane - 1;
        }
        debug_assert!(pane > self.last, "panes enter in order");
        self.make_room();
        put_pane(&mut self.bytes, (pane - self.last) as u64, stats);
        self.last = pane;
    }

    /// Removes and returns the oldest pane when its number is at most `until`.
    #[inline]
    pub(crate) fn pop_until(&mut self, until: i64) -> Option<(i64, Stats)> {
        if self.is_empty() || self.first > until { None } else { Some(self.pop()) }
    }

    fn pop(&mut self) -> (i64, Stats) {
        let (pane, mut at) = (self.first, self.start);
        let head = get_head(&self.bytes, &mut at);
        let stats = get_stats(head.metrics, &self.bytes, &mut at);
        self.start = at;
        if at < self.bytes.len() {
            self.first = pane + get_head(&self.bytes, &mut at).distance;
        }
        if self.start > 64 && self.start * 2 > self.bytes.len() {
            self.drop_dead();
            self.bytes.shrink_to(self.bytes.len() + self.slack());
        }
        (pane, stats)
    }

    /// Room for the next pane. What has left the log is moved over before the log grows, and it grows by
    /// a part of itself: logs are most of the memory of an entity, and doubling would waste half of it.
    fn make_room(&mut self) {
        if self.bytes.capacity() - self.bytes.len() >= PANE_BYTES {
            return;
        }
        self.drop_dead();
        if self.bytes.capacity() - self.bytes.len() < self.slack() {
            self.bytes.reserve_exact(self.slack());
        }
    }

    fn drop_dead(&mut self) {
        self.bytes.drain(..self.start);
        self.start = 0;
    }

    fn slack(&self) -> usize {
        PANE_BYTES.max(self.bytes.len() / 4)
    }

    /// Adds to panes anywhere, which ascend; O(length), however many they are. What lies between them
    /// is copied as it is.
    pub(crate) fn amend(&mut self, changes: &[(i64, Stats)]) {
        let mut rewritten = PaneLog::default();
        rewritten.bytes.reserve(self.bytes.len() - self.start + 8 * changes.len());
        let (mut at, mut pane) = (self.start, self.first);
        let mut changes = changes.iter().peekable();
        while let Some(&(wanted, stats)) = changes.peek() {
            if at == self.bytes.len() || *wanted < pane {
                if !stats.is_empty() {
                    rewritten.push(*wanted, stats);
                }
                changes.next();
                continue;
            }
            let head = get_head(&self.bytes, &mut at);
            if *wanted == pane {
                let have = get_stats(head.metrics, &self.bytes, &mut at) + *stats;
                if !have.is_empty() {
                    rewritten.push(pane, &have);
                }
                changes.next();
            } else {
                let behind_head = at;
                skip(head.metrics, &self.bytes, &mut at);
                rewritten.copy(pane, head.metrics, &self.bytes[behind_head..at]);
            }
            pane = self.pane_at(at, pane);
        }
        if at < self.bytes.len() {
            let head = get_head(&self.bytes, &mut at);
            // The distances of all behind this one are as they were.
            rewritten.copy(pane, head.metrics, &self.bytes[at..]);
            rewritten.last = self.last;
        }
        *self = rewritten;
    }

    /// The number of the pane at offset `at`, behind that of pane `before`.
    fn pane_at(&self, mut at: usize, before: i64) -> i64 {
        if at == self.bytes.len() {
            before
        } else {
            before + get_head(&self.bytes, &mut at).distance
        }
    }

    /// Appends `pane`, whose metrics that are not zero are at the front of `bytes`, and what follows it.
    fn copy(&mut self, pane: i64, metrics: u8, bytes: &[u8]) {
        if self.is_empty() {
            self.first = pane;
            self.last = pane - 1;
        }
        put_head(&mut self.bytes, (pane - self.last) as u64, metrics);
        self.bytes.extend_from_slice(bytes);
        self.last = pane;
    }

    /// The panes, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, Stats)> + '_ {
        let (mut at, mut before) = (self.start, None);
        std::iter::from_fn(move || {
            (at < self.bytes.len()).then(|| {
                let head = get_head(&self.bytes, &mut at);
                // What the first was distant from has left the log.
                let pane = before.map_or(self.first, |before: i64| before + head.distance);
                before = Some(pane);
                (pane, get_stats(head.metrics, &self.bytes, &mut at))
            })
        })
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

/// What the first byte of a pane says.
struct Head {
    distance: i64,
    metrics: u8,
}

/// Distances up to this fit the first byte; 0 there means that a varint follows.
const DISTANCE_INLINE_MAX: u64 = 7;

fn put_pane(bytes: &mut Vec<u8>, distance: u64, stats: &Stats) {
    let fields = [
        stats.impressions,
        stats.clicks,
        stats.conversions,
        stats.cost_micros,
        stats.revenue_micros,
    ];
    let bits = fields.into_iter().enumerate();
    put_head(bytes, distance, bits.map(|(at, field)| u8::from(field != 0) << at).sum());
    for field in fields.into_iter().filter(|field| *field != 0) {
        put(bytes, zigzag(field));
    }
}

fn put_head(bytes: &mut Vec<u8>, distance: u64, metrics: u8) {
    let inline = distance <= DISTANCE_INLINE_MAX;
    bytes.push(if inline { (distance as u8) << 5 | metrics } else { metrics });
    if !inline {
        put(bytes, distance);
    }
}

#[inline]
fn get_head(bytes: &[u8], at: &mut usize) -> Head {
    let head = bytes[*at];
    *at += 1;
    let distance = if head >> 5 == 0 { get(bytes, at) as i64 } else { i64::from(head >> 5) };
    Head { distance, metrics: head & 0x1f }
}

/// Moves behind the metrics of a pane.
#[inline]
fn skip(metrics: u8, bytes: &[u8], at: &mut usize) {
    for _ in 0..metrics.count_ones() {
        while bytes[*at] >= 0x80 {
            *at += 1;
        }
        *at += 1;
    }
}

#[inline]
fn get_stats(metrics: u8, bytes: &[u8], at: &mut usize) -> Stats {
    let mut field = |bit: u8| {
        if metrics & (1 << bit) == 0 { 0 } else { unzigzag(get(bytes, at)) }
    };
    Stats {
        impressions: field(0),
        clicks: field(1),
        conversions: field(2),
        cost_micros: field(3),
        revenue_micros: field(4),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn stats(seed: i64) -> Stats {
        Stats {
            impressions: seed,
            clicks: -seed,
            conversions: seed % 7,
            cost_micros: seed.wrapping_mul(1_000_003),
            revenue_micros: if seed % 2 == 0 { i64::MIN } else { i64::MAX },
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(i64, i64),
        Amend(Vec<(i64, i64)>),
        Expire(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..400i64, 1..5000i64).prop_map(|(gap, seed)| Step::Push(gap, seed)),
            prop::collection::vec((0..600i64, -3..9i64), 1..9).prop_map(Step::Amend),
            (0..600i64).prop_map(Step::Expire),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_an_ordered_map(steps in prop::collection::vec(step(), 0..120)) {
            let mut log = PaneLog::default();
            let mut map: BTreeMap<i64, Stats> = BTreeMap::new();
            let mut newest = -1_000;
            for step in steps {
                match step {
                    Step::Push(gap, seed) => {
                        newest += gap;
                        log.push(newest, &stats(seed));
                        map.insert(newest, stats(seed));
                    }
                    Step::Amend(changes) => {
                        let small = |seed| Stats { impressions: seed, ..Stats::ZERO };
                        let changes: BTreeMap<i64, Stats> = changes
                            .into_iter()
                            .map(|(back, seed)| (newest - back, small(seed)))
                            .collect();
                        log.amend(&changes.clone().into_iter().collect::<Vec<_>>());
                        for (pane, change) in changes {
                            *map.entry(pane).or_default() += change;
                        }
                        map.retain(|_, stats| !stats.is_empty());
                    }
                    Step::Expire(back) => {
                        while let Some((pane, have)) = log.pop_until(newest - back) {
                            let (first, want) = map.pop_first().unwrap();
                            prop_assert_eq!((pane, have), (first, want));
                        }
                        prop_assert!(map.keys().next().is_none_or(|first| *first > newest - back));
                    }
                }
                prop_assert_eq!(log.iter().collect::<Vec<_>>(), map.clone().into_iter().collect::<Vec<_>>());
            }
        }
    }
}
