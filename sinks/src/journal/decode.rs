//! Turns the payload of a frame back into ticks.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use omnify_decision::control::Control;
use omnify_operators::model::{
    Attribution, EntityId, EntityKey, Event, EventKind, NO_ID, NO_USER, Registry, ReportKey,
    ReportRow, ReportVersion, Stats, Tick,
};

use super::bits::{Bad, bad};
use super::columns::{Column, ColumnReader, Found};
use super::encode::{Before, flag, head, usual};
use super::entry::{BatchKey, Position, StartRecord, TickEntry};
use crate::history::DeadLetter;
use crate::serve::Watermarks;

/// Different reason codes that a journal may hold: the code knows a few dozen.
const REASONS_MAX: usize = 256;
/// Longest reason code.
const REASON_BYTES_MAX: usize = 64;

/// The names of a segment, as far as it was read.
#[derive(Default)]
pub(super) struct Names {
    known: Vec<(EntityKey, Option<EntityId>)>,
    last: String,
}

impl Names {
    /// Number of names.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Learns the names of a frame; returns its entities as positions here.
    fn learn(&mut self, found: &Found<'_>) -> Result<Vec<usize>, Bad> {
        let mut numbers = found.reader(Column::Entities);
        let mut names = found.reader(Column::Names);
        let mut entities = Vec::with_capacity(numbers.left());
        while numbers.left() > 0 {
            match usize::try_from(numbers.next()?).unwrap_or(usize::MAX) {
                0 => {
                    let shared = usize::try_from(names.next()?).unwrap_or(usize::MAX);
                    let Some(start) = self.last.get(..shared) else {
                        return bad("a name shares more than the name before has");
                    };
                    let Ok(rest) = std::str::from_utf8(names.bytes()?) else {
                        return bad("a name is not UTF-8");
                    };
                    let name = format!("{start}{rest}");
                    let key = name.parse().map_err(|error| Bad(format!("{error}")))?;
                    self.last = name;
                    entities.push(self.known.len());
                    self.known.push((key, None));
                }
                number if number <= self.known.len() => entities.push(number - 1),
                number => return bad(format!("entity {number} has no name")),
            }
        }
        names.end()?;
        Ok(entities)
    }

    fn id(&mut self, at: usize, registry: &Registry) -> EntityId {
        let (key, id) = &mut self.known[at];
        *id.get_or_insert_with(|| registry.intern(key))
    }
}

/// What a frame holds.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) starts: Vec<StartRecord>,
    pub(super) ticks: Vec<TickEntry>,
}

/// What can be told of a frame without decoding its rows.
#[derive(Debug, Default)]
pub(super) struct Outline {
    pub(super) starts: Vec<StartRecord>,
    pub(super) ticks: Vec<Tick>,
}

/// Reads only the ticks of a frame, and learns its names.
pub(super) fn outline(payload: &[u8], names: &mut Names) -> Result<Outline, Bad> {
    let found = Found::read(payload)?;
    names.learn(&found)?;
    Ok(Outline { starts: starts(&found)?, ticks: ticks(&found)? })
}

/// Reads a frame, learns its names, and gives the ticks above `after`.
pub(super) fn decode(
    payload: &[u8],
    names: &mut Names,
    registry: &Registry,
    after: Option<Tick>,
) -> Result<Content, Bad> {
    let found = Found::read(payload)?;
    let entities = names.learn(&found)?;
    let numbers = ticks(&found)?;
    let starts = starts(&found)?;
    if after.is_some_and(|after| numbers.last().is_none_or(|last| *last <= after)) {
        return Ok(Content { starts, ticks: Vec::new() });
    }
    // Interned only now: what is skipped names nobody.
    let entities: Vec<_> = entities.into_iter().map(|at| names.id(at, registry)).collect();
    let texts = texts(&found)?;
    let mut rows = Rows::new(&found, &entities, &texts);
    let mut entries = Vec::with_capacity(numbers.len());
    for tick in numbers {
        let entry = rows.tick(tick)?;
        if after.is_none_or(|after| tick > after) {
            entries.push(entry);
        }
    }
    rows.end()?;
    Ok(Content { starts, ticks: entries })
}

