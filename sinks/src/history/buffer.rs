//! Rows waiting to become parts, by partition.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use omnify_operators::model::{EntityId, EntityKey, RegistryView, Tick};

use super::catalog::Catalog;
use super::entities::Facts;
use super::events::pack_currency;
use super::manifest::Part;
use super::part::PartWriter;
use super::table::{date_text, partition_path};
use super::writer::{CurrencyOf, WriterOptions};
use super::{HistoryError, HistoryMeta, Table};

/// The rows of one partition of one table.
pub(crate) trait Buffer: Default {
    /// The table.
    const TABLE: Table;
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Memory they take, about.
    fn bytes(&self) -> usize;
    /// Lowest and highest tick.
    fn ticks(&self) -> (Tick, Tick);
    /// Key of the first row's entity, if rows have one.
    fn first_entity(&self, context: &mut Context) -> Option<String>;
    /// The columns.
    fn schema(context: &Context) -> SchemaRef;
    /// Encodes all rows; leaves them in the buffer.
    fn write(&self, context: &mut Context, out: &mut PartWriter<'_>) -> Result<(), HistoryError>;
}

/// A part that is on disk under its temporary name.
pub(crate) struct Pending {
    pub(crate) temporary: PathBuf,
    pub(crate) renamed: bool,
    pub(crate) part: Part,
}

/// What buffers share.
pub(crate) struct Context {
    pub(crate) catalog: Catalog,
    pub(crate) meta: Arc<HistoryMeta>,
    pub(crate) options: WriterOptions,
    pub(crate) view: RegistryView,
    pub(crate) currency_of: Box<CurrencyOf>,
    facts: Vec<Facts>,
    pub(crate) pending: Vec<Pending>,
    pub(crate) buffered_bytes: usize,
    /// A buffer has reached the rows of a part.
    pub(crate) full: bool,
}

impl Context {
    pub(crate) fn new(
        catalog: Catalog,
        meta: HistoryMeta,
        options: WriterOptions,
        view: RegistryView,
    ) -> Context {
        Context {
            catalog,
            meta: Arc::new(meta),
            options,
            view,
            currency_of: Box::new(|_| None),
            facts: Vec::new(),
            pending: Vec::new(),
            buffered_bytes: 0,
            full: false,
        }
    }

    /// The facts of an entity.
    #[inline]
    pub(crate) fn facts(&mut self, entity: EntityId) -> Facts {
        if entity.index() >= self.facts.len() {
            self.learn_facts();
        }
        self.facts[entity.index()]
    }

    #[cold]
    fn learn_facts(&mut self) {
        let known = self.facts.len();
        for info in &self.view.all()[known..] {
            let currency = (self.currency_of)(&info.key);
            let currency = currency.map_or(0, |currency| pack_currency(currency.as_str()));
            let tenant = info.ancestors[0];
            self.facts.push(Facts { order: info.order, tenant, currency, level: info.level });
        }
    }

    /// The key of an entity.
    pub(crate) fn key(&mut self, entity: u32) -> &EntityKey {
        &self.view.info(EntityId(entity)).key
    }

    /// Writes one buffer to a temporary file and remembers it for the commit.
    fn write_part<B: Buffer>(
        &mut self,
        tenant: Option<&str>,
        day: i64,
        buffer: &B,
    ) -> Result<(), HistoryError> {
        let (first_tick, last_tick) = buffer.ticks();
        let folder = partition_path(B::TABLE, tenant, day);
        let name = self.catalog.name(&folder, first_tick, last_tick);
        let path = self.catalog.root.join(&folder);
        fs::create_dir_all(&path).map_err(HistoryError::io("create", &path))?;
        let temporary = path.join(format!(".{name}.tmp"));
        let schema = B::schema(self);
        let disk = self.catalog.disk.clone();
        let written = PartWriter::create(&*disk, &temporary, B::TABLE, schema, &self.options)
            .and_then(|mut out| {
                buffer.write(self, &mut out)?;
                out.finish()
            });
        let written = written.inspect_err(|_| {
            // Best effort: an opening of the history cleans up what this leaves.
            let _ = disk.remove(&temporary);
        })?;
        let part = Part {
            file: format!("{folder}/{name}"),
            table: B::TABLE,
            tenant: tenant.map(str::to_owned),
            date: date_text(day),
            first_tick,
            last_tick,
            first_entity: buffer.first_entity(self),
            rows: buffer.rows() as u64,
            bytes: written.bytes,
            blake3: written.blake3,
        };
        self.catalog.took_name(&folder, first_tick, last_tick);
        self.pending.push(Pending { temporary, renamed: false, part });
        Ok(())
    }
}

/// Builds a batch, naming the table when the columns do not fit it.
pub(crate) fn batch(
    table: Table,
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
) -> Result<RecordBatch, HistoryError> {
    RecordBatch::try_new(schema.clone(), columns)
        .map_err(|e| HistoryError::Value { table, what: e.to_string() })
}

struct Slot<B> {
    tenant: Option<Arc<str>>,
    day: i64,
    buffer: B,
}

/// The open partitions of one table.
pub(crate) struct Store<B> {
    slots: Vec<Slot<B>>,
    /// Partition by tenant entity (`u32::MAX` for none) and day.
    index: HashMap<(u32, i64), usize>,
    /// Partition of a tenant that is no entity.
    named: HashMap<(Arc<str>, i64), usize>,
    last: Option<(u32, i64, usize)>,
}

impl<B> Default for Store<B> {
    fn default() -> Self {
        Store { slots: Vec::new(), index: HashMap::new(), named: HashMap::new(), last: None }
    }
}

impl<B: Buffer> Store<B> {
    /// The buffer of a tenant's day.
    #[inline]
    pub(crate) fn of(&mut self, tenant: EntityId, day: i64, context: &mut Context) -> &mut B {
        let place = match self.last {
            Some((t, d, place)) if t == tenant.0 && d == day => place,
            _ => {
                let name = || Some(Arc::from(context.key(tenant.0).as_str()));
                self.find(tenant.0, day, name)
            }
        };
        &mut self.slots[place].buffer
    }

