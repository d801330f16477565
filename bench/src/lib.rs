//! Harnesses above the pipeline: workload generator, replay rate, open-loop latency, crashes.
//!
//! Every harness has a smoke size that runs in the tests, so that none can rot; the figures
//! themselves are taken by hand on a release build and written down in `bench/README.md`.

pub mod crash;
pub mod generate;
pub mod kafka;
pub mod latency;
pub mod limit;
pub mod replay;
pub mod restart;

/// Peak resident memory of this process in MiB, where the system tells.
pub fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
}
