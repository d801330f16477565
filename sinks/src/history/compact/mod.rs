//! Compaction: many small parts of a partition become few large ones.
//!
//! A live writer leaves a part for each partition at every commit, about one a minute. Merging keeps
//! the rows and their order, so every reader, `verify` and a replay give the same before and after.
//!
//! # Contract
//! - Only neighbours of one partition (table, tenant, date) are merged, so parts stay in order. A part
//!   of the table `features` is sorted by window, end and entity: its rows are merged in that
//!   order; the rows of all other tables follow one another.
//! - Each row is rewritten a logarithmic number of times (see [`plan`]).
//! - Safe at any moment: the merged file is written under a temporary name and made durable, then
//!   renamed, then the manifest lists it in place of the parts it replaces, and only then do these
//!   get a hidden name and, later, go. A crash leaves the old list or the new one; the next opening removes what is not in it.
//! - Parts are read only if their bytes are those that were written: damage is never merged away.
//! - Memory holds a row group being encoded and a batch of each part being read, not the parts.
//! - The merged part depends on the rows only, not on how they were cut into parts before.
//!
//! # What it never does
//! It reads no clock: how long replaced files stay is counted in ticks.

mod background;
mod job;
mod offline;
mod plan;
mod sorted;

pub use background::{BackgroundMerge, MergeStep};
pub use job::{MergeJob, Merged};
#[cfg(test)]
pub(crate) use offline::compact_on;
pub use offline::{Compacted, Compaction, compact};
pub(crate) use sorted::places;
