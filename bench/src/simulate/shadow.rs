//! What must be true, kept beside the engine from what was sent to it and what it answered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use omnify_decision::action::Id;
use omnify_operators::model::{EntityKey, EventTime, Registry, RegistryView, Stats, Tick};
use omnify_sinks::disk::Disk;
use omnify_sinks::journal::{JournalOptions, JournalWriter, TickEntry};

/// A report row as it was sent.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) creative: EntityKey,
    pub(super) start: EventTime,
    pub(super) as_of: EventTime,
    pub(super) totals: Stats,
}

/// See the module.
pub(super) struct Shadow {
    /// Copies of each event that were taken in, by the number that is its cost.
    pub(super) copies: BTreeMap<i64, u32>,
    /// The newest totals of each interval that were taken in.
    pub(super) reports: BTreeMap<(EntityKey, EventTime), (EventTime, Stats)>,
    /// Actions that the stage has decided on: owner, tick and what for.
    pub(super) actions: BTreeMap<Id, String>,
    /// The last tick that was seen to be durable.
    pub(super) durable: Tick,
    /// Ticks that were handed to the journal and may or may not be durable.
    open: Vec<TickEntry>,
    /// Every durable tick, for the run without disturbance.
    journal: JournalWriter,
    registry: Arc<Registry>,
    pub(super) ticks: u64,
}

impl Shadow {
    /// Keeps its journal in `dir`.
    pub(super) fn new(disk: Arc<dyn Disk>, dir: &Path) -> anyhow::Result<Shadow> {
        let registry = Arc::new(Registry::utc());
        let view = RegistryView::new(registry.clone());
        let (journal, _) = JournalWriter::open_on(disk, dir, JournalOptions::default(), view)?;
        Ok(Shadow {
            copies: BTreeMap::new(),
            reports: BTreeMap::new(),
            actions: BTreeMap::new(),
            durable: 0,
            open: Vec::new(),
            journal,
            registry,
            ticks: 0,
        })
    }

    /// A body with these rows was taken in.
    pub(super) fn taken(&mut self, events: &[i64], reports: &[Report]) {
        for number in events {
            *self.copies.entry(*number).or_default() += 1;
        }
        for report in reports {
            let known = self.reports.entry((report.creative.clone(), report.start));
            let known = known.or_insert((EventTime::MIN, Stats::ZERO));
            if report.as_of > known.0 {
                *known = (report.as_of, report.totals);
            }
        }
    }

    /// Ticks on their way to the journal; `theirs` names the entities in them.
    pub(super) fn closed(&mut self, entries: Vec<TickEntry>, theirs: &Arc<Registry>) {
        let mut view = RegistryView::new(theirs.clone());
        for mut entry in entries {
            for event in &mut entry.events {
                event.creative = self.registry.intern(&view.info(event.creative).key);
            }
            for row in &mut entry.reports {
                row.key.creative = self.registry.intern(&view.info(row.key.creative).key);
            }
            self.open.push(entry);
        }
    }

    /// Everything up to `tick` is durable.
    pub(super) fn reached(&mut self, tick: Tick) -> anyhow::Result<()> {
        self.durable = self.durable.max(tick);
        let durable = self.open.iter().take_while(|entry| entry.tick <= tick).count();
        for entry in self.open.drain(..durable) {
            self.journal.append(&entry)?;
            self.ticks += 1;
        }
        self.journal.commit()?;
        Ok(())
    }

    /// A new life stands at `tick`: nothing durable may be missing, and what was not durable is there
    /// from its beginning up to some tick (invariant 11).
    pub(super) fn recovered(&mut self, tick: Tick) -> anyhow::Result<()> {
        let durable = self.durable;
        anyhow::ensure!(
            tick >= durable,
            "tick {durable} was durable, and the engine goes on from {tick}"
        );
        let known = tick == durable || self.open.iter().any(|entry| entry.tick == tick);
        anyhow::ensure!(known, "the engine goes on from {tick}, which was never closed");
        self.reached(tick)?;
        self.open.clear();
        Ok(())
    }

    /// Where its journal is, once nothing more comes.
    pub(super) fn finish(self) -> anyhow::Result<PathBuf> {
        let dir = self.journal.dir().to_owned();
        let state = dir.parent().context("a journal is in a state folder")?;
        Ok(state.to_owned())
    }
}
