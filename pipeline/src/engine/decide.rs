//! The decision thread: complete ticks of all workers in, frames to the stage, everything out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use hdrhistogram::Histogram;
use omnify_decision::action::{Action, Decision, Setting};
use omnify_decision::bid::BidBook;
use omnify_decision::control::{Control, Outcome};
use omnify_decision::stage::{Stage, TickOutput};
use omnify_operators::invariant::{self, Invariant};
use omnify_operators::model::{
    Attribution, EntityKey, Event, EventKind, Frame, NO_USER, RegistryView, ReportRow, Tick,
};
use omnify_operators::{frame, graph::Part, intake::Refusal};
use omnify_sinks::action::Dispatcher;
use omnify_sinks::history::{DeadLetter, DecisionDigest, Summary};
use omnify_sinks::serve::{ActionState, Board, Counters, LatencyMs, Problem};
use omnify_sinks::telemetry::events;

use super::note::{Completed, Note};
use super::record::{Recorder, TickData};
use crate::clock::{self, Clock};
use crate::durable::{EngineState, Inputs, Moment, Reached, Snapshots};
use crate::kafka::{Outputs, output_problems};

/// The bid book that `POST /v1/bids` answers from.
pub type SharedBook = Arc<RwLock<Arc<BidBook>>>;

/// Says what an operator should look at now.
pub type Watch = Arc<dyn Fn() -> Vec<Problem> + Send + Sync>;

/// Watches of parts that started after the engine.
pub type Watches = Arc<Mutex<Vec<Watch>>>;

/// Who carries actions out.
pub struct Execution {
    /// The dispatcher.
    pub dispatcher: Dispatcher,
    /// Takes what the dispatcher ends at once, as an input of a later tick.
    pub inputs: Sender<Control>,
}

/// What the decision thread works with; every part but the workers' output is optional.
pub struct Decider {
    /// Decides; `None` computes features only.
    pub stage: Option<Stage>,
    /// Entities.
    pub view: RegistryView,
    /// Number of windows.
    pub windows: usize,
    /// The history.
    pub recorder: Option<Recorder>,
    /// Carries actions out; a dry run needs nobody.
    pub execution: Option<Execution>,
    /// What HTTP shows.
    pub board: Option<Board>,
    /// What bids are answered from.
    pub book: SharedBook,
    /// The last tick that was decided upon and handed on; for whoever waits for it.
    pub decided: Arc<AtomicU64>,
    /// For the lag of ticks.
    pub clock: Clock,
    /// What is to hold a tick before its actions leave: the journal, and a copy of it that is waited
    /// for. Where one of them has ended the engine does too.
    pub durable: Vec<Arc<Reached>>,
    /// Takes snapshots.
    pub snapshots: Option<Snapshots>,
    /// Features and alerts for Kafka.
    pub outputs: Option<Outputs>,
    /// What else is watched.
    pub watches: Watches,
    /// Where an earlier process stood.
    pub resume: Option<Resume>,
}

/// From where the decision thread goes on.
pub struct Resume {
    /// As of the tick that was restored.
    pub state: EngineState,
    /// Ticks up to this one were made by an earlier process and are made once more: nothing of them
    /// is executed.
    pub until: Tick,
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct RunSummary {
    /// Totals.
    pub counters: Counters,
    /// Rows closed at pane ends.
    pub panes_closed: u64,
    /// The last tick.
    pub last_tick: Tick,
    /// From the arrival of the oldest event of a tick to each of its decisions, no-ops included.
    pub decision_latency_ms: Option<LatencyMs>,
    /// Digest over all decisions.
    pub digest: String,
    /// What the history holds.
    pub history: Option<Summary>,
    /// First tick whose digest is not the expected one, with the decisions made at it.
    pub diverged: Option<(Tick, Vec<Decision>)>,
    /// Ticks that were compared.
    pub compared: u64,
}

/// The work of the decision thread.
pub struct Deciding {
    decider: Decider,
    digest: DecisionDigest,
    /// Ticks up to this one are made once more; `None` once they are.
    again_until: Option<Tick>,
    /// Alerts of these ticks, which the stage does not keep in flight.
    again: Vec<Action>,
    /// Workers that have exported their state, of the snapshot under way.
    exported: usize,
    summary: RunSummary,
    latency_us: Histogram<u64>,
    decided_us: Histogram<u64>,
    telemetry: TelemetryBatch,
}

/// Telemetry is emitted for many ticks at once: a tick may be a millisecond.
#[derive(Default)]
struct TelemetryBatch {
    ticks: u64,
    before: Counters,
    latencies: Vec<Duration>,
}

const TELEMETRY_TICKS: u64 = 20;
/// Time that the last outputs get at the end.
const OUTPUTS_GRACE: Duration = Duration::from_secs(5);

impl Decider {
    /// Works until the workers end.
    pub fn run(self, completed: &[Receiver<Completed>]) -> anyhow::Result<RunSummary> {
        let mut deciding = Deciding::new(self)?;
        let mut parts = Vec::with_capacity(completed.len());
        'ticks: loop {
            let mut note = Note::default();
            for worker in completed {
                let Ok(complete) = worker.recv() else { break 'ticks };
                note.merge(complete.note);
                parts.push(complete.part);
            }
            if let Some(made) = deciding.decide(&mut parts, &mut note)?
                && !deciding.conclude(&mut parts, note, made)?
            {
                break;
            }
            parts.clear();
        }
        deciding.finish()
    }
}

/// What was decided at a tick and has not left yet.
pub struct Made {
    tick: Tick,
    /// The tick is made once more.
    again: bool,
    frame: Frame,
    output: TickOutput,
    started: Instant,
}

impl Made {
    /// The tick.
    pub fn tick(&self) -> Tick {
        self.tick
    }

