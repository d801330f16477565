//! The command line: arguments, configuration layers, output and exit codes.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use omnify_config::{Checked, Layers, LogFormat};

use crate::commands::{self, Done, demo, history, journal, learn, orders, replay, run};

/// OmniFy: a stream-processing, real-time decision engine for advertising.
///
/// Exit codes: 0 done; 1 something differs or is damaged (replay --verify, history verify, journal
/// inspect); 2 wrong arguments or configuration; 3 an input cannot be read; 4 an output cannot be
/// written (a full disk included); 5 anything else, a port in use (http.listen) included; 6
/// another process of the cluster was lost; 7 another engine holds the copy (state.remote); 130
/// stopped by a second signal.
#[derive(Parser)]
#[command(name = "omnify", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug, Default)]
pub struct Common {
    /// Configuration file (TOML); without one the embedded defaults hold.
    #[arg(short, long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Overrides a key, for example --set engine.workers=2; may be repeated.
    #[arg(long = "set", global = true, value_name = "PATH.TO.KEY=VALUE")]
    pub sets: Vec<String>,
    /// Prints one JSON object on stdout at the end.
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress bars.
    #[arg(long, global = true)]
    pub quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the whole engine against the embedded market simulator and opens its page.
    Demo(demo::DemoArgs),
    /// Runs the engine live: events come over HTTP push.
    Run(run::RunArgs),
    /// Replays a history, or runs over a foreign file.
    Replay(replay::ReplayArgs),
    /// Learns a click and conversion model from a history.
    Learn(learn::LearnArgs),
    /// Checks the configuration and prints it in full.
    CheckConfig,
    /// Lists, verifies, compacts or exports a history.
    #[command(subcommand)]
    History(history::HistoryCommand),
    /// Lists the changes that wait for a person, of a running engine.
    Proposals(orders::ProposalsArgs),
    /// Says yes to a proposal: it is judged anew and carried out.
    Approve(orders::AnswerArgs),
    /// Says no to a proposal.
    Reject(orders::AnswerArgs),
    /// Lets no further action leave: of a tenant, or at all.
    Kill(orders::WhomArgs),
    /// Lifts a kill.
    Resume(orders::WhomArgs),
    /// Looks into a journal.
    #[command(subcommand)]
    Journal(journal::JournalCommand),
}

impl Common {
    /// The configuration: defaults, then `more` (text of a lower layer), then the file, then --set.
    pub fn load(&self, more: Option<(&str, &str)>) -> anyhow::Result<Arc<Checked>> {
        let mut layers = Layers::new();
        if let Some((name, text)) = more {
            layers = layers.text(name, text)?;
        }
        if let Some(path) = &self.config {
            layers = layers.file(path)?;
        }
        for assignment in &self.sets {
            layers = layers.set(assignment)?;
        }
        let checked = layers.build()?.validate()?;
        init_log(&checked);
        Ok(Arc::new(checked))
    }
}

/// Logs go to stderr; stdout belongs to the answer. A second call changes nothing.
fn init_log(config: &Checked) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(&config.telemetry.log))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let _ = match config.telemetry.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

impl Cli {
    /// Runs the command; prints its answer or its error.
    pub fn execute(self) -> ExitCode {
        let common = self.common;
        let result = match self.command {
            Command::Demo(args) => demo::execute(&common, &args),
            Command::Run(args) => run::execute(&common, &args),
            Command::Replay(args) => replay::execute(&common, &args),
            Command::Learn(args) => learn::execute(&common, &args),
            Command::CheckConfig => check_config(&common),
            Command::History(command) => history::execute(&common, &command),
            Command::Proposals(args) => orders::proposals(&common, &args),
            Command::Approve(args) => orders::approve(&common, &args),
            Command::Reject(args) => orders::reject(&common, &args),
            Command::Kill(args) => orders::kill(&common, &args),
            Command::Resume(args) => orders::resume(&common, &args),
            Command::Journal(command) => journal::execute(&common, &command),
        };
        match result {
            Ok(Done { answer, text, code }) => {
                if common.json {
                    println!("{answer}");
                } else if !text.is_empty() {
                    println!("{}", text.trim_end());
                }
                ExitCode::from(code)
            }
            Err(error) => ExitCode::from(fail(&error, common.json)),
        }
    }
}

/// Prints an error; gives its exit code.
pub(crate) fn fail(error: &anyhow::Error, json: bool) -> u8 {
    // In one piece: other threads may be writing too, such as those whose connections ended with it.
    let line = format!("error: {error:#}\n");
    // Where nobody listens the exit code still tells.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if json {
        println!("{}", serde_json::json!({ "error": format!("{error:#}") }));
    }
    commands::exit_code(error)
}

fn check_config(common: &Common) -> anyhow::Result<Done> {
    let config = common.load(None)?;
    let text = config.to_toml();
    Ok(Done { answer: serde_json::json!({ "valid": true, "config": text }), text, code: 0 })
}
