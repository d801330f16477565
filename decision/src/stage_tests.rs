use std::collections::HashMap;

use omnify_operators::model::{EntityKey, Registry, RegistryView, Stats};

use super::*;
use crate::action::Setting;
use crate::bid::{Auction, BidContext};
use crate::codes::reason;
use crate::control::Actual;
use crate::goal::{Goal, Objective as Aim, Pricing};
use crate::model::{Head, RateTable, Rates};

const START: Tick = 1_704_067_200_000;

fn key(text: &str) -> EntityKey {
    text.parse().unwrap()
}

fn model(click: f64, conversion: f64) -> ClickModel {
    let rates = Rates { click, conversion };
    let by_path = HashMap::from([("t/p/a/c/g/x".into(), Rates { click: 3.0 * click, conversion })]);
    let table = RateTable { overall: rates, by_path };
    ClickModel::new(4, 0, table, Head::neutral(4), Head::neutral(4))
}

fn stage() -> Stage {
    let goal = Goal {
        name: "g".into(),
        applies_to: "t".into(),
        objective: Aim::TargetCpa { cpa_micros: 2_000_000 },
        daily_budget_micros: 100_000_000,
        pricing: Pricing::Cpm,
        start: None,
        end: Some(us_of_tick(START) + DAY_US),
        bid_floor_micros: 1,
        bid_cap_micros: 50_000_000,
        portfolio_budget_micros: None,
    };
    Stage::new(StageConfig { goals: vec![goal], ..StageConfig::default() }).unwrap()
}

fn frame(registry: &mut RegistryView, tick: Tick) -> Frame {
    frame_of(registry, tick, &["t/p/a/c"])
}

fn frame_of(registry: &mut RegistryView, tick: Tick, keys: &[&str]) -> Frame {
    Frame { tick, rows: keys.iter().map(|text| row(registry, tick, &key(text))).collect() }
}

fn row(registry: &mut RegistryView, tick: Tick, of: &EntityKey) -> (Arc<EntityInfo>, FeatureRow) {
    let entity = registry.registry().intern(of);
    let sums = Stats {
        impressions: 1_000_000,
        clicks: 10_000,
        conversions: 500,
        cost_micros: 50_000_000,
        revenue_micros: 0,
    };
    let mut row = FeatureRow {
        entity,
        tick,
        windows: Default::default(),
        ctr: Default::default(),
        cvr: Default::default(),
        reach: Default::default(),
        fatigue: Default::default(),
        anomaly: Default::default(),
        maturity: None,
    };
    row.windows[3] = sums;
    row.ctr.mean = 0.01;
    row.cvr.mean = 0.05;
    (registry.info(entity).clone(), row)
}

#[test]
fn a_model_takes_effect_at_its_tick_and_a_broken_one_does_not() {
    let mut registry = RegistryView::new(Arc::new(Registry::utc()));
    let mut stage = stage();
    let learned = model(0.02, 0.1);
    let broken = Control::Model { version: 1, model: serde_json::json!({}) };
    let good = Control::Model { version: learned.version(), model: learned.to_json() };
    let out = stage.on_tick(START, &[broken], &frame(&mut registry, START));
    assert_eq!((stage.counters().models_refused, out.decisions[0].model_version), (1, 0));
    let out = stage.on_tick(START + 60_000, &[good], &frame(&mut registry, START + 60_000));
    let decision = &out.decisions[0];
    assert_eq!(decision.model_version, learned.version());
    assert_eq!(decision.reasons, [reason::ESTABLISH_BID, reason::MODEL]);
    // 1000 impressions bring 2 conversions, at 2.0 each.
    let bid = out.actions[0].desired.micros().unwrap();
    assert!((3_999_000..=4_001_000).contains(&bid), "{bid}");

    let context = |text: &str| BidContext {
        key: key(text),
        floor_micros: None,
        value: None,
        auction: Auction::SecondPrice,
        landscape_micros: None,
    };
    let book = stage.bid_book();
    assert_eq!(book.answer(&context("t/p/a/c")).bid_micros, Some(bid));
    let creative = book.answer(&context("t/p/a/c/g/x"));
    assert!(creative.bid_micros.is_some_and(|creative| (creative - 3 * bid).abs() < 100));
    assert_eq!((creative.tick, &*creative.goal), (START + 60_000, "g"));
}

#[test]
fn nothing_is_decided_after_the_goal_and_the_quote_goes() {
    let mut registry = RegistryView::new(Arc::new(Registry::utc()));
    let mut stage = stage();
    assert_eq!(stage.on_tick(START, &[], &frame(&mut registry, START)).decisions.len(), 1);
    assert!(stage.bid_book().quote(&key("t/p/a/c")).is_some());
    let after = START + 86_400_000;
    let out = stage.on_tick(after, &[], &frame(&mut registry, after));
    assert!(out.decisions.iter().all(|decision| decision.tick < after));
    assert!(stage.bid_book().quote(&key("t/p/a/c")).is_none());
}

