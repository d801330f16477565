//! `omnify proposals`, `approve`, `reject`, `kill` and `resume`: what a person tells a running
//! engine, over its API.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::{Done, UsageError};
use crate::cli::Common;

/// Longest wait for an answer: an order is answered when it is on the engine's disk.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The variable that holds the token where no file is named.
const TOKEN: &str = "OMNIFY_TOKEN";

/// Where the engine is, and who asks.
#[derive(Args, Clone, Debug, Default)]
pub struct EngineArgs {
    /// The engine; by default that of http.listen.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// File that holds the token; by default the variable OMNIFY_TOKEN is taken, if it is set.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Options of `proposals`.
#[derive(Args, Clone, Debug)]
pub struct ProposalsArgs {
    /// Only this entity and those below it, or only this tenant.
    #[arg(long, value_name = "ENTITY")]
    under: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Options of `approve` and `reject`.
#[derive(Args, Clone, Debug)]
pub struct AnswerArgs {
    /// The proposal's id, as `omnify proposals` lists it.
    id: String,
    /// Who decides; kept with the decision. By default the name of the user that runs this.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Why (of a rejection).
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Options of `kill` and `resume`.
#[derive(Args, Clone, Debug)]
pub struct WhomArgs {
    /// Only this tenant; without it everything the token may reach.
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Lists what waits for a person.
pub fn proposals(common: &Common, args: &ProposalsArgs) -> anyhow::Result<Done> {
    let path = match &args.under {
        Some(under) => format!("/v1/proposals?entity={}&limit=1000", encoded(under)),
        None => "/v1/proposals?limit=1000".to_owned(),
    };
    let answer = ask(common, &args.engine, Method::GET, &path, None)?;
    let mut text = String::new();
    for open in answer["proposals"].as_array().into_iter().flatten() {
        let word = |field: &str| open[field].as_str().unwrap_or_default().to_owned();
        text += &format!(
            "{}  {}  {} -> {}  {}  needs {}\n",
            word("id"),
            word("owner"),
            open["before"],
            open["proposed"],
            word("policy"),
            word("required"),
        );
    }
    text += &format!("{} open\n", answer["open"]);
    Ok(Done { answer, text, code: 0 })
}

/// Says yes to a proposal.
pub fn approve(common: &Common, args: &AnswerArgs) -> anyhow::Result<Done> {
    let body = json!({ "by": args.by() });
    let answer = post(common, &args.engine, &args.path("approve"), &body)?;
    Ok(done(answer, "taken: it is judged anew on the present state; see /v1/decisions"))
}

/// Says no to a proposal.
pub fn reject(common: &Common, args: &AnswerArgs) -> anyhow::Result<Done> {
    let body = json!({ "by": args.by(), "reason": args.reason });
    let answer = post(common, &args.engine, &args.path("reject"), &body)?;
    Ok(done(answer, "taken: the same kind of change is not proposed again for a while"))
}

/// Stops all actions.
pub fn kill(common: &Common, args: &WhomArgs) -> anyhow::Result<Done> {
    let answer = post(common, &args.engine, "/v1/kill", &args.body())?;
    Ok(done(answer, "no further action leaves until `omnify resume`"))
}

/// Lifts a kill.
pub fn resume(common: &Common, args: &WhomArgs) -> anyhow::Result<Done> {
    let answer = post(common, &args.engine, "/v1/resume", &args.body())?;
    Ok(done(answer, "actions leave again"))
}

fn done(answer: Value, text: &str) -> Done {
    Done { answer, text: text.to_owned(), code: 0 }
}

impl AnswerArgs {
    fn by(&self) -> String {
        let user = || std::env::var("USER").ok().filter(|user| !user.is_empty());
        self.by.clone().or_else(user).unwrap_or_else(|| "command line".to_owned())
    }

    fn path(&self, what: &str) -> String {
        format!("/v1/proposals/{}/{what}", encoded(&self.id))
    }
}

impl WhomArgs {
    fn body(&self) -> Value {
        match &self.tenant {
            Some(tenant) => json!({ "tenant": tenant }),
            None => json!({}),
        }
    }
}

/// As a part of a path or query.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let encode = |byte: u8| match plain(byte) {
        true => (byte as char).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn post(common: &Common, engine: &EngineArgs, path: &str, body: &Value) -> anyhow::Result<Value> {
    ask(common, engine, Method::POST, path, Some(body))
}

fn ask(
    common: &Common,
    engine: &EngineArgs,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<Value> {
    let config = common.load(None)?;
    let base = match &engine.url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => format!("http://{}", config.http.listen),
    };
    let token = match &engine.token_file {
        Some(file) => {
            let read = std::fs::read_to_string(file);
            Some(read.map_err(|error| UsageError(format!("{}: {error}", file.display())))?)
        }
        None => std::env::var(TOKEN).ok(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::builder().timeout(TIMEOUT).build()?;
        let mut request = client.request(method, format!("{base}{path}"));
        if let Some(token) = &token {
            request = request.bearer_auth(token.trim());
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.with_context(|| {
            format!("no engine answers at {base}; start one with `omnify run`, or give --url")
        })?;
        let status = response.status();
        let text = response.text().await.with_context(|| format!("the answer of {base}"))?;
        let answer: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        if status.is_success() && !answer.is_null() {
            return Ok(answer);
        }
        let told = |field: &str| answer["error"][field].as_str().map(ToOwned::to_owned);
        let message = told("message").unwrap_or_else(|| text.chars().take(200).collect());
        let hint = told("hint").map(|hint| format!("; {hint}")).unwrap_or_default();
        anyhow::bail!("the engine at {base} answered {status}: {message}{hint}")
    })
}

#[cfg(test)]
mod tests {
    use super::encoded;

    #[test]
    fn names_travel_in_a_url() {
        assert_eq!(encoded("acme/meta/act 1&x=é"), "acme/meta/act%201%26x%3D%C3%A9");
    }
}
