//! The source on librdkafka's in-process cluster, on a registry in the test, and, where
//! `OMNIFY_KAFKA_BROKERS` names one, on a real broker.

mod group;
mod payload;
mod real;
mod registry;
mod rig;
