//! From the state folder to everything that a start needs.
//!
//! The newest snapshot whose checksums hold is loaded; a damaged one is said and the one before it
//! taken, whose journal is still there. The registry gets its names back in the order in which they
//! were given out, so the ids inside the state hold. What came after the snapshot is the journal's
//! [`Tail`], which the engine works through before anything new.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use omnify_decision::stage::{Stage, StageConfig};
use omnify_operators::model::{EntityKey, Registry, RegistryView, Tick};
use omnify_operators::state::StateItem;
use omnify_sinks::disk::{Disk, FileSystem};
use omnify_sinks::journal::{JournalOptions, JournalReader, JournalWriter, StartRecord, Ticks};
use omnify_sinks::snapshot::{Snapshot, SnapshotStore};

use super::EngineState;
use super::snapshot::{ENGINE, OPERATORS, REGISTRY, STAGE, VERSION};

/// Folder of the journal below the state folder.
pub const JOURNAL: &str = "journal";
/// Folder of the snapshots below the state folder.
pub const SNAPSHOTS: &str = "snapshots";
/// Folder of the ledger of actions below the state folder.
pub const LEDGER: &str = "ledger";

/// What the journal holds after the snapshot.
pub struct Tail {
    /// The entries.
    pub entries: Ticks,
    /// The last of their ticks.
    pub last: Tick,
}

/// Where the engine stood.
pub struct Recovered {
    /// The journal, to be continued.
    pub writer: JournalWriter,
    /// Tick of the snapshot; `None` when there is none yet.
    pub snapshot: Option<Tick>,
    /// State of the operators.
    pub items: Vec<StateItem>,
    /// The stage as of the snapshot, or a new one.
    pub stage: Option<Stage>,
    /// The rest as of the snapshot.
    pub engine: EngineState,
    /// What came after the snapshot; `None` when nothing did.
    pub tail: Option<Tail>,
    /// How the last process that wrote to the journal was started.
    pub started: Option<StartRecord>,
}

/// Reads the state folder `dir` on `disk`; an empty one is a new engine. `registry` must be empty.
pub fn recover(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    registry: &Arc<Registry>,
    stage: Option<StageConfig>,
    options: JournalOptions,
) -> anyhow::Result<Recovered> {
    let start = start_on(disk, &dir.join(SNAPSHOTS), registry, stage.clone())?;
    let snapshot = start.as_ref().map(|start| start.tick);
    let Start { items, stage, engine, .. } = match start {
        Some(start) => start,
        None => Start { stage: stage.map(Stage::new).transpose()?, ..Start::default() },
    };
    let view = RegistryView::new(registry.clone());
    let (writer, opened) = JournalWriter::open_on(disk.clone(), &dir.join(JOURNAL), options, view)?;
    if opened.repaired_bytes > 0 {
        tracing::warn!(bytes = opened.repaired_bytes, "cut off the torn end of the journal");
    }
    let last = writer.last_tick().filter(|last| snapshot.is_none_or(|at| *last > at));
    let tail = last.map(|last| {
        let reader = JournalReader::open(&dir.join(JOURNAL))?;
        // Without a snapshot the journal must reach back to its beginning.
        reader.ticks(registry, snapshot.or(Some(0))).map(|entries| Tail { entries, last })
    });
    let (tail, started) = (tail.transpose()?, opened.last_start);
    Ok(Recovered { writer, snapshot, items, stage, engine, tail, started })
}

/// What a snapshot says.
#[derive(Default)]
pub struct Start {
    /// Its tick.
    pub tick: Tick,
    /// State of the operators.
    pub items: Vec<StateItem>,
    /// The stage.
    pub stage: Option<Stage>,
    /// The rest.
    pub engine: EngineState,
}

/// The newest good snapshot in `dir`; `None` where there is none. `registry` must be empty.
pub fn start_of(
    dir: &Path,
    registry: &Arc<Registry>,
    stage: Option<StageConfig>,
) -> anyhow::Result<Option<Start>> {
    let disk: Arc<dyn Disk> = Arc::new(FileSystem);
    start_on(&disk, dir, registry, stage)
}

fn start_on(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    registry: &Arc<Registry>,
    stage: Option<StageConfig>,
) -> anyhow::Result<Option<Start>> {
    if !dir.is_dir() {
        return Ok(None);
    }
    let found = SnapshotStore::open_on(disk.clone(), dir)?.newest_valid()?;
    for damaged in &found.damaged {
        tracing::error!(
            tick = damaged.tick,
            reason = damaged.reason,
            "a snapshot is damaged; the one before it is used"
        );
    }
    let Some(snapshot) = found.snapshot else { return Ok(None) };
    let tick = snapshot.manifest().tick;
    let start = load(&snapshot, registry, stage);
    start.with_context(|| format!("the snapshot of tick {tick} cannot be read")).map(Some)
}

fn load(
    snapshot: &Snapshot,
    registry: &Arc<Registry>,
    stage: Option<StageConfig>,
) -> anyhow::Result<Start> {
    let version = snapshot.manifest().version;
    anyhow::ensure!(
        version == VERSION,
        "it was written by another version of the engine (state version {version}, here {VERSION}): \
         start that version once more with this state and stop it in order, or move the snapshots \
         away, so that the whole journal is worked through again as far as it reaches back",
    );
    let keys: Vec<EntityKey> = postcard::from_bytes(&snapshot.chunk(REGISTRY)?)?;
    for (at, key) in keys.iter().enumerate() {
        let id = registry.intern(key);
        anyhow::ensure!(id.index() == at, "its names are out of order at `{key}`");
    }
    let engine = postcard::from_bytes(&snapshot.chunk(ENGINE)?)?;
    let mut items = Vec::new();
    for chunk in snapshot.chunks().iter().filter(|chunk| chunk.name.starts_with(OPERATORS)) {
        items.extend(postcard::from_bytes::<Vec<StateItem>>(&snapshot.chunk(&chunk.name)?)?);
    }
    let mut view = RegistryView::new(registry.clone());
    let held = snapshot.chunks().iter().any(|chunk| chunk.name == STAGE);
    let stage = match stage {
        Some(config) if held => Some(Stage::load(config, &snapshot.chunk(STAGE)?, &mut view)?),
        Some(config) => Some(Stage::new(config)?),
        None => None,
    };
    Ok(Start { tick: snapshot.manifest().tick, items, stage, engine })
}
