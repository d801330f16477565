//! What is learned from: hourly cells, ordered, cleaned, and cut into three stretches of time.
//!
//! Events carry no join between an impression and its click, so the unit is an aggregate: what
//! happened on one creative in one hour. Cells are put in order before anything else, so their
//! order of arrival never matters.

use std::collections::BTreeMap;
use std::ops::Range;

use omnify_operators::model::{EntityKey, EventTime, HOUR_US, Level, Stats};

use super::LearnError;
use super::hierarchy::{Hierarchy, Node};
use crate::model::{Context, Target, hour_of_week};

/// What happened on one creative in one hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The creative.
    pub key: EntityKey,
    /// Start of the hour, UTC.
    pub hour: EventTime,
    /// [`crate::model::frequency_bucket`] of the audience, if known.
    pub frequency_bucket: Option<u8>,
    /// Sums over the hour.
    pub stats: Stats,
}

impl Cell {
    fn context(&self) -> Context<'_> {
        Context {
            key: &self.key,
            hour_of_week: hour_of_week(self.hour),
            frequency_bucket: self.frequency_bucket,
        }
    }
}

/// Adds deltas up into hourly cells. Holds at most a stated number of cells: beyond it the oldest
/// hours are let go, and the result is the same in whatever order the deltas came.
#[derive(Debug)]
pub struct CellBuilder {
    cells: BTreeMap<(EventTime, EntityKey, Option<u8>), Stats>,
    cells_max: usize,
    /// Start of the latest hour let go; nothing up to it is taken in any more.
    floor: Option<EventTime>,
}

impl CellBuilder {
    /// The default bound: a million cells, of about 200 bytes each.
    pub const CELLS_MAX: usize = 1_000_000;

    /// An empty builder that holds at most `cells_max` cells.
    pub fn new(cells_max: usize) -> CellBuilder {
        CellBuilder { cells: BTreeMap::new(), cells_max, floor: None }
    }

    /// Adds a delta of a creative at an event time.
    pub fn add(&mut self, key: &EntityKey, time: EventTime, delta: Stats) {
        self.add_at_frequency(key, time, None, delta);
    }

    /// Adds a delta whose audience's frequency bucket is known.
    pub fn add_at_frequency(
        &mut self,
        key: &EntityKey,
        time: EventTime,
        frequency_bucket: Option<u8>,
        delta: Stats,
    ) {
        let hour = start_of_hour(time);
        if self.floor.is_some_and(|floor| hour <= floor) {
            return;
        }
        *self.cells.entry((hour, key.clone(), frequency_bucket)).or_default() += delta;
        while self.cells.len() > self.cells_max {
            let Some(((oldest, ..), _)) = self.cells.pop_first() else { return };
            while self.cells.first_key_value().is_some_and(|((hour, ..), _)| *hour == oldest) {
                self.cells.pop_first();
            }
            self.floor = Some(oldest);
        }
    }

    /// Start of the latest hour that was let go to stay within the bound, if any was.
    pub fn dropped_until(&self) -> Option<EventTime> {
        self.floor
    }

    /// The cells, by hour and key.
    pub fn finish(self) -> Vec<Cell> {
        let cells = self.cells.into_iter();
        cells
            .map(|((hour, key, frequency_bucket), stats)| Cell {
                key,
                hour,
                frequency_bucket,
                stats,
            })
            .collect()
    }
}

impl Default for CellBuilder {
    fn default() -> CellBuilder {
        CellBuilder::new(CellBuilder::CELLS_MAX)
    }
}

fn start_of_hour(time: EventTime) -> EventTime {
    time.div_euclid(HOUR_US).saturating_mul(HOUR_US)
}

/// Cells in order, one per (hour, creative, frequency), without negative sums or empty cells.
pub(super) struct Dataset {
    pub(super) cells: Vec<Cell>,
    /// Their creatives and everything above.
    pub(super) hierarchy: Hierarchy,
    /// The creative of every cell.
    leaves: Vec<Node>,
    /// Sums over all cells.
    pub(super) total: Stats,
    /// Cells that had a negative sum, which was taken as zero.
    pub(super) negative_cells: u64,
}