#[test]
fn a_lowered_budget_is_respected_and_pre_images_are_kept() {
    let mut registry = RegistryView::new(Arc::new(Registry::utc()));
    let mut stage = stage();
    for minute in 0..2 {
        let tick = START + minute * 60_000;
        stage.on_tick(tick, &[], &frame(&mut registry, tick));
    }
    let owner = stage.owner(&key("t/p/a/c")).unwrap();
    assert_eq!(owner.actual.budget_micros, Some(100_000_000));
    let actual = Actual { budget_micros: Some(40_000_000), ..Actual::default() };
    let seen = Control::Observe { entity: key("t/p/a/c"), actual };
    for minute in 2..60 {
        let tick = START + minute * 60_000;
        let controls = if minute == 2 { vec![seen.clone()] } else { Vec::new() };
        let out = stage.on_tick(tick, &controls, &frame(&mut registry, tick));
        assert!(out.actions.iter().all(|action| {
            !matches!(action.desired, Setting::Budget { .. }) && action.before.is_some()
        }));
    }
    let owner = stage.owner(&key("t/p/a/c")).unwrap();
    assert_eq!(owner.actual.budget_micros, Some(40_000_000));
    assert_eq!(stage.counters().drifts, 1);
    assert_eq!(stage.counters().invariant_violations, 0);
}

#[test]
fn what_has_long_been_silent_is_as_if_it_had_never_been() {
    const DAY: u64 = 86_400_000;
    let mut registry = RegistryView::new(Arc::new(Registry::utc()));
    let mut config = stage().config().clone();
    config.goals[0].end = None;
    let mut stage = Stage::new(config.clone()).unwrap();
    let both = ["t/p/a", "t/p/a/c", "t/p/a/c/g/x", "t/p/a/d", "t/p/a/d/g/y", "t/p/a/d/g/z"];
    let living = ["t/p/a", "t/p/a/d", "t/p/a/d/g/y"];
    for minute in 0..10 {
        let tick = START + minute * 60_000;
        stage.on_tick(tick, &[], &frame_of(&mut registry, tick, &both));
    }
    assert!(stage.owner(&key("t/p/a/c")).is_some_and(|owner| owner.changed_us.is_some()));
    let names = registry.registry().clone();
    let count = |stage: &Stage| {
        let ids = both.iter().map(|text| names.intern(&key(text)));
        let creatives = ids.filter(|id| stage.wear.info(*id).is_some()).count();
        (stage.campaigns.iter().count(), creatives, stage.ledger.iter().count())
    };
    let known = count(&stage);
    let known_of_d = [known.0 - 1, known.1 - 2];
    let mut again = None;
    let mut tick = START;
    for day in 1..=32 {
        tick = START + day * DAY;
        if day == 29 {
            // Anything of it is still remembered.
            assert_eq!(count(&stage), known);
            again = Some(Stage::load(config.clone(), &stage.save(), &mut registry).unwrap());
        }
        let frame = frame_of(&mut registry, tick, &living);
        let out = stage.on_tick(tick, &[], &frame);
        if let Some(again) = &mut again {
            let out_again = again.on_tick(tick, &[], &frame);
            assert_eq!(format!("{:?}", out_again.decisions), format!("{:?}", out.decisions));
            assert_eq!(again.save(), stage.save());
        }
    }
    assert_eq!([count(&stage).0, count(&stage).1], known_of_d);
    let book = stage.bid_book();
    assert!(stage.owner(&key("t/p/a/c")).is_none() && book.quote(&key("t/p/a/c")).is_none());
    assert!(book.quote(&key("t/p/a/d")).is_some());
    // Places are taken again, also by one that was there before, which is met anew.
    let mut loaded = Stage::load(config.clone(), &stage.save(), &mut registry).unwrap();
    let mut fresh = Stage::new(config).unwrap();
    tick += 60_000;
    let frame = frame_of(&mut registry, tick, &["t/p/a", "t/p/a/c", "t/p/a/c/g/x"]);
    let outs = [&mut stage, &mut loaded, &mut fresh].map(|stage| stage.on_tick(tick, &[], &frame));
    assert_eq!(format!("{:?}", outs[0].decisions), format!("{:?}", outs[1].decisions));
    assert_eq!(stage.save(), loaded.save());
    let verdicts = |out: &TickOutput| -> Vec<_> {
        let of_c = out.decisions.iter().filter(|made| made.entity.key == key("t/p/a/c"));
        of_c.map(|made| (made.verdict, made.reasons.clone(), made.proposed.clone())).collect()
    };
    assert_eq!(verdicts(&outs[0]), verdicts(&outs[2]));
    assert_eq!(count(&stage).0, known.0);
}

#[test]
fn what_an_action_is_about_is_not_let_go() {
    const DAY: u64 = 86_400_000;
    let mut registry = RegistryView::new(Arc::new(Registry::utc()));
    let config = StageConfig { executor: ExecutorMode::Live, ..stage().config().clone() };
    let mut stage = Stage::new(config).unwrap();
    let out = stage.on_tick(START, &[], &frame(&mut registry, START));
    let action = &out.actions[0];
    let silent = Frame { tick: 0, rows: Vec::new() };
    for day in 1..40 {
        stage.on_tick(START + day * DAY, &[], &silent);
    }
    assert!(stage.owner(&action.owner).is_some_and(|owner| owner.in_flight.is_some()));
    let ended = Control::Acknowledge {
        action: action.id,
        owner: action.owner.clone(),
        outcome: crate::control::Outcome::Expired,
    };
    stage.on_tick(START + 40 * DAY, &[ended], &silent);
    stage.on_tick(START + 41 * DAY, &[], &silent);
    assert!(stage.owner(&action.owner).is_none());
}
