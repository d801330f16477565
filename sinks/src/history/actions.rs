//! The tables `actions` and `outcomes`: what was to be executed, and what platforms said.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use omnify_decision::action::{Action, Setting, Status};
use omnify_decision::control::{Control, Outcome};
use omnify_operators::model::{EntityKey, Tick};

use super::buffer::{Buffer, Context, batch};
use super::decisions::{codes, codes_field};
use super::entities::{path_fields, path_of_keys, text_field, texts};
use super::part::{BATCH_ROWS, PartWriter};
use super::{HistoryError, Table};
use omnify_decision::digest::setting_json;

/// Bytes of a buffered row of either table, with its strings.
pub(crate) const SMALL_ROW_BYTES: usize = 512;

/// The columns.
pub(crate) fn actions_schema() -> SchemaRef {
    let mut fields = vec![
        Field::new("tick", DataType::Int64, false),
        Field::new("id", DataType::Utf8, false),
        Field::new("decision", DataType::Utf8, false),
    ];
    fields.extend(path_fields(false));
    fields.extend([
        text_field("level", false),
        text_field("kind", false),
        Field::new("amount_micros", DataType::Int64, true),
        Field::new("before_micros", DataType::Int64, true),
        Field::new("desired", DataType::Utf8, true),
        Field::new("before", DataType::Utf8, true),
        Field::new("expires", DataType::Int64, false),
        codes_field("reasons"),
    ]);
    Arc::new(Schema::new(fields))
}

/// Actions of one partition.
#[derive(Default)]
pub(crate) struct ActionBuffer {
    rows: Vec<Action>,
}

impl ActionBuffer {
    /// Adds a row.
    pub(crate) fn push(&mut self, action: &Action) {
        self.rows.push(action.clone());
    }
}

impl Buffer for ActionBuffer {
    const TABLE: Table = Table::Actions;

    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn bytes(&self) -> usize {
        self.rows.len() * SMALL_ROW_BYTES
    }

    fn ticks(&self) -> (Tick, Tick) {
        let tick = |row: Option<&Action>| row.map_or(0, |row| row.tick);
        (tick(self.rows.first()), tick(self.rows.last()))
    }

    fn first_entity(&self, _: &mut Context) -> Option<String> {
        self.rows.first().map(|action| action.owner.to_string())
    }

    fn schema(_: &Context) -> SchemaRef {
        actions_schema()
    }

    fn write(&self, _: &mut Context, out: &mut PartWriter<'_>) -> Result<(), HistoryError> {
        let schema = actions_schema();
        for rows in self.rows.chunks(BATCH_ROWS) {
            let micros = |setting: &dyn Fn(&Action) -> Option<i64>| -> ArrayRef {
                Arc::new(rows.iter().map(setting).collect::<Int64Array>())
            };
            let text = |value: &dyn Fn(&Action) -> Option<String>| -> ArrayRef {
                Arc::new(rows.iter().map(value).collect::<StringArray>())
            };
            let mut columns: Vec<ArrayRef> = vec![
                micros(&|row| Some(row.tick as i64)),
                text(&|row| Some(row.id.to_string())),
                text(&|row| Some(row.decision.to_string())),
            ];
            columns.extend(path_of_keys(rows.iter().map(|row| &row.owner)));
            columns.extend([
                texts(rows.iter().map(|row| Some(row.owner.level().name()))),
                texts(rows.iter().map(|row| Some(row.desired.kind().name()))),
                micros(&|row| row.desired.micros()),
                micros(&|row| row.before.as_ref().and_then(Setting::micros)),
                text(&|row| setting_json(Some(&row.desired))),
                text(&|row| setting_json(row.before.as_ref())),
                micros(&|row| Some(row.expires as i64)),
                codes(rows.iter().map(|row| &*row.reasons)),
            ]);
            out.write(&batch(Table::Actions, &schema, columns)?)?;
        }
        Ok(())
    }
}

/// The columns.
pub(crate) fn outcomes_schema() -> SchemaRef {
    let mut fields =
        vec![Field::new("tick", DataType::Int64, false), Field::new("seq", DataType::Int32, false)];
    fields.extend(path_fields(false));
    fields.extend([
        text_field("level", false),
        text_field("kind", false),
        Field::new("action", DataType::Utf8, true),
        text_field("result", true),
        Field::new("effective", DataType::Utf8, true),
        text_field("class", true),
        Field::new("message", DataType::Utf8, true),
        Field::new("bid_micros", DataType::Int64, true),
        Field::new("budget_micros", DataType::Int64, true),
        text_field("status", true),
    ]);
    Arc::new(Schema::new(fields))
}

struct OutcomeRow {
    tick: Tick,
    seq: u32,
    control: Control,
}

/// Acknowledgements and observations of one partition.
#[derive(Default)]
pub(crate) struct OutcomeBuffer {
    rows: Vec<OutcomeRow>,
}

