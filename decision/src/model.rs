//! The calibrated click and conversion model: what an impression and a click are worth.
//!
//! A probability is made in three steps, for clicks per impression and conversions per click
//! alike:
//!
//! 1. *offset*: the logit of the entity's empirical-Bayes rate, or of its nearest known ancestor;
//! 2. *context*: plus hashed sparse weights of the hour, the day, the frequency and the entity
//!    (see [`Context`] and the `features` module), learned by FTRL-proximal;
//! 3. *calibration*: `p = sigmoid(slope · (offset + context) + shift)`.
//!
//! # Contract
//! A model is a value: [`ClickModel::predict`] is a pure function that allocates nothing and costs
//! one step per active feature. [`ClickModel::version`] is taken from the content, so equal models
//! have equal versions everywhere, and [`ClickModel::to_json`] and [`ClickModel::from_json`] keep
//! every number bit for bit. Rates of an entity come from its own tenant alone; tenants share only
//! the hashed weights and the overall rate.
//!
//! # What this module never does
//! It learns nothing (that is [`crate::learn`]) and reads no file: a model arrives as
//! [`crate::control::Control::Model`].

mod features;
mod json;

use std::collections::HashMap;

use omnify_operators::model::{EntityKey, EventTime, HOUR_US};
use serde::{Deserialize, Serialize};

pub(crate) use features::{Slots, active_slots};
pub use json::{ModelError, SCHEMA};

/// Hours in a week: the number of values of [`Context::hour_of_week`].
pub const HOURS_PER_WEEK: u16 = 168;

/// The most hash bits a model may have: 2¹⁶ weights per target.
pub const SLOT_BITS_MAX: u8 = 16;

/// Probabilities are kept this far from 0 and 1, so that every logit is finite.
const PROBABILITY_MIN: f64 = 1e-9;

/// What a prediction is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context<'a> {
    /// The entity, a creative as a rule. Of a higher entity, or a creative never seen, the rate of
    /// the nearest known ancestor is used.
    pub key: &'a EntityKey,
    /// Hour of the week in UTC, 0 for Monday 00:00 to 167: see [`hour_of_week`].
    pub hour_of_week: u16,
    /// How often the audience has seen the creative: see [`frequency_bucket`]. `None` if unknown.
    pub frequency_bucket: Option<u8>,
}

impl<'a> Context<'a> {
    /// The context of `key` at an instant, with the frequency if it is known.
    pub fn at(key: &'a EntityKey, time: EventTime, frequency: Option<f64>) -> Context<'a> {
        Context {
            key,
            hour_of_week: hour_of_week(time),
            frequency_bucket: frequency.map(frequency_bucket),
        }
    }
}

/// The hour of the week of an instant in UTC, 0 for Monday 00:00–01:00 to 167 for Sunday
/// 23:00–24:00.
pub fn hour_of_week(time: EventTime) -> u16 {
    // The epoch was a Thursday: three days after a Monday.
    let hours = time.div_euclid(HOUR_US) + 3 * 24;
    hours.rem_euclid(i64::from(HOURS_PER_WEEK)) as u16
}

/// The bucket of a frequency (impressions per person): 0 below 1.5, then one more for every factor
/// of 1.5, up to 11. Anything that is not a positive number falls into 0.
pub fn frequency_bucket(frequency: f64) -> u8 {
    // Counted instead of computed by a logarithm, so that the edges are exact.
    let mut edge = 1.5;
    let mut bucket = 0;
    while bucket < 11 && frequency >= edge {
        bucket += 1;
        edge *= 1.5;
    }
    bucket
}

/// What the model predicts; both are probabilities in (0, 1).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Probability that an impression is clicked.
    pub click: f64,
    /// Probability that a click converts.
    pub conversion: f64,
}

impl Rates {
    /// Probability that an impression leads to a conversion.
    pub fn conversion_per_impression(&self) -> f64 {
        self.click * self.conversion
    }

    /// The rate of one target.
    pub const fn of(&self, target: Target) -> f64 {
        match target {
            Target::Click => self.click,
            Target::Conversion => self.conversion,
        }
    }
}

/// The two events that are predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A click, given an impression.
    Click,
    /// A conversion, given a click.
    Conversion,
}

