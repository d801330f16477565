//! The manifest: what a snapshot is of, and its chunks.

use std::fs;
use std::path::Path;

use omnify_operators::model::Tick;
use serde::{Deserialize, Serialize};

use super::SnapshotError;

/// Name of the manifest inside a snapshot's folder.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Version of the manifest and of the chunk files, not of what chunks mean.
pub const FORMAT: u32 = 1;

/// What a snapshot is of; all of it is the caller's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of what the chunks mean.
    pub version: u32,
    /// The state is that after this tick.
    pub tick: Tick,
    /// The resolved configuration.
    pub config_toml: String,
    /// What the engine computes.
    pub spec_json: serde_json::Value,
    /// Anything else.
    pub meta: serde_json::Value,
}

/// A chunk of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Its name; the file is `<name>.bin`.
    pub name: String,
    /// Bytes of the content.
    pub length: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// BLAKE3 of the file, hex.
    pub blake3: String,
}

impl Chunk {
    /// Name of its file.
    pub fn file(&self) -> String {
        chunk_file(&self.name)
    }
}

pub(super) fn chunk_file(name: &str) -> String {
    format!("{name}.bin")
}

/// The manifest as a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ManifestFile {
    pub(super) format: u32,
    #[serde(flatten)]
    pub(super) manifest: Manifest,
    pub(crate) chunks: Vec<Chunk>,
    /// BLAKE3 of this file with an empty check.
    pub(super) check: String,
}

impl ManifestFile {
    fn bytes(&self) -> Vec<u8> {
        // Strings, numbers and string keys only: encoding cannot fail.
        serde_json::to_vec_pretty(self).expect("a manifest is plain JSON")
    }

    /// The file's content, with its check.
    pub(super) fn sealed(mut self) -> Vec<u8> {
        self.check = String::new();
        self.check = blake3::hash(&self.bytes()).to_hex().to_string();
        self.bytes()
    }

    /// Reads and checks the manifest in `dir`.
    pub(super) fn read(dir: &Path) -> Result<ManifestFile, SnapshotError> {
        let path = dir.join(MANIFEST_FILE);
        let bytes = fs::read(&path).map_err(SnapshotError::io("read", &path))?;
        ManifestFile::parse(&bytes, &path)
    }

    /// Checks the manifest in `bytes`, which errors say is at `path`.
    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<ManifestFile, SnapshotError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let broken = |error: serde_json::Error| SnapshotError::damaged(path, error.to_string());
        let Format { format } = serde_json::from_slice(bytes).map_err(broken)?;
        if format > FORMAT {
            return Err(SnapshotError::Newer { path: path.to_owned(), format, known: FORMAT });
        }
        let mut file: ManifestFile = serde_json::from_slice(bytes).map_err(broken)?;
        let check = std::mem::take(&mut file.check);
        if blake3::hash(&file.bytes()).to_hex().as_str() != check {
            return Err(SnapshotError::damaged(path, "it fails its checksum"));
        }
        file.check = check;
        Ok(file)
    }
}
