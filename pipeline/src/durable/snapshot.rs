//! The thread that gathers the state of one tick and commits it as a snapshot.
//!
//! The decision thread says what it and the stage knew at the tick ([`Moment`]: clones, so it goes on
//! at once), then passes on what the workers export over the following ticks. Serialising,
//! compressing and syncing happen here. The snapshot counts when its manifest is there, and that is
//! written last: after the history and the journal hold everything up to its tick.
//!
//! A snapshot that fails is given up and said; the ones before stay, and so does the journal they
//! need.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use omnify_decision::stage::Stage;
use omnify_operators::model::{EntityKey, RegistryView, Tick};
use omnify_operators::state::StateItem;
use omnify_sinks::disk::Disk;
use omnify_sinks::priority;
use omnify_sinks::snapshot::{Manifest, SnapshotStore, SnapshotWriter};
use omnify_sinks::telemetry::events;

use super::{Copy, EngineState, Reached};
use crate::clock;

/// Messages that may wait; at the bound the decision thread waits. An export emits one a tick.
const QUEUE: usize = 4_096;
/// Chunks of operators' state are about this large.
const CHUNK_BYTES: usize = 8 << 20;

/// Version of what the chunks mean; one higher with every change of a type that they hold.
pub(super) const VERSION: u32 = 2;

/// Names of the chunks.
pub(super) const REGISTRY: &str = "registry";
pub(super) const STAGE: &str = "stage";
pub(super) const ENGINE: &str = "engine";
pub(super) const OPERATORS: &str = "operators";

/// What is true at the end of a snapshot's tick, apart from the operators' state.
pub struct Moment {
    /// The tick.
    pub tick: Tick,
    /// The stage, if the engine decides.
    pub stage: Option<Stage>,
    /// The rest.
    pub engine: EngineState,
}

enum Message {
    Begin(Box<Moment>),
    Items(Vec<StateItem>),
    Complete,
}

/// What a snapshot depends on.
pub struct Surroundings {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Folder of the snapshots.
    pub dir: PathBuf,
    /// Snapshots to keep.
    pub keep: usize,
    /// Entities: a snapshot names every id.
    pub view: RegistryView,
    /// The configuration, as text.
    pub config_toml: String,
    /// The history, if one is written.
    pub history: Option<Arc<Reached>>,
    /// The journal.
    pub journal: Arc<Reached>,
    /// The journal keeps everything from here on.
    pub journal_from: Arc<AtomicU64>,
    /// The copy elsewhere, which may need a snapshot a little longer.
    pub copy: Option<Copy>,
}

/// The handle of the thread.
pub struct Snapshots {
    queue: Option<Sender<Message>>,
    busy: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Snapshots {
    /// The handle, and what writes the snapshots: for a thread, or to be stepped.
    pub fn new(surroundings: Surroundings) -> anyhow::Result<(Snapshots, Gathering)> {
        let store = SnapshotStore::open_on(surroundings.disk.clone(), &surroundings.dir)?;
        let (queue, receiver) = bounded(QUEUE);
        let busy = Arc::new(AtomicBool::new(false));
        let (next, open) = (None, None);
        let gathering =
            Gathering { queue: receiver, next, open, store, surroundings, busy: busy.clone() };
        Ok((Snapshots { queue: Some(queue), busy, thread: None }, gathering))
    }

    /// Starts the thread.
    pub fn start(surroundings: Surroundings) -> anyhow::Result<Snapshots> {
        let (mut snapshots, gathering) = Snapshots::new(surroundings)?;
        let thread = std::thread::Builder::new().name("snapshot".into());
        snapshots.thread = Some(thread.spawn(move || {
            priority::lower(priority::LATER);
            gathering.run();
        })?);
        Ok(snapshots)
    }

    /// True from the moment a snapshot is asked for until it is committed or given up.
    pub fn busy(&self) -> Arc<AtomicBool> {
        self.busy.clone()
    }

    /// Begins a snapshot.
    pub fn begin(&self, moment: Moment) {
        self.tell(Message::Begin(Box::new(moment)));
    }

    /// Passes on what a worker exported.
    pub fn items(&self, items: Vec<StateItem>) {
        if !items.is_empty() {
            self.tell(Message::Items(items));
        }
    }

    /// All workers have exported everything.
    pub fn complete(&self) {
        self.tell(Message::Complete);
    }

    fn tell(&self, message: Message) {
        if let Some(queue) = &self.queue {
            // The thread lives as long as the sender; a panic there is reported at the end.
            let _ = queue.send(message);
        }
    }
}

impl Drop for Snapshots {
    /// Waits for a snapshot under way. The history and the journal must have ended or go on.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the snapshot thread panicked; the snapshots before are good");
        }
    }
}

