//! What is written comes back, in order and bit for bit.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use proptest::prelude::*;

use super::super::read::HistoryReader;
use super::super::{
    DecisionDigest, DecisionRecord, HistoryError, Progress, Table, TickRecord, WriterOptions,
};
use super::*;

/// Compares the history in `root` with the run that was written.
pub(super) fn assert_same(root: &Path, run: &Run) {
    let reader = HistoryReader::open(root).unwrap();
    let registry = Arc::new(Registry::utc());
    let read: Vec<(TickRecord, Vec<Event>)> =
        reader.replay(registry.clone()).collect::<Result<_, _>>().unwrap();
    assert_eq!(read.len(), run.ticks.len());
    let mut digest = DecisionDigest::new(3);
    for ((record, events), input) in read.iter().zip(&run.ticks) {
        assert_eq!(record.tick, input.tick);
        assert_eq!(record.controls, input.controls);
        assert_eq!(record.events, input.events.len() as u64);
        assert_eq!(record.decisions, input.decisions.len() as u64);
        assert_eq!(Run::keyed(&registry, events), Run::keyed(&run.registry, &input.events));
        input.decisions.iter().for_each(|decision| {
            digest.absorb(decision);
        });
        assert_eq!(record.digest, digest.close_tick());
    }
    let written = run.ticks.iter().flat_map(|input| &input.decisions);
    let again: Vec<DecisionRecord> = reader.decisions().collect::<Result<_, _>>().unwrap();
    assert_eq!(again.len(), written.clone().count());
    for (was, is) in written.zip(&again) {
        assert_eq!(is.difference(&DecisionRecord::from(was)), None);
    }
    let mut told = Progress::default();
    let verification = reader.verify(&mut |progress| told = progress).unwrap();
    assert_eq!(verification.difference, None);
    assert_eq!(verification.ticks, run.ticks.len() as u64);
    assert_eq!((told.bytes, told.ticks), (told.bytes_total, verification.ticks));
    assert_eq!(reader.summary().digest, digest.to_string());
}

/// The batches of a table, part by part.
fn batches(root: &Path, table: Table) -> Vec<Vec<RecordBatch>> {
    let reader = HistoryReader::open(root).unwrap();
    let parts = reader.manifest().parts.iter().filter(|part| part.table == table);
    parts
        .map(|part| {
            let file = fs::File::open(root.join(&part.file)).unwrap();
            let reader =
                parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(file, 1 << 16);
            reader.unwrap().collect::<Result<_, _>>().unwrap()
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn everything_comes_back(
        seed in any::<u64>(),
        ticks in 1_u64..30,
        events in 1_u64..40,
        rows_per_file in 1_usize..80,
        buffered in 1_usize..60_000,
        commit_rows in 0_u64..500,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let run = Run::new(seed, ticks, events);
        let options = WriterOptions {
            rows_per_file,
            buffered_bytes_max: buffered,
            commit_rows,
            ..small()
        };
        write(folder.path(), &run, options);
        assert_same(folder.path(), &run);
    }
}

#[test]
fn features_come_back_sorted_with_their_windows() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(5, 40, 3);
    write(folder.path(), &run, WriterOptions::default());
    let mut rows = 0;
    let mut found = Stats::ZERO;
    for part in batches(folder.path(), Table::Features) {
        let mut last = None;
        for batch in &part {
            let column = |name: &str| batch.column_by_name(name).unwrap().clone();
            let text = |name: &str| {
                arrow::compute::cast(&column(name), &arrow::datatypes::DataType::Utf8).unwrap()
            };
            let (window, level, creative) = (text("window"), text("level"), text("creative"));
            let time = |name: &str| column(name).as_primitive::<TimestampMicrosecondType>().clone();
            let (start, end) = (time("window_start"), time("window_end"));
            let clicks = column("clicks").as_primitive::<Int64Type>().clone();
            for row in 0..batch.num_rows() {
                let name = window.as_string::<i32>().value(row).to_owned();
                let width = end.value(row) - start.value(row);
                match name.as_str() {
                    "1h/1m" => assert_eq!(width, 60 * MINUTE_US),
                    "24h/15m" => assert_eq!(width, 24 * 60 * MINUTE_US),
                    // Ends of these random rows are no midnights: the day has lasted since the last.
                    _ => assert!(
                        width <= 24 * 60 * MINUTE_US && start.value(row) % 86_400_000_000 == 0
                    ),
                }
                let order = ["1h/1m", "24h/15m", "day"].iter().position(|w| *w == name);
                let key = (order, end.value(row));
                assert!(last <= Some(key), "rows are sorted by window and window end");
                last = Some(key);
                let deep = level.as_string::<i32>().value(row) == "creative";
                assert_eq!(creative.is_valid(row), deep);
                found.clicks += clicks.value(row);
                rows += 1;
            }
        }
    }
    let written: Vec<&PaneRow> = run.ticks.iter().flat_map(|input| &input.panes.rows).collect();
    assert_eq!(rows, written.len());
    assert_eq!(found.clicks, written.iter().map(|row| row.sums.clicks).sum::<i64>());
}

#[test]
fn a_local_day_starts_at_local_midnight() {
    let zone = jiff::tz::TimeZone::get("Europe/Berlin").unwrap();
    let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_microsecond();
    let start = super::super::features::day_start;
    // 2024-03-31 had 23 hours in Berlin.
    assert_eq!(start(&zone, at("2024-03-31T22:00:00Z")), at("2024-03-30T23:00:00Z"));
    assert_eq!(start(&zone, at("2024-07-01T22:00:00Z")), at("2024-06-30T22:00:00Z"));
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(one.path(), &Run::new(3, 30, 20), small());
    write(two.path(), &Run::new(3, 30, 20), small());
    let (one, two) = (files(one.path()), files(two.path()));
    assert!(one.len() > 30);
    assert!(one == two);
}

#[test]
fn a_reopened_history_goes_on_after_its_last_tick() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(9, 30, 20);
    for piece in run.ticks.chunks(7) {
        let mut writer = open(folder.path(), &run, small()).unwrap();
        if let Some(last) = writer.last_tick() {
            let again = writer.events(last, &run.ticks[0].events);
            assert!(matches!(again, Err(HistoryError::TickOrder { .. })));
        }
        piece.iter().for_each(|input| hand_over(&mut writer, input).unwrap());
        writer.finish().unwrap();
    }
    assert_same(folder.path(), &run);
}

