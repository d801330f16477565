//! A small client of a Confluent-style schema registry: `GET /schemas/ids/{id}`, remembered.
//!
//! # Contract
//! Asking never waits: the answer is the schema, "not yet", or why there is none. What cannot be
//! reached is tried again for as long as the process lives (first after 100 ms, then longer, at
//! most 5 s apart), while the partition that asked is paused; only what the registry itself says it
//! does not have is a dead letter. Refused credentials count as not reached: they are an operator's
//! mistake, not the message's.
//!
//! # Bounds
//! The newest [`SCHEMAS_MAX`] schemas are kept. An answer may have [`ANSWER_BYTES_MAX`] bytes, and
//! a schema may name [`REFERENCES_MAX`] others.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;
use tokio::runtime::Handle;

use crate::decode::{AvroSchema, ProtoSchema};

/// Schemas that are remembered.
const SCHEMAS_MAX: usize = 1_024;
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Schemas that one schema may name, directly or not.
const REFERENCES_MAX: usize = 64;
/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// Where the registry is.
#[derive(Clone)]
pub struct RegistryOptions {
    /// Base URL.
    pub url: String,
    /// User name and password, if it asks for them.
    pub credentials: Option<(String, String)>,
}

/// A schema of the registry.
#[derive(Clone, Debug)]
pub(super) enum Registered {
    Avro(Arc<AvroSchema>),
    Protobuf(Arc<ProtoSchema>),
    Json,
}

/// What is known of a schema.
#[derive(Clone, Debug)]
pub(super) enum Lookup {
    Ready(Registered),
    /// Asked for; look again later.
    Waiting,
    /// There is none, and why.
    Missing(Arc<str>),
}

/// Clones share what is known.
#[derive(Clone)]
pub struct SchemaRegistry {
    shared: Arc<Shared>,
    runtime: Handle,
}

struct Shared {
    client: reqwest::Client,
    options: RegistryOptions,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    schemas: HashMap<u32, Lookup>,
    order: VecDeque<u32>,
}

/// Why an attempt brought nothing.
enum Failure {
    /// Try again.
    Passing(String),
    /// The registry has no such schema, or none that can be used.
    Final(String),
}

#[derive(Deserialize)]
struct Answer {
    schema: String,
    #[serde(rename = "schemaType", default)]
    kind: Option<String>,
    #[serde(default)]
    references: Vec<Reference>,
}

#[derive(Clone, Deserialize)]
struct Reference {
    name: String,
    subject: String,
    version: i64,
}

impl SchemaRegistry {
    /// A client; it connects when it is first asked.
    pub fn new(options: RegistryOptions, runtime: Handle) -> reqwest::Result<SchemaRegistry> {
        let client = reqwest::Client::builder().timeout(TIMEOUT).build()?;
        let shared = Arc::new(Shared { client, options, known: Mutex::default() });
        Ok(SchemaRegistry { shared, runtime })
    }

    /// What is known of schema `id`; asks for it when nothing is.
    pub(super) fn lookup(&self, id: u32) -> Lookup {
        let mut known = self.shared.lock();
        if let Some(found) = known.schemas.get(&id) {
            return found.clone();
        }
        known.schemas.insert(id, Lookup::Waiting);
        known.order.push_back(id);
        while known.order.len() > SCHEMAS_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.schemas.remove(&oldest);
        }
        // The task ends when nobody asks any more.
        let shared = Arc::downgrade(&self.shared);
        self.runtime.spawn(async move {
            let mut wait = RETRY_FIRST;
            while let Some(shared) = shared.upgrade() {
                let found = match shared.load(id).await {
                    Ok(schema) => Lookup::Ready(schema),
                    Err(Failure::Final(why)) => Lookup::Missing(why.into()),
                    Err(Failure::Passing(why)) => {
                        tracing::warn!(id, why, "the schema registry does not answer");
                        drop(shared);
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(RETRY_LAST);
                        continue;
                    }
                };
                if let Some(place) = shared.lock().schemas.get_mut(&id) {
                    *place = found;
                }
                return;
            }
        });
        Lookup::Waiting
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn load(&self, id: u32) -> Result<Registered, Failure> {
        let answer = self.get(&["schemas", "ids", &id.to_string()]).await?;
        let references = self.references(answer.references).await?;
        let unusable = |error: crate::decode::SchemaError| {
            Failure::Final(format!("schema {id} of the registry cannot be used: {error}"))
        };
        match answer.kind.as_deref() {
            None | Some("AVRO") => {
                let texts: Vec<String> = references.into_iter().map(|(_, text)| text).collect();
                let schema = AvroSchema::parse(&answer.schema, &texts).map_err(unusable)?;
                Ok(Registered::Avro(Arc::new(schema)))
            }
            Some("PROTOBUF") => {
                let schema = ProtoSchema::parse(&answer.schema, &references).map_err(unusable)?;
                Ok(Registered::Protobuf(Arc::new(schema)))
            }
            Some("JSON") => Ok(Registered::Json),
            Some(other) => Err(Failure::Final(format!("schema {id} is of the kind {other}"))),
        }
    }

    /// Names and texts of everything referred to, what is referred to first.
    async fn references(&self, first: Vec<Reference>) -> Result<Vec<(String, String)>, Failure> {
        let mut found: Vec<(String, String)> = Vec::new();
        let mut open = first;
        while let Some(reference) = open.pop() {
            if found.iter().any(|(name, _)| *name == reference.name) {
                continue;
            }
            if found.len() >= REFERENCES_MAX {
                let why = format!("a schema refers to more than {REFERENCES_MAX} others");
                return Err(Failure::Final(why));
            }
            let Reference { name, subject, version } = reference;
            let version = version.to_string();
            let answer = self.get(&["subjects", &subject, "versions", &version]).await?;
            found.insert(0, (name, answer.schema));
            open.extend(answer.references);
        }
        Ok(found)
    }

    /// Asks for the segments of a path; subjects are often named after files, with slashes in them.
    async fn get(&self, path: &[&str]) -> Result<Answer, Failure> {
        let unusable = || Failure::Passing(format!("`{}` is no URL", self.options.url));
        let mut url = reqwest::Url::parse(&self.options.url).map_err(|_| unusable())?;
        url.path_segments_mut().map_err(|()| unusable())?.pop_if_empty().extend(path);
        let path = path.join("/");
        let mut request = self.client.get(url.clone());
        if let Some((user, password)) = &self.options.credentials {
            request = request.basic_auth(user, Some(password));
        }
        // The texts of reqwest name the URL, which holds no secret, and never a header.
        let passing = |error: reqwest::Error| Failure::Passing(error.to_string());
        let mut response = request.send().await.map_err(passing)?;
        match response.status() {
            status if status.is_success() => {}
            StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => {
                return Err(Failure::Final(format!("the registry does not have {path}")));
            }
            status => return Err(Failure::Passing(format!("{url} answers {status}"))),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(passing)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                let why = format!("{path} of the registry has more than {ANSWER_BYTES_MAX} bytes");
                return Err(Failure::Final(why));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body)
            .map_err(|error| Failure::Passing(format!("{url} answers no schema: {error}")))
    }
}
