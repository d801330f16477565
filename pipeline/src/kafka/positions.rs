//! How far each partition has been taken in: the only authority on where reading goes on.
//!
//! # Contract
//! A position is the offset of the next message to read. It moves when a batch is handed to the
//! intake, before the partition can go to another member of the group, and never back. The engine
//! restores the map from its snapshot and journal before a source starts, and tells it what is
//! durable; offsets that the group has committed are never read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use omnify_sinks::journal::Position;

/// Shared by the sources and the engine; clones share the map.
#[derive(Clone, Debug, Default)]
pub struct Positions {
    places: Arc<Mutex<Places>>,
}

/// By source and partition.
type Places = BTreeMap<(Arc<str>, i32), Place>;

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

    /// Up to where the partition is on disk.
    pub fn durable_next(&self, source: &str, partition: i32) -> Option<i64> {
        self.lock().get(&(Arc::from(source), partition)).and_then(|place| place.durable)
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
    fn positions_only_move_forward() {
        let at = |partition, next| Position { source: "kafka:t".into(), partition, next };
        let positions = Positions::restored([at(0, 5), at(0, 9), at(1, 3)]);
        assert_eq!(positions.next("kafka:t", 0), Some(9));
        assert_eq!(positions.next("kafka:t", 2), None);
        positions.advance(&at(0, 12));
        positions.advance(&at(0, 11));
        assert_eq!(positions.next("kafka:t", 0), Some(12));
        assert_eq!(positions.durable_next("kafka:t", 0), Some(9));
        positions.clone().durable(&at(0, 12));
        assert_eq!(positions.durable_next("kafka:t", 0), Some(12));
        assert_eq!(positions.all(), [at(0, 12), at(1, 3)]);
    }
}
