//! An engine with a copy, the commands that read one, a platform that counts, and addresses of copies.

use std::collections::HashMap;
use std::net::TcpListener;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path as Segment, State};
use axum::http::StatusCode as Status;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use crate::support::{Caller, Home, Process, json_of, now_us, until};

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
            addresses.push(format!("s3://omnify/{test}-{}", now_us()));
        }
    }
    addresses
}

/// A place for engines that act on `platform`, configured as these sets say beside the rest.
pub(crate) fn home(platform: &Platform, sets: &[String]) -> Home {
    let mut config = format!("{CONFIG}url = \"{}\"\n", platform.url).parse().unwrap();
    let endpoint = std::env::var("OMNIFY_S3_ENDPOINT").unwrap_or_default();
    assign(&mut config, &format!("object_store.endpoint={endpoint}"));
    sets.iter().for_each(|set| assign(&mut config, set));
    Home::new(&toml::to_string(&config).unwrap())
}

/// `path.to.key=value` in a configuration.
fn assign(config: &mut toml::Table, set: &str) {
    let (key, value) = set.split_once('=').unwrap();
    let (section, key) = key.split_once('.').unwrap();
    let section = config.entry(section).or_insert_with(|| toml::Table::new().into());
    section.as_table_mut().unwrap().insert(key.to_owned(), value.into());
}

/// An engine where no file may become longer than so many blocks of 512 bytes.
pub(crate) fn live_where_files_end_at(home: &Home, blocks: u32) -> Process {
    let (run, mut command) = (home.run(&[]), Command::new("sh"));
    command.current_dir(home.path("")).arg("-c");
    command.arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\""));
    command.arg(run.get_program()).args(run.get_args());
    Process::start(command)
}

/// Another command than `run`, under the engine's configuration.
pub(crate) fn command(home: &Home, arguments: &[&str]) -> Command {
    let mut command = home.command(arguments);
    command.args(["-c", "omnify.toml", "--quiet", "--json"]);
    command
}

/// What it answers.
pub(crate) fn answer(home: &Home, arguments: &[&str]) -> Value {
    json_of(&mut command(home, arguments))
}

/// SIGKILL, and then the disk is gone.
pub(crate) fn lose(home: &Home, life: &mut Process) {
    life.kill();
    std::fs::remove_dir_all(home.path("omnify-data")).unwrap();
}

/// Waits until a problem is shown, or is not any more.
pub(crate) fn until_problem(caller: &Caller, base: &str, code: &str, shown: bool) {
    until(|| caller.shows(base, code) == shown, || format!("{code} shown is not {shown}"));
}

/// Waits until the copy has all that was pushed before.
pub(crate) fn until_mirrored(caller: &Caller, base: &str) {
    let copied = || caller.metric(base, "omnify_mirror_bytes_total");
    // An engine goes on closing ticks, so there is always a next commit.
    for _ in 0..3 {
        let before = copied();
        until(|| copied() > before, || "nothing more is copied".to_owned());
    }
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
