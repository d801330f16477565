//! Invariant 9: no tenant reads another's rows, on any route the API describes.

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use omnify_decision::action::{Setting, Verdict};
use omnify_decision::bid::{BidAnswer, BidContext};
use omnify_decision::control::Outcome;
use omnify_operators::model::Level;
use omnify_sinks::serve::{
    Accepted, ActionState, AppState, BidError, Bidder, Ingest, IngestFuture, OPENAPI, Problem,
    Push, Scope, router,
};
use proptest::prelude::*;
use serde_json::Value;
use std::sync::{Arc, Mutex};
use tokio_stream::StreamExt;

use crate::support::{
    TENANTS, action, counters, decision, entities, frame, id, proposals, reply, request, send,
    token, tokens,
};

/// Answers with a secret of the tenant it is asked about.
struct Secrets;

impl Bidder for Secrets {
    fn bid(&self, context: &BidContext) -> Result<BidAnswer, BidError> {
        Err(BidError::Unknown(format!("secret of {}", context.key)))
    }
}

#[derive(Default)]
struct Scopes(Mutex<Vec<Scope>>);

impl Ingest for Scopes {
    fn push(&self, push: Push) -> IngestFuture<'_> {
        self.0.lock().unwrap().push(push.scope);
        Box::pin(async { Ok(Accepted::default()) })
    }
}

fn state(scopes: Arc<Scopes>) -> (AppState, omnify_sinks::serve::Board) {
    let entities = entities();
    let mut board = crate::support::board(&entities);
    board.update(&frame(&entities, 5));
    for info in entities.iter().filter(|info| info.level == Level::Campaign) {
        board.decision(&decision(info, 5, Verdict::Blocked));
        board.action(&action(info, 5), ActionState::InFlight);
        let message = format!("refused for {}", info.key);
        let refused = Outcome::Rejected { class: "validation".into(), message };
        board.outcome(action(info, 5).id, &refused, 6);
        let bid = Setting::Bid { bid_micros: 1 };
        board.outcome(id(info.order, 9), &Outcome::Applied { effective: bid }, 6);
    }
    board.proposals(proposals().into_iter());
    let mut now = counters(5);
    let text = TENANTS.map(|tenant| format!("act_{tenant} is late")).join(", ");
    now.problems = vec![Problem { code: "late_feed", text }];
    board.publish(6, now);
    let mut state = AppState::new(board.subscribe());
    state.tokens = tokens();
    state.bidder = Some(Arc::new(Secrets));
    state.ingest = Some(scopes);
    state.metrics = Some(omnify_sinks::telemetry::install().unwrap());
    (state, board)
}

/// Values worth trying for a parameter: its own choices, and names of all tenants.
fn tries(parameter: &Value, victim: &str) -> Vec<String> {
    let schema = &parameter["schema"];
    if let Some(known) = schema["enum"].as_array() {
        return known.iter().map(|one| one.as_str().unwrap().to_owned()).collect();
    }
    match schema["type"].as_str().unwrap_or("string") {
        "integer" => ["0", "1", "5", "1000"].map(String::from).to_vec(),
        "boolean" => vec!["true".into(), "false".into()],
        _ => vec![
            victim.to_owned(),
            format!("{victim}%2Fmeta%2Fact_{victim}"),
            format!("{victim}/meta/act_{victim}/brand_{victim}"),
            format!("fff0000000000000:{victim}"),
            "meta".into(),
            "1h%2F1m".into(),
        ],
    }
}

/// Every name of another tenant's that could show: its accounts and campaigns carry its name.
fn leaks(text: &str, own: &str) -> Option<String> {
    let others = TENANTS.iter().filter(|tenant| **tenant != own);
    let names = others.flat_map(|tenant| {
        [format!("act_{tenant}"), format!("brand_{tenant}"), format!("sale_{tenant}")]
    });
    // `act_acme` is also the beginning of `act_acme-2`: look for it as a whole name.
    names.into_iter().find(|name| {
        text.match_indices(name.as_str()).any(|(at, _)| {
            let next = text[at + name.len()..].chars().next();
            !next.is_some_and(|c| c == '-' || c.is_alphanumeric())
        })
    })
}

