//! The page over a made-up engine: `cargo run -p omnify-sinks --example page_demo [PORT] [TICKS]`.
//!
//! Everything shown is a function of a tick counter, so two runs show the same at the same tick.
//! TICKS of the past (default 500) are told before the server starts; PORT defaults to 9464.
//! With a third argument `empty` the board stays empty, to see how the page waits; with `tokens` the
//! page asks for one, and the tokens are printed.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use omnify_decision::action::{Action, Decision, Id, Prediction, Setting, Verdict};
use omnify_decision::control::Outcome;
use omnify_decision::goal::{Goal, Objective, Pricing};
use omnify_operators::model::{
    Anomaly, Currency, DAY_US, EntityInfo, EntityKey, Estimate, Expected, Fatigue, FatigueState,
    FeatureRow, Frame, HOUR_US, Level, MAX_WINDOWS, Maturity, Reach, Registry, RegistryView, Stats,
    WindowSpec, us_of_tick,
};
use omnify_sinks::serve::{
    ActionState, AppState, Board, BoardConfig, Counters, LatencyMs, Scope, Watermarks, serve,
};

/// 2026-03-09 06:00:00 UTC, a Monday.
const START: u64 = 1_773_036_000_000;
/// Engine time between two steps of the demo.
const STEP_MS: u64 = 30_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().map_or(Ok(9464), |text| text.parse())?;
    let past: u64 = arguments.next().map_or(Ok(500), |text| text.parse())?;
    let mode = arguments.next().unwrap_or_default();
    let empty = mode == "empty";
    let mut world = World::new()?;
    let snapshots = world.board.subscribe();
    for step in 0..if empty { 0 } else { past } {
        world.step(step);
    }
    let present = Arc::new(AtomicU64::new(START + past * STEP_MS));
    let shown = present.clone();
    tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_millis(250));
        for step in past.. {
            every.tick().await;
            if !empty {
                world.step(step);
                present.store(START + step * STEP_MS, Ordering::Relaxed);
            }
        }
    });
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://{}/", listener.local_addr()?);
    let mut state = AppState::new(snapshots);
    state.present = Some(Arc::new(move || shown.load(Ordering::Relaxed)));
    state.hosts = Some(AppState::LOOPBACK.map(String::from).to_vec());
    if mode == "tokens" {
        for (name, scope) in [
            ("acme", Scope::Tenant("acme".to_owned())),
            ("nordlicht", Scope::Tenant("nordlicht".to_owned())),
            ("operator", Scope::All),
        ] {
            // A made-up engine has made-up secrets.
            let token = format!("demo-token-of-{name}-0123456789abcdef");
            state.tokens.add(&token, scope)?;
            println!("{name}: {token}");
        }
    }
    state.metrics = Some(omnify_sinks::telemetry::install()?);
    serve(listener, state, std::future::pending()).await?;
    Ok(())
}

struct World {
    board: Board,
    entities: Vec<Arc<EntityInfo>>,
    counters: Counters,
    flying: Vec<(u64, Action)>,
    bids: BTreeMap<u64, i64>,
}

/// A number in [0, 1) that depends only on its arguments.
fn noise(a: u64, b: u64) -> f64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 32;
    (x >> 11) as f64 / (1_u64 << 53) as f64
}

fn id(a: u64, b: u64, c: u8) -> Id {
    let mut bytes = [c; 16];
    bytes[..8].copy_from_slice(&a.to_be_bytes());
    bytes[8..15].copy_from_slice(&b.to_be_bytes()[1..]);
    Id(bytes)
}

const CAMPAIGNS: [(&str, f64); 9] = [
    ("acme/meta/act_481516/spring_sale", 1_200.0),
    ("acme/meta/act_481516/retargeting_30d", 450.0),
    ("acme/meta/act_481516/prospecting_lookalike_2pct", 800.0),
    ("acme/google_ads/742-118-9930/brand_search", 300.0),
    ("acme/google_ads/742-118-9930/shopping_all_products", 950.0),
    ("nordlicht/tiktok/adv_70013/creator_spark_ads", 600.0),
    ("nordlicht/tiktok/adv_70013/app_installs_dach", 500.0),
    ("nordlicht/dsp/seat_12/ctv_awareness_q1", 2_000.0),
    ("nordlicht/dsp/seat_12/native_evergreen", 350.0),
];

