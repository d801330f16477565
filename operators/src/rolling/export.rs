//! Cells on their way out and in.
//!
//! An item is one cell with its sketches. Timers, the list of active cells and the children of
//! campaigns are not among it: they follow from the cells.

use serde::{Deserialize, Serialize};

use super::cell::Cell;
use super::{NOWHERE, Rolling};
use crate::model::{Level, Tick, WindowSpec, us_of_tick};
use crate::reach::ReachState;
use crate::state::{Outgoing, StateError, StateItem, StatePart, Stateful};

/// What panes are numbered by: state of other windows means nothing.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Shape {
    windows: Vec<WindowSpec>,
    levels: Vec<Level>,
}

impl Shape {
    fn text(&self) -> String {
        let windows: Vec<_> = self.windows.iter().map(WindowSpec::to_string).collect();
        let levels: Vec<_> = self.levels.iter().map(|level| level.name()).collect();
        format!("{} of {}", windows.join(", "), levels.join(", "))
    }
}

fn item(part: StatePart, cell: &Cell, reach: &ReachState) -> StateItem {
    StateItem::new(part, cell.entity, &(cell, reach))
}

impl Rolling {
    fn shape(&self) -> Shape {
        Shape { windows: self.spec.windows.clone(), levels: self.spec.levels.clone() }
    }

    /// A cell that has not left yet and is about to change leaves now.
    #[inline]
    pub(super) fn leave_first(&mut self, place: u32) {
        if self.export.is_some() {
            self.leave_early(place);
        }
    }

    #[inline(never)]
    fn leave_early(&mut self, place: u32) {
        let cell = &self.cells[place as usize];
        if let Some(export) = &mut self.export
            && export.claim(place as usize)
            && self.home[cell.level as usize]
        {
            export.push(item(self.part, cell, &self.reaches[place as usize]));
        }
    }

    fn load(&mut self, from: &StateItem) -> Result<(), StateError> {
        let (mut cell, reach): (Cell, ReachState) = from.read()?;
        let unreadable = |what: &str| StateError::Unreadable {
            part: from.part,
            entity: from.entity,
            what: what.to_owned(),
        };
        if cell.entity != from.entity || !self.view.knows(cell.entity) {
            return Err(unreadable("the registry does not know it"));
        }
        let place = self.place(cell.entity);
        let fresh = &mut self.cells[place as usize];
        if (cell.level, cell.order, cell.windows.len())
            != (fresh.level, fresh.order, fresh.windows.len())
        {
            return Err(unreadable("the registry knows another entity by this id"));
        }
        cell.calendar = fresh.calendar;
        cell.derived.children = std::mem::take(&mut fresh.derived.children);
        cell.derived.lodgers = fresh.derived.lodgers;
        if cell.active {
            self.active.push(place);
        }
        if cell.due != Tick::MAX {
            self.timers.entry(cell.due).or_default().push(place);
        }
        self.cells[place as usize] = cell;
        self.reaches[place as usize] = reach;
        debug_assert_ne!(place, NOWHERE);
        Ok(())
    }
}

impl Stateful for Rolling {
    fn begin_export(&mut self, _tick: Tick) {
        debug_assert!(self.is_settled(), "an export begins when every row that is due is closed");
        let mut export = Outgoing::new(self.cells.len());
        export.push(StateItem::new(self.part, StateItem::EVERYWHERE, &self.shape()));
        for place in &self.vacant {
            export.claim(*place as usize);
        }
        self.export = Some(export);
        self.update_quiet();
    }

    fn export(&mut self, bytes: usize) -> (Vec<StateItem>, bool) {
        let Some(export) = &mut self.export else { return (Vec::new(), true) };
        while let Some(place) = export.next(bytes) {
            let cell = &self.cells[place];
            if self.home[cell.level as usize] {
                export.push(item(self.part, cell, &self.reaches[place]));
            }
        }
        let (items, done) = (export.take(), export.is_through());
        if done {
            self.export = None;
            self.update_quiet();
        }
        (items, done)
    }

    fn restore(&mut self, tick: Tick, items: &[StateItem]) -> Result<(), StateError> {
        self.tick = tick;
        (self.due, self.due_tick) = (us_of_tick(tick).div_euclid(self.base_us), tick);
        let (shapes, cells): (Vec<_>, Vec<_>) =
            items.iter().partition(|item| item.entity == StateItem::EVERYWHERE);
        let configured = self.shape();
        for item in shapes {
            let exported: Shape = item.read()?;
            if exported != configured {
                let (exported, configured) = (exported.text(), configured.text());
                return Err(StateError::OtherFeatures { exported, configured });
            }
        }
        cells.into_iter().try_for_each(|item| self.load(item))
    }
}
