//! The memory of event ids that refuses repetitions.
//!
//! Ids are kept in two generations. When the newer one is a horizon old, or half of the ids that
//! may be remembered were announced in it, it becomes the older one and what was older is
//! forgotten. So an id is remembered for one to two horizons while there are not too many of them,
//! and the memory is bounded in any case. An id that comes again after it was forgotten is accepted
//! as new. Only announcements decide when generations change, which are the same on every worker:
//! how the ids are spread over workers does not show.

use std::hash::{BuildHasherDefault, Hasher};

use indexmap::IndexSet;
use serde::{Deserialize, Serialize};

use crate::model::{EntityId, Event, Tick, tick_of_us};
use crate::spec::IntakeSpec;

/// The two newest generations of event ids.
pub(crate) struct Seen {
    horizon_ms: u64,
    generation_ids: u64,
    clock: Clock,
    newer: Generation,
    older: Generation,
    export: Option<Export>,
}

/// What decides when generations change; the same on every worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clock {
    /// The tick at which the newer generation began.
    began: Option<Tick>,
    /// Ids announced since then.
    announced: u64,
}

/// An event's identity.
pub(crate) type SeenId = (EntityId, u64);

/// Ids in order of arrival, so that those up to an instant are a prefix.
#[derive(Default)]
struct Generation {
    number: u64,
    ids: IndexSet<SeenId, BuildHasherDefault<IdHasher>>,
}

/// A prefix of each generation there was when the export began.
struct Export {
    prefixes: Vec<Prefix>,
    /// Generations forgotten since then.
    forgotten: Vec<Generation>,
}

struct Prefix {
    generation: u64,
    newer: bool,
    next: usize,
    until: usize,
}

impl Seen {
    pub(crate) fn new(spec: &IntakeSpec) -> Seen {
        Seen {
            horizon_ms: tick_of_us(spec.dedup_horizon_us).max(1),
            generation_ids: (spec.dedup_ids_max / 2).max(1),
            clock: Clock::default(),
            newer: Generation { number: 1, ..Generation::default() },
            older: Generation::default(),
            export: None,
        }
    }

    /// Announces a tick at which `ids` ids enter on all workers together.
    #[inline]
    pub(crate) fn announce(&mut self, tick: Tick, ids: u64) {
        let age = tick.saturating_sub(*self.clock.began.get_or_insert(tick));
        let full = self.clock.announced > 0 && self.clock.announced + ids > self.generation_ids;
        if age >= self.horizon_ms || full {
            if age / 2 >= self.horizon_ms {
                self.rotate();
            }
            self.rotate();
            self.clock = Clock { began: Some(tick), announced: 0 };
        }
        self.clock.announced += ids;
    }

    #[cold]
    fn rotate(&mut self) {
        let fresh = Generation { number: self.newer.number + 1, ..Generation::default() };
        let older = std::mem::replace(&mut self.newer, fresh);
        let forgotten = std::mem::replace(&mut self.older, older);
        if let Some(export) = &mut self.export {
            export.forgotten.push(forgotten);
        }
    }

    /// True when the id is new.
    pub(crate) fn insert(&mut self, event: &Event) -> bool {
        let id = (event.creative, event.id);
        !self.older.ids.contains(&id) && self.newer.ids.insert(id)
    }

