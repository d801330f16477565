//! What can go wrong between us and the brokers.

use rdkafka::error::KafkaError;

use super::Connection;

/// An error of a Kafka sink.
#[derive(Debug, thiserror::Error)]
pub enum KafkaSinkError {
    /// librdkafka does not take the configuration.
    #[error("Kafka client for {brokers}: {message}; check the keys of [kafka]")]
    Client {
        /// The brokers.
        brokers: String,
        /// librdkafka's words.
        message: String,
    },
    /// What was sent could not be confirmed in time.
    #[error(
        "not everything was confirmed by the brokers: {0}; what is missing is sent again after a start"
    )]
    Flush(String),
    /// The transactional producer could not be set up.
    #[error(
        "transactions of `{id}`: {message}; check that the brokers answer and that no other process uses kafka.transactional_id"
    )]
    Transactions {
        /// The transactional id.
        id: String,
        /// librdkafka's words.
        message: String,
    },
    /// The topic that tells the last committed tick cannot be read.
    #[error(
        "the last tick in topic {topic} cannot be read: {message}; check that the topic exists and may be read"
    )]
    Ticks {
        /// The topic.
        topic: String,
        /// librdkafka's words.
        message: String,
    },
    /// A thread could not be started.
    #[error("the thread of the Kafka outputs could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

impl KafkaSinkError {
    /// librdkafka does not take a client of `connection`. The text never holds the value of a property.
    pub fn client(connection: &Connection, error: &KafkaError) -> KafkaSinkError {
        let message = match error {
            // The error's own text would show the value, which may be a secret.
            KafkaError::ClientConfig(_, what, key, _) => format!("property {key}: {what}"),
            other => other.to_string(),
        };
        KafkaSinkError::Client { brokers: connection.brokers.clone(), message }
    }
}
