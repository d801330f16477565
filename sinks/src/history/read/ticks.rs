//! Rows of the table `ticks` back into [`TickRecord`]s.

use arrow::array::{Array, Int64Array, RecordBatch, StringArray};
use omnify_decision::control::Control;
use omnify_operators::model::Tick;

use super::super::{Difference, HistoryError, Table, TickRecord};
use super::HistoryReader;
use super::file::{DecodeError, dictionary, typed};
use super::merge::{Decode, Decoded, Merge};
use omnify_decision::digest::unhex;

/// Decodes ticks.
pub(crate) struct TickRows;

impl Decode for TickRows {
    type Row = TickRecord;
    const TABLE: Table = Table::Ticks;

    fn decode(
        &mut self,
        batch: &RecordBatch,
        out: &mut Decoded<TickRecord>,
    ) -> Result<(), DecodeError> {
        let number = |name| typed::<Int64Array>(batch, name);
        let (tick, events, check) = (number("tick")?, number("events")?, number("events_check")?);
        let decisions = number("decisions")?;
        let controls: &StringArray = typed(batch, "controls")?;
        let digest = dictionary(batch, "digest")?;
        let digests = digest
            .downcast_dict::<StringArray>()
            .ok_or_else(|| "column `digest` does not hold strings".to_owned())?;
        for row in 0..batch.num_rows() {
            let tick = tick.value(row) as Tick;
            let bad = |what: String| {
                DecodeError::Row(Difference {
                    tick: Some(tick),
                    entity: None,
                    file: String::new(),
                    what,
                })
            };
            let controls: Vec<Control> = match controls.is_null(row) {
                true => Vec::new(),
                false => serde_json::from_str(controls.value(row))
                    .map_err(|e| bad(format!("the controls are not what was written: {e}")))?,
            };
            let digest = arrow::array::ArrayAccessor::value(&digests, row);
            let record = TickRecord {
                tick,
                events: events.value(row) as u64,
                events_check: check.value(row) as u64,
                controls,
                decisions: decisions.value(row) as u64,
                digest: unhex(digest)
                    .ok_or_else(|| bad(format!("the digest `{digest}` is not 64 hex digits")))?,
            };
            out.ticks.push(tick);
            out.seqs.push(0);
            out.checks.push(0);
            out.rows.push(record);
        }
        Ok(())
    }
}

/// The closed ticks in order.
pub struct Ticks {
    merge: Merge<TickRows>,
    rows: Vec<TickRecord>,
    failed: bool,
}

impl Ticks {
    pub(crate) fn new(reader: &HistoryReader) -> Ticks {
        Ticks { merge: Merge::new(reader, TickRows), rows: Vec::new(), failed: false }
    }

    /// The next tick; never twice the same, as the merge refuses two rows at one position.
    fn step(&mut self) -> Result<Option<TickRecord>, HistoryError> {
        let Some(tick) = self.merge.peek() else { return Ok(None) };
        self.merge.take(tick, &mut self.rows)?;
        Ok(self.rows.pop())
    }
}

impl Iterator for Ticks {
    type Item = Result<TickRecord, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.step().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}
