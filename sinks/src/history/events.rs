//! The table `events`: accepted events in the order in which they entered the graph.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use omnify_operators::model::{Event, EventKind, NO_ID, NO_USER, Tick};
use xxhash_rust::xxh3::xxh3_64;

use super::buffer::{Buffer, Context};
use super::entities::{EntityColumns, Facts, path_fields, text_column, text_field};
use super::part::{BATCH_ROWS, Interner, PartWriter};
use super::{HistoryError, Table};

/// The type of a point in time: µs, UTC.
pub(crate) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// A column of points in time.
pub(crate) fn time_column(values: Vec<i64>) -> ArrayRef {
    Arc::new(arrow::array::TimestampMicrosecondArray::from(values).with_timezone("UTC"))
}

/// Fields of the additive metrics.
pub(crate) fn sums_fields(prefix: impl Fn(&str) -> String) -> Vec<Field> {
    SUMS.iter().map(|name| Field::new(prefix(name), DataType::Int64, false)).collect()
}

/// The additive metrics in the order of `Stats`.
pub(crate) const SUMS: [&str; 5] =
    ["impressions", "clicks", "conversions", "cost_micros", "revenue_micros"];

/// The columns.
pub(crate) static EVENTS: LazyLock<SchemaRef> = LazyLock::new(|| {
    let mut fields = vec![
        Field::new("tick", DataType::Int64, false),
        Field::new("seq", DataType::Int32, false),
        Field::new("event_time", time_type(), false),
    ];
    fields.extend(path_fields(true));
    fields.push(text_field("kind", false));
    fields.extend(sums_fields(str::to_owned));
    fields.extend([
        text_field("currency", true),
        Field::new("user", DataType::Int64, true),
        Field::new("event_id", DataType::Int64, true),
        Field::new("check", DataType::Int64, false),
    ]);
    Arc::new(Schema::new(fields))
});

/// The check of a row: a 64-bit hash of everything in it, the entity by the hash of its key.
#[inline]
pub(crate) fn event_check(tick: Tick, seq: u32, event: &Event, order: u64, currency: u32) -> u64 {
    let words = [
        tick,
        u64::from(seq) | u64::from(event.kind as u8) << 32,
        u64::from(currency),
        order,
        event.time as u64,
        event.delta.impressions as u64,
        event.delta.clicks as u64,
        event.delta.conversions as u64,
        event.delta.cost_micros as u64,
        event.delta.revenue_micros as u64,
        event.user,
        event.id,
    ];
    let mut bytes = [0; 96];
    for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    xxh3_64(&bytes)
}

/// Rows of one partition, a vector for each column.
#[derive(Default)]
pub(crate) struct EventBuffer {
    tick: Vec<i64>,
    seq: Vec<i32>,
    time: Vec<i64>,
    creative: Vec<u32>,
    kind: Vec<u8>,
    sums: [Vec<i64>; 5],
    currency: Vec<u32>,
    user: Vec<i64>,
    id: Vec<i64>,
    check: Vec<i64>,
}

/// Bytes of a buffered row.
pub(crate) const EVENT_BYTES: usize = 8 + 4 + 8 + 4 + 1 + 40 + 4 + 8 + 8 + 8;

impl EventBuffer {
    /// Adds a row and returns its check.
    #[inline]
    pub(crate) fn push(&mut self, tick: Tick, seq: u32, event: &Event, facts: &Facts) -> u64 {
        let check = event_check(tick, seq, event, facts.order, facts.currency);
        self.tick.push(tick as i64);
        self.seq.push(seq as i32);
        self.time.push(event.time);
        self.creative.push(event.creative.0);
        self.kind.push(event.kind as u8);
        for (column, value) in self.sums.iter_mut().zip(super::row::sums_of(&event.delta)) {
            column.push(value);
        }
        self.currency.push(facts.currency);
        self.user.push(event.user as i64);
        self.id.push(event.id as i64);
        self.check.push(check as i64);
        check
    }
}

