//! Where an earlier process stood, and the history it wrote.
//!
//! A history can be replayed from its first tick, so it is continued only by an engine of the same
//! configuration that goes on exactly where it ends. In all other cases a new one begins; when the
//! engine is not new itself, the new history keeps the snapshot it begins with in its folder
//! [`START`], from where a replay starts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use jiff::Timestamp;
use omnify_config::Checked;
use omnify_decision::stage::Stage;
use omnify_operators::model::{Registry, RegistryView, Tick};
use omnify_operators::spec::FeatureSpec;
use omnify_operators::state::StateItem;
use omnify_sinks::disk::{Disk, FileSystem};
use omnify_sinks::history::{
    HistoryError, HistoryMeta, HistoryWriter, START_FOLDER, WriterOptions,
};
use omnify_sinks::journal::{JournalOptions, Retention, StartRecord};
use omnify_sinks::snapshot::SnapshotStore;

use super::HistoryAt;
use crate::clock::Clock;
use crate::commands::output_error;
use crate::durable::{
    Claimed, EngineState, JOURNAL, Journal, OnDurable, Recovered, SNAPSHOTS, Tail, Writing, recover,
};
use crate::setup::{self, Mode};

/// Folder, in a history, of the snapshot that it begins with.
pub const START: &str = START_FOLDER;

/// Where the past is kept.
pub(super) struct Place<'a> {
    pub(super) disk: &'a Arc<dyn Disk>,
    /// The state folder, if there is one.
    pub(super) state: Option<&'a Path>,
    pub(super) history: Option<HistoryAt>,
    /// The copy elsewhere, if there is one.
    pub(super) claimed: Option<&'a Claimed>,
}

/// Everything that the state folder and the history say.
pub(super) struct Past {
    pub(super) stage: Option<Stage>,
    pub(super) writer: Option<HistoryWriter>,
    /// Folder of the history.
    pub(super) history: Option<PathBuf>,
    /// The journal, and what writes it.
    pub(super) journal: Option<(Journal, Writing)>,
    pub(super) snapshots_dir: Option<PathBuf>,
    pub(super) restore: Option<(Tick, Vec<StateItem>)>,
    pub(super) tail: Option<Tail>,
    pub(super) engine: EngineState,
    /// The last tick of an earlier process; 0 for a new engine.
    pub(super) last: Tick,
}

impl Past {
    /// Opens both. Without a state folder the engine is new. `told` hears what becomes durable, and a
    /// copy elsewhere what is there.
    pub(super) fn open(
        place: Place<'_>,
        config: &Arc<Checked>,
        registry: &Arc<Registry>,
        spec: &FeatureSpec,
        clock: &Clock,
        told: OnDurable,
    ) -> anyhow::Result<Past> {
        let Place { disk, state, history, claimed } = place;
        let stage = setup::stage_config(config);
        let view = RegistryView::new(registry.clone());
        let epoch = claimed.map(Claimed::epoch);
        let histories = Histories { disk, config, spec, view: &view, clock, epoch };
        let Some(dir) = state else {
            let (writer, history) = histories.open(history, None)?.unzip();
            return Ok(Past {
                stage: stage.map(Stage::new).transpose()?,
                writer,
                history,
                journal: None,
                snapshots_dir: None,
                restore: None,
                tail: None,
                engine: EngineState::default(),
                last: 0,
            });
        };
        std::fs::create_dir_all(dir)
            .map_err(|error| output_error(dir, &error))
            .context("state.dir")?;
        let recovered = recover(disk, dir, registry, stage, journal_options(config))?;
        let (writer, history) = histories.open(history, Some((dir, &recovered)))?.unzip();
        let Recovered { writer: mut journal, snapshot, items, stage, mut engine, tail, started } =
            recovered;
        if started.and_then(|started| started.history) != history.as_deref().and_then(name_of) {
            // The record of decisions begins with its history.
            engine.digest = [0; 32];
        }
        journal.started(StartRecord {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config_toml: config.outcome_toml(),
            history: history.as_deref().and_then(name_of),
            wall_tick: clock.now(),
            ..StartRecord::default()
        });
        let limits = Retention {
            keep_from: 0,
            bytes_max: config.state.journal_bytes_max.bytes() as u64,
            age_ms_max: setup::ms(config.state.journal_age_max),
        };
        let last = tail.as_ref().map(|tail| tail.last).or(snapshot).unwrap_or(0);
        let patience = config.state.disk_patience.duration();
        let queue = config.state.queue_journal;
        Ok(Past {
            stage,
            writer,
            history,
            journal: Some(Journal::new(
                journal,
                limits,
                patience,
                queue,
                clock.clone(),
                told,
                claimed.map(Claimed::copy),
            )?),
            snapshots_dir: Some(dir.join(SNAPSHOTS)),
            restore: snapshot.map(|tick| (tick, items)),
            tail,
            engine,
            last,
        })
    }
}

/// What the journal is told.
fn journal_options(config: &Checked) -> JournalOptions {
    JournalOptions {
        segment_bytes: config.state.journal_segment.bytes() as u64,
        ..JournalOptions::default()
    }
}

