//! What came out on the topics, read as a consumer with `isolation.level=read_committed` reads it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;

use super::broker::{Broker, PARTITIONS};
use super::platform::Calls;

const PATIENCE: Duration = Duration::from_secs(30);

/// A message, in order of its partition.
struct Read {
    partition: i32,
    key: String,
    value: Vec<u8>,
}

/// What the topics hold.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    /// Actions by id, as often as a consumer that obeys the topic's contract carries them out.
    pub(super) actions: Calls,
    /// Copies of actions: the same bytes again, and no newer action of the owner between.
    pub(super) republished: u64,
    /// Rows of features.
    pub(super) features: u64,
    /// Alerts.
    pub(super) alerts: u64,
    /// Features and alerts that came again.
    pub(super) doubled: u64,
    /// Refused messages.
    pub(super) dead_letters: u64,
}

/// Reads them all.
pub(super) fn read(broker: &Broker) -> anyhow::Result<Outputs> {
    let topics = broker.topics();
    let mut outputs = Outputs::default();
    actions(read_all(broker, &topics.actions)?, &mut outputs)?;
    let mut newest: HashMap<String, u64> = HashMap::new();
    for feature in read_all(broker, &topics.features)? {
        outputs.features += 1;
        let value: Value = serde_json::from_slice(&feature.value)?;
        let tick = value["tick"].as_u64().context("a feature without a tick")?;
        // Rows of an entity come in order of ticks, so one that does not move on came before.
        let before = newest.insert(feature.key, tick);
        outputs.doubled += u64::from(before.is_some_and(|before| tick <= before));
    }
    let mut seen = BTreeSet::new();
    for alert in read_all(broker, &topics.alerts)? {
        outputs.alerts += 1;
        let value: Value = serde_json::from_slice(&alert.value)?;
        let id = value["alert_id"].as_str().context("an alert without an id")?.to_owned();
        outputs.doubled += u64::from(!seen.insert(id));
    }
    outputs.dead_letters = read_all(broker, &topics.dead_letters)?.len() as u64;
    Ok(outputs)
}

/// A copy of an action is harmless where its consumer can know it: it is byte for byte the one
/// before of its owner. Anything else would set back what a newer action has set.
fn actions(read: Vec<Read>, outputs: &mut Outputs) -> anyhow::Result<()> {
    let mut newest: BTreeMap<String, (i32, Vec<u8>)> = BTreeMap::new();
    for Read { partition, key, value } in read {
        let before = newest.insert(key.clone(), (partition, value.clone()));
        if let Some((of, before)) = before {
            ensure!(of == partition, "actions of {key} are in two partitions");
            if before == value {
                outputs.republished += 1;
                continue;
            }
        }
        let action: Value = serde_json::from_slice(&value)?;
        let id = action["action_id"].as_str().context("an action without an id")?;
        *outputs.actions.entry(id.to_owned()).or_default() += 1;
    }
    Ok(())
}

/// Whether the group was told everything as read: what is told is what the engine's journal holds.
pub(super) fn offsets_are_at_the_end(broker: &Broker) -> anyhow::Result<bool> {
    let (group, topic) = (&broker.topics().group, &broker.topics().events);
    let consumer: BaseConsumer = broker.client().set("group.id", group).create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition(topic, partition);
    }
    let told = consumer.committed_offsets(list, PATIENCE)?;
    for partition in 0..PARTITIONS {
        let (_, end) = consumer.fetch_watermarks(topic, partition, PATIENCE)?;
        let at = told.find_partition(topic, partition).map(|element| element.offset());
        if end > 0 && at != Some(Offset::Offset(end)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read_all(broker: &Broker, topic: &str) -> anyhow::Result<Vec<Read>> {
    let consumer: BaseConsumer = broker
        .client()
        .set("group.id", format!("{topic}.reader"))
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let partitions = metadata.topics()[0].partitions().len();
    let mut all = TopicPartitionList::new();
    for partition in 0..i32::try_from(partitions)? {
        all.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&all)?;
    let (mut read, mut ends) = (Vec::new(), BTreeSet::new());
    while ends.len() < partitions {
        match consumer.poll(PATIENCE).with_context(|| format!("{topic}: its end is not found"))? {
            Err(KafkaError::PartitionEOF(partition)) => {
                ends.insert(partition);
            }
            Err(error) => return Err(error.into()),
            Ok(message) => read.push(Read {
                partition: message.partition(),
                key: String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned(),
                value: message.payload().unwrap_or_default().to_vec(),
            }),
        }
    }
    Ok(read)
}
