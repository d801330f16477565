//! The synchronous path: a bid for a context, from the same state the stage decides on.
//!
//! The stage keeps one [`Quote`] per campaign and the rates of each creative in a [`BidBook`]. A
//! book is a value: readers hold an `Arc` of one and answer from it without locks, while the stage
//! works on the next. It is split into shards, each behind an `Arc`, so that a tick copies only the
//! shards in which something changed.
//!
//! # Contract
//! [`BidBook::answer`] is pure, never panics and never bids above the goal's cap; a paused or
//! spent campaign is answered with no bid.

use std::collections::HashMap;
use std::sync::Arc;

use omnify_operators::model::{EntityKey, Level, Tick};
use serde::{Deserialize, Serialize};

use crate::codes::{CodeName, reason};
use crate::goal::Pricing;
use crate::model::{ClickModel, Context, Rates};
use crate::wire::code_option;

/// How the exchange prices a won impression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Auction {
    /// The winner pays the next bid: bid the value.
    #[default]
    SecondPrice,
    /// The winner pays its bid: shade it.
    FirstPrice,
}

/// What a bid is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BidContext {
    /// A campaign, or a creative of it.
    pub key: EntityKey,
    /// Lowest price the seller accepts, in the unit of the bid.
    #[serde(default)]
    pub floor_micros: Option<i64>,
    /// Worth of this opportunity against a usual one of the same creative; 1 when left out.
    #[serde(default)]
    pub value: Option<f64>,
    /// The auction.
    #[serde(default)]
    pub auction: Auction,
    /// Typical highest competing bid in a first-price auction (the `l` of the win curve
    /// `b / (b + l)`), in the unit of the bid; a shade is not possible without.
    #[serde(default)]
    pub landscape_micros: Option<f64>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BidAnswer {
    /// The bid; `None` when none should be made, and `reasons` says why.
    pub bid_micros: Option<i64>,
    /// Budget dual μ: value per micro at the margin.
    pub mu: f64,
    /// KPI dual λ; 0 where the goal has no KPI.
    pub lambda: f64,
    /// Expected click-through rate of the context.
    pub ctr: f64,
    /// Expected conversions per click of the context.
    pub cvr: f64,
    /// How the bid is priced.
    pub pricing: Option<Pricing>,
    /// Reason codes.
    pub reasons: Vec<&'static str>,
    /// Tick of the state it was answered from.
    pub tick: Tick,
    /// Name of the goal; empty without one.
    pub goal: Arc<str>,
}

/// What the stage publishes of a campaign.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quote {
    /// Name of the goal.
    pub goal: Arc<str>,
    /// Bid of a usual opportunity; `None` while there is no bid or delivery is stopped.
    pub bid_micros: Option<i64>,
    /// Why there is no bid.
    #[serde(with = "code_option")]
    pub stopped: Option<CodeName>,
    /// Budget dual.
    pub mu: f64,
    /// KPI dual; 0 without a KPI.
    pub lambda: f64,
    /// Rates of the campaign as a whole: what `bid_micros` belongs to.
    pub rates: Rates,
    /// True when value is counted in clicks.
    pub counts_clicks: bool,
    /// How bids are priced.
    pub pricing: Pricing,
    /// Lowest bid.
    pub floor_micros: i64,
    /// Highest bid.
    pub cap_micros: i64,
}

impl Quote {
    /// Worth of one priced unit (impression or click) at `rates`, up to a constant.
    fn worth(&self, rates: &Rates) -> f64 {
        let click = if self.pricing == Pricing::Cpm { rates.click } else { 1.0 };
        if self.counts_clicks { click } else { click * rates.conversion }
    }
}

/// Number of shards. Each tick that changes something copies the list of them and the shards it changes.
const SHARDS: usize = 256;

/// A map that is cheap to copy: the copies share the shards in which they do not differ.
#[derive(Clone, Debug)]
struct Sharded<T>(Vec<Arc<HashMap<EntityKey, T>>>);

impl<T: Clone> Default for Sharded<T> {
    fn default() -> Self {
        Sharded(vec![Arc::default(); SHARDS])
    }
}

impl<T: Clone> Sharded<T> {
    fn get(&self, key: &EntityKey) -> Option<&T> {
        self.0[shard_of(key)].get(key)
    }

