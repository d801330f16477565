//! One action from its call to its end.
//!
//! ```text
//!          ┌──────────── later (Throttle, Transient) ───────────┐
//!          ▼                                                     │
//!  ── call ──► Applied · NoChange · Rejected                     │
//!       │ Deferred ──────────── backoff, full jitter ────────────┤
//!       └ Unknown ──► read back ──► it holds: Applied            │
//!                       │  it does not, sink dedupes ids ────────┘
//!                       │  it does not, otherwise: Expired (the stage decides anew)
//!                       └  no answer: read again; after some tries say Unknown, and go on
//! ```
//! Nothing is called after the action's expiry, after a newer wish for the same setting came, or
//! after the dispatcher was stopped. While it is unknown whether a call took effect, the owner
//! stays busy: nothing else may be sent to it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use omnify_decision::action::Setting;
use omnify_decision::control::{Actual, Outcome};
use omnify_operators::model::EntityKey;

use super::backoff::Backoff;
use super::dispatcher::{Counters, NowTick};
use super::plan::{found, holds, parts};
use super::runtime::{Runtime, within};
use super::{ActionSink, Capabilities, ErrorClass, ExecError, ExecOutcome, Intent, Retry};

/// Where an action enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// It was never called.
    Call,
    /// An earlier process may have called it.
    Settle,
}

/// What the driver tells before the end.
pub(super) enum Interim {
    /// What a platform says is set.
    Observed(EntityKey, Actual),
    /// It stays unknown for longer than the usual tries.
    Parked,
}

/// What surrounds a driven action.
pub(super) trait Surroundings: Send + Sync {
    /// A newer wish waits, or the dispatcher was stopped.
    fn overtaken(&self, intent: &Intent) -> bool;
    /// Takes an interim report.
    fn report(&self, intent: &Intent, interim: Interim);
}

/// Drives actions of one sink.
pub(super) struct Driver {
    pub(super) sink: Arc<dyn ActionSink>,
    pub(super) capabilities: Capabilities,
    pub(super) backoff: Backoff,
    pub(super) now: NowTick,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) counters: Arc<Counters>,
}

enum Settled {
    End(Outcome),
    /// Another call is safe. `doubt`: an earlier one may have taken effect.
    Again {
        doubt: bool,
    },
}

impl Driver {
    /// Runs `intent` to its end.
    pub(super) async fn run(
        &self,
        intent: &Intent,
        entry: Entry,
        around: &dyn Surroundings,
    ) -> Outcome {
        let (mut attempt, mut doubt) = (0, false);
        let mut unsettled = (entry == Entry::Settle)
            .then(|| ExecError::new(ErrorClass::UnknownOutcome, "the engine stopped during it"));
        loop {
            if let Some(error) = unsettled.take() {
                match self.settle(intent, &error, around).await {
                    Settled::End(outcome) => return outcome,
                    Settled::Again { doubt: still } => doubt = still,
                }
            }
            let given_up = if doubt { Outcome::Unknown } else { Outcome::Expired };
            if attempt > 0 {
                let wait = self.backoff.wait(intent.id, attempt, None);
                if attempt >= self.backoff.attempts_max || !self.sleep_within(intent, wait).await {
                    return given_up;
                }
                self.counters.retries.fetch_add(1, Relaxed);
            }
            if (self.now)() > intent.expires || around.overtaken(intent) {
                return given_up;
            }
            attempt += 1;
            let error = match self.call(intent).await {
                ExecOutcome::Applied { effective } => return Outcome::Applied { effective },
                ExecOutcome::NoChange => return Outcome::NoChange,
                ExecOutcome::Rejected(error) => return rejected(error),
                ExecOutcome::Unknown(error) => {
                    unsettled = Some(error);
                    continue;
                }
                ExecOutcome::Deferred { error, after } => {
                    let extra = after.unwrap_or_default();
                    if !extra.is_zero() && !self.sleep_within(intent, extra).await {
                        return given_up;
                    }
                    error
                }
            };
            if error.class.retry() != Retry::Later {
                return rejected(error);
            }
        }
    }

