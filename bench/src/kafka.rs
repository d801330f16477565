//! The engine between two Kafka topics: how many events a second come from a broker into features,
//! and how long it takes from an event to its action with Kafka at both ends.
//!
//! The broker is a real one, named by `--brokers`. Topics are made anew. For the rate, everything is
//! in the topic before the engine starts. For the latency a producer sends on a fixed schedule, and a
//! consumer reads the actions; an action is charged with the *oldest* event of its tick, which the
//! journal tells afterwards, so the time in the producer, the broker (twice), the engine and its disk
//! is all in it. All of it runs on one machine, which the broker shares.

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use omnify_config::{Checked, Layers};
use omnify_operators::model::{Registry, Tick, us_of_tick};
use omnify_pipeline::clock::Clock;
use omnify_pipeline::cluster::{self, Leader, Members, OnLost};
use omnify_pipeline::engine::latency_ms;
use omnify_pipeline::kafka::{self, KafkaSource};
use omnify_pipeline::live::{Live, Setup};
use omnify_sinks::journal::JournalReader;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The broker.
    pub brokers: String,
    /// Events in the topic before the engine starts.
    pub preload: u64,
    /// Events a second of the second part.
    pub rate: u64,
    /// Its length.
    pub seconds: u64,
    /// Creatives, ten to a campaign.
    pub creatives: u64,
    /// The new folder of the engine's state.
    pub dir: PathBuf,
    /// Processes of the engine: this one and, beyond it, those of the program.
    pub processes: usize,
    /// The program, where there are others.
    pub omnify: PathBuf,
}

const PARTITIONS: i32 = 4;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs both parts.
pub fn run(options: &Options) -> anyhow::Result<Value> {
    let run = Clock::System.now();
    let (events, actions) = (format!("events-{run}"), format!("actions-{run}"));
    make_topics(&options.brokers, &[&events, &actions])?;
    let mut sender = Sender::new(options, &events)?;
    for _ in 0..options.preload {
        sender.send(Clock::System.now() * 1_000)?;
    }
    sender.flush()?;

    let started = Instant::now();
    let (live, source, _others) = engine(options, &events, &actions)?;
    until(&live, options.preload)?;
    let preloaded_s = started.elapsed().as_secs_f64();

    let stop = Arc::new(AtomicBool::new(false));
    let reader = read_actions(&options.brokers, &actions, stop.clone())?;
    let begin = Instant::now();
    let mut behind_max = Duration::ZERO;
    for slot in 0..options.seconds * 1_000 {
        let due = begin + Duration::from_millis(slot);
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(early);
        }
        behind_max = behind_max.max(due.elapsed());
        // The time at which they were due: a producer that falls behind is charged for it.
        let late_us = due.elapsed().as_micros() as u64;
        for _ in 0..(slot + 1) * options.rate / 1_000 - slot * options.rate / 1_000 {
            sender.send(Clock::System.now() * 1_000 - late_us)?;
        }
    }
    sender.flush()?;
    until(&live, sender.sent)?;
    std::thread::sleep(Duration::from_secs(1));
    stop.store(true, Ordering::Relaxed);
    let read = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    drop(source);
    let summary = live.stop()?;
    let [to_tick, to_producer, latency] = latencies(&options.dir, options.preload, &read)?;
    let counters = &summary.counters;
    Ok(json!({
        "processes": options.processes,
        "preloaded": options.preload,
        "events_per_s": (options.preload as f64 / preloaded_s).round(),
        "rate": options.rate,
        "behind_schedule_ms_max": behind_max.as_secs_f64() * 1e3,
        "actions": read.len(),
        "actions_measured": latency.len(),
        "event_to_tick_ms": latency_ms(&to_tick),
        "event_to_producer_ms": latency_ms(&to_producer),
        "event_to_action_ms": latency_ms(&latency),
        "events_in": counters.events_in,
        "sent": sender.sent,
        "dead_letters": counters.dead_letters,
        "conserved": counters.conservation().holds,
    }))
}

