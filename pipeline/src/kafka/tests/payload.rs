//! Messages of every form, right and broken.

use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use omnify_decision::control::Control;
use omnify_operators::model::{Attribution, Event, Registry};
use proptest::prelude::*;
use prost_reflect::prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};

use super::rig::{event, time_us};
use crate::decode::{Batch, Door, Limits, Mapping};
use crate::kafka::payload::{Taken, TopicReader};
use crate::kafka::{Format, TopicKind, TopicOptions};

pub(super) const EVENT_AVSC: &str = include_str!("../../../../deploy/schemas/event.avsc");
const REPORT_AVSC: &str = include_str!("../../../../deploy/schemas/report.avsc");
pub(super) const PROTO: &str = include_str!("../../../../deploy/schemas/omnify.proto");

fn door() -> Arc<Door> {
    Arc::new(Door::new(Arc::new(Registry::utc()), Limits::default()))
}

pub(super) fn topic(kind: TopicKind, format: Format) -> TopicOptions {
    TopicOptions { kind, format, ..TopicOptions::events("t") }
}

fn reader(topic: TopicOptions) -> TopicReader {
    TopicReader::new(topic, door(), None)
}

fn take(reader: &mut TopicReader, body: &[u8]) -> (Batch, Vec<Control>) {
    let (mut batch, mut controls) = (Batch::new(), Vec::new());
    let taken = reader.take(Some(body), None, None, &mut batch, &mut controls);
    assert_eq!(taken, Taken::Done);
    assert_eq!(batch.accounted(), batch.rows);
    (batch, controls)
}

/// Event number `n` as an Avro datum of the shipped schema.
pub(super) fn avro_event(n: i64) -> Vec<u8> {
    avro(EVENT_AVSC, &event(n))
}

fn scalar(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::String(text) => Value::String(text.clone()),
        number => Value::Long(number.as_i64().unwrap()),
    }
}

fn datum(schema: &Schema, value: Value) -> Vec<u8> {
    GenericDatumWriter::builder(schema).build().unwrap().write_value_to_vec(value).unwrap()
}

fn avro(schema: &str, json: &str) -> Vec<u8> {
    let schema = Schema::parse_str(schema).unwrap();
    let Schema::Record(record) = &schema else { panic!("a record") };
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    let fields = record
        .fields
        .iter()
        .map(|field| {
            let value = match json.get(&field.name) {
                Some(value) => scalar(value),
                None => scalar(field.default.as_ref().expect("a default")),
            };
            (field.name.clone(), value)
        })
        .collect();
    let value = Value::Record(fields).resolve(&schema).unwrap();
    datum(&schema, value)
}

pub(super) fn pool() -> DescriptorPool {
    struct One;
    impl protox::file::FileResolver for One {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            protox::file::File::from_source(name, PROTO)
        }
    }
    let mut compiler = protox::Compiler::with_file_resolver(One);
    compiler.open_file("omnify.proto").unwrap();
    compiler.descriptor_pool()
}

/// A message of the shipped `.proto` from its JSON.
pub(super) fn protobuf(name: &str, json: &str) -> Vec<u8> {
    let descriptor = pool().get_message_by_name(name).unwrap();
    let mut json = serde_json::Deserializer::from_str(json);
    DynamicMessage::deserialize(descriptor, &mut json).unwrap().encode_to_vec()
}

fn the_event(batch: &Batch) -> Event {
    assert!(batch.dead.is_empty(), "{:?}", batch.dead);
    assert_eq!(batch.events.len(), 1);
    batch.events[0]
}

const FULL: &str = r#"{"ts_us":1700000000000007,"kind":"conversion","tenant":"acme","platform":"p",
    "account":"a","campaign":"c","ad_group":"g","creative":"x","event_id":"e1","user":"u1",
    "cost_micros":5,"revenue_micros":7}"#;

#[test]
fn an_event_is_the_same_in_every_form() {
    let one_line = FULL.replace('\n', " ");
    let (json, _) = take(&mut reader(topic(TopicKind::Events, Format::Json)), one_line.as_bytes());
    let json = the_event(&json);
    assert_eq!((json.time, json.delta.revenue_micros), (time_us(7), 7));
    let format = Format::avro(TopicKind::Events, None).unwrap();
    let (batch, _) = take(&mut reader(topic(TopicKind::Events, format)), &avro(EVENT_AVSC, FULL));
    assert_eq!(the_event(&batch), json);
    let format = Format::protobuf(TopicKind::Events, None, "").unwrap();
    let body = protobuf("omnify.Event", FULL);
    let (batch, _) = take(&mut reader(topic(TopicKind::Events, format)), &body);
    assert_eq!(the_event(&batch), json);
}

