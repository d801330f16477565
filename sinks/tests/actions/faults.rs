//! One failure at a time.

use std::sync::Arc;
use std::time::Duration;

use omnify_decision::action::Setting;
use omnify_decision::control::{Control, Outcome};
use omnify_sinks::action::dispatcher::Backoff;
use omnify_sinks::action::{Ledger, Options};

use crate::platform::Fault;
use crate::rig::{
    EXPIRES, NOW, PATIENCE, Rig, action, actual, applied, bid, id, market, owner, pause, quick,
};

fn rejected_class(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Rejected { class, .. } => class,
        other => panic!("rejected was expected, got {other:?}"),
    }
}

#[test]
fn all_goes_well() {
    let rig = Rig::new();
    assert_eq!(rig.run(action(1, owner(1), bid(5))), applied(bid(5)));
    assert_eq!(rig.platform.bid(&owner(1)), Some(5));
    assert_eq!((rig.platform.count("POST"), rig.platform.count("GET")), (1, 0));
    rig.platform.check();
}

#[test]
fn an_error_before_it_happened_is_read_back_and_sent_again() {
    let rig = Rig::new();
    rig.platform.lock().settings.insert(owner(1), actual(1));
    rig.platform.script([Fault::ErrorBefore]);
    assert_eq!(rig.run(action(1, owner(1), bid(5))), applied(bid(5)));
    let log = rig.platform.lock().log.clone();
    let owner = owner(1);
    assert_eq!(log, [format!("POST {owner}"), format!("GET {owner}"), format!("POST {owner}")]);
    rig.platform.check();
}

#[test]
fn an_error_after_it_happened_is_not_sent_again() {
    for fault in [Fault::ErrorAfter, Fault::BrokenReply] {
        let rig = Rig::new();
        rig.platform.script([fault]);
        assert_eq!(rig.run(action(1, owner(1), bid(5))), applied(bid(5)));
        assert_eq!((rig.platform.count("POST"), rig.platform.count("GET")), (1, 1));
        rig.platform.check();
    }
}

#[test]
fn silence_is_settled_by_reading() {
    let rig = Rig::impatient();
    rig.platform.lock().settings.insert(owner(1), actual(1));
    rig.platform.script([Fault::SilenceBefore, Fault::SilenceAfter]);
    assert_eq!(rig.run(action(1, owner(1), bid(5))), applied(bid(5)));
    assert_eq!(rig.platform.bid(&owner(1)), Some(5));
    rig.platform.check();
}

#[test]
fn throttling_is_waited_out() {
    let rig = Rig::new();
    rig.platform.script([Fault::Throttle(0), Fault::Throttle(0)]);
    assert_eq!(rig.run(action(1, owner(1), bid(5))), applied(bid(5)));
    assert_eq!((rig.platform.count("POST"), rig.platform.count("GET")), (3, 0));
    assert_eq!(rig.dispatcher().counts().retries, 2);
}

#[test]
fn a_wait_beyond_the_expiry_ends_it() {
    let rig = Rig::new();
    rig.platform.script([Fault::Throttle(7_200)]);
    assert_eq!(rig.run(action(1, owner(1), bid(5))), Outcome::Expired);
    assert_eq!(rig.platform.count("POST"), 1);
    assert_eq!(rig.platform.bid(&owner(1)), None);
}

#[test]
fn retries_are_bounded() {
    let rig = Rig::new();
    rig.platform.script([Fault::Throttle(0); 20]);
    assert_eq!(rig.run(action(1, owner(1), bid(5))), Outcome::Expired);
    assert_eq!(rig.platform.count("POST"), 6);
}

#[test]
fn refusals_are_final_and_keep_their_class() {
    let rig = Rig::new();
    rig.platform.lock().settings.insert(owner(1), actual(1));
    for (n, fault, class) in [
        (1, Fault::Invalid, "validation"),
        (2, Fault::Quota, "change_quota"),
        (3, Fault::Conflict, "conflict"),
    ] {
        rig.platform.script([fault]);
        assert_eq!(rejected_class(&rig.run(action(n, owner(1), bid(5)))), class);
    }
    assert_eq!(rig.platform.count("POST"), 3);
}

