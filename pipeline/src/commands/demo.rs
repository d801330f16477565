//! `omnify demo`: the whole engine against the embedded market, with the loop closed over HTTP.
//!
//! First some simulated days pass quickly with the kill switch set: the accounts' past, in which the
//! engine only watches. Then time slows down to `demo.speed` and actions leave. At the end the
//! market, which knows the truth, says what that won against leaving every setting alone.

mod browser;
mod folder;
mod scenario;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use omnify_config::Checked;
use omnify_decision::control::Control;
use omnify_market::{Faults, Market, MarketConfig, Platform, Totals, UpliftReport};
use omnify_operators::model::{DAY_US, EventTime, MINUTE_US, tick_of_us};
use serde_json::json;

use super::run::duration;
use super::{Done, UsageError, totals, totals_text};
use crate::cli::Common;
use crate::clock::{self, Clock};
use crate::live::market::{MarketError, MarketFeed};
use crate::live::{HistoryAt, Intake, Live, Setup, listen};
use crate::progress;

/// Where a demo writes unless told otherwise.
const FOLDER: &str = "omnify-data/demo";
/// Feed items that the platform holds for its reader.
const FEED_ITEMS: usize = 1 << 20;
/// The past is played in pieces of this length.
const WARM_STEP_US: i64 = 15 * MINUTE_US;
/// Most simulated time that is played in one go, as a part of a real second: a machine that is too
/// slow shows a slower market, not a jumping one.
const JUMP_MAX: f64 = 0.1;
/// The platform's settings are read back this often.
const OBSERVE_EVERY: Duration = Duration::from_secs(2);

/// Options of `demo`.
#[derive(Args, Clone, Debug, Default)]
pub struct DemoArgs {
    /// Ends by itself this long after actions began to leave, for example 30s; without it, on
    /// ctrl-c or SIGTERM.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub time: Option<Duration>,
    /// Seed of the market and of the engine.
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// Does not open the page in a browser.
    #[arg(long)]
    pub no_open: bool,
    /// Folder of the history; an earlier demo in it is replaced.
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
}

/// Runs the demonstration.
pub fn execute(common: &Common, args: &DemoArgs) -> anyhow::Result<Done> {
    let base = common.load(None)?;
    let scenario = scenario::market(&base.demo);
    let market = Market::new(scenario.clone(), args.seed)
        .map_err(|error| UsageError(format!("[demo] cannot be played: {error}")))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let url = format!("http://{}", listener.local_addr()?);
    let text = scenario::layer(&base, &market, url.clone(), FOLDER)?;
    let config = common.load(Some(("the demo's scenario", &text)))?;
    let dir = args.out.clone().unwrap_or_else(|| PathBuf::from(&config.history.dir));
    folder::prepare(&dir, args.seed)?;

    let platform = Arc::new(Platform::new(market, FEED_ITEMS, Faults::default()));
    let start_us = scenario.start_us;
    let live = Live::start(Setup {
        clock: Clock::manual(tick_of_us(start_us)),
        speed: config.demo.speed.ms().div_ceil(1_000),
        listener: page(&config)?,
        history: config.history.enabled.then(|| HistoryAt::Folder(dir.clone())),
        state: None,
        ledger: dir.join("ledger"),
        mirror: None,
        controls: vec![Control::Kill { tenant: None }],
        config: config.clone(),
    })?;
    serve(&live, &platform, listener)?;
    let runtime = live.runtime().handle().clone();
    let lags = scenario::lags(&scenario);
    let mut feed = MarketFeed::new(&url, lags, runtime, live.door().clone())?;
    if let Some(address) = live.address() {
        let page = format!("http://{address}/");
        eprintln!("The page is at {page}");
        if config.demo.open && !args.no_open {
            browser::open(&page);
        }
    }

    let warm_us = start_us + i64::from(config.demo.warm_days) * DAY_US;
    if let Err(error) = warm_up(common, &live, &platform, &mut feed, (start_us, warm_us)) {
        // If the engine ended by itself, its own error says why.
        live.stop()?;
        return Err(error);
    }
    let before = platform.read(Market::totals);
    if !config.guardrails.kill {
        live.controls().send(Control::Resume { tenant: None })?;
    }

    let player = Player::start(feed, platform.clone(), live.intake().clone(), &config)?;
    live.wait(args.time, || {});
    let played = player.stop();
    let summary = live.stop()?;
    played?;
    let with = platform.read(Market::totals).since(&before);
    let uplift = uplift(&scenario, args.seed, warm_us, &with)?;

    let mut answer = totals(&summary);
    let hours = (with.until_us - warm_us) as f64 / 3_600e6;
    answer["history"] = json!(config.history.enabled.then_some(&dir));
    answer["seed"] = json!(args.seed);
    answer["warm_days"] = json!(config.demo.warm_days);
    answer["simulated_hours"] = json!(hours);
    answer["uplift"] = serde_json::to_value(&uplift)?;
    let text = totals_text(&summary) + &report(&uplift, hours, &dir);
    Ok(Done { answer, text, code: 0 })
}