/// The configuration under which the ticks after the last snapshot were made, if there are such
/// ticks and it is not `config`: they have to be made once more under theirs.
pub fn other_config(state: &Path, config: &Checked) -> anyhow::Result<Option<String>> {
    if !state.join(JOURNAL).exists() {
        return Ok(None);
    }
    let registry = Arc::new(setup::registry(&Arc::new(config.clone())));
    let disk: Arc<dyn Disk> = Arc::new(FileSystem);
    let recovered = recover(&disk, state, &registry, None, journal_options(config))?;
    let before = recovered.tail.and(recovered.started).map(|started| started.config_toml);
    Ok(before.filter(|before| *before != config.outcome_toml()))
}

fn name_of(folder: &Path) -> Option<String> {
    Some(folder.file_name()?.to_string_lossy().into_owned())
}

/// Finds or makes the folder of a history.
struct Histories<'a> {
    disk: &'a Arc<dyn Disk>,
    config: &'a Arc<Checked>,
    spec: &'a FeatureSpec,
    view: &'a RegistryView,
    clock: &'a Clock,
    /// Of the copy, if there is one.
    epoch: Option<u64>,
}

impl Histories<'_> {
    /// The writer and the folder; `past` is the state folder and what it says.
    fn open(
        &self,
        at: Option<HistoryAt>,
        past: Option<(&Path, &Recovered)>,
    ) -> anyhow::Result<Option<(HistoryWriter, PathBuf)>> {
        let root = match at {
            None => return Ok(None),
            Some(HistoryAt::Folder(folder)) => {
                let writer = self.create(&folder, past.is_some())?;
                return Ok(Some((writer, folder)));
            }
            Some(HistoryAt::Below(root)) => root,
        };
        if let Some((_, recovered)) = past
            && let Some(found) = self.go_on(&root, recovered)?
        {
            return Ok(Some(found));
        }
        let folder = new_folder(&root, self.clock.now())?;
        if let Some((dir, recovered)) = past
            && let Some(tick) = recovered.snapshot
        {
            copy_snapshot(dir, tick, &folder)?;
        }
        Ok(Some((self.create(&folder, past.is_some())?, folder)))
    }

    fn create(&self, folder: &Path, journal: bool) -> anyhow::Result<HistoryWriter> {
        let (view, options, disk) = (self.view.clone(), self.options(journal), self.disk.clone());
        let writer = HistoryWriter::create_on(folder.to_owned(), self.meta(), view, options, disk)?;
        Ok(self.with_currencies(writer))
    }

    /// The history of the earlier process, if this one can go on with it.
    fn go_on(
        &self,
        root: &Path,
        recovered: &Recovered,
    ) -> anyhow::Result<Option<(HistoryWriter, PathBuf)>> {
        let name = recovered.started.as_ref().and_then(|started| started.history.as_ref());
        let Some(folder) = name.map(|name| root.join(name)).filter(|folder| folder.is_dir()) else {
            return Ok(None);
        };
        let (view, options, disk) = (self.view.clone(), self.options(true), self.disk.clone());
        match HistoryWriter::open_on(folder.clone(), self.meta(), view, options, disk) {
            Ok(writer) if writer.last_tick() >= recovered.snapshot => {
                Ok(Some((self.with_currencies(writer), folder)))
            }
            Ok(writer) => {
                tracing::error!(
                    history = %folder.display(), last_tick = writer.last_tick(),
                    snapshot = recovered.snapshot,
                    "the history ends before the snapshot, so another one begins; it was changed \
                     by somebody else",
                );
                Ok(None)
            }
            // Another configuration, or another version of the engine.
            Err(HistoryError::OtherRun { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn meta(&self) -> HistoryMeta {
        setup::history_meta(self.config, self.spec, Mode::Live)
    }

    /// With a journal, commits happen only where a restart can go on.
    fn options(&self, journal: bool) -> WriterOptions {
        let options = setup::writer_options(self.config);
        WriterOptions {
            commit_rows: if journal { 0 } else { options.commit_rows },
            // Another process may have used any name before, and its copy may still be there.
            names_from: self.epoch.map_or(0, |epoch| epoch << 32),
            ..options
        }
    }

    fn with_currencies(&self, writer: HistoryWriter) -> HistoryWriter {
        let of = self.config.clone();
        writer.with_currencies(Box::new(move |key| setup::currency_of(&of, key)))
    }
}

/// Keeps the snapshot of `tick` with the history that begins with it.
fn copy_snapshot(state: &Path, tick: Tick, history: &Path) -> anyhow::Result<()> {
    let snapshot = SnapshotStore::open(&state.join(SNAPSHOTS))?.get(tick)?;
    let from = snapshot.dir();
    let to = history.join(START).join(from.file_name().unwrap_or_default());
    let failed = |error: std::io::Error| output_error(&to, &error);
    std::fs::create_dir_all(&to).map_err(failed)?;
    for entry in std::fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        std::fs::copy(entry.path(), to.join(entry.file_name())).map_err(failed)?;
    }
    Ok(())
}

/// A folder for a new history below `root`, named by the time: `run-20260105T101500Z`, with a
/// number behind it where that is taken.
fn new_folder(root: &Path, now_ms: u64) -> anyhow::Result<PathBuf> {
    let now = Timestamp::from_millisecond(i64::try_from(now_ms)?)?;
    let name = format!("run-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    std::fs::create_dir_all(root)
        .map_err(|error| output_error(root, &error))
        .context("history.dir")?;
    for number in 1..1_000 {
        let folder = match number {
            1 => root.join(&name),
            number => root.join(format!("{name}-{number}")),
        };
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(output_error(&folder, &error).into()),
        }
    }
    anyhow::bail!("{}: too many starts within a second", root.join(name).display())
}
