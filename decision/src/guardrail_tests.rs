use super::*;
use proptest::prelude::*;

fn facts() -> Facts {
    Facts {
        killed_global: false,
        killed_tenant: false,
        feed_late: false,
        anomaly: false,
        maturity: 1.0,
        curve_broken: false,
        events: 1_000,
        matured_events: 1_000,
        age_us: 0,
        since_change_us: None,
        moved_24h: 0.0,
        moved_7d: 0.0,
        conversions: 0,
        budget_left: true,
        before_micros: Some(1_000_000),
        floor_micros: 10_000,
        cap_micros: 5_000_000,
        daily_budget_micros: 100_000_000,
        approved: false,
    }
}

fn bid(bid_micros: i64) -> Proposal {
    Proposal { setting: Setting::Bid { bid_micros }, driver: Driver::Kpi, certainty: 0.99 }
}

fn ruling(facts: &Facts, proposal: &Proposal) -> (Verdict, Option<i64>, Vec<&'static str>) {
    let ruling = judge(&GuardrailConfig::default(), facts, proposal);
    (ruling.verdict, ruling.granted.and_then(|granted| granted.micros()), ruling.hits)
}

fn blocked(hit: &'static str) -> (Verdict, Option<i64>, Vec<&'static str>) {
    (Verdict::Blocked, None, vec![hit])
}

#[test]
fn each_limit_stops_what_it_should() {
    let wish = bid(1_050_000);
    assert_eq!(ruling(&facts(), &wish), (Verdict::Act, Some(1_050_000), vec![]));
    let killed = Facts { killed_global: true, ..facts() };
    let alert = Proposal {
        setting: Setting::Alert { code: "x".into() },
        driver: Driver::Alert,
        ..wish.clone()
    };
    assert_eq!(ruling(&killed, &alert), blocked(code::KILL_GLOBAL));
    let killed = Facts { killed_tenant: true, ..facts() };
    assert_eq!(ruling(&killed, &wish), blocked(code::KILL_TENANT));
    let cases = [
        (Facts { feed_late: true, ..facts() }, code::LATE_FEED),
        (Facts { anomaly: true, ..facts() }, code::ANOMALY_HOLD),
        (Facts { events: 29, ..facts() }, code::MINIMUM_EVIDENCE),
        (Facts { matured_events: 49, ..facts() }, code::LEARNING_PHASE),
        (Facts { since_change_us: Some(1), ..facts() }, code::COOLDOWN),
        (Facts { budget_left: false, ..facts() }, code::SPEND_STOP),
        (Facts { moved_24h: 0.2, ..facts() }, code::CUMULATIVE_24H),
        (Facts { moved_7d: 0.5, ..facts() }, code::CUMULATIVE_7D),
    ];
    for (facts, hit) in cases {
        assert_eq!(ruling(&facts, &wish), blocked(hit));
    }
    let unsure = Proposal { certainty: 0.89, ..wish.clone() };
    assert_eq!(ruling(&facts(), &unsure), blocked(code::MINIMUM_EVIDENCE));
    let grown = Facts { matured_events: 0, age_us: us(7 * 86_400_000), ..facts() };
    assert_eq!(ruling(&grown, &wish).0, Verdict::Act);
}

#[test]
fn amounts_are_cut_to_size() {
    assert_eq!(
        ruling(&facts(), &bid(9_000_000)),
        (Verdict::Act, Some(1_099_999), vec![code::STEP])
    );
    assert_eq!(ruling(&facts(), &bid(1)), (Verdict::Act, Some(909_091), vec![code::STEP]));
    let near = Facts { cap_micros: 1_020_000, ..facts() };
    assert_eq!(ruling(&near, &bid(1_050_000)), (Verdict::Act, Some(1_020_000), vec![code::CAP]));
    let over = Facts { cap_micros: 200_000, anomaly: true, ..facts() };
    assert_eq!(ruling(&over, &bid(1_050_000)), (Verdict::Act, Some(200_000), vec![code::CAP]));
    let under = Facts { floor_micros: 3_000_000, ..facts() };
    let (verdict, granted, hits) = ruling(&under, &bid(3_000_000));
    assert_eq!((verdict, granted), (Verdict::Propose, None));
    assert!(hits.contains(&code::TOO_LARGE));
    let first = Facts { before_micros: None, ..facts() };
    let start = Proposal { driver: Driver::Establish, ..bid(9_000_000) };
    assert_eq!(ruling(&first, &start), (Verdict::Act, Some(5_000_000), vec![code::CAP]));
}

