//! Arbitrary runs of a stage: rows, controls and time, as a strategy writes them.

use std::collections::HashMap;

use omnify_decision::action::Status;
use omnify_decision::control::{Actual, Control, Outcome};
use omnify_decision::goal::{Goal, Objective};
use omnify_decision::stage::{ExecutorMode, Stage, StageConfig, TickOutput};
use omnify_operators::model::{EntityKey, FatigueState, Frame, RegistryView, Stats, Tick};
use proptest::prelude::*;

use super::{estimate, frame, goal, row};

pub const KEYS: [&str; 9] = [
    "t/p/a/c",
    "t/p/a/d",
    "t/p/b/e",
    "t/p/b/f",
    "u/p/a/c",
    "t/p/a/c/g/x",
    "t/p/a/c/g/y",
    "t/p/a",
    "t/p/b",
];

#[derive(Clone, Debug)]
pub enum Input {
    Row { at: usize, level: u32, cost: i64, worn: bool, alarm: bool },
    Observe { at: usize, bid: Option<i64>, paused: Option<bool> },
    Kill(bool),
    Model(usize),
    Goal { of: usize, cpa: i64, shared: Option<i64> },
    DropGoal(usize),
    Acknowledge { at: usize, outcome: usize },
    Answer { at: usize, yes: bool },
    Tick { after_ms: Tick },
}

pub fn input() -> impl Strategy<Value = Input> {
    let at = 0..KEYS.len();
    prop_oneof![
        12 => (at.clone(), 0u32..7, -1_000_000i64..120_000_000, any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(at, level, cost, worn, alarm)| Input::Row { at, level, cost, worn, alarm }),
        2 => (at.clone(), prop::option::of(0i64..60_000_000), prop::option::of(any::<bool>()))
            .prop_map(|(at, bid, paused)| Input::Observe { at, bid, paused }),
        1 => prop::bool::weighted(0.2).prop_map(Input::Kill),
        1 => (0usize..3).prop_map(Input::Model),
        2 => (0usize..5, -1i64..5_000_000, prop::option::of(1_000_000i64..60_000_000))
            .prop_map(|(of, cpa, shared)| Input::Goal { of, cpa, shared }),
        1 => (0usize..5).prop_map(Input::DropGoal),
        6 => (at, 0usize..5).prop_map(|(at, outcome)| Input::Acknowledge { at, outcome }),
        4 => (0usize..3, any::<bool>()).prop_map(|(at, yes)| Input::Answer { at, yes }),
        12 => prop_oneof![1u64..60_000, 600_000u64..7_200_000, 20_000_000u64..200_000_000]
            .prop_map(|after_ms| Input::Tick { after_ms }),
    ]
}

/// Goals of every kind, two of them portfolios, for two tenants.
pub fn config(executor: ExecutorMode) -> StageConfig {
    let cpa = Goal { name: "cpa".into(), ..goal(Objective::TargetCpa { cpa_micros: 2_000_000 }) };
    let shared = Goal {
        name: "shared".into(),
        applies_to: "t/p/b".into(),
        portfolio_budget_micros: Some(50_000_000),
        ..goal(Objective::Maximise)
    };
    let roas = Goal {
        name: "roas".into(),
        applies_to: "u".into(),
        ..goal(Objective::TargetRoas { roas: 1.7 })
    };
    let goals = vec![cpa, shared, roas];
    let mut config = StageConfig { goals, executor, seed: 7, ..StageConfig::default() };
    config.guardrails.learning_events = 0;
    config.guardrails.cooldown_ms = 60_000;
    config.controller.exploration_sd = 0.02;
    config
}

/// A goal as an input sends it: some are new, some replace one of [`config`], some are refused.
fn sent(of: usize, cpa_micros: i64, shared: Option<i64>) -> Goal {
    let (name, applies_to) =
        [("cpa", "t"), ("shared", "t/p/b"), ("more", "t/*/*/d"), ("more", "u"), ("roas", "t")][of];
    Goal {
        name: name.into(),
        applies_to: applies_to.into(),
        portfolio_budget_micros: shared,
        ..goal(Objective::TargetCpa { cpa_micros })
    }
}

