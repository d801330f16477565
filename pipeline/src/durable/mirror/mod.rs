//! The copy of journal, snapshots, ledger and history on an object store, kept while the engine runs.
//!
//! ```text
//! journal thread ─┐ durable bytes                     ┌─► pieces ─► head ─► (strict) receipts, actions
//! ledger ─────────┴──────────────► Shared ─► tail ────┤
//! snapshots/, history/ ──────────► bulk ─► objects ───┘
//! ```
//! Two threads. `tail` copies what the journal and the ledger have grown by and commits the head; what
//! it does is small, so it is quick. `bulk` copies snapshots, parts of the history and merges pieces,
//! and hands what the head is to list to `tail`. They work on the files alone: nothing waits for them
//! but what asks to.
//!
//! # Contract
//! - A head never lists a history or a snapshot that is ahead of its journal: `bulk` reads what is
//!   committed, then `tail` commits only when it has copied everything that was durable by then.
//! - Strict (`state.acknowledge = "mirror"`): receipts, positions of sources and actions follow the
//!   commit of the head that holds their tick, and an action is called only when the copy holds its
//!   intent as well.
//! - Journal segments that the copied snapshots need stay on the local disk.
//! - A store that fails is tried again for ever, and said. What is not copied grows on the local disk up
//!   to `backlog_bytes_max`; there the sources wait.
//! - When another engine has taken the epoch, the journal takes nothing more and the engine ends.

mod bulk;
mod folder;
mod shared;
mod tail;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use omnify_operators::model::Tick;
use omnify_sinks::action::LedgerCopy;
use omnify_sinks::objects::{Claim, Head, ObjectsError, Owner, Remote};
use omnify_sinks::serve::Problem;
use tokio::runtime::Handle;
use tokio::sync::watch;

use self::shared::Shared;
use super::journal::{Durable, OnDurable};
use super::{JOURNAL, LEDGER, Reached, SNAPSHOTS};
use crate::clock;

pub use folder::{in_doubt_until, restore_if_empty};

/// Groups of ticks that may wait for the copy; at the bound the journal waits.
const QUEUE_GROUPS: usize = 65_536;

/// Where and how a copy is kept.
#[derive(Clone, Debug)]
pub struct MirrorOptions {
    /// The place.
    pub remote: Remote,
    /// Longest time between two commits, unless strict: then a commit follows the other.
    pub every: Duration,
    /// Nothing is acknowledged or acted on before the copy has it.
    pub strict: bool,
    /// Bytes of journal and ledger that may wait to be copied.
    pub backlog_bytes_max: u64,
    /// Snapshots kept in the copy.
    pub snapshots_kept: usize,
}

/// What is copied.
pub struct Folders {
    /// The state folder.
    pub state: PathBuf,
    /// The history being written.
    pub history: Option<PathBuf>,
}

/// An epoch that was taken; see [`Claimed::start`].
pub struct Claimed {
    claim: Claim,
    options: MirrorOptions,
    shared: Arc<Shared>,
    runtime: Handle,
}

impl Claimed {
    /// Takes the next epoch for the state folder, whose content must be at least the copy's.
    pub fn take(options: MirrorOptions, state: &Path, runtime: &Handle) -> anyhow::Result<Claimed> {
        std::fs::create_dir_all(state)
            .map_err(|error| crate::commands::output_error(state, &error))?;
        let owner = Owner { folder: folder::id(state)?, ..owner(options.strict) };
        let claim = runtime.block_on(Claim::take(&options.remote, owner, false))?;
        folder::check(state, claim.head(), options.remote.name())?;
        let shared = Arc::new(Shared::new(claim.head(), &options));
        Ok(Claimed { claim, options, shared, runtime: runtime.clone() })
    }

    /// Whether nothing is acknowledged or acted on before the copy has it.
    pub fn is_strict(&self) -> bool {
        self.options.strict
    }

    /// The epoch.
    pub fn epoch(&self) -> u64 {
        self.claim.head().epoch
    }

    /// For the journal's thread.
    pub fn copy(&self) -> Copy {
        Copy(self.shared.clone())
    }

    /// Starts copying. The journal and the ledger must have said what they hold. `told` hears of
    /// ticks that are in the copy, if strict.
    pub fn start(self, folders: Folders, told: Strict) -> std::io::Result<Mirror> {
        let Claimed { claim, options, shared, runtime } = self;
        let (deadline, ending) = watch::channel(None);
        let (epoch, remote) = (claim.head().epoch, options.remote.clone());
        let work = bulk::Bulk::new(remote, epoch, &folders, &options, claim.head(), shared.clone());
        let (handle, until) = (runtime.clone(), ending.clone());
        let every = options.every;
        let bulk = std::thread::Builder::new()
            .name("mirror-bulk".into())
            .spawn(move || work.run(&handle, every, until))?;
        let tail = tail::Tail::new(claim, folders.state, &options, shared.clone(), told);
        let tail = std::thread::Builder::new()
            .name("mirror".into())
            .spawn(move || tail.run(&runtime, ending))?;
        Ok(Mirror { shared, deadline, threads: vec![bulk, tail] })
    }
}

