//! Bodies that somebody sends: NDJSON or one JSON array of objects.

use std::sync::Arc;

use omnify_operators::model::EventTime;
use serde_json::value::RawValue;

use super::batch::Batch;
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
        Push { decoder, columns, rows: 0 }
    }

    /// From now on, rows of other tenants than `tenant` are refused, if one is given.
    pub fn only_tenant(&mut self, tenant: Option<&str>) {
        self.decoder.only_tenant(tenant.map(Into::into));
    }

    /// Decodes one body. Times after `not_after` are refused. A body that is no JSON at all comes
    /// back as dead letters, one for each line. Row numbers count on from body to body.
    pub fn decode(&mut self, body: &[u8], not_after: Option<EventTime>) -> Batch {
        self.decoder.not_after(not_after);
        let mut batch = Batch::new();
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        if body.trim_ascii_start().first() == Some(&b'[') {
            self.array(body, &mut batch);
        } else {
            body.split(|byte| *byte == b'\n').for_each(|line| self.row(line, &mut batch));
        }
        batch
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
            Ok(()) => self.decoder.push(&cells, batch, self.rows, || line.to_vec()),
            Err(reject) => self.decoder.refuse(batch, self.rows, reject, line, length),
        }
    }
}
