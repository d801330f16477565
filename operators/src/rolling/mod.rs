//! Rolling features with dense state: the hot path of the engine.
//!
//! # How it works
//! Within a tick, deltas are first summed per entity ([`Slot`]); at the end of the tick each
//! touched entity takes its sum once and passes it on to its parent, so a level costs per touched
//! entity, not per event. An entity gathers the current *base pane* (the greatest grain that
//! divides every pane) and folds it into all windows when time moves on. A window is its sum plus
//! a [`pane_log`] of the panes it is made of; expiry pops the front.
//!
//! # Pane ends
//! At a pane end `e` every window of that grain yields one [`PaneRow`] for each entity that is not
//! empty. No tick sweeps everything: the rows of `e` are closed when their entity is next touched,
//! and otherwise by a sweep that goes on over the following ticks. What a row holds does not depend
//! on when it is closed, because a row is always closed before a later tick touches its entity.
//!
//! # Forgetting
//! See [`evict`]: an entity without a change for longer than anything looks back begins anew.
//!
//! # What it never does
//! It never looks at a clock, never iterates a hash map, and never lets the order of arrival
//! within a tick or the number of workers show in what it returns.

pub(crate) mod calendar;
mod cell;
mod curves;
mod evaluate;
mod evict;
mod export;
mod pane_log;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use self::calendar::Calendar;
use self::cell::{Cell, Grain};
use self::curves::Curves;
use crate::model::{
    DAY_US, EntityId, Event, EventKind, FeatureRow, HOUR_US, Level, NO_USER, PaneBatch, PaneRow,
    RegistryView, Stats, Tick, us_of_tick,
};
use crate::reach::{ReachState, Register};
use crate::spec::{FeatureSpec, PaneRows};
use crate::state::{Outgoing, StatePart};

/// Cells a sweep visits in one tick. 2¹⁴ cells cost about a millisecond.
const SWEEP_CELLS: usize = 1 << 14;

/// A pre-aggregated change on its way to the worker that owns an account or tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Up {
    /// Sums of one base pane.
    Sums { entity: EntityId, pane: i64, stats: Stats, user_impressions: i64 },
    /// A sketch register of one day.
    Register { entity: EntityId, day: i64, register: Register },
}

impl Up {
    pub(crate) fn entity(&self) -> EntityId {
        match self {
            Up::Sums { entity, .. } | Up::Register { entity, .. } => *entity,
        }
    }
}

/// What one tick brought out of one worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct TickRows {
    pub(crate) rows: Vec<FeatureRow>,
    pub(crate) panes: PaneBatch,
    /// Rows closed, whether emitted or only counted.
    pub(crate) panes_closed: u64,
    pub(crate) up: Vec<Up>,
}

/// Sum of the current tick for one entity: kept apart from the cell, for the cache's sake.
#[derive(Clone, Copy, Default)]
struct Slot {
    stats: Stats,
    user_impressions: i64,
    touched: bool,
}

/// A change of one base pane.
#[derive(Clone, Copy)]
struct Change {
    pane: i64,
    stats: Stats,
    user_impressions: i64,
}

/// A change of an entity outside the main pane of its tick, by level.
type Strays = [Vec<(EntityId, Change)>; 5];

/// Rolling features of the entities of one worker.
pub(crate) struct Rolling {
    part: StatePart,
    spec: Arc<FeatureSpec>,
    view: RegistryView,
    /// Levels whose cells live here; deltas of lower levels are rolled up to them, deltas of
    /// higher levels leave as [`Up`].
    home: [bool; 5],
    /// The highest level kept.
    top: Level,
    /// The window shrunk rates are formed over.
    widest: usize,
    base_us: i64,
    grain: Grain,
    /// Entity id to slot and cell number; `u32::MAX` for none.
    places: Vec<u32>,
    slots: Vec<Slot>,
    /// Sketches, apart from the cells as well: every impression of a known user looks here.
    reaches: Vec<ReachState>,
    cells: Vec<Cell>,
    calendars: Vec<Calendar>,
    touched: [Vec<u32>; 5],
    /// Before the main pane, and after it.
    strays: [Strays; 2],
    /// The tick being gathered, and the base pane most of its events fall into.
    tick: Tick,
    main: std::ops::Range<i64>,
    /// Boundary (as base pane number) up to which rows are due, and the tick that made them due.
    due: i64,
    due_tick: Tick,
    curves: Curves,
    active: Vec<u32>,
    sweep: usize,
    timers: BTreeMap<Tick, Vec<u32>>,
    /// How far evaluations are put off at this tick.
    calm: u8,
    /// A cell without a change for longer than this begins anew.
    keep_ms: u64,
    /// When cells are looked at whether they can be dropped; each cell is in it once.
    leaving: BTreeMap<Tick, Vec<u32>>,
    /// Places of dropped cells.
    vacant: Vec<u32>,
    export: Option<Outgoing>,
    /// Neither a sweep nor an export is under way: nothing has to happen before a change.
    quiet: bool,
    out: TickRows,
}

