//! The idioms of timely 0.31 and differential 0.25 that this project relies on or would reach for,
//! each compiled and run on its own: when an upgrade changes one, its test says which.
//!
//! The first half is timely (operators, progress, workers), the second half differential (a custom
//! difference type, temporal filters, upserts).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use differential_dataflow::difference::{Abelian, IsZero, Monoid, Multiply, Semigroup};
use differential_dataflow::input::InputSession;
use differential_dataflow::operators::CountTotal;
use differential_dataflow::operators::arrange::upsert::arrange_from_upsert;
use differential_dataflow::trace::implementations::{ValBuilder, ValSpine};
use differential_dataflow::{AsCollection, VecCollection};
use omnify_operators::model::Stats;
use proptest::prelude::*;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::InputHandle;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::capture::{Capture, Extract};
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::vec::{Broadcast, Map, ToStream};
use timely::dataflow::operators::{Inspect, Probe};
use timely::dataflow::{ProbeHandle, StreamVec};

type Time = u64;

/// Builds containers of numbers.
type Numbers = CapacityContainerBuilder<Vec<u64>>;

/// What operators of one thread leave behind for the test to look at.
type Log<T> = Rc<RefCell<Vec<T>>>;

fn stats(impressions: i64, clicks: i64, cost_micros: i64) -> Stats {
    Stats { impressions, clicks, cost_micros, ..Stats::ZERO }
}

// ------------------------------------------------------------------------------------- operators

/// An operator buffers by time, retains the capability of each time on port 0, and speaks when its
/// frontier has passed.
#[test]
fn unary_frontier_holds_a_time_until_it_is_complete() {
    let sums = timely::execute_directly(|worker| {
        let log: Log<(Time, u64)> = Rc::default();
        let seen = log.clone();
        let mut input = InputHandle::new();
        let probe = worker.dataflow::<Time, _, _>(|scope| {
            let numbers: StreamVec<'_, Time, u64> = input.to_stream(scope);
            let sums = numbers.unary_frontier(Pipeline, "sum", |_cap, _info| {
                let mut open = BTreeMap::new();
                move |(input, frontier), output| {
                    input.for_each(|cap, data: &mut Vec<u64>| {
                        let entry = open.entry(*cap.time());
                        entry.or_insert_with(|| (cap.retain(0), 0)).1 +=
                            data.drain(..).sum::<u64>();
                    });
                    while let Some(first) = open.first_entry() {
                        if frontier.less_equal(first.key()) {
                            break;
                        }
                        let (cap, sum) = first.remove();
                        output.session(&cap).give(sum);
                    }
                }
            });
            let sums = sums.container::<Vec<u64>>();
            sums.inspect_time(move |time, sum| seen.borrow_mut().push((*time, *sum))).probe().0
        });
        input.send(1);
        input.flush();
        (0..10).for_each(|_| {
            worker.step();
        });
        assert!(log.borrow().is_empty(), "time 0 may still get more");
        input.send(2);
        input.advance_to(5);
        input.send(3);
        input.advance_to(6);
        worker.step_while(|| probe.less_than(&6));
        log.take()
    });
    assert_eq!(sums, [(0, 3), (5, 3)]);
}