impl World {
    fn new() -> Result<World, Box<dyn Error>> {
        let registry = Arc::new(Registry::utc());
        for (campaign, _) in CAMPAIGNS {
            for group in ["broad", "interest_outdoor"] {
                for creative in ["video_hike_15s", "carousel_boots", "static_tent_v2"] {
                    registry.intern(&format!("{campaign}/{group}/{creative}").parse()?);
                }
            }
        }
        let entities = RegistryView::new(registry).all().to_vec();
        let goals = CAMPAIGNS.iter().enumerate().map(|(at, (campaign, budget))| Goal {
            name: format!("{} goal", campaign.rsplit('/').next().unwrap_or_default()),
            applies_to: (*campaign).to_owned(),
            objective: match at % 4 {
                0 => Objective::TargetCpa { cpa_micros: 9_500_000 },
                1 => Objective::TargetRoas { roas: 2.5 },
                2 => Objective::TargetCpc { cpc_micros: 420_000 },
                _ => Objective::Maximise,
            },
            daily_budget_micros: (budget * 1e6) as i64,
            pricing: if at % 3 == 2 { Pricing::Cpc } else { Pricing::Cpm },
            start: None,
            end: None,
            bid_floor_micros: 100_000,
            bid_cap_micros: 20_000_000,
            portfolio_budget_micros: None,
        });
        let eur: Currency = "EUR".parse()?;
        let windows: Result<Vec<WindowSpec>, _> =
            ["1h/1m", "24h/15m", "7d/2h", "28d/6h", "day"].into_iter().map(str::parse).collect();
        let board = Board::new(BoardConfig {
            windows: windows?,
            goals: goals.collect(),
            currency_of: Arc::new(move |key| {
                Some(if key.tenant() == "acme" { Currency::USD } else { eur })
            }),
            executor: "dry_run".to_owned(),
            dry_run: true,
            publish_every_ms: 0,
            ..BoardConfig::default()
        });
        Ok(World {
            board,
            entities,
            counters: Counters::default(),
            flying: Vec::new(),
            bids: BTreeMap::new(),
        })
    }

    fn step(&mut self, step: u64) {
        let tick = START + step * STEP_MS;
        let rows: Vec<_> =
            self.entities.iter().map(|info| (info.clone(), features(info, tick, step))).collect();
        self.board.update(&Frame { tick, rows: rows.clone() });
        for (info, row) in &rows {
            let roll = noise(info.order, step ^ 77);
            if info.level == Level::Campaign && roll < 0.16 {
                self.decide(info, row, step, roll);
            } else if row.fatigue.state == FatigueState::WearingOut
                && info.level == Level::Creative
                && roll < 0.01
            {
                self.rotate(info, row, step);
            }
        }
        self.acknowledge(step, tick);
        self.count(step, tick);
        self.board.publish(tick, self.counters.clone());
    }

    fn decide(&mut self, info: &Arc<EntityInfo>, row: &FeatureRow, step: u64, roll: f64) {
        let tick = START + step * STEP_MS;
        let start = 1_500_000 + (noise(info.order, 3) * 3e6) as i64;
        let before = *self.bids.entry(info.order).or_insert(start);
        let lower = (45..80).contains(&((roll * 1_000.0) as u64));
        let size = 0.02 + noise(info.order, step) * 0.08;
        let change = if lower || before > 6_000_000 { 1.0 - size } else { 1.0 + size };
        let wanted = Setting::Bid { bid_micros: (before as f64 * change) as i64 };
        let (verdict, reasons, guardrails): (_, Vec<&'static str>, Vec<&'static str>) = match (roll
            * 1_000.0)
            as u64
        {
            0..=44 => (Verdict::Act, vec!["behind_plan", "budget_binds"], vec![]),
            45..=69 => (Verdict::Act, vec!["above_target", "kpi_binds", "young_kpi"], vec!["step"]),
            70..=79 => (Verdict::Blocked, vec!["above_target"], vec!["cooldown"]),
            80..=84 => (Verdict::Blocked, vec!["below_target"], vec!["minimum_evidence"]),
            85..=92 => (Verdict::Propose, vec!["reallocated", "seasonal_shift"], vec!["autonomy"]),
            _ => (Verdict::Hold, vec!["deadband"], vec![]),
        };
        let goal = format!("{} goal", info.key.segment(3).unwrap_or_default());
        let granted = (verdict == Verdict::Act).then(|| wanted.clone());
        let decision = Decision {
            id: id(info.order, tick, 1),
            tick,
            entity: info.clone(),
            goal: goal.into(),
            policy: "target_cpa/1",
            model_version: 3,
            verdict,
            proposed: Some(wanted.clone()),
            granted,
            action: (verdict == Verdict::Act).then(|| id(info.order, tick, 2)),
            reasons: reasons.clone(),
            guardrails,
            predicted: Prediction {
                spend_micros: (change - 1.0) * 4e7,
                value: (change - 1.0) * 9.0,
                value_low: (change - 1.0) * 4.0,
                value_high: (change - 1.0) * 14.0,
            },
            propensity: 1.0,
            pacing_error: (noise(info.order, 5) - 0.55) * 0.22,
            row: *row,
        };
        self.board.decision(&decision);
        *self.counters.decisions.entry(verdict.name()).or_default() += 1;
        if verdict == Verdict::Act {
            self.bids.insert(info.order, (before as f64 * change) as i64);
            let before = Some(Setting::Bid { bid_micros: before });
            self.send(step, &decision, wanted, before, reasons);
        }
    }

