//! Priorities of threads: where cores are few, writing gives way to deciding.

/// Steps (Unix `nice`) of what must keep up but may be late: the history, snapshots.
pub const LATER: i32 = 5;
/// Steps of what may take all the time it needs: merging files.
pub const LAST: i32 = 15;

/// Lowers the priority of the calling thread, and of those that it starts, by `steps`. Where the system
/// does not allow it the thread runs as everything else.
pub fn lower(steps: i32) {
    let _ = rustix::process::nice(steps);
}
