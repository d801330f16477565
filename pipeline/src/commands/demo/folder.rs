//! The demo's folder: replaced at each start, but only if a demo wrote everything in it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::commands::{OutputError, output_error};

/// Marks a folder as a demo's.
const MARKER: &str = "demo.json";
/// Everything a demo writes.
const OURS: [&str; 6] = [MARKER, "manifest.json", "run.json", "config.toml", "ledger", "lock"];

/// Makes `folder` empty and marks it.
pub(super) fn prepare(folder: &Path, seed: u64) -> Result<(), OutputError> {
    let failed = |error: std::io::Error| output_error(folder, &error);
    let entries: Vec<String> = match fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_, _>>()
            .map_err(failed)?,
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failed(error)),
    };
    let marked = entries.iter().any(|name| name == MARKER);
    let ours = |name: &&String| OURS.contains(&name.as_str()) || name.starts_with("table=");
    let foreign = entries.iter().find(|name| !marked || !ours(name) && !name.ends_with(".tmp"));
    if let Some(name) = foreign {
        let what = format!(
            "holds `{name}`, which no demo wrote, and is not replaced: choose another folder with --out, or empty it"
        );
        return Err(OutputError { path: folder.to_owned(), what });
    }
    // The marker goes last: a demo that was interrupted here is still recognised.
    for name in entries.iter().filter(|name| *name != MARKER) {
        let path = folder.join(name);
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|error| output_error(&path, &error))?;
    }
    fs::create_dir_all(folder).map_err(failed)?;
    fs::write(folder.join(MARKER), format!("{{\"seed\":{seed}}}\n")).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_demo_is_replaced() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("demo");
        prepare(&folder, 1).unwrap();
        fs::create_dir_all(folder.join("table=events/date=1")).unwrap();
        fs::write(folder.join("manifest.json"), "{}").unwrap();
        prepare(&folder, 2).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);

        fs::write(folder.join("thesis.txt"), "years of work").unwrap();
        let error = prepare(&folder, 3).unwrap_err().to_string();
        assert!(error.contains("thesis.txt") && error.contains("--out"), "{error}");
        assert!(folder.join("thesis.txt").exists());

        let other = home.path().join("other");
        fs::create_dir_all(other.join("table=events")).unwrap();
        prepare(&other, 4).unwrap_err();
        assert!(other.join("table=events").exists());
    }
}
