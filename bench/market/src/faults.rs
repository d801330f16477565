//! Failures on demand: which action of the HTTP platform fails, and how. A function of the script,
//! the seed and the number of the action, so a test that failed fails again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::maths::{Draws, Purpose, key};

/// One way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// 500, and nothing happened.
    ErrorBefore,
    /// 500, although the action took effect: the reply is lost.
    ErrorAfter,
    /// No reply within the hold, and nothing happened.
    TimeoutBefore,
    /// No reply within the hold, although the action took effect.
    TimeoutAfter,
    /// 429 with `Retry-After: 1`, and nothing happened.
    Throttle,
    /// 409, as if somebody else had just changed the setting; nothing happened.
    Conflict,
}

/// Probabilities of faults for actions that the script does not name; their sum is at most 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FaultRates {
    /// Of [`Fault::ErrorBefore`].
    pub error_before: f64,
    /// Of [`Fault::ErrorAfter`].
    pub error_after: f64,
    /// Of [`Fault::TimeoutBefore`].
    pub timeout_before: f64,
    /// Of [`Fault::TimeoutAfter`].
    pub timeout_after: f64,
    /// Of [`Fault::Throttle`].
    pub throttle: f64,
    /// Of [`Fault::Conflict`].
    pub conflict: f64,
}

/// A fault script. The default never fails.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Faults {
    /// Seed of the rates.
    pub seed: u64,
    /// Fault of the action with this number; posts to `/v1/actions` are numbered from 0.
    pub script: BTreeMap<u64, Fault>,
    /// Faults of all others.
    pub rates: FaultRates,
    /// How long a time-out holds the connection, in wall-clock ms, before it answers 504.
    pub hold_ms: u64,
}

impl Default for Faults {
    fn default() -> Self {
        let rates = FaultRates::default();
        Faults { seed: 0, script: BTreeMap::new(), rates, hold_ms: 30_000 }
    }
}

impl Faults {
    /// The fault of action `number`.
    pub fn of(&self, number: u64) -> Option<Fault> {
        if let Some(fault) = self.script.get(&number) {
            return Some(*fault);
        }
        let rates = &self.rates;
        let ladder = [
            (rates.error_before, Fault::ErrorBefore),
            (rates.error_after, Fault::ErrorAfter),
            (rates.timeout_before, Fault::TimeoutBefore),
            (rates.timeout_after, Fault::TimeoutAfter),
            (rates.throttle, Fault::Throttle),
            (rates.conflict, Fault::Conflict),
        ];
        let mut left = Draws::new(key(self.seed, Purpose::Fault, 0, 0), number).unit();
        for (rate, fault) in ladder {
            left -= rate.max(0.0);
            if left < 0.0 {
                return Some(fault);
            }
        }
        None
    }
}
