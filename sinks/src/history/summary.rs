//! Totals of a history.

use std::collections::BTreeMap;

use omnify_operators::model::Tick;

use super::{Manifest, Table};

/// What a writer has committed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Totals of each table that has parts.
    pub tables: BTreeMap<Table, TableSummary>,
    /// Last closed tick.
    pub last_tick: Option<Tick>,
    /// Digest over all decisions, in hex.
    pub digest: String,
}

/// Totals of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TableSummary {
    /// Number of parts.
    pub files: u64,
    /// Rows in them.
    pub rows: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Lowest tick.
    pub first_tick: Tick,
    /// Highest tick.
    pub last_tick: Tick,
}

impl Summary {
    /// The totals of a manifest.
    pub fn of(manifest: &Manifest) -> Summary {
        let mut tables: BTreeMap<Table, TableSummary> = BTreeMap::new();
        for part in &manifest.parts {
            let table = tables
                .entry(part.table)
                .or_insert(TableSummary { first_tick: Tick::MAX, ..TableSummary::default() });
            table.files += 1;
            table.rows += part.rows;
            table.bytes += part.bytes;
            table.first_tick = table.first_tick.min(part.first_tick);
            table.last_tick = table.last_tick.max(part.last_tick);
        }
        Summary { tables, last_tick: manifest.last_tick, digest: manifest.digest.clone() }
    }
}
