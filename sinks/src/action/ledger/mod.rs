//! The durable record of every action: intent before the call, outcome after.
//!
//! # Contract
//! - [`Ledger::intend`] and [`Ledger::end`] buffer; [`Ledger::commit`] writes everything buffered
//!   as one checksummed batch and returns when it is on disk. The dispatcher calls nothing whose
//!   intent was not committed.
//! - After a crash, [`Ledger::open`] cuts off a torn end and [`Ledger::unfinished`] lists what
//!   began and did not end. Every unfinished action is in the newest segment or carried into it.
//! - [`Ledger::seen`] knows every id that could still be executed (its expiry has not passed) and
//!   most that could not: a finished id is forgotten [`KEPT_MS`] after its expiry, or at its
//!   expiry when more than [`KEPT_MAX`] are kept. An expired action is never executed, so
//!   forgetting it forgets nothing that matters.
//! - One process at a time: the folder is locked.
//!
//! # What it never does
//! It does not decide what may be executed (the dispatcher does), reads no clock, and never
//! rewrites a committed byte.

mod segment;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use omnify_decision::action::{Id, Setting};
use omnify_decision::control::Outcome;
use omnify_operators::model::Tick;
use rustix::fs::{FlockOperation, flock};
use segment::Record;

use super::{Intent, plan};
use crate::disk::{Disk, FileSystem, Output};

/// A finished id is remembered this long after its expiry, in ms: far longer than a restart.
pub const KEPT_MS: u64 = 3_600_000;
/// Finished ids remembered past their expiry (about 200 bytes each).
pub const KEPT_MAX: usize = 200_000;
/// A segment is closed when it has grown past this.
const SEGMENT_BYTES_MAX: u64 = 32 << 20;
/// Closed segments kept for undo, beside those that hold unexpired actions.
const SEGMENTS_KEPT: usize = 4;

/// What can go wrong with the ledger's files.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file system refused.
    #[error("cannot {what} the action ledger at {}: check space and rights there", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Bytes that were on disk changed.
    #[error(
        "the action ledger {} is damaged at byte {offset} ({reason}): restore it from a backup, or \
         move it away and check the platform's settings against the engine's before going on",
        path.display()
    )]
    Corrupt {
        /// The segment.
        path: PathBuf,
        /// Where the damage begins.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// It is on disk here, but will not get into its copy any more.
    #[error("the action ledger cannot be copied to the object store any more: the engine stops")]
    Copy,
    /// Another process holds it.
    #[error(
        "the action ledger in {} is in use by another process: stop it, or give this one another \
         data folder (two executors would act twice)",
        path.display()
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
}

impl LedgerError {
    fn io(what: &'static str, path: &Path, source: io::Error) -> LedgerError {
        LedgerError::Io { what, path: path.to_owned(), source }
    }
}

/// A copy of the ledger elsewhere.
pub trait LedgerCopy: Send + Sync {
    /// The file is durable up to `bytes`. With `intents` among them a copy that must have them before
    /// a call is made waits here until it has; false when it never will.
    fn grown(&self, file: &str, bytes: u64, intents: bool) -> bool;
}

/// What the ledger knows of an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It began and has not ended.
    Unfinished,
    /// It ended so.
    Ended(Outcome),
}

/// An action with its end, as found by [`Ledger::find`].
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The action.
    pub intent: Intent,
    /// How it ended; `None` while unfinished.
    pub outcome: Option<Outcome>,
}

impl Entry {
    /// The setting that undoes it; `None` when it changed nothing or the pre-image is unknown.
    pub fn undo_plan(&self) -> Option<Setting> {
        match self.outcome {
            Some(Outcome::Applied { .. } | Outcome::Unknown) => {
                plan::undo(&self.intent.desired, self.intent.before.as_ref())
            }
            _ => None,
        }
    }
}

struct Kept {
    expires: Tick,
    outcome: Option<Outcome>,
}

/// Records not yet on disk. Intents and outcomes are apart, because a failed commit forgets the
/// intents (nothing was called) and keeps the outcomes (they happened).
#[derive(Default)]
struct Buffered {
    intents: Vec<Id>,
    intent_lines: Vec<u8>,
    outcome_lines: Vec<u8>,
    last_expires: Tick,
}

