//! Harnesses above the pipeline: workload generator, replay rate, open-loop latency, crashes.
//!
//! Every harness has a smoke size that runs in the tests, so that none can rot; the figures
//! themselves are taken by hand on a release build and written down in `bench/README.md`.

pub mod churn;
pub mod crash;
pub mod generate;
pub mod kafka;
pub mod latency;
pub mod limit;
pub mod replay;
pub mod restart;
pub mod restate;
pub mod simulate;

/// Peak resident memory of this process in MiB, where the system tells.
pub fn peak_mib() -> Option<u64> {
    memory_kib("VmHWM:").map(|kib| kib / 1024)
}

/// Resident memory of this process in KiB, where the system tells.
pub fn resident_kib() -> Option<u64> {
    memory_kib("VmRSS:")
}

fn memory_kib(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Bytes of the files in a folder and those below it.
pub(crate) fn folder_bytes(dir: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            if path.is_dir() {
                Some(folder_bytes(&path))
            } else {
                Some(path.metadata().ok()?.len())
            }
        })
        .sum()
}
