//! Every harness at a small size, so that none can rot. Nothing here is timed.

use omnify_bench::{churn, generate, latency, limit, replay, restate};

fn small() -> generate::Workload {
    generate::Workload { rows: 60_000, creatives: 300, hours: 3, ..generate::Workload::default() }
}

fn measured(workers: usize, sets: &[&str]) -> serde_json::Value {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("events.parquet");
    generate::write(&small(), &input).unwrap();
    let sets = sets.iter().map(|set| (*set).to_owned()).collect();
    replay::run(&replay::Options { input, mapping: "generic".into(), workers, sets, out: None })
        .unwrap()
}

#[test]
fn the_engine_and_the_plain_program_close_the_same_rows() {
    let one_window = [
        r#"features.windows=["1h/1m"]"#,
        r#"features.levels=["creative"]"#,
        "decision.enabled=false",
    ];
    let one = measured(1, &one_window);
    assert_eq!(one["events"], 60_000);
    assert_eq!(one["conserved"], true);
    // The plain program stops at the newest event; the engine also closes the pane that holds it.
    let (engine, plain) = (&one["feature_rows"], &one["limit_feature_rows"]);
    let last_pane = engine.as_u64().unwrap() - plain.as_u64().unwrap();
    assert!((1..=300).contains(&last_pane), "engine {engine}, plain {plain}");
    assert_eq!(measured(2, &one_window)["feature_rows"], *engine);
}

#[test]
fn workers_do_not_change_what_is_decided() {
    let goal = r#"goals=[{name="g",applies_to="*",objective="target_cpc",target="0.10",daily_budget="1000",currency="USD",pricing="cpm",bid_floor="0.01",bid_cap="50"}]"#;
    let (one, two) = (measured(1, &[goal]), measured(2, &[goal]));
    assert!(one["decisions"].as_u64().unwrap() > 0);
    assert_eq!(one["digest"], two["digest"]);
    assert_eq!(one["feature_rows"], two["feature_rows"]);
}

#[test]
fn the_workload_is_the_same_for_the_same_seed() {
    let sum = |workload| -> i64 {
        let rows = generate::rows(&workload);
        rows.map(|row| row.ts_us ^ row.user as i64 ^ row.cost_micros).fold(0, i64::wrapping_add)
    };
    assert_eq!(sum(small()), sum(small()));
    assert_ne!(sum(small()), sum(generate::Workload { seed: 8, ..small() }));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.parquet");
    generate::write(&small(), &path).unwrap();
    assert_eq!(limit::run(&path, true).unwrap().rows, 60_000);
}

#[test]
fn the_latency_harness_decides_and_conserves() {
    let options = latency::Options {
        rate: 2_000,
        seconds: 1,
        warm_up: 0,
        creatives: 100,
        sets: Vec::new(),
        history: None,
        state: None,
    };
    let report = latency::run(&options).unwrap();
    assert_eq!(report["events"], 2_000);
    assert_eq!(report["conserved"], true);
    assert!(report["decisions_per_s"].as_f64().unwrap() > 0.0);
    assert!(report["decision_latency_ms"]["max"].as_f64().unwrap() > 0.0);
}

#[test]
fn the_churn_harness_runs_through_its_days() {
    let dir = tempfile::tempdir().unwrap();
    let options = churn::Options {
        time: std::time::Duration::ZERO,
        days: 4,
        born_per_day: 20,
        life_days: 2,
        events_per_day: 24,
        dir: dir.path().join("new"),
        sets: Vec::new(),
    };
    let report = churn::run(&options).unwrap();
    // 20 creatives on the first day, 40 on the others, an event an hour each.
    assert_eq!(report["events"], (20 + 3 * 40) * 24);
    assert_eq!(report["conserved"], true);
    // Creatives, and an ad group and a campaign for ten of them each, below one account.
    assert_eq!(report["entities_ever"], 4 * (20 + 2 + 2) + 2);
}

#[test]
fn a_restated_account_shows_and_its_features_are_those_of_the_history() {
    let options = restate::Options {
        creatives: 20,
        days: 28,
        percent: 5,
        rate: 2_000,
        around: std::time::Duration::from_millis(300),
        dir: None,
    };
    let report = restate::run(&options).unwrap();
    assert!(report["report_rows_restated"].as_u64().unwrap() > 20 * 24, "{report}");
    assert!(report["rows_compared"].as_u64().unwrap() > 1_000, "{report}");
    assert_eq!(report["rows_differing"], 0, "{report}");
    assert_eq!(report["conserved"], true, "{report}");
    assert_eq!(report["replay_identical"], true, "{report}");
    assert!(report["actions_with"].as_u64().unwrap() > 0, "{report}");
}