fn make_topics(brokers: &str, names: &[&str]) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let topics: Vec<_> = names
        .iter()
        .map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1)))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let made = runtime.block_on(admin.create_topics(&topics, &AdminOptions::new()))?;
    for topic in made {
        topic.map_err(|(name, code)| anyhow::anyhow!("topic {name} cannot be made: {code}"))?;
    }
    Ok(())
}

fn engine(
    options: &Options,
    events: &str,
    actions: &str,
) -> anyhow::Result<(Live, Option<KafkaSource>, Others)> {
    let text = format!(
        "{}\n[kafka]\nbrokers = \"{}\"\nactions_topic = \"{actions}\"\n\
         [[kafka.topics]]\nname = \"{events}\"\nkind = \"events\"\n",
        crate::latency::CONFIG,
        options.brokers
    );
    let layers = Layers::new().text("bench", &text)?.set("executor.kind=kafka")?;
    // A call lasts as long as the broker's acknowledgement: many at once carry the rate.
    let layers = layers.set("executor.concurrency=256")?;
    let config = Arc::new(layers.build()?.validate()?);
    std::fs::create_dir_all(&options.dir)?;
    let (leader, others) = match options.processes {
        0 | 1 => (None, Others::default()),
        _ => others(options, &config).map(|(leader, others)| (Some(leader), others))?,
    };
    let setup = Setup {
        config: config.clone(),
        clock: Clock::System,
        speed: 1,
        listener: None,
        history: None,
        state: Some(options.dir.join("state")),
        ledger: options.dir.join("ledger"),
        mirror: None,
        controls: Vec::new(),
    };
    let live = Live::start_with(setup, leader)?;
    let runtime = live.runtime().handle();
    let (door, intake, positions) = (live.door(), live.intake(), live.positions());
    let source = kafka::start(&config, door, intake, positions, &Clock::System, runtime)?;
    Ok((live, source, others))
}

/// Processes that end when the engine does, and at the latest with this one.
#[derive(Default)]
struct Others(Vec<Child>);

impl Drop for Others {
    fn drop(&mut self) {
        for other in &mut self.0 {
            let _ = other.kill();
            let _ = other.wait();
        }
    }
}

/// Starts the other processes; this one leads them.
fn others(options: &Options, config: &Checked) -> anyhow::Result<(Leader, Others)> {
    let file = |name: &str| options.dir.join(name);
    let ports = (0..=options.processes).map(|_| TcpListener::bind("127.0.0.1:0"));
    let ports = ports.collect::<Result<Vec<_>, _>>()?;
    let places = ports.iter().map(|port| port.local_addr().map(|at| at.to_string()));
    let places = places.collect::<Result<Vec<_>, _>>()?;
    drop(ports);
    let (control, places) = places.split_last().context("a cluster has processes")?;
    let (first, rest) = places.split_first().context("a cluster has processes")?;
    std::fs::write(file("hosts"), format!("{first} {control}\n{}\n", rest.join("\n")))?;
    std::fs::write(file("omnify.toml"), config.to_toml())?;
    let start = |process: usize| {
        Command::new(&options.omnify)
            .args(["run", "--set", "http.enabled=false", "-c"])
            .arg(file("omnify.toml"))
            .args(["--processes", &options.processes.to_string()])
            .args(["--process", &process.to_string(), "--hosts"])
            .arg(file("hosts"))
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("{} cannot be started", options.omnify.display()))
    };
    let started = Others((1..options.processes).map(start).collect::<anyhow::Result<_>>()?);
    let members = Members::read(options.processes, 0, &file("hosts"))?;
    let on_lost: OnLost = Arc::new(|error| {
        eprintln!("error: {error}");
        std::process::exit(cluster::EXIT_LOST.into());
    });
    Ok((Leader::listen(members, config, on_lost)?, started))
}

/// Waits until `events` came in.
fn until(live: &Live, events: u64) -> anyhow::Result<()> {
    let (published, started) = (live.snapshots(), Instant::now());
    loop {
        let seen = published.borrow().counters.events_in;
        if seen >= events {
            return Ok(());
        }
        ensure!(started.elapsed() < PATIENCE, "{seen} of {events} events came in");
        std::thread::sleep(Duration::from_millis(5));
    }
}

