//! What learning found out, for people (`Display`) and for machines (serde), and the rule by which
//! a challenger is accepted.

use std::fmt;

use omnify_operators::model::{EventTime, Stats};
use serde::{Deserialize, Serialize};

use super::evaluate::{LoglossChange, Metrics};
use crate::model::Target;

/// PCOC a model may have on held-out data.
pub const PCOC_RANGE: (f64, f64) = (0.8, 1.25);

/// Standard errors by which a challenger's logloss may lie above the champion's: the one-sided 5 %
/// quantile of a normal distribution.
pub const LOGLOSS_SIGMAS: f64 = 1.645;

/// The outcome of learning. Held-out figures are those of the shipped weights and calibration on
/// the newest data, which none of them has seen, with rates as they stood before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Whether the challenger should replace the champion.
    pub accept: bool,
    /// Why.
    pub reason: String,
    /// Version of the challenger, 16 hex digits.
    pub model_version: String,
    /// Version of the champion; `None` when it was compared with entity rates alone.
    pub champion_version: Option<String>,
    /// Number of cells used.
    pub cells: usize,
    /// Start of the data in event time.
    pub from: EventTime,
    /// End of the data, exclusive.
    pub until: EventTime,
    /// Sums of the data.
    pub total: Stats,
    /// Clicks per impression.
    pub click: TargetReport,
    /// Conversions per click; `None` when there was too little (see `notes`).
    pub conversion: Option<TargetReport>,
    /// What a reader should know of the data.
    pub notes: Vec<String>,
}

/// One target's part of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetReport {
    /// The target.
    pub target: Target,
    /// What weights were learned from.
    pub train: Stretch,
    /// What calibration was learned from.
    pub calibration: Stretch,
    /// What the metrics below were measured on.
    pub held_out: Stretch,
    /// The new model.
    pub challenger: Metrics,
    /// The current model, on the same rates; `None` without one.
    pub champion: Option<Metrics>,
    /// The entity rates alone, without weights or calibration.
    pub baseline: Metrics,
    /// Challenger against champion, or against the baseline without one.
    pub change: LoglossChange,
    /// Standard deviation that PCOC has by chance alone: 1/√events.
    pub pcoc_noise: f64,
}

/// One stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stretch {
    /// Start of the first hour.
    pub from: EventTime,
    /// End of the last hour, exclusive.
    pub until: EventTime,
    /// Impressions, or clicks.
    pub trials: f64,
    /// Clicks, or conversions.
    pub events: f64,
    /// Events that found no trial to be booked on, in this stretch or before; they are left out.
    pub unbooked: f64,
}

impl TargetReport {
    /// Why the challenger must not replace the champion as far as this target goes, if so: its
    /// logloss is above the champion's by more than [`LOGLOSS_SIGMAS`] standard errors, or its
    /// PCOC is outside [`PCOC_RANGE`] by more than two standard deviations of chance.
    pub fn objection(&self) -> Option<String> {
        let name = self.target.name();
        let LoglossChange { mean, standard_error } = self.change;
        let rival = if self.champion.is_some() { "the champion" } else { "entity rates alone" };
        if mean > LOGLOSS_SIGMAS * standard_error {
            return Some(format!(
                "{name} logloss is above that of {rival} by {mean:.2e} ± {standard_error:.1e}"
            ));
        }
        let slack = 2.0 * self.pcoc_noise;
        match self.challenger.pcoc {
            Some(pcoc) if pcoc < PCOC_RANGE.0 - slack || pcoc > PCOC_RANGE.1 + slack => {
                Some(format!(
                    "{name} PCOC is {pcoc:.3}, outside {} to {} by more than chance (± {slack:.3})",
                    PCOC_RANGE.0, PCOC_RANGE.1
                ))
            }
            _ => None,
        }
    }
}

/// The verdict over all targets.
pub(super) fn verdict(targets: &[&TargetReport]) -> (bool, String) {
    let objections: Vec<String> = targets.iter().filter_map(|t| t.objection()).collect();
    if objections.is_empty() {
        let rule = "logloss is not above the rival's beyond noise, and PCOC is in range";
        return (true, format!("{rule}, on held-out data"));
    }
    (false, objections.join("; "))
}

fn instant(time: EventTime) -> String {
    match jiff::Timestamp::from_microsecond(time) {
        Ok(instant) => instant.to_string(),
        Err(_) => format!("{time} µs"),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.accept { "accepted" } else { "rejected" };
        writeln!(f, "model {} {verdict}: {}", self.model_version, self.reason)?;
        writeln!(
            f,
            "learned from {} to {}: {} cells, {} impressions, {} clicks, {} conversions",
            instant(self.from),
            instant(self.until),
            self.cells,
            self.total.impressions,
            self.total.clicks,
            self.total.conversions,
        )?;
        for target in [Some(&self.click), self.conversion.as_ref()].into_iter().flatten() {
            target.fmt(f)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}

impl fmt::Display for TargetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held_out = &self.held_out;
        writeln!(
            f,
            "\n{:<22}{:>9}{:>12}{:>9}{:>9}",
            format!("{}, held out", self.target.name()),
            "AUC",
            "logloss",
            "PCOC",
            "ECE"
        )?;
        let rows = [
            ("challenger", Some(self.challenger)),
            ("champion", self.champion),
            ("entity rates alone", Some(self.baseline)),
        ];
        for (name, metrics) in rows {
            let Some(metrics) = metrics else { continue };
            let number = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.4}"));
            writeln!(
                f,
                "  {name:<20}{:>9}{:>12.6}{:>9}{:>9}",
                number(metrics.auc),
                metrics.logloss,
                number(metrics.pcoc),
                number(metrics.ece)
            )?;
        }
        let LoglossChange { mean, standard_error } = self.change;
        writeln!(
            f,
            "  {} events in {} trials since {}; logloss change {mean:+.2e} ± {standard_error:.1e}",
            held_out.events,
            held_out.trials,
            instant(held_out.from),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(mean: f64, pcoc: f64, events: f64) -> TargetReport {
        let metrics = Metrics { auc: Some(0.7), logloss: 0.1, pcoc: Some(pcoc), ece: Some(0.1) };
        TargetReport {
            target: Target::Click,
            train: Stretch::default(),
            calibration: Stretch::default(),
            held_out: Stretch { events, ..Stretch::default() },
            challenger: metrics,
            champion: None,
            baseline: metrics,
            change: LoglossChange { mean, standard_error: 1e-4 },
            pcoc_noise: 1.0 / events.sqrt(),
        }
    }

    #[test]
    fn the_rule_of_acceptance() {
        for (mean, pcoc, events, accepted) in [
            (-1e-3, 1.0, 1e4, true),
            (1.6e-4, 1.0, 1e4, true),
            (1.7e-4, 1.0, 1e4, false),
            (0.0, 1.26, 1e4, true),
            (0.0, 1.28, 1e4, false),
            (0.0, 0.77, 1e4, false),
            (0.0, 1.4, 100.0, true),
        ] {
            let report = target(mean, pcoc, events);
            let (accept, reason) = verdict(&[&report]);
            assert_eq!(accept, accepted, "{mean} {pcoc} {events}: {reason}");
        }
        let (accept, reason) = verdict(&[&target(0.0, 1.0, 1e4), &target(1.0, 1.0, 1e4)]);
        assert!(!accept && reason.contains("logloss"), "one bad target is enough");
    }
}
