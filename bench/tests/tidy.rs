//! What the compiler does not check: layers, the one clock, file sizes, and that the documents and
//! `deploy/` speak of things that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use omnify_sinks::telemetry::names::{Kind, Metric};

/// Longest file of code, in lines.
const LINES_MAX: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file of the repository with one of these extensions, as (path from the root, text).
fn files(extensions: &[&str]) -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy();
            let skipped = ["target", ".git", "omnify-data", "node_modules"];
            if path.is_dir() && !skipped.contains(&&*name) {
                walk(&path, found);
            } else if path.is_file() {
                found.push(path.clone());
            }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    walk(&root, &mut found);
    found.sort();
    let wanted = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extensions.iter().any(|e| extension == *e))
    };
    found
        .into_iter()
        .filter(wanted)
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
            let text = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            (name, text.unwrap())
        })
        .collect()
}

fn complain(problems: &[String], rule: &str) {
    assert!(problems.is_empty(), "{rule}\n  {}", problems.join("\n  "));
}

/// Each crate's folder and the crates of this workspace that it may depend on.
const LAYERS: [(&str, &[&str]); 7] = [
    ("config", &[]),
    ("operators", &[]),
    ("decision", &["omnify-operators"]),
    ("sinks", &["omnify-operators", "omnify-decision"]),
    ("bench/market", &["omnify-operators"]),
    (
        "pipeline",
        &["omnify-config", "omnify-operators", "omnify-decision", "omnify-sinks", "omnify-market"],
    ),
    (
        "bench",
        &[
            "omnify-config",
            "omnify-operators",
            "omnify-decision",
            "omnify-sinks",
            "omnify-pipeline",
            "omnify-market",
        ],
    ),
];

/// What the pure crates must not reach for.
const IMPURE: [&str; 6] = ["tokio", "rdkafka", "parquet", "axum", "reqwest", "tracing"];

fn manifest(folder: &str) -> toml::Table {
    let path = root().join(folder).join("Cargo.toml");
    fs::read_to_string(path).unwrap().parse().unwrap()
}

fn dependencies(manifest: &toml::Table, section: &str) -> Vec<String> {
    let table = manifest.get(section).and_then(toml::Value::as_table);
    table.map(|table| table.keys().cloned().collect()).unwrap_or_default()
}

