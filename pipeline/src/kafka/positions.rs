//! How far each partition has been taken in: the only authority on where reading goes on.
//!
//! # Contract
//! A position is the offset of the next message to read. It moves when a batch is handed to the
//! intake and never back. The engine restores the map from its snapshot and journal before a source
//! starts, and tells it what is durable; offsets that the group has committed are never read.
//!
//! Whoever begins to read a partition claims it, and hands its rows over under the number of the
//! claim. A later claim ends the one before: rows under that are refused, as the new reader begins
//! where the last rows taken in ended. So a partition has one reader at a time, whatever the group
//! believes and however late a batch of the one before arrives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use omnify_sinks::journal::Position;

/// Shared by the sources and the engine; clones share the map.
#[derive(Clone, Debug, Default)]
pub struct Positions {
    places: Arc<Mutex<Places>>,
    /// The number of the newest claim. Held while rows enter, so not the lock of `places`: the
    /// journal needs that one to make room.
    claims: Arc<Mutex<BTreeMap<Key, u64>>>,
}

/// Source and partition.
type Key = (Arc<str>, i32);
type Places = BTreeMap<Key, Place>;

/// The right to hand over rows of a partition, until the next claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Numbers of a partition's claims rise.
    pub number: u64,
    /// Where reading goes on; `None` when nothing was ever read.
    pub next: Option<i64>,
}

/// What became of rows that were to enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// They are in.
    Taken,
    /// Somebody else reads the partition now, from where these rows begin.
    Stale,
    /// The engine takes nothing in any more.
    Closed,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    next: i64,
    durable: Option<i64>,
}

impl Positions {
    /// What a snapshot and the journal behind it hold; of several for a partition the last counts.
    pub fn restored(positions: impl IntoIterator<Item = Position>) -> Positions {
        let restored = Positions::default();
        for position in positions {
            restored.durable(&position);
        }
        restored
    }

    /// Where reading of the partition goes on; `None` when nothing was ever read of it.
    pub fn next(&self, source: &str, partition: i32) -> Option<i64> {
        self.lock().get(&(Arc::from(source), partition)).map(|place| place.next)
    }

    /// Begins to read a partition; rows under an earlier claim are refused from here on.
    pub fn claim(&self, source: &Arc<str>, partition: i32) -> Claim {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let number = claims.entry((source.clone(), partition)).or_default();
        *number += 1;
        Claim { number: *number, next: self.next(source, partition) }
    }

    /// Lets the rows up to `position` enter by `put`, if claim `number` still stands. No claim is
    /// given meanwhile, so a new reader never begins before rows that are on their way in.
    pub fn enter(&self, number: u64, position: &Position, put: impl FnOnce() -> bool) -> Entered {
        let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if claims.get(&(position.source.clone(), position.partition)) != Some(&number) {
            return Entered::Stale;
        }
        if !put() {
            return Entered::Closed;
        }
        self.advance(position);
        Entered::Taken
    }

    /// Messages before `position` have been taken in.
    pub fn advance(&self, position: &Position) {
        self.change(position, |_| {});
    }

    /// Messages before `position` are on disk.
    pub fn durable(&self, position: &Position) {
        self.change(position, |place| {
            place.durable = place.durable.max(Some(position.next));
        });
    }

    /// Up to where every partition is on disk.
    pub fn all_durable(&self) -> Vec<Position> {
        let places = self.lock();
        let position = |((source, partition), place): (&Key, &Place)| {
            let (source, partition) = (source.clone(), *partition);
            place.durable.map(|next| Position { source, partition, next })
        };
        places.iter().filter_map(position).collect()
    }

    /// Every position, in order.
    pub fn all(&self) -> Vec<Position> {
        let places = self.lock();
        let position = |(source, partition): &(Arc<str>, i32), place: &Place| Position {
            source: source.clone(),
            partition: *partition,
            next: place.next,
        };
        places.iter().map(|(key, place)| position(key, place)).collect()
    }

    fn change(&self, position: &Position, with: impl FnOnce(&mut Place)) {
        let mut places = self.lock();
        let place = places.entry((position.source.clone(), position.partition)).or_default();
        place.next = place.next.max(position.next);
        with(place);
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_enter_under_the_newest_claim_only() {
        let source: Arc<str> = "kafka:t".into();
        let to = |next| Position { source: source.clone(), partition: 0, next };
        let positions = Positions::default();
        assert_eq!(positions.enter(0, &to(5), || true), Entered::Stale, "nobody claimed it");
        let first = positions.claim(&source, 0);
        assert_eq!(first.next, None);
        assert_eq!(positions.enter(first.number, &to(5), || true), Entered::Taken);
        let second = positions.claim(&source, 0);
        assert_eq!(second.next, Some(5));
        let put = || unreachable!("it must not enter");
        assert_eq!(positions.enter(first.number, &to(9), put), Entered::Stale);
        assert_eq!(positions.enter(second.number, &to(7), || false), Entered::Closed);
        assert_eq!(positions.claim(&source, 0).next, Some(5), "what did not enter does not count");
        assert_eq!(positions.claim(&source, 1), Claim { number: 1, next: None });
    }

    #[test]
    fn positions_only_move_forward() {
        let at = |partition, next| Position { source: "kafka:t".into(), partition, next };
        let positions = Positions::restored([at(0, 5), at(0, 9), at(1, 3)]);
        assert_eq!(positions.next("kafka:t", 0), Some(9));
        assert_eq!(positions.next("kafka:t", 2), None);
        positions.advance(&at(0, 12));
        positions.advance(&at(0, 11));
        assert_eq!(positions.next("kafka:t", 0), Some(12));
        let durable = |partition| {
            let all = positions.all_durable();
            all.into_iter().find(|at| at.partition == partition).map(|at| at.next)
        };
        assert_eq!(durable(0), Some(9));
        positions.clone().durable(&at(0, 12));
        assert_eq!((durable(0), durable(1), durable(2)), (Some(12), Some(3), None));
        assert_eq!(positions.all(), [at(0, 12), at(1, 3)]);
    }
}
