//! What the threads of the copy and those that feed it have in common.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use omnify_operators::model::Tick;
use omnify_sinks::objects::{Change, Head, JOURNAL, LEDGER, ObjectsError, Piece};
use omnify_sinks::serve::Problem;
use omnify_sinks::telemetry::events;

use super::{MirrorOptions, oldest_needed};
use crate::clock;

/// How far a file is durable here, and how far the head lists it.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    durable: u64,
    copied: u64,
}

#[derive(Default)]
struct State {
    /// Journal and ledger, by name in the head.
    files: BTreeMap<String, Extent>,
    /// Since when something waits.
    behind_since: Option<Instant>,
    /// From `bulk`, until a head lists them.
    changes: Vec<Change>,
    /// Objects that the head stopped listing, for `bulk` to delete.
    retired: Vec<String>,
    head: Arc<Head>,
    /// What the store said last, until it takes something again.
    error: Option<String>,
    lost: Option<ObjectsError>,
    /// Nothing more will grow.
    closing: bool,
    /// `bulk` has ended.
    bulk_ended: bool,
    /// `tail` has ended: nothing more is copied.
    ended: bool,
}

impl State {
    fn backlog_bytes(&self) -> u64 {
        self.files.values().map(|file| file.durable.saturating_sub(file.copied)).sum()
    }
}

/// See the module.
pub(super) struct Shared {
    pub(super) strict: bool,
    backlog_bytes_max: u64,
    backlog_bytes: AtomicU64,
    keep_from: AtomicU64,
    /// Tick of the snapshot being copied; 0 is none.
    pinned: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

/// What `tail` is to do.
pub(super) struct Work {
    /// Durable bytes of each file, ascending by name.
    pub(super) files: Vec<(String, u64)>,
    /// From `bulk`; they stay there until they are committed.
    pub(super) changes: Vec<Change>,
}

fn length(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| piece.bytes).sum()
}

