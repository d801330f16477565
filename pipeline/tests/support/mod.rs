//! `omnify` as processes at one place, over many lives, for the tests that kill it.
//!
//! A [`Process`] is one life: it is killed when it is dropped, and every wait for it ends with what it said.
//! A [`Home`] is the place that outlives it. What is pushed is numbered batches of ten events under keys of
//! their own, so that a batch pushed again counts once. Nothing here looks into the files of an engine but
//! through its own commands.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::io::{BufRead, BufReader};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

pub(crate) const OMNIFY: &str = env!("CARGO_BIN_EXE_omnify");
/// What a slow machine may take; nothing waits for so long when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(10);

/// Short times, so that much happens between two kills.
pub(crate) const CONFIG: &str = r#"
[features]
windows = ["4s/200ms", "1h/1m", "24h/15m", "day"]
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

/// Waits until it is so; ends with `what` otherwise.
pub(crate) fn until(mut so: impl FnMut() -> bool, what: impl FnOnce() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "{}", what());
        std::thread::sleep(LOOK);
    }
}

/// A process and what it said on stderr.
pub(crate) struct Process {
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
    pub(crate) fn start(mut command: Command) -> Process {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = Arc::<Mutex<Vec<String>>>::default();
        let (lines, to) = (BufReader::new(child.stderr.take().unwrap()).lines(), said.clone());
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| to.lock().unwrap().push(line));
        });
        Process { child, said }
    }

    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    /// Waits for a line that holds `what`.
    pub(crate) fn until_said(&mut self, what: &str) -> String {
        let mut found = None;
        let Process { child, said } = self;
        let all = || said.lock().unwrap().join("\n");
        until(
            || {
                let ended = child.try_wait().unwrap();
                found = said.lock().unwrap().iter().find(|line| line.contains(what)).cloned();
                assert!(found.is_some() || ended.is_none(), "it ended with {ended:?}: {}", all());
                found.is_some()
            },
            || format!("`{what}` is not in: {}", all()),
        );
        found.unwrap()
    }

    /// Waits for a line that holds `what`, of a process that has ended: the reader may be behind.
    pub(crate) fn until_said_after_end(&self, what: &str) {
        until(|| self.said().contains(what), || format!("`{what}` is not in: {}", self.said()));
    }

    /// Waits for the end; the exit code.
    pub(crate) fn code(&mut self) -> Option<i32> {
        let (mut ended, Process { child, said }) = (None, self);
        until(
            || {
                ended = child.try_wait().unwrap();
                ended.is_some()
            },
            || format!("it does not end: {}", said.lock().unwrap().join("\n")),
        );
        ended.unwrap().code()
    }

    /// Sends a signal, for example `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// No handler runs, no buffer is written.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it in order.
    pub(crate) fn stop(&mut self) {
        self.signal("TERM");
        assert_eq!(self.code(), Some(0), "{}", self.said());
    }

    /// Where its page is.
    pub(crate) fn base(&mut self) -> String {
        let line = self.until_said("http://127.0.0.1:");
        let host = line[line.find("http://").unwrap()..].split('/').nth(2).unwrap().to_owned();
        format!("http://{host}")
    }
}

/// Asks over HTTP.
pub(crate) struct Caller {
    runtime: Runtime,
    client: Client,
}

impl Caller {
    pub(crate) fn new() -> Caller {
        let client = Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Caller { runtime: Runtime::new().unwrap(), client }
    }

    /// The answer to a request.
    pub(crate) fn ask(&self, method: &str, url: &str, body: &str) -> (StatusCode, String) {
        self.try_ask(method, url, "", body.to_owned()).unwrap()
    }

    fn try_ask(
        &self,
        method: &str,
        url: &str,
        key: &str,
        body: String,
    ) -> reqwest::Result<(StatusCode, String)> {
        self.runtime.block_on(async {
            let request = self.client.request(method.parse().unwrap(), url);
            let mut request = request.header("content-type", "application/x-ndjson");
            if !key.is_empty() {
                request = request.header("idempotency-key", key);
            }
            let response = request.body(body).send().await?;
            Ok((response.status(), response.text().await?))
        })
    }

    /// Pushes batch `number` once; none when the connection broke.
    pub(crate) fn try_push(&self, base: &str, number: usize) -> Option<(StatusCode, Value)> {
        let (url, key) = (format!("{base}/v1/events"), format!("key-{number}"));
        let (status, answer) = self.try_ask("POST", &url, &key, batch(number)).ok()?;
        Some((status, serde_json::from_str(&answer).ok()?))
    }

