//! The model as JSON: `{schema, version, slot_bits, data_until, overall, rates, click, conversion}`.
//!
//! Every fraction is written as text in Rust's shortest form that reads back to the same bits,
//! because JSON readers may round numbers. Only weights that are not zero are written.

use std::collections::BTreeMap;

use omnify_operators::model::EntityKey;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Calibration, ClickModel, Head, RateTable, Rates, SLOT_BITS_MAX};

/// The name and version of the format.
pub const SCHEMA: &str = "omnify.click_model/1";

/// A JSON value that is not a model this build can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The value has no `schema`, or another one.
    #[error(
        "model: `schema` is {found}, this build reads \"{SCHEMA}\"; write the model again with `omnify learn`"
    )]
    Schema {
        /// What stands there instead.
        found: String,
    },
    /// A field is missing, unknown, or of the wrong type.
    #[error("model: {0}; the file is damaged or was edited, write it again with `omnify learn`")]
    Shape(String),
    /// A field has a value that no model has.
    #[error(
        "model: `{field}`: {problem}; the file is damaged or was edited, write it again with `omnify learn`"
    )]
    Value {
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The content is not what the version was made from.
    #[error(
        "model: `version` is {stated} but the content gives {computed}; the file is damaged or was edited, write it again with `omnify learn`"
    )]
    Version {
        /// The version written in the file.
        stated: String,
        /// The version of its content.
        computed: String,
    },
}

/// An `f64` as text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Exact(f64);

impl From<Exact> for String {
    fn from(number: Exact) -> String {
        format!("{:?}", number.0)
    }
}

impl TryFrom<String> for Exact {
    type Error = String;

    fn try_from(text: String) -> Result<Exact, String> {
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Exact(number)),
            _ => Err(format!(
                "`{}` is not a finite number",
                text.chars().take(40).collect::<String>()
            )),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RatesFile {
    click: Exact,
    conversion: Exact,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadFile {
    slope: Exact,
    shift: Exact,
    /// (slot, weight), by slot.
    weights: Vec<(u32, Exact)>,
}

/// Everything but schema and version. The order of the fields is part of the format: the version
/// is the hash of this struct's JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    slot_bits: u8,
    data_until: i64,
    overall: RatesFile,
    rates: BTreeMap<String, RatesFile>,
    click: HeadFile,
    conversion: HeadFile,
}

impl From<Rates> for RatesFile {
    fn from(rates: Rates) -> RatesFile {
        RatesFile { click: Exact(rates.click), conversion: Exact(rates.conversion) }
    }
}

impl RatesFile {
    fn check(&self, field: impl Fn() -> String) -> Result<Rates, ModelError> {
        let open = |rate: &Exact| rate.0 > 0.0 && rate.0 < 1.0;
        if !open(&self.click) || !open(&self.conversion) {
            let problem = "a rate must lie between 0 and 1".to_owned();
            return Err(ModelError::Value { field: field(), problem });
        }
        Ok(Rates { click: self.click.0, conversion: self.conversion.0 })
    }
}

impl From<&Head> for HeadFile {
    fn from(head: &Head) -> HeadFile {
        let weights = (0_u32..)
            .zip(&head.weights)
            .filter(|(_, weight)| **weight != 0.0)
            .map(|(slot, weight)| (slot, Exact(*weight)))
            .collect();
        let Calibration { slope, shift } = head.calibration;
        HeadFile { slope: Exact(slope), shift: Exact(shift), weights }
    }
}

impl HeadFile {
    fn check(&self, field: &str, slot_bits: u8) -> Result<Head, ModelError> {
        let wrong = |problem: String| ModelError::Value { field: field.to_owned(), problem };
        if self.slope.0 <= 0.0 {
            return Err(wrong("`slope` must be above 0".to_owned()));
        }
        let calibration = Calibration { slope: self.slope.0, shift: self.shift.0 };
        let mut head = Head { calibration, ..Head::neutral(slot_bits) };
        let mut next = 0;
        for (slot, weight) in &self.weights {
            let Some(place) = head.weights.get_mut(*slot as usize).filter(|_| *slot >= next) else {
                return Err(wrong(format!(
                    "slot {slot} of `weights` is out of order or not below 2^{slot_bits}"
                )));
            };
            if weight.0 == 0.0 {
                return Err(wrong(format!(
                    "the weight of slot {slot} is zero, which is not written"
                )));
            }
            *place = weight.0;
            next = slot + 1;
        }
        Ok(head)
    }
}

impl From<&ClickModel> for ModelFile {
    fn from(model: &ClickModel) -> ModelFile {
        let rates = model.rates.by_path.iter();
        ModelFile {
            slot_bits: model.slot_bits,
            data_until: model.data_until,
            overall: model.rates.overall.into(),
            rates: rates.map(|(path, rates)| (path.to_string(), (*rates).into())).collect(),
            click: (&model.click).into(),
            conversion: (&model.conversion).into(),
        }
    }
}

/// The version of a model's content.
pub(super) fn content_version(model: &ClickModel) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(SCHEMA.as_bytes());
    // Writing numbers and text into a hasher cannot fail.
    let _ = serde_json::to_writer(&mut hasher, &ModelFile::from(model));
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_be_bytes(first)
}