    /// What was decided.
    pub fn output(&self) -> &TickOutput {
        &self.output
    }

    /// The complete frame.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Whether it was made by an earlier process already.
    pub fn is_again(&self) -> bool {
        self.again
    }
}

impl Deciding {
    /// Shows what is known already.
    pub fn new(decider: Decider) -> anyhow::Result<Deciding> {
        let resume = decider.resume.as_ref();
        let chain = resume.map_or([0; 32], |resume| resume.state.digest);
        let digest = DecisionDigest::resume(decider.windows, chain);
        let latency_us: Histogram<u64> = Histogram::new_with_bounds(1, 600_000_000, 3)
            .map_err(|e| anyhow::anyhow!("latency histogram: {e:?}"))?;
        let decided_us = latency_us.clone();
        let summary = RunSummary {
            counters: resume.map(|resume| resume.state.counters()).unwrap_or_default(),
            panes_closed: resume.map_or(0, |resume| resume.state.panes_closed),
            ..RunSummary::default()
        };
        let telemetry =
            TelemetryBatch { before: summary.counters.clone(), ..TelemetryBatch::default() };
        let mut deciding = Deciding {
            again_until: resume.map(|resume| resume.until),
            again: Vec::new(),
            exported: 0,
            decider,
            digest,
            summary,
            latency_us,
            decided_us,
            telemetry,
        };
        deciding.show_resumed();
        Ok(deciding)
    }

    /// Decides upon one complete tick; `None` where there is nothing to decide.
    pub fn decide(&mut self, parts: &mut [Part], note: &mut Note) -> anyhow::Result<Option<Made>> {
        let started = clock::instant();
        let tick = parts[0].tick;
        if let Some(what) = parts.iter_mut().find_map(|part| part.restore_failed.take()) {
            return Err(anyhow::anyhow!("the snapshot cannot be restored: {what}"));
        }
        if note.restored {
            // The state itself; nothing happened at this tick.
            self.summary.last_tick = tick;
            return Ok(None);
        }
        let again = self.again_until.is_some_and(|until| tick <= until);
        if !again && self.again_until.take().is_some() {
            self.settle_again();
            // Readers learn at once that it has recovered.
            self.decider.board.iter_mut().for_each(Board::hurry);
        }
        invariant::check(
            Invariant::CompleteFrames,
            parts.iter().all(|part| part.tick == tick) && tick >= self.summary.last_tick,
            || format!("parts of ticks {:?}", parts.iter().map(|p| p.tick).collect::<Vec<_>>()),
        );
        let frame = frame::assemble(parts, &mut self.decider.view);
        let output = match &mut self.decider.stage {
            Some(stage) => stage.on_tick(tick, &note.controls, &frame),
            None => TickOutput::default(),
        };
        if again {
            let alert = |action: &&Action| matches!(action.desired, Setting::Alert { .. });
            self.again.extend(output.actions.iter().filter(alert).cloned());
        }
        Ok(Some(Made { tick, again, frame, output, started }))
    }

