//! A disk that forgets, tears, fills up and fails, over files in a folder.
//!
//! Everything goes to real files, so readers see what the system's cache would show. What is durable
//! is kept in mind: of a file the bytes up to its last sync, of a folder the names up to its last
//! sync. A process that dies leaves the cache as it is; when the power goes, what was not synced is
//! gone in part or as a whole, and what is left of a file may be zeros.
//!
//! The process may be made to die at any operation: it has half of its effect, and from there on
//! every operation fails until the next life.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use omnify_sinks::disk::{Disk, Output};
use rand::Rng as _;

use super::Random;

/// Refusals for want of room that an engine survives: it asks again for a minute.
const PATIENCE: u32 = 50;

/// What ended a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// The process alone: what it wrote is in the system's cache.
    Killed,
    /// The machine.
    PowerLoss,
}

/// See the module. Clones share the disk.
#[derive(Clone)]
pub(super) struct FaultyDisk(Arc<Mutex<State>>);

struct State {
    random: Random,
    /// The file behind each name.
    names: BTreeMap<PathBuf, usize>,
    /// Bytes of each file that a power loss leaves.
    durable: Vec<u64>,
    /// Changes of names that are not durable yet, oldest first.
    changes: Vec<Change>,
    /// Operations until the process dies.
    dies_in: Option<u64>,
    dead: bool,
    /// Bytes until the disk is full and how often it refuses then, while it is about to be.
    room: Option<(u64, u32)>,
    /// Syncs that are about to fail.
    bad_syncs: u32,
    /// Writes that are about to fail half way.
    bad_writes: u32,
    /// Something was refused in this life.
    refused: bool,
    /// More was refused than an engine has to put up with.
    broken: bool,
    operations: u64,
}

/// A change of a folder, with what undoes it.
struct Change {
    folder: PathBuf,
    undo: Undo,
}

enum Undo {
    Created(PathBuf),
    Renamed { from: PathBuf, to: PathBuf, replaced: Option<Kept> },
    Removed(Kept),
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Undo::Created(path) => write!(f, "created {}", path.display()),
            Undo::Renamed { from, to, .. } => {
                write!(f, "renamed {} to {}", from.display(), to.display())
            }
            Undo::Removed(kept) => write!(f, "removed {}", kept.path.display()),
        }
    }
}

