//! How fast the market plays, on one core: `cargo run --release -p omnify-market --example
//! throughput [impressions_per_day] [days] [seed]`. Prints what it played, how its campaigns did, and
//! what fixed bids at the hidden target would have won.

use std::time::Instant;

use omnify_market::{Market, MarketConfig, Setting, uplift};
use omnify_operators::model::HOUR_US;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut arg = |default: u64| args.next().map_or(Ok(default), |text| text.parse());
    let (impressions_per_day, days, seed) = (arg(20_000_000)?, arg(1)?, arg(7)?);
    let config = MarketConfig { impressions_per_day, ..MarketConfig::default() };
    let mut market = Market::new(config, seed)?;
    let begun = Instant::now();
    let (mut items, mut out) = (0, Vec::new());
    for hour in 1..=24 * days {
        out.clear();
        market.advance_to(market.config().start_us + hour as i64 * HOUR_US, &mut out);
        items += out.len();
    }
    let seconds = begun.elapsed().as_secs_f64();
    let (totals, truth) = (market.totals(), market.truth());
    let sum = totals.sum();
    println!(
        "{items} items, {} impressions in {seconds:.2} s: {:.2} M impressions/s",
        sum.impressions,
        sum.impressions as f64 / seconds / 1e6
    );
    println!(
        "value per cost {:.2}, cost {:.0} USD, {} onsets",
        sum.value_per_cost().unwrap_or_default(),
        sum.cost,
        truth.creatives.iter().filter(|creative| creative.onset_us.is_some()).count(),
    );
    let mut informed = Market::new(market.config().clone(), seed)?;
    for campaign in informed.truth().campaigns {
        let bid_micros = campaign.target_bid_micros;
        informed.apply(&campaign.campaign, &Setting::Bid { bid_micros }, None)?;
    }
    informed.advance_discarding(market.now_us());
    let won = uplift(&informed.totals(), &totals).all;
    println!(
        "target bids instead: value {:+.1} %, cost {:+.1} %, value per cost {:+.1} %, surplus {:+.0} USD",
        won.value_gain.unwrap_or_default() * 100.0,
        won.cost_gain.unwrap_or_default() * 100.0,
        won.value_per_cost_gain.unwrap_or_default() * 100.0,
        won.surplus_gain_usd,
    );
    for ((total, hidden), campaign) in
        totals.campaigns.iter().zip(&truth.campaigns).zip(market.campaigns())
    {
        let budget = campaign.start_budget_micros * days as i64;
        println!(
            "{:48} bid/target {:4.2}  won {:4.2}  spent/budget {:4.2}  value/cost {:5.2}  {:?}",
            total.campaign.as_str(),
            campaign.start_bid_micros as f64 / hidden.target_bid_micros as f64,
            hidden.win_share,
            total.stats.cost_micros as f64 / budget as f64,
            total.expected_value_micros as f64 / total.stats.cost_micros.max(1) as f64,
            campaign.goal.kind,
        );
    }
    Ok(())
}
