//! Everything that types cannot say: ranges, references between keys, goals that are impossible.

mod kafka;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;

use crate::layers::Layers;
use crate::schema::{Acknowledge, Config, Engine, ExecutorKind, Goal, Objective};
use crate::units::Span;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the key.
    pub key: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// All problems of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "the configuration has {count} problem{}:", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {}: {}", problem.key, problem.message))
    }
}

impl std::error::Error for Problems {}

/// A configuration without problems; the only form that travels.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    config: Config,
    goals: Vec<CheckedGoal>,
}

impl Checked {
    /// The goals, with amounts in micros and dates as times.
    pub fn goals(&self) -> &[CheckedGoal] {
        &self.goals
    }

    /// Currency and time zone of the account `key` (`tenant/platform/account`, or a tenant).
    pub fn account(&self, key: &str) -> TenantAccount<'_> {
        let listed = self.config.accounts.iter().find(|account| account.key == key);
        match listed {
            Some(account) => {
                TenantAccount { currency: &account.currency, time_zone: &account.time_zone }
            }
            None => TenantAccount {
                currency: &self.config.account_defaults.currency,
                time_zone: &self.config.account_defaults.time_zone,
            },
        }
    }

    /// The configuration as TOML, as `check-config` prints it.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.config).unwrap_or_default()
    }

    /// What features, decisions and actions depend on, as TOML: everything but threads, queues,
    /// folders, addresses and logs, which stand at their defaults. This is what a history and a
    /// journal keep; while it stays the same, a run goes on with its history.
    pub fn outcome_toml(&self) -> String {
        let usual = Layers::new().build().unwrap_or_default();
        let mut config = self.config.clone();
        let (seed, decide_every) = (config.engine.seed, config.engine.decide_every);
        config.engine = Engine { seed, decide_every, ..usual.engine };
        config.decision.model_file = usual.decision.model_file;
        config.history = usual.history;
        config.state = usual.state;
        config.object_store = usual.object_store;
        config.http = usual.http;
        config.cluster = usual.cluster;
        config.telemetry = usual.telemetry;
        config.learn = usual.learn;
        config.demo = usual.demo;
        toml::to_string(&config).unwrap_or_default()
    }
}

impl Deref for Checked {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.config
    }
}

/// Currency and time zone of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantAccount<'a> {
    /// ISO 4217 code.
    pub currency: &'a str,
    /// IANA name.
    pub time_zone: &'a str,
}

/// A goal without problems.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedGoal {
    /// The goal as written.
    pub goal: Goal,
    /// Target in millionths: micros of money, or of the ratio for `target_roas`; 0 for `maximise`.
    pub target_micros: i64,
    /// Daily budget of each covered campaign, in micros.
    pub daily_budget_micros: i64,
    /// First instant in µs since the Unix epoch, inclusive.
    pub start_us: Option<i64>,
    /// Last instant in µs since the Unix epoch, exclusive.
    pub end_us: Option<i64>,
    /// Lowest bid, in micros.
    pub bid_floor_micros: i64,
    /// Highest bid, in micros.
    pub bid_cap_micros: i64,
}

const LEVELS: [&str; 5] = ["tenant", "account", "campaign", "ad_group", "creative"];

/// Most windows a feature row has room for.
const WINDOWS_MAX: usize = 8;
/// Most panes of one window: each costs memory for every active entity.
const PANES_MAX: i64 = 4096;

const DAY_US: i64 = 86_400_000_000;
/// Ages that a completeness curve tells apart.
const SETTLE_DAYS_MAX: i64 = 35;
/// Beyond this a curve would never follow anything.
const MEMORY_DAYS_MAX: u32 = 1_000;
/// Sums of conversions must not overflow.
const SHRINK_MAX: i64 = 1_000_000_000;

struct Check {
    problems: Vec<Problem>,
}