/// The entity a control is about; `None` for controls that are no outcome.
pub(crate) fn outcome_entity(control: &Control) -> Option<&EntityKey> {
    match control {
        Control::Acknowledge { owner, .. } => Some(owner),
        Control::Observe { entity, .. } => Some(entity),
        _ => None,
    }
}

impl OutcomeBuffer {
    /// Adds a row.
    pub(crate) fn push(&mut self, tick: Tick, seq: u32, control: &Control) {
        self.rows.push(OutcomeRow { tick, seq, control: control.clone() });
    }
}

impl OutcomeRow {
    fn outcome(&self) -> Option<&Outcome> {
        match &self.control {
            Control::Acknowledge { outcome, .. } => Some(outcome),
            _ => None,
        }
    }

    fn result(&self) -> Option<&'static str> {
        self.outcome().map(|outcome| match outcome {
            Outcome::Applied { .. } => "applied",
            Outcome::NoChange => "no_change",
            Outcome::Rejected { .. } => "rejected",
            Outcome::Expired => "expired",
            Outcome::Unknown => "unknown",
        })
    }

    /// What the platform says is true: of an observation, or of an applied action.
    fn told(&self) -> (Option<i64>, Option<i64>, Option<Status>) {
        match &self.control {
            Control::Observe { actual, .. } => {
                (actual.bid_micros, actual.budget_micros, actual.status)
            }
            Control::Acknowledge { outcome: Outcome::Applied { effective }, .. } => match effective
            {
                Setting::Bid { bid_micros } => (Some(*bid_micros), None, None),
                Setting::Budget { budget_micros } => (None, Some(*budget_micros), None),
                Setting::Status { status } => (None, None, Some(*status)),
                _ => (None, None, None),
            },
            _ => (None, None, None),
        }
    }
}

impl Buffer for OutcomeBuffer {
    const TABLE: Table = Table::Outcomes;

    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn bytes(&self) -> usize {
        self.rows.len() * SMALL_ROW_BYTES
    }

    fn ticks(&self) -> (Tick, Tick) {
        let tick = |row: Option<&OutcomeRow>| row.map_or(0, |row| row.tick);
        (tick(self.rows.first()), tick(self.rows.last()))
    }

    fn first_entity(&self, _: &mut Context) -> Option<String> {
        let key = self.rows.first().and_then(|row| outcome_entity(&row.control));
        key.map(ToString::to_string)
    }

    fn schema(_: &Context) -> SchemaRef {
        outcomes_schema()
    }

    fn write(&self, _: &mut Context, out: &mut PartWriter<'_>) -> Result<(), HistoryError> {
        let schema = outcomes_schema();
        for rows in self.rows.chunks(BATCH_ROWS) {
            let keys = || rows.iter().filter_map(|row| outcome_entity(&row.control));
            let number = |value: &dyn Fn(&OutcomeRow) -> Option<i64>| -> ArrayRef {
                Arc::new(rows.iter().map(value).collect::<Int64Array>())
            };
            let text = |value: &dyn Fn(&OutcomeRow) -> Option<String>| -> ArrayRef {
                Arc::new(rows.iter().map(value).collect::<StringArray>())
            };
            let rejected = |row: &OutcomeRow| match row.outcome() {
                Some(Outcome::Rejected { class, message }) => {
                    Some((class.clone(), message.clone()))
                }
                _ => None,
            };
            let mut columns: Vec<ArrayRef> = vec![
                number(&|row| Some(row.tick as i64)),
                Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.seq as i32))),
            ];
            columns.extend(path_of_keys(keys()));
            let classes: Vec<_> = rows.iter().map(|row| rejected(row).map(|r| r.0)).collect();
            columns.extend([
                texts(keys().map(|key| Some(key.level().name()))),
                texts(rows.iter().map(|row| {
                    Some(if row.outcome().is_some() { "acknowledge" } else { "observe" })
                })),
                text(&|row| match &row.control {
                    Control::Acknowledge { action, .. } => Some(action.to_string()),
                    _ => None,
                }),
                texts(rows.iter().map(OutcomeRow::result)),
                text(&|row| match row.outcome() {
                    Some(Outcome::Applied { effective }) => setting_json(Some(effective)),
                    _ => None,
                }),
                texts(classes.iter().map(Option::as_deref)),
                text(&|row| rejected(row).map(|r| r.1)),
                number(&|row| row.told().0),
                number(&|row| row.told().1),
                texts(rows.iter().map(|row| row.told().2.map(status_name))),
            ]);
            out.write(&batch(Table::Outcomes, &schema, columns)?)?;
        }
        Ok(())
    }
}

fn status_name(status: Status) -> &'static str {
    match status {
        Status::Enabled => "enabled",
        Status::Paused => "paused",
    }
}
