//! Actions as messages of a Kafka topic, for whoever carries them out.
//!
//! # The message
//! Topic `omnify.actions` (configurable), key = owner, so that one owner's actions stay in order
//! in one partition; headers `schema` (`omnify.action/1`), `action_id` and `kind`; value = JSON as
//! `actions.schema.json` beside this file says:
//! ```json
//! {"schema":1,"action_id":"32 hex","decision_id":"32 hex","tick":0,"expires":0,
//!  "owner":"tenant/platform/account/campaign","kind":"set_bid","setting":"bid","bid_micros":1,
//!  "before":{"setting":"bid","bid_micros":2},"reasons":["pacing"]}
//! ```
//!
//! # Contract with the consumer
//! - An `action_id` may come more than once (after a lost acknowledgement or a restart); it is to
//!   be carried out once. Copies are equal byte for byte.
//! - A message read after its `expires` tick (ms since the Unix epoch) is not to be carried out.
//! - `Applied` in the engine means *published*: all in-sync replicas have it. What became of it is
//!   seen in the metrics.
//!
//! # Bounds
//! At most `queue_max` messages wait in the producer; beyond it the action is `Deferred` and
//! tried again. A delivery not confirmed within `delivery_timeout` is `Unknown` and sent again,
//! which the producer's idempotence and the `action_id` make harmless.

use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, ready};
use omnify_decision::action::{Id, Setting};
use omnify_decision::control::Actual;
use omnify_operators::model::{EntityKey, Tick};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use serde::Serialize;

use super::{ActionSink, AmountRange, Capabilities, ErrorClass, ExecError, ExecOutcome, Intent};
use crate::kafka::{Connection, KafkaSinkError};
use crate::telemetry::events::{KafkaDelivered, KafkaFailed};

/// The topic's usual name.
pub const TOPIC: &str = "omnify.actions";
/// Header `schema`.
pub const SCHEMA: &str = "omnify.action/1";

/// How to reach the brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaOptions {
    /// The brokers and how they are reached.
    pub connection: Connection,
    /// The topic.
    pub topic: String,
    /// Longest wait for the confirmation of one message.
    pub delivery_timeout: Duration,
    /// Messages that may wait in the producer.
    pub queue_max: u32,
}

impl KafkaOptions {
    /// The usual topic and limits at these brokers.
    pub fn at(connection: impl Into<Connection>) -> KafkaOptions {
        KafkaOptions {
            connection: connection.into(),
            topic: TOPIC.to_owned(),
            delivery_timeout: Duration::from_secs(10),
            queue_max: 65_536,
        }
    }
}

/// See the module.
pub struct KafkaActions {
    producer: FutureProducer,
    options: KafkaOptions,
}

/// The value of a message.
#[derive(Serialize)]
struct Message<'a> {
    schema: u32,
    action_id: Id,
    decision_id: Id,
    tick: Tick,
    expires: Tick,
    owner: &'a EntityKey,
    kind: &'static str,
    #[serde(flatten)]
    desired: &'a Setting,
    before: Option<&'a Setting>,
    reasons: &'a [std::borrow::Cow<'static, str>],
}

impl<'a> Message<'a> {
    fn of(intent: &'a Intent) -> Message<'a> {
        Message {
            schema: 1,
            action_id: intent.id,
            decision_id: intent.decision,
            tick: intent.tick,
            expires: intent.expires,
            owner: &intent.owner,
            kind: intent.desired.kind().name(),
            desired: &intent.desired,
            before: intent.before.as_ref(),
            reasons: &intent.reasons,
        }
    }
}

impl KafkaActions {
    /// A producer for the brokers that `options` name. Connects in the background; a broker that
    /// is not there yet is no error here.
    pub fn new(options: KafkaOptions) -> Result<KafkaActions, ExecError> {
        let timeout_ms = options.delivery_timeout.as_millis().to_string();
        let defaults = [
            ("enable.idempotence", "true".to_owned()),
            ("acks", "all".to_owned()),
            ("linger.ms", "1".to_owned()),
            ("compression.type", "zstd".to_owned()),
            ("message.timeout.ms", timeout_ms),
            ("queue.buffering.max.messages", options.queue_max.to_string()),
        ];
        let config = options.connection.client("omnify", defaults);
        let producer = config.create().map_err(|error| {
            let error = KafkaSinkError::client(&options.connection, &error);
            ExecError::new(ErrorClass::Validation, error)
        })?;
        Ok(KafkaActions { producer, options })
    }

    /// Waits until every message handed to the producer is confirmed or failed.
    pub fn flush(&self, timeout: Duration) -> Result<(), ExecError> {
        self.producer.flush(timeout).map_err(|error| classify(&self.options, &error))
    }

