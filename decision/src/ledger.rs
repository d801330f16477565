//! Desired against actual: who owns which setting, what is in flight, what it was before.
//!
//! # Contract
//! - One action in flight per owner (invariant 6). After [`Outcome::Unknown`], or when no
//!   acknowledgement came at all, the owner is free again only when a read-back
//!   ([`Control::Observe`](crate::control::Control::Observe)) or an acknowledgement settles it; for
//!   an action never acknowledged the read-back must come after its expiry, as it may still be
//!   carried out until then.
//! - Actual state changes only by acknowledgement or observation, never by wishing.
//! - Money is double entry: the budget of a day is at every moment the sum of what is available,
//!   committed and spent, minus the platform's overrun (invariant 8).
//! - Every applied change leaves its pre-image, so that it can be undone.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use omnify_operators::model::{DAY_US, EntityKey, Tick};
use serde::{Deserialize, Serialize};

use crate::action::{Action, ActionKind, Id, Setting, Status};
use crate::control::{Actual, Outcome};
use crate::pages::Pages;
use crate::stage::StageError;
use crate::wire::{ActionWire, Reader, SettingWire, Writer, setting_option};

/// Changes remembered per owner for the cumulative limits. With the default cooldown of 15 minutes
/// seven days hold 672; at the bound the oldest are forgotten last and no change is granted.
const MOVES_MAX: usize = 1_024;
/// Pre-images kept per owner; the oldest goes first.
const PRE_IMAGES_MAX: usize = 32;

/// An action on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InFlight {
    /// The action as it was emitted.
    #[serde(with = "ActionWire")]
    pub action: Action,
    /// True once its outcome was reported unknown.
    pub unknown: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Move {
    at_us: i64,
    action: Id,
    ln_change: f64,
}

/// A setting as it was before one of our changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreImage {
    /// Tick of the change.
    pub tick: Tick,
    /// The action that changed it.
    pub action: Id,
    /// What was true before.
    #[serde(with = "SettingWire")]
    pub before: Setting,
}

/// State of one owner of a bid, budget or status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Owner {
    /// What is true at the platform, as far as known.
    pub actual: Actual,
    /// What the engine asked for last.
    pub desired: Actual,
    /// The action on its way.
    pub in_flight: Option<InFlight>,
    /// The last setting the platform refused for good.
    #[serde(with = "setting_option")]
    pub rejected: Option<Setting>,
    /// What the open proposal of this owner would set.
    #[serde(with = "setting_option")]
    pub proposed: Option<Setting>,
    /// A kind of change that a person rejected, and until when it is not proposed again.
    pub declined: Option<(ActionKind, Tick)>,
    /// What was true before each of the last changes, oldest first.
    pub pre_images: VecDeque<PreImage>,
    /// When a setting was last found changed by somebody else.
    pub foreign_edit_us: Option<i64>,
    /// When the last change of ours was sent.
    pub changed_us: Option<i64>,
    moves: VecDeque<Move>,
    drifted: bool,
}

impl Owner {
    /// Sum of |Δ ln| of our own bid and budget changes in the `span_us` before `now_us`.
    pub fn moved(&self, now_us: i64, span_us: i64) -> f64 {
        if self.moves.len() >= MOVES_MAX {
            return f64::INFINITY;
        }
        let recent = self.moves.iter().rev().take_while(|step| now_us - step.at_us < span_us);
        recent.map(|step| step.ln_change.abs()).sum()
    }

    /// The actual value of the setting that `like` would change.
    pub fn before(&self, like: &Setting) -> Option<Setting> {
        match like {
            Setting::Bid { .. } => {
                self.actual.bid_micros.map(|bid_micros| Setting::Bid { bid_micros })
            }
            Setting::Budget { .. } => {
                self.actual.budget_micros.map(|budget_micros| Setting::Budget { budget_micros })
            }
            Setting::Status { .. } => self.actual.status.map(|status| Setting::Status { status }),
            Setting::Rotate { .. } | Setting::Alert { .. } => None,
        }
    }

    /// The budget the platform may hold: what it has, or what is on its way if that is more.
    pub(crate) fn budget_at_most(&self) -> i64 {
        let coming = self.in_flight.as_ref().and_then(|flight| match flight.action.desired {
            Setting::Budget { budget_micros } => Some(budget_micros),
            _ => None,
        });
        coming.max(self.actual.budget_micros).unwrap_or(0)
    }

    /// Takes note of a foreign change once.
    pub(crate) fn take_drift(&mut self) -> bool {
        std::mem::take(&mut self.drifted)
    }

