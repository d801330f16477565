//! The engine as a process, over many lives at one place.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::sender;

/// What a slow machine may take; nothing waits for so long when all is well.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// What the lives of one process write.
const LOG: &str = "log";
/// How often it is looked whether something has come about.
const LOOK: Duration = Duration::from_millis(2);

/// Short times, so that a kill falls into a commit, a snapshot, a file or a call; limits that keep
/// new campaigns untouched for days are lifted, so that there are actions.
pub(super) const CONFIG: &str = include_str!("engine.toml");

/// The place.
pub(super) struct Home {
    dir: PathBuf,
    omnify: PathBuf,
    address: SocketAddr,
    /// Folder of state and history, in `dir`.
    data: String,
    /// Settings of every life, beside its configuration.
    sets: Vec<String>,
    /// Environment of every life.
    environment: Vec<(&'static str, OsString)>,
}

impl Home {
    /// A place in the folder `dir` with this configuration.
    pub(super) fn new(dir: PathBuf, omnify: &Path, config: &str) -> anyhow::Result<Home> {
        let omnify = omnify.canonicalize()?;
        std::fs::write(dir.join("omnify.toml"), config)?;
        File::create(dir.join(LOG))?;
        // A port that is free now, and stays ours over all lives unless somebody takes it.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let data = "omnify-data".to_owned();
        Ok(Home { dir, omnify, address, data, sets: Vec::new(), environment: Vec::new() })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Folder of state and history.
    pub(super) fn data(&self) -> PathBuf {
        self.path(&self.data)
    }

    /// From the next life on, state and history are in this folder. Somebody has moved them.
    pub(super) fn moved_to(&mut self, data: &str) {
        data.clone_into(&mut self.data);
    }

    /// Sets `path.to.key=value` in every life.
    pub(super) fn set(&mut self, set: impl Into<String>) {
        self.sets.push(set.into());
    }

    /// Sets a variable of the environment of every life.
    pub(super) fn set_environment(&mut self, name: &'static str, value: impl AsRef<OsStr>) {
        self.environment.push((name, value.as_ref().to_owned()));
    }

    /// Starts the engine.
    pub(super) fn live(&self, workers: u32) -> anyhow::Result<Life> {
        self.spawn(LOG, &["--set".into(), format!("engine.workers={workers}")])
    }

    /// Starts a process of the engine with further arguments, which writes to the file `log`.
    pub(super) fn spawn(&self, log: &str, arguments: &[String]) -> anyhow::Result<Life> {
        let log = self.path(log);
        let file = File::options().create(true).append(true).open(&log)?;
        let child = Command::new(&self.omnify)
            .current_dir(&self.dir)
            .args(["run", "-c", "omnify.toml", "--set"])
            .arg(format!("http.listen={}", self.address))
            .args(["--set", &format!("state.dir={}/state", self.data)])
            .args(["--set", &format!("history.dir={}/history", self.data)])
            .args(self.sets.iter().flat_map(|set| ["--set", set]))
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .with_context(|| format!("{} cannot be started", self.omnify.display()))?;
        Ok(Life { child, address: self.address, log })
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

    /// The history, of which there must be one: the configuration never changed. A start that was killed
    /// before anything came to be may have left an empty one.
    pub(super) fn history(&self) -> anyhow::Result<PathBuf> {
        let root = self.data().join("history");
        let runs = std::fs::read_dir(&root)?.map(|run| Ok(run?.path()));
        let mut runs = runs.collect::<anyhow::Result<Vec<_>>>()?;
        runs.retain(|run| std::fs::read_dir(run).is_ok_and(|mut files| files.any(is_table)));
        ensure!(runs.len() == 1, "one history expected: {runs:?}");
        Ok(runs.remove(0))
    }

    /// How many lines of the log hold `text`.
    pub(super) fn logged(&self, text: &str) -> anyhow::Result<usize> {
        let log = std::fs::read_to_string(self.path(LOG))?;
        Ok(log.lines().filter(|line| line.contains(text)).count())
    }
}

/// Whether a file of a history is a folder of parts.
fn is_table(file: std::io::Result<std::fs::DirEntry>) -> bool {
    file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with("table="))
}

/// A process.
pub(super) struct Life {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

/// How a start went.
pub(super) enum Start {
    /// It answers that it is ready.
    Ready(Duration),
    /// It ended by itself.
    Ended(ExitStatus),
}

impl Life {
    /// Waits until it answers that it is ready; returns how long that took.
    pub(super) fn until_ready(&mut self) -> anyhow::Result<Duration> {
        match self.started()? {
            Start::Ready(took) => Ok(took),
            Start::Ended(status) => bail!("it ended by itself with {status}: {}", self.tail()),
        }
    }

    /// Waits until it is ready or has ended.
    pub(super) fn started(&mut self) -> anyhow::Result<Start> {
        let started = Instant::now();
        loop {
            if self.get("/readyz").is_ok_and(|(status, _)| status == 200) {
                return Ok(Start::Ready(started.elapsed()));
            }
            if let Some(status) = self.child.try_wait()? {
                return Ok(Start::Ended(status));
            }
            ensure!(started.elapsed() < PATIENCE, "it does not get ready: {}", self.tail());
            std::thread::sleep(LOOK);
        }
    }

    /// Asks it for a page.
    pub(super) fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        let stream = TcpStream::connect(self.address)?;
        sender::request(stream, "GET", path, &[], b"")
    }

    /// What `/v1/status` says.
    pub(super) fn status(&self) -> anyhow::Result<serde_json::Value> {
        let (code, text) = self.get("/v1/status")?;
        ensure!(code == 200, "/v1/status answers {code}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGKILL: no handler runs, no buffer is written.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended by itself with {status} before it was killed: {}", self.tail());
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops it in order.
    pub(super) fn stop(&mut self) -> anyhow::Result<()> {
        let told = Command::new("kill").arg(self.child.id().to_string()).status()?;
        ensure!(told.success(), "it cannot be told to stop");
        let status = self.child.wait()?;
        ensure!(status.success(), "it stopped with {status}: {}", self.tail());
        Ok(())
    }

    /// The last lines of its log.
    pub(super) fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `holds`; says `what` when patience ends.
pub(super) fn until(
    what: &str,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    while !holds()? {
        ensure!(started.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::sleep(LOOK);
    }
    Ok(())
}
