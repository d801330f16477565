//! What a data engineer needs when something looks wrong: a report of the segments, and single ticks
//! as JSON lines with names in place of ids.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use omnify_operators::model::{
    Attribution, EntityId, EntityKey, Event, Registry, RegistryView, ReportRow, Stats, Tick,
};
use serde::Serialize;

use super::decode::{self, Names};
use super::entry::{BatchKey, Position, StartRecord, TickEntry};
use super::segment::{self, SegmentReader, Step};
use super::{JournalError, JournalReader};
use crate::history::DeadLetter;

/// What is in a journal.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Inspection {
    /// Segments, oldest first.
    pub segments: Vec<SegmentReport>,
    /// Ticks of all segments.
    pub ticks: u64,
    /// Events of all segments.
    pub events: u64,
    /// Bytes of all segments.
    pub bytes: u64,
    /// Segments that are damaged or do not follow the one before.
    pub damaged: u64,
}

/// One segment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SegmentReport {
    /// File name.
    pub file: String,
    /// Size in bytes.
    pub bytes: u64,
    /// First tick; `None` without ticks.
    pub first_tick: Option<Tick>,
    /// Last tick.
    pub last_tick: Option<Tick>,
    /// Sound frames.
    pub frames: u64,
    /// Ticks.
    pub ticks: u64,
    /// Events.
    pub events: u64,
    /// Report rows.
    pub reports: u64,
    /// Controls.
    pub controls: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Ticks at which a snapshot was taken.
    pub snapshots: Vec<Tick>,
    /// Entities named.
    pub names: usize,
    /// The program that wrote it.
    pub created_by: String,
    /// Processes that started to write in it.
    pub starts: Vec<StartRecord>,
    /// Where the sources named in it stand at its end.
    pub positions: Vec<Position>,
    /// Bytes at the end that were never committed.
    pub torn_bytes: u64,
    /// What is wrong with it.
    pub damage: Option<String>,
}

/// Reads and checks the segments of `dir` that may hold ticks from `from` to `to`. Damage is part
/// of the report.
pub fn inspect(dir: &Path, from: Tick, to: Tick) -> Result<Inspection, JournalError> {
    let segments = segment::list(dir)?;
    let mut inspection = Inspection::default();
    for (at, (first_tick, path)) in segments.iter().enumerate() {
        let next = segments.get(at + 1);
        if *first_tick > to || next.is_some_and(|(next, _)| *next <= from) {
            continue;
        }
        let report = report(*first_tick, path, next.map(|(_, path)| path.as_path()));
        inspection.ticks += report.ticks;
        inspection.events += report.events;
        inspection.bytes += report.bytes;
        inspection.damaged += u64::from(report.damage.is_some());
        inspection.segments.push(report);
    }
    Ok(inspection)
}

fn report(first_tick: Tick, path: &Path, next: Option<&Path>) -> SegmentReport {
    let mut report = SegmentReport { file: segment::name(first_tick), ..SegmentReport::default() };
    if let Err(error) = fill(&mut report, first_tick, path, next) {
        report.damage = Some(error.to_string());
    }
    report
}

fn fill(
    report: &mut SegmentReport,
    first_tick: Tick,
    path: &Path,
    next: Option<&Path>,
) -> Result<(), JournalError> {
    report.bytes = path.metadata().map_err(JournalError::io("read", path))?.len();
    // Damage of the next header is told there.
    let counts = match next.map(segment::header) {
        Some(Ok(header)) => {
            let link = header.previous.filter(|link| link.first_tick == first_tick);
            Some(link.ok_or_else(|| JournalError::Missing {
                path: next.unwrap_or(path).to_owned(),
                previous: "another segment".to_owned(),
            })?)
        }
        Some(Err(_)) | None => None,
    };
    let mut reader = SegmentReader::open(path, counts)?;
    report.created_by.clone_from(&reader.header.created_by);
    let (registry, mut names) = (Registry::utc(), Names::default());
    let mut positions = BTreeMap::new();
    loop {
        let (offset, content) = match reader.next()? {
            Step::End { torn_bytes } => {
                report.torn_bytes = torn_bytes.max(report.bytes - reader.offset());
                report.positions = positions.into_values().collect();
                return Ok(());
            }
            Step::Frame { offset, payload } => {
                (offset, decode::decode(payload, &mut names, &registry, None))
            }
        };
        let content = content.map_err(|bad| reader.senseless(offset, &bad))?;
        report.frames += 1;
        report.starts.extend(content.starts);
        report.names = names.len();
        for entry in content.ticks {
            report.first_tick.get_or_insert(entry.tick);
            report.last_tick = Some(entry.tick);
            report.ticks += 1;
            report.events += entry.events.len() as u64;
            report.reports += entry.reports.len() as u64;
            report.controls += entry.controls.len() as u64;
            report.dead_letters += entry.dead.len() as u64;
            if entry.mark_snapshot {
                report.snapshots.push(entry.tick);
            }
            for position in entry.positions {
                positions.insert((position.source.clone(), position.partition), position);
            }
        }
    }
}

