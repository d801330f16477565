//! The world around one engine over many lives: who sends, who looks, what breaks.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use omnify_config::Layers;
use omnify_decision::control::Control;
use omnify_operators::model::{EntityKey, Tick};
use omnify_pipeline::clock::{self, Virtual};
use omnify_pipeline::live::{Pushed, Stepped, SteppedSetup};
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::disk::{Death, FaultyDisk};
use super::options::{Kind, Plan};
use super::platform::{Connector, Platform, first_settings};
use super::runtime::VirtualRuntime;
use super::shadow::{Report, Shadow};
use super::{Random, draw, invariants};

/// Monday 2026-01-05, 08:00 UTC.
const BEGIN_MS: Tick = 1_767_600_000_000;
/// Lines of the trace that are kept.
const TRACE_MAX: usize = 60;
/// A reading that takes longer is given up.
const READING_MAX: Duration = Duration::from_secs(30);
/// Rounds in which the engine must come to rest.
const ROUNDS_MAX: u32 = 20_000;

/// A body of a client.
pub(super) struct Body {
    pub(super) key: String,
    pub(super) text: String,
    /// Numbers of its events.
    pub(super) events: Vec<i64>,
    pub(super) reports: Vec<Report>,
    pub(super) state: Sent,
}

/// Where a body is.
pub(super) enum Sent {
    /// To be sent, or sent again.
    No,
    /// Waiting for the answer.
    Waiting(Pushed),
    /// Taken in.
    Answered,
}

/// A reading of the platform's settings on its way to the engine.
pub(super) struct Reading {
    begun: Instant,
    controls: Vec<Control>,
}

/// See the module.
pub(super) struct World {
    pub(super) random: Random,
    pub(super) plan: Plan,
    pub(super) dir: PathBuf,
    pub(super) disk: FaultyDisk,
    /// The disk of the engine that is never disturbed.
    pub(super) quiet: FaultyDisk,
    pub(super) runtime: VirtualRuntime,
    pub(super) platform: Platform,
    /// The engine, between two deaths.
    pub(super) engine: Option<Stepped>,
    pub(super) shadow: Shadow,
    pub(super) bodies: Vec<Body>,
    /// The rows of a partition, all that were ever appended.
    pub(super) partition: Vec<String>,
    pub(super) creatives: Vec<EntityKey>,
    /// Events so far; each costs its number, so a row is known wherever it appears.
    pub(super) events: i64,
    pub(super) reading: Option<Reading>,
    pub(super) history: Option<PathBuf>,
    /// Snapshots that were damaged.
    pub(super) flipped: Option<Tick>,
    pub(super) fine_weather: bool,
    /// Somebody changed settings by hand, or a call came late: what the platform did and what the
    /// engine was told then differ for a good reason.
    pub(super) meddled: bool,
    pub(super) lives: u64,
    /// Events held when the engine was stopped last.
    pub(super) held: u64,
    pub(super) step: u64,
    /// Tells every line as it comes.
    pub(super) loud: bool,
    trace: VecDeque<String>,
    hasher: DefaultHasher,
    _virtual: Virtual,
}

