//! Fitting the weights with linfa's FTRL-proximal, and the calibration.
//!
//! linfa's FTRL takes dense rows, no offsets and no row weights, and draws its start at random.
//! All of it is bridged through its own interface, without approximation:
//!
//! - a cell of `n` trials with `k` events becomes at most two rows, features times `n − k` with
//!   target false and features times `k` with target true: the gradient, (p − y)·x, is then that
//!   of the `n` single trials, so no negative has to be left out and no intercept corrected;
//! - the probabilities are computed here, with the offset, and handed to [`Ftrl::update`], which
//!   is meant for predictions made earlier;
//! - only the slots that occur become columns, and rows go in blocks of bounded size;
//! - the random start is drawn from a generator of zeros: weights start at zero.
//!
//! Prior: features are scaled by `s = prior_sd / √passes`, so that linfa's L2 ratio of one stands
//! for a normal prior with that standard deviation on every weight, however many passes are made.

use linfa::dataset::Pr;
use linfa::{DatasetBase, ParamGuard};
use linfa_ftrl::{Ftrl, FtrlError};
use ndarray::{Array1, Array2};
use rand::rngs::mock::StepRng;

use crate::model::{Calibration, Slots, sigmoid};

/// Cells per step of FTRL.
const STEP_CELLS: usize = 32;

/// Cells visited at most: with more examples than that divided by the passes, fewer passes are
/// made, and at least one. It bounds the time of learning, and so many cells need no second look.
const VISITS_MAX: usize = 2_000_000;

/// One cell ready for fitting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Example {
    pub(super) slots: Slots,
    /// Logit of the empirical-Bayes rate.
    pub(super) offset: f64,
    pub(super) trials: f64,
    /// At most `trials`.
    pub(super) events: f64,
}

/// How FTRL is run.
#[derive(Clone, Copy, Debug)]
pub(super) struct FtrlOptions {
    /// Passes over the examples, at most.
    pub(super) passes: u32,
    pub(super) learning_rate: f64,
    pub(super) prior_sd: f64,
    pub(super) l1: f64,
}

/// Learns one weight per slot from examples in the order given.
pub(super) fn fit_weights(
    examples: &[Example],
    slot_bits: u8,
    options: &FtrlOptions,
) -> Result<Vec<f64>, FtrlError> {
    let mut weights = vec![0.0; 1 << slot_bits];
    let slots = active_columns(examples, weights.len());
    if slots.is_empty() {
        return Ok(weights);
    }
    let mut column_of = vec![0; weights.len()];
    for (column, slot) in slots.iter().enumerate() {
        column_of[*slot] = column;
    }
    let passes = options.passes.min((VISITS_MAX / examples.len()).max(1) as u32);
    let scale = options.prior_sd / f64::from(passes).sqrt();
    let params = Ftrl::<f64>::params_with_rng(StepRng::new(0, 0))
        // A first step of `learning_rate` in the units of the weights.
        .alpha(options.learning_rate / scale)
        .beta(1.0)
        .l1_ratio(options.l1)
        .l2_ratio(1.0)
        .check()?;
    let mut ftrl = Ftrl::new(params, slots.len());
    for _ in 0..passes {
        for step in examples.chunks(STEP_CELLS) {
            let (rows, probabilities) = step_rows(step, &column_of, &ftrl.get_weights(), scale);
            ftrl.update(&rows, probabilities.view());
        }
    }
    for (slot, weight) in slots.iter().zip(ftrl.get_weights()) {
        weights[*slot] = scale * weight;
    }
    Ok(weights)
}

/// The slots that occur, in order.
fn active_columns(examples: &[Example], slots: usize) -> Vec<usize> {
    let mut occurs = vec![false; slots];
    for slot in examples.iter().flat_map(|example| example.slots.iter()) {
        occurs[slot] = true;
    }
    (0..slots).filter(|slot| occurs[*slot]).collect()
}

type Rows = DatasetBase<Array2<f64>, Array1<bool>>;