/// Both frontiers must have passed; a capability retained from one input speaks for both.
#[test]
fn binary_frontier_waits_for_both_inputs() {
    let log = timely::execute_directly(|worker| {
        let log: Log<(Time, u64)> = Rc::default();
        let seen = log.clone();
        let (mut data, mut ticks) = (InputHandle::new(), InputHandle::new());
        let probe = worker.dataflow::<Time, _, _>(|scope| {
            let (values, marks) = (data.to_stream(scope), ticks.to_stream(scope));
            let joined = values.binary_frontier(marks, Pipeline, Pipeline, "by tick", |_, _| {
                let (mut sums, mut due) = (BTreeMap::<Time, u64>::new(), BTreeMap::new());
                move |(values, values_frontier), (marks, marks_frontier), output| {
                    values.for_each(|cap, data: &mut Vec<u64>| {
                        *sums.entry(*cap.time()).or_default() += data.drain(..).sum::<u64>();
                    });
                    marks.for_each(|cap, _: &mut Vec<()>| {
                        due.insert(*cap.time(), cap.retain(0));
                    });
                    while let Some(first) = due.first_entry() {
                        let time = *first.key();
                        if values_frontier.less_equal(&time) || marks_frontier.less_equal(&time) {
                            break;
                        }
                        let cap = first.remove();
                        output.session(&cap).give(sums.remove(&time).unwrap_or_default());
                    }
                }
            });
            let joined = joined.container::<Vec<u64>>();
            joined.inspect_time(move |time, sum| seen.borrow_mut().push((*time, *sum))).probe().0
        });
        data.advance_to(1);
        ticks.advance_to(1);
        ticks.send(());
        ticks.advance_to(2);
        data.send(7);
        data.flush();
        (0..10).for_each(|_| {
            worker.step();
        });
        assert!(log.borrow().is_empty(), "the data side is still at time 1");
        // A tick without data speaks as well: announcing it is what makes it happen.
        ticks.send(());
        ticks.advance_to(3);
        data.advance_to(3);
        worker.step_while(|| probe.less_than(&3));
        log.take()
    });
    assert_eq!(log, [(1, 7), (2, 0)]);
}

/// Runs `f` on `workers` threads and returns what each worker returned, by worker.
fn on_workers<T: Send + 'static>(
    workers: usize,
    f: impl Fn(&mut timely::worker::Worker) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let guards = timely::execute(timely::Config::process(workers), f).unwrap();
    guards.join().into_iter().map(Result::unwrap).collect()
}

/// `Exchange` sends a record to worker `hash % peers`, whoever sent it.
#[test]
fn exchange_brings_a_key_to_one_worker() {
    let seen = on_workers(3, |worker| {
        let log: Log<u64> = Rc::default();
        let mine = log.clone();
        let mut input = InputHandle::new();
        let probe = worker.dataflow::<Time, _, _>(|scope| {
            let keys: StreamVec<'_, Time, u64> = input.to_stream(scope);
            keys.unary(Exchange::new(|key: &u64| *key), "here", move |_, _| {
                move |input, output| {
                    input.for_each(|cap, keys| {
                        mine.borrow_mut().extend(keys.iter());
                        output.session(&cap).give_container(keys);
                    });
                }
            })
            .probe()
            .0
        });
        (0..30).for_each(|key| input.send(key));
        input.advance_to(1);
        worker.step_while(|| probe.less_than(&1));
        (worker.index(), log.take())
    });
    for (index, keys) in seen {
        assert_eq!(keys.len(), 30, "ten keys from each of three workers");
        assert!(keys.iter().all(|key| *key as usize % 3 == index));
    }
}

/// `broadcast` brings a record to every worker once.
#[test]
fn broadcast_reaches_every_worker() {
    let seen = on_workers(3, |worker| {
        let log: Log<u64> = Rc::default();
        let mine = log.clone();
        let mut input = InputHandle::new();
        let probe = worker.dataflow::<Time, _, _>(|scope| {
            let ticks: StreamVec<'_, Time, u64> = input.to_stream(scope);
            ticks.broadcast().inspect(move |tick| mine.borrow_mut().push(*tick)).probe().0
        });
        if worker.index() == 1 {
            input.send(42);
        }
        input.advance_to(1);
        worker.step_while(|| probe.less_than(&1));
        log.take()
    });
    assert_eq!(seen, [[42], [42], [42]]);
}

/// One worker that does not advance its input holds every worker's frontier.
#[test]
fn the_frontier_waits_for_the_slowest_worker() {
    let (go, wait) = mpsc::channel();
    let wait = Mutex::new(Some(wait));
    let go = Mutex::new(Some(go));
    let held = on_workers(2, move |worker| {
        let mut input = InputHandle::<Time, Numbers>::new();
        let probe = worker.dataflow::<Time, _, _>(|scope| input.to_stream(scope).probe().0);
        let mut held = true;
        if worker.index() == 0 {
            input.advance_to(1);
            for _ in 0..50 {
                worker.step();
                held &= probe.less_than(&1);
            }
            go.lock().unwrap().take().unwrap().send(()).unwrap();
        } else {
            let wait = wait.lock().unwrap().take().unwrap();
            while wait.try_recv().is_err() {
                worker.step_or_park(Some(Duration::from_millis(1)));
            }
            input.advance_to(1);
        }
        worker.step_while(|| probe.less_than(&1));
        held
    });
    assert_eq!(held, [true, true]);
}