struct Sender {
    producer: BaseProducer,
    topic: String,
    creatives: u64,
    sent: u64,
}

impl Sender {
    fn new(options: &Options, topic: &str) -> anyhow::Result<Sender> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &options.brokers)
            .set("linger.ms", "1")
            .set("queue.buffering.max.messages", "1000000")
            .create()?;
        let (topic, creatives) = (topic.to_owned(), options.creatives);
        Ok(Sender { producer, topic, creatives, sent: 0 })
    }

    fn send(&mut self, ts_us: u64) -> anyhow::Result<()> {
        let n = self.sent;
        let creative = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.creatives;
        let (kind, cost) =
            if n % 50 == 49 { ("click", 0) } else { ("impression", 1_000 + n % 900) };
        let row = format!(
            "{{\"type\":\"event\",\"ts_us\":{ts_us},\"kind\":\"{kind}\",\"event_id\":\"{n}\",\
             \"tenant\":\"t{}\",\"platform\":\"meta\",\"account\":\"a\",\"campaign\":\"c{}\",\
             \"ad_group\":\"g\",\"creative\":\"x{creative}\",\"user\":\"u{}\",\
             \"cost_micros\":{cost},\"revenue_micros\":0}}",
            creative / 10 % 7,
            creative / 10,
            n % 100_003
        );
        let key = creative.to_le_bytes();
        loop {
            let record = BaseRecord::to(&self.topic).key(&key[..]).payload(&row);
            match self.producer.send(record) {
                Ok(()) => break,
                // The buffer is full: let it drain.
                Err(_) => {
                    self.producer.poll(Duration::from_millis(1));
                }
            }
        }
        self.sent += 1;
        if self.sent.is_multiple_of(512) {
            self.producer.poll(Duration::ZERO);
        }
        Ok(())
    }

    fn flush(&self) -> anyhow::Result<()> {
        Ok(self.producer.flush(PATIENCE)?)
    }
}

/// The tick of each action, and when it was handed to the producer and read, in µs.
type Read = Vec<(Tick, i64, i64)>;

fn read_actions(
    brokers: &str,
    topic: &str,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<JoinHandle<anyhow::Result<Read>>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", topic)
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", "5")
        .create()?;
    consumer.subscribe(&[topic])?;
    Ok(std::thread::spawn(move || {
        let mut read = Read::new();
        while !stop.load(Ordering::Relaxed) {
            let Some(message) = consumer.poll(Duration::from_millis(20)) else { continue };
            let message = message?;
            let now_us = Clock::System.now() as i64 * 1_000;
            let action: Value = serde_json::from_slice(message.payload().unwrap_or_default())?;
            let tick = action["tick"].as_u64().context("an action without a tick")?;
            let sent = message.timestamp().to_millis().context("an action without a time")?;
            read.push((tick, sent * 1_000, now_us));
        }
        Ok(read)
    }))
}

/// From the oldest event of an action's tick to that tick and to the moments at which the action was
/// handed to the producer and was read, in µs; ticks of the preload are left out.
fn latencies(dir: &Path, preload: u64, read: &Read) -> anyhow::Result<[Histogram<u64>; 3]> {
    let reader = JournalReader::open(&dir.join("state/journal"))?;
    let (mut oldest, mut events) = (HashMap::new(), 0_u64);
    for entry in reader.ticks(&Arc::new(Registry::utc()), None)? {
        let entry = entry?;
        if events >= preload
            && let Some(first) = entry.events.iter().map(|event| event.time).min()
        {
            oldest.insert(entry.tick, first);
        }
        events += entry.events.len() as u64;
    }
    let histogram = Histogram::new_with_bounds(1, 600_000_000, 3)
        .map_err(|error| anyhow::anyhow!("latency histogram: {error:?}"))?;
    let mut all = [histogram.clone(), histogram.clone(), histogram];
    for (tick, sent_us, read_us) in read {
        if let Some(first) = oldest.get(tick) {
            for (histogram, until) in all.iter_mut().zip([us_of_tick(*tick), *sent_us, *read_us]) {
                histogram.saturating_record(u64::try_from(until - first).unwrap_or(1).max(1));
            }
        }
    }
    Ok(all)
}
