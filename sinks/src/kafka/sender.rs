//! The thread that writes features and alerts.

use std::sync::Arc;
use std::time::Duration;

use omnify_operators::model::Tick;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use super::error::KafkaSinkError;
use super::message;
use super::outputs::{Next, OutputOptions, Shared};
use super::select::TickOutputs;
use crate::telemetry::events::KafkaFailed;

/// Messages of one transaction, at most (and one tick).
const GROUP_MAX: usize = 8_192;
/// Wait for news, and between two tries.
const WAIT: Duration = Duration::from_millis(200);
/// Records that are looked at first when the last tick is read back; more if it is not among them.
const LOOK_BACK: i64 = 256;

/// A record of the ticks topic.
#[derive(Serialize, Deserialize)]
struct Mark {
    schema: u32,
    tick: Tick,
}

/// Tells what the brokers refused for good.
struct Deliveries;

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            KafkaFailed { class: "output", error }.emit();
        }
    }
}

/// How a group of ticks went.
enum Failure {
    /// Again from the start.
    Again(KafkaError),
    /// Never again.
    Fatal(KafkaError),
}

pub(super) struct Sender {
    options: OutputOptions,
    windows: Vec<String>,
    shared: Arc<Shared>,
    producer: ThreadedProducer<Deliveries>,
}

impl Sender {
    pub(super) fn new(
        options: OutputOptions,
        windows: Vec<String>,
        shared: Arc<Shared>,
    ) -> Result<Sender, KafkaSinkError> {
        let mut defaults = vec![
            ("enable.idempotence", "true".to_owned()),
            ("acks", "all".to_owned()),
            ("linger.ms", "5".to_owned()),
            ("compression.type", "zstd".to_owned()),
            ("queue.buffering.max.messages", (GROUP_MAX * 4).to_string()),
        ];
        match &options.transactional_id {
            Some(id) => defaults.push(("transactional.id", id.clone())),
            // Tried until the brokers have it.
            None => defaults.push(("message.timeout.ms", "0".to_owned())),
        }
        let client = options.connection.client("omnify-outputs", defaults);
        let producer = client
            .create_with_context(Deliveries)
            .map_err(|error| KafkaSinkError::client(&options.connection, &error))?;
        Ok(Sender { options, windows, shared, producer })
    }

    pub(super) fn run(self) {
        let done = match self.begin() {
            Ok(Some(last)) => self.work(last),
            Ok(None) => return,
            Err(why) => Err(why),
        };
        if let Err(why) = done {
            KafkaFailed { class: "output_fatal", error: &why }.emit();
            self.shared.show(|status| status.failed = Some(why.to_string()));
        }
    }

    /// The last tick that an earlier process committed (0 for none); `None` when stopped.
    fn begin(&self) -> Result<Option<Tick>, KafkaSinkError> {
        let Some(id) = &self.options.transactional_id else { return Ok(Some(0)) };
        // This also ends what an earlier process left open, so that the read below sees all.
        loop {
            match self.producer.init_transactions(self.options.timeout) {
                Ok(()) => break,
                Err(error) if is_fatal(&error) => {
                    let message = error.to_string();
                    return Err(KafkaSinkError::Transactions { id: id.clone(), message });
                }
                Err(error) => KafkaFailed { class: "output_begin", error: &error }.emit(),
            }
            if self.pause() {
                return Ok(None);
            }
        }
        loop {
            match self.last_tick(id) {
                Ok(last) => {
                    self.shared.show(|status| status.committed = last);
                    return Ok(Some(last.unwrap_or(0)));
                }
                Err(error) => KafkaFailed { class: "output_begin", error: &error }.emit(),
            }
            if self.pause() {
                return Ok(None);
            }
        }
    }

    fn work(&self, mut last: Tick) -> Result<(), KafkaSinkError> {
        loop {
            let mut ticks = match self.shared.next(WAIT, GROUP_MAX) {
                Next::End => return Ok(()),
                Next::Nothing => continue,
                Next::Ticks(ticks) => ticks,
            };
            let all = ticks.len();
            ticks.retain(|outputs| outputs.tick > last);
            let passed = (all - ticks.len()) as u64;
            let Some(tick) = ticks.last().map(|outputs| outputs.tick) else {
                self.shared.show(|status| status.passed_over += passed);
                continue;
            };
            let count = loop {
                match self.group(&ticks, tick) {
                    Ok(count) => break count,
                    Err(Failure::Fatal(error)) => {
                        let id = self.options.transactional_id.clone().unwrap_or_default();
                        let message = error.to_string();
                        return Err(KafkaSinkError::Transactions { id, message });
                    }
                    Err(Failure::Again(error)) => {
                        KafkaFailed { class: "output", error: &error }.emit();
                        if self.pause() {
                            return Ok(());
                        }
                    }
                }
            };
            if self.options.transactional_id.is_some() {
                last = tick;
            }
            self.shared.show(|status| {
                status.committed = Some(tick);
                status.messages += count;
                status.passed_over += passed;
            });
        }
    }

