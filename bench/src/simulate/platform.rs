//! An ad platform behind a bad network, and the count of what must never happen to it.
//!
//! It takes settings as the market's API does: a change carries what was believed before and is
//! refused when somebody changed it meanwhile. Each call has a fate of its own: answered, refused,
//! lost on the way there or back, delivered twice, or delivered after the caller has given up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _, pending};
use omnify_decision::action::{Id, Setting, Status};
use omnify_decision::control::Actual;
use omnify_operators::model::{EntityKey, Level};
use omnify_sinks::action::{
    ActionSink, AmountRange, Capabilities, ErrorClass, ExecError, ExecOutcome, Intent, plan,
};
use rand::Rng as _;

use super::Random;
use super::runtime::VirtualRuntime;

/// What the network and the platform do, in weights.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    pub(super) answer: u32,
    pub(super) throttle: u32,
    pub(super) unreachable: u32,
    pub(super) error_before: u32,
    pub(super) error_after: u32,
    pub(super) lost_before: u32,
    pub(super) lost_after: u32,
    pub(super) twice: u32,
    pub(super) late: u32,
    pub(super) refuse: u32,
    /// Of a hundred read-backs, those that fail.
    pub(super) deaf_percent: u32,
}

impl Weather {
    pub(super) const FINE: Weather = Weather {
        answer: 1,
        throttle: 0,
        unreachable: 0,
        error_before: 0,
        error_after: 0,
        lost_before: 0,
        lost_after: 0,
        twice: 0,
        late: 0,
        refuse: 0,
        deaf_percent: 0,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answer,
    Throttle,
    Unreachable,
    ErrorBefore,
    ErrorAfter,
    LostBefore,
    LostAfter,
    Twice,
    Late,
    Refuse,
}

/// Longest wait for a reply.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A late delivery comes at most so much later.
const LATE_MS_MAX: u64 = 30_000;

/// A call as the platform saw it.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) owner: EntityKey,
    pub(super) desired: Setting,
    /// How often it was carried out, repetitions that the platform recognises not counted.
    pub(super) carried_out: u32,
    /// How often it changed something.
    pub(super) effects: u32,
}

/// See the module. Clones share the platform.
#[derive(Clone)]
pub(super) struct Platform(Arc<Mutex<State>>);

struct State {
    random: Random,
    runtime: VirtualRuntime,
    weather: Weather,
    dedupes: bool,
    settings: BTreeMap<EntityKey, Actual>,
    calls: BTreeMap<Id, Call>,
    /// Owners with a call that the engine waits for.
    calling: BTreeSet<EntityKey>,
    /// What is still on its way.
    late: Vec<(Duration, Intent)>,
    /// Calls received.
    received: u64,
    problem: Option<String>,
    log: Vec<String>,
}