    fn rotate(&mut self, info: &Arc<EntityInfo>, row: &FeatureRow, step: u64) {
        let tick = START + step * STEP_MS;
        let sibling = info.key.as_str().replace("video_hike_15s", "static_tent_v2");
        let Ok(to) = sibling.parse::<EntityKey>() else { return };
        let wanted = Setting::Rotate { from: info.key.clone(), to };
        let reasons = vec!["wearing_out"];
        let decision = Decision {
            id: id(info.order, tick, 3),
            tick,
            entity: info.clone(),
            goal: "".into(),
            policy: "fatigue/1",
            model_version: 3,
            verdict: Verdict::Act,
            proposed: Some(wanted.clone()),
            granted: Some(wanted.clone()),
            action: Some(id(info.order, tick, 4)),
            reasons: reasons.clone(),
            guardrails: vec![],
            predicted: Prediction::default(),
            propensity: 1.0,
            pacing_error: 0.0,
            row: *row,
        };
        self.board.decision(&decision);
        *self.counters.decisions.entry("act").or_default() += 1;
        self.send(step, &decision, wanted, None, reasons);
    }

    fn send(
        &mut self,
        step: u64,
        decision: &Decision,
        desired: Setting,
        before: Option<Setting>,
        reasons: Vec<&'static str>,
    ) {
        let Some(action) = decision.action else { return };
        let action = Action {
            id: action,
            decision: decision.id,
            tick: decision.tick,
            expires: decision.tick + 300_000,
            owner: decision.entity.key.clone(),
            desired,
            before,
            reasons,
        };
        *self.counters.actions.entry(action.desired.kind().name()).or_default() += 1;
        self.board.action(&action, ActionState::InFlight);
        self.flying.push((step + 4, action));
    }

    fn acknowledge(&mut self, step: u64, tick: u64) {
        let (due, rest) =
            std::mem::take(&mut self.flying).into_iter().partition(|(at, _)| *at <= step);
        self.flying = rest;
        for (_, action) in due as Vec<(u64, Action)> {
            let roll = noise(action.tick, u64::from(action.id.0[3]));
            let outcome = if roll < 0.08 {
                Outcome::Rejected {
                    class: "validation".into(),
                    message: "bid is below the minimum of this placement (1.60)".into(),
                }
            } else if roll < 0.12 {
                Outcome::Expired
            } else {
                Outcome::Applied { effective: action.desired.clone() }
            };
            let name = match &outcome {
                Outcome::Applied { .. } => "applied",
                Outcome::Rejected { .. } => "rejected",
                _ => "expired",
            };
            *self.counters.outcomes.entry(name).or_default() += 1;
            self.board.outcome(action.id, &outcome, tick);
        }
    }

    fn count(&mut self, step: u64, tick: u64) {
        let counters = &mut self.counters;
        let events =
            2_200 + (900.0 * (step as f64 / 60.0).sin()) as u64 + (noise(step, 1) * 400.0) as u64;
        counters.rows_read += events + 3;
        counters.ignored += 3;
        counters.events_in += events;
        let dead = [("unknown_tenant", 97), ("future_time", 41), ("duplicate_id", 13)];
        for (reason, every) in dead {
            if step % every == every - 1 {
                *counters.dead_letters.entry(reason).or_default() += 1 + step % 3;
            }
        }
        counters.held = 12 + step % 7;
        counters.featured = counters.events_in - counters.held - counters.dead_letters_total();
        counters.ticks += 1;
        counters.history_rows = counters.events_in;
        counters.model_version = 3;
        let slow = 3.0 + 2.0 * noise(step / 4, 9);
        counters.latency_ms = Some(LatencyMs { p50: 1.1, p99: slow, p999: slow * 2.0, max: 31.5 });
        counters.watermarks = Watermarks {
            fresh_until_us: Some(us_of_tick(tick) - 90_000_000),
            settled_until_us: Some(us_of_tick(tick) - 3 * DAY_US),
        };
        counters.violations = BTreeMap::new();
    }
}

