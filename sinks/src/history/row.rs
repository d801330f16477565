//! The columns of a feature row, shared by the tables `features` and `decisions`.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, BooleanBuilder, Float64Array, Float64Builder, Int64Builder,
    RecordBatch, StringDictionaryBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int32Type};
use omnify_operators::model::{EventTime, Expected, FeatureRow, Maturity, Stats};

use super::entities::text_field;
use super::events::time_type;
use super::read::typed;

/// The fields of [`Stats`] in the order of the columns.
#[inline]
pub(crate) fn sums_of(stats: &Stats) -> [i64; 5] {
    [stats.impressions, stats.clicks, stats.conversions, stats.cost_micros, stats.revenue_micros]
}

/// [`Stats`] of the columns.
#[inline]
pub(crate) fn stats_of(
    [impressions, clicks, conversions, cost_micros, revenue_micros]: [i64; 5],
) -> Stats {
    Stats { impressions, clicks, conversions, cost_micros, revenue_micros }
}

/// Null in rows without a maturity, and in files of before there was one.
const MATURITY_FLOATS: [&str; 9] = [
    "maturity_share",
    "maturity_error",
    "conversions_expected",
    "conversions_expected_low",
    "conversions_expected_high",
    "revenue_expected_micros",
    "revenue_expected_low_micros",
    "revenue_expected_high_micros",
    "maturity_residual",
];
const MATURITY_TIMES: [&str; 2] = ["fresh_until", "settled_until"];

const FLOATS: [&str; 14] = [
    "ctr_shrunk",
    "ctr_low",
    "ctr_high",
    "cvr_shrunk",
    "cvr_low",
    "cvr_high",
    "reach",
    "frequency",
    "fatigue_baseline_ctr",
    "fatigue_ratio",
    "fatigue_probability",
    "fatigue_slope_per_day",
    "fatigue_days_to_onset",
    "anomaly_score",
];
const COUNTS: [&str; 4] = ["ctr_successes", "ctr_trials", "cvr_successes", "cvr_trials"];

/// The fields, nullable where a row may come without derived features.
pub(crate) fn row_fields(nullable: bool) -> Vec<Field> {
    let floats = FLOATS.iter().map(|name| {
        Field::new(*name, DataType::Float64, nullable || *name == "fatigue_days_to_onset")
    });
    let counts = COUNTS.iter().map(|name| Field::new(*name, DataType::Int64, nullable));
    let rest = [
        text_field("fatigue_state", nullable),
        Field::new("anomaly_alarm", DataType::Boolean, nullable),
    ];
    let shares = MATURITY_FLOATS.iter().map(|name| Field::new(*name, DataType::Float64, true));
    let times = MATURITY_TIMES.iter().map(|name| Field::new(*name, time_type(), true));
    let broken = Field::new("maturity_broken", DataType::Boolean, true);
    floats.chain(counts).chain(rest).chain(shares).chain(times).chain([broken]).collect()
}

/// Columns of nulls for rows without derived features.
pub(crate) fn null_columns(rows: usize) -> Vec<ArrayRef> {
    row_fields(true)
        .iter()
        .map(|field| arrow::array::new_null_array(field.data_type(), rows))
        .collect()
}

/// Builds the columns row by row.
#[derive(Default)]
pub(crate) struct RowColumns {
    floats: [Float64Builder; 14],
    counts: [Int64Builder; 4],
    state: StringDictionaryBuilder<Int32Type>,
    alarm: BooleanBuilder,
    maturity: Vec<Option<Maturity>>,
}

