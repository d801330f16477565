//! The thread that copies what is large and never changes: snapshots and parts of the history; that
//! merges the pieces of what grew, so that a head stays small; and that deletes what no head lists.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use omnify_sinks::history::{HistoryFiles, Manifest};
use omnify_sinks::objects::{
    Change, GRACE, HISTORY, Head, JOURNAL, LEDGER, ObjectsError, Piece, Remote, sweep,
};
use omnify_sinks::snapshot::SnapshotStore;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::shared::Shared;
use super::{Folders, MirrorOptions, SNAPSHOTS, expired, snapshot_name, tail};
use crate::clock;

/// Neighbouring pieces of one level that become one of the next.
const MERGED_TOGETHER: usize = 8;
/// Files on their way at once.
const AT_ONCE: usize = 4;
/// Tries at a history whose parts are merged away meanwhile.
const TRIES: usize = 4;
/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Bulk {
    remote: Remote,
    epoch: u64,
    state: PathBuf,
    /// Histories to look at, by name; the last is the one being written.
    runs: Vec<(String, PathBuf)>,
    snapshots_kept: usize,
    shared: Arc<Shared>,
    objects: u64,
    /// Files that are written to the store, by the snapshot or history that they belong to; listed
    /// or not.
    written: BTreeMap<String, BTreeSet<String>>,
    /// The manifest of each history as the head lists it.
    manifests: BTreeMap<String, Vec<u8>>,
    /// Objects that no head lists, with since when.
    retired: VecDeque<(Instant, Vec<String>)>,
}

/// What one look at the folders came to; it counts once a head lists it.
#[derive(Default)]
struct Pass {
    changes: Vec<Change>,
    /// Objects that the head will list no more, beside those that the changes replace.
    retired: Vec<String>,
    manifests: Vec<(String, Vec<u8>)>,
}

/// Why a pass ended early.
enum Failure {
    Store(ObjectsError),
    /// The local file was replaced meanwhile; the next look shows by what.
    Gone,
    Local(anyhow::Error),
}

impl From<ObjectsError> for Failure {
    fn from(error: ObjectsError) -> Failure {
        match error {
            ObjectsError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Failure::Gone
            }
            error => Failure::Store(error),
        }
    }
}

impl Bulk {
    pub(super) fn new(
        remote: Remote,
        epoch: u64,
        folders: &Folders,
        options: &MirrorOptions,
        head: &Head,
        shared: Arc<Shared>,
    ) -> Bulk {
        let mut runs = Vec::new();
        if let Some(folder) = &folders.history {
            let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
            let (Some(current), Some(root)) = (name(folder), folder.parent()) else {
                unreachable!("a history has a folder of its own")
            };
            // The one before may have been left behind by a change of the configuration.
            let before = head.run.clone().filter(|run| *run != current);
            runs.extend(before.map(|run| (run.clone(), root.join(run))));
            runs.retain(|(_, folder)| folder.is_dir());
            runs.push((current, folder.clone()));
        }
        Bulk {
            remote,
            epoch,
            state: folders.state.clone(),
            runs,
            snapshots_kept: options.snapshots_kept,
            shared,
            objects: 0,
            written: BTreeMap::new(),
            manifests: BTreeMap::new(),
            retired: VecDeque::new(),
        }
    }

