//! `omnify replay`: a history again, exactly, or a foreign file through the same engine.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use clap::Args;
use omnify_config::Checked;
use omnify_decision::stage::Stage;
use omnify_operators::model::{Registry, RegistryView};
use omnify_operators::spec::{FeatureSpec, PaneRows};
use omnify_sinks::history::{Difference, HistoryError, HistoryReader, HistoryWriter, Table};
use serde_json::json;

use super::{Done, UsageError, remote, totals, totals_text};
use crate::cli::Common;
use crate::clock::{self, Clock};
use crate::decode::{Door, Mapping};
use crate::durable;
use crate::engine::feed::{FileFeed, Finish, Idle, RecordFeed};
use crate::engine::{self, BoxedFeed, Decider, Recorder, Resume, RunSummary, Wakers, Watches};
use crate::live::START;
use crate::progress::{self, Bar};
use crate::setup::{self, Mode};
use crate::source::{self, ReadOptions, Source};

/// Options of `replay`.
#[derive(Args, Clone, Debug, Default)]
pub struct ReplayArgs {
    /// Folder of a history to replay, or s3://bucket/prefix of a copy (the newest history in it, or
    /// …/history/NAME).
    #[arg(required_unless_present = "input", conflicts_with = "input")]
    pub history: Option<PathBuf>,
    /// Checks the history and that the replay gives the same decisions.
    #[arg(long, requires = "history")]
    pub verify: bool,
    /// A foreign file, or a folder of files (Parquet, CSV, NDJSON; plain, gzip or zstd).
    #[arg(long, value_name = "FILE|FOLDER")]
    pub input: Option<PathBuf>,
    /// How its columns map to fields: a shipped name (generic, dsp_log, daily_report) or a file.
    #[arg(long, default_value = "generic", value_name = "NAME|FILE")]
    pub mapping: String,
    /// Writes a history of the run to this (new) folder.
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Worker threads; overrides engine.workers.
    #[arg(long)]
    pub workers: Option<usize>,
}

/// Replays.
pub fn execute(common: &Common, args: &ReplayArgs) -> anyhow::Result<Done> {
    match (&args.history, &args.input) {
        (Some(history), _) => record(common, args, history),
        (None, Some(input)) => files(common, args, input),
        (None, None) => Err(UsageError("name a history, or a file with --input".into()).into()),
    }
}

/// The engine over a record or over files, apart from where its input comes from.
pub struct Offline {
    /// Configuration.
    pub config: Arc<Checked>,
    /// What the graph computes.
    pub spec: Arc<FeatureSpec>,
    /// Entities.
    pub registry: Arc<Registry>,
    /// Folder of the history to write, if one is wanted.
    pub out: Option<PathBuf>,
    /// Worker threads.
    pub workers: usize,
    mode: Mode,
}

impl Offline {
    /// Prepares a run; `out` decides whether rows leave the graph at all.
    pub fn new(
        config: Arc<Checked>,
        mode: Mode,
        out: Option<PathBuf>,
        workers: Option<usize>,
    ) -> anyhow::Result<Offline> {
        let mut spec = setup::feature_spec(&config, mode)?;
        spec.pane_rows = if out.is_some() { PaneRows::Emit } else { PaneRows::Count };
        spec.emit_events = out.is_some();
        Ok(Offline {
            registry: Arc::new(setup::registry(&config)),
            workers: workers.unwrap_or_else(|| setup::workers(&config)).max(1),
            spec: Arc::new(spec),
            out,
            config,
            mode,
        })
    }

    /// Runs `feeds`, one for each worker, from nothing.
    pub fn run(
        &self,
        feeds: Vec<BoxedFeed>,
    ) -> anyhow::Result<(RunSummary, Option<anyhow::Error>)> {
        let stage = setup::stage_config(&self.config).map(Stage::new).transpose()?;
        self.resume(feeds, stage, None)
    }

