//! Whatever arrives, the stage keeps its invariants; and portfolios share what there is.

mod support;

use std::collections::{HashMap, HashSet};

use omnify_decision::action::{Setting, Status};
use omnify_decision::control::{Actual, Control, Outcome};
use omnify_decision::goal::{Goal, Objective};
use omnify_decision::stage::{Digest, ExecutorMode, Stage, StageConfig};
use omnify_operators::model::{EntityKey, FatigueState, Frame, Stats, Tick};
use proptest::prelude::*;
use support::{estimate, frame, goal, registry, row};

const KEYS: [&str; 6] = ["t/p/a/c", "t/p/a/d", "t/p/b/e", "t/p/a/c/g/x", "t/p/a/c/g/y", "t/p/a"];

#[derive(Clone, Debug)]
enum Input {
    Row { at: usize, level: u32, cost: i64, worn: bool, alarm: bool },
    Observe { at: usize, bid: Option<i64>, paused: Option<bool> },
    Kill(bool),
    Acknowledge { at: usize, outcome: usize },
    Tick { after_ms: Tick },
}

fn input() -> impl Strategy<Value = Input> {
    let at = 0..KEYS.len();
    prop_oneof![
        6 => (at.clone(), 0u32..7, -1_000_000i64..120_000_000, any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(at, level, cost, worn, alarm)| Input::Row { at, level, cost, worn, alarm }),
        1 => (at.clone(), prop::option::of(0i64..60_000_000), prop::option::of(any::<bool>()))
            .prop_map(|(at, bid, paused)| Input::Observe { at, bid, paused }),
        1 => prop::bool::weighted(0.2).prop_map(Input::Kill),
        3 => (at, 0usize..5).prop_map(|(at, outcome)| Input::Acknowledge { at, outcome }),
        6 => prop_oneof![1u64..60_000, 600_000u64..7_200_000, 20_000_000u64..200_000_000]
            .prop_map(|after_ms| Input::Tick { after_ms }),
    ]
}

fn config(executor: ExecutorMode) -> StageConfig {
    let cpa = Goal { name: "cpa".into(), ..goal(Objective::TargetCpa { cpa_micros: 2_000_000 }) };
    let shared = Goal {
        name: "shared".into(),
        applies_to: "t/p/b".into(),
        portfolio_budget_micros: Some(50_000_000),
        ..goal(Objective::Maximise)
    };
    let mut config = StageConfig { goals: vec![cpa, shared], executor, ..StageConfig::default() };
    config.guardrails.learning_events = 0;
    config.guardrails.cooldown_ms = 60_000;
    config
}

