//! What must hold after the last round.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use arrow::array::ArrayRef;
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use omnify_decision::action::Id;
use omnify_decision::control::{Control, Outcome};
use omnify_operators::model::Registry;
use omnify_sinks::action::Ledger;
use omnify_sinks::history::HistoryReader;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::engine::Home;
use super::platform::Calls;
use super::sender::Lane;

/// The events of the history against those sent.
pub(super) struct Events {
    pub(super) lost: u64,
    pub(super) duplicated: u64,
}

/// Counts each event's number among the costs in the history; `sent` in order of [`Lane::ALL`].
pub(super) fn events(history: &Path, sent: [u64; 2]) -> anyhow::Result<Events> {
    let reader = HistoryReader::open(history)?;
    let mut seen = [vec![0_u32; usize::try_from(sent[0])?], vec![0; usize::try_from(sent[1])?]];
    for rows in reader.scan_events(Arc::new(Registry::utc()), i64::MIN, i64::MAX) {
        for (tick, event) in rows? {
            let cost = u64::try_from(event.delta.cost_micros)?;
            let count = Lane::of_cost(cost).and_then(|(lane, number)| {
                seen[lane as usize].get_mut(usize::try_from(number).ok()?)
            });
            *count.with_context(|| format!("what cost {cost} at tick {tick} was never sent"))? += 1;
        }
    }
    let with = |wanted: fn(u32) -> bool| {
        seen.iter().flatten().filter(|count| wanted(**count)).count() as u64
    };
    Ok(Events { lost: with(|count| count == 0), duplicated: with(|count| count > 1) })
}

/// Replays the history in one go, with one worker and two: the run without a crash. True when it
/// decides the same and closes the same rows.
pub(super) fn replayed(home: &Home, history: &Path) -> anyhow::Result<bool> {
    let mut same = true;
    let wanted = feature_rows(history)?;
    for workers in ["1", "2"] {
        let again = home.path(&format!("again-{workers}"));
        let (from, to) = (text(history)?, text(&again)?);
        let answer =
            home.answer(&["replay", from, "--verify", "--workers", workers, "--out", to])?;
        if answer["identical"] != true {
            eprintln!("the replay with {workers} workers differs: {answer}");
            same = false;
        }
        let found = feature_rows(&again)?;
        if found != wanted {
            let differing = wanted.iter().zip(&found).find(|(a, b)| a != b);
            let (a, b) = (wanted.len(), found.len());
            eprintln!("features differ: {a} rows against {b}; first difference {differing:?}");
            same = false;
        }
    }
    Ok(same)
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}

/// Every row of `features` as text, in order of the text.
fn feature_rows(history: &Path) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    parquet_files(&history.join("table=features"), &mut files)?;
    let mut rows = Vec::new();
    for file in files {
        // The partition columns are in the path only.
        let place = text(file.parent().unwrap_or(&file))?;
        let place = place.rsplit("table=features").next().unwrap_or_default().to_owned();
        for batch in ParquetRecordBatchReaderBuilder::try_new(File::open(&file)?)?.build()? {
            let batch = batch?;
            let options = FormatOptions::default();
            let plain = batch.columns().iter().map(plain).collect::<Result<Vec<_>, _>>()?;
            let columns = plain
                .iter()
                .map(|column| ArrayFormatter::try_new(column, &options))
                .collect::<Result<Vec<_>, _>>()?;
            for at in 0..batch.num_rows() {
                let mut row = place.clone();
                for column in &columns {
                    row += &format!(",{}", column.value(at));
                }
                rows.push(row);
            }
        }
    }
    rows.sort_unstable();
    Ok(rows)
}

/// Times as numbers: text needs a time zone database.
fn plain(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    match column.data_type() {
        DataType::Timestamp(_, _) => cast(column, &DataType::Int64),
        _ => Ok(column.clone()),
    }
}

fn parquet_files(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            parquet_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            files.push(path);
        }
    }
    Ok(())
}

/// The platform's calls against the history's outcomes.
pub(super) struct Actions {
    pub(super) applied: u64,
    /// Actions that changed the platform more than once.
    pub(super) twice: u64,
    /// Actions that the history calls applied and the platform does not know, or that the platform
    /// carried out although the history never ended them so.
    pub(super) wrong: u64,
}

/// Compares by action id. What ended while the engine stopped is in its ledger only, until the next
/// start.
pub(super) fn actions(history: &Path, ledger: &Path, calls: &Calls) -> anyhow::Result<Actions> {
    let reader = HistoryReader::open(history)?;
    let mut ended: HashMap<String, Outcome> = HashMap::new();
    for tick in reader.ticks() {
        for control in tick?.controls {
            if let Control::Acknowledge { action, outcome, .. } = control {
                ended.insert(action.to_string(), outcome);
            }
        }
    }
    let twice = calls.values().filter(|count| **count > 1).count() as u64;
    let mut wrong = 0;
    for (id, outcome) in &ended {
        if matches!(outcome, Outcome::Applied { .. }) && !calls.contains_key(id) {
            eprintln!("action {id} is said to be applied, but the platform was never asked");
            wrong += 1;
        }
    }
    for id in calls.keys() {
        let outcome = match ended.get(id) {
            Some(outcome) => Some(outcome.clone()),
            None => Ledger::find(ledger, Id(u128::from_str_radix(id, 16)?.to_be_bytes()))?
                .and_then(|entry| entry.outcome),
        };
        // A call whose answer was lost is read back, and then holds already.
        let known = outcome.as_ref().is_some_and(|outcome| {
            matches!(outcome, Outcome::Applied { .. } | Outcome::NoChange | Outcome::Unknown)
        });
        if !known {
            eprintln!("action {id} was carried out, but ended as {outcome:?}");
            wrong += 1;
        }
    }
    Ok(Actions { applied: calls.len() as u64, twice, wrong })
}
