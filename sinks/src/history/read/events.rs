//! Rows of the table `events` back into [`Event`]s.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, Int32Array, Int64Array, RecordBatch,
};
use arrow::array::{PrimitiveArray, StringArray};
use arrow::datatypes::{Int32Type, TimestampMicrosecondType};
use omnify_operators::model::{EntityId, EntityKey, Event, EventKind, EventTime, Registry, Tick};

use super::super::entities::PATH;
use super::super::events::{SUMS, event_check, pack_currency};
use super::super::manifest::Part;
use super::super::row::stats_of;
use super::super::{Difference, HistoryError, HistoryMeta, Table};
use super::HistoryReader;
use super::file::{DecodeError, PartFile, dictionary, typed};
use super::merge::{Decode, Decoded, decode_checked};

#[derive(Clone, Copy)]
struct Known {
    keys: [i32; 6],
    id: EntityId,
    order: u64,
}

/// No entity: dictionary keys are never negative.
const UNKNOWN: Known = Known { keys: [-1; 6], id: EntityId(u32::MAX), order: 0 };

/// Equality without a call: this is asked for every row.
#[inline]
fn same(a: &[i32; 6], b: &[i32; 6]) -> bool {
    a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// Entities by their dictionary keys, valid while the dictionaries stay the same.
#[derive(Default)]
struct KeyCache {
    dictionaries: Vec<ArrayRef>,
    /// The first entity met for each key of the creative column, whose names are nearly unique.
    first: Vec<Known>,
    /// Entities that share the creative's name with their first.
    others: HashMap<[i32; 6], (EntityId, u64)>,
}

impl KeyCache {
    fn renew(&mut self, columns: &[&DictionaryArray<Int32Type>]) {
        let same = self.dictionaries.len() == columns.len()
            && self.dictionaries.iter().zip(columns).all(|(a, b)| Arc::ptr_eq(a, b.values()));
        if !same {
            self.dictionaries = columns.iter().map(|column| column.values().clone()).collect();
            self.first.clear();
            self.first.resize(columns[5].values().len(), UNKNOWN);
            self.others.clear();
        }
    }

    #[inline]
    fn get(&mut self, keys: [i32; 6], registry: &Registry) -> Result<(EntityId, u64), String> {
        let first = &self.first[keys[5] as usize];
        if same(&first.keys, &keys) {
            return Ok((first.id, first.order));
        }
        if let Some(known) = self.others.get(&keys) {
            return Ok(*known);
        }
        self.learn(keys, registry)
    }

    #[cold]
    fn learn(&mut self, keys: [i32; 6], registry: &Registry) -> Result<(EntityId, u64), String> {
        let mut segments = [""; 6];
        for ((segment, dictionary), key) in segments.iter_mut().zip(&self.dictionaries).zip(keys) {
            *segment = dictionary.as_string::<i32>().value(key as usize);
        }
        let key = EntityKey::new(&segments).map_err(|e| e.to_string())?;
        let (id, order) = (registry.intern(&key), key.stable_hash());
        let first = &mut self.first[keys[5] as usize];
        if first.keys == UNKNOWN.keys {
            *first = Known { keys, id, order };
        } else {
            self.others.insert(keys, (id, order));
        }
        Ok((id, order))
    }
}

/// Decodes events into the ids of a registry.
pub(crate) struct EventRows {
    registry: Arc<Registry>,
    cache: KeyCache,
}

impl EventRows {
    pub(crate) fn new(registry: Arc<Registry>) -> EventRows {
        EventRows { registry, cache: KeyCache::default() }
    }
}

/// Maps each name of a dictionary column.
fn by_name<T>(
    column: &DictionaryArray<Int32Type>,
    map: impl Fn(&str) -> T,
) -> Result<Vec<T>, String> {
    let names: &StringArray =
        column.values().as_string_opt().ok_or("a dictionary does not hold strings")?;
    Ok(names.iter().map(|name| map(name.unwrap_or_default())).collect())
}

fn no_nulls(array: &dyn Array, name: &str) -> Result<(), String> {
    match array.null_count() {
        0 => Ok(()),
        count => Err(format!("column `{name}` has {count} nulls, which it never has")),
    }
}

impl Decode for EventRows {
    type Row = Event;
    const TABLE: Table = Table::Events;

    fn decode(&mut self, batch: &RecordBatch, out: &mut Decoded<Event>) -> Result<(), DecodeError> {
        let rows = batch.num_rows();
        let number = |name: &str| -> Result<&[i64], String> {
            let column: &Int64Array = typed(batch, name)?;
            no_nulls(column, name)?;
            Ok(&column.values()[..rows])
        };
        let paths = PATH.map(|name| dictionary(batch, name));
        let mut columns = Vec::with_capacity(6);
        for (column, name) in paths.into_iter().zip(PATH) {
            let column = column?;
            no_nulls(column, name)?;
            columns.push(column);
        }
        self.cache.renew(&columns);
        let path: Vec<&[i32]> = columns.iter().map(|c| &c.keys().values()[..rows]).collect();
        let (tick, check) = (number("tick")?, number("check")?);
        let seq: &Int32Array = typed(batch, "seq")?;
        let time: &PrimitiveArray<TimestampMicrosecondType> = typed(batch, "event_time")?;
        let kind = dictionary(batch, "kind")?;
        let kinds = by_name(kind, |name| EventKind::ALL.into_iter().find(|k| k.name() == name))?;
        let currency = dictionary(batch, "currency")?;
        let currencies = by_name(currency, pack_currency)?;
        let (user, id): (&Int64Array, &Int64Array) =
            (typed(batch, "user")?, typed(batch, "event_id")?);
        no_nulls(seq, "seq")?;
        no_nulls(time, "event_time")?;
        no_nulls(kind, "kind")?;
        let mut sums = [tick; 5];
        for (column, name) in sums.iter_mut().zip(SUMS) {
            *column = number(name)?;
        }
        let (seq, time, kind) = (seq.values(), time.values(), kind.keys().values());
        out.ticks.reserve(rows);
        out.rows.reserve(rows);
        for row in 0..rows {
            let keys = std::array::from_fn(|segment| path[segment][row]);
            let (creative, order) = self.cache.get(keys, &self.registry)?;
            let kind = kinds.get(kind[row] as usize).copied().flatten();
            let event = Event {
                time: time[row],
                creative,
                kind: kind.ok_or("column `kind` holds an unknown kind")?,
                delta: stats_of(std::array::from_fn(|column| sums[column][row])),
                user: if user.is_null(row) { 0 } else { user.value(row) as u64 },
                id: if id.is_null(row) { 0 } else { id.value(row) as u64 },
            };
            let packed = match currency.is_null(row) {
                true => 0,
                false => currencies[currency.keys().value(row) as usize],
            };
            let (tick, seq) = (tick[row] as Tick, seq[row] as u32);
            let found = event_check(tick, seq, &event, order, packed);
            if found != check[row] as u64 {
                return Err(DecodeError::Row(self.changed(tick, keys)));
            }
            out.ticks.push(tick);
            out.seqs.push(seq);
            out.checks.push(found);
            out.rows.push(event);
        }
        Ok(())
    }
}

impl EventRows {
    #[cold]
    fn changed(&self, tick: Tick, keys: [i32; 6]) -> Difference {
        let names: Vec<&str> = (self.cache.dictionaries.iter().zip(keys))
            .map(|(names, key)| names.as_string::<i32>().value(key as usize))
            .collect();
        Difference {
            tick: Some(tick),
            entity: EntityKey::new(&names).ok(),
            file: String::new(),
            what: "an event is not what was written (its row check differs)".to_owned(),
        }
    }
}

/// See [`super::HistoryReader::scan_events`]: yields the rows of a batch at a time.
pub struct EventScan {
    root: Arc<Path>,
    meta: Arc<HistoryMeta>,
    parts: VecDeque<Part>,
    open: Option<(PartFile, String)>,
    decode: EventRows,
    times: Range<EventTime>,
    failed: bool,
}

impl EventScan {
    pub(crate) fn new(
        reader: &HistoryReader,
        parts: VecDeque<Part>,
        registry: Arc<Registry>,
        times: Range<EventTime>,
    ) -> EventScan {
        let decode = EventRows::new(registry);
        let (root, meta) = (reader.root.clone(), reader.meta.clone());
        EventScan { root, meta, parts, open: None, decode, times, failed: false }
    }

    fn step(&mut self) -> Result<Option<Vec<(Tick, Event)>>, HistoryError> {
        loop {
            let Some((file, name)) = &mut self.open else {
                let Some(part) = self.parts.pop_front() else { return Ok(None) };
                let file = PartFile::open(&self.root, &part, &self.meta)?;
                self.open = Some((file, part.file));
                continue;
            };
            let Some(batch) = file.next()? else {
                self.open = None;
                continue;
            };
            let mut decoded = Decoded::default();
            decode_checked(&mut self.decode, &batch, &mut decoded, name)?;
            let rows = decoded.ticks.into_iter().zip(decoded.rows);
            let rows: Vec<_> = rows.filter(|(_, event)| self.times.contains(&event.time)).collect();
            if !rows.is_empty() {
                return Ok(Some(rows));
            }
        }
    }
}

impl Iterator for EventScan {
    type Item = Result<Vec<(Tick, Event)>, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.step().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}
