//! What can go wrong with snapshots, told with the place and the remedy.

use std::io;
use std::path::{Path, PathBuf};

use omnify_operators::model::Tick;

/// A failure of the snapshot store.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file system refused.
    #[error("snapshot: cannot {doing} `{}`: {source}; check space and rights there", path.display())]
    Io {
        /// The attempt, as a verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error(
        "snapshot: `{}` is damaged: {what}; the one before it serves as well, or restore it from the \
         archive",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Written by a program of a later version.
    #[error("snapshot: `{}` has format {format}, this version knows {known}; use the later version", path.display())]
    Newer {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// The format known here.
        known: u32,
    },
    /// There is one of this tick.
    #[error(
        "snapshot: there is one of tick {tick} already; this is a defect of the caller, report it"
    )]
    Exists {
        /// The tick.
        tick: Tick,
    },
    /// A chunk that cannot be named so.
    #[error("snapshot: `{name}` {what}")]
    Chunk {
        /// The chunk.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl SnapshotError {
    /// Wraps an IO error; to be used in `map_err`.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
        let path = path.to_owned();
        move |source| SnapshotError::Io { doing, path, source }
    }

    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> SnapshotError {
        SnapshotError::Damaged { path: path.to_owned(), what: what.into() }
    }

    /// True when it may be gone at the next attempt.
    pub fn is_io(&self) -> bool {
        matches!(self, SnapshotError::Io { .. })
    }
}
