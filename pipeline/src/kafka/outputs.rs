//! Features and alerts of complete ticks, from the decision thread to the topics of the
//! configuration.

use std::sync::Arc;
use std::time::Duration;

use omnify_config::Checked;
use omnify_operators::model::{EntityInfo, FeatureRow, Frame, WindowSpec};
use omnify_sinks::kafka::{KafkaOutputs, OutputOptions, OutputsStatus, Selector, SelectorState};
use omnify_sinks::serve::{Counters, Problem};

use super::connection;

/// The outputs of the engine: the selection is the decision thread's, the sending anybody's.
pub struct Outputs {
    selector: Selector,
    /// Sends what is durable.
    pub sender: Arc<KafkaOutputs>,
}

impl Outputs {
    /// Starts what the configuration names; `None` when it names no topic.
    pub fn start(config: &Checked, windows: &[WindowSpec]) -> anyhow::Result<Option<Outputs>> {
        let kafka = &config.kafka;
        let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let (features, alerts) = (text(&kafka.features_topic), text(&kafka.alerts_topic));
        if features.is_none() && alerts.is_none() {
            return Ok(None);
        }
        let every = kafka.features_every.duration();
        let every_ms = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
        let selector = Selector::new(features.is_some(), alerts.is_some(), every_ms);
        let sender = KafkaOutputs::start(OutputOptions {
            connection: connection(config)?,
            features_topic: features,
            alerts_topic: alerts,
            transactional_id: text(&kafka.transactional_id),
            ticks_topic: kafka.ticks_topic.clone(),
            dead_letter_topic: text(&kafka.dead_letter_topic),
            queue_max: kafka.queue_outputs,
            timeout: kafka.timeout.duration(),
            windows: windows.to_vec(),
        })?;
        Ok(Some(Outputs { selector, sender: Arc::new(sender) }))
    }

    /// Takes a complete tick. It goes out when `sender` is told that it is durable.
    pub fn tick(&mut self, frame: &Frame, counters: &Counters) {
        self.sender.submit(self.selector.tick(frame, &counters.violations, &counters.problems));
    }

    /// What a snapshot keeps, so that no alert is told again after a restart.
    pub fn save(&self) -> SelectorState {
        self.selector.save()
    }

    /// Goes on from a snapshot, in which `rows` were the newest of every entity.
    pub fn load(&mut self, state: SelectorState, rows: &[(Arc<EntityInfo>, FeatureRow)]) {
        self.selector.load(state, rows);
    }

    /// Waits until everything durable is written, at most for `patience`; false when it was not.
    pub fn finish(self, patience: Duration) -> bool {
        Arc::into_inner(self.sender).is_none_or(|sender| sender.finish(patience))
    }
}

/// What an operator should know of the outputs, as `/v1/status` shows it.
pub fn output_problems(status: &OutputsStatus) -> Vec<Problem> {
    let problem = |code, why: &Option<String>, what: &dyn Fn(&str) -> String| {
        why.as_deref().map(|why| Problem { code, text: what(why) })
    };
    let refused = status.refused;
    let problems = [
        problem("kafka_outputs_failed", &status.failed, &|why| {
            format!("Features and alerts are not written to Kafka any more: {why}")
        }),
        problem("kafka_outputs_waiting", &status.trying, &|why| {
            format!("Features and alerts wait for Kafka, which is tried again and again: {why}")
        }),
        problem("kafka_outputs_refused", &status.last_refused, &|why| {
            format!("Messages for Kafka are set aside, {refused} since the start; now: {why}")
        }),
    ];
    problems.into_iter().flatten().collect()
}
