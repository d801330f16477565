//! Measures of predicted probabilities against what happened, over aggregated cells.
//!
//! Every function treats a cell of `n` trials with `k` events exactly as `n` single trials with
//! the same prediction, `k` of which came true.

use serde::{Deserialize, Serialize};

/// A predicted probability and what came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// Predicted probability of an event per trial, within (0, 1).
    pub probability: f64,
    /// Trials.
    pub trials: f64,
    /// Trials that had the event.
    pub events: f64,
}

/// How good predictions were on one stretch of data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Probability that an event was predicted higher than a non-event; `None` without both.
    pub auc: Option<f64>,
    /// Mean negative log-likelihood per trial, in nats.
    pub logloss: f64,
    /// Predicted over actual events (1 is right, above 1 promises too much); `None` without events.
    pub pcoc: Option<f64>,
    /// Expected calibration error: mean distance of predicted and actual rate over ten bins of
    /// equal trials, relative to the actual overall rate; `None` without events.
    pub ece: Option<f64>,
}

impl Metrics {
    /// All measures of `scored`.
    pub fn of(scored: &[Scored]) -> Metrics {
        Metrics { auc: auc(scored), logloss: logloss(scored), pcoc: pcoc(scored), ece: ece(scored) }
    }
}

/// Area under the ROC curve, ties counting half.
pub fn auc(scored: &[Scored]) -> Option<f64> {
    let sorted = by_probability(scored);
    let (mut below, mut wins) = (0.0, 0.0);
    for tied in sorted.chunk_by(|a, b| a.probability == b.probability) {
        let events: f64 = tied.iter().map(|s| s.events).sum();
        let others: f64 = tied.iter().map(|s| s.trials - s.events).sum();
        wins += events * (below + 0.5 * others);
        below += others;
    }
    let events: f64 = sorted.iter().map(|s| s.events).sum();
    (events > 0.0 && below > 0.0).then(|| wins / (events * below))
}

/// Mean negative log-likelihood per trial; 0 without trials.
pub fn logloss(scored: &[Scored]) -> f64 {
    let trials: f64 = scored.iter().map(|s| s.trials).sum();
    let loss: f64 = scored.iter().map(loss).sum();
    if trials > 0.0 { loss / trials } else { 0.0 }
}

/// Negative log-likelihood of one cell, summed over its trials.
pub(super) fn loss(scored: &Scored) -> f64 {
    let Scored { probability, trials, events } = *scored;
    -(events * probability.ln() + (trials - events) * (-probability).ln_1p())
}

/// Predicted over actual number of events; `None` without events.
pub fn pcoc(scored: &[Scored]) -> Option<f64> {
    let events: f64 = scored.iter().map(|s| s.events).sum();
    let predicted: f64 = scored.iter().map(|s| s.probability * s.trials).sum();
    (events > 0.0).then(|| predicted / events)
}

/// Mean distance between predicted and actual rate over ten bins of equal trials, ordered by
/// prediction, relative to the actual overall rate. A cell goes whole into the bin of its middle
/// trial.
pub fn ece(scored: &[Scored]) -> Option<f64> {
    let sorted = by_probability(scored);
    let trials: f64 = sorted.iter().map(|s| s.trials).sum();
    let events: f64 = sorted.iter().map(|s| s.events).sum();
    if events <= 0.0 || trials <= 0.0 {
        return None;
    }
    let (mut excess, mut before) = ([0.0; 10], 0.0);
    for s in sorted {
        let bin = (10.0 * (before + 0.5 * s.trials) / trials) as usize;
        excess[bin.min(9)] += s.probability * s.trials - s.events;
        before += s.trials;
    }
    Some(excess.iter().map(|e: &f64| e.abs()).sum::<f64>() / events)
}

fn by_probability(scored: &[Scored]) -> Vec<Scored> {
    let mut sorted = scored.to_vec();
    sorted.sort_by(|a, b| a.probability.total_cmp(&b.probability));
    sorted
}

/// The difference of two models' logloss on the same trials, with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoglossChange {
    /// Challenger's minus champion's logloss per trial: below 0 is better.
    pub mean: f64,
    /// Standard error of the mean, from sums over hours: what happens within an hour is taken as
    /// dependent.
    pub standard_error: f64,
}

