//! The one place where operators are composed into a dataflow.
//!
//! ```text
//! reports ─exchange(creative's campaign)─► restate ─┐
//! events ──exchange(creative's campaign)────────────┴► features ─exchange(account, tenant)─► rollup ─► probe
//! ticks ───broadcast──────────────────────────────────►(all)
//! ```
//!
//! The dataflow timestamp is the tick. Every closed tick is announced on the `ticks` input, with
//! or without data, and each operator works through the announced ticks in order once the frontier
//! has passed them. What leaves the graph (feature rows, closed pane rows, accepted and refused
//! events) is put into the worker's [`Outbox`] under its tick, and is complete when the probe has
//! passed that tick.
//!
//! The arrangement count of this graph is zero: state is dense and our own, for the reason measured
//! in ARCHITECTURE.md. The pure-differential form is in [`crate::reference`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::vec::broadcast::Broadcast;
use timely::dataflow::operators::{Capability, Probe, probe};
use timely::dataflow::{InputHandle, Scope};
use timely::progress::frontier::MutableAntichain;

use crate::intake::{Intake, Refusal};
use crate::model::{EntityId, Event, FeatureRow, Level, PaneBatch, RegistryView, ReportRow, Tick};
use crate::restate::Restate;
use crate::rolling::{Rolling, Up};
use crate::spec::FeatureSpec;

/// Everything one worker's graph put out at one tick.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// The tick.
    pub tick: Tick,
    /// Rows of evaluated entities, unordered.
    pub rows: Vec<FeatureRow>,
    /// Rows closed at pane ends (empty when the spec only counts them).
    pub panes: Vec<PaneBatch>,
    /// Number of rows closed.
    pub panes_closed: u64,
    /// Accepted events (empty unless the spec asks for them).
    pub events: Vec<Vec<Event>>,
    /// Events featured at this tick.
    pub featured: u64,
    /// Report rows taken at this tick; what they changed is among `events`.
    pub reports: u64,
    /// Events that report rows became; the other rows of `reports` changed nothing.
    pub restated: u64,
    /// Events refused at this tick.
    pub refused: Vec<(Event, Refusal)>,
    /// Events still held after this tick.
    pub held: u64,
}

/// Where a worker's graph leaves its output, by tick.
#[derive(Clone, Default)]
pub struct Outbox(Rc<RefCell<BTreeMap<Tick, Part>>>);

impl Outbox {
    fn with(&self, tick: Tick, f: impl FnOnce(&mut Part)) {
        let mut parts = self.0.borrow_mut();
        f(parts.entry(tick).or_insert_with(|| Part { tick, ..Part::default() }));
    }

    /// Takes the oldest part if `complete` says that its tick is complete.
    pub fn pop(&self, complete: impl FnOnce(Tick) -> bool) -> Option<Part> {
        let mut parts = self.0.borrow_mut();
        let oldest = parts.first_entry().filter(|entry| complete(*entry.key()))?;
        Some(oldest.remove())
    }
}

/// A worker's ends of the graph.
pub struct Graph {
    /// Events; send only at ticks that are announced.
    pub events: InputHandle<Tick, timely::container::CapacityContainerBuilder<Vec<Event>>>,
    /// Report rows; send only at ticks that are announced.
    pub reports: InputHandle<Tick, timely::container::CapacityContainerBuilder<Vec<ReportRow>>>,
    /// Announced ticks; `true` for the last one ever. Any worker may announce a tick.
    pub ticks: InputHandle<Tick, timely::container::CapacityContainerBuilder<Vec<bool>>>,
    /// Passes a tick when its part is complete on this worker.
    pub probe: probe::Handle<Tick>,
    /// The output.
    pub outbox: Outbox,
    lower: Rc<RefCell<Rolling>>,
    upper: Rc<RefCell<Rolling>>,
}

impl Graph {
    /// Bytes of feature state on the heap of this worker (sketches and trackers not counted).
    pub fn heap_bytes(&self) -> usize {
        self.lower.borrow().heap_bytes() + self.upper.borrow().heap_bytes()
    }

    /// Promises that nothing before `tick` will be sent by this worker.
    pub fn advance_to(&mut self, tick: Tick) {
        self.events.advance_to(tick);
        self.reports.advance_to(tick);
        self.ticks.advance_to(tick);
    }
}

/// Data and announcements waiting for their tick to be complete.
struct ByTick<D> {
    data: BTreeMap<Tick, Vec<Vec<D>>>,
    announced: BTreeMap<Tick, (Capability<Tick>, bool)>,
}

impl<D> ByTick<D> {
    fn new() -> ByTick<D> {
        ByTick { data: BTreeMap::new(), announced: BTreeMap::new() }
    }

    fn announce(&mut self, capability: Capability<Tick>, last: bool) {
        let tick = *capability.time();
        self.announced.entry(tick).or_insert((capability, false)).1 |= last;
    }

    /// The oldest announced tick that both frontiers have passed, with its data.
    fn pop(
        &mut self,
        frontiers: [&MutableAntichain<Tick>; 2],
    ) -> Option<(Capability<Tick>, bool, Vec<Vec<D>>)> {
        let oldest = self.announced.first_entry()?;
        if frontiers.iter().any(|frontier| frontier.less_equal(oldest.key())) {
            return None;
        }
        let (tick, (capability, last)) = oldest.remove_entry();
        Some((capability, last, self.data.remove(&tick).unwrap_or_default()))
    }
}

/// Shard of entities, cached by id.
struct Shards {
    view: RegistryView,
    cache: Vec<u64>,
}

impl Shards {
    fn new(view: &RegistryView) -> Shards {
        Shards { view: view.clone(), cache: Vec::new() }
    }

