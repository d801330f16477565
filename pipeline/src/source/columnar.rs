//! Parquet files: only the mapped columns, one row group at a time, names as dictionaries.
//!
//! A batch goes through the fast path ([`super::fast`]) where it can; where anything in it is
//! unusual it goes row by row through the same decoder as text, which then says what is wrong.
//! Dead letters of Parquet rows hold the mapped columns of the row as a JSON object.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Field, Float64Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use omnify_operators::model::EventTime;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::statistics::Statistics;

use super::error::{ColumnFault, SourceError, column_error, no_column};
use super::fast::Fast;
use super::{ReadOptions, Source};
use crate::decode::{Batch, Cell, Door, KindPlan, Mapping, Plan, RowDecoder, TextPlan};

/// What is known of a file before a row is read.
struct Layout {
    path: PathBuf,
    length: u64,
    metadata: ArrowReaderMetadata,
    /// The column of each slot, by position in the file; `None` when the file lacks it or it is
    /// projected out.
    slots: Vec<Option<usize>>,
    /// Number of the first row of each row group.
    first_rows: Vec<u64>,
}

/// A row group and the times in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowGroup {
    /// Position in the file.
    pub index: usize,
    /// Rows in it.
    pub rows: u64,
    /// Earliest and latest event time, where the file has statistics of its time column.
    pub span: Option<(EventTime, EventTime)>,
}

/// The row groups of a Parquet file in the order of their earliest event time (those without
/// statistics first, in the order of the file).
pub fn row_groups_in_time_order(
    path: &Path,
    mapping: &Mapping,
) -> Result<Vec<RowGroup>, SourceError> {
    let layout = Layout::read(path, mapping, ReadOptions::default())?;
    let plan = mapping.plan();
    let time = plan.events.as_ref().and_then(|events| {
        let slot = events.time.text.single()?;
        Some((layout.slots[slot]?, &events.time.format))
    });
    let mut groups: Vec<RowGroup> = layout
        .metadata
        .metadata()
        .row_groups()
        .iter()
        .enumerate()
        .map(|(index, group)| {
            let span = time.and_then(|(column, format)| {
                let schema = layout.metadata.parquet_schema();
                let leaf = (0..schema.num_columns())
                    .find(|leaf| schema.get_column_root_idx(*leaf) == column)?;
                let Some(Statistics::Int64(stats)) = group.column(leaf).statistics() else {
                    return None;
                };
                let field = layout.metadata.schema().field(column).data_type().clone();
                let read = |number: i64| match &field {
                    DataType::Timestamp(unit, _) => Some(to_micros(number, *unit)),
                    _ => format.of_number(number),
                };
                Some((read(*stats.min_opt()?)?, read(*stats.max_opt()?)?))
            });
            RowGroup { index, rows: group.num_rows().max(0) as u64, span }
        })
        .collect();
    groups.sort_by_key(|group| (group.span, group.index));
    Ok(groups)
}

/// Opens a Parquet file as `parts` sources that can be read by as many threads: part `k` reads the
/// row groups `k`, `k + parts`, … in the order of the file. Every batch says the event times that
/// it spans.
pub fn open_parquet_parallel(
    path: &Path,
    mapping: &Mapping,
    door: &Arc<Door>,
    options: ReadOptions,
    parts: usize,
) -> Result<Vec<Box<dyn Source>>, SourceError> {
    let layout = Arc::new(Layout::read(path, mapping, options)?);
    let groups = layout.first_rows.len();
    let parts = parts.max(1);
    (0..parts)
        .map(|part| {
            let groups = (part..groups).step_by(parts).collect();
            let source = ColumnarSource::open(layout.clone(), groups, mapping, door, options)?;
            Ok(Box::new(source) as Box<dyn Source>)
        })
        .collect()
}

/// Opens a Parquet file.
pub(super) fn open(
    path: &Path,
    mapping: &Mapping,
    door: &Arc<Door>,
    options: ReadOptions,
) -> Result<ColumnarSource, SourceError> {
    let layout = Arc::new(Layout::read(path, mapping, options)?);
    let groups = (0..layout.first_rows.len()).collect();
    ColumnarSource::open(layout, groups, mapping, door, options)
}

