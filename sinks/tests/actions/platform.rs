//! An ad platform over HTTP that fails on demand, with the API of the market simulator. It counts
//! what the engine must not do: two effects of one action id, two calls at once for one owner.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use omnify_decision::action::{Setting, Status};
use omnify_decision::control::Actual;
use omnify_operators::model::EntityKey;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// What the next call does instead of answering properly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// 500, nothing happened.
    ErrorBefore,
    /// 500, it happened.
    ErrorAfter,
    /// Half a reply, it happened.
    BrokenReply,
    /// No reply, nothing happened.
    SilenceBefore,
    /// No reply, it happened.
    SilenceAfter,
    /// 429 with this `Retry-After`.
    Throttle(u64),
    /// 429 of class `change_quota`.
    Quota,
    /// 422.
    Invalid,
    /// 409.
    Conflict,
}

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) settings: BTreeMap<EntityKey, Actual>,
    /// Faults of the coming actions, `None` for a proper answer.
    pub(crate) script: VecDeque<Option<Fault>>,
    /// Read-backs that fail before one works.
    pub(crate) deaf_reads: u32,
    /// Action ids that changed something, with how often.
    pub(crate) effects: BTreeMap<String, u32>,
    /// Action ids that were carried out, changing something or not, with how often.
    pub(crate) carried_out: BTreeMap<String, u32>,
    /// `POST owner` and `GET owner`, in order of arrival.
    pub(crate) log: Vec<String>,
    /// Two calls for one owner were under way at once. Seen where they are made: that a caller has given
    /// up is noticed at the other end only after a while.
    overlapped: bool,
    in_call: BTreeSet<EntityKey>,
}

/// A running platform.
#[derive(Clone)]
pub(crate) struct Platform {
    inner: Arc<Mutex<Inner>>,
    /// Actions wait while it is closed.
    gate: watch::Sender<bool>,
    pub(crate) base: String,
}

