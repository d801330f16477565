//! One value of a row, in whatever form its format has it, and how it becomes text or a number.

use std::borrow::Cow;
use std::fmt::Write;

use omnify_operators::model::{EventTime, MICROS_PER_UNIT, micros_from_decimal};

use super::reason::{Reason, Reject};

/// A value of a row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell<'a> {
    /// No value.
    Null,
    /// Text as it stands in the file, not yet known to be UTF-8.
    Raw(&'a [u8]),
    /// Text.
    Text(Cow<'a, str>),
    /// A whole number.
    Int(i64),
    /// Another number.
    Float(f64),
    /// A time that the file itself types as one.
    Time(EventTime),
    /// A list or an object, which no field can be.
    Nested,
}

/// Largest accepted amount: 10⁹ units of a currency in one row; the sum of thousands still fits.
pub(crate) const AMOUNT_MAX: i64 = 1_000_000_000 * MICROS_PER_UNIT;
/// Largest accepted count of one report row.
pub(crate) const COUNT_MAX: i64 = 1_000_000_000_000;

impl Cell<'_> {
    /// Appends the text of the value to `out`; false when there is none.
    pub(crate) fn append(
        &self,
        out: &mut String,
        is_null: impl Fn(&str) -> bool,
    ) -> Result<bool, Reject> {
        let text = match self {
            Cell::Null => return Ok(false),
            Cell::Raw(bytes) => utf8(bytes)?,
            Cell::Text(text) => text,
            Cell::Int(number) | Cell::Time(number) => {
                out.push_str(itoa::Buffer::new().format(*number));
                return Ok(true);
            }
            Cell::Float(number) => {
                let _ = write!(out, "{number}");
                return Ok(true);
            }
            Cell::Nested => return Err(Reject::new(Reason::BadNumber, "is a list or an object")),
        };
        if is_null(text) {
            return Ok(false);
        }
        out.push_str(text);
        Ok(true)
    }

    /// The whole number that the value is, if it is plainly one: the common case, without a copy.
    #[inline]
    pub(crate) fn plain_int(&self) -> Option<i64> {
        match self {
            Cell::Int(number) => Some(*number),
            Cell::Raw(bytes) => digits(bytes),
            Cell::Text(text) => digits(text.as_bytes()),
            _ => None,
        }
    }

    /// The value times `unit_micros`, `None` without a value. Digits below one micro are rounded.
    pub(crate) fn micros(
        &self,
        unit_micros: i64,
        decimal: u8,
        is_null: impl Fn(&str) -> bool,
    ) -> Result<Option<i64>, Reject> {
        if let Some(number) = self.plain_int()
            && !self.as_text().is_some_and(&is_null)
        {
            return number.checked_mul(unit_micros).map(Some).ok_or_else(|| large(&number));
        }
        let text = match self {
            Cell::Null | Cell::Int(_) => return Ok(None),
            Cell::Float(number) if !number.is_finite() => return Err(not_finite(number)),
            Cell::Float(number) if number.abs() > 1e18 => return Err(large(number)),
            // The shortest text that reads back as this float: what the writer most likely meant.
            Cell::Float(number) => {
                let text = number.to_string();
                return decimal_micros(&text, b'.', unit_micros).map(Some);
            }
            Cell::Raw(bytes) => utf8(bytes)?,
            Cell::Text(text) => text,
            Cell::Time(_) | Cell::Nested => {
                return Err(Reject::new(Reason::BadNumber, "is not a number"));
            }
        };
        if is_null(text) {
            return Ok(None);
        }
        decimal_micros(text.trim(), decimal, unit_micros).map(Some)
    }

    /// The text of the value, if it is one.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Cell::Raw(bytes) => std::str::from_utf8(bytes).ok(),
            Cell::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value as a whole number, `None` without a value.
    pub(crate) fn count(
        &self,
        decimal: u8,
        is_null: impl Fn(&str) -> bool,
    ) -> Result<Option<i64>, Reject> {
        if let Some(number) = self.plain_int()
            && !self.as_text().is_some_and(&is_null)
        {
            return Ok(Some(number));
        }
        let Some(micros) = self.micros(MICROS_PER_UNIT, decimal, is_null)? else {
            return Ok(None);
        };
        if micros % MICROS_PER_UNIT != 0 {
            return Err(Reject::new(Reason::BadNumber, "is not a whole number"));
        }
        Ok(Some(micros / MICROS_PER_UNIT))
    }

    /// How the value looks in a message, cut to a readable length.
    pub(crate) fn shown(&self) -> String {
        let text = match self {
            Cell::Null => Cow::Borrowed(""),
            Cell::Raw(bytes) => String::from_utf8_lossy(&bytes[..bytes.len().min(200)]),
            Cell::Text(text) => Cow::Borrowed(text.as_ref()),
            Cell::Int(number) | Cell::Time(number) => Cow::Owned(number.to_string()),
            Cell::Float(number) => Cow::Owned(number.to_string()),
            Cell::Nested => Cow::Borrowed("[…]"),
        };
        match text.char_indices().nth(60) {
            Some((at, _)) => format!("{}…", &text[..at]),
            None => text.into_owned(),
        }
    }
}

