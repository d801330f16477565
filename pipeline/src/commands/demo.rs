//! `omnify demo`.

use clap::Args;

use super::Done;
use crate::cli::Common;

/// Options of `demo`.
#[derive(Args, Clone, Debug, Default)]
pub struct DemoArgs {}

/// Runs the demonstration.
pub fn execute(_common: &Common, _args: &DemoArgs) -> anyhow::Result<Done> {
    anyhow::bail!("not wired yet")
}
