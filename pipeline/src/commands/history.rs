//! `omnify history ls|verify`.

use std::path::PathBuf;

use clap::Subcommand;
use omnify_sinks::history::HistoryReader;

use super::Done;
use crate::cli::Common;
use crate::progress;

/// What to do with a history.
#[derive(Subcommand, Clone, Debug)]
pub enum HistoryCommand {
    /// Lists its tables.
    Ls {
        /// Folder of the history.
        dir: PathBuf,
    },
    /// Checks every file, row and tick against what was written.
    Verify {
        /// Folder of the history.
        dir: PathBuf,
    },
}

/// Lists or verifies.
pub fn execute(common: &Common, command: &HistoryCommand) -> anyhow::Result<Done> {
    match command {
        HistoryCommand::Ls { dir } => {
            let summary = HistoryReader::open(dir)?.summary();
            let mut text =
                format!("{:<14} {:>8} {:>14} {:>16}\n", "table", "files", "rows", "bytes");
            for (table, of) in &summary.tables {
                text += &format!(
                    "{:<14} {:>8} {:>14} {:>16}\n",
                    table.name(),
                    of.files,
                    of.rows,
                    of.bytes
                );
            }
            text += &format!("digest {}\n", summary.digest);
            Ok(Done { answer: serde_json::to_value(&summary)?, text, code: 0 })
        }
        HistoryCommand::Verify { dir } => {
            let bar = progress::bytes(common, "verifying");
            let found = HistoryReader::open(dir)?.verify(&mut |progress| {
                bar.at((progress.bytes, progress.bytes_total));
            })?;
            bar.done();
            let text = match &found.difference {
                None => format!("intact: {} files, {} ticks\n", found.files, found.ticks),
                Some(difference) => format!("{difference}\n"),
            };
            let mut answer = serde_json::to_value(&found)?;
            answer["intact"] = found.is_intact().into();
            Ok(Done { answer, text, code: u8::from(!found.is_intact()) })
        }
    }
}
