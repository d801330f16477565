//! The live engine as its users meet it: over HTTP, and as a process.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use omnify_config::{Checked, Layers};
use omnify_decision::learn::{CellBuilder, LearnOptions, learn};
use omnify_operators::model::{DAY_US, EntityKey, HOUR_US, Stats};
use omnify_pipeline::clock::Clock;
use omnify_pipeline::live::{HistoryAt, Live, Setup};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

const OMNIFY: &str = env!("CARGO_BIN_EXE_omnify");
/// What a slow machine may take; nothing waits for so long when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

const GOAL: &str = r#"
[[goals]]
name = "brand"
applies_to = "acme"
objective = "maximise"
daily_budget = "500"
currency = "USD"
bid_floor = "0.10"
bid_cap = "20"
"#;

fn config(sets: &[&str]) -> Arc<Checked> {
    let layers = Layers::new().text("test", GOAL).unwrap();
    let layers = sets.iter().fold(layers, |layers, set| layers.set(set).unwrap());
    Arc::new(layers.build().unwrap().validate().unwrap())
}

fn start(config: Arc<Checked>, dir: &Path) -> Live {
    Live::start(Setup {
        config,
        clock: Clock::System,
        speed: 1,
        listener: Some(TcpListener::bind("127.0.0.1:0").unwrap()),
        history: Some(HistoryAt::Folder(dir.join("history"))),
        state: None,
        ledger: dir.join("ledger"),
        mirror: None,
        controls: Vec::new(),
    })
    .unwrap()
}

/// `count` impressions of one creative, now.
fn impressions(tenant: &str, count: usize, first_id: usize) -> String {
    let now_us = Clock::System.now() * 1_000;
    let row = |id: usize| {
        json!({
            "type": "event", "ts_us": now_us, "kind": "impression", "event_id": id.to_string(),
            "tenant": tenant, "platform": "meta", "account": "a1", "campaign": "c1",
            "ad_group": "g1", "creative": "x1", "user": "u1",
            "cost_micros": 1_000, "revenue_micros": 0,
        })
    };
    (first_id..first_id + count).map(|id| format!("{}\n", row(id))).collect()
}

/// Talks to a live engine from the test's thread.
struct Caller<'a> {
    live: &'a Live,
    client: Client,
    base: String,
    token: Option<String>,
}

