//! Which pane an instant belongs to, for windows that slide by a fixed grain and for local days.

use std::sync::Arc;

use jiff::{Timestamp, ToSpan as _, tz::TimeZone};

use crate::model::{DAY_US, EventTime, WindowSpec};

/// The panes of every window in one time zone.
#[derive(Clone, Debug)]
pub(crate) struct Calendar {
    pub(crate) zone: Arc<TimeZone>,
    /// By window.
    pub(crate) panes: Vec<Panes>,
    ended: Ended,
}

/// Which windows have a pane that ends after the start of base pane `from` and not after that of
/// `until`: (window, the pane that begins last). Entities are closed over the same stretch one
/// after the other, so the answer is kept.
#[derive(Clone, Debug, Default)]
struct Ended {
    from: i64,
    until: i64,
    windows: Vec<(u8, i64)>,
}

impl Calendar {
    pub(crate) fn new(windows: &[WindowSpec], zone: Arc<TimeZone>) -> Calendar {
        let panes = windows.iter().map(|window| Panes::new(window, &zone)).collect();
        Calendar { zone, panes, ended: Ended::default() }
    }

    /// Windows with a pane end in `(from, until]` (starts of base panes), each with its pane that
    /// holds `until`; and all panes.
    #[inline]
    pub(crate) fn ended(
        &mut self,
        from: i64,
        until: i64,
        base_us: i64,
    ) -> (&[(u8, i64)], &[Panes]) {
        if (self.ended.from, self.ended.until) != (from, until) {
            (self.ended.from, self.ended.until) = (from, until);
            self.ended.windows.clear();
            for (at, panes) in self.panes.iter_mut().enumerate() {
                let pane = panes.pane(until * base_us);
                if from * base_us < pane.from {
                    self.ended.windows.push((at as u8, pane.number));
                }
            }
        }
        (&self.ended.windows, &self.panes)
    }
}

/// Panes of one kind of window. Panes are numbered without gaps; pane `p` ends where `p + 1` starts.
///
/// The two panes asked for last are remembered: almost every question is about the current one or
/// the one before, and neither a division nor a time zone is needed to answer again.
#[derive(Clone, Debug)]
pub(crate) struct Panes {
    kind: Kind,
    count: i64,
    newest: Pane,
    before: Pane,
}

#[derive(Clone, Debug)]
enum Kind {
    /// A fixed grain in µs, numbered from the epoch.
    Fixed(i64),
    /// Local calendar days, numbered by the days since 1970-01-01.
    Day(Arc<TimeZone>),
}

#[derive(Clone, Copy, Debug, Default)]
struct Pane {
    number: i64,
    from: EventTime,
    until: EventTime,
}

impl Pane {
    #[inline]
    fn holds(&self, time: EventTime) -> bool {
        self.from <= time && time < self.until
    }
}

impl Panes {
    pub(crate) fn new(window: &WindowSpec, zone: &Arc<TimeZone>) -> Panes {
        let kind = match window {
            WindowSpec::Hop { pane, .. } => Kind::Fixed(pane.us()),
            WindowSpec::Day => Kind::Day(zone.clone()),
        };
        let count = window.panes();
        Panes { kind, count, newest: Pane::default(), before: Pane::default() }
    }

    /// Panes in the window.
    #[inline]
    pub(crate) fn count(&self) -> i64 {
        self.count
    }

    /// The pane that holds `time`.
    #[inline]
    pub(crate) fn of(&mut self, time: EventTime) -> i64 {
        self.pane(time).number
    }

    #[inline]
    fn pane(&mut self, time: EventTime) -> Pane {
        if self.newest.holds(time) {
            self.newest
        } else if self.before.holds(time) {
            self.before
        } else {
            self.seek(time)
        }
    }

    #[inline(never)]
    fn seek(&mut self, time: EventTime) -> Pane {
        let number = match &self.kind {
            Kind::Fixed(pane_us) => time.div_euclid(*pane_us),
            Kind::Day(zone) => {
                let local = Timestamp::from_microsecond(time)
                    .map_or(0, |at| i64::from(zone.to_offset(at).seconds()));
                // The local date by the offset at `time`; the exact midnights decide.
                let mut day = (time + local * 1_000_000).div_euclid(DAY_US);
                while self.start(day) > time {
                    day -= 1;
                }
                while self.start(day + 1) <= time {
                    day += 1;
                }
                day
            }
        };
        let pane = Pane { number, from: self.start(number), until: self.start(number + 1) };
        self.before = std::mem::replace(&mut self.newest, pane);
        pane
    }

    /// The first instant of pane `number`: of a local day the midnight at which it begins, or the
    /// first instant that exists, where a clock change swallows midnight.
    pub(crate) fn start(&self, number: i64) -> EventTime {
        match &self.kind {
            Kind::Fixed(pane_us) => number * *pane_us,
            Kind::Day(zone) => {
                let date = i32::try_from(number)
                    .ok()
                    .and_then(|days| jiff::civil::date(1970, 1, 1).checked_add(days.days()).ok());
                date.and_then(|date| zone.to_zoned(date.into()).ok())
                    .map_or(number * DAY_US, |midnight| midnight.timestamp().as_microsecond())
            }
        }
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
