//! Rotation, retention, and what `inspect` and `dump` say.

use std::fs;

use super::*;

/// A journal of twelve segments, one tick a commit, closed.
fn twelve_segments() -> (tempfile::TempDir, Arc<Registry>, Vec<TickEntry>, JournalWriter) {
    let (dir, registry) = (tempfile::tempdir().unwrap(), known());
    let (mut writer, _) = open(dir.path(), &registry, &JournalOptions::default());
    let mut entries = Vec::new();
    for tick in 1..=24_u64 {
        if tick % 2 == 1 {
            writer.rotate();
        }
        entries.push(entry(&registry, tick * 100, tick * 7_919));
        writer.append(&entries[entries.len() - 1]).unwrap();
        writer.commit().unwrap();
    }
    assert_eq!(files(dir.path()).len(), 12);
    (dir, registry, entries, writer)
}

fn disk_bytes(dir: &Path) -> u64 {
    files(dir).iter().map(|file| file.metadata().unwrap().len()).sum()
}

#[test]
fn segments_turn_over_by_size_and_by_request() {
    let (dir, registry, entries, mut writer) = twelve_segments();
    assert_eq!(writer.bytes(), disk_bytes(dir.path()));
    // Asking twice, or with nothing to write, begins nothing.
    writer.rotate();
    writer.rotate();
    assert_eq!(writer.commit().unwrap(), Some(2_400));
    assert_eq!(files(dir.path()).len(), 12);
    drop(writer);
    let (mut writer, opened) = open(dir.path(), &registry, &small());
    assert_eq!((opened.segments, opened.last_tick), (12, Some(2_400)));
    assert_eq!(writer.bytes(), disk_bytes(dir.path()));
    for tick in 25..=60_u64 {
        writer.append(&entry(&registry, tick * 100, tick * 7_919)).unwrap();
        writer.commit().unwrap();
    }
    let all = files(dir.path());
    assert!(all.len() > 14, "{all:?}");
    // One commit beyond the limit at most.
    assert!(all.iter().all(|file| file.metadata().unwrap().len() < 600 + 3_000));
    assert_eq!(read(dir.path(), &registry, None).unwrap()[..24], entries);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_needed_stays(
        keep_from in 0_u64..3_000,
        bytes_max in 0_u64..9_000,
        age_ms_max in 0_u64..4_000,
        reopened in any::<bool>(),
    ) {
        let (dir, registry, entries, mut writer) = twelve_segments();
        if reopened {
            drop(writer);
            writer = open(dir.path(), &registry, &small()).0;
        }
        let before = files(dir.path());
        let retention = Retention { keep_from, bytes_max, age_ms_max };
        let removed = writer.retain(&retention, 2_400).unwrap();
        prop_assert_eq!(writer.bytes(), disk_bytes(dir.path()));
        let left = files(dir.path());
        prop_assert_eq!(left.len() + removed.segments.len(), before.len());
        prop_assert_eq!(&before[removed.segments.len()..], &left[..], "oldest first, no gaps");
        // Everything needed is there, and a gap at the start of a tail is refused.
        let needed: Vec<_> = entries.iter().filter(|e| e.tick >= keep_from).cloned().collect();
        let tail = read(dir.path(), &registry, Some(keep_from.saturating_sub(1))).unwrap();
        prop_assert_eq!(&tail[tail.len() - needed.len()..], &needed[..]);
        if removed.before_tick > 0 {
            prop_assert!(removed.before_tick <= keep_from);
            prop_assert!(read(dir.path(), &registry, Some(0)).is_err());
        }
        // It stopped because it was within both limits, or because it may not go on.
        let next = segments(dir.path()).unwrap().get(1).map_or(Tick::MAX, |(tick, _)| *tick);
        let within = writer.bytes() <= bytes_max && 2_400_u64.saturating_sub(next) <= age_ms_max;
        prop_assert!(within || next > keep_from || left.len() == 1);
        // The last tick is known after any retention.
        drop(writer);
        let (_, opened) = open(dir.path(), &registry, &small());
        prop_assert_eq!(opened.last_tick, Some(2_400));
    }
}

#[test]
fn inspect_tells_what_is_there_and_what_is_wrong() {
    let (dir, registry, entries, writer) = twelve_segments();
    drop(writer);
    let (mut writer, _) = open(dir.path(), &registry, &JournalOptions::default());
    let start = StartRecord { version: "9".to_owned(), wall_tick: 7, ..StartRecord::default() };
    writer.started(start.clone());
    writer.append(&entry(&registry, 2_500, 6)).unwrap();
    writer.commit().unwrap();
    let whole = inspect(dir.path(), 0, Tick::MAX).unwrap();
    assert_eq!((whole.segments.len(), whole.ticks, whole.damaged), (13, 25, 0));
    assert_eq!(whole.bytes, disk_bytes(dir.path()));
    let count = |entry: &TickEntry| entry.events.len() as u64;
    assert_eq!(
        whole.events,
        entries.iter().map(count).sum::<u64>() + count(&entry(&registry, 2_500, 6))
    );
    assert_eq!(whole.segments[12].starts, [start]);
    let second = &whole.segments[1];
    assert_eq!((second.first_tick, second.last_tick), (Some(300), Some(400)));
    assert_eq!((second.frames, second.ticks, second.torn_bytes), (2, 2, 0));
    let marked = entries[2..4].iter().filter(|entry| entry.mark_snapshot);
    assert_eq!(second.snapshots, marked.map(|entry| entry.tick).collect::<Vec<_>>());
    let part = inspect(dir.path(), 350, 500).unwrap();
    assert_eq!(part.segments.len(), 2);
    // Damage in one does not hide the others.
    let path = &files(dir.path())[3];
    let sound = fs::read(path).unwrap();
    for at in [30, sound.len() - 1] {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        fs::write(path, &bytes).unwrap();
        let damaged = inspect(dir.path(), 0, Tick::MAX).unwrap();
        assert_eq!((damaged.segments.len(), damaged.damaged), (13, 1));
        assert!(damaged.segments[3].damage.as_ref().unwrap().contains("is damaged at byte"));
    }
}

#[test]
fn a_dump_names_entities() {
    let (dir, registry, entries, _writer) = twelve_segments();
    let mut out = Vec::new();
    assert_eq!(dump(dir.path(), 300, 700, &mut out).unwrap(), 5);
    let lines: Vec<serde_json::Value> = String::from_utf8(out)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut view = RegistryView::new(registry);
    for (line, entry) in lines.iter().zip(&entries[2..7]) {
        assert_eq!(line["tick"], entry.tick);
        let names = line["events"].as_array().unwrap().iter().map(|event| event["entity"].clone());
        let expected = entry.events.iter().map(|e| view.info(e.creative).key.as_str().to_owned());
        assert_eq!(
            names.collect::<Vec<_>>(),
            expected.map(serde_json::Value::from).collect::<Vec<_>>()
        );
    }
}
