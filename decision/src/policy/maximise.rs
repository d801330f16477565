//! As many conversions as the budget buys; clicks where conversions are too rare to steer by.

use super::Policy;
use crate::codes::policy;
use crate::view::{Unit, View};

pub(super) struct Maximise;

impl Policy for Maximise {
    fn code(&self) -> &'static str {
        policy::MAXIMISE
    }

    fn unit(&self, view: &View, before: Option<Unit>, events_min: i64) -> Unit {
        // Once conversions are counted, half the evidence keeps them: no flapping at the edge.
        let keep = before == Some(Unit::Conversions);
        let least = if keep { events_min / 2 } else { events_min };
        if view.mature.conversions >= least.max(1) { Unit::Conversions } else { Unit::Clicks }
    }

    fn price_micros(&self) -> Option<f64> {
        None
    }
}
