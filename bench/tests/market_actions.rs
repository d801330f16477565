//! The executor of `sinks` against the simulator's platform: two crates that know only the JSON
//! between them.

use std::sync::Arc;
use std::time::Duration;

use omnify_decision::action::{Action, Id, Setting, Status};
use omnify_decision::control::{Control, Outcome};
use omnify_market::{Fault, Faults, MarketConfig, Platform, serve};
use omnify_operators::model::EntityKey;
use omnify_sinks::action::dispatcher::Backoff;
use omnify_sinks::action::{Dispatcher, Ledger, Market, MarketOptions, Options};

/// Long enough that only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

struct Rig {
    platform: Arc<Platform>,
    dispatcher: Dispatcher,
    outcomes: crossbeam_channel::Receiver<Control>,
    _runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new(faults: &[(u64, Fault)]) -> Rig {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let config = MarketConfig {
            tenants: 2,
            campaigns_per_tenant: 8,
            impressions_per_day: 120_000,
            ..MarketConfig::default()
        };
        let market = omnify_market::Market::new(config, 7).unwrap();
        let script = faults.iter().copied().collect();
        let faults = Faults { script, hold_ms: 20, ..Faults::default() };
        let platform = Arc::new(Platform::new(market, 1_000, faults));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let options = MarketOptions::at(format!("http://{}", listener.local_addr().unwrap()));
        runtime.spawn(serve(platform.clone(), listener, std::future::pending()));
        let dir = tempfile::tempdir().unwrap();
        let backoff = Backoff {
            base: Duration::from_millis(1),
            cap: Duration::from_millis(4),
            attempts_max: 5,
        };
        let (dispatcher, outcomes) = Dispatcher::start(
            Arc::new(Market::new(options).unwrap()),
            Ledger::open(dir.path()).unwrap(),
            Options { backoff, ..Options::default() },
            Arc::new(|| 1_000),
            Arc::new(runtime.handle().clone()),
        )
        .unwrap();
        Rig { platform, dispatcher, outcomes, _runtime: runtime, _dir: dir }
    }

    fn campaign(&self, index: usize) -> EntityKey {
        self.platform.read(|market| market.campaigns()[index].key.clone())
    }

    fn bid(&self, owner: &EntityKey) -> i64 {
        self.platform.settings(owner).unwrap().bid_micros.unwrap()
    }

    fn run(&self, n: u8, owner: &EntityKey, desired: Setting, before: Option<Setting>) -> Outcome {
        let action = Action {
            id: Id([n; 16]),
            decision: Id([0; 16]),
            tick: 1_000,
            expires: 3_600_000,
            owner: owner.clone(),
            desired,
            before,
            reasons: vec!["pacing"],
        };
        assert_eq!(self.dispatcher.submit(action), None);
        loop {
            match self.outcomes.recv_timeout(PATIENCE).unwrap() {
                Control::Acknowledge { outcome, .. } => return outcome,
                _ => continue,
            }
        }
    }
}

fn bid(bid_micros: i64) -> Setting {
    Setting::Bid { bid_micros }
}

#[test]
fn every_setting_takes_effect() {
    let rig = Rig::new(&[]);
    let owner = rig.campaign(0);
    let before = rig.bid(&owner);
    let wish = before + before / 10;
    let outcome = rig.run(1, &owner, bid(wish), Some(bid(before)));
    let Outcome::Applied { effective } = outcome else { panic!("{outcome:?}") };
    assert_eq!(effective, bid(rig.bid(&owner)));
    assert!((before + 1..=wish).contains(&rig.bid(&owner)));

    let budget_micros = rig.platform.settings(&owner).unwrap().daily_budget_micros.unwrap();
    let budget = Setting::Budget { budget_micros: budget_micros * 2 };
    assert!(matches!(rig.run(2, &owner, budget, None), Outcome::Applied { .. }));
    let pause = Setting::Status { status: Status::Paused };
    assert!(matches!(rig.run(3, &owner, pause, None), Outcome::Applied { .. }));
    let rotate = rig.platform.read(|market| {
        let mut keys = market.creatives().iter().map(|creative| creative.key.clone());
        let from = keys.next().unwrap();
        let to = keys.find(|key| key.parent() == from.parent()).unwrap();
        (from.parent().unwrap(), Setting::Rotate { from, to })
    });
    assert!(matches!(rig.run(4, &rotate.0, rotate.1, None), Outcome::Applied { .. }));
}

#[test]
fn refusals_carry_their_class() {
    let rig = Rig::new(&[]);
    let owner = rig.campaign(0);
    let class = |outcome| match outcome {
        Outcome::Rejected { class, .. } => class,
        other => panic!("{other:?}"),
    };
    assert_eq!(class(rig.run(1, &owner, bid(-5), None)), "validation");
    let elsewhere = "nobody/meta/a/c".parse().unwrap();
    assert_eq!(class(rig.run(2, &elsewhere, bid(1_000_000), None)), "validation");
    let stale = Some(bid(rig.bid(&owner) + 1));
    let before = rig.bid(&owner);
    assert_eq!(class(rig.run(3, &owner, bid(before * 2), stale)), "conflict");
    assert_eq!(rig.bid(&owner), before);
}

#[test]
fn every_fault_is_settled_on_every_account() {
    use Fault::{ErrorAfter, ErrorBefore, Throttle, TimeoutAfter, TimeoutBefore};
    for fault in [ErrorBefore, ErrorAfter, TimeoutBefore, TimeoutAfter, Throttle] {
        // One campaign of every account: currencies round differently.
        for index in 0..16 {
            let rig = Rig::new(&[(0, fault)]);
            let owner = rig.campaign(index);
            let before = rig.bid(&owner);
            let outcome = rig.run(1, &owner, bid(before + before / 3), Some(bid(before)));
            let Outcome::Applied { effective } = outcome else {
                panic!("{fault:?} of {owner}: {outcome:?}")
            };
            assert_eq!(effective, bid(rig.bid(&owner)), "{fault:?} of {owner}");
            if fault == Throttle {
                break; // a second of waiting each
            }
        }
    }
}