/// The ledger of one engine. See the module.
pub struct Ledger {
    dir: PathBuf,
    /// Holds the lock of the folder while the ledger lives.
    _lock: File,
    disk: Arc<dyn Disk>,
    file: Box<dyn Output>,
    number: u64,
    bytes: u64,
    /// The last commit failed, so bytes beyond `bytes` may be in the file.
    dirty: bool,
    buffered: Buffered,
    kept: HashMap<Id, Kept>,
    by_expiry: BTreeSet<(Tick, Id)>,
    unfinished: BTreeMap<Id, Intent>,
    /// Every segment with the latest expiry in it.
    segments: BTreeMap<u64, Tick>,
    repaired_bytes: u64,
    copy: Option<Arc<dyn LedgerCopy>>,
}

impl Ledger {
    /// Opens or creates the ledger in `dir`, repairing what a crash tore.
    pub fn open(dir: &Path) -> Result<Ledger, LedgerError> {
        Ledger::open_on(Arc::new(FileSystem), dir)
    }

    /// The same on another disk.
    pub fn open_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<Ledger, LedgerError> {
        let io = |what, source| LedgerError::io(what, dir, source);
        fs::create_dir_all(dir).map_err(|source| io("create", source))?;
        let lock = File::create(dir.join("lock")).map_err(|source| io("lock", source))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| LedgerError::Locked { path: dir.to_owned() })?;
        let numbers = segment::list(dir)?;
        let number = numbers.last().copied().unwrap_or(1);
        let path = segment::path(dir, number);
        let file = match fs::metadata(&path) {
            Ok(metadata) => disk.open_at(&path, metadata.len()),
            Err(_) => disk.create(&path),
        };
        let file = file.map_err(|source| LedgerError::io("open", &path, source))?;
        disk.sync_folder(dir).map_err(|source| io("sync", source))?;
        let mut ledger = Ledger {
            dir: dir.to_owned(),
            _lock: lock,
            disk,
            file,
            number,
            bytes: 0,
            // Whatever lies beyond the good part is cut off before the first write.
            dirty: true,
            buffered: Buffered::default(),
            kept: HashMap::new(),
            by_expiry: BTreeSet::new(),
            unfinished: BTreeMap::new(),
            segments: BTreeMap::new(),
            repaired_bytes: 0,
            copy: None,
        };
        ledger.segments.insert(number, 0);
        for segment in numbers {
            ledger.load(segment)?;
        }
        ledger.cut_dirty_end()?;
        Ok(ledger)
    }

    fn load(&mut self, number: u64) -> Result<(), LedgerError> {
        let path = segment::path(&self.dir, number);
        let segment = segment::read(&path)?;
        if number == self.number {
            self.bytes = segment.good_bytes;
            self.repaired_bytes = segment.torn_bytes;
        } else if segment.torn_bytes > 0 {
            let reason = format!("{} bad bytes at the end of a closed segment", segment.torn_bytes);
            return Err(LedgerError::Corrupt { path, offset: segment.good_bytes, reason });
        }
        let mut last_expires = 0;
        for record in segment.records {
            match record {
                Record::Intent { intent } => {
                    let intent = intent.into_owned();
                    last_expires = last_expires.max(intent.expires);
                    if !self.kept.contains_key(&intent.id) {
                        self.remember(intent);
                    }
                }
                Record::Outcome { id, outcome, .. } => self.settle(id, &outcome),
            }
        }
        self.segments.insert(number, last_expires);
        Ok(())
    }

    fn remember(&mut self, intent: Intent) {
        self.kept.insert(intent.id, Kept { expires: intent.expires, outcome: None });
        self.by_expiry.insert((intent.expires, intent.id));
        self.unfinished.insert(intent.id, intent);
    }

    fn settle(&mut self, id: Id, outcome: &Outcome) {
        self.unfinished.remove(&id);
        if let Some(kept) = self.kept.get_mut(&id) {
            kept.outcome = Some(outcome.clone());
        }
    }

    /// Bytes that were cut off the end when it was opened.
    pub fn repaired_bytes(&self) -> u64 {
        self.repaired_bytes
    }

    /// What is known of `id`; buffered records count.
    pub fn seen(&self, id: Id) -> Option<Seen> {
        let kept = self.kept.get(&id)?;
        Some(kept.outcome.clone().map_or(Seen::Unfinished, Seen::Ended))
    }

    /// Actions that began and did not end, oldest first.
    pub fn unfinished(&self) -> Vec<Intent> {
        let mut unfinished: Vec<_> = self.unfinished.values().cloned().collect();
        unfinished.sort_by_key(|intent| (intent.tick, intent.id));
        unfinished
    }

    /// What is remembered of actions that ended, in no order.
    pub fn ended(&self) -> impl Iterator<Item = (Id, Outcome)> {
        self.kept.iter().filter_map(|(id, kept)| Some((*id, kept.outcome.clone()?)))
    }

    /// Buffers an intent. Its id must be unseen.
    pub fn intend(&mut self, intent: &Intent) {
        debug_assert!(self.seen(intent.id).is_none(), "invariant 7: {} intended twice", intent.id);
        write_line(
            &Record::Intent { intent: Cow::Borrowed(intent) },
            &mut self.buffered.intent_lines,
        );
        self.buffered.intents.push(intent.id);
        self.buffered.last_expires = self.buffered.last_expires.max(intent.expires);
        self.remember(intent.clone());
    }

    /// Buffers an outcome.
    pub fn end(&mut self, id: Id, tick: Tick, outcome: &Outcome) {
        let record = Record::Outcome { id, tick, outcome: Cow::Borrowed(outcome) };
        write_line(&record, &mut self.buffered.outcome_lines);
        self.settle(id, outcome);
    }

    /// Puts everything buffered on disk. On an error nothing that was intended since the last
    /// commit counts as intended, and the outcomes stay buffered for the next commit.
    pub fn commit(&mut self, now: Tick) -> Result<(), LedgerError> {
        if self.buffered.intent_lines.is_empty() && self.buffered.outcome_lines.is_empty() {
            return Ok(());
        }
        let intents = !self.buffered.intent_lines.is_empty();
        if let Err(error) = self.write_buffered().and_then(|()| self.copied(intents)) {
            self.buffered.intent_lines.clear();
            for id in std::mem::take(&mut self.buffered.intents) {
                self.unfinished.remove(&id);
                if let Some(kept) = self.kept.remove(&id) {
                    self.by_expiry.remove(&(kept.expires, id));
                }
            }
            return Err(error);
        }
        let last_expires = self.segments.entry(self.number).or_default();
        *last_expires = self.buffered.last_expires.max(*last_expires);
        self.buffered = Buffered::default();
        self.forget(now);
        if self.bytes > SEGMENT_BYTES_MAX
            && let Err(error) = self.rotate(now)
        {
            // The commit stands; this segment grows on until a new one can be started.
            tracing::warn!(%error, "action ledger: no new segment");
        }
        Ok(())
    }

    /// From now on `copy` is told of every commit; first of what is there.
    pub fn copied_by(&mut self, copy: Arc<dyn LedgerCopy>) -> Result<(), LedgerError> {
        for number in segment::list(&self.dir)? {
            let path = segment::path(&self.dir, number);
            let bytes = fs::metadata(&path).map(|metadata| metadata.len());
            let bytes = bytes.map_err(|source| LedgerError::io("read", &path, source))?;
            copy.grown(&segment::name(number), bytes, false);
        }
        self.copy = Some(copy);
        Ok(())
    }

    fn copied(&self, intents: bool) -> Result<(), LedgerError> {
        let grown = |copy: &Arc<dyn LedgerCopy>| {
            copy.grown(&segment::name(self.number), self.bytes, intents)
        };
        if self.copy.as_ref().is_none_or(grown) { Ok(()) } else { Err(LedgerError::Copy) }
    }

    fn write_buffered(&mut self) -> Result<(), LedgerError> {
        self.cut_dirty_end()?;
        let path = segment::path(&self.dir, self.number);
        // Outcomes of earlier batches first, then intents; an intent that ended within the batch
        // (nothing to change) has its outcome behind it.
        let mut body = self.buffered.intent_lines.clone();
        body.extend_from_slice(&self.buffered.outcome_lines);
        let mut batch = Vec::with_capacity(body.len() + 40);
        segment::frame(&body, &mut batch);
        self.dirty = true;
        self.file
            .write_all(&batch)
            .and_then(|()| self.file.sync())
            .map_err(|source| LedgerError::io("write", &path, source))?;
        self.dirty = false;
        self.bytes += batch.len() as u64;
        Ok(())
    }

    fn cut_dirty_end(&mut self) -> Result<(), LedgerError> {
        if self.dirty {
            let path = segment::path(&self.dir, self.number);
            self.file
                .cut(self.bytes)
                .and_then(|()| self.file.sync())
                .map_err(|source| LedgerError::io("repair", &path, source))?;
            self.dirty = false;
        }
        Ok(())
    }

    /// Forgets finished ids that can never be executed any more.
    fn forget(&mut self, now: Tick) {
        let kept_ms = if self.kept.len() > KEPT_MAX { 0 } else { KEPT_MS };
        let forgotten: Vec<_> = self
            .by_expiry
            .iter()
            .take_while(|(expires, _)| expires + kept_ms < now)
            .filter(|(_, id)| !self.unfinished.contains_key(id))
            .copied()
            .collect();
        for (expires, id) in forgotten {
            self.by_expiry.remove(&(expires, id));
            self.kept.remove(&id);
        }
    }

    /// Starts a new segment that begins with every unfinished intent, and drops old ones.
    fn rotate(&mut self, now: Tick) -> Result<(), LedgerError> {
        let number = self.number + 1;
        let path = segment::path(&self.dir, number);
        let mut body = Vec::new();
        for intent in self.unfinished.values() {
            write_line(&Record::Intent { intent: Cow::Borrowed(intent) }, &mut body);
        }
        let mut batch = Vec::new();
        segment::frame(&body, &mut batch);
        let write = || {
            let mut file = self.disk.create(&path)?;
            file.write_all(&batch)?;
            file.sync()?;
            Ok(file)
        };
        self.file =
            write().map_err(|source| LedgerError::io("start a segment of", &path, source))?;
        let synced = self.disk.sync_folder(&self.dir);
        synced.map_err(|source| LedgerError::io("sync", &self.dir, source))?;
        let carried = self.unfinished.values().map(|intent| intent.expires).max().unwrap_or(0);
        self.segments.insert(number, carried);
        (self.number, self.bytes, self.dirty) = (number, batch.len() as u64, false);
        self.copied(false)?;
        while self.segments.len() > SEGMENTS_KEPT + 1 {
            let Some((oldest, last_expires)) = self.segments.first_key_value() else { break };
            if last_expires + KEPT_MS >= now {
                break;
            }
            let path = segment::path(&self.dir, *oldest);
            let removed = self.disk.remove(&path);
            removed.map_err(|source| LedgerError::io("remove", &path, source))?;
            self.segments.pop_first();
        }
        Ok(())
    }

    /// Looks an action up in the files of `dir`, also while an engine has them open.
    pub fn find(dir: &Path, id: Id) -> Result<Option<Entry>, LedgerError> {
        let mut found: Option<Entry> = None;
        for number in segment::list(dir)? {
            for record in segment::read(&segment::path(dir, number))?.records {
                match record {
                    Record::Intent { intent } if intent.id == id && found.is_none() => {
                        found = Some(Entry { intent: intent.into_owned(), outcome: None });
                    }
                    Record::Outcome { id: ended, outcome, .. } if ended == id => {
                        if let Some(entry) = &mut found {
                            entry.outcome = Some(outcome.into_owned());
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    /// The setting that undoes action `id`: its pre-image, if it changed something and the
    /// pre-image is known.
    pub fn undo_plan(dir: &Path, id: Id) -> Result<Option<Setting>, LedgerError> {
        Ok(Ledger::find(dir, id)?.and_then(|entry| entry.undo_plan()))
    }
}

fn write_line(record: &Record<'_>, out: &mut Vec<u8>) {
    // Strings, integers and string keys only: encoding cannot fail, and writes to memory neither.
    serde_json::to_writer(&mut *out, record).expect("a ledger record is plain JSON");
    out.push(b'\n');
}

#[cfg(test)]
mod tests;