impl Target {
    /// The name used in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Target::Click => "click",
            Target::Conversion => "conversion",
        }
    }
}

/// The last step of a prediction: `p = sigmoid(slope · logit + shift)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    /// Stretches (above 1) or flattens (below 1) the differences between contexts.
    pub slope: f64,
    /// Moves the level.
    pub shift: f64,
}

impl Calibration {
    /// Changes nothing.
    pub const IDENTITY: Calibration = Calibration { slope: 1.0, shift: 0.0 };

    /// The calibrated probability of a logit.
    pub fn apply(self, logit: f64) -> f64 {
        sigmoid(self.slope * logit + self.shift).clamp(PROBABILITY_MIN, 1.0 - PROBABILITY_MIN)
    }
}

/// The weights and the calibration of one target.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Head {
    /// One weight per slot; the length is 2^slot_bits.
    pub(crate) weights: Vec<f64>,
    /// The last step.
    pub(crate) calibration: Calibration,
}

impl Head {
    /// A head that leaves the offset as it is.
    pub(crate) fn neutral(slot_bits: u8) -> Head {
        Head { weights: vec![0.0; 1 << slot_bits], calibration: Calibration::IDENTITY }
    }

    /// What the context adds to the offset, before calibration.
    pub(crate) fn context_logit(&self, slots: &Slots) -> f64 {
        slots.iter().map(|slot| self.weights[slot]).sum()
    }
}

/// Empirical-Bayes rates of every entity known, with the overall rate beneath.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RateTable {
    /// The rates of an entity of which nothing is known, not even the tenant.
    pub(crate) overall: Rates,
    /// By entity path. Only looked up, never iterated where order could show.
    pub(crate) by_path: HashMap<Box<str>, Rates>,
}

impl RateTable {
    /// The rates of the entity at `path`, or of its nearest known ancestor.
    pub(crate) fn nearest(&self, path: &str) -> Rates {
        let mut path = path;
        loop {
            if let Some(rates) = self.by_path.get(path) {
                return *rates;
            }
            match path.rfind('/') {
                Some(end) => path = &path[..end],
                None => return self.overall,
            }
        }
    }
}

/// A learned model of clicks and conversions. See the module's documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct ClickModel {
    slot_bits: u8,
    data_until: EventTime,
    rates: RateTable,
    click: Head,
    conversion: Head,
    version: u64,
}

impl ClickModel {
    /// A model from its parts. Both heads have 2^`slot_bits` weights.
    pub(crate) fn new(
        slot_bits: u8,
        data_until: EventTime,
        rates: RateTable,
        click: Head,
        conversion: Head,
    ) -> ClickModel {
        debug_assert!(click.weights.len() == 1 << slot_bits);
        debug_assert!(conversion.weights.len() == 1 << slot_bits);
        let mut model = ClickModel { slot_bits, data_until, rates, click, conversion, version: 0 };
        model.version = json::content_version(&model);
        model
    }

    /// What was learned of one target.
    pub(crate) fn head(&self, target: Target) -> &Head {
        match target {
            Target::Click => &self.click,
            Target::Conversion => &self.conversion,
        }
    }

    /// The logarithm of the number of slots.
    pub(crate) fn slot_bits(&self) -> u8 {
        self.slot_bits
    }

    /// The probability of a click and of a conversion after a click. Allocates nothing.
    pub fn predict(&self, context: &Context<'_>) -> Rates {
        let offset = self.rates.nearest(context.key.as_str());
        let slots = active_slots(context, self.slot_bits);
        let rate = |head: &Head, offset: f64| {
            head.calibration.apply(logit(offset) + head.context_logit(&slots))
        };
        Rates {
            click: rate(&self.click, offset.click),
            conversion: rate(&self.conversion, offset.conversion),
        }
    }

    /// Taken from the content: the first eight bytes, big-endian, of the BLAKE3 hash of the
    /// model's canonical JSON without the version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The end of the data the model was learned from, exclusive.
    pub fn data_until(&self) -> EventTime {
        self.data_until
    }

    /// Number of entities whose own rate the model knows.
    pub fn entities(&self) -> usize {
        self.rates.by_path.len()
    }

