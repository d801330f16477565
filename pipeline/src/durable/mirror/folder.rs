//! The state folder's side of its copy: a name of its own, and what must be known of a restore.
//!
//! `mirror.json` in the state folder: the name that the head of the copy carries, whether a restore
//! is under way (one that was interrupted begins again), and up to which tick actions are in doubt
//! because the ledger was restored from a copy that lagged behind.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::Context as _;
use omnify_operators::model::Tick;
use omnify_sinks::journal;
use omnify_sinks::objects::{
    self, Claim, Head, JOURNAL, LEDGER, ObjectsError, Owner, Remote, Restored, SNAPSHOTS,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::commands::output_error;

const FILE: &str = "mirror.json";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Mark {
    /// The folder's name.
    id: String,
    /// A restore has begun and has not ended.
    restoring: bool,
    /// The ledger was restored from a copy that may lack actions that were called.
    in_doubt: bool,
    /// Up to this tick; known once the journal was read.
    in_doubt_until: Option<Tick>,
}

impl Mark {
    fn load(state: &Path) -> anyhow::Result<Option<Mark>> {
        let path = state.join(FILE);
        match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            bytes => {
                let what =
                    || format!("`{}` cannot be read; restore it from a copy", path.display());
                let mark = serde_json::from_slice(&bytes.with_context(what)?);
                mark.with_context(what).map(Some)
            }
        }
    }

    fn new() -> anyhow::Result<Mark> {
        let mut id = [0; 16];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut id))
            .context("no name can be made for the state folder")?;
        let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Mark { id, ..Mark::default() })
    }

    fn save(&self, state: &Path) -> anyhow::Result<()> {
        let (path, temporary) = (state.join(FILE), state.join("mirror.json.tmp"));
        let write = || {
            fs::create_dir_all(state)?;
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(state)?.sync_all()
        };
        write().map_err(|error: std::io::Error| output_error(&path, &error).into())
    }
}

/// The folder's name; it gets one if it has none.
pub(super) fn id(state: &Path) -> anyhow::Result<String> {
    if let Some(mark) = Mark::load(state)? {
        return Ok(mark.id);
    }
    let mark = Mark::new()?;
    mark.save(state)?;
    Ok(mark.id)
}

/// The tick up to which actions that the ledger does not know may have been called all the same, 0 if
/// none. `last` is the last tick of the journal: the first start after a restore takes it.
pub fn in_doubt_until(state: &Path, last: Tick) -> anyhow::Result<Tick> {
    match Mark::load(state)? {
        Some(Mark { in_doubt_until: Some(tick), .. }) => Ok(tick),
        Some(mark) if mark.in_doubt => {
            Mark { in_doubt_until: Some(last), ..mark }.save(state)?;
            Ok(last)
        }
        _ => Ok(0),
    }
}

/// Refuses a folder that holds less than its copy.
pub(super) fn check(state: &Path, head: &Head, at: &str) -> Result<(), ObjectsError> {
    for group in [JOURNAL, LEDGER] {
        let newest = head.group(group).last().map(|(name, _)| name);
        for (name, pieces) in head.group(group) {
            let copied: u64 = pieces.iter().map(|piece| piece.bytes).sum();
            let file = state.join(group).join(name);
            let here = fs::metadata(&file).map(|metadata| metadata.len()).ok();
            // Older ones may have been removed: nobody needs them.
            let behind = here.map_or(newest == Some(name), |here| here < copied);
            if behind {
                return Err(ObjectsError::Behind {
                    at: at.to_owned(),
                    file: file.display().to_string(),
                    what: format!("{} bytes here, {copied} there", here.unwrap_or(0)),
                });
            }
        }
    }
    Ok(())
}

/// Restores the state folder, and the history below `histories`, from the copy, if the folder is empty
/// and there is a copy. Whoever wrote the copy before is fenced.
pub fn restore_if_empty(
    remote: &Remote,
    state: &Path,
    histories: Option<&Path>,
    runtime: &Handle,
) -> anyhow::Result<Option<Restored>> {
    let interrupted = Mark::load(state)?.is_some_and(|mark| mark.restoring);
    if interrupted {
        for folder in [JOURNAL, LEDGER, SNAPSHOTS].map(|name| state.join(name)) {
            if folder.exists() {
                fs::remove_dir_all(&folder).map_err(|error| output_error(&folder, &error))?;
            }
        }
    } else if !is_empty(state)? {
        return Ok(None);
    }
    let before = match runtime.block_on(remote.read_head()) {
        Err(ObjectsError::Nothing { .. }) if !interrupted => return Ok(None),
        before => before?,
    };
    tracing::info!(at = remote.name(), owner = before.owner, "restoring the state from its copy");
    let mark = Mark { restoring: true, ..Mark::new()? };
    mark.save(state)?;
    let owner = Owner { folder: mark.id.clone(), ..super::owner(before.strict) };
    let restored = runtime.block_on(async {
        let mut claim = Claim::take(remote, owner, true).await?;
        objects::restore(&mut claim, state, histories, before.strict).await
    })?;
    Mark { restoring: false, in_doubt: !restored.strict, ..mark }.save(state)?;
    tracing::info!(snapshot = restored.snapshot, history = restored.run, "restored");
    Ok(Some(restored))
}

/// Whether nothing of an engine is there.
fn is_empty(state: &Path) -> anyhow::Result<bool> {
    let any = |name: &str| {
        let entries = fs::read_dir(state.join(name)).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name() != "lock")
    };
    let ledger = fs::read_dir(state.join(LEDGER)).into_iter().flatten().flatten();
    let ledger = ledger.into_iter().any(|e| e.metadata().is_ok_and(|m| m.len() > 0));
    Ok(journal::segments(&state.join(JOURNAL))?.is_empty() && !any(SNAPSHOTS) && !ledger)
}
