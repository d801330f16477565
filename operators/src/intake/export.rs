//! Intake's state on its way out and in.
//!
//! What only grows (known creatives, ids) leaves as the prefix that was there at the tick of the
//! export. Held events carry the tick at which they came, so those of later ticks are told apart;
//! those that stop waiting before their turn leave at that moment.

use serde::{Deserialize, Serialize};

use super::Intake;
use crate::dedup::{Clock, SeenId};
use crate::model::{EntityId, Event, Level, RegistryView, Tick, tick_of_us};
use crate::state::{Outgoing, StateError, StateItem, StatePart, Stateful};

/// Things that leave between two looks at the bound of a chunk: at most this many, and fewer where
/// the chunk is small.
const STEP_MAX: usize = 4_096;
/// About what a thing takes.
const THING_BYTES: usize = 16;

/// An export under way.
pub(super) struct Export {
    out: Outgoing,
    tick: Tick,
    /// Deadline of events that came at the tick of the export: later ones came later.
    deadline: Tick,
    known: std::ops::Range<usize>,
    /// Held events due from here on have not left yet; `None` when all have.
    future: Option<Tick>,
    waiting: Option<Tick>,
    ids: bool,
    /// Events that left before their turn, to be put into items with the next chunk.
    early: Vec<Held>,
}

/// An event that waits.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Held {
    /// For its time; with the tick at which it came.
    Future(Tick, Event),
    /// For its creative; with the tick that refuses it.
    Waiting(Tick, Event),
}

impl Held {
    fn creative(&self) -> EntityId {
        match self {
            Held::Future(_, event) | Held::Waiting(_, event) => event.creative,
        }
    }
}

/// What one item holds, of the creatives of one campaign.
#[derive(Serialize, Deserialize)]
enum Piece {
    Clock(Clock),
    Known(Vec<EntityId>),
    Held(Vec<Held>),
    Ids { newer: bool, ids: Vec<SeenId> },
}

impl Export {
    /// Events held until `release` are about to be released.
    pub(super) fn released(&mut self, release: Tick, events: &[(Tick, Event)]) {
        if self.future.is_some_and(|from| release >= from) {
            let until = self.tick;
            let mine = events.iter().filter(|(came, _)| *came <= until);
            self.early.extend(mine.map(|(came, event)| Held::Future(*came, *event)));
        }
    }

    /// Events are about to stop waiting for their creative.
    pub(super) fn no_longer_waiting(&mut self, events: &[(Tick, Event)]) {
        if let Some(from) = self.waiting {
            let mine =
                events.iter().filter(|(deadline, _)| (from..=self.deadline).contains(deadline));
            self.early.extend(mine.map(|(deadline, event)| Held::Waiting(*deadline, *event)));
        }
    }

    fn push<T: Copy>(
        &mut self,
        view: &mut RegistryView,
        things: Vec<T>,
        creative: impl Fn(&T) -> EntityId,
        piece: impl Fn(Vec<T>) -> Piece,
    ) {
        let campaign =
            |thing: T| (view.info(creative(&thing)).ancestors[Level::Campaign as usize], thing);
        let mut things: Vec<(EntityId, T)> = things.into_iter().map(campaign).collect();
        things.sort_by_key(|(campaign, _)| *campaign);
        for same in things.chunk_by(|(a, _), (b, _)| a == b) {
            let piece = piece(same.iter().map(|(_, thing)| *thing).collect());
            self.out.push(StateItem::new(StatePart::Intake, same[0].0, &piece));
        }
    }
}

impl Intake {
    /// Creatives that were known: the next few.
    fn export_known(&mut self, export: &mut Export, step: usize) {
        let until = export.known.end.min(export.known.start + step);
        let known = self.delivered[export.known.start..until].to_vec();
        export.known.start = until;
        export.push(&mut self.view, known, |creative| *creative, Piece::Known);
    }

