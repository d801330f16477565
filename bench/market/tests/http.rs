//! The HTTP contract, over a socket.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{hours, market, ndjson, play, small};
use omnify_market::{Fault, FaultRates, Faults, Platform, serve};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

struct Served {
    platform: Arc<Platform>,
    client: Client,
    base: String,
    stop: oneshot::Sender<()>,
    done: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Served {
    async fn start(capacity: usize, faults: Faults) -> Served {
        let platform = Arc::new(Platform::new(market(small(), 7), capacity, faults));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("bound"));
        let (stop, stopped) = oneshot::channel::<()>();
        let served = serve(platform.clone(), listener, async {
            stopped.await.ok();
        });
        let done = tokio::spawn(served);
        let client = Client::builder().no_proxy().build().expect("a client");
        Served { platform, client, base, stop, done }
    }

    async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.base)).send().await.expect("an answer")
    }

    async fn post(&self, action: &Value) -> Response {
        let post = self.client.post(format!("{}/v1/actions", self.base)).json(action);
        post.send().await.expect("an answer")
    }

    async fn json(response: Response) -> Value {
        response.json().await.expect("JSON")
    }

    fn owner(&self, index: usize) -> String {
        self.platform.read(|market| market.campaigns()[index].key.to_string())
    }

    fn bid(&self, index: usize) -> Option<i64> {
        let owner = self.owner(index).parse().expect("a key");
        self.platform.settings(&owner).and_then(|settings| settings.bid_micros)
    }

    async fn stop(self) {
        self.stop.send(()).expect("still served");
        drop(self.client);
        self.done.await.expect("no panic").expect("no error");
    }
}

fn header(response: &Response, name: &str) -> u64 {
    let value = response.headers().get(name).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}"))
}

#[tokio::test]
async fn the_feed_over_http_is_the_feed_of_the_market() {
    let served = Served::start(10_000_000, Faults::default()).await;
    let mut alone = market(small(), 7);
    let end = served.platform.advance_to(hours(&alone, 3));
    let items = play(&mut alone, 3);
    assert_eq!(end, items.len() as u64);
    let (mut after, mut body) = (0, Vec::new());
    loop {
        let response = served.get(&format!("/v1/feed?after={after}&limit=1000")).await;
        assert_eq!(response.status(), StatusCode::OK);
        let (next, time) = (header(&response, "x-next-cursor"), header(&response, "x-time-us"));
        assert!(next - after <= 1_000);
        let text = response.bytes().await.expect("a body");
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count() as u64, next - after);
        body.extend_from_slice(&text);
        if next == after {
            assert_eq!(time, hours(&alone, 3).unsigned_abs());
            break;
        }
        assert!(next == end || time < items[next as usize].known_us().unsigned_abs());
        after = next;
    }
    assert_eq!(body, ndjson(&alone, &items));

    let lines = std::str::from_utf8(&body).expect("UTF-8").lines();
    let mut seen = std::collections::BTreeSet::new();
    for line in lines {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let kind = line["kind"].as_str().unwrap_or_else(|| line["type"].as_str().expect("type"));
        if !seen.insert(kind.to_owned()) {
            continue;
        }
        for field in ["tenant", "platform", "account", "campaign", "ad_group", "creative"] {
            assert!(line[field].as_str().is_some_and(|text| !text.is_empty()), "{line}");
        }
        let numbers: &[&str] = match line["type"].as_str() {
            Some("event") => &["ts_us", "cost_micros", "revenue_micros"],
            Some("report") => {
                &["start_us", "end_us", "as_of_us", "impressions", "clicks", "conversions"]
            }
            other => panic!("{other:?}"),
        };
        assert!(numbers.iter().all(|field| line[field].is_i64()), "{line}");
        assert_eq!(line["event_id"].is_string(), line["type"] == "event");
    }
    assert_eq!(Vec::from_iter(seen), ["click", "conversion", "impression", "report"]);
    served.stop().await;
}

#[tokio::test]
async fn a_cursor_that_fell_off_is_gone_with_a_remedy() {
    let served = Served::start(100, Faults::default()).await;
    let start = served.platform.read(omnify_market::Market::now_us);
    let end = served.platform.advance_to(start + 3_600_000_000);
    let response = served.get("/v1/feed?after=0").await;
    assert_eq!(response.status(), StatusCode::GONE);
    let body = Served::json(response).await;
    assert_eq!(body["error"]["oldest"], json!(end - 100));
    assert!(body["error"]["message"].as_str().is_some_and(|m| m.contains("after=")));
    let response = served.get(&format!("/v1/feed?after={}", end - 100)).await;
    assert_eq!(header(&response, "x-next-cursor"), end);
    let time = Served::json(served.get("/v1/time").await).await;
    assert_eq!((&time["next_cursor"], &time["step_us"]), (&json!(end), &json!(60_000_000)));
    served.stop().await;
}