    /// Ids remembered.
    pub(crate) fn len(&self) -> usize {
        self.newer.ids.len() + self.older.ids.len()
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    pub(crate) fn begin_export(&mut self) {
        let prefix = |generation: &Generation, newer| Prefix {
            generation: generation.number,
            newer,
            next: 0,
            until: generation.ids.len(),
        };
        let prefixes = vec![prefix(&self.older, false), prefix(&self.newer, true)];
        self.export = Some(Export { prefixes, forgotten: Vec::new() });
    }

    /// The next ids of the export, at most `limit`, and whether they are of the newer generation;
    /// `None` when all have left.
    pub(crate) fn export(&mut self, limit: usize) -> Option<(bool, Vec<SeenId>)> {
        let export = self.export.as_mut()?;
        for prefix in &mut export.prefixes {
            let mut there = [&self.newer, &self.older].into_iter().chain(&export.forgotten);
            let generation = there.find(|have| have.number == prefix.generation);
            let until = prefix.until.min(prefix.next + limit);
            let slice = generation.and_then(|have| have.ids.get_range(prefix.next..until));
            if let Some(ids) = slice.filter(|ids| !ids.is_empty()) {
                prefix.next = until;
                return Some((prefix.newer, ids.iter().copied().collect()));
            }
        }
        self.export = None;
        None
    }

    pub(crate) fn restore_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    pub(crate) fn restore(&mut self, newer: bool, ids: &[SeenId]) {
        let generation = if newer { &mut self.newer } else { &mut self.older };
        generation.ids.extend(ids.iter().copied());
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        // Beside the entries with their hashes, a table of their positions, 7/8 full at most.
        let entry = size_of::<SeenId>() + 2 * size_of::<usize>() + 1;
        (self.newer.ids.capacity() + self.older.ids.capacity()) * entry
    }
}

/// Event ids are good hashes already; the creative is mixed in with one multiplication.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(32) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EventKind, NO_USER, Stats};

    fn seen(horizon_ms: i64, ids_max: u64) -> Seen {
        Seen::new(&IntakeSpec {
            dedup_horizon_us: horizon_ms * 1_000,
            dedup_ids_max: ids_max,
            ..IntakeSpec::default()
        })
    }

    fn event(id: u64) -> Event {
        Event {
            time: 0,
            creative: EntityId(3),
            kind: EventKind::Cost,
            delta: Stats::ZERO,
            user: NO_USER,
            id,
        }
    }

    #[test]
    fn an_id_is_remembered_for_a_horizon_at_least_and_two_at_most() {
        let mut seen = seen(100, 1_000);
        seen.announce(1_000, 1);
        assert!(seen.insert(&event(7)) && !seen.insert(&event(7)));
        for tick in [1_099, 1_100, 1_199] {
            seen.announce(tick, 0);
            assert!(!seen.insert(&event(7)), "{tick}");
        }
        seen.announce(1_200, 0);
        assert!(seen.insert(&event(7)));
        // A gap of two horizons forgets everything at once.
        seen.announce(1_500, 0);
        assert_eq!(seen.len(), 0);
    }

    #[test]
    fn the_memory_is_bounded_however_many_ids_come() {
        let mut seen = seen(1_000_000, 100);
        for id in 1..10_000_u64 {
            seen.announce(1_000 + id / 10, 1);
            assert!(seen.insert(&event(id)));
            assert!(seen.len() <= 100);
        }
        assert!(!seen.insert(&event(9_960)), "the newest half is always remembered");
    }

    #[test]
    fn an_export_holds_the_ids_up_to_its_beginning_though_generations_go_on() {
        let mut seen = seen(100, 1_000);
        seen.announce(1_000, 1);
        (1..=10).for_each(|id| assert!(seen.insert(&event(id))));
        seen.announce(1_100, 1);
        (11..=15).for_each(|id| assert!(seen.insert(&event(id))));
        seen.begin_export();
        assert!(seen.insert(&event(16)));
        let mut ids = vec![seen.export(4).unwrap()];
        seen.announce(1_200, 1);
        seen.announce(1_300, 1);
        assert!(seen.insert(&event(17)));
        ids.extend(std::iter::from_fn(|| seen.export(4)));
        let of = |newer: bool| -> Vec<u64> {
            let chunks = ids.iter().filter(|(is, _)| *is == newer);
            chunks.flat_map(|(_, ids)| ids.iter().map(|(_, id)| *id)).collect()
        };
        assert_eq!(of(false), (1..=10).collect::<Vec<_>>());
        assert_eq!(of(true), (11..=15).collect::<Vec<_>>());
    }
}
