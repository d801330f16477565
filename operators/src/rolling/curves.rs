//! The completeness curves of accounts, as every row may need them.
//!
//! A row may be closed some ticks after the one that made it due, and must not show it: the curves
//! as of that tick are kept beside the current ones. Both share what is alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Rolling;
use crate::maturity::{Curve, Weighed};
use crate::model::{EntityId, Level, Stats, Tick};

type ByAccount = Arc<BTreeMap<EntityId, Arc<Curve>>>;

#[derive(Default)]
pub(super) struct Curves {
    now: ByAccount,
    /// As of the tick at which rows last became due.
    due: ByAccount,
}

impl Curves {
    /// Rows become due at the current tick.
    pub(super) fn keep(&mut self) {
        self.due = self.now.clone();
    }
}

impl Rolling {
    /// Takes in the curves that changed by the current tick.
    pub(crate) fn bend(&mut self, changed: &[(EntityId, Arc<Curve>)]) {
        if !changed.is_empty() {
            Arc::make_mut(&mut self.curves.now).extend(changed.iter().cloned());
        }
    }

    /// The curve for a row of a cell known at `tick`, which is the current one or the one at which
    /// rows last became due.
    pub(super) fn curve_of(&mut self, place: u32, tick: Tick) -> Option<Arc<Curve>> {
        let curves = if tick == self.tick { &self.curves.now } else { &self.curves.due };
        if curves.is_empty() {
            return None;
        }
        let info = self.view.info(self.cells[place as usize].entity);
        let account = info.ancestors[Level::Account as usize];
        (info.level >= Level::Account).then(|| curves.get(&account).cloned())?
    }

    /// Clicks and conversions that go into the conversion rate of a cell: its clicks weighted by
    /// completeness, if there is a curve. `sums` are those of the widest window, just read.
    pub(super) fn trials(
        &mut self,
        place: u32,
        sums: &Stats,
        curve: Option<&Curve>,
    ) -> (i64, Option<Weighed>) {
        let Some(curve) = curve else { return (sums.clicks, None) };
        let cell = &self.cells[place as usize];
        let panes = &self.calendars[usize::from(cell.calendar)].panes;
        let weighed = cell.weigh(self.widest, curve, panes, &self.grain);
        (weighed.effective().round() as i64, Some(weighed))
    }
}
