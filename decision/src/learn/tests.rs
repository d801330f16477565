//! Learning as a whole, on data of which the truth is known.

use omnify_operators::model::{EntityKey, EventTime, HOUR_US, Stats};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::*;
use crate::model::{Context, hour_of_week, sigmoid};

/// A planted world: creatives of different worth on two platforms with opposite days, a weekend,
/// wear by frequency, and conversions that depend on the hour and come hours later.
struct World {
    cells: Vec<Cell>,
    /// True click probability, by cell.
    click: Vec<f64>,
    /// Mean true conversion probability over all clicks.
    conversion: f64,
}

const DAYS: i64 = 28;

fn true_click(creative: usize, platform: usize, hour: EventTime, bucket: u8) -> f64 {
    let week = f64::from(hour_of_week(hour));
    let day = (week % 24.0 / 24.0 * std::f64::consts::TAU).sin();
    let direction = if platform == 0 { 1.0 } else { -1.0 };
    let weekend = if week >= 120.0 { 0.3 } else { 0.0 };
    let worth = 0.12 * (creative % 7) as f64 - 0.36;
    sigmoid(-3.6 + worth + 0.6 * direction * day + weekend - 0.15 * f64::from(bucket))
}

fn true_conversion(hour: EventTime) -> f64 {
    let evening = hour_of_week(hour) % 24 >= 16;
    if evening { 0.15 } else { 0.06 }
}

fn binomial(rng: &mut Xoshiro256PlusPlus, trials: i64, probability: f64) -> i64 {
    (0..trials).filter(|_| rng.r#gen::<f64>() < probability).count() as i64
}

fn world(seed: u64) -> World {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut builder = CellBuilder::default();
    let (mut clicked, mut converted) = (0.0, 0.0);
    for creative in 0..24_usize {
        let platform = creative % 2;
        let key: EntityKey =
            format!("acme/p{platform}/a/c{}/g{}/k{creative}", creative % 6, creative % 12)
                .parse()
                .unwrap();
        for hour in 0..DAYS * 24 {
            let time = hour * HOUR_US;
            let bucket = rng.gen_range(0..4_u8);
            let impressions = rng.gen_range(50..350);
            let clicks =
                binomial(&mut rng, impressions, true_click(creative, platform, time, bucket));
            let stats = Stats { impressions, clicks, ..Stats::ZERO };
            builder.add_at_frequency(&key, time, Some(bucket), stats);
            let conversions = binomial(&mut rng, clicks, true_conversion(time));
            clicked += clicks as f64;
            converted += conversions as f64;
            for _ in 0..conversions {
                // A third comes within the hour, the rest up to three hours later.
                let late = rng.gen_range(0..3_i64);
                let later = (time + late * HOUR_US).min((DAYS * 24 - 1) * HOUR_US);
                let stats = Stats { conversions: 1, ..Stats::ZERO };
                builder.add_at_frequency(&key, later, Some(bucket), stats);
            }
        }
    }
    let cells = builder.finish();
    let click = cells.iter().map(|cell| {
        let creative: usize = cell.key.segment(5).unwrap()[1..].parse().unwrap();
        true_click(creative, creative % 2, cell.hour, cell.frequency_bucket.unwrap())
    });
    World { click: click.collect(), cells, conversion: converted / clicked }
}

/// The scores of somebody who knows the truth, on the report's held-out stretch.
fn oracle(world: &World, stretch: &Stretch) -> Vec<Scored> {
    let cells = world.cells.iter().zip(&world.click);
    cells
        .filter(|(cell, _)| (stretch.from..stretch.until).contains(&cell.hour))
        .filter(|(cell, _)| cell.stats.impressions > 0)
        .map(|(cell, click)| Scored {
            probability: *click,
            trials: cell.stats.impressions as f64,
            events: cell.stats.clicks as f64,
        })
        .collect()
}

#[test]
fn planted_effects_are_found() {
    let world = world(1);
    let (model, report) = learn(&world.cells, None, &LearnOptions::default()).unwrap();
    println!("{report}");
    let oracle = Metrics::of(&oracle(&world, &report.click.held_out));
    println!("oracle {oracle:?}");
    assert!(report.accept, "{report}");
    let auc = |metrics: &Metrics| metrics.auc.unwrap();
    let gap = auc(&oracle) - auc(&report.click.baseline);
    let closed = (auc(&report.click.challenger) - auc(&report.click.baseline)) / gap;
    assert!(gap > 0.05, "the world has something to find: {gap}");
    assert!(closed > 0.9, "share of the oracle's advantage in AUC: {closed}\n{report}");
    let regret = report.click.challenger.logloss - oracle.logloss;
    let advantage = report.click.baseline.logloss - oracle.logloss;
    assert!(regret < 0.1 * advantage, "share of the oracle's advantage lost: {regret}/{advantage}");
    assert!((report.click.challenger.pcoc.unwrap() - 1.0).abs() < 0.05, "{report}");

    let conversion = report.conversion.as_ref().unwrap();
    assert!(auc(&conversion.challenger) > auc(&conversion.baseline) + 0.05, "{report}");
    assert!((conversion.challenger.pcoc.unwrap() - 1.0).abs() < 0.1, "{report}");

    // What the model says of single contexts.
    let key: EntityKey = "acme/p0/a/c0/g0/k0".parse().unwrap();
    let at = |hour_of_week, frequency_bucket| {
        model.predict(&Context {
            key: &key,
            hour_of_week,
            frequency_bucket: Some(frequency_bucket),
        })
    };
    let truth = |hour: i64, bucket| true_click(0, 0, (4 * 24 + hour) * HOUR_US, bucket);
    for (hour, bucket) in [(6, 0), (18, 0), (6, 3), (126, 1)] {
        let (said, is) = (at(hour as u16, bucket).click, truth(hour, bucket));
        assert!((said / is - 1.0).abs() < 0.15, "hour {hour}, bucket {bucket}: {said}, truly {is}");
    }
    assert!(at(20, 0).conversion > 1.4 * at(8, 0).conversion);
    let stranger: EntityKey = "acme/p1/a/c1/g1/new".parse().unwrap();
    let said = model.predict(&Context::at(&stranger, 0, None));
    assert!((0.01..0.05).contains(&said.click) && (said.conversion / world.conversion) < 2.0);
}

#[test]
fn the_same_cells_in_any_order_give_the_same_bytes() {
    let world = world(2);
    let options = LearnOptions { passes: 2, ..LearnOptions::default() };
    let bytes = |cells: &[Cell]| {
        let (model, report) = learn(cells, None, &options).unwrap();
        (model.to_json().to_string(), report.to_string(), serde_json::to_string(&report).unwrap())
    };
    let first = bytes(&world.cells);
    assert_eq!(first, bytes(&world.cells));
    let mut shuffled = world.cells.clone();
    shuffled.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(3));
    // A cell in two parts is the same cell.
    let part = Stats { impressions: 7, clicks: 1, ..Stats::ZERO };
    shuffled[0].stats -= part;
    shuffled.push(Cell { stats: part, ..shuffled[0].clone() });
    assert_eq!(first, bytes(&shuffled));
}

