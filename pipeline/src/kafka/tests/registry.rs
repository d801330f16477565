//! Topics with a schema registry, which the test plays itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rdkafka::mocking::MockCluster;
use serde_json::json;

use super::payload::{EVENT_AVSC, PROTO, avro_event, protobuf};
use super::rig::{Rig, TOPIC, event, producer, send, until};
use crate::kafka::{Format, RegistryOptions, SourceOptions, TopicKind, TopicOptions};

#[derive(Clone, Default)]
struct Schemas {
    known: Arc<Mutex<BTreeMap<String, serde_json::Value>>>,
    asked: Arc<AtomicUsize>,
    refusals: Arc<AtomicUsize>,
}

async fn answer(State(schemas): State<Schemas>, uri: Uri, headers: HeaderMap) -> Response {
    schemas.asked.fetch_add(1, Ordering::SeqCst);
    // "omnify:pass" in base64.
    if headers.get("authorization").is_none_or(|value| value != "Basic b21uaWZ5OnBhc3M=") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let refuse = |left: usize| left.checked_sub(1);
    if schemas.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, refuse).is_ok() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match schemas.known.lock().unwrap().get(uri.path().trim_start_matches('/')) {
        Some(schema) => axum::Json(schema.clone()).into_response(),
        None => (StatusCode::NOT_FOUND, axum::Json(json!({"error_code": 40403}))).into_response(),
    }
}

/// Plays a registry; its URL.
fn play(rig: &Rig, schemas: &Schemas) -> String {
    let router = Router::new().route("/{*path}", get(answer)).with_state(schemas.clone());
    let listener = rig.runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    rig.runtime.spawn(async move { axum::serve(listener, router).await });
    url
}

fn framed(id: u32, body: &[u8]) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], body].concat()
}

fn options(brokers: &str, url: String, format: Format) -> SourceOptions {
    let topic = TopicOptions { format, framed: true, ..TopicOptions::events(TOPIC) };
    let mut options = SourceOptions::at(brokers, vec![topic]);
    let credentials = Some(("omnify".to_owned(), "pass".to_owned()));
    options.registry = Some(RegistryOptions { url, credentials });
    options.session_timeout = Duration::from_secs(6);
    options
}

#[test]
fn a_partition_waits_for_the_registry_and_the_others_go_on() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 2, 1).unwrap();
    let brokers = cluster.bootstrap_servers();
    let schemas = Schemas::default();
    let schema = json!({ "schema": EVENT_AVSC });
    schemas.known.lock().unwrap().insert("schemas/ids/7".into(), schema.clone());
    // The newer schema has a field more and is not there yet.
    let newer = EVENT_AVSC
        .replace("\"fields\": [", "\"fields\": [{\"name\": \"extra\", \"type\": \"string\"},");
    let rig = Rig::new(10_000);
    let url = play(&rig, &schemas);
    let producer = producer(&brokers);
    let with_extra = |n| [&[4_u8, b'h', b'i'][..], &avro_event(n)].concat();
    send(&producer, TOPIC, 0, &[framed(7, &avro_event(0)), framed(7, &avro_event(1))]);
    let source = rig.start(&options(&brokers, url, Format::avro(TopicKind::Events, None).unwrap()));
    assert_eq!(rig.rows(2).sorted(), [0, 1]);
    // From now on the registry is down.
    schemas.refusals.store(usize::MAX, Ordering::SeqCst);
    send(&producer, TOPIC, 1, &[framed(8, &with_extra(2)), framed(7, &avro_event(3))]);
    send(&producer, TOPIC, 0, &[framed(7, &avro_event(4))]);
    until(&source, "partition 1 waits", |status| status.waiting.len() == 1);
    assert_eq!(rig.rows(1).sorted(), [4], "what is known goes on");
    assert_eq!(source.status().problems()[0].code, "kafka_registry");
    schemas.known.lock().unwrap().insert("schemas/ids/8".into(), json!({ "schema": newer }));
    schemas.refusals.store(0, Ordering::SeqCst);
    let taken = rig.rows(2);
    assert_eq!(taken.numbers, [2, 3], "in the order of the partition");
    assert!(taken.arrivals.iter().all(|arrival| arrival.batch.dead.is_empty()));
    until(&source, "nothing waits", |status| status.waiting.is_empty());
    // A known schema is asked for once.
    let asked = schemas.asked.load(Ordering::SeqCst);
    send(&producer, TOPIC, 1, &[framed(8, &with_extra(5)), framed(7, &avro_event(6))]);
    assert_eq!(rig.rows(2).sorted(), [5, 6]);
    assert_eq!(schemas.asked.load(Ordering::SeqCst), asked);
}