/// Ticks with the controls and frames that a sequence of inputs makes; acknowledgements are
/// resolved while running, as they name actions.
fn drive(inputs: &[Input], executor: ExecutorMode) -> Result<(String, Stage), TestCaseError> {
    let mut stage = Stage::new(config(executor)).expect("a valid configuration");
    let mut registry = registry();
    let (mut digest, mut ids) = (Digest::new(), HashSet::new());
    let (mut rows, mut controls) = (HashMap::new(), Vec::new());
    let mut tick: Tick = 1_704_067_200_000;
    let key = |at: usize| KEYS[at].parse::<EntityKey>().expect("a key");
    for input in inputs {
        match *input {
            Input::Row { at, level, cost, worn, alarm } => {
                let mut row = row(&mut registry, KEYS[at], 0);
                let clicks = 10i64.pow(level);
                let (impressions, conversions) = (clicks * 90, clicks / 20);
                let sums = Stats {
                    impressions,
                    clicks,
                    conversions,
                    cost_micros: cost,
                    revenue_micros: 0,
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
            Input::Acknowledge { at, outcome } => {
                let owner = key(at);
                let flight = stage.owner(&owner).and_then(|owner| owner.in_flight.clone());
                if let Some(flight) = flight {
                    let outcome = match outcome {
                        0 | 1 => Outcome::Applied { effective: flight.desired },
                        2 => Outcome::Unknown,
                        3 => Outcome::Expired,
                        _ => Outcome::Rejected { class: "x".into(), message: String::new() },
                    };
                    let action = flight.action;
                    controls.push(Control::Acknowledge { action, owner, outcome });
                }
            }
            Input::Tick { after_ms } => {
                tick += after_ms;
                let mut rows: Vec<_> = rows.drain().map(|(_, row)| row).collect();
                rows.iter_mut().for_each(|row| row.tick = tick);
                let frame: Frame = frame(&mut registry, tick, rows);
                let out = stage.on_tick(tick, &std::mem::take(&mut controls), &frame);
                let mut decided = HashSet::new();
                for decision in &out.decisions {
                    let about = (decision.entity.key.clone(), decision.tick, decision.policy);
                    prop_assert!(decided.insert(about), "decided twice: {decision:?}");
                    prop_assert!(decision.tick <= tick);
                    digest.push(decision);
                }
                let order: Vec<_> =
                    out.decisions.iter().map(|d| (d.tick, d.entity.order)).collect();
                prop_assert!(order.is_sorted());
                for action in &out.actions {
                    prop_assert!(ids.insert(action.id), "id given twice: {action:?}");
                    if let Setting::Bid { bid_micros } = action.desired {
                        prop_assert!((10_000..=50_000_000).contains(&bid_micros));
                    }
                    if let Setting::Budget { budget_micros } = action.desired {
                        prop_assert!((1..=100_000_000).contains(&budget_micros));
                    }
                }
            }
        }
    }
    prop_assert_eq!(stage.counters().invariant_violations, 0);
    Ok((digest.finish_hex(), stage))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_and_runs_repeat(
        inputs in prop::collection::vec(input(), 1..150),
        live in any::<bool>(),
    ) {
        let executor = if live { ExecutorMode::Live } else { ExecutorMode::DryRun };
        let (first, stage) = drive(&inputs, executor)?;
        let (second, _) = drive(&inputs, executor)?;
        prop_assert_eq!(first, second);
        if !live {
            for key in KEYS {
                let owner = stage.owner(&key.parse().expect("a key"));
                prop_assert!(owner.is_none_or(|owner| owner.in_flight.is_none()));
            }
        }
    }
}

#[test]
fn a_portfolio_moves_budget_to_the_better_campaign() {
    let shared = Goal {
        portfolio_budget_micros: Some(60_000_000),
        ..goal(Objective::TargetCpc { cpc_micros: 500_000 })
    };
    let config = StageConfig { goals: vec![shared], ..StageConfig::default() };
    let mut stage = Stage::new(config).expect("a valid configuration");
    let mut registry = registry();
    let budget_of = |stage: &Stage, key: &str| {
        let owner = stage.owner(&key.parse().expect("a key")).expect("a known owner");
        owner.actual.budget_micros.expect("a budget")
    };
    let (good, poor) = ("t/p/a/good", "t/p/a/poor");
    let day_ms = 86_400_000;
    for day in 0..12 {
        for hour in [6, 12] {
            let tick = 1_704_067_200_000 + day * day_ms + hour * 3_600_000;
            let rows = [(good, 2_000), (poor, 200)].map(|(key, clicks)| {
                let mut row = row(&mut registry, key, tick);
                let sums = Stats {
                    impressions: 100_000,
                    clicks,
                    conversions: 0,
                    cost_micros: 10_000_000,
                    revenue_micros: 0,
                };
                row.windows[..4].copy_from_slice(&[sums; 4]);
                estimate(&mut row, &sums);
                row
            });
            let frame = frame(&mut registry, tick, rows.to_vec());
            stage.on_tick(tick, &[], &frame);
            assert!(budget_of(&stage, good) + budget_of(&stage, poor) <= 60_000_000);
        }
    }
    let (good, poor) = (budget_of(&stage, good), budget_of(&stage, poor));
    assert!(good > poor, "{good} {poor}");
    assert!(good + poor <= 60_000_000, "{good} {poor}");
    assert_eq!(stage.counters().invariant_violations, 0);
}

#[test]
fn ten_thousand_campaigns_are_decided_in_one_frame() {
    let config = StageConfig {
        goals: vec![goal(Objective::TargetCpa { cpa_micros: 2_000_000 })],
        ..StageConfig::default()
    };
    let mut stage = Stage::new(config).expect("a valid configuration");
    let mut registry = registry();
    for round in 1..=4u64 {
        let tick = 1_704_067_200_000 + round * 1_000_000;
        let rows = (0..10_000).map(|at| {
            let mut row = row(&mut registry, &format!("t/p/a{}/c{at}", at % 50), tick);
            let sums = Stats {
                impressions: 100_000,
                clicks: 1_000,
                conversions: 60,
                cost_micros: 10_000_000,
                revenue_micros: 0,
            };
            row.windows[..4].copy_from_slice(&[sums; 4]);
            estimate(&mut row, &sums);
            row
        });
        let rows = rows.collect();
        let frame = frame(&mut registry, tick, rows);
        let out = stage.on_tick(tick, &[], &frame);
        assert_eq!(out.decisions.len(), 10_000);
    }
    assert_eq!(stage.counters().decisions, 40_000);
}
