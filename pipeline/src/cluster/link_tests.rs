//! Rows over a connection, in one process.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;

use omnify_operators::model::{EntityId, EntityKey, Registry};
use omnify_sinks::journal::Position;

use super::link::Link;
use super::rows::{self, Readers};
use super::wire::{self, FromReader, ToReader};
use crate::decode::{Door, Limits, Push};
use crate::kafka::{Outlet, Positions, Rows};
use crate::live::{Arrivals, channel};

struct Leader {
    readers: Readers,
    arrivals: Arrivals,
}

type Taking = JoinHandle<Result<(), String>>;

impl Leader {
    fn new(rows_max: usize, room: u64) -> Leader {
        let (intake, arrivals) = channel(rows_max);
        let readers = Readers { room, door: door(), intake, positions: Positions::default() };
        Leader { readers, arrivals }
    }

    fn connect(&self) -> (TcpStream, Taking) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (taken, readers) = (listener.accept().unwrap().0, self.readers.clone());
        (stream, std::thread::spawn(move || rows::take(taken, &readers)))
    }

    fn follower(&self) -> (Follower, Taking) {
        let (stream, taking) = self.connect();
        let door = door();
        let link = Link::open(stream, &door).unwrap().unwrap();
        (Follower { push: Push::native(door, "kafka:t"), link }, taking)
    }
}

fn door() -> Arc<Door> {
    Arc::new(Door::new(Arc::new(Registry::utc()), Limits::default()))
}

struct Follower {
    push: Push,
    link: Link,
}

fn source() -> Arc<str> {
    "kafka:t".into()
}

impl Follower {
    fn claim(&self, partition: i32) -> (u64, Option<i64>) {
        let claim = self.link.claim(&source(), partition).unwrap();
        (claim.number, claim.next)
    }

    /// Decodes a body and puts it, as the messages of partition 0 up to `next`.
    fn put(&mut self, claim: u64, next: i64, body: &str) -> bool {
        let batch = self.push.decode(body.as_bytes(), None);
        let position = Position { source: source(), partition: 0, next };
        let messages = batch.rows;
        let (controls, arrived) = (Vec::new(), None);
        self.link.put(Rows { claim, position, messages, batch, controls, arrived })
    }
}

fn event(creative: &str) -> String {
    format!(
        r#"{{"ts_us":1700000000000000,"kind":"impression","tenant":"t","platform":"p","account":"a","campaign":"c","ad_group":"g","creative":"{creative}"}}"#
    )
}

fn report(creative: &str) -> String {
    format!(
        r#"{{"type":"report","start_us":1700000000000000,"end_us":1700003600000000,"tenant":"t","platform":"p","account":"a","campaign":"c","ad_group":"g","creative":"{creative}","impressions":1,"clicks":0,"conversions":0,"cost_micros":0,"revenue_micros":0}}"#
    )
}

#[test]
fn rows_arrive_under_the_leaders_ids_and_numbers() {
    let leader = Leader::new(1_000, 1_000);
    // Ids of the two sides differ.
    leader.readers.door.registry.intern(&"x/p/a/c/g/other".parse().unwrap());
    leader.readers.door.resume_sequence(40);
    let (mut a, _) = leader.follower();
    let (mut b, _) = leader.follower();
    let (first, second) = (a.claim(0).0, b.link.claim(&source(), 1).unwrap().number);
    assert_eq!((first, second), (1, 1));
    assert!(a.put(1, 5, &[event("one"), report("two"), "{}".into()].join("\n")));
    assert!(a.put(1, 9, &[event("one"), event("three")].join("\n")));
    let (one, two) = (leader.arrivals.usual.recv().unwrap(), leader.arrivals.usual.recv().unwrap());
    let id = |creative: &str| {
        let key: EntityKey = format!("t/p/a/c/g/{creative}").parse().unwrap();
        leader.readers.door.registry.lookup(&key).unwrap()
    };
    assert_eq!(one.batch.events[0].creative, id("one"));
    assert_eq!(one.batch.reports[0].key.creative, id("two"));
    assert_eq!(one.batch.reports[0].version.sequence, 40);
    assert_eq!((one.batch.rows, one.batch.dead[0].reason), (3, "missing_field"));
    assert_eq!(one.batch.dead[0].bytes, b"{}");
    let creatives: Vec<EntityId> = two.batch.events.iter().map(|event| event.creative).collect();
    assert_eq!(creatives, [id("one"), id("three")]);
    assert_eq!(two.positions, [Position { source: source(), partition: 0, next: 9 }]);
    assert_eq!(leader.readers.positions.next("kafka:t", 0), Some(9));
    b.link.put(Rows {
        claim: 1,
        position: Position { source: source(), partition: 1, next: 1 },
        messages: 1,
        batch: b.push.decode(report("two").as_bytes(), None),
        controls: vec![omnify_decision::control::Control::Kill { tenant: None }],
        arrived: None,
    });
    let three = leader.arrivals.usual.recv().unwrap();
    assert_eq!(three.batch.reports[0].version.sequence, 41, "in order of arrival, of all");
    assert_eq!(three.controls, [omnify_decision::control::Control::Kill { tenant: None }]);
}