#[test]
fn what_the_registry_does_not_have_is_a_dead_letter() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    let brokers = cluster.bootstrap_servers();
    let schemas = Schemas::default();
    let recursive = r#"{"type":"record","name":"n","fields":[{"name":"n","type":["null","n"]}]}"#;
    let known = [
        ("schemas/ids/1", json!({ "schema": recursive })),
        ("schemas/ids/2", json!({ "schema": PROTO, "schemaType": "PROTOBUF" })),
        ("schemas/ids/3", json!({ "schema": EVENT_AVSC, "schemaType": "AVRO" })),
    ];
    for (path, schema) in known {
        schemas.known.lock().unwrap().insert(path.into(), schema);
    }
    let rig = Rig::new(10_000);
    let url = play(&rig, &schemas);
    let producer = producer(&brokers);
    let bodies = [
        framed(9, b"x"),
        framed(1, b"\x00"),
        framed(2, &avro_event(0)),
        avro_event(1),
        b"\x00\x00".to_vec(),
        framed(3, &avro_event(2)),
    ];
    send(&producer, TOPIC, 0, &bodies);
    let _source =
        rig.start(&options(&brokers, url, Format::avro(TopicKind::Events, None).unwrap()));
    let taken = rig.rows(6);
    assert_eq!(taken.sorted(), [2]);
    let details: Vec<_> = taken
        .arrivals
        .iter()
        .flat_map(|arrival| &arrival.batch.dead)
        .map(|letter| letter.detail.as_str())
        .collect();
    let wanted = ["does not have", "contains itself", "not Avro", "schema id", "schema id"];
    assert_eq!(details.len(), wanted.len());
    for (detail, wanted) in details.iter().zip(wanted) {
        assert!(detail.contains(wanted), "{detail}");
    }
}

#[test]
fn protobuf_schemas_come_with_their_imports() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    let brokers = cluster.bootstrap_servers();
    let schemas = Schemas::default();
    let (head, messages) = PROTO.split_once("message Report").unwrap();
    let (report, rest) = messages.split_once("// A goal set").unwrap();
    let main = format!(
        "syntax = \"proto3\"; package x; import \"omnify.proto\";\n\
         message Report {report}\n message Other {{ message Inner {{ int64 nothing = 1; }} }}\n\
         message Wrapped {{ omnify.Event event = 1; }}"
    );
    let imported = format!("{head} // A goal set{rest}");
    let reference =
        json!([{ "name": "omnify.proto", "subject": "protos/omnify.proto", "version": 3 }]);
    let whole = json!({ "schema": PROTO, "schemaType": "PROTOBUF" });
    let split = json!({ "schema": main, "schemaType": "PROTOBUF", "references": reference });
    for (path, schema) in [
        ("schemas/ids/1", whole),
        ("schemas/ids/2", split),
        // A subject named after a file is one segment of the path.
        ("subjects/protos%2Fomnify.proto/versions/3", json!({ "schema": imported })),
    ] {
        schemas.known.lock().unwrap().insert(path.into(), schema);
    }
    let rig = Rig::new(10_000);
    let url = play(&rig, &schemas);
    let producer = producer(&brokers);
    let message = protobuf("omnify.Event", &event(5));
    let bodies = [
        // The short form of "the first message", and the long one.
        framed(1, &[&[0][..], &message].concat()),
        framed(1, &[&[2, 0][..], &message].concat()),
        // Message 1, in it message 0: it has none of our fields.
        framed(2, &[&[4, 2, 0][..], &[0x08, 0x01]].concat()),
        // No such message.
        framed(2, &[&[2, 80][..], &message].concat()),
    ];
    send(&producer, TOPIC, 0, &bodies);
    let format = Format::protobuf(TopicKind::Events, None, "").unwrap();
    let _source = rig.start(&options(&brokers, url, format));
    let taken = rig.rows(4);
    assert_eq!(taken.sorted(), [5, 5]);
    let reasons: Vec<_> = taken
        .arrivals
        .iter()
        .flat_map(|arrival| &arrival.batch.dead)
        .map(|letter| letter.reason)
        .collect();
    assert_eq!(reasons, ["missing_field", "malformed"]);
}

/// What serializers of JSON Schema write: the id, and JSON behind it. The engine checks rows by itself,
/// so it need not ask.
#[test]
fn json_behind_the_id_of_a_schema_is_read_without_asking() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    let brokers = cluster.bootstrap_servers();
    let schemas = Schemas::default();
    let rig = Rig::new(10_000);
    let url = play(&rig, &schemas);
    let bodies = [framed(9, event(1).as_bytes()), event(2).into_bytes()];
    send(&producer(&brokers), TOPIC, 0, &bodies);
    let _source = rig.start(&options(&brokers, url, Format::Json));
    let taken = rig.rows(2);
    assert_eq!(taken.sorted(), [1]);
    let dead: Vec<_> = taken.arrivals.iter().flat_map(|arrival| &arrival.batch.dead).collect();
    assert_eq!((dead.len(), dead[0].reason), (1, "malformed"), "no frame on a framed topic");
    assert_eq!(schemas.asked.load(Ordering::SeqCst), 0);
}