fn maturity(long: &Stats, tick: u64) -> Maturity {
    let (now_us, share) = (us_of_tick(tick), 0.94);
    let expected = |reported: i64| {
        let mean = reported as f64 / share;
        Expected { mean, low: 0.98 * mean, high: 1.03 * mean }
    };
    Maturity {
        share,
        error: 0.01,
        conversions: expected(long.conversions),
        revenue_micros: expected(long.revenue_micros),
        fresh_us: now_us,
        settled_us: now_us - 9 * DAY_US,
        residual: -0.6,
        broken: false,
    }
}

fn features(info: &EntityInfo, tick: u64, step: u64) -> FeatureRow {
    let share = match info.level {
        Level::Tenant => 30.0,
        Level::Account => 14.0,
        Level::Campaign => 6.0,
        Level::AdGroup => 3.0,
        Level::Creative => 1.0,
    };
    let worn = info.key.as_str().ends_with("video_hike_15s") && !info.order.is_multiple_of(3);
    let wear = if worn { (step as f64 / 900.0).min(1.6) } else { 0.0 };
    let base = 0.006 + 0.012 * noise(info.order, 2);
    let rhythm = 1.0 + 0.35 * (step as f64 / 90.0 + noise(info.order, 4) * 6.0).sin();
    let ctr = base * (1.0 - 0.28 * wear) * (0.97 + 0.06 * noise(info.order, step));
    let budget = CAMPAIGNS.iter().find(|(key, _)| info.key.as_str().starts_with(key));
    let budget = budget.map_or(6_000.0, |(_, budget)| *budget);
    let size =
        if info.level <= Level::Account { 900.0 * share / 6.0 } else { budget * share / 6.0 };
    let per_hour = size / 26.0 * rhythm;
    let sums = |hours: f64| {
        let cost = per_hour * hours;
        let impressions = cost / 4.2 * 1_000.0;
        let clicks = impressions * ctr;
        let conversions = clicks * 0.045;
        Stats {
            impressions: impressions as i64,
            clicks: clicks as i64,
            conversions: conversions as i64,
            cost_micros: (cost * 1e6) as i64,
            revenue_micros: (conversions * 31.0 * 1e6) as i64,
        }
    };
    let hour = us_of_tick(tick).rem_euclid(DAY_US) as f64 / HOUR_US as f64;
    let mut windows = [Stats::ZERO; MAX_WINDOWS];
    windows[0] = sums(1.0);
    windows[1] = sums(23.0);
    windows[2] = sums(150.0);
    windows[3] = sums(600.0);
    windows[4] = Stats { cost_micros: (size / 25.0 * hour * 1e6) as i64, ..sums(hour / rhythm) };
    let long = windows[3];
    let spread = (ctr / long.impressions.max(1) as f64).sqrt() * 1.64;
    let ratio = 1.0 - 0.28 * wear;
    let young = info.level == Level::Creative && info.order.is_multiple_of(7);
    let state = match ratio {
        _ if young => FatigueState::Insufficient,
        ratio if ratio < 0.8 => FatigueState::WearingOut,
        _ => FatigueState::Fresh,
    };
    FeatureRow {
        entity: info.id,
        tick,
        windows,
        ctr: Estimate {
            mean: ctr,
            low: (ctr - spread).max(0.0),
            high: ctr + spread,
            successes: long.clicks,
            trials: long.impressions,
        },
        cvr: Estimate {
            mean: 0.045,
            low: 0.039,
            high: 0.052,
            successes: long.conversions,
            trials: long.clicks,
        },
        reach: Reach {
            users: long.impressions as f64 / (1.8 + wear * 2.0),
            frequency: 1.8 + wear * 2.0,
        },
        fatigue: Fatigue {
            state,
            baseline_ctr: base,
            ratio,
            probability: (wear * 0.9).clamp(0.01, 0.995),
            slope_per_day: -0.03 * wear,
            days_to_onset: (wear > 0.05 && !young).then(|| ((0.7 - wear) * 14.0).max(0.0)),
        },
        anomaly: Anomaly {
            score: noise(info.order, step / 30) * 2.0,
            alarm: info.order.is_multiple_of(23) && (step / 120) % 2 == 1,
        },
        maturity: (info.key.segment(1) == Some("meta") && info.level != Level::Tenant)
            .then(|| maturity(&long, tick)),
    }
}
