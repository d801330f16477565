//! The dead-letter topic: messages that were refused, as they came, for whoever repairs them.
//!
//! # The message
//! Key and value are the refused message's own. Headers say why and where it came from: `reason`
//! (the first refused row's code), `detail`, `rows` (how many of its rows were refused),
//! `origin_topic`, `origin_partition`, `origin_offset`.
//!
//! # Contract
//! The history's dead letters are the record; the topic is a copy for convenience. A copy that was
//! still in the producer when the process died is not made again. While the producer's queue is
//! full the source is to wait ([`DeadLetterTopic::is_full`]).

use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};

use super::Connection;
use super::error::KafkaSinkError;
use crate::telemetry::events::KafkaFailed;

/// Copies that may wait in the producer.
const QUEUE_MAX: i32 = 16_384;

/// A refused message.
#[derive(Clone, Copy, Debug)]
pub struct Refused<'a> {
    /// Topic it came from.
    pub topic: &'a str,
    /// Partition it came from.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub payload: Option<&'a [u8]>,
    /// Reason code.
    pub reason: &'a str,
    /// The reason in words.
    pub detail: &'a str,
    /// How many of its rows were refused.
    pub rows: usize,
}

/// Tells of copies that the brokers did not take.
struct Copies;

impl ClientContext for Copies {}

impl ProducerContext for Copies {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            KafkaFailed { class: "dead_letter", error }.emit();
        }
    }
}

/// See the module.
pub struct DeadLetterTopic {
    producer: ThreadedProducer<Copies>,
    topic: String,
}

impl DeadLetterTopic {
    /// A producer for `topic`. Connects in the background.
    pub fn new(
        connection: &Connection,
        topic: &str,
        timeout: Duration,
    ) -> Result<DeadLetterTopic, KafkaSinkError> {
        let defaults = [
            ("enable.idempotence", "true".to_owned()),
            ("acks", "all".to_owned()),
            ("compression.type", "zstd".to_owned()),
            ("message.timeout.ms", timeout.as_millis().to_string()),
            ("queue.buffering.max.messages", (QUEUE_MAX * 2).to_string()),
        ];
        let producer = connection
            .client("omnify-dead-letters", defaults)
            .create_with_context(Copies)
            .map_err(|error| KafkaSinkError::client(connection, &error))?;
        Ok(DeadLetterTopic { producer, topic: topic.to_owned() })
    }

    /// True while nothing more should be read.
    pub fn is_full(&self) -> bool {
        self.producer.in_flight_count() >= QUEUE_MAX
    }

    /// Sends a copy.
    pub fn send(&self, refused: &Refused<'_>) {
        let partition = refused.partition.to_string();
        let offset = refused.offset.to_string();
        let rows = refused.rows.to_string();
        let header = |key, value| Header { key, value: Some(value) };
        let headers = OwnedHeaders::new_with_capacity(6)
            .insert(header("reason", refused.reason))
            .insert(header("detail", refused.detail))
            .insert(header("rows", &rows))
            .insert(header("origin_topic", refused.topic))
            .insert(header("origin_partition", &partition))
            .insert(header("origin_offset", &offset));
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.topic).headers(headers);
        if let Some(key) = refused.key {
            record = record.key(key);
        }
        if let Some(payload) = refused.payload {
            record = record.payload(payload);
        }
        if let Err((error, _)) = self.producer.send(record) {
            KafkaFailed { class: "dead_letter", error: &error }.emit();
        }
    }

    /// Waits until every copy is confirmed or given up.
    pub fn flush(&self, timeout: Duration) -> Result<(), KafkaSinkError> {
        self.producer.flush(timeout).map_err(|error| KafkaSinkError::Flush(error.to_string()))
    }
}
