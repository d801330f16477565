//! What a crash or a merge leaves behind, and its removal at the next opening.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::table::REPLACED;
use super::{HistoryError, Manifest};
use crate::disk::Disk;

/// Removes parts outside the manifest, which a crash left or a merge replaced, and temporary files.
pub(crate) fn remove_leftovers(
    disk: &dyn Disk,
    root: &Path,
    manifest: &Manifest,
) -> Result<(), HistoryError> {
    let listed: BTreeSet<PathBuf> =
        manifest.parts.iter().map(|part| root.join(&part.file)).collect();
    let mut folders: Vec<PathBuf> = Vec::new();
    for entry in read_folder(root)? {
        if entry.is_dir() && name_of(&entry).starts_with("table=") {
            folders.push(entry);
        } else if name_of(&entry).ends_with(".tmp") {
            disk.remove(&entry).map_err(HistoryError::io("remove", &entry))?;
        }
    }
    while let Some(folder) = folders.pop() {
        for entry in read_folder(&folder)? {
            if entry.is_dir() {
                folders.push(entry);
            } else if name_of(&entry).ends_with(".parquet.tmp")
                || name_of(&entry).ends_with(REPLACED)
                || (name_of(&entry).ends_with(".parquet") && !listed.contains(&entry))
            {
                disk.remove(&entry).map_err(HistoryError::io("remove", &entry))?;
            }
        }
    }
    Ok(())
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn read_folder(folder: &Path) -> Result<Vec<PathBuf>, HistoryError> {
    fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect())
        .map_err(HistoryError::io("read", folder))
}
