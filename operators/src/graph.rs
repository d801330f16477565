//! The one place where operators are composed into a dataflow.
//!
//! ```text
//! ticks ──broadcast──► announce ◄─exchange(shard)─ restore
//!                         └─► (all)
//! reports ─exchange(creative's campaign)─► restate ─┐
//! events ───────────────────────────────────────────┴► listen ─exchange(creative's campaign)─► features
//!                 (features, rollup) ◄─ maturity ◄─broadcast─┘    └─exchange(account, tenant)─► rollup ─► probe
//! ```
//!
//! `listen` hears what restated reports say of an account, whether they come as rows or, from a
//! record, as the differences they made. It reaches every worker, because an account's campaigns
//! live on all of them; `maturity` learns the same everywhere and hands the tick on with the curves
//! that changed at it.
//!
//! The dataflow timestamp is the tick. Every closed tick is announced on the `ticks` input, with
//! or without data, and each operator works through the announced ticks in order once the frontier
//! has passed them. What leaves the graph (feature rows, closed pane rows, accepted and refused
//! events, exported state) is put into the worker's [`Outbox`] under its tick, and is complete when
//! the probe has passed that tick.
//!
//! State that was exported before enters at the first tick, on the `restore` input. `announce`
//! hands that tick on when its items have been dealt out, so every operator finds its own in the
//! worker's inbox; all other ticks pass at once.
//!
//! The arrangement count of this graph is zero: state is dense and our own, for the reason measured
//! in ARCHITECTURE.md. The pure-differential form is in [`crate::reference`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::vec::Map;
use timely::dataflow::operators::vec::broadcast::Broadcast;
use timely::dataflow::operators::{Capability, Concat, Probe, probe};
use timely::dataflow::{InputHandle, Scope, StreamVec};
use timely::progress::frontier::MutableAntichain;
use timely::progress::operate::FrontierInterest;

use crate::intake::Intake;
use crate::maturity::{Curve, Learner, Said, Sayings};
use crate::model::{EntityId, Event, EventKind, Level, RegistryView, ReportRow, Tick, us_of_tick};
pub use crate::part::{Mark, Outbox, Part};
use crate::restate::Restate;
use crate::rolling::{Rolling, Up};
use crate::spec::FeatureSpec;
use crate::state::{StateItem, StatePart, Stateful, chunk_bytes};

/// An input of the graph.
pub type Input<D> = InputHandle<Tick, CapacityContainerBuilder<Vec<D>>>;

/// A worker's ends of the graph.
pub struct Graph {
    /// Events; send only at ticks that are announced.
    pub events: Input<Event>,
    /// Report rows; send only at ticks that are announced.
    pub reports: Input<ReportRow>,
    /// Announced ticks. Any worker may announce a tick.
    pub ticks: Input<Mark>,
    /// Exported state, at the first tick only, which is announced with [`Mark::restored`]. Any
    /// worker may send any item; nothing is taken after the first tick.
    pub restore: Input<StateItem>,
    /// Passes a tick when its part is complete on this worker.
    pub probe: probe::Handle<Tick>,
    /// The output.
    pub outbox: Outbox,
    intake: Rc<RefCell<Intake>>,
    restate: Rc<RefCell<Restate>>,
    learner: Rc<RefCell<Learner>>,
    lower: Rc<RefCell<Rolling>>,
    upper: Rc<RefCell<Rolling>>,
}

impl Graph {
    /// Bytes of state on the heap of this worker, apart from what the allocator adds.
    pub fn heap_bytes(&self) -> usize {
        self.lower.borrow().heap_bytes()
            + self.upper.borrow().heap_bytes()
            + self.intake.borrow().heap_bytes()
            + self.restate.borrow().heap_bytes()
            + self.learner.borrow().heap_bytes()
    }

    /// Entities that this worker keeps features of.
    pub fn cells(&self) -> usize {
        self.lower.borrow().live_cells() + self.upper.borrow().live_cells()
    }

