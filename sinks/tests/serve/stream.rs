//! The stream of changes and the server around it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::http::{StatusCode, header};
use omnify_decision::action::Verdict;
use omnify_operators::model::Level;
use omnify_sinks::serve::{ActionState, AppState, router, serve};
use serde_json::Value;
use tokio_stream::StreamExt;

use crate::support::{action, board, counters, decision, entities, frame, reply, request, send};

fn data(bytes: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("data: "))?;
    Some(serde_json::from_str(line).unwrap())
}

#[tokio::test(start_paused = true)]
async fn changes_are_told_once() {
    let entities = entities();
    let mut board = board(&entities);
    let router = router(AppState::new(board.subscribe()));
    let response = send(&router, request("/v1/stream", None)).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let mut events = response.into_body().into_data_stream();
    let first = data(&events.next().await.unwrap().unwrap()).unwrap();
    assert_eq!(first["decisions"].as_array().unwrap().len(), 6, "no-ops are left out");
    assert_eq!(first["actions"].as_array().unwrap().len(), 6);
    assert_eq!(first["counters"]["events_in"], 7);

    let campaign = entities.iter().find(|info| info.level == Level::Campaign).unwrap();
    board.update(&frame(&entities, 8));
    board.decision(&decision(campaign, 8, Verdict::Act));
    board.action(&action(campaign, 8), ActionState::InFlight);
    board.publish(8, counters(9));
    let second = data(&events.next().await.unwrap().unwrap()).unwrap();
    assert_eq!(second["as_of_tick"], 8);
    assert_eq!(second["decisions"].as_array().unwrap().len(), 1);
    assert_eq!(second["actions"].as_array().unwrap().len(), 1);
    assert_eq!(second["decisions"][0]["tick"], 8);

    drop(board);
    assert!(events.next().await.is_none(), "the stream ends with the board");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_stands_still_is_told() {
    let board = board(&entities());
    let clock = Arc::new(AtomicU64::new(1));
    let mut state = AppState::new(board.subscribe());
    let now = clock.clone();
    state.present = Some(Arc::new(move || now.load(Ordering::Relaxed)));
    let router = router(state);
    let response = send(&router, request("/v1/stream", None)).await;
    let mut events = response.into_body().into_data_stream();
    let ready = async |events: &mut BodyDataStream| {
        let event = data(&events.next().await.unwrap().unwrap()).unwrap();
        let status = reply(&router, request("/v1/status", None)).await.json();
        assert_eq!(event["readiness"], status["readiness"]);
        event["readiness"]["ready"].as_bool().unwrap()
    };
    assert!(ready(&mut events).await);
    clock.store(9_000, Ordering::Relaxed);
    assert!(!ready(&mut events).await, "nothing was published, and it is said");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_dropped_with_a_comment() {
    let entities = entities();
    let mut board = board(&entities);
    let router = router(AppState::new(board.subscribe()));
    let mut events =
        send(&router, request("/v1/stream", None)).await.into_body().into_data_stream();
    for tick in 10..40 {
        board.publish(tick, counters(tick));
        tokio::time::sleep(Duration::from_millis(260)).await;
    }
    let mut texts = Vec::new();
    while let Some(event) = events.next().await {
        texts.push(String::from_utf8(event.unwrap().to_vec()).unwrap());
    }
    assert!(texts.last().unwrap().contains(": dropped"), "{texts:?}");
    assert!(texts.len() < 12, "the queue is bounded: {}", texts.len());
}

#[tokio::test]
async fn streams_are_bounded_and_free_their_place() {
    let board = board(&entities());
    let mut state = AppState::new(board.subscribe());
    state.limits.streams_max = 1;
    let router = router(state);
    let first = send(&router, request("/v1/stream", None)).await;
    assert_eq!(first.status(), StatusCode::OK);
    let second = reply(&router, request("/v1/stream", None)).await;
    assert_eq!(second.error_code(), "streams_full");
    assert_eq!(second.header(header::RETRY_AFTER), "10");
    drop(first);
    // The place is free once the stream's task has seen that its client is gone.
    for _ in 0..500 {
        if send(&router, request("/v1/stream", None)).await.status() == StatusCode::OK {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("a client that left keeps its place");
}

#[tokio::test]
async fn the_server_stops_when_told_even_with_a_stream_open() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let board = board(&entities());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let state = AppState::new(board.subscribe());
    let server = tokio::spawn(serve(listener, state, async {
        let _ = stopped.await;
    }));
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /v1/stream HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut start = [0; 12];
    client.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
    drop(board);
}
