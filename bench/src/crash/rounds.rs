//! The rounds: lives of the engine, each with its fault, each ended by a kill.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rand::Rng;
use rand_xoshiro::Xoshiro256PlusPlus;

use super::broker::Broker;
use super::clock::{STEP_S, SteppingClock};
use super::copy;
use super::disk::SmallDisk;
use super::engine::{Home, Life, Start, until};
use super::faults::{Fault, Tally};
use super::member::Member;
use super::phases::Phases;
use super::platform::Platform;
use super::sender::Sender;

/// Longest life of a process before it is killed, without anything else happening.
pub(super) const LIFE_MAX: Duration = Duration::from_millis(900);
/// Longest time into a start until it is killed.
const START_MAX: Duration = Duration::from_millis(400);
/// Longest time into a restore until it is killed.
const RESTORE_MAX: Duration = Duration::from_millis(100);
/// Longest time that a disk is full, where it is to get room again before the engine gives up
/// (`state.disk_patience` of the harness).
const FULL_MAX: Duration = Duration::from_millis(1_500);
/// Between two looks at a full disk: what the engine frees is taken again.
const FILL_EVERY: Duration = Duration::from_millis(20);
/// Longest time without a broker, beside what its start takes.
const AWAY_MAX: Duration = Duration::from_secs(1);
/// Time in which a rebalance comes to its end: members hear of it with a heartbeat.
const REBALANCE_MAX: Duration = Duration::from_secs(4);
/// The exit code of an engine that cannot write (README.md).
const OUTPUT: i32 = 4;
/// What the engine's log says when a start has come to its end.
const STARTED: &str = "started version=";
/// What the engine's log says of every rebalance.
const MOVED: &str = "the consumer group moved partitions";

/// Everything that surrounds the engine.
pub(super) struct Surroundings {
    pub(super) home: Home,
    pub(super) rng: Xoshiro256PlusPlus,
    pub(super) sender: Sender,
    pub(super) platform: Platform,
    pub(super) clock: Option<SteppingClock>,
    pub(super) kafka: Option<(Broker, Member)>,
    pub(super) tally: Tally,
    pub(super) phases: Phases,
    pub(super) starts: Vec<Duration>,
    /// The disk was lost, and no start has restored it to the end yet.
    pub(super) lost: bool,
}

