//! Entity keys as columns: every path segment is a dictionary array over the distinct names of a
//! part, so that a row costs six small integers and no string is touched twice.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, DictionaryArray, Int32Array, StringArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Int32Type};
use omnify_operators::model::{EntityId, EntityKey, Level, RegistryView};

use super::part::Interner;

/// The path columns, from the top down.
pub(crate) const PATH: [&str; 6] =
    ["tenant", "platform", "account", "campaign", "ad_group", "creative"];

/// The type of a column of repeating strings. On disk it is a plain string with a dictionary page.
pub(crate) fn dictionary_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// A field of repeating strings.
pub(crate) fn text_field(name: &str, nullable: bool) -> Field {
    Field::new(name, dictionary_type(), nullable)
}

/// The path fields; `deepest` says whether every row is a creative.
pub(crate) fn path_fields(creatives_only: bool) -> Vec<Field> {
    PATH.iter().enumerate().map(|(at, name)| text_field(name, at > 0 && !creatives_only)).collect()
}

/// A dictionary column over fixed `names`.
pub(crate) fn text_column(keys: Int32Array, names: &Arc<StringArray>) -> ArrayRef {
    // The keys are made here from the positions of the names, so they are always in range.
    Arc::new(DictionaryArray::<Int32Type>::new(keys, names.clone()))
}

/// What the writer needs of an entity for every row, packed for the cache.
#[derive(Clone, Copy)]
pub(crate) struct Facts {
    /// Stable hash of the key.
    pub(crate) order: u64,
    /// The tenant's entity.
    pub(crate) tenant: EntityId,
    /// ISO code, zero-padded; 0 without one.
    pub(crate) currency: u32,
    /// The level.
    pub(crate) level: Level,
}

/// The distinct entities of a part, and their names as dictionaries.
pub(crate) struct EntityColumns {
    /// Position among the distinct entities by [`EntityId`], `u32::MAX` if not in the part.
    local: Vec<u32>,
    /// `keys[segment][local]`, −1 below the level.
    keys: [Vec<i32>; 6],
    names: [Arc<StringArray>; 6],
    levels: Vec<Level>,
}

impl EntityColumns {
    /// Collects the names of `entities`.
    pub(crate) fn new(
        entities: impl Iterator<Item = u32>,
        view: &mut RegistryView,
    ) -> EntityColumns {
        let mut local = vec![u32::MAX; view.registry().len()];
        let mut interners: [Interner; 6] = Default::default();
        let mut keys: [Vec<i32>; 6] = Default::default();
        let mut levels = Vec::new();
        for entity in entities {
            let place = &mut local[entity as usize];
            if *place != u32::MAX {
                continue;
            }
            *place = levels.len() as u32;
            let info = view.info(EntityId(entity));
            levels.push(info.level);
            let mut segments = info.key.as_str().split('/');
            for (interner, keys) in interners.iter_mut().zip(&mut keys) {
                keys.push(segments.next().map_or(-1, |name| interner.intern(name) as i32));
            }
        }
        let names =
            interners.map(|interner| Arc::new(StringArray::from_iter_values(interner.names())));
        EntityColumns { local, keys, names, levels }
    }

    /// The six path columns of `entities`.
    pub(crate) fn path(&self, entities: &[u32], creatives_only: bool) -> Vec<ArrayRef> {
        let places: Vec<u32> = entities.iter().map(|e| self.local[*e as usize]).collect();
        self.keys
            .iter()
            .zip(&self.names)
            .map(|(keys, names)| {
                let column: Vec<i32> = places.iter().map(|place| keys[*place as usize]).collect();
                let nulls = (!creatives_only && column.contains(&-1))
                    .then(|| NullBuffer::from_iter(column.iter().map(|key| *key >= 0)));
                let column = match nulls {
                    None => Int32Array::new(column.into(), None),
                    Some(nulls) => {
                        let column: Vec<i32> = column.into_iter().map(|key| key.max(0)).collect();
                        if names.is_empty() {
                            return arrow::array::new_null_array(&dictionary_type(), places.len());
                        }
                        Int32Array::new(column.into(), Some(nulls))
                    }
                };
                text_column(column, names)
            })
            .collect()
    }

    /// The `level` column of `entities`.
    pub(crate) fn level(&self, entities: &[u32], names: &Arc<StringArray>) -> ArrayRef {
        let keys = Int32Array::from_iter_values(
            entities.iter().map(|e| self.levels[self.local[*e as usize] as usize] as i32),
        );
        text_column(keys, names)
    }
}

/// The names of all levels, in the order of [`Level::ALL`].
pub(crate) fn level_names() -> Arc<StringArray> {
    Arc::new(StringArray::from_iter_values(Level::ALL.map(Level::name)))
}

/// The path columns of a few keys, without a registry.
pub(crate) fn path_of_keys<'a>(keys: impl Iterator<Item = &'a EntityKey> + Clone) -> Vec<ArrayRef> {
    (0..6)
        .map(|segment| {
            let column: DictionaryArray<Int32Type> =
                keys.clone().map(|key| key.segment(segment)).collect();
            Arc::new(column) as ArrayRef
        })
        .collect()
}

/// A dictionary column of optional strings.
pub(crate) fn texts<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    Arc::new(values.collect::<DictionaryArray<Int32Type>>())
}
