//! What can happen, one struct each. `emit` writes the log line and the metrics together.
//!
//! Events are emitted per batch (a tick, a file, a flush), never per record. Log levels have a
//! meaning: `error` wakes a person, `warn` is for the working day, `debug` is for the curious.
//! Label values come from fixed sets, which is why they are `&'static str`.

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tracing::{debug, error, info, trace, warn};

use super::names::Metric;

/// A batch was read from a source.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchRead {
    /// Rows read.
    pub rows: u64,
    /// Rows left out by the mapping.
    pub ignored: u64,
    /// Rows that became events.
    pub events: u64,
}

impl BatchRead {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::RowsRead.name()).increment(self.rows);
        counter!(Metric::RowsIgnored.name()).increment(self.ignored);
        counter!(Metric::EventsIn.name()).increment(self.events);
        debug!(rows = self.rows, ignored = self.ignored, events = self.events, "batch read");
    }
}

/// Rows of a batch were set aside.
#[derive(Clone, Copy, Debug)]
pub struct DeadLettered {
    /// Reason code.
    pub reason: &'static str,
    /// How many.
    pub count: u64,
}

impl DeadLettered {
    /// Logs and counts.
    pub fn emit(self) {
        if self.count == 0 {
            return;
        }
        counter!(Metric::DeadLetters.name(), "reason" => self.reason).increment(self.count);
        warn!(reason = self.reason, count = self.count, "rows set aside as dead letters");
    }
}

/// Report rows were taken.
#[derive(Clone, Copy, Debug)]
pub struct ReportsTaken {
    /// What they did to what was known: `changed` or `unchanged`.
    pub effect: &'static str,
    /// How many.
    pub count: u64,
}

impl ReportsTaken {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::ReportRows.name(), "effect" => self.effect).increment(self.count);
        debug!(effect = self.effect, count = self.count, "report rows taken");
    }
}

/// A tick was closed.
#[derive(Clone, Copy, Debug, Default)]
pub struct TickClosed {
    /// The tick.
    pub tick: u64,
    /// Ticks closed since the last emission.
    pub ticks: u64,
    /// Events that entered the features since the last emission.
    pub featured: u64,
    /// Events held back now.
    pub held: u64,
    /// Entities with features now.
    pub entities: u64,
    /// How far the tick is behind the clock; `None` where there is no clock (replay).
    pub lag: Option<Duration>,
}

impl TickClosed {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::Ticks.name()).increment(self.ticks);
        counter!(Metric::EventsFeatured.name()).increment(self.featured);
        gauge!(Metric::EventsHeld.name()).set(self.held as f64);
        gauge!(Metric::Entities.name()).set(self.entities as f64);
        if let Some(lag) = self.lag {
            gauge!(Metric::TickLag.name()).set(lag.as_secs_f64());
        }
        debug!(tick = self.tick, featured = self.featured, held = self.held, "tick closed");
    }
}

/// Decisions of a tick with one verdict.
#[derive(Clone, Copy, Debug)]
pub struct Decided {
    /// The verdict.
    pub verdict: &'static str,
    /// How many.
    pub count: u64,
}

impl Decided {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::Decisions.name(), "verdict" => self.verdict).increment(self.count);
        debug!(verdict = self.verdict, count = self.count, "decided");
    }
}

/// Proposals of a tick that one guardrail changed or stopped.
#[derive(Clone, Copy, Debug)]
pub struct GuardrailHit {
    /// The guardrail.
    pub guardrail: &'static str,
    /// How many.
    pub count: u64,
}

impl GuardrailHit {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::GuardrailHits.name(), "guardrail" => self.guardrail).increment(self.count);
        debug!(guardrail = self.guardrail, count = self.count, "guardrail hit");
    }
}

/// Actions of a tick of one kind were handed to the executor.
#[derive(Clone, Copy, Debug)]
pub struct ActionsEmitted {
    /// The kind.
    pub kind: &'static str,
    /// How many.
    pub count: u64,
}

