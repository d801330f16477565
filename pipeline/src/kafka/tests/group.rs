//! Groups, positions, pauses and brokers that fail, on librdkafka's in-process cluster.

use std::sync::Arc;
use std::time::Duration;

use omnify_sinks::journal::Position;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, DefaultConsumerContext};
use rdkafka::message::{Headers, Message, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::rig::{
    LOOK, PATIENCE, Rig, TOPIC, Taken, event, producer, producer_with, send, send_events,
    send_with, time_us, until,
};
use crate::clock::Clock;
use crate::kafka::outlet::Here;
use crate::kafka::{Positions, SourceOptions, TopicOptions};

type Cluster = MockCluster<'static, rdkafka::producer::DefaultProducerContext>;

fn cluster(partitions: i32) -> (Cluster, String) {
    let cluster = MockCluster::new(3).unwrap();
    cluster.create_topic(TOPIC, partitions, 3).unwrap();
    let brokers = cluster.bootstrap_servers();
    (cluster, brokers)
}

fn options(brokers: &str) -> SourceOptions {
    let mut options = SourceOptions::at(brokers, vec![TopicOptions::events(TOPIC)]);
    options.session_timeout = Duration::from_secs(6);
    options
}

#[test]
fn every_message_of_every_partition_enters_once_and_a_restart_goes_on_behind_it() {
    let (_cluster, brokers) = cluster(4);
    let producer = producer(&brokers);
    send_events(&producer, 4, 0..400);
    let rig = Rig::new(10_000);
    let source = rig.start(&options(&brokers));
    let taken = rig.rows(400);
    assert_eq!(taken.sorted(), (0..400).collect::<Vec<_>>());
    let ends: Vec<_> = taken.positions.values().copied().collect();
    assert_eq!(ends, [100; 4]);
    source.stop();
    // The journal's positions are all that the next process knows.
    let journal = taken.positions.iter().map(|((source, partition), next)| Position {
        source: source.as_str().into(),
        partition: *partition,
        next: *next,
    });
    send_events(&producer, 4, 400..440);
    let rig = Rig::at(10_000, Positions::restored(journal));
    let source = rig.start(&options(&brokers));
    assert_eq!(rig.rows(40).sorted(), (400..440).collect::<Vec<_>>());
    until(&source, "no lag is left", |status| status.lag.len() == 4 && status.lag_total() == 0);
    assert_eq!(source.status().skipped, 0);
}

#[test]
fn the_journal_decides_and_not_what_the_group_has_committed() {
    let (_cluster, brokers) = cluster(2);
    let producer = producer(&brokers);
    send_events(&producer, 2, 0..100);
    let options = options(&brokers);
    let other: BaseConsumer<DefaultConsumerContext> = ClientConfig::new()
        .set("bootstrap.servers", &brokers)
        .set("group.id", &options.group)
        .create()
        .unwrap();
    let mut committed = TopicPartitionList::new();
    for partition in 0..2 {
        committed.add_partition_offset(TOPIC, partition, Offset::Offset(50)).unwrap();
    }
    other.commit(&committed, CommitMode::Sync).unwrap();
    drop(other);
    let at = Position { source: format!("kafka:{TOPIC}").into(), partition: 0, next: 30 };
    let rig = Rig::at(10_000, Positions::restored([at]));
    let _source = rig.start(&options);
    // Partition 0 holds the even numbers: 30 of them are journalled. Partition 1 never was.
    let expected: Vec<i64> = (0..100).filter(|n| n % 2 == 1 || *n >= 60).collect();
    assert_eq!(rig.rows(expected.len() as u64).sorted(), expected);
}

#[test]
fn a_full_engine_pauses_the_partitions_and_loses_nothing() {
    let (_cluster, brokers) = cluster(3);
    let producer = producer(&brokers);
    send_events(&producer, 3, 0..900);
    let rig = Rig::new(30);
    let mut options = options(&brokers);
    options.batch_messages = 10;
    let source = rig.start(&options);
    until(&source, "the source pauses", |status| status.paused);
    let waiting = rig.intake.rows();
    assert!(waiting <= 40, "{waiting} rows wait: the bound and one batch");
    // What arrives during the pause stays at the brokers.
    send_events(&producer, 3, 900..930);
    assert_eq!(rig.intake.rows(), waiting);
    assert_eq!(rig.rows(930).sorted(), (0..930).collect::<Vec<_>>());
    until(&source, "it goes on", |status| !status.paused);
    assert_eq!(source.status().skipped, 0);
}

#[test]
fn partitions_move_between_members_without_loss_or_repeat() {
    let (_cluster, brokers) = cluster(6);
    let producer = producer(&brokers);
    let rig = Rig::new(100_000);
    let mut options = options(&brokers);
    options.batch_messages = 70;
    let first = rig.start(&options);
    until(&first, "the first has all", |status| status.assigned.len() == 6);
    send_events(&producer, 6, 0..300);
    let second = rig.start(&options);
    // Messages keep coming while the group moves half of the partitions.
    let mut sent = 300;
    while second.status().assigned.is_empty() {
        send_events(&producer, 6, sent..sent + 6);
        sent += 6;
        assert!(sent < 60_000, "the second member never got a partition");
        std::thread::sleep(LOOK);
    }
    until(&second, "the second has half", |status| status.assigned.len() == 3);
    until(&first, "the first keeps half", |status| status.assigned.len() == 3);
    send_events(&producer, 6, sent..sent + 60);
    sent += 60;
    first.stop();
    send_events(&producer, 6, sent..sent + 60);
    sent += 60;
    until(&second, "the second has all", |status| status.assigned.len() == 6);
    let taken = rig.rows(u64::try_from(sent).unwrap());
    assert_eq!(taken.sorted(), (0..sent).collect::<Vec<_>>());
}

#[test]
fn a_partition_that_went_while_paused_runs_when_it_comes_back() {
    let (_cluster, brokers) = cluster(4);
    let producer = producer(&brokers);
    send_events(&producer, 4, 0..400);
    let small = Rig::new(30);
    let large = Rig::at(10_000, small.positions.clone());
    let mut options = options(&brokers);
    options.batch_messages = 10;
    let first = small.start(&options);
    until(&first, "the first pauses", |status| status.paused);
    let second = large.start(&options);
    until(&second, "the second has half", |status| status.assigned.len() == 2);
    until(&first, "the first keeps half", |status| status.assigned.len() == 2);
    let (mut taken, mut others) = (Taken::default(), Taken::default());
    while first.status().paused {
        taken.add(small.next_of(&first));
    }
    second.stop();
    large.silence(&mut others);
    // What the second had is the first's again, and no longer paused.
    send_events(&producer, 4, 400..440);
    while taken.rows + others.rows < 440 {
        taken.add(small.next_of(&first));
    }
    small.silence(&mut taken);
    let mut numbers = [taken.numbers, others.numbers].concat();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..440).collect::<Vec<_>>());
}

