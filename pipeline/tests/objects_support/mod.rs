//! A place for one engine over many lives, a platform that counts, and addresses of copies.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{Path as Segment, State};
use axum::http::StatusCode as Status;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use reqwest::{Client, StatusCode};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

pub(crate) const OMNIFY: &str = env!("CARGO_BIN_EXE_omnify");
/// What a slow machine may take; nothing waits for so long when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// Short times, so that much happens between two kills, and no limit that keeps new campaigns
/// untouched, so that there are actions.
pub(crate) const CONFIG: &str = r#"
[features]
windows = ["20s/1s", "1h/1m", "day"]
[engine]
tick = "2ms"
decide_every = "20ms"
[state]
snapshot_every = "150ms"
journal_segment = "16KiB"
journal_bytes_max = "1MiB"
stop_within = "10s"
[object_store]
region = "us-east-1"
path_style = true
allow_http = true
[history]
file_time = "100ms"
[controller]
period = "50ms"
horizon = "1m"
deadband = 0.0
[guardrails]
step_max = 0.5
change_24h_max = 10.0
change_7d_max = 10.0
events_min = 0
gain_probability_min = 0.001
cooldown = "50ms"
learning_events = 0
learning_time = "0s"
[[goals]]
name = "clicks"
applies_to = "*"
objective = "target_cpc"
target = "0.20"
daily_budget = "50000"
currency = "USD"
pricing = "cpm"
bid_floor = "0.01"
bid_cap = "100"
[executor]
kind = "market"
timeout = "500ms"
"#;

/// Where copies may be: a folder, and a prefix of the real server if there is one.
pub(crate) fn addresses(test: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap().keep();
    let mut addresses = vec![format!("file://{}", folder.display())];
    match std::env::var("OMNIFY_S3_ENDPOINT") {
        Err(_) => eprintln!("no real S3 server: OMNIFY_S3_ENDPOINT is not set (deploy/s3/run.sh)"),
        Ok(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
            addresses.push(format!("s3://omnify/{test}-{now}"));
        }
    }
    addresses
}

/// Pushes and looks, over HTTP.
pub(crate) struct Caller {
    runtime: Runtime,
    client: Client,
}

impl Caller {
    pub(crate) fn new() -> Caller {
        let client = Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Caller { runtime: Runtime::new().unwrap(), client }
    }

    /// Pushes batch `number`: ten events, under a key of its own.
    pub(crate) fn push(&self, base: &str, number: usize) -> Result<(StatusCode, Value), String> {
        self.runtime.block_on(async {
            let request = self
                .client
                .post(format!("{base}/v1/events"))
                .header("content-type", "application/x-ndjson")
                .header("idempotency-key", format!("key-{number}"))
                .body(batch(number));
            let response = request.send().await.map_err(|error| error.to_string())?;
            let status = response.status();
            let answer = response.json().await.map_err(|error| error.to_string())?;
            Ok((status, answer))
        })
    }

    pub(crate) fn status(&self, base: &str) -> Value {
        self.runtime.block_on(async {
            let request = self.client.get(format!("{base}/v1/status"));
            request.send().await.unwrap().json().await.unwrap()
        })
    }

    pub(crate) fn problems(&self, base: &str) -> Vec<String> {
        let status = self.status(base);
        let problems = status["counters"]["problems"].as_array().cloned().unwrap_or_default();
        problems.iter().map(|p| p["code"].as_str().unwrap_or_default().to_owned()).collect()
    }

