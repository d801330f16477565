//! A real broker: killed in the middle, shared by two members, behind TLS and SASL.
//!
//! Runs when `OMNIFY_KAFKA_BROKERS` names a broker; what kills it or reads its certificates also
//! needs `OMNIFY_KAFKA_DIR`, the folder given to `deploy/kafka/run.sh start --dir`. `.ci/run` sets
//! both:
//! ```text
//! deploy/kafka/run.sh start --dir target/kafka --port 19092
//! OMNIFY_KAFKA_BROKERS=127.0.0.1:19092 OMNIFY_KAFKA_DIR=target/kafka \
//!     cargo test -p omnify-pipeline --lib real_kafka -- --nocapture
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use omnify_sinks::journal::Position;
use omnify_sinks::kafka::{Connection, Mechanism, Sasl, Tls};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::rig::{PATIENCE, Rig, Taken, producer, send_events_to, until};
use crate::kafka::{Positions, SourceOptions, TopicOptions};

/// One broker, which some tests kill: one test at a time.
static BROKER: Mutex<()> = Mutex::new(());

const PARTITIONS: i32 = 4;

struct Broker {
    address: String,
    dir: PathBuf,
    _only: MutexGuard<'static, ()>,
}

impl Broker {
    /// The broker under test, if there is one.
    fn find() -> Option<Broker> {
        let value = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let found = value("OMNIFY_KAFKA_BROKERS").zip(value("OMNIFY_KAFKA_DIR"));
        let Some((address, dir)) = found else {
            eprintln!("skipped: OMNIFY_KAFKA_BROKERS and OMNIFY_KAFKA_DIR are not both set");
            return None;
        };
        // Tests run in the crate's folder, scripts in the repository's.
        let dir = root().join(dir);
        let only = BROKER.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Broker { address, dir, _only: only })
    }

    fn port(&self) -> u16 {
        self.address.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// Runs `deploy/kafka/run.sh`.
    fn run(&self, command: &str) {
        let status = Command::new(root().join("deploy/kafka/run.sh"))
            .arg(command)
            .arg("--dir")
            .arg(&self.dir)
            .args(["--port", &self.port().to_string()])
            .current_dir(root())
            .status()
            .unwrap();
        assert!(status.success(), "run.sh {command} failed");
    }

    /// A topic that no earlier run has used.
    fn topic(&self) -> String {
        let unique = tempfile::tempdir().unwrap();
        let unique = unique.path().file_name().unwrap().to_string_lossy().replace('.', "");
        let topic = format!("events.{unique}");
        // The broker creates it when it is asked about.
        let asker: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.address)
            .set("allow.auto.create.topics", "true")
            .create()
            .unwrap();
        for _ in 0..100 {
            let metadata = asker.fetch_metadata(Some(&topic), PATIENCE).unwrap();
            if metadata.topics()[0].partitions().len() == usize::try_from(PARTITIONS).unwrap() {
                return topic;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the broker did not create {topic} with {PARTITIONS} partitions");
    }

    fn options(&self, topic: &str) -> SourceOptions {
        let mut options =
            SourceOptions::at(self.address.as_str(), vec![TopicOptions::events(topic)]);
        options.group = format!("group.{topic}");
        options.session_timeout = Duration::from_secs(10);
        options
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn journal(taken: &Taken) -> Positions {
    Positions::restored(taken.positions.iter().map(|((source, partition), next)| Position {
        source: source.as_str().into(),
        partition: *partition,
        next: *next,
    }))
}

#[test]
fn real_kafka_broker_killed_in_the_middle_and_a_restart_at_the_journal() {
    let Some(broker) = Broker::find() else { return };
    let topic = broker.topic();
    let mut options = broker.options(&topic);
    options.instance = Some("engine-1".to_owned());
    options.batch_messages = 500;
    let sender = producer(&broker.address);
    send_events_to(&sender, &topic, PARTITIONS, 0..20_000);
    // A small intake: the source is in the middle when the broker dies.
    let rig = Rig::new(1_000);
    let source = rig.start(&options);
    let mut taken = Taken::default();
    while taken.rows < 5_000 {
        taken.add(rig.next_of(&source));
    }
    broker.run("kill");
    broker.run("start");
    while taken.rows < 12_000 {
        taken.add(rig.next_of(&source));
    }
    source.stop();
    rig.silence(&mut taken);
    // The next process knows nothing but the journal, not even that the group has a member.
    send_events_to(&sender, &topic, PARTITIONS, 20_000..24_000);
    let rig = Rig::at(1_000, journal(&taken));
    let source = rig.start(&options);
    let rest = 24_000 - taken.rows;
    rig.rows(rest).arrivals.into_iter().for_each(|arrival| taken.add(arrival));
    assert_eq!(taken.sorted(), (0..24_000).collect::<Vec<_>>());
    assert_eq!(source.status().lost, 0);
}

#[test]
fn real_kafka_two_members_share_the_partitions_without_loss_or_repeat() {
    let Some(broker) = Broker::find() else { return };
    let topic = broker.topic();
    let options = broker.options(&topic);
    let sender = producer(&broker.address);
    let rig = Rig::new(1_000_000);
    send_events_to(&sender, &topic, PARTITIONS, 0..2_000);
    let first = rig.start(&options);
    until(&first, "the first has all", |status| status.assigned.len() == 4);
    let second = rig.start(&options);
    let mut sent = 2_000;
    while second.status().assigned.is_empty() {
        send_events_to(&sender, &topic, PARTITIONS, sent..sent + 100);
        sent += 100;
        assert!(sent < 1_000_000, "the second member never got a partition");
    }
    until(&second, "the second has half", |status| status.assigned.len() == 2);
    until(&first, "the first keeps half", |status| status.assigned.len() == 2);
    send_events_to(&sender, &topic, PARTITIONS, sent..sent + 1_000);
    sent += 1_000;
    first.stop();
    send_events_to(&sender, &topic, PARTITIONS, sent..sent + 1_000);
    sent += 1_000;
    until(&second, "the second has all", |status| status.assigned.len() == 4);
    let taken = rig.rows(u64::try_from(sent).unwrap());
    assert_eq!(taken.sorted(), (0..sent).collect::<Vec<_>>());
}

#[test]
fn real_kafka_a_member_whose_name_was_taken_joins_again() {
    let Some(broker) = Broker::find() else { return };
    let topic = broker.topic();
    let mut options = broker.options(&topic);
    options.instance = Some("engine-1".to_owned());
    let sender = producer(&broker.address);
    send_events_to(&sender, &topic, PARTITIONS, 0..1_000);
    let rig = Rig::new(1_000_000);
    let source = rig.start(&options);
    until(&source, "it has all", |status| status.assigned.len() == 4 && status.messages == 1_000);
    // The group gives the name to another process, which is what a lost answer to a join looks like to
    // the one that had it.
    let thief: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &broker.address)
        .set("group.id", &options.group)
        .set("group.instance.id", "engine-1")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .create()
        .unwrap();
    thief.subscribe(&[&topic]).unwrap();
    until(&source, "its name is taken", |status| {
        thief.poll(Duration::from_millis(10));
        status.refused_by_group.is_some()
    });
    assert_eq!(source.status().problems()[0].code, "kafka_failed");
    drop(thief);
    until(&source, "it is back", |status| {
        status.refused_by_group.is_none() && status.assigned.len() == 4
    });
    send_events_to(&sender, &topic, PARTITIONS, 1_000..2_000);
    assert_eq!(rig.rows(2_000).sorted(), (0..2_000).collect::<Vec<_>>());
    assert!(source.status().problems().is_empty());
}

#[test]
fn real_kafka_behind_tls_and_sasl() {
    let Some(broker) = Broker::find() else { return };
    let tls = broker.dir.join("tls");
    let password = std::fs::read_to_string(tls.join("password")).unwrap().trim().to_owned();
    let ca = Some(tls.join("ca.pem"));
    let listener = |offset| format!("127.0.0.1:{}", broker.port() + offset);
    let sasl = |mechanism, password: &str| {
        let mut connection = Connection::plaintext(listener(2));
        connection.security.tls = Some(Tls { ca: ca.clone(), identity: None });
        connection.security.sasl =
            Some(Sasl { mechanism, username: "omnify".to_owned(), password: password.to_owned() });
        connection
    };
    let mut own = Connection::plaintext(listener(3));
    let identity = Some((tls.join("client.pem"), tls.join("client.key")));
    own.security.tls = Some(Tls { ca: ca.clone(), identity });
    let sender = producer(&broker.address);
    for connection in [
        sasl(Mechanism::Plain, &password),
        sasl(Mechanism::ScramSha256, &password),
        sasl(Mechanism::ScramSha512, &password),
        own,
    ] {
        let topic = broker.topic();
        send_events_to(&sender, &topic, PARTITIONS, 0..100);
        let rig = Rig::new(1_000);
        let _source = rig.start(&SourceOptions { connection, ..broker.options(&topic) });
        assert_eq!(rig.rows(100).sorted(), (0..100).collect::<Vec<_>>());
    }
    // A wrong password, and a stranger without a certificate, get nothing and are told so.
    let mut stranger = Connection::plaintext(listener(3));
    stranger.security.tls = Some(Tls { ca: ca.clone(), identity: None });
    for connection in [sasl(Mechanism::ScramSha512, "wrong"), stranger] {
        let topic = broker.topic();
        let rig = Rig::new(1_000);
        let source = rig.start(&SourceOptions { connection, ..broker.options(&topic) });
        until(&source, "it is refused", |status| status.errors > 0);
        let status = source.status();
        assert_eq!(status.messages, 0);
        assert!(!status.last_error.unwrap().contains("wrong"), "no secret in an error");
    }
}