#[test]
fn brokers_that_fail_and_come_back_cost_nothing() {
    let (cluster, brokers) = cluster(3);
    let producer = producer(&brokers);
    send_events(&producer, 3, 0..300);
    let errors = [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
    ];
    cluster.request_errors(RDKafkaApiKey::Fetch, &errors);
    let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE; 2];
    cluster.request_errors(RDKafkaApiKey::FindCoordinator, &refused);
    let rig = Rig::new(10_000);
    let _source = rig.start(&options(&brokers));
    let mut taken = rig.rows(300);
    for broker in 1..=3 {
        cluster.broker_down(broker).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    for broker in 1..=3 {
        cluster.broker_up(broker).unwrap();
    }
    send_events(&producer, 3, 300..330);
    rig.rows(30).arrivals.into_iter().for_each(|arrival| taken.add(arrival));
    assert_eq!(taken.sorted(), (0..330).collect::<Vec<_>>());
}

#[test]
fn poison_is_set_aside_with_its_place_and_copied() {
    const DEAD: &str = "dead";
    let (cluster, brokers) = cluster(1);
    cluster.create_topic(DEAD, 1, 3).unwrap();
    let producer = producer(&brokers);
    let bodies = [
        event(0).into_bytes(),
        b"no json at all".to_vec(),
        format!("{}\n{{}}\n{}", event(1), event(2)).into_bytes(),
        vec![0xff, 0xfe, 0x00],
        event(3).replace("acme", "rival").into_bytes(),
        Vec::new(),
        event(4).into_bytes(),
    ];
    send(&producer, TOPIC, 0, &bodies);
    let header = |value| {
        OwnedHeaders::new().insert(rdkafka::message::Header { key: "tenant", value: Some(value) })
    };
    send_with(&producer, TOPIC, 0, &[event(5).into_bytes()], Some(header("acme")));
    send_with(&producer, TOPIC, 0, &[event(6).into_bytes()], Some(header("rival")));
    let rig = Rig::new(10_000);
    let mut options = options(&brokers);
    options.dead_letter_topic = Some(DEAD.to_owned());
    options.topics[0].tenant = Some("acme".to_owned());
    let source = rig.start(&options);
    let taken = rig.rows(11);
    assert_eq!(taken.sorted(), [0, 1, 2, 4, 5]);
    let dead: Vec<_> = taken.arrivals.iter().flat_map(|arrival| &arrival.batch.dead).collect();
    let seen: Vec<_> =
        dead.iter().map(|letter| (letter.source.as_ref(), letter.row, letter.reason)).collect();
    let expected = [
        ("kafka:events/0@1", 1, "malformed"),
        ("kafka:events/0@2", 2, "missing_field"),
        ("kafka:events/0@3", 1, "invalid_utf8"),
        ("kafka:events/0@4", 1, "unknown_tenant"),
        ("kafka:events/0@8", 1, "unknown_tenant"),
    ];
    assert_eq!(seen, expected);
    assert_eq!(dead[0].bytes, b"no json at all");
    let ignored: u64 = taken.arrivals.iter().map(|arrival| arrival.batch.ignored).sum();
    assert_eq!(ignored, 1, "the tombstone");
    assert_eq!(source.status().refused, 5);
    source.stop();
    let reader: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &brokers)
        .set("group.id", "reader")
        .create()
        .unwrap();
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(DEAD, 0, Offset::Beginning).unwrap();
    reader.assign(&from).unwrap();
    for (source, _, reason) in expected {
        let copy = reader.poll(PATIENCE).expect("a copy, before patience ends").unwrap();
        let headers = copy.headers().unwrap();
        let value = |key| {
            let header = headers.iter().find(|header| header.key == key).unwrap();
            String::from_utf8(header.value.unwrap().to_vec()).unwrap()
        };
        let (place, offset) = (value("origin_topic"), value("origin_offset"));
        assert_eq!(format!("kafka:{place}/{}@{offset}", value("origin_partition")), source);
        assert_eq!(value("reason"), reason);
        let original: usize = offset.parse().unwrap();
        if let Some(body) = bodies.get(original) {
            assert_eq!(copy.payload(), Some(body.as_slice()));
        }
    }
}

