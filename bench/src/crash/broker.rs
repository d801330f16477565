//! The broker between the engine and the world: `deploy/kafka/run.sh`, and topics of our own on it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

/// Partitions of every topic but that of ticks.
pub(super) const PARTITIONS: i32 = 6;
/// Where a broker of our own listens.
const OWN: &str = "127.0.0.1:29092";

/// How a broker is had.
#[derive(Clone, Debug, Default)]
pub struct BrokerOptions {
    /// `host:port` of one that runs.
    pub address: Option<String>,
    /// Its folder, as given to `deploy/kafka/run.sh`, so that it can be killed; without an address, where
    /// one is started.
    pub dir: Option<PathBuf>,
}

/// A running broker with this run's topics.
pub(super) struct Broker {
    address: String,
    dir: Option<PathBuf>,
    /// It was started here and is stopped at the end.
    own: bool,
    topics: Topics,
}

/// Names that no earlier run has used.
#[derive(Clone, Debug)]
pub(super) struct Topics {
    pub(super) events: String,
    pub(super) actions: String,
    pub(super) features: String,
    pub(super) alerts: String,
    pub(super) ticks: String,
    pub(super) dead_letters: String,
    /// The consumer group, and the id of the engine's transactions.
    pub(super) group: String,
}

impl Topics {
    fn new() -> anyhow::Result<Topics> {
        let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let name = |what: &str| format!("crash.{run}.{what}");
        Ok(Topics {
            events: name("events"),
            actions: name("actions"),
            features: name("features"),
            alerts: name("alerts"),
            ticks: name("ticks"),
            dead_letters: name("dead"),
            group: name("engine"),
        })
    }
}

impl Broker {
    /// Takes the broker that `options` name, or starts one; makes the topics.
    pub(super) fn start(options: &BrokerOptions) -> anyhow::Result<Broker> {
        let own = options.address.is_none();
        let address = options.address.clone().unwrap_or_else(|| OWN.to_owned());
        let topics = Topics::new()?;
        let broker = Broker { address, dir: options.dir.clone(), own, topics };
        if own {
            broker.run("start")?;
        }
        broker.make_topics().with_context(|| format!("topics at {}", broker.address))?;
        Ok(broker)
    }

    pub(super) fn topics(&self) -> &Topics {
        &self.topics
    }

    /// Whether it can be killed.
    pub(super) fn is_ours_to_kill(&self) -> bool {
        self.dir.is_some()
    }

    /// SIGKILL.
    pub(super) fn kill(&self) -> anyhow::Result<()> {
        self.run("kill")
    }

    /// Starts it again with its data.
    pub(super) fn start_again(&self) -> anyhow::Result<()> {
        self.run("start")
    }

    /// Properties of a client.
    pub(super) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.address);
        // A broker that was killed is found soon after it came back.
        client.set("reconnect.backoff.max.ms", "500");
        client
    }

    /// What the engine's configuration needs to read events from here and write everything to here.
    pub(super) fn config(&self) -> String {
        let Topics { events, actions, features, alerts, ticks, dead_letters, group } = &self.topics;
        format!(
            r#"
[executor]
kind = "kafka"
timeout = "2s"
[kafka]
brokers = "{}"
group = "{group}"
instance = "engine"
session_timeout = "6s"
timeout = "3s"
commit_every = "1s"
dead_letter_topic = "{dead_letters}"
actions_topic = "{actions}"
features_topic = "{features}"
features_every = "100ms"
alerts_topic = "{alerts}"
transactional_id = "{group}"
ticks_topic = "{ticks}"
[[kafka.topics]]
name = "{events}"
kind = "events"
"#,
            self.address
        )
    }

    fn make_topics(&self) -> anyhow::Result<()> {
        let Topics { events, actions, features, alerts, ticks, dead_letters, .. } = &self.topics;
        let admin: AdminClient<DefaultClientContext> = self.client().create()?;
        let topic = |name, partitions| NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let topics = [
            topic(events, PARTITIONS),
            topic(actions, PARTITIONS),
            topic(features, PARTITIONS),
            topic(alerts, PARTITIONS),
            topic(dead_letters, PARTITIONS),
            topic(ticks, 1),
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let made = runtime.block_on(admin.create_topics(&topics, &AdminOptions::new()))?;
        for topic in made {
            topic.map_err(|(name, code)| anyhow::anyhow!("topic {name} cannot be made: {code}"))?;
        }
        Ok(())
    }

    fn run(&self, command: &str) -> anyhow::Result<()> {
        let dir = self.dir.as_deref().context("no folder of the broker is given")?;
        let port = self.address.rsplit(':').next().unwrap_or_default();
        let output = Command::new(script()?)
            .arg(command)
            .arg("--dir")
            .arg(dir)
            .args(["--port", port])
            .output()
            .context("deploy/kafka/run.sh")?;
        if !output.status.success() {
            bail!("run.sh {command}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if self.own
            && let Err(error) = self.run("stop")
        {
            eprintln!("{error:#}");
        }
    }
}

/// The script, of the repository that the harness was built from.
fn script() -> anyhow::Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kafka/run.sh");
    ensure!(path.exists(), "{} is not there", path.display());
    Ok(path)
}
