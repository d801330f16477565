//! A source between a cluster and the test.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use omnify_operators::model::Registry;
use omnify_sinks::journal::Position;
use rdkafka::ClientConfig;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::runtime::Runtime;

use crate::clock::Clock;
use crate::decode::{Door, Limits};
use crate::kafka::outlet::Here;
use crate::kafka::{KafkaSource, KafkaStatus, Positions, SourceOptions};
use crate::live::{Arrival, Arrivals, Intake, channel};

/// Longest wait for what must come.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long what must not come is waited for.
pub(super) const SILENCE: Duration = Duration::from_millis(300);
pub(super) const TOPIC: &str = "events";
pub(super) const LOOK: Duration = Duration::from_millis(5);
const BASE_US: i64 = 1_700_000_000_000_000;

/// The ends of an intake, and what sources share.
pub(super) struct Rig {
    pub(super) intake: Intake,
    pub(super) arrivals: Arrivals,
    pub(super) door: Arc<Door>,
    pub(super) positions: Positions,
    pub(super) runtime: Runtime,
}

impl Rig {
    pub(super) fn new(rows_max: usize) -> Rig {
        Rig::at(rows_max, Positions::default())
    }

    pub(super) fn at(rows_max: usize, positions: Positions) -> Rig {
        let (intake, arrivals) = channel(rows_max);
        let door = Arc::new(Door::new(Arc::new(Registry::utc()), Limits::default()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        Rig { intake, arrivals, door, positions, runtime }
    }

    pub(super) fn start(&self, options: &SourceOptions) -> KafkaSource {
        self.start_at(options, Clock::System)
    }

    pub(super) fn start_at(&self, options: &SourceOptions, clock: Clock) -> KafkaSource {
        let outlet = Here { intake: self.intake.clone(), positions: self.positions.clone() };
        let runtime = self.runtime.handle();
        KafkaSource::start(options, &self.door, Arc::new(outlet), clock, runtime).unwrap()
    }

    /// The next batch.
    pub(super) fn next(&self) -> Arrival {
        let arrival = self.arrivals.usual.recv_timeout(PATIENCE);
        let arrival = arrival.expect("a batch, before patience ends");
        self.arrivals.took(&arrival);
        arrival
    }

    /// The next batch of `source`, or what it says about itself.
    pub(super) fn next_of(&self, source: &KafkaSource) -> Arrival {
        let arrival = self.arrivals.usual.recv_timeout(PATIENCE);
        let arrival = arrival.unwrap_or_else(|_| panic!("nothing comes: {:?}", source.status()));
        self.arrivals.took(&arrival);
        arrival
    }

    /// Everything until `rows` rows have come, and that nothing comes behind them.
    pub(super) fn rows(&self, rows: u64) -> Taken {
        let mut taken = Taken::default();
        while taken.rows < rows {
            taken.add(self.next());
        }
        self.silence(&mut taken);
        assert_eq!(taken.rows, rows, "more rows than were sent");
        taken
    }

    /// Adds what comes within a moment.
    pub(super) fn silence(&self, taken: &mut Taken) {
        while let Ok(arrival) = self.arrivals.usual.recv_timeout(SILENCE) {
            self.arrivals.took(&arrival);
            taken.add(arrival);
        }
    }
}

/// What came.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) rows: u64,
    pub(super) numbers: Vec<i64>,
    pub(super) positions: BTreeMap<(String, i32), i64>,
    pub(super) arrivals: Vec<Arrival>,
}

impl Taken {
    pub(super) fn add(&mut self, arrival: Arrival) {
        assert_eq!(arrival.batch.accounted(), arrival.batch.rows);
        self.rows += arrival.batch.rows;
        self.numbers.extend(arrival.batch.events.iter().map(|event| event.time - BASE_US));
        for Position { source, partition, next } in &arrival.positions {
            let before = self.positions.insert((source.to_string(), *partition), *next);
            assert!(before.is_none_or(|before| before < *next), "positions move forward");
        }
        self.arrivals.push(arrival);
    }

    /// The numbers that came, in order, each as often as it came.
    pub(super) fn sorted(&self) -> Vec<i64> {
        let mut numbers = self.numbers.clone();
        numbers.sort_unstable();
        numbers
    }
}

/// Event number `n` in the engine's own form.
pub(super) fn event(n: i64) -> String {
    format!(
        r#"{{"ts_us":{},"kind":"impression","tenant":"acme","platform":"p","account":"a","campaign":"c","ad_group":"g","creative":"x"}}"#,
        BASE_US + n
    )
}

pub(super) fn time_us(n: i64) -> i64 {
    BASE_US + n
}

pub(super) fn producer(brokers: &str) -> BaseProducer {
    producer_with(brokers, "none")
}

/// A producer that compresses.
pub(super) fn producer_with(brokers: &str, codec: &str) -> BaseProducer {
    ClientConfig::new()
        .set("compression.codec", codec)
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "60000")
        .create()
        .unwrap()
}

/// Sends payloads to one partition and waits until they are there.
pub(super) fn send(producer: &BaseProducer, topic: &str, partition: i32, payloads: &[Vec<u8>]) {
    send_with(producer, topic, partition, payloads, None);
}

pub(super) fn send_with(
    producer: &BaseProducer,
    topic: &str,
    partition: i32,
    payloads: &[Vec<u8>],
    headers: Option<OwnedHeaders>,
) {
    for payload in payloads {
        let mut record: BaseRecord<'_, str, [u8]> =
            BaseRecord::to(topic).partition(partition).payload(payload);
        if let Some(headers) = headers.clone() {
            record = record.headers(headers);
        }
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(PATIENCE).unwrap();
}

/// Sends events, the numbers dealt out to the partitions in turn.
pub(super) fn send_events(
    producer: &BaseProducer,
    partitions: i32,
    numbers: impl IntoIterator<Item = i64>,
) {
    send_events_to(producer, TOPIC, partitions, numbers);
}

pub(super) fn send_events_to(
    producer: &BaseProducer,
    topic: &str,
    partitions: i32,
    numbers: impl IntoIterator<Item = i64>,
) {
    for n in numbers {
        let partition = i32::try_from(n % i64::from(partitions)).unwrap();
        let text = event(n);
        let record: BaseRecord<'_, str, str> =
            BaseRecord::to(topic).partition(partition).payload(&text);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(PATIENCE).unwrap();
}

/// Waits until the source says so.
pub(super) fn until(source: &KafkaSource, what: &str, holds: impl Fn(&KafkaStatus) -> bool) {
    for _ in 0..PATIENCE.as_millis() / LOOK.as_millis() {
        if holds(&source.status()) {
            return;
        }
        std::thread::sleep(LOOK);
    }
    panic!("{what}: {:?}", source.status());
}