impl ActionsEmitted {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::Actions.name(), "kind" => self.kind).increment(self.count);
        debug!(kind = self.kind, count = self.count, "actions emitted");
    }
}

/// Actions of one kind ended the same way.
#[derive(Clone, Copy, Debug)]
pub struct ActionsEnded {
    /// The kind.
    pub kind: &'static str,
    /// How they ended: `applied`, `no_change`, `rejected`, `expired` or `unknown`.
    pub outcome: &'static str,
    /// How many.
    pub count: u64,
}

impl ActionsEnded {
    /// Logs and counts.
    pub fn emit(self) {
        let (kind, outcome, count) = (self.kind, self.outcome, self.count);
        counter!(Metric::Outcomes.name(), "kind" => kind, "outcome" => outcome).increment(count);
        match outcome {
            "applied" | "no_change" => debug!(kind, outcome, count, "actions ended"),
            _ => warn!(kind, outcome, count, "actions did not take effect"),
        }
    }
}

/// Latencies from the arrival of an event to its action, of one batch of actions.
#[derive(Clone, Copy, Debug)]
pub struct EventToAction<'a> {
    /// One for each action.
    pub latencies: &'a [Duration],
}

impl EventToAction<'_> {
    /// Counts; nothing is logged.
    pub fn emit(self) {
        let histogram = histogram!(Metric::EventToAction.name());
        for latency in self.latencies {
            histogram.record(latency.as_secs_f64());
        }
    }
}

/// A stage made one step.
#[derive(Clone, Copy, Debug)]
pub struct StageStepped {
    /// Which: `decode`, `dataflow`, `frame`, `decide`, `publish`, `history` and the like.
    pub stage: &'static str,
    /// How long it took.
    pub took: Duration,
}

impl StageStepped {
    /// Counts; nothing is logged.
    pub fn emit(self) {
        histogram!(Metric::StageStep.name(), "stage" => self.stage).record(self.took.as_secs_f64());
    }
}

/// How full a queue is.
#[derive(Clone, Copy, Debug)]
pub struct QueueSampled {
    /// Which queue.
    pub queue: &'static str,
    /// Entries in it now.
    pub depth: usize,
}

impl QueueSampled {
    /// Counts; nothing is logged.
    pub fn emit(self) {
        gauge!(Metric::QueueDepth.name(), "queue" => self.queue).set(self.depth as f64);
    }
}

/// A full queue refused or shed entries.
#[derive(Clone, Copy, Debug)]
pub struct QueueFull {
    /// Which queue.
    pub queue: &'static str,
    /// Entries refused.
    pub count: u64,
}

impl QueueFull {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::QueueRefusals.name(), "queue" => self.queue).increment(self.count);
        warn!(queue = self.queue, count = self.count, "a queue is at its bound");
    }
}

/// A history file was completed.
#[derive(Clone, Copy, Debug)]
pub struct HistoryWritten {
    /// Which table.
    pub table: &'static str,
    /// Rows in it.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
}

impl HistoryWritten {
    /// Logs and counts.
    pub fn emit(self) {
        let table = self.table;
        counter!(Metric::HistoryRows.name(), "table" => table).increment(self.rows);
        counter!(Metric::HistoryBytes.name(), "table" => table).increment(self.bytes);
        counter!(Metric::HistoryFiles.name(), "table" => table).increment(1);
        debug!(table, rows = self.rows, bytes = self.bytes, "history file completed");
    }
}

/// A write to history failed.
#[derive(Clone, Copy)]
pub struct HistoryFailed<'a> {
    /// Which table.
    pub table: &'static str,
    /// What went wrong.
    pub error: &'a dyn std::fmt::Display,
}

impl HistoryFailed<'_> {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::HistoryErrors.name(), "table" => self.table).increment(1);
        error!(table = self.table, error = %self.error, "history cannot be written");
    }
}

/// Small files of the history were merged into one.
#[derive(Clone, Copy, Debug)]
pub struct HistoryMerged {
    /// Which table.
    pub table: &'static str,
    /// How many files.
    pub parts: usize,
    /// Rows in the new one.
    pub rows: u64,
}