impl<'a> Caller<'a> {
    fn new(live: &'a Live) -> Caller<'a> {
        let base = format!("http://{}", live.address().unwrap());
        Caller { live, client: Client::builder().no_proxy().build().unwrap(), base, token: None }
    }

    fn push(&self, body: String) -> (StatusCode, Option<String>, Value) {
        self.live.runtime().block_on(async {
            let mut request = self
                .client
                .post(format!("{}/v1/events", self.base))
                .header(CONTENT_TYPE, "application/x-ndjson")
                .body(body);
            if let Some(token) = &self.token {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.unwrap();
            let after = response.headers().get(RETRY_AFTER);
            let after = after.map(|value| value.to_str().unwrap().to_owned());
            (response.status(), after, response.json().await.unwrap())
        })
    }

    fn get(&self, path: &str) -> Value {
        self.live.runtime().block_on(async {
            let mut request = self.client.get(format!("{}{path}", self.base));
            if let Some(token) = &self.token {
                request = request.bearer_auth(token);
            }
            request.send().await.unwrap().json().await.unwrap()
        })
    }

    /// Asks until the answer is as wanted.
    fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get(path);
            if wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{path} still says {answer}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
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

#[test]
fn what_is_pushed_is_featured_decided_bid_on_and_replayed() {
    let home = tempfile::tempdir().unwrap();
    let live = start(config(&["engine.decide_every=10ms"]), home.path());
    let caller = Caller::new(&live);
    let (status, _, answer) = caller.push(impressions("acme", 50, 0) + "not json\n");
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    assert_eq!(answer, json!({"accepted": 50, "dead_letters": 1, "ignored": 0}));

    let campaign = "acme/meta/a1/c1";
    let features = caller.until(&format!("/v1/features/{campaign}"), |answer| {
        answer["features"]["windows"]["1h/1m"]["impressions"] == 50
            || answer["windows"]["1h/1m"]["impressions"] == 50
            || answer.to_string().contains("\"impressions\":50")
    });
    assert!(features.to_string().contains(campaign), "{features}");
    let decisions = caller.until("/v1/decisions", |answer| {
        answer["decisions"].as_array().is_some_and(|list| !list.is_empty())
    });
    assert!(decisions.to_string().contains(campaign), "{decisions}");
    let bid = live.runtime().block_on(async {
        let request = caller.client.post(format!("{}/v1/bids", caller.base));
        let response = request.json(&json!({ "key": campaign })).send().await.unwrap();
        (response.status(), response.json::<Value>().await.unwrap())
    });
    assert_eq!(bid.0, StatusCode::OK, "{}", bid.1);
    assert_eq!(bid.1["goal"], "brand");
    let ready = caller.get("/readyz");
    assert_eq!(ready["ready"], true, "{ready}");

    let summary = live.stop().unwrap();
    assert_eq!(summary.counters.events_in, 51);
    assert_eq!(summary.counters.featured, 50);
    assert_eq!(summary.counters.dead_letters_total(), 1);
    assert!(summary.counters.conservation().holds);
    assert!(summary.counters.violations.is_empty(), "{:?}", summary.counters.violations);
    let history = home.path().join("history");
    let again = json_of(&run(&["replay", history.to_str().unwrap(), "--verify", "--json"]));
    assert_eq!(again["identical"], true, "{again}");
    assert_eq!(again["digest"], summary.digest.as_str());
}

#[test]
fn a_full_queue_refuses_whole_bodies_and_loses_nothing_it_took() {
    let home = tempfile::tempdir().unwrap();
    // A long tick: what is taken waits for its end, and so does its sender.
    let live = start(config(&["engine.queue_events=10", "engine.tick=1s"]), home.path());
    let caller = Caller::new(&live);
    let answers = std::thread::scope(|scope| {
        let push = |push: usize| caller.push(impressions("acme", 10, push * 10));
        let pushes: Vec<_> = (0..10).map(|at| scope.spawn(move || push(at))).collect();
        pushes.into_iter().map(|push| push.join().unwrap()).collect::<Vec<_>>()
    });
    let (mut taken, mut refused) = (0, 0);
    for (status, after, answer) in answers {
        if status == StatusCode::TOO_MANY_REQUESTS {
            assert_eq!(after.as_deref(), Some("1"), "{answer}");
            assert_eq!(answer["error"]["code"], "busy");
            refused += 1;
        } else {
            assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
            taken += 10;
        }
    }
    assert!(refused > 0 && taken > 0, "{refused} refused, {taken} taken");
    let summary = live.stop().unwrap();
    assert_eq!(summary.counters.featured, taken);
    assert!(summary.counters.conservation().holds);
}

#[test]
fn a_strict_body_is_refused_with_its_first_bad_row() {
    let home = tempfile::tempdir().unwrap();
    let live = start(config(&[]), home.path());
    let caller = Caller::new(&live);
    let body = impressions("acme", 2, 0) + "not json\n" + &impressions("acme", 2, 2);
    let send = |body: String| {
        live.runtime().block_on(async {
            let request = caller.client.post(format!("{}/v1/events?strict=true", caller.base));
            let request = request.header(CONTENT_TYPE, "application/x-ndjson").body(body);
            let response = request.send().await.unwrap();
            (response.status(), response.json::<Value>().await.unwrap())
        })
    };
    let (status, answer) = send(body);
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().starts_with("row 3: "), "{answer}");
    assert_eq!(send(impressions("acme", 2, 0)).0, StatusCode::ACCEPTED);
    assert_eq!(live.stop().unwrap().counters.events_in, 2);
}

#[test]
fn a_tenants_token_opens_its_own_rows_only() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("tokens");
    let (acme, operator) = ("a".repeat(32), "b".repeat(32));
    std::fs::write(&file, format!("# tokens\nacme {acme}\n* {operator}\n")).unwrap();
    let set = format!("http.tokens_file={}", file.display());
    let live = start(config(&[&set]), home.path());
    let mut caller = Caller::new(&live);
    assert_eq!(caller.push(impressions("acme", 1, 0)).0, StatusCode::UNAUTHORIZED);
    caller.token = Some(acme);
    let body = impressions("acme", 2, 0) + &impressions("borealis", 3, 10);
    let (status, _, answer) = caller.push(body);
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    assert_eq!((&answer["accepted"], &answer["dead_letters"]), (&json!(2), &json!(3)));
    caller.token = Some(operator);
    caller.until("/v1/status", |answer| answer["counters"]["events_in"] == 5);
    let rows = caller.get("/v1/features?limit=100").to_string();
    assert!(rows.contains("acme/meta") && !rows.contains("borealis"), "{rows}");
    let dead = live.stop().unwrap().counters.dead_letters;
    assert_eq!(dead.get("unknown_tenant"), Some(&3));
}

#[test]
fn a_model_file_takes_effect_without_a_restart_and_a_broken_one_does_not() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("model.json");
    std::fs::write(&file, "{\"not\": \"a model\"}").unwrap();
    let set = format!("decision.model_file={}", file.display());
    let live = start(config(&[&set]), home.path());
    let caller = Caller::new(&live);
    caller.until("/v1/status", |answer| answer["counters"]["ticks"].as_u64() > Some(1));
    assert_eq!(caller.get("/v1/status")["counters"]["model_version"], 0);

