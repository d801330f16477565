//! What may be removed: closed segments that nobody needs for recovery, oldest first, without gaps.

use std::fs;
use std::path::{Path, PathBuf};

use omnify_operators::model::Tick;
use serde::Serialize;

use super::JournalError;
use super::segment;

/// When closed segments are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Ticks from this one on stay, whatever the limits say: what the older snapshot and the history
    /// still need.
    pub keep_from: Tick,
    /// Remove while the journal is larger than this.
    pub bytes_max: u64,
    /// Remove what is older than this.
    pub age_ms_max: u64,
}

impl Retention {
    /// True when a segment that ends before `next_tick` is over a limit.
    pub(super) fn wants(&self, bytes: u64, next_tick: Tick, now: Tick) -> bool {
        bytes > self.bytes_max || now.saturating_sub(next_tick) > self.age_ms_max
    }
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// File names, oldest first.
    pub segments: Vec<String>,
    /// Their bytes.
    pub bytes: u64,
    /// Every tick below this one is gone.
    pub before_tick: Tick,
}

impl Removed {
    pub(super) fn add(&mut self, candidate: Candidate) {
        self.segments.push(segment::name(candidate.first_tick));
        self.bytes += candidate.bytes;
        self.before_tick = candidate.next_tick;
    }
}

/// A segment that may be removed.
pub(super) struct Candidate {
    pub(super) first_tick: Tick,
    /// First tick of the segment behind it.
    pub(super) next_tick: Tick,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

/// The segments entirely before both ticks, oldest first.
pub(super) fn candidates(
    dir: &Path,
    kept: Tick,
    keep_from: Tick,
) -> Result<Vec<Candidate>, JournalError> {
    let segments = segment::list(dir)?;
    let mut candidates = Vec::new();
    for pair in segments.windows(2) {
        let [(first_tick, path), (next_tick, _)] = pair else { continue };
        if *next_tick > kept.min(keep_from) {
            break;
        }
        let bytes = fs::metadata(path).map_err(JournalError::io("read", path))?.len();
        let (first_tick, next_tick, path) = (*first_tick, *next_tick, path.clone());
        candidates.push(Candidate { first_tick, next_tick, path, bytes });
    }
    Ok(candidates)
}
