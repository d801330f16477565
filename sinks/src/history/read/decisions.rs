//! Rows of the table `decisions` back into records that compare with a repeated run.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayAccessor, AsArray, BooleanArray, Float64Array, Int32Array, Int64Array, ListArray,
    RecordBatch, StringArray,
};
use omnify_decision::action::{Decision, Id, Prediction, Setting, Verdict};
use omnify_operators::model::{
    Anomaly, EntityId, EntityKey, Estimate, Fatigue, FatigueState, FeatureRow, MAX_WINDOWS, Reach,
    Stats, Tick,
};

use super::super::decisions::window_column;
use super::super::entities::PATH;
use super::super::events::SUMS;
use super::super::row::{MaturityReader, stats_of};
use super::super::{Difference, HistoryError, HistoryMeta, Table};
use super::HistoryReader;
use super::file::{DecodeError, dictionary, typed};
use super::merge::{Decode, Decoded, Merge};
use omnify_decision::digest::Canonical;

/// A decision as the history holds it; the fields are those of [`Decision`].
#[derive(Clone, Debug, PartialEq)]
pub struct DecisionRecord {
    /// Function of (entity, tick, policy).
    pub id: Id,
    /// When it was made.
    pub tick: Tick,
    /// About whom.
    pub entity: EntityKey,
    /// Goal it serves.
    pub goal: String,
    /// Policy with version.
    pub policy: String,
    /// Model version; 0 without one.
    pub model_version: u64,
    /// What it came to.
    pub verdict: Verdict,
    /// What the policy wanted.
    pub proposed: Option<Setting>,
    /// What the guardrails let through.
    pub granted: Option<Setting>,
    /// Action emitted.
    pub action: Option<Id>,
    /// Reason codes.
    pub reasons: Vec<String>,
    /// Guardrails hit.
    pub guardrails: Vec<String>,
    /// Expected effect.
    pub predicted: Prediction,
    /// Probability with which it was chosen.
    pub propensity: f64,
    /// Spend against plan.
    pub pacing_error: f64,
    /// Features it was made on. [`FeatureRow::entity`] is `u32::MAX`: dense ids are never written.
    pub row: FeatureRow,
}

/// [`FeatureRow::entity`] of rows read back.
const NO_ENTITY: EntityId = EntityId(u32::MAX);

impl From<&Decision> for DecisionRecord {
    fn from(decision: &Decision) -> Self {
        let owned = |codes: &[&'static str]| codes.iter().map(|code| (*code).to_owned()).collect();
        DecisionRecord {
            id: decision.id,
            tick: decision.tick,
            entity: decision.entity.key.clone(),
            goal: decision.goal.as_ref().to_owned(),
            policy: decision.policy.to_owned(),
            model_version: decision.model_version,
            verdict: decision.verdict,
            proposed: decision.proposed.clone(),
            granted: decision.granted.clone(),
            action: decision.action,
            reasons: owned(&decision.reasons),
            guardrails: owned(&decision.guardrails),
            predicted: decision.predicted,
            propensity: decision.propensity,
            pacing_error: decision.pacing_error,
            row: FeatureRow { entity: NO_ENTITY, ..decision.row },
        }
    }
}

impl DecisionRecord {
    pub(crate) fn canonical(&self) -> Canonical<'_, String> {
        Canonical {
            id: self.id,
            tick: self.tick,
            entity: self.entity.as_str(),
            goal: &self.goal,
            policy: &self.policy,
            model_version: self.model_version,
            verdict: self.verdict,
            proposed: self.proposed.as_ref(),
            granted: self.granted.as_ref(),
            action: self.action,
            reasons: &self.reasons,
            guardrails: &self.guardrails,
            predicted: self.predicted,
            propensity: self.propensity,
            pacing_error: self.pacing_error,
            row: &self.row,
        }
    }

    /// The first field in which a repeated decision differs, with both values; `None` when they
    /// agree bit for bit.
    pub fn difference(&self, again: &DecisionRecord) -> Option<String> {
        macro_rules! compare {
            ($($name:ident),*) => {
                $(
                    let (was, is) = (format!("{:?}", self.$name), format!("{:?}", again.$name));
                    if was != is {
                        return Some(format!("{} was {was}, is {is}", stringify!($name)));
                    }
                )*
            };
        }
        let (mut was, mut is) = (Vec::new(), Vec::new());
        self.canonical().encode(MAX_WINDOWS, &mut was);
        again.canonical().encode(MAX_WINDOWS, &mut is);
        if was == is {
            return None;
        }
        compare!(tick, entity, policy, goal, row, model_version, proposed, granted, verdict);
        compare!(guardrails, reasons, action, predicted, propensity, pacing_error, id);
        Some("a float differs in its bits".to_owned())
    }
}

/// Decodes decisions.
pub(crate) struct DecisionRows {
    meta: Arc<HistoryMeta>,
    scratch: Vec<u8>,
}

