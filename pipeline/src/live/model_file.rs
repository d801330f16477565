//! Watches `decision.model_file`: a new model becomes an input of the next tick.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crossbeam_channel::Sender;
use omnify_config::Checked;
use omnify_decision::control::Control;
use omnify_sinks::telemetry::events;

use super::intake::Intake;
use crate::commands::learn;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Starts the watch if a file is configured; it ends with the engine.
pub(super) fn watch(
    config: &Checked,
    inputs: &Sender<Control>,
    intake: Intake,
) -> std::io::Result<()> {
    let path = PathBuf::from(&config.decision.model_file);
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    let inputs = inputs.clone();
    std::thread::Builder::new().name("model".into()).spawn(move || {
        let mut known = None;
        while !intake.is_closed() {
            let found = stamp(&path);
            if found.is_some() && found != known && load(&path, &inputs) {
                known = found;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    })?;
    Ok(())
}

/// What tells one version of the file from the next.
fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// False when it is to be tried again.
fn load(path: &Path, inputs: &Sender<Control>) -> bool {
    let model = match learn::load(path) {
        Ok(model) => model,
        Err(error) => {
            tracing::warn!(%error, "the model file is not taken; the model before it stays");
            return true;
        }
    };
    let version = model.version();
    let control = Control::Model { version, model: model.to_json() };
    match inputs.send_timeout(control, LOOK_EVERY) {
        Ok(()) => {
            events::ModelLoaded { version }.emit();
            true
        }
        Err(_) => {
            tracing::warn!(version, "the model could not enter: too many inputs wait");
            false
        }
    }
}
