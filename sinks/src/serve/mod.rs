//! The engine's face: an HTTP API and a page over what the decision thread published.
//!
//! ```text
//!  decision thread ──► Board ──publish──► Snapshot (one tick, immutable) ──► router ──► JSON, SSE, page
//!  POST /v1/events ──► Ingest (the pipeline's door)      POST /v1/bids ──► Bidder (the stage's state)
//! ```
//!
//! # Contract
//! - A reader sees one tick: every number of an answer is of the same [`Snapshot`].
//! - Reading never makes the engine wait: readers share pointers, the writer copies what it changes.
//! - A token sees the rows of its tenant and nothing else, on every route ([`TokenTable`]).
//! - Every answer says as of which tick it is and until when its numbers are fresh and settled; a
//!   number that is not defined is `null`, never zero.
//!
//! # What this module never does
//! It decides nothing, changes no state of the engine but through [`Ingest`] and [`Orders`], and reads no clock:
//! the present tick is an argument ([`AppState::present`]).

mod assets;
mod board;
mod cache;
mod counters;
mod error;
mod features;
mod feed;
mod feeds;
mod lent;
mod orders;
mod ports;
mod ports_http;
mod router;
mod rows;
mod server;
mod snapshot;
mod status;
mod stream;
mod tokens;
mod view;

pub use board::{Board, BoardConfig, CurrencyOf};
pub use counters::{Conservation, Counters, LatencyMs, Problem, Watermarks};
pub use feed::{ActionFeed, ActionState, DecisionFeed, KeptAction, KeptDecision};
pub use lent::Lent;
pub use ports::{
    Accepted, BidError, Bidder, Ingest, IngestFuture, OrderFuture, Orders, Push, PushError,
    PushFormat,
};
pub use router::{AppState, BuildInfo, Limits, OPENAPI, Present, router};
pub use server::serve;
pub use snapshot::{Pacing, PulsePoint, Row, Setup, Snapshot, Spark, SparkPoint};
pub use tokens::{Scope, TokenError, TokenTable};
