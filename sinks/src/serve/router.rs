//! The routes, and what every request passes on its way to one: headers, host, time limit, token.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use omnify_operators::model::Tick;
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use tower_http::compression::CompressionLayer;
use tower_http::decompression::RequestDecompressionLayer;

use super::cache::Answer;
use super::error::ApiError;
use super::lent::{self, Lent};
use super::ports::{Bidder, Ingest, Orders};
use super::snapshot::Snapshot;
use super::tokens::{Scope, TokenTable};
use super::{assets, features, feeds, orders, ports_http, status, stream};

/// The API's description, OpenAPI 3.1; a test keeps it and the routes equal.
pub const OPENAPI: &str = include_str!("openapi.json");

/// Bounds of the server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest body of a push, after decompression.
    pub body_bytes_max: usize,
    /// Time a request may take (streams are not bound by it once they run).
    pub request_timeout: Duration,
    /// `/readyz` fails while the newest published tick is further behind than this.
    pub lag_ms_max: u64,
    /// Streams open at once; further ones are answered 503.
    pub streams_max: usize,
    /// Connections open at once; further ones wait to be accepted.
    pub connections_max: usize,
    /// Time that open requests get to end at shutdown.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            body_bytes_max: 16 << 20,
            request_timeout: Duration::from_secs(15),
            lag_ms_max: 5_000,
            streams_max: 256,
            connections_max: 4_096,
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

/// Which program answers.
#[derive(Clone, Debug, Serialize)]
pub struct BuildInfo {
    /// Version of the program.
    pub version: &'static str,
    /// Commit it was built from, if known.
    pub commit: Option<&'static str>,
    /// Differs from start to start, so that an ETag of an earlier run never matches.
    pub boot: u64,
}

impl Default for BuildInfo {
    fn default() -> BuildInfo {
        BuildInfo { version: env!("CARGO_PKG_VERSION"), commit: None, boot: 0 }
    }
}

/// Says the tick that the engine should have reached by now.
pub type Present = dyn Fn() -> Tick + Send + Sync;

/// Everything the routes need. Start from [`AppState::new`] and set what there is.
#[derive(Clone)]
pub struct AppState {
    /// The board's readers' end.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Renders `/metrics`; 503 without it.
    pub metrics: Option<PrometheusHandle>,
    /// Takes in pushed events; 503 without it.
    pub ingest: Option<Arc<dyn Ingest>>,
    /// Answers bids; 503 without it.
    pub bidder: Option<Arc<dyn Bidder>>,
    /// Takes what people tell the engine; 503 without it.
    pub orders: Option<Arc<dyn Orders>>,
    /// Who may see what. Open by default: then bind to localhost only.
    pub tokens: TokenTable,
    /// The tick that should have been reached by now, for `/readyz`; lag is unknown without it.
    pub present: Option<Arc<Present>>,
    /// Host names that requests may be for; `None` for any. On localhost without tokens set it to
    /// [`AppState::LOOPBACK`], so that no web page can read the engine through a rebound name.
    pub hosts: Option<Vec<String>>,
    /// Set where the engine is in another process: then this one tells only how it is.
    pub lent: Option<Lent>,
    /// Bounds.
    pub limits: Limits,
    /// Which program answers.
    pub build: BuildInfo,
}

impl AppState {
    /// The names of this machine to itself.
    pub const LOOPBACK: [&'static str; 3] = ["localhost", "127.0.0.1", "[::1]"];

    /// A read-only state over a board.
    pub fn new(snapshots: watch::Receiver<Arc<Snapshot>>) -> AppState {
        AppState {
            snapshots,
            metrics: None,
            ingest: None,
            bidder: None,
            orders: None,
            tokens: TokenTable::open(),
            present: None,
            hosts: None,
            lent: None,
            limits: Limits::default(),
            build: BuildInfo::default(),
        }
    }
}

/// The state with what belongs to one server.
pub(super) struct App {
    pub(super) state: AppState,
    pub(super) streams: Arc<Semaphore>,
    /// Turns true when the server shuts down: streams end.
    pub(super) closing: Arc<watch::Sender<bool>>,
}

impl App {
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.state.snapshots.borrow().clone()
    }
}

pub(super) type Shared = State<Arc<App>>;

/// The whole API and page over `state`.
pub fn router(state: AppState) -> Router {
    // Nobody closes this one: streams end with the board.
    build(state, Arc::new(watch::Sender::new(false)))
}

