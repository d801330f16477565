//! The table `features`: one row for each window, pane end and entity whose window is not empty.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBufferBuilder, Float64Array, Int32Array, Int64Array, StringArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use omnify_operators::model::{
    EntityId, EventTime, FeatureRow, PaneRow, RegistryView, Stats, Tick, WindowSpec,
};

use super::buffer::{Buffer, Context, batch};
use super::entities::{EntityColumns, level_names, path_fields, text_column, text_field};
use super::events::{sums_fields, time_column, time_type};
use super::part::{BATCH_ROWS, PartWriter};
use super::row::{RowColumns, null_columns, row_fields, stats_of, sums_of};
use super::{HistoryError, Table};

/// A ratio of sums, undefined where its denominator is not above zero.
type Ratio = fn(&Stats) -> Option<f64>;

const RATIOS: [(&str, Ratio); 6] = [
    ("ctr", Stats::ctr),
    ("cpc", Stats::cpc),
    ("cpm", Stats::cpm),
    ("cvr", Stats::cvr),
    ("cpa", Stats::cpa),
    ("roas", Stats::roas),
];

/// The columns.
pub(crate) fn schema() -> SchemaRef {
    let mut fields = vec![
        text_field("window", false),
        Field::new("window_start", time_type(), false),
        Field::new("window_end", time_type(), false),
        Field::new("tick", DataType::Int64, false),
        text_field("level", false),
    ];
    fields.extend(path_fields(false));
    fields.extend(sums_fields(str::to_owned));
    fields.extend(RATIOS.iter().map(|(name, _)| Field::new(*name, DataType::Float64, true)));
    fields.extend(row_fields(true));
    Arc::new(Schema::new(fields))
}

/// Rows of one partition, a vector for each column.
#[derive(Default)]
pub(crate) struct FeatureBuffer {
    window: Vec<u8>,
    window_end: Vec<i64>,
    tick: Vec<i64>,
    entity: Vec<u32>,
    order: Vec<u64>,
    sums: [Vec<i64>; 5],
    /// Derived features with the position of their row, ascending.
    extras: Vec<(u32, FeatureRow)>,
}

/// Bytes of a buffered row without derived features.
pub(crate) const FEATURE_BYTES: usize = 1 + 8 + 8 + 4 + 8 + 40;
/// Bytes of the derived features of a row.
pub(crate) const EXTRA_BYTES: usize = std::mem::size_of::<(u32, FeatureRow)>();

impl FeatureBuffer {
    /// Adds a row.
    #[inline]
    pub(crate) fn push(&mut self, row: &PaneRow, order: u64, extra: Option<&FeatureRow>) {
        if let Some(extra) = extra {
            self.extras.push((self.window.len() as u32, *extra));
        }
        self.window.push(row.window);
        self.window_end.push(row.window_end);
        self.tick.push(row.tick as i64);
        self.entity.push(row.entity.0);
        self.order.push(order);
        for (column, value) in self.sums.iter_mut().zip(sums_of(&row.sums)) {
            column.push(value);
        }
    }

    /// Positions by (window, window end, entity order, key): the order of the file.
    fn order(&self, view: &mut RegistryView) -> Vec<u32> {
        // One number to compare; the ends of a partition lie within a day.
        let first = self.window_end.iter().copied().min().unwrap_or_default();
        let key = |at: usize| {
            let end = (self.window_end[at] - first) as u128;
            u128::from(self.window[at]) << 120 | end << 64 | u128::from(self.order[at])
        };
        let mut rows: Vec<(u128, u32)> =
            (0..self.window.len()).map(|at| (key(at), at as u32)).collect();
        // Rows mostly arrive in runs of this order, which the stable sort merges.
        rows.sort_by_key(|(key, _)| *key);
        // Entities whose hashes are equal go by their keys.
        for equal in rows.chunk_by_mut(|(a, _), (b, _)| a == b).filter(|equal| equal.len() > 1) {
            equal.sort_by_cached_key(|(_, at)| {
                view.info(EntityId(self.entity[*at as usize])).key.clone()
            });
        }
        rows.into_iter().map(|(_, at)| at).collect()
    }
}

/// Computes window starts, remembering the last local day.
struct Starts<'a> {
    windows: &'a [WindowSpec],
    days: std::collections::HashMap<(usize, EventTime), EventTime>,
}

impl Starts<'_> {
    fn start(
        &mut self,
        window: u8,
        end: EventTime,
        entity: u32,
        view: &mut RegistryView,
    ) -> EventTime {
        match self.windows.get(usize::from(window)) {
            Some(WindowSpec::Hop { width, .. }) => end.saturating_sub(width.us()),
            _ => {
                let zone = view.info(EntityId(entity)).time_zone.clone();
                let key = (Arc::as_ptr(&zone) as usize, end);
                *self.days.entry(key).or_insert_with(|| day_start(&zone, end))
            }
        }
    }
}

