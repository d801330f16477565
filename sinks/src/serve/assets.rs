//! The page and its files, compiled into the program: no build step, nothing from elsewhere.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::router::{OPENAPI, Shared};

/// Name, type and text of every file of the page.
pub(super) const FILES: [(&str, &str, &str); 10] = [
    ("app.js", JS, include_str!("page/app.js")),
    ("api.js", JS, include_str!("page/api.js")),
    ("charts.js", JS, include_str!("page/charts.js")),
    ("dom.js", JS, include_str!("page/dom.js")),
    ("entities.js", JS, include_str!("page/entities.js")),
    ("format.js", JS, include_str!("page/format.js")),
    ("panels.js", JS, include_str!("page/panels.js")),
    ("style.css", CSS, include_str!("page/style.css")),
    ("uplot.js", JS, include_str!("page/vendor/uPlot-1.6.32.iife.min.js")),
    ("uplot.css", CSS, include_str!("page/vendor/uPlot-1.6.32.min.css")),
];

const JS: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const PAGE: &str = include_str!("page/index.html");

pub(super) async fn page(headers: HeaderMap) -> Response {
    file("text/html; charset=utf-8", PAGE, &headers)
}

pub(super) async fn openapi(headers: HeaderMap) -> Response {
    file("application/json", OPENAPI, &headers)
}

pub(super) async fn asset(
    State(_): Shared,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let found = FILES.iter().find(|(known, _, _)| *known == name);
    found.map(|(_, mime, text)| file(mime, text, &headers)).ok_or_else(|| {
        let message = format!("the page has no file `{name}`");
        ApiError::new(StatusCode::NOT_FOUND, "no_asset", message, "open / for the page")
    })
}

/// Browsers ask again each time and get 304 until the program changes.
fn file(mime: &'static str, text: &'static str, asked: &HeaderMap) -> Response {
    let etag = format!("W/\"{:016x}\"", xxhash_rust::xxh3::xxh3_64(text.as_bytes()));
    let same =
        asked.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes());
    let mut headers = HeaderMap::new();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    if same {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(mime));
    (headers, text).into_response()
}
