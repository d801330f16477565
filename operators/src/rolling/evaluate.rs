//! When entities are evaluated, and what an evaluation says.
//!
//! Every entity has periods that begin at a phase of its own: entities that came together would
//! otherwise be evaluated together for ever, a burst each period. A changed entity is evaluated at the
//! tick of the change if it was not in this period, otherwise when the next one begins; an entity that
//! does not change, once in a longer period. Under overload (the tick's level of calm) periods are
//! longer, and none is lost: an evaluation that was put off comes when the longer period has passed.
//! Windows and pane ends know nothing of all this.

use super::Rolling;
use super::cell::{Cell, Priors};
use crate::estimate::Prior;
use crate::maturity::nowcast;
use crate::model::{DAY_US, FeatureRow, HOUR_US, Level, Tick, us_of_tick};
use crate::spec::Cadence;

/// Evaluations that are put off come this many times more rarely.
const CALM_FACTOR: u64 = 8;

/// When the first of a cell's periods of `length_ms` begins that begins after `tick`.
fn next_period(cell: &Cell, tick: Tick, length_ms: u64) -> Tick {
    tick + 1 + cell.order.wrapping_sub(tick + 1) % length_ms.max(1)
}

impl Rolling {
    pub(super) fn schedule_touched(&mut self, place: u32) {
        if let Some(cadence) = self.spec.cadence {
            let cell = &self.cells[place as usize];
            let due = match cell.evaluated {
                Some(last) => next_period(cell, last, self.gap_ms(cell, cadence)).max(self.tick),
                None => self.tick,
            };
            self.schedule(place, due);
        }
    }

    /// Evaluates a cell at `due` unless it is to be evaluated before.
    fn schedule(&mut self, place: u32, due: Tick) {
        let cell = &mut self.cells[place as usize];
        if due < cell.due {
            cell.due = due;
            self.timers.entry(due).or_default().push(place);
        }
    }

    /// The length of a cell's periods.
    fn gap_ms(&self, cell: &Cell, cadence: Cadence) -> u64 {
        let calm = match cell.level {
            Level::Creative | Level::AdGroup => self.calm >= 1,
            Level::Campaign => {
                self.calm >= 3 && !cell.spends(self.main.start.div_euclid(self.base_us))
            }
            Level::Account | Level::Tenant => false,
        };
        if calm { cadence.busy_ms * CALM_FACTOR } else { cadence.busy_ms }
    }

    /// Until when the evaluation of a cell that is due now is put off, if it is.
    fn put_off(&self, place: u32, cadence: Cadence) -> Option<Tick> {
        let cell = &self.cells[place as usize];
        let last = cell.evaluated.filter(|_| self.calm > 0)?;
        let rested = next_period(cell, last, self.gap_ms(cell, cadence));
        if rested > self.tick {
            return Some(rested);
        }
        let idle = cell.changed <= last;
        let later = (cadence.idle_ms / CALM_FACTOR).max(cadence.busy_ms * CALM_FACTOR).max(1);
        (idle && self.calm >= 2).then_some(self.tick + later)
    }

    /// Evaluates every cell whose time has come.
    pub(super) fn evaluate_due(&mut self) {
        let Some(cadence) = self.spec.cadence else { return };
        let mut due = Vec::new();
        while let Some(entry) = self.timers.first_entry().filter(|entry| *entry.key() <= self.tick)
        {
            let (when, places) = entry.remove_entry();
            for place in places {
                // A timer that was overtaken by an earlier one has nothing left to do.
                if self.cells[place as usize].due != when {
                    continue;
                }
                self.leave_first(place);
                self.cells[place as usize].due = Tick::MAX;
                match self.put_off(place, cadence) {
                    Some(later) => self.schedule(place, later),
                    None => due.push(place),
                }
            }
        }
        // Campaigns before their creatives, which shrink toward them; never by order of arrival.
        due.sort_unstable_by_key(|place| {
            let cell = &self.cells[*place as usize];
            (cell.level, cell.order)
        });
        for place in due {
            self.evaluate(place);
            let tick = self.tick;
            let cell = &mut self.cells[place as usize];
            cell.evaluated = Some(tick);
            if !cell.is_empty() {
                let due = next_period(cell, tick, cadence.idle_ms);
                self.schedule(place, due);
            }
        }
    }

    fn evaluate(&mut self, place: u32) {
        let now = us_of_tick(self.tick);
        let boundary = now.div_euclid(self.base_us);
        if self.cells[place as usize].closed < boundary {
            self.close(place, boundary);
        }
        self.learn_priors(place, boundary);
        self.settle_verdicts(place, now);
        let row = self.row(place, now, self.tick);
        self.out.rows.push(row);
    }

