//! A small world for the tests: tenants `acme`, `acme-2` and `rival` with a campaign tree each.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::Response;
use omnify_decision::action::{Action, Decision, Id, Prediction, Setting, Verdict};
use omnify_decision::approvals::Proposal;
use omnify_decision::goal::{Goal, Objective, Pricing};
use omnify_decision::stage::{Autonomy, Stage, StageConfig};
use omnify_operators::model::{
    Anomaly, Currency, EntityInfo, Estimate, Fatigue, FatigueState, FeatureRow, Frame, Level,
    MAX_WINDOWS, Maturity, Reach, Registry, RegistryView, Stats, Tick,
};
use omnify_sinks::serve::{ActionState, Board, BoardConfig, Counters, Scope, TokenTable};
use serde_json::Value;
use tower::ServiceExt;

pub(crate) const TENANTS: [&str; 3] = ["acme", "acme-2", "rival"];

pub(crate) fn token(tenant: &str) -> String {
    format!("token-of-{tenant}-{}", "x".repeat(32))
}

pub(crate) fn tokens() -> TokenTable {
    let mut table = TokenTable::open();
    for tenant in TENANTS {
        table.add(&token(tenant), Scope::Tenant(tenant.to_owned())).unwrap();
    }
    table.add(&token("operator"), Scope::All).unwrap();
    table
}

pub(crate) fn entities() -> Vec<Arc<EntityInfo>> {
    let registry = Arc::new(Registry::utc());
    for tenant in TENANTS {
        for campaign in ["brand", "sale"] {
            for creative in ["x", "y", "z"] {
                let key = format!("{tenant}/meta/act_{tenant}/{campaign}_{tenant}/g/{creative}");
                registry.intern(&key.parse().unwrap());
            }
        }
    }
    RegistryView::new(registry).all().to_vec()
}

/// Every number of a row is made from the tick, so that a mixed answer shows.
pub(crate) fn row(info: &EntityInfo, tick: Tick) -> FeatureRow {
    let n = i64::try_from(tick).unwrap();
    let mut windows = [Stats::ZERO; MAX_WINDOWS];
    windows[0] = Stats { impressions: 1_000 * n, clicks: 10 * n, cost_micros: n, ..Stats::ZERO };
    windows[1] = Stats { cost_micros: 40_000_000, ..Stats::ZERO };
    let worn = info.level == Level::Creative && info.key.as_str().ends_with('x');
    FeatureRow {
        entity: info.id,
        tick,
        windows,
        ctr: Estimate { mean: 0.01, low: 0.005, high: 0.02, successes: 10 * n, trials: 1_000 * n },
        cvr: Estimate::default(),
        reach: Reach::default(),
        fatigue: Fatigue {
            state: if worn { FatigueState::WearingOut } else { FatigueState::Insufficient },
            ..Fatigue::default()
        },
        anomaly: Anomaly::default(),
        maturity: (info.level == Level::Account).then(|| Maturity {
            share: 0.8,
            fresh_us: 1_000 * n,
            settled_us: 500 * n,
            broken: true,
            ..Maturity::default()
        }),
    }
}

pub(crate) fn frame(entities: &[Arc<EntityInfo>], tick: Tick) -> Frame {
    Frame { tick, rows: entities.iter().map(|info| (info.clone(), row(info, tick))).collect() }
}

pub(crate) fn id(n: u64, kind: u8) -> Id {
    let mut bytes = [kind; 16];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    Id(bytes)
}

pub(crate) fn decision(info: &Arc<EntityInfo>, tick: Tick, verdict: Verdict) -> Decision {
    let bid = Setting::Bid { bid_micros: 2_000_000 };
    Decision {
        id: id(info.order ^ tick, 1),
        tick,
        entity: info.clone(),
        goal: "goal".into(),
        policy: "target_cpa/1",
        model_version: 0,
        verdict,
        proposed: Some(bid.clone()),
        granted: (verdict == Verdict::Act).then_some(bid),
        action: (verdict == Verdict::Act).then(|| id(info.order ^ tick, 2)),
        reasons: vec!["behind_plan"],
        guardrails: vec![],
        predicted: Prediction::default(),
        propensity: 1.0,
        pacing_error: -0.1,
        row: row(info, tick),
    }
}