    /// Runs `feeds`, the first of which begins with the operators' state that goes with `stage`.
    fn resume(
        &self,
        feeds: Vec<BoxedFeed>,
        stage: Option<Stage>,
        resume: Option<Resume>,
    ) -> anyhow::Result<(RunSummary, Option<anyhow::Error>)> {
        let view = RegistryView::new(self.registry.clone());
        let recorder = match &self.out {
            Some(out) => Some(self.recorder(out, &view)?),
            None => None,
        };
        let decider = Decider {
            stage,
            view: view.clone(),
            windows: self.spec.windows.len(),
            recorder,
            execution: None,
            board: None,
            book: Arc::new(RwLock::default()),
            decided: Arc::default(),
            clock: Clock::manual(0),
            durable: Vec::new(),
            snapshots: None,
            outputs: None,
            watches: Watches::default(),
            resume,
        };
        let queue = self.config.engine.queue_frames;
        engine::run(self.spec.clone(), view, feeds, queue, Wakers::default(), decider, None)
    }

    fn recorder(&self, out: &Path, view: &RegistryView) -> anyhow::Result<Recorder> {
        let meta = setup::history_meta(&self.config, &self.spec, self.mode);
        let options = setup::writer_options(&self.config);
        let config = self.config.clone();
        let writer = HistoryWriter::create(out, meta, view.clone(), options)?
            .with_currencies(Box::new(move |key| setup::currency_of(&config, key)));
        let queue = self.config.engine.queue_history;
        let patience = self.config.state.disk_patience.duration();
        Ok(Recorder::start(writer, view.clone(), queue, patience, None, None)?)
    }
}

/// The feeds of a foreign file or folder: one reads, or all do where the file's statistics show
/// that its row groups follow each other in time.
pub fn file_feeds(
    run: &Offline,
    input: &Path,
    mapping: &Mapping,
    bar: &Bar,
) -> anyhow::Result<Vec<BoxedFeed>> {
    let config = &run.config;
    let door = Arc::new(Door::new(run.registry.clone(), setup::limits(config)));
    let options =
        ReadOptions { batch_rows: config.replay.batch_rows, projection: setup::projection(config) };
    let grain_ms = setup::ms(config.replay.tick);
    let finish = Finish::new(run.workers, grain_ms, run.spec.clone(), setup::zones(config));
    let reorder_rows = config.replay.reorder_rows;
    let feed = |source: Option<Box<dyn Source>>| -> BoxedFeed {
        let bar = bar.clone();
        let told = Box::new(move |progress| bar.at(progress));
        Box::new(FileFeed::new(source, reorder_rows, finish.clone(), told))
    };
    if run.workers > 1 && source::row_groups_follow(input, mapping)? {
        let parts = source::open_parquet_parallel(input, mapping, &door, options, run.workers)?;
        return Ok(parts.into_iter().map(|part| feed(Some(part))).collect());
    }
    let source = source::open(input, mapping, &door, options)?;
    Ok([Some(source)].into_iter().chain((1..run.workers).map(|_| None)).map(feed).collect())
}

fn files(common: &Common, args: &ReplayArgs, input: &Path) -> anyhow::Result<Done> {
    let config = common.load(None)?;
    if config.executor.kind != omnify_config::ExecutorKind::DryRun {
        let what = "a foreign file is replayed as a dry run only: leave executor.kind at dry_run";
        return Err(UsageError(what.into()).into());
    }
    let mapping = Mapping::load(&args.mapping)?;
    let run = Offline::new(config, Mode::Files, args.out.clone(), args.workers)?;
    let bar = progress::bytes(common, "reading");
    let feeds = file_feeds(&run, input, &mapping, &bar)?;
    let started = clock::instant();
    let (summary, failure) = run.run(feeds)?;
    let seconds = started.elapsed().as_secs_f64();
    bar.done();
    let mut answer = totals(&summary);
    answer["seconds"] = json!(seconds);
    answer["workers"] = json!(run.workers);
    answer["history"] = json!({ "dir": args.out, "tables": summary.history });
    match failure {
        // What was read before the damage is in the history; the caller must know of the rest.
        Some(error) => Err(error.context(format!(
            "{} of {} events were taken before the input ended",
            summary.counters.featured, summary.counters.events_in
        ))),
        None => Ok(Done { answer, text: totals_text(&summary), code: 0 }),
    }
}