#[test]
fn winners_are_not_paused_alone() {
    let key = |text: &str| text.parse().unwrap();
    let setting = Setting::Rotate { from: key("t/p/a/c/g/x"), to: key("t/p/a/c/g/y") };
    let rotate = Proposal { setting, driver: Driver::Rotation, certainty: 0.95 };
    assert_eq!(ruling(&facts(), &rotate).0, Verdict::Act);
    let winner = Facts { conversions: 50, ..facts() };
    assert_eq!(ruling(&winner, &rotate).0, Verdict::Propose);
}

#[test]
fn a_budget_comes_down_to_the_wish_at_once_but_goes_up_in_steps() {
    let budget = |budget_micros, driver| Proposal {
        setting: Setting::Budget { budget_micros },
        driver,
        certainty: 1.0,
    };
    let high = Facts { before_micros: Some(400_000_000), since_change_us: Some(1), ..facts() };
    let down = budget(100_000_000, Driver::Wish);
    assert_eq!(ruling(&high, &down), (Verdict::Act, Some(100_000_000), vec![]));
    let low = Facts { before_micros: Some(50_000_000), ..facts() };
    let up = ruling(&low, &budget(100_000_000, Driver::Wish));
    assert_eq!((up.0, up.2), (Verdict::Act, vec![code::STEP]));
    assert!(up.1.is_some_and(|amount| amount <= 55_000_000));
}

fn driver() -> impl Strategy<Value = Driver> {
    prop::sample::select(vec![
        Driver::Kpi,
        Driver::Pacing,
        Driver::Establish,
        Driver::Wish,
        Driver::Reallocation,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Invariant 5: whatever is proposed, what is granted crosses nothing.
    #[test]
    fn nothing_granted_crosses_a_limit(
        is_bid in any::<bool>(),
        wanted in prop_oneof![any::<i64>(), 1i64..10_000_000],
        before in prop::option::of(0i64..10_000_000),
        floor in 0i64..2_000_000,
        width in 0i64..5_000_000,
        daily in 1i64..10_000_000,
        moved in (0.0f64..0.4, 0.0f64..0.4),
        flags in prop::array::uniform5(prop::bool::weighted(0.1)),
        driver in driver(),
        step in 0.01f64..0.5,
    ) {
        let limits = GuardrailConfig { step_max: step, ..GuardrailConfig::default() };
        let facts = Facts {
            killed_global: flags[0],
            killed_tenant: flags[1],
            feed_late: flags[2],
            anomaly: flags[3],
            maturity: 1.0,
            curve_broken: false,
            budget_left: !flags[4],
            before_micros: before,
            floor_micros: floor,
            cap_micros: (floor + width).max(1),
            daily_budget_micros: daily,
            approved: false,
            moved_24h: moved.0,
            moved_7d: moved.0 + moved.1,
            ..facts()
        };
        let setting = if is_bid {
            Setting::Bid { bid_micros: wanted }
        } else {
            Setting::Budget { budget_micros: wanted }
        };
        let proposal = Proposal { setting, driver, certainty: 0.99 };
        let ruling = judge(&limits, &facts, &proposal);
        prop_assert_eq!(ruling.granted.is_some(), ruling.verdict == Verdict::Act);
        if let Some(granted) = &ruling.granted {
            prop_assert_eq!(crossed(&limits, &facts, &proposal, granted), None);
            let raises = granted.micros() > facts.before_micros && facts.before_micros.is_some();
            prop_assert!(!(is_bid && raises && flags[4]), "raised without budget left");
        } else {
            prop_assert!(!ruling.hits.is_empty() || granted_nothing_new(&facts, &proposal));
        }
    }
}

fn granted_nothing_new(facts: &Facts, proposal: &Proposal) -> bool {
    proposal.setting.micros() == facts.before_micros
}