    let mut cells = CellBuilder::default();
    for hour in 0..24 * 8 {
        let names = [("c1/g1/x", 12), ("c1/g1/y", 3)];
        for (name, clicks) in names {
            let key: EntityKey = format!("acme/meta/a1/{name}").parse().unwrap();
            let delta = Stats { impressions: 500, clicks, conversions: 1, ..Stats::ZERO };
            cells.add(&key, 20_000 * DAY_US + hour * HOUR_US, delta);
        }
    }
    let options = LearnOptions { clicks_min: 10, passes: 1, ..LearnOptions::default() };
    let (model, _) = learn(&cells.finish(), None, &options).unwrap();
    std::fs::write(&file, model.to_json().to_string()).unwrap();
    let version = model.version();
    caller.until("/v1/status", |answer| answer["counters"]["model_version"] == version);
    live.stop().unwrap();
    let history = home.path().join("history");
    let again = json_of(&run(&["replay", history.to_str().unwrap(), "--verify", "--json"]));
    assert_eq!(again["identical"], true, "{again}");
}

/// Ends the process with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(unix)]
#[test]
fn the_process_ends_in_order_when_told_to() {
    let home = tempfile::tempdir().unwrap();
    let history = home.path().join("history");
    let child = Command::new(OMNIFY)
        .args(["run", "--json", "--set", "http.listen=127.0.0.1:0", "--set"])
        .arg(format!("history.dir={}", history.display()))
        .args(["--set", &format!("state.dir={}", home.path().join("state").display())])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Running(child);
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    let at = lines
        .find_map(|line| {
            let line = line.unwrap();
            line.contains("the page is at").then_some(line)
        })
        .expect("it says where the page is");
    assert!(at.contains("http://127.0.0.1:"), "{at}");
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
    let killed = Command::new("kill").arg(child.0.id().to_string()).status().unwrap();
    assert!(killed.success());
    let mut answer = String::new();
    child.0.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
    let status = child.0.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{answer} {:?}", rest.join());
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["conserved"], true);
    let written = answer["history"].as_str().unwrap();
    assert!(Path::new(written).join("manifest.json").exists(), "{written}");
}