#[test]
fn report_rows_need_no_type_on_their_topic() {
    let row = r#"{"tenant":"acme","platform":"p","account":"a","campaign":"c","ad_group":"g",
        "creative":"x","start_us":1700000000000000,"end_us":1700003600000000,"impressions":9,
        "clicks":2,"cost_micros":11,"attribution":"7d_click_1d_view"}"#;
    let bodies = [
        (Format::Json, row.replace('\n', " ").into_bytes()),
        (Format::avro(TopicKind::Reports, None).unwrap(), avro(REPORT_AVSC, row)),
        (Format::protobuf(TopicKind::Reports, None, "").unwrap(), protobuf("omnify.Report", row)),
    ];
    for (format, body) in bodies {
        let (batch, _) = take(&mut reader(topic(TopicKind::Reports, format)), &body);
        assert!(batch.dead.is_empty(), "{:?}", batch.dead);
        let totals = batch.reports[0].version.totals;
        assert_eq!((totals.impressions, totals.clicks, totals.cost_micros), (9, 2, 11));
        let attribution = batch.reports[0].key.attribution;
        assert_eq!((attribution.click_days, attribution.view_days), (7, 1));
    }
}

#[test]
fn the_attribution_window_of_a_report_may_be_left_out() {
    let row = r#"{"tenant":"acme","platform":"p","account":"a","campaign":"c","ad_group":"g",
        "creative":"x","start_us":1700000000000000,"end_us":1700003600000000,"impressions":9,
        "clicks":2,"cost_micros":11}"#;
    let null = row.replace("11}", "11,\"attribution\":null}").replace('\n', " ");
    let bodies = [
        (Format::Json, row.replace('\n', " ").into_bytes()),
        (Format::Json, null.into_bytes()),
        (Format::avro(TopicKind::Reports, None).unwrap(), avro(REPORT_AVSC, row)),
        (Format::protobuf(TopicKind::Reports, None, "").unwrap(), protobuf("omnify.Report", row)),
    ];
    for (format, body) in bodies {
        let (batch, _) = take(&mut reader(topic(TopicKind::Reports, format)), &body);
        assert!(batch.dead.is_empty(), "{:?}", batch.dead);
        assert_eq!(batch.reports[0].key.attribution, Attribution::DEFAULT);
    }
}

