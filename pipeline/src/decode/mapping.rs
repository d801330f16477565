//! The mapping file: how the columns of a foreign layout become fields of events and report rows.
//!
//! ```toml
//! name = "example"
//! type = "kind_of_row"            # column that says event or report, where both come in one file
//!
//! [format]                        # all optional
//! separator = ","                 # one character; "\t" for TSV
//! quote = "\""                    # one character
//! decimal = "."                   # decimal mark of numbers: "." or ","
//! null = [""]                     # texts that mean "no value"
//! slash = "_"                     # put in place of a "/" in names, which paths cannot hold
//!
//! [entity]                        # the path; each a column, a template of columns, or a constant
//! tenant = { value = "acme" }
//! account = { column = "Account ID" }
//! ad_group = { template = "{Ad set} {Placement}", missing = "unknown" }   # for empty columns
//!
//! [events]                        # rows that are events
//! time = { column = "ts", format = "unix_ms" }    # unix_s|ms|us|ns, rfc3339, or strptime, zone
//! kind = { column = "type", map = { imp = "impression", bid = "ignore" } }
//! user = { column = "uid", optional = true }      # optional: the column may be absent or empty
//! id = { template = "{auction}/{type}" }
//! cost = { column = "price", unit_micros = 1_000_000, only = ["impression"] }
//! revenue = { column = "value", unit_micros = 1_000_000, optional = true }
//!
//! [reports]                       # rows that are totals of an interval
//! start = { column = "Day", format = "%Y-%m-%d", zone = "Europe/Berlin" }
//! interval = "day"                # or "1h"; or `end`, a time like `start`
//! as_of = { column = "Exported", format = "rfc3339", optional = true }
//! attribution = { template = "{Click days}d_click" }    # window of the conversions; optional
//! impressions = { column = "Impr." }
//! ```
//! `unit_micros` is what one whole unit of the column is worth in micros of the account's currency.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::plan::Plan;

/// Mappings that are compiled in, by name.
const EMBEDDED: [(&str, &str); 4] = [
    ("generic", include_str!("../../../config/mappings/generic.toml")),
    ("native", include_str!("../../../config/mappings/native.toml")),
    ("dsp_log", include_str!("../../../config/mappings/dsp_log.toml")),
    ("daily_report", include_str!("../../../config/mappings/daily_report.toml")),
];

/// A mapping that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// Neither a shipped name nor a readable file.
    #[error(
        "cannot read the mapping {}: {source}; give a file, or one of {}",
        path.display(), Mapping::names().join(", ")
    )]
    Read {
        /// What was given.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// Not TOML of the form above.
    #[error("mapping {name}, line {line}: {message}")]
    Syntax {
        /// Name or path of the mapping.
        name: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// Readable, but it makes no sense.
    #[error("mapping {name}, key `{key}`: {message}")]
    Key {
        /// Name or path of the mapping.
        name: String,
        /// The key.
        key: String,
        /// What is wrong, and what to write.
        message: String,
    },
}

/// A mapping, checked and ready to be bound to the columns of a source.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// What it is called in messages.
    pub name: String,
    /// Separator of text columns.
    pub separator: u8,
    /// Quote of text columns.
    pub quote: u8,
    /// The compiled form.
    pub(crate) plan: std::sync::Arc<Plan>,
}

impl Mapping {
    /// Names of the mappings that are compiled in.
    pub fn names() -> Vec<&'static str> {
        EMBEDDED.iter().map(|(name, _)| *name).collect()
    }

    /// The engine's own form.
    ///
    /// # Panics
    /// Never: the compiled-in mappings are tested.
    pub fn native() -> Mapping {
        Mapping::load("native").expect("compiled-in mappings are tested")
    }

    /// The compiled-in mapping called `name_or_path`, or the one in that file.
    pub fn load(name_or_path: &str) -> Result<Mapping, MappingError> {
        if let Some((name, text)) = EMBEDDED.iter().find(|(name, _)| *name == name_or_path) {
            return Mapping::parse(name, text);
        }
        let path = Path::new(name_or_path);
        let text = std::fs::read_to_string(path)
            .map_err(|source| MappingError::Read { path: path.to_owned(), source })?;
        Mapping::parse(name_or_path, &text)
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) fn shared_plan(&self) -> std::sync::Arc<Plan> {
        self.plan.clone()
    }

    /// A mapping from its TOML; `name` is what errors call it.
    pub fn parse(name: &str, text: &str) -> Result<Mapping, MappingError> {
        let document: Document = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start.min(text.len()));
            MappingError::Syntax {
                name: name.to_owned(),
                line: text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1,
                message: error.message().to_owned(),
            }
        })?;
        let plan = Plan::compile(&document).map_err(|(key, message)| MappingError::Key {
            name: name.to_owned(),
            key,
            message,
        })?;
        let format = &document.format;
        let one_byte = |key: &str, character: char| {
            u8::try_from(character).ok().filter(u8::is_ascii).ok_or_else(|| MappingError::Key {
                name: name.to_owned(),
                key: format!("format.{key}"),
                message: format!("`{character}` is not one ASCII character"),
            })
        };
        Ok(Mapping {
            name: name.to_owned(),
            separator: one_byte("separator", format.separator)?,
            quote: one_byte("quote", format.quote)?,
            plan: std::sync::Arc::new(plan),
        })
    }
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    #[allow(dead_code, reason = "for people who read the file")]
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) row_type: Option<String>,
    #[serde(default)]
    pub(crate) format: Format,
    pub(crate) entity: Entity,
    pub(crate) events: Option<Events>,
    pub(crate) reports: Option<Reports>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Format {
    pub(crate) separator: char,
    pub(crate) quote: char,
    pub(crate) decimal: char,
    pub(crate) null: Vec<String>,
    pub(crate) slash: Option<String>,
}

impl Default for Format {
    fn default() -> Self {
        Format { separator: ',', quote: '"', decimal: '.', null: vec![String::new()], slash: None }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entity {
    pub(crate) tenant: Text,
    pub(crate) platform: Text,
    pub(crate) account: Text,
    pub(crate) campaign: Text,
    pub(crate) ad_group: Text,
    pub(crate) creative: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Events {
    pub(crate) time: Time,
    pub(crate) kind: Kind,
    pub(crate) user: Option<Text>,
    pub(crate) id: Option<Text>,
    pub(crate) cost: Option<Amount>,
    pub(crate) revenue: Option<Amount>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reports {
    pub(crate) start: Time,
    pub(crate) end: Option<Time>,
    pub(crate) interval: Option<String>,
    pub(crate) as_of: Option<Time>,
    pub(crate) attribution: Option<Text>,
    pub(crate) impressions: Option<Amount>,
    pub(crate) clicks: Option<Amount>,
    pub(crate) conversions: Option<Amount>,
    pub(crate) cost: Option<Amount>,
    pub(crate) revenue: Option<Amount>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Text {
    pub(crate) column: Option<String>,
    pub(crate) template: Option<String>,
    pub(crate) value: Option<String>,
    pub(crate) missing: Option<String>,
    pub(crate) optional: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Time {
    pub(crate) column: Option<String>,
    pub(crate) template: Option<String>,
    pub(crate) format: String,
    pub(crate) zone: Option<String>,
    #[serde(default)]
    pub(crate) optional: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kind {
    pub(crate) column: Option<String>,
    pub(crate) value: Option<String>,
    pub(crate) map: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Amount {
    pub(crate) column: String,
    pub(crate) unit_micros: Option<i64>,
    #[serde(default)]
    pub(crate) only: Vec<String>,
    #[serde(default)]
    pub(crate) optional: bool,
}
