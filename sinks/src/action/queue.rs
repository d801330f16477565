//! What waits to be executed: bounded, one lane per owner, newest wish wins.
//!
//! - An owner whose action is in flight is *busy*; nothing of it is handed out until released
//!   (invariant 6).
//! - A newer wish for the same setting of the same owner replaces the older one that still waits.
//! - At the bound a new action is turned away unless it replaces one; the bound never grows.
//! - Pausing goes first: before other settings of its owner, and before other owners.

use std::collections::{HashMap, VecDeque};

use omnify_decision::action::{ActionKind, Setting};
use omnify_operators::model::EntityKey;

use super::Intent;

/// What became of a submitted action.
#[derive(Debug, PartialEq)]
pub(super) enum Pushed {
    /// It waits.
    Queued,
    /// It waits in place of this older one.
    Superseded(Intent),
    /// There was no room for it.
    Full(Intent),
}

#[derive(Default)]
struct Lane {
    busy: bool,
    /// In `Queue::ready`.
    ready: bool,
    waiting: Vec<Intent>,
}

/// See the module.
pub(super) struct Queue {
    capacity: usize,
    len: usize,
    /// Only owners that are busy or have something waiting.
    lanes: HashMap<EntityKey, Lane>,
    ready: VecDeque<EntityKey>,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Queue {
        Queue { capacity, len: 0, lanes: HashMap::new(), ready: VecDeque::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, intent: Intent) -> Pushed {
        let full = self.len >= self.capacity;
        let owner = intent.owner.clone();
        if let Some(lane) = self.lanes.get_mut(&owner) {
            if lane.waiting.iter().any(|waiting| waiting.id == intent.id) {
                return Pushed::Queued;
            }
            let older = lane.waiting.iter_mut().find(|older| same_setting(older, &intent));
            if let Some(older) = older {
                let older = std::mem::replace(older, intent);
                self.make_ready(&owner);
                return Pushed::Superseded(older);
            }
        }
        if full {
            return Pushed::Full(intent);
        }
        self.len += 1;
        self.lanes.entry(owner.clone()).or_default().waiting.push(intent);
        self.make_ready(&owner);
        Pushed::Queued
    }

    /// The next action whose owner is free; the owner is busy from now on.
    pub(super) fn pop(&mut self) -> Option<Intent> {
        let owner = self.ready.pop_front()?;
        let lane = self.lanes.get_mut(&owner)?;
        let at = lane.waiting.iter().position(is_pause).unwrap_or(0);
        (lane.busy, lane.ready) = (true, false);
        self.len -= 1;
        Some(lane.waiting.remove(at))
    }

    /// Something of `owner` is in flight that did not come from this queue. Nothing of it may
    /// wait yet.
    pub(super) fn make_busy(&mut self, owner: &EntityKey) {
        debug_assert!(!self.lanes.contains_key(owner), "invariant 6: {owner} is known already");
        self.lanes.entry(owner.clone()).or_default().busy = true;
    }

    /// Nothing of `owner` is in flight any more.
    pub(super) fn release(&mut self, owner: &EntityKey) {
        if let Some(lane) = self.lanes.get_mut(owner) {
            lane.busy = false;
            if lane.waiting.is_empty() {
                self.lanes.remove(owner);
            } else {
                self.make_ready(owner);
            }
        }
    }

    /// Whether a newer wish for the same setting waits.
    pub(super) fn has_newer(&self, intent: &Intent) -> bool {
        self.lanes.get(&intent.owner).is_some_and(|lane| {
            lane.waiting.iter().any(|other| other.id != intent.id && same_setting(other, intent))
        })
    }

    fn make_ready(&mut self, owner: &EntityKey) {
        let Some(lane) = self.lanes.get_mut(owner) else { return };
        if lane.busy || lane.waiting.is_empty() {
            return;
        }
        if lane.waiting.iter().any(is_pause) {
            if lane.ready && self.ready.front() != Some(owner) {
                self.ready.retain(|other| other != owner);
                lane.ready = false;
            }
            if !lane.ready {
                self.ready.push_front(owner.clone());
            }
        } else if !lane.ready {
            self.ready.push_back(owner.clone());
        }
        lane.ready = true;
    }
}

fn is_pause(intent: &Intent) -> bool {
    intent.desired.kind() == ActionKind::Pause
}

/// Whether both want the same thing of the same owner, so that the newer one makes the older
/// pointless.
fn same_setting(a: &Intent, b: &Intent) -> bool {
    match (&a.desired, &b.desired) {
        (Setting::Rotate { from: a, .. }, Setting::Rotate { from: b, .. }) => a == b,
        (Setting::Alert { code: a }, Setting::Alert { code: b }) => a == b,
        (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}

#[cfg(test)]
mod tests {
    use omnify_decision::action::{Id, Status};
    use proptest::prelude::*;

    use super::*;

    fn intent(n: u8, owner: u8, desired: Setting) -> Intent {
        Intent {
            id: Id([n; 16]),
            decision: Id([0; 16]),
            tick: 0,
            expires: 1,
            owner: format!("t/p/a/c{owner}").parse().unwrap(),
            desired,
            before: None,
            reasons: Vec::new(),
        }
    }

    fn bid(n: u8, owner: u8) -> Intent {
        intent(n, owner, Setting::Bid { bid_micros: i64::from(n) })
    }

    fn pause(n: u8, owner: u8) -> Intent {
        intent(n, owner, Setting::Status { status: Status::Paused })
    }

    #[test]
    fn one_at_a_time_newest_wish_pause_first() {
        let mut queue = Queue::new(10);
        assert_eq!(queue.push(bid(1, 1)), Pushed::Queued);
        assert_eq!(queue.push(bid(2, 2)), Pushed::Queued);
        assert_eq!(queue.push(bid(3, 1)), Pushed::Superseded(bid(1, 1)));
        assert_eq!(queue.push(bid(3, 1)), Pushed::Queued, "the same id twice is one");
        assert_eq!(queue.push(pause(4, 2)), Pushed::Queued);
        assert_eq!(queue.len(), 3);
        assert_eq!(queue.pop(), Some(pause(4, 2)));
        assert_eq!(queue.pop(), Some(bid(3, 1)));
        assert_eq!(queue.pop(), None, "both owners are busy");
        assert!(!queue.has_newer(&bid(3, 1)));
        queue.push(bid(5, 1));
        assert!(queue.has_newer(&bid(3, 1)));
        assert_eq!(queue.pop(), None);
        queue.release(&bid(3, 1).owner);
        assert_eq!(queue.pop(), Some(bid(5, 1)));
    }

    #[test]
    fn the_bound_turns_away_what_replaces_nothing() {
        let mut queue = Queue::new(1);
        queue.push(bid(1, 1));
        assert_eq!(queue.push(bid(2, 2)), Pushed::Full(bid(2, 2)));
        assert_eq!(queue.push(bid(3, 1)), Pushed::Superseded(bid(1, 1)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_is_lost_and_no_owner_runs_twice(
            steps in prop::collection::vec((0u8..4, 0u8..4), 1..120)
        ) {
            let mut queue = Queue::new(8);
            let (mut entered, mut left, mut running) = (0usize, 0usize, Vec::<Intent>::new());
            for (n, (step, owner)) in steps.into_iter().enumerate() {
                let n = u8::try_from(n).unwrap() + 1;
                match step {
                    0 | 1 => {
                        let new = if step == 0 { bid(n, owner) } else { pause(n, owner) };
                        entered += 1;
                        if queue.push(new) != Pushed::Queued {
                            left += 1;
                        }
                    }
                    2 => {
                        if let Some(next) = queue.pop() {
                            prop_assert!(running.iter().all(|other| other.owner != next.owner));
                            running.push(next);
                            left += 1;
                        }
                    }
                    _ => {
                        if let Some(done) = running.pop() {
                            queue.release(&done.owner);
                        }
                    }
                }
                prop_assert!(queue.len() <= 8);
            }
            for done in running {
                queue.release(&done.owner);
            }
            while let Some(next) = queue.pop() {
                left += 1;
                queue.release(&next.owner);
            }
            prop_assert_eq!((entered, queue.len(), queue.lanes.len()), (left, 0, 0));
        }
    }
}
