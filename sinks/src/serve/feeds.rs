//! `/v1/decisions` and `/v1/actions`: the newest of each, newest first.

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use omnify_decision::action::Verdict;
use omnify_operators::model::{EntityKey, Tick};
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::features::{as_of, limit_of, root_of};
use super::router::{Shared, answer, to_json};
use super::snapshot::{Snapshot, is_under};
use super::tokens::Scope;
use super::view::{ActionView, DecisionView};

const LIMIT_DEFAULT: usize = 100;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DecisionsQuery {
    tenant: Option<String>,
    /// This entity and those below it.
    entity: Option<EntityKey>,
    verdict: Option<Verdict>,
    limit: Option<usize>,
    /// Only decisions with a greater sequence.
    #[serde(default)]
    after: u64,
    /// Only decisions with a smaller sequence: the next page.
    before: Option<u64>,
}

#[derive(Serialize)]
struct Decisions<'a> {
    as_of_tick: Option<Tick>,
    /// Pass it as `after` to get only what is newer.
    newest: u64,
    decisions: Vec<DecisionView<'a>>,
    /// Pass it as `before` for older ones; `null` when there are none kept.
    next: Option<u64>,
}

pub(super) async fn decisions(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
    uri: Uri,
    headers: HeaderMap,
    query: Result<Query<DecisionsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|bad| ApiError::bad_query(bad.body_text()))?;
    answer(&app, &scope, &uri, &headers, |snapshot| {
        let limit = limit_of(query.limit, LIMIT_DEFAULT)?;
        let root = root_of(&scope, query.tenant.as_deref(), query.entity.as_ref())?;
        let before = query.before.unwrap_or(u64::MAX);
        let mut found = snapshot
            .decisions
            .iter(query.verdict, query.after, before)
            .filter(|kept| inside(kept.decision.entity.key.as_str(), root.as_deref()));
        let decisions: Vec<_> =
            found.by_ref().take(limit).map(|kept| DecisionView::new(snapshot, kept)).collect();
        let next = found.next().and(decisions.last()).map(|last| last.sequence);
        let newest = snapshot.decisions.newest();
        to_json(&Decisions { as_of_tick: as_of(snapshot), newest, decisions, next })
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ActionsQuery {
    tenant: Option<String>,
    /// This owner and those below it.
    entity: Option<EntityKey>,
    /// `proposed`, `in_flight`, `applied`, `rejected` or `expired`.
    state: Option<String>,
    limit: Option<usize>,
    /// Only actions that changed since this revision.
    #[serde(default)]
    after: u64,
}

#[derive(Serialize)]
struct Actions<'a> {
    as_of_tick: Option<Tick>,
    /// Pass it as `after` to get only what changes from now on.
    revision: u64,
    dry_run: bool,
    actions: Vec<ActionView<'a>>,
}

pub(super) async fn actions(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
    uri: Uri,
    headers: HeaderMap,
    query: Result<Query<ActionsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|bad| ApiError::bad_query(bad.body_text()))?;
    answer(&app, &scope, &uri, &headers, |snapshot| list_actions(snapshot, &scope, &query))
}

fn list_actions(
    snapshot: &Snapshot,
    scope: &Scope,
    query: &ActionsQuery,
) -> Result<Vec<u8>, ApiError> {
    let limit = limit_of(query.limit, LIMIT_DEFAULT)?;
    let root = root_of(scope, query.tenant.as_deref(), query.entity.as_ref())?;
    if let Some(state) = query.state.as_deref()
        && super::ActionState::ALL.iter().all(|known| known.name() != state)
    {
        let known = super::ActionState::ALL.map(super::ActionState::name).join(", ");
        return Err(ApiError::bad_query(format!("no state `{state}`: write one of {known}")));
    }
    let actions = snapshot
        .actions
        .iter()
        .filter(|kept| kept.revision > query.after)
        .filter(|kept| query.state.as_deref().is_none_or(|state| kept.state.name() == state))
        .filter(|kept| inside(kept.action.owner.as_str(), root.as_deref()))
        .take(limit)
        .map(|kept| ActionView::new(snapshot, kept))
        .collect();
    let revision = snapshot.actions.revision();
    let dry_run = snapshot.setup.dry_run;
    to_json(&Actions { as_of_tick: as_of(snapshot), revision, dry_run, actions })
}

fn inside(key: &str, root: Option<&str>) -> bool {
    root.is_none_or(|root| is_under(key, root))
}