fn version_text(version: u64) -> String {
    format!("{version:016x}")
}

impl ClickModel {
    /// The model as JSON. Equal models give equal text.
    pub fn to_json(&self) -> Value {
        let file = serde_json::to_value(ModelFile::from(self));
        let mut fields = match file {
            Ok(Value::Object(fields)) => fields,
            _ => unreachable!("a struct of text and numbers is a JSON object"),
        };
        fields.insert("schema".to_owned(), SCHEMA.into());
        fields.insert("version".to_owned(), version_text(self.version).into());
        Value::Object(fields)
    }

    /// The model that [`ClickModel::to_json`] wrote. Every field is checked, and the content
    /// against the version, so a damaged file is never used.
    pub fn from_json(json: &Value) -> Result<ClickModel, ModelError> {
        let Some(fields) = json.as_object() else {
            return Err(ModelError::Shape("not a JSON object".to_owned()));
        };
        let mut fields = fields.clone();
        match fields.remove("schema") {
            Some(Value::String(schema)) if schema == SCHEMA => {}
            found => {
                let found = found.map_or("missing".to_owned(), |found| found.to_string());
                return Err(ModelError::Schema { found: found.chars().take(80).collect() });
            }
        }
        let stated = match fields.remove("version") {
            Some(Value::String(stated)) => stated,
            _ => return Err(ModelError::Shape("`version` is not a text".to_owned())),
        };
        let file: ModelFile = serde_json::from_value(Value::Object(fields))
            .map_err(|error| ModelError::Shape(error.to_string()))?;
        let model = file.check()?;
        let computed = version_text(model.version);
        if computed != stated {
            let stated = stated.chars().take(40).collect();
            return Err(ModelError::Version { stated, computed });
        }
        Ok(model)
    }
}

impl ModelFile {
    fn check(self) -> Result<ClickModel, ModelError> {
        if !(1..=SLOT_BITS_MAX).contains(&self.slot_bits) {
            let problem = format!("{} is not within 1..={SLOT_BITS_MAX}", self.slot_bits);
            return Err(ModelError::Value { field: "slot_bits".to_owned(), problem });
        }
        let overall = self.overall.check(|| "overall".to_owned())?;
        let mut table = RateTable { overall, by_path: Default::default() };
        for (path, rates) in &self.rates {
            let field = || format!("rates.{path}");
            path.parse::<EntityKey>().map_err(|error| ModelError::Value {
                field: field(),
                problem: error.to_string(),
            })?;
            table.by_path.insert(path.as_str().into(), rates.check(field)?);
        }
        let click = self.click.check("click", self.slot_bits)?;
        let conversion = self.conversion.check("conversion", self.slot_bits)?;
        Ok(ClickModel::new(self.slot_bits, self.data_until, table, click, conversion))
    }
}
