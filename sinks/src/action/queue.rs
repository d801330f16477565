//! What waits to be executed: bounded, one lane per owner, newest wish wins.
//!
//! - An owner whose action is in flight is *busy*; nothing of it is handed out until released
//!   (invariant 6).
//! - A newer wish for the same setting of the same owner replaces the older one that still waits.
//! - At the bound the oldest action that could begin gives way, since the newest knows most;
//!   pauses never do. Where nothing can give way, the new one is turned away.
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
    /// It waits in place of this older wish for the same setting.
    Superseded(Intent),
    /// There was no room, so this one is out: the oldest, or the new one itself.
    Displaced(Intent),
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
        let displaced = match full.then(|| self.displace()) {
            Some(None) => return Pushed::Displaced(intent),
            Some(Some(oldest)) => Some(oldest),
            None => None,
        };
        self.len += 1;
        self.lanes.entry(owner.clone()).or_default().waiting.push(intent);
        self.make_ready(&owner);
        displaced.map_or(Pushed::Queued, Pushed::Displaced)
    }

    /// Takes out the oldest action that could begin and is no pause.
    fn displace(&mut self) -> Option<Intent> {
        let waiting = |owner: &EntityKey| self.lanes.get(owner).map(|lane| &lane.waiting);
        let (turn, at) = self.ready.iter().enumerate().find_map(|(turn, owner)| {
            Some((turn, waiting(owner)?.iter().position(|intent| !is_pause(intent))?))
        })?;
        let owner = self.ready[turn].clone();
        let lane = self.lanes.get_mut(&owner)?;
        let displaced = lane.waiting.remove(at);
        if lane.waiting.is_empty() {
            self.ready.remove(turn);
            self.lanes.remove(&owner);
        }
        self.len -= 1;
        Some(displaced)
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
    fn at_the_bound_the_oldest_gives_way_and_pauses_stay() {
        let mut queue = Queue::new(2);
        queue.push(pause(1, 1));
        queue.push(bid(2, 2));
        assert_eq!(queue.push(bid(3, 3)), Pushed::Displaced(bid(2, 2)));
        assert_eq!(queue.push(bid(4, 3)), Pushed::Superseded(bid(3, 3)));
        assert_eq!(queue.push(pause(5, 4)), Pushed::Displaced(bid(4, 3)));
        assert_eq!(queue.push(bid(6, 2)), Pushed::Displaced(bid(6, 2)), "only pauses wait");
        assert_eq!(queue.pop(), Some(pause(5, 4)));
        assert_eq!(queue.pop(), Some(pause(1, 1)));
        assert_eq!((queue.pop(), queue.len()), (None, 0));
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
