//! Which pane an instant belongs to, for windows that slide by a fixed grain and for local days.

use std::sync::Arc;

use jiff::{Timestamp, ToSpan as _, tz::TimeZone};

use crate::model::{DAY_US, EventTime, WindowSpec};

/// Panes of one kind of window. Panes are numbered without gaps; pane `p` ends where `p + 1` starts.
#[derive(Clone, Debug)]
pub(crate) enum Panes {
    /// Fixed grain in µs, numbered from the epoch.
    Fixed { pane_us: i64, count: i64 },
    /// Local calendar days, numbered by the days since 1970-01-01.
    Day(LocalDays),
}

impl Panes {
    pub(crate) fn new(window: &WindowSpec, zone: &Arc<TimeZone>) -> Panes {
        match window {
            WindowSpec::Hop { pane, .. } => {
                Panes::Fixed { pane_us: pane.us(), count: window.panes() }
            }
            WindowSpec::Day => Panes::Day(LocalDays::new(zone.clone())),
        }
    }

    /// Panes in the window.
    #[inline]
    pub(crate) fn count(&self) -> i64 {
        match self {
            Panes::Fixed { count, .. } => *count,
            Panes::Day(_) => 1,
        }
    }

    /// The pane that holds `time`.
    #[inline]
    pub(crate) fn of(&mut self, time: EventTime) -> i64 {
        match self {
            Panes::Fixed { pane_us, .. } => time.div_euclid(*pane_us),
            Panes::Day(days) => days.of(time),
        }
    }

    /// The first instant of pane `number`.
    pub(crate) fn start(&mut self, number: i64) -> EventTime {
        match self {
            Panes::Fixed { pane_us, .. } => number * *pane_us,
            Panes::Day(days) => days.start(number),
        }
    }
}

/// Numbers local days and remembers the day asked for last: almost every question is about it.
#[derive(Clone, Debug)]
pub(crate) struct LocalDays {
    zone: Arc<TimeZone>,
    day: i64,
    from: EventTime,
    until: EventTime,
}

impl LocalDays {
    fn new(zone: Arc<TimeZone>) -> LocalDays {
        LocalDays { zone, day: 0, from: 0, until: 0 }
    }

    #[inline]
    fn of(&mut self, time: EventTime) -> i64 {
        if time < self.from || time >= self.until {
            self.seek(time);
        }
        self.day
    }

    #[cold]
    fn seek(&mut self, time: EventTime) {
        let local = Timestamp::from_microsecond(time)
            .map_or(0, |at| i64::from(self.zone.to_offset(at).seconds()));
        // The local date by the offset at `time`; start() then finds the exact midnights.
        let mut day = (time + local * 1_000_000).div_euclid(DAY_US);
        while self.start(day) > time {
            day -= 1;
        }
        while self.start(day + 1) <= time {
            day += 1;
        }
        (self.day, self.from, self.until) = (day, self.start(day), self.start(day + 1));
    }

    /// Midnight at which local day `number` begins (the first instant that exists, where a clock
    /// change swallows midnight).
    fn start(&self, number: i64) -> EventTime {
        let date = i32::try_from(number)
            .ok()
            .and_then(|days| jiff::civil::date(1970, 1, 1).checked_add(days.days()).ok());
        date.and_then(|date| self.zone.to_zoned(date.into()).ok())
            .map_or(number * DAY_US, |midnight| midnight.timestamp().as_microsecond())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HOUR_US;

    fn at(text: &str) -> EventTime {
        text.parse::<Timestamp>().unwrap().as_microsecond()
    }

    #[test]
    fn local_days_follow_clock_changes() {
        let zone = Arc::new(TimeZone::get("Europe/Berlin").unwrap());
        let mut days = Panes::new(&WindowSpec::Day, &zone);
        let spring = days.of(at("2026-03-29T12:00:00Z"));
        assert_eq!(days.start(spring), at("2026-03-28T23:00:00Z"));
        assert_eq!(days.start(spring + 1) - days.start(spring), 23 * HOUR_US);
        let autumn = days.of(at("2026-10-25T12:00:00Z"));
        assert_eq!(days.start(autumn + 1) - days.start(autumn), 25 * HOUR_US);
        assert_eq!(days.of(at("2026-10-24T22:00:00Z")), autumn);
        assert_eq!(days.of(at("2026-10-24T21:59:59.999999Z")), autumn - 1);
    }

    #[test]
    fn every_hour_of_years_falls_into_its_day() {
        for name in ["America/Sao_Paulo", "Asia/Kathmandu", "Pacific/Apia", "UTC"] {
            let zone = Arc::new(TimeZone::get(name).unwrap());
            let mut days = Panes::new(&WindowSpec::Day, &zone);
            let mut time = at("2011-12-01T00:30:00Z");
            while time < at("2018-12-31T00:00:00Z") {
                let day = days.of(time);
                assert!(days.start(day) <= time && time < days.start(day + 1), "{name} {time}");
                time += 7 * HOUR_US;
            }
        }
    }
}
