//! `POST /v1/events` and `POST /v1/bids`.

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use omnify_decision::bid::BidContext;

use super::error::ApiError;
use super::ports::{BidError, Push, PushError, PushFormat};
use super::router::{App, Shared};
use super::status::no_store;
use super::tokens::Scope;

/// A bid request is small.
const BID_BYTES_MAX: usize = 64 << 10;

pub(super) async fn events(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let format = format_of(&headers)?;
    let ingest = app.state.ingest.as_ref().ok_or_else(|| {
        let hint = "add a push source to the configuration";
        unavailable("no_push_source", "this engine takes in no pushed events", hint)
    })?;
    let body = read(body, app.state.limits.body_bytes_max).await?;
    match ingest.push(Push { body, format, scope }).await {
        Ok(accepted) => Ok(no_store((StatusCode::ACCEPTED, Json(accepted)).into_response())),
        Err(error) => Err(push_error(&error)),
    }
}

fn push_error(error: &PushError) -> ApiError {
    let message = error.to_string();
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

async fn read(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    to_bytes(body, bytes_max).await.map_err(|error| {
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            if error.is::<http_body_util::LengthLimitError>() {
                let message = format!("the body is larger than {bytes_max} bytes");
                let hint = "send it in several requests";
                return ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message, hint);
            }
            cause = error.source();
        }
        let message = format!("the body broke off or cannot be decompressed: {error}");
        let hint = "nothing of this body was taken in; send it again";
        ApiError::new(StatusCode::BAD_REQUEST, "bad_body", message, hint)
    })
}

pub(super) async fn bids(
    State(app): Shared,
    Extension(scope): Extension<Scope>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    if format_of(&headers)? != PushFormat::Json {
        let hint = "send one JSON object with content type application/json";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(ApiError::new(status, "content_type", "a bid request is JSON", hint));
    }
    let body = read(body, BID_BYTES_MAX).await?;
    let context: BidContext = serde_json::from_slice(&body).map_err(|bad| {
        let hint = r#"send {"key": "tenant/platform/account/campaign"}; see /openapi.json"#;
        ApiError::new(StatusCode::BAD_REQUEST, "malformed", bad.to_string(), hint)
    })?;
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

fn unavailable(code: &'static str, message: &str, hint: &str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message, hint)
}
