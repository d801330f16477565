//! Features and alerts on librdkafka's in-process cluster and, where `OMNIFY_KAFKA_BROKERS` names
//! one, on a real broker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use omnify_operators::model::{
    EntityInfo, EntityKey, Estimate, FeatureRow, Frame, Registry, RegistryView, Tick,
};
use omnify_sinks::kafka::{
    Alert, Connection, KafkaOutputs, OutputOptions, OutputsStatus, Selector, TickOutputs,
};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);
const FEATURES: &str = "features";
const ALERTS: &str = "alerts";
const TICKS: &str = "ticks";

fn options(brokers: &str, transactional: bool) -> OutputOptions {
    let mut options = OutputOptions::at(brokers);
    options.features_topic = Some(FEATURES.to_owned());
    options.alerts_topic = Some(ALERTS.to_owned());
    options.ticks_topic = TICKS.to_owned();
    options.transactional_id = transactional.then(|| "omnify-1".to_owned());
    options.windows = vec!["1h/1m".parse().unwrap()];
    options
}

/// Ticks with one row of each entity and an anomaly that begins at every tenth tick.
struct Ticks {
    selector: Selector,
    entities: Vec<Arc<EntityInfo>>,
}

impl Ticks {
    fn new() -> Ticks {
        let registry = Arc::new(Registry::utc());
        let mut view = RegistryView::new(registry.clone());
        let entity = |n| {
            let key: EntityKey = format!("t/p/a/c{n}").parse().unwrap();
            view.info(registry.intern(&key)).clone()
        };
        Ticks { entities: (0..3).map(entity).collect(), selector: Selector::new(true, true, 0) }
    }

    fn tick(&mut self, tick: Tick) -> TickOutputs {
        let row = |info: &Arc<EntityInfo>| {
            let mut row = FeatureRow {
                entity: info.id,
                tick,
                windows: Default::default(),
                ctr: Estimate::default(),
                cvr: Estimate::default(),
                reach: Default::default(),
                fatigue: Default::default(),
                anomaly: Default::default(),
                maturity: None,
            };
            row.windows[0].clicks = i64::try_from(tick).unwrap();
            row.anomaly.alarm = tick.is_multiple_of(10);
            (info.clone(), row)
        };
        let frame = Frame { tick, rows: self.entities.iter().map(row).collect() };
        self.selector.tick(&frame, &BTreeMap::new(), &[])
    }
}

