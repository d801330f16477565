//! Turns ticks into the columns of one frame.
//!
//! Entities and texts are numbered within the frame in the order of their first use. What a frame
//! says of its entities against the names its segment knows is added when the frame is written
//! ([`Dictionary`]), so that the same frame can be written to another segment.

use std::collections::HashMap;
use std::sync::Arc;

use omnify_operators::model::{
    EntityId, Event, EventKind, NO_ID, NO_USER, RegistryView, ReportKey, ReportRow, ReportVersion,
    Stats, Tick,
};

use super::columns::{Column, Columns, Marks};
use super::entry::{BatchKey, Position, StartRecord, TickEntry};
use crate::history::DeadLetter;
use crate::serve::Watermarks;

/// Bits of [`Column::TickFlags`].
pub(super) mod flag {
    pub(in super::super) const LAST: u64 = 1;
    pub(in super::super) const SNAPSHOT: u64 = 2;
    pub(in super::super) const WATERMARKS: u64 = 4;
    pub(in super::super) const FRESH: u64 = 8;
    pub(in super::super) const SETTLED: u64 = 16;
}

/// Parts of [`Column::EventHead`]: the kind in the low three bits, then what else there is.
pub(super) mod head {
    pub(in super::super) const KIND: u8 = 0b0000_0111;
    pub(in super::super) const USER: u8 = 0b0000_1000;
    pub(in super::super) const ID: u8 = 0b0001_0000;
    pub(in super::super) const COST: u8 = 0b0010_0000;
    pub(in super::super) const REVENUE: u8 = 0b0100_0000;
    /// All five amounts follow, instead of those of the two bits above.
    pub(in super::super) const ALL: u8 = 0b1000_0000;
}

/// The amounts that an event of `kind` has when its head announces none.
pub(super) const fn usual(kind: EventKind) -> Stats {
    let mut stats = Stats::ZERO;
    match kind {
        EventKind::Impression => stats.impressions = 1,
        EventKind::Click => stats.clicks = 1,
        EventKind::Conversion => stats.conversions = 1,
        EventKind::Cost | EventKind::Report => {}
    }
    stats
}

/// Numbers ids in the order of their first use; forgetting the newest costs nothing.
#[derive(Default)]
pub(super) struct Numbering {
    order: Vec<EntityId>,
    /// By id, a position in `order` that holds if that position holds the id.
    places: Vec<u32>,
}

impl Numbering {
    /// The number of `id`, if it has one.
    #[inline]
    pub(super) fn get(&self, id: EntityId) -> Option<u32> {
        let place = *self.places.get(id.index())?;
        (self.order.get(place as usize) == Some(&id)).then_some(place)
    }

    /// Gives `id` the next number.
    fn add(&mut self, id: EntityId) -> u32 {
        if id.index() >= self.places.len() {
            self.places.resize((id.index() + 1).next_power_of_two(), 0);
        }
        let place = self.order.len() as u32;
        self.places[id.index()] = place;
        self.order.push(id);
        place
    }

    #[inline]
    fn number(&mut self, id: EntityId) -> u32 {
        match self.get(id) {
            Some(number) => number,
            None => self.add(id),
        }
    }

    /// How many ids have numbers.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Forgets all but the first `count`.
    pub(super) fn truncate(&mut self, count: usize) {
        self.order.truncate(count);
    }
}

/// What a segment has named so far.
#[derive(Default)]
pub(super) struct Dictionary {
    named: Numbering,
    /// The name before, with which the next shares its start.
    last_name: Arc<str>,
}

impl Dictionary {
    /// How many names it holds, to be passed to [`Dictionary::back_to`].
    pub(super) fn mark(&self) -> (usize, Arc<str>) {
        (self.named.len(), self.last_name.clone())
    }

    /// Forgets the names that came after `mark`.
    pub(super) fn back_to(&mut self, mark: (usize, Arc<str>)) {
        self.named.truncate(mark.0);
        self.last_name = mark.1;
    }

    /// Says of every entity of `frame` how the segment knows it, and names the new ones.
    fn describe(&mut self, entities: &[EntityId], view: &mut RegistryView, out: &mut Columns) {
        for id in entities {
            if let Some(number) = self.named.get(*id) {
                out.put_row(Column::Entities, u64::from(number) + 1);
                continue;
            }
            self.named.add(*id);
            let name = view.info(*id).key.as_str();
            let shared = shared(&self.last_name, name);
            out.put_row(Column::Entities, 0);
            out.put_row(Column::Names, shared as u64);
            out.put_bytes(Column::Names, &name.as_bytes()[shared..]);
            self.last_name = name.into();
        }
    }
}

/// Bytes that both start with, ending between two characters.
fn shared(a: &str, b: &str) -> usize {
    let mut count = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    while !b.is_char_boundary(count) || !a.is_char_boundary(count) {
        count -= 1;
    }
    count
}

