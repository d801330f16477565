//! Bodies that somebody sends: NDJSON or one JSON array of objects.

use std::sync::Arc;

use omnify_operators::model::EventTime;
use serde_json::value::RawValue;

use super::batch::Batch;
use super::cell::Cell;
use super::door::Door;
use super::json::{Columns, parse_object};
use super::mapping::Mapping;
use super::reason::{Reason, Reject};
use super::row::{Projection, RowDecoder};

/// Decodes pushed bodies; keep one for each endpoint, it remembers what it has interned.
pub struct Push {
    decoder: RowDecoder,
    columns: Columns,
    rows: u64,
    reports: bool,
}

impl Push {
    /// A decoder of bodies in the engine's own form; dead letters will call the source `source`.
    pub fn native(door: Arc<Door>, source: &str) -> Push {
        Push::new(&Mapping::native(), door, source)
    }

    /// A decoder of bodies whose objects follow `mapping`.
    pub fn new(mapping: &Mapping, door: Arc<Door>, source: &str) -> Push {
        let columns = Columns::new(&mapping.plan);
        let decoder = RowDecoder::new(mapping, door, source.into(), Projection::ALL);
        Push { decoder, columns, rows: 0, reports: false }
    }

    /// Rows decoded so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// From now on, rows of other tenants than `tenant` are refused, if one is given.
    pub fn only_tenant(&mut self, tenant: Option<&str>) {
        self.decoder.only_tenant(tenant.map(Into::into));
    }

    /// Decodes one body. Times after `not_after` are refused. A body that is no JSON at all comes
    /// back as dead letters, one for each line. Row numbers count on from body to body.
    pub fn decode(&mut self, body: &[u8], not_after: Option<EventTime>) -> Batch {
        let mut batch = Batch::new();
        self.not_after(not_after);
        self.decode_into(body, &mut batch);
        batch
    }

    /// From now on, refuses times after `time`.
    pub(crate) fn not_after(&mut self, time: Option<EventTime>) {
        self.decoder.not_after(time);
    }

    /// Rows are numbered from 1 again.
    pub(crate) fn restart_rows(&mut self) {
        self.rows = 0;
    }

    /// Decodes one body into a batch that may hold others.
    pub(crate) fn decode_into(&mut self, body: &[u8], batch: &mut Batch) {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        if body.trim_ascii_start().first() == Some(&b'[') {
            self.array(body, batch);
        } else {
            body.split(|byte| *byte == b'\n').for_each(|line| self.row(line, batch));
        }
    }

    /// The columns that rows of cells have.
    pub(crate) fn columns(&self) -> &Columns {
        &self.columns
    }

    /// Takes a row that is cells already; `bytes` is what a dead letter keeps.
    pub(crate) fn cells(&mut self, cells: &mut [Cell<'_>], batch: &mut Batch, bytes: &[u8]) {
        self.rows += 1;
        self.default_type(cells);
        self.decoder.push(cells, batch, self.rows, || bytes.to_vec());
    }

    /// Takes a body that could not be read at all.
    pub(crate) fn refuse(&mut self, reject: Reject, batch: &mut Batch, bytes: &[u8]) {
        self.rows += 1;
        self.decoder.refuse(batch, self.rows, reject, bytes, bytes.len() as u64);
    }

    /// Rows that do not say whether they are events or reports are reports.
    pub(crate) fn reports_by_default(&mut self) {
        self.reports = true;
    }

    fn default_type(&self, cells: &mut [Cell<'_>]) {
        if let (true, Some(slot)) = (self.reports, self.decoder.plan.row_type)
            && cells[slot] == Cell::Null
        {
            cells[slot] = Cell::Text("report".into());
        }
    }

    fn array(&mut self, body: &[u8], batch: &mut Batch) {
        match serde_json::from_slice::<Vec<&RawValue>>(body) {
            Ok(items) => items.iter().for_each(|item| self.row(item.get().as_bytes(), batch)),
            Err(error) => {
                let utf8 = std::str::from_utf8(body).is_ok();
                let reason = if utf8 { Reason::Malformed } else { Reason::InvalidUtf8 };
                let reject = Reject::new(reason, format!("not an array of objects: {error}"));
                self.rows += 1;
                self.decoder.refuse(batch, self.rows, reject, body, body.len() as u64);
            }
        }
    }

    fn row(&mut self, line: &[u8], batch: &mut Batch) {
        let line = line.trim_ascii();
        if line.is_empty() {
            return;
        }
        self.rows += 1;
        let length = line.len() as u64;
        let limit = self.decoder.door.limits.line_bytes_max;
        if line.len() > limit {
            let detail =
                format!("{length} bytes; the limit is {limit} (validation.line_bytes_max)");
            let reject = Reject::new(Reason::LineTooLong, detail);
            return self.decoder.refuse(batch, self.rows, reject, line, length);
        }
        let mut cells = Vec::new();
        match parse_object(line, &self.columns, &mut cells) {
            Ok(()) => {
                self.default_type(&mut cells);
                self.decoder.push(&cells, batch, self.rows, || line.to_vec());
            }
            Err(reject) => self.decoder.refuse(batch, self.rows, reject, line, length),
        }
    }
}
