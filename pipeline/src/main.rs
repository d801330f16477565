//! The binary `omnify`.

use std::process::ExitCode;

use clap::Parser;
use omnify_pipeline::cli::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::parse().execute()
}
