//! The state of one entity: its open base pane, its windows, and what is derived from them.

use serde::{Deserialize, Serialize};

use crate::anomaly::AnomalyWatch;
use crate::estimate::Prior;
use crate::fatigue::FatigueTracker;
use crate::maturity::{Curve, Weighed};
use crate::model::{EntityId, EntityInfo, EventTime, Level, MAX_WINDOWS, Stats, Tick};
use crate::rolling::calendar::{Calendar, Panes};
use crate::rolling::pane_log::PaneLog;
use crate::spec::FeatureSpec;

/// One window: `sum` = `last` + everything in `log`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct WindowState {
    sum: Stats,
    /// The newest pane, still open to the base panes folded into it; `Stats::ZERO` for none.
    last_pane: i64,
    last: Stats,
    log: PaneLog,
    /// Rows are closed for pane ends up to the start of this pane.
    closed: i64,
}

impl WindowState {
    /// Adds a change to pane `pane`, which is not older than the newest.
    fn add(&mut self, pane: i64, stats: &Stats) {
        debug_assert!(pane >= self.last_pane, "panes come in order");
        self.sum += *stats;
        if pane == self.last_pane {
            self.last += *stats;
        } else {
            if !self.last.is_empty() {
                self.log.push(self.last_pane, &self.last);
            }
            (self.last_pane, self.last) = (pane, *stats);
        }
    }

    /// Adds changes to panes of any age, which ascend.
    fn amend(&mut self, changes: &[(i64, Stats)]) {
        let older = changes.partition_point(|(pane, _)| *pane < self.last_pane);
        let (older, rest) = changes.split_at(older);
        if !older.is_empty() {
            older.iter().for_each(|(_, stats)| self.sum += *stats);
            self.log.amend(older);
        }
        rest.iter().for_each(|(pane, stats)| self.add(*pane, stats));
    }

    /// Drops every pane up to and including `pane`.
    fn expire(&mut self, pane: i64) {
        while let Some((_, stats)) = self.log.pop_until(pane) {
            self.sum -= stats;
        }
        if self.last_pane <= pane && !self.last.is_empty() {
            self.sum -= self.last;
            self.last = Stats::ZERO;
        }
    }

    fn is_empty(&self) -> bool {
        self.last.is_empty() && self.log.is_empty()
    }
}

/// In what steps deltas enter the windows: base panes enter the windows of that grain one by one,
/// and all others together, once in a coarse pane.
#[derive(Clone, Debug)]
pub(super) struct Grain {
    pub(super) base_us: i64,
    /// Length of a coarse pane in base panes; 0 when no window is coarse.
    ratio: i64,
    /// By window.
    is_coarse: Vec<bool>,
}

impl Grain {
    pub(super) fn new(spec: &FeatureSpec) -> Grain {
        let (ratio, is_coarse) = spec.coarse_grain();
        Grain { base_us: spec.base_pane_us(), ratio, is_coarse }
    }
}

/// Priors of CTR and CVR, learned from a campaign's creatives at most once per base pane. The ones
/// before are kept for rows that are closed after the change but belong before it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Priors {
    pub(super) since: Tick,
    pub(super) now: (Prior, Prior),
    pub(super) before: Option<(Prior, Prior)>,
}

/// The state of one entity. What every pane end looks at is here and in `windows`; the rest is
/// behind a pointer, for the cache's sake.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Cell {
    pub(super) entity: EntityId,
    pub(super) parent: EntityId,
    pub(super) campaign: EntityId,
    pub(super) level: Level,
    pub(super) order: u64,
    /// A number of this process, like places: not exported.
    #[serde(skip)]
    pub(super) calendar: u16,
    /// In the sweep list.
    pub(super) active: bool,
    /// Rows are closed for pane ends up to the start of this base pane.
    pub(super) closed: i64,
    /// The newest base pane, not yet in any window; `NONE` when everything is.
    open_pane: i64,
    open: Stats,
    /// The base panes before this one, back to the start of their coarse pane, are not yet in the
    /// coarse windows; `NONE` when everything is.
    coarse_until: i64,
    coarse: Stats,
    /// Empty when the level of the entity is not kept.
    pub(super) windows: Box<[WindowState]>,
    /// Tick of the newest change.
    pub(super) changed: Tick,
    pub(super) evaluated: Option<Tick>,
    /// When it is evaluated next; `Tick::MAX` for never.
    pub(super) due: Tick,
    pub(super) derived: Box<Derived>,
}

