//! One part as record batches in the columns of its table.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, DictionaryArray, RecordBatch, StringArray, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{FieldRef, Int32Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};

use omnify_operators::model::Tick;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::statistics::Statistics;

use super::super::manifest::{Manifest, Part};
use super::super::part::batch_rows;
use super::super::table::replaced_path;
use super::super::{Difference, HistoryError, HistoryMeta, Table, schema_of};

/// Rows decoded at once.
pub(crate) const READ_ROWS: usize = 8 * 1024;

/// BLAKE3 of a file, in hex, and its length.
pub(crate) fn hash_file(
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(String, u64), HistoryError> {
    let file = File::open(path).map_err(HistoryError::io("open", path))?;
    hash(file, path, progress)
}

/// Opens a part, also one that was replaced since the manifest was loaded and is still kept.
pub(crate) fn open_part(root: &Path, part: &Part) -> Result<File, HistoryError> {
    let path = root.join(&part.file);
    File::open(&path)
        .or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => File::open(replaced_path(&path)).map_err(|_| error),
            _ => Err(error),
        })
        .map_err(HistoryError::io("open", &path))
}

fn hash(
    mut file: File,
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(String, u64), HistoryError> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&buffer[..count]);
                bytes += count as u64;
                progress(count as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(HistoryError::io("read", path)(e)),
        }
    }
    Ok((hasher.finalize().to_hex().to_string(), bytes))
}

/// What is wrong with the bytes of a part, if anything.
pub(crate) fn changed(
    root: &Path,
    part: &Part,
    progress: &mut dyn FnMut(u64),
) -> Result<Option<String>, HistoryError> {
    let path = root.join(&part.file);
    match open_part(root, part).and_then(|file| hash(file, &path, progress)) {
        Ok((_, bytes)) if bytes != part.bytes => {
            Ok(Some(format!("the file has {bytes} bytes, {} were written", part.bytes)))
        }
        Ok((hash, _)) if hash != part.blake3 => {
            Ok(Some("the file was changed after it was written (its BLAKE3 hash differs)".into()))
        }
        Ok(_) => Ok(None),
        Err(error) => match missing(root, part, error) {
            Some(error) => Err(error),
            None => Ok(Some("the file is missing".to_owned())),
        },
    }
}

/// Why a part cannot be opened; `None` when it is missing although it is listed still.
fn missing(root: &Path, part: &Part, error: HistoryError) -> Option<HistoryError> {
    match error {
        HistoryError::Io { ref source, .. } if source.kind() == io::ErrorKind::NotFound => {
            let now = Manifest::load(root).ok().flatten()?;
            let listed = now.parts.iter().any(|listed| listed.file == part.file);
            (!listed).then(|| HistoryError::Replaced { path: root.join(&part.file) })
        }
        other => Some(other),
    }
}

/// Decodes one part.
pub(crate) struct PartFile {
    path: PathBuf,
    table: Table,
    schema: SchemaRef,
    metadata: Arc<ParquetMetaData>,
    reader: ParquetRecordBatchReader,
}

/// Opens the metadata of a part, with dictionaries kept where the file allows it.
pub(crate) fn metadata(
    file: &File,
    schema: &SchemaRef,
) -> parquet::errors::Result<ArrowReaderMetadata> {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let plain = ArrowReaderMetadata::load(file, options.clone())?;
    // The file may lack columns that were added later, or have some of a later program.
    let fields: Option<Vec<FieldRef>> = (plain.schema().fields().iter())
        .map(|field| schema.fields().find(field.name()).map(|(_, field)| field.clone()))
        .collect();
    let Some(fields) = fields else { return Ok(plain) };
    let hinted = options.with_schema(Arc::new(Schema::new(fields)));
    Ok(ArrowReaderMetadata::try_new(plain.metadata().clone(), hinted).unwrap_or(plain))
}

impl PartFile {
    /// Opens `part` under `root` after checking that its bytes are those that were written.
    pub(crate) fn open(
        root: &Path,
        part: &Part,
        meta: &Arc<HistoryMeta>,
    ) -> Result<PartFile, HistoryError> {
        PartFile::open_sized(root, part, meta, READ_ROWS)
    }

    /// The same with at most so many rows in a batch.
    pub(crate) fn open_sized(
        root: &Path,
        part: &Part,
        meta: &Arc<HistoryMeta>,
        rows: usize,
    ) -> Result<PartFile, HistoryError> {
        if let Some(what) = changed(root, part, &mut |_| {})? {
            return Err(super::damage::locate(root, part, meta, what).into());
        }
        PartFile::open_unchecked(root, part, meta, rows)
    }