impl Dataset {
    pub(super) fn new(cells: &[Cell]) -> Result<Dataset, LearnError> {
        let mut builder = CellBuilder::new(usize::MAX);
        for cell in cells {
            if cell.key.level() != Level::Creative {
                return Err(LearnError::NotACreative { key: cell.key.clone() });
            }
            builder.add_at_frequency(&cell.key, cell.hour, cell.frequency_bucket, cell.stats);
        }
        let mut cells = builder.finish();
        let (mut total, mut negative_cells) = (Stats::ZERO, 0);
        for cell in &mut cells {
            let Stats { impressions, clicks, conversions, .. } = &mut cell.stats;
            if *impressions < 0 || *clicks < 0 || *conversions < 0 {
                negative_cells += 1;
            }
            for count in [impressions, clicks, conversions] {
                *count = (*count).max(0);
            }
            total += cell.stats;
        }
        cells
            .retain(|cell| cell.stats.impressions + cell.stats.clicks + cell.stats.conversions > 0);
        let mut hierarchy = Hierarchy::default();
        let leaves = cells.iter().map(|cell| hierarchy.enter(&cell.key)).collect();
        Ok(Dataset { cells, hierarchy, leaves, total, negative_cells })
    }

    /// First hour's start and last hour's end.
    pub(super) fn span(&self) -> Range<EventTime> {
        match (self.cells.first(), self.cells.last()) {
            (Some(first), Some(last)) => first.hour..last.hour.saturating_add(HOUR_US),
            _ => 0..0,
        }
    }

    /// The observations of one target in the hours that end at or before `until`.
    pub(super) fn observations(&self, target: Target, until: EventTime) -> Vec<Observation<'_>> {
        let cells = self.cells.iter().zip(&self.leaves);
        cells
            .filter(|(cell, _)| cell.hour.saturating_add(HOUR_US) <= until)
            .map(|(cell, leaf)| {
                let Stats { impressions, clicks, conversions, .. } = cell.stats;
                let (trials, events) = match target {
                    Target::Click => (impressions, clicks),
                    Target::Conversion => (clicks, conversions),
                };
                let (trials, events) = (trials as f64, events as f64);
                Observation {
                    context: cell.context(),
                    leaf: *leaf,
                    hour: cell.hour,
                    trials,
                    events,
                    booked: 0.0,
                }
            })
            .filter(|observation| observation.trials + observation.events > 0.0)
            .collect()
    }
}

/// One cell as seen by one target: so many trials, so many events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation<'a> {
    pub(super) context: Context<'a>,
    /// The creative.
    pub(super) leaf: Node,
    pub(super) hour: EventTime,
    /// Impressions, or clicks.
    pub(super) trials: f64,
    /// Clicks, or conversions, that happened in the hour: there may be more than trials, because
    /// their trials may have been earlier.
    pub(super) events: f64,
    /// Events booked onto this hour's trials by [`book`]: never more than trials.
    pub(super) booked: f64,
}

/// Books every event onto a trial: onto the latest one of the same creative, in its own hour or
/// before, that has no event yet, within the stretch given. Returns how many found none.
pub(super) fn book(observations: &mut [Observation<'_>]) -> f64 {
    let mut spare: BTreeMap<Node, Vec<usize>> = BTreeMap::new();
    let mut unbooked = 0.0;
    for at in 0..observations.len() {
        let open = spare.entry(observations[at].leaf).or_default();
        open.push(at);
        let mut events = observations[at].events;
        while let Some(&latest) = open.last() {
            let onto = &mut observations[latest];
            let take = events.min(onto.trials - onto.booked);
            onto.booked += take;
            events -= take;
            if onto.booked < onto.trials {
                break;
            }
            open.pop();
        }
        unbooked += events;
    }
    unbooked
}

/// Observations cut by time into three stretches without overlap.
pub(super) struct Split<'o, 'a> {
    /// Weights and priors are fitted on the oldest.
    pub(super) train: &'o mut [Observation<'a>],
    /// Calibration on the next.
    pub(super) calibration: &'o mut [Observation<'a>],
    /// Everything is measured on the newest.
    pub(super) held_out: &'o mut [Observation<'a>],
}

