//! How long to wait before the next try: exponential with full jitter, capped.
//!
//! The jitter is a hash of (action id, attempt), not a random number: a test sees the same waits
//! every time, and two actions never wait in step.

use std::time::Duration;

use omnify_decision::action::Id;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Waits between tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Upper end of the first wait; doubles with each try.
    pub base: Duration,
    /// Upper end of every wait.
    pub cap: Duration,
    /// Calls of one action, the first included.
    pub attempts_max: u32,
}

impl Default for Backoff {
    /// 1 s doubling to 5 min, five calls: what the platforms' manuals ask for.
    fn default() -> Backoff {
        Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(300), attempts_max: 5 }
    }
}

impl Backoff {
    /// The wait after `attempt` failed tries (1, 2, …), at least `floor`.
    pub(super) fn wait(&self, id: Id, attempt: u32, floor: Option<Duration>) -> Duration {
        let doubled = self.base.saturating_mul(1 << attempt.saturating_sub(1).min(30));
        let ceiling_us = u64::try_from(doubled.min(self.cap).as_micros()).unwrap_or(u64::MAX);
        let draw = xxh3_64_with_seed(&id.0, u64::from(attempt));
        let jittered = Duration::from_micros(draw % ceiling_us.max(1));
        // What the platform asked for is a lower bound; the jitter spreads the herd above it.
        floor.unwrap_or_default() + jittered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_are_capped_and_repeat_exactly() {
        let backoff = Backoff { cap: Duration::from_secs(8), ..Backoff::default() };
        let ids: Vec<_> = (0..200u8).map(|n| Id([n; 16])).collect();
        for attempt in 1..40 {
            let ceiling = Duration::from_secs(1 << (attempt - 1).min(3));
            let waits: Vec<_> = ids.iter().map(|id| backoff.wait(*id, attempt, None)).collect();
            assert!(waits.iter().all(|wait| *wait < ceiling));
            assert!(waits.iter().any(|wait| *wait > ceiling / 2), "full jitter uses the range");
            assert_eq!(waits[7], backoff.wait(ids[7], attempt, None));
        }
        let floor = Duration::from_secs(60);
        assert!(backoff.wait(ids[0], 1, Some(floor)) >= floor);
    }
}
