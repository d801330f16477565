//! Kill -9, again and again: `omnify run` under load, killed at random moments and in the middle of
//! other faults, and at the end everything is as if it had never been.
//!
//! The engine is the built program in a process of its own, with short snapshot, segment and file
//! times, so that kills fall into each of them; in what they fell is counted from the files they left.
//! A sender pushes numbered events under idempotency keys and sends a body again until it is
//! acknowledged. A platform of our own takes the actions and writes down every call. With a broker,
//! numbered events come from a topic as well, actions go to another, and so do features and alerts, in
//! transactions. With a copy on an object store, in which everything is before it is acknowledged, the
//! disk is lost now and then: state and history are gone, and the next start restores them.
//!
//! | file | duty |
//! |---|---|
//! | `engine` | the program as a process, over many lives at one place |
//! | `faults`, `rounds` | what happens in a round |
//! | `disk` | a disk that is full for a while |
//! | `copy` | a copy on an object store, and the loss of the disk |
//! | `clock` | a wall clock that steps |
//! | `sender`, `platform` | events over HTTP, actions over HTTP |
//! | `broker`, `stream`, `member`, `outputs` | Kafka: the broker, events, a second group member, what comes out |
//! | `phases` | in the middle of what the kills fell |
//! | `compare` | what must hold at the end |
//! | `cluster` | the same over several processes, any of which is lost |
//!
//! After the last round the engine is stopped in order, and compared (with a copy, what is compared was
//! restored from it once more):
//!
//! - every event sent is in the history once (each carries its number as its cost; those that could be
//!   told apart by an id as well mostly have none), and nothing is a dead letter;
//! - replaying the history from its first tick in one go, which is the run without a crash, gives the
//!   same decisions and actions (digest) and the same rows of `features`;
//! - no action changed the platform twice, and what the history says was applied, was;
//! - with a broker: what the group was told is the end of every partition, and a consumer that reads
//!   what is committed has every feature and alert once.

mod broker;
mod clock;
pub mod cluster;
mod compare;
mod copy;
mod disk;
mod engine;
mod faults;
mod member;
mod outputs;
mod phases;
mod platform;
mod rounds;
mod sender;
mod stream;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;
use serde_json::{Value, json};

use self::broker::Broker;
use self::clock::SteppingClock;
use self::disk::SmallDisk;
use self::engine::{CONFIG, Home, until};
use self::faults::Tally;
use self::member::Member;
use self::outputs::Outputs;
use self::phases::Phases;
use self::platform::Platform;
use self::rounds::{LIFE_MAX, Surroundings};
use self::sender::Sender;
use self::stream::Stream;

pub use self::broker::BrokerOptions;
pub use self::disk::in_own_namespace;
pub use self::faults::Fault;

/// What is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Kills.
    pub rounds: u64,
    /// Seed of the moments of the kills.
    pub seed: u64,
    /// The program.
    pub omnify: PathBuf,
    /// What happens; all that can be made here without a list.
    pub faults: Option<Vec<Fault>>,
    /// The broker, if there is to be one.
    pub kafka: Option<BrokerOptions>,
    /// Below which address copies are kept, if there are to be any; `file://NAME` is in the run's
    /// folder.
    pub remote: Option<String>,
    /// Where everything is kept (a new folder); a temporary one, removed when all is well, by
    /// default.
    pub keep: Option<PathBuf>,
}

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
    let kafka = options.kafka.as_ref().map(Broker::start).transpose()?;
    let outwards = match &kafka {
        Some(broker) => broker.config(),
        None => {
            format!(
                "[executor]\nkind = \"market\"\ntimeout = \"500ms\"\nurl = \"{}\"\n",
                platform.url()
            )
        }
    };
    let mut home = Home::new(dir, &options.omnify, &format!("{CONFIG}{outwards}"))?;
    if let Some(remote) = &options.remote {
        copy::install(&mut home, remote)?;
    }
    let mut impossible = BTreeMap::new();
    let wanted = wanted(options, kafka.as_ref());
    let clock = match wanted.contains(&Fault::Clock) {
        true => SteppingClock::install(&mut home)
            .map_err(|error| impossible.insert(Fault::Clock, format!("{error:#}")))
            .ok(),
        false => None,
    };
    if wanted.contains(&Fault::DiskFull) && !SmallDisk::is_possible() {
        let why = "nothing can be mounted here: run it as root, or let users have name spaces";
        impossible.insert(Fault::DiskFull, why.to_owned());
    }
    if wanted.contains(&Fault::DiskLost) && options.remote.is_none() {
        let why = "there is no copy to restore from: pass --remote ADDRESS";
        impossible.insert(Fault::DiskLost, why.to_owned());
    }
    for fault in wanted.iter().filter(|fault| fault.needs_kafka()) {
        let why = match &kafka {
            None => "there is no broker: pass --kafka HOST:PORT or --kafka-dir DIR",
            Some(broker) if *fault == Fault::Broker && !broker.is_ours_to_kill() => {
                "the broker's folder is not known: pass --kafka-dir DIR"
            }
            Some(_) => continue,
        };
        impossible.insert(*fault, why.to_owned());
    }

    let stream = kafka.as_ref().map(Stream::start).transpose()?;
    let kafka = match kafka {
        Some(broker) => {
            let member = Member::start(&broker)?;
            Some((broker, member))
        }
        None => None,
    };
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(options.seed);
    let rounds = faults::deal(options.rounds, &wanted, &mut rng);
    let mut around = Surroundings {
        sender: Sender::start(home.address()),
        home,
        rng,
        platform,
        clock,
        kafka,
        tally: Tally::default(),
        phases: Phases::default(),
        starts: Vec::new(),
        lost: false,
    };
    let mut run = 0;
    for (at, fault) in rounds.into_iter().enumerate() {
        if impossible.contains_key(&fault) {
            around.tally.add(fault, "not_run");
            continue;
        }
        around.round(fault).with_context(|| format!("round {at}"))?;
        run += 1;
    }
    let not_run: BTreeMap<&str, String> =
        impossible.into_iter().map(|(fault, why)| (fault.name(), why)).collect();
    let ended = end(around, stream, run, options.remote.is_some())?;
    if let (Some(dir), true) =
        (temporary, ended["identical"] == true && ended["actions_twice"] == 0)
    {
        std::fs::remove_dir_all(dir)?;
    }
    let mut answer = ended;
    answer["seed"] = options.seed.into();
    answer["not_run"] = json!(not_run);
    Ok(answer)
}

