//! The account-local calendar day, computed once a day and not once a decision.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use omnify_operators::model::{DAY_US, EventTime};
use serde::{Deserialize, Serialize};

/// A local day as instants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalDay {
    /// Local midnight, inclusive.
    pub(crate) start_us: EventTime,
    /// The next local midnight, exclusive.
    pub(crate) end_us: EventTime,
    /// 0 for Monday.
    pub(crate) weekday: usize,
}

impl LocalDay {
    /// The day in `zone` that holds `now_us`; the UTC day for instants no calendar can name.
    pub(crate) fn holding(zone: &TimeZone, now_us: EventTime) -> LocalDay {
        LocalDay::try_holding(zone, now_us).unwrap_or_else(|| {
            let days = now_us.div_euclid(DAY_US);
            let start_us = days.saturating_mul(DAY_US);
            let weekday = (days + 3).rem_euclid(7) as usize; // the epoch was a Thursday
            LocalDay { start_us, end_us: start_us.saturating_add(DAY_US), weekday }
        })
    }

    fn try_holding(zone: &TimeZone, now_us: EventTime) -> Option<LocalDay> {
        let now = Timestamp::from_microsecond(now_us).ok()?.to_zoned(zone.clone());
        let start = now.start_of_day().ok()?;
        let end = start.tomorrow().ok()?.start_of_day().ok()?;
        let weekday = usize::try_from(start.weekday().to_monday_zero_offset()).ok()?;
        let (start, end) = (start.timestamp(), end.timestamp());
        Some(LocalDay { start_us: start.as_microsecond(), end_us: end.as_microsecond(), weekday })
    }

    /// Whether the instant is in the day.
    pub(crate) fn holds(&self, now_us: EventTime) -> bool {
        (self.start_us..self.end_us).contains(&now_us)
    }

    /// Position of an instant in the day, 0 at midnight and 24 at the next: the hour by the clock,
    /// except that the hours of a 23- or 25-hour day are stretched evenly.
    pub(crate) fn position(&self, now_us: EventTime) -> f64 {
        let length = (self.end_us - self.start_us).max(1) as f64;
        ((now_us - self.start_us) as f64 / length).clamp(0.0, 1.0) * 24.0
    }

    /// Length of one unit of [`LocalDay::position`].
    pub(crate) fn hour_us(&self) -> f64 {
        (self.end_us - self.start_us).max(1) as f64 / 24.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnify_operators::model::HOUR_US;

    #[test]
    fn days_follow_the_zone_and_its_changes() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let us = |text: &str| text.parse::<Timestamp>().unwrap().as_microsecond();
        let day = LocalDay::holding(&berlin, us("2024-03-31T10:00:00Z"));
        assert_eq!(day.start_us, us("2024-03-30T23:00:00Z"));
        assert_eq!(day.end_us - day.start_us, 23 * HOUR_US);
        assert_eq!(day.weekday, 6);
        assert!(day.holds(day.start_us) && !day.holds(day.end_us));
        assert_eq!(day.position(day.start_us), 0.0);
        assert_eq!(day.position(day.end_us), 24.0);
        let utc = LocalDay::holding(&TimeZone::UTC, i64::MAX - DAY_US);
        assert!(utc.end_us > utc.start_us);
    }
}