const NOWHERE: u32 = u32::MAX;

/// Ticks in a day.
const DAY_MS: u64 = (DAY_US / 1_000) as u64;

impl Rolling {
    /// `home` are the levels whose entities this operator owns.
    pub(crate) fn new(
        part: StatePart,
        spec: Arc<FeatureSpec>,
        view: RegistryView,
        home: &[Level],
    ) -> Rolling {
        let mut levels = [false; 5];
        for level in home {
            levels[*level as usize] = true;
        }
        Rolling {
            part,
            keep_ms: evict::keep_ms(&spec),
            base_us: spec.base_pane_us(),
            grain: Grain::new(&spec),
            widest: spec.widest(),
            top: spec.levels.iter().copied().min().unwrap_or(Level::Creative),
            spec,
            view,
            home: levels,
            places: Vec::new(),
            slots: Vec::new(),
            reaches: Vec::new(),
            cells: Vec::new(),
            calendars: Vec::new(),
            touched: Default::default(),
            strays: Default::default(),
            tick: 0,
            main: 0..0,
            due: i64::MIN,
            due_tick: 0,
            curves: Curves::default(),
            active: Vec::new(),
            sweep: 0,
            timers: BTreeMap::new(),
            calm: 0,
            leaving: BTreeMap::new(),
            vacant: Vec::new(),
            export: None,
            quiet: true,
            out: TickRows::default(),
        }
    }

    /// Starts gathering `tick`, which must be greater than every tick before.
    /// `calm` says how far evaluations are put off ([`crate::graph::Mark::calm`]).
    pub(crate) fn begin(&mut self, tick: Tick, calm: u8) {
        debug_assert!(tick > self.tick || self.tick == 0, "ticks ascend");
        (self.tick, self.calm) = (tick, calm);
        let start = (us_of_tick(tick) - 1).div_euclid(self.base_us) * self.base_us;
        self.main = start..start + self.base_us;
    }

    /// Takes one event of the current tick.
    #[inline]
    pub(crate) fn absorb(&mut self, event: &Event) {
        let place = self.place(event.creative);
        let known_user = event.user != NO_USER
            && event.kind == EventKind::Impression
            && self.spec.reach_days > 0;
        let user_impressions = if known_user { event.delta.impressions } else { 0 };
        if self.main.contains(&event.time) {
            let slot = &mut self.slots[place as usize];
            slot.stats += event.delta;
            slot.user_impressions += user_impressions;
            if !slot.touched {
                slot.touched = true;
                self.touched[Level::Creative as usize].push(place);
            }
        } else {
            let pane = event.time.div_euclid(self.base_us);
            self.stray(pane, event.creative, event.delta, user_impressions);
        }
        if known_user {
            let register = Register::of(event.user);
            self.raise(place, event.time.div_euclid(DAY_US), register);
        }
    }

    /// Takes one pre-aggregated change of the current tick from a lower level.
    pub(crate) fn absorb_up(&mut self, up: &Up) {
        match *up {
            Up::Sums { entity, pane, stats, user_impressions } => {
                let place = self.place(entity);
                if pane * self.base_us == self.main.start {
                    let level = self.cells[place as usize].level;
                    self.touch(place, level, stats, user_impressions);
                } else {
                    self.stray(pane, entity, stats, user_impressions);
                }
            }
            Up::Register { entity, day, register } => {
                let place = self.place(entity);
                self.raise(place, day, register);
            }
        }
    }

    #[inline]
    fn place(&mut self, entity: EntityId) -> u32 {
        match self.places.get(entity.index()) {
            Some(place) if *place != NOWHERE => *place,
            _ => self.settle(entity),
        }
    }

