//! Compaction of a history that no engine holds: everything at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::super::catalog::{Catalog, lock};
use super::super::manifest::{MANIFEST_FILE, Manifest};
use super::super::writer::WriterOptions;
use super::super::{HistoryError, HistoryMeta, Summary};
use super::job::{MergeJob, Merged};
use crate::disk::{Disk, FileSystem};

/// Merged parts are listed together, as the manifest is written anew each time: after so many.
const LISTED_TOGETHER: usize = 64;

/// How far a compaction is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compaction {
    /// Bytes read so far.
    pub bytes: u64,
    /// Bytes to be read, as far as it is known: merging may make more worth merging.
    pub bytes_total: u64,
}

/// What a compaction did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Compacted {
    /// The history before.
    pub before: Summary,
    /// The history after.
    pub after: Summary,
    /// Merges.
    pub merges: u64,
    /// Rows rewritten.
    pub rows_rewritten: u64,
}

/// Merges everything that fits into one file in the history at `root`, which no engine may hold;
/// removes what is replaced at the end. `options` must be those of the history's configuration;
/// `progress` is told as it goes. Stopped at any point it leaves a whole history.
pub fn compact(
    root: impl Into<PathBuf>,
    options: &WriterOptions,
    progress: &mut dyn FnMut(Compaction),
) -> Result<Compacted, HistoryError> {
    compact_on(root.into(), options, Arc::new(FileSystem), progress)
}

pub(crate) fn compact_on(
    root: PathBuf,
    options: &WriterOptions,
    disk: Arc<dyn Disk>,
    progress: &mut dyn FnMut(Compaction),
) -> Result<Compacted, HistoryError> {
    let missing = || HistoryError::Description {
        path: root.join(MANIFEST_FILE),
        what: "is missing, so this folder holds no history; check the path".to_owned(),
    };
    // Looked at before locking: a wrong path gets no lock file.
    Manifest::load(&root)?.ok_or_else(missing)?;
    let lock = lock(&root)?;
    let manifest = Manifest::load(&root)?.ok_or_else(missing)?;
    let meta = Arc::new(HistoryMeta::load(&root)?);
    let mut done = Compacted { before: Summary::of(&manifest), ..Compacted::default() };
    let mut catalog = Catalog::new(root, manifest, disk, options, lock)?;
    let never = AtomicBool::new(false);
    let mut at = Compaction::default();
    loop {
        let jobs = MergeJob::all(&mut catalog, &meta, options);
        if jobs.is_empty() {
            break;
        }
        at.bytes_total += jobs.iter().map(MergeJob::bytes).sum::<u64>();
        let mut merged: Vec<Merged> = Vec::new();
        for job in jobs {
            at.bytes += job.bytes();
            done.merges += 1;
            done.rows_rewritten += job.rows();
            merged.extend(job.run(&never)?);
            if merged.len() == LISTED_TOGETHER {
                catalog.adopt(&mut merged)?;
                merged.clear();
            }
            progress(at);
        }
        catalog.adopt(&mut merged)?;
    }
    catalog.remove_retired(0);
    done.after = Summary::of(&catalog.manifest);
    Ok(done)
}
