//! What gives way when the engine cannot keep its latency, in which order, and when it comes back.
//!
//! | level | what gives way |
//! |---|---|
//! | 0 | nothing |
//! | 1 | ticks are twice as long; creatives and ad groups are evaluated less often |
//! | 2 | ticks are four times as long; idle entities are not evaluated |
//! | 3 | ticks are eight times as long; campaigns that spend nothing now are evaluated less often |
//!
//! So campaigns that spend are decided on at every level, and no event is ever dropped: beyond the
//! last level the queues fill and the sources are paused. The level rises when the oldest tick not
//! yet decided upon has waited for [`BEHIND`], at most once in [`RISE_AFTER`]; it falls by one after
//! [`FALL_AFTER`] below [`CAUGHT_UP`]. It is an input of the tick, so a replay does the same.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use omnify_operators::model::Tick;

/// The highest level.
const LEVEL_MAX: u8 = 3;
/// From this lag on the engine is behind.
const BEHIND: Duration = Duration::from_millis(100);
/// Below this lag it has caught up.
const CAUGHT_UP: Duration = Duration::from_millis(25);
/// Least time between two rises.
const RISE_AFTER: Duration = Duration::from_millis(500);
/// Time without lag before the level falls by one.
const FALL_AFTER: Duration = Duration::from_secs(5);

/// Watches the lag of decisions.
#[derive(Debug)]
pub(super) struct Overload {
    level: u8,
    changed: Instant,
    behind: Instant,
    /// Ticks not decided upon yet, with the time at which they were closed. Bounded by the queues
    /// between here and the decision thread.
    open: VecDeque<(Tick, Instant)>,
}

impl Overload {
    pub(super) fn new(now: Instant) -> Overload {
        Overload { level: 0, changed: now, behind: now, open: VecDeque::new() }
    }

    pub(super) fn level(&self) -> u8 {
        self.level
    }

    /// How long the ticks are now.
    pub(super) fn stretch(&self, tick: Duration) -> Duration {
        tick * (1 << self.level)
    }

    /// A tick was closed; `decided` is the last one decided upon. Returns the lag when the level has
    /// changed by it.
    pub(super) fn closed(&mut self, tick: Tick, decided: Tick, now: Instant) -> Option<Duration> {
        self.open.push_back((tick, now));
        while self.open.front().is_some_and(|(open, _)| *open <= decided) {
            self.open.pop_front();
        }
        let lag = self.open.front().map_or(Duration::ZERO, |(_, at)| now.duration_since(*at));
        if lag >= CAUGHT_UP {
            self.behind = now;
        }
        let since = now.duration_since(self.changed);
        if lag >= BEHIND && self.level < LEVEL_MAX && since >= RISE_AFTER {
            self.level += 1;
        } else if self.level > 0
            && now.duration_since(self.behind) >= FALL_AFTER
            && since >= FALL_AFTER
        {
            self.level -= 1;
        } else {
            return None;
        }
        self.changed = now;
        Some(lag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_step_by_step_while_behind_and_falls_step_by_step_when_caught_up() {
        let start = crate::clock::instant();
        let at = |ms| start + Duration::from_millis(ms);
        let mut overload = Overload::new(start);
        let mut levels = Vec::new();
        // Nothing is decided for three seconds.
        for ms in (0..3_000).step_by(100) {
            overload.closed(ms + 1, 0, at(ms));
            levels.push(overload.level());
        }
        assert!(levels.is_sorted() && levels.contains(&1) && levels.contains(&2), "{levels:?}");
        assert_eq!(overload.level(), 3);
        assert_eq!(overload.stretch(Duration::from_millis(10)), Duration::from_millis(80));
        // Then everything is decided at once.
        for ms in (3_000..20_000).step_by(100) {
            overload.closed(ms + 1, ms + 1, at(ms));
        }
        assert_eq!(overload.level(), 0);
        assert!(overload.open.is_empty());
    }

    #[test]
    fn a_short_stall_changes_nothing() {
        let start = crate::clock::instant();
        let mut overload = Overload::new(start);
        for ms in 0..2_000 {
            let decided = if (300..390).contains(&ms) { 300 } else { ms };
            let now = start + Duration::from_millis(ms);
            assert_eq!(overload.closed(ms, decided, now), None);
        }
    }
}
