//! The live engine without threads: every part is there, and whoever holds it steps them by hand.
//!
//! For simulations: what the threads of [`Live`](super::Live) do between two waits is one call here,
//! on the caller's thread and in the order of the calls, so a seed decides everything. Only the
//! dataflow keeps its workers' threads; a tick's parts do not depend on how these run, and the
//! caller waits for them.
//!
//! # Contract
//! - No call waits for another part. One that would have to says false and changes nothing.
//! - Dropping it is a crash: nothing is finished and nothing is tidied up beyond what the disk
//!   still allows. [`Stepped::stop`] is the orderly end, a step at a time.
//!
//! There is no HTTP server, no Kafka and no model file here: bodies come in by [`Stepped::push`],
//! what other sources read by [`Stepped::intake`].

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock};

use anyhow::anyhow;
use crossbeam_channel::{Receiver, Sender, bounded, never};
use omnify_config::Checked;
use omnify_decision::control::Control;
use omnify_decision::stage::Stage;
use omnify_operators::graph::Part;
use omnify_operators::model::{Registry, RegistryView, Tick};
use omnify_sinks::action::{ActionSink, Dispatcher, Dispatching, Ledger, Runtime};
use omnify_sinks::disk::Disk;
use omnify_sinks::journal::TickEntry;
use omnify_sinks::serve::{Accepted, Board, Counters, Push as Body, PushError};
use tokio::sync::oneshot;

use super::entrance::{Entrance, told};
use super::ingest::{DurableEnds, Ends, Ingest};
use super::past::{Past, Place};
use super::push::{Pending, Source};
use super::{HistoryAt, Intake, QUEUE_CONTROLS, QUEUE_TICKS, board_config, executor};
use crate::clock::Clock;
use crate::decode::Door;
use crate::durable::{
    self, Gathering, Journal, JournalTick, LEDGER, Reached, Snapshots, Surroundings, Writing,
};
use crate::engine::{
    Decider, Deciding, Execution, Made, Note, Recorder, Recording, Resume, SharedBook, Wakers,
    Watches, Workers, start_workers,
};
use crate::kafka::Positions;
use crate::setup::{self, Mode};

/// What it is made of.
pub struct SteppedSetup {
    /// Configuration; the number of workers is in it.
    pub config: Arc<Checked>,
    /// The disk of everything durable.
    pub disk: Arc<dyn Disk>,
    /// The ad platform.
    pub sink: Arc<dyn ActionSink>,
    /// Where calls run and wait.
    pub runtime: Arc<dyn Runtime>,
    /// Folder of journal, snapshots and ledger.
    pub state: PathBuf,
    /// Folder below which histories are written.
    pub history: PathBuf,
}

/// A body on its way to the disk.
pub struct Pushed {
    /// The answer, once it is there.
    pub accepted: Accepted,
    durable: oneshot::Receiver<()>,
    pending: Option<Pending>,
}

/// See the module.
pub struct Stepped {
    door: Arc<Door>,
    intake: Intake,
    source: Source,
    controls: Sender<Control>,
    positions: Positions,
    /// `None` once it has ended.
    ingest: Option<Ingest>,
    /// Closed ticks between the ingest loop and the journal: so the caller sees them.
    closed: Receiver<JournalTick>,
    to_journal: Option<Sender<JournalTick>>,
    tapped: Vec<TickEntry>,
    writing: Writing,
    _journal: Journal,
    durable: Arc<Reached>,
    /// Ticks that the workers have and the stage has not, or has and has not handed on.
    open: VecDeque<Tick>,
    /// The last tick of an earlier process, while it is being worked towards.
    recovering: Option<Tick>,
    workers: Option<Workers>,
    deciding: Deciding,
    made: Option<(Vec<Part>, Note, Made)>,
    recording: Recording,
    gathering: Gathering,
    dispatcher_rounds: Dispatching,
    history: PathBuf,
    /// The tick of the snapshot that it began with.
    restored: Option<Tick>,
    recovered_to: Tick,
}