#[test]
fn the_leak_finder_finds_leaks() {
    assert!(leaks("acme-2/meta/act_acme-2", "acme").is_some());
    assert!(leaks("acme/meta/act_acme/x", "acme").is_none());
    assert!(leaks("acme/meta/act_acme/x", "acme-2").is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever parameters a tenant sends on whatever route, what comes back names nobody else.
    #[test]
    fn no_route_shows_another_tenant(own in 0..3_usize, other in 1..3_usize, seed in any::<u64>()) {
        let own_name = TENANTS[own];
        let victim = TENANTS[(own + other) % TENANTS.len()];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (state, _board) = state(Arc::default());
            let router = router(state);
            let api: Value = serde_json::from_str(OPENAPI).unwrap();
            let mut roll = seed;
            let mut next = |bound: usize| {
                roll = roll.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                usize::try_from(roll >> 33).unwrap() % bound
            };
            for (path, methods) in api["paths"].as_object().unwrap() {
                if path == "/v1/stream" || methods.get("get").is_none() {
                    continue;
                }
                let empty = Vec::new();
                let parameters = methods["get"]["parameters"].as_array().unwrap_or(&empty);
                // Nothing, each parameter alone with each value, and some in combination.
                let mut asked = vec![String::new()];
                for parameter in parameters.iter().filter(|one| one["in"] == "query") {
                    let name = parameter["name"].as_str().unwrap();
                    asked.extend(tries(parameter, victim).iter().map(|v| format!("{name}={v}")));
                }
                for _ in 0..6 {
                    let pairs = [asked[next(asked.len())].clone(), asked[next(asked.len())].clone()];
                    asked.push(pairs.join("&"));
                }
                let place = format!("{victim}/meta/act_{victim}/brand_{victim}");
                let path = path.replace("{entity}", &place).replace("{file}", "app.js");
                for query in asked {
                    let uri = format!("{path}?{query}");
                    let reply = reply(&router, request(&uri, Some(&token(own_name)))).await;
                    // An error may repeat what the caller asked for, and nothing else.
                    if reply.status.is_success() || path == "/readyz" {
                        let leak = leaks(&reply.body, own_name);
                        assert!(leak.is_none(), "{own_name} reads {leak:?} of {victim} at {uri}");
                    } else {
                        for told in ["secret", "exists", "refused"] {
                            assert!(!reply.body.contains(told), "{uri}: {}", reply.body);
                        }
                        let code = reply.error_code();
                        let known = ["wrong_tenant", "bad_query", "operator_only", "unknown_entity"];
                        assert!(known.contains(&code.as_str()), "{uri}: {code}");
                    }
                }
            }
        });
    }
}

#[tokio::test]
async fn a_tenant_still_sees_its_own_and_an_operator_everything() {
    let (state, _board) = state(Arc::default());
    let router = router(state);
    for (who, rows) in [("acme", 12), ("acme-2", 12), ("operator", 36)] {
        let page = reply(&router, request("/v1/features?limit=1000", Some(&token(who)))).await;
        assert_eq!(page.json()["rows"].as_array().unwrap().len(), rows, "{who}");
    }
    // The same question from two tenants, one right after the other: no shared memory.
    let one = reply(&router, request("/v1/actions", Some(&token("acme")))).await.json();
    let two = reply(&router, request("/v1/actions", Some(&token("rival")))).await.json();
    assert_eq!(one["actions"].as_array().unwrap().len(), 4);
    assert_ne!(one, two);
    let status = reply(&router, request("/v1/status", Some(&token("acme")))).await.json();
    assert_eq!(status["counters"], Value::Null);
    assert_eq!(status["entities"], 12);
}

#[tokio::test]
async fn the_stream_shows_only_its_tenant() {
    let (state, board) = state(Arc::default());
    let router = router(state);
    let response = send(&router, request("/v1/stream", Some(&token("acme")))).await;
    assert_eq!(response.status(), StatusCode::OK);
    let first = response.into_body().into_data_stream().next().await.unwrap().unwrap();
    let text = String::from_utf8(first.to_vec()).unwrap();
    assert!(text.contains("act_acme/brand_acme"), "{text}");
    assert_eq!(leaks(&text, "acme"), None);
    assert!(text.contains("\"counters\":null"));
    drop(board);
}

#[tokio::test]
async fn bids_and_events_keep_to_the_tenant() {
    let scopes = Arc::<Scopes>::default();
    let (state, _board) = state(scopes.clone());
    let router = router(state);
    let post = |path: &str, body: String| {
        Request::post(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", token("acme")))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .unwrap()
    };
    for tenant in ["rival", "acme-2"] {
        let body = format!(r#"{{"key": "{tenant}/meta/act_{tenant}/brand_{tenant}"}}"#);
        let refused = reply(&router, post("/v1/bids", body)).await;
        assert_eq!(refused.error_code(), "wrong_tenant");
        assert!(!refused.body.contains("secret"));
    }
    let own = post("/v1/bids", r#"{"key": "acme/meta/act_acme/brand_acme"}"#.into());
    assert!(reply(&router, own).await.body.contains("secret of acme/"));
    let pushed = reply(&router, post("/v1/events", "[]".into())).await;
    assert_eq!(pushed.status, StatusCode::ACCEPTED);
    assert_eq!(*scopes.0.lock().unwrap(), [Scope::Tenant("acme".into())]);
}