impl Layout {
    fn read(path: &Path, mapping: &Mapping, options: ReadOptions) -> Result<Layout, SourceError> {
        let failed = |source| SourceError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let damaged = |error: ParquetError| SourceError::Damaged {
            path: path.to_owned(),
            offset: length,
            length,
            detail: format!("the footer cannot be read: {error}"),
        };
        // What the file says of its columns, not what some writer's in-memory form was.
        let plain = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata =
            guarded(|| ArrowReaderMetadata::load(&file, plain.clone())).map_err(damaged)?;
        let schema = metadata.schema().clone();
        let slots = bind(path, mapping, &schema, options)?;
        let names = name_columns(mapping.plan(), &slots);
        let fields: Vec<_> = schema
            .fields()
            .iter()
            .enumerate()
            .map(|(at, field)| {
                if names.contains(&at) && *field.data_type() == DataType::Utf8 {
                    let dictionary =
                        DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
                    Arc::new(Field::new(field.name(), dictionary, field.is_nullable()))
                } else {
                    field.clone()
                }
            })
            .collect();
        let schema = plain.with_schema(Arc::new(Schema::new(fields)));
        let metadata =
            guarded(|| ArrowReaderMetadata::try_new(metadata.metadata().clone(), schema))
                .map_err(damaged)?;
        let mut row = 0;
        let first_rows = metadata
            .metadata()
            .row_groups()
            .iter()
            .map(|group| {
                let first = row;
                row += group.num_rows().max(0) as u64;
                first
            })
            .collect();
        Ok(Layout { path: path.to_owned(), length, metadata, slots, first_rows })
    }
}

/// Finds the mapping's columns in the file.
fn bind(
    path: &Path,
    mapping: &Mapping,
    schema: &Schema,
    options: ReadOptions,
) -> Result<Vec<Option<usize>>, SourceError> {
    let plan = mapping.plan();
    let unwanted = unwanted(plan, options);
    let mut slots = Vec::new();
    for (index, slot) in plan.slots.iter().enumerate() {
        let Ok(at) = schema.index_of(&slot.column) else {
            if slot.optional {
                slots.push(None);
                continue;
            }
            let have = schema.fields().iter().map(|field| field.name().clone()).collect();
            return Err(no_column(path, &mapping.name, &slot.key, &slot.column, have));
        };
        let found = schema.field(at).data_type();
        if !readable(found) {
            let fault = ColumnFault::Type(found.to_string());
            return Err(column_error(path, &mapping.name, &slot.key, &slot.column, fault));
        }
        slots.push((!unwanted.contains(&index)).then_some(at));
    }
    Ok(slots)
}

/// Slots that only projected-out fields read.
fn unwanted(plan: &Plan, options: ReadOptions) -> Vec<usize> {
    let Some(events) = plan.events.as_ref().filter(|_| plan.reports.is_none()) else {
        return Vec::new();
    };
    let users = events.user.iter().filter(|_| !options.projection.users);
    let ids = events.id.iter().filter(|_| !options.projection.ids);
    let dropped = users.chain(ids).flat_map(TextPlan::slots);
    dropped.filter(|slot| !plan.is_read_elsewhere(*slot)).collect()
}

/// Columns that hold names: few values, many rows.
fn name_columns(plan: &Plan, slots: &[Option<usize>]) -> Vec<usize> {
    let kind = plan.events.iter().filter_map(|events| match &events.kind {
        KindPlan::Column { slot, .. } => Some(*slot),
        KindPlan::Constant(_) => None,
    });
    let path = plan.path.iter().flat_map(TextPlan::slots);
    path.chain(kind).filter_map(|slot| slots[slot]).collect()
}

fn readable(data_type: &DataType) -> bool {
    data_type.is_integer()
        || data_type.is_floating()
        || matches!(
            data_type,
            DataType::Utf8
                | DataType::Binary
                | DataType::FixedSizeBinary(_)
                | DataType::Boolean
                | DataType::Timestamp(..)
                | DataType::Date32
                | DataType::Decimal128(..)
        )
}

/// One part of a Parquet file as a source.
pub(super) struct ColumnarSource {
    layout: Arc<Layout>,
    file: File,
    groups: VecDeque<usize>,
    reader: Option<(usize, ParquetRecordBatchReader)>,
    /// Number of the last row read.
    row: u64,
    decoder: RowDecoder,
    fast: Option<Fast>,
    batch_rows: usize,
    bytes_done: u64,
    bytes_total: u64,
    /// Batches that the fast path left to the row decoder.
    #[cfg(test)]
    pub(super) slow_batches: u64,
}

