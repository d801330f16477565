//! A follower's end of the rows that it reads: an outlet that is in another process.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use omnify_operators::model::{RegistryView, Tick};
use omnify_sinks::history::DeadLetter;
use omnify_sinks::journal::Position;

use super::wire::{self, FromReader, LetterSent, RowsSent, ToReader};
use crate::decode::Door;
use crate::kafka::{Claim, Outlet, Rows};

/// The connection to the leader.
pub(super) struct Link {
    /// Held while a message is sent, so that names are sent before the rows that use them.
    sending: Mutex<Sending>,
    shared: Arc<Shared>,
    room: u64,
    claims: Receiver<Claim>,
}

struct Sending {
    stream: TcpStream,
    /// The entities of the door of this process's decoders.
    entities: RegistryView,
    named: usize,
}

#[derive(Default)]
struct Shared {
    /// What is on its way, in rows and messages.
    on_its_way: AtomicU64,
    closed: AtomicBool,
}

impl Link {
    /// Waits until the leader is ready for the rows of `door`; `None` when it ends before that.
    pub(super) fn open(mut stream: TcpStream, door: &Door) -> io::Result<Option<Link>> {
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        let said = wire::receive(&mut stream, wire::CONTROL_BYTES_MAX);
        let Ok(ToReader::Begin { room }) = said else { return Ok(None) };
        let (shared, (claimed, claims)) = (Arc::<Shared>::default(), bounded(1));
        let (hearing, copy) = (stream.try_clone()?, shared.clone());
        std::thread::Builder::new()
            .name("taken".into())
            .spawn(move || hear(hearing, &copy, &claimed))?;
        let entities = RegistryView::new(door.registry.clone());
        let sending = Mutex::new(Sending { stream, entities, named: 0 });
        Ok(Some(Link { sending, shared, room, claims }))
    }

    fn lock(&self) -> MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, sending: &mut Sending, message: &FromReader) -> bool {
        let sent = wire::send(&mut sending.stream, message).is_ok();
        if !sent {
            self.shared.closed.store(true, Ordering::Release);
        }
        sent
    }
}

impl Outlet for Link {
    fn is_full(&self) -> bool {
        self.shared.on_its_way.load(Ordering::Acquire) >= self.room
    }

    fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    /// The answer comes behind everything that was put before. Waits as long as the leader is there:
    /// when it is not, the control connection ends this process.
    fn tick(&self) -> Tick {
        // Only the leader knows it; the wall clock alone bounds what is read here.
        0
    }

    fn claim(&self, source: &Arc<str>, partition: i32) -> Option<Claim> {
        let mut sending = self.lock();
        let claim = FromReader::Claim { source: source.clone(), partition };
        if !self.send(&mut sending, &claim) {
            return None;
        }
        self.claims.recv().ok()
    }

    fn put(&self, rows: Rows) -> bool {
        let Rows { claim, position, messages, batch, controls, arrived } = rows;
        let controls = controls.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>();
        let Ok(controls) = controls else {
            // It came as JSON, or as what has a form in JSON.
            return false;
        };
        let mut sending = self.lock();
        let named = sending.named;
        let new = sending.entities.all()[named..].iter();
        let keys: Vec<_> = new.map(|info| info.key.clone()).collect();
        sending.named += keys.len();
        let sent = RowsSent {
            keys,
            claim,
            position,
            messages,
            events: batch.events,
            reports: batch.reports,
            dead: batch.dead.into_iter().map(letter).collect(),
            rows: batch.rows,
            ignored: batch.ignored,
            controls,
            age_us: arrived.map_or(0, |since| since.elapsed().as_micros() as u64),
        };
        self.shared.on_its_way.fetch_add(sent.size(), Ordering::AcqRel);
        self.send(&mut sending, &FromReader::Rows(sent))
    }

    /// The leader tells the group.
    fn durable(&self) -> Vec<Position> {
        Vec::new()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The thread that hears ends.
        let _ = self.lock().stream.shutdown(Shutdown::Both);
    }
}

fn letter(letter: DeadLetter) -> LetterSent {
    let DeadLetter { source, row, tenant, reason, detail, bytes, length, tick: _ } = letter;
    LetterSent { source, row, tenant, reason: reason.to_owned(), detail, bytes, length }
}

/// Hears the leader until it takes nothing in any more.
fn hear(mut from: TcpStream, shared: &Shared, claimed: &Sender<Claim>) {
    while let Ok(said) = wire::receive(&mut from, wire::CONTROL_BYTES_MAX) {
        match said {
            ToReader::Taken(size) => {
                shared.on_its_way.fetch_sub(size, Ordering::AcqRel);
            }
            ToReader::Claimed { number, next } => {
                if claimed.send(Claim { number, next }).is_err() {
                    break;
                }
            }
            ToReader::Begin { .. } => {}
        }
    }
    shared.closed.store(true, Ordering::Release);
}