fn ticks(found: &Found<'_>) -> Result<Vec<Tick>, Bad> {
    let mut column = found.reader(Column::Tick);
    let mut ticks: Vec<Tick> = Vec::with_capacity(column.left());
    while column.left() > 0 {
        let step = column.next()?;
        let tick = match ticks.last() {
            None => step,
            Some(last) => match last.checked_add(step) {
                Some(tick) if step > 0 => tick,
                _ => return bad(format!("the tick after {last} is not above it")),
            },
        };
        ticks.push(tick);
    }
    Ok(ticks)
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Bad> {
    serde_json::from_slice(bytes).map_err(|error| Bad(format!("{what} is not readable: {error}")))
}

fn starts(found: &Found<'_>) -> Result<Vec<StartRecord>, Bad> {
    let mut column = found.reader(Column::Starts);
    let mut starts = Vec::new();
    while column.left() > 0 {
        starts.push(json(column.bytes()?, "a start record")?);
    }
    Ok(starts)
}

fn texts(found: &Found<'_>) -> Result<Vec<Arc<str>>, Bad> {
    let mut column = found.reader(Column::Texts);
    let mut texts = Vec::new();
    while column.left() > 0 {
        let Ok(text) = std::str::from_utf8(column.bytes()?) else {
            return bad("a text is not UTF-8");
        };
        texts.push(text.into());
    }
    Ok(texts)
}

/// The reason code as the constant it was: codes are few, so they are kept for the life of the
/// process, [`REASONS_MAX`] of them at most.
fn reason(code: &str) -> Result<&'static str, Bad> {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(code) = known.get(code) {
        return Ok(code);
    }
    if known.len() >= REASONS_MAX || code.len() > REASON_BYTES_MAX {
        return bad(format!("reason code `{code:.80}` is one of too many, or too long"));
    }
    let code: &'static str = Box::leak(code.into());
    known.insert(code);
    Ok(code)
}

macro_rules! readers {
    ($($field:ident: $column:ident,)*) => {
        /// The columns of rows, each read from the front.
        struct Rows<'a> {
            entities: &'a [EntityId],
            texts: &'a [Arc<str>],
            before: Before,
            $($field: ColumnReader<'a>,)*
        }

        impl<'a> Rows<'a> {
            fn new(
                found: &'a Found<'_>,
                entities: &'a [EntityId],
                texts: &'a [Arc<str>],
            ) -> Rows<'a> {
                Rows {
                    entities,
                    texts,
                    before: Before::default(),
                    $($field: found.reader(Column::$column),)*
                }
            }

            /// Refuses columns that hold more than the ticks asked for.
            fn end(&self) -> Result<(), Bad> {
                $(self.$field.end()?;)*
                Ok(())
            }
        }
    };
}

readers! {
    tick_flags: TickFlags,
    tick_calm: TickCalm,
    tick_rows: TickRows,
    tick_ignored: TickIgnored,
    tick_watermarks: TickWatermarks,
    tick_events: TickEvents,
    tick_reports: TickReports,
    tick_controls: TickControls,
    tick_dead: TickDead,
    tick_positions: TickPositions,
    tick_batches: TickBatches,
    event_head: EventHead,
    event_time: EventTime,
    event_entity: EventEntity,
    event_stats: EventStats,
    event_user: EventUser,
    event_id: EventId,
    report_entity: ReportEntity,
    report_start: ReportStart,
    report_length: ReportLength,
    report_as_of: ReportAsOf,
    report_sequence: ReportSequence,
    report_totals: ReportTotals,
    report_attribution: ReportAttribution,
    control: Control,
    dead_source: DeadSource,
    dead_row: DeadRow,
    dead_tenant: DeadTenant,
    dead_reason: DeadReason,
    dead_detail: DeadDetail,
    dead_bytes: DeadBytes,
    dead_length: DeadLength,
    position_source: PositionSource,
    position_partition: PositionPartition,
    position_next: PositionNext,
    batch_tenant: BatchTenant,
    batch_key: BatchKey,
    batch_counts: BatchCounts,
}

/// Calls `row` `count` times.
fn rows<T>(count: usize, mut row: impl FnMut() -> Result<T, Bad>) -> Result<Vec<T>, Bad> {
    let mut rows = Vec::with_capacity(count);
    for _ in 0..count {
        rows.push(row()?);
    }
    Ok(rows)
}

