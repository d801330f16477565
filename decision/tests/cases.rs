//! Text cases: frames and controls in, decisions out. `UPDATE=1 cargo test --test cases` rewrites
//! what is expected; a reader judges the difference.
//!
//! A case is a text of commands. `tick N` runs a tick with the rows and controls written before it,
//! and what follows it, up to an empty line, is the decisions expected:
//!
//! ```text
//! goal target_cpa 2.0 budget 100 floor 0.01 cap 50      one goal, over tenant t
//! set guardrails.cooldown_ms 0                          a key of the stage's configuration
//! row KEY 24h=IMPRESSIONS/CLICKS/CONVERSIONS/COST 28d=… worn alarm reported=SHARE[/ERROR] broken
//! kill [TENANT] · resume [TENANT] · observe KEY bid=N budget=N paused|enabled
//! ack KEY applied|rejected|unknown|expired              of the owner's action in flight
//! tick 3d10h
//! ```

mod support;

use std::fmt::Write as _;
use std::path::Path;

use omnify_decision::action::{Setting, Status};
use omnify_decision::control::{Actual, Control, Outcome};
use omnify_decision::goal::{Goal, Objective};
use omnify_decision::stage::{Stage, StageConfig, TickOutput};
use omnify_operators::model::{
    EntityKey, FatigueState, FeatureRow, Maturity, RegistryView, Span, Stats, micros_from_decimal,
};
use support::{estimate, frame, goal, registry, row};

const WINDOWS: [&str; 5] = ["1h", "24h", "7d", "28d", "day"];

struct Session {
    config: serde_json::Value,
    goals: Vec<Goal>,
    stage: Option<Stage>,
    registry: RegistryView,
    rows: Vec<FeatureRow>,
    controls: Vec<Control>,
}

fn money(text: &str) -> i64 {
    micros_from_decimal(text, b'.', 1_000_000).unwrap_or_else(|| panic!("`{text}` is no amount"))
}

fn key(text: &str) -> EntityKey {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

impl Session {
    fn new() -> Session {
        Session {
            config: serde_json::to_value(StageConfig::default()).expect("plain data"),
            goals: Vec::new(),
            stage: None,
            registry: registry(),
            rows: Vec::new(),
            controls: Vec::new(),
        }
    }

    fn stage(&mut self) -> &mut Stage {
        self.stage.get_or_insert_with(|| {
            let config: StageConfig =
                serde_json::from_value(self.config.clone()).expect("a configuration");
            let config = StageConfig { goals: self.goals.clone(), ..config };
            Stage::new(config).unwrap_or_else(|error| panic!("{error}"))
        })
    }

    /// Runs a command; `tick` answers with what came out.
    fn command(&mut self, line: &str) -> Option<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["goal", kind, rest @ ..] => self.goals.push(goal_of(kind, rest)),
            ["set", path, value] => {
                let pointer = format!("/{}", path.replace('.', "/"));
                let place = self.config.pointer_mut(&pointer);
                *place.unwrap_or_else(|| panic!("no key {path}")) =
                    serde_json::from_str(value).unwrap_or_else(|_| serde_json::json!(value));
            }
            ["row", entity, rest @ ..] => {
                let row = row_of(&mut self.registry, entity, rest);
                self.rows.push(row);
            }
            ["kill", rest @ ..] => {
                self.controls.push(Control::Kill { tenant: rest.first().map(|t| (*t).to_owned()) });
            }
            ["resume", rest @ ..] => {
                self.controls
                    .push(Control::Resume { tenant: rest.first().map(|t| (*t).to_owned()) });
            }
            ["observe", entity, rest @ ..] => {
                let actual = actual_of(rest);
                self.controls.push(Control::Observe { entity: key(entity), actual });
            }
            ["ack", entity, how] => {
                let owner = self.stage().owner(&key(entity)).expect("a known owner");
                let flight = owner.in_flight.clone().expect("an action in flight");
                let outcome = match *how {
                    "applied" => Outcome::Applied { effective: flight.action.desired },
                    "rejected" => {
                        Outcome::Rejected { class: "validation".into(), message: String::new() }
                    }
                    "unknown" => Outcome::Unknown,
                    "expired" => Outcome::Expired,
                    other => panic!("no outcome `{other}`"),
                };
                let action = flight.action.id;
                self.controls.push(Control::Acknowledge { action, owner: key(entity), outcome });
            }
            ["tick", at] => return Some(self.tick(at)),
            _ => panic!("no command `{line}`"),
        }
        None
    }

    fn tick(&mut self, at: &str) -> String {
        // `3d10h`: spans one after the other, from a Monday's midnight.
        let mut tick = 1_704_067_200_000;
        for span in at.split_inclusive(|c: char| c.is_ascii_alphabetic()) {
            tick += span.parse::<Span>().unwrap_or_else(|error| panic!("{error}")).ms();
        }
        let mut rows = std::mem::take(&mut self.rows);
        rows.iter_mut().for_each(|row| row.tick = tick);
        let frame = frame(&mut self.registry, tick, rows);
        let controls = std::mem::take(&mut self.controls);
        let out = self.stage().on_tick(tick, &controls, &frame);
        assert_eq!(self.stage().counters().invariant_violations, 0);
        written(&out, tick)
    }
}

