//! The files of a folder as one source, in the order of their names.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::SourceError;
use super::{ReadOptions, Source, open_file};
use crate::decode::{Batch, Door, Mapping};

pub(super) struct Folder {
    waiting: VecDeque<(PathBuf, u64)>,
    current: Option<(Box<dyn Source>, u64)>,
    mapping: Mapping,
    door: Arc<Door>,
    options: ReadOptions,
    done: u64,
    total: u64,
}

pub(super) fn open(
    folder: &Path,
    mapping: &Mapping,
    door: &Arc<Door>,
    options: ReadOptions,
) -> Result<Folder, SourceError> {
    let failed = |source| SourceError::Open { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Follows links: a folder of links to files is common.
        let metadata = std::fs::metadata(entry.path()).map_err(failed)?;
        if metadata.is_file() && !name.starts_with(['.', '_']) {
            files.push((entry.path(), metadata.len()));
        }
    }
    if files.is_empty() {
        return Err(SourceError::Empty { path: folder.to_owned() });
    }
    files.sort();
    Ok(Folder {
        total: files.iter().map(|(_, length)| length).sum(),
        waiting: files.into(),
        current: None,
        mapping: mapping.clone(),
        door: door.clone(),
        options,
        done: 0,
    })
}

impl Source for Folder {
    fn next_batch(&mut self) -> Result<Option<Batch>, SourceError> {
        loop {
            if let Some((source, length)) = &mut self.current {
                if let Some(batch) = source.next_batch()? {
                    return Ok(Some(batch));
                }
                self.done += *length;
                self.current = None;
            }
            let Some((path, length)) = self.waiting.pop_front() else { return Ok(None) };
            let source = open_file(&path, &self.mapping, &self.door, self.options)?;
            self.current = Some((source, length));
        }
    }

    fn progress(&self) -> (u64, u64) {
        let current = self.current.as_ref().map_or(0, |(source, _)| source.progress().0);
        (self.done + current, self.total)
    }
}
