//! How saved state is written: sections of plain `postcard` bytes, one after the other, behind a
//! checksum; and the binary forms of types whose JSON form carries a tag, which `postcard` cannot
//! read back.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::action::{Action, Id, Setting, Status};
use crate::codes::known;
use crate::goal::{Goal, Objective, Pricing};
use crate::stage::StageError;
use omnify_operators::model::{EntityId, EntityInfo, EntityKey, EventTime, RegistryView, Tick};

/// Bytes of the checksum in front.
const CHECK: usize = 8;

/// Writes sections.
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn new() -> Writer {
        Writer { bytes: vec![0; CHECK] }
    }

    /// Appends one value.
    pub(crate) fn put<T: Serialize + ?Sized>(&mut self, value: &T) {
        let bytes = std::mem::take(&mut self.bytes);
        // Fails only for sequences of unknown length, of which there are none.
        self.bytes = postcard::to_extend(value, bytes).expect("plain data of known length");
    }

    /// Appends a list: its length, then each item.
    pub(crate) fn list<T: Serialize>(&mut self, len: usize, items: impl Iterator<Item = T>) {
        self.put(&len);
        items.for_each(|item| self.put(&item));
    }

    /// The bytes with their checksum.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let check = xxhash_rust::xxh3::xxh3_64(&self.bytes[CHECK..]);
        self.bytes[..CHECK].copy_from_slice(&check.to_le_bytes());
        self.bytes
    }
}

/// Reads sections back.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Reader<'a>, StageError> {
        let Some((check, rest)) = bytes.split_first_chunk::<CHECK>() else {
            return Err(unreadable("its checksum", "the bytes end before it"));
        };
        if xxhash_rust::xxh3::xxh3_64(rest) != u64::from_le_bytes(*check) {
            return Err(unreadable("its checksum", "it is not that of the bytes"));
        }
        Ok(Reader { bytes: rest })
    }

    /// Takes one value; `what` is named in errors.
    pub(crate) fn take<T: DeserializeOwned>(
        &mut self,
        what: &'static str,
    ) -> Result<T, StageError> {
        let taken = postcard::take_from_bytes(self.bytes);
        let (value, rest) = taken.map_err(|error| unreadable(what, &error.to_string()))?;
        self.bytes = rest;
        Ok(value)
    }

    /// Takes a list.
    pub(crate) fn list<T: DeserializeOwned>(
        &mut self,
        what: &'static str,
    ) -> Result<Vec<T>, StageError> {
        let len: usize = self.take(what)?;
        (0..len).map(|_| self.take(what)).collect()
    }

    /// Everything must have been taken.
    pub(crate) fn finish(self) -> Result<(), StageError> {
        match self.bytes.len() {
            0 => Ok(()),
            left => Err(unreadable("its end", &format!("{left} bytes more than expected"))),
        }
    }
}

/// Gives entities saved as dense ids their names back.
pub(crate) struct Entities<'a> {
    view: &'a mut RegistryView,
    known: usize,
}

impl<'a> Entities<'a> {
    pub(crate) fn new(view: &'a mut RegistryView) -> Entities<'a> {
        let known = view.all().len();
        Entities { view, known }
    }

    /// The entity of an id; `what` is named in errors.
    pub(crate) fn info(
        &mut self,
        id: EntityId,
        what: &'static str,
    ) -> Result<Arc<EntityInfo>, StageError> {
        if id.index() >= self.known {
            let problem = format!(
                "entity {} is not in the registry, which has {}: restore the registry of the same \
                 snapshot first",
                id.0, self.known
            );
            return Err(unreadable(what, &problem));
        }
        Ok(self.view.info(id).clone())
    }
}

/// The error of saved state that cannot be read.
pub(crate) fn unreadable(what: &'static str, problem: &str) -> StageError {
    StageError::Unreadable { what, problem: problem.to_owned() }
}

/// Binary form of [`Setting`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "Setting")]
pub(crate) enum SettingWire {
    Bid { bid_micros: i64 },
    Budget { budget_micros: i64 },
    Status { status: Status },
    Rotate { from: EntityKey, to: EntityKey },
    Alert { code: String },
}

/// Binary form of an optional [`Setting`].
pub(crate) mod setting_option {
    use super::*;

    #[derive(Serialize)]
    struct Written<'a>(#[serde(with = "SettingWire")] &'a Setting);
    #[derive(Deserialize)]
    struct Read(#[serde(with = "SettingWire")] Setting);

    pub(crate) fn serialize<S: Serializer>(
        setting: &Option<Setting>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        setting.as_ref().map(Written).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Setting>, D::Error> {
        Ok(Option::<Read>::deserialize(deserializer)?.map(|read| read.0))
    }
}

/// Binary form of [`Action`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "Action")]
pub(crate) struct ActionWire {
    id: Id,
    decision: Id,
    tick: Tick,
    expires: Tick,
    owner: EntityKey,
    #[serde(with = "SettingWire")]
    desired: Setting,
    #[serde(with = "setting_option")]
    before: Option<Setting>,
    #[serde(with = "codes")]
    reasons: Vec<&'static str>,
}

/// Binary form of [`Objective`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "Objective")]
enum ObjectiveWire {
    TargetCpa { cpa_micros: i64 },
    TargetRoas { roas: f64 },
    TargetCpc { cpc_micros: i64 },
    Maximise,
}

/// Binary form of [`Goal`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "Goal")]
struct GoalWire {
    name: String,
    applies_to: String,
    #[serde(with = "ObjectiveWire")]
    objective: Objective,
    daily_budget_micros: i64,
    pricing: Pricing,
    start: Option<EventTime>,
    end: Option<EventTime>,
    bid_floor_micros: i64,
    bid_cap_micros: i64,
    portfolio_budget_micros: Option<i64>,
}

/// A goal in its binary form.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct SavedGoal(#[serde(with = "GoalWire")] pub(crate) Goal);

/// Codes are written by name and read back as those of [`crate::codes`].
pub(crate) mod code {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        code: &&'static str,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        code.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<&'static str, D::Error> {
        let name = String::deserialize(deserializer)?;
        known(&name).ok_or_else(|| serde::de::Error::custom(format!("no code `{name}`")))
    }
}

/// The same for lists.
pub(crate) mod codes {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        codes: &[&'static str],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        codes.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<&'static str>, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        let unknown = |name| serde::de::Error::custom(format!("no code `{name}`"));
        names.into_iter().map(|name| known(&name).ok_or_else(|| unknown(name))).collect()
    }
}

/// The same for an optional one.
pub(crate) mod code_option {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        code: &Option<&'static str>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        code.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<&'static str>, D::Error> {
        let name = Option::<String>::deserialize(deserializer)?;
        let unknown = |name| serde::de::Error::custom(format!("no code `{name}`"));
        name.map(|name| known(&name).ok_or_else(|| unknown(name))).transpose()
    }
}
