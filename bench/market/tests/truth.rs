//! The market does what its documentation says: budgets, wear-out, users, delays, restatements.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{hours, market, play, small, small_events};
use omnify_market::{FeedEvent, FeedItem, FeedKind, MarketConfig, Setting};
use omnify_operators::model::{DAY_US, EventKind, HOUR_US, Stats};

fn events(items: &[FeedItem]) -> impl Iterator<Item = &FeedEvent> {
    items.iter().filter_map(|item| match item {
        FeedItem::Event(event) => Some(event),
        FeedItem::Report(_) => None,
    })
}

/// Fails when `observed` is not a plausible count of expectation `expected`: five standard
/// deviations, so that a correct market passes with any seed.
fn assert_count(observed: f64, expected: f64, what: &str) {
    assert!(expected > 30.0, "{what}: only {expected} expected");
    let sigmas = (observed - expected) / expected.sqrt();
    assert!(sigmas.abs() < 5.0, "{what}: {observed} instead of {expected}");
}

#[test]
fn a_daily_budget_is_never_exceeded() {
    let mut market = market(small_events(), 21);
    let mut items = Vec::new();
    let mut budgets: Vec<i64> = market.campaigns().iter().map(|c| c.start_budget_micros).collect();
    // Budgets rise during the run, so the limit of a day is the budget at its end.
    for hour in [30, 60, 96] {
        market.advance_to(hours(&market, hour), &mut items);
        for (index, campaign) in market.campaigns().to_vec().into_iter().enumerate() {
            let budget_micros = campaign.start_budget_micros * (100 + hour) / 100;
            let set = market.apply(&campaign.key, &Setting::Budget { budget_micros }, None);
            if let Setting::Budget { budget_micros } = set.expect("a valid budget").effective {
                budgets[index] = budgets[index].max(budget_micros);
            }
            let spent = market.settings(&campaign.key).expect("known").spent_today_micros;
            assert!(spent <= Some(budgets[index]));
        }
    }
    let mut spent: BTreeMap<(u32, i64), i64> = BTreeMap::new();
    for event in events(&items).filter(|event| event.kind == EventKind::Impression) {
        let creative = &market.creatives()[event.creative as usize];
        let zone = &market.accounts()[creative.account as usize].time_zone;
        let time = jiff::Timestamp::from_microsecond(event.time_us).expect("in range");
        let day = i64::from(time.to_zoned((**zone).clone()).day());
        *spent.entry((creative.campaign, day)).or_default() += event.cost_micros;
    }
    let mut exhausted = 0;
    for ((campaign, day), spent) in spent {
        let campaign = campaign as usize;
        assert!(spent <= budgets[campaign], "campaign {campaign} on day {day}");
        exhausted += u32::from(spent * 100 > market.campaigns()[campaign].start_budget_micros * 99);
    }
    assert!(exhausted > 0, "no budget was ever tight, so this shows nothing");
}

#[test]
fn a_tight_budget_is_not_exceeded_by_one_auction() {
    let mut market = market(small_events(), 2);
    for campaign in market.campaigns().to_vec() {
        // A hundred impressions at most, and not a multiple of their price.
        let budget_micros = (campaign.start_bid_micros / 10 + 7)
            .max(market.accounts()[campaign.account as usize].budget_min_micros);
        market.apply(&campaign.key, &Setting::Budget { budget_micros }, None).expect("a budget");
    }
    let mut exhausted = 0;
    for minute in 1..=6 * 60 {
        market.advance_discarding(market.config().start_us + minute * 60_000_000);
        for found in market.settings_page(0, usize::MAX) {
            let (Some(spent), Some(budget)) = (found.spent_today_micros, found.daily_budget_micros)
            else {
                continue;
            };
            assert!(spent <= budget, "{} spent {spent} of {budget}", found.entity);
            let bid = found.bid_micros.expect("campaigns have bids");
            exhausted += u32::from(spent > budget - bid / 1_000);
        }
    }
    assert!(exhausted > 100, "only {exhausted} budgets were tight");
}

