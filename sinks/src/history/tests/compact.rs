//! Merging keeps the rows and their order, whatever happens meanwhile.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use proptest::prelude::*;

use super::super::compact::compact_on;
use super::super::manifest::MANIFEST_FILE;
use super::super::part::replace_file;
use super::super::read::HistoryReader;
use super::super::{BackgroundMerge, Compacted, Manifest, MergeStep, Merged, Part, Table, compact};
use super::round_trip::assert_same;
use super::*;
use crate::disk::{Disk, FileSystem, Output};

/// A machine that dies after so many operations on its disk.
struct Mortal(Arc<AtomicI64>);

impl Mortal {
    fn live(left: &Arc<AtomicI64>) -> io::Result<()> {
        match left.fetch_sub(1, Ordering::SeqCst) > 0 {
            true => Ok(()),
            false => Err(io::Error::other("dead")),
        }
    }
}

struct MortalFile(fs::File, Arc<AtomicI64>);

impl Output for MortalFile {
    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        if let Err(error) = Mortal::live(&self.1) {
            // Torn: some of it got there, if this is the moment of death.
            if self.1.load(Ordering::SeqCst) == -1 {
                Output::write_all(&mut self.0, &data[..data.len() / 2])?;
            }
            return Err(error);
        }
        Output::write_all(&mut self.0, data)
    }

    fn sync(&mut self) -> io::Result<()> {
        Mortal::live(&self.1)
    }
}

impl Disk for Mortal {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        Mortal::live(&self.0)?;
        Ok(Box::new(MortalFile(fs::File::create(path)?, self.0.clone())))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Mortal::live(&self.0)?;
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Mortal::live(&self.0)?;
        fs::remove_file(path)
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Mortal::live(&self.0)
    }
}

/// Parts of the size of a tick, merged into parts of up to 400 rows.
fn tiny() -> WriterOptions {
    WriterOptions { rows_per_file: 400, commit_rows: 0, durable: true, ..small() }
}

/// Writes a run with a commit after every tick.
fn write_in_small_parts(root: &Path, run: &Run) {
    let mut writer = open(root, run, WriterOptions { durable: false, ..tiny() }).unwrap();
    for input in &run.ticks {
        hand_over(&mut writer, input).unwrap();
        writer.flush().unwrap();
    }
}

fn manifest(root: &Path) -> Manifest {
    HistoryReader::open(root).unwrap().manifest().clone()
}

fn merged(root: &Path, options: &WriterOptions) -> Compacted {
    compact(root, options, &mut |_| {}).unwrap()
}

/// One merge, if one is worth it; false when there is none. The file stays when the machine dies.
fn merge_once(writer: &mut HistoryWriter) -> Result<bool, HistoryError> {
    let Some(job) = writer.plan_merge() else { return Ok(false) };
    let mut merged: Merged = job.run(&AtomicBool::new(false))?.unwrap();
    let adopted = writer.adopt(&mut merged);
    if adopted.is_err() {
        std::mem::forget(merged);
    }
    adopted.map(|()| true)
}

