//! Where messages are taken in: decoded, collected by partition, and handed on with their positions.
//! The consumer's thread and the callbacks of a rebalance share it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use omnify_decision::control::Control;
use omnify_operators::model::us_of_tick;
use omnify_sinks::journal::Position;
use omnify_sinks::kafka::{DeadLetterTopic, Refused};
use rdkafka::message::{BorrowedMessage, Headers, Message, OwnedMessage};

use super::outlet::{Outlet, Rows};
use super::payload::{Taken, TopicReader};
use super::status::{Partition, Shown};
use crate::clock::{self, Clock};
use crate::decode::Batch;

/// Longest name of a tenant in a header; a longer one names nobody.
const TENANT_BYTES_MAX: usize = 256;

/// What has been read of a partition and not yet handed over.
struct Work {
    batch: Batch,
    controls: Vec<Control>,
    next: i64,
    messages: u64,
    since: Instant,
}

/// An assigned partition.
struct Seat {
    /// The claim that it is read under.
    claim: u64,
    /// The next offset to take, where one is known.
    expected: Option<i64>,
}

/// What a desk is made of.
pub(super) struct Parts {
    pub(super) readers: HashMap<String, TopicReader>,
    pub(super) outlet: Arc<dyn Outlet>,
    pub(super) shown: Shown,
    pub(super) clock: Clock,
    pub(super) future_skew_us: i64,
    pub(super) batch_messages: usize,
    pub(super) dead_letters: Option<DeadLetterTopic>,
}

/// See the module.
pub(super) struct Desk {
    parts: Parts,
    work: BTreeMap<Partition, Work>,
    /// Messages in all of `work`.
    messages: usize,
    /// The assigned partitions.
    seats: HashMap<Partition, Seat>,
    /// Messages whose schema is not known yet, and what came behind them.
    held: BTreeMap<Partition, VecDeque<OwnedMessage>>,
    closed: bool,
}

impl Desk {
    pub(super) fn new(parts: Parts) -> Desk {
        Desk {
            parts,
            work: BTreeMap::new(),
            messages: 0,
            seats: HashMap::new(),
            held: BTreeMap::new(),
            closed: false,
        }
    }

    /// Where copies of dead letters go.
    pub(super) fn dead_letters(&self) -> Option<&DeadLetterTopic> {
        self.parts.dead_letters.as_ref()
    }

    /// Up to where the partitions of this source's topics are on disk.
    pub(super) fn durable(&self) -> Vec<(String, i32, i64)> {
        let known = self.parts.outlet.durable().into_iter().filter_map(|at| {
            let mut readers = self.parts.readers.iter();
            let (topic, _) = readers.find(|(_, reader)| reader.source == at.source)?;
            Some((topic.clone(), at.partition, at.next))
        });
        known.collect()
    }

    /// True while nothing more should be read.
    pub(super) fn is_full(&self) -> bool {
        self.parts.outlet.is_full()
            || self.parts.dead_letters.as_ref().is_some_and(DeadLetterTopic::is_full)
    }