#[test]
fn creatives_wear_out_as_their_truth_says() {
    let config = MarketConfig {
        wear_days_median: 0.5,
        evergreen_share: 0.4,
        impressions_per_day: 400_000,
        ..small_events()
    };
    let mut market = market(config, 5);
    let mut users: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
    let (mut observed, mut expected, mut as_if_fresh) = (0.0, 0.0, 0.0);
    for hour in 1..=72 {
        let before = market.truth().creatives;
        let items = play(&mut market, hour);
        let after = market.truth().creatives;
        for event in events(&items) {
            let index = event.creative as usize;
            // Worn by the start of the hour; the mean of its ends is close enough to the hour.
            let worn = before[index].onset_us.is_some();
            if event.kind == EventKind::Impression {
                users.entry(event.creative).or_default().insert(event.user);
                if worn {
                    expected += 0.5 * (before[index].ctr + after[index].ctr);
                    as_if_fresh += after[index].ctr_fresh;
                }
            } else if event.kind == EventKind::Click && worn {
                observed += 1.0;
            }
        }
    }
    let truth = market.truth();
    let (mut worn, mut evergreens) = (0, 0);
    for (index, now) in truth.creatives.iter().enumerate() {
        if now.impressions > 3_000 {
            let reach = users[&(index as u32)].len() as f64;
            assert!((reach / now.reach - 1.0).abs() < 0.05, "{reach} {}", now.reach);
        }
        assert_eq!(now.onset_us.is_some(), now.ctr < 0.8 * now.ctr_fresh, "{now:?}");
        assert_eq!(
            now.onset_us.is_some(),
            now.onset_impressions.is_some_and(|at| now.impressions >= at),
            "{now:?}"
        );
        if now.gamma == 0.0 {
            assert_eq!(now.ctr, now.ctr_fresh);
            evergreens += 1;
        } else if now.onset_us.is_some() {
            worn += 1;
        }
    }
    assert!(worn > 3 && evergreens > 3, "{worn} worn, {evergreens} evergreens");
    assert_count(observed, expected, "clicks on worn creatives");
    assert!(as_if_fresh - observed > 5.0 * as_if_fresh.sqrt(), "wear-out cannot be measured");
}

#[test]
fn conversions_come_late_and_as_often_as_their_truth_says() {
    let config = MarketConfig { impressions_per_day: 400_000, ..small_events() };
    let mut market = market(config.clone(), 9);
    let items = play(&mut market, 10 * 24);
    let clicked_before = config.start_us + 2 * DAY_US;
    let truth = market.truth();
    let (mut delays, mut revenue, mut value) = (Vec::new(), 0.0, 0.0);
    let mut clicks = vec![0_i64; truth.campaigns.len()];
    for event in events(&items).filter(|event| event.click_us < clicked_before) {
        let campaign = market.creatives()[event.creative as usize].campaign as usize;
        match event.kind {
            EventKind::Click => clicks[campaign] += 1,
            EventKind::Conversion => {
                delays.push(event.time_us - event.click_us);
                // In units of the campaign's mean, so that currencies do not matter.
                revenue +=
                    event.revenue_micros as f64 / truth.campaigns[campaign].value_mean_micros;
                value += 1.0;
            }
            _ => {}
        }
    }
    let share = |us: i64| {
        let within = |mean: i64| 1.0 - (-(us as f64) / mean as f64).exp();
        let fast = config.delay_fast_share;
        fast * within(config.delay_fast_us) + (1.0 - fast) * within(config.delay_slow_us)
    };
    let cvr_clicks: f64 =
        clicks.iter().zip(&truth.campaigns).map(|(clicks, c)| *clicks as f64 * c.cvr).sum();
    let converting = cvr_clicks * (1.0 - config.invalid_share);
    assert_count(delays.len() as f64, converting * share(config.attribution_us), "conversions");
    assert!(
        delays.iter().all(|delay| (1..=config.attribution_us + config.step_us).contains(delay))
    );
    for us in [HOUR_US, 12 * HOUR_US, 48 * HOUR_US] {
        let observed = delays.iter().filter(|delay| **delay <= us).count();
        assert_count(observed as f64, converting * share(us), "conversions in time");
    }
    // A lognormal with a log sd of 0.5 has a relative sd of 0.53.
    let error = (revenue / value - 1.0_f64).abs();
    assert!(error < 5.0 * 0.53 / value.sqrt(), "mean value off by {error}");
}

