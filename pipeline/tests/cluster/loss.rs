//! A process that is killed, stopped or cut off.

use super::rig::{Home, stop};

#[test]
fn a_lost_process_ends_all_and_what_was_acknowledged_is_there() {
    let home = Home::new();
    let mut sent = 0;
    for life in 0..4 {
        let (mut leader, follower) = home.both();
        let base = leader.base();
        home.until_in(&base, 10 * sent);
        for _ in 0..10 + 5 * life {
            home.push(&base, sent);
            sent += 1;
        }
        let (mut killed, mut left, which) =
            if life % 2 == 0 { (follower, leader, 1) } else { (leader, follower, 0) };
        killed.kill();
        assert_eq!(left.code(), Some(6), "{}", left.said());
        let text = format!("process {which} of the cluster is lost");
        left.until_said_after_end(&text);
    }
    let (mut leader, follower) = home.both();
    home.until_in(&leader.base(), 10 * sent);
    stop(&mut [leader, follower], 0);
    assert_eq!(home.replayed("1")["events_in"], 10 * sent);
}

/// A stopped process keeps its connections open and answers nothing, as one behind a cut cable.
#[test]
fn a_process_that_is_silent_is_lost_after_the_stated_time() {
    let home = Home::with("[cluster]\nlost_after = \"5s\"\n");
    for which in [1, 0] {
        let (mut leader, follower) = home.both();
        home.push(&leader.base(), which);
        let (mut silent, mut left) =
            if which == 1 { (follower, leader) } else { (leader, follower) };
        silent.signal("STOP");
        assert_eq!(left.code(), Some(6), "{}", left.said());
        left.until_said_after_end(&format!("process {which} of the cluster is lost"));
        left.until_said_after_end("no sign of life");
        // One that comes back finds itself alone, and does not go on.
        silent.signal("CONT");
        assert_eq!(silent.code(), Some(6), "{}", silent.said());
    }
    let (mut leader, follower) = home.both();
    home.until_in(&leader.base(), 20);
    stop(&mut [leader, follower], 1);
    assert_eq!(home.replayed("2")["events_in"], 20);
}
