//! How a desired setting becomes true on an ad platform, once.
//!
//! The stage emits an [`Action`]; the [`Dispatcher`] plans it, writes the intent to the
//! [`Ledger`], calls an [`ActionSink`], settles what a lost reply left open, and answers with
//! [`Control::Acknowledge`](omnify_decision::control::Control). One folder, one file per duty:
//!
//! | file | duty |
//! |---|---|
//! | `mod.rs` | the trait every platform implements, outcomes and error classes |
//! | [`plan`] | pure: compare before write, rounding, what the platform cannot do |
//! | [`ledger`] | durable: intent before the call, outcome after, read at restart |
//! | [`drive`](self) | one action from the call to its end: retries, read-back, expiry |
//! | [`dispatcher`] | the bounded queue, one action in flight per owner, group commit |
//! | [`runtime`] | where calls run and wait |
//! | [`dry_run`], [`market`], [`kafka`] | the sinks |
//!
//! # Contract of a sink
//! - [`ActionSink::execute`] makes the setting true or says precisely how it failed. It never
//!   retries on its own and reads no clock.
//! - It answers [`ExecOutcome::Unknown`] whenever the platform *may* have taken the change: a
//!   timeout, a lost reply, a 5xx. Saying `Deferred` instead promises that nothing happened.
//! - [`Capabilities::dedupes`] promises that the same action id sent twice takes effect once.
//!
//! # What this module never does
//! It sends nothing whose intent is not on disk, nothing after its expiry, no second action to an
//! owner while one is in flight (invariant 6), and no id again whose first attempt may have taken
//! effect, unless the sink deduplicates ids.

mod backoff;
pub mod dispatcher;
mod drive;
pub mod dry_run;
pub mod kafka;
pub mod ledger;
pub mod market;
pub mod plan;
mod queue;
pub mod runtime;

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use omnify_decision::action::{Action, ActionKind, Id, Setting};
use omnify_decision::control::Actual;
use omnify_operators::model::{EntityKey, Tick};
use serde::{Deserialize, Serialize};

pub use dispatcher::{Counts, Dispatcher, Dispatching, NowTick, Options};
pub use dry_run::DryRun;
pub use kafka::{KafkaActions, KafkaOptions};
pub use ledger::{Entry, Ledger, LedgerCopy, LedgerError};
pub use market::{Market, MarketOptions};
pub use runtime::Runtime;

/// An action as the ledger keeps it and a sink executes it: the same facts as [`Action`], owned,
/// so that a restarted process has exactly what the one before it had.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// The action's id.
    pub id: Id,
    /// The decision it comes from.
    pub decision: Id,
    /// The tick that caused it.
    pub tick: Tick,
    /// Not to be executed after this tick.
    pub expires: Tick,
    /// Who owns the setting.
    pub owner: EntityKey,
    /// What is to be true; after planning, rounded to what the platform can hold.
    pub desired: Setting,
    /// What was true before, if known: what undo restores.
    pub before: Option<Setting>,
    /// Reason codes.
    pub reasons: Vec<Cow<'static, str>>,
}

impl From<Action> for Intent {
    fn from(action: Action) -> Intent {
        Intent {
            id: action.id,
            decision: action.decision,
            tick: action.tick,
            expires: action.expires,
            owner: action.owner,
            desired: action.desired,
            before: action.before,
            reasons: action.reasons.into_iter().map(Cow::Borrowed).collect(),
        }
    }
}

/// Which failures are alike in what must be done about them
/// (section 6 of the connectors' comparison).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// Too many calls; the platform took nothing.
    Throttle,
    /// The object was changed too often (for example four budget changes an hour).
    ChangeQuota,
    /// The call did not reach the platform, or it said that it took nothing.
    Transient,
    /// The object changed meanwhile, or the id was seen before: look again.
    Conflict,
    /// Credentials are missing or expired.
    Auth,
    /// The credentials do not cover this.
    Permission,
    /// The platform does not take this value.
    Validation,
    /// One request held too much; a connector splits it, a single action cannot be split.
    TooMuchData,
    /// The API version is gone: the connector must be updated.
    VersionSunset,
    /// It may or may not have taken effect.
    UnknownOutcome,
}

/// What a failure calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same call again, later, while the action has not expired.
    Later,
    /// Read back first.
    AfterReadBack,
    /// Not by itself: a person, a new decision, or a new version is needed.
    Never,
}

impl ErrorClass {
    /// Every class.
    pub const ALL: [ErrorClass; 10] = [
        ErrorClass::Throttle,
        ErrorClass::ChangeQuota,
        ErrorClass::Transient,
        ErrorClass::Conflict,
        ErrorClass::Auth,
        ErrorClass::Permission,
        ErrorClass::Validation,
        ErrorClass::TooMuchData,
        ErrorClass::VersionSunset,
        ErrorClass::UnknownOutcome,
    ];

