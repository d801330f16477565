//! The consumer's thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use omnify_sinks::telemetry::events::{KafkaConsumed, KafkaSourceFailed};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::desk::Desk;
use super::member::Member;
use super::options::SourceOptions;
use super::status::{Partition, Shown};
use crate::clock;

/// Longest wait for a message; a stop and room in the intake are seen this soon.
const POLL: Duration = Duration::from_millis(10);
/// How often room is looked for before the partitions are paused.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// A full intake pauses the partitions after this long. A pause throws away what was read ahead, so
/// a short moment is waited out.
const PAUSE_AFTER: Duration = Duration::from_millis(200);
/// How often telemetry is written.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for an answer about the start of a partition.
const ASK: Duration = Duration::from_secs(5);
/// Wait for copies of dead letters at the end.
const FLUSH: Duration = Duration::from_secs(5);
/// First wait of a member that the group refused; each further one is twice as long.
const REJOIN_FIRST: Duration = Duration::from_secs(1);
/// Longest of them.
const REJOIN_MAX: Duration = Duration::from_secs(60);

/// A consumer of the configured group and topics. Its callbacks come with its first poll.
pub(super) fn consumer(
    options: &SourceOptions,
    desk: Arc<Mutex<Desk>>,
) -> Result<BaseConsumer<Member>, KafkaError> {
    let mut defaults = vec![
        ("group.id", options.group.clone()),
        ("partition.assignment.strategy", "cooperative-sticky".to_owned()),
        ("enable.auto.commit", "false".to_owned()),
        ("enable.auto.offset.store", "false".to_owned()),
        ("isolation.level", "read_committed".to_owned()),
        // Only where no position is known, or the one that is has been deleted by the brokers.
        ("auto.offset.reset", "earliest".to_owned()),
        ("session.timeout.ms", options.session_timeout.as_millis().to_string()),
        ("queued.max.messages.kbytes", (options.fetch_bytes >> 10).max(1).to_string()),
        // An answer for every few messages costs the brokers and us more than the messages: they wait
        // for a batch worth it, but no longer than latency allows.
        ("fetch.min.bytes", (64 << 10).to_string()),
        ("fetch.wait.max.ms", "5".to_owned()),
        // A full queue is looked at again soon: with the client's second, it runs empty meanwhile.
        ("fetch.queue.backoff.ms", "10".to_owned()),
        ("statistics.interval.ms", TELL_EVERY.as_millis().to_string()),
    ];
    if let Some(instance) = &options.instance {
        defaults.push(("group.instance.id", instance.clone()));
    }
    let client_id = options.instance.as_deref().unwrap_or("omnify");
    let consumer: BaseConsumer<Member> =
        options.connection.client(client_id, defaults).create_with_context(Member::new(desk))?;
    let topics: Vec<&str> = options.topics.iter().map(|topic| topic.name.as_str()).collect();
    consumer.subscribe(&topics)?;
    Ok(consumer)
}

/// Reads until stopped or until the engine is gone.
pub(super) struct Loop {
    pub(super) options: SourceOptions,
    pub(super) consumer: BaseConsumer<Member>,
    pub(super) shown: Shown,
    pub(super) stop: Arc<AtomicBool>,
    /// When an error was told last.
    pub(super) told_error: Cell<Option<Instant>>,
    /// When the brokers were asked last for the start of a partition.
    pub(super) asked: RefCell<HashMap<Partition, Option<Instant>>>,
}

#[derive(Default)]
struct Told {
    messages: u64,
    skipped: u64,
}

