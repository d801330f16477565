//! Varints: seven bits a byte, low bits first; signed numbers zigzag.

use std::fmt;

/// Bytes that do not decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bad(pub(super) String);

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A [`Bad`] with these words.
pub(super) fn bad<T>(what: impl Into<String>) -> Result<T, Bad> {
    Err(Bad(what.into()))
}

/// Appends `value`.
#[inline]
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Maps small signed numbers to small unsigned ones.
#[inline]
pub(super) const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The inverse of [`zigzag`].
#[inline]
pub(super) const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Reads bytes from the front.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Cursor<'a> {
        Cursor { rest }
    }

    pub(super) fn len(&self) -> usize {
        self.rest.len()
    }

    /// The next `count` bytes.
    #[inline]
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Bad> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return bad("it ends early");
        };
        self.rest = rest;
        Ok(taken)
    }

    /// The next byte.
    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, Bad> {
        let Some((first, rest)) = self.rest.split_first() else { return bad("it ends early") };
        self.rest = rest;
        Ok(*first)
    }

    /// The next eight bytes as a number.
    #[inline]
    pub(super) fn word(&mut self) -> Result<u64, Bad> {
        let Some((word, rest)) = self.rest.split_first_chunk() else {
            return bad("it ends early");
        };
        self.rest = rest;
        Ok(u64::from_le_bytes(*word))
    }

    /// The next varint.
    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, Bad> {
        let first = self.byte()?;
        if first < 0x80 { Ok(u64::from(first)) } else { self.varint_long(first) }
    }

    fn varint_long(&mut self, first: u8) -> Result<u64, Bad> {
        let mut value = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        bad("a number has more than 64 bits")
    }

    /// The next varint as a length or index that fits this machine.
    #[inline]
    pub(super) fn size(&mut self) -> Result<usize, Bad> {
        let value = self.varint()?;
        usize::try_from(value).or_else(|_| bad(format!("a length of {value} is impossible")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(values in prop::collection::vec(any::<i64>(), 0..20)) {
            let mut out = Vec::new();
            for value in &values {
                put(&mut out, zigzag(*value));
            }
            let mut cursor = Cursor::new(&out);
            for value in values {
                prop_assert_eq!(cursor.varint().map(unzigzag), Ok(value));
            }
            prop_assert!(cursor.varint().is_err());
        }
    }

    #[test]
    fn overlong_numbers_are_refused() {
        assert!(Cursor::new(&[0xff; 11]).varint().is_err());
        let mut max = [0xff; 10];
        max[9] = 1;
        assert_eq!(Cursor::new(&max).varint(), Ok(u64::MAX));
    }
}
