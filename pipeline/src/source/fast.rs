//! The columnar fast path: whole batches of events without a text, a map lookup or a validation
//! branch for each row.
//!
//! Names come as dictionaries. Each distinct name gets a small code once; the codes of a row's
//! path are packed into one key, and the key leads to the creative through a table indexed by the
//! creative's code (most names belong to one path) with a hash map behind it. Ranges are checked
//! on the whole column first.
//!
//! Contract: [`Fast::decode`] either decodes the batch exactly as the row decoder would with every
//! row accepted or ignored, or says no and leaves the batch to it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::buffer::ScalarBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use omnify_operators::model::{EntityId, Event, EventKind, NO_ID, NO_USER, Stats};

use super::columnar::timestamps;
use crate::decode::{
    AMOUNT_MAX, AmountPlan, Batch, Door, EventPlan, Found, KindCode, KindPlan, Mapping, Plan,
    TIME_US_MAX, TIME_US_MIN, TextPlan, intern, text_hash,
};

/// Where a segment of the path comes from.
enum Segment {
    Constant(String),
    /// Position in [`Fast::names`].
    Name(usize),
}

/// Code of a name that cannot stand in a path.
const NO_NAME: u32 = u32::MAX;

/// One column of names.
struct Names {
    slot: usize,
    codes: HashMap<Box<str>, u32>,
    texts: Vec<Box<str>>,
    /// The dictionary at hand, and the code of each of its entries.
    dictionary: Option<StringArray>,
    of_key: Vec<u32>,
}

enum Kinds {
    Constant(EventKind),
    /// `table[number]`, or [`UNKNOWN`].
    Numbers {
        slot: usize,
        table: Box<[u8; 256]>,
    },
    Texts {
        slot: usize,
        map: Vec<(String, u8)>,
    },
}

const IGNORE: u8 = 254;
const UNKNOWN: u8 = 255;

struct Money {
    slot: usize,
    unit_micros: i64,
    only: [bool; 5],
    optional: bool,
}

struct Hashed {
    slot: usize,
    optional: bool,
}

/// Decodes batches of one mapping and file.
pub(super) struct Fast {
    plan: Arc<Plan>,
    door: Arc<Door>,
    time_slot: usize,
    path: [Segment; 6],
    names: Vec<Names>,
    /// Bits of a code within the key.
    bits: u32,
    /// Position in `names` of the column that tells most about the path.
    leaf: usize,
    kinds: Kinds,
    cost: Option<Money>,
    revenue: Option<Money>,
    user: Option<Hashed>,
    id: Option<Hashed>,
    by_leaf: Vec<(u128, Found)>,
    by_key: HashMap<u128, Found, BuildHasherDefault<KeyHasher>>,
    found: Vec<Found>,
    kind_codes: Vec<u8>,
}

