//! Writes a snapshot.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use omnify_operators::model::Tick;

use super::SnapshotError;
use super::manifest::{Chunk, FORMAT, MANIFEST_FILE, Manifest, ManifestFile, chunk_file};
use super::store::{Snapshot, SnapshotStore, folder};
use crate::disk::{Disk, Output};

const ZSTD_LEVEL: i32 = 1;
/// Longest name of a chunk.
const NAME_BYTES_MAX: usize = 100;

/// A snapshot being written. Dropped before [`SnapshotWriter::commit`] it never was one.
#[derive(Debug)]
pub struct SnapshotWriter {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    dir: PathBuf,
    tick: Tick,
    chunks: Vec<Chunk>,
}

/// A snapshot that was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its tick.
    pub tick: Tick,
    /// Bytes of its files.
    pub bytes: u64,
    /// Number of chunks.
    pub chunks: usize,
}

impl SnapshotWriter {
    /// Begins the snapshot of `tick` in `store`.
    pub fn begin(store: &SnapshotStore, tick: Tick) -> Result<SnapshotWriter, SnapshotError> {
        let (disk, root) = (store.disk().clone(), store.root());
        let dir = folder(root, tick);
        if dir.join(MANIFEST_FILE).exists() {
            return Err(SnapshotError::Exists { tick });
        }
        if dir.exists() {
            disk.remove_folder(&dir).map_err(SnapshotError::io("remove", &dir))?;
        }
        fs::create_dir_all(&dir).map_err(SnapshotError::io("create", &dir))?;
        Ok(SnapshotWriter { disk, root: root.to_owned(), dir, tick, chunks: Vec::new() })
    }

    /// Writes a chunk as a whole.
    pub fn chunk(&mut self, name: &str, content: &[u8]) -> Result<(), SnapshotError> {
        let mut chunk = self.stream(name)?;
        chunk.write_all(content).map_err(SnapshotError::io("write", &chunk.path.clone()))?;
        chunk.finish()
    }

    /// Begins a chunk that is written bit by bit; it counts once [`ChunkWriter::finish`] returned.
    pub fn stream(&mut self, name: &str) -> Result<ChunkWriter<'_>, SnapshotError> {
        self.check_name(name)?;
        let path = self.dir.join(chunk_file(name));
        let file = self.disk.create(&path).map_err(SnapshotError::io("create", &path))?;
        let output = Hashing { file, hasher: blake3::Hasher::new(), bytes: 0 };
        let encoder =
            zstd::Encoder::new(output, ZSTD_LEVEL).map_err(SnapshotError::io("compress", &path))?;
        Ok(ChunkWriter {
            path,
            name: name.to_owned(),
            encoder,
            length: 0,
            chunks: &mut self.chunks,
        })
    }

    /// Takes chunk `name` over from an earlier snapshot, without copying where the disk allows: for
    /// content that the caller knows has not changed. The two then share damage as well, so write it
    /// anew from time to time.
    pub fn reuse(&mut self, name: &str, from: &Snapshot) -> Result<(), SnapshotError> {
        self.check_name(name)?;
        let chunk = from.find(name)?.clone();
        let (source, path) = (from.dir().join(chunk.file()), self.dir.join(chunk.file()));
        fs::hard_link(&source, &path)
            .or_else(|_| {
                fs::copy(&source, &path)?;
                File::open(&path)?.sync_all()
            })
            .map_err(SnapshotError::io("link", &path))?;
        self.chunks.push(chunk);
        Ok(())
    }

    fn check_name(&self, name: &str) -> Result<(), SnapshotError> {
        let refused = |what| Err(SnapshotError::Chunk { name: name.to_owned(), what });
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
            return refused("cannot name a chunk: 1 to 100 of A-Z, a-z, 0-9, `-`, `_`, `.`");
        }
        if self.chunks.iter().any(|chunk| chunk.name == name) {
            return refused("was written already");
        }
        Ok(())
    }

    /// Makes the snapshot durable and complete. The tick of `manifest` must be the one of `begin`.
    pub fn commit(self, manifest: Manifest) -> Result<Committed, SnapshotError> {
        if manifest.tick != self.tick {
            return Err(SnapshotError::damaged(&self.dir, "its manifest is of another tick"));
        }
        let sync_folder = |path: &Path| {
            self.disk.sync_folder(path).map_err(SnapshotError::io("make durable", path))
        };
        sync_folder(&self.dir)?;
        let bytes = self.chunks.iter().map(|chunk| chunk.file_bytes).sum::<u64>();
        let chunks = self.chunks.len();
        let (format, check) = (FORMAT, String::new());
        let file = ManifestFile { format, manifest, chunks: self.chunks, check };
        let content = file.sealed();
        let path = self.dir.join(MANIFEST_FILE);
        let temporary = self.dir.join("manifest.json.tmp");
        self.disk
            .create(&temporary)
            .and_then(|mut file| {
                file.write_all(&content)?;
                file.sync()
            })
            .and_then(|()| self.disk.rename(&temporary, &path))
            .map_err(SnapshotError::io("write", &path))?;
        sync_folder(&self.dir)?;
        sync_folder(&self.root)?;
        Ok(Committed { tick: self.tick, bytes: bytes + content.len() as u64, chunks })
    }
}

/// Counts and hashes what passes on its way to the file.
struct Hashing {
    file: Box<dyn Output>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write_all(data)?;
        self.hasher.update(data);
        self.bytes += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A chunk being written.
pub struct ChunkWriter<'a> {
    path: PathBuf,
    name: String,
    encoder: zstd::Encoder<'static, Hashing>,
    length: u64,
    chunks: &'a mut Vec<Chunk>,
}

impl ChunkWriter<'_> {
    /// Makes the chunk durable and part of the snapshot.
    pub fn finish(self) -> Result<(), SnapshotError> {
        let written = self.encoder.finish().and_then(|mut output| {
            output.file.sync()?;
            Ok(output)
        });
        let output = written.map_err(SnapshotError::io("write", &self.path))?;
        self.chunks.push(Chunk {
            name: self.name,
            length: self.length,
            file_bytes: output.bytes,
            blake3: output.hasher.finalize().to_hex().to_string(),
        });
        Ok(())
    }
}

impl Write for ChunkWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.encoder.write(data)?;
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.encoder.flush()
    }
}
