//! Any wishes, any faults, crashes anywhere: the platform ends with the last wish, and no action
//! took effect twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use omnify_decision::action::Id;
use omnify_decision::control::{Control, Outcome};
use proptest::prelude::*;

use crate::crash::NoPromise;
use crate::platform::Fault;
use crate::rig::{Rig, action, actual, bid, market, owner, quick};

#[derive(Clone, Debug)]
enum Step {
    Wish { owner: u32, bid_micros: i64 },
    Faults(Vec<Option<Fault>>),
    DeafReads(u32),
    Crash,
}

fn fault() -> impl Strategy<Value = Option<Fault>> {
    prop_oneof![
        3 => Just(None),
        2 => Just(Some(Fault::ErrorBefore)),
        2 => Just(Some(Fault::ErrorAfter)),
        1 => Just(Some(Fault::BrokenReply)),
        1 => Just(Some(Fault::SilenceBefore)),
        1 => Just(Some(Fault::SilenceAfter)),
        2 => Just(Some(Fault::Throttle(0))),
        1 => Just(Some(Fault::Conflict)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u32..4, 1i64..6).prop_map(|(owner, bid_micros)| Step::Wish { owner, bid_micros }),
        2 => prop::collection::vec(fault(), 1..6).prop_map(Step::Faults),
        1 => (1u32..10).prop_map(Step::DeafReads),
        1 => Just(Step::Crash),
    ]
}

/// Plays the stage: keeps wishing until the platform says that the wish holds.
struct Stage {
    rig: Rig,
    wishes: BTreeMap<u32, i64>,
    /// The newest action of each owner, while it has no final outcome.
    open: BTreeMap<Id, u32>,
    next: u32,
}

impl Stage {
    fn wish(&mut self, number: u32, bid_micros: i64) {
        self.wishes.insert(number, bid_micros);
        self.next += 1;
        let action = action(self.next, owner(number), bid(bid_micros));
        self.open.retain(|_, other| *other != number);
        self.open.insert(action.id, number);
        if let Some(control) = self.rig.dispatcher().submit(action) {
            self.take(control);
        }
    }

    fn take(&mut self, control: Control) {
        let Control::Acknowledge { action, outcome, .. } = control else { return };
        match outcome {
            Outcome::Applied { .. } | Outcome::NoChange => {
                self.open.remove(&action);
            }
            Outcome::Unknown => {}
            // Not executed: the newest wish of an owner is wished again, with a new id.
            Outcome::Rejected { .. } | Outcome::Expired => {
                if let Some(owner) = self.open.remove(&action) {
                    self.wish(owner, self.wishes[&owner]);
                }
            }
        }
    }

    /// After a crash the stage re-emits what its journal does not know the outcome of: same ids.
    fn restart(&mut self) {
        self.rig.crash();
        self.rig.start();
        for (id_, number) in self.open.clone() {
            let mut again = action(0, owner(number), bid(self.wishes[&number]));
            again.id = id_;
            if let Some(control) = self.rig.dispatcher().submit(again) {
                self.take(control);
            }
        }
    }

    fn settle(&mut self) {
        while !self.open.is_empty() {
            let control = self.rig.next();
            self.take(control);
        }
    }
}

fn holds(steps: Vec<Step>, dedupes: bool) {
    let rig = Rig::with(quick(), |platform| {
        let market = market(platform, Duration::from_millis(150));
        if dedupes { Arc::new(market) } else { Arc::new(NoPromise(market)) }
    });
    for number in 1..4 {
        rig.platform.lock().settings.insert(owner(number), actual(1));
    }
    let mut stage = Stage { rig, wishes: BTreeMap::new(), open: BTreeMap::new(), next: 0 };
    for step in steps {
        match step {
            Step::Wish { owner, bid_micros } => stage.wish(owner, bid_micros),
            Step::Faults(faults) => stage.rig.platform.lock().script.extend(faults),
            Step::DeafReads(count) => stage.rig.platform.lock().deaf_reads += count,
            Step::Crash => stage.restart(),
        }
        while let Ok(control) = stage.rig.outcomes.try_recv() {
            stage.take(control);
        }
    }
    stage.settle();
    for (number, bid_micros) in &stage.wishes {
        assert_eq!(stage.rig.platform.bid(&owner(*number)), Some(*bid_micros));
    }
    stage.rig.platform.check();
    if !dedupes {
        let carried_out = stage.rig.platform.lock().carried_out.clone();
        assert!(carried_out.values().all(|count| *count == 1), "{carried_out:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn the_last_wish_holds_and_nothing_happens_twice(
        steps in prop::collection::vec(step(), 1..25)
    ) {
        holds(steps, true);
    }

    #[test]
    fn also_on_a_platform_without_promises(steps in prop::collection::vec(step(), 1..25)) {
        holds(steps, false);
    }
}