fn model(which: usize) -> serde_json::Value {
    match which {
        0 => serde_json::json!({"no": "model"}),
        which => super::models()[which - 1].clone(),
    }
}

/// One tick of a run, and what came of it.
pub struct Step {
    pub tick: Tick,
    pub controls: Vec<Control>,
    pub frame: Frame,
    pub output: TickOutput,
}

/// Runs the inputs; acknowledgements are resolved while running, as they name actions. `each` sees
/// every step before the next.
pub fn drive(
    inputs: &[Input],
    config: StageConfig,
    registry: &mut RegistryView,
    mut each: impl FnMut(&Stage, Step) -> Result<(), TestCaseError>,
) -> Result<Stage, TestCaseError> {
    let mut stage = Stage::new(config).expect("a valid configuration");
    let (mut rows, mut controls) = (HashMap::new(), Vec::new());
    let mut tick: Tick = 1_704_067_200_000;
    let key = |at: usize| KEYS[at].parse::<EntityKey>().expect("a key");
    for input in inputs {
        match *input {
            Input::Row { at, level, cost, worn, alarm } => {
                let mut row = row(registry, KEYS[at], 0);
                let clicks = 10i64.pow(level);
                let (impressions, conversions) = (clicks * 90, clicks / 20);
                let sums = Stats {
                    impressions,
                    clicks,
                    conversions,
                    cost_micros: cost,
                    revenue_micros: conversions * 3_000_000,
                };
                row.windows[..5].copy_from_slice(&[sums; 5]);
                row.windows[3].clicks *= 3;
                estimate(&mut row, &sums);
                row.anomaly.alarm = alarm;
                row.fatigue.state =
                    if worn { FatigueState::WearingOut } else { FatigueState::Fresh };
                rows.insert(at, row);
            }
            Input::Observe { at, bid, paused } => {
                let status = paused.map(|paused| match paused {
                    true => Status::Paused,
                    false => Status::Enabled,
                });
                let actual = Actual { bid_micros: bid, budget_micros: None, status };
                controls.push(Control::Observe { entity: key(at), actual });
            }
            Input::Kill(on) => controls.push(match on {
                true => Control::Kill { tenant: None },
                false => Control::Resume { tenant: None },
            }),
            Input::Model(which) => {
                controls.push(Control::Model { version: which as u64, model: model(which) });
            }
            Input::Goal { of, cpa, shared } => {
                controls.push(Control::Goal { goal: sent(of, cpa, shared) });
            }
            Input::DropGoal(of) => {
                let name = sent(of, 1, None).name;
                controls.push(Control::DropGoal { name, tenant: Some("t".into()) });
            }
            Input::Acknowledge { at, outcome } => {
                let owner = key(at);
                let flight = stage.owner(&owner).and_then(|owner| owner.in_flight.clone());
                if let Some(flight) = flight {
                    let outcome = match outcome {
                        0 | 1 => Outcome::Applied { effective: flight.action.desired },
                        2 => Outcome::Unknown,
                        3 => Outcome::Expired,
                        _ => Outcome::Rejected { class: "x".into(), message: String::new() },
                    };
                    let action = flight.action.id;
                    controls.push(Control::Acknowledge { action, owner, outcome });
                }
            }
            Input::Answer { at, yes } => {
                if let Some(proposal) = stage.proposals().nth(at) {
                    let (proposal, by) = (proposal.id, "ann".to_owned());
                    controls.push(match yes {
                        true => Control::Approve { proposal, by },
                        false => Control::Reject { proposal, by, reason: String::new() },
                    });
                }
            }
            Input::Tick { after_ms } => {
                tick += after_ms;
                let mut rows: Vec<_> = rows.drain().map(|(_, row)| row).collect();
                rows.iter_mut().for_each(|row| row.tick = tick);
                let frame: Frame = frame(registry, tick, rows);
                let controls = std::mem::take(&mut controls);
                let output = stage.on_tick(tick, &controls, &frame);
                each(&stage, Step { tick, controls, frame, output })?;
            }
        }
    }
    Ok(stage)
}
