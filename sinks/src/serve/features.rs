//! `/v1/features`: rows of entities, one page or one entity at a time.

use std::cmp::Ordering;

use axum::Extension;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use omnify_operators::model::{EntityKey, FatigueState, Level, Tick};
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::router::{Shared, answer, to_json};
use super::snapshot::{Row, Snapshot, tree_order};
use super::tokens::Scope;
use super::view::{MATURITY, RowView};

/// Rows of a page when the caller does not say.
const LIMIT_DEFAULT: usize = 50;
/// Most rows of a page.
pub(super) const LIMIT_MAX: usize = 1_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FeaturesQuery {
    tenant: Option<String>,
    platform: Option<String>,
    level: Option<Level>,
    state: Option<FatigueState>,
    /// Only this entity and those below it.
    under: Option<EntityKey>,
    /// Deepest level to list.
    down_to: Option<Level>,
    /// Text that the entity's path contains, in any case.
    contains: Option<String>,
    #[serde(default)]
    sort: Sort,
    /// Window that `sort` looks at; the first one when left out.
    window: Option<String>,
    #[serde(default)]
    spark: bool,
    limit: Option<usize>,
    cursor: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Sort {
    /// Tree order: a parent right before its children. The only order in which pages neither
    /// repeat nor miss a row while the engine runs.
    #[default]
    Key,
    Impressions,
    Clicks,
    Cost,
    Ctr,
    Fatigue,
    Frequency,
    Anomaly,
    Pacing,
}

#[derive(Serialize)]
struct Page<'a> {
    as_of_tick: Option<Tick>,
    maturity: &'static str,
    /// Rows that match, on all pages.
    matching: usize,
    rows: Vec<RowView<'a>>,
    /// Pass it as `cursor` for the next page; `null` on the last one.
    next: Option<String>,
}

pub(super) async fn list(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
    uri: Uri,
    headers: HeaderMap,
    query: Result<Query<FeaturesQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|bad| ApiError::bad_query(bad.body_text()))?;
    answer(&app, &scope, &uri, &headers, |snapshot| page(snapshot, &scope, &query))
}

fn page(snapshot: &Snapshot, scope: &Scope, query: &FeaturesQuery) -> Result<Vec<u8>, ApiError> {
    let limit = limit_of(query.limit, LIMIT_DEFAULT)?;
    let root = root_of(scope, query.tenant.as_deref(), query.under.as_ref())?;
    let window = window_of(snapshot, query.window.as_deref())?;
    let text = query.contains.as_deref().unwrap_or_default().to_lowercase();
    let wanted = |row: &&Row| {
        query.level.is_none_or(|level| row.info.level == level)
            && query.down_to.is_none_or(|level| row.info.level <= level)
            && (text.is_empty() || row.info.key.as_str().to_lowercase().contains(&text))
            && query.state.is_none_or(|state| row.features.fatigue.state == state)
            && query
                .platform
                .as_deref()
                .is_none_or(|platform| row.info.key.segment(1) == Some(platform))
    };
    let view = |row| RowView::new(snapshot, row, query.spark);
    let (rows, next, matching) = if query.sort == Sort::Key {
        let matching = snapshot.rows(root.as_deref(), None).filter(wanted).count();
        let mut rest = snapshot.rows(root.as_deref(), query.cursor.as_deref()).filter(wanted);
        let rows: Vec<&Row> = rest.by_ref().take(limit).collect();
        let next = rest.next().and(rows.last()).map(|row| row.info.key.to_string());
        (rows, next, matching)
    } else {
        let mut rows: Vec<(f64, &Row)> = snapshot
            .rows(root.as_deref(), None)
            .filter(wanted)
            .map(|row| (value(query.sort, row, window), row))
            .collect();
        let matching = rows.len();
        if let Some(cursor) = &query.cursor {
            let (last, key) = value_cursor(cursor)?;
            rows.retain(|(value, row)| {
                by_value((*value, row.info.key.as_str()), (last, key)) == Ordering::Greater
            });
        }
        let order = |a: &(f64, &Row), b: &(f64, &Row)| {
            by_value((a.0, a.1.info.key.as_str()), (b.0, b.1.info.key.as_str()))
        };
        let more = rows.len() > limit;
        if more {
            rows.select_nth_unstable_by(limit, order);
            rows.truncate(limit);
        }
        rows.sort_unstable_by(order);
        let last = rows.last().filter(|_| more);
        let next = last.map(|(value, row)| format!("{:016x}:{}", value.to_bits(), row.info.key));
        (rows.into_iter().map(|(_, row)| row).collect(), next, matching)
    };
    to_json(&Page {
        as_of_tick: as_of(snapshot),
        maturity: MATURITY,
        matching,
        rows: rows.into_iter().map(view).collect(),
        next,
    })
}

/// The tick of a snapshot; `None` before the first.
pub(super) fn as_of(snapshot: &Snapshot) -> Option<Tick> {
    (snapshot.sequence > 0).then_some(snapshot.tick)
}