    fn metric(&self, base: &str, name: &str) -> Option<f64> {
        let text = self.runtime.block_on(async {
            let request = self.client.get(format!("{base}/metrics"));
            request.send().await.unwrap().text().await.unwrap()
        });
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Waits until it is so.
    pub(crate) fn until(&self, so: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so() {
            assert!(Instant::now() < deadline, "it never came");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

pub(crate) struct Home {
    dir: tempfile::TempDir,
    caller: Caller,
}

pub(crate) struct Life {
    pub(crate) child: Child,
    base: String,
    said: Arc<Mutex<Vec<String>>>,
}

impl Life {
    /// Waits for the end; the exit code.
    pub(crate) fn code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Everything on stderr so far.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Home {
    pub(crate) fn new(platform: &Platform, sets: &[String]) -> Home {
        let dir = tempfile::tempdir().unwrap();
        let mut config = format!("{CONFIG}url = \"{}\"\n", platform.url).parse().unwrap();
        let endpoint = std::env::var("OMNIFY_S3_ENDPOINT").unwrap_or_default();
        assign(&mut config, &format!("object_store.endpoint={endpoint}"));
        for set in sets {
            assign(&mut config, set);
        }
        fs::write(dir.path().join("omnify.toml"), toml::to_string(&config).unwrap()).unwrap();
        Home { dir, caller: Caller::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(OMNIFY);
        command.current_dir(self.dir.path()).args(arguments).stdin(Stdio::null());
        command.args(["--set", "http.listen=127.0.0.1:0", "--quiet", "--json"]);
        if arguments.first() != Some(&"run") {
            command.args(["-c", "omnify.toml"]);
        }
        command
    }

    /// What another command answers.
    pub(crate) fn answer(&self, arguments: &[&str]) -> Value {
        json_of(&run(self.command(arguments)))
    }

    pub(crate) fn live(&self, sets: &[&str]) -> Life {
        let mut command = self.command(&["run", "-c", "omnify.toml"]);
        sets.iter().for_each(|set| {
            command.args(["--set", set]);
        });
        self.start(command)
    }

    /// Starts it where no file may become longer than so many blocks of 512 bytes.
    pub(crate) fn live_where_files_end_at(&self, blocks: u32) -> Life {
        let run = self.command(&["run", "-c", "omnify.toml"]);
        let mut command = Command::new("sh");
        command.current_dir(self.dir.path()).stdin(Stdio::null()).arg("-c");
        command.arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\""));
        command.arg(run.get_program()).args(run.get_args());
        self.start(command)
    }

    fn start(&self, mut command: Command) -> Life {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = Arc::<Mutex<Vec<String>>>::default();
        let keep = |said: &Mutex<Vec<String>>, line: &str| {
            said.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
        };
        let base = lines.by_ref().map_while(Result::ok).find_map(|line| {
            keep(&said, &line);
            let at = line.find("http://127").map(|at| &line[at..])?;
            at.split('/').nth(2).map(|host| format!("http://{host}"))
        });
        let (base, all) = match base {
            Some(base) => (base, said.clone()),
            None => panic!("it did not start: {said:#?}"),
        };
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| keep(&all, &line)));
        Life { child, base, said }
    }

    /// Stops it in order.
    pub(crate) fn stop(&self, life: &mut Life) {
        let stopped = Command::new("kill").arg(life.child.id().to_string()).status().unwrap();
        assert!(stopped.success());
        assert_eq!(life.child.wait().unwrap().code(), Some(0), "{}", life.said());
    }

    pub(crate) fn push(&self, life: &Life, number: usize) -> Result<(StatusCode, Value), String> {
        self.caller.push(&life.base, number)
    }

    pub(crate) fn status(&self, life: &Life) -> Value {
        self.caller.status(&life.base)
    }

    /// Waits until the published counters hold `events`.
    pub(crate) fn until_in(&self, life: &Life, events: u64) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(life);
            if status["counters"]["events_in"] == events {
                return status;
            }
            assert!(Instant::now() < deadline, "{events} expected: {status}\n{}", life.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a problem is shown, or is not any more.
    pub(crate) fn until_problem(&self, life: &Life, code: &str, shown: bool) {
        self.caller.until(|| self.caller.problems(&life.base).iter().any(|p| p == code) == shown);
    }

    /// Waits until the copy has all that was pushed before.
    pub(crate) fn until_mirrored(&self, life: &Life) {
        let copied = || self.caller.metric(&life.base, "omnify_mirror_bytes_total").unwrap_or(0.0);
        // An engine goes on closing ticks, so there is always a next commit.
        for _ in 0..3 {
            let before = copied();
            self.caller.until(|| copied() > before);
        }
    }

    /// The only history.
    pub(crate) fn history(&self) -> PathBuf {
        let runs = fs::read_dir(self.path("omnify-data/history")).unwrap();
        let mut runs: Vec<_> = runs.map(|run| run.unwrap().path()).collect();
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.remove(0)
    }
}

/// `path.to.key=value` in a configuration.
fn assign(config: &mut toml::Table, set: &str) {
    let (key, value) = set.split_once('=').unwrap();
    let (section, key) = key.split_once('.').unwrap();
    let section = config.entry(section).or_insert_with(|| toml::Table::new().into());
    section.as_table_mut().unwrap().insert(key.to_owned(), value.into());
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

pub(crate) fn run(mut command: Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn json_of(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr))
    })
}

/// Every row of `features`, as text in order of the text.
pub(crate) fn feature_rows(history: &Path) -> Vec<String> {
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("features");
    let mut command = Command::new(OMNIFY);
    command.args(["history", "export", "--table", "features", "--format", "csv", "--json"]);
    command.arg(history).arg("--to").arg(&to);
    let done = run(command);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // A run that no minute ended in has closed no row, and there is no file.
    let text = match fs::read_to_string(to.join("features.csv")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.unwrap(),
    };
    let mut rows: Vec<String> = text.lines().map(str::to_owned).collect();
    rows.sort_unstable();
    rows
}

/// An ad platform that counts how often each action changed something.
pub(crate) struct Platform {
    book: Shared,
    url: String,
    _runtime: Runtime,
}

#[derive(Default)]
struct Book {
    settings: HashMap<(String, String), Value>,
    changed: HashMap<String, u64>,
}

type Shared = Arc<Mutex<Book>>;

impl Platform {
    pub(crate) fn start() -> Platform {
        let runtime = Runtime::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let book = Shared::default();
        let router = axum::Router::new()
            .route("/v1/actions", post(action))
            .route("/v1/entities/{*key}", get(entity))
            .with_state(book.clone());
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).unwrap()
        };
        runtime.spawn(async move { axum::serve(listener, router).await });
        Platform { book, url, _runtime: runtime }
    }

    /// Actions that changed something, and those that did so more than once.
    pub(crate) fn changed(&self) -> (usize, usize) {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        (book.changed.len(), book.changed.values().filter(|count| **count > 1).count())
    }
}

