//! `/v1/stream`: what changed, as server-sent events, at most four times a second.
//!
//! When nothing is published an event comes every two seconds, so a reader can tell an engine that
//! stands still from a connection that is gone. Changes are gathered between two events, so a client that reads slowly gets fewer and larger
//! ones. Each client has a short queue of its own; one that does not even empty that is told so in
//! a comment and dropped. The browser reconnects and starts from the present.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use omnify_operators::model::Tick;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::counters::{Conservation, Counters, Watermarks};
use super::error::ApiError;
use super::features::as_of;
use super::router::{App, Shared};
use super::snapshot::{Snapshot, is_under};
use super::status::Readiness;
use super::tokens::Scope;
use super::view::{ActionView, DecisionView};

/// Least time between two events.
const EVERY: Duration = Duration::from_millis(250);
/// Without a publication an event is sent after this time all the same: it tells how the engine lags.
const BEAT: Duration = Duration::from_secs(2);
/// Events that wait for a client: two seconds of them. The last place is for the farewell.
const QUEUE_EVENTS: usize = 9;
/// Decisions of one event; a client that wants all asks `/v1/decisions`.
const DECISIONS_MAX: usize = 50;
/// Actions of one event.
const ACTIONS_MAX: usize = 100;

/// One event's data.
#[derive(Serialize)]
struct Delta<'a> {
    as_of_tick: Option<Tick>,
    readiness: Readiness,
    dry_run: bool,
    watermarks: Watermarks,
    /// For operators only.
    conservation: Option<Conservation>,
    /// For operators only.
    counters: Option<&'a Counters>,
    /// Decisions since the event before (no-ops left out), newest first.
    decisions: Vec<DecisionView<'a>>,
    /// Actions that changed since the event before, newest first.
    actions: Vec<ActionView<'a>>,
    /// True when there were more than this event holds.
    more: bool,
}

/// How far a client has been told.
#[derive(Clone, Copy, Default)]
struct Told {
    decision: u64,
    revision: u64,
}

pub(super) async fn stream(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
) -> Result<Response, ApiError> {
    let permit = app.streams.clone().try_acquire_owned().map_err(|_| {
        let message = "too many streams are open";
        let hint = "poll /v1/decisions and /v1/status instead, or try again later";
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "streams_full", message, hint);
        ApiError { retry_after_s: Some(10), ..error }
    })?;
    let (queue, events) = mpsc::channel(QUEUE_EVENTS);
    tokio::spawn(feed(app, scope, queue, permit));
    let events = Sse::new(ReceiverStream::new(events)).keep_alive(KeepAlive::default());
    Ok(([("x-accel-buffering", "no")], events).into_response())
}

async fn feed(
    app: Arc<App>,
    scope: Scope,
    queue: mpsc::Sender<Result<Event, Infallible>>,
    _permit: OwnedSemaphorePermit,
) {
    let mut snapshots = app.state.snapshots.clone();
    let mut closing = app.closing.subscribe();
    // The first event starts from the newest decisions; what is older is for the other routes.
    let mut told = Told::default();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let event = delta(&app, &scope, &snapshot, &mut told);
        if queue.capacity() <= 1 {
            let farewell = Event::default().comment("dropped: the client reads too slowly");
            // The place was kept free for this; when the client is gone nobody needs to know.
            let _ = queue.try_send(Ok(farewell));
            return;
        }
        if queue.try_send(Ok(event)).is_err() {
            return;
        }
        tokio::time::sleep(EVERY).await;
        tokio::select! {
            changed = tokio::time::timeout(BEAT, snapshots.changed()) => {
                if matches!(changed, Ok(Err(_))) {
                    return;
                }
            }
            () = queue.closed() => return,
            _ = closing.wait_for(|closing| *closing) => return,
        }
    }
}

fn delta(app: &App, scope: &Scope, snapshot: &Snapshot, told: &mut Told) -> Event {
    let operator = *scope == Scope::All;
    let seen = |key: &str| scope.tenant().is_none_or(|tenant| is_under(key, tenant));
    let mut new_decisions = snapshot
        .decisions
        .iter(None, told.decision, u64::MAX)
        .filter(|kept| kept.decision.verdict != omnify_decision::action::Verdict::Hold)
        .filter(|kept| seen(kept.decision.entity.key.as_str()));
    let decisions: Vec<_> = new_decisions
        .by_ref()
        .take(DECISIONS_MAX)
        .map(|kept| DecisionView::new(snapshot, kept))
        .collect();
    let mut new_actions = snapshot
        .actions
        .iter()
        .filter(|kept| kept.revision > told.revision)
        .filter(|kept| seen(kept.action.owner.as_str()));
    let actions: Vec<_> = new_actions
        .by_ref()
        .take(ACTIONS_MAX)
        .map(|kept| ActionView::new(snapshot, kept))
        .collect();
    let delta = Delta {
        as_of_tick: as_of(snapshot),
        readiness: Readiness::of(app, snapshot, operator),
        dry_run: snapshot.setup.dry_run,
        watermarks: snapshot.counters.watermarks,
        conservation: operator.then(|| snapshot.counters.conservation()),
        counters: operator.then_some(&snapshot.counters),
        decisions,
        actions,
        more: new_decisions.next().is_some() || new_actions.next().is_some(),
    };
    *told = Told { decision: snapshot.decisions.newest(), revision: snapshot.actions.revision() };
    let event = Event::default().event("tick").id(snapshot.sequence.to_string());
    event.json_data(&delta).unwrap_or_else(|error| Event::default().comment(error.to_string()))
}
