//! The payload of a frame: numbered columns of bytes.
//!
//! A column is `[number][coding][length]([length decoded])[bytes]`, lengths as varints. Columns of
//! nothing but zeros are left out and read back as zeros for ever, which is also what a column that
//! was added later reads as in an old frame.

use super::bits::{Bad, Cursor, bad, put, unzigzag, zigzag};

/// Columns smaller than this are not compressed: it would not pay.
const ZSTD_FROM: usize = 4 * 1024;
/// A compressed column is at most this many times smaller than it was, so that a small frame
/// cannot ask for a lot of memory.
const ZSTD_RATIO_MAX: usize = 256;
const ZSTD_LEVEL: i32 = 1;

const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

/// Declares the columns: their numbers are for ever.
macro_rules! columns {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a column holds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(super) enum Column { $($(#[$doc])* $name,)* }

        /// All columns, by position.
        const COLUMNS: &[(Column, u8)] = &[$((Column::$name, $number),)*];
    };
}

columns! {
    /// Texts used by the frame: length and bytes each.
    Texts = 1,
    /// Names of entities that the segment has not named yet: bytes shared with the name before,
    /// length of the rest, the rest.
    Names = 2,
    /// The entities of the frame: 0 the next of `Names`, else one more than its number in the segment.
    Entities = 3,
    /// Start records: JSON with its length.
    Starts = 4,

    /// Ticks, as differences.
    Tick = 10,
    /// Bit 0 last, bit 1 snapshot, bit 2 watermarks, bit 3 fresh, bit 4 settled.
    TickFlags = 11,
    /// How far the engine was degraded.
    TickCalm = 12,
    /// Rows.
    TickRows = 13,
    /// Ignored rows.
    TickIgnored = 14,
    /// The watermarks that the flags announce.
    TickWatermarks = 15,
    /// Number of events.
    TickEvents = 16,
    /// Number of report rows.
    TickReports = 17,
    /// Number of controls.
    TickControls = 18,
    /// Number of dead letters.
    TickDead = 19,
    /// Number of positions.
    TickPositions = 20,
    /// Number of idempotency keys.
    TickBatches = 21,

    /// Kind and what else there is of an event, one byte.
    EventHead = 30,
    /// Event time, as differences.
    EventTime = 31,
    /// Entity, as its number in the frame.
    EventEntity = 32,
    /// Amounts that the head announces.
    EventStats = 33,
    /// Users, eight bytes each.
    EventUser = 34,
    /// Event ids, eight bytes each.
    EventId = 35,

    /// Entity of a report row.
    ReportEntity = 40,
    /// Start of the interval, as differences.
    ReportStart = 41,
    /// Length of the interval.
    ReportLength = 42,
    /// As of, as differences.
    ReportAsOf = 43,
    /// Sequence, as differences.
    ReportSequence = 44,
    /// Totals, five numbers.
    ReportTotals = 45,
    /// Attribution window, by its number.
    ReportAttribution = 46,

    /// Controls: JSON with its length.
    Control = 50,

    /// Source of a dead letter, a text.
    DeadSource = 60,
    /// Row.
    DeadRow = 61,
    /// Tenant, one more than a text; 0 without one.
    DeadTenant = 62,
    /// Reason, a text.
    DeadReason = 63,
    /// Detail, a text.
    DeadDetail = 64,
    /// The bytes kept, with their length.
    DeadBytes = 65,
    /// Length of the original.
    DeadLength = 66,

    /// Source of a position, a text.
    PositionSource = 70,
    /// Partition.
    PositionPartition = 71,
    /// Next offset.
    PositionNext = 72,

    /// Tenant of an idempotency key, a text.
    BatchTenant = 80,
    /// The key, a text.
    BatchKey = 81,
    /// Accepted, refused, ignored.
    BatchCounts = 82,
}

/// The number of columns.
pub(super) const COUNT: usize = COLUMNS.len();

/// Hashes do not compress.
fn is_hash(column: Column) -> bool {
    matches!(column, Column::EventUser | Column::EventId)
}

/// Columns being filled.
pub(super) struct Columns {
    bytes: [Vec<u8>; COUNT],
    /// Whether a column holds anything but zeros.
    kept: [bool; COUNT],
}

/// How long every column is; see [`Columns::back_to`].
pub(super) struct Marks([(usize, bool); COUNT]);

impl Default for Columns {
    fn default() -> Columns {
        Columns { bytes: std::array::from_fn(|_| Vec::new()), kept: [false; COUNT] }
    }
}

impl Columns {
    /// Adds an unsigned number; zero is the default.
    #[inline]
    pub(super) fn put(&mut self, column: Column, value: u64) {
        put(&mut self.bytes[column as usize], value);
        self.kept[column as usize] |= value != 0;
    }

    /// Adds a signed number; zero is the default.
    #[inline]
    pub(super) fn put_signed(&mut self, column: Column, value: i64) {
        self.put(column, zigzag(value));
    }

    /// Adds an unsigned number to a column that is kept even when all zero: it tells how many rows
    /// there are, so that a frame cannot claim more than it has bytes.
    #[inline]
    pub(super) fn put_row(&mut self, column: Column, value: u64) {
        put(&mut self.bytes[column as usize], value);
        self.kept[column as usize] = true;
    }

    /// Adds bytes as they are.
    #[inline]
    pub(super) fn put_raw(&mut self, column: Column, bytes: &[u8]) {
        self.bytes[column as usize].extend_from_slice(bytes);
        self.kept[column as usize] = true;
    }

    /// Adds bytes behind their length.
    pub(super) fn put_bytes(&mut self, column: Column, bytes: &[u8]) {
        self.put_row(column, bytes.len() as u64);
        self.put_raw(column, bytes);
    }

    /// Bytes held.
    pub(super) fn len(&self) -> usize {
        self.bytes.iter().map(Vec::len).sum()
    }

    /// Empties every column, keeping its memory.
    pub(super) fn clear(&mut self) {
        self.bytes.iter_mut().for_each(Vec::clear);
        self.kept = [false; COUNT];
    }

    /// Remembers how long the columns are.
    pub(super) fn marks(&self) -> Marks {
        Marks(std::array::from_fn(|i| (self.bytes[i].len(), self.kept[i])))
    }

    /// Forgets what came after `marks`.
    pub(super) fn back_to(&mut self, marks: &Marks) {
        for (i, (length, kept)) in marks.0.iter().enumerate() {
            self.bytes[i].truncate(*length);
            self.kept[i] = *kept;
        }
    }

    /// Appends the payload to `out`.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for (column, number) in COLUMNS {
            let bytes = &self.bytes[*column as usize];
            if bytes.is_empty() || !self.kept[*column as usize] {
                continue;
            }
            out.push(*number);
            let packed = (bytes.len() >= ZSTD_FROM && !is_hash(*column)).then(|| {
                // An encoder out of memory is the only failure; the plain bytes do as well.
                zstd::bulk::compress(bytes, ZSTD_LEVEL).unwrap_or_else(|_| bytes.clone())
            });
            match packed {
                Some(packed)
                    if packed.len() < bytes.len() - bytes.len() / 8
                        && bytes.len() / packed.len() < ZSTD_RATIO_MAX =>
                {
                    out.push(ZSTD);
                    put(out, packed.len() as u64);
                    put(out, bytes.len() as u64);
                    out.extend_from_slice(&packed);
                }
                _ => {
                    out.push(PLAIN);
                    put(out, bytes.len() as u64);
                    out.extend_from_slice(bytes);
                }
            }
        }
    }
}

