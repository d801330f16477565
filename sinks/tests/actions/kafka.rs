//! The topic `omnify.actions` on librdkafka's in-process cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use omnify_decision::control::Outcome;
use omnify_sinks::action::{KafkaActions, KafkaOptions};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;

use crate::rig::{PATIENCE, Rig, action, applied, bid, id, owner, quick};

const TOPIC: &str = "omnify.actions";

/// Reads all partitions from the start.
fn reader(brokers: &str, partitions: i32) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reader")
        .create()
        .unwrap();
    let mut all = TopicPartitionList::new();
    for partition in 0..partitions {
        all.add_partition_offset(TOPIC, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    consumer
}

fn next(consumer: &BaseConsumer) -> BorrowedMessage<'_> {
    consumer.poll(PATIENCE).expect("a message, before patience ends").unwrap()
}

fn rig(options: KafkaOptions) -> Rig {
    Rig::with(quick(), |_| Arc::new(KafkaActions::new(options).unwrap()))
}

#[test]
fn actions_are_published_in_order_per_owner() {
    let cluster = MockCluster::new(3).unwrap();
    cluster.create_topic(TOPIC, 4, 3).unwrap();
    let rig = rig(KafkaOptions::at(cluster.bootstrap_servers()));
    for n in 1..=30 {
        let setting = bid(i64::from(n));
        assert_eq!(rig.run(action(n, owner(n % 3), setting.clone())), applied(setting));
    }
    let consumer = reader(&cluster.bootstrap_servers(), 4);
    let mut last: BTreeMap<String, (i32, u64)> = BTreeMap::new();
    for _ in 0..30 {
        let message = next(&consumer);
        let key = String::from_utf8(message.key().unwrap().to_vec()).unwrap();
        let value: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
        assert_eq!(value["owner"], key.as_str());
        assert_eq!((&value["setting"], &value["kind"]), (&"bid".into(), &"set_bid".into()));
        let header = message.headers().unwrap().get(1);
        assert_eq!(header.value, value["action_id"].as_str().map(str::as_bytes));
        let amount = value["bid_micros"].as_u64().unwrap();
        let before = last.insert(key, (message.partition(), amount));
        if let Some((partition, earlier)) = before {
            assert_eq!(partition, message.partition(), "one owner, one partition");
            assert!(earlier < amount, "in order");
        }
    }
    assert_eq!(last.len(), 3);
}

#[test]
fn a_broker_that_refuses_and_comes_back_loses_and_repeats_nothing() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    let rig = rig(KafkaOptions::at(cluster.bootstrap_servers()));
    let refusals = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 3];
    cluster.request_errors(RDKafkaApiKey::Produce, &refusals);
    assert_eq!(rig.run(action(1, owner(1), bid(5))), applied(bid(5)));
    cluster.broker_down(1).unwrap();
    rig.submit(action(2, owner(1), bid(6)));
    std::thread::sleep(Duration::from_millis(100));
    cluster.broker_up(1).unwrap();
    assert_eq!(rig.ack(), (id(2), applied(bid(6))));
    let consumer = reader(&cluster.bootstrap_servers(), 1);
    for expected in [5, 6] {
        let value: Value = serde_json::from_slice(next(&consumer).payload().unwrap()).unwrap();
        assert_eq!(value["bid_micros"], expected);
    }
    assert!(consumer.poll(Duration::from_millis(300)).is_none(), "nothing came twice");
}

#[test]
fn a_refused_topic_is_rejected_with_its_class() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::Produce, &[refused]);
    let rig = rig(KafkaOptions::at(cluster.bootstrap_servers()));
    match rig.run(action(1, owner(1), bid(5))) {
        Outcome::Rejected { class, message } => {
            assert_eq!(class, "permission");
            assert!(message.contains(TOPIC), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_broker_an_action_ends_as_unknown_and_the_owner_goes_on() {
    let mut options = KafkaOptions::at("127.0.0.1:1");
    options.delivery_timeout = Duration::from_millis(200);
    let rig = rig(options);
    assert_eq!(rig.run(action(1, owner(1), bid(5))), Outcome::Unknown);
    assert_eq!(rig.run(action(2, owner(1), bid(6))), Outcome::Unknown);
}
