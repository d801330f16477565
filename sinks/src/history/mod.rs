//! The Parquet history: everything that happened, open for any tool and exact enough to replay.
//!
//! ```text
//! ROOT/manifest.json                      the parts, replaced atomically; the authority
//! ROOT/run.json, config.toml              what a replay needs besides the tables
//! ROOT/table=events/tenant=acme/date=2026-01-31/part-<first tick>-<last tick>.parquet
//! ```
//!
//! # Contract
//! A committed part never changes. The manifest always describes complete ticks. Every row of
//! `events` and `decisions` carries a check of its content and every part its BLAKE3 hash, so that
//! [`HistoryReader::verify`] names the first tick and entity that differ. `HISTORY.md` beside this
//! crate's manifest documents every column for the reader.
//!
//! # What this module never does
//! It reads no clock and makes no decision; dense entity ids never reach a file.

mod actions;
mod buffer;
mod catalog;
mod compact;
mod dead_letter;
mod decisions;
mod entities;
mod error;
mod events;
mod features;
mod files;
mod leftovers;
mod manifest;
mod meta;
mod part;
mod read;
mod row;
mod summary;
mod table;
#[cfg(test)]
mod tests;
mod ticks;
mod writer;

pub use compact::{BackgroundMerge, Compacted, Compaction, MergeJob, MergeStep, Merged, compact};
pub use dead_letter::{DEAD_LETTER_BYTES_MAX, DeadLetter};
pub use error::{Difference, HistoryError};
pub use files::HistoryFiles;
pub use manifest::{Manifest, Merges, Part};
pub use meta::HistoryMeta;
pub use omnify_decision::digest::DecisionDigest;
pub use read::{
    DecisionRecord, Decisions, EventScan, ExportFormat, ExportOptions, Exported, HistoryReader,
    Progress, Replay, Ticks, Verification,
};
pub use summary::{Summary, TableSummary};
pub use table::{NO_TENANT, SCHEMA_VERSION, Table};
pub use ticks::TickRecord;
pub use writer::{CurrencyOf, HistoryWriter, WriterOptions};

/// Folder, in a history, of the snapshot that it begins with, if its engine was not new.
pub const START_FOLDER: &str = "start";

/// The columns of a table in a history of this run.
pub(crate) fn schema_of(table: Table, meta: &HistoryMeta) -> arrow::datatypes::SchemaRef {
    match table {
        Table::Events => events::EVENTS.clone(),
        Table::Features => features::schema(),
        Table::Decisions => decisions::schema(&meta.windows),
        Table::Actions => actions::actions_schema(),
        Table::Outcomes => actions::outcomes_schema(),
        Table::DeadLetters => dead_letter::schema(),
        Table::Ticks => ticks::schema(),
    }
}