    /// Hands everything on; false when the history or the journal is lost and the engine must stop.
    /// Actions wait for the journal to hold the tick.
    pub fn conclude(
        &mut self,
        parts: &mut [Part],
        mut note: Note,
        made: Made,
    ) -> anyhow::Result<bool> {
        let Made { tick, again, frame, mut output, started } = made;
        if !again && !self.hand_over(tick, &output.actions) {
            return Ok(false);
        }
        let latency = note.arrived.map(clock::since);
        self.measure(&output, latency);
        output.decisions.iter().for_each(|decision| {
            self.digest.absorb(decision);
        });
        let digest = self.digest.close_tick();
        let inputs = note.snapshot.take();
        if let Some(expected) = note.expected {
            self.summary.compared += 1;
            if expected != digest && self.summary.diverged.is_none() {
                self.summary.diverged = Some((tick, output.decisions.clone()));
            }
        }
        let dead = self.account(tick, parts, &note, &output);
        if let Some(outputs) = &mut self.decider.outputs {
            outputs.tick(&frame, &self.summary.counters);
            if self.decider.durable.is_empty() {
                outputs.sender.durable(tick);
            }
        }
        let due = self.decider.board.as_ref().is_some_and(|board| board.due(tick));
        if due {
            self.summary.counters.problems = problems(&self.decider, self.again_until);
        }
        if let Some(board) = &mut self.decider.board {
            board.update(&frame);
            output.decisions.iter().for_each(|decision| board.decision(decision));
            let state = match self.decider.execution {
                Some(_) => ActionState::InFlight,
                None => ActionState::Applied,
            };
            output.actions.iter().for_each(|action| board.action(action, state));
            for control in &note.controls {
                match control {
                    Control::Acknowledge { action, outcome, .. } => {
                        board.outcome(*action, outcome, tick);
                    }
                    Control::Observe { entity, actual } => board.observe(entity, actual),
                    _ => {}
                }
            }
            if due {
                let open = self.decider.stage.iter().flat_map(Stage::proposals);
                board.proposals(open.cloned());
                board.publish(tick, self.summary.counters.clone());
            }
        }
        if let (Some(stage), false) = (&self.decider.stage, output.decisions.is_empty()) {
            let book = stage.bid_book();
            *self.decider.book.write().unwrap_or_else(PoisonError::into_inner) = book;
        }
        self.emit(tick, parts, clock::since(started));
        let commit = inputs.is_some();
        if let Some(inputs) = inputs {
            self.begin_snapshot(tick, *inputs, digest);
        }
        self.pass_on_state(parts);
        let Some(recorder) = &self.decider.recorder else {
            self.decider.decided.store(tick, Ordering::Release);
            return Ok(true);
        };
        let settled = parts.iter().all(|part| part.settled);
        let mut data = TickData {
            tick,
            controls: note.controls,
            dead,
            settled,
            commit,
            ..TickData::default()
        };
        data.decisions = std::mem::take(&mut output.decisions);
        data.actions = std::mem::take(&mut output.actions);
        for part in parts {
            data.events.append(&mut part.events);
            data.panes.append(&mut part.panes);
        }
        let recorded = recorder.record(data);
        self.decider.decided.store(tick, Ordering::Release);
        Ok(recorded)
    }

    /// The stage, if the engine decides.
    pub fn stage(&self) -> Option<&Stage> {
        self.decider.stage.as_ref()
    }

    /// What it came to so far.
    pub fn summary(&self) -> &RunSummary {
        &self.summary
    }

    /// Readers see at once what was known before.
    fn show_resumed(&mut self) {
        let Some(resume) = &mut self.decider.resume else { return };
        let rows = std::mem::take(&mut resume.state.rows);
        let (tick, view) = (resume.until, &mut self.decider.view);
        let rows: Vec<_> =
            rows.into_iter().map(|row| (view.info(row.entity).clone(), row)).collect();
        if let Some(outputs) = &mut self.decider.outputs {
            outputs.load(std::mem::take(&mut resume.state.outputs), &rows);
            outputs.sender.durable(tick);
        }
        if let Some(board) = &mut self.decider.board {
            board.update(&Frame { tick, rows });
        }
    }

    /// The ticks that an earlier process made are made: what it left unfinished is settled. What is
    /// in flight goes to the dispatcher, whose ledger knows what became of it: sent once more only
    /// if it never was.
    fn settle_again(&mut self) {
        let again = std::mem::take(&mut self.again);
        let Some(stage) = &self.decider.stage else { return };
        let mut open: Vec<Action> = stage.in_flight().map(|flight| flight.action.clone()).collect();
        // Alerts are never in flight; the ledger tells those that were sent.
        open.extend(again);
        tracing::info!(actions = open.len(), "settling what an earlier process left in flight");
        self.submit(&open);
    }

