//! `omnify run` with a copy on an object store, and its local disk lost: killed at once, its folder
//! deleted, started on an empty one. Over a folder, and over a real server where OMNIFY_S3_ENDPOINT names
//! one (deploy/s3/run.sh).
#![cfg(unix)]

mod objects_support;
mod support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use objects_support::{
    Platform, addresses, answer, command, home, live_where_files_end_at, lose, until_mirrored,
    until_problem,
};
use omnify_config::{Checked, Layers};
use omnify_pipeline::clock::Clock;
use omnify_pipeline::durable::{MirrorOptions, restore_if_empty};
use omnify_pipeline::live::{HistoryAt, Live, Setup};
use omnify_sinks::objects::Remote;
use omnify_sinks::objects::faults::{FaultyStore, Rates};
use reqwest::StatusCode;
use serde_json::json;
use support::{Caller, feature_rows, json_of, until};
use tokio::runtime::Runtime;

#[test]
fn real_s3_what_was_acknowledged_survives_the_loss_of_the_disk() {
    for address in addresses("lost") {
        let platform = Platform::start();
        let sets = ["state.acknowledge=mirror".to_owned(), format!("state.remote={address}")];
        let home = home(&platform, &sets);
        let mut sent = 0;
        for lives in 0..4 {
            if lives == 2 {
                // A restore that was interrupted left half of a journal.
                let state = home.path("omnify-data/state");
                fs::create_dir_all(state.join("journal")).unwrap();
                let half = format!("journal-{:020}.omj", 5);
                fs::write(state.join("journal").join(half), "half").unwrap();
                let mark = json!({"id": "x", "restoring": true, "in_doubt": false,
                    "in_doubt_until": null});
                fs::write(state.join("mirror.json"), mark.to_string()).unwrap();
            }
            let workers = format!("engine.workers={}", 1 + lives % 2);
            let mut life = home.live(&["--set", &workers]);
            let base = life.base();
            if sent > 0 {
                home.until_in(&base, 10 * sent);
                // What was acknowledged is not taken again.
                home.push(&base, sent - 1);
            }
            (sent..sent + 25).for_each(|number| home.push(&base, number));
            sent += 25;
            lose(&home, &mut life);
        }
        let mut life = home.live(&[]);
        home.until_in(&life.base(), 10 * sent);
        life.stop();

        // The record replays to itself: decisions, and every closed row, on any number of workers.
        let history = home.history();
        // How many rows there are depends on how many minutes ended meanwhile, if any.
        let rows = feature_rows(&history, u64::MAX);
        for (workers, place) in [("1", history.display().to_string()), ("2", address.clone())] {
            let folder = home.path(&format!("again-{workers}"));
            let out = folder.to_str().unwrap();
            let replay = ["replay", &place, "--verify", "--workers", workers, "--out", out];
            let again = answer(&home, &replay);
            assert_eq!(again["identical"], true, "{again}");
            assert_eq!(again["events_in"], 10 * sent, "{again}");
            assert_eq!(feature_rows(&folder, u64::MAX), rows);
        }
        let (changed, twice) = platform.changed();
        assert!(changed > 0, "there were no actions");
        assert_eq!(twice, 0, "an action took effect twice");

        // Whatever reads a history or a journal reads the copy.
        let listed = answer(&home, &["history", "ls", &address]);
        assert_eq!(listed["tables"]["events"]["rows"], 10 * sent, "{listed}");
        let run_name = history.file_name().unwrap().to_str().unwrap();
        let verified =
            answer(&home, &["history", "verify", &format!("{address}/history/{run_name}")]);
        assert_eq!(verified["intact"], true, "{verified}");
        let out = home.path("exported");
        let export =
            ["history", "export", &address, "--table", "events", "--format", "csv", "--to"];
        let exported = answer(&home, &[&export[..], &[out.to_str().unwrap()]].concat());
        assert_eq!(exported["rows"]["events"], 10 * sent, "{exported}");
        let inspected = answer(&home, &["journal", "inspect", &address]);
        assert_eq!(inspected["damaged"], 0, "{inspected}");
        assert!(inspected["ticks"].as_u64() > Some(0), "{inspected}");
        let compact = command(&home, &["history", "compact", &address]).output().unwrap();
        assert_eq!(compact.status.code(), Some(2));
        let learn = ["learn", "--history", &address, "--out", "model.json"];
        let learned = command(&home, &learn).output().unwrap();
        let said = String::from_utf8_lossy(&learned.stderr);
        assert!(!said.contains("object store"), "{said}");
    }
}