impl HistoryMerged {
    /// Logs and counts.
    pub fn emit(self) {
        let table = self.table;
        counter!(Metric::HistoryMerges.name(), "table" => table).increment(1);
        info!(table, parts = self.parts, rows = self.rows, "small files of the history merged");
    }
}

/// A group of ticks is on disk.
#[derive(Clone, Copy, Debug)]
pub struct JournalCommitted {
    /// Ticks of the group.
    pub ticks: usize,
    /// Time to write and sync it.
    pub took: Duration,
}

impl JournalCommitted {
    /// Logs and counts.
    pub fn emit(self) {
        histogram!(Metric::JournalCommit.name()).record(self.took.as_secs_f64());
        trace!(ticks = self.ticks, took = ?self.took, "journal committed");
    }
}

/// The journal could not be written.
#[derive(Clone, Copy)]
pub struct JournalFailed<'a> {
    /// What went wrong.
    pub error: &'a dyn std::fmt::Display,
}

impl JournalFailed<'_> {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::JournalErrors.name()).increment(1);
        error!(error = %self.error, "the journal cannot be written; nothing is acknowledged");
    }
}

/// A snapshot was committed.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotTaken {
    /// Its tick.
    pub tick: u64,
    /// Its size.
    pub bytes: u64,
    /// From its tick to its commit.
    pub took: Duration,
}

impl SnapshotTaken {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::Snapshots.name(), "result" => "committed").increment(1);
        gauge!(Metric::SnapshotTick.name()).set(self.tick as f64 / 1e3);
        gauge!(Metric::SnapshotBytes.name()).set(self.bytes as f64);
        debug!(tick = self.tick, bytes = self.bytes, took = ?self.took, "snapshot committed");
    }
}

/// A snapshot was given up; the next one is tried at its time.
#[derive(Clone, Copy)]
pub struct SnapshotFailed<'a> {
    /// Its tick.
    pub tick: u64,
    /// What went wrong.
    pub error: &'a dyn std::fmt::Display,
}

impl SnapshotFailed<'_> {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::Snapshots.name(), "result" => "failed").increment(1);
        error!(tick = self.tick, error = %self.error, "snapshot given up");
    }
}

/// The copy on the object store was brought forward.
#[derive(Clone, Copy, Debug)]
pub struct MirrorCopied {
    /// Bytes of journal and ledger copied.
    pub bytes: u64,
    /// Bytes that wait.
    pub backlog_bytes: u64,
    /// Age of the oldest of them.
    pub lag: Duration,
}

impl MirrorCopied {
    /// Counts.
    pub fn emit(self) {
        counter!(Metric::MirrorBytes.name()).increment(self.bytes);
        gauge!(Metric::MirrorBacklog.name()).set(self.backlog_bytes as f64);
        gauge!(Metric::MirrorLag.name()).set(self.lag.as_secs_f64());
    }
}

/// The object store failed; it is tried again.
#[derive(Clone, Copy)]
pub struct MirrorFailed<'a> {
    /// What went wrong.
    pub error: &'a dyn std::fmt::Display,
}

impl MirrorFailed<'_> {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::MirrorErrors.name()).increment(1);
        warn!(error = %self.error, "the object store does not take the copy; it is tried again");
    }
}

/// The engine cannot keep up, or can again.
#[derive(Clone, Copy, Debug)]
pub struct OverloadChanged {
    /// The level now.
    pub level: u8,
    /// How far decisions are behind the clock.
    pub lag: Duration,
}

impl OverloadChanged {
    /// Logs and counts.
    pub fn emit(self) {
        gauge!(Metric::Overload.name()).set(f64::from(self.level));
        warn!(level = self.level, lag = ?self.lag, "overload level changed");
    }
}

/// Invariant violations since the last emission.
#[derive(Clone, Copy, Debug)]
pub struct InvariantViolated {
    /// Code of the invariant.
    pub invariant: &'static str,
    /// How often.
    pub count: u64,
}

