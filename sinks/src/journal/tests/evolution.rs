//! Old segments stay readable, and what a later version added is never ignored.

use std::fs;

use super::columns::{Column, Columns};
use super::decode::{Names, decode};
use super::*;

/// A segment written by the first version, and what it holds.
const FIRST_VERSION: &[u8] = include_bytes!("v1.omj");
const FIRST_VERSION_HOLDS: &str = include_str!("v1.jsonl");
const FIRST_TICK: Tick = 1_700_000_000_001;

#[test]
fn a_segment_of_the_first_version_reads_as_it_did() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(segment::path(dir.path(), FIRST_TICK), FIRST_VERSION).unwrap();
    let mut held = Vec::new();
    dump(dir.path(), 0, Tick::MAX, &mut held).unwrap();
    assert_eq!(String::from_utf8(held).unwrap(), FIRST_VERSION_HOLDS);
    assert_eq!(FIRST_VERSION_HOLDS.lines().count(), 24);
    // A writer goes on behind it.
    let known = known();
    let (mut writer, opened) = open(dir.path(), &known, &small());
    assert_eq!(opened.last_start.as_ref().unwrap().version, "0.1.0");
    let next = entry(&known, opened.last_tick.unwrap() + 1, 9);
    writer.append(&next).unwrap();
    writer.commit().unwrap();
    assert_eq!(read(dir.path(), &known, opened.last_tick).unwrap(), [next]);
}

/// Writes the fixture; only for a new format, whose fixture goes beside the old one.
#[test]
#[ignore = "writes the fixture"]
fn write_fixture() {
    let dir = tempfile::tempdir().unwrap();
    let known = known();
    let (mut writer, _) = open(dir.path(), &known, &JournalOptions::default());
    let config_blake3 = blake3::hash(b"config").to_hex().to_string();
    let version = "0.1.0".to_owned();
    writer.started(StartRecord {
        version,
        config_blake3,
        wall_tick: FIRST_TICK,
        ..StartRecord::default()
    });
    for group in some_groups(&known, 12) {
        group.iter().for_each(|entry| writer.append(entry).unwrap());
        writer.commit().unwrap();
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/journal/tests");
    fs::copy(files(dir.path()).pop().unwrap(), folder.join("v1.omj")).unwrap();
    let mut held = Vec::new();
    dump(dir.path(), 0, Tick::MAX, &mut held).unwrap();
    fs::write(folder.join("v1.jsonl"), held).unwrap();
}

fn payload(fill: impl FnOnce(&mut Columns)) -> Vec<u8> {
    let (mut columns, mut payload) = (Columns::default(), Vec::new());
    fill(&mut columns);
    columns.write(&mut payload);
    payload
}

#[test]
fn a_column_that_is_not_there_reads_as_its_default() {
    // What a version would have written that knew ticks and nothing else.
    let oldest = payload(|columns| {
        columns.put_row(Column::Tick, 5);
        columns.put_row(Column::Tick, 2);
    });
    let content = decode(&oldest, &mut Names::default(), &registry([]), None).unwrap();
    let expected = [5, 7].map(|tick| TickEntry { tick, ..TickEntry::default() });
    assert_eq!(content.ticks, expected);
}

#[test]
fn a_column_of_a_later_version_is_refused() {
    let mut later = payload(|columns| columns.put_row(Column::Tick, 5));
    later.extend([200, 0, 1, 7]);
    let error = decode(&later, &mut Names::default(), &registry([]), None).unwrap_err();
    assert!(error.to_string().contains("column 200 is not known"), "{error}");
}

#[test]
fn a_later_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = FIRST_VERSION.to_vec();
    bytes[8] = 2;
    let end = 16 + u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let check = xxhash_rust::xxh3::xxh3_64(&bytes[..end]);
    bytes[end..end + 8].copy_from_slice(&check.to_le_bytes());
    fs::write(segment::path(dir.path(), FIRST_TICK), bytes).unwrap();
    let error = JournalReader::open(dir.path()).unwrap_err();
    assert!(matches!(&error, JournalError::Newer { what, .. } if what.contains('2')), "{error}");
}
