//! Who may see what (invariant 9: no tenant reads another's rows).

use std::fmt;

use omnify_operators::model::EntityKey;
use subtle::{Choice, ConstantTimeEq};

/// The shortest token accepted: 128 bits in hex.
const TOKEN_BYTES_MIN: usize = 32;

/// What a caller sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything: an operator, or anybody when no tokens are configured.
    All,
    /// The rows of one tenant.
    Tenant(String),
}

impl Scope {
    /// Whether `entity` may be seen.
    pub fn sees(&self, entity: &EntityKey) -> bool {
        self.sees_tenant(entity.tenant())
    }

    /// Whether rows of `tenant` may be seen.
    pub fn sees_tenant(&self, tenant: &str) -> bool {
        match self {
            Scope::All => true,
            Scope::Tenant(own) => own == tenant,
        }
    }

    /// The only tenant that may be seen, if there is just one.
    pub fn tenant(&self) -> Option<&str> {
        match self {
            Scope::All => None,
            Scope::Tenant(own) => Some(own),
        }
    }
}

/// A token that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Too short to be a secret.
    #[error(
        "token of {0}: {TOKEN_BYTES_MIN} characters at least; make one with `openssl rand -hex 32`"
    )]
    Short(String),
    /// The same token twice.
    #[error("token of {0} is also the token of {1}: every tenant needs its own")]
    Shared(String, String),
}

/// Bearer tokens and what they open. Empty: everybody sees everything, so bind to localhost only.
#[derive(Clone, Default)]
pub struct TokenTable(Vec<([u8; 32], Scope)>);

impl TokenTable {
    /// An empty table.
    pub fn open() -> TokenTable {
        TokenTable::default()
    }

    /// Adds a token. Only its hash is kept.
    pub fn add(&mut self, token: &str, scope: Scope) -> Result<(), TokenError> {
        let name = |scope: &Scope| scope.tenant().unwrap_or("operator").to_owned();
        if token.len() < TOKEN_BYTES_MIN {
            return Err(TokenError::Short(name(&scope)));
        }
        let hash = *blake3::hash(token.as_bytes()).as_bytes();
        if let Some((_, taken)) = self.0.iter().find(|(known, _)| *known == hash) {
            return Err(TokenError::Shared(name(&scope), name(taken)));
        }
        self.0.push((hash, scope));
        Ok(())
    }

    /// True when no token is configured.
    pub fn is_open(&self) -> bool {
        self.0.is_empty()
    }

    /// What `token` opens, in a time that does not tell how much of it was right: hashes of fixed
    /// length are compared, all of them, each in constant time.
    pub fn scope(&self, token: &str) -> Option<&Scope> {
        let hash = *blake3::hash(token.as_bytes()).as_bytes();
        let mut found = None;
        for (known, scope) in &self.0 {
            let same: Choice = known.ct_eq(&hash);
            if bool::from(same) {
                found = Some(scope);
            }
        }
        found
    }
}

impl fmt::Debug for TokenTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(_, scope)| scope)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_open_their_scope_only() {
        let (a, b) = ("a".repeat(32), "b".repeat(32));
        let mut table = TokenTable::open();
        assert!(table.is_open());
        table.add(&a, Scope::Tenant("acme".into())).unwrap();
        table.add(&b, Scope::All).unwrap();
        assert_eq!(table.scope(&a), Some(&Scope::Tenant("acme".into())));
        assert_eq!(table.scope(&b), Some(&Scope::All));
        assert_eq!(table.scope(&a[..31]), None);
        assert_eq!(table.scope(""), None);
        assert!(matches!(table.add(&a, Scope::All), Err(TokenError::Shared(..))));
        assert!(matches!(table.add("short", Scope::All), Err(TokenError::Short(_))));
        assert!(!format!("{table:?}").contains('a'.to_string().repeat(32).as_str()));
    }
}
