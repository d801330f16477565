//! What a replay must know besides the tables: `run.json` and `config.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use omnify_operators::model::{Level, WindowSpec};
use serde::{Deserialize, Serialize};

use super::{HistoryError, SCHEMA_VERSION};

/// Name of the description of the run in the root.
pub(crate) const RUN_FILE: &str = "run.json";
/// Name of the effective configuration in the root.
pub(crate) const CONFIG_FILE: &str = "config.toml";

/// The run that wrote a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryMeta {
    /// Windows in the order of the configuration; `FeatureRow::windows` has this order.
    pub windows: Vec<WindowSpec>,
    /// Levels with features.
    pub levels: Vec<Level>,
    /// Versions on which a replay depends (engine, policies, feature definitions), by name.
    pub versions: BTreeMap<String, String>,
    /// The effective configuration, kept beside as `config.toml`.
    #[serde(skip)]
    pub config_toml: String,
}

#[derive(Serialize, Deserialize)]
struct RunFile {
    format: String,
    schema_version: u32,
    #[serde(flatten)]
    meta: HistoryMeta,
}

const FORMAT: &str = "omnify-history";

impl HistoryMeta {
    /// The bytes of `run.json`.
    pub(crate) fn run_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let meta = self.clone();
        let file = RunFile { format: FORMAT.to_owned(), schema_version: SCHEMA_VERSION, meta };
        let mut bytes = serde_json::to_vec_pretty(&file)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads both files of `root`.
    pub(crate) fn load(root: &Path) -> Result<HistoryMeta, HistoryError> {
        let path = root.join(RUN_FILE);
        let bad = |what: String| HistoryError::Description { path: path.clone(), what };
        let bytes = fs::read(&path).map_err(HistoryError::io("read", &path))?;
        let file: RunFile = serde_json::from_slice(&bytes).map_err(|e| {
            bad(format!("does not describe a history: {e}; restore it from a copy"))
        })?;
        if file.format != FORMAT || file.schema_version != SCHEMA_VERSION {
            return Err(bad(format!(
                "says format `{}` version {}; this program reads `{FORMAT}` version {SCHEMA_VERSION}: use the version that wrote it",
                file.format, file.schema_version
            )));
        }
        let path = root.join(CONFIG_FILE);
        let config_toml = fs::read_to_string(&path).map_err(HistoryError::io("read", &path))?;
        Ok(HistoryMeta { config_toml, ..file.meta })
    }
}
