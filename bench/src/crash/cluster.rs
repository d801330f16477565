//! Kill -9 of any process of a cluster, again and again.
//!
//! The engine runs as several processes under a supervisor of our own, which starts whatever ends
//! again. Each round one process is chosen: it is killed, or (now and then) stopped without a word,
//! as behind a cut cable. When the cluster was complete, every other process must end by itself with
//! the exit code of a lost process within `PATIENCE`; a process that waits or ends otherwise is a
//! failure of the run. Some kills fall into the start, while the processes come together. At the end
//! everything is compared as after crashes of a single process: with the run in one process that
//! nothing disturbed.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use serde_json::{Value, json};

use super::compare;
use super::engine::{CONFIG, Home};
use super::platform::Platform;
use super::sender::{self, Sender};

/// What is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds.
    pub rounds: u64,
    /// Seed of who is killed and when.
    pub seed: u64,
    /// The program.
    pub omnify: PathBuf,
    /// Where everything is kept (a new folder); a temporary one, removed when all is well, by
    /// default.
    pub keep: Option<PathBuf>,
    /// Processes of the cluster.
    pub processes: usize,
    /// Workers of each.
    pub workers: usize,
}

/// Exit code of a process that ends because another was lost.
const LOST: i32 = 6;
/// `cluster.lost_after`: short, so that rounds with a silent process are.
const LOST_AFTER: &str = "3s";
/// Longest life of a complete cluster.
const LIFE_MAX: Duration = Duration::from_millis(900);
/// Kills during a start fall into this time after it.
const START_MAX: Duration = Duration::from_millis(400);
/// What a slow machine may take; nothing waits for so long when all is well.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(2);

/// How a process is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    Killed,
    /// Killed while the processes come together.
    KilledEarly,
    /// Stopped: its connections stay open and nothing answers.
    Silent,
}

/// Runs the rounds and compares. An error is a loss that was not survived.
pub fn run(options: &Options) -> anyhow::Result<Value> {
    ensure!(options.processes >= 2, "--processes {}: a cluster has two or more", options.processes);
    let name = format!("omnify-cluster-{}-{}", options.seed, std::process::id());
    let dir = options.keep.clone().unwrap_or_else(|| std::env::temp_dir().join(name));
    std::fs::create_dir(&dir).with_context(|| format!("{} must be new", dir.display()))?;
    let platform = Platform::start()?;
    let executor = format!(
        "[executor]\nkind = \"market\"\ntimeout = \"500ms\"\nurl = \"{}\"\n",
        platform.url()
    );
    let home = Home::new(dir.clone(), &options.omnify, &format!("{CONFIG}{executor}"))?;
    let mut cluster = Cluster::new(options, dir.clone(), home.address())?;
    let sender = Sender::start(home.address());
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(options.seed);
    let mut starts_ms = Vec::new();
    let mut lost = vec![0_u64; options.processes];
    let (mut early, mut silent) = (0, 0);
    for round in 0..options.rounds {
        let victim = rng.gen_range(0..options.processes);
        let loss = match rng.gen_range(0..10) {
            0 => Loss::Silent,
            1..=3 => Loss::KilledEarly,
            _ => Loss::Killed,
        };
        let (life, start) =
            (rng.gen_range(Duration::ZERO..LIFE_MAX), rng.gen_range(Duration::ZERO..START_MAX));
        let mut round_of = || -> anyhow::Result<()> {
            let started = Instant::now();
            cluster.start()?;
            if loss == Loss::KilledEarly {
                std::thread::sleep(start);
                cluster.kill(victim)?;
                early += 1;
            }
            cluster.until_ready()?;
            if loss == Loss::KilledEarly {
                // What it left is tried before the next kill.
                return cluster.kill_all();
            }
            starts_ms.push(started.elapsed().as_millis());
            std::thread::sleep(life);
            match loss {
                Loss::Silent => {
                    silent += 1;
                    cluster.signal(victim, "STOP")?;
                }
                _ => cluster.kill(victim)?,
            }
            cluster.until_others_end(victim)?;
            cluster.kill_all()
        };
        round_of().with_context(|| format!("round {round}, process {victim}"))?;
        lost[victim] += 1;
    }
    cluster.start()?;
    cluster.until_ready()?;
    // What was in flight at the last kill is settled.
    std::thread::sleep(LIFE_MAX);
    let sent = sender.stop()?;
    cluster.stop(rng.gen_range(0..options.processes))?;

    let history = home.history()?;
    let events = compare::events(&history, [sent.events, 0])?;
    let replayed = compare::replayed(&home, &history)?;
    let actions = compare::actions(&history, &home.data().join("state/ledger"), &platform.calls())?;
    let identical = replayed && events.lost == 0 && events.duplicated == 0 && actions.wrong == 0;
    if options.keep.is_none() && identical && actions.twice == 0 {
        std::fs::remove_dir_all(dir)?;
    }
    starts_ms.sort_unstable();
    Ok(json!({
        "rounds": options.rounds,
        "seed": options.seed,
        "processes": options.processes,
        "workers": options.workers,
        "lost_processes": lost,
        "killed_while_starting": early,
        "silent": silent,
        "lost": events.lost,
        "duplicated": events.duplicated,
        "actions_twice": actions.twice,
        "identical": identical,
        "events": sent.events,
        "actions_applied": actions.applied,
        "actions_mismatched": actions.wrong,
        "sent_again": sent.again,
        "start_ms_median": starts_ms.get(starts_ms.len() / 2),
        "start_ms_max": starts_ms.last(),
    }))
}