impl DecisionRows {
    pub(crate) fn new(meta: Arc<HistoryMeta>) -> DecisionRows {
        DecisionRows { meta, scratch: Vec::new() }
    }
}

/// A dictionary column of strings, nulls as `None`.
fn texts<'a>(
    batch: &'a RecordBatch,
    name: &'a str,
) -> Result<impl Fn(usize) -> Option<&'a str>, String> {
    let column = dictionary(batch, name)?;
    let values = column
        .downcast_dict::<StringArray>()
        .ok_or_else(|| format!("column `{name}` does not hold strings"))?;
    Ok(move |row| (!column.is_null(row)).then(|| values.value(row)))
}

fn parse_setting(text: Option<&str>) -> Result<Option<Setting>, String> {
    text.map(serde_json::from_str).transpose().map_err(|e| format!("a setting is damaged: {e}"))
}

fn strings(list: &ListArray, row: usize) -> Result<Vec<String>, String> {
    let values = list.value(row);
    let values = values.as_string_opt::<i32>().ok_or("a list does not hold strings")?;
    Ok(values.iter().map(|code| code.unwrap_or_default().to_owned()).collect())
}

impl Decode for DecisionRows {
    type Row = DecisionRecord;
    const TABLE: Table = Table::Decisions;

    fn decode(
        &mut self,
        batch: &RecordBatch,
        out: &mut Decoded<DecisionRecord>,
    ) -> Result<(), DecodeError> {
        let int = |name: &str| typed::<Int64Array>(batch, name);
        let float = |name: &str| typed::<Float64Array>(batch, name);
        let text = |name: &str| typed::<StringArray>(batch, name);
        let optional = |column: &StringArray, row| {
            (!column.is_null(row)).then(|| column.value(row).to_owned())
        };
        let seq: &Int32Array = typed(batch, "seq")?;
        let (id, action) = (text("id")?, text("action")?);
        let (proposed, granted) = (text("proposed")?, text("granted")?);
        let (goal, policy) = (texts(batch, "goal")?, texts(batch, "policy")?);
        let verdict = texts(batch, "verdict")?;
        let reasons: &ListArray = typed(batch, "reasons")?;
        let guardrails: &ListArray = typed(batch, "guardrails")?;
        let mut path = Vec::new();
        for name in PATH {
            path.push(texts(batch, name)?);
        }
        let check = int("check")?;
        let row_reader = RowReader::new(batch, &self.meta)?;
        let (spend, value) = (float("predicted_spend_micros")?, float("predicted_value")?);
        let (low, high) = (float("predicted_value_low")?, float("predicted_value_high")?);
        for at in 0..batch.num_rows() {
            let segments: Vec<&str> = path.iter().map_while(|column| column(at)).collect();
            let parse_id = |text: String| Id::try_from(text);
            let record = DecisionRecord {
                id: parse_id(id.value(at).to_owned())?,
                tick: int("tick")?.value(at) as Tick,
                entity: EntityKey::new(&segments).map_err(|e| e.to_string())?,
                goal: goal(at).unwrap_or_default().to_owned(),
                policy: policy(at).unwrap_or_default().to_owned(),
                model_version: int("model_version")?.value(at) as u64,
                verdict: [Verdict::Act, Verdict::Hold, Verdict::Blocked, Verdict::Propose]
                    .into_iter()
                    .find(|v| Some(v.name()) == verdict(at))
                    .ok_or("column `verdict` holds an unknown verdict")?,
                proposed: parse_setting(optional(proposed, at).as_deref())?,
                granted: parse_setting(optional(granted, at).as_deref())?,
                action: optional(action, at).map(parse_id).transpose()?,
                reasons: strings(reasons, at)?,
                guardrails: strings(guardrails, at)?,
                predicted: Prediction {
                    spend_micros: spend.value(at),
                    value: value.value(at),
                    value_low: low.value(at),
                    value_high: high.value(at),
                },
                propensity: float("propensity")?.value(at),
                pacing_error: float("pacing_error")?.value(at),
                row: row_reader.row(at),
            };
            record.canonical().encode(self.meta.windows.len(), &mut self.scratch);
            let found = xxhash_rust::xxh3::xxh3_64(&self.scratch);
            if found != check.value(at) as u64 {
                return Err(DecodeError::Row(Difference {
                    tick: Some(record.tick),
                    entity: Some(record.entity),
                    file: String::new(),
                    what: "a decision is not what was written (its row check differs)".to_owned(),
                }));
            }
            out.ticks.push(record.tick);
            out.seqs.push(seq.value(at) as u32);
            out.checks.push(found);
            out.rows.push(record);
        }
        Ok(())
    }
}