impl World {
    /// The world of a seed, in the new folder `dir`.
    pub(super) fn new(mut random: Random, plan: Plan, dir: &Path) -> anyhow::Result<World> {
        let time = Virtual::start(BEGIN_MS);
        let mut seeded = || Random::seed_from_u64(random.r#gen());
        let disk = FaultyDisk::new(seeded());
        let runtime = VirtualRuntime::new();
        let platform = Platform::new(seeded(), runtime.clone(), plan.dedupes);
        let quiet = FaultyDisk::new(seeded());
        let shadow =
            Shadow::new(Arc::new(quiet.clone()), &dir.join("undisturbed").join("journal"))?;
        let mut creatives = Vec::new();
        for tenant in 0..2 {
            for campaign in 0..3 {
                for creative in 0..3 {
                    let group = creative / 2;
                    let key = format!("t{tenant}/p/a{tenant}/c{campaign}/g{group}/x{creative}");
                    creatives.push(key.parse::<EntityKey>()?);
                }
            }
        }
        for creative in &creatives {
            let mut entity = Some(creative.clone());
            while let Some(key) = entity {
                platform.set(key.clone(), first_settings(&key, &mut random));
                entity = key.parent();
            }
        }
        Ok(World {
            random,
            plan,
            dir: dir.to_owned(),
            disk,
            quiet,
            runtime,
            platform,
            engine: None,
            shadow,
            bodies: Vec::new(),
            partition: Vec::new(),
            creatives,
            events: 0,
            reading: None,
            history: None,
            flipped: None,
            fine_weather: true,
            meddled: false,
            lives: 0,
            held: 0,
            step: 0,
            loud: false,
            trace: VecDeque::new(),
            hasher: DefaultHasher::new(),
            _virtual: time,
        })
    }

    /// One step: a kind is drawn and done, then everything that must hold is looked at.
    pub(super) fn step(&mut self) -> anyhow::Result<()> {
        if self.engine.is_none() {
            self.start()?;
        }
        let kind = draw(&mut self.random, &self.plan.weights);
        self.act(kind)?;
        self.after_step(kind)
    }

    fn after_step(&mut self, kind: Kind) -> anyhow::Result<()> {
        if self.disk.is_dead() {
            let death = if self.random.gen_bool(0.4) { Death::PowerLoss } else { Death::Killed };
            self.crash(death)?;
        }
        self.look()?;
        let durable = self.shadow.durable;
        let (received, late) = self.platform.traffic();
        let line = (kind as u32, self.clock(), durable, received, late, self.disk.operations());
        line.hash(&mut self.hasher);
        self.step += 1;
        Ok(())
    }

    /// Takes note of what became durable, and looks at what must hold.
    fn look(&mut self) -> anyhow::Result<()> {
        let mut told = self.platform.take_log();
        if let Some(engine) = &mut self.engine {
            let closed = engine.take_closed();
            for entry in &closed {
                told.extend(entry.controls.iter().map(|what| format!("{}: {what:?}", entry.tick)));
            }
            self.shadow.closed(closed, engine.registry());
            if let Some(tick) = engine.durable() {
                self.shadow.reached(tick)?;
            }
            for body in &mut self.bodies {
                if let Sent::Waiting(pushed) = &mut body.state
                    && engine.is_durable(pushed)
                {
                    body.state = Sent::Answered;
                    self.shadow.taken(&body.events, &body.reports);
                }
            }
        }
        told.into_iter().for_each(|line| self.note(|| line));
        invariants::check(self)
    }

    /// Virtual wall clock.
    pub(super) fn clock(&self) -> Tick {
        clock::Clock::System.now()
    }

    /// Keeps a line for whoever has to understand a failure.
    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        let ms = self.clock() as i64 - BEGIN_MS as i64;
        let line = format!("{:>6} {ms:>10} {}", self.step, what());
        line.hash(&mut self.hasher);
        if self.loud {
            eprintln!("{line}");
        }
        if self.trace.len() == TRACE_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    pub(super) fn trace(&self) -> Vec<String> {
        self.trace.iter().cloned().collect()
    }

    /// What two runs of a seed must have in common.
    pub(super) fn digest(&self) -> u64 {
        self.hasher.finish()
    }

    pub(super) fn absorb(&mut self, what: impl Hash) {
        what.hash(&mut self.hasher);
    }

    /// How the engine of the next life is set up.
    pub(super) fn setup(
        &self,
        disk: &FaultyDisk,
        workers: usize,
        state: &Path,
    ) -> anyhow::Result<SteppedSetup> {
        let config = Layers::new()
            .text("simulation", &self.plan.config_toml)?
            .set(&format!("engine.workers={workers}"))?
            .build()?
            .validate()?;
        let connector =
            Connector { platform: self.platform.clone(), runtime: self.runtime.clone() };
        Ok(SteppedSetup {
            config: Arc::new(config),
            disk: Arc::new(disk.clone()),
            sink: Arc::new(connector),
            runtime: Arc::new(self.runtime.clone()),
            state: state.to_owned(),
            history: state.join("history"),
        })
    }

    /// Starts the next life, however often it dies on the way.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        for _ in 0..50 {
            let workers = self.plan.workers[self.lives as usize % self.plan.workers.len()];
            self.lives += 1;
            let setup = self.setup(&self.disk, workers, &self.dir.join("state"))?;
            match Stepped::start(setup) {
                Ok(engine) => return self.began(engine, workers),
                Err(error) if self.disk.is_dead() || self.disk.has_refused() => {
                    self.note(|| format!("died while starting: {error:#}"));
                    self.runtime.clear();
                    let power = self.disk.is_dead() && self.random.gen_bool(0.4);
                    self.disk.crash(if power { Death::PowerLoss } else { Death::Killed })?;
                }
                Err(error) => return Err(error.context("the engine cannot start")),
            }
        }
        anyhow::bail!("the engine did not start in 50 lives")
    }

    fn began(&mut self, engine: Stepped, workers: usize) -> anyhow::Result<()> {
        let (tick, restored) = (engine.recovered_to(), engine.restored());
        self.note(|| format!("life with {workers} workers from {tick}, snapshot {restored:?}"));
        self.shadow.recovered(tick)?;
        let history = engine.history().clone();
        if let Some(before) = self.history.as_ref().filter(|_| tick > 0) {
            ensure!(
                *before == history,
                "the history goes on in {} after {}",
                history.display(),
                before.display()
            );
        }
        self.history = Some(history);
        self.engine = Some(engine);
        Ok(())
    }

    /// The engine dies; what it held in memory is gone.
    pub(super) fn crash(&mut self, death: Death) -> anyhow::Result<()> {
        self.disk.die();
        if let Some(mut engine) = self.engine.take() {
            // What was on its way to the journal may have got there.
            self.shadow.closed(engine.take_closed(), engine.registry());
        }
        self.runtime.clear();
        self.disk.crash(death)?;
        self.left();
        self.note(|| format!("{death:?}"));
        Ok(())
    }

    /// What clients and readers know after the engine is gone.
    fn left(&mut self) {
        for body in &mut self.bodies {
            if matches!(body.state, Sent::Waiting(_)) {
                body.state = Sent::No;
            }
        }
        self.reading = None;
    }

    /// An engine that ended by itself may have, if the disk was bad enough.
    pub(super) fn ended(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        if self.disk.is_dead() {
            return Ok(());
        }
        if !self.disk.is_broken() {
            return Err(error.context("the engine ended by itself"));
        }
        self.note(|| format!("the engine gave up: {error:#}"));
        self.crash(Death::Killed)
    }

    /// Ends the engine in order.
    pub(super) fn stop(&mut self) -> anyhow::Result<()> {
        self.note(|| "stop".to_owned());
        let mut through = false;
        for _ in 0..ROUNDS_MAX {
            let Some(engine) = &mut self.engine else { return Ok(()) };
            let stopped = engine.stop();
            let moved = self.flow()?;
            self.look()?;
            if self.disk.is_dead() {
                return self.crash(Death::Killed);
            }
            if stopped && !moved {
                through = true;
                break;
            }
            Virtual::pass(Duration::from_millis(30));
        }
        ensure!(through, "the engine does not come to an end");
        self.held = self.engine.as_ref().map_or(0, |engine| engine.counters().held);
        if let Some(engine) = self.engine.take()
            && let Err(error) = engine.finish()
        {
            self.ended(error)?;
        }
        self.runtime.clear();
        // The process is gone; the system's cache is not.
        self.disk.crash(Death::Killed)?;
        self.left();
        Ok(())
    }

    /// Every part gets on once; whether one did.
    pub(super) fn flow(&mut self) -> anyhow::Result<bool> {
        let mut moved = false;
        for part in 0..PARTS {
            moved |= self.part(part)?;
        }
        Ok(moved)
    }

    /// One part of the engine gets on.
    pub(super) fn part(&mut self, part: usize) -> anyhow::Result<bool> {
        let ticks = self.random.gen_range(1..8);
        let Some(engine) = &mut self.engine else { return Ok(false) };
        let result = match part {
            0 => engine.ingest(),
            1 => engine.journal(ticks),
            2 => engine.decide(),
            3 => engine.conclude(),
            4 => engine.record(),
            5 => Ok(engine.snapshot()),
            6 => Ok(engine.dispatch()),
            _ => {
                self.platform.deliver();
                self.runtime.poll();
                Ok(false)
            }
        };
        match result {
            Ok(moved) => {
                if part == 2 && moved {
                    self.decided()?;
                }
                Ok(moved)
            }
            Err(error) => self.ended(error).map(|()| true),
        }
    }

    /// Takes note of what was decided.
    fn decided(&mut self) -> anyhow::Result<()> {
        let Some(made) = self.engine.as_ref().and_then(Stepped::made) else { return Ok(()) };
        let output = made.output();
        let ids: Vec<_> = output.decisions.iter().map(|decision| decision.id.0).collect();
        let actions = output.actions.clone();
        (made.tick(), ids).hash(&mut self.hasher);
        let again = if made.is_again() { " again" } else { "" };
        for action in &actions {
            let (before, desired) = (&action.before, &action.desired);
            self.note(|| {
                format!("decided{again} {} {}: {before:?} to {desired:?}", action.id, action.owner)
            });
        }
        invariants::actions(self, &actions)
    }

    /// Everything heals and comes to rest: every body answered, every partition read, no action under
    /// way, the engine's picture of the platform true.
    pub(super) fn settle(&mut self) -> anyhow::Result<()> {
        self.disk.heal();
        self.platform.set_weather(super::platform::Weather::FINE);
        let mut killed = false;
        for round in 0..ROUNDS_MAX {
            if self.engine.is_none() {
                self.start()?;
                killed = false;
            }
            self.send_all()?;
            self.read_partition(usize::MAX)?;
            while self.flow()? {
                self.look()?;
            }
            Virtual::pass(Duration::from_millis(400));
            let recovering = self.engine.as_ref().is_none_or(Stepped::is_recovering);
            if !killed
                && !recovering
                && let Some(engine) = &self.engine
            {
                // From here on the stage wants nothing new.
                killed = engine.controls().try_send(Control::Kill { tenant: None }).is_ok();
            }
            if round % 4 == 0 {
                self.observe()?;
            }
            if killed && round > 40 && self.is_at_rest() {
                return Ok(());
            }
        }
        let waiting = self.bodies.iter().filter(|body| !matches!(body.state, Sent::Answered));
        anyhow::bail!(
            "it does not come to rest: {} bodies wait, {} tasks, in flight {:?}",
            waiting.count(),
            self.runtime.tasks(),
            self.engine
                .as_ref()
                .and_then(Stepped::stage)
                .map(|stage| stage.in_flight().collect::<Vec<_>>()),
        )
    }

    fn is_at_rest(&self) -> bool {
        let answered = self.bodies.iter().all(|body| matches!(body.state, Sent::Answered));
        let Some(engine) = &self.engine else { return false };
        // The only partition there is.
        let read = engine.positions().all_durable().first().map_or(0, |position| position.next);
        let idle = engine.stage().is_none_or(|stage| stage.in_flight().next().is_none());
        let late = self.platform.traffic().1;
        answered
            && read as usize == self.partition.len()
            && idle
            && late == 0
            && self.runtime.tasks() == 0
            && self.reading.is_none()
            && !engine.is_recovering()
    }

    /// Reads the platform's settings, or hands over what was read before.
    pub(super) fn observe(&mut self) -> anyhow::Result<()> {
        let Some(engine) = &self.engine else { return Ok(()) };
        if let Some(Reading { begun, controls }) = self.reading.take() {
            let late = clock::since(begun) > READING_MAX;
            if late || engine.intake().is_full() || engine.intake().is_closed() {
                return Ok(());
            }
            let arrival = omnify_pipeline::live::Arrival {
                controls,
                observed: Some(begun),
                ..Default::default()
            };
            engine.intake().send(arrival);
            return Ok(());
        }
        let mut controls = Vec::new();
        for (entity, actual) in self.platform.settings() {
            controls.push(Control::Observe { entity, actual });
        }
        self.reading = Some(Reading { begun: clock::instant(), controls });
        Ok(())
    }

    /// A creative, some more often than others.
    pub(super) fn creative(&mut self) -> anyhow::Result<EntityKey> {
        let found = self.creatives.choose(&mut self.random).cloned();
        found.context("there are creatives")
    }
}

/// Parts of the engine that get on by themselves.
pub(super) const PARTS: usize = 8;