impl ColumnarSource {
    fn open(
        layout: Arc<Layout>,
        groups: VecDeque<usize>,
        mapping: &Mapping,
        door: &Arc<Door>,
        options: ReadOptions,
    ) -> Result<ColumnarSource, SourceError> {
        // A handle of its own: handles that share one position cannot be read by two threads.
        let path = &layout.path;
        let file =
            File::open(path).map_err(|source| SourceError::Open { path: path.clone(), source })?;
        let name: Arc<str> = path.to_string_lossy().into();
        let bytes_total = groups.iter().map(|group| group_bytes(&layout, *group)).sum();
        Ok(ColumnarSource {
            fast: Fast::new(mapping, door.clone(), &layout.slots),
            decoder: RowDecoder::new(mapping, door.clone(), name, options.projection),
            file,
            groups,
            reader: None,
            row: 0,
            batch_rows: options.batch_rows.max(1),
            bytes_done: 0,
            bytes_total,
            #[cfg(test)]
            slow_batches: 0,
            layout,
        })
    }

    fn next_record_batch(&mut self) -> Result<Option<RecordBatch>, SourceError> {
        loop {
            if let Some((group, reader)) = &mut self.reader {
                let group = *group;
                match guarded(|| Ok(reader.next().transpose()?)) {
                    Ok(Some(batch)) => return Ok(Some(batch)),
                    Err(error) => return Err(self.damaged(group, &error)),
                    Ok(None) => self.bytes_done += group_bytes(&self.layout, group),
                }
                self.reader = None;
            }
            let Some(group) = self.groups.pop_front() else { return Ok(None) };
            self.row = self.layout.first_rows[group];
            let columns = self.layout.slots.iter().flatten().copied();
            let schema = self.layout.metadata.parquet_schema();
            let mask = ProjectionMask::roots(schema, columns);
            let reader = guarded(|| {
                let (file, metadata) = (self.file.try_clone()?, self.layout.metadata.clone());
                ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata)
                    .with_row_groups(vec![group])
                    .with_projection(mask)
                    .with_batch_size(self.batch_rows)
                    .build()
            });
            self.reader = Some((group, reader.map_err(|error| self.damaged(group, &error))?));
        }
    }

    fn damaged(&mut self, group: usize, error: &dyn std::fmt::Display) -> SourceError {
        self.groups.clear();
        self.reader = None;
        let start = self.layout.metadata.metadata().row_group(group).column(0).byte_range().0;
        SourceError::Damaged {
            path: self.layout.path.clone(),
            offset: start,
            length: self.layout.length,
            detail: format!("row group {group}, after row {}: {error}", self.row),
        }
    }
}

/// The library panics on some damage; to us that is an error of the file like any other.
fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        Err(ParquetError::General(format!("the reader gave up: {text}")))
    })
}

fn group_bytes(layout: &Layout, group: usize) -> u64 {
    layout.metadata.metadata().row_group(group).compressed_size().max(0) as u64
}

impl Source for ColumnarSource {
    fn next_batch(&mut self) -> Result<Option<Batch>, SourceError> {
        let Some(records) = self.next_record_batch()? else { return Ok(None) };
        let mut batch = Batch::new();
        let columns = columns_of_slots(&self.layout, &records);
        let fast = self.fast.as_mut().is_some_and(|fast| fast.decode(&columns, &mut batch));
        if !fast {
            #[cfg(test)]
            {
                self.slow_batches += 1;
            }
            batch = Batch::new();
            by_row(&mut self.decoder, &columns, records.num_rows(), self.row, &mut batch);
        }
        self.row += records.num_rows() as u64;
        Ok(Some(batch))
    }

    fn progress(&self) -> (u64, u64) {
        let within = self.reader.as_ref().map_or(0, |(group, _)| {
            let rows = self.layout.metadata.metadata().row_group(*group).num_rows().max(1) as u64;
            let read = self.row.saturating_sub(self.layout.first_rows[*group]);
            group_bytes(&self.layout, *group) * read / rows
        });
        (self.bytes_done + within, self.bytes_total)
    }
}

/// The column of each slot in a batch, which holds the projected columns in the order of the file.
fn columns_of_slots(layout: &Layout, records: &RecordBatch) -> Vec<Option<ArrayRef>> {
    let mut read: Vec<usize> = layout.slots.iter().flatten().copied().collect();
    read.sort_unstable();
    read.dedup();
    layout
        .slots
        .iter()
        .map(|slot| {
            let at = read.binary_search(slot.as_ref()?).ok()?;
            records.columns().get(at).cloned()
        })
        .collect()
}

/// A column in one of the forms that cells are made of.
enum Column {
    Absent,
    Int(Int64Array),
    Float(ArrayRef),
    Time(Int64Array),
    Text(ArrayRef),
    Bytes(ArrayRef),
}