/// Names never mean two different files.
fn note_names(root: &Path, known: &mut BTreeMap<String, String>) {
    let Some(manifest) = Manifest::load(root).unwrap() else { return };
    for part in manifest.parts {
        let hash = known.entry(part.file.clone()).or_insert_with(|| part.blake3.clone());
        assert_eq!(*hash, part.blake3, "{} was used for another file", part.file);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn no_crash_loses_or_doubles_a_row(
        seed in any::<u64>(),
        lives in prop::collection::vec(1_i64..900, 1..10),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (root, run) = (folder.path(), Run::new(seed, 30, 3));
        let mut lives = lives.into_iter().chain(std::iter::repeat(i64::MAX));
        let mut names = BTreeMap::new();
        loop {
            let left = Arc::new(AtomicI64::new(lives.next().unwrap()));
            let disk = Arc::new(Mortal(left));
            let view = RegistryView::new(run.registry.clone());
            let opened = HistoryWriter::open_on(root.into(), meta(), view, tiny(), disk);
            let Ok(writer) = opened else { continue };
            let mut writer = writer.with_currencies(Box::new(currency));
            let from = run.ticks.iter().position(|i| writer.last_tick() < Some(i.tick));
            let from = from.unwrap_or(run.ticks.len());
            let mut live = || -> Result<(), HistoryError> {
                for input in &run.ticks[from..] {
                    hand_over(&mut writer, input)?;
                    writer.flush()?;
                    note_names(root, &mut names);
                    while merge_once(&mut writer)? {
                        note_names(root, &mut names);
                    }
                }
                writer.finish().map(|_| ())
            };
            match live() {
                Ok(()) => break,
                Err(_) => writer.crash(),
            }
        }
        assert_same(root, &run);
        prop_assert!(manifest(root).merges.is_some(), "nothing was merged");
        // The same for the command, which merges everything.
        let mut lives = (seed % 100..).step_by(150).map(|left| left as i64);
        loop {
            let disk = Arc::new(Mortal(Arc::new(AtomicI64::new(lives.next().unwrap()))));
            let done = compact_on(root.into(), &tiny(), disk, &mut |_| {});
            note_names(root, &mut names);
            assert_same(root, &run);
            if done.is_ok() {
                break;
            }
        }
        // Nothing is left but what is listed.
        drop(open(root, &run, tiny()).unwrap());
        let listed = manifest(root).parts.len();
        let on_disk = files(root).keys().filter(|f| f.to_string_lossy().contains("part-")).count();
        prop_assert_eq!(on_disk, listed);
    }
}

#[test]
fn a_merged_part_is_the_one_that_would_have_been_written_at_once() {
    let (whole, small) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = Run::new(31, 60, 30);
    let large = WriterOptions { rows_per_file: 1 << 20, buffered_bytes_max: 1 << 30, ..tiny() };
    write(whole.path(), &run, large.clone());
    write_in_small_parts(small.path(), &run);
    let parts = manifest(small.path()).parts.len();
    assert!(parts > 500, "{parts} parts");
    let done = merged(small.path(), &large);
    let files = |summary: &super::super::Summary| -> u64 {
        summary.tables.values().map(|table| table.files).sum()
    };
    assert_eq!(files(&done.before), parts as u64);
    let by_partition = |root: &Path| -> Vec<Part> {
        let mut parts = manifest(root).parts;
        parts.iter_mut().for_each(|part| part.file.truncate(part.file.rfind('/').unwrap()));
        parts.sort_by(|a, b| a.file.cmp(&b.file));
        parts
    };
    // Not only the rows: statistics, pages, row groups, every byte.
    assert_eq!(by_partition(small.path()), by_partition(whole.path()));
    assert_same(small.path(), &run);
    // A second time there is nothing to do.
    let again = merged(small.path(), &large);
    assert_eq!((again.merges, &again.after), (0, &done.after));
}

#[test]
fn replaced_files_stay_for_readers_and_then_go() {
    let folder = tempfile::tempdir().unwrap();
    let (root, run) = (folder.path(), Run::new(32, 30, 6));
    let mut writer = open(root, &run, tiny()).unwrap();
    for input in &run.ticks {
        hand_over(&mut writer, input).unwrap();
        writer.flush().unwrap();
    }
    let early = HistoryReader::open(root).unwrap();
    while merge_once(&mut writer).unwrap() {}
    assert!(manifest(root).parts.len() + 20 < early.manifest().parts.len());
    // The old list can still be read in full, the new one as well.
    assert_eq!(early.verify(&mut |_| {}).unwrap().difference, None);
    assert_same(root, &run);
    // An hour of ticks later, at a commit, the files are gone; who reads them is told why.
    writer.tick(run.ticks.last().unwrap().tick + 3_600_000, &[]).unwrap();
    writer.flush().unwrap();
    let listed = manifest(root).parts.len();
    let on_disk = files(root).keys().filter(|f| f.to_string_lossy().contains("part-")).count();
    assert_eq!(on_disk, listed);
    let error = early.verify(&mut |_| {}).unwrap_err();
    assert!(matches!(error, HistoryError::Replaced { .. }), "{error}");
    let error = early.replay(Arc::new(Registry::utc())).find_map(Result::err).unwrap();
    assert!(matches!(error, HistoryError::Replaced { .. }), "{error}");
}

#[test]
fn one_process_writes() {
    let folder = tempfile::tempdir().unwrap();
    let (root, run) = (folder.path(), Run::new(33, 3, 5));
    let writer = open(root, &run, tiny()).unwrap();
    let locked = |error: HistoryError| matches!(error, HistoryError::Locked { .. });
    assert!(locked(open(root, &run, tiny()).err().unwrap()));
    assert!(locked(compact(root, &tiny(), &mut |_| {}).unwrap_err()));
    drop(writer);
    assert_eq!(merged(root, &tiny()).merges, 0);
    // A wrong path is named, and nothing is made of it.
    let nowhere = root.join("nowhere");
    let error = compact(&nowhere, &tiny(), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("holds no history"), "{error}");
    assert!(!nowhere.exists());
}

#[test]
fn merging_goes_on_beside_the_writer() {
    let folder = tempfile::tempdir().unwrap();
    let (root, run) = (folder.path(), Run::new(34, 40, 6));
    let mut writer = open(root, &run, tiny()).unwrap();
    let mut merge = BackgroundMerge::default();
    let (mut replaced, mut adopted) = (0, 0);
    let mut note = |step: MergeStep| {
        if let MergeStep::Adopted { parts, .. } = step {
            replaced += parts;
            adopted += 1;
        }
    };
    for input in &run.ticks {
        hand_over(&mut writer, input).unwrap();
        writer.flush().unwrap();
        note(merge.step(&mut writer).unwrap());
    }
    loop {
        match merge.step(&mut writer).unwrap() {
            MergeStep::Nothing if !merge.is_busy() => break,
            step => note(step),
        }
        std::thread::yield_now();
    }
    assert!(adopted > 3 && replaced >= 8 * adopted, "{adopted} merges of {replaced} parts");
    drop((merge, writer));
    assert_same(root, &run);
}

#[test]
fn damage_is_not_merged_away() {
    let folder = tempfile::tempdir().unwrap();
    let (root, run) = (folder.path(), Run::new(35, 30, 6));
    write_in_small_parts(root, &run);
    let mut writer = open(root, &run, tiny()).unwrap();
    let job = writer.plan_merge().unwrap();
    let before = manifest(root);
    let table = job.table();
    let victim = before.parts.iter().find(|part| part.table == table).unwrap();
    let mut bytes = fs::read(root.join(&victim.file)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(root.join(&victim.file), bytes).unwrap();
    // The run may not hold that part: damage every part of the table.
    for part in before.parts.iter().filter(|part| part.table == table && part.file != victim.file) {
        let mut bytes = fs::read(root.join(&part.file)).unwrap();
        bytes.push(0);
        fs::write(root.join(&part.file), bytes).unwrap();
    }
    let error = job.run(&AtomicBool::new(false)).err().unwrap();
    assert!(matches!(error, HistoryError::Difference(_)), "{error}");
    // In the background: said once, then left alone.
    let mut merge = BackgroundMerge::default();
    assert_eq!(merge.step(&mut writer).unwrap(), MergeStep::Started);
    let error = loop {
        match merge.step(&mut writer) {
            Ok(_) => std::thread::yield_now(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, HistoryError::Difference(_)), "{error}");
    assert_eq!(merge.step(&mut writer).unwrap(), MergeStep::Nothing);
    assert!(!merge.is_busy());
    assert_eq!(manifest(root), before);
    let temporary = files(root).keys().filter(|f| f.to_string_lossy().ends_with(".tmp")).count();
    assert_eq!(temporary, 0);
}

/// Changes the list of parts behind the back of everybody, with a seal that fits.
fn forge(root: &Path, change: impl FnOnce(&mut Manifest)) {
    let mut manifest = manifest(root);
    change(&mut manifest);
    let bytes = manifest.to_bytes().unwrap();
    replace_file(&FileSystem, &root.join(MANIFEST_FILE), &bytes, false).unwrap();
}

#[test]
fn verification_checks_what_merging_promises() {
    let folder = tempfile::tempdir().unwrap();
    let (root, run) = (folder.path(), Run::new(36, 30, 6));
    write_in_small_parts(root, &run);
    merged(root, &WriterOptions { rows_per_file: 30, ..tiny() });
    let sound = manifest(root);
    assert!(sound.merges.is_some());
    let difference = |change: &dyn Fn(&mut Manifest)| {
        forge(root, |manifest| {
            *manifest = sound.clone();
            change(manifest);
        });
        let verified = HistoryReader::open(root).unwrap().verify(&mut |_| {});
        verified.unwrap().difference.map(|found| found.what).unwrap_or_default()
    };
    assert_eq!(difference(&|_| {}), "");
    let of = |manifest: &Manifest, table| {
        manifest.parts.iter().position(|part| part.table == table).unwrap()
    };
    // Rows of a table that no tick counts.
    let lost = difference(&|m| drop(m.parts.remove(of(m, Table::Features))));
    assert!(lost.contains("were written"), "{lost}");
    let doubled = difference(&|m| m.parts.push(m.parts[of(m, Table::Actions)].clone()));
    assert!(doubled.contains("listed twice"), "{doubled}");
    let moved = difference(&|m| {
        let at = of(m, Table::Outcomes);
        m.parts[at].last_tick += 1;
    });
    assert!(moved.contains("does not fit"), "{moved}");
    let swapped = difference(&|m| {
        // Two neighbours of a partition, the last of which begins after the first.
        let events = |part: &&Part| part.table == Table::Events;
        let pair = m.parts.iter().filter(events).find_map(|part| {
            let at = |p: &Part| p.partition() == part.partition() && p.first_tick > part.last_tick;
            Some((part.file.clone(), m.parts.iter().position(at)?))
        });
        let (file, last) = pair.unwrap();
        let first = m.parts.iter().position(|part| part.file == file).unwrap();
        m.parts.swap(first, last);
    });
    assert!(swapped.contains("overlap"), "{swapped}");
}
