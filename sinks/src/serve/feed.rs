//! The newest decisions and actions, in bounded rings that are cheap to copy into a snapshot.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use omnify_decision::action::{Action, Decision, Id, Setting, Verdict};
use omnify_decision::control::Outcome;
use omnify_operators::model::Tick;
use serde::Serialize;

/// A decision as kept by the board.
#[derive(Clone, Debug)]
pub struct KeptDecision {
    /// Position among all decisions the board was told of, from 1.
    pub sequence: u64,
    /// The setting that was true before, where it is known.
    pub before: Option<Setting>,
    /// The decision.
    pub decision: Decision,
}

/// Where an action is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionState {
    /// Waits for a person, or is only shown (dry run).
    Proposed,
    /// Handed to the executor; no answer yet.
    InFlight,
    /// The platform holds the desired value.
    Applied,
    /// The platform refused it for good.
    Rejected,
    /// Not executed in time.
    Expired,
}

impl ActionState {
    /// All states.
    pub const ALL: [ActionState; 5] = [
        ActionState::Proposed,
        ActionState::InFlight,
        ActionState::Applied,
        ActionState::Rejected,
        ActionState::Expired,
    ];

    /// The name used in the API.
    pub const fn name(self) -> &'static str {
        match self {
            ActionState::Proposed => "proposed",
            ActionState::InFlight => "in_flight",
            ActionState::Applied => "applied",
            ActionState::Rejected => "rejected",
            ActionState::Expired => "expired",
        }
    }
}

/// An action as kept by the board.
#[derive(Clone, Debug)]
pub struct KeptAction {
    /// Position among all actions the board was told of, from 1.
    pub sequence: u64,
    /// Rises with every change of any action: a reader asks for what changed since.
    pub revision: u64,
    /// The action.
    pub action: Arc<Action>,
    /// Where it is.
    pub state: ActionState,
    /// Tick of the last change.
    pub changed: Tick,
    /// What the executor said, when it said something.
    pub detail: Option<String>,
    /// What the platform made of it, when it differs from what was wanted.
    pub effective: Option<Setting>,
}

/// The newest decisions, a ring for each verdict: a flood of no-ops never pushes out an act.
#[derive(Clone, Debug, Default)]
pub struct DecisionFeed {
    rings: [VecDeque<Arc<KeptDecision>>; 4],
    kept: usize,
    newest: u64,
}

const fn ring_of(verdict: Verdict) -> usize {
    match verdict {
        Verdict::Act => 0,
        Verdict::Hold => 1,
        Verdict::Blocked => 2,
        Verdict::Propose => 3,
    }
}

impl DecisionFeed {
    pub(crate) fn new(kept: usize) -> DecisionFeed {
        DecisionFeed { kept: kept.max(1), ..DecisionFeed::default() }
    }

    pub(crate) fn push(
        &mut self,
        before: Option<Setting>,
        decision: Decision,
    ) -> Arc<KeptDecision> {
        self.newest += 1;
        let ring = &mut self.rings[ring_of(decision.verdict)];
        if ring.len() == self.kept {
            ring.pop_front();
        }
        let kept = Arc::new(KeptDecision { sequence: self.newest, before, decision });
        ring.push_back(kept.clone());
        kept
    }

    /// Sequence number of the newest decision; 0 before the first.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Decisions of `verdict` (all when `None`) with `after < sequence < before`, newest first.
    pub fn iter(
        &self,
        verdict: Option<Verdict>,
        after: u64,
        before: u64,
    ) -> impl Iterator<Item = &Arc<KeptDecision>> {
        let mut cursors: [_; 4] = std::array::from_fn(|at| {
            let wanted = verdict.is_none_or(|verdict| ring_of(verdict) == at);
            let ring = &self.rings[at];
            // Rings are ascending, so everything at or past `before` is at their end.
            let end = if wanted { ring.partition_point(|kept| kept.sequence < before) } else { 0 };
            ring.range(..end).rev().peekable()
        });
        std::iter::from_fn(move || {
            let newest = (0..cursors.len())
                .filter_map(|at| cursors[at].peek().map(|kept| (kept.sequence, at)))
                .max()?;
            cursors[newest.1].next()
        })
        .take_while(move |kept| kept.sequence > after)
    }
}

