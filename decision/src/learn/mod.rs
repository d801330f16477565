//! Learning the click and conversion model from hourly cells, and judging it.
//!
//! # Contract
//! [`learn`] is a pure function: the same cells, in whatever order, with the same champion and
//! options give the same model and the same report, bit for bit. Time is cut into three stretches
//! and nothing flows backwards between them: weights and the strength of priors come from the
//! oldest, calibration from the next, and every figure of the report is measured on the newest.
//! Within the oldest, a cell's rate is asked before its hour is added. Afterwards only the rates
//! go on to the end of the data; weights and calibration ship as they were measured.
//!
//! Conversions come late. Those of clicks younger than
//! [`LearnOptions::conversion_maturity_hours`] at the end of the data are not complete, so these
//! hours are left out of everything that concerns conversions.
//!
//! # What this module never does
//! It reads no file and no clock, and replaces no model: it says whether one should be.

mod dataset;
mod evaluate;
mod fit;
mod hierarchy;
mod rates;
mod report;
#[cfg(test)]
mod tests;

use omnify_operators::model::{EntityKey, EventTime, HOUR_US};
use serde::{Deserialize, Serialize};

pub use dataset::{Cell, CellBuilder};
pub use evaluate::{LoglossChange, Metrics, Scored, auc, ece, logloss, pcoc};
pub use report::{LOGLOSS_SIGMAS, PCOC_RANGE, Report, Stretch, TargetReport};

use dataset::{Dataset, Observation, Split, book};
use fit::{Example, FtrlOptions, Outcome};
use rates::{RateLedger, Shapes};

use crate::model::{
    ClickModel, Head, RateTable, Rates, SLOT_BITS_MAX, Target, active_slots, logit,
};

/// Share of the training events that feed only the rates, before weights are learned: until then
/// a rate says more about how short the history is than about the entity.
const WARM_UP_SHARE: f64 = 0.1;

/// How to learn. The defaults suit weeks of history of up to some thousand creatives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LearnOptions {
    /// Weights per target, as a power of two: 4 to 16.
    pub slot_bits: u8,
    /// Share of the events, oldest first, from which weights are learned.
    pub train_share: f64,
    /// Share of the events after those, from which calibration is learned. The rest is held out.
    pub calibration_share: f64,
    /// Hours in which an entity's past counts lose half their weight.
    pub rate_half_life_hours: f64,
    /// Age in hours from which the conversions of an hour are taken as complete.
    pub conversion_maturity_hours: u32,
    /// Fewest clicks to learn from.
    pub clicks_min: u64,
    /// Fewest mature conversions to learn a conversion model from; with fewer, conversion rates
    /// are entity rates alone.
    pub conversions_min: u64,
    /// Passes of FTRL over the training data, at most: fewer are made over millions of cells.
    pub passes: u32,
    /// First step of FTRL on a weight, in logits.
    pub learning_rate: f64,
    /// Standard deviation of a weight expected beforehand, in logits: smaller learns less.
    pub prior_sd: f64,
    /// L1 threshold of FTRL: weights with less evidence are exactly zero. 0 to 1.
    pub l1: f64,
}

impl Default for LearnOptions {
    fn default() -> LearnOptions {
        LearnOptions {
            slot_bits: 12,
            train_share: 0.6,
            calibration_share: 0.2,
            rate_half_life_hours: 7.0 * 24.0,
            conversion_maturity_hours: 72,
            clicks_min: 200,
            conversions_min: 100,
            passes: 8,
            learning_rate: 0.05,
            prior_sd: 0.2,
            l1: 0.1,
        }
    }
}

