//! Merges the sorted parts of `features`: by window, window end, and order of the entity.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::vec;

use arrow::array::{Array, AsArray, Int32Array, PrimitiveArray, RecordBatch, StringArray};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::TimestampMicrosecondType;
use omnify_operators::model::{EntityKey, EventTime};

use super::super::entities::PATH;
use super::super::part::BATCH_ROWS;
use super::super::read::{DecodeError, PartFile, dictionary, typed};
use super::super::{HistoryError, HistoryMeta};
use super::job::{MergeJob, Take, bad_batch};

/// Rows of each part that are in memory: all parts of a merge are open at once.
const READ_ROWS: usize = 2 * 1024;

/// The place of a row in a part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    window: usize,
    end: EventTime,
    order: u64,
    entity: EntityKey,
}

impl Place {
    /// The row's entity.
    pub(crate) fn entity(&self) -> EntityKey {
        self.entity.clone()
    }
}

/// Where the rows of a batch belong, whose columns are those of the table.
pub(crate) fn places(batch: &RecordBatch, meta: &HistoryMeta) -> Result<Vec<Place>, DecodeError> {
    type Text<'a> = (&'a Int32Array, &'a StringArray);
    let text = |name: &str| -> Result<Text<'_>, DecodeError> {
        let column = dictionary(batch, name)?;
        let names = column.values().as_string_opt::<i32>();
        Ok((column.keys(), names.ok_or_else(|| format!("column `{name}` holds no strings"))?))
    };
    let (window, names) = text("window")?;
    let configured: Vec<String> = meta.windows.iter().map(ToString::to_string).collect();
    let windows: Vec<Option<usize>> = (names.iter())
        .map(|name| configured.iter().position(|window| Some(window.as_str()) == name))
        .collect();
    let end: &PrimitiveArray<TimestampMicrosecondType> = typed(batch, "window_end")?;
    let path: Vec<Text<'_>> = PATH.iter().map(|name| text(name)).collect::<Result<_, _>>()?;
    let place = |row: usize| {
        let names: Vec<&str> = (path.iter())
            .map_while(|(keys, names)| {
                keys.is_valid(row).then(|| names.value(keys.value(row) as usize))
            })
            .collect();
        let entity = EntityKey::new(&names).map_err(|error| error.to_string())?;
        let window = windows.get(window.value(row) as usize).copied().flatten();
        let window = window.ok_or("column `window` names a window that is not configured")?;
        Ok(Place { window, end: end.value(row), order: entity.stable_hash(), entity })
    };
    (0..batch.num_rows()).map(place).collect()
}

/// One part being read.
struct Input {
    file: PartFile,
    name: String,
    /// Position of the current batch among those kept, and of the row in it.
    batch: usize,
    row: usize,
    /// Places of the rows of the batch that are still to come.
    places: vec::IntoIter<Place>,
}

/// Gives the rows of all parts of `job` to `take` in their order, in batches of a fixed size, until it
/// returns false.
pub(super) fn merge(job: &MergeJob, take: &mut Take<'_>) -> Result<bool, HistoryError> {
    let mut inputs = Vec::with_capacity(job.replaces.len());
    for part in &job.replaces {
        let file = PartFile::open_sized(&job.root, part, &job.meta, READ_ROWS)?;
        let places = Vec::new().into_iter();
        inputs.push(Input { file, name: part.file.clone(), batch: 0, row: 0, places });
    }
    // The batches in use, in the order in which they were read.
    let mut batches: Vec<RecordBatch> = Vec::new();
    let mut heads = BinaryHeap::new();
    for (at, input) in inputs.iter_mut().enumerate() {
        heads.extend(input.next(&mut batches, &job.meta)?.map(|place| Reverse((place, at))));
    }
    let mut rows: Vec<(usize, usize)> = Vec::with_capacity(BATCH_ROWS);
    while let Some(Reverse((_, at))) = heads.pop() {
        let input = &mut inputs[at];
        // Rows are counted from one: zero is before the first.
        rows.push((input.batch, input.row - 1));
        if rows.len() == BATCH_ROWS {
            if !take(gather(job, &batches, &rows)?)? {
                return Ok(false);
            }
            rows.clear();
        }
        heads.extend(input.next(&mut batches, &job.meta)?.map(|place| Reverse((place, at))));
        if rows.is_empty() {
            // Nothing waits: only the batches that inputs stand in are needed.
            let open: Vec<RecordBatch> =
                inputs.iter().map(|input| batches[input.batch].clone()).collect();
            inputs.iter_mut().enumerate().for_each(|(at, input)| input.batch = at);
            batches = open;
        }
    }
    if rows.is_empty() { Ok(true) } else { take(gather(job, &batches, &rows)?) }
}

fn gather(
    job: &MergeJob,
    batches: &[RecordBatch],
    rows: &[(usize, usize)],
) -> Result<RecordBatch, HistoryError> {
    let batches: Vec<&RecordBatch> = batches.iter().collect();
    interleave_record_batch(&batches, rows)
        .map_err(|error| bad_batch(job.root.join(&job.replaces[0].file), &error))
}

impl Input {
    /// Goes to the next row, reading on if need be; its place, `None` at the end.
    fn next(
        &mut self,
        batches: &mut Vec<RecordBatch>,
        meta: &HistoryMeta,
    ) -> Result<Option<Place>, HistoryError> {
        loop {
            if let Some(place) = self.places.next() {
                self.row += 1;
                return Ok(Some(place));
            }
            let Some(batch) = self.file.next()? else { return Ok(None) };
            let places = places(&batch, meta).map_err(|error| error.in_file(&self.name))?;
            (self.batch, self.row) = (batches.len(), 0);
            self.places = places.into_iter();
            batches.push(batch);
        }
    }
}
