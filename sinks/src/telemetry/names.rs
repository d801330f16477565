//! Every metric there is: name, kind, unit, help, labels and buckets in one table.
//!
//! Counters end in `_total`, times are in seconds, sizes in bytes. Labels take their values from
//! small fixed sets; no entity, tenant or file is ever a label.

/// What a metric measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts values by bucket.
    Histogram,
}

/// Upper bounds in seconds for what should take milliseconds.
const FAST_SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,
    1.0, 5.0,
];

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// Name as exported.
    pub name: &'static str,
    /// What it measures.
    pub kind: Kind,
    /// Unit, when it has one.
    pub unit: Option<metrics::Unit>,
    /// One sentence for people.
    pub help: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// Bucket bounds of a histogram.
    pub buckets: &'static [f64],
}

/// Not a histogram.
const NONE: &[f64] = &[];

/// A metric of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Rows read from all sources.
    RowsRead,
    /// Rows that a mapping leaves out on purpose.
    RowsIgnored,
    /// Rows that became events.
    EventsIn,
    /// Events that are in the features.
    EventsFeatured,
    /// Events held back now.
    EventsHeld,
    /// Events set aside, by reason.
    DeadLetters,
    /// Report rows that are in the features, by effect.
    ReportRows,
    /// Ticks closed.
    Ticks,
    /// How far the newest closed tick is behind the clock.
    TickLag,
    /// Entities with features.
    Entities,
    /// Decisions, by verdict.
    Decisions,
    /// Actions emitted, by kind.
    Actions,
    /// Ended actions, by kind and outcome.
    Outcomes,
    /// Proposals that a guardrail changed or stopped, by guardrail.
    GuardrailHits,
    /// Time from the arrival of an event to its action being handed to the executor.
    EventToAction,
    /// Time that one step of a stage took.
    StageStep,
    /// Entries that wait in a queue now.
    QueueDepth,
    /// Entries that a full queue refused or shed.
    QueueRefusals,
    /// Rows written to history, by table.
    HistoryRows,
    /// Bytes written to history, by table.
    HistoryBytes,
    /// Files completed in history, by table.
    HistoryFiles,
    /// Writes to history that failed, by table.
    HistoryErrors,
    /// Merges of small history files, by table.
    HistoryMerges,
    /// Time to write and sync one group of ticks.
    JournalCommit,
    /// Commits of the journal that failed.
    JournalErrors,
    /// Snapshots, by result.
    Snapshots,
    /// Seconds since the epoch of the newest committed snapshot.
    SnapshotTick,
    /// Size of the newest committed snapshot.
    SnapshotBytes,
    /// Bytes of journal and ledger copied to the object store.
    MirrorBytes,
    /// Bytes of journal and ledger that are durable and not copied yet.
    MirrorBacklog,
    /// Age of the oldest of them.
    MirrorLag,
    /// Tries at the object store that failed.
    MirrorErrors,
    /// Overload level: 0 normal, 1 coarser ticks, 2 cold entities later, 3 hot entities first.
    Overload,
    /// Violations of an invariant; anything above zero is a bug.
    InvariantViolations,
    /// Actions that the broker acknowledged.
    KafkaDelivered,
    /// Actions that could not be delivered to the broker, by error class.
    KafkaErrors,
    /// Messages read from topics.
    KafkaMessages,
    /// Messages passed over because they had been taken in before.
    KafkaSkipped,
    /// Messages refused from a reader that had lost their partition.
    KafkaFenced,
    /// Partitions that this process reads.
    KafkaPartitions,
    /// Messages behind the ends of the partitions.
    KafkaLag,
    /// 1 while topics are paused because the engine is behind.
    KafkaPaused,
    /// Errors of the brokers while reading, by what was being done.
    KafkaSourceErrors,
    /// Version of the model in use; 0 without one.
    ModelVersion,
    /// Always 1; the label says which program runs.
    Build,
}