impl Check {
    fn problem(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { key: key.into(), message: message.into() });
    }

    fn require(&mut self, holds: bool, key: &str, message: &str) {
        if !holds {
            self.problem(key, message);
        }
    }

    fn share(&mut self, key: &str, value: f64) {
        if !(value > 0.0 && value < 1.0) {
            self.problem(key, format!("is {value}; it must lie between 0 and 1, both excluded"));
        }
    }

    fn positive(&mut self, key: &str, value: f64) {
        if !(value > 0.0 && value.is_finite()) {
            self.problem(key, format!("is {value}; it must be a finite number above 0"));
        }
    }

    fn not_negative(&mut self, key: &str, value: f64) {
        if !(value >= 0.0 && value.is_finite()) {
            self.problem(key, format!("is {value}; it must be 0 or a finite number above"));
        }
    }

    fn at_least_one(&mut self, key: &str, value: usize) {
        self.require(value >= 1, key, "is 0; it must be at least 1");
    }

    fn span(&mut self, key: &str, span: Span) {
        self.require(span.us() > 0, key, "is zero; give it a length, for example \"1s\"");
    }

    fn currency(&mut self, key: &str, code: &str) {
        if code.len() != 3 || !code.bytes().all(|byte| byte.is_ascii_uppercase()) {
            let message = "is not a currency: use the three-letter ISO 4217 code, for example USD";
            self.problem(key, format!("`{code}` {message}"));
        }
    }

    fn time_zone(&mut self, key: &str, name: &str) {
        if jiff::tz::TimeZone::get(name).is_err() {
            let message = "is not a time zone: use an IANA name, for example Europe/Berlin";
            self.problem(key, format!("`{name}` {message}"));
        }
    }
}

impl Config {
    /// The configuration, checked; or everything that is wrong with it.
    pub fn validate(self) -> Result<Checked, Problems> {
        let mut check = Check { problems: Vec::new() };
        features(&self, &mut check);
        engine(&self, &mut check);
        validation(&self, &mut check);
        reports(&self, &mut check);
        detectors(&self, &mut check);
        decision(&self, &mut check);
        accounts(&self, &mut check);
        outputs(&self, &mut check);
        let goals = goals(&self, &mut check);
        if check.problems.is_empty() {
            Ok(Checked { config: self, goals })
        } else {
            Err(Problems(check.problems))
        }
    }
}

fn features(config: &Config, check: &mut Check) {
    let features = &config.features;
    let count = features.windows.len();
    if count == 0 || count > WINDOWS_MAX {
        let message = format!("has {count} windows; name 1 to {WINDOWS_MAX}");
        check.problem("features.windows", message);
    }
    let mut seen = BTreeSet::new();
    for window in &features.windows {
        if let Err(message) = window_problem(window) {
            check.problem("features.windows", message);
        }
        if !seen.insert(window) {
            check.problem("features.windows", format!("names `{window}` twice; remove one"));
        }
    }
    let mut seen = BTreeSet::new();
    for level in &features.levels {
        if !LEVELS.contains(&level.as_str()) {
            let message = format!("`{level}` is not a level: use {}", LEVELS.join(", "));
            check.problem("features.levels", message);
        }
        if !seen.insert(level) {
            check.problem("features.levels", format!("names `{level}` twice; remove one"));
        }
    }
    check.require(!seen.is_empty(), "features.levels", "is empty; name at least one level");
    check.at_least_one("features.reach_days", features.reach_days);
    check.positive("features.prior_impressions", features.prior_impressions);
    check.positive("features.prior_clicks", features.prior_clicks);
    check.share("features.prior_ctr", features.prior_ctr);
    check.share("features.prior_cvr", features.prior_cvr);
}

fn window_problem(text: &str) -> Result<(), String> {
    if text == "day" {
        return Ok(());
    }
    let spans = text
        .split_once('/')
        .and_then(|(width, pane)| Some((Span::parse(width)?, Span::parse(pane)?)));
    let (width, pane) = spans.ok_or_else(|| {
        format!("`{text}` is not a window: write WIDTH/PANE, for example 24h/15m, or day")
    })?;
    if width.us() == 0 || pane.us() == 0 || width.us() % pane.us() != 0 {
        return Err(format!("`{text}`: the pane must be above zero and divide the width"));
    }
    if width.us() / pane.us() > PANES_MAX {
        return Err(format!("`{text}` has more than {PANES_MAX} panes; use a longer pane"));
    }
    Ok(())
}

