//! The topic of events: a producer of numbered events, each there once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::anyhow;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use super::broker::Broker;
use super::sender::{Lane, event};

/// Events at once, and the time between.
const BURST: u64 = 10;
const PAUSE: Duration = Duration::from_millis(10);
/// Time for the last of them to be confirmed.
const FLUSH: Duration = Duration::from_secs(60);

/// Counts what the broker has not taken.
#[derive(Clone, Default)]
struct Deliveries {
    failed: Arc<AtomicU64>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The producer's thread.
pub(super) struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<u64>>,
}

impl Stream {
    pub(super) fn start(broker: &Broker) -> anyhow::Result<Stream> {
        let deliveries = Deliveries::default();
        let failed = deliveries.failed.clone();
        let producer: BaseProducer<Deliveries> = broker
            .client()
            .set("enable.idempotence", "true")
            // For as long as the broker is away.
            .set("message.timeout.ms", "0")
            .set("linger.ms", "2")
            .create_with_context(deliveries)?;
        let topic = broker.topics().events.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    // Without an id of its own: read twice, it would count twice.
                    let value = event(Lane::Kafka, number, false);
                    send(&producer, &topic, &number.to_le_bytes(), value.as_bytes())?;
                    number += 1;
                }
                producer.poll(PAUSE);
            }
            producer.flush(FLUSH)?;
            match failed.load(Ordering::Relaxed) {
                0 => Ok(number),
                failed => Err(anyhow!("the broker has not taken {failed} events")),
            }
        });
        Ok(Stream { stop, thread })
    }

    /// Ends it when the broker has everything; how many events there are.
    pub(super) fn stop(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the producer panicked"))?
    }
}

fn send(
    producer: &BaseProducer<Deliveries>,
    topic: &str,
    key: &[u8],
    value: &[u8],
) -> anyhow::Result<()> {
    let mut record = BaseRecord::to(topic).key(key).payload(value);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            // The broker is away for longer than the queue is long.
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                producer.poll(PAUSE);
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
}
