//! Checks a whole history.

use std::sync::Arc;

use omnify_operators::model::{Registry, Tick};

use super::super::compact::places;
use super::super::manifest::{MANIFEST_FILE, Part};
use super::super::meta::{CONFIG_FILE, RUN_FILE};
use super::super::{Difference, HistoryError, Table};
use super::HistoryReader;
use super::file::{PartFile, READ_ROWS, changed, hash_file};
use omnify_decision::digest::{DecisionDigest, hex};

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of files hashed so far.
    pub bytes: u64,
    /// Bytes of all files.
    pub bytes_total: u64,
    /// Ticks checked so far; they are checked after the files.
    pub ticks: u64,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verification {
    /// Files checked.
    pub files: u64,
    /// Rows decoded.
    pub rows: u64,
    /// Ticks checked against their events and decisions.
    pub ticks: u64,
    /// Files that are not what was written.
    pub files_changed: Vec<String>,
    /// The first difference by tick; `None` when everything is as written.
    pub difference: Option<Difference>,
}

impl Verification {
    /// True when nothing differs.
    pub fn is_intact(&self) -> bool {
        self.difference.is_none()
    }
}

pub(crate) fn verify(
    reader: &HistoryReader,
    report: &mut dyn FnMut(Progress),
) -> Result<Verification, HistoryError> {
    let manifest = reader.manifest();
    let mut found = Verification::default();
    let mut progress = Progress {
        bytes_total: manifest.parts.iter().map(|part| part.bytes).sum(),
        ..Progress::default()
    };
    let mut differences: Vec<Difference> = Vec::new();
    for (file, hash) in [(RUN_FILE, &manifest.run_blake3), (CONFIG_FILE, &manifest.config_blake3)] {
        if hash_file(&reader.root.join(file), &mut |_| {})?.0 != *hash {
            let what = format!("the file was changed after it was written (see {MANIFEST_FILE})");
            differences.push(Difference { tick: None, entity: None, file: file.into(), what });
        }
    }
    for part in &manifest.parts {
        let what = changed(&reader.root, part, &mut |bytes| {
            progress.bytes += bytes;
            report(progress);
        })?;
        found.files += 1;
        if let Some(what) = what {
            found.files_changed.push(part.file.clone());
            differences.push(super::damage::locate(&reader.root, part, &reader.meta, what));
        }
    }
    if differences.is_empty() {
        // Bytes are as written; now the content against itself.
        let listed = super::listing::check(manifest).map_err(HistoryError::from);
        let content = listed.and_then(|()| rows(reader, &mut found)).and_then(|()| {
            ticks(reader, &mut found, &mut |ticks| {
                progress.ticks = ticks;
                report(progress);
            })
        });
        match content {
            Ok(()) => {}
            Err(HistoryError::Difference(difference)) => differences.push(*difference),
            Err(error) => return Err(error),
        }
    }
    // What belongs to no tick (the configuration) concerns every tick.
    found.difference = differences.into_iter().min_by_key(|difference| difference.tick);
    Ok(found)
}

/// Counts the rows of all parts and checks their ticks; decodes those that no tick refers to.
fn rows(reader: &HistoryReader, found: &mut Verification) -> Result<(), HistoryError> {
    for part in &reader.manifest.parts {
        let mut file = PartFile::open_unchecked(&reader.root, part, &reader.meta, READ_ROWS)?;
        let mut rows = file.rows();
        if !matches!(part.table, Table::Events | Table::Decisions | Table::Ticks) {
            rows = decode(&mut file, part, reader)?;
        }
        let differs = |what| Difference {
            tick: Some(part.first_tick),
            entity: None,
            file: part.file.clone(),
            what,
        };
        if rows != part.rows {
            let what = format!("the file has {rows} rows, the manifest says {}", part.rows);
            return Err(differs(what).into());
        }
        if let Some((first, last)) = file.ticks()
            && (first, last) != (part.first_tick, part.last_tick)
        {
            let listed = (part.first_tick, part.last_tick);
            let what = format!("the file has ticks {first} to {last}, listed are {listed:?}");
            return Err(differs(what).into());
        }
        found.rows += rows;
    }
    Ok(())
}

/// Decodes a part and counts its rows; those of `features` must be in order.
fn decode(file: &mut PartFile, part: &Part, reader: &HistoryReader) -> Result<u64, HistoryError> {
    let (mut rows, mut last) = (0, None);
    while let Some(batch) = file.next()? {
        rows += batch.num_rows() as u64;
        if part.table != Table::Features {
            continue;
        }
        for place in places(&batch, &reader.meta).map_err(|error| error.in_file(&part.file))? {
            if last.as_ref() > Some(&place) {
                let what = "its row is not in the order of the table".to_owned();
                let (tick, file) = (Some(part.first_tick), part.file.clone());
                return Err(Difference { tick, entity: Some(place.entity()), file, what }.into());
            }
            last = Some(place);
        }
    }
    Ok(rows)
}

/// Replays ticks, events and decisions against each other.
fn ticks(
    reader: &HistoryReader,
    found: &mut Verification,
    report: &mut dyn FnMut(u64),
) -> Result<(), HistoryError> {
    let mut replay = reader.replay(Arc::new(Registry::utc()));
    let mut decisions = reader.decisions();
    let mut digest = DecisionDigest::new(reader.meta.windows.len());
    let (mut events, mut made) = (Vec::new(), Vec::new());
    let mut last: Option<Tick> = None;
    let differs = |tick, file: &str, what| Difference {
        tick: Some(tick),
        entity: None,
        file: file.to_owned(),
        what,
    };
    while let Some(record) = replay.next_into(&mut events)? {
        made.clear();
        if let Some(head) = decisions.peek().filter(|head| *head <= record.tick) {
            if head < record.tick {
                let what = "decisions of a tick that was never closed".to_owned();
                return Err(differs(head, "table=decisions", what).into());
            }
            decisions.take_tick(head, &mut made)?;
        }
        for decision in &made {
            digest.absorb_canonical(&decision.canonical());
        }
        if made.len() as u64 != record.decisions || digest.close_tick() != record.digest {
            let what = format!(
                "{} decisions with digest {digest}, the tick closed with {} and {}",
                made.len(),
                record.decisions,
                hex(&record.digest)
            );
            return Err(differs(record.tick, "table=decisions", what).into());
        }
        last = Some(record.tick);
        found.ticks += 1;
        if found.ticks.is_multiple_of(4096) {
            report(found.ticks);
        }
    }
    report(found.ticks);
    let manifest = &reader.manifest;
    if let Some(tick) = decisions.peek() {
        let what = "decisions of a tick that was never closed".to_owned();
        return Err(differs(tick, "table=decisions", what).into());
    }
    if last != manifest.last_tick || digest.to_string() != manifest.digest {
        let what = format!(
            "the ticks end at {last:?} with digest {digest}, the manifest says {:?} and {}",
            manifest.last_tick, manifest.digest
        );
        return Err(differs(last.unwrap_or(0), MANIFEST_FILE, what).into());
    }
    Ok(())
}
