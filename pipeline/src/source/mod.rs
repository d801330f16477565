//! Where events come from: files of any shipped form, one or a folder of them, streamed.
//!
//! ```text
//!  path ─► first bytes ─┬─ gzip, zstd ─┐
//!                       ├─ text ───────┴─► window ─► rows (CSV, NDJSON) ─► cells ─┐
//!                       └─ Parquet ─► row groups ─► columns ─┬─ fast path ────────┼─► Batch
//!                                                            └─► cells ───────────┘
//! ```
//!
//! Contract: a source yields bounded batches in its own order, delivers every row before a damage
//! and then says where the damage is, and accounts for every row it read. What a file is, is told
//! by its first bytes, never by its name.
//!
//! What this module never does: it never holds a file in memory, and it reads no clock.

mod columnar;
mod error;
mod fast;
mod folder;
mod input;
mod reorder;
mod rows;
#[cfg(test)]
mod tests;
mod text;

use std::path::Path;
use std::sync::Arc;

pub use columnar::{RowGroup, open_parquet_parallel, row_groups_in_time_order};
pub use error::{ColumnError, ColumnFault, SourceError};
pub use reorder::{Reorder, Timed};

pub use crate::decode::{Batch, Projection};
use crate::decode::{Door, Mapping};

/// Something that yields events and report rows until it ends.
pub trait Source: Send {
    /// The next rows; `None` at the end. After an error, the source has ended.
    fn next_batch(&mut self) -> Result<Option<Batch>, SourceError>;

    /// Bytes done and bytes in all, of the files as they lie on disk.
    fn progress(&self) -> (u64, u64);
}

/// How a source is read.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    /// Most rows of one batch.
    pub batch_rows: usize,
    /// Which costly fields are wanted.
    pub projection: Projection,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions { batch_rows: 1 << 16, projection: Projection::ALL }
    }
}

/// Opens a file, or a folder as the chain of its files.
pub fn open(
    path: &Path,
    mapping: &Mapping,
    door: &Arc<Door>,
    options: ReadOptions,
) -> Result<Box<dyn Source>, SourceError> {
    let metadata = std::fs::metadata(path)
        .map_err(|source| SourceError::Open { path: path.to_owned(), source })?;
    if metadata.is_dir() {
        Ok(Box::new(folder::open(path, mapping, door, options)?))
    } else {
        open_file(path, mapping, door, options)
    }
}

/// Whether `path` is one Parquet file whose row groups follow each other in event time, by its
/// statistics: then they can be read side by side.
pub fn row_groups_follow(path: &Path, mapping: &Mapping) -> Result<bool, SourceError> {
    if path.is_dir() || !matches!(input::open(path)?, input::Input::Parquet) {
        return Ok(false);
    }
    let groups = row_groups_in_time_order(path, mapping)?;
    let spans: Option<Vec<_>> = groups.iter().map(|group| group.span).collect();
    let in_file_order = groups.iter().enumerate().all(|(at, group)| group.index == at);
    let follow = |spans: Vec<(_, _)>| spans.windows(2).all(|pair| pair[0].1 <= pair[1].0);
    Ok(in_file_order && spans.is_some_and(follow))
}

fn open_file(
    path: &Path,
    mapping: &Mapping,
    door: &Arc<Door>,
    options: ReadOptions,
) -> Result<Box<dyn Source>, SourceError> {
    match input::open(path)? {
        input::Input::Parquet => Ok(Box::new(columnar::open(path, mapping, door, options)?)),
        input::Input::Text(window) => {
            Ok(Box::new(text::open(path, window, mapping, door, options)?))
        }
    }
}
