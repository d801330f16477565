//! Kafka as a source: topics of events, report rows, goals and approvals.
//!
//! ```text
//! brokers ─► consumer (group, cooperative) ─► desk ─► outlet ─► Intake ─► tick, journal
//!                │ callbacks: assign, revoke    │ decode (JSON, Avro, Protobuf), dead letters
//!                └─ claims, positions ◄─────────┘
//! ```
//! Of several processes each runs a source in the same group; the outlet of a follower is the
//! connection to the leader (see [`crate::cluster`]), who holds positions and claims.
//!
//! | file | duty |
//! |---|---|
//! | `options` | from the configuration to connection, topics, schemas |
//! | `source` | the consumer's thread: poll, pause, commit |
//! | `member` | the group's callbacks |
//! | `desk` | takes messages in, hands batches over with their positions |
//! | `outlet` | where they are handed over: the intake, or another process's |
//! | `payload` | one message to rows or controls |
//! | `registry` | the schema registry |
//! | `positions` | how far each partition has been taken in, and who reads it |
//! | `status` | what the source says about itself |
//! | `outputs` | the other direction: features and alerts of complete ticks |
//!
//! # Contract
//! - A message enters exactly once. Its position travels with its rows in one [`Arrival`], is
//!   journalled with them, and decides where reading goes on after a start or when a partition comes
//!   back; the offsets that the group knows are told for monitors and never read. A message below its
//!   partition's position is passed over and counted.
//! - When a partition goes to another member, what was read of it has been handed over before; what
//!   comes later all the same is refused, as the next reader claimed the partition (see `positions`).
//! - When the engine is behind, the partitions are paused; the member goes on polling and stays in
//!   the group. Memory is bounded by `kafka.fetch_bytes`, one batch, and one message for each
//!   partition that waits for the registry.
//! - What cannot be read is a dead letter with its original bytes, named
//!   `kafka:TOPIC/PARTITION@OFFSET`, and goes to `kafka.dead_letter_topic` as well. A schema that
//!   cannot be fetched is no such thing: its partition waits.
//! - A member that the group refuses for good is replaced by a new one, after a wait that grows to a
//!   minute: brokers that fail while it joins can refuse it its own name.
//! - A message of any other size or content never panics and never stops the source.
//!
//! [`Arrival`]: crate::live::Arrival

mod desk;
mod member;
mod options;
mod outlet;
mod outputs;
mod payload;
mod positions;
mod registry;
mod source;
mod status;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use omnify_config::Checked;
use omnify_sinks::kafka::DeadLetterTopic;
use omnify_sinks::serve::Problem;
use tokio::runtime::Handle;

use crate::clock::Clock;
use crate::decode::Door;
use crate::live::Intake;
use desk::Desk;
use payload::TopicReader;

pub(crate) use outlet::{Outlet, Rows, enter};
pub(crate) use status::PROBLEMS;

pub use options::{Format, SourceOptions, TopicKind, TopicOptions, connection};
pub use outputs::{Outputs, output_problems};
pub use positions::{Claim, Entered, Positions};
pub use registry::{RegistryOptions, SchemaRegistry};
pub use status::KafkaStatus;

/// Starts reading what the configuration names; `None` when it names no topic.
pub fn start(
    config: &Checked,
    door: &Arc<Door>,
    intake: &Intake,
    positions: &Positions,
    clock: &Clock,
    runtime: &Handle,
) -> anyhow::Result<Option<KafkaSource>> {
    let Some(options) = SourceOptions::of(config)? else { return Ok(None) };
    let here = outlet::Here { intake: intake.clone(), positions: positions.clone() };
    KafkaSource::start(&options, door, Arc::new(here), clock.clone(), runtime).map(Some)
}

/// A running source. It ends when it is stopped, dropped, or when the intake closes.
pub struct KafkaSource {
    stop: Arc<AtomicBool>,
    shown: status::Shown,
    thread: Option<JoinHandle<()>>,
}

impl KafkaSource {
    /// Starts reading. Brokers that are not there yet are waited for; what the configuration gets
    /// wrong is refused here. The runtime asks the schema registry.
    pub(crate) fn start(
        options: &SourceOptions,
        door: &Arc<Door>,
        outlet: Arc<dyn Outlet>,
        clock: Clock,
        runtime: &Handle,
    ) -> anyhow::Result<KafkaSource> {
        let registry = match &options.registry {
            Some(registry) => Some(SchemaRegistry::new(registry.clone(), runtime.clone())?),
            None => None,
        };
        let reader = |topic: &TopicOptions| {
            let registry = registry.clone().filter(|_| topic.framed);
            (topic.name.clone(), TopicReader::new(topic.clone(), door.clone(), registry))
        };
        let readers: HashMap<_, _> = options.topics.iter().map(reader).collect();
        let dead_letters = match &options.dead_letter_topic {
            Some(topic) => Some(DeadLetterTopic::new(&options.connection, topic, options.timeout)?),
            None => None,
        };
        let shown = status::Shown::default();
        let desk = Desk::new(desk::Parts {
            readers,
            outlet,
            shown: shown.clone(),
            clock,
            future_skew_us: i64::try_from(options.future_skew.as_micros()).unwrap_or(i64::MAX),
            batch_messages: options.batch_messages,
            dead_letters,
        });
        let consumer = source::consumer(options, Arc::new(Mutex::new(desk))).map_err(|error| {
            omnify_sinks::kafka::KafkaSinkError::client(&options.connection, &error)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let run = source::Loop {
            options: options.clone(),
            consumer,
            shown: shown.clone(),
            stop: stop.clone(),
            told_error: Cell::default(),
            asked: RefCell::default(),
        };
        let thread = std::thread::Builder::new().name("kafka".into()).spawn(move || run.run())?;
        Ok(KafkaSource { stop, shown, thread: Some(thread) })
    }

    /// What the source says about itself now.
    pub fn status(&self) -> KafkaStatus {
        self.shown.lock().clone()
    }

    /// Tells the source's problems at any time, for `/v1/status`.
    pub fn problems(&self) -> Arc<dyn Fn() -> Vec<Problem> + Send + Sync> {
        let shown = self.shown.clone();
        Arc::new(move || shown.lock().problems())
    }

    /// Hands over what was read and leaves the group.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the kafka thread panicked");
        }
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.end();
    }
}