impl LearnOptions {
    fn check(&self) -> Result<(), LearnError> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let rules = [
            ("slot_bits", (4..=SLOT_BITS_MAX).contains(&self.slot_bits), "within 4 to 16"),
            ("train_share", positive(self.train_share), "above 0"),
            ("calibration_share", positive(self.calibration_share), "above 0"),
            (
                "train_share",
                self.train_share + self.calibration_share < 0.99,
                "with calibration_share below 0.99, so that something is held out",
            ),
            ("rate_half_life_hours", positive(self.rate_half_life_hours), "above 0"),
            ("passes", (1..=100).contains(&self.passes), "within 1 to 100"),
            ("learning_rate", positive(self.learning_rate), "above 0"),
            ("prior_sd", positive(self.prior_sd), "above 0"),
            ("l1", (0.0..=1.0).contains(&self.l1), "within 0 to 1"),
        ];
        match rules.iter().find(|(_, holds, _)| !holds) {
            Some((option, _, must)) => Err(LearnError::Option { option, must }),
            None => Ok(()),
        }
    }
}

/// Why nothing was learned.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// An option has a value that cannot work.
    #[error("learn: option `{option}` must be {must}; change it and learn again")]
    Option {
        /// The option.
        option: &'static str,
        /// What it must be.
        must: &'static str,
    },
    /// A cell is not about a creative. Parents hold their children's sums and would count twice.
    #[error("learn: cell of `{key}`, which is not a creative; hand in cells of creatives only")]
    NotACreative {
        /// The key.
        key: EntityKey,
    },
    /// Too few clicks for a model worth having.
    #[error(
        "learn: {have} clicks in the history, {need} are needed; let the engine run longer, learn from a longer stretch of history, or lower `clicks_min`"
    )]
    TooFewClicks {
        /// Clicks there are.
        have: u64,
        /// Clicks needed.
        need: u64,
    },
    /// Clicks lie in too few hours to be cut into train, calibration and held-out stretches.
    #[error(
        "learn: the clicks lie in {hours} hours, which cannot be cut into train, calibration and held-out stretches that all hold some; learn from a longer stretch of history"
    )]
    TooShort {
        /// Distinct hours with data.
        hours: usize,
    },
    /// linfa refused its parameters.
    #[error("learn: FTRL: {0}; change the learning options")]
    Ftrl(#[from] linfa_ftrl::FtrlError),
}

/// Learns a model from `cells` and compares it on held-out data with `champion`, the model in use,
/// or with entity rates alone when there is none. The champion is given the same entity rates as
/// the challenger, so that what is compared is what was learned and not whose data is newer.
///
/// The model is returned whether or not it is accepted: see [`Report::accept`].
pub fn learn(
    cells: &[Cell],
    champion: Option<&ClickModel>,
    options: &LearnOptions,
) -> Result<(ClickModel, Report), LearnError> {
    options.check()?;
    let data = Dataset::new(cells)?;
    let clicks = data.total.clicks.unsigned_abs();
    let need = options.clicks_min.max(1);
    if clicks < need {
        return Err(LearnError::TooFewClicks { have: clicks, need });
    }
    let span = data.span();
    let learner = Learner { data: &data, champion, options };
    let mut notes = data_notes(&data);
    let mut observations = data.observations(Target::Click, span.end);
    let Some(click) = learner.fit(Target::Click, &mut observations)? else {
        return Err(LearnError::TooShort { hours: hours(&data) });
    };
    let (conversion_head, conversion_ledger, conversion) = learner.conversion(&mut notes)?;
    let rates = learner.rate_table(&click.ledger, &conversion_ledger);
    let model = ClickModel::new(options.slot_bits, span.end, rates, click.head, conversion_head);
    let targets: Vec<&TargetReport> = [&click.report].into_iter().chain(&conversion).collect();
    let (accept, reason) = report::verdict(&targets);
    let report = Report {
        accept,
        reason,
        model_version: format!("{:016x}", model.version()),
        champion_version: champion.map(|champion| format!("{:016x}", champion.version())),
        cells: data.cells.len(),
        from: span.start,
        until: span.end,
        total: data.total,
        click: click.report,
        conversion,
        notes,
    };
    Ok((model, report))
}

fn hours(data: &Dataset) -> usize {
    data.cells.chunk_by(|a, b| a.hour == b.hour).count()
}

fn data_notes(data: &Dataset) -> Vec<String> {
    let mut notes = Vec::new();
    if data.negative_cells > 0 {
        notes.push(format!(
            "{} cells had a negative sum (a restatement without its first report?), taken as zero",
            data.negative_cells
        ));
    }
    notes
}

