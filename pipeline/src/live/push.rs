//! `POST /v1/events`: a pushed body through the decoder into the intake.
//!
//! # Contract
//! Room is made sure of before a row is decoded, so a refused body leaves no trace and may be sent
//! again. An accepted body has been taken by the ingest queue; it is not on disk yet.

use std::sync::{Arc, Mutex, PoisonError};

use omnify_sinks::serve::{Accepted, Ingest, IngestFuture, Push as Body, PushError, PushFormat};
use serde::de::IgnoredAny;
use tokio::sync::Semaphore;

use super::intake::{Arrival, Intake};
use crate::clock;
use crate::decode::{Door, Push};

/// Bodies that may be waiting for the decoder; more are answered 429.
const BODIES_MAX: usize = 16;
/// When a refused sender may try again.
const RETRY_AFTER_S: u32 = 1;

/// The push source.
pub(super) struct HttpPush {
    source: Arc<Source>,
    places: Arc<Semaphore>,
}

struct Source {
    decoder: Mutex<Push>,
    intake: Intake,
}

impl HttpPush {
    /// A source of rows in the engine's own form.
    pub(super) fn new(door: Arc<Door>, intake: Intake) -> HttpPush {
        let decoder = Mutex::new(Push::native(door, "/v1/events"));
        let places = Arc::new(Semaphore::new(BODIES_MAX));
        HttpPush { source: Arc::new(Source { decoder, intake }), places }
    }
}

impl Ingest for HttpPush {
    fn push(&self, push: Body) -> IngestFuture<'_> {
        Box::pin(async move {
            let Ok(place) = self.places.clone().try_acquire_owned() else { return Err(busy()) };
            let source = self.source.clone();
            let taken = tokio::task::spawn_blocking(move || {
                let _place = place;
                source.take(&push)
            });
            taken.await.unwrap_or_else(|_| Err(PushError::Closed("it is shutting down".into())))
        })
    }
}

const fn busy() -> PushError {
    PushError::Busy { retry_after_s: RETRY_AFTER_S }
}

impl Source {
    fn take(&self, push: &Body) -> Result<Accepted, PushError> {
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
        let batch = decoder.decode(&body, None);
        let accepted = Accepted {
            accepted: (batch.events.len() + batch.reports.len()) as u64,
            dead_letters: batch.dead.len() as u64,
            ignored: batch.ignored,
        };
        match self.intake.put(Arrival { batch, arrived, ..Arrival::default() }) {
            true => Ok(accepted),
            false => Err(PushError::Closed("the engine is stopping".into())),
        }
    }
}

/// A JSON document with every line break made a space: they are only allowed between tokens, and
/// the decoder takes a line for a row.
fn one_document(body: &[u8]) -> Result<Vec<u8>, PushError> {
    serde_json::from_slice::<IgnoredAny>(body)
        .map_err(|error| PushError::Malformed { row: 1, reason: error.to_string() })?;
    Ok(body.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }).collect())
}