    /// Pushes batch `number` until it is taken.
    pub(crate) fn push(&self, base: &str, number: usize) {
        let taken = || match self.try_push(base, number).unwrap() {
            (StatusCode::ACCEPTED, answer) => {
                assert_eq!(answer["accepted"], 10, "{answer}");
                true
            }
            (status, answer) => {
                assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{answer}");
                false
            }
        };
        until(taken, || format!("batch {number} is not taken"));
    }

    pub(crate) fn status(&self, base: &str) -> Value {
        serde_json::from_str(&self.ask("GET", &format!("{base}/v1/status"), "").1).unwrap()
    }

    /// Whether a problem is shown.
    pub(crate) fn shows(&self, base: &str, code: &str) -> bool {
        let status = self.status(base);
        let problems = status["counters"]["problems"].as_array();
        problems.is_some_and(|problems| problems.iter().any(|problem| problem["code"] == code))
    }

    /// The value of a metric without labels.
    pub(crate) fn metric(&self, base: &str, name: &str) -> f64 {
        let (_, text) = self.ask("GET", &format!("{base}/metrics"), "");
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// Waits until the published counters hold `events`, and nothing else is amiss.
    pub(crate) fn until_in(&self, base: &str, events: usize) -> Value {
        let mut status = self.status(base);
        until(
            || {
                status = self.status(base);
                status["counters"]["events_in"] == events
            },
            || format!("{events} expected: {}", self.status(base)),
        );
        assert_eq!(status["conservation"]["holds"], true, "{status}");
        assert_eq!(status["counters"]["dead_letters"], json!({}), "{status}");
        status
    }
}

/// A folder for an engine over many lives.
pub(crate) struct Home {
    dir: tempfile::TempDir,
    caller: Caller,
}

impl Deref for Home {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

impl Home {
    pub(crate) fn new(config: &str) -> Home {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("omnify.toml"), config).unwrap();
        Home { dir, caller: Caller::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `omnify` in this folder, to be run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(OMNIFY);
        command.current_dir(self.dir.path()).env_remove("RUST_LOG").args(arguments);
        command
    }

    /// `omnify run` with these arguments.
    pub(crate) fn run(&self, more: &[&str]) -> Command {
        let listen = ["run", "-c", "omnify.toml", "--set", "http.listen=127.0.0.1:0"];
        self.command(&[&listen, more].concat())
    }

    pub(crate) fn live(&self, more: &[&str]) -> Process {
        Process::start(self.run(more))
    }

    /// The only history.
    pub(crate) fn history(&self) -> PathBuf {
        let runs = std::fs::read_dir(self.path("omnify-data/history")).unwrap();
        let mut runs: Vec<_> = runs.map(|run| run.unwrap().path()).collect();
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.remove(0)
    }

    /// The only history, made once more in one process.
    pub(crate) fn replayed(&self, workers: &str) -> Value {
        let history = self.history();
        let replay = ["replay", history.to_str().unwrap(), "--verify", "--json", "--workers"];
        let again = json_of(&mut self.command(&[&replay[..], &[workers]].concat()));
        assert_eq!(again["identical"], true, "{again}");
        again
    }
}

/// What a command answers.
pub(crate) fn json_of(command: &mut Command) -> Value {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr))
    })
}

/// Every row of `features` up to a tick, in order of its text.
pub(crate) fn feature_rows(history: &Path, until: u64) -> Vec<String> {
    let out = tempfile::tempdir().unwrap();
    let export = ["history", "export", "--table", "features", "--format", "ndjson", "--json"];
    json_of(Command::new(OMNIFY).args(export).arg(history).arg("--to").arg(out.path().join("to")));
    // A run that no pane ended in has closed no row, and there is no file.
    let text = match std::fs::read_to_string(out.path().join("to/features.ndjson")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.unwrap(),
    };
    let tick = |row: &str| serde_json::from_str::<Value>(row).unwrap()["tick"].as_u64().unwrap();
    let mut rows: Vec<_> =
        text.lines().filter(|row| tick(row) <= until).map(str::to_owned).collect();
    rows.sort_unstable();
    rows
}

pub(crate) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// Ten events with ids of their own, of creatives over many campaigns; those of every fifth batch are
/// clicks on what the four before it showed.
pub(crate) fn batch(number: usize) -> String {
    (0..10).map(|at| format!("{}\n", event(number, at))).collect()
}

/// One of them.
pub(crate) fn event(number: usize, at: usize) -> Value {
    let kind = if number % 5 == 4 { "click" } else { "impression" };
    json!({
        "type": "event", "ts_us": now_us(), "kind": kind,
        "event_id": format!("{number}-{at}"), "tenant": format!("t{}", at % 3),
        "platform": "meta", "account": format!("a{}", at % 5),
        "campaign": format!("c{at}"), "ad_group": "g1",
        "creative": format!("x{}", number / 5), "user": format!("u{at}"),
        "cost_micros": 1_000 * at, "revenue_micros": 0,
    })
}
