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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::model::{
        EntityId, EntityKey, Event, EventKind, HOUR_US, NO_ID, Registry, RegistryView, Stats,
        us_of_tick,
    };
    use crate::rolling::{DAY_MS, TickRows};
    use crate::spec::{Cadence, PaneRows};
    use crate::state::{StatePart, Stateful};

    const START: Tick = 20_500 * DAY_MS;
    const STEP_MS: u64 = 6 * 3_600_000;
    const LIVES: usize = 180;

    fn rolling(registry: &Arc<Registry>, cadence: bool) -> Rolling {
        let spec = FeatureSpec {
            windows: ["12h/2h", "7d/6h", "day"].map(|text| text.parse().unwrap()).to_vec(),
            pane_rows: PaneRows::Emit,
            cadence: cadence.then_some(Cadence { busy_ms: 1_000, idle_ms: DAY_MS }),
            ..FeatureSpec::default()
        };
        let home = [Level::Campaign, Level::AdGroup, Level::Creative];
        let view = RegistryView::new(registry.clone());
        Rolling::new(StatePart::Lower, Arc::new(spec), view, &home)
    }

    /// Creatives that come and go, two new ones a day, some of which return after their rest.
    #[derive(Clone, Debug)]
    struct Life {
        days: u64,
        rest: u64,
    }

    fn lives() -> impl Strategy<Value = Vec<Life>> {
        let rest = prop_oneof![Just(u64::MAX), 1..80_u64, 28..32_u64];
        let life = (1..6_u64, rest).prop_map(|(days, rest)| Life { days, rest });
        prop::collection::vec(life, LIVES)
    }

    fn delivers(life: &Life, born: u64, day: u64) -> bool {
        let back = born.saturating_add(life.days).saturating_add(life.rest);
        (born..born + life.days).contains(&day) || (back..back.saturating_add(2)).contains(&day)
    }

    fn event(tick: Tick, creative: EntityId, n: u64) -> Event {
        let click = n.is_multiple_of(3);
        Event {
            time: us_of_tick(tick) - 1 - (n % 5) as i64 * HOUR_US,
            creative,
            kind: if click { EventKind::Click } else { EventKind::Impression },
            delta: Stats {
                impressions: 300 * i64::from(!click),
                clicks: 150 * i64::from(click),
                cost_micros: (n * 7_919 % 1_000) as i64,
                ..Stats::ZERO
            },
            user: (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            id: NO_ID,
        }
    }

    fn sorted(mut rows: TickRows) -> (Vec<String>, Vec<String>, usize) {
        let mut panes: Vec<String> = rows.panes.rows.iter().map(|row| format!("{row:?}")).collect();
        panes.extend(rows.panes.features.iter().map(|(_, row)| format!("{row:?}")));
        panes.sort_unstable();
        rows.rows.sort_unstable_by_key(|row| row.entity);
        (rows.rows.iter().map(|row| format!("{row:?}")).collect(), panes, rows.up.len())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(6))]

        #[test]
        fn dropping_cells_shows_nowhere_and_bounds_their_number(
            lives in lives(),
            cadence in any::<bool>(),
            export in 0..360_u64,
        ) {
            let registry = Arc::new(Registry::utc());
            let ids: Vec<EntityId> = (0..LIVES)
                .map(|n| {
                    let key = format!("t/p/a/c{}/g{}/x{n}", n / 12, n / 4);
                    registry.intern(&key.parse::<EntityKey>().unwrap())
                })
                .collect();
            let (mut drops, mut keeps) = (rolling(&registry, cadence), rolling(&registry, cadence));
            let (mut most, mut ended) = (0, 0);
            for step in 0..90 * 4_u64 {
                let tick = START + (step + 1) * STEP_MS;
                let day = step / 4;
                drops.begin(tick, 0);
                keeps.begin(tick, 0);
                for (n, life) in lives.iter().enumerate() {
                    if delivers(life, n as u64 / 2, day) {
                        let event = event(tick, ids[n], step * 31 + n as u64);
                        drops.absorb(&event);
                        keeps.absorb(&event);
                    }
                }
                let all = step == export;
                let (dropped, kept) = (drops.finish(all), keeps.finish(all));
                // Nothing is ever looked at to be dropped.
                keeps.leaving.clear();
                prop_assert_eq!(sorted(dropped), sorted(kept), "at step {}", step);
                if all {
                    drops.begin_export(tick);
                    // What is dropped meanwhile must leave as it was.
                    prop_assert!(!drops.export(1).1);
                } else if step == export + 130 {
                    let (items, done) = drops.export(usize::MAX);
                    prop_assert!(done && items.len() <= 1 + LIVES * 2);
                }
                (most, ended) = (drops.live_cells().max(most), keeps.live_cells());
            }
            // A month of creatives with their ad groups and campaigns, those that returned besides.
            prop_assert!(drops.vacant.len() + drops.live_cells() == drops.cells.len());
            prop_assert!(drops.live_cells() * 4 < ended * 3, "{} of {ended}", drops.live_cells());
            prop_assert!(most < ended, "{most} of {ended}");
            // Places are used again; cells of one tick come before others are dropped.
            prop_assert!(drops.cells.len() <= most + 24, "{} of {most}", drops.cells.len());
        }
    }

    #[test]
    fn an_entity_begins_anew_after_a_long_silence_whether_or_not_it_was_dropped() {
        let registry = Arc::new(Registry::utc());
        let id = registry.intern(&"t/p/a/c/g/x".parse::<EntityKey>().unwrap());
        let mut rolling = rolling(&registry, true);
        let keep = rolling.keep_ms;
        assert_eq!(keep, 29 * DAY_MS);
        let mut at = |tick: Tick| {
            rolling.begin(tick, 0);
            rolling.absorb(&event(tick, id, 1));
            rolling.finish(false);
            let place = rolling.places[id.index()] as usize;
            rolling.cells[place].derived.fatigue.first_day()
        };
        let first = at(START);
        assert_eq!(at(START + keep), first);
        assert_eq!(at(START + 2 * keep + 1), first.map(|day| day + 58));
    }
}
