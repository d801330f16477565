//! What can go wrong with a history, told with the place and the remedy.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use omnify_operators::model::{EntityKey, Tick};
use parquet::errors::ParquetError;

use super::Table;

/// A failure of the history. Writing may be retried after every one of them: rows that were
/// accepted stay buffered until they are safely in a file.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file system refused.
    #[error("history: cannot {doing} `{}`: {source}{}", path.display(), remedy(source))]
    Io {
        /// The attempt, as a verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A part cannot be encoded or decoded.
    #[error("history: `{}` is not a readable part: {what}; restore it from a copy, or find the damage with `omnify history verify`", path.display())]
    Part {
        /// The part.
        path: PathBuf,
        /// What the Parquet library said.
        what: String,
    },
    /// A file that describes the history is missing or damaged.
    #[error("history: `{}` {what}", path.display())]
    Description {
        /// `manifest.json`, `run.json` or `config.toml`.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// The folder already holds a history.
    #[error("history: `{}` already holds a history; continue it, or choose an empty folder", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The folder of an export holds something.
    #[error("history: `{}` is not empty; name a new folder", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// Another process writes it.
    #[error("history: `{}` is being written by another process; stop it first, or name another folder", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A part went away because a merge replaced it.
    #[error("history: `{}` was merged into a larger part while it was being read; start again: the rows are all there", path.display())]
    Replaced {
        /// The part.
        path: PathBuf,
    },
    /// The history was written with another configuration, so that one replay could not reproduce it.
    #[error("history: `{}` was written with another {what}; restore it, or start a new history folder", path.display())]
    OtherRun {
        /// The folder.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// Rows of a tick that is closed already.
    #[error(
        "history: rows of tick {tick} came after tick {last} was closed; this is a defect of the caller, report it"
    )]
    TickOrder {
        /// The tick of the rows.
        tick: Tick,
        /// The last closed tick.
        last: Tick,
    },
    /// The end of the run inside a tick.
    #[error(
        "history: the run ended inside a tick that was not closed; this is a defect of the caller, report it"
    )]
    OpenTick,
    /// A value cannot be stored.
    #[error("history: table {table}: {what}")]
    Value {
        /// The table.
        table: Table,
        /// What is wrong with it.
        what: String,
    },
    /// The content is not what was written.
    #[error("history: {0}")]
    Difference(Box<Difference>),
}

/// The first place where a history is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// The first tick that cannot be trusted, if the damage allows telling.
    pub tick: Option<Tick>,
    /// The entity of the first row that cannot be trusted, if it can be told.
    pub entity: Option<EntityKey>,
    /// The file, relative to the root of the history.
    pub file: String,
    /// What differs.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "first difference")?;
        if let Some(tick) = self.tick {
            write!(f, " at tick {tick}")?;
        }
        if let Some(entity) = &self.entity {
            write!(f, ", entity {entity}")?;
        }
        write!(f, ", file `{}`: {}", self.file, self.what)
    }
}

impl From<Difference> for HistoryError {
    fn from(difference: Difference) -> HistoryError {
        HistoryError::Difference(Box::new(difference))
    }
}

impl HistoryError {
    /// Wraps an IO error; to be used in `map_err`.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HistoryError {
        let path = path.to_owned();
        move |source| HistoryError::Io { doing, path, source }
    }

    /// Wraps a Parquet error, taking an IO error out of it where there is one.
    pub(crate) fn parquet(doing: &'static str, path: &Path, error: ParquetError) -> HistoryError {
        let path = path.to_owned();
        match error {
            ParquetError::External(inner) => match inner.downcast::<io::Error>() {
                Ok(source) => HistoryError::Io { doing, path, source: *source },
                Err(other) => HistoryError::Part { path, what: other.to_string() },
            },
            other => HistoryError::Part { path, what: other.to_string() },
        }
    }

    /// True when the disk is full or a quota is used up: retry once there is room.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, HistoryError::Io { source, .. } if full(source))
    }
}

fn full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn remedy(error: &io::Error) -> &'static str {
    if full(error) {
        return "; free space on this disk: accepted rows are kept and written at the next attempt";
    }
    match error.kind() {
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; give this user the right to write there, or set another history folder"
        }
        _ => "",
    }
}
