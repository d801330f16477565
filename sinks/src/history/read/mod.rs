//! Reads a history: listing, scanning, replaying, verifying, exporting.
//!
//! A reader works from the manifest it loaded, which describes complete ticks and whose parts never
//! change, so it may run in another process while the history is being written; opening it again
//! shows what was committed since.

mod damage;
mod decisions;
mod events;
mod export;
mod file;
mod listing;
mod merge;
mod replay;
mod ticks;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use omnify_operators::model::{EventTime, Registry};

pub use decisions::{DecisionRecord, Decisions};
pub use events::EventScan;
pub use export::{ExportFormat, ExportOptions, Exported};
pub use replay::Replay;
pub use ticks::Ticks;
pub use verify::{Progress, Verification};

#[cfg(test)]
pub(crate) use file::align_with;
pub(crate) use file::{DecodeError, PartFile, dictionary, typed};

use super::manifest::{MANIFEST_FILE, Manifest, Part};
use super::table::{date_text, day_of_us};
use super::{HistoryError, HistoryMeta, Summary, Table};

/// An open history.
#[derive(Clone, Debug)]
pub struct HistoryReader {
    root: Arc<Path>,
    manifest: Arc<Manifest>,
    meta: Arc<HistoryMeta>,
}

impl HistoryReader {
    /// Opens the history in `root` as it is now.
    pub fn open(root: impl Into<PathBuf>) -> Result<HistoryReader, HistoryError> {
        let root: PathBuf = root.into();
        let manifest = Manifest::load(&root)?.ok_or_else(|| HistoryError::Description {
            path: root.join(MANIFEST_FILE),
            what: "is missing, so this folder holds no history; check the path".to_owned(),
        })?;
        let meta = HistoryMeta::load(&root)?;
        Ok(HistoryReader { root: root.into(), manifest: Arc::new(manifest), meta: Arc::new(meta) })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The parts.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Windows, levels, versions and the configuration of the run.
    pub fn meta(&self) -> &HistoryMeta {
        &self.meta
    }

    /// Totals of each table.
    pub fn summary(&self) -> Summary {
        Summary::of(&self.manifest)
    }

    /// The closed ticks in order.
    pub fn ticks(&self) -> Ticks {
        Ticks::new(self)
    }

    /// The ticks with their events and controls in order: the input of an exact replay. Entities
    /// are interned into `registry`.
    pub fn replay(&self, registry: Arc<Registry>) -> Replay {
        Replay::new(self, registry)
    }

    /// The decisions in the order in which they were made.
    pub fn decisions(&self) -> Decisions {
        Decisions::new(self)
    }

    /// All events with event times in `[from, to)`, part by part, in no particular order: what
    /// learning reads. Parts of other dates are not opened.
    pub fn scan_events(
        &self,
        registry: Arc<Registry>,
        from: EventTime,
        to: EventTime,
    ) -> EventScan {
        let (low, high) = (date_text(day_of_us(from)), date_text(day_of_us(to.saturating_sub(1))));
        let parts = self.parts(Table::Events).filter(|part| {
            // Dates of four-digit years order as text; others are never pruned.
            part.date.len() != 10
                || low.len() != 10
                || high.len() != 10
                || (low <= part.date && part.date <= high)
        });
        EventScan::new(self, parts.cloned().collect(), registry, from..to)
    }

    /// Checks every file, row and tick; `progress` is told as it goes.
    pub fn verify(&self, progress: &mut dyn FnMut(Progress)) -> Result<Verification, HistoryError> {
        verify::verify(self, progress)
    }

    fn parts(&self, table: Table) -> impl Iterator<Item = &Part> {
        self.manifest.parts.iter().filter(move |part| part.table == table)
    }
}

/// The merge under [`Replay`], for a test of what it keeps open.
#[cfg(test)]
pub(crate) fn event_merge(
    reader: &HistoryReader,
    registry: Arc<Registry>,
) -> merge::Merge<events::EventRows> {
    merge::Merge::new(reader, events::EventRows::new(registry))
}