    /// Opens a file whose bytes were checked already.
    pub(crate) fn open_unchecked(
        root: &Path,
        part: &Part,
        meta: &Arc<HistoryMeta>,
        rows: usize,
    ) -> Result<PartFile, HistoryError> {
        let path = root.join(&part.file);
        let bad = |e| HistoryError::parquet("read", &path, e);
        let file = open_part(root, part).map_err(|error| {
            missing(root, part, error).unwrap_or_else(|| HistoryError::Part {
                path: path.clone(),
                what: "the file is missing".to_owned(),
            })
        })?;
        let schema = schema_of(part.table, meta);
        let metadata = metadata(&file, &schema).map_err(bad)?;
        let found = metadata.metadata().clone();
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata)
            .with_batch_size(rows.min(batch_rows(part.table)))
            .build()
            .map_err(bad)?;
        Ok(PartFile { path, table: part.table, schema, metadata: found, reader })
    }

    /// Rows of the file, as its footer says.
    pub(crate) fn rows(&self) -> u64 {
        self.metadata.file_metadata().num_rows().max(0) as u64
    }

    /// The lowest and highest tick, as its statistics say; `None` when they do not say.
    pub(crate) fn ticks(&self) -> Option<(Tick, Tick)> {
        let columns = self.metadata.file_metadata().schema_descr().columns();
        let tick = columns.iter().position(|column| column.name() == "tick")?;
        let mut range: Option<(Tick, Tick)> = None;
        for group in self.metadata.row_groups() {
            let Some(Statistics::Int64(of)) = group.column(tick).statistics() else { return None };
            let (low, high) = (*of.min_opt()? as Tick, *of.max_opt()? as Tick);
            let (first, last) = range.unwrap_or((low, high));
            range = Some((first.min(low), last.max(high)));
        }
        range
    }

    /// The next rows.
    pub(crate) fn next(&mut self) -> Result<Option<RecordBatch>, HistoryError> {
        let Some(batch) = self.reader.next() else { return Ok(None) };
        batch
            .and_then(|batch| align(&batch, &self.schema, self.table))
            .map(Some)
            .map_err(|e| HistoryError::Part { path: self.path.clone(), what: e.to_string() })
    }
}

/// Columns that were added after files without them had been written, and what they read as in such
/// files: the value as text. A nullable column needs no entry: it reads as null.
pub(crate) type Added = (Table, &'static str, &'static str);

/// See [`Added`].
const ADDED: [Added; 0] = [];

/// The batch with the columns of `schema`, cast where another writer chose other types.
pub(crate) fn align(
    batch: &RecordBatch,
    schema: &SchemaRef,
    table: Table,
) -> Result<RecordBatch, ArrowError> {
    align_with(batch, schema, table, &ADDED)
}

/// The same with other defaults.
pub(crate) fn align_with(
    batch: &RecordBatch,
    schema: &SchemaRef,
    table: Table,
    added: &[Added],
) -> Result<RecordBatch, ArrowError> {
    if batch.schema_ref() == schema {
        return Ok(batch.clone());
    }
    let rows = batch.num_rows();
    let columns = schema.fields().iter().map(|field| {
        if let Some(column) = batch.column_by_name(field.name()) {
            return match column.data_type() == field.data_type() {
                true => Ok(column.clone()),
                false => cast(column, field.data_type()),
            };
        }
        let default = added.iter().find(|(of, name, _)| *of == table && name == field.name());
        match default {
            Some((_, _, value)) => {
                let texts = StringArray::from_iter_values(std::iter::repeat_n(value, rows));
                cast(&texts, field.data_type())
            }
            None if field.is_nullable() => Ok(new_null_array(field.data_type(), rows)),
            None => {
                let what = format!("column `{}` is missing", field.name());
                Err(ArrowError::SchemaError(what))
            }
        }
    });
    let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
    RecordBatch::try_new(schema.clone(), columns)
}

/// A dictionary column by name. Columns are those of the table, see [`align`].
pub(crate) fn dictionary<'a>(
    batch: &'a RecordBatch,
    name: &str,
) -> Result<&'a DictionaryArray<Int32Type>, String> {
    typed(batch, name)
}

/// A column by name and type.
pub(crate) fn typed<'a, A: Array + 'static>(
    batch: &'a RecordBatch,
    name: &str,
) -> Result<&'a A, String> {
    batch
        .column_by_name(name)
        .and_then(|column| column.as_any().downcast_ref::<A>())
        .ok_or_else(|| format!("column `{name}` is missing or has another type"))
}

/// Why a batch cannot be turned into rows.
pub(crate) enum DecodeError {
    /// A row is not what was written; the tick and entity of the row.
    Row(Difference),
    /// The batch is not of this table.
    Batch(String),
}

impl DecodeError {
    /// The same with the file in which it happened.
    pub(crate) fn in_file(self, file: &str) -> HistoryError {
        match self {
            DecodeError::Row(difference) => {
                Difference { file: file.to_owned(), ..difference }.into()
            }
            DecodeError::Batch(what) => HistoryError::Part { path: file.into(), what },
        }
    }
}

impl From<&str> for DecodeError {
    fn from(what: &str) -> Self {
        DecodeError::Batch(what.to_owned())
    }
}

impl From<String> for DecodeError {
    fn from(what: String) -> Self {
        DecodeError::Batch(what)
    }
}
