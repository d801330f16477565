//! What a snapshot holds beside the operators' and the stage's state.

use std::collections::BTreeMap;
use std::sync::Arc;

use omnify_operators::model::{FeatureRow, Tick};
use omnify_sinks::journal::{BatchKey, Position};
use omnify_sinks::kafka::SelectorState;
use omnify_sinks::serve::{Counters, Watermarks};
use serde::{Deserialize, Serialize};

/// Where each partition of each source is to be read on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions(BTreeMap<(Arc<str>, i32), i64>);

impl From<Vec<Position>> for Positions {
    fn from(list: Vec<Position>) -> Positions {
        let mut positions = Positions::default();
        positions.advance(&list);
        positions
    }
}

impl Positions {
    /// The next offset to read; `None` where nothing was read yet.
    pub fn next(&self, source: &str, partition: i32) -> Option<i64> {
        self.0.get(&(Arc::from(source), partition)).copied()
    }

    /// Takes over what was read; a position never moves back.
    pub fn advance(&mut self, read: &[Position]) {
        for Position { source, partition, next } in read {
            let known = self.0.entry((source.clone(), *partition)).or_insert(*next);
            *known = (*known).max(*next);
        }
    }

    /// All of them, in order.
    pub fn list(&self) -> Vec<Position> {
        let position = |((source, partition), next): (&(Arc<str>, i32), &i64)| Position {
            source: source.clone(),
            partition: *partition,
            next: *next,
        };
        self.0.iter().map(position).collect()
    }
}

/// What the ingest loop knows as of a tick.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// Positions of the sources.
    pub positions: Vec<Position>,
    /// Idempotency keys that are remembered, with the tick that took their rows.
    pub batches: Vec<(Tick, BatchKey)>,
    /// Number of the next report row.
    pub sequence: u64,
}

/// What the process knows as of a tick, apart from operators and stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EngineState {
    /// From the ingest loop.
    pub inputs: Inputs,
    /// Rows closed at pane ends.
    pub panes_closed: u64,
    /// Chained digest of all decisions.
    pub digest: [u8; 32],
    /// Rows that readers see.
    pub rows: Vec<FeatureRow>,
    /// What was told to Kafka.
    pub outputs: SelectorState,
    totals: Totals,
}

/// The counters that go on over a restart; latency and problems are the process's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Totals {
    numbers: [u64; 8],
    dead_letters: BTreeMap<String, u64>,
    report_rows: BTreeMap<String, u64>,
    decisions: BTreeMap<String, u64>,
    actions: BTreeMap<String, u64>,
    outcomes: BTreeMap<String, u64>,
    watermarks: [Option<i64>; 2],
}

impl EngineState {
    /// The state at the end of a tick.
    pub fn new(inputs: Inputs, counters: &Counters) -> EngineState {
        let by_name = |map: &BTreeMap<&'static str, u64>| {
            map.iter().map(|(code, count)| ((*code).to_owned(), *count)).collect()
        };
        let totals = Totals {
            numbers: [
                counters.rows_read,
                counters.ignored,
                counters.events_in,
                counters.featured,
                counters.held,
                counters.ticks,
                counters.history_rows,
                counters.model_version,
            ],
            dead_letters: by_name(&counters.dead_letters),
            report_rows: by_name(&counters.report_rows),
            decisions: by_name(&counters.decisions),
            actions: by_name(&counters.actions),
            outcomes: by_name(&counters.outcomes),
            watermarks: [counters.watermarks.fresh_until_us, counters.watermarks.settled_until_us],
        };
        EngineState { inputs, totals, ..EngineState::default() }
    }

    /// The counters as they stood.
    pub fn counters(&self) -> Counters {
        let [rows_read, ignored, events_in, featured, held, ticks, history_rows, model_version] =
            self.totals.numbers;
        let [fresh_until_us, settled_until_us] = self.totals.watermarks;
        Counters {
            rows_read,
            ignored,
            events_in,
            featured,
            held,
            ticks,
            history_rows,
            model_version,
            dead_letters: by_code(&self.totals.dead_letters),
            report_rows: by_code(&self.totals.report_rows),
            decisions: by_code(&self.totals.decisions),
            actions: by_code(&self.totals.actions),
            outcomes: by_code(&self.totals.outcomes),
            watermarks: Watermarks { fresh_until_us, settled_until_us },
            ..Counters::default()
        }
    }
}

/// Codes live as long as the process. They are few and read once, at the start.
fn by_code(map: &BTreeMap<String, u64>) -> BTreeMap<&'static str, u64> {
    map.iter().map(|(code, count)| (&*Box::leak(code.clone().into_boxed_str()), *count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_positions_come_back() {
        let mut counters = Counters { events_in: 10, featured: 7, held: 1, ..Counters::default() };
        counters.dead_letters.insert("future", 2);
        counters.watermarks.fresh_until_us = Some(5);
        let state = EngineState::new(Inputs { sequence: 4, ..Inputs::default() }, &counters);
        let bytes = postcard::to_allocvec(&state).unwrap();
        let back: EngineState = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(back, state);
        assert_eq!(back.counters(), counters);
        assert!(back.counters().conservation().holds);

        let mut positions = Positions::default();
        let at = |partition, next| Position { source: "kafka:t".into(), partition, next };
        positions.advance(&[at(0, 5), at(1, 9)]);
        positions.advance(&[at(0, 3), at(1, 10)]);
        assert_eq!(positions.next("kafka:t", 0), Some(5));
        assert_eq!(positions.list(), [at(0, 5), at(1, 10)]);
        assert_eq!(positions.next("kafka:u", 0), None);
    }
}