/// A probe is behind a time while results before it may change, and `done` when nothing can come.
#[test]
fn a_probe_tells_what_is_complete() {
    timely::execute_directly(|worker| {
        let mut input = InputHandle::<Time, Numbers>::new();
        let probe = ProbeHandle::new();
        worker.dataflow::<Time, _, _>(|scope| {
            input.to_stream(scope).probe_with(&probe);
        });
        input.advance_to(3);
        worker.step_while(|| probe.less_than(&3));
        assert!(!probe.less_than(&3) && probe.less_equal(&3));
        assert!(probe.with_frontier(|frontier| frontier.to_vec()) == [3]);
        input.close();
        worker.step_while(|| !probe.done());
    });
}

/// Every worker gets a dense index below the number of peers.
#[test]
fn a_process_starts_as_many_workers_as_asked() {
    let who = on_workers(4, |worker| (worker.index(), worker.peers()));
    assert_eq!(who, [(0, 4), (1, 4), (2, 4), (3, 4)]);
}

/// `capture` sends to a standard channel, and `extract` gathers by time, each time sorted.
#[test]
fn capture_and_extract_give_sorted_output() {
    let captured = timely::example(|scope| {
        let numbers: StreamVec<'_, u64, u64> = [3, 1, 2].to_stream(scope);
        numbers.map(|n| n * 10).capture()
    });
    assert_eq!(captured.extract(), [(0, vec![10, 20, 30])]);
}

/// `step_or_park` comes back when its timeout ends, and at once when another thread activates an
/// operator of the worker.
#[test]
fn parking_ends_by_timeout_or_by_activation() {
    timely::execute_directly(|worker| {
        let runs = Rc::new(RefCell::new(0));
        let counted = runs.clone();
        let path: Rc<RefCell<Option<Rc<[usize]>>>> = Rc::default();
        let path_out = path.clone();
        let _input = worker.dataflow::<Time, _, _>(|scope| {
            let mut input = InputHandle::<Time, Numbers>::new();
            input.to_stream(scope).unary::<Numbers, _, _, _>(Pipeline, "idle", move |_, info| {
                *path_out.borrow_mut() = Some(info.address);
                move |_, _| *counted.borrow_mut() += 1
            });
            input
        });
        (0..10).for_each(|_| {
            worker.step();
        });
        let idle = *runs.borrow();
        worker.step_or_park(Some(Duration::from_millis(2)));
        assert_eq!(*runs.borrow(), idle, "nothing to do: the timeout ended the park");
        let activator = worker.sync_activator_for(path.borrow().as_ref().unwrap().to_vec());
        let waker = std::thread::spawn(move || activator.activate().unwrap());
        // Without an activation this would wait for a minute for each step.
        while *runs.borrow() == idle {
            worker.step_or_park(Some(Duration::from_secs(60)));
        }
        waker.join().unwrap();
    });
}

/// Dropping a dataflow discards what it holds; it does not drain it into the sink.
#[test]
fn a_dropped_dataflow_does_not_drain() {
    let drained = |drop: bool| {
        timely::execute_directly(move |worker| {
            let log: Log<(Stats, Time, isize)> = Rc::default();
            let seen = log.clone();
            let mut input = InputSession::<Time, char, Stats>::new();
            let (dataflow, probe) = worker.dataflow::<Time, _, _>(|scope| {
                let window = sliding(input.to_collection(scope), 60).count_total();
                let seen = window.inspect(move |((_, sums), time, diff)| {
                    seen.borrow_mut().push((*sums, *time, *diff));
                });
                (scope.addr()[0], seen.probe().0)
            });
            input.update('a', stats(1, 0, 5));
            input.advance_to(10);
            input.flush();
            worker.step_while(|| probe.less_than(&10));
            assert_eq!(worker.installed_dataflows(), [dataflow]);
            if drop {
                worker.drop_dataflow(dataflow);
                assert!(!worker.has_dataflows());
            }
            input.close();
            (0..100).for_each(|_| {
                worker.step();
            });
            log.take()
        })
    };
    let one = (stats(1, 0, 5), 0, 1);
    assert_eq!(drained(true), [one]);
    assert_eq!(drained(false), [one, (stats(1, 0, 5), 60, -1)], "closing expires the window");
}

