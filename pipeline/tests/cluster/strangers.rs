//! Who is let in, and who is not.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::rig::{Home, stop};

#[test]
fn a_process_with_another_configuration_is_refused() {
    let home = Home::new();
    let mut leader = home.process(2, 0, &[]);
    for (set, text) in [
        ("features.prior_ctr=0.03", "configuration differs"),
        ("history.enabled=false", "configuration differs"),
        ("cluster.lost_after=21s", "configuration differs"),
        ("engine.workers=1", "it has 1 workers, the leader 2"),
    ] {
        let mut other = home.process(2, 1, &["--set", set]);
        assert_eq!(other.code(), Some(2), "{}", other.said());
        other.until_said_after_end(text);
        leader.until_said(text);
    }
    // One that fits is still welcome.
    let follower = home.process(2, 1, &[]);
    let base = leader.base();
    home.push(&base, 0);
    home.until_in(&base, 10);
    stop(&mut [leader, follower], 0);
}

#[test]
fn who_does_not_know_the_secret_is_not_let_in_and_holds_nobody_up() {
    let home = Home::new();
    let mut leader = home.process(2, 0, &[]);
    leader.until_said("waiting for the other processes");
    // One says nothing, one talks nonsense.
    let control = ("127.0.0.1", home.port(1));
    let _silent: Vec<_> = (0..8).map(|_| TcpStream::connect(control).unwrap()).collect();
    let mut noise = TcpStream::connect(control).unwrap();
    noise.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(noise.read_to_end(&mut Vec::new()).unwrap_or(0), 0, "it is told nothing");
    let place = home.place(2, 1, 2);
    let place: Vec<&str> = place.iter().map(String::as_str).collect();
    let mut stranger = home.start_with_secret("a secret of somebody else", &place);
    assert_eq!(stranger.code(), Some(2), "{}", stranger.said());
    stranger.until_said_after_end("does not prove that it knows the cluster's secret");
    let mut short = home.start_with_secret("short", &place);
    assert_eq!(short.code(), Some(2), "{}", short.said());
    short.until_said_after_end("OMNIFY_CLUSTER_SECRET holds 5 bytes");
    let follower = home.start(&place);
    let base = leader.base();
    home.push(&base, 0);
    home.until_in(&base, 10);
    stop(&mut [leader, follower], 1);
}

#[test]
fn a_secret_is_needed_beyond_this_machine() {
    let home = Home::new();
    std::fs::write(home.path("hosts"), "10.255.255.1:7000\n127.0.0.1:7000\n").unwrap();
    let place = ["--processes", "2", "--process", "1", "--hosts", "hosts"];
    let mut other = home.start(&[&place[..], &["--set", "cluster.secret_env="]].concat());
    assert_eq!(other.code(), Some(2), "{}", other.said());
    other.until_said_after_end("10.255.255.1:7000, which is not this machine only");
}