impl Column {
    fn of(array: Option<&ArrayRef>) -> Column {
        let Some(array) = array else { return Column::Absent };
        let as_text = || cast(array, &DataType::Utf8).map_or(Column::Absent, Column::Text);
        match array.data_type() {
            // Unsigned 64-bit numbers may not fit: as texts they keep their value.
            DataType::UInt64 => as_text(),
            found if found.is_integer() => match cast(array, &DataType::Int64) {
                Ok(array) => Column::Int(array.as_primitive::<Int64Type>().clone()),
                Err(_) => Column::Absent,
            },
            DataType::Float64 => Column::Float(array.clone()),
            DataType::Timestamp(..) => timestamps(array).map_or(Column::Absent, Column::Time),
            DataType::Utf8 => Column::Text(array.clone()),
            DataType::Binary | DataType::FixedSizeBinary(_) => {
                cast(array, &DataType::Binary).map_or(Column::Absent, Column::Bytes)
            }
            // Narrow floats print as short as they were written; so do decimals and dates.
            _ => as_text(),
        }
    }

    fn cell(&self, row: usize) -> Cell<'_> {
        match self {
            Column::Int(array) if array.is_valid(row) => Cell::Int(array.value(row)),
            Column::Time(array) if array.is_valid(row) => Cell::Time(array.value(row)),
            Column::Float(array) if array.is_valid(row) => {
                Cell::Float(array.as_primitive::<Float64Type>().value(row))
            }
            Column::Text(array) if array.is_valid(row) => {
                Cell::Text(Cow::Borrowed(array.as_string::<i32>().value(row)))
            }
            Column::Bytes(array) if array.is_valid(row) => {
                Cell::Raw(array.as_binary::<i32>().value(row))
            }
            _ => Cell::Null,
        }
    }
}

/// Times of a timestamp column in µs.
pub(super) fn timestamps(array: &ArrayRef) -> Option<Int64Array> {
    let DataType::Timestamp(unit, _) = array.data_type() else { return None };
    let micros = |number| to_micros(number, *unit);
    Some(match unit {
        TimeUnit::Second => array.as_primitive::<TimestampSecondType>().unary(micros),
        TimeUnit::Millisecond => array.as_primitive::<TimestampMillisecondType>().unary(micros),
        TimeUnit::Microsecond => array.as_primitive::<TimestampMicrosecondType>().unary(micros),
        TimeUnit::Nanosecond => array.as_primitive::<TimestampNanosecondType>().unary(micros),
    })
}

fn to_micros(number: i64, unit: TimeUnit) -> EventTime {
    match unit {
        TimeUnit::Second => number.saturating_mul(1_000_000),
        TimeUnit::Millisecond => number.saturating_mul(1_000),
        TimeUnit::Microsecond => number,
        TimeUnit::Nanosecond => number.div_euclid(1_000),
    }
}

/// Decodes a batch row by row.
fn by_row(
    decoder: &mut RowDecoder,
    columns: &[Option<ArrayRef>],
    rows: usize,
    before: u64,
    batch: &mut Batch,
) {
    let columns: Vec<Column> = columns.iter().map(|array| Column::of(array.as_ref())).collect();
    let plan = decoder.plan.clone();
    let mut cells = Vec::with_capacity(columns.len());
    for row in 0..rows {
        cells.clear();
        cells.extend(columns.iter().map(|column| column.cell(row)));
        decoder.push(&cells, batch, before + row as u64 + 1, || as_json(&plan, &cells));
    }
}

/// The row's mapped columns as a JSON object.
fn as_json(plan: &Plan, cells: &[Cell<'_>]) -> Vec<u8> {
    let object: serde_json::Map<String, serde_json::Value> = plan
        .slots
        .iter()
        .zip(cells)
        .map(|(slot, cell)| {
            let value = match cell {
                Cell::Null | Cell::Nested => serde_json::Value::Null,
                Cell::Int(number) | Cell::Time(number) => (*number).into(),
                // JSON has no NaN: it stands as a text.
                Cell::Float(number) if number.is_finite() => (*number).into(),
                Cell::Float(number) => number.to_string().into(),
                Cell::Text(text) => text.as_ref().into(),
                Cell::Raw(bytes) => String::from_utf8_lossy(bytes).into(),
            };
            (slot.column.clone(), value)
        })
        .collect();
    serde_json::to_vec(&object).unwrap_or_default()
}
