//! The stage: ticks, controls and complete frames in; decisions and actions out.

use std::collections::BTreeSet;
use std::sync::Arc;

use omnify_operators::model::{Frame, Tick};
use serde::Serialize;

use crate::action::{Action, Decision};
use crate::bid::BidBook;
pub use crate::config::{
    Autonomy, ConfigErrors, ConfigIssue, ControllerConfig, ExecutorMode, GuardrailConfig,
    RotationConfig, StageConfig,
};
use crate::control::Control;
pub use crate::digest::Digest;

/// Why a stage cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// The configuration cannot work.
    #[error("the decision stage cannot start: {0}")]
    Config(ConfigErrors),
}

/// What came out of one tick, ordered by (tick, [`omnify_operators::model::EntityInfo::order`], key).
#[derive(Clone, Debug, Default)]
pub struct TickOutput {
    /// Every decision, no-ops included.
    pub decisions: Vec<Decision>,
    /// Differences to be executed.
    pub actions: Vec<Action>,
}

/// What the stage counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Calls of `on_tick`.
    pub ticks: u64,
    /// Feature rows seen.
    pub rows: u64,
    /// Decisions made.
    pub decisions: u64,
    /// Decisions that acted.
    pub act: u64,
    /// Decisions that held.
    pub hold: u64,
    /// Decisions that a guardrail blocked.
    pub blocked: u64,
    /// Decisions that wait for a person.
    pub propose: u64,
    /// Settings found changed by somebody else.
    pub drifts: u64,
    /// Acknowledgements of actions that were not in flight (alerts never are).
    pub acknowledgements_unmatched: u64,
    /// Models refused because they could not be read.
    pub models_refused: u64,
    /// Crossed invariants; anything but 0 is a defect of the engine.
    pub invariant_violations: u64,
}

/// The pure state machine. See the crate's documentation.
pub struct Stage {
    config: Arc<StageConfig>,
    counters: Counters,
    book: BidBook,
    killed: BTreeSet<Option<String>>,
}

impl Stage {
    /// A stage that has seen nothing yet.
    pub fn new(config: StageConfig) -> Result<Stage, StageError> {
        config.validate().map_err(StageError::Config)?;
        Ok(Stage {
            config: Arc::new(config),
            counters: Counters::default(),
            book: BidBook::default(),
            killed: BTreeSet::new(),
        })
    }

    /// What the stage was told.
    pub fn config(&self) -> &StageConfig {
        &self.config
    }

    /// Applies `controls`, then decides on every row of `frame`.
    pub fn on_tick(&mut self, tick: Tick, controls: &[Control], frame: &Frame) -> TickOutput {
        self.counters.ticks += 1;
        self.counters.rows += frame.rows.len() as u64;
        for control in controls {
            match control {
                Control::Kill { tenant } => {
                    self.killed.insert(tenant.clone());
                }
                Control::Resume { tenant } => {
                    self.killed.remove(tenant);
                }
                _ => {}
            }
        }
        self.book.set_tick(tick);
        TickOutput::default()
    }

    /// The state for `POST /v1/bids`: a copy that shares everything unchanged.
    pub fn bid_book(&self) -> Arc<BidBook> {
        Arc::new(self.book.clone())
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}
