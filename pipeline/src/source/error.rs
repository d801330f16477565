//! What can go wrong with a source as a whole; a bad row is a dead letter instead.

use std::io;
use std::path::{Path, PathBuf};

use crate::decode::MappingError;

/// A source that cannot be read (further). Every row before it was delivered.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file or folder cannot be opened.
    #[error("cannot open {}: {source}; check the path and its permissions", path.display())]
    Open {
        /// The file or folder.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A folder without input.
    #[error("{} holds no file to read; files whose names start with `.` or `_` are skipped", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// The mapping itself is broken.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// The mapping and the columns of the file do not go together.
    #[error(transparent)]
    Column(#[from] Box<ColumnError>),
    /// The content is in a form that is not read.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do.
        message: String,
    },
    /// The file is damaged; everything before the place was delivered.
    #[error(
        "{} is damaged near byte {offset} of {length}: {detail}; all rows before it were read. Fetch the file again, or repair it, and read it anew",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where, in bytes of the (compressed) file.
        offset: u64,
        /// Its length.
        length: u64,
        /// What the decoder said.
        detail: String,
    },
}

/// A column that the mapping wants and the file cannot give.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}: the mapping {mapping} reads `{key}` from the column `{column}`, {fault}",
    path.display()
)]
pub struct ColumnError {
    /// The file.
    pub path: PathBuf,
    /// Name of the mapping.
    pub mapping: String,
    /// Key of the mapping.
    pub key: String,
    /// The column it names.
    pub column: String,
    /// What is wrong with it.
    pub fault: ColumnFault,
}

/// What is wrong with a column.
#[derive(Debug, thiserror::Error)]
pub enum ColumnFault {
    /// It is not there.
    #[error("which the file does not have{}; it has: {}", hint(nearest), shown(have))]
    Absent {
        /// The nearest column of the file.
        nearest: Option<String>,
        /// The columns of the file.
        have: Vec<String>,
    },
    /// No field can be read from its type.
    #[error("whose type {0} is not readable; use a column of text, numbers or times")]
    Type(String),
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default()
}

fn shown(columns: &[String]) -> String {
    const SHOWN: usize = 50;
    let mut text = columns.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if columns.len() > SHOWN {
        text.push_str(&format!(" and {} more", columns.len() - SHOWN));
    }
    text
}

/// The error of a wanted column that is not among those that a file has.
pub(super) fn no_column(
    path: &Path,
    mapping: &str,
    key: &str,
    wanted: &str,
    have: Vec<String>,
) -> SourceError {
    let similarity =
        |name: &str| strsim::jaro_winkler(&name.to_lowercase(), &wanted.to_lowercase());
    let nearest = have
        .iter()
        .max_by(|left, right| similarity(left).total_cmp(&similarity(right)))
        .filter(|name| similarity(name) >= 0.7)
        .cloned();
    let fault = ColumnFault::Absent { nearest, have };
    column_error(path, mapping, key, wanted, fault)
}

/// The error of a column that does not go with its mapping.
pub(super) fn column_error(
    path: &Path,
    mapping: &str,
    key: &str,
    column: &str,
    fault: ColumnFault,
) -> SourceError {
    SourceError::Column(Box::new(ColumnError {
        path: path.to_owned(),
        mapping: mapping.to_owned(),
        key: key.to_owned(),
        column: column.to_owned(),
        fault,
    }))
}