    fn insert(&mut self, key: &EntityKey, value: T) {
        Arc::make_mut(&mut self.0[shard_of(key)]).insert(key.clone(), value);
    }

    fn remove(&mut self, key: &EntityKey) {
        let shard = &mut self.0[shard_of(key)];
        if shard.contains_key(key) {
            Arc::make_mut(shard).remove(key);
        }
    }
}

fn shard_of(key: &EntityKey) -> usize {
    (key.stable_hash() % SHARDS as u64) as usize
}

/// Quotes of all campaigns as of a tick.
#[derive(Clone, Debug)]
pub struct BidBook {
    /// Change nearly all the time, apart from what rarely does.
    quotes: Sharded<Arc<Quote>>,
    creatives: Sharded<Rates>,
    model: Option<Arc<ClickModel>>,
    tick: Tick,
    no_goal: Arc<str>,
}

impl Default for BidBook {
    fn default() -> Self {
        BidBook {
            quotes: Sharded::default(),
            creatives: Sharded::default(),
            model: None,
            tick: 0,
            no_goal: Arc::from(""),
        }
    }
}

impl BidBook {
    /// Tick of the state in the book.
    pub fn tick(&self) -> Tick {
        self.tick
    }

    /// The quote of a campaign.
    pub fn quote(&self, campaign: &EntityKey) -> Option<&Quote> {
        self.quotes.get(campaign).map(Arc::as_ref)
    }

    /// Answers a bid for a context.
    pub fn answer(&self, context: &BidContext) -> BidAnswer {
        let own = match context.key.level() {
            Level::Campaign => self.quote(&context.key),
            _ => context.key.ancestor(Level::Campaign).and_then(|campaign| self.quote(&campaign)),
        };
        let mut answer = BidAnswer {
            bid_micros: None,
            mu: 0.0,
            lambda: 0.0,
            ctr: 0.0,
            cvr: 0.0,
            pricing: None,
            reasons: Vec::new(),
            tick: self.tick,
            goal: self.no_goal.clone(),
        };
        let Some(quote) = own else {
            answer.reasons.push(reason::NO_GOAL);
            return answer;
        };
        let rates = self.rates(&context.key, quote);
        answer.mu = quote.mu;
        answer.lambda = quote.lambda;
        answer.ctr = rates.click;
        answer.cvr = rates.conversion;
        answer.pricing = Some(quote.pricing);
        answer.goal = quote.goal.clone();
        let Some(usual_micros) = quote.bid_micros else {
            answer.reasons.push(quote.stopped.unwrap_or(reason::NO_ESTIMATE));
            return answer;
        };
        let usual_worth = quote.worth(&quote.rates);
        let relative = if usual_worth > 0.0 { quote.worth(&rates) / usual_worth } else { 1.0 };
        let value = context.value.filter(|value| value.is_finite() && *value >= 0.0).unwrap_or(1.0);
        let mut bid = usual_micros as f64 * relative * value;
        if let (Auction::FirstPrice, Some(landscape)) = (context.auction, context.landscape_micros)
        {
            bid = first_price(bid, landscape);
        }
        let cap = quote.cap_micros as f64;
        let bid = bid.clamp((quote.floor_micros as f64).min(cap), cap).round() as i64;
        match context.floor_micros {
            Some(floor) if floor > bid => answer.reasons.push(reason::SELLER_FLOOR),
            _ => answer.bid_micros = Some(bid),
        }
        answer
    }

    /// Rates of a creative: from the model if there is one, else as last published.
    fn rates(&self, key: &EntityKey, quote: &Quote) -> Rates {
        if key.level() == Level::Campaign {
            return quote.rates;
        }
        if let Some(model) = &self.model {
            let time = omnify_operators::model::us_of_tick(self.tick);
            return model.predict(&Context::at(key, time, None));
        }
        self.creatives.get(key).copied().unwrap_or(quote.rates)
    }

    pub(crate) fn set_tick(&mut self, tick: Tick) {
        self.tick = tick;
    }

    pub(crate) fn set_model(&mut self, model: Option<Arc<ClickModel>>) {
        self.model = model;
    }