impl Loop {
    pub(super) fn run(mut self) {
        let mut rejoin = REJOIN_FIRST;
        let mut joined_at = clock::instant();
        let mut full_since: Option<Instant> = None;
        let (mut told, mut told_at, mut committed_at) =
            (Told::default(), clock::instant(), clock::instant());
        while !self.is_over() {
            let paused = self.member().paused.load(Ordering::Acquire);
            if self.desk(|desk| desk.is_full()) {
                self.desk(Desk::flush);
                let since = *full_since.get_or_insert_with(clock::instant);
                if !paused {
                    match since.elapsed() >= PAUSE_AFTER {
                        true => self.pause(),
                        false => std::thread::sleep(LOOK_AGAIN),
                    }
                    continue;
                }
            } else {
                full_since = None;
                if paused {
                    self.resume();
                }
            }
            if self.desk(|desk| desk.is_waiting()) {
                let freed = self.desk(Desk::retry);
                if !freed.is_empty() && !self.member().paused.load(Ordering::Acquire) {
                    self.note("resume", self.consumer.resume(&list(&freed)));
                }
            }
            if !self.poll() {
                if joined_at.elapsed() > 2 * REJOIN_MAX {
                    rejoin = REJOIN_FIRST;
                }
                self.rejoin_after(rejoin);
                rejoin = (2 * rejoin).min(REJOIN_MAX);
                joined_at = clock::instant();
            }
            if told_at.elapsed() >= TELL_EVERY {
                told = self.tell(&told);
                told_at = clock::instant();
            }
            let every = self.options.commit_every;
            if !every.is_zero() && committed_at.elapsed() >= every {
                self.commit();
                committed_at = clock::instant();
            }
        }
        self.desk(Desk::flush);
        self.tell(&told);
        if let Some(topic) = self.member().desk().dead_letters()
            && let Err(error) = topic.flush(FLUSH)
        {
            KafkaSourceFailed { class: "dead_letter", error: &error }.emit();
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.desk(|desk| desk.is_closed())
    }

    /// The group refuses this member for good: another one comes in its place. A member with a name of
    /// its own (`kafka.instance`) is refused when another process took the name, but also when brokers
    /// fail while it joins: the group has then given the name a new number that never arrived here, and
    /// the client goes on asking with the old one (confluentinc/librdkafka#3437).
    fn rejoin_after(&mut self, wait: Duration) {
        self.desk(Desk::leave);
        let refused_at = clock::instant();
        while refused_at.elapsed() < wait && !self.is_over() {
            std::thread::sleep(POLL);
        }
        match consumer(&self.options, self.member().shared()) {
            // The one before ends here, and its last callbacks with it.
            Ok(next) => self.consumer = next,
            Err(error) => self.note("rejoin", Err(error)),
        }
        self.desk(Desk::leave);
        self.shown.lock().paused = false;
    }

    /// One message, error or moment of silence; false when the group refuses this member for good.
    fn poll(&self) -> bool {
        match self.consumer.poll(Duration::ZERO) {
            Some(Ok(message)) => self.take(&message),
            Some(Err(error)) => return self.error(&error),
            None => {
                // Nothing waits in the client: what there is goes on its way.
                self.desk(Desk::flush);
                match self.consumer.poll(POLL) {
                    Some(Ok(message)) => self.take(&message),
                    Some(Err(error)) => return self.error(&error),
                    None => {}
                }
            }
        }
        true
    }

    fn take(&self, message: &BorrowedMessage<'_>) {
        if let Some(expected) = self.desk(|desk| desk.gap_before(message)) {
            self.look_into(expected, message);
        }
        let (taken, due) = self.desk(|desk| (desk.take(message), desk.is_due()));
        if !taken {
            let partition = (Arc::from(message.topic()), message.partition());
            self.note("pause", self.consumer.pause(&list(&[partition])));
        }
        if due {
            self.desk(Desk::flush);
        }
    }

    /// Offsets are missing. Markers of transactions and compaction leave such gaps; only what lies
    /// before the partition's present start is lost. The brokers are asked at most so often for one
    /// partition: where such gaps are usual, every message may have one.
    fn look_into(&self, expected: i64, message: &BorrowedMessage<'_>) {
        let (topic, partition) = (message.topic(), message.partition());
        let mut asked = self.asked.borrow_mut();
        let last = asked.entry((Arc::from(topic), partition)).or_default();
        if message.offset() - expected == 1 || last.is_some_and(|last| last.elapsed() < TELL_EVERY)
        {
            return;
        }
        *last = Some(clock::instant());
        match self.consumer.fetch_watermarks(topic, partition, ASK) {
            Ok((first, _)) if first > expected => {
                let lost = u64::try_from(first - expected).unwrap_or(0);
                self.shown.lock().lost += lost;
                tracing::error!(
                    topic,
                    partition,
                    lost,
                    "messages were deleted before they were read"
                );
            }
            Ok(_) => {}
            Err(error) => self.note("watermarks", Err(error)),
        }
    }

    fn pause(&self) {
        self.member().paused.store(true, Ordering::Release);
        self.shown.lock().paused = true;
        let paused = self.consumer.assignment().and_then(|all| self.consumer.pause(&all));
        self.note("pause", paused);
    }

    fn resume(&self) {
        self.member().paused.store(false, Ordering::Release);
        let mut shown = self.shown.lock();
        shown.paused = false;
        let assigned = shown.assigned.clone();
        drop(shown);
        let waiting = self.desk(|desk| desk.waiting());
        let free: Vec<Partition> = assigned.difference(&waiting).cloned().collect();
        self.note("resume", self.consumer.resume(&list(&free)));
    }

    /// Counts an error; false when the consumer can do no more.
    fn error(&self, error: &KafkaError) -> bool {
        let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        let text = error.to_string();
        let mut shown = self.shown.lock();
        shown.errors += 1;
        // Brokers that are away are missed many times a second.
        let told = self.told_error.replace(Some(clock::instant()));
        let often = told.is_some_and(|told| told.elapsed() < TELL_EVERY);
        if fatal || !often || shown.last_error.as_ref() != Some(&text) {
            KafkaSourceFailed { class: if fatal { "fatal" } else { "consume" }, error }.emit();
        } else {
            self.told_error.set(told);
        }
        shown.last_error = Some(text);
        if fatal {
            shown.refused_by_group = Some(error.to_string());
        }
        !fatal
    }

    fn note(&self, class: &'static str, result: Result<(), KafkaError>) {
        if let Err(error) = result {
            KafkaSourceFailed { class, error: &error }.emit();
            let mut shown = self.shown.lock();
            shown.errors += 1;
            shown.last_error = Some(error.to_string());
        }
    }

    fn tell(&self, told: &Told) -> Told {
        let shown = self.shown.lock();
        KafkaConsumed {
            messages: shown.messages - told.messages,
            skipped: shown.skipped - told.skipped,
            partitions: shown.assigned.len() as u64,
            lag: shown.lag_total(),
            paused: shown.paused,
        }
        .emit();
        Told { messages: shown.messages, skipped: shown.skipped }
    }

    /// Tells the group what is durable, for monitors; nothing is ever read back. Where partitions are
    /// spread over processes, the one with the journal tells it of all.
    fn commit(&self) {
        let mut list = TopicPartitionList::new();
        for (topic, partition, next) in self.desk(|desk| desk.durable()) {
            if list.add_partition_offset(&topic, partition, Offset::Offset(next)).is_err() {
                return;
            }
        }
        if list.count() > 0 {
            self.note("commit", self.consumer.commit(&list, CommitMode::Async));
        }
    }

    fn member(&self) -> &Member {
        self.consumer.context()
    }

    fn desk<T>(&self, with: impl FnOnce(&mut Desk) -> T) -> T {
        with(&mut self.member().desk())
    }
}

fn list(partitions: &[Partition]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        list.add_partition(topic, *partition);
    }
    list
}
