//! `omnify history ls|verify|compact|export`, of a folder or (but for compact) of a copy on an object
//! store.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use jiff::civil::Date;
use omnify_sinks::history::{
    self, ExportFormat, ExportOptions, HistoryReader, Part, Summary, Table,
};
use serde_json::json;

use super::{Done, UsageError, remote};
use crate::cli::Common;
use crate::{progress, setup};

/// What to do with a history.
#[derive(Subcommand, Clone, Debug)]
pub enum HistoryCommand {
    /// Lists its tables.
    Ls {
        /// Folder of the history, or s3://bucket/prefix of a copy (the newest history in it, or
        /// …/history/NAME).
        dir: PathBuf,
    },
    /// Checks every file, row and tick against what was written.
    Verify {
        /// Folder of the history, or s3://bucket/prefix of a copy.
        dir: PathBuf,
    },
    /// Merges its small files into large ones (history.rows_per_file of its configuration). The rows
    /// and their order stay the same. No engine may be writing it: a running engine merges by itself.
    /// Needs free space for a second copy of what is merged.
    Compact {
        /// Folder of the history.
        dir: PathBuf,
    },
    /// Copies what is committed now, checked on the way; an engine may be writing meanwhile. Without
    /// a filter and as Parquet the copy is a history itself.
    Export(ExportArgs),
}

/// What to export.
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// Folder of the history, or s3://bucket/prefix of a copy.
    dir: PathBuf,
    /// New folder for the copy.
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// One table only: events, features, decisions, actions, outcomes, dead_letters or ticks.
    #[arg(long)]
    table: Option<String>,
    /// One tenant only.
    #[arg(long)]
    tenant: Option<String>,
    /// First date (UTC, of the partitions), for example 2026-01-31.
    #[arg(long, value_name = "DATE")]
    from: Option<Date>,
    /// Last date.
    #[arg(long, value_name = "DATE")]
    until: Option<Date>,
    /// parquet: files in the layout of the history; csv, ndjson: one file for each table.
    #[arg(long, value_enum, default_value = "parquet")]
    format: Format,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Format {
    Parquet,
    Csv,
    Ndjson,
}

/// Does what the command says.
pub fn execute(common: &Common, command: &HistoryCommand) -> anyhow::Result<Done> {
    match command {
        HistoryCommand::Ls { dir } => {
            let fetched = remote::history(common, dir, |_| false)?;
            let summary = HistoryReader::open(fetched.path())?.summary();
            let mut text = tables(&summary);
            text += &format!("digest {}\n", summary.digest);
            Ok(Done { answer: serde_json::to_value(&summary)?, text, code: 0 })
        }
        HistoryCommand::Verify { dir } => {
            let fetched = remote::history(common, dir, remote::all)?;
            let bar = progress::bytes(common, "verifying");
            let found = HistoryReader::open(fetched.path())?.verify(&mut |progress| {
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
        HistoryCommand::Compact { dir } => compact(common, dir),
        HistoryCommand::Export(args) => export(common, args),
    }
}

fn tables(summary: &Summary) -> String {
    let mut text = format!("{:<14} {:>8} {:>14} {:>16}\n", "table", "files", "rows", "bytes");
    for (table, of) in &summary.tables {
        let (files, rows, bytes) = (of.files, of.rows, of.bytes);
        text += &format!("{:<14} {files:>8} {rows:>14} {bytes:>16}\n", table.name());
    }
    text
}

fn compact(common: &Common, dir: &Path) -> anyhow::Result<Done> {
    remote::only_local(dir, "compact the history of its engine, which copies the result")?;
    let reader = HistoryReader::open(dir)?;
    let config = common.load(Some(("config.toml of the history", &reader.meta().config_toml)))?;
    let options = setup::writer_options(&config);
    let bar = progress::bytes(common, "merging");
    let done = history::compact(dir, &options, &mut |at| bar.at((at.bytes, at.bytes_total)))?;
    bar.done();
    let files = |summary: &Summary| summary.tables.values().map(|of| of.files).sum::<u64>();
    let (before, after) = (files(&done.before), files(&done.after));
    let text = format!(
        "{}{before} files are now {after}; {} rows rewritten\n",
        tables(&done.after),
        done.rows_rewritten
    );
    let mut answer = serde_json::to_value(&done)?;
    (answer["files_before"], answer["files_after"]) = (before.into(), after.into());
    Ok(Done { answer, text, code: 0 })
}

fn export(common: &Common, args: &ExportArgs) -> anyhow::Result<Done> {
    let table = args.table.as_deref().map(|name| {
        Table::ALL.into_iter().find(|table| table.name() == name).ok_or_else(|| {
            let names = Table::ALL.map(Table::name).join(", ");
            UsageError(format!("--table {name}: there is no such table; choose one of {names}"))
        })
    });
    let options = ExportOptions {
        table: table.transpose()?,
        tenant: args.tenant.clone(),
        from: args.from,
        until: args.until,
        format: match args.format {
            Format::Parquet => ExportFormat::Parquet,
            Format::Csv => ExportFormat::Csv,
            Format::Ndjson => ExportFormat::Ndjson,
        },
    };
    let only = options.table;
    let wanted = |part: &Part| only.is_none_or(|table| part.table == table);
    let fetched = remote::history(common, &args.dir, wanted)?;
    let reader = HistoryReader::open(fetched.path())?;
    let bar = progress::bytes(common, "exporting");
    let done = reader.export(&args.to, &options, &mut |at| bar.at((at.bytes, at.bytes_total)))?;
    bar.done();
    let mut text = String::new();
    for (table, rows) in &done.rows {
        text += &format!("{:<14} {rows:>14} rows\n", table.name());
    }
    text += &format!("{} files, {} bytes in {}\n", done.files, done.bytes, args.to.display());
    let mut answer = serde_json::to_value(&done)?;
    answer["to"] = json!(args.to);
    answer["last_tick"] = json!(reader.manifest().last_tick);
    Ok(Done { answer, text, code: 0 })
}
