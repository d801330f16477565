//! Writes the history.
//!
//! # Contract
//! Everything of a tick is handed over before [`HistoryWriter::tick`] closes it, and ticks close in
//! ascending order. Rows wait in columnar buffers, become parts under temporary names when a buffer
//! is full or memory is short, and appear (renamed and listed in the manifest, all tables together)
//! at a commit: [`HistoryWriter::flush`], [`HistoryWriter::finish`], or every
//! [`WriterOptions::commit_rows`] rows between two ticks. So the manifest always describes complete
//! ticks, and what a crash leaves behind is removed at the next opening.
//!
//! An error of a method that takes rows means that **none** of them was taken: free the cause (see
//! [`HistoryError::is_disk_full`]) and call again with the same rows. The same input gives the same
//! files, byte for byte.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use omnify_decision::action::{Action, Decision};
use omnify_decision::control::Control;
use omnify_operators::model::{
    Currency, EntityKey, Event, Level, MAX_WINDOWS, PaneBatch, RegistryView, Tick,
};

use super::actions::{ActionBuffer, OutcomeBuffer, SMALL_ROW_BYTES, outcome_entity};
use super::buffer::{AnyStore, Context, Store};
use super::catalog::{Catalog, lock, write_manifest};
use super::compact::{MergeJob, Merged};
use super::dead_letter::{LetterBuffer, letter_bytes};
use super::decisions::{DECISION_BYTES, DecisionBuffer};
use super::events::{EVENT_BYTES, EventBuffer};
use super::features::{EXTRA_BYTES, FEATURE_BYTES, FeatureBuffer};
use super::manifest::{MANIFEST_FILE, Manifest};
use super::meta::{CONFIG_FILE, RUN_FILE};
use super::part::replace_file;
use super::summary::Summary;
use super::table::{day_of_tick, day_of_us};
use super::ticks::{TICK_BYTES, TickBuffer};
use super::{
    DeadLetter, DecisionDigest, HistoryError, HistoryMeta, SCHEMA_VERSION, Table, TickRecord,
};
use crate::disk::{Disk, FileSystem};
use omnify_decision::digest::{hex, unhex};

/// Says the currency of an entity's account.
pub type CurrencyOf = dyn Fn(&EntityKey) -> Option<Currency> + Send;

/// Sizes and limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterOptions {
    /// A buffer of this many rows becomes a part (a part may be larger by the rows of one call).
    pub rows_per_file: usize,
    /// Rows of a row group.
    pub row_group_rows: usize,
    /// Zstandard level, 1 to 22.
    pub zstd_level: i32,
    /// Most memory of all buffers; above it the largest buffer becomes a part first.
    pub buffered_bytes_max: usize,
    /// Whether a commit waits until the disk has everything (fsync). Without it a crash of the
    /// machine, not of the process, may damage the last commit: for runs that can be repeated.
    pub durable: bool,
    /// Commit after this many rows, at the next boundary of ticks. 0 leaves commits to the caller.
    pub commit_rows: u64,
    /// Lowest number in the names of new parts; 0 leaves it out where it can. A history with copies
    /// elsewhere, which another process may have to continue, gives each process numbers of its own,
    /// so that no name ever stands for two contents.
    pub names_from: u64,
}

impl Default for WriterOptions {
    fn default() -> Self {
        WriterOptions {
            rows_per_file: 1_000_000,
            row_group_rows: 256 * 1024,
            zstd_level: 1,
            durable: true,
            buffered_bytes_max: 192 << 20,
            commit_rows: 16_000_000,
            names_from: 0,
        }
    }
}

#[derive(Default)]
struct Stores {
    events: Store<EventBuffer>,
    features: Store<FeatureBuffer>,
    decisions: Store<DecisionBuffer>,
    actions: Store<ActionBuffer>,
    outcomes: Store<OutcomeBuffer>,
    letters: Store<LetterBuffer>,
    ticks: Store<TickBuffer>,
}

impl Stores {
    fn all(&mut self) -> [&mut dyn AnyStore; 7] {
        [
            &mut self.events,
            &mut self.features,
            &mut self.decisions,
            &mut self.actions,
            &mut self.outcomes,
            &mut self.letters,
            &mut self.ticks,
        ]
    }
}

/// The tick whose rows are being handed over.
#[derive(Default)]
struct Open {
    dirty: bool,
    events: u64,
    events_check: u64,
    decisions: u64,
    outcomes: u32,
}

/// Writes a history; see the module for the contract.
pub struct HistoryWriter {
    context: Context,
    stores: Stores,
    last_tick: Option<Tick>,
    open: Open,
    digest: DecisionDigest,
    rows_since_commit: u64,
}

