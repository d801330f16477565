//! Crashes, full disks and readers beside the writer.

use std::io;
use std::sync::atomic::{AtomicI64, Ordering};

use super::super::read::HistoryReader;
use super::*;
use crate::disk::{Disk, Output};

/// A disk with room for so many bytes.
struct SmallDisk(Arc<AtomicI64>);

struct SmallFile(fs::File, Arc<AtomicI64>);

impl Output for SmallFile {
    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        if self.1.fetch_sub(data.len() as i64, Ordering::SeqCst) < data.len() as i64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Output::write_all(&mut self.0, data)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

impl Disk for SmallDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        Ok(Box::new(SmallFile(fs::File::create(path)?, self.0.clone())))
    }
}

fn temporary_files(root: &Path) -> usize {
    files(root).keys().filter(|path| path.to_string_lossy().ends_with(".tmp")).count()
}

#[test]
fn a_full_disk_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(21, 40, 20);
    let room = Arc::new(AtomicI64::new(200_000));
    let view = RegistryView::new(run.registry.clone());
    let disk = Arc::new(SmallDisk(room.clone()));
    let opened = HistoryWriter::open_on(folder.path().into(), meta(), view, small(), disk);
    let mut writer = opened.unwrap();
    let mut refusals = 0;
    // Each call is repeated with the same rows until it is accepted, as the contract says.
    let mut insist = |call: &mut dyn FnMut() -> Result<(), HistoryError>| {
        while let Err(error) = call() {
            assert!(error.is_disk_full(), "{error}");
            let text = error.to_string();
            assert!(
                text.contains("free space") && (text.contains("table=") || text.contains(".json")),
                "{text}"
            );
            refusals += 1;
            room.store(200_000, Ordering::SeqCst);
        }
    };
    for input in &run.ticks {
        insist(&mut || writer.events(input.tick, &input.events));
        insist(&mut || writer.outcomes(input.tick, &input.controls));
        insist(&mut || writer.panes(&input.panes));
        insist(&mut || writer.decisions(&input.decisions));
        insist(&mut || writer.actions(&input.actions));
        insist(&mut || writer.dead_letters(&input.letters));
        insist(&mut || writer.tick(input.tick, &input.controls).map(|_| ()));
    }
    insist(&mut || writer.finish().map(|_| ()));
    assert!(refusals > 1, "the disk was never full");
    let reader = HistoryReader::open(folder.path()).unwrap();
    let verification = reader.verify(&mut |_| {}).unwrap();
    assert_eq!(verification.difference, None);
    assert_eq!(verification.ticks, run.ticks.len() as u64);
    let events = run.ticks.iter().map(|input| input.events.len() as u64).sum::<u64>();
    assert_eq!(reader.summary().tables[&super::super::Table::Events].rows, events);
    assert_eq!(temporary_files(folder.path()), 0);
}

#[test]
fn memory_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(22, 60, 30);
    let options = WriterOptions { commit_rows: 0, rows_per_file: usize::MAX, ..small() };
    let bound = options.buffered_bytes_max;
    let mut writer = open(folder.path(), &run, options).unwrap();
    for input in &run.ticks {
        hand_over(&mut writer, input).unwrap();
        // One call may exceed the bound by its own rows; none here has 32 KiB of them.
        assert!(writer.buffered_bytes() < bound + (32 << 10));
    }
    assert!(temporary_files(folder.path()) > 0, "the bound was never reached");
    writer.finish().unwrap();
    assert_eq!(writer.buffered_bytes(), 0);
}

#[test]
fn what_a_crash_leaves_is_removed_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(23, 30, 20);
    let options = WriterOptions { commit_rows: 0, ..small() };
    let mut writer = open(folder.path(), &run, options.clone()).unwrap();
    run.ticks[..10].iter().for_each(|input| hand_over(&mut writer, input).unwrap());
    writer.flush().unwrap();
    let committed = files(folder.path());
    run.ticks[10..20].iter().for_each(|input| hand_over(&mut writer, input).unwrap());
    assert!(temporary_files(folder.path()) > 0);
    // A crash: nothing runs any more, not even the destructor.
    writer.crash();
    // Worse: between renaming and listing.
    let orphan = folder.path().join("table=events/tenant=acme/date=2024-10-03");
    fs::write(orphan.join("part-0000000000001-0000000000002.parquet"), b"torn").unwrap();
    fs::write(folder.path().join("manifest.json.tmp"), b"{").unwrap();

    let mut writer = open(folder.path(), &run, options).unwrap();
    assert!(files(folder.path()) == committed);
    assert_eq!(writer.last_tick(), Some(run.ticks[9].tick));
    run.ticks[10..].iter().for_each(|input| hand_over(&mut writer, input).unwrap());
    writer.finish().unwrap();
    let verification = HistoryReader::open(folder.path()).unwrap().verify(&mut |_| {}).unwrap();
    assert_eq!((verification.difference, verification.ticks), (None, 30));
}

#[test]
fn a_reader_sees_complete_ticks_while_the_history_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(24, 40, 20);
    let mut writer = open(folder.path(), &run, small()).unwrap();
    let mut seen = 0;
    for input in &run.ticks {
        hand_over(&mut writer, input).unwrap();
        let reader = HistoryReader::open(folder.path()).unwrap();
        let verification = reader.verify(&mut |_| {}).unwrap();
        assert_eq!(verification.difference, None);
        assert!(verification.ticks >= seen && verification.ticks <= run.ticks.len() as u64);
        seen = verification.ticks;
    }
    assert!(seen > 0, "nothing was committed on the way");
}

#[test]
fn a_commit_waits_for_the_end_of_the_tick() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(25, 2, 50);
    let mut writer = open(folder.path(), &run, WriterOptions::default()).unwrap();
    let input = run.ticks.iter().find(|input| !input.events.is_empty()).unwrap();
    writer.events(input.tick, &input.events).unwrap();
    writer.flush().unwrap();
    assert!(HistoryReader::open(folder.path()).unwrap().manifest().parts.is_empty());
    assert!(matches!(writer.finish(), Err(HistoryError::OpenTick)));
    writer.tick(input.tick, &[]).unwrap();
    assert_eq!(writer.finish().unwrap().last_tick, Some(input.tick));
}
