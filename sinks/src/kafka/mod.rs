//! What leaves for Kafka besides actions, and the connection that all clients of Kafka share.
//!
//! | file | duty |
//! |---|---|
//! | `connection` | addresses, TLS and SASL as properties of librdkafka |
//! | `dead_letters` | the topic that refused messages are copied to |
//! | `select` | what of a tick goes out: features and alerts |
//! | `message` | their JSON |
//! | `outputs` | the bounded queue and its thread |
//! | `sender` | the producer: idempotent, or exactly once by transactions |
//! | `group`, `refusal` | the messages of one go, and what is done with those that the brokers refuse |

mod connection;
mod dead_letters;
mod error;
mod group;
mod message;
mod outputs;
mod refusal;
mod select;
mod sender;

pub use connection::{Connection, Mechanism, Sasl, Security, Tls};
pub use dead_letters::{DeadLetterTopic, Refused};
pub use error::KafkaSinkError;
pub use message::Alert;
pub use outputs::{KafkaOutputs, OutputOptions, OutputsStatus};
pub use select::{Selector, SelectorState, TickOutputs};
