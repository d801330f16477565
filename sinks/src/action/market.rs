//! The simulator's ad platform over HTTP (`omnify demo`, tests, benches), and the pattern for
//! every platform to come: codec, error map and read-back of one platform in one file.
//!
//! `POST {base}/v1/actions` takes `{"action_id","owner","setting":"bid","bid_micros":…}` (or
//! `budget`, `status`, `rotate`), with `before` as a compare-and-set, and answers
//! `{"applied":bool,"effective":{…}}` or `{"error":{"class","message","field"?}}`.
//! `GET {base}/v1/entities/{key}` tells what is set. Alerts change nothing there and are not sent.
//!
//! | answer | outcome |
//! |---|---|
//! | 200 | `Applied` with what is in effect, or `NoChange` when `applied` is false |
//! | 401, 403 | `Rejected` (auth, permission) |
//! | 404, 413, 422, other 4xx | `Rejected` (validation, too much data) |
//! | 409 | read back: it holds, or `Rejected` (conflict): someone else changed it |
//! | 410, 426 | `Rejected` (version sunset) |
//! | 429 | `Deferred` by `Retry-After`; class `change_quota` is `Rejected` |
//! | no connection | `Deferred` (transient): nothing was sent |
//! | 5xx, broken reply, time-out | `Unknown`: it may have been taken |

use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use omnify_decision::action::{Id, Setting, Status};
use omnify_decision::control::Actual;
use omnify_operators::model::EntityKey;
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::{ActionSink, AmountRange, Capabilities, ErrorClass, ExecError, ExecOutcome, Intent};

/// How to reach the platform, and what it can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarketOptions {
    /// Address, for example `http://127.0.0.1:4010`.
    pub base: String,
    /// Sends the pre-image along, so that a change by someone else is noticed, not overwritten.
    pub compare: bool,
    /// Bids it can hold.
    pub bid: AmountRange,
    /// Budgets it can hold.
    pub budget: AmountRange,
    /// Longest wait for one call.
    pub call_timeout: Duration,
}

impl MarketOptions {
    /// The platform at `base`, with the usual limits.
    pub fn at(base: impl Into<String>) -> MarketOptions {
        MarketOptions {
            base: base.into(),
            compare: true,
            bid: AmountRange::ANY,
            budget: AmountRange::ANY,
            call_timeout: Duration::from_secs(5),
        }
    }
}

/// Longest reply read, in bytes: an action's answer is a few hundred.
const REPLY_BYTES_MAX: usize = 64 << 10;

/// See the module.
#[derive(Debug)]
pub struct Market {
    client: Client,
    base: String,
    options: MarketOptions,
}

#[derive(Serialize)]
struct Request<'a> {
    action_id: Id,
    owner: &'a EntityKey,
    #[serde(flatten)]
    setting: &'a Setting,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<&'a Setting>,
}

#[derive(Deserialize)]
struct Reply {
    applied: bool,
    effective: Setting,
}

#[derive(Deserialize)]
struct Entity {
    #[serde(default)]
    bid_micros: Option<i64>,
    #[serde(default, alias = "budget_micros")]
    daily_budget_micros: Option<i64>,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Failure {
    error: FailureBody,
}

#[derive(Deserialize)]
struct FailureBody {
    class: String,
    message: String,
    #[serde(default)]
    field: Option<String>,
}

impl Market {
    /// A client of the platform that `options` name.
    pub fn new(options: MarketOptions) -> Result<Market, ExecError> {
        let client = Client::builder()
            .connect_timeout(options.call_timeout)
            .timeout(options.call_timeout)
            // The platform is the one named, whatever proxy the environment suggests.
            .no_proxy()
            .build()
            .map_err(|error| ExecError::new(ErrorClass::Validation, Causes(&error)))?;
        let base = options.base.trim_end_matches('/').to_owned();
        Ok(Market { client, base, options })
    }

    async fn post(&self, intent: &Intent) -> ExecOutcome {
        let request = Request {
            action_id: intent.id,
            owner: &intent.owner,
            setting: &intent.desired,
            before: intent.before.as_ref().filter(|_| self.options.compare),
        };
        let call = self.client.post(format!("{}/v1/actions", self.base)).json(&request);
        let response = match call.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() || error.is_builder() => {
                let error = ExecError::new(ErrorClass::Transient, Causes(&error));
                return ExecOutcome::Deferred { error, after: None };
            }
            Err(error) => return unknown(Causes(&error)),
        };
        if !response.status().is_success() {
            let after = retry_after(&response);
            let error = failure(response).await;
            return match ExecOutcome::from_error(error) {
                ExecOutcome::Deferred { error, .. } => ExecOutcome::Deferred { error, after },
                other => other,
            };
        }
        match body(response).await.and_then(|body| {
            serde_json::from_slice(&body)
                .map_err(|error| format!("not the reply expected: {error}"))
        }) {
            Ok(Reply { applied: true, effective }) => ExecOutcome::Applied { effective },
            Ok(Reply { applied: false, effective }) if effective == intent.desired => {
                ExecOutcome::NoChange
            }
            // True already, as rounded by the platform.
            Ok(Reply { applied: false, effective }) => ExecOutcome::Applied { effective },
            Err(message) => unknown(message),
        }
    }