impl HistoryWriter {
    /// A new history in `root`, which must not hold one.
    pub fn create(
        root: impl Into<PathBuf>,
        meta: HistoryMeta,
        view: RegistryView,
        options: WriterOptions,
    ) -> Result<HistoryWriter, HistoryError> {
        HistoryWriter::create_on(root.into(), meta, view, options, Arc::new(FileSystem))
    }

    /// The same on another disk.
    pub fn create_on(
        root: PathBuf,
        meta: HistoryMeta,
        view: RegistryView,
        options: WriterOptions,
        disk: Arc<dyn Disk>,
    ) -> Result<HistoryWriter, HistoryError> {
        if Manifest::load(&root)?.is_some() {
            return Err(HistoryError::Exists { path: root });
        }
        HistoryWriter::open_on(root, meta, view, options, disk)
    }

    /// Continues the history in `root` after its last tick, or starts one. `meta` must be that of
    /// the existing history.
    pub fn open(
        root: impl Into<PathBuf>,
        meta: HistoryMeta,
        view: RegistryView,
        options: WriterOptions,
    ) -> Result<HistoryWriter, HistoryError> {
        HistoryWriter::open_on(root.into(), meta, view, options, Arc::new(FileSystem))
    }

    /// The same on another disk.
    pub fn open_on(
        root: PathBuf,
        meta: HistoryMeta,
        view: RegistryView,
        options: WriterOptions,
        disk: Arc<dyn Disk>,
    ) -> Result<HistoryWriter, HistoryError> {
        fs::create_dir_all(&root).map_err(HistoryError::io("create", &root))?;
        let lock = lock(&root)?;
        let describe = |e: serde_json::Error| HistoryError::Description {
            path: root.join(RUN_FILE),
            what: format!("cannot be written: {e}"),
        };
        if meta.windows.len() > MAX_WINDOWS {
            let what = format!("{} windows; at most {MAX_WINDOWS} fit", meta.windows.len());
            return Err(HistoryError::Value { table: Table::Features, what });
        }
        let run = meta.run_json().map_err(describe)?;
        let manifest = match Manifest::load(&root)? {
            Some(manifest) => {
                let found = HistoryMeta::load(&root)?;
                if found.run_json().map_err(describe)? != run {
                    let what = "set of windows, levels or versions (run.json)";
                    return Err(HistoryError::OtherRun { path: root, what });
                }
                if found.config_toml != meta.config_toml {
                    let what = "configuration (config.toml)";
                    return Err(HistoryError::OtherRun { path: root, what });
                }
                manifest
            }
            None => {
                replace_file(&*disk, &root.join(RUN_FILE), &run, options.durable)?;
                replace_file(
                    &*disk,
                    &root.join(CONFIG_FILE),
                    meta.config_toml.as_bytes(),
                    options.durable,
                )?;
                let manifest = Manifest {
                    schema_version: SCHEMA_VERSION,
                    last_tick: None,
                    digest: hex(&[0; 32]),
                    run_blake3: blake3::hash(&run).to_hex().to_string(),
                    config_blake3: blake3::hash(meta.config_toml.as_bytes()).to_hex().to_string(),
                    merges: None,
                    parts: Vec::new(),
                };
                write_manifest(&*disk, &root, &manifest, options.durable)?;
                manifest
            }
        };
        let chain = unhex(&manifest.digest).ok_or_else(|| HistoryError::Description {
            path: root.join(MANIFEST_FILE),
            what: "has a digest that is not 64 hex digits; restore it from a copy".to_owned(),
        })?;
        let digest = DecisionDigest::resume(meta.windows.len(), chain);
        let last_tick = manifest.last_tick;
        let catalog = Catalog::new(root, manifest, disk, &options, lock)?;
        Ok(HistoryWriter {
            context: Context::new(catalog, meta, options, view),
            stores: Stores::default(),
            last_tick,
            open: Open::default(),
            digest,
            rows_since_commit: 0,
        })
    }

    /// Fills the column `currency` of events. Without it the column is null.
    #[must_use]
    pub fn with_currencies(mut self, currency_of: Box<CurrencyOf>) -> HistoryWriter {
        self.context.currency_of = currency_of;
        self
    }

    /// The last closed tick: a continued run starts after it.
    pub fn last_tick(&self) -> Option<Tick> {
        self.last_tick
    }

    /// Digest over all decisions of closed ticks, in hex.
    pub fn digest(&self) -> String {
        self.digest.to_string()
    }

    /// Memory of all buffers, about.
    pub fn buffered_bytes(&self) -> usize {
        self.context.buffered_bytes
    }

