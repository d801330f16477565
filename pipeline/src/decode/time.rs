//! Event times of foreign files: Unix numbers, RFC 3339, or a strptime format in a time zone.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::fmt::strtime::BrokenDownTime;
use jiff::tz::TimeZone;
use omnify_operators::model::{DAY_US, EventTime, micros_from_decimal};

/// Earliest accepted time: ticks count from the Unix epoch.
pub const TIME_US_MIN: EventTime = 0;
/// Latest accepted time, 2100-01-01: seconds read as milliseconds do not pass as the far future.
pub const TIME_US_MAX: EventTime = 47_482 * DAY_US;

/// How a text becomes a time.
#[derive(Clone, Debug)]
pub(crate) enum TimeFormat {
    /// A number of units since the Unix epoch; each unit is this many nanoseconds.
    Unix(i64),
    /// `2025-01-31T12:00:00Z` and the like.
    Rfc3339,
    /// A strptime format; without an offset in it, the time is one of the zone.
    Strptime(String, TimeZone),
}

impl TimeFormat {
    /// The format called `format`, with times of `zone` where they name none.
    pub(crate) fn parse_name(format: &str, zone: Option<&str>) -> Result<TimeFormat, String> {
        let zone = match zone {
            Some(name) => TimeZone::get(name).map_err(|_| {
                format!("`{name}` is not a time zone: use an IANA name, for example Europe/Berlin")
            })?,
            None => TimeZone::UTC,
        };
        match format {
            "unix_s" => Ok(TimeFormat::Unix(1_000_000_000)),
            "unix_ms" => Ok(TimeFormat::Unix(1_000_000)),
            "unix_us" => Ok(TimeFormat::Unix(1_000)),
            "unix_ns" => Ok(TimeFormat::Unix(1)),
            "rfc3339" => Ok(TimeFormat::Rfc3339),
            _ if format.contains('%') => Ok(TimeFormat::Strptime(format.to_owned(), zone)),
            _ => Err(format!(
                "`{format}` is not a time format: use unix_s, unix_ms, unix_us, unix_ns, rfc3339, or a strptime format such as %Y-%m-%d"
            )),
        }
    }

    /// Whether times are numbers.
    pub(crate) fn is_number(&self) -> bool {
        matches!(self, TimeFormat::Unix(_))
    }

    /// What one unit of a number is worth, where that is whole microseconds.
    pub(crate) fn micros_of_unit(&self) -> Option<i64> {
        match self {
            TimeFormat::Unix(nanos) if *nanos >= 1_000 => Some(nanos / 1_000),
            _ => None,
        }
    }

    /// The time that a whole number says, if it can be one.
    #[inline]
    pub(crate) fn of_number(&self, number: i64) -> Option<EventTime> {
        match self {
            TimeFormat::Unix(nanos) if *nanos >= 1_000 => number.checked_mul(nanos / 1_000),
            TimeFormat::Unix(_) => Some(number.div_euclid(1_000)),
            _ => self.of_text(&number.to_string()),
        }
    }

    /// The time that `text` says.
    pub(crate) fn of_text(&self, text: &str) -> Option<EventTime> {
        match self {
            TimeFormat::Unix(nanos) => match text.parse::<i64>() {
                Ok(number) => self.of_number(number),
                Err(_) if *nanos >= 1_000 => micros_from_decimal(text, b'.', nanos / 1_000),
                Err(_) => None,
            },
            TimeFormat::Rfc3339 => text.parse::<Timestamp>().ok().map(Timestamp::as_microsecond),
            TimeFormat::Strptime(format, zone) => {
                let parsed = BrokenDownTime::parse(format, text).ok()?;
                if let Ok(timestamp) = parsed.to_timestamp() {
                    return Some(timestamp.as_microsecond());
                }
                let civil = match parsed.to_datetime() {
                    Ok(datetime) => datetime,
                    Err(_) => DateTime::from(parsed.to_date().ok()?),
                };
                Some(civil.to_zoned(zone.clone()).ok()?.timestamp().as_microsecond())
            }
        }
    }
}

/// How long the interval of a report row is.
#[derive(Clone, Debug)]
pub(crate) enum Interval {
    /// A fixed length, in µs.
    Fixed(i64),
    /// The calendar day of the zone.
    Day(TimeZone),
}

impl Interval {
    /// The end of the interval that starts at `start`.
    pub(crate) fn end(&self, start: EventTime) -> Option<EventTime> {
        match self {
            Interval::Fixed(us) => start.checked_add(*us),
            Interval::Day(zone) => {
                let start = Timestamp::from_microsecond(start).ok()?.to_zoned(zone.clone());
                Some(start.tomorrow().ok()?.timestamp().as_microsecond())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: &str, zone: Option<&str>, text: &str) -> Option<EventTime> {
        TimeFormat::parse_name(format, zone).unwrap().of_text(text)
    }

    #[test]
    fn formats_agree_on_an_instant() {
        let time = Some(1_382_752_800_000_000);
        assert_eq!(read("unix_s", None, "1382752800"), time);
        assert_eq!(read("unix_s", None, "1382752800.000"), time);
        assert_eq!(read("unix_ms", None, "1382752800000"), time);
        assert_eq!(read("unix_us", None, "1382752800000000"), time);
        assert_eq!(read("unix_ns", None, "1382752800000000999"), time);
        assert_eq!(read("rfc3339", None, "2013-10-26T02:00:00Z"), time);
        assert_eq!(read("rfc3339", None, "2013-10-26T10:00:00+08:00"), time);
        let civil = "2013-10-26 10:00:00";
        assert_eq!(read("%Y-%m-%d %H:%M:%S", Some("Asia/Shanghai"), civil), time);
        assert_eq!(read("%Y-%m-%d %H:%M:%S %z", None, "2013-10-26 10:00:00 +0800"), time);
        assert_eq!(read("%Y %B %d", None, "2020 April 1"), Some(1_585_699_200_000_000));
        for bad in ["", "yesterday", "NaN", "1e9", "99999999999999999999"] {
            assert_eq!(read("unix_s", None, bad), None, "{bad}");
            assert_eq!(read("rfc3339", None, bad), None, "{bad}");
            assert_eq!(read("%Y %B %d", None, bad), None, "{bad}");
        }
        assert!(TimeFormat::parse_name("unix", None).is_err());
        assert!(TimeFormat::parse_name("%Y", Some("Mars/Base")).is_err());
    }

    #[test]
    fn days_follow_the_zone() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        // 2020-03-29 has 23 hours in Berlin.
        let start = read("%Y-%m-%d", Some("Europe/Berlin"), "2020-03-29").unwrap();
        let hours = (Interval::Day(berlin).end(start).unwrap() - start) / 3_600_000_000;
        assert_eq!(hours, 23);
        assert_eq!(Interval::Fixed(5).end(i64::MAX), None);
    }
}
