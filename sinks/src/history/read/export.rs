//! A consistent copy of a history, or of a piece of it, for other tools.
//!
//! What is copied is what the manifest listed when the reader was opened, so an engine may go on
//! writing. Every part's hash is checked on the way. A file appears under its name when it is
//! complete; an export that fails leaves the files that were.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::csv::WriterBuilder as CsvBuilder;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::json::WriterBuilder as JsonBuilder;
use arrow::json::writer::LineDelimited;
use jiff::civil::Date;

use super::super::manifest::{MANIFEST_FILE, Part};
use super::super::meta::{CONFIG_FILE, RUN_FILE};
use super::super::part::replace_file;
use super::super::{HistoryError, Table};
use super::file::{PartFile, READ_ROWS, changed, open_part};
use super::{HistoryReader, Progress};
use crate::disk::{Disk, FileSystem};

/// The form of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportFormat {
    /// The parts as they are, in the same folders.
    #[default]
    Parquet,
    /// `TABLE.csv` with a header; lists as text, bytes in hex.
    Csv,
    /// `TABLE.ndjson`, nulls written out, bytes in hex.
    Ndjson,
}

/// Which rows are exported, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportOptions {
    /// One table only.
    pub table: Option<Table>,
    /// One tenant only; what belongs to no tenant is left out then.
    pub tenant: Option<String>,
    /// First date of the partitions.
    pub from: Option<Date>,
    /// Last date of the partitions.
    pub until: Option<Date>,
    /// The form.
    pub format: ExportFormat,
}

/// What was exported.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Exported {
    /// Rows of each table.
    pub rows: BTreeMap<Table, u64>,
    /// Files with rows.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// Whether the copy is a history itself, which can be verified and replayed: all tables, tenants
    /// and dates as Parquet.
    pub is_history: bool,
}

impl ExportOptions {
    fn wants(&self, part: &Part) -> bool {
        let date: Option<Date> = part.date.parse().ok();
        let within = |date: Date| {
            self.from.is_none_or(|from| from <= date)
                && self.until.is_none_or(|until| date <= until)
        };
        self.table.is_none_or(|table| table == part.table)
            && self.tenant.as_ref().is_none_or(|tenant| part.tenant.as_ref() == Some(tenant))
            && (date.is_some_and(within) || (self.from.is_none() && self.until.is_none()))
    }

    fn everything(&self) -> bool {
        *self == ExportOptions { format: ExportFormat::Parquet, ..ExportOptions::default() }
    }
}