    fn begin_snapshot(&mut self, tick: Tick, inputs: Inputs, digest: [u8; 32]) {
        let Some(snapshots) = &self.decider.snapshots else { return };
        let mut engine = EngineState::new(inputs, &self.summary.counters);
        engine.panes_closed = self.summary.panes_closed;
        engine.digest = digest;
        if let Some(board) = &self.decider.board {
            engine.rows = board.features().copied().collect();
        }
        if let Some(outputs) = &self.decider.outputs {
            engine.outputs = outputs.save();
        }
        self.exported = 0;
        snapshots.begin(Moment { tick, stage: self.decider.stage.clone(), engine });
    }

    /// What the workers export goes to the snapshot thread.
    fn pass_on_state(&mut self, parts: &mut [Part]) {
        let Some(snapshots) = &self.decider.snapshots else { return };
        for part in parts.iter_mut() {
            snapshots.items(std::mem::take(&mut part.state));
            self.exported += usize::from(part.state_done);
        }
        if self.exported == parts.len() {
            self.exported = 0;
            snapshots.complete();
        }
    }

    /// Actions go to the executor before anything else is done with the tick, once the journal has
    /// it. False when it never will.
    fn hand_over(&self, tick: Tick, actions: &[Action]) -> bool {
        let (false, Some(_)) = (actions.is_empty(), &self.decider.execution) else { return true };
        if !self.decider.durable.iter().all(|holder| holder.wait(tick)) {
            return false;
        }
        self.submit(actions);
        true
    }

    fn submit(&self, actions: &[Action]) {
        if let Some(execution) = &self.decider.execution {
            for action in actions {
                if let Some(ended) = execution.dispatcher.submit(action.clone())
                    && execution.inputs.try_send(ended).is_err()
                {
                    // The stage frees the owner by itself when the action has expired.
                    events::QueueFull { queue: "controls", count: 1 }.emit();
                }
            }
        }
    }

    fn measure(&mut self, output: &TickOutput, latency: Option<Duration>) {
        let Some(latency) = latency else { return };
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
        self.latency_us.saturating_record_n(us, output.actions.len() as u64);
        self.decided_us.saturating_record_n(us, output.decisions.len() as u64);
        self.telemetry.latencies.extend(output.actions.iter().map(|_| latency));
    }

    /// Adds the tick to the totals, checks conservation, and turns refusals into dead letters.
    fn account(
        &mut self,
        tick: Tick,
        parts: &mut [Part],
        note: &Note,
        output: &TickOutput,
    ) -> Vec<DeadLetter> {
        let counters = &mut self.summary.counters;
        counters.rows_read += note.rows;
        counters.ignored += note.ignored;
        counters.events_in += note.rows - note.ignored;
        counters.ticks += 1;
        if let Some(watermarks) = note.watermarks {
            counters.watermarks = watermarks;
        }
        counters.held = parts.iter().map(|part| part.held).sum();
        let (mut refused, mut refused_reports) = (Vec::new(), Vec::new());
        for part in parts {
            // A row counts once, whatever it became.
            counters.featured += part.featured + part.reports;
            counters.featured -= part.restated;
            for (effect, count) in [
                ("changed", part.reports - part.reports_unchanged),
                ("unchanged", part.reports_unchanged),
            ] {
                if count > 0 {
                    *counters.report_rows.entry(effect).or_default() += count;
                }
            }
            self.summary.panes_closed += part.panes_closed;
            refused.append(&mut part.refused);
            refused_reports.append(&mut part.refused_reports);
        }
        refused.sort_unstable();
        refused_reports.sort_unstable();
        let view = &mut self.decider.view;
        let mut dead: Vec<DeadLetter> = note.dead.clone();
        dead.extend(refused.iter().map(|(event, why)| letter(tick, event, *why, view)));
        let reports = refused_reports.iter();
        dead.extend(reports.map(|(row, why)| report_letter(tick, row, *why, view)));
        for letter in &dead {
            *counters.dead_letters.entry(letter.reason).or_default() += 1;
        }
        for decision in &output.decisions {
            *counters.decisions.entry(decision.verdict.name()).or_default() += 1;
        }
        for action in &output.actions {
            *counters.actions.entry(action.desired.kind().name()).or_default() += 1;
        }
        for control in &note.controls {
            match control {
                Control::Acknowledge { outcome, .. } => {
                    *counters.outcomes.entry(outcome_name(outcome)).or_default() += 1;
                }
                Control::Model { version, .. } => counters.model_version = *version,
                _ => {}
            }
        }
        if let Some(recorder) = &self.decider.recorder {
            counters.history_rows = recorder.progress.rows();
        }
        invariant::check(Invariant::Conservation, counters.conservation().holds, || {
            format!("tick {tick}: {:?}", counters.conservation())
        });
        for which in Invariant::ALL {
            let count = invariant::violations(which);
            if count > 0 {
                counters.violations.insert(which.code(), count);
            }
        }
        self.summary.last_tick = tick;
        dead
    }

