//! The thread that writes features and alerts, in groups of ticks.
//!
//! # When the brokers do not take something
//! - What passes (brokers away, no leader, too few replicas) is tried again with growing waits, for as
//!   long as it takes; [`OutputsStatus::trying`] says so.
//! - A message that they will never take (too large, malformed, a topic that is not there or may not be
//!   written to) is set aside: a copy with the reason goes to the dead-letter topic, if there is one,
//!   within the same transaction, and the rest of its group goes out without it. Brokers refuse
//!   whole batches, so the messages of a refused batch are tried one at a time, and only those that
//!   are refused alone are set aside; without transactions the others of the group may come twice.
//! - An id that another process has taken over ends the thread.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use omnify_operators::model::Tick;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use super::error::KafkaSinkError;
use super::group::{Group, Out, Step};
use super::outputs::{Next, OutputOptions, Shared};
use super::refusal::{self, Refusal};
use super::select::TickOutputs;
use crate::telemetry::events::KafkaFailed;

/// Messages of one transaction, at most (and one tick).
const GROUP_MAX: usize = 8_192;
/// Wait for news, and before the first try again; it doubles up to [`WAIT_MAX`].
const WAIT: Duration = Duration::from_millis(200);
/// Longest wait before a try.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Records that are looked at first when the last tick is read back; more if it is not among them.
const LOOK_BACK: i64 = 256;

/// A record of the ticks topic.
#[derive(Serialize, Deserialize)]
struct Mark {
    schema: u32,
    tick: Tick,
}

/// What became of messages that did not arrive: their number in the group, and why.
#[derive(Clone, Default)]
struct Deliveries(Arc<Mutex<Vec<(usize, RDKafkaErrorCode)>>>);

impl Deliveries {
    fn add(&self, number: usize, error: &KafkaError) {
        if let Some(code) = error.rdkafka_error_code() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push((number, code));
        }
    }

    fn take(&self) -> Vec<(usize, RDKafkaErrorCode)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if let Err((error, _)) = result {
            self.add(number, error);
        }
    }
}

