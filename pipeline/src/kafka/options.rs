//! From the configuration to what the source works with. Files and secrets are read here, once.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use omnify_config::{Checked, KafkaFormat, KafkaKind, KafkaMechanism, KafkaTopic};
use omnify_sinks::kafka::{Connection, Mechanism, Sasl, Security, Tls};

use super::registry::RegistryOptions;
use crate::commands::UsageError;
use crate::decode::{AvroSchema, Mapping, ProtoMessage, ProtoSchema};

/// Our own forms, as they are shipped in `deploy/schemas`.
const EVENT_AVSC: &str = include_str!("../../../deploy/schemas/event.avsc");
const REPORT_AVSC: &str = include_str!("../../../deploy/schemas/report.avsc");
const GOAL_AVSC: &str = include_str!("../../../deploy/schemas/goal.avsc");
const APPROVAL_AVSC: &str = include_str!("../../../deploy/schemas/approval.avsc");
const PROTO: &str = include_str!("../../../deploy/schemas/omnify.proto");

/// What the messages of a topic are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicKind {
    /// Events.
    Events,
    /// Report rows.
    Reports,
    /// Goals.
    Goals,
    /// Approvals.
    Approvals,
}

/// Form of the messages of a topic.
#[derive(Clone, Debug)]
pub enum Format {
    /// JSON.
    Json,
    /// Avro.
    Avro {
        /// The schema of the configuration: of messages without a frame the writer's, of others the
        /// reader's.
        given: Option<Arc<AvroSchema>>,
        /// The engine's own.
        own: Arc<AvroSchema>,
    },
    /// Protobuf; the message is that of messages without a frame.
    Protobuf(ProtoMessage),
}

/// A topic to read.
#[derive(Clone, Debug)]
pub struct TopicOptions {
    /// Its name.
    pub name: String,
    /// What its messages are.
    pub kind: TopicKind,
    /// Their form.
    pub format: Format,
    /// Whether they begin with the id of their schema.
    pub framed: bool,
    /// What its columns mean.
    pub mapping: Mapping,
    /// The only tenant whose rows it may hold.
    pub tenant: Option<String>,
}

impl TopicOptions {
    /// Events in the engine's own form, as JSON.
    pub fn events(name: &str) -> TopicOptions {
        TopicOptions {
            name: name.to_owned(),
            kind: TopicKind::Events,
            format: Format::Json,
            framed: false,
            mapping: Mapping::native(),
            tenant: None,
        }
    }

    fn of(topic: &KafkaTopic) -> anyhow::Result<TopicOptions> {
        let kind = match topic.kind {
            KafkaKind::Events => TopicKind::Events,
            KafkaKind::Reports => TopicKind::Reports,
            KafkaKind::Goals => TopicKind::Goals,
            KafkaKind::Approvals => TopicKind::Approvals,
        };
        let mapping = match topic.mapping.as_str() {
            "" => Mapping::native(),
            name => Mapping::load(name)?,
        };
        let given = match topic.schema.as_str() {
            "" => None,
            file => Some(read(file, "kafka.topics.schema")?),
        };
        let name = |error| UsageError(format!("kafka.topics ({}): {error}", topic.name));
        let format = match topic.format {
            KafkaFormat::Json => Format::Json,
            KafkaFormat::Avro => Format::avro(kind, given.as_deref()).map_err(name)?,
            KafkaFormat::Protobuf => {
                Format::protobuf(kind, given.as_deref(), &topic.message).map_err(name)?
            }
        };
        let tenant = Some(topic.tenant.clone()).filter(|tenant| !tenant.is_empty());
        let framed = topic.registry;
        Ok(TopicOptions { name: topic.name.clone(), kind, format, framed, mapping, tenant })
    }
}

impl Format {
    /// Avro; `given` is the text of a schema of one's own.
    pub fn avro(
        kind: TopicKind,
        given: Option<&str>,
    ) -> Result<Format, crate::decode::SchemaError> {
        let own = match kind {
            TopicKind::Events => EVENT_AVSC,
            TopicKind::Reports => REPORT_AVSC,
            TopicKind::Goals => GOAL_AVSC,
            TopicKind::Approvals => APPROVAL_AVSC,
        };
        let parse = |text: &str| AvroSchema::parse(text, &[]).map(Arc::new);
        Ok(Format::Avro { given: given.map(parse).transpose()?, own: parse(own)? })
    }

    /// Protobuf; `given` is the text of a `.proto` file of one's own, `message` a message in it.
    pub fn protobuf(
        kind: TopicKind,
        given: Option<&str>,
        message: &str,
    ) -> Result<Format, crate::decode::SchemaError> {
        let own = match kind {
            TopicKind::Events => "omnify.Event",
            TopicKind::Reports => "omnify.Report",
            TopicKind::Goals => "omnify.GoalChange",
            TopicKind::Approvals => "omnify.Approval",
        };
        let (text, message) = match (given, message) {
            (Some(text), message) => (text, message),
            (None, "") => (PROTO, own),
            (None, message) => (PROTO, message),
        };
        Ok(Format::Protobuf(ProtoSchema::parse(text, &[])?.message(message)?))
    }
}

