//! What people tell the engine: `/v1/proposals` with their answers, `/v1/kill` and `/v1/resume`.
//!
//! An order is an input like any other: it is answered 202 when it is durable, and takes effect at
//! the tick it entered. What became of it is a decision or a state, never part of the answer: an
//! approval is judged anew (see `/v1/decisions`, policy `approval`), and may still be dropped.
//!
//! A tenant's token answers its own proposals and stops its own actions only; stopping or resuming
//! everything takes an operator's.

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use omnify_decision::action::Id;
use omnify_decision::control::Control;
use omnify_operators::model::{EntityKey, Tick};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::error::ApiError;
use super::features::{as_of, limit_of, root_of};
use super::ports_http::{push_error, read_json, unavailable};
use super::router::{App, Shared, answer, to_json};
use super::snapshot::is_under;
use super::status::no_store;
use super::tokens::Scope;
use super::view::ProposalView;

const LIMIT_DEFAULT: usize = 100;
/// An order is small.
const ORDER_BYTES_MAX: usize = 16 << 10;
/// Longest name of a person, and longest reason.
const NAME_BYTES_MAX: usize = 200;
const REASON_BYTES_MAX: usize = 2_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProposalsQuery {
    tenant: Option<String>,
    /// This owner and those below it.
    entity: Option<EntityKey>,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct Proposals<'a> {
    as_of_tick: Option<Tick>,
    /// Open proposals within the scope, whatever the limit.
    open: usize,
    proposals: Vec<ProposalView<'a>>,
}

pub(super) async fn proposals(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
    uri: Uri,
    headers: HeaderMap,
    query: Result<Query<ProposalsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|bad| ApiError::bad_query(bad.body_text()))?;
    answer(&app, &scope, &uri, &headers, |snapshot| {
        let limit = limit_of(query.limit, LIMIT_DEFAULT)?;
        let root = root_of(&scope, query.tenant.as_deref(), query.entity.as_ref())?;
        let inside = |key: &str| root.as_deref().is_none_or(|root| is_under(key, root));
        let found: Vec<_> =
            snapshot.proposals.iter().filter(|open| inside(open.owner.as_str())).collect();
        let proposals = found.iter().take(limit).map(|open| ProposalView::new(snapshot, open));
        let (open, proposals) = (found.len(), proposals.collect());
        to_json(&Proposals { as_of_tick: as_of(snapshot), open, proposals })
    })
}

/// A person's answer to a proposal.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    by: String,
    #[serde(default)]
    reason: String,
}

pub(super) async fn approve(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let Answer { by, .. } = order(&headers, body, r#"{"by": "NAME"}"#).await?;
    let proposal = visible(&app, &scope, id)?;
    take(&app, Control::Approve { proposal, by: name(by)? }).await
}

pub(super) async fn reject(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let Answer { by, reason } = order(&headers, body, r#"{"by": "NAME", "reason": "…"}"#).await?;
    let proposal = visible(&app, &scope, id)?;
    if reason.len() > REASON_BYTES_MAX {
        let message = format!("`reason` is longer than {REASON_BYTES_MAX} bytes");
        return Err(malformed(message, "say it in fewer words"));
    }
    take(&app, Control::Reject { proposal, by: name(by)?, reason }).await
}

/// Whom a kill or its end is about.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whom {
    tenant: Option<String>,
}

pub(super) async fn kill(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let tenant = whom(&scope, &headers, body).await?;
    take(&app, Control::Kill { tenant }).await
}

pub(super) async fn resume(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let tenant = whom(&scope, &headers, body).await?;
    take(&app, Control::Resume { tenant }).await
}

/// The tenant named, or that of the token; `None` (everything) for operators only.
async fn whom(scope: &Scope, headers: &HeaderMap, body: Body) -> Result<Option<String>, ApiError> {
    let Whom { tenant } = order(headers, body, r#"{"tenant": "NAME"}, or {} for all"#).await?;
    match tenant {
        Some(tenant) if !scope.sees_tenant(&tenant) => Err(ApiError::wrong_tenant(&tenant)),
        Some(tenant) => {
            let key = EntityKey::new(&[&tenant]);
            key.map_err(|bad| malformed(bad.to_string(), "name a tenant as in its events"))?;
            Ok(Some(tenant))
        }
        None => Ok(scope.tenant().map(ToOwned::to_owned)),
    }
}

async fn order<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    form: &str,
) -> Result<T, ApiError> {
    read_json(headers, body, ORDER_BYTES_MAX, &format!("send {form}")).await
}

fn name(by: String) -> Result<String, ApiError> {
    let by = by.trim();
    if (1..=NAME_BYTES_MAX).contains(&by.len()) && !by.chars().any(char::is_control) {
        return Ok(by.to_owned());
    }
    let message = format!("`by` must be a name of 1 to {NAME_BYTES_MAX} bytes");
    Err(malformed(message, "say who decides: it is kept with the decision"))
}

fn malformed(message: String, hint: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "malformed", message, hint)
}

/// The proposal, if it is open and the caller may see it: nobody learns of another's.
fn visible(app: &App, scope: &Scope, id: String) -> Result<Id, ApiError> {
    let hint = "GET /v1/proposals lists what is open: it may have been answered, superseded or \
                expired";
    let id = Id::try_from(id).map_err(|bad| malformed(bad, hint))?;
    let snapshot = app.snapshot();
    let open = snapshot.proposals.iter().find(|open| open.id == id);
    match open.filter(|open| scope.sees(&open.owner)) {
        Some(open) => Ok(open.id),
        None => {
            let message = format!("no proposal {id} is open");
            Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_proposal", message, hint))
        }
    }
}

async fn take(app: &App, control: Control) -> Result<Response, ApiError> {
    let orders = app.state.orders.as_ref().ok_or_else(|| {
        unavailable("no_orders", "this engine takes no orders", "ask the engine that decides")
    })?;
    let limit = app.state.limits.request_timeout;
    let taken = tokio::time::timeout(limit, orders.order(control)).await;
    let taken = taken.map_err(|_| {
        let message = "it is not known yet whether the order was taken";
        unavailable("unknown", message, "look at /v1/status, and send it again if need be")
    })?;
    taken.map_err(|error| push_error(&error, &super::Accepted::default(), 0))?;
    Ok(no_store((StatusCode::ACCEPTED, Json(json!({ "accepted": true }))).into_response()))
}