/// The rows of one step with the probability of each under `weights`.
fn step_rows(
    step: &[Example],
    column_of: &[usize],
    weights: &Array1<f64>,
    scale: f64,
) -> (Rows, Array1<Pr>) {
    let rows = step.iter().flat_map(|example| {
        let sides = [(example.trials - example.events, false), (example.events, true)];
        sides.into_iter().filter(|(count, _)| *count > 0.0).map(move |side| (example, side))
    });
    let count = rows.clone().count();
    let mut records = Array2::zeros((count, weights.len()));
    let mut targets = Array1::from_elem(count, false);
    let mut probabilities = Array1::from_elem(count, Pr::even());
    for (row, (example, (count, target))) in rows.enumerate() {
        let mut context = 0.0;
        for slot in example.slots.iter() {
            let column = column_of[slot];
            records[[row, column]] += scale * count;
            context += scale * weights[column];
        }
        targets[row] = target;
        // A sigmoid is within 0..=1, which is what `new` asks for.
        probabilities[row] = Pr::new(sigmoid(example.offset + context) as f32);
    }
    (DatasetBase::new(records, targets), probabilities)
}

/// A predicted logit and what came of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) logit: f64,
    pub(super) trials: f64,
    pub(super) events: f64,
}

/// Standard deviations of the prior of slope (around 1) and level (around 0): with few events the
/// calibration stays near the identity.
const SLOPE_SD: f64 = 0.25;
const LEVEL_SD: f64 = 1.0;

/// Two-parameter logistic calibration by Newton's method, with the prior above. Logits are centred
/// first, so that slope and level do not fight.
pub(super) fn fit_calibration(outcomes: &[Outcome]) -> Calibration {
    let trials: f64 = outcomes.iter().map(|outcome| outcome.trials).sum();
    if trials <= 0.0 {
        return Calibration::IDENTITY;
    }
    let centre =
        outcomes.iter().map(|outcome| outcome.trials * outcome.logit).sum::<f64>() / trials;
    let (mut slope, mut level) = (1.0, 0.0);
    for _ in 0..50 {
        // Gradient and Hessian of the penalised negative log-likelihood.
        let (mut g_slope, mut g_level) =
            ((slope - 1.0) / SLOPE_SD.powi(2), level / LEVEL_SD.powi(2));
        let (mut h_ss, mut h_sl, mut h_ll) = (SLOPE_SD.powi(-2), 0.0, LEVEL_SD.powi(-2));
        for outcome in outcomes {
            let x = outcome.logit - centre;
            let p = sigmoid(centre + slope * x + level);
            let (residual, weight) =
                (outcome.trials * p - outcome.events, outcome.trials * p * (1.0 - p));
            g_slope += residual * x;
            g_level += residual;
            h_ss += weight * x * x;
            h_sl += weight * x;
            h_ll += weight;
        }
        let determinant = h_ss * h_ll - h_sl * h_sl;
        // Steps are held to half a unit: the loss is convex, so short steps only take longer.
        let step_slope = ((h_ll * g_slope - h_sl * g_level) / determinant).clamp(-0.5, 0.5);
        let step_level = ((h_ss * g_level - h_sl * g_slope) / determinant).clamp(-0.5, 0.5);
        slope = (slope - step_slope).max(0.1);
        level -= step_level;
        if step_slope.abs().max(step_level.abs()) < 1e-10 {
            break;
        }
    }
    Calibration { slope, shift: centre * (1.0 - slope) + level }
}

#[cfg(test)]
mod tests {
    use omnify_operators::model::EntityKey;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_xoshiro::Xoshiro256PlusPlus;

    use super::*;
    use crate::model::{Context, active_slots, logit};

    const SLOT_BITS: u8 = 12;

    /// Cells of three creatives over a day, again and again, whose rate depends on both.
    fn examples(rounds: usize) -> Vec<Example> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(11);
        let mut examples = Vec::new();
        for (round, hour, creative) in (0..rounds).flat_map(|round| {
            (0..24).flat_map(move |hour| (0..3).map(move |creative| (round, hour, creative)))
        }) {
            let key: EntityKey = format!("t/p/a/c/g/k{creative}").parse().unwrap();
            let context = Context { key: &key, hour_of_week: hour, frequency_bucket: None };
            let day = if hour < 12 { 0.6 } else { -0.6 };
            let p = sigmoid(-3.0 + day + 0.3 * f64::from(creative));
            examples.push(Example {
                slots: active_slots(&context, SLOT_BITS),
                // The offset is wrong in its own way each time, which must not matter.
                offset: logit(0.04) + 0.01 * (round % 3) as f64,
                trials: 40.0,
                events: (0..40).filter(|_| rng.r#gen::<f64>() < p).count() as f64,
            });
        }
        examples
    }

