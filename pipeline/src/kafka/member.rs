//! The callbacks of a member of the consumer group.
//!
//! They run inside `poll`, on the consumer's thread: what was read of a partition that goes is handed
//! over before the group may give it to somebody else, and one that comes starts where the engine,
//! which may be in another process, says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use omnify_sinks::telemetry::events::KafkaSourceFailed;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::desk::Desk;

/// See the module.
pub(super) struct Member {
    desk: Arc<Mutex<Desk>>,
    /// Whether everything is paused: what comes is then paused as well.
    pub(super) paused: AtomicBool,
}

impl Member {
    pub(super) fn new(desk: Arc<Mutex<Desk>>) -> Member {
        Member { desk, paused: AtomicBool::new(false) }
    }

    /// The desk, for the member after this one.
    pub(super) fn shared(&self) -> Arc<Mutex<Desk>> {
        self.desk.clone()
    }

    pub(super) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assign(
        &self,
        consumer: &BaseConsumer<Member>,
        list: &TopicPartitionList,
        cooperative: bool,
    ) -> Result<(), KafkaError> {
        let mut placed = TopicPartitionList::with_capacity(list.count());
        {
            let mut desk = self.desk();
            for element in list.elements() {
                let (topic, partition) = (element.topic(), element.partition());
                let offset = match desk.assign(topic, partition) {
                    Some(Some(next)) => Offset::Offset(next),
                    Some(None) => Offset::Beginning,
                    // The engine has ended; so does this member.
                    None => continue,
                };
                placed.add_partition_offset(topic, partition, offset)?;
            }
        }
        match cooperative {
            true => consumer.incremental_assign(&placed)?,
            false => consumer.assign(&placed)?,
        }
        // The client remembers what was paused when it went, so running has to be said as well.
        match self.paused.load(Ordering::Acquire) {
            true => consumer.pause(&placed),
            false => consumer.resume(&placed),
        }
    }

    fn revoke(
        &self,
        consumer: &BaseConsumer<Member>,
        list: &TopicPartitionList,
        cooperative: bool,
    ) -> Result<(), KafkaError> {
        let elements = list.elements();
        self.desk().revoke(elements.iter().map(|gone| (gone.topic(), gone.partition())));
        match cooperative {
            true => consumer.incremental_unassign(list),
            false => consumer.unassign(),
        }
    }
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => tracing::debug!(facility, message),
            RDKafkaLogLevel::Notice => tracing::info!(facility, message),
            _ => tracing::warn!(facility, message),
        }
    }

    fn stats(&self, statistics: Statistics) {
        let ends = statistics.topics.into_iter().flat_map(|(topic, stats)| {
            let of = stats.partitions.into_iter();
            of.map(move |(partition, stats)| (topic.clone(), partition, stats.ls_offset))
        });
        self.desk().lag(ends);
    }
}

impl ConsumerContext for Member {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let assigned = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let done = match assigned {
            true => self.assign(consumer, list, cooperative),
            false => self.revoke(consumer, list, cooperative),
        };
        let partitions = list.count();
        tracing::info!(assigned, partitions, "the consumer group moved partitions");
        if let Err(error) = done {
            KafkaSourceFailed { class: "rebalance", error: &error }.emit();
        }
    }
}