/// A disk that takes nothing more ends the engine, also while actions wait for the copy of what is not
/// on it; what was acknowledged is there.
#[test]
fn a_disk_that_refuses_ends_a_strict_engine() {
    let address = addresses("refused").swap_remove(0);
    let platform = Platform::start();
    let sets = [
        "state.acknowledge=mirror".to_owned(),
        format!("state.remote={address}"),
        "state.snapshot_every=1h".to_owned(),
        "state.journal_segment=1MiB".to_owned(),
        "state.disk_patience=1s".to_owned(),
    ];
    let home = home(&platform, &sets);
    // Only the journal grows so far.
    let mut life = live_where_files_end_at(&home, 128);
    let (base, mut sent) = (life.base(), 0);
    while let Some((StatusCode::ACCEPTED, _)) = home.try_push(&base, sent) {
        sent += 1;
    }
    assert!(platform.changed().0 > 0, "there were no actions");
    assert_eq!(life.code(), Some(4), "{}", life.said());
    life.until_said_after_end("the journal cannot be written");
    fs::remove_dir_all(home.path("omnify-data")).unwrap();
    let mut life = home.live(&[]);
    life.base();
    life.stop();
    let again = answer(&home, &["replay", &address, "--verify", "--workers", "2"]);
    assert_eq!(again["identical"], true, "{again}");
    // What was on its way may have got there.
    assert!(again["events_in"].as_u64() >= Some(10 * sent as u64), "{sent} batches: {again}");
}

/// With `acknowledge = "disk"` the last moment may be lost, but what is there fits together, and an
/// action that may have left is looked up before anything is sent.
#[test]
fn real_s3_a_copy_that_lags_is_whole_and_acts_on_nothing_twice() {
    for address in addresses("lags") {
        let platform = Platform::start();
        let sets = ["state.mirror_every=50ms".to_owned(), format!("state.remote={address}")];
        let home = home(&platform, &sets);
        let (mut sent, mut known) = (0, 0);
        for lives in 0..4 {
            let mut life = home.live(&[]);
            let base = life.base();
            (sent..sent + 25).for_each(|number| home.push(&base, number));
            sent += 25;
            // What a copy had once it has for ever.
            if lives % 2 == 0 {
                until_mirrored(&home, &base);
                known = home.status(&base)["counters"]["events_in"].as_u64().unwrap();
            }
            lose(&home, &mut life);
        }
        let mut life = home.live(&[]);
        life.base();
        life.stop();
        let again = answer(&home, &["replay", &address, "--verify", "--workers", "2"]);
        assert_eq!(again["identical"], true, "{again}");
        assert_eq!(again["conserved"], true, "{again}");
        let found = again["events_in"].as_u64().unwrap();
        assert!(known > 0 && found >= known && found.is_multiple_of(10), "{known} {again}");
        assert_eq!(platform.changed().1, 0, "an action took effect twice");
    }
}

#[test]
fn real_s3_an_engine_that_was_overtaken_stops_and_stays_stopped() {
    for address in addresses("fenced") {
        let platform = Platform::start();
        let sets = [format!("state.remote={address}"), "state.mirror_every=50ms".to_owned()];
        let (first, second) = (home(&platform, &sets), home(&platform, &sets));
        let mut old = first.live(&[]);
        let base = old.base();
        (0..5).for_each(|number| first.push(&base, number));
        until_mirrored(&first, &base);
        // An empty folder takes the copy over, with what was in it.
        let mut new = second.live(&[]);
        let base = new.base();
        second.until_in(&base, 50);
        assert_eq!(old.code(), Some(7), "{}", old.said());
        old.until_said_after_end("has taken over");
        (5..10).for_each(|number| second.push(&base, number));
        // The folder that was overtaken is refused, and the one that has the copy is not disturbed.
        let mut refused = first.live(&["--for", "1s"]);
        assert_eq!(refused.code(), Some(7), "{}", refused.said());
        refused.until_said_after_end("is the copy of another state folder");
        (10..15).for_each(|number| second.push(&base, number));
        second.until_in(&base, 150);
        new.stop();
    }
}

