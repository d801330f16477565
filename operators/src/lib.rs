//! The pure core of OmniFy: the vocabulary of advertising metrics and the operators that keep
//! features of them up to date.
//!
//! ```text
//!  events ──► intake (dedup, hold) ──► delta ─┬─► rolling (creative, ad group, campaign)
//!  report rows ──► restate (new − old) ───────┘        └─► exchange ─► rolling (account, tenant)
//!                                                       └─► frame: every row that changed, per tick
//! ```
//!
//! # What this crate never does
//! It opens no file and no socket, reads no clock, draws no random number and never iterates a hash
//! map on a path that reaches an output. Time is an argument everywhere ([`model::Tick`]).
//! Sums are integers; ratios are formed at the edge ([`model::FeatureRow`]).

pub mod anomaly;
mod dedup;
pub mod estimate;
pub mod fatigue;
pub mod frame;
pub mod graph;
pub mod intake;
pub mod invariant;
pub mod maturity;
pub mod model;
mod part;
mod reach;
pub mod reference;
mod restate;
mod rolling;
pub mod spec;
pub mod state;
mod varint;
