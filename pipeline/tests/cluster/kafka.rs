//! Partitions spread over the processes: every message enters once, whoever reads it and whoever is
//! lost. One life on librdkafka's in-process cluster, whose groups do not always settle again once
//! members have gone; many lives, with members killed, on the real broker that
//! `OMNIFY_KAFKA_BROKERS` names.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use tokio::runtime::Runtime;

use super::rig::{Home, stop};
use crate::support::{PATIENCE, Process, event, now_us, until};

const PARTITIONS: usize = 6;
const MESSAGES: &str = "omnify_kafka_messages_total";

struct Kafka {
    _mock: Option<MockCluster<'static, DefaultProducerContext>>,
    producer: BaseProducer,
    topic: String,
    config: String,
    sent: usize,
}

impl Kafka {
    /// The in-process cluster.
    fn mock() -> Kafka {
        let (mock, topic) = (MockCluster::new(3).unwrap(), "events");
        mock.create_topic(topic, PARTITIONS as i32, 3).unwrap();
        let brokers = mock.bootstrap_servers();
        Kafka::at(&brokers, topic, Some(mock))
    }

    /// The broker under test, if there is one.
    fn real() -> Option<Kafka> {
        let Some(brokers) = std::env::var("OMNIFY_KAFKA_BROKERS").ok().filter(|at| !at.is_empty())
        else {
            eprintln!("skipped: OMNIFY_KAFKA_BROKERS is not set");
            return None;
        };
        let topic = format!("cluster.{}", now_us());
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
        let new = NewTopic::new(&topic, PARTITIONS as i32, TopicReplication::Fixed(1));
        let made =
            Runtime::new().unwrap().block_on(admin.create_topics(&[new], &AdminOptions::new()));
        made.unwrap().remove(0).unwrap();
        Some(Kafka::at(&brokers, &topic, None))
    }

    fn at(
        brokers: &str,
        topic: &str,
        mock: Option<MockCluster<'static, DefaultProducerContext>>,
    ) -> Kafka {
        let producer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
        let config = format!(
            "[kafka]\nbrokers = \"{brokers}\"\ngroup = \"{topic}\"\nsession_timeout = \"6s\"\n\
             commit_every = \"100ms\"\nbatch_messages = 50\n\
             [[kafka.topics]]\nname = \"{topic}\"\nkind = \"events\"\n"
        );
        Kafka { _mock: mock, producer, topic: topic.to_owned(), config, sent: 0 }
    }

    /// Sends ten times so many events, dealt out to the partitions.
    fn send(&mut self, batches: usize) {
        for number in self.sent / 10..self.sent / 10 + batches {
            for at in 0..10 {
                let (partition, text) = ((number + at) % PARTITIONS, event(number, at).to_string());
                let record: BaseRecord<'_, str, str> =
                    BaseRecord::to(&self.topic).partition(partition as i32).payload(&text);
                self.producer.send(record).map_err(|(error, _)| error).unwrap();
                self.producer.poll(Duration::ZERO);
            }
        }
        self.sent += 10 * batches;
        self.producer.flush(PATIENCE).unwrap();
    }
}

/// Waits until each process reads so many partitions; where they are.
fn until_spread(home: &Home, processes: &mut [Process], partitions: &[usize]) -> Vec<String> {
    let bases: Vec<String> = processes.iter_mut().map(Process::base).collect();
    let count = |base: &String| home.metric(base, "omnify_kafka_partitions") as usize;
    let found = || bases.iter().map(count).collect::<Vec<_>>();
    let said = || processes.iter().map(Process::said).collect::<Vec<_>>().join("\n--\n");
    until(|| found() == partitions, || format!("{:?} partitions: {}", found(), said()));
    bases
}

/// Waits until each has read something; metrics are told once a second.
fn until_all_read(home: &Home, bases: &[String]) {
    let read = |base: &String| home.metric(base, MESSAGES) > 0.0;
    until(|| bases.iter().all(read), || "not all have read".to_owned());
}

/// So little room that followers have to pause.
const SMALL: [&str; 2] = ["--set", "engine.queue_events=64"];

/// Two processes, three, and one, on one journal.
fn spread_and_count(kafka: &mut Kafka, home: &Home, ends: &[fn(&mut Vec<Process>)]) {
    for end in ends {
        let mut both = vec![home.process(2, 0, &SMALL), home.process(2, 1, &SMALL)];
        let bases = until_spread(home, &mut both, &[3, 3]);
        kafka.send(60);
        home.until_in(&bases[0], kafka.sent);
        until_all_read(home, &bases);
        // Messages are everywhere between the brokers and the journal.
        kafka.send(200);
        end(&mut both);
    }
    let mut three = home.cluster(3, 1);
    let bases = until_spread(home, &mut three, &[2, 2, 2]);
    kafka.send(60);
    home.until_in(&bases[0], kafka.sent);
    stop(&mut three, 2);
    // One alone reads everything, and nothing is left.
    let mut one = home.cluster(1, 1);
    let bases = until_spread(home, &mut one, &[PARTITIONS]);
    kafka.send(6);
    home.until_in(&bases[0], kafka.sent);
    stop(&mut one, 0);
    assert_eq!(home.replayed("1")["events_in"], kafka.sent);
}

#[test]
fn every_process_reads_its_share_and_every_message_enters_once() {
    let mut kafka = Kafka::mock();
    let home = Home::with(&kafka.config);
    let mut both = vec![home.process(2, 0, &SMALL), home.process(2, 1, &SMALL)];
    let bases = until_spread(&home, &mut both, &[3, 3]);
    kafka.send(60);
    home.until_in(&bases[0], kafka.sent);
    until_all_read(&home, &bases);
    // More than there is room for.
    kafka.send(200);
    home.until_in(&bases[0], kafka.sent);
    stop(&mut both, 0);
    assert_eq!(home.replayed("2")["events_in"], kafka.sent);
}

#[test]
fn real_kafka_members_that_are_killed_lose_nothing_and_repeat_nothing() {
    fn lose(both: &mut [Process], which: usize) {
        both[which].kill();
        assert_eq!(both[1 - which].code(), Some(6), "{}", both[1 - which].said());
    }
    let Some(mut kafka) = Kafka::real() else { return };
    let home = Home::with(&kafka.config);
    spread_and_count(&mut kafka, &home, &[|both| lose(both, 1), |both| lose(both, 0)]);
}

#[test]
fn a_leader_that_only_puts_in_order_leaves_the_topics_to_the_others() {
    let mut kafka = Kafka::mock();
    let home = Home::with(&kafka.config);
    let set = ["--set", "cluster.leader_reads=false"];
    let mut both = vec![home.process(2, 0, &set), home.process(2, 1, &set)];
    let bases = until_spread(&home, &mut both, &[0, PARTITIONS]);
    kafka.send(30);
    home.until_in(&bases[0], kafka.sent);
    assert_eq!(home.metric(&bases[0], MESSAGES), 0.0);
    stop(&mut both, 0);
    assert_eq!(home.replayed("2")["events_in"], kafka.sent);
}
