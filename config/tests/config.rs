//! What a user of the configuration relies on: every key documented, errors with place and remedy,
//! all problems at once, shipped profiles valid.

use omnify_config::{Config, ConfigError, DEFAULT_TOML, Layers};

const GOAL: &str = r#"
[[goals]]
name = "brand"
applies_to = "acme/meta/*"
objective = "target_cpa"
target = "12.50"
daily_budget = "500"
currency = "USD"
start = "2025-01-01"
end = "2025-02-01T00:00:00Z"
bid_floor = "0.10"
bid_cap = "20"
"#;

fn with(text: &str) -> Result<Config, ConfigError> {
    Layers::new().text("test.toml", text)?.build()
}

fn problems(text: &str) -> String {
    with(text).unwrap().validate().unwrap_err().to_string()
}

#[test]
fn defaults_are_valid_and_every_key_has_its_reason() {
    Layers::new().build().unwrap().validate().unwrap();
    let mut previous = "";
    for line in DEFAULT_TOML.lines() {
        let is_key = !line.starts_with(['#', '[']) && line.contains(" = ");
        assert!(!is_key || previous.starts_with("# "), "no reason above `{line}`");
        previous = line;
    }
}

/// Serde lists the fields of a struct when it meets an unknown one: so the structs themselves say
/// what `default.toml` must hold.
fn fields_of(section: &str) -> Vec<String> {
    let text = format!("[{section}]\nprobe = 0\n");
    let message = toml::from_str::<Config>(&text).unwrap_err().message().to_owned();
    message.split('`').skip(1).step_by(2).skip(1).map(str::to_owned).collect()
}

#[test]
fn every_field_is_in_default_toml() {
    let defaults: toml::Table = DEFAULT_TOML.parse().unwrap();
    let top = toml::from_str::<Config>("probe = 0").unwrap_err().message().to_owned();
    let sections: Vec<&str> = top.split('`').skip(1).step_by(2).skip(1).collect();
    assert!(sections.len() > 10, "{top}");
    for section in sections.iter().filter(|name| !["goals", "accounts"].contains(name)) {
        let table = defaults[*section].as_table().unwrap();
        let fields = fields_of(section);
        assert!(!fields.is_empty());
        for field in fields {
            assert!(table.contains_key(&field), "default.toml misses {section}.{field}");
        }
    }
}

#[test]
fn documented_examples_of_lists_are_valid() {
    let start = DEFAULT_TOML.find("# [[goals]]").unwrap();
    let lists: String = DEFAULT_TOML[start..]
        .lines()
        .map(|line| format!("{}\n", line.trim_start_matches("# ").trim_start_matches('#')))
        .collect();
    let example = format!("[kafka]\nbrokers = \"broker:9092\"\n{lists}");
    // The example's account is kept in euros, its goal in dollars: the check sees that.
    let text = problems(&example);
    assert!(text.contains("1 problem") && text.contains("goals.0 (brand).currency"), "{text}");
    with(&example.replace("\"EUR\"", "\"USD\"")).unwrap().validate().unwrap();
}

#[test]
fn unknown_key_is_refused_with_place_and_neighbour() {
    let error = with("[engine]\nworkers = 2\nwokers = 4\n").unwrap_err().to_string();
    assert_eq!(error, "test.toml, line 3, column 1: unknown key `wokers`; did you mean `workers`?");
    let error = with("[engin]\n").unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("did you mean `engine`"), "{error}");
    let error = with("[zzzzqq]\n").unwrap_err().to_string();
    assert!(error.contains("unknown key `zzzzqq`") && error.contains("check-config"), "{error}");
    let error = with(&GOAL.replace("bid_cap", "bid_cup")).unwrap_err().to_string();
    assert!(error.contains("line 12") && error.contains("`bid_cap`"), "{error}");
}

#[test]
fn wrong_values_are_refused_with_place() {
    let error = with("[engine]\ntick = \"10 bananas\"\n").unwrap_err().to_string();
    assert!(error.starts_with("test.toml, line 2, column 8") && error.contains("15m"), "{error}");
    let error = with("[engine]\ntick = 10\n").unwrap_err().to_string();
    assert!(error.contains("span of time in quotes"), "{error}");
    let error = with(&GOAL.replace("\"12.50\"", "12.50")).unwrap_err().to_string();
    assert!(error.contains("decimal number in quotes"), "{error}");
    let error = with("[engine\n").unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
    let missing = Layers::new().file(std::path::Path::new("no/such/file.toml")).unwrap_err();
    assert!(missing.to_string().contains("no/such/file.toml"));
}

#[test]
fn overrides_take_toml_or_bare_values() {
    let config = Layers::new()
        .text("goal.toml", GOAL)
        .unwrap()
        .set("engine.workers=4")
        .unwrap()
        .set("engine.tick=20ms")
        .unwrap()
        .set("features.windows=[\"1h/1m\", \"day\"]")
        .unwrap()
        .set("features.levels=creative,campaign")
        .unwrap()
        .set("history.dir=out/day=1")
        .unwrap()
        .set("goals.0.target=13.25")
        .unwrap()
        .set("guardrails.step_max=0.05")
        .unwrap()
        .build()
        .unwrap();
    assert_eq!(config.engine.workers, 4);
    assert_eq!(config.engine.tick.ms(), 20);
    assert_eq!(config.features.windows, ["1h/1m", "day"]);
    assert_eq!(config.features.levels, ["creative", "campaign"]);
    assert_eq!(config.history.dir, "out/day=1");
    let checked = config.validate().unwrap();
    assert_eq!(checked.goals()[0].target_micros, 13_250_000);
    assert_eq!(checked.guardrails.step_max.to_bits(), 0.05f64.to_bits());
}