impl InvariantViolated {
    /// Logs and counts.
    pub fn emit(self) {
        if self.count == 0 {
            return;
        }
        counter!(Metric::InvariantViolations.name(), "invariant" => self.invariant)
            .increment(self.count);
        error!(invariant = self.invariant, count = self.count, "an invariant does not hold");
    }
}

/// The broker acknowledged actions.
#[derive(Clone, Copy, Debug)]
pub struct KafkaDelivered {
    /// How many.
    pub count: u64,
}

impl KafkaDelivered {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::KafkaDelivered.name()).increment(self.count);
        debug!(count = self.count, "actions delivered to the broker");
    }
}

/// An action could not be delivered to the broker.
#[derive(Clone, Copy)]
pub struct KafkaFailed<'a> {
    /// Error class.
    pub class: &'static str,
    /// What went wrong.
    pub error: &'a dyn std::fmt::Display,
}

impl KafkaFailed<'_> {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::KafkaErrors.name(), "class" => self.class).increment(1);
        warn!(class = self.class, error = %self.error, "an action was not delivered to the broker");
    }
}

/// What the Kafka source did since the last time.
#[derive(Clone, Copy, Debug, Default)]
pub struct KafkaConsumed {
    /// Messages taken in.
    pub messages: u64,
    /// Messages passed over because they had been taken in before.
    pub skipped: u64,
    /// Partitions read now.
    pub partitions: u64,
    /// Messages behind the ends of the partitions now.
    pub lag: i64,
    /// Whether nothing is read because the engine is behind.
    pub paused: bool,
}

impl KafkaConsumed {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::KafkaMessages.name()).increment(self.messages);
        counter!(Metric::KafkaSkipped.name()).increment(self.skipped);
        gauge!(Metric::KafkaPartitions.name()).set(self.partitions as f64);
        gauge!(Metric::KafkaLag.name()).set(self.lag as f64);
        gauge!(Metric::KafkaPaused.name()).set(if self.paused { 1.0 } else { 0.0 });
        debug!(messages = self.messages, lag = self.lag, paused = self.paused, "kafka read");
    }
}

/// Messages came too late: their partition had been given to another reader, who reads them again.
#[derive(Clone, Copy, Debug)]
pub struct KafkaFenced<'a> {
    /// The topic.
    pub source: &'a str,
    /// The partition.
    pub partition: i32,
    /// How many.
    pub messages: u64,
}

impl KafkaFenced<'_> {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::KafkaFenced.name()).increment(self.messages);
        let KafkaFenced { source, partition, messages } = self;
        info!(source, partition, messages, "refused from a reader that had lost the partition");
    }
}

/// The Kafka source met an error of the brokers.
#[derive(Clone, Copy)]
pub struct KafkaSourceFailed<'a> {
    /// What it was doing.
    pub class: &'static str,
    /// What went wrong.
    pub error: &'a dyn std::fmt::Display,
}

impl KafkaSourceFailed<'_> {
    /// Logs and counts.
    pub fn emit(self) {
        counter!(Metric::KafkaSourceErrors.name(), "class" => self.class).increment(1);
        warn!(class = self.class, error = %self.error, "kafka");
    }
}

/// A model took effect.
#[derive(Clone, Copy, Debug)]
pub struct ModelLoaded {
    /// Its version.
    pub version: u64,
}

impl ModelLoaded {
    /// Logs and counts.
    pub fn emit(self) {
        gauge!(Metric::ModelVersion.name()).set(self.version as f64);
        info!(version = self.version, "model took effect");
    }
}

/// The engine started.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// Version of the program.
    pub version: &'static str,
}

impl Started {
    /// Logs and counts.
    pub fn emit(self) {
        gauge!(Metric::Build.name(), "version" => self.version).set(1.0);
        info!(version = self.version, "started");
    }
}

#[cfg(test)]
mod tests {
    use super::super::{describe, recorder};
    use super::*;

