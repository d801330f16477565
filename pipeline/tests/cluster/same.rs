//! Any number of processes and workers gives the same.

use std::collections::BTreeSet;

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::rig::{DECIDE_EVERY, Home, copy, stop};
use crate::support::{event, feature_rows};

/// Batches in the journal that all begin with.
const BATCHES: usize = 40;

#[test]
fn any_number_of_processes_and_workers_makes_the_same_of_one_journal() {
    // A journal without a snapshot behind its start, and no history yet: the process was killed.
    let first = Home::new();
    let lazy = ["state.snapshot_every=1h", "history.file_time=1h", "engine.workers=1"];
    let mut one = first.start(&lazy.iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>());
    let base = one.base();
    for number in 0..BATCHES {
        first.push(&base, number);
        // What one brought is evaluated before the next comes, however fast the machine is.
        std::thread::sleep(DECIDE_EVERY);
    }
    first.until_in(&base, 10 * BATCHES);
    one.kill();

    let mut made = Vec::new();
    for (count, workers) in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)] {
        let home = Home::new();
        copy(&first.path("omnify-data"), &home.path("omnify-data"));
        let mut processes = home.cluster(count, workers);
        let base = processes[0].base();
        home.until_in(&base, 10 * BATCHES);
        // New events touch what the old ones left open.
        (0..5).for_each(|number| home.push(&base, BATCHES + number));
        home.until_in(&base, 10 * BATCHES + 50);
        stop(&mut processes, count - 1);
        assert_eq!(home.replayed("1")["events_in"], 10 * BATCHES + 50);
        made.push((count, workers, home));
    }
    // The ticks of the journal are those that all have.
    let ticks = made.iter().map(|(.., home)| home.digests().into_keys().collect::<BTreeSet<_>>());
    let common = ticks.reduce(|a, b| &a & &b).unwrap();
    let last = *common.last().unwrap();
    assert!(common.len() > BATCHES / 2, "{} ticks in common", common.len());
    let of = |home: &Home| (home.digests()[&last], feature_rows(&home.history(), last));
    let (digest, rows) = of(&made[0].2);
    assert!(rows.len() > BATCHES, "{} rows", rows.len());
    for (count, workers, home) in &made[1..] {
        let (other_digest, other_rows) = of(home);
        assert_eq!(digest, other_digest, "decisions of {count} x {workers}");
        assert_eq!(rows, other_rows, "features of {count} x {workers}");
    }
}

#[test]
fn a_snapshot_of_any_number_is_taken_up_by_any_other() {
    let home = Home::new();
    let mut sent = 0;
    for (count, workers) in [(2, 2), (1, 1), (3, 1), (1, 2), (2, 1)] {
        let mut processes = home.cluster(count, workers);
        let base = processes[0].base();
        home.until_in(&base, 10 * sent);
        for _ in 0..10 {
            home.push(&base, sent);
            sent += 1;
        }
        home.until_in(&base, 10 * sent);
        // Whoever is asked to stop, all stop.
        stop(&mut processes, sent / 10 % count);
    }
    let again = home.replayed("1");
    assert_eq!((&again["events_in"], &again["events_featured"]), (&json!(500), &json!(500)));
    assert_eq!(home.replayed("2")["digest"], again["digest"]);
}

#[test]
fn a_follower_says_how_it_is_and_sends_everything_else_to_the_leader() {
    let home = Home::new();
    let (mut leader, mut follower) = home.both();
    let (base, other) = (leader.base(), follower.base());
    follower.until_said("workers are lent");
    assert_eq!(home.ask("GET", &format!("{other}/healthz"), "").0, StatusCode::OK);
    let (status, ready) = home.ask("GET", &format!("{other}/readyz"), "");
    assert_eq!(status, StatusCode::OK, "{ready}");
    let at = base.strip_prefix("http://").unwrap();
    assert_eq!(serde_json::from_str::<Value>(&ready).unwrap()["lent_to"], at);
    assert_eq!(home.ask("GET", &format!("{other}/metrics"), "").0, StatusCode::OK);
    let row = event(0, 0).to_string();
    for (method, path) in [("POST", "/v1/events"), ("GET", "/v1/status"), ("GET", "/")] {
        let (status, refusal) = home.ask(method, &format!("{other}{path}"), &row);
        assert_eq!(status, StatusCode::MISDIRECTED_REQUEST, "{refusal}");
        let refusal: Value = serde_json::from_str(&refusal).unwrap();
        assert_eq!(refusal["error"]["code"], "not_the_leader");
        assert_eq!(refusal["error"]["hint"], format!("send it to {at}"));
    }
    // What was refused has left no trace; where it said, it is taken.
    home.push(&base, 0);
    home.until_in(&base, 10);
    stop(&mut [leader, follower], 0);
}
