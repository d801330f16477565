//! The process ends at the worst moments.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use omnify_decision::action::Action;
use omnify_decision::control::{Actual, Outcome};
use omnify_operators::model::EntityKey;
use omnify_sinks::action::{
    ActionSink, Capabilities, ExecError, ExecOutcome, Intent, Ledger, LedgerCopy, LedgerError,
    Market, Options,
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
    // There is room for one, so of two that had to wait the older would be said to have expired.
    let options = Options { queue_max: 1, ..quick() };
    let mut rig = Rig::with(options, |platform| Arc::new(market(platform, PATIENCE)));
    let change = |n| Action { before: Some(bid(1)), ..action(n, owner(n), bid(5)) };
    for n in 1..=2 {
        rig.platform.lock().settings.insert(owner(n), actual(1));
        assert_eq!(rig.run(change(n)), applied(bid(5)));
    }
    rig.crash();
    rig.start();
    for n in 1..=2 {
        assert_eq!(rig.run(change(n)), applied(bid(5)));
    }
    assert_eq!(rig.platform.count("POST"), 2);
    assert_eq!(Ledger::undo_plan(rig.dir(), id(1)).unwrap(), Some(bid(1)));
}

/// The ledger came back from a copy that lagged behind: it does not know what was called last.
#[test]
fn what_a_restored_ledger_may_lack_is_read_back_before_it_is_called() {
    for (called, dedupes) in [(true, true), (true, false), (false, true), (false, false)] {
        let options = Options { in_doubt_until: NOW, ..quick() };
        let mut rig = Rig::stopped(options, |platform| {
            let market = market(platform, PATIENCE);
            if dedupes { Arc::new(market) } else { Arc::new(NoPromise(market)) }
        });
        let held = if called { 5 } else { 1 };
        rig.platform.lock().settings.insert(owner(1), actual(held));
        rig.start();
        let expected = match (called, dedupes) {
            (true, _) | (false, true) => applied(bid(5)),
            (false, false) => Outcome::Expired,
        };
        assert_eq!(rig.run(action(1, owner(1), bid(5))), expected, "{called} {dedupes}");
        let calls = usize::from(!called && dedupes);
        assert_eq!((rig.platform.count("GET"), rig.platform.count("POST")), (1, calls));
        // What comes later is nobody else's.
        let mut later = action(2, owner(1), bid(7));
        later.tick = NOW + 1;
        assert_eq!(rig.run(later), applied(bid(7)));
        assert_eq!(rig.platform.count("GET"), 1);
    }
}

/// A copy that must have an intent before the call is made.
#[derive(Default)]
struct Copied {
    files: Mutex<Vec<(String, u64, bool)>>,
    ended: AtomicBool,
}

impl LedgerCopy for Copied {
    fn grown(&self, file: &str, bytes: u64, intents: bool) -> bool {
        self.files.lock().unwrap().push((file.to_owned(), bytes, intents));
        !(intents && self.ended.load(SeqCst))
    }
}

#[test]
fn nothing_is_called_whose_intent_the_copy_will_not_have() {
    let dir = tempfile::tempdir().unwrap();
    let copy = Arc::new(Copied::default());
    let mut ledger = Ledger::open(dir.path()).unwrap();
    ledger.copied_by(copy.clone()).unwrap();
    ledger.intend(&action(1, owner(1), bid(5)).into());
    ledger.commit(NOW).unwrap();
    ledger.end(id(1), NOW, &applied(bid(5)));
    ledger.commit(NOW).unwrap();
    let length = std::fs::metadata(dir.path().join("actions-0000000001.ledger")).unwrap().len();
    let told = copy.files.lock().unwrap().clone();
    assert_eq!(told.iter().map(|(.., intents)| *intents).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(
        told.last().map(|(file, bytes, _)| (file.as_str(), *bytes)),
        Some(("actions-0000000001.ledger", length))
    );
    copy.ended.store(true, SeqCst);
    ledger.intend(&action(2, owner(2), bid(5)).into());
    assert!(matches!(ledger.commit(NOW), Err(LedgerError::Copy)));
    assert_eq!(ledger.seen(id(2)), None);
}

/// Found by `omnify-bench crash`: an action that had been applied was told as expired, because it was
/// submitted again after a restart and a newer wish met it in the queue.
#[test]
fn what_has_ended_is_answered_as_it_ended_though_a_newer_wish_comes_at_once() {
    for ended_before in [true, false] {
        let mut rig = match ended_before {
            true => Rig::new(),
            false => intended(true),
        };
        // What was called already, or not yet.
        let at_first = if ended_before { 1 } else { 5 };
        rig.platform.lock().settings.insert(owner(1), actual(at_first));
        match ended_before {
            true => {
                rig.run(action(1, owner(1), bid(5)));
                rig.crash();
                rig.start();
            }
            false => {
                rig.start();
                assert_eq!(rig.ack(), (id(1), applied(bid(5))));
            }
        }
        for newer in 2..40 {
            rig.submit(action(1, owner(1), bid(5)));
            rig.submit(action(newer, owner(1), bid(5 + i64::from(newer))));
            let mut acks = [rig.ack(), rig.ack()];
            acks.sort_by_key(|(id, _)| *id);
            assert!(matches!(acks[0], (_, Outcome::Applied { .. })), "{acks:?}");
            assert_eq!(acks[1], (id(newer), applied(bid(5 + i64::from(newer)))));
        }
    }
}
