//! Determinism and paired seeds: what differs between two runs of one seed was caused by actions.

mod common;

use std::collections::BTreeSet;

use common::{hours, market, ndjson, play, small, small_events};
use omnify_market::{FeedItem, Market, MarketConfig, Setting, Status, run_baseline, uplift};
use omnify_operators::model::EventKind;

#[test]
fn same_seed_same_bytes_however_time_moves() {
    let (mut a, mut b) = (market(small(), 7), market(small(), 7));
    let whole = play(&mut a, 30);
    let mut pieces = Vec::new();
    for minute in 0..=30 * 60 {
        let time = b.config().start_us + minute * 60_000_000 + 17;
        b.advance_to(time, &mut pieces);
    }
    assert!(whole.len() > 50_000, "{}", whole.len());
    assert_eq!(ndjson(&a, &whole), ndjson(&b, &pieces));
    assert_eq!(a.totals(), b.totals());
    assert_eq!(a.truth(), b.truth());

    let mut other = market(small(), 8);
    assert_ne!(play(&mut other, 1), whole[..1_000]);
}

#[test]
fn the_feed_is_in_order_and_ids_are_unique() {
    let items = play(&mut market(small(), 3), 48);
    assert!(items.is_sorted_by_key(FeedItem::known_us));
    let mut ids = BTreeSet::new();
    for item in &items {
        if let FeedItem::Event(event) = item {
            assert!(event.event_id != 0 && ids.insert(event.event_id), "{event:?}");
            assert_eq!(event.user == 0, event.kind == EventKind::Cost);
            assert!(event.click_us <= event.time_us);
        }
    }
}

#[test]
fn setting_what_is_true_already_changes_nothing() {
    let (mut a, mut b) = (market(small(), 7), market(small(), 7));
    let mut with = play(&mut b, 5);
    for campaign in b.campaigns().to_vec() {
        let bid = Setting::Bid { bid_micros: campaign.start_bid_micros };
        let budget = Setting::Budget { budget_micros: campaign.start_budget_micros };
        let status = Setting::Status { status: Status::Enabled };
        for setting in [bid, budget, status] {
            let done = b.apply(&campaign.key, &setting, Some(&setting)).expect("holds already");
            assert!(!done.applied);
            assert_eq!(done.effective, setting);
        }
    }
    b.advance_to(hours(&b, 30), &mut with);
    assert_eq!(play(&mut a, 30), with);
}

/// The items of campaign `index` and those of all others.
fn split(market: &Market, items: &[FeedItem], index: u32) -> (Vec<FeedItem>, Vec<FeedItem>) {
    items.iter().partition(|item| market.creatives()[item.creative() as usize].campaign == index)
}

#[test]
fn an_action_touches_its_own_campaign_only_and_from_its_time_on() {
    let actions: [fn(&Market, usize) -> Setting; 3] = [
        |market, index| Setting::Bid { bid_micros: market.campaigns()[index].start_bid_micros / 2 },
        |market, index| Setting::Budget {
            budget_micros: market.campaigns()[index].start_budget_micros / 3,
        },
        |_, _| Setting::Status { status: Status::Paused },
    ];
    for (index, action) in actions.into_iter().enumerate() {
        let (mut a, mut b) = (market(small_events(), 11), market(small_events(), 11));
        let without = play(&mut a, 40);
        let mut with = play(&mut b, 6);
        let before = with.len();
        assert_eq!(with, without[..before]);
        let (key, setting) = (b.campaigns()[index].key.clone(), action(&b, index));
        assert!(b.apply(&key, &setting, None).expect("a valid action").applied);
        b.advance_to(hours(&b, 40), &mut with);
        let (own_with, others_with) = split(&b, &with, index as u32);
        let (own_without, others_without) = split(&a, &without, index as u32);
        assert_eq!(others_with, others_without, "{setting:?}");
        assert!(own_with.len() < own_without.len(), "{setting:?}");
    }
}

#[test]
fn a_lower_bid_wins_a_part_of_the_same_auctions() {
    let run = |share: i64| {
        let mut market = market(small_events(), 5);
        let key = market.campaigns()[0].key.clone();
        let budget_micros = market.accounts()[0].budget_max_micros;
        market.apply(&key, &Setting::Budget { budget_micros }, None).expect("budget");
        let bid_micros = market.campaigns()[0].start_bid_micros * share / 100;
        market.apply(&key, &Setting::Bid { bid_micros }, None).expect("bid");
        let items = play(&mut market, 24);
        let won: BTreeSet<(u64, u64, i64)> = items
            .iter()
            .filter_map(|item| match item {
                FeedItem::Event(event) if event.kind == EventKind::Impression => Some(event),
                _ => None,
            })
            .filter(|event| market.creatives()[event.creative as usize].campaign == 0)
            .map(|event| (event.event_id, event.user, event.cost_micros))
            .collect();
        won
    };
    let (low, high) = (run(70), run(100));
    assert!(low.len() > 200 && low.len() < high.len());
    assert!(low.is_subset(&high), "same users at the same second prices");
}

#[test]
fn the_baseline_is_the_untouched_market() {
    let config = small();
    let (from, to) = (config.start_us + 6 * 3_600_000_000, config.start_us + 30 * 3_600_000_000);
    let baseline = run_baseline(&config, 7, from, to).expect("a valid config");
    let mut untouched = market(config, 7);
    untouched.advance_discarding(from);
    let before = untouched.totals();
    play(&mut untouched, 30);
    let after = untouched.totals().since(&before);
    assert_eq!(baseline, after);
    let report = uplift(&after, &baseline);
    assert_eq!(report.all.surplus_gain_usd, 0.0);
    assert_eq!(report.all.value_gain, Some(0.0));
    assert_eq!(report.tenants.len(), 2);
}

#[test]
fn bidding_what_is_right_beats_leaving_bids_alone() {
    let config = MarketConfig { impressions_per_day: 400_000, ..MarketConfig::default() };
    let mut informed = market(config.clone(), 7);
    for (truth, account) in informed.truth().campaigns.iter().zip(informed.campaigns().to_vec()) {
        let quantum = informed.accounts()[account.account as usize].quantum_micros;
        let bid_micros = truth.target_bid_micros.max(quantum);
        informed.apply(&truth.campaign, &Setting::Bid { bid_micros }, None).expect("a valid bid");
    }
    let to = hours(&informed, 48);
    informed.advance_discarding(to);
    let baseline = run_baseline(&config, 7, config.start_us, to).expect("a valid config");
    let report = uplift(&informed.totals(), &baseline);
    assert!(report.all.surplus_gain_usd > 0.0, "{:?}", report.all);
    assert!(report.all.value_gain > Some(0.05), "{:?}", report.all);
}
