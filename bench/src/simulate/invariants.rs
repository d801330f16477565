//! What must hold after every step, by the numbers of ARCHITECTURE.md.

use anyhow::ensure;
use omnify_decision::action::{Action, Setting};
use omnify_decision::stage::Stage;
use omnify_operators::invariant::{self, Invariant};
use omnify_pipeline::live::Stepped;

use super::world::World;

/// Closed ticks between the ingest loop and the stage.
const OPEN_TICKS_MAX: usize = 8;
/// Lanes of the intake, each with its bound.
const LANES: usize = 2;
/// What one source may put beyond the bound of the intake: a batch.
const BATCH_MAX: usize = 64;
/// Largest bound of the journal's queue that a plan draws.
const JOURNAL_MAX: usize = 1_024;

/// Looks at everything that can be seen between two steps.
pub(super) fn check(world: &World) -> anyhow::Result<()> {
    for which in Invariant::ALL {
        let count = invariant::violations(which);
        ensure!(count == 0, "invariant {} was crossed {count} times", which.code());
    }
    // 6 and 7, as the platform sees them, and that nothing happens twice.
    if let Some(problem) = world.platform.problem() {
        anyhow::bail!("{problem}");
    }
    let Some(engine) = &world.engine else { return Ok(()) };
    // 1: every row is somewhere.
    let conservation = engine.counters().conservation();
    ensure!(conservation.holds, "conservation: {conservation:?}");
    // 5 and 8: the stage counts what its guardrails and its books say.
    let crossed = engine.stage().map_or(0, |stage| stage.counters().invariant_violations);
    ensure!(crossed == 0, "the stage crossed {crossed} invariants");
    // 12: every queue has a bound.
    let (open, journal, rows) =
        (engine.open_ticks(), engine.journal_waits(), engine.intake().rows());
    let rows_max = LANES * (engine.intake().rows_max() + BATCH_MAX);
    ensure!(open <= OPEN_TICKS_MAX, "{open} ticks wait for the stage");
    ensure!(journal <= JOURNAL_MAX, "{journal} ticks wait for the journal");
    ensure!(rows <= rows_max, "{rows} rows wait, {rows_max} are the most");
    Ok(())
}

/// Looks at what the stage has just decided to do.
pub(super) fn actions(world: &mut World, actions: &[Action]) -> anyhow::Result<()> {
    for action in actions {
        // 7: an id means one thing, in every life. Not one tick: an approval that a power loss took is
        // given again, and carries the same proposal out at another.
        let what = format!("{}: {:?}", action.owner, action.desired);
        let known = world.shadow.actions.entry(action.id).or_insert_with(|| what.clone());
        ensure!(*known == what, "{} is {known}, and {what}", action.id);
        // 5 and 8: within what the goals allow, whichever of them covers the owner.
        let stage = world.engine.as_ref().and_then(Stepped::stage);
        let most = |of: fn(&omnify_decision::goal::Goal) -> i64| {
            stage.into_iter().flat_map(Stage::goals).map(of).max()
        };
        let (wanted, most) = match action.desired {
            Setting::Bid { bid_micros } => (bid_micros, most(|goal| goal.bid_cap_micros)),
            Setting::Budget { budget_micros } => {
                (budget_micros, most(|goal| goal.daily_budget_micros))
            }
            _ => continue,
        };
        ensure!(wanted >= 0 && Some(wanted) <= most, "{what}, where {most:?} is the most");
    }
    for action in actions {
        world.absorb(action.id.0);
    }
    Ok(())
}
