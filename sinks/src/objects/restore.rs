//! From the copy to an empty state folder.
//!
//! The newest snapshot whose objects are all as they were written, else the one before; the journal
//! behind it; the ledger; and the history that was being written, with all of its parts. What cannot
//! be had and is not needed is said and left out of the copy from then on; what is needed and cannot
//! be had is an error that names the object.

use std::fs::{self, File};
use std::path::Path;

use omnify_operators::model::Tick;

use super::fetch;
use super::head::{JOURNAL, LEDGER, SNAPSHOTS};
use super::{Change, Claim, ObjectsError};
use crate::journal;

/// What was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Tick of the snapshot.
    pub snapshot: Option<Tick>,
    /// Name of the history.
    pub run: Option<String>,
    /// Everything that was acted on is in the restored ledger.
    pub strict: bool,
    /// What is missing or damaged in the copy, and was not needed.
    pub damaged: Vec<String>,
}

/// Restores the copy that `claim` has taken over into the folder `state`, and the history below
/// `histories`. `strict` is what the head said before the claim.
pub async fn restore(
    claim: &mut Claim,
    state: &Path,
    histories: Option<&Path>,
    strict: bool,
) -> Result<Restored, ObjectsError> {
    let (remote, head) = (claim.remote().clone(), claim.head().clone());
    let mut restored = Restored { strict, ..Restored::default() };
    let mut changes = Vec::new();
    for (tick, piece) in head.snapshots().into_iter().rev() {
        let name = format!("{tick:020}");
        match fetch::snapshot(&remote, piece, &state.join(SNAPSHOTS).join(&name)).await {
            Ok(()) => {
                restored.snapshot = Some(tick);
                break;
            }
            Err(error @ ObjectsError::Damaged { .. }) => {
                tracing::error!(tick, %error, "a copied snapshot is damaged; the one before is used");
                restored.damaged.push(error.to_string());
                changes.push(Change::Remove(format!("{SNAPSHOTS}/{name}/{}", fetch::MANIFEST)));
                let folder = state.join(SNAPSHOTS).join(&name);
                if folder.exists() {
                    fs::remove_dir_all(&folder).map_err(ObjectsError::io("remove", &folder))?;
                }
            }
            Err(error) => return Err(error),
        }
    }
    // Newest first: what is older than the snapshot may be damaged.
    let mut newer: Option<Tick> = None;
    for (name, pieces) in head.group(JOURNAL).rev() {
        let needed = newer.zip(restored.snapshot).is_none_or(|(newer, at)| newer > at + 1);
        match fetch::grown(&remote, pieces, &state.join(JOURNAL).join(name)).await {
            Ok(()) => newer = journal::first_tick_of(name),
            Err(error @ ObjectsError::Damaged { .. }) if !needed => {
                tracing::error!(%error, "the copied journal does not reach back further");
                restored.damaged.push(error.to_string());
                let older = head.group(JOURNAL).map(|(name, _)| name).filter(|n| *n <= name);
                changes.extend(older.map(|name| Change::Remove(format!("{JOURNAL}/{name}"))));
                break;
            }
            Err(error) => return Err(error),
        }
    }
    let last = head.group(LEDGER).last().map(|(name, _)| name.to_owned());
    for (name, pieces) in head.group(LEDGER) {
        match fetch::grown(&remote, pieces, &state.join(LEDGER).join(name)).await {
            Ok(()) => {}
            // The last one holds all that is unfinished; what ended is looked up on the platform.
            Err(error @ ObjectsError::Damaged { .. }) if last.as_deref() != Some(name) => {
                tracing::error!(%error, "a part of the copied ledger is damaged");
                restored.damaged.push(error.to_string());
                restored.strict = false;
                changes.push(Change::Remove(format!("{LEDGER}/{name}")));
            }
            Err(error) => return Err(error),
        }
    }
    if let (Some(root), Some(run)) = (histories, &head.run) {
        let into = root.join(run);
        let damaged = fetch::history(&remote, &head, run, &into, &|_| true).await?;
        for error in damaged {
            tracing::error!(%error, "a part of the history is lost; the engine goes on without it");
            restored.damaged.push(error.to_string());
        }
        sync_folder(&into)?;
        restored.run = Some(run.clone());
    }
    for folder in [JOURNAL, LEDGER, SNAPSHOTS].map(|name| state.join(name)) {
        if folder.is_dir() {
            sync_folder(&folder)?;
        }
    }
    claim.commit(&changes, false).await?;
    Ok(restored)
}

fn sync_folder(path: &Path) -> Result<(), ObjectsError> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(ObjectsError::io("make durable", path))
}
