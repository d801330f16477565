//! Changed bytes are found, with the tick and the entity.

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;

use super::super::manifest::{MANIFEST_FILE, Manifest, Part};
use super::super::part::replace_file;
use super::super::read::HistoryReader;
use super::super::{Difference, HistoryError, Table, Verification};
use super::*;
use crate::disk::FileSystem;

fn history(seed: u64, options: WriterOptions) -> (tempfile::TempDir, Run) {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(seed, 30, 20);
    write(folder.path(), &run, options);
    (folder, run)
}

fn verify(root: &Path) -> Verification {
    HistoryReader::open(root).unwrap().verify(&mut |_| {}).unwrap()
}

fn largest(root: &Path, table: Table) -> Part {
    let manifest = Manifest::load(root).unwrap().unwrap();
    let parts = manifest.parts.into_iter().filter(|part| part.table == table);
    parts.max_by_key(|part| part.rows).unwrap()
}

/// Flips bits of every `step`-th byte in turn and hands the difference found to `check`.
fn flip(root: &Path, part: &Part, step: usize, mut check: impl FnMut(usize, Difference)) {
    let path = root.join(&part.file);
    let bytes = fs::read(&path).unwrap();
    for at in (0..bytes.len()).step_by(step) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x15;
        fs::write(&path, &changed).unwrap();
        let found = verify(root);
        assert_eq!(found.files_changed, std::slice::from_ref(&part.file));
        check(at, found.difference.expect("a changed byte is always found"));
    }
    fs::write(&path, &bytes).unwrap();
    assert_eq!(verify(root).difference, None);
}

#[test]
fn every_changed_byte_of_events_is_found_with_tick_and_entity() {
    let (folder, run) = history(31, WriterOptions::default());
    let part = largest(folder.path(), Table::Events);
    let mut named = 0;
    let mut flips = 0;
    flip(folder.path(), &part, 29, |at, difference| {
        let tick = difference.tick.unwrap();
        assert!((part.first_tick..=part.last_tick).contains(&tick), "byte {at}: {difference}");
        assert_eq!(difference.file, part.file);
        flips += 1;
        // Damage to the path columns themselves leaves the entity unknown, or misspelt.
        named += usize::from(difference.entity.is_some_and(|e| run.registry.lookup(&e).is_some()));
    });
    assert!(flips > 100 && named * 10 > flips * 5, "{named} of {flips} named the entity");
}

#[test]
fn every_changed_byte_of_decisions_is_found() {
    let (folder, _) = history(32, WriterOptions::default());
    let part = largest(folder.path(), Table::Decisions);
    flip(folder.path(), &part, 211, |_, difference| assert!(difference.tick.is_some()));
    let part = largest(folder.path(), Table::Features);
    flip(folder.path(), &part, 211, |_, difference| assert!(difference.tick.is_some()));
    let part = largest(folder.path(), Table::Ticks);
    flip(folder.path(), &part, 97, |_, difference| assert!(difference.tick.is_some()));
}

/// Rewrites a part as another tool would (plain strings, every column nullable) with one value of
/// `column` changed in `row`, and returns that row's tick and entity.
fn rewrite(root: &Path, part: &Part, column: &str, row: usize) -> (Tick, String) {
    let path = root.join(&part.file);
    let reader =
        ParquetRecordBatchReader::try_new(fs::File::open(&path).unwrap(), 1 << 20).unwrap();
    let batches: Vec<RecordBatch> = reader.collect::<Result<_, _>>().unwrap();
    let batch = arrow::compute::concat_batches(batches[0].schema_ref(), &batches).unwrap();
    let mut columns = batch.columns().to_vec();
    let at = batch.schema().index_of(column).unwrap();
    let mut values = columns[at].as_primitive::<Int64Type>().values().to_vec();
    values[row] += 1;
    columns[at] = Arc::new(Int64Array::from(values));
    let nullable = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
    let fields: Vec<Field> = batch.schema().fields().iter().map(nullable).collect();
    let schema = Arc::new(Schema::new(fields));
    let again = RecordBatch::try_new(schema.clone(), columns).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(&path).unwrap(), schema, None).unwrap();
    writer.write(&again).unwrap();
    writer.close().unwrap();
    let text = |name: &str| {
        let column = cast(batch.column_by_name(name).unwrap(), &DataType::Utf8).unwrap();
        column.as_string::<i32>().value(row).to_owned()
    };
    let path = ["tenant", "platform", "account", "campaign", "ad_group", "creative"].map(text);
    (text("tick").parse().unwrap(), path.join("/"))
}

