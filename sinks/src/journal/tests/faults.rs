//! A disk that fails at every step, against a model: nothing lost, nothing doubled.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::sync::Mutex;

use super::*;

/// What the disk does wrong, once each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Writes only this part (of 256) and says that it is full.
    Full(u8),
    /// Does not make durable what was written, and drops it at the next crash.
    Sync,
    Cut,
    Create,
    Rename,
    Folder,
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    /// The file behind each name.
    files: HashMap<PathBuf, usize>,
    /// Every file ever created.
    pages: Vec<Pages>,
}

/// What is on the disk of a file.
#[derive(Clone, Copy, Default)]
struct Pages {
    /// Bytes that a crash leaves.
    durable: u64,
    /// Where pages were dropped: nothing beyond becomes durable any more.
    dropped: Option<u64>,
}

#[derive(Clone, Default)]
struct Faulty(Arc<Mutex<State>>);

impl Faulty {
    fn take(&self, wanted: impl Fn(Fault) -> bool) -> Option<Fault> {
        let faults = &mut self.0.lock().unwrap().faults;
        let at = faults.iter().position(|fault| wanted(*fault))?;
        Some(faults.remove(at))
    }

    fn fail(&self, fault: Fault) -> io::Result<()> {
        match self.take(|f| f == fault) {
            Some(_) => Err(io::Error::other(format!("{fault:?}"))),
            None => Ok(()),
        }
    }

    /// Loses what is not durable, but for `part` of 256 of it.
    fn crash(&self, dir: &Path, part: u8) {
        let mut state = self.0.lock().unwrap();
        state.faults.clear();
        for path in files(dir) {
            let at = state.files[&path];
            let pages = &mut state.pages[at];
            let length = path.metadata().unwrap().len();
            let durable = pages.durable.min(length);
            let most = pages.dropped.unwrap_or(length).min(length);
            let left = durable + most.saturating_sub(durable) * u64::from(part) / 256;
            fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(left).unwrap();
            *pages = Pages { durable: left, dropped: None };
        }
    }
}

struct FaultyFile {
    disk: Faulty,
    file: usize,
    inner: Box<dyn Output>,
    length: u64,
}

impl Output for FaultyFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(Fault::Full(part)) = self.disk.take(|fault| matches!(fault, Fault::Full(_))) {
            let part = bytes.len() * usize::from(part) / 256;
            self.inner.write_all(&bytes[..part])?;
            self.length += part as u64;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.length += bytes.len() as u64;
        self.inner.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        let failed = self.disk.fail(Fault::Sync);
        let pages = &mut self.disk.0.lock().unwrap().pages[self.file];
        if failed.is_err() {
            pages.dropped.get_or_insert(pages.durable);
            return failed;
        }
        pages.durable = self.length.min(pages.dropped.unwrap_or(u64::MAX));
        Ok(())
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.disk.fail(Fault::Cut)?;
        self.length = length;
        self.inner.cut(length)
    }
}

