//! `POST /v1/events` and `POST /v1/bids`.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use omnify_decision::bid::BidContext;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::ports::{Accepted, BidError, Push, PushError, PushFormat};
use super::router::{App, Shared};
use super::status::no_store;
use super::tokens::Scope;

/// A bid request is small.
const BID_BYTES_MAX: usize = 64 << 10;

/// Options of a push, as query parameters.
#[derive(Deserialize)]
pub(super) struct PushOptions {
    #[serde(default)]
    strict: bool,
}

pub(super) async fn events(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
    Query(options): Query<PushOptions>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let format = format_of(&headers)?;
    let key = key_of(&headers)?;
    let ingest = app.state.ingest.as_ref().ok_or_else(|| {
        let hint = "add a push source to the configuration";
        unavailable("no_push_source", "this engine takes in no pushed events", hint)
    })?;
    let limits = &app.state.limits;
    let mut pieces = Pieces::new(body, format, limits.body_bytes_max);
    let mut taken = Accepted::default();
    let (mut number, mut more) = (0_u64, true);
    while more {
        // A stream may be of any length: the time limit is that of each piece.
        let piece = tokio::time::timeout(limits.request_timeout, pieces.next());
        let (body, last) = piece.await.map_err(|_| late(limits.request_timeout))??;
        more = !last;
        let key = key.as_ref().map(|key| match number {
            0 => key.clone(),
            number => format!("{key}#{number}"),
        });
        let push = Push { body, format, scope: scope.clone(), key, strict: options.strict };
        let answer = tokio::time::timeout(limits.request_timeout, ingest.push(push));
        let answer = answer.await.map_err(|_| late(limits.request_timeout))?;
        let answer = answer.map_err(|error| push_error(&error, &taken, number))?;
        taken.accepted += answer.accepted;
        taken.dead_letters += answer.dead_letters;
        taken.ignored += answer.ignored;
        number += 1;
    }
    Ok(no_store((StatusCode::ACCEPTED, Json(taken)).into_response()))
}

/// The header that names a body for its sender.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Longest name.
const KEY_BYTES_MAX: usize = 200;

fn key_of(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=KEY_BYTES_MAX).contains(&key.len()) && !key.contains('#') => {
            Ok(Some(key.to_owned()))
        }
        _ => {
            let message = format!(
                "{IDEMPOTENCY_KEY} must be 1 to {KEY_BYTES_MAX} visible ASCII characters without `#`"
            );
            let hint = "use a UUID, new for each body and the same for each time it is sent";
            Err(ApiError::new(StatusCode::BAD_REQUEST, "idempotency_key", message, hint))
        }
    }
}

fn late(limit: Duration) -> ApiError {
    let message = format!("a piece of the body took longer than {} s", limit.as_secs_f64());
    let hint = "send it again, with the same Idempotency-Key if it had one";
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message, hint)
}

/// A body in pieces: one, or as many as an NDJSON stream needs. The cuts depend on the bytes alone,
/// so a body sent again has the same pieces.
struct Pieces {
    frames: BodyDataStream,
    format: PushFormat,
    bytes_max: usize,
    buffer: BytesMut,
}

impl Pieces {
    fn new(body: Body, format: PushFormat, bytes_max: usize) -> Pieces {
        Pieces { frames: body.into_data_stream(), format, bytes_max, buffer: BytesMut::new() }
    }

    /// The next piece, and whether it is the last.
    async fn next(&mut self) -> Result<(Bytes, bool), ApiError> {
        loop {
            if self.buffer.len() > self.bytes_max {
                return self.cut().map(|piece| (piece, false));
            }
            match self.frames.next().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(&frame),
                Some(Err(error)) => return Err(broken(&error)),
                None => return Ok((self.buffer.split().freeze(), true)),
            }
        }
    }

    /// Cuts after the last whole line within the limit.
    fn cut(&mut self) -> Result<Bytes, ApiError> {
        let lines = match self.format {
            PushFormat::Ndjson => self.buffer[..self.bytes_max].iter().rposition(|b| *b == b'\n'),
            PushFormat::Json => None,
        };
        let end = lines.ok_or_else(|| {
            let what = match self.format {
                PushFormat::Ndjson => "a line of the body",
                PushFormat::Json => "the body",
            };
            let message = format!("{what} is larger than {} bytes", self.bytes_max);
            let hint = "send it in several requests, or as application/x-ndjson";
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message, hint)
        })?;
        Ok(self.buffer.split_to(end + 1).freeze())
    }
}

