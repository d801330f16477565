//! What can go wrong with the journal, told with the place and the remedy.

use std::io;
use std::path::{Path, PathBuf};

use omnify_operators::model::Tick;

/// A failure of the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused. What was appended stays buffered: commit again.
    #[error("journal: cannot {doing} `{}`: {source}{}", path.display(), remedy(source))]
    Io {
        /// The attempt, as a verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes that were on disk changed.
    #[error(
        "journal: `{}` is damaged at byte {offset}: {what}; restore this file from the archive or a \
         backup, or start from a newer snapshot and move the journal away (what it holds is then lost)",
        path.display()
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where the damage begins.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A segment that must lie between two others is not there.
    #[error(
        "journal: a segment is missing before `{}`, which continues `{previous}`; restore it from \
         the archive or a backup",
        path.display()
    )]
    Missing {
        /// The segment that was found.
        path: PathBuf,
        /// The one that it continues.
        previous: String,
    },
    /// Written by a program of a later version.
    #[error("journal: `{}` was written by a later version ({what}); use that version", path.display())]
    Newer {
        /// The segment.
        path: PathBuf,
        /// What is not known here.
        what: String,
    },
    /// Another process holds it.
    #[error(
        "journal: `{}` is in use by another process; stop it, or give this one another state folder",
        path.display()
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A tick that is not above the last one.
    #[error(
        "journal: tick {tick} came after tick {last}; this is a defect of the caller, report it"
    )]
    TickOrder {
        /// The tick.
        tick: Tick,
        /// The last tick.
        last: Tick,
    },
    /// A tick that cannot be written as one frame.
    #[error("journal: tick {tick} takes {bytes} bytes, more than {max}; bound the rows of a tick")]
    TooLarge {
        /// The tick.
        tick: Tick,
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

impl JournalError {
    /// Wraps an IO error; to be used in `map_err`.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
        let path = path.to_owned();
        move |source| JournalError::Io { doing, path, source }
    }

    /// True when the disk is full or a quota is used up: commit again once there is room.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, JournalError::Io { source, .. } if full(source))
    }
}

fn full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn remedy(error: &io::Error) -> &'static str {
    if full(error) {
        return "; free space on this disk: what is not written yet is kept";
    }
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; give this user the right to write there, or set another state folder"
        }
        _ => "",
    }
}