#[test]
fn foreign_schemas_are_read_through_a_mapping() {
    let mapping = Mapping::parse(
        "foreign",
        r#"
        name = "foreign"
        [entity]
        tenant = { value = "acme" }
        platform = { value = "p" }
        account = { column = "acct" }
        campaign = { column = "camp" }
        ad_group = { value = "g" }
        creative = { column = "ad" }
        [events]
        time = { column = "at", format = "unix_ms" }
        kind = { column = "what", map = { IMP = "impression" } }
        cost = { column = "price", unit_micros = 1_000_000 }
        "#,
    )
    .unwrap();
    let schema = r#"{"type":"record","name":"Log","fields":[
        {"name":"extra","type":{"type":"array","items":"long"}},
        {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},
        {"name":"what","type":{"type":"enum","name":"What","symbols":["CLK","IMP"]}},
        {"name":"acct","type":"int"},
        {"name":"camp","type":["null","string"]},
        {"name":"ad","type":"string"},
        {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":3}}]}"#;
    let parsed = Schema::parse_str(schema).unwrap();
    let value = Value::Record(vec![
        ("extra".into(), Value::Array(vec![Value::Long(1)])),
        ("at".into(), Value::TimestampMillis(1_700_000_000_123)),
        ("what".into(), Value::Enum(1, "IMP".into())),
        ("acct".into(), Value::Int(42)),
        ("camp".into(), Value::Union(1, Box::new(Value::String("c".into())))),
        ("ad".into(), Value::String("x".into())),
        ("price".into(), Value::Decimal(1_250_i32.to_be_bytes().into())),
    ]);
    let body = datum(&parsed, value);
    let format = Format::avro(TopicKind::Events, Some(schema)).unwrap();
    let foreign = TopicOptions { mapping: mapping.clone(), ..topic(TopicKind::Events, format) };
    let (batch, _) = take(&mut reader(foreign), &body);
    let event = the_event(&batch);
    assert_eq!((event.time, event.delta.cost_micros), (1_700_000_000_123_000, 1_250_000));

    let proto = r#"syntax = "proto3"; import "google/protobuf/timestamp.proto"; package f;
        message Log { google.protobuf.Timestamp at = 1; What what = 2; uint32 acct = 3;
            optional string camp = 4; string ad = 5; double price = 6; repeated int32 extra = 9; }
        enum What { CLK = 0; IMP = 1; }"#;
    let format = Format::protobuf(TopicKind::Events, Some(proto), "f.Log").unwrap();
    let foreign = TopicOptions { mapping, ..topic(TopicKind::Events, format) };
    // By hand: at {1700000000 s, 123 ms}, what IMP, acct 42, camp "c", ad "x", price 1.25,
    // and a field 15 that the schema does not know.
    let body = [
        &[0x0a, 0x0b, 0x08, 0x80, 0xe2, 0xcf, 0xaa, 0x06, 0x10, 0xc0, 0xa9, 0xd3, 0x3a][..],
        &[0x10, 0x01, 0x18, 0x2a, 0x22, 0x01, b'c', 0x2a, 0x01, b'x', 0x31],
        &1.25_f64.to_le_bytes(),
        &[0x78, 0x01],
    ]
    .concat();
    let (batch, _) = take(&mut reader(foreign), &body);
    let event = the_event(&batch);
    assert_eq!((event.time, event.delta.cost_micros), (1_700_000_000_123_000, 1_250_000));
}

#[test]
fn control_topics_take_their_own_controls_only() {
    let mut goals = reader(topic(TopicKind::Goals, Format::Json));
    for body in [r#"{"control":"kill","tenant":null}"#, r#"{"control":"approve"}"#, "[1]", "{"] {
        let (batch, controls) = take(&mut goals, body.as_bytes());
        assert!(controls.is_empty(), "{body}");
        assert_eq!(batch.dead.len(), 1, "{body}");
    }
    let mut limited = topic(TopicKind::Goals, Format::Json);
    limited.tenant = Some("acme".to_owned());
    let mut limited = reader(limited);
    for (applies_to, right) in [("acme/p", true), ("rival/p", false), ("*/p", false)] {
        let (batch, controls) = take(&mut limited, goal(applies_to).as_bytes());
        assert_eq!(controls.len(), usize::from(right), "{applies_to}: {:?}", batch.dead);
        assert!(right || batch.dead[0].reason == "unknown_tenant");
    }
    let drop = r#"{"control":"drop_goal","name":"brand","tenant":"rival"}"#;
    let (_, controls) = take(&mut limited, drop.as_bytes());
    let dropped = Control::DropGoal { name: "brand".into(), tenant: Some("acme".into()) };
    assert_eq!(controls, [dropped], "the sender speaks for its own tenant");
}

fn goal(applies_to: &str) -> String {
    format!(
        r#"{{"control":"goal","goal":{{"name":"brand","applies_to":"{applies_to}",
        "objective":{{"kind":"target_cpa","cpa_micros":12500000}},
        "daily_budget_micros":500000000,"bid_floor_micros":100000,"bid_cap_micros":20000000}}}}"#
    )
}