    /// Gives an entity its slot and cell.
    #[cold]
    fn settle(&mut self, entity: EntityId) -> u32 {
        let info = self.view.info(entity).clone();
        if self.places.len() <= entity.index() {
            self.places.resize(entity.index() + 1, NOWHERE);
        }
        let calendar = self.calendar(&info.time_zone);
        let keeps = self.home[info.level as usize] && self.spec.keeps(info.level);
        let windows = if keeps { self.spec.windows.len() } else { 0 };
        let cell = Cell::new(&info, calendar, windows, self.tick);
        let place = match self.vacant.pop() {
            Some(place) => {
                self.cells[place as usize] = cell;
                place
            }
            None => {
                self.cells.push(cell);
                self.slots.push(Slot::default());
                self.reaches.push(ReachState::new());
                u32::try_from(self.cells.len() - 1).unwrap_or(NOWHERE)
            }
        };
        self.places[entity.index()] = place;
        if self.home[info.level as usize] {
            self.leaving.entry(self.tick + self.keep_ms).or_default().push(place);
        }
        if info.level > Level::Campaign && self.home[Level::Campaign as usize] {
            let campaign = self.place(info.ancestors[Level::Campaign as usize]) as usize;
            self.cells[campaign].derived.lodgers += 1;
            if info.level == Level::Creative {
                let mut siblings = std::mem::take(&mut self.cells[campaign].derived.children);
                let at = siblings
                    .partition_point(|other| self.cells[*other as usize].order < info.order);
                siblings.insert(at, place);
                self.cells[campaign].derived.children = siblings;
            }
        }
        place
    }

    fn calendar(&mut self, zone: &Arc<TimeZone>) -> u16 {
        let known = self.calendars.iter().position(|calendar| calendar.zone == *zone);
        let at = known.unwrap_or_else(|| {
            self.calendars.push(Calendar::new(&self.spec.windows, zone.clone()));
            self.calendars.len() - 1
        });
        u16::try_from(at).expect("fewer time zones than 65536")
    }

    fn touch(&mut self, place: u32, level: Level, stats: Stats, user_impressions: i64) {
        let slot = &mut self.slots[place as usize];
        slot.stats += stats;
        slot.user_impressions += user_impressions;
        if !slot.touched {
            slot.touched = true;
            self.touched[level as usize].push(place);
        }
    }

    fn stray(&mut self, pane: i64, entity: EntityId, stats: Stats, user_impressions: i64) {
        let level = self.view.info(entity).level as usize;
        let ahead = usize::from(pane * self.base_us > self.main.start);
        self.strays[ahead][level].push((entity, Change { pane, stats, user_impressions }));
    }

    /// Raises a sketch register, and those above it for as long as something changes.
    #[inline]
    fn raise(&mut self, place: u32, day: i64, register: Register) {
        self.before_change(place);
        if self.reaches[place as usize].raise(day, register) {
            let cell = &self.cells[place as usize];
            let above = self.parent_here(cell.level).map(|_| cell.parent);
            self.raise_above(above, day, register);
        }
    }

    fn raise_above(&mut self, mut at: Option<EntityId>, day: i64, register: Register) {
        while let Some(entity) = at {
            let info = self.view.info(entity);
            let (level, ancestors) = (info.level, info.ancestors);
            if !self.home[level as usize] {
                self.out.up.push(Up::Register { entity, day, register });
                if level == Level::Account {
                    let tenant = ancestors[Level::Tenant as usize];
                    self.out.up.push(Up::Register { entity: tenant, day, register });
                }
                return;
            }
            let place = self.place(entity);
            self.before_change(place);
            if !self.reaches[place as usize].raise(day, register) {
                return;
            }
            at = self.parent_here(level).map(|parent| ancestors[parent as usize]);
        }
    }

    /// The level above, unless no level from there on is kept or this operator's deltas do not
    /// flow further (tenant and account both get theirs straight from the campaigns' worker).
    fn parent_here(&self, level: Level) -> Option<Level> {
        level.parent().filter(|_| self.home[Level::Campaign as usize] && level > self.top)
    }

    /// What is to be exported leaves, and rows that are due are closed, before anything of a later
    /// tick touches their cell.
    #[inline]
    fn before_change(&mut self, place: u32) {
        if self.quiet {
            return;
        }
        self.leave_first(place);
        let cell = &self.cells[place as usize];
        if cell.active && cell.closed < self.due {
            self.close(place, self.due);
        }
    }

    /// Ends the current tick: applies what was gathered, closes rows and evaluates entities.
    /// `all` also closes every row that is still due: no later tick will, or an export begins.
    pub(crate) fn finish(&mut self, all: bool) -> TickRows {
        let main = self.main.start.div_euclid(self.base_us);
        self.apply_strays(0);
        self.apply_main(main);
        self.apply_strays(1);
        self.close_due(all);
        self.evaluate_due();
        self.update_quiet();
        std::mem::take(&mut self.out)
    }

