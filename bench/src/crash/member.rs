//! A second member of the engine's consumer group. It takes partitions away and hands them back.
//!
//! There is one sequencer for each history, so a second engine would have a history of its own. What a
//! rebalance does to the engine needs no second one: partitions go, are away for a while, and come
//! back, and where their reading goes on is in the engine's journal. This member reads nothing that
//! counts and commits nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::anyhow;
use rdkafka::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};

use super::broker::Broker;

const POLL: Duration = Duration::from_millis(20);

/// What the group is told and tells.
#[derive(Clone, Default)]
struct Group {
    wants_in: Arc<AtomicBool>,
    rebalances: Arc<AtomicU64>,
}

impl ClientContext for Group {}

impl ConsumerContext for Group {
    fn post_rebalance(&self, _: &BaseConsumer<Self>, _: &Rebalance<'_>) {
        self.rebalances.fetch_add(1, Ordering::Relaxed);
    }
}

/// The member's thread.
pub(super) struct Member {
    group: Group,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Member {
    pub(super) fn start(broker: &Broker) -> anyhow::Result<Member> {
        let group = Group::default();
        let consumer: BaseConsumer<Group> = broker
            .client()
            .set("group.id", &broker.topics().group)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", "6000")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "latest")
            .create_with_context(group.clone())?;
        let (events, inside) = (broker.topics().events.clone(), group.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut is_in = false;
            while !stopped.load(Ordering::Acquire) {
                let wants_in = inside.wants_in.load(Ordering::Acquire);
                if wants_in != is_in {
                    match wants_in {
                        true => consumer.subscribe(&[&events])?,
                        false => consumer.unsubscribe(),
                    }
                    is_in = wants_in;
                }
                // Nothing of it counts, errors of a broker that is away neither.
                let _ = consumer.poll(POLL);
            }
            Ok(())
        });
        Ok(Member { group, stop, thread })
    }

    /// Joins the group, or leaves it. Partitions then move, while whoever asked goes on.
    pub(super) fn toggle(&self) {
        self.group.wants_in.fetch_not(Ordering::AcqRel);
    }

    /// Leaves.
    pub(super) fn leave(&self) {
        self.group.wants_in.store(false, Ordering::Release);
    }

    /// Leaves for good; how often partitions came to it or went.
    pub(super) fn stop(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().map_err(|_| anyhow!("the second member panicked"))??;
        Ok(self.group.rebalances.load(Ordering::Relaxed))
    }
}