impl Stepped {
    /// Goes back to where an earlier process stood, up to and without the journal behind its last
    /// snapshot: those ticks are [`Stepped::decide`]d first. Anything that the disk or the state
    /// refuses is an error.
    pub fn start(setup: SteppedSetup) -> anyhow::Result<Stepped> {
        let SteppedSetup { config, disk, sink, runtime, state, history } = setup;
        let (clock, registry) = (Clock::System, Arc::new(setup::registry(&config)));
        let view = RegistryView::new(registry.clone());
        let spec = Arc::new(setup::feature_spec(&config, Mode::Live)?);
        let door = Arc::new(Door::new(registry.clone(), setup::limits(&config)));
        let positions = Positions::default();
        let told = told(positions.clone(), None);
        let at = Some(HistoryAt::Below(history));
        let place = Place { disk: &disk, state: Some(&state), history: at, claimed: None };
        let past = Past::open(place, &config, &registry, &spec, &clock, told)?;
        let Past { stage, writer, history, journal, snapshots_dir, restore, tail, engine, last } =
            past;
        let missing = || anyhow!("a stepped engine has a state folder and a history");
        let (writer, history) = writer.zip(history).ok_or_else(missing)?;
        let ((journal, writing), dir) = journal.zip(snapshots_dir).ok_or_else(missing)?;
        let recovering = tail.as_ref().map(|tail| tail.last);
        let durable = journal.durable().clone();
        let (inputs, inputs_out) = bounded(QUEUE_CONTROLS);
        let ledger = Ledger::open_on(disk.clone(), &state.join(LEDGER))?;
        let (dispatcher, outcomes, dispatcher_rounds) = Dispatcher::stepped(
            sink,
            ledger,
            executor::options(&config, 0),
            executor::now(&clock),
            runtime,
        );
        let (rows, patience) = (config.engine.queue_history, config.state.disk_patience.duration());
        let file_time = Some(config.history.file_time.duration());
        let (recorder, mut recording) =
            Recorder::new(writer, view.clone(), rows, patience, file_time, Some(durable.clone()));
        recording.merge_inline();
        let (snapshots, gathering) = Snapshots::new(Surroundings {
            disk,
            dir,
            keep: config.state.snapshots_kept,
            view: view.clone(),
            config_toml: config.outcome_toml(),
            history: Some(recorder.committed.clone()),
            journal: durable.clone(),
            journal_from: journal.keep_from(),
            copy: None,
        })?;
        let wakers = Wakers::default();
        let restored = restore.as_ref().map(|(tick, _)| *tick);
        let shared = (&door, &positions, &wakers);
        let Entrance { intake, arrivals, batches, queue, feeds } =
            Entrance::new(&config, shared, &engine.inputs, (restore, tail), recovering.is_some());
        let decided = Arc::<AtomicU64>::default();
        let snapshot_busy = snapshots.busy();
        let deciding = Deciding::new(Decider {
            stage,
            view: view.clone(),
            windows: spec.windows.len(),
            recorder: Some(recorder),
            execution: Some(Execution { dispatcher, inputs: inputs.clone() }),
            board: Some(Board::new(board_config(&config, &spec.windows, 1))),
            book: SharedBook::new(RwLock::default()),
            decided: decided.clone(),
            clock: clock.clone(),
            durable: vec![durable.clone()],
            snapshots: Some(snapshots),
            outputs: None,
            watches: Watches::default(),
            resume: Some(Resume { state: engine, until: last }),
        })?;
        let queue_frames = config.engine.queue_frames;
        let workers = start_workers(spec, view, feeds, queue_frames, wakers, None)?;
        let (closes, closed) = bounded(config.state.queue_journal);
        let source = Source::new(door.clone(), intake.clone(), batches.clone());
        let ends = Ends {
            arrivals,
            outcomes,
            inputs: inputs_out,
            stopped: never(),
            queue,
            clock,
            tick_every: config.engine.tick.duration(),
            decided,
            durable: Some(DurableEnds {
                journal: closes,
                snapshot_busy,
                snapshot_every: config.state.snapshot_every.duration(),
                stop_within: config.state.stop_within.duration(),
                // Without those of the ticks to be made once more: see `passed`.
                positions: durable::Positions::from(positions.all()),
                batches,
                door: door.clone(),
                copy: None,
            }),
            last,
            level: 0,
        };
        let mut open = VecDeque::new();
        open.extend(restored);
        Ok(Stepped {
            door,
            intake,
            source,
            controls: inputs,
            positions,
            ingest: Some(Ingest::new(ends, Vec::new())),
            closed,
            to_journal: Some(journal.sender()),
            tapped: Vec::new(),
            writing,
            _journal: journal,
            durable,
            open,
            recovering,
            workers: Some(workers),
            deciding,
            made: None,
            recording,
            gathering,
            dispatcher_rounds,
            history,
            restored,
            recovered_to: last,
        })
    }

