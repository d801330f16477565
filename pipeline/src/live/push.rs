//! `POST /v1/events`: a pushed body through the decoder into the intake.
//!
//! # Contract
//! Room is made sure of before a row is decoded, so a refused body leaves no trace and may be sent
//! again. A body is acknowledged when the tick that took it is on disk. A body under a key that is
//! remembered is answered as before and not taken again (see [`Batches`]).
//!
//! What was begun is finished even when the caller goes away: its key must not stay pending.

use std::sync::{Arc, Mutex, PoisonError};

use omnify_sinks::journal::BatchKey;
use omnify_sinks::serve::{Accepted, Ingest, IngestFuture, Push as Body, PushError, PushFormat};
use serde::de::IgnoredAny;
use tokio::sync::{Semaphore, oneshot};

use super::batches::{Batches, Known};
use super::intake::{Arrival, Intake};
use crate::clock;
use crate::decode::{Door, Push};

/// Bodies that may be waiting for the decoder or the disk; more are answered 429.
const BODIES_MAX: usize = 64;
/// When a refused sender may try again.
const RETRY_AFTER_S: u32 = 1;
/// The name under which keys of operators, who may send for every tenant, are kept.
const ALL: &str = "*";

/// The push source.
pub(super) struct HttpPush {
    source: Arc<Source>,
    places: Arc<Semaphore>,
}

pub(super) struct Source {
    decoder: Mutex<Push>,
    intake: Intake,
    batches: Batches,
}

/// A key under which a body is being taken.
pub(super) struct Pending {
    tenant: Arc<str>,
    key: Arc<str>,
}

impl HttpPush {
    /// A source of rows in the engine's own form.
    pub(super) fn new(door: Arc<Door>, intake: Intake, batches: Batches) -> HttpPush {
        let places = Arc::new(Semaphore::new(BODIES_MAX));
        HttpPush { source: Arc::new(Source::new(door, intake, batches)), places }
    }
}

impl Ingest for HttpPush {
    fn push(&self, push: Body) -> IngestFuture<'_> {
        Box::pin(async move {
            let Ok(place) = self.places.clone().try_acquire_owned() else { return Err(busy()) };
            let source = self.source.clone();
            let task = tokio::spawn(async move {
                let _place = place;
                source.push(push).await
            });
            task.await.unwrap_or_else(|_| Err(PushError::Closed("it is shutting down".into())))
        })
    }
}

const fn busy() -> PushError {
    PushError::Busy { retry_after_s: RETRY_AFTER_S }
}

impl Source {
    pub(super) fn new(door: Arc<Door>, intake: Intake, batches: Batches) -> Source {
        Source { decoder: Mutex::new(Push::native(door, "/v1/events")), intake, batches }
    }

    async fn push(self: Arc<Source>, push: Body) -> Result<Accepted, PushError> {
        let pending = match self.begin(&push) {
            Ok(pending) => pending,
            Err(answer) => return answer,
        };
        let (source, batch) = (self.clone(), pending.as_ref().map(Pending::batch));
        let taken = tokio::task::spawn_blocking(move || source.take(&push, batch));
        let taken = taken
            .await
            .unwrap_or_else(|_| Err(PushError::Closed("the decoder failed on this body".into())));
        let taken = match taken {
            Ok((accepted, durable)) => match durable.await {
                Ok(()) => Ok(accepted),
                Err(_) => Err(PushError::Unknown("the engine ended".into())),
            },
            Err(error) => Err(error),
        };
        self.end(pending.as_ref(), taken.is_ok());
        taken
    }

    /// Looks the body's key up, if it has one; what comes back as an error is the answer.
    pub(super) fn begin(
        &self,
        push: &Body,
    ) -> Result<Option<Pending>, Result<Accepted, PushError>> {
        // A key that an earlier process took would look new.
        if self.intake.is_recovering() {
            return Err(Err(busy()));
        }
        let Some(key) = &push.key else { return Ok(None) };
        let tenant = push.scope.tenant().unwrap_or(ALL).into();
        let pending = Pending { tenant, key: key.as_str().into() };
        match self.batches.begin(&pending.tenant, &pending.key) {
            Known::New => Ok(Some(pending)),
            // The first sending is on its way to the disk.
            Known::Pending => Err(Err(busy())),
            Known::Taken(answer) => Err(Ok(answer)),
        }
    }

    /// The body under the key was taken, or was not.
    pub(super) fn end(&self, pending: Option<&Pending>, taken: bool) {
        let Some(Pending { tenant, key }) = pending else { return };
        match taken {
            true => self.batches.taken(tenant, key),
            false => self.batches.abandon(tenant, key),
        }
    }

    /// Takes a body; what comes back beside the answer resolves when it is on disk.
    pub(super) fn take(
        &self,
        push: &Body,
        key: Option<BatchKey>,
    ) -> Result<(Accepted, oneshot::Receiver<()>), PushError> {
        let body = match push.format {
            PushFormat::Ndjson => push.body.to_vec(),
            PushFormat::Json => one_document(&push.body)?,
        };
        // One body at a time: what is found to have room finds it still.
        let mut decoder = self.decoder.lock().unwrap_or_else(PoisonError::into_inner);
        if self.intake.is_closed() {
            return Err(PushError::Closed("the engine is stopping".into()));
        }
        if self.intake.is_full() {
            return Err(busy());
        }
        let arrived = Some(clock::instant());
        decoder.only_tenant(push.scope.tenant());
        let before = decoder.rows();
        let batch = decoder.decode(&body, None);
        if let (true, Some(bad)) = (push.strict, batch.dead.first()) {
            let reason = format!("{}: {}", bad.reason, bad.detail);
            return Err(PushError::Malformed { row: bad.row - before, reason });
        }
        let accepted = Accepted {
            accepted: (batch.events.len() + batch.reports.len()) as u64,
            dead_letters: batch.dead.len() as u64,
            ignored: batch.ignored,
        };
        let key = key.map(|key| BatchKey {
            accepted: accepted.accepted,
            dead_letters: accepted.dead_letters,
            ignored: accepted.ignored,
            ..key
        });
        let (receipt, durable) = oneshot::channel();
        let receipt = Some(receipt);
        let arrival = Arrival { batch, arrived, key, receipt, ..Arrival::default() };
        if self.intake.is_full_for(&arrival) {
            return Err(busy());
        }
        match self.intake.put(arrival) {
            true => Ok((accepted, durable)),
            false => Err(PushError::Closed("the engine is stopping".into())),
        }
    }
}

impl Pending {
    pub(super) fn batch(&self) -> BatchKey {
        let (tenant, key) = (self.tenant.clone(), self.key.clone());
        BatchKey { tenant, key, accepted: 0, dead_letters: 0, ignored: 0 }
    }
}

/// A JSON document with every line break made a space: they are only allowed between tokens, and
/// the decoder takes a line for a row.
fn one_document(body: &[u8]) -> Result<Vec<u8>, PushError> {
    serde_json::from_slice::<IgnoredAny>(body)
        .map_err(|error| PushError::Malformed { row: 1, reason: error.to_string() })?;
    Ok(body.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }).collect())
}
