//! A seeded simulation of the whole engine in one thread and in virtual time: everything that the
//! process is made of, on a disk, a network and a platform that fail.
//!
//! A seed decides everything: what arrives, which part of the engine gets on next, what breaks and
//! when. The parts are those of production, stepped by hand
//! ([`Stepped`](omnify_pipeline::live::Stepped)). The same seed gives the same run, step by step.
//!
//! | file | duty |
//! |---|---|
//! | `options` | kinds of steps and their weights, drawn anew by each seed |
//! | `world` | the lives of one engine, and who surrounds it |
//! | `actions` | what each kind of step does |
//! | `disk`, `platform`, `runtime` | what fails: files, calls, time |
//! | `shadow` | what must be true, kept beside the engine |
//! | `invariants` | what must hold after every step |
//! | `oracle` | what must be true in the end: files, platform, and an engine never disturbed |
//!
//! # What it cannot find
//! Races between threads (there are none here), faults while reading, and what lies outside: HTTP,
//! Kafka, sockets. `bench -- crash` has those.

mod actions;
mod disk;
mod invariants;
mod options;
mod oracle;
mod platform;
mod runtime;
mod shadow;
mod world;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

pub use options::Kind;
use options::Plan;
use world::World;

type Random = rand_xoshiro::Xoshiro256PlusPlus;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Options {
    /// The first seed.
    pub seed: u64,
    /// Steps of each seed, before everything comes to rest.
    pub steps: u64,
    /// One seed after the other until so much time has passed; without it only the first.
    pub time: Option<Duration>,
    /// Kinds of steps to do without.
    pub without: BTreeSet<Kind>,
    /// Where the runs have their files; the system's folder for such things by default.
    pub dir: Option<PathBuf>,
    /// Tries to find a shorter failing run.
    pub shrink: bool,
    /// Tells everything that happens.
    pub loud: bool,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Run {
    /// A hash of everything that happened, the same for every run of the seed.
    pub digest: u64,
    /// Lives of the engine.
    pub lives: u64,
    summary: oracle::Summary,
}

/// A run that showed a defect.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The step, of those asked for; the last when it showed in the end.
    pub step: u64,
    /// What is wrong.
    pub what: String,
    /// The last lines of what happened before.
    pub trace: Vec<String>,
}

/// Runs seeds; an error describes the first defect.
pub fn run(options: &Options) -> anyhow::Result<Value> {
    let started = Instant::now();
    let (mut seed, mut seeds) = (options.seed, 0_u64);
    let (mut ticks, mut events, mut features, mut actions, mut calls, mut lives) =
        (0, 0, 0, 0, 0, 0);
    loop {
        eprintln!("simulate: seed {seed}, {} steps", options.steps);
        let run =
            once(seed, options.steps, options).map_err(|failure| report(&failure, options))?;
        let of = run.summary;
        seeds += 1;
        lives += run.lives;
        (ticks, events) = (ticks + of.ticks, events + of.events);
        features += of.features;
        (actions, calls) = (actions + of.actions, calls + of.calls);
        if options.time.is_none_or(|time| started.elapsed() >= time) {
            break;
        }
        seed += 1;
    }
    Ok(json!({
        "first_seed": options.seed, "seeds": seeds, "steps": seeds * options.steps, "lives": lives,
        "ticks": ticks, "events": events, "features": features, "actions": actions,
        "calls": calls, "seconds": started.elapsed().as_secs_f64(), "defects": 0,
    }))
}

/// Runs one seed.
pub fn once(seed: u64, steps: u64, options: &Options) -> Result<Run, Failure> {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let number = RUNS.fetch_add(1, Ordering::Relaxed);
    let root = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = root.join(format!("omnify-simulate-{}-{number}", std::process::id()));
    let fail = |what: String| Failure { seed, step: 0, what, trace: Vec::new() };
    let mut random = Random::seed_from_u64(seed);
    let plan = Plan::draw(&mut random, &options.without);
    let made = std::fs::create_dir_all(&dir).context("the folder of the run");
    let world = made.and_then(|()| World::new(random, plan, &dir));
    let mut world = world.map_err(|error| fail(format!("{error:#}")))?;
    world.loud = options.loud;
    let worked = catch_unwind(AssertUnwindSafe(|| {
        (0..steps).try_for_each(|_| world.step())?;
        world.settle()
    }));
    let (step, trace) = (world.step.min(steps), world.trace());
    let failed = |what: String| Failure { seed, step, what, trace: trace.clone() };
    let result = match worked {
        Ok(Ok(())) => {
            let (digest, lives) = (world.digest(), world.lives);
            let checked = catch_unwind(AssertUnwindSafe(|| oracle::check(world)));
            match checked {
                Ok(Ok(summary)) => Ok(Run { digest, lives, summary }),
                Ok(Err(error)) => Err(failed(format!("in the end: {error:#}"))),
                Err(panic) => Err(failed(format!("in the end: {}", words(&*panic)))),
            }
        }
        Ok(Err(error)) => Err(failed(format!("{error:#}"))),
        Err(panic) => Err(failed(words(&*panic))),
    };
    if result.is_ok() || options.dir.is_none() {
        // Best effort: the system clears this folder anyway.
        let _ = std::fs::remove_dir_all(&dir);
    }
    result
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or("without words"))
}

/// A failure with the shortest run that shows it, as far as that is cheap to find: fewer steps, then
/// without one kind of step after the other.
fn report(failure: &Failure, options: &Options) -> anyhow::Error {
    let mut shortest = failure.clone();
    let (mut steps, mut limits) = (options.steps, Options { loud: false, ..options.clone() });
    if options.shrink {
        let fails = |steps, limits: &Options| once(failure.seed, steps, limits).err();
        while steps > 8
            && let Some(found) = fails(steps / 2, &limits)
        {
            (steps, shortest) = (steps / 2, found);
        }
        for kind in Kind::optional() {
            limits.without.insert(kind);
            match fails(steps, &limits) {
                Some(found) => shortest = found,
                None => {
                    limits.without.remove(&kind);
                }
            }
        }
    }
    let without: Vec<_> = limits.without.iter().map(|kind| kind.name()).collect();
    let without = match without.is_empty() {
        true => String::new(),
        false => format!(" --without {}", without.join(",")),
    };
    anyhow::anyhow!(
        "seed {} shows a defect at step {}: {}\n{}\nagain: simulate --seed {} --steps {steps}{without}",
        failure.seed,
        shortest.step,
        shortest.what,
        shortest.trace.join("\n"),
        failure.seed,
    )
}

/// One of `of`, by weight.
fn draw<T: Copy>(random: &mut Random, of: &[(T, u32)]) -> T {
    let total: u32 = of.iter().map(|(_, weight)| weight).sum();
    let mut at = random.gen_range(0..total.max(1));
    for (what, weight) in of {
        if at < *weight {
            return *what;
        }
        at -= weight;
    }
    of[0].0
}
