//! Empirical-Bayes rates along the hierarchy, kept as decayed counts.
//!
//! The rate of an entity is shrunk towards its parent's, the parent's towards its own, and so on
//! up to the overall rate: `(n₀·m + events) / (n₀ + trials)` with `m` the parent's rate and
//! `n₀ = shape·(1 − m)/m`. A shape says how alike siblings of a level are; it is estimated by
//! moments. Counts lose half their weight in a stated number of hours, so a creative that wears
//! out loses its past.
//!
//! [`RateLedger::rate`] at an hour knows only what was added before, which is how training stays
//! free of leakage: ask first, then add.

use omnify_operators::model::{EventTime, HOUR_US};

use super::dataset::Observation;
use super::hierarchy::{Hierarchy, Node};
use crate::model::Target;

/// Shape where siblings give no evidence.
const SHAPE_DEFAULT: f64 = 20.0;
/// Bounds of a shape: from siblings that differ by 100 % to siblings that differ by 3 %.
const SHAPES: std::ops::RangeInclusive<f64> = 1.0..=1_000.0;
/// Bounds of a rate.
const RATES: (f64, f64) = (1e-7, 0.95);

/// Prior strength by level, in events.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shapes([f64; 5]);

#[derive(Clone, Copy, Default)]
struct Count {
    trials: f64,
    events: f64,
}

impl Count {
    fn add(&mut self, observation: &Observation<'_>) {
        self.trials += observation.trials;
        self.events += observation.events;
    }
}

impl Shapes {
    /// How alike siblings are, by moments: the variance of children's events around what the
    /// parent's rate gives, beyond the binomial part, relative to the square of the expectation.
    pub(super) fn estimate(hierarchy: &Hierarchy, observations: &[Observation<'_>]) -> Shapes {
        let mut counts = vec![Count::default(); hierarchy.len()];
        let mut overall = Count::default();
        for observation in observations {
            overall.add(observation);
            for node in hierarchy.upwards(observation.leaf) {
                counts[node].add(observation);
            }
        }
        let (mut excess, mut scale) = ([0.0; 5], [0.0; 5]);
        for (node, count) in counts.iter().enumerate() {
            let parent = hierarchy.parent(node).map_or(overall, |parent| counts[parent]);
            if count.trials <= 0.0 || count.trials >= parent.trials || parent.events <= 0.0 {
                continue;
            }
            let mean = (parent.events / parent.trials).clamp(RATES.0, RATES.1);
            let expected = count.trials * mean;
            // The parent's rate holds the child's own events: that share of the noise is missing.
            let binomial = expected * (1.0 - mean) * (1.0 - count.trials / parent.trials);
            let level = hierarchy.level(node) as usize;
            excess[level] += (count.events - expected).powi(2) - binomial;
            scale[level] += expected * expected;
        }
        Shapes(std::array::from_fn(|level| match (excess[level], scale[level]) {
            (_, 0.0) => SHAPE_DEFAULT,
            (excess, scale) => (scale / excess.max(scale / SHAPES.end())).max(*SHAPES.start()),
        }))
    }
}

/// Decayed counts of one target, asked for rates.
pub(super) struct RateLedger<'h> {
    hierarchy: &'h Hierarchy,
    shapes: Shapes,
    half_life_hours: f64,
    /// Trials and events that stand for knowing nothing.
    vague: Count,
    overall: Decayed,
    counts: Vec<Decayed>,
}

#[derive(Clone, Copy)]
struct Decayed {
    count: Count,
    /// The hour the count is decayed to.
    hour: EventTime,
}

impl Decayed {
    const EMPTY: Decayed =
        Decayed { count: Count { trials: 0.0, events: 0.0 }, hour: EventTime::MIN };

    fn at(&self, hour: EventTime, half_life_hours: f64) -> Count {
        if self.count.trials == 0.0 && self.count.events == 0.0 {
            return self.count;
        }
        let age_hours = (hour.saturating_sub(self.hour)) as f64 / HOUR_US as f64;
        let keep = (-age_hours.max(0.0) / half_life_hours).exp2();
        Count { trials: keep * self.count.trials, events: keep * self.count.events }
    }

    fn add(&mut self, observation: &Observation<'_>, half_life_hours: f64) {
        self.count = self.at(observation.hour, half_life_hours);
        self.count.add(observation);
        self.hour = observation.hour;
    }
}