async fn action(State(book): State<Shared>, Json(request): Json<Map<String, Value>>) -> Response {
    let text =
        |name: &str| request.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (id, owner, kind) = (text("action_id"), text("owner"), text("setting"));
    let mut setting = request.clone();
    for name in ["action_id", "owner", "before"] {
        setting.remove(name);
    }
    let setting = Value::Object(setting);
    let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
    let known = book.settings.get(&(owner.clone(), kind.clone()));
    if known == Some(&setting) {
        return Json(json!({"applied": false, "effective": setting})).into_response();
    }
    if let (Some(known), Some(before)) = (known, request.get("before"))
        && known != before
    {
        let error = json!({"class": "conflict", "message": "not as expected", "current": known});
        return (Status::CONFLICT, Json(json!({ "error": error }))).into_response();
    }
    book.settings.insert((owner, kind), setting.clone());
    *book.changed.entry(id).or_default() += 1;
    Json(json!({"applied": true, "effective": setting})).into_response()
}

async fn entity(State(book): State<Shared>, Segment(key): Segment<String>) -> Json<Value> {
    let book = book.lock().unwrap_or_else(PoisonError::into_inner);
    let of = |kind: &str, field: &str| {
        let known = book.settings.get(&(key.clone(), kind.to_owned()));
        known.and_then(|value| value.get(field)).cloned()
    };
    Json(json!({
        "entity": key,
        "bid_micros": of("bid", "bid_micros"),
        "daily_budget_micros": of("budget", "budget_micros"),
        "status": of("status", "status"),
    }))
}
