//! One JSON object to the cells of a plan, without building a tree.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::cell::Cell;
use super::plan::Plan;
use super::reason::{Reason, Reject};

/// Names of a plan's columns, found by name.
pub(crate) struct Columns {
    names: Vec<String>,
}

impl Columns {
    pub(crate) fn new(plan: &Plan) -> Columns {
        Columns { names: plan.slots.iter().map(|slot| slot.column.clone()).collect() }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// The names, in the order of the plan.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Position of `name`; objects of one writer keep their order, so the search starts at `hint`.
    pub(crate) fn find(&self, name: &str, hint: usize) -> Option<usize> {
        let (before, after) = self.names.split_at(hint.min(self.names.len()));
        let from = |names: &[String]| names.iter().position(|known| known == name);
        from(after).map(|at| at + before.len()).or_else(|| from(before))
    }
}

/// Reads one object into `cells` (one for each slot of the plan).
pub(crate) fn parse_object<'a>(
    line: &'a [u8],
    columns: &Columns,
    cells: &mut Vec<Cell<'a>>,
) -> Result<(), Reject> {
    cells.clear();
    cells.resize(columns.names.len(), Cell::Null);
    let text = std::str::from_utf8(line).map_err(|error| {
        let detail = format!("the line is not UTF-8 from byte {}", error.valid_up_to());
        Reject::new(Reason::InvalidUtf8, detail)
    })?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    ObjectSeed { columns, cells }
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end())
        .map_err(|error| {
            let detail = format!("not one JSON object: {error}");
            Reject::new(Reason::Malformed, detail)
        })
}

struct ObjectSeed<'c, 'a> {
    columns: &'c Columns,
    cells: &'c mut Vec<Cell<'a>>,
}

impl<'a> DeserializeSeed<'a> for ObjectSeed<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for ObjectSeed<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let mut hint = 0;
        while let Some(found) = map.next_key_seed(NameSeed { columns: self.columns, hint })? {
            match found {
                Some(slot) => {
                    self.cells[slot] = map.next_value_seed(CellSeed)?;
                    hint = slot + 1;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

struct NameSeed<'c> {
    columns: &'c Columns,
    hint: usize,
}

impl<'a> DeserializeSeed<'a> for NameSeed<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Option<usize>, E> {
        Ok(self.columns.find(name, self.hint))
    }
}

struct CellSeed;

impl<'a> DeserializeSeed<'a> for CellSeed {
    type Value = Cell<'a>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Cell<'a>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for CellSeed {
    type Value = Cell<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Cell<'a>, E> {
        Ok(Cell::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Cell<'a>, E> {
        Ok(Cell::Text(Cow::Borrowed(if value { "true" } else { "false" })))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Cell<'a>, E> {
        Ok(Cell::Int(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Cell<'a>, E> {
        Ok(match i64::try_from(value) {
            Ok(value) => Cell::Int(value),
            Err(_) => Cell::Text(Cow::Owned(value.to_string())),
        })
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Cell<'a>, E> {
        Ok(Cell::Float(value))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'a str) -> Result<Cell<'a>, E> {
        Ok(Cell::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Cell<'a>, E> {
        Ok(Cell::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<Cell<'a>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Cell::Nested)
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Cell<'a>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Cell::Nested)
    }
}
