//! The JSON of what goes out. `deploy/schemas` describes the same forms.

use std::collections::BTreeMap;

use omnify_operators::model::{
    EntityInfo, EntityKey, Estimate, FeatureRow, Level, Maturity, Stats, Tick, WindowSpec,
};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

/// Version of the forms.
const SCHEMA: u32 = 1;

/// Something that a person should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Version of this form.
    pub schema: u32,
    /// The same alert after a restart has the same id.
    pub alert_id: String,
    /// What it is.
    pub code: String,
    /// When it began.
    pub tick: Tick,
    /// The entity, where it is about one.
    pub entity: Option<String>,
    /// Its tenant.
    pub tenant: Option<String>,
    /// In words.
    pub text: String,
}

impl Alert {
    pub(super) fn of(code: &str, tick: Tick, entity: Option<&EntityKey>, text: String) -> Alert {
        let path = entity.map(EntityKey::as_str).unwrap_or_default();
        let id = xxh3_128(format!("{code}\n{path}\n{tick}\n{text}").as_bytes());
        Alert {
            schema: SCHEMA,
            alert_id: format!("{id:032x}"),
            code: code.to_owned(),
            tick,
            entity: entity.map(ToString::to_string),
            tenant: entity.map(|key| key.tenant().to_owned()),
            text,
        }
    }

    /// What keeps alerts of one entity in order: the entity, or the code.
    pub(super) fn key(&self) -> &str {
        self.entity.as_deref().unwrap_or(&self.code)
    }
}

#[derive(Serialize)]
struct Window {
    #[serde(flatten)]
    sums: Stats,
    ctr: Option<f64>,
    cvr: Option<f64>,
    cpc: Option<f64>,
    cpm: Option<f64>,
    cpa: Option<f64>,
    roas: Option<f64>,
}

#[derive(Serialize)]
struct Feature<'a> {
    schema: u32,
    entity: &'a EntityKey,
    level: Level,
    tick: Tick,
    windows: BTreeMap<&'a str, Window>,
    ctr: Option<Estimate>,
    cvr: Option<Estimate>,
    users: Option<f64>,
    frequency: Option<f64>,
    fatigue: &'static str,
    fatigue_probability: Option<f64>,
    anomaly_score: f64,
    anomaly_alarm: bool,
    maturity: Option<Maturity>,
}

/// Names of the windows, in the order of the configuration.
pub(super) fn window_names(windows: &[WindowSpec]) -> Vec<String> {
    windows.iter().map(ToString::to_string).collect()
}

/// A feature row as JSON.
pub(super) fn feature(
    info: &EntityInfo,
    row: &FeatureRow,
    windows: &[String],
) -> serde_json::Result<Vec<u8>> {
    let positive = |value: f64| Some(value).filter(|value| *value > 0.0);
    let window = |sums: &Stats| Window {
        sums: *sums,
        ctr: sums.ctr(),
        cvr: sums.cvr(),
        cpc: sums.cpc(),
        cpm: sums.cpm(),
        cpa: sums.cpa(),
        roas: sums.roas(),
    };
    let sums = row.windows.iter().map(window);
    serde_json::to_vec(&Feature {
        schema: SCHEMA,
        entity: &info.key,
        level: info.level,
        tick: row.tick,
        windows: windows.iter().map(String::as_str).zip(sums).collect(),
        ctr: (row.ctr.trials > 0).then_some(row.ctr),
        cvr: (row.cvr.trials > 0).then_some(row.cvr),
        users: positive(row.reach.users),
        frequency: positive(row.reach.frequency),
        fatigue: row.fatigue.state.name(),
        fatigue_probability: positive(row.fatigue.probability),
        anomaly_score: row.anomaly.score,
        anomaly_alarm: row.anomaly.alarm,
        maturity: row.maturity,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use omnify_operators::model::{EntityId, Registry, RegistryView};
    use serde_json::Value;

    use super::*;

    pub(in crate::kafka) fn row(entity: EntityId, tick: Tick) -> FeatureRow {
        FeatureRow {
            entity,
            tick,
            windows: std::default::Default::default(),
            ctr: Estimate::default(),
            cvr: Estimate::default(),
            reach: Default::default(),
            fatigue: Default::default(),
            anomaly: Default::default(),
            maturity: None,
        }
    }

    fn fields(schema: &str) -> BTreeSet<String> {
        let schema: Value = serde_json::from_str(schema).unwrap();
        let fields = schema["fields"].as_array().unwrap();
        fields.iter().map(|field| field["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Whether `value` is as the JSON Schema says, as far as our schemas go.
    fn check(value: &Value, schema: &Value, root: &Value, at: &str) {
        if let Some(name) = schema["$ref"].as_str() {
            let of = root.pointer(name.trim_start_matches('#')).expect("what is referred to");
            return check(value, of, root, at);
        }
        if let Some(ways) = schema["anyOf"].as_array() {
            let null = ways.iter().any(|way| way["type"] == "null");
            if !(null && value.is_null()) {
                check(value, &ways[0], root, at);
            }
            return;
        }
        let types: Vec<&str> = match &schema["type"] {
            Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
            Value::String(one) => vec![one],
            _ => return assert_eq!(*value, schema["const"], "{at}"),
        };
        let is = |name: &&str| match *name {
            "object" => value.is_object(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            other => panic!("{at}: type {other}"),
        };
        assert!(types.iter().any(is), "{at}: {value} is not {types:?}");
        let Some(fields) = value.as_object() else { return };
        if let Some(required) = schema["required"].as_array() {
            let known: BTreeSet<&str> = required.iter().filter_map(Value::as_str).collect();
            assert_eq!(fields.keys().map(String::as_str).collect::<BTreeSet<_>>(), known, "{at}");
        }
        for (name, field) in fields {
            let of = schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
            check(field, of, root, &format!("{at}.{name}"));
        }
    }

    fn check_file(message: &Value, schema: &str) {
        let schema: Value = serde_json::from_str(schema).unwrap();
        check(message, &schema, &schema, "");
    }

    /// The shipped schemas name exactly what is sent.
    #[test]
    fn messages_are_as_the_schemas_say() {
        let registry = Arc::new(Registry::utc());
        let key: EntityKey = "t/p/a/c".parse().unwrap();
        let id = registry.intern(&key);
        let mut view = RegistryView::new(registry);
        let mut row = row(id, 5);
        row.windows[0].impressions = 10;
        row.ctr = Estimate { trials: 10, ..Estimate::default() };
        let windows = ["1h/1m".to_owned()];
        let message: Value =
            serde_json::from_slice(&feature(view.info(id), &row, &windows).unwrap()).unwrap();
        let sent: BTreeSet<String> = message.as_object().unwrap().keys().cloned().collect();
        assert_eq!(sent, fields(include_str!("../../../deploy/schemas/feature.avsc")));
        check_file(&message, include_str!("../../../deploy/schemas/feature.schema.json"));
        assert_eq!(message["windows"]["1h/1m"]["impressions"], 10);
        assert_eq!(message["entity"], "t/p/a/c");
        let problem = Alert::of("history_writer_stalled", 5, None, "x".into());
        let alert = serde_json::to_value(Alert::of("anomaly", 5, Some(&key), "x".into())).unwrap();
        for alert in [&alert, &serde_json::to_value(problem).unwrap()] {
            check_file(alert, include_str!("../../../deploy/schemas/alert.schema.json"));
        }
        let sent: BTreeSet<String> = alert.as_object().unwrap().keys().cloned().collect();
        assert_eq!(sent, fields(include_str!("../../../deploy/schemas/alert.avsc")));
    }
}
