//! `omnify learn`: a click and conversion model from a history.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use omnify_decision::learn::{self, CellBuilder, LearnOptions};
use omnify_decision::model::ClickModel;
use omnify_operators::model::{EventTime, Registry, RegistryView};
use omnify_sinks::history::{HistoryReader, Table};
use serde_json::json;

use super::{Done, UsageError, remote};
use crate::cli::Common;

/// Options of `learn`.
#[derive(Args, Clone, Debug, Default)]
pub struct LearnArgs {
    /// Folder of the history to learn from, or s3://bucket/prefix of a copy.
    #[arg(long, value_name = "FOLDER")]
    pub history: PathBuf,
    /// Where the model is written (JSON). A file that is there already is replaced only by a model
    /// that is accepted.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The present champion; without one the entities' own rates are the rival.
    #[arg(long, value_name = "FILE")]
    pub champion: Option<PathBuf>,
}

/// Learns, reports, and writes the model when it is accepted.
pub fn execute(common: &Common, args: &LearnArgs) -> anyhow::Result<Done> {
    let config = common.load(None)?;
    let fetched = remote::history(common, &args.history, remote::of_table(Table::Events))?;
    let reader = HistoryReader::open(fetched.path())?;
    let registry = Arc::new(Registry::utc());
    let mut view = RegistryView::new(registry.clone());
    let mut cells = CellBuilder::default();
    for events in reader.scan_events(registry, EventTime::MIN, EventTime::MAX) {
        for (_, event) in events? {
            cells.add(&view.info(event.creative).key, event.time, event.delta);
        }
    }
    let champion = args.champion.as_deref().map(load).transpose()?;
    let options = LearnOptions {
        conversion_maturity_hours: u32::try_from(
            config.learn.conversion_maturity.us() / 3_600_000_000,
        )
        .unwrap_or(u32::MAX),
        clicks_min: config.learn.clicks_min,
        passes: config.learn.passes,
        ..LearnOptions::default()
    };
    let (model, report) = learn::learn(&cells.finish(), champion.as_ref(), &options)
        .map_err(|error| UsageError(error.to_string()))?;
    if report.accept {
        write(&args.out, &model)?;
    }
    let written = report.accept.then_some(&args.out);
    let answer =
        json!({ "report": report, "version": model.version().to_string(), "out": written });
    Ok(Done { answer, text: report.to_string(), code: 0 })
}

/// Reads a model file.
pub fn load(path: &Path) -> anyhow::Result<ClickModel> {
    let bad = |what: String| {
        UsageError(format!("{}: {what}; write it anew with omnify learn", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let json = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    Ok(ClickModel::from_json(&json).map_err(|error| bad(error.to_string()))?)
}

/// Writes a model beside its place and moves it there, so that a reader never sees half of one.
fn write(path: &Path, model: &ClickModel) -> anyhow::Result<()> {
    use anyhow::Context as _;
    let beside = path.with_extension("tmp");
    let text = serde_json::to_string(&model.to_json())?;
    std::fs::write(&beside, text).with_context(|| format!("cannot write {}", beside.display()))?;
    std::fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
}