/// What the fits of both targets share.
struct Learner<'l> {
    data: &'l Dataset,
    champion: Option<&'l ClickModel>,
    options: &'l LearnOptions,
}

/// What one target came to.
struct Fitted<'l> {
    head: Head,
    /// Counts up to the end of what the target may use.
    ledger: RateLedger<'l>,
    report: TargetReport,
}

impl<'l> Learner<'l> {
    /// Fits, calibrates and measures one target; `None` when time cannot be cut into three.
    fn fit(
        &self,
        target: Target,
        observations: &mut [Observation<'_>],
    ) -> Result<Option<Fitted<'l>>, LearnError> {
        let options = self.options;
        let split = Split::new(observations, options.train_share, options.calibration_share);
        let Some(Split { train, calibration, held_out }) = split else { return Ok(None) };
        let stretches = [&mut *train, &mut *calibration, &mut *held_out].map(booked_stretch);
        let mut ledger = self.ledger(target, train);

        let examples = examples(&mut ledger, train, options.slot_bits);
        let ftrl = FtrlOptions {
            passes: options.passes,
            learning_rate: options.learning_rate,
            prior_sd: options.prior_sd,
            l1: options.l1,
        };
        let mut head = Head::neutral(options.slot_bits);
        head.weights = fit::fit_weights(&examples, options.slot_bits, &ftrl)?;

        let ahead = Ahead::new(&mut ledger, calibration);
        head.calibration = fit::fit_calibration(&ahead.outcomes(&head, options.slot_bits));

        let ahead = Ahead::new(&mut ledger, held_out);
        let challenger = ahead.score(&head, options.slot_bits);
        let baseline = ahead.score(&Head::neutral(options.slot_bits), options.slot_bits);
        let champion =
            self.champion.map(|champion| ahead.score(champion.head(target), champion.slot_bits()));
        let rival = champion.as_ref().unwrap_or(&baseline);
        let hours: Vec<EventTime> = held_out.iter().map(|observation| observation.hour).collect();
        let [train, calibration, held_out] = stretches;
        let report = TargetReport {
            target,
            train,
            calibration,
            held_out,
            challenger: Metrics::of(&challenger),
            champion: champion.as_deref().map(Metrics::of),
            baseline: Metrics::of(&baseline),
            change: evaluate::logloss_change(&challenger, rival, &hours),
            pcoc_noise: 1.0 / held_out.events.max(1.0).sqrt(),
        };
        Ok(Some(Fitted { head, ledger, report }))
    }

    /// The conversion head, the ledger of conversion rates, and the report if there were
    /// conversions enough to learn more than rates.
    fn conversion(
        &self,
        notes: &mut Vec<String>,
    ) -> Result<(Head, RateLedger<'l>, Option<TargetReport>), LearnError> {
        let (end, maturity_hours) = (self.data.span().end, self.options.conversion_maturity_hours);
        let mature_until = end.saturating_sub(i64::from(maturity_hours) * HOUR_US);
        let mut observations = self.data.observations(Target::Conversion, mature_until);
        let have: f64 = observations.iter().map(|observation| observation.events).sum();
        let need = self.options.conversions_min.max(1);
        if have >= need as f64
            && let Some(fitted) = self.fit(Target::Conversion, &mut observations)?
        {
            return Ok((fitted.head, fitted.ledger, Some(fitted.report)));
        }
        notes.push(format!(
            "{have} conversions on hours older than {maturity_hours} h, {need} are needed in enough \
             hours: conversion rates are entity rates alone"
        ));
        if observations.is_empty() {
            observations = self.data.observations(Target::Conversion, end);
            notes.push(format!(
                "no click is older than {maturity_hours} h: conversion rates rest on clicks that \
                 may still convert, and are low"
            ));
        }
        let mut ledger = self.ledger(Target::Conversion, &observations);
        observations.iter().for_each(|observation| ledger.add(observation));
        Ok((Head::neutral(self.options.slot_bits), ledger, None))
    }