fn engine(config: &Config, check: &mut Check) {
    let engine = &config.engine;
    check.span("engine.tick", engine.tick);
    check.require(
        engine.tick.us() % 1_000 == 0,
        "engine.tick",
        "must be whole milliseconds, for example \"10ms\"",
    );
    check.require(engine.workers <= 256, "engine.workers", "is above 256; use one for each core");
    check.at_least_one("engine.queue_events", engine.queue_events);
    check.at_least_one("engine.queue_frames", engine.queue_frames);
    check.at_least_one("engine.queue_actions", engine.queue_actions);
    check.at_least_one("engine.queue_history", engine.queue_history);
    check.span("replay.tick", config.replay.tick);
    check.require(
        config.replay.tick.us() % 1_000 == 0,
        "replay.tick",
        "must be whole milliseconds, for example \"1m\"",
    );
    check.span("replay.decide_every", config.replay.decide_every);
    check.at_least_one("replay.reorder_rows", config.replay.reorder_rows);
    check.at_least_one("replay.batch_rows", config.replay.batch_rows);
}

fn validation(config: &Config, check: &mut Check) {
    let validation = &config.validation;
    check.require(
        validation.dedup_ids_max >= 2,
        "validation.dedup_ids_max",
        "must be at least 2; two generations of ids are kept",
    );
    check.span("validation.restatement_horizon", validation.restatement_horizon);
    check.require(
        validation.line_bytes_max.bytes() >= 1024,
        "validation.line_bytes_max",
        "is below 1KiB; real rows would be refused",
    );
    check.require(
        validation.request_bytes_max >= validation.line_bytes_max,
        "validation.request_bytes_max",
        "is below validation.line_bytes_max; a request must be able to carry one line",
    );
    for tenant in &validation.tenants {
        if tenant.is_empty() || tenant.contains('/') {
            let message = format!("`{tenant}` cannot name a tenant: not empty, no `/`");
            check.problem("validation.tenants", message);
        }
    }
}

fn reports(config: &Config, check: &mut Check) {
    for (index, entry) in config.reports.attribution.iter().enumerate() {
        let at = |key: &str| format!("reports.attribution.{index}.{key}");
        let segments: Vec<&str> = entry.accounts.split('/').collect();
        if segments.len() > 3 || segments.iter().any(|segment| segment.is_empty()) {
            let message = "covers no account: write tenant[/platform[/account]], with * for any";
            check.problem(at("accounts"), format!("`{}` {message}", entry.accounts));
        }
        if !is_attribution(&entry.window) {
            let message = "is no attribution window: write `7d_click`, `1d_view`, `1d_ev` or several \
                           joined by `_`, each kind once, with 1 to 255 days; or `default`";
            check.problem(at("window"), format!("`{}` {message}", entry.window));
        }
    }
}

fn is_attribution(text: &str) -> bool {
    let parts: Vec<&str> = text.split('_').collect();
    let days = |text: &str| {
        let digits = text.strip_suffix('d').filter(|digits| !digits.starts_with(['+', '0']));
        digits.is_some_and(|digits| digits.parse::<u8>().is_ok())
    };
    let mut kinds = BTreeSet::new();
    let pairs = parts.chunks(2).all(|pair| match *pair {
        [number, kind] => {
            let kind = if kind == "engagement" { "ev" } else { kind };
            days(number) && ["click", "ev", "view"].contains(&kind) && kinds.insert(kind)
        }
        _ => false,
    });
    text == "default" || pairs
}