/// One to eighteen digits and nothing else, which always fit.
#[inline]
fn digits(bytes: &[u8]) -> Option<i64> {
    if bytes.is_empty() || bytes.len() > 18 {
        return None;
    }
    bytes.iter().try_fold(0, |number: i64, byte| {
        byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0'))
    })
}

fn utf8(bytes: &[u8]) -> Result<&str, Reject> {
    std::str::from_utf8(bytes).map_err(|error| {
        Reject::new(Reason::InvalidUtf8, format!("is not UTF-8 from byte {}", error.valid_up_to()))
    })
}

fn decimal_micros(text: &str, decimal: u8, unit_micros: i64) -> Result<i64, Reject> {
    if let Some(micros) = micros_from_decimal(text, decimal, unit_micros) {
        return Ok(micros);
    }
    let bare = text.trim_start_matches(['-', '+']);
    let infinite = ["nan", "inf", "infinity"].iter().any(|word| bare.eq_ignore_ascii_case(word));
    if infinite {
        return Err(not_finite(&text));
    }
    let digits = !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_digit() || b == decimal);
    if digits && bare.bytes().filter(|b| *b == decimal).count() <= 1 && bare.len() > 9 {
        return Err(large(&text));
    }
    Err(Reject::new(Reason::BadNumber, "is not a number"))
}

fn not_finite(found: &impl ToString) -> Reject {
    Reject::new(Reason::NotFinite, format!("is {}, not a finite number", found.to_string()))
}

fn large(found: &impl ToString) -> Reject {
    Reject::new(Reason::OutOfRange, format!("is {}, too large to be true", found.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason<T: std::fmt::Debug>(result: Result<T, Reject>) -> Reason {
        result.unwrap_err().reason
    }

    #[test]
    fn values_become_micros_or_a_reason() {
        let null = |text: &str| text.is_empty();
        let micros = |cell: Cell<'_>| cell.micros(1_000_000, b'.', null);
        assert_eq!(micros(Cell::Raw(b"26.7824")), Ok(Some(26_782_400)));
        assert_eq!(micros(Cell::Raw(b" 1 ")), Ok(Some(1_000_000)));
        assert_eq!(micros(Cell::Float(0.1)), Ok(Some(100_000)));
        assert_eq!(micros(Cell::Float(1e-7)), Ok(Some(0)));
        assert_eq!(micros(Cell::Int(-3)), Ok(Some(-3_000_000)));
        assert_eq!(micros(Cell::Raw(b"")), Ok(None));
        assert_eq!(micros(Cell::Null), Ok(None));
        assert_eq!(reason(micros(Cell::Raw(b"NaN"))), Reason::NotFinite);
        assert_eq!(reason(micros(Cell::Raw(b"-inf"))), Reason::NotFinite);
        assert_eq!(reason(micros(Cell::Float(f64::NAN))), Reason::NotFinite);
        assert_eq!(reason(micros(Cell::Float(1e300))), Reason::OutOfRange);
        assert_eq!(reason(micros(Cell::Int(i64::MAX))), Reason::OutOfRange);
        assert_eq!(reason(micros(Cell::Raw(b"99999999999999999999"))), Reason::OutOfRange);
        assert_eq!(reason(micros(Cell::Raw(b"1e3"))), Reason::BadNumber);
        assert_eq!(reason(micros(Cell::Raw(b"1,5"))), Reason::BadNumber);
        assert_eq!(reason(micros(Cell::Raw(b"\xff"))), Reason::InvalidUtf8);
        assert_eq!(reason(micros(Cell::Nested)), Reason::BadNumber);
    }

    #[test]
    fn counts_are_whole() {
        let count = |text: &str| Cell::Raw(text.as_bytes()).count(b'.', |_| false);
        assert_eq!(count("12"), Ok(Some(12)));
        assert_eq!(count("12.0"), Ok(Some(12)));
        assert_eq!(count("-1"), Ok(Some(-1)));
        assert_eq!(reason(count("1.5")), Reason::BadNumber);
        assert_eq!(reason(count("twelve")), Reason::BadNumber);
    }
}