#[test]
fn a_goal_is_the_same_in_every_form() {
    let json = goal("acme/p");
    let (batch, controls) =
        take(&mut reader(topic(TopicKind::Goals, Format::Json)), json.as_bytes());
    assert!(batch.dead.is_empty(), "{:?}", batch.dead);
    let [Control::Goal { goal }] = controls.as_slice() else { panic!("{controls:?}") };
    assert_eq!((goal.name.as_str(), goal.daily_budget_micros), ("brand", 500_000_000));
    let format = Format::protobuf(TopicKind::Goals, None, "").unwrap();
    let (batch, same) =
        take(&mut reader(topic(TopicKind::Goals, format)), &protobuf("omnify.GoalChange", &json));
    assert!(batch.dead.is_empty(), "{:?}", batch.dead);
    assert_eq!(same, controls);
    let objective = Value::Record(vec![
        ("kind".into(), Value::String("target_cpa".into())),
        ("cpa_micros".into(), Value::Long(12_500_000)),
        ("roas".into(), Value::Null),
        ("cpc_micros".into(), Value::Null),
    ]);
    let fields = Value::Record(vec![
        ("name".into(), Value::String("brand".into())),
        ("applies_to".into(), Value::String("acme/p".into())),
        ("objective".into(), objective),
        ("daily_budget_micros".into(), Value::Long(500_000_000)),
        ("pricing".into(), Value::String("cpm".into())),
        ("start".into(), Value::Null),
        ("end".into(), Value::Null),
        ("bid_floor_micros".into(), Value::Long(100_000)),
        ("bid_cap_micros".into(), Value::Long(20_000_000)),
        ("portfolio_budget_micros".into(), Value::Null),
    ]);
    let change = Value::Record(vec![
        ("control".into(), Value::String("goal".into())),
        ("goal".into(), fields),
        ("name".into(), Value::Null),
    ]);
    let schema = Schema::parse_str(include_str!("../../../../deploy/schemas/goal.avsc")).unwrap();
    let body = datum(&schema, change.resolve(&schema).unwrap());
    let format = Format::avro(TopicKind::Goals, None).unwrap();
    let (batch, same) = take(&mut reader(topic(TopicKind::Goals, format)), &body);
    assert!(batch.dead.is_empty(), "{:?}", batch.dead);
    assert_eq!(same, controls);
}

#[test]
fn an_approval_is_the_same_in_every_form() {
    const AVSC: &str = include_str!("../../../../deploy/schemas/approval.avsc");
    let id = "0123456789abcdef0123456789abcdef";
    for (said, reason) in [("approve", None), ("reject", None), ("reject", Some("too risky"))] {
        let mut json = serde_json::json!({ "control": said, "proposal": id, "by": "ann" });
        if let Some(reason) = reason {
            json["reason"] = reason.into();
        }
        let json = json.to_string();
        let right: Control = serde_json::from_str(&json).unwrap();
        let bodies = [
            (Format::Json, json.clone().into_bytes()),
            (Format::avro(TopicKind::Approvals, None).unwrap(), avro(AVSC, &json)),
            (
                Format::protobuf(TopicKind::Approvals, None, "").unwrap(),
                protobuf("omnify.Approval", &json),
            ),
        ];
        for (format, body) in bodies {
            let (batch, controls) = take(&mut reader(topic(TopicKind::Approvals, format)), &body);
            assert!(batch.dead.is_empty(), "{:?}", batch.dead);
            assert_eq!(controls, std::slice::from_ref(&right));
        }
    }
}

fn formats() -> Vec<(TopicKind, Format)> {
    let mut all = Vec::new();
    for kind in [TopicKind::Events, TopicKind::Reports, TopicKind::Goals, TopicKind::Approvals] {
        all.push((kind, Format::Json));
        all.push((kind, Format::avro(kind, None).unwrap()));
        all.push((kind, Format::protobuf(kind, None, "").unwrap()));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes is accounted for, in every form, and never panics.
    #[test]
    fn any_bytes_are_accounted_for(
        noise in proptest::collection::vec(any::<u8>(), 1..200),
        at in 0_usize..400,
        cut in 0_usize..400,
    ) {
        let mutated = |mut body: Vec<u8>| {
            let place = at % body.len();
            body[place] ^= noise[0];
            body.truncate(1 + cut % body.len());
            body
        };
        let bodies = [
            noise.clone(),
            mutated(FULL.into()),
            mutated(avro(EVENT_AVSC, FULL)),
            mutated(protobuf("omnify.Event", FULL)),
        ];
        for (kind, format) in formats() {
            let mut reader = reader(topic(kind, format));
            for body in &bodies {
                let (batch, controls) = take(&mut reader, body);
                prop_assert!(batch.rows > 0 || !controls.is_empty() || kind != TopicKind::Events
                    || body.trim_ascii().is_empty() || body.iter().all(u8::is_ascii_whitespace));
            }
        }
    }

    /// The message indexes before a framed Protobuf message never lead astray.
    #[test]
    fn any_message_index_is_survived(noise in proptest::collection::vec(any::<u8>(), 0..40)) {
        let schema = crate::decode::ProtoSchema::parse(PROTO, &[]).unwrap();
        if let Ok((message, body)) = schema.indexed(&noise) {
            let _ = message.read(body);
        }
    }
}
