//! `omnify run`.

use clap::Args;

use super::Done;
use crate::cli::Common;

/// Options of `run`.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {}

/// Runs the engine live.
pub fn execute(_common: &Common, _args: &RunArgs) -> anyhow::Result<Done> {
    anyhow::bail!("not wired yet")
}