    /// Moves the verdicts with a memory (fatigue, anomaly) on to `now`. Only evaluations do this,
    /// so that it makes no difference whether closed rows are written or counted.
    pub(super) fn settle_verdicts(&mut self, place: u32, now: i64) {
        let spec = &self.spec;
        let cell = &mut self.cells[place as usize];
        let frequency =
            self.reaches[place as usize].over(now.div_euclid(DAY_US), spec.reach_days).frequency;
        let today = (now - 1).div_euclid(DAY_US);
        let verdict = cell.derived.fatigue.assess(&spec.fatigue, today, frequency);
        cell.derived.fatigue.settle(&verdict);
        if let Some(watch) = &mut cell.derived.anomaly {
            watch.close(now.div_euclid(HOUR_US), &spec.anomaly);
        }
    }

    /// The features of a cell as of `now`, known at `tick`; expires what has left the windows.
    pub(super) fn row(&mut self, place: u32, now: i64, tick: Tick) -> FeatureRow {
        let (ctr_prior, cvr_prior) = self.priors_of(place, tick);
        let cell = &mut self.cells[place as usize];
        let panes = &mut self.calendars[usize::from(cell.calendar)].panes;
        let windows = cell.read(now, panes, &self.grain);
        let sums = windows[self.widest];
        let curve = self.curve_of(place, tick);
        let (trials, weighed) = self.trials(place, &sums, curve.as_deref());
        let maturity =
            curve.zip(weighed).map(|(curve, weighed)| nowcast(&curve, cvr_prior, &sums, &weighed));
        let spec = &self.spec;
        let cell = &self.cells[place as usize];
        let reach = self.reaches[place as usize].over(now.div_euclid(DAY_US), spec.reach_days);
        // At midnight the day that has just ended is still the newest with anything in it.
        let today = (now - 1).div_euclid(DAY_US);
        let hour = now.div_euclid(HOUR_US);
        FeatureRow {
            entity: cell.entity,
            tick,
            windows,
            ctr: ctr_prior.posterior(sums.clicks, sums.impressions),
            cvr: cvr_prior.posterior(sums.conversions, trials),
            reach,
            fatigue: cell.derived.fatigue.assess(&spec.fatigue, today, reach.frequency),
            anomaly: cell
                .derived
                .anomaly
                .as_ref()
                .map_or_else(Default::default, |watch| watch.clone().close(hour, &spec.anomaly)),
            maturity,
        }
    }

    /// Creatives and ad groups shrink toward their campaign; everything above toward the default.
    fn priors_of(&self, place: u32, tick: Tick) -> (Prior, Prior) {
        let cell = &self.cells[place as usize];
        let campaign = match cell.level {
            Level::Creative | Level::AdGroup => self.places.get(cell.campaign.index()),
            _ => None,
        };
        campaign
            .and_then(|place| self.cells.get(*place as usize)?.derived.priors)
            .and_then(|priors| if priors.since <= tick { Some(priors.now) } else { priors.before })
            .unwrap_or((self.spec.ctr_prior, self.spec.cvr_prior))
    }

    /// Learns the priors of a campaign from its creatives, once per base pane.
    fn learn_priors(&mut self, place: u32, boundary: i64) {
        let start = boundary * self.base_us;
        let cell = &mut self.cells[place as usize];
        let known = cell.derived.priors.is_some_and(|priors| us_of_tick(priors.since) >= start);
        if cell.level != Level::Campaign || known {
            return;
        }
        let children = std::mem::take(&mut cell.derived.children);
        let curve = self.curve_of(place, self.tick);
        let mut rates = Vec::with_capacity(children.len());
        for &child in &children {
            self.leave_first(child);
            if self.cells[child as usize].active && self.cells[child as usize].closed < boundary {
                self.close(child, boundary);
            }
            let cell = &mut self.cells[child as usize];
            let panes = &mut self.calendars[usize::from(cell.calendar)].panes;
            let sums = cell.sums(self.widest, start, panes, &self.grain);
            let (trials, _) = self.trials(child, &sums, curve.as_deref());
            rates.push([(sums.clicks, sums.impressions), (sums.conversions, trials)]);
        }
        let learn = |at: usize, fallback| Prior::learn(rates.iter().map(|pair| pair[at]), fallback);
        let now = (learn(0, self.spec.ctr_prior), learn(1, self.spec.cvr_prior));
        let cell = &mut self.cells[place as usize];
        cell.derived.children = children;
        let before = cell.derived.priors.map(|priors| priors.now);
        cell.derived.priors = Some(Priors { since: self.tick, now, before });
    }
}
