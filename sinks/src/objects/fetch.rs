//! From the store to a folder, every byte compared with what was written.

use std::fs;
use std::io::Write;
use std::path::Path;

use futures::{StreamExt, stream};

use super::head::{HISTORY, JOURNAL};
use super::{Head, ObjectsError, Piece, Remote};
use crate::history::{Manifest, Part};
use crate::snapshot::ManifestFile;

/// Objects fetched at once.
const AT_ONCE: usize = 8;
/// Name of the manifest, of snapshots and of histories alike.
pub(super) const MANIFEST: &str = "manifest.json";

/// Fetches a history into the (new) folder `into`: the one named `run`, or the one that was written
/// last. `wanted` chooses parts. Returns its name.
pub async fn fetch_history(
    remote: &Remote,
    run: Option<&str>,
    into: &Path,
    wanted: &(dyn Fn(&Part) -> bool + Sync),
) -> Result<String, ObjectsError> {
    let head = remote.read_head().await?;
    let run = run.or(head.run.as_deref()).unwrap_or_default();
    let damaged = history(remote, &head, run, into, wanted).await?;
    damaged.into_iter().next().map_or(Ok(run.to_owned()), Err)
}

/// Fetches the journal into the (new) folder `into`.
pub async fn fetch_journal(remote: &Remote, into: &Path) -> Result<(), ObjectsError> {
    let head = remote.read_head().await?;
    fs::create_dir_all(into).map_err(ObjectsError::io("create", into))?;
    for (name, pieces) in head.group(JOURNAL) {
        grown(remote, pieces, &into.join(name)).await?;
    }
    Ok(())
}

/// Fetches what `head` says of history `run` into `into`; returns what is wrong with single parts,
/// which are left out.
pub(super) async fn history(
    remote: &Remote,
    head: &Head,
    run: &str,
    into: &Path,
    wanted: &(dyn Fn(&Part) -> bool + Sync),
) -> Result<Vec<ObjectsError>, ObjectsError> {
    let group = format!("{HISTORY}/{run}");
    let nothing = || ObjectsError::Nothing {
        at: remote.name().to_owned(),
        what: format!("no history `{run}`"),
    };
    let pieces = head.files.get(&format!("{group}/{MANIFEST}")).ok_or_else(nothing)?;
    let piece = pieces.first().ok_or_else(nothing)?;
    let parts = parts(remote, piece).await?;
    for (name, pieces) in head.group(&group).filter(|(name, _)| *name != MANIFEST) {
        grown(remote, pieces, &into.join(name)).await?;
    }
    let wanted = parts.iter().filter(|part| wanted(part));
    let members = wanted.map(|part| (part.file.clone(), part.bytes, part.blake3.clone()));
    let damaged = members_of(remote, piece, into, members.collect()).await?;
    grown(remote, pieces, &into.join(MANIFEST)).await?;
    Ok(damaged)
}

/// The parts that the history's manifest in `piece` lists.
pub(super) async fn parts(remote: &Remote, piece: &Piece) -> Result<Vec<Part>, ObjectsError> {
    let bytes = remote.get(piece).await?;
    let manifest = Manifest::parse(&bytes, Path::new(&piece.key));
    manifest
        .map(|manifest| manifest.parts)
        .map_err(|error| ObjectsError::Damaged { key: piece.key.clone(), what: error.to_string() })
}

/// Fetches the snapshot whose manifest is in `piece` into the folder `into`.
pub(super) async fn snapshot(
    remote: &Remote,
    piece: &Piece,
    into: &Path,
) -> Result<(), ObjectsError> {
    let bytes = remote.get(piece).await?;
    let manifest = ManifestFile::parse(&bytes, Path::new(&piece.key)).map_err(|error| {
        ObjectsError::Damaged { key: piece.key.clone(), what: error.to_string() }
    })?;
    let members = manifest.chunks.into_iter();
    let members = members.map(|chunk| (chunk.file(), chunk.file_bytes, chunk.blake3)).collect();
    fs::create_dir_all(into).map_err(ObjectsError::io("create", into))?;
    let damaged = members_of(remote, piece, into, members).await?;
    if let Some(damaged) = damaged.into_iter().next() {
        return Err(damaged);
    }
    write(&into.join(MANIFEST), &[bytes])
}

/// Fetches the files (name, bytes, BLAKE3) that the manifest in `piece` lists; a file that is there
/// already, as it should be, is left. Returns what is missing or damaged.
async fn members_of(
    remote: &Remote,
    piece: &Piece,
    into: &Path,
    members: Vec<(String, u64, String)>,
) -> Result<Vec<ObjectsError>, ObjectsError> {
    let fetch = |(file, bytes, blake3): (String, u64, String)| async move {
        let path = into.join(&file);
        let folder = path.parent().unwrap_or(into);
        fs::create_dir_all(folder).map_err(ObjectsError::io("create", folder))?;
        if holds(&path, bytes, &blake3) {
            return Ok(());
        }
        let piece = Piece { key: format!("{}{file}", piece.folder()), bytes, blake3, level: 0 };
        remote.get_file(&piece, &path).await
    };
    let fetched: Vec<_> =
        stream::iter(members).map(fetch).buffer_unordered(AT_ONCE).collect().await;
    let mut damaged = Vec::new();
    for result in fetched {
        match result {
            Ok(()) => {}
            Err(error @ ObjectsError::Damaged { .. }) => damaged.push(error),
            Err(error) => return Err(error),
        }
    }
    Ok(damaged)
}

fn holds(path: &Path, bytes: u64, blake3: &str) -> bool {
    let hash = || {
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut fs::File::open(path).ok()?, &mut hasher).ok()?;
        Some(hasher.finalize())
    };
    path.metadata().is_ok_and(|metadata| metadata.len() == bytes)
        && hash().is_some_and(|hash| hash.to_hex().as_str() == blake3)
}

/// Fetches a file that consists of pieces.
pub(super) async fn grown(
    remote: &Remote,
    pieces: &[Piece],
    path: &Path,
) -> Result<(), ObjectsError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(ObjectsError::io("create", folder))?;
    let fetched = stream::iter(pieces).map(|piece| remote.get(piece)).buffered(AT_ONCE);
    let fetched: Vec<_> = fetched.collect().await;
    let contents = fetched.into_iter().collect::<Result<Vec<_>, _>>()?;
    write(path, &contents)
}

fn write(path: &Path, contents: &[bytes::Bytes]) -> Result<(), ObjectsError> {
    let write = || {
        let mut file = fs::File::create(path)?;
        contents.iter().try_for_each(|content| file.write_all(content))?;
        file.sync_all()
    };
    write().map_err(ObjectsError::io("write", path))
}
