//! How complex a change is, and whether a person must see it first.
//!
//! ```text
//! C = .30 impact + .20 uncertainty + .15 novelty + .15 blast radius + .10 irreversibility + .10 conflict
//! ```
//!
//! each part within [0, 1] (`decisioning.md` section 7.4; the weights are first guesses, to be
//! learned from approvals). Below .35 the tier is *auto*, below .60 *notify*, below .85 *propose*,
//! else *block*. The [`Autonomy`] of the configuration says from which tier on a change waits.
//! Only changes of a platform's settings are scored; alerts and the stop of a spent day are not.

use serde::{Deserialize, Serialize};

use crate::config::Autonomy;

/// The parts of the score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Complexity {
    /// |Δ daily spend| over a fifth of the daily budget.
    pub impact: f64,
    /// Width of the 80 % interval over the expected gain.
    pub uncertainty: f64,
    /// 1 for the first change of an owner, falling with its precedents.
    pub novelty: f64,
    /// Share of the account's spend that is touched.
    pub blast_radius: f64,
    /// Resets learning, or pauses.
    pub irreversibility: f64,
    /// A person changed the owner within the last 72 hours.
    pub conflict: f64,
}

/// What the score asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Act.
    Auto,
    /// Act and tell.
    Notify,
    /// Wait for a person.
    Propose,
    /// Do not act even when a person is quick to say yes.
    Block,
}

impl Complexity {
    /// The weighted sum, within [0, 1].
    pub fn score(&self) -> f64 {
        [
            (0.30, self.impact),
            (0.20, self.uncertainty),
            (0.15, self.novelty),
            (0.15, self.blast_radius),
            (0.10, self.irreversibility),
            (0.10, self.conflict),
        ]
        .iter()
        .map(|(weight, part)| weight * if part.is_nan() { 1.0 } else { part.clamp(0.0, 1.0) })
        .sum()
    }

    /// Who has to say yes.
    pub fn required(&self) -> Required {
        if self.tier() == Tier::Block { Required::Expert } else { Required::Person }
    }

    /// The tier of the score.
    pub fn tier(&self) -> Tier {
        match self.score() {
            score if score < 0.35 => Tier::Auto,
            score if score < 0.60 => Tier::Notify,
            score if score < 0.85 => Tier::Propose,
            _ => Tier::Block,
        }
    }
}

/// Who has to say yes to a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Required {
    /// Anybody who may approve for the tenant.
    Person,
    /// Somebody trusted with what the score would block.
    Expert,
}

/// Whether a change of this tier waits for a person.
pub fn waits(autonomy: Autonomy, tier: Tier) -> bool {
    match autonomy {
        Autonomy::Autonomous => tier >= Tier::Block,
        Autonomy::Guided => tier >= Tier::Propose,
        Autonomy::HumanLed => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_follow_the_score() {
        assert_eq!(Complexity::default().tier(), Tier::Auto);
        let all = Complexity {
            impact: 9.0,
            uncertainty: f64::NAN,
            novelty: 1.0,
            blast_radius: 1.0,
            irreversibility: 1.0,
            conflict: 1.0,
        };
        assert!((all.score() - 1.0).abs() < 1e-12);
        assert_eq!(all.tier(), Tier::Block);
        let middling = Complexity { irreversibility: 0.0, conflict: 0.0, ..all };
        assert_eq!(middling.tier(), Tier::Propose);
        assert!(!waits(Autonomy::Autonomous, Tier::Propose));
        assert!(waits(Autonomy::Guided, Tier::Propose) && !waits(Autonomy::Guided, Tier::Notify));
        assert!(waits(Autonomy::HumanLed, Tier::Auto));
    }
}
