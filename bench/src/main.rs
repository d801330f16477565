//! The binary `omnify-bench`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use omnify_bench::crash::{self, Fault};
use omnify_bench::{churn, generate, kafka, latency, replay, restart, restate, simulate};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Harnesses of OmniFy.
#[derive(Parser)]
#[command(name = "omnify-bench", version)]
struct Cli {
    /// Prints one JSON object (the only form there is; for symmetry with `omnify`).
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes a Parquet file of the generic layout.
    Generate {
        /// The file.
        #[arg(long)]
        out: PathBuf,
        /// Rows.
        #[arg(long, default_value_t = 10_000_000)]
        rows: usize,
        /// Creatives.
        #[arg(long, default_value_t = 10_000)]
        creatives: usize,
        /// Hours from the first row to the last.
        #[arg(long, default_value_t = 24)]
        hours: u64,
        /// Seed.
        #[arg(long, default_value_t = 7)]
        seed: u64,
    },
    /// Open-loop latency of the live engine.
    Latency {
        /// Events a second.
        #[arg(long, default_value_t = 100_000)]
        rate: u64,
        /// Length in seconds.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        /// Seconds before that are not measured: the cold start.
        #[arg(long, default_value_t = 0)]
        warm_up: u64,
        /// Creatives, ten to a campaign.
        #[arg(long, default_value_t = 10_000)]
        creatives: usize,
        /// Writes a history to this new folder meanwhile.
        #[arg(long)]
        history: Option<PathBuf>,
        /// Keeps a journal and snapshots in this folder meanwhile.
        #[arg(long)]
        state: Option<PathBuf>,
        /// Overrides, for example --set engine.tick=5ms.
        #[arg(long = "set")]
        sets: Vec<String>,
    },
    /// Memory while creatives come and go, over a long simulated time.
    Churn {
        /// Real time of the run in minutes.
        #[arg(long, default_value_t = 30.0)]
        minutes: f64,
        /// Simulated days.
        #[arg(long, default_value_t = 180)]
        days: u32,
        /// Creatives that appear every day, ten to a campaign.
        #[arg(long, default_value_t = 1_000)]
        born_per_day: usize,
        /// Days that each of them delivers.
        #[arg(long, default_value_t = 10)]
        life_days: u32,
        /// Events of one creative on one day.
        #[arg(long, default_value_t = 24)]
        events_per_day: u64,
        /// The new folder of journal and snapshots.
        #[arg(long)]
        dir: PathBuf,
        /// Overrides, for example --set state.snapshot_every=5s.
        #[arg(long = "set")]
        sets: Vec<String>,
    },
    /// Kills the engine at random moments, again and again, and compares with a run without.
    Crash {
        /// Kills.
        #[arg(long, default_value_t = 20)]
        rounds: u64,
        /// Seed of the moments.
        #[arg(long, default_value_t = 7)]
        seed: u64,
        /// Processes of the engine, any of which is lost; one alone is no cluster.
        #[arg(long, default_value_t = 1)]
        processes: usize,
        /// Workers of each process of a cluster.
        #[arg(long, default_value_t = 2)]
        workers: usize,
        /// The program; that beside this one by default.
        #[arg(long)]
        omnify: Option<PathBuf>,
        /// What happens in the rounds, with commas: kill, start, disk-full, disk-lost,
        /// clock, broker, rebalance. All that can be made here by default; a round of what cannot is
        /// counted as not run.
        #[arg(long, value_delimiter = ',')]
        faults: Option<Vec<Fault>>,
        /// A broker, HOST:PORT: events come from a topic as well, everything goes out to topics.
        #[arg(long)]
        kafka: Option<String>,
        /// Its folder, as given to deploy/kafka/run.sh, so that it can be killed. Without --kafka one is
        /// started there, and stopped at the end.
        #[arg(long)]
        kafka_dir: Option<PathBuf>,
        /// The engine keeps a copy below this address, and its disk is lost now and then: file://NAME
        /// (in the run's folder) or s3://BUCKET/PREFIX, with credentials from the environment, at
        /// OMNIFY_S3_ENDPOINT if it is set. A copy on S3 is left there.
        #[arg(long)]
        remote: Option<String>,
        /// Keeps everything in this new folder.
        #[arg(long)]
        keep: Option<PathBuf>,
    },
    /// The whole engine in virtual time on a disk, a network and a platform that fail.
    Simulate {
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Steps of each seed.
        #[arg(long, default_value_t = 3_000)]
        steps: u64,
        /// Runs one seed after the other for so long; without it only the first.
        #[arg(long)]
        minutes: Option<f64>,
        /// Kinds of steps to do without, for example crash,disk_full.
        #[arg(long, value_delimiter = ',')]
        without: Vec<simulate::Kind>,
        /// Reports a failure as it is, without looking for a shorter one.
        #[arg(long)]
        as_is: bool,
        /// Tells everything that happens.
        #[arg(long)]
        trace: bool,
        /// Keeps the files of a failing run in this folder.
        #[arg(long)]
        keep: Option<PathBuf>,
    },
    /// The engine between two topics of a real broker: rate and latency.
    Kafka {
        /// Its address.
        #[arg(long)]
        brokers: String,
        /// Events in the topic before the engine starts.
        #[arg(long, default_value_t = 1_000_000)]
        preload: u64,
        /// Events a second afterwards.
        #[arg(long, default_value_t = 50_000)]
        rate: u64,
        /// For how long.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        /// Creatives.
        #[arg(long, default_value_t = 10_000)]
        creatives: u64,
        /// The new folder of the engine's state.
        #[arg(long)]
        dir: PathBuf,
        /// Processes that read the topic and compute together.
        #[arg(long, default_value_t = 1)]
        processes: usize,
    },
    /// Time of a restart after kill -9, with many events in the journal.
    Restart(RestartArgs),
    /// The process that `restart` feeds and kills.
    #[command(hide = true)]
    RestartFeed(RestartArgs),
    /// A large account is stated anew while the engine serves others: time until it shows, latency
    /// meanwhile, and whether the features are those of the history.
    Restate {
        /// Creatives of the account.
        #[arg(long, default_value_t = 2_000)]
        creatives: usize,
        /// Days of its hour and day rows.
        #[arg(long, default_value_t = 28)]
        days: i64,
        /// Percent of its hours that are stated anew.
        #[arg(long, default_value_t = 5)]
        percent: u64,
        /// Events a second of others, whose 100 campaigns are decided on ten times a second each.
        #[arg(long, default_value_t = 20_000)]
        rate: u64,
        /// Seconds of events before and after the burst.
        #[arg(long, default_value_t = 2)]
        seconds: u64,
        /// The new folder of the histories; one of its own, removed at the end, by default.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Rate of a replay through the engine, beside a plain array program on the same file.
    Replay {
        /// File of the generic layout.
        #[arg(long)]
        input: PathBuf,
        /// Mapping.
        #[arg(long, default_value = "generic")]
        mapping: String,
        /// Worker threads.
        #[arg(long, default_value_t = 1)]
        workers: usize,
        /// Overrides, for example --set decision.enabled=false.
        #[arg(long = "set")]
        sets: Vec<String>,
        /// Writes a history to this new folder; without it rows are counted, not written.
        #[arg(long)]
        out: Option<PathBuf>,
    },
}

/// Options of `restart`.
#[derive(clap::Args)]
struct RestartArgs {
    /// Events in the journal.
    #[arg(long, default_value_t = 100_000_000)]
    events: u64,
    /// Of these, behind the last snapshot.
    #[arg(long, default_value_t = 1_000_000)]
    tail: u64,
    /// Creatives.
    #[arg(long, default_value_t = 10_000)]
    creatives: usize,
    /// The new folder of the state.
    #[arg(long)]
    dir: PathBuf,
}

impl From<RestartArgs> for restart::Options {
    fn from(args: RestartArgs) -> restart::Options {
        let RestartArgs { events, tail, creatives, dir } = args;
        restart::Options { events, tail, creatives, dir }
    }
}

/// The program beside this one.
fn beside() -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("omnify"))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Generate { out, rows, creatives, hours, seed } => {
            let workload = generate::Workload {
                rows,
                creatives,
                hours,
                seed,
                ..generate::Workload::default()
            };
            generate::write(&workload, &out)
                .map(|()| serde_json::json!({ "out": out, "rows": rows, "creatives": creatives }))
        }
        Command::Latency { rate, seconds, warm_up, creatives, history, state, sets } => {
            let options =
                latency::Options { rate, seconds, warm_up, creatives, sets, history, state };
            latency::run(&options)
        }
        Command::Churn { minutes, days, born_per_day, life_days, events_per_day, dir, sets } => {
            churn::run(&churn::Options {
                time: Duration::from_secs_f64(minutes * 60.0),
                days,
                born_per_day,
                life_days,
                events_per_day,
                dir,
                sets,
            })
        }
        Command::Crash {
            rounds,
            seed,
            processes,
            workers,
            omnify,
            faults,
            kafka,
            kafka_dir,
            remote,
            keep,
        } => {
            crash::in_own_namespace();
            omnify.map_or_else(beside, Ok).and_then(|omnify| {
                let kafka = (kafka.is_some() || kafka_dir.is_some())
                    .then_some(crash::BrokerOptions { address: kafka, dir: kafka_dir });
                let answer = if processes == 1 {
                    crash::run(&crash::Options {
                        rounds,
                        seed,
                        omnify,
                        faults,
                        kafka,
                        remote,
                        keep,
                    })?
                } else {
                    anyhow::ensure!(
                        faults.is_none() && kafka.is_none() && remote.is_none(),
                        "--faults, --kafka and --remote are for one process"
                    );
                    crash::cluster::run(&crash::cluster::Options {
                        rounds,
                        seed,
                        omnify,
                        keep,
                        processes,
                        workers,
                    })?
                };
                anyhow::ensure!(
                    answer["identical"] == true && answer["actions_twice"] == 0,
                    "{answer}"
                );
                Ok(answer)
            })
        }
        Command::Simulate { seed, steps, minutes, without, as_is, trace, keep } => {
            simulate::run(&simulate::Options {
                seed,
                steps,
                time: minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0)),
                without: without.into_iter().collect(),
                dir: keep,
                shrink: !as_is,
                loud: trace,
            })
        }
        Command::Kafka { brokers, preload, rate, seconds, creatives, dir, processes } => beside()
            .and_then(|omnify| {
                kafka::run(&kafka::Options {
                    brokers,
                    preload,
                    rate,
                    seconds,
                    creatives,
                    dir,
                    processes,
                    omnify,
                })
            }),
        Command::Restart(args) => restart::run(&args.into()),
        Command::RestartFeed(args) => restart::feed(&args.into()),
        Command::Restate { creatives, days, percent, rate, seconds, dir } => {
            let around = Duration::from_secs(seconds);
            restate::run(&restate::Options { creatives, days, percent, rate, around, dir })
        }
        Command::Replay { input, mapping, workers, sets, out } => replay::check_input(&input)
            .and_then(|()| replay::run(&replay::Options { input, mapping, workers, sets, out })),
    };
    match result {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
