//! `/v1/proposals`, `/v1/kill`, `/v1/resume`: who may order what, and what reaches the engine.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use omnify_decision::control::Control;
use omnify_sinks::serve::{AppState, OrderFuture, Orders, PushError, router};
use serde_json::Value;

use crate::support::{Reply, board, counters, entities, proposals, reply, request, token, tokens};

/// Keeps what it is told; refuses while it is closed.
#[derive(Default)]
struct Desk {
    taken: Mutex<Vec<Control>>,
    closed: bool,
}

impl Orders for Desk {
    fn order(&self, control: Control) -> OrderFuture<'_> {
        Box::pin(async move {
            if self.closed {
                return Err(PushError::Closed("it is stopping".into()));
            }
            self.taken.lock().unwrap().push(control);
            Ok(())
        })
    }
}

fn app(desk: Arc<Desk>) -> Router {
    let mut board = board(&entities());
    board.proposals(proposals().into_iter());
    board.publish(2, counters(7));
    let mut state = AppState::new(board.subscribe());
    state.tokens = tokens();
    state.orders = Some(desk);
    router(state)
}

async fn post(router: &Router, path: &str, who: &str, body: &str) -> Reply {
    let request = Request::post(path)
        .header(header::AUTHORIZATION, format!("Bearer {}", token(who)))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_owned()))
        .unwrap();
    reply(router, request).await
}

/// Ids of the proposals that `who` sees.
async fn open(router: &Router, who: &str) -> Vec<String> {
    let answer = reply(router, request("/v1/proposals", Some(&token(who)))).await.json();
    let ids = answer["proposals"].as_array().unwrap().iter();
    ids.map(|open: &Value| open["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_tenant_answers_its_own_proposals_only() {
    let desk = Arc::<Desk>::default();
    let router = app(desk.clone());
    let (own, others) = (open(&router, "acme").await, open(&router, "rival").await);
    assert_eq!((own.len(), others.len(), open(&router, "operator").await.len()), (2, 2, 6));
    let approve = format!("/v1/proposals/{}/approve", own[0]);
    let taken = post(&router, &approve, "acme", r#"{"by": " ann "}"#).await;
    assert_eq!(taken.status, StatusCode::ACCEPTED, "{}", taken.body);
    let reject = format!("/v1/proposals/{}/reject", own[1]);
    let taken = post(&router, &reject, "operator", r#"{"by": "bob", "reason": "no"}"#).await;
    assert_eq!(taken.status, StatusCode::ACCEPTED, "{}", taken.body);
    // Another tenant's is answered as if it did not exist.
    let foreign = format!("/v1/proposals/{}/approve", others[0]);
    let none = format!("/v1/proposals/{}/approve", "0".repeat(32));
    let foreign = post(&router, &foreign, "acme", r#"{"by": "ann"}"#).await;
    let none = post(&router, &none, "acme", r#"{"by": "ann"}"#).await;
    for refused in [&foreign, &none] {
        assert_eq!(refused.status, StatusCode::NOT_FOUND);
        assert_eq!(refused.error_code(), "unknown_proposal");
    }
    let proposal = |id: &str| id.to_owned().try_into().unwrap();
    assert_eq!(
        *desk.taken.lock().unwrap(),
        [
            Control::Approve { proposal: proposal(&own[0]), by: "ann".into() },
            Control::Reject { proposal: proposal(&own[1]), by: "bob".into(), reason: "no".into() },
        ]
    );
}

#[tokio::test]
async fn kills_reach_as_far_as_the_token() {
    let desk = Arc::<Desk>::default();
    let router = app(desk.clone());
    for (who, path, body) in [
        ("acme", "/v1/kill", "{}"),
        ("operator", "/v1/kill", r#"{"tenant": "rival"}"#),
        ("operator", "/v1/kill", "{}"),
        ("operator", "/v1/resume", "{}"),
        ("acme", "/v1/resume", r#"{"tenant": "acme"}"#),
    ] {
        let taken = post(&router, path, who, body).await;
        assert_eq!(taken.status, StatusCode::ACCEPTED, "{}", taken.body);
    }
    let foreign = post(&router, "/v1/kill", "acme", r#"{"tenant": "rival"}"#).await;
    assert_eq!(foreign.error_code(), "wrong_tenant");
    let tenant = |name: &str| Some(name.to_owned());
    assert_eq!(
        *desk.taken.lock().unwrap(),
        [
            Control::Kill { tenant: tenant("acme") },
            Control::Kill { tenant: tenant("rival") },
            Control::Kill { tenant: None },
            Control::Resume { tenant: None },
            Control::Resume { tenant: tenant("acme") },
        ]
    );
}

#[tokio::test]
async fn bad_orders_say_what_is_wrong() {
    let desk = Arc::<Desk>::default();
    let router = app(desk.clone());
    let id = &open(&router, "acme").await[0];
    let approve = format!("/v1/proposals/{id}/approve");
    for (path, body, code) in [
        (approve.as_str(), "{}", "malformed"),
        (approve.as_str(), r#"{"by": "  "}"#, "malformed"),
        (approve.as_str(), r#"{"by": "a\nb"}"#, "malformed"),
        (approve.as_str(), r#"{"by": "ann", "tick": 5}"#, "malformed"),
        ("/v1/proposals/xyz/approve", r#"{"by": "ann"}"#, "malformed"),
        ("/v1/kill", r#"{"tenants": "acme"}"#, "malformed"),
        ("/v1/kill", r#"{"tenant": 5}"#, "malformed"),
        ("/v1/kill", "", "malformed"),
    ] {
        let refused = post(&router, path, "acme", body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{path} {body}");
        assert_eq!(refused.error_code(), code, "{path} {body}");
    }
    let long = format!(r#"{{"by": "ann", "reason": "{}"}}"#, "x".repeat(3_000));
    let reject = format!("/v1/proposals/{id}/reject");
    assert_eq!(post(&router, &reject, "acme", &long).await.error_code(), "malformed");
    let huge = format!(r#"{{"tenant": "{}"}}"#, "x".repeat(20_000));
    assert_eq!(post(&router, "/v1/kill", "acme", &huge).await.error_code(), "too_large");
    // A type that a foreign page can send.
    let plain = Request::post("/v1/kill")
        .header(header::AUTHORIZATION, format!("Bearer {}", token("acme")))
        .header(header::CONTENT_TYPE, "text/plain")
        .body(Body::from("{}"));
    assert_eq!(reply(&router, plain.unwrap()).await.error_code(), "content_type");
    assert!(desk.taken.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_engine_that_stops_says_so() {
    let router = app(Arc::new(Desk { closed: true, ..Desk::default() }));
    let refused = post(&router, "/v1/kill", "operator", "{}").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.error_code(), "closed");
    let mut state = AppState::new(board(&entities()).subscribe());
    state.tokens = tokens();
    let without = post(&omnify_sinks::serve::router(state), "/v1/kill", "operator", "{}").await;
    assert_eq!(without.error_code(), "no_orders");
}
