//! The table `ticks`: every closed tick once, with all control inputs. The spine of a replay.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use omnify_decision::control::Control;
use omnify_operators::model::Tick;

use super::buffer::{Buffer, Context, batch};
use super::entities::{text_field, texts};
use super::part::{BATCH_ROWS, PartWriter};
use super::{HistoryError, Table};

/// A closed tick.
#[derive(Clone, Debug, PartialEq)]
pub struct TickRecord {
    /// The tick.
    pub tick: Tick,
    /// Number of events that entered the graph at it.
    pub events: u64,
    /// Wrapping sum of the checks of these events.
    pub events_check: u64,
    /// Control inputs that took effect at it, in order.
    pub controls: Vec<Control>,
    /// Number of decisions made at it.
    pub decisions: u64,
    /// Digest over all decisions up to and with this tick.
    pub digest: [u8; 32],
}

pub(crate) fn schema() -> SchemaRef {
    let int64 = |name: &str| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![
        int64("tick"),
        int64("events"),
        int64("events_check"),
        Field::new("controls", DataType::Utf8, true),
        int64("decisions"),
        text_field("digest", false),
    ]))
}

/// Closed ticks of one day.
#[derive(Default)]
pub(crate) struct TickBuffer {
    tick: Vec<i64>,
    events: Vec<i64>,
    events_check: Vec<i64>,
    controls: Vec<Option<String>>,
    controls_bytes: usize,
    decisions: Vec<i64>,
    digest: Vec<[u8; 32]>,
}

/// Bytes of a buffered row without controls.
pub(crate) const TICK_BYTES: usize = 8 * 4 + 32 + std::mem::size_of::<Option<String>>();

impl TickBuffer {
    /// Adds a row; `controls` is the JSON of its controls.
    pub(crate) fn push(&mut self, record: &TickRecord, controls: Option<String>) {
        self.tick.push(record.tick as i64);
        self.events.push(record.events as i64);
        self.events_check.push(record.events_check as i64);
        self.controls_bytes += controls.as_ref().map_or(0, String::len);
        self.controls.push(controls);
        self.decisions.push(record.decisions as i64);
        self.digest.push(record.digest);
    }
}

impl Buffer for TickBuffer {
    const TABLE: Table = Table::Ticks;

    fn rows(&self) -> usize {
        self.tick.len()
    }

    fn bytes(&self) -> usize {
        self.rows() * TICK_BYTES + self.controls_bytes
    }

    fn ticks(&self) -> (Tick, Tick) {
        let tick = |tick: Option<&i64>| tick.map_or(0, |tick| *tick as Tick);
        (tick(self.tick.first()), tick(self.tick.last()))
    }

    fn first_entity(&self, _: &mut Context) -> Option<String> {
        None
    }

    fn schema(_: &Context) -> SchemaRef {
        schema()
    }

    fn write(&self, _: &mut Context, out: &mut PartWriter<'_>) -> Result<(), HistoryError> {
        let schema = schema();
        for start in (0..self.rows()).step_by(BATCH_ROWS) {
            let rows = start..self.rows().min(start + BATCH_ROWS);
            let int64 = |values: &[i64]| -> ArrayRef {
                Arc::new(Int64Array::from(values[rows.clone()].to_vec()))
            };
            let controls: StringArray =
                self.controls[rows.clone()].iter().map(Option::as_deref).collect();
            let digests: Vec<String> =
                self.digest[rows.clone()].iter().map(omnify_decision::digest::hex).collect();
            let columns: Vec<ArrayRef> = vec![
                int64(&self.tick),
                int64(&self.events),
                int64(&self.events_check),
                Arc::new(controls),
                int64(&self.decisions),
                texts(digests.iter().map(|digest| Some(digest.as_str()))),
            ];
            out.write(&batch(Table::Ticks, &schema, columns)?)?;
        }
        Ok(())
    }
}
