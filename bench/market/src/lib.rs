//! An advertising market in a box: it stands in for ad platforms, users and competitors, and it
//! knows the truth.
//!
//! ```text
//!  MarketConfig + seed ──► World (accounts, campaigns, creatives, their hidden truth)
//!                            │
//!  actions at market times ─►│ Market::advance_to(time) ──► FeedItem: events, report rows
//!                            │                          └─► Totals, truth()
//!                            └─ Platform: the same market behind HTTP, with faults on demand
//! ```
//!
//! # Two layers
//! [`Market`] is pure: a function of (config, seed, actions and the times they were applied). It
//! has no clock, no thread and no socket. [`Platform`] puts it behind a lock and [`serve`] behind
//! HTTP; its owner moves time with [`Platform::advance_to`].
//!
//! # Paired seeds
//! Every random draw is keyed by (seed, step, campaign, opportunity), never by what happened before.
//! Two markets of one seed see the same opportunities, competitor prices and users, so what differs
//! between them was caused by actions alone, and an action on one campaign leaves every other
//! campaign's outcome as it was. [`run_baseline`] and [`uplift`] build on that.
//!
//! # The model
//! - **Time** runs in steps (one minute). An action counts from the next step on. Event ids are
//!   unique for the first 4 million steps (eight years of minutes).
//! - **Opportunities** arrive per campaign as a Poisson number per step, with the rhythm of the
//!   account-local hour and weekday and a noise per hour.
//! - **Auctions**: the competitor's price per thousand is lognormal, with its own rhythm. The
//!   campaign wins when `bid × creative quality` is above it. A second-price platform charges
//!   `price / quality`, a first-price platform the bid. Bids are CPM bids.
//! - **Budget**: a campaign that could not pay its bid out of what is left of the account-local
//!   day's budget does not bid. The daily budget is never exceeded, not even by one auction (it may
//!   lie below what was already spent when it is lowered during the day).
//! - **Wear-out**: with `I` impressions of a creative on an audience of `U` users, its reach is
//!   `U (1 − exp(−I/U))`, its frequency `F` impressions per reached user, and its true CTR
//!   `ctr_fresh × ((1 + F) / 2)^−γ`, which is `base × (1 + F)^−γ`. Onset is the moment at which it
//!   has lost a fifth of its fresh CTR. Creatives with γ = 0 do not wear out.
//! - **Clicks** follow within 30 seconds and within the step. **Conversions** follow a valid click
//!   with the campaign's CVR after a hyperexponential delay of hours to days; one that takes longer
//!   than the attribution window is lost. Their value is lognormal.
//! - **Invalid clicks** never convert. After `invalid_after_us` the cost of their impression is
//!   refunded, and the click disappears from report rows (event feeds cannot take a click back).
//!
//! # Feeds
//! Accounts on a platform with [`FeedKind::Events`] emit an item per impression, click, conversion
//! and refund (`cost`, negative). Accounts with [`FeedKind::Reports`] emit report rows instead:
//! totals so far per creative and UTC hour, restated whenever a later conversion or a removed click
//! changed them. Items come in order of the time at which they became known.
//!
//! # HTTP
//! | | |
//! |---|---|
//! | `GET /v1/time` | `{"start_us","time_us","step_us","next_cursor"}` |
//! | `GET /v1/feed?after=0&limit=10000` | NDJSON from cursor `after` on. Header `x-next-cursor` is the next `after`, `x-time-us` the time up to which the reader then knows everything. 410 with the oldest cursor when the buffer no longer holds `after`. |
//! | `GET /v1/entities?after=0&limit=1000` | `{"time_us","entities":[…],"next_after"}`: settings of campaigns, ad groups and creatives |
//! | `GET /v1/entities/{key}` | one of them, 404 when unknown |
//! | `POST /v1/actions` | `{"action_id","owner","setting":"bid","bid_micros":…}`, or `"budget"` with `budget_micros`, `"status"` with `status` (`enabled`, `paused`), `"rotate"` with `from` and `to`; optional `before` (a setting) makes it a compare-and-set |
//!
//! An action is answered with 200 `{"action_id","applied":bool,"effective":{…}}` (`applied` is
//! false when it was true already), or with `{"error":{"class","message","field"?,"current"?}}`:
//! 404 `unknown_entity`, 409 `conflict`, 422 `validation`, 429 `change_quota` or `throttle` with
//! `Retry-After` in seconds (for a quota, of market time), 500 `transient`. [`Faults`] makes
//! chosen actions fail, before or after they took effect.
//!
//! Feed lines (`kind` is `impression`, `click`, `conversion` or `cost`; `user` is left out for
//! `cost`; a conversion also has `click_us`, the time of the click it is attributed to):
//! ```json
//! {"type":"event","ts_us":0,"tenant":"","platform":"","account":"","campaign":"","ad_group":"","creative":"","kind":"impression","user":"","event_id":"","cost_micros":0,"revenue_micros":0}
//! {"type":"report","tenant":"","platform":"","account":"","campaign":"","ad_group":"","creative":"","start_us":0,"end_us":0,"as_of_us":0,"impressions":0,"clicks":0,"conversions":0,"cost_micros":0,"revenue_micros":0}
//! ```
//!
//! # What this crate never does
//! It knows nothing of the engine beyond its vocabulary ([`omnify_operators::model`]), reads no
//! wall clock (the one exception is the hold of a simulated time-out in the HTTP layer) and never
//! shows its truth in a feed.

mod action;
mod config;
mod delivery;
mod faults;
mod feed;
mod http;
mod market;
mod maths;
mod platform;
mod report;
mod rhythm;
mod settings;
mod totals;
mod truth;
mod world;

pub use action::{ActionError, Applied, EntitySettings, Setting, Status};
pub use config::{AuctionKind, ConfigError, FeedKind, MarketConfig, PlatformConfig};
pub use faults::{Fault, FaultRates, Faults};
pub use feed::{FeedEvent, FeedItem, FeedReport};
pub use http::{router, serve};
pub use market::Market;
pub use platform::{FeedGone, FeedPage, Platform};
pub use totals::{CampaignTotals, SumUsd, Totals, Uplift, UpliftReport, run_baseline, uplift};
pub use truth::{CampaignTruth, CreativeTruth, Truth};
pub use world::{Account, AdGroup, Campaign, Creative, GoalKind, ScenarioGoal};
