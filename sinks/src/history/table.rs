//! The tables of the history and where their rows live.

use std::fmt;
use std::path::{Path, PathBuf};

use omnify_operators::model::{DAY_US, EventTime, Tick, us_of_tick};
use serde::{Deserialize, Serialize};

/// Version of the columns, stored in every part; raised when a column changes its meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// Partition value of rows that belong to no known tenant, and of the table [`Table::Ticks`].
pub const NO_TENANT: &str = "_";

/// A table of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// Accepted events, in the order in which they entered the graph.
    Events,
    /// Closed windows.
    Features,
    /// Decisions, no-ops included.
    Decisions,
    /// Actions emitted.
    Actions,
    /// Acknowledgements and observations of the platforms.
    Outcomes,
    /// Input that could not be accepted.
    DeadLetters,
    /// Every closed tick: the spine of a replay.
    Ticks,
}

impl Table {
    /// All tables.
    pub const ALL: [Table; 7] = [
        Table::Events,
        Table::Features,
        Table::Decisions,
        Table::Actions,
        Table::Outcomes,
        Table::DeadLetters,
        Table::Ticks,
    ];

    /// The name in paths and metadata.
    pub const fn name(self) -> &'static str {
        match self {
            Table::Events => "events",
            Table::Features => "features",
            Table::Decisions => "decisions",
            Table::Actions => "actions",
            Table::Outcomes => "outcomes",
            Table::DeadLetters => "dead_letters",
            Table::Ticks => "ticks",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Days since the Unix epoch of the UTC date of `time`.
pub(crate) fn day_of_us(time: EventTime) -> i64 {
    time.div_euclid(DAY_US)
}

/// Days since the Unix epoch of the UTC date of `tick`.
pub(crate) fn day_of_tick(tick: Tick) -> i64 {
    day_of_us(us_of_tick(tick))
}

/// `YYYY-MM-DD` of a number of days since the Unix epoch, held inside years −9999 to 9999.
pub(crate) fn date_text(day: i64) -> String {
    use jiff::civil::{Date, date};
    let clamped = day.clamp(-4_371_587, 2_932_896);
    date(1970, 1, 1).checked_add(jiff::Span::new().days(clamped)).unwrap_or(Date::MAX).to_string()
}

/// A tenant's name as one path segment: every byte but ASCII letters, digits, `-`, `.` and `_` is
/// percent-encoded, and so is a leading `_` or `.`, which readers take for a hidden file and which
/// would collide with [`NO_TENANT`].
pub(crate) fn path_segment(tenant: &str) -> String {
    let mut text = String::with_capacity(tenant.len());
    for (at, byte) in tenant.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric()
            || byte == b'-'
            || (at > 0 && (byte == b'_' || byte == b'.'));
        if plain {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// The folder of a partition, relative to the root. `None` is [`NO_TENANT`].
pub(crate) fn partition_path(table: Table, tenant: Option<&str>, day: i64) -> String {
    partition_folder(table, tenant, &date_text(day))
}

/// The same for a date as text.
pub(crate) fn partition_folder(table: Table, tenant: Option<&str>, date: &str) -> String {
    let tenant = tenant.map_or_else(|| NO_TENANT.to_owned(), path_segment);
    format!("table={table}/tenant={tenant}/date={date}")
}

/// The name of a part; `number` tells apart parts of equal range.
pub(crate) fn part_name(first: Tick, last: Tick, number: u64) -> String {
    match number {
        0 => format!("part-{first:013}-{last:013}.parquet"),
        n => format!("part-{first:013}-{last:013}-{n}.parquet"),
    }
}

/// Where a part is kept after a merge replaced it: patterns over the folder do not find it there.
pub(crate) fn replaced_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{REPLACED}"))
}

/// Ending of such names.
pub(crate) const REPLACED: &str = ".replaced";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_safe_and_unambiguous() {
        assert_eq!(
            partition_path(Table::Events, Some("acme"), 0),
            "table=events/tenant=acme/date=1970-01-01"
        );
        assert_eq!(path_segment("_"), "%5F");
        assert_eq!(path_segment(".."), "%2E.");
        assert_eq!(path_segment("a b/é%"), "a%20b%2F%C3%A9%25");
        assert_eq!(date_text(-1), "1969-12-31");
        assert_eq!(date_text(20_000), "2024-10-04");
        assert_eq!(date_text(i64::MAX), "9999-12-31");
        assert_eq!(date_text(i64::MIN), "-009999-01-01");
        assert_eq!(part_name(5, 7, 0), "part-0000000000005-0000000000007.parquet");
    }

    #[test]
    fn dates_are_utc_days() {
        assert_eq!(day_of_us(-1), -1);
        assert_eq!(day_of_us(DAY_US), 1);
        assert_eq!(day_of_tick(86_399_999), 0);
    }
}
