//! `omnify demo` on a small market, and what its history is good for.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const OMNIFY: &str = env!("CARGO_BIN_EXE_omnify");

fn run(arguments: &[&str]) -> Output {
    Command::new(OMNIFY).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn json_of(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr))
    })
}

fn demo(dir: &Path, more: &[&str]) -> Output {
    let mut arguments = vec!["demo", "--for", "2s", "--seed", "7", "--no-open", "--json"];
    arguments.extend(["--out", dir.to_str().unwrap(), "--set", "http.listen=127.0.0.1:0"]);
    arguments.extend(["--set", "demo.tenants=1", "--set", "demo.campaigns=4"]);
    arguments.extend(["--set", "demo.impressions_per_day=100000", "--set", "demo.warm_days=2"]);
    arguments.extend(["--set", "demo.speed=2h"]);
    arguments.extend(more);
    run(&arguments)
}

fn replay(dir: &Path, workers: &str) -> Output {
    run(&["replay", dir.to_str().unwrap(), "--verify", "--json", "--workers", workers])
}

#[test]
fn a_demo_acts_adds_up_and_is_replayed_exactly() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("demo");
    let output = demo(&dir, &[]);
    let answer = json_of(&output);
    assert_eq!(output.status.code(), Some(0), "{answer}");
    let number = |key: &str| answer[key].as_u64().unwrap_or_else(|| panic!("{key}: {answer}"));
    assert!(number("events_in") > 10_000, "{answer}");
    let out = number("events_featured") + number("events_held") + number("dead_letters");
    assert_eq!(number("events_in"), out);
    assert!(number("decisions") > 100 && number("actions") > 0, "{answer}");
    assert_eq!(answer["violations"], serde_json::json!({}));
    assert_eq!(answer["history"], dir.to_str().unwrap());
    for quantile in ["p50", "p99", "p999", "max"] {
        assert!(answer["latency_ms"][quantile].as_f64().unwrap() > 0.0, "{answer}");
    }
    assert!(answer["uplift"]["all"]["with"]["impressions"].as_u64().unwrap() > 0, "{answer}");
    assert!(answer["simulated_hours"].as_f64().unwrap() > 0.5, "{answer}");
    // Nothing left while only watching: every action was answered by the platform.
    let outcomes = &answer["outcomes"];
    assert!(outcomes["applied"].as_u64().unwrap() > 0, "{answer}");

    for workers in ["1", "2", "4"] {
        let again = json_of(&replay(&dir, workers));
        assert_eq!(again["identical"], true, "{workers} workers: {again}");
        assert_eq!(again["digest"], answer["digest"], "{workers} workers");
    }

    let changed = flip_a_byte_of_an_event(&dir);
    let output = replay(&dir, "1");
    let said = json_of(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said["identical"], false);
    assert!(said["tick"].is_u64(), "{} was changed: {said}", changed.display());
    assert!(said["entity"].is_string(), "{} was changed: {said}", changed.display());

    // The next demo replaces it; what no demo wrote is left alone.
    std::fs::write(dir.join("notes.txt"), "mine").unwrap();
    let output = demo(&dir, &[]);
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("notes.txt"));
    assert!(dir.join("manifest.json").exists());
}

#[test]
fn a_market_that_cannot_be_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("demo");
    let output = demo(&dir, &["--set", "demo.tenants=1000000"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("[demo]") && said.contains("campaigns_per_tenant"), "{said}");
    assert!(!dir.exists());
}

/// Changes one byte in the middle of the largest file of events.
fn flip_a_byte_of_an_event(dir: &Path) -> PathBuf {
    let mut files = Vec::new();
    let mut folders = vec![dir.join("table=events")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push((std::fs::metadata(&path).unwrap().len(), path));
            }
        }
    }
    let (_, path) = files.into_iter().max().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    path
}
