//! The engine's wall clock, which the harness lets step.
//!
//! A small library laid over the C library's clock (`clock.c`, built here with the C compiler that
//! building the engine needs anyway): every read of the time of day in the process steps, also those
//! of libraries, and the engine has no switch that somebody could leave on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::engine::Home;

/// How far it steps.
pub(super) const STEP_S: i64 = 3_600;
/// Between reading the engine's clock and comparing.
const TOLERANCE: Duration = Duration::from_secs(120);

/// See the module.
pub(super) struct SteppingClock {
    file: File,
    offset_s: i64,
}

impl SteppingClock {
    /// Builds the library and has every further life load it. An error says why it cannot be.
    pub(super) fn install(home: &mut Home) -> anyhow::Result<SteppingClock> {
        let (source, library) = (home.path("clock.c"), home.path("clock.so"));
        std::fs::write(&source, include_str!("clock.c"))?;
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .output()
            .context("the C compiler cannot be started")?;
        ensure!(
            built.status.success(),
            "the clock cannot be built: {}",
            String::from_utf8_lossy(&built.stderr)
        );
        let path: PathBuf = home.path("clock");
        std::fs::write(&path, 0_i64.to_ne_bytes())?;
        let file = File::options().write(true).open(&path)?;
        home.set_environment("LD_PRELOAD", library.canonicalize()?);
        home.set_environment("CRASH_CLOCK", path.canonicalize()?);
        Ok(SteppingClock { file, offset_s: 0 })
    }

    /// How far it is from the system's now, in seconds.
    pub(super) fn offset_s(&self) -> i64 {
        self.offset_s
    }

    /// Steps.
    pub(super) fn step_to(&mut self, offset_s: i64) -> anyhow::Result<()> {
        // In place, never shortened: processes have it mapped.
        self.file.write_all_at(&offset_s.to_ne_bytes(), 0)?;
        self.offset_s = offset_s;
        Ok(())
    }

    /// Makes sure that the engine, started since the last step, sees it.
    pub(super) fn check(&self, status: &Value) -> anyhow::Result<()> {
        let boot =
            status["build"]["boot"].as_i64().context("no time of the start in /v1/status")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
        let apart = (now + self.offset_s * 1_000 - boot).unsigned_abs();
        ensure!(
            u128::from(apart) < TOLERANCE.as_millis(),
            "the engine started at {boot}, which is not {} s beside the system's clock",
            self.offset_s
        );
        Ok(())
    }
}
