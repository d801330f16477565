//! Finds the first row of a changed part that cannot be trusted.
//!
//! A part whose bytes changed may still decode: then the row checks name the exact row. Where it
//! does not decode, the damaged column and page are found one by one, and the tick and entity of the
//! page's first row are read from the columns that are intact.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef};
use omnify_operators::model::{EntityKey, Registry, Tick};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelector,
};
use parquet::file::metadata::PageIndexPolicy;

use super::super::entities::PATH;
use super::super::manifest::Part;
use super::super::{Difference, HistoryMeta, Table, schema_of};
use super::decisions::DecisionRows;
use super::events::EventRows;
use super::file::{DecodeError, READ_ROWS, align};
use super::merge::{Decode, Decoded};

/// Says where `part`, whose bytes are known to be changed, differs first. `what` tells how the
/// change was noticed.
pub(crate) fn locate(
    root: &Path,
    part: &Part,
    meta: &Arc<HistoryMeta>,
    what: String,
) -> Difference {
    let whole = |more: &str| Difference {
        tick: Some(part.first_tick),
        entity: part.first_entity.as_ref().and_then(|key| key.parse().ok()),
        file: part.file.clone(),
        what: format!("{what}; {more}"),
    };
    let search =
        || Search::open(&root.join(&part.file), part.table, meta).map(|search| search.first(part));
    // The Parquet library may panic on damaged bytes; here damage is what is expected.
    match catch_unwind(AssertUnwindSafe(search)) {
        Ok(Ok(Some((tick, entity, more)))) => Difference {
            tick: tick.or(Some(part.first_tick)),
            entity,
            file: part.file.clone(),
            what: format!("{what}; {more}"),
        },
        Ok(Ok(None)) if matches!(part.table, Table::Events | Table::Decisions) => {
            whole("every row still has its check, so the change is outside of the rows")
        }
        Ok(Ok(None)) => whole("every row still decodes, and this table has no row checks"),
        Ok(Err(_)) | Err(_) => whole("its footer cannot be read, so no row can be trusted"),
    }
}

type Found = (Option<Tick>, Option<EntityKey>, String);

struct Search<'a> {
    file: File,
    metadata: ArrowReaderMetadata,
    schema: SchemaRef,
    meta: &'a Arc<HistoryMeta>,
}