#[test]
fn real_s3_a_server_that_is_down_for_a_while_is_caught_up() {
    let Ok(dir) = std::env::var("OMNIFY_S3_DIR") else {
        eprintln!("skipped: OMNIFY_S3_DIR is not set (deploy/s3/run.sh)");
        return;
    };
    let server = |what: &[&str]| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/s3/run.sh");
        let done = Command::new(script).args(what).args(["--dir", &dir]).status().unwrap();
        assert!(done.success(), "{what:?}");
    };
    let port = std::env::var("OMNIFY_S3_ENDPOINT").unwrap();
    let port = port.rsplit(':').next().unwrap().to_owned();
    let address = addresses("down").pop().unwrap();
    let platform = Platform::start();
    let sets = [
        format!("state.remote={address}"),
        "state.mirror_every=50ms".to_owned(),
        "object_store.timeout=1s".to_owned(),
    ];
    let home = home(&platform, &sets);
    let mut life = home.live(&[]);
    let base = life.base();
    (0..10).for_each(|number| home.push(&base, number));
    server(&["kill"]);
    (10..60).for_each(|number| home.push(&base, number));
    until_problem(&home, &base, "mirror_behind", true);
    server(&["start", "--port", &port]);
    until_problem(&home, &base, "mirror_behind", false);
    (60..70).for_each(|number| home.push(&base, number));
    until_mirrored(&home, &base);
    lose(&home, &mut life);
    let mut life = home.live(&[]);
    home.until_in(&life.base(), 700);
    life.stop();
}

/// A live engine in this process, copied to `store`.
fn live(dir: &Path, store: Arc<dyn ObjectStore>, strict: bool, backlog_bytes_max: u64) -> Live {
    let layers = Layers::new().text("test", objects_support::CONFIG).unwrap();
    let config: Checked =
        layers.set("executor.kind=dry_run").unwrap().build().unwrap().validate().unwrap();
    let (state, histories) = (dir.join("state"), dir.join("history"));
    let remote = Remote::new(store, "copy", "memory");
    let runtime = Runtime::new().unwrap();
    restore_if_empty(&remote, &state, Some(&histories), runtime.handle()).unwrap();
    let every = Duration::from_millis(20);
    Live::start(Setup {
        config: Arc::new(config),
        clock: Clock::System,
        speed: 1,
        listener: Some(TcpListener::bind("127.0.0.1:0").unwrap()),
        history: Some(HistoryAt::Below(histories)),
        ledger: state.join("ledger"),
        state: Some(state),
        mirror: Some(MirrorOptions { remote, every, strict, backlog_bytes_max, snapshots_kept: 2 }),
        controls: Vec::new(),
    })
    .unwrap()
}

/// Stops it; what it took in.
fn events_in(live: Live) -> u64 {
    let counters = live.stop().unwrap().counters;
    assert!(counters.conservation().holds, "{counters:?}");
    counters.events_in
}

fn base(live: &Live) -> String {
    format!("http://{}", live.address().unwrap())
}

