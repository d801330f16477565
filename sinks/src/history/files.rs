//! The files of a history as a whole, for whoever copies it elsewhere.

use std::fs;
use std::path::{Path, PathBuf};

use super::manifest::{MANIFEST_FILE, Manifest, Part};
use super::meta::{CONFIG_FILE, RUN_FILE};
use super::{HistoryError, START_FOLDER};

/// What makes up a history, as of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFiles {
    /// The manifest's bytes: copied last, they make the copy count.
    pub manifest: Vec<u8>,
    /// Files that were written once at the beginning, relative to the root.
    pub others: Vec<String>,
    path: PathBuf,
}

impl HistoryFiles {
    /// Of the history in `root`, which may be written meanwhile.
    pub fn of(root: &Path) -> Result<HistoryFiles, HistoryError> {
        let path = root.join(MANIFEST_FILE);
        let manifest = fs::read(&path).map_err(HistoryError::io("read", &path))?;
        let mut others = vec![RUN_FILE.to_owned(), CONFIG_FILE.to_owned()];
        let mut folders = vec![START_FOLDER.to_owned()];
        while let Some(folder) = folders.pop() {
            let at = root.join(&folder);
            let entries = match fs::read_dir(&at) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                entries => entries.map_err(HistoryError::io("read", &at))?,
            };
            for entry in entries {
                let entry = entry.map_err(HistoryError::io("read", &at))?;
                let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
                match entry.path().is_dir() {
                    true => folders.push(name),
                    false => others.push(name),
                }
            }
        }
        others.sort_unstable();
        Ok(HistoryFiles { manifest, others, path })
    }

    /// The parts that the manifest lists.
    pub fn parts(&self) -> Result<Vec<Part>, HistoryError> {
        Manifest::parse(&self.manifest, &self.path).map(|manifest| manifest.parts)
    }
}
