//! Whatever is asked, the market answers and stays within its rules.

mod common;

use common::{hours, market, small, small_events};
use omnify_market::{ActionError, ConfigError, Market, MarketConfig, Setting, Status};
use omnify_operators::model::{EntityKey, MINUTE_US};
use proptest::prelude::*;

fn key(text: &str) -> EntityKey {
    text.parse().expect("a key")
}

/// A key of the small market, or one that it does not know, or one without settings.
fn any_key() -> impl Strategy<Value = EntityKey> {
    let market = market(small(), 1);
    let mut keys: Vec<EntityKey> =
        market.settings_page(0, usize::MAX).into_iter().map(|found| found.entity).collect();
    keys.extend(["acme", "acme/meta/acme-1", "nobody/x/y/z", "acme/meta/acme-1/brand/no"].map(key));
    proptest::sample::select(keys)
}

fn any_setting() -> impl Strategy<Value = Setting> {
    let amount = || {
        prop_oneof![any::<i64>(), 0..20_000_000_i64, 1_000_000..20_000_000_000_i64, Just(i64::MIN)]
    };
    prop_oneof![
        amount().prop_map(|bid_micros| Setting::Bid { bid_micros }),
        amount().prop_map(|budget_micros| Setting::Budget { budget_micros }),
        prop_oneof![Just(Status::Enabled), Just(Status::Paused)]
            .prop_map(|status| Setting::Status { status }),
        (any_key(), any_key()).prop_map(|(from, to)| Setting::Rotate { from, to }),
    ]
}