    /// The name used in outcomes, history and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            ErrorClass::Throttle => "throttle",
            ErrorClass::ChangeQuota => "change_quota",
            ErrorClass::Transient => "transient",
            ErrorClass::Conflict => "conflict",
            ErrorClass::Auth => "auth",
            ErrorClass::Permission => "permission",
            ErrorClass::Validation => "validation",
            ErrorClass::TooMuchData => "too_much_data",
            ErrorClass::VersionSunset => "version_sunset",
            ErrorClass::UnknownOutcome => "unknown_outcome",
        }
    }

    /// What it calls for.
    pub const fn retry(self) -> Retry {
        match self {
            ErrorClass::Throttle | ErrorClass::Transient => Retry::Later,
            ErrorClass::Conflict | ErrorClass::UnknownOutcome => Retry::AfterReadBack,
            ErrorClass::ChangeQuota
            | ErrorClass::Auth
            | ErrorClass::Permission
            | ErrorClass::Validation
            | ErrorClass::TooMuchData
            | ErrorClass::VersionSunset => Retry::Never,
        }
    }
}

/// A failure with its class and the platform's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", class.name())]
pub struct ExecError {
    /// What to do about it.
    pub class: ErrorClass,
    /// What, where and, if known, the remedy.
    pub message: String,
}

/// Longest message kept of a platform's answer, in bytes: it goes into history and the page.
const MESSAGE_BYTES_MAX: usize = 500;

impl ExecError {
    /// A failure; an overlong message is cut.
    pub fn new(class: ErrorClass, message: impl fmt::Display) -> ExecError {
        let mut message = message.to_string();
        if message.len() > MESSAGE_BYTES_MAX {
            let end = (0..=MESSAGE_BYTES_MAX).rev().find(|at| message.is_char_boundary(*at));
            message.truncate(end.unwrap_or(0));
            message.push('…');
        }
        ExecError { class, message }
    }
}

/// How one call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutcome {
    /// The platform took it; `effective` is what it says is true now.
    Applied {
        /// What is true now.
        effective: Setting,
    },
    /// It was true already.
    NoChange,
    /// Refused for good.
    Rejected(ExecError),
    /// Nothing happened; try again, not before `after` when the platform named a time.
    Deferred {
        /// Why.
        error: ExecError,
        /// The wait the platform asked for.
        after: Option<Duration>,
    },
    /// It may or may not have taken effect.
    Unknown(ExecError),
}

impl ExecOutcome {
    /// The outcome that an error's class stands for.
    pub fn from_error(error: ExecError) -> ExecOutcome {
        match error.class.retry() {
            Retry::Later => ExecOutcome::Deferred { error, after: None },
            Retry::AfterReadBack => ExecOutcome::Unknown(error),
            Retry::Never => ExecOutcome::Rejected(error),
        }
    }
}

/// The amounts a platform can hold for one kind of setting, in micros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AmountRange {
    /// Smallest step between two amounts, at least 1.
    pub quantum_micros: i64,
    /// Smallest amount.
    pub min_micros: i64,
    /// Largest amount.
    pub max_micros: i64,
}

impl AmountRange {
    /// Every amount from zero up, in single micros.
    pub const ANY: AmountRange =
        AmountRange { quantum_micros: 1, min_micros: 0, max_micros: i64::MAX };
}

/// What a platform can do, told by its sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Actions it can carry out; others are refused before any call.
    pub kinds: &'static [ActionKind],
    /// Bids it can hold.
    pub bid: AmountRange,
    /// Daily budgets it can hold.
    pub budget: AmountRange,
    /// [`ActionSink::read_back`] works.
    pub read_back: bool,
    /// The same action id sent twice takes effect once.
    pub dedupes: bool,
    /// Longest wait for one call.
    pub call_timeout: Duration,
}

impl Capabilities {
    /// Every kind of action.
    pub const ALL_KINDS: &'static [ActionKind] = &[
        ActionKind::SetBid,
        ActionKind::SetBudget,
        ActionKind::Pause,
        ActionKind::Enable,
        ActionKind::RotateCreative,
        ActionKind::Alert,
    ];
}

/// An ad platform, seen from the engine: it takes a setting and tells what is set. See the
/// module's contract.
pub trait ActionSink: Send + Sync + 'static {
    /// Name in logs and metrics.
    fn name(&self) -> &'static str;

    /// What the platform can do. Read once, when the dispatcher starts.
    fn capabilities(&self) -> Capabilities;

    /// Makes the intent's setting true, with one call.
    fn execute<'a>(&'a self, intent: &'a Intent) -> BoxFuture<'a, ExecOutcome>;

    /// What is set for `entity` now.
    fn read_back<'a>(&'a self, entity: &'a EntityKey) -> BoxFuture<'a, Result<Actual, ExecError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_surely_did_not_happen_is_repeated() {
        let later: Vec<_> = ErrorClass::ALL
            .into_iter()
            .filter(|class| class.retry() == Retry::Later)
            .map(ErrorClass::name)
            .collect();
        assert_eq!(later, ["throttle", "transient"]);
        let unknown = ExecError::new(ErrorClass::UnknownOutcome, "no reply");
        assert_eq!(ExecOutcome::from_error(unknown.clone()), ExecOutcome::Unknown(unknown));
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let error = ExecError::new(ErrorClass::Validation, "é".repeat(400));
        assert!(error.message.len() <= MESSAGE_BYTES_MAX + '…'.len_utf8());
        assert!(error.message.ends_with('…'));
    }
}