/// The numbers that differences are taken to, as in the reader.
#[derive(Clone, Copy, Default)]
pub(super) struct Before {
    pub(super) tick: Tick,
    pub(super) time: i64,
    pub(super) start: i64,
    pub(super) as_of: i64,
    pub(super) sequence: u64,
}

/// A frame being filled.
#[derive(Default)]
pub(super) struct FrameBuilder {
    columns: Columns,
    entities: Numbering,
    texts: HashMap<Arc<str>, u64>,
    before: Before,
    /// First and last tick.
    pub(super) ticks: Option<(Tick, Tick)>,
}

/// Where a frame stood; see [`FrameBuilder::back_to`].
pub(super) struct FrameMark {
    columns: Marks,
    entities: usize,
    texts: u64,
    before: Before,
    ticks: Option<(Tick, Tick)>,
}

impl FrameBuilder {
    /// Bytes held, before compression.
    pub(super) fn len(&self) -> usize {
        // Names are not known before the frame is written; ids stand for them.
        self.columns.len() + self.entities.len() * 4
    }

    /// Empties it, keeping its memory.
    pub(super) fn clear(&mut self) {
        self.columns.clear();
        self.entities.truncate(0);
        self.texts.clear();
        self.before = Before::default();
        self.ticks = None;
    }

    /// Remembers where it stands.
    pub(super) fn mark(&self) -> FrameMark {
        FrameMark {
            columns: self.columns.marks(),
            entities: self.entities.len(),
            texts: self.texts.len() as u64,
            before: self.before,
            ticks: self.ticks,
        }
    }

    /// Forgets what came after `mark`.
    pub(super) fn back_to(&mut self, mark: &FrameMark) {
        self.columns.back_to(&mark.columns);
        self.entities.truncate(mark.entities);
        self.texts.retain(|_, number| *number < mark.texts);
        self.before = mark.before;
        self.ticks = mark.ticks;
    }

    /// Appends the payload as it reads in a segment that knows `dictionary`, which learns the names.
    pub(super) fn write(
        &self,
        dictionary: &mut Dictionary,
        view: &mut RegistryView,
        out: &mut Vec<u8>,
    ) {
        let mut who = Columns::default();
        dictionary.describe(&self.entities.order, view, &mut who);
        who.write(out);
        self.columns.write(out);
    }

    /// Adds a start record.
    pub(super) fn start(&mut self, record: &StartRecord) {
        self.json(Column::Starts, record);
    }

    fn json(&mut self, column: Column, value: &impl serde::Serialize) {
        // Strings, numbers and string keys only: encoding cannot fail, and writes to memory neither.
        let bytes = serde_json::to_vec(value).expect("a journal record is plain JSON");
        self.columns.put_bytes(column, &bytes);
    }

    fn text(&mut self, text: &str) -> u64 {
        if let Some(number) = self.texts.get(text) {
            return *number;
        }
        let number = self.texts.len() as u64;
        self.texts.insert(text.into(), number);
        self.columns.put_bytes(Column::Texts, text.as_bytes());
        number
    }

    /// Adds a tick.
    pub(super) fn tick(&mut self, entry: &TickEntry) {
        // Every field by name: one that is added must find its column before this compiles.
        let TickEntry {
            tick,
            mark_last,
            mark_snapshot,
            calm,
            events,
            reports,
            controls,
            dead,
            rows,
            ignored,
            watermarks,
            positions,
            batches,
        } = entry;
        self.columns.put_row(Column::Tick, tick.wrapping_sub(self.before.tick));
        self.before.tick = *tick;
        self.ticks = Some((self.ticks.map_or(*tick, |(first, _)| first), *tick));
        self.flags(*mark_last, *mark_snapshot, *watermarks);
        for (column, value) in [
            (Column::TickCalm, u64::from(*calm)),
            (Column::TickRows, *rows),
            (Column::TickIgnored, *ignored),
            (Column::TickEvents, events.len() as u64),
            (Column::TickReports, reports.len() as u64),
            (Column::TickControls, controls.len() as u64),
            (Column::TickDead, dead.len() as u64),
            (Column::TickPositions, positions.len() as u64),
            (Column::TickBatches, batches.len() as u64),
        ] {
            self.columns.put(column, value);
        }
        events.iter().for_each(|event| self.event(event));
        reports.iter().for_each(|row| self.report(row));
        controls.iter().for_each(|control| self.json(Column::Control, control));
        dead.iter().for_each(|letter| self.dead(letter));
        positions.iter().for_each(|position| self.position(position));
        batches.iter().for_each(|batch| self.batch(batch));
    }

