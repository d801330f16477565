//! Input that could not be accepted, with the place, the reason and the original bytes.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use omnify_operators::model::Tick;

use super::buffer::{Buffer, Context, batch};
use super::entities::{text_field, texts};
use super::part::{LETTER_BATCH_ROWS, PartWriter};
use super::{HistoryError, Table};

/// Most original bytes kept of one dead letter; [`DeadLetter::length`] records the true length.
/// A longer input is not an event of any known format, and one file of such lines must not fill
/// the disk of the history.
pub const DEAD_LETTER_BYTES_MAX: usize = 1 << 20;

/// A row or message that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// When it was refused.
    pub tick: Tick,
    /// Where it came from: a file, topic or endpoint.
    pub source: Arc<str>,
    /// Its position in the source (line, row or offset).
    pub row: u64,
    /// The tenant, when it can be told.
    pub tenant: Option<Arc<str>>,
    /// Stable reason code.
    pub reason: &'static str,
    /// The reason in words.
    pub detail: String,
    /// The original bytes, the first [`DEAD_LETTER_BYTES_MAX`] of them.
    pub bytes: Vec<u8>,
    /// Length of the original in bytes.
    pub length: u64,
}

impl DeadLetter {
    /// A dead letter that keeps up to [`DEAD_LETTER_BYTES_MAX`] of `bytes`.
    pub fn new(
        tick: Tick,
        source: Arc<str>,
        row: u64,
        reason: &'static str,
        detail: String,
        bytes: &[u8],
    ) -> DeadLetter {
        DeadLetter {
            tick,
            source,
            row,
            tenant: None,
            reason,
            detail,
            bytes: bytes[..bytes.len().min(DEAD_LETTER_BYTES_MAX)].to_vec(),
            length: bytes.len() as u64,
        }
    }

    /// The same with its tenant.
    #[must_use]
    pub fn of_tenant(mut self, tenant: Arc<str>) -> DeadLetter {
        self.tenant = Some(tenant);
        self
    }
}

/// The columns.
pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("tick", DataType::Int64, false),
        text_field("source", false),
        Field::new("row", DataType::Int64, false),
        text_field("tenant", true),
        text_field("reason", false),
        Field::new("detail", DataType::Utf8, false),
        Field::new("bytes", DataType::Binary, false),
        Field::new("length", DataType::Int64, false),
    ]))
}

/// Dead letters of one partition.
#[derive(Default)]
pub(crate) struct LetterBuffer {
    rows: Vec<DeadLetter>,
    bytes: usize,
}

impl LetterBuffer {
    /// Adds a row.
    pub(crate) fn push(&mut self, letter: &DeadLetter) {
        self.bytes += letter_bytes(letter);
        self.rows.push(letter.clone());
    }
}

/// Memory of a buffered dead letter.
pub(crate) fn letter_bytes(letter: &DeadLetter) -> usize {
    128 + letter.detail.len() + letter.bytes.len()
}

impl Buffer for LetterBuffer {
    const TABLE: Table = Table::DeadLetters;

    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn ticks(&self) -> (Tick, Tick) {
        let ticks = || self.rows.iter().map(|row| row.tick);
        (ticks().min().unwrap_or(0), ticks().max().unwrap_or(0))
    }

    fn first_entity(&self, _: &mut Context) -> Option<String> {
        None
    }

    fn schema(_: &Context) -> SchemaRef {
        schema()
    }

    fn write(&self, _: &mut Context, out: &mut PartWriter<'_>) -> Result<(), HistoryError> {
        let schema = schema();
        for rows in self.rows.chunks(LETTER_BATCH_ROWS) {
            let number = |value: &dyn Fn(&DeadLetter) -> u64| -> ArrayRef {
                Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| value(row) as i64)))
            };
            let columns: Vec<ArrayRef> = vec![
                number(&|row| row.tick),
                texts(rows.iter().map(|row| Some(&*row.source))),
                number(&|row| row.row),
                texts(rows.iter().map(|row| row.tenant.as_deref())),
                texts(rows.iter().map(|row| Some(row.reason))),
                Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.detail))),
                Arc::new(BinaryArray::from_iter_values(rows.iter().map(|row| &row.bytes))),
                number(&|row| row.length),
            ];
            out.write(&batch(Table::DeadLetters, &schema, columns)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_input_is_cut_and_its_length_kept() {
        let bytes = vec![b'x'; DEAD_LETTER_BYTES_MAX + 3];
        let letter = DeadLetter::new(1, "f.csv".into(), 7, "line_too_long", String::new(), &bytes);
        assert_eq!(letter.bytes.len(), DEAD_LETTER_BYTES_MAX);
        assert_eq!(letter.length, bytes.len() as u64);
        assert_eq!(DeadLetter::new(1, "f".into(), 0, "r", String::new(), b"ab").bytes, b"ab");
    }
}