/// A payload's columns as found, decompressed.
#[derive(Debug)]
pub(super) struct Found<'a> {
    bytes: [Option<std::borrow::Cow<'a, [u8]>>; COUNT],
}

impl<'a> Found<'a> {
    /// Takes a payload apart.
    pub(super) fn read(payload: &'a [u8]) -> Result<Found<'a>, Bad> {
        let mut found = Found { bytes: [const { None }; COUNT] };
        let mut cursor = Cursor::new(payload);
        while cursor.len() > 0 {
            let number = cursor.byte()?;
            let coding = cursor.byte()?;
            let length = cursor.size()?;
            let at = COLUMNS.iter().position(|(_, n)| *n == number);
            let Some(at) = at else {
                return bad(format!("column {number} is not known to this version"));
            };
            let bytes = match coding {
                PLAIN => cursor.take(length)?.into(),
                ZSTD => unpack(&mut cursor, length)?.into(),
                other => return bad(format!("coding {other} is not known to this version")),
            };
            if found.bytes[at].replace(bytes).is_some() {
                return bad(format!("column {number} is there twice"));
            }
        }
        Ok(found)
    }

    /// Reads `column` from its start.
    pub(super) fn reader(&self, column: Column) -> ColumnReader<'_> {
        let bytes = self.bytes[column as usize].as_deref();
        ColumnReader { column, cursor: bytes.map(Cursor::new) }
    }
}