    /// Passes until nothing more will come, then one last; ends early when the time is over.
    pub(super) fn run(
        mut self,
        runtime: &Handle,
        every: Duration,
        ending: watch::Receiver<Option<Instant>>,
    ) {
        let mut swept = false;
        loop {
            let (head, retired, last) = self.shared.look(every);
            self.retire(retired);
            let until = expired(ending.clone());
            let done = runtime.block_on(async {
                let pass = async {
                    if !swept {
                        sweep(&self.remote, &head, GRACE).await?;
                        swept = true;
                    }
                    self.pass(&head).await
                };
                tokio::select! {
                    done = pass => Some(done),
                    () = until => None,
                }
            });
            self.shared.pin(None);
            let wait = match done {
                None => break,
                Some(Ok(pass)) => {
                    if !self.shared.hand_over(pass.changes) {
                        break;
                    }
                    self.manifests.extend(pass.manifests);
                    self.retire(pass.retired);
                    Duration::ZERO
                }
                Some(Err(Failure::Gone)) => Duration::ZERO,
                Some(Err(Failure::Store(error))) => {
                    self.shared.failed(&error);
                    RETRY
                }
                Some(Err(Failure::Local(error))) => {
                    tracing::error!(error = format!("{error:#}"), "not copied to the object store");
                    RETRY
                }
            };
            let failed = wait > Duration::ZERO;
            if last && !failed {
                break;
            }
            if failed {
                let until = expired(ending.clone());
                runtime.block_on(async {
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = until => {}
                    }
                });
            }
            if self.shared.has_ended() {
                break;
            }
        }
        self.shared.bulk_ended();
    }

    /// Copies everything that is there and not in the copy.
    async fn pass(&mut self, head: &Head) -> Result<Pass, Failure> {
        let mut pass = Pass::default();
        // In this order: a snapshot implies its history, and the head that lists both is committed
        // when the journal is copied beyond them.
        self.snapshot(head, &mut pass).await?;
        for (run, folder) in self.runs.clone() {
            self.history(head, &run, &folder, &mut pass).await?;
        }
        self.merge(head, &mut pass.changes).await?;
        self.delete().await;
        Ok(pass)
    }

    /// A name that was never used for an object.
    fn fresh(&mut self, name: &str) -> String {
        self.objects += 1;
        format!("{name}.e{}-b{}", self.epoch, self.objects)
    }

    /// Writes those files (name, bytes, BLAKE3) of `folder` that are not written yet, to `place`.
    async fn write(
        &mut self,
        place: &str,
        folder: &Path,
        files: impl Iterator<Item = (String, u64, String)>,
    ) -> Result<(), Failure> {
        let (remote, written) = (&self.remote, self.written.entry(place.to_owned()).or_default());
        let missing: Vec<_> = files.filter(|(file, ..)| !written.contains(file)).collect();
        let upload = |(file, bytes, blake3): (String, u64, String)| async move {
            let (key, path) = (format!("{place}/{file}"), folder.join(&file));
            remote.put_file(&key, &path, Some((bytes, &blake3))).await.map(|_| file)
        };
        let mut uploads = stream::iter(missing).map(upload).buffer_unordered(AT_ONCE);
        while let Some(uploaded) = uploads.next().await {
            written.insert(uploaded?);
        }
        Ok(())
    }

    /// Copies the newest snapshot and drops the oldest from the copy.
    async fn snapshot(&mut self, head: &Head, pass: &mut Pass) -> Result<(), Failure> {
        let store = SnapshotStore::at(&self.state.join(SNAPSHOTS));
        let known = head.snapshots();
        let newest = known.last().map(|(tick, _)| *tick);
        let ticks = store.list().map_err(|error| Failure::Local(error.into()))?;
        let Some(tick) = ticks.last().copied().filter(|tick| Some(*tick) > newest) else {
            return Ok(());
        };
        self.shared.pin(Some(tick));
        let Ok(snapshot) = store.get(tick) else { return Err(Failure::Gone) };
        let place = format!("e{}/{SNAPSHOTS}/{tick:020}", self.epoch);
        let chunks = snapshot.chunks().iter();
        let chunks = chunks.map(|chunk| (chunk.file(), chunk.file_bytes, chunk.blake3.clone()));
        self.write(&place, snapshot.dir(), chunks).await?;
        self.written.remove(&place);
        let key = self.fresh(&format!("{place}/manifest.json"));
        let piece = self.remote.put_file(&key, &snapshot.dir().join("manifest.json"), None).await?;
        pass.changes.push(Change::Set(snapshot_name(tick), vec![piece]));
        let over = (known.len() + 1).saturating_sub(self.snapshots_kept.max(2));
        for (tick, piece) in &known[..over] {
            pass.changes.push(Change::Remove(snapshot_name(*tick)));
            pass.retired.push(piece.folder().to_owned());
        }
        Ok(())
    }

    /// Copies what the manifest of a history lists, then the manifest.
    async fn history(
        &mut self,
        head: &Head,
        run: &str,
        folder: &Path,
        pass: &mut Pass,
    ) -> Result<(), Failure> {
        let place = format!("{HISTORY}/{run}");
        for _ in 0..TRIES {
            let files = HistoryFiles::of(folder).map_err(|error| Failure::Local(error.into()))?;
            if self.manifests.get(run) == Some(&files.manifest) {
                return Ok(());
            }
            if !self.written.contains_key(&place) {
                let listed = self.listed(head, &place).await?;
                self.written.insert(place.clone(), listed);
            }
            let parts = files.parts().map_err(|error| Failure::Local(error.into()))?;
            let members = parts.iter().map(|p| (p.file.clone(), p.bytes, p.blake3.clone()));
            match self.write(&place, folder, members).await {
                Ok(()) => {}
                // Merged into another part, which the manifest lists by now.
                Err(Failure::Gone) => continue,
                Err(failure) => return Err(failure),
            }
            for file in &files.others {
                let name = format!("{place}/{file}");
                if !head.files.contains_key(&name) {
                    let key = self.fresh(&name);
                    let piece = self.remote.put_file(&key, &folder.join(file), None).await?;
                    pass.changes.push(Change::Set(name, vec![piece]));
                }
            }
            let name = format!("{place}/manifest.json");
            let key = self.fresh(&name);
            let piece = self.remote.put(&key, files.manifest.clone().into()).await?;
            pass.changes.push(Change::Set(name, vec![piece]));
            if self.runs.last().is_some_and(|(last, _)| last == run) {
                pass.changes.push(Change::Run(run.to_owned()));
            }
            let listed: BTreeSet<&str> = parts.iter().map(|part| part.file.as_str()).collect();
            if let Some(written) = self.written.get_mut(&place) {
                let gone = written.iter().filter(|file| !listed.contains(file.as_str()));
                pass.retired.extend(gone.map(|file| format!("{place}/{file}")));
                written.retain(|file| listed.contains(file.as_str()));
            }
            pass.manifests.push((run.to_owned(), files.manifest));
            return Ok(());
        }
        Err(Failure::Gone)
    }

    /// The parts that the copy of a history lists.
    async fn listed(&self, head: &Head, place: &str) -> Result<BTreeSet<String>, Failure> {
        let pieces = head.files.get(&format!("{place}/manifest.json"));
        let Some(piece) = pieces.and_then(|pieces| pieces.first()) else {
            return Ok(BTreeSet::new());
        };
        let manifest = Manifest::parse(&self.remote.get(piece).await?, Path::new(&piece.key));
        let manifest = manifest.map_err(|error| Failure::Local(error.into()))?;
        Ok(manifest.parts.into_iter().map(|part| part.file).collect())
    }

    /// Makes few pieces of many: all of a file that grows no more, eight of a level of one that does.
    async fn merge(&mut self, head: &Head, changes: &mut Vec<Change>) -> Result<(), Failure> {
        for group in [JOURNAL, LEDGER] {
            let files: Vec<_> = head.group(group).collect();
            for (at, (file, pieces)) in files.iter().enumerate() {
                let Some(run) = to_merge(pieces, at + 1 < files.len()) else { continue };
                let path = self.state.join(group).join(file);
                let (before, merged) = (&pieces[..run.start], &pieces[run]);
                let from = before.iter().map(|piece| piece.bytes).sum();
                let length = merged.iter().map(|piece| piece.bytes).sum();
                let content = match tail::read(&path, from, length) {
                    Ok(content) => content,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(source) => {
                        return Err(ObjectsError::Io { doing: "read", path, source }.into());
                    }
                };
                let mut rest = content.as_slice();
                let same = merged.iter().all(|piece| {
                    let (of, behind) = rest.split_at(piece.bytes as usize);
                    rest = behind;
                    blake3::hash(of).to_hex().as_str() == piece.blake3
                });
                if !same {
                    let error = anyhow::anyhow!("`{}` is not what was written", path.display());
                    return Err(Failure::Local(error));
                }
                let keys = merged.iter().map(|piece| piece.key.clone()).collect();
                let level = merged.iter().map(|piece| piece.level).max().unwrap_or(0);
                let name = format!("{group}/{file}");
                let key = self.fresh(&format!("e{}/{name}", self.epoch));
                let piece = self.remote.put(&key, content.into()).await?;
                let piece = Piece { level: level.saturating_add(1), ..piece };
                changes.push(Change::Merge(name, keys, piece));
            }
        }
        Ok(())
    }

    fn retire(&mut self, keys: Vec<String>) {
        if !keys.is_empty() {
            self.retired.push_back((clock::instant(), keys));
        }
    }

    /// Deletes what nobody lists any more, once readers of an older head are done with it.
    async fn delete(&mut self) {
        while self.retired.front().is_some_and(|(since, _)| since.elapsed() >= GRACE) {
            let Some((_, keys)) = self.retired.pop_front() else { break };
            self.remote.delete(&keys).await;
        }
    }
}

