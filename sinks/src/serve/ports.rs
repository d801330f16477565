//! The doors through which a request reaches the engine. The pipeline implements them.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use omnify_decision::bid::{BidAnswer, BidContext};
use omnify_decision::control::Control;
use serde::Serialize;

use super::tokens::Scope;

/// How the body of a push is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushFormat {
    /// One JSON object per line (`application/x-ndjson`).
    Ndjson,
    /// One JSON array of objects, or a single object (`application/json`).
    Json,
}

/// A body of events.
#[derive(Clone, Debug)]
pub struct Push {
    /// The bytes, decompressed and within the size limit.
    pub body: Bytes,
    /// How they are written.
    pub format: PushFormat,
    /// Whose events may be in it: an event of a tenant outside the scope is a bad row.
    pub scope: Scope,
    /// The sender's name for this body: sent again under the same name, it is not taken again but
    /// answered as before.
    pub key: Option<String>,
    /// Refuse the whole body when a row of it is bad, instead of setting that row aside.
    pub strict: bool,
}

/// What became of a push whose rows are all read. Bad rows are in the dead letters with a reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// Events taken in.
    pub accepted: u64,
    /// Rows set aside as dead letters.
    pub dead_letters: u64,
    /// Rows the mapping leaves out on purpose.
    pub ignored: u64,
}

/// Why a push was not taken in. Nothing of it was, unless it is [`PushError::Unknown`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The body as a whole cannot be read.
    #[error("row {row}: {reason}")]
    Malformed {
        /// The row, from 1.
        row: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The engine is behind: its intake queue is at its bound.
    #[error("the intake queue is full; try again in {retry_after_s} s")]
    Busy {
        /// When to try again.
        retry_after_s: u32,
    },
    /// The engine is shutting down, or has no push source configured.
    #[error("no events are taken in: {0}")]
    Closed(String),
    /// It was taken in, but the engine ended before it was known to be on disk.
    #[error("it is not known whether the events were taken in: {0}")]
    Unknown(String),
}

/// The answer of [`Ingest::push`].
pub type IngestFuture<'a> = Pin<Box<dyn Future<Output = Result<Accepted, PushError>> + Send + 'a>>;

/// Takes events in. Resolves when they are acknowledged: durable, or refused as a whole.
pub trait Ingest: Send + Sync {
    /// Takes in the events of `push`.
    fn push(&self, push: Push) -> IngestFuture<'_>;
}

/// The answer of [`Orders::order`].
pub type OrderFuture<'a> = Pin<Box<dyn Future<Output = Result<(), PushError>> + Send + 'a>>;

/// Takes what people tell the engine: answers to proposals, kills and their end.
pub trait Orders: Send + Sync {
    /// Resolves when `control` is durable and on its way to its tick, or says why it was not taken.
    /// An engine that is behind takes it all the same.
    fn order(&self, control: Control) -> OrderFuture<'_>;
}

/// Why there is no answer at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BidError {
    /// The context cannot be read.
    #[error("{0}")]
    Invalid(String),
    /// No such entity, or no goal covers it.
    #[error("{0}")]
    Unknown(String),
    /// The stage has no state to answer from yet.
    #[error("{0}")]
    Unavailable(String),
}

/// Answers bids from the decision stage's state, in well under a millisecond and without waiting:
/// it is called on a thread that serves other requests too.
pub trait Bidder: Send + Sync {
    /// The bid for `context`; an answer without a bid says why in its reasons.
    fn bid(&self, context: &BidContext) -> Result<BidAnswer, BidError>;
}