/// Everything that is committed in a topic, per key in order.
fn read_all(connection: &Connection, topic: &str) -> BTreeMap<String, Vec<Value>> {
    let defaults = [
        ("group.id", "reader".to_owned()),
        ("isolation.level", "read_committed".to_owned()),
        ("enable.partition.eof", "true".to_owned()),
    ];
    let consumer: BaseConsumer = connection.client("reader", defaults).create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let partitions = metadata.topics()[0].partitions().len();
    let mut all = TopicPartitionList::new();
    for partition in 0..i32::try_from(partitions).unwrap() {
        all.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    let (mut found, mut ends) = (BTreeMap::<String, Vec<Value>>::new(), 0);
    while ends < partitions {
        match consumer.poll(PATIENCE).expect("a message or an end, before patience ends") {
            Err(KafkaError::PartitionEOF(_)) => ends += 1,
            Err(error) => panic!("{error}"),
            Ok(message) => {
                let key = String::from_utf8(message.key().unwrap().to_vec()).unwrap();
                let value = serde_json::from_slice(message.payload().unwrap()).unwrap();
                found.entry(key).or_default().push(value);
            }
        }
    }
    found
}

fn until(outputs: &KafkaOutputs, what: &str, holds: impl Fn(&OutputsStatus) -> bool) {
    for _ in 0..PATIENCE.as_millis() / LOOK.as_millis() {
        if holds(&outputs.status()) {
            return;
        }
        std::thread::sleep(LOOK);
    }
    panic!("{what}: {:?}", outputs.status());
}

/// Clicks of the features are the ticks, of every entity and in order; alerts came once each.
fn assert_exactly(connection: &Connection, options: &OutputOptions, ticks: &[Tick]) {
    let features = read_all(connection, options.features_topic.as_deref().unwrap());
    assert_eq!(features.len(), 3);
    for (entity, rows) in features {
        let seen: Vec<Tick> =
            rows.iter().map(|row| row["windows"]["1h/1m"]["clicks"].as_u64().unwrap()).collect();
        assert_eq!(seen, ticks, "{entity}");
        assert!(rows.iter().all(|row| row["entity"] == entity.as_str()));
    }
    let alerts = read_all(connection, options.alerts_topic.as_deref().unwrap());
    let raised: Vec<Tick> = ticks.iter().copied().filter(|tick| tick.is_multiple_of(10)).collect();
    for (entity, told) in alerts {
        let seen: Vec<Tick> = told.iter().map(|alert| alert["tick"].as_u64().unwrap()).collect();
        assert_eq!(seen, raised, "{entity}");
        let first: Alert = serde_json::from_value(told[0].clone()).unwrap();
        assert_eq!((first.code.as_str(), first.tenant.as_deref()), ("anomaly", Some("t")));
    }
}

#[test]
fn only_durable_ticks_go_out_and_in_order() {
    let cluster = MockCluster::new(1).unwrap();
    for topic in [FEATURES, ALERTS] {
        cluster.create_topic(topic, 2, 1).unwrap();
    }
    let options = options(&cluster.bootstrap_servers(), false);
    let outputs = KafkaOutputs::start(options.clone()).unwrap();
    let mut ticks = Ticks::new();
    for tick in 1..=30 {
        outputs.submit(ticks.tick(tick));
    }
    outputs.durable(20);
    until(&outputs, "20 ticks are out", |status| status.committed == Some(20));
    assert_eq!(outputs.status().waiting, 10);
    assert_exactly(&options.connection, &options, &(1..=20).collect::<Vec<_>>());
    let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 3];
    cluster.request_errors(RDKafkaApiKey::Produce, &refused);
    outputs.durable(30);
    assert!(outputs.finish(PATIENCE));
    assert_exactly(&options.connection, &options, &(1..=30).collect::<Vec<_>>());
}

#[test]
fn without_brokers_rows_merge_and_no_alert_is_dropped() {
    let cluster = MockCluster::new(1).unwrap();
    for topic in [FEATURES, ALERTS] {
        cluster.create_topic(topic, 1, 1).unwrap();
    }
    let mut options = options(&cluster.bootstrap_servers(), false);
    options.queue_max = 30;
    let outputs = KafkaOutputs::start(options.clone()).unwrap();
    let mut ticks = Ticks::new();
    // Nothing is durable, so everything waits.
    for tick in 1..=95 {
        outputs.submit(ticks.tick(tick));
    }
    let waiting = outputs.status();
    assert!(waiting.merged >= 3 * 95 - 60, "{waiting:?}");
    outputs.durable(95);
    assert!(outputs.finish(PATIENCE));
    let alerts = read_all(&options.connection, ALERTS);
    assert_eq!(alerts.values().map(Vec::len).sum::<usize>(), 3 * 9, "{alerts:?}");
    let features = read_all(&options.connection, FEATURES);
    for rows in features.values() {
        let last = rows.last().unwrap();
        assert_eq!(last["tick"], 95, "the newest row is there");
        assert!(rows.len() < 95);
    }
}

/// A process that ends at any moment and replays its ticks produces nothing twice.
fn nothing_twice(options: &OutputOptions, kill_after: &[Tick], end: Tick) {
    for stop in kill_after.iter().chain([&end]) {
        let outputs = KafkaOutputs::start(options.clone()).unwrap();
        // A restart replays everything from its snapshot on, here from the beginning.
        let mut ticks = Ticks::new();
        for tick in 1..=*stop {
            outputs.submit(ticks.tick(tick));
            outputs.durable(tick);
        }
        if *stop == end {
            assert!(outputs.finish(PATIENCE), "not finished");
        } else {
            // Gone in the middle of whatever it was doing.
            until(&outputs, "something is out", |status| status.committed.is_some());
            drop(outputs);
        }
    }
    assert_exactly(&options.connection, options, &(1..=end).collect::<Vec<_>>());
}