    /// True when the engine takes nothing in any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed || self.parts.outlet.is_closed()
    }

    /// True when enough is collected.
    pub(super) fn is_due(&self) -> bool {
        self.messages >= self.parts.batch_messages
    }

    /// A partition came: says where its reading goes on, `Some(None)` is its beginning. `None` when it
    /// is not to be read, as the engine has ended.
    pub(super) fn assign(&mut self, topic: &str, partition: i32) -> Option<Option<i64>> {
        let reader = self.parts.readers.get(topic)?;
        let claim = self.parts.outlet.claim(&reader.source, partition)?;
        let key = (Arc::from(topic), partition);
        self.seats.insert(key.clone(), Seat { claim: claim.number, expected: claim.next });
        let mut shown = self.parts.shown.lock();
        shown.assigned.insert(key);
        shown.refused_by_group = None;
        Some(claim.next)
    }

    /// Every partition goes, as the member has no more say.
    pub(super) fn leave(&mut self) {
        let all: Vec<Partition> = self.seats.keys().cloned().collect();
        self.revoke(all.iter().map(|(topic, partition)| (topic.as_ref(), *partition)));
    }

    /// Partitions go: what was read of them is handed over before another member may begin.
    pub(super) fn revoke<'a>(&mut self, gone: impl IntoIterator<Item = (&'a str, i32)>) {
        self.flush();
        let mut shown = self.parts.shown.lock();
        for (topic, partition) in gone {
            let key = (Arc::from(topic), partition);
            self.seats.remove(&key);
            self.held.remove(&key);
            shown.assigned.remove(&key);
            shown.lag.remove(&key);
            shown.waiting.remove(&key);
        }
    }

    /// The offset that `message` should have, when messages before it are missing.
    pub(super) fn gap_before(&self, message: &BorrowedMessage<'_>) -> Option<i64> {
        let key = (Arc::from(message.topic()), message.partition());
        let expected = self.seats.get(&key)?.expected;
        expected.filter(|expected| *expected < message.offset())
    }

    /// Takes a message; false when its partition has to wait for the schema registry.
    pub(super) fn take(&mut self, message: &BorrowedMessage<'_>) -> bool {
        let key = (Arc::from(message.topic()), message.partition());
        if let Some(waiting) = self.held.get_mut(&key) {
            waiting.push_back(message.detach());
            return true;
        }
        // Of a partition that has gone nothing is taken: somebody else reads it now.
        let seat = self.seats.get(&key);
        if seat.is_none_or(|seat| seat.expected.is_some_and(|next| message.offset() < next)) {
            self.parts.shown.lock().skipped += 1;
            return true;
        }
        match self.decode(message, &key) {
            Taken::Done => true,
            Taken::Waiting => {
                self.parts.shown.lock().waiting.insert(key.clone());
                self.held.insert(key, VecDeque::from([message.detach()]));
                false
            }
        }
    }

    /// Tries again what waits for the registry; returns the partitions that go on.
    pub(super) fn retry(&mut self) -> Vec<Partition> {
        let mut freed = Vec::new();
        let partitions: Vec<Partition> = self.held.keys().cloned().collect();
        for key in partitions {
            while let Some(message) = self.held.get_mut(&key).and_then(VecDeque::pop_front) {
                if self.decode(&message, &key) == Taken::Waiting {
                    if let Some(waiting) = self.held.get_mut(&key) {
                        waiting.push_front(message);
                    }
                    break;
                }
            }
            if self.held.get(&key).is_some_and(VecDeque::is_empty) {
                self.held.remove(&key);
                self.parts.shown.lock().waiting.remove(&key);
                freed.push(key);
            }
        }
        freed
    }

    /// Partitions that wait for the registry.
    pub(super) fn waiting(&self) -> BTreeSet<Partition> {
        self.held.keys().cloned().collect()
    }

    /// True while a partition waits for the registry.
    pub(super) fn is_waiting(&self) -> bool {
        !self.held.is_empty()
    }

    fn decode(&mut self, message: &impl Message, key: &Partition) -> Taken {
        // The engine's time, which a wall clock that was set back does not set back.
        let now = self.parts.clock.now().max(self.parts.outlet.tick());
        let not_after = us_of_tick(now).saturating_add(self.parts.future_skew_us);
        let Some(reader) = self.parts.readers.get_mut(key.0.as_ref()) else { return Taken::Done };
        let now = clock::instant();
        let work = self.work.entry(key.clone()).or_insert_with(|| Work::new(now));
        let before = work.batch.dead.len();
        let taken = reader.take(
            message.payload(),
            tenant(message),
            Some(not_after),
            &mut work.batch,
            &mut work.controls,
        );
        if taken == Taken::Waiting {
            return taken;
        }
        work.messages += 1;
        work.next = message.offset() + 1;
        self.messages += 1;
        if let Some(seat) = self.seats.get_mut(key) {
            seat.expected = Some(message.offset() + 1);
        }
        let mut shown = self.parts.shown.lock();
        shown.messages += 1;
        if let Some(letters) = work.batch.dead.get_mut(before..)
            && !letters.is_empty()
        {
            shown.refused += 1;
            let place: Arc<str> =
                format!("{}/{}@{}", reader.source, message.partition(), message.offset()).into();
            letters.iter_mut().for_each(|letter| letter.source = place.clone());
            if let Some(topic) = &self.parts.dead_letters {
                topic.send(&Refused {
                    topic: message.topic(),
                    partition: message.partition(),
                    offset: message.offset(),
                    key: message.key(),
                    payload: message.payload(),
                    reason: letters[0].reason,
                    detail: &letters[0].detail,
                    rows: letters.len(),
                });
            }
        }
        taken
    }

    /// Hands over what was read. The positions move with it.
    pub(super) fn flush(&mut self) {
        self.messages = 0;
        for ((topic, partition), work) in std::mem::take(&mut self.work) {
            let key = (topic, partition);
            let reader = self.parts.readers.get(key.0.as_ref());
            let (Some(reader), Some(seat)) = (reader, self.seats.get(&key)) else { continue };
            let Work { batch, controls, next, messages, since } = work;
            if messages == 0 {
                continue;
            }
            let position = Position { source: reader.source.clone(), partition, next };
            let arrived = Some(since);
            let rows = Rows { claim: seat.claim, position, messages, batch, controls, arrived };
            if !self.parts.outlet.put(rows) {
                // Nothing was taken: it is read again after the next start.
                self.closed = true;
            }
        }
    }

    /// Takes over what the brokers say of the ends of the partitions.
    pub(super) fn lag(&self, ends: impl IntoIterator<Item = (String, i32, i64)>) {
        let mut shown = self.parts.shown.lock();
        for (topic, partition, end) in ends {
            let key = (Arc::from(topic), partition);
            if end >= 0 && shown.assigned.contains(&key) {
                let next = self.seats.get(&key).and_then(|seat| seat.expected).unwrap_or(0);
                shown.lag.insert(key, (end - next).max(0));
            }
        }
    }
}

impl Work {
    fn new(since: Instant) -> Work {
        Work { batch: Batch::new(), controls: Vec::new(), next: 0, messages: 0, since }
    }
}

/// The tenant that the message's headers name.
fn tenant(message: &impl Message) -> Option<&str> {
    let headers = message.headers()?;
    let header = headers.iter().find(|header| header.key == "tenant")?;
    let value = header.value.filter(|value| value.len() <= TENANT_BYTES_MAX)?;
    std::str::from_utf8(value).ok()
}
