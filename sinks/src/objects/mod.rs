//! A copy of journal, snapshots, ledger and history on an object store (S3 protocol, or a folder).
//!
//! ```text
//! PREFIX/head.json                             what counts; the only object that is ever replaced
//! PREFIX/e<epoch>/journal/<segment>.<n>        pieces of what grows, in order
//! PREFIX/e<epoch>/ledger/<segment>.<n>
//! PREFIX/e<epoch>/snapshots/<tick>/<chunk>     and their manifest.json.<n>
//! PREFIX/history/<run>/table=…/part-….parquet  as on disk, and beside them manifest.json.e<epoch>-<n>
//! ```
//!
//! # Contract
//! - Data goes first, under names that are never used twice; then the [`Head`] that lists it replaces
//!   the one before, on the condition that it *is* the one before (`If-Match`). So what a head lists is
//!   complete, a copy that stops anywhere is what it was, and nobody sees half of a change.
//! - **Fencing**: every start takes a new epoch by replacing the head. Whoever held the one before
//!   fails at its next commit ([`ObjectsError::Fenced`]) and has changed nothing that counts: its
//!   objects carry its own epoch. A head tells which state folder it is the copy of, so a folder that
//!   was overtaken by another cannot come back by mistake ([`ObjectsError::Taken`]).
//! - A reply that was lost is settled by reading the head: a commit happens once or not at all.
//! - Everything fetched is compared with the BLAKE3 of what was written.
//! - Listing is used only to find what nobody lists any more, never to find what counts.
//!
//! # What it never does
//! It starts no thread and reads no clock; it never logs or stores a credential.

mod address;
mod claim;
mod crypto;
mod error;
pub mod faults;
mod fetch;
mod head;
mod remote;
mod restore;
mod sweep;
#[cfg(test)]
mod tests;

pub use address::{Access, Address};
pub use claim::{Change, Claim, Owner};
pub use error::ObjectsError;
pub use fetch::{fetch_history, fetch_journal};
pub use head::{HISTORY, Head, JOURNAL, LEDGER, Piece, SNAPSHOTS};
pub use remote::Remote;
pub use restore::{Restored, restore};
pub use sweep::{GRACE, sweep};
