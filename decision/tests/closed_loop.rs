//! The loop closed over a small deterministic auction: budgets hold, the KPI arrives at its
//! target, and two runs agree bit for bit.

mod support;

use std::collections::VecDeque;

use omnify_decision::action::{Action, Decision, Setting, Status};
use omnify_decision::digest::DecisionDigest;
use omnify_decision::goal::{Goal, Objective};
use omnify_decision::stage::{ExecutorMode, Stage, StageConfig};
use omnify_operators::model::{Frame, RegistryView, Stats, Tick};
use support::{estimate, frame, goal, registry, row};

const STEP_MS: Tick = 15 * 60_000;
const STEPS_PER_DAY: usize = 96;
const START: Tick = 1_704_067_200_000; // 2024-01-01T00:00:00Z, a Monday

/// A market without randomness: of `supply` impressions a step, those below the bid are won at the
/// market price; competing prices are spread as `b / (b + landscape)`.
struct Market {
    key: &'static str,
    supply: f64,
    landscape: f64,
    ctr: f64,
    cvr: f64,
    bid: f64,
    enabled: bool,
    steps: VecDeque<Stats>,
    carry: [f64; 3],
}

impl Market {
    fn new(key: &'static str, bid: f64) -> Market {
        Market {
            key,
            supply: 40_000.0,
            landscape: 2_000_000.0,
            ctr: 0.01,
            cvr: 0.05,
            bid,
            enabled: true,
            steps: VecDeque::new(),
            carry: [0.0; 3],
        }
    }

    fn run(&mut self, step: usize) {
        let hour = (step % STEPS_PER_DAY) as f64 / 4.0;
        let rhythm = 1.0 + 0.5 * ((hour - 15.0) / 24.0 * std::f64::consts::TAU).cos();
        let mut stats = Stats::ZERO;
        if self.enabled {
            let (b, l) = (self.bid, self.landscape);
            let won = self.supply * rhythm * b / (b + l);
            // Second price: the mean of prices below the bid under the win curve b/(b+l).
            let price = l * ((b + l) / l).ln() * (b + l) / b - l;
            let mut whole = |at: usize, amount: f64| {
                let sum = self.carry[at] + amount;
                self.carry[at] = sum.fract();
                sum as i64
            };
            stats.impressions = whole(0, won);
            stats.clicks = whole(1, won * self.ctr);
            stats.conversions = whole(2, won * self.ctr * self.cvr);
            stats.cost_micros = (won * price / 1_000.0) as i64;
        }
        self.steps.push_back(stats);
        if self.steps.len() > 28 * STEPS_PER_DAY {
            self.steps.pop_front();
        }
    }

    fn sum(&self, steps: usize) -> Stats {
        self.steps.iter().rev().take(steps).fold(Stats::ZERO, |sum, step| sum + *step)
    }

    fn obey(&mut self, action: &Action) {
        match &action.desired {
            Setting::Bid { bid_micros } => self.bid = *bid_micros as f64,
            Setting::Status { status } => self.enabled = *status == Status::Enabled,
            _ => {}
        }
    }
}

/// Takes in the decisions of one tick.
fn absorb(digest: &mut DecisionDigest, decisions: &[Decision]) {
    for decision in decisions {
        digest.absorb(decision);
    }
    digest.close_tick();
}

struct Run {
    stage: Stage,
    digest: DecisionDigest,
    market: Market,
    registry: RegistryView,
    step: usize,
}

impl Run {
    fn new(goal: Goal, bid: f64, seed: u64) -> Run {
        let mut config = StageConfig { goals: vec![goal], seed, ..StageConfig::default() };
        config.executor = ExecutorMode::DryRun;
        config.guardrails.change_24h_max = 2.0;
        config.guardrails.change_7d_max = 10.0;
        Run {
            stage: Stage::new(config).expect("a valid configuration"),
            digest: DecisionDigest::new(5),
            market: Market::new("t/p/a/c", bid),
            registry: registry(),
            step: 0,
        }
    }