/// What strict mode defers until the copy has it.
#[derive(Default)]
pub struct Strict {
    groups: Option<crossbeam_channel::Receiver<Durable>>,
    told: Option<OnDurable>,
    reached: Option<Arc<Reached>>,
}

impl Strict {
    /// Puts the copy between the journal and `told`: returns what the journal is to tell instead, and
    /// how far what it tells is in the copy.
    pub fn between(told: OnDurable) -> (Strict, OnDurable, Arc<Reached>) {
        let (sender, groups): (Sender<Durable>, _) = bounded(QUEUE_GROUPS);
        let reached = Arc::new(Reached::default());
        let strict =
            Strict { groups: Some(groups), told: Some(told), reached: Some(reached.clone()) };
        // Where the copy has ended nobody is told: receipts are dropped.
        (strict, Box::new(move |group| drop(sender.send(group))), reached)
    }
}

/// What the journal's and the ledger's threads know of the copy.
#[derive(Clone)]
pub struct Copy(Arc<Shared>);

impl Copy {
    /// A segment of the journal is durable up to `bytes`.
    pub fn journal(&self, segment: &str, bytes: u64) {
        self.0.grown(&format!("{JOURNAL}/{segment}"), bytes);
    }

    /// Segments of the journal that end before this tick are not needed by the copy.
    pub fn keep_from(&self) -> Tick {
        self.0.keep_from()
    }

    /// The snapshot that is being copied, which must stay.
    pub fn pinned(&self) -> Option<Tick> {
        self.0.pinned()
    }

    /// More waits to be copied than may: sources wait.
    pub fn is_full(&self) -> bool {
        self.0.is_full()
    }

    /// Another engine holds the epoch: nothing more may be taken in.
    pub fn is_lost(&self) -> bool {
        self.0.is_lost()
    }

    /// What an operator should look at.
    pub fn problems(&self) -> Vec<Problem> {
        self.0.problems()
    }
}

impl LedgerCopy for Copy {
    fn grown(&self, file: &str, bytes: u64, intents: bool) -> bool {
        let name = format!("{LEDGER}/{file}");
        self.0.grown(&name, bytes);
        match (intents, self.0.strict) {
            (false, _) => true,
            (true, true) => self.0.wait_for(&name, bytes),
            (true, false) => !self.0.is_lost(),
        }
    }
}

/// The handle of the threads.
pub struct Mirror {
    shared: Arc<Shared>,
    deadline: watch::Sender<Option<Instant>>,
    threads: Vec<JoinHandle<()>>,
}

impl Mirror {
    /// From now on nothing waits for the copy longer than `within`: what is not copied by then is
    /// copied after the next start.
    pub fn stopping(&self, within: Duration) {
        self.deadline.send_replace(Some(clock::instant() + within));
    }

    /// Copies what is left, within the time of [`Mirror::stopping`]. The journal, the ledger and the
    /// history must have ended.
    pub fn finish(mut self) -> Result<(), ObjectsError> {
        self.shared.close();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the copy panicked; the local files are good");
            }
        }
        let (backlog, error) = self.shared.result();
        if error.is_none() && backlog {
            tracing::warn!("the copy is behind; it is caught up after the next start");
        }
        error.map_or(Ok(()), Err)
    }
}

impl Drop for Mirror {
    /// Ends at once.
    fn drop(&mut self) {
        self.deadline.send_replace(Some(clock::instant()));
        self.shared.close();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// This process, for people.
fn owner(strict: bool) -> Owner {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let (host, process) = (host.trim(), std::process::id());
    let name = format!("{host} process {process} started {}", clock::Clock::System.now());
    Owner { folder: String::new(), name, strict }
}

/// Resolves when the time of stopping is over.
async fn expired(mut ending: watch::Receiver<Option<Instant>>) {
    let at = match ending.wait_for(Option::is_some).await {
        Ok(at) => *at,
        // The handle is gone.
        Err(_) => None,
    };
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}

/// The oldest of the snapshots that a copy keeps, once there is more than one.
fn oldest_needed(head: &Head) -> Option<Tick> {
    let snapshots = head.snapshots();
    (snapshots.len() > 1).then(|| snapshots[0].0)
}

/// Name of a snapshot's manifest in the head.
fn snapshot_name(tick: Tick) -> String {
    format!("{SNAPSHOTS}/{tick:020}/manifest.json")
}