#[test]
fn transactions_make_outputs_exactly_once_over_restarts() {
    let cluster = MockCluster::new(1).unwrap();
    for topic in [FEATURES, ALERTS, TICKS] {
        cluster.create_topic(topic, 1, 1).unwrap();
    }
    nothing_twice(&options(&cluster.bootstrap_servers(), true), &[20, 45], 70);
}

/// Ticks of one alert each, all about one entity; those of `large` do not compress below 8 KiB.
fn alerts(ticks: std::ops::RangeInclusive<Tick>, large: &[Tick]) -> Vec<TickOutputs> {
    let alert = |tick: Tick| {
        let words = if large.contains(&tick) { 2_048 } else { 1 };
        let noise = |n: u64| (n * 2 + tick).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let text = (0..words).map(|n| format!("{:08x}", noise(n))).collect();
        Alert {
            schema: 1,
            alert_id: format!("{tick:032x}"),
            code: "anomaly".to_owned(),
            tick,
            entity: Some("t/p/a/c".to_owned()),
            tenant: Some("t".to_owned()),
            text,
        }
    };
    let outputs = |tick| TickOutputs { tick, alerts: vec![alert(tick)], ..TickOutputs::default() };
    ticks.map(outputs).collect()
}

fn ticks_of(connection: &Connection, topic: &str) -> Vec<Tick> {
    let read = read_all(connection, topic);
    read.values().flatten().map(|alert| alert["tick"].as_u64().unwrap()).collect()
}

/// Sends ticks 1 to 9 in one group and waits until they are dealt with.
fn send_nine(options: &OutputOptions, large: &[Tick]) -> OutputsStatus {
    let outputs = KafkaOutputs::start(options.clone()).unwrap();
    alerts(1..=9, large).into_iter().for_each(|tick| outputs.submit(tick));
    outputs.durable(9);
    until(&outputs, "all ticks are dealt with", |status| status.committed == Some(9));
    let status = outputs.status();
    assert!(outputs.finish(PATIENCE));
    status
}

#[test]
fn a_message_that_is_never_taken_is_set_aside_and_the_rest_goes_out() {
    const DEAD: &str = "dead";
    for transactional in [false, true] {
        let cluster = MockCluster::new(1).unwrap();
        for topic in [FEATURES, ALERTS, TICKS, DEAD] {
            cluster.create_topic(topic, 1, 1).unwrap();
        }
        let mut options = options(&cluster.bootstrap_servers(), transactional);
        options.features_topic = None;
        options.dead_letter_topic = Some(DEAD.to_owned());
        // Whole batches first, then messages that are tried alone, and copies. Which of them is the
        // cluster's to say, and it shows what was aborted as well: what exactly becomes of each is
        // tested on a real broker.
        let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE; 10];
        cluster.request_errors(RDKafkaApiKey::Produce, &refused);
        let status = send_nine(&options, &[]);
        let connection = &options.connection;
        let taken: BTreeSet<Tick> = ticks_of(connection, ALERTS).into_iter().collect();
        assert!(status.refused > 0, "{status:?}");
        assert_eq!(status.messages + status.refused, 9, "{status:?}");
        assert!(taken.len() as u64 >= status.messages, "{taken:?} {status:?}");
        let why = status.last_refused.expect("a reason");
        assert!(why.contains("t/p/a/c") && why.contains(ALERTS), "{why}");
    }
}

#[test]
fn what_passes_is_tried_again_and_told() {
    let cluster = MockCluster::new(1).unwrap();
    for topic in [ALERTS, TICKS] {
        cluster.create_topic(topic, 1, 1).unwrap();
    }
    for transactional in [false, true] {
        let mut options = options(&cluster.bootstrap_servers(), transactional);
        options.features_topic = None;
        options.timeout = Duration::from_secs(3);
        let outputs = KafkaOutputs::start(options.clone()).unwrap();
        cluster.broker_down(1).unwrap();
        let first = if transactional { 10 } else { 1 };
        alerts(first..=first + 8, &[]).into_iter().for_each(|tick| outputs.submit(tick));
        outputs.durable(first + 8);
        until(&outputs, "it says that it waits", |status| status.trying.is_some());
        cluster.broker_up(1).unwrap();
        until(&outputs, "it went out", |status| status.committed == Some(first + 8));
        let status = outputs.status();
        assert_eq!((status.messages, status.trying), (9, None));
    }
    let connection = Connection::plaintext(cluster.bootstrap_servers());
    assert_eq!(ticks_of(&connection, ALERTS), (1..=18).collect::<Vec<_>>());
}

