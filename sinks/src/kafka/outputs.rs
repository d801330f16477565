//! Features and alerts on their way to the brokers.
//!
//! # Contract
//! - What of a tick goes out does so once its tick is durable ([`KafkaOutputs::durable`]), in the
//!   order of ticks.
//! - Without a transactional id the producer is idempotent: nothing is lost or doubled while the
//!   process lives, and after a crash the last ticks may come again (a feature then only replaces
//!   itself, an alert has the same `alert_id`).
//! - With one, each group of ticks is one transaction together with a record that says which tick it
//!   reaches. After a start that record is read back and ticks up to it are passed over: for a reader
//!   with `isolation.level=read_committed` every message comes exactly once.
//!
//! # At the bound
//! When more rows wait than `queue_max`, only the newest row of each entity is kept; alerts are never
//! dropped: when as many of them wait, the caller waits. What the brokers will never take is set aside
//! (see `sender`). An id that another process has taken over ends the outputs for good; they say so
//! ([`OutputsStatus::failed`]) and the engine goes on without them.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use omnify_operators::model::{Tick, WindowSpec};

use super::error::KafkaSinkError;
use super::select::TickOutputs;
use super::sender::Sender;
use super::{Connection, message};

/// How often a waiting caller looks whether the thread still lives.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How the outputs work.
#[derive(Clone, Debug)]
pub struct OutputOptions {
    /// The brokers.
    pub connection: Connection,
    /// Where features go, if anywhere.
    pub features_topic: Option<String>,
    /// Where alerts go, if anywhere.
    pub alerts_topic: Option<String>,
    /// The id of the transactions, if there are any.
    pub transactional_id: Option<String>,
    /// Where the last committed tick is written.
    pub ticks_topic: String,
    /// Where copies of refused messages go, if anywhere.
    pub dead_letter_topic: Option<String>,
    /// Rows, and alerts, that may wait.
    pub queue_max: usize,
    /// Longest wait for an answer of the brokers before it is tried again.
    pub timeout: Duration,
    /// Windows, in the order of the configuration.
    pub windows: Vec<WindowSpec>,
}

impl OutputOptions {
    /// The usual limits, and no topic.
    pub fn at(connection: impl Into<Connection>) -> OutputOptions {
        OutputOptions {
            connection: connection.into(),
            features_topic: None,
            alerts_topic: None,
            transactional_id: None,
            ticks_topic: "omnify.ticks".to_owned(),
            dead_letter_topic: None,
            queue_max: 65_536,
            timeout: Duration::from_secs(10),
            windows: Vec::new(),
        }
    }
}

/// What the outputs say about themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputsStatus {
    /// The last tick of which everything is with the brokers.
    pub committed: Option<Tick>,
    /// Messages written.
    pub messages: u64,
    /// Ticks passed over because an earlier process had committed them.
    pub passed_over: u64,
    /// Rows that a newer one of the same entity replaced while they waited.
    pub merged: u64,
    /// Messages that the brokers will never take, set aside.
    pub refused: u64,
    /// Why some of the last group of ticks were.
    pub last_refused: Option<String>,
    /// Why what is tried now has not succeeded yet.
    pub trying: Option<String>,
    /// Ticks that wait.
    pub waiting: usize,
    /// Why nothing is written any more.
    pub failed: Option<String>,
}