/// The pieces that are to become one; `sealed` is a file that grows no more.
fn to_merge(pieces: &[Piece], sealed: bool) -> Option<std::ops::Range<usize>> {
    if sealed {
        return (pieces.len() > 1).then_some(0..pieces.len());
    }
    let same = |run: &[Piece]| run.iter().all(|piece| piece.level == run[0].level);
    let at = pieces.windows(MERGED_TOGETHER).position(same)?;
    Some(at..at + MERGED_TOGETHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that grows by a piece at a time never has many, and each byte is written again once
    /// for each level.
    #[test]
    fn pieces_stay_few() {
        let piece =
            |bytes, level| Piece { key: String::new(), bytes, blake3: String::new(), level };
        let (mut pieces, mut rewritten, mut most) = (Vec::<Piece>::new(), 0, 0);
        const GROWN: u64 = 86_400;
        for _ in 0..GROWN {
            pieces.push(piece(1, 0));
            while let Some(run) = to_merge(&pieces, false) {
                let bytes = pieces[run.clone()].iter().map(|piece| piece.bytes).sum();
                let level = pieces[run.start].level + 1;
                pieces.splice(run, [piece(bytes, level)]);
                rewritten += bytes;
            }
            most = most.max(pieces.len());
        }
        assert_eq!(pieces.iter().map(|piece| piece.bytes).sum::<u64>(), GROWN);
        assert!(most <= 7 * 6, "{most}");
        assert!(rewritten <= 5 * GROWN, "{rewritten}");
        assert_eq!(to_merge(&pieces, true), Some(0..pieces.len()));
        assert_eq!(to_merge(&pieces[..1], true), None);
    }
}
