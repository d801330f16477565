//! The sink that touches nothing: it says `Applied` and remembers the last intents.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, ready};
use omnify_decision::control::Actual;
use omnify_operators::model::EntityKey;

use super::{ActionSink, AmountRange, Capabilities, ErrorClass, ExecError, ExecOutcome, Intent};

/// Intents remembered.
const RECENT_MAX: usize = 1_024;

/// See the module. The default: a new installation changes no bid before someone says so.
#[derive(Debug, Default)]
pub struct DryRun {
    recent: Mutex<VecDeque<Intent>>,
}

impl DryRun {
    /// The last intents it was given, oldest first.
    pub fn recent(&self) -> Vec<Intent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl ActionSink for DryRun {
    fn name(&self) -> &'static str {
        "dry_run"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            kinds: Capabilities::ALL_KINDS,
            bid: AmountRange::ANY,
            budget: AmountRange::ANY,
            read_back: false,
            dedupes: true, // nothing twice is nothing
            call_timeout: Duration::from_secs(1),
        }
    }

    fn execute<'a>(&'a self, intent: &'a Intent) -> BoxFuture<'a, ExecOutcome> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back(intent.clone());
        ready(ExecOutcome::Applied { effective: intent.desired.clone() }).boxed()
    }

    fn read_back<'a>(&'a self, entity: &'a EntityKey) -> BoxFuture<'a, Result<Actual, ExecError>> {
        let message = format!("a dry run has no platform that could know {entity}");
        ready(Err(ExecError::new(ErrorClass::Validation, message))).boxed()
    }
}
