//! Runs the graph over a list of events and gathers everything it puts out.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use omnify_operators::frame;
use omnify_operators::graph::{self, Mark, Part};
use omnify_operators::intake::Refusal;
use omnify_operators::model::{
    EntityKey, Event, FeatureRow, Frame, NO_ID, Registry, RegistryView, ReportRow, Stats, Tick,
};
use omnify_operators::spec::FeatureSpec;
use omnify_operators::state::StateItem;

/// One closed row, by key: (window, window end, entity) to (sums, tick).
pub(crate) type PaneRows = BTreeMap<(u8, i64, EntityKey), (Stats, Tick)>;

/// Everything a run put out, keyed so that runs can be compared.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Output {
    pub(crate) panes: PaneRows,
    /// Whole feature rows of slow windows, ids blanked, formatted.
    pub(crate) features: BTreeMap<(u8, i64, EntityKey), String>,
    /// Evaluated rows by tick, in frame order.
    pub(crate) frames: Vec<(Tick, Vec<(EntityKey, FeatureRow)>)>,
    pub(crate) featured: u64,
    pub(crate) refused: u64,
    pub(crate) held: u64,
    /// Events that report rows became.
    pub(crate) restated: u64,
    pub(crate) reports: u64,
    pub(crate) refused_reports: Vec<(Tick, ReportRow, Refusal)>,
    pub(crate) ids_remembered: u64,
    /// Refused events, and events held after each tick that holds any.
    pub(crate) refusals: Vec<(Tick, Event, Refusal)>,
    pub(crate) held_after: BTreeMap<Tick, u64>,
    pub(crate) changes: Vec<(Tick, Event)>,
}

/// What enters at one tick.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    pub(crate) events: Vec<Event>,
    pub(crate) reports: Vec<ReportRow>,
    pub(crate) calm: u8,
}

impl Inputs {
    pub(crate) fn mark(&self, last: bool) -> Mark {
        let ids = self.events.iter().filter(|event| event.id != NO_ID).count() as u64;
        Mark { last, ids, calm: self.calm, ..Mark::default() }
    }
}

/// Parts of all workers, by tick.
pub(crate) type Parts = BTreeMap<Tick, Vec<Part>>;

/// Where a run begins and what it exports.
#[derive(Clone, Debug, Default)]
pub(crate) struct Course {
    /// The tick after which the state is to be exported.
    pub(crate) snapshot: Option<Tick>,
    /// The tick and the state to begin with; only later inputs enter.
    pub(crate) restore: Option<(Tick, Vec<StateItem>)>,
}

/// Runs the graph on `workers` workers; the inputs of a tick are dealt out among them.
pub(crate) fn run(
    spec: &FeatureSpec,
    registry: &Arc<Registry>,
    inputs: &BTreeMap<Tick, Inputs>,
    workers: usize,
) -> Output {
    gather(parts(spec, registry, inputs, workers, &Course::default()), registry, 0)
}

/// Like [`run`], on a course; returns the parts as they came.
pub(crate) fn parts(
    spec: &FeatureSpec,
    registry: &Arc<Registry>,
    inputs: &BTreeMap<Tick, Inputs>,
    workers: usize,
    course: &Course,
) -> Parts {
    let parts: Arc<Mutex<Parts>> = Arc::default();
    let (spec, mut inputs) = (Arc::new(spec.clone()), inputs.clone());
    if let Some((tick, _)) = &course.restore {
        inputs = inputs.split_off(&(tick + 1));
    }
    let (inputs, course) = (Arc::new(inputs), Arc::new(course.clone()));
    let (parts_in, view) = (parts.clone(), RegistryView::new(registry.clone()));
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let (index, peers) = (worker.index(), worker.peers());
        let mine = |at: usize| at % peers == index;
        let mut graph = worker.dataflow(|scope| graph::build(scope, &spec, &view));
        if let Some((tick, items)) = &course.restore {
            graph.advance_to(*tick);
            if index == 0 {
                graph.ticks.send(Mark { restored: true, ..Mark::default() });
            }
            for (_, item) in items.iter().enumerate().filter(|(at, _)| mine(*at)) {
                graph.restore.send(item.clone());
            }
            graph.advance_to(tick + 1);
        }
        let last = *inputs.keys().next_back().unwrap();
        for (tick, input) in inputs.iter() {
            graph.advance_to(*tick);
            if index == 0 {
                let snapshot = course.snapshot == Some(*tick);
                graph.ticks.send(Mark { snapshot, ..input.mark(*tick == last) });
            }
            for (_, event) in input.events.iter().enumerate().filter(|(at, _)| mine(*at)) {
                graph.events.send(*event);
            }
            for (_, row) in input.reports.iter().enumerate().filter(|(at, _)| mine(*at)) {
                graph.reports.send(*row);
            }
            graph.advance_to(*tick + 1);
            worker.step();
        }
        worker.step_while(|| graph.probe.less_than(&(last + 1)));
        while let Some(part) = graph.outbox.pop(|_| true) {
            parts_in.lock().unwrap().entry(part.tick).or_default().push(part);
        }
    })
    .unwrap();
    for result in guards.join() {
        result.unwrap();
    }
    std::mem::take(&mut *parts.lock().unwrap())
}

/// What parts put out at ticks after `after`.
pub(crate) fn gather(parts: Parts, registry: &Arc<Registry>, after: Tick) -> Output {
    let mut view = RegistryView::new(registry.clone());
    let mut out = Output::default();
    for (tick, mut parts) in parts {
        let blank =
            |row: FeatureRow| FeatureRow { entity: omnify_operators::model::EntityId(0), ..row };
        for part in &mut parts {
            assert_eq!(part.restore_failed, None);
            for batch in std::mem::take(&mut part.panes) {
                for (at, row) in batch.features.iter().filter(|(_, row)| row.tick > after) {
                    let pane = &batch.rows[*at as usize];
                    let key = view.info(row.entity).key.clone();
                    assert_eq!((pane.entity, pane.tick), (row.entity, row.tick));
                    let text = format!("{:?}", blank(*row));
                    out.features.insert((pane.window, pane.window_end, key), text);
                }
                for row in batch.rows.into_iter().filter(|row| row.tick > after) {
                    let key = view.info(row.entity).key.clone();
                    let twice =
                        out.panes.insert((row.window, row.window_end, key), (row.sums, row.tick));
                    assert!(twice.is_none(), "row closed twice: {row:?}");
                }
            }
        }
        if tick <= after {
            continue;
        }
        let Frame { rows, .. } = frame::assemble(&mut parts, &mut view);
        out.frames
            .push((tick, rows.into_iter().map(|(i, row)| (i.key.clone(), blank(row))).collect()));
        (out.held, out.ids_remembered) = (0, 0);
        for part in parts {
            out.featured += part.featured;
            out.restated += part.restated;
            out.reports += part.reports;
            out.refused += part.refused.len() as u64;
            out.held += part.held;
            out.ids_remembered += part.ids_remembered;
            if part.held > 0 {
                *out.held_after.entry(tick).or_default() += part.held;
            }
            out.refusals.extend(part.refused.iter().map(|(event, why)| (tick, *event, *why)));
            let reports = part.refused_reports.iter();
            out.refused_reports.extend(reports.map(|(row, why)| (tick, *row, *why)));
            out.changes.extend(part.events.iter().flatten().map(|event| (tick, *event)));
        }
    }
    out.changes.sort_unstable();
    out.refusals.sort_unstable();
    out.refused_reports.sort_unstable();
    out
}
