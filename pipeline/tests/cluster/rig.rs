//! Processes at one place, over many lives, and what their histories hold.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use omnify_sinks::history::HistoryReader;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const OMNIFY: &str = env!("CARGO_BIN_EXE_omnify");
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(10);
/// Hosts of the largest cluster, and the leader's second address.
const PORTS: usize = 4;
pub(crate) const SECRET: &str = "a secret of these tests";

/// As `CONFIG` has it.
pub(crate) const DECIDE_EVERY: Duration = Duration::from_millis(20);

const CONFIG: &str = r#"
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
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    /// Waits for a line that holds `what`.
    pub(crate) fn until_said(&mut self, what: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.said.lock().unwrap().iter().find(|line| line.contains(what)).cloned();
            if let Some(line) = found {
                return line;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended with {ended:?}: {}", self.said());
            assert!(Instant::now() < deadline, "`{what}` is not in: {}", self.said());
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for a line that holds `what`, of a process that has ended: the reader may be behind.
    pub(crate) fn until_said_after_end(&self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.said().contains(what) {
            assert!(Instant::now() < deadline, "`{what}` is not in: {}", self.said());
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for the end; the exit code.
    pub(crate) fn code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.said());
            std::thread::sleep(LOOK);
        }
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

    /// Where its page is.
    pub(crate) fn base(&mut self) -> String {
        let line = self.until_said("http://");
        let host = line[line.find("http://").unwrap()..].split('/').nth(2).unwrap().to_owned();
        format!("http://{host}")
    }
}

/// Stops all in order by a word to one of them.
pub(crate) fn stop(processes: &mut [Process], by: usize) {
    processes[by].signal("TERM");
    for process in processes {
        assert_eq!(process.code(), Some(0), "{}", process.said());
    }
}

/// A folder for an engine over many lives, and ports for its processes.
pub(crate) struct Home {
    dir: tempfile::TempDir,
    ports: Vec<u16>,
    runtime: Runtime,
    client: Client,
}

impl Home {
    pub(crate) fn new() -> Home {
        Home::with("")
    }

    /// With more in its configuration.
    pub(crate) fn with(more: &str) -> Home {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("omnify.toml"), format!("{CONFIG}{more}")).unwrap();
        let ports = (0..PORTS).map(|_| port()).collect();
        let client = Client::builder().no_proxy().build().unwrap();
        Home { dir, ports, runtime: Runtime::new().unwrap(), client }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn port(&self, at: usize) -> u16 {
        self.ports[at]
    }

    /// Starts `omnify run` with these arguments.
    pub(crate) fn start(&self, more: &[&str]) -> Process {
        self.start_with_secret(SECRET, more)
    }

    pub(crate) fn start_with_secret(&self, secret: &str, more: &[&str]) -> Process {
        let mut command = Command::new(OMNIFY);
        command.current_dir(self.dir.path()).env_remove("RUST_LOG");
        command.env("OMNIFY_CLUSTER_SECRET", secret);
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

    /// The arguments of process `which` of `count` with so many workers each.
    pub(crate) fn place(&self, count: usize, which: usize, workers: usize) -> Vec<String> {
        let mut hosts = format!("127.0.0.1:{} 127.0.0.1:{}\n", self.ports[0], self.ports[1]);
        self.ports[2..=count].iter().for_each(|port| hosts += &format!("127.0.0.1:{port}\n"));
        let file = format!("hosts-{count}");
        // The processes before this one may be reading it.
        if !self.path(&file).exists() {
            std::fs::write(self.path(&file), hosts).unwrap();
        }
        let place = format!("--processes {count} --process {which} --hosts {file}");
        let mut arguments: Vec<_> = place.split(' ').map(str::to_owned).collect();
        arguments.extend(["--set".to_owned(), format!("engine.workers={workers}")]);
        arguments
    }

    pub(crate) fn process(&self, count: usize, which: usize, more: &[&str]) -> Process {
        let place = self.place(count, which, 2);
        let place: Vec<&str> = place.iter().map(String::as_str).collect();
        self.start(&[&place, more].concat())
    }

    /// A cluster of `count` processes with `workers` workers each; one alone is none.
    pub(crate) fn cluster(&self, count: usize, workers: usize) -> Vec<Process> {
        let start = |which| {
            let mut place = self.place(count, which, workers);
            if count == 1 {
                place.drain(..place.len() - 2);
            }
            self.start(&place.iter().map(String::as_str).collect::<Vec<_>>())
        };
        (0..count).map(start).collect()
    }

    pub(crate) fn both(&self) -> (Process, Process) {
        (self.process(2, 0, &[]), self.process(2, 1, &[]))
    }

    /// The answer to a request.
    pub(crate) fn ask(&self, method: &str, url: &str, body: &str) -> (StatusCode, String) {
        self.runtime.block_on(async {
            let request = self.client.request(method.parse().unwrap(), url);
            let request = request.header("content-type", "application/x-ndjson");
            let response = request.body(body.to_owned()).send().await.unwrap();
            (response.status(), response.text().await.unwrap())
        })
    }

    pub(crate) fn push(&self, base: &str, number: usize) {
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
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the published counters hold `events`.
    pub(crate) fn until_in(&self, base: &str, events: usize) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, status) = self.ask("GET", &format!("{base}/v1/status"), "");
            let status: Value = serde_json::from_str(&status).unwrap();
            if status["counters"]["events_in"] == events {
                assert_eq!(status["conservation"]["holds"], true, "{status}");
                assert_eq!(status["counters"]["dead_letters"], json!({}), "{status}");
                return status;
            }
            assert!(Instant::now() < deadline, "{events} expected: {status}");
            std::thread::sleep(LOOK);
        }
    }

    /// The value of a metric without labels.
    pub(crate) fn metric(&self, base: &str, name: &str) -> f64 {
        let (_, text) = self.ask("GET", &format!("{base}/metrics"), "");
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
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
        let arguments = ["replay", history.to_str().unwrap(), "--verify", "--json", "--workers"];
        let output = Command::new(OMNIFY).args(arguments).arg(workers).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let again: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr))
        });
        assert_eq!(again["identical"], true, "{again}");
        again
    }

    /// The chained digest of the decisions, by tick.
    pub(crate) fn digests(&self) -> BTreeMap<u64, [u8; 32]> {
        let reader = HistoryReader::open(self.history()).unwrap();
        reader.ticks().map(|tick| tick.unwrap()).map(|tick| (tick.tick, tick.digest)).collect()
    }

    /// Every row of `features` up to a tick, in order of its text.
    pub(crate) fn feature_rows(&self, until: u64) -> Vec<String> {
        let (history, to) = (self.history(), self.path("export"));
        let status = Command::new(OMNIFY)
            .args(["history", "export", "--table", "features", "--format", "ndjson", "--to"])
            .args([&to, &history])
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        let text = std::fs::read_to_string(to.join("features.ndjson")).unwrap();
        std::fs::remove_dir_all(to).unwrap();
        let tick =
            |row: &str| serde_json::from_str::<Value>(row).unwrap()["tick"].as_u64().unwrap();
        let mut rows: Vec<_> =
            text.lines().filter(|row| tick(row) <= until).map(str::to_owned).collect();
        rows.sort_unstable();
        rows
    }
}

/// A port that is free, and that no other test of this process gets; below those that the system
/// gives to clients.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 1_100) as u16 * 10;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Copies a folder with everything in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        match path.is_dir() {
            true => copy(&path, &to),
            false => drop(std::fs::copy(&path, &to).unwrap()),
        }
    }
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
