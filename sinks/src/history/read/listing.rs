//! Checks the list of parts against itself: what merging promises.

use std::collections::{BTreeMap, BTreeSet};

use super::super::manifest::{Manifest, Part, totals};
use super::super::table::{part_name, partition_folder};
use super::super::{Difference, Table};

/// The first thing wrong with the list: a name that does not say what it lists or lists twice, parts
/// of a partition that overlap, or rows that came or went without being written.
pub(crate) fn check(manifest: &Manifest) -> Result<(), Difference> {
    let mut names = BTreeSet::new();
    let mut last: BTreeMap<_, &Part> = BTreeMap::new();
    for part in &manifest.parts {
        if !names.insert(part.file.as_str()) {
            return Err(differs(part, "the part is listed twice".to_owned()));
        }
        if !is_named(part) {
            let what = "the name does not fit the table, tenant, date and ticks it is listed with";
            return Err(differs(part, what.to_owned()));
        }
        // Rows of the other two may come late: their ticks overlap.
        if matches!(part.table, Table::Features | Table::DeadLetters) {
            continue;
        }
        let before = last.insert(part.partition(), part);
        if let Some(before) = before.filter(|before| before.last_tick > part.first_tick) {
            let what = format!("its ticks overlap with those of `{}`", before.file);
            return Err(differs(part, what));
        }
    }
    let Some(merges) = &manifest.merges else { return Ok(()) };
    let found = totals(&manifest.parts);
    for table in Table::ALL {
        let rows = |of: &BTreeMap<Table, u64>| of.get(&table).copied().unwrap_or(0);
        let (listed, written) = (rows(&found), rows(&merges.rows));
        if listed != written {
            let what = format!("its parts hold {listed} rows, {written} were written");
            let file = format!("table={table}");
            return Err(Difference { tick: None, entity: None, file, what });
        }
    }
    Ok(())
}

/// Whether the path is the one that the writer gives such a part, whatever its number.
fn is_named(part: &Part) -> bool {
    let folder = partition_folder(part.table, part.tenant.as_deref(), &part.date);
    let plain = part_name(part.first_tick, part.last_tick, 0);
    let stem = plain.strip_suffix(".parquet").unwrap_or(&plain);
    let rest = part.file.strip_prefix(&folder).and_then(|rest| rest.strip_prefix('/'));
    let number = rest
        .and_then(|name| name.strip_prefix(stem))
        .and_then(|number| number.strip_suffix(".parquet"));
    number.is_some_and(|number| {
        let digits = number.strip_prefix('-');
        digits.map_or(number.is_empty(), |digits| digits.parse::<u64>().is_ok())
    })
}

fn differs(part: &Part, what: String) -> Difference {
    Difference { tick: Some(part.first_tick), entity: None, file: part.file.clone(), what }
}