    /// Events held for the next of the ticks that release some.
    fn export_future(&mut self, export: &mut Export) {
        let Some((release, events)) =
            export.future.and_then(|from| self.future.range(from..).next())
        else {
            export.future = None;
            return;
        };
        export.released(*release, events);
        export.future = release.checked_add(1);
    }

    /// Events that wait until the next deadline.
    fn export_waiting(&mut self, export: &mut Export) {
        let Some((deadline, creatives)) =
            export.waiting.and_then(|from| self.deadlines.range(from..=export.deadline).next())
        else {
            export.waiting = None;
            return;
        };
        // A creative is listed once for each of its events.
        let mut creatives = creatives.clone();
        creatives.sort_unstable();
        creatives.dedup();
        for waiting in creatives.iter().filter_map(|creative| self.waiting.get(creative)) {
            let mine = waiting.iter().filter(|(until, _)| until == deadline);
            export.early.extend(mine.map(|(until, event)| Held::Waiting(*until, *event)));
        }
        export.waiting = deadline.checked_add(1).filter(|next| *next <= export.deadline);
    }

    fn export_ids(&mut self, export: &mut Export, step: usize) {
        match self.seen.export(step) {
            Some((newer, ids)) => {
                let piece = |ids| Piece::Ids { newer, ids };
                export.push(&mut self.view, ids, |(creative, _)| *creative, piece);
            }
            None => export.ids = false,
        }
    }

    fn load(&mut self, piece: Piece) {
        match piece {
            Piece::Clock(clock) => self.seen.restore_clock(clock),
            Piece::Known(creatives) => {
                for creative in creatives {
                    // Nothing waits for a creative that is known.
                    self.know(creative, &mut Vec::new());
                }
            }
            Piece::Held(events) => {
                self.held += events.len();
                for held in events {
                    match held {
                        Held::Future(came, event) => {
                            let release = tick_of_us(event.time);
                            self.future.entry(release).or_default().push((came, event));
                        }
                        Held::Waiting(deadline, event) => {
                            self.waiting.entry(event.creative).or_default().push((deadline, event));
                            self.deadlines.entry(deadline).or_default().push(event.creative);
                        }
                    }
                }
            }
            Piece::Ids { newer, ids } => self.seen.restore(newer, &ids),
        }
    }
}

impl Stateful for Intake {
    fn begin_export(&mut self, tick: Tick) {
        let mut out = Outgoing::new(0);
        let clock = Piece::Clock(self.seen.clock());
        out.push(StateItem::new(StatePart::Intake, StateItem::EVERYWHERE, &clock));
        self.seen.begin_export();
        self.export = Some(Export {
            out,
            tick,
            deadline: tick.saturating_add(tick_of_us(self.spec.entity_grace_us)),
            known: 0..self.delivered.len(),
            future: Some(0),
            waiting: Some(0),
            ids: true,
            early: Vec::new(),
        });
    }

    fn export(&mut self, bytes: usize) -> (Vec<StateItem>, bool) {
        let Some(mut export) = self.export.take() else { return (Vec::new(), true) };
        let step = (bytes / THING_BYTES).clamp(1, STEP_MAX);
        let mut done = false;
        while !done && export.out.has_room(bytes) {
            if !export.known.is_empty() {
                self.export_known(&mut export, step);
            } else if export.future.is_some() {
                self.export_future(&mut export);
            } else if export.waiting.is_some() {
                self.export_waiting(&mut export);
            } else if export.ids {
                self.export_ids(&mut export, step);
            } else {
                done = true;
            }
            if export.early.len() >= step {
                let early = std::mem::take(&mut export.early);
                export.push(&mut self.view, early, Held::creative, Piece::Held);
            }
        }
        let early = std::mem::take(&mut export.early);
        export.push(&mut self.view, early, Held::creative, Piece::Held);
        let items = export.out.take();
        if !done {
            self.export = Some(export);
        }
        (items, done)
    }

    fn restore(&mut self, tick: Tick, items: &[StateItem]) -> Result<(), StateError> {
        self.before = Some(tick);
        items.iter().try_for_each(|item| {
            self.load(item.read()?);
            Ok(())
        })
    }
}