pub(crate) fn action(info: &Arc<EntityInfo>, tick: Tick) -> Action {
    Action {
        id: id(info.order ^ tick, 2),
        decision: id(info.order ^ tick, 1),
        tick,
        expires: tick + 300_000,
        owner: info.key.clone(),
        desired: Setting::Bid { bid_micros: 2_000_000 },
        before: Some(Setting::Bid { bid_micros: 1_900_000 }),
        reasons: vec!["behind_plan"],
    }
}

pub(crate) fn config() -> BoardConfig {
    let goal = Goal {
        name: "goal".into(),
        applies_to: "*".into(),
        objective: Objective::TargetCpa { cpa_micros: 10_000_000 },
        daily_budget_micros: 100_000_000,
        portfolio_budget_micros: None,
        pricing: Pricing::Cpm,
        start: None,
        end: None,
        bid_floor_micros: 0,
        bid_cap_micros: i64::MAX,
    };
    BoardConfig {
        windows: ["1h/1m", "day"].map(|window| window.parse().unwrap()).to_vec(),
        goals: vec![goal],
        currency_of: Arc::new(|_| Some(Currency::USD)),
        publish_every_ms: 0,
        ..BoardConfig::default()
    }
}

/// A board after one tick in which every campaign got a decision and an action.
pub(crate) fn board(entities: &[Arc<EntityInfo>]) -> Board {
    let mut board = Board::new(config());
    board.update(&frame(entities, 1));
    for info in entities.iter().filter(|info| info.level == Level::Campaign) {
        board.decision(&decision(info, 1, Verdict::Act));
        board.decision(&decision(info, 2, Verdict::Hold));
        board.action(&action(info, 1), ActionState::InFlight);
    }
    board.publish(1, counters(7));
    board
}

/// A change of every campaign's budget that waits for a person, from a stage that never acts alone.
pub(crate) fn proposals() -> Vec<Arc<Proposal>> {
    let config = StageConfig {
        goals: config().goals,
        autonomy: Autonomy::HumanLed,
        windows: config().windows,
        ..StageConfig::default()
    };
    let mut stage = Stage::new(config).unwrap();
    stage.on_tick(60_000, &[], &frame(&entities(), 60_000));
    stage.proposals().cloned().collect()
}

pub(crate) fn counters(events: u64) -> Counters {
    Counters { rows_read: events, events_in: events, featured: events, ..Counters::default() }
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|bad| panic!("{bad}: {}", self.body))
    }

    pub(crate) fn header(&self, name: impl header::AsHeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn error_code(&self) -> String {
        let error = &self.json()["error"];
        for field in ["code", "message", "hint"] {
            assert!(error[field].as_str().is_some_and(|text| !text.is_empty()), "{}", self.body);
        }
        error["code"].as_str().unwrap().to_owned()
    }
}

pub(crate) async fn send(router: &Router, request: Request<Body>) -> Response {
    router.clone().oneshot(request).await.unwrap()
}

pub(crate) async fn reply(router: &Router, request: Request<Body>) -> Reply {
    let response = send(router, request).await;
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 1 << 26).await.unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap();
    Reply { status: parts.status, headers: parts.headers, body }
}

pub(crate) fn request(path: &str, token: Option<&str>) -> Request<Body> {
    let mut request = Request::get(path).header(header::HOST, "localhost:9464");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    request.body(Body::empty()).unwrap()
}

pub(crate) async fn get(router: &Router, path: &str) -> Reply {
    reply(router, request(path, None)).await
}
