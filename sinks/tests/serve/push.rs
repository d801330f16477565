//! `POST /v1/events` and `POST /v1/bids`: every answer a caller has to handle.

use std::io::Write;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use omnify_decision::bid::{BidAnswer, BidContext};
use omnify_sinks::serve::{
    Accepted, AppState, BidError, Bidder, Board, Ingest, IngestFuture, Push, PushError, PushFormat,
    router,
};

use crate::support::{Reply, config, reply};

/// Does what the body says.
struct Echo;

impl Ingest for Echo {
    fn push(&self, push: Push) -> IngestFuture<'_> {
        Box::pin(async move {
            match &push.body[..] {
                b"busy" => Err(PushError::Busy { retry_after_s: 3 }),
                b"closed" => Err(PushError::Closed("shutting down".into())),
                b"bad" => Err(PushError::Malformed { row: 2, reason: "no kind".into() }),
                b"slow" => std::future::pending().await,
                b"key" => {
                    let key = push.key.unwrap_or_default();
                    Ok(Accepted { accepted: key.len() as u64, ..Accepted::default() })
                }
                b"strict" => {
                    Ok(Accepted { ignored: u64::from(push.strict), ..Accepted::default() })
                }
                body => {
                    let lines = u64::try_from(body.split(|byte| *byte == b'\n').count()).unwrap();
                    let ndjson = push.format == PushFormat::Ndjson;
                    Ok(Accepted { accepted: lines, ignored: u64::from(ndjson), dead_letters: 0 })
                }
            }
        })
    }
}

struct Fixed;

impl Bidder for Fixed {
    fn bid(&self, context: &BidContext) -> Result<BidAnswer, BidError> {
        if context.floor_micros == Some(0) {
            return Err(BidError::Unavailable("no state yet".into()));
        }
        Ok(BidAnswer {
            bid_micros: Some(1_230_000),
            mu: 1.0,
            lambda: 0.0,
            ctr: 0.01,
            cvr: 0.02,
            pricing: None,
            reasons: vec![],
            tick: 9,
            goal: "g".into(),
        })
    }
}

fn app() -> Router {
    let mut state = AppState::new(Board::new(config()).subscribe());
    state.ingest = Some(Arc::new(Echo));
    state.bidder = Some(Arc::new(Fixed));
    state.limits.body_bytes_max = 1_000;
    state.limits.request_timeout = std::time::Duration::from_millis(200);
    router(state)
}

async fn post(path: &str, kind: &str, body: impl Into<Body>) -> Reply {
    let request = Request::post(path).header(header::CONTENT_TYPE, kind);
    reply(&app(), request.body(body.into()).unwrap()).await
}

const NDJSON: &str = "application/x-ndjson";
const JSON: &str = "application/json";

#[tokio::test]
async fn events_are_taken_in_or_refused_with_a_reason() {
    let taken = post("/v1/events", NDJSON, "{}\n{}\n{}").await;
    assert_eq!(taken.status, StatusCode::ACCEPTED);
    assert_eq!(taken.json()["accepted"], 3);
    assert_eq!(taken.json()["ignored"], 1, "the format was handed on");
    assert_eq!(
        post("/v1/events", "application/json; charset=utf-8", "[]").await.json()["ignored"],
        0
    );
    let bad = post("/v1/events", JSON, "bad").await;
    assert_eq!((bad.status, bad.error_code().as_str()), (StatusCode::BAD_REQUEST, "malformed"));
    assert_eq!(bad.json()["error"]["message"], "row 2: no kind");
    let busy = post("/v1/events", JSON, "busy").await;
    assert_eq!(busy.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(busy.header(header::RETRY_AFTER), "3");
    assert_eq!(post("/v1/events", JSON, "closed").await.status, StatusCode::SERVICE_UNAVAILABLE);
    let slow = post("/v1/events", JSON, "slow").await;
    assert_eq!((slow.status, slow.error_code().as_str()), (StatusCode::REQUEST_TIMEOUT, "timeout"));
}

#[tokio::test]
async fn bodies_are_bounded_also_when_compressed() {
    let large = post("/v1/events", NDJSON, "x".repeat(1_001)).await;
    assert_eq!(
        (large.status, large.error_code().as_str()),
        (StatusCode::PAYLOAD_TOO_LARGE, "too_large")
    );
    let zip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let send = async |bytes: Vec<u8>| {
        let request = Request::post("/v1/events")
            .header(header::CONTENT_TYPE, NDJSON)
            .header(header::CONTENT_ENCODING, "gzip");
        reply(&app(), request.body(Body::from(bytes)).unwrap()).await
    };
    assert_eq!(send(zip("{}\n{}")).await.json()["accepted"], 2);
    let bomb = zip(&" ".repeat(100_000));
    assert!(bomb.len() < 1_000, "the bomb itself is within the limit");
    assert_eq!(send(bomb).await.error_code(), "too_large");
    let mut cut = zip("{}\n{}");
    cut.truncate(12);
    assert_eq!(send(cut).await.error_code(), "bad_body");
}

#[tokio::test]
async fn only_types_that_a_foreign_page_cannot_send_are_read() {
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""] {
        for path in ["/v1/events", "/v1/bids"] {
            let refused = post(path, kind, "{}").await;
            assert_eq!(refused.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind} {path}");
            assert_eq!(refused.error_code(), "content_type");
        }
    }
}