    /// Takes what the sources brought and closes a tick if it is time. False where that would have to
    /// wait: for what is being recovered, for the workers, or for the journal.
    pub fn ingest(&mut self) -> anyhow::Result<bool> {
        if self.recovering.is_some() || self.open.len() >= QUEUE_TICKS || self.closed.is_full() {
            return Ok(false);
        }
        let Some(ingest) = &mut self.ingest else { return Ok(false) };
        let before = ingest.last();
        anyhow::ensure!(ingest.step(), "the engine is gone");
        let after = ingest.last();
        if after > before {
            self.open.push_back(after);
        }
        Ok(after > before)
    }

    /// Hands up to `ticks` closed ticks to the journal and makes them durable as one group.
    pub fn journal(&mut self, ticks: usize) -> anyhow::Result<bool> {
        let Some(queue) = &self.to_journal else { return Ok(false) };
        for tick in self.closed.try_iter().take(ticks) {
            self.tapped.push(tick.entry.clone());
            queue.send(tick).map_err(|_| anyhow!("the journal is gone"))?;
        }
        Ok(self.writing.step().inspect_err(|_| self.durable.end())?)
    }

    /// Decides upon the next tick, once every worker has its part. What was decided is to be
    /// [`Stepped::conclude`]d before the next.
    pub fn decide(&mut self) -> anyhow::Result<bool> {
        if self.made.is_some() || (self.open.is_empty() && self.recovering.is_none()) {
            return Ok(false);
        }
        let Some(workers) = &self.workers else { return Ok(false) };
        let (mut parts, mut note) = (Vec::new(), Note::default());
        for worker in &workers.completed {
            let complete = worker.recv().map_err(|_| match workers.failure.take() {
                Some(error) => error,
                None => anyhow!("a worker ended"),
            })?;
            note.merge(complete.note);
            parts.push(complete.part);
        }
        match self.deciding.decide(&mut parts, &mut note)? {
            Some(made) => self.made = Some((parts, note, made)),
            None => self.passed(parts[0].tick),
        }
        Ok(true)
    }

    /// What was decided and is not handed on yet.
    pub fn made(&self) -> Option<&Made> {
        self.made.as_ref().map(|(.., made)| made)
    }

    /// Hands on what was decided; false where it would have to wait for the journal.
    pub fn conclude(&mut self) -> anyhow::Result<bool> {
        let Some((_, _, made)) = &self.made else { return Ok(false) };
        let leaves = !made.is_again() && !made.output().actions.is_empty();
        if leaves && self.durable.tick() < Some(made.tick()) && !self.durable.has_ended() {
            return Ok(false);
        }
        let Some((mut parts, note, made)) = self.made.take() else { return Ok(false) };
        let tick = made.tick();
        let goes_on = self.deciding.conclude(&mut parts, note, made)?;
        anyhow::ensure!(goes_on, "the journal or the history is gone");
        self.passed(tick);
        Ok(true)
    }

    fn passed(&mut self, tick: Tick) {
        if self.open.front() == Some(&tick) {
            self.open.pop_front();
        }
        if self.recovering == Some(tick) {
            self.recovering = None;
            self.intake.recover(false);
            if let Some(ingest) = &mut self.ingest {
                ingest.recovered(&self.positions.all());
            }
        }
    }

