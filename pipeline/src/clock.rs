//! The only place that reads a clock.
//!
//! A simulation puts a virtual clock in place of the system's on its own thread ([`Virtual`]); the
//! engine's parts that it steps there cannot tell the difference.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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
            Clock::System => match VIRTUAL.get() {
                Some(time) => time.wall,
                None => SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
            },
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
    VIRTUAL.get().map_or_else(Instant::now, |time| time.instant)
}

/// Time since `earlier`.
pub fn since(earlier: Instant) -> Duration {
    instant().saturating_duration_since(earlier)
}

/// Waits; virtual time passes at once.
pub fn sleep(time: Duration) {
    match VIRTUAL.get() {
        Some(_) => Virtual::pass(time),
        None => std::thread::sleep(time),
    }
}

thread_local! {
    static VIRTUAL: Cell<Option<Time>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct Time {
    wall: Tick,
    instant: Instant,
}

/// A virtual clock in place of the system's, on the thread that made it and while it lives. Time
/// passes only as it is told to.
#[derive(Debug)]
pub struct Virtual(());

impl Virtual {
    /// Begins with the wall clock at `wall`.
    pub fn start(wall: Tick) -> Virtual {
        VIRTUAL.set(Some(Time { wall, instant: Instant::now() }));
        Virtual(())
    }

    /// Sets the wall clock, also back.
    pub fn set_wall(wall: Tick) {
        VIRTUAL.set(VIRTUAL.get().map(|time| Time { wall, ..time }));
    }

    /// Time passes on both clocks.
    pub fn pass(by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        VIRTUAL.set(
            VIRTUAL.get().map(|time| Time {
                wall: time.wall.saturating_add(ms),
                instant: time.instant + by,
            }),
        );
    }
}

impl Drop for Virtual {
    fn drop(&mut self) {
        VIRTUAL.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_time_passes_only_when_told() {
        let started;
        {
            let _virtual = Virtual::start(1_000);
            started = instant();
            assert_eq!((Clock::System.now(), instant()), (1_000, started));
            sleep(Duration::from_millis(250));
            assert_eq!(Clock::System.now(), 1_250);
            assert_eq!(instant() - started, Duration::from_millis(250));
            Virtual::set_wall(400);
            assert_eq!(Clock::System.now(), 400);
            assert_eq!(std::thread::spawn(|| Clock::System.now() > 1_250).join().ok(), Some(true));
        }
        assert!(Clock::System.now() > 1_250);
    }
}
