//! State on its way out of a running graph and into a fresh one.
//!
//! An export says how every operator stood right after one tick. It leaves over the ticks that
//! follow, a bounded chunk at each, while the graph goes on: whatever is about to change and has not
//! left yet leaves first, as it was. So there is no pause, and no second copy of the state.
//!
//! # Contract
//! An item is loaded by whichever worker the shard of its entity belongs to, so an export of any
//! number of workers can be loaded by any other number. Entities travel as dense ids: the registry
//! must have been restored with the same ids before. What the bytes mean is known only to the
//! version of the engine that wrote them; whoever keeps them checks that they are whole.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::{EntityId, Tick};

/// The operator that an item belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StatePart {
    /// What counts and what waits: ids, known creatives, held events.
    Intake,
    /// The newest report rows.
    Restate,
    /// Rolling features of campaigns and everything below.
    Lower,
    /// Rolling features of accounts and tenants.
    Upper,
    /// Completeness of reported conversions.
    Maturity,
}

/// A piece of an operator's state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StateItem {
    /// Whose.
    pub part: StatePart,
    /// Decides the worker that loads it; [`StateItem::EVERYWHERE`] is loaded by all.
    pub entity: EntityId,
    /// The state, in the operator's own form.
    pub bytes: Vec<u8>,
}

impl StateItem {
    /// The entity of state that every worker has alike.
    pub const EVERYWHERE: EntityId = EntityId(u32::MAX);

    pub(crate) fn new(part: StatePart, entity: EntityId, state: &impl Serialize) -> StateItem {
        // Writing to a vector fails only for sequences of unknown length, and there are none.
        let bytes = postcard::to_stdvec(state).expect("state has no sequence of unknown length");
        StateItem { part, entity, bytes }
    }

    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, StateError> {
        postcard::from_bytes(&self.bytes).map_err(|error| StateError::Unreadable {
            part: self.part,
            entity: self.entity,
            what: error.to_string(),
        })
    }
}

/// Why state cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Not what this version of the engine writes.
    #[error(
        "state of {part:?} for entity {entity:?} cannot be read ({what}): it was written by another version of \
         the engine, or is damaged; start from an older snapshot"
    )]
    Unreadable {
        /// Whose.
        part: StatePart,
        /// Which.
        entity: EntityId,
        /// What the decoder says.
        what: String,
    },
    /// Exported under another configuration of windows or levels.
    #[error(
        "state was exported with windows {exported}, but [features] now says {configured}: set them back, or start \
         without the snapshot"
    )]
    OtherFeatures {
        /// Windows and levels of the export.
        exported: String,
        /// Windows and levels of this graph.
        configured: String,
    },
}

/// Milliseconds without a tick that an export makes use of at most.
const CHUNK_MS_MAX: u64 = 256;

/// Bytes that may leave an operator at a tick `ms` after the one before.
pub(crate) fn chunk_bytes(bytes_per_ms: usize, ms: u64) -> usize {
    bytes_per_ms.saturating_mul(ms.clamp(1, CHUNK_MS_MAX) as usize)
}

/// Which of a number of things are still to leave.
#[derive(Debug, Default)]
struct Pending {
    next: usize,
    until: usize,
    /// Those from `next` on that left before their turn.
    early: Vec<bool>,
}

/// An export under way: what waits to leave, and which of the numbered things have not been looked
/// at yet.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) items: Vec<StateItem>,
    bytes: usize,
    pending: Pending,
}

impl Outgoing {
    /// An export of the things 0 to `until`.
    pub(crate) fn new(until: usize) -> Outgoing {
        let pending = Pending { next: 0, until, early: vec![false; until] };
        Outgoing { items: Vec::new(), bytes: 0, pending }
    }

    pub(crate) fn push(&mut self, item: StateItem) {
        self.bytes += item.bytes.len() + size_of::<StateItem>();
        self.items.push(item);
    }

    /// True when `at` has not left yet; it is then taken to leave now.
    pub(crate) fn claim(&mut self, at: usize) -> bool {
        let Pending { next, until, early } = &mut self.pending;
        (*next..*until).contains(&at) && !std::mem::replace(&mut early[at], true)
    }

    /// The next thing to leave, while fewer than `chunk` bytes have gathered.
    pub(crate) fn next(&mut self, chunk: usize) -> Option<usize> {
        let Pending { next, until, early } = &mut self.pending;
        while self.bytes < chunk && *next < *until {
            *next += 1;
            if !early[*next - 1] {
                return Some(*next - 1);
            }
        }
        None
    }

    /// True while there is room in the chunk.
    pub(crate) fn has_room(&self, chunk: usize) -> bool {
        self.bytes < chunk
    }

    /// True when every numbered thing has left.
    pub(crate) fn is_through(&self) -> bool {
        self.pending.next == self.pending.until
    }

    /// The chunk that has gathered.
    pub(crate) fn take(&mut self) -> Vec<StateItem> {
        self.bytes = 0;
        std::mem::take(&mut self.items)
    }
}

/// The export of one operator, from the point of view of the graph.
pub(crate) trait Stateful {
    /// Begins an export of the state as it is now, right after `tick`. One under way is abandoned.
    fn begin_export(&mut self, tick: Tick);

    /// A chunk of about `bytes`, and whether the export is complete with it.
    fn export(&mut self, bytes: usize) -> (Vec<StateItem>, bool);

    /// Loads `items`, after which the operator stands as it stood right after `tick`.
    fn restore(&mut self, tick: Tick, items: &[StateItem]) -> Result<(), StateError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_leaves_once() {
        let mut out = Outgoing::new(5);
        assert!(out.claim(3) && !out.claim(3) && !out.claim(5));
        let mut left = vec![3];
        while let Some(at) = out.next(usize::MAX) {
            left.push(at);
            assert!(!out.claim(at));
        }
        assert!(out.is_through());
        assert_eq!(left, [3, 0, 1, 2, 4]);
    }

    #[test]
    fn a_chunk_ends_at_its_bound() {
        let mut out = Outgoing::new(2);
        assert_eq!(out.next(10), Some(0));
        out.push(StateItem::new(StatePart::Lower, EntityId(0), &[1_u8; 10]));
        assert_eq!(out.next(10), None);
        assert_eq!(out.take().len(), 1);
        assert_eq!((out.next(10), out.next(10)), (Some(1), None));
    }

    #[test]
    fn damaged_bytes_are_an_error() {
        let item = StateItem::new(StatePart::Intake, EntityId(7), &(1.5_f64, "text"));
        assert_eq!(item.read::<(f64, String)>(), Ok((1.5, "text".to_owned())));
        let cut = StateItem { bytes: item.bytes[..9].to_vec(), ..item };
        assert!(cut.read::<(f64, String)>().unwrap_err().to_string().contains("Intake"));
    }
}