    /// Notes intent before an action leaves. `false`, and nothing noted, when one is in flight.
    #[must_use]
    pub(crate) fn begin(&mut self, action: &Action, now_us: i64) -> bool {
        if self.in_flight.is_some() {
            return false;
        }
        self.in_flight = Some(InFlight { action: action.clone(), unknown: false });
        set(&mut self.desired, &action.desired);
        self.changed_us = Some(now_us);
        let micros = |setting: &Setting| setting.micros().filter(|micros| *micros > 0);
        if let (Some(before), Some(after)) =
            (action.before.as_ref().and_then(micros), micros(&action.desired))
        {
            self.age(now_us);
            let ln_change = (after as f64 / before as f64).ln();
            self.moves.push_back(Move { at_us: now_us, action: action.id, ln_change });
        }
        if let Some(before) = &action.before {
            if self.pre_images.len() == PRE_IMAGES_MAX {
                self.pre_images.pop_front();
            }
            let before = before.clone();
            self.pre_images.push_back(PreImage { tick: action.tick, action: action.id, before });
        }
        true
    }

    /// An action ended. `false` when it was not in flight.
    pub(crate) fn acknowledge(&mut self, action: Id, outcome: &Outcome) -> bool {
        let Some(flight) = self.in_flight.take_if(|flight| flight.action.id == action) else {
            return false;
        };
        match outcome {
            Outcome::Applied { effective } => {
                self.rejected = None;
                set(&mut self.actual, effective);
            }
            Outcome::NoChange => {
                self.rejected = None;
                set(&mut self.actual, &flight.action.desired);
                self.forget(action);
            }
            Outcome::Rejected { .. } => {
                self.rejected = Some(flight.action.desired);
                self.forget(action);
            }
            Outcome::Expired => self.forget(action),
            Outcome::Unknown => self.in_flight = Some(InFlight { unknown: true, ..flight }),
        }
        true
    }

    /// The platform reported settings: settles what is in flight if it can, notes drift otherwise.
    pub(crate) fn observe(&mut self, seen: &Actual, now: Tick, now_us: i64) {
        let flight = self.in_flight.take();
        let mut expected = self.actual.clone();
        if let Some(flight) = flight {
            let mut wanted = self.actual.clone();
            set(&mut wanted, &flight.action.desired);
            let applied = agrees(seen, &wanted) && holds(seen, &flight.action.desired);
            if applied {
                expected = wanted;
            } else if flight.unknown || now > flight.action.expires {
                self.forget(flight.action.id);
            } else {
                self.in_flight = Some(flight);
            }
        }
        if !agrees(seen, &expected) {
            self.drifted = true;
            self.foreign_edit_us = Some(now_us);
        }
        self.actual.bid_micros = seen.bid_micros.or(self.actual.bid_micros);
        self.actual.budget_micros = seen.budget_micros.or(self.actual.budget_micros);
        self.actual.status = seen.status.or(self.actual.status);
    }

    /// Whether changes are remembered that no limit counts any more.
    fn is_aged(&self, now_us: i64) -> bool {
        self.moves.front().is_some_and(|step| now_us - step.at_us >= 7 * DAY_US)
    }

    fn age(&mut self, now_us: i64) {
        while self.is_aged(now_us) {
            self.moves.pop_front();
        }
        if self.moves.is_empty() {
            self.moves.shrink_to_fit();
        }
    }

    /// Whether an action or a proposal is about it.
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight.is_some() || self.proposed.is_some()
    }

    /// A change that never happened does not count against limits and cannot be undone.
    fn forget(&mut self, action: Id) {
        self.moves.retain(|step| step.action != action);
        self.pre_images.retain(|image| image.action != action);
    }
}

fn set(actual: &mut Actual, setting: &Setting) {
    match setting {
        Setting::Bid { bid_micros } => actual.bid_micros = Some(*bid_micros),
        Setting::Budget { budget_micros } => actual.budget_micros = Some(*budget_micros),
        Setting::Status { status } => actual.status = Some(*status),
        Setting::Rotate { .. } | Setting::Alert { .. } => {}
    }
}

/// Whether nothing seen contradicts what was expected.
fn agrees(seen: &Actual, expected: &Actual) -> bool {
    fn same<T: PartialEq + Copy>(seen: Option<T>, expected: Option<T>) -> bool {
        seen.is_none() || expected.is_none() || seen == expected
    }
    same(seen.bid_micros, expected.bid_micros)
        && same(seen.budget_micros, expected.budget_micros)
        && same(seen.status, expected.status)
}