// --------------------------------------------------------------------------- differences and time

/// The temporal filter: every delta comes with its own retraction, `width` later.
fn sliding<'scope, K: differential_dataflow::ExchangeData>(
    deltas: VecCollection<'scope, Time, K, Stats>,
    width: Time,
) -> VecCollection<'scope, Time, K, Stats> {
    deltas
        .inner
        .flat_map(move |(key, time, delta)| {
            [(key.clone(), time, delta), (key, time + width, -delta)]
        })
        .as_collection()
}

fn any_stats() -> impl Strategy<Value = Stats> {
    let field = -1_000_000_000_i64..1_000_000_000;
    (field.clone(), field.clone(), field.clone(), field.clone(), field).prop_map(
        |(impressions, clicks, conversions, cost_micros, revenue_micros)| Stats {
            impressions,
            clicks,
            conversions,
            cost_micros,
            revenue_micros,
        },
    )
}

fn plus(a: Stats, b: Stats) -> Stats {
    let mut sum = a;
    Semigroup::plus_equals(&mut sum, &b);
    sum
}

fn negated(a: Stats) -> Stats {
    let mut negated = a;
    Abelian::negate(&mut negated);
    negated
}

proptest! {
    #[test]
    fn stats_are_an_abelian_group(a in any_stats(), b in any_stats(), c in any_stats()) {
        prop_assert_eq!(plus(a, plus(b, c)), plus(plus(a, b), c));
        prop_assert_eq!(plus(a, b), plus(b, a));
        prop_assert_eq!(plus(a, Stats::zero()), a);
        prop_assert!(plus(a, negated(a)).is_zero());
        prop_assert_eq!(a.is_zero(), a == Stats::ZERO);
    }

    /// What `join` and `explode` rely on.
    #[test]
    fn multiplication_distributes_over_addition(
        a in any_stats(), b in any_stats(), m in -1_000_isize..1_000, n in -1_000_isize..1_000,
    ) {
        prop_assert_eq!(plus(a, b).multiply(&n), plus(a.multiply(&n), b.multiply(&n)));
        prop_assert_eq!(a.multiply(&(m + n)), plus(a.multiply(&m), a.multiply(&n)));
        prop_assert_eq!(a.multiply(&1), a);
        prop_assert!(a.multiply(&0).is_zero());
    }
}

/// A difference is zero only when all of its fields are.
#[test]
fn a_partial_cancellation_is_not_zero() {
    assert!(!plus(stats(1, 1, 5), stats(-1, -1, 0)).is_zero());
    assert!(Stats::zero().is_zero());
}

/// Runs a collection of (key, delta) updates at times through `build` on one thread and returns
/// the consolidated changes it put out, ascending by time.
fn changes<D: differential_dataflow::Data + Ord + Send>(
    updates: &[(char, Time, Stats)],
    until: Time,
    build: impl for<'scope> FnOnce(
        VecCollection<'scope, Time, char, Stats>,
    ) -> VecCollection<'scope, Time, D, isize>
    + Send
    + Sync
    + 'static,
) -> Vec<(Time, D, isize)> {
    let updates = updates.to_vec();
    timely::execute_directly(move |worker| {
        let log: Log<(D, Time, isize)> = Rc::default();
        let seen = log.clone();
        let mut input = InputSession::new();
        let probe = worker.dataflow::<Time, _, _>(|scope| {
            build(input.to_collection(scope))
                .inspect(move |change| seen.borrow_mut().push(change.clone()))
                .probe()
                .0
        });
        for (key, time, delta) in updates {
            // Element, time, change; never behind the session's own time.
            input.update_at(key, time, delta);
        }
        input.advance_to(until);
        input.flush();
        worker.step_while(|| probe.less_than(&until));
        let mut changes = log.take();
        differential_dataflow::consolidation::consolidate_updates(&mut changes);
        let mut changes: Vec<_> = changes.into_iter().map(|(d, t, r)| (t, d, r)).collect();
        changes.sort();
        changes
    })
}