    fn emit(&mut self, tick: Tick, parts: &[Part], took: Duration) {
        events::StageStepped { stage: "decide", took }.emit();
        self.telemetry.ticks += 1;
        if self.telemetry.ticks < TELEMETRY_TICKS {
            return;
        }
        self.flush_telemetry(tick, parts.iter().map(|part| part.held).sum());
    }

    fn flush_telemetry(&mut self, tick: Tick, held: u64) {
        self.summary.counters.latency_ms = latency_ms(&self.latency_us);
        let (now, before) = (&self.summary.counters, &self.telemetry.before);
        events::BatchRead {
            rows: now.rows_read - before.rows_read,
            ignored: now.ignored - before.ignored,
            events: now.events_in - before.events_in,
        }
        .emit();
        let lag = match self.decider.clock {
            Clock::System => Some(Duration::from_millis(Clock::System.now().saturating_sub(tick))),
            Clock::Manual(_) => None,
        };
        events::TickClosed {
            tick,
            ticks: self.telemetry.ticks,
            featured: now.featured - before.featured,
            held,
            entities: self.decider.view.all().len() as u64,
            lag,
        }
        .emit();
        for (reason, count) in growth(&now.dead_letters, &before.dead_letters) {
            events::DeadLettered { reason, count }.emit();
        }
        for (effect, count) in growth(&now.report_rows, &before.report_rows) {
            events::ReportsTaken { effect, count }.emit();
        }
        for (verdict, count) in growth(&now.decisions, &before.decisions) {
            events::Decided { verdict, count }.emit();
        }
        for (kind, count) in growth(&now.actions, &before.actions) {
            events::ActionsEmitted { kind, count }.emit();
        }
        for (invariant, count) in growth(&now.violations, &before.violations) {
            events::InvariantViolated { invariant, count }.emit();
        }
        events::EventToAction { latencies: &self.telemetry.latencies }.emit();
        if let Some(recorder) = &self.decider.recorder {
            events::QueueSampled { queue: "history", depth: recorder.depth() }.emit();
        }
        self.telemetry =
            TelemetryBatch { before: self.summary.counters.clone(), ..TelemetryBatch::default() };
    }