fn detectors(config: &Config, check: &mut Check) {
    let fatigue = &config.fatigue;
    check.share("fatigue.onset_ratio", fatigue.onset_ratio);
    check.share("fatigue.probability", fatigue.probability);
    check.require(fatigue.baseline_days >= 1, "fatigue.baseline_days", "must be at least 1");
    check.require(fatigue.recent_days >= 1, "fatigue.recent_days", "must be at least 1");
    check.require(fatigue.baseline_clicks >= 1, "fatigue.baseline_clicks", "must be at least 1");
    check.require(fatigue.recent_clicks >= 1, "fatigue.recent_clicks", "must be at least 1");
    let anomaly = &config.anomaly;
    check.positive("anomaly.alarm_score", anomaly.alarm_score);
    let maturity = &config.maturity;
    let settles = (DAY_US..=SETTLE_DAYS_MAX * DAY_US).contains(&maturity.settle.us())
        && maturity.settle.us() % DAY_US == 0;
    check.require(settles, "maturity.settle", "must be whole days, from 1d to 35d");
    check.share("maturity.prior_first_day", maturity.prior_first_day);
    check.span("maturity.prior_delay", maturity.prior_delay);
    let memory = (1..=MEMORY_DAYS_MAX).contains(&maturity.memory_days);
    check.require(memory, "maturity.memory_days", "must be from 1 to 1000");
    let weight = (1..=SHRINK_MAX).contains(&maturity.shrink_conversions);
    check.require(weight, "maturity.shrink_conversions", "must be from 1 to 1000000000");
    check.positive("maturity.break_score", maturity.break_score);
}

fn decision(config: &Config, check: &mut Check) {
    check.span("decision.action_ttl", config.decision.action_ttl);
    check.span("decision.approval_ttl", config.decision.approval_ttl);
    check.at_least_one("decision.approvals_max", config.decision.approvals_max);
    let controller = &config.controller;
    check.span("controller.period", controller.period);
    check.span("controller.horizon", controller.horizon);
    check.span("controller.review", controller.review);
    check.not_negative("controller.kp", controller.kp);
    check.not_negative("controller.ki", controller.ki);
    check.positive("controller.integral_max", controller.integral_max);
    check.positive("controller.error_max", controller.error_max);
    check.not_negative("controller.deadband", controller.deadband);
    check.not_negative("controller.kpi_gain", controller.kpi_gain);
    check.require(
        controller.slack >= 1.0 && controller.slack.is_finite(),
        "controller.slack",
        "is below 1; the multiplier that does not bind must be free to stay above the other",
    );
    check.not_negative("controller.exploration_sd", controller.exploration_sd);
    check.span("rotation.retry", config.rotation.retry);
    let guardrails = &config.guardrails;
    check.share("guardrails.step_max", guardrails.step_max);
    check.share("guardrails.gain_probability_min", guardrails.gain_probability_min);
    check.positive("guardrails.change_24h_max", guardrails.change_24h_max);
    check.positive("guardrails.change_7d_max", guardrails.change_7d_max);
    check.require(
        guardrails.step_max <= guardrails.change_24h_max,
        "guardrails.step_max",
        "is above guardrails.change_24h_max; one step would break the day's limit",
    );
    check.require(
        guardrails.change_24h_max <= guardrails.change_7d_max,
        "guardrails.change_24h_max",
        "is above guardrails.change_7d_max; one day would break the week's limit",
    );
    for (key, count) in [
        ("rotation.clicks_min", config.rotation.clicks_min),
        ("guardrails.events_min", guardrails.events_min),
        ("guardrails.learning_events", guardrails.learning_events),
        ("guardrails.winner_conversions", guardrails.winner_conversions),
    ] {
        check.require(count >= 0, key, "is negative; use 0 to switch it off");
    }
}

