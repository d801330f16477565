//! Memory of idempotency keys: a body sent again under the same key is answered as before.
//!
//! A key is remembered for a day, counted in ticks, and at most [`KEYS_MAX`] are; beyond either the
//! oldest is forgotten, and a body under it would be taken again (rows with ids are still refused
//! as duplicates within `validation.dedup_horizon`). Keys are journalled with their rows, so they
//! survive a restart.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use omnify_operators::model::Tick;
use omnify_sinks::journal::BatchKey;
use omnify_sinks::serve::Accepted;

/// Keys remembered at most, about 200 bytes each.
const KEYS_MAX: usize = 200_000;
/// How long a key is remembered.
const KEPT_MS: u64 = 24 * 3_600_000;

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing: it is now being taken, until it is [`Batches::taken`] or [`Batches::abandon`]ed.
    New,
    /// Its rows are on their way to the disk.
    Pending,
    /// Its rows were taken, and this was answered.
    Taken(Accepted),
}

type Name = (Arc<str>, Arc<str>);

#[derive(Default)]
struct Memory {
    keys: HashMap<Name, Option<Accepted>>,
    order: VecDeque<(Tick, BatchKey)>,
}

/// Shared by the push source (which asks) and the ingest loop (which closes ticks).
#[derive(Clone, Default)]
pub(super) struct Batches(Arc<Mutex<Memory>>);

impl Batches {
    /// Remembers what an earlier process took, in order of ticks.
    pub(super) fn restore(&self, taken: Vec<(Tick, BatchKey)>) {
        for (tick, key) in taken {
            self.closed(tick, std::slice::from_ref(&key));
            self.taken(&key.tenant, &key.key);
        }
    }

    /// Looks a key up, and begins to take it when it is new.
    pub(super) fn begin(&self, tenant: &Arc<str>, key: &Arc<str>) -> Known {
        let mut memory = self.lock();
        match memory.keys.get(&(tenant.clone(), key.clone())) {
            Some(Some(answer)) => Known::Taken(*answer),
            Some(None) => Known::Pending,
            None => {
                memory.keys.insert((tenant.clone(), key.clone()), None);
                Known::New
            }
        }
    }

    /// Its rows were not taken now. They may have been by an earlier process, whose ticks are being
    /// made once more meanwhile: then the key stays known.
    pub(super) fn abandon(&self, tenant: &Arc<str>, key: &Arc<str>) {
        let (name, mut memory) = ((tenant.clone(), key.clone()), self.lock());
        if memory.keys.get(&name) == Some(&None) {
            memory.keys.remove(&name);
        }
    }

    /// The rows of `keys` enter at `tick`.
    pub(super) fn closed(&self, tick: Tick, keys: &[BatchKey]) {
        if keys.is_empty() {
            return;
        }
        let mut memory = self.lock();
        memory.order.extend(keys.iter().map(|key| (tick, key.clone())));
        while memory.order.len() > KEYS_MAX
            || memory.order.front().is_some_and(|(at, _)| at + KEPT_MS < tick)
        {
            if let Some((_, key)) = memory.order.pop_front() {
                memory.keys.remove(&(key.tenant, key.key));
            }
        }
    }

    /// The rows of a key are on disk: it can be answered from memory.
    pub(super) fn taken(&self, tenant: &Arc<str>, key: &Arc<str>) {
        let mut memory = self.lock();
        // Keys end in the order of their ticks, so the newest entries are looked at first.
        let found =
            memory.order.iter().rev().find(|(_, of)| of.tenant == *tenant && of.key == *key);
        if let Some((_, key)) = found {
            let answer = Accepted {
                accepted: key.accepted,
                dead_letters: key.dead_letters,
                ignored: key.ignored,
            };
            let name = (key.tenant.clone(), key.key.clone());
            memory.keys.insert(name, Some(answer));
        }
    }

    /// Everything remembered, oldest first, for a snapshot.
    pub(super) fn list(&self) -> Vec<(Tick, BatchKey)> {
        self.lock().order.iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(key: &str) -> BatchKey {
        BatchKey { tenant: "t".into(), key: key.into(), accepted: 3, dead_letters: 1, ignored: 0 }
    }

    /// Found by `omnify-bench crash`: a body sent again during a recovery took the key with it when it
    /// was turned away, and was taken twice afterwards.
    #[test]
    fn a_key_that_is_restored_while_its_body_is_turned_away_stays() {
        let batches = Batches::default();
        let (tenant, key): (Arc<str>, Arc<str>) = ("t".into(), "a".into());
        assert_eq!(batches.begin(&tenant, &key), Known::New);
        batches.restore(vec![(5, batch("a"))]);
        batches.abandon(&tenant, &key);
        assert!(matches!(batches.begin(&tenant, &key), Known::Taken(_)));
    }

    #[test]
    fn a_key_is_new_once_pending_then_taken_and_forgotten_after_a_day() {
        let batches = Batches::default();
        let (tenant, key): (Arc<str>, Arc<str>) = ("t".into(), "a".into());
        assert_eq!(batches.begin(&tenant, &key), Known::New);
        assert_eq!(batches.begin(&tenant, &key), Known::Pending);
        assert_eq!(batches.begin(&"u".into(), &key), Known::New);
        batches.abandon(&tenant, &key);
        assert_eq!(batches.begin(&tenant, &key), Known::New);
        batches.closed(5, &[batch("a")]);
        assert_eq!(batches.begin(&tenant, &key), Known::Pending);
        batches.taken(&tenant, &key);
        let answer = Accepted { accepted: 3, dead_letters: 1, ignored: 0 };
        assert_eq!(batches.begin(&tenant, &key), Known::Taken(answer));

        let again = Batches::default();
        again.restore(batches.list());
        assert_eq!(again.begin(&tenant, &key), Known::Taken(answer));
        again.closed(6 + KEPT_MS, &[batch("b")]);
        assert_eq!(again.begin(&tenant, &key), Known::New);
        // Turned away while the tick that took it is being made once more.
        again.restore(batches.list());
        again.abandon(&tenant, &key);
        assert_eq!(again.begin(&tenant, &key), Known::Taken(answer));
    }
}
