//! `omnify run` over several processes on this machine: the same output as in one, and when one of
//! them is lost all end, start again, and hold what was acknowledged.
#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
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

/// A process and what it said on stderr.
struct Process {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    /// Waits for a line that holds `what`.
    fn until_said(&mut self, what: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.said.lock().unwrap().iter().find(|line| line.contains(what)).cloned();
            if let Some(line) = found {
                return line;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended with {ended:?}: {}", self.said());
            assert!(Instant::now() < deadline, "`{what}` is not in: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for a line that holds `what`, of a process that has ended: the reader may be behind.
    fn until_said_after_end(&self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.said().contains(what) {
            assert!(Instant::now() < deadline, "`{what}` is not in: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the end; the exit code.
    fn code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn terminate(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").arg(id).status().unwrap().success());
    }

    /// No handler runs, no buffer is written.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn base(&mut self) -> String {
        let line = self.until_said("http://");
        let host = line[line.find("http://").unwrap()..].split('/').nth(2).unwrap().to_owned();
        format!("http://{host}")
    }
}

/// A folder for an engine over many lives, and ports for two processes.
struct Home {
    dir: tempfile::TempDir,
    runtime: Runtime,
    client: Client,
}

impl Home {
    /// Homes of tests that run at the same time have different `place`s.
    fn new(place: u16) -> Home {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("omnify.toml"), CONFIG).unwrap();
        // Below the ports that the system gives to clients.
        let first = 20_000 + (std::process::id() % 900) as u16 * 10 + place * 3;
        let free = |at: &u16| TcpListener::bind(("127.0.0.1", *at)).is_ok();
        let ports: Vec<u16> = (first..32_000).filter(free).take(3).collect();
        let hosts =
            format!("127.0.0.1:{} 127.0.0.1:{}\n127.0.0.1:{}\n", ports[0], ports[1], ports[2]);
        std::fs::write(dir.path().join("hosts"), hosts).unwrap();
        let client = Client::builder().no_proxy().build().unwrap();
        Home { dir, runtime: Runtime::new().unwrap(), client }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self, more: &[&str]) -> Process {
        let mut command = Command::new(OMNIFY);
        command.current_dir(self.dir.path()).env_remove("RUST_LOG");
        command.args(["run", "-c", "omnify.toml", "--set", "http.listen=127.0.0.1:0"]).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = Arc::<Mutex<Vec<String>>>::default();
        let (lines, to) = (BufReader::new(child.stderr.take().unwrap()).lines(), said.clone());
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| to.lock().unwrap().push(line));
        });
        Process { child, said }
    }

    fn process(&self, which: &str, more: &[&str]) -> Process {
        let place = ["--processes", "2", "--process", which, "--hosts", "hosts"];
        self.start(&[&place[..], &["--set", "engine.workers=2"], more].concat())
    }

    fn both(&self) -> (Process, Process) {
        (self.process("0", &[]), self.process("1", &[]))
    }

    fn push(&self, base: &str, number: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, answer) = self.runtime.block_on(async {
                let request = self
                    .client
                    .post(format!("{base}/v1/events"))
                    .header("content-type", "application/x-ndjson")
                    .header("idempotency-key", format!("key-{number}"))
                    .body(batch(number));
                let response = request.send().await.unwrap();
                let status = response.status();
                (status, response.json::<Value>().await.unwrap())
            });
            if status == StatusCode::ACCEPTED {
                assert_eq!(answer["accepted"], 10, "{answer}");
                return;
            }
            assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{answer}");
            assert!(Instant::now() < deadline, "{answer}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the published counters hold `events`.
    fn until_in(&self, base: &str, events: usize) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status: Value = self.runtime.block_on(async {
                let request = self.client.get(format!("{base}/v1/status"));
                request.send().await.unwrap().json().await.unwrap()
            });
            if status["counters"]["events_in"] == events {
                assert_eq!(status["conservation"]["holds"], true, "{status}");
                assert_eq!(status["counters"]["dead_letters"], json!({}), "{status}");
                return status;
            }
            assert!(Instant::now() < deadline, "{events} expected: {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The only history, made once more in one process.
    fn replayed(&self, workers: &str) -> Value {
        let runs = std::fs::read_dir(self.path("omnify-data/history")).unwrap();
        let runs: Vec<_> = runs.map(|run| run.unwrap().path()).collect();
        assert_eq!(runs.len(), 1, "{runs:?}");
        let again = replay(&runs[0], workers);
        assert_eq!(again["identical"], true, "{again}");
        again
    }
}

fn replay(history: &Path, workers: &str) -> Value {
    let arguments = ["replay", history.to_str().unwrap(), "--verify", "--json", "--workers"];
    let output = Command::new(OMNIFY).args(arguments).arg(workers).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr))
    })
}

