//! The door: what every decoder shares about who may enter.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use omnify_operators::model::Registry;

/// Limits of what is accepted, from `[validation]`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Tenants that may send; empty means any.
    pub tenants: BTreeSet<String>,
    /// Longest accepted line of text, in bytes.
    pub line_bytes_max: usize,
    /// Most original bytes kept of a refused row.
    pub dead_bytes_max: usize,
}

impl Default for Limits {
    /// The defaults of `config/default.toml`.
    fn default() -> Self {
        Limits { tenants: BTreeSet::new(), line_bytes_max: 1 << 20, dead_bytes_max: 64 << 10 }
    }
}

/// Shared by all decoders of the process: the registry that names are interned in, the limits, and
/// the number of the next report row.
pub struct Door {
    /// Where names become ids.
    pub registry: Arc<Registry>,
    /// What is accepted.
    pub limits: Limits,
    sequence: AtomicU64,
}

impl Door {
    /// A door into `registry`.
    pub fn new(registry: Arc<Registry>, limits: Limits) -> Door {
        Door { registry, limits, sequence: AtomicU64::new(0) }
    }

    /// Whether `tenant` may send.
    pub fn admits(&self, tenant: &str) -> bool {
        self.limits.tenants.is_empty() || self.limits.tenants.contains(tenant)
    }

    /// The number of the next report row: the order of arrival.
    pub fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// The number of the next report row, not given out yet.
    pub fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// Numbers go on from `sequence` at least: those before were given out by an earlier process.
    pub fn resume_sequence(&self, sequence: u64) {
        self.sequence.fetch_max(sequence, Ordering::Relaxed);
    }
}
