//! Values with units as they are written in TOML: spans of time (`"15m"`), sizes (`"1MiB"`) and
//! exact decimals (`"12.50"`). Each refuses what it cannot represent, and says what to write.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Units of [`Span`], shortest first.
const TIME_UNITS: [(&str, u64); 6] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

/// Units of [`Size`], smallest first.
const SIZE_UNITS: [(&str, u64); 4] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (count, unit) = text.split_at(split);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    let value = count.parse::<u64>().ok()?.checked_mul(*scale)?;
    (i64::try_from(value).is_ok()).then_some(value)
}

fn print_unit(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    let (name, scale) =
        units.iter().rev().find(|(_, scale)| value.is_multiple_of(*scale)).unwrap_or(&units[0]);
    write!(f, "{}{name}", value / scale)
}

/// A length of time, written as a whole number and a unit: `us`, `ms`, `s`, `m`, `h` or `d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    us: u64,
}

impl Span {
    /// Length in microseconds.
    pub const fn us(self) -> i64 {
        self.us as i64
    }

    /// Length in milliseconds, rounded up.
    pub const fn ms(self) -> u64 {
        self.us.div_ceil(1_000)
    }

    /// As the standard library's type.
    pub const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_micros(self.us)
    }

    /// Reads `15m` and the like; `None` when it is not a span.
    pub fn parse(text: &str) -> Option<Span> {
        with_unit(text, &TIME_UNITS).map(|us| Span { us })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_unit(f, self.us, &TIME_UNITS)
    }
}

/// A number of bytes, written as a whole number and a unit: `B`, `KiB`, `MiB` or `GiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size {
    bytes: u64,
}

impl Size {
    /// Bytes.
    pub const fn bytes(self) -> usize {
        self.bytes as usize
    }

    /// Reads `1MiB` and the like; `None` when it is not a size.
    pub fn parse(text: &str) -> Option<Size> {
        with_unit(text, &SIZE_UNITS).map(|bytes| Size { bytes })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_unit(f, self.bytes, &SIZE_UNITS)
    }
}

/// A decimal number with at most six digits after the point, held exactly in millionths.
///
/// Money and target ratios are written this way (`"12.50"`): TOML's floats are binary and cannot
/// hold most amounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decimal {
    micros: i64,
}

impl Decimal {
    /// Millionths: micros of the currency, where it is money.
    pub const fn micros(self) -> i64 {
        self.micros
    }

    /// The nearest float, for ratios.
    pub fn ratio(self) -> f64 {
        self.micros as f64 / 1e6
    }

    /// Reads digits with an optional sign and at most six digits after a point.
    pub fn parse(text: &str) -> Option<Decimal> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let numeric = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !numeric(whole) || !numeric(fraction) || fraction.len() > 6 {
            return None;
        }
        if digits.ends_with('.') {
            return None;
        }
        let whole: i64 = whole.parse().ok()?;
        let fraction: i64 = format!("{fraction:0<6}").parse().ok()?;
        let micros = whole.checked_mul(1_000_000)?.checked_add(fraction)?;
        Some(Decimal { micros: if negative { -micros } else { micros } })
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.micros < 0 { "-" } else { "" };
        let abs = self.micros.unsigned_abs();
        let fraction = format!("{:06}", abs % 1_000_000);
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        write!(f, "{sign}{}{point}{fraction}", abs / 1_000_000)
    }
}

macro_rules! text_value {
    ($type:ty, $expecting:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        <$type>::parse(text)
                            .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

text_value!(
    Span,
    "a span of time in quotes: a whole number and a unit (us, ms, s, m, h, d), for example \"15m\""
);
text_value!(
    Size,
    "a size in quotes: a whole number and a unit (B, KiB, MiB, GiB), for example \"1MiB\""
);
text_value!(
    Decimal,
    "a decimal number in quotes with at most six digits after the point, for example \"12.50\""
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_read_and_print() {
        assert_eq!(Span::parse("15m").unwrap().us(), 900_000_000);
        assert_eq!(Span::parse("10ms").unwrap().ms(), 10);
        assert_eq!(Span::parse("1us").unwrap().ms(), 1);
        assert_eq!(Span::parse("90s").unwrap().to_string(), "90s");
        assert_eq!(Size::parse("1MiB").unwrap().bytes(), 1_048_576);
        assert_eq!(Size::parse("1536B").unwrap().to_string(), "1536B");
        for bad in ["", "15", "m", "1.5h", "-1s", "1 s", "1MB", "99999999999999d"] {
            assert_eq!(Span::parse(bad), None, "{bad}");
            assert_eq!(Size::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn decimals_are_exact() {
        assert_eq!(Decimal::parse("12.50").unwrap().micros(), 12_500_000);
        assert_eq!(Decimal::parse("0.1").unwrap().micros(), 100_000);
        assert_eq!(Decimal::parse("-3").unwrap().micros(), -3_000_000);
        assert_eq!(Decimal::parse("0.000001").unwrap().to_string(), "0.000001");
        assert_eq!(Decimal::parse("12.50").unwrap().to_string(), "12.5");
        for bad in ["", ".", ".5", "5.", "1e3", "NaN", "0.0000001", "1,5", "9300000000000"] {
            assert_eq!(Decimal::parse(bad), None, "{bad}");
        }
    }
}