/// How the source works.
#[derive(Clone)]
pub struct SourceOptions {
    /// The brokers.
    pub connection: Connection,
    /// The consumer group.
    pub group: String,
    /// Name of this process in the group, if it has one of its own.
    pub instance: Option<String>,
    /// How long the group waits for a silent process.
    pub session_timeout: Duration,
    /// Bytes read ahead.
    pub fetch_bytes: u64,
    /// Messages that enter together at most.
    pub batch_messages: usize,
    /// How often the group is told how far we are; zero never.
    pub commit_every: Duration,
    /// How far ahead of the clock an event may lie.
    pub future_skew: Duration,
    /// The topics.
    pub topics: Vec<TopicOptions>,
    /// The schema registry.
    pub registry: Option<RegistryOptions>,
    /// Where refused messages are copied to.
    pub dead_letter_topic: Option<String>,
    /// Longest wait for the confirmation of a copy.
    pub timeout: Duration,
}

impl SourceOptions {
    /// The same for one of several processes: members of a group need names of their own.
    pub(crate) fn of_process(mut self, process: usize) -> SourceOptions {
        self.instance = self.instance.map(|instance| format!("{instance}-{process}"));
        self
    }

    /// The usual limits.
    pub fn at(connection: impl Into<Connection>, topics: Vec<TopicOptions>) -> SourceOptions {
        SourceOptions {
            connection: connection.into(),
            group: "omnify".to_owned(),
            instance: None,
            session_timeout: Duration::from_secs(45),
            fetch_bytes: 32 << 20,
            batch_messages: 4_096,
            commit_every: Duration::from_secs(5),
            future_skew: Duration::from_secs(300),
            topics,
            registry: None,
            dead_letter_topic: None,
            timeout: Duration::from_secs(10),
        }
    }

    /// What the configuration says; `None` when no topic is to be read.
    pub fn of(config: &Checked) -> anyhow::Result<Option<SourceOptions>> {
        let kafka = &config.kafka;
        if kafka.topics.is_empty() {
            return Ok(None);
        }
        let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let registry = match kafka.registry_url.as_str() {
            "" => None,
            url => {
                let user = kafka.registry_username.as_str();
                let keys = ["kafka.registry_password_env", "kafka.registry_password_file"];
                let (name, file) = (&kafka.registry_password_env, &kafka.registry_password_file);
                let credentials = match user {
                    "" => None,
                    user => Some((user.to_owned(), secret(name, file, keys)?)),
                };
                Some(RegistryOptions { url: url.to_owned(), credentials })
            }
        };
        Ok(Some(SourceOptions {
            connection: connection(config)?,
            group: kafka.group.clone(),
            instance: text(&kafka.instance),
            session_timeout: kafka.session_timeout.duration(),
            fetch_bytes: kafka.fetch_bytes.bytes() as u64,
            batch_messages: kafka.batch_messages,
            commit_every: kafka.commit_every.duration(),
            future_skew: config.validation.future_skew.duration(),
            topics: kafka.topics.iter().map(TopicOptions::of).collect::<anyhow::Result<_>>()?,
            registry,
            dead_letter_topic: text(&kafka.dead_letter_topic),
            timeout: kafka.timeout.duration(),
        }))
    }
}

/// The brokers of the configuration, for every client of Kafka in the process.
pub fn connection(config: &Checked) -> anyhow::Result<Connection> {
    let kafka = &config.kafka;
    let path =
        |text: &String| Some(text.into()).filter(|path: &std::path::PathBuf| path != Path::new(""));
    let tls = kafka.security.is_tls().then(|| Tls {
        ca: path(&kafka.ca_file),
        identity: path(&kafka.cert_file).zip(path(&kafka.key_file)),
    });
    let sasl = match kafka.security.is_sasl() {
        false => None,
        true => Some(Sasl {
            mechanism: match kafka.mechanism {
                KafkaMechanism::Plain => Mechanism::Plain,
                KafkaMechanism::ScramSha256 => Mechanism::ScramSha256,
                KafkaMechanism::ScramSha512 => Mechanism::ScramSha512,
            },
            username: kafka.username.clone(),
            password: secret(
                &kafka.password_env,
                &kafka.password_file,
                ["kafka.password_env", "kafka.password_file"],
            )?,
        }),
    };
    let security = Security { tls, sasl };
    Ok(Connection { security, ..Connection::plaintext(kafka.brokers.clone()) })
}

/// A secret from the environment variable `name`, or from `file`.
fn secret(name: &str, file: &str, keys: [&str; 2]) -> anyhow::Result<String> {
    match (name, file) {
        ("", file) => Ok(read(file, keys[1])?.trim_end().to_owned()),
        (name, _) => std::env::var(name)
            .map_err(|_| UsageError(format!("{} names {name}, which is not set", keys[0])).into()),
    }
}

fn read(file: &str, key: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("{key}: {file} cannot be read"))
}