/// Sums ride in the difference: `count_total` retracts the old and asserts the new sum.
#[test]
fn count_total_keeps_sums_of_a_custom_difference() {
    let updates = [('a', 1, stats(1, 0, 10)), ('a', 3, stats(1, 1, 5)), ('b', 3, stats(4, 0, 0))];
    assert_eq!(
        changes(&updates, 9, |deltas| deltas.count_total()),
        [
            (1, ('a', stats(1, 0, 10)), 1),
            (3, ('a', stats(1, 0, 10)), -1),
            (3, ('a', stats(2, 1, 15)), 1),
            (3, ('b', stats(4, 0, 0)), 1),
        ]
    );
}

/// An entity leaves the window one width after it entered, without any input at that time.
#[test]
fn a_temporal_filter_retracts_at_its_width() {
    let updates = [('a', 5, stats(1, 0, 10)), ('a', 30, stats(2, 0, 1))];
    let window = |until| changes(&updates, until, |deltas| sliding(deltas, 60).count_total());
    let before = [
        (5, ('a', stats(1, 0, 10)), 1),
        (30, ('a', stats(1, 0, 10)), -1),
        (30, ('a', stats(3, 0, 11)), 1),
    ];
    assert_eq!(window(65), before, "the input has reached 65: 65 itself may still change");
    assert_eq!(
        window(66)[3..],
        [(65, ('a', stats(2, 0, 1)), 1), (65, ('a', stats(3, 0, 11)), -1),]
    );
    assert_eq!(window(91).last(), Some(&(90, ('a', stats(2, 0, 1)), -1)));
}

/// A join multiplies differences: joined to what the key belongs to, a delta is rolled up.
#[test]
fn a_join_carries_the_delta_to_the_parent() {
    let rolled = timely::execute_directly(|worker| {
        let log: Log<(char, Time, Stats)> = Rc::default();
        let seen = log.clone();
        let mut deltas = InputSession::<Time, (u32, ()), Stats>::new();
        let mut parents = InputSession::<Time, (u32, char), isize>::new();
        let probe = worker.dataflow::<Time, _, _>(|scope| {
            let (deltas, parents) = (deltas.to_collection(scope), parents.to_collection(scope));
            let rolled = deltas.join_map(parents, |_, (), parent| *parent);
            let rolled = rolled.consolidate();
            rolled.inspect(move |change| seen.borrow_mut().push(*change)).probe().0
        });
        for pair in [(1, 'l'), (2, 'l'), (3, 'r')] {
            parents.insert(pair);
        }
        deltas.update((1, ()), stats(1, 0, 3));
        deltas.update((2, ()), stats(2, 1, 0));
        deltas.update((3, ()), stats(9, 0, 0));
        parents.advance_to(4);
        deltas.advance_to(4);
        // Moving a child moves its whole past.
        parents.remove((2, 'l'));
        parents.insert((2, 'r'));
        parents.advance_to(5);
        deltas.advance_to(5);
        parents.flush();
        deltas.flush();
        worker.step_while(|| probe.less_than(&5));
        let mut log = log.take();
        log.sort_by_key(|(parent, time, _)| (*time, *parent));
        log
    });
    assert_eq!(
        rolled,
        [
            ('l', 0, stats(3, 1, 3)),
            ('r', 0, stats(9, 0, 0)),
            ('l', 4, stats(-2, -1, 0)),
            ('r', 4, stats(2, 1, 0)),
        ]
    );
}

