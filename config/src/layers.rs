//! Layers of configuration, one over the other: the defaults, a file, `--set` overrides.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use crate::Config;

/// The defaults, with the reason for each.
pub const DEFAULT_TOML: &str = include_str!("../default.toml");

/// A layer that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be opened.
    #[error("cannot read the configuration {}: {source}; check the path given with -c", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A key that does not exist.
    #[error("{place}: unknown key `{key}`{}", hint(nearest))]
    UnknownKey {
        /// File, line and column, or the override.
        place: String,
        /// The key as written.
        key: String,
        /// The nearest key that exists there.
        nearest: Option<String>,
    },
    /// Not TOML, or a value of the wrong kind.
    #[error("{place}: {message}")]
    Invalid {
        /// File, line and column, or the override.
        place: String,
        /// What is wrong and what was expected.
        message: String,
    },
    /// An override without a `=`.
    #[error("--set {0}: write path.to.key=value, for example --set engine.workers=2")]
    Override(String),
}

fn hint(nearest: &Option<String>) -> String {
    match nearest {
        Some(key) => format!("; did you mean `{key}`?"),
        None => "; `omnify check-config` lists every key with its default".to_owned(),
    }
}

/// The layers read so far.
#[derive(Clone, Debug)]
pub struct Layers {
    merged: Table,
}

impl Default for Layers {
    fn default() -> Self {
        Layers::new()
    }
}

impl Layers {
    /// The defaults alone.
    ///
    /// # Panics
    /// Never: the compiled-in defaults are tested.
    pub fn new() -> Layers {
        Layers { merged: DEFAULT_TOML.parse().expect("default.toml is tested") }
    }

    /// Puts the file at `path` on top.
    pub fn file(self, path: &Path) -> Result<Layers, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        self.text(&path.display().to_string(), &text)
    }

    /// Puts the TOML `text` on top; `name` is what errors call it.
    pub fn text(mut self, name: &str, text: &str) -> Result<Layers, ConfigError> {
        // The layer is read as a configuration of its own first: errors then point into it.
        let located = |error: toml::de::Error| {
            let place = match error.span() {
                Some(span) => {
                    let (line, column) = line_column(text, span.start);
                    format!("{name}, line {line}, column {column}")
                }
                None => name.to_owned(),
            };
            classify(place, error.message())
        };
        toml::from_str::<Config>(text).map_err(located)?;
        let layer: Table = text.parse().map_err(located)?;
        merge(&mut self.merged, layer);
        Ok(self)
    }

    /// Puts one `path.to.key=value` on top. The value is TOML; where that does not fit the key,
    /// a bare string or a comma-separated list of them.
    pub fn set(mut self, assignment: &str) -> Result<Layers, ConfigError> {
        let malformed = || ConfigError::Override(assignment.to_owned());
        let (path, text) = assignment.split_once('=').ok_or_else(malformed)?;
        let path: Vec<&str> = path.trim().split('.').collect();
        let text = text.trim();
        let mut first_error = None;
        for value in readings(text) {
            let mut merged = self.merged.clone();
            if !put(&mut merged, &path, value) {
                return Err(malformed());
            }
            match Config::deserialize(merged.clone()) {
                Ok(_) => {
                    self.merged = merged;
                    return Ok(self);
                }
                Err(error) => {
                    let place = format!("--set {assignment}");
                    let _ = first_error.get_or_insert_with(|| classify(place, error.message()));
                }
            }
        }
        Err(first_error.unwrap_or_else(malformed))
    }

    /// The configuration that the layers come to, not yet checked.
    pub fn build(self) -> Result<Config, ConfigError> {
        Config::deserialize(self.merged)
            .map_err(|error| classify("configuration".to_owned(), error.message()))
    }
}

/// What `text` may mean, most literal first.
fn readings(text: &str) -> Vec<Value> {
    let mut readings = Vec::new();
    if let Ok(table) = format!("value = {text}").parse::<Table>() {
        readings.extend(table.get("value").cloned());
    }
    readings.push(Value::String(text.to_owned()));
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let items = inner.split(',').map(|item| item.trim().trim_matches('"'));
    readings.push(Value::Array(
        items.filter(|item| !item.is_empty()).map(|item| Value::String(item.to_owned())).collect(),
    ));
    readings
}

/// Sets the value at `path`; a number indexes a list. False when the path leads nowhere.
fn put(table: &mut Table, path: &[&str], value: Value) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    if first.is_empty() {
        return false;
    }
    if rest.is_empty() {
        table.insert((*first).to_owned(), value);
        return true;
    }
    let below = table.entry((*first).to_owned()).or_insert_with(|| Value::Table(Table::new()));
    match below {
        Value::Table(table) => put(table, rest, value),
        Value::Array(items) => {
            let item = rest[0].parse::<usize>().ok().and_then(|index| items.get_mut(index));
            match item {
                Some(Value::Table(table)) => put(table, &rest[1..], value),
                Some(item) if rest.len() == 1 => {
                    *item = value;
                    true
                }
                _ => false,
            }
        }
        _ => false,
    }
}

/// Tables are merged key by key; anything else replaces what was there.
fn merge(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Serde says ``unknown field `x`, expected one of `a`, `b` ``: the known keys are in the message.
fn classify(place: String, message: &str) -> ConfigError {
    let mut quoted = message.split('`').skip(1).step_by(2);
    match message.strip_prefix("unknown field").and(quoted.next()) {
        Some(key) => {
            let nearest = nearest(key, quoted);
            ConfigError::UnknownKey { place, key: key.to_owned(), nearest }
        }
        None => ConfigError::Invalid { place, message: message.to_owned() },
    }
}

/// The candidate that resembles `word` most, if any does.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .filter(|(similarity, _)| *similarity >= 0.7)
        .map(|(_, candidate)| candidate.to_owned())
}
