//! What survives a crash: the journal of closed ticks, snapshots of all state, and starting again
//! from both.
//!
//! ```text
//! ingest loop ─┬─► workers ─► decision thread ─┬─► history thread
//!              │                               └─► snapshot thread ─► snapshots/<tick>/
//!              └─► journal thread ─► journal/   ▲
//!                     └─ durable tick ──────────┴─► receipts of sources, actions
//! ```
//!
//! # Contract
//! - A source is told that its rows are taken ([`Receipt`]) when the tick that took them is on disk.
//! - An action leaves only when its tick is on disk ([`Reached`]).
//! - A committed snapshot at tick T implies that the history holds every tick up to T, and the journal
//!   as well. The journal keeps what the oldest snapshot kept needs.
//! - After a crash the engine stands where the last durable tick left it, whatever the number of
//!   workers then and now: rows, decisions and action ids are those of a run without the crash.
//!
//! | file | duty |
//! |---|---|
//! | `journal` | the thread that writes closed ticks, in groups |
//! | `reached` | how far something has come, for whoever waits for it |
//! | `snapshot` | the thread that gathers the state of one tick and commits it |
//! | `recover` | from the folder to everything a start needs |
//! | `state` | what a snapshot holds beside the operators' state |
//! | `mirror` | the copy of all of it on an object store |

mod journal;
mod mirror;
mod reached;
mod recover;
mod snapshot;
mod state;

pub use journal::{Durable, Journal, JournalTick, OnDurable, Receipt, Writing};
pub use mirror::{
    Claimed, Copy, Folders, Mirror, MirrorOptions, Strict, in_doubt_until, restore_if_empty,
};
pub use reached::Reached;
pub use recover::{JOURNAL, LEDGER, Recovered, SNAPSHOTS, Start, Tail, recover, start_of};
pub use snapshot::{Gathering, Moment, Snapshots, Surroundings};
pub use state::{EngineState, Inputs, Positions};
