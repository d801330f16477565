//! Splits text into rows, each of bounded length, and finds the way back after a broken one.

use std::io;

use csv_core::ReadRecordResult;

use super::input::Window;
use crate::decode::{Reason, Reject};

/// Most fields of one record.
const FIELDS_MAX: usize = 1 << 16;

/// What the next piece of text is.
#[derive(Debug)]
pub(super) enum Piece {
    /// A row; `raw` and the fields are valid until the next call.
    Row,
    /// Not a row; `raw` holds the beginning of its bytes, whose whole length is given.
    Refused(Reject, u64),
    /// The end.
    End,
}

/// Bounds of one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowLimits {
    /// Longest row.
    pub(super) bytes_max: usize,
    /// Most bytes kept of a longer one.
    pub(super) kept_max: usize,
}

/// What both splitters share: the window, the row at hand, and what happens to too long ones.
struct Base {
    window: Window,
    limits: RowLimits,
    /// Length of the row at hand, and of what is to be let go of before the next.
    row: usize,
    pending: usize,
    /// Beginning of a row that was too long to hold.
    kept: Option<Vec<u8>>,
}

impl Base {
    /// Lets go of the last row and of empty lines; false at the end.
    fn advance(&mut self) -> io::Result<bool> {
        self.window.consume(std::mem::take(&mut self.pending));
        self.row = 0;
        self.kept = None;
        loop {
            let blank = self.window.data().iter().take_while(|byte| is_end(**byte)).count();
            self.window.consume(blank);
            if !self.window.data().is_empty() {
                return Ok(true);
            }
            if self.window.ended() {
                return self.window.take_failure().map_or(Ok(false), Err);
            }
            self.window.fill();
        }
    }

    fn raw(&self) -> &[u8] {
        self.kept.as_deref().unwrap_or(&self.window.data()[..self.row])
    }

    /// Says that the row ends before position `end` of the window and takes `consumed` bytes.
    fn set_row(&mut self, end: usize, consumed: usize) {
        let data = &self.window.data()[..end];
        self.row = data.iter().rposition(|byte| !is_end(*byte)).map_or(0, |at| at + 1);
        self.pending = consumed;
    }

    fn refuse(&self, reason: Reason, detail: String) -> Piece {
        Piece::Refused(Reject::new(reason, detail), self.row as u64)
    }

    fn truncated(&mut self, end: usize) -> Piece {
        self.set_row(end, end);
        self.refuse(Reason::Truncated, "the input breaks off inside this row".to_owned())
    }

    /// Skips the line that starts the window, to its end, keeping its beginning.
    fn too_long(&mut self) -> Piece {
        let data = self.window.data();
        let kept = data[..data.len().min(self.limits.kept_max)].to_vec();
        let mut length = 0;
        loop {
            let data = self.window.data();
            let end = data.iter().position(|byte| *byte == b'\n');
            let count = end.map_or(data.len(), |at| at + 1);
            length += end.unwrap_or(count) as u64;
            self.window.consume(count);
            if end.is_some() || self.window.ended() {
                break;
            }
            self.window.fill();
        }
        self.kept = Some(kept);
        let limit = self.limits.bytes_max;
        let detail = format!("{length} bytes; the limit is {limit} (validation.line_bytes_max)");
        Piece::Refused(Reject::new(Reason::LineTooLong, detail), length)
    }
}

fn is_end(byte: u8) -> bool {
    byte == b'\n' || byte == b'\r'
}

/// Lines.
pub(super) struct Lines(Base);

impl Lines {
    pub(super) fn new(window: Window, limits: RowLimits) -> Lines {
        Lines(Base { window, limits, row: 0, pending: 0, kept: None })
    }

    pub(super) fn next(&mut self) -> io::Result<Piece> {
        let base = &mut self.0;
        if !base.advance()? {
            return Ok(Piece::End);
        }
        let mut seen = 0;
        loop {
            let data = base.window.data();
            if let Some(at) = data[seen..].iter().position(|byte| *byte == b'\n') {
                if seen + at > base.limits.bytes_max {
                    return Ok(base.too_long());
                }
                base.set_row(seen + at, seen + at + 1);
                return Ok(Piece::Row);
            }
            seen = data.len();
            if seen > base.limits.bytes_max {
                return Ok(base.too_long());
            }
            if base.window.ended() {
                if base.window.broken() {
                    return Ok(base.truncated(seen));
                }
                base.set_row(seen, seen);
                return Ok(Piece::Row);
            }
            base.window.fill();
        }
    }

