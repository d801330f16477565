//! Copies for other tools, and files from before a column was added.

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Float64Type, Schema};

use super::super::manifest::{MANIFEST_FILE, Part};
use super::super::part::{PartWriter, replace_file};
use super::super::read::{HistoryReader, PartFile, align_with};
use super::super::{ExportFormat, ExportOptions, Table, compact};
use super::round_trip::assert_same;
use super::*;
use crate::disk::FileSystem;

fn exported(root: &Path, to: &Path, options: &ExportOptions) -> BTreeMap<Table, u64> {
    HistoryReader::open(root).unwrap().export(to, options, &mut |_| {}).unwrap().rows
}

#[test]
fn a_whole_export_is_a_history() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = Run::new(41, 30, 10);
    write(folder.path(), &run, small());
    exported(folder.path(), copy.path(), &ExportOptions::default());
    assert!(
        files(folder.path()) == {
            let mut copied = files(copy.path());
            copied.insert("lock".into(), Vec::new());
            copied
        }
    );
    assert_same(copy.path(), &run);
    // Never over something else.
    let reader = HistoryReader::open(folder.path()).unwrap();
    let error = reader.export(copy.path(), &ExportOptions::default(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, HistoryError::NotEmpty { .. }), "{error}");
}

#[test]
fn a_piece_of_a_history_is_exported_as_text() {
    let folder = tempfile::tempdir().unwrap();
    let (root, run) = (folder.path(), Run::new(42, 40, 10));
    write(root, &run, small());
    let totals = HistoryReader::open(root).unwrap().summary().tables;
    let out = tempfile::tempdir().unwrap();
    let options = ExportOptions { format: ExportFormat::Ndjson, ..ExportOptions::default() };
    let rows = exported(root, out.path(), &options);
    for (table, total) in &totals {
        assert_eq!(rows[table], total.rows, "{table}");
        let text = fs::read_to_string(out.path().join(format!("{table}.ndjson"))).unwrap();
        assert_eq!(text.lines().count() as u64, total.rows, "{table}");
        for line in text.lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(row.get("tick").is_some() && !row["tick"].is_null(), "{table}: {line}");
        }
    }
    // One table of one tenant, some dates: the same rows as a filter over everything.
    let (csv, date) = (tempfile::tempdir().unwrap(), "2024-10-03");
    let options = ExportOptions {
        table: Some(Table::Decisions),
        tenant: Some("b b%é".into()),
        from: Some(date.parse().unwrap()),
        until: Some(date.parse().unwrap()),
        format: ExportFormat::Csv,
    };
    let rows = exported(root, csv.path(), &options);
    let wanted = HistoryReader::open(root).unwrap().manifest().parts.iter().fold(0, |sum, part| {
        let wanted = part.table == Table::Decisions
            && part.tenant.as_deref() == Some("b b%é")
            && part.date == date;
        sum + if wanted { part.rows } else { 0 }
    });
    assert!(wanted > 0);
    assert_eq!(rows, BTreeMap::from([(Table::Decisions, wanted)]));
    assert_eq!(files(csv.path()).len(), 1);
    let text = fs::read_to_string(csv.path().join("decisions.csv")).unwrap();
    assert_eq!(text.lines().count() as u64, wanted + 1);
    assert!(text.starts_with("tick,seq,id,tenant,"), "{}", &text[..80]);
    assert!(text.lines().skip(1).all(|line| line.contains(",b b%é,")));
}

/// Rewrites a part without a column, as a program from before that column wrote it.
fn without(root: &Path, part: &mut Part, column: &str) {
    let meta = Arc::new(meta());
    let mut file = PartFile::open(root, part, &meta).unwrap();
    let mut batches = Vec::new();
    while let Some(batch) = file.next().unwrap() {
        let at = batch.schema().index_of(column).unwrap();
        let others: Vec<usize> = (0..batch.num_columns()).filter(|c| *c != at).collect();
        batches.push(batch.project(&others).unwrap());
    }
    let path = root.join(&part.file);
    let schema = batches[0].schema();
    let mut out = PartWriter::create(&FileSystem, &path, part.table, schema, &small()).unwrap();
    batches.iter().for_each(|batch| out.write(batch).unwrap());
    let written = out.finish().unwrap();
    (part.bytes, part.blake3) = (written.bytes, written.blake3);
}

#[test]
fn a_file_from_before_a_column_reads_as_null() {
    let folder = tempfile::tempdir().unwrap();
    let (root, run) = (folder.path(), Run::new(43, 30, 10));
    write(root, &run, small());
    let mut manifest = HistoryReader::open(root).unwrap().manifest().clone();
    let mut old: Vec<&mut Part> =
        manifest.parts.iter_mut().filter(|part| part.table == Table::Features).collect();
    assert!(old.len() > 4);
    old.iter_mut().step_by(2).for_each(|part| without(root, part, "anomaly_score"));
    let bytes = manifest.to_bytes().unwrap();
    replace_file(&FileSystem, &root.join(MANIFEST_FILE), &bytes, false).unwrap();
    let scores = || {
        let reader = HistoryReader::open(root).unwrap();
        let parts = reader.manifest().parts.iter().filter(|part| part.table == Table::Features);
        let (mut nulls, mut rows) = (0, 0);
        for part in parts {
            let mut file = PartFile::open(root, part, &Arc::new(meta())).unwrap();
            while let Some(batch) = file.next().unwrap() {
                rows += batch.num_rows();
                nulls += batch.column_by_name("anomaly_score").unwrap().null_count();
            }
        }
        (nulls, rows)
    };
    let before = scores();
    assert!(before.0 > 0 && before.0 < before.1);
    assert_same(root, &run);
    // Old and new files merge into one.
    compact(root, &WriterOptions { rows_per_file: 1 << 20, ..small() }, &mut |_| {}).unwrap();
    assert_eq!(scores(), before);
    assert_same(root, &run);
}

#[test]
fn a_column_that_is_never_null_reads_as_its_default() {
    let old = Schema::new(vec![Field::new("tick", DataType::Int64, false)]);
    let ticks: ArrayRef = Arc::new(arrow::array::Int64Array::from(vec![1, 2, 3]));
    let batch = RecordBatch::try_new(Arc::new(old), vec![ticks]).unwrap();
    let text = super::super::entities::text_field("state", false);
    let new = Arc::new(Schema::new(vec![
        Field::new("tick", DataType::Int64, false),
        Field::new("maturity", DataType::Float64, false),
        text,
    ]));
    let added = [
        (Table::Features, "maturity", "1"),
        (Table::Features, "state", "fresh"),
        (Table::Events, "maturity", "0"),
    ];
    let read = align_with(&batch, &new, Table::Features, &added).unwrap();
    assert_eq!(
        read.column(1).as_primitive::<Float64Type>(),
        &Float64Array::from(vec![1.0, 1.0, 1.0])
    );
    let state = arrow::compute::cast(read.column(2), &DataType::Utf8).unwrap();
    assert!(state.as_string::<i32>().iter().all(|state| state == Some("fresh")));
    // A column that nobody gave a default is damage, not nothing.
    let error = align_with(&batch, &new, Table::Decisions, &added).unwrap_err();
    assert!(error.to_string().contains("`maturity` is missing"), "{error}");
}
