//! How the brokers are reached: the one place where addresses, TLS and SASL become properties of
//! librdkafka. Consumers, the executor and the outputs share it.
//!
//! # Contract
//! Passwords go to librdkafka and nowhere else: `Debug` hides them, and no error or log line of
//! this crate holds a property.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use rdkafka::ClientConfig;

/// How a connection is protected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// TLS, if the brokers speak it.
    pub tls: Option<Tls>,
    /// User name and password, if the brokers ask for them.
    pub sasl: Option<Sasl>,
}

/// TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates (PEM) to check the brokers' against; the system's without.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its private key (PEM).
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// SASL.
#[derive(Clone, PartialEq, Eq)]
pub struct Sasl {
    /// The mechanism.
    pub mechanism: Mechanism,
    /// The user name.
    pub username: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Sasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sasl")
            .field("mechanism", &self.mechanism)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// How SASL proves who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The password itself.
    Plain,
    /// Challenge and response with SHA-256.
    ScramSha256,
    /// Challenge and response with SHA-512.
    ScramSha512,
}

impl Mechanism {
    const fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Brokers and how they are reached.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection {
    /// `host:port`, several with commas.
    pub brokers: String,
    /// TLS and SASL.
    pub security: Security,
    /// Further librdkafka properties; they win over ours.
    pub properties: BTreeMap<String, String>,
}

impl Connection {
    /// Brokers that ask for nothing.
    pub fn plaintext(brokers: impl Into<String>) -> Connection {
        Connection {
            brokers: brokers.into(),
            security: Security::default(),
            properties: BTreeMap::new(),
        }
    }

    /// What every client starts from; `defaults` are the client's own properties.
    pub fn client<'a>(
        &self,
        client_id: &str,
        defaults: impl IntoIterator<Item = (&'a str, String)>,
    ) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("client.id", client_id);
        let Security { tls, sasl } = &self.security;
        let protocol = match (tls.is_some(), sasl.is_some()) {
            (false, false) => "plaintext",
            (true, false) => "ssl",
            (false, true) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let Some(Tls { ca, identity }) = tls {
            if let Some(ca) = ca {
                config.set("ssl.ca.location", ca.to_string_lossy());
            }
            if let Some((certificate, key)) = identity {
                config.set("ssl.certificate.location", certificate.to_string_lossy());
                config.set("ssl.key.location", key.to_string_lossy());
            }
        }
        if let Some(sasl) = sasl {
            config
                .set("sasl.mechanism", sasl.mechanism.name())
                .set("sasl.username", &sasl.username)
                .set("sasl.password", &sasl.password);
        }
        for (name, value) in defaults {
            config.set(name, value);
        }
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config
    }
}

impl From<String> for Connection {
    fn from(brokers: String) -> Connection {
        Connection::plaintext(brokers)
    }
}

impl From<&str> for Connection {
    fn from(brokers: &str) -> Connection {
        Connection::plaintext(brokers)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("brokers", &self.brokers)
            .field("security", &self.security)
            .field("properties", &self.properties.keys())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_becomes_properties_and_passwords_stay_hidden() {
        let mut connection = Connection::plaintext("b:9093");
        connection.security = Security {
            tls: Some(Tls { ca: Some("ca.pem".into()), identity: None }),
            sasl: Some(Sasl {
                mechanism: Mechanism::ScramSha512,
                username: "omnify".into(),
                password: "s3cret".into(),
            }),
        };
        connection.properties.insert("ssl.key.password".into(), "hidden-too".into());
        let config = connection.client("omnify", [("acks", "all".to_owned())]);
        assert_eq!(config.get("security.protocol"), Some("sasl_ssl"));
        assert_eq!(config.get("sasl.mechanism"), Some("SCRAM-SHA-512"));
        assert_eq!(config.get("sasl.password"), Some("s3cret"));
        assert_eq!(config.get("ssl.ca.location"), Some("ca.pem"));
        assert_eq!(config.get("acks"), Some("all"));
        let shown = format!("{connection:?}");
        assert!(!shown.contains("s3cret") && !shown.contains("hidden-too"), "{shown}");
        connection.security = Security::default();
        let config = connection.client("omnify", []);
        assert_eq!(config.get("security.protocol"), Some("plaintext"));
    }
}
