//! The engine as a process, over many lives at one place.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::sender;

/// Short times, so that a kill falls into a commit, a snapshot, a file or a call; limits that keep
/// new campaigns untouched for days are lifted, so that there are actions.
const CONFIG: &str = r#"
[engine]
tick = "2ms"
decide_every = "20ms"
[state]
snapshot_every = "150ms"
journal_segment = "64KiB"
journal_bytes_max = "1MiB"
[history]
file_time = "200ms"
[telemetry]
log = "info"
[controller]
period = "50ms"
horizon = "1m"
deadband = 0.0
[guardrails]
step_max = 0.5
change_24h_max = 10.0
change_7d_max = 10.0
events_min = 0
gain_probability_min = 0.001
cooldown = "50ms"
learning_events = 0
learning_time = "0s"
[[goals]]
name = "clicks"
applies_to = "*"
objective = "target_cpc"
target = "0.20"
daily_budget = "50000"
currency = "USD"
pricing = "cpm"
bid_floor = "0.01"
bid_cap = "100"
[executor]
kind = "market"
timeout = "500ms"
"#;

/// What a slow machine may take; nothing waits for so long when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// The place.
pub(super) struct Home {
    dir: PathBuf,
    omnify: PathBuf,
    address: SocketAddr,
}

impl Home {
    pub(super) fn new(dir: PathBuf, omnify: PathBuf, platform: &str) -> anyhow::Result<Home> {
        let omnify = omnify.canonicalize()?;
        let config = format!("{CONFIG}url = \"{platform}\"\n");
        std::fs::write(dir.join("omnify.toml"), config)?;
        // A port that is free now, and stays ours over all lives unless somebody takes it.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        Ok(Home { dir, omnify, address })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Starts the engine.
    pub(super) fn live(&self, workers: u32) -> anyhow::Result<Life> {
        let log = File::options().create(true).append(true).open(self.path("log"))?;
        let child = Command::new(&self.omnify)
            .current_dir(&self.dir)
            .args(["run", "-c", "omnify.toml", "--set"])
            .arg(format!("http.listen={}", self.address))
            .args(["--set", &format!("engine.workers={workers}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} cannot be started", self.omnify.display()))?;
        Ok(Life { child, address: self.address, log: self.path("log") })
    }

    /// Runs another command to its end; its answer.
    pub(super) fn answer(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = Command::new(&self.omnify)
            .current_dir(&self.dir)
            .args(arguments)
            .args(["--json", "--quiet"])
            .stdin(Stdio::null())
            .output()?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!("{arguments:?} said {}", String::from_utf8_lossy(&output.stderr))
        })
    }

    /// The history, of which there must be one: the configuration never changed.
    pub(super) fn history(&self) -> anyhow::Result<PathBuf> {
        let root = self.path("omnify-data/history");
        let runs = std::fs::read_dir(&root)?.map(|run| Ok(run?.path()));
        let mut runs = runs.collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(runs.len() == 1, "one history expected: {runs:?}");
        Ok(runs.remove(0))
    }
}

/// A process.
pub(super) struct Life {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Life {
    /// Waits until it answers that it is ready; returns how long that took, in ms.
    pub(super) fn until_ready(&mut self) -> anyhow::Result<u128> {
        let started = Instant::now();
        loop {
            let ready = TcpStream::connect(self.address)
                .and_then(|stream| sender::request(stream, "GET", "/readyz", &[], b""));
            if ready.is_ok_and(|(status, _)| status == 200) {
                return Ok(started.elapsed().as_millis());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended by itself with {status}: {}", tail(&self.log));
            }
            ensure!(started.elapsed() < PATIENCE, "it does not get ready: {}", tail(&self.log));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGKILL: no handler runs, no buffer is written.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops it in order.
    pub(super) fn stop(&mut self) -> anyhow::Result<()> {
        let told = Command::new("kill").arg(self.child.id().to_string()).status()?;
        ensure!(told.success(), "it cannot be told to stop");
        let status = self.child.wait()?;
        ensure!(status.success(), "it stopped with {status}: {}", tail(&self.log));
        Ok(())
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