impl Surroundings {
    /// One round.
    pub(super) fn round(&mut self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::Kill => self.kill_round(),
            Fault::Start => self.start_round(),
            Fault::DiskFull => self.disk_round(),
            Fault::DiskLost => self.lost_round(),
            Fault::Clock => self.clock_round(),
            Fault::Broker => self.broker_round(),
            Fault::Rebalance => self.rebalance_round(),
        }
        .with_context(|| format!("a round of {}", fault.name()))?;
        ensure!(!self.sender.has_failed(), "the sender gave up");
        Ok(())
    }

    /// Starts the engine and waits until it is ready.
    pub(super) fn start(&mut self) -> anyhow::Result<Life> {
        let mut life = self.home.live(self.rng.gen_range(1..=2))?;
        self.starts.push(life.until_ready()?);
        self.lost = false;
        if let Some(clock) = &self.clock {
            clock.check(&life.status()?)?;
        }
        Ok(life)
    }

    fn kill(&mut self, life: &mut Life) -> anyhow::Result<()> {
        let open = self.platform.open_calls();
        life.kill()?;
        self.phases.action_call += u64::from(open > 0);
        self.phases.look(&self.home.data());
        Ok(())
    }

    fn sleep(&mut self, longest: Duration) {
        let time = self.rng.gen_range(Duration::ZERO..longest);
        std::thread::sleep(time);
    }

    fn kill_round(&mut self) -> anyhow::Result<()> {
        let mut life = self.start()?;
        self.sleep(LIFE_MAX);
        self.kill(&mut life)?;
        self.tally.add(Fault::Kill, "run");
        Ok(())
    }

    fn start_round(&mut self) -> anyhow::Result<()> {
        // It is not asked: it takes connections long before it answers.
        let before = self.home.logged(STARTED)?;
        let mut life = self.home.live(self.rng.gen_range(1..=2))?;
        self.sleep(START_MAX);
        life.kill()?;
        self.phases.start += u64::from(self.home.logged(STARTED)? == before);
        self.phases.restore += u64::from(copy::is_restoring(&self.home.data()));
        self.tally.add(Fault::Start, "run");
        Ok(())
    }

    /// The engine moves to a small disk, which fills up, and back.
    fn disk_round(&mut self) -> anyhow::Result<()> {
        if self.lost {
            // How small the disk is follows from what is there.
            let mut life = self.start()?;
            self.kill(&mut life)?;
        }
        let usual = self.home.data();
        let disk = SmallDisk::holding(&usual, self.home.path("small"))?;
        self.home.moved_to("small");
        let went = self.on_small_disk(&disk)?;
        self.home.moved_to("omnify-data");
        disk.move_to(&usual)?;
        self.tally.add(Fault::DiskFull, "run");
        self.tally.add(Fault::DiskFull, went);
        Ok(())
    }

    fn on_small_disk(&mut self, disk: &SmallDisk) -> anyhow::Result<&'static str> {
        let mut life = self.start()?;
        self.sleep(FULL_MAX);
        let way = self.rng.gen_range(0..4);
        let long = if way == 0 { None } else { Some(self.rng.gen_range(Duration::ZERO..FULL_MAX)) };
        let ended = full(disk, &mut life, long)?;
        match (way, ended) {
            // Nothing could be written for longer than the engine waits.
            (0, Some(OUTPUT)) => {
                disk.free()?;
                let mut life = self.start()?;
                self.goes_on()?;
                self.kill(&mut life)?;
                Ok("gave_up_and_started")
            }
            (_, Some(code)) => bail!("it ended with {code} on a full disk: {}", life.tail()),
            (1, None) => {
                self.kill(&mut life)?;
                let mut life = self.home.live(1)?;
                let start = life.started()?;
                disk.free()?;
                match start {
                    Start::Ready(_) => self.goes_on()?,
                    Start::Ended(status) if status.code() == Some(OUTPUT) => {
                        life = self.start()?;
                    }
                    Start::Ended(status) => {
                        bail!("on a full disk it started to {status}: {}", life.tail())
                    }
                }
                self.kill(&mut life)?;
                Ok("killed_and_started_full")
            }
            (2, None) => {
                self.kill(&mut life)?;
                disk.free()?;
                Ok("killed_full")
            }
            (_, None) => {
                disk.free()?;
                self.goes_on().with_context(|| life.tail())?;
                self.sleep(LIFE_MAX);
                self.kill(&mut life)?;
                Ok("went_on")
            }
        }
    }

    /// Waits for an acknowledgement.
    fn goes_on(&self) -> anyhow::Result<()> {
        let before = self.sender.acknowledged();
        until("nothing is acknowledged", || Ok(self.sender.acknowledged() > before))
    }

    /// The disk is lost after the kill. What follows is a restore: the next start of this round or of
    /// another, or several, of which all but the last are killed.
    fn lost_round(&mut self) -> anyhow::Result<()> {
        let mut life = self.start()?;
        self.sleep(LIFE_MAX);
        self.kill(&mut life)?;
        self.lose()?;
        let went = match self.rng.gen_range(0..4) {
            0 => "left_empty",
            1 => {
                self.restore_in_part()?;
                "left_restored_in_part"
            }
            2 => {
                self.restore_in_part()?;
                self.lose()?;
                "lost_again_while_restoring"
            }
            _ => {
                let mut life = self.start()?;
                self.goes_on()?;
                self.sleep(LIFE_MAX);
                self.kill(&mut life)?;
                "restored_and_went_on"
            }
        };
        self.tally.add(Fault::DiskLost, "run");
        self.tally.add(Fault::DiskLost, went);
        Ok(())
    }

    /// State and history are gone.
    fn lose(&mut self) -> anyhow::Result<()> {
        self.lost = true;
        copy::lose(&self.home.data())
    }

    /// Starts, and kills in the middle of the restore unless that is faster.
    fn restore_in_part(&mut self) -> anyhow::Result<()> {
        let (mut life, data) = (self.home.live(self.rng.gen_range(1..=2))?, self.home.data());
        until("no restore begins", || {
            ensure!(life.ended()?.is_none(), "it ended by itself: {}", life.tail());
            Ok(copy::has_begun(&data))
        })?;
        self.sleep(RESTORE_MAX);
        life.kill()?;
        self.phases.restore += u64::from(copy::is_restoring(&data));
        Ok(())
    }

    fn clock_round(&mut self) -> anyhow::Result<()> {
        let mut life = self.start()?;
        self.sleep(LIFE_MAX);
        let clock = self.clock.as_mut().context("no clock")?;
        let now = clock.offset_s();
        let others: Vec<i64> =
            [-STEP_S, 0, STEP_S].into_iter().filter(|offset| *offset != now).collect();
        let offset = others[self.rng.gen_range(0..others.len())];
        clock.step_to(offset)?;
        self.goes_on()?;
        self.sleep(LIFE_MAX);
        self.kill(&mut life)?;
        self.tally.add(Fault::Clock, "run");
        self.tally.add(Fault::Clock, if offset < now { "back" } else { "forward" });
        Ok(())
    }

    fn broker_round(&mut self) -> anyhow::Result<()> {
        let mut life = self.start()?;
        self.sleep(LIFE_MAX);
        self.broker()?.kill()?;
        self.sleep(AWAY_MAX);
        let both = self.rng.gen_bool(0.5);
        if both {
            self.kill(&mut life)?;
            life = self.start()?;
            self.sleep(AWAY_MAX);
        }
        self.broker()?.start_again()?;
        self.sleep(2 * LIFE_MAX);
        self.kill(&mut life)?;
        self.tally.add(Fault::Broker, "run");
        if both {
            self.tally.add(Fault::Broker, "engine_killed_meanwhile");
        }
        Ok(())
    }

    fn broker(&self) -> anyhow::Result<&Broker> {
        Ok(&self.kafka.as_ref().context("no broker")?.0)
    }

    fn rebalance_round(&mut self) -> anyhow::Result<()> {
        let mut life = self.start()?;
        self.sleep(LIFE_MAX);
        let before = self.home.logged(MOVED)?;
        self.kafka.as_ref().context("no broker")?.1.toggle();
        self.sleep(REBALANCE_MAX);
        self.kill(&mut life)?;
        self.tally.add(Fault::Rebalance, "run");
        self.phases.rebalance += u64::from(self.home.logged(MOVED)? == before);
        Ok(())
    }
}

/// Fills the disk and keeps it full, for as long as said or until the engine ends; its exit code.
fn full(disk: &SmallDisk, life: &mut Life, long: Option<Duration>) -> anyhow::Result<Option<i32>> {
    let started = std::time::Instant::now();
    let mut ended = None;
    until("the engine neither writes nor ends", || {
        disk.fill()?;
        ended = life.ended()?;
        std::thread::sleep(FILL_EVERY);
        Ok(ended.is_some() || long.is_some_and(|long| started.elapsed() >= long))
    })?;
    Ok(ended.map(|status| status.code().unwrap_or(-1)))
}
