//! One merge: pure work on files, on any thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::RecordBatch;
use arrow::compute::BatchCoalescer;
use arrow::error::ArrowError;

use super::super::catalog::Catalog;
use super::super::manifest::Part;
use super::super::part::{PartWriter, batch_rows};
use super::super::read::PartFile;
use super::super::writer::WriterOptions;
use super::super::{HistoryError, HistoryMeta, Table, schema_of};
use super::plan::{Eagerness, runs};
use super::sorted;
use crate::disk::Disk;

/// Parts to be merged into one.
pub struct MergeJob {
    pub(super) root: PathBuf,
    pub(super) meta: Arc<HistoryMeta>,
    pub(super) options: WriterOptions,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) replaces: Vec<Part>,
    /// Everything of the new part but what only writing it tells.
    part: Part,
}

/// A merged part on disk under its temporary name, to be adopted by the owner of the history. The
/// file is removed when this is dropped before.
pub struct Merged {
    pub(crate) temporary: PathBuf,
    pub(crate) renamed: bool,
    pub(crate) part: Part,
    pub(crate) replaced: Vec<Part>,
    disk: Arc<dyn Disk>,
}

impl Merged {
    /// The table.
    pub fn table(&self) -> Table {
        self.part.table
    }

    /// How many parts it replaces.
    pub fn parts(&self) -> usize {
        self.replaced.len()
    }

    /// Rows in it.
    pub fn rows(&self) -> u64 {
        self.part.rows
    }

    /// Bytes of its file.
    pub fn bytes(&self) -> u64 {
        self.part.bytes
    }
}

impl Drop for Merged {
    /// Best effort; the next opening does the rest. A file that has its name may be listed already.
    fn drop(&mut self) {
        if !self.renamed {
            let _ = self.disk.remove(&self.temporary);
        }
    }
}

impl MergeJob {
    /// The merge that takes most parts away, if one is worth it beside a running writer.
    pub(crate) fn next(
        catalog: &mut Catalog,
        meta: &Arc<HistoryMeta>,
        options: &WriterOptions,
    ) -> Option<MergeJob> {
        let runs = runs(&catalog.manifest, options.rows_per_file as u64, Eagerness::Live);
        // The first of equals.
        let longest = runs.into_iter().rev().max_by_key(Vec::len)?;
        let parts = longest.into_iter().cloned().collect();
        Some(MergeJob::new(catalog, meta, options, parts))
    }

    /// All merges of one pass over a history that nobody writes.
    pub(super) fn all(
        catalog: &mut Catalog,
        meta: &Arc<HistoryMeta>,
        options: &WriterOptions,
    ) -> Vec<MergeJob> {
        let runs = runs(&catalog.manifest, options.rows_per_file as u64, Eagerness::Full);
        let runs: Vec<Vec<Part>> =
            runs.into_iter().map(|run| run.into_iter().cloned().collect()).collect();
        runs.into_iter().map(|run| MergeJob::new(catalog, meta, options, run)).collect()
    }

    /// `replaces` are neighbours of one partition, at least two.
    fn new(
        catalog: &mut Catalog,
        meta: &Arc<HistoryMeta>,
        options: &WriterOptions,
        replaces: Vec<Part>,
    ) -> MergeJob {
        let first_tick = replaces.iter().map(|part| part.first_tick).min().unwrap_or(0);
        let last_tick = replaces.iter().map(|part| part.last_tick).max().unwrap_or(0);
        let folder = replaces[0].folder();
        let name = catalog.name(folder, first_tick, last_tick);
        catalog.took_name(folder, first_tick, last_tick);
        let part = Part {
            file: format!("{folder}/{name}"),
            first_tick,
            last_tick,
            rows: replaces.iter().map(|part| part.rows).sum(),
            bytes: 0,
            blake3: String::new(),
            ..replaces[0].clone()
        };
        MergeJob {
            root: catalog.root.clone(),
            meta: meta.clone(),
            options: options.clone(),
            disk: catalog.disk.clone(),
            replaces,
            part,
        }
    }

    /// The table.
    pub fn table(&self) -> Table {
        self.part.table
    }

    /// How many parts are merged.
    pub fn parts(&self) -> usize {
        self.replaces.len()
    }

    /// Rows that are rewritten.
    pub fn rows(&self) -> u64 {
        self.part.rows
    }

    /// Bytes that are read.
    pub fn bytes(&self) -> u64 {
        self.replaces.iter().map(|part| part.bytes).sum()
    }

    /// Reads the parts and writes the merged one, durably, under a temporary name. `None` when
    /// `stop` was set meanwhile.
    pub fn run(self, stop: &AtomicBool) -> Result<Option<Merged>, HistoryError> {
        let path = self.root.join(&self.part.file);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.tmp"));
        let (disk, replaced) = (self.disk.clone(), self.replaces.clone());
        // From here on the file is removed whatever happens.
        let part = self.part.clone();
        let mut merged = Merged { temporary, renamed: false, part, replaced, disk };
        let schema = schema_of(self.part.table, &self.meta);
        let temporary = merged.temporary.clone();
        let mut out = PartWriter::create(
            &*self.disk,
            &temporary,
            self.part.table,
            schema.clone(),
            &self.options,
        )?;
        let mut rows = 0;
        let mut take = |batch: RecordBatch| {
            rows += batch.num_rows() as u64;
            out.write(&batch)?;
            Ok(!stop.load(Ordering::Relaxed))
        };
        let whole = match self.part.table {
            Table::Features => sorted::merge(&self, &mut take)?,
            _ => self.concatenate(&mut take)?,
        };
        if !whole {
            return Ok(None);
        }
        if rows != self.part.rows {
            let what = format!("{rows} rows were read for {} listed ones", self.part.rows);
            return Err(HistoryError::Part { path, what });
        }
        let written = out.finish()?;
        merged.part.bytes = written.bytes;
        merged.part.blake3 = written.blake3;
        Ok(Some(merged))
    }

    /// Gives the rows of one part after the other to `take`, in batches of a fixed size, until it
    /// returns false.
    fn concatenate(&self, take: &mut Take<'_>) -> Result<bool, HistoryError> {
        let schema = schema_of(self.part.table, &self.meta);
        let mut whole = BatchCoalescer::new(schema, batch_rows(self.part.table));
        for part in &self.replaces {
            let bad = |error: ArrowError| bad_batch(self.root.join(&part.file), &error);
            let mut file = PartFile::open(&self.root, part, &self.meta)?;
            while let Some(batch) = file.next()? {
                whole.push_batch(batch).map_err(bad)?;
                while let Some(batch) = whole.next_completed_batch() {
                    if !take(batch)? {
                        return Ok(false);
                    }
                }
            }
        }
        let last = self.replaces.last().map(|part| self.root.join(&part.file));
        whole
            .finish_buffered_batch()
            .map_err(|error| bad_batch(last.unwrap_or_default(), &error))?;
        while let Some(batch) = whole.next_completed_batch() {
            if !take(batch)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Takes the next rows of the merged part; false to stop.
pub(super) type Take<'a> = dyn FnMut(RecordBatch) -> Result<bool, HistoryError> + 'a;

pub(super) fn bad_batch(path: PathBuf, error: &ArrowError) -> HistoryError {
    HistoryError::Part { path, what: error.to_string() }
}
