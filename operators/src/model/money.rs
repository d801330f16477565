//! Money is a whole number of micros (10⁻⁶ of a currency unit) with the currency beside it.
//!
//! Amounts of different currencies never meet in one sum; every account states its currency once
//! and all of its `*_micros` fields are in it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Micros in one unit of a currency (one dollar, one yen).
pub const MICROS_PER_UNIT: i64 = 1_000_000;

/// An ISO 4217 alphabetic code, for example `USD`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency([u8; 3]);

/// The text is not three letters A-Z.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a currency: use the three-letter ISO 4217 code, for example USD")]
pub struct CurrencyError(pub String);

impl Currency {
    /// United States dollar.
    pub const USD: Currency = Currency(*b"USD");

    /// The three-letter code.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("???")
    }
}

impl FromStr for Currency {
    type Err = CurrencyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match <[u8; 3]>::try_from(text.as_bytes()) {
            Ok(code) if code.iter().all(u8::is_ascii_uppercase) => Ok(Currency(code)),
            _ => Err(CurrencyError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Currency {
    type Error = CurrencyError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> Self {
        currency.as_str().to_owned()
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An amount with its currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Money {
    /// Millionths of one unit of `currency`.
    pub micros: i64,
    /// The currency of the amount.
    pub currency: Currency,
}

impl Money {
    /// The sum, or `None` when the currencies differ or the sum does not fit.
    pub fn checked_add(self, other: Money) -> Option<Money> {
        (self.currency == other.currency).then_some(())?;
        let micros = self.micros.checked_add(other.micros)?;
        Some(Money { micros, ..self })
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.micros < 0 { "-" } else { "" };
        let abs = self.micros.unsigned_abs();
        let unit = MICROS_PER_UNIT.unsigned_abs();
        write!(f, "{sign}{}.{:06} {}", abs / unit, abs % unit, self.currency)
    }
}

/// Parses a decimal number as `value × unit_micros` micros without passing through binary floats.
///
/// `unit_micros` is what one whole unit of the text is worth (1 000 000 for currency units, 1 for
/// micros, 1 000 for "per mille" prices). Digits below one micro are rounded half away from zero.
/// Accepts an optional sign, digits, and one `decimal` mark; anything else is `None`, as is a
/// result that does not fit.
pub fn micros_from_decimal(text: &str, decimal: u8, unit_micros: i64) -> Option<i64> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let mut whole: i128 = 0;
    let mut scale: i128 = 1;
    let mut seen_digit = false;
    let mut seen_mark = false;
    for &byte in digits {
        if byte == decimal && !seen_mark {
            seen_mark = true;
        } else if byte.is_ascii_digit() {
            seen_digit = true;
            // 24 digits of fraction are far below a micro: ignore the rest, keep checking it.
            if seen_mark && scale >= 1_000_000_000_000_000_000 {
                continue;
            }
            whole = whole.checked_mul(10)?.checked_add(i128::from(byte - b'0'))?;
            if seen_mark {
                scale *= 10;
            }
        } else {
            return None;
        }
    }
    if !seen_digit {
        return None;
    }
    let scaled = whole.checked_mul(i128::from(unit_micros))?;
    let rounded = (scaled + scale / 2) / scale;
    i64::try_from(if negative { -rounded } else { rounded }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_become_exact_micros() {
        let parse = |text| micros_from_decimal(text, b'.', MICROS_PER_UNIT);
        assert_eq!(parse("26.7824"), Some(26_782_400));
        assert_eq!(parse("0.1"), Some(100_000));
        assert_eq!(parse("-0.0000005"), Some(-1));
        assert_eq!(parse("1e3"), None);
        assert_eq!(parse(""), None);
        assert_eq!(parse("."), None);
        assert_eq!(parse("NaN"), None);
        assert_eq!(parse("99999999999999999999"), None);
        assert_eq!(micros_from_decimal("1,5", b',', MICROS_PER_UNIT), Some(1_500_000));
        assert_eq!(micros_from_decimal("192", b'.', 1_000), Some(192_000));
    }

    #[test]
    fn currencies_do_not_mix() {
        let usd = Money { micros: 1, currency: Currency::USD };
        let eur = Money { micros: 1, currency: "EUR".parse().unwrap() };
        assert_eq!(usd.checked_add(eur), None);
        assert_eq!(usd.checked_add(usd).map(|m| m.micros), Some(2));
        assert!("usd".parse::<Currency>().is_err());
        assert_eq!(Money { micros: -1_500_000, ..usd }.to_string(), "-1.500000 USD");
    }
}