    async fn get(&self, entity: &EntityKey) -> Result<Actual, ExecError> {
        let path: Vec<_> = entity.as_str().split('/').map(percent).collect();
        let url = format!("{}/v1/entities/{}", self.base, path.join("/"));
        let transient = |message: String| ExecError::new(ErrorClass::Transient, message);
        let response =
            self.client.get(url).send().await.map_err(|e| transient(Causes(&e).to_string()))?;
        if !response.status().is_success() {
            return Err(failure(response).await);
        }
        let body = body(response).await.map_err(transient)?;
        let found: Entity = serde_json::from_slice(&body)
            .map_err(|error| transient(format!("not an entity: {error}")))?;
        Ok(Actual {
            bid_micros: found.bid_micros,
            budget_micros: found.daily_budget_micros,
            status: found.status,
        })
    }
}

impl ActionSink for Market {
    fn name(&self) -> &'static str {
        "market"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            kinds: Capabilities::ALL_KINDS,
            bid: self.options.bid,
            budget: self.options.budget,
            read_back: true,
            dedupes: true,
            call_timeout: self.options.call_timeout,
        }
    }

    fn execute<'a>(&'a self, intent: &'a Intent) -> BoxFuture<'a, ExecOutcome> {
        async move {
            match &intent.desired {
                Setting::Alert { .. } => ExecOutcome::Applied { effective: intent.desired.clone() },
                _ => self.post(intent).await,
            }
        }
        .boxed()
    }

    fn read_back<'a>(&'a self, entity: &'a EntityKey) -> BoxFuture<'a, Result<Actual, ExecError>> {
        self.get(entity).boxed()
    }
}

fn unknown(message: impl std::fmt::Display) -> ExecOutcome {
    ExecOutcome::Unknown(ExecError::new(ErrorClass::UnknownOutcome, message))
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

async fn body(mut response: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| Causes(&e).to_string())? {
        if body.len() + chunk.len() > REPLY_BYTES_MAX {
            return Err(format!("a reply above {REPLY_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The class of a refusal, and the platform's words for it.
async fn failure(response: Response) -> ExecError {
    let status = response.status();
    let body = body(response).await.unwrap_or_else(String::into_bytes);
    let said = serde_json::from_slice::<Failure>(&body).ok().map(|failure| failure.error);
    let mut class = class_of(status);
    if status == StatusCode::TOO_MANY_REQUESTS
        && said.as_ref().is_some_and(|said| said.class == ErrorClass::ChangeQuota.name())
    {
        class = ErrorClass::ChangeQuota;
    }
    let message = match said {
        Some(FailureBody { message, field: Some(field), .. }) => format!("{field}: {message}"),
        Some(FailureBody { message, .. }) => message,
        None => format!("{status} {}", String::from_utf8_lossy(&body)),
    };
    ExecError::new(class, message)
}

const fn class_of(status: StatusCode) -> ErrorClass {
    match status.as_u16() {
        401 => ErrorClass::Auth,
        403 => ErrorClass::Permission,
        409 => ErrorClass::Conflict,
        410 | 426 => ErrorClass::VersionSunset,
        413 => ErrorClass::TooMuchData,
        429 => ErrorClass::Throttle,
        400..=499 => ErrorClass::Validation,
        _ => ErrorClass::UnknownOutcome,
    }
}

/// A path segment with everything but unreserved characters percent-encoded.
fn percent(segment: &str) -> String {
    let mut out = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// An error with its causes on one line: reqwest's own text stops before the interesting part.
struct Causes<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_class() {
        let class = |code| class_of(StatusCode::from_u16(code).unwrap());
        assert_eq!(class(409), ErrorClass::Conflict);
        assert_eq!(class(404), ErrorClass::Validation);
        assert_eq!(class(429), ErrorClass::Throttle);
        for code in [500, 502, 503, 504] {
            assert_eq!(class(code), ErrorClass::UnknownOutcome, "{code} may have been taken");
        }
    }

    #[test]
    fn keys_are_safe_in_a_path() {
        assert_eq!(percent("a b%ü?#"), "a%20b%25%C3%BC%3F%23");
    }
}