#[test]
fn rows_of_a_reader_that_lost_its_partition_are_read_again_by_the_next() {
    let leader = Leader::new(1_000, 1_000);
    let (mut a, _) = leader.follower();
    let (mut b, _) = leader.follower();
    let (old, next) = a.claim(0);
    assert_eq!(next, None);
    assert!(a.put(old, 3, &event("x")));
    leader.arrivals.usual.recv().unwrap();
    // It is held up, and the group gives the partition away before these arrive.
    let (new, next) = b.claim(0);
    assert_eq!((new, next), (2, Some(3)));
    assert!(a.put(old, 7, &event("late")), "it is not the engine that ended");
    assert!(b.put(new, 7, &event("late")));
    let only = leader.arrivals.usual.recv().unwrap();
    assert_eq!(only.positions[0].next, 7);
    // When it comes back to the first, it goes on behind the second.
    assert_eq!(a.claim(0), (3, Some(7)));
    assert!(leader.arrivals.usual.is_empty());
}

#[test]
fn a_full_engine_gives_no_more_room() {
    let leader = Leader::new(4, 6);
    let (mut a, _) = leader.follower();
    let (claim, _) = a.claim(0);
    // The engine takes nothing out: four rows wait there, and the room on the way fills up.
    let mut next = 0;
    while !a.link.is_full() {
        next += 2;
        assert!(a.put(claim, next, &[event("x"), event("y")].join("\n")));
        assert!(next < 100, "there is room for ever");
        // What was taken in is told, sooner or later; what was not never is.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut rows = 0;
    while rows < next as u64 {
        let arrival = leader.arrivals.usual.recv().unwrap();
        leader.arrivals.took(&arrival);
        rows += arrival.batch.rows;
    }
    while a.link.is_full() {
        std::thread::yield_now();
    }
    assert_eq!(leader.readers.positions.next("kafka:t", 0), Some(next));
}

#[test]
fn an_engine_that_has_ended_closes_the_link_and_nonsense_is_named() {
    let leader = Leader::new(10, 10);
    let (mut a, taking) = leader.follower();
    let (claim, _) = a.claim(0);
    leader.readers.intake.close();
    a.put(claim, 1, &event("x"));
    assert_eq!(taking.join().unwrap(), Ok(()));
    while !a.link.is_closed() {
        std::thread::yield_now();
    }
    assert_eq!(a.link.claim(&source(), 0), None);
    assert!(!a.put(claim, 2, &event("x")));

    let leader = Leader::new(10, 10);
    let (mut stream, taking) = leader.connect();
    let begin: ToReader = wire::receive(&mut stream, 1_000).unwrap();
    assert!(matches!(begin, ToReader::Begin { room: 10 }));
    let mut push = Push::native(door(), "kafka:t");
    let events = push.decode(event("x").as_bytes(), None).events;
    let position = Position { source: source(), partition: 0, next: 1 };
    let sent = wire::RowsSent {
        keys: Vec::new(),
        claim: 1,
        position,
        messages: 1,
        events,
        reports: Vec::new(),
        dead: Vec::new(),
        rows: 1,
        ignored: 0,
        controls: Vec::new(),
        age_us: 0,
    };
    wire::send(&mut stream, &FromReader::Rows(sent)).unwrap();
    let what = taking.join().unwrap().unwrap_err();
    assert!(what.contains("never named"), "{what}");
}
