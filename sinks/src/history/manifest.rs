//! `manifest.json`: the parts that make up the history.
//!
//! The manifest is the authority: it is replaced as a whole (temporary name, fsync, rename), always
//! describes a complete prefix of the run (every row of every table up to [`Manifest::last_tick`]),
//! and a part that it lists never changes. Its `seal` is the BLAKE3 hash of everything else in it.
//! Parts may be replaced by one that has their rows (see `compact`); from then on [`Merges`] tells
//! what the list of parts no longer can.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use omnify_operators::model::Tick;
use serde::{Deserialize, Serialize};

use super::{HistoryError, SCHEMA_VERSION, Table};

/// Its name in the root.
pub(crate) const MANIFEST_FILE: &str = "manifest.json";

/// One immutable file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Path relative to the root, `/` between segments.
    pub file: String,
    /// The table.
    pub table: Table,
    /// The tenant, `None` where the partition says `_`.
    pub tenant: Option<String>,
    /// Value of the date partition.
    pub date: String,
    /// Lowest tick in it.
    pub first_tick: Tick,
    /// Highest tick in it.
    pub last_tick: Tick,
    /// Entity of its first row, where rows have one.
    pub first_entity: Option<String>,
    /// Number of rows.
    pub rows: u64,
    /// Size of the file.
    pub bytes: u64,
    /// BLAKE3 of the file, in hex.
    pub blake3: String,
}

impl Part {
    /// The folder, relative to the root.
    pub(crate) fn folder(&self) -> &str {
        self.file.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    /// The partition: what may be merged lies in one.
    pub(crate) fn partition(&self) -> (Table, Option<&str>, &str) {
        (self.table, self.tenant.as_deref(), &self.date)
    }
}

/// What must be kept once parts were merged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merges {
    /// Above every number that a file name of this history has or had.
    pub next_number: u64,
    /// Rows ever committed, by table: no merge may change them.
    pub rows: BTreeMap<Table, u64>,
}

/// Rows by table.
pub(crate) fn totals(parts: &[Part]) -> BTreeMap<Table, u64> {
    let mut rows = BTreeMap::new();
    parts.iter().for_each(|part| *rows.entry(part.table).or_default() += part.rows);
    rows
}

/// The list of parts with what holds for all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the columns.
    pub schema_version: u32,
    /// Last closed tick whose rows are all in the parts; `None` before the first.
    pub last_tick: Option<Tick>,
    /// Digest over all decisions up to it, in hex.
    pub digest: String,
    /// BLAKE3 of `run.json`, in hex.
    pub run_blake3: String,
    /// BLAKE3 of `config.toml`, in hex.
    pub config_blake3: String,
    /// Present once parts were merged.
    #[serde(default)]
    pub merges: Option<Merges>,
    /// The parts in the order in which they were written: ascending in tick within a partition.
    /// A merged part has the place of the first that it replaced.
    pub parts: Vec<Part>,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    seal: String,
    #[serde(flatten)]
    manifest: Manifest,
}

impl Manifest {
    /// Its bytes: one line for each part.
    fn lines(&self) -> Result<String, serde_json::Error> {
        let mut text = format!(
            "\"schema_version\": {},\n\"last_tick\": {},\n\"digest\": {},\n\"run_blake3\": {},\n\"config_blake3\": {},\n",
            self.schema_version,
            serde_json::to_string(&self.last_tick)?,
            serde_json::to_string(&self.digest)?,
            serde_json::to_string(&self.run_blake3)?,
            serde_json::to_string(&self.config_blake3)?,
        );
        if let Some(merges) = &self.merges {
            text.push_str(&format!("\"merges\": {},\n", serde_json::to_string(merges)?));
        }
        text.push_str("\"parts\": [");
        for (at, part) in self.parts.iter().enumerate() {
            text.push_str(if at == 0 { "\n" } else { ",\n" });
            text.push_str(&serde_json::to_string(part)?);
        }
        text.push_str("\n]");
        Ok(text)
    }

    /// The whole file.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let lines = self.lines()?;
        let seal = blake3::hash(lines.as_bytes()).to_hex();
        Ok(format!("{{\n\"seal\": \"{seal}\",\n{lines}\n}}\n").into_bytes())
    }

    /// Reads the manifest of `root` and checks its seal; `None` when there is none.
    pub(crate) fn load(root: &Path) -> Result<Option<Manifest>, HistoryError> {
        let path = root.join(MANIFEST_FILE);
        match fs::read(&path) {
            Ok(bytes) => Manifest::parse(&bytes, &path).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(HistoryError::io("read", &path)(e)),
        }
    }

    /// Checks the manifest in `bytes`, which errors say is at `path`.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Manifest, HistoryError> {
        let bad = |what: String| HistoryError::Description { path: path.to_owned(), what };
        let sealed: Sealed = serde_json::from_slice(bytes)
            .map_err(|e| bad(format!("is damaged: {e}; restore it from a copy")))?;
        let manifest = sealed.manifest;
        let lines = manifest.lines().map_err(|e| bad(format!("is damaged: {e}")))?;
        if blake3::hash(lines.as_bytes()).to_hex().as_str() != sealed.seal {
            return Err(bad(
                "was changed after it was written (its seal is broken); restore it from a copy"
                    .to_owned(),
            ));
        }
        if manifest.schema_version != SCHEMA_VERSION {
            return Err(bad(format!(
                "has schema version {}; this program reads version {SCHEMA_VERSION}: use the version that wrote it",
                manifest.schema_version
            )));
        }
        Ok(manifest)
    }
}
