//! What a process answers that lends its workers to an engine in another one: how it is, and for
//! everything else where the engine is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::error::ApiError;
use super::router::Shared;
use super::status::no_store;

/// See the module; clones are the same process.
#[derive(Clone, Debug, Default)]
pub struct Lent {
    leader: Arc<OnceLock<String>>,
    ready: Arc<AtomicBool>,
}

impl Lent {
    /// The engine answers at `leader`, a host and port, or a description where they are not known.
    pub fn is_lent_to(&self, leader: &str) {
        // The first word counts: a process has one leader in its life.
        let _ = self.leader.set(leader.to_owned());
    }

    /// Its workers are at work.
    pub fn is_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    fn readiness(&self) -> Response {
        let ready = self.ready.load(Ordering::Acquire);
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let leader = self.leader.get();
        no_store((status, Json(json!({ "ready": ready, "lent_to": leader }))).into_response())
    }

    /// A body is not taken here: its key and its rows are the engine's to keep.
    fn refusal(&self, path: &str) -> ApiError {
        let leader = self.leader.get().map_or("process 0", String::as_str);
        let message = format!(
            "this process lends its workers to the engine at {leader} and does not answer `{path}`"
        );
        let hint = format!("send it to {leader}");
        ApiError::new(StatusCode::MISDIRECTED_REQUEST, "not_the_leader", message, hint)
    }
}

/// Answers for a process that is lent.
pub(super) async fn redirect(State(app): Shared, request: Request, next: Next) -> Response {
    let Some(lent) = &app.state.lent else { return next.run(request).await };
    match request.uri().path() {
        "/healthz" | "/metrics" => next.run(request).await,
        "/readyz" => lent.readiness(),
        path => lent.refusal(path).into_response(),
    }
}
