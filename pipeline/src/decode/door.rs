//! The door: what every decoder shares about who may enter.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use omnify_operators::model::{EventTime, Registry, ReportKey, ReportRow, Stats};

/// Limits of what is accepted, from `[validation]`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Tenants that may send; empty means any.
    pub tenants: BTreeSet<String>,
    /// Longest accepted line of text, in bytes.
    pub line_bytes_max: usize,
    /// Most original bytes kept of a refused row.
    pub dead_bytes_max: usize,
    /// Intervals of report rows remembered to refuse exact repetitions.
    pub reports_max: usize,
}

impl Default for Limits {
    /// The defaults of `config/default.toml`.
    fn default() -> Self {
        Limits {
            tenants: BTreeSet::new(),
            line_bytes_max: 1 << 20,
            dead_bytes_max: 64 << 10,
            reports_max: 1 << 20,
        }
    }
}

/// Shared by all decoders of the process: the registry that names are interned in, the limits, and
/// the memory of report rows.
pub struct Door {
    /// Where names become ids.
    pub registry: Arc<Registry>,
    /// What is accepted.
    pub limits: Limits,
    sequence: AtomicU64,
    reports: Mutex<Reports>,
}

/// The last statement of each interval, for the newest intervals.
#[derive(Default)]
struct Reports {
    last: HashMap<ReportKey, (EventTime, Stats)>,
    order: VecDeque<ReportKey>,
}

impl Door {
    /// A door into `registry`.
    pub fn new(registry: Arc<Registry>, limits: Limits) -> Door {
        Door { registry, limits, sequence: AtomicU64::new(0), reports: Mutex::default() }
    }

    /// Whether `tenant` may send.
    pub fn admits(&self, tenant: &str) -> bool {
        self.limits.tenants.is_empty() || self.limits.tenants.contains(tenant)
    }

    /// The number of the next report row: the order of arrival.
    pub fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// Remembers `report`; false when it repeats the last statement of its interval exactly. A
    /// statement that changed and changed back is no repetition.
    pub fn is_news(&self, report: &ReportRow) -> bool {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let said = (report.version.as_of, report.version.totals);
        match reports.last.insert(report.key, said) {
            Some(before) => before != said,
            None => {
                reports.order.push_back(report.key);
                if reports.order.len() > self.limits.reports_max
                    && let Some(oldest) = reports.order.pop_front()
                {
                    reports.last.remove(&oldest);
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnify_operators::model::{EntityId, ReportVersion};

    #[test]
    fn only_exact_repetitions_of_the_last_statement_are_old() {
        let limits = Limits { reports_max: 2, ..Limits::default() };
        let door = Door::new(Arc::new(Registry::utc()), limits);
        let row = |creative, clicks| ReportRow {
            key: ReportKey { creative: EntityId(creative), start: 0, end: 10 },
            version: ReportVersion {
                as_of: 10,
                sequence: door.next_sequence(),
                totals: Stats { clicks, ..Stats::ZERO },
            },
        };
        assert!(door.is_news(&row(1, 5)));
        assert!(!door.is_news(&row(1, 5)));
        assert!(door.is_news(&row(1, 6)));
        assert!(door.is_news(&row(1, 5)));
        // The memory holds two intervals: the third pushes the first out.
        assert!(door.is_news(&row(2, 1)) && door.is_news(&row(3, 1)));
        assert!(!door.is_news(&row(2, 1)));
        assert!(door.is_news(&row(1, 5)));
    }
}