/// Mixes a packed key; the keys are our own codes, not an adversary's.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = text_hash(bytes, self.0);
    }

    fn write_u128(&mut self, key: u128) {
        const ODD: u128 = 0x9e37_79b9_7f4a_7c15;
        let (low, high) = (u128::from(key as u64), key >> 64);
        let product = (low ^ ((high * ODD) >> 32)) * ODD;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

const NOWHERE: (u128, Found) = (u128::MAX, Found { creative: EntityId(u32::MAX), scope: 0 });

impl Fast {
    /// The fast path of the mapping, if it is simple enough for one; `slots` says which of its
    /// columns are read.
    pub(super) fn new(mapping: &Mapping, door: Arc<Door>, slots: &[Option<usize>]) -> Option<Fast> {
        let plan = mapping.shared_plan();
        let events = plan.events.as_ref().filter(|_| plan.reports.is_none())?;
        let mut names: Vec<Names> = Vec::new();
        let mut path = [const { Segment::Constant(String::new()) }; 6];
        for (segment, text) in path.iter_mut().zip(&plan.path) {
            *segment = match (text.constant(), text.single()) {
                (Some(constant), _) => Segment::Constant(constant.to_owned()),
                (_, Some(slot)) if text.missing.is_none() => {
                    let known = names.iter().position(|names| names.slot == slot);
                    Segment::Name(known.unwrap_or_else(|| {
                        names.push(Names::new(slot));
                        names.len() - 1
                    }))
                }
                _ => return None,
            };
        }
        if names.is_empty() {
            return None;
        }
        let leaf = match path[5] {
            Segment::Name(at) => at,
            Segment::Constant(_) => names.len() - 1,
        };
        let money = |amount: Option<&AmountPlan>| {
            let amount = amount.filter(|amount| slots[amount.slot].is_some())?;
            Some(Money {
                slot: amount.slot,
                unit_micros: amount.unit_micros,
                only: amount.only,
                optional: amount.optional,
            })
        };
        let hashed = |text: Option<&TextPlan>| match text {
            None => Some(None),
            // Projected out, or absent and optional.
            Some(text) if text.slots().all(|slot| slots[slot].is_none()) => Some(None),
            Some(text) if text.missing.is_none() => {
                text.single().map(|slot| Some(Hashed { slot, optional: text.optional }))
            }
            Some(_) => None,
        };
        Some(Fast {
            time_slot: events.time.text.single()?,
            bits: (128 / names.len() as u32).min(31),
            leaf,
            path,
            names,
            kinds: kinds(events)?,
            cost: money(events.cost.as_ref()),
            revenue: money(events.revenue.as_ref()),
            user: hashed(events.user.as_ref())?,
            id: hashed(events.id.as_ref())?,
            by_leaf: Vec::new(),
            by_key: HashMap::default(),
            found: Vec::new(),
            kind_codes: Vec::new(),
            plan,
            door,
        })
    }

    /// Decodes the whole batch, or returns false and leaves it to the row decoder. `columns` are
    /// those of the plan's slots.
    pub(super) fn decode(&mut self, columns: &[Option<ArrayRef>], batch: &mut Batch) -> bool {
        self.try_decode(columns, batch).is_some()
    }

    fn try_decode(&mut self, columns: &[Option<ArrayRef>], batch: &mut Batch) -> Option<()> {
        let times = self.times(columns)?;
        let rows = times.len();
        self.kind_codes(columns, rows)?;
        self.find(columns, rows)?;
        let cost = amounts(self.cost.as_ref(), columns)?;
        let revenue = amounts(self.revenue.as_ref(), columns)?;
        let users = hashes(self.user.as_ref(), columns, &self.plan, |_| 0)?;
        let ids = hashes(self.id.as_ref(), columns, &self.plan, |row| self.found[row].scope)?;

        let (mut low, mut high, mut sorted) = (i64::MAX, i64::MIN, true);
        let mut before = i64::MIN;
        for time in times.iter() {
            low = low.min(*time);
            high = high.max(*time);
            sorted &= before <= *time;
            before = *time;
        }
        if rows > 0 && (low < TIME_US_MIN || high >= TIME_US_MAX) {
            return None;
        }
        batch.events.reserve(rows);
        let event = |row: usize| {
            let code = self.kind_codes[row];
            let kind = EventKind::ALL[usize::from(code & 3)];
            let delta = Stats {
                impressions: i64::from(code == 0),
                clicks: i64::from(code == 1),
                conversions: i64::from(code == 2),
                cost_micros: cost.as_ref().map_or(0, |cost| cost.of(row, code)),
                revenue_micros: revenue.as_ref().map_or(0, |revenue| revenue.of(row, code)),
            };
            Event {
                time: times[row],
                creative: self.found[row].creative,
                kind,
                delta,
                user: users.as_ref().map_or(NO_USER, |users| users[row]),
                id: ids.as_ref().map_or(NO_ID, |ids| ids[row]),
            }
        };
        if self.kind_codes.contains(&IGNORE) {
            let kept = (0..rows).filter(|row| self.kind_codes[*row] != IGNORE);
            kept.for_each(|row| batch.event(event(row)));
        } else if rows > 0 {
            batch.events.extend((0..rows).map(event));
            batch.sorted = sorted;
            batch.widen(low, high);
        }
        batch.rows = rows as u64;
        batch.ignored = (rows - batch.events.len()) as u64;
        Some(())
    }

    fn times(&self, columns: &[Option<ArrayRef>]) -> Option<ScalarBuffer<i64>> {
        let array = columns[self.time_slot].as_ref().filter(|array| array.null_count() == 0)?;
        if let Some(times) = timestamps(array) {
            return Some(times.values().clone());
        }
        let format = &self.plan.events.as_ref()?.time.format;
        let micros = format.micros_of_unit()?;
        let numbers = integers(array)?;
        if micros == 1 {
            return Some(numbers);
        }
        let limit = TIME_US_MAX / micros;
        if numbers.iter().any(|number| !(0..=limit).contains(number)) {
            return None;
        }
        Some(numbers.iter().map(|number| number * micros).collect())
    }

    fn kind_codes(&mut self, columns: &[Option<ArrayRef>], rows: usize) -> Option<()> {
        let codes = &mut self.kind_codes;
        codes.clear();
        match &self.kinds {
            Kinds::Constant(kind) => codes.resize(rows, *kind as u8),
            Kinds::Numbers { slot, table } => {
                let array = columns[*slot].as_ref().filter(|array| array.null_count() == 0)?;
                let code = |number: &i64| match u8::try_from(*number) {
                    Ok(number) => table[usize::from(number)],
                    Err(_) => UNKNOWN,
                };
                codes.extend(integers(array)?.iter().map(code));
            }
            Kinds::Texts { slot, map } => {
                let array = columns[*slot].as_ref().filter(|array| array.null_count() == 0)?;
                let array = array.as_dictionary_opt::<Int32Type>()?;
                let values = array.values().as_string_opt::<i32>()?;
                let of_key: Vec<u8> = values
                    .iter()
                    .map(|text| {
                        let known = map.iter().find(|(name, _)| Some(name.as_str()) == text);
                        known.map_or(UNKNOWN, |(_, code)| *code)
                    })
                    .collect();
                let code = |key: &i32| of_key.get(*key as usize).copied().unwrap_or(UNKNOWN);
                codes.extend(array.keys().values().iter().map(code));
            }
        }
        (!codes.contains(&UNKNOWN)).then_some(())
    }

    /// Finds the creative of every row.
    fn find(&mut self, columns: &[Option<ArrayRef>], rows: usize) -> Option<()> {
        let mut keys = Vec::with_capacity(self.names.len());
        for names in &mut self.names {
            let array = columns[names.slot].as_ref().filter(|array| array.null_count() == 0)?;
            let array = array.as_dictionary_opt::<Int32Type>()?;
            names.learn(array.values().as_string_opt::<i32>()?, &self.plan);
            if names.texts.len() >= 1 << self.bits {
                return None;
            }
            keys.push(array.keys().values().clone());
        }
        self.by_leaf.resize(self.names[self.leaf].texts.len(), NOWHERE);
        self.found.clear();
        self.found.reserve(rows);
        let mut last = NOWHERE;
        for row in 0..rows {
            let (mut key, mut leaf) = (0, 0);
            for (at, (names, keys)) in self.names.iter().zip(&keys).enumerate() {
                let code = *names.of_key.get(keys[row] as usize)?;
                if code == NO_NAME {
                    return None;
                }
                if at == self.leaf {
                    leaf = code as usize;
                }
                key = (key << self.bits) | u128::from(code);
            }
            if key != last.0 {
                last = self.by_leaf[leaf];
                if key != last.0 {
                    last = (key, self.look_up(key)?);
                    self.by_leaf[leaf] = last;
                }
            }
            self.found.push(last.1);
        }
        Some(())
    }

    #[inline(never)]
    fn look_up(&mut self, key: u128) -> Option<Found> {
        if let Some(found) = self.by_key.get(&key) {
            return Some(*found);
        }
        let mask = (1u128 << self.bits) - 1;
        let count = self.names.len() as u32;
        let mut segments = [""; 6];
        for (segment, from) in segments.iter_mut().zip(&self.path) {
            *segment = match from {
                Segment::Constant(text) => text,
                Segment::Name(at) => {
                    let code = key >> (self.bits * (count - 1 - *at as u32)) & mask;
                    &self.names[*at].texts[code as usize]
                }
            };
        }
        let found = intern(&self.door, &segments).ok()?;
        self.by_key.insert(key, found);
        Some(found)
    }
}

impl Names {
    fn new(slot: usize) -> Names {
        Names {
            slot,
            codes: HashMap::new(),
            texts: Vec::new(),
            dictionary: None,
            of_key: Vec::new(),
        }
    }

    /// Gives codes to the entries of `dictionary`, unless it is the one at hand.
    fn learn(&mut self, dictionary: &StringArray, plan: &Plan) {
        let same = self.dictionary.as_ref().is_some_and(|known| {
            known.len() == dictionary.len()
                && known.value_data().as_ptr() == dictionary.value_data().as_ptr()
                && known.value_offsets().as_ptr() == dictionary.value_offsets().as_ptr()
        });
        if same {
            return;
        }
        self.of_key.clear();
        for text in dictionary {
            let text = text.filter(|text| !text.is_empty() && !plan.is_null(text));
            let code = match text {
                Some(text) => self.code(text, plan),
                None => NO_NAME,
            };
            self.of_key.push(code);
        }
        // Held so that its memory is not given to another dictionary: the comparison stays true.
        self.dictionary = Some(dictionary.clone());
    }

    fn code(&mut self, text: &str, plan: &Plan) -> u32 {
        if let Some(code) = self.codes.get(text) {
            return *code;
        }
        let code = u32::try_from(self.texts.len()).unwrap_or(NO_NAME);
        let name = match &plan.slash {
            Some(slash) => text.replace('/', slash),
            None => text.to_owned(),
        };
        self.codes.insert(text.into(), code);
        self.texts.push(name.into());
        code
    }
}

fn kinds(events: &EventPlan) -> Option<Kinds> {
    let code = |code: KindCode| match code {
        KindCode::Ignore => IGNORE,
        KindCode::Event(kind) => kind as u8,
    };
    match &events.kind {
        KindPlan::Constant(kind) => Some(Kinds::Constant(*kind)),
        KindPlan::Column { slot, map } => {
            let numbers: Option<Vec<(u8, u8)>> = map
                .iter()
                .map(|(text, kind)| {
                    let number = text.parse::<u8>().ok().filter(|n| n.to_string() == *text)?;
                    Some((number, code(*kind)))
                })
                .collect();
            match numbers {
                Some(numbers) => {
                    let mut table = Box::new([UNKNOWN; 256]);
                    numbers.iter().for_each(|(number, kind)| table[usize::from(*number)] = *kind);
                    Some(Kinds::Numbers { slot: *slot, table })
                }
                None => {
                    let map = map.iter().map(|(text, kind)| (text.clone(), code(*kind))).collect();
                    Some(Kinds::Texts { slot: *slot, map })
                }
            }
        }
    }
}

/// The values of a column of whole numbers without nulls.
fn integers(array: &ArrayRef) -> Option<ScalarBuffer<i64>> {
    if !array.data_type().is_integer() || *array.data_type() == DataType::UInt64 {
        return None;
    }
    let array = cast(array, &DataType::Int64).ok()?;
    Some(array.as_primitive::<Int64Type>().values().clone())
}

/// Amounts of a batch, known to be within their range.
struct Amounts<'a> {
    values: ScalarBuffer<i64>,
    unit_micros: i64,
    only: &'a [bool; 5],
}

