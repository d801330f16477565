//! Whatever arrives, the stage keeps its invariants; and portfolios share what there is.

mod support;

use std::collections::HashSet;

use omnify_decision::action::Setting;
use omnify_decision::digest::DecisionDigest;
use omnify_decision::goal::{Goal, Objective};
use omnify_decision::stage::{Autonomy, ExecutorMode, Stage, StageConfig};
use omnify_operators::model::Stats;
use proptest::prelude::*;
use support::inputs::{Input, KEYS, config, drive, input};
use support::{estimate, frame, goal, registry, row};

fn check(
    inputs: &[Input],
    executor: ExecutorMode,
    autonomy: Autonomy,
) -> Result<(String, Stage), TestCaseError> {
    let (mut digest, mut ids) = (DecisionDigest::new(5), HashSet::new());
    let mut registry = registry();
    let stage = drive(
        inputs,
        StageConfig { autonomy, ..config(executor) },
        &mut registry,
        |stage, step| {
            let (tick, out) = (step.tick, step.output);
            let mut decided = HashSet::new();
            for decision in &out.decisions {
                prop_assert!(decided.insert(decision.id), "decided twice: {decision:?}");
                prop_assert!(decision.tick <= tick);
                digest.absorb(decision);
            }
            digest.close_tick();
            let owners: HashSet<_> = stage.proposals().map(|open| &open.owner).collect();
            prop_assert_eq!(owners.len(), stage.proposals().count(), "one proposal per owner");
            prop_assert!(stage.proposals().all(|open| open.expires > tick));
            let order: Vec<_> = out.decisions.iter().map(|d| (d.tick, d.entity.order)).collect();
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
            Ok(())
        },
    )?;
    prop_assert_eq!(stage.counters().invariant_violations, 0);
    Ok((digest.to_string(), stage))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_and_runs_repeat(
        inputs in prop::collection::vec(input(), 1..150),
        live in any::<bool>(),
        people in any::<bool>(),
    ) {
        let autonomy = if people { Autonomy::HumanLed } else { Autonomy::Autonomous };
        let executor = if live { ExecutorMode::Live } else { ExecutorMode::DryRun };
        let (first, stage) = check(&inputs, executor, autonomy)?;
        let (second, _) = check(&inputs, executor, autonomy)?;
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
