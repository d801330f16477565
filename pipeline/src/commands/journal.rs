//! `omnify journal inspect`.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use omnify_operators::model::Tick;
use omnify_sinks::journal::{self, Inspection, JournalError, SegmentReport};

use super::{Done, remote};
use crate::cli::Common;

/// What to do with a journal.
#[derive(Subcommand, Clone, Debug)]
pub enum JournalCommand {
    /// Reads and checks its segments: ticks, counts, positions of the sources, damaged places. An
    /// engine may be writing it meanwhile. Exit code 1 when something is damaged.
    Inspect(InspectArgs),
}

/// What to inspect.
#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// Folder of the journal: `journal` in state.dir; or s3://bucket/prefix of a copy.
    dir: PathBuf,
    /// First tick (milliseconds since 1970).
    #[arg(long, value_name = "TICK", default_value_t = 0)]
    from: Tick,
    /// Last tick.
    #[arg(long, value_name = "TICK", default_value_t = Tick::MAX)]
    until: Tick,
    /// Prints the ticks as JSON lines, with names in place of ids, instead of the report.
    #[arg(long)]
    ticks: bool,
}

/// Inspects.
pub fn execute(common: &Common, command: &JournalCommand) -> anyhow::Result<Done> {
    let JournalCommand::Inspect(args) = command;
    let fetched = remote::journal(common, &args.dir)?;
    if args.ticks { dump(args, fetched.path()) } else { inspect(args, fetched.path()) }
}

fn inspect(args: &InspectArgs, dir: &Path) -> anyhow::Result<Done> {
    let found = journal::inspect(dir, args.from, args.until)?;
    let code = u8::from(found.damaged > 0);
    Ok(Done { answer: serde_json::to_value(&found)?, text: report(&found), code })
}

fn report(found: &Inspection) -> String {
    let mut text = String::new();
    for segment in &found.segments {
        text += &of_segment(segment);
    }
    text += &format!(
        "{} segments, {} ticks, {} events, {} bytes, {}\n",
        found.segments.len(),
        found.ticks,
        found.events,
        found.bytes,
        match found.damaged {
            0 => "all sound".to_owned(),
            damaged => format!("{damaged} DAMAGED"),
        }
    );
    text
}

fn of_segment(segment: &SegmentReport) -> String {
    let s = segment;
    let mut text = format!("{}  {} bytes, written by {}\n", s.file, s.bytes, s.created_by);
    text += &match (s.first_tick, s.last_tick) {
        (Some(first), Some(last)) => {
            format!("  {} ticks, {first} to {last}, in {} frames\n", s.ticks, s.frames)
        }
        _ => "  no ticks\n".to_owned(),
    };
    text += &format!(
        "  {} events, {} report rows, {} controls, {} dead letters, {} names\n",
        s.events, s.reports, s.controls, s.dead_letters, s.names
    );
    for start in &s.starts {
        text += &format!("  start: {}\n", as_json(start));
    }
    if !s.snapshots.is_empty() {
        text += &format!("  snapshots at {:?}\n", s.snapshots);
    }
    for position in &s.positions {
        text += &format!("  position: {}\n", as_json(position));
    }
    if s.torn_bytes > 0 {
        text += &format!(
            "  {} bytes at the end are not committed: being written, or torn by a crash\n",
            s.torn_bytes
        );
    }
    if let Some(damage) = &s.damage {
        text += &format!("  DAMAGED: {damage}\n");
    }
    text
}

fn as_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| error.to_string())
}

/// Prints ticks as they are read: a journal may be large.
fn dump(args: &InspectArgs, dir: &Path) -> anyhow::Result<Done> {
    let mut out = BufWriter::new(io::stdout().lock());
    let count = match journal::dump(dir, args.from, args.until, &mut out) {
        Ok(count) => count,
        // Whoever read the ticks has read enough.
        Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            let _ = out.flush();
            return Err(error.into());
        }
    };
    let printed = out.flush().or_else(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(error),
    });
    printed.map_err(|error| super::output_error(Path::new("standard output"), &error))?;
    let answer = serde_json::json!({ "ticks_printed": count });
    Ok(Done { answer, text: String::new(), code: 0 })
}