#[test]
fn the_held_out_stretch_teaches_nothing() {
    // Weights and calibration may not change with what happens in the held-out stretch.
    let world = world(4);
    let options = LearnOptions { passes: 2, ..LearnOptions::default() };
    let (model, report) = learn(&world.cells, None, &options).unwrap();
    let mut cells = world.cells.clone();
    let held_out = report.click.held_out.from;
    for cell in cells.iter_mut().filter(|cell| cell.hour >= held_out) {
        // Impressions, not clicks: the cut is made by clicks.
        cell.stats.impressions *= 3;
    }
    let (other, other_report) = learn(&cells, None, &options).unwrap();
    assert_eq!(other_report.click.held_out.from, held_out);
    assert_eq!(model.head(Target::Click), other.head(Target::Click));
    assert!(!other_report.accept, "the world has changed:\n{other_report}");
    assert!(other_report.reason.contains("PCOC"), "{}", other_report.reason);
}

#[test]
fn a_champion_is_beaten_only_by_a_better_model() {
    let world = world(5);
    let (champion, _) = learn(&world.cells, None, &LearnOptions::default()).unwrap();
    let (again, report) = learn(&world.cells, Some(&champion), &LearnOptions::default()).unwrap();
    assert_eq!(again, champion);
    assert!(report.accept, "an equal model is not worse: {}", report.reason);
    assert_eq!(report.click.champion, Some(report.click.challenger));
    // A challenger that may learn next to nothing loses against it.
    let lazy = LearnOptions { prior_sd: 1e-4, ..LearnOptions::default() };
    let (_, report) = learn(&world.cells, Some(&champion), &lazy).unwrap();
    assert!(!report.accept && report.reason.contains("click logloss"), "{report}");
}