#[test]
fn a_change_by_someone_else_is_noticed_and_reported() {
    let rig = Rig::new();
    rig.platform.lock().settings.insert(owner(1), actual(7));
    let mut change = action(1, owner(1), bid(5));
    change.before = Some(bid(4));
    rig.submit(change);
    let observed = Control::Observe { entity: owner(1), actual: actual(7) };
    assert_eq!(rig.next(), observed, "the stage learns what is set");
    assert_eq!(rejected_class(&rig.ack().1), "conflict");
    assert_eq!(rig.platform.bid(&owner(1)), Some(7), "it was not overwritten");
}

#[test]
fn the_same_id_twice_is_one_action_with_one_outcome() {
    let rig = Rig::new();
    let first = action(1, owner(1), bid(5));
    assert_eq!(rig.run(first.clone()), applied(bid(5)));
    rig.platform.lock().settings.insert(owner(1), actual(9));
    assert_eq!(rig.run(first), applied(bid(5)), "the recorded outcome");
    assert_eq!(rig.platform.count("POST"), 1);
    assert_eq!(rig.platform.bid(&owner(1)), Some(9));
}

#[test]
fn what_has_expired_is_never_called() {
    let rig = Rig::new();
    rig.set_clock(EXPIRES + 1);
    assert_eq!(rig.run(action(1, owner(1), bid(5))), Outcome::Expired);
    rig.set_clock(NOW);
    let mut already = action(2, owner(1), bid(5));
    already.before = Some(bid(5));
    assert_eq!(rig.run(already), Outcome::NoChange, "it was true before");
    assert_eq!(rig.platform.lock().log.len(), 0);
}

#[test]
fn one_at_a_time_per_owner_newest_wish_pause_first() {
    let rig = Rig::new();
    rig.platform.lock().settings.insert(owner(1), actual(1));
    rig.platform.open_gate(false);
    rig.submit(action(1, owner(1), bid(2)));
    while rig.platform.count("POST") < 1 {
        std::thread::yield_now();
    }
    rig.submit(action(2, owner(1), bid(3)));
    let ended = rig.dispatcher().submit(action(3, owner(1), bid(4)));
    let superseded =
        Control::Acknowledge { action: id(2), owner: owner(1), outcome: Outcome::Expired };
    assert_eq!(ended, Some(superseded));
    rig.submit(action(4, owner(1), pause()));
    // Another owner is not held up.
    rig.submit(action(5, owner(2), bid(8)));
    while rig.platform.count("POST") < 2 {
        std::thread::yield_now();
    }
    rig.platform.open_gate(true);
    let acks: Vec<_> = (0..4).map(|_| rig.ack().0).collect();
    let of_owner_1: Vec<_> = acks.into_iter().filter(|ack| *ack != id(5)).collect();
    assert_eq!(of_owner_1, [id(1), id(4), id(3)], "pause overtakes the bid");
    assert_eq!(rig.platform.bid(&owner(1)), Some(4));
    rig.platform.check();
}

#[test]
fn in_a_full_queue_the_oldest_wish_gives_way() {
    let options = Options { queue_max: 2, in_flight_max: 1, ..quick() };
    let rig = Rig::with(options, |platform| Arc::new(market(platform, PATIENCE)));
    rig.platform.open_gate(false);
    rig.submit(action(1, owner(1), bid(1)));
    while rig.platform.count("POST") < 1 {
        std::thread::yield_now();
    }
    rig.submit(action(2, owner(2), bid(2)));
    rig.submit(action(3, owner(3), bid(3)));
    let oldest = Control::Acknowledge { action: id(2), owner: owner(2), outcome: Outcome::Expired };
    assert_eq!(rig.dispatcher().submit(action(4, owner(4), bid(4))), Some(oldest));
    assert_eq!(rig.dispatcher().counts().overflowed, 1);
    assert_eq!(rig.dispatcher().queued(), 2);
    rig.platform.open_gate(true);
    let acks: Vec<_> = (0..3).map(|_| rig.ack()).collect();
    assert_eq!(acks, [1, 3, 4].map(|n| (id(n), applied(bid(i64::from(n))))));
}