pub(super) fn build(state: AppState, closing: Arc<watch::Sender<bool>>) -> Router {
    let streams = Arc::new(Semaphore::new(state.limits.streams_max));
    let app = Arc::new(App { state, streams, closing });
    let guarded = Router::new()
        .route("/metrics", get(status::prometheus))
        .route("/v1/features", get(features::list))
        .route("/v1/features/{*entity}", get(features::one))
        .route("/v1/decisions", get(feeds::decisions))
        .route("/v1/actions", get(feeds::actions))
        .route("/v1/proposals", get(orders::proposals))
        .route("/v1/proposals/{id}/approve", post(orders::approve))
        .route("/v1/proposals/{id}/reject", post(orders::reject))
        .route("/v1/kill", post(orders::kill))
        .route("/v1/resume", post(orders::resume))
        .route("/v1/stream", get(stream::stream))
        .route("/v1/status", get(status::status))
        .route("/v1/codes", get(status::codes))
        .route("/v1/events", post(ports_http::events))
        .route("/v1/bids", post(ports_http::bids))
        .layer(from_fn_with_state(app.clone(), authorize));
    Router::new()
        .route("/", get(assets::page))
        .route("/assets/{file}", get(assets::asset))
        .route("/openapi.json", get(assets::openapi))
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz))
        .merge(guarded)
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), lent::redirect))
        .layer(from_fn_with_state(app.clone(), deadline))
        .layer(from_fn_with_state(app.clone(), known_host))
        .layer(RequestDecompressionLayer::new())
        .layer(CompressionLayer::new())
        .layer(from_fn(secure))
        .with_state(app)
}

async fn unknown_route(uri: Uri) -> ApiError {
    let message = format!("no route `{}`", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, "no_route", message, "/openapi.json lists the routes")
}

async fn wrong_method(request: Request) -> ApiError {
    let message = format!("`{}` does not answer {}", request.uri().path(), request.method());
    let hint = "/openapi.json lists the methods of each route";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message, hint)
}

/// Headers of every answer. The page needs nothing from elsewhere and no inline script.
async fn secure(request: Request, next: Next) -> Response {
    const HEADERS: [(HeaderName, &str); 5] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Refuses requests for a name that is not ours (DNS rebinding).
async fn known_host(State(app): Shared, request: Request, next: Next) -> Response {
    if let Some(hosts) = &app.state.hosts {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| request.uri().host()).unwrap_or_default();
        // A port follows the last colon, unless that colon is inside an IPv6 address.
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        if !hosts.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            let message = format!("this server does not answer for host `{name}`");
            let hint = "use localhost, or add the name to the allowed hosts of the server";
            let status = StatusCode::MISDIRECTED_REQUEST;
            return ApiError::new(status, "unknown_host", message, hint).into_response();
        }
    }
    next.run(request).await
}

/// A push may be a stream of any length; its pieces have the limit (see `ports_http`).
async fn deadline(State(app): Shared, request: Request, next: Next) -> Response {
    if request.uri().path() == "/v1/events" {
        return next.run(request).await;
    }
    let limit = app.state.limits.request_timeout;
    tokio::time::timeout(limit, next.run(request)).await.unwrap_or_else(|_| {
        let message = format!("the request took longer than {} s", limit.as_secs_f64());
        let hint = "send smaller bodies, or try again when the engine is less busy";
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message, hint).into_response()
    })
}

/// Finds the caller's scope and hands it on as a request extension.
async fn authorize(State(app): Shared, mut request: Request, next: Next) -> Response {
    let tokens = &app.state.tokens;
    let scope = if tokens.is_open() {
        Some(Scope::All)
    } else {
        bearer(request.headers()).and_then(|token| tokens.scope(token)).cloned()
    };
    let Some(scope) = scope else {
        let hint = "send `Authorization: Bearer TOKEN` with a token of this server";
        let message = "a valid token is needed";
        return ApiError::new(StatusCode::UNAUTHORIZED, "no_token", message, hint).into_response();
    };
    request.extensions_mut().insert(scope);
    next.run(request).await
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Answers a question about a snapshot: 304 when the caller has it already, from the snapshot's
/// memory when it was asked before, else by `make`.
pub(super) fn answer(
    app: &App,
    scope: &Scope,
    uri: &Uri,
    headers: &HeaderMap,
    make: impl FnOnce(&Snapshot) -> Result<Vec<u8>, ApiError>,
) -> Result<Response, ApiError> {
    let snapshot = app.snapshot();
    let etag = format!("W/\"{:x}-{:x}\"", app.state.build.boot, snapshot.sequence);
    // The scope is part of the question: tenants never share a remembered answer. It is written
    // with escapes, so that no name can imitate another question.
    let question = format!("{scope:?} {uri}");
    let known = match snapshot.cache.get(&question) {
        Some(known) => known,
        None => {
            let made = Answer::new(make(&snapshot)?);
            snapshot.cache.put(question, &made);
            made
        }
    };
    let mut out = HeaderMap::with_capacity(8);
    out.insert(header::ETAG, HeaderValue::from_str(&etag).map_err(internal)?);
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    out.insert(header::VARY, HeaderValue::from_static("authorization, accept-encoding"));
    let has = |name, wanted: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim() == wanted)
    };
    if has(header::IF_NONE_MATCH, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, out).into_response());
    }
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if has(header::ACCEPT_ENCODING, "gzip")
        && let Some(gzip) = known.gzip()
    {
        out.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        return Ok((out, gzip).into_response());
    }
    Ok((out, known.json()).into_response())
}

/// Serialises an answer.
pub(super) fn to_json(value: &impl Serialize) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(value).map_err(internal)
}

pub(super) fn internal(error: impl std::fmt::Display) -> ApiError {
    let hint = "this is a bug in the server; please report it";
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string(), hint)
}
