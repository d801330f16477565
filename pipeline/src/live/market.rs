//! A reader of the simulator's ad platform: its feed of metrics, and the settings it holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use omnify_decision::action::Status;
use omnify_decision::control::{Actual, Control};
use omnify_operators::model::{EntityKey, Tick, tick_of_us};
use omnify_sinks::serve::Watermarks;
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use tokio::runtime::Handle;

use super::intake::{Arrival, Intake};
use crate::clock;
use crate::decode::{Door, Push};

/// Rows of a page: enough to be fast, few enough to keep a tick short.
const PAGE_ROWS: u64 = 10_000;
/// Entities of a page.
const PAGE_ENTITIES: usize = 10_000;
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The platform cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MarketError {
    /// No answer, or half of one.
    #[error("the ad platform at {url} does not answer: {source}")]
    Http {
        /// The address.
        url: String,
        /// What the client said.
        source: reqwest::Error,
    },
    /// Another answer than the contract says.
    #[error("the ad platform at {url} answered {status}: {body}")]
    Answer {
        /// The address.
        url: String,
        /// The status.
        status: StatusCode,
        /// The beginning of the body, or what is missing.
        body: String,
    },
    /// The engine takes nothing more.
    #[error("the engine is stopping")]
    Closed,
}

/// Reads one platform, from its beginning.
pub struct MarketFeed {
    client: Client,
    base: String,
    runtime: Handle,
    decoder: Push,
    cursor: u64,
    lags: Lags,
}

/// How late the platform's numbers are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lags {
    /// Delivery older than this is complete.
    pub fresh_us: i64,
    /// Conversions of clicks older than this are final.
    pub settled_us: i64,
}

#[derive(Deserialize)]
struct Entities {
    entities: Vec<Entity>,
}

#[derive(Deserialize)]
struct Entity {
    entity: EntityKey,
    bid_micros: Option<i64>,
    daily_budget_micros: Option<i64>,
    status: Option<Status>,
}

impl MarketFeed {
    /// A reader of the platform at `base`; requests run on `runtime`, and the caller's thread, which
    /// must not be one of the runtime's, waits for them.
    pub fn new(
        base: &str,
        lags: Lags,
        runtime: Handle,
        door: Arc<Door>,
    ) -> Result<MarketFeed, MarketError> {
        let url = base.trim_end_matches('/').to_owned();
        let client = Client::builder()
            .timeout(TIMEOUT)
            // The platform is the one named, whatever proxy the environment suggests.
            .no_proxy()
            .build()
            .map_err(|source| MarketError::Http { url: url.clone(), source })?;
        let decoder = Push::native(door, "market");
        Ok(MarketFeed { client, base: url, runtime, decoder, cursor: 0, lags })
    }

    /// Reads everything there is now and hands it to `intake`, page by page. `measured` says whether
    /// latency is measured from here. Returns the time up to which everything is known.
    pub fn read(&mut self, intake: &Intake, measured: bool) -> Result<Tick, MarketError> {
        loop {
            let (arrival, full) = self.page(measured)?;
            let known_until = arrival.known_until.unwrap_or(0);
            if !intake.send(arrival) {
                return Err(MarketError::Closed);
            }
            if !full {
                return Ok(known_until);
            }
        }
    }

    /// One page, and whether it was full.
    fn page(&mut self, measured: bool) -> Result<(Arrival, bool), MarketError> {
        let url = format!("{}/v1/feed?after={}&limit={PAGE_ROWS}", self.base, self.cursor);
        let number = |response: &Response, name: &str| {
            let value = response.headers().get(name)?.to_str().ok()?;
            value.parse::<i64>().ok()
        };
        let (next, time_us, body) = self.runtime.block_on(async {
            let response = self.get(&url).await?;
            let (next, time_us) =
                (number(&response, "x-next-cursor"), number(&response, "x-time-us"));
            let (Some(next), Some(time_us)) = (next, time_us) else {
                let body = "headers x-next-cursor and x-time-us are missing".to_owned();
                return Err(MarketError::Answer { url: url.clone(), status: StatusCode::OK, body });
            };
            let http = |source| MarketError::Http { url: url.clone(), source };
            Ok((next, time_us, response.bytes().await.map_err(http)?))
        })?;
        let batch = self.decoder.decode(&body, None);
        self.cursor = u64::try_from(next).unwrap_or(self.cursor);
        let full = batch.rows >= PAGE_ROWS;
        let known_until = Some(tick_of_us(time_us));
        let arrived = measured.then(clock::instant);
        let watermarks = Some(Watermarks {
            fresh_until_us: Some(time_us - self.lags.fresh_us),
            settled_until_us: Some(time_us - self.lags.settled_us),
        });
        Ok((Arrival { batch, arrived, watermarks, known_until, ..Arrival::default() }, full))
    }

    /// Reads all settings and hands them to `intake`.
    pub fn observe(&mut self, intake: &Intake) -> Result<(), MarketError> {
        let observed = clock::instant();
        let controls = self.settings()?;
        if controls.is_empty() || intake.send(arrival_of(controls, observed)) {
            return Ok(());
        }
        Err(MarketError::Closed)
    }

    /// All settings.
    pub fn settings(&mut self) -> Result<Vec<Control>, MarketError> {
        let mut controls = Vec::new();
        let mut after = 0;
        loop {
            let url = format!("{}/v1/entities?after={after}&limit={PAGE_ENTITIES}", self.base);
            let page: Entities = self.runtime.block_on(async {
                let http = |source| MarketError::Http { url: url.clone(), source };
                self.get(&url).await?.json().await.map_err(http)
            })?;
            let count = page.entities.len();
            for Entity { entity, bid_micros, daily_budget_micros, status } in page.entities {
                let actual = Actual { bid_micros, budget_micros: daily_budget_micros, status };
                controls.push(Control::Observe { entity, actual });
            }
            if count < PAGE_ENTITIES {
                return Ok(controls);
            }
            after += count;
        }
    }

    async fn get(&self, url: &str) -> Result<Response, MarketError> {
        let http = |source| MarketError::Http { url: url.to_owned(), source };
        let response = self.client.get(url).send().await.map_err(http)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.text().await.map_err(http)?.chars().take(300).collect();
        Err(MarketError::Answer { url: url.to_owned(), status, body })
    }
}

fn arrival_of(controls: Vec<Control>, observed: Instant) -> Arrival {
    Arrival { controls, observed: Some(observed), ..Arrival::default() }
}
