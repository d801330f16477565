//! A stage that was saved and loaded goes on as if nothing had happened.

mod support;

use omnify_decision::goal::{Goal, Objective};
use omnify_decision::stage::{Autonomy, ExecutorMode, Stage, StageConfig, StageError, TickOutput};
use proptest::prelude::*;
use support::inputs::{Input, Step, config, drive, input};
use support::{goal, registry};

/// Everything of an output, with floats as they are.
fn text(output: &TickOutput) -> String {
    format!("{:?} {:?} {:?}", output.decisions, output.actions, output.refused)
}

fn unreadable(loaded: &Result<Stage, StageError>) -> bool {
    matches!(loaded, Err(StageError::Unreadable { .. }))
}

fn executor(live: bool) -> ExecutorMode {
    if live { ExecutorMode::Live } else { ExecutorMode::DryRun }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_loaded_stage_goes_on_as_the_one_that_was_saved(
        inputs in prop::collection::vec(input(), 20..200),
        live in any::<bool>(),
        at in 0.0f64..1.0,
        people in any::<bool>(),
    ) {
        let mut registry = registry();
        let mut config = config(executor(live));
        if people {
            config.autonomy = Autonomy::HumanLed;
            config.approvals_max = 2;
        }
        let ticks = inputs.iter().filter(|input| matches!(input, Input::Tick { .. })).count();
        let stop = (ticks as f64 * at) as usize;
        let (mut copy, mut after): (Option<Stage>, Vec<Step>) = (None, Vec::new());
        let mut seen = 0;
        let end = drive(&inputs, config.clone(), &mut registry, |stage, step| {
            if seen > stop {
                after.push(step);
            } else if seen == stop {
                copy = Some(stage.clone());
            }
            seen += 1;
            Ok(())
        })?;
        let Some(copy) = copy else { return Ok(()) };
        // Saved only now: what the stage did since must not show in its clone.
        let bytes = copy.save();
        let mut loaded = Stage::load(config.clone(), &bytes, &mut registry).expect("sound bytes");
        prop_assert_eq!(&loaded.save(), &bytes, "equal states give equal bytes");
        for step in &after {
            let output = loaded.on_tick(step.tick, &step.controls, &step.frame);
            prop_assert_eq!(text(&output), text(&step.output));
        }
        prop_assert_eq!(loaded.save(), end.save());
        prop_assert_eq!(loaded.counters(), end.counters());
        prop_assert!(loaded.in_flight().eq(end.in_flight()));
        prop_assert!(loaded.proposals().eq(end.proposals()));
    }

    #[test]
    fn damaged_bytes_are_an_error(
        inputs in prop::collection::vec(input(), 20..60),
        at in 0.0f64..1.0,
        bit in 0u32..8,
    ) {
        let mut registry = registry();
        let config = config(ExecutorMode::Live);
        let stage = drive(&inputs, config.clone(), &mut registry, |_, _| Ok(()))?;
        let mut bytes = stage.save();
        let place = (bytes.len() as f64 * at) as usize;
        let cut = Stage::load(config.clone(), &bytes[..place], &mut registry);
        prop_assert!(unreadable(&cut));
        bytes[place] ^= 1 << bit;
        let altered = Stage::load(config, &bytes, &mut registry);
        prop_assert!(unreadable(&altered));
    }
}

/// A run of a few days with every goal, and its end.
fn some_stage(config: &StageConfig) -> (Stage, omnify_operators::model::RegistryView) {
    let mut registry = registry();
    let inputs: Vec<Input> = (0..300)
        .map(|step: usize| match step % 10 {
            9 => Input::Tick { after_ms: 3_600_000 },
            at => Input::Row { at, level: 3, cost: 100_000, worn: at == 5, alarm: false },
        })
        .collect();
    let stage = drive(&inputs, config.clone(), &mut registry, |_, _| Ok(())).expect("no checks");
    (stage, registry)
}

#[test]
fn another_configuration_is_followed() {
    let config = config(ExecutorMode::DryRun);
    let (stage, mut registry) = some_stage(&config);
    let bytes = stage.save();
    let other = Goal {
        name: "new".into(),
        applies_to: "t/p/b".into(),
        portfolio_budget_micros: Some(1_000_000),
        ..goal(Objective::Maximise)
    };
    // `shared` is gone: its campaigns follow `new`; nobody covers tenant `u` any more.
    let changed = StageConfig { goals: vec![config.goals[0].clone(), other], ..config };
    let mut loaded = Stage::load(changed, &bytes, &mut registry).expect("sound bytes");
    let names: Vec<_> = loaded.goals().map(|goal| goal.name.as_str()).collect();
    assert_eq!(names, ["cpa", "new"]);
    let tick = 1_704_067_200_000 + 31 * 3_600_000;
    let empty = support::frame(&mut registry, tick, Vec::new());
    let out = loaded.on_tick(tick, &[], &empty);
    let goal_of = |key: &str| {
        let decision = out.decisions.iter().find(|d| d.entity.key.as_str() == key);
        decision.map(|decision| decision.goal.to_string())
    };
    assert_eq!(goal_of("t/p/a/c").as_deref(), Some("cpa"));
    assert_eq!(goal_of("t/p/b/e").as_deref(), Some("new"));
    assert_eq!(goal_of("u/p/a/c"), None);
    let budgets: i64 = ["t/p/b/e", "t/p/b/f"]
        .iter()
        .filter_map(|key| loaded.owner(&key.parse().expect("a key"))?.desired.budget_micros)
        .sum();
    assert!(budgets <= 1_000_000, "shared out anew at once: {budgets}");
    assert_eq!(loaded.counters().invariant_violations, 0);
}

#[test]
fn other_windows_and_an_unknown_registry_are_refused_by_name() {
    let config = config(ExecutorMode::DryRun);
    let (stage, mut registry) = some_stage(&config);
    let bytes = stage.save();
    let windows = config.windows[..2].to_vec();
    let fewer = StageConfig { windows, ..config.clone() };
    let error = Stage::load(fewer, &bytes, &mut registry).err().expect("refused").to_string();
    assert!(error.contains("1h/1m, 24h/15m, 7d/2h, 28d/6h, day"), "{error}");
    let error = Stage::load(config, &bytes, &mut support::registry()).err().expect("refused");
    assert!(error.to_string().contains("restore the registry"), "{error}");
}