impl Platform {
    pub(crate) fn start(runtime: &Handle) -> Platform {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let platform = Platform {
            inner: Arc::default(),
            gate: watch::Sender::new(true),
            base: format!("http://{}", listener.local_addr().unwrap()),
        };
        let router = Router::new()
            .route("/v1/actions", post(act))
            .route("/v1/entities/{*key}", get(entity))
            .with_state(platform.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        platform
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub(crate) fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().script.extend(faults.into_iter().map(Some));
    }

    pub(crate) fn bid(&self, owner: &EntityKey) -> Option<i64> {
        self.lock().settings.get(owner)?.bid_micros
    }

    /// Lets actions through, or holds them back on arrival.
    pub(crate) fn open_gate(&self, open: bool) {
        self.gate.send_replace(open);
    }

    /// Calls of `verb` so far.
    pub(crate) fn count(&self, verb: &str) -> usize {
        self.lock().log.iter().filter(|line| line.starts_with(verb)).count()
    }

    /// A call for `owner` begins; it lasts until what is returned is dropped.
    pub(crate) fn enter(&self, owner: &EntityKey) -> Leave {
        let mut inner = self.lock();
        inner.overlapped |= !inner.in_call.insert(owner.clone());
        Leave(self.clone(), owner.clone())
    }

    /// Waits until the calls of a process that is gone are too.
    pub(crate) fn until_left(&self) {
        let deadline = Instant::now() + GONE_WITHIN;
        while !self.lock().in_call.is_empty() {
            assert!(Instant::now() < deadline, "calls of a process that is gone are still open");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Every id that changed something, changed it once.
    pub(crate) fn check(&self) {
        let inner = self.lock();
        assert!(!inner.overlapped, "two calls at once for one owner");
        let twice: Vec<_> = inner.effects.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "executed more than once: {twice:?}");
    }
}

impl Inner {
    fn current(&self, owner: &EntityKey, desired: &Setting) -> Option<Setting> {
        let actual = self.settings.get(owner)?;
        match desired {
            Setting::Bid { .. } => actual.bid_micros.map(|bid_micros| Setting::Bid { bid_micros }),
            Setting::Budget { .. } => {
                actual.budget_micros.map(|budget_micros| Setting::Budget { budget_micros })
            }
            Setting::Status { .. } => actual.status.map(|status| Setting::Status { status }),
            _ => None,
        }
    }

    fn set(&mut self, entity: &EntityKey, setting: &Setting) -> bool {
        let actual = self.settings.entry(entity.clone()).or_default();
        let before = actual.clone();
        match setting {
            Setting::Bid { bid_micros } => actual.bid_micros = Some(*bid_micros),
            Setting::Budget { budget_micros } => actual.budget_micros = Some(*budget_micros),
            Setting::Status { status } => actual.status = Some(*status),
            Setting::Rotate { from, to } => {
                let paused = self.set(from, &Setting::Status { status: Status::Paused });
                let enabled = self.set(to, &Setting::Status { status: Status::Enabled });
                return paused || enabled;
            }
            Setting::Alert { .. } => {}
        }
        *actual != before
    }

    fn commit(&mut self, id: &str, owner: &EntityKey, desired: &Setting) -> bool {
        *self.carried_out.entry(id.to_owned()).or_default() += 1;
        let changed = self.set(owner, desired);
        if changed {
            *self.effects.entry(id.to_owned()).or_default() += 1;
        }
        changed
    }
}

/// What a slow machine may take to end the tasks of a runtime.
const GONE_WITHIN: Duration = Duration::from_secs(60);
/// Longer than any test waits for a reply.
const SILENCE: Duration = Duration::from_secs(3_600);

async fn act(State(platform): State<Platform>, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let id = request["action_id"].as_str().unwrap().to_owned();
    let owner: EntityKey = serde_json::from_value(request["owner"].clone()).unwrap();
    let desired: Setting = serde_json::from_value(request.clone()).unwrap();
    {
        let mut inner = platform.lock();
        inner.log.push(format!("POST {owner}"));
    }
    platform.gate.subscribe().wait_for(|open| *open).await.unwrap();
    let fault = platform.lock().script.pop_front().flatten();
    let answer = {
        let mut inner = platform.lock();
        match fault {
            None | Some(Fault::ErrorAfter | Fault::BrokenReply | Fault::SilenceAfter) => {
                let current = inner.current(&owner, &desired);
                let before: Option<Setting> = request
                    .get("before")
                    .map(|before| serde_json::from_value(before.clone()).unwrap());
                if before.is_some() && current != before && current.as_ref() != Some(&desired) {
                    refusal(StatusCode::CONFLICT, "conflict", "someone else changed it")
                } else {
                    let applied = inner.commit(&id, &owner, &desired);
                    Json(json!({"action_id": id, "applied": applied, "effective": desired}))
                        .into_response()
                }
            }
            Some(Fault::Invalid) => {
                refusal(StatusCode::UNPROCESSABLE_ENTITY, "validation", "too high")
            }
            Some(Fault::Conflict) => refusal(StatusCode::CONFLICT, "conflict", "changed meanwhile"),
            Some(Fault::Quota) => {
                refusal(StatusCode::TOO_MANY_REQUESTS, "change_quota", "four an hour")
            }
            Some(Fault::Throttle(seconds)) => {
                let refusal = refusal(StatusCode::TOO_MANY_REQUESTS, "throttle", "slower");
                ([("retry-after", seconds.to_string())], refusal).into_response()
            }
            Some(Fault::ErrorBefore | Fault::SilenceBefore) => Json(json!({})).into_response(),
        }
    };
    match fault {
        Some(Fault::ErrorBefore | Fault::ErrorAfter) => {
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "transient", "try again")
        }
        Some(Fault::BrokenReply) => (StatusCode::OK, "{\"applied\":tr").into_response(),
        Some(Fault::SilenceBefore | Fault::SilenceAfter) => {
            tokio::time::sleep(SILENCE).await;
            answer
        }
        _ => answer,
    }
}

/// The end of a call, also of one that is given up.
pub(crate) struct Leave(Platform, EntityKey);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.lock().in_call.remove(&self.1);
    }
}

async fn entity(State(platform): State<Platform>, Path(key): Path<String>) -> Response {
    let key: EntityKey = key.parse().unwrap();
    let mut inner = platform.lock();
    inner.log.push(format!("GET {key}"));
    if inner.deaf_reads > 0 {
        inner.deaf_reads -= 1;
        return refusal(StatusCode::INTERNAL_SERVER_ERROR, "transient", "try again");
    }
    match inner.settings.get(&key) {
        None => refusal(StatusCode::NOT_FOUND, "unknown_entity", "no such entity"),
        Some(actual) => Json(json!({
            "entity": key,
            "bid_micros": actual.bid_micros,
            "daily_budget_micros": actual.budget_micros,
            "status": actual.status,
        }))
        .into_response(),
    }
}

fn refusal(status: StatusCode, class: &str, message: &str) -> Response {
    (status, Json(json!({"error": {"class": class, "message": message}}))).into_response()
}
