//! Lists, checks, reads and prunes snapshots.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use omnify_operators::model::Tick;
use serde::Serialize;

use super::SnapshotError;
use super::manifest::{Chunk, MANIFEST_FILE, Manifest, ManifestFile};
use crate::disk::{Disk, FileSystem};

/// Intact snapshots that are always kept: one may turn out to be damaged.
pub const KEPT_MIN: usize = 2;

/// The folder of the snapshot of `tick`.
pub(super) fn folder(root: &Path, tick: Tick) -> PathBuf {
    root.join(format!("{tick:020}"))
}

/// The snapshots in one folder.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    disk: Arc<dyn Disk>,
    root: PathBuf,
}

/// A snapshot that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DamagedSnapshot {
    /// Its tick.
    pub tick: Tick,
    /// What is wrong with it.
    pub reason: String,
}

/// The answer of [`SnapshotStore::newest_valid`].
#[derive(Debug, Default)]
pub struct Newest {
    /// The newest snapshot that is intact.
    pub snapshot: Option<Snapshot>,
    /// Newer ones that are not, newest first.
    pub damaged: Vec<DamagedSnapshot>,
}

/// The answer of [`SnapshotStore::keep`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Ticks of what was removed, oldest first.
    pub removed: Vec<Tick>,
    /// The oldest one that is left: the journal keeps everything above it.
    pub oldest_kept: Option<Tick>,
}

impl SnapshotStore {
    /// Opens or creates the store at `root`, and removes what was never committed. No snapshot may
    /// be in the making.
    pub fn open(root: &Path) -> Result<SnapshotStore, SnapshotError> {
        SnapshotStore::open_on(Arc::new(FileSystem), root)
    }

    /// The same on another disk.
    pub fn open_on(disk: Arc<dyn Disk>, root: &Path) -> Result<SnapshotStore, SnapshotError> {
        fs::create_dir_all(root).map_err(SnapshotError::io("create", root))?;
        let store = SnapshotStore { disk, root: root.to_owned() };
        for (tick, complete) in store.folders()? {
            if !complete {
                let dir = folder(root, tick);
                store.disk.remove_folder(&dir).map_err(SnapshotError::io("remove", &dir))?;
            }
        }
        store.sync()?;
        Ok(store)
    }

    /// The store at `root`, to be read only: a snapshot may be in the making.
    pub fn at(root: &Path) -> SnapshotStore {
        SnapshotStore { disk: Arc::new(FileSystem), root: root.to_owned() }
    }

    fn sync(&self) -> Result<(), SnapshotError> {
        self.disk.sync_folder(&self.root).map_err(SnapshotError::io("make durable", &self.root))
    }

    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Ticks of the committed snapshots, oldest first. Nothing is checked.
    pub fn list(&self) -> Result<Vec<Tick>, SnapshotError> {
        let folders = self.folders()?.into_iter();
        Ok(folders.filter_map(|(tick, complete)| complete.then_some(tick)).collect())
    }