fn accounts(config: &Config, check: &mut Check) {
    check.currency("account_defaults.currency", &config.account_defaults.currency);
    check.time_zone("account_defaults.time_zone", &config.account_defaults.time_zone);
    let mut seen = BTreeSet::new();
    for (index, account) in config.accounts.iter().enumerate() {
        let at = format!("accounts.{index}");
        let segments: Vec<&str> = account.key.split('/').collect();
        if segments.len() != 3 || segments.iter().any(|segment| segment.is_empty()) {
            let message = format!("`{}` is not tenant/platform/account", account.key);
            check.problem(format!("{at}.key"), message);
        }
        if !seen.insert(&account.key) {
            check.problem(format!("{at}.key"), format!("`{}` is listed twice", account.key));
        }
        check.currency(&format!("{at}.currency"), &account.currency);
        check.time_zone(&format!("{at}.time_zone"), &account.time_zone);
    }
}

fn outputs(config: &Config, check: &mut Check) {
    let executor = &config.executor;
    check.at_least_one("executor.attempts_max", executor.attempts_max);
    check.at_least_one("executor.concurrency", executor.concurrency);
    check.span("executor.timeout", executor.timeout);
    if executor.kind == ExecutorKind::Market && !executor.url.starts_with("http") {
        check.problem("executor.url", "is not an http:// or https:// address");
    }
    let history = &config.history;
    check.require(!history.dir.is_empty(), "history.dir", "is empty; name a folder");
    check.at_least_one("history.rows_per_file", history.rows_per_file);
    check.at_least_one("history.row_group_rows", history.row_group_rows);
    check.require(
        (1..=22).contains(&history.zstd_level),
        "history.zstd_level",
        "must lie between 1 and 22",
    );
    let state = &config.state;
    check.require(!state.dir.is_empty(), "state.dir", "is empty; name a folder");
    check.span("state.snapshot_every", state.snapshot_every);
    check.require(state.snapshots_kept >= 2, "state.snapshots_kept", "must be at least 2");
    check.at_least_one("state.queue_journal", state.queue_journal);
    check.span("state.mirror_every", state.mirror_every);
    check.span("object_store.timeout", config.object_store.timeout);
    if state.remote.is_empty() {
        let message = "is mirror, but state.remote is empty; name the object store";
        check.require(state.acknowledge == Acknowledge::Disk, "state.acknowledge", message);
    } else {
        let message = "is no address: write s3://bucket/prefix or file:///folder";
        let known = ["s3://", "file://"].iter().any(|scheme| state.remote.starts_with(scheme));
        check.require(known, "state.remote", message);
        let message = "is false, but state.remote copies what it keeps";
        check.require(state.enabled, "state.enabled", message);
        let message = "is below journal_segment: sources would wait all the time";
        let holds = state.mirror_backlog_max.bytes() >= state.journal_segment.bytes();
        check.require(holds, "state.mirror_backlog_max", message);
    }
    if config.http.listen.parse::<SocketAddr>().is_err() {
        let message = "is not ADDRESS:PORT; for example 127.0.0.1:8080, or [::]:8080 for everyone";
        check.problem("http.listen", format!("`{}` {message}", config.http.listen));
    }
    check.at_least_one("http.concurrency", config.http.concurrency);
    let lost_after = config.cluster.lost_after;
    check.require(lost_after.us() >= 1_000_000, "cluster.lost_after", "must be at least 1s");
    kafka::check(config, check);
    check.require(config.learn.passes >= 1, "learn.passes", "is 0; it must be at least 1");
    check.at_least_one("demo.tenants", config.demo.tenants);
    check.at_least_one("demo.campaigns", config.demo.campaigns);
    check.at_least_one("demo.creatives", config.demo.creatives);
    check.require(
        config.demo.impressions_per_day >= 1,
        "demo.impressions_per_day",
        "is 0; it must be at least 1",
    );
    check.span("demo.speed", config.demo.speed);
}

