//! An ad platform that writes down every call. It speaks the contract of the market's platform
//! (absolute values, compare-and-set, read-back).

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

type Shared = Arc<Mutex<Book>>;

/// The running platform.
pub(super) struct Platform {
    book: Shared,
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
        let book = Shared::default();
        let router = axum::Router::new()
            .route("/v1/actions", post(action))
            .route("/v1/entities/{*key}", get(entity))
            .with_state(book.clone());
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(Platform { book, url, _runtime: runtime })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn calls(&self) -> Calls {
        lock(&self.book).changed.clone()
    }
}

fn lock(book: &Shared) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn action(State(book): State<Shared>, Json(request): Json<Map<String, Value>>) -> Response {
    let text =
        |name: &str| request.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (id, owner, kind) = (text("action_id"), text("owner"), text("setting"));
    let mut setting = request.clone();
    for name in ["action_id", "owner", "before"] {
        setting.remove(name);
    }
    let setting = Value::Object(setting);
    let mut book = lock(&book);
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

async fn entity(State(book): State<Shared>, Path(key): Path<String>) -> Json<Value> {
    let book = lock(&book);
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
