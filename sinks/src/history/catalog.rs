//! What writing and compaction share: the lock of the folder, the manifest, the names of files and
//! the files that were replaced.
//!
//! # Contract
//! One catalog at a time in all processes: the folder is locked. A name is never used twice, not
//! even when the part that had it was merged into another, so a copy elsewhere can trust names. A
//! part leaves the disk only after the manifest that lists its replacement is there; until then it
//! is kept under a hidden name for readers of the manifest before.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use omnify_operators::model::Tick;
use rustix::fs::{FlockOperation, flock};

use super::HistoryError;
use super::buffer::Pending;
use super::compact::Merged;
use super::leftovers::remove_leftovers;
use super::manifest::{MANIFEST_FILE, Manifest, Merges, Part, totals};
use super::part::replace_file;
use super::table::{part_name, replaced_path};
use super::writer::WriterOptions;
use crate::disk::Disk;

/// Name of the file that is locked while a process writes.
const LOCK_FILE: &str = "lock";
/// How long files that were replaced stay for readers that opened the manifest before, in ms of
/// engine time.
pub(crate) const GRACE_MS: u64 = 3_600_000;

/// See the module.
pub(crate) struct Catalog {
    pub(crate) root: PathBuf,
    pub(crate) manifest: Manifest,
    pub(crate) disk: Arc<dyn Disk>,
    durable: bool,
    /// How often a range was used, by path without number: the next number before any merge.
    used: HashMap<String, u64>,
    /// Above every number in use.
    next_number: u64,
    /// Names are told apart by that number alone.
    numbered: bool,
    /// Replaced files, with the last tick when they were.
    retired: Vec<(Tick, PathBuf)>,
    _lock: File,
}

/// Locks the folder of a history for writing.
pub(crate) fn lock(root: &Path) -> Result<File, HistoryError> {
    let path = root.join(LOCK_FILE);
    let file = File::create(&path).map_err(HistoryError::io("lock", &path))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| HistoryError::Locked { path: root.to_owned() })?;
    Ok(file)
}

impl Catalog {
    /// Takes over a locked folder and removes what a crash left in it.
    pub(crate) fn new(
        root: PathBuf,
        manifest: Manifest,
        disk: Arc<dyn Disk>,
        options: &WriterOptions,
        lock: File,
    ) -> Result<Catalog, HistoryError> {
        remove_leftovers(&*disk, &root, &manifest)?;
        let (durable, names_from) = (options.durable, options.names_from);
        let mut used: HashMap<String, u64> = HashMap::new();
        for part in &manifest.parts {
            *used.entry(plain_name(part.folder(), part.first_tick, part.last_tick)).or_default() +=
                1;
        }
        let highest = used.values().copied().max().unwrap_or(0);
        let next_number = manifest.merges.as_ref().map_or(highest, |merges| merges.next_number);
        // Once parts have been merged the list no longer tells which names there were.
        let numbered = manifest.merges.is_some() || names_from > 0;
        Ok(Catalog {
            root,
            manifest,
            disk,
            durable,
            used,
            next_number: next_number.max(names_from),
            numbered,
            retired: Vec::new(),
            _lock: lock,
        })
    }

    /// The name of the next part of a range in `folder`; ask again until [`Catalog::took_name`].
    pub(crate) fn name(&self, folder: &str, first: Tick, last: Tick) -> String {
        let number = match self.numbered {
            false => self.used.get(&plain_name(folder, first, last)).copied().unwrap_or(0),
            true => self.next_number,
        };
        part_name(first, last, number)
    }

    /// Marks the name that was given last for this range as used.
    pub(crate) fn took_name(&mut self, folder: &str, first: Tick, last: Tick) {
        if self.numbered {
            self.next_number += 1;
            return;
        }
        let used = self.used.entry(plain_name(folder, first, last)).or_default();
        *used += 1;
        self.next_number = self.next_number.max(*used);
    }

    /// Renames what is pending and lists it, with the state of the run after it.
    pub(crate) fn commit(
        &mut self,
        pending: &mut [Pending],
        last_tick: Option<Tick>,
        digest: String,
    ) -> Result<(), HistoryError> {
        let mut folders = BTreeSet::new();
        for pending in pending.iter_mut() {
            let file = &pending.part.file;
            self.rename(&pending.temporary, file, &mut pending.renamed, &mut folders)?;
        }
        self.sync(&folders)?;
        let mut manifest = self.manifest.clone();
        manifest.last_tick = last_tick;
        manifest.digest = digest;
        if let Some(merges) = &mut manifest.merges {
            merges.next_number = self.next_number;
            for pending in pending.iter() {
                *merges.rows.entry(pending.part.table).or_default() += pending.part.rows;
            }
        }
        manifest.parts.extend(pending.iter().map(|pending| pending.part.clone()));
        self.replace(manifest)?;
        self.remove_retired(GRACE_MS);
        Ok(())
    }

