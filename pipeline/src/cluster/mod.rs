//! One engine over several processes: one sequencer, workers everywhere.
//!
//! ```text
//!              ┌── control: entities, beats, end ──► process 1 (follower)
//! process 0 ───┤◄─ parts: complete ticks ──────────     workers
//! (leader)     └── mesh: events, marks, progress ◄─► (timely, every process with every other)
//! ```
//!
//! Process 0, the leader, is `omnify run` as it is alone: it takes everything in, closes the ticks,
//! keeps journal, snapshots, history and HTTP, and decides. The others, the followers, lend it
//! their workers: the graph deals every event out to the worker its campaign belongs to, wherever
//! that runs, and the leader receives every worker's part of every tick. As the graph's output does
//! not depend on the number of workers, it does not depend on the number of processes either.
//!
//! Every process is a member of the consumer group of the topics: a follower reads, decodes and
//! checks the rows of its partitions and sends them to the leader, who only puts them in order. The
//! group deals the partitions out and moves them when members come and go; where reading goes on, and
//! whose rows count, the leader alone says (`kafka::positions`). Rows call entities by numbers of
//! their connection, each named once on it, as a follower cannot give out the leader's ids.
//!
//! | file | duty |
//! |---|---|
//! | `wire` | messages and how they are framed |
//! | `secret` | the shared secret, and the handshake of every connection |
//! | `calls` | connections that come in, until they are known |
//! | `mesh` | the connections of timely's workers |
//! | `leader` | lets the others in, sends them the entities, takes their parts |
//! | `rows` | the leader's end of the rows that followers read |
//! | `follower` | asks to be let in, runs the workers |
//! | `link` | the follower's end of the rows it reads |
//!
//! # Contract
//! Both ends of every connection prove that they know the cluster's secret. A process is let in when
//! program, configuration and number of workers are the leader's; otherwise both say why not. Dense
//! entity ids are given out by the leader alone and reach the followers in the order in which they
//! were given. When a process is lost (its connection ends, or it gives no sign of life for
//! `cluster.lost_after`) every other one ends by itself with exit code 6: nobody waits for ever, and
//! nothing is lost, as all that must last is in the leader's journal and snapshots. A supervisor
//! starts all of them again; the number of processes and workers may then be another.
//!
//! Of each follower at most `engine.queue_events` rows and messages, and one batch, are on their way
//! into the engine; then it pauses its partitions.
//!
//! # What it never does
//! It does not elect, replicate or hand over: one leader, one disk. Followers write nothing, and
//! take in nothing by HTTP: they answer 421 and name the leader. Connections are not encrypted.

mod calls;
mod follower;
mod leader;
mod link;
#[cfg(test)]
mod link_tests;
mod mesh;
mod rows;
mod secret;
mod wire;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use omnify_config::Checked;

use crate::commands::UsageError;
use crate::setup;

pub use follower::follow;
pub use leader::{Cluster, Leader};

use secret::Key;
use wire::{Hello, Lane};

/// How long all processes may take to come together.
const JOIN: Duration = Duration::from_secs(600);
/// How long opening a connection, or the first words on it, may take.
const GREETING: Duration = Duration::from_secs(10);
/// Signs of life within `cluster.lost_after`.
const BEATS: u32 = 8;
/// Longest time between two signs of life.
const BEAT_MAX: Duration = Duration::from_secs(1);
/// Pause between two attempts.
const RETRY: Duration = Duration::from_millis(50);

/// Exit code of a process that ends because another one was lost.
pub const EXIT_LOST: u8 = 6;

/// Why processes cannot work together.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The leader did not let this process in.
    #[error("the leader refused process {process}: {why}")]
    Refused {
        /// This process.
        process: usize,
        /// What does not fit, and what to do.
        why: String,
    },
    /// Somebody at an address of the hosts file does not know the secret.
    #[error(
        "{address} does not prove that it knows the cluster's secret: set cluster.secret_file, or the \
         environment variable that cluster.secret_env names, to the same secret in every process"
    )]
    Unproven {
        /// Host and port.
        address: String,
    },
    /// A process is gone, or never came.
    #[error(
        "process {process} of the cluster is lost: {what}; this process ends so that all start \
         again from the leader's last snapshot and journal"
    )]
    Lost {
        /// Which.
        process: usize,
        /// What was noticed.
        what: String,
    },
    /// A port of this process cannot be opened.
    #[error(
        "{address} of the hosts file cannot be listened on ({what}): it must be this machine's, and free"
    )]
    Listen {
        /// Host and port.
        address: String,
        /// What the system says.
        what: String,
    },
}

/// Ends the process because another one was lost; prints the reason.
pub type OnLost = Arc<dyn Fn(ClusterError) + Send + Sync>;