    pub(super) fn raw(&self) -> &[u8] {
        self.0.raw()
    }

    pub(super) fn progress(&self) -> (u64, u64) {
        self.0.window.progress()
    }
}

/// Records of separated values, with quotes.
///
/// A quote that is opened and never closed would swallow the rest of the file. So when a record
/// outgrows the limit or runs into the end of the file with an open quote, only its first line is
/// refused and reading goes on at the second.
pub(super) struct Records {
    base: Base,
    builder: csv_core::ReaderBuilder,
    core: csv_core::Reader,
    output: Vec<u8>,
    ends: Vec<usize>,
    fields: usize,
    quote: u8,
}

impl Records {
    pub(super) fn new(window: Window, limits: RowLimits, separator: u8, quote: u8) -> Records {
        let mut builder = csv_core::ReaderBuilder::new();
        builder.delimiter(separator).quote(quote);
        Records {
            base: Base { window, limits, row: 0, pending: 0, kept: None },
            core: builder.build(),
            builder,
            output: vec![0; 64 << 10],
            ends: vec![0; 256],
            fields: 0,
            quote,
        }
    }

    pub(super) fn next(&mut self) -> io::Result<Piece> {
        self.fields = 0;
        if !self.base.advance()? {
            return Ok(Piece::End);
        }
        let (mut seen, mut out) = (0, 0);
        loop {
            let input = &self.base.window.data()[seen..];
            if input.is_empty() && !self.base.window.ended() {
                if seen > self.base.limits.bytes_max {
                    return Ok(self.overflow(seen));
                }
                self.base.window.fill();
                continue;
            }
            let at_end = input.is_empty();
            if at_end && self.base.window.broken() {
                self.core = self.builder.build();
                self.fields = 0;
                return Ok(self.base.truncated(seen));
            }
            let (result, read, written, ended) = self.core.read_record(
                input,
                &mut self.output[out..],
                &mut self.ends[self.fields..],
            );
            seen += read;
            out += written;
            self.fields += ended;
            match result {
                ReadRecordResult::OutputFull => self.output.resize(self.output.len() * 2, 0),
                ReadRecordResult::OutputEndsFull if self.ends.len() >= FIELDS_MAX => {
                    return Ok(self.overflow(seen));
                }
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::Record => {
                    if seen > self.base.limits.bytes_max.saturating_add(1)
                        || (at_end && self.is_open(seen))
                    {
                        return Ok(self.overflow(seen));
                    }
                    self.base.set_row(seen, seen);
                    return Ok(Piece::Row);
                }
                ReadRecordResult::End => return Ok(Piece::End),
                // The whole output of a bounded record fits; at the end this cannot come twice.
                ReadRecordResult::InputEmpty if at_end => return Ok(Piece::End),
                ReadRecordResult::InputEmpty => {}
            }
        }
    }

    /// Whether the last record of the file still has a quote open on a later line.
    fn is_open(&self, seen: usize) -> bool {
        let raw = &self.base.window.data()[..seen];
        let quotes = raw.iter().filter(|byte| **byte == self.quote).count();
        quotes % 2 == 1 && raw.contains(&b'\n')
    }

    /// The record at hand is longer than it may be, or never ends.
    fn overflow(&mut self, seen: usize) -> Piece {
        self.core = self.builder.build();
        self.fields = 0;
        let data = &self.base.window.data()[..seen];
        let line = data.iter().position(|byte| *byte == b'\n');
        match line.filter(|at| *at <= self.base.limits.bytes_max) {
            Some(at) if at + 1 < seen => {
                self.base.set_row(at, at + 1);
                let detail = "a quote is opened and not closed on this line or soon after it";
                self.base.refuse(Reason::Malformed, detail.to_owned())
            }
            Some(at) => {
                self.base.set_row(at, at + 1);
                let detail = format!("more than {FIELDS_MAX} columns");
                self.base.refuse(Reason::Malformed, detail)
            }
            None => self.base.too_long(),
        }
    }

    /// Number of fields of the row at hand.
    pub(super) fn len(&self) -> usize {
        self.fields
    }

    /// Field `index` of the row at hand.
    #[inline]
    pub(super) fn field(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.output[start..self.ends[index]]
    }

    pub(super) fn raw(&self) -> &[u8] {
        self.base.raw()
    }

    pub(super) fn progress(&self) -> (u64, u64) {
        self.base.window.progress()
    }
}