impl<'o, 'a> Split<'o, 'a> {
    /// Cuts at the first hour before which the train share, and the train and calibration shares
    /// together, of all events lie. `None` when an hour is so large that a stretch would be left
    /// without trials or events.
    pub(super) fn new(
        observations: &'o mut [Observation<'a>],
        train_share: f64,
        calibration_share: f64,
    ) -> Option<Split<'o, 'a>> {
        let total: f64 = observations.iter().map(|observation| observation.events).sum();
        let cut = |share: f64| {
            let (mut events, mut hour) = (0.0, EventTime::MIN);
            observations.iter().position(|observation| {
                let new_hour = observation.hour > hour;
                let reached = new_hour && events >= share * total;
                hour = observation.hour;
                events += observation.events;
                reached
            })
        };
        let (first, second) = (cut(train_share)?, cut(train_share + calibration_share)?);
        let (train, rest) = observations.split_at_mut(first);
        let (calibration, held_out) = rest.split_at_mut(second - first);
        let usable = |stretch: &[Observation<'_>]| {
            stretch.iter().any(|observation| observation.trials > 0.0)
                && stretch.iter().any(|observation| observation.events > 0.0)
        };
        (usable(train) && usable(calibration) && usable(held_out)).then_some(Split {
            train,
            calibration,
            held_out,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(creative: u8) -> EntityKey {
        format!("t/p/a/c/g/k{creative}").parse().unwrap()
    }

    fn stats(impressions: i64, clicks: i64) -> Stats {
        Stats { impressions, clicks, ..Stats::ZERO }
    }

    fn build(deltas: &[(u8, i64, i64)], cells_max: usize) -> Vec<Cell> {
        let mut builder = CellBuilder::new(cells_max);
        for (creative, hour, impressions) in deltas {
            builder.add(&key(*creative), hour * HOUR_US + 17, stats(*impressions, 0));
        }
        builder.finish()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn cells_do_not_depend_on_the_order_of_deltas(
            deltas in prop::collection::vec((0..4_u8, -3..6_i64, 1..9_i64), 0..40),
            cells_max in 1..30_usize,
        ) {
            let forward = build(&deltas, cells_max);
            let mut reversed = deltas.clone();
            reversed.reverse();
            prop_assert_eq!(&forward, &build(&reversed, cells_max));
            let mut sorted = deltas.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&forward, &build(&sorted, cells_max));
            prop_assert!(forward.len() <= cells_max);
            // What is kept are whole hours, the newest ones.
            let all = build(&deltas, usize::MAX);
            prop_assert!(all.ends_with(&forward));
        }

        #[test]
        fn booking_conserves_events(
            counts in prop::collection::vec((0..3_u8, 0..5_i64, 0..5_i64), 0..30),
        ) {
            let keys: Vec<EntityKey> = (0..3).map(key).collect();
            let mut observations: Vec<Observation<'_>> = counts
                .iter()
                .zip(0..)
                .map(|((creative, trials, events), hour)| Observation {
                    context: Context::at(&keys[usize::from(*creative)], 0, None),
                    leaf: usize::from(*creative),
                    hour: hour * HOUR_US,
                    trials: *trials as f64,
                    events: *events as f64,
                    booked: 0.0,
                })
                .collect();
            let unbooked = book(&mut observations);
            let sum = |of: fn(&Observation<'_>) -> f64| observations.iter().map(of).sum::<f64>();
            prop_assert_eq!(sum(|o| o.events), sum(|o| o.booked) + unbooked);
            prop_assert!(observations.iter().all(|o| o.booked <= o.trials));
        }
    }

    #[test]
    fn events_go_to_the_latest_free_trials() {
        let key = key(0);
        let observation = |hour, trials, events| Observation {
            context: Context::at(&key, 0, None),
            leaf: 0,
            hour,
            trials,
            events,
            booked: 0.0,
        };
        let mut observations = [
            observation(0, 2.0, 0.0),
            observation(1, 2.0, 1.0),
            observation(2, 0.0, 2.0),
            observation(3, 1.0, 3.0),
        ];
        let unbooked = book(&mut observations);
        assert_eq!(observations.map(|o| o.booked), [2.0, 2.0, 0.0, 1.0]);
        assert_eq!(unbooked, 1.0);
    }

    #[test]
    fn the_cuts_lie_between_hours() {
        let key = key(0);
        let observation = |hour| Observation {
            context: Context::at(&key, 0, None),
            leaf: 0,
            hour,
            trials: 10.0,
            events: 1.0,
            booked: 0.0,
        };
        let mut observations: Vec<_> = (0..20).map(|at| observation(at / 2)).collect();
        let split = Split::new(&mut observations, 0.7, 0.1).unwrap();
        assert_eq!([split.train.len(), split.calibration.len(), split.held_out.len()], [14, 2, 4]);
        assert_eq!(split.calibration[0].hour, 7);
        let mut two_hours: Vec<_> = (0..20).map(|at| observation(at / 10)).collect();
        assert!(Split::new(&mut two_hours, 0.7, 0.1).is_none());
    }

    #[test]
    fn negative_sums_count_as_zero_and_are_told() {
        let cell = |creative, impressions, clicks| Cell {
            key: key(creative),
            hour: 0,
            frequency_bucket: None,
            stats: stats(impressions, clicks),
        };
        let dataset = Dataset::new(&[cell(0, 5, -1), cell(1, 0, 0), cell(0, 2, 0)]).unwrap();
        assert_eq!((dataset.cells.len(), dataset.negative_cells), (1, 1));
        assert_eq!(dataset.total, stats(7, 0));
    }
}
