//! What the engine says about itself: metrics by name ([`names`]) and internal events ([`events`]).
//!
//! # Contract
//! Code elsewhere never writes a metric by its name: it emits an event, and the event's `emit`
//! writes the log line and the metric together, once per batch and never per record. Without an
//! installed recorder all of it is a no-op.

pub mod events;
pub mod names;

use std::sync::OnceLock;

use metrics::SharedString;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use names::{Kind, Metric};

static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();

/// Why metrics cannot be recorded.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The process has a recorder of another kind, or a histogram has no buckets.
    #[error("metrics cannot be recorded: {0}; install telemetry once, before any other recorder")]
    Install(#[from] BuildError),
}

/// Installs the process's recorder and describes every metric. Calling it again gives the same
/// handle, so tests may call it as they like.
pub fn install() -> Result<PrometheusHandle, TelemetryError> {
    if let Some(handle) = INSTALLED.get() {
        return Ok(handle.clone());
    }
    // Two first callers at once: one installs, the other waits for the lock and finds it done.
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(handle) = INSTALLED.get() {
        return Ok(handle.clone());
    }
    let handle = builder()?.install_recorder()?;
    describe();
    Ok(INSTALLED.get_or_init(|| handle).clone())
}

/// A recorder of its own that nobody else writes to, for tests.
pub fn recorder() -> Result<metrics_exporter_prometheus::PrometheusRecorder, TelemetryError> {
    Ok(builder()?.build_recorder())
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in Metric::ALL.iter().map(|metric| metric.describe()) {
        if metric.kind == Kind::Histogram {
            let matcher = Matcher::Full(metric.name.to_owned());
            builder = builder.set_buckets_for_metric(matcher, metric.buckets)?;
        }
    }
    Ok(builder)
}

/// Tells the present recorder what each metric is.
pub fn describe() {
    metrics::with_recorder(|recorder| {
        for metric in Metric::ALL.iter().map(|metric| metric.describe()) {
            let (name, help) = (metric.name.into(), SharedString::const_str(metric.help));
            match metric.kind {
                Kind::Counter => recorder.describe_counter(name, metric.unit, help),
                Kind::Gauge => recorder.describe_gauge(name, metric.unit, help),
                Kind::Histogram => recorder.describe_histogram(name, metric.unit, help),
            }
        }
    });
}
