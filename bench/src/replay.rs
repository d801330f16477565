//! Replay rate of a file through the whole engine, beside the limit.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use omnify_config::Layers;
use omnify_pipeline::commands::replay::{Offline, file_feeds};
use omnify_pipeline::decode::Mapping;
use omnify_pipeline::progress::Bar;
use omnify_pipeline::setup::Mode;
use serde_json::{Value, json};
use std::sync::Arc;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// File of the generic layout.
    pub input: PathBuf,
    /// Mapping.
    pub mapping: String,
    /// Worker threads.
    pub workers: usize,
    /// Overrides of the configuration.
    pub sets: Vec<String>,
    /// Folder for the history; without one rows are counted only.
    pub out: Option<PathBuf>,
}

/// Measures; the limit is run first, in the same process, on one core.
pub fn run(options: &Options) -> anyhow::Result<Value> {
    let mut layers = Layers::new();
    for set in &options.sets {
        layers = layers.set(set)?;
    }
    let config = Arc::new(layers.build()?.validate()?);
    let all_levels = config.features.levels.len() > 1;
    let limit_started = Instant::now();
    let limit = crate::limit::run(&options.input, all_levels);
    let limit_s = limit_started.elapsed().as_secs_f64();
    let mapping = Mapping::load(&options.mapping)?;
    let run =
        Offline::new(config.clone(), Mode::Files, options.out.clone(), Some(options.workers))?;
    let started = Instant::now();
    let feeds = file_feeds(&run, &options.input, &mapping, &Bar::hidden())?;
    let (summary, failure) = run.run(feeds)?;
    let seconds = started.elapsed().as_secs_f64();
    if let Some(error) = failure {
        return Err(error.context("the run did not get through the file"));
    }
    let counters = &summary.counters;
    let rate = |count: u64| (count as f64 / seconds).round();
    let limit_rate = limit.as_ref().ok().map(|counted| (counted.rows as f64 / limit_s).round());
    Ok(json!({
        "events": counters.events_in,
        "events_per_s": rate(counters.events_in),
        "limit_events_per_s": limit_rate,
        "share_of_limit": limit_rate.map(|limit| (rate(counters.events_in) / limit * 1e3).round() / 1e3),
        "limit_feature_rows": limit.as_ref().ok().map(|counted| counted.closed),
        "feature_rows": summary.panes_closed,
        "feature_rows_per_s": rate(summary.panes_closed),
        "decisions": counters.decisions_total(),
        "decisions_per_s": rate(counters.decisions_total()),
        "latency_ms": counters.latency_ms,
        "seconds": seconds,
        "workers": options.workers,
        "windows": config.features.windows,
        "levels": config.features.levels,
        "history": summary.history,
        "conserved": counters.conservation().holds,
        "digest": summary.digest,
        "peak_mib": crate::peak_mib(),
    }))
}

/// Fails with a clear text when the input is missing.
pub fn check_input(path: &Path) -> anyhow::Result<()> {
    std::fs::metadata(path).map(drop).with_context(|| {
        format!("cannot read {}: write one with `omnify-bench generate --out FILE`", path.display())
    })
}
