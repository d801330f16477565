//! From what is wanted to what is sent. Pure: no clock, no call.
//!
//! Three questions in order. Can the platform do this at all? What amount can it hold? Is that
//! true already? Bids are rounded down; budgets are rounded toward what is set now (a decrease
//! up, an increase down), so rounding never overshoots a guardrail. An amount outside the
//! platform's range is refused, not bent: the guardrails that chose it must know.

use omnify_decision::action::{Setting, Status};
use omnify_decision::control::Actual;

use super::{AmountRange, Capabilities, ErrorClass, ExecError};

/// What to do about a desired setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Send this setting (the desired one, rounded).
    Send(Setting),
    /// It is true already.
    NoChange,
    /// The platform cannot hold it.
    Refuse(ExecError),
}

/// Plans `desired` against `before`, what is believed to be set now.
pub fn plan(capabilities: &Capabilities, desired: &Setting, before: Option<&Setting>) -> Plan {
    let kind = desired.kind();
    if !capabilities.kinds.contains(&kind) {
        let message = format!("this platform has no {}", kind.name());
        return Plan::Refuse(ExecError::new(ErrorClass::Validation, message));
    }
    let sent = match desired {
        Setting::Bid { bid_micros } => {
            let down = round(*bid_micros, capabilities.bid.quantum_micros, false);
            fit(down, *bid_micros, capabilities.bid, "bid_micros")
                .map(|bid_micros| Setting::Bid { bid_micros })
        }
        Setting::Budget { budget_micros } => {
            let decrease =
                before.and_then(Setting::micros).is_some_and(|before| *budget_micros < before);
            let rounded = round(*budget_micros, capabilities.budget.quantum_micros, decrease);
            fit(rounded, *budget_micros, capabilities.budget, "budget_micros")
                .map(|budget_micros| Setting::Budget { budget_micros })
        }
        other => Ok(other.clone()),
    };
    match sent {
        Err(error) => Plan::Refuse(error),
        Ok(sent) if before == Some(&sent) => Plan::NoChange,
        Ok(sent) => Plan::Send(sent),
    }
}

fn round(micros: i64, quantum_micros: i64, up: bool) -> i64 {
    let quantum = quantum_micros.max(1);
    let down = micros - micros.rem_euclid(quantum);
    if up && down != micros { down.saturating_add(quantum) } else { down }
}

fn fit(rounded: i64, wanted: i64, range: AmountRange, field: &str) -> Result<i64, ExecError> {
    if (range.min_micros..=range.max_micros).contains(&rounded) {
        return Ok(rounded);
    }
    let message = format!(
        "{field} {wanted} is outside {}..={} in steps of {}; set the goal's floor and cap inside it",
        range.min_micros, range.max_micros, range.quantum_micros
    );
    Err(ExecError::new(ErrorClass::Validation, message))
}

/// What `actual` says about the kind of setting that `desired` is; `None` when it does not say.
/// A rotation shows on two entities and an alert on none: see [`parts`].
pub fn found(desired: &Setting, actual: &Actual) -> Option<Setting> {
    match desired {
        Setting::Bid { .. } => actual.bid_micros.map(|bid_micros| Setting::Bid { bid_micros }),
        Setting::Budget { .. } => {
            actual.budget_micros.map(|budget_micros| Setting::Budget { budget_micros })
        }
        Setting::Status { .. } => actual.status.map(|status| Setting::Status { status }),
        Setting::Rotate { .. } | Setting::Alert { .. } => None,
    }
}

/// Whether `found` shows that `desired` took effect: it is the same, or, as some platforms round on
/// their own, an amount on the way from `before` to it and within a hundredth of it. One further away
/// may be what an earlier action left.
pub fn holds(desired: &Setting, before: Option<&Setting>, found: &Setting) -> bool {
    if desired == found {
        return true;
    }
    match (desired.micros(), before.and_then(Setting::micros), found.micros()) {
        (Some(desired), Some(before), Some(found)) => {
            found != before
                && (desired.min(before)..=desired.max(before)).contains(&found)
                && desired.abs_diff(found) <= desired.unsigned_abs() / 100
        }
        _ => false,
    }
}