    /// Writes a group of ticks, as a whole.
    fn group(&self, ticks: &[TickOutputs], last: Tick) -> Result<u64, Failure> {
        let Some(id) = &self.options.transactional_id else {
            let count = self.send_all(ticks)?;
            loop {
                match self.producer.flush(self.options.timeout) {
                    Ok(()) => return Ok(count),
                    Err(_) if self.shared.is_stopped() => return Ok(count),
                    // Brokers that are away are waited for; what was sent stays in the producer.
                    Err(_) => {}
                }
            }
        };
        self.producer.begin_transaction().map_err(sort)?;
        let sent = self.send_all(ticks).and_then(|count| {
            let mark = serde_json::to_vec(&Mark { schema: 1, tick: last }).unwrap_or_default();
            self.send(&self.options.ticks_topic, Some(0), id, &mark, "omnify.tick/1")?;
            Ok(count)
        });
        let committed = sent.and_then(|count| {
            loop {
                match self.producer.commit_transaction(self.options.timeout) {
                    Ok(()) => break,
                    Err(KafkaError::Transaction(error))
                        if error.is_retriable() && !self.shared.is_stopped() => {}
                    Err(error) => return Err(sort(error)),
                }
            }
            Ok(count)
        });
        match committed {
            Err(Failure::Again(error)) => {
                self.producer.abort_transaction(self.options.timeout).map_err(sort)?;
                Err(Failure::Again(error))
            }
            done => done,
        }
    }

    fn send_all(&self, ticks: &[TickOutputs]) -> Result<u64, Failure> {
        let mut count = 0;
        for outputs in ticks {
            if let Some(topic) = &self.options.features_topic {
                for (info, row) in &outputs.features {
                    // Numbers that have no form in JSON become null, so this always has one.
                    let value = message::feature(info, row, &self.windows).unwrap_or_default();
                    self.send(topic, None, info.key.as_str(), &value, "omnify.feature/1")?;
                    count += 1;
                }
            }
            if let Some(topic) = &self.options.alerts_topic {
                for alert in &outputs.alerts {
                    let value = serde_json::to_vec(alert).unwrap_or_default();
                    self.send(topic, None, alert.key(), &value, "omnify.alert/1")?;
                    count += 1;
                }
            }
        }
        Ok(count)
    }

    fn send(
        &self,
        topic: &str,
        partition: Option<i32>,
        key: &str,
        value: &[u8],
        schema: &str,
    ) -> Result<(), Failure> {
        let headers = OwnedHeaders::new_with_capacity(1)
            .insert(Header { key: "schema", value: Some(schema) });
        let mut record: BaseRecord<'_, str, [u8]> =
            BaseRecord::to(topic).key(key).payload(value).headers(headers);
        if let Some(partition) = partition {
            record = record.partition(partition);
        }
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    if self.shared.is_stopped() {
                        return Ok(());
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(sort(error)),
            }
        }
    }

    /// Reads the last committed tick back.
    fn last_tick(&self, id: &str) -> Result<Option<Tick>, KafkaError> {
        let (topic, timeout) = (&self.options.ticks_topic, self.options.timeout);
        let defaults = [
            ("group.id", format!("{id}-ticks")),
            ("isolation.level", "read_committed".to_owned()),
            ("enable.auto.commit", "false".to_owned()),
            ("enable.partition.eof", "true".to_owned()),
            ("allow.auto.create.topics", "true".to_owned()),
        ];
        let client = self.options.connection.client("omnify-ticks", defaults);
        let consumer: BaseConsumer = client.create()?;
        let (first, end) = match consumer.fetch_watermarks(topic, 0, timeout) {
            Ok(marks) => marks,
            Err(KafkaError::MetadataFetch(
                RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition,
            )) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut back = LOOK_BACK;
        loop {
            let from = (end - back).max(first);
            if let Some(tick) = read_marks(&consumer, topic, from, id, timeout)? {
                return Ok(Some(tick));
            }
            if from <= first {
                return Ok(None);
            }
            back = back.saturating_mul(16);
        }
    }

    /// Waits a moment; true when the thread is to end.
    fn pause(&self) -> bool {
        std::thread::sleep(WAIT);
        self.shared.is_stopped()
    }
}

/// The last tick of `id` from offset `from` to the end.
fn read_marks(
    consumer: &BaseConsumer,
    topic: &str,
    from: i64,
    id: &str,
    timeout: Duration,
) -> Result<Option<Tick>, KafkaError> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(from))?;
    consumer.assign(&list)?;
    let mut last = None;
    loop {
        match consumer.poll(timeout) {
            Some(Ok(record)) => {
                let own = record.key() == Some(id.as_bytes());
                let mark = record.payload().and_then(|value| serde_json::from_slice(value).ok());
                if let (true, Some(Mark { tick, .. })) = (own, mark) {
                    last = Some(tick);
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(last),
            Some(Err(error)) => return Err(error),
            None => {
                return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
            }
        }
    }
}

fn is_fatal(error: &KafkaError) -> bool {
    match error {
        KafkaError::Transaction(error) => error.is_fatal(),
        other => matches!(other.rdkafka_error_code(), Some(RDKafkaErrorCode::Fatal)),
    }
}

fn sort(error: KafkaError) -> Failure {
    if is_fatal(&error) { Failure::Fatal(error) } else { Failure::Again(error) }
}