/// What evaluations read besides the windows.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Derived {
    pub(super) fatigue: FatigueTracker,
    pub(super) anomaly: Option<Box<AnomalyWatch>>,
    /// Creatives of a campaign, in stable order.
    #[serde(skip)]
    pub(super) children: Vec<u32>,
    /// Cells below a campaign, which read its priors.
    #[serde(skip)]
    pub(super) lodgers: u32,
    /// What a campaign lends its creatives.
    pub(super) priors: Option<Priors>,
}

/// No pane: after every pane there is.
const NONE: i64 = i64::MAX;

impl Cell {
    pub(super) fn new(info: &EntityInfo, calendar: u16, windows: usize, tick: Tick) -> Cell {
        let parent = info.level.parent().map_or(info.id, |level| info.ancestors[level as usize]);
        Cell {
            entity: info.id,
            parent,
            campaign: info.ancestors[Level::Campaign as usize],
            level: info.level,
            order: info.order,
            calendar,
            active: false,
            closed: i64::MIN,
            open_pane: NONE,
            open: Stats::ZERO,
            coarse_until: NONE,
            coarse: Stats::ZERO,
            windows: vec![WindowState::default(); windows].into(),
            changed: tick,
            evaluated: None,
            due: Tick::MAX,
            derived: Box::new(Derived {
                anomaly: (info.level <= Level::Campaign).then(Box::default),
                ..Derived::default()
            }),
        }
    }

    /// Adds a change of base pane `pane`, at which rows are closed (`pane == closed`).
    #[inline]
    pub(super) fn add(&mut self, pane: i64, stats: &Stats, panes: &mut [Panes], grain: &Grain) {
        debug_assert_eq!(pane, self.closed, "rows are closed up to it, and not beyond");
        if pane == self.open_pane {
            self.open += *stats;
        } else {
            self.fold(panes, grain);
            (self.open_pane, self.open) = (pane, *stats);
        }
    }

    /// Adds changes of base panes that ascend, whose ends are closed (`pane < closed`).
    pub(super) fn amend(
        &mut self,
        changes: impl Iterator<Item = (i64, Stats)> + Clone,
        panes: &mut [Panes],
        grain: &Grain,
    ) {
        let mut of_window: Vec<(i64, Stats)> = Vec::new();
        for (window, panes) in self.windows.iter_mut().zip(panes) {
            of_window.clear();
            for (pane, stats) in changes.clone() {
                let pane = panes.of(pane * grain.base_us);
                // The next row to close reaches back this far; older panes are in no window.
                if pane <= window.closed - panes.count() {
                    continue;
                }
                match of_window.last_mut().filter(|last| last.0 == pane) {
                    Some(last) => last.1 += stats,
                    None => of_window.push((pane, stats)),
                }
            }
            window.amend(&of_window);
        }
    }

    /// Moves the open base pane on.
    fn fold(&mut self, panes: &mut [Panes], grain: &Grain) {
        if self.open_pane == NONE {
            return;
        }
        let (pane, open) = (self.open_pane, std::mem::take(&mut self.open));
        self.open_pane = NONE;
        if open.is_empty() {
            return;
        }
        if grain.ratio > 0 {
            // Base panes open in ascending order.
            if pane >= self.coarse_until {
                self.fold_coarse(panes, grain);
            }
            if self.coarse_until == NONE {
                self.coarse_until = (pane.div_euclid(grain.ratio) + 1) * grain.ratio;
            }
            self.coarse += open;
        }
        self.add_to(false, pane, &open, panes, grain);
    }

    /// Moves the coarse pane into its windows.
    #[inline(never)]
    fn fold_coarse(&mut self, panes: &mut [Panes], grain: &Grain) {
        let (pane, coarse) = (self.coarse_until - grain.ratio, std::mem::take(&mut self.coarse));
        self.coarse_until = NONE;
        if !coarse.is_empty() {
            self.add_to(true, pane, &coarse, panes, grain);
        }
    }

    /// Adds a change of base pane `pane` to the windows that are (or are not) coarse.
    fn add_to(
        &mut self,
        coarse: bool,
        pane: i64,
        stats: &Stats,
        panes: &mut [Panes],
        grain: &Grain,
    ) {
        let time = pane * grain.base_us;
        for ((window, panes), is_coarse) in self.windows.iter_mut().zip(panes).zip(&grain.is_coarse)
        {
            if *is_coarse == coarse {
                window.add(panes.of(time), stats);
            }
        }
    }

