//! Revenue at or above a revenue per cost: one micro of revenue may cost `1 / roas` micros.

use super::Policy;
use crate::codes::policy;
use crate::view::{Unit, View};

pub(super) struct TargetRoas {
    /// Revenue per cost.
    pub(super) roas: f64,
}

impl Policy for TargetRoas {
    fn code(&self) -> &'static str {
        policy::TARGET_ROAS
    }

    fn unit(&self, _: &View, _: Option<Unit>, _: i64) -> Unit {
        Unit::Revenue
    }

    fn price_micros(&self) -> Option<f64> {
        Some(1.0 / self.roas)
    }
}