#[tokio::test]
async fn actions_are_applied_read_back_and_refused() {
    let served = Served::start(1_000, Faults::default()).await;
    let owner = served.owner(0);
    let bid = json!({"action_id": "a1", "owner": owner, "setting": "bid", "bid_micros": 1_234_567});
    let response = served.post(&bid).await;
    assert_eq!(response.status(), StatusCode::OK);
    let effective = json!({"setting": "bid", "bid_micros": 1_230_000});
    let want = json!({"action_id": "a1", "applied": true, "effective": effective});
    assert_eq!(Served::json(response).await, want);
    assert_eq!(Served::json(served.post(&bid).await).await["applied"], json!(false));

    let read = Served::json(served.get(&format!("/v1/entities/{owner}")).await).await;
    assert_eq!(read["bid_micros"], json!(1_230_000));
    assert_eq!((&read["status"], &read["currency"]), (&json!("enabled"), &json!("USD")));
    assert_eq!(read["time_zone"], json!("America/New_York"));
    assert_eq!(served.get("/v1/entities/no/such").await.status(), StatusCode::NOT_FOUND);

    let (mut after, mut entities) = (0, Vec::new());
    loop {
        let page = format!("/v1/entities?after={after}&limit=7");
        let page = Served::json(served.get(&page).await).await;
        entities.extend(page["entities"].as_array().expect("a list").clone());
        if page["next_after"] == json!(after) {
            break;
        }
        after = page["next_after"].as_u64().expect("a number");
    }
    // 8 campaigns of one ad group and four creatives.
    assert_eq!(entities.len(), 8 * 6);

    let refused = [
        (json!({"owner": owner, "setting": "bid", "bid_micros": 1}), 422, "body"),
        (json!({"action_id": "x", "owner": owner, "setting": "magic"}), 422, "body"),
        (
            json!({"action_id": "x", "owner": "a//b", "setting": "bid", "bid_micros": 1}),
            422,
            "owner",
        ),
        (
            json!({"action_id": "x", "owner": owner, "setting": "bid", "bid_micros": -5}),
            422,
            "bid_micros",
        ),
        (json!({"action_id": "x", "owner": "n/o/b/y", "setting": "bid", "bid_micros": 1}), 404, ""),
        (
            json!({"action_id": "x", "owner": owner, "setting": "status", "status": "paused",
                "before": {"setting": "status", "status": "paused"}}),
            409,
            "",
        ),
    ];
    for (action, status, field) in refused {
        let response = served.post(&action).await;
        assert_eq!(response.status().as_u16(), status, "{action}");
        let body = Served::json(response).await;
        assert_eq!(body["error"]["field"].as_str().unwrap_or(""), field, "{body}");
        assert!(body["error"]["message"].as_str().is_some_and(|text| text.len() > 10), "{body}");
    }
    for n in 1..=5 {
        let budget_micros = 100_000_000 + n * 1_000_000;
        let action = json!({"action_id": n.to_string(), "owner": owner, "setting": "budget", "budget_micros": budget_micros});
        let response = served.post(&action).await;
        if n < 5 {
            assert_eq!(response.status(), StatusCode::OK);
        } else {
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(header(&response, "retry-after"), 3_600);
            assert_eq!(Served::json(response).await["error"]["class"], json!("change_quota"));
        }
    }
    served.stop().await;
}

#[tokio::test]
async fn scripted_faults_fail_as_told() {
    use Fault::{Conflict, ErrorAfter, ErrorBefore, Throttle, TimeoutAfter, TimeoutBefore};
    let faults = [ErrorBefore, ErrorAfter, TimeoutBefore, TimeoutAfter, Throttle, Conflict];
    let script = (0..).zip(faults).collect();
    let served = Served::start(1_000, Faults { script, hold_ms: 0, ..Faults::default() }).await;
    let mut held = served.bid(0);
    let statuses = [500, 500, 504, 504, 429, 409, 200];
    let commits = [false, true, false, true, false, false, true];
    for (n, (status, commits)) in statuses.into_iter().zip(commits).enumerate() {
        let bid_micros = 1_000_000 + 10_000 * n as i64;
        let action = json!({"action_id": n.to_string(), "owner": served.owner(0), "setting": "bid", "bid_micros": bid_micros});
        let response = served.post(&action).await;
        assert_eq!(response.status().as_u16(), status, "action {n}");
        assert_eq!(response.headers().contains_key("retry-after"), status == 429);
        held = if commits { Some(bid_micros) } else { held };
        assert_eq!(served.bid(0), held, "action {n}");
    }
    served.stop().await;
}

#[tokio::test]
async fn a_timeout_outlasts_a_patient_client() {
    let script = [(0, Fault::TimeoutAfter)].into();
    let served =
        Served::start(1_000, Faults { script, hold_ms: 60_000, ..Faults::default() }).await;
    let action = json!({"action_id": "a", "owner": served.owner(0), "setting": "bid", "bid_micros": 1_000_000});
    let post = served.client.post(format!("{}/v1/actions", served.base)).json(&action);
    let lost = post.timeout(Duration::from_millis(300)).send().await;
    assert!(lost.is_err_and(|error| error.is_timeout()));
    assert_eq!(served.bid(0), Some(1_000_000), "it took effect all the same");
    served.done.abort();
}

#[test]
fn fault_rates_are_seeded_and_as_often_as_told() {
    let rates = FaultRates { error_before: 0.1, throttle: 0.2, ..FaultRates::default() };
    let faults = Faults { seed: 3, rates, ..Faults::default() };
    let count = |wanted| (0..10_000).filter(|n| faults.of(*n) == Some(wanted)).count();
    assert!((850..1_150).contains(&count(Fault::ErrorBefore)));
    assert!((1_800..2_200).contains(&count(Fault::Throttle)));
    assert_eq!(count(Fault::Conflict), 0);
    let again = faults.clone();
    assert!((0..1_000).all(|n| faults.of(n) == again.of(n)));
    let other = Faults { seed: 4, ..faults.clone() };
    assert!((0..1_000).any(|n| faults.of(n) != other.of(n)));
}
