//! Several processes at one place, over many lives, and what their histories hold.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use omnify_sinks::history::HistoryReader;

use crate::support::{self, CONFIG, Process};

/// Hosts of the largest cluster, and the leader's second address.
const PORTS: usize = 4;
pub(crate) const SECRET: &str = "a secret of these tests";

/// As `CONFIG` has it.
pub(crate) const DECIDE_EVERY: Duration = Duration::from_millis(20);

/// Stops all in order by a word to one of them.
pub(crate) fn stop(processes: &mut [Process], by: usize) {
    processes[by].signal("TERM");
    for process in processes {
        assert_eq!(process.code(), Some(0), "{}", process.said());
    }
}

/// A folder for an engine over many lives, and ports for its processes.
pub(crate) struct Home {
    home: support::Home,
    ports: Vec<u16>,
}

impl Deref for Home {
    type Target = support::Home;

    fn deref(&self) -> &support::Home {
        &self.home
    }
}

impl Home {
    pub(crate) fn new() -> Home {
        Home::with("")
    }

    /// With more in its configuration.
    pub(crate) fn with(more: &str) -> Home {
        let home = support::Home::new(&format!("{CONFIG}{more}"));
        Home { home, ports: (0..PORTS).map(|_| port()).collect() }
    }

    pub(crate) fn port(&self, at: usize) -> u16 {
        self.ports[at]
    }

    /// Starts `omnify run` with these arguments.
    pub(crate) fn start(&self, more: &[&str]) -> Process {
        self.start_with_secret(SECRET, more)
    }

    pub(crate) fn start_with_secret(&self, secret: &str, more: &[&str]) -> Process {
        let mut command = self.run(more);
        command.env("OMNIFY_CLUSTER_SECRET", secret);
        Process::start(command)
    }

    /// The arguments of process `which` of `count` with so many workers each.
    pub(crate) fn place(&self, count: usize, which: usize, workers: usize) -> Vec<String> {
        let mut hosts = format!("127.0.0.1:{} 127.0.0.1:{}\n", self.ports[0], self.ports[1]);
        self.ports[2..=count].iter().for_each(|port| hosts += &format!("127.0.0.1:{port}\n"));
        let file = format!("hosts-{count}");
        // The processes before this one may be reading it.
        if !self.path(&file).exists() {
            std::fs::write(self.path(&file), hosts).unwrap();
        }
        let place = format!("--processes {count} --process {which} --hosts {file}");
        let mut arguments: Vec<_> = place.split(' ').map(str::to_owned).collect();
        arguments.extend(["--set".to_owned(), format!("engine.workers={workers}")]);
        arguments
    }

    pub(crate) fn process(&self, count: usize, which: usize, more: &[&str]) -> Process {
        let place = self.place(count, which, 2);
        let place: Vec<&str> = place.iter().map(String::as_str).collect();
        self.start(&[&place, more].concat())
    }

    /// A cluster of `count` processes with `workers` workers each; one alone is none.
    pub(crate) fn cluster(&self, count: usize, workers: usize) -> Vec<Process> {
        let start = |which| {
            let mut place = self.place(count, which, workers);
            if count == 1 {
                place.drain(..place.len() - 2);
            }
            self.start(&place.iter().map(String::as_str).collect::<Vec<_>>())
        };
        (0..count).map(start).collect()
    }

    pub(crate) fn both(&self) -> (Process, Process) {
        (self.process(2, 0, &[]), self.process(2, 1, &[]))
    }

    /// The chained digest of the decisions, by tick.
    pub(crate) fn digests(&self) -> BTreeMap<u64, [u8; 32]> {
        let reader = HistoryReader::open(self.history()).unwrap();
        reader.ticks().map(|tick| tick.unwrap()).map(|tick| (tick.tick, tick.digest)).collect()
    }
}

/// A port that is free, and that no other test of this process gets; below those that the system
/// gives to clients.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 1_100) as u16 * 10;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Copies a folder with everything in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        match path.is_dir() {
            true => copy(&path, &to),
            false => drop(std::fs::copy(&path, &to).unwrap()),
        }
    }
}
