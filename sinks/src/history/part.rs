//! Writes one part: a temporary file, hashed on the way, fsynced, to be renamed by the commit.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::writer::WriterOptions;
use super::{HistoryError, SCHEMA_VERSION, Table};
use crate::disk::{Disk, Output};

/// Rows handed to the encoder at once.
pub(crate) const BATCH_ROWS: usize = 16 * 1024;
/// The same for dead letters: one may hold a mebibyte.
pub(crate) const LETTER_BATCH_ROWS: usize = 64;
/// Encoded bytes after which a row group ends early: what is being encoded is in memory.
const ROW_GROUP_BYTES_MAX: usize = 128 << 20;

/// Rows handed to the encoder at once for a table; pages end between such batches, so all writers
/// of a table use the same.
pub(crate) const fn batch_rows(table: Table) -> usize {
    match table {
        Table::DeadLetters => LETTER_BATCH_ROWS,
        _ => BATCH_ROWS,
    }
}

/// Counts and hashes everything that passes. The first error is kept aside, because the Parquet
/// library turns it into text and a caller must be able to tell a full disk.
struct Hashing {
    output: Box<dyn Output>,
    hasher: blake3::Hasher,
    bytes: u64,
    failure: Failure,
}

type Failure = Arc<Mutex<Option<io::Error>>>;

impl Write for Hashing {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.output.write_all(data) {
            let again = io::Error::from(error.kind());
            if let Ok(mut failure) = self.failure.lock() {
                failure.get_or_insert(error);
            }
            return Err(again);
        }
        self.hasher.update(data);
        self.bytes += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Size and hash of a finished file.
pub(crate) struct Written {
    pub(crate) bytes: u64,
    pub(crate) blake3: String,
}

/// The error of the disk if there was one, else that of the encoder.
fn failed(path: &Path, failure: &Failure, error: ParquetError) -> HistoryError {
    match failure.lock().ok().and_then(|mut failure| failure.take()) {
        Some(source) => HistoryError::io("write", path)(source),
        None => HistoryError::parquet("write", path, error),
    }
}

/// The encoder of one part.
pub(crate) struct PartWriter<'a> {
    path: &'a Path,
    failure: Failure,
    inner: ArrowWriter<Hashing>,
    durable: bool,
}

impl<'a> PartWriter<'a> {
    /// Starts the file at `path`, whose folder exists.
    pub(crate) fn create(
        disk: &dyn Disk,
        path: &'a Path,
        table: Table,
        schema: SchemaRef,
        options: &WriterOptions,
    ) -> Result<PartWriter<'a>, HistoryError> {
        let output = disk.create(path).map_err(HistoryError::io("create", path))?;
        let failure = Failure::default();
        let hasher = blake3::Hasher::new();
        let output = Hashing { output, hasher, bytes: 0, failure: failure.clone() };
        let settings = ArrowWriterOptions::new()
            .with_properties(properties(table, options))
            .with_skip_arrow_metadata(true);
        let inner = ArrowWriter::try_new_with_options(output, schema, settings)
            .map_err(|e| failed(path, &failure, e))?;
        Ok(PartWriter { path, failure, inner, durable: options.durable })
    }

    /// Adds rows.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), HistoryError> {
        self.inner.write(batch).map_err(|e| failed(self.path, &self.failure, e))
    }

    /// Writes the footer and makes the file durable.
    pub(crate) fn finish(self) -> Result<Written, HistoryError> {
        let PartWriter { path, failure, inner, durable } = self;
        let mut output = inner.into_inner().map_err(|e| failed(path, &failure, e))?;
        output
            .flush()
            .and_then(|()| if durable { output.output.sync() } else { Ok(()) })
            .map_err(HistoryError::io("write", path))?;
        Ok(Written { bytes: output.bytes, blake3: output.hasher.finalize().to_hex().to_string() })
    }
}

/// Columns whose values hardly repeat: a dictionary would be built only to be thrown away.
const UNIQUE: [&str; 11] =
    ["check", "user", "event_id", "bytes", "detail", "ctr", "cpc", "cpm", "cvr", "cpa", "roas"];
/// Integers that rise slowly, or whose values hardly repeat: packed as differences.
const PACKED: [&str; 10] = [
    "tick",
    "seq",
    "event_time",
    "window_end",
    "window_start",
    "row_tick",
    "expires",
    "row",
    "cost_micros",
    "revenue_micros",
];

fn properties(table: Table, options: &WriterOptions) -> WriterProperties {
    let level = ZstdLevel::try_new(options.zstd_level).unwrap_or_default();
    let metadata = [
        ("omnify.table", table.name().to_owned()),
        ("omnify.schema_version", SCHEMA_VERSION.to_string()),
    ];
    let mut builder = WriterProperties::builder()
        .set_created_by("omnify".to_owned())
        .set_compression(Compression::ZSTD(level))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(options.row_group_rows.max(1)))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES_MAX))
        .set_data_page_row_count_limit(BATCH_ROWS)
        .set_write_batch_size(4 * 1024)
        .set_key_value_metadata(Some(
            metadata.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value)).collect(),
        ));
    for name in UNIQUE {
        builder = builder.set_column_dictionary_enabled(ColumnPath::from(name), false);
    }
    let counts: &[&str] = match table {
        // Sums over windows spread widely; the ones and zeros of events do not.
        Table::Features => &["impressions", "clicks", "conversions"],
        _ => &[],
    };
    for name in PACKED.iter().chain(counts).copied() {
        builder = builder
            .set_column_dictionary_enabled(ColumnPath::from(name), false)
            .set_column_encoding(ColumnPath::from(name), Encoding::DELTA_BINARY_PACKED);
    }
    // Rows are in the order of time, so every page holds nearly all names: bounds would prune
    // nothing, and keeping them costs two comparisons of strings for each name.
    for name in super::entities::PATH {
        builder =
            builder.set_column_statistics_enabled(ColumnPath::from(name), EnabledStatistics::None);
    }
    // A hash neither compresses nor prunes.
    let check = ColumnPath::from("check");
    builder
        .set_column_compression(check.clone(), Compression::UNCOMPRESSED)
        .set_column_statistics_enabled(check, EnabledStatistics::None)
        .build()
}

/// Replaces `path` as a whole: a reader sees the old or the new content, never a mixture.
pub(crate) fn replace_file(
    disk: &dyn Disk,
    path: &Path,
    bytes: &[u8],
    durable: bool,
) -> Result<(), HistoryError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let written = disk
        .create(&temporary)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            if durable { file.sync() } else { Ok(()) }
        })
        .and_then(|()| disk.rename(&temporary, path));
    if written.is_err() {
        // Best effort: the next opening cleans up what this leaves.
        let _ = disk.remove(&temporary);
    }
    written.map_err(HistoryError::io("write", path))?;
    match path.parent() {
        Some(folder) if durable => {
            disk.sync_folder(folder).map_err(HistoryError::io("make durable", folder))
        }
        _ => Ok(()),
    }
}

/// Numbers in the order in which their keys were first asked for.
#[derive(Default)]
pub(crate) struct Interner {
    ids: HashMap<Arc<str>, u32>,
    names: Vec<Arc<str>>,
}

impl Interner {
    pub(crate) fn intern(&mut self, name: &str) -> u32 {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = self.names.len() as u32;
        let name: Arc<str> = name.into();
        self.ids.insert(name.clone(), id);
        self.names.push(name);
        id
    }

    pub(crate) fn names(&self) -> &[Arc<str>] {
        &self.names
    }
}