    fn flags(&mut self, last: bool, snapshot: bool, watermarks: Option<Watermarks>) {
        let fresh = watermarks.and_then(|marks| marks.fresh_until_us);
        let settled = watermarks.and_then(|marks| marks.settled_until_us);
        let flags = [
            (last, flag::LAST),
            (snapshot, flag::SNAPSHOT),
            (watermarks.is_some(), flag::WATERMARKS),
            (fresh.is_some(), flag::FRESH),
            (settled.is_some(), flag::SETTLED),
        ];
        let flags = flags.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum();
        self.columns.put(Column::TickFlags, flags);
        for time in fresh.into_iter().chain(settled) {
            self.columns.put_signed(Column::TickWatermarks, time);
        }
    }

    fn event(&mut self, event: &Event) {
        let Event { time, creative, kind, delta, user, id } = *event;
        let number = self.entities.number(creative);
        let columns = &mut self.columns;
        columns.put_signed(Column::EventTime, time.wrapping_sub(self.before.time));
        self.before.time = time;
        columns.put(Column::EventEntity, u64::from(number));
        let mut bits = kind as u8;
        if user != NO_USER {
            bits |= head::USER;
            columns.put_raw(Column::EventUser, &user.to_le_bytes());
        }
        if id != NO_ID {
            bits |= head::ID;
            columns.put_raw(Column::EventId, &id.to_le_bytes());
        }
        let Stats { impressions, clicks, conversions, cost_micros, revenue_micros } = delta;
        let money = Stats { cost_micros, revenue_micros, ..usual(kind) };
        if money == delta {
            if cost_micros != 0 {
                bits |= head::COST;
                columns.put_signed(Column::EventStats, cost_micros);
            }
            if revenue_micros != 0 {
                bits |= head::REVENUE;
                columns.put_signed(Column::EventStats, revenue_micros);
            }
        } else {
            bits |= head::ALL;
            for value in [impressions, clicks, conversions, cost_micros, revenue_micros] {
                columns.put_signed(Column::EventStats, value);
            }
        }
        columns.put_raw(Column::EventHead, &[bits]);
    }

    fn report(&mut self, row: &ReportRow) {
        let ReportRow {
            key: ReportKey { creative, start, end, attribution },
            version: ReportVersion { as_of, sequence, totals },
        } = *row;
        let number = self.entities.number(creative);
        let (columns, before) = (&mut self.columns, &mut self.before);
        columns.put_row(Column::ReportEntity, u64::from(number));
        columns.put_signed(Column::ReportStart, start.wrapping_sub(before.start));
        columns.put_signed(Column::ReportLength, end.wrapping_sub(start));
        columns.put(Column::ReportAttribution, u64::from(attribution.code()));
        columns.put_signed(Column::ReportAsOf, as_of.wrapping_sub(before.as_of));
        let sequence_step = sequence.wrapping_sub(before.sequence).cast_signed();
        columns.put_signed(Column::ReportSequence, sequence_step);
        *before = Before { start, as_of, sequence, ..*before };
        let Stats { impressions, clicks, conversions, cost_micros, revenue_micros } = totals;
        for value in [impressions, clicks, conversions, cost_micros, revenue_micros] {
            columns.put_signed(Column::ReportTotals, value);
        }
    }

    fn dead(&mut self, letter: &DeadLetter) {
        // The tick of a dead letter is the tick that it is in.
        let DeadLetter { tick: _, source, row, tenant, reason, detail, bytes, length } = letter;
        let source = self.text(source);
        let tenant = tenant.as_deref().map_or(0, |tenant| self.text(tenant) + 1);
        let (reason, detail) = (self.text(reason), self.text(detail));
        let columns = &mut self.columns;
        columns.put_row(Column::DeadSource, source);
        columns.put(Column::DeadRow, *row);
        columns.put(Column::DeadTenant, tenant);
        columns.put(Column::DeadReason, reason);
        columns.put(Column::DeadDetail, detail);
        columns.put_bytes(Column::DeadBytes, bytes);
        columns.put(Column::DeadLength, *length);
    }

    fn position(&mut self, position: &Position) {
        let Position { source, partition, next } = position;
        let source = self.text(source);
        self.columns.put_row(Column::PositionSource, source);
        self.columns.put_signed(Column::PositionPartition, i64::from(*partition));
        self.columns.put_signed(Column::PositionNext, *next);
    }

    fn batch(&mut self, batch: &BatchKey) {
        let BatchKey { tenant, key, accepted, dead_letters, ignored } = batch;
        let (tenant, key) = (self.text(tenant), self.text(key));
        self.columns.put_row(Column::BatchTenant, tenant);
        self.columns.put(Column::BatchKey, key);
        for count in [accepted, dead_letters, ignored] {
            self.columns.put(Column::BatchCounts, *count);
        }
    }
}