/// An integer column in which `absent` means null.
fn optional(values: &[i64], absent: u64) -> ArrayRef {
    let absent = absent as i64;
    let nulls = values
        .contains(&absent)
        .then(|| NullBuffer::from_iter(values.iter().map(|value| *value != absent)));
    Arc::new(Int64Array::new(values.to_vec().into(), nulls))
}

/// Currency codes as a dictionary column, and the codes seen so far.
struct Currencies {
    names: Interner,
    last: (u32, i32),
}

impl Currencies {
    fn key(&mut self, packed: u32) -> Option<i32> {
        if packed == 0 {
            return None;
        }
        if self.last.0 != packed {
            let code = unpack_currency(packed);
            self.last = (packed, self.names.intern(&code) as i32);
        }
        Some(self.last.1)
    }

    fn column(&mut self, packed: &[u32]) -> ArrayRef {
        let keys: Int32Array = packed.iter().map(|code| self.key(*code)).collect();
        let names = Arc::new(StringArray::from_iter_values(self.names.names()));
        text_column(keys, &names)
    }
}

/// A currency code in one word; 0 is none.
pub(crate) fn pack_currency(code: &str) -> u32 {
    code.bytes().take(4).fold(0, |packed, byte| packed << 8 | u32::from(byte))
}

fn unpack_currency(packed: u32) -> String {
    packed.to_be_bytes().into_iter().filter(|byte| *byte != 0).map(char::from).collect()
}

impl Buffer for EventBuffer {
    const TABLE: Table = Table::Events;

    fn rows(&self) -> usize {
        self.tick.len()
    }

    fn bytes(&self) -> usize {
        self.rows() * EVENT_BYTES
    }

    fn ticks(&self) -> (Tick, Tick) {
        let ends = (self.tick.first(), self.tick.last());
        (ends.0.map_or(0, |t| *t as Tick), ends.1.map_or(0, |t| *t as Tick))
    }

    fn first_entity(&self, context: &mut Context) -> Option<String> {
        let first = self.creative.first()?;
        Some(context.key(*first).to_string())
    }

    fn schema(_: &Context) -> SchemaRef {
        EVENTS.clone()
    }

    fn write(&self, context: &mut Context, out: &mut PartWriter<'_>) -> Result<(), HistoryError> {
        let entities = EntityColumns::new(self.creative.iter().copied(), &mut context.view);
        let kinds = Arc::new(StringArray::from_iter_values(EventKind::ALL.map(EventKind::name)));
        let mut currencies = Currencies { names: Interner::default(), last: (0, 0) };
        for start in (0..self.rows()).step_by(BATCH_ROWS) {
            let rows = start..self.rows().min(start + BATCH_ROWS);
            let int64 = |values: &[i64]| -> ArrayRef {
                Arc::new(Int64Array::new(values[rows.clone()].to_vec().into(), None))
            };
            let mut columns: Vec<ArrayRef> = vec![
                int64(&self.tick),
                Arc::new(Int32Array::new(self.seq[rows.clone()].to_vec().into(), None)),
                time_column(self.time[rows.clone()].to_vec()),
            ];
            columns.extend(entities.path(&self.creative[rows.clone()], true));
            let kind = self.kind[rows.clone()].iter().map(|kind| i32::from(*kind));
            columns.push(text_column(Int32Array::from_iter_values(kind), &kinds));
            columns.extend(self.sums.iter().map(|column| int64(column)));
            columns.push(currencies.column(&self.currency[rows.clone()]));
            columns.push(optional(&self.user[rows.clone()], NO_USER));
            columns.push(optional(&self.id[rows.clone()], NO_ID));
            columns.push(int64(&self.check));
            out.write(&super::buffer::batch(Table::Events, &EVENTS, columns)?)?;
        }
        Ok(())
    }
}