/// Whether what was seen shows the setting. A rotation shows in its creatives, not in its owner.
fn holds(seen: &Actual, setting: &Setting) -> bool {
    match setting {
        Setting::Bid { bid_micros } => seen.bid_micros == Some(*bid_micros),
        Setting::Budget { budget_micros } => seen.budget_micros == Some(*budget_micros),
        Setting::Status { status } => seen.status == Some(*status),
        Setting::Rotate { .. } | Setting::Alert { .. } => false,
    }
}

/// All owners, found by key or by the position handed out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    owners: Pages<(EntityKey, Owner)>,
    index: Arc<HashMap<EntityKey, usize>>,
}

impl Ledger {
    /// Position of the owner, made now if it is new.
    pub(crate) fn position(&mut self, key: &EntityKey) -> usize {
        if let Some(at) = self.index.get(key) {
            return *at;
        }
        let at = self.owners.insert((key.clone(), Owner::default()));
        Arc::make_mut(&mut self.index).insert(key.clone(), at);
        at
    }

    /// The owner at a position handed out before.
    pub(crate) fn at(&mut self, position: usize) -> &mut Owner {
        &mut self.owners[position].1
    }

    /// The same, to read.
    pub(crate) fn read(&self, position: usize) -> &Owner {
        &self.owners[position].1
    }

    /// The owner of this key.
    pub(crate) fn get(&self, key: &EntityKey) -> Option<&Owner> {
        self.index.get(key).map(|at| &self.owners[*at].1)
    }

    /// All owners with their keys, by position.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(EntityKey, Owner)> {
        self.owners.iter().map(|(_, owner)| owner)
    }

    /// Forgets an owner.
    pub(crate) fn remove(&mut self, position: usize) {
        if let Some((key, _)) = self.owners.get(position) {
            Arc::make_mut(&mut self.index).remove(key);
            self.owners.remove(position);
        }
    }

    /// Forgets the owner of this key.
    pub(crate) fn remove_of(&mut self, key: &EntityKey) {
        if let Some(at) = self.index.get(key) {
            self.remove(*at);
        }
    }

    /// Forgets changes that no limit counts any more.
    pub(crate) fn age(&mut self, now_us: i64) {
        for at in self.owners.positions(|(_, owner)| owner.is_aged(now_us)) {
            self.owners[at].1.age(now_us);
        }
    }

    /// Whether an owner is at this position.
    pub(crate) fn has(&self, position: usize) -> bool {
        self.owners.get(position).is_some()
    }

    /// Writes everything.
    pub(crate) fn save(&self, out: &mut Writer) {
        out.list(self.owners.end(), self.owners.slots());
    }

    /// Reads what [`Ledger::save`] wrote.
    pub(crate) fn load(input: &mut Reader<'_>) -> Result<Ledger, StageError> {
        let owners: Pages<(EntityKey, Owner)> = input.list("owners")?.into_iter().collect();
        let index = owners.iter().map(|(at, (key, _))| (key.clone(), at)).collect();
        Ok(Ledger { owners, index: Arc::new(index) })
    }

    /// Ends what is in flight as applied, as nobody is left to say so.
    pub(crate) fn settle(&mut self) {
        for at in self.owners.positions(|(_, owner)| owner.in_flight.is_some()) {
            let owner = &mut self.owners[at].1;
            if let Some(flight) = owner.in_flight.clone() {
                let effective = flight.action.desired;
                owner.acknowledge(flight.action.id, &Outcome::Applied { effective });
            }
        }
    }
}

/// The money of one campaign and day, in double entry:
/// `budget + overrun = available + committed + spent`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purse {
    budget_micros: i64,
    available_micros: i64,
    committed_micros: i64,
    spent_micros: i64,
    overrun_micros: i64,
}

impl Purse {
    /// Opens the books for a day.
    pub fn open(budget_micros: i64) -> Purse {
        Purse { budget_micros, available_micros: budget_micros, ..Purse::default() }
    }

    /// States what is spent so far and commits up to `wanted_micros` more; what was committed
    /// before is released first. Returns what could be committed.
    pub fn commit(&mut self, spent_micros: i64, wanted_micros: i64) -> i64 {
        self.spent_micros = spent_micros.max(0);
        let left = self.budget_micros - self.spent_micros;
        self.overrun_micros = (-left).max(0);
        self.committed_micros = wanted_micros.clamp(0, left.max(0));
        self.available_micros = left.max(0) - self.committed_micros;
        self.committed_micros
    }

    /// What is left to commit or spend.
    pub fn left_micros(&self) -> i64 {
        self.available_micros + self.committed_micros
    }