#[test]
fn report_rows_restate_to_what_the_events_say() {
    let as_reports = MarketConfig { impressions_per_day: 300_000, ..small() };
    let mut as_events = as_reports.clone();
    as_events.platforms.iter_mut().for_each(|platform| platform.feed = FeedKind::Events);
    let (mut reports, mut plain) = (market(as_reports, 13), market(as_events, 13));
    let until = 9 * 24;
    let (rows, items) = (play(&mut reports, until), play(&mut plain, until));

    let mut latest: BTreeMap<(u32, i64), Stats> = BTreeMap::new();
    let (mut restated, mut lowered) = (0, 0);
    for item in &rows {
        let FeedItem::Report(row) = item else { continue };
        assert_eq!((row.end_us - row.start_us, row.start_us % HOUR_US), (HOUR_US, 0));
        assert!(row.start_us < row.as_of_us && row.as_of_us <= reports.now_us());
        if let Some(old) = latest.insert((row.creative, row.start_us), row.totals) {
            assert_ne!(old, row.totals, "told again without a change");
            assert_eq!(old.impressions, row.totals.impressions, "an hour is over once reported");
            restated += 1;
            lowered += u32::from(row.totals.clicks < old.clicks);
        }
    }
    assert!(restated > 100 && lowered > 10, "{restated} restated, {lowered} lowered");

    let campaigns = reports.campaigns().len();
    let (mut by_rows, mut by_events) = (vec![Stats::ZERO; campaigns], vec![Stats::ZERO; campaigns]);
    for ((creative, _), totals) in latest {
        by_rows[reports.creatives()[creative as usize].campaign as usize] += totals;
    }
    let mut refunds = vec![0_i64; campaigns];
    for event in events(&items) {
        let campaign = plain.creatives()[event.creative as usize].campaign as usize;
        by_events[campaign] += event.stats();
        refunds[campaign] += i64::from(event.kind == EventKind::Cost);
    }
    let mut compared = 0;
    for (index, campaign) in reports.campaigns().iter().enumerate() {
        assert_eq!(plain.totals().campaigns[index].stats, by_events[index]);
        let account = &reports.accounts()[campaign.account as usize];
        if matches!(account.platform.feed, FeedKind::Reports { .. }) {
            assert_eq!(reports.totals().campaigns[index].stats, by_rows[index]);
            by_events[index].clicks -= refunds[index];
            assert_eq!(by_rows[index], by_events[index], "{}", campaign.key);
            assert!(refunds[index] > 0);
            compared += 1;
        }
    }
    assert_eq!(compared, 2);
}

#[test]
fn true_value_is_what_revenue_comes_to() {
    // Many invalid clicks and late conversions, so that leaving them out of the truth would show.
    let config = MarketConfig {
        impressions_per_day: 600_000,
        invalid_share: 0.25,
        attribution_us: DAY_US,
        ..small_events()
    };
    let mut market = market(config, 17);
    market.advance_discarding(hours(&market, 24));
    let shown = market.totals().sum();
    for campaign in market.campaigns().to_vec() {
        let paused = Setting::Status { status: omnify_market::Status::Paused };
        market.apply(&campaign.key, &paused, None).expect("a valid status");
    }
    market.advance_discarding(hours(&market, 24 * 9));
    let settled = market.totals().sum();
    assert_eq!(settled.impressions, shown.impressions, "paused campaigns do not deliver");
    assert_eq!(settled.value, shown.value);
    assert_count(settled.conversions as f64, settled.expected_conversions, "conversions");
    assert!((settled.revenue / settled.value - 1.0).abs() < 0.15, "{settled:?}");
    assert!(settled.cost < shown.cost, "invalid clicks were refunded");
}

#[test]
fn evenings_are_busier_than_nights() {
    let mut market = market(small_events(), 3);
    // Without budgets, which would end some days before the evening.
    for campaign in market.campaigns().to_vec() {
        let budget_micros = market.accounts()[campaign.account as usize].budget_max_micros;
        market.apply(&campaign.key, &Setting::Budget { budget_micros }, None).expect("a budget");
    }
    let items = play(&mut market, 48);
    let mut by_hour = [0_u32; 24];
    for event in events(&items).filter(|event| event.kind == EventKind::Impression) {
        let creative = &market.creatives()[event.creative as usize];
        let zone = &market.accounts()[creative.account as usize].time_zone;
        let time = jiff::Timestamp::from_microsecond(event.time_us).expect("in range");
        by_hour[time.to_zoned((**zone).clone()).hour().unsigned_abs() as usize] += 1;
    }
    assert!(by_hour[18] > 2 * by_hour[4], "{by_hour:?}");
}
