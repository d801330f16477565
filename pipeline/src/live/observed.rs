//! Which readings of a platform's settings are news to the engine.
//!
//! A reader tells everything it reads. What is known already is left out here, where it is known what
//! got through: a setting that was read before its owner's action ended says nothing about the time
//! after it, and must be told by the next reading although nothing has changed since.

use std::collections::HashMap;
use std::time::Instant;

use omnify_decision::action::Setting;
use omnify_decision::control::{Actual, Outcome};
use omnify_operators::model::EntityKey;

/// What is known of each entity: as many as the platforms have.
#[derive(Default)]
pub(super) struct Observed(HashMap<EntityKey, Known>);

#[derive(Default)]
struct Known {
    /// When its action ended last.
    ended: Option<Instant>,
    /// What it was told to be, unless an action has ended since.
    told: Option<Actual>,
}

impl Observed {
    /// An action of `owner` ended at `now`: what is set may have changed.
    pub(super) fn ended(&mut self, owner: &EntityKey, outcome: &Outcome, now: Instant) {
        *self.0.entry(owner.clone()).or_default() = Known { ended: Some(now), told: None };
        if let Outcome::Applied { effective: Setting::Rotate { from, to } } = outcome {
            for creative in [from, to] {
                self.0.entry(creative.clone()).or_default().told = None;
            }
        }
    }

    /// Whether the engine is to be told that `entity` was found as `actual`, in a reading that began
    /// at `begun`; it is then told.
    pub(super) fn is_news(&mut self, entity: &EntityKey, actual: &Actual, begun: Instant) -> bool {
        let known = self.0.entry(entity.clone()).or_default();
        if known.ended.is_some_and(|ended| ended >= begun) || known.told.as_ref() == Some(actual) {
            return false;
        }
        known.told = Some(actual.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_reading_overtaken_by_an_outcome_is_told_by_the_next_one() {
        let owner: EntityKey = "t/p/a/c".parse().unwrap();
        let budget =
            |budget_micros| Actual { budget_micros: Some(budget_micros), ..Actual::default() };
        let begun = crate::clock::instant();
        let later = |s| begun + Duration::from_secs(s);
        let mut observed = Observed::default();
        assert!(observed.is_news(&owner, &budget(1), begun));
        assert!(!observed.is_news(&owner, &budget(1), later(1)));
        // Read before the end of an action, so it does not count; read again, it is news.
        observed.ended(&owner, &Outcome::NoChange, later(3));
        assert!(!observed.is_news(&owner, &budget(2), later(2)));
        assert!(observed.is_news(&owner, &budget(2), later(4)));
        assert!(!observed.is_news(&owner, &budget(2), later(5)));
        // The engine sets it, a person sets it back: as it was told last, and yet news.
        let effective = Setting::Budget { budget_micros: 3 };
        observed.ended(&owner, &Outcome::Applied { effective }, later(6));
        assert!(observed.is_news(&owner, &budget(2), later(7)));
    }
}