/// How a try of a group went.
enum Failure {
    /// Again from the start, after a wait.
    Again(KafkaError),
    /// Again at once: something was learned of what is refused.
    Learned,
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
            .create_with_context(Deliveries::default())
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
                Err(error) => self.not_begun(&error),
            }
            if self.wait(WAIT) {
                return Ok(None);
            }
        }
        loop {
            match self.last_tick(id) {
                Ok(last) => {
                    self.shared.show(|status| {
                        status.committed = last;
                        status.trying = None;
                    });
                    return Ok(Some(last.unwrap_or(0)));
                }
                Err(error) => self.not_begun(&error),
            }
            if self.wait(WAIT) {
                return Ok(None);
            }
        }
    }

    fn not_begun(&self, error: &KafkaError) {
        KafkaFailed { class: "output_begin", error }.emit();
        self.shared.show(|status| status.trying = Some(error.to_string()));
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
            let Some(group) = self.deliver(&ticks, tick)? else { return Ok(()) };
            if self.options.transactional_id.is_some() {
                last = tick;
            }
            let refused = group.refusals().len() as u64;
            for refusal in group.refusals() {
                KafkaFailed { class: "output_refused", error: refusal }.emit();
            }
            let last_refused = group.refusals().last().map(ToString::to_string);
            self.shared.show(|status| {
                status.committed = Some(tick);
                status.messages += group.len() as u64 - refused;
                status.refused += refused;
                status.last_refused = last_refused;
                status.passed_over += passed;
                status.trying = None;
            });
        }
    }

    /// Tries until everything of the group is with the brokers or set aside; `None` when stopped.
    fn deliver(&self, ticks: &[TickOutputs], last: Tick) -> Result<Option<Group>, KafkaSinkError> {
        let mut group = Group::new(&self.options, &self.windows, ticks);
        let mut wait = WAIT;
        loop {
            let tried = match &self.options.transactional_id {
                Some(id) => self.transaction(&mut group, id, last),
                None => self.plainly(&mut group),
            };
            match tried {
                Ok(()) => return Ok(Some(group)),
                Err(Failure::Learned) => {}
                Err(Failure::Fatal(error)) => {
                    let id = self.options.transactional_id.clone().unwrap_or_default();
                    let message = error.to_string();
                    return Err(KafkaSinkError::Transactions { id, message });
                }
                Err(Failure::Again(error)) => {
                    KafkaFailed { class: "output", error: &error }.emit();
                    self.shared.show(|status| status.trying = Some(error.to_string()));
                    if self.wait(wait) {
                        return Ok(None);
                    }
                    wait = (2 * wait).min(WAIT_MAX);
                }
            }
            if self.shared.is_stopped() {
                return Ok(None);
            }
        }
    }

    /// The group without transactions.
    fn plainly(&self, group: &mut Group) -> Result<(), Failure> {
        let sent = self.send_all(group).and_then(|()| self.flush());
        self.learn(group)?;
        sent
    }

    /// The group as one transaction, with the record that says how far it reaches.
    fn transaction(&self, group: &mut Group, id: &str, last: Tick) -> Result<(), Failure> {
        self.producer.begin_transaction().map_err(sort)?;
        let mark = serde_json::to_vec(&Mark { schema: 1, tick: last }).unwrap_or_default();
        let mark = Out::new(&self.options.ticks_topic, id.to_owned(), mark, "omnify.tick/1");
        let committed = self.send_all(group).and_then(|()| {
            self.send(&mark, Some(0), usize::MAX)?;
            self.commit()
        });
        let Err(failure) = committed else { return Ok(()) };
        if let Failure::Fatal(_) = failure {
            return Err(failure);
        }
        self.abort()?;
        // By now every message has been reported.
        self.learn(group)?;
        Err(failure)
    }

    fn abort(&self) -> Result<(), Failure> {
        loop {
            match self.producer.abort_transaction(self.options.timeout) {
                Ok(()) => return Ok(()),
                // Until it is aborted no other can begin.
                Err(KafkaError::Transaction(error)) if error.is_retriable() => {
                    if self.shared.is_stopped() {
                        return Err(Failure::Again(KafkaError::Transaction(error)));
                    }
                    self.shared.show(|status| status.trying = Some(error.to_string()));
                }
                Err(error) => return Err(Failure::Fatal(error)),
            }
        }
    }

    fn deliveries(&self) -> &Deliveries {
        self.producer.client().context()
    }

    fn commit(&self) -> Result<(), Failure> {
        loop {
            match self.producer.commit_transaction(self.options.timeout) {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error))
                    if error.is_retriable() && !self.shared.is_stopped() =>
                {
                    self.shared.show(|status| status.trying = Some(error.to_string()));
                }
                Err(error) => return Err(sort(error)),
            }
        }
    }

    /// Waits until every message was confirmed or refused.
    fn flush(&self) -> Result<(), Failure> {
        loop {
            match self.producer.flush(self.options.timeout) {
                Ok(()) => return Ok(()),
                Err(error) if self.shared.is_stopped() => return Err(Failure::Again(error)),
                // Brokers that are away are waited for; what was sent stays in the producer.
                Err(error) => self.shared.show(|status| status.trying = Some(error.to_string())),
            }
        }
    }

    /// Takes over what the brokers refused since the last time.
    fn learn(&self, group: &mut Group) -> Result<(), Failure> {
        let failed = self.deliveries().take();
        let mut learned = false;
        for (number, code) in &failed {
            learned |= group.refuse(*number, *code);
        }
        match (learned, failed.first()) {
            (true, _) => Err(Failure::Learned),
            // In a transaction what follows from its end is no news.
            (false, Some((_, code))) if !refusal::is_purged(*code) => {
                Err(Failure::Again(KafkaError::MessageProduction(*code)))
            }
            _ => Ok(()),
        }
    }

    fn send_all(&self, group: &mut Group) -> Result<(), Failure> {
        for number in 0..group.len() {
            match group.step(number) {
                Step::Send(out) => self.send(out, None, number)?,
                Step::Alone(out) => {
                    self.flush()?;
                    self.send(out, None, number)?;
                    self.flush()?;
                    self.learn(group)?;
                }
                Step::Copy(out, refusal) => self.copy(out, refusal, number)?,
                Step::Nothing => {}
            }
        }
        Ok(())
    }

    /// Sends a copy of a refused message to the dead-letter topic.
    fn copy(&self, out: &Out, refusal: &Refusal, number: usize) -> Result<(), Failure> {
        let Some(topic) = &self.options.dead_letter_topic else { return Ok(()) };
        let value = &out.value[..out.value.len().min(refusal::COPY_BYTES_MAX)];
        let headers = refusal.headers(out);
        let record: BaseRecord<'_, str, [u8], usize> =
            BaseRecord::with_opaque_to(topic, Group::copy_of(number))
                .key(out.key.as_str())
                .payload(value)
                .headers(headers);
        self.enqueue(record)
    }

    fn send(&self, out: &Out, partition: Option<i32>, number: usize) -> Result<(), Failure> {
        let headers = OwnedHeaders::new_with_capacity(1)
            .insert(Header { key: "schema", value: Some(out.schema) });
        let mut record: BaseRecord<'_, str, [u8], usize> =
            BaseRecord::with_opaque_to(&out.topic, number)
                .key(out.key.as_str())
                .payload(out.value.as_slice())
                .headers(headers);
        if let Some(partition) = partition {
            record = record.partition(partition);
        }
        self.enqueue(record)
    }

    fn enqueue(&self, mut record: BaseRecord<'_, str, [u8], usize>) -> Result<(), Failure> {
        let number = record.delivery_opaque;
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    if self.shared.is_stopped() {
                        let code = RDKafkaErrorCode::QueueFull;
                        return Err(Failure::Again(KafkaError::MessageProduction(code)));
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => {
                    // Refused here already, as a broker would have.
                    self.deliveries().add(number, &error);
                    return Err(sort(error));
                }
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
            // The end is told with an empty answer, which brokers put off for so long.
            ("fetch.wait.max.ms", "50".to_owned()),
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

    /// Waits; true when the thread is to end.
    fn wait(&self, mut time: Duration) -> bool {
        while !time.is_zero() && !self.shared.is_stopped() {
            let step = time.min(WAIT);
            std::thread::sleep(step);
            time -= step;
        }
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
