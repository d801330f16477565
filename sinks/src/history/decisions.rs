//! The table `decisions`: every decision with the exact feature row it was made on.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Int32Array, Int64Array, ListBuilder, StringArray, StringBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use omnify_decision::action::Decision;
use omnify_operators::model::{Tick, WindowSpec};

use super::buffer::{Buffer, Context, batch};
use super::entities::{level_names, path_fields, path_of_keys, text_column, text_field, texts};
use super::events::sums_fields;
use super::part::{BATCH_ROWS, PartWriter};
use super::row::{RowColumns, row_fields, sums_of};
use super::{HistoryError, Table};
use omnify_decision::digest::setting_json;

/// The column of a metric's sum over a window: `impressions_24h_15m`.
pub(crate) fn window_column(metric: &str, window: &WindowSpec) -> String {
    format!("{metric}_{}", window.to_string().replace('/', "_"))
}

/// The type of a list of codes.
pub(crate) fn codes_field(name: &str) -> Field {
    Field::new(name, DataType::List(Arc::new(Field::new("element", DataType::Utf8, false))), false)
}

/// A column of lists of codes.
pub(crate) fn codes<'a>(rows: impl Iterator<Item = &'a [&'static str]>) -> ArrayRef {
    let element = Arc::new(Field::new("element", DataType::Utf8, false));
    let mut builder = ListBuilder::new(StringBuilder::new()).with_field(element);
    for list in rows {
        list.iter().for_each(|code| builder.values().append_value(code));
        builder.append(true);
    }
    Arc::new(builder.finish())
}

/// The columns for a configuration with these windows.
pub(crate) fn schema(windows: &[WindowSpec]) -> SchemaRef {
    let float = |name: &str| Field::new(name, DataType::Float64, false);
    let mut fields = vec![
        Field::new("tick", DataType::Int64, false),
        Field::new("seq", DataType::Int32, false),
        Field::new("id", DataType::Utf8, false),
    ];
    fields.extend(path_fields(false));
    fields.extend([
        text_field("level", false),
        text_field("goal", false),
        text_field("policy", false),
        Field::new("model_version", DataType::Int64, false),
        text_field("verdict", false),
        text_field("kind", true),
        Field::new("proposed", DataType::Utf8, true),
        Field::new("granted", DataType::Utf8, true),
        Field::new("action", DataType::Utf8, true),
        codes_field("reasons"),
        codes_field("guardrails"),
        float("predicted_spend_micros"),
        float("predicted_value"),
        float("predicted_value_low"),
        float("predicted_value_high"),
        float("propensity"),
        float("pacing_error"),
        Field::new("row_tick", DataType::Int64, false),
    ]);
    for window in windows {
        fields.extend(sums_fields(|metric| window_column(metric, window)));
    }
    fields.extend(row_fields(false));
    fields.push(Field::new("check", DataType::Int64, false));
    Arc::new(Schema::new(fields))
}

/// A decision with its position in its tick and its check.
struct Row {
    seq: u32,
    check: u64,
    decision: Decision,
}

/// Rows of one partition.
#[derive(Default)]
pub(crate) struct DecisionBuffer {
    rows: Vec<Row>,
}

/// Bytes of a buffered row, with its short strings.
pub(crate) const DECISION_BYTES: usize = std::mem::size_of::<Row>() + 256;

impl DecisionBuffer {
    /// Adds a row.
    pub(crate) fn push(&mut self, seq: u32, check: u64, decision: &Decision) {
        self.rows.push(Row { seq, check, decision: decision.clone() });
    }
}

impl Buffer for DecisionBuffer {
    const TABLE: Table = Table::Decisions;

    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn bytes(&self) -> usize {
        self.rows.len() * DECISION_BYTES
    }

    fn ticks(&self) -> (Tick, Tick) {
        let tick = |row: Option<&Row>| row.map_or(0, |row| row.decision.tick);
        (tick(self.rows.first()), tick(self.rows.last()))
    }

    fn first_entity(&self, _: &mut Context) -> Option<String> {
        self.rows.first().map(|row| row.decision.entity.key.to_string())
    }

    fn schema(context: &Context) -> SchemaRef {
        schema(&context.meta.windows)
    }

    fn write(&self, context: &mut Context, out: &mut PartWriter<'_>) -> Result<(), HistoryError> {
        let windows = context.meta.windows.len();
        let schema = schema(&context.meta.windows);
        for rows in self.rows.chunks(BATCH_ROWS) {
            let columns = columns(rows, windows);
            out.write(&batch(Table::Decisions, &schema, columns)?)?;
        }
        Ok(())
    }
}

fn columns(rows: &[Row], windows: usize) -> Vec<ArrayRef> {
    let all = || rows.iter().map(|row| &row.decision);
    let int64 = |value: &dyn Fn(&Row) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(rows.iter().map(value)))
    };
    let float = |value: &dyn Fn(&Decision) -> f64| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(all().map(value)))
    };
    let text = |value: &dyn Fn(&Decision) -> Option<String>| -> ArrayRef {
        Arc::new(all().map(value).collect::<StringArray>())
    };
    let mut columns: Vec<ArrayRef> = vec![
        int64(&|row| row.decision.tick as i64),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.seq as i32))),
        text(&|decision| Some(decision.id.to_string())),
    ];
    columns.extend(path_of_keys(all().map(|decision| &decision.entity.key)));
    let levels = all().map(|decision| decision.entity.level as i32);
    columns.push(text_column(Int32Array::from_iter_values(levels), &level_names()));
    columns.extend([
        texts(all().map(|decision| Some(&*decision.goal))),
        texts(all().map(|decision| Some(decision.policy))),
        int64(&|row| row.decision.model_version as i64),
        texts(all().map(|decision| Some(decision.verdict.name()))),
        texts(all().map(|decision| {
            decision.granted.as_ref().or(decision.proposed.as_ref()).map(|s| s.kind().name())
        })),
        text(&|decision| setting_json(decision.proposed.as_ref())),
        text(&|decision| setting_json(decision.granted.as_ref())),
        text(&|decision| decision.action.map(|id| id.to_string())),
        codes(all().map(|decision| &*decision.reasons)),
        codes(all().map(|decision| &*decision.guardrails)),
        float(&|decision| decision.predicted.spend_micros),
        float(&|decision| decision.predicted.value),
        float(&|decision| decision.predicted.value_low),
        float(&|decision| decision.predicted.value_high),
        float(&|decision| decision.propensity),
        float(&|decision| decision.pacing_error),
        int64(&|row| row.decision.row.tick as i64),
    ]);
    for window in 0..windows {
        for metric in 0..5 {
            columns.push(int64(&|row| sums_of(&row.decision.row.windows[window])[metric]));
        }
    }
    let mut derived = RowColumns::default();
    all().for_each(|decision| derived.push(Some(&decision.row)));
    columns.extend(derived.finish());
    columns.push(int64(&|row| row.check as i64));
    columns
}
