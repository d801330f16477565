//! The leader's end of the rows that a follower reads: they enter as if they had been read here.
//!
//! Names of entities are interned as they come, so the numbers that the follower's rows call them by
//! become this process's ids; report rows are numbered here, in the order in which all arrive; and
//! the positions and claims of partitions are here alone (see `kafka::positions`).

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use omnify_decision::control::Control;
use omnify_operators::model::EntityId;
use omnify_sinks::history::DeadLetter;

use super::wire::{self, FromReader, LetterSent, RowsSent, ToReader};
use crate::clock;
use crate::decode::{Batch, Door, Reason};
use crate::kafka::{Positions, Rows, enter};
use crate::live::Intake;

/// How often room is looked for while the engine is behind.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What all followers' rows go through.
#[derive(Clone)]
pub(super) struct Readers {
    /// How much of a follower may be on its way, in rows and messages.
    pub(super) room: u64,
    pub(super) door: Arc<Door>,
    pub(super) intake: Intake,
    pub(super) positions: Positions,
}

/// Takes what one follower reads, until the engine takes nothing in any more or the connection ends,
/// whose loss the control connection reports. An error says what no follower of this version says.
pub(super) fn take(mut stream: TcpStream, readers: &Readers) -> Result<(), String> {
    let mut ids = Vec::new();
    let mut answer = Ok(ToReader::Begin { room: readers.room });
    while let Ok(said) = &answer {
        if wire::send(&mut stream, said).is_err() {
            return Ok(());
        }
        let Ok(said) = wire::receive(&mut stream, wire::DATA_BYTES_MAX) else { return Ok(()) };
        answer = match said {
            FromReader::Claim { source, partition } => {
                let claim = readers.positions.claim(&source, partition);
                Ok(ToReader::Claimed { number: claim.number, next: claim.next })
            }
            FromReader::Rows(sent) => {
                let size = sent.size();
                let rows = received(sent, &mut ids, &readers.door)?;
                while readers.intake.is_full() && !readers.intake.is_closed() {
                    std::thread::sleep(LOOK_AGAIN);
                }
                match enter(&readers.intake, &readers.positions, rows) {
                    true => Ok(ToReader::Taken(size)),
                    false => Err(()),
                }
            }
        };
    }
    Ok(())
}

impl RowsSent {
    /// What it takes of the room.
    pub(super) fn size(&self) -> u64 {
        self.rows.saturating_add(self.messages)
    }
}

/// Rows of a follower as this process's own. `ids` are those of the names that came before.
fn received(sent: RowsSent, ids: &mut Vec<EntityId>, door: &Door) -> Result<Rows, String> {
    let RowsSent { keys, claim, position, messages, rows, ignored, age_us, .. } = sent;
    let (mut events, mut reports) = (sent.events, sent.reports);
    ids.extend(keys.iter().map(|key| door.registry.intern(key)));
    let id = |number: EntityId| {
        let id = ids.get(number.index()).copied();
        id.ok_or_else(|| format!("its entity {} was never named", number.0))
    };
    for event in &mut events {
        event.creative = id(event.creative)?;
    }
    for report in &mut reports {
        report.key.creative = id(report.key.creative)?;
        report.version.sequence = door.next_sequence();
    }
    let dead = sent.dead.into_iter().map(letter).collect::<Result<Vec<_>, _>>()?;
    let control = |text: &String| {
        serde_json::from_str::<Control>(text).map_err(|error| format!("its control: {error}"))
    };
    let controls = sent.controls.iter().map(control).collect::<Result<_, _>>()?;
    let batch = Batch { events, reports, dead, rows, ignored, ..Batch::default() };
    if batch.accounted() != rows {
        return Err(format!("of its {rows} rows {} are accounted for", batch.accounted()));
    }
    // The time on the way is not known: clocks of two machines differ.
    let arrived = clock::instant().checked_sub(Duration::from_micros(age_us));
    Ok(Rows { claim, position, messages, batch, controls, arrived })
}

fn letter(sent: LetterSent) -> Result<DeadLetter, String> {
    let LetterSent { source, row, tenant, reason, detail, bytes, length } = sent;
    let known = Reason::ALL.into_iter().map(Reason::code).find(|code| *code == reason);
    let reason = known.ok_or_else(|| format!("its reason `{reason:.80}` is not known"))?;
    Ok(DeadLetter { tick: 0, source, row, tenant, reason, detail, bytes, length })
}