    /// Number of weights that are not zero, of clicks and of conversions.
    pub fn active_weights(&self) -> (usize, usize) {
        let active = |head: &Head| head.weights.iter().filter(|weight| **weight != 0.0).count();
        (active(&self.click), active(&self.conversion))
    }

    /// The calibration of one target.
    pub fn calibration(&self, target: Target) -> Calibration {
        self.head(target).calibration
    }
}

/// `ln(p / (1 − p))`, finite for every input.
pub(crate) fn logit(probability: f64) -> f64 {
    let p = probability.clamp(PROBABILITY_MIN, 1.0 - PROBABILITY_MIN);
    (p / (1.0 - p)).ln()
}

/// The inverse of [`logit`], without overflow.
pub(crate) fn sigmoid(logit: f64) -> f64 {
    if logit >= 0.0 {
        1.0 / (1.0 + (-logit).exp())
    } else {
        let e = logit.exp();
        e / (1.0 + e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> EntityKey {
        path.parse().unwrap()
    }

    fn model() -> ClickModel {
        let by_path = [
            ("acme", Rates { click: 0.02, conversion: 0.05 }),
            ("acme/meta/a1/c1", Rates { click: 0.03, conversion: 0.06 }),
            ("acme/meta/a1/c1/g1/k1", Rates { click: 0.04, conversion: 0.07 }),
        ];
        let rates = RateTable {
            overall: Rates { click: 0.01, conversion: 0.1 },
            by_path: by_path.into_iter().map(|(path, rates)| (path.into(), rates)).collect(),
        };
        ClickModel::new(8, 0, rates, Head::neutral(8), Head::neutral(8))
    }

    #[test]
    fn the_week_starts_on_monday() {
        assert_eq!(hour_of_week(0), 72, "1970-01-01 00:00 was a Thursday");
        assert_eq!(hour_of_week(-1), 71);
        assert_eq!(hour_of_week(4 * 24 * HOUR_US), 0, "1970-01-05 was a Monday");
        assert_eq!(hour_of_week(i64::MIN + 1).cmp(&HOURS_PER_WEEK), std::cmp::Ordering::Less);
    }

    #[test]
    fn frequency_buckets_rise_and_end() {
        let buckets: Vec<u8> = [f64::NAN, -1.0, 0.0, 1.49, 1.5, 2.3, 1e300, f64::INFINITY]
            .map(frequency_bucket)
            .into();
        assert_eq!(buckets, [0, 0, 0, 0, 1, 2, 11, 11]);
    }

    #[test]
    fn an_unknown_entity_takes_the_rate_of_its_nearest_ancestor() {
        let model = model();
        for (path, click) in [
            ("acme/meta/a1/c1/g1/k1", 0.04),
            ("acme/meta/a1/c1/g1/k2", 0.03),
            ("acme/meta/a1/c1", 0.03),
            ("acme/meta/a1/c10/g1/k1", 0.02),
            ("other/meta/a1/c1/g1/k1", 0.01),
        ] {
            let key = key(path);
            let rates = model.predict(&Context::at(&key, 0, None));
            assert!((rates.click - click).abs() < 1e-12, "{path}: {rates:?}");
        }
    }

    #[test]
    fn calibration_moves_the_level_and_stretches() {
        let calibration = Calibration { slope: 2.0, shift: 0.5 };
        assert!((calibration.apply(-1.0) - sigmoid(-1.5)).abs() < 1e-15);
        assert!((logit(Calibration::IDENTITY.apply(-3.0)) + 3.0).abs() < 1e-12);
        assert!(Calibration::IDENTITY.apply(-1e6) > 0.0);
        assert!(Calibration::IDENTITY.apply(1e6) < 1.0);
    }

    #[test]
    fn the_version_tells_contents_apart() {
        let model = model();
        let with = |data_until, click: Head| {
            ClickModel::new(8, data_until, model.rates.clone(), click, model.conversion.clone())
        };
        assert_eq!(model.version(), with(0, model.click.clone()).version());
        assert_ne!(model.version(), with(1, model.click.clone()).version());
        let mut head = model.click.clone();
        head.weights[3] = f64::from_bits(1);
        assert_ne!(model.version(), with(0, head).version(), "the smallest weight there is counts");
    }
}