    #[inline]
    fn of(&mut self, entity: EntityId) -> u64 {
        if entity.index() >= self.cache.len() {
            self.cache = self.view.all().iter().map(|info| info.shard).collect();
        }
        self.cache[entity.index()]
    }
}

/// Builds the graph on one worker. Every worker must call this with the same `spec`.
pub fn build(scope: Scope<'_, Tick>, spec: &Arc<FeatureSpec>, view: &RegistryView) -> Graph {
    let mut events = InputHandle::new();
    let mut reports = InputHandle::new();
    let mut ticks = InputHandle::new();
    let outbox = Outbox::default();
    let announced = ticks.to_stream(scope).broadcast();

    let mut shards = Shards::new(view);
    let by_campaign = Exchange::new(move |row: &ReportRow| shards.of(row.key.creative));
    let out = outbox.clone();
    let restated = reports.to_stream(scope).binary_frontier(
        announced.clone(),
        by_campaign,
        Pipeline,
        "restate",
        |_, _| {
            let mut queue = ByTick::new();
            let mut restate = Restate::default();
            move |(input, rows_frontier), (ticks, ticks_frontier), output| {
                input.for_each(|cap, rows: &mut Vec<ReportRow>| {
                    queue.data.entry(*cap.time()).or_default().push(std::mem::take(rows));
                });
                ticks.for_each(|cap, marks: &mut Vec<bool>| {
                    queue.announce(cap.retain(0), marks.iter().any(|last| *last));
                });
                while let Some((cap, _, rows)) = queue.pop([rows_frontier, ticks_frontier]) {
                    let rows = rows.concat();
                    if !rows.is_empty() {
                        let taken = rows.len() as u64;
                        let mut changes = restate.apply(*cap.time(), rows);
                        out.with(*cap.time(), |part| {
                            part.reports += taken;
                            part.restated += changes.len() as u64;
                        });
                        output.session(&cap).give_container(&mut changes);
                    }
                }
            }
        },
    );

    let lower_levels = [Level::Campaign, Level::AdGroup, Level::Creative];
    let lower = Rc::new(RefCell::new(Rolling::new(spec.clone(), view.clone(), &lower_levels)));
    let mut shards = Shards::new(view);
    let by_campaign = Exchange::new(move |event: &Event| shards.of(event.creative));
    let (out, rolling, spec_here) = (outbox.clone(), lower.clone(), spec.clone());
    use timely::dataflow::operators::Concat;
    let arriving = events.to_stream(scope);
    let up = arriving.concat(restated).binary_frontier(
        announced.clone(),
        by_campaign,
        Pipeline,
        "features",
        |_, _| {
            let mut queue = ByTick::new();
            let mut intake = Intake::new(spec_here.intake, spec_here.widest_us());
            move |(input, events_frontier), (ticks, ticks_frontier), output| {
                input.for_each(|cap, events: &mut Vec<Event>| {
                    queue.data.entry(*cap.time()).or_default().push(std::mem::take(events));
                });
                ticks.for_each(|cap, marks: &mut Vec<bool>| {
                    queue.announce(cap.retain(0), marks.iter().any(|last| *last));
                });
                while let Some((cap, last, batches)) = queue.pop([events_frontier, ticks_frontier])
                {
                    let tick = *cap.time();
                    let admitted = intake.admit(tick, batches, last);
                    let mut rolling = rolling.borrow_mut();
                    rolling.begin(tick);
                    admitted.batches.iter().flatten().for_each(|event| rolling.absorb(event));
                    let mut done = rolling.finish(last);
                    if !done.up.is_empty() {
                        output.session(&cap).give_container(&mut done.up);
                    }
                    out.with(tick, |part| {
                        part.take_rows(done);
                        part.featured += admitted.featured;
                        part.held += admitted.held;
                        part.refused.extend(admitted.refused);
                        if spec_here.emit_events {
                            part.events.extend(admitted.batches);
                        }
                    });
                }
            }
        },
    );

    let upper_levels = [Level::Tenant, Level::Account];
    let upper = Rc::new(RefCell::new(Rolling::new(spec.clone(), view.clone(), &upper_levels)));
    let mut shards = Shards::new(view);
    let by_entity = Exchange::new(move |up: &Up| shards.of(up.entity()));
    let (out, rolling) = (outbox.clone(), upper.clone());
    let (probe, _) = up
        .binary_frontier(announced, by_entity, Pipeline, "rollup", |_, _| {
            let mut queue = ByTick::new();
            move |(input, up_frontier), (ticks, ticks_frontier), output| {
                input.for_each(|cap, ups: &mut Vec<Up>| {
                    queue.data.entry(*cap.time()).or_default().push(std::mem::take(ups));
                });
                ticks.for_each(|cap, marks: &mut Vec<bool>| {
                    queue.announce(cap.retain(0), marks.iter().any(|last| *last));
                });
                while let Some((cap, last, ups)) = queue.pop([up_frontier, ticks_frontier]) {
                    let mut rolling = rolling.borrow_mut();
                    rolling.begin(*cap.time());
                    ups.iter().flatten().for_each(|up| rolling.absorb_up(up));
                    let done = rolling.finish(last);
                    out.with(*cap.time(), |part| part.take_rows(done));
                    output.session(&cap).give(());
                }
            }
        })
        .container::<Vec<()>>()
        .probe();

    Graph { events, reports, ticks, probe, outbox, lower, upper }
}

impl Part {
    fn take_rows(&mut self, done: crate::rolling::TickRows) {
        self.rows.extend(done.rows);
        self.panes_closed += done.panes_closed;
        if !done.panes.rows.is_empty() {
            self.panes.push(done.panes);
        }
    }
}
