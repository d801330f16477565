//! The journal: the durable, ordered record of everything that entered the engine, by closed tick.
//!
//! # Contract
//! - [`JournalWriter::append`] buffers a closed tick; [`JournalWriter::commit`] makes everything
//!   buffered durable (one write, one fdatasync for the group) and says up to which tick. What a
//!   commit has returned survives every crash (invariant 11); what it has not may or may not.
//! - Ticks only ascend. The reader gives back exactly what was appended, in the same order.
//! - An error of a commit loses nothing and doubles nothing: what was written beyond the last good
//!   byte is cut before the next attempt, and after a failed fsync the segment is left for a new one,
//!   because the system may have dropped the pages it could not write.
//! - A torn end is cut at the next opening. Damage anywhere else is an error that names the place.
//! - Every segment can be read on its own: it names the entities it speaks of. Dense ids are
//!   translated on reading, so a registry of any order will do.
//! - One writer at a time: the folder is locked.
//!
//! # Layout
//! `journal-<first tick, 20 digits>.omj`: a header (JSON with a checksum), then frames. A frame is a
//! marker, its length, the checksum of the frame before it, its own checksum (over length and payload,
//! seeded with the one before) and the payload: one or more ticks as columns of varints. A
//! column carries a number; one that is missing reads as zeros, so a field added later reads back
//! old segments, and a number nobody knows is an error rather than data ignored.
//!
//! # What it never does
//! It reads no clock, starts no thread, and never rewrites a committed byte.

mod bits;
mod columns;
mod decode;
mod encode;
mod entry;
mod error;
mod frame;
mod inspect;
mod reader;
mod retain;
mod segment;
mod writer;

pub use entry::{BatchKey, Position, StartRecord, TickEntry};
pub use error::JournalError;
pub use inspect::{Inspection, SegmentReport, dump, inspect};
pub use reader::{JournalReader, Ticks};
pub use retain::{Removed, Retention};
pub(crate) use segment::first_tick_of;
pub use segment::list as segments;
pub use writer::{JournalOptions, JournalWriter, Opened};

#[cfg(test)]
mod tests;
