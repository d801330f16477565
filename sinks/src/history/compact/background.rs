//! Compaction beside a running writer: one merge at a time, on a thread of low priority.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::super::{HistoryError, HistoryWriter, Table};
use super::job::Merged;
use crate::priority;

type Outcome = Result<Option<Merged>, HistoryError>;

/// Merges the small parts of a history while it is written. The owner of the writer calls
/// [`BackgroundMerge::step`] between two calls of the writer, after every commit and now and then;
/// a step never waits. Dropping it stops the thread and waits for that, at most one batch.
#[derive(Default)]
pub struct BackgroundMerge {
    running: Option<(JoinHandle<Outcome>, Arc<AtomicBool>)>,
    /// Finished, but the manifest could not be written yet.
    waiting: Option<Merged>,
    /// A part could not be read: it would not be readable the next time either.
    off: bool,
    /// Merges on the caller's thread.
    inline: bool,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeStep {
    /// Nothing is worth merging, or a merge is still running.
    Nothing,
    /// A merge was started.
    Started,
    /// A merged part is now part of the history.
    Adopted {
        /// The table.
        table: Table,
        /// Parts that it replaced.
        parts: usize,
        /// Rows in it.
        rows: u64,
        /// Bytes of it.
        bytes: u64,
    },
}

impl BackgroundMerge {
    /// One that merges on the caller's thread, where a simulation wants to see it: a step waits.
    pub fn inline() -> BackgroundMerge {
        let mut merge = BackgroundMerge::default();
        merge.inline = true;
        merge
    }

    /// Adopts what is finished, or starts what is worth it. An error concerns merging only: the
    /// history is as it was and goes on. A full disk is tried again at a later step; after any other
    /// failure merging stays off, as the damage that caused it would be met again.
    pub fn step(&mut self, writer: &mut HistoryWriter) -> Result<MergeStep, HistoryError> {
        if let Some((thread, _)) = &self.running {
            if !thread.is_finished() {
                return Ok(MergeStep::Nothing);
            }
            self.waiting = self.finished().inspect_err(|error| self.off = !error.is_disk_full())?;
        }
        if let Some(mut merged) = self.waiting.take() {
            if let Err(error) = writer.adopt(&mut merged) {
                self.waiting = Some(merged);
                return Err(error);
            }
            return Ok(MergeStep::Adopted {
                table: merged.table(),
                parts: merged.parts(),
                rows: merged.rows(),
                bytes: merged.bytes(),
            });
        }
        let Some(job) = (if self.off { None } else { writer.plan_merge() }) else {
            return Ok(MergeStep::Nothing);
        };
        let stop = Arc::new(AtomicBool::new(false));
        if self.inline {
            let merged = job.run(&stop);
            self.waiting = merged.inspect_err(|error| self.off = !error.is_disk_full())?;
            return Ok(MergeStep::Started);
        }
        let stopped = stop.clone();
        let root = job.root.clone();
        let thread = std::thread::Builder::new().name("history-merge".into()).spawn(move || {
            priority::lower(priority::LAST);
            job.run(&stopped)
        });
        let thread = thread.map_err(HistoryError::io("start a thread that merges", &root))?;
        self.running = Some((thread, stop));
        Ok(MergeStep::Started)
    }

    /// Whether a merge is running or waits to be adopted.
    pub fn is_busy(&self) -> bool {
        self.running.is_some() || self.waiting.is_some()
    }

    fn finished(&mut self) -> Outcome {
        match self.running.take().map(|(thread, _)| thread.join()) {
            None => Ok(None),
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => {
                let error = io::Error::other("it panicked; this is a defect, report it");
                Err(HistoryError::io("merge parts of", "the history".as_ref())(error))
            }
        }
    }
}

impl Drop for BackgroundMerge {
    fn drop(&mut self) {
        if let Some((_, stop)) = &self.running {
            stop.store(true, Ordering::Relaxed);
            let _ = self.finished();
        }
    }
}