    /// Every folder by its tick, and whether it has a manifest, oldest first.
    fn folders(&self) -> Result<Vec<(Tick, bool)>, SnapshotError> {
        let io = |error| SnapshotError::io("list", &self.root)(error);
        let mut folders = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            let tick = name.to_str().filter(|name| name.len() == 20).and_then(|n| n.parse().ok());
            if let Some(tick) = tick {
                folders.push((tick, entry.path().join(MANIFEST_FILE).exists()));
            }
        }
        folders.sort_unstable();
        Ok(folders)
    }

    /// The snapshot of `tick`, as far as its manifest tells.
    pub fn get(&self, tick: Tick) -> Result<Snapshot, SnapshotError> {
        let dir = folder(&self.root, tick);
        let ManifestFile { manifest, chunks, .. } = ManifestFile::read(&dir)?;
        if manifest.tick != tick {
            let what = format!("it is of tick {}", manifest.tick);
            return Err(SnapshotError::damaged(&dir.join(MANIFEST_FILE), what));
        }
        Ok(Snapshot { dir, manifest, chunks })
    }

    /// The newest snapshot of which every byte is as it was written.
    pub fn newest_valid(&self) -> Result<Newest, SnapshotError> {
        let mut newest = Newest::default();
        for tick in self.list()?.into_iter().rev() {
            let checked = self.get(tick).and_then(|snapshot| {
                snapshot.verify()?;
                Ok(snapshot)
            });
            match checked {
                Ok(snapshot) => {
                    newest.snapshot = Some(snapshot);
                    break;
                }
                Err(error) => {
                    newest.damaged.push(DamagedSnapshot { tick, reason: error.to_string() });
                }
            }
        }
        Ok(newest)
    }

    /// Removes all but the newest `count` (at least [`KEPT_MIN`]) that look intact: manifest sound,
    /// files there with their sizes. One that does not is removed once it is older than those. The one
    /// that is `pinned` stays.
    pub fn keep(&self, count: usize, pinned: Option<Tick>) -> Result<Pruned, SnapshotError> {
        let mut pruned = Pruned::default();
        let mut intact = 0;
        for tick in self.list()?.into_iter().rev() {
            if intact < count.max(KEPT_MIN) {
                let looks_intact = self.get(tick).is_ok_and(|snapshot| snapshot.has_files());
                intact += usize::from(looks_intact);
                if looks_intact {
                    pruned.oldest_kept = Some(tick);
                }
                continue;
            }
            if Some(tick) == pinned {
                continue;
            }
            let dir = folder(&self.root, tick);
            // Without its manifest it is no snapshot, whatever happens to the rest.
            self.disk
                .remove(&dir.join(MANIFEST_FILE))
                .and_then(|()| self.disk.remove_folder(&dir))
                .map_err(SnapshotError::io("remove", &dir))?;
            pruned.removed.insert(0, tick);
        }
        if !pruned.removed.is_empty() {
            self.sync()?;
        }
        Ok(pruned)
    }
}

/// A committed snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot {
    dir: PathBuf,
    manifest: Manifest,
    chunks: Vec<Chunk>,
}

impl Snapshot {
    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it is of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its chunks, in the order in which they were written.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    pub(super) fn find(&self, name: &str) -> Result<&Chunk, SnapshotError> {
        self.chunks.iter().find(|chunk| chunk.name == name).ok_or_else(|| SnapshotError::Chunk {
            name: name.to_owned(),
            what: "is not in this snapshot",
        })
    }

    fn has_files(&self) -> bool {
        self.chunks.iter().all(|chunk| {
            let file = self.dir.join(chunk.file());
            file.metadata().is_ok_and(|metadata| metadata.len() == chunk.file_bytes)
        })
    }

    /// Reads every chunk's file and compares it with the manifest.
    pub fn verify(&self) -> Result<(), SnapshotError> {
        for chunk in &self.chunks {
            let path = self.dir.join(chunk.file());
            let mut hasher = blake3::Hasher::new();
            let missing = |error: io::Error| match error.kind() {
                io::ErrorKind::NotFound => SnapshotError::damaged(&path, "it is missing"),
                _ => SnapshotError::io("read", &path)(error),
            };
            let mut file = File::open(&path).map_err(missing)?;
            let bytes = io::copy(&mut file, &mut hasher).map_err(missing)?;
            if bytes != chunk.file_bytes {
                let what = format!("{bytes} bytes are there, {} were written", chunk.file_bytes);
                return Err(SnapshotError::damaged(&path, what));
            }
            if hasher.finalize().to_hex().as_str() != chunk.blake3 {
                return Err(SnapshotError::damaged(&path, "it fails its checksum"));
            }
        }
        Ok(())
    }

    /// The content of chunk `name`.
    pub fn chunk(&self, name: &str) -> Result<Vec<u8>, SnapshotError> {
        let length = self.find(name)?.length;
        let path = self.dir.join(super::manifest::chunk_file(name));
        let mut content = Vec::new();
        // One byte more than there should be, to notice it.
        let count = self.reader(name)?.take(length.saturating_add(1)).read_to_end(&mut content);
        match count {
            Ok(count) if count as u64 == length => Ok(content),
            Ok(_) => Err(SnapshotError::damaged(&path, "its length is not what was written")),
            Err(error) => Err(SnapshotError::io("read", &path)(error)),
        }
    }

    /// Reads chunk `name` bit by bit. Its content was checked by [`SnapshotStore::newest_valid`].
    pub fn reader(&self, name: &str) -> Result<impl Read + use<>, SnapshotError> {
        let path = self.dir.join(self.find(name)?.file());
        let open = || zstd::Decoder::new(File::open(&path)?);
        open().map_err(SnapshotError::io("read", &path))
    }
}