/// A file that lost its name.
struct Kept {
    path: PathBuf,
    file: usize,
    bytes: Vec<u8>,
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

impl FaultyDisk {
    pub(super) fn new(random: Random) -> FaultyDisk {
        FaultyDisk(Arc::new(Mutex::new(State {
            random,
            names: BTreeMap::new(),
            durable: Vec::new(),
            changes: Vec::new(),
            dies_in: None,
            dead: false,
            room: None,
            bad_syncs: 0,
            bad_writes: 0,
            refused: false,
            broken: false,
            operations: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process dies at the `operations`th operation from now.
    pub(super) fn die_in(&self, operations: u64) {
        self.lock().dies_in = Some(operations);
    }

    /// Whether the process has died.
    pub(super) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Whether something was refused in this life: nobody can start then.
    pub(super) fn has_refused(&self) -> bool {
        self.lock().refused
    }

    /// Whether more was refused than a running engine has to put up with: it may end.
    pub(super) fn is_broken(&self) -> bool {
        self.lock().broken
    }

    /// Operations so far.
    pub(super) fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// There is room for `bytes` more; then it refuses `times` before somebody makes room.
    pub(super) fn fill(&self, bytes: u64, times: u32) {
        self.lock().room = Some((bytes, times));
    }

    /// The process dies now.
    pub(super) fn die(&self) {
        self.lock().dead = true;
    }

    pub(super) fn fail_syncs(&self, count: u32) {
        self.lock().bad_syncs = count;
    }

    pub(super) fn fail_writes(&self, count: u32) {
        self.lock().bad_writes = count;
    }

    /// All is well from here on.
    pub(super) fn heal(&self) {
        let mut state = self.lock();
        (state.dies_in, state.room, state.bad_syncs, state.bad_writes) = (None, None, 0, 0);
    }

    /// What is left for the next life.
    pub(super) fn crash(&self, death: Death) -> io::Result<()> {
        let mut state = self.lock();
        let state = &mut *state;
        (state.dead, state.dies_in) = (false, None);
        (state.refused, state.broken) = (false, false);
        (state.room, state.bad_syncs, state.bad_writes) = (None, 0, 0);
        if death == Death::Killed {
            return Ok(());
        }
        let kept = state.random.gen_range(0..=state.changes.len());
        for Change { undo, .. } in state.changes.split_off(kept).into_iter().rev() {
            let what = undo.to_string();
            state.undo(undo).map_err(|error| io::Error::other(format!("{what}: {error}")))?;
        }
        state.changes.clear();
        for (path, file) in &state.names {
            let gone = |error| io::Error::other(format!("{}: {error}", path.display()));
            let length = path.metadata().map_err(gone)?.len();
            let durable = state.durable[*file].min(length);
            if durable < length {
                let left = state.random.gen_range(durable..=length);
                let file = OpenOptions::new().write(true).open(path)?;
                file.set_len(left)?;
                if state.random.gen_range(0..4) == 0 {
                    // The length got there, the data did not.
                    let from = state.random.gen_range(durable..=left);
                    file.set_len(from)?;
                    file.set_len(left)?;
                }
            }
            state.durable[*file] = path.metadata()?.len();
        }
        Ok(())
    }
}

impl State {
    /// Begins an operation; an error when the process is dead. True when it dies in it.
    fn begin(&mut self) -> io::Result<bool> {
        if self.dead {
            return Err(dead());
        }
        self.operations += 1;
        if let Some(left) = &mut self.dies_in {
            *left = left.saturating_sub(1);
            self.dead = *left == 0;
        }
        Ok(self.dead)
    }

    /// An operation that has its effect or has not, when the process dies in it.
    fn whole(&mut self) -> io::Result<bool> {
        let dies = self.begin()?;
        if dies && self.random.gen_bool(0.5) {
            return Err(dead());
        }
        Ok(dies)
    }

    fn changed(&mut self, path: &Path, undo: Undo) {
        let folder = path.parent().unwrap_or(path).to_owned();
        self.changes.push(Change { folder, undo });
    }

    /// Takes the name from a file, keeping what brings it back.
    fn keep(&mut self, path: &Path) -> io::Result<Option<Kept>> {
        let Some(file) = self.names.remove(path) else { return Ok(None) };
        Ok(Some(Kept { path: path.to_owned(), file, bytes: fs::read(path)? }))
    }

    fn restore(&mut self, kept: Kept) -> io::Result<()> {
        let Kept { path, file, bytes } = kept;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, bytes)?;
        self.names.insert(path, file);
        Ok(())
    }

    fn undo(&mut self, undo: Undo) -> io::Result<()> {
        match undo {
            Undo::Created(path) => {
                if self.names.remove(&path).is_some() {
                    fs::remove_file(&path)?;
                }
                Ok(())
            }
            Undo::Renamed { from, to, replaced } => {
                if let Some(file) = self.names.remove(&to) {
                    fs::rename(&to, &from)?;
                    self.names.insert(from, file);
                }
                replaced.map_or(Ok(()), |kept| self.restore(kept))
            }
            Undo::Removed(kept) => self.restore(kept),
        }
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        let mut state = self.lock();
        let dies = state.whole()?;
        let inner = File::create(path)?;
        let file = match state.names.get(path) {
            // The same file, emptied.
            Some(file) => *file,
            None => {
                state.durable.push(0);
                let file = state.durable.len() - 1;
                state.names.insert(path.to_owned(), file);
                state.changed(path, Undo::Created(path.to_owned()));
                file
            }
        };
        state.durable[file] = 0;
        if dies {
            return Err(dead());
        }
        Ok(Box::new(FaultyFile { disk: self.clone(), inner, file, length: 0 }))
    }

    fn open_at(&self, path: &Path, length: u64) -> io::Result<Box<dyn Output>> {
        let mut state = self.lock();
        let dies = state.whole()?;
        let mut inner = OpenOptions::new().write(true).open(path)?;
        Output::cut(&mut inner, length)?;
        let file = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        state.durable[file] = state.durable[file].min(length);
        if dies {
            return Err(dead());
        }
        Ok(Box::new(FaultyFile { disk: self.clone(), inner, file, length }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let dies = state.whole()?;
        let replaced = state.keep(to)?;
        fs::rename(from, to)?;
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        state.changed(to, Undo::Renamed { from: from.to_owned(), to: to.to_owned(), replaced });
        if dies { Err(dead()) } else { Ok(()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let dies = state.whole()?;
        let kept = state.keep(path)?;
        fs::remove_file(path)?;
        if let Some(kept) = kept {
            state.changed(path, Undo::Removed(kept));
        }
        if dies { Err(dead()) } else { Ok(()) }
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        let inside: Vec<PathBuf> =
            self.lock().names.keys().filter(|name| name.starts_with(path)).cloned().collect();
        inside.iter().try_for_each(|file| self.remove(file))?;
        self.lock().begin()?;
        fs::remove_dir_all(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if state.begin()? {
            return Err(dead());
        }
        // With a folder that is gone, what was in it is gone.
        state.changes.retain(|Change { folder, .. }| {
            folder != path && (folder.exists() || !folder.starts_with(path))
        });
        Ok(())
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    inner: File,
    file: usize,
    length: u64,
}

impl FaultyFile {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        Output::write_all(&mut self.inner, bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

impl Output for FaultyFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let disk = self.disk.clone();
        let mut state = disk.lock();
        if state.begin()? {
            let part = state.random.gen_range(0..=bytes.len());
            self.put(&bytes[..part])?;
            return Err(dead());
        }
        if state.bad_writes > 0 {
            state.bad_writes -= 1;
            (state.refused, state.broken) = (true, true);
            let part = state.random.gen_range(0..=bytes.len());
            self.put(&bytes[..part])?;
            return Err(io::Error::other("the disk failed to write"));
        }
        if let Some((room, times)) = state.room {
            let size = bytes.len() as u64;
            if room < size {
                state.room = (times > 1).then(|| (0, times - 1));
                state.refused = true;
                state.broken |= times > PATIENCE;
                self.put(&bytes[..room as usize])?;
                return Err(io::ErrorKind::StorageFull.into());
            }
            state.room = Some((room - size, times));
        }
        self.put(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.lock();
        if state.begin()? {
            return Err(dead());
        }
        if state.bad_syncs > 0 {
            state.bad_syncs -= 1;
            (state.refused, state.broken) = (true, true);
            return Err(io::Error::other("the disk failed to sync"));
        }
        state.durable[self.file] = self.length;
        Ok(())
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        if state.whole()? {
            return Err(dead());
        }
        self.inner.cut(length)?;
        self.length = length;
        let durable = &mut state.durable[self.file];
        *durable = (*durable).min(length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn what_was_synced_survives_the_power_and_the_rest_may_not() {
        let dir = tempfile::tempdir().unwrap();
        let (mut kept, mut lost, mut renamed_back) = (0, 0, 0);
        for seed in 0..40 {
            let root = dir.path().join(seed.to_string());
            fs::create_dir(&root).unwrap();
            let disk = FaultyDisk::new(Random::seed_from_u64(seed));
            let mut file = disk.create(&root.join("a")).unwrap();
            file.write_all(b"durable").unwrap();
            file.sync().unwrap();
            disk.sync_folder(&root).unwrap();
            file.write_all(b" and not").unwrap();
            disk.crash(Death::Killed).unwrap();
            assert_eq!(fs::read(root.join("a")).unwrap(), b"durable and not");
            disk.rename(&root.join("a"), &root.join("b")).unwrap();
            disk.crash(Death::PowerLoss).unwrap();
            let back = root.join("a").exists();
            renamed_back += u32::from(back);
            let bytes = fs::read(root.join(if back { "a" } else { "b" })).unwrap();
            assert!(bytes.starts_with(b"durable") && bytes.len() <= 15);
            *(if bytes.len() == 15 { &mut kept } else { &mut lost }) += 1;
        }
        assert!(kept > 0 && lost > 0 && renamed_back > 0 && renamed_back < 40);
    }

    #[test]
    fn a_dead_process_writes_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new(Random::seed_from_u64(1));
        let mut file = disk.create(&dir.path().join("a")).unwrap();
        disk.die_in(2);
        file.write_all(b"one").unwrap();
        assert!(file.write_all(b"two").is_err() && disk.is_dead());
        assert!(file.sync().is_err() && disk.create(&dir.path().join("b")).is_err());
        let left = fs::read(dir.path().join("a")).unwrap();
        assert!(left.starts_with(b"one") && left.len() <= 6);
    }
}