fn check_limits(market: &Market) {
    for (campaign, settings) in
        market.campaigns().iter().map(|c| (c, market.settings(&c.key).expect("known")))
    {
        let account = &market.accounts()[campaign.account as usize];
        let bid = settings.bid_micros.expect("campaigns have bids");
        let budget = settings.daily_budget_micros.expect("campaigns have budgets");
        assert!((account.bid_min_micros..=account.bid_max_micros).contains(&bid));
        assert!((account.budget_min_micros..=account.budget_max_micros).contains(&budget));
        assert_eq!((bid % account.quantum_micros, budget % account.quantum_micros), (0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_actions_leave_a_market_within_its_rules(
        actions in proptest::collection::vec((any_key(), any_setting(), 0..40_i64), 1..60),
    ) {
        let mut market = market(small(), 1);
        let mut items = Vec::new();
        let mut quota = std::collections::BTreeMap::<EntityKey, Vec<i64>>::new();
        for (owner, setting, minutes) in actions {
            let everything = |market: &Market| market.settings_page(0, usize::MAX);
            let before = everything(&market);
            match market.apply(&owner, &setting, None) {
                Ok(done) if done.applied => {
                    prop_assert_ne!(&everything(&market), &before);
                    let again = market.apply(&owner, &done.effective, None);
                    prop_assert!(again.is_ok_and(|again| !again.applied), "idempotent by value");
                    if owner.segment(1) == Some("meta") && matches!(setting, Setting::Budget { .. }) {
                        quota.entry(owner).or_default().push(market.now_us());
                    }
                }
                _ => prop_assert_eq!(everything(&market), before),
            }
            let time = market.now_us() + minutes * MINUTE_US;
            market.advance_to(time, &mut items);
            check_limits(&market);
        }
        for changes in quota.values() {
            for five in changes.windows(5) {
                prop_assert!(five[4] - five[0] >= 60 * MINUTE_US, "five changes within an hour");
            }
        }
    }
}

#[test]
fn amounts_are_rounded_down_and_kept_in_limits() {
    let mut market = market(small(), 1);
    let owner = market.campaigns()[0].key.clone();
    let done = market.apply(&owner, &Setting::Bid { bid_micros: 1_239_999 }, None).expect("a bid");
    assert_eq!(done.effective, Setting::Bid { bid_micros: 1_230_000 });
    for bid_micros in [0, -1, i64::MIN, i64::MAX, 9_999] {
        let refused = market.apply(&owner, &Setting::Bid { bid_micros }, None);
        let field = "bid_micros";
        assert!(
            matches!(&refused, Err(ActionError::Validation { field: f, .. }) if *f == field),
            "{bid_micros}: {refused:?}"
        );
    }
}

#[test]
fn settings_belong_to_their_level() {
    let mut market = market(small(), 1);
    let creative = market.creatives()[0].key.clone();
    let refused = market.apply(&creative, &Setting::Bid { bid_micros: 1_000_000 }, None);
    assert!(matches!(refused, Err(ActionError::Validation { field: "setting", .. })));
    let refused = market.apply(&key("acme"), &Setting::Status { status: Status::Paused }, None);
    assert_eq!(refused, Err(ActionError::UnknownEntity(key("acme"))));
}

#[test]
fn a_changed_setting_conflicts_with_a_compare_and_set() {
    let mut market = market(small(), 1);
    let campaign = market.campaigns()[0].clone();
    let held = Setting::Bid { bid_micros: campaign.start_bid_micros };
    let (one, two) =
        (Setting::Bid { bid_micros: 1_000_000 }, Setting::Bid { bid_micros: 2_000_000 });
    assert!(market.apply(&campaign.key, &one, Some(&held)).expect("unchanged so far").applied);
    let refused = market.apply(&campaign.key, &two, Some(&held));
    assert_eq!(refused, Err(ActionError::Conflict { current: one }));
}

#[test]
fn the_fifth_budget_change_within_an_hour_waits() {
    let mut market = market(small(), 1);
    let campaign = market.campaigns()[0].clone();
    assert_eq!(campaign.key.segment(1), Some("meta"));
    let mut items = Vec::new();
    let budget =
        |n: i64| Setting::Budget { budget_micros: campaign.start_budget_micros * (10 + n) / 10 };
    for n in 1..=4 {
        assert!(market.apply(&campaign.key, &budget(n), None).expect("within quota").applied);
        market.advance_to(market.now_us() + 10 * MINUTE_US, &mut items);
    }
    let refused = market.apply(&campaign.key, &budget(5), None);
    assert!(matches!(refused, Err(ActionError::Quota { limit: 4, retry_after_s: 1_200, .. })));
    assert!(!market.apply(&campaign.key, &budget(4), None).expect("no change").applied);
    market.advance_to(hours(&market, 1), &mut items);
    assert!(market.apply(&campaign.key, &budget(5), None).expect("within quota again").applied);
}

#[test]
fn a_budget_keeps_above_what_tiktok_has_spent() {
    let mut market = market(small_events(), 1);
    let campaign = market.campaigns()[1].clone();
    assert_eq!(campaign.key.segment(1), Some("tiktok"));
    market.advance_discarding(hours(&market, 4));
    let spent = market.settings(&campaign.key).and_then(|s| s.spent_today_micros).expect("spent");
    assert!(spent > market.accounts()[1].budget_min_micros, "{spent}");
    let refused = market.apply(&campaign.key, &Setting::Budget { budget_micros: spent }, None);
    assert!(matches!(refused, Err(ActionError::Validation { field: "budget_micros", .. })));
}

#[test]
fn rotation_moves_delivery_to_the_spare() {
    let mut market = market(small_events(), 1);
    let group = market.ad_groups()[0].key.clone();
    let of_group: Vec<_> =
        market.creatives().iter().filter(|c| c.key.parent().as_ref() == Some(&group)).collect();
    let (from, to) = (of_group[0].key.clone(), of_group[of_group.len() - 1].key.clone());
    assert_eq!(market.settings(&to).expect("known").status, Status::Paused, "a spare");
    let rotate = Setting::Rotate { from: from.clone(), to: to.clone() };
    assert!(market.apply(&group, &rotate, None).expect("a rotation").applied);
    assert!(!market.apply(&group, &rotate, None).expect("done already").applied);
    assert_eq!(market.settings(&from).expect("known").status, Status::Paused);
    let mut items = Vec::new();
    market.advance_to(hours(&market, 6), &mut items);
    let shown = |key: &EntityKey| {
        items.iter().filter(|i| market.creatives()[i.creative() as usize].key == *key).count()
    };
    assert_eq!(shown(&from), 0);
    assert!(shown(&to) > 0);
    let elsewhere = market.ad_groups()[1].key.clone();
    let mut market = market;
    let refused = market.apply(&elsewhere, &rotate, None);
    assert!(matches!(refused, Err(ActionError::Validation { field: "from", .. })));
}

#[test]
fn configs_are_checked() {
    type Spoil = fn(&mut MarketConfig);
    let wrong: [(&str, Spoil); 7] = [
        ("start_us", |c| c.start_us = -1),
        ("step_us", |c| c.step_us = 7_000_000),
        ("campaigns_per_tenant", |c| c.tenants = 0),
        ("creatives_per_campaign", |c| c.creatives_per_campaign = 0),
        ("impressions_per_day", |c| c.impressions_per_day = 0),
        ("invalid_share", |c| c.invalid_share = f64::NAN),
        ("platforms", |c| c.platforms.clear()),
    ];
    for (name, spoil) in wrong {
        let mut config = MarketConfig::default();
        spoil(&mut config);
        let refused = Market::new(config, 1).err();
        assert!(
            matches!(refused, Some(ConfigError::Range { field, .. }) if field == name),
            "{name}: {refused:?}"
        );
    }
    let mut config = MarketConfig::default();
    config.platforms[0].name = "a/b".to_owned();
    assert!(matches!(Market::new(config, 1), Err(ConfigError::Name(_))));
}