/// An event with its entity's name. Hashes are hex: JSON readers round large numbers.
#[derive(Serialize)]
struct EventLine<'a> {
    time: i64,
    kind: &'static str,
    entity: &'a EntityKey,
    #[serde(flatten)]
    delta: Stats,
    user: String,
    id: String,
}

#[derive(Serialize)]
struct ReportLine<'a> {
    entity: &'a EntityKey,
    start: i64,
    end: i64,
    /// Left out where the row names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    attribution: Option<String>,
    as_of: i64,
    sequence: u64,
    #[serde(flatten)]
    totals: Stats,
}

#[derive(Serialize)]
struct DeadLine<'a> {
    source: &'a str,
    row: u64,
    tenant: Option<&'a str>,
    reason: &'a str,
    detail: &'a str,
    /// The start of the bytes, as text.
    bytes: String,
    length: u64,
}

#[derive(Serialize)]
struct TickLine<'a> {
    tick: Tick,
    last: bool,
    snapshot: bool,
    calm: u8,
    rows: u64,
    ignored: u64,
    watermarks: Option<crate::serve::Watermarks>,
    positions: &'a [Position],
    batches: &'a [BatchKey],
    controls: &'a [omnify_decision::control::Control],
    events: Vec<EventLine<'a>>,
    reports: Vec<ReportLine<'a>>,
    dead: Vec<DeadLine<'a>>,
}

/// Bytes of a dead letter that a dump shows.
const DUMPED_BYTES: usize = 1024;

/// Writes the ticks from `from` to `to` as JSON lines; returns their number.
pub fn dump(dir: &Path, from: Tick, to: Tick, out: &mut dyn Write) -> Result<u64, JournalError> {
    let registry = std::sync::Arc::new(Registry::utc());
    let mut view = RegistryView::new(registry.clone());
    let mut count = 0;
    let failed = |error: io::Error| JournalError::io("print the ticks of", dir)(error);
    let reader = JournalReader::open(dir)?;
    for entry in reader.above(&registry, from.checked_sub(1)) {
        let entry = entry?;
        if entry.tick > to {
            break;
        }
        serde_json::to_writer(&mut *out, &line(&entry, view.all()))
            .map_err(|e| failed(e.into()))?;
        out.write_all(b"\n").map_err(failed)?;
        count += 1;
    }
    Ok(count)
}

type Infos = [std::sync::Arc<omnify_operators::model::EntityInfo>];

fn line<'a>(entry: &'a TickEntry, infos: &'a Infos) -> TickLine<'a> {
    let name = |id: EntityId| &infos[id.index()].key;
    let event = |event: &Event| EventLine {
        time: event.time,
        kind: event.kind.name(),
        entity: name(event.creative),
        delta: event.delta,
        user: format!("{:016x}", event.user),
        id: format!("{:016x}", event.id),
    };
    let report = |row: &ReportRow| ReportLine {
        entity: name(row.key.creative),
        start: row.key.start,
        end: row.key.end,
        attribution: Some(row.key.attribution)
            .filter(|window| *window != Attribution::DEFAULT)
            .map(|window| window.to_string()),
        as_of: row.version.as_of,
        sequence: row.version.sequence,
        totals: row.version.totals,
    };
    TickLine {
        tick: entry.tick,
        last: entry.mark_last,
        snapshot: entry.mark_snapshot,
        calm: entry.calm,
        rows: entry.rows,
        ignored: entry.ignored,
        watermarks: entry.watermarks,
        positions: &entry.positions,
        batches: &entry.batches,
        controls: &entry.controls,
        events: entry.events.iter().map(event).collect(),
        reports: entry.reports.iter().map(report).collect(),
        dead: entry.dead.iter().map(dead).collect(),
    }
}

fn dead(letter: &DeadLetter) -> DeadLine<'_> {
    let shown = &letter.bytes[..letter.bytes.len().min(DUMPED_BYTES)];
    DeadLine {
        source: &letter.source,
        row: letter.row,
        tenant: letter.tenant.as_deref(),
        reason: letter.reason,
        detail: &letter.detail,
        bytes: String::from_utf8_lossy(shown).into_owned(),
        length: letter.length,
    }
}
