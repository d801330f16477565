//! `omnify run` killed at once, again and again: what it had acknowledged is there afterwards, once.
#![cfg(unix)]

mod support;

use support::{CONFIG, Home};

#[test]
fn what_was_acknowledged_survives_kills_and_counts_once() {
    let home = Home::new(CONFIG);
    let mut sent = 0;
    for life_number in 0..6 {
        let workers = format!("engine.workers={}", 1 + life_number % 2);
        let mut life = home.live(&["--set", &workers]);
        let base = life.base();
        // What was acknowledged before is there, and is not taken again.
        if sent > 0 {
            home.until_in(&base, 10 * sent);
            home.push(&base, sent - 1);
        }
        for _ in 0..10 + 7 * life_number {
            home.push(&base, sent);
            sent += 1;
        }
        life.kill();
    }
    let mut life = home.live(&[]);
    home.until_in(&life.base(), 10 * sent);
    life.stop();

    let one = home.replayed("1");
    assert_eq!(one["events_in"], 10 * sent);
    assert_eq!(home.replayed("2")["digest"], one["digest"]);
}