fn record(common: &Common, args: &ReplayArgs, place: &Path) -> anyhow::Result<Done> {
    let fetched = remote::history(common, place, remote::all)?;
    let dir = fetched.path();
    let reader = HistoryReader::open(dir)?;
    let config = common.load(Some(("config.toml of the history", &reader.meta().config_toml)))?;
    let started = clock::instant();
    if args.verify {
        let bar = progress::bytes(common, "verifying");
        let found = reader.verify(&mut |at| bar.at((at.bytes, at.bytes_total)))?;
        bar.done();
        if let Some(difference) = found.difference {
            return Ok(differs(&difference));
        }
    }
    let run = Offline::new(config, Mode::of(reader.meta()), args.out.clone(), args.workers)?;
    let start =
        durable::start_of(&dir.join(START), &run.registry, setup::stage_config(&run.config))?;
    let (stage, resume, state) = match start {
        None => (setup::stage_config(&run.config).map(Stage::new).transpose()?, None, None),
        Some(start) => {
            // The record of decisions begins with this history.
            let mut state = start.engine;
            state.digest = [0; 32];
            let resume = Resume { state, until: start.tick };
            (start.stage, Some(resume), Some((start.tick, start.items)))
        }
    };
    let record = reader.replay(run.registry.clone());
    let mut feeds: Vec<BoxedFeed> = vec![Box::new(RecordFeed::new(record, state))];
    feeds.extend((1..run.workers).map(|_| Box::new(Idle) as BoxedFeed));
    let (summary, failure) = run.resume(feeds, stage, resume)?;
    if let Some(error) = failure {
        return match error.downcast::<HistoryError>() {
            Ok(HistoryError::Difference(difference)) => Ok(differs(&difference)),
            Ok(error) => Err(error.into()),
            Err(error) => Err(error),
        };
    }
    let difference = match &summary.diverged {
        Some((tick, decisions)) => Some(first_difference(&reader, *tick, decisions)?),
        None => None,
    };
    let mut answer = totals(&summary);
    answer["seconds"] = json!(started.elapsed().as_secs_f64());
    answer["workers"] = json!(run.workers);
    answer["identical"] = json!(difference.is_none());
    answer["ticks_compared"] = json!(summary.compared);
    answer["difference"] = json!(difference);
    let mut text = totals_text(&summary);
    text += &match &difference {
        None => format!("identical     {} ticks compared\n", summary.compared),
        Some(difference) => format!("{difference}\n"),
    };
    Ok(Done { answer, text, code: u8::from(difference.is_some()) })
}

fn differs(difference: &Difference) -> Done {
    let answer = json!({
        "identical": false,
        "difference": difference,
        "tick": difference.tick,
        "entity": difference.entity,
    });
    Done { answer, text: format!("{difference}\n"), code: 1 }
}

/// Which decision of `tick` is not as recorded.
fn first_difference(
    reader: &HistoryReader,
    tick: u64,
    decisions: &[omnify_decision::action::Decision],
) -> anyhow::Result<Difference> {
    let mut again = decisions.iter().map(omnify_sinks::history::DecisionRecord::from);
    let file = format!("table={}", Table::Decisions.name());
    let at =
        |entity, what: String| Difference { tick: Some(tick), entity, file: file.clone(), what };
    for record in reader.decisions() {
        let record = record?;
        if record.tick < tick {
            continue;
        }
        if record.tick > tick {
            break;
        }
        match again.next() {
            None => return Ok(at(Some(record.entity), "the replay did not decide this".into())),
            Some(made) => {
                if let Some(what) = record.difference(&made) {
                    return Ok(at(Some(record.entity), what));
                }
            }
        }
    }
    Ok(match again.next() {
        Some(made) => at(Some(made.entity), "the replay decided this anew".into()),
        None => at(None, "the digest of an earlier tick differs".into()),
    })
}