fn broken(error: &axum::Error) -> ApiError {
    let message = format!("the body broke off or cannot be decompressed: {error}");
    let hint = "nothing of this piece was taken in; send it again";
    ApiError::new(StatusCode::BAD_REQUEST, "bad_body", message, hint)
}

/// `before` is what earlier pieces of a stream brought; `piece` counts them.
pub(super) fn push_error(error: &PushError, before: &Accepted, piece: u64) -> ApiError {
    let message = match piece {
        0 => error.to_string(),
        _ => {
            let rows = before.accepted + before.dead_letters + before.ignored;
            format!("{error} (of this stream, the first {rows} rows were taken in before)")
        }
    };
    match error {
        PushError::Malformed { .. } => {
            let hint = "nothing of this body was taken in; mend the row and send it again";
            ApiError::new(StatusCode::BAD_REQUEST, "malformed", message, hint)
        }
        PushError::Busy { retry_after_s } => {
            let hint = "nothing of this body was taken in; send it again after Retry-After";
            let status = StatusCode::TOO_MANY_REQUESTS;
            let error = ApiError::new(status, "busy", message, hint);
            ApiError { retry_after_s: Some(*retry_after_s), ..error }
        }
        PushError::Closed(_) => {
            unavailable("closed", &message, "nothing of this body was taken in; send it later")
        }
        PushError::Unknown(_) => {
            let hint = "send it again with the same Idempotency-Key: it is taken once";
            unavailable("unknown", &message, hint)
        }
    }
}

/// A content type that a web page cannot send to another origin without asking first.
fn format_of(headers: &HeaderMap) -> Result<PushFormat, ApiError> {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let mime = text.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    match mime.to_ascii_lowercase().as_str() {
        "application/json" => Ok(PushFormat::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => {
            Ok(PushFormat::Ndjson)
        }
        _ => {
            let message = format!("content type `{mime}` is not read here");
            let hint = "send application/x-ndjson (one object per line) or application/json";
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            Err(ApiError::new(status, "content_type", message, hint))
        }
    }
}

/// One JSON object of a content type that a web page cannot send to another origin unasked; `hint`
/// says how it is written.
pub(super) async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    hint: &str,
) -> Result<T, ApiError> {
    if format_of(headers)? != PushFormat::Json {
        let hint = "send one JSON object with content type application/json";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(ApiError::new(status, "content_type", "this request is JSON", hint));
    }
    let (body, _) = Pieces::new(body, PushFormat::Json, bytes_max).next().await?;
    serde_json::from_slice(&body)
        .map_err(|bad| ApiError::new(StatusCode::BAD_REQUEST, "malformed", bad.to_string(), hint))
}

pub(super) async fn bids(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let hint = r#"send {"key": "tenant/platform/account/campaign"}; see /openapi.json"#;
    let context: BidContext = read_json(&headers, body, BID_BYTES_MAX, hint).await?;
    if !scope.sees(&context.key) {
        return Err(ApiError::wrong_tenant(context.key.tenant()));
    }
    bid(&app, &context)
}

fn bid(app: &App, context: &BidContext) -> Result<Response, ApiError> {
    let bidder = app.state.bidder.as_ref().ok_or_else(|| {
        let hint = "configure a goal; see the decision section of the configuration";
        unavailable("no_bidder", "this engine answers no bids", hint)
    })?;
    let bid = bidder.bid(context).map_err(|error| match error {
        BidError::Invalid(text) => {
            let hint = "see /openapi.json for the request";
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_context", text, hint)
        }
        BidError::Unknown(text) => {
            let hint = "only entities with features and a goal have bids";
            ApiError::new(StatusCode::NOT_FOUND, "unknown_entity", text, hint)
        }
        BidError::Unavailable(text) => {
            unavailable("not_ready", &text, "wait for /readyz to answer 200")
        }
    })?;
    Ok(no_store(Json(bid).into_response()))
}

pub(super) fn unavailable(code: &'static str, message: &str, hint: &str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message, hint)
}
