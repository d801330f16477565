//! The HTTP face of a [`Platform`]; the contract is in the crate documentation.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use omnify_operators::model::EntityKey;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

use crate::action::{ActionError, Setting};
use crate::faults::Fault;
use crate::platform::Platform;

/// Largest action accepted, in bytes: the longest keys fit twenty times.
const ACTION_BYTES_MAX: usize = 64 * 1024;
/// Feed items per answer, at most.
const FEED_LIMIT_MAX: usize = 100_000;
/// Entities per answer, at most.
const ENTITIES_LIMIT_MAX: usize = 10_000;

const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");
const TIME_US: HeaderName = HeaderName::from_static("x-time-us");

/// Answers requests on `listener` until `shutdown` resolves.
pub async fn serve(
    platform: Arc<Platform>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router(platform)).with_graceful_shutdown(shutdown).await
}

/// The routes.
pub fn router(platform: Arc<Platform>) -> Router {
    Router::new()
        .route("/v1/time", get(time))
        .route("/v1/feed", get(feed))
        .route("/v1/entities", get(entities))
        .route("/v1/entities/{*key}", get(entity))
        .route("/v1/actions", post(action))
        .layer(DefaultBodyLimit::max(ACTION_BYTES_MAX))
        .with_state(platform)
}

/// An error in the form all routes use.
fn error(status: StatusCode, class: &str, message: &str, more: serde_json::Value) -> Response {
    let mut error = json!({"class": class, "message": message});
    if let (Some(error), serde_json::Value::Object(more)) = (error.as_object_mut(), more) {
        error.extend(more);
    }
    (status, Json(json!({"error": error}))).into_response()
}

async fn time(State(platform): State<Arc<Platform>>) -> Response {
    let next = platform.feed(u64::MAX, 0).map_or(0, |page| page.next);
    let body = platform.read(|market| {
        let config = market.config();
        json!({
            "start_us": config.start_us,
            "time_us": market.now_us(),
            "step_us": config.step_us,
            "next_cursor": next,
        })
    });
    Json(body).into_response()
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

async fn feed(State(platform): State<Arc<Platform>>, Query(page): Query<Page>) -> Response {
    let limit = page.limit.unwrap_or(10_000).min(FEED_LIMIT_MAX);
    let page = match platform.feed(page.after, limit) {
        Ok(page) => page,
        Err(gone) => {
            let more = json!({"oldest": gone.oldest});
            return error(StatusCode::GONE, "cursor_gone", &gone.to_string(), more);
        }
    };
    let mut body = Vec::with_capacity(page.items.len() * 300);
    for item in &page.items {
        if let Some(key) = platform.creative_key(item.creative()) {
            item.write_ndjson(key, &mut body);
        }
    }
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(NEXT_CURSOR, HeaderValue::from(page.next));
    headers.insert(TIME_US, HeaderValue::from(page.complete_us));
    (headers, body).into_response()
}

async fn entities(State(platform): State<Arc<Platform>>, Query(page): Query<Page>) -> Response {
    let limit = page.limit.unwrap_or(1_000).min(ENTITIES_LIMIT_MAX);
    let skip = usize::try_from(page.after).unwrap_or(usize::MAX);
    let body = platform.read(|market| {
        let entities = market.settings_page(skip, limit);
        let next_after = skip.saturating_add(entities.len());
        json!({"time_us": market.now_us(), "entities": entities, "next_after": next_after})
    });
    Json(body).into_response()
}

async fn entity(State(platform): State<Arc<Platform>>, Path(key): Path<String>) -> Response {
    let settings = key.parse::<EntityKey>().ok().and_then(|key| platform.settings(&key));
    match settings {
        Some(settings) => Json(settings).into_response(),
        None => {
            let message = format!("`{key}` is not a campaign, ad group or creative of this market");
            error(StatusCode::NOT_FOUND, "unknown_entity", &message, json!({}))
        }
    }
}

/// The owner is read as text, so that a bad key is answered with its field.
#[derive(Deserialize)]
struct ActionRequest {
    action_id: String,
    owner: String,
    #[serde(flatten)]
    setting: Setting,
    #[serde(default)]
    before: Option<Setting>,
}

async fn action(State(platform): State<Arc<Platform>>, body: Bytes) -> Response {
    let fault = platform.next_fault();
    match fault {
        Some(Fault::ErrorBefore) => return failed(),
        Some(Fault::TimeoutBefore) => return held(&platform).await,
        Some(Fault::Throttle) => return throttled(),
        Some(Fault::Conflict) => {
            let message = "somebody else changed the setting; read it and decide again";
            return error(StatusCode::CONFLICT, "conflict", message, json!({}));
        }
        Some(Fault::ErrorAfter | Fault::TimeoutAfter) | None => {}
    }
    let answer = answer(&platform, &body);
    match fault {
        Some(Fault::ErrorAfter) => failed(),
        Some(Fault::TimeoutAfter) => held(&platform).await,
        _ => answer,
    }
}

fn answer(platform: &Platform, body: &[u8]) -> Response {
    let invalid = |field: &str, message: &str| {
        error(StatusCode::UNPROCESSABLE_ENTITY, "validation", message, json!({"field": field}))
    };
    let request: ActionRequest = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(problem) => return invalid("body", &problem.to_string()),
    };
    let owner: EntityKey = match request.owner.parse() {
        Ok(owner) => owner,
        Err(problem) => return invalid("owner", &format!("{problem}")),
    };
    match platform.apply(&owner, &request.setting, request.before.as_ref()) {
        Ok(done) => Json(json!({
            "action_id": request.action_id,
            "applied": done.applied,
            "effective": done.effective,
        }))
        .into_response(),
        Err(problem) => refused(&problem),
    }
}

fn refused(problem: &ActionError) -> Response {
    let message = problem.to_string();
    match problem {
        ActionError::UnknownEntity(_) => {
            error(StatusCode::NOT_FOUND, "unknown_entity", &message, json!({}))
        }
        ActionError::Validation { field, .. } => {
            let more = json!({"field": field});
            error(StatusCode::UNPROCESSABLE_ENTITY, "validation", &message, more)
        }
        ActionError::Conflict { current } => {
            error(StatusCode::CONFLICT, "conflict", &message, json!({"current": current}))
        }
        ActionError::Quota { retry_after_s, .. } => {
            let mut response =
                error(StatusCode::TOO_MANY_REQUESTS, "change_quota", &message, json!({}));
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(*retry_after_s));
            response
        }
    }
}

fn failed() -> Response {
    let message = "the platform failed; whether the action took effect is not known";
    error(StatusCode::INTERNAL_SERVER_ERROR, "transient", message, json!({}))
}

fn throttled() -> Response {
    let message = "too many requests; come back later";
    let mut response = error(StatusCode::TOO_MANY_REQUESTS, "throttle", message, json!({}));
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(1));
    response
}

async fn held(platform: &Platform) -> Response {
    tokio::time::sleep(Duration::from_millis(platform.faults().hold_ms)).await;
    error(StatusCode::GATEWAY_TIMEOUT, "transient", "no answer in time", json!({}))
}