/// The settings that together make `setting` true, each with the entity that shows it (`None`
/// for the owner itself). Empty when nothing on a platform shows it.
pub fn parts(setting: &Setting) -> Vec<(Option<&omnify_operators::model::EntityKey>, Setting)> {
    match setting {
        Setting::Rotate { from, to } => vec![
            (Some(from), Setting::Status { status: Status::Paused }),
            (Some(to), Setting::Status { status: Status::Enabled }),
        ],
        Setting::Alert { .. } => Vec::new(),
        other => vec![(None, other.clone())],
    }
}

/// What restores the state before `desired` was made true; `None` when it is not known.
pub fn undo(desired: &Setting, before: Option<&Setting>) -> Option<Setting> {
    match (desired, before) {
        (_, Some(before)) => Some(before.clone()),
        (Setting::Rotate { from, to }, None) => {
            Some(Setting::Rotate { from: to.clone(), to: from.clone() })
        }
        (_, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use omnify_decision::action::ActionKind;
    use proptest::prelude::*;

    use super::*;

    fn capabilities(quantum_micros: i64) -> Capabilities {
        let range = AmountRange { quantum_micros, min_micros: 1_000_000, max_micros: 50_000_000 };
        Capabilities {
            kinds: &[ActionKind::SetBid, ActionKind::SetBudget],
            bid: range,
            budget: range,
            read_back: true,
            dedupes: true,
            call_timeout: Duration::from_secs(1),
        }
    }

    fn budget(budget_micros: i64) -> Setting {
        Setting::Budget { budget_micros }
    }

    #[test]
    fn budgets_round_toward_what_is_set() {
        let cents = capabilities(10_000);
        let plan = |desired, before: Option<i64>| {
            super::plan(&cents, &budget(desired), before.map(budget).as_ref())
        };
        assert_eq!(plan(5_005_000, Some(4_000_000)), Plan::Send(budget(5_000_000)));
        assert_eq!(plan(5_005_000, Some(6_000_000)), Plan::Send(budget(5_010_000)));
        assert_eq!(plan(5_005_000, None), Plan::Send(budget(5_000_000)));
        assert_eq!(plan(5_005_000, Some(5_000_000)), Plan::NoChange);
    }

    #[test]
    fn the_impossible_is_refused_before_any_call() {
        let cents = capabilities(10_000);
        for impossible in [budget(999_999), budget(60_000_000), Setting::Alert { code: "x".into() }]
        {
            let plan = plan(&cents, &impossible, None);
            assert!(
                matches!(&plan, Plan::Refuse(error) if error.class == ErrorClass::Validation),
                "{plan:?}"
            );
        }
    }

    #[test]
    fn undo_restores_or_says_that_it_cannot() {
        let (a, b) = ("t/p/a/c/g/a".parse().unwrap(), "t/p/a/c/g/b".parse().unwrap());
        let rotate = |from: &omnify_operators::model::EntityKey, to: &_| Setting::Rotate {
            from: from.clone(),
            to: Clone::clone(to),
        };
        assert_eq!(undo(&rotate(&a, &b), None), Some(rotate(&b, &a)));
        assert_eq!(undo(&budget(2), Some(&budget(1))), Some(budget(1)));
        assert_eq!(undo(&budget(2), None), None);
    }

    #[test]
    fn an_amount_just_short_shows_a_platform_that_rounds() {
        let holds = |found| holds(&budget(1_999), Some(&budget(1_000)), &budget(found));
        assert!(holds(1_999) && holds(1_990));
        assert!(!holds(1_000), "nothing happened");
        assert!(!holds(1_900), "that was another action");
        assert!(!holds(2_000) && !holds(999), "somebody else was here");
        assert!(!super::holds(&budget(1_999), None, &budget(1_990)));
    }

    proptest! {
        #[test]
        fn rounding_stays_between_before_and_desired(
            desired in 1_000_000i64..50_000_000,
            before in 1_000_000i64..50_000_000,
            quantum in 1i64..1_000_000,
        ) {
            let before = before - before % quantum;
            prop_assume!(before >= 1_000_000);
            let plan = plan(&capabilities(quantum), &budget(desired), Some(&budget(before)));
            let sent = match plan {
                Plan::Send(setting) => setting.micros().unwrap(),
                Plan::NoChange => before,
                Plan::Refuse(_) => return Ok(()),
            };
            prop_assert!((desired.min(before)..=desired.max(before)).contains(&sent));
            prop_assert!((sent - desired).abs() < quantum);
        }
    }
}
