//! Every stable code a decision can carry, with one line on what it means.
//!
//! Codes are part of the API and of the history: they are added, never renamed.

/// A code with its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// The code as written in decisions.
    pub code: &'static str,
    /// What it means, for people.
    pub meaning: &'static str,
}

/// The name of a listed code.
pub type CodeName = &'static str;

macro_rules! codes {
    ($(#[$doc:meta])* $list:ident { $($name:ident = $code:literal, $meaning:literal;)* }) => {
        $(#[doc = $meaning] pub const $name: &str = $code;)*
        $(#[$doc])*
        pub const $list: &[Code] = &[$(Code { code: $code, meaning: $meaning }),*];
    };
}

/// Policies, each with its version.
pub mod policy {
    use super::Code;
    codes! {
        /// All of them.
        ALL {
            TARGET_CPA = "target_cpa/1", "Conversions at or below a cost per conversion.";
            TARGET_ROAS = "target_roas/1", "Revenue at or above a revenue per cost.";
            TARGET_CPC = "target_cpc/1", "Clicks at or below a cost per click.";
            MAXIMISE = "maximise/1", "As much value as the budget buys.";
            FATIGUE = "fatigue/1", "Rotation away from worn-out creatives, and alerts on wear.";
            ANOMALY = "anomaly/1", "Alerts on unusual delivery.";
            MATURITY = "maturity/1", "Alerts on conversions that come in otherwise than predicted.";
            APPROVAL = "approval/1", "What became of a proposal that waited for a person.";
        }
    }
}

/// Reasons a policy gives.
pub mod reason {
    use super::Code;
    codes! {
        /// All of them.
        ALL {
            ESTABLISH_BUDGET = "establish_budget", "The budget at the platform is unknown; the goal's is set first.";
            ESTABLISH_BID = "establish_bid", "The bid at the platform is unknown; it starts from the estimated value.";
            BUDGET_CHANGED = "budget_changed", "The budget at the platform differs from the one wanted.";
            REALLOCATED = "reallocated", "The portfolio's budget was shared out anew by equal marginal return.";
            PORTFOLIO_FULL = "portfolio_full", "The portfolio has no budget left until other campaigns came down.";
            BUDGET_BINDS = "budget_binds", "The budget multiplier gives the lower bid.";
            KPI_BINDS = "kpi_binds", "The KPI multiplier gives the lower bid.";
            BEHIND_PLAN = "behind_plan", "Less was spent than planned for this time of day.";
            AHEAD_OF_PLAN = "ahead_of_plan", "More was spent than planned for this time of day.";
            ABOVE_TARGET = "above_target", "Value costs more than the target.";
            BELOW_TARGET = "below_target", "Value costs less than the target.";
            DEADBAND = "deadband", "The change wanted is too small, or within noise.";
            BETWEEN_UPDATES = "between_updates", "The next update of the multipliers is not due yet.";
            IN_FLIGHT = "in_flight", "An earlier action of this owner is not acknowledged yet.";
            UNSETTLED = "unsettled", "The outcome of an earlier action is unknown; waiting for a read-back.";
            DRIFT = "drift", "Somebody else changed the setting; the plan starts anew from what was found.";
            REJECTED = "rejected", "The platform refused this value; it is not sent again until the plan changes.";
            NO_ESTIMATE = "no_estimate", "There is no estimate of value to bid from.";
            NO_TRAFFIC = "no_traffic", "Nothing is spent although the campaign may deliver.";
            DELIVERY_LIMITED = "delivery_limited", "Spend does not answer to bids; raising them is pointless.";
            PAUSED = "paused", "The campaign is paused at the platform, not by this engine.";
            BUDGET_SPENT = "budget_spent", "The day's budget is spent.";
            NEW_DAY = "new_day", "A new account-local day begins; delivery stopped for the budget resumes.";
            GOAL_ENDED = "goal_ended", "No goal covers the campaign any more.";
            REVIEW = "review", "No new row came since the last decision; made on the last one.";
            YOUNG_KPI = "young_kpi", "The KPI includes conversions that are not mature yet.";
            NOWCAST = "nowcast", "Conversions not reported yet are expected by the account's completeness curve.";
            CLICK_VALUE = "click_value", "Conversions are rare; clicks are counted as value.";
            MODEL = "model", "Click and conversion probabilities come from the learned model.";
            EXPLORATION = "exploration", "The bid carries a small seeded perturbation.";
            WEARING_OUT = "wearing_out", "Response fell below the onset ratio of its own baseline.";
            APPROVED = "approved", "A person approved the change, and it still holds.";
            DECLINED = "declined", "A person rejected the change; its kind is not proposed again for a while.";
            EXPIRED = "expired", "Nobody answered the proposal in time, or too many waited.";
            SUPERSEDED = "superseded", "A newer proposal for the same owner took the place of this one.";
            AWAITING = "awaiting", "The same change waits for a person already.";
            STALE = "stale", "Since the proposal things moved on, so it is dropped; a fresh decision follows.";
            ALREADY_SO = "already_so", "The setting is already as it was proposed.";
            COMPLETENESS_BREAK = "completeness_break", "Late conversions are far from what the account's completeness curve predicts.";
            NO_SIBLING = "no_sibling", "No fresh sibling with enough evidence can take over.";
            NO_GOAL = "no_goal", "No goal covers the campaign, so nothing is changed, only told.";
            ANOMALY = "anomaly", "Delivery is unusual.";
            SELLER_FLOOR = "seller_floor", "The seller's floor is above the bid (only in answers to bid requests).";
        }
    }
}

/// Guardrails that changed or stopped a proposal.
pub mod guardrail {
    use super::Code;
    codes! {
        /// All of them.
        ALL {
            KILL_GLOBAL = "kill_global", "The global kill switch is on.";
            KILL_TENANT = "kill_tenant", "The tenant's kill switch is on.";
            LATE_FEED = "late_feed", "The account sent nothing for too long.";
            ANOMALY_HOLD = "anomaly_hold", "Delivery is anomalous, so numbers are not acted on.";
            IMMATURE = "immature", "Too small a share of the conversions is reported for this change.";
            COMPLETENESS_HOLD = "completeness_hold", "Conversions come in otherwise than the account's curve says, so nothing is raised on them.";
            MINIMUM_EVIDENCE = "minimum_evidence", "Too few events, or too little certainty, for this change.";
            LEARNING_PHASE = "learning_phase", "The campaign is still learning.";
            COOLDOWN = "cooldown", "The last change of this owner is too recent.";
            STEP = "step", "The change was cut to the largest single step.";
            CUMULATIVE_24H = "cumulative_24h", "The change was cut to what is left of the 24-hour allowance.";
            CUMULATIVE_7D = "cumulative_7d", "The change was cut to what is left of the 7-day allowance.";
            FLOOR = "floor", "The bid was raised to, or held at, the goal's floor.";
            CAP = "cap", "The bid was lowered to the goal's cap.";
            BUDGET_CAP = "budget_cap", "The budget was lowered to the goal's daily budget.";
            SPEND_STOP = "spend_stop", "Budget left does not cover more delivery: spend may not be raised.";
            WINNER = "winner", "Pausing something with many conversions needs a person.";
            AUTONOMY = "autonomy", "The complexity of the change needs a person.";
            TOO_LARGE = "too_large", "The smallest change allowed by floor and cap is above the step: needs a person.";
        }
    }
}

/// Codes of `Setting::Alert`.
pub mod alert {
    use super::Code;
    codes! {
        /// All of them.
        ALL {
            WEARING_OUT = "wearing_out", "Response fell below the onset ratio of its own baseline.";
            ANOMALY = "anomaly", "Delivery is unusual.";
            COMPLETENESS_BREAK = "completeness_break", "Late conversions are far from what the account's completeness curve predicts.";
        }
    }
}

/// The listed code of this name, of whatever kind.
pub(crate) fn known(name: &str) -> Option<&'static str> {
    let lists = [policy::ALL, reason::ALL, guardrail::ALL, alert::ALL];
    lists.into_iter().flatten().map(|code| code.code).find(|code| *code == name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn codes_are_unique_and_plain() {
        for list in
            [super::policy::ALL, super::reason::ALL, super::guardrail::ALL, super::alert::ALL]
        {
            let mut seen = HashSet::new();
            for code in list {
                assert!(seen.insert(code.code), "{} is listed twice", code.code);
                let plain =
                    |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_/".contains(c);
                assert!(code.code.chars().all(plain), "{}", code.code);
                assert!(code.meaning.ends_with('.'), "{}", code.code);
            }
        }
    }
}