impl Platform {
    pub(super) fn new(random: Random, runtime: VirtualRuntime, dedupes: bool) -> Platform {
        Platform(Arc::new(Mutex::new(State {
            random,
            runtime,
            weather: Weather::FINE,
            dedupes,
            settings: BTreeMap::new(),
            calls: BTreeMap::new(),
            calling: BTreeSet::new(),
            late: Vec::new(),
            received: 0,
            problem: None,
            log: Vec::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// A new entity, or a change by a person.
    pub(super) fn set(&self, entity: EntityKey, actual: Actual) {
        self.lock().settings.insert(entity, actual);
    }

    pub(super) fn settings(&self) -> BTreeMap<EntityKey, Actual> {
        self.lock().settings.clone()
    }

    pub(super) fn calls(&self) -> BTreeMap<Id, Call> {
        self.lock().calls.clone()
    }

    /// Calls received, and what is on its way.
    pub(super) fn traffic(&self) -> (u64, usize) {
        let state = self.lock();
        (state.received, state.late.len())
    }

    /// What happened since this was asked last.
    pub(super) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().log)
    }

    /// What must not have happened.
    pub(super) fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// The call arrives when nobody waits for its answer any more.
    fn delay(&self, intent: &Intent) {
        let mut state = self.lock();
        let ms = state.random.gen_range(1..LATE_MS_MAX);
        let at = state.runtime.now() + CALL_TIMEOUT + Duration::from_millis(ms);
        state.late.push((at, intent.clone()));
    }

    /// Delivers what is due.
    pub(super) fn deliver(&self) {
        let mut state = self.lock();
        let now = state.runtime.now();
        let (due, later) =
            std::mem::take(&mut state.late).into_iter().partition(|(at, _)| *at <= now);
        state.late = later;
        let due: Vec<(Duration, Intent)> = due;
        due.iter().for_each(|(_, intent)| drop(state.carry_out(intent)));
    }
}

impl State {
    fn complain(&mut self, what: String) {
        self.problem.get_or_insert(what);
    }

    fn fate(&mut self) -> Fate {
        let of = self.weather;
        let weights = [
            (Fate::Answer, of.answer),
            (Fate::Throttle, of.throttle),
            (Fate::Unreachable, of.unreachable),
            (Fate::ErrorBefore, of.error_before),
            (Fate::ErrorAfter, of.error_after),
            (Fate::LostBefore, of.lost_before),
            (Fate::LostAfter, of.lost_after),
            (Fate::Twice, of.twice),
            // Without memory for ids nobody can tell a late delivery from a new wish.
            (Fate::Late, if self.dedupes { of.late } else { 0 }),
            (Fate::Refuse, of.refuse),
        ];
        super::draw(&mut self.random, &weights)
    }

    /// A call arrives: the engine may have one for each owner (invariant 6), and an id means one
    /// thing for ever (invariant 7).
    fn receive(&mut self, intent: &Intent) {
        self.received += 1;
        if !self.calling.insert(intent.owner.clone()) {
            self.complain(format!("two calls at once for {} ({})", intent.owner, intent.id));
        }
        let call = self.calls.entry(intent.id).or_insert_with(|| Call {
            owner: intent.owner.clone(),
            desired: intent.desired.clone(),
            carried_out: 0,
            effects: 0,
        });
        if call.owner != intent.owner || call.desired != intent.desired {
            let (was, is) = (call.desired.clone(), intent.desired.clone());
            self.complain(format!("{} meant {was:?}, now {is:?}", intent.id));
        }
    }

    fn carry_out(&mut self, intent: &Intent) -> ExecOutcome {
        let repeated = self.calls.get(&intent.id).is_some_and(|call| call.carried_out > 0);
        if repeated && self.dedupes {
            return self.tell(intent);
        }
        for (entity, _) in plan::parts(&intent.desired) {
            let entity = entity.unwrap_or(&intent.owner);
            if !self.settings.contains_key(entity) {
                let what = format!("no entity {entity}");
                return ExecOutcome::Rejected(ExecError::new(ErrorClass::Validation, what));
            }
        }
        if let (Some(before), Some(actual)) = (&intent.before, self.settings.get(&intent.owner)) {
            let found = plan::found(&intent.desired, actual);
            if found.is_some()
                && found.as_ref() != Some(before)
                && found.as_ref() != Some(&intent.desired)
            {
                let what = format!("it is {found:?}, not {before:?}");
                return ExecOutcome::from_error(ExecError::new(ErrorClass::Conflict, what));
            }
        }
        let changed = self.apply(&intent.owner, &intent.desired);
        self.log.push(format!("carried out {}, changed {changed}", intent.id));
        if let Some(call) = self.calls.get_mut(&intent.id) {
            call.carried_out += 1;
            call.effects += u32::from(changed);
            if call.effects > 1 {
                let what = format!("{} took effect {} times", intent.id, call.effects);
                self.complain(what);
            }
        }
        self.tell(intent)
    }

    fn apply(&mut self, owner: &EntityKey, desired: &Setting) -> bool {
        let mut changed = false;
        for (entity, setting) in plan::parts(desired) {
            let Some(actual) = self.settings.get_mut(entity.unwrap_or(owner)) else { continue };
            let before = actual.clone();
            match setting {
                Setting::Bid { bid_micros } => actual.bid_micros = Some(bid_micros),
                Setting::Budget { budget_micros } => actual.budget_micros = Some(budget_micros),
                Setting::Status { status } => actual.status = Some(status),
                Setting::Rotate { .. } | Setting::Alert { .. } => {}
            }
            changed |= *actual != before;
        }
        changed
    }

    fn tell(&self, intent: &Intent) -> ExecOutcome {
        let actual = self.settings.get(&intent.owner);
        let found = actual.and_then(|actual| plan::found(&intent.desired, actual));
        ExecOutcome::Applied { effective: found.unwrap_or_else(|| intent.desired.clone()) }
    }
}

/// The engine's side of the network.
pub(super) struct Connector {
    pub(super) platform: Platform,
    pub(super) runtime: VirtualRuntime,
}

/// The engine waits for a call; also when it gives up or dies, it stops waiting.
struct Waiting(Platform, EntityKey);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.lock().calling.remove(&self.1);
    }
}

fn error(class: ErrorClass) -> ExecError {
    ExecError::new(class, "the simulation says so")
}

impl ActionSink for Connector {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            kinds: Capabilities::ALL_KINDS,
            bid: AmountRange { quantum_micros: 10_000, min_micros: 10_000, max_micros: i64::MAX },
            budget: AmountRange::ANY,
            read_back: true,
            dedupes: self.platform.lock().dedupes,
            call_timeout: CALL_TIMEOUT,
        }
    }

    fn execute<'a>(&'a self, intent: &'a Intent) -> BoxFuture<'a, ExecOutcome> {
        async move {
            let (fate, there, back) = {
                let mut state = self.platform.lock();
                state.receive(intent);
                let fate = state.fate();
                state.log.push(format!("call {} {}: {fate:?}", intent.id, intent.owner));
                let mut latency = || Duration::from_millis(state.random.gen_range(1..1_500));
                (fate, latency(), latency())
            };
            let _waiting = Waiting(self.platform.clone(), intent.owner.clone());
            self.runtime.after(there).await;
            let carry_out = || self.platform.lock().carry_out(intent);
            let unknown = || ExecOutcome::Unknown(error(ErrorClass::UnknownOutcome));
            let outcome = match fate {
                Fate::Answer => carry_out(),
                Fate::Throttle => {
                    let after = Some(Duration::from_millis(700));
                    ExecOutcome::Deferred { error: error(ErrorClass::Throttle), after }
                }
                Fate::Unreachable => {
                    ExecOutcome::Deferred { error: error(ErrorClass::Transient), after: None }
                }
                Fate::ErrorBefore => unknown(),
                Fate::ErrorAfter => {
                    carry_out();
                    unknown()
                }
                Fate::LostBefore => pending().await,
                Fate::LostAfter => {
                    carry_out();
                    pending().await
                }
                Fate::Twice => {
                    carry_out();
                    carry_out()
                }
                Fate::Late => {
                    self.platform.delay(intent);
                    pending().await
                }
                Fate::Refuse => ExecOutcome::Rejected(error(ErrorClass::Validation)),
            };
            self.runtime.after(back).await;
            outcome
        }
        .boxed()
    }

    fn read_back<'a>(&'a self, entity: &'a EntityKey) -> BoxFuture<'a, Result<Actual, ExecError>> {
        async move {
            let (deaf, latency) = {
                let mut state = self.platform.lock();
                let percent = state.weather.deaf_percent;
                let deaf = state.random.gen_range(0..100) < percent;
                (deaf, Duration::from_millis(state.random.gen_range(1..500)))
            };
            self.runtime.after(latency).await;
            if deaf {
                return Err(error(ErrorClass::Transient));
            }
            let state = self.platform.lock();
            state.settings.get(entity).cloned().ok_or_else(|| error(ErrorClass::Validation))
        }
        .boxed()
    }
}

/// What an entity of a level holds on the platform at first.
pub(super) fn first_settings(entity: &EntityKey, random: &mut Random) -> Actual {
    let campaign = entity.level() == Level::Campaign;
    Actual {
        bid_micros: campaign.then(|| random.gen_range(20..200) * 10_000),
        budget_micros: campaign.then(|| random.gen_range(10..100) * 1_000_000),
        status: Some(Status::Enabled),
    }
}