    /// Events that entered the graph at `tick`, in order; may be called several times for a tick.
    pub fn events(&mut self, tick: Tick, events: &[Event]) -> Result<(), HistoryError> {
        self.make_room(Some(tick))?;
        let context = &mut self.context;
        for event in events {
            if context.facts(event.creative).level != Level::Creative {
                let key = context.key(event.creative.0);
                let what = format!("an event of `{key}`, which is not a creative");
                return Err(HistoryError::Value { table: Table::Events, what });
            }
        }
        for event in events {
            let facts = context.facts(event.creative);
            let day = day_of_us(event.time);
            let buffer = self.stores.events.of(facts.tenant, day, context);
            let check = buffer.push(tick, self.open.events as u32, event, &facts);
            self.open.events += 1;
            self.open.events_check = self.open.events_check.wrapping_add(check);
        }
        // A buffer can have become full only by as many rows as were handed over.
        context.full |= self.stores.events.has(context.options.rows_per_file);
        self.took(events.len(), EVENT_BYTES);
        self.open.dirty |= !events.is_empty();
        Ok(())
    }

    /// Closed windows.
    pub fn panes(&mut self, batch: &PaneBatch) -> Result<(), HistoryError> {
        self.make_room(None)?;
        let context = &mut self.context;
        let windows = context.meta.windows.len();
        if let Some(row) = batch.rows.iter().find(|row| usize::from(row.window) >= windows) {
            let what = format!("window {} of {windows} configured windows", row.window);
            return Err(HistoryError::Value { table: Table::Features, what });
        }
        let mut extras = batch.features.iter().peekable();
        for (at, row) in batch.rows.iter().enumerate() {
            let facts = context.facts(row.entity);
            let extra = extras.next_if(|(position, _)| *position as usize == at);
            let day = day_of_us(row.window_end);
            let buffer = self.stores.features.of(facts.tenant, day, context);
            buffer.push(row, facts.order, extra.map(|(_, row)| row));
        }
        context.full |= self.stores.features.has(context.options.rows_per_file);
        context.buffered_bytes += batch.features.len() * EXTRA_BYTES;
        self.took(batch.rows.len(), FEATURE_BYTES);
        Ok(())
    }

    /// Decisions in the order in which they were made.
    pub fn decisions(&mut self, decisions: &[Decision]) -> Result<(), HistoryError> {
        self.make_room(decisions.iter().map(|decision| decision.tick).min())?;
        let context = &mut self.context;
        for decision in decisions {
            let check = self.digest.absorb(decision);
            let day = day_of_tick(decision.tick);
            let buffer = self.stores.decisions.of(decision.entity.ancestors[0], day, context);
            buffer.push(self.open.decisions as u32, check, decision);
            self.open.decisions += 1;
        }
        context.full |= self.stores.decisions.has(context.options.rows_per_file);
        self.took(decisions.len(), DECISION_BYTES);
        self.open.dirty |= !decisions.is_empty();
        Ok(())
    }

    /// Actions emitted.
    pub fn actions(&mut self, actions: &[Action]) -> Result<(), HistoryError> {
        self.make_room(actions.iter().map(|action| action.tick).min())?;
        for action in actions {
            let tenant: Arc<str> = action.owner.tenant().into();
            self.stores.actions.of_name(Some(&tenant), day_of_tick(action.tick)).push(action);
        }
        self.took(actions.len(), SMALL_ROW_BYTES);
        self.open.dirty |= !actions.is_empty();
        Ok(())
    }

    /// The acknowledgements and observations among the controls of `tick`; other controls are kept
    /// by [`HistoryWriter::tick`] only.
    pub fn outcomes(&mut self, tick: Tick, controls: &[Control]) -> Result<(), HistoryError> {
        self.make_room(Some(tick))?;
        let mut rows = 0;
        for control in controls {
            let Some(entity) = outcome_entity(control) else { continue };
            let tenant: Arc<str> = entity.tenant().into();
            let buffer = self.stores.outcomes.of_name(Some(&tenant), day_of_tick(tick));
            buffer.push(tick, self.open.outcomes, control);
            self.open.outcomes += 1;
            rows += 1;
        }
        self.took(rows, SMALL_ROW_BYTES);
        self.open.dirty |= rows > 0;
        Ok(())
    }

    /// Input that was refused. Dead letters may carry any tick: they take no part in a replay.
    pub fn dead_letters(&mut self, letters: &[DeadLetter]) -> Result<(), HistoryError> {
        self.make_room(None)?;
        for letter in letters {
            let day = day_of_tick(letter.tick);
            self.stores.letters.of_name(letter.tenant.as_ref(), day).push(letter);
            self.context.buffered_bytes += letter_bytes(letter);
        }
        self.took(letters.len(), 0);
        Ok(())
    }

