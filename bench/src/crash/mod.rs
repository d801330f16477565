//! Kill -9, again and again: `omnify run` under load, killed at random moments, and at the end
//! everything is as if it had never been.
//!
//! The engine is the built program in a process of its own, with short snapshot, segment and file
//! times, so that kills fall into each of them. A sender pushes numbered events under idempotency
//! keys and sends a body again until it is acknowledged. A platform of our own takes the actions and
//! writes down every call. After the last round the engine is stopped in order, and compared:
//!
//! - every event sent is in the history once (each carries its number as its cost);
//! - replaying the history from its first tick in one go, which is the run without a crash, gives the
//!   same decisions and actions (digest) and the same rows of `features`;
//! - no action changed the platform twice, and what the history says was applied, was.

mod compare;
mod engine;
mod platform;
mod sender;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use serde_json::{Value, json};

use self::engine::Home;
use self::platform::Platform;
use self::sender::Sender;

/// What is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Kills.
    pub rounds: u64,
    /// Seed of the moments of the kills.
    pub seed: u64,
    /// The program.
    pub omnify: PathBuf,
    /// Where everything is kept (a new folder); a temporary one, removed when all is well, by
    /// default.
    pub keep: Option<PathBuf>,
}

/// Longest life of a process before it is killed.
const LIFE_MAX: Duration = Duration::from_millis(900);

/// Runs the rounds and compares. An error is a crash that was not survived.
pub fn run(options: &Options) -> anyhow::Result<Value> {
    ensure!(
        options.omnify.exists(),
        "{} is not there; build it first: cargo build --release",
        options.omnify.display()
    );
    let (dir, temporary) = match &options.keep {
        Some(dir) => (dir.clone(), None),
        None => {
            let name = format!("omnify-crash-{}-{}", options.seed, std::process::id());
            let dir = std::env::temp_dir().join(name);
            (dir.clone(), Some(dir))
        }
    };
    std::fs::create_dir(&dir).with_context(|| format!("{} must be new", dir.display()))?;
    let platform = Platform::start()?;
    let home = Home::new(dir, options.omnify.clone(), platform.url())?;
    let sender = Sender::start(home.address());
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(options.seed);
    let mut recoveries_ms = Vec::new();
    for round in 0..options.rounds {
        let mut life = home.live(rng.gen_range(1..=2))?;
        recoveries_ms.push(life.until_ready().with_context(|| format!("round {round}"))?);
        let time = rng.gen_range(Duration::ZERO..LIFE_MAX);
        std::thread::sleep(time);
        life.kill()?;
    }
    let mut life = home.live(1)?;
    life.until_ready()?;
    std::thread::sleep(LIFE_MAX);
    let sent = sender.stop()?;
    life.stop()?;

    let history = home.history()?;
    let events = compare::events(&history, &sent)?;
    let replayed = compare::replayed(&home, &history)?;
    let actions = compare::actions(&history, &platform.calls())?;
    let identical = replayed && events.lost == 0 && events.duplicated == 0 && actions.wrong == 0;
    if let (Some(dir), true) = (temporary, identical && actions.twice == 0) {
        std::fs::remove_dir_all(dir)?;
    }
    recoveries_ms.sort_unstable();
    Ok(json!({
        "rounds": options.rounds,
        "seed": options.seed,
        "lost": events.lost,
        "duplicated": events.duplicated,
        "actions_twice": actions.twice,
        "identical": identical,
        "events": events.sent,
        "actions_applied": actions.applied,
        "actions_mismatched": actions.wrong,
        "sent_again": sent.again,
        "start_ms_median": recoveries_ms.get(recoveries_ms.len() / 2),
        "start_ms_max": recoveries_ms.last(),
    }))
}
