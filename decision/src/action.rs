//! What the stage says: decisions (always recorded) and actions (differences to be executed).

use std::fmt;
use std::sync::Arc;

use omnify_operators::model::{EntityInfo, EntityKey, FeatureRow, Tick};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Delivery status of an entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Delivers when it wins.
    Enabled,
    /// Does not deliver.
    Paused,
}

/// One setting of an entity, as desired or as found.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "setting", rename_all = "snake_case")]
pub enum Setting {
    /// Bid in micros of the account's currency (CPM bid per thousand, or CPC bid, as the goal says).
    Bid {
        /// Amount in micros.
        bid_micros: i64,
    },
    /// Daily budget.
    Budget {
        /// Amount per account-local day in micros.
        budget_micros: i64,
    },
    /// Delivery status.
    Status {
        /// The status.
        status: Status,
    },
    /// Rotation: delivery moves away from a worn-out creative of the ad group.
    Rotate {
        /// The worn-out creative, which is paused.
        from: EntityKey,
        /// The creative that takes over, which is enabled.
        to: EntityKey,
    },
    /// A message for people; changes nothing on a platform.
    Alert {
        /// Stable code, for example `wearing_out`.
        code: String,
    },
}

/// The verb of an action, as written in history and API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionKind {
    /// Set a bid.
    SetBid,
    /// Set a daily budget.
    SetBudget,
    /// Stop delivery.
    Pause,
    /// Start delivery.
    Enable,
    /// Move delivery to another creative.
    RotateCreative,
    /// Tell people.
    Alert,
}

impl ActionKind {
    /// The name used in API and history.
    pub const fn name(self) -> &'static str {
        match self {
            ActionKind::SetBid => "set_bid",
            ActionKind::SetBudget => "set_budget",
            ActionKind::Pause => "pause",
            ActionKind::Enable => "enable",
            ActionKind::RotateCreative => "rotate_creative",
            ActionKind::Alert => "alert",
        }
    }
}

impl Setting {
    /// The verb that brings this setting about.
    pub const fn kind(&self) -> ActionKind {
        match self {
            Setting::Bid { .. } => ActionKind::SetBid,
            Setting::Budget { .. } => ActionKind::SetBudget,
            Setting::Status { status: Status::Paused } => ActionKind::Pause,
            Setting::Status { status: Status::Enabled } => ActionKind::Enable,
            Setting::Rotate { .. } => ActionKind::RotateCreative,
            Setting::Alert { .. } => ActionKind::Alert,
        }
    }

    /// The amount of a bid or budget.
    pub const fn micros(&self) -> Option<i64> {
        match self {
            Setting::Bid { bid_micros } => Some(*bid_micros),
            Setting::Budget { budget_micros } => Some(*budget_micros),
            _ => None,
        }
    }
}

/// 128-bit deterministic id, written as 32 hex digits; in binary formats as its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; 16]);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return serializer.collect_str(self);
        }
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
        if deserializer.is_human_readable() {
            return Id::try_from(String::deserialize(deserializer)?)
                .map_err(serde::de::Error::custom);
        }
        <[u8; 16]>::deserialize(deserializer).map(Id)
    }
}

impl From<Id> for String {
    fn from(id: Id) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for Id {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bad = || format!("`{text}` is not an id: expected 32 hex digits");
        if text.len() != 32 || !text.is_ascii() {
            return Err(bad());
        }
        let mut id = [0; 16];
        for (byte, at) in id.iter_mut().zip((0..32).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| bad())?;
        }
        Ok(Id(id))
    }
}

/// A difference between desired and actual state, to be executed once.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Action {
    /// Function of (owner, tick, desired): invariant 7.
    pub id: Id,
    /// The decision it comes from.
    pub decision: Id,
    /// The tick that caused it.
    pub tick: Tick,
    /// Not to be executed after this tick: a stale bid expires instead of executing late.
    pub expires: Tick,
    /// The entity that owns the bid, budget or status. At most one action per owner is in flight.
    pub owner: EntityKey,
    /// What is wanted.
    pub desired: Setting,
    /// What was true before (the pre-image that undo restores), if known.
    pub before: Option<Setting>,
    /// Reason codes, most important first.
    pub reasons: Vec<&'static str>,
}

/// What a decision came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// An action was emitted.
    Act,
    /// Nothing to change (a no-op).
    Hold,
    /// A change was wanted and a guardrail stopped all of it.
    Blocked,
    /// A change was wanted and waits for a person.
    Propose,
}

impl Verdict {
    /// The name used in API and history.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Act => "act",
            Verdict::Hold => "hold",
            Verdict::Blocked => "blocked",
            Verdict::Propose => "propose",
        }
    }
}

/// What the policy expects of a change, with an 80 % interval, per day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Expected change of daily spend, in micros.
    pub spend_micros: f64,
    /// Expected change of daily value (conversions, or clicks where the goal counts clicks).
    pub value: f64,
    /// 10 % quantile of the change of value.
    pub value_low: f64,
    /// 90 % quantile of the change of value.
    pub value_high: f64,
}

/// One decision, no-ops included: everything needed to explain and to repeat it.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Function of (entity, tick, policy).
    pub id: Id,
    /// When it was made.
    pub tick: Tick,
    /// About whom.
    pub entity: Arc<EntityInfo>,
    /// Name of the goal it serves.
    pub goal: Arc<str>,
    /// Policy name with version, for example `target_cpa/1`.
    pub policy: &'static str,
    /// Version of the click and conversion model used; 0 without one.
    pub model_version: u64,
    /// What it came to.
    pub verdict: Verdict,
    /// What the policy wanted before guardrails.
    pub proposed: Option<Setting>,
    /// What the guardrails let through.
    pub granted: Option<Setting>,
    /// Action emitted, when the verdict is [`Verdict::Act`].
    pub action: Option<Id>,
    /// Reason codes of the policy, most important first.
    pub reasons: Vec<&'static str>,
    /// Guardrails that changed or stopped the proposal.
    pub guardrails: Vec<&'static str>,
    /// Expected effect.
    pub predicted: Prediction,
    /// Probability (density for amounts) with which the logging policy chose this; 1 when
    /// deterministic.
    pub propensity: f64,
    /// Spend today against plan: (spent − planned) / daily budget; 0 without a budget.
    pub pacing_error: f64,
    /// The exact features it was made on.
    pub row: FeatureRow,
}
