//! An ad platform that writes down every call. It speaks the contract of the market's platform
//! (absolute values, compare-and-set, read-back), and takes a moment over each action, so that kills
//! fall into calls: before the change, and between it and its answer.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

/// Calls that changed something, by action id.
pub(super) type Calls = HashMap<String, u64>;

#[derive(Default)]
struct Book {
    /// By owner and kind of setting.
    settings: HashMap<(String, String), Value>,
    changed: Calls,
}

/// Time before an action takes effect, and again before that is answered.
const MOMENT: Duration = Duration::from_millis(3);

#[derive(Clone, Default)]
struct Shared {
    book: Arc<Mutex<Book>>,
    open: Arc<AtomicU64>,
}

/// The running platform.
pub(super) struct Platform {
    shared: Shared,
    url: String,
    _runtime: Runtime,
}

impl Platform {
    pub(super) fn start() -> anyhow::Result<Platform> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared = Shared::default();
        let router = axum::Router::new()
            .route("/v1/actions", post(action))
            .route("/v1/entities/{*key}", get(entity))
            .with_state(shared.clone());
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(Platform { shared, url, _runtime: runtime })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn calls(&self) -> Calls {
        self.shared.lock().changed.clone()
    }

    /// Actions that came and are not answered. One whose caller died counts until its moment is over.
    pub(super) fn open_calls(&self) -> u64 {
        self.shared.open.load(Ordering::Acquire)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Carries an action out also when its caller is gone meanwhile, as a platform does.
async fn action(State(shared): State<Shared>, Json(request): Json<Map<String, Value>>) -> Response {
    shared.open.fetch_add(1, Ordering::AcqRel);
    let task = tokio::spawn(async move {
        tokio::time::sleep(MOMENT).await;
        let response = carry_out(&shared, &request);
        tokio::time::sleep(MOMENT).await;
        shared.open.fetch_sub(1, Ordering::AcqRel);
        response
    });
    task.await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

fn carry_out(shared: &Shared, request: &Map<String, Value>) -> Response {
    let text =
        |name: &str| request.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (id, owner, kind) = (text("action_id"), text("owner"), text("setting"));
    let mut setting = request.clone();
    for name in ["action_id", "owner", "before"] {
        setting.remove(name);
    }
    let setting = Value::Object(setting);
    let mut book = shared.lock();
    let known = book.settings.get(&(owner.clone(), kind.clone()));
    if known == Some(&setting) {
        return Json(json!({"applied": false, "effective": setting})).into_response();
    }
    if let (Some(known), Some(before)) = (known, request.get("before"))
        && known != before
    {
        let error = json!({"class": "conflict", "message": "it is not what was expected", "current": known});
        return (StatusCode::CONFLICT, Json(json!({ "error": error }))).into_response();
    }
    book.settings.insert((owner, kind), setting.clone());
    *book.changed.entry(id).or_default() += 1;
    Json(json!({"applied": true, "effective": setting})).into_response()
}

async fn entity(State(shared): State<Shared>, Path(key): Path<String>) -> Json<Value> {
    let book = shared.lock();
    let of = |kind: &str, field: &str| {
        book.settings
            .get(&(key.clone(), kind.to_owned()))
            .and_then(|value| value.get(field))
            .cloned()
    };
    Json(json!({
        "entity": key,
        "bid_micros": of("bid", "bid_micros"),
        "daily_budget_micros": of("budget", "budget_micros"),
        "status": of("status", "status"),
    }))
}
