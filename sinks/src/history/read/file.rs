//! One part as record batches in the columns of its table.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, DictionaryArray, RecordBatch, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{Int32Type, SchemaRef};
use arrow::error::ArrowError;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};

use super::super::manifest::Part;
use super::super::{Difference, HistoryError, HistoryMeta, schema_of};

/// Rows decoded at once.
pub(crate) const READ_ROWS: usize = 8 * 1024;

/// BLAKE3 of a file, in hex, and its length.
pub(crate) fn hash_file(
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(String, u64), HistoryError> {
    let mut file = File::open(path).map_err(HistoryError::io("open", path))?;
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
    path: &Path,
    part: &Part,
    progress: &mut dyn FnMut(u64),
) -> Result<Option<String>, HistoryError> {
    match hash_file(path, progress) {
        Ok((_, bytes)) if bytes != part.bytes => {
            Ok(Some(format!("the file has {bytes} bytes, {} were written", part.bytes)))
        }
        Ok((hash, _)) if hash != part.blake3 => {
            Ok(Some("the file was changed after it was written (its BLAKE3 hash differs)".into()))
        }
        Ok(_) => Ok(None),
        Err(HistoryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(Some("the file is missing".to_owned()))
        }
        Err(error) => Err(error),
    }
}

/// Decodes one part.
pub(crate) struct PartFile {
    path: PathBuf,
    schema: SchemaRef,
    reader: ParquetRecordBatchReader,
}

/// Opens the metadata of a part, with dictionaries kept where the file allows it.
pub(crate) fn metadata(
    file: &File,
    schema: &SchemaRef,
) -> parquet::errors::Result<ArrowReaderMetadata> {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    ArrowReaderMetadata::load(file, options.clone().with_schema(schema.clone()))
        .or_else(|_| ArrowReaderMetadata::load(file, options))
}

impl PartFile {
    /// Opens `part` under `root` after checking that its bytes are those that were written.
    pub(crate) fn open(
        root: &Path,
        part: &Part,
        meta: &Arc<HistoryMeta>,
    ) -> Result<PartFile, HistoryError> {
        let path = root.join(&part.file);
        if let Some(what) = changed(&path, part, &mut |_| {})? {
            return Err(super::damage::locate(root, part, meta, what).into());
        }
        PartFile::open_unchecked(&path, schema_of(part.table, meta))
    }

    /// Opens a file whose bytes were checked already.
    pub(crate) fn open_unchecked(path: &Path, schema: SchemaRef) -> Result<PartFile, HistoryError> {
        let bad = |e| HistoryError::parquet("read", path, e);
        let file = File::open(path).map_err(HistoryError::io("open", path))?;
        let metadata = metadata(&file, &schema).map_err(bad)?;
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata)
            .with_batch_size(READ_ROWS)
            .build()
            .map_err(bad)?;
        Ok(PartFile { path: path.to_owned(), schema, reader })
    }

    /// The next rows.
    pub(crate) fn next(&mut self) -> Result<Option<RecordBatch>, HistoryError> {
        let Some(batch) = self.reader.next() else { return Ok(None) };
        batch
            .and_then(|batch| align(&batch, &self.schema))
            .map(Some)
            .map_err(|e| HistoryError::Part { path: self.path.clone(), what: e.to_string() })
    }
}

/// The batch with the columns of `schema`, cast where another writer chose other types.
pub(crate) fn align(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    if batch.schema_ref() == schema {
        return Ok(batch.clone());
    }
    let columns = schema.fields().iter().map(|field| {
        let Some(column) = batch.column_by_name(field.name()) else {
            if field.is_nullable() {
                return Ok(new_null_array(field.data_type(), batch.num_rows()));
            }
            let what = format!("column `{}` is missing", field.name());
            return Err(ArrowError::SchemaError(what));
        };
        if column.data_type() == field.data_type() {
            return Ok(column.clone());
        }
        cast(column, field.data_type())
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
