//! The process ends at the worst moments.

use std::sync::Arc;

use futures::future::BoxFuture;
use omnify_decision::control::{Actual, Outcome};
use omnify_operators::model::EntityKey;
use omnify_sinks::action::{
    ActionSink, Capabilities, ExecError, ExecOutcome, Intent, Ledger, Market,
};

use crate::rig::{
    EXPIRES, NOW, PATIENCE, Rig, action, actual, applied, bid, id, market, owner, quick,
};

/// A platform of which nobody promises that a repeated id is harmless.
pub(crate) struct NoPromise(pub(crate) Market);

impl ActionSink for NoPromise {
    fn name(&self) -> &'static str {
        "no_promise"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { dedupes: false, ..self.0.capabilities() }
    }

    fn execute<'a>(&'a self, intent: &'a Intent) -> BoxFuture<'a, ExecOutcome> {
        self.0.execute(intent)
    }

    fn read_back<'a>(&'a self, entity: &'a EntityKey) -> BoxFuture<'a, Result<Actual, ExecError>> {
        self.0.read_back(entity)
    }
}

/// A rig whose ledger says that action 1 (bid 5 of owner 1) was about to be called.
fn intended(dedupes: bool) -> Rig {
    let rig = Rig::stopped(quick(), |platform| {
        let market = market(platform, PATIENCE);
        if dedupes { Arc::new(market) } else { Arc::new(NoPromise(market)) }
    });
    rig.platform.lock().settings.insert(owner(1), actual(1));
    let mut ledger = Ledger::open(rig.dir()).unwrap();
    ledger.intend(&action(1, owner(1), bid(5)).into());
    ledger.commit(NOW).unwrap();
    rig
}

#[test]
fn between_intent_and_call_what_was_lost_is_sent_once() {
    let mut rig = intended(true);
    rig.start();
    assert_eq!(rig.ack(), (id(1), applied(bid(5))));
    assert_eq!((rig.platform.count("GET"), rig.platform.count("POST")), (1, 1));
    rig.platform.check();
}

#[test]
fn between_intent_and_call_without_the_promise_it_is_decided_anew() {
    let mut rig = intended(false);
    rig.start();
    assert_eq!(rig.ack(), (id(1), Outcome::Expired));
    assert_eq!(rig.platform.count("POST"), 0);
    assert_eq!(rig.run(action(1, owner(1), bid(5))), Outcome::Expired, "this id never again");
    assert_eq!(rig.run(action(2, owner(1), bid(5))), applied(bid(5)));
}

#[test]
fn between_intent_and_call_an_expired_action_is_not_sent() {
    let mut rig = intended(true);
    rig.set_clock(EXPIRES + 1);
    rig.start();
    assert_eq!(rig.ack(), (id(1), Outcome::Expired));
    assert_eq!((rig.platform.count("GET"), rig.platform.count("POST")), (1, 0));
}

#[test]
fn between_call_and_outcome_it_is_read_back_before_anything_new() {
    let mut rig = intended(true);
    rig.platform.lock().settings.insert(owner(1), actual(5));
    rig.start();
    rig.submit(action(2, owner(1), bid(6)));
    assert_eq!(rig.ack(), (id(1), applied(bid(5))));
    assert_eq!(rig.ack(), (id(2), applied(bid(6))));
    let owner = owner(1);
    let log = rig.platform.lock().log.clone();
    assert_eq!(log, [format!("GET {owner}"), format!("POST {owner}")]);
    rig.platform.check();
}

#[test]
fn the_outcome_is_still_known_after_a_restart() {
    let mut rig = Rig::new();
    let mut change = action(1, owner(1), bid(5));
    rig.platform.lock().settings.insert(owner(1), actual(1));
    change.before = Some(bid(1));
    assert_eq!(rig.run(change.clone()), applied(bid(5)));
    rig.crash();
    rig.start();
    assert_eq!(rig.run(change), applied(bid(5)));
    assert_eq!(rig.platform.count("POST"), 1);
    assert_eq!(Ledger::undo_plan(rig.dir(), id(1)).unwrap(), Some(bid(1)));
}