/// See the module. Dropping it gives up on what is not yet written; [`KafkaOutputs::finish`] waits.
pub struct KafkaOutputs {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the caller and the thread share.
pub(super) struct Shared {
    queue: Mutex<Queue>,
    news: Condvar,
    queue_max: usize,
}

/// The thread's next step.
pub(super) enum Next {
    /// Ticks to write, all durable, in order.
    Ticks(Vec<TickOutputs>),
    /// Nothing within the time.
    Nothing,
    /// Nothing more will come.
    End,
}

#[derive(Default)]
struct Queue {
    ticks: VecDeque<TickOutputs>,
    rows: usize,
    alerts: usize,
    durable: Tick,
    /// No more ticks come; what is durable is still written.
    closing: bool,
    /// The thread is to end now.
    stop: bool,
    status: OutputsStatus,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next ticks, at most `rows_max` rows and alerts of them beyond the first.
    pub(super) fn next(&self, wait: Duration, rows_max: usize) -> Next {
        let mut queue = self.lock();
        let ready = |queue: &Queue| {
            queue.ticks.front().is_some_and(|outputs| outputs.tick <= queue.durable)
        };
        if !ready(&queue) && !queue.closing && !queue.stop {
            let waited = self.news.wait_timeout(queue, wait);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if queue.stop || (queue.closing && !ready(&queue)) {
            return Next::End;
        }
        let mut taken: Vec<TickOutputs> = Vec::new();
        let mut size = 0;
        while ready(&queue)
            && (taken.is_empty() || size < rows_max)
            && let Some(outputs) = queue.ticks.pop_front()
        {
            queue.rows -= outputs.features.len();
            queue.alerts -= outputs.alerts.len();
            size += outputs.features.len() + outputs.alerts.len();
            taken.push(outputs);
        }
        self.news.notify_all();
        if taken.is_empty() { Next::Nothing } else { Next::Ticks(taken) }
    }

    /// Whether the thread is to give up what it is doing.
    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stop
    }

    /// Changes what is shown.
    pub(super) fn show(&self, change: impl FnOnce(&mut OutputsStatus)) {
        change(&mut self.lock().status);
        self.news.notify_all();
    }
}

impl KafkaOutputs {
    /// Starts the thread that writes. Brokers that are not there yet are waited for.
    pub fn start(options: OutputOptions) -> Result<KafkaOutputs, KafkaSinkError> {
        let queue_max = options.queue_max;
        let shared = Arc::new(Shared { queue: Mutex::default(), news: Condvar::new(), queue_max });
        let windows = message::window_names(&options.windows);
        let sender = Sender::new(options, windows, shared.clone())?;
        let thread =
            std::thread::Builder::new().name("kafka-out".into()).spawn(move || sender.run())?;
        Ok(KafkaOutputs { shared, thread: Some(thread) })
    }

    /// Takes what of a tick goes out; waits while too many alerts wait.
    pub fn submit(&self, outputs: TickOutputs) {
        let queue_max = self.shared.queue_max;
        if outputs.features.is_empty() && outputs.alerts.is_empty() {
            return;
        }
        let mut queue = self.shared.lock();
        while queue.alerts > 0 && queue.alerts + outputs.alerts.len() > queue_max {
            if queue.stop || queue.status.failed.is_some() {
                return;
            }
            let waited = self.shared.news.wait_timeout(queue, LOOK_AGAIN);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if queue.stop || queue.status.failed.is_some() {
            return;
        }
        queue.rows += outputs.features.len();
        queue.alerts += outputs.alerts.len();
        queue.ticks.push_back(outputs);
        if queue.rows > queue_max {
            queue.merge();
        }
        self.shared.news.notify_all();
    }

    /// Ticks up to `tick` are durable and may go out.
    pub fn durable(&self, tick: Tick) {
        let mut queue = self.shared.lock();
        queue.durable = queue.durable.max(tick);
        self.shared.news.notify_all();
    }

    /// What the outputs say about themselves now.
    pub fn status(&self) -> OutputsStatus {
        let queue = self.shared.lock();
        OutputsStatus { waiting: queue.ticks.len(), ..queue.status.clone() }
    }

    /// Waits until everything durable is written, at most for `patience`; false when it was not.
    pub fn finish(self, patience: Duration) -> bool {
        self.shared.lock().closing = true;
        self.shared.news.notify_all();
        let mut left = patience;
        while let Some(thread) = &self.thread
            && !thread.is_finished()
            && !left.is_zero()
        {
            std::thread::sleep(LOOK_AGAIN.min(left));
            left = left.saturating_sub(LOOK_AGAIN);
        }
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for KafkaOutputs {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.news.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the Kafka outputs panicked");
        }
    }
}

impl Queue {
    /// Keeps the newest row of each entity; ticks keep their alerts.
    fn merge(&mut self) {
        let mut seen = HashSet::new();
        let before = self.rows;
        self.rows = 0;
        for outputs in self.ticks.iter_mut().rev() {
            outputs.features.retain(|(info, _)| seen.insert(info.id));
            self.rows += outputs.features.len();
        }
        self.ticks.retain(|outputs| !outputs.features.is_empty() || !outputs.alerts.is_empty());
        self.status.merged += (before - self.rows) as u64;
    }
}