    /// Promises that nothing before `tick` will be sent by this worker.
    pub fn advance_to(&mut self, tick: Tick) {
        let first = *self.restore.time();
        if tick > first {
            // Only the first tick restores; afterwards nobody waits for this input.
            self.restore.advance_to(if first == 0 { tick } else { Tick::MAX });
        }
        self.events.advance_to(tick);
        self.reports.advance_to(tick);
        self.ticks.advance_to(tick);
    }
}

/// A tick handed on, with the completeness curves that changed at it.
#[derive(Clone, Default)]
struct Notice {
    mark: Mark,
    curves: Vec<(EntityId, Arc<Curve>)>,
}

/// What announces a tick; announcements of one tick are merged.
trait Announce: Default {
    fn merge(&mut self, other: Self);
}

impl Announce for Mark {
    fn merge(&mut self, other: Mark) {
        *self = Mark::merge(*self, other);
    }
}

impl Announce for Notice {
    fn merge(&mut self, other: Notice) {
        self.mark = self.mark.merge(other.mark);
        self.curves.extend(other.curves);
    }
}

/// Announcements waiting for their tick to be complete.
#[derive(Default)]
struct Announced<A = Mark>(BTreeMap<Tick, (Capability<Tick>, A)>);

impl<A: Announce> Announced<A> {
    fn add(&mut self, capability: Capability<Tick>, more: &mut Vec<A>) {
        let entry = self.0.entry(*capability.time()).or_insert((capability, A::default()));
        more.drain(..).for_each(|announcement| entry.1.merge(announcement));
    }

    /// The oldest announced tick that both frontiers have passed.
    fn pop(&mut self, frontiers: [&MutableAntichain<Tick>; 2]) -> Option<(Capability<Tick>, A)> {
        let oldest = self.0.first_entry()?;
        let open = frontiers.iter().any(|frontier| frontier.less_equal(oldest.key()));
        (!open).then(|| oldest.remove())
    }
}

/// Data waiting for its tick to be complete.
type ByTick<D> = BTreeMap<Tick, Vec<Vec<D>>>;

/// Items to be loaded at the tick being announced, by operator.
type Inbox = Rc<RefCell<BTreeMap<StatePart, Vec<StateItem>>>>;

/// Exports and restores one operator's state as ticks pass.
struct StateKeeper {
    part: StatePart,
    inbox: Inbox,
    bytes_per_ms: usize,
    before: Tick,
    exporting: Option<Tick>,
}

impl StateKeeper {
    fn new(part: StatePart, inbox: &Inbox, spec: &FeatureSpec) -> StateKeeper {
        let bytes_per_ms = spec.export_bytes_per_ms;
        StateKeeper { part, inbox: inbox.clone(), bytes_per_ms, before: 0, exporting: None }
    }

    fn restore(&self, tick: Tick, state: &mut impl Stateful, out: &Outbox) {
        let items = self.inbox.borrow_mut().remove(&self.part).unwrap_or_default();
        if let Err(error) = state.restore(tick, &items) {
            out.with(tick, |part| part.restore_failed = Some(error.to_string()));
        }
    }

    /// After a tick has been worked through: begins an export, or goes on with one.
    fn export(&mut self, tick: Tick, mark: Mark, state: &mut impl Stateful, out: &Outbox) {
        let ms = tick.saturating_sub(std::mem::replace(&mut self.before, tick));
        if mark.snapshot {
            state.begin_export(tick);
            self.exporting = Some(tick);
        }
        let begun = mark.snapshot && !mark.last;
        if self.exporting.is_some() && !begun {
            let chunk = if mark.last { usize::MAX } else { chunk_bytes(self.bytes_per_ms, ms) };
            let (items, done) = state.export(chunk);
            out.with(tick, |part| part.take_state(items, done));
        }
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
        if entity.index() >= self.cache.len() && self.view.knows(entity) {
            self.cache = self.view.all().iter().map(|info| info.shard).collect();
        }
        // An id that nobody handed out can only come with damaged state, whose loading fails.
        self.cache.get(entity.index()).copied().unwrap_or(0)
    }
}