impl Shared {
    pub(super) fn new(head: &Head, options: &MirrorOptions) -> Shared {
        let shared = Shared {
            strict: options.strict,
            backlog_bytes_max: options.backlog_bytes_max,
            backlog_bytes: AtomicU64::new(0),
            keep_from: AtomicU64::new(0),
            pinned: AtomicU64::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        shared.committed(head, 0, Vec::new(), None);
        shared
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file is durable up to `bytes`.
    pub(super) fn grown(&self, name: &str, bytes: u64) {
        let mut state = self.lock();
        let file = state.files.entry(name.to_owned()).or_default();
        file.durable = file.durable.max(bytes);
        if file.durable > file.copied {
            state.behind_since.get_or_insert_with(clock::instant);
        }
        self.backlog_bytes.store(state.backlog_bytes(), Ordering::Release);
        self.changed.notify_all();
    }

    /// Waits until the head lists `bytes` of the file; false when it never will.
    pub(super) fn wait_for(&self, name: &str, bytes: u64) -> bool {
        let mut state = self.lock();
        loop {
            if state.files.get(name).is_some_and(|file| file.copied >= bytes) {
                return true;
            }
            if state.ended {
                return false;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn keep_from(&self) -> Tick {
        self.keep_from.load(Ordering::Acquire)
    }

    pub(super) fn pin(&self, tick: Option<Tick>) {
        self.pinned.store(tick.unwrap_or(0), Ordering::Release);
    }

    pub(super) fn pinned(&self) -> Option<Tick> {
        Some(self.pinned.load(Ordering::Acquire)).filter(|tick| *tick > 0)
    }

    pub(super) fn is_full(&self) -> bool {
        self.backlog_bytes.load(Ordering::Acquire) >= self.backlog_bytes_max
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lock().lost.is_some()
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let state = self.lock();
        let mut problems = Vec::new();
        if let Some(error) = &state.error {
            let (bytes, seconds) = (
                state.backlog_bytes(),
                state.behind_since.map_or(0, |since| since.elapsed().as_secs()),
            );
            let text = format!(
                "The object store does not take the copy; {bytes} bytes of journal and ledger wait, \
                 the oldest for {seconds} s. It is tried again. {error}",
            );
            let code = if self.strict { "mirror_stalled" } else { Problem::MIRROR_BEHIND };
            problems.push(Problem { code, text });
        }
        if self.is_full() {
            let text = "More than state.mirror_backlog_max waits to be copied to the object store: \
                        nothing is taken from sources until it takes some; pushes wait, and are \
                        answered 429 when the queue is full.";
            problems.push(Problem { code: "mirror_full", text: text.to_owned() });
        }
        problems
    }

    /// Waits until there is something to copy and it is time: at once if strict, otherwise after
    /// `every`. False when there is nothing left and nothing more will come.
    pub(super) fn wait(&self, every: Duration) -> bool {
        let started = clock::instant();
        let mut state = self.lock();
        loop {
            let idle = state.changes.is_empty() && state.backlog_bytes() == 0;
            if idle && state.closing && state.bulk_ended {
                return false;
            }
            let wait = every.saturating_sub(started.elapsed());
            let due = state.closing || self.strict || wait.is_zero();
            if due && !idle {
                return true;
            }
            let wait = if wait.is_zero() { every } else { wait };
            let waited = self.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What there is to copy now.
    pub(super) fn work(&self) -> Work {
        let state = self.lock();
        let files = state.files.iter().map(|(name, file)| (name.clone(), file.durable));
        Work { files: files.collect(), changes: state.changes.clone() }
    }

    /// The head was committed with the first `changes` of `bulk`; what it lists is copied. `retired` is
    /// listed no more. `since` is when the files were looked at.
    pub(super) fn committed(
        &self,
        head: &Head,
        changes: usize,
        retired: Vec<String>,
        since: Option<Instant>,
    ) {
        let mut state = self.lock();
        state.changes.drain(..changes);
        for (name, file) in &mut state.files {
            file.copied = head.files.get(name).map_or(file.copied, |pieces| length(pieces));
        }
        for group in [JOURNAL, LEDGER] {
            for (name, pieces) in head.group(group) {
                let copied = length(pieces);
                let name = format!("{group}/{name}");
                state.files.entry(name).or_insert(Extent { durable: copied, copied });
            }
        }
        state.retired.extend(retired);
        state.head = Arc::new(head.clone());
        state.error = None;
        let backlog = state.backlog_bytes();
        state.behind_since = since.filter(|_| backlog > 0);
        self.backlog_bytes.store(backlog, Ordering::Release);
        let keep_from = oldest_needed(head).map_or(0, |oldest| oldest + 1);
        self.keep_from.store(keep_from, Ordering::Release);
        self.changed.notify_all();
    }

    /// Files that are gone from the local disk are nobody's business any more.
    pub(super) fn forget(&self, name: &str) {
        let mut state = self.lock();
        state.files.remove(name);
        self.backlog_bytes.store(state.backlog_bytes(), Ordering::Release);
    }

    /// The store failed.
    pub(super) fn failed(&self, error: &ObjectsError) {
        let mut state = self.lock();
        state.error = Some(error.to_string());
        drop(state);
        events::MirrorFailed { error }.emit();
        self.sample(0);
    }

    /// Says how far the copy is behind.
    pub(super) fn sample(&self, bytes: u64) {
        let state = self.lock();
        let lag = state.behind_since.map_or(Duration::ZERO, |since| since.elapsed());
        let backlog_bytes = state.backlog_bytes();
        drop(state);
        events::MirrorCopied { bytes, backlog_bytes, lag }.emit();
    }

    /// `tail` ends; with an error if this engine may not write any more.
    pub(super) fn end(&self, lost: Option<ObjectsError>) {
        let mut state = self.lock();
        if let Some(error) = &lost {
            tracing::error!(%error, "the engine stops");
        }
        state.lost = lost;
        state.ended = true;
        self.changed.notify_all();
    }

    /// Nothing more will grow.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_all();
    }

    /// Whether something is left, and why nothing may be written any more.
    pub(super) fn result(&self) -> (bool, Option<ObjectsError>) {
        let mut state = self.lock();
        (state.backlog_bytes() > 0 || !state.changes.is_empty(), state.lost.take())
    }

    /// For `bulk`: the head, and what it stopped listing. Waits up to `every`, less when closing or
    /// ended; says whether it is one of these.
    pub(super) fn look(&self, every: Duration) -> (Arc<Head>, Vec<String>, bool) {
        let started = clock::instant();
        let mut state = self.lock();
        loop {
            let last = state.closing || state.ended;
            let wait = every.saturating_sub(started.elapsed());
            if last || wait.is_zero() {
                return (state.head.clone(), std::mem::take(&mut state.retired), last);
            }
            let waited = self.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until a head lists what `bulk` hands over; false when none ever will.
    pub(super) fn hand_over(&self, changes: Vec<Change>) -> bool {
        let mut state = self.lock();
        state.changes.extend(changes);
        self.changed.notify_all();
        while !state.changes.is_empty() && !state.ended {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.ended
    }

    /// Whether nothing more is copied.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// `bulk` has ended.
    pub(super) fn bulk_ended(&self) {
        self.lock().bulk_ended = true;
        self.changed.notify_all();
    }
}
