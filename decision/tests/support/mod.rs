//! Rows, frames and goals for the tests of the stage.
#![allow(dead_code, unreachable_pub)]

pub mod inputs;

use std::sync::{Arc, OnceLock};

use omnify_decision::goal::{Goal, Objective, Pricing};
use omnify_decision::learn::{CellBuilder, LearnOptions, learn};
use omnify_operators::model::{
    Anomaly, Estimate, Fatigue, FeatureRow, Frame, HOUR_US, Registry, RegistryView, Stats, Tick,
};

/// A registry in UTC.
pub fn registry() -> RegistryView {
    RegistryView::new(Arc::new(Registry::utc()))
}

/// A row with nothing in it.
pub fn row(registry: &mut RegistryView, key: &str, tick: Tick) -> FeatureRow {
    let entity = registry.registry().intern(&key.parse().expect("a key"));
    FeatureRow {
        entity,
        tick,
        windows: Default::default(),
        ctr: Estimate::default(),
        cvr: Estimate::default(),
        reach: Default::default(),
        fatigue: Fatigue::default(),
        anomaly: Anomaly::default(),
        maturity: None,
    }
}

/// Estimates straight from sums.
pub fn estimate(row: &mut FeatureRow, sums: &Stats) {
    let of = |successes: i64, trials: i64| {
        let mean = (successes as f64 + 0.5) / (trials as f64 + 1.0);
        Estimate { mean, low: mean, high: mean, successes, trials }
    };
    row.ctr = of(sums.clicks, sums.impressions);
    row.cvr = of(sums.conversions, sums.clicks);
}

/// A frame of rows, in the order of outputs.
pub fn frame(registry: &mut RegistryView, tick: Tick, rows: Vec<FeatureRow>) -> Frame {
    let mut rows: Vec<_> =
        rows.into_iter().map(|row| (registry.info(row.entity).clone(), row)).collect();
    rows.sort_by(|(a, _), (b, _)| (a.order, &a.key).cmp(&(b.order, &b.key)));
    Frame { tick, rows }
}

/// A goal over everything of tenant `t`.
pub fn goal(objective: Objective) -> Goal {
    Goal {
        name: "g".into(),
        applies_to: "t".into(),
        objective,
        daily_budget_micros: 100_000_000,
        pricing: Pricing::Cpm,
        start: None,
        end: None,
        bid_floor_micros: 10_000,
        bid_cap_micros: 50_000_000,
        portfolio_budget_micros: None,
    }
}

/// Two learned models, as controls carry them.
pub fn models() -> &'static [serde_json::Value; 2] {
    static MODELS: OnceLock<[serde_json::Value; 2]> = OnceLock::new();
    MODELS.get_or_init(|| {
        [1, 3].map(|rate| {
            let mut cells = CellBuilder::new(1_000);
            for hour in 0..200 {
                for (at, key) in ["t/p/a/c/g/x", "t/p/a/d/g/y"].into_iter().enumerate() {
                    let clicks = 10 * rate + (hour + 7 * at as i64) % 5;
                    let sums = Stats { impressions: 1_000, clicks, conversions: 1, ..Stats::ZERO };
                    cells.add(&key.parse().expect("a key"), hour * HOUR_US, sums);
                }
            }
            let options = LearnOptions { slot_bits: 4, passes: 1, ..LearnOptions::default() };
            learn(&cells.finish(), None, &options).expect("enough data").0.to_json()
        })
    })
}
