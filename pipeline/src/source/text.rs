//! CSV, TSV and NDJSON files, plain or compressed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{SourceError, no_column};
use super::input::Window;
use super::rows::{Lines, Piece, Records, RowLimits};
use super::{ReadOptions, Source};
use crate::decode::{
    Batch, Cell, Columns, Door, Mapping, Reason, Reject, RowDecoder, parse_object,
};

/// How rows are split and turned into cells.
enum Form {
    Csv {
        records: Box<Records>,
        /// Number of columns of the header.
        width: usize,
        /// The column of each slot.
        slots: Vec<Option<usize>>,
    },
    Json {
        lines: Lines,
        columns: Columns,
    },
}

/// A text file as a source.
pub(super) struct TextSource {
    path: PathBuf,
    form: Form,
    decoder: RowDecoder,
    row: u64,
    batch_rows: usize,
    failure: Option<SourceError>,
    finished: bool,
}

/// Opens the text behind `window`.
pub(super) fn open(
    path: &Path,
    mut window: Window,
    mapping: &Mapping,
    door: &Arc<Door>,
    options: ReadOptions,
) -> Result<TextSource, SourceError> {
    let limits =
        RowLimits { bytes_max: door.limits.line_bytes_max, kept_max: door.limits.dead_bytes_max };
    let first = window.peek();
    if first.is_none()
        && let Some(error) = window.take_failure()
    {
        return Err(damaged(path, window.progress(), &error));
    }
    let form = match first {
        Some(b'{') => {
            Form::Json { lines: Lines::new(window, limits), columns: Columns::new(mapping.plan()) }
        }
        Some(b'[') => {
            return Err(SourceError::Format {
                path: path.to_owned(),
                message:
                    "is a JSON array, which cannot be streamed; write one object for each line"
                        .to_owned(),
            });
        }
        _ => {
            let records = Records::new(window, limits, mapping.separator, mapping.quote);
            csv(path, Box::new(records), mapping)?
        }
    };
    let name: Arc<str> = path.to_string_lossy().into();
    Ok(TextSource {
        path: path.to_owned(),
        form,
        decoder: RowDecoder::new(mapping, door.clone(), name, options.projection),
        row: 0,
        batch_rows: options.batch_rows.max(1),
        failure: None,
        finished: false,
    })
}

/// Reads the header and finds the mapping's columns in it.
fn csv(path: &Path, mut records: Box<Records>, mapping: &Mapping) -> Result<Form, SourceError> {
    let header: Vec<String> = match records.next() {
        Ok(Piece::Row) => (0..records.len())
            .map(|index| String::from_utf8_lossy(records.field(index)).trim().to_owned())
            .collect(),
        // An empty file has no rows, and that is no error.
        Ok(Piece::End) => return Ok(Form::Csv { records, width: 0, slots: Vec::new() }),
        Ok(Piece::Refused(reject, _)) => {
            return Err(SourceError::Format {
                path: path.to_owned(),
                message: format!("the header cannot be read: {}", reject.detail),
            });
        }
        Err(error) => return Err(damaged(path, records.progress(), &error)),
    };
    let mut slots = Vec::new();
    for slot in &mapping.plan().slots {
        let at = header.iter().position(|name| *name == slot.column);
        if at.is_none() && !slot.optional {
            return Err(no_column(path, &mapping.name, &slot.key, &slot.column, header));
        }
        slots.push(at);
    }
    Ok(Form::Csv { records, width: header.len(), slots })
}

fn damaged(path: &Path, (offset, length): (u64, u64), error: &std::io::Error) -> SourceError {
    SourceError::Damaged { path: path.to_owned(), offset, length, detail: error.to_string() }
}

/// The same vector, empty, for cells that borrow from something else: the allocation is kept.
fn recycle<'b>(mut cells: Vec<Cell<'_>>) -> Vec<Cell<'b>> {
    cells.clear();
    cells.into_iter().map(|_| Cell::Null).collect()
}

impl TextSource {
    fn fill(&mut self, batch: &mut Batch) -> std::io::Result<()> {
        let TextSource { form, decoder, row, .. } = self;
        let mut spare: Vec<Cell<'static>> = Vec::new();
        while batch.rows < self.batch_rows as u64 {
            let piece = match form {
                Form::Csv { records, .. } => records.next()?,
                Form::Json { lines, .. } => lines.next()?,
            };
            if matches!(piece, Piece::End) {
                self.finished = true;
                return Ok(());
            }
            *row += 1;
            let form = &*form;
            let raw = match form {
                Form::Csv { records, .. } => records.raw(),
                Form::Json { lines, .. } => lines.raw(),
            };
            if let Piece::Refused(reject, length) = piece {
                decoder.refuse(batch, *row, reject, raw, length);
                continue;
            }
            let mut cells = recycle(spare);
            let parsed = match form {
                Form::Csv { records, width, .. } if records.len() != *width => {
                    let detail = format!("{} columns; the header has {width}", records.len());
                    Err(Reject::new(Reason::WrongColumns, detail))
                }
                Form::Csv { records, slots, .. } => {
                    cells.extend(slots.iter().map(|slot| match slot {
                        Some(at) => Cell::Raw(records.field(*at)),
                        None => Cell::Null,
                    }));
                    Ok(())
                }
                Form::Json { columns, .. } => parse_object(raw, columns, &mut cells),
            };
            match parsed {
                Ok(()) => decoder.push(&cells, batch, *row, || raw.to_vec()),
                Err(reject) => decoder.refuse(batch, *row, reject, raw, raw.len() as u64),
            }
            spare = recycle(cells);
        }
        Ok(())
    }
}

impl Source for TextSource {
    fn next_batch(&mut self) -> Result<Option<Batch>, SourceError> {
        if let Some(error) = self.failure.take() {
            self.finished = true;
            return Err(error);
        }
        if self.finished {
            return Ok(None);
        }
        let mut batch = Batch::new();
        if let Err(error) = self.fill(&mut batch) {
            self.failure = Some(damaged(&self.path, self.progress(), &error));
            if batch.rows == 0 {
                return self.next_batch();
            }
        }
        Ok((batch.rows > 0).then_some(batch))
    }

    fn progress(&self) -> (u64, u64) {
        match &self.form {
            Form::Csv { records, .. } => records.progress(),
            Form::Json { lines, .. } => lines.progress(),
        }
    }
}
