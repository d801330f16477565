//! What the campaigns of an account share: the local day, the spend plan, and when it was heard.

use omnify_operators::model::EventTime;
use serde::{Deserialize, Serialize};

use crate::day::LocalDay;
use crate::plan::SpendPlan;

/// What an account shares among its campaigns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) day: LocalDay,
    pub(crate) plan: SpendPlan,
    /// When the account last sent anything.
    pub(crate) heard_us: EventTime,
    /// Cost of the last day, from the account's own row; 0 until one was seen.
    pub(crate) recent_micros: i64,
}

impl Account {
    /// An account first met at `now_us`.
    pub(crate) fn new(zone: &jiff::tz::TimeZone, now_us: EventTime) -> Account {
        let day = LocalDay::holding(zone, now_us);
        let plan = SpendPlan::new(day.position(now_us));
        Account { day, plan, heard_us: now_us, recent_micros: 0 }
    }

    /// Whether its numbers can be one's own, after reading them.
    pub(crate) fn is_sound(&self) -> bool {
        self.day.weekday < 7
    }

    /// Moves on to the local day that holds `now_us`.
    pub(crate) fn advance(&mut self, zone: &jiff::tz::TimeZone, now_us: EventTime) {
        if !self.day.holds(now_us) && now_us >= self.day.end_us {
            let next = LocalDay::holding(zone, now_us);
            self.plan.roll(&self.day, &next);
            self.day = next;
        }
    }
}