    /// Lists merged parts in place of those they replace, all at once. An error leaves the history
    /// as it was, and the call can be repeated.
    pub(crate) fn adopt(&mut self, merged: &mut [Merged]) -> Result<(), HistoryError> {
        if merged.is_empty() {
            return Ok(());
        }
        let mut replaced: HashMap<&str, usize> = HashMap::new();
        for (at, merge) in merged.iter().enumerate() {
            replaced.extend(merge.replaced.iter().map(|part| (part.file.as_str(), at)));
        }
        let mut added: Vec<Option<Part>> = merged.iter().map(|m| Some(m.part.clone())).collect();
        let mut manifest = self.manifest.clone();
        let mut found = 0;
        manifest.parts = Vec::with_capacity(self.manifest.parts.len());
        for part in &self.manifest.parts {
            match replaced.get(part.file.as_str()) {
                None => manifest.parts.push(part.clone()),
                Some(at) => {
                    found += 1;
                    // The first of a run gives its place to the merged part.
                    manifest.parts.extend(added[*at].take());
                }
            }
        }
        if let Some(merge) = merged.first().filter(|_| found != replaced.len()) {
            let what = "a merge of parts that are not listed; this is a defect of the caller";
            return Err(HistoryError::Value { table: merge.part.table, what: what.to_owned() });
        }
        let rows = match &self.manifest.merges {
            Some(merges) => merges.rows.clone(),
            None => totals(&self.manifest.parts),
        };
        manifest.merges = Some(Merges { next_number: self.next_number, rows });
        let mut folders = BTreeSet::new();
        for merge in merged.iter_mut() {
            let file = &merge.part.file;
            self.rename(&merge.temporary, file, &mut merge.renamed, &mut folders)?;
        }
        self.sync(&folders)?;
        self.replace(manifest)?;
        self.numbered = true;
        let now = self.manifest.last_tick.unwrap_or(0);
        for part in merged.iter().flat_map(|merge| &merge.replaced) {
            let path = self.root.join(&part.file);
            let hidden = replaced_path(&path);
            // Out of sight of whoever lists the folder; where that fails it stays where it is.
            let kept = if self.disk.rename(&path, &hidden).is_ok() { hidden } else { path };
            self.retired.push((now, kept));
        }
        self.remove_retired(GRACE_MS);
        Ok(())
    }

    /// Removes replaced files whose time is over. What cannot be removed stays until the next
    /// opening of the history.
    pub(crate) fn remove_retired(&mut self, grace_ms: u64) {
        let now = self.manifest.last_tick.unwrap_or(0);
        let disk = &self.disk;
        self.retired.retain(|(since, path)| {
            let over = since.saturating_add(grace_ms) <= now;
            if over {
                let _ = disk.remove(path);
            }
            !over
        });
    }

    /// What the system does when a process dies.
    #[cfg(test)]
    pub(crate) fn release_lock(&self) {
        flock(&self._lock, FlockOperation::Unlock).unwrap();
    }

    fn rename(
        &self,
        temporary: &Path,
        file: &str,
        renamed: &mut bool,
        folders: &mut BTreeSet<PathBuf>,
    ) -> Result<(), HistoryError> {
        let path = self.root.join(file);
        if !*renamed {
            self.disk.rename(temporary, &path).map_err(HistoryError::io("rename", &path))?;
            *renamed = true;
        }
        // The part's folder and those above it may be new.
        let above = path.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.root));
        folders.extend(above.map(Path::to_owned));
        Ok(())
    }

    fn sync(&self, folders: &BTreeSet<PathBuf>) -> Result<(), HistoryError> {
        if !self.durable {
            return Ok(());
        }
        for folder in folders {
            self.disk.sync_folder(folder).map_err(HistoryError::io("make durable", folder))?;
        }
        Ok(())
    }

    /// Replaces the manifest, on the disk and here.
    fn replace(&mut self, manifest: Manifest) -> Result<(), HistoryError> {
        write_manifest(&*self.disk, &self.root, &manifest, self.durable)?;
        self.manifest = manifest;
        Ok(())
    }
}

fn plain_name(folder: &str, first: Tick, last: Tick) -> String {
    format!("{folder}/{}", part_name(first, last, 0))
}

/// Writes the manifest of `root`.
pub(crate) fn write_manifest(
    disk: &dyn Disk,
    root: &Path,
    manifest: &Manifest,
    durable: bool,
) -> Result<(), HistoryError> {
    let path = root.join(MANIFEST_FILE);
    let bytes = manifest.to_bytes().map_err(|e| HistoryError::Description {
        path: path.clone(),
        what: format!("cannot be written: {e}"),
    })?;
    replace_file(disk, &path, &bytes, durable)
}
