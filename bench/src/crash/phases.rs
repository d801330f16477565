//! In the middle of what a kill fell, as far as the files it left tell.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// Kills by what they interrupted. One may interrupt several things, or nothing that leaves a trace
/// (a sync, a frame of the journal in memory).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Phases {
    /// A start: recovery, or before it.
    pub(super) start: u64,
    /// A restore from the copy.
    pub(super) restore: u64,
    /// A snapshot without its manifest.
    pub(super) snapshot: u64,
    /// New files of the history, or its manifest.
    pub(super) commit: u64,
    /// A merge of small files of the history.
    pub(super) merge: u64,
    /// A frame of the journal, or of the ledger.
    pub(super) journal: u64,
    /// Calls of the ad platform that were not answered yet.
    pub(super) action_call: u64,
    /// A rebalance of the consumer group.
    pub(super) rebalance: u64,
}

impl Phases {
    /// Adds what a kill left in the folder of state and history.
    pub(super) fn look(&mut self, data: &Path) {
        let state = data.join("state");
        self.snapshot += u64::from(entries(&state.join("snapshots")).iter().any(|folder| {
            let snapshot = state.join("snapshots").join(folder);
            snapshot.is_dir() && !snapshot.join("manifest.json").exists()
        }));
        let journal = entries(&state.join("journal"));
        self.journal += u64::from(journal.iter().any(|name| name.ends_with(".omj.tmp")));
        let mut found = (false, false);
        for run in entries(&data.join("history")) {
            let run = data.join("history").join(run);
            let at_root = entries(&run).iter().any(|name| name.ends_with(".tmp"));
            found.0 |= at_root;
            of_history(&run, &mut found);
        }
        self.commit += u64::from(found.0);
        self.merge += u64::from(found.1);
    }

    pub(super) fn json(&self) -> Value {
        let Phases { start, restore, snapshot, commit, merge, journal, action_call, rebalance } =
            self;
        json!({
            "start": start, "restore": restore, "snapshot": snapshot, "history_commit": commit,
            "history_merge": merge, "journal_segment": journal, "action_call": action_call, "rebalance": rebalance,
        })
    }
}

/// Temporary parts below `folder`: a commit's are of ticks that no part there holds yet, a merge's of
/// ticks that some do.
fn of_history(folder: &Path, found: &mut (bool, bool)) {
    let names = entries(folder);
    let parts: Vec<(u64, u64)> =
        names.iter().filter(|name| name.ends_with(".parquet")).filter_map(|n| ticks(n)).collect();
    for name in &names {
        let path = folder.join(name);
        if path.is_dir() {
            of_history(&path, found);
        } else if name.ends_with(".replaced") {
            found.1 = true;
        } else if name.ends_with(".tmp")
            && let Some((first, last)) = ticks(name.trim_start_matches('.'))
        {
            let known = parts.iter().any(|(from, to)| *from <= last && first <= *to);
            found.1 |= known;
            found.0 |= !known;
        }
    }
}

/// First and last tick in the name of a part, `part-FIRST-LAST…`.
fn ticks(name: &str) -> Option<(u64, u64)> {
    let (first, rest) = name.strip_prefix("part-")?.split_once('-')?;
    let last: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// Names in a folder; none where there is no such folder.
fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