/// The work of the thread.
pub struct Gathering {
    queue: Receiver<Message>,
    /// Taken from the queue and not worked on yet.
    next: Option<Message>,
    open: Option<Open>,
    store: SnapshotStore,
    surroundings: Surroundings,
    busy: Arc<AtomicBool>,
}

/// A snapshot under way.
struct Open {
    tick: Tick,
    writer: SnapshotWriter,
    items: Vec<StateItem>,
    item_bytes: usize,
    chunks: usize,
    started: Instant,
}

impl Gathering {
    fn run(mut self) {
        while let Ok(message) = self.queue.recv() {
            self.handle(message);
        }
    }

    /// Works on the next message; false when there is none, or when it would have to wait for the
    /// history or the journal.
    pub fn step(&mut self) -> bool {
        self.next = self.next.take().or_else(|| self.queue.try_recv().ok());
        if let (Some(Message::Complete), Some(open)) = (&self.next, &self.open) {
            let Surroundings { history, journal, .. } = &self.surroundings;
            let waits = |of: &Reached| of.tick() < Some(open.tick) && !of.has_ended();
            if history.iter().chain([journal]).any(|of| waits(of)) {
                return false;
            }
        }
        self.next.take().map(|message| self.handle(message)).is_some()
    }

    fn handle(&mut self, message: Message) {
        let result = match message {
            Message::Begin(moment) => {
                let tick = moment.tick;
                self.begin(*moment).map(|begun| self.open = Some(begun)).map_err(|e| (tick, e))
            }
            Message::Items(items) => match &mut self.open {
                Some(open) => open.take(items).map_err(|e| (open.tick, e)),
                // Given up; what is still exported belongs to nobody.
                None => Ok(()),
            },
            Message::Complete => {
                let open = self.open.take();
                let result = open.map_or(Ok(()), |open| {
                    let tick = open.tick;
                    self.commit(open).map_err(|error| (tick, error))
                });
                self.busy.store(false, Ordering::Release);
                result
            }
        };
        if let Err((tick, error)) = result {
            // Until its export is complete it stays busy: no second one may begin before.
            self.open = None;
            events::SnapshotFailed { tick, error: &format!("{error:#}") }.emit();
        }
    }

    fn begin(&mut self, moment: Moment) -> anyhow::Result<Open> {
        let started = clock::instant();
        let mut writer = SnapshotWriter::begin(&self.store, moment.tick)?;
        if let Some(stage) = &moment.stage {
            writer.chunk(STAGE, &stage.save())?;
        }
        writer.chunk(ENGINE, &postcard::to_allocvec(&moment.engine)?)?;
        let tick = moment.tick;
        Ok(Open { tick, writer, items: Vec::new(), item_bytes: 0, chunks: 0, started })
    }

    fn commit(&mut self, mut open: Open) -> anyhow::Result<()> {
        open.write_items()?;
        // Every id that the state can name was given out before now.
        let keys: Vec<EntityKey> =
            self.surroundings.view.all().iter().map(|info| info.key.clone()).collect();
        open.writer.chunk(REGISTRY, &postcard::to_allocvec(&keys)?)?;
        let reached = |of: &Reached, what: &str| {
            anyhow::ensure!(of.wait(open.tick), "the {what} ended before it held the tick");
            Ok(())
        };
        if let Some(history) = &self.surroundings.history {
            reached(history, "history")?;
        }
        reached(&self.surroundings.journal, "journal")?;
        let committed = open.writer.commit(Manifest {
            version: VERSION,
            tick: open.tick,
            config_toml: self.surroundings.config_toml.clone(),
            ..Manifest::default()
        })?;
        let (bytes, took) = (committed.bytes, clock::since(open.started));
        events::SnapshotTaken { tick: open.tick, bytes, took }.emit();
        let pinned = self.surroundings.copy.as_ref().and_then(Copy::pinned);
        let oldest = self.store.keep(self.surroundings.keep, pinned)?.oldest_kept;
        // As long as there is only one, the journal is what stands in for it.
        if let Some(oldest) = oldest.filter(|oldest| *oldest < open.tick) {
            self.surroundings.journal_from.store(oldest + 1, Ordering::Release);
        }
        Ok(())
    }
}

impl Open {
    fn take(&mut self, items: Vec<StateItem>) -> anyhow::Result<()> {
        self.item_bytes += items.iter().map(|item| item.bytes.len() + 8).sum::<usize>();
        self.items.extend(items);
        if self.item_bytes >= CHUNK_BYTES { self.write_items() } else { Ok(()) }
    }

    fn write_items(&mut self) -> anyhow::Result<()> {
        if self.items.is_empty() {
            return Ok(());
        }
        let name = format!("{OPERATORS}-{:05}", self.chunks);
        self.writer.chunk(&name, &postcard::to_allocvec(&self.items)?)?;
        self.items.clear();
        (self.item_bytes, self.chunks) = (0, self.chunks + 1);
        Ok(())
    }
}