/// Ten events with ids of their own, of creatives over many campaigns; those of every fifth batch are
/// clicks on what the four before it showed.
fn batch(number: usize) -> String {
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    let kind = if number % 5 == 4 { "click" } else { "impression" };
    let row = |at: usize| {
        json!({
            "type": "event", "ts_us": now_us, "kind": kind,
            "event_id": format!("{number}-{at}"), "tenant": format!("t{}", at % 3),
            "platform": "meta", "account": format!("a{}", at % 5),
            "campaign": format!("c{at}"), "ad_group": "g1",
            "creative": format!("x{}", number / 5), "user": format!("u{at}"),
            "cost_micros": 1_000 * at, "revenue_micros": 0,
        })
    };
    (0..10).map(|at| format!("{}\n", row(at))).collect()
}

#[test]
fn two_processes_give_what_one_gives() {
    let (home, alone) = (Home::new(0), Home::new(1));
    let (mut leader, mut follower) = home.both();
    let base = leader.base();
    let mut one = alone.start(&["--set", "engine.workers=1"]);
    let base_one = one.base();
    for number in 0..40 {
        home.push(&base, number);
        alone.push(&base_one, number);
    }
    home.until_in(&base, 400);
    alone.until_in(&base_one, 400);
    // Whoever is asked to stop, all stop.
    follower.terminate();
    one.terminate();
    assert_eq!(leader.code(), Some(0), "{}", leader.said());
    assert_eq!(follower.code(), Some(0), "{}", follower.said());
    assert_eq!(one.code(), Some(0), "{}", one.said());
    let (again, again_one) = (home.replayed("1"), alone.replayed("1"));
    assert_eq!(home.replayed("2")["digest"], again["digest"]);
    assert_eq!((&again["events_in"], &again["events_featured"]), (&json!(400), &json!(400)));
    assert_eq!(again_one["events_featured"], 400);

    // The last snapshot of two processes is loaded by one, and the other way round.
    let mut one = home.start(&["--set", "engine.workers=1"]);
    let base = one.base();
    home.until_in(&base, 400);
    home.push(&base, 40);
    one.terminate();
    assert_eq!(one.code(), Some(0), "{}", one.said());
    let (mut leader, mut follower) = home.both();
    let base = leader.base();
    home.until_in(&base, 410);
    home.push(&base, 41);
    leader.terminate();
    assert_eq!((leader.code(), follower.code()), (Some(0), Some(0)), "{}", leader.said());
    assert_eq!(home.replayed("1")["events_in"], 420);
}

#[test]
fn a_lost_process_ends_all_and_what_was_acknowledged_is_there() {
    let home = Home::new(2);
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
    let (mut leader, mut follower) = home.both();
    home.until_in(&leader.base(), 10 * sent);
    leader.terminate();
    assert_eq!((leader.code(), follower.code()), (Some(0), Some(0)), "{}", leader.said());
    assert_eq!(home.replayed("1")["events_in"], 10 * sent);
}

#[test]
fn a_process_with_another_configuration_is_refused() {
    let home = Home::new(3);
    let mut leader = home.process("0", &[]);
    for (set, text) in [
        ("features.prior_ctr=0.03", "configuration differs"),
        ("history.enabled=false", "configuration differs"),
        ("engine.workers=1", "it has 1 workers, the leader 2"),
    ] {
        let mut other = home.process("1", &["--set", set]);
        assert_eq!(other.code(), Some(2), "{}", other.said());
        other.until_said_after_end(text);
        leader.until_said(text);
    }
    // One that fits is still welcome.
    let mut follower = home.process("1", &[]);
    let base = leader.base();
    home.push(&base, 0);
    home.until_in(&base, 10);
    leader.terminate();
    assert_eq!((leader.code(), follower.code()), (Some(0), Some(0)), "{}", leader.said());
}