/// Read-committed isolation and fencing are the real broker's.
#[test]
fn real_kafka_transactions_are_exactly_once() {
    let Some(brokers) = std::env::var("OMNIFY_KAFKA_BROKERS").ok().filter(|list| !list.is_empty())
    else {
        eprintln!("skipped: OMNIFY_KAFKA_BROKERS is not set");
        return;
    };
    let unique = tempfile::tempdir().unwrap();
    let unique = unique.path().file_name().unwrap().to_string_lossy().replace('.', "");
    let mut options = options(&brokers, true);
    options.features_topic = Some(format!("features.{unique}"));
    options.alerts_topic = Some(format!("alerts.{unique}"));
    options.ticks_topic = format!("ticks.{unique}");
    options.transactional_id = Some(unique);
    nothing_twice(&options, &[20, 45, 46], 70);
    // A second process with the same id takes over, and the first says so.
    let first = KafkaOutputs::start(options.clone()).unwrap();
    until(&first, "it has read the last tick", |status| status.committed == Some(70));
    let second = KafkaOutputs::start(options.clone()).unwrap();
    until(&second, "it has read the last tick", |status| status.committed == Some(70));
    let mut ticks = Ticks::new();
    first.submit(ticks.tick(71));
    first.durable(71);
    until(&first, "it is fenced", |status| status.failed.is_some());
    second.submit(ticks.tick(72));
    second.durable(72);
    assert!(second.finish(PATIENCE));
    let expected: Vec<Tick> = (1..=70).chain([72]).collect();
    assert_exactly(&options.connection, &options, &expected);
}

/// Which message is too large is the real broker's to say.
#[test]
fn real_kafka_messages_too_large_for_their_topic_are_set_aside() {
    let Some(brokers) = std::env::var("OMNIFY_KAFKA_BROKERS").ok().filter(|list| !list.is_empty())
    else {
        eprintln!("skipped: OMNIFY_KAFKA_BROKERS is not set");
        return;
    };
    for transactional in [false, true] {
        let unique = tempfile::tempdir().unwrap();
        let unique = unique.path().file_name().unwrap().to_string_lossy().replace('.', "");
        let mut options = options(&brokers, transactional);
        let (alerts, dead) = (format!("alerts.{unique}"), format!("dead.{unique}"));
        let topics = [
            NewTopic::new(&alerts, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "4096"),
            NewTopic::new(&dead, 1, TopicReplication::Fixed(1)),
        ];
        let admin: AdminClient<DefaultClientContext> =
            options.connection.client("admin", []).create().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(admin.create_topics(&topics, &AdminOptions::new())).unwrap();
        options.features_topic = None;
        options.alerts_topic = Some(alerts.clone());
        options.ticks_topic = format!("ticks.{unique}");
        options.transactional_id = transactional.then_some(unique);
        options.dead_letter_topic = Some(dead.clone());
        let status = send_nine(&options, &[3, 8]);
        assert_eq!((status.messages, status.refused), (7, 2), "{status:?}");
        let taken: BTreeSet<Tick> = ticks_of(&options.connection, &alerts).into_iter().collect();
        assert_eq!(taken, BTreeSet::from([1, 2, 4, 5, 6, 7, 9]));
        let copies = ticks_of(&options.connection, &dead);
        assert_eq!(copies.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from([3, 8]));
        if transactional {
            let taken = ticks_of(&options.connection, &alerts);
            assert_eq!((taken.len(), copies.len()), (7, 2), "once each");
        }
    }
}
