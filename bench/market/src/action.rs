//! What may be asked of a platform, and its answers. The JSON forms are those of the engine's
//! actions; the types are this crate's own, because a platform does not know its callers.

use omnify_operators::model::{Currency, EntityKey, EventTime, Level};
use serde::{Deserialize, Serialize};

/// Delivery status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Delivers.
    Enabled,
    /// Does not deliver.
    Paused,
}

/// One setting of an entity, as an absolute value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "setting", rename_all = "snake_case")]
pub enum Setting {
    /// CPM bid of a campaign.
    Bid {
        /// Amount per thousand impressions in micros.
        bid_micros: i64,
    },
    /// Daily budget of a campaign.
    Budget {
        /// Amount per account-local day in micros.
        budget_micros: i64,
    },
    /// Status of a campaign, ad group or creative.
    Status {
        /// The status.
        status: Status,
    },
    /// Pause one creative and enable another; the owner is their ad group or campaign.
    Rotate {
        /// The creative to pause.
        from: EntityKey,
        /// The creative to enable.
        to: EntityKey,
    },
}

/// The answer to an accepted action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// False when it was true already; nothing changed then and no quota was used.
    pub applied: bool,
    /// What holds now; amounts are rounded down to the account's quantum.
    pub effective: Setting,
}

/// The settings of an entity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntitySettings {
    /// The entity.
    pub entity: EntityKey,
    /// Its level.
    pub level: Level,
    /// CPM bid, of campaigns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bid_micros: Option<i64>,
    /// Daily budget, of campaigns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily_budget_micros: Option<i64>,
    /// Spent in the account-local day so far, of campaigns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent_today_micros: Option<i64>,
    /// Status.
    pub status: Status,
    /// Currency of the amounts.
    pub currency: Currency,
    /// IANA name of the account's time zone.
    pub time_zone: String,
}

/// A refused action. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// There is no such entity, or it owns no settings.
    #[error("`{0}` is not a campaign, ad group or creative of this market")]
    UnknownEntity(EntityKey),
    /// A value is not acceptable.
    #[error("`{field}`: {message}")]
    Validation {
        /// The field of the request.
        field: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
    /// The compare-and-set value is not what holds.
    #[error("the setting is not what the request expected; read it and decide again")]
    Conflict {
        /// What holds.
        current: Setting,
    },
    /// The platform's limit on changes is used up.
    #[error(
        "`{owner}` had {limit} budget changes within an hour; the next is possible in {retry_after_s} s of market time"
    )]
    Quota {
        /// The entity.
        owner: EntityKey,
        /// Changes per sliding hour.
        limit: u32,
        /// Market time until the next change is possible.
        retry_after_s: i64,
    },
}

impl ActionError {
    pub(crate) fn invalid(field: &'static str, message: impl Into<String>) -> ActionError {
        ActionError::Validation { field, message: message.into() }
    }
}

/// Rounds `micros` down to `quantum` and checks it against its limits.
pub(crate) fn amount(
    field: &'static str,
    micros: i64,
    quantum: i64,
    (low, high): (i64, i64),
) -> Result<i64, ActionError> {
    let rounded = micros.saturating_sub(micros.rem_euclid(quantum));
    if (low..=high).contains(&rounded) {
        return Ok(rounded);
    }
    let message = format!("{micros} is outside {low} to {high} (rounded down to {quantum})");
    Err(ActionError::invalid(field, message))
}

/// Market time within which budget changes are counted.
pub(crate) const QUOTA_WINDOW_US: EventTime = 3_600_000_000;