impl Disk for Faulty {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        self.fail(Fault::Create)?;
        let inner = Quick.create(path)?;
        let mut state = self.0.lock().unwrap();
        let file = state.pages.len();
        state.pages.push(Pages::default());
        state.files.insert(path.to_owned(), file);
        Ok(Box::new(FaultyFile { disk: self.clone(), file, inner, length: 0 }))
    }

    fn open_at(&self, path: &Path, length: u64) -> io::Result<Box<dyn Output>> {
        let inner = Quick.open_at(path, length)?;
        let file = self.0.lock().unwrap().files[path];
        Ok(Box::new(FaultyFile { disk: self.clone(), file, inner, length }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.fail(Fault::Rename)?;
        Quick.rename(from, to)?;
        let files = &mut self.0.lock().unwrap().files;
        let file = files.remove(from).unwrap();
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Quick.remove(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.fail(Fault::Folder)?;
        Quick.sync_folder(path)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(u64),
    Commit,
    Rotate,
    Fault(Fault),
    Crash(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fault = prop_oneof![
        any::<u8>().prop_map(Fault::Full),
        Just(Fault::Sync),
        Just(Fault::Sync),
        Just(Fault::Cut),
        Just(Fault::Create),
        Just(Fault::Rename),
        Just(Fault::Folder),
    ];
    let step = prop_oneof![
        6 => any::<u64>().prop_map(Step::Append),
        5 => Just(Step::Commit),
        1 => Just(Step::Rotate),
        3 => fault.prop_map(Step::Fault),
        1 => any::<u8>().prop_map(Step::Crash),
    ];
    prop::collection::vec(step, 1..60)
}

/// The journal, and what must be in it.
struct Model {
    dir: tempfile::TempDir,
    registry: Arc<Registry>,
    disk: Faulty,
    writer: Option<JournalWriter>,
    /// Every tick appended since the last opening, behind what was found then.
    appended: Vec<TickEntry>,
    committed: usize,
}

impl Model {
    fn open(&mut self) -> Opened {
        self.writer = None;
        let view = RegistryView::new(self.registry.clone());
        let disk = Arc::new(self.disk.clone());
        let (writer, opened) =
            JournalWriter::open_on(disk, self.dir.path(), small(), view).unwrap();
        self.writer = Some(writer);
        opened
    }

    /// After a crash: everything committed, perhaps more, nothing else.
    fn recover(&mut self) {
        let opened = self.open();
        let found = read(self.dir.path(), &self.registry, None).unwrap();
        assert!(found.len() >= self.committed, "{} of {} committed", found.len(), self.committed);
        assert_eq!(found, self.appended[..found.len()]);
        assert_eq!(opened.last_tick, found.last().map(|entry| entry.tick));
        self.committed = found.len();
        self.appended = found;
    }

    fn step(&mut self, step: &Step) {
        let writer = self.writer.as_mut().unwrap();
        match step {
            Step::Append(seed) => {
                let tick = self.appended.last().map_or(0, |entry| entry.tick) + 1 + seed % 5;
                let entry = entry(&self.registry, tick, *seed);
                writer.append(&entry).unwrap();
                self.appended.push(entry);
            }
            Step::Commit => match writer.commit() {
                Ok(tick) => {
                    assert_eq!(tick, self.appended.last().map(|entry| entry.tick));
                    self.committed = self.appended.len();
                }
                Err(error) => assert!(matches!(error, JournalError::Io { .. }), "{error}"),
            },
            Step::Rotate => writer.rotate(),
            Step::Fault(fault) => self.disk.0.lock().unwrap().faults.push(*fault),
            Step::Crash(part) => {
                self.writer = None;
                self.disk.crash(self.dir.path(), *part);
                self.recover();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_fault_loses_or_doubles_anything(steps in steps(), frame_bytes in 1_usize..600) {
        let mut model = Model {
            dir: tempfile::tempdir().unwrap(),
            registry: known(),
            disk: Faulty::default(),
            writer: None,
            appended: Vec::new(),
            committed: 0,
        };
        model.open();
        for step in &steps {
            model.writer.as_mut().unwrap().frame_bytes = frame_bytes;
            model.step(step);
        }
        // Once the disk is well again, everything gets through.
        model.disk.0.lock().unwrap().faults.clear();
        model.step(&Step::Commit);
        prop_assert_eq!(model.committed, model.appended.len());
        let read = read(model.dir.path(), &model.registry, None).unwrap();
        prop_assert_eq!(&read, &model.appended);
        model.step(&Step::Crash(0));
        prop_assert_eq!(model.committed, read.len());
    }
}

#[test]
fn a_full_disk_says_so_and_a_failed_sync_moves_to_a_new_segment() {
    let mut model = Model {
        dir: tempfile::tempdir().unwrap(),
        registry: known(),
        disk: Faulty::default(),
        writer: None,
        appended: Vec::new(),
        committed: 0,
    };
    model.open();
    model.step(&Step::Append(3));
    model.step(&Step::Commit);
    model.step(&Step::Append(4));
    model.step(&Step::Fault(Fault::Full(200)));
    let error = model.writer.as_mut().unwrap().commit().unwrap_err();
    assert!(error.is_disk_full() && error.to_string().contains("free space"), "{error}");
    model.step(&Step::Commit);
    assert_eq!((model.committed, files(model.dir.path()).len()), (2, 1));
    model.step(&Step::Append(5));
    model.step(&Step::Fault(Fault::Sync));
    model.step(&Step::Commit);
    assert_eq!(model.committed, 2);
    model.step(&Step::Commit);
    assert_eq!((model.committed, files(model.dir.path()).len()), (3, 2));
    model.step(&Step::Crash(0));
    assert_eq!(model.committed, 3);
}