    /// Publishes a campaign's quote; does nothing when it is unchanged.
    pub(crate) fn set_quote(&mut self, campaign: &EntityKey, quote: Quote) {
        if self.quote(campaign) != Some(&quote) {
            self.quotes.insert(campaign, Arc::new(quote));
        }
    }

    /// Forgets a campaign without a goal.
    pub(crate) fn remove(&mut self, campaign: &EntityKey) {
        self.quotes.remove(campaign);
    }

    /// Forgets a creative.
    pub(crate) fn remove_creative(&mut self, creative: &EntityKey) {
        self.creatives.remove(creative);
    }

    /// Publishes a creative's rates.
    pub(crate) fn set_creative(&mut self, creative: &EntityKey, rates: Rates) {
        self.creatives.insert(creative, rates);
    }
}

/// The bid that maximises `(value − b) · b / (b + landscape)`, the surplus in a first-price auction
/// with win curve `b / (b + l)`: `√(l² + l·value) − l`.
///
/// ORTB1 (Zhang, Yuan, Wang 2014) has the same form. Without a usable landscape the value itself.
pub fn first_price(value: f64, landscape: f64) -> f64 {
    if !(landscape > 0.0 && landscape.is_finite() && value > 0.0) {
        return value;
    }
    (landscape * landscape + landscape * value).sqrt() - landscape
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> EntityKey {
        text.parse().unwrap()
    }

    fn quote() -> Quote {
        Quote {
            goal: "brand".into(),
            bid_micros: Some(1_000),
            stopped: None,
            mu: 0.5,
            lambda: 10.0,
            rates: Rates { click: 0.01, conversion: 0.1 },
            counts_clicks: false,
            pricing: Pricing::Cpm,
            floor_micros: 100,
            cap_micros: 3_000,
        }
    }

    fn context(text: &str) -> BidContext {
        BidContext {
            key: key(text),
            floor_micros: None,
            value: None,
            auction: Auction::SecondPrice,
            landscape_micros: None,
        }
    }

    #[test]
    fn bids_follow_the_rates_of_the_creative_within_floor_and_cap() {
        let mut book = BidBook::default();
        book.set_quote(&key("t/p/a/c"), quote());
        book.set_creative(&key("t/p/a/c/g/x"), Rates { click: 0.02, conversion: 0.1 });
        let bid = |context: &BidContext| book.answer(context).bid_micros;
        assert_eq!(bid(&context("t/p/a/c")), Some(1_000));
        assert_eq!(bid(&context("t/p/a/c/g/x")), Some(2_000));
        assert_eq!(bid(&context("t/p/a/c/g/unknown")), Some(1_000));
        assert_eq!(bid(&BidContext { value: Some(9.0), ..context("t/p/a/c/g/x") }), Some(3_000));
        assert_eq!(bid(&BidContext { value: Some(0.0), ..context("t/p/a/c") }), Some(100));
        assert_eq!(bid(&BidContext { value: Some(f64::NAN), ..context("t/p/a/c") }), Some(1_000));
        assert_eq!(bid(&BidContext { floor_micros: Some(1_001), ..context("t/p/a/c") }), None);
        let unknown = book.answer(&context("t/p/a/other"));
        assert_eq!((unknown.bid_micros, unknown.reasons), (None, vec![reason::NO_GOAL]));
    }

    #[test]
    fn a_snapshot_does_not_see_later_quotes() {
        let mut book = BidBook::default();
        book.set_quote(&key("t/p/a/c"), quote());
        let before = book.clone();
        book.set_quote(&key("t/p/a/c"), Quote { bid_micros: Some(2_000), ..quote() });
        assert_eq!(before.answer(&context("t/p/a/c")).bid_micros, Some(1_000));
        assert_eq!(book.answer(&context("t/p/a/c")).bid_micros, Some(2_000));
    }

    #[test]
    fn shading_maximises_surplus() {
        let (value, landscape) = (700.0, 150.0);
        let surplus = |b: f64| (value - b) * b / (b + landscape);
        let best = first_price(value, landscape);
        assert!(best > 0.0 && best < value);
        for other in [best - 5.0, best + 5.0] {
            assert!(surplus(other) < surplus(best));
        }
        assert_eq!(first_price(700.0, 0.0), 700.0);
    }
}