impl<'h> RateLedger<'h> {
    pub(super) fn new(
        hierarchy: &'h Hierarchy,
        target: Target,
        shapes: Shapes,
        half_life_hours: f64,
    ) -> RateLedger<'h> {
        // Half an event in fifty impressions, or in twenty-five clicks: a rate of 1 % or 2 %
        // until the first few events say better.
        let trials = match target {
            Target::Click => 50.0,
            Target::Conversion => 25.0,
        };
        let vague = Count { trials, events: 0.5 };
        let counts = vec![Decayed::EMPTY; hierarchy.len()];
        RateLedger { hierarchy, shapes, half_life_hours, vague, overall: Decayed::EMPTY, counts }
    }

    /// Adds what happened on a creative in an hour, which is not before any hour added earlier.
    pub(super) fn add(&mut self, observation: &Observation<'_>) {
        self.overall.add(observation, self.half_life_hours);
        for node in self.hierarchy.upwards(observation.leaf) {
            self.counts[node].add(observation, self.half_life_hours);
        }
    }

    /// The overall rate as of `hour`.
    pub(super) fn overall_rate(&self, hour: EventTime) -> f64 {
        let count = self.overall.at(hour, self.half_life_hours);
        let rate = (self.vague.events + count.events) / (self.vague.trials + count.trials);
        rate.clamp(RATES.0, RATES.1)
    }

    /// The rate of an entity as of `hour`, from what was added so far.
    pub(super) fn rate(&self, node: Node, hour: EventTime) -> f64 {
        let mean = match self.hierarchy.parent(node) {
            Some(parent) => self.rate(parent, hour),
            None => self.overall_rate(hour),
        };
        let count = self.counts[node].at(hour, self.half_life_hours);
        let prior_trials = self.shapes.0[self.hierarchy.level(node) as usize] * (1.0 - mean) / mean;
        let rate = (prior_trials * mean + count.events) / (prior_trials + count.trials);
        rate.clamp(RATES.0, RATES.1)
    }
}

#[cfg(test)]
mod tests {
    use omnify_operators::model::{EntityKey, Level};
    use rand::Rng;
    use rand::SeedableRng;
    use rand_xoshiro::Xoshiro256PlusPlus;

    use super::*;
    use crate::model::Context;

    fn hierarchy(creatives: usize) -> (Hierarchy, Vec<EntityKey>, Vec<Node>) {
        let keys: Vec<EntityKey> =
            (0..creatives).map(|k| format!("t/p/a/c/g/k{k}").parse().unwrap()).collect();
        let mut hierarchy = Hierarchy::default();
        let nodes = keys.iter().map(|key| hierarchy.enter(key)).collect();
        (hierarchy, keys, nodes)
    }

    fn observation(
        key: &EntityKey,
        leaf: Node,
        hour: i64,
        trials: f64,
        events: f64,
    ) -> Observation<'_> {
        let context = Context::at(key, 0, None);
        Observation { context, leaf, hour: hour * HOUR_US, trials, events, booked: 0.0 }
    }

    #[test]
    fn shapes_find_how_alike_siblings_are() {
        let (hierarchy, keys, nodes) = hierarchy(400);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(5);
        let mut estimate = |spread: f64| {
            let observations: Vec<Observation<'_>> = keys
                .iter()
                .zip(&nodes)
                .map(|(key, node)| {
                    let rate = 0.02 * (1.0 + spread * if rng.r#gen() { 1.0 } else { -1.0 });
                    let events = (0..5_000).filter(|_| rng.r#gen::<f64>() < rate).count();
                    observation(key, *node, 0, 5_000.0, events as f64)
                })
                .collect();
            Shapes::estimate(&hierarchy, &observations).0[Level::Creative as usize]
        };
        // Relative variance 0.25 and 0.01: shapes 4 and 100.
        assert!((3.3..4.8).contains(&estimate(0.5)));
        assert!((60.0..220.0).contains(&estimate(0.1)));
        assert!(estimate(0.0) > 300.0);
    }

    #[test]
    fn a_rate_moves_from_the_parent_to_its_own() {
        let (hierarchy, keys, nodes) = hierarchy(2);
        let shapes = Shapes([SHAPE_DEFAULT; 5]);
        let mut ledger = RateLedger::new(&hierarchy, Target::Click, shapes, 1e9);
        ledger.add(&observation(&keys[0], nodes[0], 0, 100_000.0, 1_000.0));
        let parent = ledger.rate(nodes[0], HOUR_US);
        assert!((parent - 0.01).abs() < 1e-4);
        assert!(
            (ledger.rate(nodes[1], HOUR_US) - 0.01).abs() < 1e-4,
            "nothing known: the parent's"
        );
        ledger.add(&observation(&keys[1], nodes[1], 1, 2_000.0, 60.0));
        let few = ledger.rate(nodes[1], 2 * HOUR_US);
        assert!(few > 0.014 && few < 0.025, "half way: {few}");
        ledger.add(&observation(&keys[1], nodes[1], 2, 2_000_000.0, 60_000.0));
        assert!((ledger.rate(nodes[1], 3 * HOUR_US) - 0.03).abs() < 3e-4);
    }

    #[test]
    fn counts_fade_by_half_lives() {
        let (hierarchy, keys, nodes) = hierarchy(1);
        let mut ledger =
            RateLedger::new(&hierarchy, Target::Click, Shapes([SHAPE_DEFAULT; 5]), 24.0);
        ledger.add(&observation(&keys[0], nodes[0], 0, 1e6, 40_000.0));
        ledger.add(&observation(&keys[0], nodes[0], 24, 1e6, 10_000.0));
        let rate = ledger.rate(nodes[0], 24 * HOUR_US);
        assert!((rate - 30_000.0 / 1.5e6).abs() < 1e-4, "{rate}");
    }
}