#[test]
fn crates_depend_downwards_only() {
    let workspace = manifest(".");
    let members: BTreeSet<_> = workspace["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member.as_str().unwrap().to_owned())
        .collect();
    let known: BTreeSet<_> = LAYERS.iter().map(|(folder, _)| (*folder).to_owned()).collect();
    assert_eq!(members, known, "a new crate needs its place in LAYERS");
    let mut problems = Vec::new();
    for (folder, allowed) in LAYERS {
        let manifest = manifest(folder);
        for section in ["dependencies", "build-dependencies", "dev-dependencies"] {
            for dependency in dependencies(&manifest, section) {
                if dependency.starts_with("omnify-") && !allowed.contains(&&*dependency) {
                    problems.push(format!("{folder}: [{section}] {dependency}"));
                }
                let pure = ["config", "operators", "decision"].contains(&folder);
                if pure && section == "dependencies" && IMPURE.contains(&&*dependency) {
                    problems.push(format!("{folder} is pure, yet depends on {dependency}"));
                }
            }
        }
    }
    complain(
        &problems,
        "operators <- decision <- sinks <- pipeline <- bench, config for the last two",
    );
}

#[test]
fn pure_crates_see_the_model_only() {
    let mut problems = Vec::new();
    for (name, text) in files(&["rs"]) {
        let allowed: &[&str] = if name.starts_with("decision/src/") {
            &["model", "invariant"]
        } else if name.starts_with("bench/market/src/") {
            &["model"]
        } else {
            continue;
        };
        for (number, line) in (1..).zip(text.lines()) {
            for (at, crate_name) in line.match_indices("omnify_operators::") {
                let rest = &line[at + crate_name.len()..];
                if !allowed.iter().any(|module| rest.starts_with(module)) {
                    problems.push(format!("{name}:{number}: {}", line.trim()));
                }
            }
        }
    }
    complain(
        &problems,
        "decision imports operators::{model, invariant} only, the market model only",
    );
}

/// Who may look at a clock: the process's clock, and what measures or simulates from outside.
fn may_read_the_clock(name: &str) -> bool {
    name == "pipeline/src/clock.rs"
        || (name.starts_with("bench/") && !name.starts_with("bench/market/src/"))
        || name.contains("/tests/")
        || name.contains("/examples/")
        || name.ends_with("/tests.rs")
}

#[test]
fn the_clock_is_read_in_one_place() {
    let clocks = ["SystemTime::now", "Instant::now", "Utc::now", "Timestamp::now", "Zoned::now"];
    let mut problems = Vec::new();
    for (name, text) in files(&["rs"]) {
        if may_read_the_clock(&name) {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            let code = line.split("//").next().unwrap_or_default();
            if clocks.iter().any(|clock| code.contains(clock)) {
                problems.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    complain(&problems, "time is an argument; only pipeline/src/clock.rs asks for it");
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    // Written in halves, so that this file does not name them.
    let places = [("/wo", "rk/"), ("/ro", "ot/"), ("/ho", "me/"), ("/t", "mp/"), ("C:", "\\Users")]
        .map(|(a, b)| format!("{a}{b}"));
    let mut problems = Vec::new();
    for (name, text) in files(&["rs", "toml", "md", "sh", "yaml", "yml", "json", "js", "html"]) {
        for (number, line) in (1..).zip(text.lines()) {
            if places.iter().any(|place| line.contains(place)) {
                problems.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    complain(&problems, "paths are relative to the repository or come from the environment");
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut problems = Vec::new();
    for (name, text) in files(&["rs"]) {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            problems.push(format!("{name} has {lines} lines: split it by purpose"));
        }
        if !text.starts_with("//!") && !name.ends_with("tests.rs") && !name.contains("/tests/") {
            problems.push(format!("{name} does not begin with what it is (//!)"));
        }
    }
    complain(&problems, &format!("at most {LINES_MAX} lines a file, with a module doc"));
}

/// Words in backticks that are meant as paths.
fn paths_in(text: &str) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter(|word| word.contains('/') || word.ends_with(".rs") || word.ends_with(".toml"))
        .filter(|word| !word.contains(['*', '<', ' ', '{', ':', '$', '=', '\n']))
        .filter(|word| !word.starts_with('/') && !word.starts_with('-'))
        .map(str::to_owned)
        .collect()
}

/// The part of `text` under the heading that holds `title`, up to the next heading of its level.
fn section(text: &str, title: &str) -> Option<String> {
    let title = title.to_lowercase();
    let mut lines = text
        .lines()
        .skip_while(|line| !(line.starts_with('#') && line.to_lowercase().contains(&title)));
    let heading = lines.next()?;
    let level = heading.bytes().take_while(|byte| *byte == b'#').count();
    let within = |line: &&str| {
        let depth = line.bytes().take_while(|byte| *byte == b'#').count();
        depth == 0 || depth > level
    };
    Some(lines.take_while(within).collect::<Vec<_>>().join("\n"))
}

/// Those of `paths` that do not exist: from the root, or anywhere for a bare file name.
fn missing(paths: Vec<String>) -> Vec<String> {
    let all = files(&["rs", "toml", "md"]);
    let somewhere = |name: &str| all.iter().any(|(path, _)| path.ends_with(&format!("/{name}")));
    let exists =
        |path: &String| root().join(path).exists() || (!path.contains('/') && somewhere(path));
    paths.into_iter().filter(|path| !exists(path)).collect()
}

#[test]
fn the_code_map_is_true() {
    let Ok(text) = fs::read_to_string(root().join("ARCHITECTURE.md")) else {
        eprintln!("skipped: there is no ARCHITECTURE.md");
        return;
    };
    let Some(map) = section(&text, "code map") else {
        eprintln!("skipped: ARCHITECTURE.md has no section with `code map` in its heading");
        return;
    };
    complain(&missing(paths_in(&map)), "ARCHITECTURE.md's code map names what does not exist");
}

#[test]
fn what_contributors_are_told_exists() {
    let text = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let paths = paths_in(&text);
    assert!(paths.len() > 5, "the paths are found: {paths:?}");
    complain(&missing(paths), "CONTRIBUTING.md names what does not exist");
}

/// Every `omnify_…` word of `text`.
fn metric_words(text: &str) -> BTreeSet<String> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !part(c)).filter(|word| word.starts_with("omnify_")).map(str::to_owned).collect()
}

#[test]
fn deploy_speaks_of_metrics_that_exist() {
    let metrics: BTreeMap<_, _> =
        Metric::ALL.iter().map(|metric| (metric.describe().name, metric.describe())).collect();
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for (name, text) in files(&["yml", "yaml", "json", "md"]) {
        if !name.starts_with("deploy/") {
            continue;
        }
        for word in metric_words(&text) {
            let series = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| word.strip_suffix(suffix))
                .filter(|base| metrics.get(base).is_some_and(|row| row.kind == Kind::Histogram));
            match (series, metrics.get(&*word)) {
                (Some(base), _) => {
                    seen.insert(base.to_owned());
                }
                (None, Some(row)) if row.kind == Kind::Histogram && !name.ends_with(".md") => {
                    problems.push(format!("{name}: {word} is a histogram: ask for its _bucket"));
                }
                (None, Some(_)) => {
                    seen.insert(word);
                }
                (None, None) => problems.push(format!("{name}: no metric {word}")),
            }
        }
    }
    complain(&problems, "deploy/ asks for metrics that sinks/src/telemetry/names.rs does not have");
    assert!(seen.len() > 10, "the metrics are found: {seen:?}");
}

#[test]
fn every_alert_is_in_the_runbook() {
    let read = |name: &str| fs::read_to_string(root().join("deploy").join(name)).unwrap();
    let (alerts, runbook) = (read("prometheus/alerts.yml"), read("RUNBOOK.md"));
    let alerts: BTreeSet<_> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let sections: BTreeSet<_> =
        runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert!(!alerts.is_empty());
    assert_eq!(alerts, sections);
}

#[test]
fn the_shipped_configurations_are_valid() {
    for name in ["deploy/omnify.toml", "config/production.example.toml"] {
        let layers = omnify_config::Layers::new().file(&root().join(name)).unwrap();
        layers.build().unwrap().validate().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