    /// An empty ledger whose priors come from `observations`.
    fn ledger(&self, target: Target, observations: &[Observation<'_>]) -> RateLedger<'l> {
        let shapes = Shapes::estimate(&self.data.hierarchy, observations);
        let half_life_hours = self.options.rate_half_life_hours;
        RateLedger::new(&self.data.hierarchy, target, shapes, half_life_hours)
    }

    /// Every entity's rates at the end of the data.
    fn rate_table(&self, click: &RateLedger<'_>, conversion: &RateLedger<'_>) -> RateTable {
        let end = self.data.span().end;
        let overall =
            Rates { click: click.overall_rate(end), conversion: conversion.overall_rate(end) };
        let entities = self.data.hierarchy.iter().map(|(key, node)| {
            let rates =
                Rates { click: click.rate(node, end), conversion: conversion.rate(node, end) };
            (key.as_str().into(), rates)
        });
        RateTable { overall, by_path: entities.collect() }
    }
}

/// Books the events of a stretch and says what it holds.
fn booked_stretch(observations: &mut [Observation<'_>]) -> Stretch {
    let unbooked = book(observations);
    let hour = |observation: Option<&Observation<'_>>| observation.map_or(0, |o| o.hour);
    Stretch {
        from: hour(observations.first()),
        until: hour(observations.last()).saturating_add(HOUR_US),
        trials: observations.iter().map(|observation| observation.trials).sum(),
        events: observations.iter().map(|observation| observation.booked).sum(),
        unbooked,
    }
}

/// Training examples with rates as of just before each hour. The ledger ends with all of
/// `observations` added. The first [`WARM_UP_SHARE`] of the events gives no examples.
fn examples(
    ledger: &mut RateLedger<'_>,
    observations: &[Observation<'_>],
    slot_bits: u8,
) -> Vec<Example> {
    let events: f64 = observations.iter().map(|observation| observation.booked).sum();
    let (mut before, mut examples) = (0.0, Vec::with_capacity(observations.len()));
    for hour in observations.chunk_by(|a, b| a.hour == b.hour) {
        let usable = hour.iter().filter(|o| o.trials > 0.0 && before >= WARM_UP_SHARE * events);
        examples.extend(usable.map(|observation| Example {
            slots: active_slots(&observation.context, slot_bits),
            offset: logit(ledger.rate(observation.leaf, observation.hour)),
            trials: observation.trials,
            events: observation.booked,
        }));
        for observation in hour {
            ledger.add(observation);
            before += observation.booked;
        }
    }
    examples
}

/// A stretch seen from its beginning, as a shipped model sees the time after it: with the rates as
/// they stood then.
struct Ahead<'o, 'a> {
    observations: &'o [Observation<'a>],
    offsets: Vec<f64>,
}

impl<'o, 'a> Ahead<'o, 'a> {
    /// Asks the ledger at the beginning of `observations`, and then adds them to it.
    fn new(ledger: &mut RateLedger<'_>, observations: &'o [Observation<'a>]) -> Ahead<'o, 'a> {
        let start = observations.first().map_or(0, |observation| observation.hour);
        let offsets = observations.iter().map(|o| logit(ledger.rate(o.leaf, start))).collect();
        observations.iter().for_each(|observation| ledger.add(observation));
        Ahead { observations, offsets }
    }

    /// Logits before calibration.
    fn outcomes(&self, head: &Head, slot_bits: u8) -> Vec<Outcome> {
        let cells = self.observations.iter().zip(&self.offsets);
        cells
            .map(|(observation, offset)| {
                let slots = active_slots(&observation.context, slot_bits);
                Outcome {
                    logit: offset + head.context_logit(&slots),
                    trials: observation.trials,
                    events: observation.booked,
                }
            })
            .collect()
    }

    /// Calibrated predictions.
    fn score(&self, head: &Head, slot_bits: u8) -> Vec<Scored> {
        let outcomes = self.outcomes(head, slot_bits).into_iter();
        outcomes
            .map(|Outcome { logit, trials, events }| Scored {
                probability: head.calibration.apply(logit),
                trials,
                events,
            })
            .collect()
    }
}
