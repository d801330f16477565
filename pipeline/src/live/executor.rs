//! From the configuration to the dispatcher that carries actions out.

use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use omnify_config::{Checked, ExecutorKind};
use omnify_decision::control::Control;
use omnify_operators::model::Tick;
use omnify_sinks::action::dispatcher::Backoff;
use omnify_sinks::action::{
    ActionSink, Dispatcher, KafkaActions, KafkaOptions, Ledger, Market, MarketOptions, NowTick,
    Options,
};
use tokio::runtime::Handle;

use crate::clock::Clock;
use crate::durable::Copy;
use crate::engine::Execution;

/// Longest wait between two tries, as a multiple of the first.
const BACKOFF_CAP: u32 = 64;

/// The executor's name in the configuration.
pub(super) const fn name(kind: ExecutorKind) -> &'static str {
    match kind {
        ExecutorKind::DryRun => "dry_run",
        ExecutorKind::Market => "market",
        ExecutorKind::Kafka => "kafka",
    }
}

/// Starts the dispatcher; `None` for a dry run, which needs nobody. What it ends at once goes to
/// `inputs`, everything else comes out of the receiver. A `copy` of the ledger has what is called; what
/// a restored one may lack is in doubt up to a tick.
pub(super) fn start(
    config: &Checked,
    ledger: &Path,
    clock: &Clock,
    runtime: &Handle,
    inputs: &Sender<Control>,
    (copy, in_doubt_until): (Option<Copy>, Tick),
) -> anyhow::Result<Option<(Execution, Receiver<Control>)>> {
    let executor = &config.executor;
    let sink: Arc<dyn ActionSink> = match executor.kind {
        ExecutorKind::DryRun => return Ok(None),
        ExecutorKind::Market => {
            let call_timeout = executor.timeout.duration();
            Arc::new(Market::new(MarketOptions {
                call_timeout,
                ..MarketOptions::at(executor.url.clone())
            })?)
        }
        ExecutorKind::Kafka => Arc::new(KafkaActions::new(kafka(config)?)?),
    };
    let mut ledger = Ledger::open(ledger)?;
    if let Some(copy) = copy {
        ledger.copied_by(Arc::new(copy))?;
    }
    let (now, runtime) = (now(clock), Arc::new(runtime.clone()));
    let options = options(config, in_doubt_until);
    let (dispatcher, outcomes) = Dispatcher::start(sink, ledger, options, now, runtime)?;
    Ok(Some((Execution { dispatcher, inputs: inputs.clone() }, outcomes)))
}

/// Tells the dispatcher the tick.
pub(super) fn now(clock: &Clock) -> NowTick {
    let clock = clock.clone();
    Arc::new(move || clock.now())
}

/// Bounds and waits of the dispatcher.
pub(super) fn options(config: &Checked, in_doubt_until: Tick) -> Options {
    let executor = &config.executor;
    let base = executor.backoff.duration();
    Options {
        queue_max: config.engine.queue_actions,
        in_flight_max: executor.concurrency,
        backoff: Backoff {
            base,
            cap: base.saturating_mul(BACKOFF_CAP),
            attempts_max: u32::try_from(executor.attempts_max).unwrap_or(u32::MAX),
        },
        in_doubt_until,
        ..Options::default()
    }
}

fn kafka(config: &Checked) -> anyhow::Result<KafkaOptions> {
    let kafka = &config.kafka;
    Ok(KafkaOptions {
        topic: kafka.actions_topic.clone(),
        delivery_timeout: kafka.timeout.duration(),
        ..KafkaOptions::at(crate::kafka::connection(config)?)
    })
}