/// The processes, and who starts them.
struct Cluster<'a> {
    options: &'a Options,
    dir: PathBuf,
    address: SocketAddr,
    processes: Vec<Option<Child>>,
}

impl Cluster<'_> {
    fn new(options: &Options, dir: PathBuf, address: SocketAddr) -> anyhow::Result<Cluster<'_>> {
        // All at once, so that they differ; free from here on unless somebody else takes one.
        let listeners = (0..=options.processes).map(|_| TcpListener::bind("127.0.0.1:0"));
        let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
        let address_of = |listener: &TcpListener| listener.local_addr().map(|at| at.to_string());
        let places = listeners.iter().map(address_of).collect::<Result<Vec<_>, _>>()?;
        let mut hosts = format!("{} {}\n", places[0], places[options.processes]);
        for place in &places[1..options.processes] {
            hosts += &format!("{place}\n");
        }
        std::fs::write(dir.join("hosts"), hosts)?;
        let processes = (0..options.processes).map(|_| None).collect();
        Ok(Cluster { options, dir, address, processes })
    }

    fn log(&self, process: usize) -> PathBuf {
        self.dir.join(format!("log-{process}"))
    }

    /// Starts every process that does not run.
    fn start(&mut self) -> anyhow::Result<()> {
        for process in 0..self.processes.len() {
            if self.processes[process].is_none() {
                self.processes[process] = Some(self.spawn(process)?);
            }
        }
        Ok(())
    }

    fn spawn(&self, process: usize) -> anyhow::Result<Child> {
        let Options { omnify, processes, workers, .. } = self.options;
        let log = File::options().create(true).append(true).open(self.log(process))?;
        let listen = match process {
            0 => self.address.to_string(),
            _ => "127.0.0.1:0".to_owned(),
        };
        let sets = [
            format!("http.listen={listen}"),
            format!("engine.workers={workers}"),
            format!("cluster.lost_after={LOST_AFTER}"),
        ];
        Command::new(omnify.canonicalize()?)
            .current_dir(&self.dir)
            .env("OMNIFY_CLUSTER_SECRET", "a secret of the crash harness")
            .args(["run", "-c", "omnify.toml", "--hosts", "hosts"])
            .args(["--processes", &processes.to_string(), "--process", &process.to_string()])
            .args(sets.iter().flat_map(|set| ["--set", set]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} cannot be started", omnify.display()))
    }

    /// Waits until the leader answers that it is ready; what ends meanwhile because another process
    /// was lost is started again.
    fn until_ready(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            for process in 0..self.processes.len() {
                if let Some(code) = self.ended(process)? {
                    ensure!(
                        code == Some(LOST),
                        "process {process} ended with {code:?}: {}",
                        self.tail(process)
                    );
                }
            }
            self.start()?;
            let ready = TcpStream::connect(self.address)
                .and_then(|stream| sender::request(stream, "GET", "/readyz", &[], b""));
            if ready.is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                let tails: Vec<_> = (0..self.processes.len()).map(|at| self.tail(at)).collect();
                bail!("it does not get ready: {}", tails.join("\n-- \n"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Every other process must end, as its own decision.
    fn until_others_end(&mut self, victim: usize) -> anyhow::Result<()> {
        let started = Instant::now();
        for process in (0..self.processes.len()).filter(|process| *process != victim) {
            let code = loop {
                if let Some(code) = self.ended(process)? {
                    break code;
                }
                if started.elapsed() > PATIENCE {
                    bail!("process {process} does not end: {}", self.tail(process));
                }
                std::thread::sleep(LOOK);
            };
            ensure!(
                code == Some(LOST),
                "process {process} ended with {code:?}: {}",
                self.tail(process)
            );
        }
        Ok(())
    }

    /// The exit code of a process that has ended, which is told once.
    fn ended(&mut self, process: usize) -> anyhow::Result<Option<Option<i32>>> {
        let Some(child) = &mut self.processes[process] else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.processes[process] = None;
        }
        Ok(status.map(|status| status.code()))
    }

    /// SIGKILL: no handler runs, no buffer is written.
    fn kill(&mut self, process: usize) -> anyhow::Result<()> {
        if let Some(mut child) = self.processes[process].take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn kill_all(&mut self) -> anyhow::Result<()> {
        (0..self.processes.len()).try_for_each(|process| self.kill(process))
    }

    fn signal(&self, process: usize, name: &str) -> anyhow::Result<()> {
        let child = self.processes[process].as_ref().context("it has ended")?;
        let told = Command::new("kill").args(["-s", name, &child.id().to_string()]).status()?;
        ensure!(told.success(), "SIG{name} cannot be sent");
        Ok(())
    }

    /// Stops all in order by a word to one of them.
    fn stop(&mut self, by: usize) -> anyhow::Result<()> {
        self.signal(by, "TERM")?;
        let started = Instant::now();
        for process in 0..self.processes.len() {
            let code = loop {
                if let Some(code) = self.ended(process)? {
                    break code;
                }
                ensure!(started.elapsed() < PATIENCE, "process {process} does not stop");
                std::thread::sleep(LOOK);
            };
            ensure!(
                code == Some(0),
                "process {process} stopped with {code:?}: {}",
                self.tail(process)
            );
        }
        Ok(())
    }

    fn tail(&self, process: usize) -> String {
        tail(&self.log(process))
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        let _ = self.kill_all();
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
