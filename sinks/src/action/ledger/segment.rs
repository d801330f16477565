//! The bytes of the ledger: segments of batches of JSON lines.
//!
//! A batch is what one commit wrote: a header line `#<xxh3 of the body, 16 hex> <body bytes>`,
//! then the body, one JSON record a line. A batch starts only after the one before it is on disk,
//! so a bad batch with a good one after it is damage (refuse to start), and a bad batch at the
//! end is what a crash tore (cut it off: none of its calls was made).

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use omnify_decision::action::Id;
use omnify_decision::control::Outcome;
use omnify_operators::model::Tick;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{Intent, LedgerError};

/// One line of the ledger.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub(super) enum Record<'a> {
    /// It is about to be executed.
    Intent {
        /// The whole action.
        intent: Cow<'a, Intent>,
    },
    /// It ended.
    Outcome {
        /// The action.
        id: Id,
        /// When it ended.
        tick: Tick,
        /// How it ended.
        outcome: Cow<'a, Outcome>,
    },
}

const EXTENSION: &str = "ledger";

/// The file of segment `number`.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(name(number))
}

/// Its name.
pub(super) fn name(number: u64) -> String {
    format!("actions-{number:010}.{EXTENSION}")
}

/// The segments in `dir`, oldest first.
pub(super) fn list(dir: &Path) -> Result<Vec<u64>, LedgerError> {
    let io = |source| LedgerError::io("list", dir, source);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("actions-")?.strip_suffix(".ledger")?.parse().ok());
        numbers.extend::<Option<u64>>(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Frames `body`, whole lines, as a batch at the end of `out`.
pub(super) fn frame(body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("#{:016x} {}\n", xxh3_64(body), body.len()).as_bytes());
    out.extend_from_slice(body);
}

/// The body of the batch at the start of `bytes` and the length of header and body.
fn batch(bytes: &[u8]) -> Option<(&[u8], usize)> {
    // `#`, 16 digits, a space, at most 20 digits, a newline.
    let line_end = bytes.iter().take(39).position(|byte| *byte == b'\n')?;
    let header = std::str::from_utf8(&bytes[..line_end]).ok()?.strip_prefix('#')?;
    let (sum, len) = header.split_once(' ')?;
    let sum = u64::from_str_radix(sum, 16).ok()?;
    let len: usize = len.parse().ok()?;
    let body = bytes.get(line_end + 1..(line_end + 1).checked_add(len)?)?;
    (xxh3_64(body) == sum).then_some((body, line_end + 1 + len))
}

/// A segment as read: its records, and where its good part ends.
pub(super) struct Segment {
    /// Every record of every good batch, in order.
    pub(super) records: Vec<Record<'static>>,
    /// Bytes of the good part.
    pub(super) good_bytes: u64,
    /// Bytes behind it that a crash left.
    pub(super) torn_bytes: u64,
}

/// Reads a segment. A torn end is reported, damage before the end is an error.
pub(super) fn read(path: &Path) -> Result<Segment, LedgerError> {
    let bytes = fs::read(path).map_err(|source| LedgerError::io("read", path, source))?;
    let corrupt = |offset: usize, reason: String| LedgerError::Corrupt {
        path: path.to_owned(),
        offset: offset as u64,
        reason,
    };
    let (mut records, mut at) = (Vec::new(), 0);
    while let Some((body, len)) = batch(&bytes[at..]) {
        for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let record = serde_json::from_slice(line)
                .map_err(|error| corrupt(at, format!("unreadable record: {error}")))?;
            records.push(record);
        }
        at += len;
    }
    let rest = &bytes[at..];
    let mut starts = rest.iter().enumerate().filter(|(_, byte)| **byte == b'#').map(|(at, _)| at);
    if let Some(after) = starts.find(|start| *start > 0 && batch(&rest[*start..]).is_some()) {
        let reason = format!("a bad batch with a good one {after} bytes after it");
        return Err(corrupt(at, reason));
    }
    Ok(Segment { records, good_bytes: at as u64, torn_bytes: rest.len() as u64 })
}
