//! The commands of the binary, one file each.

pub mod demo;
pub mod history;
pub mod journal;
pub mod learn;
pub mod orders;
pub mod remote;
pub mod replay;
pub mod run;

use std::path::{Path, PathBuf};

use omnify_config::{ConfigError, Problems};
use omnify_sinks::action::LedgerError;
use omnify_sinks::history::HistoryError;
use omnify_sinks::journal::JournalError;
use omnify_sinks::objects::ObjectsError;
use omnify_sinks::snapshot::SnapshotError;

use crate::cluster::{ClusterError, EXIT_LOST};
use crate::decode::MappingError;
use crate::engine::RunSummary;
use crate::source::SourceError;

/// Another engine holds the object store's prefix (state.remote).
const EXIT_FENCED: u8 = 7;

/// What a command came to.
#[derive(Debug)]
pub struct Done {
    /// For machines.
    pub answer: serde_json::Value,
    /// For people.
    pub text: String,
    /// Exit code: 0, or 1 when something differs.
    pub code: u8,
}

/// The exit code of an error; the command line's help lists them.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let is = |check: fn(&(dyn std::error::Error + 'static)) -> bool| error.chain().any(check);
    if is(|e| e.is::<ConfigError>() || e.is::<Problems>() || e.is::<UsageError>()) {
        return 2;
    }
    match error.downcast_ref::<ClusterError>() {
        Some(ClusterError::Refused { .. } | ClusterError::Unproven { .. }) => return 2,
        Some(ClusterError::Lost { .. }) => return EXIT_LOST,
        Some(ClusterError::Listen { .. }) => return 5,
        None => {}
    }
    if is(|e| e.is::<SourceError>() || e.is::<MappingError>()) {
        return 3;
    }
    if is(|e| e.is::<OutputError>() || e.is::<LedgerError>()) {
        return 4;
    }
    match error.downcast_ref::<ObjectsError>() {
        Some(error) if error.is_fenced() => return EXIT_FENCED,
        Some(ObjectsError::Damaged { .. }) => return 1,
        Some(ObjectsError::Address { .. } | ObjectsError::Nothing { .. }) => return 2,
        Some(_) => return 4,
        None => {}
    }
    match error.downcast_ref::<JournalError>() {
        Some(JournalError::Damaged { .. } | JournalError::Missing { .. }) => return 1,
        Some(_) => return 4,
        None => {}
    }
    if let Some(SnapshotError::Io { .. }) = error.downcast_ref::<SnapshotError>() {
        return 4;
    }
    match error.downcast_ref::<HistoryError>() {
        Some(HistoryError::Difference(_)) => 1,
        Some(_) => 4,
        None => 5,
    }
}

/// A file or folder that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("`{}` {what}", path.display())]
pub struct OutputError {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong and what to do.
    pub what: String,
}

/// A file or folder that the system does not let us write.
pub(crate) fn output_error(path: &Path, error: &std::io::Error) -> OutputError {
    let what = format!("cannot be written: {error}; choose another folder or free it");
    OutputError { path: path.to_owned(), what }
}

/// Arguments that do not fit together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// The totals of a run, as every command prints them.
pub fn totals(summary: &RunSummary) -> serde_json::Value {
    let counters = &summary.counters;
    serde_json::json!({
        "rows_read": counters.rows_read,
        "rows_ignored": counters.ignored,
        "events_in": counters.events_in,
        "events_featured": counters.featured,
        "events_held": counters.held,
        "dead_letters": counters.dead_letters_total(),
        "dead_letters_by_reason": counters.dead_letters,
        "ticks": counters.ticks,
        "last_tick": summary.last_tick,
        "feature_rows": summary.panes_closed,
        "decisions": counters.decisions_total(),
        "decisions_by_verdict": counters.decisions,
        "actions": counters.actions_total(),
        "actions_by_kind": counters.actions,
        "outcomes": counters.outcomes,
        "violations": counters.violations,
        "conserved": counters.conservation().holds,
        "latency_ms": counters.latency_ms,
        "digest": summary.digest,
    })
}

/// The same for people.
pub fn totals_text(summary: &RunSummary) -> String {
    let counters = &summary.counters;
    let by = |map: &std::collections::BTreeMap<&'static str, u64>| {
        let list: Vec<String> = map.iter().map(|(code, n)| format!("{code} {n}")).collect();
        if list.is_empty() { String::new() } else { format!(" ({})", list.join(", ")) }
    };
    let c = counters.conservation();
    let mut text = format!(
        "events in     {} = featured {} + held {} + dead letters {}{}\n",
        c.events_in,
        c.featured,
        c.held,
        c.dead_letters,
        if c.holds { String::new() } else { format!("  MISSING {}", c.difference) },
    );
    if counters.ignored > 0 {
        text += &format!("rows ignored  {} by the mapping\n", counters.ignored);
    }
    text += &format!("dead letters  {}{}\n", c.dead_letters, by(&counters.dead_letters));
    text += &format!("feature rows  {}\n", summary.panes_closed);
    text += &format!("decisions     {}{}\n", counters.decisions_total(), by(&counters.decisions));
    text += &format!("actions       {}{}\n", counters.actions_total(), by(&counters.actions));
    if let Some(latency) = counters.latency_ms {
        text += &format!(
            "latency       p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, max {:.2} ms\n",
            latency.p50, latency.p99, latency.p999, latency.max
        );
    }
    text += &format!("digest        {}\n", summary.digest);
    text
}