fn unpack(cursor: &mut Cursor<'_>, length: usize) -> Result<Vec<u8>, Bad> {
    let full = cursor.size()?;
    let packed = cursor.take(length)?;
    if full > packed.len().saturating_mul(ZSTD_RATIO_MAX) {
        return bad(format!("{full} bytes cannot be packed into {length}"));
    }
    match zstd::bulk::decompress(packed, full) {
        Ok(bytes) if bytes.len() == full => Ok(bytes),
        Ok(bytes) => bad(format!("{} bytes where {full} were announced", bytes.len())),
        Err(error) => bad(format!("it does not decompress: {error}")),
    }
}

/// Reads one column from the front. A missing column is zeros without end.
#[derive(Clone, Copy, Debug)]
pub(super) struct ColumnReader<'a> {
    column: Column,
    cursor: Option<Cursor<'a>>,
}

impl<'a> ColumnReader<'a> {
    /// The next unsigned number.
    #[inline]
    pub(super) fn next(&mut self) -> Result<u64, Bad> {
        match &mut self.cursor {
            Some(cursor) => cursor.varint().map_err(|e| named(self.column, &e)),
            None => Ok(0),
        }
    }

    /// The next signed number.
    #[inline]
    pub(super) fn next_signed(&mut self) -> Result<i64, Bad> {
        self.next().map(unzigzag)
    }

    /// The next eight bytes.
    #[inline]
    pub(super) fn word(&mut self) -> Result<u64, Bad> {
        self.present()?.word()
    }

    /// The next bytes, behind their length.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Bad> {
        let column = self.column;
        let cursor = self.present()?;
        cursor.size().and_then(|length| cursor.take(length)).map_err(|e| named(column, &e))
    }

    /// The next `count` bytes, each a row. None of a missing column are none.
    pub(super) fn raw_rows(&mut self, count: usize) -> Result<&'a [u8], Bad> {
        if count == 0 { Ok(&[]) } else { self.present()?.take(count) }
    }

    /// Refuses a count of rows for which there are not even bytes.
    pub(super) fn count(&self, rows: u64) -> Result<usize, Bad> {
        let bytes = self.left();
        match usize::try_from(rows) {
            Ok(rows) if rows <= bytes => Ok(rows),
            _ => bad(format!("{:?}: {rows} rows in {bytes} bytes", self.column)),
        }
    }

    /// Bytes not read yet.
    pub(super) fn left(&self) -> usize {
        self.cursor.as_ref().map_or(0, Cursor::len)
    }

    /// Refuses bytes that nobody asked for.
    pub(super) fn end(&self) -> Result<(), Bad> {
        match self.left() {
            0 => Ok(()),
            left => bad(format!("{:?}: {left} bytes too many", self.column)),
        }
    }

    #[inline]
    fn present(&mut self) -> Result<&mut Cursor<'a>, Bad> {
        match &mut self.cursor {
            Some(cursor) => Ok(cursor),
            None => bad(format!("{:?} is missing", self.column)),
        }
    }
}

#[cold]
fn named(column: Column, error: &Bad) -> Bad {
    Bad(format!("{column:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_columns_are_unique() {
        let mut numbers: Vec<_> = COLUMNS.iter().map(|(_, number)| *number).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), COUNT);
        assert!(numbers.is_sorted());
    }

    #[test]
    fn columns_of_zeros_are_left_out_and_read_as_zeros() {
        let mut columns = Columns::default();
        columns.put(Column::TickCalm, 0);
        columns.put_row(Column::Tick, 0);
        let mut payload = Vec::new();
        columns.write(&mut payload);
        assert_eq!(payload, [10, PLAIN, 1, 0]);
        let found = Found::read(&payload).unwrap();
        assert_eq!(found.reader(Column::TickCalm).next(), Ok(0));
        assert!(found.reader(Column::Tick).count(2).is_err());
    }

    #[test]
    fn what_compresses_is_compressed_and_comes_back() {
        let mut columns = Columns::default();
        let text: Vec<u8> = (0..50_000_u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        columns.put_bytes(Column::DeadBytes, &text);
        let mut payload = Vec::new();
        columns.write(&mut payload);
        assert!(payload.len() < text.len() / 2, "{}", payload.len());
        let found = Found::read(&payload).unwrap();
        assert_eq!(found.reader(Column::DeadBytes).bytes().unwrap(), text);
    }

    #[test]
    fn a_small_frame_cannot_claim_much_memory() {
        let mut payload = vec![65, ZSTD];
        put(&mut payload, 3);
        put(&mut payload, u64::MAX / 2);
        payload.extend([1, 2, 3]);
        assert!(Found::read(&payload).unwrap_err().0.contains("cannot be packed"));
    }
}