    fn finish(mut self) -> anyhow::Result<RunSummary> {
        let held = self.summary.counters.held;
        self.flush_telemetry(self.summary.last_tick, held);
        if let Some(board) = &mut self.decider.board {
            board.publish_now(self.summary.last_tick, self.summary.counters.clone());
        }
        if let Some(execution) = self.decider.execution.take() {
            execution.dispatcher.stop(Duration::from_secs(5));
        }
        if let Some(outputs) = self.decider.outputs.take()
            && !outputs.finish(OUTPUTS_GRACE)
        {
            tracing::warn!("Kafka did not take everything; it is sent after the next start");
        }
        self.summary.decision_latency_ms = latency_ms(&self.decided_us);
        self.summary.digest = self.digest.to_string();
        self.summary.history = self.decider.recorder.take().map(Recorder::finish).transpose()?;
        Ok(self.summary)
    }
}

/// What an operator should look at now.
fn problems(decider: &Decider, recovering: Option<Tick>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut tell = |code, text: &str| problems.push(Problem { code, text: text.to_owned() });
    if recovering.is_some() {
        tell(
            "recovering",
            "The journal is being worked through after a restart; pushes are answered 429.",
        );
    }
    if decider.recorder.as_ref().is_some_and(|recorder| recorder.progress.stalled() > 0) {
        tell(
            "history_writer_stalled",
            "The history cannot be written; see the log. Events are taken in until the queue is \
             full, then pushes are answered 429.",
        );
    }
    if let Some(outputs) = &decider.outputs {
        problems.extend(output_problems(&outputs.sender.status()));
    }
    let watches = decider.watches.lock().unwrap_or_else(PoisonError::into_inner);
    problems.extend(watches.iter().flat_map(|watch| watch()));
    problems
}

fn growth<'a>(
    now: &'a std::collections::BTreeMap<&'static str, u64>,
    before: &'a std::collections::BTreeMap<&'static str, u64>,
) -> impl Iterator<Item = (&'static str, u64)> + 'a {
    now.iter()
        .map(|(code, count)| (*code, count - before.get(code).copied().unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
}

/// Quantiles of a histogram of µs, in ms.
pub fn latency_ms(us: &Histogram<u64>) -> Option<LatencyMs> {
    let at = |quantile| us.value_at_quantile(quantile) as f64 / 1e3;
    (!us.is_empty()).then(|| LatencyMs {
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        max: us.max() as f64 / 1e3,
    })
}

fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Applied { .. } => "applied",
        Outcome::NoChange => "no_change",
        Outcome::Rejected { .. } => "rejected",
        Outcome::Expired => "expired",
        Outcome::Unknown => "unknown",
    }
}

/// An event refused by the graph, in the form in which it can be sent again.
fn letter(tick: Tick, event: &Event, why: Refusal, view: &mut RegistryView) -> DeadLetter {
    let key = view.info(event.creative).key.clone();
    let segment = |at| key.segment(at).unwrap_or_default();
    let mut row = serde_json::json!({
        "type": "event", "ts_us": event.time, "kind": event.kind.name(),
        "tenant": segment(0), "platform": segment(1), "account": segment(2),
        "campaign": segment(3), "ad_group": segment(4), "creative": segment(5),
        "cost_micros": event.delta.cost_micros, "revenue_micros": event.delta.revenue_micros,
    });
    if event.user != NO_USER {
        row["user_hash"] = event.user.into();
    }
    if event.kind == EventKind::Report {
        row["delta"] = serde_json::json!(event.delta);
    }
    let detail = match why {
        Refusal::Duplicate => "an event of this creative with this id was accepted before",
        Refusal::UnknownEntity => "its creative never delivered within validation.entity_grace",
        Refusal::Future => "further ahead than validation.future_skew",
        Refusal::TooLate => "older than the widest window",
        Refusal::HeldFull => "too many events are being held",
        Refusal::OverlappingInterval | Refusal::TooManyIntervals => {
            "only report rows have intervals"
        }
    };
    refused(tick, &key, why, detail, &row)
}

/// A report row refused by the graph, in the form in which it can be sent again.
fn report_letter(tick: Tick, row: &ReportRow, why: Refusal, view: &mut RegistryView) -> DeadLetter {
    let key = view.info(row.key.creative).key.clone();
    let segment = |at| key.segment(at).unwrap_or_default();
    let totals = &row.version.totals;
    let mut again = serde_json::json!({
        "type": "report", "start_us": row.key.start, "end_us": row.key.end,
        "as_of_us": row.version.as_of,
        "tenant": segment(0), "platform": segment(1), "account": segment(2),
        "campaign": segment(3), "ad_group": segment(4), "creative": segment(5),
        "impressions": totals.impressions, "clicks": totals.clicks,
        "conversions": totals.conversions, "cost_micros": totals.cost_micros,
        "revenue_micros": totals.revenue_micros,
    });
    if row.key.attribution != Attribution::DEFAULT {
        again["attribution"] = row.key.attribution.to_string().into();
    }
    let detail = match why {
        Refusal::OverlappingInterval => {
            "its interval overlaps in part with one known of its creative: what lies in both cannot be \
             told apart; report intervals that contain or exclude each other"
        }
        Refusal::TooManyIntervals => {
            "too many intervals of its creative are known; report coarser ones"
        }
        _ => {
            "its interval, or a known one around it, begins longer ago than \
             validation.restatement_horizon"
        }
    };
    refused(tick, &key, why, detail, &again)
}

fn refused(
    tick: Tick,
    key: &EntityKey,
    why: Refusal,
    detail: &str,
    row: &serde_json::Value,
) -> DeadLetter {
    let bytes = row.to_string();
    DeadLetter::new(tick, "intake".into(), 0, why.code(), detail.to_owned(), bytes.as_bytes())
        .of_tenant(key.tenant().into())
}
