//! Addresses on the command line and in the configuration: the copy that `run` keeps, and what commands
//! that read take from one.
//!
//! A command that reads fetches what it needs into a temporary folder first, every byte compared with
//! what was written, and reads there.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use omnify_config::{Acknowledge, Checked};
use omnify_sinks::history::{Part, Table};
use omnify_sinks::objects::{self, Access, Address, ObjectsError};
use tempfile::TempDir;

use super::UsageError;
use crate::cli::Common;
use crate::durable::MirrorOptions;

/// What the configuration says of the way to an object store.
fn access(config: &Checked) -> Access {
    let store = &config.object_store;
    Access {
        endpoint: store.endpoint.clone(),
        region: store.region.clone(),
        path_style: store.path_style,
        allow_http: store.allow_http,
        timeout: store.timeout.duration(),
    }
}

/// The copy that the configuration asks for.
pub fn mirror(config: &Checked) -> anyhow::Result<Option<MirrorOptions>> {
    let state = &config.state;
    if !state.enabled || state.remote.is_empty() {
        return Ok(None);
    }
    let remote = Address::parse(&state.remote).and_then(|address| address.open(&access(config)));
    Ok(Some(MirrorOptions {
        remote: remote.context("state.remote")?,
        every: state.mirror_every.duration(),
        strict: state.acknowledge == Acknowledge::Mirror,
        backlog_bytes_max: state.mirror_backlog_max.bytes() as u64,
        snapshots_kept: state.snapshots_kept,
    }))
}

/// A folder to read from: a local one, or what was fetched, which is deleted in the end.
pub struct Fetched {
    path: PathBuf,
    _folder: Option<TempDir>,
}

impl Fetched {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn local(path: &Path) -> Fetched {
        Fetched { path: path.to_owned(), _folder: None }
    }
}

/// The history at `place`, a folder or an address (of a copy, or of one history in it); of a remote
/// one those parts that are `wanted`.
pub fn history(
    common: &Common,
    place: &Path,
    wanted: impl Fn(&Part) -> bool + Sync,
) -> anyhow::Result<Fetched> {
    let Some(text) = address(place) else { return Ok(Fetched::local(place)) };
    let (address, run) = Address::parse_run(text)?;
    let remote = address.open(&access(&*common.load(None)?))?;
    fetch("history", async |into| {
        objects::fetch_history(&remote, run.as_deref(), into, &wanted).await.map(drop)
    })
}

/// Every part.
pub fn all(_: &Part) -> bool {
    true
}

/// Parts of one table.
pub fn of_table(table: Table) -> impl Fn(&Part) -> bool + Sync {
    move |part| part.table == table
}

/// The journal at `place`, a folder or the address of a copy.
pub fn journal(common: &Common, place: &Path) -> anyhow::Result<Fetched> {
    let Some(text) = address(place) else { return Ok(Fetched::local(place)) };
    let remote = Address::parse(text)?.open(&access(&*common.load(None)?))?;
    fetch("journal", async |into| objects::fetch_journal(&remote, into).await)
}

/// Refuses an address where the command changes what is there.
pub fn only_local(place: &Path, instead: &str) -> Result<(), UsageError> {
    match address(place) {
        Some(text) => Err(UsageError(format!("{text} is a copy and is not changed: {instead}"))),
        None => Ok(()),
    }
}

fn address(place: &Path) -> Option<&str> {
    place.to_str().filter(|text| Address::is_one(text))
}

fn fetch(
    name: &str,
    with: impl AsyncFnOnce(&Path) -> Result<(), ObjectsError>,
) -> anyhow::Result<Fetched> {
    let folder = TempDir::with_prefix("omnify-")
        .context("no temporary folder can be made; set TMPDIR to one with room")?;
    let path = folder.path().join(name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(with(&path))?;
    Ok(Fetched { path, _folder: Some(folder) })
}