/// Builds the graph on one worker. Every worker must call this with the same `spec`.
pub fn build(scope: Scope<'_, Tick>, spec: &Arc<FeatureSpec>, view: &RegistryView) -> Graph {
    let (mut events, mut reports) = (InputHandle::new(), InputHandle::new());
    let (mut ticks, mut restore) = (InputHandle::new(), InputHandle::new());
    let outbox = Outbox::default();
    let inbox = Inbox::default();

    let (mut shards, peers) = (Shards::new(view), scope.peers() as u64);
    let dealt = restore.to_stream(scope).flat_map(move |item: StateItem| {
        let everywhere = item.entity == StateItem::EVERYWHERE;
        let targets = if everywhere {
            0..peers
        } else {
            let worker = shards.of(item.entity) % peers;
            worker..worker + 1
        };
        targets.map(move |target| (target, item.clone()))
    });
    let arrived = inbox.clone();
    let announced = dealt.binary_frontier(
        ticks.to_stream(scope).broadcast(),
        Exchange::new(|(target, _): &(u64, StateItem)| *target),
        Pipeline,
        "announce",
        |_, _| {
            let mut announced = Announced::default();
            move |(items, items_frontier), (ticks, ticks_frontier), output| {
                items.for_each(|_, items: &mut Vec<(u64, StateItem)>| {
                    let mut inbox = arrived.borrow_mut();
                    for (_, item) in items.drain(..) {
                        inbox.entry(item.part).or_default().push(item);
                    }
                });
                ticks.for_each(|cap, marks: &mut Vec<Mark>| {
                    if marks.iter().any(|mark| mark.restored) {
                        announced.add(cap.retain(0), marks);
                    } else {
                        // Nothing to wait for: holding on to the tick would cost a round through
                        // all workers.
                        output.session(&cap).give_container(marks);
                    }
                });
                while let Some((cap, mark)) = announced.pop([items_frontier, ticks_frontier]) {
                    output.session(&cap).give(mark);
                }
            }
        },
    );
    let announced = announced.container::<Vec<Mark>>();

    let restate = Rc::new(RefCell::new(Restate::new(spec, view.clone())));
    let mut shards = Shards::new(view);
    let by_campaign = Exchange::new(move |row: &ReportRow| shards.of(row.key.creative));
    let (out, state) = (outbox.clone(), restate.clone());
    let mut keeper = StateKeeper::new(StatePart::Restate, &inbox, spec);
    let restated = reports.to_stream(scope).binary_frontier(
        announced.clone(),
        by_campaign,
        Pipeline,
        "restate",
        |_, _| {
            let (mut queue, mut announced) = (ByTick::new(), Announced::default());
            move |(input, rows_frontier), (ticks, ticks_frontier), output| {
                input.for_each(|cap, rows: &mut Vec<ReportRow>| {
                    queue.entry(*cap.time()).or_default().push(std::mem::take(rows));
                });
                ticks.for_each(|cap, marks: &mut Vec<Mark>| announced.add(cap.retain(0), marks));
                while let Some((cap, mark)) = announced.pop([rows_frontier, ticks_frontier]) {
                    let (tick, mut restate) = (*cap.time(), state.borrow_mut());
                    if mark.restored {
                        keeper.restore(tick, &mut *restate, &out);
                    }
                    let rows = queue.remove(&tick).unwrap_or_default().concat();
                    let rows_in = rows.len() as u64;
                    let mut restated = restate.apply(tick, rows);
                    if rows_in > 0 {
                        out.with(tick, |part| {
                            part.reports += rows_in - restated.refused.len() as u64;
                            part.reports_unchanged += restated.unchanged;
                            part.restated += restated.events.len() as u64;
                            part.refused_reports.append(&mut restated.refused);
                        });
                        output.session(&cap).give_container(&mut restated.events);
                    }
                    keeper.export(tick, mark, &mut *restate, &out);
                }
            }
        },
    );
    let arriving = events.to_stream(scope).concat(restated);
    let (arriving, said) = listen(arriving, spec, view);

    let learner = Learner::new(spec.maturity.clone(), view.clone());
    let learner = learner.on_worker(scope.index(), scope.peers());
    let learner = Rc::new(RefCell::new(learner));
    let (out, learns) = (outbox.clone(), learner.clone());
    let mut keeper = StateKeeper::new(StatePart::Maturity, &inbox, spec);
    let noticed = said.broadcast().binary_frontier(
        announced.clone(),
        Pipeline,
        Pipeline,
        "maturity",
        |_, _| {
            let (mut queue, mut announced) = (ByTick::new(), Announced::default());
            move |(input, said_frontier), (ticks, ticks_frontier), output| {
                input.for_each(|cap, said: &mut Vec<Said>| {
                    queue.entry(*cap.time()).or_default().push(std::mem::take(said));
                });
                ticks.for_each(|cap, marks: &mut Vec<Mark>| announced.add(cap.retain(0), marks));
                while let Some((cap, mark)) = announced.pop([said_frontier, ticks_frontier]) {
                    let (tick, mut learner) = (*cap.time(), learns.borrow_mut());
                    let said = queue.remove(&tick).unwrap_or_default().concat();
                    let mut curves = Vec::new();
                    if mark.restored {
                        keeper.restore(tick, &mut *learner, &out);
                        curves.extend(learner.curves());
                    } else if !said.is_empty() {
                        curves = learner.take(said);
                    }
                    output.session(&cap).give(Notice { mark, curves });
                    keeper.export(tick, mark, &mut *learner, &out);
                }
            }
        },
    );
    let noticed = noticed.container::<Vec<Notice>>();

    let lower_levels = [Level::Campaign, Level::AdGroup, Level::Creative];
    let lower = Rolling::new(StatePart::Lower, spec.clone(), view.clone(), &lower_levels);
    let lower = Rc::new(RefCell::new(lower));
    let intake = Intake::new(spec.intake, spec.widest_us(), view.clone());
    let intake = Rc::new(RefCell::new(intake));
    let mut shards = Shards::new(view);
    let by_campaign = Exchange::new(move |event: &Event| shards.of(event.creative));
    let (out, admits, rolls) = (outbox.clone(), intake.clone(), lower.clone());
    let emit_events = spec.emit_events;
    let mut intake_keeper = StateKeeper::new(StatePart::Intake, &inbox, spec);
    let mut lower_keeper = StateKeeper::new(StatePart::Lower, &inbox, spec);
    let up =
        arriving.binary_frontier(noticed.clone(), by_campaign, Pipeline, "features", |_, _| {
            let (mut queue, mut announced) = (ByTick::new(), Announced::default());
            move |(input, events_frontier), (ticks, ticks_frontier), output| {
                input.for_each(|cap, events: &mut Vec<Event>| {
                    queue.entry(*cap.time()).or_default().push(std::mem::take(events));
                });
                ticks.for_each(|cap, more: &mut Vec<Notice>| announced.add(cap.retain(0), more));
                while let Some((cap, notice)) = announced.pop([events_frontier, ticks_frontier]) {
                    let (tick, Notice { mark, curves }) = (*cap.time(), notice);
                    let (mut intake, mut rolling) = (admits.borrow_mut(), rolls.borrow_mut());
                    if mark.restored {
                        intake_keeper.restore(tick, &mut *intake, &out);
                        lower_keeper.restore(tick, &mut *rolling, &out);
                        rolling.bend(&curves);
                        out.with(tick, |part| {
                            part.held = intake.held();
                            part.ids_remembered = intake.ids_remembered();
                            part.settled = true;
                        });
                        continue;
                    }
                    let batches = queue.remove(&tick).unwrap_or_default();
                    let admitted = intake.admit(tick, batches, mark);
                    rolling.begin(tick, mark.calm);
                    rolling.bend(&curves);
                    admitted.batches.iter().flatten().for_each(|event| rolling.absorb(event));
                    let mut done = rolling.finish(mark.last || mark.snapshot);
                    if !done.up.is_empty() {
                        output.session(&cap).give_container(&mut done.up);
                    }
                    out.with(tick, |part| {
                        part.take_rows(done);
                        part.featured += admitted.featured;
                        part.held = intake.held();
                        part.ids_remembered = intake.ids_remembered();
                        part.settled = rolling.is_settled();
                        part.refused.extend(admitted.refused);
                        if emit_events {
                            part.events.extend(admitted.batches);
                        }
                    });
                    intake_keeper.export(tick, mark, &mut *intake, &out);
                    lower_keeper.export(tick, mark, &mut *rolling, &out);
                }
            }
        });

    let upper_levels = [Level::Tenant, Level::Account];
    let upper = Rolling::new(StatePart::Upper, spec.clone(), view.clone(), &upper_levels);
    let upper = Rc::new(RefCell::new(upper));
    let mut shards = Shards::new(view);
    let by_entity = Exchange::new(move |up: &Up| shards.of(up.entity()));
    let (out, rolls) = (outbox.clone(), upper.clone());
    let mut keeper = StateKeeper::new(StatePart::Upper, &inbox, spec);
    let (probe, _) = up
        .binary_frontier(noticed, by_entity, Pipeline, "rollup", |_, _| {
            let (mut queue, mut announced) = (ByTick::new(), Announced::default());
            move |(input, up_frontier), (ticks, ticks_frontier), output| {
                input.for_each(|cap, ups: &mut Vec<Up>| {
                    queue.entry(*cap.time()).or_default().push(std::mem::take(ups));
                });
                ticks.for_each(|cap, more: &mut Vec<Notice>| announced.add(cap.retain(0), more));
                while let Some((cap, notice)) = announced.pop([up_frontier, ticks_frontier]) {
                    let (tick, mut rolling) = (*cap.time(), rolls.borrow_mut());
                    let Notice { mark, curves } = notice;
                    output.session(&cap).give(());
                    if mark.restored {
                        keeper.restore(tick, &mut *rolling, &out);
                        rolling.bend(&curves);
                        continue;
                    }
                    rolling.begin(tick, mark.calm);
                    rolling.bend(&curves);
                    let ups = queue.remove(&tick).unwrap_or_default();
                    ups.iter().flatten().for_each(|up| rolling.absorb_up(up));
                    let done = rolling.finish(mark.last || mark.snapshot);
                    out.with(tick, |part| {
                        part.take_rows(done);
                        part.settled &= rolling.is_settled();
                    });
                    keeper.export(tick, mark, &mut *rolling, &out);
                    // The last operator of a tick: the part is whole.
                    out.with(tick, |part| {
                        part.state_of = keeper.exporting;
                        part.state_done = keeper.exporting.is_some() && part.all_exported();
                        if part.state_done {
                            keeper.exporting = None;
                        }
                    });
                }
            }
        })
        .container::<Vec<()>>()
        .probe();

    Graph { events, reports, ticks, restore, probe, outbox, intake, restate, learner, lower, upper }
}