    /// Declares every pane end up to the start of base pane `self.closed` closed without rows.
    pub(super) fn skip_closed(&mut self, panes: &mut [Panes], grain: &Grain) {
        let until = self.closed * grain.base_us;
        for (window, panes) in self.windows.iter_mut().zip(panes) {
            window.closed = window.closed.max(panes.of(until));
        }
    }

    /// Closes rows for every pane end up to the start of base pane `until`, each given to `emit` as
    /// (window, the pane that begins there, sums).
    pub(super) fn close(
        &mut self,
        until: i64,
        calendar: &mut Calendar,
        grain: &Grain,
        mut emit: impl FnMut(u8, i64, &Stats, &[Panes]),
    ) {
        // The open pane is `closed` or older, so it ends at or before `until`; and a pane of a
        // coarse window that ends by then is not before the end of the coarse pane.
        self.fold(&mut calendar.panes, grain);
        if until >= self.coarse_until {
            self.fold_coarse(&mut calendar.panes, grain);
        }
        let (ended, panes) = calendar.ended(self.closed, until, grain.base_us);
        self.closed = until;
        for (at, last) in ended {
            let width = panes[usize::from(*at)].count();
            let window = &mut self.windows[usize::from(*at)];
            while window.closed < *last {
                window.closed += 1;
                window.expire(window.closed - width - 1);
                if !window.sum.is_empty() {
                    emit(*at, window.closed, &window.sum, panes);
                } else if window.is_empty() {
                    window.closed = *last;
                }
            }
        }
    }

    /// Sums of every window as of `now`; rows must be closed up to it.
    pub(super) fn read(
        &mut self,
        now: EventTime,
        panes: &mut [Panes],
        grain: &Grain,
    ) -> [Stats; MAX_WINDOWS] {
        let mut sums = [Stats::ZERO; MAX_WINDOWS];
        for (at, sum) in sums.iter_mut().enumerate().take(self.windows.len()) {
            *sum = self.sums(at, now, panes, grain);
        }
        sums
    }

    /// Sums of one window as of `now`.
    pub(super) fn sums(
        &mut self,
        at: usize,
        now: EventTime,
        panes: &mut [Panes],
        grain: &Grain,
    ) -> Stats {
        let Some(window) = self.windows.get_mut(at) else { return Stats::ZERO };
        window.expire(panes[at].of(now) - panes[at].count());
        // The open panes hold or follow the newest closed pane end: they are in every window.
        let sum = window.sum + self.open;
        if grain.is_coarse[at] { sum + self.coarse } else { sum }
    }

    /// The clicks of one window, weighted by the completeness of their days; what has left the
    /// window must have expired.
    pub(super) fn weigh(
        &self,
        at: usize,
        curve: &Curve,
        panes: &[Panes],
        grain: &Grain,
    ) -> Weighed {
        let mut weighed = Weighed::default();
        let Some(window) = self.windows.get(at) else { return weighed };
        let last = (!window.last.is_empty()).then_some((window.last_pane, window.last));
        for (pane, stats) in window.log.iter().chain(last) {
            let middle = panes[at].start(pane).midpoint(panes[at].start(pane + 1));
            weighed.add(curve, curve.day_of(middle), stats.clicks);
        }
        let mut open = |pane: i64, stats: &Stats| {
            if !stats.is_empty() {
                weighed.add(curve, curve.day_of(pane * grain.base_us), stats.clicks);
            }
        };
        open(self.open_pane, &self.open);
        if grain.is_coarse[at] {
            open(self.coarse_until - 1, &self.coarse);
        }
        weighed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
            && self.coarse.is_empty()
            && self.windows.iter().all(WindowState::is_empty)
    }

    /// True when it has had cost from base pane `pane` on, which is the newest or the one before.
    pub(super) fn spends(&self, pane: i64) -> bool {
        self.open_pane >= pane && self.open.cost_micros != 0
    }

    /// Forgets everything that is older than the windows.
    pub(super) fn renew(&mut self) {
        self.evaluated = None;
        self.derived.fatigue = FatigueTracker::default();
        self.derived.anomaly = self.derived.anomaly.as_ref().map(|_| Box::default());
        self.derived.priors = None;
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let logs: usize = self.windows.iter().map(|window| window.log.heap_bytes()).sum();
        let derived = size_of::<Derived>()
            + self.derived.fatigue.heap_bytes()
            + self.derived.anomaly.as_ref().map_or(0, |_| size_of::<AnomalyWatch>())
            + self.derived.children.capacity() * size_of::<u32>();
        logs + self.windows.len() * size_of::<WindowState>() + derived
    }
}
