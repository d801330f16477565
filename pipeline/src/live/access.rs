//! Who may reach the page and the API: the listening address, tokens, host names.

use std::net::{SocketAddr, TcpListener};

use omnify_config::Checked;
use omnify_sinks::serve::{AppState, Scope, TokenTable};

use crate::commands::UsageError;

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address} (http.listen): {source}; end the program that uses the port, or choose another, for example --set http.listen=127.0.0.1:0"
)]
pub struct ListenError {
    address: String,
    source: std::io::Error,
}

impl ListenError {
    /// Whether somebody else listens there.
    pub fn in_use(&self) -> bool {
        self.source.kind() == std::io::ErrorKind::AddrInUse
    }
}

/// Listens on `http.listen`; `None` when nothing is to be served.
pub fn listen(config: &Checked) -> Result<Option<TcpListener>, ListenError> {
    if !config.http.enabled {
        return Ok(None);
    }
    let address = &config.http.listen;
    TcpListener::bind(address)
        .map(Some)
        .map_err(|source| ListenError { address: address.clone(), source })
}

/// The tokens of `http.tokens_file`: `TENANT TOKEN` on each line, `*` for an operator who sees all
/// tenants; empty lines and `#` comments are skipped.
pub(crate) fn tokens(config: &Checked) -> Result<TokenTable, UsageError> {
    let file = &config.http.tokens_file;
    let mut table = TokenTable::open();
    if file.is_empty() {
        return Ok(table);
    }
    let bad = |what: String| UsageError(format!("http.tokens_file {file}: {what}"));
    let text = std::fs::read_to_string(file).map_err(|error| bad(error.to_string()))?;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (tenant, token) = line
            .split_once(char::is_whitespace)
            .ok_or_else(|| bad(format!("line {number} is not TENANT TOKEN")))?;
        let scope = match tenant {
            "*" => Scope::All,
            tenant => Scope::Tenant(tenant.to_owned()),
        };
        let added = table.add(token.trim(), scope);
        added.map_err(|error| bad(format!("line {number}: {error}")))?;
    }
    if table.is_open() {
        // An empty file must not open everything to everybody.
        return Err(bad("it holds no token".to_owned()));
    }
    Ok(table)
}

/// Without tokens, a server on this machine answers for its own names only, so that no web page can
/// read it through a rebound name.
pub(crate) fn hosts(address: &SocketAddr, tokens: &TokenTable) -> Option<Vec<String>> {
    if !tokens.is_open() {
        return None;
    }
    if !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "anyone who reaches this address may read everything: set http.tokens_file"
        );
        return None;
    }
    Some(AppState::LOOPBACK.map(str::to_owned).to_vec())
}
