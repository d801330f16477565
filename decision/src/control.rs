//! Inputs of the stage that are not features. Each is journalled with the tick at which it took
//! effect, so that a replay sees exactly what a live run saw.

use omnify_operators::model::EntityKey;
use serde::{Deserialize, Serialize};

use crate::action::{Id, Setting, Status};
use crate::goal::Goal;

/// How an action ended, as told by its executor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// The platform holds the desired value now (`effective` when the platform rounded it).
    Applied {
        /// What the platform says is true now.
        effective: Setting,
    },
    /// It was true already; nothing was sent.
    NoChange,
    /// The platform refuses it for good.
    Rejected {
        /// Error class of the executor, for example `validation`.
        class: String,
        /// The platform's words.
        message: String,
    },
    /// Not executed before it expired or within its retries; may be decided anew.
    Expired,
    /// The reply was lost and the read-back could not settle it yet.
    Unknown,
}

/// An entity's settings as a platform reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actual {
    /// Bid, if the entity owns one.
    pub bid_micros: Option<i64>,
    /// Daily budget, if the entity owns one.
    pub budget_micros: Option<i64>,
    /// Delivery status.
    pub status: Option<Status>,
}

/// One control input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "control", rename_all = "snake_case")]
pub enum Control {
    /// An action ended.
    Acknowledge {
        /// The action.
        action: Id,
        /// Its owner.
        owner: EntityKey,
        /// How it ended.
        outcome: Outcome,
    },
    /// A platform reported an entity's settings.
    Observe {
        /// The entity.
        entity: EntityKey,
        /// Its settings.
        actual: Actual,
    },
    /// A learned model takes effect. `path` is relative to the history's `models` folder.
    Model {
        /// Its version.
        version: u64,
        /// The model itself, as written by `learn`.
        model: serde_json::Value,
    },
    /// No action leaves for a tenant (or for all) until resumed. Computing goes on.
    Kill {
        /// The tenant, or `None` for everything.
        tenant: Option<String>,
    },
    /// A goal is set: a new one, or in place of the one of the same name. Covering is worked out
    /// anew for the campaigns concerned at the tick of the input.
    Goal {
        /// The goal.
        goal: Goal,
    },
    /// A goal ends, whether it came from the configuration or as an input.
    DropGoal {
        /// Its name.
        name: String,
        /// Whom the sender speaks for: only a goal of this tenant is dropped. `None` for the
        /// operator, who may drop any.
        #[serde(default)]
        tenant: Option<String>,
    },
    /// A person agrees to a proposal. It is judged anew, then carried out or dropped.
    Approve {
        /// The proposal.
        proposal: Id,
        /// Who.
        by: String,
    },
    /// A person refuses a proposal.
    Reject {
        /// The proposal.
        proposal: Id,
        /// Who.
        by: String,
        /// Why, in their words.
        #[serde(default)]
        reason: String,
    },
    /// Lifts a kill.
    Resume {
        /// The tenant, or `None` for the global kill.
        tenant: Option<String>,
    },
    /// How far evaluations are put off from this tick on, because the engine cannot keep up: 0 not
    /// at all. Recorded, as it decides which rows the stage sees.
    Calm {
        /// The overload level.
        level: u8,
    },
}
