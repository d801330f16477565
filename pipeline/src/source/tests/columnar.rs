//! Parquet: the fast path against the row decoder, parts against the whole, and damage.

use std::fs::File;

use arrow::array::{
    ArrayRef, Float64Array, Int8Array, Int64Array, RecordBatch, StringArray,
    TimestampMillisecondArray,
};
use omnify_operators::model::Event;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use super::*;
use crate::source::{ColumnFault, Projection, open_parquet_parallel, row_groups_in_time_order};

/// One row of the generic layout.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) time: i64,
    pub(super) campaign: String,
    pub(super) creative: String,
    pub(super) user: Option<i64>,
    pub(super) kind: i8,
    pub(super) cost: i64,
}

pub(super) fn rows(count: i64) -> Vec<Row> {
    (0..count)
        .map(|n| Row {
            time: 1_000_000 * (n / 3),
            campaign: format!("c{}", n % 5),
            // The same names under several campaigns, so that the creative alone says nothing.
            creative: format!("x{}", n % 7),
            user: (n % 4 != 0).then_some(n % 11),
            kind: (n % 3) as i8,
            cost: n % 1000,
        })
        .collect()
}

fn column<T>(rows: &[Row], value: impl Fn(&Row) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

fn table(rows: &[Row]) -> Vec<(&'static str, ArrayRef)> {
    let text = |texts: Vec<String>| Arc::new(StringArray::from(texts)) as ArrayRef;
    vec![
        ("ts_us", Arc::new(Int64Array::from(column(rows, |row| row.time)))),
        ("tenant", text(column(rows, |_| "t".to_owned()))),
        ("platform", text(column(rows, |_| "p".to_owned()))),
        ("unused", Arc::new(Float64Array::from(column(rows, |_| f64::NAN)))),
        ("campaign", text(column(rows, |row| row.campaign.clone()))),
        ("creative", text(column(rows, |row| row.creative.clone()))),
        ("user", Arc::new(Int64Array::from(column(rows, |row| row.user)))),
        ("kind", Arc::new(Int8Array::from(column(rows, |row| row.kind)))),
        ("cost_micros", Arc::new(Int64Array::from(column(rows, |row| row.cost)))),
        ("revenue_micros", Arc::new(Int64Array::from(column(rows, |_| 0)))),
    ]
}

fn replaced(
    mut table: Vec<(&'static str, ArrayRef)>,
    name: &str,
    array: ArrayRef,
) -> Vec<(&'static str, ArrayRef)> {
    table.iter_mut().filter(|(known, _)| *known == name).for_each(|(_, old)| *old = array.clone());
    table
}

fn parquet(table: Vec<(&'static str, ArrayRef)>, dictionary: bool) -> (TempDir, PathBuf) {
    let batch = RecordBatch::try_from_iter_with_nullable(
        table.into_iter().map(|(name, array)| (name, array, true)),
    )
    .unwrap();
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(dictionary)
        .set_max_row_group_row_count(Some(1000))
        .build();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.parquet");
    let file = File::create(&path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    (folder, path)
}

/// The same rows as CSV, which goes through the row decoder.
fn csv(rows: &[Row]) -> (TempDir, PathBuf) {
    let mut text = format!("{GENERIC}\n");
    for row in rows {
        let user = row.user.map(|user| user.to_string()).unwrap_or_default();
        let Row { time, campaign, creative, kind, cost, .. } = row;
        text.push_str(&format!("{time},t,p,{campaign},{creative},{user},{kind},{cost},0\n"));
    }
    file("data.csv", text)
}

/// Events with keys in place of ids.
fn told(door: &Door, events: &[Event]) -> Vec<(String, Event)> {
    let key_of = |event: &Event| (key(door, event.creative), *event);
    let blind = |(key, event): (String, Event)| (key, Event { creative: EntityId(0), ..event });
    events.iter().map(key_of).map(blind).collect()
}

fn read_told(path: &Path, name: &str, options: ReadOptions) -> Vec<(String, Event)> {
    let door = door();
    let mut source = open(path, &mapping(name), &door, options).unwrap();
    let (batch, error) = drain(source.as_mut());
    assert!(error.is_none() && batch.dead.is_empty(), "{error:?} {:?}", batch.dead.first());
    told(&door, &batch.events)
}

#[test]
fn parquet_says_the_same_as_csv() {
    let rows = rows(2500);
    let (_folder, path) = csv(&rows);
    let expected = read_told(&path, "generic", ReadOptions::default());
    assert_eq!(expected.len(), 2500);
    let texts = column(&rows, |row| row.user.map(|user| user.to_string()));
    let named: ArrayRef = Arc::new(StringArray::from(texts));
    let millis = column(&rows, |row| row.time / 1000);
    let stamped: ArrayRef = Arc::new(TimestampMillisecondArray::from(millis).with_timezone("UTC"));
    let counts: ArrayRef = Arc::new(Float64Array::from(column(&rows, |row| row.cost as f64)));
    for (form, table) in [
        ("as is", table(&rows)),
        ("users as texts", replaced(table(&rows), "user", named)),
        ("timestamps", replaced(table(&rows), "ts_us", stamped)),
        ("floats, which take the slow path", replaced(table(&rows), "cost_micros", counts)),
    ] {
        for dictionary in [true, false] {
            let (_folder, path) = parquet(table.clone(), dictionary);
            for batch_rows in [64, 4096] {
                let options = ReadOptions { batch_rows, ..ReadOptions::default() };
                let events = read_told(&path, "generic", options);
                assert!(events == expected, "{form}, dictionary {dictionary}, {batch_rows}");
            }
        }
    }
}

#[test]
fn the_fast_path_is_taken_where_nothing_is_unusual() {
    let slow_batches = |table, projection| {
        let (_folder, path) = parquet(table, true);
        let options = ReadOptions { projection, ..ReadOptions::default() };
        let mut source =
            crate::source::columnar::open(&path, &mapping("generic"), &door(), options).unwrap();
        let (batch, _) = drain(&mut source);
        (source.slow_batches, batch.events.iter().filter(|event| event.user != 0).count())
    };
    let rows = rows(2000);
    let with_user = rows.iter().filter(|row| row.user.is_some()).count();
    assert_eq!(slow_batches(table(&rows), Projection::ALL), (0, with_user));
    let without = Projection { users: false, ids: false };
    assert_eq!(slow_batches(table(&rows), without), (0, 0));
    // One bad row sends its own batch the slow way, and no other.
    let costs: Vec<i64> = (0..2000).map(|n| if n == 7 { -1 } else { n }).collect();
    let bad = replaced(table(&rows), "cost_micros", Arc::new(Int64Array::from(costs)));
    assert_eq!(slow_batches(bad, Projection::ALL), (1, with_user - 1));
}

#[test]
fn bad_rows_of_a_batch_are_told_apart() {
    let good = rows(50);
    let costs: Vec<i64> = (0..50).map(|n| if n == 7 { -1 } else { n }).collect();
    let names: Vec<Option<&str>> = (0..50).map(|n| if n == 9 { None } else { Some("x") }).collect();
    let kinds: Vec<i8> = (0..50).map(|n| if n == 11 { 9 } else { 0 }).collect();
    let table = replaced(table(&good), "cost_micros", Arc::new(Int64Array::from(costs)));
    let table = replaced(table, "creative", Arc::new(StringArray::from(names)));
    let table = replaced(table, "kind", Arc::new(Int8Array::from(kinds)));
    let (_folder, path) = parquet(table, true);
    let batch = read(&path, &mapping("generic"), &door());
    assert_eq!(batch.events.len(), 47);
    assert_eq!(reasons(&batch), ["negative", "missing_field", "unknown_kind"]);
    assert_eq!(batch.dead.iter().map(|letter| letter.row).collect::<Vec<_>>(), [8, 10, 12]);
    let row: serde_json::Value = serde_json::from_slice(&batch.dead[0].bytes).unwrap();
    assert_eq!(row["cost_micros"], -1);
    assert_eq!(row["campaign"], "c2");

    let nan: ArrayRef = Arc::new(Float64Array::from(vec![f64::NAN; 50]));
    let (_folder, path) =
        parquet(replaced(super::columnar::table(&good), "cost_micros", nan), true);
    let batch = read(&path, &mapping("generic"), &door());
    assert_eq!(batch.dead.len(), 50);
    assert_eq!(batch.dead[0].reason, "not_finite");
}

#[test]
fn parts_are_the_whole() {
    let rows = rows(4500);
    let (_folder, path) = parquet(table(&rows), true);
    let whole = read_told(&path, "generic", ReadOptions::default());
    for parts in [1, 2, 3, 9] {
        let door = door();
        let options = ReadOptions::default();
        let sources =
            open_parquet_parallel(&path, &mapping("generic"), &door, options, parts).unwrap();
        assert_eq!(sources.len(), parts);
        let threads: Vec<_> = sources
            .into_iter()
            .map(|mut source| std::thread::spawn(move || drain(source.as_mut()).0))
            .collect();
        let mut events = Vec::new();
        for thread in threads {
            events.extend(told(&door, &thread.join().unwrap().events));
        }
        let mut expected = whole.clone();
        let order = |(key, event): &(String, Event)| (event.time, key.clone(), *event);
        events.sort_by_key(order);
        expected.sort_by_key(order);
        assert!(events == expected, "{parts} parts");
    }
    let groups = row_groups_in_time_order(&path, &mapping("generic")).unwrap();
    assert_eq!(groups.len(), 5);
    assert_eq!(groups.iter().map(|group| group.rows).sum::<u64>(), 4500);
    assert_eq!(groups[0].span, Some((0, 333_000_000)));
    assert!(groups.is_sorted_by_key(|group| group.span));
}

#[test]
fn another_schema_is_refused_by_name() {
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let (_folder, path) = parquet(vec![("ts_us", numbers.clone()), ("Tenant", numbers)], true);
    let error = open(&path, &mapping("generic"), &door(), ReadOptions::default()).err().unwrap();
    let text = error.to_string();
    assert!(text.contains("`tenant`") && text.contains("did you mean `Tenant`"), "{text}");

    let nested: ArrayRef = Arc::new(arrow::array::ListArray::from_iter_primitive::<
        arrow::datatypes::Int64Type,
        _,
        _,
    >([Some([Some(1)])]));
    let (_folder, path) = parquet(replaced(table(&rows(1)), "creative", nested), true);
    let error = open(&path, &mapping("generic"), &door(), ReadOptions::default()).err().unwrap();
    let SourceError::Column(error) = error else { panic!("{error:?}") };
    assert!(matches!(error.fault, ColumnFault::Type(_)), "{error}");
}

#[test]
fn a_damaged_file_is_an_error_with_its_place() {
    let (_folder, path) = parquet(table(&rows(3000)), true);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 10]).unwrap();
    let error = open(&path, &mapping("generic"), &door(), ReadOptions::default()).err().unwrap();
    assert!(error.to_string().contains("footer"), "{error}");
    assert!(matches!(error, SourceError::Damaged { .. }));
}

/// Bytes of a small sound file.
pub(super) fn sample() -> Vec<u8> {
    static SAMPLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    SAMPLE
        .get_or_init(|| {
            let (_folder, path) = parquet(table(&rows(1200)), true);
            std::fs::read(path).unwrap()
        })
        .clone()
}
