//! From the simulated market to the configuration of the engine: what its owners would have typed.

use omnify_config::{Account, Checked, Decimal, Demo, Goal, Objective, Pricing};
use omnify_market::{FeedKind, GoalKind, Market, MarketConfig, ScenarioGoal};
use serde::Serialize;

use crate::live::market::Lags;

/// The market that `[demo]` asks for.
pub(super) fn market(demo: &Demo) -> MarketConfig {
    let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    MarketConfig {
        tenants: small(demo.tenants),
        campaigns_per_tenant: small(demo.campaigns),
        creatives_per_campaign: small(demo.creatives),
        impressions_per_day: demo.impressions_per_day,
        ..MarketConfig::default()
    }
}

/// How late the market's numbers are.
pub(super) fn lags(market: &MarketConfig) -> Lags {
    let late = market.platforms.iter().map(|platform| match platform.feed {
        FeedKind::Events => 0,
        FeedKind::Reports { every_us } => every_us,
    });
    Lags {
        fresh_us: late.max().unwrap_or(0),
        settled_us: market.attribution_us.max(market.invalid_after_us),
    }
}

/// Real time that an action has to reach the platform, however fast simulated time runs.
const ACTION_SECONDS: u64 = 5;

#[derive(Serialize)]
struct Layer {
    engine: Engine,
    decision: Decision,
    executor: Executor,
    history: History,
    accounts: Vec<Account>,
    goals: Vec<Goal>,
}

#[derive(Serialize)]
struct Engine {
    seed: u64,
}

#[derive(Serialize)]
struct Decision {
    action_ttl: String,
}

#[derive(Serialize)]
struct Executor {
    kind: &'static str,
    url: String,
}

#[derive(Serialize)]
struct History {
    dir: &'static str,
    file_time: &'static str,
}

/// The demo's layer of configuration, between the defaults and what the user says: accounts, goals,
/// and the platform's address. With it the history's configuration is complete, and a replay needs
/// nothing else.
pub(super) fn layer(
    base: &Checked,
    market: &Market,
    url: String,
    dir: &'static str,
) -> anyhow::Result<String> {
    let ttl_ms = base.decision.action_ttl.ms().max(ACTION_SECONDS * base.demo.speed.ms());
    let accounts = market.accounts().iter().map(|account| Account {
        key: account.key.to_string(),
        currency: account.currency.to_string(),
        time_zone: account.time_zone.iana_name().unwrap_or("UTC").to_owned(),
    });
    let goals = market.campaigns().iter().map(|campaign| {
        let account = &market.accounts()[campaign.account as usize];
        goal(&campaign.goal, account.currency.to_string())
    });
    let layer = Layer {
        engine: Engine { seed: market.seed() },
        decision: Decision { action_ttl: format!("{ttl_ms}ms") },
        executor: Executor { kind: "market", url },
        // Short files are written in short moments: the page should not see them.
        history: History { dir, file_time: "10s" },
        accounts: accounts.collect(),
        goals: goals.collect(),
    };
    Ok(toml::to_string(&layer)?)
}

fn goal(wanted: &ScenarioGoal, currency: String) -> Goal {
    let key = &wanted.applies_to;
    let segment = |index| key.segment(index).unwrap_or_default();
    let (objective, target) = match wanted.kind {
        GoalKind::TargetCpa { cpa_micros } => (Objective::TargetCpa, Some(money(cpa_micros))),
        GoalKind::TargetRoas { roas } => {
            (Objective::TargetRoas, Some(money((roas * 1e6).round() as i64)))
        }
        GoalKind::TargetCpc { cpc_micros } => (Objective::TargetCpc, Some(money(cpc_micros))),
        GoalKind::Maximise => (Objective::Maximise, None),
    };
    Goal {
        name: format!("{}-{}-{}", segment(0), segment(1), segment(3)),
        applies_to: key.to_string(),
        objective,
        target,
        daily_budget: money(wanted.daily_budget_micros),
        currency,
        pricing: Pricing::Cpm,
        start: None,
        end: None,
        bid_floor: money(wanted.bid_floor_micros),
        bid_cap: money(wanted.bid_cap_micros),
    }
}

/// Micros as the decimal they are.
fn money(micros: i64) -> Decimal {
    let micros = micros.max(0);
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    Decimal::parse(&text).unwrap_or_default()
}