#[test]
fn bad_overrides_are_refused() {
    let set = |text| Layers::new().set(text).unwrap_err().to_string();
    assert!(set("engine.wokers=4").contains("did you mean `workers`?"));
    assert!(set("engine.workers=four").contains("engine.workers=four"));
    assert!(set("engine.workers").contains("write path.to.key=value"));
    assert!(set("=1").contains("write path.to.key=value"));
    assert!(set("goals.3.target=1").contains("goals.3.target"));
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = problems(&format!(
        "[engine]\ntick = \"0ms\"\n[features]\nwindows = [\"1h/7m\"]\n[guardrails]\nstep_max = 2.0\n{}",
        GOAL.replace("\"0.10\"", "\"30\"").replace("\"500\"", "\"5\"").replace("USD", "usd")
    ));
    for key in [
        "engine.tick",
        "features.windows",
        "guardrails.step_max",
        "goals.0 (brand).bid_cap",
        "goals.0 (brand).target",
        "goals.0 (brand).currency",
    ] {
        assert!(text.contains(key), "{key} is missing in {text}");
    }
}

#[test]
fn impossible_goals_are_refused() {
    let maximise = GOAL.replace("target_cpa", "maximise");
    assert!(problems(&maximise).contains("maximise has none"));
    assert!(problems(&GOAL.replace("target = \"12.50\"\n", "")).contains("target: is missing"));
    assert!(problems(&GOAL.replace("12.50", "-1")).contains("no delivery can reach it"));
    assert!(problems(&GOAL.replace("2025-02-01T00", "2024-02-01T00")).contains("never hold"));
    assert!(problems(&GOAL.replace("2025-01-01", "tomorrow")).contains("`tomorrow` is not a date"));
    assert!(problems(&GOAL.replace("acme/meta/*", "a/b/c/d/e")).contains("covers no campaign"));
    assert!(problems(&format!("{GOAL}{GOAL}")).contains("used twice"));
}

#[test]
fn dates_are_days_of_the_default_zone() {
    let config =
        with(&format!("[account_defaults]\ntime_zone = \"Europe/Berlin\"\n{GOAL}")).unwrap();
    let checked = config.validate().unwrap();
    assert_eq!(checked.goals()[0].start_us, Some(1_735_686_000_000_000));
    assert_eq!(checked.goals()[0].end_us, Some(1_738_368_000_000_000));
    assert_eq!(checked.account("acme/x/y").time_zone, "Europe/Berlin");
}

#[test]
fn shipped_profiles_are_valid_and_round_trip() {
    for profile in ["dev.toml", "production.example.toml"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(profile);
        let checked = Layers::new().file(&path).unwrap().build().unwrap().validate().unwrap();
        let again = with(&checked.to_toml()).unwrap().validate().unwrap();
        assert_eq!(again, checked, "{profile}");
    }
}

#[test]
fn kafka_is_checked_as_a_whole() {
    let text = problems(
        r#"
[kafka]
security = "ssl"
username = "omnify"
cert_file = "client.pem"
[[kafka.topics]]
name = "a b"
kind = "goals"
mapping = "dsp_log"
[[kafka.topics]]
name = "events"
kind = "events"
format = "avro"
registry = true
[[kafka.topics]]
name = "events"
kind = "reports"
format = "protobuf"
mapping = "foreign.toml"
"#,
    );
    for wanted in [
        "kafka.brokers: is empty, but kafka.topics has entries",
        "kafka.username: is set, but kafka.security is not",
        "kafka.username: is set without a password",
        "kafka.key_file: is empty",
        "kafka.topics.0 (a b).name: `a b` is no name",
        "kafka.topics.0 (a b).mapping: is only for events and reports",
        "kafka.topics.1 (events).registry: is true, but kafka.registry_url is empty",
        "kafka.topics.2 (events).name: is read twice",
        "kafka.topics.2 (events).schema: is missing",
    ] {
        assert!(text.contains(wanted), "{wanted}\nis not in\n{text}");
    }
    assert!(text.contains("9 problems"), "{text}");
}

#[test]
fn what_decides_outcomes_is_told_from_what_does_not() {
    let outcome = |sets: &[&str]| {
        let layers = sets.iter().fold(Layers::new(), |layers, set| layers.set(set).unwrap());
        layers.build().unwrap().validate().unwrap().outcome_toml()
    };
    let usual = outcome(&[]);
    let beside = ["engine.workers=2", "http.listen=0.0.0.0:1", "state.dir=x", "history.dir=y"];
    assert_eq!(outcome(&beside), usual);
    for set in ["engine.seed=8", "guardrails.step_max=0.2", "features.reach=false"] {
        assert_ne!(outcome(&[set]), usual, "{set}");
    }
    let again = with(&usual).unwrap().validate().unwrap();
    assert_eq!(again.outcome_toml(), usual);
}