#[test]
fn one_changed_value_is_found_in_its_row() {
    for (column, row) in [("clicks", 0), ("cost_micros", 17), ("tick", 40), ("check", 33)] {
        let (folder, _) = history(33, WriterOptions::default());
        let part = largest(folder.path(), Table::Events);
        let (tick, entity) = rewrite(folder.path(), &part, column, row);
        let tick = if column == "tick" { tick + 1 } else { tick };
        let found = verify(folder.path()).difference.unwrap();
        assert_eq!(found.tick, Some(tick), "{column}: {found}");
        assert_eq!(found.entity.as_ref().map(EntityKey::as_str), Some(&*entity), "{found}");
        // A replay that was not preceded by a verification stops there, too.
        let reader = HistoryReader::open(folder.path()).unwrap();
        let stopped = reader.replay(Arc::new(Registry::utc())).find_map(Result::err);
        assert!(matches!(stopped, Some(HistoryError::Difference(d)) if *d == found));
    }
}

/// Replaces the manifest by a changed one with a valid seal, as a careful forger would.
fn forge(root: &Path, change: impl FnOnce(&mut Manifest)) {
    let mut manifest = Manifest::load(root).unwrap().unwrap();
    change(&mut manifest);
    replace_file(&FileSystem, &root.join(MANIFEST_FILE), &manifest.to_bytes().unwrap(), false)
        .unwrap();
}

#[test]
fn a_forged_hash_does_not_hide_a_changed_event() {
    let (folder, _) = history(34, WriterOptions::default());
    let part = largest(folder.path(), Table::Events);
    let (tick, entity) = rewrite(folder.path(), &part, "revenue_micros", 21);
    let bytes = fs::read(folder.path().join(&part.file)).unwrap();
    forge(folder.path(), |manifest| {
        let listed = manifest.parts.iter_mut().find(|listed| listed.file == part.file).unwrap();
        listed.blake3 = blake3::hash(&bytes).to_hex().to_string();
        listed.bytes = bytes.len() as u64;
    });
    let found = verify(folder.path()).difference.unwrap();
    assert_eq!(found.tick, Some(tick));
    assert_eq!(found.entity.unwrap().as_str(), entity);
}

#[test]
fn a_missing_part_is_found() {
    for table in [Table::Events, Table::Decisions, Table::Ticks] {
        let (folder, _) = history(35, small());
        let part = largest(folder.path(), table);
        forge(folder.path(), |manifest| manifest.parts.retain(|p| p.file != part.file));
        let found = verify(folder.path()).difference.expect("the rows are missing");
        assert!(found.tick.is_some_and(|tick| tick <= part.last_tick), "{found}");
    }
    let (folder, _) = history(35, small());
    let part = largest(folder.path(), Table::Features);
    fs::remove_file(folder.path().join(&part.file)).unwrap();
    assert_eq!(verify(folder.path()).difference.unwrap().file, part.file);
}

#[test]
fn a_changed_description_is_found() {
    let (folder, _) = history(36, small());
    let path = folder.path().join("config.toml");
    fs::write(&path, "# another\n").unwrap();
    assert_eq!(verify(folder.path()).difference.unwrap().file, "config.toml");
    let (folder, _) = history(37, small());
    let path = folder.path().join(MANIFEST_FILE);
    let bytes = fs::read(&path).unwrap();
    let manifest = Manifest::load(folder.path()).unwrap();
    for at in (0..bytes.len()).step_by(131) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x11;
        fs::write(&path, &changed).unwrap();
        // A byte between tokens says nothing; every other change is refused.
        if let Ok(loaded) = Manifest::load(folder.path()) {
            assert_eq!(loaded, manifest);
        }
    }
    assert!(matches!(
        HistoryReader::open(folder.path().join("nowhere")),
        Err(HistoryError::Description { .. })
    ));
}

#[test]
fn reading_opens_one_part_of_a_partition_at_a_time() {
    let (folder, run) = history(38, small());
    let reader = HistoryReader::open(folder.path()).unwrap();
    let events = super::super::read::event_merge(&reader, Arc::new(Registry::utc()));
    let mut merge = events;
    let mut rows = Vec::new();
    let parts = reader.manifest().parts.iter().filter(|part| part.table == Table::Events).count();
    let partitions = merge.partitions();
    assert!(parts > 3 * partitions, "{parts} parts in {partitions} partitions");
    let mut read = 0;
    while let Some(tick) = merge.peek() {
        merge.take(tick, &mut rows).unwrap();
        read += rows.len();
        assert!(merge.open_parts() <= partitions);
    }
    assert_eq!(merge.open_parts(), 0);
    assert_eq!(read, run.ticks.iter().map(|input| input.events.len()).sum::<usize>());
}
