//! `omnify run` killed at once, again and again: what it had acknowledged is there afterwards, once.
#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const OMNIFY: &str = env!("CARGO_BIN_EXE_omnify");
const PATIENCE: Duration = Duration::from_secs(60);

const CONFIG: &str = r#"
[engine]
tick = "2ms"
decide_every = "20ms"
[state]
snapshot_every = "100ms"
journal_segment = "16KiB"
[history]
file_time = "100ms"
[[goals]]
name = "brand"
applies_to = "*"
objective = "maximise"
daily_budget = "500"
currency = "USD"
bid_floor = "0.10"
bid_cap = "20"
"#;

/// A place for one engine, over many lives.
struct Home {
    dir: tempfile::TempDir,
    runtime: Runtime,
    client: Client,
}

struct Life {
    child: Child,
    base: String,
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Home {
    fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("omnify.toml"), CONFIG).unwrap();
        let client = Client::builder().no_proxy().build().unwrap();
        Home { dir, runtime: Runtime::new().unwrap(), client }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn live(&self, sets: &[&str]) -> Life {
        let mut command = Command::new(OMNIFY);
        command.current_dir(self.dir.path());
        command.args(["run", "--json", "-c", "omnify.toml", "--set", "http.listen=127.0.0.1:0"]);
        sets.iter().for_each(|set| {
            command.args(["--set", set]);
        });
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let base = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let at = line.find("http://").map(|at| &line[at..]);
            let base = at.and_then(|at| at.split('/').nth(2)).map(|host| format!("http://{host}"));
            said.push(line.clone());
            base
        });
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let base = base.unwrap_or_else(|| panic!("it did not start: {said:#?}"));
        Life { child, base }
    }

    fn push(&self, life: &Life, key: &str, body: String) -> Result<(StatusCode, Value), String> {
        self.runtime.block_on(async {
            let request = self
                .client
                .post(format!("{}/v1/events", life.base))
                .header("content-type", "application/x-ndjson")
                .header("idempotency-key", key)
                .body(body);
            let response = request.send().await.map_err(|error| error.to_string())?;
            let status = response.status();
            let answer = response.json().await.map_err(|error| error.to_string())?;
            Ok((status, answer))
        })
    }

    fn status(&self, life: &Life) -> Value {
        self.runtime.block_on(async {
            let request = self.client.get(format!("{}/v1/status", life.base));
            request.send().await.unwrap().json().await.unwrap()
        })
    }

    /// Waits until the published counters hold `events`.
    fn until_in(&self, life: &Life, events: u64) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(life);
            if status["counters"]["events_in"] == events {
                return status;
            }
            assert!(Instant::now() < deadline, "{events} expected: {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The only history.
    fn history(&self) -> PathBuf {
        let runs = std::fs::read_dir(self.path("omnify-data/history")).unwrap();
        let mut runs: Vec<_> = runs.map(|run| run.unwrap().path()).collect();
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.remove(0)
    }
}

/// Ten events with ids of their own.
fn batch(number: usize) -> String {
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    let row = |at: usize| {
        let kind = if at % 5 == 4 { "click" } else { "impression" };
        json!({
            "type": "event", "ts_us": now_us, "kind": kind,
            "event_id": format!("{number}-{at}"), "tenant": "acme", "platform": "meta",
            "account": "a1", "campaign": format!("c{}", number % 3), "ad_group": "g1",
            "creative": format!("x{}", number % 7), "user": format!("u{at}"),
            "cost_micros": 1_000 * at, "revenue_micros": 0,
        })
    };
    (0..10).map(|at| format!("{}\n", row(at))).collect()
}

fn run(arguments: &[&str]) -> Output {
    Command::new(OMNIFY).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn json_of(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr))
    })
}

fn replays(history: &Path, workers: &str) -> Value {
    let history = history.to_str().unwrap();
    let again = json_of(&run(&["replay", history, "--verify", "--json", "--workers", workers]));
    assert_eq!(again["identical"], true, "{again}");
    again
}

#[test]
fn what_was_acknowledged_survives_kills_and_counts_once() {
    let home = Home::new();
    let mut sent = 0;
    for life_number in 0..6 {
        let workers = format!("engine.workers={}", 1 + life_number % 2);
        let mut life = home.live(&[&workers]);
        // What was acknowledged before is there, and is not taken again.
        if sent > 0 {
            home.until_in(&life, 10 * sent as u64);
            let (status, answer) =
                home.push(&life, &format!("key-{}", sent - 1), batch(sent - 1)).unwrap();
            assert_eq!(
                (status, &answer["accepted"]),
                (StatusCode::ACCEPTED, &json!(10)),
                "{answer}"
            );
        }
        for _ in 0..10 + 7 * life_number {
            let (status, answer) = home.push(&life, &format!("key-{sent}"), batch(sent)).unwrap();
            assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
            sent += 1;
        }
        // SIGKILL: no handler runs, no buffer is written.
        life.child.kill().unwrap();
        life.child.wait().unwrap();
    }
    let mut life = home.live(&[]);
    let status = home.until_in(&life, 10 * sent as u64);
    assert_eq!(status["conservation"]["holds"], true, "{status}");
    assert_eq!(status["counters"]["dead_letters"], json!({}), "{status}");
    let stopped = Command::new("kill").arg(life.child.id().to_string()).status().unwrap();
    assert!(stopped.success());
    assert_eq!(life.child.wait().unwrap().code(), Some(0));

    let history = home.history();
    let one = replays(&history, "1");
    assert_eq!(one["events_in"], 10 * sent);
    assert_eq!(replays(&history, "2")["digest"], one["digest"]);
}
