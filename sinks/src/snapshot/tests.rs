//! Crash at every stage, every damage, and what is kept.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use super::*;

fn manifest(tick: u64) -> Manifest {
    Manifest {
        version: 3,
        tick,
        config_toml: "[engine]\n".to_owned(),
        spec_json: serde_json::json!({"windows": ["1h/1m"]}),
        meta: serde_json::json!({"third": 1.0 / 3.0, "big": u64::MAX, "z": null}),
    }
}

fn content(tick: u64) -> Vec<u8> {
    (0..20_000_u64).flat_map(|n| (n / 3 + tick).to_le_bytes()).collect()
}

fn begin(root: &Path, tick: u64) -> Result<SnapshotWriter, SnapshotError> {
    SnapshotWriter::begin(&SnapshotStore::open(root)?, tick)
}

fn write(root: &Path, tick: u64) -> Committed {
    let mut writer = begin(root, tick).unwrap();
    writer.chunk("state", &content(tick)).unwrap();
    let mut stream = writer.stream("registry-0.v1").unwrap();
    for part in content(tick + 1).chunks(1_000) {
        stream.write_all(part).unwrap();
    }
    stream.finish().unwrap();
    writer.chunk("empty", &[]).unwrap();
    writer.commit(manifest(tick)).unwrap()
}

#[test]
fn what_was_written_is_read() {
    let root = tempfile::tempdir().unwrap();
    let committed = write(root.path(), 7);
    assert_eq!((committed.tick, committed.chunks), (7, 3));
    assert!(committed.bytes < 160_000, "{committed:?}");
    let store = SnapshotStore::open(root.path()).unwrap();
    let newest = store.newest_valid().unwrap();
    assert!(newest.damaged.is_empty());
    let snapshot = newest.snapshot.unwrap();
    assert_eq!(snapshot.manifest(), &manifest(7));
    assert_eq!(snapshot.chunk("state").unwrap(), content(7));
    let mut streamed = Vec::new();
    snapshot.reader("registry-0.v1").unwrap().read_to_end(&mut streamed).unwrap();
    assert_eq!(streamed, content(8));
    assert!(snapshot.chunk("empty").unwrap().is_empty());
    assert!(matches!(snapshot.chunk("none"), Err(SnapshotError::Chunk { .. })));
    assert!(matches!(begin(root.path(), 7), Err(SnapshotError::Exists { tick: 7 })));
    let mut writer = begin(root.path(), 8).unwrap();
    assert!(writer.chunk("../evil", &[]).is_err());
    writer.chunk("a", &[]).unwrap();
    assert!(writer.chunk("a", &[]).is_err());
}

#[test]
fn what_was_not_committed_never_was() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), 1);
    let mut writer = begin(root.path(), 2).unwrap();
    writer.chunk("state", &content(2)).unwrap();
    drop(writer);
    let dir = root.path().join(format!("{:020}", 2));
    fs::write(dir.join("manifest.json.tmp"), "{").unwrap();
    let store = SnapshotStore::open(root.path()).unwrap();
    assert_eq!(store.list().unwrap(), [1]);
    assert!(!dir.exists());
    write(root.path(), 2);
    assert_eq!(store.list().unwrap(), [1, 2]);
}

#[test]
fn every_flipped_or_missing_byte_is_found_and_the_one_before_serves() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), 1);
    write(root.path(), 2);
    let store = SnapshotStore::open(root.path()).unwrap();
    let dir = root.path().join(format!("{:020}", 2));
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let whole = fs::read(&path).unwrap();
        let step = whole.len().div_ceil(60).max(1);
        for at in (0..whole.len()).step_by(step) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            for broken in [&flipped[..], &whole[..at]] {
                fs::write(&path, broken).unwrap();
                let newest = store.newest_valid().unwrap();
                // White space of the manifest means nothing.
                let same =
                    store.get(2).is_ok_and(|s| s.manifest() == &manifest(2) && s.verify().is_ok());
                if !same {
                    assert_eq!(newest.snapshot.unwrap().manifest().tick, 1, "{path:?} {at}");
                    assert_eq!(newest.damaged.len(), 1);
                    assert_eq!(newest.damaged[0].tick, 2);
                    let name = path.file_name().unwrap().to_str().unwrap();
                    assert!(newest.damaged[0].reason.contains(name), "{:?}", newest.damaged);
                } else {
                    assert!(path.ends_with(MANIFEST_FILE), "{path:?} {at}");
                }
            }
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(store.newest_valid().unwrap().snapshot.unwrap().manifest().tick, 1);
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(store.newest_valid().unwrap().snapshot.unwrap().manifest().tick, 2);
}

#[test]
fn a_later_format_is_not_misread() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), 1);
    let path = root.path().join(format!("{:020}", 1)).join(MANIFEST_FILE);
    let text = fs::read_to_string(&path).unwrap().replace("\"format\": 1", "\"format\": 2");
    fs::write(&path, text).unwrap();
    let store = SnapshotStore::open(root.path()).unwrap();
    assert!(matches!(store.get(1), Err(SnapshotError::Newer { format: 2, .. })));
}

#[test]
fn two_intact_ones_are_always_kept() {
    let root = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(root.path()).unwrap();
    assert_eq!(store.keep(0, None).unwrap(), Pruned::default());
    for tick in 1..=5 {
        write(root.path(), tick);
    }
    assert_eq!(store.keep(4, None).unwrap(), Pruned { removed: vec![1], oldest_kept: Some(2) });
    // The newest loses a file: two intact ones stay beside it.
    fs::remove_file(root.path().join(format!("{:020}", 5)).join("state.bin")).unwrap();
    assert_eq!(store.keep(1, None).unwrap(), Pruned { removed: vec![2], oldest_kept: Some(3) });
    assert_eq!(store.list().unwrap(), [3, 4, 5]);
}

#[test]
fn an_unchanged_chunk_is_shared_and_outlives_its_first_snapshot() {
    let root = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(root.path()).unwrap();
    write(root.path(), 1);
    for tick in 2..=3 {
        let mut writer = begin(root.path(), tick).unwrap();
        writer.reuse("state", &store.get(tick - 1).unwrap()).unwrap();
        writer.commit(manifest(tick)).unwrap();
    }
    assert_eq!(store.keep(2, None).unwrap().removed, [1]);
    let snapshot = store.newest_valid().unwrap().snapshot.unwrap();
    assert_eq!(snapshot.chunk("state").unwrap(), content(1));
}