fn goal_of(kind: &str, rest: &[&str]) -> Goal {
    let (objective, rest) = match (kind, rest) {
        ("maximise", rest) => (Objective::Maximise, rest),
        ("target_cpa", [target, rest @ ..]) => {
            (Objective::TargetCpa { cpa_micros: money(target) }, rest)
        }
        ("target_cpc", [target, rest @ ..]) => {
            (Objective::TargetCpc { cpc_micros: money(target) }, rest)
        }
        ("target_roas", [target, rest @ ..]) => {
            (Objective::TargetRoas { roas: target.parse().expect("a number") }, rest)
        }
        _ => panic!("no goal `{kind}`"),
    };
    let mut goal = goal(objective);
    for pair in rest.chunks(2) {
        match pair {
            ["budget", amount] => goal.daily_budget_micros = money(amount),
            ["floor", amount] => goal.bid_floor_micros = money(amount),
            ["cap", amount] => goal.bid_cap_micros = money(amount),
            ["over", path] => goal.applies_to = (*path).to_owned(),
            ["name", name] => goal.name = (*name).to_owned(),
            other => panic!("no part of a goal: {other:?}"),
        }
    }
    goal
}

fn row_of(registry: &mut RegistryView, entity: &str, rest: &[&str]) -> FeatureRow {
    let mut row = row(registry, entity, 0);
    for word in rest {
        match word.split_once('=') {
            Some(("reported", share)) => {
                let (share, error) = share.split_once('/').unwrap_or((share, "0"));
                let number = |text: &str| text.parse().expect("a number");
                let (share, error) = (number(share), number(error));
                row.maturity = Some(Maturity { share, error, ..Maturity::default() });
            }
            Some((window, sums)) => {
                let at = WINDOWS.iter().position(|name| *name == window).expect("a window");
                let parts: Vec<&str> = sums.split('/').collect();
                let count = |at: usize| parts[at].parse().expect("a count");
                row.windows[at] = Stats {
                    impressions: count(0),
                    clicks: count(1),
                    conversions: count(2),
                    cost_micros: money(parts[3]),
                    revenue_micros: parts.get(4).map_or(0, |amount| money(amount)),
                };
            }
            None if *word == "worn" => {
                row.fatigue.state = FatigueState::WearingOut;
                row.fatigue.probability = 0.95;
            }
            None if *word == "fresh" => row.fatigue.state = FatigueState::Fresh,
            None if *word == "broken" => {
                row.maturity.get_or_insert_default().broken = true;
            }
            None if *word == "alarm" => row.anomaly.alarm = true,
            None => panic!("no part of a row: `{word}`"),
        }
    }
    let mut longest = row.windows[3];
    if let Some(maturity) = &row.maturity {
        longest.clicks = (longest.clicks as f64 * maturity.share).round() as i64;
    }
    estimate(&mut row, &longest);
    row
}

fn actual_of(rest: &[&str]) -> Actual {
    let mut actual = Actual::default();
    for word in rest {
        match word.split_once('=') {
            Some(("bid", amount)) => actual.bid_micros = Some(money(amount)),
            Some(("budget", amount)) => actual.budget_micros = Some(money(amount)),
            None if *word == "paused" => actual.status = Some(Status::Paused),
            None if *word == "enabled" => actual.status = Some(Status::Enabled),
            _ => panic!("no setting `{word}`"),
        }
    }
    actual
}

fn written(out: &TickOutput, tick: u64) -> String {
    let mut text = String::new();
    for decision in &out.decisions {
        let _ = write!(text, "> {} {} ", decision.entity.key, decision.policy);
        if decision.tick != tick {
            let _ = write!(text, "({} ms before) ", tick - decision.tick);
        }
        let _ = write!(text, "{}", decision.verdict.name());
        if let Some(setting) = decision.granted.as_ref().or(decision.proposed.as_ref()) {
            let _ = write!(text, " {}", setting_text(setting));
        }
        let _ = write!(text, " because {}", decision.reasons.join(", "));
        if !decision.guardrails.is_empty() {
            let _ = write!(text, "; guarded by {}", decision.guardrails.join(", "));
        }
        text.push('\n');
    }
    assert_eq!(
        out.actions.iter().map(|action| action.id).collect::<Vec<_>>(),
        out.decisions.iter().filter_map(|decision| decision.action).collect::<Vec<_>>(),
    );
    text
}

fn setting_text(setting: &Setting) -> String {
    match setting {
        Setting::Rotate { from, to } => format!("{} {from} -> {to}", setting.kind().name()),
        Setting::Alert { code } => format!("{} {code}", setting.kind().name()),
        _ => match setting.micros() {
            Some(micros) => format!("{} {:.6}", setting.kind().name(), micros as f64 / 1e6),
            None => setting.kind().name().to_owned(),
        },
    }
}

/// Runs a case and returns it with what came out in the place of what was expected.
fn run(text: &str) -> String {
    let mut session = Session::new();
    let mut result = String::new();
    for line in text.lines().filter(|line| !line.starts_with('>')) {
        let _ = writeln!(result, "{line}");
        let command = line.split('#').next().unwrap_or_default().trim();
        if !command.is_empty()
            && let Some(out) = session.command(command)
        {
            result.push_str(&out);
        }
    }
    result
}

#[test]
fn cases_come_out_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder of cases")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    assert!(paths.len() >= 5, "cases are missing");
    let mut wrong = Vec::new();
    for path in paths {
        let expected = std::fs::read_to_string(&path).expect("a case");
        let found = run(&expected);
        if found != expected {
            if std::env::var_os("UPDATE").is_some() {
                std::fs::write(&path, &found).expect("a case that can be written");
            } else {
                wrong.push(format!("{}:\n{found}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "came out differently (UPDATE=1 rewrites):\n{}", wrong.join("\n"));
}
