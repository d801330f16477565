//! Snapshots of the engine's state: a folder for each, `<tick, 20 digits>/`, of chunks and a manifest.
//!
//! # Contract
//! - A chunk is a zstd file whose length and BLAKE3 are in the manifest. `manifest.json` is written
//!   last, under a temporary name, after every chunk is durable, so a folder with a manifest is
//!   complete and one without is what a crash left: [`SnapshotStore::open`] removes it.
//! - [`SnapshotStore::newest_valid`] reads every byte of a snapshot before it gives it out; where one is
//!   damaged it says why and takes the one before.
//! - [`SnapshotStore::keep`] never leaves fewer than [`KEPT_MIN`] intact ones.
//!
//! # What it never does
//! It knows nothing of what chunks mean, reads no clock, and never changes a committed snapshot.

mod error;
mod manifest;
mod store;
mod writer;

pub use error::SnapshotError;
pub(crate) use manifest::ManifestFile;
pub use manifest::{Chunk, FORMAT, MANIFEST_FILE, Manifest};
pub use store::{DamagedSnapshot, KEPT_MIN, Newest, Pruned, Snapshot, SnapshotStore};
pub use writer::{ChunkWriter, Committed, SnapshotWriter};

#[cfg(test)]
mod tests;