    /// Bottom up, as [`Rolling::apply_main`]: each entity takes its changes together, by pane, as a
    /// restatement brings many panes of few entities and every one that a window holds already costs
    /// the way to it.
    fn apply_strays(&mut self, ahead: usize) {
        let mut changes: Vec<Change> = Vec::new();
        for level in Level::ALL.into_iter().rev() {
            let mut strays = std::mem::take(&mut self.strays[ahead][level as usize]);
            strays.sort_unstable_by_key(|(entity, change)| (*entity, change.pane));
            let parent = self.parent_here(level);
            for same in strays.chunk_by(|a, b| a.0 == b.0) {
                let entity = same[0].0;
                changes.clear();
                for (_, change) in same {
                    match changes.last_mut().filter(|last| last.pane == change.pane) {
                        Some(last) => {
                            last.stats += change.stats;
                            last.user_impressions += change.user_impressions;
                        }
                        None => changes.push(*change),
                    }
                }
                if self.home[level as usize] {
                    let place = self.place(entity);
                    self.apply(place, &changes);
                } else {
                    let up = |&Change { pane, stats, user_impressions }: &Change| Up::Sums {
                        entity,
                        pane,
                        stats,
                        user_impressions,
                    };
                    self.out.up.extend(changes.iter().map(up));
                }
                if let Some(parent) = parent {
                    let above = self.view.info(entity).ancestors[parent as usize];
                    let above = changes.iter().map(|change| (above, *change));
                    self.strays[ahead][parent as usize].extend(above);
                }
            }
            strays.clear();
            self.strays[ahead][level as usize] = strays;
        }
    }

    /// Bottom up: each touched entity takes its sum of the tick and hands it on.
    fn apply_main(&mut self, main: i64) {
        for level in Level::ALL.into_iter().rev() {
            let mut touched = std::mem::take(&mut self.touched[level as usize]);
            for &place in &touched {
                let slot = std::mem::take(&mut self.slots[place as usize]);
                let parent = self.parent_here(level);
                let cell = &self.cells[place as usize];
                let (entity, above) = (cell.entity, parent.map(|_| cell.parent));
                let Slot { stats, user_impressions, .. } = slot;
                if self.home[level as usize] {
                    self.apply(place, &[Change { pane: main, stats, user_impressions }]);
                } else {
                    self.out.up.push(Up::Sums { entity, pane: main, stats, user_impressions });
                }
                if let (Some(parent), Some(above)) = (parent, above) {
                    let above = self.place(above);
                    self.touch(above, parent, slot.stats, slot.user_impressions);
                }
            }
            touched.clear();
            self.touched[level as usize] = touched;
        }
    }

    /// Adds changes, which are not none and ascend, to a cell of this operator.
    fn apply(&mut self, place: u32, changes: &[Change]) {
        self.before_change(place);
        let (due, pane) = (self.due, changes[0].pane);
        let cell = &mut self.cells[place as usize];
        let changed = std::mem::replace(&mut cell.changed, self.tick);
        if changed / DAY_MS != self.tick / DAY_MS {
            self.first_of_day(place, changed, pane * self.base_us);
        }
        let cell = &mut self.cells[place as usize];
        if cell.windows.is_empty() {
            return;
        }
        if !cell.active {
            cell.active = true;
            self.active.push(place);
            cell.closed = cell.closed.max(due).max(pane);
            cell.skip_closed(&mut self.calendars[usize::from(cell.calendar)].panes, &self.grain);
        }
        let late = changes.partition_point(|change| change.pane < cell.closed);
        let (late, rest) = changes.split_at(late);
        if !late.is_empty() {
            let panes = &mut self.calendars[usize::from(cell.calendar)].panes;
            let sums = late.iter().map(|change| (change.pane, change.stats));
            cell.amend(sums, panes, &self.grain);
            late.iter().for_each(|change| self.derive(place, change));
        }
        for change in rest {
            if change.pane > self.cells[place as usize].closed {
                self.close(place, change.pane);
            }
            let cell = &mut self.cells[place as usize];
            let panes = &mut self.calendars[usize::from(cell.calendar)].panes;
            cell.add(change.pane, &change.stats, panes, &self.grain);
            self.derive(place, change);
        }
        self.schedule_touched(place);
    }