/// Passes events on, and says what those that restate reports tell of their accounts. Statements
/// that no window can hold any more are left out: intake refuses them, and a record has only what it
/// accepts.
fn listen<'scope>(
    events: StreamVec<'scope, Tick, Event>,
    spec: &FeatureSpec,
    view: &RegistryView,
) -> (StreamVec<'scope, Tick, Event>, StreamVec<'scope, Tick, Said>) {
    let (learns, widest_us, mut view) = (spec.maturity.enabled, spec.widest_us(), view.clone());
    let mut builder = OperatorBuilder::new("listen".to_owned(), events.scope());
    let mut input = builder.new_input(events, Pipeline);
    builder.set_notify_for(0, FrontierInterest::Never);
    let (passed, passed_stream) = builder.new_output();
    let (said, said_stream) = builder.new_output();
    let mut passed = OutputBuilder::from(passed);
    let mut said = OutputBuilder::<_, CapacityContainerBuilder<Vec<Said>>>::from(said);
    builder.build(move |_| {
        move |_frontiers| {
            let (mut passed, mut said) = (passed.activate(), said.activate());
            input.for_each(|cap, events: &mut Vec<Event>| {
                let now = us_of_tick(*cap.time());
                let mut sayings = Sayings::default();
                let reports = events.iter().filter(|event| event.kind == EventKind::Report);
                for event in reports.filter(|event| learns && event.time >= now - widest_us) {
                    sayings.hear(view.info(event.creative), now, event);
                }
                said.session(&cap).give_iterator(sayings.into_said());
                passed.session(&cap).give_container(events);
            });
        }
    });
    (passed_stream, said_stream)
}