#[test]
fn what_cannot_start_says_why() {
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("http.listen={}", taken.local_addr().unwrap());
    let dir = format!("history.dir={}", home.path().join("h").display());
    let state = format!("state.dir={}", home.path().join("s").display());
    let run_with = |sets: [&str; 2]| {
        run(&["run", "--for", "1s", "--set", sets[0], "--set", sets[1], "--set", &state])
    };
    let output = run_with([&listen, &dir]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("http.listen") && said.contains("in use"), "{said}");

    let blocked = home.path().join("file");
    std::fs::write(&blocked, "").unwrap();
    let dir = format!("history.dir={}", blocked.join("h").display());
    let output = run_with(["http.listen=127.0.0.1:0", &dir]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("history.dir"), "{said}");

    let output = run(&["run", "--for", "soon"]);
    assert_eq!(output.status.code(), Some(2));
    let tokens = format!("http.tokens_file={}", home.path().join("none").display());
    let output = run_with(["http.listen=127.0.0.1:0", &tokens]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("http.tokens_file"), "{said}");
}

#[test]
fn an_engine_that_loses_its_history_ends_and_takes_nothing_more() {
    let home = tempfile::tempdir().unwrap();
    let sets = ["history.file_time=100ms", "engine.queue_events=10"];
    let live = start(config(&sets), home.path());
    let caller = Caller::new(&live);
    // A file stands where the first folder of events is to be made.
    std::fs::write(home.path().join("history/table=events"), "in the way").unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut ended = live.ended();
    for push in 0.. {
        let (status, _, answer) = caller.push(impressions("acme", 10, push * 10));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            assert_eq!(answer["error"]["code"], "closed");
            break;
        }
        assert!(Instant::now() < deadline, "it still takes events: {status} {answer}");
        std::thread::sleep(Duration::from_millis(10));
    }
    live.runtime().block_on(ended.wait_for(|ended| *ended)).unwrap();
    let error = live.stop().unwrap_err();
    assert!(error.to_string().contains("table=events"), "{error:#}");
    assert_eq!(omnify_pipeline::commands::exit_code(&error), 4);
}

/// A person's orders through the command line: a proposal approved, another rejected, a kill.
#[test]
fn people_order_over_the_command_line() {
    let home = tempfile::tempdir().unwrap();
    let sets = ["engine.decide_every=10ms", "decision.autonomy=human_led"];
    let live = start(config(&sets), home.path());
    let caller = Caller::new(&live);
    caller.push(impressions("acme", 50, 0));
    let open = caller.until("/v1/proposals", |answer| answer["open"].as_u64() > Some(0));
    let order = |arguments: &[&str]| {
        let output = run(&[arguments, &["--url", &caller.base, "--json"]].concat());
        (output.status.code(), json_of(&output))
    };
    let (code, listed) = order(&["proposals", "--under", "acme"]);
    assert_eq!((code, &listed["open"]), (Some(0), &open["open"]));
    let id = listed["proposals"][0]["id"].as_str().unwrap();
    let (code, answer) = order(&["approve", id, "--by", "ann"]);
    assert_eq!((code, &answer["accepted"]), (Some(0), &json!(true)), "{answer}");
    let is_answer = |decision: &Value| {
        let policy = decision["policy"].as_str().unwrap_or_default();
        policy.starts_with("approval") && decision["entity"] == "acme/meta/a1/c1"
    };
    let answered = |answer: &Value| answer["decisions"].as_array().unwrap().iter().any(is_answer);
    caller.until("/v1/decisions?limit=1000", answered);
    let (code, again) = order(&["reject", id, "--by", "bob", "--reason", "late"]);
    assert_ne!(code, Some(0), "{again}");
    assert!(again["error"].as_str().unwrap().contains(id), "{again}");
    let (code, answer) = order(&["kill", "--tenant", "acme"]);
    assert_eq!((code, &answer["accepted"]), (Some(0), &json!(true)), "{answer}");
    live.stop().unwrap();
    let (code, gone) = order(&["resume"]);
    assert_eq!(code, Some(5), "{gone}");
    assert!(gone["error"].as_str().unwrap().contains("no engine answers"), "{gone}");
}