#[tokio::test]
async fn bids_are_answered() {
    let bid = post("/v1/bids", JSON, r#"{"key": "acme/meta/a/c"}"#).await;
    assert_eq!((bid.status, bid.json()["bid_micros"].as_i64()), (StatusCode::OK, Some(1_230_000)));
    let early = post("/v1/bids", JSON, r#"{"key": "acme/meta/a/c", "floor_micros": 0}"#).await;
    assert_eq!(early.error_code(), "not_ready");
    assert_eq!(post("/v1/bids", JSON, r#"{"key": "acme/meta"}"#).await.error_code(), "malformed");
    assert_eq!(post("/v1/bids", JSON, "nonsense").await.error_code(), "malformed");
    let none = router(AppState::new(Board::new(config()).subscribe()));
    for path in ["/v1/bids", "/v1/events"] {
        let request = Request::post(path).header(header::CONTENT_TYPE, JSON);
        let request = request.body(Body::from(r#"{"key": "acme"}"#)).unwrap();
        assert_eq!(reply(&none, request).await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test]
async fn a_stream_of_any_length_is_taken_in_pieces_of_whole_lines() {
    let line = format!("{}\n", "x".repeat(99));
    let body = line.repeat(95);
    let taken = post("/v1/events", NDJSON, body.clone()).await;
    assert_eq!(taken.status, StatusCode::ACCEPTED);
    // Ten pieces; the echo counts one line more for each, behind its last line break.
    assert_eq!(taken.json()["accepted"], 95 + 10);
    assert_eq!(taken.json()["ignored"], 10);
    let broken = format!("{body}{}", "y".repeat(1_001));
    let refused = post("/v1/events", NDJSON, broken).await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE, "{:?}", refused.json());
    let document = post("/v1/events", JSON, body).await;
    assert_eq!(document.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_body_has_the_name_its_sender_gives_it() {
    let send = |key: &'static str| async move {
        let request = Request::post("/v1/events")
            .header(header::CONTENT_TYPE, NDJSON)
            .header("Idempotency-Key", key);
        reply(&app(), request.body(Body::from("key")).unwrap()).await
    };
    let named = send("batch-7").await;
    assert_eq!((named.status, &named.json()["accepted"]), (StatusCode::ACCEPTED, &7.into()));
    assert_eq!(send("a#1").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(send("").await.status, StatusCode::BAD_REQUEST);
    let unnamed = post("/v1/events", NDJSON, "key").await;
    assert_eq!(unnamed.json()["accepted"], 0);
}

#[tokio::test]
async fn zstd_bodies_are_read_and_strictness_is_passed_on() {
    let body = zstd::encode_all(&b"{}\n{}\n{}"[..], 1).unwrap();
    let request = Request::post("/v1/events")
        .header(header::CONTENT_TYPE, NDJSON)
        .header(header::CONTENT_ENCODING, "zstd");
    let taken = reply(&app(), request.body(Body::from(body)).unwrap()).await;
    assert_eq!(taken.json()["accepted"], 3);
    for (path, ignored) in [("/v1/events?strict=true", 1), ("/v1/events", 0)] {
        assert_eq!(post(path, NDJSON, "strict").await.json()["ignored"], ignored);
    }
}