impl Amounts<'_> {
    #[inline]
    fn of(&self, row: usize, code: u8) -> i64 {
        if self.only[usize::from(code & 3)] { self.values[row] * self.unit_micros } else { 0 }
    }
}

/// `None`: not for the fast path. `Some(None)`: there is no such amount.
fn amounts<'a>(
    money: Option<&'a Money>,
    columns: &[Option<ArrayRef>],
) -> Option<Option<Amounts<'a>>> {
    let Some(money) = money else { return Some(None) };
    let array = columns[money.slot].as_ref()?;
    let mut values = integers(array)?;
    if array.null_count() > 0 {
        if !money.optional {
            return None;
        }
        let value = |row: usize| if array.is_valid(row) { values[row] } else { 0 };
        values = (0..array.len()).map(value).collect();
    }
    let limit = AMOUNT_MAX / money.unit_micros;
    let (mut low, mut high) = (0, 0);
    for value in values.iter() {
        low = low.min(*value);
        high = high.max(*value);
    }
    if low < 0 || high > limit {
        return None;
    }
    Some(Some(Amounts { values, unit_micros: money.unit_micros, only: &money.only }))
}

/// `None`: not for the fast path. `Some(None)`: there is no such field.
fn hashes(
    field: Option<&Hashed>,
    columns: &[Option<ArrayRef>],
    plan: &Plan,
    seed: impl Fn(usize) -> u64,
) -> Option<Option<Vec<u64>>> {
    let Some(field) = field else { return Some(None) };
    let array = columns[field.slot].as_ref()?;
    if array.null_count() > 0 && !field.optional {
        return None;
    }
    let mut hashes = Vec::with_capacity(array.len());
    if let Some(texts) = array.as_string_opt::<i32>() {
        for (row, text) in texts.iter().enumerate() {
            hashes.push(match text {
                Some(text) if !plan.is_null(text) => text_hash(text.as_bytes(), seed(row)),
                _ if field.optional => 0,
                _ => return None,
            });
        }
    } else {
        let mut digits = itoa::Buffer::new();
        for (row, number) in integers(array)?.iter().enumerate() {
            let text = digits.format(*number);
            let hash = if array.is_valid(row) { text_hash(text.as_bytes(), seed(row)) } else { 0 };
            hashes.push(hash);
        }
    }
    Some(Some(hashes))
}