    /// Whether credit equals debit and no more is committed than the budget holds (invariant 8).
    pub fn balances(&self) -> bool {
        self.budget_micros + self.overrun_micros
            == self.available_micros + self.committed_micros + self.spent_micros
            && self.available_micros >= 0
            && (self.overrun_micros == 0 || self.committed_micros == 0)
    }
}

/// Whether a status stops delivery.
pub(crate) fn is_paused(actual: &Actual) -> bool {
    actual.status == Some(Status::Paused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn action(id: u8, desired: i64, before: Option<i64>) -> Action {
        let bid = |bid_micros| Setting::Bid { bid_micros };
        Action {
            id: Id([id; 16]),
            decision: Id([0; 16]),
            tick: u64::from(id) * 1_000,
            expires: u64::from(id) * 1_000 + 500,
            owner: "t/p/a/c".parse().unwrap(),
            desired: bid(desired),
            before: before.map(bid),
            reasons: Vec::new(),
        }
    }

    fn bid(bid_micros: i64) -> Actual {
        Actual { bid_micros: Some(bid_micros), ..Actual::default() }
    }

    #[test]
    fn one_action_in_flight_and_unknown_blocks_until_read_back() {
        let mut owner = Owner::default();
        assert!(owner.begin(&action(1, 100, None), 0));
        assert!(!owner.begin(&action(2, 110, None), 0));
        assert!(!owner.acknowledge(Id([2; 16]), &Outcome::NoChange));
        assert!(owner.acknowledge(Id([1; 16]), &Outcome::Unknown));
        assert!(owner.in_flight.as_ref().is_some_and(|flight| flight.unknown));
        owner.observe(&bid(90), 1_001, 0);
        assert_eq!((owner.in_flight.clone(), owner.actual.bid_micros), (None, Some(90)));
        assert!(!owner.take_drift(), "nothing was known before, so nothing drifted");
    }

    #[test]
    fn silence_frees_only_after_expiry_and_a_fresh_observation() {
        let mut owner = Owner { actual: bid(100), ..Owner::default() };
        assert!(owner.begin(&action(1, 110, Some(100)), 0));
        owner.observe(&bid(100), 1_400, 0);
        assert!(owner.in_flight.is_some() && !owner.take_drift());
        owner.observe(&bid(100), 1_501, 0);
        assert!(owner.in_flight.is_none() && !owner.take_drift());
        assert_eq!(owner.moved(1, DAY_US), 0.0, "it never happened");
        assert!(owner.pre_images.is_empty());
    }

    #[test]
    fn foreign_edits_are_drift_and_our_own_are_not() {
        let mut owner = Owner { actual: bid(100), ..Owner::default() };
        assert!(owner.begin(&action(1, 110, Some(100)), 0));
        owner.observe(&bid(110), 1_100, 0);
        assert!(owner.in_flight.is_none() && !owner.take_drift());
        owner.observe(&bid(250), 2_000, 7);
        assert!(owner.take_drift() && !owner.take_drift());
        assert_eq!((owner.actual.bid_micros, owner.foreign_edit_us), (Some(250), Some(7)));
        assert_eq!(owner.pre_images[0].before, Setting::Bid { bid_micros: 100 });
    }

    #[test]
    fn applied_takes_what_the_platform_rounded() {
        let mut owner = Owner { actual: bid(100), ..Owner::default() };
        assert!(owner.begin(&action(1, 107, Some(100)), 5));
        let effective = Setting::Bid { bid_micros: 110 };
        assert!(owner.acknowledge(Id([1; 16]), &Outcome::Applied { effective }));
        assert_eq!(owner.actual.bid_micros, Some(110));
        assert!((owner.moved(6, DAY_US) - 1.07f64.ln()).abs() < 1e-12);
        assert_eq!(owner.moved(5 + DAY_US, DAY_US), 0.0);
        assert!(owner.begin(&action(2, 120, Some(110)), 5));
        let refused = Outcome::Rejected { class: "validation".into(), message: String::new() };
        assert!(owner.acknowledge(Id([2; 16]), &refused));
        assert_eq!(owner.rejected, Some(Setting::Bid { bid_micros: 120 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_purse_always_balances(
            budget in 1i64..1_000_000,
            steps in prop::collection::vec((-10i64..2_000_000, -10i64..2_000_000), 1..20),
        ) {
            let mut purse = Purse::open(budget);
            for (spent, wanted) in steps {
                let committed = purse.commit(spent, wanted);
                prop_assert!(purse.balances(), "{:?}", purse);
                prop_assert!(committed >= 0 && committed + spent.max(0) <= budget.max(spent));
            }
        }
    }
}
