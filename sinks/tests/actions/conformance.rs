//! What every sink owes, asked of every sink.

use std::sync::Arc;
use std::time::Duration;

use omnify_decision::action::{ActionKind, Setting, Status};
use omnify_sinks::action::{
    ActionSink, DryRun, ErrorClass, ExecOutcome, Intent, KafkaActions, KafkaOptions,
};
use rdkafka::mocking::MockCluster;
use tokio::runtime::Runtime;

use crate::platform::Platform;
use crate::rig::{PATIENCE, action, actual, market, owner, runtime};

/// A setting of each kind, with its owner.
fn intent_of(kind: ActionKind, n: u32) -> Intent {
    let creative = |name: &str| format!("{}/g/{name}", owner(1)).parse().unwrap();
    let desired = match kind {
        ActionKind::SetBid => Setting::Bid { bid_micros: 1_500_000 },
        ActionKind::SetBudget => Setting::Budget { budget_micros: 20_000_000 },
        ActionKind::Pause => Setting::Status { status: Status::Paused },
        ActionKind::Enable => Setting::Status { status: Status::Enabled },
        ActionKind::RotateCreative => Setting::Rotate { from: creative("a"), to: creative("b") },
        ActionKind::Alert => Setting::Alert { code: "wearing_out".into() },
    };
    action(n, owner(1), desired).into()
}

/// The duties of a sink that works.
fn conforms(runtime: &Runtime, sink: &dyn ActionSink) {
    let can = sink.capabilities();
    assert!(!can.kinds.is_empty() && !can.call_timeout.is_zero());
    for range in [can.bid, can.budget] {
        assert!(range.quantum_micros >= 1 && range.min_micros <= range.max_micros);
    }
    for (n, kind) in (1..).zip(can.kinds.iter().copied()) {
        let intent = intent_of(kind, n);
        match runtime.block_on(sink.execute(&intent)) {
            ExecOutcome::Applied { effective } => assert_eq!(effective.kind(), kind),
            other => panic!("{} of {kind:?}: {other:?}", sink.name()),
        }
        if can.dedupes {
            let again = runtime.block_on(sink.execute(&intent));
            let harmless = matches!(again, ExecOutcome::Applied { .. } | ExecOutcome::NoChange);
            assert!(harmless, "{} of {kind:?} again: {again:?}", sink.name());
        }
        let read = runtime.block_on(sink.read_back(&intent.owner));
        if !can.read_back {
            assert_eq!(read.unwrap_err().class, ErrorClass::Validation);
            continue;
        }
        let read = read.unwrap();
        match intent.desired {
            Setting::Bid { bid_micros } => assert_eq!(read.bid_micros, Some(bid_micros)),
            Setting::Budget { budget_micros } => {
                assert_eq!(read.budget_micros, Some(budget_micros));
            }
            Setting::Status { status } => assert_eq!(read.status, Some(status)),
            Setting::Rotate { from, to } => {
                for (entity, status) in [(from, Status::Paused), (to, Status::Enabled)] {
                    let read = runtime.block_on(sink.read_back(&entity)).unwrap();
                    assert_eq!(read.status, Some(status));
                }
            }
            Setting::Alert { .. } => {}
        }
    }
}

/// The duty of a sink whose platform is not there: neither success nor a final refusal.
fn waits_for_its_platform(runtime: &Runtime, sink: &dyn ActionSink) {
    let outcome = runtime.block_on(sink.execute(&intent_of(ActionKind::SetBid, 1)));
    let open = matches!(outcome, ExecOutcome::Deferred { .. } | ExecOutcome::Unknown(_));
    assert!(open, "{}: {outcome:?}", sink.name());
}

#[test]
fn dry_run() {
    let sink = DryRun::default();
    conforms(&runtime(), &sink);
    assert_eq!(sink.recent().len(), 2 * sink.capabilities().kinds.len());
}

#[test]
fn market_platform() {
    let runtime = runtime();
    let platform = Platform::start(runtime.handle());
    platform.lock().settings.insert(owner(1), actual(1));
    conforms(&runtime, &market(&platform, PATIENCE));
    platform.check();
}

#[test]
fn market_platform_that_is_not_there() {
    let runtime = runtime();
    let mut platform = Platform::start(runtime.handle());
    // A port that was free a moment ago and that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    platform.base = format!("http://{free}");
    waits_for_its_platform(&runtime, &market(&platform, PATIENCE));
}

#[test]
fn kafka() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("omnify.actions", 3, 1).unwrap();
    let sink = KafkaActions::new(KafkaOptions::at(cluster.bootstrap_servers())).unwrap();
    conforms(&runtime(), &sink);
}

#[test]
fn kafka_that_is_not_there() {
    let mut options = KafkaOptions::at("127.0.0.1:1");
    options.delivery_timeout = Duration::from_millis(300);
    let sink = KafkaActions::new(options).unwrap();
    waits_for_its_platform(&runtime(), &sink);
}

#[test]
fn bad_kafka_options_say_what_is_wrong() {
    let mut options = KafkaOptions::at("127.0.0.1:1");
    options.connection.properties.insert("no.such.property".into(), "1".into());
    let error = KafkaActions::new(options).err().unwrap();
    assert!(error.message.contains("no.such.property"), "{error}");
}

#[test]
fn sinks_can_be_chosen_at_run_time() {
    let sink: Arc<dyn ActionSink> = Arc::new(DryRun::default());
    assert_eq!(sink.name(), "dry_run");
}