#[test]
fn what_cannot_be_learned_from_says_so() {
    let world = world(6);
    let options = LearnOptions { clicks_min: 1_000_000, ..LearnOptions::default() };
    let error = learn(&world.cells, None, &options).unwrap_err();
    assert!(matches!(error, LearnError::TooFewClicks { need: 1_000_000, .. }), "{error}");
    assert!(matches!(
        learn(&[], None, &LearnOptions::default()),
        Err(LearnError::TooFewClicks { have: 0, need: 200 })
    ));
    let one_hour: Vec<Cell> =
        world.cells.iter().cloned().map(|cell| Cell { hour: 0, ..cell }).collect();
    let error = learn(&one_hour, None, &LearnOptions::default()).unwrap_err();
    assert!(matches!(error, LearnError::TooShort { hours: 1 }), "{error}");
    let campaign = Cell { key: "t/p/a/c".parse().unwrap(), ..world.cells[0].clone() };
    let error = learn(&[campaign], None, &LearnOptions::default()).unwrap_err();
    assert!(matches!(error, LearnError::NotACreative { .. }), "{error}");
    let options = LearnOptions { train_share: 0.95, ..LearnOptions::default() };
    let error = learn(&world.cells, None, &options).unwrap_err();
    assert!(matches!(error, LearnError::Option { option: "train_share", .. }), "{error}");
}

#[test]
fn without_mature_conversions_rates_do() {
    let world = world(7);
    let options = LearnOptions {
        passes: 1,
        conversion_maturity_hours: DAYS as u32 * 24,
        ..LearnOptions::default()
    };
    let (model, report) = learn(&world.cells, None, &options).unwrap();
    assert!(report.conversion.is_none() && report.notes.len() == 2, "{report}");
    let key: EntityKey = "acme/p0/a/c0/g0/k0".parse().unwrap();
    let said = model.predict(&Context::at(&key, 0, None)).conversion;
    assert!((said / world.conversion - 1.0).abs() < 0.5, "{said}");
}

fn small_model() -> ClickModel {
    let world = world(8);
    let options = LearnOptions { passes: 1, slot_bits: 8, ..LearnOptions::default() };
    learn(&world.cells, None, &options).unwrap().0
}

#[test]
fn json_keeps_every_bit() {
    let model = small_model();
    let text = model.to_json().to_string();
    let read = ClickModel::from_json(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(read, model);
    assert_eq!(read.to_json().to_string(), text);
    let bits = |model: &ClickModel| -> Vec<u64> {
        model.head(Target::Click).weights.iter().map(|weight| weight.to_bits()).collect()
    };
    assert_eq!(bits(&read), bits(&model));
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::hash_map("[a-z_]{1,9}", inner, 0..5)
                .prop_map(|fields| fields.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

#[test]
fn garbage_is_no_model() {
    let good = small_model().to_json();
    let config = ProptestConfig::with_cases(256);
    let fields: Vec<String> = good.as_object().unwrap().keys().cloned().collect();
    // Any value in any field's place, unless it is the one that was there.
    proptest!(config.clone(), |(garbage in any_json(), at in 0..fields.len())| {
        prop_assert!(ClickModel::from_json(&garbage).is_err());
        let mut bad = good.clone();
        if bad[&fields[at]] != garbage {
            bad[&fields[at]] = garbage;
            prop_assert!(ClickModel::from_json(&bad).is_err());
        }
    });
    // Any byte of the text changed: not JSON any more, the same model, or refused.
    let text = good.to_string();
    let model = ClickModel::from_json(&good).unwrap();
    proptest!(config, |(at in 0..text.len(), byte in 32..127_u8)| {
        let mut bytes = text.clone().into_bytes();
        bytes[at] = byte;
        if let Ok(json) = serde_json::from_slice(&bytes) {
            match ClickModel::from_json(&json) {
                Ok(read) => prop_assert_eq!(read, model.clone()),
                Err(error) => prop_assert!(error.to_string().starts_with("model: ")),
            }
        }
    });
    for field in &fields {
        let mut bad = good.clone();
        bad.as_object_mut().unwrap().remove(field);
        assert!(ClickModel::from_json(&bad).is_err(), "without {field}");
    }
}