pub(super) fn limit_of(limit: Option<usize>, default: usize) -> Result<usize, ApiError> {
    match limit.unwrap_or(default) {
        limit @ 1..=LIMIT_MAX => Ok(limit),
        limit => Err(ApiError::bad_query(format!("limit {limit}: write 1 to {LIMIT_MAX}"))),
    }
}

/// The subtree to look at, within the scope.
pub(super) fn root_of(
    scope: &Scope,
    tenant: Option<&str>,
    under: Option<&EntityKey>,
) -> Result<Option<String>, ApiError> {
    let named = [tenant, under.map(EntityKey::tenant)];
    for tenant in named.into_iter().flatten() {
        if !scope.sees_tenant(tenant) {
            return Err(ApiError::wrong_tenant(tenant));
        }
    }
    if let (Some(tenant), Some(under)) = (tenant, under)
        && under.tenant() != tenant
    {
        let text = format!("`{under}` is not below tenant `{tenant}`");
        return Err(ApiError::bad_query(text));
    }
    let root = under.map(EntityKey::as_str).or(tenant).or(scope.tenant());
    Ok(root.map(ToOwned::to_owned))
}

fn window_of(snapshot: &Snapshot, name: Option<&str>) -> Result<usize, ApiError> {
    let names = &snapshot.setup.windows;
    let Some(name) = name else { return Ok(0) };
    names.iter().position(|known| known == name).ok_or_else(|| {
        let known = names.join(", ");
        ApiError::bad_query(format!("no window `{name}`: this engine keeps {known}"))
    })
}

/// The value to sort by, descending; what is not defined comes last.
fn value(sort: Sort, row: &Row, window: usize) -> f64 {
    let (features, sums) = (&row.features, &row.features.windows[window]);
    let value = match sort {
        Sort::Key => None,
        Sort::Impressions => Some(sums.impressions as f64),
        Sort::Clicks => Some(sums.clicks as f64),
        Sort::Cost => Some(sums.cost_micros as f64),
        Sort::Ctr => (features.ctr.trials > 0).then_some(features.ctr.mean),
        Sort::Fatigue => (features.fatigue.state != FatigueState::Insufficient)
            .then_some(features.fatigue.probability),
        Sort::Frequency => Some(features.reach.frequency),
        Sort::Anomaly => Some(features.anomaly.score),
        Sort::Pacing => row.pacing.as_ref().map(|pacing| pacing.error.abs()),
    };
    value.filter(|value| !value.is_nan()).unwrap_or(f64::NEG_INFINITY)
}

fn by_value(a: (f64, &str), b: (f64, &str)) -> Ordering {
    b.0.total_cmp(&a.0).then_with(|| tree_order(a.1, b.1))
}

fn value_cursor(cursor: &str) -> Result<(f64, &str), ApiError> {
    let bad = || ApiError::bad_query("cursor: pass `next` of the previous page as it was");
    let (bits, key) = cursor.split_once(':').ok_or_else(bad)?;
    let bits = u64::from_str_radix(bits, 16).map_err(|_| bad())?;
    Ok((f64::from_bits(bits), key))
}

pub(super) async fn one(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
    uri: Uri,
    headers: HeaderMap,
    entity: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(entity) = entity.map_err(|bad| ApiError::bad_query(bad.body_text()))?;
    answer(&app, &scope, &uri, &headers, |snapshot| {
        let key = entity.parse::<EntityKey>().map_err(|bad| {
            let hint = "write the path of an entity, for example acme/meta/act_1/brand";
            ApiError::new(StatusCode::NOT_FOUND, "not_an_entity", bad.to_string(), hint)
        })?;
        // What lies outside the scope is answered like what does not exist.
        let row = Some(&key).filter(|key| scope.sees(key)).and_then(|key| snapshot.row(key));
        let row = row.ok_or_else(|| unknown(snapshot, &scope, &key))?;
        to_json(&One { maturity: MATURITY, row: RowView::new(snapshot, row, true) })
    })
}

#[derive(Serialize)]
struct One<'a> {
    maturity: &'static str,
    #[serde(flatten)]
    row: RowView<'a>,
}

/// Says how far the path is right.
fn unknown(snapshot: &Snapshot, scope: &Scope, key: &EntityKey) -> ApiError {
    let mut known = key.parent().filter(|key| scope.sees(key));
    while let Some(parent) = known.as_ref().filter(|key| snapshot.row(key).is_none()) {
        known = parent.parent();
    }
    let hint = match known {
        Some(known) => format!("`{known}` exists: see /v1/features?under={known}"),
        None => "nothing of this path has had an event yet: see /v1/features?level=tenant".into(),
    };
    let message = format!("no features of `{key}`");
    ApiError::new(StatusCode::NOT_FOUND, "unknown_entity", message, hint)
}
