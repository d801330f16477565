//! `omnify run`: the live engine on the system's clock. It goes on where an earlier process on the
//! same `state.dir` stood, however that ended; on an empty one, where the copy (`state.remote`) ends.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use omnify_config::{Checked, Layers};
use serde_json::json;

use super::{Done, UsageError, remote, totals, totals_text};
use crate::cli::{self, Common};
use crate::clock::Clock;
use crate::cluster::{self, Leader, Members, OnLost};
use crate::durable::{LEDGER, MirrorOptions, restore_if_empty};
use crate::kafka;
use crate::live::{HistoryAt, Live, Setup, listen, other_config};

/// Options of `run`.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// Ends by itself after this time, for example 30s; without it, on ctrl-c or SIGTERM.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub time: Option<Duration>,
    /// Number of processes that work together (see deploy/RUNBOOK.md, "Several processes").
    #[arg(long, value_name = "M", requires_all = ["process", "hosts"])]
    pub processes: Option<usize>,
    /// Which of them this is: 0 takes everything in and decides, the others lend their workers.
    #[arg(long, value_name = "I", requires = "processes")]
    pub process: Option<usize>,
    /// A line `host:port` for each of them; the first may name, after a blank, the address where
    /// process 0 lets the others in, otherwise the next port.
    #[arg(long, value_name = "FILE", requires = "processes")]
    pub hosts: Option<PathBuf>,
}

impl RunArgs {
    fn members(&self) -> Result<Option<Members>, UsageError> {
        match (self.processes, self.process, &self.hosts) {
            (Some(processes), Some(process), Some(hosts)) => {
                Members::read(processes, process, hosts).map(Some)
            }
            _ => Ok(None),
        }
    }
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
    let json = common.json;
    let on_lost: OnLost = Arc::new(move |error| {
        let code = cli::fail(&error.into(), json);
        std::process::exit(code.into());
    });
    let members = args.members()?;
    let alone = members.as_ref().is_none_or(|members| members.count() == 1);
    let leader = match members {
        Some(members) if !members.leads() => {
            cluster::follow(members, &config, on_lost)?;
            let text = "the leader has ended".to_owned();
            return Ok(Done { answer: json!({ "followed": true }), text, code: 0 });
        }
        Some(members) => Some(Leader::listen(members, &config, on_lost)?),
        None => None,
    };
    let reads = alone || config.cluster.leader_reads;
    let listener = listen(&config)?;
    let mirror = remote::mirror(&config)?;
    if let Some(mirror) = &mirror {
        let histories = config.history.enabled.then(|| PathBuf::from(&config.history.dir));
        let runtime = tokio::runtime::Runtime::new()?;
        let state = Path::new(&config.state.dir);
        restore_if_empty(&mirror.remote, state, histories.as_deref(), runtime.handle())?;
    }
    if config.state.enabled {
        catch_up(&config, mirror.clone())?;
    }
    let live = Live::start_with(setup(&config, listener, mirror), leader)?;
    let runtime = live.runtime().handle();
    let kafka = match reads {
        true => {
            let (door, intake, positions) = (live.door(), live.intake(), live.positions());
            kafka::start(&config, door, intake, positions, &Clock::System, runtime)?
        }
        false => None,
    };
    if let Some(kafka) = &kafka {
        live.watch(kafka.problems());
    }
    live.wait(args.time, || {
        if let Some(at) = live.address() {
            tracing::info!("the page is at http://{at}/, events go to http://{at}/v1/events");
        }
    });
    drop(kafka);
    let history = live.history().map(Path::to_owned);
    let summary = live.stop()?;
    let mut answer = totals(&summary);
    answer["history"] = json!(history);
    let mut text = totals_text(&summary);
    if let Some(history) = &history {
        text += &format!("history       {}\n", history.display());
    }
    Ok(Done { answer, text, code: 0 })
}

fn setup(
    config: &Arc<Checked>,
    listener: Option<TcpListener>,
    mirror: Option<MirrorOptions>,
) -> Setup {
    let (history, state) = (&config.history, &config.state);
    let state_dir = PathBuf::from(&state.dir);
    Setup {
        config: config.clone(),
        clock: Clock::System,
        speed: 1,
        listener,
        history: history.enabled.then(|| HistoryAt::Below(PathBuf::from(&history.dir))),
        ledger: state_dir.join(LEDGER),
        state: state.enabled.then_some(state_dir),
        mirror,
        controls: Vec::new(),
    }
}

/// Ticks that a crash left behind the last snapshot are made once more under the configuration that
/// made them, and a snapshot is taken; from there the present one goes on.
fn catch_up(config: &Arc<Checked>, mirror: Option<MirrorOptions>) -> anyhow::Result<()> {
    let Some(toml) = other_config(Path::new(&config.state.dir), config)? else { return Ok(()) };
    tracing::info!("the configuration has changed since the crash; catching up under the old one");
    let checked =
        Layers::new().text("the configuration of the journal", &toml)?.build()?.validate()?;
    let old = Arc::new(checked);
    let at = setup(config, None, mirror);
    let live = Live::start(Setup { config: old, ..at })?;
    live.stop()?;
    Ok(())
}