/// Reads the columns of the feature row.
struct RowReader<'a> {
    tick: &'a Int64Array,
    windows: Vec<[&'a Int64Array; 5]>,
    ctr: ([&'a Float64Array; 3], [&'a Int64Array; 2]),
    cvr: ([&'a Float64Array; 3], [&'a Int64Array; 2]),
    rest: [&'a Float64Array; 8],
    state: Vec<FatigueState>,
    alarm: &'a BooleanArray,
    maturity: MaturityReader<'a>,
}

impl<'a> RowReader<'a> {
    fn new(batch: &'a RecordBatch, meta: &HistoryMeta) -> Result<RowReader<'a>, String> {
        let int = |name: &str| typed::<Int64Array>(batch, name);
        let float = |name: &str| typed::<Float64Array>(batch, name);
        let tick = int("row_tick")?;
        let mut windows = Vec::new();
        for window in &meta.windows {
            let mut columns = [tick; 5];
            for (column, metric) in columns.iter_mut().zip(SUMS) {
                *column = int(&window_column(metric, window))?;
            }
            windows.push(columns);
        }
        let state = texts(batch, "fatigue_state")?;
        let states = [FatigueState::Insufficient, FatigueState::Fresh, FatigueState::WearingOut];
        let state = (0..batch.num_rows())
            .map(|at| states.into_iter().find(|s| Some(s.name()) == state(at)))
            .collect::<Option<Vec<_>>>()
            .ok_or("column `fatigue_state` holds an unknown state")?;
        Ok(RowReader {
            tick,
            windows,
            ctr: (
                [float("ctr_shrunk")?, float("ctr_low")?, float("ctr_high")?],
                [int("ctr_successes")?, int("ctr_trials")?],
            ),
            cvr: (
                [float("cvr_shrunk")?, float("cvr_low")?, float("cvr_high")?],
                [int("cvr_successes")?, int("cvr_trials")?],
            ),
            rest: [
                float("reach")?,
                float("frequency")?,
                float("fatigue_baseline_ctr")?,
                float("fatigue_ratio")?,
                float("fatigue_probability")?,
                float("fatigue_slope_per_day")?,
                float("fatigue_days_to_onset")?,
                float("anomaly_score")?,
            ],
            state,
            alarm: typed(batch, "anomaly_alarm")?,
            maturity: MaturityReader::new(batch)?,
        })
    }

    fn row(&self, at: usize) -> FeatureRow {
        let estimate = |(floats, counts): &([&Float64Array; 3], [&Int64Array; 2])| Estimate {
            mean: floats[0].value(at),
            low: floats[1].value(at),
            high: floats[2].value(at),
            successes: counts[0].value(at),
            trials: counts[1].value(at),
        };
        let mut windows = [Stats::ZERO; MAX_WINDOWS];
        for (window, columns) in windows.iter_mut().zip(&self.windows) {
            *window = stats_of(columns.map(|column| column.value(at)));
        }
        let rest = self.rest.map(|column| column.value(at));
        FeatureRow {
            entity: NO_ENTITY,
            tick: self.tick.value(at) as Tick,
            windows,
            ctr: estimate(&self.ctr),
            cvr: estimate(&self.cvr),
            reach: Reach { users: rest[0], frequency: rest[1] },
            fatigue: Fatigue {
                state: self.state[at],
                baseline_ctr: rest[2],
                ratio: rest[3],
                probability: rest[4],
                slope_per_day: rest[5],
                days_to_onset: (!self.rest[6].is_null(at)).then_some(rest[6]),
            },
            anomaly: Anomaly { score: rest[7], alarm: self.alarm.value(at) },
            maturity: self.maturity.row(at),
        }
    }
}

/// The decisions in the order in which they were made.
pub struct Decisions {
    merge: Merge<DecisionRows>,
    rows: std::vec::IntoIter<DecisionRecord>,
    failed: bool,
}

impl Decisions {
    pub(crate) fn new(reader: &HistoryReader) -> Decisions {
        let merge = Merge::new(reader, DecisionRows::new(reader.meta.clone()));
        Decisions { merge, rows: Vec::new().into_iter(), failed: false }
    }

    /// The tick of the next decision not yet handed out.
    pub(crate) fn peek(&self) -> Option<Tick> {
        self.merge.peek()
    }

    /// All decisions of the next tick, which is `tick`.
    pub(crate) fn take_tick(
        &mut self,
        tick: Tick,
        out: &mut Vec<DecisionRecord>,
    ) -> Result<(), HistoryError> {
        self.merge.take(tick, out).map(|_| ())
    }
}

impl Iterator for Decisions {
    type Item = Result<DecisionRecord, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(row) = self.rows.next() {
            return Some(Ok(row));
        }
        if self.failed {
            return None;
        }
        let tick = self.merge.peek()?;
        let mut rows = Vec::new();
        if let Err(error) = self.merge.take(tick, &mut rows) {
            self.failed = true;
            return Some(Err(error));
        }
        self.rows = rows.into_iter();
        self.rows.next().map(Ok)
    }
}