    /// Closes `tick` with the control inputs that took effect at it.
    pub fn tick(&mut self, tick: Tick, controls: &[Control]) -> Result<TickRecord, HistoryError> {
        self.make_room(Some(tick))?;
        let json = match controls {
            [] => None,
            controls => Some(serde_json::to_string(controls).map_err(|e| HistoryError::Value {
                table: Table::Ticks,
                what: format!("controls of tick {tick} cannot be written as JSON: {e}"),
            })?),
        };
        let open = std::mem::take(&mut self.open);
        let record = TickRecord {
            tick,
            events: open.events,
            events_check: open.events_check,
            controls: controls.to_vec(),
            decisions: open.decisions,
            digest: self.digest.close_tick(),
        };
        self.context.buffered_bytes += json.as_ref().map_or(0, String::len);
        self.stores.ticks.of_none(day_of_tick(tick)).push(&record, json);
        self.context.full |= self.stores.ticks.has(self.context.options.rows_per_file);
        self.took(1, TICK_BYTES);
        self.last_tick = Some(tick);
        self.open.dirty = false;
        Ok(record)
    }

    /// Commits every closed tick: afterwards readers see them. Between two ticks only; rows of a
    /// tick that is still open stay buffered until a later commit.
    pub fn flush(&mut self) -> Result<(), HistoryError> {
        if self.open.dirty || self.rows_since_commit == 0 {
            return Ok(());
        }
        for store in self.stores.all() {
            store.write_full(1, &mut self.context)?;
        }
        self.commit()?;
        self.context.buffered_bytes = 0;
        self.stores.all().into_iter().for_each(AnyStore::tidy);
        Ok(())
    }

    /// Commits and says what the history holds.
    pub fn finish(&mut self) -> Result<Summary, HistoryError> {
        if self.open.dirty {
            return Err(HistoryError::OpenTick);
        }
        self.flush()?;
        Ok(self.summary())
    }

    /// What the history holds as of the last commit.
    pub fn summary(&self) -> Summary {
        Summary::of(&self.context.catalog.manifest)
    }

    fn took(&mut self, rows: usize, row_bytes: usize) {
        self.context.buffered_bytes += rows * row_bytes;
        self.rows_since_commit += rows as u64;
    }

    /// Does the IO that is due before rows are taken. `tick` is the tick of the rows, if it orders.
    fn make_room(&mut self, tick: Option<Tick>) -> Result<(), HistoryError> {
        if let (Some(tick), Some(last)) = (tick, self.last_tick)
            && tick <= last
        {
            return Err(HistoryError::TickOrder { tick, last });
        }
        let due = self.context.options.commit_rows;
        if !self.open.dirty && due > 0 && self.rows_since_commit >= due {
            self.flush()?;
        }
        if self.context.full {
            let rows = self.context.options.rows_per_file;
            for store in self.stores.all() {
                store.write_full(rows, &mut self.context)?;
            }
            self.context.full = false;
        }
        while self.context.buffered_bytes > self.context.options.buffered_bytes_max {
            let stores = self.stores.all();
            let largest = (0..stores.len())
                .filter_map(|at| stores[at].largest().map(|(bytes, place)| (bytes, at, place)))
                .max_by_key(|(bytes, at, _)| (*bytes, std::cmp::Reverse(*at)));
            let Some((_, at, place)) = largest else { break };
            stores[at].write_slot(place, &mut self.context)?;
        }
        Ok(())
    }

    /// Renames what is pending and lists it.
    fn commit(&mut self) -> Result<(), HistoryError> {
        let Context { catalog, pending, .. } = &mut self.context;
        catalog.commit(pending, self.last_tick, self.digest.to_string())?;
        pending.clear();
        self.rows_since_commit = 0;
        Ok(())
    }

    /// The next small parts that are worth merging: to be run on another thread and then given to
    /// [`HistoryWriter::adopt`]. One job at a time: parts that are being merged would be planned
    /// again. [`super::BackgroundMerge`] does all of it.
    pub fn plan_merge(&mut self) -> Option<MergeJob> {
        let Context { catalog, meta, options, .. } = &mut self.context;
        MergeJob::next(catalog, meta, options)
    }

    /// Lists a merged part in place of those it replaces; readers see the same rows as before. Cheap:
    /// a rename and the manifest. At any time between two calls. After an error nothing has changed
    /// for readers and the call can be repeated.
    pub fn adopt(&mut self, merged: &mut Merged) -> Result<(), HistoryError> {
        self.context.catalog.adopt(std::slice::from_mut(merged))
    }
}

#[cfg(test)]
impl HistoryWriter {
    /// The process dies: nothing is tidied up, and the system releases the lock.
    pub(crate) fn crash(self) {
        self.context.catalog.release_lock();
        std::mem::forget(self);
    }
}

impl Drop for HistoryWriter {
    /// Removes what was not committed, best effort; the next opening does the rest.
    fn drop(&mut self) {
        for pending in &self.context.pending {
            if !pending.renamed {
                let _ = self.context.catalog.disk.remove(&pending.temporary);
            }
        }
    }
}