impl<'a> Search<'a> {
    fn open(
        path: &Path,
        table: Table,
        meta: &'a Arc<HistoryMeta>,
    ) -> parquet::errors::Result<Search<'a>> {
        let file = File::open(path)?;
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        // The page index helps to be precise, but may be what is damaged.
        let indexed = options.clone().with_page_index_policy(PageIndexPolicy::Required);
        let metadata = ArrowReaderMetadata::load(&file, indexed)
            .or_else(|_| ArrowReaderMetadata::load(&file, options))?;
        Ok(Search { file, metadata, schema: schema_of(table, meta), meta })
    }

    fn first(&self, part: &Part) -> Option<Found> {
        let groups = self.metadata.metadata().num_row_groups();
        (0..groups).find_map(|group| self.in_group(group, part))
    }

    /// The first untrusted row of a row group.
    fn in_group(&self, group: usize, part: &Part) -> Option<Found> {
        let error = match self.check_rows(group, part.table) {
            Ok(()) => return None,
            Err(DecodeError::Row(found)) => {
                return Some((found.tick, found.entity, found.what));
            }
            Err(DecodeError::Batch(error)) => error,
        };
        let leaves = self.metadata.parquet_schema().num_columns();
        let mut damaged: Vec<(usize, usize)> = (0..leaves)
            .filter(|leaf| self.read(group, &[*leaf], None).is_err())
            .map(|leaf| (self.first_row(group, leaf), leaf))
            .collect();
        damaged.sort_unstable();
        let Some((row, leaf)) = damaged.first().copied() else {
            // Every column decodes by itself: the rows do not fit the table.
            let (tick, entity) = self.identify(group, 0, &[]);
            return Some((tick, entity, format!("row group {group} cannot be decoded: {error}")));
        };
        let bad: Vec<usize> = damaged.iter().map(|(_, leaf)| *leaf).collect();
        let (tick, entity) = self.identify(group, row, &bad);
        let name = self.metadata.parquet_schema().column(leaf).name().to_owned();
        let what = format!(
            "column `{name}` of row group {group} cannot be decoded from row {row} of the group on"
        );
        Some((tick, entity, what))
    }

    /// Decodes a row group and checks its rows.
    fn check_rows(&self, group: usize, table: Table) -> Result<(), DecodeError> {
        let all: Vec<usize> = (0..self.metadata.parquet_schema().num_columns()).collect();
        let batches = self.read(group, &all, None).map_err(DecodeError::Batch)?;
        for batch in batches {
            let batch = align(&batch, &self.schema, table)
                .map_err(|e| DecodeError::Batch(e.to_string()))?;
            match table {
                Table::Events => {
                    let mut rows = EventRows::new(Registry::utc().into());
                    rows.decode(&batch, &mut Decoded::default())?;
                }
                Table::Decisions => {
                    let mut rows = DecisionRows::new(self.meta.clone());
                    rows.decode(&batch, &mut Decoded::default())?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Decodes columns of a row group, all rows or `selection`; a panic of the library is an error.
    fn read(
        &self,
        group: usize,
        leaves: &[usize],
        selection: Option<RowSelection>,
    ) -> Result<Vec<RecordBatch>, String> {
        let file = self.file.try_clone().map_err(|e| e.to_string())?;
        let read = move || {
            let mask =
                ProjectionMask::leaves(self.metadata.parquet_schema(), leaves.iter().copied());
            let mut builder =
                ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
                    .with_row_groups(vec![group])
                    .with_projection(mask)
                    .with_batch_size(READ_ROWS);
            if let Some(selection) = selection {
                builder = builder.with_row_selection(selection);
            }
            let reader = builder.build().map_err(|e| e.to_string())?;
            reader.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())
        };
        catch_unwind(AssertUnwindSafe(read))
            .unwrap_or_else(|_| Err("the Parquet library gave up on it".to_owned()))
    }

    /// First row of the first page of a column that does not decode; 0 when pages are unknown.
    fn first_row(&self, group: usize, leaf: usize) -> usize {
        let metadata = self.metadata.metadata();
        let rows = metadata.row_group(group).num_rows().max(0) as usize;
        let starts: Vec<usize> = metadata
            .page_index_for_row_group(group)
            .offset_index(leaf)
            .map(|index| {
                index.page_locations().iter().map(|page| page.first_row_index as usize).collect()
            })
            .unwrap_or_default();
        let ends = starts.iter().skip(1).copied().chain([rows]);
        for (start, end) in starts.iter().copied().zip(ends) {
            if end <= start || end > rows {
                break;
            }
            let selection = vec![
                RowSelector::skip(start),
                RowSelector::select(end - start),
                RowSelector::skip(rows - end),
            ];
            if self.read(group, &[leaf], Some(selection.into())).is_err() {
                return start;
            }
        }
        0
    }

    /// Tick and entity of a row, from the columns that are not in `bad`.
    fn identify(
        &self,
        group: usize,
        row: usize,
        bad: &[usize],
    ) -> (Option<Tick>, Option<EntityKey>) {
        let text = |name: &str| -> Option<String> {
            let leaf = (0..self.metadata.parquet_schema().num_columns())
                .find(|leaf| self.metadata.parquet_schema().column(*leaf).name() == name)?;
            if bad.contains(&leaf) {
                return None;
            }
            let selection = vec![RowSelector::skip(row), RowSelector::select(1)];
            let batches = self.read(group, &[leaf], Some(selection.into())).ok()?;
            let column = batches.iter().find(|b| b.num_rows() > 0)?.column(0).clone();
            if let Some(numbers) = column.as_any().downcast_ref::<Int64Array>() {
                return numbers.is_valid(0).then(|| numbers.value(0).to_string());
            }
            let column = cast(&column, &DataType::Utf8).ok()?;
            let names = column.as_any().downcast_ref::<StringArray>()?;
            names.is_valid(0).then(|| names.value(0).to_owned())
        };
        let segments: Vec<String> = PATH.iter().map_while(|name| text(name)).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        (text("tick").and_then(|tick| tick.parse().ok()), EntityKey::new(&segments).ok())
    }
}