#[test]
fn another_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(1, 2, 2);
    write(folder.path(), &run, small());
    let view = || RegistryView::new(run.registry.clone());
    let other = HistoryMeta { config_toml: "x = 1\n".into(), ..meta() };
    let refused = HistoryWriter::open(folder.path(), other, view(), small());
    assert!(matches!(refused, Err(HistoryError::OtherRun { .. })));
    let other = HistoryMeta { windows: Vec::new(), ..meta() };
    let refused = HistoryWriter::open(folder.path(), other, view(), small());
    assert!(matches!(refused, Err(HistoryError::OtherRun { .. })));
    let refused = HistoryWriter::create(folder.path(), meta(), view(), small());
    assert!(matches!(refused, Err(HistoryError::Exists { .. })));
}

#[test]
fn rows_that_do_not_fit_are_refused_before_they_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(1, 2, 2);
    let mut writer = open(folder.path(), &run, small()).unwrap();
    let tenant = run.registry.lookup(&"acme".parse().unwrap()).unwrap();
    let mut event = Run::new(2, 5, 9).ticks.iter().find_map(|t| t.events.first().copied()).unwrap();
    event.creative = tenant;
    assert!(matches!(writer.events(START, &[event]), Err(HistoryError::Value { .. })));
    let sums = Stats { clicks: 1, ..Stats::ZERO };
    let row = PaneRow { entity: tenant, window: 3, window_end: 0, sums, tick: START };
    let batch = PaneBatch { rows: vec![row], features: Vec::new() };
    assert!(matches!(writer.panes(&batch), Err(HistoryError::Value { .. })));
    assert_eq!(writer.buffered_bytes(), 0);
    writer.events(START, &[]).unwrap();
    assert_eq!(writer.finish().unwrap().tables.len(), 0);
}

#[test]
fn a_scan_sees_a_range_of_event_times() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(11, 30, 20);
    write(folder.path(), &run, small());
    let all: Vec<i64> = run.ticks.iter().flat_map(|t| t.events.iter().map(|e| e.time)).collect();
    let midnight = 1_728_000_000_000_000;
    assert!(all.iter().any(|time| *time < midnight) && all.iter().any(|time| *time >= midnight));
    let reader = HistoryReader::open(folder.path()).unwrap();
    for (from, to) in [(i64::MIN, i64::MAX), (midnight, i64::MAX), (midnight - 7, midnight + 9_000)]
    {
        let scan = reader.scan_events(Arc::new(Registry::utc()), from, to);
        let mut found: Vec<i64> =
            scan.flat_map(|batch| batch.unwrap()).map(|(_, event)| event.time).collect();
        let mut wanted: Vec<i64> =
            all.iter().copied().filter(|time| (from..to).contains(time)).collect();
        found.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(found, wanted);
    }
}
