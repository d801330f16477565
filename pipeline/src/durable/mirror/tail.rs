//! The thread that copies what the journal and the ledger have grown by, and commits heads.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use omnify_sinks::objects::{Change, Claim, ObjectsError, Piece};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::super::journal::Durable;
use super::shared::{Shared, Work};
use super::{MirrorOptions, Strict, expired};
use crate::clock;

/// Longest piece.
const PIECE_BYTES_MAX: u64 = 16 << 20;
/// Bytes copied between two heads at most: bounds the memory, and what is copied again on an error.
const CYCLE_BYTES_MAX: u64 = 64 << 20;
/// Pieces on their way at once.
const AT_ONCE: usize = 8;
/// Waits between two tries at a store that fails; they double.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Bytes that files have grown by.
type Reads = Vec<(String, Vec<u8>)>;

/// See the module.
pub(super) struct Tail {
    claim: Claim,
    /// The state folder.
    state: PathBuf,
    every: Duration,
    shared: Arc<Shared>,
    strict: Strict,
    /// Of strict mode: not in the copy yet.
    groups: VecDeque<Durable>,
    /// Bytes of each file whose pieces are written, listed or not.
    written: BTreeMap<String, u64>,
    /// Written, and not listed yet.
    pending: Vec<Change>,
    pieces: u64,
}

impl Tail {
    pub(super) fn new(
        claim: Claim,
        state: PathBuf,
        options: &MirrorOptions,
        shared: Arc<Shared>,
        strict: Strict,
    ) -> Tail {
        let length = |pieces: &[Piece]| pieces.iter().map(|piece| piece.bytes).sum();
        let files = claim.head().files.iter();
        Tail {
            written: files.map(|(name, pieces)| (name.clone(), length(pieces))).collect(),
            claim,
            state,
            every: options.every,
            shared,
            strict,
            groups: VecDeque::new(),
            pending: Vec::new(),
            pieces: 0,
        }
    }

    /// Copies until there is nothing left and nothing more will come, the time of stopping is over, or
    /// another engine has the epoch.
    pub(super) fn run(mut self, runtime: &Handle, ending: watch::Receiver<Option<Instant>>) {
        let (mut wait, mut lost) = (RETRY, None);
        while self.shared.wait(self.every) {
            self.groups.extend(self.strict.groups.iter().flat_map(|groups| groups.try_iter()));
            let (work, until) = (self.shared.work(), expired(ending.clone()));
            let done = runtime.block_on(async {
                tokio::select! {
                    done = self.cycle(&work) => Some(done),
                    () = until => None,
                }
            });
            match done {
                None => break,
                Some(Ok(bytes)) => {
                    wait = RETRY;
                    self.tell();
                    self.shared.sample(bytes);
                }
                Some(Err(error)) if error.is_fenced() => {
                    lost = Some(error);
                    break;
                }
                Some(Err(error)) => {
                    self.shared.failed(&error);
                    let until = expired(ending.clone());
                    let over = runtime.block_on(async {
                        tokio::select! {
                            () = tokio::time::sleep(wait) => false,
                            () = until => true,
                        }
                    });
                    if over {
                        break;
                    }
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
        self.tell();
        self.shared.end(lost);
        if let Some(reached) = &self.strict.reached {
            reached.end();
        }
    }

    /// Copies what there is and commits a head that lists it; returns the bytes.
    async fn cycle(&mut self, work: &Work) -> Result<u64, ObjectsError> {
        let (started, mut bytes) = (clock::instant(), 0);
        let (reads, complete) = self.reads(work)?;
        let epoch = self.claim.head().epoch;
        let remote = self.claim.remote().clone();
        let uploads = reads.into_iter().map(|(name, content)| {
            self.pieces += 1;
            let (key, remote) = (format!("e{epoch}/{name}.{}", self.pieces), &remote);
            async move { remote.put(&key, content.into()).await.map(|piece| (name, piece)) }
        });
        let uploads: Vec<_> = uploads.collect();
        let mut uploads = stream::iter(uploads).buffered(AT_ONCE);
        while let Some(uploaded) = uploads.next().await {
            let (name, piece) = uploaded?;
            bytes += piece.bytes;
            *self.written.entry(name.clone()).or_default() += piece.bytes;
            self.pending.push(Change::Append(name, piece));
        }
        // What `bulk` has copied may be ahead of a journal that is not copied to its end.
        let changes = if complete { work.changes.as_slice() } else { &[] };
        let all: Vec<Change> = self.pending.iter().chain(changes).cloned().collect();
        if !all.is_empty() {
            let retired = self.claim.commit(&all, complete).await?;
            self.pending.clear();
            self.shared.committed(self.claim.head(), changes.len(), retired, Some(started));
        }
        Ok(bytes)
    }

    /// The bytes that are durable and not written yet, oldest first, and whether these are all.
    fn reads(&mut self, work: &Work) -> Result<(Reads, bool), ObjectsError> {
        let (mut reads, mut room) = (Vec::new(), CYCLE_BYTES_MAX);
        for (name, durable) in &work.files {
            let path = self.state.join(name);
            let mut at = self.written.get(name).copied().unwrap_or(0);
            if !path.exists() {
                // Nobody needs it: neither here nor, as `keep_from` saw to it, in the copy.
                self.written.remove(name);
                self.shared.forget(name);
                if self.claim.head().files.contains_key(name) {
                    self.pending.push(Change::Remove(name.clone()));
                }
                continue;
            }
            while at < *durable {
                if room == 0 {
                    return Ok((reads, false));
                }
                let length = (durable - at).min(PIECE_BYTES_MAX).min(room);
                let content = read(&path, at, length).map_err(|source| ObjectsError::Io {
                    doing: "read",
                    path: path.clone(),
                    source,
                })?;
                reads.push((name.clone(), content));
                (at, room) = (at + length, room - length);
            }
        }
        Ok((reads, true))
    }

    /// Tells whose ticks the copy holds.
    fn tell(&mut self) {
        let files = &self.claim.head().files;
        let holds = |group: &Durable| {
            let (name, end) = &group.extent;
            let pieces = files.get(&format!("{}/{name}", super::JOURNAL));
            // A segment that is gone was not needed any more.
            pieces.is_none_or(|pieces| pieces.iter().map(|p| p.bytes).sum::<u64>() >= *end)
        };
        while self.groups.front().is_some_and(holds) {
            let Some(group) = self.groups.pop_front() else { break };
            if let Some(reached) = &self.strict.reached {
                reached.reach(group.tick);
            }
            if let Some(told) = &mut self.strict.told {
                told(group);
            }
        }
    }
}

/// `length` bytes of a file.
pub(super) fn read(path: &Path, at: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(at))?;
    let mut content = vec![0; length as usize];
    file.read_exact(&mut content)?;
    Ok(content)
}
