//! The week: how many people are there at an account-local hour, and how dear they are.

use omnify_operators::model::{DAY_US, EventTime, HOUR_US};

/// Share of the day's swing that follows one cosine per day.
const DAILY_SWING: f64 = 0.55;
/// A second, faster cosine that makes the night flat and the evening steep.
const HALF_DAY_SWING: f64 = 0.15;
/// How far competitors' log prices follow the day.
const PRICE_SWING: f64 = 0.22;
/// How far they fall on a weekend.
const PRICE_WEEKEND: f64 = -0.10;

/// A place in the account-local week.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeekTime {
    /// Hours since local midnight, 0 to 24.
    pub(crate) hour: f64,
    /// Saturday or Sunday.
    pub(crate) weekend: bool,
}

impl WeekTime {
    /// The place of `time` where local time is `offset_us` ahead of UTC.
    pub(crate) fn at(time: EventTime, offset_us: i64) -> WeekTime {
        let local = time.saturating_add(offset_us);
        let hour = local.rem_euclid(DAY_US) as f64 / HOUR_US as f64;
        // The epoch was a Thursday; Saturday and Sunday are days 2 and 3 after it.
        let weekend = matches!(local.div_euclid(DAY_US).rem_euclid(7), 2 | 3);
        WeekTime { hour, weekend }
    }

    /// Opportunities relative to the mean of the week, which is 1. `weekend` is the level of a
    /// weekend day.
    pub(crate) fn demand(self, peak_hour: f64, weekend: f64) -> f64 {
        let angle = std::f64::consts::TAU * (self.hour - peak_hour) / 24.0;
        let day = 1.0 + DAILY_SWING * angle.cos() + HALF_DAY_SWING * (2.0 * angle).cos();
        day * if self.weekend { weekend } else { (7.0 - 2.0 * weekend) / 5.0 }
    }

    /// What competitors add to the logarithm of their price.
    pub(crate) fn log_price(self, peak_hour: f64) -> f64 {
        let angle = std::f64::consts::TAU * (self.hour - peak_hour) / 24.0;
        PRICE_SWING * angle.cos() + if self.weekend { PRICE_WEEKEND } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_week_has_mean_one() {
        let sum: f64 = (0..7 * 24)
            .map(|hour| WeekTime::at(hour * HOUR_US, 0).demand(19.0, 0.7))
            .inspect(|level| assert!(*level > 0.0))
            .sum();
        assert!((sum / 168.0 - 1.0).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn weekends_are_local() {
        let saturday = 2 * DAY_US;
        assert!(WeekTime::at(saturday, 0).weekend);
        assert!(!WeekTime::at(saturday, -HOUR_US).weekend);
        assert!(WeekTime::at(saturday - HOUR_US, HOUR_US).weekend);
    }
}
