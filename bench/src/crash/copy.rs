//! The copy on an object store, and the loss of the disk that it is for.
//!
//! An engine with one acknowledges nothing and acts on nothing that the copy does not hold
//! (`state.acknowledge = "mirror"`), so that the harness may take the whole folder away after any kill.
//! Nothing here looks into the copy: what it is worth is seen from what the engine makes of it.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde_json::Value;

use super::engine::Home;

/// What the log says when a restore begins.
pub(super) const RESTORING: &str = "restoring the state from its copy";
/// What the engine keeps of it.
const MARK: &str = "state/mirror.json";
/// An S3 server other than AWS, as `deploy/s3/run.sh env` names it.
const ENDPOINT: &str = "OMNIFY_S3_ENDPOINT";

/// From here on every life keeps a copy below `address`, at a place that no earlier run has used.
pub(super) fn install(home: &mut Home, address: &str) -> anyhow::Result<()> {
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    home.set(format!("state.remote={}/crash-{run}", address.trim_end_matches('/')));
    home.set("state.acknowledge=mirror");
    if let Ok(endpoint) = std::env::var(ENDPOINT) {
        home.set(format!("object_store.endpoint={endpoint}"));
        home.set("object_store.region=us-east-1");
        home.set("object_store.path_style=true");
        home.set("object_store.allow_http=true");
    }
    Ok(())
}

/// Whether requests to this store are signed with the time of day, so that a wrong clock is refused.
pub(super) fn wants_the_time(address: &str) -> bool {
    address.starts_with("s3://")
}

/// The disk is gone, with state and history.
pub(super) fn lose(data: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(data) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        gone => gone.with_context(|| format!("{} cannot be lost", data.display())),
    }
}

/// Whether a restore has begun here, if only to end.
pub(super) fn has_begun(data: &Path) -> bool {
    data.join(MARK).exists()
}

/// Whether a restore has begun here and has not ended.
pub(super) fn is_restoring(data: &Path) -> bool {
    let mark = fs::read(data.join(MARK)).unwrap_or_default();
    serde_json::from_slice::<Value>(&mark).is_ok_and(|mark| mark["restoring"] == true)
}
