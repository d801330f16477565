//! Health, readiness, status and the Prometheus text.

use std::collections::{BTreeMap, VecDeque};

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use omnify_decision::codes::{self, Code};
use omnify_operators::model::Tick;
use serde::Serialize;
use serde_json::json;

use super::counters::{Conservation, Counters, Watermarks};
use super::error::ApiError;
use super::features::as_of;
use super::router::{App, BuildInfo, Shared};
use super::snapshot::{PulsePoint, Setup, Snapshot};
use super::tokens::Scope;
use super::view::MATURITY;

/// The process runs.
pub(super) async fn healthz() -> Response {
    no_store(Json(json!({ "status": "ok" })).into_response())
}

/// Whether the engine's answers can be relied on now.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Readiness {
    ready: bool,
    as_of_tick: Option<Tick>,
    /// How far the newest published tick is behind; `null` where that is not known.
    lag_ms: Option<u64>,
    reasons: Vec<Reason>,
}

#[derive(Clone, Debug, Serialize)]
struct Reason {
    code: &'static str,
    text: String,
}

impl Readiness {
    pub(super) fn of(app: &App, snapshot: &Snapshot, texts: bool) -> Readiness {
        let present = app.state.present.as_ref().map(|present| present());
        let lag_ms = present
            .filter(|_| snapshot.sequence > 0)
            .map(|present| present.saturating_sub(snapshot.tick));
        let mut reasons = Vec::new();
        if snapshot.sequence == 0 {
            let text = "no tick is closed yet: waiting for the first events".to_owned();
            reasons.push(Reason { code: "no_tick", text });
        }
        if let Some(lag) = lag_ms.filter(|lag| *lag > app.state.limits.lag_ms_max) {
            let text = format!("the newest tick is {lag} ms old: the engine is behind or stopped");
            reasons.push(Reason { code: "lagging", text });
        }
        if !snapshot.counters.conservation().holds {
            let text = "events are missing or counted twice: see /v1/status".to_owned();
            reasons.push(Reason { code: "conservation", text });
        }
        for problem in snapshot.counters.problems.iter().filter(|problem| problem.holds_up()) {
            // The texts of problems may name tenants.
            let text = if texts { problem.text.clone() } else { "see /v1/status".to_owned() };
            reasons.push(Reason { code: problem.code, text });
        }
        Readiness { ready: reasons.is_empty(), as_of_tick: as_of(snapshot), lag_ms, reasons }
    }
}

pub(super) async fn readyz(State(app): Shared) -> Response {
    let readiness = Readiness::of(&app, &app.snapshot(), app.state.tokens.is_open());
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    no_store((status, Json(readiness)).into_response())
}

#[derive(Serialize)]
struct Status<'a> {
    as_of_tick: Option<Tick>,
    scope: &'a str,
    tenant: Option<&'a str>,
    entities: usize,
    maturity: &'static str,
    watermarks: Watermarks,
    setup: &'a Setup,
    build: &'a BuildInfo,
    readiness: Readiness,
    #[serde(flatten)]
    operator: Option<OperatorStatus<'a>>,
}

/// Totals over all tenants, for operators.
#[derive(Serialize)]
struct OperatorStatus<'a> {
    conservation: Conservation,
    counters: &'a Counters,
    pulse: &'a VecDeque<PulsePoint>,
}

pub(super) async fn status(State(app): Shared, Extension(scope): Extension<Scope>) -> Response {
    let snapshot = app.snapshot();
    let operator = scope == Scope::All;
    // Never remembered: readiness changes with the clock also when nothing is published.
    let status = Status {
        as_of_tick: as_of(&snapshot),
        scope: if operator { "operator" } else { "tenant" },
        tenant: scope.tenant(),
        entities: match scope.tenant() {
            None => snapshot.len(),
            Some(tenant) => snapshot.rows(Some(tenant), None).count(),
        },
        maturity: MATURITY,
        watermarks: snapshot.counters.watermarks,
        setup: &snapshot.setup,
        build: &app.state.build,
        readiness: Readiness::of(&app, &snapshot, operator),
        operator: operator.then(|| OperatorStatus {
            conservation: snapshot.counters.conservation(),
            counters: &snapshot.counters,
            pulse: &snapshot.pulse,
        }),
    };
    no_store(Json(status).into_response())
}

/// What every code of a decision means, from the decision stage's own table.
pub(super) async fn codes() -> Response {
    let table = |codes: &'static [Code]| -> BTreeMap<&str, &str> {
        codes.iter().map(|code| (code.code, code.meaning)).collect()
    };
    let all = json!({
        "policies": table(codes::policy::ALL),
        "reasons": table(codes::reason::ALL),
        "guardrails": table(codes::guardrail::ALL),
        "alerts": table(codes::alert::ALL),
    });
    let mut response = Json(all).into_response();
    let hour = HeaderValue::from_static("private, max-age=3600");
    response.headers_mut().insert(header::CACHE_CONTROL, hour);
    response
}

pub(super) async fn prometheus(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
) -> Result<Response, ApiError> {
    if scope != Scope::All {
        return Err(ApiError::operator_only());
    }
    let Some(handle) = &app.state.metrics else {
        let hint = "start the engine with telemetry on";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return Err(ApiError::new(status, "no_metrics", "metrics are not recorded", hint));
    };
    let mut response = handle.render().into_response();
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    Ok(no_store(response))
}

pub(super) fn no_store(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