impl HistoryReader {
    /// Copies what `options` select to `to`, a new or empty folder; `progress` is told as it goes.
    pub fn export(
        &self,
        to: &Path,
        options: &ExportOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Exported, HistoryError> {
        fs::create_dir_all(to).map_err(HistoryError::io("create", to))?;
        let mut entries = fs::read_dir(to).map_err(HistoryError::io("read", to))?;
        if entries.next().is_some() {
            return Err(HistoryError::NotEmpty { path: to.to_owned() });
        }
        let mut parts: Vec<&Part> =
            self.manifest.parts.iter().filter(|part| options.wants(part)).collect();
        // By date, then tenant; a partition's parts stay in their order.
        parts.sort_by_key(|part| (part.table, &part.date, &part.tenant));
        let mut done = Exported { is_history: options.everything(), ..Exported::default() };
        for part in &parts {
            *done.rows.entry(part.table).or_default() += part.rows;
        }
        let bytes_total = parts.iter().map(|part| part.bytes).sum();
        let mut at = Progress { bytes_total, ..Progress::default() };
        let mut read = |part: &Part| {
            at.bytes += part.bytes;
            progress(at);
        };
        match options.format {
            ExportFormat::Parquet => {
                for part in parts {
                    self.copy(part, to, &mut done)?;
                    read(part);
                }
                // The manifest last: it says that everything is there.
                for file in [RUN_FILE, CONFIG_FILE] {
                    if done.is_history {
                        let path = self.root.join(file);
                        let bytes = fs::read(&path).map_err(HistoryError::io("read", &path))?;
                        replace_file(&FileSystem, &to.join(file), &bytes, true)?;
                    }
                }
                if done.is_history {
                    let path = to.join(MANIFEST_FILE);
                    let bytes =
                        self.manifest.to_bytes().map_err(|e| HistoryError::Description {
                            path: path.clone(),
                            what: format!("cannot be written: {e}"),
                        })?;
                    replace_file(&FileSystem, &path, &bytes, true)?;
                }
            }
            ExportFormat::Csv | ExportFormat::Ndjson => {
                for table in Table::ALL {
                    let of: Vec<&Part> =
                        parts.iter().copied().filter(|part| part.table == table).collect();
                    if !of.is_empty() {
                        self.write_text(table, &of, to, options.format, &mut done, &mut read)?;
                    }
                }
            }
        }
        Ok(done)
    }

    fn copy(&self, part: &Part, to: &Path, done: &mut Exported) -> Result<(), HistoryError> {
        let path = to.join(&part.file);
        let folder = path.parent().unwrap_or(to);
        fs::create_dir_all(folder).map_err(HistoryError::io("create", folder))?;
        // Only what was written is copied; the copy is checked against the same hash.
        if let Some(what) = changed(&self.root, part, &mut |_| {})? {
            return Err(super::damage::locate(&self.root, part, &self.meta, what).into());
        }
        let mut from = open_part(&self.root, part)?;
        File::create(&path)
            .and_then(|mut file| io::copy(&mut from, &mut file).and_then(|_| file.sync_all()))
            .map_err(HistoryError::io("write", &path))?;
        if let Some(what) = changed(to, part, &mut |_| {})? {
            return Err(HistoryError::Part { path, what: format!("the copy differs: {what}") });
        }
        done.files += 1;
        done.bytes += part.bytes;
        Ok(())
    }

    fn write_text(
        &self,
        table: Table,
        parts: &[&Part],
        to: &Path,
        format: ExportFormat,
        done: &mut Exported,
        read: &mut dyn FnMut(&Part),
    ) -> Result<(), HistoryError> {
        let ending = if format == ExportFormat::Csv { "csv" } else { "ndjson" };
        let path = to.join(format!("{table}.{ending}"));
        let temporary = to.join(format!("{table}.{ending}.tmp"));
        let failed = |error: ArrowError| match error {
            ArrowError::IoError(_, source) => HistoryError::io("write", &path)(source),
            other => HistoryError::Part { path: path.clone(), what: other.to_string() },
        };
        let file = File::create(&temporary).map_err(HistoryError::io("create", &temporary))?;
        let mut out = BufWriter::new(file);
        let mut header = true;
        for part in parts {
            let mut rows = PartFile::open_sized(&self.root, part, &self.meta, READ_ROWS)?;
            while let Some(batch) = rows.next()? {
                let batch = shown(&batch, format).map_err(failed)?;
                match format {
                    ExportFormat::Csv => {
                        let mut csv = CsvBuilder::new().with_header(header).build(&mut out);
                        csv.write(&batch).map_err(failed)?;
                    }
                    _ => {
                        let json = JsonBuilder::new().with_explicit_nulls(true);
                        let mut json = json.build::<_, LineDelimited>(&mut out);
                        json.write(&batch).and_then(|()| json.finish()).map_err(failed)?;
                    }
                }
                header = false;
            }
            read(part);
        }
        let written = out.into_inner().map_err(io::IntoInnerError::into_error);
        let bytes = written
            .and_then(|file| file.sync_all().and_then(|()| file.metadata()))
            .map_err(HistoryError::io("write", &path))?
            .len();
        fs::rename(&temporary, &path).map_err(HistoryError::io("write", &path))?;
        FileSystem.sync_folder(to).map_err(HistoryError::io("make durable", to))?;
        done.files += 1;
        done.bytes += bytes;
        Ok(())
    }
}

/// The columns as they can be written as text: lists as text where the form has none, and the zone of
/// times as an offset, because names of zones need a table that is not linked in.
fn shown(batch: &RecordBatch, format: ExportFormat) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let shown = match field.data_type() {
            DataType::List(_) if format == ExportFormat::Csv => DataType::Utf8,
            DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some("+00:00".into())),
            other => other.clone(),
        };
        columns.push(cast(column, &shown)?);
        fields.push(Field::new(field.name(), shown, field.is_nullable()));
    }
    RecordBatch::try_new(Schema::new(fields).into(), columns)
}
