//! Which parts are merged next.
//!
//! A run of neighbours is merged when together they hold at least `growth` times the rows of the
//! largest of them. So every rewriting of a row multiplies the size of the part it lies in by
//! `growth` or more, and a row is rewritten at most log(rows of a file) / log(growth) times, whatever
//! the sizes were: about four times for parts of a minute and files of four million rows.

use std::collections::BTreeMap;

use omnify_operators::model::{DAY_US, Tick};

use super::super::Table;
use super::super::manifest::{Manifest, Part};

/// Growth of the parts to which rows are still being added.
const GROWTH_LIVE: u64 = 8;
/// Growth of partitions that nothing was added to for [`SETTLED_MS`].
const GROWTH_SETTLED: u64 = 2;
/// A partition is settled when its last row is this much older than the history's last tick.
const SETTLED_MS: Tick = (DAY_US / 1_000) as Tick;
/// Most bytes that one merge reads.
const BYTES_MAX: u64 = 1 << 30;
/// Most parts of `features` that one merge reads: they are all open at once.
const SORTED_PARTS_MAX: usize = 64;
/// The same for other tables, whose parts are read one after the other.
const PARTS_MAX: usize = 4_096;

/// How eagerly parts are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eagerness {
    /// Beside a running writer: little is rewritten often.
    Live,
    /// Everything that fits into one file.
    Full,
}

/// All runs of parts to be merged, with no part in two of them, in the order of partitions.
pub(crate) fn runs(manifest: &Manifest, rows_max: u64, eagerness: Eagerness) -> Vec<Vec<&Part>> {
    let mut partitions: BTreeMap<_, Vec<&Part>> = BTreeMap::new();
    for part in &manifest.parts {
        partitions.entry(part.partition()).or_default().push(part);
    }
    let now = manifest.last_tick.unwrap_or(0);
    let mut found = Vec::new();
    for parts in partitions.into_values() {
        let last = parts.iter().map(|part| part.last_tick).max().unwrap_or(0);
        let growth = match eagerness {
            Eagerness::Full => 1,
            Eagerness::Live if last.saturating_add(SETTLED_MS) <= now => GROWTH_SETTLED,
            Eagerness::Live => GROWTH_LIVE,
        };
        let mut at = 0;
        while at + 1 < parts.len() {
            let count = run(&parts[at..], rows_max, growth);
            if count > 1 {
                found.push(parts[at..at + count].to_vec());
            }
            at += count.max(1);
        }
    }
    found
}

/// How many parts from the first on make the longest run worth merging; 0 if none does.
fn run(parts: &[&Part], rows_max: u64, growth: u64) -> usize {
    let most = match parts[0].table {
        Table::Features => SORTED_PARTS_MAX,
        _ => PARTS_MAX,
    };
    let (mut rows, mut bytes, mut largest, mut best) = (0_u64, 0_u64, 0, 0);
    for (at, part) in parts.iter().take(most).enumerate() {
        rows = rows.saturating_add(part.rows);
        bytes = bytes.saturating_add(part.bytes);
        largest = largest.max(part.rows);
        if rows > rows_max || bytes > BYTES_MAX {
            break;
        }
        if at > 0 && rows >= growth.saturating_mul(largest) {
            best = at + 1;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(at: u64, rows: u64) -> Part {
        Part {
            file: format!("table=events/tenant=a/date=2024-10-03/part-{at}-{at}.parquet"),
            table: Table::Events,
            tenant: Some("a".into()),
            date: "2024-10-03".into(),
            first_tick: at,
            last_tick: at,
            first_entity: None,
            rows,
            bytes: rows,
            blake3: String::new(),
        }
    }

    fn manifest(rows: &[u64]) -> Manifest {
        Manifest {
            schema_version: 1,
            last_tick: Some(rows.len() as u64),
            digest: String::new(),
            run_blake3: String::new(),
            config_blake3: String::new(),
            merges: None,
            parts: rows.iter().enumerate().map(|(at, rows)| part(at as u64, *rows)).collect(),
        }
    }

    /// Merges in the list only.
    fn merge(manifest: &mut Manifest, rows_max: u64, eagerness: Eagerness) -> u64 {
        let runs: Vec<Vec<Part>> = runs(manifest, rows_max, eagerness)
            .into_iter()
            .map(|run| run.into_iter().cloned().collect())
            .collect();
        let mut rewritten = 0;
        for run in runs {
            let at = manifest.parts.iter().position(|part| *part == run[0]).unwrap();
            let rows = run.iter().map(|part| part.rows).sum();
            manifest.parts[at].rows = rows;
            manifest.parts[at].last_tick = run.last().unwrap().last_tick;
            manifest.parts.drain(at + 1..at + run.len());
            rewritten += rows;
        }
        rewritten
    }

    #[test]
    fn rows_are_rewritten_a_few_times_and_few_parts_remain() {
        let mut manifest = manifest(&[]);
        let (mut written, mut rewritten) = (0, 0);
        for at in 0..1_440 {
            let rows = 900 + at * 37 % 200;
            manifest.parts.push(part(at, rows));
            written += rows;
            rewritten += merge(&mut manifest, 1 << 22, Eagerness::Live);
        }
        assert_eq!(manifest.parts.iter().map(|part| part.rows).sum::<u64>(), written);
        assert!(rewritten <= 4 * written, "{rewritten} of {written}");
        assert!(manifest.parts.len() <= 28, "{}", manifest.parts.len());
        // Once nothing is added the rest is merged as well, and then there is nothing left to do.
        manifest.last_tick = Some(2 * SETTLED_MS);
        while merge(&mut manifest, 1 << 22, Eagerness::Live) > 0 {}
        assert!(manifest.parts.len() <= 8, "{}", manifest.parts.len());
        while merge(&mut manifest, 1 << 22, Eagerness::Full) > 0 {}
        assert_eq!(manifest.parts.len(), 1);
    }

    #[test]
    fn no_file_grows_above_its_limit_and_order_is_kept() {
        let mut manifest = manifest(&[70, 20, 5, 90, 100, 3, 3, 3, 400, 1, 1]);
        while merge(&mut manifest, 100, Eagerness::Full) > 0 {}
        let rows: Vec<u64> = manifest.parts.iter().map(|part| part.rows).collect();
        assert_eq!(rows, [95, 90, 100, 9, 400, 2]);
        assert!(manifest.parts.is_sorted_by_key(|part| part.first_tick));
    }
}