/// The newest actions with where they are.
#[derive(Clone, Debug, Default)]
pub struct ActionFeed {
    ring: VecDeque<Arc<KeptAction>>,
    kept: usize,
    newest: u64,
    revision: u64,
}

impl ActionFeed {
    pub(crate) fn new(kept: usize) -> ActionFeed {
        ActionFeed { kept: kept.max(1), ..ActionFeed::default() }
    }

    /// Greatest revision given out; 0 before the first action.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// All kept actions, newest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<KeptAction>> {
        self.ring.iter().rev()
    }

    fn at(&self, sequence: u64) -> Option<usize> {
        let first = self.ring.front()?.sequence;
        usize::try_from(sequence.checked_sub(first)?).ok().filter(|at| *at < self.ring.len())
    }
}

/// Writer side of [`ActionFeed`]: finds an action by its id.
#[derive(Debug, Default)]
pub(crate) struct ActionLog {
    pub(crate) feed: ActionFeed,
    sequence_of: HashMap<Id, u64>,
}

impl ActionLog {
    pub(crate) fn new(kept: usize) -> ActionLog {
        ActionLog { feed: ActionFeed::new(kept), sequence_of: HashMap::new() }
    }

    /// Adds `action`, or moves a known one to `state`.
    pub(crate) fn put(&mut self, action: &Action, state: ActionState, tick: Tick) {
        if self.change(action.id, tick, |kept| kept.state = state).is_some() {
            return;
        }
        let feed = &mut self.feed;
        if feed.ring.len() == feed.kept
            && let Some(oldest) = feed.ring.pop_front()
        {
            self.sequence_of.remove(&oldest.action.id);
        }
        feed.newest += 1;
        feed.revision += 1;
        self.sequence_of.insert(action.id, feed.newest);
        feed.ring.push_back(Arc::new(KeptAction {
            sequence: feed.newest,
            revision: feed.revision,
            action: Arc::new(action.clone()),
            state,
            changed: tick,
            detail: None,
            effective: None,
        }));
    }

    /// Records how the action ended (or that nobody knows yet). Answers the action and the setting
    /// that is true now; `None` when the action is no longer kept.
    pub(crate) fn outcome(
        &mut self,
        id: Id,
        outcome: &Outcome,
        tick: Tick,
    ) -> Option<(Arc<Action>, Option<Setting>)> {
        let mut now = None;
        let kept = self.change(id, tick, |kept| match outcome {
            Outcome::Applied { effective } => {
                kept.state = ActionState::Applied;
                kept.effective = (*effective != kept.action.desired).then(|| effective.clone());
                now = Some(effective.clone());
            }
            Outcome::NoChange => {
                kept.state = ActionState::Applied;
                kept.detail = Some("was already true; nothing was sent".to_owned());
                now = Some(kept.action.desired.clone());
            }
            Outcome::Rejected { class, message } => {
                kept.state = ActionState::Rejected;
                kept.detail = Some(format!("{class}: {message}"));
            }
            Outcome::Expired => kept.state = ActionState::Expired,
            Outcome::Unknown => {
                kept.state = ActionState::InFlight;
                kept.detail = Some("the reply was lost; reading back before anything else".into());
            }
        })?;
        Some((kept, now))
    }

    fn change(
        &mut self,
        id: Id,
        tick: Tick,
        edit: impl FnOnce(&mut KeptAction),
    ) -> Option<Arc<Action>> {
        let at = self.feed.at(*self.sequence_of.get(&id)?)?;
        self.feed.revision += 1;
        let revision = self.feed.revision;
        let kept = Arc::make_mut(&mut self.feed.ring[at]);
        edit(kept);
        (kept.revision, kept.changed) = (revision, tick);
        Some(kept.action.clone())
    }
}