impl Metric {
    /// All metrics.
    pub const ALL: &'static [Metric] = &[
        Metric::RowsRead,
        Metric::RowsIgnored,
        Metric::EventsIn,
        Metric::EventsFeatured,
        Metric::EventsHeld,
        Metric::DeadLetters,
        Metric::ReportRows,
        Metric::Ticks,
        Metric::TickLag,
        Metric::Entities,
        Metric::Decisions,
        Metric::Actions,
        Metric::Outcomes,
        Metric::GuardrailHits,
        Metric::EventToAction,
        Metric::StageStep,
        Metric::QueueDepth,
        Metric::QueueRefusals,
        Metric::HistoryRows,
        Metric::HistoryBytes,
        Metric::HistoryFiles,
        Metric::HistoryErrors,
        Metric::HistoryMerges,
        Metric::JournalCommit,
        Metric::JournalErrors,
        Metric::Snapshots,
        Metric::SnapshotTick,
        Metric::SnapshotBytes,
        Metric::MirrorBytes,
        Metric::MirrorBacklog,
        Metric::MirrorLag,
        Metric::MirrorErrors,
        Metric::Overload,
        Metric::InvariantViolations,
        Metric::KafkaDelivered,
        Metric::KafkaErrors,
        Metric::KafkaMessages,
        Metric::KafkaSkipped,
        Metric::KafkaFenced,
        Metric::KafkaPartitions,
        Metric::KafkaLag,
        Metric::KafkaPaused,
        Metric::KafkaSourceErrors,
        Metric::ModelVersion,
        Metric::Build,
    ];

    /// Its row of the table.
    pub const fn describe(self) -> Description {
        use Kind::{Counter, Gauge, Histogram};
        use metrics::Unit::{Bytes, Count, Seconds};
        match self {
            Metric::RowsRead => Description {
                name: "omnify_rows_read_total",
                kind: Counter,
                unit: Some(Count),
                help: "Rows read from all sources.",
                labels: &[],
                buckets: NONE,
            },
            Metric::RowsIgnored => Description {
                name: "omnify_rows_ignored_total",
                kind: Counter,
                unit: Some(Count),
                help: "Rows that a mapping leaves out on purpose.",
                labels: &[],
                buckets: NONE,
            },
            Metric::EventsIn => Description {
                name: "omnify_events_in_total",
                kind: Counter,
                unit: Some(Count),
                help: "Rows that became events.",
                labels: &[],
                buckets: NONE,
            },
            Metric::EventsFeatured => Description {
                name: "omnify_events_featured_total",
                kind: Counter,
                unit: Some(Count),
                help: "Events that are in the features.",
                labels: &[],
                buckets: NONE,
            },
            Metric::EventsHeld => Description {
                name: "omnify_events_held",
                kind: Gauge,
                unit: Some(Count),
                help: "Events held back now.",
                labels: &[],
                buckets: NONE,
            },
            Metric::DeadLetters => Description {
                name: "omnify_dead_letters_total",
                kind: Counter,
                unit: Some(Count),
                help: "Events set aside, by reason.",
                labels: &["reason"],
                buckets: NONE,
            },
            Metric::ReportRows => Description {
                name: "omnify_report_rows_total",
                kind: Counter,
                unit: Some(Count),
                help: "Report rows in the features, by effect: changed totals, or left them unchanged.",
                labels: &["effect"],
                buckets: NONE,
            },
            Metric::Ticks => Description {
                name: "omnify_ticks_total",
                kind: Counter,
                unit: Some(Count),
                help: "Ticks closed.",
                labels: &[],
                buckets: NONE,
            },
            Metric::TickLag => Description {
                name: "omnify_tick_lag_seconds",
                kind: Gauge,
                unit: Some(Seconds),
                help: "How far the newest closed tick is behind the clock.",
                labels: &[],
                buckets: NONE,
            },
            Metric::Entities => Description {
                name: "omnify_entities",
                kind: Gauge,
                unit: Some(Count),
                help: "Entities with features.",
                labels: &[],
                buckets: NONE,
            },
            Metric::Decisions => Description {
                name: "omnify_decisions_total",
                kind: Counter,
                unit: Some(Count),
                help: "Decisions, by verdict.",
                labels: &["verdict"],
                buckets: NONE,
            },
            Metric::Actions => Description {
                name: "omnify_actions_total",
                kind: Counter,
                unit: Some(Count),
                help: "Actions emitted, by kind.",
                labels: &["kind"],
                buckets: NONE,
            },
            Metric::Outcomes => Description {
                name: "omnify_action_outcomes_total",
                kind: Counter,
                unit: Some(Count),
                help: "Ended actions, by kind and outcome.",
                labels: &["kind", "outcome"],
                buckets: NONE,
            },
            Metric::GuardrailHits => Description {
                name: "omnify_guardrail_hits_total",
                kind: Counter,
                unit: Some(Count),
                help: "Proposals that a guardrail changed or stopped, by guardrail.",
                labels: &["guardrail"],
                buckets: NONE,
            },
            Metric::EventToAction => Description {
                name: "omnify_event_to_action_seconds",
                kind: Histogram,
                unit: Some(Seconds),
                help: "Time from the arrival of an event to its action being handed to the executor.",
                labels: &[],
                buckets: FAST_SECONDS,
            },
            Metric::StageStep => Description {
                name: "omnify_stage_step_seconds",
                kind: Histogram,
                unit: Some(Seconds),
                help: "Time that one step of a stage took.",
                labels: &["stage"],
                buckets: FAST_SECONDS,
            },
            Metric::QueueDepth => Description {
                name: "omnify_queue_depth",
                kind: Gauge,
                unit: Some(Count),
                help: "Entries that wait in a queue now.",
                labels: &["queue"],
                buckets: NONE,
            },
            Metric::QueueRefusals => Description {
                name: "omnify_queue_refusals_total",
                kind: Counter,
                unit: Some(Count),
                help: "Entries that a full queue refused or shed.",
                labels: &["queue"],
                buckets: NONE,
            },
            Metric::HistoryRows => Description {
                name: "omnify_history_rows_total",
                kind: Counter,
                unit: Some(Count),
                help: "Rows written to history, by table.",
                labels: &["table"],
                buckets: NONE,
            },
            Metric::HistoryBytes => Description {
                name: "omnify_history_bytes_total",
                kind: Counter,
                unit: Some(Bytes),
                help: "Bytes written to history, by table.",
                labels: &["table"],
                buckets: NONE,
            },
            Metric::HistoryFiles => Description {
                name: "omnify_history_files_total",
                kind: Counter,
                unit: Some(Count),
                help: "Files completed in history, by table.",
                labels: &["table"],
                buckets: NONE,
            },
            Metric::HistoryErrors => Description {
                name: "omnify_history_errors_total",
                kind: Counter,
                unit: Some(Count),
                help: "Writes to history that failed, by table.",
                labels: &["table"],
                buckets: NONE,
            },
            Metric::HistoryMerges => Description {
                name: "omnify_history_merges_total",
                kind: Counter,
                unit: Some(Count),
                help: "Merges of small history files, by table.",
                labels: &["table"],
                buckets: NONE,
            },
            Metric::JournalCommit => Description {
                name: "omnify_journal_commit_seconds",
                kind: Histogram,
                unit: Some(Seconds),
                help: "Time to write and sync one group of ticks.",
                labels: &[],
                buckets: FAST_SECONDS,
            },
            Metric::JournalErrors => Description {
                name: "omnify_journal_errors_total",
                kind: Counter,
                unit: Some(Count),
                help: "Commits of the journal that failed.",
                labels: &[],
                buckets: NONE,
            },
            Metric::Snapshots => Description {
                name: "omnify_snapshots_total",
                kind: Counter,
                unit: Some(Count),
                help: "Snapshots, by result.",
                labels: &["result"],
                buckets: NONE,
            },
            Metric::SnapshotTick => Description {
                name: "omnify_snapshot_time_seconds",
                kind: Gauge,
                unit: Some(Seconds),
                help: "Seconds since the epoch of the newest committed snapshot.",
                labels: &[],
                buckets: NONE,
            },
            Metric::SnapshotBytes => Description {
                name: "omnify_snapshot_bytes",
                kind: Gauge,
                unit: Some(Bytes),
                help: "Size of the newest committed snapshot.",
                labels: &[],
                buckets: NONE,
            },
            Metric::MirrorBytes => Description {
                name: "omnify_mirror_bytes_total",
                kind: Counter,
                unit: Some(Bytes),
                help: "Bytes of journal and ledger copied to the object store.",
                labels: &[],
                buckets: NONE,
            },
            Metric::MirrorBacklog => Description {
                name: "omnify_mirror_backlog_bytes",
                kind: Gauge,
                unit: Some(Bytes),
                help: "Bytes of journal and ledger that are durable and not copied yet.",
                labels: &[],
                buckets: NONE,
            },
            Metric::MirrorLag => Description {
                name: "omnify_mirror_lag_seconds",
                kind: Gauge,
                unit: Some(Seconds),
                help: "Age of the oldest durable byte that is not copied yet.",
                labels: &[],
                buckets: NONE,
            },
            Metric::MirrorErrors => Description {
                name: "omnify_mirror_errors_total",
                kind: Counter,
                unit: Some(Count),
                help: "Tries at the object store that failed.",
                labels: &[],
                buckets: NONE,
            },
            Metric::Overload => Description {
                name: "omnify_overload_level",
                kind: Gauge,
                unit: None,
                help: "Overload level: 0 normal, 1 coarser ticks, 2 cold entities later, 3 hot entities first.",
                labels: &[],
                buckets: NONE,
            },
            Metric::InvariantViolations => Description {
                name: "omnify_invariant_violations_total",
                kind: Counter,
                unit: Some(Count),
                help: "Violations of an invariant; anything above zero is a bug.",
                labels: &["invariant"],
                buckets: NONE,
            },
            Metric::KafkaDelivered => Description {
                name: "omnify_kafka_delivered_total",
                kind: Counter,
                unit: Some(Count),
                help: "Actions that the broker acknowledged.",
                labels: &[],
                buckets: NONE,
            },
            Metric::KafkaErrors => Description {
                name: "omnify_kafka_delivery_errors_total",
                kind: Counter,
                unit: Some(Count),
                help: "Actions that could not be delivered to the broker, by error class.",
                labels: &["class"],
                buckets: NONE,
            },
            Metric::KafkaMessages => Description {
                name: "omnify_kafka_messages_total",
                kind: Counter,
                unit: Some(Count),
                help: "Messages read from topics.",
                labels: &[],
                buckets: NONE,
            },
            Metric::KafkaSkipped => Description {
                name: "omnify_kafka_skipped_total",
                kind: Counter,
                unit: Some(Count),
                help: "Messages passed over because they had been taken in before.",
                labels: &[],
                buckets: NONE,
            },
            Metric::KafkaFenced => Description {
                name: "omnify_kafka_fenced_total",
                kind: Counter,
                unit: Some(Count),
                help: "Messages refused from a reader that had lost their partition; the next one reads them.",
                labels: &[],
                buckets: NONE,
            },
            Metric::KafkaPartitions => Description {
                name: "omnify_kafka_partitions",
                kind: Gauge,
                unit: Some(Count),
                help: "Partitions that this process reads.",
                labels: &[],
                buckets: NONE,
            },
            Metric::KafkaLag => Description {
                name: "omnify_kafka_lag_messages",
                kind: Gauge,
                unit: Some(Count),
                help: "Messages behind the ends of the partitions.",
                labels: &[],
                buckets: NONE,
            },
            Metric::KafkaPaused => Description {
                name: "omnify_kafka_paused",
                kind: Gauge,
                unit: None,
                help: "1 while topics are paused because the engine is behind.",
                labels: &[],
                buckets: NONE,
            },
            Metric::KafkaSourceErrors => Description {
                name: "omnify_kafka_source_errors_total",
                kind: Counter,
                unit: Some(Count),
                help: "Errors of the brokers while reading, by what was being done.",
                labels: &["class"],
                buckets: NONE,
            },
            Metric::ModelVersion => Description {
                name: "omnify_model_version",
                kind: Gauge,
                unit: None,
                help: "Version of the model in use; 0 without one.",
                labels: &[],
                buckets: NONE,
            },
            Metric::Build => Description {
                name: "omnify_build_info",
                kind: Gauge,
                unit: None,
                help: "Always 1; the label says which program runs.",
                labels: &["version"],
                buckets: NONE,
            },
        }
    }

    /// Name as exported.
    pub const fn name(self) -> &'static str {
        self.describe().name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_the_rules() {
        let mut names: Vec<_> = Metric::ALL.iter().map(|metric| metric.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Metric::ALL.len(), "a name is used twice");
        for metric in Metric::ALL {
            let row = metric.describe();
            assert!(row.name.starts_with("omnify_"), "{}", row.name);
            assert!(row.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", row.name);
            assert_eq!(row.kind == Kind::Counter, row.name.ends_with("_total"), "{}", row.name);
            assert_eq!(row.kind == Kind::Histogram, !row.buckets.is_empty(), "{}", row.name);
            assert!(row.buckets.is_sorted(), "{}", row.name);
            let seconds = row.unit == Some(metrics::Unit::Seconds);
            assert_eq!(seconds, row.name.ends_with("_seconds"), "{}", row.name);
            assert!(row.help.ends_with('.'), "{}", row.name);
            for label in row.labels {
                let unbounded = ["entity", "tenant", "campaign", "account", "creative", "file"];
                assert!(!unbounded.contains(label), "{} by {label}", row.name);
            }
        }
    }
}
