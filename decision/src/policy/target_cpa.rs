//! Conversions at or below a cost per conversion.

use super::Policy;
use crate::codes::policy;
use crate::view::{Unit, View};

pub(super) struct TargetCpa {
    /// Cost per conversion.
    pub(super) cpa_micros: i64,
}

impl Policy for TargetCpa {
    fn code(&self) -> &'static str {
        policy::TARGET_CPA
    }

    fn unit(&self, _: &View, _: Option<Unit>, _: i64) -> Unit {
        Unit::Conversions
    }

    fn price_micros(&self) -> Option<f64> {
        Some(self.cpa_micros as f64)
    }
}