impl RowColumns {
    /// Adds a row.
    pub(crate) fn push(&mut self, row: Option<&FeatureRow>) {
        self.maturity.push(row.and_then(|row| row.maturity));
        let Some(row) = row else {
            self.floats.iter_mut().for_each(Float64Builder::append_null);
            self.counts.iter_mut().for_each(Int64Builder::append_null);
            self.state.append_null();
            self.alarm.append_null();
            return;
        };
        let (fatigue, reach) = (&row.fatigue, &row.reach);
        let floats = [
            Some(row.ctr.mean),
            Some(row.ctr.low),
            Some(row.ctr.high),
            Some(row.cvr.mean),
            Some(row.cvr.low),
            Some(row.cvr.high),
            Some(reach.users),
            Some(reach.frequency),
            Some(fatigue.baseline_ctr),
            Some(fatigue.ratio),
            Some(fatigue.probability),
            Some(fatigue.slope_per_day),
            fatigue.days_to_onset,
            Some(row.anomaly.score),
        ];
        for (column, value) in self.floats.iter_mut().zip(floats) {
            column.append_option(value);
        }
        let counts = [row.ctr.successes, row.ctr.trials, row.cvr.successes, row.cvr.trials];
        for (column, value) in self.counts.iter_mut().zip(counts) {
            column.append_value(value);
        }
        self.state.append_value(fatigue.state.name());
        self.alarm.append_value(row.anomaly.alarm);
    }

    /// The columns of all rows added.
    pub(crate) fn finish(mut self) -> Vec<ArrayRef> {
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(FLOATS.len() + COUNTS.len() + 2);
        columns.extend(self.floats.iter_mut().map(|c| Arc::new(c.finish()) as ArrayRef));
        columns.extend(self.counts.iter_mut().map(|c| Arc::new(c.finish()) as ArrayRef));
        columns.push(Arc::new(self.state.finish()));
        columns.push(Arc::new(self.alarm.finish()));
        columns.extend(maturity_columns(&self.maturity));
        columns
    }
}

fn maturity_columns(rows: &[Option<Maturity>]) -> impl Iterator<Item = ArrayRef> + '_ {
    let fraction = |at: usize| -> ArrayRef {
        let values = rows.iter().map(|row| row.map(|maturity| maturity.fractions()[at]));
        Arc::new(values.collect::<Float64Array>())
    };
    let time = |of: fn(&Maturity) -> EventTime| -> ArrayRef {
        let values = rows.iter().map(|row| row.as_ref().map(of));
        Arc::new(values.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
    };
    let broken = rows.iter().map(|row| row.map(|maturity| maturity.broken));
    let broken: ArrayRef = Arc::new(broken.collect::<BooleanArray>());
    (0..MATURITY_FLOATS.len())
        .map(fraction)
        .chain([time(|maturity| maturity.fresh_us), time(|maturity| maturity.settled_us)])
        .chain([broken])
}

/// Reads the maturity of decisions back.
pub(crate) struct MaturityReader<'a> {
    fractions: Vec<&'a Float64Array>,
    times: Vec<&'a TimestampMicrosecondArray>,
    broken: &'a BooleanArray,
}

impl<'a> MaturityReader<'a> {
    pub(crate) fn new(batch: &'a RecordBatch) -> Result<MaturityReader<'a>, String> {
        let fractions: Result<_, _> =
            MATURITY_FLOATS.iter().map(|name| typed(batch, name)).collect();
        let times: Result<_, _> = MATURITY_TIMES.iter().map(|name| typed(batch, name)).collect();
        Ok(MaturityReader {
            fractions: fractions?,
            times: times?,
            broken: typed(batch, "maturity_broken")?,
        })
    }

    pub(crate) fn row(&self, at: usize) -> Option<Maturity> {
        let number = |column: usize| self.fractions[column].value(at);
        let expected = |first: usize| Expected {
            mean: number(first),
            low: number(first + 1),
            high: number(first + 2),
        };
        (!self.broken.is_null(at)).then(|| Maturity {
            share: number(0),
            error: number(1),
            conversions: expected(2),
            revenue_micros: expected(5),
            residual: number(8),
            fresh_us: self.times[0].value(at),
            settled_us: self.times[1].value(at),
            broken: self.broken.value(at),
        })
    }
}