/// The faults asked for, or those that make sense here.
fn wanted(options: &Options, kafka: Option<&Broker>) -> Vec<Fault> {
    let here = |fault: &Fault| match fault {
        Fault::Broker => kafka.is_some_and(Broker::is_ours_to_kill),
        Fault::Rebalance => kafka.is_some(),
        Fault::DiskLost => options.remote.is_some(),
        Fault::Clock => !options.remote.as_deref().is_some_and(copy::wants_the_time),
        _ => true,
    };
    options.faults.clone().unwrap_or_else(|| Fault::ALL.into_iter().filter(here).collect())
}

/// The last life, in which everything is taken in and which is stopped in order; and the comparison.
fn end(
    mut around: Surroundings,
    stream: Option<Stream>,
    rounds: u64,
    has_copy: bool,
) -> anyhow::Result<Value> {
    if let Some((_, member)) = &around.kafka {
        member.leave();
    }
    // What is ahead of a clock that was set back is held, and in no table before its time comes.
    around.clock.iter_mut().try_for_each(|clock| clock.step_to(0))?;
    let mut life = around.start()?;
    std::thread::sleep(LIFE_MAX);
    let sent = around.sender.stop()?;
    let produced = stream.map_or(Ok(0), Stream::stop)?;
    let mut status = Value::Null;
    until("not every event is taken in", || {
        status = life.status()?;
        Ok(status["counters"]["events_in"].as_u64() >= Some(sent.events + produced))
    })
    .with_context(|| status["counters"].to_string())?;
    let dead_letters = status["counters"]["dead_letters"].clone();
    if let Some((broker, _)) = &around.kafka {
        until("the group is not told of the end", || outputs::offsets_are_at_the_end(broker))?;
    }
    life.stop()?;
    if has_copy {
        copy::lose(&around.home.data())?;
        let mut restored = around.home.live(1)?;
        around.starts.push(restored.until_ready()?);
        restored.stop()?;
    }

    let home = &around.home;
    let history = home.history()?;
    let events = compare::events(&history, [sent.events, produced])?;
    let replayed = compare::replayed(home, &history)?;
    let out = match &around.kafka {
        Some((broker, _)) => outputs::read(broker)?,
        None => Outputs { actions: around.platform.calls(), ..Outputs::default() },
    };
    let actions = compare::actions(&history, &home.data().join("state/ledger"), &out.actions)?;
    let rebalances = around.kafka.map_or(Ok(0), |(_, member)| member.stop())?;
    let refused = dead_letters.as_object().is_some_and(|letters| !letters.is_empty());
    let identical = replayed
        && !refused
        && [events.lost, events.duplicated, actions.wrong, out.doubled, out.dead_letters] == [0; 5];
    around.starts.sort_unstable();
    let start_ms = |at: usize| around.starts.get(at).map(std::time::Duration::as_millis);
    Ok(json!({
        "rounds": rounds,
        "lost": events.lost,
        "duplicated": events.duplicated,
        "actions_twice": actions.twice,
        "identical": identical,
        "events": sent.events,
        "events_of_topic": produced,
        "dead_letters": dead_letters,
        "actions_applied": actions.applied,
        "actions_mismatched": actions.wrong,
        "actions_republished": out.republished,
        "features_out": out.features,
        "alerts_out": out.alerts,
        "outputs_doubled": out.doubled,
        "rebalances": rebalances,
        "sent_again": sent.again,
        "answered_busy": sent.refused,
        "faults": around.tally.json(),
        "kills_in": around.phases.json(),
        "restores": home.logged(copy::RESTORING)?,
        "merges": home.logged("small files of the history merged")?,
        "start_ms_median": start_ms(around.starts.len() / 2),
        "start_ms_max": start_ms(around.starts.len() - 1),
    }))
}