/// The local midnight before `end`.
pub(crate) fn day_start(zone: &jiff::tz::TimeZone, end: EventTime) -> EventTime {
    jiff::Timestamp::from_microsecond(end.saturating_sub(1))
        .ok()
        .and_then(|last| last.to_zoned(zone.clone()).start_of_day().ok())
        .map_or(end, |midnight| midnight.timestamp().as_microsecond())
}

impl Buffer for FeatureBuffer {
    const TABLE: Table = Table::Features;

    fn rows(&self) -> usize {
        self.window.len()
    }

    fn bytes(&self) -> usize {
        self.rows() * FEATURE_BYTES + self.extras.len() * EXTRA_BYTES
    }

    fn ticks(&self) -> (Tick, Tick) {
        let low = self.tick.iter().min().map_or(0, |t| *t as Tick);
        (low, self.tick.iter().max().map_or(0, |t| *t as Tick))
    }

    fn first_entity(&self, _: &mut Context) -> Option<String> {
        None
    }

    fn schema(_: &Context) -> SchemaRef {
        schema()
    }

    fn write(&self, context: &mut Context, out: &mut PartWriter<'_>) -> Result<(), HistoryError> {
        let schema = schema();
        let order = self.order(&mut context.view);
        let entities = EntityColumns::new(self.entity.iter().copied(), &mut context.view);
        let windows: Vec<WindowSpec> = context.meta.windows.clone();
        let window_names =
            Arc::new(StringArray::from_iter_values(windows.iter().map(ToString::to_string)));
        let levels = level_names();
        let mut starts = Starts { windows: &windows, days: Default::default() };
        let nulls = null_columns(self.rows().min(BATCH_ROWS));
        let mut extra_at = Vec::new();
        if !self.extras.is_empty() {
            extra_at.resize(self.rows(), u32::MAX);
            for (at, (row, _)) in self.extras.iter().enumerate() {
                extra_at[*row as usize] = at as u32;
            }
        }
        for rows in order.chunks(BATCH_ROWS) {
            let gather = |column: &[i64]| -> Vec<i64> {
                rows.iter().map(|row| column[*row as usize]).collect()
            };
            let ends = gather(&self.window_end);
            let ids: Vec<u32> = rows.iter().map(|row| self.entity[*row as usize]).collect();
            let window: Vec<u8> = rows.iter().map(|row| self.window[*row as usize]).collect();
            let start = (0..rows.len())
                .map(|at| starts.start(window[at], ends[at], ids[at], &mut context.view))
                .collect();
            let keys = Int32Array::from_iter_values(window.iter().map(|w| i32::from(*w)));
            let mut columns: Vec<ArrayRef> = vec![
                text_column(keys, &window_names),
                time_column(start),
                time_column(ends),
                Arc::new(Int64Array::from(gather(&self.tick))),
                entities.level(&ids, &levels),
            ];
            columns.extend(entities.path(&ids, false));
            let stats = |row: &u32| {
                stats_of(std::array::from_fn(|column| self.sums[column][*row as usize]))
            };
            let sums: Vec<Stats> = rows.iter().map(stats).collect();
            for column in &self.sums {
                columns.push(Arc::new(Int64Array::from(gather(column))));
            }
            columns.extend(RATIOS.iter().map(|(_, ratio)| ratios(&sums, *ratio)));
            columns.extend(self.derived(rows, &extra_at, &nulls));
            out.write(&batch(Table::Features, &schema, columns)?)?;
        }
        Ok(())
    }
}

fn ratios(sums: &[Stats], ratio: Ratio) -> ArrayRef {
    let mut values = Vec::with_capacity(sums.len());
    let mut nulls = BooleanBufferBuilder::new(sums.len());
    let mut complete = true;
    for sums in sums {
        let value = ratio(sums);
        values.push(value.unwrap_or_default());
        nulls.append(value.is_some());
        complete &= value.is_some();
    }
    let nulls = (!complete).then(|| NullBuffer::new(nulls.finish()));
    Arc::new(Float64Array::new(values.into(), nulls))
}

impl FeatureBuffer {
    /// The derived features of `rows`; `nulls` has at least as many, for those that have none.
    fn derived(&self, rows: &[u32], extra_at: &[u32], nulls: &[ArrayRef]) -> Vec<ArrayRef> {
        let extra = |row: &u32| {
            let at = *extra_at.get(*row as usize)?;
            self.extras.get(at as usize).map(|(_, extra)| extra)
        };
        if rows.iter().all(|row| extra(row).is_none()) {
            return nulls.iter().map(|column| column.slice(0, rows.len())).collect();
        }
        let mut columns = RowColumns::default();
        rows.iter().for_each(|row| columns.push(extra(row)));
        columns.finish()
    }
}
