//! Everything that leaves the process: the Parquet history, the executors of actions, the HTTP API
//! with its page, the copy on an object store, and what the engine says about itself.
//!
//! # What this crate never does
//! It decides nothing and computes no feature; it records, executes and shows what
//! `omnify_operators` and `omnify_decision` produced.

pub mod action;
pub mod disk;
pub mod history;
pub mod journal;
pub mod kafka;
pub mod objects;
pub mod priority;
pub mod serve;
pub mod snapshot;
pub mod telemetry;
