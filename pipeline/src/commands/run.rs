//! `omnify run`: the live engine on the system's clock; events come over HTTP push and Kafka.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::{Done, totals, totals_text};
use crate::cli::Common;
use crate::clock::Clock;
use crate::kafka::{self, Positions};
use crate::live::{Live, Setup, listen};

/// Options of `run`.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// Ends by itself after this time, for example 30s; without it, on ctrl-c or SIGTERM.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub time: Option<Duration>,
}

/// A span of time on the command line, written as in the configuration.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let span = omnify_config::Span::parse(text);
    span.map(omnify_config::Span::duration)
        .ok_or_else(|| format!("`{text}` is no span of time: write 30s, 5m, 2h"))
}

/// Runs the engine live.
pub fn execute(common: &Common, args: &RunArgs) -> anyhow::Result<Done> {
    let config = common.load(None)?;
    let listener = listen(&config)?;
    let root = PathBuf::from(&config.history.dir);
    let history =
        config.history.enabled.then(|| new_folder(&root, Clock::System.now())).transpose()?;
    let live = Live::start(Setup {
        config: config.clone(),
        clock: Clock::System,
        speed: 1,
        listener,
        history: history.clone(),
        ledger: root.join("ledger"),
        controls: Vec::new(),
    })?;
    if let Some(address) = live.address() {
        tracing::info!("the page is at http://{address}/, events go to http://{address}/v1/events");
    }
    let runtime = live.runtime().handle();
    let positions = Positions::default();
    let kafka =
        kafka::start(&config, live.door(), live.intake(), &positions, &Clock::System, runtime)?;
    live.wait(args.time);
    drop(kafka);
    let summary = live.stop()?;
    let mut answer = totals(&summary);
    answer["history"] = json!(history);
    let mut text = totals_text(&summary);
    if let Some(history) = &history {
        text += &format!("history       {}\n", history.display());
    }
    Ok(Done { answer, text, code: 0 })
}

/// A folder for this start below `root`, named by its time: `run-20260105T101500Z`, with a number
/// behind it where that is taken.
fn new_folder(root: &Path, now_ms: u64) -> anyhow::Result<PathBuf> {
    let now = Timestamp::from_millisecond(i64::try_from(now_ms)?)?;
    let name = format!("run-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    std::fs::create_dir_all(root)
        .map_err(|error| super::output_error(root, &error))
        .context("history.dir")?;
    for number in 1..1_000 {
        let folder = match number {
            1 => root.join(&name),
            number => root.join(format!("{name}-{number}")),
        };
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(super::output_error(&folder, &error).into()),
        }
    }
    anyhow::bail!("{}: too many starts within a second", root.join(name).display())
}
