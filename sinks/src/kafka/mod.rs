//! What leaves for Kafka besides actions: the connection that all clients share, and the
//! dead-letter topic.

mod connection;
mod dead_letters;
mod error;

pub use connection::{Connection, Mechanism, Sasl, Security, Tls};
pub use dead_letters::{DeadLetterTopic, Refused};
pub use error::KafkaSinkError;