    /// The slow reference: the same penalised likelihood by Newton steps, one weight at a time.
    fn optimum(examples: &[Example], prior_sd: f64) -> Vec<f64> {
        let mut weights = vec![0.0; 1 << SLOT_BITS];
        for _ in 0..100 {
            for slot in active_columns(examples, weights.len()) {
                let w: f64 = weights[slot];
                let (mut gradient, mut curvature) = (w / prior_sd.powi(2), prior_sd.powi(-2));
                for example in examples {
                    let x = example.slots.iter().filter(|other| *other == slot).count() as f64;
                    if x > 0.0 {
                        let p = probability(example, &weights);
                        gradient += x * (example.trials * p - example.events);
                        curvature += x * x * example.trials * p * (1.0 - p);
                    }
                }
                weights[slot] -= gradient / curvature;
            }
        }
        weights
    }

    fn probability(example: &Example, weights: &[f64]) -> f64 {
        sigmoid(example.offset + example.slots.iter().map(|slot| weights[slot]).sum::<f64>())
    }

    fn loss(examples: &[Example], weights: &[f64]) -> f64 {
        let loss = |example: &Example| {
            let p = probability(example, weights);
            -(example.events * p.ln() + (example.trials - example.events) * (1.0 - p).ln())
        };
        examples.iter().map(loss).sum()
    }

    #[test]
    fn ftrl_comes_close_to_the_penalised_optimum() {
        let examples = examples(20);
        let options = FtrlOptions { passes: 8, learning_rate: 0.05, prior_sd: 0.2, l1: 0.0 };
        let fitted = fit_weights(&examples, SLOT_BITS, &options).unwrap();
        let best = optimum(&examples, options.prior_sd);
        for example in &examples[..72] {
            let (found, optimal) = (probability(example, &fitted), probability(example, &best));
            assert!((found / optimal - 1.0).abs() < 0.1, "{found} where {optimal} is optimal");
        }
        let nothing = vec![0.0; fitted.len()];
        let (start, found, optimal) =
            (loss(&examples, &nothing), loss(&examples, &fitted), loss(&examples, &best));
        assert!(start - found > 0.98 * (start - optimal), "{start} -> {found}, optimum {optimal}");
    }

    #[test]
    fn without_evidence_weights_stay_zero() {
        let mut examples = examples(2);
        for example in &mut examples {
            example.offset = logit(0.05);
            example.events = 0.05 * example.trials;
        }
        let options = FtrlOptions { passes: 3, learning_rate: 0.05, prior_sd: 0.2, l1: 0.1 };
        let weights = fit_weights(&examples, SLOT_BITS, &options).unwrap();
        assert!(weights.iter().all(|weight| *weight == 0.0), "nothing random is in the start");
        assert!(fit_weights(&[], SLOT_BITS, &options).unwrap().iter().all(|w| *w == 0.0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Outcomes made by a known distortion are straightened by its inverse.
        #[test]
        fn calibration_recovers_a_distortion(slope in 0.7..1.4_f64, shift in -0.8..0.8_f64) {
            let outcomes: Vec<Outcome> = (0..200)
                .map(|at| {
                    let logit = -5.0 + 0.02 * f64::from(at);
                    let trials = 200_000.0;
                    Outcome { logit, trials, events: trials * sigmoid(slope * logit + shift) }
                })
                .collect();
            let found = fit_calibration(&outcomes);
            prop_assert!((found.slope - slope).abs() < 0.01, "{found:?}");
            prop_assert!((found.shift - shift).abs() < 0.03, "{found:?}");
        }

        /// Few outcomes, however wild, move it a little and never break it.
        #[test]
        fn calibration_is_finite(
            cells in prop::collection::vec((-20.0..20.0_f64, 0..50_u32, 0..50_u32), 0..6),
        ) {
            let outcomes: Vec<Outcome> = cells
                .iter()
                .map(|(logit, a, b)| Outcome {
                    logit: *logit,
                    trials: f64::from(*a.max(b)),
                    events: f64::from(*a.min(b)),
                })
                .collect();
            let Calibration { slope, shift } = fit_calibration(&outcomes);
            prop_assert!(slope.is_finite() && slope > 0.0 && shift.is_finite());
        }
    }

    #[test]
    fn without_events_to_speak_of_calibration_stays() {
        let outcome = Outcome { logit: -4.0, trials: 30.0, events: 1.0 };
        let Calibration { slope, shift } = fit_calibration(&[outcome]);
        assert!((slope - 1.0).abs() < 1e-9 && shift.abs() < 0.5, "{slope} {shift}");
        assert_eq!(fit_calibration(&[]), Calibration::IDENTITY);
    }
}
