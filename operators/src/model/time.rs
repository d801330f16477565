//! Two clocks. *Event time* (µs since the Unix epoch, UTC) says what a metric belongs to; the
//! *tick* (ms since the Unix epoch) says when the engine knew it and is the dataflow timestamp.
//!
//! A window slides in panes. At tick τ it is the pane that holds τ and the `width / pane − 1`
//! panes before it, so at a pane end `e` it has covered event times `[e − width, e)`, the edges
//! of a SQL `HOP` window.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Engine time in ms since the Unix epoch: the timestamp of the dataflow.
pub type Tick = u64;

/// Event time in µs since the Unix epoch, UTC.
pub type EventTime = i64;

/// Microseconds in a minute.
pub const MINUTE_US: i64 = 60_000_000;
/// Microseconds in an hour.
pub const HOUR_US: i64 = 60 * MINUTE_US;
/// Microseconds in a (UTC) day.
pub const DAY_US: i64 = 24 * HOUR_US;

/// The event time of the instant at which `tick` begins.
pub fn us_of_tick(tick: Tick) -> EventTime {
    i64::try_from(tick).unwrap_or(i64::MAX / 1_000).saturating_mul(1_000)
}

/// The first tick at or after `time`; times before the epoch give tick 0.
pub fn tick_of_us(time: EventTime) -> Tick {
    u64::try_from(time.max(0)).unwrap_or(0).div_ceil(1_000)
}

/// A length of time with a unit, written `90s`, `15m`, `2h`, `7d`, `10ms`, `5us`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    us: i64,
}

impl Span {
    /// A span of `us` microseconds.
    pub const fn from_us(us: i64) -> Span {
        Span { us }
    }

    /// Length in microseconds.
    pub const fn us(self) -> i64 {
        self.us
    }

    /// Length in whole milliseconds, at least one for a span above zero.
    pub const fn ms(self) -> u64 {
        (self.us as u64).div_ceil(1_000)
    }
}

const UNITS: [(&str, i64); 6] =
    [("us", 1), ("ms", 1_000), ("s", 1_000_000), ("m", MINUTE_US), ("h", HOUR_US), ("d", DAY_US)];

impl FromStr for Span {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (count, unit) = text.split_at(split);
        let unit = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, us)| *us);
        match (count.parse::<i64>().ok(), unit) {
            (Some(count), Some(unit)) => {
                count.checked_mul(unit).map(Span::from_us).ok_or_else(|| WindowError::span(text))
            }
            _ => Err(WindowError::span(text)),
        }
    }
}

impl TryFrom<String> for Span {
    type Error = WindowError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One day is written 24h, as in the names of the default windows.
        let (name, unit) = UNITS
            .iter()
            .rev()
            .find(|(_, us)| self.us % us == 0 && self.us != *us * i64::from(*us == DAY_US))
            .copied()
            .unwrap_or(("us", 1));
        write!(f, "{}{name}", self.us / unit)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A rolling window: `WIDTH/PANE`, or `day` for the account-local calendar day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum WindowSpec {
    /// `width` slides by `pane`; panes start at multiples of `pane` since the Unix epoch (UTC).
    Hop {
        /// Length of the window.
        width: Span,
        /// Grain in which it slides; divides `width`.
        pane: Span,
    },
    /// The calendar day of the account's time zone: one pane, from local midnight to midnight.
    Day,
}

/// A text that is not a window or a span.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Not a number with a unit.
    #[error(
        "`{0}` is not a span of time: write a whole number and a unit (us, ms, s, m, h, d), for example 15m"
    )]
    Span(String),
    /// Not `WIDTH/PANE` or `day`.
    #[error("`{0}` is not a window: write WIDTH/PANE, for example 24h/15m, or day")]
    Window(String),
    /// The pane does not divide the width, or one of them is zero.
    #[error("window `{0}`: the pane must be above zero and divide the width")]
    Uneven(String),
}

impl WindowError {
    fn span(text: &str) -> WindowError {
        WindowError::Span(text.to_owned())
    }
}

impl WindowSpec {
    /// Panes in the window.
    pub fn panes(&self) -> i64 {
        match self {
            WindowSpec::Hop { width, pane } => width.us() / pane.us(),
            WindowSpec::Day => 1,
        }
    }

    /// Nominal width in µs (a local day is 23 to 25 hours; this says 24).
    pub fn width_us(&self) -> i64 {
        match self {
            WindowSpec::Hop { width, .. } => width.us(),
            WindowSpec::Day => DAY_US,
        }
    }
}

impl FromStr for WindowSpec {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "day" {
            return Ok(WindowSpec::Day);
        }
        let (width, pane) =
            text.split_once('/').ok_or_else(|| WindowError::Window(text.to_owned()))?;
        let (width, pane): (Span, Span) = (width.parse()?, pane.parse()?);
        if pane.us() <= 0 || width.us() <= 0 || width.us() % pane.us() != 0 {
            return Err(WindowError::Uneven(text.to_owned()));
        }
        Ok(WindowSpec::Hop { width, pane })
    }
}

impl TryFrom<String> for WindowSpec {
    type Error = WindowError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<WindowSpec> for String {
    fn from(window: WindowSpec) -> String {
        window.to_string()
    }
}

impl fmt::Display for WindowSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WindowSpec::Hop { width, pane } => write!(f, "{width}/{pane}"),
            WindowSpec::Day => f.write_str("day"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_read_and_print() {
        for text in ["1h/1m", "24h/15m", "7d/2h", "28d/6h", "day"] {
            assert_eq!(text.parse::<WindowSpec>().unwrap().to_string(), text);
        }
        assert_eq!("24h/15m".parse::<WindowSpec>().unwrap().panes(), 96);
        assert!(matches!("1h/7m".parse::<WindowSpec>(), Err(WindowError::Uneven(_))));
        assert!(matches!("1h".parse::<WindowSpec>(), Err(WindowError::Window(_))));
        assert!(matches!("1x/1m".parse::<WindowSpec>(), Err(WindowError::Span(_))));
        assert!("9223372036854775807d".parse::<Span>().is_err());
    }

    #[test]
    fn ticks_round_up() {
        assert_eq!(tick_of_us(0), 0);
        assert_eq!(tick_of_us(1), 1);
        assert_eq!(tick_of_us(1_000), 1);
        assert_eq!(tick_of_us(-5), 0);
        assert_eq!(us_of_tick(3), 3_000);
    }
}
