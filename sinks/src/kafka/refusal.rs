//! What the brokers will never take, and why.

use std::fmt;

use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::{Header, OwnedHeaders};

use super::group::Out;

/// Of a refused message's value, a copy holds this much at most: it may have been too large.
pub(super) const COPY_BYTES_MAX: usize = 64 << 10;

/// Whom a refusal concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// The message itself, or another one of its batch.
    Message,
    /// Every message for its topic.
    Topic,
}

/// Why a message was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    topic: String,
    key: String,
    bytes: usize,
    code: Code,
}

impl Refusal {
    pub(super) fn of(out: &Out, code: Code) -> Refusal {
        let (topic, key, bytes) = (out.topic.clone(), out.key.clone(), out.value.len());
        Refusal { topic, key, bytes, code }
    }

    /// Headers of the copy: `reason`, `detail`, `origin_topic`, and `bytes`, its whole length.
    pub(super) fn headers(&self, out: &Out) -> OwnedHeaders {
        let (detail, bytes) = (self.code.to_string(), self.bytes.to_string());
        let header = |key, value| Header { key, value: Some(value) };
        OwnedHeaders::new_with_capacity(5)
            .insert(header("schema", out.schema))
            .insert(header("reason", reason(self.code)))
            .insert(header("detail", detail.as_str()))
            .insert(header("origin_topic", self.topic.as_str()))
            .insert(header("bytes", bytes.as_str()))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal { topic, key, bytes, code } = self;
        write!(f, "topic {topic} does not take the {bytes} bytes of `{key}`: {code}")
    }
}

/// Whom the code concerns; `None` for what may be otherwise at the next try.
pub(super) fn scope(code: Code) -> Option<Scope> {
    match code {
        Code::MessageSizeTooLarge
        | Code::InvalidMessageSize
        | Code::InvalidRecord
        | Code::InvalidTimestamp => Some(Scope::Message),
        Code::TopicAuthorizationFailed
        | Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::InvalidTopic
        | Code::PolicyViolation
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType => Some(Scope::Topic),
        _ => None,
    }
}

/// Whether it only says that the transaction around it was given up.
pub(super) fn is_purged(code: Code) -> bool {
    matches!(code, Code::PurgeQueue | Code::PurgeInflight)
}

/// The reason code of dead letters.
fn reason(code: Code) -> &'static str {
    match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => "too_large",
        Code::InvalidRecord | Code::InvalidTimestamp => "invalid_record",
        Code::TopicAuthorizationFailed => "not_authorised",
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::InvalidTopic => "unknown_topic",
        _ => "topic_policy",
    }
}