#[test]
fn outcomes_that_are_not_read_hold_calls_back_and_are_not_lost() {
    let options = Options { outcomes_max: 1, in_flight_max: 2, ..quick() };
    let rig = Rig::with(options, |platform| Arc::new(market(platform, PATIENCE)));
    for n in 1..=20 {
        rig.submit(action(n, owner(n), bid(1)));
    }
    while rig.dispatcher().counts().applied < 2 {
        std::thread::yield_now();
    }
    assert!(rig.platform.count("POST") < 20, "the reader is waited for");
    let mut acks: Vec<_> = (0..20).map(|_| rig.ack().0).collect();
    acks.sort();
    assert_eq!(acks, (1..=20).map(id).collect::<Vec<_>>());
}

#[test]
fn what_stays_unknown_is_said_and_settled_later() {
    let rig = Rig::new();
    rig.platform.script([Fault::ErrorAfter]);
    rig.platform.lock().deaf_reads = 8;
    rig.submit(action(1, owner(1), bid(5)));
    assert_eq!(rig.ack(), (id(1), Outcome::Unknown));
    rig.submit(action(2, owner(1), bid(6)));
    assert_eq!(rig.ack(), (id(1), applied(bid(5))), "the owner waited for this");
    assert_eq!(rig.ack(), (id(2), applied(bid(6))));
    rig.platform.check();
}

#[test]
fn a_newer_wish_ends_the_retries_of_the_older() {
    let slow = Backoff { base: Duration::from_millis(50), ..quick().backoff };
    let options = Options { backoff: slow, ..quick() };
    let rig = Rig::with(options, |platform| Arc::new(market(platform, PATIENCE)));
    rig.platform.script([Fault::Throttle(1)]);
    rig.submit(action(1, owner(1), bid(5)));
    while rig.platform.count("POST") < 1 {
        std::thread::yield_now();
    }
    rig.submit(action(2, owner(1), bid(6)));
    assert_eq!(rig.ack(), (id(1), Outcome::Expired));
    assert_eq!(rig.ack(), (id(2), applied(bid(6))));
    assert_eq!(rig.platform.count("POST"), 2);
}

#[test]
fn alerts_reach_no_platform_and_rotations_change_two_creatives() {
    let rig = Rig::new();
    let alert = Setting::Alert { code: "wearing_out".into() };
    assert_eq!(rig.run(action(1, owner(1), alert.clone())), applied(alert));
    assert_eq!(rig.platform.lock().log.len(), 0);
    let creative = |name: &str| format!("{}/g/{name}", owner(1)).parse().unwrap();
    let rotate = Setting::Rotate { from: creative("a"), to: creative("b") };
    rig.platform.script([Fault::ErrorAfter]);
    assert_eq!(rig.run(action(2, owner(1), rotate.clone())), applied(rotate));
    assert_eq!((rig.platform.count("POST"), rig.platform.count("GET")), (1, 2));
}

#[test]
fn a_stop_finishes_what_waits_and_takes_nothing_new() {
    let mut rig = Rig::new();
    for n in 1..=50 {
        // Some replace an older wish that still waits; that is not the point here.
        let _superseded = rig.dispatcher().submit(action(n, owner(n % 5), bid(i64::from(n))));
    }
    assert!(rig.dispatcher.take().unwrap().stop(PATIENCE));
    let ledger = Ledger::open(rig.dir()).unwrap();
    assert_eq!(ledger.unfinished(), []);
    for n in 46..=50 {
        assert_eq!(rig.platform.bid(&owner(n % 5)), Some(i64::from(n)), "the last wish holds");
    }
    rig.platform.check();
}

#[test]
fn a_stop_gives_up_on_a_silent_platform_and_keeps_it_for_the_next_start() {
    let mut rig = Rig::new();
    rig.platform.script([Fault::SilenceAfter]);
    rig.submit(action(1, owner(1), bid(5)));
    while rig.platform.bid(&owner(1)).is_none() {
        std::thread::yield_now();
    }
    assert!(!rig.dispatcher.take().unwrap().stop(Duration::from_millis(20)));
    rig.start();
    assert_eq!(rig.ack(), (id(1), applied(bid(5))));
    assert_eq!(rig.platform.count("POST"), 1);
    let undo = Ledger::undo_plan(rig.dir(), id(1)).unwrap();
    assert_eq!(undo, None, "the pre-image was not known");
}