    /// Tells a change to what is kept of a cell besides its windows.
    #[inline]
    fn derive(&mut self, place: u32, change: &Change) {
        let Change { pane, stats, user_impressions } = change;
        let time = pane * self.base_us;
        if *user_impressions != 0 {
            self.reaches[place as usize].count(time.div_euclid(DAY_US), *user_impressions);
        }
        if self.spec.cadence.is_some() || self.spec.pane_rows == PaneRows::Emit {
            let cell = &mut self.cells[place as usize];
            cell.derived.fatigue.add(
                &self.spec.fatigue,
                time.div_euclid(DAY_US),
                stats.impressions,
                stats.clicks,
            );
            if let Some(anomaly) = &mut cell.derived.anomaly {
                anomaly.add(time.div_euclid(HOUR_US), stats, &self.spec.anomaly);
            }
        }
    }

    /// Closes the rows of one cell for every pane end up to the start of base pane `until`.
    fn close(&mut self, place: u32, until: i64) {
        let cell = &mut self.cells[place as usize];
        let calendar = &mut self.calendars[usize::from(cell.calendar)];
        let (spec, base_us, entity) = (&self.spec, self.base_us, cell.entity);
        let emit = spec.pane_rows == PaneRows::Emit;
        let (due, due_tick, tick) = (self.due, self.due_tick, self.tick);
        let first = self.out.panes.rows.len();
        let out = &mut self.out;
        let mut slow = false;
        cell.close(until, calendar, &self.grain, |window, pane, sums, panes| {
            out.panes_closed += 1;
            if emit {
                let at = usize::from(window);
                let window_end = panes[at].start(pane);
                // A pane end is first passed either by the newest swept boundary or right now.
                let tick = if window_end <= due.saturating_mul(base_us) { due_tick } else { tick };
                out.panes.rows.push(PaneRow { entity, window, window_end, sums: *sums, tick });
                slow |= spec.is_slow(at);
            }
        });
        if slow {
            self.attach_features(place, until, first);
        }
    }

    /// Gives the rows of slow windows, among those closed from position `first` on, the feature row
    /// of their entity as of the start of base pane `until`.
    fn attach_features(&mut self, place: u32, until: i64, first: usize) {
        let tick = self.out.panes.rows[self.out.panes.rows.len() - 1].tick;
        let now = until * self.base_us;
        if self.spec.cadence.is_none() {
            // Nobody evaluates: the rows themselves are the evaluations.
            self.settle_verdicts(place, now);
        }
        let row = self.row(place, now, tick);
        let PaneBatch { rows, features } = &mut self.out.panes;
        for (at, closed) in rows.iter().enumerate().skip(first) {
            if self.spec.is_slow(usize::from(closed.window)) {
                features.push((at as u32, row));
            }
        }
    }

    /// Closes rows that are due: all cells before the next boundary, a chunk of them in each tick.
    fn close_due(&mut self, all: bool) {
        let boundary = us_of_tick(self.tick).div_euclid(self.base_us);
        if boundary > self.due {
            self.sweep(usize::MAX);
            self.drop_silent();
            (self.due, self.due_tick) = (boundary, self.tick);
            self.curves.keep();
            self.sweep = self.active.len();
        }
        self.sweep(if all { usize::MAX } else { SWEEP_CELLS });
    }

    /// Visits up to `limit` active cells from the back, and drops those that have become empty.
    fn sweep(&mut self, limit: usize) {
        for _ in 0..limit.min(self.sweep) {
            self.sweep -= 1;
            let place = self.active[self.sweep];
            self.leave_first(place);
            if self.cells[place as usize].closed < self.due {
                self.close(place, self.due);
            }
            if self.cells[place as usize].is_empty() {
                self.cells[place as usize].active = false;
                self.active.swap_remove(self.sweep);
            }
        }
    }

    fn update_quiet(&mut self) {
        self.quiet = self.sweep == 0 && self.export.is_none();
    }

    /// True when no row that is due is still to be closed.
    pub(crate) fn is_settled(&self) -> bool {
        self.sweep == 0
    }

    /// Entities that have a cell.
    pub(crate) fn live_cells(&self) -> usize {
        self.cells.len() - self.vacant.len()
    }

    /// Bytes of state on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        let timers = |timers: &BTreeMap<Tick, Vec<u32>>| {
            timers.values().map(|places| places.capacity() * size_of::<u32>() + 48).sum::<usize>()
        };
        self.cells.iter().map(Cell::heap_bytes).sum::<usize>()
            + self.reaches.iter().map(ReachState::heap_bytes).sum::<usize>()
            + self.cells.capacity() * size_of::<Cell>()
            + self.slots.capacity() * size_of::<Slot>()
            + self.reaches.capacity() * size_of::<ReachState>()
            + (self.places.capacity() + self.active.capacity() + self.vacant.capacity())
                * size_of::<u32>()
            + timers(&self.timers)
            + timers(&self.leaving)
    }
}
