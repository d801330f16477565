//! Errors as callers see them: `{"error": {"code", "message", "hint"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// An error answer: what, where, and what to do.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) hint: String,
    pub(super) retry_after_s: Option<u32>,
}

impl ApiError {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> ApiError {
        ApiError { status, code, message: message.into(), hint: hint.into(), retry_after_s: None }
    }

    pub(super) fn bad_query(message: impl Into<String>) -> ApiError {
        let hint = "see /openapi.json for the parameters of this route";
        ApiError::new(StatusCode::BAD_REQUEST, "bad_query", message, hint)
    }

    pub(super) fn wrong_tenant(tenant: &str) -> ApiError {
        let message = format!("this token does not open tenant `{tenant}`");
        let hint = "leave `tenant` out, or use the token of that tenant";
        ApiError::new(StatusCode::FORBIDDEN, "wrong_tenant", message, hint)
    }

    pub(super) fn operator_only() -> ApiError {
        let message = "totals over all tenants are for operators";
        let hint = "use an operator token";
        ApiError::new(StatusCode::FORBIDDEN, "operator_only", message, hint)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = json!({ "code": self.code, "message": self.message, "hint": self.hint });
        let mut response = (self.status, Json(json!({ "error": error }))).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
