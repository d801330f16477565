//! The invariants of the engine, numbered as in ARCHITECTURE.md, and the one way to check them.
//!
//! [`check`] panics in debug builds (a test that breaks an invariant fails there and then) and
//! counts in release builds (a live engine reports the violation and goes on). The counters are
//! the only process-wide state in the workspace: they are monotone and never read by a decision.

use std::sync::atomic::{AtomicU64, Ordering};

/// What must always hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Invariant {
    /// 1: accepted = featured + held + dead-lettered.
    Conservation,
    /// 2: a window equals the batch recomputation of its events.
    WindowEqualsBatch,
    /// 3: a parent equals the sum of its children.
    ParentEqualsChildren,
    /// 4: decisions see only complete frames.
    CompleteFrames,
    /// 5: no action crosses a guardrail.
    Guardrails,
    /// 6: one action in flight per owner.
    OneInFlight,
    /// 7: an action id is a function of (tenant, owner, tick, desired).
    ActionId,
    /// 8: spend committed ≤ budget.
    SpendWithinBudget,
    /// 9: no tenant reads another's rows.
    TenantIsolation,
    /// 10: replay of the record reproduces the decisions.
    Replay,
    /// 11: nothing acknowledged is lost.
    Durability,
    /// 12: every queue has a bound and a policy at the bound.
    Bounded,
}

impl Invariant {
    /// All of them, by number.
    pub const ALL: [Invariant; 12] = [
        Invariant::Conservation,
        Invariant::WindowEqualsBatch,
        Invariant::ParentEqualsChildren,
        Invariant::CompleteFrames,
        Invariant::Guardrails,
        Invariant::OneInFlight,
        Invariant::ActionId,
        Invariant::SpendWithinBudget,
        Invariant::TenantIsolation,
        Invariant::Replay,
        Invariant::Durability,
        Invariant::Bounded,
    ];

    /// Stable code: metric label and log field.
    pub const fn code(self) -> &'static str {
        match self {
            Invariant::Conservation => "conservation",
            Invariant::WindowEqualsBatch => "window_equals_batch",
            Invariant::ParentEqualsChildren => "parent_equals_children",
            Invariant::CompleteFrames => "complete_frames",
            Invariant::Guardrails => "guardrails",
            Invariant::OneInFlight => "one_in_flight",
            Invariant::ActionId => "action_id",
            Invariant::SpendWithinBudget => "spend_within_budget",
            Invariant::TenantIsolation => "tenant_isolation",
            Invariant::Replay => "replay",
            Invariant::Durability => "durability",
            Invariant::Bounded => "bounded",
        }
    }
}

static VIOLATIONS: [AtomicU64; 12] = [const { AtomicU64::new(0) }; 12];

/// Checks that `holds`; `context` is evaluated only when it does not.
///
/// # Panics
/// In debug builds, when it does not hold.
#[inline]
pub fn check(invariant: Invariant, holds: bool, context: impl FnOnce() -> String) {
    if !holds {
        violated(invariant, &context());
    }
}

#[cold]
fn violated(invariant: Invariant, context: &str) {
    VIOLATIONS[invariant as usize].fetch_add(1, Ordering::Relaxed);
    debug_assert!(false, "invariant {} ({invariant:?}): {context}", invariant as usize + 1);
}

/// Violations of `invariant` since the process started.
pub fn violations(invariant: Invariant) -> u64 {
    VIOLATIONS[invariant as usize].load(Ordering::Relaxed)
}