/// The store as it was at many moments, with every fault it knows: each time an engine that starts
/// from there has what was acknowledged by then, whole, and its history replays to itself.
#[test]
fn every_moment_of_a_strict_copy_holds_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let caller = Caller::new();
    let inner = Arc::new(InMemory::new());
    let rates = Rates { refused: 60, reply_lost: 60, slow: 200, unlisted: 300 };
    let faulty = Arc::new(FaultyStore::new(inner.clone(), rates, 11));
    let engine = live(&dir.path().join("first"), faulty.clone(), true, 1 << 30);
    let mut moments = Vec::new();
    for number in 0..120 {
        caller.push(&base(&engine), number);
        if number % 20 == 13 {
            moments.push((number + 1, inner.fork()));
        }
    }
    // Each push is written at least once, and every eighth write meets a fault.
    assert!(faulty.failures() > 5, "{}", faulty.failures());
    engine.stop().unwrap();
    for (at, (pushed, store)) in moments.into_iter().enumerate() {
        let place = dir.path().join(format!("moment-{at}"));
        let engine = live(&place, Arc::new(store), true, 1 << 30);
        caller.push(&base(&engine), 1_000);
        let history = engine.history().unwrap().to_owned();
        let found = events_in(engine);
        assert!(
            found.is_multiple_of(10) && found > 10 * pushed as u64,
            "{pushed} batches: {found}"
        );
        let mut replay = Command::new(support::OMNIFY);
        let again = json_of(replay.arg("replay").arg(&history).args(["--verify", "--json"]));
        assert_eq!(again["identical"], true, "{again}");
        assert_eq!(again["events_in"], found, "{again}");
    }
}

/// Beyond the bound the sources wait; nothing is lost, and it goes on by itself.
#[test]
fn a_store_that_is_down_holds_the_sources_at_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let caller = Caller::new();
    let faulty = Arc::new(FaultyStore::new(Arc::new(InMemory::new()), Rates::default(), 3));
    let engine = live(&dir.path().join("old"), faulty.clone(), false, 16 << 10);
    faulty.down(true);
    let (accepted, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (at, count, stop) = (base(&engine), accepted.clone(), enough.clone());
    let pusher = std::thread::spawn(move || {
        let caller = Caller::new();
        for number in 0.. {
            if stop.load(SeqCst) {
                return number as u64;
            }
            // Held too long it is told to come again, which counts it once.
            caller.push(&at, number);
            count.fetch_add(1, SeqCst);
        }
        unreachable!("the range has no end")
    });
    let shown = |code: &str| caller.shows(&base(&engine), code);
    until(|| shown("mirror_full") && shown("mirror_behind"), || "it is not said".to_owned());
    let held = accepted.load(SeqCst);
    assert!(held > 0);
    faulty.down(false);
    let goes_on = || accepted.load(SeqCst) > held + 1 && !shown("mirror_full");
    until(goes_on, || "it does not go on".to_owned());
    enough.store(true, SeqCst);
    let pushed = pusher.join().unwrap();
    until_problem(&caller, &base(&engine), "mirror_behind", false);
    engine.stop().unwrap();
    // All of it is in the copy.
    let engine = live(&dir.path().join("new"), faulty, false, 1 << 30);
    assert_eq!(events_in(engine), 10 * pushed);
}

/// With the store down a stop does not wait for ever, and strict mode tells nobody what is not copied.
#[test]
fn a_stop_without_the_store_is_bounded_and_acknowledges_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let caller = Caller::new();
    let faulty = Arc::new(FaultyStore::new(Arc::new(InMemory::new()), Rates::default(), 5));
    let engine = live(&dir.path().join("a"), faulty.clone(), true, 1 << 30);
    caller.push(&base(&engine), 0);
    faulty.down(true);
    let at = base(&engine);
    let pushed = std::thread::spawn(move || Caller::new().try_push(&at, 1));
    until(|| faulty.failures() > 3, || "the store is not asked".to_owned());
    engine.stop().unwrap();
    let pushed = pushed.join().unwrap();
    assert!(!matches!(pushed, Some((StatusCode::ACCEPTED, _))), "{pushed:?}");
    // The local folder has it, and the copy gets it from there.
    faulty.down(false);
    let engine = live(&dir.path().join("a"), faulty.clone(), true, 1 << 30);
    assert_eq!(events_in(engine), 20);
    let engine = live(&dir.path().join("b"), faulty, true, 1 << 30);
    assert_eq!(events_in(engine), 20);
}