/// Compares `challenger` with `champion`, cell by cell; `hours[i]` is the hour of cell `i`, and
/// equal hours lie together.
pub(super) fn logloss_change(
    challenger: &[Scored],
    champion: &[Scored],
    hours: &[i64],
) -> LoglossChange {
    let trials: f64 = challenger.iter().map(|s| s.trials).sum();
    if trials <= 0.0 {
        return LoglossChange { mean: 0.0, standard_error: 0.0 };
    }
    let cells: Vec<(i64, f64, f64)> = hours
        .iter()
        .zip(challenger.iter().zip(champion))
        .map(|(hour, (new, old))| (*hour, loss(new) - loss(old), new.trials))
        .collect();
    let mean = cells.iter().map(|(_, difference, _)| difference).sum::<f64>() / trials;
    let squares: Vec<f64> = cells
        .chunk_by(|a, b| a.0 == b.0)
        .map(|hour| hour.iter().map(|(_, d, trials)| d - mean * trials).sum::<f64>().powi(2))
        .collect();
    // The usual correction for the mean that was taken from the same hours.
    let correction = squares.len() as f64 / (squares.len() as f64 - 1.0).max(1.0);
    let standard_error = (correction * squares.iter().sum::<f64>()).sqrt() / trials;
    LoglossChange { mean, standard_error }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every trial by itself: (probability, came true).
    fn expand(scored: &[Scored]) -> Vec<(f64, bool)> {
        let mut single = Vec::new();
        for s in scored {
            for at in 0..s.trials as usize {
                single.push((s.probability, at < s.events as usize));
            }
        }
        single
    }

    fn auc_by_pairs(single: &[(f64, bool)]) -> Option<f64> {
        let (mut wins, mut pairs) = (0.0, 0.0);
        for (high, _) in single.iter().filter(|(_, came_true)| *came_true) {
            for (low, _) in single.iter().filter(|(_, came_true)| !came_true) {
                pairs += 1.0;
                wins += match high.total_cmp(low) {
                    std::cmp::Ordering::Greater => 1.0,
                    std::cmp::Ordering::Equal => 0.5,
                    std::cmp::Ordering::Less => 0.0,
                };
            }
        }
        (pairs > 0.0).then(|| wins / pairs)
    }

    fn some_scored() -> impl Strategy<Value = Vec<Scored>> {
        let one = (1..20_u32, 0..6_u32, 0..6_u32).prop_map(|(level, others, events)| Scored {
            probability: f64::from(level) / 20.0,
            trials: f64::from(others + events),
            events: f64::from(events),
        });
        prop::collection::vec(one, 0..25)
    }

    fn close(a: Option<f64>, b: Option<f64>) -> bool {
        match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-9,
            (a, b) => a == b,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn measures_equal_those_of_single_trials(scored in some_scored()) {
            let single = expand(&scored);
            prop_assert!(close(auc(&scored), auc_by_pairs(&single)));
            let came_true = single.iter().filter(|(_, came_true)| *came_true).count() as f64;
            let predicted: f64 = single.iter().map(|(p, _)| p).sum();
            let expected = (came_true > 0.0).then(|| predicted / came_true);
            prop_assert!(close(pcoc(&scored), expected));
            let loss: f64 = single.iter().map(|(p, y)| -(if *y { *p } else { 1.0 - p }).ln()).sum();
            let expected = if single.is_empty() { 0.0 } else { loss / single.len() as f64 };
            prop_assert!(close(Some(logloss(&scored)), Some(expected)));
        }

        #[test]
        fn the_error_of_bins_is_at_least_the_error_of_the_sum(scored in some_scored()) {
            if let (Some(ece), Some(pcoc)) = (ece(&scored), pcoc(&scored)) {
                prop_assert!(ece + 1e-9 >= (pcoc - 1.0).abs());
            }
        }
    }

    #[test]
    fn a_bin_hides_nothing_that_a_sum_hides() {
        // Half promised twice too much and half promised nothing: the sum is right, the bins not.
        let cell = |probability, events| Scored { probability, trials: 100.0, events };
        let scored: Vec<Scored> =
            (0..10).map(|at| if at < 5 { cell(0.1, 20.0) } else { cell(0.3, 20.0) }).collect();
        assert!((pcoc(&scored).unwrap() - 1.0).abs() < 1e-12);
        assert!((ece(&scored).unwrap() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn the_change_knows_its_noise() {
        let cell = |probability, events| Scored { probability, trials: 10.0, events };
        let truth: Vec<f64> = (0..40).map(|at| f64::from(at % 4)).collect();
        let good: Vec<Scored> = truth.iter().map(|k| cell(0.15, *k)).collect();
        let bad: Vec<Scored> = truth.iter().map(|k| cell(0.5, *k)).collect();
        let hours: Vec<i64> = (0..40).collect();
        let change = logloss_change(&bad, &good, &hours);
        assert!((change.mean - (logloss(&bad) - logloss(&good))).abs() < 1e-12);
        assert!(change.mean > 5.0 * change.standard_error && change.standard_error > 0.0);
        let mirrored = logloss_change(&good, &bad, &hours);
        assert_eq!(mirrored.mean, -change.mean);
        let same = logloss_change(&good, &good, &hours);
        assert_eq!((same.mean, same.standard_error), (0.0, 0.0));
    }
}
