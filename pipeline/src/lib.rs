//! The process: sources, the running engine, and the commands of the binary `omnify`.
//!
//! # What this crate never does
//! It computes no feature and takes no decision; it moves data between the parts that do, and reads
//! the clock in one place ([`clock`]).

pub mod cli;
pub mod clock;
pub mod cluster;
pub mod commands;
pub mod decode;
pub mod durable;
pub mod engine;
pub mod kafka;
pub mod live;
pub mod progress;
pub mod setup;
pub mod source;
