//! The topic `omnify.actions` on a real broker, killed in the middle.
//!
//! Runs when `OMNIFY_KAFKA_BROKERS` names a broker; the tests that kill it also need
//! `OMNIFY_KAFKA_DIR`, the folder given to `deploy/kafka/run.sh start --dir`. `.ci/run` sets both:
//! ```text
//! deploy/kafka/run.sh start --dir target/kafka --port 19092
//! OMNIFY_KAFKA_BROKERS=127.0.0.1:19092 OMNIFY_KAFKA_DIR=target/kafka \
//!     cargo test -p omnify-sinks --test actions real_kafka -- --nocapture
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use omnify_decision::action::{Action, Id};
use omnify_decision::control::{Control, Outcome};
use omnify_sinks::action::{KafkaActions, KafkaOptions};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;

use crate::rig::{PATIENCE, Rig, action, applied, bid, owner, quick};

/// One broker, which some tests kill: one test at a time.
static BROKER: Mutex<()> = Mutex::new(());

const OWNERS: u32 = 20;

fn brokers() -> Option<String> {
    let brokers = std::env::var("OMNIFY_KAFKA_BROKERS").ok().filter(|list| !list.is_empty());
    if brokers.is_none() {
        eprintln!("skipped: OMNIFY_KAFKA_BROKERS is not set; see tests/actions/real_kafka.rs");
    }
    brokers
}

fn broker_dir() -> Option<String> {
    let dir = std::env::var("OMNIFY_KAFKA_DIR").ok().filter(|dir| !dir.is_empty());
    if dir.is_none() {
        eprintln!("skipped: OMNIFY_KAFKA_DIR is not set, so the broker cannot be killed");
    }
    dir
}

/// Runs `deploy/kafka/run.sh` on the broker under test.
fn broker(command: &str, dir: &str, brokers: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let port = brokers.rsplit(':').next().unwrap();
    let status = Command::new(root.join("deploy/kafka/run.sh"))
        .args([command, "--dir", dir, "--port", port])
        .current_dir(root)
        .status()
        .unwrap();
    assert!(status.success(), "run.sh {command} failed");
}

/// Options for a topic that no earlier run has used; the broker creates it.
fn fresh_topic(brokers: &str) -> KafkaOptions {
    let unique = tempfile::tempdir().unwrap();
    let unique = unique.path().file_name().unwrap().to_string_lossy().replace('.', "");
    let mut options = KafkaOptions::at(brokers);
    options.topic = format!("omnify.actions.{unique}");
    options.delivery_timeout = Duration::from_secs(90);
    options
}

fn rig(options: &KafkaOptions) -> Rig {
    let options = options.clone();
    Rig::with(quick(), |_| Arc::new(KafkaActions::new(options).unwrap()))
}

/// Every message of the topic as (action id, owner, amount), per partition in order.
fn read_all(options: &KafkaOptions) -> Vec<(String, String, u64)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &options.connection.brokers)
        .set("group.id", "reader")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(&options.topic), PATIENCE).unwrap();
    let partitions = metadata.topics()[0].partitions().len();
    assert!(partitions > 1, "several partitions are wanted");
    let mut all = TopicPartitionList::new();
    for partition in 0..partitions {
        let partition = i32::try_from(partition).unwrap();
        all.add_partition_offset(&options.topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    let (mut messages, mut ended) = (Vec::new(), BTreeSet::new());
    while ended.len() < partitions {
        match consumer.poll(PATIENCE).expect("a message or an end, before patience ends") {
            Err(rdkafka::error::KafkaError::PartitionEOF(partition)) => {
                ended.insert(partition);
            }
            Err(error) => panic!("{error}"),
            Ok(message) => {
                let value: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
                let text = |name: &str| value[name].as_str().unwrap().to_owned();
                let amount = value["bid_micros"].as_u64().unwrap();
                messages.push((text("action_id"), text("owner"), amount));
            }
        }
    }
    messages
}

/// The consumer's side of the contract: an id once, an owner's amounts in order.
fn deduplicated(messages: &[(String, String, u64)]) -> usize {
    let (mut ids, mut last) = (BTreeSet::new(), BTreeMap::new());
    for (id, owner, amount) in messages {
        if ids.insert(id) {
            let earlier = last.insert(owner, *amount);
            assert!(earlier < Some(*amount), "{owner} went from {earlier:?} to {amount}");
        }
    }
    ids.len()
}

/// Submits waves of actions, one per owner, so that no wish replaces another.
fn wave(number: u32) -> impl Iterator<Item = Action> {
    (0..OWNERS).map(move |n| action(number * OWNERS + n + 1, owner(n), bid(i64::from(number) + 1)))
}

#[test]
fn actions_arrive_once_and_in_order() {
    let Some(brokers) = brokers() else { return };
    let _alone = BROKER.lock().unwrap_or_else(PoisonError::into_inner);
    let options = fresh_topic(&brokers);
    let rig = rig(&options);
    for number in 0..20 {
        wave(number).for_each(|action| rig.submit(action));
        for _ in 0..OWNERS {
            let (_, outcome) = rig.ack();
            assert_eq!(outcome, applied(bid(i64::from(number) + 1)));
        }
    }
    let messages = read_all(&options);
    assert_eq!((messages.len(), deduplicated(&messages)), (400, 400));
}

#[test]
fn a_broker_killed_in_the_middle_loses_nothing_and_repeats_nothing() {
    let (Some(brokers), Some(dir)) = (brokers(), broker_dir()) else { return };
    let _alone = BROKER.lock().unwrap_or_else(PoisonError::into_inner);
    let options = fresh_topic(&brokers);
    let rig = rig(&options);
    for number in 0..6 {
        wave(number).for_each(|action| rig.submit(action));
        if number == 2 || number == 4 {
            // With the calls of this wave under way.
            broker("kill", &dir, &brokers);
            broker("start", &dir, &brokers);
        }
        for _ in 0..OWNERS {
            assert!(matches!(rig.ack().1, Outcome::Applied { .. }));
        }
    }
    let messages = read_all(&options);
    assert_eq!((messages.len(), deduplicated(&messages)), (120, 120));
}

#[test]
fn broker_and_engine_killed_in_the_middle_lose_nothing() {
    let (Some(brokers), Some(dir)) = (brokers(), broker_dir()) else { return };
    let _alone = BROKER.lock().unwrap_or_else(PoisonError::into_inner);
    let options = fresh_topic(&brokers);
    let mut rig = rig(&options);
    for number in 0..4 {
        let mut open: BTreeMap<Id, Action> = wave(number).map(|a| (a.id, a)).collect();
        open.values().cloned().for_each(|action| rig.submit(action));
        if number == 2 {
            broker("kill", &dir, &brokers);
            rig.crash();
            broker("start", &dir, &brokers);
            rig.start();
            // As after a restart from the journal: what has no recorded outcome comes again.
            open.values().cloned().for_each(|action| rig.submit(action));
        }
        while !open.is_empty() {
            match rig.next() {
                Control::Acknowledge { action, outcome: Outcome::Applied { .. }, .. } => {
                    open.remove(&action);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    let messages = read_all(&options);
    assert_eq!(deduplicated(&messages), 80, "each action at least once");
}
