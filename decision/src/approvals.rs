//! Changes that wait for a person: the queue of proposals.
//!
//! # Contract
//! - A proposal carries the id its action will have. At most one is open per owner: a newer one
//!   supersedes the older, an equal one leaves it as it is.
//! - An approval is judged anew on the current state, by the guardrails as well; what is no longer
//!   right is dropped with a reason, and a fresh decision may follow. What is approved is carried
//!   out as it was proposed, or not at all.
//! - Per tenant at most `approvals_max` wait; at the bound the oldest expires. All expire after
//!   `approval_ttl_ms`. However a proposal ends, there is a decision under
//!   [`policy::APPROVAL`](crate::codes::policy::APPROVAL) that says so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use omnify_operators::model::{EntityKey, FeatureRow, Tick};
use serde::{Deserialize, Serialize};

use crate::action::{Id, Prediction, Setting};
use crate::autonomy::{Complexity, Required};
use crate::codes::CodeName;
use crate::guardrail::Driver;
use crate::wire::{SettingWire, code, codes, setting_option};

/// A change that waits for a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// Id of the proposal, and of its action once approved: a function of (owner, tick, desired).
    pub id: Id,
    /// The decision that proposed it.
    pub decision: Id,
    /// When it was proposed.
    pub tick: Tick,
    /// From this tick on it is no longer open.
    pub expires: Tick,
    /// Whose setting it changes.
    pub owner: EntityKey,
    /// The entity decided about: the owner, or the worn-out creative of a rotation.
    pub entity: EntityKey,
    /// Name of the goal.
    pub goal: Arc<str>,
    /// Policy that proposed it.
    #[serde(with = "code")]
    pub policy: CodeName,
    /// Model version; 0 without one.
    pub model_version: u64,
    /// The setting as it was, if known.
    #[serde(with = "setting_option")]
    pub before: Option<Setting>,
    /// The setting wanted.
    #[serde(with = "SettingWire")]
    pub desired: Setting,
    /// Expected effect.
    pub predicted: Prediction,
    /// Probability of the choice.
    pub propensity: f64,
    /// Spend against plan.
    pub pacing_error: f64,
    /// Reason codes of the policy.
    #[serde(with = "codes")]
    pub reasons: Vec<&'static str>,
    /// Guardrails that changed it, or asked for a person.
    #[serde(with = "codes")]
    pub guardrails: Vec<&'static str>,
    /// How complex it is, in parts.
    pub complexity: Complexity,
    /// The features it was made on.
    pub row: FeatureRow,
    pub(crate) driver: Driver,
    pub(crate) certainty: f64,
}

impl Proposal {
    /// Who has to say yes.
    pub fn required(&self) -> Required {
        self.complexity.required()
    }
}

/// All open proposals, by age.
#[derive(Clone, Debug, Default)]
pub(crate) struct Approvals {
    open: BTreeMap<u64, Arc<Proposal>>,
    next: u64,
    by_id: HashMap<Id, u64>,
    by_owner: HashMap<EntityKey, u64>,
    due: BTreeSet<(Tick, u64)>,
    of_tenant: HashMap<String, BTreeSet<u64>>,
}

impl Approvals {
    /// The oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Proposal>> {
        self.open.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Adds a proposal of an owner that has none open.
    pub(crate) fn add(&mut self, proposal: Proposal) {
        let seq = self.next;
        self.next += 1;
        self.by_id.insert(proposal.id, seq);
        self.by_owner.insert(proposal.owner.clone(), seq);
        self.due.insert((proposal.expires, seq));
        self.of_tenant.entry(proposal.owner.tenant().to_owned()).or_default().insert(seq);
        self.open.insert(seq, Arc::new(proposal));
    }

    /// Takes the proposal of this id out.
    pub(crate) fn take(&mut self, id: Id) -> Option<Arc<Proposal>> {
        self.by_id.get(&id).copied().and_then(|seq| self.remove(seq))
    }

    /// Takes the owner's proposal out.
    pub(crate) fn take_of(&mut self, owner: &EntityKey) -> Option<Arc<Proposal>> {
        self.by_owner.get(owner).copied().and_then(|seq| self.remove(seq))
    }

    /// Takes out one that is due.
    pub(crate) fn take_due(&mut self, tick: Tick) -> Option<Arc<Proposal>> {
        let (_, seq) = *self.due.first().filter(|(expires, _)| *expires <= tick)?;
        self.remove(seq)
    }

    /// Takes out the oldest of a tenant that has more than `max`.
    pub(crate) fn take_excess(&mut self, tenant: &str, max: usize) -> Option<Arc<Proposal>> {
        let open = self.of_tenant.get(tenant).filter(|open| open.len() > max)?;
        let oldest = open.first().copied()?;
        self.remove(oldest)
    }

    fn remove(&mut self, seq: u64) -> Option<Arc<Proposal>> {
        let proposal = self.open.remove(&seq)?;
        self.by_id.remove(&proposal.id);
        self.by_owner.remove(&proposal.owner);
        self.due.remove(&(proposal.expires, seq));
        let tenant = proposal.owner.tenant();
        if let Some(open) = self.of_tenant.get_mut(tenant) {
            open.remove(&seq);
            if open.is_empty() {
                self.of_tenant.remove(tenant);
            }
        }
        Some(proposal)
    }
}