    /// The history takes a tick or commits.
    pub fn record(&mut self) -> anyhow::Result<bool> {
        Ok(self.recording.step()?)
    }

    /// The snapshot under way gets on.
    pub fn snapshot(&mut self) -> bool {
        self.gathering.step()
    }

    /// The dispatcher does a round.
    pub fn dispatch(&mut self) -> bool {
        self.dispatcher_rounds.step()
    }

    /// Gets on with an orderly end; true when the ticks are through. The other steps go on meanwhile,
    /// and [`Stepped::finish`] comes last.
    pub fn stop(&mut self) -> bool {
        self.intake.close();
        if self.recovering.is_some() || self.open.len() >= QUEUE_TICKS || self.closed.is_full() {
            return false;
        }
        if let Some(ingest) = &mut self.ingest {
            let before = ingest.last();
            let more = ingest.end();
            if ingest.last() > before {
                self.open.push_back(ingest.last());
            }
            if !more {
                self.ingest = None;
            }
        }
        self.ingest.is_none() && self.open.is_empty() && self.closed.is_empty()
    }

    /// Ends, once everything that was open has passed.
    pub fn finish(mut self) -> anyhow::Result<()> {
        if let Some(workers) = self.workers.take() {
            workers.join()?;
        }
        self.recording.finish()?;
        while self.gathering.step() {}
        Ok(())
    }

    /// Takes a body as `POST /v1/events` does. What comes back as an error is the answer.
    pub fn push(&self, body: &Body) -> Result<Pushed, Result<Accepted, PushError>> {
        let pending = self.source.begin(body)?;
        match self.source.take(body, pending.as_ref().map(Pending::batch)) {
            Ok((accepted, durable)) => Ok(Pushed { accepted, durable, pending }),
            Err(error) => {
                self.source.end(pending.as_ref(), false);
                Err(Err(error))
            }
        }
    }

    /// Whether the body is on disk; its key is remembered from then on.
    pub fn is_durable(&self, pushed: &mut Pushed) -> bool {
        let durable = pushed.durable.try_recv().is_ok();
        if durable {
            self.source.end(pushed.pending.as_ref(), true);
        }
        durable
    }

    /// Where sources send what they read.
    pub fn intake(&self) -> &Intake {
        &self.intake
    }

    /// What decoders of further sources share.
    pub fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// Entities.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.door.registry
    }

    /// Takes control inputs.
    pub fn controls(&self) -> &Sender<Control> {
        &self.controls
    }

    /// Where sources are to be read on.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Ticks given to the journal since this was asked last.
    pub fn take_closed(&mut self) -> Vec<TickEntry> {
        std::mem::take(&mut self.tapped)
    }

    /// The last tick on disk.
    pub fn durable(&self) -> Option<Tick> {
        self.durable.tick()
    }

    /// The tick of the snapshot that it began with.
    pub fn restored(&self) -> Option<Tick> {
        self.restored
    }

    /// The last tick of an earlier process; 0 for a new engine.
    pub fn recovered_to(&self) -> Tick {
        self.recovered_to
    }

    /// Whether ticks of an earlier process are still being worked through.
    pub fn is_recovering(&self) -> bool {
        self.recovering.is_some()
    }

    /// Ticks between the ingest loop and the end of the stage.
    pub fn open_ticks(&self) -> usize {
        self.open.len()
    }

    /// Ticks that wait for the journal.
    pub fn journal_waits(&self) -> usize {
        self.closed.len()
    }

    /// The stage.
    pub fn stage(&self) -> Option<&Stage> {
        self.deciding.stage()
    }

    /// Totals.
    pub fn counters(&self) -> &Counters {
        &self.deciding.summary().counters
    }

    /// Folder of the history.
    pub fn history(&self) -> &PathBuf {
        &self.history
    }
}

impl Drop for Stepped {
    /// A crash; the workers' threads end.
    fn drop(&mut self) {
        self.ingest = None;
        if let Some(workers) = self.workers.take()
            && let Err(error) = workers.join()
        {
            tracing::warn!(%error, "the workers of a stepped engine");
        }
    }
}
