//! The only place that reads a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use omnify_operators::model::Tick;

/// Tells the present tick.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The system's wall clock.
    #[default]
    System,
    /// A clock that somebody sets: simulated time, or a test.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// A clock to be set, standing at `tick`.
    pub fn manual(tick: Tick) -> Clock {
        Clock::Manual(Arc::new(AtomicU64::new(tick)))
    }

    /// The present tick.
    pub fn now(&self) -> Tick {
        match self {
            Clock::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
            Clock::Manual(tick) => tick.load(Ordering::Acquire),
        }
    }

    /// Moves a manual clock forward; never back. The system clock cannot be set.
    pub fn advance(&self, to: Tick) {
        if let Clock::Manual(tick) = self {
            tick.fetch_max(to, Ordering::AcqRel);
        }
    }
}

/// A point on the monotonic clock, for latencies.
pub fn instant() -> Instant {
    Instant::now()
}