fn goals(config: &Config, check: &mut Check) -> Vec<CheckedGoal> {
    let zone = jiff::tz::TimeZone::get(&config.account_defaults.time_zone)
        .unwrap_or(jiff::tz::TimeZone::UTC);
    let mut names = BTreeSet::new();
    let mut checked = Vec::new();
    for (index, goal) in config.goals.iter().enumerate() {
        let at = |key: &str| format!("goals.{index} ({}).{key}", goal.name);
        if goal.name.is_empty() || !names.insert(&goal.name) {
            check.problem(at("name"), "is empty or used twice; give each goal its own name");
        }
        let segments: Vec<&str> = goal.applies_to.split('/').collect();
        if segments.len() > 4 || segments.iter().any(|segment| segment.is_empty()) {
            check.problem(
                at("applies_to"),
                format!(
                    "`{}` covers no campaign: write tenant[/platform[/account[/campaign]]], with * for any",
                    goal.applies_to
                ),
            );
        }
        check.currency(&at("currency"), &goal.currency);
        for account in config.accounts.iter().filter(|account| covers(&segments, &account.key)) {
            if account.currency != goal.currency {
                let message = format!(
                    "is {}, but the account {} is kept in {}; make a goal for each currency",
                    goal.currency, account.key, account.currency
                );
                check.problem(at("currency"), message);
            }
        }
        let target = match (goal.objective, goal.target) {
            (Objective::Maximise, Some(_)) => {
                check.problem(at("target"), "is given, but maximise has none; remove it");
                0
            }
            (Objective::Maximise, None) => 0,
            (_, Some(target)) if target.micros() > 0 => target.micros(),
            (_, Some(target)) => {
                check.problem(at("target"), format!("is {target}; no delivery can reach it"));
                0
            }
            (_, None) => {
                check.problem(at("target"), "is missing; write the wanted value, as \"12.50\"");
                0
            }
        };
        amounts(goal, check, &at);
        let start_us = instant(goal.start.as_deref(), &zone, check, || at("start"));
        let end_us = instant(goal.end.as_deref(), &zone, check, || at("end"));
        if let (Some(start), Some(end)) = (start_us, end_us)
            && start >= end
        {
            check.problem(at("end"), "is not after the start; the goal would never hold");
        }
        checked.push(CheckedGoal {
            goal: goal.clone(),
            target_micros: target,
            daily_budget_micros: goal.daily_budget.micros(),
            start_us,
            end_us,
            bid_floor_micros: goal.bid_floor.micros(),
            bid_cap_micros: goal.bid_cap.micros(),
        });
    }
    checked
}

fn amounts(goal: &Goal, check: &mut Check, at: &dyn Fn(&str) -> String) {
    let (floor, cap) = (goal.bid_floor.micros(), goal.bid_cap.micros());
    if goal.daily_budget.micros() <= 0 {
        check.problem(at("daily_budget"), "must be above 0; to stop spending, pause the campaign");
    }
    if floor <= 0 {
        check.problem(at("bid_floor"), "must be above 0: bids move by shares, and 0 cannot move");
    }
    if cap < floor {
        check.problem(at("bid_cap"), "is below bid_floor; no bid fits between them");
    }
    let money_target = matches!(goal.objective, Objective::TargetCpa | Objective::TargetCpc);
    if let Some(target) = goal.target
        && money_target
        && target > goal.daily_budget
    {
        check.problem(
            at("target"),
            format!(
                "is {target}, more than the daily budget of {}; not one result a day fits",
                goal.daily_budget
            ),
        );
    }
}

/// Whether the goal's segments can cover the account `key`.
fn covers(segments: &[&str], key: &str) -> bool {
    segments.iter().zip(key.split('/')).all(|(want, have)| *want == "*" || *want == have)
}

fn instant(
    text: Option<&str>,
    zone: &jiff::tz::TimeZone,
    check: &mut Check,
    key: impl Fn() -> String,
) -> Option<i64> {
    let text = text?;
    let time = text.parse::<jiff::Timestamp>().ok().or_else(|| {
        let date = text.parse::<jiff::civil::Date>().ok()?;
        Some(date.to_zoned(zone.clone()).ok()?.timestamp())
    });
    if time.is_none() {
        let message = "is not a date (2025-01-31) or an RFC 3339 time (2025-01-31T12:00:00Z)";
        check.problem(key(), format!("`{text}` {message}"));
    }
    time.map(jiff::Timestamp::as_microsecond)
}