impl Rows<'_> {
    fn tick(&mut self, tick: Tick) -> Result<TickEntry, Bad> {
        let flags = self.tick_flags.next()?;
        let Ok(calm) = u8::try_from(self.tick_calm.next()?) else {
            return bad("a degree of degradation above 255");
        };
        let watermarks = self.watermarks(flags)?;
        let events = self.event_head.count(self.tick_events.next()?)?;
        let reports = self.report_entity.count(self.tick_reports.next()?)?;
        let controls = self.control.count(self.tick_controls.next()?)?;
        let dead = self.dead_source.count(self.tick_dead.next()?)?;
        let positions = self.position_source.count(self.tick_positions.next()?)?;
        let batches = self.batch_tenant.count(self.tick_batches.next()?)?;
        Ok(TickEntry {
            tick,
            mark_last: flags & flag::LAST != 0,
            mark_snapshot: flags & flag::SNAPSHOT != 0,
            calm,
            events: self.events(events)?,
            reports: rows(reports, || self.report())?,
            controls: rows(controls, || json::<Control>(self.control.bytes()?, "a control"))?,
            dead: rows(dead, || self.dead(tick))?,
            rows: self.tick_rows.next()?,
            ignored: self.tick_ignored.next()?,
            watermarks,
            positions: rows(positions, || self.position())?,
            batches: rows(batches, || self.batch())?,
        })
    }

    fn watermarks(&mut self, flags: u64) -> Result<Option<Watermarks>, Bad> {
        let mut time = |bit| match flags & bit {
            0 => Ok(None),
            _ => self.tick_watermarks.next_signed().map(Some),
        };
        let (fresh_until_us, settled_until_us) = (time(flag::FRESH)?, time(flag::SETTLED)?);
        let marks = Watermarks { fresh_until_us, settled_until_us };
        Ok((flags & flag::WATERMARKS != 0).then_some(marks))
    }

    fn entity(&self, number: u64) -> Result<EntityId, Bad> {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        match self.entities.get(at) {
            Some(id) => Ok(*id),
            None => bad(format!("entity {number} of {} in the frame", self.entities.len())),
        }
    }

    fn text(&self, number: u64) -> Result<&Arc<str>, Bad> {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        match self.texts.get(at) {
            Some(text) => Ok(text),
            None => bad(format!("text {number} of {} in the frame", self.texts.len())),
        }
    }

    fn events(&mut self, count: usize) -> Result<Vec<Event>, Bad> {
        let mut events = Vec::with_capacity(count);
        for bits in self.event_head.raw_rows(count)? {
            events.push(self.event(*bits)?);
        }
        Ok(events)
    }

    #[inline]
    fn event(&mut self, bits: u8) -> Result<Event, Bad> {
        let Some(kind) = EventKind::ALL.get(usize::from(bits & head::KIND)).copied() else {
            return bad(format!("kind {} of an event is not known", bits & head::KIND));
        };
        let time = self.before.time.wrapping_add(self.event_time.next_signed()?);
        self.before.time = time;
        let number = self.event_entity.next()?;
        let creative = self.entity(number)?;
        let user = if bits & head::USER == 0 { NO_USER } else { self.event_user.word()? };
        let id = if bits & head::ID == 0 { NO_ID } else { self.event_id.word()? };
        let mut delta = usual(kind);
        if bits & head::ALL != 0 {
            delta = stats(&mut self.event_stats)?;
        } else {
            if bits & head::COST != 0 {
                delta.cost_micros = self.event_stats.next_signed()?;
            }
            if bits & head::REVENUE != 0 {
                delta.revenue_micros = self.event_stats.next_signed()?;
            }
        }
        Ok(Event { time, creative, kind, delta, user, id })
    }

    fn report(&mut self) -> Result<ReportRow, Bad> {
        let number = self.report_entity.next()?;
        let creative = self.entity(number)?;
        let start = self.before.start.wrapping_add(self.report_start.next_signed()?);
        let end = start.wrapping_add(self.report_length.next_signed()?);
        let code = self.report_attribution.next()?;
        let attribution = u32::try_from(code).ok().and_then(Attribution::of_code);
        let Some(attribution) = attribution else {
            return bad(format!("attribution window {code} is not known"));
        };
        let as_of = self.before.as_of.wrapping_add(self.report_as_of.next_signed()?);
        let step = self.report_sequence.next_signed()?;
        let sequence = self.before.sequence.wrapping_add(step.cast_unsigned());
        self.before = Before { start, as_of, sequence, ..self.before };
        let totals = stats(&mut self.report_totals)?;
        Ok(ReportRow {
            key: ReportKey { creative, start, end, attribution },
            version: ReportVersion { as_of, sequence, totals },
        })
    }

    fn dead(&mut self, tick: Tick) -> Result<DeadLetter, Bad> {
        let (source, row) = (self.dead_source.next()?, self.dead_row.next()?);
        let (tenant, code) = (self.dead_tenant.next()?, self.dead_reason.next()?);
        let detail = self.dead_detail.next()?;
        Ok(DeadLetter {
            tick,
            source: self.text(source)?.clone(),
            row,
            tenant: match tenant {
                0 => None,
                number => Some(self.text(number - 1)?.clone()),
            },
            reason: reason(self.text(code)?)?,
            detail: self.text(detail)?.to_string(),
            bytes: self.dead_bytes.bytes()?.to_vec(),
            length: self.dead_length.next()?,
        })
    }

    fn position(&mut self) -> Result<Position, Bad> {
        let source = self.position_source.next()?;
        let Ok(partition) = i32::try_from(self.position_partition.next_signed()?) else {
            return bad("a partition has more than 32 bits");
        };
        let next = self.position_next.next_signed()?;
        Ok(Position { source: self.text(source)?.clone(), partition, next })
    }

    fn batch(&mut self) -> Result<BatchKey, Bad> {
        let (tenant, key) = (self.batch_tenant.next()?, self.batch_key.next()?);
        let mut count = || self.batch_counts.next();
        let (accepted, dead_letters, ignored) = (count()?, count()?, count()?);
        let (tenant, key) = (self.text(tenant)?.clone(), self.text(key)?.clone());
        Ok(BatchKey { tenant, key, accepted, dead_letters, ignored })
    }
}

fn stats(column: &mut ColumnReader<'_>) -> Result<Stats, Bad> {
    Ok(Stats {
        impressions: column.next_signed()?,
        clicks: column.next_signed()?,
        conversions: column.next_signed()?,
        cost_micros: column.next_signed()?,
        revenue_micros: column.next_signed()?,
    })
}