#[test]
fn what_the_configuration_gets_wrong_is_refused_at_the_start() {
    let rig = Rig::new(10);
    let mut options = options("127.0.0.1:1");
    options.connection.properties.insert("no.such.property".into(), "s3cret".into());
    let runtime = rig.runtime.handle();
    let clock = crate::clock::Clock::System;
    let outlet = Here { intake: rig.intake.clone(), positions: rig.positions.clone() };
    let refused =
        super::super::KafkaSource::start(&options, &rig.door, Arc::new(outlet), clock, runtime);
    let text = format!("{:#}", refused.err().expect("refused"));
    assert!(text.contains("no.such.property") && !text.contains("s3cret"), "{text}");
}

#[test]
fn every_compression_is_read() {
    let (_cluster, brokers) = cluster(2);
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    for (n, codec) in (0..).zip(codecs) {
        send_events(&producer_with(&brokers, codec), 2, n * 100..(n + 1) * 100);
    }
    let rig = Rig::new(10_000);
    let _source = rig.start(&options(&brokers));
    assert_eq!(rig.rows(500).sorted(), (0..500).collect::<Vec<_>>());
}

/// Found by `omnify-bench crash`: with the wall clock an hour back, every message of now was refused
/// as one of the future.
#[test]
fn a_wall_clock_that_was_set_back_refuses_nothing_of_now() {
    let (_cluster, brokers) = cluster(1);
    let now = omnify_operators::model::tick_of_us(time_us(0));
    let rig = Rig::new(10_000);
    rig.arrivals.closed(now);
    let _source = rig.start_at(&options(&brokers), Clock::manual(now - 3_600_000));
    let hour_us = 3_600_000_000;
    send_events(&producer(&brokers), 1, [0, 1, hour_us]);
    let taken = rig.rows(3);
    assert_eq!(taken.sorted(), [0, 1]);
    let dead: Vec<_> = taken.arrivals.iter().flat_map(|arrival| &arrival.batch.dead).collect();
    assert_eq!(
        (dead.len(), dead[0].reason),
        (1, "future_time"),
        "what is ahead of the engine still is"
    );
}
