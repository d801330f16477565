//! A reader sees one tick, whatever the writer does meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use omnify_decision::action::Verdict;
use omnify_decision::control::{Actual, Outcome};
use omnify_operators::model::{
    EntityInfo, EntityKey, FeatureRow, Frame, Level, MAX_WINDOWS, Registry, RegistryView, Stats,
    Tick,
};
use omnify_sinks::serve::{ActionState, Board, BoardConfig, Snapshot};
use proptest::prelude::*;

use crate::support::{action, board, config, counters, decision, entities, frame, id, row};

#[test]
fn readers_on_other_threads_never_see_two_ticks() {
    let registry = Arc::new(Registry::utc());
    for creative in 0..400 {
        registry.intern(&format!("t/p/a/c{}/g/{creative}", creative % 7).parse().unwrap());
    }
    let entities = RegistryView::new(registry).all().to_vec();
    let mut board = Board::new(config());
    board.update(&frame(&entities, 1));
    board.publish(1, counters(1));
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (snapshots, done) = (board.subscribe(), done.clone());
            let wanted = entities.len();
            std::thread::spawn(move || {
                let mut reads = 0_u64;
                while !done.load(Ordering::Relaxed) || reads == 0 {
                    let snapshot = snapshots.borrow().clone();
                    let ticks = snapshot.rows(None, None).map(|row| row.features.tick);
                    let ticks: Vec<_> = ticks.collect();
                    assert_eq!(ticks, vec![snapshot.tick; wanted]);
                    assert_eq!(snapshot.counters.events_in, snapshot.tick);
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    for tick in 2..300 {
        // In two parts, so that a publication in between would show.
        let Frame { rows, .. } = frame(&entities, tick);
        let (a, b) = rows.split_at(rows.len() / 2);
        board.update(&Frame { tick, rows: a.to_vec() });
        board.update(&Frame { tick, rows: b.to_vec() });
        board.publish(tick, counters(tick));
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
}

/// What a snapshot says, as text.
fn written(snapshot: &Snapshot) -> Vec<String> {
    let rows = snapshot.rows(None, None).map(|row| {
        let (key, tick) = (&row.info.key, row.features.tick);
        let decided = row.decision.as_ref().map(|kept| kept.sequence);
        format!("{key} {tick} {:?} {decided:?}", row.settings)
    });
    let decisions = snapshot.decisions.iter(None, 0, u64::MAX);
    let decisions = decisions.map(|kept| format!("{} {}", kept.sequence, kept.decision.id));
    let actions =
        snapshot.actions.iter().map(|kept| format!("{} {:?}", kept.action.id, kept.state));
    rows.chain(decisions).chain(actions).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Update(Vec<prop::sample::Index>),
    Decide(prop::sample::Index, bool),
    Act(prop::sample::Index),
    End(prop::sample::Index),
    Observe(prop::sample::Index, i64),
    Publish,
}

fn step() -> impl Strategy<Value = Step> {
    let any_index = any::<prop::sample::Index>;
    prop_oneof![
        prop::collection::vec(any_index(), 0..8).prop_map(Step::Update),
        (any_index(), any::<bool>()).prop_map(|(at, act)| Step::Decide(at, act)),
        any_index().prop_map(Step::Act),
        any_index().prop_map(Step::End),
        (any_index(), 1..100_i64).prop_map(|(at, bid)| Step::Observe(at, bid)),
        Just(Step::Publish),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A snapshot once taken never changes, and rows are found by key and in tree order.
    #[test]
    fn snapshots_do_not_change(steps in prop::collection::vec(step(), 1..60)) {
        let entities = entities();
        let small = BoardConfig { decisions_kept: 3, actions_kept: 4, ..config() };
        let mut board = Board::new(small);
        let snapshots = board.subscribe();
        let mut taken: Vec<(Arc<Snapshot>, Vec<String>)> = Vec::new();
        let pick = |at: &prop::sample::Index| -> &Arc<EntityInfo> { &entities[at.index(entities.len())] };
        for (tick, step) in (1..).zip(&steps) {
            match step {
                Step::Update(which) => {
                    let rows = which.iter().map(pick).map(|info| (info.clone(), row(info, tick)));
                    board.update(&Frame { tick, rows: rows.collect() });
                }
                Step::Decide(at, act) => {
                    let verdict = if *act { Verdict::Act } else { Verdict::Hold };
                    board.decision(&decision(pick(at), tick, verdict));
                }
                Step::Act(at) => board.action(&action(pick(at), 1), ActionState::InFlight),
                Step::End(at) => {
                    board.outcome(action(pick(at), 1).id, &Outcome::Expired, tick);
                }
                Step::Observe(at, bid) => {
                    let actual = Actual { bid_micros: Some(*bid), ..Actual::default() };
                    board.observe(&pick(at).key, &actual);
                }
                Step::Publish => {
                    board.publish(tick, counters(tick));
                    let snapshot = snapshots.borrow().clone();
                    let text = written(&snapshot);
                    taken.push((snapshot, text));
                }
            }
        }
        for (snapshot, text) in &taken {
            prop_assert_eq!(&written(snapshot), text);
            let keys: Vec<&EntityKey> = snapshot.rows(None, None).map(|row| &row.info.key).collect();
            prop_assert_eq!(keys.len(), snapshot.len());
            for pair in keys.windows(2) {
                let segments = |key: &EntityKey| key.as_str().split('/').map(String::from).collect::<Vec<_>>();
                prop_assert!(segments(pair[0]) < segments(pair[1]), "{} {}", pair[0], pair[1]);
            }
            for key in keys {
                prop_assert_eq!(&snapshot.row(key).unwrap().info.key, key);
            }
            prop_assert!(snapshot.actions.iter().count() <= 4);
            prop_assert!(snapshot.decisions.iter(Some(Verdict::Act), 0, u64::MAX).count() <= 3);
        }
    }
}

#[test]
fn settings_reported_before_the_first_row_are_not_lost() {
    let entities = entities();
    let mut board = Board::new(config());
    let actual = Actual { budget_micros: Some(5), ..Actual::default() };
    board.observe(&entities[0].key, &actual);
    let later = Actual { bid_micros: Some(1), ..Actual::default() };
    board.observe(&entities[0].key, &later);
    board.update(&frame(&entities, 1));
    board.publish(1, counters(1));
    let snapshot = board.subscribe().borrow().clone();
    let settings = &snapshot.row(&entities[0].key).unwrap().settings;
    assert_eq!((settings.bid_micros, settings.budget_micros), (Some(1), Some(5)));
}

#[test]
fn publications_keep_their_distance() {
    let entities = entities();
    let mut board = Board::new(BoardConfig { publish_every_ms: 100, ..config() });
    let snapshots = board.subscribe();
    let mut seen = Vec::new();
    for tick in 1..=1_000 {
        board.update(&frame(&entities[..1], tick));
        board.publish(tick, counters(tick));
        let now = snapshots.borrow().tick;
        if seen.last() != Some(&now) {
            seen.push(now);
        }
    }
    assert_eq!(seen, (0..10).map(|n| n * 100 + 1).collect::<Vec<_>>());
    board.publish_now(1_000, counters(1_000));
    assert_eq!(snapshots.borrow().tick, 1_000);
    // Unless there is news that does not wait.
    board.publish(1_001, counters(1_001));
    assert_eq!(snapshots.borrow().tick, 1_000);
    board.hurry();
    board.publish(1_002, counters(1_002));
    board.publish(1_003, counters(1_003));
    assert_eq!(snapshots.borrow().tick, 1_002);
}

#[test]
fn a_flood_of_no_ops_keeps_the_acts_and_old_actions_leave() {
    let entities = entities();
    let campaign = entities.iter().find(|info| info.level == Level::Campaign).unwrap();
    let mut board = Board::new(BoardConfig { decisions_kept: 5, actions_kept: 2, ..config() });
    board.decision(&decision(campaign, 1, Verdict::Act));
    for tick in 2..100 {
        board.decision(&decision(campaign, tick, Verdict::Hold));
    }
    for tick in 1..5 {
        board.action(&action(campaign, tick), ActionState::InFlight);
    }
    // Told about an action that left: nothing happens. The same id again: no second entry.
    board.outcome(action(campaign, 1).id, &Outcome::NoChange, 6);
    board.outcome(action(campaign, 4).id, &Outcome::NoChange, 6);
    board.outcome(id(1, 1), &Outcome::Unknown, 6);
    board.action(&action(campaign, 4), ActionState::Applied);
    board.publish(6, counters(1));
    let snapshot = board.subscribe().borrow().clone();
    let kept: Vec<u64> =
        snapshot.decisions.iter(None, 0, u64::MAX).map(|one| one.sequence).collect();
    assert_eq!(kept, [99, 98, 97, 96, 95, 1]);
    let states: Vec<_> = snapshot.actions.iter().map(|one| (one.action.tick, one.state)).collect();
    assert_eq!(states, [(4, ActionState::Applied), (3, ActionState::InFlight)]);
    let bid = snapshot.row(&campaign.key).unwrap().settings.bid_micros;
    assert_eq!(bid, Some(2_000_000), "what was applied is true now");
}

#[test]
fn sparklines_cover_the_whole_past_in_bounded_space() {
    let entities = entities();
    let campaign = entities.iter().find(|info| info.level == Level::Campaign).unwrap();
    let mut board = Board::new(BoardConfig { spark_every_ms: 1_000, ..config() });
    for second in 1..20_000 {
        let rows = vec![(campaign.clone(), row(campaign, second * 1_000))];
        board.update(&Frame { tick: second * 1_000, rows });
    }
    board.publish(20_000_000, counters(1));
    let snapshot = board.subscribe().borrow().clone();
    let spark = snapshot.row(&campaign.key).unwrap().spark.clone().unwrap();
    assert!(spark.points.len() <= 60 && spark.points.len() > 30, "{}", spark.points.len());
    assert_eq!(spark.points.front().unwrap().tick, 1_000);
    assert!(spark.points.back().unwrap().tick > 19_000_000);
}

#[test]
fn silent_creatives_are_forgotten_until_they_deliver_again() {
    const HOUR: u64 = 3_600_000;
    let entities = entities();
    let creative = entities.iter().find(|info| info.level == Level::Creative).unwrap();
    let mut board = board(&entities);
    let snapshots = board.subscribe();
    let silent = |info: &EntityInfo, tick| FeatureRow {
        windows: [Stats::ZERO; MAX_WINDOWS],
        ..row(info, tick)
    };
    let mut publish = |tick: Tick, rows: Vec<(Arc<EntityInfo>, FeatureRow)>| {
        board.update(&Frame { tick, rows });
        board.publish_now(tick, counters(1));
        let snapshot = snapshots.borrow().clone();
        let rows: Vec<_> = snapshot.rows(None, None).map(|row| row.info.clone()).collect();
        assert_eq!(rows.len(), snapshot.len());
        assert!(rows.iter().all(|info| snapshot.row(&info.key).is_some()));
        rows
    };
    let loud = |tick| vec![(creative.clone(), row(creative, tick))];
    let everybody = entities.len();
    assert_eq!(
        publish(26 * HOUR, loud(26 * HOUR)).len(),
        everybody,
        "their windows hold something"
    );
    // Everybody falls silent but one creative, which delivers on.
    let rows = entities.iter().map(|info| (info.clone(), silent(info, 27 * HOUR))).collect();
    assert_eq!(publish(27 * HOUR, rows).len(), everybody);
    assert_eq!(publish(51 * HOUR, loud(51 * HOUR)).len(), everybody);
    let left = publish(52 * HOUR, loud(52 * HOUR));
    let upper = entities.iter().filter(|info| info.level <= Level::Campaign).count();
    assert_eq!(left.len(), upper + 1);
    assert!(left.iter().any(|info| info.key == creative.key));
    // All of them deliver again.
    let rows = entities.iter().map(|info| (info.clone(), row(info, 53 * HOUR))).collect();
    assert_eq!(publish(53 * HOUR, rows).len(), everybody);
}

#[test]
fn everybody_silent_is_forgotten_however_many_and_however_rare_publications_are() {
    const HOUR: u64 = 3_600_000;
    let registry = Arc::new(Registry::utc());
    let mut view = RegistryView::new(registry.clone());
    for n in 0..10_000 {
        registry.intern(&format!("t/p/a/c{}/g/x{n}", n / 100).parse().unwrap());
    }
    let entities: Vec<_> = view.all().to_vec();
    let mut board = board(&entities);
    let silent =
        |info: &EntityInfo| FeatureRow { windows: [Stats::ZERO; MAX_WINDOWS], ..row(info, HOUR) };
    let rows = entities.iter().map(|info| (info.clone(), silent(info))).collect();
    board.update(&Frame { tick: HOUR, rows });
    let mut left_after = |days: u64| {
        for hour in 0..4 {
            board.publish_now(days * 24 * HOUR + hour * HOUR, counters(1));
        }
        let snapshot = board.subscribe().borrow().clone();
        snapshot.rows(None, None).map(|row| row.info.level).collect::<Vec<_>>()
    };
    assert_eq!(left_after(0).len(), entities.len());
    assert!(left_after(3).iter().all(|level| *level <= Level::Campaign));
    assert_eq!(left_after(30).len(), 102);
    assert_eq!(left_after(34), [Level::Tenant, Level::Account]);
}
