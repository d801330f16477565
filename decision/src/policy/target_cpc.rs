//! Clicks at or below a cost per click.

use super::Policy;
use crate::codes::policy;
use crate::view::{Unit, View};

pub(super) struct TargetCpc {
    /// Cost per click.
    pub(super) cpc_micros: i64,
}

impl Policy for TargetCpc {
    fn code(&self) -> &'static str {
        policy::TARGET_CPC
    }

    fn unit(&self, _: &View, _: Option<Unit>, _: i64) -> Unit {
        Unit::Clicks
    }

    fn price_micros(&self) -> Option<f64> {
        Some(self.cpc_micros as f64)
    }
}