/// `reduce` sees all values of a key with their counts, ascending; the greatest is the last.
#[test]
fn reduce_keeps_the_greatest() {
    let changes = timely::execute_directly(|worker| {
        let log: Log<(Time, (u32, u64), isize)> = Rc::default();
        let seen = log.clone();
        let mut input = InputSession::<Time, (u32, u64), isize>::new();
        let probe = worker.dataflow::<Time, _, _>(|scope| {
            input
                .to_collection(scope)
                .reduce(|_key, values, output| {
                    let (greatest, _count) = values[values.len() - 1];
                    output.push((*greatest, 1));
                })
                .inspect(move |(pair, time, diff)| seen.borrow_mut().push((*time, *pair, *diff)))
                .probe()
                .0
        });
        for pair in [(7, 4), (7, 9), (8, 1)] {
            input.insert(pair);
        }
        input.advance_to(1);
        input.insert((7, 5));
        input.advance_to(2);
        input.remove((7, 9));
        input.advance_to(3);
        input.flush();
        worker.step_while(|| probe.less_than(&3));
        let mut log = log.take();
        log.sort_unstable();
        log
    });
    // Nothing at time 1: 5 does not beat 9.
    assert_eq!(changes, [(0, (7, 9), 1), (0, (8, 1), 1), (2, (7, 5), 1), (2, (7, 9), -1)]);
}

/// `arrange_from_upsert` knows what to retract. Within one time the greatest value wins, whatever
/// the order of arrival: that is why a version has a sequence number in it.
#[test]
fn an_upsert_replaces_the_value_before() {
    type Version = (u64, i64);
    let changes = timely::execute_directly(|worker| {
        let log: Log<(Time, (u32, Version), isize)> = Rc::default();
        let seen = log.clone();
        let mut input = InputHandle::new();
        let probe = worker.dataflow::<Time, _, _>(|scope| {
            let upserts: StreamVec<'_, Time, (u32, Option<Version>, Time)> = input.to_stream(scope);
            arrange_from_upsert::<
                ValBuilder<u32, Version, Time, isize>,
                ValSpine<u32, Version, Time, isize>,
                u32,
                Version,
            >(upserts, "reports")
            .as_collection(|key, version| (*key, *version))
            .inspect(move |(pair, time, diff)| seen.borrow_mut().push((*time, *pair, *diff)))
            .probe()
            .0
        });
        // (sequence, total): the greater sequence wins although its total is smaller and it came
        // first.
        input.send((1, Some((2, 100)), 0));
        input.send((1, Some((1, 500)), 0));
        input.advance_to(1);
        input.send((1, Some((2, 100)), 1));
        input.advance_to(2);
        input.send((1, Some((3, 90)), 2));
        input.advance_to(3);
        input.send((1, None, 3));
        input.advance_to(4);
        worker.step_while(|| probe.less_than(&4));
        let mut log = log.take();
        log.sort_unstable();
        log
    });
    assert_eq!(
        changes,
        [
            (0, (1, (2, 100)), 1),
            (2, (1, (2, 100)), -1),
            (2, (1, (3, 90)), 1),
            (3, (1, (3, 90)), -1),
        ]
    );
}

/// `consolidate` brings equal records of all workers together and cancels what sums to zero.
#[test]
fn consolidate_cancels_across_workers() {
    let log: Arc<Mutex<Vec<(char, Time, Stats)>>> = Arc::default();
    let seen = log.clone();
    on_workers(2, move |worker| {
        let seen = seen.clone();
        let mut input = InputSession::<Time, u32, Stats>::new();
        let probe = worker.dataflow::<Time, _, _>(|scope| {
            let names = input.to_collection(scope).map(|n| if n == 1 { '1' } else { '2' });
            let consolidated = names.consolidate();
            consolidated.inspect(move |change| seen.lock().unwrap().push(*change)).probe().0
        });
        // Worker 0 adds what worker 1 takes away again, up to one click.
        let sign = if worker.index() == 0 { 1 } else { -1 };
        input.update(1, stats(5 * sign, 0, 0));
        input.update(2, stats(5 * sign, i64::from(sign > 0), 0));
        input.advance_to(1);
        input.flush();
        worker.step_while(|| probe.less_than(&1));
    });
    assert_eq!(*log.lock().unwrap(), [('2', 0, stats(0, 1, 0))]);
}