    async fn call(&self, intent: &Intent) -> ExecOutcome {
        self.counters.calls.fetch_add(1, Relaxed);
        let timeout = self.capabilities.call_timeout;
        match within(&*self.runtime, timeout, self.sink.execute(intent)).await {
            Some(outcome) => outcome,
            None => ExecOutcome::Unknown(ExecError::new(
                ErrorClass::UnknownOutcome,
                format!("no reply within {} ms", timeout.as_millis()),
            )),
        }
    }

    /// Sleeps, unless the action would have expired by then.
    async fn sleep_within(&self, intent: &Intent, wait: Duration) -> bool {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        if (self.now)().saturating_add(wait_ms) > intent.expires {
            return false;
        }
        self.runtime.sleep(wait).await;
        true
    }

    /// Finds out whether `intent` is in effect, after a call that ended with `error`.
    async fn settle(
        &self,
        intent: &Intent,
        error: &ExecError,
        around: &dyn Surroundings,
    ) -> Settled {
        let again = |doubt, otherwise| match self.capabilities.dedupes {
            true => Settled::Again { doubt },
            false => Settled::End(otherwise),
        };
        let parts = parts(&intent.desired);
        if !self.capabilities.read_back || parts.is_empty() {
            return again(true, Outcome::Unknown);
        }
        let mut tries = 0;
        loop {
            match self.in_effect(intent, &parts, around).await {
                Ok(Found::Holds(effective)) => {
                    return Settled::End(Outcome::Applied { effective });
                }
                Ok(Found::Differs) if error.class == ErrorClass::Conflict => {
                    return Settled::End(rejected(error.clone()));
                }
                Ok(Found::Differs) => return again(false, Outcome::Expired),
                Ok(Found::Silent) => return again(true, Outcome::Unknown),
                // The entity is gone: whatever happened, there is nothing left to settle.
                Err(error) if error.class == ErrorClass::Validation => {
                    return Settled::End(rejected(error));
                }
                Err(error) => {
                    tries += 1;
                    if tries == self.backoff.attempts_max {
                        tracing::warn!(action = %intent.id, owner = %intent.owner, %error,
                            "an action stays unknown; its owner waits until it can be read back");
                        around.report(intent, Interim::Parked);
                    }
                    self.runtime.sleep(self.backoff.wait(intent.id, tries, None)).await;
                }
            }
        }
    }

    async fn in_effect(
        &self,
        intent: &Intent,
        parts: &[(Option<&EntityKey>, Setting)],
        around: &dyn Surroundings,
    ) -> Result<Found, ExecError> {
        let mut all = Found::Holds(intent.desired.clone());
        for (entity, setting) in parts {
            let shown_by = entity.unwrap_or(&intent.owner);
            self.counters.read_backs.fetch_add(1, Relaxed);
            let read = self.sink.read_back(shown_by);
            let timeout = self.capabilities.call_timeout;
            let actual = match within(&*self.runtime, timeout, read).await {
                Some(actual) => actual?,
                None => {
                    let message = format!("no answer about {shown_by}");
                    return Err(ExecError::new(ErrorClass::Transient, message));
                }
            };
            let found = found(setting, &actual);
            around.report(intent, Interim::Observed(shown_by.clone(), actual));
            let holds = found.as_ref().map(|found| holds(setting, intent.before.as_ref(), found));
            all = match (all, holds, found) {
                (Found::Silent, ..) | (_, None, _) | (_, _, None) => Found::Silent,
                (Found::Differs, ..) | (_, Some(false), _) => Found::Differs,
                // The owner's own value is what is in effect; a rotation is in effect as a whole.
                (_, Some(true), Some(found)) if entity.is_none() => Found::Holds(found),
                (all, Some(true), Some(_)) => all,
            };
        }
        Ok(all)
    }
}

/// What a read-back shows.
enum Found {
    /// The wish holds, as this.
    Holds(Setting),
    /// Something else does.
    Differs,
    /// The platform does not report it.
    Silent,
}

fn rejected(error: ExecError) -> Outcome {
    Outcome::Rejected { class: error.class.name().to_owned(), message: error.message }
}
