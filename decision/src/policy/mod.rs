//! What each kind of goal wants: a unit of value, and how much one unit may cost.
//!
//! All four share one controller ([`crate::dual`]); a policy only says what is counted and at what
//! price. What is counted says which maturity is needed: conversions and revenue need to be complete
//! or completed by a nowcast ([`crate::view`]), clicks only to be fresh. To add one: implement [`Policy`] in a file of its own and name it in [`for_objective`].

mod maximise;
mod target_cpa;
mod target_cpc;
mod target_roas;

use crate::goal::Objective;
use crate::view::{Unit, View};

/// A kind of goal. Pure: the same view gives the same answer.
pub(crate) trait Policy: Send + Sync {
    /// Name with version, one of [`crate::codes::policy`].
    fn code(&self) -> &'static str;

    /// What value is counted in. `before` is the unit used so far, for hysteresis; `events_min` is
    /// the evidence a KPI needs.
    fn unit(&self, view: &View, before: Option<Unit>, events_min: i64) -> Unit;

    /// Micros one unit of value may cost on average; `None` when only the budget limits.
    fn price_micros(&self) -> Option<f64>;
}

/// The policy of an objective.
pub(crate) fn for_objective(objective: &Objective) -> Box<dyn Policy> {
    match *objective {
        Objective::TargetCpa { cpa_micros } => Box::new(target_cpa::TargetCpa { cpa_micros }),
        Objective::TargetRoas { roas } => Box::new(target_roas::TargetRoas { roas }),
        Objective::TargetCpc { cpc_micros } => Box::new(target_cpc::TargetCpc { cpc_micros }),
        Objective::Maximise => Box::new(maximise::Maximise),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnify_operators::model::Stats;

    fn view(conversions: i64) -> View {
        let long = Stats { clicks: 1_000, conversions, ..Stats::ZERO };
        View {
            short: Stats::ZERO,
            short_us: 1,
            recent: Stats::ZERO,
            recent_us: 1,
            long,
            mature: long,
            maturity: None,
            today: Stats::ZERO,
            young: false,
        }
    }

    #[test]
    fn every_objective_has_a_listed_policy_with_its_price() {
        let cases = [
            (Objective::TargetCpa { cpa_micros: 5_000_000 }, Unit::Conversions, Some(5e6)),
            (Objective::TargetRoas { roas: 4.0 }, Unit::Revenue, Some(0.25)),
            (Objective::TargetCpc { cpc_micros: 300_000 }, Unit::Clicks, Some(3e5)),
            (Objective::Maximise, Unit::Conversions, None),
        ];
        for (objective, unit, price) in cases {
            let policy = for_objective(&objective);
            assert!(crate::codes::policy::ALL.iter().any(|code| code.code == policy.code()));
            assert_eq!(policy.unit(&view(100), None, 30), unit);
            assert_eq!(policy.price_micros(), price);
        }
    }

    #[test]
    fn maximise_counts_clicks_while_conversions_are_rare() {
        let policy = for_objective(&Objective::Maximise);
        assert_eq!(policy.unit(&view(29), None, 30), Unit::Clicks);
        assert_eq!(policy.unit(&view(30), Some(Unit::Clicks), 30), Unit::Conversions);
        assert_eq!(policy.unit(&view(16), Some(Unit::Conversions), 30), Unit::Conversions);
        assert_eq!(policy.unit(&view(14), Some(Unit::Conversions), 30), Unit::Clicks);
    }
}