    /// One quarter of an hour; returns the spend of the day so far, and what the stage was given.
    fn advance(&mut self) -> (i64, Frame) {
        self.market.run(self.step);
        self.step += 1;
        let tick = START + self.step as Tick * STEP_MS - 1;
        let today = (self.step - 1) % STEPS_PER_DAY + 1;
        let mut row = row(&mut self.registry, self.market.key, tick);
        let windows = [4, STEPS_PER_DAY, 7 * STEPS_PER_DAY, 28 * STEPS_PER_DAY, today];
        for (slot, steps) in row.windows.iter_mut().zip(windows) {
            *slot = self.market.sum(steps);
        }
        let longest = row.windows[3];
        estimate(&mut row, &longest);
        let spent = row.windows[4].cost_micros;
        let frame = frame(&mut self.registry, tick, vec![row]);
        let out = self.stage.on_tick(tick, &[], &frame);
        absorb(&mut self.digest, &out.decisions);
        out.actions.iter().for_each(|action| self.market.obey(action));
        (spent, frame)
    }

    fn days(&mut self, days: usize) -> Vec<i64> {
        let mut spends = Vec::new();
        for _ in 0..days {
            let last = (0..STEPS_PER_DAY).map(|_| self.advance().0).max();
            spends.push(last.unwrap_or(0));
        }
        spends
    }
}

#[test]
fn the_budget_is_spent_and_not_more() {
    let mut run = Run::new(goal(Objective::Maximise), 2_000_000.0, 1);
    let spends = run.days(21);
    let budget = 100_000_000;
    assert!(spends.iter().all(|spend| *spend <= budget), "overspent: {spends:?}");
    let last_week: i64 = spends[14..].iter().sum();
    assert!(last_week >= 7 * budget * 93 / 100, "underspent: {spends:?}");
    assert_eq!(run.stage.counters().invariant_violations, 0);
}

#[test]
fn cost_per_conversion_arrives_at_its_target() {
    // At this price the market sells less than the budget, so the KPI is what binds.
    let cpa_micros = 2_000_000;
    let mut target = goal(Objective::TargetCpa { cpa_micros });
    target.daily_budget_micros = 5_000_000_000;
    let mut run = Run::new(target, 4_000_000.0, 1);
    run.days(28);
    let week = run.market.sum(7 * STEPS_PER_DAY);
    let cpa = week.cost_micros as f64 / week.conversions as f64;
    let ratio = cpa / cpa_micros as f64;
    assert!((0.9..=1.05).contains(&ratio), "{ratio}, bid {}", run.market.bid);
    assert_eq!(run.stage.counters().invariant_violations, 0);
}

#[test]
fn the_same_input_gives_the_same_digest() {
    let digest = |seed, exploration_sd| {
        let mut run = Run::new(goal(Objective::Maximise), 2_000_000.0, seed);
        let mut config = run.stage.config().clone();
        config.controller.exploration_sd = exploration_sd;
        run.stage = Stage::new(config).expect("a valid configuration");
        run.days(3);
        assert!(run.stage.counters().decisions > 0);
        run.digest.to_string()
    };
    assert_eq!(digest(1, 0.05), digest(1, 0.05));
    assert_ne!(digest(1, 0.05), digest(2, 0.05), "the seed steers exploration");
    assert_eq!(digest(1, 0.0), digest(2, 0.0), "and nothing else");
}

#[test]
fn a_silent_campaign_is_decided_on_when_it_is_due() {
    let mut run = Run::new(goal(Objective::Maximise), 20_000_000.0, 1);
    let mut frames = Vec::new();
    let mut woken = 0;
    for _ in 0..2 * STEPS_PER_DAY {
        let now = START + run.step as Tick * STEP_MS;
        // The market falls silent when the day's budget is spent, so wakes are needed.
        for tick in [now, now + 1_000] {
            let empty = frame(&mut run.registry, tick, vec![]);
            let out = run.stage.on_tick(tick, &[], &empty);
            woken += out.decisions.len();
            assert!(out.decisions.iter().all(|decision| decision.tick == tick));
            absorb(&mut run.digest, &out.decisions);
            out.actions.iter().for_each(|action| run.market.obey(action));
            frames.push(empty);
        }
        frames.push(run.advance().1);
    }
    assert!(woken > 0, "the test needs a day that was stopped");
    let mut replayed = Stage::new(run.stage.config().clone()).expect("a valid configuration");
    let mut digest = DecisionDigest::new(5);
    for frame in &frames {
        let out = replayed.on_tick(frame.tick, &[], frame);
        out.decisions.iter().for_each(|decision| {
            digest.absorb(decision);
        });
        digest.close_tick();
    }
    assert_eq!(run.digest.to_string(), digest.to_string());
}