    /// Whether a buffer has at least `rows` rows.
    pub(crate) fn has(&self, rows: usize) -> bool {
        self.slots.iter().any(|slot| slot.buffer.rows() >= rows)
    }

    /// The buffer of rows without a tenant.
    pub(crate) fn of_none(&mut self, day: i64) -> &mut B {
        let place = self.find(u32::MAX, day, || None);
        &mut self.slots[place].buffer
    }

    /// The buffer of a tenant known by name only.
    pub(crate) fn of_name(&mut self, tenant: Option<&Arc<str>>, day: i64) -> &mut B {
        let Some(tenant) = tenant else { return self.of_none(day) };
        let slots = &mut self.slots;
        let place = *self.named.entry((tenant.clone(), day)).or_insert_with(|| {
            slots.push(Slot { tenant: Some(tenant.clone()), day, buffer: B::default() });
            slots.len() - 1
        });
        &mut self.slots[place].buffer
    }

    fn find(&mut self, tenant: u32, day: i64, name: impl FnOnce() -> Option<Arc<str>>) -> usize {
        let slots = &mut self.slots;
        let place = *self.index.entry((tenant, day)).or_insert_with(|| {
            slots.push(Slot { tenant: name(), day, buffer: B::default() });
            slots.len() - 1
        });
        self.last = Some((tenant, day, place));
        place
    }
}

/// A [`Store`] of any table.
pub(crate) trait AnyStore: Send {
    /// Memory and position of the largest buffer.
    fn largest(&self) -> Option<(usize, usize)>;
    /// Writes the buffers that have at least `rows` rows.
    fn write_full(&mut self, rows: usize, context: &mut Context) -> Result<(), HistoryError>;
    /// Writes one buffer.
    fn write_slot(&mut self, place: usize, context: &mut Context) -> Result<(), HistoryError>;
    /// Forgets partitions without rows.
    fn tidy(&mut self);
}

impl<B: Buffer + Send> AnyStore for Store<B> {
    fn largest(&self) -> Option<(usize, usize)> {
        self.slots
            .iter()
            .enumerate()
            .map(|(place, slot)| (slot.buffer.bytes(), place))
            .filter(|(bytes, _)| *bytes > 0)
            // The first of equals: the choice must not depend on anything but the rows.
            .max_by_key(|(bytes, place)| (*bytes, std::cmp::Reverse(*place)))
    }

    fn write_full(&mut self, rows: usize, context: &mut Context) -> Result<(), HistoryError> {
        let mut places: Vec<usize> = (0..self.slots.len())
            .filter(|place| self.slots[*place].buffer.rows() >= rows.max(1))
            .collect();
        places.sort_by(|a, b| {
            let key = |place: usize| (&self.slots[place].tenant, self.slots[place].day);
            key(*a).cmp(&key(*b))
        });
        places.into_iter().try_for_each(|place| self.write_slot(place, context))
    }

    fn write_slot(&mut self, place: usize, context: &mut Context) -> Result<(), HistoryError> {
        let slot = &mut self.slots[place];
        context.write_part(slot.tenant.as_deref(), slot.day, &slot.buffer)?;
        context.buffered_bytes = context.buffered_bytes.saturating_sub(slot.buffer.bytes());
        slot.buffer = B::default();
        Ok(())
    }

    fn tidy(&mut self) {
        self.slots.clear();
        self.index.clear();
        self.named.clear();
        self.last = None;
    }
}
