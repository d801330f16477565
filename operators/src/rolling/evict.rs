//! What is forgotten of entities that have fallen silent.
//!
//! An entity that had no change for a day longer than the widest window, the memory of fatigue and
//! the days of reach *begins anew* with its next one: without a baseline, an alarm or a last
//! evaluation, as if it had never been seen. That is what the features mean, whether or not
//! anybody frees memory. So a cell that has been silent for that long, has nothing in a window, no
//! evaluation to come and no cell that reads its priors can be dropped at any time, and no output
//! depends on when it is: with entities coming and going, memory follows those that deliver.
//!
//! What stays of a dropped entity is its place in the table of places (four bytes).

use super::{NOWHERE, Rolling};
use crate::fatigue::MEMORY_DAYS;
use crate::model::{DAY_US, EventTime, Level, Tick};
use crate::reach::ReachState;
use crate::rolling::cell::Derived;
use crate::spec::FeatureSpec;

/// Cells looked at for dropping at one base pane end.
const DROP_CELLS: usize = 4_096;
/// A silent cell that is still needed is looked at again after this long.
const AGAIN_MS: u64 = 3_600_000;

/// How long an entity may be silent before it begins anew.
pub(super) fn keep_ms(spec: &FeatureSpec) -> u64 {
    let memory = MEMORY_DAYS.max(spec.reach_days).max(spec.fatigue.recent_days) * DAY_US;
    (spec.widest_us().max(memory) + DAY_US).unsigned_abs() / 1_000
}

impl Rolling {
    /// Before the first change of a cell on a day, at event time `time`; the one before was at
    /// tick `changed`.
    #[inline(never)]
    pub(super) fn first_of_day(&mut self, place: u32, changed: Tick, time: EventTime) {
        // Rows of the day before may still be closed.
        let yesterday = time.div_euclid(DAY_US) - 1;
        self.reaches[place as usize].forget(yesterday, self.spec.reach_days);
        if self.tick - changed > self.keep_ms {
            self.cells[place as usize].renew();
        }
    }

    /// Drops cells that have fallen silent, a bounded number at a time. No row may be due.
    pub(super) fn drop_silent(&mut self) {
        for _ in 0..DROP_CELLS {
            let due = self.leaving.first_entry().filter(|entry| *entry.key() <= self.tick);
            let Some(mut places) = due else { return };
            let place = places.get_mut().pop();
            if places.get().is_empty() {
                places.remove();
            }
            let Some(place) = place else { continue };
            let cell = &self.cells[place as usize];
            let silent_from = cell.changed + self.keep_ms + 1;
            let needed = cell.active || cell.due != Tick::MAX || cell.derived.lodgers > 0;
            if needed || silent_from > self.tick {
                let again = silent_from.max(self.tick + AGAIN_MS);
                self.leaving.entry(again).or_default().push(place);
            } else {
                self.drop_cell(place);
            }
        }
    }

    fn drop_cell(&mut self, place: u32) {
        self.leave_first(place);
        let cell = &mut self.cells[place as usize];
        let (entity, campaign, level, order) = (cell.entity, cell.campaign, cell.level, cell.order);
        cell.windows = Box::default();
        *cell.derived = Derived::default();
        self.reaches[place as usize] = ReachState::new();
        self.places[entity.index()] = NOWHERE;
        self.vacant.push(place);
        if level > Level::Campaign
            && let Some(campaign) = self.places.get(campaign.index())
            && let Some(campaign) = self.cells.get(*campaign as usize)
        {
            let children = &campaign.derived.children;
            let first = children.partition_point(|child| self.cells[*child as usize].order < order);
            let at = children[first..].iter().position(|child| *child == place);
            let campaign = self.places[campaign.entity.index()];
            let derived = &mut self.cells[campaign as usize].derived;
            derived.lodgers -= 1;
            if let Some(at) = at {
                derived.children.remove(first + at);
            }
        }
    }
}