/// The page's address, or any free one where that is taken.
fn page(config: &Checked) -> anyhow::Result<Option<TcpListener>> {
    match listen(config) {
        Err(error) if error.in_use() => {
            eprintln!("{} is taken, so another port is used.", config.http.listen);
            Ok(Some(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?))
        }
        other => Ok(other?),
    }
}

/// Serves the ad platform until the runtime ends.
fn serve(live: &Live, platform: &Arc<Platform>, listener: TcpListener) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let _inside = live.runtime().enter();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let platform = platform.clone();
    live.runtime().spawn(async move {
        let served = omnify_market::serve(platform, listener, std::future::pending()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the ad platform is not served any more");
        }
    });
    Ok(())
}

/// Plays the past, as fast as the engine takes it. The market is one piece ahead of the reader.
fn warm_up(
    common: &Common,
    live: &Live,
    platform: &Platform,
    feed: &mut MarketFeed,
    (from_us, to_us): (EventTime, EventTime),
) -> anyhow::Result<()> {
    feed.observe(live.intake())?;
    let bar = progress::steps(common, "simulated days before the engine may act");
    let mut time_us = from_us;
    while time_us < to_us {
        time_us = (time_us + WARM_STEP_US).min(to_us);
        std::thread::scope(|scope| {
            let ahead = scope.spawn(|| platform.advance_to(time_us));
            let read = feed.read(live.intake(), false);
            let _ = ahead.join();
            read
        })?;
        let days = |us: i64| u64::try_from(us / DAY_US).unwrap_or(0);
        bar.at((days(time_us - from_us), days(to_us - from_us)));
    }
    let known_until = feed.read(live.intake(), false)?;
    live.settle(known_until);
    bar.done();
    Ok(())
}

/// Moves simulated time, and reads what happened.
struct Player {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<(), MarketError>>,
}

impl Player {
    fn start(
        mut feed: MarketFeed,
        platform: Arc<Platform>,
        intake: Intake,
        config: &Checked,
    ) -> std::io::Result<Player> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (speed, step_us) = platform
            .read(|market| (config.demo.speed.us() as f64 / 1e6, market.config().step_us as f64));
        let thread = std::thread::Builder::new().name("market".into()).spawn(move || {
            let pause = Duration::from_secs_f64((step_us / speed / 1e6).clamp(0.001, 1.0));
            let (mut last, mut observed) = (clock::instant(), clock::instant());
            // Simulated time that has passed, in fractions of a step.
            let mut now_us = platform.read(Market::now_us) as f64;
            while !stopped.load(Ordering::Relaxed) {
                let passed = last.elapsed().as_secs_f64();
                last = clock::instant();
                now_us += passed.min(JUMP_MAX.max(2.0 * pause.as_secs_f64())) * 1e6 * speed;
                platform.advance_to(now_us as EventTime);
                let read = feed.read(&intake, true).and_then(|_| {
                    if observed.elapsed() < OBSERVE_EVERY {
                        return Ok(());
                    }
                    observed = clock::instant();
                    feed.observe(&intake)
                });
                match read {
                    Ok(()) => {}
                    Err(MarketError::Closed) => return Ok(()),
                    Err(error) => {
                        intake.fail();
                        return Err(error);
                    }
                }
                std::thread::sleep(pause.saturating_sub(last.elapsed()));
            }
            Ok(())
        })?;
        Ok(Player { stop, thread })
    }

    fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.join().map_err(|_| anyhow::anyhow!("the market panicked"))?;
        Ok(result?)
    }
}

/// What the engine won since `from_us` against a market of the same seed that was left alone.
fn uplift(
    scenario: &MarketConfig,
    seed: u64,
    from_us: EventTime,
    with: &Totals,
) -> anyhow::Result<UpliftReport> {
    let without = omnify_market::run_baseline(scenario, seed, from_us, with.until_us)?;
    Ok(omnify_market::uplift(with, &without))
}

fn report(uplift: &UpliftReport, hours: f64, dir: &Path) -> String {
    let percent = |share: Option<f64>| {
        share.map_or("not defined".to_owned(), |share| format!("{:+.1} %", share * 100.0))
    };
    let all = &uplift.all;
    format!(
        "simulated     {hours:.1} hours with the engine, against the same hours left alone:\n\
         value         {} (USD {:.0} against {:.0})\n\
         cost          {} (USD {:.0} against {:.0})\n\
         value / cost  {}\n\
         surplus       {:+.0} USD\n\
         history       {}\n",
        percent(all.value_gain),
        all.with.value,
        all.without.value,
        percent(all.cost_gain),
        all.with.cost,
        all.without.cost,
        percent(all.value_per_cost_gain),
        all.surplus_gain_usd,
        dir.display(),
    )
}