    #[test]
    fn every_metric_is_written_by_an_event_with_its_labels() {
        let recorder = recorder().unwrap();
        let text = metrics::with_local_recorder(&recorder, || {
            describe();
            BatchRead { rows: 3, ignored: 1, events: 2 }.emit();
            DeadLettered { reason: "future", count: 2 }.emit();
            DeadLettered { reason: "never", count: 0 }.emit();
            ReportsTaken { effect: "unchanged", count: 3 }.emit();
            let lag = Some(Duration::from_millis(5));
            TickClosed { tick: 9, ticks: 1, featured: 2, held: 1, entities: 7, lag }.emit();
            Decided { verdict: "act", count: 4 }.emit();
            GuardrailHit { guardrail: "cooldown", count: 1 }.emit();
            ActionsEmitted { kind: "set_bid", count: 1 }.emit();
            ActionsEnded { kind: "set_bid", outcome: "applied", count: 1 }.emit();
            EventToAction { latencies: &[Duration::from_millis(3)] }.emit();
            StageStepped { stage: "decide", took: Duration::from_micros(80) }.emit();
            QueueSampled { queue: "intake", depth: 12 }.emit();
            QueueFull { queue: "intake", count: 1 }.emit();
            HistoryWritten { table: "events", rows: 10, bytes: 999 }.emit();
            HistoryFailed { table: "events", error: &"disk full" }.emit();
            HistoryMerged { table: "events", parts: 8, rows: 9 }.emit();
            JournalCommitted { ticks: 3, took: Duration::from_micros(300) }.emit();
            JournalFailed { error: &"disk full" }.emit();
            SnapshotTaken { tick: 9, bytes: 10, took: Duration::from_millis(30) }.emit();
            SnapshotFailed { tick: 9, error: &"disk full" }.emit();
            OverloadChanged { level: 1, lag: Duration::from_millis(150) }.emit();
            let lag = Duration::from_millis(40);
            MirrorCopied { bytes: 10, backlog_bytes: 5, lag }.emit();
            MirrorFailed { error: &"503" }.emit();
            InvariantViolated { invariant: "conservation", count: 1 }.emit();
            KafkaDelivered { count: 1 }.emit();
            KafkaFailed { class: "timeout", error: &"no broker" }.emit();
            KafkaConsumed { messages: 5, lag: 7, ..KafkaConsumed::default() }.emit();
            KafkaSourceFailed { class: "consume", error: &"no broker" }.emit();
            KafkaFenced { source: "kafka:events", partition: 0, messages: 2 }.emit();
            ModelLoaded { version: 2 }.emit();
            Started { version: "0.1.0" }.emit();
            recorder.handle().render()
        });
        for metric in Metric::ALL {
            let row = metric.describe();
            let line = |name: &str| {
                text.lines().any(|line| {
                    line.starts_with(name)
                        && row.labels.iter().all(|label| line.contains(&format!("{label}=\"")))
                })
            };
            let sample = match row.labels.is_empty() {
                true => format!("{} ", row.name),
                false => format!("{}{{", row.name),
            };
            let histogram = format!("{}_bucket{{", row.name);
            assert!(line(&sample) || line(&histogram), "{} is never written:\n{text}", row.name);
            assert!(text.contains(&format!("# HELP {} ", row.name)), "{}", row.name);
        }
        assert!(text.contains("omnify_dead_letters_total{reason=\"future\"} 2"));
        assert!(!text.contains("never"));
        assert!(text.contains("omnify_event_to_action_seconds_bucket{le=\"0.005\"} 1"));
        assert!(text.contains("omnify_event_to_action_seconds_bucket{le=\"0.002\"} 0"));
    }

    #[test]
    fn installing_twice_gives_the_same_recorder() {
        let first = super::super::install().unwrap();
        let second = super::super::install().unwrap();
        Started { version: "test-install" }.emit();
        assert!(first.render().contains("test-install"));
        assert!(second.render().contains("test-install"));
    }
}