/// The processes that work together, and which of them this one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    process: usize,
    /// Where each process meets the others, `host:port`.
    hosts: Vec<String>,
    /// Where the leader lets them in.
    control: String,
}

impl Members {
    /// From the command line: the file has a line `host:port` for each process; the first may have a
    /// second column, the leader's control address, which is otherwise at the next port.
    pub fn read(processes: usize, process: usize, file: &Path) -> Result<Members, UsageError> {
        let wrong = |what: String| UsageError(format!("--hosts {}: {what}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|e| wrong(format!("{e}")))?;
        Members::parse(processes, process, &text).map_err(wrong)
    }

    fn parse(processes: usize, process: usize, text: &str) -> Result<Members, String> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let lines: Vec<Vec<&str>> = lines
            .filter(|line| !line.is_empty())
            .map(|line| line.split_whitespace().collect())
            .collect();
        if lines.len() != processes {
            return Err(format!(
                "{} lines for --processes {processes}: write one `host:port` for each process",
                lines.len()
            ));
        }
        if process >= processes {
            return Err(format!("--process {process} is none of 0 to {}", processes - 1));
        }
        let port_of = |address: &str| -> Result<(String, u16), String> {
            let parts = address.rsplit_once(':');
            let parts = parts.and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
            let (host, port) = parts.ok_or(format!("`{address}` is no `host:port`"))?;
            Ok((host.to_owned(), port))
        };
        for (at, line) in lines.iter().enumerate() {
            port_of(line[0])?;
            if line.len() > if at == 0 { 2 } else { 1 } {
                return Err(format!("line {} has too many columns", at + 1));
            }
        }
        let control = match lines[0].get(1) {
            Some(given) => {
                port_of(given)?;
                (*given).to_owned()
            }
            None => {
                let (host, port) = port_of(lines[0][0])?;
                let next =
                    port.checked_add(1).ok_or("no port after 65535: give a second column")?;
                format!("{host}:{next}")
            }
        };
        let hosts = lines.iter().map(|line| line[0].to_owned()).collect();
        Ok(Members { process, hosts, control })
    }

    /// True for the process that takes everything in and decides.
    pub fn leads(&self) -> bool {
        self.process == 0
    }

    /// Where the leader's page is, as far as the hosts file tells.
    fn page(&self, port: Option<u16>) -> String {
        let host = self.hosts[0].rsplit_once(':').map_or("", |(host, _)| host);
        port.map_or(format!("{host}, which serves no page"), |port| format!("{host}:{port}"))
    }

    /// Number of processes.
    pub fn count(&self) -> usize {
        self.hosts.len()
    }
}

/// On what terms this process works with the others.
pub(crate) struct Terms {
    members: Members,
    key: Key,
    /// What must be alike in all processes, as this one says it.
    hello: Hello,
    /// After this long without a word a process is lost.
    lost_after: Duration,
    /// How often each side says that it is alive.
    beat: Duration,
}

impl Terms {
    fn of(members: Members, config: &Checked) -> Result<Terms, UsageError> {
        let lost_after = config.cluster.lost_after.duration();
        let mut digest = blake3::Hasher::new();
        digest.update(config.outcome_toml().as_bytes());
        // Not among what decisions depend on, but it says what the graph puts out.
        digest.update(&[u8::from(config.history.enabled)]);
        // Who beats slowly must not be listened to impatiently.
        digest.update(&lost_after.as_micros().to_le_bytes());
        let hello = Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: digest.finalize().into(),
            process: members.process,
            processes: members.count(),
            workers: setup::workers(config),
            lane: Lane::Control,
        };
        let addresses: Vec<String> =
            members.hosts.iter().chain([&members.control]).cloned().collect();
        let key = Key::of(config, &addresses)?;
        let beat = BEAT_MAX.min(lost_after / BEATS);
        Ok(Terms { members, key, hello, lost_after, beat })
    }

    fn hello(&self, lane: Lane) -> Hello {
        Hello { lane, ..self.hello.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read() {
        let two = Members::parse(2, 1, "a:7000 # leader\n\nb:7000\n").unwrap();
        assert_eq!((two.control.as_str(), two.count(), two.leads()), ("a:7001", 2, false));
        assert_eq!(two.hosts, ["a:7000", "b:7000"]);
        let given = Members::parse(1, 0, "a:7000 a:9").unwrap();
        assert_eq!((given.control.as_str(), given.leads()), ("a:9", true));
        for (processes, process, text) in [
            (2, 0, "a:1"),
            (1, 1, "a:1"),
            (1, 0, "a"),
            (1, 0, "a:x"),
            (1, 0, "a:65535"),
            (2, 0, "a:1\nb:1 c:2"),
        ] {
            assert!(Members::parse(processes, process, text).is_err(), "{text}");
        }
    }
}