    async fn publish(&self, intent: &Intent) -> ExecOutcome {
        let value = match serde_json::to_vec(&Message::of(intent)) {
            Ok(value) => value,
            Err(error) => {
                return ExecOutcome::Rejected(ExecError::new(ErrorClass::Validation, error));
            }
        };
        let id = intent.id.to_string();
        let header = |key, value| Header { key, value: Some(value) };
        let record = FutureRecord::to(&self.options.topic)
            .key(intent.owner.as_str())
            .payload(&value)
            .headers(
                OwnedHeaders::new_with_capacity(3)
                    .insert(header("schema", SCHEMA))
                    .insert(header("action_id", id.as_str()))
                    .insert(header("kind", intent.desired.kind().name())),
            );
        match self.producer.send(record, Duration::ZERO).await {
            Ok(_) => {
                KafkaDelivered { count: 1 }.emit();
                ExecOutcome::Applied { effective: intent.desired.clone() }
            }
            Err((error, _)) => {
                let error = classify(&self.options, &error);
                KafkaFailed { class: error.class.name(), error: &error.message }.emit();
                ExecOutcome::from_error(error)
            }
        }
    }
}

/// What a producer's failure means for the message. Only failures that librdkafka raises before
/// the message can reach a broker are `Transient`; the rest may have been written.
fn classify(options: &KafkaOptions, error: &KafkaError) -> ExecError {
    use RDKafkaErrorCode as Code;
    let class = match error.rdkafka_error_code() {
        Some(Code::QueueFull) => ErrorClass::Transient,
        Some(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => {
            ErrorClass::Permission
        }
        Some(Code::Authentication | Code::SaslAuthenticationFailed) => ErrorClass::Auth,
        Some(Code::MessageSizeTooLarge) => ErrorClass::TooMuchData,
        Some(
            Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::InvalidRecord
            | Code::PolicyViolation,
        ) => ErrorClass::Validation,
        Some(Code::UnsupportedVersion) => ErrorClass::VersionSunset,
        _ => ErrorClass::UnknownOutcome,
    };
    ExecError::new(
        class,
        format!("topic {} at {}: {error}", options.topic, options.connection.brokers),
    )
}

impl ActionSink for KafkaActions {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            kinds: Capabilities::ALL_KINDS,
            bid: AmountRange::ANY,
            budget: AmountRange::ANY,
            read_back: false,
            dedupes: true, // the consumer's part of the contract
            // The producer's own time-out ends first and says more.
            call_timeout: self.options.delivery_timeout + Duration::from_secs(5),
        }
    }

    fn execute<'a>(&'a self, intent: &'a Intent) -> BoxFuture<'a, ExecOutcome> {
        self.publish(intent).boxed()
    }

    fn read_back<'a>(&'a self, entity: &'a EntityKey) -> BoxFuture<'a, Result<Actual, ExecError>> {
        let message = format!("a topic does not tell what is set for {entity}");
        ready(Err(ExecError::new(ErrorClass::Validation, message))).boxed()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The schema is read as data, so that the document consumers get cannot drift from the code.
    #[test]
    fn messages_are_as_the_schema_says() {
        let schema: Value = serde_json::from_str(include_str!("actions.schema.json")).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        let settings = [
            Setting::Bid { bid_micros: 1 },
            Setting::Budget { budget_micros: 1 },
            Setting::Status { status: omnify_decision::action::Status::Paused },
            Setting::Rotate {
                from: "t/p/a/c/g/x".parse().unwrap(),
                to: "t/p/a/c/g/y".parse().unwrap(),
            },
            Setting::Alert { code: "wearing_out".into() },
        ];
        let mut used = std::collections::BTreeSet::new();
        for desired in settings {
            let intent = Intent {
                id: Id([7; 16]),
                decision: Id([8; 16]),
                tick: 1,
                expires: 2,
                owner: "t/p/a/c".parse().unwrap(),
                before: Some(desired.clone()),
                desired,
                reasons: vec!["pacing".into()],
            };
            let message = serde_json::to_value(Message::of(&intent)).unwrap();
            let message = message.as_object().unwrap();
            for required in schema["required"].as_array().unwrap() {
                assert!(message.contains_key(required.as_str().unwrap()), "{required} is missing");
            }
            for (name, value) in message {
                let property = properties.get(name);
                let property = property.unwrap_or_else(|| panic!("`{name}` is not in the schema"));
                if let Some(allowed) = property.get("enum") {
                    assert!(allowed.as_array().unwrap().contains(value), "{name}: {value}");
                }
                used.insert(name.clone());
            }
        }
        assert_eq!(used.len(), properties.len(), "the schema names what is never sent");
    }
}
